//! Squeeze: content into a zstd frame, at a price that a session can pay.
//!
//! What people do in a terminal is compressed well. A stream of gigabytes is not: even zstd's fastest levels take more
//! CPU for it than the relay itself. So compression lives on credit that time gives. Beyond that, a sample of one chunk in
//! some is compressed to see what it brings, and chunks only where that is much and therefore fast; else their bytes go
//! into the frame as they are.
//! Source: RFC 8878 section 3.1.1.

use std::cell::RefCell;
use std::io::{self, Cursor};
use std::time::Duration;

use zstd::bulk::{Compressor, Decompressor};

use super::MAX_CONTENT;
use crate::wire::tape::{BLOCK, BLOCK_HEAD, Buffer, FRAME_HEAD, Reel, block_head, frame_head};

/// What a session that is not in a hurry is worth.
const LEVEL: i32 = 3;

/// And one that is.
const FAST: i32 = 1;

/// Bytes of content that are compressed whatever they bring: at most this much of a recording at once,
const CREDIT: u64 = 4 << 20;

/// and so much more for each second of the session: half a percent of a CPU.
const CREDIT_PER_SECOND: u64 = 1 << 20;

/// Chunks that are taken as they are after the first whose sample was not worth it; twice as many after the next, and so
/// on, up to the most.
const SKIP: u32 = 31;
const MOST_SKIP: u32 = 255;

/// Content that shrinks to less than one part in so many is compressed about as fast as it is copied.
const WORTH: usize = 16;

thread_local! {
    // Half a megabyte each. Recordings come and go in thousands, the threads that write them do not.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    // Pieces of a reel, one behind the other, or what came of a sample.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is to be a frame.
pub(super) enum Content<'a> {
    /// Lines of a cast.
    Lines(Vec<u8>),
    /// Pieces, which are a frame already.
    Reel(&'a mut Reel),
}

/// How much compression a recording may still ask for.
#[derive(Debug)]
pub(super) struct Squeeze {
    credit: u64,
    now: Duration,
    /// Whether the last chunk was worth it.
    worth: bool,
    skip: u32,
    next_skip: u32,
}

// === impl Squeeze ===

impl Squeeze {
    pub(super) fn new() -> Self {
        Self { credit: CREDIT, now: Duration::ZERO, worth: false, skip: 0, next_skip: SKIP }
    }

    /// Appends the content as a frame, or makes its buffer that of `out`.
    pub(super) fn frame(&mut self, now: Duration, content: Content<'_>, out: &mut Buffer) -> io::Result<()> {
        let since = now.saturating_sub(std::mem::replace(&mut self.now, now)).as_millis();
        let earned = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(CREDIT_PER_SECOND) / 1000;
        self.credit = self.credit.saturating_add(earned).min(CREDIT);
        let len = content.len();
        if let Some(credit) = self.credit.checked_sub(len as u64) {
            (self.credit, self.skip, self.next_skip) = (credit, 0, SKIP);
            return content.compress(LEVEL, out.bytes());
        }
        if self.skip > 0 {
            self.skip -= 1;
            content.store(out);
            return Ok(());
        }
        if !self.worth && !content.sample_is_worth()? {
            self.skip = self.next_skip;
            self.next_skip = (2 * self.next_skip).min(MOST_SKIP);
            content.store(out);
            return Ok(());
        }
        let from = out.len();
        content.compress(FAST, out.bytes())?;
        self.worth = is_worth(out.len() - from, len);
        Ok(())
    }
}

// === impl Content ===

impl Content<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Lines(lines) => lines.len(),
            Self::Reel(reel) => reel.len(),
        }
    }

    fn compress(&self, level: i32, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Lines(lines) => compress(level, lines, out),
            Self::Reel(reel) => SCRATCH.with_borrow_mut(|content| {
                content.clear();
                reel.copy_content(content);
                compress(level, content, out)
            }),
        }
    }

    /// Whether compression would bring much, by its first bytes.
    fn sample_is_worth(&self) -> io::Result<bool> {
        let sample = match self {
            Self::Lines(lines) => &lines[..lines.len().min(BLOCK)],
            Self::Reel(reel) => reel.first_block(),
        };
        SCRATCH.with_borrow_mut(|out| {
            out.clear();
            compress(FAST, sample, out)?;
            Ok(is_worth(out.len(), sample.len()))
        })
    }

    /// Appends a frame whose blocks are the content itself.
    fn store(self, out: &mut Buffer) {
        match self {
            Self::Lines(lines) => store(&lines, out.bytes()),
            Self::Reel(reel) => reel.move_frame(out),
        }
    }
}

fn is_worth(compressed: usize, content: usize) -> bool {
    compressed * WORTH <= content
}

fn compress(level: i32, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        let compressor = match compressor {
            Some(compressor) => compressor,
            None => compressor.insert(Compressor::new(level)?),
        };
        compressor.set_compression_level(level)?;
        let at = out.len();
        out.reserve(zstd::zstd_safe::compress_bound(content.len()));
        let mut end = Cursor::new(out);
        end.set_position(at as u64);
        compressor.compress_to_buffer(content, &mut end)?;
        Ok(())
    })
}

fn store(content: &[u8], out: &mut Vec<u8>) {
    let blocks = content.len() / BLOCK + 1;
    out.reserve(FRAME_HEAD + content.len() + BLOCK_HEAD * blocks);
    out.extend_from_slice(&frame_head(content.len()));
    let mut blocks = content.chunks(BLOCK).peekable();
    while let Some(block) = blocks.next() {
        out.extend_from_slice(&block_head(block.len(), blocks.peek().is_none()));
        out.extend_from_slice(block);
    }
}

/// The content of a frame, which has to be of this length.
pub(super) fn content(frame: &[u8], len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_CONTENT)?;
    let content = Decompressor::new().ok()?.decompress(frame, len).ok()?;
    (content.len() == len).then_some(content)
}
