//! Spare: read buffers that a thread lends to whoever has something to read.
//!
//! A buffer is taken for a read and given back as soon as its bytes have gone on, so a connection on which nothing moves
//! holds none, and one on which much moves finds its buffer in the cache. What is given back while others still hold a
//! part of it is no spare, and is freed with the last part.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes of a buffer: four full TLS records (RFC 8446 section 5.1), so that a burst takes one wake-up and one system call.
pub const SIZE: usize = 64 * 1024;

/// Buffers a thread keeps: as many as can be between a read and its write in one turn of a session, under TLS and above
/// it, both ways, twice. More are freed.
const KEPT: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for at least [`SIZE`] bytes.
pub fn take() -> BytesMut {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(SIZE))
}

/// Keeps a buffer for the next one who takes, if it is one; what is in it is lost.
pub fn give_back(mut buffer: BytesMut) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        // Whole and ours alone, or it is no spare.
        if spare.len() < KEPT && buffer.capacity() <= 2 * SIZE && buffer.try_reclaim(SIZE) {
            spare.push(buffer);
        }
    });
}
