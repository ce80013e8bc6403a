//! Clients that speak the protocol of a session to harm: each is bounded, ends with the protocol's own error where it
//! breaks it, and does not disturb the session beside it. A binary of its own, for what it measures is its process.

#![allow(missing_docs, reason = "names of tests are claims already")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{STDIN, data, opening, replies, result};
use podgate::testing::gateway::{config, exec_request, read_exactly, request, send};
use podgate::testing::{Far, Pki, TestGateway, soon, until};
use podgate::wire::remotecommand::Outcome;
use podgate::wire::spdy::{Encoder, Headers};
use podgate::wire::ws::{self, MaskKey};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type ClientIo = TlsStream<TcpStream>;

/// What a flood may cost this process, with all it holds for its tests, in bytes.
const COST: usize = 64 << 20;

/// GOAWAY with PROTOCOL_ERROR, of a connection on which the far side accepted no stream.
const GOAWAY: &[u8] = b"\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01";

struct Rig {
    far: Far,
    gateway: TestGateway,
    /// A session that must not notice anything.
    neighbour: ClientIo,
}

/// A far side that says back DATA of `cat`, opens the streams of an attach, and for everything else reads and drops.
async fn rig() -> Rig {
    let pki = Arc::new(Pki::new());
    let far = Far::by_head(&pki, |mut io, head| async move {
        send(&mut io, SWITCHING).await;
        if head.contains("/attach/") {
            send(&mut io, &replies()).await;
        }
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = io.read(&mut bytes).await {
            if head.contains("command=cat") {
                send(&mut io, &bytes[..count]).await;
            }
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let mut neighbour = gateway.connect_as("ben").await;
    send(&mut neighbour, &exec_request("command=cat&stdin=1&stdout=1", "")).await;
    assert_eq!(read_exactly(&mut neighbour, SWITCHING.len()).await, SWITCHING);
    Rig { far, gateway, neighbour }
}

impl Rig {
    /// A SPDY session for a flood.
    async fn spdy(&self, subresource: &str) -> ClientIo {
        let mut client = self.gateway.connect_as("ana").await;
        let line = format!("POST /api/v1/namespaces/default/pods/web/{subresource}");
        send(&mut client, &request(&line, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n")).await;
        assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
        client
    }

    /// A translated session for a flood, behind its 101 and its first message.
    async fn websocket(&self) -> ClientIo {
        let mut client = self.gateway.connect_as("ana").await;
        let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
        let line = "GET /api/v1/namespaces/default/pods/web/attach?stdin=1&stdout=1";
        send(&mut client, &request(line, headers)).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n\x82\x01\x01") {
            head.push(soon("the first message", client.read_u8()).await.unwrap());
        }
        client
    }

    async fn neighbour_is_well(&mut self) {
        let words = data(STDIN, b"still here");
        send(&mut self.neighbour, &words).await;
        assert_eq!(read_exactly(&mut self.neighbour, words.len()).await, words);
    }

    async fn ended(&self, end: &str, subresource: &str) {
        let series = format!("podgate_sessions_ended_total{{end=\"{end}\",subresource=\"{subresource}\"}}");
        until(&series, || self.gateway.metric(&series) == 1.0).await;
    }

    async fn stop(self) {
        drop(self.neighbour);
        until("the far side to be left", || self.far.connections() == 0).await;
        self.gateway.stop().await;
    }
}

/// Memory of this process that is in use, in bytes, by the kernel's account.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Writes as far as the peer takes it, and returns what it says until it closes.
async fn pour(mut io: ClientIo, bytes: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let (mut reader, mut writer) = tokio::io::split(&mut io);
    let write = async {
        // Refused by then, it is enough.
        if writer.write_all(bytes).await.is_ok() {
            let _ = writer.flush().await;
        }
    };
    let read = async {
        let _ = soon("the end", reader.read_to_end(&mut said)).await;
    };
    tokio::join!(write, read);
    said
}

fn syn_streams(count: u32, headers: &Headers) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for n in 0..count {
        encoder.syn_stream(&mut out, 2 * n + 1, headers).unwrap();
    }
    out.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_pings_settings_and_streams_pass_by_without_a_trace() {
    let mut rig = rig().await;
    let before = resident();
    let mut pings = BytesMut::new();
    (0..100_000u32).for_each(|n| Encoder::ping(&mut pings, 2 * n + 1));
    let settings = b"\x80\x03\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00".repeat(100_000);
    let streams = syn_streams(100_000, &Headers::new().with("streamtype", "other"));
    for flood in [&pings[..], &settings, &streams] {
        let mut client = rig.spdy("exec?command=id").await;
        send(&mut client, flood).await;
        rig.neighbour_is_well().await;
        drop(client);
    }
    until("them to end", || rig.gateway.metric("podgate_sessions") == 1.0).await;
    assert!(resident() < before + COST, "{} bytes more", resident() - before);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_forward_of_a_hundred_thousand_open_streams_ends_with_goaway() {
    let mut rig = rig().await;
    let headers = Headers::new().with("streamtype", "error").with("port", "80").with("requestid", "1");
    let client = rig.spdy("portforward").await;
    let said = pour(client, &syn_streams(100_000, &headers)).await;
    assert!(said.ends_with(GOAWAY), "{} bytes", said.len());
    rig.ended("client_protocol", "portforward").await;
    rig.neighbour_is_well().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_065_a_header_block_that_inflates_without_end_is_bounded_and_ends_with_goaway() {
    let mut rig = rig().await;
    let before = resident();
    // A few KiB on the wire, 8 MiB when inflated: two thousand times what a block may be.
    let mut zlib = flate2::Compress::new_with_window_bits(flate2::Compression::best(), true, 15);
    let mut block = vec![0; 65_000];
    zlib.compress(&vec![0; 8 << 20], &mut block, flate2::FlushCompress::Sync).unwrap();
    block.truncate(usize::try_from(zlib.total_out()).unwrap());
    let mut frame = vec![0x80, 3, 0, 1, 0];
    frame.extend_from_slice(&u32::try_from(block.len() + 10).unwrap().to_be_bytes()[1..]);
    frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&block);
    let client = rig.spdy("exec?command=id").await;
    assert_eq!(pour(client, &frame).await, GOAWAY);
    rig.ended("client_protocol", "exec").await;
    assert!(resident() < before + COST, "{} bytes more", resident() - before);
    rig.neighbour_is_well().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_064_a_frame_of_16_mib_that_never_comes_costs_nothing_and_stops_nobody() {
    let mut rig = rig().await;
    let before = resident();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = rig.spdy("exec?command=id&stdin=1").await;
        let head = Encoder::data_head(STDIN, 0xff_ffff, false);
        send(&mut client, &[&opening(), &head[..], b"the beginning"].concat()).await;
        clients.push(client);
    }
    // A control frame of that length is refused at its head.
    let control = rig.spdy("exec?command=id").await;
    assert_eq!(pour(control, &[0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff]).await, GOAWAY);
    rig.neighbour_is_well().await;
    assert!(resident() < before + COST, "{} bytes more", resident() - before);
    drop(clients);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_frames_that_are_none_end_with_the_code_that_says_so() {
    let mut rig = rig().await;
    let cases: [(&str, Vec<u8>, u16); 6] = [
        ("not masked", vec![0x82, 1, 0], 1002),
        ("reserved bits", vec![0xf2, 0x81, 0, 0, 0, 0, 0], 1002),
        ("a length of 2^62", [&[0x82, 0xff][..], &(1u64 << 62).to_be_bytes(), &[0; 4]].concat(), 1009),
        (
            "a message over 32 MiB",
            [&[0x82, 0xff][..], &((32u64 << 20) + 1).to_be_bytes(), &[0; 4]].concat(),
            1009,
        ),
        ("a ping of 126 bytes", vec![0x89, 0xfe, 0, 126], 1002),
        ("a continuation of nothing", vec![0x80, 0x80, 0, 0, 0, 0], 1002),
    ];
    for (what, bytes, code) in cases {
        let client = rig.websocket().await;
        let said = pour(client, &bytes).await;
        let close = [&[0x88, 2][..], &code.to_be_bytes()].concat();
        assert!(said.ends_with(&close), "{what}: {said:x?}");
        rig.neighbour_is_well().await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_websocket_pings_that_nobody_reads_the_answers_of_cost_nothing() {
    let mut rig = rig().await;
    let before = resident();
    let mut client = rig.websocket().await;
    let mut pings = BytesMut::new();
    (0..100_000).for_each(|_| ws::Encoder::ping(&mut pings, &[b'p'; 125], Some(MaskKey([1, 2, 3, 4]))));
    // Whether all of it is taken is the gateway's choice.
    let _ = tokio::time::timeout(Duration::from_secs(2), client.write_all(&pings)).await;
    rig.neighbour_is_well().await;
    assert!(resident() < before + COST, "{} bytes more", resident() - before);
    drop(client);
    rig.stop().await;
}

/// A far side whose programs heed a hang-up, but for those that are called deaf.
async fn hung_up() -> Rig {
    let pki = Arc::new(Pki::new());
    let far = Far::by_head(&pki, |mut io, head| async move {
        send(&mut io, SWITCHING).await;
        if !head.contains("command=cat") {
            if io.read_exact(&mut vec![0; opening().len()]).await.is_err() {
                return;
            }
            let _ = io.write_all(&replies()).await;
        }
        let (deaf, mut bytes) = (head.contains("command=deaf"), vec![0; 4096]);
        while let Ok(count @ 1..) = io.read(&mut bytes).await {
            if head.contains("command=cat") {
                send(&mut io, &bytes[..count]).await;
            } else if !deaf && bytes[..count].iter().any(|byte| matches!(byte, 0x03 | 0x04)) {
                // Podgate may have given up by then.
                let _ = io.write_all(&result(&Outcome::exit(130))).await;
            }
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let mut neighbour = gateway.connect_as("ben").await;
    send(&mut neighbour, &exec_request("command=cat&stdin=1&stdout=1", "")).await;
    read_exactly(&mut neighbour, SWITCHING.len()).await;
    Rig { far, gateway, neighbour }
}

/// A client that goes away without a word, each at another moment.
async fn disconnect(gateway: &TestGateway, tls: Arc<ClientConfig>, number: usize) {
    let tcp = TcpStream::connect(gateway.gateway.api).await.unwrap();
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    if number.is_multiple_of(10) {
        return;
    }
    let name = ServerName::try_from("localhost").unwrap();
    let mut io = soon("TLS", TlsConnector::from(tls).connect(name, tcp)).await.unwrap();
    if number % 10 == 1 {
        return;
    }
    let program = if number % 100 == 2 { "deaf" } else { "sh" };
    let query = format!("command={program}&stdin=1&stdout=1&tty=1");
    send(&mut io, &exec_request(&query, "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n")).await;
    if number % 10 == 3 {
        return;
    }
    read_exactly(&mut io, SWITCHING.len()).await;
    if number % 10 == 4 {
        return;
    }
    send(&mut io, &opening()).await;
    read_exactly(&mut io, replies().len()).await;
    if number % 10 > 5 {
        send(&mut io, &data(STDIN, b"sleep 1000\r")).await;
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn disconnects(count: usize) {
    let mut rig = hung_up().await;
    let tls = rig.gateway.client_tls("ana");
    let some = async |gateway: &TestGateway, numbers: std::ops::Range<usize>| {
        let all = numbers.map(|number| disconnect(gateway, tls.clone(), number));
        futures_util::stream::iter(all).buffer_unordered(32).collect::<Vec<()>>().await;
        until("sessions to be over", || gateway.metric("podgate_sessions") == 1.0).await;
        until("connections to be over", || gateway.metric("podgate_connections") == 1.0).await;
    };
    // What grows once, such as pools and stacks, has grown by then.
    some(&rig.gateway, 0..500).await;
    until("the far side to be left", || rig.far.connections() == 1).await;
    let (tasks, sockets, memory) = (rig.gateway.gateway.drain.tasks(), descriptors(), resident());
    some(&rig.gateway, 0..count).await;
    until("the far side to be left", || rig.far.connections() == 1).await;
    until("no task and no socket more", || {
        rig.gateway.gateway.drain.tasks() <= tasks && descriptors() <= sockets
    })
    .await;
    let grown = resident().saturating_sub(memory);
    let remain = rig.gateway.metric("podgate_processes_may_remain_total");
    println!("{count} disconnects: {grown} bytes more, {remain} of which a process may remain");
    assert!(grown < COST / 4, "{grown} bytes more");
    assert!(remain >= (count / 100) as f64, "{remain}");
    rig.neighbour_is_well().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_abrupt_disconnects_leave_no_socket_task_or_memory() {
    Box::pin(disconnects(1000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; `make soak`"]
async fn ten_thousand_abrupt_disconnects_leave_no_socket_task_or_memory() {
    Box::pin(disconnects(10_000)).await;
}
