//! Settings of the house rules.

use serde::{Deserialize, Serialize};

use super::Grants;

/// The house rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// What second persons agree to.
    pub grants: Grants,
}

// === impl Policy ===

impl Policy {
    /// What is wrong with it, by key.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        self.grants.problems()
    }
}
