//! Store: the newest known version of every object of a kind, as slim as it is used.
//!
//! Fed by a watch, and by reads that saw something newer. resourceVersions are compared as numbers, across
//! uids too: they are one revision counter of the API server's storage. An object whose version is none is
//! not kept. Whatever the store holds is looked at before use, or was a moment before, so that the order in
//! which it is fed decides about speed, and for that moment about which of two answers of the API server holds.
//! Source: Kubernetes API concepts, "Resource version comparison"; etcd `ModRevision`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Metadata;

/// Objects of a kind at most: several times the largest cluster Kubernetes is tested with (150,000 pods).
/// Beyond it what is new is not kept, and is read each time.
const MAX_OBJECTS: usize = 500_000;

/// Objects by `namespace/name`, or by name.
#[derive(Debug)]
pub(super) struct Store<K>(Mutex<Kept<K>>);

/// Which state of which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) uid: Box<str>,
    pub(super) number: u64,
}

#[derive(Debug)]
struct Kept<K> {
    entries: HashMap<Box<str>, Entry<K>>,
    /// Counts lists, so that what the last one did not show can go.
    list: u32,
    listed: bool,
}

#[derive(Debug)]
struct Entry<K> {
    version: Version,
    list: u32,
    value: Arc<K>,
}

// === impl Store ===

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self(Mutex::new(Kept { entries: HashMap::new(), list: 0, listed: false }))
    }
}

impl<K> Store<K> {
    /// What is known of an object.
    pub(super) fn get(&self, key: &str) -> Option<(Version, Arc<K>)> {
        self.kept().entries.get(key).map(|entry| (entry.version.clone(), entry.value.clone()))
    }

    /// A watch saw this, or its list did.
    pub(super) fn saw(&self, key: &str, version: Version, value: Arc<K>) {
        self.kept().put(key, version, value);
    }

    /// A read saw this. What no list ever showed is not kept for a read alone: nothing would say that it is
    /// gone.
    pub(super) fn remember(&self, key: &str, version: Version, value: Arc<K>) {
        let mut kept = self.kept();
        if kept.listed {
            kept.put(key, version, value);
        }
    }

    /// The object is gone; another one of its name is not.
    pub(super) fn forget(&self, key: &str, uid: &str) {
        let mut kept = self.kept();
        if kept.entries.get(key).is_some_and(|entry| *entry.version.uid == *uid) {
            kept.entries.remove(key);
        }
    }

    /// A list begins.
    pub(super) fn begin_list(&self) {
        let mut kept = self.kept();
        kept.list = kept.list.wrapping_add(1);
    }

    /// A list ends: what neither it nor a read since its begin has shown is gone.
    pub(super) fn end_list(&self) {
        let mut kept = self.kept();
        let list = kept.list;
        kept.entries.retain(|_, entry| entry.list == list);
        kept.entries.shrink_to_fit();
        kept.listed = true;
    }

    /// Whether a list ever ended.
    pub(super) fn listed(&self) -> bool {
        self.kept().listed
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.kept().entries.len()
    }

    /// Nothing that could panic halfway runs under this lock.
    fn kept(&self) -> MutexGuard<'_, Kept<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Kept ===

impl<K> Kept<K> {
    fn put(&mut self, key: &str, version: Version, value: Arc<K>) {
        let (list, room) = (self.list, self.entries.len() < MAX_OBJECTS);
        match self.entries.get_mut(key) {
            Some(entry) => {
                entry.list = list;
                if entry.version.number < version.number {
                    *entry = Entry { version, list, value };
                }
            }
            None if room => {
                self.entries.insert(key.into(), Entry { version, list, value });
            }
            None => {}
        }
    }
}

// === impl Version ===

impl Version {
    /// That of an object, unless it cannot be compared.
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        let number = metadata.resource_version.parse().ok()?;
        Some(Self { uid: metadata.uid.as_str().into(), number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(uid: &str, number: u64) -> Version {
        Version { uid: uid.into(), number }
    }

    fn store(seen: &[(&str, &str, u64)]) -> Store<u64> {
        let store = Store::default();
        store.begin_list();
        store.end_list();
        for &(key, uid, number) in seen {
            store.saw(key, version(uid, number), Arc::new(number));
        }
        store
    }

    fn known(store: &Store<u64>, key: &str) -> Option<u64> {
        store.get(key).map(|(version, value)| {
            assert_eq!(version.number, *value);
            *value
        })
    }

    #[test]
    fn a_late_event_does_not_bring_an_older_version_back() {
        let store = store(&[("a/p", "new", 20)]);
        store.saw("a/p", version("old", 10), Arc::new(10));
        store.saw("a/p", version("new", 19), Arc::new(19));
        assert_eq!(known(&store, "a/p"), Some(20));
        store.saw("a/p", version("new", 21), Arc::new(21));
        assert_eq!(known(&store, "a/p"), Some(21));
    }

    #[test]
    fn a_late_delete_does_not_take_the_next_of_the_name() {
        let store = store(&[("a/p", "new", 20)]);
        store.forget("a/p", "old");
        assert_eq!(known(&store, "a/p"), Some(20));
        store.forget("a/p", "new");
        assert_eq!(known(&store, "a/p"), None);
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_show_but_not_what_was_read_meanwhile() {
        let store = store(&[("a/gone", "1", 1), ("a/kept", "2", 2)]);
        store.begin_list();
        store.saw("a/kept", version("2", 2), Arc::new(2));
        store.remember("a/fresh", version("3", 30), Arc::new(30));
        store.end_list();
        assert_eq!([known(&store, "a/gone"), known(&store, "a/kept")], [None, Some(2)]);
        assert_eq!((known(&store, "a/fresh"), store.len()), (Some(30), 2));
    }

    #[test]
    fn nothing_is_kept_for_reads_alone() {
        let store = Store::default();
        store.remember("a/p", version("1", 1), Arc::new(1));
        assert_eq!((known(&store, "a/p"), store.listed()), (None, false));
    }
}
