//! Settings of the house rules.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Grants;
use crate::policy::document::Effect;

/// Where the house rules are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// What holds for a session that no rule allows and none denies.
    pub default: Effect,
    /// Files of policies, and folders of such files.
    pub files: Vec<PathBuf>,
    /// Whether the cluster's objects of the kind are policies, too.
    pub from_api: bool,
    /// What second persons agree to.
    pub grants: Grants,
}

// === impl Policy ===

impl Default for Policy {
    fn default() -> Self {
        Self { default: Effect::Allow, files: Vec::new(), from_api: false, grants: Grants::default() }
    }
}

impl Policy {
    pub(super) fn resolve(&mut self, base: &Path) {
        for path in &mut self.files {
            *path = base.join(&*path);
        }
    }

    /// What is wrong with it, by key.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let mut problems = self.grants.problems();
        if self.default == Effect::Deny && self.files.is_empty() && !self.from_api {
            let what = "is deny, and there are no policies that could allow anything; name them in policy.files, or set \
                        policy.fromApi";
            problems.push(("policy.default".to_owned(), what.to_owned()));
        }
        problems
    }
}
