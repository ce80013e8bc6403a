//! The checks: what a client is to do at a node. Each compares bytes and codes exactly, and panics when they differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::clients::Client;
use crate::objects;
use crate::place::Place;

/// Bytes through stdin and back: more than all the buffers on the way hold.
const MEGABYTES: usize = 3 * 1024 * 1024;

/// Bytes of one forwarded request, and of its answer: several messages of every protocol.
const BODY: usize = 300_000;

/// Connections through one port-forward at once.
const CONNECTIONS: usize = 5;

/// A port on which nobody listens: TCPMUX, which nobody has run for decades (RFC 7805).
const UNUSED_PORT: u16 = 1;

/// How long the end of a forwarded connection may take to come through.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// What is checked; a column of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// stdout and stderr of a command, apart.
    Streams,
    /// Exit codes, that of a killed command among them, and a command that is not there.
    Codes,
    /// Megabytes through `cat`, which ends when its input does.
    Stdin,
    /// A terminal, and a resize of it.
    Tty,
    /// Files both ways.
    Cp,
    /// Connections to a port of the pod.
    Forward,
    /// A port on which nobody listens.
    RefusedPort,
    /// A pod by name, in a table, and one that is not there.
    Get,
    /// Whether the caller may: yes, and no.
    CanI,
    /// What the API has.
    Discovery,
    /// A caller who may nothing.
    Forbidden,
    /// A caller known by a bearer token, and one whose token nobody knows.
    Token,
    /// Objects made, changed, and left as they are.
    Apply,
    /// Those objects removed, and waited for.
    Delete,
    /// An ephemeral container.
    Debug,
    /// A copy of a pod with another command.
    DebugCopy,
    /// `logs -f` and `get -w` of a pod until it ends, and parts of its log afterwards.
    Follow,
    /// The container's own process, both ways, until it ends. The last one: the pod is over then.
    Attach,
}

/// One client at one place.
pub(crate) struct Target<'a> {
    pub(crate) client: &'a Client,
    pub(crate) place: &'a Place,
    /// The client's pod there.
    pub(crate) pod: String,
    /// The client's home, and what it copies.
    pub(crate) folder: PathBuf,
    /// With the contexts `alice-token`, who may do what the checks do, and `mallory`, who may nothing; the current one
    /// may too.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) echo: Echo,
    /// What the containers of pods are made from that a client applies.
    pub(crate) image: String,
}

/// Where bodies are given back to who forwards a port.
#[derive(Clone)]
pub(crate) enum Echo {
    /// In the check itself, whose ports are those of the pods too.
    Here,
    /// In another pod.
    At { pod: String, port: u16 },
}

/// What a client's process said, and how it ended.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

// === impl Check ===

impl Check {
    pub(crate) const ALL: [Self; 18] = [
        Self::Streams,
        Self::Codes,
        Self::Stdin,
        Self::Tty,
        Self::Cp,
        Self::Forward,
        Self::RefusedPort,
        Self::Get,
        Self::CanI,
        Self::Discovery,
        Self::Forbidden,
        Self::Token,
        Self::Apply,
        Self::Delete,
        Self::Debug,
        Self::DebugCopy,
        Self::Follow,
        Self::Attach,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Streams => "exec",
            Self::Codes => "exit codes",
            Self::Stdin => "stdin",
            Self::Tty => "terminal",
            Self::Cp => "cp",
            Self::Forward => "port-forward",
            Self::RefusedPort => "refused port",
            Self::Attach => "attach",
            Self::Get => "get",
            Self::Follow => "logs -f, get -w",
            Self::CanI => "can-i",
            Self::Discovery => "discovery",
            Self::Forbidden => "forbidden",
            Self::Token => "token",
            Self::Apply => "apply",
            Self::Delete => "delete",
            Self::Debug => "debug",
            Self::DebugCopy => "debug --copy-to",
        }
    }

    /// Whether it is about exec, attach or port-forward, which libraries have as well.
    pub(crate) fn is_session(self) -> bool {
        matches!(
            self,
            Self::Streams
                | Self::Codes
                | Self::Stdin
                | Self::Tty
                | Self::Cp
                | Self::Forward
                | Self::RefusedPort
                | Self::Attach
        )
    }

    pub(crate) async fn run(self, target: &Target<'_>) {
        match self {
            Self::Streams => streams(target).await,
            Self::Codes => codes(target).await,
            Self::Stdin => stdin(target).await,
            Self::Tty => terminal(target).await,
            Self::Cp if target.client.is_kubectl() => kubectl_cp(target).await,
            Self::Cp => tar_through_exec(target).await,
            Self::Forward => forward(target).await,
            Self::RefusedPort => refused_port(target).await,
            Self::Attach => attach(target).await,
            Self::Get => objects::get(target).await,
            Self::Follow => objects::follow(target).await,
            Self::CanI => objects::can_i(target).await,
            Self::Discovery => objects::discovery(target).await,
            Self::Forbidden => objects::forbidden(target).await,
            Self::Token => objects::token(target).await,
            Self::Apply => objects::apply(target).await,
            Self::Delete => objects::delete(target).await,
            Self::Debug => objects::debug(target).await,
            Self::DebugCopy => objects::debug_copy(target).await,
        }
    }
}

async fn streams(target: &Target<'_>) {
    let said = target.exec("printf out; printf err >&2; printf ' more'; printf ' more' >&2", &[], b"").await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), "err more"));
    assert_eq!(said.out, b"out more");
}

async fn codes(target: &Target<'_>) {
    let ends = async |script: &str, code: i32| {
        let said = target.exec(&format!("printf err >&2; {script}"), &[], b"").await;
        let err = format!("err{}", target.client.epilogue(code));
        assert_eq!((said.code, said.err), (Some(code), err), "{script}");
        assert_eq!(said.out, b"", "{script}");
    };
    for code in [0, 1, 7, 126, 127, 255] {
        ends(&format!("exit {code}"), code).await;
    }
    ends("kill -9 $$", 137).await;
    let said = target.run(&["exec", &target.pod, "--", "no-such-command"], b"").await;
    assert_ne!(said.code, Some(0), "a command that is not there");
    // Runtimes differ in where they put the name.
    assert!(said.err.contains("executable file") && said.err.contains("not found in $PATH"), "{}", said.err);
}

async fn stdin(target: &Target<'_>) {
    let bytes = noise(MEGABYTES);
    let said = target.exec("cat; printf end >&2", &["-i"], &bytes).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), "end"));
    assert_same(&said.out, &bytes);
}

async fn terminal(target: &Target<'_>) {
    let (terminal, pts) = pty_process::open().unwrap();
    terminal.resize(pty_process::Size::new(30, 100)).unwrap();
    let argv = target.argv(&["exec", "-i", "-t", &target.pod, "--", "sh", "-c", "echo up; exec sh"]);
    let mut client = pty_process::Command::new(&argv[0])
        .args(&argv[1..])
        .env_clear()
        .envs(target.env())
        .kill_on_drop(true)
        .spawn(pts)
        .unwrap();
    let mut screen = Screen { terminal, seen: String::new() };
    screen.shows("up").await;
    // A size is on its way while the shell runs: ask until it is there. What the terminal echoes of the keys has the sum,
    // not its result.
    let wait_for = |size: &str, word: &str| {
        format!("while [ \"$(stty size)\" != '{size}' ]; do sleep 0.05; done; echo {word}-$((40+2))\r")
    };
    screen.types(&wait_for("30 100", "sized")).await;
    screen.shows("sized-42").await;
    screen.terminal.resize(pty_process::Size::new(44, 121)).unwrap();
    screen.types(&wait_for("44 121", "resized")).await;
    screen.shows("resized-42").await;
    screen.types("exit 5\r").await;
    // A terminal whose reader rests is full one day.
    let (status, ()) = tokio::join!(client.wait(), screen.drain());
    assert_eq!(status.unwrap().code(), Some(5), "{}", screen.seen);
}

async fn kubectl_cp(target: &Target<'_>) {
    let (there, back) = (target.folder.join("there"), target.folder.join("back"));
    let files = plant(&there);
    let (there, back) = (there.to_str().unwrap(), back.to_str().unwrap());
    let said = target.run(&["cp", there, &format!("{}:copied", target.pod)], b"").await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let said = target.run(&["cp", &format!("{}:copied", target.pod), back], b"").await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_same_files(Path::new(back), &files);
}

/// What libraries do in the place of `kubectl cp`.
async fn tar_through_exec(target: &Target<'_>) {
    let (there, back) = (target.folder.join("there"), target.folder.join("back"));
    let files = plant(&there);
    fs::create_dir_all(&back).unwrap();
    let archive = tar(&["cf", "-", "-C", there.to_str().unwrap(), "."], b"").await;
    // Who cannot end the input says before how much there is.
    let unpack = match target.client.ends_input() {
        true => "mkdir copied && tar xf - -C copied".to_owned(),
        false => format!("mkdir copied && head -c {} | tar xf - -C copied", archive.len()),
    };
    let said = target.exec(&unpack, &["-i"], &archive).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let said = target.exec("tar cf - -C copied .", &[], b"").await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    tar(&["xf", "-", "-C", back.to_str().unwrap()], &said.out).await;
    assert_same_files(&back, &files);
}

async fn forward(target: &Target<'_>) {
    let here = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (pod, port) = match &target.echo {
        Echo::Here => (&target.pod, here.local_addr().unwrap().port()),
        Echo::At { pod, port } => (pod, *port),
    };
    let serve = async {
        let mut serving = JoinSet::new();
        loop {
            let (connection, _) = here.accept().await.unwrap();
            serving.spawn(echo(connection));
        }
    };
    let mut forwarded = Forward::start(target, pod, port).await;
    let exchange = join_all((0..CONNECTIONS).map(|number| exchange(forwarded.local, number)));
    tokio::select! {
        _ = exchange => {}
        () = serve => {}
        // A client that gives up says why.
        err = forwarded.ended() => panic!("the client ended: {err}"),
    }
}

async fn refused_port(target: &Target<'_>) {
    let mut forwarded = Forward::start(target, &target.pod, UNUSED_PORT).await;
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, forwarded.local)).await.unwrap();
    connection.write_all(b"anybody?").await.unwrap();
    let told = async {
        let mut got = Vec::new();
        // An end or a reset: both say that nobody is there.
        let _ = connection.read_to_end(&mut got).await;
        assert_eq!(got, b"");
        forwarded.says("refused").await;
    };
    tokio::time::timeout(END_PATIENCE, told).await.expect("the connection ends, and the client says why");
}

/// Sends a line to the container's own process, has it back on both streams, and ends the process.
async fn attach(target: &Target<'_>) {
    let mut client = target.spawn(&["attach", "-i", &target.pod]);
    let mut stdin = client.stdin.take().unwrap();
    let (mut out, mut err) = (client.stdout.take().unwrap(), client.stderr.take().unwrap());
    let (mut seen_out, mut seen_err) = (Vec::new(), Vec::new());
    stdin.write_all(b"first\nsecond\n").await.unwrap();
    stdin.flush().await.unwrap();
    read_until(&mut out, &mut seen_out, "out second\n").await;
    read_until(&mut err, &mut seen_err, "err second\n").await;
    stdin.write_all(b"end\n").await.unwrap();
    stdin.flush().await.unwrap();
    out.read_to_end(&mut seen_out).await.unwrap();
    err.read_to_end(&mut seen_err).await.unwrap();
    assert_eq!(String::from_utf8(seen_out).unwrap(), "out first\nout second\n");
    let seen_err = String::from_utf8(seen_err).unwrap();
    // What else kubectl tells its user comes before, and differs with every version.
    let (own, seen_err) = seen_err.split_at(seen_err.find("err first").unwrap_or_default());
    assert_eq!(seen_err, "err first\nerr second\n");
    assert!(own.is_empty() || target.client.is_kubectl(), "{own}");
    assert_eq!(client.wait().await.unwrap().code(), Some(0));
}

// === impl Target ===

impl Target<'_> {
    fn argv(&self, args: &[&str]) -> Vec<OsString> {
        self.client.argv().iter().cloned().chain(args.iter().map(OsString::from)).collect()
    }

    /// Homes are not shared: what versions of kubectl cache there does not mix.
    fn env(&self) -> Vec<(&'static str, OsString)> {
        let own = |name: &str| std::env::var_os(name).unwrap_or_default();
        vec![
            ("PATH", own("PATH")),
            ("TERM", "xterm".into()),
            ("HOME", self.folder.clone().into()),
            ("KUBECONFIG", self.kubeconfig.clone().into()),
            ("PODGATE_NODE_CLIENT", own("PODGATE_NODE_CLIENT")),
        ]
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let argv = self.argv(args);
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).env_clear().envs(self.env()).current_dir(&self.folder);
        piped(&mut command)
    }

    /// Runs the client to its end.
    pub(crate) async fn run(&self, args: &[&str], input: &[u8]) -> Said {
        feed(self.spawn(args), input).await
    }

    /// Has the client execute a shell script in its pod.
    async fn exec(&self, script: &str, flags: &[&str], input: &[u8]) -> Said {
        let args = [&["exec"], flags, &[&self.pod, "--", "sh", "-c", script]].concat();
        self.run(&args, input).await
    }
}

pub(crate) fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

pub(crate) async fn feed(mut child: Child, input: &[u8]) -> Said {
    let mut stdin = child.stdin.take().unwrap();
    let write = async move {
        // Who ends without having read its input says why.
        let _ = stdin.write_all(input).await;
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    Said { code: output.status.code(), out: output.stdout, err }
}

async fn tar(args: &[&str], input: &[u8]) -> Vec<u8> {
    let said = feed(piped(Command::new("tar").args(args)), input).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "tar {args:?}");
    said.out
}

pub(crate) async fn read_until(from: &mut (impl AsyncRead + Unpin), seen: &mut Vec<u8>, text: &str) {
    while !String::from_utf8_lossy(seen).contains(text) {
        let read = from.read_buf(seen).await.unwrap();
        assert_ne!(read, 0, "{text:?} is not in {:?}", String::from_utf8_lossy(seen));
    }
}

/// A client that forwards a port.
struct Forward {
    client: Child,
    /// Where it listens.
    local: u16,
    err: Vec<u8>,
}

impl Forward {
    async fn start(target: &Target<'_>, pod: &str, port: u16) -> Self {
        let mut client = target.spawn(&["port-forward", pod, &format!(":{port}")]);
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let Some(line) = lines.next_line().await.unwrap() else {
            panic!("no line: {}", feed(client, b"").await.err);
        };
        // Forwarding from 127.0.0.1:40123 -> 8080
        let local = line.split([':', ' ']).nth(3).and_then(|local| local.parse().ok());
        let local = local.unwrap_or_else(|| panic!("no port in {line:?}"));
        // Kept open: what is said for every connection would have nowhere to go.
        client.stdout = Some(lines.into_inner().into_inner());
        Self { client, local, err: Vec::new() }
    }

    /// Waits for its end, which does not come; its error output.
    async fn ended(&mut self) -> String {
        let mut err = self.client.stderr.take().unwrap();
        let _ = err.read_to_end(&mut self.err).await;
        String::from_utf8_lossy(&self.err).into_owned()
    }

    async fn says(&mut self, text: &str) {
        read_until(self.client.stderr.as_mut().unwrap(), &mut self.err, text).await;
    }
}

/// The pod's side of a forwarded connection: gives back the body of each request. Ends when the client asks for it.
async fn echo(connection: TcpStream) {
    let mut connection = BufReader::new(connection);
    while let Some((head, body)) = message(&mut connection).await {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all(&[answer.as_bytes(), &body].concat()).await.unwrap();
        if head.contains("Connection: close") {
            return;
        }
    }
}

/// Two requests over one connection, which the pod's side then ends.
async fn exchange(port: u16, number: usize) {
    let mut connection = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap());
    let body = noise(BODY + number);
    for more in ["keep-alive", "close"] {
        let head = format!("POST / HTTP/1.1\r\nConnection: {more}\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        let (_, got) = message(&mut connection).await.expect("an answer");
        assert_same(&got, &body);
    }
    let mut rest = Vec::new();
    let end = tokio::time::timeout(END_PATIENCE, connection.read_to_end(&mut rest)).await;
    end.expect("the pod's side has ended the connection, the client has not").unwrap();
    assert_eq!(rest, b"", "after the last answer");
}

/// The head and the body of an HTTP message; nothing when the connection is over.
async fn message(connection: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head).await.unwrap() == 0 {
            assert_eq!(head, "", "the connection ended in a head");
            return None;
        }
    }
    let length = head.split_once("Content-Length: ").unwrap().1.split_once("\r\n").unwrap().0;
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).await.expect("the whole body");
    Some((head, body))
}

/// A terminal with a client on it, as its user sees it.
struct Screen {
    terminal: pty_process::Pty,
    seen: String,
}

impl Screen {
    async fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).await.unwrap();
    }

    async fn shows(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.more().await, "{text:?} was not shown: {:?}", self.seen);
        }
    }

    async fn drain(&mut self) {
        while self.more().await {}
    }

    /// Reads on; whether there is anybody to show something. Reading fails when the last holder of the terminal is gone.
    async fn more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let count = self.terminal.read(&mut bytes).await.unwrap_or(0);
        self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        count > 0
    }
}

/// Bytes of every value in no order that a buffer's edge could hide in.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes
}

/// Makes a tree of files; what is in it.
fn plant(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = [
        ("noise", noise(1_500_000)),
        ("empty", Vec::new()),
        ("with a space", b"text\n".to_vec()),
        ("deep/er/file", noise(10_000)),
    ];
    let mut planted = BTreeMap::new();
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        planted.insert(PathBuf::from(name), bytes);
    }
    planted
}

fn assert_same_files(root: &Path, want: &BTreeMap<PathBuf, Vec<u8>>) {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(found.iter().eq(want.keys()), "other files: {found:?}");
    for (name, bytes) in want {
        assert_same(&fs::read(root.join(name)).unwrap(), bytes);
    }
}

/// As `assert_eq!`, without megabytes of message.
fn assert_same(got: &[u8], want: &[u8]) {
    let differs = got.iter().zip(want).position(|(got, want)| got != want);
    assert!(
        differs.is_none() && got.len() == want.len(),
        "{} bytes instead of {}; the first other one is at {differs:?}",
        got.len(),
        want.len(),
    );
}
