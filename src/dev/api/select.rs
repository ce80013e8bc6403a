//! Label and field selectors of lists and watches.
//!
//! Source: apimachinery `pkg/labels/selector.go`, `pkg/fields/selector.go`; field labels by
//! `pkg/apis/core/v1/conversion.go` and apimachinery `pkg/runtime/conversion.go`.

use std::collections::BTreeSet;

use kube::core::{Expression, Selector, SelectorExt};

use crate::dev::store::{Kind, Object};
use crate::request::Query;
use crate::status::{Refusal, go_quote};

/// Which objects a request is about.
#[derive(Debug, Clone, Default)]
pub(super) struct Select {
    labels: Selector,
    fields: Vec<Field>,
}

#[derive(Debug, Clone)]
struct Field {
    label: String,
    value: String,
    equal: bool,
}

// === impl Select ===

impl Select {
    pub(super) fn of(kind: Kind, query: &Query) -> Result<Self, Refusal> {
        let text = |name| query.first(name).unwrap_or_default();
        Ok(Self { labels: labels(&text("labelSelector"))?, fields: fields(kind, &text("fieldSelector"))? })
    }

    /// Narrows to one name; the empty name is none.
    pub(super) fn only(&mut self, name: &str) {
        if !name.is_empty() {
            self.fields.push(Field { label: "metadata.name".into(), value: name.into(), equal: true });
        }
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        let labels = match &object.meta().labels {
            Some(labels) => self.labels.matches(labels),
            None => self.labels.selects_all() || self.labels.matches(&Default::default()),
        };
        labels && self.fields.iter().all(|field| (value(object, &field.label) == field.value) == field.equal)
    }
}

// --- fields

fn fields(kind: Kind, text: &str) -> Result<Vec<Field>, Refusal> {
    let mut fields = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (label, value, equal) = if let Some((label, value)) = part.split_once("!=") {
            (label, value, false)
        } else if let Some((label, value)) = part.split_once("==") {
            (label, value, true)
        } else if let Some((label, value)) = part.split_once('=') {
            (label, value, true)
        } else {
            return Err(Refusal::BadRequest(format!(
                "invalid selector: '{text}'; can't understand '{part}'"
            )));
        };
        if !known(kind, label) {
            return Err(Refusal::BadRequest(match kind.group() {
                "" => format!("field label not supported: {label}"),
                _ => format!(
                    "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    go_quote(label.as_bytes())
                ),
            }));
        }
        fields.push(Field { label: label.to_owned(), value: value.to_owned(), equal });
    }
    Ok(fields)
}

fn known(kind: Kind, label: &str) -> bool {
    match kind {
        _ if label == "metadata.name" => true,
        Kind::Namespace => label == "status.phase",
        Kind::Node => label == "spec.unschedulable",
        Kind::Pod => matches!(
            label,
            "metadata.namespace"
                | "spec.nodeName"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.serviceAccountName"
                | "spec.hostNetwork"
                | "status.phase"
                | "status.podIP"
                | "status.nominatedNodeName"
        ),
        Kind::ClusterRole | Kind::ClusterRoleBinding | Kind::Role | Kind::RoleBinding => {
            label == "metadata.namespace"
        }
    }
}

fn value(object: &Object, label: &str) -> String {
    let common = match label {
        "metadata.name" => object.name(),
        "metadata.namespace" => object.namespace(),
        _ => "",
    };
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    match object {
        Object::Namespace(namespace) if label == "status.phase" => {
            text(namespace.status.as_ref().and_then(|status| status.phase.as_ref()))
        }
        Object::Node(node) if label == "spec.unschedulable" => {
            let spec = node.spec.as_ref();
            spec.and_then(|spec| spec.unschedulable).unwrap_or(false).to_string()
        }
        Object::Pod(pod) => {
            let spec = pod.spec.as_ref();
            let status = pod.status.as_ref();
            match label {
                "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
                "spec.restartPolicy" => text(spec.and_then(|spec| spec.restart_policy.as_ref())),
                "spec.schedulerName" => text(spec.and_then(|spec| spec.scheduler_name.as_ref())),
                "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
                "spec.hostNetwork" => spec.and_then(|spec| spec.host_network).unwrap_or(false).to_string(),
                "status.phase" => text(status.and_then(|status| status.phase.as_ref())),
                "status.podIP" => text(status.and_then(|status| status.pod_ip.as_ref())),
                "status.nominatedNodeName" => {
                    text(status.and_then(|status| status.nominated_node_name.as_ref()))
                }
                _ => common.to_owned(),
            }
        }
        _ => common.to_owned(),
    }
}

// --- labels

/// A word or a sign of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(&'static str),
}

fn labels(text: &str) -> Result<Selector, Refusal> {
    let mut selector = Selector::default();
    let tokens = tokens(text).map_err(|what| unparsed(&what))?;
    let mut rest = tokens.as_slice();
    while !rest.is_empty() {
        let (expression, after) = requirement(rest).map_err(|what| unparsed(&what))?;
        selector.extend(expression);
        rest = match after {
            [] => after,
            [Token::Sign(","), next, ..] if *next != Token::Sign(",") => &after[1..],
            [found, ..] => return Err(unparsed(&expected(Some(found), "',' or end of string"))),
        };
    }
    Ok(selector)
}

fn unparsed(what: &str) -> Refusal {
    Refusal::BadRequest(format!("unable to parse requirement: {what}"))
}

fn expected(found: Option<&Token>, what: &str) -> String {
    let found = match found {
        Some(Token::Word(word)) => word.as_str(),
        Some(Token::Sign(sign)) => sign,
        None => "",
    };
    format!("found '{found}', expected: {what}")
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    const SIGNS: [&str; 7] = ["!=", "==", "=", "!", ",", "(", ")"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            tokens.push(Token::Sign(sign));
            rest = rest[sign.len()..].trim_start();
            continue;
        }
        if rest.starts_with(['<', '>']) {
            return Err("'<' and '>' are not supported here".to_owned());
        }
        let special = |ch: char| ch.is_whitespace() || "!=,()<>".contains(ch);
        let end = rest.find(special).unwrap_or(rest.len());
        tokens.push(Token::Word(rest[..end].to_owned()));
        rest = rest[end..].trim_start();
    }
    Ok(tokens)
}

fn requirement(tokens: &[Token]) -> Result<(Expression, &[Token]), String> {
    match tokens {
        [Token::Sign("!"), Token::Word(key), rest @ ..] => Ok((Expression::DoesNotExist(key.clone()), rest)),
        [Token::Word(key), Token::Sign(sign @ ("=" | "==" | "!=")), rest @ ..] => {
            // Nothing after the sign is the empty value.
            let (value, rest) = match rest {
                [Token::Word(value), rest @ ..] => (value.clone(), rest),
                [] | [Token::Sign(","), ..] => (String::new(), rest),
                [found, ..] => return Err(expected(Some(found), "identifier")),
            };
            let make = if *sign == "!=" { Expression::NotEqual } else { Expression::Equal };
            Ok((make(key.clone(), value), rest))
        }
        [Token::Word(key), Token::Word(word), rest @ ..] => {
            let make = match word.as_str() {
                "in" => Expression::In,
                "notin" => Expression::NotIn,
                _ => {
                    let signs = "in, notin, =, ==, !=, gt, lt";
                    return Err(expected(tokens.get(1), signs));
                }
            };
            let (values, rest) = values(rest)?;
            Ok((make(key.clone(), values), rest))
        }
        [Token::Word(key), rest @ ..] => Ok((Expression::Exists(key.clone()), rest)),
        _ => Err(expected(tokens.first(), "!, identifier, or 'end of string'")),
    }
}

/// `(a, b)`; an empty place is the empty value.
fn values(tokens: &[Token]) -> Result<(BTreeSet<String>, &[Token]), String> {
    let [Token::Sign("("), rest @ ..] = tokens else {
        return Err(expected(tokens.first(), "'('"));
    };
    let mut rest = rest;
    let mut values = BTreeSet::new();
    loop {
        let value = match rest {
            [Token::Word(value), after @ ..] => {
                rest = after;
                value.clone()
            }
            _ => String::new(),
        };
        values.insert(value);
        match rest {
            [Token::Sign(","), after @ ..] => rest = after,
            [Token::Sign(")"), after @ ..] => return Ok((values, after)),
            _ => return Err(expected(rest.first(), "',' or ')'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn label_selectors_select_as_the_api_server_does() {
        let on: BTreeMap<String, String> = [("app", "web"), ("tier", "front"), ("empty", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (text, matches) in [
            ("", true),
            ("app=web", true),
            ("app == web, tier!=back", true),
            ("app=db", false),
            ("app!=db,missing!=x", true),
            ("app in (web, db),tier notin (back)", true),
            ("app in (db)", false),
            ("missing notin (x)", true),
            ("app,!missing", true),
            ("!app", false),
            ("empty=", true),
            ("empty in ()", true),
            ("a.b/c in (d)", false),
        ] {
            assert_eq!(labels(text).unwrap().matches(&on), matches, "{text}");
        }
        for (text, what) in [
            ("app=web=x", "found '=', expected: ',' or end of string"),
            ("app in web", "found 'web', expected: '('"),
            ("app in (web", "found '', expected: ',' or ')'"),
            ("app like web", "found 'like', expected: in, notin, =, ==, !=, gt, lt"),
            ("=web", "found '=', expected: !, identifier, or 'end of string'"),
            ("app=web,", "found ',', expected: ',' or end of string"),
        ] {
            assert_eq!(
                labels(text).unwrap_err().message(),
                format!("unable to parse requirement: {what}"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_unknown_field_label_is_refused_in_the_api_servers_words() {
        for (kind, text, message) in [
            (Kind::Pod, "spec.foo=x", "field label not supported: spec.foo"),
            (Kind::Node, "status.phase=x", "field label not supported: status.phase"),
            (
                Kind::Role,
                "rules=x",
                "\"rules\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
            (Kind::Pod, "nonsense", "invalid selector: 'nonsense'; can't understand 'nonsense'"),
        ] {
            assert_eq!(fields(kind, text).unwrap_err().message(), message);
        }
    }
}
