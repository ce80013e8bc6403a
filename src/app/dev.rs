//! `podgate dev`: an embedded cluster with a gateway in front, from start to the second Ctrl-C.
//!
//! The gateway is the same as in front of any cluster: it gets a [`Cluster`](crate::cluster::Cluster), addresses
//! and keys, and does not know that they are of this process.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Node;
use tracing::{debug, warn};

use super::stop::{self, Signals};
use super::{Gateway, Ground, grants, policy, recording};
use crate::audit::{self, Audit};
use crate::authn::{Methods, Tokens, tokens};
use crate::config::{self, Config};
use crate::dev::cluster::DevCluster;
use crate::dev::node::{self, Endpoint, Streaming};
use crate::dev::state::{self, State};
use crate::dev::{manifests, store};
use crate::drain::{Drain, Drained};
use crate::grant;
use crate::listen;
use crate::policy::source;
use crate::recording::keys::SigningKey;
use crate::reload::{Live, Reloader};
use crate::tap::Recordings;
use crate::telemetry::Metrics;
use crate::tls::{self, ClientVerifier, Clients};
use crate::upstream::{Route, Upstream};

/// Annotation of a node: what it speaks, by its [`Streaming::name`].
const STREAMING: &str = "podgate.dev/streaming";

/// Annotation of a node: `leave` is to leave programs running whose clients have gone, as real nodes do.
const ORPHANS: &str = "podgate.dev/orphans";

/// A running embedded cluster.
pub struct Dev {
    gateway: Gateway,
    state: State,
    nodes: Vec<(String, SocketAddr)>,
    cluster: Arc<DevCluster>,
}

/// The embedded cluster cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder is of no use.
    #[error(transparent)]
    State(#[from] state::Error),
    /// Grants cannot be kept in it.
    #[error("keep grants in the state folder")]
    Grants(#[source] grant::store::Error),
    /// The house rules are.
    #[error("setting policy.files")]
    Policy(#[from] source::Error),
    /// A manifest is wrong.
    #[error(transparent)]
    Manifests(#[from] manifests::Error),
    /// The store does not take what the manifests say.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A key or certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The token file cannot be used.
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    /// The audit policy, or where events go.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// A node is to speak what there is not.
    #[error(
        "node {name}: annotation {STREAMING} is {value:?}, it must be one of {}",
        Streaming::ALL.map(Streaming::name).join(", ")
    )]
    Streaming {
        /// The node.
        name: String,
        /// What its manifest says.
        value: String,
    },
    /// What settings of recording name is of no use.
    #[error(transparent)]
    Recording(#[from] recording::Error),
    /// No key to sign recordings with can be made.
    #[error("make the key that signs recordings, {}", path.display())]
    MakeKey {
        /// Its file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A node endpoint cannot listen.
    #[error("start node {name}")]
    Node {
        /// The node.
        name: String,
        /// The cause.
        #[source]
        source: node::Error,
    },
    /// An address of the gateway cannot be had.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// Signals cannot be received.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs until a signal; the exit code.
///
/// # Errors
/// When it cannot start; then nothing was left running.
pub async fn run(config: &Config) -> Result<u8, Error> {
    let signals = Signals::new().map_err(Error::Signals)?;
    // In full on request: a newcomer is to see a few lines.
    debug!(settings = config.to_yaml(), "podgate dev starts");
    let dev = Dev::start(config).await?;
    // A closed pipe is no reason not to serve.
    let _ = std::io::stdout().write_all(dev.banner().as_bytes());
    // Nobody is sent here who has to be told.
    Ok(stop::on_signal(dev.gateway, signals, Duration::ZERO, config.drain.deadline).await)
}

// === impl Dev ===

impl Dev {
    /// Reads or makes the state, loads the manifests, starts the nodes that are up, and the gateway.
    ///
    /// # Errors
    /// When anything of that fails; what was started is stopped.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        let (drain, background) = (Drain::new(), Drain::new());
        let started = Self::start_under(config, &drain, &background).await;
        if started.is_err() {
            drain.finish(Duration::ZERO).await;
            background.finish(Duration::ZERO).await;
        }
        started
    }

    async fn start_under(config: &Config, drain: &Drain, background: &Drain) -> Result<Self, Error> {
        let mut loaded = match &config.dev.manifests {
            Some(folder) => manifests::folder(folder)?,
            None => manifests::builtin()?,
        };
        loaded.objects.extend(manifests::simulated(config.dev.simulate));
        for note in &loaded.warnings {
            warn!(manifest.file = note.file, manifest.line = note.line, "{}", note.what);
        }
        let ask = state::Ask { hosts: vec![config.api.listen.ip().to_string()], now: SystemTime::now() };
        let state = State::open(&config.dev.dir, &ask)?;
        let route = Route::kubelet(tls::client(Some(state.kubelet_client()), state.node_roots(), false)?);
        let kubelets = Upstream::new(route.clone(), super::upstream_settings(config));
        let cluster = Arc::new(DevCluster::new(loaded).with_kubelets(kubelets));

        let mut nodes = Vec::new();
        let node_tls =
            tls::server(state.node_server(), &[tls::HTTP1], Clients::Require(state.node_client_roots()))?;
        for node in cluster.store().nodes() {
            let name = node.metadata.name.clone().unwrap_or_default();
            if !store::is_up(&node) {
                continue;
            }
            let settings = node::Settings {
                streaming: streaming(&node, &name)?,
                leaves_orphans: node
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get(ORPHANS))
                    .is_some_and(|orphans| orphans == "leave"),
                ..node::Settings::default()
            };
            // Whatever port the manifest names: dumps of real clusters say 10250 for every node.
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let features = settings.streaming.declared_features();
            let endpoint = Endpoint::bind(
                addr,
                node_tls.clone(),
                name.clone(),
                cluster.store().clone(),
                state.pods_dir(),
                settings,
            )
            .await
            .map_err(|source| Error::Node { name: name.clone(), source })?;
            let addr = endpoint.local_addr();
            cluster.store().set_node_features(&name, Streaming::FEATURES, features)?;
            cluster.store().set_node_endpoint(&name, addr)?;
            drain.spawn(endpoint.run(drain.clone()));
            nodes.push((name, addr));
        }

        let metrics = Metrics::new();
        let reloader = Reloader::new(config.reload.period, background.clone(), metrics.clone());
        let recordings = match config.recording.enabled {
            true => Some(recordings(&config.recording, state.path(), background, &metrics)?),
            false => None,
        };
        let grants = grants::in_folder(config, &state.path().join("grants"), background);
        let grants = grants.map_err(Error::Grants)?;
        let ground = Ground {
            audit: Audit::start(&config.audit, &reloader, background, &metrics).await?,
            recordings,
            sharing: None,
            server_tls: Live::fixed(tls::server(
                state.api_server(),
                &[tls::HTTP2, tls::HTTP1],
                Clients::Ask,
            )?),
            authn: Methods {
                certificates: Some(Live::fixed(ClientVerifier::new(state.client_roots())?)),
                tokens: Live::fixed(Tokens::from_file(&state.tokens_path())?),
                anonymous: config.authentication.anonymous,
                ..Methods::default()
            },
            policy: Arc::new(policy::open(config, &reloader, Arc::new(grants.clone()), None).await?),
            grants: Some(grants),
            route,
            ready: Vec::new(),
            metrics,
            background: background.clone(),
            cluster: cluster.clone(),
        };
        let gateway = Gateway::start(config, ground, drain.clone()).await?;
        if let Err(error) = state.write_kubeconfig(gateway.api) {
            gateway.stop(Duration::ZERO).await;
            return Err(error.into());
        }
        Ok(Self { gateway, state, nodes, cluster })
    }

    /// Address of the API door.
    pub fn api(&self) -> SocketAddr {
        self.gateway.api
    }

    /// Address of health and metrics.
    pub fn admin(&self) -> SocketAddr {
        self.gateway.admin
    }

    /// The gateway's series.
    pub fn metrics(&self) -> &Metrics {
        &self.gateway.metrics
    }

    /// Its stop, and the tracker of its tasks.
    pub fn drain(&self) -> &Drain {
        &self.gateway.drain
    }

    /// What keys and certificates there are.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The embedded cluster.
    pub fn cluster(&self) -> &DevCluster {
        &self.cluster
    }

    /// The nodes that are up, with their endpoints.
    pub fn nodes(&self) -> &[(String, SocketAddr)] {
        &self.nodes
    }

    /// Takes both steps of the stop.
    pub async fn stop(self, deadline: Duration) -> Drained {
        self.gateway.stop(deadline).await
    }

    /// What a newcomer needs to know, in a few lines.
    fn banner(&self) -> String {
        let kubeconfig = self.state.kubeconfig_path();
        let kubeconfig: PathBuf = std::path::absolute(&kubeconfig).unwrap_or(kubeconfig);
        let nodes: Vec<_> = self.nodes.iter().map(|(name, addr)| format!("{name} https://{addr}")).collect();
        let mut text = String::new();
        let _ = write!(
            text,
            "podgate dev: an embedded cluster with podgate in front of it\n\n  \
             API      https://{}\n  \
             nodes    {}\n  \
             health   http://{}/readyz, /metrics\n\n  \
             export KUBECONFIG={}\n\n  \
             kubectl get pods -A -o wide\n  \
             kubectl exec -it web -- sh\n  \
             kubectl logs -f web\n  \
             kubectl --context mallory exec web -- id\n\n\
             Dev pods are plain local processes: commands run as you, on this machine, without isolation.\n\
             Ctrl-C drains and ends; a second Ctrl-C ends at once.\n",
            self.gateway.api,
            nodes.join(", "),
            self.gateway.admin,
            kubeconfig.display(),
        );
        text
    }
}

/// Recordings in the state folder, but for what the settings place elsewhere.
fn recordings(
    config: &config::Recording,
    state: &Path,
    background: &Drain,
    metrics: &Metrics,
) -> Result<Recordings, Error> {
    let mut config = config.clone();
    let signing = match &config.signing_key_file {
        Some(path) => recording::signing_key(path)?,
        None => kept_key(&state.join("recording-key.pem"))?,
    };
    if config.store.url.is_none() {
        let folder = std::path::absolute(state).unwrap_or_else(|_| state.to_owned()).join("recordings");
        config.store.url = url::Url::from_directory_path(folder).ok().map(String::from);
    }
    let spool = config.spool.dir.clone().unwrap_or_else(|| state.join("spool"));
    Ok(recording::start(&config, signing, &spool, background, metrics)?)
}

/// The key in this file, which is made when it is missing.
fn kept_key(path: &Path) -> Result<SigningKey, Error> {
    use std::os::unix::fs::OpenOptionsExt;

    if path.exists() {
        return Ok(recording::signing_key(path)?);
    }
    let make = || -> Result<SigningKey, Box<dyn std::error::Error + Send + Sync>> {
        let key = SigningKey::generate()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(key.to_private_pem()?.as_bytes())?;
        Ok(key)
    };
    make().map_err(|source| Error::MakeKey { path: path.to_owned(), source })
}

/// What a node is to speak.
fn streaming(node: &Node, name: &str) -> Result<Streaming, Error> {
    let annotations = node.metadata.annotations.as_ref();
    let Some(value) = annotations.and_then(|annotations| annotations.get(STREAMING)) else {
        return Ok(Streaming::default());
    };
    let unknown = || Error::Streaming { name: name.to_owned(), value: value.clone() };
    Streaming::from_name(value).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nodes_that_all_name_one_port_get_endpoints_of_their_own() {
        // The port is taken, as it is on a machine with a kubelet.
        let kubelet = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = kubelet.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let node = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: \
                 {{daemonEndpoints: {{kubeletEndpoint: {{Port: {port}}}}}}}\n---\n"
            )
        };
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("nodes.yaml"), node("a") + &node("b")).unwrap();
        let mut config = Config::default();
        config.api.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.admin.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.dev.dir = folder.path().join("state");
        config.dev.manifests = Some(manifests);
        let dev = Dev::start(&config).await.unwrap();
        let [(_, a), (_, b)] = dev.nodes() else { panic!("two nodes") };
        assert!(a != b && a.port() != port && b.port() != port);
        assert_eq!(dev.stop(Duration::from_secs(20)).await, Drained::Clean);
    }

    #[tokio::test]
    async fn a_node_speaks_what_its_annotation_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.api.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.admin.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.dev.dir = folder.path().join("state");
        let dev = Dev::start(&config).await.unwrap();
        for (name, features) in
            [("node-a", vec![]), ("node-spdy", vec![]), ("node-v5", vec!["ExtendWebSocketsToKubelet"])]
        {
            let node = dev.cluster().store().node(name).unwrap();
            assert_eq!(store::slim_node(&node).declared_features, features, "{name}");
        }
        assert_eq!(dev.stop(Duration::from_secs(20)).await, Drained::Clean);

        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let node =
            "apiVersion: v1\nkind: Node\nmetadata: {name: n, annotations: {podgate.dev/streaming: v6}}\n";
        std::fs::write(manifests.join("nodes.yaml"), node).unwrap();
        config.dev.manifests = Some(manifests);
        let error = Dev::start(&config).await.err().unwrap();
        let text = "node n: annotation podgate.dev/streaming is \"v6\", it must be one of spdy, v4, v5";
        assert_eq!(error.to_string(), text);
    }
}
