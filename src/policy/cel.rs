//! CEL: an expression over everything that rules look at.
//!
//! The crate that evaluates has no limit of its own, so an expression is measured when it is compiled: the worst that its
//! evaluation can cost, for values within the bounds of [`VARIABLES`]. What would cost too much is refused, and values
//! beyond these bounds are an error of the evaluation, which never allows. Functions that make much of little
//! (`replace`, `format`, `lists.range`) are left out. Invariant: the estimate is never below what an evaluation costs.
//! Source: the idea of static cost is that of apiserver `pkg/cel/library/cost.go`.

use std::collections::HashMap;
use std::time::Duration;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::{Context, Value};
use regex::RegexBuilder;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::Asked;
use crate::cluster::User;
use crate::expression::{self, ENV};

/// What one expression may cost, in steps of some 100 ns: some tens of milliseconds, which only values at all their bounds
/// at once can make it take. A rule's usual expression costs some hundred.
pub const MAX_COST: u64 = 200_000;

/// What a byte costs that is compared, copied or looked through: so many of them are a step.
const BYTES_A_STEP: u64 = 512;

/// What a part costs beside its bytes: finding a function, a value of its own.
const PART: u64 = 2;

/// Bytes of a regular expression as it is compiled, which is each time it is used, and steps for that.
const REGEX_SIZE: usize = 64 * 1024;
const REGEX_COST: u64 = 1000;

/// Bytes that a regular expression looks at in a step.
const REGEX_BYTES_A_STEP: u64 = 8;

/// Bytes of a value that is no text: a number, an instant.
const SCALAR: u64 = 16;

/// Variables, and how large their values may be.
const VARIABLES: [(&str, Size); 15] = [
    ("user", Size::text(1024)),
    ("groups", Size::list(1024, 512)),
    // `namespace` is a reserved word of CEL.
    ("ns", Size::text(64)),
    ("pod", Size::text(256)),
    // Kubernetes bounds the parts of labels, and the sum of annotations.
    ("labels", Size::list(128, 320)),
    ("annotations", Size { each: 256 * 1024, ..Size::list(256, 1024) }),
    ("container", Size::text(256)),
    ("image", Size::text(1024)),
    ("subresource", Size::text(16)),
    ("command", Size::list(128, 4096)),
    ("tty", Size::text(SCALAR)),
    ("stdin", Size::text(SCALAR)),
    ("source", Size::text(64)),
    ("now", Size::text(SCALAR)),
    ("reason", Size::text(1024)),
];

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    parsed: IdedExpr,
    /// The variables that it looks at: making the others would be for nothing.
    uses: Vec<&'static str>,
    cost: u64,
}

/// How large a value can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    /// Items of a list, keys of a map; a text has none.
    items: u64,
    /// Bytes of the largest of them.
    each: u64,
    /// Bytes of the whole.
    total: u64,
    /// Whether the items may be lists or maps themselves.
    deep: bool,
}

/// What a part costs, and how large its value can be.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    cost: u64,
    size: Size,
}

/// Estimates an expression.
struct Estimator<'a> {
    bound: Vec<(&'a str, Size)>,
}

// === impl Expression ===

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, that it would run too long among others.
    pub fn compile(source: &str) -> Result<Self, String> {
        let names = VARIABLES.map(|(name, _)| name);
        let mut uses = Vec::new();
        let parsed = expression::parse(source, &names, &mut |part| {
            if let Expr::Ident(name) = &part.expr
                && let Some(known) = names.iter().find(|known| *known == name)
                && !uses.contains(known)
            {
                uses.push(*known);
            }
        })?;
        let made = VARIABLES.iter().filter(|(name, _)| uses.contains(name));
        let made: u64 = made.map(|(_, size)| size.items + size.bytes()).sum();
        let cost = Estimator { bound: Vec::new() }.part(&parsed)?.cost.saturating_add(made);
        if cost > MAX_COST {
            return Err(format!(
                "would run long: {cost} steps where values are large, of at most {MAX_COST}"
            ));
        }
        Ok(Self { parsed, uses, cost })
    }

    /// What it costs at most, in steps.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Whether the clock alone can make its answer another.
    pub fn uses_now(&self) -> bool {
        self.uses.contains(&"now")
    }

    /// Whether it holds of this, for one of those who answer for it.
    ///
    /// # Errors
    /// When it cannot be evaluated, or makes something else than yes or no; without any value.
    pub fn holds(&self, asked: &Asked<'_>, user: &User) -> Result<bool, String> {
        let mut context = Context::with_env(ENV.clone());
        for name in &self.uses {
            let value = variable(name, asked, user);
            let value = value.ok_or_else(|| format!("the value of {name} is larger than it may be"))?;
            context.add_variable_from_value(*name, value);
        }
        match Value::resolve(&self.parsed, &context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err("it makes something else than true or false".to_owned()),
            Err(error) => Err(expression::describe(&error)),
        }
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::compile(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The value of a variable, unless it is beyond its bounds.
fn variable(name: &str, asked: &Asked<'_>, user: &User) -> Option<Value> {
    let (_, size) = VARIABLES.into_iter().find(|(known, _)| *known == name)?;
    let fits = |length: usize, most: u64| u64::try_from(length).is_ok_and(|length| length <= most);
    let text = |text: &str| fits(text.len(), size.total).then(|| Value::from(text));
    let list = |items: &mut dyn Iterator<Item = String>| {
        let mut list = Vec::new();
        for item in items {
            if !fits(list.len() + 1, size.items) || !fits(item.len(), size.each) {
                return None;
            }
            list.push(Value::from(item));
        }
        Some(Value::from(list))
    };
    let map = |entries: &std::collections::BTreeMap<String, String>| {
        let total: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
        if !fits(entries.len(), size.items) || !fits(total, size.total) {
            return None;
        }
        let entries = entries.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        Some(Value::from(entries.collect::<HashMap<String, Value>>()))
    };
    match name {
        "user" => text(&user.name),
        "groups" => list(&mut user.groups.iter().cloned()),
        "ns" => text(&asked.exec.namespace),
        "pod" => text(&asked.exec.pod),
        "labels" => map(&asked.pod.labels),
        "annotations" => map(&asked.pod.annotations),
        "container" => text(asked.container),
        "image" => text(asked.pod.image(asked.container)),
        "subresource" => text(asked.exec.subresource.as_str()),
        "command" => {
            let words = asked.exec.command.iter().map(|word| String::from_utf8_lossy(word).into_owned());
            list(&mut { words })
        }
        "tty" => Some(Value::Bool(asked.exec.tty)),
        "stdin" => Some(Value::Bool(asked.exec.stdin)),
        "source" => text(&asked.client.to_string()),
        "now" => {
            let since = Duration::try_from(asked.now.as_duration()).ok()?;
            let seconds = i64::try_from(since.as_secs()).ok()?;
            let now = chrono::DateTime::from_timestamp(seconds, since.subsec_nanos())?;
            Some(Value::Timestamp(now.fixed_offset()))
        }
        "reason" => text(asked.reason.unwrap_or_default()),
        _ => None,
    }
}

// === impl Size ===

impl Size {
    const NONE: Self = Self::text(0);

    const fn text(bytes: u64) -> Self {
        Self { items: 0, each: 0, total: bytes, deep: false }
    }

    const fn list(items: u64, each: u64) -> Self {
        Self { items, each, total: items * each, deep: false }
    }

    /// An item of it.
    fn item(self) -> Self {
        match self.deep {
            true => Self { items: self.each, each: self.each, total: self.each, deep: true },
            false => Self::text(self.each),
        }
    }

    /// Both together.
    fn and(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_add(other.items),
            each: self.each.max(other.each),
            total: self.total.saturating_add(other.total),
            deep: self.deep || other.deep,
        }
    }

    /// Either of them.
    fn or(self, other: Self) -> Self {
        Self {
            items: self.items.max(other.items),
            each: self.each.max(other.each),
            total: self.total.max(other.total),
            deep: self.deep || other.deep,
        }
    }

    fn bytes(self) -> u64 {
        self.total / BYTES_A_STEP
    }
}

// === impl Estimator ===

impl<'a> Estimator<'a> {
    fn part(&mut self, part: &'a IdedExpr) -> Result<Estimate, String> {
        let leaf = |size| Ok(Estimate { cost: PART, size });
        match &part.expr {
            Expr::Literal(LiteralValue::String(text)) => leaf(Size::text(text.inner().len() as u64)),
            Expr::Literal(LiteralValue::Bytes(bytes)) => leaf(Size::text(bytes.inner().len() as u64)),
            Expr::Literal(_) => leaf(Size::text(SCALAR)),
            Expr::Ident(name) => {
                let bound = self.bound.iter().rev().find(|(bound, _)| bound == name);
                let known = || VARIABLES.iter().find(|(known, _)| known == name);
                // Names of types.
                let size = bound.or_else(known).map_or(Size::text(SCALAR), |(_, size)| *size);
                leaf(size)
            }
            Expr::Select(select) => {
                let of = self.part(&select.operand)?;
                let size = if select.test { Size::text(SCALAR) } else { of.size.item() };
                Ok(Estimate { cost: of.cost.saturating_add(PART), size })
            }
            Expr::Call(call) => {
                let mut parts = Vec::new();
                for part in call.target.iter().map(Box::as_ref).chain(&call.args) {
                    parts.push(self.part(part)?);
                }
                let own = function(&call.func_name, &parts, call.args.last())?;
                let cost = parts.iter().fold(own.cost, |cost, part| cost.saturating_add(part.cost));
                Ok(Estimate { cost: cost.saturating_add(PART), size: own.size })
            }
            Expr::List(list) => {
                let items =
                    list.elements.iter().map(|item| self.part(item)).collect::<Result<Vec<_>, _>>()?;
                Ok(collection(&items, items.len()))
            }
            Expr::Map(map) => {
                let mut parts = Vec::new();
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        parts.extend([self.part(&entry.key)?, self.part(&entry.value)?]);
                    }
                }
                Ok(collection(&parts, map.entries.len()))
            }
            Expr::Comprehension(loop_) => {
                let over = self.part(&loop_.iter_range)?;
                let begin = self.part(&loop_.accu_init)?;
                let lists = matches!(&loop_.accu_init.expr, Expr::List(list) if list.elements.is_empty());
                if !lists && !matches!(loop_.accu_init.expr, Expr::Literal(_)) {
                    return Err("has a loop of a kind that rules do not have".to_owned());
                }
                let outside = self.bound.len();
                self.bound.push((&loop_.iter_var, over.size.item()));
                self.bound.extend(loop_.iter_var2.as_deref().map(|name| (name, over.size.item())));
                self.bound.push((&loop_.accu_var, begin.size));
                let (goes_on, step) = (self.part(&loop_.loop_cond)?, self.part(&loop_.loop_step)?);
                let rounds = over.size.items;
                let made = match lists {
                    true => Size {
                        items: step.size.items.saturating_mul(rounds),
                        each: step.size.each,
                        total: step.size.total.saturating_mul(rounds),
                        deep: step.size.deep,
                    },
                    false => Size::text(SCALAR),
                };
                self.bound.truncate(outside);
                self.bound.push((&loop_.accu_var, made));
                let result = self.part(&loop_.result)?;
                self.bound.truncate(outside);
                let item = over.size.item().bytes().saturating_add(2 * PART);
                let round = goes_on.cost.saturating_add(step.cost).saturating_add(item);
                let all = round.saturating_mul(rounds).saturating_add(made.bytes());
                let cost =
                    [begin.cost, over.cost, result.cost, PART].iter().fold(all, |a, b| a.saturating_add(*b));
                Ok(Estimate { cost, size: result.size })
            }
            Expr::Struct(_) | Expr::Unspecified => Err("makes a value that rules have no use for".to_owned()),
        }
    }
}

/// A list or a map of these parts.
fn collection(parts: &[Estimate], items: usize) -> Estimate {
    let all = parts.iter().fold(Size::NONE, |all, part| all.and(part.size));
    let each = parts.iter().map(|part| part.size.total).max().unwrap_or(0);
    let deep = parts.iter().any(|part| part.size.items > 0);
    let cost = parts.iter().fold(PART, |cost, part| cost.saturating_add(part.cost).saturating_add(PART));
    Estimate {
        cost: cost.saturating_add(all.bytes()),
        size: Size { items: items as u64, each, total: all.total, deep },
    }
}

/// What a call costs beside its parts, and how large its value can be.
fn function(name: &str, parts: &[Estimate], last: Option<&IdedExpr>) -> Result<Estimate, String> {
    let sizes = || parts.iter().map(|part| part.size);
    let all = sizes().fold(Size::NONE, Size::and);
    let first = sizes().next().unwrap_or(Size::text(SCALAR));
    let scalar = |cost: u64| Ok(Estimate { cost, size: Size::text(SCALAR) });
    match name {
        "_&&_" | "_||_" | "!_" | "-_" | "_-_" | "_*_" | "_/_" | "_%_" | "@not_strictly_false" => scalar(0),
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "@in" => {
            scalar(all.items.saturating_add(all.bytes()))
        }
        "_?_:_" => {
            let size = sizes().skip(1).fold(Size::NONE, Size::or);
            Ok(Estimate { cost: 0, size })
        }
        "_+_" => Ok(Estimate { cost: all.items.saturating_add(all.bytes()), size: all }),
        "_[_]" | "_[?_]" | "_?._" => Ok(Estimate { cost: first.item().bytes(), size: first.item() }),
        "size" => scalar(first.bytes()),
        "contains" | "startsWith" | "endsWith" => scalar(all.bytes()),
        "lowerAscii" | "upperAscii" | "trim" | "substring" => {
            // A character at a time.
            Ok(Estimate { cost: first.total / REGEX_BYTES_A_STEP, size: Size::text(first.total) })
        }
        "split" => {
            let items = first.total.saturating_add(1);
            let size = Size { items, each: first.total, total: first.total, deep: false };
            Ok(Estimate { cost: size.items, size })
        }
        "matches" => {
            let Some(Expr::Literal(LiteralValue::String(pattern))) = last.map(|last| &last.expr) else {
                return Err("matches takes its regular expression as a literal".to_owned());
            };
            let regex = RegexBuilder::new(pattern.inner()).size_limit(REGEX_SIZE).build();
            regex.map_err(|error| {
                let lines = error.to_string();
                let last = lines.lines().last().unwrap_or_default();
                format!("the regular expression is of no use: {}", last.trim_start_matches("error: "))
            })?;
            scalar(REGEX_COST.saturating_add(all.total / REGEX_BYTES_A_STEP))
        }
        "orValue" | "or" => Ok(Estimate { cost: 0, size: sizes().fold(Size::NONE, Size::or) }),
        "hasValue" | "int" | "uint" | "double" | "bool" | "timestamp" | "duration" | "getFullYear"
        | "getMonth" | "getDayOfYear" | "getDayOfMonth" | "getDate" | "getDayOfWeek" | "getHours"
        | "getMinutes" | "getSeconds" | "getMilliseconds" => scalar(all.total / REGEX_BYTES_A_STEP + PART),
        "string" => Ok(Estimate { cost: first.bytes(), size: Size::text(first.total.max(64)) }),
        _ => Err(format!("there is no function {name:?} for rules")),
    }
}

#[cfg(test)]
mod tests;
