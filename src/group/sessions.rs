//! Sessions: those that are live now, as objects: to be listed and watched, and deleted, which ends them.
//!
//! What a session has moved and how long it is idle is as of the moment in which it is asked for; such changes are not told
//! to watchers, who see sessions begin, be told to end, and go.

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
use crate::authn::Caller;
use crate::cluster::Body;
use crate::recording::safe;
use crate::serving::table::{Column, since, span};
use crate::serving::{select, uncached};
use crate::session::limits::{By, Limit, Limits};
use crate::session::live::{Entry, Phase, Registry, State};
use crate::session::{Order, Sessions};
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
    ],
    description: "A session that is live now: an exec, attach or port-forward through podgate. Deleting it ends it.",
    schema,
};

static COLUMNS: [Column; 16] = [
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
];

/// The live sessions of this process.
pub struct LiveSessions {
    sessions: Sessions,
}

// === impl LiveSessions ===

impl LiveSessions {
    /// The sessions that these know.
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }

    fn registry(&self) -> &Registry {
        self.sessions.live()
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Arc<Entry>, Refusal> {
        self.registry().get(namespace, name).ok_or_else(|| KIND.not_found(name))
    }

    fn item(&self, entry: &Entry) -> Item {
        item(&self.sessions, entry, &entry.state())
    }
}

impl Resource for LiveSessions {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Result<Listed, Refusal>> {
        let (entries, version) = self.registry().list(namespace);
        let items = entries.iter().map(|entry| self.item(entry)).collect();
        future::ready(Ok(Listed { items, version })).boxed()
    }

    fn changes(&self, since: u64) -> BoxStream<'static, Result<Change, Refusal>> {
        let (sessions, changes) = (self.sessions.clone(), self.registry().changes(since));
        stream::unfold((sessions, changes), |(sessions, mut changes)| async move {
            let change = changes.next().await.map_err(|gone| Refusal::Expired(gone.to_string()));
            let change = change.map(|change| {
                let item = |state: &State| item(&sessions, &change.entry, state);
                let ended = |state: &State| State { phase: Phase::Ended, ..state.clone() };
                let gone = change.before.as_ref().filter(|_| change.after.is_none());
                Change {
                    version: change.version,
                    before: change.before.as_ref().map(item),
                    after: change.after.as_ref().map(item),
                    last: gone.map(|state| item(&ended(state))),
                }
            });
            Some((change, (sessions, changes)))
        })
        .boxed()
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Item, Refusal>> {
        future::ready(self.find(namespace, name).map(|entry| self.item(&entry))).boxed()
    }

    fn delete<'a>(
        &'a self,
        caller: &'a Caller,
        namespace: &'a str,
        name: &'a str,
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        let ended = self.find(namespace, name).and_then(|entry| {
            let version = entry.state().version.to_string();
            for (field, wanted, is) in
                [("UID", &options.uid, &entry.uid), ("ResourceVersion", &options.resource_version, &version)]
            {
                if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != is) {
                    let text = format!(
                        "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {is}"
                    );
                    return Err(Refusal::Conflict { text, about: KIND.about(name) });
                }
            }
            if !options.dry_run {
                self.registry().end(&entry, order(caller));
            }
            Ok(self.item(&entry))
        });
        future::ready(ended).boxed()
    }

    fn subresource<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        _subresource: &'a str,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        future::ready(self.find(namespace, name).and_then(|entry| show(&entry))).boxed()
    }
}

/// Who wants a session to end is the person, whoever they act as.
fn order(caller: &Caller) -> Order {
    let by = match caller.impersonator() {
        Some(person) => format!("{} as {}", person.name, caller.user().name),
        None => caller.user().name.clone(),
    };
    Order { reason: EndReason::Ended, why: format!("this session was ended by {by}") }
}

// --- as an object

fn item(sessions: &Sessions, entry: &Entry, state: &State) -> Item {
    let now = Timestamp::now();
    let limits = sessions.limits(&state.terms.limits);
    let has = sessions.of_user(entry.facts.person());
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
    let status = status(entry, state, &limits, has, now);
    Item::new(&KIND, metadata, spec(entry), status, cells(entry, state, &limits, now))
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
    let fit = all.into_iter().filter(|(_, value)| !value.is_empty() && select::is_label_value(value));
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
        ("command", json!(facts.command)),
        ("tty", json!(facts.tty)),
        ("stdin", json!(facts.stdin)),
    ])
}

/// `has` is the number of sessions that its person has.
fn status(entry: &Entry, state: &State, limits: &Limits, has: usize, now: Timestamp) -> Value {
    let terms = &state.terms;
    let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let slowed = state.meters.as_ref().and_then(|meters| meters.slowed()).map(|slowed| {
        object([("since", json!(time(slowed.since))), ("heldUpSeconds", json!(slowed.held_up.as_secs()))])
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
        "longestSeconds": number("How long it may last."),
        "idleSeconds": number("How long nothing of its own may pass."),
        "sessionsPerUser": number("Sessions at once of whoever has opened it."),
    });
    let limited_by = json!({
        "bytesPerSecond": text("The rule or the setting."),
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
            "rules": texts("Names of the rules that allow it."),
            "reason": text("Why its caller wants it."),
            "grant": text("The grant that it needs."),
            "until": text("When what allows it runs out."),
            "limits": fields("What bounds it.", limits),
            "limitedBy": fields("What has set each limit.", limited_by),
            "left": fields("What is left of limits that are used up.", left),
            "slowed": fields("That its limit of bytes has held it up.", slowed),
        })),
    })
}

// --- as a row

fn cells(entry: &Entry, state: &State, limits: &Limits, now: Timestamp) -> Vec<Value> {
    let (facts, carried, terms) = (&entry.facts, &state.carried, &state.terms);
    let command = match facts.subresource {
        "exec" => facts.command.join(" "),
        other => format!("<{other}>"),
    };
    let user = match facts.impersonator.is_empty() {
        true => facts.user.clone(),
        false => format!("{} (by {})", facts.user, facts.impersonator),
    };
    let short = |protocol: &str| protocol.replace(".channel.k8s.io", "");
    let (client, far) = (short(&carried.client_protocol), short(&carried.far_protocol));
    let protocol = if client == far { client } else { format!("{client} to {far}") };
    let idle = match (state.phase, state.idle()) {
        (Phase::Ended, _) => "ended".to_owned(),
        (Phase::Ending, _) => "ending".to_owned(),
        (_, Some(idle)) => span(i64::try_from(idle.as_secs()).unwrap_or(i64::MAX)),
        (_, None) => "starting".to_owned(),
    };
    [
        entry.name.clone(),
        cell(&user),
        cell(&facts.pod),
        cell(&facts.container),
        cell(&command),
        since(entry.created, now),
        idle,
        size(state.bytes()),
        cell(&facts.node),
        facts.client.to_string(),
        facts.subresource.to_owned(),
        cell(&protocol),
        cell(&carried.recording),
        cell(&terms.rules.join(",")),
        cell(terms.reason.as_deref().unwrap_or_default()),
        cell(&bounds(limits)),
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

fn bounds(limits: &Limits) -> String {
    let time = |name: &str, limit: &Option<Limit<Duration>>| {
        let seconds = i64::try_from(limit.as_ref()?.most.as_secs()).unwrap_or(i64::MAX);
        Some(format!("{name} {}", span(seconds)))
    };
    let all = [
        limits.bytes_per_second.as_ref().map(|rate| format!("{}/s", size(rate.most))),
        time("longest", &limits.longest),
        time("idle", &limits.idle),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

// --- as it happens

/// Lines of JSON, each with its `kind`: what passes, `lost` in between for a watcher who is too slow, `end` at the end.
fn show(entry: &Arc<Entry>) -> Result<Response<Body>, Refusal> {
    let state = entry.state();
    let Some(meters) = state.meters else {
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
    let rest = stream::unfold(Some((seen, entry.clone())), |watcher| async move {
        let (mut seen, entry) = watcher?;
        Some(match next(&mut seen).await {
            Some(line) => (line, Some((seen, entry))),
            None => {
                let why = entry.state().ending.map(|(_, why)| why).unwrap_or_default();
                (line(&json!({"kind": "end", "message": why})), None)
            }
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
        let by = By::Rule("p/a".into());
        let seconds = |seconds| Some(Limit { most: Duration::from_secs(seconds), by: by.clone() });
        let limits = Limits {
            bytes_per_second: Some(Limit { most: 1 << 20, by: by.clone() }),
            longest: seconds(8 * 3600),
            idle: seconds(90),
            sessions_per_user: None,
        };
        assert_eq!(bounds(&limits), "1.0Mi/s, longest 8h, idle 90s");
    }
}
