//! Search: which recordings, and where in them.
//!
//! Who, where and when are asked of the facts, what was typed and what was shown of the card, and only recordings whose
//! signature does not deny the text are opened. What is found is cut down to one line of plain text around it.
//! Invariant: a recording that cannot be read is told of, never left out in silence.

use std::io::Read;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::card::{Card, Content};
use super::container::{self, Reader};
use super::facts::{Ending, Facts};
use super::keys::Identity;
use super::safe::plain;
use super::text::Lines;
use crate::wire::tape::{self, Kind};

/// Characters that are shown before and behind what was found.
const CONTEXT: usize = 60;

/// Most hits of one recording.
const MAX_HITS: usize = 20;

/// Which recordings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The caller, or who acted as the caller.
    pub user: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
    /// The pod; with a `*` at its end, all that begin so.
    pub pod: Option<String>,
    /// Sessions that were still going on then, or began later.
    pub since: Option<Timestamp>,
    /// Sessions that began before.
    pub until: Option<Timestamp>,
    /// The exit code.
    pub exit_code: Option<u8>,
}

/// What to look for in them, all of it. Letters of ASCII are the same in both cases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needle {
    /// In the command, and in the lines that were typed.
    pub typed: Option<String>,
    /// In the output, and in what is kept of stdin.
    pub text: Option<String>,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hit {
    /// When, in seconds since the session began.
    pub at: f64,
    /// Where: `command`, `typed`, `stdin`, `stdout` or `stderr`.
    pub channel: &'static str,
    /// The line, as plain text; where it is long, what stands around.
    pub line: String,
}

/// What a card says about a recording.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// There is nothing.
    No,
    /// These are all.
    Hits(Vec<Hit>),
    /// Whoever wants to know has to open it; these are there at any rate.
    Open(Vec<Hit>),
}

// === impl Filter ===

impl Filter {
    /// Whether it is one of them.
    pub fn takes(&self, card: &Card) -> bool {
        let Card { facts, ending, .. } = card;
        let is = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|wanted| wanted == have);
        let pod = self.pod.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(start) => facts.pod.starts_with(start),
            None => facts.pod == wanted,
        });
        let lasted = if ending.seconds.is_finite() { ending.seconds.max(0.0) } else { 0.0 };
        let ended = Timestamp::from_duration(jiff::SignedDuration::from_secs_f64(
            facts.started.as_duration().as_secs_f64() + lasted.min(1e9),
        ));
        (is(&self.user, &facts.user) || is(&self.user, &facts.impersonator))
            && is(&self.namespace, &facts.namespace)
            && pod
            && self.since.is_none_or(|since| ended.is_ok_and(|ended| ended >= since))
            && self.until.is_none_or(|until| facts.started < until)
            && self.exit_code.is_none_or(|code| ending.exit_code == Some(code))
    }
}

// === impl Needle ===

impl Needle {
    /// True when there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.typed.is_none() && self.text.is_none()
    }

    /// What can be said without the recording.
    pub fn ask(&self, card: &Card, identities: &[Identity]) -> Verdict {
        if self.is_empty() {
            return Verdict::Hits(Vec::new());
        }
        let Some(content) = card.content(identities) else {
            return Verdict::Open(Vec::new());
        };
        let Content { command, typed, more_typed, text } = &*content;
        if self.text.as_deref().is_some_and(|wanted| !text.may_have(wanted)) {
            return Verdict::No;
        }
        let mut hits = Vec::new();
        if let Some(wanted) = &self.typed {
            let typed = typed.iter().map(|typed| (typed.at, &*typed.line));
            hits = in_typed(wanted, command.as_deref().unwrap_or_default(), typed);
            if hits.is_empty() && !more_typed && command.is_some() {
                return Verdict::No;
            }
        }
        // What stands beyond the card is only wanted where the card has nothing.
        match self.text.is_some() || hits.is_empty() {
            true => Verdict::Open(hits),
            false => Verdict::Hits(hits),
        }
    }

    /// All there is in a recording, verified on the way; nothing unless everything that is looked for is there.
    ///
    /// # Errors
    /// When the recording is not as it was written.
    pub fn search<R: Read>(&self, mut reader: Reader<R>) -> Result<Vec<Hit>, container::Error> {
        if reader.is_encrypted() && reader.details().is_none() {
            return Err(container::Error::NotForYou);
        }
        let text = self.text.as_deref().map(str::to_ascii_lowercase);
        let mut shown = Vec::new();
        let mut channels =
            [("stdin", Lines::default()), ("stdout", Lines::default()), ("stderr", Lines::default())];
        let mut look = |channel, at: Duration, line: &str| {
            if let Some(wanted) = &text
                && shown.len() < MAX_HITS
                && let Some(line) = around(line, wanted)
            {
                shown.push(Hit { at: at.as_secs_f64(), channel, line });
            }
        };
        while let Some(chunk) = reader.next()? {
            let tape = chunk.tape.unwrap_or_default();
            let mut rest = &tape[..];
            // Pieces were looked at when the chunk was read.
            while let Ok(Some(piece)) = tape::next(&mut rest) {
                let channel = match piece.kind {
                    Kind::Stdin => 0,
                    Kind::Stdout => 1,
                    Kind::Stderr => 2,
                    _ => continue,
                };
                let (name, lines) = &mut channels[channel];
                lines.push(piece.at, piece.bytes, &mut |at, line| look(name, at, line));
            }
        }
        for (name, lines) in channels {
            lines.finish(&mut |at, line| look(name, at, line));
        }
        let mut hits = Vec::new();
        if let Some(wanted) = &self.typed {
            let command = reader.details().map(|details| details.command.as_slice()).unwrap_or_default();
            let typed = reader.ending().into_iter().flat_map(|Ending { typed, .. }| typed);
            hits = in_typed(wanted, command, typed.map(|typed| (typed.at, &*typed.line)));
        }
        let all = (self.typed.is_none() || !hits.is_empty()) && (text.is_none() || !shown.is_empty());
        hits.append(&mut shown);
        Ok(if all { hits } else { Vec::new() })
    }
}

fn in_typed<'a>(wanted: &str, command: &[String], typed: impl Iterator<Item = (f64, &'a str)>) -> Vec<Hit> {
    let wanted = wanted.to_ascii_lowercase();
    let command = around(&command.join(" "), &wanted).map(|line| Hit { at: 0.0, channel: "command", line });
    let typed =
        typed.filter_map(|(at, line)| Some(Hit { at, channel: "typed", line: around(line, &wanted)? }));
    command.into_iter().chain(typed).take(MAX_HITS).collect()
}

/// What stands around something in a line, as plain text.
fn around(line: &str, wanted: &str) -> Option<String> {
    let at = line.to_ascii_lowercase().find(wanted)?;
    let (before, rest) = line.split_at(at);
    let (found, after) = rest.split_at(wanted.len());
    let skipped = before.chars().count().saturating_sub(CONTEXT);
    let more = after.chars().nth(CONTEXT).is_some();
    let before: String = before.chars().skip(skipped).collect();
    let after: String = after.chars().take(CONTEXT).collect();
    let dots = |dots| if dots { "..." } else { "" };
    Some(format!("{}{}{}", dots(skipped > 0), plain(&format!("{before}{found}{after}")), dots(more)))
}

/// What a list says about where a session was.
pub fn place(facts: &Facts) -> String {
    let Facts { namespace, pod, container, .. } = facts;
    let place = if container.is_empty() {
        format!("{namespace}/{pod}")
    } else {
        format!("{namespace}/{pod}:{container}")
    };
    plain(&place)
}
