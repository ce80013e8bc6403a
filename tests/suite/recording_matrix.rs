//! Recording, for every way a session can be carried and every mode of a command: what is recorded of a channel is what
//! was delivered, whatever the client says in its headers, and what could not be read is refused while nobody else has
//! heard of it.

mod peers;

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use podgate::config::recording::{Demand, Record};
use podgate::config::{Config, Translate};
use podgate::recording::container::{Reader, Trust};
use podgate::recording::facts::{Facts, Stdin};
use podgate::recording::keys::SigningKey;
use podgate::testing::gateway::{config, request, send};
use podgate::testing::{Far, Pki, TestGateway, soon, until};
use podgate::wire::channel::Subprotocol;
use podgate::wire::remotecommand::{Asked, Outcome, Protocol, Resize, ResizeDecoder, TerminalSize};
use podgate::wire::tape::{self, Taped};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use crate::copy::PODS;
use crate::dev::{self, Running};
use crate::kubectl;
use peers::{Chance, Heard, KEY, Plan};

/// A folder with a key, where recordings come to lie.
struct Kept {
    folder: tempfile::TempDir,
    key: SigningKey,
}

/// How a session is carried.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// SPDY on both sides.
    Spdy(Protocol),
    /// WebSocket on both sides.
    WebSocket(Subprotocol),
    /// WebSocket, and this SPDY behind podgate: of v5 at once, of others where the far side refuses WebSocket.
    Translated(Subprotocol, Protocol),
}

/// Header lines of a client that would like not to be recorded. None of them changes who can be understood.
const FORGED: [&str; 8] = [
    "",
    "Kubectl-Command: kubectl cp\r\n",
    "KUBECTL-COMMAND: kubectl cp\r\nkubectl-command: kubectl exec\r\nKubectl-Session: x\r\n",
    "X-Stream-Protocol-Version: v9.channel.k8s.io\r\nx-stream-protocol-version: , foo\r\n",
    "Connection: keep-alive, uPGRADE\r\n",
    "Sec-WebSocket-Protocol: v9.channel.k8s.io\r\nsec-websocket-protocol: foo\r\n",
    "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-Websocket-Extensions: foo\r\n",
    "X-Podgate-Record: off\r\nConnection: close\r\nTE: trailers\r\nAccept-Encoding: gzip\r\n",
];

/// What kubectl asks for in each mode: its name, subresource and query, and the streams.
const MODES: [(&str, &str, &str); 6] = [
    ("tty", "exec", "command=sh&stdin=1&stdout=1&tty=1"),
    ("-i", "exec", "command=sh&stdin=1&stdout=1&stderr=1"),
    ("plain", "exec", "command=id&stdout=1&stderr=1"),
    ("attach", "attach", "stdin=1&stdout=1&stderr=1"),
    ("cp, there", "exec", "command=tar&command=-xmf&command=-&stdin=1&stdout=1&stderr=1"),
    ("cp, back", "exec", "command=tar&command=cf&command=-&stdout=1&stderr=1"),
];

// === impl Kept ===

impl Kept {
    fn new() -> Self {
        let kept = Self { folder: tempfile::tempdir().unwrap(), key: SigningKey::generate().unwrap() };
        std::fs::write(kept.folder.path().join("key.pem"), kept.key.to_private_pem().unwrap().as_bytes())
            .unwrap();
        kept
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    /// Records everything, strictly.
    fn recording(&self, config: Config) -> Config {
        let mut config = config;
        config.recording.enabled = true;
        config.recording.signing_key_file = Some(self.folder.path().join("key.pem"));
        config.recording.spool.dir = Some(self.spool());
        config.recording.default = Demand { record: Record::Strict, stdin: Stdin::All };
        config
    }

    /// The one recording that is there, which is taken away.
    async fn take(&self) -> (Facts, Taped) {
        until("a recording", || recordings(&self.spool()).len() == 1).await;
        let path = recordings(&self.spool()).remove(0);
        let read = read(&path, Trust::Keys(&[self.key.verifying().clone()]));
        std::fs::remove_file(path).unwrap();
        read
    }

    /// Whether nothing is left of anything.
    fn is_empty(&self) -> bool {
        let files = std::fs::read_dir(self.spool()).unwrap().map(|file| file.unwrap().file_name());
        !files.into_iter().any(|name| name.to_string_lossy().contains(".zst"))
    }
}

/// Closed recordings in a folder.
fn recordings(folder: &Path) -> Vec<PathBuf> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for file in files {
        let path = file.unwrap().path();
        if path.is_dir() {
            found.extend(recordings(&path));
        } else if path.extension().is_some_and(|end| end == "zst") {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path, trust: Trust<'_>) -> (Facts, Taped) {
    let mut reader = Reader::open(File::open(path).unwrap(), trust, &[]).unwrap();
    let mut taped = Taped::default();
    while let Some(chunk) = reader.next().unwrap() {
        taped.read(tape::pieces(&chunk.tape.unwrap()));
    }
    assert!(reader.ending().is_some(), "whole");
    (reader.facts().clone(), taped)
}

fn sizes(mut bytes: &[u8]) -> Vec<TerminalSize> {
    let mut decoder = ResizeDecoder::new();
    let sizes = std::iter::from_fn(|| match decoder.decode(&mut bytes) {
        Resize::Size(size) => Some(size),
        Resize::More => None,
        Resize::Ended => panic!("no sizes"),
    });
    sizes.collect()
}

/// What each side says in this mode, by chance. A copy, and what a program says, is of any bytes.
fn plan(way: Way, query: &str, seed: u64) -> Plan {
    let mut chance = Chance::new(seed);
    let asked = Asked {
        stdin: query.contains("stdin=1"),
        stdout: query.contains("stdout=1"),
        stderr: query.contains("stderr=1"),
        tty: query.contains("tty=1"),
    };
    let protocol = match way {
        Way::Spdy(protocol) | Way::Translated(_, protocol) => protocol,
        Way::WebSocket(subprotocol) => subprotocol.version(),
    };
    let resizes = asked.tty && (matches!(way, Way::WebSocket(_)) || protocol.supports_resize());
    let size = |at: u16| TerminalSize { width: 80 + at, height: 24 }.to_bytes();
    let sizes = if resizes { (0..5).flat_map(size).collect() } else { Vec::new() };
    let text = |wanted: bool, bytes: Vec<u8>| if wanted { bytes } else { Vec::new() };
    Plan {
        asked,
        protocol,
        stdin: text(asked.stdin, chance.bytes(30_000)),
        sizes,
        stdout: text(asked.stdout, chance.bytes(80_000)),
        stderr: text(asked.stderr && !asked.tty, chance.bytes(5_000)),
        outcome: if chance.below(2) == 0 { Outcome::Success } else { Outcome::exit(3) },
        seed,
    }
}

/// The request of a client, with one forgery.
fn asking(way: Way, subresource: &str, query: &str, forged: &str) -> Vec<u8> {
    let target = format!("/api/v1/namespaces/default/pods/web/{subresource}?{query}");
    match way {
        Way::Spdy(_) => {
            // What a kubectl says since 1.29, in any order of lines.
            let protocols = ["v5", "v4", "v3", "v2"]
                .map(|version| format!("X-Stream-Protocol-Version: {version}.channel.k8s.io\r\n"))
                .concat();
            let headers = format!(
                "Connection: Upgrade\r\nuPGRADE: spdy/3.1\r\n{protocols}\
                 X-Stream-Protocol-Version: channel.k8s.io\r\n{forged}"
            );
            request(&format!("POST {target}"), &headers)
        }
        Way::WebSocket(subprotocol) | Way::Translated(subprotocol, _) => {
            let offered = match subprotocol.name() {
                "" => String::new(),
                // Unknown ones beside it, as old JavaScript clients offer.
                name => format!("Sec-WebSocket-Protocol: v9.channel.k8s.io, {name}, v3.channel.k8s.io\r\n"),
            };
            // Behind a line of the client's own a second one is read by nobody; alone it would be the first.
            let forged =
                if offered.is_empty() && forged.contains("ec-WebSocket-Protocol") { "" } else { forged };
            let headers = format!(
                "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: {KEY}\r\n\
                 Sec-WebSocket-Version: 13\r\n{offered}{forged}"
            );
            request(&format!("GET {target}"), &headers)
        }
    }
}

/// Reads the head of an answer; gives what came behind it.
async fn switched(io: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            return bytes.split_off(at + 4);
        }
        assert_ne!(io.read_buf(&mut bytes).await.unwrap(), 0, "{}", String::from_utf8_lossy(&bytes));
    }
}

/// All modes on one way, one after the other.
async fn carried(way: Way) {
    let (kept, pki) = (Kept::new(), Arc::new(Pki::new()));
    let (now, (said, mut heard)) = (Arc::new(Mutex::new(None::<Plan>)), mpsc::unbounded_channel::<Heard>());
    let planned = now.clone();
    let far = Far::by_head(&pki, move |mut io, head| {
        let (said, planned) = (said.clone(), planned.clone());
        async move {
            let plan = planned.lock().unwrap().clone().unwrap();
            let offers = match head.starts_with("GET ") {
                true => "sec-websocket-protocol",
                false => "x-stream-protocol-version",
            };
            let strange = head.lines().map(str::to_ascii_lowercase).find(|line| {
                let unknown = ["v9", "foo", "v5.channel"].iter().any(|name| line.contains(name));
                line.contains("extensions") || line.starts_with(offers) && unknown
            });
            let own = matches!(way, Way::Translated(..) | Way::WebSocket(Subprotocol::V5));
            assert!(own || strange.is_none(), "offered to the far side: {strange:?}");
            let heard = match way {
                Way::WebSocket(subprotocol) => peers::ws_far(io, subprotocol, &plan).await,
                Way::Translated(..) if head.starts_with("GET ") => {
                    send(&mut io, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
                    return;
                }
                Way::Spdy(_) | Way::Translated(..) => peers::spdy_far(io, &plan).await,
            };
            said.send(heard).unwrap();
        }
    })
    .await;
    let mut config = kept.recording(config());
    if matches!(way, Way::WebSocket(Subprotocol::V5)) {
        config.upstream.translate = Translate::WhenNeeded;
    }
    let gateway = TestGateway::facing(&far, config, pki).await;
    if matches!(way, Way::WebSocket(Subprotocol::V5)) {
        gateway.cluster.v5_node("n", far.addr.port());
    }
    for (at, (mode, subresource, query)) in MODES.into_iter().enumerate() {
        for again in 0..2 {
            let mut bytes = [0; 8];
            aws_lc_rs::rand::fill(&mut bytes).unwrap();
            let seed = u64::from_le_bytes(bytes);
            let forged = FORGED[(2 * at + again + usize::from(bytes[0])) % FORGED.len()];
            let plan = plan(way, query, seed);
            let what = format!("{way:?} {mode}, {forged:?}, seed {seed}");
            *now.lock().unwrap() = Some(plan.clone());
            let mut io = gateway.connect_as("ana").await;
            send(&mut io, &asking(way, subresource, query, forged)).await;
            let early = switched(&mut io).await;
            let client = match way {
                Way::Spdy(_) => peers::spdy_client(io, &early, &plan).await,
                Way::WebSocket(subprotocol) | Way::Translated(subprotocol, _) => {
                    peers::ws_client(io, &early, subprotocol, &plan).await
                }
            };
            let far = heard.recv().await.unwrap();
            let (facts, taped) = kept.take().await;
            assert_eq!((facts.subresource.as_str(), facts.tty), (subresource, plan.asked.tty), "{what}");

            // All arrived, and what arrived is what is recorded.
            assert!(far.stdin == plan.stdin && far.sizes == plan.sizes, "{what}");
            assert!(client.stdout == plan.stdout && client.stderr == plan.stderr, "{what}");
            assert!(taped.stdin == far.stdin, "{what}: {} and {}", taped.stdin.len(), far.stdin.len());
            assert_eq!(sizes(&taped.sizes), sizes(&far.sizes), "{what}");
            assert_eq!(taped.stdin_ends, far.stdin_ends, "{what}");
            assert!(
                taped.stdout == client.stdout,
                "{what}: {} and {}",
                taped.stdout.len(),
                client.stdout.len()
            );
            assert!(taped.stderr == client.stderr, "{what}");
            assert_eq!(taped.result, client.result, "{what}");
        }
    }
    until("nothing else is there", || kept.is_empty()).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_is_what_was_delivered_in_spdy_of_every_version() {
    for protocol in Protocol::SPDY {
        carried(Way::Spdy(protocol)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_is_what_was_delivered_in_websocket_of_every_subprotocol() {
    for subprotocol in Subprotocol::RUNTIME {
        carried(Way::WebSocket(subprotocol)).await;
    }
    carried(Way::WebSocket(Subprotocol::V5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_is_what_was_delivered_where_podgate_translates() {
    carried(Way::Translated(Subprotocol::V5, Protocol::V4)).await;
    carried(Way::Translated(Subprotocol::V5, Protocol::V2)).await;
    carried(Way::Translated(Subprotocol::V4Base64, Protocol::V4)).await;
    carried(Way::Translated(Subprotocol::V4, Protocol::V3)).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_before_the_far_side_is_contacted() {
    let (kept, pki) = (Kept::new(), Arc::new(Pki::new()));
    let far = Far::start(&pki, |_| async { panic!("nobody is to come here") }).await;
    let gateway = TestGateway::facing(&far, kept.recording(config()), pki).await;
    let exec = "/api/v1/namespaces/default/pods/web/exec?command=id&stdout=1";
    let forward = "/api/v1/namespaces/default/pods/web/portforward";
    let ws = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
    );
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let many = (1..=129).map(|port| format!("ports={port}&")).collect::<String>();
    let cases = [
        (format!("POST {exec}"), "Connection: Upgrade\r\nUpgrade: foo\r\n".to_owned()),
        (format!("POST {exec}"), "Connection: Upgrade\r\nUpgrade: SPDY/3.1, foo\r\n".to_owned()),
        (format!("POST {exec}"), "Connection: Upgrade\r\nUpgrade: SPDY/3\r\n".to_owned()),
        (format!("POST {exec}"), format!("{spdy}uPgRaDe: foo\r\n")),
        (format!("GET {exec}"), format!("{ws}Upgrade: SPDY/3.1\r\n")),
        (format!("POST {exec}"), String::new()),
        (format!("POST {exec}"), format!("{spdy}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n")),
        (format!("POST {exec}"), format!("{spdy}x-stream-protocol-version: V4.CHANNEL.K8S.IO\r\n")),
        (format!("GET {exec}"), format!("{ws}Sec-WebSocket-Protocol: v9.channel.k8s.io, foo\r\n")),
        (
            format!("GET {exec}"),
            format!("{ws}sec-WEBSOCKET-protocol: foo\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n"),
        ),
        (format!("GET {exec}"), format!("{ws}Sec-WebSocket-Protocol: V4.Channel.K8s.Io\r\n")),
        (format!("POST {forward}"), format!("{spdy}X-Stream-Protocol-Version: v4.channel.k8s.io\r\n")),
        (format!("GET {forward}"), format!("{ws}Sec-WebSocket-Protocol: SPDY/3.1+other.k8s.io\r\n")),
        (format!("GET {forward}?ports=80"), format!("{ws}Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n")),
        (format!("GET {forward}?{many}"), format!("{ws}Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n")),
    ];
    for (line, headers) in cases {
        for more in ["", "Kubectl-Command: kubectl cp\r\n"] {
            let answer = gateway.ask(&request(&line, &format!("{headers}{more}"))).await;
            assert!((400..500).contains(&answer.code()), "{line} {headers}: {}", answer.code());
        }
    }
    assert_eq!(far.accepted(), 0);
    until("nothing is left of what was refused", || kept.is_empty()).await;
    gateway.stop().await;
}

#[tokio::test]
async fn where_nothing_is_recorded_the_far_side_decides_what_it_speaks() {
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let target = "POST /api/v1/namespaces/default/pods/web/exec?command=id&stdout=1";
    let headers =
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n";
    assert_eq!(gateway.ask(&request(target, headers)).await.code(), 403);
    assert_eq!(far.accepted(), 1);
    gateway.stop().await;
}

/// A stream that podgate cannot tell from another ends the session, before the far side has heard of it.
#[tokio::test]
async fn streams_that_could_be_taken_for_others_end_a_session_that_is_recorded() {
    use bytes::BytesMut;
    use podgate::testing::frames;
    use podgate::wire::spdy::{Encoder, Headers};

    let (kept, pki) = (Kept::new(), Arc::new(Pki::new()));
    let (said, mut heard) = mpsc::unbounded_channel::<Vec<u8>>();
    let far = Far::start(&pki, move |mut io| {
        let said = said.clone();
        async move {
            send(&mut io, podgate::testing::far::SWITCHING).await;
            let mut all = Vec::new();
            while all.len() < frames::opening().len() {
                assert_ne!(io.read_buf(&mut all).await.unwrap(), 0);
            }
            send(&mut io, &frames::replies()).await;
            while let Ok(1..) = io.read_buf(&mut all).await {}
            said.send(all).unwrap();
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, kept.recording(config()), pki).await;
    let (mut encoder, mut second) = (Encoder::new(), BytesMut::new());
    // The compression goes on from the three streams before.
    for id in [1, 3, 5] {
        encoder.syn_stream(&mut BytesMut::new(), id, &Headers::new().with("streamType", "stdout")).unwrap();
    }
    encoder.syn_stream(&mut second, 7, &Headers::new().with("streamType", "stdin")).unwrap();
    let mut io = gateway.connect_as("ana").await;
    let headers =
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    let target = "POST /api/v1/namespaces/default/pods/web/exec?command=sh&stdin=1&stdout=1";
    send(&mut io, &request(target, headers)).await;
    let mut early = switched(&mut io).await;
    send(&mut io, &frames::opening()).await;
    // All three are open.
    while early.len() < frames::replies().len() {
        assert_ne!(io.read_buf(&mut early).await.unwrap(), 0);
    }
    send(&mut io, &frames::data(frames::STDIN, b"seen")).await;
    send(&mut io, &second).await;
    let _ = io.write_unseen(&frames::data(7, b"unseen")).await;
    let mut told = Vec::new();
    let _ = io.read_to_end(&mut told).await;
    let (error, _) = frames::payload(&told, frames::ERROR);
    assert!(
        String::from_utf8_lossy(&error).contains("opens two streams of one type"),
        "{}",
        String::from_utf8_lossy(&told)
    );
    let far = heard.recv().await.unwrap();
    // Podgate ends the program's stdin, which is not on the tape.
    let hung_up = Encoder::data_head(frames::STDIN, 0, true);
    assert_eq!(far, [&frames::opening()[..], &frames::data(frames::STDIN, b"seen"), &hung_up].concat());
    let (_, taped) = kept.take().await;
    assert_eq!((&taped.stdin[..], &taped.result), (&b"seen"[..], &error));
    gateway.stop().await;
}

/// A write that the other side may not wait for.
trait Unseen {
    async fn write_unseen(&mut self, bytes: &[u8]) -> std::io::Result<()>;
}

impl Unseen for TlsStream<TcpStream> {
    async fn write_unseen(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }
}

/// Real kubectls against every kind of node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubectls_say_and_get_in_every_mode_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = dev::config(&folder);
    config.recording.enabled = true;
    config.recording.default = Demand { record: Record::Strict, stdin: Stdin::All };
    let dev = podgate::app::dev::Dev::start(&config).await.unwrap();
    let running = Running { dev, folder };
    let state = running.folder.path().join("state");
    let (store, mut seen) = (state.join("recordings"), HashSet::new());
    let mut take = async || {
        let new = |seen: &HashSet<PathBuf>| recordings(&store).into_iter().find(|path| !seen.contains(path));
        until("a recording", || new(&seen).is_some()).await;
        let path = new(&seen).unwrap();
        let read = read(&path, Trust::Anyone);
        seen.insert(path);
        read
    };
    let script = "cat; echo out; echo err >&2; exit 3";
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in PODS {
            let said = kubectl.feed(&["exec", "-i", pod, "--", "sh", "-c", script], b"in\0\xff").await;
            let (facts, taped) = take().await;
            assert_eq!((facts.pod.as_str(), facts.tty, said.status.code()), (pod, false, Some(3)));
            assert_eq!((&taped.stdin[..], taped.stdin_ends), (&b"in\0\xff"[..], 1), "{pod}");
            assert_eq!((&taped.stdout, &taped.stdout[..]), (&said.stdout, &b"in\0\xffout\n"[..]), "{pod}");
            assert_eq!(taped.stderr, b"err\n", "{pod}");
            let result = Outcome::parse(Protocol::V4, &taped.result);
            assert!(matches!(result, Ok(Outcome::Exit { code: 3, .. })), "{pod}: {result:?}");

            let said = kubectl.run(&["exec", pod, "--", "sh", "-c", "echo plain; echo err >&2"]).await;
            let (_, taped) = take().await;
            assert_eq!((said.out.as_str(), &taped.stdin[..]), ("plain\n", &b""[..]), "{pod}");
            assert_eq!((&taped.stdout[..], &taped.stderr[..]), (&b"plain\n"[..], &b"err\n"[..]), "{pod}");

            let (mut screen, mut child) = kubectl.on_screen(&["exec", "-it", pod, "--", "sh"]);
            let typed = ["echo ready-$((40+2))\r", "exit 5\r"];
            screen.types(typed[0]).await;
            screen.shows("ready-42").await;
            screen.types(typed[1]).await;
            screen.shows("exit code 5").await;
            soon("kubectl ends", child.wait()).await.unwrap();
            let (facts, taped) = take().await;
            assert!(facts.tty, "{pod}");
            // What is typed before kubectl has set its terminal up ends with another character.
            let stdin = String::from_utf8(taped.stdin).unwrap().replace('\n', "\r");
            assert_eq!(stdin, typed.concat(), "{pod}");
            let shown = String::from_utf8(taped.stdout).unwrap();
            assert!(
                shown.contains("ready-42") && screen.seen.contains(&shown),
                "{pod}: {shown:?} {:?}",
                screen.seen
            );
            assert!(sizes(&taped.sizes).contains(&TerminalSize { width: 100, height: 30 }), "{pod}");

            let mut child = kubectl.spawn(kubectl.command(&["attach", "-i", pod]).stdin(Stdio::piped()));
            let (mut stdin, mut answer) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let (mut said, mut got) = (Vec::new(), Vec::new());
            soon("an answer of the main process", async {
                // Attached once it answers; what comes before may be for nobody.
                while !contains(&got, b"got: recorded") {
                    stdin.write_all(b"recorded\n").await.unwrap();
                    said.extend_from_slice(b"recorded\n");
                    assert_ne!(answer.read_buf(&mut got).await.unwrap(), 0);
                }
            })
            .await;
            child.kill().await.unwrap();
            let (facts, taped) = take().await;
            assert_eq!(facts.subresource, "attach", "{pod}");
            assert!(said.starts_with(&taped.stdin) && !taped.stdin.is_empty(), "{pod}");
            assert!(taped.stdout.starts_with(&got), "{pod}: {got:?} {:?}", taped.stdout);

            // A copy is no exception, whatever its client calls itself.
            let here = tempfile::tempdir().unwrap();
            let file = here.path().join("file");
            let mut content = vec![0; 100_001];
            aws_lc_rs::rand::fill(&mut content).unwrap();
            std::fs::write(&file, &content).unwrap();
            let name = format!("{pod}:recorded-{}", content[0]);
            let said = kubectl.run(&["cp", file.to_str().unwrap(), &name]).await;
            assert_eq!(said.code, Some(0), "{}", said.err);
            // Some look first whether there is a folder of that name.
            while !contains(&take().await.1.stdin, &content) {}
            let back = here.path().join("back");
            let said = kubectl.run(&["cp", &name, back.to_str().unwrap()]).await;
            assert_eq!(said.code, Some(0), "{}", said.err);
            let (_, taped) = take().await;
            assert!(contains(&taped.stdout, &content), "{pod}: {} bytes", taped.stdout.len());
        }
    }
    running.stop().await;
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
