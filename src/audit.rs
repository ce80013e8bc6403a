//! Audit: who asked for what, when, and what came of it; one event for each stage of each request, as kube-apiserver
//! writes them.
//!
//! In the flow: the door makes a [`Trail`] for every request; stages tell it what they find out; its events go through a
//! [`queue`] to each sink. A [`Policy`] says which requests are recorded and how much of them.
//! Invariants: while a sink cannot be written, and podgate is told to refuse, nobody is let in whose events could be
//! lost; whose first event was written, of them the last one will be; what is lost in spite of all is counted, and the
//! sink is told. No credential is in an event.
//! Source: `protocol.md` 8.6; apiserver `pkg/endpoints/filters/audit.go`, `pkg/audit`.

mod event;
mod object;
pub mod policy;
mod queue;
mod sink;
mod trail;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Uri};
use prometheus::IntCounter;
use tracing::{error, warn};

use crate::cluster::kube::connect::{self, Connection, Source};
use crate::config::{self, Mode, WhenDown};
use crate::drain::Drain;
use crate::reload::{Live, Reloader};
use crate::request::{Ask, Attributes};
use crate::telemetry::Metrics;
pub use policy::Policy;
use queue::{Limits, Queue};
pub use sink::FileError;
use sink::{File, Sink, Stdout, Webhook};
pub use trail::Trail;

/// Writes events; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Audit(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    policy: Live<Policy>,
    queues: Vec<Arc<Queue>>,
    mode: Mode,
    when_down: WhenDown,
    blocking_timeout: Duration,
    flush_timeout: Duration,
    max_object_bytes: usize,
    refused: IntCounter,
}

/// Events cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy is of no use.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The file is of no use.
    #[error(transparent)]
    File(#[from] FileError),
    /// The way to the webhook is of no use.
    #[error("the audit webhook")]
    Webhook(#[source] connect::Error),
}

// === impl Error ===

impl Error {
    /// The setting that it is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Policy(_) => "audit.policyFile",
            Self::File(_) => "audit.file.path",
            Self::Webhook(_) => "audit.webhook.kubeconfig",
        }
    }
}

// === impl Audit ===

impl Audit {
    /// Writes nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Opens the sinks of these settings. What writes to them are tasks of `background`, which is to be cut after
    /// [`Audit::flush`].
    ///
    /// # Errors
    /// When a file or an address that they name cannot be used.
    pub async fn start(
        config: &config::Audit,
        reloader: &Reloader,
        background: &Drain,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        if !config.has_sinks() {
            return Ok(Self::off());
        }
        let mut sinks: Vec<(&'static str, Box<dyn Sink>)> = Vec::new();
        if let Some(path) = &config.file.path {
            sinks.push(("file", Box::new(File::open(path, &config.file)?)));
        }
        if config.stdout {
            sinks.push(("stdout", Box::new(Stdout)));
        }
        if let Some(path) = &config.webhook.kubeconfig {
            let target = webhook(path, config.webhook.timeout, reloader, background).await?;
            sinks.push(("webhook", Box::new(Webhook::new(target, config.webhook.clone()))));
        }
        let limits = Limits { events: config.queue_events, bytes: config.queue_bytes };
        let policy = match &config.policy_file {
            Some(path) => {
                let file = path.clone();
                let read = move || Policy::from_file(&file);
                reloader.load("audit.policyFile", vec![path.clone()], read).await?
            }
            None => Live::fixed(Policy::default()),
        };
        let queues = sinks.into_iter().map(|(name, sink)| {
            let queue = Queue::new(name, limits, metrics);
            background.spawn(queue.clone().run(sink, background.clone()));
            queue
        });
        Ok(Self(Some(Arc::new(Shared {
            queues: queues.collect(),
            policy,
            mode: config.mode,
            when_down: config.when_down,
            blocking_timeout: config.blocking_timeout,
            flush_timeout: config.flush_timeout,
            max_object_bytes: config.max_object_bytes,
            refused: metrics.audit_refused.clone(),
        }))))
    }

    /// The trail of a request; `id` is its audit id.
    pub fn trail<B>(&self, request: &Request<B>, peer: SocketAddr, id: &str, ask: &Ask) -> Trail {
        match &self.0 {
            Some(shared) => Trail::of(shared.clone(), request.headers(), peer, id, ask),
            None => Trail::default(),
        }
    }

    /// The trail of a request that podgate answers by its head alone.
    pub fn unread<B>(&self, request: &Request<B>, peer: SocketAddr, id: &str) -> Trail {
        let Some(shared) = &self.0 else { return Trail::default() };
        let uri = request.uri();
        let attributes = Attributes {
            verb: request.method().as_str().to_ascii_lowercase(),
            path: uri.path().to_owned(),
            resource: None,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Trail::about(shared.clone(), request.headers(), peer, id, target, attributes, false)
    }

    /// Something that was no request: nothing of it is known but where it came from, and what it was answered.
    pub fn unparsed(&self, peer: SocketAddr, code: u16, why: &str) {
        let Some(shared) = &self.0 else { return };
        let (nothing, id) = (Attributes::default(), uuid::Uuid::new_v4().to_string());
        let headers = http::HeaderMap::new();
        let mut trail = Trail::about(shared.clone(), &headers, peer, &id, "", nothing, false);
        trail.unknown_with(code, why);
    }

    /// Whether anything is written.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether no sink is down or has a full queue, or new requests would not be refused for that.
    pub fn is_ready(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            shared.when_down == WhenDown::Continue
                || shared.queues.iter().all(|queue| !queue.is_down() && queue.has_room())
        })
    }

    /// Resolves when every event was written, or could not be for too long.
    pub async fn flush(&self) {
        let Some(shared) = &self.0 else { return };
        let flushed = join_all(shared.queues.iter().map(|queue| queue.flush()));
        if tokio::time::timeout(shared.flush_timeout, flushed).await.is_err() {
            error!(within = ?shared.flush_timeout, "audit events could not be written before the end");
        }
    }
}

/// What is wrong with the files that these settings name; nothing is opened or made.
pub fn check(config: &config::Audit) -> Vec<Error> {
    let policy = config.policy_file.as_deref().and_then(|path| Policy::from_file(path).err());
    let background = Drain::new();
    let target = config.webhook.kubeconfig.as_deref();
    let target = target.and_then(|path| target_of(path, config.webhook.timeout, &background).err());
    policy.map(Error::Policy).into_iter().chain(target.map(Error::Webhook)).collect()
}

/// Says what settings leave out.
pub fn warn_of_gaps(config: &config::Audit) {
    if !config.has_sinks() {
        warn!(
            "audit has no sink: nothing is written about who did what; set audit.file, audit.stdout or audit.webhook"
        );
    }
}

async fn webhook(
    path: &Path,
    timeout: Duration,
    reloader: &Reloader,
    background: &Drain,
) -> Result<Live<sink::Target>, Error> {
    let source = Source::Kubeconfig { path: path.to_owned(), context: None };
    let (path, background) = (path.to_owned(), background.clone());
    let build = move || target_of(&path, timeout, &background);
    let live = reloader.load_named("audit.webhook.kubeconfig", move || source.files(), build).await;
    live.map_err(Error::Webhook)
}

/// The server of a kubeconfig, whose path is where events are posted to and not a prefix of other paths.
fn target_of(path: &Path, timeout: Duration, background: &Drain) -> Result<sink::Target, connect::Error> {
    let source = Source::Kubeconfig { path: path.to_owned(), context: None };
    let mut config = source.config()?;
    config.connect_timeout = Some(timeout);
    let post = config.cluster_url.path_and_query().map_or("/", |target| target.as_str());
    let post = post.parse::<Uri>().unwrap_or_else(|_| Uri::from_static("/"));
    let mut root = std::mem::take(&mut config.cluster_url).into_parts();
    root.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    config.cluster_url = Uri::from_parts(root).map_err(|error| connect::Error::BadName(error.to_string()))?;
    Ok(sink::Target { connection: Connection::new(&config, background)?, path: post })
}
