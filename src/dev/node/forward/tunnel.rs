//! Tunnel: a WebSocket connection whose binary messages are one stream of bytes.
//!
//! Invariants: both halves are polled by one task, since a pong may be written while reading; nothing follows
//! our Close; at most one pong is owed, so pings of a client that does not read cost no memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::READ;
use crate::wire::portforward::tunnel_bytes;
use crate::wire::ws::{CloseCode, Decoder, Encoder, Event, Kind, Limits, Pongs, Role};

/// Most payload bytes of a message: what Go peers read at once.
const MAX_PAYLOAD: usize = 32 * 1024;

/// A WebSocket server's side as bytes.
pub(super) struct Tunnel<I> {
    io: I,
    decoder: Decoder,
    input: BytesMut,
    /// Taken out of messages and not yet read.
    plain: Bytes,
    /// Framed and not yet written: at most one message, a pong and a Close.
    output: BytesMut,
    pongs: Pongs,
    /// What our Close will say.
    code: CloseCode,
    /// The client sends no more.
    ended: bool,
    closed: bool,
}

// === impl Tunnel ===

impl<I: AsyncRead + AsyncWrite + Unpin> Tunnel<I> {
    /// At the first byte after the handshake; `early` are those that were read with it.
    pub(super) fn new(io: I, early: Bytes) -> Self {
        Self {
            io,
            decoder: Decoder::new(Role::Server, Limits::default()),
            input: BytesMut::from(early),
            plain: Bytes::new(),
            output: BytesMut::new(),
            pongs: Pongs::new(),
            code: CloseCode::NORMAL,
            ended: false,
            closed: false,
        }
    }

    /// Takes messages apart until there are bytes to read or no more input.
    fn unpack(&mut self) -> io::Result<()> {
        while self.plain.is_empty() && !self.ended {
            let event =
                self.decoder.decode(&mut self.input).map_err(|error| self.failed(error.close_code(), error));
            match event? {
                None => break,
                Some(Event::Data(data)) => {
                    self.plain =
                        tunnel_bytes(data).map_err(|error| self.failed(error.close_code(), error))?;
                }
                Some(Event::Ping(payload)) => self.pongs.receive(&payload),
                Some(Event::Pong(_)) => {}
                Some(Event::Close(_)) => self.ended = true,
            }
        }
        Ok(())
    }

    fn failed(
        &mut self,
        code: CloseCode,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> io::Error {
        (self.code, self.ended) = (code, true);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Writes all that is framed, the pong behind it.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.output.is_empty() && (self.closed || !self.pongs.answer(&mut self.output, None)) {
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            this.unpack()?;
            if this.pongs.is_owed() {
                // What cannot be written now is written with the next bytes, or once there is room.
                if let Poll::Ready(Ok(())) = this.poll_drain(cx) {
                    let _ = Pin::new(&mut this.io).poll_flush(cx)?;
                }
            }
            if !this.plain.is_empty() || this.ended {
                let len = this.plain.len().min(buf.remaining());
                buf.put_slice(&this.plain.split_to(len));
                return Poll::Ready(Ok(()));
            }
            this.input.reserve(READ);
            if ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut this.input))? == 0 {
                this.ended = true;
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let len = bytes.len().min(MAX_PAYLOAD);
        Encoder::message(&mut this.output, Kind::Binary, &bytes[..len], None);
        // The rest is written by the next call, whichever it is.
        let _ = this.poll_drain(cx)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if !std::mem::replace(&mut this.closed, true) {
            Encoder::close(&mut this.output, Some(&this.code.into()), None);
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
