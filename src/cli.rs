//! Cli: flags and environment as the user typed them. No files, no network; [`crate::config`] raises them to
//! finished values.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

use crate::bench;
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
    /// Show a live session in this terminal, as it happens. `kubectl get sessions -A` lists them.
    Watch(Watch),
    /// Put load on API servers, podgates or kubelets that a kubeconfig names, as kubectl does, and tell what it takes.
    Bench(Bench),
    /// Prove that recordings are as podgate wrote them. Exit code 0: all are whole; 1: one is not as it was written, or
    /// by somebody else; 2: one cannot be read; 3: one is as it was written up to where podgate was killed.
    Verify(Verify),
    /// Make and show the keys that recordings are signed with and encrypted for.
    #[command(subcommand)]
    Keys(Keys),
    /// Play a recording in this terminal, or write out a channel of it.
    ///
    /// Keys: space pauses, the right arrow skips ten seconds, the left one goes back ten, + and - change the speed, q
    /// ends. Exits with 1 when the recording is not as podgate wrote it, with 3 when its end is missing because podgate
    /// was killed.
    Play(Play),
    /// List, show, search and export the recordings of a folder or an object store.
    #[command(subcommand)]
    Recordings(Recordings),
}

/// Flags of `podgate watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// The session's name.
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// Its namespace [default: that of the context].
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The way to podgate [default: that of kubectl].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one].
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Flags of `podgate bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Whom to measure; several are measured in turn, and the first is compared with the others. As
    /// name=NAME,kubeconfig=FILE,context=NAME,pid=PID,kubelet=true, each of which may be left out: the kubeconfig is
    /// that of kubectl, CPU and memory are read of a process of this machine, and kubelet=true says that the server
    /// is a kubelet.
    #[arg(long = "target", value_name = "KEY=VALUE,...", value_parser = target)]
    pub targets: Vec<BenchTarget>,
    /// Namespace of the pod [default: that of the context].
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The pod that commands run in.
    #[arg(long, value_name = "NAME")]
    pub pod: String,
    /// Its container; a kubelet has to be told.
    #[arg(long, short, value_name = "NAME")]
    pub container: Option<String>,
    /// What the pod can run.
    #[arg(long, value_name = "KIND", default_value = "real")]
    pub commands: bench::Commands,
    /// What is spoken.
    #[arg(long, value_name = "PROTOCOL", default_value = "websocket")]
    pub protocol: bench::client::Kind,
    /// What is done, in this order [default: all of it].
    #[arg(long = "work", value_name = "WORK", value_delimiter = ',')]
    pub works: Vec<bench::Work>,
    /// How often; medians are told.
    #[arg(long, value_name = "N", default_value = "5", value_parser = value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Set-ups a round.
    #[arg(long, value_name = "N", default_value = "400", value_parser = value_parser!(u32).range(1..))]
    pub setups: u32,
    /// Set-ups at a time, and idle sessions that are opened at a time.
    #[arg(long, value_name = "N", default_value = "16", value_parser = value_parser!(u32).range(1..))]
    pub at_once: u32,
    /// MiB of a bulk copy.
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = value_parser!(u32).range(1..))]
    pub mib: u32,
    /// What the bytes are like that a pod says.
    #[arg(long, value_name = "KIND", default_value = "same")]
    pub content: bench::Content,
    /// Keystrokes a round.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = value_parser!(u32).range(1..))]
    pub strokes: u32,
    /// Bulk copies beside keystrokes; 0 leaves that out.
    #[arg(long, value_name = "N", default_value = "8")]
    pub beside: u32,
    /// Idle sessions.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = value_parser!(u32).range(1..))]
    pub idle: u32,
    /// How long they are idle: 30s, 10m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = offset)]
    pub hold: Duration,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Whom `podgate bench` measures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BenchTarget {
    /// What the report calls it.
    pub name: Option<String>,
    /// The way there.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    pub context: Option<String>,
    /// The process that is measured.
    pub pid: Option<u32>,
    /// Whether it is a kubelet.
    pub kubelet: bool,
}

/// What can be done with recordings.
#[derive(Debug, Subcommand)]
pub enum Recordings {
    /// List them, newest first.
    List(List),
    /// Show what is known of one, and verify it.
    Show(Show),
    /// Find what was typed or shown, with the time in the session. Letters of ASCII are the same in both cases.
    Search(Search),
    /// Write one out in another form.
    Export(Export),
}

/// Where recordings are.
#[derive(Debug, Default, Clone, Args)]
pub struct Store {
    /// Folder or URL with recordings: s3://bucket/prefix, gs://..., az://... [default: that of the settings].
    #[arg(long, value_name = "URL", env = "PODGATE_STORE")]
    pub store: Option<String>,
    /// Settings of the gateway that made them, for its store and its key.
    #[arg(long, value_name = "FILE", env = "PODGATE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// How recordings are read.
#[derive(Debug, Default, Clone, Args)]
pub struct Reading {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub store: Store,
    /// Public half of a key that recordings are signed with (PEM); may be repeated.
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// Private half of a key that they are encrypted for (PEM); may be repeated.
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Take recordings for what they say they are, whoever made them.
    #[arg(long)]
    pub danger_unverified: bool,
}

/// Flags of `podgate play`.
#[derive(Debug, Args)]
pub struct Play {
    /// The file, or the id of a recording in the store.
    #[arg(value_name = "FILE|ID")]
    pub what: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub reading: Reading,
    /// How many times as fast as it was.
    #[arg(long, value_name = "N", default_value = "1", value_parser = speed)]
    pub speed: f64,
    /// Shortens longer waits to so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub idle_limit: Option<f64>,
    /// Begin at this time: seconds, 1:30, or 1m30s.
    #[arg(long, value_name = "TIME", value_parser = offset)]
    pub from: Option<Duration>,
    /// Do not show what the client sent.
    #[arg(long)]
    pub no_input: bool,
    /// Write out this channel alone, byte for byte unless into a terminal.
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<Channel>,
}

/// Which of the recordings.
#[derive(Debug, Default, Clone, Args)]
pub struct Which {
    /// Who: the caller, or who acted as the caller.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Where: the namespace.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Where: the pod; with a * at the end, all that begin so.
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// When: 2026-01-31, 2026-01-31T12:00:00Z, or 3h, 2d for so long ago.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// The same, for those that began before.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// The exit code of the command.
    #[arg(long, value_name = "CODE")]
    pub exit_code: Option<u8>,
    /// Read all cards anew, and keep none of them here.
    #[arg(long)]
    pub no_cache: bool,
}

/// Forms of a list.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line each.
    #[default]
    Table,
    /// With all columns.
    Wide,
    /// One JSON object a line.
    Json,
}

/// Flags of `podgate recordings list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub store: Store,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub which: Which,
    /// Form of the list.
    #[arg(long, short, value_name = "FORM", default_value = "table")]
    pub output: Output,
}

/// Flags of `podgate recordings show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The file, or the id of a recording in the store.
    #[arg(value_name = "FILE|ID")]
    pub what: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub reading: Reading,
}

/// Flags of `podgate recordings search`.
#[derive(Debug, Args)]
pub struct Search {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub reading: Reading,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub which: Which,
    /// In the command, or in a line that was typed in a terminal.
    #[arg(long, value_name = "TEXT")]
    pub typed: Option<String>,
    /// In the output, or in what is kept of stdin.
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Stop after so many recordings, the newest first; 0 is no limit.
    #[arg(long, value_name = "N", default_value = "50")]
    pub limit: usize,
    /// Form of the list.
    #[arg(long, short, value_name = "FORM", default_value = "table")]
    pub output: Output,
}

/// Forms of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// asciicast v2; of terminal sessions.
    Cast,
    /// The bytes of a channel.
    Raw,
    /// Lines of text, without what only a terminal understands.
    Text,
}

/// Channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Channel {
    /// To the program, as far as it is kept.
    Stdin,
    /// From the program.
    Stdout,
    /// Its second output.
    Stderr,
}

/// Flags of `podgate recordings export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The file, or the id of a recording in the store.
    #[arg(value_name = "FILE|ID")]
    pub what: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub reading: Reading,
    /// What it becomes.
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub format: Format,
    /// Which channel, but for a cast.
    #[arg(long, value_name = "CHANNEL", default_value = "stdout")]
    pub channel: Channel,
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
    /// Namespace of podgate's own pod [default: that of its service account].
    #[arg(long, value_name = "NAME", env = "PODGATE_POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// Name of podgate's own pod [default: that of the host].
    #[arg(long, value_name = "NAME", env = "PODGATE_POD_NAME")]
    pub pod_name: Option<String>,
    /// Uid of podgate's own pod.
    #[arg(long, value_name = "UID", env = "PODGATE_POD_UID")]
    pub pod_uid: Option<String>,
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
    /// So many pods more, sim-0 and so on, on nodes of their own, whose commands are no processes: hello, source-N,
    /// log-N, random-N, sink-N, echo and sleep-N. For load tests, such as those of podgate bench.
    #[arg(long, value_name = "PODS", env = "PODGATE_SIMULATE")]
    pub simulate: Option<u32>,
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

/// Whom to measure.
fn target(text: &str) -> Result<BenchTarget, String> {
    let mut target = BenchTarget::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not KEY=VALUE"))?;
        match key {
            "name" => target.name = Some(value.to_owned()),
            "kubeconfig" => target.kubeconfig = Some(value.into()),
            "context" => target.context = Some(value.to_owned()),
            "pid" => target.pid = Some(value.parse().map_err(|_| format!("pid {value:?} is no number"))?),
            "kubelet" => target.kubelet = value.parse().map_err(|_| "kubelet is true or false".to_owned())?,
            _ => return Err(format!("{key:?} is none of name, kubeconfig, context, pid and kubelet")),
        }
    }
    Ok(target)
}

/// How fast; no number at all (`nan`) is none.
fn speed(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|times| *times > 0.0).ok_or_else(|| "is a number above 0".to_owned())
}

/// A time in a session.
fn offset(text: &str) -> Result<Duration, String> {
    let clock =
        || text.split(':').try_fold(0.0, |sum, part| part.parse::<f64>().ok().map(|part| sum * 60.0 + part));
    let span = || text.parse::<jiff::SignedDuration>().ok().map(|span| span.as_secs_f64());
    let seconds = clock().or_else(span).ok_or("is seconds, 1:30, or 1m30s")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_what_is_none_is_told() {
        let read = target("name=a,kubeconfig=/k,context=c,pid=7,kubelet=true").unwrap();
        let (name, context) = (Some("a".to_owned()), Some("c".to_owned()));
        let kubeconfig = Some(PathBuf::from("/k"));
        assert_eq!(read, BenchTarget { name, kubeconfig, context, pid: Some(7), kubelet: true });
        assert_eq!(target("pid=x").unwrap_err(), "pid \"x\" is no number");
        assert!(target("port=1").unwrap_err().contains("none of"));
        assert!(target("podgate").unwrap_err().contains("KEY=VALUE"));
    }
}
