//! Tunnel: copies between two upgraded connections until both directions are over.
//!
//! Nothing is read into what passes. An end of one side is passed on, and the other may still finish; a side
//! that breaks breaks the other, so that what is missing is seen to be missing. No session goes through here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use crate::drain::Drain;
use crate::telemetry::chain;
use crate::throttle::{Grant, Throttle};

/// Read size of a direction, in bytes: one full TLS record (RFC 8446 section 5.1).
const READ: usize = 16 * 1024;

/// How long nothing may pass once one side is done: most peers close both ways at once, and who does not is
/// not waited for without end.
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
    let throttle = || Throttle::new(bytes_per_second, None);
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
    mut throttle: Option<Box<Throttle>>,
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
            let all = Grant::Bytes(rest.len());
            match throttle.as_mut().map_or(all, |throttle| throttle.ask(Instant::now(), rest.len())) {
                Grant::Wait(until) => sleep_until(until).await,
                Grant::Bytes(bytes) => {
                    to.write_all(&rest[..bytes]).await.map_err(write)?;
                    if let Some(throttle) = &mut throttle {
                        throttle.spend(bytes);
                    }
                    moved.fetch_add(bytes as u64, Ordering::Relaxed);
                    rest = &rest[bytes..];
                }
            }
        }
        // TLS may keep what it took.
        to.flush().await.map_err(write)?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// A client's end and a far side's end of a tunnel, and the tunnel between them.
    fn tunnel() -> (DuplexStream, DuplexStream, impl Future<Output = Result<(), Error>>) {
        let (client, ours) = duplex(64);
        let (far, theirs) = duplex(64);
        (client, far, both(ours, theirs, 0))
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_is_done_still_hears_the_other_as_long_as_it_talks() {
        let (mut client, mut far, tunnel) = tunnel();
        let started = Instant::now();
        let talk = async {
            client.shutdown().await.unwrap();
            assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "the end is passed on");
            for _ in 0..10 {
                tokio::time::sleep(HALF_CLOSED * 3 / 4).await;
                far.write_all(b"more").await.unwrap();
            }
            far.shutdown().await.unwrap();
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            heard
        };
        let (ended, heard) = tokio::join!(tunnel, talk);
        assert!(ended.is_ok() && heard == "more".repeat(10), "{ended:?} {heard}");
        assert!(started.elapsed() > HALF_CLOSED * 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_is_silent_after_the_other_is_done_is_not_waited_for() {
        let (_client, mut far, tunnel) = tunnel();
        far.shutdown().await.unwrap();
        let started = Instant::now();
        assert!(matches!(tunnel.await, Err(Error::Silent)));
        assert!(started.elapsed() < HALF_CLOSED * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn while_both_sides_are_there_silence_is_no_end() {
        let (_client, _far, tunnel) = tunnel();
        let day = Duration::from_hours(24);
        assert!(timeout(day, tunnel).await.is_err());
    }

    #[tokio::test]
    async fn the_last_words_of_a_side_that_takes_nothing_any_more_are_heard() {
        let (client, ours) = duplex(64);
        // What the far side is told is lost, what it says is not.
        let far = tokio::io::join(&b"last words"[..], Deaf);
        let (mut read, mut write) = tokio::io::split(client);
        write.write_all(b"anybody?").await.unwrap();
        let mut heard = String::new();
        let (ended, _) = tokio::join!(both(ours, far, 0), async {
            read.read_to_string(&mut heard).await.unwrap();
            write.shutdown().await.unwrap();
        });
        assert!(matches!(ended, Err(Error::Write(Side::Far, _))), "{ended:?}");
        assert_eq!(heard, "last words");
    }

    /// A writer whose reader is gone.
    struct Deaf;

    impl AsyncWrite for Deaf {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }
}
