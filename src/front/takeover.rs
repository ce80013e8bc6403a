//! Takeover: lets podgate answer a hijacked connection with bytes of its own.
//!
//! hyper parses the client's request and hands the connection over after a 101 that it writes itself, with its
//! own header case, order and `Date`. The far side's answer has to reach the client byte for byte, so for the
//! moment of the hand-over the writes underneath hyper are muted: hyper's 101 goes nowhere, and the first bytes
//! the client sees are the far side's. What hyper still owes the client of earlier answers (to requests that were
//! pipelined by a client that is slow to read) is kept and comes first. Reading is not touched: bytes the client
//! sent early stay in hyper's buffer and come back with the connection.
//! Until the hand-over a client that takes nothing for long enough is an error: without it, one that sends
//! requests and never reads an answer would hold its connection for ever, for hyper's deadlines are all about
//! reading.
//! Invariant: muted only between the decision to hijack and the hand-over; [`Takeover::into_parts`] ends it.
//! Bound: what is kept is what hyper holds back unwritten, a few hundred KiB at most.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How hyper's own 101 begins. It is the last thing hyper writes, and has no body.
const OWN_ANSWER: &[u8] = b"HTTP/1.1 101 ";

/// A stream whose writes can be muted through a [`Mute`].
#[derive(Debug)]
pub struct Takeover<I> {
    io: I,
    mute: Mute,
    /// What was written while muted.
    kept: Vec<u8>,
    /// How long the peer may take nothing, and the timer of the wait that is on.
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// The switch of one [`Takeover`].
#[derive(Debug, Clone, Default)]
pub struct Mute(Arc<AtomicBool>);

// === impl Takeover ===

impl<I> Takeover<I> {
    /// The stream, with its writes passing; one that has to wait for longer than `write_timeout` fails.
    pub fn new(io: I, write_timeout: Duration) -> (Self, Mute) {
        let mute = Mute::default();
        (Self { io, mute: mute.clone(), kept: Vec::new(), write_timeout, stalled: None }, mute)
    }

    /// Starts the timer of a wait, ends it when there is progress, and fails the wait when it is up.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let within = self.write_timeout;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                let text = format!("the client took nothing for {within:?}");
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The stream itself, for whoever took the connection over, and what the client is still owed of answers
    /// before the 101.
    pub fn into_parts(mut self) -> (I, Vec<u8>) {
        let own = self.kept.windows(OWN_ANSWER.len()).rposition(|window| window == OWN_ANSWER);
        self.kept.truncate(own.unwrap_or(self.kept.len()));
        (self.io, self.kept)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Takeover<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Takeover<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.mute.is_on() {
            self.kept.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.in_time(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.mute.is_on() {
            bufs.iter().for_each(|buf| self.kept.extend_from_slice(buf));
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.in_time(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.mute.is_on() {
            // What is under way belongs to whoever takes the connection over; hyper must not wait for it.
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.in_time(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.in_time(cx, polled)
    }
}

// === impl Mute ===

impl Mute {
    /// From now on nothing written reaches the peer.
    pub fn on(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_own_101_goes_nowhere_and_what_was_owed_before_is_kept() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let (mut takeover, mute) = Takeover::new(ours, Duration::from_secs(1));
        takeover.write_all(b"seen").await.unwrap();
        mute.on();
        takeover.write_all(b" of an HTTP/1.1 101 tale").await.unwrap();
        takeover.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
        peer.write_all(b"early").await.unwrap();
        let mut early = [0; 5];
        takeover.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        let (mut inner, owed) = takeover.into_parts();
        assert_eq!(owed, b" of an HTTP/1.1 101 tale");
        inner.write_all(b" raw").await.unwrap();
        drop(inner);
        let mut got = String::new();
        peer.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "seen raw");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_an_error_and_one_that_is_slow_is_not() {
        let (mut peer, ours) = tokio::io::duplex(4);
        let (mut takeover, _mute) = Takeover::new(ours, Duration::from_secs(10));
        let slow = async {
            let mut got = [0; 12];
            for byte in &mut got {
                tokio::time::sleep(Duration::from_secs(9)).await;
                *byte = peer.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(takeover.write_all(b"slowly taken"), slow);
        written.unwrap();
        let never = takeover.write_all(b"never taken").await.unwrap_err();
        assert_eq!(never.kind(), io::ErrorKind::TimedOut);
    }
}
