//! Session: moves bytes from 101 to close, and knows why it ended.
//!
//! In the flow: the last room. Both connections are hijacked by now; what podgate or the far side answers goes to the
//! client first, what the client sent early goes to the far side first, and everything through the
//! [`Link`] of the session's protocols. A session is over as soon as one side ends. Unlike upstream, what that
//! side had sent is delivered before the other side is closed; a client whose session was cut is told so in its own
//! protocol; and the close itself waits a little for the peer, so that the kernel does not throw delivered bytes away
//! with a reset.
//! Invariants: every path out of [`Sessions::run`] leaves both sockets closed and one end record written; while the
//! recorder of a session is full, neither side is read.
//! Source: `protocol.md` 4.3, 4.4 and 7.3 (apimachinery `pkg/util/proxy/upgradeaware.go`, apiserver
//! `pkg/util/proxy/streamtranslator.go`).

pub mod close;
pub mod seats;
pub mod socket;
mod splice;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use crate::drain::Drain;
use crate::tap::record::{Done, Recorder};
use crate::telemetry::{EndReason, Meters, Record, chain};
use crate::wire::link::{Fate, Fault, Link, Timing};
use close::FAR_DRAIN;
use seats::{Full, Seat, Seats};
use socket::{Hangup, Socket};
use splice::{Event, Side, Splice};

/// Most bytes read at once of a client that has closed while its bytes could not be handed on. Of one that had sent
/// more, nobody can say whether it ended properly.
const REST: u64 = 8 * 1024 * 1024;

/// How long reading them may take: they are on this machine already.
const REST_READ: Duration = Duration::from_secs(1);

/// How often a client that is not read is asked whether it is still there.
const CHECK: Duration = Duration::from_millis(250);

/// How long last words may take once the drain cuts: with the closing after it, less than the drain's grace.
const CUT_FLUSH: Duration = Duration::from_millis(400);

/// How long a peer may take for what its protocol answers to the end of a session.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What applies to every session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sessions at once.
    pub max_sessions: usize,
    /// Sessions of one caller at once.
    pub max_sessions_per_caller: usize,
    /// How often it is asked again whether the caller of a live session may go on; 0 is never.
    pub recheck_period: Duration,
    /// Bytes per second and direction; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// How long a peer may take to close after we did.
    pub linger: Duration,
    /// How long the answer of a far side that refused the upgrade may take to read, and to write to the client.
    pub refusal_timeout: Duration,
    /// How long the far side may take to open the streams of a session.
    pub open_timeout: Duration,
    /// How long a session may last; 0 is no limit.
    pub max_duration: Duration,
    /// How long nothing but keepalives may pass; 0 is no limit.
    pub idle_timeout: Duration,
}

/// Runs sessions; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    settings: Settings,
    seats: Seats,
    drain: Drain,
}

/// What bounds one session. Where the settings of all say less, that holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes per second and direction; 0 is no limit.
    pub bytes_per_second: u64,
    /// How long it may last.
    pub longest: Option<Duration>,
    /// How long nothing but keepalives may pass.
    pub idle: Option<Duration>,
}

/// That a session is to end, although neither peer has ended it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Why.
    pub reason: EndReason,
    /// The same as a sentence, which the client is told.
    pub why: String,
}

/// One session, ready to run.
pub struct Session<C, F> {
    /// The client's connection.
    pub client: C,
    /// A second hold on the client's socket; without it a vanished client is found later, and a cut looks like an
    /// end.
    pub socket: Option<Socket>,
    /// What the client gets before anything else: what it is owed of earlier answers, and the 101.
    pub head: Bytes,
    /// What the client sent before it saw the 101.
    pub early: Bytes,
    /// The far side's connection.
    pub far: F,
    /// What the far side sent behind its 101.
    pub first: Bytes,
    /// What stands between them.
    pub link: Box<dyn Link>,
    /// What is done by the clock.
    pub timing: Timing,
    /// What bounds it, besides the settings of all.
    pub limits: Limits,
    /// Resolves when it is to end.
    pub orders: BoxFuture<'static, Order>,
    /// The end record; written when this session is over.
    pub record: Record,
    /// What records it; closed before this session is over, where that is possible.
    pub recorder: Option<Recorder>,
}

/// What ended a session.
#[derive(Debug)]
enum Stop {
    /// Something that a peer did.
    Event(Event),
    /// The client died while the far side took nothing; what it had sent last is lost.
    Gone,
    /// The far side takes nothing, and said nothing more.
    FarDeaf(io::Error),
    /// The far side did not open its streams.
    NotOpen,
    /// Nothing passed for so long, which is too long.
    Idle(Duration),
    /// It has lasted so long, which is as long as it may.
    Overlong(Duration),
    /// Somebody else wants it to.
    Ordered(Order),
    /// The drain cuts.
    Cut,
}

/// How to part from both peers.
#[derive(Debug)]
struct Farewell {
    reason: EndReason,
    cause: String,
    client: Parting,
}

/// How to part from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// With a proper end of its connection.
    Proper,
    /// So that everything arrives, but no proper end.
    Cut,
    /// It is gone.
    Drop,
}

// === impl Sessions ===

impl Sessions {
    /// Sessions under these settings that end with this drain.
    pub fn new(settings: Settings, drain: Drain) -> Self {
        let seats = Seats::new(settings.max_sessions, settings.max_sessions_per_caller);
        Self { settings, seats, drain }
    }

    /// A seat for a session of this user.
    ///
    /// # Errors
    /// When there is none.
    pub fn seat(&self, user: &str) -> Result<Seat, Full> {
        self.seats.take(user)
    }

    /// What applies to every session.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a session to its end. Dropping the future closes both sockets; the record then says `aborted`.
    pub async fn run<C, F>(&self, session: Session<C, F>)
    where
        C: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let Session {
            client,
            socket,
            head,
            early,
            far,
            first,
            link,
            timing,
            limits,
            orders,
            mut record,
            recorder,
        } = session;
        let (meters, limits) = (record.meters(), limits.under(&self.settings));
        let rate = limits.bytes_per_second;
        let client = Side::new(client, BytesMut::from(early), rate, head.len());
        let far = Side::new(far, BytesMut::from(first), rate, 0);
        let mut splice = Splice::new(client, far, link, recorder);
        splice.out.client.push(head);
        let stop = match splice.begin() {
            Ok(()) => self.drive(&mut splice, socket.as_ref(), &meters, timing, limits, orders).await,
            Err(event) => Stop::Event(event),
        };
        // Boxed: a session that lives needs no room for its end.
        Box::pin(async {
            let farewell = self.farewell(&mut splice, stop);
            record.passed(&splice.out.tap);
            splice.stamp();
            let (recorder, mut tap) = (splice.recorder.take(), std::mem::take(&mut splice.out.tap));
            let recorded = async {
                match recorder {
                    Some(recorder) => recorder.finish(&mut tap, farewell.reason, &self.drain).await,
                    None => None,
                }
            };
            let ((), recorded) = tokio::join!(self.part(splice, socket, &meters, &farewell), recorded);
            if let Some(Done { ending, .. }) = recorded {
                record.recorded(&ending);
            }
            record.end(farewell.reason, farewell.cause);
        })
        .await;
    }

    /// Moves bytes until the session is over.
    async fn drive<C, F>(
        &self,
        splice: &mut Splice<C, F>,
        socket: Option<&Socket>,
        meters: &Meters,
        timing: Timing,
        limits: Limits,
        mut orders: BoxFuture<'static, Order>,
    ) -> Stop
    where
        C: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let start = Instant::now();
        let (mut tick, mut check, mut deaf) = (timing.keepalive.map(|period| start + period), None, None);
        let opens = start + self.settings.open_timeout;
        let longest = limits.longest.and_then(|longest| start.checked_add(longest));
        let mut cutting = pin!(self.drain.cutting());
        loop {
            let now = Instant::now();
            check = check.filter(|_| splice.waits_for_far()).or(splice.waits_for_far().then(|| now + CHECK));
            deaf = deaf.or(splice.far_deaf.is_some().then(|| now + FAR_DRAIN));
            let idle = limits.idle.and_then(|idle| splice.active.checked_add(idle));
            let opens = Some(opens).filter(|_| !splice.link.is_open());
            let next = [splice.resume_at(), splice.record_at(), tick, check, deaf, idle, longest, opens]
                .into_iter()
                .flatten()
                .min();
            let clock = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = poll_fn(|cx| splice.poll(cx, meters)) => match event {
                    Event::Timing => continue,
                    event => return Stop::Event(event),
                },
                () = &mut cutting => return Stop::Cut,
                order = &mut orders => return Stop::Ordered(order),
                () = clock => {}
            }
            let now = Instant::now();
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if due(tick) {
                splice.link.tick(&mut splice.out);
                tick = timing.keepalive.map(|period| now + period);
            }
            if due(opens) && !splice.link.is_open() {
                return Stop::NotOpen;
            }
            if due(deaf)
                && let Some(error) = splice.far_deaf.take()
            {
                return Stop::FarDeaf(error);
            }
            if let Some(longest) = limits.longest.filter(|longest| start.elapsed() >= *longest) {
                return Stop::Overlong(longest);
            }
            if let Some(idle) = limits.idle.filter(|idle| splice.idle() >= *idle) {
                return Stop::Idle(idle);
            }
            if due(check) {
                check = None;
                match socket.and_then(Socket::hangup_now) {
                    None => {}
                    Some(Hangup::Broken) => return Stop::Gone,
                    Some(Hangup::Closed) => return client_closed(splice).await,
                }
            }
        }
    }

    /// Lets the link say what there is to say to both peers.
    fn farewell<C, F>(&self, splice: &mut Splice<C, F>, stop: Stop) -> Farewell {
        let (link, out) = (&mut splice.link, &mut splice.out);
        let (reason, cause, client) = match stop {
            Stop::Event(Event::FarEnded(error)) => {
                let cause = error.map_or_else(String::new, |error| chain(&error));
                match (link.end("the connection to the pod ended before the session did", out), cause) {
                    (Fate::Whole, cause) => (EndReason::FarClosed, cause, Parting::Proper),
                    (Fate::Cut, cause) => (EndReason::FarLost, cause, Parting::Cut),
                }
            }
            Stop::Event(Event::OverByFar) => match link.end("", out) {
                Fate::Whole => (EndReason::FarClosed, String::new(), Parting::Proper),
                Fate::Cut => (EndReason::FarLost, "no result".into(), Parting::Cut),
            },
            Stop::FarDeaf(error) => {
                link.end("the connection to the pod broke", out);
                (EndReason::FarLost, chain(&error), Parting::Cut)
            }
            Stop::NotOpen => {
                link.end("Timeout occurred", out);
                (EndReason::FarFault, "the streams were not opened in time".into(), Parting::Cut)
            }
            Stop::Event(Event::Fault(fault @ Fault::Far(_))) => {
                link.end("the far side does not speak the protocol of the session", out);
                (EndReason::FarFault, fault.to_string(), Parting::Cut)
            }
            Stop::Event(Event::Fault(fault @ Fault::Client(_))) => {
                link.client_ended(out);
                (EndReason::ClientFault, fault.to_string(), Parting::Proper)
            }
            Stop::Event(Event::ClientEnded(None) | Event::OverByClient) => {
                link.client_ended(out);
                (EndReason::ClientClosed, String::new(), Parting::Proper)
            }
            Stop::Event(Event::ClientEnded(Some(error)) | Event::ClientDeaf(error)) => {
                link.client_ended(out);
                (EndReason::ClientLost, chain(&error), Parting::Drop)
            }
            Stop::Gone => {
                out.far.clear();
                (EndReason::ClientLost, String::new(), Parting::Drop)
            }
            Stop::Idle(limit) => {
                let why = format!("nothing has passed for {limit:?}");
                link.end(&why, out);
                (EndReason::Idle, why, Parting::Cut)
            }
            Stop::Overlong(limit) => {
                let why = format!("it has lasted {limit:?}, as long as it may");
                link.end(&why, out);
                (EndReason::Overlong, why, Parting::Cut)
            }
            Stop::Ordered(Order { reason, why }) => {
                link.end(&why, out);
                (reason, why, Parting::Cut)
            }
            Stop::Event(Event::Unrecorded(why)) => {
                link.end(&format!("the recording of this session cannot go on: {why}"), out);
                (EndReason::Unrecorded, why, Parting::Cut)
            }
            Stop::Cut => match link.end("podgate was stopped before the session ended", out) {
                Fate::Whole => (EndReason::Drained, String::new(), Parting::Proper),
                Fate::Cut => (EndReason::Drained, String::new(), Parting::Cut),
            },
            Stop::Event(Event::Timing) => unreachable!("the driver keeps it to itself"),
        };
        Farewell { reason, cause, client }
    }

    /// Ends both connections, each as far and as long as it deserves; neither waits for the other.
    ///
    /// What the far side had said is owed to a client for as long as that is there; what a client had said, to the far
    /// side for [`FAR_DRAIN`]. When podgate itself ends the session nobody has that long.
    async fn part<C, F>(
        &self,
        splice: Splice<C, F>,
        socket: Option<Socket>,
        meters: &Meters,
        farewell: &Farewell,
    ) where
        C: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let (linger, drain) = (self.settings.linger, &self.drain);
        let last_words = linger.min(LAST_WORDS);
        let Splice { mut client, mut far, mut out, .. } = splice;
        let (client_has, far_has) = match farewell.reason {
            EndReason::FarClosed | EndReason::FarLost => (None, last_words),
            EndReason::Idle
            | EndReason::Lapsed
            | EndReason::Expired
            | EndReason::Ended
            | EndReason::Overlong
            | EndReason::FarFault
            | EndReason::Unrecorded => (Some(FAR_DRAIN), last_words),
            EndReason::ClientClosed | EndReason::ClientFault => (Some(last_words), FAR_DRAIN),
            EndReason::ClientLost => (Some(last_words), linger),
            EndReason::Drained | EndReason::Aborted => (Some(CUT_FLUSH), last_words),
        };
        let to_client = async {
            if farewell.client == Parting::Drop {
                return drop(client);
            }
            tokio::select! {
                biased;
                () = client.send(&mut out.client, &meters.down, client_has) => {}
                () = gone(socket.as_ref()), if client_has.is_none() => {}
                () = cut(drain) => {}
            }
            match (farewell.client, &socket) {
                (Parting::Cut, Some(socket)) => close::cut(&mut client.io, socket, linger, drain).await,
                (Parting::Cut, None) | (Parting::Drop, _) => {}
                (Parting::Proper, _) => close::client(&mut client.io, linger, drain).await,
            }
        };
        let to_far = async {
            tokio::select! {
                biased;
                () = far.send(&mut out.far, &meters.up, Some(far_has)) => {}
                () = cut(drain) => {}
            }
            close::far(&mut far.io, linger, drain).await;
            drop(far);
        };
        tokio::join!(to_client, to_far);
    }
}

// === impl Limits ===

impl Limits {
    /// The stricter of these and of what applies to all.
    fn under(self, all: &Settings) -> Self {
        let bytes_per_second = match (self.bytes_per_second, all.max_bytes_per_second) {
            (0, rate) | (rate, 0) => rate,
            (one, all) => one.min(all),
        };
        let stricter = |one: Option<Duration>, all: Duration| {
            one.into_iter().chain(Some(all).filter(|all| !all.is_zero())).min()
        };
        Self {
            bytes_per_second,
            longest: stricter(self.longest, all.max_duration),
            idle: stricter(self.idle, all.idle_timeout),
        }
    }
}

/// Resolves when last words have had their time after the drain's cut.
async fn cut(drain: &Drain) {
    drain.cutting().await;
    tokio::time::sleep(CUT_FLUSH).await;
}

/// Resolves when a client has gone to which something is still to be written.
async fn gone(socket: Option<&Socket>) {
    match socket {
        Some(socket) => {
            socket.hangup().await;
        }
        None => std::future::pending().await,
    }
}

/// The client has closed while nobody read it: what it had sent is still the far side's, if it came to a proper end.
async fn client_closed<C, F>(splice: &mut Splice<C, F>) -> Stop
where
    C: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(REST_READ, splice.read_rest(REST)).await {
        Ok(Ok(true)) => Stop::Event(Event::ClientEnded(None)),
        Ok(Err(event)) => Stop::Event(event),
        // No proper end: the client died, and nobody waits for what it had sent.
        Ok(Ok(false)) | Err(_) => Stop::Gone,
    }
}
