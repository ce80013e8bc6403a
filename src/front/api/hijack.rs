//! Hijack: from an upgrade request to a session, or to the far side's refusal echoed.
//!
//! The far side is asked first. Once its answer is one the client may see, hyper is told to hand the connection
//! over with its writes muted, and a task of the drain takes it from there.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use tracing::{Instrument, debug, error, info};

use super::layers::{AUDIT_ID, AuditIdGiven};
use super::{ClientIo, Door, whole};
use crate::cluster::Body;
use crate::locate::Place;
use crate::session::splice::Hangup;
use crate::session::{Session, close};
use crate::status::Refusal;
use crate::telemetry::{EndReason, Record, Subject, chain};
use crate::upstream::{Answer, ClientHead, Far};
use crate::wire::http1::{BodyScanner, reserialize};

/// Read size for the body of a refusal, in bytes: kubelets refuse in a sentence.
const REFUSAL_READ: usize = 4096;

/// Asks the far side and takes the client's connection over.
///
/// # Errors
/// When the far side gave no answer that the client may see; the connection is then still an HTTP one.
pub(super) async fn open(
    door: Door,
    mut request: Request<Incoming>,
    place: Place,
    started: Instant,
) -> Result<Response<Body>, Refusal> {
    let audit_id = request.headers().get(AUDIT_ID).and_then(|id| id.to_str().ok()).unwrap_or("").to_owned();
    if !request.extensions().get::<AuditIdGiven>().is_some_and(|given| given.0) {
        request.headers_mut().remove(AUDIT_ID);
    }
    let host = match request.headers().get(header::HOST) {
        Some(host) => host.as_bytes(),
        None => request.uri().authority().map_or(&b""[..], |authority| authority.as_str().as_bytes()),
    };
    let head =
        ClientHead { method: request.method(), host, headers: request.headers(), peer: door.conn.peer };
    let answer = door.shared.pipeline.open(&place, &head).await?;
    let metrics = &door.shared.metrics;
    let upgrade = hyper::upgrade::on(&mut request);
    door.mute.on();
    match answer {
        Answer::Switched(far) => {
            metrics.setup.observe(started.elapsed().as_secs_f64());
            debug!(node.name = place.node(), kubelet.addr = %place.kubelet(), "session opened");
            let record = Record::begin(subject(&door, &place, audit_id), metrics.clone());
            let task = run(door.clone(), upgrade, far, record);
            door.shared.drain.spawn(task.in_current_span());
        }
        Answer::Refused(far) => {
            let code = far.head.status;
            metrics.far_refusals.with_label_values(&[&code.to_string()]).inc();
            info!(node.name = place.node(), far.code = code, "the far side refused the session");
            let task = echo(door.clone(), upgrade, far);
            door.shared.drain.spawn(task.in_current_span());
        }
    }
    // What hyper writes of this is muted; it makes hyper hand the connection over.
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    Ok(response)
}

fn subject(door: &Door, place: &Place, audit_id: String) -> Subject {
    let (caller, exec) = (place.caller(), place.exec());
    Subject {
        user: caller.user().name.clone(),
        impersonator: caller.impersonator().map(|user| user.name.clone()).unwrap_or_default(),
        client: door.conn.peer,
        audit_id,
        subresource: exec.subresource.as_str(),
        namespace: exec.namespace.clone(),
        pod: exec.pod.clone(),
        container: place.container().to_owned(),
        node: place.node().to_owned(),
        command: Subject::command_line(&exec.command),
        tty: exec.tty,
    }
}

/// The client's own stream, and what it sent early.
async fn taken_over(upgrade: OnUpgrade) -> Option<(TlsStream<TcpStream>, Bytes)> {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            info!(error = chain(&error), "the client went away before the session began");
            return None;
        }
    };
    let parts = upgraded.downcast::<ClientIo>().expect("this door serves one kind of stream");
    Some((parts.io.into_inner().into_inner(), parts.read_buf))
}

async fn run(door: Door, upgrade: OnUpgrade, far: Far, mut record: Record) {
    let Some((client, early)) = taken_over(upgrade).await else {
        record.end(EndReason::ClientLost, None);
        return;
    };
    let Far { io, raw, head } = far;
    let hangup = match Hangup::of(client.get_ref().0) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            error!(error = %error, "no descriptor left to watch the client with");
            record.end(EndReason::Aborted, Some(&error));
            return;
        }
    };
    let session = Session { client, hangup, early, far: io, head: raw, head_length: head.len, record };
    door.shared.sessions.run(session).await;
    // The slot under the connection cap, and the connection in the gauge, are the session's until here.
    drop::<(Arc<_>, Arc<_>)>((door.conn, door.open));
}

/// Writes the far side's refusal to the client, re-serialised as Go does, and closes both sides: never reused,
/// never kept alive (`protocol.md` 4.3 step 4; CVE-2018-1002105 is what happens otherwise).
async fn echo(door: Door, upgrade: OnUpgrade, mut far: Far) {
    let Some((mut client, _early)) = taken_over(upgrade).await else { return };
    let settings = door.shared.sessions.settings();
    let until = Instant::now() + settings.refusal_timeout;
    let echoed = async {
        let length = far.head.body_length().map_err(|error| error.to_string())?;
        let mut scanner = BodyScanner::new(length);
        client.write_all(&reserialize(&far.head, length)).await.map_err(|error| error.to_string())?;
        let mut body = BytesMut::from(&far.raw[far.head.len..]);
        loop {
            let scanned = scanner.scan(&body).map_err(|error| error.to_string())?;
            client.write_all(&body[..scanned.used]).await.map_err(|error| error.to_string())?;
            if scanned.complete {
                return Ok::<_, String>(());
            }
            body.clear();
            body.reserve(REFUSAL_READ);
            if far.io.read_buf(&mut body).await.map_err(|error| error.to_string())? == 0 {
                return scanner.end().map_err(|error| error.to_string());
            }
        }
    };
    let drain = &door.shared.drain;
    tokio::select! {
        echoed = timeout_at(until, echoed) => match echoed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => info!(error, "the far side's refusal could not be passed on whole"),
            Err(_) => info!("the far side's refusal was cut off after {:?}", settings.refusal_timeout),
        },
        () = drain.cutting() => info!("the far side's refusal was cut off by the stop"),
    }
    close::both(&mut client, &mut far.io, settings.linger, drain).await;
}
