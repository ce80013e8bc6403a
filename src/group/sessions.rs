//! Sessions: those that are live now, as objects: to be listed and watched, and deleted, which ends them.
//!
//! What a session has moved and how long it is idle is as of the moment in which it is asked for; such changes are not told
//! to watchers, who see sessions begin, be told to end, and go. Where replicas share their sessions ([`Share`]), those of the
//! others are among them: shown as the others tell them, and ended by an order to whoever has them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::resource::{Change, Item, Kind, Listed, Options, Resource};
use super::share::Share;
use crate::authn::Caller;
use crate::cluster::Body;
use crate::recording::safe;
use crate::selector::names;
use crate::serving::table::{Column, since, span};
use crate::serving::uncached;
use crate::session::limits::{By, Limit, Limits};
use crate::session::live::{self, Entry, Far, Known, Own, Phase, Registry, State};
use crate::session::{Order, STOPPED, Sessions};
use crate::status::Refusal;
use crate::telemetry::{AudienceError, EndReason, Seen};
use crate::wire::tape;

/// The subresource that shows what passes.
pub const STREAM: &str = "stream";

/// Characters of a command or a reason in a table. All of it is in the object.
const CELL: usize = 40;

/// Seconds after which somebody may try again who may not watch now.
const WATCH_RETRY: u32 = 10;

/// What the API says of it.
pub static KIND: Kind = Kind {
    kind: "Session",
    plural: "sessions",
    singular: "session",
    short: &["sess"],
    verbs: &["delete", "deletecollection", "get", "list", "watch"],
    subresources: &[(STREAM, &["get"])],
    columns: &COLUMNS,
    fields: &[
        "spec.user",
        "spec.impersonator",
        "spec.pod",
        "spec.container",
        "spec.node",
        "spec.subresource",
        "spec.tty",
        "status.phase",
        "status.grant",
        "status.recording",
        "status.replica",
    ],
    description: "A session that is live now: an exec, attach or port-forward through podgate. Deleting it ends it.",
    schema,
};

static COLUMNS: [Column; 17] = [
    Column::NAME,
    Column::text("User", 0, "Who is inside, and who acts as them."),
    Column::text("Pod", 0, "The pod."),
    Column::text("Container", 0, "The container."),
    Column::text("Command", 0, "What was asked to run, shortened."),
    Column::text("Age", 0, "Time since the session began."),
    Column::text("Idle", 0, "How long nothing of the session's own has passed."),
    Column::text("Bytes", 0, "Bytes that have passed, both ways."),
    Column::text("Node", 1, "The node of the pod."),
    Column::text("Client", 1, "Address of the client."),
    Column::text("Subresource", 1, "exec, attach or portforward."),
    Column::text("Protocol", 1, "The client's protocol, and the far side's where that is another."),
    Column::text("Recording", 1, "Id of the recording."),
    Column::text("Rule", 1, "Names of the rules that allow it."),
    Column::text("Reason", 1, "Why its caller wants it."),
    Column::text("Limits", 1, "What bounds it."),
    Column::text("Replica", 1, "The replica of podgate that has it, where replicas share their sessions."),
];

/// The live sessions of this process, and those that others share with it.
pub struct LiveSessions {
    form: Form,
    share: Option<Share>,
}

/// Makes objects of sessions; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Form {
    sessions: Sessions,
    /// The name of this process among those that share.
    replica: Option<Arc<str>>,
}

// === impl LiveSessions ===

impl LiveSessions {
    /// The sessions that these know.
    pub fn new(sessions: Sessions, share: Option<Share>) -> Self {
        let replica = share.as_ref().map(|share| share.replica().clone());
        Self { form: Form::new(sessions, replica), share }
    }

    fn registry(&self) -> &Registry {
        self.form.sessions.live()
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Known, Refusal> {
        self.registry().find(namespace, name).ok_or_else(|| KIND.not_found(name))
    }

    /// Has the replica end a session that has it.
    async fn order(&self, far: &Far, caller: &Caller) -> Result<Item, Refusal> {
        let (by, mut item) = (person(caller), self.form.far(far));
        if item.metadata.deletion_timestamp.is_none() {
            // Those of others are in the list because this is there.
            let share = self.share.as_ref().ok_or_else(|| KIND.not_found(&far.name))?;
            share.end(far, &by).await?;
            item.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        }
        Ok(item)
    }
}

impl Resource for LiveSessions {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Result<Listed, Refusal>> {
        let (all, version) = self.registry().all(namespace);
        let items = all.iter().map(|known| self.form.known(known)).collect();
        future::ready(Ok(Listed { items, version })).boxed()
    }

    fn changes(&self, namespace: Option<&str>, since: u64) -> BoxStream<'static, Result<Change, Refusal>> {
        let watcher = (self.form.clone(), self.registry().changes(since), namespace.map(str::to_owned));
        stream::unfold(watcher, |(form, mut changes, namespace)| async move {
            let within = |change: &live::Change| {
                namespace.as_ref().is_none_or(|namespace| namespace == change.namespace())
            };
            let next = changes.next().await.map(|(version, change)| match within(&change) {
                true => form.change(version, &change),
                false => Change { version, ..Change::default() },
            });
            Some((next.map_err(|gone| gone.refusal()), (form, changes, namespace)))
        })
        .boxed()
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Item, Refusal>> {
        future::ready(self.find(namespace, name).map(|known| self.form.known(&known))).boxed()
    }

    fn delete<'a>(
        &'a self,
        caller: &'a Caller,
        namespace: &'a str,
        name: &'a str,
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        async move {
            let known = self.find(namespace, name)?;
            let item = self.form.known(&known);
            let is = |of: &Option<String>| of.clone().unwrap_or_default();
            let (uid, version) = (is(&item.metadata.uid), is(&item.metadata.resource_version));
            for (field, wanted, is) in
                [("UID", &options.uid, uid), ("ResourceVersion", &options.resource_version, version)]
            {
                if let Some(wanted) = wanted.as_ref().filter(|wanted| **wanted != is) {
                    let text = format!(
                        "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {is}"
                    );
                    return Err(Refusal::Conflict { text, about: KIND.about(name) });
                }
            }
            match known {
                _ if options.dry_run => Ok(item),
                Known::Own(entry) => {
                    self.registry().end(&entry, order(&person(caller)));
                    Ok(self.form.own(&entry, &entry.state()))
                }
                Known::Far(far) => self.order(&far, caller).await,
            }
        }
        .boxed()
    }

    fn subresource<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        _subresource: &'a str,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        let shown = self.find(namespace, name).and_then(|known| match known {
            Known::Own(entry) => show(&self.form.sessions, &entry),
            Known::Far(far) => {
                let replica = far.status.get("replica").and_then(Value::as_str).unwrap_or_default();
                Err(Refusal::BadRequest(format!(
                    "session {name:?} is at the replica {replica:?} of podgate, and only that one can show what passes"
                )))
            }
        });
        future::ready(shown).boxed()
    }
}

/// The person who asks, whoever they act as.
fn person(caller: &Caller) -> String {
    match caller.impersonator() {
        Some(person) => format!("{} as {}", person.name, caller.user().name),
        None => caller.user().name.clone(),
    }
}

/// What a session is told that somebody ends.
pub(super) fn order(by: &str) -> Order {
    Order { reason: EndReason::Ended, why: format!("this session was ended by {by}") }
}

// --- as an object

impl Form {
    /// For sessions that are held to the settings of all; `replica` is the name of who has them.
    pub(super) fn new(sessions: Sessions, replica: Option<Arc<str>>) -> Self {
        Self { sessions, replica }
    }

    fn known(&self, known: &Known) -> Item {
        match known {
            Known::Own(entry) => self.own(entry, &entry.state()),
            Known::Far(far) => self.far(far),
        }
    }

    /// A session of this process.
    pub(super) fn own(&self, entry: &Entry, state: &State) -> Item {
        let metadata = ObjectMeta {
            name: Some(entry.name.clone()),
            namespace: Some(entry.facts.namespace.clone()),
            uid: Some(entry.uid.clone()),
            resource_version: Some(state.version.to_string()),
            creation_timestamp: Some(Time(entry.created)),
            deletion_timestamp: state.ending.as_ref().map(|(since, _)| Time(*since)),
            deletion_grace_period_seconds: state.ending.as_ref().map(|_| 0),
            labels: Some(labels(entry)),
            ..ObjectMeta::default()
        };
        let limits = self.sessions.limits(&state.terms.limits);
        let has = self.sessions.of_user(entry.facts.person());
        let status = status(entry, state, &limits, has, self.replica.as_deref(), Timestamp::now());
        item(metadata, spec(entry), status)
    }

    /// A session of another replica.
    fn far(&self, far: &Far) -> Item {
        let metadata = ObjectMeta {
            resource_version: Some(far.version.to_string()),
            ..ObjectMeta::clone(&far.metadata)
        };
        let mut status = Map::clone(&far.status);
        pass(&mut status, far.told.elapsed().as_secs());
        item(metadata, Map::clone(&far.spec).into(), status.into())
    }

    fn change(&self, version: u64, change: &live::Change) -> Change {
        let (before, after, last) = match change {
            live::Change::Own(own) => {
                let Own { entry, before, after } = &**own;
                let item = |state: &Arc<State>| self.own(entry, state);
                let ended = |state: &Arc<State>| {
                    self.own(entry, &State { phase: Phase::Ended, ..State::clone(state) })
                };
                (before.as_ref().map(item), after.as_ref().map(item), before.as_ref().map(ended))
            }
            live::Change::Far { before, after } => {
                let item = |far: &Arc<Far>| self.far(far);
                let ended = |far: &Arc<Far>| {
                    let mut far = Far::clone(far);
                    Arc::make_mut(&mut far.status).insert("phase".to_owned(), Phase::Ended.word().into());
                    self.far(&far)
                };
                (before.as_ref().map(item), after.as_ref().map(item), before.as_ref().map(ended))
            }
        };
        let last = last.filter(|_| after.is_none());
        Change { version, before, after, last }
    }
}

fn item(metadata: ObjectMeta, spec: Value, status: Value) -> Item {
    let cells = cells(&metadata, &spec, &status, Timestamp::now());
    Item::new(&KIND, metadata, spec, status, cells)
}

/// What can be a label's value is one: names of users seldom can be, if they are addresses.
fn labels(entry: &Entry) -> std::collections::BTreeMap<String, String> {
    let facts = &entry.facts;
    let all = [
        ("user", facts.user.as_str()),
        ("pod", &facts.pod),
        ("container", &facts.container),
        ("node", &facts.node),
        ("subresource", facts.subresource),
    ];
    let fit = all.into_iter().filter(|(_, value)| !value.is_empty() && names::value(value).is_ok());
    fit.map(|(key, value)| (format!("{}/{key}", super::GROUP), value.to_owned())).collect()
}

/// An object of what is there: neither null nor empty.
fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let there = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    let fields = fields.into_iter().filter(|(_, value)| there(value));
    Value::Object(fields.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

fn spec(entry: &Entry) -> Value {
    let facts = &entry.facts;
    object([
        ("user", json!(facts.user)),
        ("impersonator", json!(facts.impersonator)),
        ("client", json!(facts.client.to_string())),
        ("subresource", json!(facts.subresource)),
        ("pod", json!(facts.pod)),
        ("container", json!(facts.container)),
        ("node", json!(facts.node)),
        ("command", json!(facts.command.words)),
        ("tty", json!(facts.tty)),
        ("stdin", json!(facts.stdin)),
    ])
}

/// `has` is the number of sessions that its person has.
fn status(
    entry: &Entry,
    state: &State,
    limits: &Limits,
    has: usize,
    replica: Option<&str>,
    now: Timestamp,
) -> Value {
    let terms = &state.terms;
    let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let slowed = state.meters.as_ref().and_then(|meters| meters.slowed()).map(|slowed| {
        object([
            ("since", json!(time(slowed.since))),
            ("heldUpSeconds", json!(slowed.held_up.as_secs())),
            ("by", json!(limits.bytes(slowed.by).map(|limit| limit.by.to_string()))),
        ])
    });
    object([
        ("phase", json!(state.phase.word())),
        ("message", json!(state.ending.as_ref().map(|(_, why)| why))),
        ("auditID", json!(entry.facts.audit_id)),
        ("clientProtocol", json!(state.carried.client_protocol)),
        ("farProtocol", json!(state.carried.far_protocol)),
        ("bytesUp", json!(state.meters.as_ref().map(|meters| meters.up.bytes()))),
        ("bytesDown", json!(state.meters.as_ref().map(|meters| meters.down.bytes()))),
        ("idleSeconds", json!(state.idle().map(|idle| idle.as_secs()))),
        ("recording", json!(state.carried.recording)),
        ("recordingRule", json!(state.carried.recording_rule)),
        ("replica", json!(replica)),
        ("rules", json!(terms.rules)),
        ("reason", json!(terms.reason)),
        ("grant", json!(terms.grant)),
        ("until", json!(terms.until.map(time))),
        ("slowed", json!(slowed)),
        ("limits", bounded_by(limits, |limit| json!(limit.most), |limit| json!(limit.most.as_secs()))),
        ("limitedBy", bounded_by(limits, |limit| by(&limit.by), |limit| by(&limit.by))),
        ("left", left(state, limits, has, now)),
    ])
}

/// What so many seconds make of a status in which nothing else has happened.
fn pass(status: &mut Map<String, Value>, seconds: u64) {
    let later = |value: &mut Value, by: fn(u64, u64) -> u64| {
        if let Some(then) = value.as_u64() {
            *value = by(then, seconds).into();
        }
    };
    if let Some(idle) = status.get_mut("idleSeconds") {
        later(idle, u64::saturating_add);
    }
    let left = status.get_mut("left").and_then(Value::as_object_mut);
    for (_, left) in left.into_iter().flatten().filter(|(name, _)| name.ends_with("Seconds")) {
        later(left, u64::saturating_sub);
    }
}

/// One value for each limit that there is; those of numbers, and those of times.
fn bounded_by(
    limits: &Limits,
    number: impl Fn(&Limit<u64>) -> Value,
    time: impl Fn(&Limit<Duration>) -> Value,
) -> Value {
    let sessions = limits.sessions_per_user.as_ref();
    let sessions = sessions.map(|limit| Limit { most: limit.most as u64, by: limit.by.clone() });
    object([
        ("bytesPerSecond", json!(limits.bytes_per_second.as_ref().map(&number))),
        ("bytesPerSecondPerUser", json!(limits.bytes_per_second_per_user.as_ref().map(&number))),
        ("bytesPerSecondInAll", json!(limits.bytes_per_second_in_all.as_ref().map(&number))),
        ("longestSeconds", json!(limits.longest.as_ref().map(&time))),
        ("idleSeconds", json!(limits.idle.as_ref().map(&time))),
        ("sessionsPerUser", json!(sessions.as_ref().map(&number))),
    ])
}

fn by(by: &By) -> Value {
    json!(by.to_string())
}

/// What is left of the limits that are used up.
fn left(state: &State, limits: &Limits, has: usize, now: Timestamp) -> Value {
    let (age, idle) = (state.meters.as_ref().map(|meters| meters.age()), state.idle());
    let time = |limit: &Option<Limit<Duration>>, used: Option<Duration>| {
        json!(limit.as_ref().map(|limit| limit.most.saturating_sub(used.unwrap_or_default()).as_secs()))
    };
    let sessions = limits.sessions_per_user.as_ref().map(|limit| limit.most.saturating_sub(has));
    let until = state.terms.until.map(|until| until.duration_since(now).as_secs().max(0));
    object([
        ("longestSeconds", time(&limits.longest, age)),
        ("idleSeconds", time(&limits.idle, idle)),
        ("sessionsPerUser", json!(sessions)),
        ("untilSeconds", json!(until)),
    ])
}

fn schema() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let number = |what: &str| json!({"type": "integer", "format": "int64", "description": what});
    let truth = |what: &str| json!({"type": "boolean", "description": what});
    let texts = |what: &str| json!({"type": "array", "items": {"type": "string"}, "description": what});
    let fields = |what: &str, properties: Value| json!({"type": "object", "description": what, "properties": properties});
    let limits = json!({
        "bytesPerSecond": number("Bytes per second and direction."),
        "bytesPerSecondPerUser": number("Those of all sessions together of whoever has opened it."),
        "bytesPerSecondInAll": number("Those of all sessions together."),
        "longestSeconds": number("How long it may last."),
        "idleSeconds": number("How long nothing of its own may pass."),
        "sessionsPerUser": number("Sessions at once of whoever has opened it."),
    });
    let limited_by = json!({
        "bytesPerSecond": text("The rule or the setting."),
        "bytesPerSecondPerUser": text("The rule or the setting."),
        "bytesPerSecondInAll": text("The rule or the setting."),
        "longestSeconds": text("The rule or the setting."),
        "idleSeconds": text("The rule or the setting."),
        "sessionsPerUser": text("The rule or the setting."),
    });
    let left = json!({
        "longestSeconds": number("Until it has lasted as long as it may."),
        "idleSeconds": number("Until it has been idle for as long as it may, if nothing passes."),
        "sessionsPerUser": number("Sessions that whoever has opened it may still open."),
        "untilSeconds": number("Until what allows it runs out."),
    });
    let slowed = json!({
        "since": text("When that began."),
        "heldUpSeconds": number("For how long in all."),
        "by": text("The rule or the setting that has, for the most part."),
    });
    json!({
        "spec": fields("What was asked for.", json!({
            "user": text("The caller."),
            "impersonator": text("Who acts as the caller."),
            "client": text("Address of the client."),
            "subresource": text("exec, attach or portforward."),
            "pod": text("The pod."),
            "container": text("The container."),
            "node": text("The pod's node."),
            "command": texts("The command; of a very long one the beginning."),
            "tty": truth("Whether there is a terminal."),
            "stdin": truth("Whether the client sends standard input."),
        })),
        "status": fields("How it is.", json!({
            "phase": text("Starting, Running or Ending; Ended in the last event of a watch."),
            "message": text("Why it is ending."),
            "auditID": text("Id of its request in the audit log."),
            "clientProtocol": text("Protocol of the client's side."),
            "farProtocol": text("Protocol of the far side."),
            "bytesUp": number("Bytes to the pod."),
            "bytesDown": number("Bytes from the pod."),
            "idleSeconds": number("How long nothing of its own has passed."),
            "recording": text("Id of the recording."),
            "recordingRule": text("The rule that demands it."),
            "replica": text("The replica of podgate that has it."),
            "rules": texts("Names of the rules that allow it."),
            "reason": text("Why its caller wants it."),
            "grant": text("The grant that it needs."),
            "until": text("When what allows it runs out."),
            "limits": fields("What bounds it.", limits),
            "limitedBy": fields("What has set each limit.", limited_by),
            "left": fields("What is left of limits that are used up.", left),
            "slowed": fields("That limits of bytes have held it up.", slowed),
        })),
    })
}

// --- as a row

fn cells(metadata: &ObjectMeta, spec: &Value, status: &Value, now: Timestamp) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = |value: &Value, between: &str| {
        let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        words.collect::<Vec<_>>().join(between)
    };
    let command = match text(&spec["subresource"]) {
        exec if exec == "exec" => words(&spec["command"], " "),
        other => format!("<{other}>"),
    };
    let user = match text(&spec["impersonator"]) {
        nobody if nobody.is_empty() => text(&spec["user"]),
        person => format!("{} (by {person})", text(&spec["user"])),
    };
    let short = |protocol: &Value| text(protocol).replace(".channel.k8s.io", "");
    let (client, far) = (short(&status["clientProtocol"]), short(&status["farProtocol"]));
    let protocol = if client == far { client } else { format!("{client} to {far}") };
    let phase = |phase: Phase| status["phase"] == phase.word();
    let idle = match status["idleSeconds"].as_i64() {
        _ if phase(Phase::Ended) => "ended".to_owned(),
        _ if phase(Phase::Ending) => "ending".to_owned(),
        Some(idle) => span(idle),
        None => "starting".to_owned(),
    };
    let bytes = |value: &Value| value.as_u64().unwrap_or(0);
    let moved = bytes(&status["bytesUp"]).saturating_add(bytes(&status["bytesDown"]));
    [
        metadata.name.clone().unwrap_or_default(),
        cell(&user),
        cell(&text(&spec["pod"])),
        cell(&text(&spec["container"])),
        cell(&command),
        metadata.creation_timestamp.as_ref().map_or_else(String::new, |Time(then)| since(*then, now)),
        idle,
        size(moved),
        cell(&text(&spec["node"])),
        cell(&text(&spec["client"])),
        cell(&text(&spec["subresource"])),
        cell(&protocol),
        cell(&text(&status["recording"])),
        cell(&words(&status["rules"], ",")),
        cell(&text(&status["reason"])),
        cell(&bounds(&status["limits"])),
        cell(&text(&status["replica"])),
    ]
    .map(Value::from)
    .into()
}

/// What a terminal can show of a text in a row.
fn cell(text: &str) -> String {
    if text.is_empty() {
        return "<none>".to_owned();
    }
    let mut text = safe::plain(text);
    if let Some((end, _)) = text.char_indices().nth(CELL) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// A number of bytes with two digits or three.
fn size(bytes: u64) -> String {
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10 * 1024 {
        tenths /= 1024;
        unit += 1;
    }
    let name = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][unit];
    match (unit, tenths) {
        (0, _) => bytes.to_string(),
        (_, ..100) => format!("{}.{}{name}", tenths / 10, tenths % 10),
        _ => format!("{}{name}", tenths / 10),
    }
}

fn bounds(limits: &Value) -> String {
    let seconds = |name: &str, value: &Value| value.as_i64().map(|limit| format!("{name} {}", span(limit)));
    let all = [
        limits["bytesPerSecond"].as_u64().map(|rate| format!("{}/s", size(rate))),
        seconds("longest", &limits["longestSeconds"]),
        seconds("idle", &limits["idleSeconds"]),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

// --- as it happens

/// Lines of JSON, each with its `kind`: what passes, `lost` in between for a watcher who is too slow, `end` at the end.
/// When podgate stops that is the moment in which the session is told, not that in which it is gone.
fn show(sessions: &Sessions, entry: &Arc<Entry>) -> Result<Response<Body>, Refusal> {
    let state = entry.state();
    let Some(meters) = &state.meters else {
        return Err(Refusal::TooManyRequests {
            message: format!("session {:?} is still being set up", entry.name),
            retry_after: WATCH_RETRY,
        });
    };
    let seen = meters.audience.watch().map_err(|error| match error {
        AudienceError::Full => {
            Refusal::TooManyRequests { message: error.to_string(), retry_after: WATCH_RETRY }
        }
        AudienceError::Over => KIND.not_found(&entry.name),
    })?;
    let head = json!({"kind": "session", "tty": entry.facts.tty, "subresource": entry.facts.subresource});
    let begin = stream::once(future::ready(line(&head)));
    let rest = stream::unfold(Some((seen, entry.clone(), sessions.clone())), |watcher| async move {
        let (mut seen, entry, sessions) = watcher?;
        let passed = tokio::select! {
            biased;
            () = sessions.cutting() => Err(STOPPED.to_owned()),
            line = next(&mut seen) => {
                line.ok_or_else(|| entry.state().ending.as_ref().map(|(_, why)| why.clone()).unwrap_or_default())
            }
        };
        Some(match passed {
            Ok(line) => (line, Some((seen, entry, sessions))),
            Err(why) => (line(&json!({"kind": "end", "message": why})), None),
        })
    });
    let frames = begin.chain(rest).map(|line| Ok::<_, Infallible>(Frame::data(line)));
    let body = StreamBody::new(frames).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    uncached(response.headers_mut());
    Ok(response)
}

async fn next(seen: &mut Receiver<Seen>) -> Option<Bytes> {
    Some(match seen.recv().await {
        Ok(Seen { kind: tape::Kind::Stdout, bytes }) => data("stdout", &bytes),
        Ok(Seen { kind: tape::Kind::Stderr, bytes }) => data("stderr", &bytes),
        Ok(Seen { kind, bytes }) => {
            let kind = if kind == tape::Kind::Resize { "resize" } else { "connection" };
            let what: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            line(&json!({"kind": kind, "is": what}))
        }
        Err(RecvError::Lagged(pieces)) => line(&json!({"kind": "lost", "pieces": pieces})),
        Err(RecvError::Closed) => return None,
    })
}

fn data(kind: &str, bytes: &[u8]) -> Bytes {
    line(&json!({"kind": kind, "data": STANDARD.encode(bytes)}))
}

fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_short_and_harmless() {
        assert_eq!(cell(""), "<none>");
        assert_eq!(cell("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(cell(&"x".repeat(50)), format!("{}...", "x".repeat(CELL)));
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1024, "1.0Ki"), (102_400, "100Ki"), (1_600_000, "1.5Mi")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "15Ei");
        let limits = json!({"bytesPerSecond": 1 << 20, "longestSeconds": 8 * 3600, "idleSeconds": 90});
        assert_eq!(bounds(&limits), "1.0Mi/s, longest 8h, idle 90s");
    }
}
