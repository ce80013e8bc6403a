//! Set: rules that belong together, as they are asked; replaced as a whole.
//!
//! Invariants: whatever is asked, the cost is bounded by what the set was compiled from; the order of rules says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Asked;
use super::document::{Document, Effect, Fault, Hours, MAX_RULES, Match, Rule};
use crate::cluster::User;
use crate::config::recording::{Demand, Record};
use crate::recording::facts::Stdin;
use crate::selector::Pattern;
use crate::session::limits::{By, Limit, Limits};

/// Documents of one set: some for each team of a large cluster.
pub const MAX_DOCUMENTS: usize = 1000;

/// Rules of one set. All are looked at for every session, at some microseconds each.
pub const MAX_ALL_RULES: usize = 4 * MAX_RULES;

/// What all expressions of one set may cost together, in the steps of [`super::cel`].
pub const MAX_ALL_COST: u64 = 5 * super::cel::MAX_COST;

/// Rules that belong together.
#[derive(Debug, Default)]
pub struct Set {
    rules: Vec<Named>,
}

/// A rule with its name, as `document/rule`.
#[derive(Debug)]
struct Named {
    name: String,
    rule: Rule,
}

/// How a rule fits a session.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fit {
    /// It is about something else.
    No,
    /// It may be about it: it denies, or has its terms, but it allows nothing. Where its expression cannot be evaluated, with
    /// the reason; else because it is about some of the containers that a port-forward reaches, and not about others.
    Partly(Option<String>),
    /// It is about it.
    Yes,
}

/// What rules say about one session and one of those who answer for it.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The first rule that denies, and what it says.
    pub(super) denied: Option<(String, String)>,
    /// Whether a rule allows.
    pub(super) allowed: bool,
    /// What the rules want that are about it.
    wants: Wants,
}

/// What several rules want, the strictest of each kind, with the first rule that wants that.
#[derive(Debug, Default)]
struct Wants {
    rules: Vec<String>,
    record: Option<(String, Record)>,
    stdin: Option<Stdin>,
    limits: Limits,
    reason: Option<(String, String)>,
    grant: Option<(String, String)>,
}

/// What is wanted of all who answer for a session.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub(super) rules: Vec<String>,
    pub(super) record: Option<(String, Demand)>,
    pub(super) limits: Limits,
    /// The rule that wants one, and its message.
    pub(super) reason: Option<(String, String)>,
    pub(super) grant: Option<(String, String)>,
}

// === impl Set ===

impl Set {
    /// The rules of these documents, each with where it was read; `records` says whether there can be recordings.
    ///
    /// # Errors
    /// All that is wrong between them.
    pub fn compile(documents: Vec<(String, Document)>, records: bool) -> Result<Self, Vec<Fault>> {
        let (mut set, mut faults, mut names) =
            (Self::default(), Vec::new(), BTreeMap::<String, String>::new());
        let fault = |origin: &str, path: String, what: String| Fault {
            origin: origin.to_owned(),
            document: 0,
            line: 0,
            path,
            what,
        };
        if documents.len() > MAX_DOCUMENTS {
            let what = format!("there are {} policies, of at most {MAX_DOCUMENTS}", documents.len());
            return Err(vec![fault("policies", String::new(), what)]);
        }
        let mut cost: u64 = 0;
        for (origin, Document { name, rules }) in documents {
            if let Some(first) = names.insert(name.clone(), origin.clone()) {
                let what = format!("policy {name:?} is already in {first}");
                faults.push(fault(&origin, "metadata.name".to_owned(), what));
                continue;
            }
            for (index, rule) in rules.into_iter().enumerate() {
                let demands = rule.demands.recording.is_some_and(|record| record > Record::Off);
                if demands && !records {
                    let what = format!(
                        "rule {:?} of policy {name:?} demands a recording, and recording.enabled is false",
                        rule.name
                    );
                    faults.push(fault(&origin, format!("spec.rules[{index}].demands.recording"), what));
                }
                cost = cost.saturating_add(rule.r#match.cel.as_ref().map_or(0, |cel| cel.cost()));
                set.rules.push(Named { name: format!("{name}/{}", rule.name), rule });
            }
        }
        if set.rules.len() > MAX_ALL_RULES {
            let what = format!("there are {} rules, of at most {MAX_ALL_RULES}", set.rules.len());
            faults.push(fault("policies", String::new(), what));
        }
        if cost > MAX_ALL_COST {
            let what = format!("all CEL together would run long: {cost} steps, of at most {MAX_ALL_COST}");
            faults.push(fault("policies", String::new(), what));
        }
        if faults.is_empty() { Ok(set) } else { Err(faults) }
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the clock alone can make an answer another.
    pub(super) fn has_hours(&self) -> bool {
        let by_clock = |about: &Match| {
            about.hours.is_some()
                || !about.weekdays.is_empty()
                || about.cel.as_ref().is_some_and(super::cel::Expression::uses_now)
        };
        self.rules.iter().any(|named| by_clock(&named.rule.r#match))
    }

    /// Whether a rule may want a session refused that cannot be recorded.
    pub(super) fn has_strict(&self) -> bool {
        self.rules.iter().any(|named| named.rule.demands.recording == Some(Record::Strict))
    }

    /// Adds to a verdict what these rules say of one of those who answer for a session.
    pub(super) fn judge(&self, asked: &Asked<'_>, user: &User, verdict: &mut Verdict) {
        for Named { name, rule } in &self.rules {
            let fit = rule.r#match.fit(asked, user);
            match (rule.effect, fit) {
                (_, Fit::No) => {}
                (Effect::Deny, fit) => {
                    let broken = match &fit {
                        Fit::Partly(Some(why)) => format!("its expression cannot be evaluated: {why}"),
                        _ => String::new(),
                    };
                    let said = [rule.message.as_str(), &broken];
                    let said: Vec<_> = said.into_iter().filter(|text| !text.is_empty()).collect();
                    let said = if said.is_empty() { "it denies this".to_owned() } else { said.join("; ") };
                    verdict.denied.get_or_insert_with(|| (name.clone(), said));
                }
                (Effect::Allow, fit) => {
                    verdict.allowed |= fit == Fit::Yes;
                    verdict.wants.add(name, rule);
                }
            }
        }
    }
}

// === impl Match ===

impl Match {
    /// How this fits what is asked by this user. What costs least is looked at first.
    fn fit(&self, asked: &Asked<'_>, user: &User) -> Fit {
        let exec = asked.exec;
        let any = |patterns: &[Pattern], text: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.fits(text))
        };
        let plain = (self.subresources.is_empty() || self.subresources.contains(&exec.subresource))
            && self.tty.is_none_or(|tty| tty == exec.tty)
            && self.stdin.is_none_or(|stdin| stdin == exec.stdin)
            && any(&self.namespaces, &exec.namespace)
            && any(&self.pods, &exec.pod)
            && any(&self.users, &user.name)
            && (self.groups.is_empty() || user.groups.iter().any(|group| any(&self.groups, group)))
            && (self.sources.is_empty() || self.sources.iter().any(|network| network.has(asked.client)))
            && self.pod_labels.as_ref().is_none_or(|labels| labels.fits(&asked.pod.labels))
            && self.pod_annotations.iter().all(|(key, pattern)| {
                asked.pod.annotations.get(key).is_some_and(|value| pattern.fits(value))
            })
            && (self.command.is_empty() || self.command.iter().any(|command| command.fits(&exec.command)))
            && self.is_time(asked.now);
        if !plain {
            return Fit::No;
        }
        let mut fit = Fit::Yes;
        if !self.containers.is_empty() || !self.images.is_empty() {
            // A port-forward is to all containers of its pod.
            let reached = |name: &str| asked.container.is_empty() || asked.container == name;
            let reached = asked.pod.images.iter().filter(|(name, _)| reached(name));
            let (mut some, mut all) = (false, true);
            for (name, image) in reached {
                let fits = any(&self.containers, name) && any(&self.images, image);
                (some, all) = (some || fits, all && fits);
            }
            match (some, all) {
                (true, true) => {}
                (true, false) => fit = Fit::Partly(None),
                (false, _) => return Fit::No,
            }
        }
        match self.cel.as_ref().map(|cel| cel.holds(asked, user)) {
            None | Some(Ok(true)) => fit,
            Some(Ok(false)) => Fit::No,
            Some(Err(why)) => Fit::Partly(Some(why)),
        }
    }

    fn is_time(&self, now: jiff::Timestamp) -> bool {
        if self.hours.is_none() && self.weekdays.is_empty() {
            return true;
        }
        let zone = self.hours.as_ref().map_or(jiff::tz::TimeZone::UTC, |hours| hours.time_zone.clone());
        let now = now.to_zoned(zone);
        let (mut day, time) = (now.weekday(), now.time());
        if let Some(Hours { from, to, .. }) = self.hours {
            let over_midnight = to < from;
            let within = if over_midnight { time >= from || time < to } else { time >= from && time < to };
            if !within {
                return false;
            }
            if over_midnight && time < to {
                // They began the day before.
                day = day.previous();
            }
        }
        self.weekdays.is_empty() || self.weekdays.iter().any(|one| one.is(day))
    }
}

// === impl Wants ===

impl Wants {
    fn add(&mut self, name: &str, rule: &Rule) {
        let (demands, limits) = (&rule.demands, &rule.limits);
        self.rules.push(name.to_owned());
        if let Some(record) = demands.recording
            && self.record.as_ref().is_none_or(|(_, most)| record > *most)
        {
            self.record = Some((name.to_owned(), record));
        }
        self.stdin = self.stdin.max(demands.stdin);
        let said = || (name.to_owned(), rule.message.clone());
        if demands.reason {
            self.reason.get_or_insert_with(said);
        }
        if demands.grant {
            self.grant.get_or_insert_with(said);
        }
        let by: Arc<str> = name.into();
        fn set<T>(most: T, by: &Arc<str>) -> Limit<T> {
            Limit { most, by: By::Rule(by.clone()) }
        }
        let own = Limits {
            bytes_per_second: limits.bytes_per_second.map(|most| set(most.get(), &by)),
            longest: limits.longest.map(|most| set(most, &by)),
            idle: limits.idle.map(|most| set(most, &by)),
            sessions_per_user: limits.sessions_per_user.map(|most| set(most.get(), &by)),
            ..Limits::default()
        };
        self.limits = std::mem::take(&mut self.limits).and(own);
    }
}

// === impl Joined ===

impl Joined {
    /// Takes in what is wanted of another who answers for the session; where nothing is said, `default` holds for them.
    pub(super) fn take(&mut self, verdict: Verdict, default: Demand) {
        let Wants { rules, record, stdin, limits, reason, grant } = verdict.wants;
        let (rule, record) = record.unwrap_or_else(|| (super::DEFAULT.to_owned(), default.record));
        let demand = Demand { record, stdin: stdin.unwrap_or(default.stdin) };
        self.record = Some(match self.record.take() {
            None => (rule, demand),
            Some((first, has)) => {
                let stdin = has.stdin.max(demand.stdin);
                let (rule, record) =
                    if demand.record > has.record { (rule, demand.record) } else { (first, has.record) };
                (rule, Demand { record, stdin })
            }
        });
        let mut known: BTreeSet<String> = self.rules.iter().cloned().collect();
        self.rules.extend(rules.into_iter().filter(|rule| known.insert(rule.clone())));
        // Sessions are counted of the person, so no other's rules say how many there may be: who is judged last.
        let own = Limits { sessions_per_user: None, ..std::mem::take(&mut self.limits) };
        self.limits = own.and(limits);
        self.reason = self.reason.take().or(reason);
        self.grant = self.grant.take().or(grant);
    }
}
