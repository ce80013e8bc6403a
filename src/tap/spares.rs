//! Spares: buffers for the tapes of sessions that are in a hurry.
//!
//! A full tape is handed over and its buffer comes back, so that a bulk copy goes through the same few pages over and
//! over: fresh ones for every chunk cost more CPU than what is done with their content.
//! Invariant: at most [`SPARES`] lie here; a session that rests has none.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::wire::tape::Buffer;

/// Buffers that may lie here: one to fill and one to write for a few bulk copies at once. More are freed.
const SPARES: usize = 8;

/// Buffers of one size.
#[derive(Debug)]
pub(super) struct Spares {
    /// In bytes.
    size: usize,
    spares: Mutex<Vec<Buffer>>,
}

// === impl Spares ===

impl Spares {
    pub(super) const fn new(size: usize) -> Self {
        Self { size, spares: Mutex::new(Vec::new()) }
    }

    /// An empty buffer of this size.
    pub(super) fn take(&self) -> Buffer {
        self.spares().pop().unwrap_or_else(|| Buffer::with_capacity(self.size))
    }

    /// Gives a buffer back, or frees it when it is too small, too large or too many.
    pub(super) fn give(&self, mut buffer: Buffer) {
        let mut spares = self.spares();
        if spares.len() < SPARES && (self.size..=2 * self.size).contains(&buffer.capacity()) {
            buffer.clear();
            spares.push(buffer);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_its_size_come_back_empty_and_others_are_freed() {
        let spares = Spares::new(100);
        let mut buffer = spares.take();
        buffer.bytes().push(1);
        let at = buffer.as_ptr();
        spares.give(buffer);
        spares.give(Buffer::with_capacity(99));
        spares.give(Buffer::with_capacity(201));
        assert_eq!(spares.spares().len(), 1);
        let buffer = spares.take();
        assert!(buffer.is_empty() && buffer.as_ptr() == at);
        (0..2 * SPARES).for_each(|_| spares.give(Buffer::with_capacity(100)));
        assert_eq!(spares.spares().len(), SPARES);
    }
}
