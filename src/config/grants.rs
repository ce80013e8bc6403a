//! Settings of grants.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;
use crate::grant;

/// Where grants are, and how long they may last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Grants {
    /// The namespace in whose ConfigMaps `podgate serve` keeps them: one in which nobody but podgate may write any. Without
    /// one there are no grants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The longest that one may hold.
    #[serde(with = "duration")]
    pub longest: Duration,
    /// How long one that has run out or was denied can be looked at.
    #[serde(with = "duration")]
    pub keep: Duration,
}

// === impl Grants ===

impl Default for Grants {
    fn default() -> Self {
        Self {
            namespace: None,
            longest: Duration::from_secs(12 * 3600),
            keep: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Grants {
    /// How long things may last.
    pub fn settings(&self) -> grant::Settings {
        grant::Settings { longest: self.longest, keep: self.keep }
    }

    /// What is wrong with it, by key.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let no_name = |namespace: &&String| !grant::rules::is_namespace(namespace);
        let wrong = self.namespace.as_ref().filter(no_name);
        let told = |namespace| format!("{namespace:?} is no name of a namespace");
        wrong.map(|namespace| ("policy.grants.namespace".to_owned(), told(namespace))).into_iter().collect()
    }
}
