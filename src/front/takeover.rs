//! Takeover: lets podgate answer a hijacked connection with bytes of its own.
//!
//! hyper parses the client's request and hands the connection over after a 101 that it writes itself, with its
//! own header case, order and `Date`. The far side's answer has to reach the client byte for byte, so for the
//! moment of the hand-over the writes underneath hyper are muted: hyper's 101 goes nowhere, and the first bytes
//! the client sees are the far side's. Reading is not touched: bytes the client sent early stay in hyper's
//! buffer and come back with the connection.
//! Invariant: muted only between the decision to hijack and the hand-over; [`Takeover::into_inner`] ends it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes can be muted through a [`Mute`].
#[derive(Debug)]
pub struct Takeover<I> {
    io: I,
    mute: Mute,
}

/// The switch of one [`Takeover`].
#[derive(Debug, Clone, Default)]
pub struct Mute(Arc<AtomicBool>);

// === impl Takeover ===

impl<I> Takeover<I> {
    /// The stream, with its writes passing.
    pub fn new(io: I) -> (Self, Mute) {
        let mute = Mute::default();
        (Self { io, mute: mute.clone() }, mute)
    }

    /// The stream itself, for whoever took the connection over.
    pub fn into_inner(self) -> I {
        self.io
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
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.mute.is_on() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
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
    async fn muted_writes_go_nowhere_and_reads_go_on() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let (mut takeover, mute) = Takeover::new(ours);
        takeover.write_all(b"seen").await.unwrap();
        mute.on();
        takeover.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
        peer.write_all(b"early").await.unwrap();
        let mut early = [0; 5];
        takeover.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        let mut inner = takeover.into_inner();
        inner.write_all(b" raw").await.unwrap();
        drop(inner);
        let mut got = String::new();
        peer.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "seen raw");
    }
}
