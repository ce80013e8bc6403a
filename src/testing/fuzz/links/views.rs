//! What bytes say, read without the links.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::wire::channel::{self, Encoding, Parts, Subprotocol};
use crate::wire::remotecommand::{Asked, Outcome, Protocol, StreamType};
use crate::wire::spdy::{self, Frame};
use crate::wire::ws::{self, Close, CloseCode, Data, Event};

const HEAD: usize = 8;
const SYN_STREAM: u8 = 1;
const SYN_REPLY: u8 = 2;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const HEADERS: u8 = 8;

/// SPDY of one direction, read by the lengths and ids of its frames alone: nobody inflates what a link passes
/// unread.
#[derive(Debug, Default)]
pub(super) struct Spdy {
    pub(super) frames: Vec<Raw>,
    /// The bytes end between two frames.
    pub(super) whole: bool,
}

/// A frame; DATA of a stream joined, and as far as it came.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Control(Vec<u8>),
    Data { stream: u32, bytes: Vec<u8>, fin: bool },
}

/// What was said on one stream.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) replied: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) stop: Option<Stop>,
}

/// What a peer of upstream takes of one direction, by stream.
#[derive(Debug, Default)]
pub(super) struct Taken {
    streams: BTreeMap<u32, Vec<u8>>,
    ended: Vec<u32>,
}

/// How a side ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Fin,
    Reset,
}

/// A WebSocket's direction.
#[derive(Debug, Default)]
pub(super) struct Ws {
    /// Messages in one piece; the last one may lack its end.
    pub(super) messages: Vec<Data>,
    pub(super) close: Option<Option<Close>>,
    fault: Option<ws::Error>,
    /// The bytes end between two frames, and no message has fragments.
    plain: bool,
}

/// The streams of a command over a WebSocket.
#[derive(Debug, Default)]
pub(super) struct Streams {
    bytes: Vec<(StreamType, Vec<u8>)>,
    closed: Vec<StreamType>,
}

/// The channels of a WebSocket, whatever they mean.
#[derive(Debug, Default)]
pub(super) struct Channels {
    pub(super) bytes: BTreeMap<u8, Vec<u8>>,
    /// How many of them came in messages that have ended.
    pub(super) settled: BTreeMap<u8, usize>,
}

/// The streams that a client opens, in order: id and type.
pub(super) fn opened(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut decoder = spdy::Decoder::new();
    let mut input = BytesMut::from(bytes);
    let mut opened = Vec::new();
    while let Ok(Some(frame)) = decoder.decode(&mut input) {
        if let Frame::SynStream { id, headers, .. } = frame {
            opened.push((id, headers.get(StreamType::HEADER).unwrap_or_default().to_vec()));
        }
    }
    opened
}

/// What a client makes of a session that ended like this: `None` unless the server said that this is the end.
pub(super) fn verdict(version: Protocol, ws: &Ws, result: &[u8]) -> Option<Outcome> {
    let normal = matches!(&ws.close, Some(Some(close)) if close.code == CloseCode::NORMAL);
    if normal { Outcome::parse(version, result).ok() } else { None }
}

// === impl Spdy ===

impl Spdy {
    pub(super) fn read(mut bytes: &[u8]) -> Self {
        let mut frames: Vec<Raw> = Vec::new();
        while bytes.len() >= HEAD {
            let len = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
            let here = len.min(bytes.len() - HEAD);
            let control = bytes[0] & 0x80 != 0;
            // Of a control frame all must be there, of DATA some.
            if here < len && (control || here == 0) {
                break;
            }
            let (frame, rest) = bytes.split_at(HEAD + here);
            bytes = rest;
            if control {
                frames.push(Raw::Control(frame.to_vec()));
                continue;
            }
            let stream = word(frame, 0);
            let end = frame[4] & 1 != 0 && here == len;
            let payload = &frame[HEAD..];
            match frames.last_mut() {
                Some(Raw::Data { stream: last, bytes, fin: fin @ false }) if *last == stream => {
                    bytes.extend_from_slice(payload);
                    *fin = end;
                }
                _ => frames.push(Raw::Data { stream, bytes: payload.to_vec(), fin: end }),
            }
            if here < len {
                return Self { frames, whole: false };
            }
        }
        Self { frames, whole: bytes.is_empty() }
    }

    /// Up to the end of the stream, or of everything.
    pub(super) fn on(&self, id: u32) -> Said {
        let mut said = Said::default();
        for frame in &self.frames {
            let stop = match frame {
                Raw::Data { stream, bytes, fin } if *stream == id => {
                    said.bytes.extend_from_slice(bytes);
                    fin.then_some(Stop::Fin)
                }
                Raw::Control(frame) if frame[3] == GOAWAY => return said,
                Raw::Control(frame) if frame.len() < 12 || word(frame, 8) != id => None,
                Raw::Control(frame) if frame[3] == RST_STREAM => Some(Stop::Reset),
                Raw::Control(frame) if matches!(frame[3], SYN_REPLY | HEADERS) => {
                    said.replied |= frame[3] == SYN_REPLY;
                    (frame[4] & 1 != 0).then_some(Stop::Fin)
                }
                _ => None,
            };
            if stop.is_some() {
                said.stop = stop;
                return said;
            }
        }
        said
    }

    /// How often a stream was reset.
    pub(super) fn resets(&self, id: u32) -> usize {
        let is_reset = |frame: &&&[u8]| frame[3] == RST_STREAM && frame.len() >= 12 && word(frame, 8) == id;
        self.controls().iter().filter(is_reset).count()
    }

    /// A GOAWAY, and whether it is an orderly one.
    pub(super) fn left(&self) -> Option<bool> {
        self.frames.iter().find_map(|frame| match frame {
            Raw::Control(frame) if frame[3] == GOAWAY => Some(frame.len() >= 16 && word(frame, 12) == 0),
            _ => None,
        })
    }

    pub(super) fn streams(&self) -> Vec<u32> {
        let ids = self.frames.iter().filter_map(|frame| match frame {
            Raw::Data { stream, .. } => Some(*stream),
            Raw::Control(_) => None,
        });
        let mut ids: Vec<u32> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    pub(super) fn controls(&self) -> Vec<&[u8]> {
        let controls = self.frames.iter().filter_map(|frame| match frame {
            Raw::Control(frame) => Some(&frame[..]),
            Raw::Data { .. } => None,
        });
        controls.collect()
    }

    /// Whether these are the first frames of `other`, the last perhaps less than there.
    pub(super) fn begins(&self, other: &Self) -> bool {
        let Some((last, before)) = self.frames.split_last() else { return true };
        let same = other.frames.starts_with(before);
        same && match (last, other.frames.get(before.len())) {
            (Raw::Data { stream, bytes, fin: false }, Some(Raw::Data { stream: id, bytes: all, .. })) => {
                stream == id && all.starts_with(bytes)
            }
            (last, other) => Some(last) == other,
        }
    }
}

// === impl Taken ===

impl Taken {
    /// Panics when there are bytes that it would drop: behind the end of their stream, or a GOAWAY.
    pub(super) fn of(spdy: &Spdy) -> Self {
        let (mut taken, mut left) = (Self::default(), false);
        for frame in &spdy.frames {
            match frame {
                Raw::Data { stream, bytes, fin } => {
                    let dropped = left || taken.ended.contains(stream);
                    assert!(!dropped || bytes.is_empty(), "stream {stream}: nobody takes these");
                    if !bytes.is_empty() {
                        taken.streams.entry(*stream).or_default().extend_from_slice(bytes);
                    }
                    taken.ended.extend(fin.then_some(*stream));
                }
                Raw::Control(frame) if frame[3] == GOAWAY => left = true,
                Raw::Control(frame) if frame.len() < 12 => {}
                Raw::Control(frame)
                    if frame[3] == RST_STREAM || frame[3] == SYN_STREAM && frame[4] & 1 != 0 =>
                {
                    taken.ended.push(word(frame, 8));
                }
                Raw::Control(_) => {}
            }
        }
        taken
    }

    pub(super) fn take(&mut self, id: Option<u32>) -> Vec<u8> {
        id.and_then(|id| self.streams.remove(&id)).unwrap_or_default()
    }

    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.ended.contains(&id)
    }

    pub(super) fn assert_all_taken(&self) {
        assert!(self.streams.is_empty(), "not on the tape: {:?}", self.streams.keys());
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

// === impl Ws ===

impl Ws {
    /// What the other side than `role` says.
    pub(super) fn read(role: ws::Role, bytes: &[u8]) -> Self {
        let mut decoder = ws::Decoder::new(role, ws::Limits::default());
        let mut input = BytesMut::from(bytes);
        let mut ws = Self { plain: ends_between(bytes), ..Self::default() };
        loop {
            match decoder.decode(&mut input) {
                Ok(None) => return ws,
                Ok(Some(Event::Data(data))) => match ws.messages.last_mut().filter(|last| !last.end) {
                    Some(open) => {
                        ws.plain = false;
                        open.bytes = [&open.bytes[..], &data.bytes].concat().into();
                        open.end = data.end;
                    }
                    None => ws.messages.push(data),
                },
                Ok(Some(Event::Close(close))) => {
                    ws.plain &= input.is_empty();
                    ws.close = Some(close);
                }
                Ok(Some(Event::Ping(_) | Event::Pong(_))) => {}
                Err(error) => {
                    ws.fault = Some(error);
                    return ws;
                }
            }
        }
    }

    /// Podgate sends whole frames, and each message in one, and nothing behind its Close.
    pub(super) fn assert_ours(&self) {
        assert_eq!(self.fault, None);
        assert!(
            self.plain && self.messages.iter().all(|message| message.end),
            "half a message, or fragments"
        );
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        self.messages.iter().flat_map(|message| message.bytes.to_vec()).collect()
    }
}

fn ends_between(mut bytes: &[u8]) -> bool {
    while let [_, second, rest @ ..] = bytes {
        let (len, rest) = match (second & 0x7f, rest) {
            (126, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
            (127, [0, 0, 0, 0, a, b, c, d, rest @ ..]) => {
                (u32::from_be_bytes([*a, *b, *c, *d]) as usize, rest)
            }
            (126 | 127, _) => return false,
            (len, rest) => (usize::from(len), rest),
        };
        let len = len + if second & 0x80 == 0 { 0 } else { 4 };
        let Some((_, rest)) = rest.split_at_checked(len) else { return false };
        bytes = rest;
    }
    bytes.is_empty()
}

// === impl Streams ===

impl Streams {
    /// What the other side than `role` says of a command.
    pub(super) fn read(subprotocol: Subprotocol, asked: Asked, role: ws::Role, ws: &Ws) -> Self {
        let mut decoder = match role {
            ws::Role::Server => channel::Decoder::server(subprotocol, asked),
            ws::Role::Client => channel::Decoder::client(subprotocol, asked),
        };
        let mut streams = Self::default();
        for message in &ws.messages {
            match decoder.decode(message.clone()) {
                Ok(None) => {}
                Ok(Some(channel::Event::Closed(stream))) => streams.closed.push(stream),
                Ok(Some(channel::Event::Data { stream, bytes })) => streams.add(stream, &bytes),
                Err(_) => break,
            }
        }
        streams
    }

    fn add(&mut self, stream: StreamType, more: &Bytes) {
        match self.bytes.iter_mut().find(|(have, _)| *have == stream) {
            Some((_, bytes)) => bytes.extend_from_slice(more),
            None => self.bytes.push((stream, more.to_vec())),
        }
    }

    pub(super) fn on(&self, stream: StreamType) -> &[u8] {
        self.bytes.iter().find(|(have, _)| *have == stream).map_or(&[], |(_, bytes)| bytes)
    }

    pub(super) fn closed(&self, stream: StreamType) -> bool {
        self.closed.contains(&stream)
    }
}

// === impl Channels ===

impl Channels {
    pub(super) fn read(encoding: Encoding, ws: &Ws) -> Self {
        let mut parts = Parts::new(encoding);
        let mut channels = Self::default();
        for message in &ws.messages {
            let Some(part) = parts.push(message.clone()) else { continue };
            let bytes = channels.bytes.entry(part.channel).or_default();
            bytes.extend_from_slice(&part.bytes);
            if part.end {
                channels.settled.insert(part.channel, bytes.len());
            }
        }
        channels
    }

    /// Panics when there are bytes on any other channel.
    pub(super) fn assert_only(&self, may: impl Fn(u8) -> bool) {
        let other = self.bytes.iter().find(|(channel, bytes)| !may(**channel) && !bytes.is_empty());
        assert!(other.is_none(), "not on the tape: {other:?}");
    }

    pub(super) fn on(&self, channel: u8) -> &[u8] {
        self.bytes.get(&channel).map_or(&[], |bytes| bytes)
    }
}
