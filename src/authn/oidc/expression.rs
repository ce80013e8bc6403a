//! Expression: CEL over the claims of a token, or over the user made of them.
//!
//! Compiled when the file is read, evaluated for every token. Invariant: no result but one of the type asked
//! for is used, and whatever cannot be evaluated is a failure: an expression that is wrong lets nobody in.
//! Source: apiserver `pkg/authentication/cel`.

use std::collections::HashMap;

use cel::common::ast::{Expr, IdedExpr, LiteralValue};
use cel::{Context, Value};

use crate::expression::{self, ENV};

/// A compiled expression.
#[derive(Debug)]
pub(super) struct Expression {
    parsed: IdedExpr,
    variable: &'static str,
    uses: Uses,
}

/// Which of the claims that belong together it looks at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Uses {
    pub(super) email: bool,
    pub(super) email_verified: bool,
}

/// Why an expression has no result that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It fails on this token. Values are not told, only names and types.
    #[error("evaluate the expression: {0}")]
    Fails(String),
    /// The result is of another type.
    #[error("the expression does not make {0}")]
    Type(&'static str),
}

// === impl Expression ===

impl Expression {
    /// Compiles an expression over one variable: `claims` or `user`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn compile(source: &str, variable: &'static str) -> Result<Self, String> {
        let mut uses = Uses::default();
        let parsed = expression::parse(source, &[variable], &mut |part| uses.see(&part.expr, variable))?;
        Ok(Self { parsed, variable, uses })
    }

    pub(super) fn uses(&self) -> Uses {
        self.uses
    }

    fn evaluate(&self, value: &Value) -> Result<Value, Error> {
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value(self.variable, value.clone());
        Value::resolve(&self.parsed, &context).map_err(|error| Error::Fails(expression::describe(&error)))
    }

    /// The result, which is a text.
    pub(super) fn text(&self, value: &Value) -> Result<String, Error> {
        match self.evaluate(value)? {
            Value::String(text) => Ok(text.to_string()),
            _ => Err(Error::Type("a string")),
        }
    }

    /// The result, which is yes or no.
    pub(super) fn holds(&self, value: &Value) -> Result<bool, Error> {
        match self.evaluate(value)? {
            Value::Bool(holds) => Ok(holds),
            _ => Err(Error::Type("a bool")),
        }
    }

    /// The result, which is a list of texts, or one; null and an empty text are none.
    pub(super) fn texts(&self, value: &Value) -> Result<Vec<String>, Error> {
        const WANTED: Error = Error::Type("a string or a list of strings");
        match self.evaluate(value)? {
            Value::Null => Ok(Vec::new()),
            Value::String(text) if text.is_empty() => Ok(Vec::new()),
            Value::String(text) => Ok(vec![text.to_string()]),
            Value::List(list) => list
                .iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text.to_string()),
                    _ => Err(WANTED),
                })
                .collect(),
            _ => Err(WANTED),
        }
    }
}

// === impl Uses ===

impl Uses {
    fn see(&mut self, part: &Expr, variable: &str) {
        match part {
            Expr::Select(select) => self.field(&select.operand, &select.field, variable),
            // `claims["email"]` and `claims.?email` are calls with the name as text.
            Expr::Call(call) => {
                if let [of, IdedExpr { expr: Expr::Literal(LiteralValue::String(field)), .. }] =
                    call.args.as_slice()
                {
                    self.field(of, field.inner(), variable);
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, of: &IdedExpr, field: &str, variable: &str) {
        if matches!(&of.expr, Expr::Ident(name) if name == variable) {
            self.email |= field == "email";
            self.email_verified |= field == "email_verified";
        }
    }
}

/// JSON as an expression sees it. Numbers are doubles, as they are for kube-apiserver.
pub(super) fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(bool) => Value::Bool(*bool),
        serde_json::Value::Number(number) => number.as_f64().map_or(Value::Null, Value::Float),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(value_of).collect::<Vec<_>>()),
        serde_json::Value::Object(fields) => object(fields),
    }
}

/// As [`value_of`], of an object.
pub(super) fn object(fields: &serde_json::Map<String, serde_json::Value>) -> Value {
    let fields = fields.iter().map(|(key, value)| (key.clone(), value_of(value)));
    Value::from(fields.collect::<HashMap<String, Value>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::expression::{MAX_DEPTH, MAX_LENGTH};

    fn claims() -> Value {
        value_of(&json!({
            "sub": "ana", "email": "ana@example.com", "level": 3, "admin": true, "groups": ["dev", "ops"],
            "realm": {"roles": ["a", "b"]}, "iat": 1000, "exp": 2000, "nothing": null,
        }))
    }

    fn compile(source: &str) -> Expression {
        Expression::compile(source, "claims").unwrap_or_else(|error| panic!("{source}: {error}"))
    }

    #[test]
    fn what_the_documentation_of_kubernetes_shows_works() {
        for (source, expected) in [
            ("claims.sub", "ana"),
            ("'oidc:' + claims.sub", "oidc:ana"),
            ("claims.email.split('@')[0]", "ana"),
            ("claims['sub']", "ana"),
            ("has(claims.middle) ? claims.middle : claims.sub", "ana"),
            ("claims.?middle.orValue('none')", "none"),
            ("claims.sub.upperAscii()", "ANA"),
        ] {
            assert_eq!(compile(source).text(&claims()).unwrap(), expected, "{source}");
        }
        for source in [
            "claims.exp - claims.iat <= 86400",
            "claims.level == 3 && claims.admin",
            "!('root' in claims.groups)",
            "claims.groups.all(group, !group.startsWith('system:'))",
            "claims.email.matches('^[a-z]+@example[.]com$')",
            "type(claims.level) == double",
        ] {
            assert!(compile(source).holds(&claims()).unwrap(), "{source}");
        }
        for (source, expected) in [
            ("claims.groups", "dev,ops"),
            ("claims.realm.roles.map(role, 'role:' + role)", "role:a,role:b"),
            ("claims.groups.filter(group, group != 'ops')", "dev"),
            ("claims.sub", "ana"),
            ("''", ""),
            ("claims.nothing", ""),
            ("[]", ""),
        ] {
            assert_eq!(compile(source).texts(&claims()).unwrap().join(","), expected, "{source}");
        }
    }

    #[test]
    fn a_result_of_another_type_is_a_failure() {
        assert!(matches!(compile("claims.level").text(&claims()), Err(Error::Type(_))));
        assert!(matches!(compile("claims.nothing").text(&claims()), Err(Error::Type(_))));
        assert!(matches!(compile("claims.?sub").text(&claims()), Err(Error::Type(_))));
        assert!(matches!(compile("claims.sub").holds(&claims()), Err(Error::Type(_))));
        assert!(matches!(compile("'true'").holds(&claims()), Err(Error::Type(_))));
        assert!(matches!(compile("[claims.sub, claims.level]").texts(&claims()), Err(Error::Type(_))));
        assert!(matches!(compile("claims.realm").texts(&claims()), Err(Error::Type(_))));
    }

    #[test]
    fn what_fails_says_so_without_values() {
        let text = |source: &str| compile(source).text(&claims()).unwrap_err().to_string();
        assert_eq!(text("claims.middle"), "evaluate the expression: No such key: middle");
        for source in
            ["claims.sub.nosuch()", "claims.sub + claims.level", "claims.groups[7]", "claims.sub / 0"]
        {
            assert!(!text(source).contains("ana") && !text(source).contains("dev"), "{}", text(source));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_when_it_is_read() {
        let error = |source: &str| Expression::compile(source, "claims").unwrap_err();
        assert_eq!(error("user.username == 'ana'"), "undeclared reference to \"user\"");
        assert_eq!(error("claims.groups.all(g, h == g)"), "undeclared reference to \"h\"");
        assert!(!error("claims.sub ==").is_empty());
        assert!(error(&format!("'{}' == ''", "a".repeat(MAX_LENGTH))).contains("bytes"));
        assert!(error(&format!("'a'{}", "+'a'".repeat(2500))).contains("deep"));
        assert!(error(&format!("claims{}", ".a".repeat(5000))).contains("deep"));
        assert!(error(&format!("1{}", "+1".repeat(5000))).contains("deep"));
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}")] {
            let nested = format!("{}1{}", open.repeat(2500), close.repeat(2500));
            assert!(error(&nested).contains("Recursion limit"), "{}", error(&nested));
        }
        let g = "claims.groups";
        assert!(error(&format!("{g}.all(a, {g}.all(b, {g}.all(c, true)))")).contains("loops"));
        compile(&format!("{g}.all(a, {g}.all(b, true)) && {g}.all(a, {g}.all(b, true))"));
    }

    #[test]
    fn the_deepest_that_is_compiled_can_be_evaluated() {
        let depth = MAX_DEPTH - 1;
        let chain = compile(&format!("'a'{}", "+'a'".repeat(depth)));
        assert_eq!(chain.text(&claims()).unwrap().len(), depth + 1);
        let selects = compile(&format!("claims{}", ".?a".repeat(depth)));
        assert!(matches!(selects.text(&claims()), Err(Error::Type(_))));
        let brackets = MAX_DEPTH / 2 - 1;
        let conditions = compile(&format!("claims.admin{}", " && claims.admin".repeat(500)));
        assert!(conditions.holds(&claims()).unwrap());
        let nested = compile(&format!("{}claims.sub{}", "[".repeat(brackets), "][0]".repeat(brackets)));
        assert_eq!(nested.text(&claims()).unwrap(), "ana");
    }

    #[test]
    fn uses_of_email_are_seen_however_they_are_spelled() {
        for source in ["claims.email", "claims['email']", "claims.?email.orValue('')", "'a' + claims.email"] {
            assert!(compile(source).uses().email && !compile(source).uses().email_verified, "{source}");
        }
        let both = compile("claims.email_verified ? claims.email : ''").uses();
        assert!(both.email && both.email_verified);
        assert!(!compile("claims.realm.email").uses().email);
    }
}
