//! Pattern: `*` stands for any characters. The one implementation there is.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

/// Bytes of a pattern: Kubernetes's longest names twice over.
const MAX_PATTERN: usize = 512;

/// Stars of a pattern. Each costs a look through the whole text.
const MAX_STARS: usize = 16;

/// A text in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

// === impl Pattern ===

impl Pattern {
    /// A pattern, if it is within bounds.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: String) -> Result<Self, String> {
        match text.len() {
            0 => Err("is empty".to_owned()),
            1..=MAX_PATTERN if text.matches('*').count() <= MAX_STARS => Ok(Self(text)),
            1..=MAX_PATTERN => Err(format!("has at most {MAX_STARS} stars")),
            _ => Err(format!("has at most {MAX_PATTERN} bytes")),
        }
    }

    /// Whether the stars can stand for something so that it is this text. No backtracking: the leftmost place of each part
    /// is as good as any.
    pub fn fits(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        for part in middle.split('*') {
            let Some(at) = text.find(part) else { return false };
            text = &text[at + part.len()..];
        }
        text.ends_with(last)
    }

    /// Whether there is a text that does not fit.
    pub fn is_narrow(&self) -> bool {
        self.0.chars().any(|ch| ch != '*')
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*", "any", true),
            ("a*", "b", false),
            ("sandbox-*", "sandbox-", true),
            ("*-ci", "a-ci-b", false),
            ("a*a", "a", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("*b*b", "ab", false),
            ("*b*b", "bab", true),
        ];
        for (pattern, text, is) in cases {
            assert_eq!(Pattern::new(pattern.to_owned()).unwrap().fits(text), is, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_has_bounds() {
        assert!(Pattern::new(String::new()).is_err());
        assert!(Pattern::new("a".repeat(MAX_PATTERN)).is_ok());
        assert!(Pattern::new("a".repeat(MAX_PATTERN + 1)).is_err());
        assert!(Pattern::new("*".repeat(MAX_STARS + 1)).is_err());
    }
}
