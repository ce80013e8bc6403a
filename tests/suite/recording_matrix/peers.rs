//! Both ends of a session as the protocols have them, and what each heard: written without podgate's links.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use podgate::testing::soon;
use podgate::wire::channel::{self, Encoding, Subprotocol};
use podgate::wire::remotecommand::{Asked, Outcome, Protocol, StreamType};
use podgate::wire::spdy::{self, Encoder, Frame, Headers, RstStatus};
use podgate::wire::ws::{self, Close, Event, MaskKey, Opcode, handshake};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

const MASK: Option<MaskKey> = Some(MaskKey([0x5a, 0x01, 0xff, 0x80]));

/// RFC 6455 section 1.3.
pub(super) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What each side of a session says.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) asked: Asked,
    /// What the far side answers, and speaks, in SPDY.
    pub(super) protocol: Protocol,
    pub(super) stdin: Vec<u8>,
    pub(super) sizes: Vec<u8>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) outcome: Outcome,
    pub(super) seed: u64,
}

/// What an end was told, by stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) stdin: Vec<u8>,
    pub(super) sizes: Vec<u8>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) result: Vec<u8>,
    pub(super) stdin_ends: usize,
}

/// Numbers that a seed gives again.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

/// One end's ear.
pub(super) enum Ear {
    Spdy { decoder: spdy::Decoder, opened: BTreeMap<u32, StreamType>, replies: usize },
    WebSocket { decoder: ws::Decoder, channels: channel::Decoder },
}

/// An end with what it heard so far.
pub(super) struct End {
    ear: Ear,
    input: BytesMut,
    pub(super) heard: Heard,
}

// === impl Chance ===

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % most.max(1)
    }

    pub(super) fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.below(256) as u8).collect()
    }

    fn piece(&mut self) -> usize {
        let most = [1, 40, 9000][self.below(3)];
        1 + self.below(most)
    }

    /// In pieces of any length.
    pub(super) fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.piece().min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }

    /// Writes all, in pieces, each on its way before the next.
    async fn send(&mut self, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
        for piece in self.cut(bytes) {
            to.write_all(piece).await.unwrap();
            to.flush().await.unwrap();
        }
    }

    /// Two rows in one, each in its order.
    fn mix(&mut self, one: Vec<Vec<u8>>, other: Vec<Vec<u8>>) -> Vec<u8> {
        let (mut one, mut other, mut mixed) = (one.into_iter(), other.into_iter(), Vec::new());
        loop {
            let next = if self.below(2) == 0 { one.next() } else { other.next() };
            match next.or_else(|| one.next()).or_else(|| other.next()) {
                Some(bytes) => mixed.extend(bytes),
                None => return mixed,
            }
        }
    }
}

// === impl End ===

impl End {
    fn spdy() -> Self {
        let decoder = spdy::Decoder::new();
        Self::new(Ear::Spdy { decoder, opened: BTreeMap::new(), replies: 0 })
    }

    fn websocket(role: ws::Role, subprotocol: Subprotocol, asked: Asked) -> Self {
        let channels = match role {
            ws::Role::Server => channel::Decoder::server(subprotocol, asked),
            ws::Role::Client => channel::Decoder::client(subprotocol, asked),
        };
        let decoder = ws::Decoder::new(role, ws::Limits::default());
        Self::new(Ear::WebSocket { decoder, channels })
    }

    fn new(ear: Ear) -> Self {
        Self { ear, input: BytesMut::new(), heard: Heard::default() }
    }

    /// Reads once; false at the end.
    async fn read(&mut self, from: &mut (impl AsyncRead + Unpin)) -> bool {
        let more = matches!(from.read_buf(&mut self.input).await, Ok(1..));
        self.take();
        more
    }

    async fn read_to_end(&mut self, from: &mut (impl AsyncRead + Unpin)) {
        soon("the end of a session", async { while self.read(from).await {} }).await;
    }

    fn take(&mut self) {
        let (heard, input) = (&mut self.heard, &mut self.input);
        match &mut self.ear {
            Ear::Spdy { decoder, opened, replies } => {
                while let Some(frame) = decoder.decode(input).unwrap() {
                    match frame {
                        Frame::SynStream { id, headers, .. } => {
                            let name = headers.get(StreamType::HEADER).unwrap();
                            opened.insert(id, StreamType::from_name(name).unwrap());
                        }
                        Frame::SynReply { .. } => *replies += 1,
                        Frame::Data { stream, bytes, fin } => {
                            let kind = opened[&stream];
                            heard.add(kind, &bytes);
                            heard.stdin_ends += usize::from(fin && kind == StreamType::Stdin);
                        }
                        _ => {}
                    }
                }
            }
            Ear::WebSocket { decoder, channels } => {
                while let Some(event) = decoder.decode(input).unwrap() {
                    let Event::Data(data) = event else { continue };
                    match channels.decode(data).unwrap() {
                        Some(channel::Event::Data { stream, bytes }) => heard.add(stream, &bytes),
                        Some(channel::Event::Closed(stream)) => {
                            heard.stdin_ends += usize::from(stream == StreamType::Stdin);
                        }
                        None => {}
                    }
                }
            }
        }
    }

    fn opened(&self) -> Vec<(StreamType, u32)> {
        match &self.ear {
            Ear::Spdy { opened, .. } => opened.iter().map(|(id, kind)| (*kind, *id)).collect(),
            Ear::WebSocket { .. } => Vec::new(),
        }
    }

    fn replies(&self) -> usize {
        match &self.ear {
            Ear::Spdy { replies, .. } => *replies,
            Ear::WebSocket { .. } => 0,
        }
    }
}

impl Heard {
    fn add(&mut self, kind: StreamType, bytes: &[u8]) {
        let all = match kind {
            StreamType::Stdin => &mut self.stdin,
            StreamType::Resize => &mut self.sizes,
            StreamType::Stdout => &mut self.stdout,
            StreamType::Stderr => &mut self.stderr,
            StreamType::Error => &mut self.result,
        };
        all.extend_from_slice(bytes);
    }

    fn has_input(&self, plan: &Plan) -> bool {
        self.stdin.len() >= plan.stdin.len() && self.sizes.len() >= plan.sizes.len()
    }
}

// === the far side ===

/// A kubelet that was asked for SPDY.
pub(super) async fn spdy_far(io: impl AsyncRead + AsyncWrite + Unpin, plan: &Plan) -> Heard {
    let mut chance = Chance::new(plan.seed);
    let (mut read, mut write) = split(io);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {}\r\n\r\n",
        plan.protocol.name()
    );
    chance.send(&mut write, head.as_bytes()).await;
    let mut end = End::spdy();
    let streams = plan.asked.streams(plan.protocol).len();
    while end.opened().len() < streams {
        assert!(end.read(&mut read).await, "gone before its streams were open");
    }
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    let opened = end.opened();
    opened.iter().for_each(|(_, id)| encoder.syn_reply(&mut out, *id));
    chance.send(&mut write, &out).await;

    let id = |kind| opened.iter().find(|(have, _)| *have == kind).map(|(_, id)| *id);
    let mut frames = |kind, bytes: &[u8]| match id(kind) {
        Some(id) => chance.cut(bytes).into_iter().map(|piece| data(id, piece)).collect(),
        None => Vec::new(),
    };
    let (stdout, stderr) =
        (frames(StreamType::Stdout, &plan.stdout), frames(StreamType::Stderr, &plan.stderr));
    let output = chance.mix(stdout, stderr);
    let input = async {
        while !end.heard.has_input(plan) {
            assert!(end.read(&mut read).await, "gone before all was said: {:?}", end.heard.stdin.len());
        }
    };
    tokio::join!(chance.send(&mut write, &output), input);

    let mut out = BytesMut::new();
    let result = plan.outcome.to_bytes(plan.protocol);
    if !result.is_empty() {
        out.extend_from_slice(&data(id(StreamType::Error).unwrap(), &result));
    }
    for (kind, id) in &opened {
        match kind {
            StreamType::Stdin | StreamType::Resize => Encoder::rst_stream(&mut out, *id, RstStatus::CANCEL),
            _ => out.extend_from_slice(&Encoder::data_head(*id, 0, true)),
        }
    }
    Encoder::goaway(&mut out, 1);
    chance.send(&mut write, &out).await;
    // The gateway may have had enough.
    let _ = write.shutdown().await;
    end.read_to_end(&mut read).await;
    end.heard
}

/// A kubelet that was asked for WebSocket.
pub(super) async fn ws_far(
    io: impl AsyncRead + AsyncWrite + Unpin,
    subprotocol: Subprotocol,
    plan: &Plan,
) -> Heard {
    let mut chance = Chance::new(plan.seed);
    let (mut read, mut write) = split(io);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
        handshake::accept_key(KEY.as_bytes()),
        subprotocol.name()
    );
    chance.send(&mut write, head.as_bytes()).await;
    let mut end = End::websocket(ws::Role::Server, subprotocol, plan.asked);
    let encoder = channel::Encoder::new(subprotocol);
    let mut first = BytesMut::new();
    encoder.first(&mut first, plan.asked);
    chance.send(&mut write, &first).await;
    let encoding = subprotocol.encoding();
    let asked = plan.asked;
    let mut messages = |kind, bytes: &[u8]| messages(&mut chance, encoding, kind, bytes, None);
    let stdout = if asked.stdout { messages(StreamType::Stdout, &plan.stdout) } else { Vec::new() };
    let stderr =
        if asked.stderr && !asked.tty { messages(StreamType::Stderr, &plan.stderr) } else { Vec::new() };
    let output = chance.mix(stdout, stderr);
    let input = async {
        while !end.heard.has_input(plan) {
            assert!(end.read(&mut read).await, "gone before all was said");
        }
    };
    tokio::join!(chance.send(&mut write, &output), input);
    let mut out = BytesMut::new();
    encoder.result(&mut out, &plan.outcome);
    ws::Encoder::close(&mut out, Some(&Close::normal()), None);
    chance.send(&mut write, &out).await;
    end.read_to_end(&mut read).await;
    end.heard
}

// === the client ===

/// A client that speaks SPDY, once it was answered 101; `early` is what came behind that.
pub(super) async fn spdy_client(io: impl AsyncRead + AsyncWrite + Unpin, early: &[u8], plan: &Plan) -> Heard {
    let mut chance = Chance::new(plan.seed ^ 0x9e37_79b9);
    let (mut read, mut write) = split(io);
    let mut end = End::spdy();
    end.input.extend_from_slice(early);
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    let mut ids = BTreeMap::new();
    for (at, kind) in plan.asked.streams(plan.protocol).iter().enumerate() {
        let id = 2 * at as u32 + 1;
        let headers = Headers::new().with(StreamType::HEADER, kind.name());
        encoder.syn_stream(&mut out, id, &headers).unwrap();
        ids.insert(kind.name(), id);
        if let Ear::Spdy { opened, .. } = &mut end.ear {
            opened.insert(id, kind);
        }
    }
    chance.send(&mut write, &out).await;
    end.take();
    while end.replies() < ids.len() {
        assert!(end.read(&mut read).await, "gone before the streams were open");
    }
    let id = |kind: StreamType| ids.get(kind.name()).copied();
    let mut frames = |kind, bytes: &[u8]| match id(kind) {
        Some(id) => chance.cut(bytes).into_iter().map(|piece| data(id, piece)).collect(),
        None => Vec::new(),
    };
    let (stdin, sizes) = (frames(StreamType::Stdin, &plan.stdin), frames(StreamType::Resize, &plan.sizes));
    let mut input = chance.mix(stdin, sizes);
    if let Some(id) = id(StreamType::Stdin) {
        input.extend(Encoder::data_head(id, 0, true));
    }
    tokio::join!(chance.send(&mut write, &input), end.read_to_end(&mut read));
    end.heard
}

/// A client that speaks WebSocket, once it was answered 101; `early` is what came behind that.
pub(super) async fn ws_client(
    io: impl AsyncRead + AsyncWrite + Unpin,
    early: &[u8],
    subprotocol: Subprotocol,
    plan: &Plan,
) -> Heard {
    let mut chance = Chance::new(plan.seed ^ 0x9e37_79b9);
    let (mut read, mut write) = split(io);
    let mut end = End::websocket(ws::Role::Client, subprotocol, plan.asked);
    end.input.extend_from_slice(early);
    end.take();
    let encoding = subprotocol.encoding();
    let mut messages = |kind, bytes: &[u8]| messages(&mut chance, encoding, kind, bytes, MASK);
    let (stdin, sizes) =
        (messages(StreamType::Stdin, &plan.stdin), messages(StreamType::Resize, &plan.sizes));
    let mut input = chance.mix(stdin, sizes);
    let mut out = BytesMut::new();
    if plan.asked.stdin {
        channel::Encoder::new(subprotocol).close(&mut out, StreamType::Stdin, MASK);
    }
    input.extend_from_slice(&out);
    let sent = async {
        chance.send(&mut write, &input).await;
    };
    tokio::join!(sent, end.read_to_end(&mut read));
    end.heard
}

fn data(id: u32, bytes: &[u8]) -> Vec<u8> {
    [&Encoder::data_head(id, bytes.len(), false)[..], bytes].concat()
}

/// Messages on a channel; those of a client in fragments sometimes, with pings between them.
fn messages(
    chance: &mut Chance,
    encoding: Encoding,
    kind: StreamType,
    bytes: &[u8],
    mask: Option<MaskKey>,
) -> Vec<Vec<u8>> {
    let pieces: Vec<Bytes> = chance.cut(bytes).into_iter().map(Bytes::copy_from_slice).collect();
    let mut all = Vec::new();
    for piece in pieces {
        let mut out = BytesMut::new();
        if encoding == Encoding::Binary && mask.is_some() && chance.below(3) == 0 {
            ws::Encoder::frame(&mut out, Opcode::Binary, false, &[channel::number(kind)], mask);
            ws::Encoder::ping(&mut out, b"between", mask);
            ws::Encoder::frame(&mut out, Opcode::Continuation, true, &piece, mask);
        } else {
            let written = encoding.message(&mut out, channel::number(kind), &piece, mask);
            assert_eq!(written, piece.len());
        }
        all.push(out.to_vec());
    }
    all
}
