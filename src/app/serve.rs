//! `podgate serve`: a gateway in front of a real cluster, and `podgate check`: what is wrong with its settings.
//!
//! Everything that settings name as a file is read through a [`Reloader`]: what changes is used for new connections and
//! sessions, and cuts nothing. Whatever outlives sessions (watches, unused connections, the look at files) belongs to a
//! drain of its own, which is stopped last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::kube::Config as KubeConfig;
use ::kube::client::ConfigExt;
use ::kube::config::{AuthInfo, InClusterError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tracing::{info, warn};

use super::stop::{self, Signals};
use super::{Gateway, Ground, grants, policy, recording, share};
use crate::admin::Ready;
use crate::audit::{self, Audit};
use crate::authn::{FrontProxy, Methods, TokenReview, Tokens, oidc, tokens};
use crate::cluster::kube::connect::{self, Connection, Source};
use crate::cluster::kube::{self, KubeCluster, forward};
use crate::cluster::{self, Cluster};
use crate::config::{Config, KeyPair, UpstreamMode};
use crate::drain::Drain;
use crate::grant;
use crate::listen;
use crate::policy::set::Set;
use crate::policy::{Grants, NoGrants, Policy, source};
use crate::reload::{Live, Reloader};
use crate::secret::{self, Secret};
use crate::telemetry::Metrics;
use crate::tls::{self, ClientVerifier, Clients, Identity};
use crate::upstream::{ApiServer, Route, Server};

/// How much longer the stages wait for the cluster than it waits for its API server. Of two deadlines that end at
/// the same moment either may be first, and only the cluster's own says 503, and remembers that nobody answers.
const GRACE: Duration = Duration::from_millis(100);

/// A gateway in front of a real cluster cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What a setting names is of no use.
    #[error("setting {key}")]
    Setting {
        /// Path of the key.
        key: &'static str,
        /// What is wrong.
        #[source]
        source: Unusable,
    },
    /// What settings of recording name is of no use.
    #[error(transparent)]
    Recording(#[from] recording::Error),
    /// An address of the gateway cannot be had.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// Signals cannot be received.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Why what a setting names is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A key, a certificate or a CA bundle.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The audit policy, or where events go.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// House rules.
    #[error(transparent)]
    Policy(#[from] source::Error),
    /// A file of static tokens.
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    /// A file of token issuers.
    #[error(transparent)]
    Oidc(#[from] oidc::Error),
    /// A file with podgate's own token.
    #[error(transparent)]
    Secret(#[from] secret::Error),
    /// The way to the API server.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// Neither a kubeconfig nor a service account.
    #[error("not set, and podgate does not run in a pod whose service account would do instead")]
    NotInPod(#[source] InClusterError),
    /// A key and a certificate that are not each other's.
    #[error("the key in {key} is not that of the certificate in {certificate}")]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        certificate: PathBuf,
    },
    /// A CA bundle, or podgate's own certificate.
    #[error("set up TLS towards kubelets")]
    KubeletTls(#[source] Box<::kube::Error>),
    /// A CA bundle cannot be read.
    #[error("read certificates from {path}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// An identity that podgate cannot show kubelets.
    #[error(
        "kubelets want a certificate or a token of podgate, and its kubeconfig names no file with one; set client \
         or tokenFile"
    )]
    Unshowable,
    /// What was no token has become one, or the other way round, or the token is elsewhere.
    #[error(
        "podgate's identity in its kubeconfig is of another kind now; restart podgate to show it to kubelets"
    )]
    OtherKind,
}

/// Runs until a signal; the exit code.
///
/// # Errors
/// When it cannot start; then nothing was left running.
pub async fn run(config: &Config) -> Result<u8, Error> {
    let signals = Signals::new().map_err(Error::Signals)?;
    info!(settings = config.to_yaml(), "podgate starts");
    let gateway = start(config).await?;
    info!(api.addr = %gateway.api, admin.addr = %gateway.admin, "podgate serves");
    Ok(stop::on_signal(gateway, signals, config.drain.announce, config.drain.deadline).await)
}

/// Binds and begins to serve.
///
/// # Errors
/// When a file cannot be used or an address cannot be had; what was started is stopped.
pub async fn start(config: &Config) -> Result<Gateway, Error> {
    let (metrics, background) = (Metrics::new(), Drain::new());
    let started = start_above(config, &metrics, &background).await;
    if started.is_err() {
        background.finish(Duration::ZERO).await;
    }
    started
}

async fn start_above(config: &Config, metrics: &Metrics, background: &Drain) -> Result<Gateway, Error> {
    warn_of_dangers(config);
    let files = Files {
        config,
        reloader: Reloader::new(config.reload.period, background.clone(), metrics.clone()),
        background: background.clone(),
    };
    let server_tls = files.server_tls().await?;
    let connection = files.connection().await?;
    let kept = connection.clone();
    let settings = kube::Settings {
        review_timeout: config.cluster.review_timeout,
        read_timeout: config.cluster.read_timeout,
        allowed_for: config.authorization.allowed_for,
        denied_for: config.authorization.denied_for,
        confirmed_for: config.cluster.confirmed_for,
        max_waiting: config.cluster.max_waiting,
        watch: true,
        forward: forward::Settings {
            max_body_bytes: config.api.max_body_bytes,
            stall_timeout: config.api.request_timeout,
            max_bytes_per_second: config.session.max_bytes_per_second,
        },
    };
    let drain = Drain::new();
    let cluster = KubeCluster::start(connection.clone(), &settings, &drain, background, metrics);
    let authn = files.methods(cluster.clone()).await?;
    let route = match config.upstream.mode {
        UpstreamMode::Kubelet => files.kubelets().await?,
        UpstreamMode::ApiServer => Route::ApiServer(Arc::new(Through(connection))),
    };
    let synced = cluster.clone();
    let mut ready = vec![Ready { name: "informer-sync", check: Box::new(move || synced.synced()) }];
    let (grants, read) = grants::in_cluster(config, kept.clone(), background, metrics).unzip();
    ready.extend(read);
    let sharing = match config.session.share {
        true => Some(share::in_cluster(config, kept.clone(), files.namespace()?)),
        false => None,
    };
    let followed = policy::of_cluster(config, kept, background, metrics).map_err(Error::from_policy)?;
    let (followed, read) = followed.unzip();
    ready.extend(read);
    let rules = files.policy(grants.as_ref(), followed).await?;
    let ground = Ground {
        recordings: recording::open(&config.recording, background, metrics)?,
        cluster,
        server_tls,
        authn,
        policy: Arc::new(rules),
        grants,
        route,
        sharing,
        ready,
        metrics: metrics.clone(),
        audit: files.audit(metrics).await?,
        background: background.clone(),
    };
    let mut patient = config.clone();
    patient.cluster.review_timeout += GRACE;
    // A read may wait for that of somebody else first.
    patient.cluster.read_timeout += GRACE + config.cluster.confirmed_for;
    Ok(Gateway::start(&patient, ground, drain).await?)
}

/// What is wrong with the files that these settings name, all of it; nothing is listened on and nobody is asked.
pub async fn check(config: &Config) -> Vec<Error> {
    let background = Drain::new();
    let files = Files {
        config,
        reloader: Reloader::new(config.reload.period, background.clone(), Metrics::new()),
        background: background.clone(),
    };
    let mut wrong = Vec::new();
    wrong.extend(files.server_tls().await.err());
    wrong.extend(files.connection().await.err());
    if config.upstream.mode == UpstreamMode::Kubelet {
        let told = wrong.iter().any(Error::is_of_the_source);
        wrong.extend(files.kubelets().await.err().filter(|error| !told || !error.is_of_the_source()));
    }
    wrong.extend(files.front_proxy().await.err());
    wrong.extend(files.certificates().await.err());
    wrong.extend(files.tokens().await.err());
    wrong.extend(files.oidc().await.err());
    wrong.extend(audit::check(&config.audit).into_iter().map(Error::from_audit));
    wrong.extend(policy::check(config).map(Error::from_policy));
    wrong.extend(recording::check(&config.recording).into_iter().map(Error::from));
    background.finish(Duration::ZERO).await;
    wrong
}

fn warn_of_dangers(config: &Config) {
    if config.upstream.mode == UpstreamMode::Kubelet {
        warn!(
            "upstream.mode is kubelet: the API server's admission webhooks for CONNECT are not asked about sessions, \
             see docs/differences.md"
        );
    }
    if config.upstream.kubelet.danger_accept_any_certificate {
        warn!(
            "upstream.kubelet.dangerAcceptAnyCertificate is set: whoever is between podgate and a kubelet can read and \
             change every session"
        );
    }
}

// === impl Error ===

impl Error {
    fn from_policy(error: source::Error) -> Self {
        Self::Setting { key: "policy.files", source: error.into() }
    }

    fn from_audit(error: audit::Error) -> Self {
        Self::Setting { key: error.key(), source: error.into() }
    }

    /// Whether it is about what describes the way to the API server, whichever setting led there.
    fn is_of_the_source(&self) -> bool {
        matches!(self, Self::Setting { source: Unusable::Connect(_) | Unusable::NotInPod(_), .. })
    }
}

/// Everything that settings name as a file, read now and again.
struct Files<'a> {
    config: &'a Config,
    reloader: Reloader,
    background: Drain,
}

// === impl Files ===

impl Files<'_> {
    async fn read<T: Send + Sync + 'static>(
        &self,
        key: &'static str,
        paths: Vec<PathBuf>,
        build: impl Fn() -> Result<T, Unusable> + Send + 'static,
    ) -> Result<Live<T>, Error> {
        self.read_named(key, move || paths.clone(), build).await
    }

    /// The same where files name others.
    async fn read_named<T: Send + Sync + 'static>(
        &self,
        key: &'static str,
        paths: impl Fn() -> Vec<PathBuf> + Send + 'static,
        build: impl Fn() -> Result<T, Unusable> + Send + 'static,
    ) -> Result<Live<T>, Error> {
        let live = self.reloader.load_named(key, paths, build).await;
        live.map_err(|source| Error::Setting { key, source })
    }

    async fn policy(
        &self,
        grants: Option<&grant::Grants>,
        followed: Option<Live<Set>>,
    ) -> Result<Policy, Error> {
        let grants: Arc<dyn Grants> = match grants {
            Some(grants) => Arc::new(grants.clone()),
            None => Arc::new(NoGrants::default()),
        };
        let opened = policy::open(self.config, &self.reloader, grants, followed).await;
        opened.map_err(Error::from_policy)
    }

    async fn audit(&self, metrics: &Metrics) -> Result<Audit, Error> {
        audit::warn_of_gaps(&self.config.audit);
        let started = Audit::start(&self.config.audit, &self.reloader, &self.background, metrics).await;
        started.map_err(Error::from_audit)
    }

    async fn server_tls(&self) -> Result<Live<ServerConfig>, Error> {
        let pair = self.config.api.tls.clone();
        let pair = pair.expect("serving without a certificate is refused before");
        self.read("api.tls", vec![pair.cert_file.clone(), pair.key_file.clone()], move || {
            let config = tls::server(&identity(&pair)?, &[tls::HTTP2, tls::HTTP1], Clients::Ask)?;
            Ok(ServerConfig::clone(&config))
        })
        .await
    }

    fn source(&self) -> Source {
        match &self.config.cluster.kubeconfig {
            Some(path) => {
                Source::Kubeconfig { path: path.clone(), context: self.config.cluster.context.clone() }
            }
            None => Source::InCluster,
        }
    }

    async fn connection(&self) -> Result<Live<Connection>, Error> {
        let (source, background) = (self.source(), self.background.clone());
        let timeout = self.config.cluster.connect_timeout;
        let named = source.clone();
        self.read_named(
            "cluster.kubeconfig",
            move || named.files(),
            move || {
                let mut config = described(&source)?;
                config.connect_timeout = Some(timeout);
                Ok(Connection::new(&config, &background)?)
            },
        )
        .await
    }

    /// Podgate's own namespace.
    fn namespace(&self) -> Result<String, Error> {
        let namespace = self.config.cluster.pod.namespace.clone();
        // Without a kubeconfig that is its service account's.
        let of_source = || described(&self.source()).map(|config| config.default_namespace);
        let found = namespace.map_or_else(of_source, Ok);
        found.map_err(|source| Error::Setting { key: "cluster.pod.namespace", source })
    }

    /// The way to kubelets. What no setting says about podgate there is what its kubeconfig or service account says.
    async fn kubelets(&self) -> Result<Route, Error> {
        const KEY: &str = "upstream.kubelet";
        let (kubelet, source) = (self.config.upstream.kubelet.clone(), self.source());
        let server_name = kubelet
            .server_name
            .clone()
            .map(|name| ServerName::try_from(name).expect("a name that is none is refused before"));
        let token_file = match (&kubelet.client, &kubelet.token_file) {
            (Some(_), _) => None,
            (None, Some(path)) => Some(path.clone()),
            (None, None) => described(&source)
                .and_then(|config| token_file_of(&config))
                .map_err(|source| Error::Setting { key: KEY, source })?,
        };
        let token_of_source = token_file.clone();
        let token = match token_file {
            Some(path) => {
                Some(self.read(KEY, vec![path.clone()], move || Ok(Secret::from_file(&path)?)).await?)
            }
            None => None,
        };
        let mut own_files: Vec<PathBuf> = kubelet.ca_file.iter().cloned().collect();
        if let Some(KeyPair { cert_file, key_file }) = &kubelet.client {
            own_files.extend([cert_file.clone(), key_file.clone()]);
        }
        let named = source.clone();
        let files = move || {
            // kube reads the CA of a pod anew, but not for a handshake that follows from an earlier one.
            let root = described(&named).ok().and_then(|config| config.root_cert_file);
            [named.files(), own_files.clone(), root.into_iter().collect()].concat()
        };
        let tls = self
            .read_named(KEY, files, move || {
                let roots = kubelet.ca_file.as_deref().map(certificates).transpose()?;
                kubelet.client.as_ref().map(identity).transpose()?;
                let mut config = described(&source)?;
                let own_identity = kubelet.client.is_some() || kubelet.token_file.is_some();
                if !own_identity && token_file_of(&config)? != token_of_source {
                    return Err(Unusable::OtherKind);
                }
                if roots.is_some() {
                    config.root_cert = roots;
                    config.root_cert_file = None;
                }
                let own = &mut config.auth_info;
                if own_identity {
                    *own = AuthInfo::default();
                }
                if let Some(KeyPair { cert_file, key_file }) = &kubelet.client {
                    own.client_certificate = Some(cert_file.display().to_string());
                    own.client_key = Some(key_file.display().to_string());
                }
                config.accept_invalid_certs = kubelet.danger_accept_any_certificate;
                kubelet_tls(&config)
            })
            .await?;
        Ok(Route::Kubelet { tls, token, server_name })
    }

    async fn methods(&self, cluster: Arc<dyn Cluster>) -> Result<Methods, Error> {
        let review = &self.config.authentication.token_review;
        let review = review.enabled.then(|| TokenReview {
            cluster,
            audiences: review.audiences.clone(),
            allowed_for: review.allowed_for,
            denied_for: review.denied_for,
            timeout: self.config.cluster.review_timeout + GRACE,
        });
        let (oidc, anonymous) = self.oidc().await?.unzip();
        let anonymous = anonymous.flatten();
        Ok(Methods {
            front_proxy: self.front_proxy().await?,
            certificates: self.certificates().await?,
            tokens: self.tokens().await?,
            oidc,
            review,
            anonymous: anonymous.unwrap_or(self.config.authentication.anonymous),
        })
    }

    async fn verifier(&self, key: &'static str, path: &Path) -> Result<Live<ClientVerifier>, Error> {
        let path = path.to_owned();
        self.read(key, vec![path.clone()], move || Ok(ClientVerifier::new(tls::roots(&path)?)?)).await
    }

    async fn front_proxy(&self) -> Result<Option<FrontProxy>, Error> {
        let Some(header) = &self.config.authentication.request_header else { return Ok(None) };
        let key = "authentication.requestHeader.clientCAFile";
        let authorities = self.verifier(key, &header.client_ca_file).await?;
        let names = |names: &[String]| -> Vec<HeaderName> {
            let parsed = names.iter().map(|name| name.parse());
            parsed.map(|name| name.expect("a header name that is none is refused before")).collect()
        };
        Ok(Some(FrontProxy {
            authorities,
            allowed_names: header.allowed_names.clone(),
            username_headers: names(&header.username_headers),
            group_headers: names(&header.group_headers),
            uid_headers: names(&header.uid_headers),
            extra_prefixes: header.extra_header_prefixes.clone(),
        }))
    }

    async fn certificates(&self) -> Result<Option<Live<ClientVerifier>>, Error> {
        match &self.config.authentication.client_ca_file {
            Some(path) => self.verifier("authentication.clientCAFile", path).await.map(Some),
            None => Ok(None),
        }
    }

    async fn tokens(&self) -> Result<Live<Tokens>, Error> {
        let Some(path) = self.config.authentication.token_file.clone() else {
            return Ok(Live::fixed(Tokens::default()));
        };
        let build = move || Ok(Tokens::from_file(&path)?);
        let paths = self.config.authentication.token_file.iter().cloned().collect();
        self.read("authentication.tokenFile", paths, build).await
    }

    /// The issuers, and whether the anonymous get in, where that file says so: the latter is read once, at start.
    async fn oidc(&self) -> Result<Option<(Live<oidc::Oidc>, Option<bool>)>, Error> {
        const KEY: &str = "authentication.oidcFile";
        let Some(path) = self.config.authentication.oidc_file.clone() else { return Ok(None) };
        let config = oidc::Config::from_file(&path);
        let config = config.map_err(|source| Error::Setting { key: KEY, source: source.into() })?;
        let build = {
            let path = path.clone();
            move || Ok(oidc::Oidc::new(oidc::Config::from_file(&path)?)?)
        };
        Ok(Some((self.read(KEY, vec![path], build).await?, config.anonymous)))
    }
}

/// What a source says. Without a kubeconfig it is a pod, which podgate need not be in.
fn described(source: &Source) -> Result<KubeConfig, Unusable> {
    source.config().map_err(|error| match error {
        connect::Error::InCluster(error) => Unusable::NotInPod(error),
        error => error.into(),
    })
}

/// A certificate and its key, which are tried on each other.
fn identity(KeyPair { cert_file, key_file }: &KeyPair) -> Result<Identity, Unusable> {
    let identity = Identity::from_files(cert_file, key_file)?;
    match tls::client(Some(&identity), Arc::new(RootCertStore::empty()), false) {
        Ok(_) => Ok(identity),
        Err(tls::Error::SetUp(rustls::Error::InconsistentKeys(_))) => {
            Err(Unusable::Mismatch { key: key_file.clone(), certificate: cert_file.clone() })
        }
        Err(error) => Err(error.into()),
    }
}

/// The file of podgate's token in the cluster, where it has one rather than a certificate.
fn token_file_of(config: &KubeConfig) -> Result<Option<PathBuf>, Unusable> {
    let identity = &config.auth_info;
    let inline = identity.token.is_some() && identity.token_file.is_none();
    if inline || identity.exec.is_some() || identity.auth_provider.is_some() {
        return Err(Unusable::Unshowable);
    }
    Ok(identity.token_file.as_ref().map(PathBuf::from))
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, Unusable> {
    let failed = |source| Unusable::Pem { path: path.to_owned(), source };
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() {
        return Err(tls::Error::NoCertificate { path: path.to_owned() }.into());
    }
    Ok(all.into_iter().map(|certificate| certificate.to_vec()).collect())
}

/// TLS with the CA and the identity of this configuration.
fn kubelet_tls(config: &KubeConfig) -> Result<ClientConfig, Unusable> {
    let mut tls = config.rustls_client_config().map_err(|error| Unusable::KubeletTls(Box::new(error)))?;
    tls.alpn_protocols = vec![tls::HTTP1.to_vec()];
    Ok(tls)
}

/// Sessions go through the API server that everything else is asked of.
struct Through(Live<Connection>);

impl ApiServer for Through {
    fn server(&self) -> Server {
        self.0.get().server().clone()
    }

    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, cluster::Error>> {
        let connection = self.0.get();
        async move { connection.credentials().await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::until;

    const PLUGIN: &str = "apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never";

    /// A folder with a CA, a token and a kubeconfig with this user.
    fn folder(user: &str) -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        std::fs::write(at("ca.crt"), ca.cert.pem()).unwrap();
        std::fs::write(at("token"), "t0ken").unwrap();
        write_kubeconfig(&at("config"), user);
        let mut config = Config::default();
        config.cluster.kubeconfig = Some(at("config"));
        config.upstream.kubelet.ca_file = Some(at("ca.crt"));
        config.reload.period = Duration::from_millis(5);
        (folder, config)
    }

    fn write_kubeconfig(path: &Path, user: &str) {
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://10.0.0.1'}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        );
        std::fs::write(path, text).unwrap();
    }

    fn files<'a>(config: &'a Config, metrics: &Metrics) -> Files<'a> {
        let background = Drain::new();
        let reloader = Reloader::new(config.reload.period, background.clone(), metrics.clone());
        Files { config, reloader, background }
    }

    #[tokio::test]
    async fn an_identity_that_is_set_for_kubelets_leaves_nothing_of_the_other() {
        let (folder, mut config) = folder("");
        let marker = folder.path().join("plugin-ran");
        let plugin = format!("exec: {{{PLUGIN}, command: touch, args: ['{}']}}", marker.display());
        write_kubeconfig(&folder.path().join("config"), &plugin);
        config.upstream.kubelet.token_file = Some(folder.path().join("token"));
        files(&config, &Metrics::new()).kubelets().await.unwrap();
        assert!(!marker.exists());
    }

    #[tokio::test]
    async fn an_identity_that_becomes_one_that_cannot_be_shown_does_not_replace_the_last() {
        let (folder, config) = folder("tokenFile: token");
        let metrics = Metrics::new();
        let files = files(&config, &metrics);
        let Route::Kubelet { tls, token: Some(token), .. } = files.kubelets().await.unwrap() else {
            panic!("to kubelets, with a token")
        };
        let before = tls.get();
        write_kubeconfig(&folder.path().join("config"), "token: inline");
        let failed = metrics.reloads.with_label_values(&["upstream.kubelet", "failed"]);
        until("the look at it", || failed.get() > 0).await;
        assert!(Arc::ptr_eq(&before, &tls.get()) && token.get().expose() == "t0ken");
    }
}
