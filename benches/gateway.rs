//! What podgate costs: the same work through it and against its node endpoint directly, in one run.
//!
//! Four processes, so that the operating system's own accounts tell who spent what: this one is the client, one
//! child is a node endpoint, two are gateways (full work: TLS on both sides, client certificate, RBAC, locate, end
//! record), the second of which records every session, stdin too, signed and compressed, into a local folder. CPU is
//! user and system time of the child from `/proc/PID/stat`, memory its `VmRSS`. Machines differ and are shared: compare
//! the columns of one run, not numbers of two. benches/README.md says how each figure is taken. Words in the arguments
//! choose rows. With `PODGATE_BENCH_CORES=off` connections live on the runtime of the process, to see what cores are worth.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use podgate::app::{Gateway, Ground, recording};
use podgate::audit::Audit;
use podgate::authn::Methods;
use podgate::config::Config;
use podgate::config::recording::Demand;
use podgate::dev::cluster::DevCluster;
use podgate::dev::manifests;
use podgate::dev::node::{Endpoint, Settings};
use podgate::dev::state::{Ask, State};
use podgate::drain::Drain;
use podgate::policy::Policy;
use podgate::recording::facts::Stdin;
use podgate::recording::keys::SigningKey;
use podgate::reload::Live;
use podgate::telemetry::Metrics;
use podgate::tls::{self, ClientVerifier, Clients};
use podgate::upstream;
use podgate::wire::http1::ResponseHead;
use podgate::wire::spdy::{Decoder, Encoder, Frame, Headers};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const SETUPS: usize = 400;
const SETUPS_AT_ONCE: usize = 8;
const GIB: u64 = 1 << 30;
/// Bulk copies each way; one after the other in turn, because machines change while they run.
const ROUNDS: usize = 5;
const ROUND_TRIPS: usize = 3000;
const IDLE: usize = 1000;

/// Through podgate, through podgate that records, and to the node directly.
const WAYS: usize = 3;

/// Bytes of the files that are read over and over: more than any compressor looks back.
const FILE: usize = 64 << 20;

/// Kernel ticks per second in `/proc/PID/stat`: fixed at 100 for user space on Linux.
const TICKS: f64 = 100.0;

type Io = TlsStream<TcpStream>;

fn main() {
    let role = std::env::var("PODGATE_BENCH_ROLE").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        match role.as_str() {
            "node" => node().await,
            "gateway" => gateway(false).await,
            "recorder" => gateway(true).await,
            _ => client().await,
        }
    });
}

// === the two children ===

fn folder() -> PathBuf {
    std::env::var_os("PODGATE_BENCH_DIR").expect("PODGATE_BENCH_DIR names the state folder").into()
}

/// Opens the state for its keys. The parent has made it and let go of it.
fn state() -> State {
    State::open(&folder(), &Ask { hosts: vec!["127.0.0.1".into()], now: SystemTime::now() })
        .expect("open the state")
}

/// Tells the parent an address and waits until it goes away.
async fn announce(addr: SocketAddr) {
    println!("{addr}");
    let gone = tokio::task::spawn_blocking(|| std::io::Read::read(&mut std::io::stdin(), &mut [0]));
    let _ = gone.await;
}

async fn node() {
    let state = state();
    let cluster = DevCluster::new(manifests::builtin().expect("the built-in manifests"));
    let clients = Clients::Require(state.node_client_roots());
    let tls = tls::server(state.node_server(), &[tls::HTTP1], clients).expect("TLS");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let dir = state.pods_dir();
    let endpoint = Endpoint::bind(any, tls, "node-a", cluster.store().clone(), dir, Settings::default());
    let endpoint = endpoint.await.expect("bind the node endpoint");
    let (addr, drain) = (endpoint.local_addr(), Drain::new());
    drop(state);
    drain.spawn(endpoint.run(drain.clone()));
    announce(addr).await;
    drain.cut();
    drain.finish(Duration::ZERO).await;
}

async fn gateway(records: bool) {
    let node: SocketAddr = std::env::var("PODGATE_BENCH_NODE").expect("a node").parse().expect("an address");
    let state = state();
    let cluster = Arc::new(DevCluster::new(manifests::builtin().expect("the built-in manifests")));
    cluster.store().set_node_endpoint("node-a", node).expect("node-a is built in");
    let mut ground = Ground {
        policy: Arc::new(Policy::open(Demand::default())),
        grants: None,
        cluster,
        server_tls: Live::fixed(tls::server(state.api_server(), &[tls::HTTP1], Clients::Ask).expect("TLS")),
        authn: Methods {
            certificates: Some(Live::fixed(ClientVerifier::new(state.client_roots()).expect("a verifier"))),
            ..Methods::default()
        },
        route: upstream::Route::kubelet(
            tls::client(Some(state.kubelet_client()), state.node_roots(), false).expect("TLS"),
        ),
        ready: Vec::new(),
        metrics: Metrics::new(),
        audit: Audit::off(),
        recordings: None,
        sharing: None,
        background: Drain::new(),
        cores: match std::env::var("PODGATE_BENCH_CORES").as_deref() {
            Ok("off") => None,
            _ => Some(podgate::cores::Cores::start(0).expect("start threads")),
        },
    };
    let mut config = Config::default();
    if records {
        let own = folder().with_file_name("recordings");
        let key = own.join("signing.pem");
        let pem = SigningKey::generate().and_then(|key| key.to_private_pem()).expect("make a key");
        std::fs::create_dir(&own).and_then(|()| std::fs::write(&key, pem)).expect("write a key");
        config.recording.enabled = true;
        config.recording.signing_key_file = Some(key);
        config.recording.spool.dir = Some(own.join("spool"));
        // The client removes them, of which the spool knows nothing.
        config.recording.spool.max_bytes = u64::MAX;
        config.recording.default.stdin = Stdin::All;
        ground.policy = Arc::new(Policy::open(config.recording.default));
        ground.recordings =
            recording::open(&config.recording, &ground.background, &ground.metrics).expect("open a spool");
    }
    config.api.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.admin.listen = (Ipv4Addr::LOCALHOST, 0).into();
    // The idle ones are all of one caller.
    config.session.max_sessions_per_caller = 2 * IDLE;
    drop(state);
    let gateway = Gateway::start(&config, ground, Drain::new()).await.expect("start the gateway");
    announce(gateway.api).await;
    gateway.drain.cut();
    gateway.stop(Duration::ZERO).await;
}

struct Role {
    child: Child,
    addr: SocketAddr,
    _stdin: ChildStdin,
}

impl Role {
    fn start(role: &str, dir: &Path, node: Option<SocketAddr>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.env("PODGATE_BENCH_ROLE", role).env("PODGATE_BENCH_DIR", dir);
        if let Some(node) = node {
            command.env("PODGATE_BENCH_NODE", node.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start a child");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("the child's address");
        let addr =
            line.trim().parse().unwrap_or_else(|_| panic!("{role} said {line:?} instead of an address"));
        let stdin = child.stdin.take().expect("a pipe");
        Self { child, addr, _stdin: stdin }
    }

    /// CPU seconds so far, user and system, all threads.
    fn cpu(&self) -> f64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the child lives");
        let fields: Vec<&str> =
            stat.rsplit(')').next().expect("a name in parentheses").split_whitespace().collect();
        // Fields 14 and 15 of proc_pid_stat(5); the list begins at field 3.
        let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("a number")).sum();
        ticks / TICKS
    }

    /// Resident memory in KiB.
    fn memory(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the child lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === the client ===

/// One way to the same pod.
#[derive(Clone)]
struct Route {
    name: &'static str,
    addr: SocketAddr,
    tls: TlsConnector,
    target: fn(&str) -> String,
}

/// An open session.
struct Session {
    io: Io,
    decoder: Decoder,
    buffer: BytesMut,
    stdin: u32,
}

impl Route {
    async fn open(&self, command: &[&str], stdin: bool) -> Session {
        let word = |word: &&str| format!("command={}&", utf8_percent_encode(word, NON_ALPHANUMERIC));
        let query: String = command.iter().map(word).collect();
        let tcp = TcpStream::connect(self.addr).await.expect("connect");
        tcp.set_nodelay(true).expect("a connected socket");
        let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
        let mut io = self.tls.connect(name, tcp).await.expect("TLS");
        let flags = match (self.name, stdin) {
            ("node", true) => "input=1&output=1",
            ("node", false) => "output=1",
            (_, true) => "stdin=true&stdout=true",
            (_, false) => "stdout=true",
        };
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n",
            (self.target)(&format!("{query}{flags}"))
        );
        io.write_all(request.as_bytes()).await.expect("write the request");
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let head = loop {
            assert_ne!(
                io.read_buf(&mut buffer).await.expect("read the answer"),
                0,
                "closed before an answer"
            );
            if let Some(head) = ResponseHead::parse(&buffer).expect("an HTTP answer") {
                break head;
            }
        };
        assert_eq!(head.status, 101, "{}", String::from_utf8_lossy(&buffer));
        let _ = buffer.split_to(head.len);
        let mut encoder = Encoder::new();
        let mut out = BytesMut::new();
        let kinds: &[&str] = if stdin { &["error", "stdin", "stdout"] } else { &["error", "stdout"] };
        for (index, kind) in kinds.iter().enumerate() {
            let id = 2 * u32::try_from(index).expect("a few streams") + 1;
            let headers = Headers::new().with("streamType", *kind);
            encoder.syn_stream(&mut out, id, &headers).expect("a short header");
        }
        io.write_all(&out).await.expect("open the streams");
        let mut session = Session { io, decoder: Decoder::new(), buffer, stdin: 3 };
        for _ in kinds {
            assert!(
                matches!(session.frame().await, Some(Frame::SynReply { .. })),
                "a reply for every stream"
            );
        }
        session
    }
}

impl Session {
    /// The next frame; `None` at the end.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).expect("SPDY") {
                return Some(frame);
            }
            self.buffer.reserve(64 * 1024);
            if self.io.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Reads to the end; bytes of output, without the result.
    async fn drain(mut self) -> u64 {
        let (mut bytes, mut result) = (0, Vec::new());
        while let Some(frame) = self.frame().await {
            match frame {
                Frame::Data { stream: 1, bytes: piece, .. } => result.extend_from_slice(&piece),
                Frame::Data { bytes: piece, .. } => bytes += piece.len() as u64,
                Frame::GoAway { .. } => break,
                _ => {}
            }
        }
        let result = String::from_utf8_lossy(&result);
        assert!(result.contains("Success"), "the command failed: {result:?}");
        bytes
    }

    async fn send(&mut self, bytes: &[u8], fin: bool) {
        let head = Encoder::data_head(self.stdin, bytes.len(), fin);
        self.io.write_all(&head).await.expect("write");
        self.io.write_all(bytes).await.expect("write");
        self.io.flush().await.expect("write");
    }
}

async fn setups(route: &Route) -> f64 {
    let started = Instant::now();
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..SETUPS_AT_ONCE {
        let route = route.clone();
        lanes.spawn(async move {
            for _ in 0..SETUPS / SETUPS_AT_ONCE {
                route.open(&["true"], false).await.drain().await;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.expect("a lane of set-ups");
    }
    SETUPS as f64 / started.elapsed().as_secs_f64()
}

/// The file over and over, or zeros.
async fn down(route: &Route, content: Option<&Path>) -> f64 {
    let started = Instant::now();
    let script = match content {
        Some(file) => format!("for i in $(seq {}); do cat {}; done", GIB / FILE as u64, file.display()),
        None => format!("head -c {GIB} /dev/zero"),
    };
    let session = route.open(&["sh", "-c", &script], false).await;
    assert_eq!(session.drain().await, GIB, "every byte arrives");
    started.elapsed().as_secs_f64()
}

async fn up(route: &Route) -> f64 {
    let started = Instant::now();
    let mut session = route.open(&["sh", "-c", "wc -c"], true).await;
    let piece = Bytes::from(vec![0; 32 * 1024]);
    for _ in 0..GIB / piece.len() as u64 {
        session.send(&piece, false).await;
    }
    session.send(b"", true).await;
    let mut said = Vec::new();
    while let Some(frame) = session.frame().await {
        match frame {
            Frame::Data { stream: 5, bytes, .. } => said.extend_from_slice(&bytes),
            Frame::GoAway { .. } => break,
            _ => {}
        }
    }
    assert_eq!(String::from_utf8_lossy(&said).trim(), GIB.to_string(), "every byte arrives");
    started.elapsed().as_secs_f64()
}

/// Microseconds of each round trip of one byte, sorted.
async fn keystrokes(route: &Route) -> Vec<f64> {
    let mut session = route.open(&["cat"], true).await;
    let mut taken = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        session.send(b"k", false).await;
        while !matches!(session.frame().await, Some(Frame::Data { stream: 5, .. })) {}
        taken.push(started.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    taken
}

async fn idle(route: &Route) -> Vec<Session> {
    let mut sessions = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        sessions.push(route.open(&["sleep", "600"], true).await);
    }
    sessions
}

/// Lines as a web server logs them: no two alike, compressible about as much as logs are.
fn log_lines() -> Vec<u8> {
    let (mut text, mut seed) = (Vec::with_capacity(FILE + 256), 1_u64);
    while text.len() < FILE {
        // A linear congruential generator (Knuth's MMIX): the same bytes in every run.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [a, b, c, d, e, f, ..] = seed.to_be_bytes();
        let at = text.len();
        writeln!(
            text,
            "10.{a}.{b}.{c} - - [21/Nov/2026:10:{:02}:{:02} +0000] \"GET /shop/items/{seed:x}?page={d} HTTP/1.1\" \
             {} {at} \"-\" \"Mozilla/5.0 (X11; Linux x86_64)\" {}.{:03}",
            d % 60,
            e % 60,
            if f > 30 { 200 } else { 404 },
            e % 3,
            u16::from(f) * 3,
        )
        .expect("memory takes everything");
    }
    text.truncate(FILE);
    text
}

/// The one in the middle.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Whether a row is asked for: without words in the arguments all are, else those with one of them in their name.
fn wanted(row: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| row.contains(&word))
}

async fn client() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("state");
    let ask = Ask { hosts: vec!["127.0.0.1".into()], now: SystemTime::now() };
    let state = State::open(&dir, &ask).expect("make the state");
    let admin =
        tls::Identity::from_files(&dir.join("admin.crt"), &dir.join("admin.key")).expect("admin's keys");
    let to_api = TlsConnector::from(tls::client(Some(&admin), state.client_roots(), false).expect("TLS"));
    let to_node = TlsConnector::from(
        tls::client(Some(state.kubelet_client()), state.node_roots(), false).expect("TLS"),
    );
    // The folder is locked while it is open, and the children open it.
    drop(state);
    let node = Role::start("node", &dir, None);
    let gateway = Role::start("gateway", &dir, Some(node.addr));
    let recorder = Role::start("recorder", &dir, Some(node.addr));
    let routes = [
        Route {
            name: "podgate",
            addr: gateway.addr,
            tls: to_api.clone(),
            target: |query| format!("/api/v1/namespaces/default/pods/web/exec?{query}"),
        },
        Route {
            name: "recorded",
            addr: recorder.addr,
            tls: to_api,
            target: |query| format!("/api/v1/namespaces/default/pods/web/exec?{query}"),
        },
        Route {
            name: "node",
            addr: node.addr,
            tls: to_node,
            target: |query| format!("/exec/default/web/web?{query}"),
        },
    ];
    println!("{:44}{:>16}{:>16}{:>16}", "", "through podgate", "recorded", "node directly");
    let row = |what: &str, values: [f64; WAYS], digits: usize| {
        println!("{what:44}{:16.digits$}{:16.digits$}{:16.digits$}", values[0], values[1], values[2]);
        std::io::stdout().flush().expect("a terminal or a pipe");
    };
    // What the gateway on that way has spent, or both, of which the one that is not on it rests.
    let spent = || (gateway.cpu() + recorder.cpu(), node.cpu());

    let spool = folder.path().join("recordings/spool");
    let (log, noise) = (folder.path().join("log"), folder.path().join("noise"));
    std::fs::write(&log, log_lines()).expect("write a file");
    let mut bytes = vec![0; FILE];
    aws_lc_rs::rand::fill(&mut bytes).expect("randomness");
    std::fs::write(&noise, bytes).expect("write a file");

    // Warm up: pages, caches, the first growth of buffers.
    for route in &routes {
        route.open(&["true"], false).await.drain().await;
    }
    if wanted("set-ups") {
        let (mut rate, mut own, mut behind) = ([0.0; WAYS], [0.0; WAYS], [0.0; WAYS]);
        for (index, route) in routes.iter().enumerate() {
            let before = spent();
            rate[index] = setups(route).await;
            let after = spent();
            own[index] = (after.0 - before.0) * 1e3 / SETUPS as f64;
            behind[index] = (after.1 - before.1) * 1e3 / SETUPS as f64;
        }
        row("session set-ups per second", rate, 0);
        row("  CPU ms per set-up, gateway", own, 2);
        row("  CPU ms per set-up, node", behind, 2);
    }

    let bulk = [("down, zeros", None), ("down, a log", Some(&log)), ("down, random", Some(&noise))];
    let bulk = bulk.map(|(what, content)| (what, Some(content))).into_iter().chain([("up", None)]);
    for (what, content) in bulk.filter(|(what, _)| wanted(what)) {
        let [mut seconds, mut own, mut behind] = [[(); WAYS]; 3].map(|figures| figures.map(|()| Vec::new()));
        let mut dearer = Vec::new();
        for round in 0..ROUNDS {
            for (index, route) in routes.iter().enumerate() {
                let before = spent();
                seconds[index].push(match content {
                    Some(content) => down(route, content.map(PathBuf::as_path)).await,
                    None => up(route).await,
                });
                let after = spent();
                own[index].push(after.0 - before.0);
                behind[index].push(after.1 - before.1);
            }
            dearer.push(own[1][round] / own[0][round]);
            for path in std::fs::read_dir(&spool).expect("a spool").flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "zst") {
                    std::fs::remove_file(path).expect("remove a recording");
                }
            }
        }
        row(&format!("seconds per GiB {what}"), seconds.map(median), 2);
        row("  CPU seconds per GiB, gateway", own.map(median), 2);
        println!("{:44}{:32.2}", "  of that recorded to not recorded", median(dearer));
        row("  CPU seconds per GiB, node", behind.map(median), 2);
    }

    if wanted("keystroke") {
        let mut times = Vec::new();
        for route in &routes {
            times.push(keystrokes(route).await);
        }
        let at = |share: f64| [0, 1, 2].map(|index| times[index][(ROUND_TRIPS as f64 * share) as usize]);
        row("keystroke round trip, us, p50", at(0.50), 0);
        row("keystroke round trip, us, p99", at(0.99), 0);
    }

    if !wanted("idle") {
        return;
    }
    let (mut own, mut behind) = ([0.0; WAYS], [0.0; WAYS]);
    for (index, route) in routes.iter().enumerate() {
        let used = || gateway.memory() + recorder.memory();
        let before = (used(), node.memory());
        let sessions = idle(route).await;
        own[index] = (used() - before.0) / IDLE as f64;
        behind[index] = (node.memory() - before.1) / IDLE as f64;
        drop(sessions);
    }
    row(&format!("KiB per idle session at {IDLE}, gateway"), own, 1);
    row(&format!("KiB per idle session at {IDLE}, node"), behind, 1);
}
