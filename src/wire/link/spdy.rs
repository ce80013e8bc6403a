//! SPDY to SPDY: frames pass, streams are followed, and the end is told.
//!
//! Both directions are a [`Relay`]: what a peer was sent ends at a frame's edge at any time, and frames pass
//! byte for byte but for DATA frames that have not all arrived. Beside it stands what the streams mean: the
//! result of a command (`command`) or the connections of a port-forward (`forward`). It says whether the
//! client has had all there is, and how to tell it when not.
//!
//! Why the client is told on its error streams first, and in front of everything by which the far side
//! leaves: a Go client reads nothing behind a GOAWAY, and takes an error stream that ended without a word for
//! success.
//!
//! Where the session is recorded, what passes must be on the tape as what the far side, or the client, takes it for:
//! - DATA that peers of upstream drop is dropped here: behind the end or the reset of its stream, behind a GOAWAY, empty
//!   on a stream that nobody opened, and of a port-forward on streams that are not open. Go clients do write so: their copy of stdin goes on for a moment
//!   after they have closed it.
//! - What servers may take for different things is a [`Fault`], in front of the frame: ids out of order, a stream of no
//!   type, an unknown one, several, or one that is there already, headers behind the opening, DATA before the reply,
//!   on a stream that nobody opened, or against the way of its type, and streams that the far side opens. Known
//!   clients and kubelets do none of it.
//!
//! Bounds: a frame that is held, [`MAX_HELD`](crate::wire::spdy::MAX_HELD) bytes in either input; the header blocks of
//! the client's direction, 2 KiB, or some 40 KB of an inflater behind them; a command's five streams, or
//! `forward::MAX_STREAMS` of a port-forward. Pings, settings, resets and streams that are opened and closed
//! leave nothing behind. The end of a port-forward queues its text once for each error stream.
//!
//! A client of an exec that leaves, by a reset of its error stream or a GOAWAY, while its program still runs, does not
//! take stdin along, nor does one of a terminal that resets stdin: these frames stay here, so that the terminal can be
//! hung up. A kubelet does nothing about a program whose client is gone.
//!
//! Left out on purpose: a word to the far side when the client is gone. The end of its bytes is what a
//! kubelet gets from any proxy.
//! Source: `protocol.md` 5.2, 5.4 and 6.4; moby/spdystream `connection.go`.

mod command;
mod forward;
#[cfg(test)]
pub(super) mod tests;

use std::mem;

use bytes::{Bytes, BytesMut};

use super::{Fate, Fault, HangUp, Link, Out, Queue, Runs, Spoken};
use crate::wire::remotecommand::Protocol;
use crate::wire::spdy::{
    Encoder, Frame, GOAWAY_OK, GOAWAY_PROTOCOL_ERROR, Headers, MAX_STREAM_ID, Passing, Relay, RstStatus,
};
use crate::wire::tap::Tap;
use command::Command;
use forward::{Forward, MAX_STREAMS};

/// What a client reads where the far side leaves without having said what it had to.
const LEFT: &str = "the far side ended the session without giving its result";

/// A SPDY client and a SPDY far side.
pub struct SpdyLink {
    client: Relay,
    far: Relay,
    streams: Box<dyn Streams>,
    /// The last stream of the client that the far side accepted.
    last_good: u32,
    /// The least id that the client may open next; followed where the session is recorded.
    next: u32,
    /// The client has said GOAWAY.
    client_left: bool,
    /// The far side has.
    far_left: bool,
    /// The client reads nothing any more: it has said GOAWAY, or one is queued for it.
    deaf: bool,
    /// The client has left what it had started.
    abandoned: bool,
}

/// How a peer is done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// It sends nothing more.
    Fin,
    /// It takes nothing more either.
    Reset,
}

/// What becomes of a frame of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It goes on.
    On,
    /// It stays here.
    Here,
    /// It stays here, and is the client's last.
    Last,
}

/// Why a session ends although its frames are well made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    /// A client has more than [`MAX_STREAMS`] streams.
    #[error("more than {MAX_STREAMS} streams at once")]
    TooMany,
    /// What a recording could not show as what it is.
    #[error("the session is recorded, and {0}")]
    Unclear(&'static str),
}

/// What the streams of a session mean. Streams that mean nothing here are none of its business. The tap is told what
/// they carry.
trait Streams: Send {
    /// The client opened a stream.
    fn opened(&mut self, id: u32, headers: &Headers, fin: bool, tap: &mut Tap) -> Result<(), Refused>;

    /// The stream whose DATA is to be shown frame by frame.
    fn watched(&self) -> Option<u32> {
        None
    }

    /// Payload from the client, which ends its side with it or does not. Returns whether it goes on.
    fn client_data(&mut self, id: u32, payload: &[u8], fin: bool, tap: &mut Tap) -> Result<bool, Refused>;

    /// The client is done with a stream.
    fn client_done(&mut self, id: u32, done: Done, tap: &mut Tap);

    /// Whether what the client writes on this stream shows that somebody is there: terminal sizes do not.
    fn is_activity(&self, _id: u32) -> bool {
        true
    }

    /// What becomes of a reset of the client.
    fn reset_goes(&self, _id: u32) -> Way {
        Way::On
    }

    /// What becomes of the client's GOAWAY.
    fn goaway_goes(&self) -> Way {
        Way::On
    }

    /// The client said GOAWAY: whatever it still waited for, it does not any more.
    fn client_left(&mut self, tap: &mut Tap);

    /// The far side accepted a stream.
    fn accepted(&mut self, id: u32);

    /// Payload from the far side. Returns whether it goes on.
    fn far_data(&mut self, id: u32, payload: &[u8], tap: &mut Tap) -> Result<bool, Refused>;

    /// The far side is done with a stream. What it returns is for the client to read on that stream first.
    fn far_done(&mut self, id: u32, done: Done, tap: &mut Tap) -> Option<Bytes>;

    /// The far side said GOAWAY.
    fn far_left(&mut self, orderly: bool);

    /// Appends, on each error stream on which the client waits for a word, that there is none, for the reason
    /// `why`. Does so once.
    fn tell(&mut self, why: &str, out: &mut BytesMut, tap: &mut Tap);

    /// Whether the client has had, from the far side, the word it waited for.
    fn has_result(&self) -> bool;

    /// How it looks to the client.
    fn fate(&self) -> Fate;

    /// As [`Link::is_done`].
    fn is_done(&self) -> bool {
        true
    }

    /// The stream that podgate may write stdin on; it is ended with the bytes if `fin`.
    fn stdin(&mut self, _fin: bool) -> Result<u32, Spoken> {
        Err(Spoken::No)
    }

    /// The stream that podgate may write to the client's terminal on.
    fn terminal(&self) -> Option<u32> {
        None
    }
}

// === impl SpdyLink ===

impl SpdyLink {
    /// An exec or attach of this protocol, which the far side has named in its 101.
    pub fn command(protocol: Protocol, runs: Runs) -> Self {
        Self::new(Box::new(Command::new(protocol, runs)))
    }

    /// A port-forward.
    pub fn port_forward() -> Self {
        Self::new(Box::new(Forward::default()))
    }

    fn new(streams: Box<dyn Streams>) -> Self {
        Self {
            client: Relay::new(),
            // Nothing depends on the headers of replies.
            far: Relay::blind(),
            streams,
            last_good: 0,
            next: 1,
            client_left: false,
            far_left: false,
            deaf: false,
            abandoned: false,
        }
    }

    /// Notes a control frame of the client.
    fn client_frame(&mut self, frame: &Frame, tap: &mut Tap) -> Result<Way, Refused> {
        match *frame {
            Frame::SynStream { id, ref headers, fin, .. } => {
                if tap.is_recording() {
                    if id < self.next || id > MAX_STREAM_ID {
                        return Err(Refused::Unclear("its client opens streams out of order"));
                    }
                    self.next = id + 2;
                }
                self.streams.opened(id, headers, fin, tap)?;
                if let Some(id) = self.streams.watched() {
                    self.far.hold(id);
                }
            }
            Frame::SynReply { .. } if tap.is_recording() => {
                return Err(Refused::Unclear("its client accepts streams"));
            }
            Frame::Headers { .. } if tap.is_recording() => {
                return Err(Refused::Unclear("its client adds headers to a stream"));
            }
            Frame::SynReply { id, fin: true, .. } | Frame::Headers { id, fin: true, .. } => {
                self.streams.client_done(id, Done::Fin, tap);
            }
            Frame::RstStream { id, .. } => {
                let way = self.streams.reset_goes(id);
                if way == Way::On {
                    self.streams.client_done(id, Done::Reset, tap);
                }
                return Ok(way);
            }
            Frame::GoAway { .. } => {
                self.deaf = true;
                let way = self.streams.goaway_goes();
                if way == Way::On {
                    self.streams.client_left(tap);
                    self.client_left = true;
                }
                return Ok(way);
            }
            _ => {}
        }
        Ok(Way::On)
    }

    /// Notes a control frame of the far side, which is still in `input`, behind all that was passed.
    fn far_frame(&mut self, frame: &Frame, input: &mut BytesMut, out: &mut Out) -> Result<(), Refused> {
        match *frame {
            Frame::SynStream { .. } if out.tap.is_recording() => {
                return Err(Refused::Unclear("the far side opens streams"));
            }
            Frame::Headers { .. } if out.tap.is_recording() => {
                return Err(Refused::Unclear("the far side adds headers to a stream"));
            }
            Frame::SynReply { id, fin, .. } => {
                self.last_good = self.last_good.max(id);
                self.streams.accepted(id);
                if fin {
                    self.far_done(id, Done::Fin, input, out);
                }
            }
            Frame::Headers { id, fin: true, .. } => self.far_done(id, Done::Fin, input, out),
            Frame::RstStream { id, .. } => self.far_done(id, Done::Reset, input, out),
            Frame::GoAway { status, .. } => {
                self.streams.far_left(status == GOAWAY_OK);
                self.streams.tell(LEFT, self.far.before(input, &mut out.client), &mut out.tap);
                self.far_left = true;
                self.deaf = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn far_done(&mut self, id: u32, done: Done, input: &mut BytesMut, out: &mut Out) {
        if let Some(text) = self.streams.far_done(id, done, &mut out.tap) {
            put_data(self.far.before(input, &mut out.client), id, &text, false);
        }
    }

    /// Takes what was shown last of the client; false when it does not go on.
    fn client_passing(&mut self, passing: Passing, input: &BytesMut, out: &mut Out) -> Result<bool, Refused> {
        match passing {
            Passing::Data { stream, len, fin } => {
                if self.client_left && out.tap.is_recording() {
                    return Ok(false);
                }
                let payload = self.client.payload(input, len);
                if !self.streams.client_data(stream, payload, fin, &mut out.tap)? {
                    return Ok(false);
                }
                out.active |= self.streams.is_activity(stream) && (len > 0 || fin);
                if fin {
                    self.streams.client_done(stream, Done::Fin, &mut out.tap);
                }
            }
            Passing::Control(frame) => {
                out.active |= matches!(frame, Frame::SynStream { .. });
                let way = self.client_frame(&frame, &mut out.tap)?;
                self.abandoned = way == Way::Last;
                return Ok(way == Way::On);
            }
        }
        Ok(true)
    }

    /// Takes what was shown last of the far side; false when it does not go on.
    fn far_passing(
        &mut self,
        passing: Passing,
        input: &mut BytesMut,
        out: &mut Out,
    ) -> Result<bool, Refused> {
        match passing {
            Passing::Data { stream, len, fin } => {
                if self.far_left && out.tap.is_recording() {
                    return Ok(false);
                }
                let payload = self.far.payload(input, len);
                if !self.streams.far_data(stream, payload, &mut out.tap)? {
                    return Ok(false);
                }
                out.active |= len > 0 || fin;
                if fin {
                    self.far_done(stream, Done::Fin, input, out);
                }
            }
            Passing::Control(frame) => {
                out.active |= matches!(frame, Frame::SynStream { .. });
                self.far_frame(&frame, input, out)?;
            }
        }
        Ok(true)
    }

    /// Tells the client what can still be told: why, on its error streams, and that this is the end.
    fn close(&mut self, why: &str, status: u32, out: &mut Out) {
        if !mem::replace(&mut self.deaf, true) {
            self.streams.tell(why, out.client.put(), &mut out.tap);
            Encoder::goaway_for(out.client.put(), self.last_good, status);
        }
    }

    fn refuse(&mut self, error: impl ToString, out: &mut Out) -> Fault {
        let fault = Fault::Client(error.to_string());
        self.close(&fault.to_string(), GOAWAY_PROTOCOL_ERROR, out);
        fault
    }
}

impl Link for SpdyLink {
    fn begin(&mut self, _out: &mut Out) {}

    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        loop {
            if self.abandoned {
                input.clear();
                return Ok(());
            }
            match self.client.next(input, &mut out.far) {
                Ok(None) => return Ok(()),
                Ok(Some(passing)) => match self.client_passing(passing, input, out) {
                    Ok(true) => {}
                    Ok(false) => self.client.skip(input, &mut out.far),
                    Err(error) => {
                        self.client.before(input, &mut out.far);
                        return Err(self.refuse(error, out));
                    }
                },
                Err(error) => return Err(self.refuse(error, out)),
            }
        }
    }

    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        let fault = |error: &dyn ToString| Fault::Far(error.to_string());
        while let Some(passing) = self.far.next(input, &mut out.client).map_err(|error| fault(&error))? {
            match self.far_passing(passing, input, out) {
                Ok(true) => {}
                Ok(false) => self.far.skip(input, &mut out.client),
                Err(error) => {
                    self.far.before(input, &mut out.client);
                    return Err(fault(&error));
                }
            }
        }
        Ok(())
    }

    fn announce(&mut self, text: &str, out: &mut Out) {
        if let Some(id) = self.streams.terminal().filter(|_| !self.deaf) {
            put_data(out.client.put(), id, text.as_bytes(), false);
            out.tap.told(text.as_bytes());
        }
    }

    fn end(&mut self, why: &str, out: &mut Out) -> Fate {
        if !self.streams.has_result() && !self.abandoned {
            self.close(why, GOAWAY_OK, out);
        }
        self.streams.fate()
    }

    fn is_done(&self) -> bool {
        self.streams.is_done()
    }

    fn hang_up(&mut self, step: HangUp, out: &mut Out) -> Spoken {
        let fin = step == HangUp::EndOfStdin;
        if self.client_left {
            // The far side has its GOAWAY, behind which nothing counts.
            return Spoken::No;
        }
        match self.streams.stdin(fin) {
            Ok(id) => put_data(out.far.put(), id, step.key(), fin),
            Err(told) => return told,
        }
        Spoken::Yes
    }

    fn hear_last(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        // As while there was a client, and what is to be for it goes nowhere. Nothing is told either: nobody gets it.
        let (mut nobody, mut tap) = (Queue::default(), Tap::default());
        loop {
            let passing = self.far.next(input, &mut nobody);
            nobody.clear();
            match passing.map_err(|error| Fault::Far(error.to_string()))? {
                None => return Ok(()),
                Some(Passing::Data { stream, len, fin }) => {
                    let payload = self.far.payload(input, len);
                    // Only what is recorded is ever refused.
                    let _ = self.streams.far_data(stream, payload, &mut tap);
                    if fin {
                        self.streams.far_done(stream, Done::Fin, &mut tap);
                    }
                }
                Some(Passing::Control(frame)) => match frame {
                    Frame::SynReply { id, fin, .. } => {
                        self.streams.accepted(id);
                        if fin {
                            self.streams.far_done(id, Done::Fin, &mut tap);
                        }
                    }
                    Frame::Headers { id, fin: true, .. } => {
                        self.streams.far_done(id, Done::Fin, &mut tap);
                    }
                    Frame::RstStream { id, .. } => drop(self.streams.far_done(id, Done::Reset, &mut tap)),
                    Frame::GoAway { status, .. } => self.streams.far_left(status == GOAWAY_OK),
                    _ => {}
                },
            }
        }
    }

    fn leave(&mut self, _out: &mut Out) {}

    fn is_over(&self) -> bool {
        self.abandoned
    }
}

/// Appends a DATA frame of a text of ours, which is short.
fn put_data(out: &mut BytesMut, stream: u32, text: &[u8], fin: bool) {
    out.extend_from_slice(&Encoder::data_head(stream, text.len(), fin));
    out.extend_from_slice(text);
}

/// Appends the last word on an error stream. A client that was not told that its stream is there drops what
/// comes on it, but waits for an answer, and a reset is one.
fn put_last(out: &mut BytesMut, stream: u32, accepted: bool, text: &[u8]) {
    if accepted {
        put_data(out, stream, text, true);
    } else {
        Encoder::rst_stream(out, stream, RstStatus::CANCEL);
    }
}
