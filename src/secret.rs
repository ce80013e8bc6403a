//! Secret: a token that podgate holds, kept from every log and error text.
//!
//! Beside the flow. Read from files that others write, so blanks around it are nothing of it. Invariant: its text is fit
//! for a header line, and `Debug` does not show it.
//! Source: RFC 6750 section 2.1.

use std::path::{Path, PathBuf};

use http::HeaderValue;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A token that cannot be used. Nothing of its text is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read a token from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing in the file.
    #[error("no token in {path}")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Blanks within, control characters, or anything that is not ASCII.
    #[error("the token in {path} has a character that no token has")]
    NoToken {
        /// The file.
        path: PathBuf,
    },
}

// === impl Secret ===

impl Secret {
    /// Reads a file; white space around the token is nothing of it.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let path_of = || path.to_owned();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path_of(), source })?;
        let token = text.trim_ascii();
        if token.is_empty() {
            return Err(Error::Empty { path: path_of() });
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::NoToken { path: path_of() });
        }
        Ok(Self(token.to_owned()))
    }

    /// Its text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value of an `Authorization` header, marked as sensitive.
    pub fn bearer(&self) -> HeaderValue {
        let value = HeaderValue::try_from(format!("Bearer {}", self.0));
        let mut value = value.expect("a secret is made of visible characters");
        value.set_sensitive(true);
        value
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    fn read(content: &[u8]) -> Result<Secret, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Secret::from_file(file.path())
    }

    #[test]
    fn blanks_around_a_token_are_nothing_of_it_and_nobody_sees_it_by_chance() {
        let secret = read(b" \teyJ.abc-_~+/=\r\n\n").unwrap();
        assert_eq!(
            (secret.expose(), secret.bearer()),
            ("eyJ.abc-_~+/=", "Bearer eyJ.abc-_~+/=".parse().unwrap())
        );
        assert_eq!(format!("{secret:?} {:?}", secret.bearer()), "Secret(..) Sensitive");
    }

    #[test]
    fn what_is_no_token_is_refused_without_a_word_of_it() {
        for content in
            [&b""[..], b" \n", b"top secret", b"top\nsecret", b"top\0secret", b"s\xc3\xa9cret", b"s\xe9cret"]
        {
            let error = chain(&read(content).unwrap_err());
            assert!(!error.contains("secret") && !error.contains("top"), "{error}");
        }
        assert!(Secret::from_file(Path::new("/nowhere/token")).is_err());
    }
}
