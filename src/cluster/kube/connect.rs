//! Connect: the way to an API server, with podgate's own identity.
//!
//! A [`Source`] says where the way is described; what kube makes of it becomes a [`Connection`]: pooled,
//! verified TLS, HTTP/1.1, because nothing else can be upgraded. Everything podgate asks an API server goes
//! through [`Connection::send`], not through kube's own client: that one holds whole answers in memory and
//! writes those it cannot read to the log, and pods and token reviews hold secrets. Invariants: whatever
//! identity a request names in `Authorization` is replaced by podgate's; the server's certificate is always
//! verified.
//! Source: client-go `tools/clientcmd`, `rest/config.go`; kube `client::ConfigExt`.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Config;
use ::kube::client::{AuthError, ConfigExt};
use ::kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::ServerName;
use tower::timeout::TimeoutLayer;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt};

use crate::cluster::{self, Body};
use crate::drain::Drain;
use crate::secret::{self, Secret};
use crate::tls;

/// For podgate's own credentials, which a plugin may have to fetch first.
const CREDENTIALS: Duration = Duration::from_secs(10);

/// Silence after which a connection is probed, and how long what was sent may go unacknowledged: an API server whose
/// machine is gone does not say so. Shorter than the time-outs of stateful firewalls.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long an unused connection is kept. Shorter than the 90 s after which an API server closes it
/// (`protocol.md` 8.5), so that a request hardly ever meets a connection that is being closed.
const IDLE: Duration = Duration::from_secs(60);

/// Unused connections at most: as many as requests usually overlap; more are opened when needed and closed
/// after use.
const MAX_IDLE: usize = 64;

/// Where the way to the API server is described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The service account and the environment of a pod.
    InCluster,
    /// A kubeconfig file.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// One of its contexts; the current one when there is none.
        context: Option<String>,
    },
}

/// A way to an API server; cheap to clone.
#[derive(Clone)]
pub struct Connection {
    client: BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>,
    authorize: BoxCloneSyncService<Request<String>, Response<()>, BoxError>,
    server: Arc<Server>,
}

/// Where the API server is, for those who dial it themselves.
#[derive(Clone)]
pub struct Server {
    /// A name or an address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Stands before every path; empty unless the server shares its host with others. No slash at its end.
    pub prefix: String,
    /// Verifies the server and shows podgate's certificate if it has one; ALPN is HTTP/1.1.
    pub tls: Arc<ClientConfig>,
    /// What the server's certificate has to cover.
    pub name: ServerName<'static>,
}

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// podgate does not run in a pod that may ask its cluster.
    #[error("read the service account of this pod")]
    InCluster(#[source] InClusterError),
    /// The file is no YAML, or no kubeconfig. kube's own text may quote a line of it, and with it a secret.
    #[error("{path}:{line}: not a kubeconfig")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        line: u64,
    },
    /// The file cannot be read, or lacks something.
    #[error("read kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: KubeconfigError,
    },
    /// Bearer tokens must not go in the clear.
    #[error("API server {0} is not reached by https")]
    Plain(String),
    /// The server has no host, or one that no certificate could be for.
    #[error("{0:?} is no name of a server")]
    BadName(String),
    /// A proxy stands between, which podgate does not know how to use.
    #[error("no proxy is supported, and one is set: proxy-url in the kubeconfig, or HTTPS_PROXY")]
    Proxy,
    /// The kubeconfig says not to verify.
    #[error("insecure-skip-tls-verify is set, but podgate always verifies the API server's certificate")]
    Unverified,
    /// The kubeconfig's user acts as somebody else, but podgate acts as its callers.
    #[error("the user of the kubeconfig impersonates another, which podgate cannot do on top of its callers")]
    Impersonates,
    /// There is no token where one should be.
    #[error("set up the identity towards the API server")]
    Token(#[source] secret::Error),
    /// A key, certificate or credential plugin is of no use.
    #[error("set up the identity towards the API server")]
    Identity(#[source] BoxError),
}

/// Runs what hyper runs beside a request (connecting, a connection's own reads and writes) as tasks of a
/// drain, and ends them at its second step: an unused connection would hold the first one for as long as it
/// is kept.
#[derive(Debug, Clone)]
struct Background(Drain);

/// What a kubeconfig says: this file, or else those that kubectl would read.
///
/// # Errors
/// [`Error::Malformed`] or [`Error::Kubeconfig`].
pub fn kubeconfig(path: Option<&Path>, context: Option<String>) -> Result<Config, Error> {
    let failed = |source| {
        let named = std::env::var_os("KUBECONFIG").filter(|named| !named.is_empty());
        let kubectls = || named.unwrap_or_else(|| "~/.kube/config".into()).into();
        let path = path.map_or_else(kubectls, Path::to_owned);
        match source {
            KubeconfigError::Parse(error) => {
                Error::Malformed { path, line: error.location().map_or(0, |at| at.line()) }
            }
            source => Error::Kubeconfig { path, source },
        }
    };
    let file = path.map_or_else(Kubeconfig::read, Kubeconfig::read_from).map_err(failed)?;
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    // All of it is there already: this is async for the sake of other ways to make one.
    let read = Config::from_custom_kubeconfig(file, &options).now_or_never();
    read.unwrap_or(Err(KubeconfigError::FindPath)).map_err(failed)
}

// === impl Source ===

impl Source {
    /// What it says now.
    ///
    /// # Errors
    /// When it says nothing that can be used.
    pub fn config(&self) -> Result<Config, Error> {
        let Self::Kubeconfig { path, context } = self else {
            return Config::incluster().map_err(Error::InCluster);
        };
        kubeconfig(Some(path), context.clone())
    }

    /// The files to look after, so that a changed one makes a new [`Connection`]. The CA of a pod is not among them: kube
    /// reads it again each minute.
    pub fn files(&self) -> Vec<PathBuf> {
        let token = self.config().ok().and_then(|config| config.auth_info.token_file);
        let mut files: Vec<_> = token.map(PathBuf::from).into_iter().collect();
        let Self::Kubeconfig { path, .. } = self else { return files };
        files.push(path.clone());
        // What cannot be read now names no others; making a connection says why.
        let Ok(file) = Kubeconfig::read_from(path) else { return files };
        let clusters = file.clusters.into_iter().filter_map(|named| named.cluster);
        let users = file.auth_infos.into_iter().filter_map(|named| named.auth_info);
        let named = clusters
            .map(|cluster| cluster.certificate_authority)
            .chain(users.flat_map(|user| [user.client_certificate, user.client_key]));
        files.extend(named.flatten().map(PathBuf::from));
        files
    }
}

// === impl Connection ===

impl Connection {
    /// A way by this configuration, whose `connect_timeout` is for name resolution, TCP and TLS together; opens nothing yet.
    /// Its tasks belong to `background`, which is to be stopped when no session is left: unused connections end at its
    /// second step.
    ///
    /// # Errors
    /// When the configuration cannot be used, or asks for what podgate does not do.
    pub fn new(config: &Config, background: &Drain) -> Result<Self, Error> {
        if config.proxy_url.is_some() {
            return Err(Error::Proxy);
        }
        if config.accept_invalid_certs {
            return Err(Error::Unverified);
        }
        let identity = &config.auth_info;
        if identity.impersonate.is_some()
            || identity.impersonate_uid.is_some()
            || identity.impersonate_groups.is_some()
            || identity.impersonate_user_extra.is_some()
        {
            return Err(Error::Impersonates);
        }
        let mut config = config.clone();
        let identity = &mut config.auth_info;
        if let (None, Some(path)) = (&identity.token, identity.token_file.take()) {
            // Read here rather than by kube, which takes a line's end for a part of the token.
            let token = Secret::from_file(Path::new(&path)).map_err(Error::Token)?;
            identity.token = Some(token.expose().to_owned().into());
        }
        let mut server = Server::of(&config)?;
        let within = config.connect_timeout.map(TimeoutLayer::new);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(ClientConfig::clone(&server.tls))
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(server.name.clone()))
            .enable_http1()
            .wrap_connector(tcp());
        Arc::make_mut(&mut server.tls).alpn_protocols = vec![tls::HTTP1.to_vec()];
        let https = ServiceBuilder::new().option_layer(within).service(https);
        let client = Client::builder(Background(background.clone()))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .build(BoxCloneSyncService::new(https));
        let client = config.base_uri_layer().layer(client).map_err(BoxError::from);

        // What the layer adds to a request is shown in its answer.
        let shown = tower::service_fn(async |request: Request<String>| {
            let mut response = Response::new(());
            *response.headers_mut() = request.into_parts().0.headers;
            Ok::<_, BoxError>(response)
        });
        let auth = config.auth_layer().map_err(|error| Error::Identity(unquoted(error.into())))?;
        let authorize = ServiceBuilder::new().option_layer(auth).service(shown);
        Ok(Self {
            client: BoxCloneSyncService::new(client),
            authorize: BoxCloneSyncService::new(authorize),
            server: Arc::new(server),
        })
    }

    /// Sends a request whose URI is a path with its query; the server and podgate's credentials are added,
    /// and both bodies are streamed. The answer's extensions are hyper's own, so that an upgrade can be had
    /// from it. It has no deadline but for connecting. When dropped, the request may have been sent.
    ///
    /// # Errors
    /// [`cluster::Error::Unreachable`] when there is no connection or it ends too early, else
    /// [`cluster::Error::Unanswered`]. Whatever the server answers is no error.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, cluster::Error> {
        let act = format!("{} {}", request.method(), request.uri().path());
        let credentials = self.credentials().await?;
        let headers = request.headers_mut();
        headers.remove(header::HOST);
        headers.remove(header::AUTHORIZATION);
        if let Some(credentials) = credentials {
            headers.insert(header::AUTHORIZATION, credentials);
        }
        *request.version_mut() = Version::HTTP_11;
        // Boxed, because the compiler cannot show of what is inside that it is `Send` for callers that
        // borrow.
        match self.client.clone().oneshot(request).boxed().await {
            Ok(response) => Ok(response.map(|body| body.map_err(Into::into).boxed_unsync())),
            Err(source) if is_reachable(&*source) => Err(cluster::Error::Unanswered { act, source }),
            Err(source) => Err(cluster::Error::Unreachable { act, source }),
        }
    }

    /// podgate's own `Authorization` header, if it has one; a certificate may be all it shows. Marked as
    /// sensitive.
    ///
    /// # Errors
    /// [`cluster::Error::Unanswered`] when a credential plugin fails.
    pub async fn credentials(&self) -> Result<Option<HeaderValue>, cluster::Error> {
        let act = "get podgate's own credentials";
        let shown = self.authorize.clone().oneshot(Request::default()).boxed();
        let shown = tokio::time::timeout(CREDENTIALS, shown).await.unwrap_or_else(|late| Err(late.into()));
        let shown =
            shown.map_err(|error| cluster::Error::Unanswered { act: act.into(), source: unquoted(error) })?;
        Ok(shown.into_parts().0.headers.remove(header::AUTHORIZATION))
    }

    /// Where the API server is.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connection").field(&self.server).finish()
    }
}

// === impl Server ===

impl Server {
    fn of(config: &Config) -> Result<Self, Error> {
        let url = &config.cluster_url;
        if url.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Err(Error::Plain(url.to_string()));
        }
        let host = url.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = config.tls_server_name.as_ref().unwrap_or(&host);
        let name = ServerName::try_from(name.clone()).map_err(|_| Error::BadName(name.clone()))?;
        if CryptoProvider::get_default().is_none() {
            // kube asks for the process's own. Another thread may have been faster, with the same one.
            let _ = CryptoProvider::clone(&tls::provider()).install_default();
        }
        let tls = config.rustls_client_config().map_err(|error| Error::Identity(unquoted(error.into())))?;
        Ok(Self {
            host,
            port: url.port_u16().unwrap_or(443),
            prefix: url.path().trim_end_matches('/').to_owned(),
            tls: Arc::new(tls),
            name,
        })
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}{} as {}", self.host, self.port, self.prefix, self.name.to_str())
    }
}

// === impl Background ===

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Background {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let drain = self.0.clone();
        self.0.spawn(async move {
            tokio::select! {
                biased;
                () = drain.cutting() => {}
                () = task => {}
            }
        });
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE / 3));
    tcp.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(KEEPALIVE));
    tcp
}

/// An error about credentials that says nothing of what they are: kube quotes what a credential plugin wrote.
fn unquoted(error: BoxError) -> BoxError {
    let inner = match error.downcast_ref::<::kube::Error>() {
        Some(::kube::Error::Auth(inner)) => Some(inner),
        _ => error.downcast_ref::<AuthError>(),
    };
    match inner {
        Some(AuthError::AuthExecRun { out, .. }) => {
            format!("the credential plugin ended with {}", out.status)
        }
        Some(AuthError::AuthExecParse(_) | AuthError::ParseTokenKey(_)) => {
            "the credential plugin wrote something else than credentials".to_owned()
        }
        _ => return error,
    }
    .into()
}

/// Whether the fault is in what was said rather than in the way: an answer that is no HTTP, a request body
/// that failed.
fn is_reachable(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_user() || error.is_parse();
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    fn kubeconfig(cluster: &str, user: &str) -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        (folder, Source::Kubeconfig { path, context: None })
    }

    fn connect(cluster: &str, user: &str) -> Result<Connection, Error> {
        let (_folder, source) = kubeconfig(cluster, user);
        let mut config = source.config()?;
        if !cluster.contains("proxy-url") {
            // The tests' own environment may name a proxy.
            config.proxy_url = None;
        }
        Connection::new(&config, &Drain::new())
    }

    #[test]
    fn what_podgate_does_not_do_is_refused_rather_than_left_out() {
        let server = "server: 'https://10.0.0.1'";
        let refused = |cluster: &str, user: &str| connect(cluster, user).map(drop).unwrap_err();
        assert!(matches!(refused("server: 'http://10.0.0.1'", ""), Error::Plain(_)));
        let unverified = format!("{server}, insecure-skip-tls-verify: true");
        assert!(matches!(refused(&unverified, ""), Error::Unverified));
        assert!(matches!(refused(&format!("{server}, proxy-url: 'http://p:1'"), ""), Error::Proxy));
        assert!(matches!(refused(server, "as: root"), Error::Impersonates));
        assert!(matches!(refused("", ""), Error::Kubeconfig { .. }));
    }

    #[tokio::test]
    async fn the_server_and_podgates_credentials_are_known_to_those_who_dial_it() {
        let connection = connect("server: 'https://[::1]:6443/k8s/c/'", "token: sesame").unwrap();
        let server = connection.server();
        assert_eq!((server.host.as_str(), server.port, server.prefix.as_str()), ("::1", 6443, "/k8s/c"));
        assert_eq!(server.tls.alpn_protocols, [tls::HTTP1]);
        let credentials = connection.credentials().await.unwrap().unwrap();
        assert_eq!(credentials, "Bearer sesame");
        assert!(!format!("{credentials:?} {connection:?}").contains("sesame"));
        let other = connect("server: 'https://10.0.0.1', tls-server-name: api.test", "").unwrap();
        assert_eq!(other.server().name.to_str(), "api.test");
        assert_eq!(other.credentials().await.unwrap(), None);
    }

    #[test]
    fn a_kubeconfig_that_is_none_keeps_its_secrets() {
        let (_folder, source) = kubeconfig("server: 'https://10.0.0.1'", "token: [sesame");
        let error = source.config().unwrap_err();
        assert!(matches!(error, Error::Malformed { line: 6, .. }), "{error:?}");
        assert!(!format!("{} {error:?}", chain(&error)).contains("sesame"));
    }

    #[test]
    fn what_a_credential_plugin_wrote_is_not_told() {
        for script in ["echo sesame; echo sesame >&2; exit 3", "echo sesame"] {
            let api = "apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never";
            let plugin = format!("exec: {{{api}, command: sh, args: ['-c', '{script}']}}");
            let error = connect("server: 'https://10.0.0.1'", &plugin).map(drop).unwrap_err();
            let told = format!("{} {error:?}", chain(&error));
            assert!(!told.contains("sesame") && told.contains("credential plugin"), "{told}");
        }
    }

    #[tokio::test]
    async fn blanks_around_a_token_in_a_file_are_nothing_of_it() {
        let (folder, source) = kubeconfig("server: 'https://10.0.0.1'", "tokenFile: token");
        let token = folder.path().join("token");
        std::fs::write(&token, "sesame\n").unwrap();
        let connect = || Connection::new(&source.config()?, &Drain::new());
        let credentials = connect().unwrap().credentials().await.unwrap().unwrap();
        assert_eq!(credentials, "Bearer sesame");
        assert!(source.files().contains(&token), "{:?}", source.files());
        std::fs::write(&token, "\n").unwrap();
        assert!(matches!(connect(), Err(Error::Token(_))));
    }

    #[test]
    fn files_are_those_of_the_kubeconfig_with_those_it_names() {
        let (folder, source) = kubeconfig("certificate-authority: ca.crt", "client-key: /keys/u.key");
        let expected = [folder.path().join("config"), folder.path().join("ca.crt"), "/keys/u.key".into()];
        assert_eq!(source.files(), expected);
        assert_eq!(Source::InCluster.files(), Vec::<PathBuf>::new());
    }
}
