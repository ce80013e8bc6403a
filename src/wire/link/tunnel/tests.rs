//! Tests of the tunnel. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::link::spdy::tests::{Seen, any_frames, by_stream, cut, frames};
use crate::wire::portforward::Half;
use crate::wire::spdy;
use crate::wire::spdy::tests::hex;
use crate::wire::spdy::{Frame, Headers, RstStatus};
use crate::wire::tape::Taped;
use crate::wire::ws::{Kind, MaskKey};

const WHY: &str = "the node is gone";

const KEY: Option<MaskKey> = Some(MaskKey([1, 2, 3, 4]));

/// A tunnel, and what either peer was sent.
struct Rig {
    link: Tunnel,
    input: BytesMut,
    far_input: BytesMut,
    out: Out,
    /// WebSocket frames.
    to_client: BytesMut,
    /// SPDY.
    to_far: BytesMut,
}

impl Rig {
    fn new() -> Self {
        Self {
            link: Tunnel::new(),
            input: BytesMut::new(),
            far_input: BytesMut::new(),
            out: Out::default(),
            to_client: BytesMut::new(),
            to_far: BytesMut::new(),
        }
    }

    /// Leaves what it queues in `out`.
    fn client(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.input.extend_from_slice(bytes);
        self.link.client(&mut self.input, &mut self.out)
    }

    fn far(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.far_input.extend_from_slice(bytes);
        self.link.far(&mut self.far_input, &mut self.out)
    }

    fn drain(&mut self) {
        for (queue, to) in
            [(&mut self.out.client, &mut self.to_client), (&mut self.out.far, &mut self.to_far)]
        {
            to.extend_from_slice(&queue.copy_to_bytes(queue.len()));
        }
        self.link.drained(&mut self.out);
    }

    /// What the client was sent so far: the SPDY bytes in its messages, and the other events.
    fn seen(&mut self) -> (Vec<u8>, Vec<Event>) {
        self.drain();
        self.drain();
        let mut decoder = Decoder::new(Role::Client, Limits { message: MAX_PAYLOAD as u64, utf8: true });
        let mut input = self.to_client.clone();
        let (mut spdy, mut others) = (Vec::new(), Vec::new());
        while let Some(event) = decoder.decode(&mut input).unwrap() {
            match event {
                Event::Data(data) => {
                    assert!(data.kind == Kind::Binary && data.start && data.end, "a frame is a message");
                    spdy.extend_from_slice(&data.bytes);
                }
                other => others.push(other),
            }
        }
        assert!(input.is_empty());
        (spdy, others)
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    Encoder::message(&mut out, Kind::Binary, payload, KEY);
    out.to_vec()
}

fn ping(payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    Encoder::ping(&mut out, payload, KEY);
    out.to_vec()
}

fn closing(close: Option<Close>) -> Vec<u8> {
    let mut out = BytesMut::new();
    Encoder::close(&mut out, close.as_ref(), KEY);
    out.to_vec()
}

fn spdy_ping(id: u32) -> Vec<u8> {
    let mut out = BytesMut::new();
    spdy::Encoder::ping(&mut out, id);
    out.to_vec()
}

/// A rig with one open connection, whose error stream is 1 and whose data stream is 3.
fn forward() -> Rig {
    let (mut client, mut far) = (BytesMut::new(), BytesMut::new());
    let (mut opens, mut replies) = (spdy::Encoder::new(), spdy::Encoder::new());
    for (id, half) in [(1, Half::Error), (3, Half::Data)] {
        opens.syn_stream(&mut client, id, &half.headers(80, 0)).unwrap();
        replies.syn_reply(&mut far, id);
    }
    let mut rig = Rig::new();
    rig.client(&message(&client)).unwrap();
    rig.far(&far).unwrap();
    rig.drain();
    assert_eq!(rig.to_far, client);
    rig
}

fn close(code: CloseCode) -> Vec<Event> {
    vec![Event::Close(Some(code.into()))]
}

#[test]
fn item_100_a_read_of_any_size_is_messages_of_32_kib_without_a_copy() {
    let mut rig = Rig::new();
    let mut frame = spdy::Encoder::data_head(3, 100_000, false).to_vec();
    frame.extend((0..100_000u32).map(|at| at as u8));
    let mut input = BytesMut::from(&frame[..50_000]);
    let read = input.as_ptr_range();
    rig.link.far(&mut input, &mut rig.out).unwrap();
    let mut copied = 0;
    while !rig.out.client.is_empty() {
        let chunk = rig.out.client.chunk().len();
        let bytes = rig.out.client.copy_to_bytes(chunk);
        if !read.contains(&bytes.as_ptr()) {
            copied += bytes.len();
        }
        rig.to_client.extend_from_slice(&bytes);
    }
    assert_eq!(copied, 2 * 4, "two heads");
    rig.far(&frame[50_000..]).unwrap();
    let (bytes, _) = rig.seen();
    let data = by_stream(frames(&bytes));
    assert_eq!(data[&3].0, frame[8..]);
}

#[test]
fn a_cut_tunnel_is_told_on_its_error_streams_and_closed_with_1011() {
    let mut rig = forward();
    // Half a frame of data has come.
    rig.far(&hex("00000003 00000010 6869")).unwrap();
    assert_eq!(rig.link.end(WHY, &mut rig.out), Fate::Cut);
    let (bytes, others) = rig.seen();
    let seen = Seen::read(&bytes);
    assert_eq!((seen.text(3).as_str(), seen.text(1).as_str()), ("hi", WHY));
    assert_eq!(others, close(CloseCode::INTERNAL_ERROR));
    assert!(rig.link.is_over());
}

#[test]
fn a_tunnel_without_connections_is_closed_with_1000() {
    let mut rig = forward();
    let mut resets = BytesMut::new();
    for id in [1, 3] {
        spdy::Encoder::rst_stream(&mut resets, id, RstStatus::CANCEL);
    }
    spdy::Encoder::goaway(&mut resets, 3);
    rig.far(&resets).unwrap();
    assert_eq!(rig.link.end(WHY, &mut rig.out), Fate::Whole);
    let (bytes, others) = rig.seen();
    assert!(bytes.ends_with(&resets), "nothing behind the GOAWAY");
    assert_eq!(others, close(CloseCode::NORMAL));
}

#[test]
fn a_close_is_answered_with_its_code_and_nothing_counts_after_it() {
    let going = Close { code: CloseCode::GOING_AWAY, reason: "the page was left".to_owned() };
    for (sent, answer) in [(Some(going), Some(CloseCode::GOING_AWAY)), (None, None)] {
        let mut rig = forward();
        let before = rig.to_far.len();
        let bytes = [message(&spdy_ping(1)), ping(b"a"), closing(sent), message(&spdy_ping(3))].concat();
        assert!(!rig.link.is_over());
        rig.client(&bytes).unwrap();
        assert!(rig.link.is_over());
        rig.client(&message(&spdy_ping(5))).unwrap();
        rig.far(&spdy_ping(2)).unwrap();
        assert_eq!(rig.link.end(WHY, &mut rig.out), Fate::Whole);
        rig.link.leave(&mut rig.out);
        let (bytes, others) = rig.seen();
        assert_eq!(others, [Event::Close(answer.map(Close::from))]);
        assert!(!frames(&bytes).contains(&Frame::Ping { id: 2 }));
        assert_eq!(rig.to_far[before..], spdy_ping(1), "what came before the Close still counts");
        assert!(rig.input.is_empty() && rig.far_input.is_empty());
    }
}

#[test]
fn what_is_no_tunnel_is_closed_with_its_code() {
    let mut text = BytesMut::new();
    Encoder::message(&mut text, Kind::Text, b"hi", KEY);
    let cases = [
        (text.to_vec(), CloseCode::UNSUPPORTED, "unexpected text message in a tunnel"),
        (hex("8200"), CloseCode::PROTOCOL_ERROR, "WebSocket frame of a client is not masked"),
        (hex("82ff 0000000002000001"), CloseCode::TOO_LARGE, "WebSocket message is over 33554432 bytes"),
        (
            message(&hex("800300ff 00000000")),
            CloseCode::PROTOCOL_ERROR,
            "unknown SPDY control frame type 255",
        ),
    ];
    for (bad, code, why) in cases {
        let mut rig = forward();
        let before = rig.to_far.len();
        let mut bad = [&message(&spdy_ping(1))[..], &bad].concat();
        bad.resize(bad.len() + 4, 0);
        let fault = rig.client(&bad).unwrap_err();
        assert!(matches!(&fault, Fault::Client(text) if text == why), "{fault}");
        let (bytes, others) = rig.seen();
        assert_eq!(others, close(code), "{why}");
        assert_eq!(rig.to_far[before..], spdy_ping(1), "what came before is passed on");
        let goaway = matches!(frames(&bytes).last(), Some(Frame::GoAway { status: 1, .. }));
        assert_eq!(goaway, why.contains("SPDY"));
    }
}

#[test]
fn pings_are_answered_and_a_flood_of_them_costs_a_client_that_reads_nothing_one_pong() {
    let mut rig = forward();
    rig.client(&[ping(b"a"), ping(b"b")].concat()).unwrap();
    assert_eq!(rig.seen().1, [Event::Pong("b".into())], "the last one is enough");

    let mut rig = forward();
    let mut data = spdy::Encoder::data_head(3, 2 * PONG_BEHIND, false).to_vec();
    data.resize(data.len() + 2 * PONG_BEHIND, b'x');
    rig.far(&data).unwrap();
    rig.out.active = false;
    let queued = rig.out.client.len();
    for at in 0..10_000u32 {
        rig.client(&ping(&at.to_be_bytes())).unwrap();
        assert_eq!(rig.out.client.len(), queued);
    }
    rig.link.drained(&mut rig.out);
    assert_eq!(rig.out.client.len(), queued, "it was the other queue");
    assert_eq!(rig.seen().1, [Event::Pong(Bytes::copy_from_slice(&9_999u32.to_be_bytes()))]);
    assert!(!rig.out.active);
}

#[test]
fn a_flood_of_spdy_frames_and_empty_messages_passes_and_stays_under_its_bound() {
    let mut rig = forward();
    let flood = message(&(0..1000).flat_map(|at| spdy_ping(2 * at + 1)).collect::<Vec<_>>());
    let empty = message(b"").repeat(1000);
    for _ in 0..100 {
        rig.client(&flood).unwrap();
        rig.client(&empty).unwrap();
        assert!(rig.input.is_empty() && rig.link.input.is_empty());
        assert_eq!((rig.out.far.len(), rig.out.client.len()), (12_000, 0));
        rig.drain();
    }
}

#[test]
fn connections_in_a_tunnel_are_told_as_those_outside() {
    let mut rig = Rig::new();
    rig.out.tap.record();
    let mut bytes = BytesMut::new();
    let mut encoder = spdy::Encoder::new();
    for (id, half) in [(1, Half::Error), (3, Half::Data)] {
        encoder.syn_stream(&mut bytes, id, &half.headers(80, 0)).unwrap();
    }
    rig.client(&message(&bytes)).unwrap();
    let (mut replies, mut encoder) = (BytesMut::new(), spdy::Encoder::new());
    [1, 3].into_iter().for_each(|id| encoder.syn_reply(&mut replies, id));
    rig.far(&replies).unwrap();
    let data = [&spdy::Encoder::data_head(3, 2, false)[..], b"up"].concat();
    rig.client(&message(&data[..9])).unwrap();
    rig.client(&message(&data[9..])).unwrap();
    rig.far(&[&spdy::Encoder::data_head(3, 4, false)[..], b"down"].concat()).unwrap();
    assert_eq!(rig.link.end(WHY, &mut rig.out), Fate::Cut);
    rig.out.tap.end();
    let mut taped = Taped::default();
    taped.read(rig.out.tap.tape().unwrap().take().pieces());
    let last = taped.connections.last().unwrap();
    assert_eq!((last.port, last.up, last.down, last.error.as_str()), (80, 2, 4, WHY));
    assert!(rig.link.inner.tap.tape().is_none(), "there is one tape");
}

proptest! {
    #[test]
    fn both_directions_carry_each_stream_whatever_the_messages(
        client in any_frames(),
        far in any_frames(),
        messages in proptest::collection::vec((1..400usize, any::<bool>(), 0..4u8), 1..12),
        cuts in proptest::collection::vec(1..300usize, 1..10),
        key in any::<[u8; 4]>(),
    ) {
        // Fragments of any lengths, with control frames between them.
        let mut sent = BytesMut::new();
        let mut shapes = messages.iter().cycle();
        let lens: Vec<usize> = messages.iter().map(|(len, ..)| *len).collect();
        let parts = cut(&client, &lens);
        let mut continued = false;
        for (at, part) in parts.iter().enumerate() {
            let (_, fin, control) = *shapes.next().unwrap();
            let fin = fin || at + 1 == parts.len();
            let opcode = if continued { Opcode::Continuation } else { Opcode::Binary };
            Encoder::frame(&mut sent, opcode, fin, part, Some(MaskKey(key)));
            continued = !fin;
            match control {
                0 => Encoder::ping(&mut sent, b"ping", Some(MaskKey(key))),
                1 => Encoder::pong(&mut sent, b"", Some(MaskKey(key))),
                _ => {}
            }
        }

        let mut rig = Rig::new();
        let (mut clients, mut fars) = (cut(&sent, &cuts).into_iter(), cut(&far, &cuts).into_iter());
        loop {
            let (client, far) = (clients.next(), fars.next());
            if client.is_none() && far.is_none() {
                break;
            }
            rig.client(client.unwrap_or_default()).unwrap();
            rig.far(far.unwrap_or_default()).unwrap();
            rig.drain();
        }
        let (bytes, others) = rig.seen();
        prop_assert!(rig.input.is_empty() && rig.far_input.is_empty() && rig.link.input.is_empty());
        prop_assert_eq!(by_stream(frames(&rig.to_far)), by_stream(frames(&client)));
        prop_assert_eq!(by_stream(frames(&bytes)), by_stream(frames(&far)));
        prop_assert!(others.iter().all(|event| *event == Event::Pong("ping".into())));
    }

    #[test]
    fn garbage_never_panics_and_ends_with_a_close(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
        wrapped in any::<bool>(),
    ) {
        let mut rig = forward();
        for part in parts {
            let part = if wrapped { message(&part) } else { part };
            if rig.client(&part).is_err() {
                prop_assert!(matches!(rig.seen().1.last(), Some(Event::Close(_))));
                break;
            }
        }
    }

    #[test]
    fn every_end_of_a_tunnel_is_at_a_frames_edge_and_told(
        payload in proptest::collection::vec(any::<u8>(), 0..600),
        at in any::<prop::sample::Index>(),
    ) {
        let mut bytes = BytesMut::new();
        let data = Frame::Data { stream: 3, bytes: payload.clone().into(), fin: false };
        let frame = Frame::Headers { id: 3, fin: false, headers: Headers::new() };
        spdy::Encoder::new().encode(&mut bytes, &data).unwrap();
        let head = bytes.len() - payload.len();
        spdy::Encoder::new().encode(&mut bytes, &frame).unwrap();
        let at = at.index(bytes.len());
        let mut rig = forward();
        rig.far(&bytes[..at]).unwrap();
        prop_assert_eq!(rig.link.end(WHY, &mut rig.out), Fate::Cut);
        let (bytes, others) = rig.seen();
        let streams = by_stream(frames(&bytes));
        let arrived = at.saturating_sub(head).min(payload.len());
        prop_assert_eq!(streams.get(&3).map_or(&[][..], |(data, _)| data), &payload[..arrived]);
        prop_assert_eq!(&streams[&1], &(WHY.as_bytes().to_vec(), true));
        prop_assert_eq!(others, close(CloseCode::INTERNAL_ERROR));
    }
}
