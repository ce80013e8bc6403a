//! Session: moves bytes from 101 to close, and knows why it ended.
//!
//! In the flow: the last room. Both connections are hijacked by now; what the far side sent with and after its
//! 101 goes to the client first, what the client sent early goes to the far side first. As upstream does, a
//! session is over as soon as one side ends; unlike upstream, what that side had sent is delivered before the
//! other side is closed, and the close itself waits a little for the peer so that the kernel does not throw
//! delivered bytes away with a reset.
//! Invariant: every path out of [`Session::run`] leaves both sockets closed and one end record written.
//! Source: `protocol.md` 4.3 and 4.4 (apimachinery `pkg/util/proxy/upgradeaware.go`).

pub mod close;
pub mod socket;
pub mod splice;
pub mod throttle;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::drain::Drain;
use crate::telemetry::{EndReason, Meter, Record};
use socket::Socket;
use splice::End;
use throttle::Throttle;

/// What applies to every session.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes per second and direction; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// How long a peer may take to close after we did.
    pub linger: Duration,
    /// How long the answer of a far side that refused the upgrade may take to read, and to write to the client.
    pub refusal_timeout: Duration,
}

/// Runs sessions; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    settings: Settings,
    drain: Drain,
}

/// One session, ready to run.
#[derive(Debug)]
pub struct Session<C, F> {
    /// The client's connection.
    pub client: C,
    /// A second hold on the client's socket; without it a vanished client is found later, and a cut looks like an
    /// end.
    pub socket: Option<Socket>,
    /// What the client sent before it saw the 101.
    pub early: Bytes,
    /// The far side's connection.
    pub far: F,
    /// Every byte the far side sent so far: its 101 head and what followed.
    pub head: Bytes,
    /// How many bytes of `head` are the 101 itself.
    pub head_length: usize,
    /// The end record; written when this session is over.
    pub record: Record,
}

/// Which direction ended first.
enum First {
    Down(End),
    Up(End),
    Cut,
}

// === impl Sessions ===

impl Sessions {
    /// Sessions under these settings that end with this drain.
    pub fn new(settings: Settings, drain: Drain) -> Self {
        Self { settings, drain }
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
        let Session { mut client, socket, early, mut far, head, head_length, mut record } = session;
        let first = {
            let (mut client_reader, mut client_writer) = tokio::io::split(&mut client);
            let (mut far_reader, mut far_writer) = tokio::io::split(&mut far);
            let meters = record.meters();
            let rate = self.settings.max_bytes_per_second;
            let down = async {
                let (reader, writer, meter) = (&mut far_reader, &mut client_writer, &meters.down);
                // The head is not the session's: only what follows it counts.
                let (head, first) = head.split_at(head_length);
                if let Err(end) = splice::hand_on(reader, writer, head, &Meter::default(), None).await {
                    return end;
                }
                if let Err(end) = splice::hand_on(reader, writer, first, meter, None).await {
                    return end;
                }
                splice::pump(reader, writer, &mut Throttle::new(rate), meter, None).await
            };
            let up = async {
                let (reader, writer, meter) = (&mut client_reader, &mut far_writer, &meters.up);
                if let Err(end) = splice::hand_on(reader, writer, &early, meter, socket.as_ref()).await {
                    return end;
                }
                splice::pump(reader, writer, &mut Throttle::new(rate), meter, socket.as_ref()).await
            };
            tokio::pin!(down, up);
            let first = tokio::select! {
                biased;
                end = &mut down => First::Down(end),
                end = &mut up => First::Up(end),
                () = self.drain.cutting() => First::Cut,
            };
            match first {
                // The far side takes nothing any more, but what it said before is still to be delivered.
                First::Up(End::Write(error)) => tokio::select! {
                    biased;
                    end = &mut down => First::Down(end),
                    () = tokio::time::sleep(close::FAR_DRAIN) => First::Up(End::Write(error)),
                    () = self.drain.cutting() => First::Cut,
                },
                first => first,
            }
        };
        let linger = self.settings.linger;
        let (reason, cause) = reason(first);
        record.end(reason, cause.as_ref());
        // Boxed: a session that lives needs no room for its end.
        match reason {
            EndReason::FarLost => {
                drop(far);
                if let Some(socket) = socket {
                    Box::pin(close::cut(&mut client, &socket, linger, &self.drain)).await;
                }
            }
            EndReason::ClientLost => {
                drop(client);
                Box::pin(close::one(&mut far, linger, &self.drain)).await;
            }
            EndReason::FarClosed | EndReason::ClientClosed | EndReason::Drained | EndReason::Aborted => {
                Box::pin(close::both(&mut client, &mut far, linger, &self.drain)).await;
            }
        }
    }
}

/// Whose fault an end is.
fn reason(first: First) -> (EndReason, Option<io::Error>) {
    match first {
        First::Cut => (EndReason::Drained, None),
        First::Down(End::Finished) => (EndReason::FarClosed, None),
        First::Up(End::Finished) => (EndReason::ClientClosed, None),
        First::Down(End::Read(error)) | First::Up(End::Write(error)) => (EndReason::FarLost, Some(error)),
        First::Up(End::Read(error)) | First::Down(End::Write(error)) => (EndReason::ClientLost, Some(error)),
        First::Up(End::Gone) | First::Down(End::Gone) => (EndReason::ClientLost, None),
    }
}
