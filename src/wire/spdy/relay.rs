//! Relay: one direction of a connection, on its way from one peer to the other.
//!
//! Frames pass as they came, and what they say is shown one by one. So that frames of our own can go between
//! any two of them, at any time, what was passed on always ends at a frame's edge: of a DATA frame that has
//! not all arrived goes a shorter DATA frame with what is there, and FIN goes with the last of them. A Go
//! peer, which reads DATA frames whole, would take a connection that ends inside one for the proper end of
//! its stream.
//!
//! Invariants:
//! - No copy and no allocation for a DATA frame. Frames that lie in the input one after another leave as one
//!   slice of it; a shorter length is written over the head of the last one, and only the further pieces of a
//!   frame get a head of their own.
//! - Control frames leave whole, byte for byte; so do DATA frames of the stream of [`Relay::hold`].
//! - At most [`MAX_HELD`] bytes stay in the input.
//! - Flags of DATA other than FIN mean nothing here, and are lost where a frame leaves in pieces.

use std::mem;

use bytes::{Buf, BufMut, BytesMut};

use super::{Encoder, Error, Frame, HEAD, Head, Inflater, MAX_CONTROL_PAYLOAD, State};
use crate::wire::link::Queue;

/// Most bytes that a [`Relay`] leaves in its input: a control frame that has not all arrived. A caller's read
/// buffer must have room for more.
pub const MAX_HELD: usize = HEAD + MAX_CONTROL_PAYLOAD - 1;

/// The frames of one direction, from the first byte after the upgrade head.
#[derive(Debug)]
pub struct Relay {
    /// Where the input stands, behind `run` and `piece`. Control frames wait in the input, head and all.
    state: State,
    /// `None` where nobody asks for headers: the blocks pass unread, and the direction costs no window.
    inflater: Option<Inflater>,
    /// Its DATA frames leave whole.
    held: Option<u32>,
    /// For the front of the input, when that goes on with a frame.
    head: Option<[u8; HEAD]>,
    /// Bytes at the front of the input that are to leave as one slice.
    run: usize,
    /// Bytes behind them: what [`Relay::next`] showed last.
    piece: usize,
}

/// A frame on its way, or one piece of a DATA frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passing {
    /// A DATA frame, or the part of it that leaves as one.
    Data {
        /// The stream.
        stream: u32,
        /// Bytes of payload; see [`Relay::payload`].
        len: usize,
        /// The stream is half-closed with it.
        fin: bool,
    },
    /// Any other frame. Without headers where they are not read.
    Control(Frame),
}

// === impl Relay ===

impl Relay {
    /// A direction whose header blocks are read.
    pub fn new() -> Self {
        Self { inflater: Some(Inflater::default()), ..Self::blind() }
    }

    /// A direction whose header blocks pass unread.
    pub fn blind() -> Self {
        Self { state: State::Head, inflater: None, held: None, head: None, run: 0, piece: 0 }
    }

    /// From now on DATA frames of this stream, and no other, leave whole. Those over [`MAX_CONTROL_PAYLOAD`]
    /// are not waited for.
    pub fn hold(&mut self, stream: u32) {
        self.held = Some(stream);
    }

    /// Shows the next frame of `input`, which then leaves for `out`; `None` when all that can has left.
    ///
    /// Call it until `None`. What it leaves in `input`, at most [`MAX_HELD`] bytes, must stay there. Before
    /// an error, everything in front of it leaves; then there is nothing more to be had.
    pub fn next(&mut self, input: &mut BytesMut, out: &mut Queue) -> Result<Option<Passing>, Error> {
        self.run += mem::take(&mut self.piece);
        let passing = self.step(&mut input[self.run..]);
        if passing.is_err() {
            self.state = State::Failed;
        }
        if !matches!(passing, Ok(Some(_))) {
            self.flush(input, out);
        }
        passing
    }

    /// Where to put frames that are to leave in front of the one that was shown last.
    pub fn before<'a>(&mut self, input: &mut BytesMut, out: &'a mut Queue) -> &'a mut BytesMut {
        self.flush(input, out);
        out.put()
    }

    /// Forgets the DATA that was shown last: it does not leave, head and all.
    pub fn skip(&mut self, input: &mut BytesMut, out: &mut Queue) {
        self.flush(input, out);
        input.advance(mem::take(&mut self.piece));
        self.head = None;
    }

    /// The payload of the DATA that was shown last, `len` bytes of it.
    pub fn payload<'a>(&self, input: &'a [u8], len: usize) -> &'a [u8] {
        let end = self.run + self.piece;
        &input[end - len..end]
    }

    fn step(&mut self, input: &mut [u8]) -> Result<Option<Passing>, Error> {
        match self.state {
            State::Failed => return Err(Error::Failed),
            State::Data { .. } if input.is_empty() => return Ok(None),
            State::Data { stream, rest, fin } => {
                let len = rest.min(input.len());
                return Ok(Some(self.data(stream, len, rest, fin, None)));
            }
            State::Head | State::Control(_) => {}
        }
        let Some((head, payload)) = input.split_first_chunk_mut::<HEAD>() else {
            return Ok(None);
        };
        match Head::parse(*head)? {
            Head::Control(control) if payload.len() < control.len => Ok(None),
            Head::Control(control) => {
                let frame = control.read(&payload[..control.len], self.inflater.as_mut())?;
                self.piece = HEAD + control.len;
                Ok(Some(Passing::Control(frame)))
            }
            Head::Data { stream, len, fin } => {
                let here = len.min(payload.len());
                let waits = here == 0 || self.held == Some(stream) && len <= MAX_CONTROL_PAYLOAD;
                if here < len && waits {
                    return Ok(None);
                }
                Ok(Some(self.data(stream, here, len, fin, Some(head))))
            }
        }
    }

    /// Takes `len` of `rest` bytes of a DATA frame, whose head stands in front of them or went before.
    fn data(
        &mut self,
        stream: u32,
        len: usize,
        rest: usize,
        fin: bool,
        head: Option<&mut [u8; HEAD]>,
    ) -> Passing {
        let last = len == rest;
        self.state = State::after_data(stream, rest - len, fin);
        let fin = fin && last;
        self.piece = len;
        match head {
            Some(head) => {
                self.piece += HEAD;
                if !last {
                    *head = Encoder::data_head(stream, len, fin);
                }
            }
            None => self.head = Some(Encoder::data_head(stream, len, fin)),
        }
        Passing::Data { stream, len, fin }
    }

    fn flush(&mut self, input: &mut BytesMut, out: &mut Queue) {
        if self.run == 0 {
            return;
        }
        if let Some(head) = self.head.take() {
            out.put().put_slice(&head);
        }
        out.push(input.split_to(mem::take(&mut self.run)).freeze());
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
