//! Ahead: reads more than TLS asks for, so that a burst of records takes one system call instead of one for each.
//!
//! rustls reads 4 KiB, and then a record at a time. Under it stands a buffer that is lent by the thread ([`spare`]) when
//! the socket has something, and goes back once rustls has taken all of it: a connection that waits holds none. Nothing
//! is lost or reordered: the end of the bytes, or an error, is asked for behind the last of them.
//! Bound: [`spare::SIZE`] bytes that were read and not taken.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::spare;

/// A connection that is read ahead of what is asked for. Writes pass.
#[derive(Debug)]
pub struct Ahead<I> {
    io: I,
    /// What was read and not taken yet.
    held: BytesMut,
}

// === impl Ahead ===

impl<I> Ahead<I> {
    /// A connection of which nothing was read yet.
    pub fn new(io: I) -> Self {
        Self { io, held: BytesMut::new() }
    }

    /// The connection itself, for all but reading: some of its bytes may have been taken already.
    pub fn get_ref(&self) -> &I {
        &self.io
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Ahead<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, held } = self.get_mut();
        if held.is_empty() {
            let mut lent = spare::take();
            let polled = poll_read_buf(Pin::new(io), cx, &mut (&mut lent).limit(spare::SIZE));
            if !matches!(polled, Poll::Ready(Ok(1..))) {
                spare::give_back(lent);
                return Poll::Ready(ready!(polled).map(drop));
            }
            *held = lent;
        }
        let taken = buf.remaining().min(held.len());
        buf.put_slice(&held[..taken]);
        held.advance(taken);
        if held.is_empty() {
            spare::give_back(std::mem::take(held));
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Ahead<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::FutureExt;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Gives what it holds, a piece to a read, and then nothing for ever.
    struct Pieces(VecDeque<io::Result<Vec<u8>>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(piece.map(|piece| buf.put_slice(&piece))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_burst_is_one_read_and_whoever_has_taken_all_of_it_holds_no_buffer() {
        let burst: Vec<u8> = (0..spare::SIZE).map(|at| at as u8).collect();
        let mut ahead = Ahead::new(Pieces([Ok(burst.clone()), Ok(vec![7; 3])].into()));
        let mut got = vec![0; burst.len()];
        for piece in got.chunks_mut(5000) {
            ahead.read_exact(piece).await.unwrap();
            assert_eq!(ahead.get_ref().0.len(), 1, "the burst was read at once, and what comes next is left");
        }
        assert_eq!(got, burst);
        assert_eq!(ahead.held.capacity(), 0);
        let mut got = [0; 8];
        assert_eq!(ahead.read(&mut got).await.unwrap(), 3, "what there is is not waited behind");
        assert!(ahead.read(&mut got).now_or_never().is_none());
        assert_eq!(ahead.held.capacity(), 0);
    }

    #[tokio::test]
    async fn an_end_and_an_error_come_where_they_came_and_stay_what_they_are() {
        let reset = || Err(io::ErrorKind::ConnectionReset.into());
        for (end, is_error) in [(Ok(vec![]), false), (reset(), true)] {
            let mut ahead = Ahead::new(Pieces([Ok(b"last".to_vec()), end].into()));
            let mut got = [0; 3];
            assert_eq!(ahead.read(&mut got).await.unwrap(), 3);
            assert_eq!(ahead.read(&mut got).await.unwrap(), 1);
            let ended = ahead.read(&mut got).await;
            match is_error {
                true => assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset),
                false => assert_eq!(ended.unwrap(), 0),
            }
        }
    }
}
