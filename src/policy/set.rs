//! Set: rules that belong together, as they are asked.

use super::Asked;
use crate::cluster::User;
use crate::config::recording::Demand;
use crate::session::Limits;

/// Rules that belong together; replaced as a whole.
#[derive(Debug, Default)]
pub struct Set {}

/// What rules say about one session and one of those who answer for it.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The first rule that denies, and its message.
    pub(super) denied: Option<(String, String)>,
    /// Whether a rule allows.
    pub(super) allowed: bool,
    /// What the rules want that are about it.
    pub(super) wants: Joined,
}

/// Terms of several rules, the strictest of each kind.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub(super) rules: Vec<String>,
    pub(super) record: Option<(String, Demand)>,
    pub(super) limits: Limits,
    pub(super) sessions_per_user: Option<usize>,
    /// The rule that wants one, and its message.
    pub(super) reason: Option<(String, String)>,
    pub(super) grant: Option<(String, String)>,
}

impl Set {
    /// Whether the clock alone can make an answer another.
    pub(super) fn has_hours(&self) -> bool {
        false
    }

    /// Adds to a verdict what these rules say.
    pub(super) fn judge(&self, _asked: &Asked<'_>, _user: &User, _verdict: &mut Verdict) {}
}

impl Joined {
    /// Takes in what is wanted of another who answers for the session.
    pub(super) fn take(&mut self, verdict: Verdict, _default: Demand) {
        *self = verdict.wants;
    }
}
