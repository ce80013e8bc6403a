//! Tests of the pass-through. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use bytes::Buf;
use proptest::prelude::*;

use super::*;
use crate::wire::spdy::tests::{any_frame, hex, join_data, transcript};
use crate::wire::spdy::{Decoder, MAX_DATA_PAYLOAD};

/// A direction, and what came out of it.
struct Pass {
    relay: Relay,
    input: BytesMut,
    shown: Vec<Passing>,
    bytes: Vec<u8>,
}

impl Pass {
    fn new(relay: Relay) -> Self {
        Self { relay, input: BytesMut::new(), shown: Vec::new(), bytes: Vec::new() }
    }

    /// What comes in must come out, but for what is held, and end at a frame's edge.
    fn feed(&mut self, part: &[u8]) -> Result<(), Error> {
        let mut out = Queue::default();
        self.input.extend_from_slice(part);
        let passed = loop {
            match self.relay.next(&mut self.input, &mut out) {
                Ok(Some(passing)) => self.shown.push(passing),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.bytes.extend_from_slice(&out.copy_to_bytes(out.len()));
        assert!(self.input.len() <= MAX_HELD || passed.is_err());
        heads(&self.bytes);
        passed
    }
}

/// The frames of bytes that end with one: head, payload.
fn heads(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let head = bytes.get_u64();
        let (payload, rest) = bytes.split_at(head as usize & MAX_DATA_PAYLOAD);
        frames.push((head, payload));
        bytes = rest;
    }
    frames
}

fn controls(bytes: &[u8]) -> Vec<(u64, &[u8])> {
    heads(bytes).into_iter().filter(|(head, _)| head >> 63 == 1).collect()
}

fn decode(bytes: &[u8]) -> Vec<Frame> {
    let (mut decoder, mut input) = (Decoder::new(), BytesMut::from(bytes));
    let frames = std::iter::from_fn(|| decoder.decode(&mut input).unwrap()).collect();
    assert!(input.is_empty() && decoder.is_between_frames());
    join_data(frames)
}

/// What was shown, as frames whose payload is zeros.
fn shown(passing: &[Passing]) -> Vec<Frame> {
    let frame = |passing: &Passing| match passing {
        Passing::Data { stream, len, fin } => {
            Frame::Data { stream: *stream, bytes: vec![0; *len].into(), fin: *fin }
        }
        Passing::Control(frame) => frame.clone(),
    };
    join_data(passing.iter().map(frame).collect())
}

fn zeroed(frames: Vec<Frame>) -> Vec<Frame> {
    let zero = |frame| match frame {
        Frame::Data { stream, bytes, fin } => Frame::Data { stream, bytes: vec![0; bytes.len()].into(), fin },
        other => other,
    };
    frames.into_iter().map(zero).collect()
}

#[test]
fn frames_in_a_row_leave_as_one_slice_of_the_input_with_a_shorter_last_one() {
    // Too many to be copied.
    let long = [b'x'; 5000];
    let mut input = BytesMut::from(&hex("00000003 00001388")[..]);
    input.extend_from_slice(&long);
    input.extend_from_slice(&hex("80030006 00000004 00000001 00000005 01000003 6f6b"));
    let (at, len) = (input.as_ptr(), input.len());
    let (mut relay, mut out) = (Relay::new(), Queue::default());
    let mut shown = Vec::new();
    while let Some(passing) = relay.next(&mut input, &mut out).unwrap() {
        shown.push(passing);
    }
    assert_eq!(
        shown,
        [
            Passing::Data { stream: 3, len: 5000, fin: false },
            Passing::Control(Frame::Ping { id: 1 }),
            Passing::Data { stream: 5, len: 2, fin: false },
        ]
    );
    assert_eq!((out.chunk().as_ptr(), out.chunk().len()), (at, len));
    assert_eq!(out.chunk()[5020..], hex("00000005 00000002 6f6b"), "shorter, and without FIN");

    out.advance(len);
    input.extend_from_slice(&hex("21 00000007 00000004"));
    assert_eq!(
        relay.next(&mut input, &mut out).unwrap(),
        Some(Passing::Data { stream: 5, len: 1, fin: true })
    );
    assert_eq!(relay.next(&mut input, &mut out).unwrap(), None);
    assert_eq!(out.copy_to_bytes(out.len())[..], hex("00000005 01000001 21"));
    assert_eq!(input[..], hex("00000007 00000004"), "a head waits for its first byte");
}

#[test]
fn what_is_put_before_a_frame_leaves_between_it_and_the_one_before() {
    let parts = ["00000003 00000004 6869", "2121 00000003 00000001 78 80030006 00000004 00000001"].map(hex);
    for at in 0..5 {
        let (mut relay, mut out, mut input) = (Relay::new(), Queue::default(), BytesMut::new());
        let mut count = 0;
        for part in &parts {
            input.extend_from_slice(part);
            while relay.next(&mut input, &mut out).unwrap().is_some() {
                if count == at {
                    Encoder::ping(relay.before(&mut input, &mut out), 2);
                }
                count += 1;
            }
        }
        let mut pieces = vec![
            "00000003 00000002 6869",
            "00000003 00000002 2121",
            "00000003 00000001 78",
            "80030006 00000004 00000001",
        ];
        if at < 4 {
            pieces.insert(at, "80030006 00000004 00000002");
        }
        assert_eq!(count, 4);
        assert_eq!(out.copy_to_bytes(out.len())[..], hex(&pieces.concat()), "before piece {at}");
    }
}

#[test]
fn a_held_stream_leaves_in_whole_frames_up_to_the_limit() {
    for (len, held) in [(2, true), (MAX_CONTROL_PAYLOAD, true), (MAX_CONTROL_PAYLOAD + 1, false)] {
        let mut pass = Pass::new(Relay::new());
        pass.relay.hold(1);
        let mut frame = Encoder::data_head(1, len, true).to_vec();
        frame.resize(frame.len() + len, b'x');
        pass.feed(&frame[..frame.len() - 1]).unwrap();
        assert_eq!(pass.bytes.is_empty(), held, "{len}");
        pass.feed(&frame[frame.len() - 1..]).unwrap();
        assert_eq!(decode(&pass.bytes), decode(&frame));
        if held {
            assert_eq!(pass.bytes, frame);
        }
    }
}

#[test]
fn item_064_the_largest_data_frame_passes_in_the_pieces_it_came_in() {
    let mut pass = Pass::new(Relay::blind());
    pass.feed(&Encoder::data_head(5, MAX_DATA_PAYLOAD, true)).unwrap();
    let piece = vec![7; 32 * 1024];
    let mut sum = 0;
    while sum < MAX_DATA_PAYLOAD {
        let len = piece.len().min(MAX_DATA_PAYLOAD - sum);
        pass.feed(&piece[..len]).unwrap();
        sum += len;
        let last = sum == MAX_DATA_PAYLOAD;
        assert_eq!(pass.bytes[..HEAD], Encoder::data_head(5, len, last));
        assert_eq!(pass.bytes.len(), HEAD + len);
        pass.bytes.clear();
    }
    assert!(pass.input.is_empty());
}

#[test]
fn a_direction_that_is_not_read_passes_header_blocks_that_are_none() {
    let frame = hex("80030002 00000006 00000001 ffff");
    assert!(Pass::new(Relay::new()).feed(&frame).is_err());
    let mut pass = Pass::new(Relay::blind());
    pass.feed(&frame).unwrap();
    assert_eq!(pass.bytes, frame);
}

#[test]
fn what_came_before_an_error_leaves_and_nothing_after_it() {
    let mut pass = Pass::new(Relay::new());
    let good = hex("00000003 00000002 6869 80030006 00000004 00000001");
    for bad in ["80030006 01000004 00000001", "80030002 00000006 00000001 ffff", "800300ff 00000000"] {
        let mut pass = Pass::new(Relay::new());
        assert!(pass.feed(&[&good[..], &hex(bad), &good].concat()).is_err());
        assert!(matches!(pass.feed(&good), Err(Error::Failed)));
        assert_eq!(pass.bytes, good, "{bad}");
    }
    pass.feed(&good).unwrap();
    assert_eq!(pass.bytes, good);
}

#[test]
fn a_session_cut_at_any_byte_passes_whole() {
    let (frames, bytes) = transcript();
    for cut in 0..=bytes.len() {
        let mut pass = Pass::new(Relay::new());
        pass.feed(&bytes[..cut]).unwrap();
        pass.feed(&bytes[cut..]).unwrap();
        assert!(pass.input.is_empty());
        assert_eq!(decode(&pass.bytes), frames, "cut at {cut}");
        assert_eq!(controls(&pass.bytes), controls(&bytes), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn frames_pass_whatever_the_cuts(
        frames in proptest::collection::vec(any_frame(), 0..24),
        cuts in proptest::collection::vec(1..200usize, 1..20),
        held in 0..4u32,
        read in any::<bool>(),
    ) {
        let mut bytes = BytesMut::new();
        let mut encoder = Encoder::new();
        for frame in &frames {
            encoder.encode(&mut bytes, frame).unwrap();
        }
        let mut pass = Pass::new(if read { Relay::new() } else { Relay::blind() });
        pass.relay.hold(held);
        let mut cuts = cuts.into_iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            pass.feed(part).unwrap();
            rest = behind;
        }
        prop_assert!(pass.input.is_empty());
        prop_assert_eq!(controls(&pass.bytes), controls(&bytes));
        prop_assert_eq!(decode(&pass.bytes), join_data(frames.clone()));
        if read {
            prop_assert_eq!(shown(&pass.shown), zeroed(join_data(frames)));
        }
    }

    #[test]
    fn garbage_never_panics_and_never_piles_up(
        start in any::<[u8; 4]>(),
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..40),
    ) {
        for control in [0x00, 0x80] {
            let mut pass = Pass::new(Relay::new());
            let head = [control, 3, 0, start[0] % 10, 0, 0, start[1] % 8, start[2]];
            let mut fed = pass.feed(&head);
            for part in &parts {
                if fed.is_err() {
                    break;
                }
                fed = pass.feed(part);
            }
        }
    }
}
