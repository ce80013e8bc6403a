//! Tunnel: SPDY inside a WebSocket on the client's side, bare SPDY on the far side.
//!
//! A [`SpdyLink`] of a port-forward does the work; this puts its words into messages and takes the client's
//! out of them. Where a message begins and ends means nothing, so what a read gave leaves as few of them as
//! possible. The payload of messages to the client is not copied; that of messages from it once, because SPDY
//! frames lie across the frames around them.
//!
//! Invariants: nothing follows our Close; at most one pong is owed, and it waits while the client does not
//! read.
//! Bounds: beside those of the [`SpdyLink`], the client's bytes of one call and
//! [`MAX_HELD`](crate::wire::spdy::MAX_HELD) more, and the payload of one ping.
//! Source: `protocol.md` 7.4; apiserver `pkg/util/proxy/streamtunnel.go`; RFC 6455 section 5.5.

use std::mem;

use bytes::{Buf, BufMut, BytesMut};

use super::spdy::SpdyLink;
use super::{Fate, Fault, Link, Out, Queue};
use crate::wire::portforward::{TunnelText, tunnel_bytes};
use crate::wire::ws::{Close, CloseCode, Decoder, Encoder, Error, Event, Limits, Opcode, Pongs, Role};

/// Most payload bytes of a message to the client: what Go peers read at once.
const MAX_PAYLOAD: usize = 32 * 1024;

/// Bytes waiting for the client beyond which a pong waits too. A client that reads has less than one message
/// in front of it most of the time; one that does not is owed one pong, however often it pings.
const PONG_BEHIND: usize = MAX_PAYLOAD;

/// A WebSocket client and a SPDY far side.
pub struct Tunnel {
    decoder: Decoder,
    /// The client's SPDY bytes of which a frame has not all arrived.
    input: BytesMut,
    link: SpdyLink,
    /// What `link` has to say to the client, not yet in messages. Empty between two calls.
    inner: Out,
    pongs: Pongs,
    /// Our Close is queued.
    closed: bool,
}

/// Why the client's frames are not those of a tunnel.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Frame(#[from] Error),
    #[error(transparent)]
    Text(#[from] TunnelText),
}

// === impl Tunnel ===

impl Tunnel {
    /// A tunnel at the first byte after both 101s.
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(Role::Server, Limits::default()),
            input: BytesMut::new(),
            link: SpdyLink::port_forward(),
            inner: Out::default(),
            pongs: Pongs::new(),
            closed: false,
        }
    }

    /// Takes messages apart, up to the client's Close, which it returns when it has come.
    fn unpack(&mut self, input: &mut BytesMut) -> Result<Option<Option<Close>>, Refused> {
        let mut last = None;
        while let Some(event) = self.decoder.decode(input)? {
            match event {
                Event::Data(data) => self.input.extend_from_slice(&tunnel_bytes(data)?),
                Event::Ping(payload) => self.pongs.receive(&payload),
                Event::Pong(_) => {}
                Event::Close(close) => last = Some(close),
            }
        }
        Ok(last)
    }

    /// Lets the SPDY side act, and puts what it says to the client into messages.
    fn act<T>(&mut self, out: &mut Out, act: impl FnOnce(&mut SpdyLink, &mut BytesMut, &mut Out) -> T) -> T {
        mem::swap(&mut self.inner.far, &mut out.far);
        mem::swap(&mut self.inner.tap, &mut out.tap);
        let done = act(&mut self.link, &mut self.input, &mut self.inner);
        mem::swap(&mut self.inner.far, &mut out.far);
        mem::swap(&mut self.inner.tap, &mut out.tap);
        out.active |= mem::take(&mut self.inner.active);
        put_messages(&mut self.inner.client, &mut out.client);
        done
    }

    fn close(&mut self, close: Option<Close>, client: &mut Queue) {
        if !mem::replace(&mut self.closed, true) {
            Encoder::close(client.put(), close.as_ref(), None);
        }
    }

    fn pong(&mut self, client: &mut Queue) {
        if !self.closed && client.len() <= PONG_BEHIND {
            self.pongs.answer(client.put(), None);
        }
    }
}

impl Link for Tunnel {
    fn begin(&mut self, _out: &mut Out) {}

    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        if self.closed {
            input.clear();
            return Ok(());
        }
        let unpacked = self.unpack(input);
        // What came before a Close or an error still counts.
        if let Err(fault) = self.act(out, |link, input, inner| link.client(input, inner)) {
            self.close(Some(CloseCode::PROTOCOL_ERROR.into()), &mut out.client);
            return Err(fault);
        }
        if self.input.is_empty() {
            // A tunnel that waits keeps no buffer.
            self.input = BytesMut::new();
        }
        match unpacked {
            Ok(None) => self.pong(&mut out.client),
            Ok(Some(close)) => self.close(close.map(|close| close.code.into()), &mut out.client),
            Err(refused) => {
                self.close(Some(refused.close_code().into()), &mut out.client);
                return Err(Fault::Client(refused.to_string()));
            }
        }
        Ok(())
    }

    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        if self.closed {
            input.clear();
            return Ok(());
        }
        self.act(out, |link, _, inner| link.far(input, inner))
    }

    fn leave(&mut self, out: &mut Out) {
        self.act(out, |link, _, inner| link.leave(inner));
    }

    fn end(&mut self, why: &str, out: &mut Out) -> Fate {
        if self.closed {
            // The client has left, or was told why it has to.
            return Fate::Whole;
        }
        let fate = self.act(out, |link, _, inner| link.end(why, inner));
        let code = match fate {
            Fate::Whole => CloseCode::NORMAL,
            Fate::Cut => CloseCode::INTERNAL_ERROR,
        };
        self.close(Some(code.into()), &mut out.client);
        fate
    }

    fn drained(&mut self, out: &mut Out) {
        self.pong(&mut out.client);
    }

    fn is_over(&self) -> bool {
        self.closed
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self::new()
    }
}

/// Moves bytes into messages, without a copy but for the heads.
fn put_messages(bytes: &mut Queue, out: &mut Queue) {
    while !bytes.is_empty() {
        let mut rest = bytes.len().min(MAX_PAYLOAD);
        out.put().put_slice(&Encoder::head(Opcode::Binary, true, rest, None));
        while rest > 0 {
            let len = bytes.chunk().len().min(rest);
            out.push(bytes.copy_to_bytes(len));
            rest -= len;
        }
    }
}

// === impl Refused ===

impl Refused {
    fn close_code(self) -> CloseCode {
        match self {
            Refused::Frame(error) => error.close_code(),
            Refused::Text(text) => text.close_code(),
        }
    }
}

#[cfg(test)]
mod tests;
