//! Label and field selectors of lists and watches.
//!
//! Source: apimachinery `pkg/labels/selector.go`, `pkg/fields/selector.go`.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{Expression, Selector, SelectorExt};

use super::Object;
use crate::request::Query;
use crate::selector::names;
use crate::status::{Refusal, go_quote};

/// Which objects a request is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Select {
    labels: Labels,
    fields: Vec<Field>,
}

/// What is asked of labels: all of it.
#[derive(Debug, Clone, Default)]
struct Labels {
    selector: Selector,
    bounds: Vec<Bound>,
}

/// A label whose value is to be an integer on one side of another.
#[derive(Debug, Clone)]
struct Bound {
    key: String,
    above: bool,
    of: i64,
}

/// One part of a label selector.
enum Requirement {
    Set(Expression),
    Bound(Bound),
}

#[derive(Debug, Clone)]
struct Field {
    label: String,
    value: String,
    equal: bool,
}

// === impl Select ===

impl Select {
    /// What the query asks for; `unknown` says what is wrong with a field that objects of this kind cannot be selected by.
    ///
    /// # Errors
    /// 400 when a selector is none.
    pub(crate) fn of(query: &Query, unknown: impl Fn(&str) -> Option<String>) -> Result<Self, Refusal> {
        let text = |name| query.first(name).unwrap_or_default();
        Ok(Self { labels: labels(&text("labelSelector"))?, fields: fields(&text("fieldSelector"), unknown)? })
    }

    /// Narrows to one name; the empty name is none.
    pub(crate) fn only(&mut self, name: &str) {
        if !name.is_empty() {
            self.fields.push(Field { label: "metadata.name".into(), value: name.into(), equal: true });
        }
    }

    /// Whether it is about this object.
    pub(crate) fn matches(&self, object: &impl Object) -> bool {
        let labels = match &object.meta().labels {
            Some(labels) => self.labels.matches(labels),
            None => self.labels.matches(&BTreeMap::new()),
        };
        labels && self.fields.iter().all(|field| (value(object, &field.label) == field.value) == field.equal)
    }
}

// --- fields

fn fields(text: &str, unknown: impl Fn(&str) -> Option<String>) -> Result<Vec<Field>, Refusal> {
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
        if let Some(what) = unknown(label) {
            return Err(Refusal::BadRequest(what));
        }
        fields.push(Field { label: label.to_owned(), value: value.to_owned(), equal });
    }
    Ok(fields)
}

fn value(object: &impl Object, label: &str) -> String {
    let meta = object.meta();
    match label {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        _ => object.field(label),
    }
}

// --- labels

impl Labels {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.matches(labels) && self.bounds.iter().all(|bound| bound.matches(labels))
    }
}

impl Bound {
    /// A label that is missing or no integer is on neither side.
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key).and_then(|value| value.parse::<i64>().ok());
        value.is_some_and(|value| if self.above { value > self.of } else { value < self.of })
    }
}

/// A word or a sign of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(&'static str),
}

fn labels(text: &str) -> Result<Labels, Refusal> {
    let mut labels = Labels::default();
    let tokens = tokens(text);
    let mut rest = tokens.as_slice();
    while !rest.is_empty() {
        let (requirement, after) = requirement(rest).map_err(|what| unparsed(&what))?;
        match requirement {
            Requirement::Set(expression) => {
                labels.selector.extend(expression);
            }
            Requirement::Bound(bound) => labels.bounds.push(bound),
        }
        rest = match after {
            [] => after,
            [Token::Sign(","), next, ..] if *next != Token::Sign(",") => &after[1..],
            [found, ..] => return Err(unparsed(&expected(Some(found), "',' or end of string"))),
        };
    }
    Ok(labels)
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

fn tokens(text: &str) -> Vec<Token> {
    const SIGNS: [&str; 9] = ["!=", "==", "=", "!", ",", "(", ")", "<", ">"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            tokens.push(Token::Sign(sign));
            rest = rest[sign.len()..].trim_start();
            continue;
        }
        let special = |ch: char| ch.is_whitespace() || "!=,()<>".contains(ch);
        let end = rest.find(special).unwrap_or(rest.len());
        tokens.push(Token::Word(rest[..end].to_owned()));
        rest = rest[end..].trim_start();
    }
    tokens
}

fn requirement(tokens: &[Token]) -> Result<(Requirement, &[Token]), String> {
    if let [Token::Word(key), ..] | [Token::Sign("!"), Token::Word(key), ..] = tokens {
        // Upstream, too, knows no path to the key at this point and says so.
        names::key(key).map_err(|why| invalid("<nil>", key, &why))?;
    }
    match tokens {
        [Token::Sign("!"), Token::Word(key), rest @ ..] => {
            Ok((Requirement::Set(Expression::DoesNotExist(key.clone())), rest))
        }
        [Token::Word(key), Token::Sign(sign @ ("=" | "==" | "!=" | ">" | "<")), rest @ ..] => {
            // Nothing after the sign is the empty value.
            let (value, rest) = match rest {
                [Token::Word(value), rest @ ..] => (value.clone(), rest),
                [] | [Token::Sign(","), ..] => (String::new(), rest),
                [found, ..] => return Err(expected(Some(found), "identifier")),
            };
            let key = key.clone();
            let requirement = match *sign {
                ">" => Requirement::Bound(Bound { of: integer(&key, &value)?, key, above: true }),
                "<" => Requirement::Bound(Bound { of: integer(&key, &value)?, key, above: false }),
                sign => {
                    check(&key, [&value], Vec::new())?;
                    let make = if sign == "!=" { Expression::NotEqual } else { Expression::Equal };
                    Requirement::Set(make(key, value))
                }
            };
            Ok((requirement, rest))
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
            check(key, &values, Vec::new())?;
            Ok((Requirement::Set(make(key.clone(), values)), rest))
        }
        [Token::Word(key), rest @ ..] => Ok((Requirement::Set(Expression::Exists(key.clone())), rest)),
        _ => Err(expected(tokens.first(), "!, identifier, or 'end of string'")),
    }
}

fn integer(key: &str, value: &str) -> Result<i64, String> {
    let number = value.parse();
    let mut wrong = Vec::new();
    if number.is_err() {
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        wrong.push(invalid("values[0]", value, why));
    }
    check(key, [value], wrong)?;
    Ok(number.unwrap_or_default())
}

/// Refuses values that no label has, with what is `wrong` already, as upstream prints several errors.
fn check(
    key: &str,
    values: impl IntoIterator<Item = impl AsRef<str>>,
    mut wrong: Vec<String>,
) -> Result<(), String> {
    for (at, value) in values.into_iter().enumerate() {
        let value = value.as_ref();
        if let Err(why) = names::value(value) {
            wrong.push(invalid(&format!("values[{at}][{key}]"), value, &why));
        }
    }
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

fn invalid(path: &str, value: &str, why: &str) -> String {
    format!("{path}: Invalid value: {}: {why}", go_quote(value.as_bytes()))
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

    #[test]
    fn label_selectors_select_as_the_api_server_does() {
        let on: BTreeMap<String, String> = [("app", "web"), ("tier", "front"), ("empty", ""), ("rank", "7")]
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
            ("rank>6,rank < 10", true),
            ("rank>7", false),
            ("rank<7", false),
            ("missing<1", false),
            ("app>1", false),
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
            (
                "app>x",
                "values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            ("/app", "<nil>: Invalid value: \"/app\": prefix part must be non-empty"),
            (
                "app=-x",
                "values[0][app]: Invalid value: \"-x\": a valid label must be an empty string or consist of \
                 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                 character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (
                "!a$b",
                "<nil>: Invalid value: \"a$b\": name part must consist of alphanumeric characters, '-', '_' or \
                 '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
                 '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
        ] {
            assert_eq!(
                labels(text).unwrap_err().message(),
                format!("unable to parse requirement: {what}"),
                "{text}"
            );
        }
    }
}
