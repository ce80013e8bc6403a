//! Watch: tells a [`Sink`] what objects of a kind there are, for as long as the process runs.
//!
//! A list in pages, then a watch from its version on, which the API server ends every few minutes and which goes on from
//! the last version seen; when that is too old (410) or anything else is odd, a list again, and so when the way to the API
//! server is replaced. Every wait has a deadline, the largest event and page are bounded, and between two tries there is a
//! pause that grows while they fail.
//! It does not use kube's watcher: that has kube's client read the lists, which holds a page twice in memory and writes
//! one it cannot read to the log, secrets in it included.
//! Source: Kubernetes API concepts, "Efficient detection of changes"; client-go `tools/cache/reflector.go`.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::utf8_percent_encode;
use prometheus::{IntCounter, IntGauge};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::SEGMENT;
use super::ask::{JSON, Refused, Status, read, request, unanswered, whole};
use super::connect::Connection;
use crate::cluster::{self, Body};
use crate::drain::Drain;
use crate::reload::Live;
use crate::telemetry::{Metrics, chain};

/// Objects of a page: client-go's. A page is some megabytes, and gone before the next is asked for.
const PAGE: u32 = 500;

/// Bytes of a page, and of an event, at most: pods of 128 KiB each, and as `ask` has it. Larger ones are
/// errors rather than a full memory.
const MAX_PAGE: usize = 64 * 1024 * 1024;
const MAX_EVENT: usize = 8 * 1024 * 1024;

/// For a whole page, or for the head of a watch's answer. An API server gives up on a list after 60 s itself.
const ANSWER: Duration = Duration::from_secs(60);

/// After this long the API server ends a watch, in seconds: soon enough that a connection which is dead without saying so
/// is replaced, and within the API server's own 5 to 10 minutes.
const WATCH_SECONDS: u64 = 290;

/// Silence on a watch after which it is taken for dead: its end is overdue.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 15);

/// The pause between two tries, and to what it doubles while they end soon.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where a watch puts what it sees.
pub(crate) trait Sink: Send + Sync + 'static {
    /// A list begins: until it ends, what is seen is part of it.
    fn begin(&mut self);

    /// The object is this now. One that makes no sense is the sink's to leave out.
    fn saw(&mut self, object: &RawValue);

    /// The object, which was this, is gone.
    fn gone(&mut self, object: &RawValue);

    /// A list ends, which was true at this version: there are no others.
    fn end(&mut self, version: &str);

    /// What is known is known up to this version.
    fn reached(&mut self, _version: &str) {}

    /// What is seen is late, for this reason, until a list ends or something is seen.
    fn broken(&mut self, _why: &cluster::Error) {}

    /// How many objects there are.
    fn len(&self) -> usize;
}

/// What is watched.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    /// In the log and as a metric label.
    pub(crate) name: &'static str,
    /// Such as `/api/v1/pods`.
    pub(crate) path: String,
    /// More of a query, such as `&labelSelector=a%3Db`.
    pub(crate) query: String,
}

/// A watch of one kind.
struct Watch<S> {
    connection: Live<Connection>,
    watched: Watched,
    sink: S,
    objects: IntGauge,
    synced: IntGauge,
    /// The version to go on from; a list is due when there is none.
    since: Option<String>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    // Go writes an empty list as null here and there.
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    r#continue: String,
}

/// What a watch reads of an object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Seen {
    metadata: SeenMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SeenMetadata {
    resource_version: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: Type,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Type {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// Starts a watch, as a task of `background`.
pub(super) fn start<S: Sink>(
    connection: Live<Connection>,
    watched: Watched,
    sink: S,
    background: &Drain,
    metrics: &Metrics,
) {
    let kind = [watched.name];
    let (objects, synced) =
        (metrics.watch_objects.with_label_values(&kind), metrics.watch_synced.with_label_values(&kind));
    let restarts = metrics.watch_restarts.with_label_values(&kind);
    let drain = background.clone();
    background.spawn(async move {
        let mut watch = Watch { connection, watched, sink, objects, synced, since: None };
        tokio::select! {
            biased;
            () = drain.stopping() => {}
            () = watch.run(&restarts) => {}
        }
    });
}

// === impl Watch ===

impl<S: Sink> Watch<S> {
    async fn run(&mut self, restarts: &IntCounter) {
        let (mut pause, mut connection) = (PAUSE, self.connection.clone());
        let resource = self.watched.name;
        loop {
            let started = Instant::now();
            let ended = tokio::select! {
                biased;
                () = connection.replaced() => None,
                ended = self.once() => Some(ended),
            };
            match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.synced.set(0);
                    self.sink.broken(&error);
                    warn!(
                        resource,
                        error = chain(&error),
                        "watch broken, podgate goes on with what it knows"
                    );
                }
                None => {
                    self.synced.set(0);
                    // It may lead to another API server, whose versions are others.
                    self.since = None;
                    pause = PAUSE;
                    debug!(resource, "the way to the API server is a new one, watching anew");
                }
            }
            if started.elapsed() > LONGEST_PAUSE {
                pause = PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            restarts.inc();
        }
    }

    /// One watch to its end, after a list where one is due.
    async fn once(&mut self) -> Result<(), cluster::Error> {
        let since = match self.since.take() {
            Some(since) => since,
            None => self.list().await?,
        };
        let Watched { name, path, query } = &self.watched;
        let act = format!("watch {name}");
        let path = format!(
            "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}{query}",
            utf8_percent_encode(&since, SEGMENT)
        );
        let (code, mut body) = match self.ask(path).await {
            Ok(answer) => answer,
            Err(error) => {
                self.since = Some(since);
                return Err(error);
            }
        };
        if code != StatusCode::OK {
            // What is not about the version will be wrong with a list too, which costs more.
            let elsewhere = [
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ];
            self.since = elsewhere.contains(&code).then_some(since);
            return Err(refused(&act, code, body).await);
        }
        self.synced.set(1);
        debug!(resource = self.watched.name, since, "watching");
        self.since = Some(since);
        let mut lines = BytesMut::new();
        let mut looked = 0;
        loop {
            let frame = match timeout(SILENCE, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                // However it ended, it can go on.
                Ok(Some(Err(source))) => return Err(unanswered(&act, source)),
                Ok(None) => return Ok(()),
                Err(late) => return Err(unanswered(&act, late)),
            };
            lines.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = lines[looked..].iter().position(|&byte| byte == b'\n') {
                let line = lines.split_to(looked + end);
                lines.advance(1);
                looked = 0;
                // When anything is wrong with it, what comes next is of no use.
                let since = self.since.take();
                self.since = self.see(&act, &line)?.or(since);
            }
            looked = lines.len();
            if looked > MAX_EVENT {
                self.since = None;
                return Err(unanswered(&act, format!("an event has more than {MAX_EVENT} bytes")));
            }
        }
    }

    /// Takes an event in; the version to go on from.
    fn see(&mut self, act: &str, line: &[u8]) -> Result<Option<String>, cluster::Error> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let event: Event<'_> =
            serde_json::from_slice(line).map_err(|_| unanswered(act, "an event is none"))?;
        let object = event.object.get().as_bytes();
        if let Type::Error = event.r#type {
            let code = StatusCode::from_u16(Status::of(object).code).unwrap_or_default();
            return Err(unanswered(act, Refused::of(code, object)));
        }
        let Seen { metadata: SeenMetadata { resource_version: since } } = read(act, object)?;
        match event.r#type {
            Type::Added | Type::Modified => self.sink.saw(event.object),
            Type::Deleted => self.sink.gone(event.object),
            Type::Bookmark | Type::Error => {}
        }
        self.count();
        if since.is_empty() {
            return Ok(None);
        }
        self.sink.reached(&since);
        Ok(Some(since))
    }

    /// Everything there is; the version at which that was so.
    async fn list(&mut self) -> Result<String, cluster::Error> {
        let act = format!("list {}", self.watched.name);
        self.sink.begin();
        let mut next = String::new();
        loop {
            let token = utf8_percent_encode(&next, SEGMENT);
            let Watched { path, query, .. } = &self.watched;
            let path = format!("{path}?limit={PAGE}&continue={token}{query}");
            let page = async {
                let (code, body) = self.ask(path).await?;
                if code != StatusCode::OK {
                    return Err(refused(&act, code, body).await);
                }
                whole(body, MAX_PAGE).await
            };
            let body = timeout(ANSWER, page).await.map_err(|late| unanswered(&act, late))??;
            let page: Page<'_> = read(&act, &body)?;
            for object in page.items.into_iter().flatten() {
                self.sink.saw(object);
            }
            if page.metadata.r#continue.is_empty() {
                self.sink.end(&page.metadata.resource_version);
                self.count();
                return Ok(page.metadata.resource_version);
            }
            next = page.metadata.r#continue;
        }
    }

    fn count(&self) {
        self.objects.set(i64::try_from(self.sink.len()).unwrap_or(i64::MAX));
    }

    async fn ask(&self, path: String) -> Result<(StatusCode, Body), cluster::Error> {
        let request = request(Method::GET, path, JSON, Bytes::new());
        let connection = self.connection.get();
        let act = self.watched.name;
        let response =
            timeout(ANSWER, connection.send(request)).await.map_err(|late| unanswered(act, late))??;
        Ok((response.status(), response.into_body()))
    }
}

async fn refused(act: &str, code: StatusCode, body: Body) -> cluster::Error {
    let body = timeout(ANSWER, whole(body, MAX_EVENT)).await;
    let body = body.unwrap_or(Ok(Bytes::new())).unwrap_or_default();
    unanswered(act, Refused::of(code, &body))
}
