//! Squeeze: content into a zstd frame, at a price that a session can pay.
//!
//! What people do in a terminal is compressed well. A stream of gigabytes is not: even zstd's fastest levels take more
//! CPU for it than the relay itself. So compression lives on credit that time gives. Beyond that, one chunk in some is
//! compressed to see what it brings, and the others only where that is much and therefore fast; else their bytes go
//! into the frame as they are.
//! Source: RFC 8878 section 3.1.1.

use std::cell::RefCell;
use std::io::{self, Cursor};
use std::time::Duration;

use zstd::bulk::{Compressor, Decompressor};

use super::MAX_CONTENT;

/// What a session that is not in a hurry is worth.
const LEVEL: i32 = 3;

/// And one that is.
const FAST: i32 = 1;

/// Bytes of content that are compressed whatever they bring: at most this much of a recording at once,
const CREDIT: u64 = 8 << 20;

/// and so much more for each second of the session: half a percent of a CPU.
const CREDIT_PER_SECOND: u64 = 1 << 20;

/// Chunks that are taken as they are after the first for which compression was not worth it; twice as many after the
/// next, and so on, up to the most.
const SKIP: u32 = 31;
const MOST_SKIP: u32 = 255;

/// Content that shrinks to less than one part in so many is compressed about as fast as it is copied.
const WORTH: usize = 16;

/// Most bytes of a block. Source: RFC 8878 section 3.1.1.2.4.
const BLOCK: usize = 128 << 10;

thread_local! {
    // Half a megabyte each. Recordings come and go in thousands, the threads that write them do not.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
}

/// How much compression a recording may still ask for.
#[derive(Debug)]
pub(super) struct Squeeze {
    credit: u64,
    now: Duration,
    skip: u32,
    next_skip: u32,
}

// === impl Squeeze ===

impl Squeeze {
    pub(super) fn new() -> Self {
        Self { credit: CREDIT, now: Duration::ZERO, skip: 0, next_skip: SKIP }
    }

    /// Appends the content as a frame.
    pub(super) fn frame(&mut self, now: Duration, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let since = now.saturating_sub(std::mem::replace(&mut self.now, now)).as_millis();
        let earned = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(CREDIT_PER_SECOND) / 1000;
        self.credit = self.credit.saturating_add(earned).min(CREDIT);
        let len = content.len() as u64;
        if let Some(credit) = self.credit.checked_sub(len) {
            (self.credit, self.skip, self.next_skip) = (credit, 0, SKIP);
            return compress(LEVEL, content, out);
        }
        if self.skip > 0 {
            self.skip -= 1;
            store(content, out);
            return Ok(());
        }
        let from = out.len();
        compress(FAST, content, out)?;
        if (out.len() - from) * WORTH > content.len() {
            self.skip = self.next_skip;
            self.next_skip = (2 * self.next_skip).min(MOST_SKIP);
        }
        Ok(())
    }
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

/// Appends a frame whose blocks are the content itself.
fn store(content: &[u8], out: &mut Vec<u8>) {
    // A single segment, and four bytes for its length.
    const DESCRIPTOR: u8 = 0b1010_0000;
    const LAST: usize = 1;
    out.reserve(content.len() + 3 * (content.len() / BLOCK + 1) + 16);
    out.extend_from_slice(&super::ZSTD.to_le_bytes());
    out.push(DESCRIPTOR);
    out.extend_from_slice(&u32::try_from(content.len()).expect("content is within its limit").to_le_bytes());
    let mut blocks = content.chunks(BLOCK).peekable();
    while let Some(block) = blocks.next() {
        let last = if blocks.peek().is_none() { LAST } else { 0 };
        let head = block.len() << 3 | last;
        out.extend_from_slice(&head.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
}

/// The content of a frame, which has to be of this length.
pub(super) fn content(frame: &[u8], len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_CONTENT)?;
    let content = Decompressor::new().ok()?.decompress(frame, len).ok()?;
    (content.len() == len).then_some(content)
}
