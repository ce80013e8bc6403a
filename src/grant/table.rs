//! Table: what `kubectl get grants` shows of them.

use serde::Deserialize;
use serde_json::Value;

use super::document::{Grant, Phase, Verdict};

/// A column: its name, and what it tells.
pub type Column = (&'static str, &'static str);

/// The columns, but for the age that stands last.
pub const COLUMNS: [Column; 7] = [
    ("Name", "Name must be unique within a namespace and is what the object is asked for by."),
    ("Subject", "The user or the group that the grant is for."),
    ("Selector", "What it lets them into."),
    ("Phase", "Pending, Active, Expired or Denied."),
    ("Requested-By", "Who asked for it."),
    ("Approved-By", "Who else said yes, or no."),
    ("Until", "When it ends."),
];

/// Characters of a cell at most: wider ones are of no use in a terminal.
const MAX_CELL: usize = 80;

/// The cells of a grant, as [`Grants`](super::Grants) shows it.
pub fn cells(object: &Value) -> [String; 7] {
    let grant = Grant::deserialize(object).unwrap_or_default();
    let (spec, status) = (&grant.spec, &grant.status);
    let by = |verdict: &Verdict| verdict.by.clone();
    let approved: Vec<_> = match &status.denied {
        Some(denied) => vec![format!("denied by {}", by(denied))],
        None => status.approvals.iter().map(by).collect(),
    };
    let until = match (status.until.or(spec.until), spec.duration) {
        (Some(until), _) => until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        (None, Some(length)) if status.phase == Phase::Pending => format!("{length} once approved"),
        _ => String::new(),
    };
    let cell = |text: String| match text.is_empty() {
        true => "<none>".to_owned(),
        false if text.chars().count() > MAX_CELL => {
            text.chars().take(MAX_CELL - 3).chain("...".chars()).collect()
        }
        false => text,
    };
    [
        grant.metadata.name.clone(),
        cell(spec.subject.to_string()),
        cell(spec.selector.to_string()),
        status.phase.as_str().to_owned(),
        cell(status.requested_by.clone()),
        cell(approved.join(",")),
        cell(until),
    ]
}
