//! Settings of recording.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Config, Error};
use crate::recording::container::MAX_RECIPIENTS;
use crate::recording::facts::Stdin;

/// What is recorded, where to, and by which keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Recording {
    /// Whether anything is.
    pub enabled: bool,
    /// The key that signs recordings; PEM, as `openssl genpkey -algorithm ed25519` makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key_file: Option<PathBuf>,
    /// Public keys of those who may read recordings; PEM. None: whoever has a recording can read it.
    pub recipient_files: Vec<PathBuf>,
    /// Where recordings are written while sessions live, and wait for the store.
    pub spool: Spool,
    /// Where they are kept.
    pub store: Store,
    /// What holds for a session of which no policy says more.
    pub default: Demand,
}

/// Where recordings are written while sessions live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Spool {
    /// A folder of podgate's own, on a file system that outlives its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Bytes that may be in it; beyond them it is full.
    pub max_bytes: u64,
}

/// Where recordings are kept. Options hold secrets, so they are in a file of their own or in the environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Store {
    /// `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`; without one, recordings
    /// stay in the spool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// YAML file with options of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options_file: Option<PathBuf>,
}

/// What is wanted of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Demand {
    /// Whether it is recorded.
    pub record: Record,
    /// What of its standard input.
    pub stdin: Stdin,
}

/// Whether a session is recorded; in the order of how much is demanded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Record {
    /// Not at all.
    Off,
    /// As far as it can be; what is missing is marked.
    Tolerant,
    /// Or it is not: no record, no session.
    #[default]
    Strict,
}

// === impl Recording ===

impl Recording {
    /// What a gateway's settings say about it, for those who read its recordings.
    ///
    /// # Errors
    /// When the file cannot be read, or is none with settings.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        Config::from_optional_file(Some(path)).map(|(config, _)| config.recording)
    }

    pub(super) fn resolve(&mut self, base: &Path) {
        let optional = [&mut self.signing_key_file, &mut self.spool.dir, &mut self.store.options_file];
        for path in optional.into_iter().flatten().chain(&mut self.recipient_files) {
            *path = base.join(&*path);
        }
    }

    /// What is wrong with it, by key.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, what: String| problems.push((format!("recording.{key}"), what));
        if self.spool.max_bytes < LEAST_SPOOL {
            wrong("spool.maxBytes", format!("is at least {LEAST_SPOOL}"));
        }
        if let Some(url) = &self.store.url {
            match url::Url::parse(url) {
                Ok(url) if !SCHEMES.contains(&url.scheme()) => {
                    wrong("store.url", format!("begins with one of {}", SCHEMES.join(":, ") + ":"));
                }
                Ok(url)
                    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() =>
                {
                    wrong("store.url", "has no credentials and no query; those go into optionsFile".into());
                }
                Ok(_) => {}
                Err(error) => wrong("store.url", format!("is no URL: {error}")),
            }
        } else if self.store.options_file.is_some() {
            wrong("store.optionsFile", "is of use only with store.url".into());
        }
        if self.recipient_files.len() > MAX_RECIPIENTS {
            wrong("recipientFiles", format!("are at most {MAX_RECIPIENTS}"));
        }
        problems
    }

    /// What is missing to record; `podgate dev` makes it itself.
    pub(super) fn missing(&self) -> Vec<(String, String)> {
        let mut missing = Vec::new();
        if self.enabled && self.signing_key_file.is_none() {
            let what = "is needed to record; `podgate keys signing` makes one";
            missing.push(("recording.signingKeyFile".to_owned(), what.to_owned()));
        }
        if self.enabled && self.spool.dir.is_none() {
            let what = "is needed to record: a folder on a file system that outlives podgate's pod";
            missing.push(("recording.spool.dir".to_owned(), what.to_owned()));
        }
        missing
    }
}

/// Less would be full before a session has said much.
const LEAST_SPOOL: u64 = 1024 * 1024;

/// The stores there are.
const SCHEMES: [&str; 8] = ["file", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss"];

// === impl Default ===

impl Default for Spool {
    fn default() -> Self {
        // An hour of a store that is down, with a hundred sessions that say 25 kB a second; compressed far less.
        Self { dir: None, max_bytes: 10 * 1024 * 1024 * 1024 }
    }
}

impl Default for Demand {
    fn default() -> Self {
        Self { record: Record::Strict, stdin: Stdin::Echoed }
    }
}
