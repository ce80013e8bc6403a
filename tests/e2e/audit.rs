//! The audit events of podgate beside those of the API server behind it, of the same requests, field by field. What
//! differs must be in `docs/audit.md`, and what is there of one request must differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::answers::{Request, Tokens, pointers};
use crate::http::Server;
use crate::report::Outcome;

/// How long the last event of a request may take. Of some requests there is none, which takes as long.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// Why nothing is compared.
pub(crate) const NO_LOG: &str = "PODGATE_E2E_AUDIT_LOG does not say where the API server's audit log is, of all requests at level Metadata";

/// What differs with every request or moment.
const OF_ONE_MOMENT: [&str; 3] = ["auditID", "requestReceivedTimestamp", "stageTimestamp"];

/// What is told of the differences, and of what podgate alone knows.
const TOLD: &str = include_str!("../../docs/audit.md");

/// Where events of both are written.
pub(crate) struct Logs<'a> {
    pub(crate) kubernetes: &'a Path,
    pub(crate) podgate: &'a Path,
}

/// A difference that is meant.
pub(crate) struct Known {
    /// The request's name.
    pub(crate) request: &'static str,
    /// What of the events: `stages`, or a JSON pointer.
    pub(crate) fields: &'static [&'static str],
    /// Words of `docs/audit.md` that tell it.
    pub(crate) words: &'static str,
}

/// What API servers of some age leave out, with the words of `docs/audit.md` for it.
const NOT_OF_OLD: &[&str] = &["/responseStatus/message", "/responseStatus/details"];
const OLD: &str = "API servers of old write neither the message nor the details of a Status";

/// What podgate leaves out of requests that are no session.
const NOT_OF_FORWARDED: &[&str] =
    &["/annotations/authorization.k8s.io/decision", "/annotations/authorization.k8s.io/reason"];
const FORWARDED: &str = "Decision and reason of what is forwarded";

/// What is a session.
const SESSIONS: [&str; 3] = ["exec", "attach", "portforward"];

/// Asks both, and compares what they write about it.
pub(crate) async fn compare(
    request: &Request,
    tokens: &Tokens,
    servers: [&Server; 2],
    logs: &Logs<'_>,
    known: &[Known],
) -> Outcome {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    let id = |who: &str| format!("e2e-{:016x}-{who}", u64::from_ne_bytes(random));
    let ids = [id("kubernetes"), id("podgate")];
    for (server, id) in servers.into_iter().zip(&ids) {
        server.ask(&request.clone().header("Audit-ID", id).bytes(tokens)).await;
    }
    let kubernetes = events(logs.kubernetes, &ids[0]).await;
    let podgate = events(logs.podgate, &ids[1]).await;
    let (mut fields, mut texts) = (BTreeSet::new(), Vec::new());
    let mut differ = |field: &str, one: String, other: String| {
        if one != other {
            fields.insert(field.to_owned());
            texts.push(format!("  {field}: {one} of Kubernetes, {other} of podgate"));
        }
    };
    let stages = |events: &BTreeMap<String, Value>| format!("{:?}", events.keys().collect::<Vec<_>>());
    differ("stages", stages(&kubernetes), stages(&podgate));
    for (stage, one) in &kubernetes {
        let Some(other) = podgate.get(stage) else { continue };
        let session = SESSIONS.iter().any(|name| one["objectRef"]["subresource"] == *name);
        pointers("", one, other, &mut |field, one, other| {
            let left_out = NOT_OF_OLD.contains(&field) && one == "null"
                || NOT_OF_FORWARDED.contains(&field) && other == "null" && !session;
            if !left_out {
                differ(field, one, other);
            }
        });
    }
    let known = known.iter().find(|known| known.request == request.name);
    let meant: BTreeSet<_> =
        known.map_or(&[][..], |known| known.fields).iter().map(|&one| one.to_owned()).collect();
    assert!(fields == meant, "\n{}\n  meant to differ: {meant:?}", texts.join("\n"));
    match known {
        Some(known) => Outcome::Differs(known.words),
        None => Outcome::Works,
    }
}

/// The events of a request by their stages, without what is of the moment and what only podgate can know.
async fn events(log: &Path, id: &str) -> BTreeMap<String, Value> {
    let mut events = BTreeMap::new();
    let found = async {
        loop {
            let text = std::fs::read_to_string(log).unwrap();
            let lines = text.lines().filter(|line| line.contains(id));
            events = lines.map_while(|line| serde_json::from_str::<Value>(line).ok()).map(steady).collect();
            let unknown = |event: &Value| event["responseStatus"]["code"] == 401;
            if events.contains_key("ResponseComplete") || events.get("ResponseStarted").is_some_and(unknown) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    // What is there by then is all there is.
    let _ = tokio::time::timeout(PATIENCE, found).await;
    events
}

fn steady(mut event: Value) -> (String, Value) {
    let stage = event["stage"].as_str().unwrap().to_owned();
    let fields = event.as_object_mut().unwrap();
    fields.retain(|key, _| !OF_ONE_MOMENT.contains(&key.as_str()));
    let annotations = fields.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
    annotations.as_object_mut().unwrap().retain(|key, _| match key.strip_prefix("podgate.dev/") {
        None => true,
        Some(own) => {
            assert!(TOLD.contains(&format!("`{own}`")), "docs/audit.md does not tell of {key}");
            false
        }
    });
    (stage, event)
}

const CODE: &[&str] = &["/responseStatus/code", "/responseStatus/reason"];
const STATUS: &[&str] = &["/responseStatus/reason", "/responseStatus/status"];
const ALL: &[&str] = &["/responseStatus/code", "/responseStatus/reason", "/responseStatus/status"];

const REFUSED_HERE: &str = "What podgate refuses and kube-apiserver would not, or with another code";
const UNREAD: &str = "A Status that is answered in YAML or protobuf, or to HEAD";

/// Differences that are meant, of single requests.
pub(crate) fn known(mode: &str) -> Vec<Known> {
    let differs = |request, fields, words| Known { request, fields, words };
    let mut known = vec![
        differs("exec that upgrades to h2c", ALL, REFUSED_HERE),
        differs("exec with two protocols to upgrade to", ALL, REFUSED_HERE),
        differs("exec with a body", ALL, REFUSED_HERE),
        differs("exec behind two slashes", STATUS, REFUSED_HERE),
        differs("exec behind dots", CODE, REFUSED_HERE),
        differs("exec escaped twice", CODE, REFUSED_HERE),
        differs("exec with a capital", CODE, REFUSED_HERE),
        differs("impersonation of a group without a user", ALL, REFUSED_HERE),
        differs("get in HTML", STATUS, "A Status about what the client accepts"),
        differs("get of a missing pod in YAML", STATUS, UNREAD),
        differs("get by HEAD", STATUS, UNREAD),
        differs("/version by HEAD", STATUS, UNREAD),
        differs("create of another kind", &["/objectRef/name"], "also where it is then refused"),
        differs("create that is forbidden", &["/objectRef/name"], "also where it is then refused"),
        differs("a broken escape", &["stages"], "Requests refused before anybody is known"),
    ];
    for watch in ["watch", "watch as a table", "watch from a version that is gone"] {
        known.push(differs(
            watch,
            &["/responseStatus/message", "/responseStatus/status"],
            "`Connection closed early` when it ends",
        ));
    }
    if mode == "apiserver" {
        let words = "In `upstream.mode: apiserver`, a session that the API server refuses";
        known.push(differs("exec in a pod on a missing node", ALL, words));
    }
    for words in known.iter().map(|known| known.words).chain([OLD, FORWARDED]) {
        assert!(TOLD.contains(words), "docs/audit.md does not say: {words}");
    }
    known
}
