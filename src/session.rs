//! Session: moves bytes from 101 to close, and knows why it ended.
//!
//! In the flow: the last room. Both connections are hijacked by now; what podgate or the far side answers goes to the
//! client first, what the client sent early goes to the far side first, and everything through the
//! [`Link`] of the session's protocols. A session is over as soon as one side ends. What it has left running at the far
//! side is hung up; whether that has ended is known only where the far side says so. Unlike upstream, what that
//! side had sent is delivered before the other side is closed; a client whose session was cut is told so in its own
//! protocol; and the close itself waits a little for the peer, so that the kernel does not throw delivered bytes away
//! with a reset.
//! Invariants: every path out of [`Sessions::run`] leaves both sockets closed and one end record written; while the
//! recorder of a session is full, neither side is read.
//! Source: `protocol.md` 4.3, 4.4 and 7.3 (apimachinery `pkg/util/proxy/upgradeaware.go`, apiserver
//! `pkg/util/proxy/streamtranslator.go`).

pub mod close;
mod hangup;
pub mod limits;
pub mod live;
pub mod seats;
pub mod socket;
mod splice;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::drain::Drain;
use crate::recording::safe::plain;
use crate::tap::record::{Done, Recorder};
use crate::telemetry::{EndReason, Meters, Record, chain};
use crate::throttle::Throttle;
use crate::throttle::share::{Rates, Shares};
use crate::wire::link::{Fate, Fault, Link, Out, Queue, Runs, Timing};
use close::{CLIENT_LINGER, FAR_DRAIN};
use hangup::Last;
use limits::{Limit, Limits};
use live::Registry;
use seats::{Full, Seat, Seats};
use socket::{Hangup, Socket};
use splice::{Event, Side, Splice, stamp};

/// Most bytes read at once of a client that has closed while its bytes could not be handed on. Of one that had sent
/// more, nobody can say whether it ended properly.
const REST: u64 = 8 * 1024 * 1024;

/// How long reading them may take: they are on this machine already.
const REST_READ: Duration = Duration::from_secs(1);

/// How often a client that is not read is asked whether it is still there.
const CHECK: Duration = Duration::from_millis(250);

/// How long last words may take once the drain cuts: with the closing after it, less than the drain's grace.
const CUT_FLUSH: Duration = Duration::from_millis(400);

/// The same for hanging up.
const CUT_HANG_UP: Duration = Duration::from_secs(2);

/// How long a peer may take for what its protocol answers to the end of a session.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Why a session ends that the drain cuts.
pub const STOPPED: &str = "podgate was stopped before the session ended";

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
    /// The same of the sessions of one caller together.
    pub max_bytes_per_second_per_caller: u64,
    /// The same of all sessions together.
    pub max_bytes_per_second_in_all: u64,
    /// How long a peer may take to close after we did.
    pub linger: Duration,
    /// How long a program that its session leaves behind may take to end when it is hung up; 0 is not to hang up.
    pub hang_up: Duration,
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
    /// None where neither callers nor all have a budget of bytes.
    shares: Option<Shares>,
    live: Registry,
    drain: Drain,
}

/// That a session is to end, although neither peer has ended it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Why.
    pub reason: EndReason,
    /// The same as a sentence, which the client is told.
    pub why: String,
}

/// Takes a second hold on the socket of a connection.
pub type Hold<C> = Box<dyn Fn(&C) -> io::Result<Socket> + Send + Sync>;

/// One session, ready to run.
pub struct Session<C, F> {
    /// Whose budget of bytes it uses.
    pub caller: Arc<str>,
    /// The client's connection.
    pub client: C,
    /// Takes a second hold on the client's socket; without it a vanished client is found later, and a cut looks like an
    /// end. Taken when it is needed: most sessions rest, and each hold is a descriptor.
    pub socket: Hold<C>,
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
    /// What the far side runs for it.
    pub runs: Runs,
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
    /// Its bounds, or somebody else, want it to.
    Ordered(Order),
    /// The drain cuts.
    Cut,
}

/// What a session is held to until both its connections are closed.
struct Bounds {
    start: Instant,
    limits: Limits,
    orders: Fuse<BoxFuture<'static, Order>>,
    /// Whether it was told that no second hold on the client's socket can be had.
    unheld: bool,
}

/// How to part from both peers.
#[derive(Debug)]
struct Farewell {
    reason: EndReason,
    cause: String,
    client: Parting,
    far: Leaving,
}

/// How to part from the far side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It has ended, or takes nothing any more.
    Gone,
    /// It does not expect anything but the end of its protocol.
    Told,
    /// What runs there is hung up, if it runs for the session alone.
    HungUp,
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
        let seats = Seats::new(settings.max_sessions);
        let shares = Shares::new(Rates {
            caller: settings.max_bytes_per_second_per_caller,
            all: settings.max_bytes_per_second_in_all,
        });
        Self { settings, seats, shares, live: Registry::default(), drain }
    }

    /// A seat for a session that this user opens with these limits of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn seat(&self, user: &str, own: &Limits) -> Result<Seat, Full> {
        self.seats.take(user, self.limits(own).sessions_per_user.as_ref())
    }

    /// How many sessions this user has.
    pub fn of_user(&self, user: &str) -> usize {
        self.seats.of(user)
    }

    /// The sessions that are there now.
    pub fn live(&self) -> &Registry {
        &self.live
    }

    /// Resolves when those that are left are cut. Cancel safe.
    pub async fn cutting(&self) {
        self.drain.cutting().await;
    }

    /// What bounds a session that has these limits of its own.
    pub fn limits(&self, own: &Limits) -> Limits {
        own.clone().and(Limits::from(&self.settings))
    }

    /// What applies to every session.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a session to its end. Dropping the future closes both sockets; the record then says `aborted`.
    pub fn run<C, F>(&self, session: Session<C, F>) -> impl Future<Output = ()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let Session {
            caller,
            client,
            socket,
            head,
            early,
            far,
            first,
            link,
            runs,
            timing,
            limits,
            orders,
            mut record,
            recorder,
        } = session;
        let (meters, limits) = (record.meters(), self.limits(&limits));
        let rate = limits.bytes_per_second.as_ref().map_or(0, |limit| limit.most);
        let [up, down] = match &self.shares {
            None => [None, None],
            Some(shares) => shares.join(&caller).map(Some),
        };
        let client = Side::new(client, BytesMut::from(early), Throttle::new(rate, up), head.len());
        let far = Side::new(far, BytesMut::from(first), Throttle::new(rate, down), 0);
        let mut bounds = Bounds { start: Instant::now(), limits, orders: orders.fuse(), unheld: false };
        let mut splice = Splice::new(client, far, link, recorder);
        splice.out.client.push(head);
        splice.out.tap.tell(meters.audience.clone());
        // What is moved within a future has its place in it twice: this one takes nothing but what a session needs that lives.
        async move {
            let stop = match splice.begin() {
                Ok(()) => self.drive(&mut splice, &socket, &meters, timing, &mut bounds).await,
                Err(event) => Stop::Event(event),
            };
            // Boxed: a session that lives needs no room for its end.
            Box::pin(async move {
                splice.stamp();
                let farewell = self.farewell(&mut splice, stop, runs);
                record.passed(&splice.out.tap);
                if let Some(slowed) = meters.slowed()
                    && let Some(limit) = bounds.limits.bytes(slowed.by)
                {
                    record.slowed(slowed, &limit.by);
                }
                let Splice { client, mut far, mut link, mut out, mut recorder, active, .. } = splice;
                let to_client = std::mem::take(&mut out.client);
                let socket = hold(&socket, &client.io, &mut bounds.unheld);
                let far_side = async {
                    let may_remain = self.leave(
                        &mut far,
                        &mut *link,
                        &mut out,
                        &meters,
                        runs,
                        &farewell,
                        recorder.as_ref(),
                    );
                    let may_remain = may_remain.await;
                    if let Some(recorder) = &mut recorder {
                        recorder.hand_over(&mut out.tap);
                    }
                    close::far(&mut far.io, self.settings.linger, &self.drain).await;
                    may_remain
                };
                let broken = bounds.broken(active);
                let (broken, may_remain) =
                    tokio::join!(self.part(client, to_client, socket, &meters, &farewell, broken), far_side);
                let (reason, cause) = match broken {
                    Some(Order { reason, why }) => (reason, why),
                    None => (farewell.reason, farewell.cause),
                };
                if may_remain {
                    record.process_may_remain();
                }
                // Said now, in case nobody waits for the recording.
                record.end(reason, cause);
                if let Some(recorder) = recorder
                    && let Some(Done { ending, .. }) =
                        recorder.finish(&mut out.tap, reason, may_remain, &self.drain).await
                {
                    record.recorded(&ending);
                }
            })
            .await;
        }
    }

    /// Moves bytes until the session is over.
    async fn drive<C, F>(
        &self,
        splice: &mut Splice<C, F>,
        socket: &Hold<C>,
        meters: &Meters,
        timing: Timing,
        bounds: &mut Bounds,
    ) -> Stop
    where
        C: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let Bounds { start, limits, orders, unheld } = bounds;
        let start = *start;
        let (mut tick, mut check, mut deaf) = (timing.keepalive.map(|period| start + period), None, None);
        let opens = start + self.settings.open_timeout;
        let longest = limits.longest.as_ref().and_then(|longest| start.checked_add(longest.most));
        let mut cutting = pin!(self.drain.cutting());
        // Nobody has to be told of what is not there.
        let mut told = !splice.is_limited();
        let mut held = None;
        loop {
            if !told
                && let Some(slowed) = meters.slowed()
                && let Some(limit) = limits.bytes(slowed.by)
            {
                told = true;
                notify(&mut *splice.link, &limit.holds(slowed.by), &mut splice.out);
            }
            let now = Instant::now();
            check = check.filter(|_| splice.waits_for_far()).or(splice.waits_for_far().then(|| now + CHECK));
            deaf = deaf.or(splice.far_deaf.is_some().then(|| now + FAR_DRAIN));
            let idle = limits.idle.as_ref().and_then(|idle| splice.active.checked_add(idle.most));
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
            // A session that always has something to move uses up its task's budget at every turn. Whatever ends it comes
            // first, then, and the clock, which is to come behind what has been moved, needs none.
            tokio::select! {
                biased;
                () = &mut cutting => return Stop::Cut,
                order = &mut *orders => return Stop::Ordered(order),
                event = poll_fn(|cx| splice.poll(cx, meters)) => match event {
                    Event::Timing => {}
                    event => return Stop::Event(event),
                },
                () = unconstrained(clock) => {}
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
            if let Some(longest) = limits.longest.as_ref().filter(|longest| start.elapsed() >= longest.most) {
                return Stop::Ordered(longest.overlong());
            }
            if let Some(idle) = limits.idle.as_ref().filter(|idle| splice.idle() >= idle.most) {
                return Stop::Ordered(idle.idle());
            }
            if due(check) {
                check = None;
                if held.is_none() {
                    held = hold(socket, &splice.client.io, unheld);
                }
                match held.as_ref().and_then(Socket::hangup_now) {
                    None => {}
                    Some(Hangup::Broken) => return Stop::Gone,
                    Some(Hangup::Closed) => return client_closed(splice).await,
                }
            }
        }
    }

    /// Lets the link say to the client what there is to say.
    fn farewell<C, F>(&self, splice: &mut Splice<C, F>, stop: Stop, runs: Runs) -> Farewell {
        let (link, out) = (&mut splice.link, &mut splice.out);
        let (reason, cause, client, far) = match stop {
            Stop::Event(Event::FarEnded(error)) => {
                let cause = error.map_or_else(String::new, |error| chain(&error));
                match (link.end("the connection to the pod ended before the session did", out), cause) {
                    (Fate::Whole, cause) => (EndReason::FarClosed, cause, Parting::Proper, Leaving::Gone),
                    (Fate::Cut, cause) => (EndReason::FarLost, cause, Parting::Cut, Leaving::Gone),
                }
            }
            Stop::Event(Event::OverByFar) => match link.end("", out) {
                Fate::Whole => (EndReason::FarClosed, String::new(), Parting::Proper, Leaving::Told),
                Fate::Cut => (EndReason::FarLost, "no result".into(), Parting::Cut, Leaving::Told),
            },
            Stop::FarDeaf(error) => {
                link.end("the connection to the pod broke", out);
                (EndReason::FarLost, chain(&error), Parting::Cut, Leaving::Gone)
            }
            Stop::NotOpen => {
                link.end("Timeout occurred", out);
                let cause = "the streams were not opened in time".into();
                (EndReason::FarFault, cause, Parting::Cut, Leaving::Told)
            }
            Stop::Event(Event::Fault(fault @ Fault::Far(_))) => {
                link.end("the far side does not speak the protocol of the session", out);
                (EndReason::FarFault, fault.to_string(), Parting::Cut, Leaving::Told)
            }
            Stop::Event(Event::Fault(fault @ Fault::Client(_))) => {
                (EndReason::ClientFault, fault.to_string(), Parting::Proper, Leaving::HungUp)
            }
            Stop::Event(Event::ClientEnded(None) | Event::OverByClient) => {
                (EndReason::ClientClosed, String::new(), Parting::Proper, Leaving::HungUp)
            }
            Stop::Event(Event::ClientEnded(Some(error)) | Event::ClientDeaf(error)) => {
                (EndReason::ClientLost, chain(&error), Parting::Drop, Leaving::HungUp)
            }
            Stop::Gone if runs.own() => {
                (EndReason::ClientLost, String::new(), Parting::Drop, Leaving::HungUp)
            }
            Stop::Gone => {
                out.far.clear();
                (EndReason::ClientLost, String::new(), Parting::Drop, Leaving::Gone)
            }
            Stop::Ordered(Order { reason, why }) => {
                tell(&mut **link, &why, out);
                (reason, why, Parting::Cut, Leaving::HungUp)
            }
            Stop::Event(Event::Unrecorded(why)) => {
                tell(&mut **link, &format!("the recording of this session cannot go on: {why}"), out);
                (EndReason::Unrecorded, why, Parting::Cut, Leaving::HungUp)
            }
            Stop::Cut => match tell(&mut **link, STOPPED, out) {
                Fate::Whole => (EndReason::Drained, String::new(), Parting::Proper, Leaving::HungUp),
                Fate::Cut => (EndReason::Drained, String::new(), Parting::Cut, Leaving::HungUp),
            },
            Stop::Event(Event::Timing) => unreachable!("the driver keeps it to itself"),
        };
        Farewell { reason, cause, client, far }
    }

    /// Ends the client's connection as far and as long as it deserves.
    ///
    /// What the far side had said is owed to a client for as long as that is there, and the session's bounds are not
    /// `broken`, which is then given back. When podgate itself ends the session nobody has that long.
    async fn part<C>(
        &self,
        mut client: Side<C>,
        mut queue: Queue,
        socket: Option<Socket>,
        meters: &Meters,
        farewell: &Farewell,
        broken: impl Future<Output = Order>,
    ) -> Option<Order>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let (linger, drain) = (self.settings.linger, &self.drain);
        let client_has = match farewell.reason {
            EndReason::FarClosed | EndReason::FarLost => None,
            EndReason::Idle
            | EndReason::Lapsed
            | EndReason::Expired
            | EndReason::Ended
            | EndReason::Overlong
            | EndReason::FarFault
            | EndReason::Unrecorded => Some(FAR_DRAIN),
            EndReason::ClientClosed | EndReason::ClientFault | EndReason::ClientLost => {
                Some(self.last_words())
            }
            EndReason::Drained | EndReason::Aborted => Some(CUT_FLUSH),
        };
        if farewell.client == Parting::Drop {
            return None;
        }
        let broken = tokio::select! {
            biased;
            () = client.send(&mut queue, &meters.down, client_has) => None,
            () = gone(socket.as_ref()), if client_has.is_none() => None,
            order = broken, if client_has.is_none() => Some(order),
            () = cut(drain, CUT_FLUSH) => None,
        };
        // What it has not got must be seen to be missing.
        let parting = if broken.is_some() { Parting::Cut } else { farewell.client };
        match (parting, &socket) {
            (Parting::Cut, Some(socket)) => {
                // Where podgate wants it to be over, whoever goes on sending does not keep it.
                let ordered = broken.is_some() || client_has == Some(FAR_DRAIN);
                let longest = if ordered { linger } else { linger.max(CLIENT_LINGER) };
                close::cut(&mut client.io, socket, linger, longest, drain).await;
            }
            (Parting::Cut, None) | (Parting::Drop, _) => {}
            (Parting::Proper, _) => close::client(&mut client.io, linger, drain).await,
        }
        broken
    }

    /// Says the last there is to say to the far side, and hangs up what runs there for the session alone. Whether that
    /// may still run.
    ///
    /// What a client had said is owed to the far side for [`FAR_DRAIN`].
    #[allow(clippy::too_many_arguments, reason = "the parts of a session that is taken apart")]
    async fn leave<F>(
        &self,
        far: &mut Side<F>,
        link: &mut dyn Link,
        out: &mut Out,
        meters: &Meters,
        runs: Runs,
        farewell: &Farewell,
        recorder: Option<&Recorder>,
    ) -> bool
    where
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let mut far_has = match farewell.reason {
            EndReason::ClientClosed | EndReason::ClientFault => FAR_DRAIN,
            EndReason::ClientLost => self.settings.linger,
            _ => self.last_words(),
        };
        let within = self.settings.hang_up;
        if farewell.far == Leaving::HungUp && runs.own() && !link.is_done() && !within.is_zero() {
            let mut last = Last::new(far, link, out, &meters.up);
            tokio::select! {
                biased;
                () = cut(&self.drain, CUT_HANG_UP.min(within)) => {}
                () = last.hang_up(runs, far_has, within, |out| stamp(recorder, out)) => {}
            }
            far_has = self.last_words();
        }
        let may_remain = runs.own() && !link.is_done();
        if farewell.far != Leaving::Gone {
            link.leave(out);
        }
        tokio::select! {
            biased;
            () = far.send(&mut out.far, &meters.up, Some(far_has)) => {}
            () = cut(&self.drain, CUT_FLUSH) => {}
        }
        may_remain
    }

    fn last_words(&self) -> Duration {
        self.settings.linger.min(LAST_WORDS)
    }
}

// === impl Bounds ===

impl Bounds {
    /// Resolves when the session is to end in which something has passed last at `active`.
    async fn broken(&mut self, active: Instant) -> Order {
        async fn after(since: Instant, limit: Option<&Limit<Duration>>) -> &Limit<Duration> {
            match limit.and_then(|limit| Some((since.checked_add(limit.most)?, limit))) {
                Some((at, limit)) => sleep_until(at).map(|()| limit).await,
                None => std::future::pending().await,
            }
        }
        let Self { start, limits, orders, .. } = self;
        tokio::select! {
            order = orders => order,
            limit = after(*start, limits.longest.as_ref()) => limit.overlong(),
            limit = after(active, limits.idle.as_ref()) => limit.idle(),
        }
    }
}

/// Ends a session for a reason of podgate's own, which the client is told: by an error, and in a terminal on a line of
/// its own besides, since not every client shows the error there.
fn tell(link: &mut dyn Link, why: &str, out: &mut Out) -> Fate {
    notify(link, why, out);
    link.end(why, out)
}

/// Says something in the client's terminal, if it has one.
fn notify(link: &mut dyn Link, what: &str, out: &mut Out) {
    link.announce(&format!("\r\npodgate: {}\r\n", plain(what)), out);
}

/// Resolves this long after the drain's cut.
async fn cut(drain: &Drain, grace: Duration) {
    drain.cutting().await;
    tokio::time::sleep(grace).await;
}

/// A second hold on the client's socket, if it can be had. Where it is tried again and again, it is told once that it cannot.
fn hold<C>(take: &Hold<C>, client: &C, told: &mut bool) -> Option<Socket> {
    let held = take(client).inspect_err(|error| {
        if !std::mem::replace(told, true) {
            warn!(error = %error, "the client's socket cannot be watched");
        }
    });
    held.ok()
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
