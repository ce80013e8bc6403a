//! Rules: what may be asked for, who may say yes to it, and what a change takes away. Pure: no store, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::document::{Grant, MAX_BYTES, Phase, Selector, Status, Verdict, after, whole};
use super::{APPROVE, GROUP, KIND, RESOURCE, Who};
use crate::authn::ANONYMOUS;
use crate::request::Subresource;
use crate::selector::{Command, LabelSelector, names};
use crate::status::{About, Cause, Refusal, go_quote};

/// Bytes of a grant's name at most, so that with a namespace before it, it is the name of the ConfigMap that keeps it.
const MAX_NAME: usize = 128;

/// Bytes of a namespace at most, as of a DNS label.
const MAX_NAMESPACE: usize = 63;

/// Bytes of a user's or a group's name at most: the longest that a certificate or an issuer is likely to name.
const MAX_SUBJECT: usize = 512;

/// Bytes of a reason at most: a sentence or two. It goes into audit events.
const MAX_REASON: usize = 1024;

/// Labels, expressions, values of one, containers and words of a command at most, each: people write these.
const MAX_LISTED: usize = 64;

/// Bytes of one word at most.
const MAX_WORD: usize = 4096;

/// Approvals of a grant that are kept. One is enough for it to count.
const MAX_APPROVALS: usize = 8;

/// What becomes of a grant that somebody changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is this now.
    To(Box<Grant>),
    /// Somebody approves or denies it, and does nothing else.
    Verdict {
        /// Which of both.
        approve: bool,
    },
}

/// A new grant, as somebody asks for it.
///
/// # Errors
/// 422 with everything that is wrong with it; 403 for somebody without a name.
pub fn create(who: Who<'_>, mut asked: Grant, now: Timestamp, longest: Duration) -> Result<Grant, Refusal> {
    let now = whole(now);
    let name = asked.metadata.name.clone();
    if who.is_called(ANONYMOUS) {
        return Err(forbidden(&name, "nobody can ask for a grant without saying who they are"));
    }
    let mut causes = wrong(&asked, now, longest);
    if asked.metadata.annotations.contains_key(APPROVE) {
        let field = format!("metadata.annotations[{APPROVE}]");
        let text = "a grant is approved by somebody else, once it is there";
        causes.push(cause(&field, FORBIDDEN, format!("Forbidden: {text}")));
    }
    if !causes.is_empty() {
        return Err(invalid(&name, causes));
    }
    asked.metadata.uid = uuid::Uuid::new_v4().to_string();
    asked.metadata.resource_version.clear();
    asked.metadata.generate_name.clear();
    asked.metadata.generation = 1;
    asked.metadata.creation_timestamp = Some(now);
    asked.status = requested(who, now);
    Ok(asked)
}

/// What becomes of a grant that somebody wants to be another.
///
/// # Errors
/// 400, 403 and 422: what is not theirs to change, what is wrong with it, a verdict with something else beside it.
pub fn update(
    who: Who<'_>,
    old: &Grant,
    mut new: Grant,
    now: Timestamp,
    longest: Duration,
) -> Result<Change, Refusal> {
    let name = &old.metadata.name;
    let fixed = |field: &str, old: &str, new: &str| {
        let quoted = go_quote(new.as_bytes());
        (!new.is_empty() && old != new)
            .then(|| cause(field, INVALID, format!("Invalid value: {quoted}: field is immutable")))
    };
    let causes: Vec<_> = [
        fixed("metadata.name", name, &new.metadata.name),
        fixed("metadata.namespace", &old.metadata.namespace, &new.metadata.namespace),
        fixed("metadata.uid", &old.metadata.uid, &new.metadata.uid),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !causes.is_empty() {
        return Err(invalid(name, causes));
    }
    let verdict = new.metadata.annotations.remove(APPROVE);
    let (labels, annotations) = (new.metadata.labels, new.metadata.annotations);
    new.metadata = super::document::Metadata { labels, annotations, ..old.metadata.clone() };
    new.status = old.status.clone();
    if let Some(verdict) = verdict {
        let approve = match verdict.as_str() {
            "yes" => true,
            "no" => false,
            _ => {
                let quoted = go_quote(shown(&verdict).as_bytes());
                let text = format!("Unsupported value: {quoted}: supported values: \"yes\", \"no\"");
                let field = format!("metadata.annotations[{APPROVE}]");
                return Err(invalid(name, vec![cause(&field, "FieldValueNotSupported", text)]));
            }
        };
        if new != *old {
            return Err(Refusal::BadRequest(format!(
                "the annotation {APPROVE} approves or denies a grant as it is; nothing else can be changed with it"
            )));
        }
        return Ok(Change::Verdict { approve });
    }
    if new.spec != old.spec {
        if who.person() != old.status.requested_by {
            let text = format!("only {} can change what they asked for", quote(&old.status.requested_by));
            return Err(forbidden(name, &text));
        }
        let now = whole(now);
        new.metadata.generation = old.metadata.generation.saturating_add(1);
        // What was approved, or denied, was something else.
        new.status = requested(who, now);
    }
    let causes = match new.spec == old.spec {
        // What was fine then may be in the past by now.
        true => wrong_metadata(&new),
        false => wrong(&new, now, longest),
    };
    if causes.is_empty() { Ok(Change::To(Box::new(new))) } else { Err(invalid(name, causes)) }
}

/// The grant once somebody has approved or denied it. `phase` is what it is just now.
///
/// # Errors
/// 403 and 409: whose approval does not count, and what nothing can come of any more.
pub fn decide(
    who: Who<'_>,
    old: &Grant,
    phase: Phase,
    approve: bool,
    now: Timestamp,
) -> Result<Grant, Refusal> {
    let (name, mut new) = (&old.metadata.name, old.clone());
    let verdict = Verdict::of(who, whole(now));
    if phase == Phase::Expired {
        return Err(forbidden(name, "it has expired; ask for another one"));
    }
    if !approve {
        if new.status.denied.is_none() {
            new.status.denied = Some(verdict);
        }
        new.status.phase = Phase::Denied;
        return Ok(new);
    }
    if let Some(denied) = &old.status.denied {
        let text = format!("{} has denied it; ask for another one", quote(&denied.by));
        return Err(forbidden(name, &text));
    }
    if who.is_called(ANONYMOUS) {
        return Err(forbidden(name, "nobody can approve a grant without saying who they are"));
    }
    let asked = |name: &String| who.is_called(name);
    if asked(&old.status.requested_by) || old.status.requested_as.as_ref().is_some_and(asked) {
        return Err(forbidden(name, "a second person has to approve it, not the one who asked for it"));
    }
    if old.spec.subject.touches(who) {
        return Err(forbidden(name, "a second person has to approve it, not one whom it lets in"));
    }
    if old.status.approvals.iter().any(|approval| approval.by == verdict.by) {
        return Ok(new);
    }
    if old.status.approvals.len() >= MAX_APPROVALS {
        return Err(forbidden(name, "it has been approved often enough"));
    }
    let lasts = |length: super::document::Length| after(whole(now), length.0);
    new.status.until = old.status.until.or(old.spec.until).or(old.spec.duration.map(lasts));
    new.status.approvals.push(verdict);
    new.status.phase = Phase::Active;
    Ok(new)
}

/// Whether what is there lets somebody in, as far as it is about who they are and who said yes. Whoever said yes does not
/// get in by that, even when they have become one of those whom it is about.
pub fn lets_in(grant: &Grant, who: Who<'_>) -> bool {
    grant.spec.subject.covers(who) && grant.status.approvals.iter().any(|approval| !approval.is_of(who))
}

/// Whether a namespace may have this name: a DNS label.
pub fn is_namespace(name: &str) -> bool {
    names::is_subdomain(name) && !name.contains('.') && name.len() <= MAX_NAMESPACE
}

/// 403 about a grant, in the API server's form.
pub(super) fn forbidden(name: &str, why: &str) -> Refusal {
    let subject = if name.is_empty() { String::new() } else { format!(" {}", quote(name)) };
    Refusal::Forbidden {
        message: format!("{RESOURCE}.{GROUP}{subject} is forbidden: {why}"),
        about: about(name),
    }
}

pub(super) fn about(name: &str) -> About {
    About { name: shown(name).to_owned(), group: GROUP.to_owned(), kind: RESOURCE.to_owned() }
}

pub(super) fn invalid(name: &str, causes: Vec<Cause>) -> Refusal {
    Refusal::Invalid { about: About { kind: KIND.to_owned(), ..about(name) }, causes }
}

pub(super) fn cause(field: &str, reason: &'static str, message: String) -> Cause {
    Cause { reason, message, field: field.to_owned() }
}

pub(super) const INVALID: &str = "FieldValueInvalid";
const REQUIRED: &str = "FieldValueRequired";
const FORBIDDEN: &str = "FieldValueForbidden";
const TOO_MANY: &str = "FieldValueTooMany";
const TOO_LONG: &str = "FieldValueTooLong";

fn requested(who: Who<'_>, now: Timestamp) -> Status {
    Status {
        requested_by: who.person().to_owned(),
        requested_as: who.acts_as().map(str::to_owned),
        requested_at: Some(now),
        ..Status::default()
    }
}

/// Everything that is wrong with what is asked for.
fn wrong(grant: &Grant, now: Timestamp, longest: Duration) -> Vec<Cause> {
    let mut causes = wrong_metadata(grant);
    let spec = &grant.spec;
    let required = |field: &str, text: &str| cause(field, REQUIRED, format!("Required value: {text}"));
    let too_long = |field: &str, most: usize| {
        cause(field, TOO_LONG, format!("Too long: may not be more than {most} bytes"))
    };
    match (&spec.subject.user, &spec.subject.group) {
        (None, None) => causes.push(required("spec.subject", "a user or a group has to be named")),
        (Some(_), Some(_)) => {
            let text = "Forbidden: a grant is for a user or for a group, not for both";
            causes.push(cause("spec.subject", FORBIDDEN, text.to_owned()));
        }
        (user, group) => {
            let (field, name) = if user.is_some() { ("user", user) } else { ("group", group) };
            let field = format!("spec.subject.{field}");
            match name.as_deref().map(str::len) {
                Some(0) | None => causes.push(required(&field, "a name has to be given")),
                Some(length) if length > MAX_SUBJECT => causes.push(too_long(&field, MAX_SUBJECT)),
                Some(_) => {}
            }
        }
    }
    if spec.reason.trim().is_empty() {
        causes.push(required("spec.reason", "say what it is for"));
    } else if spec.reason.len() > MAX_REASON {
        causes.push(too_long("spec.reason", MAX_REASON));
    } else if spec.reason.chars().any(char::is_control) {
        let text = "Invalid value: must not hold control characters";
        causes.push(cause("spec.reason", INVALID, text.to_owned()));
    }
    causes.extend(wrong_time(grant, now, longest));
    causes.extend(wrong_selector(&spec.selector));
    causes
}

fn wrong_time(grant: &Grant, now: Timestamp, longest: Duration) -> Option<Cause> {
    let invalid = |field: &str, value: String, text: &str| {
        Some(cause(field, INVALID, format!("Invalid value: {}: {text}", quote(&value))))
    };
    let most = format!("a grant may last {} at most", super::document::Length(longest));
    match (grant.spec.until, grant.spec.duration) {
        (None, None) => {
            let text = "Required value: a grant needs an end: an instant, or a duration";
            Some(cause("spec.until", REQUIRED, text.to_owned()))
        }
        (Some(_), Some(_)) => {
            let text = "Forbidden: a grant ends at an instant or after a duration, not both";
            Some(cause("spec.duration", FORBIDDEN, text.to_owned()))
        }
        (Some(until), None) if until <= now => {
            invalid("spec.until", until.to_string(), &format!("is in the past; it is {} now", whole(now)))
        }
        (Some(until), None) if until > after(now, longest) => invalid("spec.until", until.to_string(), &most),
        (None, Some(length)) if length.0.is_zero() => {
            invalid("spec.duration", length.to_string(), "must be greater than zero")
        }
        (None, Some(length)) if length.0 > longest => invalid("spec.duration", length.to_string(), &most),
        _ => None,
    }
}

fn wrong_selector(selector: &Selector) -> Vec<Cause> {
    const FIELD: &str = "spec.selector";
    let mut causes = Vec::new();
    let many = |field: String, count: usize| {
        (count > MAX_LISTED).then(|| {
            cause(&field, TOO_MANY, format!("Too many: {count}: must have at most {MAX_LISTED} items"))
        })
    };
    let Selector { pod_labels, containers, subresources, command, everything } = selector;
    let words = command.as_ref().map_or(&[][..], Command::words);
    causes.extend(many(format!("{FIELD}.containers"), containers.len()));
    causes.extend(many(format!("{FIELD}.subresources"), subresources.len()));
    causes.extend(many(format!("{FIELD}.command"), words.len()));
    if words.iter().any(|word| word.len() > MAX_WORD) {
        let text = format!("Too long: may not be more than {MAX_WORD} bytes");
        causes.push(cause(&format!("{FIELD}.command"), TOO_LONG, text));
    }
    if command.is_some() && !subresources.is_empty() && !subresources.contains(&Subresource::Exec) {
        let text = "Forbidden: only exec has a command".to_owned();
        causes.push(cause(&format!("{FIELD}.command"), FORBIDDEN, text));
    }
    causes.extend(wrong_labels(pod_labels));
    if causes.is_empty() {
        let told = !pod_labels.is_empty() || !containers.is_empty() || command.is_some();
        if *everything && told {
            let text = "Forbidden: what is selected is not everything";
            causes.push(cause(&format!("{FIELD}.everything"), FORBIDDEN, text.to_owned()));
        }
        if !everything && !selector.is_narrow() {
            let text = "Required value: name labels that the pods have, containers or a command; to mean every pod of \
                        the namespace say everything: true";
            causes.push(cause(FIELD, REQUIRED, text.to_owned()));
        }
    }
    causes
}

fn wrong_labels(labels: &LabelSelector) -> Vec<Cause> {
    let field = |name: &str| format!("spec.selector.podLabels.{name}");
    let mut causes = Vec::new();
    let LabelSelector { match_labels, match_expressions } = labels;
    if match_labels.len() > MAX_LISTED || match_expressions.len() > MAX_LISTED {
        let text = format!("Too many: must have at most {MAX_LISTED} items");
        return vec![cause("spec.selector.podLabels", TOO_MANY, text)];
    }
    causes.extend(wrong_pairs(&field("matchLabels"), match_labels));
    for (index, one) in match_expressions.iter().enumerate() {
        let field = field(&format!("matchExpressions[{index}]"));
        if names::key(&one.key).is_err() {
            causes.push(bad_label(&format!("{field}.key"), &one.key));
        }
        if one.values.len() > MAX_LISTED {
            let text = format!("Too many: {}: must have at most {MAX_LISTED} items", one.values.len());
            causes.push(cause(&format!("{field}.values"), TOO_MANY, text));
        } else if let Some(value) = one.values.iter().find(|value| names::value(value).is_err()) {
            causes.push(bad_label(&format!("{field}.values"), value));
        }
    }
    causes
}

fn wrong_metadata(grant: &Grant) -> Vec<Cause> {
    let metadata = &grant.metadata;
    let mut causes = Vec::new();
    if !names::is_subdomain(&metadata.name) || metadata.name.len() > MAX_NAME {
        let text = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                    must start and end with an alphanumeric character";
        let name = quote(shown(&metadata.name));
        let text = format!("Invalid value: {name}: {text}; it must be no more than {MAX_NAME} bytes");
        causes.push(cause("metadata.name", INVALID, text));
    }
    if !is_namespace(&metadata.namespace) {
        let text = format!("Invalid value: {}: is no namespace", quote(shown(&metadata.namespace)));
        causes.push(cause("metadata.namespace", INVALID, text));
    }
    causes.extend(wrong_pairs("metadata.labels", &metadata.labels));
    if let Some(key) = metadata.annotations.keys().find(|key| names::key(key).is_err()) {
        causes.push(bad_label("metadata.annotations", key));
    }
    // Every part of it is bounded above or here.
    let size = |(key, value): (&String, &String)| key.len() + value.len();
    let bytes: usize = metadata.annotations.iter().map(size).sum();
    if bytes > MAX_BYTES / 2 {
        let text = format!("Too long: may not be more than {} bytes", MAX_BYTES / 2);
        causes.push(cause("metadata.annotations", TOO_LONG, text));
    }
    causes
}

fn wrong_pairs(field: &str, labels: &BTreeMap<String, String>) -> Option<Cause> {
    if labels.len() > MAX_LISTED {
        return Some(cause(field, TOO_MANY, format!("Too many: must have at most {MAX_LISTED} items")));
    }
    let mut wrong = labels.iter().filter_map(|(key, value)| match (names::key(key), names::value(value)) {
        (Err(_), _) => Some(bad_label(field, key)),
        (Ok(()), Err(_)) => Some(bad_label(field, value)),
        (Ok(()), Ok(())) => None,
    });
    wrong.next()
}

fn bad_label(field: &str, text: &str) -> Cause {
    cause(field, INVALID, format!("Invalid value: {}: is no label", quote(shown(text))))
}

fn quote(text: &str) -> String {
    go_quote(text.as_bytes())
}

/// As much of what a client sent as fits into a refusal.
fn shown(text: &str) -> &str {
    const MOST: usize = 256;
    &text[..text.floor_char_boundary(MOST)]
}
