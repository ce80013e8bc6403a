//! Config: file, environment and flags into one complete, validated [`Config`]. Every default and unit is here.
//!
//! A flag wins over its environment variable, that over the file, that over the default. An unknown key is an
//! error with its full path: a misspelled limit must not quietly be no limit. Values are types and are not
//! parsed again; each room gets its own part.

mod duration;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli;
use crate::telemetry::LogFormat;

/// The longest duration that makes sense: a year. Without a bound, adding one to now could overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The API door.
    pub api: Api,
    /// Health and metrics.
    pub admin: Admin,
    /// What is asked of the cluster.
    pub cluster: Cluster,
    /// The way to kubelets.
    pub upstream: Upstream,
    /// Live sessions.
    pub session: Session,
    /// Stopping.
    pub drain: Drain,
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
    /// Connections at once, sessions included; more are closed at once.
    pub max_connections: usize,
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
    /// Whether callers without any credential are `system:anonymous` rather than refused.
    pub anonymous: bool,
    /// Origins, such as `https://console.example.com`, whose pages may open sessions; `*` is all of them. Pages of
    /// podgate's own host always may.
    pub allowed_origins: Vec<String>,
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
    /// For one authorization review; no answer is a refusal.
    #[serde(with = "duration")]
    pub review_timeout: Duration,
    /// For reading a pod or a node.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
}

/// The way to kubelets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Upstream {
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
    /// Types of node addresses, best first.
    pub preferred_address_types: Vec<String>,
    /// When clients of WebSocket v5 are translated to SPDY.
    pub translate: Translate,
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
    /// Bytes per second that each direction may move; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// How long a peer may take to close after podgate did.
    #[serde(with = "duration")]
    pub linger: Duration,
    /// For passing a kubelet's refusal on, body included.
    #[serde(with = "duration")]
    pub refusal_timeout: Duration,
    /// For a kubelet to open the streams of a translated session.
    #[serde(with = "duration")]
    pub open_timeout: Duration,
    /// How long nothing but keepalives may pass in a translated session.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
}

/// Stopping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Drain {
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

/// The embedded cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Dev {
    /// Folder for keys, certificates, tokens, the kubeconfig and the containers' files.
    pub dir: PathBuf,
    /// Folder of manifests; the built-in set when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<PathBuf>,
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
    #[error("config file {path}, at {key}: {what}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Path of the key, such as `api.maxConnections`.
        key: String,
        /// What is wrong, with line and column.
        what: String,
    },
    /// A value that makes no sense.
    #[error("setting {key}: {what}")]
    Invalid {
        /// Path of the key.
        key: &'static str,
        /// What is wrong and what to do.
        what: String,
    },
}

// === impl Config ===

impl Config {
    /// The settings of `podgate dev`.
    ///
    /// # Errors
    /// When the file cannot be read, or a value in it or in a flag cannot be used.
    pub fn dev(flags: &cli::Dev) -> Result<Self, Error> {
        let mut config = match &flags.config {
            Some(path) => Self::from_file(path)?,
            None => Self::default(),
        };
        let overlay = flags;
        set(&mut config.dev.dir, &overlay.dir);
        set(&mut config.api.listen, &overlay.listen);
        set(&mut config.admin.listen, &overlay.admin_listen);
        set(&mut config.session.max_bytes_per_second, &overlay.max_bytes_per_second);
        set(&mut config.log.format, &overlay.log_format);
        set(&mut config.log.filter, &overlay.log);
        if overlay.manifests.is_some() {
            config.dev.manifests.clone_from(&overlay.manifests);
        }
        config.dev.danger_listen_beyond_loopback = overlay.danger_listen_beyond_loopback;
        config.validate()?;
        Ok(config)
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::from_yaml(&text).map_err(|(key, what)| Error::Parse { path: path.to_owned(), key, what })
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
        read.map_err(|error| (track.path().to_string(), error.without_snippet().to_string()))
    }

    fn validate(&self) -> Result<(), Error> {
        if self.api.max_http2_streams == 0 {
            return Err(Error::Invalid { key: "api.maxHttp2Streams", what: "is at least 1".into() });
        }
        let positive = [
            ("api.maxConnections", self.api.max_connections),
            ("api.maxHeaders", self.api.max_headers),
            ("api.maxInFlight", self.api.max_in_flight),
            ("admin.maxConnections", self.admin.max_connections),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Error::Invalid { key, what: "is at least 1".into() });
            }
        }
        // hyper's least buffer.
        if self.api.max_header_bytes < 8192 {
            return Err(Error::Invalid { key: "api.maxHeaderBytes", what: "is at least 8192".into() });
        }
        let deadlines = [
            ("api.handshakeTimeout", self.api.handshake_timeout),
            ("api.headerTimeout", self.api.header_timeout),
            ("api.writeTimeout", self.api.write_timeout),
            ("api.requestTimeout", self.api.request_timeout),
            ("admin.headerTimeout", self.admin.header_timeout),
            ("cluster.reviewTimeout", self.cluster.review_timeout),
            ("cluster.readTimeout", self.cluster.read_timeout),
            ("upstream.connectTimeout", self.upstream.connect_timeout),
            ("upstream.handshakeTimeout", self.upstream.handshake_timeout),
            ("upstream.upgradeTimeout", self.upstream.upgrade_timeout),
            ("session.refusalTimeout", self.session.refusal_timeout),
            ("session.openTimeout", self.session.open_timeout),
            ("session.idleTimeout", self.session.idle_timeout),
        ];
        for (key, value) in deadlines {
            if value < Duration::from_millis(1) || value > LONGEST {
                return Err(Error::Invalid { key, what: "is from 1ms to 8760h".into() });
            }
        }
        for (key, value) in [("session.linger", self.session.linger), ("drain.deadline", self.drain.deadline)]
        {
            if value > LONGEST {
                return Err(Error::Invalid { key, what: "is at most 8760h".into() });
            }
        }
        // What the kernel takes for TCP_KEEPIDLE (tcp(7)), in whole seconds.
        let keepalives =
            [("api.keepalive", self.api.keepalive), ("upstream.keepalive", self.upstream.keepalive)];
        for (key, value) in keepalives {
            if !(Duration::from_secs(1)..=Duration::from_secs(32_767)).contains(&value) {
                return Err(Error::Invalid { key, what: "is from 1s to 32767s".into() });
            }
        }
        if self.upstream.preferred_address_types.is_empty() {
            let what = "names at least one type, such as InternalIP".into();
            return Err(Error::Invalid { key: "upstream.preferredAddressTypes", what });
        }
        let addresses = [("api.listen", self.api.listen), ("admin.listen", self.admin.listen)];
        for (key, addr) in addresses {
            if !self.dev.danger_listen_beyond_loopback && !addr.ip().is_loopback() {
                let what = format!(
                    "{addr} is not a loopback address; commands in dev pods run as you, so this takes \
                     --danger-listen-beyond-loopback"
                );
                return Err(Error::Invalid { key, what });
            }
        }
        Ok(())
    }

    /// As YAML. Nothing in it is secret.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("settings are plain values")
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
            max_connections: 4096,
            handshake_timeout: Duration::from_secs(10),
            // kube-apiserver's ReadHeaderTimeout (`protocol.md` 8.5).
            header_timeout: Duration::from_secs(32),
            write_timeout: Duration::from_secs(60),
            // Twice the longest URI there can be; upstream takes 1 MiB, before it knows from whom.
            max_header_bytes: 128 * 1024,
            max_headers: 256,
            max_http2_streams: 250,
            max_in_flight: 400,
            request_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(15),
            anonymous: false,
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
        Self { review_timeout: Duration::from_secs(10), read_timeout: Duration::from_secs(10) }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        let types = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
        Self {
            // Go's dialer, which upstream uses.
            connect_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            upgrade_timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(15),
            preferred_address_types: types.map(str::to_owned).to_vec(),
            translate: Translate::Always,
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            max_bytes_per_second: 0,
            linger: Duration::from_secs(1),
            // `protocol.md` 4.3, step 4.
            refusal_timeout: Duration::from_secs(10),
            // client-go's and the translator's (`protocol.md` 5.4 and 7.3).
            open_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(4 * 60 * 60),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

impl Default for Dev {
    fn default() -> Self {
        Self { dir: ".podgate".into(), manifests: None, danger_listen_beyond_loopback: false }
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
        let mut flags = cli::Dev { listen: Some(([0, 0, 0, 0], 8443).into()), ..cli::Dev::default() };
        let refused = Config::dev(&flags).unwrap_err().to_string();
        assert!(refused.contains("--danger-listen-beyond-loopback"), "{refused}");
        flags.danger_listen_beyond_loopback = true;
        assert!(Config::dev(&flags).is_ok());
        assert_eq!(wrong("dev:\n  dangerListenBeyondLoopback: true\n").0, "dev.dangerListenBeyondLoopback");
    }

    #[test]
    fn limits_of_zero_are_refused() {
        let mut config = Config::default();
        config.api.max_connections = 0;
        assert!(config.validate().unwrap_err().to_string().starts_with("setting api.maxConnections"));
        let mut config = Config::default();
        config.upstream.upgrade_timeout = Duration::ZERO;
        assert!(config.validate().unwrap_err().to_string().starts_with("setting upstream.upgradeTimeout"));
    }
}
