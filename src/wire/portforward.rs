//! Portforward: what the streams of a port-forward carry, whatever the framing below.
//!
//! Owns the pairing of SPDY streams ([`Pairs`]), the channels of old WebSocket clients ([`Legacy`]) and the
//! names and answers of the tunnel, which is SPDY inside a WebSocket ([`wants_tunnel`] and what follows it).
//! Invariants: a stream that is refused leaves the others as they are; a pair is given out once, with both
//! halves of the same request; in the tunnel the bounds of messages mean nothing.
//! Bounds: [`MAX_PAIRS`] pairs, waiting or open; [`MAX_REQUEST_ID`] bytes of a request's name;
//! [`MAX_PORTS`] ports of an old client.
//! Source: kubelet `pkg/cri/streaming/portforward/{constants,httpstream,websocket}.go`; client-go
//! `tools/portforward/{portforward,tunneling_dialer}.go`; apiserver `pkg/util/proxy/streamtunnel.go`.

#[cfg(test)]
mod tests;

use crate::wire::channel::{Encoding, Parts};
use crate::wire::http1::ResponseHead;
use crate::wire::spdy::{self, Headers, RstStatus};
use crate::wire::ws::{CloseCode, Data, Kind, MaskKey, handshake};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// The only protocol over SPDY; kubectl wants it back.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// What comes before a SPDY protocol in the name of its tunnel.
pub const TUNNEL_PREFIX: &str = "SPDY/3.1+";

/// The tunnel that kubectl asks for.
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

/// Body of the 400 for a tunnel request without a tunnel protocol.
pub const NO_TUNNEL_PROTOCOLS: &str = "unable to upgrade: no tunneling spdy protocols provided\n";

/// Body of the 500 when the far side's 101 is not one to SPDY.
pub const MISSING_UPGRADE_HEADERS: &str = "unable to upgrade: missing upgrade headers in response\n";

/// Header of a stream: `error` or `data`.
pub const STREAM_TYPE_HEADER: &str = "streamType";
/// Header of a stream: the port, in decimal.
pub const PORT_HEADER: &str = "port";
/// Header of a stream: what both streams of a pair have in common.
pub const REQUEST_ID_HEADER: &str = "requestID";

/// How long the first stream of a pair waits for the second.
pub const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// Most pairs, waiting or open: as many as have room among the streams of a connection. A stream that would
/// begin one more is refused.
pub const MAX_PAIRS: usize = spdy::MAX_OPEN_STREAMS / 2;

/// Most bytes of a request's name; known clients count in decimal. A stream with a longer one is refused.
pub const MAX_REQUEST_ID: usize = 256;

/// Most ports of an old WebSocket client: a channel is a byte, and each port takes two.
pub const MAX_PORTS: usize = 128;

/// Why a stream is refused: by a reset, without a reply. The texts are the kubelet's and reach only its log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A header is missing or empty.
    #[error("\"{0}\" header is required")]
    Required(&'static str),
    /// Not a decimal number of 16 bits.
    #[error("unable to parse {0:?} as a port")]
    Port(String),
    /// Port 0.
    #[error("port {0:?} must be > 0")]
    PortZero(String),
    /// Neither `error` nor `data`.
    #[error("invalid stream type {0:?}")]
    StreamType(String),
    /// A request's name over [`MAX_REQUEST_ID`].
    #[error("\"{REQUEST_ID_HEADER}\" header is over {MAX_REQUEST_ID} bytes")]
    RequestId,
    /// [`MAX_PAIRS`] are there already.
    #[error("more than {MAX_PAIRS} connections at once")]
    TooMany,
}

/// A tunnel's client sent text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected text message in a tunnel")]
pub struct TunnelText;

/// What a stream of a port-forward is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// For one text at most, from the server.
    Error,
    /// The bytes of one connection.
    Data,
}

/// What the headers of a stream say that a client opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What it is.
    pub half: Half,
    /// The port that it names.
    pub port: u16,
    /// What it has in common with the other of its pair.
    pub request: Bytes,
}

/// The streams of a connection that wait for one another, and how many found one.
#[derive(Debug, Default)]
pub struct Pairs {
    waiting: HashMap<Bytes, Waiting>,
    next: u64,
    open: usize,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    error: Option<u32>,
    data: Option<(u32, u16)>,
}

/// Names a pair that waits, for its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What becomes of a stream that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first of its request: [`Pairs::expire`] is due after [`PAIR_TIMEOUT`].
    First(Ticket),
    /// The second: the connection to the port can be made.
    Paired(Pair),
    /// The request has a stream of this type already. The new one is to be left alone, or reset.
    Duplicate(Failure),
}

/// Both streams of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The error stream.
    pub error: u32,
    /// The data stream.
    pub data: u32,
    /// The port that the data stream names.
    pub port: u16,
    /// The ticket that needs no deadline any more.
    pub ticket: Ticket,
}

/// What to tell about streams that do not become a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where to write the text, if it has come.
    pub error: Option<u32>,
    /// The data stream, if it has come.
    pub data: Option<u32>,
    /// The text.
    pub text: String,
}

/// The messages of a WebSocket client that named its ports in the query: two channels for each port, the first
/// for data.
#[derive(Debug)]
pub struct Legacy {
    encoding: Encoding,
    ports: Vec<u16>,
    parts: Parts,
}

// === impl Error ===

impl Error {
    /// What to reset the stream with.
    pub fn status(&self) -> RstStatus {
        match self {
            Error::Required(_)
            | Error::Port(_)
            | Error::PortZero(_)
            | Error::StreamType(_)
            | Error::RequestId => RstStatus::CANCEL,
            Error::TooMany => RstStatus::REFUSED_STREAM,
        }
    }
}

// === impl TunnelText ===

impl TunnelText {
    /// The code of the Close that answers it.
    pub fn close_code(self) -> CloseCode {
        CloseCode::UNSUPPORTED
    }
}

// === impl Half ===

impl Half {
    /// The value of [`STREAM_TYPE_HEADER`].
    pub fn name(self) -> &'static str {
        match self {
            Half::Error => "error",
            Half::Data => "data",
        }
    }

    /// The headers with which a client opens a stream. It opens the error stream first.
    pub fn headers(self, port: u16, request_id: u64) -> Headers {
        Headers::new()
            .with(STREAM_TYPE_HEADER, self.name())
            .with(PORT_HEADER, port.to_string())
            .with(REQUEST_ID_HEADER, request_id.to_string())
    }
}

// === impl Opening ===

impl Opening {
    /// What a server reads of these headers.
    ///
    /// # Errors
    /// When it refuses the stream.
    pub fn read(stream: u32, headers: &Headers) -> Result<Self, Error> {
        let port = read_port(headers)?;
        let half = read_half(headers)?;
        let request = request_id(stream, half, headers)?;
        Ok(Self { half, port, request })
    }
}

// === impl Pairs ===

impl Pairs {
    /// The pairs of a connection on which no stream came yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a stream that the peer opened. On `Err` it is to be reset with [`Error::status`], and nothing
    /// else.
    pub fn accept(&mut self, stream: u32, headers: &Headers) -> Result<Arrival, Error> {
        let Opening { half, port, request } = Opening::read(stream, headers)?;
        if !self.waiting.contains_key(&request) && self.len() >= MAX_PAIRS {
            return Err(Error::TooMany);
        }

        let next = &mut self.next;
        let pair = self.waiting.entry(request.clone()).or_insert_with(|| {
            *next += 1;
            Waiting { ticket: Ticket(*next), error: None, data: None }
        });
        let taken = match half {
            Half::Error => pair.error.is_some(),
            Half::Data => pair.data.is_some(),
        };
        if taken {
            let (request, half) = (String::from_utf8_lossy(&request), half.name());
            let text =
                format!("error processing stream for request {request}: {half} stream already assigned");
            return Ok(Arrival::Duplicate(pair.failure(text)));
        }
        match half {
            Half::Error => pair.error = Some(stream),
            Half::Data => pair.data = Some((stream, port)),
        }
        let ticket = pair.ticket;
        let (Some(error), Some((data, port))) = (pair.error, pair.data) else {
            return Ok(Arrival::First(ticket));
        };
        self.waiting.remove(&request);
        self.open += 1;
        Ok(Arrival::Paired(Pair { error, data, port, ticket }))
    }

    /// The deadline of a pair has passed: `None` when it was complete or gone by then. `connection` is how the
    /// text names the connection.
    pub fn expire(&mut self, ticket: Ticket, connection: impl fmt::Display) -> Option<Failure> {
        let request = self.waiting.iter().find(|(_, pair)| pair.ticket == ticket)?.0.clone();
        let pair = self.waiting.remove(&request)?;
        let request = String::from_utf8_lossy(&request);
        let text = format!("(conn={connection}, request={request}) timed out waiting for streams");
        Some(pair.failure(text))
    }

    /// The peer reset a stream: when it was waiting, nothing will be paired with it.
    pub fn reset(&mut self, stream: u32) {
        self.waiting
            .retain(|_, pair| pair.error != Some(stream) && pair.data.is_none_or(|(data, _)| data != stream));
    }

    /// To be called once for each pair that was given out, when its streams are gone.
    pub fn close(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// How many pairs are waiting or open.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.open
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Waiting {
    fn failure(&self, text: String) -> Failure {
        Failure { error: self.error, data: self.data.map(|(data, _)| data), text }
    }
}

fn read_port(headers: &Headers) -> Result<u16, Error> {
    let value = required(headers, PORT_HEADER)?;
    let text = || String::from_utf8_lossy(value).into_owned();
    // Go's ParseUint takes no sign, Rust's parse takes a plus.
    let digits = str::from_utf8(value).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(0) => Err(Error::PortZero(text())),
        Some(port) => Ok(port),
        None => Err(Error::Port(text())),
    }
}

fn read_half(headers: &Headers) -> Result<Half, Error> {
    match required(headers, STREAM_TYPE_HEADER)? {
        b"error" => Ok(Half::Error),
        b"data" => Ok(Half::Data),
        other => Err(Error::StreamType(String::from_utf8_lossy(other).into_owned())),
    }
}

fn required<'a>(headers: &'a Headers, name: &'static str) -> Result<&'a [u8], Error> {
    headers.get(name).filter(|value| !value.is_empty()).ok_or(Error::Required(name))
}

/// What a stream has in common with the other of its pair. Clients of old do not name it: they open the error
/// stream and then, with the next id, the data stream.
fn request_id(stream: u32, half: Half, headers: &Headers) -> Result<Bytes, Error> {
    match (headers.get(REQUEST_ID_HEADER), half) {
        (Some(id), _) if id.len() > MAX_REQUEST_ID => Err(Error::RequestId),
        (Some(id), _) if !id.is_empty() => Ok(Bytes::copy_from_slice(id)),
        (_, Half::Error) => Ok(stream.to_string().into()),
        (_, Half::Data) => Ok((i64::from(stream) - 2).to_string().into()),
    }
}

/// What a server writes on the error stream when the connection to the port fails. `pod` is the sandbox's id
/// in practice, and the uid is empty.
pub fn forward_failed(port: u16, pod: &str, uid: &str, why: impl fmt::Display) -> String {
    format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}")
}

// === impl Legacy ===

impl Legacy {
    /// The subprotocols it is served with; the first is for clients that name none.
    pub const PROTOCOLS: [&str; 3] = ["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

    /// The server's side for these ports, in the order of the query; `None` for more than [`MAX_PORTS`].
    pub fn new(encoding: Encoding, ports: Vec<u16>) -> Option<Self> {
        (ports.len() <= MAX_PORTS).then(|| Self { encoding, ports, parts: Parts::new(encoding) })
    }

    /// The ports, by their place in the query.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Appends the first messages of a server: on both channels of each port, the port in two bytes, the
    /// lower first.
    pub fn put_ports(&self, out: &mut BytesMut) {
        for (at, port) in self.ports.iter().enumerate() {
            for half in [Half::Data, Half::Error] {
                self.message(out, at, half, &port.to_le_bytes(), None);
            }
        }
    }

    /// Takes the next piece of a message: bytes for the port at that place. `None` when it says nothing, or
    /// nothing yet; clients can write only to data channels of ports they named.
    pub fn decode(&mut self, data: Data) -> Option<(usize, Bytes)> {
        let part = self.parts.push(data)?;
        let at = usize::from(part.channel / 2);
        let is_data = part.channel.is_multiple_of(2) && at < self.ports.len();
        (is_data && !part.bytes.is_empty()).then_some((at, part.bytes))
    }

    /// Appends one message about the port at that place, and says how many bytes of the payload are in it: at
    /// most [`Encoding::max_payload`]. `at` must be below [`MAX_PORTS`].
    pub fn message(
        &self,
        out: &mut BytesMut,
        at: usize,
        half: Half,
        payload: &[u8],
        mask: Option<MaskKey>,
    ) -> usize {
        debug_assert!(at < MAX_PORTS, "a channel is a byte");
        let channel = 2 * at as u8 + if half == Half::Error { 1 } else { 0 };
        self.encoding.message(out, channel, payload, mask)
    }
}

/// Whether a WebSocket request is the tunnel's: its first line of
/// [`PROTOCOL_HEADER`](handshake::PROTOCOL_HEADER) has a tunnel of a Kubernetes protocol anywhere.
pub fn wants_tunnel(first_line: &str) -> bool {
    handshake::items(first_line).any(|item| item.starts_with(TUNNEL_PREFIX) && item.ends_with(".k8s.io"))
}

/// The protocols inside the tunnels that a client offers, in its order: what the far side is asked for. None
/// is a 400 with [`NO_TUNNEL_PROTOCOLS`].
pub fn tunnelled<S: AsRef<str>>(offered: &[S]) -> impl Iterator<Item = &str> {
    offered.iter().filter_map(|item| item.as_ref().strip_prefix(TUNNEL_PREFIX))
}

/// The tunnel to name in the 101 once the far side chose `protocol`; `None` for no header, when it chose none
/// or one that the client did not offer.
pub fn tunnel_answer<'a, S: AsRef<str>>(offered: &'a [S], protocol: Option<&str>) -> Option<&'a str> {
    let protocol = protocol.filter(|protocol| !protocol.is_empty())?;
    let is_tunnel = |item: &&str| item.strip_prefix(TUNNEL_PREFIX) == Some(protocol);
    offered.iter().map(AsRef::as_ref).find(is_tunnel)
}

/// Whether a 101 of the far side is one to SPDY; else [`MISSING_UPGRADE_HEADERS`].
pub fn is_spdy_upgrade(head: &ResponseHead) -> bool {
    let has = |name: &'static str, token: &[u8]| {
        let value = head.values(name).next().unwrap_or_default().to_ascii_lowercase();
        value.windows(token.len()).any(|part| part == token)
    };
    head.status == 101 && has("connection", b"upgrade") && has("upgrade", b"spdy/3.1")
}

/// The bytes of SPDY in a piece of a tunnel's message, wherever it was cut.
pub fn tunnel_bytes(data: Data) -> Result<Bytes, TunnelText> {
    match data.kind {
        Kind::Binary => Ok(data.bytes),
        Kind::Text => Err(TunnelText),
    }
}
