//! Cli: flags and environment as the user typed them. No files, no network; [`crate::config`] raises them to
//! finished values.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::telemetry::LogFormat;

/// The gateway through which people and programs get into Kubernetes pods.
#[derive(Debug, Parser)]
#[command(name = "podgate", version, max_term_width = 100)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The faces of podgate.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run in front of a real cluster.
    Serve(Serve),
    /// Say what is wrong with the settings of `podgate serve`, and with the files they name.
    Check(Serve),
    /// Run an embedded cluster on loopback, with podgate in front: real TLS, real kubectl, pods that are local
    /// processes.
    Dev(Dev),
    /// Prove that recordings are as podgate wrote them. Exit code 0: all are whole; 1: one is not as it was written, or
    /// by somebody else; 2: one cannot be read; 3: one is as it was written up to where podgate was killed.
    Verify(Verify),
    /// Make and show the keys that recordings are signed with and encrypted for.
    #[command(subcommand)]
    Keys(Keys),
}

/// Flags of every gateway. What is not given comes from the file, then from the defaults.
#[derive(Debug, Default, Args)]
pub struct Gateway {
    /// YAML file with settings; `--print-config` shows all of them.
    #[arg(long, value_name = "FILE", env = "PODGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address of the API door [default: 127.0.0.1:8443].
    #[arg(long, value_name = "ADDR", env = "PODGATE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address of health and metrics [default: 127.0.0.1:8444].
    #[arg(long, value_name = "ADDR", env = "PODGATE_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
    /// Bytes per second that each direction of a session may move; 0 is no limit [default: 0].
    #[arg(long, value_name = "BYTES", env = "PODGATE_MAX_BYTES_PER_SECOND")]
    pub max_bytes_per_second: Option<u64>,
    /// Form of log lines [default: text].
    #[arg(long, value_name = "FORMAT", env = "PODGATE_LOG_FORMAT", value_parser = log_format)]
    pub log_format: Option<LogFormat>,
    /// Which log lines, such as `info` or `podgate=debug,access=info` [default: info].
    #[arg(long, value_name = "FILTER", env = "PODGATE_LOG")]
    pub log: Option<String>,
    /// Print the settings that would be used, as YAML, and end.
    #[arg(long)]
    pub print_config: bool,
}

/// Flags of `podgate serve` and `podgate check`.
#[derive(Debug, Default, Args)]
pub struct Serve {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub gateway: Gateway,
    /// Kubeconfig of podgate's own identity [default: its pod's service account].
    #[arg(long, value_name = "FILE", env = "PODGATE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME", env = "PODGATE_CONTEXT")]
    pub context: Option<String>,
}

/// Flags of `podgate dev`.
#[derive(Debug, Default, Args)]
pub struct Dev {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub gateway: Gateway,
    /// Folder for keys, certificates, tokens, the kubeconfig and the containers' files [default: .podgate].
    #[arg(long, value_name = "DIR", env = "PODGATE_DIR")]
    pub dir: Option<PathBuf>,
    /// Folder of Kubernetes manifests to use instead of the built-in set.
    #[arg(long, value_name = "DIR", env = "PODGATE_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// Record sessions, into the folder `recordings` of the state folder unless the settings name another place.
    #[arg(long, env = "PODGATE_RECORD")]
    pub record: bool,
    /// Listen on addresses that other machines can reach. Whoever may exec runs commands as you and can read
    /// the state folder, admin's key included.
    #[arg(long)]
    pub danger_listen_beyond_loopback: bool,
}

/// Flags of `podgate verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Recordings; `-` is what comes in on stdin.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Public key that signed them; several where it was changed. Without one nothing can be proven.
    #[arg(long = "key", required = true, value_name = "PUBLIC.pem")]
    pub keys: Vec<PathBuf>,
    /// Private key of a recipient, to look into encrypted content too. It is proven without.
    #[arg(long = "identity", value_name = "KEY.pem")]
    pub identities: Vec<PathBuf>,
    /// One JSON object for each file.
    #[arg(long)]
    pub json: bool,
}

/// What `podgate keys` can do.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a key that signs recordings: signing.pem and its public half, signing.pub.pem.
    Signing {
        /// Folder for both files; nothing there is overwritten.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a key for somebody who reads encrypted recordings: recipient.pem and its public half, recipient.pub.pem.
    Recipient {
        /// Folder for both files; nothing there is overwritten.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print the public half of a key, and its id.
    Show {
        /// Either half of either kind of key.
        file: PathBuf,
    },
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is text or json".to_owned()),
    }
}
