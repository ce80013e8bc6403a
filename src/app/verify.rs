//! `podgate verify`: says of recordings whether they are as podgate wrote them, and where they are not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli;
use crate::recording::container::{Error as Broken, Place, Reader, SoFar, Trust};
use crate::recording::facts::{Ending, Facts};
use crate::recording::keys::{self, Identity, VerifyingKey};
use crate::telemetry;

/// Why nothing was verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key cannot be used.
    #[error(transparent)]
    Key(keys::Error),
    /// Nobody takes what is printed.
    #[error("print what was found")]
    Print(#[source] io::Error),
}

/// How a recording is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// As podgate wrote it, from head to end.
    Whole,
    /// As podgate wrote it up to where it was killed, and marked by podgate itself.
    Cut,
    /// Cannot be read, or not by this podgate, or not with these identities.
    Unreadable,
    /// Signed with none of the keys.
    Stranger,
    /// Something else than a recording.
    Unknown,
    /// The end is missing.
    Truncated,
    /// Changed.
    Altered,
}

/// What was found out about one file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    file: PathBuf,
    outcome: Outcome,
    /// What is wrong, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    frame: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Up to when in the session, in seconds, all is as recorded; of the whole file where nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    good_until: Option<f64>,
    chunks: u64,
    /// Proven, as are the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<Facts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<Ending>,
}

/// Verifies every file and prints what was found; the exit code.
///
/// # Errors
/// When a key cannot be used, or nobody takes what is printed.
pub fn run(flags: &cli::Verify) -> Result<u8, Error> {
    let keys = flags.keys.iter().map(|path| VerifyingKey::from_file(path));
    let keys = keys.collect::<Result<Vec<_>, _>>().map_err(Error::Key)?;
    let identities = flags.identities.iter().map(|path| Identity::from_file(path));
    let identities = identities.collect::<Result<Vec<_>, _>>().map_err(Error::Key)?;
    let mut worst = Outcome::Whole;
    for path in &flags.files {
        let found = look(path, &keys, &identities);
        let line = if flags.json {
            serde_json::to_string(&found).expect("text and numbers are JSON")
        } else {
            found.to_string()
        };
        writeln!(io::stdout(), "{line}").map_err(Error::Print)?;
        if found.outcome.rank() > worst.rank() {
            worst = found.outcome;
        }
    }
    Ok(worst.code())
}

fn look(path: &Path, keys: &[VerifyingKey], identities: &[Identity]) -> Found {
    let mut found = Found {
        file: path.to_owned(),
        outcome: Outcome::Whole,
        error: None,
        frame: None,
        offset: None,
        good_until: None,
        chunks: 0,
        key: None,
        facts: None,
        ending: None,
    };
    let opened: io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(io::stdin()))
    } else {
        File::open(path).map(|f| Box::new(f) as _)
    };
    let read = opened.map_err(Broken::Read).and_then(|file| {
        let mut reader = Reader::open(file, Trust::Keys(keys), identities)?;
        found.key = Some(reader.key().to_owned());
        found.facts = Some(reader.facts().clone());
        let ended = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let SoFar { chunks, until, .. } = reader.so_far();
        (found.chunks, found.good_until) = (chunks, until.map(|until| until.as_secs_f64()));
        found.ending = reader.ending().cloned();
        ended
    });
    if let Err(error) = read {
        found.error = Some(telemetry::chain(&error));
        found.outcome = Outcome::of(&error);
        if let Broken::Altered { at, .. } | Broken::Truncated { at } = error {
            let Place { frame, offset, .. } = at;
            (found.frame, found.offset) = (Some(frame), Some(offset));
        }
    } else if found.ending.as_ref().is_some_and(|ending| ending.cut) {
        found.outcome = Outcome::Cut;
    }
    found
}

// === impl Outcome ===

impl Outcome {
    fn of(error: &Broken) -> Self {
        match error {
            Broken::Altered { .. } => Self::Altered,
            Broken::Truncated { .. } => Self::Truncated,
            Broken::NotARecording => Self::Unknown,
            Broken::Stranger { .. } => Self::Stranger,
            Broken::Version(_) | Broken::Read(_) | Broken::NotForYou | Broken::Key(_) => Self::Unreadable,
            Broken::Tape(_) | Broken::Size { .. } | Broken::Compress(_) => Self::Unreadable,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Whole => 0,
            Self::Altered | Self::Truncated | Self::Unknown | Self::Stranger => 1,
            Self::Unreadable => 2,
            Self::Cut => 3,
        }
    }

    /// Of several files the worst decides.
    fn rank(self) -> u8 {
        self as u8
    }
}

// === impl Found ===

impl std::fmt::Display for Found {
    /// One line, whatever names are in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |text: &str| text.replace(|letter: char| letter.is_control(), "\u{fffd}");
        write!(f, "{}: ", plain(&self.file.to_string_lossy()))?;
        if let Some(error) = &self.error {
            return f.write_str(&plain(error));
        }
        let (Some(facts), Some(ending)) = (&self.facts, &self.ending) else { return Ok(()) };
        let how = if ending.cut { "cut by a crash, as recorded before" } else { "whole" };
        let Facts { user, subresource, namespace, pod, .. } = facts;
        let until = self.good_until.unwrap_or_default();
        let what = format!("{user}, {subresource} in {namespace}/{pod}, {}", ending.reason);
        write!(f, "{how}: {} chunks, {until:.6} s, {}", self.chunks, plain(&what))
    }
}
