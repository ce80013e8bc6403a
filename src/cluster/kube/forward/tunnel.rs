//! Tunnel: copies between two upgraded connections until both directions are over.
//!
//! Nothing is read into what passes. An end of one side is passed on, and the other may still finish; a side that
//! breaks breaks the other, so that what is missing is seen to be missing. No session goes through here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use crate::drain::Drain;
use crate::session::throttle::{Grant, Throttle};
use crate::telemetry::chain;

/// Read size of a direction, in bytes: one full TLS record (RFC 8446 section 5.1).
const READ: usize = 16 * 1024;

/// How long nothing may pass once one side is done: most peers close both ways at once, and who does not is not waited
/// for without end.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// Why copying stopped before its time.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("take the upgraded connection of the {0}")]
    Upgrade(Side, #[source] hyper::Error),
    #[error("read from the {0}")]
    Read(Side, #[source] std::io::Error),
    #[error("write to the {0}")]
    Write(Side, #[source] std::io::Error),
    #[error("one side is done, and the other was silent for {HALF_CLOSED:?}")]
    Silent,
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Far,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Far => "API server",
        })
    }
}

/// Waits for both upgrades and copies until the end, or until the drain cuts.
pub(super) async fn run(client: OnUpgrade, far: OnUpgrade, bytes_per_second: u64, drain: &Drain) {
    let copied = async {
        let (client, far) = tokio::join!(client, far);
        let client = TokioIo::new(client.map_err(|error| Error::Upgrade(Side::Client, error))?);
        let far = TokioIo::new(far.map_err(|error| Error::Upgrade(Side::Far, error))?);
        both(client, far, bytes_per_second).await
    };
    tokio::select! {
        biased;
        () = drain.cutting() => info!("upgraded connection cut: podgate stops"),
        copied = copied => match copied {
            Ok(()) => debug!("upgraded connection ended"),
            Err(error) => info!(error = chain(&error), "upgraded connection ended by an error"),
        },
    }
}

async fn both<C, F>(client: C, far: F, bytes_per_second: u64) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite,
    F: AsyncRead + AsyncWrite,
{
    let moved = AtomicU64::new(0);
    let (client_read, client_write) = tokio::io::split(client);
    let (far_read, far_write) = tokio::io::split(far);
    let throttle = || Throttle::new(bytes_per_second);
    let there = copy((client_read, Side::Client), (far_write, Side::Far), throttle(), &moved);
    let back = copy((far_read, Side::Far), (client_write, Side::Client), throttle(), &moved);
    let (there, back) = (std::pin::pin!(there), std::pin::pin!(back));
    match select(there, back).await {
        Either::Left((ended, back)) => rest(ended, back, &moved).await,
        Either::Right((ended, there)) => rest(ended, there, &moved).await,
    }
}

/// After one direction has ended: lets the other finish, unless it stands still.
async fn rest(
    ended: Result<(), Error>,
    mut other: impl Future<Output = Result<(), Error>> + Unpin,
    moved: &AtomicU64,
) -> Result<(), Error> {
    // A side that takes nothing any more may still have said something worth hearing.
    if let Err(error @ (Error::Upgrade(..) | Error::Read(..) | Error::Silent)) = ended {
        return Err(error);
    }
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(HALF_CLOSED, &mut other).await {
            Ok(done) => return ended.and(done),
            Err(_) if moved.load(Ordering::Relaxed) == before => return Err(Error::Silent),
            Err(_) => {}
        }
    }
}

/// One direction, end included.
async fn copy(
    (mut from, reads): (impl AsyncRead + Unpin, Side),
    (mut to, writes): (impl AsyncWrite + Unpin, Side),
    mut throttle: Throttle,
    moved: &AtomicU64,
) -> Result<(), Error> {
    let write = |error| Error::Write(writes, error);
    let mut buffer = vec![0; READ];
    loop {
        let read = from.read(&mut buffer).await.map_err(|error| Error::Read(reads, error))?;
        if read == 0 {
            return to.shutdown().await.map_err(write);
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            match throttle.ask(Instant::now(), rest.len()) {
                Grant::Wait(until) => sleep_until(until).await,
                Grant::Bytes(bytes) => {
                    to.write_all(&rest[..bytes]).await.map_err(write)?;
                    throttle.spend(bytes);
                    moved.fetch_add(bytes as u64, Ordering::Relaxed);
                    rest = &rest[bytes..];
                }
            }
        }
        // TLS may keep what it took.
        to.flush().await.map_err(write)?;
    }
}
