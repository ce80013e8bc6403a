//! Tests of the channel messages. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use crate::wire::remotecommand::{Resize, ResizeDecoder, TerminalSize};
use proptest::prelude::*;

const ALL: [Subprotocol; 6] = [
    Subprotocol::Unnamed,
    Subprotocol::Channel,
    Subprotocol::Base64,
    Subprotocol::V4,
    Subprotocol::V4Base64,
    Subprotocol::V5,
];

const KEY: MaskKey = MaskKey([1, 2, 3, 4]);

fn asked(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Asked {
    Asked { stdin, stdout, stderr, tty }
}

fn terminal(subprotocol: Subprotocol) -> Decoder {
    Decoder::server(subprotocol, asked(true, true, false, true))
}

/// A message in pieces of these lengths; the rest is the last.
fn pieces(kind: Kind, mut message: &[u8], lengths: &[usize]) -> Vec<Data> {
    let mut pieces = Vec::new();
    for len in lengths {
        if *len < message.len() {
            let (piece, rest) = message.split_at(*len);
            let bytes = Bytes::copy_from_slice(piece);
            pieces.push(Data { kind, bytes, start: pieces.is_empty(), end: false });
            message = rest;
        }
    }
    let bytes = Bytes::copy_from_slice(message);
    pieces.push(Data { kind, bytes, start: pieces.is_empty(), end: true });
    pieces
}

/// What a decoder makes of one whole message.
fn whole(decoder: &mut Decoder, message: &[u8]) -> Result<Option<Event>, Error> {
    let [data] = pieces(Kind::Binary, message, &[]).try_into().unwrap();
    decoder.decode(data)
}

fn data(stream: StreamType, bytes: &[u8]) -> Event {
    Event::Data { stream, bytes: Bytes::copy_from_slice(bytes) }
}

/// The frames that were written, without their heads.
fn messages(role: ws::Role, out: &[u8]) -> Vec<Data> {
    let mut decoder = ws::Decoder::new(role, ws::Limits::default());
    let mut input = BytesMut::from(out);
    let mut messages = Vec::new();
    while let Some(event) = decoder.decode(&mut input).unwrap() {
        let ws::Event::Data(data) = event else { panic!() };
        assert!(data.start && data.end, "frames of ours are not fragmented");
        messages.push(data);
    }
    assert!(input.is_empty());
    messages
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<Data> {
    let mut out = BytesMut::new();
    write(&mut out);
    messages(ws::Role::Client, &out)
}

/// All bytes of each stream, in one order or another.
fn streams(events: impl IntoIterator<Item = Event>) -> Vec<(StreamType, Vec<u8>)> {
    let mut streams: Vec<_> = StreamType::ALL.into_iter().map(|stream| (stream, Vec::new())).collect();
    for event in events {
        let Event::Data { stream, bytes } = event else { panic!() };
        assert!(!bytes.is_empty());
        streams.iter_mut().find(|(have, _)| *have == stream).unwrap().1.extend(bytes);
    }
    streams
}

#[test]
fn item_075_subprotocols_have_the_names_versions_and_encodings_of_kubernetes() {
    use Encoding::*;
    let table = ALL.map(|subprotocol| {
        assert_eq!(Subprotocol::from_name(subprotocol.name()), Some(subprotocol));
        let status = subprotocol.version().writes_status();
        (subprotocol.name(), subprotocol.encoding(), status, subprotocol.version().supports_close())
    });
    let expected = [
        ("", Binary, false, false),
        ("channel.k8s.io", Binary, false, false),
        ("base64.channel.k8s.io", Base64, false, false),
        ("v4.channel.k8s.io", Binary, true, false),
        ("v4.base64.channel.k8s.io", Base64, true, false),
        ("v5.channel.k8s.io", Binary, true, true),
    ];
    assert_eq!(table, expected);
    for name in ["v2.channel.k8s.io", "v3.channel.k8s.io", "V4.channel.k8s.io", "v5.base64.channel.k8s.io"] {
        assert_eq!(Subprotocol::from_name(name), None);
    }
    let runtime = Subprotocol::RUNTIME.map(Subprotocol::name);
    assert_eq!(handshake::choose(&["v5.channel.k8s.io", "v4.channel.k8s.io"], &runtime), Some(runtime[3]));
}

#[test]
fn item_090_v5_anywhere_in_the_first_line_wants_the_translator() {
    assert!(wants_translator("v5.channel.k8s.io"));
    assert!(wants_translator("v4.channel.k8s.io,\t v5.channel.k8s.io "));
    for line in ["", "v4.channel.k8s.io", "v5.channel.k8s.iox", "v5.channel.k8s.io x", "V5.channel.k8s.io"] {
        assert!(!wants_translator(line), "{line:?}");
    }
}

#[test]
fn item_078_the_first_message_is_one_byte_on_the_lowest_writable_channel() {
    for (asked, byte) in [
        (asked(true, true, true, false), 1),
        (asked(true, true, false, true), 1),
        (asked(false, false, true, false), 2),
        (asked(false, false, true, true), 3),
        (asked(true, false, false, false), 3),
    ] {
        let first = written(|out| Encoder::new(Subprotocol::V5).first(out, asked));
        assert_eq!(first, pieces(Kind::Binary, &[byte], &[]));
        let first = written(|out| Encoder::new(Subprotocol::V4Base64).first(out, asked));
        assert_eq!(first, pieces(Kind::Text, &[b'0' + byte], &[]));
        let mut client = Decoder::client(Subprotocol::V5, asked);
        assert_eq!(whole(&mut client, &[byte]), Ok(None), "it says nothing");
    }
}

#[test]
fn item_079_messages_to_other_channels_and_empty_ones_are_ignored() {
    for subprotocol in ALL {
        let mut decoder = terminal(subprotocol);
        assert_eq!(whole(&mut decoder, b""), Ok(None));
        let base = if subprotocol.encoding() == Encoding::Base64 { b'0' } else { 0 };
        for channel in (0..=254).filter(|channel| ![0, 4].contains(channel)) {
            assert_eq!(whole(&mut decoder, &[base.wrapping_add(channel), b'e', b'A', b'=', b'=']), Ok(None));
        }
        for channel in [0, 4] {
            assert_eq!(whole(&mut decoder, &[base + channel]), Ok(None));
        }
        let stdin = if base == 0 { &b"\x00x"[..] } else { b"0eA==" };
        assert_eq!(whole(&mut decoder, stdin), Ok(Some(data(StreamType::Stdin, b"x"))));
    }
}

#[test]
fn what_was_not_asked_for_is_dropped() {
    let mut decoder = Decoder::server(Subprotocol::V4, asked(false, true, true, false));
    assert_eq!(whole(&mut decoder, b"\x00x"), Ok(None));
    assert_eq!(whole(&mut decoder, b"\x04{}"), Ok(None), "nobody resizes without a terminal");
    let mut decoder = Decoder::client(Subprotocol::V4, asked(true, false, true, true));
    for dropped in [&b"\x00x"[..], b"\x01x", b"\x02x", b"\x04x", b"\x05x", b"\xff\x00"] {
        assert_eq!(whole(&mut decoder, dropped), Ok(None));
    }
    assert_eq!(whole(&mut decoder, b"\x03x"), Ok(Some(data(StreamType::Error, b"x"))));
}

#[test]
fn item_080_close_of_stdin_is_its_end_and_nothing_else() {
    let mut decoder = terminal(Subprotocol::V5);
    assert_eq!(whole(&mut decoder, b"\x00x"), Ok(Some(data(StreamType::Stdin, b"x"))));
    assert_eq!(whole(&mut decoder, b"\xff\x00"), Ok(Some(Event::Closed(StreamType::Stdin))));
    assert_eq!(whole(&mut decoder, b"\x00y"), Ok(None), "nothing comes after the end");
    assert_eq!(whole(&mut decoder, b"\xff\x00"), Ok(None), "the end comes once");
    assert_eq!(whole(&mut decoder, b"\xff\x01"), Ok(None), "a client has no stdout to close");
    assert_eq!(whole(&mut decoder, b"\x04{}"), Ok(Some(data(StreamType::Resize, b"{}"))));
    assert_eq!(whole(&mut decoder, b"\xff\x04"), Ok(Some(Event::Closed(StreamType::Resize))));
}

#[test]
fn item_080_close_of_any_other_form_ends_the_session() {
    for (message, error) in [
        (&b"\xff"[..], Error::CloseSize),
        (b"\xff\x00\x00", Error::CloseSize),
        (b"\xff\x09", Error::CloseChannel(9)),
        (b"\xff\x05", Error::CloseChannel(5)),
        (b"\xff\xff", Error::CloseChannel(255)),
    ] {
        assert_eq!(whole(&mut terminal(Subprotocol::V5), message), Err(error));
        let mut decoder = terminal(Subprotocol::V5);
        let byte_for_byte = pieces(Kind::Binary, message, &[1, 1, 1]);
        let last = byte_for_byte.into_iter().map(|piece| decoder.decode(piece)).find(Result::is_err);
        assert_eq!(last, Some(Err(error)), "{message:?} byte for byte");
        assert_eq!(error.close_code(), CloseCode::PROTOCOL_ERROR);
    }
}

#[test]
fn item_080_close_may_come_in_pieces() {
    for lengths in [&[][..], &[1], &[1, 0], &[0, 1, 0]] {
        let mut decoder = terminal(Subprotocol::V5);
        let events = pieces(Kind::Binary, b"\xff\x00", lengths);
        let events: Vec<_> = events.into_iter().filter_map(|piece| decoder.decode(piece).unwrap()).collect();
        assert_eq!(events, [Event::Closed(StreamType::Stdin)], "{lengths:?}");
    }
    // Its bytes first, the end of the message in an empty fragment.
    let mut decoder = terminal(Subprotocol::V5);
    let piece =
        |bytes: &'static [u8], start, end| Data { kind: Kind::Binary, bytes: bytes.into(), start, end };
    assert_eq!(decoder.decode(piece(b"\xff\x00", true, false)), Ok(None));
    assert_eq!(decoder.decode(piece(b"", false, true)), Ok(Some(Event::Closed(StreamType::Stdin))));
    assert_eq!(whole(&mut decoder, b"\xff\x04"), Ok(Some(Event::Closed(StreamType::Resize))), "once more");
}

#[test]
fn item_081_close_of_an_older_client_is_channel_255_and_ignored() {
    for subprotocol in &ALL[..5] {
        let mut decoder = terminal(*subprotocol);
        for message in [&b"\xff\x00"[..], b"\xff", b"\xff\x09"] {
            assert_eq!(whole(&mut decoder, message), Ok(None));
        }
    }
}

#[test]
fn close_is_written_in_v5_only() {
    let mut out = BytesMut::new();
    for subprotocol in &ALL[..5] {
        assert!(!Encoder::new(*subprotocol).close(&mut out, StreamType::Stdin, Some(KEY)));
    }
    assert!(out.is_empty());
    assert!(Encoder::new(Subprotocol::V5).close(&mut out, StreamType::Stdin, Some(KEY)));
    assert_eq!(messages(ws::Role::Server, &out), pieces(Kind::Binary, b"\xff\x00", &[]));
}

#[test]
fn item_082_frames_are_whole_and_at_most_32_kib_and_a_byte() {
    let long = vec![b'x'; 100_000];
    for subprotocol in ALL {
        let encoder = Encoder::new(subprotocol);
        let frames = written(|out| {
            let mut rest = &long[..];
            while !rest.is_empty() {
                let len = encoder.message(out, StreamType::Stdout, rest, None);
                assert!(len == subprotocol.encoding().max_payload() || len == rest.len());
                rest = &rest[len..];
            }
        });
        assert!(frames.iter().all(|frame| frame.bytes.len() <= MAX_PAYLOAD + 1));
        assert_eq!(frames[0].bytes.len(), MAX_PAYLOAD + 1, "{} fills a frame", subprotocol.name());
        let mut decoder = Decoder::client(subprotocol, asked(true, true, true, false));
        let events = frames.into_iter().filter_map(|frame| decoder.decode(frame).unwrap());
        assert_eq!(streams(events)[2], (StreamType::Stdout, long.clone()));
    }
}

#[test]
fn item_082_a_head_for_vectored_writes_is_that_of_the_message() {
    for len in [0, 1, 124, 125, 126, MAX_PAYLOAD] {
        let payload = vec![7; len];
        let encoder = Encoder::new(Subprotocol::V5);
        let mut out = BytesMut::new();
        encoder.message(&mut out, StreamType::Stderr, &payload, None);
        assert_eq!([&encoder.head(StreamType::Stderr, len).unwrap()[..], &payload].concat(), out);
    }
    assert!(Encoder::new(Subprotocol::V5).head(StreamType::Stdout, MAX_PAYLOAD + 1).is_none());
    assert!(Encoder::new(Subprotocol::V4Base64).head(StreamType::Stdout, 1).is_none());
}

#[test]
fn base64_messages_are_text_whatever_the_channel() {
    let limits = ws::Limits { utf8: true, ..ws::Limits::default() };
    for channel in 0..=255 {
        let mut out = BytesMut::new();
        Encoding::Base64.message(&mut out, channel, b"foo", None);
        let event = ws::Decoder::new(ws::Role::Client, limits).decode(&mut out);
        assert!(matches!(event, Ok(Some(ws::Event::Data(data))) if data.bytes.ends_with(b"Zm9v")));
    }
}

#[test]
fn item_083_a_channel_is_read_once_for_each_message_wherever_it_is_cut() {
    // The second fragment begins with a byte that would be stderr's, were it taken for a channel.
    for cut in 0..4 {
        let mut decoder = Decoder::client(Subprotocol::V5, asked(true, true, true, false));
        let pieces = pieces(Kind::Binary, b"\x01\x02\x02x", &[cut]);
        let events: Vec<_> = pieces.into_iter().filter_map(|piece| decoder.decode(piece).unwrap()).collect();
        assert_eq!(streams(events)[2], (StreamType::Stdout, b"\x02\x02x".to_vec()));
    }
}

#[test]
fn bad_base64_drops_the_message_and_nothing_else() {
    for bad in [&b"0Zm9v!"[..], b"0Zm9vZg", b"0Zg==Zg==", b"0\xff", b"0Zm9v-_-_"] {
        for cut in 0..bad.len() {
            let mut decoder = terminal(Subprotocol::Base64);
            for piece in pieces(Kind::Text, bad, &[cut]) {
                assert_eq!(decoder.decode(piece), Ok(None), "{bad:?} cut at {cut}");
            }
            assert_eq!(whole(&mut decoder, b"0Zm9v"), Ok(Some(data(StreamType::Stdin, b"foo"))));
        }
    }
}

#[test]
fn a_long_base64_message_is_delivered_in_bounded_memory() {
    const PIECE: usize = 1000;
    let plain = vec![0xab; 10 * MAX_HELD];
    let mut coded = BytesMut::from(&b"0"[..]);
    base64::encode(&plain, &mut coded);
    let mut decoder = terminal(Subprotocol::V4Base64);
    let mut deliver = |coded: &[u8]| {
        let mut events = Vec::new();
        for piece in pieces(Kind::Text, coded, &vec![PIECE; coded.len() / PIECE]) {
            events.extend(decoder.decode(piece).unwrap());
            assert!(decoder.parts.held.capacity() <= 2 * (MAX_HELD + PIECE));
        }
        streams(events)[1].1.clone()
    };
    assert_eq!(deliver(&coded), plain);
    // Of a bad one the front has gone, the rest is dropped.
    *coded.last_mut().unwrap() = b'!';
    let front = deliver(&coded);
    assert!(front.len() >= 9 * MAX_HELD && plain.starts_with(&front));
}

#[test]
fn a_part_that_was_begun_is_ended_even_when_its_base64_goes_bad() {
    let mut parts = Parts::new(Encoding::Base64);
    let long = [&b"0"[..], &b"AAAA".repeat(MAX_HELD)].concat();
    let [mut first, last] =
        pieces(Kind::Text, &[&long[..], b"!"].concat(), &[long.len()]).try_into().unwrap();
    first.start = true;
    let begun = parts.push(first).unwrap();
    assert!(begun.start && !begun.end);
    assert_eq!(parts.push(last), Some(Part { channel: 0, bytes: Bytes::new(), start: false, end: true }));
}

#[test]
fn a_v5_client_takes_no_text_and_others_do() {
    for subprotocol in ALL {
        let [text] = pieces(Kind::Text, b"\x01x", &[]).try_into().unwrap();
        let client = Decoder::client(subprotocol, asked(false, true, false, false)).decode(text.clone());
        assert_eq!(client.is_err(), subprotocol == Subprotocol::V5);
        if let Err(error) = client {
            assert_eq!(error.to_string(), "unexpected message type: 1");
            assert_eq!(error.close_code(), CloseCode::UNSUPPORTED);
        }
        assert!(terminal(subprotocol).decode(text).is_ok(), "a server does not look");
    }
}

#[test]
fn item_085_resize_passes_unchanged_and_bad_json_ends_only_resizing() {
    let mut decoder = terminal(Subprotocol::V4);
    let mut sizes = ResizeDecoder::new();
    let mut resize = |message: &[u8]| {
        let event = whole(&mut decoder, message).unwrap().unwrap();
        let Event::Data { stream: StreamType::Resize, bytes } = event else { panic!() };
        assert_eq!(bytes, message[1..]);
        sizes.decode(&mut &bytes[..])
    };
    let size = TerminalSize { width: 80, height: 24 };
    assert_eq!(resize(b"\x04{\"Width\":80,"), Resize::More);
    assert_eq!(resize(b"\x04\"Height\":24}"), Resize::Size(size));
    assert_eq!(resize(b"\x04nonsense"), Resize::Ended);
    assert_eq!(whole(&mut decoder, b"\x00x"), Ok(Some(data(StreamType::Stdin, b"x"))));
    let mut out = BytesMut::new();
    Encoder::new(Subprotocol::V4).message(&mut out, StreamType::Resize, &size.to_bytes(), Some(KEY));
    let expected = b"\x04{\"Width\":80,\"Height\":24}\n";
    assert_eq!(messages(ws::Role::Server, &out), pieces(Kind::Binary, expected, &[]));
}

#[test]
fn item_086_results_are_status_on_channel_3() {
    for code in [0, 1, 255] {
        let outcome = Outcome::exit(code);
        let sent = written(|out| Encoder::new(Subprotocol::V5).result(out, &outcome));
        let status = outcome.to_bytes(Protocol::V5);
        assert_eq!(sent, pieces(Kind::Binary, &[b"\x03", &status[..]].concat(), &[]));
        let sent = written(|out| Encoder::new(Subprotocol::V4Base64).result(out, &outcome));
        let mut client = Decoder::client(Subprotocol::V4Base64, Asked::default());
        let event = client.decode(sent[0].clone());
        assert_eq!((sent[0].kind, event), (Kind::Text, Ok(Some(data(StreamType::Error, &status)))));
    }
}

#[test]
fn item_087_old_results_are_text_on_failure_and_nothing_on_success() {
    for subprotocol in [Subprotocol::Unnamed, Subprotocol::Channel, Subprotocol::Base64] {
        assert!(written(|out| Encoder::new(subprotocol).result(out, &Outcome::Success)).is_empty());
    }
    let sent = written(|out| Encoder::new(Subprotocol::Channel).result(out, &Outcome::exit(3)));
    let text = b"\x03command terminated with non-zero exit code: command terminated with exit code 3";
    assert_eq!(sent, pieces(Kind::Binary, text, &[]));
}

#[test]
fn a_result_over_the_frame_limit_goes_in_several_messages() {
    let outcome = Outcome::Other { message: "m".repeat(MAX_PAYLOAD) };
    let sent = written(|out| Encoder::new(Subprotocol::V5).result(out, &outcome));
    assert_eq!(sent.len(), 2);
    let mut client = Decoder::client(Subprotocol::V5, Asked::default());
    let events = sent.into_iter().filter_map(|message| client.decode(message).unwrap());
    let bytes = &streams(events)[0].1;
    assert_eq!(Outcome::parse(Protocol::V5, bytes).unwrap(), outcome);
}

#[test]
fn numbers_and_streams_are_the_same_both_ways() {
    for channel in 0..=255 {
        assert_eq!(from_number(channel).map(number), (channel < 5).then_some(channel));
    }
    assert_eq!(from_number(0), Some(StreamType::Stdin));
    assert_eq!(from_number(3), Some(StreamType::Error));
}

proptest! {
    #[test]
    fn bytes_of_each_channel_are_the_same_whatever_the_cuts(
        subprotocol in prop::sample::select(&ALL[..]),
        writes in prop::collection::vec((0..2usize, prop::collection::vec(any::<u8>(), 0..60)), 0..12),
        key in any::<[u8; 4]>(),
        fragment in 1..20usize,
        run in 1..30usize,
    ) {
        // A client writes, in frames cut up once more on the way as some libraries do.
        let encoder = Encoder::new(subprotocol);
        let key = MaskKey(key);
        let mut expected = streams([]);
        let mut wire = BytesMut::new();
        for (at, payload) in &writes {
            let stream = [StreamType::Stdin, StreamType::Resize][*at];
            expected.iter_mut().find(|(have, _)| *have == stream).unwrap().1.extend(payload);
            let mut plain = BytesMut::new();
            encoder.message(&mut plain, stream, payload, None);
            let [message] = messages(ws::Role::Client, &plain).try_into().unwrap();
            let mut opcode = ws::Opcode::from(message.kind);
            for part in message.bytes.chunks(fragment) {
                ws::Encoder::frame(&mut wire, opcode, false, part, Some(key));
                ws::Encoder::ping(&mut wire, b"between", Some(key));
                opcode = ws::Opcode::Continuation;
            }
            ws::Encoder::frame(&mut wire, opcode, true, b"", Some(key));
        }

        let mut frames = ws::Decoder::new(ws::Role::Server, ws::Limits::default());
        let mut decoder = terminal(subprotocol);
        let mut input = BytesMut::new();
        let mut events = Vec::new();
        for bytes in wire.chunks(run) {
            input.extend_from_slice(bytes);
            while let Some(event) = frames.decode(&mut input).unwrap() {
                if let ws::Event::Data(data) = event {
                    events.extend(decoder.decode(data).unwrap());
                }
            }
        }
        prop_assert_eq!(streams(events), expected);
    }

    #[test]
    fn random_messages_never_panic_and_cuts_change_nothing(
        subprotocol in prop::sample::select(&ALL[..]),
        sent in prop::collection::vec(
            (prop_oneof![0..6u8, b'0'..b'6', Just(255u8)], prop::collection::vec(any::<u8>(), 0..20)),
            0..8,
        ),
        lengths in prop::collection::vec(0..6usize, 0..6),
    ) {
        let run = |lengths: &[usize]| {
            let mut decoder = terminal(subprotocol);
            let mut events = Vec::new();
            let mut closed = Vec::new();
            for (channel, payload) in &sent {
                for piece in pieces(Kind::Binary, &[&[*channel], &payload[..]].concat(), lengths) {
                    match decoder.decode(piece) {
                        Ok(Some(Event::Closed(stream))) => closed.push(stream),
                        Ok(event) => events.extend(event),
                        Err(error) => return (streams(events), closed, Some(error)),
                    }
                }
            }
            (streams(events), closed, None)
        };
        prop_assert_eq!(run(&[]), run(&lengths));
    }
}
