//! Record: from the tape of a session to a recording in the spool.
//!
//! A session's task holds a [`Recorder`] and hands its tape over when there is a chunk of it, or some of it for a
//! second. A task of its own takes it from there: on the blocking pool it is filtered, compressed, sealed, and written.
//! One chunk may be under way and one wait; while that is so the session reads nothing of its peers, so a slow disk
//! slows the session and costs no memory.
//! What was sealed and cannot be written stays, and is written first once writing works again; what comes meanwhile is
//! a gap, which the recording then tells. A strict session is ended at the first failure.
//! Invariants: a recorder that is dropped before [`Recorder::keep`] leaves no file; one that is dropped later leaves
//! one with an ending, whatever became of the session.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::PollSender;
use tracing::{error, info, warn};

use super::Recordings;
use super::echo::Echo;
use super::spool::{PART, Part, Room};
use crate::drain::Drain;
use crate::recording::card::{self, Card};
use crate::recording::container::{self, Recovered, Writer};
use crate::recording::facts::{Details, Ending, Facts, Gap, Stdin};
use crate::recording::typed::Typed;
use crate::status::Refusal;
use crate::telemetry::{EndReason, chain};
use crate::wire::tap::{Moved, Tap};
use crate::wire::tape::{Buffer, Kind, MAX_PIECE, Reel, Tape};

/// A tape of so many bytes is handed over at once. Large enough to compress well.
const CHUNK: usize = 512 * 1024;

/// One that lies in a spare buffer only at so many: what is done for each chunk, a signature and changes of thread, costs as
/// much as half a megabyte of its content.
const LARGE: usize = 2 * 1024 * 1024;

/// A buffer for such a tape: what a turn of a session may put on it besides fits in.
pub(super) const TAPE: usize = LARGE + 2 * MAX_PIECE;

/// A shorter one, this long after its first byte: so much is lost when podgate is killed.
const CHUNK_TIME: Duration = Duration::from_secs(1);

/// How long the spool may take for the beginning of a recording, which its session waits for.
const BEGIN: Duration = Duration::from_secs(10);

/// How long it may take no chunk before the recording counts as failed: the disk hangs.
const STALL: Duration = Duration::from_secs(30);

/// How long a session that is over keeps its seat for the end of its recording; that is written all the same.
const FINISH: Duration = Duration::from_secs(5);

/// The same once the drain cuts: below its grace.
const CUT_FINISH: Duration = Duration::from_secs(1);

/// How often an end that cannot be written is tried again.
const CLOSE_RETRY: Duration = Duration::from_secs(1);

/// And how long; beyond it the recording is left to be recovered as one that was cut.
const CLOSE_FOR: Duration = Duration::from_secs(60);

/// Most gaps that an ending tells one by one; further ones are told as the last.
const MAX_GAPS: usize = 1000;

/// A session's hold on its recording.
pub struct Recorder {
    id: String,
    rule: String,
    strict: bool,
    began: Instant,
    chunks: PollSender<Order>,
    failed: oneshot::Receiver<String>,
    done: oneshot::Receiver<Done>,
    shared: Arc<Shared>,
    recordings: Recordings,
    /// Since when there is something on the tape, or a buffer for much.
    since: Option<Instant>,
    /// Since when the spool has no room for the next chunk.
    full: Option<Instant>,
}

/// What is to be recorded, and how.
pub struct Begin {
    /// What stands in front.
    pub facts: Facts,
    /// And for those only who may read it.
    pub details: Details,
    /// Whether the session ends with its recording.
    pub strict: bool,
}

/// What became of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// Its id.
    pub id: String,
    /// What stands behind it.
    pub ending: Ending,
}

/// There can be no recording.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spool does not take it.
    #[error("write the beginning of the recording")]
    Write(#[source] io::Error),
    /// It cannot be made.
    #[error("make the beginning of the recording")]
    Make(#[source] container::Error),
    /// The spool hangs.
    #[error("the spool did not take the beginning of the recording within {BEGIN:?}")]
    Late,
    /// A defect.
    #[error("the recorder went away")]
    Gone,
}

/// What the session tells the recording besides its tape.
#[derive(Default)]
struct Shared(Mutex<Told>);

/// A tape to be written.
#[derive(Default)]
pub(crate) struct Order {
    reel: Reel,
    /// What could not be handed over before it.
    lost: Option<Gap>,
}

#[derive(Default)]
struct Told {
    /// There is a session, or may be.
    kept: bool,
    /// What could not be handed over, since the last order.
    lost: Option<Gap>,
    /// How it ends if nobody says more.
    abandoned: Option<(EndReason, bool)>,
    /// The session is over.
    last: Option<Last>,
}

/// The end of a session.
struct Last {
    reel: Reel,
    seconds: f64,
    reason: EndReason,
    exit_code: Option<u8>,
    process_may_remain: bool,
    moved: Moved,
}

// === impl Recorder ===

impl Recorder {
    /// Begins a recording. Dropping the future leaves nothing.
    ///
    /// # Errors
    /// When a strict one cannot begin.
    pub async fn begin(recordings: &Recordings, begin: Begin) -> Result<Self, Error> {
        let (id, rule) = (begin.facts.id.clone(), begin.facts.rule.clone());
        let (strict, began) = (begin.strict, Instant::now());
        let (chunks, orders) = mpsc::channel(1);
        let (tell_failed, failed) = oneshot::channel();
        let (tell_done, done) = oneshot::channel();
        let (tell_begun, begun) = oneshot::channel();
        let shared = Arc::new(Shared::default());
        let task = Task {
            shared: shared.clone(),
            recordings: recordings.clone(),
            orders,
            failed: strict.then_some(tell_failed),
            done: tell_done,
            begun: tell_begun,
        };
        recordings.drain().spawn(task.run(begin));
        let recorder = Self {
            id,
            rule,
            strict,
            began,
            chunks: PollSender::new(chunks),
            failed,
            done,
            shared,
            recordings: recordings.clone(),
            since: None,
            full: None,
        };
        let begun = match timeout(BEGIN, begun).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(_)) => Err(Error::Gone),
            Err(_) => Err(Error::Late),
        };
        match begun {
            Err(error) if strict => Err(error),
            Err(error) => {
                warn!(
                    recording.id = recorder.id,
                    error = chain(&error),
                    "a session begins without its recording"
                );
                Ok(recorder)
            }
            Ok(()) => Ok(recorder),
        }
    }

    /// The recording's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The rule that demanded it.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// When the session began, by which its tape is timed.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// There may be a session: from now on there will be a recording, whatever happens.
    pub fn keep(&self) {
        self.shared.told().kept = true;
    }

    /// There is none after all.
    pub fn forgo(&self) {
        self.shared.told().kept = false;
    }

    /// There was none that anybody knows of: this is how it ends, should nobody say more.
    pub fn abandon(&self, reason: EndReason, process_may_remain: bool) {
        self.shared.told().abandoned = Some((reason, process_may_remain));
    }

    /// Whether there will be a recording.
    pub fn is_kept(&self) -> bool {
        self.shared.told().kept
    }

    /// Hands the tape over when it is time for it. Ready when the session may read on.
    ///
    /// # Errors
    /// Why a strict session cannot go on.
    pub fn poll(&mut self, cx: &mut Context<'_>, tape: &mut Tape) -> Poll<Result<(), String>> {
        if self.strict
            && let Poll::Ready(failed) = Pin::new(&mut self.failed).poll(cx)
        {
            return Poll::Ready(Err(failed.unwrap_or_else(|_| Error::Gone.to_string())));
        }
        if tape.is_empty() && self.since.is_none() {
            return Poll::Ready(Ok(()));
        }
        let full = tape.len() >= if tape.capacity() < TAPE { CHUNK } else { LARGE };
        if !full && self.since.get_or_insert_with(Instant::now).elapsed() < CHUNK_TIME {
            return Poll::Ready(Ok(()));
        }
        if tape.is_empty() {
            self.since = None;
            self.recordings.spares().give(tape.take().into_buffer());
            return Poll::Ready(Ok(()));
        }
        match self.chunks.poll_reserve(cx) {
            Poll::Ready(Ok(())) => {
                self.no_longer_full();
                let lost = self.shared.told().lost.take();
                // Where there is much, more of it will come.
                let next = if full { self.recordings.spares().take() } else { Buffer::default() };
                self.since = full.then(Instant::now);
                // It fails only when the task is gone, as reserving does.
                let _ = self.chunks.send_item(Order { reel: tape.replace(next), lost });
            }
            Poll::Ready(Err(_)) if self.strict => return Poll::Ready(Err(Error::Gone.to_string())),
            Poll::Ready(Err(_)) => self.lose(tape, Error::Gone.to_string()),
            Poll::Pending => {
                let waits = *self.full.get_or_insert_with(Instant::now);
                if waits.elapsed() >= STALL {
                    let why = format!("the spool has taken nothing for {STALL:?}");
                    if self.strict {
                        return Poll::Ready(Err(why));
                    }
                    self.lose(tape, why);
                } else if full {
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// When it wants to be polled again although nothing has happened.
    pub fn due(&self) -> Option<Instant> {
        let due = self.since? + CHUNK_TIME;
        Some(self.full.map_or(due, |full| due.max(full + STALL)))
    }

    /// The session says nothing more, but it is not known yet how it ends: what is on the tape is not to wait for that.
    pub fn hand_over(&mut self, tap: &mut Tap) {
        let Some(tape) = tap.tape().filter(|tape| !tape.is_empty()) else { return };
        // Where the spool has no room now, it stays on the tape, and goes with the end.
        if let Some(Ok(())) = poll_fn(|cx| self.chunks.poll_reserve(cx)).now_or_never() {
            let lost = self.shared.told().lost.take();
            // It fails only when the task is gone, as reserving does.
            let _ = self.chunks.send_item(Order { reel: tape.take(), lost });
        }
    }

    /// The session is over: writes the rest. Resolves when the recording is closed, or with nothing when that takes
    /// longer than a seat can be kept for it. Dropping the future changes nothing of what is written.
    pub async fn finish(
        mut self,
        tap: &mut Tap,
        reason: EndReason,
        process_may_remain: bool,
        drain: &Drain,
    ) -> Option<Done> {
        self.no_longer_full();
        tap.end();
        let last = Last {
            seconds: self.began.elapsed().as_secs_f64(),
            reason,
            exit_code: tap.exit_code(),
            process_may_remain,
            moved: tap.moved(),
            reel: tap.tape().map(Tape::take).unwrap_or_default(),
        };
        self.shared.told().last = Some(last);
        let secret = !self.recordings.keys().recipients.is_empty();
        let Self { chunks, done, id, .. } = self;
        drop(chunks);
        let cut = async {
            drain.cutting().await;
            sleep(CUT_FINISH).await;
        };
        tokio::select! {
            done = timeout(FINISH, done) => match done {
                Ok(Ok(Done { id, mut ending })) => {
                    if secret {
                        // What only recipients may read goes nowhere else.
                        ending.typed.clear();
                    }
                    return Some(Done { id, ending });
                }
                Ok(Err(_)) => return None,
                Err(_) => {}
            },
            () = cut => {}
        }
        warn!(
            recording.id = id,
            "a recording is not closed yet, its session does not wait for it any longer"
        );
        None
    }

    #[cfg(test)]
    pub(crate) fn replace_channel(&mut self, chunks: PollSender<Order>) -> PollSender<Order> {
        std::mem::replace(&mut self.chunks, chunks)
    }

    fn no_longer_full(&mut self) {
        if let Some(full) = self.full.take() {
            self.recordings.metrics().wait.inc_by(full.elapsed().as_secs_f64());
        }
    }

    /// Throws the tape away, and remembers that.
    fn lose(&mut self, tape: &mut Tape, cause: String) {
        self.since = None;
        let lost = missing(&tape.take(), cause);
        join(&mut self.shared.told().lost, lost);
    }
}

// === impl Error ===

impl Error {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        let cause = match self {
            Self::Write(source) => source.to_string(),
            Self::Make(source) => source.to_string(),
            Self::Late | Self::Gone => self.to_string(),
        };
        Refusal::Unavailable(format!("this session has to be recorded, and cannot be: {cause}"))
    }
}

// === impl Shared ===

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why what is left of a recording could not be closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unrecovered {
    /// It may be, another time.
    #[error("finish it in the spool")]
    Later(#[source] io::Error),
    /// Never.
    #[error("read it")]
    Unreadable(#[source] container::Error),
}

/// Closes a recording that was being written when podgate was killed. Does blocking I/O.
pub(super) fn recover(recordings: &Recordings, name: &str) -> Result<(), Unrecovered> {
    let (spool, later) = (recordings.spool(), Unrecovered::Later);
    let file = File::open(spool.path(&format!("{name}{PART}"))).map_err(later)?;
    if file.metadata().map_err(later)?.len() == 0 {
        return spool.remove(&format!("{name}{PART}")).map_err(later);
    }
    let Recovered { facts, keep, tail, ending } =
        container::recover(file, recordings.keys()).map_err(|error| match error {
            container::Error::Read(error) => Unrecovered::Later(error),
            error => Unrecovered::Unreadable(error),
        })?;
    let mut part = spool.reopen(name, keep).map_err(later)?;
    part.append(&tail, Room::Given).map_err(later)?;
    part.close(&facts.id, &Card::bare(&facts, &ending).to_json()).map_err(later)?;
    let outcome = if ending.cut { "cut" } else { "whole" };
    recordings.metrics().closed.with_label_values(&[outcome]).inc();
    Ok(())
}

/// The task of one recording.
struct Task {
    shared: Arc<Shared>,
    recordings: Recordings,
    orders: mpsc::Receiver<Order>,
    failed: Option<oneshot::Sender<String>>,
    done: oneshot::Sender<Done>,
    begun: oneshot::Sender<Result<(), Error>>,
}

// === impl Task ===

impl Task {
    async fn run(mut self, begin: Begin) {
        let recordings = self.recordings.clone();
        let Some(made) = blocking(move || Writing::make(recordings, begin)).await else { return };
        let mut writing = match made {
            Ok(writing) => writing,
            Err(error) => return drop(self.begun.send(Err(Error::Make(error)))),
        };
        let Some((back, begun)) = with(writing, |writing| writing.flush(Room::Needed)).await else { return };
        writing = back;
        // Whoever wanted it may be gone; then the channel is closed as well.
        let _ = self.begun.send(begun.map_err(Error::Write));
        while let Some(Order { mut reel, lost }) = self.orders.recv().await {
            let write = move |writing: &mut Writing| {
                let written = writing.write(&mut reel, lost);
                writing.recordings.spares().give(reel.into_buffer());
                written
            };
            let Some((back, written)) = with(writing, write).await else { return };
            writing = back;
            if let Err(error) = written
                && let Some(failed) = self.failed.take()
            {
                let _ = failed.send(error.to_string());
            }
        }
        let Told { kept, lost, abandoned, last } = std::mem::take(&mut *self.shared.told());
        if !kept {
            with(writing, Writing::discard).await;
            return;
        }
        let Some((back, ending)) = with(writing, move |writing| writing.end(last, abandoned, lost)).await
        else {
            return;
        };
        writing = back;
        let id = writing.facts.id.clone();
        let until = Instant::now() + CLOSE_FOR;
        loop {
            let Some((back, closed)) = with(writing, Writing::close).await else { return };
            writing = back;
            let Err(error) = closed else { break };
            if Instant::now() >= until || self.recordings.drain().is_stopping() {
                error!(
                    recording.id = id,
                    error = chain(&error),
                    "a recording cannot be closed; it is left to be recovered"
                );
                return writing.count("lost");
            }
            tokio::select! {
                () = sleep(CLOSE_RETRY) => {}
                () = self.recordings.drain().stopping() => {}
            }
        }
        writing.count(if ending.gaps.is_empty() { "whole" } else { "gap" });
        info!(recording.id = id, recording.gaps = ending.gaps.len(), "recording closed");
        self.recordings.closed();
        // A session that could not wait for it is gone.
        let _ = self.done.send(Done { id, ending });
    }
}

/// Runs what blocks where that is allowed; `None` when it panicked, which is told.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| error!(error = chain(error), "a recorder went away")).ok()
}

async fn with<T: Send + 'static>(
    mut writing: Box<Writing>,
    work: impl FnOnce(&mut Writing) -> T + Send + 'static,
) -> Option<(Box<Writing>, T)> {
    blocking(move || {
        let done = work(&mut writing);
        (writing, done)
    })
    .await
}

/// What stands on the blocking pool between two chunks.
struct Writing {
    recordings: Recordings,
    facts: Facts,
    strict: bool,
    filter: Filter,
    /// Until the end was made.
    writer: Option<Writer>,
    /// From its first write on.
    part: Option<Part>,
    /// Sealed, and not written.
    pending: Buffer,
    /// What is not recorded because of that.
    gap: Option<Gap>,
    gaps: Vec<Gap>,
    /// Reads typed lines off a terminal.
    typed: Option<Box<Typed>>,
    /// Until the end was made.
    card: Option<Box<card::Builder>>,
    /// What stands beside the recording, once the end was made.
    written_card: Vec<u8>,
}

/// What becomes of stdin.
enum Filter {
    All,
    None,
    Echoed(Box<Echo>),
}

// === impl Writing ===

impl Writing {
    fn make(recordings: Recordings, begin: Begin) -> Result<Box<Self>, container::Error> {
        let Begin { facts, details, strict } = begin;
        let mut pending = Buffer::default();
        let writer = Writer::begin(&facts, &details, recordings.keys(), &mut pending)?;
        let filter = match facts.records_stdin {
            Stdin::None => Filter::None,
            Stdin::Echoed if facts.tty => Filter::Echoed(Box::default()),
            Stdin::Echoed | Stdin::All => Filter::All,
        };
        let card = card::Builder::new(&facts, &details, &recordings.keys().recipients);
        Ok(Box::new(Self {
            typed: facts.tty.then(Box::default),
            card: Some(Box::new(card)),
            recordings,
            facts,
            strict,
            filter,
            writer: Some(writer),
            part: None,
            pending,
            gap: None,
            gaps: Vec::new(),
            written_card: Vec::new(),
        }))
    }

    /// Writes what is sealed.
    fn flush(&mut self, room: Room) -> io::Result<()> {
        let bytes = &*self.pending;
        if bytes.is_empty() {
            return Ok(());
        }
        let written = match &mut self.part {
            Some(part) => part.append(bytes, room),
            None => {
                let name = name(&self.facts);
                self.recordings.spool().create(&name, bytes, room).map(|part| self.part = Some(part))
            }
        };
        self.recordings.tell(written.is_ok());
        written?;
        self.recordings.metrics().bytes.inc_by(bytes.len() as u64);
        self.recordings.spares().give(std::mem::take(&mut self.pending));
        Ok(())
    }

    /// Records what was on a tape, or counts it as missing.
    fn write(&mut self, reel: &mut Reel, lost: Option<Gap>) -> io::Result<()> {
        if let Some(typed) = &mut self.typed {
            // With the keys that the recording does not get: only what the terminal shows comes out of it.
            reel.pieces().for_each(|piece| typed.piece(piece.at, piece.kind, piece.bytes));
        }
        join(&mut self.gap, lost);
        let all = missing(reel, String::new());
        if let Err(error) = self.flush(Room::Needed).and_then(|()| self.record(reel)) {
            if self.gap.is_none() {
                let id = &self.facts.id;
                warn!(
                    recording.id = id,
                    strict = self.strict,
                    error = chain(&error),
                    "a session is not recorded"
                );
            }
            join(&mut self.gap, all.map(|gap| Gap { cause: error.to_string(), ..gap }));
            return Err(error);
        }
        self.flush(Room::Needed)
    }

    /// Seals what was on a tape, behind what is missing before it.
    fn record(&mut self, reel: &mut Reel) -> io::Result<()> {
        self.mark()?;
        match self.filter.pass(reel) {
            Some(mut filtered) => self.seal(&mut filtered),
            None => self.seal(reel),
        }
    }

    fn seal(&mut self, reel: &mut Reel) -> io::Result<()> {
        let Some(writer) = self.writer.as_mut().filter(|_| !reel.is_empty()) else { return Ok(()) };
        if let Some(card) = &mut self.card {
            reel.pieces().for_each(|piece| card.piece(piece.at, piece.kind, piece.bytes));
        }
        if self.pending.is_empty() && reel.len() >= CHUNK {
            self.pending = self.recordings.spares().take();
        }
        writer.chunk(reel, &mut self.pending).map_err(io::Error::other)
    }

    /// Says in the recording what is missing before this.
    fn mark(&mut self) -> io::Result<()> {
        let Some(gap) = self.gap.take() else { return Ok(()) };
        let mut mark = Tape::default();
        mark.at(Duration::try_from_secs_f64(gap.to).unwrap_or_default());
        let Gap { from, to, bytes, cause } = &gap;
        let text = format!("{bytes} bytes from {from:.3} s to {to:.3} s could not be recorded: {cause}");
        mark.put(Kind::Gap, text.as_bytes());
        self.recordings.metrics().gaps.inc();
        match self.gaps.get_mut(MAX_GAPS - 1) {
            Some(last) => *last = joined(last, gap),
            None => self.gaps.push(gap),
        }
        self.seal(&mut mark.take())
    }

    /// Seals the rest and the ending; all of it waits to be written.
    fn end(&mut self, last: Option<Last>, abandoned: Option<(EndReason, bool)>, lost: Option<Gap>) -> Ending {
        let (reason, process_may_remain) =
            abandoned.unwrap_or((EndReason::Aborted, self.facts.has_process()));
        let aborted = || Last {
            reel: Reel::default(),
            seconds: (jiff::Timestamp::now() - self.facts.started)
                .total(jiff::Unit::Second)
                .unwrap_or_default(),
            reason,
            exit_code: None,
            process_may_remain,
            moved: Moved::default(),
        };
        let Last { mut reel, seconds, reason, exit_code, process_may_remain, moved } =
            last.unwrap_or_else(aborted);
        let id = self.facts.id.clone();
        let warn = |error: &io::Error| {
            warn!(recording.id = id, error = chain(error), "the end of a session is not recorded yet");
        };
        // What could not be written waits, or counts as missing, and that is written now.
        let _ = self.write(&mut reel, lost).inspect_err(warn);
        let mut rest = self.filter.end(seconds);
        let sealed = self.mark().and_then(|()| self.seal(&mut rest));
        let _ = sealed.inspect_err(warn);
        let gaps = std::mem::take(&mut self.gaps);
        let ending = Ending {
            seconds,
            reason: reason.word().to_owned(),
            exit_code,
            process_may_remain,
            moved,
            cut: false,
            gaps,
            typed: self.typed.take().map(|typed| typed.finish()).unwrap_or_default(),
        };
        if let Some(writer) = self.writer.take()
            && let Err(error) = writer.end(&ending, &mut self.pending)
        {
            error!(recording.id = id, error = chain(&error), "a recording has no end");
        }
        if let Some(card) = self.card.take() {
            self.written_card = card.finish(&ending).to_json();
        }
        ending
    }

    fn close(&mut self) -> io::Result<()> {
        self.flush(Room::Given)?;
        match &mut self.part {
            Some(part) => part.close(&self.facts.id, &self.written_card),
            None => Ok(()),
        }
    }

    fn discard(&mut self) {
        if let Some(part) = self.part.take() {
            part.discard();
        }
        self.count("discarded");
    }

    fn count(&self, outcome: &str) {
        self.recordings.metrics().closed.with_label_values(&[outcome]).inc();
    }
}

// === impl Filter ===

impl Filter {
    /// What of it may be written; `None` for all of it.
    fn pass(&mut self, reel: &Reel) -> Option<Reel> {
        let mut out = Tape::default();
        if matches!(self, Self::All) {
            return None;
        }
        for piece in reel.pieces() {
            match self {
                Self::Echoed(echo) => echo.piece(piece, &mut out),
                Self::All | Self::None if piece.kind == Kind::Stdin => {}
                Self::All | Self::None => {
                    out.at(piece.at);
                    out.put(piece.kind, piece.bytes);
                }
            }
        }
        Some(out.take())
    }

    /// What is left to be written.
    fn end(&mut self, seconds: f64) -> Reel {
        let mut out = Tape::default();
        out.at(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        if let Self::Echoed(echo) = self {
            echo.end(&mut out);
        }
        out.take()
    }
}

/// The name of a recording's file.
fn name(facts: &Facts) -> String {
    format!("{}.{}.zst", facts.id, if facts.tty { "cast" } else { "tape" })
}

/// The gap where this is missing; none where there is nothing.
fn missing(reel: &Reel, cause: String) -> Option<Gap> {
    let (from, to) = reel.span();
    let gap = || Gap { from: from.as_secs_f64(), to: to.as_secs_f64(), bytes: reel.len() as u64, cause };
    (!reel.is_empty()).then(gap)
}

/// Lets a gap go on over the next one.
fn join(gap: &mut Option<Gap>, next: Option<Gap>) {
    let Some(next) = next else { return };
    *gap = Some(match gap {
        Some(gap) => joined(gap, next),
        None => next,
    });
}

fn joined(gap: &Gap, next: Gap) -> Gap {
    let (from, to) = (gap.from.min(next.from), gap.to.max(next.to));
    Gap { from, to, bytes: gap.bytes.saturating_add(next.bytes), cause: gap.cause.clone() }
}
