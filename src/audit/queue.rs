//! Queue: the events that wait for one sink, and the task that writes them.
//!
//! Bounded in events and in bytes. Who is let in has room reserved for every event that is still to come of them, so
//! that the end of what has begun is always written. What finds no room is counted, and once the sink takes events
//! again it gets one that says how many are missing. An event leaves the queue when the sink has it, and not before:
//! one that fails is tried again for as long as it takes.
//! Invariant: events that went in = events the sink has + events in the queue + events counted as lost. A sink may have
//! one twice that failed after it had been taken.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::Trail;
use super::event::{self, Event};
use super::sink::{Batching, Failure, Sink};
use crate::drain::Drain;
use crate::telemetry::{Metrics, chain};

/// The pause before a failed batch is tried again, doubled up to the last one: a sink that is back is to be used soon,
/// and one that is down is not to be kept busy.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The events of one request: one for each stage, each with an annotation of the longest.
const REQUEST: Limits = Limits { events: 3, bytes: 3 * Trail::ANNOTATION };

/// What may wait for a sink.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// Events for one sink.
#[derive(Debug)]
pub(super) struct Queue {
    name: &'static str,
    limits: Limits,
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
    /// Whether batches wait for no more events.
    hurry: AtomicBool,
    series: Series,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Entry>,
    bytes: usize,
    /// Reserved for events that are still to come.
    held: usize,
    held_bytes: usize,
    gap: Option<Gap>,
    /// Entries that somebody waits for.
    urgent: usize,
    /// Whether a batch is on its way.
    writing: bool,
    down: bool,
}

#[derive(Debug)]
struct Entry {
    line: Bytes,
    /// Told when the sink has it.
    written: Option<oneshot::Sender<()>>,
}

/// What a sink did not get.
#[derive(Debug, Clone)]
struct Gap {
    events: u64,
    refused: u64,
    from: Timestamp,
    to: Timestamp,
}

/// Room for events to come; what was not used is free again on drop.
#[derive(Debug)]
pub(super) struct Room {
    queue: Arc<Queue>,
    events: usize,
    each: usize,
}

#[derive(Debug)]
struct Series {
    written: IntCounter,
    lost: IntCounter,
    events: IntGauge,
    bytes: IntGauge,
    up: IntGauge,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(name: &'static str, limits: Limits, metrics: &Metrics) -> Arc<Self> {
        let series = Series {
            written: metrics.audit_events.with_label_values(&[name]),
            lost: metrics.audit_lost.with_label_values(&[name]),
            events: metrics.audit_queue_events.with_label_values(&[name]),
            bytes: metrics.audit_queue_bytes.with_label_values(&[name]),
            up: metrics.audit_up.with_label_values(&[name]),
        };
        series.up.set(1);
        Arc::new(Self {
            name,
            limits,
            state: Mutex::default(),
            filled: Notify::new(),
            emptied: Notify::new(),
            hurry: AtomicBool::new(false),
            series,
        })
    }

    /// Whether the sink did not take what it was last given.
    pub(super) fn is_down(&self) -> bool {
        self.lock().down
    }

    /// Whether a request would find room for its events.
    pub(super) fn has_room(&self) -> bool {
        self.lock().has_room(self.limits, REQUEST.events, REQUEST.bytes)
    }

    /// Room for so many events of so many bytes; nothing when there is not enough.
    pub(super) fn reserve(self: &Arc<Self>, events: usize, each: usize) -> Option<Room> {
        let mut state = self.lock();
        if !state.has_room(self.limits, events, events.saturating_mul(each)) {
            return None;
        }
        state.held += events;
        state.held_bytes += events * each;
        Some(Room { queue: self.clone(), events, each })
    }

    /// An event without a room of its own. Without room in one half of the queue it is lost, and counted: the other half
    /// is kept for those who are let in, however many others knock.
    pub(super) fn push(&self, line: Bytes) {
        let mut state = self.lock();
        let Limits { events, bytes } = self.limits;
        let more_than_half = state.waiting.len() >= events / 2 || state.bytes + line.len() > bytes / 2;
        if more_than_half || !state.has_room(self.limits, 1, line.len()) {
            state.gap().events += 1;
            self.series.lost.inc();
            return;
        }
        self.add(state, Entry { line, written: None });
    }

    /// A request was refused because its events would have found no room.
    pub(super) fn refused(&self) {
        self.lock().gap().refused += 1;
        self.filled.notify_one();
    }

    /// Resolves when everything that is waiting now or comes meanwhile was written. Cancel safe.
    pub(super) async fn flush(&self) {
        self.hurry.store(true, Ordering::Release);
        self.filled.notify_one();
        loop {
            let emptied = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn is_empty(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && state.gap.is_none() && !state.writing
    }

    fn add(&self, mut state: MutexGuard<'_, State>, entry: Entry) {
        state.bytes += entry.line.len();
        state.urgent += usize::from(entry.written.is_some());
        state.waiting.push_back(entry);
        self.show(&state);
        drop(state);
        self.filled.notify_one();
    }

    fn show(&self, state: &State) {
        self.series.events.set(i64::try_from(state.waiting.len()).unwrap_or(i64::MAX));
        self.series.bytes.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes until `drain` cuts. Dropped, it loses nothing that was not being written.
    pub(super) async fn run(self: Arc<Self>, mut sink: Box<dyn Sink>, drain: Drain) {
        tokio::select! {
            biased;
            () = drain.cutting() => {}
            () = self.write_all(&mut *sink) => {}
        }
        let left = self.lock().waiting.len();
        if left > 0 {
            error!(audit.sink = self.name, events = left, "stopped with audit events that were not written");
        }
    }

    async fn write_all(&self, sink: &mut dyn Sink) {
        let batching = sink.batching();
        // Fewer while it is found out which event of a batch a sink does not take.
        let mut most = batching.events;
        let mut retry = FIRST_RETRY;
        // Whether it did not even take what is told of a gap.
        let mut untellable = false;
        loop {
            self.filled(batching).await;
            let (batch, gap) = self.batch(most, batching.bytes);
            let events = batch.len() - usize::from(gap.is_some());
            let failed = match sink.write(&batch).await {
                Ok(()) => {
                    self.series.written.inc_by(batch.len() as u64);
                    self.done(events, None);
                    (most, retry) = (batching.events, FIRST_RETRY);
                    self.up();
                    if std::mem::take(&mut untellable) && events > 0 {
                        error!(audit.sink = self.name, "it takes events, but not one of what it has missed");
                        self.lock().gap = None;
                    }
                    false
                }
                Err(Failure::Unacceptable(error)) if batch.len() > 1 => {
                    warn!(audit.sink = self.name, events, error = chain(&*error), "a batch was not taken");
                    self.done(0, gap);
                    most = (batch.len() / 2).max(1);
                    false
                }
                Err(Failure::Unacceptable(error)) if events > 0 => {
                    error!(
                        audit.sink = self.name,
                        error = chain(&*error),
                        "an audit event is lost: not taken"
                    );
                    self.lose();
                    most = batching.events;
                    self.is_down()
                }
                Err(failure) => {
                    // Who does not take podgate's own word about what is missing may well take nothing at all.
                    untellable |= matches!(failure, Failure::Unacceptable(_));
                    let (Failure::Down(error) | Failure::Unacceptable(error)) = failure;
                    self.done(0, gap);
                    self.down(&*error);
                    true
                }
            };
            if failed {
                sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }

    /// Resolves when there is enough for a batch, or there was something for long enough. Cancel safe.
    async fn filled(&self, batching: Batching) {
        let mut until = None;
        loop {
            let filled = self.filled.notified();
            let (some, enough) = {
                let state = self.lock();
                let some = !state.waiting.is_empty() || state.gap.is_some();
                let enough = state.waiting.len() >= batching.events || state.bytes >= batching.bytes;
                let enough = enough || state.urgent > 0;
                (some, enough)
            };
            if some && (enough || batching.wait.is_zero() || self.hurry.load(Ordering::Acquire)) {
                return;
            }
            if some && until.is_none() {
                until = Some(Instant::now() + batching.wait);
            }
            match until {
                None => filled.await,
                Some(until) => tokio::select! {
                    () = filled => {}
                    () = sleep_until(until) => return,
                },
            }
        }
    }

    /// What to write next, first of all what is missing; events stay in the queue until they are written. While the sink
    /// is down nobody is told what is missing, because more may be by the time it is back.
    fn batch(&self, events: usize, bytes: usize) -> (Vec<Bytes>, Option<Gap>) {
        let mut state = self.lock();
        let gap = if state.down && !state.waiting.is_empty() { None } else { state.gap.take() };
        let mut batch: Vec<Bytes> = gap.iter().map(Gap::encode).collect();
        let mut size = 0;
        for Entry { line, .. } in &state.waiting {
            size += line.len();
            if batch.len() >= events || !batch.is_empty() && size > bytes {
                break;
            }
            batch.push(line.clone());
        }
        state.writing = true;
        (batch, gap)
    }

    /// So many events were written, and this gap was not.
    fn done(&self, events: usize, gap: Option<Gap>) {
        let mut state = self.lock();
        state.writing = false;
        if let Some(gap) = gap {
            state.add_gap(&gap);
        }
        for _ in 0..events {
            let Some(Entry { line, written }) = state.waiting.pop_front() else { break };
            state.bytes -= line.len();
            if let Some(written) = written {
                state.urgent -= 1;
                // Who does not wait any more needs not to know.
                let _ = written.send(());
            }
        }
        self.show(&state);
        drop(state);
        self.emptied.notify_waiters();
    }

    /// The first event will never be written. Whoever waits for it is not told that it was.
    fn lose(&self) {
        self.series.lost.inc();
        let mut state = self.lock();
        state.gap().events += 1;
        state.writing = false;
        if let Some(Entry { line, written }) = state.waiting.pop_front() {
            state.bytes -= line.len();
            state.urgent -= usize::from(written.is_some());
        }
        self.show(&state);
        drop(state);
        self.emptied.notify_waiters();
    }

    fn down(&self, cause: &(dyn std::error::Error + Send + Sync + 'static)) {
        self.series.up.set(0);
        if !self.turn(true) {
            error!(audit.sink = self.name, error = chain(cause), "audit events cannot be written");
        }
    }

    fn up(&self) {
        self.series.up.set(1);
        if self.turn(false) {
            info!(audit.sink = self.name, "audit events are written again");
        }
    }

    /// Whether it was down before.
    fn turn(&self, down: bool) -> bool {
        std::mem::replace(&mut self.lock().down, down)
    }
}

// === impl State ===

impl State {
    fn has_room(&self, limits: Limits, events: usize, bytes: usize) -> bool {
        self.waiting.len() + self.held + events <= limits.events
            && self.bytes + self.held_bytes + bytes <= limits.bytes
    }

    /// What is missing up to now.
    fn gap(&mut self) -> &mut Gap {
        let now = Timestamp::now();
        let gap = self.gap.get_or_insert(Gap { events: 0, refused: 0, from: now, to: now });
        gap.to = now;
        gap
    }

    fn add_gap(&mut self, other: &Gap) {
        let to = self.gap.as_ref().map_or(other.to, |gap| gap.to);
        let gap = self.gap();
        gap.events += other.events;
        gap.refused += other.refused;
        gap.from = gap.from.min(other.from);
        gap.to = to;
    }
}

// === impl Room ===

impl Room {
    /// Whether an event of this size takes no more than there is.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        let state = self.queue.lock();
        bytes <= self.each || state.bytes + state.held_bytes + bytes - self.each <= self.queue.limits.bytes
    }

    /// An event for which there is room. With `wait`, what resolves when the sink has it.
    pub(super) fn push(&mut self, line: Bytes, wait: bool) -> Option<oneshot::Receiver<()>> {
        let (written, has_it) = wait.then(oneshot::channel).unzip();
        let mut state = self.queue.lock();
        if self.events == 0 {
            drop(state);
            self.queue.push(line);
            return None;
        }
        self.events -= 1;
        state.held -= 1;
        state.held_bytes -= self.each;
        self.queue.add(state, Entry { line, written });
        has_it
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.held -= self.events;
        state.held_bytes -= self.events * self.each;
    }
}

// === impl Gap ===

impl Gap {
    fn encode(&self) -> Bytes {
        let told = [
            ("podgate.dev/gap-events", self.events.to_string()),
            ("podgate.dev/gap-refused-requests", self.refused.to_string()),
            ("podgate.dev/gap-from", event::micros(self.from)),
            ("podgate.dev/gap-to", event::micros(self.to)),
        ];
        let annotations = told.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect();
        Event::of_podgate(annotations).encode()
    }
}

#[cfg(test)]
mod tests;
