//! Live: the list of sessions that are there now, from the moment one has a seat until both its connections are closed.
//!
//! In the flow: the door enters a session before its far side is asked, so that one which is being set up is seen and can
//! be ended too; the room `group` shows the list, watches it, and ends sessions of it by somebody's order.
//! Invariants: an entry leaves the list when its [`Live`] is dropped, whatever path led there; each change has the next
//! version and is in the [`History`]. The first order to end a session counts.
//! Versions begin with the time of the start, and end in digits that this process drew: what a client remembers of an
//! earlier process or of another replica is too old here.
//! Sessions of other replicas stand in the same list ([`far`]), so that their changes have versions in the same order.

mod far;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::Order;
use super::limits::Limits;
use crate::serving::history::{self, Changes, History};
use crate::telemetry::{Facts, Meters};

pub use far::Far;

/// Changes kept for watchers: three of each session. One further behind than this gets 410 and lists again.
const HISTORY: usize = 1024;

/// From one version to the next. The digits below are this process's own: of two replicas whose versions happen to be near
/// each other, one in so many takes the other's for its own.
const STEP: u64 = 4096;

/// Bytes of a name, at most: that of a DNS subdomain.
const NAME: usize = 253;

/// Hex digits at the end of a name.
const DIGITS: usize = 6;

/// The list; cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    list: RwLock<List>,
    /// Changes of the list, under its lock.
    history: History<Change>,
    /// The version of the last change of this process's own sessions.
    own: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct List {
    /// By namespace and name.
    entries: BTreeMap<(String, String), Arc<Entry>>,
    /// Those of other replicas.
    far: BTreeMap<far::Key, Arc<Far>>,
}

/// On which terms a session is allowed, as far as the house rules have any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Names of the rules that allow it.
    pub rules: Vec<String>,
    /// Why its caller wants it.
    pub reason: Option<String>,
    /// Name of the grant that it needs.
    pub grant: Option<String>,
    /// What bounds it.
    pub limits: Limits,
    /// When what allows it runs out.
    pub until: Option<Timestamp>,
}

/// How a session is carried, once the far side has agreed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried {
    /// Protocol of the client's side.
    pub client_protocol: String,
    /// Protocol of the far side.
    pub far_protocol: String,
    /// Id of its recording; empty without one.
    pub recording: String,
    /// The rule that demands it.
    pub recording_rule: String,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The far side is being asked.
    Starting,
    /// Bytes pass.
    Running,
    /// It was told to end.
    Ending,
    /// It is over: no entry is that.
    Ended,
}

/// A session in the list.
#[derive(Debug)]
pub struct Entry {
    /// Unique in its namespace while it lives.
    pub name: String,
    /// Unique for ever.
    pub uid: String,
    /// When it was entered.
    pub created: Timestamp,
    /// Who, what and where.
    pub facts: Arc<Facts>,
    state: Mutex<Arc<State>>,
    ordered: watch::Sender<Option<Order>>,
}

/// What of a session changes.
#[derive(Debug, Clone)]
pub struct State {
    /// Where it stands.
    pub phase: Phase,
    /// The version of its last change.
    pub version: u64,
    /// Since when it is to end, and the reason for people.
    pub ending: Option<(Timestamp, String)>,
    /// On which terms.
    pub terms: Terms,
    /// How it is carried.
    pub carried: Carried,
    /// What passed.
    pub meters: Option<Arc<Meters>>,
}

/// What became of a session.
#[derive(Debug, Clone)]
pub enum Change {
    /// That of one of this process.
    Own(Box<Own>),
    /// That of one of another replica.
    Far {
        /// As it was; none when it is new.
        before: Option<Arc<Far>>,
        /// As it is; none when it is gone.
        after: Option<Arc<Far>>,
    },
}

/// What became of a session of this process.
#[derive(Debug, Clone)]
pub struct Own {
    /// The session.
    pub entry: Arc<Entry>,
    /// As it was; none when it is new.
    pub before: Option<Arc<State>>,
    /// As it is; none when it is gone.
    pub after: Option<Arc<State>>,
}

/// A session of the list.
#[derive(Debug, Clone)]
pub enum Known {
    /// One of this process.
    Own(Arc<Entry>),
    /// One of another replica.
    Far(Arc<Far>),
}

/// The session's own hold on its entry: it leaves the list when this is dropped.
#[derive(Debug)]
pub struct Live {
    entry: Arc<Entry>,
    registry: Registry,
}

// === impl Registry ===

impl Default for Registry {
    fn default() -> Self {
        let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
        let start = history::beginning();
        let version = start - start % STEP + random % STEP;
        let history = History::in_steps(version, STEP, HISTORY);
        Self(Arc::new(Inner { list: RwLock::default(), history, own: watch::Sender::new(version) }))
    }
}

impl Registry {
    /// Enters a session that has a seat: there are never more entries than seats.
    pub fn enter(&self, facts: Arc<Facts>, terms: Terms) -> Live {
        let mut list = self.write();
        let (name, uid) = loop {
            let uid = uuid::Uuid::new_v4();
            let name = name_of(&facts.pod, &uid.simple().to_string());
            if list.find(&facts.namespace, &name).is_none() {
                break (name, uid.to_string());
            }
        };
        let version = self.0.next();
        let state = Arc::new(State {
            phase: Phase::Starting,
            version,
            ending: None,
            terms,
            carried: Carried::default(),
            meters: None,
        });
        let entry = Arc::new(Entry {
            name,
            uid,
            created: Timestamp::now(),
            facts,
            state: Mutex::new(state.clone()),
            ordered: watch::channel(None).0,
        });
        list.entries.insert((entry.facts.namespace.clone(), entry.name.clone()), entry.clone());
        self.tell_own(version, Own { entry: entry.clone(), before: None, after: Some(state) });
        drop(list);
        Live { entry, registry: self.clone() }
    }

    /// The session of this process that has this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.read().entries.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The session of this name, wherever it is.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Known> {
        self.read().find(namespace, name)
    }

    /// The version of the last change of this process's own sessions.
    pub fn own(&self) -> watch::Receiver<u64> {
        self.0.own.subscribe()
    }

    /// The sessions of this process in a namespace or in all, in order of namespace and name, and the version of the list.
    pub fn list(&self, namespace: Option<&str>) -> (Vec<Arc<Entry>>, u64) {
        let list = self.read();
        let from = (namespace.unwrap_or_default().to_owned(), String::new());
        let within =
            |entry: &Arc<Entry>| namespace.is_none_or(|namespace| entry.facts.namespace == namespace);
        let listed = list.entries.range(from..).map(|(_, entry)| entry.clone()).take_while(within).collect();
        (listed, self.0.history.version())
    }

    /// The changes after this version. Nothing is lost between a list and the changes after its version.
    pub fn changes(&self, seen: u64) -> Changes<Change> {
        self.0.history.changes(seen)
    }

    /// Tells a session to end. False when it was told so before: the first order counts.
    pub fn end(&self, entry: &Arc<Entry>, order: Order) -> bool {
        let why = order.why.clone();
        let first = entry.ordered.send_if_modified(|ordered| {
            let first = ordered.is_none();
            if first {
                *ordered = Some(order);
            }
            first
        });
        if first {
            self.change(entry, |state| {
                state.phase = Phase::Ending;
                state.ending = Some((Timestamp::now(), why));
            });
        }
        first
    }

    fn change(&self, entry: &Arc<Entry>, change: impl FnOnce(&mut State)) {
        let list = self.write();
        // One that has left does not change any more.
        let key = (entry.facts.namespace.clone(), entry.name.clone());
        if !list.entries.get(&key).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            return;
        }
        let version = self.0.next();
        let (before, after) = {
            let mut state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = State::clone(&state);
            change(&mut changed);
            changed.version = version;
            (std::mem::replace(&mut *state, Arc::new(changed)), state.clone())
        };
        self.tell_own(version, Own { entry: entry.clone(), before: Some(before), after: Some(after) });
    }

    fn leave(&self, entry: &Arc<Entry>) {
        let mut list = self.write();
        let version = self.0.next();
        list.entries.remove(&(entry.facts.namespace.clone(), entry.name.clone()));
        let before = entry.state();
        if let Some(meters) = &before.meters {
            meters.audience.end();
        }
        self.tell_own(version, Own { entry: entry.clone(), before: Some(before), after: None });
    }

    fn tell_own(&self, version: u64, own: Own) {
        self.0.history.put(version, Change::Own(Box::new(own)));
        self.0.own.send_replace(version);
    }

    fn write(&self) -> RwLockWriteGuard<'_, List> {
        self.0.list.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, List> {
        self.0.list.read().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Change ===

impl Change {
    /// That of the session.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Own(own) => &own.entry.facts.namespace,
            Self::Far { before, after } => {
                before.as_ref().or(after.as_ref()).map_or("", |far| far.namespace.as_str())
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    /// The version of the next change, for whoever may change the list.
    fn next(&self) -> u64 {
        self.history.version() + STEP
    }
}

// === impl Entry ===

impl Entry {
    /// As it is now.
    pub fn state(&self) -> Arc<State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl State ===

impl State {
    /// Bytes that passed, both ways.
    pub fn bytes(&self) -> u64 {
        self.meters.as_ref().map_or(0, |meters| meters.up.bytes() + meters.down.bytes())
    }

    /// How long nothing of the session's own has passed; none before it runs.
    pub fn idle(&self) -> Option<Duration> {
        self.meters.as_ref().map(|meters| meters.idle())
    }
}

// === impl Phase ===

impl Phase {
    /// The word in objects.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Ending => "Ending",
            Self::Ended => "Ended",
        }
    }
}

// === impl Live ===

impl Live {
    /// The entry.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The far side has agreed, and this is what counts the bytes.
    pub fn runs(&self, carried: Carried, meters: Arc<Meters>) {
        self.registry.change(&self.entry, |state| {
            if state.phase == Phase::Starting {
                state.phase = Phase::Running;
            }
            state.carried = carried;
            state.meters = Some(meters);
        });
    }

    /// Resolves when somebody has told the session to end. May be dropped at any point, and asked again.
    pub fn ordered(&self) -> impl Future<Output = Order> + Send + 'static {
        let mut ordered = self.entry.ordered.subscribe();
        async move {
            let order = match ordered.wait_for(Option::is_some).await {
                Ok(order) => order.clone(),
                // Nobody is left who could.
                Err(_) => None,
            };
            match order {
                Some(order) => order,
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.registry.leave(&self.entry);
    }
}

/// The pod's name and some digits of the id; a name that would be too long is cut where it may end.
fn name_of(pod: &str, hex: &str) -> String {
    let pod = &pod[..pod.floor_char_boundary(NAME - DIGITS - 1)];
    let pod = pod.trim_end_matches(['-', '.']);
    format!("{pod}-{}", &hex[..DIGITS])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::history::Gone;
    use crate::telemetry::EndReason;

    fn by(user: &str) -> Order {
        Order { reason: EndReason::Ended, why: format!("ended by {user}") }
    }

    pub(super) fn facts(namespace: &str, pod: &str) -> Arc<Facts> {
        Arc::new(Facts::example(namespace, pod))
    }

    #[tokio::test]
    async fn a_session_is_there_from_its_entry_to_its_drop_and_watchers_are_told() {
        let registry = Registry::default();
        let (_, version) = registry.list(None);
        let mut changes = registry.changes(version);
        let live = registry.enter(facts("b", "web"), Terms::default());
        let other = registry.enter(facts("a", "web"), Terms::default());
        let names = |namespace| registry.list(namespace).0.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(None), [other.entry().name.clone(), live.entry().name.clone()]);
        assert_eq!(names(Some("b")), [live.entry().name.clone()]);
        assert!(live.entry().name.starts_with("web-") && live.entry().name.len() == 10);
        live.runs(Carried::default(), Arc::default());
        drop(other);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let change = Change::clone(&changes.next().await.unwrap().1);
            let phase = |state: Option<Arc<State>>| state.map(|state| state.phase);
            let Change::Own(own) = change else { panic!("one of this process") };
            let Own { entry, before, after } = *own;
            seen.push((entry.facts.namespace.clone(), phase(before), phase(after)));
        }
        let (starting, running) = (Some(Phase::Starting), Some(Phase::Running));
        let expected =
            [("b", None, starting), ("a", None, starting), ("b", starting, running), ("a", starting, None)];
        assert_eq!(seen, expected.map(|(namespace, before, after)| (namespace.to_owned(), before, after)));
        assert_eq!(changes.seen(), registry.list(None).1);
    }

    #[tokio::test]
    async fn the_first_order_ends_a_session_and_the_second_does_not_change_it() {
        let registry = Registry::default();
        let live = registry.enter(facts("b", "web"), Terms::default());
        let entry = registry.get("b", &live.entry().name).unwrap();
        assert!(registry.end(&entry, by("ana")));
        assert!(!registry.end(&entry, by("eve")));
        assert_eq!(live.ordered().await, by("ana"));
        assert_eq!(live.ordered().await.why, "ended by ana");
        live.runs(Carried::default(), Arc::default());
        assert_eq!(entry.state().phase, Phase::Ending);
        drop(live);
        assert!(registry.get("b", &entry.name).is_none() && !registry.end(&entry, by("eve")));
    }

    #[tokio::test]
    async fn a_watcher_of_another_time_is_told_so() {
        let registry = Registry::default();
        let (_, version) = registry.list(None);
        // Each comes and goes.
        for _ in 0..HISTORY {
            registry.enter(facts("b", "web"), Terms::default());
        }
        assert!(matches!(registry.changes(version).next().await, Err(Gone::Old { .. })));
        let (_, now) = registry.list(None);
        assert!(matches!(registry.changes(now + STEP).next().await, Err(Gone::Ahead { .. })));
        assert!(matches!(registry.changes(now + 1).next().await, Err(Gone::Ahead { .. })));
        // Of a process that began at the same time.
        assert!(matches!(registry.changes(now - 1).next().await, Err(Gone::Old { .. })));
    }

    #[test]
    fn names_are_bounded() {
        let name = name_of(&format!("{}.{}", "a".repeat(245), "b".repeat(7)), "0123456789");
        assert_eq!(name, format!("{}-012345", "a".repeat(245)));
    }
}
