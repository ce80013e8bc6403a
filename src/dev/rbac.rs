//! RBAC: the API server's own authorizer, over the roles and bindings of the store.
//!
//! In the flow: behind the embedded cluster's review, and behind access reviews asked through its API. Pure
//! functions of a snapshot; nothing is cached. Cluster bindings are looked at before those of the namespace,
//! each in order of name, and the first rule that allows decides and gives the reason. Nothing denies: a role
//! that is not there is only told in the reason of a request that nothing else allows. A resource in a rule
//! is `*`, `pods`, `pods/exec` or `*/exec`. There is no `pods/*`: upstream compares it as plain text, so it
//! matches nothing, and loading such a rule warns.
//! Source: kubernetes `plugin/pkg/auth/authorizer/rbac/rbac.go`, `pkg/registry/rbac/validation/rule.go`,
//! `pkg/apis/rbac/v1/evaluation_helpers.go`; `pkg/controller/clusterroleaggregation` for aggregated roles.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, RoleRef, Subject};
use kube::core::{Selector, SelectorExt};

use super::store::{Kind, Object, Objects};
use crate::cluster::{Decision, User};
use crate::request::{Attributes, Resource};
use crate::status::go_quote;

/// The group that is allowed everything before anyone is asked, as the API server's privileged group.
const MASTERS: &str = "system:masters";

/// Why a binding's rules cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no role of this name; the text is the API server's.
    #[error("{kind}.rbac.authorization.k8s.io {} not found", go_quote(name.as_bytes()))]
    NoRole {
        /// `role` or `clusterrole`.
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// A reference to something that is no role.
    #[error("unsupported role reference kind: {}", go_quote(.0.as_bytes()))]
    Kind(String),
}

/// A rule that applies to a user, and the binding it comes from.
struct Grant<'a> {
    binding: &'a Object,
    role_ref: &'a RoleRef,
    subject: &'a Subject,
    rule: &'a PolicyRule,
}

/// May this user do this?
pub fn review(objects: &Objects, user: &User, attributes: &Attributes) -> Decision {
    if user.groups.iter().any(|group| group == MASTERS) {
        return Decision { allowed: true, reason: String::new() };
    }
    let namespace = attributes.resource.as_ref().map_or("", |resource| &resource.namespace);
    let mut errors = Vec::new();
    let mut allowed = None;
    visit(objects, user, namespace, |grant| {
        match grant {
            Ok(grant) if allows(grant.rule, attributes) => {
                allowed = Some(format!("RBAC: allowed by {grant}"));
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
        allowed.is_none()
    });
    match allowed {
        Some(reason) => Decision { allowed: true, reason },
        None => Decision {
            allowed: false,
            reason: join(&errors).map_or(String::new(), |errors| format!("RBAC: {errors}")),
        },
    }
}

/// Every rule that applies to this user in this namespace, and what could not be resolved.
pub fn rules(objects: &Objects, user: &User, namespace: &str) -> (Vec<PolicyRule>, Option<String>) {
    let mut rules = Vec::new();
    let mut errors = Vec::new();
    visit(objects, user, namespace, |grant| {
        match grant {
            Ok(grant) => rules.push(grant.rule.clone()),
            Err(error) => errors.push(error),
        }
        true
    });
    (rules, join(&errors))
}

/// The aggregated roles among these, with the rules of the roles they select.
///
/// A role may select an aggregated one, so this goes on until nothing changes; two roles that select each
/// other could change for ever, so it goes on at most once per role.
pub fn aggregate(mut roles: Vec<Arc<ClusterRole>>) -> Vec<Arc<ClusterRole>> {
    for _ in 0..roles.len() {
        let mut changed = false;
        for index in 0..roles.len() {
            let Some(rules) = aggregated(&roles, index) else {
                continue;
            };
            if roles[index].rules.as_ref() != Some(&rules) {
                Arc::make_mut(&mut roles[index]).rules = Some(rules);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    roles.retain(|role| role.aggregation_rule.is_some());
    roles
}

fn aggregated(roles: &[Arc<ClusterRole>], index: usize) -> Option<Vec<PolicyRule>> {
    let selectors = roles[index].aggregation_rule.as_ref()?.cluster_role_selectors.as_ref();
    let mut rules = Vec::new();
    for selector in selectors.into_iter().flatten() {
        // A selector that means nothing selects nothing.
        let Ok(selector) = Selector::try_from(selector.clone()) else {
            continue;
        };
        for (other, role) in roles.iter().enumerate() {
            let labels = role.metadata.labels.clone().unwrap_or_default();
            if other == index || !selector.matches(&labels) {
                continue;
            }
            for rule in role.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

/// Shows every grant to `visitor`, in upstream's order, until it says that is enough.
fn visit<'a>(
    objects: &'a Objects,
    user: &User,
    namespace: &'a str,
    mut visitor: impl FnMut(Result<Grant<'a>, Error>) -> bool,
) {
    let cluster = objects.list(Kind::ClusterRoleBinding, None);
    let local = (!namespace.is_empty())
        .then(|| objects.list(Kind::RoleBinding, Some(namespace)))
        .into_iter()
        .flatten();
    for binding in cluster.chain(local) {
        let (role_ref, subjects) = match binding {
            Object::ClusterRoleBinding(binding) => (&binding.role_ref, &binding.subjects),
            Object::RoleBinding(binding) => (&binding.role_ref, &binding.subjects),
            _ => continue,
        };
        let within = binding.namespace();
        let Some(subject) = subjects.iter().flatten().find(|subject| applies(user, subject, within)) else {
            continue;
        };
        let rules = match role_rules(objects, role_ref, within) {
            Ok(rules) => rules,
            Err(error) => {
                if !visitor(Err(error)) {
                    return;
                }
                continue;
            }
        };
        for rule in rules {
            let grant = Grant { binding, role_ref, subject, rule };
            if !visitor(Ok(grant)) {
                return;
            }
        }
    }
}

fn role_rules<'a>(
    objects: &'a Objects,
    role_ref: &RoleRef,
    namespace: &str,
) -> Result<&'a [PolicyRule], Error> {
    let missing = |kind| Error::NoRole { kind, name: role_ref.name.clone() };
    let rules = match role_ref.kind.as_str() {
        "Role" => match objects.get(Kind::Role, namespace, &role_ref.name) {
            Some(Object::Role(role)) => &role.rules,
            _ => return Err(missing("role")),
        },
        "ClusterRole" => match objects.get(Kind::ClusterRole, "", &role_ref.name) {
            Some(Object::ClusterRole(role)) => &role.rules,
            _ => return Err(missing("clusterrole")),
        },
        other => return Err(Error::Kind(other.to_owned())),
    };
    Ok(rules.as_deref().unwrap_or_default())
}

/// Whether a binding's subject is this user; service accounts default to the binding's namespace.
fn applies(user: &User, subject: &Subject, namespace: &str) -> bool {
    match subject.kind.as_str() {
        "User" => user.name == subject.name,
        "Group" => user.groups.contains(&subject.name),
        "ServiceAccount" => {
            let own = subject.namespace.as_deref().filter(|own| !own.is_empty());
            let namespace = own.unwrap_or(namespace);
            !namespace.is_empty()
                && user
                    .name
                    .strip_prefix("system:serviceaccount:")
                    .and_then(|rest| rest.strip_prefix(namespace))
                    .and_then(|rest| rest.strip_prefix(':'))
                    == Some(subject.name.as_str())
        }
        _ => false,
    }
}

fn allows(rule: &PolicyRule, attributes: &Attributes) -> bool {
    if !any(Some(&rule.verbs), |verb| verb == "*" || verb == attributes.verb) {
        return false;
    }
    match &attributes.resource {
        Some(asked) => {
            any(rule.api_groups.as_ref(), |group| group == "*" || group == asked.group)
                && any(rule.resources.as_ref(), |resource| names(resource, asked))
                && (rule.resource_names.as_ref().is_none_or(Vec::is_empty)
                    || any(rule.resource_names.as_ref(), |name| name == asked.name))
        }
        None => any(rule.non_resource_urls.as_ref(), |url| covers(url, &attributes.path)),
    }
}

fn any(list: Option<&Vec<String>>, test: impl Fn(&str) -> bool) -> bool {
    list.into_iter().flatten().any(|item| test(item))
}

fn names(resource: &str, asked: &Resource) -> bool {
    if resource == "*" {
        return true;
    }
    if asked.subresource.is_empty() {
        return resource == asked.resource;
    }
    resource.strip_prefix("*/") == Some(&asked.subresource)
        || resource.strip_prefix(asked.resource.as_str()).and_then(|rest| rest.strip_prefix('/'))
            == Some(&asked.subresource)
}

fn covers(url: &str, path: &str) -> bool {
    url == "*" || url == path || (url.ends_with('*') && path.starts_with(url.trim_end_matches('*')))
}

/// As Go's aggregated errors read: each text once, in brackets when there are several.
fn join(errors: &[Error]) -> Option<String> {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [] => None,
        [only] => Some(only.clone()),
        several => Some(format!("[{}]", several.join(", "))),
    }
}

// === impl Grant ===

impl fmt::Display for Grant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scoped = |name: &str, namespace: &str| match namespace {
            "" => go_quote(name.as_bytes()),
            namespace => go_quote(format!("{name}/{namespace}").as_bytes()),
        };
        let within = self.binding.namespace();
        let subject = match self.subject.kind.as_str() {
            "ServiceAccount" => {
                let own = self.subject.namespace.as_deref().filter(|own| !own.is_empty());
                scoped(&self.subject.name, own.unwrap_or(within))
            }
            _ => scoped(&self.subject.name, ""),
        };
        write!(
            f,
            "{} {} of {} {} to {} {subject}",
            self.binding.kind().as_str(),
            scoped(self.binding.name(), within),
            self.role_ref.kind,
            scoped(&self.role_ref.name, ""),
            self.subject.kind,
        )
    }
}

#[cfg(test)]
mod tests;
