//! Live: the list of sessions that are there now, from the moment one has a seat until both its connections are closed.
//!
//! In the flow: the door enters a session before its far side is asked, so that one which is being set up is seen and can
//! be ended too; the room `group` shows the list, watches it, and ends sessions of it by somebody's order.
//! Invariants: an entry leaves the list when its [`Live`] is dropped, whatever path led there; each change has the next
//! version, and the last [`HISTORY`] of them are kept. A watcher is a position in that history and no queue, so a slow one
//! costs nothing and is told that it fell behind. The first order to end a session counts.
//! Versions begin with the time of the start, so what a client remembers of an earlier process is too old here.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::watch;

use super::Order;
use super::limits::Limits;
use crate::telemetry::Meters;

/// Changes kept for watchers: three of each session. One further behind than this gets 410 and lists again.
const HISTORY: usize = 4096;

/// Bytes of a command that are kept, at most. The audit trail has as many.
const COMMAND: usize = 4096;

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
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct List {
    /// By namespace and name.
    entries: BTreeMap<(String, String), Arc<Entry>>,
    version: u64,
    /// Without gaps, oldest first, ending at `version`.
    history: VecDeque<Change>,
}

/// What is known of a session before it is asked for.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The caller.
    pub user: String,
    /// Who acts as the caller; empty without impersonation.
    pub impersonator: String,
    /// The client's address.
    pub client: SocketAddr,
    /// Audit id of the request.
    pub audit_id: String,
    /// `exec`, `attach` or `portforward`.
    pub subresource: &'static str,
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container.
    pub container: String,
    /// Node.
    pub node: String,
    /// The argument vector; what is very long is cut.
    pub command: Vec<String>,
    /// Whether there is a terminal.
    pub tty: bool,
    /// Whether the client sends standard input.
    pub stdin: bool,
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
    pub facts: Facts,
    state: Mutex<State>,
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
pub struct Change {
    /// The list's version with it.
    pub version: u64,
    /// The session.
    pub entry: Arc<Entry>,
    /// As it was; none when it is new.
    pub before: Option<State>,
    /// As it is; none when it is gone.
    pub after: Option<State>,
}

/// The session's own hold on its entry: it leaves the list when this is dropped.
#[derive(Debug)]
pub struct Live {
    entry: Arc<Entry>,
    registry: Registry,
}

/// A watcher's place in the history.
#[derive(Debug)]
pub struct Changes {
    registry: Registry,
    seen: u64,
    signal: watch::Receiver<u64>,
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
    /// It was never here: it is of another process.
    #[error("too large resource version: {seen}, current: {current}")]
    Ahead {
        /// The last version seen.
        seen: u64,
        /// The newest there is.
        current: u64,
    },
}

// === impl Registry ===

impl Default for Registry {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Below 2^53, up to which every client is exact.
        let version = u64::try_from(since.as_micros()).unwrap_or(0);
        let list = List { entries: BTreeMap::new(), version, history: VecDeque::new() };
        Self(Arc::new(Inner { list: RwLock::new(list), version: watch::channel(version).0 }))
    }
}

impl Registry {
    /// Enters a session that has a seat: there are never more entries than seats.
    pub fn enter(&self, mut facts: Facts, terms: Terms) -> Live {
        facts.command = bounded(std::mem::take(&mut facts.command));
        let mut list = self.0.list.write().unwrap_or_else(PoisonError::into_inner);
        let (name, uid) = loop {
            let uid = uuid::Uuid::new_v4();
            let name = name_of(&facts.pod, &uid.simple().to_string());
            if !list.entries.contains_key(&(facts.namespace.clone(), name.clone())) {
                break (name, uid.to_string());
            }
        };
        let version = list.version + 1;
        let state = State {
            phase: Phase::Starting,
            version,
            ending: None,
            terms,
            carried: Carried::default(),
            meters: None,
        };
        let entry = Arc::new(Entry {
            name,
            uid,
            created: Timestamp::now(),
            facts,
            state: Mutex::new(state.clone()),
            ordered: watch::channel(None).0,
        });
        list.entries.insert((entry.facts.namespace.clone(), entry.name.clone()), entry.clone());
        list.put(Change { version, entry: entry.clone(), before: None, after: Some(state) });
        self.0.version.send_replace(version);
        drop(list);
        Live { entry, registry: self.clone() }
    }

    /// The session of this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let list = self.0.list.read().unwrap_or_else(PoisonError::into_inner);
        list.entries.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The sessions of a namespace or of all, in order of namespace and name, and the version of the list.
    pub fn list(&self, namespace: Option<&str>) -> (Vec<Arc<Entry>>, u64) {
        let list = self.0.list.read().unwrap_or_else(PoisonError::into_inner);
        let from = (namespace.unwrap_or_default().to_owned(), String::new());
        let within =
            |entry: &Arc<Entry>| namespace.is_none_or(|namespace| entry.facts.namespace == namespace);
        let entries = list.entries.range(from..).map(|(_, entry)| entry.clone()).take_while(within).collect();
        (entries, list.version)
    }

    /// The changes after this version. Nothing is lost between a list and the changes after its version.
    pub fn changes(&self, seen: u64) -> Changes {
        Changes { registry: self.clone(), seen, signal: self.0.version.subscribe() }
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
        let mut list = self.0.list.write().unwrap_or_else(PoisonError::into_inner);
        // One that has left does not change any more.
        let key = (entry.facts.namespace.clone(), entry.name.clone());
        if !list.entries.get(&key).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            return;
        }
        let version = list.version + 1;
        let (before, after) = {
            let mut state = entry.state.lock().unwrap_or_else(PoisonError::into_inner);
            let before = state.clone();
            change(&mut state);
            state.version = version;
            (before, state.clone())
        };
        list.put(Change { version, entry: entry.clone(), before: Some(before), after: Some(after) });
        self.0.version.send_replace(version);
    }

    fn leave(&self, entry: &Arc<Entry>) {
        let mut list = self.0.list.write().unwrap_or_else(PoisonError::into_inner);
        let version = list.version + 1;
        list.entries.remove(&(entry.facts.namespace.clone(), entry.name.clone()));
        let before = entry.state();
        if let Some(meters) = &before.meters {
            meters.audience.end();
        }
        list.put(Change { version, entry: entry.clone(), before: Some(before), after: None });
        self.0.version.send_replace(version);
    }
}

// === impl List ===

impl List {
    fn put(&mut self, change: Change) {
        self.version = change.version;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(change);
    }

    fn after(&self, seen: u64) -> Result<Option<Change>, Gone> {
        let oldest = self.version - self.history.len() as u64;
        if seen < oldest {
            return Err(Gone::Old { seen, oldest });
        }
        if seen > self.version {
            return Err(Gone::Ahead { seen, current: self.version });
        }
        let index = usize::try_from(seen - oldest).unwrap_or(usize::MAX);
        Ok(self.history.get(index).cloned())
    }
}

// === impl Entry ===

impl Entry {
    /// As it is now.
    pub fn state(&self) -> State {
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

// === impl Facts ===

impl Facts {
    /// Who has opened it, whoever they act as.
    pub fn person(&self) -> &str {
        if self.impersonator.is_empty() { &self.user } else { &self.impersonator }
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

// === impl Changes ===

impl Changes {
    /// The next change, as soon as there is one. May be dropped at any point: nothing is lost.
    ///
    /// # Errors
    /// When it is not kept; there is no way on from there.
    pub async fn next(&mut self) -> Result<Change, Gone> {
        loop {
            self.signal.mark_unchanged();
            let next = {
                let list = self.registry.0.list.read().unwrap_or_else(PoisonError::into_inner);
                list.after(self.seen)?
            };
            if let Some(change) = next {
                self.seen = change.version;
                return Ok(change);
            }
            self.signal.changed().await.expect("the registry that this holds has the sender");
        }
    }

    /// The last version handed out, or the one it began with.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

/// The pod's name and some digits of the id; a name that would be too long is cut where it may end.
fn name_of(pod: &str, hex: &str) -> String {
    let pod = &pod[..pod.floor_char_boundary(NAME - DIGITS - 1)];
    let pod = pod.trim_end_matches(['-', '.']);
    format!("{pod}-{}", &hex[..DIGITS])
}

/// As many words as [`COMMAND`] has room for; the last one may be cut.
fn bounded(command: Vec<String>) -> Vec<String> {
    let mut room = COMMAND;
    let mut kept = Vec::new();
    for mut word in command {
        if word.len() >= room {
            word.truncate(word.floor_char_boundary(room));
            word.push_str("...");
            kept.push(word);
            break;
        }
        room -= word.len() + 1;
        kept.push(word);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::EndReason;

    fn by(user: &str) -> Order {
        Order { reason: EndReason::Ended, why: format!("ended by {user}") }
    }

    fn facts(namespace: &str, pod: &str) -> Facts {
        Facts {
            user: "ana".into(),
            impersonator: String::new(),
            client: ([127, 0, 0, 1], 1).into(),
            audit_id: String::new(),
            subresource: "exec",
            namespace: namespace.into(),
            pod: pod.into(),
            container: "app".into(),
            node: "n".into(),
            command: vec!["sh".into()],
            tty: true,
            stdin: true,
        }
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
            let change = changes.next().await.unwrap();
            let phase = |state: Option<State>| state.map(|state| state.phase);
            seen.push((change.entry.facts.namespace.clone(), phase(change.before), phase(change.after)));
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
        for _ in 0..HISTORY {
            registry.enter(facts("b", "web"), Terms::default());
        }
        assert!(matches!(registry.changes(version).next().await, Err(Gone::Old { .. })));
        let (_, now) = registry.list(None);
        assert!(matches!(registry.changes(now + 1).next().await, Err(Gone::Ahead { .. })));
    }

    #[test]
    fn names_and_commands_are_bounded() {
        let name = name_of(&format!("{}.{}", "a".repeat(245), "b".repeat(7)), "0123456789");
        assert_eq!(name, format!("{}-012345", "a".repeat(245)));
        let long = bounded(vec!["\u{e9}".repeat(3000), "next".into()]);
        assert!(long.len() == 1 && long[0].len() <= COMMAND + 3 && long[0].ends_with("..."));
        assert_eq!(bounded(vec!["a".into(), String::new()]), ["a", ""]);
    }
}
