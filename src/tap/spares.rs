//! Spares: large buffers for the tapes of sessions that are in a hurry.
//!
//! A full tape is handed over and its buffer comes back, so that a bulk copy goes through the same few pages over and
//! over: fresh ones for every chunk cost more CPU than what is done with their content.
//! Invariants: there are at most [`SPARES`], whoever has them, and none where nobody has one. Who gets none makes do with
//! small chunks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wire::tape::Buffer;

/// Buffers there may be at once: one to fill, one to wait and one to be written for a few bulk copies.
const SPARES: usize = 12;

/// Buffers of one size.
#[derive(Debug)]
pub(super) struct Spares {
    /// In bytes.
    size: usize,
    free: Mutex<Vec<Buffer>>,
    /// Each buffer holds one.
    count: Arc<()>,
}

// === impl Spares ===

impl Spares {
    pub(super) fn new(size: usize) -> Self {
        Self { size, free: Mutex::default(), count: Arc::default() }
    }

    /// An empty buffer of this size, or of none.
    pub(super) fn take(&self) -> Buffer {
        let mut free = self.free();
        match free.pop() {
            Some(buffer) => buffer,
            None if self.there_are() < SPARES => Buffer::with_capacity(self.size).lent(self.count.clone()),
            None => Buffer::default(),
        }
    }

    /// Gives a buffer back. One that was not taken here is freed, and so are all when this was the last.
    pub(super) fn give(&self, mut buffer: Buffer) {
        let mut free = self.free();
        if buffer.is_lent_by(&self.count) && buffer.capacity() <= 2 * self.size {
            buffer.clear();
            free.push(buffer);
        } else {
            drop(buffer);
        }
        if free.len() == self.there_are() {
            free.clear();
        }
    }

    fn there_are(&self) -> usize {
        Arc::strong_count(&self.count) - 1
    }

    fn free(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_strange_or_grown_ones_are_freed() {
        let spares = Spares::new(100);
        let (mut one, mut other) = (spares.take(), spares.take());
        one.bytes().push(1);
        other.bytes().reserve(10_000);
        let at = one.as_ptr();
        spares.give(one);
        spares.give(Buffer::with_capacity(100));
        assert_eq!((spares.free().len(), spares.there_are()), (1, 2));
        let one = spares.take();
        assert!(one.is_empty() && one.as_ptr() == at);
        spares.give(other);
        assert_eq!((spares.free().len(), spares.there_are()), (0, 1));
    }

    #[test]
    fn there_are_only_so_many_and_none_where_nobody_has_one() {
        let spares = Spares::new(100);
        let mut taken: Vec<_> = (0..SPARES).map(|_| spares.take()).collect();
        assert_eq!((spares.take().capacity(), spares.there_are()), (0, SPARES));
        // Dropped without being given back, as by a session that is cut.
        drop(taken.pop());
        taken.push(spares.take());
        assert!(taken.iter().all(|buffer| buffer.capacity() >= 100));
        taken.drain(..).for_each(|buffer| spares.give(buffer));
        assert_eq!((spares.free().len(), spares.there_are()), (0, 0));
    }
}
