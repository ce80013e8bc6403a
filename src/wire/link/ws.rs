//! WebSocket on both sides: exec and attach in any subprotocol, and the old port-forward.
//!
//! Owns [`WsLink`], and [`Peer`], the end of a WebSocket that `translate` has towards its client too.
//! What passes is not frames but channel messages: each piece that has arrived goes on as a message of its
//! own, unfragmented and of at most 32 KiB and the channel. A Go server takes each frame for a message, so
//! the second fragment of a client would be misread there; and what was written to a client always ends at a
//! message's edge, where an error can follow.
//! Three things are not streams, and each stays in one message: a CLOSE of v5, the result, which some clients
//! parse message by message, and the port that comes first on a channel of a port-forward.
//! Channels pass whatever they are: the far side drops those that a client may not write. A message to one
//! without a payload says nothing to it and is dropped here. Where the session is recorded, the link drops itself what
//! a peer would: messages on channels that their writer may not write or has closed.
//! Invariants: pings are answered here, on both sides, and never passed; nothing is queued for a peer behind
//! a Close; where success is a Status, the end of a far side that gave none is an error to the client.
//! Source: RFC 6455 sections 5.5 and 7; apimachinery `pkg/util/httpstream/wsstream/conn.go`.

#[cfg(test)]
pub(super) mod tests;

use bytes::{Buf, Bytes, BytesMut};

use super::{Fate, Fault, HangUp, Link, Out, Queue, Spoken};
use crate::wire::channel::{self, CLOSE, Encoding, MAX_PAYLOAD, Part, Parts, Subprotocol};
use crate::wire::portforward::{Half, Legacy};
use crate::wire::remotecommand::{Asked, Outcome, StreamSet, StreamType};
use crate::wire::tap::{Tap, Way};
use crate::wire::ws::{self, Close, CloseCode, Data, Event, MaskKey, Opcode, Pongs, Role};

/// Most bytes that wait for a peer when an answer to its ping is queued behind them. With more the answer
/// waits for [`Link::drained`], so that pings of a peer that takes nothing cost no memory.
pub(super) const ANSWER_ROOM: usize = 16 * 1024;

/// The port that a server of port-forward names in the first message on each channel, in bytes.
const PORT: usize = 2;

/// Told to a client whose far side closes before the result.
const NO_RESULT: &str = "the far side closed the session before it gave a result";

/// A WebSocket client and a WebSocket far side, in the same subprotocol.
#[derive(Debug)]
pub struct WsLink {
    session: Session,
    encoding: Encoding,
    client: Peer,
    far: Peer,
    from_client: Messages,
    from_far: Messages,
    over: Option<Fate>,
    /// What the client has said last; the far side hears it when nobody is here any more.
    last: Option<Option<Close>>,
    /// The far side has left in its protocol.
    far_left: bool,
}

/// What the channels mean.
#[derive(Debug)]
enum Session {
    /// Exec or attach.
    Command {
        subprotocol: Subprotocol,
        /// What a server takes of the client.
        writable: StreamSet,
        /// The far side wrote to the error channel.
        result: bool,
        tty: bool,
    },
    /// Port-forward of an old client.
    Ports {
        legacy: Legacy,
        /// By the place of a port: bytes of the port itself that are still to go to the client, on either channel.
        unnamed: Vec<Unnamed>,
    },
}

/// Bytes of a port that are still to come on the channels of its connection.
#[derive(Debug, Clone, Copy)]
struct Unnamed {
    data: usize,
    error: usize,
}

/// The messages of one peer, in pieces that may pass.
#[derive(Debug)]
struct Messages {
    parts: Parts,
    /// The beginning of a message that must not be split here.
    held: BytesMut,
}

/// Our end of a WebSocket: everything but its messages.
#[derive(Debug)]
pub(super) struct Peer {
    decoder: ws::Decoder,
    pongs: Pongs,
    /// Where the key of each frame comes from, when the peer is a server.
    mask: Option<fn() -> MaskKey>,
    /// Our Close is queued; nothing may follow it.
    closed: bool,
}

/// What a peer says, other than pings and pongs.
#[derive(Debug)]
pub(super) enum Said {
    /// A piece of a message.
    Data(Data),
    /// The last thing it says.
    Close(Option<Close>),
}

/// Why a peer is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Its frames.
    #[error(transparent)]
    Frame(#[from] ws::Error),
    /// Its messages.
    #[error(transparent)]
    Channel(#[from] channel::Error),
}

/// Appends a frame.
pub(super) fn put_frame(queue: &mut Queue, head: &[u8], payload: Bytes) {
    queue.put().extend_from_slice(head);
    queue.push(payload);
}

// === impl WsLink ===

impl WsLink {
    /// An exec or attach, for a client that asked for these streams. `mask` gives a new, unforeseeable key for each
    /// frame to the far side.
    pub fn command(subprotocol: Subprotocol, asked: Asked, mask: fn() -> MaskKey) -> Self {
        // Runtimes take sizes without a terminal as well, and ignore them.
        let may = [(asked.stdin, StreamType::Stdin), (true, StreamType::Resize)];
        let writable = may.into_iter().filter(|(may, _)| *may).map(|(_, stream)| stream).collect();
        let tty = asked.tty;
        Self::new(
            Session::Command { subprotocol, writable, result: false, tty },
            subprotocol.encoding(),
            mask,
        )
    }

    /// A port-forward to these ports, in the order of the query; `None` for more than a client can name.
    pub fn port_forward(encoding: Encoding, ports: Vec<u16>, mask: fn() -> MaskKey) -> Option<Self> {
        let unnamed = vec![Unnamed { data: PORT, error: PORT }; ports.len()];
        let legacy = Legacy::new(encoding, ports)?;
        Some(Self::new(Session::Ports { legacy, unnamed }, encoding, mask))
    }

    fn new(session: Session, encoding: Encoding, mask: fn() -> MaskKey) -> Self {
        Self {
            session,
            encoding,
            client: Peer::client(),
            far: Peer::server(mask),
            from_client: Messages::new(encoding),
            from_far: Messages::new(encoding),
            over: None,
            last: None,
            far_left: false,
        }
    }

    fn hear_client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Error> {
        while let Some(said) = self.client.hear(input)? {
            match said {
                Said::Data(data) => {
                    let closes = self.session.supports_close();
                    let whole = |channel| if closes && channel == CLOSE { 2 } else { 0 };
                    let Some(part) = self.from_client.take(data, whole) else { continue };
                    if closes && part.channel == CLOSE {
                        check_close(&part)?;
                    }
                    if !part.bytes.is_empty() && self.session.take_up(&part, &mut out.tap) {
                        out.active |= self.session.is_activity(part.channel);
                        self.far.put_message(&mut out.far, self.encoding, part.channel, part.bytes);
                    }
                }
                Said::Close(close) => {
                    self.client.close(&mut out.client, close.as_ref());
                    self.last = Some(close);
                    self.over = Some(Fate::Whole);
                }
            }
        }
        Ok(())
    }

    fn hear_far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Error> {
        while let Some(said) = self.far.hear(input)? {
            match said {
                Said::Data(data) => {
                    let (session, encoding) = (&self.session, self.encoding);
                    let whole = |_| session.whole(encoding);
                    let Some(part) = self.from_far.take(data, whole) else { continue };
                    // The first message of a server is an empty one, which the client waits for.
                    if part.bytes.is_empty() && part.start || self.session.take_down(&part, &mut out.tap) {
                        out.active |= !part.bytes.is_empty();
                        self.client.put_message(&mut out.client, encoding, part.channel, part.bytes);
                    }
                }
                Said::Close(close) => {
                    self.far.close(&mut out.far, close.as_ref());
                    self.far_left = true;
                    if self.session.may_close() {
                        self.client.close(&mut out.client, close.as_ref());
                        self.over = Some(Fate::Whole);
                    } else {
                        self.fail(NO_RESULT, out);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the session with an error for the client. The reason of the Close says it as well, for clients
    /// that see in a Close like this nothing else.
    fn fail(&mut self, why: &str, out: &mut Out) {
        match &self.session {
            Session::Command { subprotocol, .. } => {
                let status = Outcome::Internal { text: why.to_owned() }.to_bytes(subprotocol.version());
                let channel = channel::number(StreamType::Error);
                out.tap.pass(StreamType::Error, &status);
                self.client.put_message(&mut out.client, self.encoding, channel, status);
            }
            Session::Ports { legacy, unnamed } => {
                for (at, (port, unnamed)) in legacy.ports().iter().zip(unnamed).enumerate() {
                    // The text is not to be read as the port.
                    if unnamed.error > 0 {
                        legacy.message(out.client.put(), at, Half::Error, &port.to_le_bytes(), None);
                    }
                    out.tap.carry(connection(at), Half::Error, Way::Down, why.as_bytes());
                    legacy.message(out.client.put(), at, Half::Error, why.as_bytes(), None);
                }
            }
        }
        let close = Close { code: CloseCode::INTERNAL_ERROR, reason: why.to_owned() };
        self.client.close(&mut out.client, Some(&close));
        self.over = Some(Fate::Cut);
    }
}

impl Link for WsLink {
    /// The far side connects to all ports at once, and for good.
    fn begin(&mut self, out: &mut Out) {
        if let Session::Ports { legacy, .. } = &self.session {
            for (at, port) in legacy.ports().iter().enumerate() {
                out.tap.connect(connection(at), *port);
            }
        }
    }

    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        if self.over.is_some() {
            input.clear();
            return Ok(());
        }
        let heard = self.hear_client(input, out);
        self.client.answer(&mut out.client);
        heard.map_err(|error| {
            self.client.close(&mut out.client, Some(&error.close_code().into()));
            self.over = Some(Fate::Cut);
            Fault::Client(error.to_string())
        })
    }

    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        if self.over.is_some() {
            input.clear();
            return Ok(());
        }
        let heard = self.hear_far(input, out);
        self.far.answer(&mut out.far);
        heard.map_err(|error| {
            self.far.close(&mut out.far, Some(&error.close_code().into()));
            Fault::Far(error.to_string())
        })
    }

    fn announce(&mut self, text: &str, out: &mut Out) {
        let terminal = matches!(self.session, Session::Command { tty: true, result: false, .. });
        if terminal && self.over.is_none() {
            let (channel, text) =
                (channel::number(StreamType::Stdout), Bytes::copy_from_slice(text.as_bytes()));
            out.tap.told(&text);
            self.client.put_message(&mut out.client, self.encoding, channel, text);
        }
    }

    /// Once the session is over it queues nothing and only says how that looked.
    fn end(&mut self, why: &str, out: &mut Out) -> Fate {
        match self.over {
            Some(fate) => fate,
            None if self.session.has_result() => {
                self.client.close(&mut out.client, Some(&Close::normal()));
                self.over = Some(Fate::Whole);
                Fate::Whole
            }
            None => {
                self.fail(why, out);
                Fate::Cut
            }
        }
    }

    /// A far side that has not said how it went is done when it has left, where that is how it says so.
    fn is_done(&self) -> bool {
        self.session.has_result() || self.far_left && self.session.may_close() || self.session.is_ports()
    }

    fn hang_up(&mut self, step: HangUp, out: &mut Out) -> Spoken {
        let Session::Command { subprotocol, writable, .. } = &mut self.session else {
            return Spoken::No;
        };
        // Behind our Close nothing counts, and behind its own the far side reads nothing.
        if !writable.contains(StreamType::Stdin) || self.far.closed || self.far_left {
            return Spoken::No;
        }
        let stdin = channel::number(StreamType::Stdin);
        let (channel, bytes) = match step {
            HangUp::Interrupt | HangUp::EndOfFile => (stdin, Bytes::from_static(step.key())),
            HangUp::EndOfStdin if subprotocol.version().supports_close() => {
                writable.remove(StreamType::Stdin);
                (CLOSE, Bytes::copy_from_slice(&[stdin]))
            }
            HangUp::EndOfStdin => return Spoken::No,
        };
        self.far.put_message(&mut out.far, self.encoding, channel, bytes);
        Spoken::Yes
    }

    fn hear_last(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        while let Some(said) = self.far.hear(input).map_err(|error| Fault::Far(error.to_string()))? {
            match said {
                Said::Data(data) => {
                    if let Some(part) = self.from_far.take(data, |_| 0) {
                        self.session.take_down(&part, &mut Tap::default());
                    }
                }
                Said::Close(_) => self.far_left = true,
            }
        }
        Ok(())
    }

    /// No subprotocol lets a client end its bytes alone: it is gone.
    fn leave(&mut self, out: &mut Out) {
        let close = self.last.take().unwrap_or_else(|| Some(CloseCode::GOING_AWAY.into()));
        self.far.close(&mut out.far, close.as_ref());
    }

    fn tick(&mut self, out: &mut Out) {
        self.client.show_life(out);
    }

    fn drained(&mut self, out: &mut Out) {
        self.client.answer(&mut out.client);
        self.far.answer(&mut out.far);
    }

    fn is_over(&self) -> bool {
        self.over.is_some()
    }
}

/// What the tap calls the connection of the port at that place.
fn connection(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Whether a whole CLOSE of v5, or the beginning of a longer one, names a channel.
fn check_close(part: &Part) -> Result<(), channel::Error> {
    match part.bytes[..] {
        [channel] if part.end => match channel::from_number(channel) {
            Some(_) => Ok(()),
            None => Err(channel::Error::CloseChannel(channel)),
        },
        _ => Err(channel::Error::CloseSize),
    }
}

// === impl Session ===

impl Session {
    fn supports_close(&self) -> bool {
        matches!(self, Session::Command { subprotocol, .. } if subprotocol.version().supports_close())
    }

    /// How many bytes of a message of the far side go in one piece, if there are so many. Clients decode text and
    /// parse results message by message, and a read may end anywhere.
    fn whole(&self, encoding: Encoding) -> usize {
        match self {
            Session::Command { .. } => encoding.max_payload(),
            Session::Ports { .. } => PORT,
        }
    }

    /// Whether a piece of the client goes on; tells the tap if it does.
    fn take_up(&mut self, part: &Part, tap: &mut Tap) -> bool {
        match self {
            Session::Command { subprotocol, writable, .. } => {
                if part.channel == CLOSE && subprotocol.version().supports_close() {
                    let closed = part.bytes.first().and_then(|channel| channel::from_number(*channel));
                    if closed.filter(|stream| writable.remove(*stream)) == Some(StreamType::Stdin) {
                        tap.stdin_ended();
                    }
                    return true;
                }
                let stream = channel::from_number(part.channel).filter(|stream| writable.contains(*stream));
                if let Some(stream) = stream {
                    tap.pass(stream, &part.bytes);
                }
                stream.is_some() || !tap.is_recording()
            }
            Session::Ports { legacy, .. } => {
                let at = usize::from(part.channel / 2);
                let taken = part.channel.is_multiple_of(2) && at < legacy.ports().len();
                if taken {
                    tap.carry(connection(at), Half::Data, Way::Up, &part.bytes);
                }
                taken || !tap.is_recording()
            }
        }
    }

    /// Whether a piece of the far side goes on; tells the tap if it does, and notes it.
    fn take_down(&mut self, part: &Part, tap: &mut Tap) -> bool {
        if part.bytes.is_empty() {
            return false;
        }
        match self {
            Session::Command { result, .. } => {
                let stream = channel::from_number(part.channel).filter(|stream| {
                    matches!(stream, StreamType::Stdout | StreamType::Stderr | StreamType::Error)
                });
                if let Some(stream) = stream {
                    tap.pass(stream, &part.bytes);
                }
                *result |= stream == Some(StreamType::Error);
                stream.is_some() || !tap.is_recording()
            }
            Session::Ports { unnamed, .. } => {
                let at = usize::from(part.channel / 2);
                let Some(unnamed) = unnamed.get_mut(at) else { return !tap.is_recording() };
                let (half, due) = match part.channel.is_multiple_of(2) {
                    true => (Half::Data, &mut unnamed.data),
                    false => (Half::Error, &mut unnamed.error),
                };
                let named = part.bytes.len().min(*due);
                *due -= named;
                tap.carry(connection(at), half, Way::Down, &part.bytes[named..]);
                true
            }
        }
    }

    /// Whether what the client writes on this channel shows that somebody is there: terminal sizes do not.
    fn is_activity(&self, channel: u8) -> bool {
        self.is_ports() || channel != channel::number(StreamType::Resize)
    }

    fn is_ports(&self) -> bool {
        matches!(self, Session::Ports { .. })
    }

    /// Whether the far side said how it went.
    fn has_result(&self) -> bool {
        matches!(self, Session::Command { result: true, .. })
    }

    /// Whether a Close of the far side is a proper end: where success is a Status, there must have been one.
    fn may_close(&self) -> bool {
        match self {
            Session::Command { subprotocol, result, .. } => *result || !subprotocol.version().writes_status(),
            Session::Ports { .. } => true,
        }
    }
}

// === impl Messages ===

impl Messages {
    fn new(encoding: Encoding) -> Self {
        Self { parts: Parts::new(encoding), held: BytesMut::new() }
    }

    /// The next piece to pass. What has not reached the length that must stay together on its channel waits
    /// for it, or for the end of the message.
    fn take(&mut self, data: Data, whole: impl Fn(u8) -> usize) -> Option<Part> {
        let mut part = self.parts.push(data)?;
        if !part.end && self.held.len() + part.bytes.len() < whole(part.channel) {
            self.held.extend_from_slice(&part.bytes);
            return None;
        }
        if !self.held.is_empty() {
            self.held.extend_from_slice(&part.bytes);
            part.bytes = self.held.split().freeze();
        }
        Some(part)
    }
}

// === impl Peer ===

impl Peer {
    /// A client, whose server we are.
    pub(super) fn client() -> Self {
        Self::new(Role::Server, None)
    }

    /// A server, whose client we are.
    fn server(mask: fn() -> MaskKey) -> Self {
        Self::new(Role::Client, Some(mask))
    }

    fn new(role: Role, mask: Option<fn() -> MaskKey>) -> Self {
        let decoder = ws::Decoder::new(role, ws::Limits::default());
        Self { decoder, pongs: Pongs::new(), mask, closed: false }
    }

    /// The next thing to act on; pings are noted for [`Peer::answer`].
    pub(super) fn hear(&mut self, input: &mut BytesMut) -> Result<Option<Said>, ws::Error> {
        loop {
            match self.decoder.decode(input)? {
                Some(Event::Data(data)) => return Ok(Some(Said::Data(data))),
                Some(Event::Close(close)) => return Ok(Some(Said::Close(close))),
                Some(Event::Ping(payload)) => self.pongs.receive(&payload),
                Some(Event::Pong(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// Answers the last ping, unless the peer has to take other bytes first.
    pub(super) fn answer(&mut self, queue: &mut Queue) {
        if self.pongs.is_owed() && !self.closed && queue.len() <= ANSWER_ROOM {
            self.pongs.answer(queue.put(), self.mask.map(|key| key()));
        }
    }

    /// Sends a client whose pings are not read, because stdin is blocked, a pong that it did not ask for: its
    /// read deadline (61 s in client-go) moves with any pong. Not behind other bytes, which do the same for a
    /// client that takes them.
    pub(super) fn show_life(&mut self, out: &mut Out) {
        if out.far.is_full() && out.client.is_empty() && !self.closed {
            ws::Encoder::pong(out.client.put(), &[], self.mask.map(|key| key()));
        }
    }

    /// Appends bytes of a channel, in as many messages as they need; an empty one for none.
    pub(super) fn put_message(&self, queue: &mut Queue, encoding: Encoding, channel: u8, mut bytes: Bytes) {
        loop {
            if encoding == Encoding::Binary && self.mask.is_none() {
                let payload = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
                let mut head = ws::Encoder::head(Opcode::Binary, true, 1 + payload.len(), None);
                head.push(channel);
                put_frame(queue, &head, payload);
            } else {
                // Base64 and masks are new bytes.
                let key = self.mask.map(|key| key());
                let written = encoding.message(queue.put(), channel, &bytes, key);
                bytes.advance(written);
            }
            if bytes.is_empty() {
                return;
            }
        }
    }

    /// Appends our Close, once.
    pub(super) fn close(&mut self, queue: &mut Queue, close: Option<&Close>) {
        if !self.closed {
            ws::Encoder::close(queue.put(), close, self.mask.map(|key| key()));
            self.closed = true;
        }
    }
}

// === impl Error ===

impl Error {
    /// The code of the Close that answers it.
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Error::Frame(error) => error.close_code(),
            Error::Channel(error) => error.close_code(),
        }
    }
}
