//! Record: the one end record of a session, written when it is dropped, whatever path led there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::info;

use super::{Audience, Facts, Metrics};
use crate::audit::Trail;
use crate::recording::facts::Ending;
use crate::throttle::{Held, Level};
use crate::wire::remotecommand::{Outcome, Protocol};
use crate::wire::tap::Tap;

/// Most bytes of typed lines in an audit event: all that an annotation holds.
const TYPED: usize = Trail::ANNOTATION;

/// How long a limit of bytes has to have held a session up before it is told: nobody feels less.
const FELT: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The far side closed after all there was: the usual end.
    FarClosed,
    /// The client closed.
    ClientClosed,
    /// The far side's connection broke, or ended without a result; something may be missing.
    FarLost,
    /// The client's connection broke.
    ClientLost,
    /// The far side sent what is not its protocol.
    FarFault,
    /// The client sent what is not its protocol.
    ClientFault,
    /// Nothing but keepalives passed for too long.
    Idle,
    /// The caller is no longer known, or no longer allowed.
    Lapsed,
    /// What had allowed it has run out.
    Expired,
    /// Somebody else has ended it.
    Ended,
    /// It has lasted as long as it may.
    Overlong,
    /// It has to be recorded and cannot be.
    Unrecorded,
    /// Podgate was told to stop and the drain deadline passed.
    Drained,
    /// The session's task went away without saying why: a defect.
    Aborted,
}

/// Bytes moved so far, readable while the session lives.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

/// Bytes moved, each way, and when the session's own last did.
#[derive(Debug)]
pub struct Meters {
    /// Client to far side.
    pub up: Meter,
    /// Far side to client.
    pub down: Meter,
    /// Who sees what passes.
    pub audience: Arc<Audience>,
    since: Instant,
    /// Milliseconds after that.
    active: AtomicU64,
    slowed: Mutex<Option<Slowed>>,
}

/// That limits of bytes have held a session up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slowed {
    /// Since when, with pauses.
    pub since: Timestamp,
    /// For how long, without them.
    pub held_up: Duration,
    /// Which of them has, for the most part.
    pub by: Level,
}

/// The end record. Begins with the 101; fires on drop.
#[derive(Debug)]
pub struct Record {
    facts: Arc<Facts>,
    meters: Arc<Meters>,
    metrics: Metrics,
    started: Instant,
    end: EndReason,
    cause: String,
    may_remain: bool,
    /// Writes the last audit event, with this record.
    trail: Trail,
}

// === impl EndReason ===

impl EndReason {
    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::FarClosed => "far_closed",
            Self::ClientClosed => "client_closed",
            Self::FarLost => "far_lost",
            Self::ClientLost => "client_lost",
            Self::FarFault => "far_protocol",
            Self::ClientFault => "client_protocol",
            Self::Idle => "idle",
            Self::Lapsed => "lapsed",
            Self::Expired => "expired",
            Self::Ended => "ended",
            Self::Overlong => "overlong",
            Self::Unrecorded => "unrecorded",
            Self::Drained => "drained",
            Self::Aborted => "aborted",
        }
    }
}

// === impl Meter ===

impl Meter {
    /// Bytes moved so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts so many more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// === impl Meters ===

impl Default for Meters {
    fn default() -> Self {
        Self {
            audience: Arc::default(),
            up: Meter::default(),
            down: Meter::default(),
            since: Instant::now(),
            active: AtomicU64::new(0),
            slowed: Mutex::default(),
        }
    }
}

impl Meters {
    /// Bytes of the session itself have passed just now, other than keepalives.
    pub fn touch(&self) {
        let after = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active.store(after, Ordering::Relaxed);
    }

    /// Limits of bytes have held the session up, until now.
    pub fn hold_up(&self, held: Held) {
        let mut slowed = self.slowed.lock().unwrap_or_else(PoisonError::into_inner);
        let since = slowed.map_or_else(Timestamp::now, |slowed| slowed.since);
        *slowed = Some(Slowed { since, held_up: held.long, by: held.by });
    }

    /// Whether they have, so that it was felt.
    pub fn slowed(&self) -> Option<Slowed> {
        let slowed = *self.slowed.lock().unwrap_or_else(PoisonError::into_inner);
        slowed.filter(|slowed| slowed.held_up >= FELT)
    }

    /// For how long the session lasts.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// For how long none have.
    pub fn idle(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.active.load(Ordering::Relaxed)))
    }
}

// === impl Record ===

impl Record {
    /// Begins a record, now; the request's trail ends with it.
    pub fn begin(facts: Arc<Facts>, metrics: Metrics, trail: Trail) -> Self {
        metrics.sessions.inc();
        Self {
            facts,
            meters: Arc::default(),
            metrics,
            started: Instant::now(),
            end: EndReason::Aborted,
            cause: String::new(),
            may_remain: false,
            trail,
        }
    }

    /// Says that the program of the session may still run: the far side has not said that it ended.
    pub fn process_may_remain(&mut self) {
        self.may_remain = true;
        self.metrics.processes_may_remain.inc();
        self.trail.annotate("process-may-remain", "true");
    }

    /// Says what has passed, and with which result.
    pub fn passed(&mut self, tap: &Tap) {
        let moved = tap.moved();
        let counts = match self.facts.subresource {
            "portforward" => {
                [("connections", moved.connections), ("bytes-up", moved.up), ("bytes-down", moved.down)]
            }
            _ => {
                [("bytes-stdin", moved.stdin), ("bytes-stdout", moved.stdout), ("bytes-stderr", moved.stderr)]
            }
        };
        for (key, count) in counts {
            self.trail.annotate(key, count.to_string());
        }
        // Without a word of the far side nobody knows; in v1 to v3 it says what is wrong and not with which code.
        if !tap.result().is_empty()
            && let Ok(outcome) = Outcome::parse(Protocol::V4, tap.result())
        {
            match outcome {
                Outcome::Success => self.trail.annotate("exit-code", "0"),
                Outcome::Exit { code, .. } => self.trail.annotate("exit-code", code.to_string()),
                Outcome::Internal { text } | Outcome::Other { message: text } => {
                    self.trail.annotate("error", text);
                }
            }
        }
    }

    /// Says what has held it up, and for how long.
    pub fn slowed(&mut self, slowed: Slowed, by: &impl std::fmt::Display) {
        self.trail.annotate("slowed-seconds", format!("{:.1}", slowed.held_up.as_secs_f64()));
        self.trail.annotate("slowed-by", by.to_string());
    }

    /// Says what its recording says.
    pub fn recorded(&mut self, ending: &Ending) {
        if !ending.gaps.is_empty() {
            self.trail.annotate("recording-gaps", ending.gaps.len().to_string());
        }
        // Whole lines: what does not fit is missing at the end, and the recording has it.
        let (mut text, mut told) = ("[".to_owned(), 0);
        for line in &ending.typed {
            let line = serde_json::to_string(line).expect("text and numbers are JSON");
            if text.len() + line.len() + ",]".len() > TYPED {
                break;
            }
            text.push_str(if told == 0 { "" } else { "," });
            text.push_str(&line);
            told += 1;
        }
        if told > 0 {
            self.trail.annotate("typed-commands", text + "]");
        }
        let missing = ending.typed.len() - told;
        if missing > 0 {
            self.trail.annotate("typed-commands-omitted", missing.to_string());
        }
    }

    /// Where the session counts its bytes.
    pub fn meters(&self) -> Arc<Meters> {
        self.meters.clone()
    }

    /// Says why the session ended, in a word and, for people, in a text that may be empty; the last word counts.
    pub fn end(&mut self, reason: EndReason, cause: String) {
        self.end = reason;
        self.cause = cause;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Facts {
            user,
            impersonator,
            client,
            audit_id,
            subresource,
            namespace,
            pod,
            container,
            node,
            command,
            tty,
            stdin: _,
        } = &*self.facts;
        let seconds = self.started.elapsed().as_secs_f64();
        let (up, down) = (self.meters.up.bytes(), self.meters.down.bytes());
        self.metrics.session_ended(subresource, self.end, up, down, seconds);
        self.trail.annotate("end-reason", self.end.word());
        if !self.cause.is_empty() {
            self.trail.annotate("end-cause", self.cause.as_str());
        }
        info!(
            target: "access",
            {
                audit.id = audit_id,
                user.name = user,
                user.impersonator = impersonator,
                client.addr = %client,
                session.kind = subresource,
                pod.namespace = namespace,
                pod.name = pod,
                pod.container = container,
                node.name = node,
                session.program = command.program(),
                session.arguments = command.arguments,
                session.tty = tty,
                bytes.up = up,
                bytes.down = down,
                duration.seconds = seconds,
                end.reason = self.end.word(),
                end.cause = self.cause,
                end.process_may_remain = self.may_remain,
            },
            "session ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_record_still_counts_and_says_aborted() {
        let metrics = Metrics::new();
        let facts = Arc::new(Facts::example("shop", "cart-0"));
        let record = Record::begin(facts, metrics.clone(), Trail::default());
        record.meters().down.add(5);
        assert_eq!(metrics.sessions.get(), 1);
        drop(record);
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains("podgate_sessions 0"));
        let ended = "podgate_sessions_ended_total{end=\"aborted\",subresource=\"exec\"} 1";
        assert!(text.contains(ended), "{text}");
        assert!(text.contains("podgate_session_bytes_total{direction=\"down\"} 5"));
    }
}
