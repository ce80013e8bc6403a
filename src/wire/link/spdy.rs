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
//! Bounds: a frame that is held, [`MAX_HELD`](crate::wire::spdy::MAX_HELD) bytes in either input; the
//! compression window of the client's direction, some 20 KB; a command's five streams, or
//! `forward::MAX_STREAMS` of a port-forward. Pings, settings, resets and streams that are opened and closed
//! leave nothing behind. The end of a port-forward queues its text once for each error stream.
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

use super::{Fate, Fault, Link, Out, Queue};
use crate::wire::remotecommand::Protocol;
use crate::wire::spdy::{
    Encoder, Frame, GOAWAY_OK, GOAWAY_PROTOCOL_ERROR, Headers, Passing, Relay, RstStatus,
};
use command::Command;
use forward::Forward;

/// What a client reads where the far side leaves without having said what it had to.
const LEFT: &str = "the far side ended the session without giving its result";

/// A SPDY client and a SPDY far side.
pub struct SpdyLink {
    client: Relay,
    far: Relay,
    streams: Box<dyn Streams>,
    /// The last stream of the client that the far side accepted.
    last_good: u32,
    /// The client reads nothing any more: it has said GOAWAY, or one is queued for it.
    deaf: bool,
}

/// How a peer is done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// It sends nothing more.
    Fin,
    /// It takes nothing more either.
    Reset,
}

/// What the streams of a session mean. Streams that mean nothing here are none of its business.
trait Streams: Send {
    /// The client opened a stream.
    fn opened(&mut self, id: u32, headers: &Headers, fin: bool) -> Result<(), forward::TooMany>;

    /// The stream whose payload is to be shown, frame by frame.
    fn watched(&self) -> Option<u32> {
        None
    }

    /// The client is done with a stream.
    fn client_done(&mut self, id: u32, done: Done);

    /// The client said GOAWAY: whatever it still waited for, it does not any more.
    fn client_left(&mut self);

    /// The far side accepted a stream.
    fn accepted(&mut self, id: u32);

    /// Payload of the watched stream, from the far side.
    fn far_data(&mut self, _payload: &[u8]) {}

    /// The far side is done with a stream. What it returns is for the client to read on that stream first.
    fn far_done(&mut self, id: u32, done: Done) -> Option<Bytes>;

    /// The far side said GOAWAY.
    fn far_left(&mut self, orderly: bool);

    /// Appends, on each error stream on which the client waits for a word, that there is none, for the reason
    /// `why`. Does so once.
    fn tell(&mut self, why: &str, out: &mut BytesMut);

    /// Whether the client has had, from the far side, the word it waited for.
    fn has_result(&self) -> bool;

    /// How it looks to the client.
    fn fate(&self) -> Fate;
}

// === impl SpdyLink ===

impl SpdyLink {
    /// An exec or attach of this protocol, which the far side has named in its 101.
    pub fn command(protocol: Protocol) -> Self {
        Self::new(Box::new(Command::new(protocol)))
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
            deaf: false,
        }
    }

    /// Notes a control frame of the client.
    fn client_frame(&mut self, frame: &Frame) -> Result<(), forward::TooMany> {
        match *frame {
            Frame::SynStream { id, ref headers, fin, .. } => {
                self.streams.opened(id, headers, fin)?;
                if let Some(id) = self.streams.watched() {
                    self.far.hold(id);
                }
            }
            Frame::SynReply { id, fin: true, .. } | Frame::Headers { id, fin: true, .. } => {
                self.streams.client_done(id, Done::Fin);
            }
            Frame::RstStream { id, .. } => self.streams.client_done(id, Done::Reset),
            Frame::GoAway { .. } => {
                self.streams.client_left();
                self.deaf = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes a control frame of the far side, which is still in `input`, behind all that was passed.
    fn far_frame(&mut self, frame: &Frame, input: &mut BytesMut, out: &mut Queue) {
        match *frame {
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
                self.streams.tell(LEFT, self.far.before(input, out));
                self.deaf = true;
            }
            _ => {}
        }
    }

    fn far_done(&mut self, id: u32, done: Done, input: &mut BytesMut, out: &mut Queue) {
        if let Some(text) = self.streams.far_done(id, done) {
            put_data(self.far.before(input, out), id, &text, false);
        }
    }

    /// Tells the client what can still be told: why, on its error streams, and that this is the end.
    fn close(&mut self, why: &str, status: u32, client: &mut Queue) {
        if !mem::replace(&mut self.deaf, true) {
            self.streams.tell(why, client.put());
            Encoder::goaway_for(client.put(), self.last_good, status);
        }
    }

    fn refuse(&mut self, error: impl ToString, out: &mut Out) -> Fault {
        let fault = Fault::Client(error.to_string());
        self.close(&fault.to_string(), GOAWAY_PROTOCOL_ERROR, &mut out.client);
        fault
    }
}

impl Link for SpdyLink {
    fn begin(&mut self, _out: &mut Out) {}

    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        loop {
            match self.client.next(input, &mut out.far) {
                Ok(None) => return Ok(()),
                Ok(Some(Passing::Data { stream, fin, .. })) => {
                    out.active = true;
                    if fin {
                        self.streams.client_done(stream, Done::Fin);
                    }
                }
                Ok(Some(Passing::Control(frame))) => {
                    out.active |= matches!(frame, Frame::SynStream { .. });
                    if let Err(error) = self.client_frame(&frame) {
                        self.client.before(input, &mut out.far);
                        return Err(self.refuse(error, out));
                    }
                }
                Err(error) => return Err(self.refuse(error, out)),
            }
        }
    }

    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        let client = &mut out.client;
        while let Some(passing) = self.far.next(input, client).map_err(|e| Fault::Far(e.to_string()))? {
            match passing {
                Passing::Data { stream, len, fin } => {
                    out.active = true;
                    if self.streams.watched() == Some(stream) {
                        self.streams.far_data(self.far.payload(input, len));
                    }
                    if fin {
                        self.far_done(stream, Done::Fin, input, client);
                    }
                }
                Passing::Control(frame) => {
                    out.active |= matches!(frame, Frame::SynStream { .. });
                    self.far_frame(&frame, input, client);
                }
            }
        }
        Ok(())
    }

    fn client_ended(&mut self, _out: &mut Out) {}

    fn end(&mut self, why: &str, out: &mut Out) -> Fate {
        if !self.streams.has_result() {
            self.close(why, GOAWAY_OK, &mut out.client);
        }
        self.streams.fate()
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
