//! Impersonate: a caller as the headers in which the API server is told who they are.
//!
//! What is written must be read as the very same identity: Go takes blanks from both ends of a value, so a value that has
//! some cannot be told; a user without a name would be podgate itself; and names of extra keys are read in lower case, so
//! that capitals are escaped, which client-go leaves undone.
//! Source: `protocol.md` 8.3; client-go `transport/round_trippers.go` (`headerKeyEscape`), apiserver
//! `pkg/endpoints/filters/impersonation.go`.

use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::User;
use crate::status::{About, Refusal, go_quote};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA: &str = "impersonate-extra-";

/// What is escaped in the key of an extra: all that no header name has, `%` itself, and capitals.
const KEY: &AsciiSet = &{
    let mut escaped = NON_ALPHANUMERIC
        .remove(b'!')
        .remove(b'#')
        .remove(b'$')
        .remove(b'&')
        .remove(b'\'')
        .remove(b'*')
        .remove(b'+')
        .remove(b'-')
        .remove(b'.')
        .remove(b'^')
        .remove(b'_')
        .remove(b'`')
        .remove(b'|')
        .remove(b'~');
    let mut capital = b'A';
    while capital <= b'Z' {
        escaped = escaped.add(capital);
        capital += 1;
    }
    escaped
};

/// Why the API server cannot be told who a caller is. Values of extras stay untold: they may be of use to somebody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request would be podgate's own.
    #[error("a user without a name cannot be impersonated")]
    NoName,
    /// It would not arrive as it is, or not at all.
    #[error("{0} cannot be told to the API server: no header has such a value")]
    Value(String),
    /// The name of its header would be too long, or name nothing.
    #[error("an extra key of the user cannot be told to the API server: no header has such a name")]
    Key,
}

// === impl Error ===

impl Error {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        Refusal::Forbidden { message: format!("forbidden: {self}"), about: About::default() }
    }
}

/// The headers that make a request this user's.
///
/// # Errors
/// When there are none that would be read as the same user.
pub fn headers(user: &User) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
    let User { name, uid, groups, extra } = user;
    if name.is_empty() {
        return Err(Error::NoName);
    }
    let mut headers = vec![(USER, value(name, || format!("user {}", go_quote(name.as_bytes())))?)];
    if !uid.is_empty() {
        headers.push((UID, value(uid, || format!("uid {}", go_quote(uid.as_bytes())))?));
    }
    for group in groups {
        headers.push((GROUP, value(group, || format!("group {}", go_quote(group.as_bytes())))?));
    }
    for (key, values) in extra {
        if key.is_empty() {
            return Err(Error::Key);
        }
        let escaped = format!("{EXTRA}{}", percent_encode(key.as_bytes(), KEY));
        let header = HeaderName::try_from(escaped).map_err(|_| Error::Key)?;
        for text in values {
            let what = || format!("a value of the extra key {}", go_quote(key.as_bytes()));
            headers.push((header.clone(), value(text, what)?));
        }
    }
    Ok(headers)
}

fn value(text: &str, what: impl Fn() -> String) -> Result<HeaderValue, Error> {
    let bare = |end: Option<char>| !matches!(end, Some(' ' | '\t'));
    if !bare(text.chars().next()) || !bare(text.chars().next_back()) {
        return Err(Error::Value(what()));
    }
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| Error::Value(what()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User { name: name.to_owned(), ..User::default() }
    }

    fn with_extra(key: &str, value: &str) -> User {
        User { extra: [(key.to_owned(), vec![value.to_owned()])].into(), ..user("ana") }
    }

    #[test]
    fn every_part_of_an_identity_is_told_in_the_order_in_which_it_is_checked() {
        let ana = User {
            uid: "u1".to_owned(),
            groups: vec!["dev".to_owned(), "system:authenticated".to_owned()],
            ..with_extra("example.com/Scopes%", "d\u{e9}v")
        };
        let headers = headers(&ana).unwrap();
        let told: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let expected = [
            ("impersonate-user", "ana"),
            ("impersonate-uid", "u1"),
            ("impersonate-group", "dev"),
            ("impersonate-group", "system:authenticated"),
            ("impersonate-extra-example.com%2f%53copes%25", "d\u{e9}v"),
        ];
        assert_eq!(told, expected.map(|(name, value)| (name, value.into())));
    }

    #[test]
    fn an_identity_that_would_be_read_as_another_is_not_told() {
        assert_eq!(headers(&user("")), Err(Error::NoName));
        for name in [
            " ana",
            "ana ",
            "\tana",
            "ana\t",
            "a\r\nImpersonate-Group: system:masters",
            "a\0",
            "a\u{7f}",
            " ",
        ] {
            assert!(matches!(headers(&user(name)), Err(Error::Value(_))), "{name:?}");
            let grouped = User { groups: vec![name.to_owned()], ..user("ana") };
            assert!(matches!(headers(&grouped), Err(Error::Value(_))), "{name:?}");
            let error = headers(&with_extra("token", name)).unwrap_err().to_string();
            assert_eq!(
                error,
                "a value of the extra key \"token\" cannot be told to the API server: no header has such a value"
            );
        }
        for key in ["", &"k".repeat(1 << 16)] {
            assert_eq!(headers(&with_extra(key, "v")), Err(Error::Key));
        }
        assert_eq!(
            headers(&user("ana\n")).unwrap_err().to_string(),
            "user \"ana\\n\" cannot be told to the API server: no header has such a value"
        );
    }
}
