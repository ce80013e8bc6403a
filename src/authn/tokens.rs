//! Tokens: kube-apiserver's static token file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use crate::cluster::User;

/// kube-apiserver's static token file, read once. Tokens are kept and looked up by their SHA-256: no copy of
/// a token stays in memory, and a look-up's duration says nothing about how much of a guess was right.
#[derive(Default)]
pub struct Tokens(HashMap<[u8; 32], User>);

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token file cannot be read.
    #[error("read token file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: csv::Error,
    },
    /// A line of the token file is not `token,user,uid[,"group,group"]`.
    #[error("token file {path}, line {line}: {what}")]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

// === impl Tokens ===

impl Tokens {
    /// Reads a token file: CSV of token, user name, user uid and, optionally, a quoted list of groups.
    ///
    /// # Errors
    /// When the file cannot be read, or with the line that is wrong; nothing is half loaded.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::Fields)
            .from_path(path)
            .map_err(read)?;
        let mut tokens = HashMap::new();
        for (number, record) in reader.records().enumerate() {
            let record = record.map_err(read)?;
            let line = record.position().map_or(number as u64 + 1, csv::Position::line);
            let wrong = |what| Error::BadLine { path: path.to_owned(), line, what };
            if record.len() < 3 {
                return Err(wrong("wants token, user name and user uid"));
            }
            let (token, name, uid) = (&record[0], &record[1], &record[2]);
            if token.is_empty() || name.is_empty() {
                return Err(wrong("the token or the user name is empty"));
            }
            let groups = record.get(3).unwrap_or("").split(',').map(str::trim);
            let user = User {
                name: name.to_owned(),
                uid: uid.to_owned(),
                groups: groups.filter(|group| !group.is_empty()).map(str::to_owned).collect(),
                extra: BTreeMap::new(),
            };
            if tokens.insert(sha256(token.as_bytes()), user).is_some() {
                return Err(wrong("the token stands in an earlier line too"));
            }
        }
        Ok(Self(tokens))
    }

    pub(super) fn look_up(&self, token: &[u8]) -> Option<&User> {
        self.0.get(&sha256(token))
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tokens").field(&self.0.len()).finish()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Result<Tokens, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Tokens::from_file(file.path())
    }

    #[test]
    fn a_wrong_token_file_is_refused_with_its_line() {
        let text = |error: Result<Tokens, Error>| error.unwrap_err().to_string();
        assert!(text(tokens("a,b,c\nonly,two\n")).ends_with("line 2: wants token, user name and user uid"));
        assert!(text(tokens("a,b,c\na,d,e\n")).ends_with("line 2: the token stands in an earlier line too"));
    }

    #[test]
    fn tokens_are_not_shown() {
        assert!(!format!("{:?}", tokens("s3cret,ana,u1\n").unwrap()).contains("s3cret"));
    }
}
