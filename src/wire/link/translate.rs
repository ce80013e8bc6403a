//! Translate: a WebSocket client in any subprotocol, and a far side that speaks SPDY.
//!
//! Owns [`Translator`]: streams into channels, channels into streams, and what the far side says about the
//! end into the one result and the Close 1000 that such a client expects.
//! All streams are asked for at once. Go clients wait for each reply before they open the next, but servers
//! take the streams in any order and together, and it saves up to four round trips.
//! Invariants:
//! - Nothing is sent on a stream before its reply: the client is read once all replies have come.
//! - There is one result, after stdout, stderr and the error stream have ended. An output that was cut does
//!   not end with Success: where success is a Status, it must have come; where it is silence, the far side
//!   must have ended each stream by name.
//! - A far side that floods costs nothing: what it opens or asks for is ignored, and its pings are answered
//!   while there is room.
//!
//! The tap is told the result that the client gets, not the one that it was made of.
//!
//! Differs from upstream: terminal sizes without a terminal are read and dropped, where they would stall the
//! session.
//! Source: apiserver `pkg/util/proxy/{streamtranslator,websocket}.go`; client-go
//! `tools/remotecommand/{v1,v2,v3,v4,errorstream}.go`.

#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

use super::ws::{ANSWER_ROOM, Error, Peer, Said, put_frame};
use super::{Fate, Fault, HangUp, Link, Out, Queue, Spoken};
use crate::wire::channel::{self, MAX_PAYLOAD, Subprotocol};
use crate::wire::remotecommand::{Asked, MAX_RESULT, Outcome, Protocol, StreamType};
use crate::wire::spdy::{self, Encoder, Frame, Headers, Pings, Pong, RstStatus};
use crate::wire::ws::{Close, Data};

/// What a client is told when the far side resets a stream instead of opening it; upstream's text.
const STREAM_RESET: &str = "Stream reset";

/// What a client is told when the far side ends its streams without a result, or resets an output before it.
const NO_RESULT: &str = "the far side ended an output before it gave a result";

/// A WebSocket client and a SPDY far side.
#[derive(Debug)]
pub struct Translator {
    asked: Asked,
    /// What the client speaks.
    subprotocol: Subprotocol,
    /// What the far side speaks.
    protocol: Protocol,
    client: Peer,
    channels: channel::Decoder,
    decoder: spdy::Decoder,
    pings: Pings,
    /// A ping of the far side that has no answer yet.
    echo: Option<u32>,
    /// At most one of each type, in the order in which they are opened; none before it begins.
    streams: Vec<Stream>,
    /// The error stream, up to the first byte that is too much.
    result: BytesMut,
    /// An output was reset where a result was still to come. Go servers reset after it, when they close.
    cut: bool,
    /// The far side was told that this is the end.
    left: bool,
    /// The far side has said something on the error stream, or GOAWAY: it does so when the program has ended. Or it has
    /// reset a stream before all were open: then there is none.
    ended: bool,
    over: Option<Fate>,
}

/// A stream that we opened.
#[derive(Debug)]
struct Stream {
    id: u32,
    kind: StreamType,
    replied: bool,
    /// We may write on it, once it is open.
    writable: bool,
    /// How the far side ended it.
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

// === impl Translator ===

impl Translator {
    /// For a client that asked for these streams in this subprotocol. `protocol` is what the far side chose in its
    /// 101; without a word about it that is [`Protocol::V1`].
    pub fn new(subprotocol: Subprotocol, asked: Asked, protocol: Protocol) -> Self {
        Self {
            asked,
            subprotocol,
            protocol,
            client: Peer::client(),
            channels: channel::Decoder::server(subprotocol, asked),
            decoder: spdy::Decoder::new(),
            pings: Pings::new(spdy::Role::Client),
            echo: None,
            streams: Vec::new(),
            result: BytesMut::new(),
            cut: false,
            left: false,
            ended: false,
            over: None,
        }
    }

    fn hear_client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Error> {
        while let Some(said) = self.client.hear(input)? {
            match said {
                Said::Data(data) => self.take_message(data, out)?,
                Said::Close(close) => {
                    self.client.close(&mut out.client, close.as_ref());
                    self.over.get_or_insert(Fate::Whole);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take_message(&mut self, data: Data, out: &mut Out) -> Result<(), channel::Error> {
        match self.channels.decode(data)? {
            Some(channel::Event::Data { stream, bytes }) => {
                if let Some(stream) = self.writable(stream) {
                    out.tap.pass(stream.kind, &bytes);
                    stream.write(&mut out.far, bytes);
                    // Terminal sizes come without anybody being there.
                    out.active |= stream.kind == StreamType::Stdin;
                }
            }
            Some(channel::Event::Closed(stream)) => {
                if let Some(stream) = self.writable(stream) {
                    stream.close(&mut out.far);
                    if stream.kind == StreamType::Stdin {
                        out.tap.stdin_ended();
                    }
                    out.active = true;
                }
            }
            None => {}
        }
        Ok(())
    }

    fn refuse_client(&mut self, error: Error, out: &mut Out) -> Fault {
        self.client.close(&mut out.client, Some(&error.close_code().into()));
        self.over = Some(Fate::Cut);
        Fault::Client(error.to_string())
    }

    fn take_frame(&mut self, frame: Frame, out: &mut Out) {
        match frame {
            Frame::SynReply { id, fin, .. } => {
                if let Some(stream) = self.stream(id) {
                    stream.replied = true;
                }
                if fin {
                    self.end_stream(id, End::Fin, out);
                }
            }
            Frame::RstStream { id, .. } => self.end_stream(id, End::Reset, out),
            // Also before the reply, where Go clients would drop it and miss it.
            Frame::Data { stream, bytes, fin } => {
                self.take_data(stream, bytes, out);
                if fin {
                    self.end_stream(stream, End::Fin, out);
                }
            }
            Frame::Headers { id, fin: true, .. } => self.end_stream(id, End::Fin, out),
            Frame::Ping { id } => {
                if self.pings.receive(id) == Pong::Echo {
                    self.echo = Some(id);
                    self.answer_ping(&mut out.far);
                }
            }
            // It is the end of every stream, and of what they said so far.
            Frame::GoAway { .. } => {
                self.ended = true;
                self.settle(out);
                self.leave(out);
            }
            // No server opens streams, and to refuse one would be an answer without a bound.
            Frame::SynStream { .. }
            | Frame::Settings
            | Frame::Headers { fin: false, .. }
            | Frame::WindowUpdate { .. } => {}
        }
    }

    fn take_data(&mut self, id: u32, mut bytes: Bytes, out: &mut Out) {
        let Some(Stream { kind, end: None, .. }) = self.stream(id) else { return };
        let kind = *kind;
        if bytes.is_empty() {
            return;
        }
        match kind {
            StreamType::Stdout | StreamType::Stderr => {
                let channel = channel::number(kind);
                out.tap.pass(kind, &bytes);
                self.client.put_message(&mut out.client, self.subprotocol.encoding(), channel, bytes);
            }
            StreamType::Error => {
                self.ended = true;
                bytes.truncate(MAX_RESULT + 1 - self.result.len());
                self.result.extend_from_slice(&bytes);
            }
            // Nothing comes that way.
            StreamType::Stdin | StreamType::Resize => return,
        }
        out.active = true;
    }

    fn end_stream(&mut self, id: u32, end: End, out: &mut Out) {
        let was_open = self.is_open();
        let is_v1 = self.protocol == Protocol::V1;
        let owes_result = self.protocol.writes_status() && self.result.is_empty();
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) else { return };
        let is_output = matches!(stream.kind, StreamType::Stdout | StreamType::Stderr);
        self.cut |= is_output && owes_result && stream.end.is_none() && end == End::Reset;
        stream.end.get_or_insert(end);
        match (end, stream.kind) {
            (End::Reset, _) => stream.writable = false,
            // A server of v1 closes its side of stdin at once and goes on to read; later ones mean that they
            // read no more.
            (End::Fin, StreamType::Stdin) if !is_v1 && stream.writable => stream.close(&mut out.far),
            (End::Fin, _) => {}
        }
        if end == End::Reset && !was_open {
            self.ended = true;
            self.finish(&Outcome::Internal { text: STREAM_RESET.to_owned() }, Fate::Cut, out);
            self.leave(out);
        }
    }

    /// Ends the session by what the far side said, if it said all.
    fn settle_if_ended(&mut self, out: &mut Out) {
        if self.is_open() && self.results().all(|stream| stream.end.is_some()) {
            self.settle(out);
            self.leave(out);
        }
    }

    /// Ends the session by what the far side said.
    fn settle(&mut self, out: &mut Out) {
        // To say nothing is to say that all went well where no Status is due, and each stream was ended by name.
        let silence = !self.protocol.writes_status() && self.results().all(|stream| stream.end.is_some());
        let internal = |text| Outcome::Internal { text };
        let (outcome, fate) = match Outcome::parse(self.protocol, &self.result) {
            Ok(Outcome::Success) if self.cut || self.result.is_empty() && !silence => {
                (internal(NO_RESULT.to_owned()), Fate::Cut)
            }
            Ok(Outcome::Exit { code, .. }) => {
                let text = format!("command terminated with exit code {code}");
                (Outcome::Exit { code, text }, Fate::Whole)
            }
            Ok(outcome) => match outcome.client_error(self.protocol) {
                // Upstream wraps the message with its prefix, so that the prefix is there twice.
                Some(message) => (internal(message), Fate::Whole),
                None => (Outcome::Success, Fate::Whole),
            },
            Err(error) => (internal(error.to_string()), Fate::Cut),
        };
        self.finish(&outcome, fate, out);
    }

    fn finish(&mut self, outcome: &Outcome, fate: Fate, out: &mut Out) {
        // Nothing, where success is silence.
        let result = outcome.to_bytes(self.subprotocol.version());
        if !result.is_empty() {
            let channel = channel::number(StreamType::Error);
            out.tap.pass(StreamType::Error, &result);
            self.client.put_message(&mut out.client, self.subprotocol.encoding(), channel, result);
        }
        // To a Go client any other code would hide the Status.
        self.client.close(&mut out.client, Some(&Close::normal()));
        self.over = Some(fate);
    }

    /// Sends the ping of the far side back, unless it has to take other bytes first. Of several that wait
    /// only the last counts: known peers have one on its way at a time.
    fn answer_ping(&mut self, queue: &mut Queue) {
        if let Some(id) = self.echo.take_if(|_| queue.len() <= ANSWER_ROOM && !self.left) {
            Encoder::ping(queue.put(), id);
        }
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }

    fn writable(&mut self, kind: StreamType) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.kind == kind && stream.writable)
    }

    /// The streams whose end is the end of the session.
    fn results(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(|stream| {
            matches!(stream.kind, StreamType::Error | StreamType::Stdout | StreamType::Stderr)
        })
    }
}

impl Link for Translator {
    fn begin(&mut self, out: &mut Out) {
        channel::Encoder::new(self.subprotocol).first(out.client.put(), self.asked);
        let mut encoder = Encoder::new();
        for (kind, id) in self.asked.streams(self.protocol).iter().zip((1..).step_by(2)) {
            let headers = Headers::new().with(StreamType::HEADER, kind.name());
            let written = encoder.syn_stream(out.far.put(), id, &headers);
            debug_assert!(written.is_ok(), "one short header is within every limit");
            self.streams.push(Stream::new(kind, id));
        }
    }

    fn takes_client(&self) -> bool {
        self.is_open() && self.over.is_none()
    }

    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        if self.over.is_some() {
            input.clear();
        }
        if !self.takes_client() {
            return Ok(());
        }
        let heard = self.hear_client(input, out);
        self.client.answer(&mut out.client);
        heard.map_err(|error| self.refuse_client(error, out))
    }

    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        while self.over.is_none() {
            let frame = self.decoder.decode(input).map_err(|error| Fault::Far(error.to_string()))?;
            let Some(frame) = frame else {
                return Ok(());
            };
            self.take_frame(frame, out);
            if self.over.is_none() {
                self.settle_if_ended(out);
            }
        }
        input.clear();
        Ok(())
    }

    fn announce(&mut self, text: &str, out: &mut Out) {
        if self.asked.tty && self.over.is_none() && self.result.is_empty() {
            let (channel, text) =
                (channel::number(StreamType::Stdout), Bytes::copy_from_slice(text.as_bytes()));
            out.tap.told(&text);
            self.client.put_message(&mut out.client, self.subprotocol.encoding(), channel, text);
        }
    }

    /// Once the session is over it queues nothing and only says how that looked. A Status that has come is the result,
    /// whatever is missing behind it: servers write it last.
    fn end(&mut self, why: &str, out: &mut Out) -> Fate {
        if let Some(fate) = self.over {
            return fate;
        }
        let has_status = self.protocol.writes_status() && !self.result.is_empty();
        match Outcome::parse(self.protocol, &self.result) {
            Ok(_) if has_status && !self.cut => self.settle(out),
            _ => self.finish(&Outcome::Internal { text: why.to_owned() }, Fate::Cut, out),
        }
        self.over.unwrap_or(Fate::Cut)
    }

    /// A server begins once all streams are there, which it may have said already and nobody read; and ends all of them
    /// when the program has ended, if it does not say so before.
    fn is_done(&self) -> bool {
        self.ended || self.results().all(|stream| stream.end.is_some())
    }

    fn hang_up(&mut self, step: HangUp, out: &mut Out) -> Spoken {
        let Some(stdin) = self.writable(StreamType::Stdin) else { return Spoken::No };
        if !stdin.replied {
            return Spoken::NotYet;
        }
        match step {
            HangUp::Interrupt | HangUp::EndOfFile => {
                stdin.write(&mut out.far, Bytes::from_static(step.key()));
            }
            HangUp::EndOfStdin => stdin.close(&mut out.far),
        }
        Spoken::Yes
    }

    fn hear_last(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        while let Some(frame) = self.decoder.decode(input).map_err(|error| Fault::Far(error.to_string()))? {
            let was_open = self.is_open();
            let (id, end) = match frame {
                Frame::SynReply { id, fin, .. } => {
                    if let Some(stream) = self.stream(id) {
                        stream.replied = true;
                    }
                    if !fin {
                        continue;
                    }
                    (id, End::Fin)
                }
                Frame::Headers { id, fin: true, .. } => (id, End::Fin),
                Frame::Data { stream: id, bytes, fin } => {
                    let said =
                        !bytes.is_empty() && self.stream(id).is_some_and(|it| it.kind == StreamType::Error);
                    self.ended |= said;
                    if !fin {
                        continue;
                    }
                    (id, End::Fin)
                }
                Frame::RstStream { id, .. } => (id, End::Reset),
                Frame::GoAway { .. } => {
                    self.ended = true;
                    continue;
                }
                _ => continue,
            };
            if let Some(stream) = self.stream(id) {
                stream.end.get_or_insert(end);
                stream.writable &= end == End::Fin;
                self.ended |= end == End::Reset && !was_open;
            }
        }
        Ok(())
    }

    fn leave(&mut self, out: &mut Out) {
        if self.left {
            return;
        }
        self.left = true;
        for stream in self.streams.iter().filter(|stream| stream.writable) {
            Encoder::rst_stream(out.far.put(), stream.id, RstStatus::CANCEL);
        }
        Encoder::goaway(out.far.put(), 0);
    }

    fn tick(&mut self, out: &mut Out) {
        if self.over.is_some() {
            return;
        }
        if let Some(id) = self.pings.send() {
            Encoder::ping(out.far.put(), id);
        }
        self.client.show_life(out);
    }

    fn drained(&mut self, out: &mut Out) {
        self.client.answer(&mut out.client);
        self.answer_ping(&mut out.far);
    }

    fn is_open(&self) -> bool {
        self.streams.iter().all(|stream| stream.replied)
    }

    fn is_over(&self) -> bool {
        self.over.is_some()
    }
}

// === impl Stream ===

impl Stream {
    fn new(kind: StreamType, id: u32) -> Self {
        Self { id, kind, replied: false, writable: true, end: None }
    }

    fn write(&self, queue: &mut Queue, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let payload = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
            put_frame(queue, &Encoder::data_head(self.id, payload.len(), false), payload);
        }
    }

    /// Half-closes it. One without a reply gets no frame, and no other later.
    fn close(&mut self, queue: &mut Queue) {
        if self.replied {
            queue.put().extend_from_slice(&Encoder::data_head(self.id, 0, true));
        }
        self.writable = false;
    }
}
