//! WebSocket messages of a session: a channel and bytes, and the empty message that says that it stands.
//!
//! Invariants: nothing follows our Close; of pings that came while the socket was full the last is answered, so
//! they cost one frame of memory however many they are.

use std::sync::{Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::{Broken, End, Inlet, Out, Read, Source, Write};
use crate::wire::channel::{self, Subprotocol};
use crate::wire::remotecommand::{Asked, Outcome, StreamType};
use crate::wire::ws::{self, Close, CloseCode, Pongs};

/// What the reader wants sent.
pub(super) enum Control {
    /// Whatever pong is owed.
    Pong,
    /// A pong nobody asked for, which clients ignore (RFC 6455 section 5.5.3).
    Probe,
    Close(Option<Close>),
}

pub(super) struct Reader<'a, R> {
    source: Source<R>,
    inlet: Inlet<'a>,
    control: mpsc::Sender<Control>,
    decoder: ws::Decoder,
    channels: channel::Decoder,
    pongs: &'a Mutex<Pongs>,
}

pub(super) struct Writer<'a> {
    channels: channel::Encoder,
    asked: Asked,
    pongs: &'a Mutex<Pongs>,
    translates: bool,
    closed: bool,
}

/// What a kubelet's translator, which is what speaks v5, makes of its runtime's result (`protocol.md` 7.3): other
/// words for an exit code, and every other failure told as its own, so that the prefix is there twice.
fn translated(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Success => Outcome::Success,
        Outcome::Exit { code, .. } => Outcome::exit(code),
        Outcome::Internal { .. } | Outcome::Other { .. } => Outcome::Internal { text: outcome.message() },
    }
}

fn lock(pongs: &Mutex<Pongs>) -> std::sync::MutexGuard<'_, Pongs> {
    // Nothing panics with it in hand.
    pongs.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Reader ===

impl<'a, R> Reader<'a, R> {
    pub(super) fn new(
        source: Source<R>,
        inlet: Inlet<'a>,
        control: mpsc::Sender<Control>,
        subprotocol: Subprotocol,
        asked: Asked,
        pongs: &'a Mutex<Pongs>,
    ) -> Self {
        Self {
            source,
            inlet,
            control,
            decoder: ws::Decoder::new(ws::Role::Server, ws::Limits::default()),
            channels: channel::Decoder::server(subprotocol, asked),
            pongs,
        }
    }

    async fn take(&mut self, event: ws::Event) -> Result<(), End> {
        match event {
            ws::Event::Data(data) => {
                // Unlike control frames, which do not keep a session open.
                self.inlet.shared.alive();
                match self.channels.decode(data).map_err(|error| End::Broken(error.into()))? {
                    Some(channel::Event::Data { stream, bytes }) => {
                        self.inlet.data(stream, bytes, &self.control, || Control::Probe).await
                    }
                    Some(channel::Event::Closed(stream)) => {
                        self.inlet.finished(stream);
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            ws::Event::Ping(payload) => {
                let mut pongs = lock(self.pongs);
                // One that is owed is on its way already; it takes the newer payload along.
                if !pongs.is_owed() && self.control.try_send(Control::Pong).is_err() {
                    return Ok(());
                }
                pongs.receive(&payload);
                Ok(())
            }
            ws::Event::Pong(_) => Ok(()),
            ws::Event::Close(close) => Err(End::ClientLeft(close)),
        }
    }
}

impl<R: AsyncRead + Unpin> Read for Reader<'_, R> {
    /// There is nothing to wait for: the channels are those of the query.
    async fn open(&mut self) -> Result<(), End> {
        Ok(())
    }

    async fn step(&mut self) -> Result<(), End> {
        let event = self.decoder.decode(&mut self.source.buffer);
        match event.map_err(|error| End::Broken(error.into()))? {
            Some(event) => self.take(event).await,
            None => self.source.fill().await,
        }
    }

    fn abort(&mut self, end: &End) {
        let close = match end {
            End::ClientLeft(close) => close.clone(),
            End::Broken(Broken::WebSocket(error)) => Some(error.close_code().into()),
            End::Broken(Broken::Channel(error)) => Some(error.close_code().into()),
            // Not 1000: without a result, that is a success to clients.
            _ => Some(CloseCode::GOING_AWAY.into()),
        };
        let _ = self.control.try_send(Control::Close(close));
    }
}

// === impl Writer ===

impl<'a> Writer<'a> {
    pub(super) fn new(subprotocol: Subprotocol, asked: Asked, pongs: &'a Mutex<Pongs>) -> Self {
        let translates = Subprotocol::TRANSLATOR.contains(&subprotocol);
        Self { channels: channel::Encoder::new(subprotocol), asked, pongs, translates, closed: false }
    }

    fn data(&self, stream: StreamType, mut bytes: Bytes, out: &mut BytesMut) -> Bytes {
        if let Some(head) = self.channels.head(stream, bytes.len()) {
            out.put_slice(&head);
            return bytes;
        }
        while !bytes.is_empty() {
            let written = self.channels.message(out, stream, &bytes, None);
            bytes.advance(written);
        }
        bytes
    }
}

impl Write for Writer<'_> {
    type Control = Control;

    fn control(&mut self, control: Control, out: &mut BytesMut) -> bool {
        if self.closed {
            return false;
        }
        match control {
            Control::Pong => {
                lock(self.pongs).answer(out, None);
            }
            Control::Probe => ws::Encoder::pong(out, &[], None),
            Control::Close(close) => {
                self.closed = true;
                ws::Encoder::close(out, close.as_ref(), None);
            }
        }
        false
    }

    fn frames(&mut self, what: Out, out: &mut BytesMut) -> Bytes {
        if self.closed {
            return Bytes::new();
        }
        match what {
            Out::Ready => self.channels.first(out, self.asked),
            Out::Data(stream, bytes) => return self.data(stream, bytes, out),
            Out::End(outcome) => {
                let outcome = if self.translates { translated(outcome) } else { outcome };
                self.channels.result(out, &outcome);
                self.closed = true;
                ws::Encoder::close(out, Some(&Close::normal()), None);
            }
        }
        Bytes::new()
    }
}
