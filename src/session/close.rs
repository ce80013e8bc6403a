//! Close: ends connections so that what was sent arrives.
//!
//! Closing a socket that still holds unread bytes makes the kernel send a reset, and a reset makes the peer's
//! kernel throw away what it had not delivered yet: the last bytes of an output. So the write side is shut
//! first, and what the peer still sends is read and dropped until it closes too, or for a bounded time.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::drain::Drain;

/// How long a far side that takes no more bytes may still be read from: its receive buffer is what is left.
pub const FAR_DRAIN: Duration = Duration::from_secs(30);

/// How long a client that is slow to read may go on sending after its session is over: closing in the middle of
/// its input would throw away the output it has not read yet. Beyond it that output is lost.
const CLIENT_LINGER: Duration = Duration::from_secs(30);

/// How long peers have left to close once the drain cuts: below the drain's own grace, or it would report the
/// session as stuck.
const CUT_LINGER: Duration = Duration::from_secs(1);

/// Ends both connections of a session at once: shuts the write sides, then reads and drops what comes until the
/// peers close too. The far side has `linger` for it; the client may be silent for as long, but is waited for
/// while it still sends. The drain's cut ends all patience. The sockets are closed by their drop.
pub async fn both<C, F>(client: &mut C, far: &mut F, linger: Duration, drain: &Drain)
where
    C: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let cut = async {
        drain.cutting().await;
        tokio::time::sleep(linger.min(CUT_LINGER)).await;
    };
    let closed = async {
        tokio::join!(gently(client, linger, linger.max(CLIENT_LINGER)), gently(far, linger, linger));
    };
    tokio::select! {
        () = closed => {}
        () = cut => {}
    }
}

/// Shuts the write side, then reads and drops what comes, until the peer closes, says nothing for `linger`, or
/// has had `longest`.
async fn gently<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I, linger: Duration, longest: Duration) {
    let until = Instant::now() + longest;
    let closed = async {
        if io.shutdown().await.is_err() {
            return;
        }
        let mut dropped = [0; 2048];
        while let Ok(Ok(1..)) = timeout(linger, io.read(&mut dropped)).await {}
    };
    // Past the deadline the peer has had its time; the socket is closed when the caller drops it.
    let _ = timeout_at(until, closed).await;
}
