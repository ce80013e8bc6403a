//! Mapping: from the claims of a verified token to a user, or to the rule that they break.
//!
//! Source: apiserver `plugin/pkg/authenticator/token/oidc`, Kubernetes documentation "Authenticating",
//! section "Using Authentication Configuration".

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::expression::{self, Expression};
use crate::cluster::User;

/// Claims of a token.
pub(super) type Claims = Map<String, Value>;

/// Names the claims that are not in the token but to be fetched elsewhere, OpenID Connect Core section 5.6.2.
const DISTRIBUTED: &str = "_claim_names";

/// What is asked of claims and how they make a user.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    pub(super) claim_rules: Vec<ClaimRule>,
    pub(super) username: Option<Source>,
    pub(super) groups: Option<Source>,
    pub(super) uid: Option<Source>,
    pub(super) extra: Vec<(String, Expression)>,
    pub(super) user_rules: Vec<Rule>,
}

/// Where a part of the user is.
#[derive(Debug)]
pub(super) enum Source {
    /// In a claim, after a prefix.
    Claim { name: String, prefix: String },
    /// In what an expression makes.
    Expression(Expression),
}

/// What claims have to fulfil.
#[derive(Debug)]
pub(super) enum ClaimRule {
    /// A claim has this value.
    Required { claim: String, value: String },
    /// An expression is true.
    Rule(Rule),
}

/// An expression that has to be true.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) expression: Expression,
    pub(super) message: String,
}

/// Why claims make no user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A claim is not there, or not of the right kind.
    #[error("claim {name:?} {what}")]
    Claim {
        /// The claim.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An expression has no result that can be used.
    #[error("evaluate {what}")]
    Expression {
        /// Which one.
        what: String,
        /// The cause.
        #[source]
        source: expression::Error,
    },
    /// A rule of the configuration does not let this token pass.
    #[error("{0}")]
    Rule(String),
}

// === impl Mapping ===

impl Mapping {
    /// The user these claims make.
    ///
    /// # Errors
    /// When they break a rule, or lack something.
    pub(super) fn user(&self, claims: &Claims) -> Result<User, Error> {
        let value = expression::object(claims);
        for rule in &self.claim_rules {
            match rule {
                ClaimRule::Required { claim, value } => {
                    if text(claims, claim)? != value.as_str() {
                        return Err(wrong(claim, "does not have the required value"));
                    }
                }
                ClaimRule::Rule(rule) => rule.check(&value, "a claim validation rule")?,
            }
        }
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| Error::Expression { what, source }
        };
        let name = match &self.username {
            None => String::new(),
            Some(Source::Expression(expression)) => {
                expression.text(&value).map_err(failed("the username"))?
            }
            Some(Source::Claim { name, prefix }) => {
                if name == "email" && claims.get("email_verified").is_some_and(|verified| verified != true) {
                    return Err(wrong("email_verified", "is not true"));
                }
                match text(claims, name)? {
                    "" => String::new(),
                    text => format!("{prefix}{text}"),
                }
            }
        };
        if name.is_empty() {
            return Err(Error::Rule("the username is empty".to_owned()));
        }
        let groups = match &self.groups {
            None => Vec::new(),
            Some(Source::Expression(expression)) => expression.texts(&value).map_err(failed("the groups"))?,
            Some(Source::Claim { name, prefix }) => texts(claims, name, prefix)?,
        };
        let uid = match &self.uid {
            None => String::new(),
            Some(Source::Expression(expression)) => expression.text(&value).map_err(failed("the uid"))?,
            Some(Source::Claim { name, prefix }) => format!("{prefix}{}", text(claims, name)?),
        };
        let mut extra = BTreeMap::new();
        for (key, expression) in &self.extra {
            let values = expression.texts(&value).map_err(failed(key))?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let user = User { name, uid, groups, extra };
        if !self.user_rules.is_empty() {
            let value = expression::value_of(&json!({
                "username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
            }));
            for rule in &self.user_rules {
                rule.check(&value, "a user validation rule")?;
            }
        }
        Ok(user)
    }
}

// === impl Rule ===

impl Rule {
    fn check(&self, value: &cel::Value, what: &str) -> Result<(), Error> {
        let holds = self.expression.holds(value);
        match holds.map_err(|source| Error::Expression { what: what.to_owned(), source })? {
            true => Ok(()),
            false if self.message.is_empty() => Err(Error::Rule(format!("{what} does not hold"))),
            false => Err(Error::Rule(self.message.clone())),
        }
    }
}

fn wrong(name: &str, what: &'static str) -> Error {
    Error::Claim { name: name.to_owned(), what }
}

/// A claim that has to be there, as text.
fn text<'a>(claims: &'a Claims, name: &str) -> Result<&'a str, Error> {
    let value = claims.get(name).ok_or_else(|| wrong(name, "is not in the token"))?;
    value.as_str().ok_or_else(|| wrong(name, "is not a string"))
}

/// A claim that may be there, as a list of texts, or one.
fn texts(claims: &Claims, name: &str, prefix: &str) -> Result<Vec<String>, Error> {
    let prefixed = |value: &Value| match value {
        Value::String(text) => Ok(format!("{prefix}{text}")),
        _ => Err(wrong(name, "is neither a string nor a list of strings")),
    };
    match claims.get(name) {
        // A user with too few groups could get past a rule against one of them.
        None if claims.get(DISTRIBUTED).is_some_and(|names| names.get(name).is_some()) => {
            Err(wrong(name, "is a distributed claim, which is not supported"))
        }
        // An issuer may say of a user without groups that they have null.
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(prefixed).collect(),
        Some(value) => Ok(vec![prefixed(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str, prefix: &str) -> Option<Source> {
        Some(Source::Claim { name: name.into(), prefix: prefix.into() })
    }

    fn user(mapping: &Mapping, claims: Value) -> Result<User, String> {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        mapping.user(&claims).map_err(|error| error.to_string())
    }

    fn rule(variable: &'static str, source: &str, message: &str) -> Rule {
        Rule { expression: Expression::compile(source, variable).unwrap(), message: message.into() }
    }

    #[test]
    fn claims_make_a_user_with_prefixes() {
        let mapping = Mapping {
            username: claim("sub", "oidc:"),
            groups: claim("roles", "g:"),
            uid: claim("oid", ""),
            ..Mapping::default()
        };
        let ana = user(&mapping, json!({"sub": "ana", "roles": ["a", "b"], "oid": "1"})).unwrap();
        assert_eq!((ana.name.as_str(), ana.uid.as_str()), ("oidc:ana", "1"));
        assert_eq!(ana.groups, ["g:a", "g:b"]);
        let one = user(&mapping, json!({"sub": "ana", "roles": "a", "oid": "1"})).unwrap();
        assert_eq!(one.groups, ["g:a"]);
        assert_eq!(user(&mapping, json!({"sub": "ana", "oid": "1"})).unwrap().groups, [""; 0]);
        assert_eq!(user(&mapping, json!({"sub": "ana", "oid": "1", "roles": null})).unwrap().groups, [""; 0]);
        for (claims, error) in [
            (json!({"oid": "1"}), "claim \"sub\" is not in the token"),
            (json!({"sub": 7, "oid": "1"}), "claim \"sub\" is not a string"),
            (json!({"sub": "", "oid": "1"}), "the username is empty"),
            (json!({"sub": "ana"}), "claim \"oid\" is not in the token"),
            (
                json!({"sub": "ana", "oid": "1", "roles": [1]}),
                "claim \"roles\" is neither a string nor a list of strings",
            ),
            (
                json!({"sub": "ana", "oid": "1", "_claim_names": {"roles": "src1"}}),
                "claim \"roles\" is a distributed claim, which is not supported",
            ),
        ] {
            assert_eq!(user(&mapping, claims).unwrap_err(), error);
        }
    }

    #[test]
    fn an_address_that_is_said_to_be_unverified_is_nobodys() {
        let mapping = Mapping { username: claim("email", ""), ..Mapping::default() };
        assert_eq!(user(&mapping, json!({"email": "a@b"})).unwrap().name, "a@b");
        assert_eq!(user(&mapping, json!({"email": "a@b", "email_verified": true})).unwrap().name, "a@b");
        for said in [json!(false), json!("true"), json!(null), json!(1)] {
            let error = user(&mapping, json!({"email": "a@b", "email_verified": said})).unwrap_err();
            assert_eq!(error, "claim \"email_verified\" is not true");
        }
    }

    #[test]
    fn rules_are_about_claims_and_then_about_the_user() {
        let mapping = Mapping {
            claim_rules: vec![
                ClaimRule::Required { claim: "hd".into(), value: "example.com".into() },
                ClaimRule::Rule(rule("claims", "claims.level > 2", "level is too low")),
            ],
            username: Some(Source::Expression(Expression::compile("'u:' + claims.sub", "claims").unwrap())),
            groups: Some(Source::Expression(Expression::compile("claims.groups", "claims").unwrap())),
            extra: vec![
                ("example.com/team".into(), Expression::compile("claims.team", "claims").unwrap()),
                ("example.com/none".into(), Expression::compile("''", "claims").unwrap()),
            ],
            user_rules: vec![
                rule("user", "!user.username.startsWith('u:system:')", "reserved"),
                rule("user", "user.groups.all(g, g != 'root') && size(user.extra) == 1", ""),
            ],
            ..Mapping::default()
        };
        let claims = |sub: &str, hd: &str, level: i32, group: &str| {
            json!({
                "sub": sub, "hd": hd, "level": level, "groups": [group], "team": ["x"],
            })
        };
        let ana = user(&mapping, claims("ana", "example.com", 3, "dev")).unwrap();
        assert_eq!((ana.name.as_str(), ana.groups), ("u:ana", vec!["dev".to_owned()]));
        assert_eq!(ana.extra, BTreeMap::from([("example.com/team".to_owned(), vec!["x".to_owned()])]));
        for (claims, error) in [
            (claims("ana", "example.org", 3, "dev"), "claim \"hd\" does not have the required value"),
            (claims("ana", "example.com", 2, "dev"), "level is too low"),
            (claims("system:ana", "example.com", 3, "dev"), "reserved"),
            (claims("ana", "example.com", 3, "root"), "a user validation rule does not hold"),
        ] {
            assert_eq!(user(&mapping, claims).unwrap_err(), error);
        }
        assert_eq!(
            user(&mapping, json!({"hd": "example.com", "level": "x"})).unwrap_err(),
            "evaluate a claim validation rule"
        );
    }
}
