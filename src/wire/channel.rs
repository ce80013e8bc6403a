//! Channels: the streams of an exec or attach as messages of one WebSocket.
//!
//! Owns the subprotocols ([`Subprotocol`]), the form of a message, which is a channel and a payload
//! ([`Parts`], [`Encoder`]), and the rules by which a server and a client of remotecommand take messages
//! ([`Decoder`]). Results and terminal sizes inside the payloads are `remotecommand`'s.
//! Invariants: a message comes out in the pieces it came in, and a channel's bytes are the same whatever the
//! cuts and fragments were; what a peer may not write is dropped, it is never an error; in base64, the bytes
//! of a bad message are dropped with it.
//! Bounds: [`MAX_HELD`] bytes of a base64 message wait for its end; frames of ours carry at most
//! [`MAX_PAYLOAD`] bytes and the channel.
//! Source: apimachinery `pkg/util/httpstream/wsstream/conn.go`; kubelet
//! `pkg/cri/streaming/remotecommand/websocket.go`; client-go `tools/remotecommand/websocket.go`; apiserver
//! `pkg/util/proxy/websocket.go`.

#[cfg(test)]
mod tests;

use crate::wire::remotecommand::{Asked, Outcome, Protocol, StreamSet, StreamType};
use crate::wire::ws::{self, CloseCode, Data, Kind, MaskKey, base64, handshake};
use bytes::{Buf, Bytes, BytesMut};

/// Most bytes that follow the channel in a frame of ours: what Go peers write and expect. Longer data goes
/// in several messages, which a stream does not show.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// Most decoded bytes of a base64 message that wait for its end, so that a bad one is dropped as a whole: what
/// known clients put into one. Of a longer one the front is delivered, and only the rest is dropped where it
/// goes bad.
pub const MAX_HELD: usize = 32 * 1024;

/// In place of a channel in v5: the channel that follows is closed.
pub const CLOSE: u8 = 255;

/// Why a session has to end. Messages that go nowhere are no reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A v5 CLOSE of another length than two bytes.
    #[error("channel close message is not two bytes long")]
    CloseSize,
    /// A v5 CLOSE of a channel that does not exist.
    #[error("channel close message for unknown channel {0}")]
    CloseChannel(u8),
    /// Text from a v5 server. The text is client-go's.
    #[error("unexpected message type: 1")]
    Text,
}

/// What a WebSocket carries, by its name in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// None was named: like `channel.k8s.io`.
    Unnamed,
    /// `channel.k8s.io`
    Channel,
    /// `base64.channel.k8s.io`
    Base64,
    /// `v4.channel.k8s.io`
    V4,
    /// `v4.base64.channel.k8s.io`
    V4Base64,
    /// `v5.channel.k8s.io`
    V5,
}

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A byte for the channel, then the payload.
    Binary,
    /// A digit for the channel, then the payload in padded base64.
    Base64,
}

/// Pieces of WebSocket messages into pieces of channel messages, whatever the channels mean.
#[derive(Debug)]
pub struct Parts {
    encoding: Encoding,
    /// The channel of the message that is coming in, once its first byte has.
    channel: Option<u8>,
    /// A part of it was delivered.
    started: bool,
    /// `None` when the rest of the message is dropped.
    digits: Option<base64::Decoder>,
    /// Decoded bytes that wait for the end of the message.
    held: BytesMut,
}

/// A piece of a channel message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Any byte; in base64, what the digit stands for.
    pub channel: u8,
    /// Part of the payload. Empty only where a message has no more bytes at its end.
    pub bytes: Bytes,
    /// The first part.
    pub start: bool,
    /// The last part; may be the first as well.
    pub end: bool,
}

/// Pieces of WebSocket messages into what they mean in remotecommand, by the rules of one side.
#[derive(Debug)]
pub struct Decoder {
    subprotocol: Subprotocol,
    side: ws::Role,
    parts: Parts,
    /// What the peer may still write.
    open: StreamSet,
    /// The channel of a CLOSE whose message has not ended.
    closing: Option<u8>,
}

/// What a peer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a stream; never none.
    Data {
        /// Stdin or resize at a server; stdout, stderr or error at a client.
        stream: StreamType,
        /// Some of its bytes.
        bytes: Bytes,
    },
    /// The client will send no more on this stream. Once for each, and v5 only.
    Closed(StreamType),
}

/// Streams into messages, each in a frame of its own.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    subprotocol: Subprotocol,
}

/// The channel of a stream.
pub fn number(stream: StreamType) -> u8 {
    match stream {
        StreamType::Stdin => 0,
        StreamType::Stdout => 1,
        StreamType::Stderr => 2,
        StreamType::Error => 3,
        StreamType::Resize => 4,
    }
}

/// The stream of a channel.
pub fn from_number(channel: u8) -> Option<StreamType> {
    StreamType::ALL.into_iter().find(|stream| number(*stream) == channel)
}

/// Whether a WebSocket request is the translator's: its first line of
/// [`PROTOCOL_HEADER`](handshake::PROTOCOL_HEADER) has `v5.channel.k8s.io` anywhere.
pub fn wants_translator(first_line: &str) -> bool {
    handshake::items(first_line).any(|item| item == Subprotocol::V5.name())
}

/// Where a server writes its first, empty message, which tells the client that the session stands: the lowest
/// channel it can write.
pub fn first_stream(asked: Asked) -> StreamType {
    match asked {
        Asked { stdout: true, .. } => StreamType::Stdout,
        Asked { stderr: true, tty: false, .. } => StreamType::Stderr,
        _ => StreamType::Error,
    }
}

// === impl Error ===

impl Error {
    /// The code of the Close that answers it.
    pub fn close_code(self) -> CloseCode {
        match self {
            Error::CloseSize | Error::CloseChannel(_) => CloseCode::PROTOCOL_ERROR,
            Error::Text => CloseCode::UNSUPPORTED,
        }
    }
}

// === impl Subprotocol ===

impl Subprotocol {
    /// What a runtime serves. v2 and v3 do not exist over WebSocket.
    pub const RUNTIME: [Subprotocol; 5] =
        [Self::Unnamed, Self::Channel, Self::Base64, Self::V4, Self::V4Base64];

    /// What the translator serves.
    pub const TRANSLATOR: [Subprotocol; 1] = [Self::V5];

    /// The name in headers; empty for [`Subprotocol::Unnamed`].
    pub fn name(self) -> &'static str {
        match self {
            Subprotocol::Unnamed => "",
            Subprotocol::Channel => "channel.k8s.io",
            Subprotocol::Base64 => "base64.channel.k8s.io",
            Subprotocol::V4 => "v4.channel.k8s.io",
            Subprotocol::V4Base64 => "v4.base64.channel.k8s.io",
            Subprotocol::V5 => "v5.channel.k8s.io",
        }
    }

    /// The subprotocol of that exact name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Unnamed, Self::Channel, Self::Base64, Self::V4, Self::V4Base64, Self::V5]
            .into_iter()
            .find(|subprotocol| subprotocol.name() == name)
    }

    /// The version of remotecommand, which says how results are written.
    pub fn version(self) -> Protocol {
        match self {
            Subprotocol::Unnamed | Subprotocol::Channel | Subprotocol::Base64 => Protocol::V1,
            Subprotocol::V4 | Subprotocol::V4Base64 => Protocol::V4,
            Subprotocol::V5 => Protocol::V5,
        }
    }

    /// How messages are written.
    pub fn encoding(self) -> Encoding {
        match self {
            Subprotocol::Base64 | Subprotocol::V4Base64 => Encoding::Base64,
            Subprotocol::Unnamed | Subprotocol::Channel | Subprotocol::V4 | Subprotocol::V5 => {
                Encoding::Binary
            }
        }
    }
}

// === impl Encoding ===

impl Encoding {
    /// Most bytes of a payload in one frame of ours. Base64 fills the same frame with fewer.
    pub fn max_payload(self) -> usize {
        match self {
            Encoding::Binary => MAX_PAYLOAD,
            Encoding::Base64 => MAX_PAYLOAD / 4 * 3,
        }
    }

    /// Appends one message in one frame, and says how many bytes of the payload are in it: at most
    /// [`Encoding::max_payload`]. In base64 a channel over 9, which only a port-forward has, is the character
    /// that many behind `0`, as in Go.
    pub fn message(self, out: &mut BytesMut, channel: u8, payload: &[u8], mask: Option<MaskKey>) -> usize {
        let payload = &payload[..payload.len().min(self.max_payload())];
        match self {
            Encoding::Binary => {
                ws::Encoder::frame_of(out, ws::Opcode::Binary, true, &[&[channel], payload], mask);
            }
            Encoding::Base64 => {
                let mut text = BytesMut::with_capacity(base64::encoded_len(payload.len()));
                base64::encode(payload, &mut text);
                // Of two bytes from channel 80 on, so that the text stays UTF-8.
                let mut digit = [0; 2];
                let digit = char::from(channel.wrapping_add(b'0')).encode_utf8(&mut digit);
                ws::Encoder::frame_of(out, ws::Opcode::Text, true, &[digit.as_bytes(), &text], mask);
            }
        }
        payload.len()
    }
}

// === impl Parts ===

impl Parts {
    /// Parts of a connection on which no message came yet.
    pub fn new(encoding: Encoding) -> Self {
        Self { encoding, channel: None, started: false, digits: None, held: BytesMut::new() }
    }

    /// Takes the next piece of a message. `None` for an empty message, and when there is nothing to tell yet.
    pub fn push(&mut self, data: Data) -> Option<Part> {
        let Data { mut bytes, start, end, .. } = data;
        if start {
            self.channel = None;
            self.started = false;
            self.digits = Some(base64::Decoder::standard());
            self.held.clear();
        }
        let channel = match self.channel {
            Some(channel) => channel,
            None => {
                let first = *bytes.first()?;
                bytes.advance(1);
                match self.encoding {
                    Encoding::Binary => first,
                    Encoding::Base64 => first.wrapping_sub(b'0'),
                }
            }
        };
        self.channel = Some(channel);
        if self.encoding == Encoding::Base64 {
            bytes = self.decode(&bytes, end)?;
        }
        if bytes.is_empty() && !end {
            return None;
        }
        let start = !self.started;
        self.started = true;
        Some(Part { channel, bytes, start, end })
    }

    /// What may be delivered of a base64 message: nothing before its end or before there is too much of it.
    /// `None` once it is bad, unless its front was delivered and wants an end.
    fn decode(&mut self, digits: &[u8], end: bool) -> Option<Bytes> {
        if let Some(decoder) = &mut self.digits {
            let mut good = decoder.push(digits, &mut self.held);
            if end {
                good = good.and_then(|()| decoder.finish(&mut self.held));
            }
            if good.is_err() {
                self.digits = None;
                self.held.clear();
            }
        }
        match self.digits {
            None if self.started && end => Some(Bytes::new()),
            None => None,
            Some(_) if end || self.held.len() >= MAX_HELD => Some(self.held.split().freeze()),
            Some(_) => Some(Bytes::new()),
        }
    }
}

// === impl Decoder ===

impl Decoder {
    /// For what a client sends.
    pub fn server(subprotocol: Subprotocol, asked: Asked) -> Self {
        let may = [(asked.stdin, StreamType::Stdin), (asked.tty, StreamType::Resize)];
        Self::new(subprotocol, ws::Role::Server, &may)
    }

    /// For what a server sends.
    pub fn client(subprotocol: Subprotocol, asked: Asked) -> Self {
        let may = [
            (true, StreamType::Error),
            (asked.stdout, StreamType::Stdout),
            (asked.stderr && !asked.tty, StreamType::Stderr),
        ];
        Self::new(subprotocol, ws::Role::Client, &may)
    }

    fn new(subprotocol: Subprotocol, side: ws::Role, may: &[(bool, StreamType)]) -> Self {
        let open = may.iter().filter(|(may, _)| *may).map(|(_, stream)| *stream).collect();
        Self { subprotocol, side, parts: Parts::new(subprotocol.encoding()), open, closing: None }
    }

    /// Takes the next piece of a message. `None` when it says nothing, or nothing yet.
    ///
    /// After an error the session is to end; what follows has no meaning.
    pub fn decode(&mut self, data: Data) -> Result<Option<Event>, Error> {
        // A server does not look at the kind of a message.
        if self.side == ws::Role::Client && self.subprotocol == Subprotocol::V5 && data.kind == Kind::Text {
            return Err(Error::Text);
        }
        let Some(part) = self.parts.push(data) else {
            return Ok(None);
        };
        if self.side == ws::Role::Server
            && self.subprotocol.version().supports_close()
            && part.channel == CLOSE
        {
            return self.close(&part);
        }
        Ok(match from_number(part.channel) {
            Some(stream) if self.open.contains(stream) && !part.bytes.is_empty() => {
                Some(Event::Data { stream, bytes: part.bytes })
            }
            _ => None,
        })
    }

    fn close(&mut self, part: &Part) -> Result<Option<Event>, Error> {
        let closing = match (self.closing, part.bytes.as_ref()) {
            (channel, []) => channel,
            (None, [channel]) => Some(*channel),
            _ => return Err(Error::CloseSize),
        };
        if !part.end {
            self.closing = closing;
            return Ok(None);
        }
        self.closing = None;
        let channel = closing.ok_or(Error::CloseSize)?;
        let stream = from_number(channel).ok_or(Error::CloseChannel(channel))?;
        // A stream that the client cannot write, or has closed, has nothing to close.
        Ok(self.open.remove(stream).then_some(Event::Closed(stream)))
    }
}

// === impl Encoder ===

impl Encoder {
    /// An encoder for either side: a server passes no key, a client a new one each time.
    pub fn new(subprotocol: Subprotocol) -> Self {
        Self { subprotocol }
    }

    /// The head of a binary message of a server, to be written before `len` bytes of payload in one vectored
    /// write: frame and channel. `None` in base64, and over [`MAX_PAYLOAD`].
    pub fn head(self, stream: StreamType, len: usize) -> Option<ws::Head> {
        if self.subprotocol.encoding() != Encoding::Binary || len > MAX_PAYLOAD {
            return None;
        }
        let mut head = ws::Encoder::head(ws::Opcode::Binary, true, 1 + len, None);
        head.push(number(stream));
        Some(head)
    }

    /// Appends one message in one frame, and says how many bytes of the payload are in it: at most
    /// [`Encoding::max_payload`].
    pub fn message(
        self,
        out: &mut BytesMut,
        stream: StreamType,
        payload: &[u8],
        mask: Option<MaskKey>,
    ) -> usize {
        self.subprotocol.encoding().message(out, number(stream), payload, mask)
    }

    /// Appends a server's first message; see [`first_stream`].
    pub fn first(self, out: &mut BytesMut, asked: Asked) {
        self.message(out, first_stream(asked), &[], None);
    }

    /// Appends a server's result, which may be nothing: text in the old subprotocols, else a Status.
    pub fn result(self, out: &mut BytesMut, outcome: &Outcome) {
        let mut bytes = outcome.to_bytes(self.subprotocol.version());
        while !bytes.is_empty() {
            let written = self.message(out, StreamType::Error, &bytes, None);
            bytes.advance(written);
        }
    }

    /// Appends a client's CLOSE of a stream. False, and nothing is written, where the subprotocol has none:
    /// the only way to end stdin there is to end the session.
    pub fn close(self, out: &mut BytesMut, stream: StreamType, mask: Option<MaskKey>) -> bool {
        let can = self.subprotocol.version().supports_close();
        if can {
            Encoding::Binary.message(out, CLOSE, &[number(stream)], mask);
        }
        can
    }
}
