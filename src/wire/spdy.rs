//! SPDY/3.1 in the dialect of spdystream, which kubectl, the kubelet and the runtimes speak after an
//! upgrade.
//!
//! Owns frames in ([`Decoder`]), out ([`Encoder`]) and on their way between two peers ([`Relay`]), which
//! stream ids a receiver takes ([`StreamIds`]) and the ping rule ([`Pings`]). Both roles use the same parts;
//! only ids and pings know which side they are on.
//!
//! Invariants:
//! - Input may be cut anywhere. DATA comes out piece by piece, in pieces of what has arrived and without a
//!   copy, so a DATA frame of the full 2^24-1 bytes costs no memory of its own and needs no limit.
//! - A control frame is held whole, at most [`MAX_CONTROL_PAYLOAD`] bytes; a longer one is refused at its
//!   head.
//! - Header blocks are inflated in wire order, whatever the caller then does with the stream: the
//!   compression state of a direction is shared by all its frames.
//! - An error ends the reading of the connection; the decoder stays failed.
//!
//! Left out on purpose: flow control. WINDOW_UPDATE is read and never needed, because no known peer tracks
//! windows; back pressure is TCP's. The version field is not checked, as upstream does not.
//! Source: SPDY Protocol draft 3.1, section 2; moby/spdystream `connection.go`,
//! `spdy/{types,read,write}.go`.

mod dictionary;
mod headers;
mod relay;
#[cfg(test)]
pub(in crate::wire) mod tests;

pub use headers::{Headers, MAX_PAIRS, MAX_PLAIN};
pub use relay::{MAX_HELD, Passing, Relay};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use headers::{Deflater, Inflater};

/// Most payload bytes of a control frame. Known peers send some 60 (0x29 for the longest of remotecommand);
/// SPDY asks receivers for 8 KiB at least. A longer frame is an error as soon as its head has arrived.
pub const MAX_CONTROL_PAYLOAD: usize = 64 * 1024;

/// What a caller's read buffer must be able to hold for [`Decoder::decode`] to get on: the largest control
/// payload. DATA needs no room, it leaves in the pieces it came in.
pub const MAX_BUFFERED: usize = MAX_CONTROL_PAYLOAD;

/// Most payload bytes of a DATA frame: its length has 24 bits. Writers must split above it.
pub const MAX_DATA_PAYLOAD: usize = 0xff_ffff;

/// Most streams a peer may have open at once; one more is answered RST REFUSED_STREAM. An exec needs five;
/// a port-forward two for each local connection, so this carries 256 of them over one session.
pub const MAX_OPEN_STREAMS: usize = 512;

/// Highest stream id: 31 bits.
pub const MAX_STREAM_ID: u32 = 0x7fff_ffff;

/// Status of the GOAWAY of an orderly end.
pub const GOAWAY_OK: u32 = 0;

/// Status of the GOAWAY to a peer that does not speak the protocol.
pub const GOAWAY_PROTOCOL_ERROR: u32 = 1;

/// Bytes before the payload of any frame.
const HEAD: usize = 8;

const CONTROL: u32 = 0x8000_0000;
const VERSION: u32 = 3 << 16;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;

/// Why the bytes of a peer, or headers of our own, are not SPDY as spoken here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A control frame of a type that does not exist in SPDY/3.1.
    #[error("unknown SPDY control frame type {kind}")]
    UnknownType {
        /// The type as received.
        kind: u16,
    },
    /// A control frame longer than [`MAX_CONTROL_PAYLOAD`].
    #[error("SPDY {kind} frame of {len} bytes is over the limit")]
    FrameTooLarge {
        /// Name of the frame type.
        kind: &'static str,
        /// The announced length.
        len: usize,
    },
    /// A frame whose length does not fit its content.
    #[error("SPDY {kind} frame has a wrong length")]
    FrameSize {
        /// Name of the frame type.
        kind: &'static str,
    },
    /// Flags on a frame type that has none.
    #[error("SPDY {kind} frame has flags {flags:#04x}")]
    Flags {
        /// Name of the frame type.
        kind: &'static str,
        /// The flags as received.
        flags: u8,
    },
    /// Id 0 where a stream or a ping must be named.
    #[error("SPDY {kind} frame has id 0")]
    ZeroId {
        /// Name of the frame type.
        kind: &'static str,
    },
    /// A reset without a reason.
    #[error("SPDY RST_STREAM frame has status 0")]
    ZeroStatus,
    /// A header block that the zlib stream of its direction cannot read.
    #[error("inflate SPDY header block")]
    Inflate(#[source] flate2::DecompressError),
    /// A header block of more than [`MAX_PLAIN`] bytes.
    #[error("SPDY header block is over {MAX_PLAIN} bytes")]
    HeaderBlockTooLarge,
    /// A header block that is not used up exactly, or whose counts and lengths do not fit it.
    #[error("SPDY header block has a wrong size")]
    HeaderBlockSize,
    /// More than [`MAX_PAIRS`] headers.
    #[error("SPDY header block has {count} headers")]
    TooManyHeaders {
        /// The announced count.
        count: usize,
    },
    /// The same name twice in one block.
    #[error("SPDY header block has a name twice")]
    DuplicateHeader,
    /// The decoder was called again after an error.
    #[error("SPDY reading has already failed")]
    Failed,
}

/// Which side of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that asked for the upgrade: odd ids.
    Client,
    /// The side that answered it: even ids.
    Server,
}

/// Why a stream was reset. Codes outside the draft's table are kept as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RstStatus(pub u32);

/// One frame, or one piece of a DATA frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The peer opens a stream. To be checked with [`StreamIds::accept`].
    SynStream {
        /// The new stream; not yet checked for order or range.
        id: u32,
        /// The stream it belongs to; 0 here in practice.
        associated: u32,
        /// 0 to 7; ignored.
        priority: u8,
        /// The opener will send nothing on it.
        fin: bool,
        /// The opener takes nothing on it.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// The peer accepts a stream.
    SynReply {
        /// The stream.
        id: u32,
        /// The peer will send nothing on it.
        fin: bool,
        /// Empty in practice.
        headers: Headers,
    },
    /// The peer gives a stream up, both ways. The end of the data when data was delivered, not a failure.
    RstStream {
        /// The stream.
        id: u32,
        /// Why; CANCEL in practice.
        status: RstStatus,
    },
    /// Settings, which have no meaning here.
    Settings,
    /// A ping or the answer to one; see [`Pings`].
    Ping {
        /// The id to send back, or that we sent.
        id: u32,
    },
    /// The peer is done: no frame after this one counts.
    GoAway {
        /// The last stream of ours that it accepted.
        last_good: u32,
        /// [`GOAWAY_OK`] or why.
        status: u32,
    },
    /// More headers for a stream; no known peer sends them.
    Headers {
        /// The stream.
        id: u32,
        /// The peer will send nothing more on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Flow control, which has no meaning here.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        id: u32,
        /// Bytes.
        delta: u32,
    },
    /// Bytes of a stream: a whole frame, or the part of one that has arrived.
    Data {
        /// The stream; whether it is known, the caller decides.
        stream: u32,
        /// Part of the read buffer. Empty only for a frame without payload.
        bytes: Bytes,
        /// The peer half-closes the stream after these bytes. Set on the last piece only.
        fin: bool,
    },
}

/// Bytes of one direction into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    inflater: Inflater,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Head,
    Control(Control),
    Data {
        stream: u32,
        rest: usize,
        fin: bool,
    },
    Failed,
}

/// The bytes before a payload.
#[derive(Clone, Copy, Debug)]
enum Head {
    Control(Control),
    Data { stream: u32, len: usize, fin: bool },
}

#[derive(Clone, Copy, Debug)]
struct Control {
    kind: Kind,
    flags: u8,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    SynStream,
    SynReply,
    RstStream,
    Settings,
    Ping,
    GoAway,
    Headers,
    WindowUpdate,
}

/// Frames of one direction into bytes.
///
/// Only frames with headers need the encoder itself; the others have no state and are associated functions.
#[derive(Debug, Default)]
pub struct Encoder {
    deflater: Deflater,
}

/// Which stream ids the peer may open, which we open, and how many of the peer's are open.
///
/// Upstream checks the order only, so an even id from a client is accepted here too (spdystream
/// `connection.go`, `validateStreamId`).
#[derive(Debug)]
pub struct StreamIds {
    /// The least id the peer may open next.
    next_peer: u32,
    last_good: u32,
    next_own: u32,
    open: usize,
}

/// Who answers which ping, and whether ours is still on its way.
#[derive(Debug)]
pub struct Pings {
    role: Role,
    next: u32,
    outstanding: Option<u32>,
}

/// What to do about a received ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    /// It is the peer's: send it back as it came.
    Echo,
    /// It answers ours.
    Answer,
    /// It has our parity and answers nothing: ignore it.
    Stray,
}

// === impl Role ===

impl Role {
    /// Whether this role sends a ping with this id back: ids of the other side's parity are echoed.
    pub fn echoes(self, id: u32) -> bool {
        match self {
            Role::Client => id.is_multiple_of(2),
            Role::Server => !id.is_multiple_of(2),
        }
    }

    /// The first id of this side, for streams and for pings alike.
    fn first_id(self) -> u32 {
        match self {
            Role::Client => 1,
            Role::Server => 2,
        }
    }

    fn peer(self) -> Self {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}

// === impl RstStatus ===

impl RstStatus {
    /// A stream id out of order or range.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A frame for a stream that does not exist.
    pub const INVALID_STREAM: Self = Self(2);
    /// The stream was not looked at, as by [`MAX_OPEN_STREAMS`].
    pub const REFUSED_STREAM: Self = Self(3);
    /// A version the receiver does not know.
    pub const UNSUPPORTED_VERSION: Self = Self(4);
    /// Refused or torn down: the one status that upstream sends for both.
    pub const CANCEL: Self = Self(5);
    /// The sender failed.
    pub const INTERNAL_ERROR: Self = Self(6);
    /// A window was overrun; windows do not exist here.
    pub const FLOW_CONTROL_ERROR: Self = Self(7);
    /// A second reply.
    pub const STREAM_IN_USE: Self = Self(8);
    /// Data on a half-closed stream.
    pub const STREAM_ALREADY_CLOSED: Self = Self(9);
    /// Client certificates per stream; not used here.
    pub const INVALID_CREDENTIALS: Self = Self(10);
    /// A frame over the receiver's limit.
    pub const FRAME_TOO_LARGE: Self = Self(11);
}

// === impl Decoder ===

impl Decoder {
    /// A decoder at the first byte after the upgrade head.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame, or piece of DATA, off the front of `input`; `None` when more bytes are needed.
    ///
    /// Call it until `None`. What it leaves in `input` is shorter than [`MAX_BUFFERED`] and must stay
    /// there.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let frame = self.step(input);
        if frame.is_err() {
            self.state = State::Failed;
        }
        frame
    }

    /// Whether the bytes so far end between two frames. The end of the connection elsewhere is a cut frame.
    /// Bytes left in the caller's buffer count against it and must be looked at by the caller.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head)
    }

    fn step(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        if let State::Head = self.state {
            let Some(head) = input.first_chunk::<HEAD>() else {
                return Ok(None);
            };
            let head = Head::parse(*head)?;
            input.advance(HEAD);
            self.state = match head {
                Head::Control(control) => State::Control(control),
                Head::Data { stream, len: 0, fin } => {
                    return Ok(Some(Frame::Data { stream, bytes: Bytes::new(), fin }));
                }
                Head::Data { stream, len, fin } => State::Data { stream, rest: len, fin },
            };
        }
        match self.state {
            State::Head => Ok(None),
            State::Control(control) if input.len() < control.len => Ok(None),
            State::Control(control) => {
                let payload = input.split_to(control.len);
                self.state = State::Head;
                control.read(&payload, Some(&mut self.inflater)).map(Some)
            }
            State::Data { .. } if input.is_empty() => Ok(None),
            State::Data { stream, rest, fin } => {
                let bytes = input.split_to(rest.min(input.len())).freeze();
                self.state = State::after_data(stream, rest - bytes.len(), fin);
                let fin = fin && matches!(self.state, State::Head);
                Ok(Some(Frame::Data { stream, bytes, fin }))
            }
            State::Failed => Err(Error::Failed),
        }
    }
}

impl State {
    /// Where reading stands when `rest` bytes of a DATA frame are still to come.
    fn after_data(stream: u32, rest: usize, fin: bool) -> Self {
        if rest == 0 { State::Head } else { State::Data { stream, rest, fin } }
    }
}

impl Head {
    fn parse(bytes: [u8; HEAD]) -> Result<Self, Error> {
        let [first, second] = words(&bytes);
        let flags = (second >> 24) as u8;
        let len = (second & 0xff_ffff) as usize;
        if first & CONTROL == 0 {
            let stream = not_zero(first, "DATA")?;
            return Ok(Head::Data { stream, len, fin: flags & FIN != 0 });
        }
        let kind = Kind::from_wire(first as u16)?;
        let name = kind.name();
        if len > MAX_CONTROL_PAYLOAD {
            return Err(Error::FrameTooLarge { kind: name, len });
        }
        // Upstream skips some of these checks for RST_STREAM and PING and then loses its place in the
        // bytes.
        let fits = match kind {
            Kind::SynStream => len >= 10,
            Kind::SynReply | Kind::Headers | Kind::Settings => len >= 4,
            Kind::RstStream | Kind::GoAway | Kind::WindowUpdate => len == 8,
            Kind::Ping => len == 4,
        };
        if !fits {
            return Err(Error::FrameSize { kind: name });
        }
        if flags != 0 && matches!(kind, Kind::Ping | Kind::GoAway | Kind::WindowUpdate) {
            return Err(Error::Flags { kind: name, flags });
        }
        Ok(Head::Control(Control { kind, flags, len }))
    }
}

impl Control {
    /// Reads the payload, which has [`Control::len`] bytes. Without an inflater there are no headers to see.
    fn read(self, payload: &[u8], inflater: Option<&mut Inflater>) -> Result<Frame, Error> {
        let kind = self.kind.name();
        let fin = self.flags & FIN != 0;
        let headers = |block| inflater.map_or(Ok(Headers::new()), |inflater| inflater.read(block));
        Ok(match self.kind {
            Kind::SynStream => {
                let [id, associated] = words(payload);
                let id = not_zero(id, kind)?;
                Frame::SynStream {
                    id,
                    associated,
                    priority: payload[8] >> 5,
                    fin,
                    unidirectional: self.flags & UNIDIRECTIONAL != 0,
                    headers: headers(&payload[10..])?,
                }
            }
            Kind::SynReply => {
                let [id] = words(payload);
                Frame::SynReply { id: not_zero(id, kind)?, fin, headers: headers(&payload[4..])? }
            }
            Kind::Headers => {
                let [id] = words(payload);
                Frame::Headers { id: not_zero(id, kind)?, fin, headers: headers(&payload[4..])? }
            }
            Kind::RstStream => {
                let [id, status] = words(payload);
                if status == 0 {
                    return Err(Error::ZeroStatus);
                }
                Frame::RstStream { id: not_zero(id, kind)?, status: RstStatus(status) }
            }
            Kind::Settings => {
                let [count] = words(payload);
                // Never a reason to allocate: the content means nothing here (CVE-2026-35469).
                if u64::from(count) * 8 + 4 != payload.len() as u64 {
                    return Err(Error::FrameSize { kind });
                }
                Frame::Settings
            }
            Kind::Ping => {
                let [id] = words(payload);
                Frame::Ping { id: not_zero(id, kind)? }
            }
            Kind::GoAway => {
                let [last_good, status] = words(payload);
                Frame::GoAway { last_good, status }
            }
            Kind::WindowUpdate => {
                let [id, delta] = words(payload);
                Frame::WindowUpdate { id, delta }
            }
        })
    }
}

impl Kind {
    fn from_wire(kind: u16) -> Result<Self, Error> {
        Ok(match kind {
            SYN_STREAM => Kind::SynStream,
            SYN_REPLY => Kind::SynReply,
            RST_STREAM => Kind::RstStream,
            SETTINGS => Kind::Settings,
            PING => Kind::Ping,
            GOAWAY => Kind::GoAway,
            HEADERS => Kind::Headers,
            WINDOW_UPDATE => Kind::WindowUpdate,
            _ => return Err(Error::UnknownType { kind }),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::SynStream => "SYN_STREAM",
            Kind::SynReply => "SYN_REPLY",
            Kind::RstStream => "RST_STREAM",
            Kind::Settings => "SETTINGS",
            Kind::Ping => "PING",
            Kind::GoAway => "GOAWAY",
            Kind::Headers => "HEADERS",
            Kind::WindowUpdate => "WINDOW_UPDATE",
        }
    }
}

/// The first words of a payload whose length [`Head::parse`] has checked.
fn words<const N: usize>(mut payload: &[u8]) -> [u32; N] {
    [(); N].map(|()| payload.get_u32())
}

fn not_zero(id: u32, kind: &'static str) -> Result<u32, Error> {
    if id == 0 { Err(Error::ZeroId { kind }) } else { Ok(id) }
}

// === impl Encoder ===

impl Encoder {
    /// An encoder at the first byte after the upgrade head.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends any frame, as the peer's decoder would deliver it. DATA must not be over
    /// [`MAX_DATA_PAYLOAD`].
    ///
    /// Fails only for headers over [`MAX_PLAIN`] or [`MAX_PAIRS`], and then writes nothing.
    pub fn encode(&mut self, out: &mut BytesMut, frame: &Frame) -> Result<(), Error> {
        match frame {
            Frame::SynStream { id, associated, priority, fin, unidirectional, headers } => {
                let flags = flag(*fin, FIN) | flag(*unidirectional, UNIDIRECTIONAL);
                let mut fixed = [0; 10];
                fixed[..4].copy_from_slice(&id.to_be_bytes());
                fixed[4..8].copy_from_slice(&associated.to_be_bytes());
                fixed[8] = priority << 5;
                self.with_headers(out, SYN_STREAM, flags, &fixed, headers)?;
            }
            Frame::SynReply { id, fin, headers } => {
                self.with_headers(out, SYN_REPLY, flag(*fin, FIN), &id.to_be_bytes(), headers)?;
            }
            Frame::Headers { id, fin, headers } => {
                self.with_headers(out, HEADERS, flag(*fin, FIN), &id.to_be_bytes(), headers)?;
            }
            Frame::RstStream { id, status } => Self::rst_stream(out, *id, *status),
            Frame::Settings => {
                put_head(out, SETTINGS, 0, 4);
                out.put_u32(0);
            }
            Frame::Ping { id } => Self::ping(out, *id),
            Frame::GoAway { last_good, status } => Self::goaway_for(out, *last_good, *status),
            Frame::WindowUpdate { id, delta } => {
                put_head(out, WINDOW_UPDATE, 0, 8);
                out.put_u32(*id);
                out.put_u32(*delta);
            }
            Frame::Data { stream, bytes, fin } => {
                out.put_slice(&Self::data_head(*stream, bytes.len(), *fin));
                out.put_slice(bytes);
            }
        }
        Ok(())
    }

    /// Appends a SYN_STREAM as clients send it: no associated stream, priority 0, no flags.
    pub fn syn_stream(&mut self, out: &mut BytesMut, id: u32, headers: &Headers) -> Result<(), Error> {
        let mut fixed = [0; 10];
        fixed[..4].copy_from_slice(&id.to_be_bytes());
        self.with_headers(out, SYN_STREAM, 0, &fixed, headers)
    }

    /// Appends a SYN_REPLY as servers send it: no headers, no flags.
    pub fn syn_reply(&mut self, out: &mut BytesMut, id: u32) {
        let written = self.with_headers(out, SYN_REPLY, 0, &id.to_be_bytes(), &Headers::new());
        debug_assert!(written.is_ok(), "no headers are within every limit");
    }

    /// The head of a DATA frame, to be written before `len` bytes of payload in one vectored write.
    ///
    /// `len` must not be over [`MAX_DATA_PAYLOAD`]. With `len` 0 and `fin` it is the half close of a
    /// stream.
    pub fn data_head(stream: u32, len: usize, fin: bool) -> [u8; 8] {
        debug_assert!(len <= MAX_DATA_PAYLOAD, "the length of a DATA frame has 24 bits");
        let first = stream & MAX_STREAM_ID;
        let second = u32::from(flag(fin, FIN)) << 24 | (len & MAX_DATA_PAYLOAD) as u32;
        (u64::from(first) << 32 | u64::from(second)).to_be_bytes()
    }

    /// Appends a RST_STREAM.
    pub fn rst_stream(out: &mut BytesMut, id: u32, status: RstStatus) {
        put_head(out, RST_STREAM, 0, 8);
        out.put_u32(id);
        out.put_u32(status.0);
    }

    /// Appends a PING.
    pub fn ping(out: &mut BytesMut, id: u32) {
        put_head(out, PING, 0, 4);
        out.put_u32(id);
    }

    /// Appends the GOAWAY of an orderly end (status OK); `last_good` is [`StreamIds::last_good`].
    pub fn goaway(out: &mut BytesMut, last_good: u32) {
        Self::goaway_for(out, last_good, GOAWAY_OK);
    }

    /// Appends a GOAWAY that says why.
    pub fn goaway_for(out: &mut BytesMut, last_good: u32, status: u32) {
        put_head(out, GOAWAY, 0, 8);
        out.put_u32(last_good);
        out.put_u32(status);
    }

    fn with_headers(
        &mut self,
        out: &mut BytesMut,
        kind: u16,
        flags: u8,
        fixed: &[u8],
        headers: &Headers,
    ) -> Result<(), Error> {
        let mut block = BytesMut::new();
        self.deflater.write(headers, &mut block)?;
        put_head(out, kind, flags, fixed.len() + block.len());
        out.put_slice(fixed);
        out.put_slice(&block);
        Ok(())
    }
}

fn put_head(out: &mut BytesMut, kind: u16, flags: u8, len: usize) {
    out.put_u32(CONTROL | VERSION | u32::from(kind));
    out.put_u32(u32::from(flags) << 24 | len as u32);
}

fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

// === impl StreamIds ===

impl StreamIds {
    /// The ids of a connection on which no stream was opened yet.
    pub fn new(role: Role) -> Self {
        Self { next_peer: role.peer().first_id(), last_good: 0, next_own: role.first_id(), open: 0 }
    }

    /// Decides on a SYN_STREAM of the peer. On `Err` the stream is to be reset with that status, and
    /// nothing else.
    pub fn accept(&mut self, id: u32) -> Result<(), RstStatus> {
        if id < self.next_peer || id > MAX_STREAM_ID {
            return Err(RstStatus::PROTOCOL_ERROR);
        }
        // The id is spent even when the stream is refused for want of room: the peer will not use it again.
        self.next_peer = id + 2;
        if self.open >= MAX_OPEN_STREAMS {
            return Err(RstStatus::REFUSED_STREAM);
        }
        self.last_good = id;
        self.open += 1;
        Ok(())
    }

    /// To be called once for each accepted stream, when it is gone on both sides.
    pub fn close(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// The id of the next stream we open, `None` when all are used up.
    pub fn open_own(&mut self) -> Option<u32> {
        let id = self.next_own;
        if id > MAX_STREAM_ID {
            return None;
        }
        self.next_own = id + 2;
        Some(id)
    }

    /// The last stream of the peer that was accepted, or 0: what a GOAWAY names. Always 0 on a client.
    pub fn last_good(&self) -> u32 {
        self.last_good
    }

    /// How many accepted streams are open.
    pub fn open(&self) -> usize {
        self.open
    }
}

// === impl Pings ===

impl Pings {
    /// The pings of a connection on which none was sent yet.
    pub fn new(role: Role) -> Self {
        Self { role, next: role.first_id(), outstanding: None }
    }

    /// The id of the next ping of ours, `None` while the last one is unanswered: a slow peer gets no second
    /// one.
    pub fn send(&mut self) -> Option<u32> {
        if self.outstanding.is_some() {
            return None;
        }
        let id = self.next;
        // Wraps around to the first id, since 0 is not an id.
        self.next = id.checked_add(2).unwrap_or(self.role.first_id());
        self.outstanding = Some(id);
        Some(id)
    }

    /// Decides on a received ping.
    pub fn receive(&mut self, id: u32) -> Pong {
        if self.role.echoes(id) {
            Pong::Echo
        } else if self.outstanding == Some(id) {
            self.outstanding = None;
            Pong::Answer
        } else {
            Pong::Stray
        }
    }
}
