//! Policy: which requests are recorded, at which level, and which of their stages not.
//!
//! The file is kube-apiserver's: `audit.k8s.io/v1` `Policy`. The first rule that matches decides; where none does,
//! nothing is recorded. All that is wrong with a file is told at once, with lines. Source: apiserver
//! `pkg/audit/policy/{checker,reader}.go`, `pkg/apis/audit/validation/validation.go`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::event::Stage;
use crate::cluster::User;
use crate::request::Attributes;

/// Bytes of a policy file at most: hundreds of rules are a tenth of it.
const MAX_BYTES: u64 = 1024 * 1024;

/// How much of a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, what and how it ended.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

/// The rules, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// What becomes of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How much is recorded.
    pub level: Level,
    /// Of which stages nothing is.
    pub omit_stages: Vec<Stage>,
    /// Whether objects are recorded without their `managedFields`.
    pub omit_managed_fields: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Group>,
    namespaces: Vec<String>,
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// Resources of one API group; all of them when none is named.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Group {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// A policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read audit policy {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any policy.
    #[error("audit policy {path} has more than {MAX_BYTES} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no YAML, or has keys that no policy has.
    #[error("audit policy {path}: {what}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        what: String,
    },
    /// What it says makes no sense: every problem, one a line.
    #[error("audit policy {path}:{}", list(.problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line of the rule, from 1; 0 when it is about the whole file.
    pub line: u64,
    /// The path of the key.
    pub key: String,
    /// What is wrong.
    pub what: String,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "read so that it may be there; it says nothing")]
    metadata: serde::de::IgnoredAny,
    #[serde(default)]
    rules: Vec<Spanned<WrittenRule>>,
    #[serde(default)]
    omit_stages: Vec<String>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct WrittenRule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Group>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

// === impl Level ===

impl Level {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "None" => Self::None,
            "Metadata" => Self::Metadata,
            "Request" => Self::Request,
            "RequestResponse" => Self::RequestResponse,
            _ => return None,
        })
    }
}

// === impl Policy ===

impl Default for Policy {
    /// Metadata of everything but health and metrics, which are asked for all the time by nobody in particular.
    fn default() -> Self {
        let probes = ["/healthz*", "/livez*", "/readyz*", "/metrics*"].map(str::to_owned).to_vec();
        let health = Rule { non_resource_urls: probes, ..Rule::all(Level::None) };
        let rules = vec![health, Rule::all(Level::Metadata)];
        Self { rules, omit_stages: Vec::new(), omit_managed_fields: false }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// When there is none that makes sense.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_BYTES {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let file: File = serde_saphyr::from_str(&text).map_err(|error| Error::Parse {
            path: path.to_owned(),
            what: error.without_snippet().to_string(),
        })?;
        file.judge().map_err(|problems| Error::Invalid { path: path.to_owned(), problems })
    }

    /// What becomes of a request of this user; nobody is known by then of whom there is none.
    pub fn judge(&self, user: Option<&User>, attributes: &Attributes) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.matches(user, attributes));
        let level = rule.map_or(Level::None, |rule| rule.level);
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(rule.into_iter().flat_map(|rule| &rule.omit_stages));
        let own = rule.and_then(|rule| rule.omit_managed_fields);
        Verdict { level, omit_stages, omit_managed_fields: own.unwrap_or(self.omit_managed_fields) }
    }
}

// === impl Rule ===

impl Rule {
    fn all(level: Level) -> Self {
        Self {
            level,
            users: Vec::new(),
            user_groups: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            non_resource_urls: Vec::new(),
            omit_stages: Vec::new(),
            omit_managed_fields: None,
        }
    }

    fn matches(&self, user: Option<&User>, attributes: &Attributes) -> bool {
        let named = |user: &User| self.users.contains(&user.name);
        let grouped = |user: &User| user.groups.iter().any(|group| self.user_groups.contains(group));
        if !self.users.is_empty() && !user.is_some_and(named)
            || !self.user_groups.is_empty() && !user.is_some_and(grouped)
            || !self.verbs.is_empty() && !self.verbs.contains(&attributes.verb)
        {
            return false;
        }
        match &attributes.resource {
            Some(resource) if !self.namespaces.is_empty() || !self.resources.is_empty() => {
                (self.namespaces.is_empty() || self.namespaces.contains(&resource.namespace))
                    && (self.resources.is_empty()
                        || self.resources.iter().any(|group| group.matches(resource)))
            }
            None if !self.namespaces.is_empty() || !self.resources.is_empty() => false,
            None if !self.non_resource_urls.is_empty() => {
                self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                    Some(prefix) => attributes.path.starts_with(prefix),
                    None => attributes.path == *url,
                })
            }
            Some(_) => self.non_resource_urls.is_empty(),
            None => true,
        }
    }
}

// === impl Group ===

impl Group {
    fn matches(&self, asked: &crate::request::Resource) -> bool {
        if self.group != asked.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&asked.name) {
            return false;
        }
        self.resources.iter().any(|resource| match resource.split_once('/') {
            _ if resource == "*" => true,
            Some((parent, "*")) => parent == asked.resource,
            Some((parent, sub)) => {
                !asked.subresource.is_empty()
                    && sub == asked.subresource
                    && (parent == "*" || parent == asked.resource)
            }
            None => asked.subresource.is_empty() && *resource == asked.resource,
        })
    }
}

// === impl File ===

impl File {
    fn judge(self) -> Result<Policy, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut wrong = |line, key: String, what: String| problems.push(Problem { line, key, what });
        if self.api_version != "audit.k8s.io/v1" {
            wrong(0, "apiVersion".into(), format!("is audit.k8s.io/v1, not {:?}", self.api_version));
        }
        if self.kind != "Policy" {
            wrong(0, "kind".into(), format!("is Policy, not {:?}", self.kind));
        }
        if self.rules.is_empty() {
            wrong(0, "rules".into(), "names at least one rule".into());
        }
        let omit_stages = stages(0, "omitStages", &self.omit_stages, &mut wrong);
        let mut rules = Vec::new();
        for (index, Spanned { value: rule, defined, .. }) in self.rules.into_iter().enumerate() {
            let (line, at) = (defined.line(), |key: &str| format!("rules[{index}].{key}"));
            let level = Level::from_name(&rule.level);
            if level.is_none() {
                let levels = "None, Metadata, Request or RequestResponse";
                wrong(line, at("level"), format!("is {levels}, not {:?}", rule.level));
            }
            for (url, text) in rule.non_resource_urls.iter().enumerate() {
                let key = at(&format!("nonResourceURLs[{url}]"));
                if text != "*" && !text.starts_with('/') {
                    wrong(line, key, format!("begins with / or is *, not {text:?}"));
                } else if text.strip_suffix('*').unwrap_or(text).contains('*') {
                    wrong(line, key, format!("has no * but at its end: {text:?}"));
                }
            }
            let about_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if about_resources && !rule.non_resource_urls.is_empty() {
                let what = "a rule is about resources and namespaces, or about other paths, not about both";
                wrong(line, at("nonResourceURLs"), what.into());
            }
            for (group, Group { group: name, resources, resource_names }) in rule.resources.iter().enumerate()
            {
                if name.contains('/') {
                    let what = format!("is a group without its version, not {name:?}");
                    wrong(line, at(&format!("resources[{group}].group")), what);
                }
                if !resource_names.is_empty() && resources.is_empty() {
                    let what = "takes at least one resource that they are the names of".to_owned();
                    wrong(line, at(&format!("resources[{group}].resourceNames")), what);
                }
            }
            let omit_stages = stages(line, &at("omitStages"), &rule.omit_stages, &mut wrong);
            rules.push(Rule {
                level: level.unwrap_or(Level::None),
                users: rule.users,
                user_groups: rule.user_groups,
                verbs: rule.verbs,
                resources: rule.resources,
                namespaces: rule.namespaces,
                non_resource_urls: rule.non_resource_urls,
                omit_stages,
                omit_managed_fields: rule.omit_managed_fields,
            });
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Policy { rules, omit_stages, omit_managed_fields: self.omit_managed_fields })
    }
}

fn stages(line: u64, key: &str, names: &[String], wrong: &mut impl FnMut(u64, String, String)) -> Vec<Stage> {
    let mut stages = Vec::new();
    for (index, name) in names.iter().enumerate() {
        match name.as_str() {
            "RequestReceived" => stages.push(Stage::RequestReceived),
            "ResponseStarted" => stages.push(Stage::ResponseStarted),
            "ResponseComplete" => stages.push(Stage::ResponseComplete),
            "Panic" => stages.push(Stage::Panic),
            _ => {
                let known = "RequestReceived, ResponseStarted, ResponseComplete or Panic";
                wrong(line, format!("{key}[{index}]"), format!("is {known}, not {name:?}"));
            }
        }
    }
    stages
}

fn list(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut text, Problem { line, key, what }| {
        let place = if *line == 0 { String::new() } else { format!(", line {line}") };
        let _ = write!(text, "\n{key}{place}: {what}");
        text
    })
}

#[cfg(test)]
mod tests;
