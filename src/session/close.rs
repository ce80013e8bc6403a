//! Close: ends connections so that what was sent arrives.
//!
//! Closing a socket that still holds unread bytes makes the kernel send a reset, and a reset makes the peer's
//! kernel throw away what it had not delivered yet: the last bytes of an output. So the write side is shut
//! first, and what the peer still sends is read and dropped until it closes too, or for a bounded time.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// How long a far side that takes no more bytes may still be read from: its receive buffer is what is left.
pub const FAR_DRAIN: Duration = Duration::from_secs(30);

/// Shuts the write side, then reads and drops what comes until the peer closes; all within `linger`.
pub async fn gently<I: AsyncRead + AsyncWrite + Unpin>(mut io: I, linger: Duration) {
    let until = Instant::now() + linger;
    let closed = async {
        if io.shutdown().await.is_err() {
            return;
        }
        let mut dropped = [0; 2048];
        while let Ok(1..) = io.read(&mut dropped).await {}
    };
    // Past the deadline the peer has had its time; the socket is closed by the drop.
    let _ = tokio::time::timeout_at(until, closed).await;
}
