//! Ask: how somebody is told to ask for what a rule wants.

use super::Asked;

/// How to say what for.
pub(super) fn reason(message: &str) -> String {
    message.to_owned()
}

/// How to ask for a grant.
pub(super) fn grant(_asked: &Asked<'_>, message: &str) -> String {
    message.to_owned()
}
