//! Policy: the house rules. May they, where the cluster has said that they may; and on which terms.
//!
//! In the flow: after `locate`, whose facts the rules look at, and before `tap`, which takes nothing but what was
//! [`Admitted`]. A pure function of the rules, the grants, who asks for what, and the clock; asked again while a session
//! lives. The caller is judged, and so is whoever acts as them: nobody gets out of a rule by impersonating.
//! Invariants: deny wins; what cannot be evaluated never allows; of several rules the strictest term of each kind holds;
//! rules are replaced as a whole, by rules that are whole.

mod ask;
pub mod cel;
pub mod document;
pub mod set;
pub mod source;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::select_all;
use jiff::Timestamp;

use crate::authn::Caller;
use crate::cluster::{Pod, User};
use crate::config::recording::{Demand, Record};
use crate::locate::Place;
use crate::reload::Live;
use crate::request::Exec;
use crate::serving::history::{Changes, History};
use crate::session::limits::Limits;
use crate::status::{About, Refusal, go_quote};
use crate::telemetry::EndReason;
use set::{Joined, Set, Verdict};

/// What stands for a rule where none is about a session.
pub const DEFAULT: &str = "default";

/// Seconds after which somebody may ask again while grants are being read.
const UNREAD_RETRY: u32 = 1;

/// Seconds of a minute: hours of rules begin and end with one.
const MINUTE: i64 = 60;

/// The stage.
pub struct Policy {
    settings: Settings,
    sets: Vec<Live<Set>>,
    grants: Arc<dyn Grants>,
}

/// What holds where no rule says anything.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whether a session goes on that no rule is about.
    pub allow: bool,
    /// Whether it is recorded.
    pub record: Demand,
}

/// What rules and grants look at.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// As whom the session runs.
    pub user: &'a User,
    /// Who acts as them, if somebody does.
    pub impersonator: Option<&'a User>,
    /// What is asked for.
    pub exec: &'a Exec,
    /// The pod.
    pub pod: &'a Pod,
    /// The container chosen; empty for a port-forward, which is to all of them.
    pub container: &'a str,
    /// Where it is asked from.
    pub client: IpAddr,
    /// What for, if that was said.
    pub reason: Option<&'a str>,
    /// When.
    pub now: Timestamp,
}

/// What a request says besides what it asks for.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// The client's address.
    pub client: SocketAddr,
    /// What for, if that was said.
    pub reason: Option<String>,
    /// When.
    pub now: Timestamp,
}

/// A place where a session may run, and on which terms. Only this room makes one.
#[derive(Debug)]
pub struct Admitted {
    place: Place,
    client: IpAddr,
    /// What the request itself said.
    said: Option<String>,
    terms: Terms,
}

/// What a session is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The rules that have decided, by `document/rule`; [`DEFAULT`] where none has.
    pub rules: Vec<String>,
    /// Whether it is recorded, and the rule that says so.
    pub record: (String, Demand),
    /// What bounds it.
    pub limits: Limits,
    /// What for, as the request or the grant says it.
    pub reason: Option<String>,
    /// The grant it stands on, by `namespace/name`.
    pub grant: Option<String>,
    /// When that runs out.
    pub until: Option<Timestamp>,
}

/// A grant that is in force, as far as rules need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its name, as `namespace/name`.
    pub name: String,
    /// What for.
    pub reason: String,
    /// Until when.
    pub until: Timestamp,
}

/// Grants that are in force. No call waits for anybody.
pub trait Grants: Send + Sync + 'static {
    /// One that is about this, in force at `asked.now`: of several the one that lasts longest. It is the impersonator's,
    /// where there is one: nobody takes another's grant by impersonating.
    fn matching(&self, asked: &Asked<'_>) -> Option<Grant>;

    /// Whether it is known which there are.
    fn are_known(&self) -> bool;

    /// How long one may last; nothing where nobody can ask for any.
    fn longest(&self) -> Option<Duration>;

    /// Those that come, go, become others or run out from now on.
    fn changes(&self) -> Changes<Concern>;
}

/// Whom a grant is about: one person, or one group, in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concern {
    /// Its namespace.
    pub namespace: String,
    /// The person's name.
    pub user: Option<String>,
    /// The group's.
    pub group: Option<String>,
}

/// Says when a session is to be asked about again.
pub struct Watch {
    sets: Vec<Live<Set>>,
    grants: Arc<dyn Grants>,
    changes: Changes<Concern>,
}

/// There are none.
pub struct NoGrants(History<Concern>);

/// Why a session may not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {rule}: {why}")]
pub struct Error {
    /// The pod.
    pub pod: String,
    /// The rule that says no.
    pub rule: String,
    /// Its message.
    pub why: Why,
}

/// Why a rule says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It denies, and says this.
    #[error("{0}")]
    Denied(String),
    /// Nothing allows it.
    #[error("no rule allows this")]
    NoRule,
    /// It wants to know what for.
    #[error("{0}")]
    NoReason(String),
    /// It wants a grant, or what one may say, and nobody knows yet which there are.
    #[error("grants have not been read yet")]
    Unread,
    /// It wants a grant, and there is none.
    #[error("{0}")]
    NoGrant(String),
    /// The grant that it wants was there and is no longer.
    #[error("the grant {0} has run out")]
    Expired(String),
    /// It was taken away before its end: deleted, denied, or asked for anew.
    #[error("the grant {0} no longer lets you in")]
    Withdrawn(String),
    /// It wants more recorded than is.
    #[error("it has to be recorded, which this session is not, or not as much as that")]
    Unrecorded,
}

// === impl Policy ===

impl Policy {
    /// The rules of all these sets.
    pub fn new(settings: Settings, sets: Vec<Live<Set>>, grants: Arc<dyn Grants>) -> Self {
        Self { settings, sets, grants }
    }

    /// Without rules, everything is allowed.
    pub fn open(record: Demand) -> Self {
        Self::new(Settings { allow: true, record }, Vec::new(), Arc::new(NoGrants::default()))
    }

    /// May they, and on which terms.
    ///
    /// # Errors
    /// The rule that says no, and why.
    pub fn admit(&self, place: Place, said: Circumstances) -> Result<Admitted, Error> {
        let Circumstances { client, reason, now } = said;
        let client = client.ip().to_canonical();
        let terms = self.terms(&asked(&place, place.caller(), client, reason.as_deref(), now))?;
        Ok(Admitted { place, client, said: reason, terms })
    }

    /// Whether a session that was admitted may still be, by its caller as they are known now; and when that has to be asked
    /// again for the clock's sake alone.
    ///
    /// # Errors
    /// The rule that says no, and why.
    pub fn still(
        &self,
        admitted: &Admitted,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Error> {
        let Admitted { place, client, said, terms: held } = admitted;
        let reason = said.as_deref().or(held.reason.as_deref());
        let terms = self.terms(&asked(place, caller, *client, reason, now)).map_err(|mut error| {
            if let (Why::NoGrant(_), Some(grant)) = (&error.why, &held.grant) {
                let over = held.until.is_some_and(|until| until <= now);
                error.why = if over { Why::Expired } else { Why::Withdrawn }(grant.clone());
            }
            error
        })?;
        let ((rule, wanted), (_, has)) = (terms.record, &held.record);
        if wanted.record > has.record || wanted.record > Record::Off && wanted.stdin > has.stdin {
            return Err(Error { pod: place.exec().pod.clone(), rule, why: Why::Unrecorded });
        }
        let minute = now.as_second() - now.as_second().rem_euclid(MINUTE) + MINUTE;
        let minute = self.has_hours().then(|| Timestamp::from_second(minute).ok()).flatten();
        Ok(terms.until.into_iter().chain(minute).filter(|due| *due > now).min())
    }

    /// What may make another answer of one that is given after this, but for the clock.
    pub fn watch(&self) -> Watch {
        Watch { sets: self.sets.clone(), changes: self.grants.changes(), grants: self.grants.clone() }
    }

    /// Whether a session may be refused because it cannot be recorded, by the rules as they are.
    pub fn has_strict(&self) -> bool {
        self.settings.record.record == Record::Strict || self.sets.iter().any(|set| set.get().has_strict())
    }

    /// Whether the clock alone can make an answer another.
    fn has_hours(&self) -> bool {
        self.sets.iter().any(|set| set.get().has_hours())
    }

    fn terms(&self, asked: &Asked<'_>) -> Result<Terms, Error> {
        let sets: Vec<_> = self.sets.iter().map(Live::get).collect();
        let granted = self.grants.matching(asked);
        // What a grant says it is for is judged as if the request had said it: from the begin on, as later.
        let reason = asked.reason.or(granted.as_ref().map(|grant| grant.reason.as_str()));
        let asked = &Asked { reason, ..*asked };
        let refused = |rule: &str, why| Error { pod: asked.exec.pod.clone(), rule: rule.to_owned(), why };
        let mut joined = Joined::default();
        // To act as somebody else is a header, too: it takes nobody out of what is demanded of themselves. The person comes
        // last: their sessions are counted, by what is said of them.
        for user in [Some(asked.user), asked.impersonator].into_iter().flatten() {
            let mut verdict = Verdict::default();
            for set in &sets {
                set.judge(asked, user, &mut verdict);
            }
            if let Some((rule, message)) = verdict.denied {
                return Err(refused(&rule, Why::Denied(message)));
            }
            if !verdict.allowed && !self.settings.allow {
                return Err(refused(DEFAULT, Why::NoRule));
            }
            joined.take(verdict, self.settings.record);
        }
        if joined.rules.is_empty() {
            joined.rules.push(DEFAULT.to_owned());
        }
        let Joined { rules, record, limits, reason: wants_reason, grant: wants_grant } = joined;
        let mut terms = Terms {
            rules,
            record: record.unwrap_or_else(|| (DEFAULT.to_owned(), self.settings.record)),
            limits,
            reason: asked.reason.map(str::to_owned),
            grant: None,
            until: None,
        };
        if let Some((rule, message)) = wants_grant {
            let Some(grant) = &granted else {
                if !self.grants.are_known() {
                    return Err(refused(&rule, Why::Unread));
                }
                let how = ask::grant(asked, &message, self.grants.longest());
                return Err(refused(&rule, Why::NoGrant(how)));
            };
            (terms.grant, terms.until) = (Some(grant.name.clone()), Some(grant.until));
        }
        match wants_reason {
            Some((rule, _)) if terms.reason.is_none() && !self.grants.are_known() => {
                Err(refused(&rule, Why::Unread))
            }
            Some((rule, message)) if terms.reason.is_none() => {
                let how = ask::reason(asked, &message, self.grants.longest());
                Err(refused(&rule, Why::NoReason(how)))
            }
            _ => Ok(terms),
        }
    }
}

// === impl Admitted ===

impl Admitted {
    /// The place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What its session is held to.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }
}

fn asked<'a>(
    place: &'a Place,
    caller: &'a Caller,
    client: IpAddr,
    reason: Option<&'a str>,
    now: Timestamp,
) -> Asked<'a> {
    Asked {
        user: caller.user(),
        impersonator: caller.impersonator(),
        exec: place.exec(),
        pod: place.pod(),
        container: place.container(),
        client,
        reason,
        now,
    }
}

// === impl Watch ===

impl Watch {
    /// Resolves when rules have changed since the last call, or a grant that is about this person in this namespace. Cancel
    /// safe.
    pub async fn changed(&mut self, person: &User, namespace: &str) {
        let Self { sets, grants, changes } = self;
        let sets = sets.iter_mut().map(|set| set.replaced().boxed());
        let granted = async {
            loop {
                match changes.next().await {
                    Ok((_, concern)) if concern.is_about(person, namespace) => return,
                    Ok(_) => {}
                    Err(_) => {
                        // So many that one of them may have been about it.
                        *changes = grants.changes();
                        return;
                    }
                }
            }
        };
        select_all(sets.chain([granted.boxed()])).await;
    }
}

// === impl Concern ===

impl Concern {
    fn is_about(&self, person: &User, namespace: &str) -> bool {
        self.namespace == namespace
            && (self.user.as_ref() == Some(&person.name)
                || self.group.as_ref().is_some_and(|group| person.groups.contains(group)))
    }
}

// === impl NoGrants ===

impl Default for NoGrants {
    fn default() -> Self {
        Self(History::new(0, 1))
    }
}

impl Grants for NoGrants {
    fn matching(&self, _: &Asked<'_>) -> Option<Grant> {
        None
    }

    fn are_known(&self) -> bool {
        true
    }

    fn longest(&self) -> Option<Duration> {
        None
    }

    fn changes(&self) -> Changes<Concern> {
        self.0.changes(0)
    }
}

// === impl Error ===

impl Error {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        if self.why == Why::Unread {
            return Refusal::NotYet { message: self.to_string(), retry_after: UNREAD_RETRY };
        }
        let about = About { name: self.pod.clone(), group: String::new(), kind: "pods".into() };
        let message = format!("pods {} is forbidden: {self}", go_quote(self.pod.as_bytes()));
        Refusal::Forbidden { message, about }
    }

    /// How a session ends that was admitted before: with its grant, or because something else has changed.
    pub fn end(&self) -> EndReason {
        match self.why {
            Why::Expired(_) => EndReason::Expired,
            Why::Denied(_)
            | Why::NoRule
            | Why::NoReason(_)
            | Why::Unread
            | Why::NoGrant(_)
            | Why::Withdrawn(_)
            | Why::Unrecorded => EndReason::Lapsed,
        }
    }
}
