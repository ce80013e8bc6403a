//! The sides of a session: each writes what the choices say, frames more often than not.

use bytes::{BufMut, BytesMut};

use crate::testing::fuzz::Choices;
use crate::wire::channel::{self, CLOSE, Encoding};
use crate::wire::portforward::Half;
use crate::wire::remotecommand::{Outcome, Protocol, StreamType};
use crate::wire::spdy::{self, Frame, Headers, RstStatus};
use crate::wire::ws::{self, Close, CloseCode, Kind, MaskKey, Opcode};

/// A client masks all it writes; which key it is does not matter here.
const MASK: MaskKey = MaskKey([0x5a, 0xa5, 0x0f, 0xf0]);

/// Most times that bytes are repeated: what is written at once is then below what base64 may hold back.
const TIMES: usize = 64;

/// Writes SPDY.
#[derive(Debug)]
pub(super) struct SpdyPeer {
    encoder: spdy::Encoder,
    next: u32,
}

/// Writes a WebSocket's messages.
#[derive(Debug)]
pub(super) struct WsPeer {
    mask: Option<MaskKey>,
    encoding: Encoding,
}

/// Writes SPDY in a WebSocket.
#[derive(Debug)]
pub(super) struct TunnelPeer {
    spdy: SpdyPeer,
    ws: WsPeer,
}

fn payload(choices: &mut Choices<'_>) -> Vec<u8> {
    let bytes = choices.bytes();
    bytes.repeat(1 + usize::from(choices.byte()) % TIMES)
}

fn result(choices: &mut Choices<'_>) -> Vec<u8> {
    let outcome = match choices.byte() % 5 {
        0 | 1 => Outcome::Success,
        2 => Outcome::exit(3),
        3 => Outcome::exec_failed("no such file"),
        _ => Outcome::Other { message: "gone".into() },
    };
    outcome.to_bytes(choices.pick(&[Protocol::V4, Protocol::V1])).to_vec()
}

fn stream(choices: &mut Choices<'_>) -> u32 {
    1 + 2 * u32::from(choices.byte() % 6)
}

// === impl SpdyPeer ===

impl SpdyPeer {
    pub(super) fn new() -> Self {
        Self { encoder: spdy::Encoder::new(), next: 1 }
    }

    /// Opens streams of these types.
    pub(super) fn opens(&mut self, kinds: &[&str]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for kind in kinds {
            self.open(&mut out, kind);
        }
        out.to_vec()
    }

    /// Answers the first streams of the other side.
    pub(super) fn replies(&mut self, count: usize) -> Vec<u8> {
        let mut out = BytesMut::new();
        for id in (1..).step_by(2).take(count) {
            self.encoder.syn_reply(&mut out, id);
        }
        out.to_vec()
    }

    fn open(&mut self, out: &mut BytesMut, kind: &str) {
        let headers = Headers::new().with(StreamType::HEADER, kind);
        self.encoder.syn_stream(out, self.next, &headers).expect("a short header");
        self.next += 2;
    }

    pub(super) fn write(&mut self, choices: &mut Choices<'_>) -> Vec<u8> {
        let mut out = BytesMut::new();
        match choices.byte() % 14 {
            0 => {
                let kind = choices.pick(&StreamType::ALL).name();
                let kind = choices.pick(&[kind, kind, Half::Data.name(), Half::Error.name(), "other"]);
                self.open(&mut out, kind);
            }
            1..=3 => {
                let id = stream(choices);
                put_data(&mut out, id, &payload(choices), choices.flag());
            }
            4 => put_data(&mut out, stream(choices), b"", true),
            5 | 6 => {
                let id = stream(choices);
                put_data(&mut out, id, &result(choices), choices.flag());
            }
            7 => self.encoder.syn_reply(&mut out, stream(choices)),
            8 => spdy::Encoder::rst_stream(&mut out, stream(choices), RstStatus::CANCEL),
            9 => spdy::Encoder::ping(&mut out, 1 + u32::from(choices.byte())),
            10 => spdy::Encoder::goaway_for(&mut out, stream(choices), (choices.byte() % 2).into()),
            11 => {
                let id = stream(choices);
                let headers = Headers::new();
                let frame = match choices.byte() % 6 {
                    0 => Frame::Settings,
                    1 => Frame::WindowUpdate { id, delta: 1 },
                    2 => Frame::SynReply { id, fin: true, headers },
                    bits => Frame::Headers { id, fin: bits % 2 == 0, headers },
                };
                self.encoder.encode(&mut out, &frame).expect("no headers");
            }
            // More is announced than comes; what comes next goes on with it.
            12 => {
                let len = usize::from(choices.word());
                out.put_slice(&spdy::Encoder::data_head(stream(choices), len, choices.flag()));
            }
            _ => out.put_slice(choices.bytes()),
        }
        out.to_vec()
    }
}

fn put_data(out: &mut BytesMut, id: u32, bytes: &[u8], fin: bool) {
    out.put_slice(&spdy::Encoder::data_head(id, bytes.len(), fin));
    out.put_slice(bytes);
}

// === impl WsPeer ===

impl WsPeer {
    pub(super) fn client(encoding: Encoding) -> Self {
        Self { mask: Some(MASK), encoding }
    }

    pub(super) fn server(encoding: Encoding) -> Self {
        Self { mask: None, encoding }
    }

    pub(super) fn write(&mut self, choices: &mut Choices<'_>) -> Vec<u8> {
        let mut out = BytesMut::new();
        match choices.byte() % 11 {
            0..=2 => {
                let channel = choices.byte();
                let channel = if channel < 0x80 { channel % 6 } else { channel };
                self.encoding.message(&mut out, channel, &payload(choices), self.mask);
            }
            3 => {
                let kind = choices.pick(&[Opcode::Binary, Opcode::Text]);
                for (index, last) in [false, false, true].into_iter().enumerate() {
                    let opcode = if index == 0 { kind } else { Opcode::Continuation };
                    ws::Encoder::frame(&mut out, opcode, last, choices.bytes(), self.mask);
                }
            }
            4 => {
                let message = [CLOSE, choices.byte() % 8];
                ws::Encoder::message(&mut out, Kind::Binary, &message, self.mask);
            }
            5 | 6 => {
                let error = channel::number(StreamType::Error);
                self.encoding.message(&mut out, error, &result(choices), self.mask);
            }
            7 => {
                for _ in 0..choices.byte() {
                    ws::Encoder::ping(&mut out, b"x", self.mask);
                }
            }
            8 => ws::Encoder::pong(&mut out, b"x", self.mask),
            9 => {
                let codes =
                    [CloseCode::NORMAL, CloseCode::GOING_AWAY, CloseCode::INTERNAL_ERROR, CloseCode(0)];
                let close = Close { code: choices.pick(&codes), reason: String::new() };
                ws::Encoder::close(&mut out, Some(&close), self.mask);
            }
            _ => out.put_slice(choices.bytes()),
        }
        out.to_vec()
    }
}

// === impl TunnelPeer ===

impl TunnelPeer {
    pub(super) fn new() -> Self {
        Self { spdy: SpdyPeer::new(), ws: WsPeer::client(Encoding::Binary) }
    }

    /// Opens streams of these types.
    pub(super) fn opens(&mut self, kinds: &[&str]) -> Vec<u8> {
        let bytes = self.spdy.opens(kinds);
        self.wrap(&bytes, bytes.len())
    }

    pub(super) fn write(&mut self, choices: &mut Choices<'_>) -> Vec<u8> {
        match choices.byte() % 8 {
            0 => self.ws.write(choices),
            _ => {
                let size = usize::from(choices.byte());
                let bytes = self.spdy.write(choices);
                self.wrap(&bytes, if size < 128 { 1 + size } else { bytes.len() })
            }
        }
    }

    fn wrap(&self, bytes: &[u8], size: usize) -> Vec<u8> {
        let mut out = BytesMut::new();
        for message in bytes.chunks(size.max(1)) {
            ws::Encoder::message(&mut out, Kind::Binary, message, Some(MASK));
        }
        out.to_vec()
    }
}
