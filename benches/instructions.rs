//! How many instructions the codecs and the splice take for a KiB, and whether that is more than it was.
//!
//! Counted by valgrind, so that a busy machine changes nothing: each case runs twice as a process of its own, the second
//! time over twice as many bytes, and the difference is what counts. More than [`TOLERANCE`] above
//! `benches/instructions.csv` fails; `PODGATE_INSTRUCTIONS=write` writes that file anew, for whoever has a reason. What is
//! under test moves bytes between pipes in memory: TLS and the kernel are not in it.

#![allow(missing_docs, reason = "nobody reads documentation of a bench")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use podgate::audit::Trail;
use podgate::drain::Drain;
use podgate::session::limits::Limits;
use podgate::session::{Session, Sessions, Settings};
use podgate::telemetry::facts::Command as Argv;
use podgate::telemetry::{Facts, Metrics, Record};
use podgate::testing::frames::{self, STDIN, STDOUT};
use podgate::wire::channel::{self, Subprotocol};
use podgate::wire::link::spdy::SpdyLink;
use podgate::wire::link::translate::Translator;
use podgate::wire::link::ws::WsLink;
use podgate::wire::link::{Link, Runs, Timing};
use podgate::wire::remotecommand::{Asked, Outcome, Protocol, StreamType};
use podgate::wire::spdy::{self, Encoder, Frame};
use podgate::wire::ws::{self, MaskKey};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};

/// Part of what it was by which a case may be above it.
const TOLERANCE: f64 = 0.1;

/// Bytes that are said at once, as kubectl's copies do: in one message, or in small ones, which show what each costs.
const PIECE: usize = 32 * 1024;

/// Bytes of a small message.
const SMALL: usize = 256;

/// Pieces of a run; the second run has twice as many.
const PIECES: usize = 64;

/// Bytes on their way between a peer and the session.
const PIPE: usize = 256 * 1024;

/// Set in the process that is counted.
const CASE: &str = "PODGATE_INSTRUCTIONS_CASE";
const COUNT: &str = "PODGATE_INSTRUCTIONS_COUNT";

const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);

/// What is counted.
type Case = (&'static str, fn(usize));

const CASES: [Case; 15] = [
    ("decode spdy, small frames", |pieces| decode_spdy(pieces)),
    ("encode spdy, small frames", |pieces| encode_spdy(pieces)),
    ("decode websocket, masked, small frames", |pieces| decode_websocket(pieces)),
    ("encode websocket, small frames", |pieces| encode_websocket(pieces, None)),
    ("encode websocket, masked, small frames", |pieces| encode_websocket(pieces, Some(KEY))),
    ("splice spdy, down", |pieces| splice(Client::Spdy, Far::Spdy, Way::Down(pieces, PIECE))),
    ("splice spdy, up", |pieces| splice(Client::Spdy, Far::Spdy, Way::Up(pieces, PIECE))),
    ("splice spdy, small frames, down", |pieces| splice(Client::Spdy, Far::Spdy, Way::Down(pieces, SMALL))),
    ("splice spdy, small frames, up", |pieces| splice(Client::Spdy, Far::Spdy, Way::Up(pieces, SMALL))),
    ("splice websocket to spdy, down", |pieces| {
        splice(Client::Websocket, Far::Spdy, Way::Down(pieces, PIECE))
    }),
    ("splice websocket to spdy, up", |pieces| splice(Client::Websocket, Far::Spdy, Way::Up(pieces, PIECE))),
    ("splice websocket to spdy, small frames, down", |pieces| {
        splice(Client::Websocket, Far::Spdy, Way::Down(pieces, SMALL))
    }),
    ("splice websocket to spdy, small frames, up", |pieces| {
        splice(Client::Websocket, Far::Spdy, Way::Up(pieces, SMALL))
    }),
    ("splice websocket, down", |pieces| splice(Client::Websocket, Far::Websocket, Way::Down(pieces, PIECE))),
    ("splice websocket, up", |pieces| splice(Client::Websocket, Far::Websocket, Way::Up(pieces, PIECE))),
];

/// What a client speaks, and a far side.
#[derive(Clone, Copy, PartialEq)]
enum Client {
    Spdy,
    Websocket,
}

#[derive(Clone, Copy, PartialEq)]
enum Far {
    Spdy,
    Websocket,
}

/// Where so many pieces go, in messages of so many bytes.
#[derive(Clone, Copy)]
enum Way {
    Down(usize, usize),
    Up(usize, usize),
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CASE) {
        let count =
            std::env::var(COUNT).ok().and_then(|count| count.parse().ok()).expect("a number of pieces");
        let (_, case) = CASES.iter().find(|(case, _)| *case == name).expect("a case");
        case(count);
        return ExitCode::SUCCESS;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.csv");
    let counted: Vec<(&str, f64)> = CASES.iter().map(|(name, _)| (*name, per_kibibyte(name))).collect();
    if std::env::var("PODGATE_INSTRUCTIONS").is_ok_and(|what| what == "write") {
        let mut text = String::from("case,instructions per KiB\n");
        for (name, count) in &counted {
            let _ = writeln!(text, "\"{name}\",{count:.1}");
        }
        std::fs::write(&path, text).expect("write the figures");
        return ExitCode::SUCCESS;
    }
    let known = read(&path);
    let mut worse = false;
    println!("{:46}{:>12}{:>12}{:>9}", "instructions per KiB", "was", "is", "");
    for (name, is) in counted {
        let Some(was) = known.get(name) else {
            println!("{name:46}{:>12}{is:>12.1}  not in {}", "-", path.display());
            worse = true;
            continue;
        };
        let change = is / was - 1.0;
        let remark = match change {
            _ if change > TOLERANCE => "  TOO MANY",
            _ if change < -TOLERANCE => "  better: write it down with PODGATE_INSTRUCTIONS=write",
            _ => "",
        };
        worse |= change > TOLERANCE;
        println!("{name:46}{was:12.1}{is:12.1}{:+8.1}%{remark}", change * 100.0);
    }
    if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn read(path: &Path) -> BTreeMap<String, f64> {
    let mut file = csv::Reader::from_path(path).expect("the figures as they were");
    file.deserialize().map(|line| line.expect("a case and its figure")).collect()
}

// === counting ===

fn per_kibibyte(case: &str) -> f64 {
    let [once, twice] = [PIECES, 2 * PIECES].map(|count| instructions(case, count));
    (twice - once) as f64 / (PIECES * PIECE / 1024) as f64
}

fn instructions(case: &str, count: usize) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log: PathBuf = folder.path().join("log");
    let run = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", log.display()))
        .arg(std::env::current_exe().expect("this binary"))
        // valgrind counts an instruction that copies any number of bytes once for each byte, where a processor has one:
        // without it, and without wide registers, copies count the same everywhere, and hide nothing.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX512VL,-ERMS,-FSRM")
        .env(CASE, case)
        .env(COUNT, count.to_string())
        .status()
        .expect("run valgrind");
    let text = std::fs::read_to_string(&log).expect("what valgrind says");
    assert!(run.success(), "{case} does not work: {text}");
    let line = text.lines().find_map(|line| line.split_once("refs:")).expect("a number of instructions").1;
    line.trim().replace(',', "").parse().expect("a number")
}

// === codecs ===

fn piece() -> Vec<u8> {
    (0..PIECE).map(|at| (at % 251) as u8).collect()
}

/// A piece in messages of so many bytes, each as `message` has it.
fn messages(bytes: usize, message: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    piece().chunks(bytes).flat_map(message).collect()
}

fn decode_spdy(pieces: usize) {
    let frames = messages(SMALL, |bytes| frames::data(STDOUT, bytes));
    let (mut decoder, mut got) = (spdy::Decoder::new(), 0);
    for _ in 0..pieces {
        let mut input = BytesMut::from(&frames[..]);
        while let Some(frame) = decoder.decode(&mut input).expect("a frame") {
            if let Frame::Data { bytes, .. } = black_box(frame) {
                got += bytes.len();
            }
        }
    }
    assert_eq!(got, pieces * PIECE);
}

fn encode_spdy(pieces: usize) {
    let piece = piece();
    for _ in 0..pieces {
        let mut out = BytesMut::with_capacity(2 * PIECE);
        for bytes in piece.chunks(SMALL) {
            out.extend_from_slice(&Encoder::data_head(STDOUT, bytes.len(), false));
            out.extend_from_slice(bytes);
        }
        black_box(out);
    }
}

fn decode_websocket(pieces: usize) {
    let mut frames = BytesMut::new();
    for bytes in piece().chunks(SMALL) {
        ws::Encoder::message(&mut frames, ws::Kind::Binary, bytes, Some(KEY));
    }
    let (mut decoder, mut got) = (ws::Decoder::new(ws::Role::Server, ws::Limits::default()), 0);
    for _ in 0..pieces {
        let mut input = frames.clone();
        while let Some(event) = decoder.decode(&mut input).expect("a frame") {
            if let ws::Event::Data(data) = black_box(event) {
                got += data.bytes.len();
            }
        }
    }
    assert_eq!(got, pieces * PIECE);
}

fn encode_websocket(pieces: usize, mask: Option<MaskKey>) {
    let piece = piece();
    for _ in 0..pieces {
        let mut out = BytesMut::with_capacity(2 * PIECE);
        for bytes in piece.chunks(SMALL) {
            ws::Encoder::message(&mut out, ws::Kind::Binary, bytes, mask);
        }
        black_box(out);
    }
}

// === the splice ===

fn splice(client: Client, far: Far, way: Way) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(session(client, far, way));
}

async fn session(client: Client, far: Far, way: Way) {
    let asked = Asked { stdin: true, stdout: true, stderr: false, tty: false };
    let link: Box<dyn Link> = match (client, far) {
        (Client::Spdy, _) => Box::new(SpdyLink::command(Protocol::V4, Runs::Exec { tty: false })),
        (Client::Websocket, Far::Spdy) => Box::new(Translator::new(Subprotocol::V5, asked, Protocol::V4)),
        (Client::Websocket, Far::Websocket) => Box::new(WsLink::command(Subprotocol::V5, asked, || KEY)),
    };
    let (at_client, ours) = duplex(PIPE);
    let (at_far, theirs) = duplex(PIPE);
    let session = Session {
        caller: "bench".into(),
        client: ours,
        socket: Box::new(|_| Err(std::io::ErrorKind::Unsupported.into())),
        head: Bytes::new(),
        early: Bytes::new(),
        far: theirs,
        first: Bytes::new(),
        link,
        runs: Runs::Exec { tty: false },
        timing: Timing::default(),
        limits: Limits::default(),
        orders: Box::pin(std::future::pending()),
        record: Record::begin(Arc::new(facts()), Metrics::new(), Trail::default()),
        recorder: None,
    };
    let sessions = Sessions::new(settings(), Drain::new());
    let (heard, ()) = tokio::join!(
        async {
            let (heard, ()) = tokio::join!(be_client(at_client, client, way), be_far(at_far, far, way));
            heard
        },
        sessions.run(session)
    );
    if let Way::Down(pieces, _) = way {
        assert!(heard >= pieces * PIECE, "{heard} bytes came of {}", pieces * PIECE);
    }
}

/// Says its part, and hears to the end; how many bytes that were.
async fn be_client(io: DuplexStream, client: Client, way: Way) -> usize {
    let (mut reader, mut writer) = split(io);
    let says = async {
        if client == Client::Spdy {
            writer.write_all(&frames::opening()).await.expect("write");
        }
        if let Way::Up(pieces, bytes) = way {
            let said = match client {
                Client::Spdy => messages(bytes, |bytes| frames::data(STDIN, bytes)),
                Client::Websocket => messages(bytes, |bytes| message(bytes, StreamType::Stdin, Some(KEY))),
            };
            for _ in 0..pieces {
                writer.write_all(&said).await.expect("write");
            }
        }
    };
    let hears = hear(&mut reader, usize::MAX);
    tokio::join!(says, hears).1
}

/// A far side that answers, says its part or hears that of the client, and ends with a success.
async fn be_far(io: DuplexStream, far: Far, way: Way) {
    let (mut reader, mut writer) = split(io);
    if far == Far::Spdy {
        accept(&mut reader, &mut writer).await;
    }
    match way {
        Way::Down(pieces, bytes) => {
            let said = match far {
                Far::Spdy => messages(bytes, |bytes| frames::data(STDOUT, bytes)),
                Far::Websocket => messages(bytes, |bytes| message(bytes, StreamType::Stdout, None)),
            };
            for _ in 0..pieces {
                writer.write_all(&said).await.expect("write");
            }
        }
        Way::Up(pieces, _) => {
            let heard = hear(&mut reader, pieces * PIECE).await;
            assert!(heard >= pieces * PIECE, "{heard} bytes came of {}", pieces * PIECE);
        }
    }
    let last = match far {
        Far::Spdy => frames::result(&Outcome::Success),
        Far::Websocket => {
            let mut last = message(&Outcome::Success.to_bytes(Protocol::V4), StreamType::Error, None);
            let mut close = BytesMut::new();
            ws::Encoder::close(&mut close, Some(&ws::Close::normal()), None);
            last.extend_from_slice(&close);
            last
        }
    };
    writer.write_all(&last).await.expect("write");
    writer.shutdown().await.expect("end");
    hear(&mut reader, usize::MAX).await;
}

/// Accepts three streams, as a kubelet does.
async fn accept(reader: &mut (impl AsyncRead + Unpin), writer: &mut (impl AsyncWrite + Unpin)) {
    let (mut decoder, mut encoder, mut input, mut out) =
        (spdy::Decoder::new(), Encoder::new(), BytesMut::new(), BytesMut::new());
    let mut open = 0;
    while open < 3 {
        assert_ne!(reader.read_buf(&mut input).await.expect("read"), 0, "the client opens its streams");
        while let Some(frame) = decoder.decode(&mut input).expect("a frame") {
            if let Frame::SynStream { id, .. } = frame {
                encoder.syn_reply(&mut out, id);
                open += 1;
            }
        }
    }
    writer.write_all(&out).await.expect("write");
}

/// Reads so many bytes, or to the end.
async fn hear(reader: &mut (impl AsyncRead + Unpin), bytes: usize) -> usize {
    let (mut buffer, mut heard) = (vec![0; PIPE], 0);
    while heard < bytes {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => heard += read,
        }
    }
    heard
}

fn message(bytes: &[u8], stream: StreamType, mask: Option<MaskKey>) -> Vec<u8> {
    let (mut out, mut rest) = (BytesMut::new(), bytes);
    while !rest.is_empty() {
        let sent = Subprotocol::V5.encoding().message(&mut out, channel::number(stream), rest, mask);
        rest = &rest[sent..];
    }
    out.to_vec()
}

fn facts() -> Facts {
    Facts {
        user: "bench".into(),
        impersonator: String::new(),
        client: ([127, 0, 0, 1], 1).into(),
        audit_id: "0".into(),
        subresource: "exec",
        namespace: "default".into(),
        pod: "web".into(),
        container: "web".into(),
        node: "node".into(),
        command: Argv::of(&[]),
        tty: false,
        stdin: true,
    }
}

fn settings() -> Settings {
    Settings {
        max_sessions: 1,
        max_sessions_per_caller: 1,
        recheck_period: Duration::ZERO,
        max_bytes_per_second: 0,
        max_bytes_per_second_per_caller: 0,
        max_bytes_per_second_in_all: 0,
        linger: Duration::from_secs(1),
        hang_up: Duration::ZERO,
        refusal_timeout: Duration::from_secs(10),
        open_timeout: Duration::from_secs(30),
        max_duration: Duration::ZERO,
        idle_timeout: Duration::ZERO,
    }
}
