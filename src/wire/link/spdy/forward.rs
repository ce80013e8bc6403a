//! Forward: which connections of a port-forward are open, and where their client waits for a word.
//!
//! A stream is remembered from its opening until both sides have ended it or either has reset it, so what is
//! kept follows the open connections, however long the session lasts.
//! Source: `protocol.md` 5.4.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::{Done, Streams, put_last};
use crate::wire::link::Fate;
use crate::wire::portforward::{Half, STREAM_TYPE_HEADER};
use crate::wire::spdy::Headers;

/// Most streams of a client that are open at once: two for each local connection. A browser opens some
/// dozens, a load test hundreds; the client with more of them would cost us memory, and ends its session.
pub(super) const MAX_STREAMS: usize = 4096;

/// A client has more than [`MAX_STREAMS`] streams.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more than {MAX_STREAMS} streams at once")]
pub(super) struct TooMany;

/// The open streams of a port-forward.
#[derive(Debug, Default)]
pub(super) struct Forward {
    streams: BTreeMap<u32, Stream>,
    /// An orderly GOAWAY of the far side went by: there is nothing to be told.
    orderly: bool,
}

#[derive(Debug)]
struct Stream {
    half: Half,
    accepted: bool,
    client_done: bool,
    far_done: bool,
}

// === impl Forward ===

impl Forward {
    fn done(&mut self, id: u32, done: Done, note: impl FnOnce(&mut Stream)) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        note(stream);
        if done == Done::Reset || stream.client_done && stream.far_done {
            self.streams.remove(&id);
        }
    }
}

impl Streams for Forward {
    fn opened(&mut self, id: u32, headers: &Headers, fin: bool) -> Result<(), TooMany> {
        let kind = headers.get(STREAM_TYPE_HEADER);
        let half = [Half::Error, Half::Data].into_iter().find(|half| kind == Some(half.name().as_bytes()));
        // A server refuses streams of any other type, and ids that were there.
        let Some(half) = half.filter(|_| !self.streams.contains_key(&id)) else {
            return Ok(());
        };
        if self.streams.len() >= MAX_STREAMS {
            return Err(TooMany);
        }
        self.streams.insert(id, Stream { half, accepted: false, client_done: fin, far_done: false });
        Ok(())
    }

    fn client_done(&mut self, id: u32, done: Done) {
        self.done(id, done, |stream| stream.client_done = true);
    }

    fn client_left(&mut self) {
        self.streams.clear();
    }

    fn accepted(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.accepted = true;
        }
    }

    fn far_done(&mut self, id: u32, done: Done) -> Option<Bytes> {
        self.done(id, done, |stream| stream.far_done = true);
        None
    }

    fn far_left(&mut self, orderly: bool) {
        self.orderly |= orderly;
    }

    fn tell(&mut self, why: &str, out: &mut BytesMut) {
        if self.orderly {
            return;
        }
        for (id, stream) in &mut self.streams {
            if stream.half == Half::Error && !stream.far_done {
                put_last(out, *id, stream.accepted, why.as_bytes());
                stream.far_done = true;
            }
        }
    }

    fn has_result(&self) -> bool {
        // Its connections have no word for success.
        false
    }

    fn fate(&self) -> Fate {
        let cut = self.streams.values().any(|stream| stream.half == Half::Data);
        if cut { Fate::Cut } else { Fate::Whole }
    }
}
