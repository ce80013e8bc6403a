//! Sheet: the form of the ConfigMaps.
//!
//! `sessions.INSTANCE.NUMBER` is a sheet: some sessions of a process, as `kubectl get -o yaml` shows them; sheet 0 has none
//! and is written when there is nothing else to write, so that others see that the process lives. `sessions.end.UID` is the
//! order to end the session of this uid. Whoever may write ConfigMaps of the namespace can write either, so all of it is
//! checked before it is used.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Identity;
use crate::group::GROUP;
use crate::serving::check_segment;
use crate::session::live::Far;

/// The label of each of these ConfigMaps; its value says which of both it is.
pub(super) const LABEL: &str = "podgate.dev/sessions";

/// The key behind which everything stands.
const DATA: &str = "sessions";

/// Bytes of the sessions of one sheet. A ConfigMap has 1 MiB at most, and the rest of a sheet is less than a kilobyte.
pub(super) const ROOM: usize = 900 * 1024;

/// Bytes of a name, at most: that of a DNS subdomain.
const MAX_NAME: usize = 253;

/// Bytes of who ended a session, at most, in what its client is told.
const MAX_BY: usize = 1024;

/// What is read of a ConfigMap.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigMap {
    pub(super) metadata: Metadata,
    data: Option<Data>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    labels: Option<Map<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    sessions: String,
}

/// What one of these ConfigMaps is by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A sheet: whose, and which.
    Sheet(String, u32),
    /// An order about the session of this uid.
    Order(String),
}

/// Some sessions of a process.
#[derive(Debug)]
pub(super) struct Sheet {
    /// The process's name, for people.
    pub(super) replica: String,
    /// The uid of its pod, if it is known.
    pub(super) pod: Option<String>,
    /// Seconds since its start.
    pub(super) up: u64,
    /// As they were told.
    pub(super) sessions: Vec<Told>,
}

/// A session in a sheet.
#[derive(Debug)]
pub(super) struct Told {
    /// When it was so, in seconds since the start of the process.
    at: u64,
    namespace: String,
    name: String,
    uid: String,
    revision: String,
    metadata: Arc<ObjectMeta>,
    spec: Arc<Map<String, Value>>,
    status: Arc<Map<String, Value>>,
}

/// An order to end a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// The process that has it.
    pub(super) instance: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Who gave it.
    pub(super) by: String,
    /// When, in seconds since the start of that process.
    pub(super) at: u64,
}

#[derive(Serialize)]
struct Written<'a> {
    replica: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    up: u64,
    sessions: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Read {
    replica: String,
    #[serde(default)]
    pod: Option<String>,
    up: u64,
    sessions: Vec<Line>,
}

/// A line of a sheet: a session, and when it was as it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct Line<S = Session> {
    pub(super) at: u64,
    pub(super) session: S,
}

#[derive(Deserialize)]
pub(super) struct Session {
    metadata: ObjectMeta,
    spec: Arc<Map<String, Value>>,
    status: Arc<Map<String, Value>>,
}

/// Why a ConfigMap is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("its name is none of ours")]
    Name,
    #[error("it has no data that can be read")]
    Unreadable(#[source] serde_json::Error),
    #[error("the name of its replica is too long")]
    Replica,
    #[error("a session in it has no name, or one that is none")]
    Session,
    #[error("it is about another session than its name says")]
    Misnamed,
    #[error("there are too many others")]
    Crowded,
}

// === impl ConfigMap ===

impl ConfigMap {
    /// Whether it is one of these at all.
    pub(super) fn is_ours(&self) -> bool {
        self.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL))
    }

    /// Everything that it says.
    pub(super) fn text(&self) -> &str {
        self.data.as_ref().map_or("", |data| &data.sessions)
    }
}

// === impl Name ===

impl Name {
    pub(super) fn parse(name: &str) -> Result<Self, Unusable> {
        let rest = name.strip_prefix("sessions.").ok_or(Unusable::Name)?;
        let (first, last) = rest.split_once('.').ok_or(Unusable::Name)?;
        if first == "end" {
            return Ok(Self::Order(last.to_owned()));
        }
        let number = last.parse().map_err(|_| Unusable::Name)?;
        let parsed = Self::Sheet(first.to_owned(), number);
        // Numbers can be written in several ways.
        if parsed.to_string() == name { Ok(parsed) } else { Err(Unusable::Name) }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sheet(instance, number) => write!(f, "sessions.{instance}.{number}"),
            Self::Order(uid) => write!(f, "sessions.end.{uid}"),
        }
    }
}

/// The ConfigMap of this name.
fn map(name: &Name, me: &Identity, text: String) -> Value {
    let kind = if matches!(name, Name::Order(_)) { "order" } else { "sheet" };
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name.to_string(), "namespace": me.namespace, "labels": {LABEL: kind}},
        "data": {DATA: text},
    });
    if let (Name::Sheet(..), Some(uid)) = (name, &me.pod_uid) {
        // The cluster takes it away with the pod.
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": me.replica, "uid": uid});
        map["metadata"]["ownerReferences"] = json!([owner]);
    }
    map
}

// === impl Sheet ===

impl Sheet {
    /// A ConfigMap with these sessions, and what it says.
    pub(super) fn map<'a>(
        name: &Name,
        me: &Identity,
        up: u64,
        sessions: impl Iterator<Item = &'a RawValue>,
    ) -> (Value, String) {
        let written =
            Written { replica: &me.replica, pod: me.pod_uid.as_deref(), up, sessions: sessions.collect() };
        let text = serde_json::to_string(&written).expect("texts and numbers are JSON");
        (map(name, me, text.clone()), text)
    }

    pub(super) fn read(text: &str) -> Result<Self, Unusable> {
        let Read { replica, pod, up, sessions } = serde_json::from_str(text).map_err(Unusable::Unreadable)?;
        if replica.len() > MAX_NAME {
            return Err(Unusable::Replica);
        }
        let sessions = sessions.into_iter().map(Told::read).collect::<Result<_, _>>()?;
        Ok(Self { replica, pod, up, sessions })
    }
}

// === impl Told ===

impl Told {
    fn read(line: Line) -> Result<Self, Unusable> {
        let Line { at, session: Session { metadata, spec, status } } = line;
        let is_name = |name: &str| {
            (1..=MAX_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic())
                && check_segment(name).is_ok()
        };
        let named = |name: &Option<String>| name.clone().filter(|name| is_name(name));
        let ObjectMeta { name, namespace, uid, resource_version, .. } = &metadata;
        let all = (named(namespace), named(name), named(uid), named(resource_version));
        let (Some(namespace), Some(name), Some(uid), Some(revision)) = all else {
            return Err(Unusable::Session);
        };
        let prefix = format!("{GROUP}/");
        let mut labels = metadata.labels.unwrap_or_default();
        labels.retain(|label, _| label.starts_with(&prefix));
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            uid: Some(uid.clone()),
            creation_timestamp: metadata.creation_timestamp.or(Some(Time(Timestamp::UNIX_EPOCH))),
            deletion_grace_period_seconds: metadata.deletion_timestamp.as_ref().map(|_| 0),
            deletion_timestamp: metadata.deletion_timestamp,
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        let metadata = Arc::new(metadata);
        Ok(Self { at, namespace, name, uid, revision, metadata, spec, status })
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// Whether it says more than `other`, which is of the same session.
    pub(super) fn is_newer(&self, other: &Self) -> bool {
        self.at > other.at
    }

    /// As the list has it, where its process has been up for so long.
    pub(super) fn far(&self, instance: Arc<str>, up: Duration) -> Far {
        let now = Instant::now();
        let ago = up.saturating_sub(Duration::from_secs(self.at));
        Far {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            instance,
            revision: self.revision.clone(),
            version: 0,
            metadata: self.metadata.clone(),
            spec: self.spec.clone(),
            status: self.status.clone(),
            told: now.checked_sub(ago).unwrap_or(now),
        }
    }
}

// === impl Order ===

impl Order {
    pub(super) fn new(far: &Far, by: &str, at: u64) -> Self {
        Self {
            instance: far.instance.to_string(),
            namespace: far.namespace.clone(),
            name: far.name.clone(),
            uid: far.uid.clone(),
            by: by[..by.floor_char_boundary(MAX_BY)].to_owned(),
            at,
        }
    }

    pub(super) fn map(&self, me: &Identity) -> Value {
        let text = serde_json::to_string(self).expect("texts and numbers are JSON");
        map(&Name::Order(self.uid.clone()), me, text)
    }

    /// The order about the session of this uid.
    pub(super) fn read(uid: &str, text: &str) -> Result<Self, Unusable> {
        let mut order: Self = serde_json::from_str(text).map_err(Unusable::Unreadable)?;
        order.by.truncate(order.by.floor_char_boundary(MAX_BY));
        if order.uid == uid { Ok(order) } else { Err(Unusable::Misnamed) }
    }
}
