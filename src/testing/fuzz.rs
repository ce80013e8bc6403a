//! Fuzz: what holds whatever bytes a peer sends or a recording holds, as functions that panic when it does not.
//!
//! `fuzz/` lets libFuzzer look for such bytes. What it kept, and what our encoders write, is in `fuzz/corpus`; a
//! test here runs all of it again, so that a finding stays found without a fuzzer.
//!
//! How the bytes are cut, and all else that a property leaves open, is chosen by the first bytes of the data: the
//! fuzzer learns which choices matter, and a file of the corpus is always the same case.

mod frames;
mod links;
mod recordings;
mod words;

pub use frames::{channel_messages, http1_head, spdy_frames, spdy_headers, ws_frames};
pub use links::{hang_up, spdy_link, translator, tunnel, ws_link};
pub use recordings::{cast, recording, tape};
pub use words::{portforward, remotecommand, request};

use bytes::{Bytes, BytesMut};

/// One property, or several of the same input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Of the function, of the fuzz target, and of the folder of its corpus.
    pub name: &'static str,
    /// Panics when a property does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "cast", run: cast },
    Target { name: "channel_messages", run: channel_messages },
    Target { name: "hang_up", run: hang_up },
    Target { name: "http1_head", run: http1_head },
    Target { name: "portforward", run: portforward },
    Target { name: "recording", run: recording },
    Target { name: "remotecommand", run: remotecommand },
    Target { name: "request", run: request },
    Target { name: "spdy_frames", run: spdy_frames },
    Target { name: "spdy_headers", run: spdy_headers },
    Target { name: "spdy_link", run: spdy_link },
    Target { name: "tape", run: tape },
    Target { name: "translator", run: translator },
    Target { name: "tunnel", run: tunnel },
    Target { name: "ws_frames", run: ws_frames },
    Target { name: "ws_link", run: ws_link },
];

/// Fuzz data, read from its front as one choice after the other. Behind its end all choices are zeros.
#[derive(Clone, Debug)]
struct Choices<'a>(&'a [u8]);

/// Lengths of pieces, taken in turns. Without any all is one piece.
#[derive(Clone, Debug)]
struct Cuts<'a> {
    lens: &'a [u8],
    at: usize,
}

// === impl Choices ===

impl<'a> Choices<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    /// Up to so many bytes.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes behind their length.
    fn bytes(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.take(len.into())
    }

    /// All that is left.
    fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    fn cuts(&mut self) -> Cuts<'a> {
        let count = usize::from(self.byte() % 8);
        Cuts { lens: self.take(count), at: 0 }
    }
}

// === impl Cuts ===

impl Cuts<'_> {
    /// The length of the next piece: every one up to 128 bytes, and coarser ones up to 64 KiB.
    fn next_len(&mut self) -> usize {
        if self.lens.is_empty() {
            return usize::MAX;
        }
        let len = usize::from(self.lens[self.at % self.lens.len()]);
        self.at += 1;
        if len < 128 { len + 1 } else { (len - 127) * 512 }
    }

    /// The pieces of these bytes. The next bytes go on with the next length.
    fn pieces<'b>(&mut self, mut bytes: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        std::iter::from_fn(move || {
            let (piece, rest) = bytes.split_at(self.next_len().min(bytes.len()));
            bytes = rest;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// Appends to bytes that are already joined, without copying those again each time.
fn append(bytes: &mut Bytes, more: &[u8]) {
    let all = std::mem::take(bytes).try_into_mut();
    let mut all = all.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    all.extend_from_slice(more);
    *bytes = all.freeze();
}

#[cfg(test)]
mod tests;
