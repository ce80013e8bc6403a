//! Splice: moves the bytes of a session both ways, through the [`Link`] between them, until it is over.
//!
//! Both directions are one state machine, because a link may answer a peer on its own connection. A turn writes what
//! is queued, then reads of each side what has room: a side is read only while the queue that its bytes go to is not
//! [full](crate::wire::link::FULL), so a writer's back pressure is the reader's, and never that of the other
//! direction.
//!
//! A buffer is taken from the thread's spares for a read, its bytes are queued in slices, and once they are written
//! it is filled again or given back. A side that waits holds only what its link could not take yet, so an idle
//! session costs no buffer.
//!
//! A session that always has something to move gives way after a [`QUANTUM`], so that one in which somebody types is not
//! kept waiting until the bulk copies of its thread have nothing to move.
//!
//! Reading has a blind spot: while the far side takes nothing, nobody reads the client, so one that goes away is not
//! seen. Its [`Socket`] is asked about it from time to time, only then.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use crate::spare;
use crate::tap::record::Recorder;
use crate::telemetry::{Meter, Meters};
use crate::throttle::{Grant, Held, Throttle};
use crate::wire::link::{Fault, Link, Out, Queue};

/// Read size in bytes: a burst takes one wake-up, and with the heads that its frames get, which have a KiB, it goes out as
/// four TLS records in one system call. With a byte more than four records hold, a fifth would take a call of its own.
pub(super) const READ: usize = spare::SIZE - 1024;

/// Bytes that one session moves before others have their turn, and before its thread asks the kernel what else there is: some
/// tenths of a millisecond, beside which the asking costs next to nothing.
pub(super) const QUANTUM: usize = 4 * READ;

/// What may stay in a buffer of [`READ`] bytes while its side waits; less moves into a buffer of its own size.
const KEEP: usize = 4 * 1024;

/// One connection of a session.
#[derive(Debug)]
pub(super) struct Side<I> {
    pub(super) io: I,
    /// What was read and not taken by the link.
    pub(super) input: BytesMut,
    throttle: Option<Box<Throttle>>,
    /// Written, but perhaps still inside TLS.
    unflushed: bool,
    /// Bytes of the queue that are no session's: the answer's head.
    unmetered: usize,
}

/// Both connections, and what stands between them.
pub(super) struct Splice<C, F> {
    pub(super) client: Side<C>,
    pub(super) far: Side<F>,
    pub(super) link: Box<dyn Link>,
    pub(super) out: Out,
    pub(super) recorder: Option<Recorder>,
    /// Whether it has no room.
    full: bool,
    /// Bytes read since it gave way, or had nothing to move.
    turn: usize,
    /// Why the far side takes nothing any more. What it says is still read.
    pub(super) far_deaf: Option<io::Error>,
    /// When a byte of the session itself went by.
    pub(super) active: Instant,
    /// When a direction may move again that has used up its budget.
    resume: [Option<Instant>; 2],
    /// For how long limits of bytes have held it up, as was told last.
    held: Held,
}

/// What ends a splice, or wants its driver's attention.
#[derive(Debug)]
pub(super) enum Event {
    /// The client's bytes ended, properly or not.
    ClientEnded(Option<io::Error>),
    /// The client takes nothing any more.
    ClientDeaf(io::Error),
    /// The far side's bytes ended, properly or not.
    FarEnded(Option<io::Error>),
    /// A peer does not speak its protocol.
    Fault(Fault),
    /// The client said that it is done.
    OverByClient,
    /// The far side said that it is done.
    OverByFar,
    /// It has to be recorded and cannot be.
    Unrecorded(String),
    /// One of [`Splice::resume_at`], [`Splice::record_at`], [`Splice::waits_for_far`] and [`Splice::far_deaf`] has changed.
    Timing,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Side<I> {
    pub(super) fn new(io: I, input: BytesMut, throttle: Option<Box<Throttle>>, unmetered: usize) -> Self {
        Self { io, input, throttle, unflushed: false, unmetered }
    }

    /// Writes as much of the queue as the connection takes, then flushes. Ready when all is out.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut Queue,
        meter: &Meter,
    ) -> Poll<io::Result<()>> {
        while !queue.is_empty() {
            let Poll::Ready(written) = poll_write_buf(Pin::new(&mut self.io), cx, queue)? else {
                return Poll::Pending;
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            let free = written.min(self.unmetered);
            self.unmetered -= free;
            meter.add(written - free);
        }
        if self.unflushed {
            std::task::ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the queue out, or what the connection takes of it within this time.
    pub(super) async fn send(&mut self, queue: &mut Queue, meter: &Meter, within: Option<Duration>) {
        let sent = poll_fn(|cx| self.poll_send(cx, queue, meter));
        // Late or refused, there is nothing more to be done about it.
        match within {
            Some(within) => drop(timeout(within, sent).await),
            None => drop(sent.await),
        }
    }

    /// Reads at most `allowed` bytes behind those that wait. Ready with 0 at the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, allowed: usize) -> Poll<io::Result<usize>> {
        if !self.input.try_reclaim(READ) {
            let mut fresh = spare::take();
            fresh.reserve(self.input.len() + READ);
            fresh.extend_from_slice(&self.input);
            self.input = fresh;
        }
        let limit = allowed.min(READ);
        let polled = poll_read_buf(Pin::new(&mut self.io), cx, &mut (&mut self.input).limit(limit));
        if !matches!(polled, Poll::Ready(Ok(1..))) {
            self.rest();
        }
        polled
    }

    /// As [`Side::poll_fill`], by what was granted.
    fn poll_read(&mut self, cx: &mut Context<'_>, granted: usize) -> Poll<io::Result<usize>> {
        let polled = self.poll_fill(cx, granted);
        if let (Some(throttle), Poll::Ready(Ok(read))) = (&mut self.throttle, &polled) {
            throttle.spend(*read);
        }
        polled
    }

    /// Leaves to others what was granted and not read.
    fn pass(&mut self) {
        if let Some(throttle) = &mut self.throttle {
            throttle.pass();
        }
    }

    /// Holds no more than what waits, for as long as nothing comes.
    fn rest(&mut self) {
        if self.input.len() <= KEEP {
            let kept = BytesMut::from(&self.input[..]);
            spare::give_back(std::mem::replace(&mut self.input, kept));
        }
    }

    /// How much may be read now; nothing before the instant.
    fn grant(&mut self) -> Result<usize, Instant> {
        match &mut self.throttle {
            None => Ok(READ),
            Some(throttle) => match throttle.ask(Instant::now(), READ) {
                Grant::Bytes(allowed) => Ok(allowed),
                Grant::Wait(until) => Err(until),
            },
        }
    }

    /// For how long its budgets have held it up, where it has any.
    fn held(&self) -> Option<Held> {
        self.throttle.as_ref().map(|throttle| throttle.held())
    }
}

// === impl Splice ===

impl<C, F> Splice<C, F>
where
    C: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(
        client: Side<C>,
        far: Side<F>,
        link: Box<dyn Link>,
        recorder: Option<Recorder>,
    ) -> Self {
        let (active, mut out) = (Instant::now(), Out::default());
        if recorder.is_some() {
            out.tap.record();
        }
        Self {
            client,
            far,
            link,
            out,
            recorder,
            full: false,
            turn: 0,
            far_deaf: None,
            active,
            resume: [None; 2],
            held: Held::default(),
        }
    }

    /// Lets the link begin and take what was read of both sides before.
    pub(super) fn begin(&mut self) -> Result<(), Event> {
        self.stamp();
        self.link.begin(&mut self.out);
        self.take_far()?;
        if self.link.takes_client() { self.take_client() } else { Ok(()) }
    }

    /// When a direction may move again; it is not polled for it.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.resume.into_iter().flatten().min()
    }

    /// When the recorder wants what there is on the tape.
    pub(super) fn record_at(&self) -> Option<Instant> {
        self.recorder.as_ref().and_then(Recorder::due)
    }

    /// What passes from now on is recorded as of now.
    pub(super) fn stamp(&mut self) {
        stamp(self.recorder.as_ref(), &mut self.out);
    }

    /// Whether nobody reads the client now, because the far side, or the recorder, is not ready for what it said.
    pub(super) fn waits_for_far(&self) -> bool {
        self.full || !self.link.takes_client() || self.far_deaf.is_none() && self.out.far.is_full()
    }

    fn timing(&self) -> (Option<Instant>, Option<Instant>, bool, bool) {
        (self.resume_at(), self.record_at(), self.waits_for_far(), self.far_deaf.is_some())
    }

    /// Moves bytes until there is something to tell. A session that always has some to move lets others have their turn.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, meters: &Meters) -> Poll<Event> {
        let polled = self.poll_turn(cx, meters);
        // Nobody knows when it is polled for reading again: its peers may have no room, or the session may be over.
        self.client.pass();
        self.far.pass();
        polled
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>, meters: &Meters) -> Poll<Event> {
        let timing = self.timing();
        loop {
            let mut moved = false;
            if let Poll::Ready(Err(error)) = self.poll_send_client(cx, meters) {
                return Poll::Ready(Event::ClientDeaf(error));
            }
            // What is not written yet is the next turn's; that nothing is taken any more shows in `timing`.
            let _ = self.poll_send_far(cx, meters);
            if let Err(why) = self.poll_record(cx) {
                return Poll::Ready(Event::Unrecorded(why));
            }
            if self.turn >= QUANTUM {
                if timing != self.timing() {
                    return Poll::Ready(Event::Timing);
                }
                self.turn = 0;
                // Woken behind all who are ready by then: a wake-up of its own would come before the kernel was asked.
                return pin!(yield_now()).poll(cx).map(|()| Event::Timing);
            }
            if self.full {
                // Nothing moves before the recorder has room: the clock is not to ask for it.
                self.resume = [None; 2];
                return if timing != self.timing() { Poll::Ready(Event::Timing) } else { Poll::Pending };
            }
            match self.poll_far(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(event)) => return Poll::Ready(event),
                Poll::Pending => {}
            }
            match self.poll_client(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(event)) => return Poll::Ready(event),
                Poll::Pending => {}
            }
            if std::mem::take(&mut self.out.active) {
                self.active = Instant::now();
                meters.touch();
            }
            if let Some(held) = self.held().filter(|held| held.long > self.held.long) {
                self.held = held;
                meters.hold_up(held);
            }
            if !moved {
                self.turn = 0;
                return if timing != self.timing() { Poll::Ready(Event::Timing) } else { Poll::Pending };
            }
        }
    }

    /// Writes to the client what is queued for it.
    pub(super) fn poll_send_client(&mut self, cx: &mut Context<'_>, meters: &Meters) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.client.poll_send(cx, &mut self.out.client, &meters.down))?;
            self.link.drained(&mut self.out);
            if self.out.client.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes to the far side what is queued for it, while it takes anything.
    pub(super) fn poll_send_far(&mut self, cx: &mut Context<'_>, meters: &Meters) -> Poll<()> {
        loop {
            if self.far_deaf.is_some() {
                self.out.far.clear();
                return Poll::Ready(());
            }
            match std::task::ready!(self.far.poll_send(cx, &mut self.out.far, &meters.up)) {
                Err(error) => self.far_deaf = Some(error),
                Ok(()) => self.link.drained(&mut self.out),
            }
            if self.out.far.is_empty() {
                return Poll::Ready(());
            }
        }
    }

    /// Hands over what is to be recorded.
    fn poll_record(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        if let (Some(recorder), Some(tape)) = (&mut self.recorder, self.out.tap.tape()) {
            self.full = match recorder.poll(cx, tape) {
                Poll::Ready(recorded) => recorded.map(|()| false)?,
                Poll::Pending => true,
            };
        }
        Ok(())
    }

    fn poll_far(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Event>> {
        self.resume[0] = None;
        if self.out.client.is_full() {
            return Poll::Pending;
        }
        let allowed = match self.far.grant() {
            Ok(allowed) => allowed,
            Err(until) => {
                self.resume[0] = Some(until);
                return Poll::Pending;
            }
        };
        match std::task::ready!(self.far.poll_read(cx, allowed)) {
            Ok(0) => return Poll::Ready(Err(Event::FarEnded(None))),
            Ok(read) => self.turn += read,
            Err(error) => return Poll::Ready(Err(Event::FarEnded(Some(error)))),
        };
        let could = self.link.takes_client();
        self.take_far()?;
        // What the client sent early has waited for this.
        if !could && self.link.takes_client() {
            self.take_client()?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Event>> {
        self.resume[1] = None;
        if self.waits_for_far() {
            return Poll::Pending;
        }
        let allowed = match self.client.grant() {
            Ok(allowed) => allowed,
            Err(until) => {
                self.resume[1] = Some(until);
                return Poll::Pending;
            }
        };
        match std::task::ready!(self.client.poll_read(cx, allowed)) {
            Ok(0) => return Poll::Ready(Err(Event::ClientEnded(None))),
            Ok(read) => self.turn += read,
            Err(error) => return Poll::Ready(Err(Event::ClientEnded(Some(error)))),
        }
        Poll::Ready(self.take_client())
    }

    fn take_far(&mut self) -> Result<(), Event> {
        self.stamp();
        self.link.far(&mut self.far.input, &mut self.out).map_err(Event::Fault)?;
        if self.link.is_over() { Err(Event::OverByFar) } else { Ok(()) }
    }

    fn take_client(&mut self) -> Result<(), Event> {
        self.stamp();
        self.link.client(&mut self.client.input, &mut self.out).map_err(Event::Fault)?;
        if self.link.is_over() { Err(Event::OverByClient) } else { Ok(()) }
    }

    /// Reads what is left of a client that has closed, `most` bytes of it, whatever the far side takes; true when
    /// that came to a proper end. Dropping the future loses what was read.
    pub(super) async fn read_rest(&mut self, most: u64) -> Result<bool, Event> {
        use tokio::io::AsyncReadExt;

        let mut rest = Vec::new();
        let read = (&mut self.client.io).take(most).read_to_end(&mut rest).await;
        if !self.link.takes_client() || read.is_err() || rest.len() as u64 == most {
            return Ok(false);
        }
        self.client.input.extend_from_slice(&rest);
        self.take_client()?;
        Ok(true)
    }

    /// Whether anything limits its bytes.
    pub(super) fn is_limited(&self) -> bool {
        self.client.throttle.is_some() || self.far.throttle.is_some()
    }

    /// For how long its budgets have held up the direction that they have held up longer.
    fn held(&self) -> Option<Held> {
        self.client.held().into_iter().chain(self.far.held()).max_by_key(|held| held.long)
    }

    /// How long after a session's own bytes have gone by this is.
    pub(super) fn idle(&self) -> Duration {
        self.active.elapsed()
    }
}

/// What is told to the tap from now on is recorded as of now.
pub(super) fn stamp(recorder: Option<&Recorder>, out: &mut Out) {
    if let (Some(recorder), Some(tape)) = (recorder, out.tap.tape()) {
        tape.at(recorder.began().elapsed());
    }
}
