//! Peers: what is known of the other replicas, from their ConfigMaps, and what becomes of ConfigMaps that nobody keeps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::Me;
use super::sheet::{ConfigMap, Name, Order, Sheet, Told, Unusable};
use crate::cluster::kube::collection::{Collection, Error};
use crate::cluster::kube::watch::Sink;
use crate::group::sessions;
use crate::session::live::Registry;
use crate::telemetry::chain;

/// ConfigMaps that are remembered, and bytes of all of them: some 25,000 sessions of others. What is beyond is not shown.
const MAX_MAPS: usize = 8192;
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Names in one list: no more can be known of this process, of others, and as useless.
const MAX_LISTED: usize = 3 * MAX_MAPS;

/// ConfigMaps that are deleted at one look, at most: this is never urgent.
const AT_ONCE: usize = 16;

/// The other replicas.
#[derive(Debug)]
pub(super) struct Peers {
    me: Arc<Me>,
    registry: Registry,
    inner: Mutex<Inner>,
    lost: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// By name; this process's own are not among them.
    maps: HashMap<String, Map>,
    bytes: usize,
    /// By instance.
    replicas: HashMap<String, Replica>,
    /// Names in the list that is under way.
    listed: Option<HashSet<String>>,
    complete: bool,
    /// What this process's own sheets say.
    own: HashMap<u32, u64>,
    /// Of these, those that somebody took away.
    lost: Vec<u32>,
    /// Since when this process hears itself, and when it did last.
    heard: Option<(Instant, Instant)>,
    /// Those that were told to be of no use.
    useless: HashSet<String>,
}

/// A ConfigMap.
#[derive(Debug)]
struct Map {
    name: Name,
    version: String,
    bytes: usize,
    /// When this version was first seen.
    since: Instant,
    /// Whether it is an order to this process, which has heard it.
    obeyed: bool,
}

#[derive(Debug)]
struct Replica {
    name: String,
    pod: Option<String>,
    /// Seconds since its start, at the moment when it was last heard of.
    up: u64,
    heard: Instant,
    silent: bool,
    sheets: BTreeMap<u32, Vec<Told>>,
}

/// What a watch of the ConfigMaps feeds.
pub(super) struct Feed(pub(super) Arc<Peers>);

/// What tells one text from another.
pub(super) fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Sees to it that those are not shown of whom nothing is heard, and that nothing of theirs stays.
pub(super) async fn keep(peers: &Peers, maps: &Collection) {
    let mut failing = false;
    loop {
        sleep(peers.me.times.look).await;
        peers.expire();
        for (name, version) in peers.rubbish() {
            match maps.delete(&name, Some(&version)).await {
                Ok(()) => failing = false,
                Err(error @ (Error::Missing | Error::Conflict | Error::Exists)) => {
                    debug!(object = name, error = chain(&error), "somebody else was first");
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(
                            object = name,
                            error = chain(&error),
                            "cannot delete what nobody keeps any more"
                        );
                    }
                    break;
                }
            }
        }
    }
}

// === impl Peers ===

impl Peers {
    pub(super) fn new(me: Arc<Me>, registry: Registry) -> Self {
        Self { me, registry, inner: Mutex::default(), lost: Notify::new() }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.inner().complete
    }

    /// For how many seconds another process has been up by now.
    pub(super) fn up(&self, instance: &str) -> u64 {
        self.inner().replicas.get(instance).map_or(0, |replica| replica.up().as_secs())
    }

    /// What this process's own sheet of this number says.
    pub(super) fn said(&self, number: u32) -> Option<u64> {
        self.inner().own.get(&number).copied()
    }

    /// Resolves when somebody has taken own sheets away, with their numbers. Cancel safe.
    pub(super) async fn lost(&self) -> Vec<u32> {
        loop {
            let lost = std::mem::take(&mut self.inner().lost);
            if !lost.is_empty() {
                return lost;
            }
            self.lost.notified().await;
        }
    }

    fn take(&self, inner: &mut Inner, map: &ConfigMap) -> Result<(), Unusable> {
        let (key, text) = (&map.metadata.name, map.text());
        let name = Name::parse(key)?;
        match &name {
            Name::Sheet(instance, number) if **instance == *self.me.instance => {
                if inner.own.len() >= MAX_MAPS && !inner.own.contains_key(number) {
                    return Err(Unusable::Crowded);
                }
                inner.own.insert(*number, digest(text));
                inner.hear(self.me.times.stale);
                return Ok(());
            }
            Name::Sheet(..) | Name::Order(_) => {}
        }
        let version = &map.metadata.resource_version;
        let old = inner.maps.get(key);
        let (had, fresh) = (old.map_or(0, |map| map.bytes), old.is_none_or(|map| map.version != *version));
        let crowded = old.is_none() && inner.maps.len() >= MAX_MAPS;
        if crowded || inner.bytes - had + text.len() > MAX_BYTES {
            return Err(Unusable::Crowded);
        }
        if !fresh {
            return Ok(());
        }
        let now = Instant::now();
        let bytes = had;
        inner.maps.insert(
            key.clone(),
            Map { name: name.clone(), version: version.clone(), bytes, since: now, obeyed: false },
        );
        match name {
            Name::Order(uid) => {
                let order = Order::read(&uid, text)?;
                let obeyed = *order.instance == *self.me.instance;
                if obeyed {
                    self.obey(&order);
                }
                inner.account(key, text.len(), obeyed);
            }
            Name::Sheet(instance, number) => {
                let sheet = Sheet::read(text)?;
                inner.account(key, text.len(), false);
                if inner.write(&instance, number, sheet) && inner.listed.is_none() {
                    self.show(inner, &instance);
                }
            }
        }
        Ok(())
    }

    fn obey(&self, order: &Order) {
        let Order { namespace, name, uid, by, at, .. } = order;
        if self.me.up().abs_diff(*at) > self.me.times.order.as_secs() {
            warn!(session = name, by, "an order to end a session has come too late, it does not count");
        } else if let Some(entry) = self.registry.get(namespace, name).filter(|entry| entry.uid == *uid) {
            self.registry.end(&entry, sessions::order(by));
        } else {
            debug!(session = name, by, "an order to end a session that is over");
        }
    }

    /// Puts what a replica has into the list.
    fn show(&self, inner: &Inner, instance: &str) {
        let replica =
            inner.replicas.get(instance).filter(|replica| !replica.silent && !self.is_former(replica));
        let mut newest: HashMap<&str, &Told> = HashMap::new();
        for told in replica.into_iter().flat_map(|replica| replica.sheets.values().flatten()) {
            // One that is moved from sheet to sheet may be on both for a moment.
            let there = newest.entry(told.uid()).or_insert(told);
            if told.is_newer(there) {
                *there = told;
            }
        }
        let (instance, up) = (Arc::<str>::from(instance), replica.map_or(Duration::ZERO, Replica::up));
        let has = newest.into_values().map(|told| told.far(instance.clone(), up)).collect();
        self.registry.tell(&instance, has);
    }

    /// Whether it was in this process's pod before.
    fn is_former(&self, replica: &Replica) -> bool {
        replica.pod.is_some() && replica.pod == self.me.identity.pod_uid
    }

    fn forget(&self, inner: &mut Inner, key: &str) {
        inner.useless.remove(key);
        let name = Name::parse(key).ok();
        if let Some(Map { bytes, .. }) = inner.maps.remove(key) {
            inner.bytes -= bytes;
        }
        let Some(Name::Sheet(instance, number)) = name else { return };
        if *instance == *self.me.instance {
            if inner.own.remove(&number).is_some() {
                inner.lost.push(number);
                self.lost.notify_one();
            }
            return;
        }
        if let Some(replica) = inner.replicas.get_mut(&instance) {
            replica.sheets.remove(&number);
            if replica.sheets.is_empty() {
                inner.replicas.remove(&instance);
            }
        }
        self.show(inner, &instance);
    }

    /// Shows nothing any more of those who have been silent for too long.
    fn expire(&self) {
        let (mut inner, stale) = (self.inner(), self.me.times.stale);
        let mut silent = Vec::new();
        for (instance, replica) in &mut inner.replicas {
            if !replica.silent && replica.heard.elapsed() > stale {
                replica.silent = true;
                silent.push(instance.clone());
                if !self.is_former(replica) {
                    warn!(
                        replica = replica.name,
                        "nothing is heard of a replica, its sessions are not shown any more"
                    );
                }
            }
        }
        for instance in silent {
            self.show(&inner, &instance);
        }
    }

    /// ConfigMaps that nobody keeps any more: orders that were obeyed or are old, and what is left of the dead. Who has heard
    /// nothing of itself does not know who is.
    fn rubbish(&self) -> Vec<(String, String)> {
        let (inner, times) = (self.inner(), self.me.times);
        let hears = inner
            .heard
            .is_some_and(|(since, last)| last.elapsed() <= times.stale && since.elapsed() >= times.dead);
        let is_rubbish = |map: &Map| match &map.name {
            Name::Order(_) => map.obeyed || map.since.elapsed() > times.order,
            Name::Sheet(instance, _) => match inner.replicas.get(instance) {
                Some(replica) if self.is_former(replica) => true,
                Some(replica) => hears && replica.heard.elapsed() > times.dead,
                None => hears && map.since.elapsed() > times.dead,
            },
        };
        let found = inner.maps.iter().filter(|(_, map)| is_rubbish(map)).take(AT_ONCE);
        found.map(|(key, map)| (key.clone(), map.version.clone())).collect()
    }

    /// Nothing that could panic halfway runs under this lock.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    /// This process has heard itself: what is written gets here.
    fn hear(&mut self, stale: Duration) {
        let now = Instant::now();
        let since = self.heard.filter(|(_, last)| last.elapsed() <= stale).map_or(now, |(since, _)| since);
        self.heard = Some((since, now));
    }

    fn account(&mut self, key: &str, bytes: usize, obeyed: bool) {
        if let Some(map) = self.maps.get_mut(key) {
            self.bytes = self.bytes - map.bytes + bytes;
            (map.bytes, map.obeyed) = (bytes, obeyed);
        }
    }

    /// Whether there is anything to show because of it: what only says that its process lives changes nothing.
    fn write(&mut self, instance: &str, number: u32, sheet: Sheet) -> bool {
        let now = Instant::now();
        let Sheet { replica: name, pod, up, sessions } = sheet;
        let new = Replica { name, pod, up, heard: now, silent: false, sheets: BTreeMap::new() };
        let replica = self.replicas.entry(instance.to_owned()).or_insert(new);
        let silent = std::mem::take(&mut replica.silent);
        if silent {
            info!(replica = replica.name, "a replica is heard again, its sessions are shown");
        }
        (replica.up, replica.heard) = (replica.up.max(up), now);
        let empty = sessions.is_empty();
        let before = replica.sheets.insert(number, sessions);
        silent || !empty || before.is_some_and(|before| !before.is_empty())
    }
}

// === impl Replica ===

impl Replica {
    /// How long it has been up by now.
    fn up(&self) -> Duration {
        Duration::from_secs(self.up).saturating_add(self.heard.elapsed())
    }
}

// === impl Feed ===

impl Sink for Feed {
    fn begin(&mut self) {
        self.0.inner().listed = Some(HashSet::new());
    }

    fn saw(&mut self, object: &RawValue) {
        let map: ConfigMap = serde_json::from_str(object.get()).unwrap_or_default();
        if !map.is_ours() {
            return;
        }
        let (peers, mut inner) = (&self.0, self.0.inner());
        let key = &map.metadata.name;
        if let Some(listed) = inner.listed.as_mut().filter(|listed| listed.len() < MAX_LISTED) {
            listed.insert(key.clone());
        }
        match peers.take(&mut inner, &map) {
            Ok(()) => drop(inner.useless.remove(key)),
            Err(error) => {
                if inner.useless.len() < MAX_MAPS && inner.useless.insert(key.clone()) {
                    warn!(object = key, error = chain(&error), "a ConfigMap of shared sessions is of no use");
                }
            }
        }
    }

    fn gone(&mut self, object: &RawValue) {
        let map: ConfigMap = serde_json::from_str(object.get()).unwrap_or_default();
        self.0.forget(&mut self.0.inner(), &map.metadata.name);
    }

    fn end(&mut self, _version: &str) {
        let (peers, mut inner) = (&self.0, self.0.inner());
        let listed = inner.listed.take().unwrap_or_default();
        let own = |number: &u32| Name::Sheet(peers.me.instance.to_string(), *number).to_string();
        let known = inner.maps.keys().cloned().chain(inner.own.keys().map(own));
        let known = known.chain(inner.useless.iter().cloned());
        let gone: Vec<_> = known.filter(|key| !listed.contains(key)).collect();
        for key in gone {
            peers.forget(&mut inner, &key);
        }
        let replicas: Vec<_> = inner.replicas.keys().cloned().collect();
        for instance in replicas {
            peers.show(&inner, &instance);
        }
        inner.complete = true;
    }

    fn len(&self) -> usize {
        self.0.inner().maps.len()
    }
}
