//! WebSocket frames, for both sides: the browser's and kubectl's way to a stream, and its answer.
//!
//! Owns frames in ([`Decoder`]) and out ([`Encoder`]), the pong rule ([`Pongs`]) and, in [`handshake`], what
//! both sides say before the first frame. What the messages mean is the matter of `channel` and
//! `portforward`.
//!
//! Invariants:
//! - Input may be cut anywhere. A message comes out piece by piece, in pieces of what has arrived, unmasked
//!   in place and without a copy; fragments of one message are pieces of it like any other. A frame of
//!   32 MiB costs no memory of its own.
//! - A control frame is held whole, at most [`MAX_CONTROL_PAYLOAD`] bytes; a longer one is refused at its
//!   head. It may come between the fragments of a message, never inside a frame.
//! - Nothing counts after a Close: the decoder throws it away.
//! - An error ends the reading of the connection; the decoder stays failed. [`Error::close_code`] is what to
//!   tell the peer.
//!
//! Left out on purpose: extensions, which no peer of ours negotiates. Masking keys come from the caller,
//! since there is no randomness in here.
//! Source: RFC 6455 sections 5, 7.4 and 8.

pub(in crate::wire) mod base64;
pub mod handshake;
#[cfg(test)]
mod tests;
mod utf8;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;
use std::ops::Deref;
use utf8::Utf8;

/// Most payload bytes of a message, over all its fragments: the frame limit of the Go servers on the other
/// end, to which a frame is a message. A longer one is an error as soon as a head announces it.
pub const MAX_MESSAGE: u64 = 32 * 1024 * 1024;

/// Most payload bytes of a control frame (RFC 6455 section 5.5). A longer one is an error at its head.
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// Most bytes of the reason in a Close: a control payload without the code. A longer one of ours is cut.
pub const MAX_REASON: usize = MAX_CONTROL_PAYLOAD - 2;

/// Most bytes before a payload: two, a length of eight, a key of four.
pub const MAX_HEAD: usize = 14;

/// What a caller's read buffer must be able to hold for [`Decoder::decode`] to get on: the largest control
/// payload. Messages need no room, they leave in the pieces they came in.
pub const MAX_BUFFERED: usize = MAX_CONTROL_PAYLOAD;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// In place of a length: it follows in two bytes.
const LENGTH_16: u8 = 126;
/// In place of a length: it follows in eight bytes.
const LENGTH_64: u8 = 127;

/// Why the bytes of a peer are not WebSocket frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Bits that only an extension gives a meaning.
    #[error("WebSocket frame has reserved bits {0:#04x}")]
    ReservedBits(u8),
    /// An opcode without a meaning.
    #[error("WebSocket frame has reserved opcode {0:#03x}")]
    Opcode(u8),
    /// A frame of a client without a mask (RFC 6455 section 5.1).
    #[error("WebSocket frame of a client is not masked")]
    NotMasked,
    /// A frame of a server with a mask.
    #[error("WebSocket frame of a server is masked")]
    Masked,
    /// A control frame that claims to have fragments.
    #[error("WebSocket {0} frame is fragmented")]
    FragmentedControl(Opcode),
    /// A control frame over [`MAX_CONTROL_PAYLOAD`].
    #[error("WebSocket {0} frame is over {MAX_CONTROL_PAYLOAD} bytes")]
    ControlTooLarge(Opcode),
    /// A length in more bytes than it needs, or of 64 bits.
    #[error("WebSocket frame has a malformed length")]
    Length,
    /// A continuation of nothing.
    #[error("WebSocket continuation without a message")]
    NothingToContinue,
    /// A message before the last one ended.
    #[error("WebSocket message inside a fragmented message")]
    Interleaved,
    /// More bytes in a message than [`Limits::message`].
    #[error("WebSocket message is over {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A text message that is not UTF-8, where [`Limits::utf8`] asks for it.
    #[error("WebSocket text message is not UTF-8")]
    Text,
    /// A Close with half a code.
    #[error("WebSocket Close frame has one byte")]
    CloseSize,
    /// A Close with a code that must not be sent.
    #[error("WebSocket Close frame has code {0}")]
    CloseCode(u16),
    /// A Close whose reason is not UTF-8.
    #[error("WebSocket Close frame has a reason that is not UTF-8")]
    CloseReason,
    /// The decoder was called again after an error.
    #[error("WebSocket reading has already failed")]
    Failed,
}

/// Which side of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that asked for the upgrade: masks what it sends, takes nothing masked.
    Client,
    /// The side that answered it: takes nothing unmasked.
    Server,
}

/// What a decoder puts up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most payload bytes of a message.
    pub message: u64,
    /// Whether text messages must be UTF-8. Known servers of these protocols do not look. The pieces before
    /// a fault have gone out by then.
    pub utf8: bool,
}

/// One piece of a message, or one control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Data(Data),
    /// To be answered with a pong of the same payload; see [`Pongs`].
    Ping(Bytes),
    /// Answers a ping of ours, or nothing.
    Pong(Bytes),
    /// The last event: the peer sends nothing more. To be answered with [`Encoder::close`], unless it answers
    /// ours.
    Close(Option<Close>),
}

/// The part of a message that has arrived. The pieces of a message follow one another with nothing but
/// control frames between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Of the whole message.
    pub kind: Kind,
    /// Part of the read buffer. Empty only where a message has no more bytes at its end.
    pub bytes: Bytes,
    /// The first piece.
    pub start: bool,
    /// The last piece; may be the first as well.
    pub end: bool,
}

/// What a message says of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Bytes.
    Binary,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment.
    Continuation,
    /// A text message or its first fragment.
    Text,
    /// A binary message or its first fragment.
    Binary,
    /// The last frame of a side.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

/// The payload of a Close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// Why, for programs.
    pub code: CloseCode,
    /// Why, for people; may be empty.
    pub reason: String,
}

/// Why a connection ends (RFC 6455 section 7.4 and its registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(pub u16);

/// The key of a masked frame. A client takes a new, unforeseeable one for each frame (RFC 6455 section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskKey(pub [u8; 4]);

/// Bytes of one direction into events.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    state: State,
    message: Message,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Control { opcode: Opcode, len: usize, mask: Option<MaskKey> },
    Data { rest: u64, fin: bool, mask: Option<MaskKey> },
    Closed,
    Failed,
}

/// The message whose frames are coming in, if any.
#[derive(Debug)]
struct Message {
    /// Its last fragment has not ended yet.
    open: bool,
    kind: Kind,
    /// A piece of it was delivered.
    started: bool,
    /// Announced bytes so far.
    len: u64,
    utf8: Utf8,
}

/// Frames of one direction into bytes. Without state: a server passes no key, a client a new one each time.
#[derive(Debug)]
pub struct Encoder;

/// The bytes before a payload.
#[derive(Clone, Copy)]
pub struct Head {
    /// One more than a head of frames, for the channel that comes before a payload.
    bytes: [u8; MAX_HEAD + 1],
    len: usize,
}

/// Which pong is owed: only the last ping needs an answer (RFC 6455 section 5.5.3), so a flood of pings
/// costs a slow peer's session no memory.
#[derive(Debug, Default)]
pub struct Pongs {
    owed: Option<([u8; MAX_CONTROL_PAYLOAD], usize)>,
}

// === impl Error ===

impl Error {
    /// The code of the Close that answers it.
    pub fn close_code(self) -> CloseCode {
        match self {
            Error::TooLarge { .. } => CloseCode::TOO_LARGE,
            Error::Text | Error::CloseReason => CloseCode::INVALID_PAYLOAD,
            Error::ReservedBits(_)
            | Error::Opcode(_)
            | Error::NotMasked
            | Error::Masked
            | Error::FragmentedControl(_)
            | Error::ControlTooLarge(_)
            | Error::Length
            | Error::NothingToContinue
            | Error::Interleaved
            | Error::CloseSize
            | Error::CloseCode(_)
            | Error::Failed => CloseCode::PROTOCOL_ERROR,
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { message: MAX_MESSAGE, utf8: false }
    }
}

// === impl Kind ===

impl From<Kind> for Opcode {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Text => Opcode::Text,
            Kind::Binary => Opcode::Binary,
        }
    }
}

// === impl Opcode ===

impl Opcode {
    fn from_wire(bits: u8) -> Result<Self, Error> {
        Ok(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return Err(Error::Opcode(bits)),
        })
    }

    fn to_wire(self) -> u8 {
        match self {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xa,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// === impl Close ===

impl Close {
    /// The end of a session that went as it should: no reason, as Go servers write it.
    pub fn normal() -> Self {
        CloseCode::NORMAL.into()
    }

    fn parse(payload: &[u8]) -> Result<Option<Self>, Error> {
        let (code, reason) = match payload {
            [] => return Ok(None),
            [_] => return Err(Error::CloseSize),
            [a, b, reason @ ..] => (CloseCode(u16::from_be_bytes([*a, *b])), reason),
        };
        if !code.may_be_sent() {
            return Err(Error::CloseCode(code.0));
        }
        let reason = str::from_utf8(reason).map_err(|_| Error::CloseReason)?;
        Ok(Some(Self { code, reason: reason.to_owned() }))
    }
}

impl From<CloseCode> for Close {
    fn from(code: CloseCode) -> Self {
        Self { code, reason: String::new() }
    }
}

// === impl CloseCode ===

impl CloseCode {
    /// It is done.
    pub const NORMAL: Self = Self(1000);
    /// The server stops, or the page was left.
    pub const GOING_AWAY: Self = Self(1001);
    /// Not WebSocket, or not the subprotocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// A kind of message that is not taken here.
    pub const UNSUPPORTED: Self = Self(1003);
    /// Text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// Against the rules of the house.
    pub const POLICY: Self = Self(1008);
    /// A message over the limit.
    pub const TOO_LARGE: Self = Self(1009);
    /// The server failed.
    pub const INTERNAL_ERROR: Self = Self(1011);

    /// Whether a frame may carry it: the registered ones, and those of libraries and applications. Not 1005,
    /// 1006 and 1015, which stand for what was not on the wire.
    pub fn may_be_sent(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

// === impl MaskKey ===

impl MaskKey {
    /// Masks or unmasks in place. The key then is that of the next byte of the same frame.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        let [a, b, c, d] = self.0;
        let word = u128::from_ne_bytes([a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d]);
        let (words, rest) = bytes.as_chunks_mut::<16>();
        for bytes in words {
            *bytes = (u128::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(self.0.iter().cycle()) {
            *byte ^= key;
        }
        self.0.rotate_left(rest.len() % 4);
    }
}

// === impl Decoder ===

impl Decoder {
    /// A decoder at the first byte after the handshake, of what the other side than `role` sends.
    pub fn new(role: Role, limits: Limits) -> Self {
        Self { role, limits, state: State::Head, message: Message::none() }
    }

    /// Takes the next event off the front of `input`; `None` when more bytes are needed.
    ///
    /// Call it until `None`. What it leaves in `input` is shorter than [`MAX_BUFFERED`] and must stay there.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        let event = self.step(input);
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// Whether the peer's Close has come: what the end of the connection is no surprise after.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn step(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        loop {
            match self.state {
                State::Head => match self.head(input)? {
                    Some(state) => self.state = state,
                    None => return Ok(None),
                },
                State::Control { len, .. } if input.len() < len => return Ok(None),
                State::Control { opcode, len, mask } => {
                    let payload = take(input, len, mask).0;
                    self.state = State::Head;
                    return Ok(Some(match opcode {
                        Opcode::Ping => Event::Ping(payload),
                        Opcode::Pong => Event::Pong(payload),
                        _ => {
                            let close = Close::parse(&payload)?;
                            self.state = State::Closed;
                            Event::Close(close)
                        }
                    }));
                }
                State::Data { rest: 1.., .. } if input.is_empty() => return Ok(None),
                State::Data { rest, fin, mask } => {
                    let len = usize::try_from(rest).map_or(input.len(), |rest| rest.min(input.len()));
                    let (bytes, mask) = take(input, len, mask);
                    let rest = rest - len as u64;
                    self.state = if rest == 0 { State::Head } else { State::Data { rest, fin, mask } };
                    let end = fin && rest == 0;
                    // An empty fragment says nothing unless it is the last.
                    if end || !bytes.is_empty() {
                        return self.message.piece(bytes, end).map(|data| Some(Event::Data(data)));
                    }
                }
                State::Closed => {
                    input.clear();
                    return Ok(None);
                }
                State::Failed => return Err(Error::Failed),
            }
        }
    }

    /// Takes a whole head off the front of `input`. What its first two bytes say is judged without the rest.
    fn head(&mut self, input: &mut BytesMut) -> Result<Option<State>, Error> {
        let [first, second, rest @ ..] = input.as_ref() else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(Error::ReservedBits(first & RESERVED));
        }
        let opcode = Opcode::from_wire(first & OPCODE)?;
        let fin = first & FIN != 0;
        match (self.role, second & MASKED != 0) {
            (Role::Server, false) => return Err(Error::NotMasked),
            (Role::Client, true) => return Err(Error::Masked),
            _ => {}
        }
        let short = second & LENGTH;
        match opcode {
            _ if opcode.is_control() && !fin => return Err(Error::FragmentedControl(opcode)),
            _ if opcode.is_control() && short >= LENGTH_16 => return Err(Error::ControlTooLarge(opcode)),
            Opcode::Continuation if !self.message.open => return Err(Error::NothingToContinue),
            Opcode::Text | Opcode::Binary if self.message.open => return Err(Error::Interleaved),
            _ => {}
        }

        let (len, rest) = match short {
            LENGTH_16 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Ok(None),
            },
            LENGTH_64 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                None => return Ok(None),
            },
            len => (u64::from(len), rest),
        };
        let minimal = match short {
            LENGTH_16 => len >= u64::from(LENGTH_16),
            LENGTH_64 => len > u64::from(u16::MAX) && len <= i64::MAX as u64,
            _ => true,
        };
        if !minimal {
            return Err(Error::Length);
        }
        let (mask, rest) = match self.role {
            Role::Client => (None, rest),
            Role::Server => match rest.split_first_chunk() {
                Some((key, rest)) => (Some(MaskKey(*key)), rest),
                None => return Ok(None),
            },
        };
        let head = input.len() - rest.len();

        let state = if opcode.is_control() {
            State::Control { opcode, len: len as usize, mask }
        } else {
            match opcode {
                Opcode::Text => self.message.open(Kind::Text, self.limits.utf8),
                Opcode::Binary => self.message.open(Kind::Binary, false),
                _ => {}
            }
            self.message.announce(len, self.limits.message)?;
            State::Data { rest: len, fin, mask }
        };
        input.advance(head);
        Ok(Some(state))
    }
}

/// Takes `len` bytes off the front, unmasked, and the key for those behind them.
fn take(input: &mut BytesMut, len: usize, mut mask: Option<MaskKey>) -> (Bytes, Option<MaskKey>) {
    let mut bytes = input.split_to(len);
    if let Some(mask) = &mut mask {
        mask.apply(&mut bytes);
    }
    (bytes.freeze(), mask)
}

// === impl Message ===

impl Message {
    fn none() -> Self {
        Self { open: false, kind: Kind::Binary, started: false, len: 0, utf8: Utf8::unchecked() }
    }

    fn open(&mut self, kind: Kind, utf8: bool) {
        let utf8 = if utf8 { Utf8::checked() } else { Utf8::unchecked() };
        *self = Self { open: true, kind, started: false, len: 0, utf8 };
    }

    fn announce(&mut self, len: u64, limit: u64) -> Result<(), Error> {
        self.len = self.len.saturating_add(len);
        if self.len > limit { Err(Error::TooLarge { limit }) } else { Ok(()) }
    }

    fn piece(&mut self, bytes: Bytes, end: bool) -> Result<Data, Error> {
        if !self.utf8.push(&bytes) || end && !self.utf8.is_whole() {
            return Err(Error::Text);
        }
        let start = !self.started;
        self.started = true;
        self.open = !end;
        Ok(Data { kind: self.kind, bytes, start, end })
    }
}

// === impl Encoder ===

impl Encoder {
    /// The head of a frame, to be written before `len` bytes of payload in one vectored write. With a key,
    /// the payload must be masked by [`MaskKey::apply`].
    pub fn head(opcode: Opcode, fin: bool, len: usize, mask: Option<MaskKey>) -> Head {
        let mut head = Head { bytes: [0; MAX_HEAD + 1], len: 0 };
        head.push(opcode.to_wire() | if fin { FIN } else { 0 });
        let masked = if mask.is_some() { MASKED } else { 0 };
        match (u8::try_from(len), u16::try_from(len)) {
            (Ok(len @ ..LENGTH_16), _) => head.push(masked | len),
            (_, Ok(len)) => {
                head.push(masked | LENGTH_16);
                head.extend(&len.to_be_bytes());
            }
            _ => {
                head.push(masked | LENGTH_64);
                head.extend(&(len as u64).to_be_bytes());
            }
        }
        if let Some(MaskKey(key)) = mask {
            head.extend(&key);
        }
        head
    }

    /// Appends a frame. The payload of a control frame is cut to [`MAX_CONTROL_PAYLOAD`].
    pub fn frame(out: &mut BytesMut, opcode: Opcode, fin: bool, payload: &[u8], mask: Option<MaskKey>) {
        Self::frame_of(out, opcode, fin, &[payload], mask);
    }

    /// Appends a whole message in one frame, which is how Go servers must have it.
    pub fn message(out: &mut BytesMut, kind: Kind, payload: &[u8], mask: Option<MaskKey>) {
        Self::frame(out, kind.into(), true, payload, mask);
    }

    /// Appends a Ping.
    pub fn ping(out: &mut BytesMut, payload: &[u8], mask: Option<MaskKey>) {
        Self::frame(out, Opcode::Ping, true, payload, mask);
    }

    /// Appends the Pong that answers a Ping of this payload.
    pub fn pong(out: &mut BytesMut, payload: &[u8], mask: Option<MaskKey>) {
        Self::frame(out, Opcode::Pong, true, payload, mask);
    }

    /// Appends a Close: our last frame. `None` when it answers one without a code. A reason over
    /// [`MAX_REASON`] is cut between two characters, a code that must not be sent is left out with it.
    pub fn close(out: &mut BytesMut, close: Option<&Close>, mask: Option<MaskKey>) {
        match close {
            Some(Close { code, reason }) if code.may_be_sent() => {
                let cut = (0..=reason.len().min(MAX_REASON)).rev().find(|at| reason.is_char_boundary(*at));
                let reason = &reason.as_bytes()[..cut.unwrap_or(0)];
                let parts = [&code.0.to_be_bytes()[..], reason];
                Self::frame_of(out, Opcode::Close, true, &parts, mask);
            }
            _ => Self::frame(out, Opcode::Close, true, &[], mask),
        }
    }

    /// Appends a frame whose payload is in parts.
    pub(in crate::wire) fn frame_of(
        out: &mut BytesMut,
        opcode: Opcode,
        fin: bool,
        parts: &[&[u8]],
        mask: Option<MaskKey>,
    ) {
        let mut len: usize = parts.iter().map(|part| part.len()).sum();
        if opcode.is_control() {
            debug_assert!(len <= MAX_CONTROL_PAYLOAD, "a control frame is short");
            len = len.min(MAX_CONTROL_PAYLOAD);
        }
        let head = Self::head(opcode, fin, len, mask);
        out.reserve(head.len() + len);
        out.put_slice(&head);
        let at = out.len();
        parts.iter().for_each(|part| out.put_slice(part));
        out.truncate(at + len);
        if let Some(mut mask) = mask {
            mask.apply(&mut out[at..]);
        }
    }
}

// === impl Head ===

impl Head {
    /// Appends a byte: of the head, or the one that names a channel.
    pub(in crate::wire) fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

// === impl Pongs ===

impl Pongs {
    /// The pongs of a connection on which no ping came yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a ping. One that was not answered yet needs no answer any more.
    pub fn receive(&mut self, payload: &[u8]) {
        let len = payload.len().min(MAX_CONTROL_PAYLOAD);
        let mut kept = [0; MAX_CONTROL_PAYLOAD];
        kept[..len].copy_from_slice(&payload[..len]);
        self.owed = Some((kept, len));
    }

    /// Whether [`Pongs::answer`] would write.
    pub fn is_owed(&self) -> bool {
        self.owed.is_some()
    }

    /// Appends the pong that is owed, if any. To be called between two frames; false when none was.
    pub fn answer(&mut self, out: &mut BytesMut, mask: Option<MaskKey>) -> bool {
        match self.owed.take() {
            Some((payload, len)) => {
                Encoder::pong(out, &payload[..len], mask);
                true
            }
            None => false,
        }
    }
}
