//! kube-rs behind kubectl's command line, as one of the clients: this binary, started once more.
//!
//!     e2e --as-kube-rs exec [-i] [-t] POD -- COMMAND...
//!     e2e --as-kube-rs attach [-i] [-t] POD
//!     e2e --as-kube-rs port-forward POD :PORT
//!
//! Input, output, error output and exit code are the session's; a terminal's size is followed.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess, TerminalSize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// The command line, taken apart.
struct Line {
    verb: String,
    stdin: bool,
    tty: bool,
    pod: String,
    operands: Vec<String>,
}

/// Runs a command line to its end; the exit code.
pub(crate) async fn run(args: impl Iterator<Item = String>) -> i32 {
    match try_run(Line::read(args)).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

async fn try_run(line: Line) -> Result<i32, Box<dyn std::error::Error>> {
    let pods = Api::<Pod>::default_namespaced(kube::Client::try_default().await?);
    if line.verb == "port-forward" {
        let port = line.operands[0].trim_start_matches(':').parse()?;
        match forward_port(&pods, &line.pod, port).await? {}
    }
    let ask = AttachParams::default().stdin(line.stdin).stdout(true).stderr(!line.tty).tty(line.tty);
    let mut session = match line.verb.as_str() {
        "exec" => pods.exec(&line.pod, line.operands, &ask).await?,
        _ => pods.attach(&line.pod, &ask).await?,
    };
    let raw = if line.tty { Some(Raw::enter()?) } else { None };
    let ended = converse(&mut session).await?;
    drop(raw);
    session.join().await?;
    match ended.as_ref().map(exit_code) {
        Some(Some(code)) => Ok(code),
        Some(None) => Err(ended.and_then(|status| status.message).unwrap_or_default().into()),
        None => Err("the session ended without a result".into()),
    }
}

/// Moves bytes until the session is over, and returns its result.
async fn converse(session: &mut AttachedProcess) -> io::Result<Option<Status>> {
    let (stdin, stdout, stderr) = (session.stdin(), session.stdout(), session.stderr());
    let status = session.take_status().expect("it is taken once");
    let size = session.terminal_size();
    let feed = async {
        if let Some(mut stdin) = stdin {
            copy(&mut tokio::io::stdin(), &mut stdin).await?;
            stdin.shutdown().await?;
        }
        pending::<io::Result<Infallible>>().await
    };
    let resize = async {
        let Some(mut size) = size else { return pending::<io::Result<Infallible>>().await };
        let mut changed = signal(SignalKind::window_change())?;
        loop {
            let now = tcgetwinsize(io::stdin())?;
            size.try_send(TerminalSize { width: now.ws_col, height: now.ws_row })
                .map_err(io::Error::other)?;
            changed.recv().await;
        }
    };
    let stdout = async {
        let mut to = tokio::io::stdout();
        if let Some(mut from) = stdout {
            copy(&mut from, &mut to).await?;
        }
        to.flush().await
    };
    let stderr = async {
        let mut to = tokio::io::stderr();
        if let Some(mut from) = stderr {
            copy(&mut from, &mut to).await?;
        }
        to.flush().await
    };
    tokio::select! {
        (status, stdout, stderr) = async { tokio::join!(status, stdout, stderr) } => {
            stdout.and(stderr).map(|()| status)
        }
        Err(error) = feed => Err(error),
        Err(error) = resize => Err(error),
    }
}

/// The exit code in a result; none when it tells of something else.
fn exit_code(status: &Status) -> Option<i32> {
    if status.status.as_deref() == Some("Success") {
        return Some(0);
    }
    let causes = status.details.as_ref()?.causes.as_ref()?;
    let cause = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"))?;
    cause.message.as_ref()?.parse().ok()
}

async fn forward_port(pods: &Api<Pod>, pod: &str, port: u16) -> io::Result<Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("Forwarding from {} -> {port}", listener.local_addr()?);
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (local, _) = accepted?;
                let (pods, pod) = (pods.clone(), pod.to_owned());
                carried.spawn(async move {
                    if let Err(error) = carry(&pods, &pod, port, local).await {
                        eprintln!("{error}");
                    }
                });
            }
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(
    pods: &Api<Pod>,
    pod: &str,
    port: u16,
    mut local: TcpStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut forward = pods.portforward(pod, &[port]).await?;
    let mut far = forward.take_stream(port).expect("it was asked for");
    let error = forward.take_error(port).expect("it was asked for");
    tokio::select! {
        Some(error) = error => return Err(error.into()),
        copied = copy_bidirectional(&mut local, &mut far) => copied?,
    };
    drop(far);
    Ok(forward.join().await?)
}

// === impl Line ===

impl Line {
    fn read(mut args: impl Iterator<Item = String>) -> Self {
        let verb = args.next().unwrap_or_default();
        let mut line = Self { verb, stdin: false, tty: false, pod: String::new(), operands: Vec::new() };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "-i" => line.stdin = true,
                "-t" => line.tty = true,
                "--" => line.operands.extend(args.by_ref()),
                _ if line.pod.is_empty() => line.pod = arg,
                _ => line.operands.push(arg),
            }
        }
        line
    }
}

/// The terminal passes keys on as they are, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
