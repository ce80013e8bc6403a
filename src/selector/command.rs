//! Commands: the argument vector of an `exec`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Pattern, list};

/// A command. One of the three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// These words and no other.
    #[serde(deserialize_with = "list")]
    Argv(Vec<String>),
    /// These words, and any behind them.
    #[serde(deserialize_with = "list")]
    Prefix(Vec<String>),
    /// The words, with a blank between each two, fit this.
    Glob(Pattern),
}

// === impl Command ===

impl Command {
    /// Whether this is such a command. That of a session without one is not.
    pub fn fits(&self, words: &[Vec<u8>]) -> bool {
        let same = |wanted: &[String]| {
            wanted.iter().zip(words).all(|(wanted, word)| wanted.as_bytes() == word.as_slice())
        };
        match self {
            _ if words.is_empty() => false,
            Self::Argv(wanted) => words.len() == wanted.len() && same(wanted),
            Self::Prefix(wanted) => words.len() >= wanted.len() && same(wanted),
            Self::Glob(pattern) => pattern.fits(&String::from_utf8_lossy(&words.join(&b' '))),
        }
    }

    /// Whether there is a command that is none of these.
    pub fn is_narrow(&self) -> bool {
        match self {
            Self::Argv(_) | Self::Prefix(_) => true,
            Self::Glob(pattern) => pattern.is_narrow(),
        }
    }

    /// The words that it names.
    pub fn words(&self) -> &[String] {
        match self {
            Self::Argv(words) | Self::Prefix(words) => words,
            Self::Glob(_) => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argv(words) => f.write_str(&words.join(" ")),
            Self::Prefix(words) => write!(f, "{}...", words.join(" ")),
            Self::Glob(pattern) => f.write_str(pattern.as_str()),
        }
    }
}
