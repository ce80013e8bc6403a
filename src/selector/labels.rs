//! Labels, as Kubernetes selects by them.
//!
//! Source: `metav1.LabelSelector`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{list, map};

/// Labels of a pod: all of it has to fit. One that says nothing fits all pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that are there, with these values.
    #[serde(deserialize_with = "map", skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Written")]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is looked at.
    pub operator: Operator,
    /// Values, for `In` and `NotIn`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    key: String,
    operator: Operator,
    #[serde(default, deserialize_with = "list")]
    values: Vec<String>,
}

/// How a label is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of them, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not.
    DoesNotExist,
}

// === impl LabelSelector ===

impl LabelSelector {
    /// Whether a pod with these labels fits.
    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(has) && self.match_expressions.iter().all(|one| one.fits(labels))
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether a pod without labels does not fit.
    pub fn is_narrow(&self) -> bool {
        let there = |one: &Requirement| matches!(one.operator, Operator::In | Operator::Exists);
        !self.match_labels.is_empty() || self.match_expressions.iter().any(there)
    }
}

/// As `kubectl get -l` would have it.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let parts: Vec<_> = labels.chain(self.match_expressions.iter().map(Requirement::to_string)).collect();
        f.write_str(&parts.join(","))
    }
}

// === impl Requirement ===

impl Requirement {
    fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl TryFrom<Written> for Requirement {
    type Error = String;

    fn try_from(Written { key, operator, values }: Written) -> Result<Self, String> {
        let wants = matches!(operator, Operator::In | Operator::NotIn);
        if wants == values.is_empty() {
            return Err(format!("{operator:?} takes {} values", if wants { "some" } else { "no" }));
        }
        Ok(Self { key, operator, values })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operator, values } = self;
        match operator {
            Operator::In => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}
