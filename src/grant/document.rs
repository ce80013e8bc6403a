//! Document: a grant as an object of the API, and what it selects.
//!
//! Every field of a specification is known or an error: a misspelled limit must not quietly be none. What clients say of
//! metadata that podgate does not keep (`managedFields`, finalizers, owners) is dropped.
//! Source: Kubernetes API conventions, "Metadata", "Spec and Status".

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GROUP, KIND, VERSION, Who};
use crate::request::Subresource;
use crate::selector::{Command, LabelSelector, Pattern, list};
use crate::status::Refusal;

/// Bytes of a grant as JSON at most, as a client sends it and as it is kept: some hundred labels and names, and once more
/// the annotation in which `kubectl apply` repeats all of it.
pub const MAX_BYTES: usize = 64 * 1024;

/// A grant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Grant {
    /// `podgate.dev/v1alpha1`
    pub api_version: String,
    /// `Grant`
    pub kind: String,
    /// Its name, and what people note on it.
    pub metadata: Metadata,
    /// What is asked for.
    pub spec: Spec,
    /// What became of it; podgate's own to write.
    pub status: Status,
}

/// What podgate keeps of `metav1.ObjectMeta`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Its name; unique in its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The beginning of a name that podgate is to make.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    /// The namespace of the pods it is about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Unique across time.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The store's version of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Counts specifications.
    pub generation: u64,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// For whom.
    pub subject: Subject,
    /// Into what.
    pub selector: Selector,
    /// Why.
    pub reason: String,
    /// From then on it holds no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// How long it holds once it is approved, where no instant is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<Length>,
}

/// For whom: one user, or everybody in one group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subject {
    /// A user's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A group's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Into what: all that is said has to hold, in the grant's own namespace. Pods are told by their labels and not by their
/// names, so that a grant outlives a rollout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    /// Labels of the pods.
    #[serde(skip_serializing_if = "LabelSelector::is_empty")]
    pub pod_labels: LabelSelector,
    /// Containers.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Pattern>,
    /// Doors into them.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub subresources: Vec<Subresource>,
    /// The command of an exec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// That every pod is meant, which has to be said.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,
}

/// A length of time as people write it, such as `2h` or `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length(pub Duration);

/// What became of a grant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// In one word.
    pub phase: Phase,
    /// Who asked for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requested_by: String,
    /// Whom they impersonated then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_as: Option<String>,
    /// When they asked for what is in the specification now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
    /// Who approved that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Verdict>,
    /// Who denied it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied: Option<Verdict>,
    /// From then on it holds no more; known once it is approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A grant in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nobody has approved it.
    #[default]
    Pending,
    /// It lets its subject in.
    Active,
    /// It has run out, approved or not.
    Expired,
    /// Somebody said no.
    Denied,
}

/// What somebody said about a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Who.
    pub by: String,
    /// Whom they impersonated.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub acting_as: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What somebody wants to do, as far as selectors are about it.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The container; empty for a port-forward.
    pub container: &'a str,
    /// Which of the three.
    pub subresource: Subresource,
    /// The argument vector of an exec.
    pub command: &'a [Vec<u8>],
}

// === impl Grant ===

impl Grant {
    /// Reads what a client sent. JSON's null is nothing, as in Go; what is said of the status is not read.
    ///
    /// # Errors
    /// 400 in the API server's words.
    pub fn read(mut object: Value) -> Result<Self, Refusal> {
        drop_nulls(&mut object);
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        let said = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (said("apiVersion"), said("kind"));
        let bad = |what: String| {
            Refusal::BadRequest(format!(
                "{KIND} in version {VERSION:?} cannot be handled as a {KIND}: {what}"
            ))
        };
        // Older clients leave both out.
        if !version.is_empty() && version != api_version() {
            let what = "the API version in the data does not match the expected API version";
            return Err(Refusal::BadRequest(format!("{what} ({})", api_version())));
        }
        if !kind.is_empty() && kind != KIND {
            return Err(bad(format!("the kind is {kind:?}")));
        }
        let mut read: Self = serde_path_to_error::deserialize(object).map_err(|error| {
            let (path, mut what) = (error.path().to_string(), error.into_inner().to_string());
            // It may quote what was sent, at any length.
            what.truncate(what.floor_char_boundary(MAX_TOLD));
            bad(format!("{path}: {what}"))
        })?;
        read.api_version = api_version();
        read.kind = KIND.to_owned();
        read.spec.until = read.spec.until.map(whole);
        Ok(read)
    }

    /// The object as clients see it.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("strings, numbers and maps with string keys are JSON")
    }

    /// In one word, at this moment, if nothing more is known of it than this.
    pub fn phase(&self, now: Timestamp) -> Phase {
        match &self.status {
            Status { denied: Some(_), .. } => Phase::Denied,
            Status { phase: Phase::Expired, .. } => Phase::Expired,
            _ if self.end() <= now => Phase::Expired,
            Status { approvals, .. } if !approvals.is_empty() => Phase::Active,
            _ => Phase::Pending,
        }
    }

    /// From then on nothing can come of it: its last instant, or the last one at which somebody can say yes.
    pub fn end(&self) -> Timestamp {
        let asked = self.status.requested_at.or(self.metadata.creation_timestamp).unwrap_or_default();
        let unanswered = || after(asked, ANSWER_WITHIN);
        self.status.until.or(self.spec.until).unwrap_or_else(unanswered)
    }
}

/// How long a request without an instant waits for somebody who approves it: over a holiday.
const ANSWER_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Bytes of a reader's complaint at most, in a refusal.
const MAX_TOLD: usize = 512;

/// `group/version`.
pub fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

/// Later by so much, or at the end of time.
pub(super) fn after(instant: Timestamp, length: Duration) -> Timestamp {
    instant.saturating_add(length).unwrap_or(Timestamp::MAX)
}

/// Kubernetes tells times in whole seconds.
pub(super) fn whole(instant: Timestamp) -> Timestamp {
    Timestamp::from_second(instant.as_second()).unwrap_or(instant)
}

/// The recursion is as deep as the reader of JSON lets a text be.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(all) => all.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

// === impl Subject ===

impl Subject {
    /// Whether it is for this person: for the impersonator, where there is one. Nobody gets at another's grant by
    /// impersonating them.
    pub fn covers(&self, who: Who<'_>) -> bool {
        self.is(who.acting())
    }

    /// Whether it is about anything that somebody is.
    pub fn touches(&self, who: Who<'_>) -> bool {
        who.all().any(|user| self.is(user))
    }

    fn is(&self, user: &crate::cluster::User) -> bool {
        self.user.as_ref() == Some(&user.name)
            || self.group.as_ref().is_some_and(|group| user.groups.contains(group))
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.user, &self.group) {
            (Some(user), _) => f.write_str(user),
            (None, Some(group)) => write!(f, "group {group}"),
            (None, None) => Ok(()),
        }
    }
}

// === impl Selector ===

impl Selector {
    /// Whether it is about this.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let Self { pod_labels, containers, subresources, command, everything: _ } = self;
        let container = || containers.iter().any(|container| container.fits(facts.container));
        pod_labels.fits(facts.labels)
            && (containers.is_empty() || !facts.container.is_empty() && container())
            && (subresources.is_empty() || subresources.contains(&facts.subresource))
            && command.as_ref().is_none_or(|command| command.fits(facts.command))
    }

    /// Whether it leaves out anything, other than by what pods are not.
    pub(super) fn is_narrow(&self) -> bool {
        let containers = !self.containers.is_empty() && self.containers.iter().all(Pattern::is_narrow);
        self.pod_labels.is_narrow() || containers || self.command.as_ref().is_some_and(Command::is_narrow)
    }
}

/// As `kubectl get -l` would have it.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.everything {
            parts.push("everything".to_owned());
        }
        if !self.pod_labels.is_empty() {
            parts.push(self.pod_labels.to_string());
        }
        if !self.containers.is_empty() {
            let containers: Vec<_> = self.containers.iter().map(Pattern::as_str).collect();
            parts.push(format!("containers={}", containers.join("|")));
        }
        if !self.subresources.is_empty() {
            let subresources: Vec<_> = self.subresources.iter().map(|one| one.as_str()).collect();
            parts.push(subresources.join("|"));
        }
        parts.extend(self.command.iter().map(|command| format!("command={command}")));
        f.write_str(&parts.join(","))
    }
}

// === impl Length ===

impl Serialize for Length {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.parse::<SignedDuration>().ok().and_then(|length| Duration::try_from(length).ok());
        let bad = || serde::de::Error::custom(format!("{text:?} is no length of time, such as 2h or 1h30m"));
        parsed.map(Self).ok_or_else(bad)
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length = SignedDuration::try_from(self.0).unwrap_or(SignedDuration::MAX);
        f.write_str(&format!("{length:#}").replace(' ', ""))
    }
}

// === impl Phase ===

impl Phase {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Active => "Active",
            Self::Expired => "Expired",
            Self::Denied => "Denied",
        }
    }
}

// === impl Verdict ===

impl Verdict {
    pub(super) fn of(who: Who<'_>, now: Timestamp) -> Self {
        Self { by: who.person().to_owned(), acting_as: who.acts_as().map(str::to_owned), at: now }
    }

    /// Whether somebody said it, under any of their names.
    pub(super) fn is_of(&self, who: Who<'_>) -> bool {
        who.is_called(&self.by) || self.acting_as.as_ref().is_some_and(|name| who.is_called(name))
    }
}
