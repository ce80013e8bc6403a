//! Book: every grant that is known, the last changes in their order, and what has run out.
//!
//! Fed by a store. Readers take what they need under a lock that nobody holds for long. Invariants: a grant that was seen
//! to have run out does not come back by a clock that is put back, nor by an older version of it; each change is in the
//! [`History`], with the store's version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::document::{Facts, Grant, Phase, Subject};
use super::store::{Kept, Key};
use super::{Held, Who, rules};
use crate::policy::Concern;
use crate::serving::history::{Changes, History};

/// Changes kept for watchers; one that is further behind gets 410 and lists again.
const HISTORY: usize = 1024;

/// Grants, and what became of them.
#[derive(Debug)]
pub struct Book {
    inner: Mutex<Inner>,
    /// Changes with what is in there, under its lock.
    history: History<Change>,
    /// Whose answers may be others, since then: a grant has come, gone, become another or run out.
    concerns: History<Concern>,
    changed: watch::Sender<u64>,
}

/// A grant that became another one.
#[derive(Debug, Clone)]
pub struct Change {
    /// What it was; nothing before it was made.
    pub before: Option<Arc<Grant>>,
    /// What it is; nothing once it is gone.
    pub after: Option<Arc<Grant>>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Key, Entry>,
    /// When each of those ends that have not been seen to.
    ends: BTreeSet<(Timestamp, Key)>,
    complete: bool,
}

#[derive(Debug)]
struct Entry {
    grant: Arc<Grant>,
    version: u64,
    /// Whether it was seen to have run out.
    over: bool,
}

// === impl Book ===

impl Default for Book {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            history: History::shared(0, HISTORY),
            concerns: History::new(0, HISTORY),
            changed: watch::Sender::new(0),
        }
    }
}

impl Book {
    /// Changes whenever anything here does.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Those whom grants are about that come, go, become others or run out from now on.
    pub fn concerns(&self) -> Changes<Concern> {
        self.concerns.changes(self.concerns.version())
    }

    /// Whether everything that the store had at some moment is here.
    pub fn is_complete(&self) -> bool {
        self.inner().complete
    }

    /// The version of the last change, or what the store told since.
    pub fn version(&self) -> u64 {
        self.history.version()
    }

    /// What is known of a grant.
    pub fn get(&self, key: &Key) -> Option<Kept> {
        self.inner().entries.get(key).map(Entry::kept)
    }

    /// A grant in one word.
    pub fn phase(&self, key: &Key, grant: &Grant, now: Timestamp) -> Phase {
        // What was asked for anew since then has another end.
        let over = |entry: &Entry| entry.over && entry.grant.status.requested_at == grant.status.requested_at;
        match grant.phase(now) {
            Phase::Active | Phase::Pending if self.inner().entries.get(key).is_some_and(over) => {
                Phase::Expired
            }
            phase => phase,
        }
    }

    /// All grants of a namespace, or of all of them, by name; and the version at which that is so.
    pub fn list(&self, namespace: Option<&str>) -> (Vec<Arc<Grant>>, u64) {
        let inner = self.inner();
        let of = |(_, entry): (&Key, &Entry)| entry.grant.clone();
        let all = match namespace {
            Some(namespace) => inner.of(namespace).map(of).collect(),
            None => inner.entries.iter().map(of).collect(),
        };
        (all, self.version())
    }

    /// The changes after this version. Nothing is lost between a list and the changes after its version.
    pub fn changes(&self, seen: u64) -> Changes<Change> {
        self.history.changes(seen)
    }

    /// How many there are, and how many of these one person asked for.
    pub(super) fn count(&self, person: &str) -> (usize, usize) {
        let inner = self.inner();
        let theirs = inner.entries.values().filter(|entry| entry.grant.status.requested_by == person).count();
        (inner.entries.len(), theirs)
    }

    /// The grant that lets somebody in now; of several, the one that holds longest.
    pub(super) fn matching(&self, who: Who<'_>, facts: &Facts<'_>, now: Timestamp) -> Option<Held> {
        self.expire(now);
        let inner = self.inner();
        let open = inner.of(facts.namespace).map(|(_, entry)| entry).filter(|entry| {
            !entry.over
                && entry.grant.phase(now) == Phase::Active
                && rules::lets_in(&entry.grant, who)
                && entry.grant.spec.selector.matches(facts)
        });
        let best = open.max_by_key(|entry| entry.grant.end())?;
        Some(Held::of(&best.grant, best.grant.end()))
    }

    /// Notes what has run out by now.
    pub(super) fn expire(&self, now: Timestamp) {
        let mut inner = self.inner();
        let mut any = false;
        while let Some((end, _)) = inner.ends.first()
            && *end <= now
        {
            any = true;
            if let Some((_, key)) = inner.ends.pop_first()
                && let Some(entry) = inner.entries.get_mut(&key)
            {
                entry.over = true;
                self.touch(&entry.grant);
            }
        }
        drop(inner);
        if any {
            self.tell();
        }
    }

    /// Those that have run out, which the store does not say yet.
    pub(super) fn overdue(&self) -> Vec<(Key, Kept)> {
        let inner = self.inner();
        let unsaid = |entry: &Entry| {
            let status = &entry.grant.status;
            entry.over && status.phase != Phase::Expired && status.denied.is_none()
        };
        let found = inner.entries.iter().filter(|(_, entry)| unsaid(entry));
        found.map(|(key, entry)| (key.clone(), entry.kept())).collect()
    }

    /// Those that nothing can come of since this instant.
    pub(super) fn older(&self, than: Timestamp) -> Vec<(Key, u64)> {
        let inner = self.inner();
        let old = |entry: &Entry| match &entry.grant.status.denied {
            Some(denied) => denied.at < than,
            None => entry.over && entry.grant.end() < than,
        };
        let found = inner.entries.iter().filter(|(_, entry)| old(entry));
        found.map(|(key, entry)| (key.clone(), entry.version)).collect()
    }

    /// Waits until a change of this version, or a later one, is known here. Cancel safe.
    pub(super) async fn seen(&self, version: u64) {
        let mut changed = self.changed.subscribe();
        while self.version() < version {
            // The sender is this book's own.
            let _ = changed.changed().await;
        }
    }

    /// The store has this.
    pub fn saw(&self, key: Key, grant: Grant, version: u64) {
        self.put(&mut self.inner(), key, grant, version);
        self.tell();
    }

    /// The store has this no more, since that version.
    pub fn forget(&self, key: &Key, version: u64) {
        self.remove(&mut self.inner(), key, version);
        self.tell();
    }

    /// The store has these and no others, at this version.
    pub fn fill(&self, mut all: Vec<(Key, Grant, u64)>, version: u64) {
        let mut inner = self.inner();
        if version < self.version() {
            // It was put back to an earlier state: its versions are no longer in order with those that are known.
            self.history.restart(version);
            inner.entries.values_mut().for_each(|entry| entry.version = 0);
        }
        all.sort_by_key(|(.., version)| *version);
        let there: BTreeSet<_> = all.iter().map(|(key, ..)| key.clone()).collect();
        for (key, grant, version) in all {
            self.put(&mut inner, key, grant, version);
        }
        let gone: Vec<_> = inner.entries.keys().filter(|key| !there.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&mut inner, &key, version);
        }
        if !std::mem::replace(&mut inner.complete, true) {
            // Nobody can have watched before.
            self.history.restart(version);
        }
        self.history.reached(version);
        drop(inner);
        self.tell();
    }

    /// The store is at this version, whatever it was that changed.
    pub fn reached(&self, version: u64) {
        self.history.reached(version);
    }

    fn put(&self, inner: &mut Inner, key: Key, mut grant: Grant, version: u64) {
        if inner.entries.get(&key).is_some_and(|entry| entry.version >= version) {
            return;
        }
        grant.metadata.resource_version = version.to_string();
        let end = grant.end();
        let old = inner.entries.remove(&key);
        // A later end comes only with another request.
        let over = grant.status.phase == Phase::Expired
            || old.as_ref().is_some_and(|old| {
                old.over
                    && old.grant.metadata.uid == grant.metadata.uid
                    && old.grant.status.requested_at == grant.status.requested_at
            });
        if let Some(old) = &old {
            inner.ends.remove(&(old.grant.end(), key.clone()));
        }
        if !over {
            inner.ends.insert((end, key.clone()));
        }
        let grant = Arc::new(grant);
        if let Some(old) = old.as_ref().filter(|old| old.grant.spec.subject != grant.spec.subject) {
            self.touch(&old.grant);
        }
        self.touch(&grant);
        self.history.put(version, Change { before: old.map(|old| old.grant), after: Some(grant.clone()) });
        inner.entries.insert(key, Entry { grant, version, over });
    }

    fn remove(&self, inner: &mut Inner, key: &Key, version: u64) {
        let Some(old) = inner.entries.remove(key) else { return };
        inner.ends.remove(&(old.grant.end(), key.clone()));
        self.touch(&old.grant);
        self.history.put(version, Change { before: Some(old.grant), after: None });
    }

    /// Answers about those whom this grant is about may be others from now on.
    fn touch(&self, grant: &Grant) {
        let Subject { user, group } = grant.spec.subject.clone();
        let namespace = grant.metadata.namespace.clone();
        self.concerns.put(self.concerns.version() + 1, Concern { namespace, user, group });
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Nothing that could panic halfway runs under this lock.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn of<'a>(&'a self, namespace: &str) -> impl Iterator<Item = (&'a Key, &'a Entry)> + use<'a> {
        let namespace = namespace.to_owned();
        let first = (namespace.clone(), String::new());
        self.entries.range(first..).take_while(move |((of, _), _)| *of == namespace)
    }
}

// === impl Entry ===

impl Entry {
    fn kept(&self) -> Kept {
        Kept { grant: Grant::clone(&self.grant), version: self.version }
    }
}
