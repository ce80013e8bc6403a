//! Document: an `ExecPolicy` as it is written, into types that need no further look.
//!
//! Everything is checked while it is read, so that a fault has its file, document, line and path. Invariant: a document
//! that was read says nothing that is unknown, contradictory or without a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use ipnet::IpNet;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::cel::Expression;
use crate::config::duration;
use crate::config::recording::Record;
use crate::recording::facts::Stdin;
use crate::request::Subresource;
use crate::selector::{Command, LabelSelector, Pattern, bounded, list, map, names};
use crate::tree::Tree;

/// The kind, and the version of its API.
pub const KIND: &str = "ExecPolicy";
/// See [`KIND`].
pub const API_VERSION: &str = "podgate.dev/v1alpha1";

/// Rules of one document.
pub const MAX_RULES: usize = 256;

/// Bytes of a text in a rule: a message.
const MAX_TEXT: usize = 1024;

/// Bytes of a name: Kubernetes's own bound on names of objects.
const MAX_NAME: usize = 253;

/// The longest duration that makes sense, as in the settings: a year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// One document.
#[derive(Debug)]
pub struct Document {
    /// `metadata.name`.
    pub name: String,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it was read.
    pub origin: String,
    /// Which document of it, from 1; 0 where it is no list of documents.
    pub document: usize,
    /// The line, from 1; 0 where there are none.
    pub line: u64,
    /// What it is about, such as `spec.rules[0].match.hours.from`; empty when it is about the whole.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// `spec`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// The rules; their order says nothing.
    #[serde(deserialize_with = "rules")]
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Written")]
pub struct Rule {
    /// Its name, unique in its document.
    pub name: String,
    /// What it is about.
    pub r#match: Match,
    /// What it says.
    pub effect: Effect,
    /// What those are told whom it refuses.
    pub message: String,
    /// What it wants of a session that it allows.
    pub demands: Demands,
    /// What bounds such a session.
    pub limits: Limits,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    #[serde(deserialize_with = "name")]
    name: String,
    r#match: Match,
    effect: Effect,
    #[serde(default, deserialize_with = "text")]
    message: String,
    demands: Option<Demands>,
    limits: Option<Limits>,
}

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// They may, on these terms.
    Allow,
    /// They may not.
    Deny,
}

/// What a rule is about: sessions that fit everything that is there. Nothing is there: all sessions.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Match {
    /// Users.
    #[serde(deserialize_with = "list")]
    pub users: Vec<Pattern>,
    /// Groups, of which the user has one.
    #[serde(deserialize_with = "list")]
    pub groups: Vec<Pattern>,
    /// Namespaces.
    #[serde(deserialize_with = "list")]
    pub namespaces: Vec<Pattern>,
    /// Labels of the pod.
    pub pod_labels: Option<LabelSelector>,
    /// Annotations of the pod, all of these.
    #[serde(deserialize_with = "map")]
    pub pod_annotations: BTreeMap<String, Pattern>,
    /// Names of pods.
    #[serde(deserialize_with = "list")]
    pub pods: Vec<Pattern>,
    /// Names of containers.
    #[serde(deserialize_with = "list")]
    pub containers: Vec<Pattern>,
    /// Images of containers.
    #[serde(deserialize_with = "list")]
    pub images: Vec<Pattern>,
    /// `exec`, `attach`, `portforward`.
    #[serde(deserialize_with = "list")]
    pub subresources: Vec<Subresource>,
    /// Commands, of which it is one. Only `exec` has any.
    #[serde(deserialize_with = "list")]
    pub command: Vec<Command>,
    /// Whether there is a terminal.
    pub tty: Option<bool>,
    /// Whether the client sends standard input.
    pub stdin: Option<bool>,
    /// Time of day.
    pub hours: Option<Hours>,
    /// Days of the week, in the time zone of `hours`, or in UTC: those on which the hours begin.
    #[serde(deserialize_with = "list")]
    pub weekdays: Vec<Day>,
    /// Addresses of clients.
    #[serde(deserialize_with = "list")]
    pub sources: Vec<Network>,
    /// A CEL expression over all of this.
    pub cel: Option<Expression>,
}

/// A time of day, over midnight where it ends before it begins. Its end is no part of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "WrittenHours")]
pub struct Hours {
    /// `HH:MM`.
    pub from: Time,
    /// `HH:MM`.
    pub to: Time,
    /// Where it is that time.
    pub time_zone: TimeZone,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenHours {
    #[serde(deserialize_with = "time")]
    from: Time,
    #[serde(deserialize_with = "time")]
    to: Time,
    #[serde(default, deserialize_with = "time_zone")]
    time_zone: Option<TimeZone>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Day {
    #[allow(missing_docs, reason = "a day is a day")]
    Mon,
    #[allow(missing_docs, reason = "a day is a day")]
    Tue,
    #[allow(missing_docs, reason = "a day is a day")]
    Wed,
    #[allow(missing_docs, reason = "a day is a day")]
    Thu,
    #[allow(missing_docs, reason = "a day is a day")]
    Fri,
    #[allow(missing_docs, reason = "a day is a day")]
    Sat,
    #[allow(missing_docs, reason = "a day is a day")]
    Sun,
}

/// Addresses: `10.0.0.0/8`, or one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

/// What a rule wants of a session that it allows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Demands {
    /// Whether it is recorded.
    pub recording: Option<Record>,
    /// What of its standard input, if it is.
    pub stdin: Option<Stdin>,
    /// Whether it has to be said what it is for.
    pub reason: bool,
    /// Whether it takes a grant.
    pub grant: bool,
}

/// What bounds a session that a rule allows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Bytes per second and direction.
    pub bytes_per_second: Option<NonZeroU64>,
    /// How long it may last.
    #[serde(deserialize_with = "span")]
    pub longest: Option<Duration>,
    /// How long nothing may pass.
    #[serde(deserialize_with = "span")]
    pub idle: Option<Duration>,
    /// Sessions of its user at once.
    pub sessions_per_user: Option<NonZeroUsize>,
}

// === impl Document ===

impl Document {
    /// The documents of a YAML or JSON text.
    ///
    /// # Errors
    /// What is wrong with them: one fault a document.
    pub fn read_all(origin: &str, text: &str) -> Result<Vec<Self>, Vec<Fault>> {
        let fault = |document, line, path: &str, what| Fault {
            origin: origin.to_owned(),
            document,
            line,
            path: path.to_owned(),
            what,
        };
        let trees = Tree::documents(text).map_err(|(line, what)| vec![fault(0, line, "", what)])?;
        let (mut documents, mut faults) = (Vec::new(), Vec::new());
        for (index, tree) in trees.iter().enumerate() {
            match Self::of(tree) {
                Ok(document) => documents.push(document),
                Err((line, path, what)) => faults.push(fault(index + 1, line, &path, what)),
            }
        }
        if faults.is_empty() { Ok(documents) } else { Err(faults) }
    }

    /// A document, or the line, the path and the reason why it is none.
    fn of(tree: &Tree) -> Result<Self, (u64, String, String)> {
        let wrong = |path: &str, what: String| Err((tree.line_of(path), path.to_owned(), what));
        for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            if tree.text(key) != Some(wanted) {
                let found = tree.text(key).map(|text| format!(", not {text:?}")).unwrap_or_default();
                return wrong(key, format!("is {wanted}{found}"));
            }
        }
        if let Some((key, line)) = tree.keys().find(|(key, _)| !TOP.contains(key)) {
            return Err((line, key.to_owned(), format!("unknown field, expected one of {}", TOP.join(", "))));
        }
        let metadata = tree.get("metadata");
        let Some(own) = metadata.and_then(|metadata| metadata.text("name")) else {
            return wrong("metadata", "has a name".to_owned());
        };
        if let Err(what) = checked_name(own) {
            return wrong("metadata.name", what);
        }
        if metadata.is_some_and(|metadata| metadata.get("namespace").is_some()) {
            return wrong("metadata.namespace", "policies are of the whole cluster".to_owned());
        }
        let Some(spec) = tree.get("spec") else { return wrong("spec", "is missing".to_owned()) };
        let spec: Spec = spec.read().map_err(|mismatch| {
            let line = if mismatch.line == 0 { tree.line_of("spec") } else { mismatch.line };
            (line, format!("spec{}", mismatch.path), mismatch.what)
        })?;
        let mut names = BTreeSet::new();
        for (index, rule) in spec.rules.iter().enumerate() {
            if !names.insert(&rule.name) {
                let what = format!("{:?} is the name of another rule of this document", rule.name);
                return wrong(&format!("spec.rules[{index}].name"), what);
            }
        }
        Ok(Self { name: own.to_owned(), rules: spec.rules })
    }
}

/// The keys of a document.
const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if self.document > 0 {
            write!(f, ", document {}", self.document)?;
        }
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, ", at {}", self.path)?;
        }
        write!(f, ": {}", self.what)
    }
}

// === impl Rule ===

impl TryFrom<Written> for Rule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { name, r#match, effect, message, demands, limits } = written;
        if effect == Effect::Deny && (demands.is_some() || limits.is_some()) {
            return Err(format!(
                "rule {name:?} denies, and has demands or limits, which are for sessions that may be"
            ));
        }
        let (demands, limits) = (demands.unwrap_or_default(), limits.unwrap_or_default());
        if demands.recording == Some(Record::Off) && demands.stdin.is_some_and(|stdin| stdin > Stdin::None) {
            return Err(format!("rule {name:?} wants stdin recorded and no recording"));
        }
        Ok(Self { name, r#match, effect, message, demands, limits })
    }
}

// === impl Hours ===

impl TryFrom<WrittenHours> for Hours {
    type Error = String;

    fn try_from(WrittenHours { from, to, time_zone }: WrittenHours) -> Result<Self, String> {
        if from == to {
            return Err("begin and end at the same time; leave them out for the whole day".to_owned());
        }
        Ok(Self { from, to, time_zone: time_zone.unwrap_or(TimeZone::UTC) })
    }
}

// === impl Day ===

impl Day {
    /// Whether it is this day.
    pub fn is(self, day: Weekday) -> bool {
        let own = match self {
            Self::Mon => Weekday::Monday,
            Self::Tue => Weekday::Tuesday,
            Self::Wed => Weekday::Wednesday,
            Self::Thu => Weekday::Thursday,
            Self::Fri => Weekday::Friday,
            Self::Sat => Weekday::Saturday,
            Self::Sun => Weekday::Sunday,
        };
        own == day
    }
}

// === impl Network ===

impl Network {
    /// Whether this address is in it.
    pub fn has(self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let net = net.map_err(|_| D::Error::custom(format!("{text:?} is no network, such as 10.0.0.0/8")))?;
        if net != net.trunc() {
            let what = format!("{text:?} has bits beyond its prefix; {} is the network", net.trunc());
            return Err(D::Error::custom(what));
        }
        Ok(Self(net))
    }
}

// What serde asks for.

fn checked_name(name: &str) -> Result<(), String> {
    match names::is_subdomain(name) && name.len() <= MAX_NAME {
        true => Ok(()),
        false => Err(format!("{name:?} is no name: a DNS name in lower case, of at most {MAX_NAME} bytes")),
    }
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    checked_name(&name).map_err(D::Error::custom)?;
    Ok(name)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() > MAX_TEXT {
        return Err(D::Error::custom(format!("has at most {MAX_TEXT} bytes")));
    }
    // What is shown in a terminal is one line of it.
    if text.chars().any(char::is_control) {
        return Err(D::Error::custom("is one line, without control characters"));
    }
    Ok(text)
}

fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rule>, D::Error> {
    bounded(deserializer, MAX_RULES)
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = match text.as_bytes() {
        [_, _, b':', _, _] => Time::strptime("%H:%M", &text).ok(),
        _ => None,
    };
    parsed.ok_or_else(|| D::Error::custom(format!("{text:?} is no time of day, such as 09:30")))
}

fn time_zone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TimeZone>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let zone = TimeZone::get(&text);
    let zone =
        zone.map_err(|_| D::Error::custom(format!("{text:?} is no time zone, such as Europe/Berlin")))?;
    Ok(Some(zone))
}

fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let span = duration::deserialize(deserializer)?;
    match span >= Duration::from_secs(1) && span <= LONGEST {
        true => Ok(Some(span)),
        false => Err(D::Error::custom("is from 1s to 8760h")),
    }
}
