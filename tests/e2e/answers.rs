//! The answers of podgate beside those of the API server behind it: the same requests, byte for byte, of the same
//! callers. What differs must be in `docs/differences.md`, and what is there must differ.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::http::{Answer, Server};
use crate::report::Outcome;

/// Headers that say nothing about the answer: when it was, its number, how its body is framed (the body itself is
/// compared), and objects of the API server's own that dealt with it.
const HEADERS_OF_ONE_ANSWER: [&str; 6] = [
    "date",
    "audit-id",
    "content-length",
    "transfer-encoding",
    "x-kubernetes-pf-flowschema-uid",
    "x-kubernetes-pf-prioritylevel-uid",
];

/// Keys whose values differ with every request or moment.
const KEYS_OF_ONE_MOMENT: [&str; 4] = ["resourceVersion", "uid", "creationTimestamp", "time"];

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A service account with rights in the namespace.
    Alice,
    /// One without rights.
    Mallory,
    /// A token that nobody knows.
    Unknown,
    /// No credential.
    Nobody,
}

/// The tokens of those who have one.
pub(crate) struct Tokens {
    pub(crate) alice: String,
    pub(crate) mallory: String,
}

#[derive(Clone)]
pub(crate) struct Request {
    /// What it is, as a claim about it would begin.
    pub(crate) name: &'static str,
    caller: Caller,
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// A difference that is meant.
pub(crate) struct Known {
    /// The request's name.
    pub(crate) request: &'static str,
    /// What of the answer: `code`, `header NAME`, `body POINTER`, `text`.
    pub(crate) fields: &'static [&'static str],
    /// Words of `docs/differences.md` that tell it.
    pub(crate) words: &'static str,
}

/// Asks both, and compares.
pub(crate) async fn compare(
    request: &Request,
    tokens: &Tokens,
    servers: [&Server; 2],
    known: &[Known],
) -> Outcome {
    let bytes = request.bytes(tokens);
    let [kubernetes, podgate] = [servers[0].ask(&bytes).await, servers[1].ask(&bytes).await];
    let differences = differences(&kubernetes, &podgate);
    let fields: BTreeSet<_> = differences.iter().map(|(field, _)| field.as_str()).collect();
    let known = known.iter().find(|known| known.request == request.name);
    let meant = known.map(|known| known.fields.iter().copied().collect()).unwrap_or_default();
    assert!(
        fields == meant,
        "{} {}\n{}\n  meant to differ: {meant:?}",
        request.method,
        request.target,
        differences.iter().map(|(field, text)| format!("  {field}: {text}")).collect::<Vec<_>>().join("\n"),
    );
    match known {
        Some(known) => Outcome::Differs(known.words),
        None => Outcome::Same(kubernetes.code),
    }
}

/// What differs, by field, in words.
fn differences(kubernetes: &Answer, podgate: &Answer) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut differ = |field: String, one: String, other: String| {
        if one != other {
            all.push((field, format!("{one} of Kubernetes, {other} of podgate")));
        }
    };
    differ("code".to_owned(), kubernetes.code.to_string(), podgate.code.to_string());
    let names: BTreeSet<_> = [kubernetes, podgate].into_iter().flat_map(|answer| &answer.headers).collect();
    let names: BTreeSet<_> = names.into_iter().map(|(name, _)| name.as_str()).collect();
    for name in names.into_iter().filter(|name| !HEADERS_OF_ONE_ANSWER.contains(name)) {
        let values = |answer: &Answer| {
            let lines = answer.headers.iter().filter(|(have, _)| have == name);
            format!("{:?}", lines.map(|(_, value)| value).collect::<Vec<_>>())
        };
        differ(format!("header {name}"), values(kubernetes), values(podgate));
    }
    match (json(&kubernetes.body), json(&podgate.body)) {
        (Some(one), Some(other)) if one != other => {
            pointers("", &one, &other, &mut |pointer, one, other| {
                differ(format!("body {pointer}"), one, other)
            });
        }
        // The same in other words: another order of keys, or of blanks.
        (Some(_), Some(_)) => differ("text".to_owned(), steady(&kubernetes.body), steady(&podgate.body)),
        _ => {
            let text = |answer: &Answer| format!("{:?}", String::from_utf8_lossy(&answer.body));
            differ("text".to_owned(), text(kubernetes), text(podgate));
        }
    }
    all
}

/// All documents of a body, with what differs from moment to moment made the same.
fn json(body: &[u8]) -> Option<Value> {
    let documents = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let mut documents = Value::Array(documents.collect::<Result<_, _>>().ok()?);
    moments(&mut documents, &mut |value| *value = Value::Null);
    Some(documents)
}

/// The text of a body in JSON, likewise.
fn steady(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for mut document in serde_json::Deserializer::from_slice(body).into_iter::<Value>().map_while(Result::ok)
    {
        moments(&mut document, &mut |value| text = text.replace(&value.to_string(), "null"));
    }
    text
}

/// Calls with every value of one moment.
fn moments(value: &mut Value, see: &mut impl FnMut(&mut Value)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (KEYS_OF_ONE_MOMENT.contains(&key.as_str()), key.as_str(), &mut *value) {
                    (true, _, value) if !value.is_object() => see(value),
                    // A row of a table: one of its cells is the object's age.
                    (_, "cells", Value::Array(cells)) => {
                        cells.iter_mut().filter(|cell| is_age(cell)).for_each(&mut *see)
                    }
                    (_, _, value) => moments(value, see),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| moments(item, see)),
        _ => {}
    }
}

/// As in `4m7s`.
fn is_age(cell: &Value) -> bool {
    let text = cell.as_str().unwrap_or_default();
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|any| any.is_ascii_digit() || "smhdy".contains(any))
        && text.ends_with(|last: char| last.is_ascii_lowercase())
}

/// Calls with every pointer at which two values differ.
pub(crate) fn pointers(at: &str, one: &Value, other: &Value, differ: &mut impl FnMut(&str, String, String)) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let of =
                    |fields: &serde_json::Map<String, Value>| fields.get(key).cloned().unwrap_or_default();
                pointers(&format!("{at}/{key}"), &of(one), &of(other), differ);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                pointers(&format!("{at}/{index}"), one, other, differ);
            }
        }
        _ => differ(at, one.to_string(), other.to_string()),
    }
}

// === impl Request ===

impl Request {
    pub(crate) fn get(name: &'static str, target: String) -> Self {
        Self { name, caller: Caller::Alice, method: "GET", target, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn by(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    pub(crate) fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// A body in JSON, unless a header before says another type.
    pub(crate) fn body(mut self, method: &'static str, body: impl ToString) -> Self {
        self.body = body.to_string().into_bytes();
        self.method = method;
        match self.headers.iter().any(|(name, _)| *name == "Content-Type") {
            true => self,
            false => self.header("Content-Type", "application/json"),
        }
    }

    /// By POST, as kubectl asks for a session in SPDY.
    pub(crate) fn spdy(self) -> Self {
        self.spdy_of("v4.channel.k8s.io")
    }

    pub(crate) fn spdy_of(self, protocol: &str) -> Self {
        self.upgrade("POST", "SPDY/3.1").header("X-Stream-Protocol-Version", protocol)
    }

    pub(crate) fn websocket(self, protocol: &str) -> Self {
        self.upgrade("GET", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Sec-WebSocket-Protocol", protocol)
    }

    pub(crate) fn upgrade(self, method: &'static str, to: &str) -> Self {
        self.method(method).header("Connection", "Upgrade").header("Upgrade", to)
    }

    /// The whole request, with the caller's credential.
    pub(crate) fn bytes(&self, tokens: &Tokens) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: kubernetes\r\n", self.method, self.target);
        let token = match self.caller {
            Caller::Alice => Some(tokens.alice.as_str()),
            Caller::Mallory => Some(tokens.mallory.as_str()),
            Caller::Unknown => Some("nonsense"),
            Caller::Nobody => None,
        };
        if let Some(token) = token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() || ["POST", "PUT", "PATCH"].contains(&self.method) && self.headers.is_empty()
        {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }
}
