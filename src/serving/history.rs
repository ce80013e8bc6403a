//! History: the last changes of a list that is watched, in their order; a watcher is a position among them.
//!
//! Whoever keeps the list puts each change in under the lock under which the list is changed and read, so that nothing is
//! lost between a list and the changes after its version. A watcher has no queue of its own: a slow one costs nothing and is
//! told that it fell behind.
//! Source: API conventions, "Efficient detection of changes"; apiserver `pkg/storage/cacher/watch_cache.go`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::status::Refusal;

/// The last changes; cheap to clone.
#[derive(Debug)]
pub struct History<C>(Arc<Inner<C>>);

#[derive(Debug)]
struct Inner<C> {
    kept: Mutex<Kept<C>>,
    /// How many are kept at most.
    most: usize,
    /// All versions are a multiple of this from each other.
    step: u64,
    /// Whether watchers may come who have seen elsewhere what is not here yet.
    shared: bool,
    signal: watch::Sender<()>,
}

#[derive(Debug)]
struct Kept<C> {
    /// Oldest first, each with its version, none of which is less than the one before.
    changes: VecDeque<(u64, Arc<C>)>,
    /// How many there were before those.
    before: u64,
    /// Who has seen less than this version has missed something.
    oldest: u64,
    /// The version up to which all is here.
    newest: u64,
}

/// A watcher's place.
#[derive(Debug)]
pub struct Changes<C> {
    history: History<C>,
    /// What was seen when it began.
    from: u64,
    seen: u64,
    /// How many changes were before the next one, once that was found out.
    next: Option<u64>,
    signal: watch::Receiver<()>,
}

/// What a watcher has seen is not in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// It no longer reaches back that far.
    #[error("too old resource version: {seen} ({oldest})")]
    Old {
        /// The last version seen.
        seen: u64,
        /// The oldest version that a watcher may come from.
        oldest: u64,
    },
    /// It was never here. An API server waits for such a version, which here could be for ever.
    #[error("too large resource version: {seen}, current: {current}")]
    Ahead {
        /// The last version seen.
        seen: u64,
        /// The newest there is.
        current: u64,
    },
}

/// The version before the first change of a list that no other process knows: the time of the start in microseconds. No
/// list changes that fast, so what a client remembers of an earlier process is too old here, or ahead when the clock was
/// set back; never a place in this history. Below 2^53, up to which every client is exact.
pub fn beginning() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}

// === impl History ===

impl<C> History<C> {
    /// Of a list of this process, which is at this version; so many changes are kept.
    pub fn new(version: u64, most: usize) -> Self {
        Self::with(version, most, 1, false)
    }

    /// The same, where versions are a multiple of a step from each other: others are of another process.
    pub fn in_steps(version: u64, step: u64, most: usize) -> Self {
        Self::with(version, most, step, false)
    }

    /// Of a list that other processes have, too, in the same versions: a watcher who is ahead waits.
    pub fn shared(version: u64, most: usize) -> Self {
        Self::with(version, most, 1, true)
    }

    fn with(version: u64, most: usize, step: u64, shared: bool) -> Self {
        let kept = Kept { changes: VecDeque::new(), before: 0, oldest: version, newest: version };
        Self(Arc::new(Inner { kept: Mutex::new(kept), most, step, shared, signal: watch::Sender::new(()) }))
    }

    /// The version up to which all changes are here.
    pub fn version(&self) -> u64 {
        self.kept().newest
    }

    /// Puts a change in. Its version is that of the one before it, if it is less than that.
    pub fn put(&self, version: u64, change: C) {
        let mut kept = self.kept();
        kept.newest = kept.newest.max(version);
        let version = kept.newest;
        if kept.changes.len() == self.0.most
            && let Some((version, _)) = kept.changes.pop_front()
        {
            kept.before += 1;
            kept.oldest = version;
        }
        kept.changes.push_back((version, Arc::new(change)));
        drop(kept);
        self.0.signal.send_replace(());
    }

    /// All changes up to this version are here.
    pub fn reached(&self, version: u64) {
        let mut kept = self.kept();
        kept.newest = kept.newest.max(version);
    }

    /// Forgets all changes: the list is at this version, whatever it was at before. Whoever watches has to list again.
    pub fn restart(&self, version: u64) {
        let mut kept = self.kept();
        // One more than there were: it is what everybody has missed.
        kept.before += kept.changes.len() as u64 + 1;
        kept.changes.clear();
        (kept.oldest, kept.newest) = (version, version);
        drop(kept);
        self.0.signal.send_replace(());
    }

    /// The changes after this version.
    pub fn changes(&self, seen: u64) -> Changes<C> {
        Changes { history: self.clone(), from: seen, seen, next: None, signal: self.0.signal.subscribe() }
    }

    /// Nothing that could panic halfway runs under this lock.
    fn kept(&self) -> MutexGuard<'_, Kept<C>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Clone for History<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// === impl Changes ===

impl<C> Changes<C> {
    /// The next change and its version, as soon as there is one. May be dropped at any point: nothing is lost.
    ///
    /// # Errors
    /// When it is not kept; there is no way on from there.
    pub async fn next(&mut self) -> Result<(u64, Arc<C>), Gone> {
        loop {
            self.signal.mark_unchanged();
            if let Some(next) = self.ready()? {
                return Ok(next);
            }
            self.signal.changed().await.expect("the history that this holds has the sender");
        }
    }

    /// The last version handed out, or the one it began with.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    fn ready(&mut self) -> Result<Option<(u64, Arc<C>)>, Gone> {
        let (kept, seen) = (self.history.kept(), self.seen);
        let old = Gone::Old { seen, oldest: kept.oldest };
        let mut index = match self.next {
            Some(next) => next.checked_sub(kept.before).ok_or(old)?,
            None if seen > kept.newest && !self.history.0.shared => {
                return Err(Gone::Ahead { seen, current: kept.newest });
            }
            None if seen < kept.oldest || !(seen - kept.oldest).is_multiple_of(self.history.0.step) => {
                return Err(old);
            }
            None => kept.changes.partition_point(|(version, _)| *version <= seen) as u64,
        };
        let mut found = None;
        while found.is_none()
            && let Some((version, change)) = kept.changes.get(usize::try_from(index).unwrap_or(usize::MAX))
        {
            index += 1;
            // A watcher who was ahead has seen some of them.
            found = (*version > self.from).then(|| (*version, change.clone()));
        }
        self.next = Some(kept.before + index);
        self.seen = found.as_ref().map_or(seen, |(version, _)| *version);
        Ok(found)
    }
}

// === impl Gone ===

impl Gone {
    /// What the watcher is told: to list again.
    pub fn refusal(&self) -> Refusal {
        Refusal::Expired(self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MOST: usize = 3;

    /// The next change, if it is there already.
    fn now(changes: &mut Changes<char>) -> Option<Result<(u64, char), Gone>> {
        changes.next().now_or_never().map(|next| next.map(|(version, change)| (version, *change)))
    }

    #[tokio::test]
    async fn a_watcher_gets_all_changes_after_what_it_has_seen_as_they_come() {
        let history = History::new(10, MOST);
        let mut changes = history.changes(10);
        assert_eq!((now(&mut changes), changes.seen()), (None, 10));
        let put = async {
            tokio::task::yield_now().await;
            history.put(11, 'a');
        };
        let (next, ()) = tokio::join!(changes.next(), put);
        assert_eq!(next.map(|(version, change)| (version, *change)), Ok((11, 'a')));
        history.put(12, 'b');
        let mut second = history.changes(11);
        for changes in [&mut changes, &mut second] {
            assert_eq!((now(changes), changes.seen()), (Some(Ok((12, 'b'))), 12));
            assert_eq!(now(changes), None);
        }
    }

    #[test]
    fn a_watcher_that_fell_behind_or_is_of_another_process_is_told_so() {
        let history = History::new(10, MOST);
        let (mut slow, mut other) = (history.changes(10), history.changes(10));
        assert_eq!(now(&mut slow), None);
        for version in 11..=14 {
            history.put(version, 'x');
        }
        let old = Gone::Old { seen: 10, oldest: 11 };
        assert_eq!((now(&mut slow), now(&mut other)), (Some(Err(old)), Some(Err(old))));
        assert_eq!(old.to_string(), "too old resource version: 10 (11)");
        assert_eq!(now(&mut history.changes(11)), Some(Ok((12, 'x'))));
        let ahead = Gone::Ahead { seen: 15, current: 14 };
        assert_eq!(now(&mut history.changes(15)), Some(Err(ahead)));
        assert_eq!(ahead.refusal().code(), 410);
    }

    #[test]
    fn changes_of_one_version_are_all_told() {
        let history = History::shared(10, MOST);
        let mut changes = history.changes(10);
        history.put(11, 'a');
        assert_eq!(now(&mut changes), Some(Ok((11, 'a'))));
        history.put(11, 'b');
        history.put(9, 'c');
        assert_eq!((now(&mut changes), now(&mut changes)), (Some(Ok((11, 'b'))), Some(Ok((11, 'c')))));
        history.reached(12);
        history.put(11, 'd');
        assert_eq!((now(&mut changes), history.version()), (Some(Ok((12, 'd'))), 12));
    }

    #[test]
    fn a_watcher_that_is_ahead_of_a_shared_list_waits_for_what_it_has_not_seen() {
        let history = History::shared(10, MOST);
        let mut changes = history.changes(12);
        assert_eq!(now(&mut changes), None);
        for (version, change) in [(11, 'a'), (12, 'b'), (13, 'c')] {
            history.put(version, change);
        }
        assert_eq!((now(&mut changes), now(&mut changes)), (Some(Ok((13, 'c'))), None));
    }

    #[test]
    fn after_a_restart_everybody_lists_again() {
        let history = History::shared(10, MOST);
        history.put(11, 'a');
        let (mut all, mut some) = (history.changes(10), history.changes(10));
        assert_eq!((now(&mut all), now(&mut all)), (Some(Ok((11, 'a'))), None));
        history.restart(7);
        history.put(8, 'b');
        assert_eq!(now(&mut all), Some(Err(Gone::Old { seen: 11, oldest: 7 })));
        assert_eq!(now(&mut some), None, "it waits for version 11, as with another replica");
        assert_eq!(now(&mut history.changes(7)), Some(Ok((8, 'b'))));
        assert_eq!(now(&mut history.changes(6)), Some(Err(Gone::Old { seen: 6, oldest: 7 })));
    }
}
