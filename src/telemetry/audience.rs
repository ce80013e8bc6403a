//! Audience: those who see a session as it happens.
//!
//! Nothing is kept while nobody watches. What passes goes into a ring from which each watcher reads at their own speed: one
//! who is too slow loses what the ring no longer has, and is told so; the session never waits for anybody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::wire::tap::Listener;
use crate::wire::tape::Kind;

/// Pieces that a watcher may be behind. A piece is at most one read of a session, so a session that is watched holds a few
/// MiB at most.
const BEHIND: usize = 64;

/// Watchers of one session at once: more have no use, and each is a stream that is written.
const WATCHERS: usize = 16;

/// Those who watch one session.
#[derive(Debug, Default)]
pub struct Audience {
    /// Whether there may be somebody.
    open: AtomicBool,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    sender: Option<broadcast::Sender<Seen>>,
    over: bool,
}

/// Something that has passed.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which channel it is of.
    pub kind: Kind,
    /// What it is.
    pub bytes: Bytes,
}

/// Nobody else may watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are enough.
    #[error("{WATCHERS} others watch this session already")]
    Full,
    /// There is nothing to see any more.
    #[error("the session is over")]
    Over,
}

// === impl Audience ===

impl Audience {
    /// What passes from now on; the receiver ends with the session.
    ///
    /// # Errors
    /// When too many watch, or the session is over.
    pub fn watch(&self) -> Result<broadcast::Receiver<Seen>, Refused> {
        let mut ring = self.ring();
        if ring.over {
            return Err(Refused::Over);
        }
        let sender = ring.sender.get_or_insert_with(|| broadcast::channel(BEHIND).0);
        if sender.receiver_count() >= WATCHERS {
            return Err(Refused::Full);
        }
        self.open.store(true, Ordering::Release);
        Ok(sender.subscribe())
    }

    /// The session is over.
    pub fn end(&self) {
        let mut ring = self.ring();
        (ring.over, ring.sender) = (true, None);
        self.open.store(false, Ordering::Release);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Audience {
    fn listens(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// What is typed is not shown: of a terminal, what it echoes is seen, and a password is not.
    fn hear(&self, kind: Kind, bytes: &[u8]) {
        if !matches!(kind, Kind::Stdout | Kind::Stderr | Kind::Resize | Kind::Connection) {
            return;
        }
        let mut ring = self.ring();
        let Some(sender) = &ring.sender else { return };
        // The last one has left: nothing is kept any more.
        if sender.send(Seen { kind, bytes: Bytes::copy_from_slice(bytes) }).is_err() {
            ring.sender = None;
            self.open.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::{RecvError, TryRecvError};

    use super::*;

    #[tokio::test]
    async fn watchers_see_output_from_when_they_came_and_the_slow_lose_with_a_mark() {
        let audience = Audience::default();
        audience.hear(Kind::Stdout, b"before");
        let mut watcher = audience.watch().unwrap();
        audience.hear(Kind::Stdin, b"secret");
        audience.hear(Kind::Stdout, b"seen");
        assert_eq!(watcher.recv().await.unwrap().bytes, "seen");
        assert!(matches!(watcher.try_recv(), Err(TryRecvError::Empty)));
        (0..=BEHIND).for_each(|_| audience.hear(Kind::Stderr, b"x"));
        assert_eq!(watcher.recv().await.unwrap_err(), RecvError::Lagged(1));
        assert!(watcher.recv().await.is_ok());
    }

    #[tokio::test]
    async fn nothing_is_kept_when_the_last_has_left_and_all_end_with_the_session() {
        let audience = Audience::default();
        drop(audience.watch().unwrap());
        assert!(audience.listens());
        audience.hear(Kind::Stdout, b"x");
        assert!(!audience.listens() && audience.ring().sender.is_none());
        let mut all: Vec<_> = (0..WATCHERS).map(|_| audience.watch().unwrap()).collect();
        assert_eq!(audience.watch().unwrap_err(), Refused::Full);
        audience.end();
        assert_eq!(all[0].recv().await.unwrap_err(), RecvError::Closed);
        assert_eq!(audience.watch().unwrap_err(), Refused::Over);
    }
}
