//! Close: ends connections so that what was sent arrives.
//!
//! Closing a socket that still holds unread bytes makes the kernel send a reset, and a reset makes the peer's
//! kernel throw away what it had not delivered yet: the last bytes of an output. So the write side is shut
//! first, and what the peer still sends is read and dropped until it closes too, or for a bounded time.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::socket::Socket;
use crate::drain::Drain;

/// How long a far side that takes no more bytes may still be read from: its receive buffer is what is left.
pub const FAR_DRAIN: Duration = Duration::from_secs(30);

/// How long a client that is slow to read may go on sending after its session is over: closing in the middle of
/// its input would throw away the output it has not read yet. Beyond it that output is lost.
pub const CLIENT_LINGER: Duration = Duration::from_secs(30);

/// How long peers have left to close once the drain cuts: below the drain's own grace, or it would report the
/// session as stuck.
const CUT_LINGER: Duration = Duration::from_secs(1);

/// Ends both connections of a refused session at once, as [`client`] and [`far`] do.
pub async fn both<C, F>(client_io: &mut C, far_io: &mut F, linger: Duration, drain: &Drain)
where
    C: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    tokio::join!(client(client_io, linger, drain), far(far_io, linger, drain));
}

/// Shuts the client's write side, then reads and drops what comes until it closes too. It may be silent for `linger`,
/// but is waited for while it still sends. The drain's cut ends all patience. The socket is closed by its drop.
pub async fn client<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I, linger: Duration, drain: &Drain) {
    patiently(gently(io, linger, linger.max(CLIENT_LINGER)), linger, drain).await;
}

/// As [`client`], for a far side, which has `linger` for all of it.
pub async fn far<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I, linger: Duration, drain: &Drain) {
    patiently(gently(io, linger, linger), linger, drain).await;
}

/// Ends the client's connection so that what it was sent still arrives, but not as a proper end: the far side
/// broke, and what is missing must be seen to be missing. Who goes on sending has `longest`.
pub async fn cut<C: AsyncRead + Unpin>(
    client: &mut C,
    socket: &Socket,
    linger: Duration,
    longest: Duration,
    drain: &Drain,
) {
    socket.finish();
    patiently(drop_input(client, linger, longest), linger, drain).await;
}

/// Waits, unless the drain cuts.
async fn patiently(closed: impl Future<Output = ()>, linger: Duration, drain: &Drain) {
    let cut = async {
        drain.cutting().await;
        tokio::time::sleep(linger.min(CUT_LINGER)).await;
    };
    tokio::select! {
        () = closed => {}
        () = cut => {}
    }
}

/// Shuts the write side, then drops what comes.
async fn gently<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I, linger: Duration, longest: Duration) {
    let until = Instant::now() + longest;
    // A peer that takes no end has its time, too; the socket is closed when the caller drops it.
    if let Ok(Ok(())) = timeout_at(until, io.shutdown()).await {
        drop_input(io, linger, until.saturating_duration_since(Instant::now())).await;
    }
}

/// Reads and drops what comes, until the peer closes, says nothing for `linger`, or has had `longest`.
async fn drop_input<I: AsyncRead + Unpin>(io: &mut I, linger: Duration, longest: Duration) {
    let mut dropped = [0; 2048];
    let all = async { while let Ok(Ok(1..)) = timeout(linger, io.read(&mut dropped)).await {} };
    let _ = timeout(longest, all).await;
}
