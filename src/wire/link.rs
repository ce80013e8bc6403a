//! Link: what stands between the two connections of a session and turns the bytes of one into bytes for the other.
//!
//! `session` reads from either side, hands the bytes to a [`Link`], and writes what it queues. A link knows the
//! frames on both sides, so it can end a session at a frame's edge and with an error that the client understands,
//! instead of in the middle of an output that then looks whole.
//! Invariants:
//! - Input may be cut anywhere. What a link leaves in `input` is the beginning of something, shorter than its
//!   stated bound, and it is given back with more bytes behind it.
//! - What a link queues for one call is bounded by the input of that call and a constant; answers to the peer
//!   that floods (pongs) are held back and merged while the queue is not empty.
//! - After [`Link::end`], or an error, a link is not fed any more, but for [`Link::hear_last`].

pub mod spdy;
pub mod translate;
pub mod tunnel;
pub mod ws;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::wire::tap::Tap;

/// A queue of this many bytes is full: its writer is waited for, and nothing more is read of the peer whose bytes
/// it carries. As much as one read brings, so a queue never holds more than twice that and the frames of one read.
pub const FULL: usize = 64 * 1024;

/// So many slices make a queue full as well: each may keep a whole read buffer in memory, however short it is. As many
/// as one read can be cut into.
pub const FULL_SLICES: usize = 16;

/// Bytes up to this many are copied into a queue: cheaper than a slice of their own, and the buffer that they came in
/// is free again.
pub const COPIED: usize = FULL / FULL_SLICES;

/// Bytes for one peer, in the order in which they go out; slices of what was read, and small frames of our own
/// between them.
#[derive(Debug, Default)]
pub struct Queue {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    queued: usize,
    /// What was put last, not yet a chunk.
    tail: BytesMut,
}

/// What a link has to say to both peers.
#[derive(Debug, Default)]
pub struct Out {
    /// For the client.
    pub client: Queue,
    /// For the far side.
    pub far: Queue,
    /// Set when bytes of the session itself went by, other than keepalives and their answers.
    pub active: bool,
    /// Is told what passes.
    pub tap: Tap,
}

/// Which peer sent what is not the protocol.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The client. What its protocol has for telling it so is queued.
    #[error("the client does not speak the protocol of its session: {0}")]
    Client(String),
    /// The far side. [`Link::end`] is what tells the client.
    #[error("the far side does not speak the protocol of its session: {0}")]
    Far(String),
}

/// How a session that podgate ends, or whose far side has ended, looked to its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All there was: the far side had given its result, or the protocol has none.
    Whole,
    /// Something is missing, and the client was told in its own protocol, as far as it has words for it.
    Cut,
}

/// What a session runs at its far side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// A program of its own.
    Exec {
        /// In a terminal.
        tty: bool,
    },
    /// Nothing of its own: it is attached to what the container runs anyway.
    Attach {
        /// That has a terminal.
        tty: bool,
    },
    /// Nothing at all: it forwards connections.
    Forward,
}

/// What a terminal says to its program when it is hung up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangUp {
    /// The key that interrupts the program in the foreground; what was typed and not read is forgotten with it.
    Interrupt,
    /// The key that ends the input, at the beginning of a line.
    EndOfFile,
    /// The end of stdin in the protocol. Nothing is typed behind it.
    EndOfStdin,
}

/// Whether a program could be told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// It is queued.
    Yes,
    /// Its stdin may still be opened.
    NotYet,
    /// There is no stdin to say it on.
    No,
}

/// What the clock is to do for a link; it has none of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Period of [`Link::tick`].
    pub keepalive: Option<Duration>,
}

/// The state machine between a client and a far side, from the first byte after their 101s.
pub trait Link: Send {
    /// What is to be said before anything was read.
    fn begin(&mut self, out: &mut Out);

    /// Whether bytes of the client can be taken now. While they cannot, they wait in its socket.
    fn takes_client(&self) -> bool {
        true
    }

    /// Takes bytes of the client off the front of `input`.
    ///
    /// # Errors
    /// [`Fault::Client`]; the session is to end.
    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault>;

    /// Takes bytes of the far side off the front of `input`.
    ///
    /// # Errors
    /// [`Fault::Far`]; the session is to end.
    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault>;

    /// Writes a text of podgate's own to the client's terminal, unless the client had its result. Only where there is a
    /// terminal, at any time in front of [`Link::end`].
    fn announce(&mut self, _text: &str, _out: &mut Out) {}

    /// The session is over: the far side's bytes have ended, or podgate ends it for the reason `why`, a sentence
    /// for people. Queues for the client the error, unless it had its result, and the proper end of its protocol.
    /// Once the link [is over](Link::is_over) it queues nothing and only tells.
    fn end(&mut self, why: &str, out: &mut Out) -> Fate;

    /// Whether nothing that the session has started runs at the far side, as far as that has said.
    fn is_done(&self) -> bool {
        true
    }

    /// The session is over for its client: says this to the program that it has left behind.
    fn hang_up(&mut self, _step: HangUp, _out: &mut Out) -> Spoken {
        Spoken::No
    }

    /// Takes bytes of the far side off the front of `input` when they are for nobody any more: only whether the
    /// session [is done](Link::is_done) is read from them.
    ///
    /// # Errors
    /// [`Fault::Far`]; nothing more can be read.
    fn hear_last(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        input.clear();
        Ok(())
    }

    /// Nobody is here any more: queues for the far side what its protocol says then.
    fn leave(&mut self, out: &mut Out);

    /// A keepalive period has passed. Called only for sessions that have one.
    fn tick(&mut self, _out: &mut Out) {}

    /// A queue has been written out: what was held back can go.
    fn drained(&mut self, _out: &mut Out) {}

    /// Whether the session is set up: the streams of the far side are open. Until then its deadline runs.
    fn is_open(&self) -> bool {
        true
    }

    /// Whether the session came to its own end, by what the peer said whose bytes were taken last: what is queued
    /// is the last.
    fn is_over(&self) -> bool {
        false
    }
}

// === impl Runs ===

impl Runs {
    /// Whether what it runs is there for the session alone.
    pub fn own(self) -> bool {
        matches!(self, Runs::Exec { .. })
    }

    /// Whether that has a terminal.
    pub fn tty(self) -> bool {
        matches!(self, Runs::Exec { tty: true } | Runs::Attach { tty: true })
    }
}

// === impl HangUp ===

impl HangUp {
    /// What is typed: the keys that terminals have unless somebody has changed them (termios(3)).
    pub fn key(self) -> &'static [u8] {
        match self {
            HangUp::Interrupt => b"\x03",
            HangUp::EndOfFile => b"\x04",
            HangUp::EndOfStdin => b"",
        }
    }
}

// === impl Queue ===

impl Queue {
    /// Appends bytes, without a copy unless they are few ([`COPIED`]).
    pub fn push(&mut self, bytes: Bytes) {
        match bytes.len() <= COPIED {
            true => self.tail.extend_from_slice(&bytes),
            false => self.slice(bytes),
        }
    }

    fn slice(&mut self, bytes: Bytes) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.append(tail);
        }
        self.append(bytes);
    }

    /// Where to append small frames. Appended bytes are in order with those of [`Queue::push`].
    pub fn put(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Whether its writer is to be waited for.
    pub fn is_full(&self) -> bool {
        self.len() >= FULL || self.chunks.len() >= FULL_SLICES
    }

    /// Forgets everything: its peer takes nothing any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes to write.
    pub fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    fn append(&mut self, bytes: Bytes) {
        self.queued += bytes.len();
        self.chunks.push_back(bytes);
    }
}

impl Buf for Queue {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.front().map_or(&self.tail, |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        let all = self.chunks.iter().map(|chunk| &chunk[..]).chain(tail);
        let filled = slices.iter_mut().zip(all).map(|(slice, chunk)| *slice = IoSlice::new(chunk));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(chunk) = self.chunks.front_mut().filter(|_| count > 0) {
            let taken = count.min(chunk.len());
            chunk.advance(taken);
            count -= taken;
            self.queued -= taken;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.tail.advance(count);
        if self.tail.is_empty() {
            // What it has grown to is not needed while nothing passes.
            self.tail = BytesMut::new();
        }
    }

    /// Without a copy when they lie in one slice, as those of [`Buf::chunk`] do.
    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        let bytes = match self.chunks.front_mut() {
            None => return self.tail.split_to(count).freeze(),
            Some(chunk) if count <= chunk.len() => chunk.slice(..count),
            Some(_) => {
                let mut bytes = BytesMut::with_capacity(count);
                bytes.put(self.take(count));
                return bytes.freeze();
            }
        };
        self.advance(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_pieces_of_many_buffers_keep_none_of_them_and_long_ones_few() {
        let mut queue = Queue::default();
        let buffers: Vec<Bytes> = (0..40).map(|_| Bytes::from(vec![7; 64 * 1024])).collect();
        for buffer in &buffers {
            queue.push(buffer.slice(..COPIED));
        }
        assert!(buffers.iter().all(Bytes::is_unique), "a copy holds no buffer");
        assert!(queue.is_full());

        let mut queue = Queue::default();
        let mut pushed = 0;
        while !queue.is_full() {
            queue.push(buffers[pushed].slice(..COPIED + 1));
            pushed += 1;
        }
        assert!(pushed <= FULL_SLICES);
        queue.advance(queue.len());
        assert!(buffers.iter().all(Bytes::is_unique) && queue.is_empty());
        assert_eq!(queue.tail.capacity(), 0, "an empty queue holds nothing");
    }

    #[test]
    fn what_is_pushed_and_put_goes_out_in_order_however_it_is_advanced() {
        for step in 1..=12 {
            let mut queue = Queue::default();
            queue.put().extend_from_slice(b"ab");
            queue.slice(Bytes::from_static(b"cde"));
            queue.push(Bytes::new());
            queue.push(Bytes::from_static(b"f"));
            queue.put().extend_from_slice(b"gh");
            queue.put().extend_from_slice(b"i");
            assert_eq!(queue.len(), 9);
            let mut got = Vec::new();
            while !queue.is_empty() {
                let mut slices = [IoSlice::new(&[]); 2];
                let filled = queue.chunks_vectored(&mut slices);
                let seen: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                assert!(seen.starts_with(queue.chunk()) && !queue.chunk().is_empty());
                let taken = step.min(seen.len());
                got.extend_from_slice(&seen[..taken]);
                queue.advance(taken);
            }
            assert_eq!(got, b"abcdefghi", "by {step}");
        }
    }

    #[test]
    fn bytes_that_lie_in_one_slice_are_taken_without_a_copy() {
        let pushed = Bytes::from_static(b"cdefgh");
        for step in 1..=12 {
            let mut queue = Queue::default();
            queue.put().extend_from_slice(b"ab");
            queue.push(pushed.clone());
            queue.put().extend_from_slice(b"i");
            let mut got = Vec::new();
            while !queue.is_empty() {
                let at = queue.chunk().as_ptr();
                let (here, taken) = (queue.chunk().len(), step.min(queue.len()));
                let bytes = queue.copy_to_bytes(taken);
                assert!(taken > here || bytes.as_ptr() == at, "by {step}");
                got.extend_from_slice(&bytes);
            }
            assert_eq!(got, b"abcdefghi", "by {step}");
        }
    }
}
