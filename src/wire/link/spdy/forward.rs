//! Forward: which connections of a port-forward are open, and where their client waits for a word.
//!
//! A stream is remembered from its opening until both sides have ended it or either has reset it, so what is
//! kept follows the open connections, however long the session lasts.
//! A connection begins when its data stream is opened, and is over when that is gone; the tap knows it by the id of
//! that stream. What the far side says against it comes on the error stream of the same request.
//! Source: `protocol.md` 5.4.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::{Done, Refused, Streams, put_last};
use crate::wire::link::Fate;
use crate::wire::portforward::{Half, Opening, PORT_HEADER, REQUEST_ID_HEADER, STREAM_TYPE_HEADER};
use crate::wire::spdy::Headers;
use crate::wire::tap::{Tap, Way};

/// Most streams of a client that are open at once: two for each local connection. A browser opens some
/// dozens, a load test hundreds; the client with more of them would cost us memory, and ends its session.
pub(super) const MAX_STREAMS: usize = 4096;

/// The open streams of a port-forward.
#[derive(Debug, Default)]
pub(super) struct Forward {
    streams: BTreeMap<u32, Stream>,
    /// The streams of each request; followed where the session is recorded. No more of them than streams.
    pairs: BTreeMap<Bytes, Pair>,
    /// An orderly GOAWAY of the far side went by: there is nothing to be told.
    orderly: bool,
}

/// The streams of a request that are open.
#[derive(Debug, Default)]
struct Pair {
    data: Option<u32>,
    error: Option<u32>,
}

#[derive(Debug)]
struct Stream {
    half: Half,
    /// What it has in common with the other of its pair, where that is followed.
    request: Option<Bytes>,
    accepted: bool,
    client_done: bool,
    far_done: bool,
}

// === impl Forward ===

impl Forward {
    fn done(&mut self, id: u32, done: Done, tap: &mut Tap, note: impl FnOnce(&mut Stream)) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        note(stream);
        if done == Done::Fin && !(stream.client_done && stream.far_done) {
            return;
        }
        let Some(Stream { half, request, .. }) = self.streams.remove(&id) else {
            return;
        };
        if half == Half::Data {
            tap.disconnect(id);
        }
        if let Some(request) = request
            && let Some(pair) = self.pairs.get_mut(&request)
        {
            *pair.half(half) = None;
            if pair.data.is_none() && pair.error.is_none() {
                self.pairs.remove(&request);
            }
        }
    }

    /// The request of a stream that a recording can show: every server reads the same of these headers, and nothing
    /// else is open for that request.
    fn pair(&mut self, id: u32, headers: &Headers) -> Result<Bytes, Refused> {
        let names = [STREAM_TYPE_HEADER, PORT_HEADER, REQUEST_ID_HEADER];
        let repeated = names.into_iter().any(|name| headers.values(name).count() > 1);
        let opening = Opening::read(id, headers).ok().filter(|_| !repeated);
        let Some(Opening { half, request, .. }) = opening else {
            return Err(Refused::Unclear("its client opens a stream of no known connection"));
        };
        let pair = self.pairs.entry(request.clone()).or_default();
        match pair.half(half).replace(id) {
            Some(_) => Err(Refused::Unclear("its client opens two streams of one type for a connection")),
            None => Ok(request),
        }
    }

    /// The connection that an error stream is about.
    fn connection(&self, stream: &Stream) -> Option<u32> {
        self.pairs.get(stream.request.as_ref()?)?.data
    }
}

// === impl Pair ===

impl Pair {
    fn half(&mut self, half: Half) -> &mut Option<u32> {
        match half {
            Half::Data => &mut self.data,
            Half::Error => &mut self.error,
        }
    }
}

impl Streams for Forward {
    fn opened(&mut self, id: u32, headers: &Headers, fin: bool, tap: &mut Tap) -> Result<(), Refused> {
        let kind = headers.get(STREAM_TYPE_HEADER);
        let half = [Half::Error, Half::Data].into_iter().find(|half| kind == Some(half.name().as_bytes()));
        // A server refuses streams of any other type, and ids that were there.
        let half = half.filter(|_| !self.streams.contains_key(&id));
        if half.is_some() && self.streams.len() >= MAX_STREAMS {
            return Err(Refused::TooMany);
        }
        let request = if tap.is_recording() { Some(self.pair(id, headers)?) } else { None };
        let Some(half) = half else {
            return Ok(());
        };
        if half == Half::Data
            && let Ok(Opening { port, .. }) = Opening::read(id, headers)
        {
            tap.connect(id, port);
        }
        let stream = Stream { half, request, accepted: false, client_done: fin, far_done: false };
        self.streams.insert(id, stream);
        Ok(())
    }

    fn client_data(&mut self, id: u32, payload: &[u8], _fin: bool, tap: &mut Tap) -> Result<bool, Refused> {
        let recording = tap.is_recording();
        let Some(stream) = self.streams.get(&id) else {
            return Ok(!recording);
        };
        if recording {
            if stream.client_done {
                return Ok(false);
            }
            if !payload.is_empty() && (stream.half == Half::Error || !stream.accepted) {
                return Err(Refused::Unclear("its client writes on a stream that is not for it"));
            }
        }
        if stream.half == Half::Data {
            tap.carry(id, Half::Data, Way::Up, payload);
        }
        Ok(true)
    }

    fn client_done(&mut self, id: u32, done: Done, tap: &mut Tap) {
        self.done(id, done, tap, |stream| stream.client_done = true);
    }

    fn client_left(&mut self, tap: &mut Tap) {
        for (id, _) in std::mem::take(&mut self.streams) {
            tap.disconnect(id);
        }
        self.pairs.clear();
    }

    fn accepted(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.accepted = true;
        }
    }

    fn far_data(&mut self, id: u32, payload: &[u8], tap: &mut Tap) -> Result<bool, Refused> {
        let recording = tap.is_recording();
        let Some(stream) = self.streams.get(&id) else {
            return Ok(!recording);
        };
        if recording && stream.far_done {
            return Ok(false);
        }
        if recording && !stream.accepted && !payload.is_empty() {
            return Err(Refused::Unclear("the far side writes on a stream before that is open"));
        }
        match (stream.half, self.connection(stream)) {
            (Half::Data, _) => tap.carry(id, Half::Data, Way::Down, payload),
            (Half::Error, Some(data)) => tap.carry(data, Half::Error, Way::Down, payload),
            (Half::Error, None) => {}
        }
        Ok(true)
    }

    fn far_done(&mut self, id: u32, done: Done, tap: &mut Tap) -> Option<Bytes> {
        self.done(id, done, tap, |stream| stream.far_done = true);
        None
    }

    fn far_left(&mut self, orderly: bool) {
        self.orderly |= orderly;
    }

    fn tell(&mut self, why: &str, out: &mut BytesMut, tap: &mut Tap) {
        if self.orderly {
            return;
        }
        for (id, stream) in &mut self.streams {
            if stream.half == Half::Error && !stream.far_done {
                put_last(out, *id, stream.accepted, why.as_bytes());
                let pair = stream.request.as_ref().and_then(|request| self.pairs.get(request));
                if let Some(data) = pair.and_then(|pair| pair.data).filter(|_| stream.accepted) {
                    tap.carry(data, Half::Error, Way::Down, why.as_bytes());
                }
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
