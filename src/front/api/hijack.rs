//! Hijack: from an upgrade request to a session, or to the far side's refusal echoed.
//!
//! The far side is asked first. Once its answer is one the client may see, hyper is told to hand the connection
//! over with its writes muted, and a task of the drain takes it from there.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug, info, warn};

use super::layers::{AUDIT_ID, AuditIdGiven, audit_id};
use super::recheck::Rechecks;
use super::{ClientIo, ClientStream, Door, whole};
use crate::audit::Trail;
use crate::cluster::Body;
use crate::listen;
use crate::locate::Place;
use crate::policy::{self, Admitted};
use crate::request::{Attributes, Subresource};
use crate::session::limits::Limits;
use crate::session::live::{Carried, Live, Phase, Terms};
use crate::session::seats::Seat;
use crate::session::socket::Socket;
use crate::session::{Order, Session, close};
use crate::status::{About, Refusal, go_quote};
use crate::tap::record::Recorder;
use crate::tap::{Opening, Tapped};
use crate::telemetry::facts::Command;
use crate::telemetry::{EndReason, Facts, Metrics, Record, chain};
use crate::upstream::{Answer, Carriage, ClientHead, Far, FarStream, Switched};
use crate::wire::http1::{BodyScanner, reserialize};
use crate::wire::tap::Tap;

/// Read size for the body of a refusal, in bytes: kubelets refuse in a sentence.
const REFUSAL_READ: usize = 4096;

/// Seconds after which a client may try again that found no seat: sessions are short, or last for hours.
const SEAT_RETRY: u32 = 10;

/// Asks the far side and takes the client's connection over.
///
/// # Errors
/// When the far side gave no answer that the client may see; the connection is then still an HTTP one.
pub(super) async fn open(
    door: Door,
    mut request: Request<Incoming>,
    admitted: Admitted,
    mut carriage: Carriage,
    attributes: Attributes,
    started: Instant,
    trail: &mut Trail,
) -> Result<Response<Body>, Refusal> {
    let sessions = &door.shared.sessions;
    let (place, terms) = (admitted.place(), admitted.terms());
    // Of the person: nobody takes the seats of others, or gets more of their own, by acting as somebody else.
    let seat = sessions.seat(&place.caller().authenticated().name, &terms.limits).map_err(|full| {
        info!(error = %full, "request refused");
        Refusal::TooManyRequests { message: full.to_string(), retry_after: SEAT_RETRY }
    })?;
    tell(trail, place);
    let audit_id = audit_id(&request).to_owned();
    let opening = Opening { client: door.conn.peer, audit_id: audit_id.clone() };
    let facts = Arc::new(facts(&door, place, audit_id));
    let live = sessions.live().enter(facts.clone(), shown(terms));
    if !request.extensions().get::<AuditIdGiven>().is_some_and(|given| given.0) {
        request.headers_mut().remove(AUDIT_ID);
    }
    let tapped = until_ended(&live, door.shared.pipeline.tap(admitted, &opening)).await?;
    if tapped.is_recorded() {
        let exec = tapped.place().exec();
        carriage.recordable(exec, request.headers_mut()).map_err(|error| {
            info!(%error, "request refused");
            error.refusal()
        })?;
    }
    let head = ClientHead {
        method: request.method(),
        headers: request.headers(),
        peer: door.conn.peer,
        carriage: &carriage,
    };
    let metrics = &door.shared.metrics;
    let mut asking = Asking { tapped: &tapped, trail, metrics, end: Some(EndReason::ClientLost) };
    let answer = until_ended(&live, door.shared.pipeline.open(&tapped, &head)).await.inspect_err(|_| {
        let ended = live.entry().state().phase == Phase::Ending;
        asking.end = Some(if ended { EndReason::Ended } else { EndReason::FarLost });
    })?;
    let place = tapped.place();
    match &answer {
        Answer::Switched(_, switched) => {
            metrics.setup.observe(started.elapsed().as_secs_f64());
            debug!(node.name = place.node(), far.side = %place.far_side(), "session opened");
            asking.trail.annotate("client-protocol", &switched.client_protocol);
            asking.trail.annotate("far-protocol", &switched.far_protocol);
        }
        Answer::Refused(far) => {
            let code = far.head.status;
            metrics.far_refusals.with_label_values(&[&code.to_string()]).inc();
            info!(node.name = place.node(), far.code = code, "the far side refused the session");
            // As upstream, which takes the connection over for that; what the client is told is beside it.
            asking.trail.annotate("far-code", code.to_string());
        }
    }
    asking.answered().await;
    let upgrade = hyper::upgrade::on(&mut request);
    match answer {
        Answer::Switched(far, switched) => {
            let record = Record::begin(facts, metrics.clone(), trail.take());
            live.runs(carried(&switched, tapped.recorder()), record.meters());
            let (admitted, recorder) = tapped.into_parts();
            let limits = admitted.terms().limits.clone();
            let orders = Box::pin(either(lapse(door.clone(), admitted, attributes), live.ordered()));
            let told = Told { record, recorder };
            let held = Held { live, seat, limits, orders };
            // Boxed: a session that lives needs no room for its beginning.
            let begun = begin(door.clone(), upgrade, far, switched, told, held).boxed();
            door.shared.drain.spawn(run(door.clone(), begun).in_current_span());
        }
        Answer::Refused(far) => {
            let task = echo(door.clone(), upgrade, far, trail.take());
            door.shared.drain.spawn(task.in_current_span());
        }
    }
    door.mute.on();
    // What hyper writes of this is muted; it makes hyper hand the connection over.
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    Ok(response)
}

/// What the API server cannot know.
fn tell(trail: &mut Trail, place: &Place) {
    let exec = place.exec();
    trail.annotate("node", place.node());
    if exec.subresource == Subresource::PortForward {
        return;
    }
    trail.annotate("container", place.container());
    trail.annotate("tty", exec.tty.to_string());
    if exec.subresource == Subresource::Exec {
        let words: Vec<_> = exec.command.iter().map(|word| String::from_utf8_lossy(word)).collect();
        trail.annotate("command", serde_json::Value::from(words).to_string());
    }
}

fn facts(door: &Door, place: &Place, audit_id: String) -> Facts {
    let (caller, exec) = (place.caller(), place.exec());
    Facts {
        user: caller.user().name.clone(),
        impersonator: caller.impersonator().map(|user| user.name.clone()).unwrap_or_default(),
        client: door.conn.peer,
        audit_id,
        subresource: exec.subresource.as_str(),
        namespace: exec.namespace.clone(),
        pod: exec.pod.clone(),
        container: place.container().to_owned(),
        node: place.node().to_owned(),
        command: Command::of(&exec.command),
        tty: exec.tty,
        stdin: exec.stdin,
    }
}

/// What of the terms is shown.
fn shown(terms: &policy::Terms) -> Terms {
    let policy::Terms { rules, limits, reason, grant, until, record: _ } = terms.clone();
    Terms { rules, reason, grant, limits, until }
}

fn carried(switched: &Switched, recorder: Option<&Recorder>) -> Carried {
    let kept = recorder.filter(|recorder| recorder.is_kept());
    Carried {
        client_protocol: switched.client_protocol.clone(),
        far_protocol: switched.far_protocol.clone(),
        recording: kept.map(|recorder| recorder.id().to_owned()).unwrap_or_default(),
        recording_rule: kept.map(|recorder| recorder.rule().to_owned()).unwrap_or_default(),
    }
}

/// A far side that is being asked. Where its answer is not waited for, because the client has gone, or is none, what it was
/// asked for may run, and nobody is there whom it would heed. So it is until the audit log has that it has answered.
struct Asking<'a> {
    tapped: &'a Tapped,
    trail: &'a mut Trail,
    metrics: &'a Metrics,
    /// How it ends without an answer.
    end: Option<EndReason>,
}

impl<'a> Asking<'a> {
    /// Somebody goes on with what it has answered.
    async fn answered(mut self) {
        self.tell_recording();
        self.trail.begun(StatusCode::SWITCHING_PROTOCOLS).await;
        self.end = None;
    }

    fn tell_recording(&mut self) -> Option<&'a Recorder> {
        let recorder = self.tapped.recorder().filter(|recorder| recorder.is_kept())?;
        self.trail.annotate("recording-id", recorder.id());
        self.trail.annotate("rule", recorder.rule());
        Some(recorder)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let Some(reason) = self.end else { return };
        let may_remain = self.tapped.has_begun();
        if may_remain {
            self.metrics.processes_may_remain.inc();
            self.trail.annotate("process-may-remain", "true");
        }
        let recorder = self.tell_recording();
        if let Some(recorder) = recorder {
            recorder.abandon(reason, may_remain);
        }
        if may_remain || recorder.is_some() {
            self.trail.annotate("end-reason", reason.word());
        }
    }
}

/// Sets a session up, unless somebody ends it meanwhile.
async fn until_ended<T>(live: &Live, setup: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        order = live.ordered() => {
            let facts = &live.entry().facts;
            info!(reason = order.reason.word(), "a session was ended while it was set up");
            let message = format!("pods {} is forbidden: {}", go_quote(facts.pod.as_bytes()), order.why);
            let about = About { name: facts.pod.clone(), group: String::new(), kind: "pods".to_owned() };
            Err(Refusal::Forbidden { message, about })
        }
        set_up = setup => set_up,
    }
}

/// The order that comes first.
async fn either(one: impl Future<Output = Order>, other: impl Future<Output = Order>) -> Order {
    tokio::select! {
        order = one => order,
        order = other => order,
    }
}

/// What a session takes up until it is over, and what it is held to.
struct Held {
    /// Its place in the list of those that are live.
    live: Live,
    seat: Seat,
    limits: Limits,
    orders: BoxFuture<'static, Order>,
}

/// What is written about a session.
struct Told {
    record: Record,
    recorder: Option<Recorder>,
}

/// The client's connection, taken over from hyper.
struct Taken {
    client: ClientStream,
    /// What the client is owed of answers to earlier requests.
    owed: Vec<u8>,
    /// What the client sent early.
    early: Bytes,
}

async fn taken_over(upgrade: OnUpgrade) -> Option<Taken> {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            info!(error = chain(&error), "the client went away before the session began");
            return None;
        }
    };
    let parts = upgraded.downcast::<ClientIo>().expect("this door serves one kind of stream");
    let (client, owed) = parts.io.into_inner().into_parts();
    Some(Taken { client, owed, early: parts.read_buf })
}

/// Resolves when it was asked again, and the caller may not go on: because they are no longer known or allowed, because
/// rules or grants are others now, or for the clock's sake.
fn lapse(door: Door, admitted: Admitted, attributes: Attributes) -> BoxFuture<'static, Order> {
    // From before the first look on.
    let mut changes = door.shared.pipeline.policy.watch();
    let mut known = Rechecks::follow(&door, admitted.place().caller(), &attributes);
    Box::pin(async move {
        let policy = &door.shared.pipeline.policy;
        loop {
            let now = Timestamp::now();
            let caller = match known.borrow_and_update().clone() {
                Err(why) => return Order { reason: EndReason::Lapsed, why },
                Ok(caller) => caller,
            };
            let due = match policy.still(&admitted, &caller, now) {
                Ok(due) => due,
                Err(error) => {
                    info!(%error, "a session has lapsed");
                    return Order { reason: error.end(), why: error.to_string() };
                }
            };
            let clock = async {
                match due {
                    Some(due) => sleep(now.duration_until(due).unsigned_abs()).await,
                    None => std::future::pending().await,
                }
            };
            let known = async {
                if known.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = known => {}
                () = changes.changed(caller.authenticated(), &admitted.place().exec().namespace) => {}
                () = clock => {}
            }
        }
    })
}

/// A session that is ready to run, and what it takes up until it is over.
type Begun = (Session<ClientStream, FarStream>, Seat, Live);

/// Runs a session. The slot under the connection cap, and the connection in the gauge, are its own until the end.
async fn run(door: Door, begun: BoxFuture<'static, Option<Begun>>) {
    if let Some((session, seat, _live)) = begun.await {
        door.shared.sessions.run(session).await;
        // Whoever sees that it has left the list finds its seat free.
        drop(seat);
    }
}

/// Takes the client's connection over; nothing when it is not there any more.
async fn begin(
    door: Door,
    upgrade: OnUpgrade,
    far: Far,
    switched: Switched,
    told: Told,
    held: Held,
) -> Option<Begun> {
    let Held { live, seat, limits, orders } = held;
    let Told { mut record, recorder } = told;
    let Switched { answer, link, timing, runs, .. } = switched;
    let Some(Taken { client, owed, early }) = taken_over(upgrade).await else {
        // Over WebSocket a command begins at once.
        let may_remain = runs.own() && !link.is_done();
        if may_remain {
            record.process_may_remain();
        }
        if let Some(recorder) = recorder {
            let drain = &door.shared.drain;
            recorder.finish(&mut Tap::default(), EndReason::ClientLost, may_remain, drain).await;
        }
        record.end(EndReason::ClientLost, String::new());
        return None;
    };
    if runs.tty() {
        // What takes nothing without a terminal may wait for whoever reads it page by page.
        let (settings, far) = (&door.shared.settings, far.io.get_ref().0.get_ref());
        let tuned = listen::expect_life(client.get_ref().0.get_ref(), settings.client_user_timeout)
            .and_then(|()| listen::expect_life(far, settings.far_user_timeout));
        if let Err(error) = tuned {
            debug!(error = %error, "cannot set socket options of a session");
        }
    }
    let head = if owed.is_empty() { answer } else { [&owed[..], &answer].concat().into() };
    let Far { io: far, first, .. } = far;
    let session = Session {
        caller: seat.caller().clone(),
        client,
        socket: Box::new(second_hold),
        head,
        early,
        far,
        first,
        link,
        runs,
        timing,
        limits,
        orders,
        record,
        recorder,
    };
    Some((session, seat, live))
}

/// Writes the far side's refusal to the client, re-serialised as Go does, and closes both sides: never reused,
/// never kept alive (`protocol.md` 4.3 step 4; CVE-2018-1002105 is what happens otherwise).
async fn echo(door: Door, upgrade: OnUpgrade, mut far: Far, _trail: Trail) {
    let Some(Taken { mut client, owed, early: _ }) = taken_over(upgrade).await else { return };
    let settings = door.shared.sessions.settings();
    let drain = &door.shared.drain;
    let echoed = tokio::select! {
        echoed = timeout(settings.refusal_timeout, pass_on(&mut client, &owed, &mut far)) => {
            echoed.unwrap_or_else(|_| Err(format!("it took longer than {:?}", settings.refusal_timeout)))
        }
        () = drain.cutting() => Err("podgate stops".to_owned()),
    };
    match (echoed, second_hold(&client)) {
        (Ok(()), _) => close::both(&mut client, &mut far.io, settings.linger, drain).await,
        (Err(error), socket) => {
            info!(error, "the far side's refusal could not be passed on whole");
            drop(far);
            match socket {
                Ok(socket) => {
                    let longest = settings.linger.max(close::CLIENT_LINGER);
                    close::cut(&mut client, &socket, settings.linger, longest, drain).await;
                }
                Err(error) => warn!(%error, "the client's socket cannot be held to cut it"),
            }
        }
    }
}

fn second_hold(client: &ClientStream) -> io::Result<Socket> {
    Socket::of(client.get_ref().0.get_ref())
}

/// Writes what is owed, the head, and the body as far as its own framing says.
async fn pass_on(client: &mut ClientStream, owed: &[u8], far: &mut Far) -> Result<(), String> {
    let length = far.head.body_length().map_err(|error| error.to_string())?;
    let mut scanner = BodyScanner::new(length);
    let head = [owed, &reserialize(&far.head, length)].concat();
    client.write_all(&head).await.map_err(|error| error.to_string())?;
    let mut body = BytesMut::from(&far.first[..]);
    loop {
        let scanned = scanner.scan(&body).map_err(|error| error.to_string())?;
        client.write_all(&body[..scanned.used]).await.map_err(|error| error.to_string())?;
        if scanned.complete {
            return Ok(());
        }
        body.clear();
        body.reserve(REFUSAL_READ);
        if far.io.read_buf(&mut body).await.map_err(|error| error.to_string())? == 0 {
            return scanner.end().map_err(|error| error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the task of a session may take of the memory for as long as it lives, in bytes.
    const TASK: usize = 3328;

    fn size<A, B, T>(_task: fn(A, B) -> T) -> usize {
        size_of::<T>()
    }

    #[test]
    fn the_task_of_a_session_is_small() {
        let size = size(run);
        assert!(size <= TASK, "{size}");
    }
}
