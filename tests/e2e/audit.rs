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

/// Differences that requests of all kinds may have, with words of `docs/audit.md`.
const OF_MANY: [(&str, &str); 4] = [
    ("/responseStatus/message", "API servers of old write neither the message nor the details of a Status"),
    ("/responseStatus/details", "API servers of old write neither the message nor the details of a Status"),
    ("/annotations/authorization.k8s.io/decision", "Decision and reason of what is forwarded"),
    ("/annotations/authorization.k8s.io/reason", "Decision and reason of what is forwarded"),
];

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
        if !OF_MANY.iter().any(|(of_many, _)| *of_many == field) {
            fields.insert(field.to_owned());
            texts.push(format!("  {field}: {one} of Kubernetes, {other} of podgate"));
        }
    };
    let stages = |events: &BTreeMap<String, Value>| format!("{:?}", events.keys().collect::<Vec<_>>());
    if stages(&kubernetes) != stages(&podgate) {
        differ("stages", stages(&kubernetes), stages(&podgate));
    }
    for (stage, one) in &kubernetes {
        if let Some(other) = podgate.get(stage) {
            pointers("", one, other, &mut differ);
        }
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
    if let Some(Value::Object(annotations)) = fields.get_mut("annotations") {
        annotations.retain(|key, _| !key.starts_with("podgate.dev/"));
    }
    fields.retain(|_, value| value.as_object().is_none_or(|fields| !fields.is_empty()));
    (stage, event)
}

/// Differences that are meant, of single requests.
pub(crate) fn known(mode: &str) -> Vec<Known> {
    let known: Vec<Known> = Vec::new();
    let _ = mode;
    let told = include_str!("../../docs/audit.md");
    for words in known.iter().map(|known| known.words).chain(OF_MANY.map(|(_, words)| words)) {
        assert!(told.contains(words), "docs/audit.md does not say: {words}");
    }
    known
}
