//! Config: file, environment and flags into one complete, validated [`Config`]. Every default and unit is here.
//!
//! A flag wins over its environment variable, that over the file, that over the default. An unknown key is an
//! error with its full path: a misspelled limit must not quietly be no limit. Values are types and are not
//! parsed again; each room gets its own part.

mod audit;
mod authentication;
pub(crate) mod duration;
mod grants;
mod lines;
pub mod policy;
pub mod recording;
mod validate;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli;
use crate::telemetry::LogFormat;

pub use audit::{Audit, AuditFile, Mode, Webhook, WhenDown};
pub use authentication::{Authentication, RequestHeader, TokenReview};
pub use duration::spelled;
pub use grants::Grants;
pub use policy::Policy;
pub use recording::Recording;
pub use validate::Problem;

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The API door.
    pub api: Api,
    /// Who is asking.
    pub authentication: Authentication,
    /// May they.
    pub authorization: Authorization,
    /// May they, say the house rules.
    pub policy: Policy,
    /// What is written about requests.
    pub audit: Audit,
    /// Health and metrics.
    pub admin: Admin,
    /// What is asked of the cluster.
    pub cluster: Cluster,
    /// The way to kubelets.
    pub upstream: Upstream,
    /// Live sessions.
    pub session: Session,
    /// What is written of them.
    pub recording: Recording,
    /// Stopping.
    pub drain: Drain,
    /// Files that change.
    pub reload: Reload,
    /// Log lines.
    pub log: Log,
    /// The embedded cluster.
    pub dev: Dev,
}

/// The API door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Api {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Podgate's own certificate, as clients see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<KeyPair>,
    /// Connections at once, sessions included; more are closed at once.
    pub max_connections: usize,
    /// Connections of one address at once; the requests of more are 429. 0 is no limit.
    pub max_connections_per_address: usize,
    /// For a client's TLS handshake.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    /// For a whole request head, and for the pause between two requests of a connection.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long a client may take nothing of an answer; sessions are not answers.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// Bytes of a request head; more is 431.
    pub max_header_bytes: usize,
    /// Header lines of a request; more is 431.
    pub max_headers: usize,
    /// Bytes of the body of a request that is no stream; more is 413.
    pub max_body_bytes: u64,
    /// Streams of one HTTP/2 connection at once.
    pub max_http2_streams: u32,
    /// Short requests (no sessions, no watches) at once; more is 429.
    pub max_in_flight: usize,
    /// For a short request; longer is 504.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// Silence after which a client is probed; three unanswered probes end the connection.
    #[serde(with = "duration")]
    pub keepalive: Duration,
    /// How long a client with a terminal may acknowledge nothing, or take nothing; 0 is the kernel's own patience.
    #[serde(with = "duration")]
    pub user_timeout: Duration,
    /// Origins, such as `https://console.example.com`, whose pages may open sessions; `*` is all of them. Pages of
    /// podgate's own host always may.
    pub allowed_origins: Vec<String>,
}

/// A certificate chain, leaf first, and its key; PEM files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyPair {
    /// The chain.
    pub cert_file: PathBuf,
    /// The key.
    pub key_file: PathBuf,
}

/// May they: how long the cluster's answers hold. 0 asks each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authorization {
    /// How long a yes holds.
    #[serde(with = "duration")]
    pub allowed_for: Duration,
    /// How long a no holds.
    #[serde(with = "duration")]
    pub denied_for: Duration,
}

/// Files that change while podgate runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Reload {
    /// How often they are looked at.
    #[serde(with = "duration")]
    pub period: Duration,
}

/// Health and metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Admin {
    /// Address to listen on; plain HTTP.
    pub listen: SocketAddr,
    /// Connections at once.
    pub max_connections: usize,
    /// For a request head.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
}

/// What is asked of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Cluster {
    /// The kubeconfig of podgate's own identity; that of its pod's service account when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; the current one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// For connecting to the API server, TLS included.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Reviews and reads that wait for the API server at once; more are 503.
    pub max_waiting: usize,
    /// For one authorization review; no answer is a refusal.
    #[serde(with = "duration")]
    pub review_timeout: Duration,
    /// For reading a pod or a node.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
    /// How long a pod or a node that was looked at is believed to be the same, while its watch says nothing else; zero looks
    /// each time.
    #[serde(with = "duration")]
    pub confirmed_for: Duration,
    /// Podgate's own pod.
    pub pod: OwnPod,
}

/// The pod that podgate runs in, as the downward API tells it. What is not told is found out, where that can be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct OwnPod {
    /// Its namespace; that of the service account when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name; that of the host when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its uid. With it, what podgate keeps there goes with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// The way to kubelets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Upstream {
    /// Where sessions go.
    pub mode: UpstreamMode,
    /// Podgate at kubelets.
    pub kubelet: Kubelet,
    /// For resolving a kubelet's name and connecting to it.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// For the TLS handshake with a kubelet.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    /// From the upgrade request to the end of the answer's head.
    #[serde(with = "duration")]
    pub upgrade_timeout: Duration,
    /// Silence after which a kubelet is probed; three unanswered probes end the connection.
    #[serde(with = "duration")]
    pub keepalive: Duration,
    /// The same of the far side of such a session.
    #[serde(with = "duration")]
    pub user_timeout: Duration,
    /// Types of node addresses, best first.
    pub preferred_address_types: Vec<String>,
    /// When clients of WebSocket v5 are translated to SPDY.
    pub translate: Translate,
}

/// Where sessions go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamMode {
    /// Straight to the kubelets.
    #[default]
    Kubelet,
    /// Through the API server, as the caller by impersonation: for clusters whose kubelets cannot be reached.
    #[serde(rename = "apiserver")]
    ApiServer,
}

/// Podgate at kubelets. What is not given is that of the cluster's kubeconfig or service account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Kubelet {
    /// CA bundle of the kubelets' certificates; PEM.
    #[serde(rename = "caFile", skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Podgate's client certificate and its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<KeyPair>,
    /// A file with podgate's bearer token, instead of a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The name that kubelets' certificates must have; the address dialled when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Whether any certificate is taken for a kubelet's. Whoever is in between then reads and writes every session.
    pub danger_accept_any_certificate: bool,
}

/// When clients of WebSocket v5 are translated to SPDY, which every kubelet speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Translate {
    /// Always.
    #[default]
    Always,
    /// Not for nodes that declare `ExtendWebSocketsToKubelet`: these get v5 itself.
    WhenNeeded,
}

/// Live sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Session {
    /// Sessions at once; more are 429.
    pub max_sessions: usize,
    /// Sessions of one caller at once; more are 429.
    pub max_sessions_per_caller: usize,
    /// How often it is asked again whether the caller of a live session is still known and allowed; 0 is never.
    #[serde(with = "duration")]
    pub recheck_period: Duration,
    /// Bytes per second that each direction may move; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// The same of the sessions of one caller together; 0 is no limit.
    pub max_bytes_per_second_per_caller: u64,
    /// The same of all sessions together; 0 is no limit.
    pub max_bytes_per_second_in_all: u64,
    /// How long a peer may take to close after podgate did.
    #[serde(with = "duration")]
    pub linger: Duration,
    /// How long a program whose client is gone may take to end when its terminal is hung up; 0 is not to hang up.
    #[serde(with = "duration")]
    pub hang_up: Duration,
    /// For passing a kubelet's refusal on, body included.
    #[serde(with = "duration")]
    pub refusal_timeout: Duration,
    /// For a kubelet to open the streams of a translated session.
    #[serde(with = "duration")]
    pub open_timeout: Duration,
    /// How long a session may last; 0 is no limit.
    #[serde(with = "duration")]
    pub max_duration: Duration,
    /// How long nothing but keepalives may pass in a session; 0 is no limit.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// Whether replicas show, and end, each other's sessions, through ConfigMaps of podgate's namespace.
    pub share: bool,
}

/// Stopping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Drain {
    /// How long podgate goes on as before after the signal to stop, but says that it is not ready.
    #[serde(with = "duration")]
    pub announce: Duration,
    /// How long live sessions may go on after the signal to stop.
    #[serde(with = "duration")]
    pub deadline: Duration,
}

/// Log lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Log {
    /// For people, or one JSON object a line.
    pub format: LogFormat,
    /// Which lines, in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// Most simulated pods: ninety nodes of them, each with a port of its own.
pub const MAX_SIMULATED: u32 = 10_000;

/// The embedded cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Dev {
    /// Folder for keys, certificates, tokens, the kubeconfig and the containers' files.
    pub dir: PathBuf,
    /// Folder of manifests; the built-in set when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<PathBuf>,
    /// Simulated pods besides, whose commands are no processes; at most [`MAX_SIMULATED`].
    pub simulate: u32,
    /// Whether addresses other than loopback are accepted. Only a flag sets it: a file that is copied around
    /// must not open the door.
    #[serde(skip)]
    pub danger_listen_beyond_loopback: bool,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read config file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A key is unknown or its value is none.
    #[error("config file {path}{}: {what}", at(.key))]
    Parse {
        /// The file.
        path: PathBuf,
        /// Path of the key, such as `api.maxConnections`.
        key: String,
        /// What is wrong, with line and column.
        what: String,
    },
    /// Values that make no sense.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

/// Nothing when what is wrong is not below any key.
fn at(key: &str) -> String {
    if matches!(key, "?" | ".") { String::new() } else { format!(", at {key}") }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

// === impl Config ===

impl Config {
    /// The settings of `podgate dev`.
    ///
    /// # Errors
    /// When the file cannot be read, or a value in it or in a flag cannot be used.
    pub fn dev(flags: &cli::Dev) -> Result<Self, Error> {
        let (mut config, source) = Self::from_optional_file(flags.gateway.config.as_deref())?;
        config.overlay(&flags.gateway);
        set(&mut config.dev.dir, &flags.dir);
        if flags.manifests.is_some() {
            config.dev.manifests.clone_from(&flags.manifests);
        }
        set(&mut config.dev.simulate, &flags.simulate);
        config.dev.danger_listen_beyond_loopback = flags.danger_listen_beyond_loopback;
        config.recording.enabled |= flags.record;
        let problems = config.problems().into_iter().chain(config.dev_problems()).collect();
        source.judge(config, problems)
    }

    /// The settings of `podgate serve`.
    ///
    /// # Errors
    /// As [`Config::dev`].
    pub fn serve(flags: &cli::Serve) -> Result<Self, Error> {
        let (mut config, source) = Self::from_optional_file(flags.gateway.config.as_deref())?;
        config.overlay(&flags.gateway);
        if flags.kubeconfig.is_some() {
            config.cluster.kubeconfig.clone_from(&flags.kubeconfig);
        }
        if flags.context.is_some() {
            config.cluster.context.clone_from(&flags.context);
        }
        let pod = &mut config.cluster.pod;
        for (setting, flag) in [
            (&mut pod.namespace, &flags.pod_namespace),
            (&mut pod.name, &flags.pod_name),
            (&mut pod.uid, &flags.pod_uid),
        ] {
            if flag.is_some() {
                setting.clone_from(flag);
            }
        }
        let problems = config.problems().into_iter().chain(config.serve_problems()).collect();
        source.judge(config, problems)
    }

    fn overlay(&mut self, flags: &cli::Gateway) {
        set(&mut self.api.listen, &flags.listen);
        set(&mut self.admin.listen, &flags.admin_listen);
        set(&mut self.session.max_bytes_per_second, &flags.max_bytes_per_second);
        set(&mut self.log.format, &flags.log_format);
        set(&mut self.log.filter, &flags.log);
    }

    fn from_optional_file(path: Option<&Path>) -> Result<(Self, Source), Error> {
        let Some(path) = path else { return Ok((Self::default(), Source::default())) };
        let read = |source| Error::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let parsed = Self::from_yaml(&text);
        let mut config = parsed.map_err(|(key, what)| Error::Parse { path: path.to_owned(), key, what })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok((config, Source { path: Some(path.to_owned()), text }))
    }

    /// The path of the offending key and what is wrong with it, on failure.
    fn from_yaml(text: &str) -> Result<Self, (String, String)> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut track = serde_path_to_error::Track::new();
        let read = serde_saphyr::with_deserializer_from_str(text, |inner| {
            Self::deserialize(serde_path_to_error::Deserializer::new(inner, &mut track))
        });
        read.map_err(|error| {
            // Rust's names of numbers say little to those who write settings.
            let what = error.without_snippet().to_string().replacen("invalid u64", "not a whole number", 1);
            (track.path().to_string(), what.replacen("invalid u32", "not a whole number", 1))
        })
    }

    /// Paths that a file of settings names are meant from where that file is.
    fn resolve(&mut self, base: &Path) {
        let Authentication { client_ca_file, token_file, oidc_file, request_header, .. } =
            &mut self.authentication;
        let Kubelet { ca_file, client, token_file: kubelet_token_file, .. } = &mut self.upstream.kubelet;
        let pairs = [&mut self.api.tls, client].into_iter().flatten();
        let optional = [
            client_ca_file,
            token_file,
            oidc_file,
            ca_file,
            kubelet_token_file,
            &mut self.cluster.kubeconfig,
            &mut self.audit.policy_file,
            &mut self.audit.file.path,
            &mut self.audit.webhook.kubeconfig,
            &mut self.dev.manifests,
        ];
        let paths = pairs
            .flat_map(|KeyPair { cert_file, key_file }| [cert_file, key_file])
            .chain(optional.into_iter().flatten())
            .chain(request_header.as_mut().map(|header| &mut header.client_ca_file));
        for path in paths {
            *path = base.join(&*path);
        }
        self.recording.resolve(base);
        self.policy.resolve(base);
    }

    /// As YAML. Nothing in it is secret.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("settings are plain values")
    }
}

/// Where settings came from, for those who are told what is wrong with them.
#[derive(Default)]
struct Source {
    path: Option<PathBuf>,
    text: String,
}

impl Source {
    /// The settings, if there is nothing wrong with them.
    fn judge(self, config: Config, mut problems: Vec<Problem>) -> Result<Config, Error> {
        if problems.is_empty() {
            return Ok(config);
        }
        for problem in &mut problems {
            let line = lines::line_of(&self.text, &problem.key);
            problem.place = self.path.clone().zip(line);
        }
        Err(Error::Invalid(problems))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some((path, line)) => {
                write!(f, "config file {}, line {line}, at {}: {}", path.display(), self.key, self.what)
            }
            None => write!(f, "setting {}: {}", self.key, self.what),
        }
    }
}

fn set<T: Clone>(value: &mut T, given: &Option<T>) {
    if let Some(given) = given {
        value.clone_from(given);
    }
}

// === impl Default ===

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8443).into(),
            tls: None,
            max_connections: 4096,
            // A quarter of all: many clients may stand behind one address, but none may take every place.
            max_connections_per_address: 1024,
            handshake_timeout: Duration::from_secs(10),
            // kube-apiserver's ReadHeaderTimeout (`protocol.md` 8.5).
            header_timeout: Duration::from_secs(32),
            write_timeout: Duration::from_secs(60),
            // Twice the longest URI there can be; upstream takes 1 MiB, before it knows from whom.
            max_header_bytes: 128 * 1024,
            max_headers: 256,
            // kube-apiserver's limit for writes of objects.
            max_body_bytes: 3 * 1024 * 1024,
            max_http2_streams: 250,
            max_in_flight: 400,
            request_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(15),
            user_timeout: Duration::from_secs(120),
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8444).into(),
            max_connections: 64,
            header_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            connect_timeout: Duration::from_secs(5),
            max_waiting: 512,
            review_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            // No longer than a watch may well be late.
            confirmed_for: Duration::from_secs(1),
            pod: OwnPod::default(),
        }
    }
}

impl Default for Authorization {
    fn default() -> Self {
        // Short: a right that was taken away is to be gone soon.
        Self { allowed_for: Duration::from_secs(10), denied_for: Duration::from_secs(5) }
    }
}

impl Default for Reload {
    fn default() -> Self {
        Self { period: Duration::from_secs(10) }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        let types = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
        Self {
            mode: UpstreamMode::Kubelet,
            kubelet: Kubelet::default(),
            // Go's dialer, which upstream uses.
            connect_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            upgrade_timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(15),
            user_timeout: Duration::from_secs(120),
            preferred_address_types: types.map(str::to_owned).to_vec(),
            translate: Translate::Always,
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            max_sessions: 4096,
            max_sessions_per_caller: 256,
            // What has changed is to end sessions within this.
            recheck_period: Duration::from_secs(5),
            max_bytes_per_second: 0,
            max_bytes_per_second_per_caller: 0,
            max_bytes_per_second_in_all: 0,
            linger: Duration::from_secs(1),
            hang_up: Duration::from_secs(2),
            // `protocol.md` 4.3, step 4.
            refusal_timeout: Duration::from_secs(10),
            // client-go's and the translator's (`protocol.md` 5.4 and 7.3).
            open_timeout: Duration::from_secs(30),
            max_duration: Duration::ZERO,
            // A kubelet's (`streamingConnectionIdleTimeout`).
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            share: false,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { announce: Duration::from_secs(5), deadline: Duration::from_secs(10) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

impl Default for Dev {
    fn default() -> Self {
        Self { dir: ".podgate".into(), manifests: None, simulate: 0, danger_listen_beyond_loopback: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> (String, String) {
        Config::from_yaml(text).unwrap_err()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_path_and_line() {
        let (key, what) = wrong("api:\n  maxConnections: 5\n  maxConections: 6\n");
        assert_eq!(key, "api.maxConections");
        assert!(what.contains("maxConections") && what.contains("line 3"), "{what}");
        assert_eq!(wrong("apis: {}\n").0, "apis");
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_path() {
        assert_eq!(wrong("session:\n  linger: soon\n").0, "session.linger");
        assert_eq!(wrong("session:\n  linger: -1s\n").0, "session.linger");
        assert_eq!(wrong("api:\n  listen: 127.0.0.1\n").0, "api.listen");
        assert_eq!(wrong("api:\n  maxConnections: -1\n").0, "api.maxConnections");
    }

    #[test]
    fn printed_settings_read_back_as_they_were() {
        let config = Config::default();
        assert_eq!(Config::from_yaml(&config.to_yaml()).unwrap(), config);
        assert_eq!(Config::from_yaml("").unwrap(), config);
        let some = Config::from_yaml("drain:\n  deadline: 1m30s\n").unwrap();
        assert_eq!(some.drain.deadline, Duration::from_secs(90));
    }

    #[test]
    fn only_a_dangerous_flag_opens_addresses_beyond_loopback() {
        let mut flags = cli::Dev::default();
        flags.gateway.listen = Some(([0, 0, 0, 0], 8443).into());
        let refused = Config::dev(&flags).unwrap_err().to_string();
        assert!(refused.contains("--danger-listen-beyond-loopback"), "{refused}");
        flags.danger_listen_beyond_loopback = true;
        assert!(Config::dev(&flags).is_ok());
        assert_eq!(wrong("dev:\n  dangerListenBeyondLoopback: true\n").0, "dev.dangerListenBeyondLoopback");
    }

    fn served(text: &str) -> (Result<Config, Error>, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podgate.yaml");
        std::fs::write(&path, text).unwrap();
        let mut flags = cli::Serve::default();
        flags.gateway.config = Some(path.clone());
        (Config::serve(&flags), path)
    }

    #[test]
    fn every_problem_is_told_with_its_line() {
        let (config, path) = served(
            "api:\n  tls: {certFile: tls.crt, keyFile: tls.key}\n  maxHeaders: 0\n\
             authentication:\n  requestHeader:\n    clientCAFile: ca.crt\n    usernameHeaders: []\n\
             session:\n  recheckPeriod: 9000h\n",
        );
        let text = config.unwrap_err().to_string();
        let path = path.display();
        assert_eq!(
            text,
            format!(
                "config file {path}, line 3, at api.maxHeaders: is at least 1\n\
                 config file {path}, line 9, at session.recheckPeriod: is at most 8760h\n\
                 config file {path}, line 7, at authentication.requestHeader.usernameHeaders: names at least one header"
            )
        );
    }

    #[test]
    fn not_every_user_is_a_front_proxy() {
        let shared = |names: &str| {
            served(&format!(
                "api:\n  tls: {{certFile: tls.crt, keyFile: tls.key}}\n\
                 authentication:\n  clientCAFile: ca.crt\n  requestHeader:\n    clientCAFile: ca.crt\n{names}"
            ))
            .0
        };
        let text = shared("").unwrap_err().to_string();
        assert!(text.contains("at authentication.requestHeader.allowedNames: is needed where"), "{text}");
        shared("    allowedNames: [front-proxy]\n").unwrap();
    }

    #[test]
    fn what_serving_cannot_do_without_is_asked_for() {
        let text = served("authentication:\n  tokenReview: {enabled: false}\n").0.unwrap_err().to_string();
        assert!(text.contains("setting api.tls: certFile and keyFile are needed"), "{text}");
        assert!(text.contains("at authentication: nobody could be known"), "{text}");
    }

    #[test]
    fn paths_are_meant_from_where_the_file_is() {
        let (config, path) = served(
            "api:\n  tls: {certFile: tls.crt, keyFile: /keys/tls.key}\ncluster:\n  kubeconfig: k/config\n",
        );
        let (config, folder) = (config.unwrap(), path.parent().unwrap());
        let tls = config.api.tls.unwrap();
        assert_eq!((tls.cert_file, tls.key_file), (folder.join("tls.crt"), "/keys/tls.key".into()));
        assert_eq!(config.cluster.kubeconfig, Some(folder.join("k/config")));
    }

    /// Keys of the tables in `docs/configuration.md` with their defaults, by section.
    fn documented() -> Vec<(String, String)> {
        let text = include_str!("../docs/configuration.md");
        let mut section = "";
        let mut rows = Vec::new();
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                section = title.split('`').nth(1).filter(|_| title.matches('`').count() == 2).unwrap_or("");
            }
            let cells: Vec<_> = line.split(" | ").collect();
            let [keys, default, _] = cells.as_slice() else { continue };
            for key in keys.trim_start_matches("| ").split(", ").filter(|key| key.starts_with('`')) {
                let key = key.trim_matches('`');
                let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
                rows.push((path, default.trim_matches('`').to_owned()));
            }
        }
        rows.retain(|(key, _)| !key.starts_with("--"));
        rows
    }

    #[test]
    fn every_setting_is_documented_with_its_default() {
        fn leaves(value: &serde_json::Value, path: &str, out: &mut Vec<(String, String)>) {
            match value {
                serde_json::Value::Object(map) => {
                    for (key, value) in map {
                        leaves(value, &format!("{path}.{key}"), out);
                    }
                }
                serde_json::Value::String(text) => out.push((path[1..].to_owned(), text.clone())),
                serde_json::Value::Array(items) => {
                    let items: Vec<_> = items.iter().map(|item| item.as_str().unwrap()).collect();
                    out.push((path[1..].to_owned(), format!("[{}]", items.join(", "))));
                }
                other => out.push((path[1..].to_owned(), other.to_string())),
            }
        }
        let mut config = Config::default();
        // So that the settings without a default are there.
        let pair = KeyPair { cert_file: "none".into(), key_file: "none".into() };
        config.api.tls = Some(pair.clone());
        config.dev.manifests = Some("none".into());
        config.cluster.kubeconfig = Some("none".into());
        config.cluster.context = Some("none".into());
        let none = || Some("none".to_owned());
        config.cluster.pod = OwnPod { namespace: none(), name: none(), uid: none() };
        config.audit.policy_file = Some("none".into());
        config.policy.grants.namespace = Some("none".into());
        config.audit.file.path = Some("none".into());
        config.audit.webhook.kubeconfig = Some("none".into());
        config.upstream.kubelet = Kubelet {
            ca_file: Some("none".into()),
            client: Some(pair),
            token_file: Some("none".into()),
            server_name: Some("none".into()),
            danger_accept_any_certificate: false,
        };
        let known = serde_json::json!({"clientCAFile": "none"});
        config.authentication.request_header = Some(serde_json::from_value(known).unwrap());
        config.authentication.client_ca_file = Some("none".into());
        config.authentication.token_file = Some("none".into());
        config.authentication.oidc_file = Some("none".into());
        config.recording.signing_key_file = Some("none".into());
        config.recording.spool.dir = Some("none".into());
        config.recording.store.url = Some("none".into());
        config.recording.store.options_file = Some("none".into());
        let mut settings = Vec::new();
        leaves(&serde_json::to_value(&config).unwrap(), "", &mut settings);
        let mut documented = documented();
        settings.sort();
        documented.sort();
        assert_eq!(documented, settings);
    }

    #[test]
    fn sessions_are_shared_only_where_there_is_a_namespace_for_it() {
        let with = |more: &str| {
            served(&format!(
                "api:\n  tls: {{certFile: tls.crt, keyFile: tls.key}}\nsession:\n  share: true\n{more}"
            ))
            .0
        };
        with("").unwrap();
        let outside = "cluster:\n  kubeconfig: config\n";
        let text = with(outside).unwrap_err().to_string();
        assert!(text.contains("at session.share: needs cluster.pod.namespace"), "{text}");
        with(&format!("{outside}  pod: {{namespace: podgate}}\n")).unwrap();
        let text = with("cluster: {pod: {namespace: a/b, name: B}}\n").unwrap_err().to_string();
        assert!(text.contains("at cluster.pod.namespace: \"a/b\" is no name of a namespace"), "{text}");
        let text = with("cluster: {pod: {uid: u}}\n").unwrap_err().to_string();
        assert!(text.contains("at cluster.pod.uid: needs cluster.pod.name"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podgate.yaml");
        std::fs::write(&path, "session: {share: true}\n").unwrap();
        let mut flags = cli::Dev::default();
        flags.gateway.config = Some(path);
        let text = Config::dev(&flags).unwrap_err().to_string();
        assert!(text.contains("at session.share: is for podgate serve"), "{text}");
    }

    #[test]
    fn limits_of_zero_are_refused() {
        let mut config = Config::default();
        config.api.max_connections = 0;
        config.upstream.upgrade_timeout = Duration::ZERO;
        let problems = config.problems();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["api.maxConnections", "upstream.upgradeTimeout"]);
        assert!(problems[0].to_string().starts_with("setting api.maxConnections: is at least 1"));
    }
}
