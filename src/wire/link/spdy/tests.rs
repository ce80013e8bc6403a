//! Tests of SPDY to SPDY: what a Go client makes of it. Those of the conformance checklist carry its item
//! number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod left;
mod taped;

use std::collections::BTreeMap;

use bytes::Buf;
use proptest::prelude::*;

use super::forward::MAX_STREAMS;
use super::*;
use crate::wire::portforward::Half;
use crate::wire::remotecommand::{Outcome, StreamType};
use crate::wire::spdy::tests::{GO_CLIENT, GO_SERVER, hex};
use crate::wire::spdy::{Decoder, MAX_HELD};

const WHY: &str = "the node is gone";

/// Ids of the streams of a command, in the order in which clients open them.
const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;

/// A link, and what either peer was sent.
struct Rig {
    link: SpdyLink,
    client_encoder: Encoder,
    far_encoder: Encoder,
    client_input: BytesMut,
    far_input: BytesMut,
    out: Out,
    to_client: BytesMut,
    to_far: BytesMut,
}

/// What a Go client has read: nothing behind a GOAWAY, nothing on a stream without a reply.
#[derive(Debug, Default)]
pub(in crate::wire::link) struct Seen {
    streams: BTreeMap<u32, SeenStream>,
    goaway: Option<u32>,
}

#[derive(Debug, Default)]
struct SeenStream {
    accepted: bool,
    data: Vec<u8>,
    ended: bool,
}

impl Rig {
    fn new(link: SpdyLink) -> Self {
        Self {
            link,
            client_encoder: Encoder::new(),
            far_encoder: Encoder::new(),
            client_input: BytesMut::new(),
            far_input: BytesMut::new(),
            out: Out::default(),
            to_client: BytesMut::new(),
            to_far: BytesMut::new(),
        }
    }

    /// A command whose client has opened all streams but resize.
    fn command(protocol: Protocol) -> Self {
        let mut rig = Self::new(SpdyLink::command(protocol, Runs::Attach { tty: false }));
        rig.client_says(&opening());
        rig
    }

    fn client_says(&mut self, frames: &[Frame]) {
        let bytes = encode_with(&mut self.client_encoder, frames);
        self.client(&bytes).unwrap();
    }

    fn far_says(&mut self, frames: &[Frame]) {
        let bytes = encode_with(&mut self.far_encoder, frames);
        self.far(&bytes).unwrap();
    }

    fn client(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.client_input.extend_from_slice(bytes);
        let given = self.client_input.len();
        let fed = self.link.client(&mut self.client_input, &mut self.out);
        self.drain(given);
        fed
    }

    fn far(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.far_input.extend_from_slice(bytes);
        let given = self.far_input.len();
        let fed = self.link.far(&mut self.far_input, &mut self.out);
        self.drain(given);
        fed
    }

    fn end(&mut self) -> Fate {
        let fate = self.link.end(WHY, &mut self.out);
        self.drain(0);
        fate
    }

    /// What was queued is bounded by what was given: a head for a frame that goes on, and an ending.
    fn drain(&mut self, given: usize) {
        let ending = 1024 + 100 * MAX_STREAMS;
        for (queue, to) in
            [(&mut self.out.client, &mut self.to_client), (&mut self.out.far, &mut self.to_far)]
        {
            assert!(queue.len() <= given + ending);
            to.extend_from_slice(&queue.copy_to_bytes(queue.len()));
        }
        assert!(self.client_input.len() <= MAX_HELD && self.far_input.len() <= MAX_HELD);
    }

    fn seen(&self) -> Seen {
        Seen::read(&self.to_client)
    }
}

impl Seen {
    pub(in crate::wire::link) fn read(bytes: &[u8]) -> Self {
        let mut seen = Self::default();
        for frame in frames(bytes) {
            if seen.goaway.is_some() {
                break;
            }
            match frame {
                Frame::SynReply { id, .. } => seen.stream(id).accepted = true,
                Frame::RstStream { id, .. } => seen.stream(id).ended = true,
                Frame::GoAway { status, .. } => seen.goaway = Some(status),
                Frame::Data { stream, bytes, fin } => {
                    let stream = seen.stream(stream);
                    assert!(!stream.ended, "nothing follows the end of a stream");
                    if stream.accepted {
                        stream.data.extend_from_slice(&bytes);
                        stream.ended |= fin;
                    }
                }
                _ => {}
            }
        }
        seen
    }

    fn stream(&mut self, id: u32) -> &mut SeenStream {
        self.streams.entry(id).or_default()
    }

    pub(in crate::wire::link) fn text(&self, id: u32) -> String {
        let data = self.streams.get(&id).map(|stream| stream.data.clone());
        String::from_utf8(data.unwrap_or_default()).unwrap()
    }

    fn outcome(&self, protocol: Protocol) -> Outcome {
        Outcome::parse(protocol, self.text(ERROR).as_bytes()).unwrap()
    }

    fn ended(&self, id: u32) -> bool {
        self.goaway.is_some() || self.streams.get(&id).is_some_and(|stream| stream.ended)
    }
}

/// The frames of bytes that must end with one.
pub(in crate::wire::link) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let (mut decoder, mut input) = (Decoder::new(), BytesMut::from(bytes));
    let frames = std::iter::from_fn(|| decoder.decode(&mut input).unwrap()).collect();
    assert!(input.is_empty() && decoder.is_between_frames(), "cut inside a frame");
    frames
}

/// The frames of a direction from its beginning.
fn encode(frames: &[Frame]) -> Vec<u8> {
    encode_with(&mut Encoder::new(), frames)
}

fn encode_with(encoder: &mut Encoder, frames: &[Frame]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| encoder.encode(&mut bytes, frame).unwrap());
    bytes.to_vec()
}

fn syn(id: u32, headers: Headers) -> Frame {
    Frame::SynStream { id, associated: 0, priority: 0, fin: false, unidirectional: false, headers }
}

fn reply(id: u32) -> Frame {
    Frame::SynReply { id, fin: false, headers: Headers::new() }
}

fn data(stream: u32, bytes: impl AsRef<[u8]>) -> Frame {
    Frame::Data { stream, bytes: Bytes::copy_from_slice(bytes.as_ref()), fin: false }
}

fn fin(stream: u32) -> Frame {
    Frame::Data { stream, bytes: Bytes::new(), fin: true }
}

fn reset(id: u32) -> Frame {
    Frame::RstStream { id, status: RstStatus::CANCEL }
}

fn goaway() -> Frame {
    Frame::GoAway { last_good: STDERR, status: GOAWAY_OK }
}

fn opening() -> Vec<Frame> {
    let types = [StreamType::Error, StreamType::Stdin, StreamType::Stdout, StreamType::Stderr];
    let open = |(at, kind): (usize, &StreamType)| {
        syn(2 * at as u32 + 1, Headers::new().with(StreamType::HEADER, kind.name()))
    };
    types.iter().enumerate().map(open).collect()
}

fn replies() -> Vec<Frame> {
    [ERROR, STDIN, STDOUT, STDERR].map(reply).to_vec()
}

fn internal(text: &str) -> Outcome {
    Outcome::Internal { text: text.to_owned() }
}

/// What a client of this protocol reads of an error.
fn told(protocol: Protocol, text: &str) -> Outcome {
    match protocol.writes_status() {
        true => internal(text),
        false => Outcome::Other { message: internal(text).message() },
    }
}

/// How kubelets say what came of a command: its last frames.
fn results(protocol: Protocol, outcome: &Outcome) -> Vec<Vec<Frame>> {
    let bytes = outcome.to_bytes(protocol);
    let text = || Some(data(ERROR, &bytes)).filter(|_| !bytes.is_empty());
    let with_fin = Frame::Data { stream: ERROR, bytes: bytes.clone(), fin: true };
    vec![
        text().into_iter().chain([reset(ERROR), fin(STDOUT), reset(STDERR), goaway()]).collect(),
        text().into_iter().chain([fin(STDOUT), fin(ERROR), goaway()]).collect(),
        vec![fin(STDOUT), with_fin],
    ]
}

fn new_protocols() -> [Protocol; 3] {
    [Protocol::V4, Protocol::V3, Protocol::V2]
}

#[test]
fn a_command_cut_at_any_byte_is_its_exact_output_and_an_error_or_its_result() {
    let stdout: Vec<u8> = (0..300u32).map(|at| at as u8).collect();
    for protocol in new_protocols() {
        for outcome in [Outcome::Success, Outcome::exit(3)] {
            for result in results(protocol, &outcome) {
                let mut far = replies();
                far.extend([data(STDOUT, &stdout[..200]), data(STDERR, "oh"), data(STDOUT, &stdout[200..])]);
                far.push(Frame::Ping { id: 2 });
                far.extend(result.clone());
                prefixes(protocol, &encode(&far), &outcome);
            }
        }
    }
}

fn prefixes(protocol: Protocol, far: &[u8], outcome: &Outcome) {
    for cut in 0..=far.len() {
        let mut rig = Rig::command(protocol);
        rig.far(&far[..cut / 2]).unwrap();
        rig.far(&far[cut / 2..cut]).unwrap();
        let (mut decoder, mut input) = (Decoder::new(), BytesMut::from(&far[..cut]));
        let (mut stdout, mut given, mut ended, mut accepted) = (Vec::new(), 0, false, false);
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            match frame {
                Frame::SynReply { id: ERROR, .. } => accepted = true,
                Frame::RstStream { id: ERROR, .. } => ended = true,
                Frame::Data { stream: STDOUT, bytes, .. } => stdout.extend_from_slice(&bytes),
                Frame::Data { stream: ERROR, bytes, fin } => {
                    given += bytes.len();
                    ended |= fin;
                }
                _ => {}
            }
        }
        let whole = match outcome.to_bytes(protocol) {
            text if text.is_empty() => ended,
            text => given == text.len(),
        };

        let fate = rig.end();
        let seen = rig.seen();
        assert_eq!(fate, if whole { Fate::Whole } else { Fate::Cut }, "{protocol} {cut}");
        assert_eq!(seen.streams.get(&STDOUT).map_or(&[][..], |s| &s.data), stdout, "{protocol} {cut}");
        let expected = match (whole, protocol.writes_status()) {
            (true, true) => outcome.clone(),
            (true, false) if *outcome == Outcome::Success => Outcome::Success,
            (true, false) => Outcome::Other { message: outcome.message() },
            (false, _) => told(protocol, WHY),
        };
        if accepted {
            assert_eq!(seen.outcome(protocol), expected, "{protocol} {cut}");
            assert!(whole || seen.ended(ERROR));
        } else {
            // The client still waits for its stream: a reset is what fails there.
            assert!(seen.streams[&ERROR].ended && seen.goaway == Some(GOAWAY_OK), "{protocol} {cut}");
        }
    }
}

#[test]
fn a_runtime_that_dies_is_an_error_in_front_of_whatever_it_says_last() {
    let last = [reset(ERROR), fin(ERROR), goaway()];
    for (at, word) in last.into_iter().enumerate() {
        let mut rig = Rig::command(Protocol::V4);
        let mut far = replies();
        far.extend([data(STDOUT, "half"), reset(STDOUT), word.clone(), data(STDERR, "x"), goaway()]);
        let far = encode(&far);
        rig.far(&far[..far.len() - 30]).unwrap();
        rig.far(&far[far.len() - 30..]).unwrap();
        assert_eq!(rig.end(), Fate::Cut, "{at}");
        let seen = rig.seen();
        assert_eq!(seen.outcome(Protocol::V4), internal(LEFT), "{at}");
        assert!(seen.ended(ERROR));
        assert_eq!(seen.text(STDOUT), "half");
        // Once, and beside it nothing but what the far side sent.
        let mut rest = frames(&rig.to_client);
        rest.retain(|frame| !matches!(frame, Frame::Data { stream: ERROR, bytes, .. } if !bytes.is_empty()));
        assert_eq!(rest, frames(&far), "{at}");
    }
}

#[test]
fn before_v4_a_goaway_without_a_result_is_an_error_and_the_end_of_the_error_stream_is_success() {
    for protocol in [Protocol::V2, Protocol::V3] {
        let mut rig = Rig::command(protocol);
        rig.far_says(&[replies(), vec![data(STDOUT, "x"), goaway()]].concat());
        assert_eq!(rig.seen().outcome(protocol), told(protocol, LEFT));
        assert_eq!(rig.end(), Fate::Cut);

        for end in [reset(ERROR), fin(ERROR)] {
            let mut rig = Rig::command(protocol);
            let far = encode(&[replies(), vec![data(STDOUT, "x"), end]].concat());
            rig.far(&far).unwrap();
            assert_eq!(rig.end(), Fate::Whole);
            assert_eq!(rig.to_client, far, "nothing of ours");
        }
    }
}

#[test]
fn in_v1_the_end_of_all_output_is_the_result_and_the_reset_of_the_error_stream_is_none() {
    let set_up = [replies(), vec![fin(STDIN), reset(ERROR), data(STDOUT, "x")]].concat();
    let ends = [
        (vec![], Fate::Cut),
        (vec![fin(STDOUT)], Fate::Cut),
        (vec![fin(STDOUT), reset(STDERR)], Fate::Whole),
        (vec![goaway()], Fate::Whole),
    ];
    for (end, fate) in ends {
        let mut rig = Rig::command(Protocol::V1);
        let far = encode(&[set_up.clone(), end].concat());
        rig.far(&far).unwrap();
        assert_eq!(rig.end(), fate);
        let goaway: &[u8] = if fate == Fate::Cut { &hex("80030007 00000008 00000007 00000000") } else { &[] };
        assert_eq!(rig.to_client, [&far, goaway].concat());
    }

    let mut rig = Rig::command(Protocol::V1);
    rig.far_says(&replies());
    assert_eq!(rig.end(), Fate::Cut);
    assert_eq!(rig.seen().outcome(Protocol::V1), told(Protocol::V1, WHY), "while it can be told, it is");
}

#[test]
fn a_status_in_several_frames_is_a_result_when_its_stream_has_ended() {
    let status = Outcome::exit(3).to_bytes(Protocol::V4);
    let (front, back) = status.split_at(20);
    let begun = [replies(), vec![data(ERROR, front)]].concat();

    let mut rig = Rig::command(Protocol::V4);
    rig.far_says(&begun);
    assert_eq!(rig.end(), Fate::Cut);
    assert!(rig.seen().ended(ERROR));
    assert!(
        Outcome::parse(Protocol::V4, rig.seen().text(ERROR).as_bytes()).is_err(),
        "half a Status is none"
    );

    for end in [fin(ERROR), reset(ERROR), goaway()] {
        let mut rig = Rig::command(Protocol::V4);
        let far = encode(&[begun.clone(), vec![data(ERROR, back), end]].concat());
        rig.far(&far).unwrap();
        assert_eq!(rig.end(), Fate::Whole);
        assert_eq!(rig.to_client, far);
    }
}

#[test]
fn who_does_not_listen_is_told_nothing() {
    let goaway_only = |rig: &Rig| assert_eq!(rig.to_client[..], hex("80030007 00000008 00000000 00000000"));
    // No error stream at all.
    let mut rig = Rig::new(SpdyLink::command(Protocol::V4, Runs::Attach { tty: false }));
    assert_eq!(rig.end(), Fate::Cut);
    goaway_only(&rig);
    // Given up by the client.
    let mut rig = Rig::command(Protocol::V4);
    rig.client_says(&[reset(ERROR)]);
    assert_eq!(rig.end(), Fate::Cut);
    goaway_only(&rig);
    // The client has left.
    for link in [SpdyLink::port_forward(), SpdyLink::command(Protocol::V4, Runs::Attach { tty: false })] {
        let mut rig = Rig::new(link);
        rig.client_says(&[opening(), vec![goaway()]].concat());
        assert_eq!(rig.end(), Fate::Whole);
        assert!(rig.to_client.is_empty());
    }
}

#[test]
fn a_client_that_leaves_over_the_error_it_was_told_makes_the_session_no_less_cut() {
    for last in [reset(ERROR), fin(ERROR), goaway()] {
        let mut rig = Rig::command(Protocol::V4);
        rig.far_says(&[replies(), vec![last]].concat());
        rig.client_says(&[reset(STDOUT), goaway()]);
        assert_eq!(rig.end(), Fate::Cut);
    }
}

#[test]
fn what_is_not_spdy_ends_the_session_with_an_error_for_the_client() {
    let garbage = b"GET / HTTP/1.1\r\n\r\n";
    let mut rig = Rig::command(Protocol::V4);
    rig.far_says(&replies());
    let ping = hex("80030006 00000004 00000001");
    let fault = rig.client(&[&ping[..], &hex("800300ff 00000000"), garbage].concat()).unwrap_err();
    assert!(matches!(&fault, Fault::Client(why) if why == "unknown SPDY control frame type 255"), "{fault}");
    assert_eq!(rig.to_far[encode(&opening()).len()..], ping, "what came before is passed on");
    assert_eq!(rig.seen().outcome(Protocol::V4), internal(&fault.to_string()));
    assert_eq!(rig.seen().goaway, Some(GOAWAY_PROTOCOL_ERROR));
    let before = rig.to_client.clone();
    assert_eq!((rig.end(), &rig.to_client), (Fate::Cut, &before), "told once");

    let mut rig = Rig::command(Protocol::V4);
    let far =
        [&encode(&[replies(), vec![data(STDOUT, "x")]].concat())[..], &hex("80030006 01000004")].concat();
    let fault = rig.far(&far).unwrap_err();
    assert!(matches!(fault, Fault::Far(_)));
    assert_eq!(rig.end(), Fate::Cut);
    assert_eq!((rig.seen().text(STDOUT).as_str(), rig.seen().outcome(Protocol::V4)), ("x", internal(WHY)));
}

#[test]
fn item_054_055_header_blocks_of_go_pass_byte_for_byte_and_name_the_error_stream() {
    let mut client = Vec::new();
    for (at, (_, len, _, zlib)) in GO_CLIENT.into_iter().rev().enumerate().rev() {
        let id = 9 - 2 * at;
        client.extend(hex(&format!("80030001 000000{len:02x} {id:08x} 00000000 0000 {zlib}")));
    }
    let mut far = Vec::new();
    for (at, (_, len, zlib)) in GO_SERVER.into_iter().enumerate() {
        far.extend(hex(&format!("80030002 000000{len:02x} {:08x} {zlib}", 2 * at + 1)));
    }
    far.extend(hex("00000003 01000000 80030006 00000004 00000001 80030003 00000008 00000003 00000005"));
    for cut in 0..far.len() {
        let mut rig = Rig::new(SpdyLink::command(Protocol::V4, Runs::Attach { tty: false }));
        rig.client(&client[..cut]).unwrap();
        rig.client(&client[cut..]).unwrap();
        assert_eq!(rig.to_far, client);
        rig.far(&far[..cut]).unwrap();
        rig.far(&far[cut..]).unwrap();
        assert_eq!(rig.to_client, far);
        rig.end();
        assert_eq!(rig.seen().outcome(Protocol::V4), internal(WHY));
    }
}

#[test]
fn pings_are_no_activity_and_data_and_new_streams_are() {
    let mut rig = Rig::command(Protocol::V4);
    assert!(mem::take(&mut rig.out.active), "streams were opened");
    let idle = encode(&[Frame::Ping { id: 1 }, Frame::Settings, Frame::WindowUpdate { id: 0, delta: 1 }]);
    rig.client(&idle).unwrap();
    rig.far(&idle).unwrap();
    assert!(!rig.out.active);
    rig.client_says(&[data(STDIN, "x")]);
    assert!(mem::take(&mut rig.out.active));
    rig.far_says(&[data(STDOUT, "x")]);
    assert!(rig.out.active);
}

/// A client's stream of a port-forward.
fn half(id: u32, half: Half) -> Frame {
    syn(id, half.headers(80, u64::from(id / 4)))
}

/// A port-forward with connections whose error and data streams have the ids 1 and 3, 5 and 7 and so on.
fn forward(connections: u32) -> Rig {
    let ids = || (0..connections).map(|at| 4 * at + 1);
    let opened = ids().flat_map(|id| [half(id, Half::Error), fin(id), half(id + 2, Half::Data)]);
    let mut rig = Rig::new(SpdyLink::port_forward());
    rig.client_says(&opened.collect::<Vec<_>>());
    rig.far_says(&ids().flat_map(|id| [reply(id), reply(id + 2)]).collect::<Vec<_>>());
    rig
}

#[test]
fn a_cut_port_forward_is_told_on_each_error_stream_that_is_open() {
    let mut rig = forward(4);
    // The first connection is over, the second was reset, the third has lost its error stream alone.
    rig.far_says(&[fin(1), data(3, "bye"), fin(3), reset(5), reset(7), fin(9)]);
    rig.client_says(&[fin(3), half(17, Half::Error)]);
    let before = rig.to_client.len();
    assert_eq!(rig.end(), Fate::Cut);
    let expected = encode(&[
        Frame::Data { stream: 13, bytes: WHY.into(), fin: true },
        reset(17),
        Frame::GoAway { last_good: 15, status: GOAWAY_OK },
    ]);
    assert_eq!(rig.to_client[before..], expected);
}

#[test]
fn a_port_forward_without_connections_is_whole_however_it_ends() {
    let mut rig = forward(2);
    rig.far_says(&[fin(1), fin(3), reset(5), reset(7)]);
    rig.client_says(&[fin(3)]);
    let before = rig.to_client.len();
    assert_eq!(rig.end(), Fate::Whole);
    assert_eq!(rig.to_client[before..], encode(&[Frame::GoAway { last_good: 7, status: GOAWAY_OK }]));
}

#[test]
fn an_orderly_goaway_is_the_end_of_a_port_forward_and_any_other_is_told() {
    for (status, fate) in [(GOAWAY_OK, ""), (2, LEFT)] {
        let mut rig = forward(1);
        rig.far_says(&[Frame::GoAway { last_good: 3, status }]);
        assert_eq!(rig.seen().text(1), fate);
        let before = rig.to_client.len();
        assert_eq!(rig.end(), Fate::Cut, "a connection was open");
        assert_eq!(rig.to_client.len(), before, "after a GOAWAY nothing counts");
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut rig = Rig::new(SpdyLink::port_forward());
    for at in 0..20_000 {
        let (error, id) = (4 * at + 1, 4 * at + 3);
        let mut opened = vec![half(error, Half::Error), fin(error), half(id, Half::Data)];
        // Ended in all the ways there are.
        let (by_client, by_far) = match at % 4 {
            0 => (vec![fin(id)], vec![fin(error), fin(id)]),
            1 => (vec![], vec![data(error, "no"), reset(error), reset(id)]),
            2 => (vec![reset(error), reset(id)], vec![]),
            _ => (vec![data(id, "x"), fin(id)], vec![reset(error), data(id, "y"), fin(id)]),
        };
        opened.extend(by_client);
        rig.client_says(&opened);
        rig.far_says(&[vec![reply(error), reply(id)], by_far].concat());
    }
    let before = rig.to_client.len();
    assert_eq!(rig.end(), Fate::Whole);
    assert_eq!(rig.to_client.len() - before, 16, "a GOAWAY and no text");
}

#[test]
fn more_streams_than_the_limit_are_refused() {
    let mut rig = forward(MAX_STREAMS as u32 / 2);
    let next = 2 * MAX_STREAMS as u32 + 1;
    // Neither of a type that a server would take, nor one that is not there yet.
    rig.client_says(&[syn(next, Headers::new()), half(3, Half::Data)]);
    let one_more = encode_with(&mut rig.client_encoder, &[half(next + 2, Half::Data)]);
    let fault = rig.client(&one_more).unwrap_err();
    assert_eq!(fault.to_string().rsplit(": ").next(), Some("more than 4096 streams at once"));
    let seen = rig.seen();
    assert_eq!((seen.text(1), seen.goaway), (fault.to_string(), Some(GOAWAY_PROTOCOL_ERROR)));
}

#[test]
fn a_flood_of_small_frames_passes_and_leaves_nothing_behind() {
    let mut flood = BytesMut::new();
    for at in 0..50_000 {
        Encoder::ping(&mut flood, 2 * at + 1);
        Encoder::rst_stream(&mut flood, 100 + at, RstStatus::CANCEL);
        flood.extend_from_slice(&hex("80030004 0000000c 00000001 01000004 00000064"));
    }
    for mut rig in [forward(0), Rig::command(Protocol::V4)] {
        let before = rig.to_far.len();
        rig.client(&flood).unwrap();
        rig.far(&flood).unwrap();
        assert_eq!((&rig.to_far[before..], &rig.to_client[..]), (&flood[..], &flood[..]));
    }
}

/// The data of each stream, and whether it has ended.
pub(in crate::wire::link) fn by_stream(frames: Vec<Frame>) -> BTreeMap<u32, (Vec<u8>, bool)> {
    let mut streams: BTreeMap<u32, (Vec<u8>, bool)> = BTreeMap::new();
    for frame in frames {
        if let Frame::Data { stream, bytes, fin } = frame {
            let stream = streams.entry(stream).or_default();
            stream.0.extend_from_slice(&bytes);
            stream.1 |= fin;
        }
    }
    streams
}

/// Frames that any session may have, in any order.
pub(in crate::wire::link) fn any_frames() -> impl Strategy<Value = Vec<u8>> {
    let id = || 1..12u32;
    let frame = prop_oneof![
        4 => (id(), proptest::collection::vec(any::<u8>(), 0..500), any::<bool>())
            .prop_map(|(stream, bytes, fin)| Frame::Data { stream, bytes: bytes.into(), fin }),
        1 => id().prop_map(|id| half(id, if id % 4 == 1 { Half::Error } else { Half::Data })),
        1 => (0..4usize).prop_map(|at| {
            syn(2 * at as u32 + 1, Headers::new().with(StreamType::HEADER, StreamType::ALL[at].name()))
        }),
        1 => id().prop_map(reply),
        1 => id().prop_map(reset),
        1 => Just(Frame::Ping { id: 1 }),
    ];
    proptest::collection::vec(frame, 0..30).prop_map(|frames| encode(&frames))
}

/// Cuts bytes into parts of these lengths, over and over.
pub(in crate::wire::link) fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut lens = cuts.iter().cycle();
    let mut rest = bytes;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (part, behind) = rest.split_at(rest.len().min(*lens.next().unwrap()));
        parts.push(part);
        rest = behind;
    }
    parts
}

proptest! {
    #[test]
    fn both_directions_pass_what_came_whatever_the_cuts(
        client in any_frames(),
        far in any_frames(),
        client_cuts in proptest::collection::vec(1..300usize, 1..10),
        far_cuts in proptest::collection::vec(1..300usize, 1..10),
    ) {
        // Before v4 nothing is put between frames but before a GOAWAY.
        for link in [SpdyLink::port_forward(), SpdyLink::command(Protocol::V3, Runs::Attach { tty: false })] {
            let mut rig = Rig::new(link);
            let mut clients = cut(&client, &client_cuts).into_iter();
            let mut fars = cut(&far, &far_cuts).into_iter();
            loop {
                let (client, far) = (clients.next(), fars.next());
                if client.is_none() && far.is_none() {
                    break;
                }
                rig.client(client.unwrap_or_default()).unwrap();
                rig.far(far.unwrap_or_default()).unwrap();
            }
            prop_assert!(rig.client_input.is_empty() && rig.far_input.is_empty());
            prop_assert_eq!(by_stream(frames(&rig.to_far)), by_stream(frames(&client)));
            prop_assert_eq!(by_stream(frames(&rig.to_client)), by_stream(frames(&far)));
            let others = |bytes: &[u8]| {
                let mut frames = frames(bytes);
                frames.retain(|frame| !matches!(frame, Frame::Data { .. }));
                frames
            };
            prop_assert_eq!(others(&rig.to_far), others(&client));
            prop_assert_eq!(others(&rig.to_client), others(&far));
        }
    }

    #[test]
    fn an_end_at_any_time_is_at_a_frames_edge_and_never_a_success_without_a_result(
        client in any_frames(),
        far in any_frames(),
        cuts in proptest::collection::vec(1..300usize, 1..10),
        at in any::<prop::sample::Index>(),
    ) {
        let mut rig = Rig::command(Protocol::V4);
        rig.far_says(&[reply(ERROR)]);
        // Header blocks of a second beginning cannot be read: those frames are for a client without any.
        let client: Vec<Frame> = frames(&client)
            .into_iter()
            .filter(|frame| !matches!(frame, Frame::SynStream { .. } | Frame::SynReply { .. }))
            .filter(|frame| !matches!(frame, Frame::RstStream { id: ERROR, .. }))
            .collect();
        let far: Vec<Frame> = frames(&far)
            .into_iter()
            .filter(|frame| !matches!(frame, Frame::SynStream { .. } | Frame::SynReply { .. }))
            .filter(|frame| !matches!(frame, Frame::Data { stream: ERROR, bytes, .. } if !bytes.is_empty()))
            .collect();
        let far = encode(&far);
        let far = &far[..at.index(far.len() + 1)];
        rig.client_says(&client);
        for part in cut(far, &cuts) {
            rig.far(part).unwrap();
        }
        prop_assert_eq!(rig.end(), Fate::Cut);
        let sent = frames(&rig.to_client);
        let text = &by_stream(sent)[&ERROR].0;
        let outcome = Outcome::parse(Protocol::V4, text).unwrap();
        prop_assert!(outcome == internal(WHY) || outcome == internal(LEFT), "{:?}", outcome);
    }
}
