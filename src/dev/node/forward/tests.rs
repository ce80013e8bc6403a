use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::{Endpoint, Pods, Streaming};
use super::*;
use crate::drain::Drained;
use crate::testing::Pki;
use crate::tls::{self, Clients};
use crate::wire::http1::{BodyLength, ResponseHead};
use crate::wire::portforward::{Half, MAX_PAIRS};
use crate::wire::ws::handshake;

/// Longer than the harness's patience: much is moved here, and one test waits for [`STALL`].
const LONG: Duration = Duration::from_secs(90);

const TARGET: &str = "/portForward/shop/cart-0";
const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1";
const PROTOCOL: &str = "X-Stream-Protocol-Version: portforward.k8s.io";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

type Io = TlsStream<TcpStream>;

/// `cart-0` runs on the node, `done` has run there.
struct Shop;

impl Pods for Shop {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "shop" && ["cart-0", "done"].contains(&name)).then(|| {
            let mut pod = Pod::default();
            pod.metadata.uid = Some("u-1".to_owned());
            pod.spec = Some(PodSpec { node_name: Some("one".to_owned()), ..PodSpec::default() });
            let phase = if name == "done" { "Succeeded" } else { "Running" };
            pod.status = Some(PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() });
            Arc::new(pod)
        })
    }
}

struct Node {
    addr: SocketAddr,
    pki: Pki,
    drain: Drain,
    /// Of the programs behind the ports.
    programs: Drain,
    _dir: TempDir,
}

impl Node {
    async fn start(streaming: Streaming) -> Self {
        let (pki, dir, drain) = (Pki::new(), tempfile::tempdir().unwrap(), Drain::new());
        let tls = tls::server(&pki.server(), &[tls::HTTP1], Clients::Require(pki.roots())).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let settings = Settings { streaming, ..Settings::default() };
        let endpoint = Endpoint::bind(any, tls, "one", Arc::new(Shop), dir.path(), settings).await.unwrap();
        let addr = endpoint.local_addr();
        drain.spawn(endpoint.run(drain.clone()));
        Self { addr, pki, drain, programs: Drain::new(), _dir: dir }
    }

    /// A program on a port of its own, for each connection.
    async fn program<F>(&self, serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let programs = self.programs.clone();
        self.programs.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                programs.spawn(serve(tcp));
            }
        });
        port
    }

    async fn echo(&self) -> u16 {
        self.program(|mut tcp| async move {
            let (mut read, mut write) = tcp.split();
            // A client that breaks off is no matter of the program's.
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }

    /// The connection behind a 101 and what came with it, or the refusal.
    async fn ask(&self, head: &str) -> Result<(ResponseHead, BytesMut, Io), (ResponseHead, String)> {
        let config = tls::client(Some(&self.pki.client("podgate", &[])), self.pki.roots(), false).unwrap();
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let mut io = TlsConnector::from(config).connect(ServerName::from(self.addr.ip()), tcp).await.unwrap();
        io.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
        let mut buffer = BytesMut::new();
        let head = loop {
            if let Some(head) = ResponseHead::parse(&buffer).unwrap() {
                break head;
            }
            assert_ne!(io.read_buf(&mut buffer).await.unwrap(), 0, "no response");
        };
        buffer.advance(head.len);
        if head.status == 101 {
            return Ok((head, buffer, io));
        }
        let BodyLength::Known(length) = head.body_length().unwrap() else { panic!("a known length") };
        while (buffer.len() as u64) < length {
            assert_ne!(io.read_buf(&mut buffer).await.unwrap(), 0, "short body");
        }
        Err((head, String::from_utf8(buffer.to_vec()).unwrap()))
    }

    async fn refusal(&self, head: &str) -> (u16, String) {
        let (head, body) = self.ask(head).await.expect_err("a refusal");
        (head.status, body)
    }

    async fn websocket(&self, target: &str, protocol: &str) -> (ResponseHead, BytesMut, Io) {
        let head = websocket(target, protocol);
        self.ask(&head).await.unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }

    async fn spdy(&self) -> Client<Io> {
        let head = format!("POST {TARGET} HTTP/1.1\r\nHost: node\r\n{SPDY}\r\n{PROTOCOL}");
        let (head, early, io) = self.ask(&head).await.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        assert_eq!(head.values("X-Stream-Protocol-Version").next(), Some(&b"portforward.k8s.io"[..]));
        Client::new(io, early, None)
    }

    async fn tunnel(&self, seed: u64) -> Client<Io> {
        let (head, early, io) = self.websocket(TARGET, portforward::TUNNEL_PROTOCOL).await;
        let chosen = handshake::check_answer(&head, KEY, &[portforward::TUNNEL_PROTOCOL]);
        assert_eq!(chosen.as_deref(), Ok(portforward::TUNNEL_PROTOCOL));
        Client::new(io, early, Some(seed))
    }

    /// Fails when a task, and with it a connection, is left.
    async fn stop(self) {
        assert_eq!(self.drain.finish(Duration::from_secs(20)).await, Drained::Clean);
    }
}

fn websocket(target: &str, protocol: &str) -> String {
    let mut head = format!(
        "GET {target} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}"
    );
    if !protocol.is_empty() {
        head.push_str(&format!("\r\nSec-WebSocket-Protocol: {protocol}"));
    }
    head
}

/// What came on a stream.
#[derive(Default)]
struct Seen {
    open: bool,
    data: Vec<u8>,
    fin: bool,
    reset: Option<RstStatus>,
}

/// A client of port-forward, bare or in a tunnel; reads while it writes.
struct Client<I> {
    read: ReadHalf<I>,
    write: WriteHalf<I>,
    encoder: Encoder,
    decoder: Decoder,
    raw: BytesMut,
    input: BytesMut,
    tunnel: Option<ws::Decoder>,
    /// Where the tunnel's messages are cut.
    seed: u64,
    next: u32,
    requests: u64,
    streams: HashMap<u32, Seen>,
    pongs: usize,
    goaway: bool,
    close: Option<ws::CloseCode>,
    closed: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Client<I> {
    fn new(io: I, early: BytesMut, tunnel: Option<u64>) -> Self {
        let (read, write) = tokio::io::split(io);
        Self {
            read,
            write,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            raw: early,
            input: BytesMut::new(),
            tunnel: tunnel.map(|_| ws::Decoder::new(ws::Role::Client, ws::Limits::default())),
            seed: tunnel.unwrap_or_default(),
            next: 1,
            requests: 0,
            streams: HashMap::new(),
            pongs: 0,
            goaway: false,
            close: None,
            closed: false,
        }
    }

    async fn open(&mut self, headers: &Headers) -> u32 {
        let id = self.next;
        self.next += 2;
        let mut out = BytesMut::new();
        self.encoder.syn_stream(&mut out, id, headers).unwrap();
        self.streams.insert(id, Seen::default());
        self.send(out).await;
        id
    }

    /// The streams of a new connection, error and data, as kubectl opens them.
    async fn connect(&mut self, port: u16) -> (u32, u32) {
        self.requests += 1;
        let error = self.open(&Half::Error.headers(port, self.requests)).await;
        self.fin(error).await;
        (error, self.open(&Half::Data.headers(port, self.requests)).await)
    }

    async fn write(&mut self, id: u32, bytes: &[u8]) {
        for piece in bytes.chunks(READ) {
            let mut out = BytesMut::from(&Encoder::data_head(id, piece.len(), false)[..]);
            out.extend_from_slice(piece);
            self.send(out).await;
        }
    }

    async fn fin(&mut self, id: u32) {
        self.send(BytesMut::from(&Encoder::data_head(id, 0, true)[..])).await;
    }

    async fn ping(&mut self, id: u32) {
        let mut out = BytesMut::new();
        Encoder::ping(&mut out, id);
        self.send(out).await;
    }

    /// A number below `bound`, another one each time.
    fn random(&mut self, bound: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % bound
    }

    async fn send(&mut self, mut bytes: BytesMut) {
        if self.tunnel.is_some() {
            let mut out = BytesMut::new();
            let mask = Some(ws::MaskKey([1, 2, 3, 4]));
            // A frame of SPDY lies across messages, and a message across frames with a ping between them.
            while !bytes.is_empty() {
                let most = if self.random(2) == 0 { 9 } else { 3000 };
                let len = self.random(most).min(bytes.len() - 1) + 1;
                let piece = bytes.split_to(len);
                let (first, second) = piece.split_at(self.random(len + 1));
                ws::Encoder::frame(&mut out, ws::Opcode::Binary, false, first, mask);
                if self.random(20) == 0 {
                    ws::Encoder::ping(&mut out, b"?", mask);
                }
                ws::Encoder::frame(&mut out, ws::Opcode::Continuation, true, second, mask);
            }
            bytes = out;
        }
        while !bytes.is_empty() && !self.closed {
            tokio::select! {
                written = self.write.write(&bytes) => bytes.advance(written.unwrap()),
                more = fill(&mut self.read, &mut self.raw) => self.closed = !more,
            }
            self.take();
        }
        self.write.flush().await.unwrap();
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        self.take();
        let so = async {
            while !is_so(self) {
                assert!(!self.closed, "closed before {what}");
                self.closed = !fill(&mut self.read, &mut self.raw).await;
                self.take();
            }
        };
        if timeout(LONG, so).await.is_err() {
            panic!("did not happen: {what}");
        }
    }

    async fn ended(&mut self, id: u32) {
        self.until("the end of a stream", |client| client.at(id).fin || client.at(id).reset.is_some()).await;
    }

    fn at(&self, id: u32) -> &Seen {
        &self.streams[&id]
    }

    fn text(&self, id: u32) -> &str {
        str::from_utf8(&self.at(id).data).unwrap()
    }

    fn take(&mut self) {
        match &mut self.tunnel {
            None => self.input.unsplit(self.raw.split()),
            Some(decoder) => {
                while let Some(event) = decoder.decode(&mut self.raw).unwrap() {
                    match event {
                        ws::Event::Data(data) => {
                            self.input.extend_from_slice(&portforward::tunnel_bytes(data).unwrap());
                        }
                        ws::Event::Pong(payload) => assert_eq!(&payload[..], b"?"),
                        ws::Event::Close(close) => self.close = close.map(|close| close.code),
                        ws::Event::Ping(_) => panic!("the server does not ping"),
                    }
                }
            }
        }
        while let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
            match frame {
                Frame::SynReply { id, .. } => self.streams.get_mut(&id).unwrap().open = true,
                Frame::RstStream { id, status } => self.streams.get_mut(&id).unwrap().reset = Some(status),
                Frame::Ping { .. } => self.pongs += 1,
                Frame::GoAway { .. } => self.goaway = true,
                Frame::Data { stream, bytes, fin } => {
                    let seen = self.streams.get_mut(&stream).unwrap();
                    assert!(seen.open && !seen.fin && seen.reset.is_none(), "data on no open stream");
                    seen.data.extend_from_slice(&bytes);
                    seen.fin = fin;
                }
                frame => panic!("servers never send {frame:?}"),
            }
        }
    }
}

/// A port where nobody listens.
async fn closed_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port()
}

fn bytes(seed: u32, len: u32) -> Vec<u8> {
    (0..len).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn fifty_connections_and_a_refused_port_do_not_disturb_each_other() {
    const MIB: usize = 1024 * 1024;
    let node = Node::start(Streaming::V4).await;
    let (echo, refused) = (node.echo().await, closed_port().await);
    let mut client = node.spdy().await;
    let sent: Vec<_> = (0..50).map(|n| bytes(n, MIB as u32)).collect();
    let mut pairs = Vec::new();
    for _ in &sent {
        pairs.push(client.connect(echo).await);
    }
    let (bad_error, bad_data) = client.connect(refused).await;
    for at in (0..MIB).step_by(READ) {
        for ((_, data), sent) in pairs.iter().zip(&sent) {
            client.write(*data, &sent[at..at + READ]).await;
        }
    }
    for (_, data) in &pairs {
        client.fin(*data).await;
    }
    for ((error, data), sent) in pairs.iter().zip(&sent) {
        client.ended(*error).await;
        assert!(client.at(*data).data == *sent, "all came back");
        assert!(client.at(*data).fin && client.at(*error).fin && client.text(*error).is_empty());
    }
    client
        .until("both resets", |client| client.at(bad_error).reset.and(client.at(bad_data).reset).is_some())
        .await;
    assert_eq!(
        client.text(bad_error),
        format!(
            "error forwarding port {refused} to pod u-1, uid : failed to execute portforward in network \
             namespace \"host\": failed to connect to localhost:{refused} inside namespace \"host\", IPv4: dial \
             tcp4 127.0.0.1:{refused}: connect: connection refused IPv6 dial tcp6 [::1]:{refused}: connect: \
             connection refused "
        )
    );
    let (_, again) = client.connect(echo).await;
    client.write(again, b"still here").await;
    client.until("an echo", |client| client.text(again) == "still here").await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_half_close_goes_through_and_the_answer_comes_back() {
    let node = Node::start(Streaming::V4).await;
    let port = node
        .program(|mut tcp| async move {
            let mut all = Vec::new();
            tcp.read_to_end(&mut all).await.unwrap();
            // Later than containerd would wait.
            sleep(Duration::from_millis(1200)).await;
            tcp.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
        })
        .await;
    let mut client = node.spdy().await;
    let (error, data) = client.connect(port).await;
    client.write(data, &bytes(0, 100_000)).await;
    client.fin(data).await;
    client.ended(error).await;
    assert_eq!(client.text(data), "100000 bytes");
    assert!(client.at(data).fin && client.at(error).fin && client.text(error).is_empty());
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_program_that_closes_first_ends_its_stream_only() {
    let node = Node::start(Streaming::V4).await;
    let port = node.program(|mut tcp| async move { tcp.write_all(b"bye").await.unwrap() }).await;
    let mut client = node.spdy().await;
    let (error, data) = client.connect(port).await;
    client.ended(data).await;
    assert!(client.text(data) == "bye" && client.at(data).fin);
    client.fin(data).await;
    client.ended(error).await;
    assert!(client.at(error).fin && client.text(error).is_empty());
    client.ping(1).await;
    client.until("a pong", |client| client.pongs == 1).await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_program_that_takes_nothing_loses_its_connection_and_the_others_go_on() {
    let node = Node::start(Streaming::V4).await;
    let stuck = node
        .program(|tcp| async move {
            sleep(2 * LONG).await;
            drop(tcp);
        })
        .await;
    let echo = node.echo().await;
    let mut client = node.spdy().await;
    let (_, slow) = client.connect(stuck).await;
    let (_, data) = client.connect(echo).await;
    let begun = Instant::now();
    // More than the kernel keeps for both ends.
    client.write(slow, &vec![0; 16 * 1024 * 1024]).await;
    client.write(data, b"hello").await;
    client.until("an echo", |client| client.text(data) == "hello").await;
    assert!(begun.elapsed() >= STALL);
    client.ended(slow).await;
    assert_eq!(client.at(slow).reset, Some(RstStatus::CANCEL));
    drop(client);
    node.stop().await;
}

/// Data streams before their error streams, two requests at once, and a client that names none.
async fn interleaved(node: &Node, mut client: Client<Io>) {
    let port = node.echo().await;
    let first = client.open(&Half::Data.headers(port, 70)).await;
    client.write(first, b"first").await;
    let second = client.open(&Half::Data.headers(port, 71)).await;
    client.fin(second).await;
    let second_error = client.open(&Half::Error.headers(port, 71)).await;
    let first_error = client.open(&Half::Error.headers(port, 70)).await;
    let nameless = |half: Half| {
        Headers::new()
            .with(portforward::STREAM_TYPE_HEADER, half.name())
            .with(portforward::PORT_HEADER, port.to_string())
    };
    let third_error = client.open(&nameless(Half::Error)).await;
    let third = client.open(&nameless(Half::Data)).await;
    client.write(third, b"third").await;
    client.until("an echo", |client| client.text(first) == "first" && client.text(third) == "third").await;
    client.ended(second_error).await;
    assert!(client.text(second).is_empty() && client.at(second).fin);
    client.fin(first).await;
    client.fin(third).await;
    client.ended(first_error).await;
    client.ended(third_error).await;
}

#[tokio::test]
async fn item_069_pairs_are_made_by_request_in_any_order() {
    let node = Node::start(Streaming::V5).await;
    interleaved(&node, node.spdy().await).await;
    for seed in 0..8 {
        interleaved(&node, node.tunnel(seed).await).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn item_070_a_bad_port_is_reset_and_the_others_go_on() {
    let node = Node::start(Streaming::V4).await;
    let echo = node.echo().await;
    let mut client = node.spdy().await;
    let (_, data) = client.connect(echo).await;
    let headers = |half: &str, port: &str| {
        Headers::new().with("streamType", half).with("port", port).with("requestID", "x")
    };
    for (half, port) in [("data", "0"), ("error", "65536"), ("data", "+1"), ("data", ""), ("other", "80")] {
        let bad = client.open(&headers(half, port)).await;
        client.ended(bad).await;
        assert!(!client.at(bad).open && client.at(bad).reset == Some(RstStatus::CANCEL), "{half} {port}");
    }
    client.write(data, b"on").await;
    client.until("an echo", |client| client.text(data) == "on").await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn floods_of_streams_and_pings_are_bounded() {
    let node = Node::start(Streaming::V4).await;
    let mut client = node.spdy().await;
    let mut streams = Vec::new();
    for n in 0..MAX_PAIRS as u64 + 50 {
        streams.push(client.open(&Half::Error.headers(80, n)).await);
    }
    // Written without a look at the answers.
    let mut pings = BytesMut::new();
    for id in 0..5000 {
        Encoder::ping(&mut pings, 2 * id + 1);
    }
    client.write.write_all(&pings).await.unwrap();
    client.write.flush().await.unwrap();
    client.until("all pongs", |client| client.pongs == 5000).await;
    let (taken, refused) = streams.split_at(MAX_PAIRS);
    assert!(taken.iter().all(|id| client.at(*id).open));
    assert!(refused.iter().all(|id| client.at(*id).reset == Some(RstStatus::REFUSED_STREAM)));
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_closes_the_connections() {
    let node = Node::start(Streaming::V5).await;
    let (ended, mut ends) = mpsc::channel(4);
    let port = node
        .program(move |mut tcp| {
            let ended = ended.clone();
            async move {
                tcp.write_all(b"up").await.unwrap();
                let _ = tcp.read_to_end(&mut Vec::new()).await;
                ended.send(()).await.unwrap();
            }
        })
        .await;
    for mut client in [node.spdy().await, node.tunnel(5).await] {
        for _ in 0..2 {
            let (_, data) = client.connect(port).await;
            client.until("the program", |client| client.text(data) == "up").await;
        }
        drop(client);
        for _ in 0..2 {
            assert!(timeout(LONG, ends.recv()).await.is_ok());
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn the_cut_ends_a_session_with_goaway() {
    let node = Node::start(Streaming::V5).await;
    let echo = node.echo().await;
    let mut clients = [node.spdy().await, node.tunnel(1).await];
    for client in &mut clients {
        let (_, data) = client.connect(echo).await;
        client.write(data, b"x").await;
        client.until("an echo", |client| client.text(data) == "x").await;
    }
    node.drain.cut();
    for client in &mut clients {
        client.until("GOAWAY", |client| client.goaway).await;
    }
    clients[1].until("Close", |client| client.close == Some(ws::CloseCode::NORMAL)).await;
    assert_eq!(node.drain.finish(Duration::from_secs(20)).await, Drained::Cut);
}

#[tokio::test]
async fn a_tunnel_carries_spdy_however_it_is_cut() {
    let node = Node::start(Streaming::V5).await;
    let (echo, refused) = (node.echo().await, closed_port().await);
    for seed in 0..6 {
        let mut client = node.tunnel(seed).await;
        let sent = bytes(seed as u32, 200_000);
        let (error, data) = client.connect(echo).await;
        let (bad, _) = client.connect(refused).await;
        client.write(data, &sent).await;
        client.fin(data).await;
        client.ended(error).await;
        client.ended(bad).await;
        assert!(client.at(data).data == sent);
        let mut close = BytesMut::new();
        let mask = Some(ws::MaskKey([9; 4]));
        ws::Encoder::close(&mut close, Some(&ws::Close::normal()), mask);
        client.write.write_all(&close).await.unwrap();
        client.write.flush().await.unwrap();
        client.until("Close", |client| client.close == Some(ws::CloseCode::NORMAL)).await;
        assert!(client.goaway);
    }
    node.stop().await;
}

#[tokio::test]
async fn text_in_a_tunnel_ends_it_with_its_code() {
    let node = Node::start(Streaming::V5).await;
    let mut client = node.tunnel(0).await;
    let mut out = BytesMut::new();
    ws::Encoder::message(&mut out, ws::Kind::Text, b"x", Some(ws::MaskKey([1; 4])));
    client.write.write_all(&out).await.unwrap();
    client.write.flush().await.unwrap();
    client.until("Close", |client| client.close == Some(ws::CloseCode::UNSUPPORTED)).await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn ports_of_an_old_client_are_channels() {
    let node = Node::start(Streaming::V4).await;
    let (echo, refused) = (node.echo().await, closed_port().await);
    for (protocol, encoding) in [
        ("", Encoding::Binary),
        ("v4.channel.k8s.io", Encoding::Binary),
        ("v4.base64.channel.k8s.io", Encoding::Base64),
    ] {
        let target = format!("{TARGET}?port={echo}&port={refused}");
        let (head, mut raw, mut io) = node.websocket(&target, protocol).await;
        assert_eq!(head.values("Sec-WebSocket-Protocol").next(), Some(protocol.as_bytes()));
        let sent = bytes(7, 100_000);
        let mut out = BytesMut::new();
        for piece in sent.chunks(10_000) {
            encoding.message(&mut out, 0, piece, Some(ws::MaskKey([3, 1, 4, 1])));
        }
        for cut in out.chunks(977) {
            io.write_all(cut).await.unwrap();
            io.flush().await.unwrap();
        }
        let mut decoder = ws::Decoder::new(ws::Role::Client, ws::Limits::default());
        let mut parts = crate::wire::channel::Parts::new(encoding);
        let mut channels = vec![Vec::new(); 4];
        let failed = format!("error forwarding port {refused} to pod u-1, uid : ");
        let read = async {
            loop {
                while let Some(event) = decoder.decode(&mut raw).unwrap() {
                    let ws::Event::Data(data) = event else { panic!("{event:?}") };
                    if let Some(part) = parts.push(data) {
                        channels[usize::from(part.channel)].extend_from_slice(&part.bytes);
                    }
                }
                if channels[0].len() >= 2 + sent.len() && channels[3].len() > 2 {
                    break;
                }
                assert!(fill(&mut io, &mut raw).await, "closed early");
            }
        };
        timeout(LONG, read).await.unwrap();
        for (channel, port) in [(0, echo), (1, echo), (2, refused), (3, refused)] {
            assert_eq!(channels[channel][..2], port.to_le_bytes());
        }
        assert!(channels[0][2..] == sent && channels[1].len() == 2 && channels[2].len() == 2);
        assert!(channels[3][2..].starts_with(failed.as_bytes()));
    }
    node.stop().await;
}

#[tokio::test]
async fn an_old_clients_session_ends_with_its_last_connection() {
    let node = Node::start(Streaming::V4).await;
    let port = node.program(|mut tcp| async move { tcp.write_all(b"bye").await.unwrap() }).await;
    let (_, mut raw, mut io) = node.websocket(&format!("{TARGET}?port={port}"), "").await;
    // Until a write fails, nothing tells that the program has gone both ways.
    let mut out = BytesMut::new();
    Encoding::Binary.message(&mut out, 0, b"x", Some(ws::MaskKey([0; 4])));
    let closed = async {
        loop {
            if raw.ends_with(&[0x88, 2, 0x03, 0xe8]) {
                return;
            }
            let _ = io.write_all(&out).await;
            let _ = io.flush().await;
            let _ = timeout(Duration::from_millis(50), fill(&mut io, &mut raw)).await;
        }
    };
    timeout(LONG, closed).await.unwrap();
    drop(io);
    node.stop().await;
}

#[tokio::test]
async fn refusals_are_the_kubelets() {
    let node = Node::start(Streaming::V4).await;
    let spdy = |target: &str, more: &str| format!("POST {target} HTTP/1.1\r\nHost: node\r\n{SPDY}{more}");
    let missing =
        "unable to upgrade: header X-Stream-Protocol-Version does not exist in request with 2 headers\n";
    assert_eq!(node.refusal(&spdy(TARGET, "")).await, (400, missing.to_owned()));
    let other = spdy(TARGET, "\r\nX-Stream-Protocol-Version: a, b\r\nX-Stream-Protocol-Version: c");
    let (head, body) = node.ask(&other).await.expect_err("a refusal");
    assert_eq!(head.status, 403);
    let accepted: Vec<_> = head.values("X-Accepted-Stream-Protocol-Versions").collect();
    assert_eq!(accepted, [b"portforward.k8s.io"]);
    assert_eq!(
        body,
        "unable to upgrade: unable to negotiate protocol: client supports [a b c], server accepts \
         [portforward.k8s.io]\n"
    );
    let cases = [
        ("/portForward/shop/nobody", 404, "pod does not exist"),
        ("/portForward/shop/cart-0/u-2", 404, "pod not found"),
        ("/portForward/shop/done", 500, "pod not found (\"done_shop\")"),
        ("/portForward/shop", 404, "404 page not found\n"),
        ("/portForward/shop/cart-0/u-1/x", 404, "404 page not found\n"),
    ];
    for (target, status, text) in cases {
        let more = format!("\r\n{PROTOCOL}");
        assert_eq!(node.refusal(&spdy(target, &more)).await, (status, text.to_owned()), "{target}");
    }
    let syntax = "unable to parse \"x\" as a port: strconv.ParseUint: parsing \"x\": invalid syntax";
    let range =
        "unable to parse \"65536\" as a port: strconv.ParseUint: parsing \"65536\": value out of range";
    let cases = [
        ("", "query parameter \"port\" is required"),
        ("?port=", "query parameter \"port\" cannot be empty"),
        ("?port=80&port=x", syntax),
        ("?port=65536", range),
        ("?port=0", "port \"0\" must be > 0"),
    ];
    for (query, text) in cases {
        let head = websocket(&format!("{TARGET}{query}"), "v4.channel.k8s.io");
        assert_eq!(node.refusal(&head).await, (400, text.to_owned()), "{query}");
    }
    // A tunnel is nothing to a node before v5, and needs no port in the query.
    let tunnel = websocket(&format!("{TARGET}?port=80"), portforward::TUNNEL_PROTOCOL);
    assert_eq!(node.refusal(&tunnel).await, (403, String::new()));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_alone_is_told_and_reset_in_time() {
    let (near, far) = tokio::io::duplex(4096);
    let (drain, settings) = (Drain::new(), Settings::default());
    let job = Job { kind: Kind::Spdy, sandbox: "box".to_owned() };
    let serve = run(far, Bytes::new(), job, &settings, &drain);
    let begun = Instant::now();
    let client = async {
        let mut client = Client::new(near, BytesMut::new(), None);
        let error = client.open(&Half::Error.headers(80, 1)).await;
        let data = client.open(&Half::Data.headers(80, 2)).await;
        client.ended(error).await;
        client.ended(data).await;
        assert_eq!(client.text(error), "(conn=box, request=1) timed out waiting for streams");
        assert!(begun.elapsed() >= PAIR_TIMEOUT && begun.elapsed() < 2 * PAIR_TIMEOUT);
    };
    let (end, ()) = tokio::join!(serve, client);
    assert!(matches!(end, End::ClientGone), "{end:?}");
}

#[tokio::test]
async fn a_stream_that_is_there_twice_is_reset_and_the_first_goes_on() {
    let node = Node::start(Streaming::V4).await;
    let port = node.echo().await;
    let mut client = node.spdy().await;
    let error = client.open(&Half::Error.headers(port, 9)).await;
    let twice = client.open(&Half::Error.headers(port, 9)).await;
    client.ended(twice).await;
    assert_eq!(client.at(twice).reset, Some(RstStatus::CANCEL));
    let data = client.open(&Half::Data.headers(port, 9)).await;
    client.write(data, b"on").await;
    client.fin(data).await;
    client.ended(error).await;
    assert_eq!(client.text(data), "on");
    let told = "error processing stream for request 9: error stream already assigned";
    assert_eq!(client.text(error), told);
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn data_before_the_error_stream_is_bounded() {
    let node = Node::start(Streaming::V4).await;
    let port = node.echo().await;
    let mut client = node.spdy().await;
    let early = client.open(&Half::Data.headers(port, 1)).await;
    client.write(early, &vec![1; PIPE]).await;
    let over = client.open(&Half::Data.headers(port, 2)).await;
    client.write(over, &vec![2; PIPE + 1]).await;
    client.ended(over).await;
    assert_eq!(client.at(over).reset, Some(RstStatus::CANCEL));
    let error = client.open(&Half::Error.headers(port, 1)).await;
    client.fin(early).await;
    client.ended(error).await;
    assert!(client.at(early).data == vec![1; PIPE]);
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_reset_of_the_client_ends_its_connection_only() {
    let node = Node::start(Streaming::V4).await;
    let echo = node.echo().await;
    let mut client = node.spdy().await;
    let (error, data) = client.connect(echo).await;
    let (_, other) = client.connect(echo).await;
    client.write(data, b"x").await;
    client.until("an echo", |client| client.text(data) == "x").await;
    let mut out = BytesMut::new();
    Encoder::rst_stream(&mut out, data, RstStatus::CANCEL);
    client.send(out).await;
    // What kubectl waits for.
    client.ended(error).await;
    assert!(client.at(error).fin && client.text(error).is_empty());
    client.write(other, b"on").await;
    client.until("an echo", |client| client.text(other) == "on").await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_pauses_loses_nothing() {
    let node = Node::start(Streaming::V4).await;
    let echo = node.echo().await;
    let mut client = node.spdy().await;
    let (error, data) = client.connect(echo).await;
    client.until("a reply", |client| client.at(data).open).await;
    // More than the kernel keeps on the whole way there and back.
    let sent = bytes(3, 48 * 1024 * 1024);
    let mut out = BytesMut::new();
    for piece in sent.chunks(1024 * 1024) {
        out.put_slice(&Encoder::data_head(data, piece.len(), false));
        out.put_slice(piece);
    }
    let written = timeout(STALL + Duration::from_secs(2), client.write.write_all_buf(&mut out)).await;
    assert!(written.is_err(), "all was taken");
    client.send(out).await;
    client.fin(data).await;
    client.ended(error).await;
    assert!(client.at(data).data == sent && client.at(data).fin);
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn an_old_client_that_pauses_at_the_end_gets_all_there_was() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut near, far) = tokio::io::duplex(1024);
    let (drain, settings) = (Drain::new(), Settings::default());
    let legacy = Legacy::new(Encoding::Binary, vec![port]).unwrap();
    let job = Job { kind: Kind::Legacy(legacy, Encoding::Binary), sandbox: "box".to_owned() };
    let serve = run(far, Bytes::new(), job, &settings, &drain);
    let program = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(&vec![7; 60_000]).await.unwrap();
        tcp.shutdown().await.unwrap();
    };
    let client = async {
        // Longer than everything that is not the client's own.
        sleep(Duration::from_secs(4)).await;
        let mut seen = Vec::new();
        near.read_to_end(&mut seen).await.unwrap();
        (seen.len(), seen.ends_with(&[0x88, 2, 3, 0xe8]))
    };
    let (_, (), (seen, closed)) = tokio::join!(serve, program, client);
    assert!(seen > 60_000 && closed, "{seen} bytes, Close 1000: {closed}");
}
