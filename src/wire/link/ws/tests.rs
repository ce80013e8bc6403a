//! Tests of the link between two WebSockets, and what those of `translate` share with them. Tests of the
//! conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use crate::wire::remotecommand::Protocol;
use crate::wire::tape::Taped;
use crate::wire::ws::Kind;
use proptest::prelude::*;
use std::cell::Cell;
use std::io::{self, Read, Write};
use tokio_tungstenite::tungstenite::protocol::{Role as PeerRole, WebSocket};
use tokio_tungstenite::tungstenite::{Error as PeerError, Message as PeerMessage};

const ALL: [Subprotocol; 6] = [
    Subprotocol::Unnamed,
    Subprotocol::Channel,
    Subprotocol::Base64,
    Subprotocol::V4,
    Subprotocol::V4Base64,
    Subprotocol::V5,
];

const ASKED: Asked = Asked { stdin: true, stdout: true, stderr: true, tty: true };

const KEY: Option<MaskKey> = Some(MaskKey([0x37, 0xfa, 0x21, 0x3d]));

/// A link with its peers: what they wrote and the link did not take yet, and what they were written.
pub(in crate::wire::link) struct Bench<L> {
    pub(in crate::wire::link) link: L,
    pub(in crate::wire::link) out: Out,
    client: BytesMut,
    far: BytesMut,
    pub(in crate::wire::link) to_client: Vec<u8>,
    pub(in crate::wire::link) to_far: Vec<u8>,
}

/// What a WebSocket peer makes of all it was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::wire::link) struct Heard {
    pub(in crate::wire::link) messages: Vec<Vec<u8>>,
    pub(in crate::wire::link) pongs: Vec<Vec<u8>>,
    pub(in crate::wire::link) close: Option<(u16, String)>,
}

/// A transport for a peer that has it all.
struct Pipe<'a>(&'a [u8]);

impl<L: Link> Bench<L> {
    pub(in crate::wire::link) fn new(link: L) -> Self {
        Self::with(link, Out::default())
    }

    /// Whose session is recorded.
    pub(in crate::wire::link) fn recorded(link: L) -> Self {
        let mut out = Out::default();
        out.tap.record();
        Self::with(link, out)
    }

    fn with(link: L, out: Out) -> Self {
        let (client, far) = Default::default();
        let mut bench = Self { link, out, client, far, to_client: Vec::new(), to_far: Vec::new() };
        bench.link.begin(&mut bench.out);
        bench.drain();
        bench
    }

    /// What is on the tape.
    pub(in crate::wire::link) fn taped(&mut self) -> Taped {
        self.out.tap.end();
        let mut taped = Taped::default();
        taped.read(self.out.tap.tape().unwrap().take().pieces());
        taped
    }

    /// The client writes; the link is written out before and after.
    pub(in crate::wire::link) fn client(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.client_stuck(bytes)?;
        self.drain();
        Ok(())
    }

    /// The client writes, and nobody takes anything.
    pub(in crate::wire::link) fn client_stuck(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.client.extend_from_slice(bytes);
        let result = self.link.client(&mut self.client, &mut self.out);
        if result.is_ok() && self.link.takes_client() {
            assert!(self.client.len() < ws::MAX_BUFFERED, "what waits is the beginning of something");
        }
        result
    }

    /// The far side writes.
    pub(in crate::wire::link) fn far(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.far_stuck(bytes)?;
        self.drain();
        Ok(())
    }

    /// The far side writes, and nobody takes anything.
    pub(in crate::wire::link) fn far_stuck(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.far.extend_from_slice(bytes);
        self.link.far(&mut self.far, &mut self.out)
    }

    pub(in crate::wire::link) fn end(&mut self, why: &str) -> Fate {
        let fate = self.link.end(why, &mut self.out);
        self.drain();
        fate
    }

    /// Nobody is here any more.
    pub(in crate::wire::link) fn leave(&mut self) {
        self.link.leave(&mut self.out);
        self.drain();
    }

    /// Says this to what was left behind; whether that can be.
    pub(in crate::wire::link) fn hangs_up(&mut self, step: HangUp) -> bool {
        self.spoken(step) == Spoken::Yes
    }

    pub(in crate::wire::link) fn spoken(&mut self, step: HangUp) -> Spoken {
        let spoken = self.link.hang_up(step, &mut self.out);
        self.drain();
        spoken
    }

    /// The far side writes to nobody; whether it is done then.
    pub(in crate::wire::link) fn hears_last(&mut self, bytes: &[u8]) -> bool {
        self.far.extend_from_slice(bytes);
        self.link.hear_last(&mut self.far).unwrap();
        self.link.is_done()
    }

    /// Both peers take all there is.
    pub(in crate::wire::link) fn drain(&mut self) {
        for _ in 0..2 {
            for (queue, to) in
                [(&mut self.out.client, &mut self.to_client), (&mut self.out.far, &mut self.to_far)]
            {
                let len = queue.remaining();
                to.extend_from_slice(&queue.copy_to_bytes(len));
            }
            self.link.drained(&mut self.out);
        }
        assert!(self.out.client.is_empty() && self.out.far.is_empty());
    }

    pub(in crate::wire::link) fn heard_by_client(&self) -> Heard {
        Heard::by(PeerRole::Client, &self.to_client)
    }

    fn heard_by_far(&self) -> Heard {
        Heard::by(PeerRole::Server, &self.to_far)
    }
}

impl Heard {
    /// By an independent implementation, and by our own as a server that takes each frame for a message.
    fn by(role: PeerRole, bytes: &[u8]) -> Self {
        let mut heard = Self::default();
        let mut peer = WebSocket::from_raw_socket(Pipe(bytes), role, None);
        loop {
            match peer.read() {
                Ok(PeerMessage::Text(text)) => heard.messages.push(text.as_str().as_bytes().to_vec()),
                Ok(PeerMessage::Binary(bytes)) => heard.messages.push(bytes.to_vec()),
                Ok(PeerMessage::Pong(bytes)) => heard.pongs.push(bytes.to_vec()),
                Ok(PeerMessage::Close(close)) => {
                    let close = close.map(|close| (close.code.into(), close.reason.to_string()));
                    heard.close = Some(close.unwrap_or_default());
                    break;
                }
                Ok(message) => panic!("{message:?}"),
                Err(PeerError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }

        let role = if role == PeerRole::Client { Role::Client } else { Role::Server };
        let mut decoder = ws::Decoder::new(role, ws::Limits::default());
        let mut input = BytesMut::from(bytes);
        let mut messages = Vec::new();
        while let Some(event) = decoder.decode(&mut input).unwrap() {
            match event {
                Event::Data(data) => {
                    assert!(data.start && data.end, "frames of ours are not fragmented");
                    assert!(data.bytes.len() <= MAX_PAYLOAD + 1, "nor too long");
                    messages.push(data.bytes.to_vec());
                }
                Event::Close(_) => assert!(input.is_empty(), "nothing comes behind a Close"),
                Event::Ping(_) | Event::Pong(_) => {}
            }
        }
        assert_eq!(messages, heard.messages);
        heard
    }

    /// All bytes of a channel of the binary subprotocols.
    pub(in crate::wire::link) fn channel(&self, channel: u8) -> Vec<u8> {
        self.decoded(Encoding::Binary, channel).concat()
    }

    /// The payloads of the messages on a channel.
    fn decoded(&self, encoding: Encoding, channel: u8) -> Vec<Vec<u8>> {
        let mut parts = Parts::new(encoding);
        let mut payloads = Vec::new();
        for message in &self.messages {
            let bytes = Bytes::copy_from_slice(message);
            let part = parts.push(Data { kind: Kind::Binary, bytes, start: true, end: true }).unwrap();
            if part.channel == channel {
                payloads.push(part.bytes.to_vec());
            }
        }
        payloads
    }

    pub(in crate::wire::link) fn close_code(&self) -> Option<u16> {
        self.close.as_ref().map(|(code, _)| *code)
    }
}

impl Read for Pipe<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A key that no frame before had.
fn key() -> MaskKey {
    thread_local!(static NEXT: Cell<u32> = const { Cell::new(0x9e37_79b9) });
    MaskKey(NEXT.replace(NEXT.get().wrapping_mul(0x0101_0101).wrapping_add(7)).to_be_bytes())
}

fn command(subprotocol: Subprotocol) -> Bench<WsLink> {
    Bench::new(WsLink::command(subprotocol, ASKED, key))
}

fn ports(encoding: Encoding) -> Bench<WsLink> {
    Bench::new(WsLink::port_forward(encoding, vec![80, 8443], key).unwrap())
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

/// A message of a client, in fragments of these lengths with a ping before each.
pub(in crate::wire::link) fn fragmented(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    written(|out| {
        let mut opcode = Opcode::Binary;
        for fragment in cut(message, lengths) {
            ws::Encoder::frame(out, opcode, false, fragment, KEY);
            ws::Encoder::ping(out, b"between", KEY);
            opcode = Opcode::Continuation;
        }
        ws::Encoder::frame(out, opcode, true, b"", KEY);
    })
}

/// A message of a client in one frame.
pub(in crate::wire::link) fn from_client(message: &[u8]) -> Vec<u8> {
    written(|out| ws::Encoder::message(out, Kind::Binary, message, KEY))
}

pub(in crate::wire::link) fn close_from_client(code: u16) -> Vec<u8> {
    written(|out| ws::Encoder::close(out, Some(&CloseCode(code).into()), KEY))
}

pub(in crate::wire::link) fn ping_from_client(payload: &[u8]) -> Vec<u8> {
    written(|out| ws::Encoder::ping(out, payload, KEY))
}

fn from_far(message: &[u8]) -> Vec<u8> {
    written(|out| ws::Encoder::message(out, Kind::Binary, message, None))
}

fn coded(encoding: Encoding, channel: u8, payload: &[u8], mask: Option<MaskKey>) -> Vec<u8> {
    written(|out| assert_eq!(encoding.message(out, channel, payload, mask), payload.len()))
}

fn close_from_far(code: u16, reason: &str) -> Vec<u8> {
    let close = Close { code: CloseCode(code), reason: reason.to_owned() };
    written(|out| ws::Encoder::close(out, Some(&close), None))
}

/// The same bytes in runs of these lengths, over and over.
pub(in crate::wire::link) fn cut<'a>(bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut runs = Vec::new();
    let mut rest = bytes;
    for len in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (run, after) = rest.split_at((*len).min(rest.len()));
        runs.push(run);
        rest = after;
    }
    runs
}

pub(in crate::wire::link) fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..40usize, 1..4000usize], 1..12)
}

/// Everything a far side says in a session: the empty message, output, the result, Close 1000.
fn session(subprotocol: Subprotocol, stdout: &[u8], stderr: &[u8], outcome: &Outcome) -> Vec<u8> {
    let encoding = subprotocol.encoding();
    let mut bytes = coded(encoding, 1, b"", None);
    for (channel, payload) in
        [(1, stdout), (2, stderr), (1, stderr), (3, &outcome.to_bytes(subprotocol.version()))]
    {
        if !payload.is_empty() {
            bytes.extend(coded(encoding, channel, payload, None));
        }
    }
    bytes.extend(close_from_far(1000, ""));
    bytes
}

#[test]
fn item_078_the_first_message_of_a_server_passes_as_it_is() {
    for subprotocol in ALL {
        for channel in 1..=3 {
            let mut bench = command(subprotocol);
            for byte in coded(subprotocol.encoding(), channel, b"", None) {
                bench.far(&[byte]).unwrap();
            }
            let first = if subprotocol.encoding() == Encoding::Base64 { b'0' + channel } else { channel };
            assert_eq!(bench.heard_by_client().messages, [[first]]);
            assert!(!bench.out.active, "it is none of the session's bytes");
        }
    }
}

#[test]
fn a_message_of_the_far_side_stays_one_wherever_a_read_ends() {
    for subprotocol in ALL {
        let text = "h\u{e9}llo \u{1f980} ".repeat(300);
        let bytes = coded(subprotocol.encoding(), 1, text.as_bytes(), None);
        for at in [1, 5, 6, 7, bytes.len() / 2, bytes.len() - 1] {
            let mut bench = command(subprotocol);
            bench.far(&bytes[..at]).unwrap();
            bench.far(&bytes[at..]).unwrap();
            assert_eq!(bench.to_client, bytes, "{subprotocol:?} cut at {at}");
        }
    }
}

#[test]
fn item_079_messages_to_other_channels_do_no_harm_and_empty_ones_are_dropped() {
    let mut bench = command(Subprotocol::V4);
    for message in [&b""[..], &[0], &[4], &[200]] {
        bench.client(&from_client(message)).unwrap();
        bench.client(&fragmented(message, &[1])).unwrap();
    }
    assert_eq!(bench.to_far, b"");
    assert!(!bench.out.active, "nothing was said");
    for channel in [1, 2, 3, 5, 254] {
        bench.client(&from_client(&[channel, b'x'])).unwrap();
    }
    bench.client(&from_client(b"\0in")).unwrap();
    assert!(bench.out.active);
    assert_eq!(bench.heard_by_far().channel(0), b"in");
    assert!(!bench.link.is_over());
}

#[test]
fn item_080_a_close_of_v5_is_one_message_and_a_malformed_one_ends_the_session() {
    for channel in 0..=4 {
        let mut bench = command(Subprotocol::V5);
        for byte in fragmented(&[CLOSE, channel], &[1]) {
            bench.client(&[byte]).unwrap();
        }
        bench.client(&from_client(b"\x04{}")).unwrap();
        assert_eq!(bench.heard_by_far().messages, [&[CLOSE, channel][..], b"\x04{}"]);
    }
    for message in [&[CLOSE][..], &[CLOSE, 0, 0], &[CLOSE, 9], &[CLOSE, CLOSE]] {
        for lengths in [1, 2, 3] {
            let mut bench = command(Subprotocol::V5);
            let mut frames = from_client(b"\0in");
            frames.extend(fragmented(message, &[lengths]));
            let faults =
                cut(&frames, &[lengths]).into_iter().map(|run| bench.client(run)).find(Result::is_err);
            assert!(matches!(faults, Some(Err(Fault::Client(_)))), "{message:?}");
            bench.leave();
            assert_eq!(bench.heard_by_client().close_code(), Some(1002), "{message:?}");
            let heard = bench.heard_by_far();
            assert_eq!((heard.channel(0), heard.close_code()), (b"in".to_vec(), Some(1001)));
        }
    }
}

#[test]
fn item_081_the_close_of_v5_is_a_message_to_an_unknown_channel_before() {
    for subprotocol in [Subprotocol::Unnamed, Subprotocol::Channel, Subprotocol::V4] {
        let mut bench = command(subprotocol);
        for message in [&[CLOSE, 0][..], &[CLOSE, 0, 0], &[CLOSE], b"\0in"] {
            bench.client(&from_client(message)).unwrap();
        }
        assert_eq!(bench.heard_by_far().messages, [&[CLOSE, 0][..], &[CLOSE, 0, 0], b"\0in"]);
    }
}

#[test]
fn item_082_long_messages_reach_the_far_side_in_frames_of_32_kib_and_the_channel() {
    for subprotocol in ALL {
        let long: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
        let mut bench = command(subprotocol);
        // All in one read, so that only the link can be what splits them.
        let mut message = vec![if subprotocol.encoding() == Encoding::Base64 { b'0' } else { 0 }];
        match subprotocol.encoding() {
            Encoding::Binary => message.extend(&long),
            Encoding::Base64 => message.extend(written(|out| ws::base64::encode(&long, out))),
        }
        bench.client(&from_client(&message)).unwrap();
        let heard = bench.heard_by_far();
        assert!(heard.decoded(subprotocol.encoding(), 0).concat() == long);
        assert!(heard.messages.len() < 64, "and no more of them than are needed");
    }
}

#[test]
fn item_083_fragments_of_a_client_are_never_taken_for_channels() {
    for subprotocol in ALL {
        let message = if subprotocol.encoding() == Encoding::Base64 {
            &b"0AwIBAQID"[..]
        } else {
            b"\0\x03\x02\x01\x01\x02\x03"
        };
        for length in 1..=message.len() {
            let mut bench = command(subprotocol);
            bench.client(&fragmented(message, &[length])).unwrap();
            let heard = bench.heard_by_far();
            assert_eq!(heard.decoded(subprotocol.encoding(), 0).concat(), [3, 2, 1, 1, 2, 3]);
            assert_eq!(heard.close, None);
        }
    }
}

#[test]
fn item_084_pings_are_answered_while_stdin_is_blocked() {
    let mut bench = command(Subprotocol::V5);
    bench.client_stuck(&from_client(&[0; 100_000])).unwrap();
    bench.client_stuck(&ping_from_client(b"here?")).unwrap();
    let held = bench.out.far.len();
    let mut answer = Vec::new();
    answer.extend_from_slice(&bench.out.client.copy_to_bytes(bench.out.client.len()));
    assert_eq!(Heard::by(PeerRole::Client, &answer).pongs, [b"here?"]);

    // With so much waiting the pings are not read any more.
    bench.link.tick(&mut bench.out);
    assert_eq!(bench.out.client.len(), 2, "an empty pong");
    bench.link.tick(&mut bench.out);
    assert_eq!((bench.out.client.len(), bench.out.far.len()), (2, held), "and not another behind it");
    bench.drain();
    bench.link.tick(&mut bench.out);
    assert!(bench.out.client.is_empty(), "none without need");
    assert_eq!(bench.heard_by_client().pongs, [b""]);
}

#[test]
fn pings_of_a_peer_that_takes_nothing_cost_no_memory_and_the_last_is_answered() {
    let mut bench = command(Subprotocol::V4);
    for round in 0..5_000u32 {
        bench.client_stuck(&ping_from_client(&round.to_be_bytes())).unwrap();
        bench.far_stuck(&written(|out| ws::Encoder::ping(out, &round.to_be_bytes(), None))).unwrap();
    }
    assert!(bench.out.client.len() < ANSWER_ROOM + 200 && bench.out.far.len() < ANSWER_ROOM + 200);
    assert!(!bench.out.active);
    bench.drain();
    for heard in [bench.heard_by_client(), bench.heard_by_far()] {
        assert_eq!(heard.pongs.last().unwrap(), &4_999u32.to_be_bytes());
        assert_eq!(heard.messages, [b""; 0]);
    }
}

#[test]
fn pongs_are_not_passed_and_not_answered() {
    let mut bench = command(Subprotocol::V5);
    bench.client(&written(|out| ws::Encoder::pong(out, b"x", KEY))).unwrap();
    bench.far(&written(|out| ws::Encoder::pong(out, b"x", None))).unwrap();
    assert_eq!((&bench.to_client[..], &bench.to_far[..]), (&b""[..], &b""[..]));
}

#[test]
fn a_close_of_the_client_is_answered_and_passed_and_ends_the_session() {
    for subprotocol in ALL {
        let mut bench = command(subprotocol);
        let mut bytes = coded(subprotocol.encoding(), 0, b"last", KEY);
        bytes.extend(close_from_client(1001));
        bench.client(&bytes).unwrap();
        assert!(bench.link.is_over());
        assert_eq!(bench.heard_by_client().close_code(), Some(1001));
        bench.far(&session(subprotocol, b"late", b"", &Outcome::Success)).unwrap();
        bench.leave();
        let heard = bench.heard_by_far();
        assert_eq!(heard.decoded(subprotocol.encoding(), 0), [b"last"]);
        assert_eq!(heard.close_code(), Some(1001));
        assert_eq!(bench.end("over"), Fate::Whole);
        assert_eq!(bench.heard_by_client().messages, [b""; 0], "nothing comes behind it");
    }
    let mut bench = command(Subprotocol::V4);
    bench.client(&written(|out| ws::Encoder::close(out, None, KEY))).unwrap();
    assert_eq!(bench.heard_by_client().close, Some((0, String::new())), "without a code as well");
    bench.leave();
    assert_eq!(bench.heard_by_far().close, Some((0, String::new())));
}

#[test]
fn a_client_that_is_gone_is_reported_to_the_far_side() {
    let mut bench = command(Subprotocol::V4);
    bench.leave();
    assert_eq!(bench.heard_by_far().close_code(), Some(1001));
}

#[test]
fn item_089_a_close_after_the_result_passes_with_code_and_reason() {
    for subprotocol in ALL {
        for outcome in [Outcome::Success, Outcome::exit(3)] {
            let mut bench = command(subprotocol);
            let result = outcome.to_bytes(subprotocol.version());
            if !result.is_empty() {
                bench.far(&coded(subprotocol.encoding(), 3, &result, None)).unwrap();
            }
            bench.far(&close_from_far(4000, "bye")).unwrap();
            assert!(bench.link.is_over());
            assert_eq!(bench.end("late"), Fate::Whole);
            let heard = bench.heard_by_client();
            assert_eq!(heard.decoded(subprotocol.encoding(), 3).concat(), result);
            assert_eq!(heard.close, Some((4000, "bye".to_owned())));
            assert_eq!(bench.heard_by_far().close, Some((4000, "bye".to_owned())), "it is answered");
        }
    }
}

#[test]
fn a_close_without_a_result_is_an_error_where_success_is_a_status() {
    for subprotocol in [Subprotocol::V4, Subprotocol::V4Base64, Subprotocol::V5] {
        let mut bench = command(subprotocol);
        bench.far(&coded(subprotocol.encoding(), 1, b"half", None)).unwrap();
        bench.far(&close_from_far(1000, "")).unwrap();
        assert_eq!(bench.end("late"), Fate::Cut);
        let heard = bench.heard_by_client();
        let result = heard.decoded(subprotocol.encoding(), 3).concat();
        let outcome = Outcome::parse(Protocol::V4, &result).unwrap();
        assert_eq!(outcome, Outcome::Internal { text: NO_RESULT.to_owned() });
        assert_eq!(heard.close, Some((1011, NO_RESULT.to_owned())));
        assert_eq!(bench.heard_by_far().close_code(), Some(1000));
    }
}

#[test]
fn every_prefix_of_a_session_is_an_error_unless_the_result_was_in_it() {
    for subprotocol in ALL {
        for outcome in [Outcome::Success, Outcome::exit(3)] {
            let bytes = session(subprotocol, b"out", b"err", &outcome);
            let result = outcome.to_bytes(subprotocol.version());
            for len in 0..=bytes.len() {
                let mut bench = command(subprotocol);
                bench.far(&bytes[..len]).unwrap();
                let over = bench.link.is_over();
                let fate = bench.end("the cable was cut");
                let heard = bench.heard_by_client();
                let told = heard.decoded(subprotocol.encoding(), 3).concat();
                if over || !result.is_empty() && told == result {
                    assert_eq!(
                        (fate, heard.close_code()),
                        (Fate::Whole, Some(1000)),
                        "{subprotocol:?} {len}"
                    );
                    assert_eq!(told, result);
                    assert!(len >= bytes.len() - 4, "only with the whole result: {len}");
                } else {
                    assert_eq!((fate, heard.close_code()), (Fate::Cut, Some(1011)), "{subprotocol:?} {len}");
                    let why = Outcome::Internal { text: "the cable was cut".to_owned() };
                    assert_eq!(told, why.to_bytes(subprotocol.version()), "{subprotocol:?} {len}");
                }
            }
        }
    }
}

#[test]
fn a_result_is_one_message_however_it_comes() {
    for subprotocol in ALL {
        let result = Outcome::exit(7).to_bytes(subprotocol.version());
        let mut bench = command(subprotocol);
        for byte in coded(subprotocol.encoding(), 3, &result, None) {
            bench.far(&[byte]).unwrap();
        }
        assert_eq!(bench.heard_by_client().decoded(subprotocol.encoding(), 3), [result]);
    }
    // One that does not end is not held for ever.
    let mut bench = command(Subprotocol::V4);
    bench.far(&from_far(&[3; 100_001])).unwrap();
    assert_eq!(bench.heard_by_client().channel(3), [3; 100_000]);
    let mut bench = command(Subprotocol::V4);
    let endless = written(|out| ws::Encoder::frame(out, Opcode::Binary, false, &[3; 100_001], None));
    for run in endless.chunks(1000) {
        bench.far(run).unwrap();
    }
    assert!(bench.heard_by_client().channel(3).len() > 100_000 - MAX_PAYLOAD);
}

#[test]
fn a_peer_that_breaks_the_protocol_is_told_so() {
    let mut bench = command(Subprotocol::V4);
    let fault = bench.client_stuck(&from_far(b"\0not masked"));
    assert!(matches!(fault, Err(Fault::Client(_))));
    bench.leave();
    assert_eq!(bench.heard_by_client().close_code(), Some(1002));
    assert_eq!(bench.heard_by_far().close_code(), Some(1001));

    let mut bench = command(Subprotocol::V4);
    bench.far(&from_far(b"\x01out")).unwrap();
    assert!(matches!(bench.far_stuck(&from_client(b"\x01masked")), Err(Fault::Far(_))));
    assert_eq!(bench.end("it does not speak WebSocket"), Fate::Cut);
    assert_eq!(bench.heard_by_far().close_code(), Some(1002));
    let heard = bench.heard_by_client();
    assert_eq!(heard.channel(1), b"out");
    let text = "it does not speak WebSocket".to_owned();
    assert_eq!(Outcome::parse(Protocol::V4, &heard.channel(3)).unwrap(), Outcome::Internal { text });
    assert_eq!(heard.close_code(), Some(1011));
}

#[test]
fn item_085_terminal_sizes_pass_unchanged() {
    for subprotocol in ALL {
        for size in [&br#"{"Width":80,"Height":24}"#[..], b"{\"Width\":1,\"Height\":2}\n", b"{nonsense"] {
            let mut bench = command(subprotocol);
            bench.client(&coded(subprotocol.encoding(), 4, size, KEY)).unwrap();
            assert_eq!(bench.heard_by_far().decoded(subprotocol.encoding(), 4), [size]);
        }
    }
}

#[test]
fn messages_that_say_nothing_are_not_queued() {
    let mut bench = command(Subprotocol::V5);
    let flood = [from_client(b""), from_client(b"\0"), from_client(b"\xc8")].concat().repeat(10_000);
    bench.client_stuck(&flood).unwrap();
    assert!(bench.out.far.is_empty() && bench.out.client.is_empty());
    // And those that say little cost little more than they are.
    let flood = from_client(b"\xc8x").repeat(10_000);
    bench.client_stuck(&flood).unwrap();
    assert_eq!(bench.out.far.len(), flood.len());
}

#[test]
fn the_ports_of_a_port_forward_come_whole_and_first() {
    for encoding in [Encoding::Binary, Encoding::Base64] {
        let legacy = Legacy::new(encoding, vec![80, 8443]).unwrap();
        let mut bytes = written(|out| legacy.put_ports(out));
        for (at, payload) in [(0, &b"a"[..]), (1, b"bcd"), (0, b"ef")] {
            bytes.extend(written(|out| assert!(legacy.message(out, at, Half::Data, payload, None) > 0)));
        }
        for length in 1..8 {
            let mut bench = ports(encoding);
            for run in cut(&bytes, &[length]) {
                bench.far(run).unwrap();
            }
            let heard = bench.heard_by_client();
            for (channel, port, data) in
                [(0, 80u16, &b"aef"[..]), (1, 80, b""), (2, 8443, b"bcd"), (3, 8443, b"")]
            {
                let payloads = heard.decoded(encoding, channel);
                assert_eq!(payloads[0], port.to_le_bytes());
                assert_eq!(payloads[1..].concat(), data);
            }
            bench.client(&coded(encoding, 2, b"up", KEY)).unwrap();
            assert_eq!(bench.heard_by_far().decoded(encoding, 2), [b"up"]);

            bench.far(&close_from_far(1000, "")).unwrap();
            assert_eq!((bench.end("late"), bench.heard_by_client().close_code()), (Fate::Whole, Some(1000)));
        }
    }
    assert!(WsLink::port_forward(Encoding::Binary, vec![1; 129], key).is_none());
}

#[test]
fn the_end_of_a_port_forward_is_told_on_every_error_channel_behind_its_port() {
    for encoding in [Encoding::Binary, Encoding::Base64] {
        let legacy = Legacy::new(encoding, vec![80, 8443]).unwrap();
        let bytes = written(|out| legacy.put_ports(out));
        for len in 0..=bytes.len() {
            let mut bench = ports(encoding);
            bench.far(&bytes[..len]).unwrap();
            assert_eq!(bench.end("the node is gone"), Fate::Cut);
            let heard = bench.heard_by_client();
            for (channel, port) in [(1, 80u16), (3, 8443)] {
                let expected = [&port.to_le_bytes()[..], b"the node is gone"];
                assert_eq!(heard.decoded(encoding, channel), expected, "{len}");
            }
            assert_eq!(heard.close_code(), Some(1011));
        }
    }
}

/// Messages of a client on channels that mean nothing special in any subprotocol, some without a payload.
fn messages(channels: &'static [u8]) -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..60),
        1 => (2000..50_000usize).prop_map(|len| (0..len).map(|at| (at * 7 % 253) as u8).collect()),
    ];
    prop::collection::vec((prop::sample::select(channels), payload), 0..8)
}

fn by_channel(messages: &[(u8, Vec<u8>)], channel: u8) -> Vec<u8> {
    messages.iter().filter(|(have, _)| *have == channel).flat_map(|(_, bytes)| bytes.clone()).collect()
}

/// A message as a client library writes it, whatever its length.
fn raw(encoding: Encoding, channel: u8, payload: &[u8]) -> Vec<u8> {
    match encoding {
        Encoding::Binary => [&[channel], payload].concat(),
        Encoding::Base64 => {
            [&[b'0' + channel][..], &written(|out| ws::base64::encode(payload, out))].concat()
        }
    }
}

/// A payload in as many messages as it needs.
fn coded_all(encoding: Encoding, channel: u8, payload: &[u8], mask: Option<MaskKey>) -> Vec<u8> {
    let parts = payload.chunks(encoding.max_payload());
    parts.flat_map(|part| coded(encoding, channel, part, mask)).collect()
}

#[test]
fn what_the_far_side_would_drop_passes_unless_it_is_recorded() {
    let asked = Asked { stdin: false, ..ASKED };
    for recorded in [true, false] {
        let link = WsLink::command(Subprotocol::V5, asked, key);
        let mut bench = if recorded { Bench::recorded(link) } else { Bench::new(link) };
        bench.client(&from_client(b"\0in")).unwrap();
        bench.client(&from_client(b"\x01out")).unwrap();
        bench.far(&from_far(b"\0in")).unwrap();
        bench.far(&from_far(b"\x09other")).unwrap();
        let passed = if recorded { 0 } else { 2 };
        assert_eq!(bench.heard_by_far().messages.len(), passed);
        assert_eq!(bench.heard_by_client().messages.len(), passed);
        assert_eq!(bench.out.tap.moved(), crate::wire::tap::Moved::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn item_075_the_bytes_of_every_channel_pass_in_every_subprotocol_whatever_the_cuts(
        subprotocol in prop::sample::select(&ALL[..]),
        up in messages(&[0, 4, 7]),
        down in messages(&[1, 2, 9]),
        outcome in prop_oneof![Just(Outcome::Success), (1..=255u8).prop_map(Outcome::exit)],
        fragments in cuts(),
        (up_cuts, down_cuts) in (cuts(), cuts()),
    ) {
        let encoding = subprotocol.encoding();
        let mut bench = command(subprotocol);
        let message = |(channel, payload): &(u8, Vec<u8>)| raw(encoding, *channel, payload);
        let frames = |from: &(u8, Vec<u8>)| fragmented(&message(from), &fragments);
        let client: Vec<u8> = up.iter().flat_map(frames).collect();
        let mut far = coded(encoding, 1, b"", None);
        for (channel, payload) in &down {
            far.extend(from_far(&raw(encoding, *channel, payload)));
            far.extend(written(|out| ws::Encoder::ping(out, b"far", None)));
        }
        let result = outcome.to_bytes(subprotocol.version());
        if !result.is_empty() {
            far.extend(from_far(&raw(encoding, 3, &result)));
        }

        let (mut client, mut far) = (cut(&client, &up_cuts).into_iter(), cut(&far, &down_cuts).into_iter());
        loop {
            match (client.next(), far.next()) {
                (None, None) => break,
                (client, far) => {
                    bench.client(client.unwrap_or_default()).unwrap();
                    bench.far(far.unwrap_or_default()).unwrap();
                }
            }
        }
        prop_assert!(!bench.link.is_over());
        bench.far(&close_from_far(1000, "")).unwrap();
        prop_assert!(bench.link.is_over());

        let heard = bench.heard_by_far();
        for channel in [0, 4, 7] {
            prop_assert!(heard.decoded(encoding, channel).concat() == by_channel(&up, channel));
        }
        prop_assert_eq!(heard.close_code(), Some(1000));
        let heard = bench.heard_by_client();
        prop_assert_eq!(&heard.messages[0], &raw(encoding, 1, b""));
        for channel in [1, 2, 9] {
            prop_assert!(heard.decoded(encoding, channel).concat() == by_channel(&down, channel));
        }
        prop_assert_eq!(heard.decoded(encoding, 3).concat(), result);
        prop_assert_eq!(heard.close_code(), Some(1000));
    }

    #[test]
    fn a_tape_has_what_each_peer_takes_and_nothing_passes_beside_it(
        subprotocol in prop::sample::select(&ALL[..]),
        (stdin, tty) in any::<(bool, bool)>(),
        up in messages(&[0, 0, 0, 4, 1, 3, 7]),
        down in messages(&[1, 1, 2, 3, 0, 4, 9]),
        closes in any::<bool>(),
        ends in 0..3u8,
        fragments in cuts(),
        (up_cuts, down_cuts) in (cuts(), cuts()),
    ) {
        let encoding = subprotocol.encoding();
        let asked = Asked { stdin, tty, ..ASKED };
        let mut bench = Bench::recorded(WsLink::command(subprotocol, asked, key));
        let mut client = Vec::new();
        for (at, (channel, payload)) in up.iter().enumerate() {
            client.extend(fragmented(&raw(encoding, *channel, payload), &fragments));
            if closes && subprotocol == Subprotocol::V5 && at >= 2 {
                client.extend(from_client(&[CLOSE, 0]));
            }
        }
        let mut far = coded(encoding, 1, b"", None);
        far.extend(down.iter().flat_map(|(channel, payload)| from_far(&raw(encoding, *channel, payload))));
        let (mut client, mut far) = (cut(&client, &up_cuts).into_iter(), cut(&far, &down_cuts).into_iter());
        loop {
            match (client.next(), far.next()) {
                (None, None) => break,
                (client, far) => {
                    bench.client(client.unwrap_or_default()).unwrap();
                    bench.far(far.unwrap_or_default()).unwrap();
                }
            }
        }
        match ends {
            0 => drop(bench.end("podgate is done")),
            1 => bench.far(&close_from_far(1000, "")).unwrap(),
            _ => bench.client(&close_from_client(1000)).unwrap(),
        }

        let (taped, far, client) = (bench.taped(), bench.heard_by_far(), bench.heard_by_client());
        let taken = |heard: &Heard, channel| heard.decoded(encoding, channel).concat();
        prop_assert!(taped.stdin == taken(&far, 0) && taped.sizes == taken(&far, 4));
        let mut server = channel::Decoder::server(subprotocol, Asked { tty: true, ..asked });
        let (mut taken_stdin, mut closed) = (Vec::new(), 0);
        for message in &far.messages {
            let bytes = Bytes::copy_from_slice(message);
            match server.decode(Data { kind: Kind::Binary, bytes, start: true, end: true }).unwrap() {
                Some(channel::Event::Data { stream: StreamType::Stdin, bytes }) => taken_stdin.extend(bytes),
                Some(channel::Event::Data { .. }) => {}
                Some(channel::Event::Closed(stream)) => closed += usize::from(stream == StreamType::Stdin),
                None => prop_assert!(message[0] == CLOSE || message.len() == 1, "nobody takes {:?}", message),
            }
        }
        prop_assert!(taped.stdin == taken_stdin && taped.stdin_ends == closed);
        prop_assert!(taped.stdout == taken(&client, 1) && taped.stderr == taken(&client, 2));
        prop_assert_eq!(&taped.result, &taken(&client, 3));
        for channel in [0, 4, 9] {
            prop_assert!(taken(&client, channel).is_empty(), "channel {} is not on the tape", channel);
        }
    }

    #[test]
    fn a_tape_of_a_port_forward_has_its_connections_and_counts_what_passes(
        encoding in prop::sample::select(&[Encoding::Binary, Encoding::Base64][..]),
        up in messages(&[0, 2, 1, 3, 4, 9]),
        down in messages(&[0, 2, 3, 6, 9]),
        (up_cuts, down_cuts) in (cuts(), cuts()),
    ) {
        let mut bench = Bench::recorded(WsLink::port_forward(encoding, vec![80, 8443], key).unwrap());
        let client: Vec<u8> =
            up.iter().flat_map(|(channel, payload)| coded_all(encoding, *channel, payload, KEY)).collect();
        let legacy = Legacy::new(encoding, vec![80, 8443]).unwrap();
        let mut far = written(|out| legacy.put_ports(out));
        far.extend(down.iter().flat_map(|(channel, payload)| coded_all(encoding, *channel, payload, None)));
        let (mut client, mut far) = (cut(&client, &up_cuts).into_iter(), cut(&far, &down_cuts).into_iter());
        loop {
            match (client.next(), far.next()) {
                (None, None) => break,
                (client, far) => {
                    bench.client(client.unwrap_or_default()).unwrap();
                    bench.far(far.unwrap_or_default()).unwrap();
                }
            }
        }
        bench.end("the node is gone");
        let (taped, far, client) = (bench.taped(), bench.heard_by_far(), bench.heard_by_client());
        let len = |heard: &Heard, channel| heard.decoded(encoding, channel).concat().len() as u64;
        let closed: Vec<_> = taped.connections.iter().filter(|event| !event.open).collect();
        prop_assert_eq!(closed.len(), 2);
        for (event, (channel, port)) in closed.iter().zip([(0, 80), (2, 8443)]) {
            let passed = (len(&far, channel), len(&client, channel) - 2);
            prop_assert_eq!((event.port, event.up, event.down), (port, passed.0, passed.1));
            // Shortened where there is more; see the tap.
            let told = len(&client, channel + 1) > 1000 || event.error.ends_with("the node is gone");
            prop_assert!(told, "{:?}", event.error);
        }
        for channel in [1, 3, 4, 9] {
            prop_assert_eq!(len(&far, channel), 0);
        }
        for channel in [6, 9] {
            prop_assert_eq!(len(&client, channel), 0);
        }
    }

    #[test]
    fn garbage_never_panics_and_what_it_brings_about_is_bounded(
        client in prop::collection::vec(any::<u8>(), 0..400),
        far in prop::collection::vec(any::<u8>(), 0..400),
        lengths in cuts(),
    ) {
        let mut bench = command(Subprotocol::V5);
        let fed = client.len() + far.len();
        let ok = cut(&client, &lengths).into_iter().try_for_each(|run| bench.client_stuck(run)).is_ok();
        if ok && cut(&far, &lengths).into_iter().try_for_each(|run| bench.far_stuck(run)).is_err() {
            bench.link.end("garbage", &mut bench.out);
        }
        prop_assert!(bench.out.client.len() + bench.out.far.len() <= 8 * fed + 1000);
        bench.drain();
        bench.heard_by_client();
        bench.heard_by_far();
    }
}

#[test]
fn a_terminal_is_hung_up_on_stdin_and_its_end_is_heard() {
    for subprotocol in ALL {
        let encoding = subprotocol.encoding();
        let mut bench = Bench::recorded(WsLink::command(subprotocol, ASKED, key));
        bench.client(&close_from_client(1001)).unwrap();
        assert!(bench.link.is_over() && !bench.link.is_done());
        assert!(bench.hangs_up(HangUp::Interrupt) && bench.hangs_up(HangUp::EndOfFile));
        let closes = subprotocol == Subprotocol::V5;
        assert_eq!(
            (bench.hangs_up(HangUp::EndOfStdin), bench.hangs_up(HangUp::EndOfFile)),
            (closes, !closes)
        );
        let to_client = bench.to_client.len();
        assert!(!bench.hears_last(&coded(encoding, 1, b"^C$ exit", None)));
        let status = Outcome::exit(130).to_bytes(Protocol::V4);
        let last = match subprotocol.version().writes_status() {
            true => coded(encoding, 3, &status, None),
            false => close_from_far(1000, ""),
        };
        assert!(bench.hears_last(&last) && bench.to_client.len() == to_client);
        bench.leave();
        let heard = bench.heard_by_far();
        assert_eq!(heard.decoded(encoding, 0)[..2], [b"\x03", b"\x04"]);
        assert_eq!(heard.decoded(encoding, CLOSE).len(), usize::from(closes));
        assert_eq!(heard.close_code(), Some(1001), "the client's own last word, in the end");
        let taped = bench.taped();
        assert!(taped.stdin.is_empty() && taped.stdout.is_empty() && taped.stdin_ends == 0, "{taped:?}");
    }
}

#[test]
fn a_far_side_that_has_left_or_is_at_fault_is_told_nothing_behind_our_close() {
    // A Close without a result, and a reserved opcode.
    for last in [close_from_far(1000, ""), vec![0x83, 0]] {
        for subprotocol in [Subprotocol::V4, Subprotocol::V4Base64, Subprotocol::V5] {
            let mut bench = command(subprotocol);
            let _ = bench.far(&last);
            for step in [HangUp::Interrupt, HangUp::EndOfFile, HangUp::EndOfStdin] {
                assert!(!bench.hangs_up(step), "{subprotocol:?} {step:?}");
            }
            let heard = bench.heard_by_far();
            assert!(heard.close.is_some() && heard.messages.is_empty(), "{heard:?}");
        }
    }
    // Nor one that leaves while it is hung up: it reads no more.
    let mut bench = command(Subprotocol::V5);
    bench.client(&close_from_client(1001)).unwrap();
    assert!(bench.hangs_up(HangUp::Interrupt) && !bench.hears_last(&close_from_far(1000, "")));
    assert!(!bench.hangs_up(HangUp::EndOfFile));
}

#[test]
fn why_podgate_ends_a_session_stands_in_its_terminal_in_front_of_the_error() {
    for subprotocol in ALL {
        let mut bench = Bench::recorded(WsLink::command(subprotocol, ASKED, key));
        bench.link.announce("\r\nidle\r\n", &mut bench.out);
        assert_eq!(bench.end("idle"), Fate::Cut);
        let heard = bench.heard_by_client();
        assert_eq!(heard.decoded(subprotocol.encoding(), 1), [b"\r\nidle\r\n"]);
        assert_eq!(heard.close, Some((1011, "idle".to_owned())));
        let taped = bench.taped();
        assert!(taped.stdout.is_empty() && taped.told == b"\r\nidle\r\n", "{taped:?}");
    }
    let mut bench = ports(Encoding::Binary);
    bench.link.announce("idle", &mut bench.out);
    bench.drain();
    assert!(bench.to_client.is_empty() && bench.link.is_done());
}

#[test]
fn terminal_sizes_are_no_activity() {
    let mut bench = command(Subprotocol::V4);
    bench.client(&from_client(b"\x04{\"Width\":80,\"Height\":24}")).unwrap();
    assert!(!bench.out.active);
    bench.client(&from_client(b"\0x")).unwrap();
    assert!(bench.out.active);
}
