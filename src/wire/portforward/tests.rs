//! Tests of the port-forward machines. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use crate::wire::{http1, ws};
use proptest::prelude::*;
use std::collections::HashSet;

fn stream(kind: &str, port: &str, request: Option<&str>) -> Headers {
    let headers = Headers::new().with(STREAM_TYPE_HEADER, kind).with(PORT_HEADER, port);
    match request {
        Some(request) => headers.with(REQUEST_ID_HEADER, request),
        None => headers,
    }
}

fn first(pairs: &mut Pairs, id: u32, headers: &Headers) -> Ticket {
    match pairs.accept(id, headers) {
        Ok(Arrival::First(ticket)) => ticket,
        other => panic!("{other:?}"),
    }
}

fn paired(pairs: &mut Pairs, id: u32, headers: &Headers) -> (u32, u32, u16) {
    match pairs.accept(id, headers) {
        Ok(Arrival::Paired(Pair { error, data, port, .. })) => (error, data, port),
        other => panic!("{other:?}"),
    }
}

fn piece(kind: Kind, bytes: &[u8], start: bool, end: bool) -> Data {
    Data { kind, bytes: Bytes::copy_from_slice(bytes), start, end }
}

fn whole(bytes: &[u8]) -> Data {
    piece(Kind::Binary, bytes, true, true)
}

/// The messages that were written.
fn messages(out: &[u8]) -> Vec<Data> {
    let mut decoder = ws::Decoder::new(ws::Role::Client, ws::Limits::default());
    let mut input = BytesMut::from(out);
    std::iter::from_fn(|| decoder.decode(&mut input).unwrap())
        .map(|event| match event {
            ws::Event::Data(data) => data,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn item_069_streams_pair_by_request_id_in_either_order_and_interleaved() {
    let mut pairs = Pairs::new();
    first(&mut pairs, 1, &Half::Error.headers(8080, 0));
    first(&mut pairs, 3, &Half::Error.headers(9090, 1));
    first(&mut pairs, 5, &Half::Data.headers(7070, 2));
    assert_eq!(paired(&mut pairs, 7, &Half::Data.headers(9090, 1)), (3, 7, 9090));
    assert_eq!(paired(&mut pairs, 9, &Half::Error.headers(7070, 2)), (9, 5, 7070));
    assert_eq!(paired(&mut pairs, 11, &Half::Data.headers(8080, 0)), (1, 11, 8080));
    assert_eq!(pairs.len(), 3, "all are open, none waits");
    (0..3).for_each(|_| pairs.close());
    assert!(pairs.is_empty());
    // A name is free again once its pair was given out.
    first(&mut pairs, 13, &Half::Error.headers(8080, 0));
}

#[test]
fn item_069_without_a_request_id_streams_pair_by_ids_two_apart() {
    let mut pairs = Pairs::new();
    first(&mut pairs, 1, &stream("error", "80", None));
    first(&mut pairs, 5, &stream("error", "81", Some("")));
    assert_eq!(paired(&mut pairs, 3, &stream("data", "80", None)), (1, 3, 80));
    assert_eq!(paired(&mut pairs, 7, &stream("data", "81", None)), (5, 7, 81));
    // A data stream with a first id has nothing below it, and pairs with what names that.
    first(&mut pairs, 1, &stream("data", "82", None));
    assert_eq!(paired(&mut pairs, 9, &stream("error", "82", Some("-1"))), (9, 1, 82));
}

#[test]
fn item_069_a_duplicate_stream_is_told_on_the_error_stream_and_the_pair_stands() {
    let mut pairs = Pairs::new();
    let failure = |arrival| match arrival {
        Ok(Arrival::Duplicate(failure)) => failure,
        other => panic!("{other:?}"),
    };
    first(&mut pairs, 1, &Half::Error.headers(80, 7));
    let twice = failure(pairs.accept(3, &Half::Error.headers(80, 7)));
    let text = "error processing stream for request 7: error stream already assigned";
    assert_eq!(twice, Failure { error: Some(1), data: None, text: text.into() });
    assert_eq!(paired(&mut pairs, 5, &Half::Data.headers(80, 7)), (1, 5, 80));

    first(&mut pairs, 7, &Half::Data.headers(81, 8));
    let twice = failure(pairs.accept(9, &Half::Data.headers(82, 8)));
    let text = "error processing stream for request 8: data stream already assigned";
    assert_eq!(twice, Failure { error: None, data: Some(7), text: text.into() });
    assert_eq!(paired(&mut pairs, 11, &Half::Error.headers(81, 8)), (11, 7, 81));
}

#[test]
fn item_069_a_pair_that_stays_alone_is_told_when_its_time_is_over() {
    let mut pairs = Pairs::new();
    let ticket = first(&mut pairs, 1, &Half::Error.headers(80, 3));
    let other = first(&mut pairs, 3, &Half::Data.headers(80, 4));
    let failure = pairs.expire(ticket, "c0").unwrap();
    assert_eq!(failure.text, "(conn=c0, request=3) timed out waiting for streams");
    assert_eq!((failure.error, failure.data), (Some(1), None));
    assert_eq!(pairs.expire(ticket, "c0"), None);
    assert_eq!(pairs.expire(other, "c0").unwrap().data, Some(3));
    assert!(pairs.is_empty());

    let early = first(&mut pairs, 5, &Half::Error.headers(80, 5));
    paired(&mut pairs, 7, &Half::Data.headers(80, 5));
    assert_eq!(pairs.expire(early, "c0"), None, "it was complete");
    first(&mut pairs, 9, &Half::Error.headers(80, 5));
    assert_eq!(pairs.expire(early, "c0"), None, "a later pair of the same name is another");
}

#[test]
fn item_070_a_bad_stream_is_reset_and_others_go_on() {
    let mut pairs = Pairs::new();
    first(&mut pairs, 1, &Half::Error.headers(80, 0));
    for (kind, port, text) in [
        ("data", "", "\"port\" header is required"),
        ("data", "0", "port \"0\" must be > 0"),
        ("data", "000", "port \"000\" must be > 0"),
        ("data", "65536", "unable to parse \"65536\" as a port"),
        ("data", "+80", "unable to parse \"+80\" as a port"),
        ("data", "-1", "unable to parse \"-1\" as a port"),
        ("data", "80 ", "unable to parse \"80 \" as a port"),
        ("data", "99999999999999999999999", "unable to parse \"99999999999999999999999\" as a port"),
        ("", "80", "\"streamType\" header is required"),
        ("Data", "80", "invalid stream type \"Data\""),
        ("resize", "80", "invalid stream type \"resize\""),
    ] {
        let error = pairs.accept(3, &stream(kind, port, Some("0"))).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.status()), (text, RstStatus::CANCEL));
    }
    let error = pairs.accept(3, &Headers::new()).unwrap_err();
    assert_eq!(error, Error::Required("port"));
    assert_eq!(paired(&mut pairs, 5, &stream("data", "00065535", Some("0"))), (1, 5, 65535));
}

#[test]
fn pairs_are_bounded_waiting_and_open_alike() {
    let mut pairs = Pairs::new();
    let mut id = 1;
    for request in 0..MAX_PAIRS as u64 {
        first(&mut pairs, id, &Half::Error.headers(80, request));
        id += 2;
    }
    let more = pairs.accept(id, &Half::Error.headers(80, 1_000)).unwrap_err();
    assert_eq!((&more, more.status()), (&Error::TooMany, RstStatus::REFUSED_STREAM));
    // The other half of one that is there has room.
    paired(&mut pairs, id, &Half::Data.headers(80, 0));
    assert_eq!(pairs.len(), MAX_PAIRS);
    assert!(pairs.accept(id, &Half::Error.headers(80, 1_000)).is_err());
    pairs.close();
    first(&mut pairs, id, &Half::Error.headers(80, 1_000));

    let long = "r".repeat(MAX_REQUEST_ID);
    let mut pairs = Pairs::new();
    first(&mut pairs, 1, &stream("error", "80", Some(&long)));
    let longer = pairs.accept(3, &stream("error", "80", Some(&(long + "r")))).unwrap_err();
    assert_eq!((&longer, longer.status()), (&Error::RequestId, RstStatus::CANCEL));
}

#[test]
fn a_stream_that_was_reset_is_paired_with_nothing() {
    let mut pairs = Pairs::new();
    first(&mut pairs, 1, &Half::Error.headers(80, 0));
    first(&mut pairs, 3, &Half::Data.headers(80, 1));
    pairs.reset(5);
    assert_eq!(pairs.len(), 2);
    pairs.reset(1);
    pairs.reset(3);
    assert!(pairs.is_empty());
    first(&mut pairs, 5, &Half::Data.headers(80, 0));
}

#[test]
fn the_failure_of_a_connection_has_the_text_of_the_kubelet() {
    assert_eq!(
        forward_failed(80, "abc", "", "connection refused"),
        "error forwarding port 80 to pod abc, uid : connection refused"
    );
}

#[test]
fn old_clients_get_their_ports_first_on_both_channels() {
    let legacy = Legacy::new(Encoding::Binary, vec![80, 0x1f90]).unwrap();
    let mut out = BytesMut::new();
    legacy.put_ports(&mut out);
    let expected: [&[u8]; 4] = [b"\x00\x50\x00", b"\x01\x50\x00", b"\x02\x90\x1f", b"\x03\x90\x1f"];
    assert_eq!(messages(&out), expected.map(whole));
    let legacy = Legacy::new(Encoding::Base64, vec![80]).unwrap();
    let mut out = BytesMut::new();
    legacy.put_ports(&mut out);
    let expected = [&b"0UAA="[..], b"1UAA="].map(|text| piece(Kind::Text, text, true, true));
    assert_eq!(messages(&out), expected);
}

#[test]
fn old_clients_write_to_data_channels_of_their_ports_only() {
    let mut legacy = Legacy::new(Encoding::Binary, vec![80, 81]).unwrap();
    assert_eq!(legacy.decode(whole(b"\x00abc")), Some((0, "abc".into())));
    assert_eq!(legacy.decode(whole(b"\x02abc")), Some((1, "abc".into())));
    for dropped in [&b""[..], b"\x00", b"\x01abc", b"\x03abc", b"\x04abc", b"\xfeabc", b"\xffabc"] {
        assert_eq!(legacy.decode(whole(dropped)), None);
    }
    assert_eq!(legacy.decode(piece(Kind::Binary, b"\x02", true, false)), None);
    assert_eq!(legacy.decode(piece(Kind::Binary, b"\x00x", false, true)), Some((1, "\0x".into())));
    let mut legacy = Legacy::new(Encoding::Base64, vec![80, 81]).unwrap();
    assert_eq!(legacy.decode(whole(b"2Zm9v")), Some((1, "foo".into())));
    assert_eq!(legacy.decode(whole(b"2Zm9")), None);
}

#[test]
fn old_clients_have_as_many_ports_as_channels_allow() {
    assert!(Legacy::new(Encoding::Binary, vec![1; MAX_PORTS + 1]).is_none());
    let mut legacy = Legacy::new(Encoding::Binary, vec![1; MAX_PORTS]).unwrap();
    assert_eq!(legacy.decode(whole(b"\xfex")), Some((MAX_PORTS - 1, "x".into())));
    let mut out = BytesMut::new();
    assert_eq!(legacy.message(&mut out, MAX_PORTS - 1, Half::Error, b"x", None), 1);
    assert_eq!(messages(&out), [whole(b"\xffx")]);
    assert_eq!(Legacy::PROTOCOLS.len(), 3);
}

#[test]
fn item_099_the_tunnel_is_answered_with_the_name_that_was_offered() {
    assert_eq!(TUNNEL_PROTOCOL, format!("{TUNNEL_PREFIX}{PROTOCOL}"));
    let offered = ["v4.channel.k8s.io", TUNNEL_PROTOCOL, "SPDY/3.1+x"];
    assert_eq!(tunnelled(&offered).collect::<Vec<_>>(), [PROTOCOL, "x"]);
    assert_eq!(tunnel_answer(&offered, Some(PROTOCOL)), Some(TUNNEL_PROTOCOL));
    for chosen in [None, Some(""), Some("v4.channel.k8s.io"), Some("other")] {
        assert_eq!(tunnel_answer(&offered, chosen), None);
    }
}

#[test]
fn a_tunnel_anywhere_in_the_first_line_is_wanted() {
    assert!(wants_tunnel(TUNNEL_PROTOCOL));
    assert!(wants_tunnel("v4.channel.k8s.io, SPDY/3.1+v9.portforward.k8s.io"));
    for line in ["", "v4.channel.k8s.io", "SPDY/3.1+portforward", "spdy/3.1+portforward.k8s.io", PROTOCOL] {
        assert!(!wants_tunnel(line), "{line:?}");
    }
}

#[test]
fn item_100_tunnel_bytes_do_not_depend_on_messages() {
    // SPDY of a kubelet, in messages that a server with a write buffer of 4 KiB fragments.
    let spdy: Vec<u8> = (0..50_000u32).map(|n| (n * 7) as u8).collect();
    for (size, fragment) in [(1, 1), (5_000, 4_096), (32 * 1024, 4_096), (50_000, 50_000)] {
        let mut wire = BytesMut::new();
        for message in spdy.chunks(size) {
            let mut opcode = ws::Opcode::Binary;
            for part in message.chunks(fragment) {
                ws::Encoder::frame(&mut wire, opcode, false, part, None);
                opcode = ws::Opcode::Continuation;
            }
            ws::Encoder::frame(&mut wire, opcode, true, b"", None);
        }
        let mut decoder = ws::Decoder::new(ws::Role::Client, ws::Limits::default());
        let mut input = BytesMut::new();
        let mut through = Vec::new();
        for bytes in wire.chunks(1_111) {
            input.extend_from_slice(bytes);
            while let Some(event) = decoder.decode(&mut input).unwrap() {
                let ws::Event::Data(data) = event else { panic!() };
                through.extend(tunnel_bytes(data).unwrap());
            }
        }
        assert_eq!(through, spdy);
    }
    let text = tunnel_bytes(piece(Kind::Text, b"x", true, true)).unwrap_err();
    assert_eq!(text.close_code(), CloseCode::UNSUPPORTED);
}

#[test]
fn item_101_a_tunnel_answer_over_a_mebibyte_fails() {
    let head = format!("HTTP/1.1 101 Switching Protocols\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(matches!(ResponseHead::parse(head.as_bytes()), Err(http1::Error::TooLarge)));
}

#[test]
fn a_tunnel_needs_a_101_to_spdy() {
    let is = |status: u16, lines: &str| {
        let head = format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
        is_spdy_upgrade(&ResponseHead::parse(head.as_bytes()).unwrap().unwrap())
    };
    assert!(is(101, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"));
    assert!(is(101, "connection: keep-alive, upgrade\r\nupgrade: x, spdy/3.1\r\n"));
    assert!(!is(200, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"));
    assert!(!is(101, "Connection: Upgrade\r\n") && !is(101, "Upgrade: SPDY/3.1\r\n"));
    assert!(!is(101, "Connection: Upgrade\r\nUpgrade: SPDY/3\r\n"));
}

#[derive(Clone, Debug)]
enum Op {
    Accept { half: bool, request: u64 },
    Expire(u64),
    Reset(u32),
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<bool>(), 0..40u64).prop_map(|(half, request)| Op::Accept { half, request }),
        1 => (0..150u64).prop_map(Op::Expire),
        1 => (0..600u32).prop_map(Op::Reset),
        2 => Just(Op::Close),
    ]
}

proptest! {
    #[test]
    fn a_stream_is_in_one_pair_at_most_and_pairs_stay_bounded(ops in prop::collection::vec(op(), 0..300)) {
        let mut pairs = Pairs::new();
        let mut given = HashSet::new();
        for (at, op) in ops.into_iter().enumerate() {
            let id = 2 * at as u32 + 1;
            match op {
                Op::Accept { half, request } => {
                    let half = if half { Half::Error } else { Half::Data };
                    let arrival = pairs.accept(id, &half.headers(request as u16 + 1, request));
                    if let Ok(Arrival::Paired(pair)) = arrival {
                        prop_assert!(given.insert(pair.error) && given.insert(pair.data));
                        prop_assert!(pair.error == id || pair.data == id);
                        prop_assert_eq!(pair.port, request as u16 + 1);
                    }
                }
                Op::Expire(ticket) => drop(pairs.expire(Ticket(ticket), "c")),
                Op::Reset(stream) => pairs.reset(stream),
                Op::Close => pairs.close(),
            }
            prop_assert!(pairs.len() <= MAX_PAIRS);
            prop_assert!(pairs.waiting.values().all(|pair| pair.error.is_some() != pair.data.is_some()));
        }
    }
}
