//! SPDY frames of a session: the streams a client opens, and what becomes of them.
//!
//! Invariant: a frame goes to a stream only if it is open and the client has not reset it.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tracing::debug;

use super::{End, Inlet, Out, Read, Shared, Source, Write};
use crate::wire::remotecommand::{Protocol, StreamSet, StreamType};
use crate::wire::spdy::{Decoder, Encoder, Frame, Pings, Pong, Role, RstStatus, StreamIds};

/// What the reader wants sent.
pub(super) enum Control {
    Reply(u32),
    Reset(u32, RstStatus),
    Pong(u32),
    GoAway(u32),
    /// Anything that a living client ignores.
    Probe,
}

/// The client's streams; no id is 0.
#[derive(Default)]
pub(super) struct Opened {
    ids: [AtomicU32; 5],
    last_good: AtomicU32,
}

pub(super) struct Reader<'a, R> {
    source: Source<R>,
    inlet: Inlet<'a>,
    control: mpsc::Sender<Control>,
    decoder: Decoder,
    ids: StreamIds,
    pings: Pings,
    /// Accepted and not reset; the type of those we know.
    streams: Vec<(u32, Option<StreamType>)>,
    expected: StreamSet,
    opened: &'a Opened,
    /// No stream is taken any more.
    complete: bool,
    /// After the client's GOAWAY nothing counts but the end of its bytes.
    away: bool,
}

pub(super) struct Writer<'a> {
    encoder: Encoder,
    protocol: Protocol,
    opened: &'a Opened,
    shared: &'a Shared,
}

// === impl Opened ===

impl Opened {
    fn get(&self, kind: StreamType) -> Option<u32> {
        Some(self.ids[kind as usize].load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    fn set(&self, kind: StreamType, id: u32) {
        self.ids[kind as usize].store(id, Ordering::Relaxed);
    }
}

// === impl Reader ===

impl<'a, R> Reader<'a, R> {
    pub(super) fn new(
        source: Source<R>,
        inlet: Inlet<'a>,
        control: mpsc::Sender<Control>,
        expected: StreamSet,
        opened: &'a Opened,
    ) -> Self {
        Self {
            source,
            inlet,
            control,
            decoder: Decoder::new(),
            ids: StreamIds::new(Role::Server),
            pings: Pings::new(Role::Server),
            streams: Vec::new(),
            expected,
            opened,
            complete: false,
            away: false,
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), End> {
        match frame {
            Frame::SynStream { id, fin, headers, .. } => {
                let kind = headers.get(StreamType::HEADER).and_then(StreamType::from_name);
                self.syn_stream(id, kind, fin).await;
                Ok(())
            }
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::RstStream { id, .. } => {
                if let Some(at) = self.streams.iter().position(|(have, _)| *have == id) {
                    let (_, kind) = self.streams.swap_remove(at);
                    self.ids.close();
                    if let Some(kind) = kind {
                        self.inlet.shared.set_reset(kind);
                        self.inlet.finished(kind);
                    }
                }
                Ok(())
            }
            Frame::Ping { id } => match self.pings.receive(id) {
                Pong::Echo => {
                    self.answer(Control::Pong(id)).await;
                    Ok(())
                }
                Pong::Answer | Pong::Stray => Ok(()),
            },
            Frame::GoAway { .. } => {
                self.away = true;
                self.inlet.finished(StreamType::Stdin);
                Ok(())
            }
            Frame::Headers { id, fin, .. } | Frame::SynReply { id, fin, .. } => {
                if fin && let Some(kind) = self.kind(id) {
                    self.inlet.finished(kind);
                }
                Ok(())
            }
            Frame::Settings | Frame::WindowUpdate { .. } => Ok(()),
        }
    }

    async fn syn_stream(&mut self, id: u32, kind: Option<StreamType>, fin: bool) {
        if let Err(status) = self.ids.accept(id) {
            return self.answer(Control::Reset(id, status)).await;
        }
        if self.complete {
            // Upstream never answers these; a refusal lets the client go on.
            self.ids.close();
            return self.answer(Control::Reset(id, RstStatus::CANCEL)).await;
        }
        match kind {
            Some(kind) => self.opened.set(kind, id),
            None => debug!(spdy.stream = id, "client opened a stream of an unknown type"),
        }
        self.streams.push((id, kind));
        if let Some(kind) = kind.filter(|_| fin) {
            self.inlet.finished(kind);
        }
        self.answer(Control::Reply(id)).await;
    }

    async fn data(&mut self, id: u32, bytes: Bytes, fin: bool) -> Result<(), End> {
        let Some(kind) = self.kind(id) else {
            return Ok(());
        };
        self.inlet.data(kind, bytes, &self.control, || Control::Probe).await?;
        if fin {
            self.inlet.finished(kind);
        }
        Ok(())
    }

    fn kind(&self, id: u32) -> Option<StreamType> {
        self.streams.iter().find(|(have, _)| *have == id).and_then(|(_, kind)| *kind)
    }

    /// Waits for room, see the header of `session`.
    async fn answer(&self, control: Control) {
        // Without a receiver the session is at its end: the writer closes the connection as the last thing it does.
        let _ = self.control.send(control).await;
    }
}

impl<R: AsyncRead + Unpin> Read for Reader<'_, R> {
    /// A stream may be open twice; the later one counts.
    async fn open(&mut self) -> Result<(), End> {
        while self.expected.iter().any(|kind| self.opened.get(kind).is_none()) {
            self.step().await?;
        }
        self.complete = true;
        self.opened.last_good.store(self.ids.last_good(), Ordering::Relaxed);
        Ok(())
    }

    async fn step(&mut self) -> Result<(), End> {
        if self.away {
            self.source.buffer.clear();
        } else {
            let frame = self.decoder.decode(&mut self.source.buffer);
            if let Some(frame) = frame.map_err(|error| End::Broken(error.into()))? {
                self.inlet.shared.alive();
                return self.take(frame).await;
            }
        }
        self.source.fill().await
    }

    fn abort(&mut self, _end: &End) {
        if self.complete {
            for id in StreamType::ALL.into_iter().filter_map(|kind| self.opened.get(kind)) {
                let _ = self.control.try_send(Control::Reset(id, RstStatus::CANCEL));
            }
        }
        // Those that came later were refused.
        let last_good = match self.complete {
            true => self.opened.last_good.load(Ordering::Relaxed),
            false => self.ids.last_good(),
        };
        let _ = self.control.try_send(Control::GoAway(last_good));
    }
}

// === impl Writer ===

impl<'a> Writer<'a> {
    pub(super) fn new(protocol: Protocol, opened: &'a Opened, shared: &'a Shared) -> Self {
        Self { encoder: Encoder::new(), protocol, opened, shared }
    }

    /// The stream, if it is open.
    fn stream(&self, kind: StreamType) -> Option<u32> {
        self.opened.get(kind).filter(|_| !self.shared.is_reset(kind))
    }

    fn data(&self, kind: StreamType, bytes: &[u8], out: &mut BytesMut) {
        if let Some(id) = self.stream(kind).filter(|_| !bytes.is_empty()) {
            out.put_slice(&Encoder::data_head(id, bytes.len(), false));
            out.put_slice(bytes);
        }
    }

    fn fin(&self, kind: StreamType, out: &mut BytesMut) {
        if let Some(id) = self.stream(kind) {
            out.put_slice(&Encoder::data_head(id, 0, true));
        }
    }

    fn reset(&self, kind: StreamType, out: &mut BytesMut) {
        if let Some(id) = self.stream(kind) {
            Encoder::rst_stream(out, id, RstStatus::CANCEL);
        }
    }
}

impl Write for Writer<'_> {
    type Control = Control;

    fn control(&mut self, control: Control, out: &mut BytesMut) -> bool {
        match control {
            Control::Reply(id) => self.encoder.syn_reply(out, id),
            Control::Reset(id, status) => Encoder::rst_stream(out, id, status),
            Control::Pong(id) => Encoder::ping(out, id),
            Control::GoAway(last_good) => Encoder::goaway(out, last_good),
            Control::Probe => {
                let written = self.encoder.encode(out, &Frame::Settings);
                debug_assert!(written.is_ok(), "only headers can be too long");
                return false;
            }
        }
        true
    }

    fn frames(&mut self, what: Out, out: &mut BytesMut) -> Bytes {
        match what {
            // What kubelets of 1.0 did by mistake and all do since (`protocol.md` 6.4).
            Out::Ready if self.protocol == Protocol::V1 => {
                self.fin(StreamType::Stdin, out);
                self.reset(StreamType::Error, out);
            }
            Out::Ready => {}
            Out::Data(kind, bytes) => {
                if let Some(id) = self.stream(kind) {
                    out.put_slice(&Encoder::data_head(id, bytes.len(), false));
                    return bytes;
                }
            }
            Out::End(outcome) => {
                self.fin(StreamType::Stdout, out);
                self.fin(StreamType::Stderr, out);
                if self.protocol != Protocol::V1 {
                    self.data(StreamType::Error, &outcome.to_bytes(self.protocol), out);
                    self.reset(StreamType::Error, out);
                    self.reset(StreamType::Stdin, out);
                }
                self.reset(StreamType::Resize, out);
                Encoder::goaway(out, self.opened.last_good.load(Ordering::Relaxed));
            }
        }
        Bytes::new()
    }
}
