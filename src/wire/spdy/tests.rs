//! Tests of the SPDY codec. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use proptest::prelude::*;

/// The client's direction of a remotecommand session: stream type, frame length, plain block, zlib block,
/// as a Go peer wrote them at level 9 on one connection.
pub(in crate::wire) const GO_CLIENT: [(&str, u8, &str, &str); 5] = [
    (
        "error",
        0x29,
        "000000010000000a73747265616d74797065000000056572726f72",
        "78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
    ),
    ("stdin", 0x17, "000000010000000a73747265616d7479706500000005737464696e", "c22e555c92929907000000ffff"),
    (
        "stdout",
        0x19,
        "000000010000000a73747265616d74797065000000067374646f7574",
        "c22ac5565c92925f5a02000000ffff",
    ),
    ("stderr", 0x15, "000000010000000a73747265616d7479706500000006737464657272", "c229975a5404000000ffff"),
    (
        "resize",
        0x18,
        "000000010000000a73747265616d7479706500000006726573697a65",
        "c22e57945a9c59950a000000ffff",
    ),
];

/// The server's direction: two empty blocks.
pub(in crate::wire) const GO_SERVER: [(&str, u8, &str); 2] =
    [("00000000", 0x14, "78f9e3c6a7c26260606000000000ffff"), ("00000000", 0x0c, "026100000000ffff")];

pub(in crate::wire) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn stream_type(value: &str) -> Headers {
    Headers::new().with("streamType", value)
}

/// Frames of `bytes`, which must end between two frames.
fn decode_all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, Error> {
    let mut input = BytesMut::from(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(&mut input)? {
        frames.push(frame);
    }
    assert!(input.is_empty() && decoder.is_between_frames());
    Ok(frames)
}

fn decode(text: &str) -> Result<Vec<Frame>, Error> {
    decode_all(&mut Decoder::new(), &hex(text))
}

fn error(text: &str) -> String {
    decode(text).unwrap_err().to_string()
}

/// A control frame around a payload.
fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_head(&mut out, kind, flags, payload.len());
    out.put_slice(payload);
    out.to_vec()
}

/// One SYN_REPLY with a header block of this plain form, compressed by a real zlib.
fn reply_with_plain(plain: &[u8]) -> Vec<u8> {
    let mut zlib = Compress::new(Compression::best(), true);
    zlib.set_dictionary(&dictionary::BYTES).unwrap();
    let mut block = Vec::with_capacity(plain.len() + 1024);
    zlib.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
    assert_eq!(zlib.total_in(), plain.len() as u64);
    control(SYN_REPLY, 0, &[&1u32.to_be_bytes()[..], &block].concat())
}

/// Joins the pieces of DATA frames, so that transcripts can be compared whatever the cuts were.
pub(in crate::wire) fn join_data(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        if let Frame::Data { stream, bytes, fin } = &frame
            && let Some(Frame::Data { stream: last, bytes: have, fin: had_fin }) = joined.last_mut()
            && stream == last
            && !*had_fin
        {
            *have = [have.as_ref(), bytes].concat().into();
            *had_fin = *fin;
            continue;
        }
        joined.push(frame);
    }
    joined
}

/// Both ways of what could be one connection; as one direction it is a superset of any real one.
pub(in crate::wire) fn transcript() -> (Vec<Frame>, Vec<u8>) {
    let data = |stream, text: &'static str, fin| Frame::Data { stream, bytes: text.into(), fin };
    let syn = |id, kind| Frame::SynStream {
        id,
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: stream_type(kind),
    };
    let frames = vec![
        syn(1, "error"),
        syn(3, "stdin"),
        Frame::SynReply { id: 1, fin: false, headers: Headers::new() },
        Frame::Settings,
        syn(5, "stdout"),
        data(5, "total 0\r\n", false),
        Frame::Ping { id: 1 },
        data(3, "", false),
        Frame::WindowUpdate { id: 0, delta: 65536 },
        Frame::Headers {
            id: 5,
            fin: false,
            headers: Headers::new().with("a", "b").with("A", "c").with("d", ""),
        },
        data(3, "exit\n", true),
        data(5, "", true),
        Frame::RstStream { id: 1, status: RstStatus::CANCEL },
        Frame::GoAway { last_good: 5, status: 0 },
    ];
    let mut out = BytesMut::new();
    let mut encoder = Encoder::new();
    for frame in &frames {
        encoder.encode(&mut out, frame).unwrap();
    }
    (frames, out.to_vec())
}

#[test]
fn item_054_go_client_header_blocks_decode_byte_for_byte() {
    let mut decoder = Decoder::new();
    for (at, (kind, len, _, zlib)) in GO_CLIENT.into_iter().enumerate() {
        let id = 2 * at as u32 + 1;
        let frame = hex(&format!("80010001 000000{len:02x} {id:08x} 00000000 0000 {zlib}"));
        assert_eq!(frame.len(), HEAD + usize::from(len));
        let expected = Frame::SynStream {
            id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: stream_type(kind),
        };
        assert_eq!(decode_all(&mut decoder, &frame).unwrap(), [expected]);
    }
}

#[test]
fn item_054_go_server_header_blocks_decode_byte_for_byte() {
    let mut decoder = Decoder::new();
    for (at, (_, len, zlib)) in GO_SERVER.into_iter().enumerate() {
        let id = 2 * at as u32 + 1;
        let frame = hex(&format!("80030002 000000{len:02x} {id:08x} {zlib}"));
        assert_eq!(frame.len(), HEAD + usize::from(len));
        let expected = Frame::SynReply { id, fin: false, headers: Headers::new() };
        assert_eq!(decode_all(&mut decoder, &frame).unwrap(), [expected]);
    }
}

#[test]
fn item_054_our_header_blocks_inflate_to_the_plain_form_of_go() {
    let mut deflater = Deflater::default();
    let mut zlib = Decompress::new(true);
    for (at, (kind, _, plain, _)) in GO_CLIENT.into_iter().enumerate() {
        let mut block = BytesMut::new();
        deflater.write(&stream_type(kind), &mut block).unwrap();
        let mut inflated = Vec::with_capacity(1024);
        let mut block = &block[..];
        if at == 0 {
            assert!(block.starts_with(&hex("78f9e3c6a7c2")));
            let asked = zlib.decompress_vec(block, &mut inflated, FlushDecompress::Sync).unwrap_err();
            assert_eq!(asked.needs_dictionary(), Some(dictionary::ADLER32));
            zlib.set_dictionary(&dictionary::BYTES).unwrap();
            block = &block[6..];
        }
        let before = zlib.total_in();
        zlib.decompress_vec(block, &mut inflated, FlushDecompress::Sync).unwrap();
        assert_eq!(zlib.total_in() - before, block.len() as u64);
        assert_eq!(inflated, hex(plain));
        assert!(block.ends_with(&SYNC), "a sync flush, or Go hands nothing over");
    }
}

const SYNC: [u8; 5] = [0, 0, 0, 0xff, 0xff];

#[test]
fn sync_flush_is_left_out_where_the_window_of_go_ends() {
    // Go hands its window over when it is full; five more bytes would be counted as unread payload.
    let mut deflater = Deflater::default();
    let mut inflater = Inflater::default();
    let fill = 32 * 1024 - dictionary::LEN;
    // Count, name and lengths.
    let around = 4 + 8 + 1;
    let whole = vec![(MAX_PLAIN - around, true); fill / MAX_PLAIN];
    let empty = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].len();
    let edge = [(fill % MAX_PLAIN - around, false), (empty, true), (7, true)];
    for (value_len, flushed) in whole.into_iter().chain(edge) {
        let headers = Headers::new().with("x", vec![b'v'; value_len]);
        let mut block = BytesMut::new();
        deflater.write(&headers, &mut block).unwrap();
        assert_eq!(block.ends_with(&SYNC), flushed);
        assert_eq!(inflater.read(&block).unwrap(), headers);
    }
}

#[test]
fn whole_frames_of_go_decode_and_encode() {
    let frames = [
        ("00000003 01000000", Frame::Data { stream: 3, bytes: Bytes::new(), fin: true }),
        ("80030003 00000008 00000001 00000005", Frame::RstStream { id: 1, status: RstStatus::CANCEL }),
        ("80030006 00000004 00000001", Frame::Ping { id: 1 }),
        ("80030007 00000008 00000000 00000000", Frame::GoAway { last_good: 0, status: 0 }),
    ];
    for (text, frame) in frames {
        let mut out = BytesMut::new();
        Encoder::new().encode(&mut out, &frame).unwrap();
        assert_eq!(out, hex(text));
        assert_eq!(decode(text).unwrap(), [frame]);
    }
}

#[test]
fn short_forms_write_the_same_bytes_as_the_general_one() {
    let headers = stream_type("error");
    let mut short = BytesMut::new();
    let mut encoder = Encoder::new();
    encoder.syn_stream(&mut short, 1, &headers).unwrap();
    encoder.syn_reply(&mut short, 1);
    Encoder::goaway(&mut short, 7);
    let mut general = BytesMut::new();
    let mut encoder = Encoder::new();
    for frame in [
        Frame::SynStream { id: 1, associated: 0, priority: 0, fin: false, unidirectional: false, headers },
        Frame::SynReply { id: 1, fin: false, headers: Headers::new() },
        Frame::GoAway { last_good: 7, status: 0 },
    ] {
        encoder.encode(&mut general, &frame).unwrap();
    }
    assert_eq!(short, general);
}

#[test]
fn item_055_compression_state_persists_across_refused_streams() {
    let mut decoder = Decoder::new();
    let mut ids = StreamIds::new(Role::Server);
    let mut seen = Vec::new();
    // The third stream repeats an id and is refused; the fourth and fifth blocks refer back to its bytes.
    for (id, (_, len, _, zlib)) in [1, 3, 3, 5, 7].into_iter().zip(GO_CLIENT) {
        let bytes = hex(&format!("80030001 000000{len:02x} {id:08x} 00000000 0000 {zlib}"));
        let frames = decode_all(&mut decoder, &bytes).unwrap();
        let [Frame::SynStream { id, headers, .. }] = &frames[..] else { panic!("{frames:?}") };
        seen.push((ids.accept(*id), headers.get("streamtype").unwrap().to_vec()));
    }
    let bad = Err(RstStatus::PROTOCOL_ERROR);
    assert_eq!(
        seen.iter().map(|(taken, _)| *taken).collect::<Vec<_>>(),
        [Ok(()), Ok(()), bad, Ok(()), Ok(())]
    );
    assert_eq!(seen.last().unwrap().1, b"resize");
}

#[test]
fn item_056_repeated_decreasing_or_oversized_stream_ids_get_protocol_error() {
    let mut ids = StreamIds::new(Role::Server);
    assert_eq!(ids.last_good(), 0);
    for id in [1, 3, 9] {
        assert_eq!(ids.accept(id), Ok(()));
    }
    for id in [9, 7, 1, 10, 0x8000_0000, u32::MAX] {
        assert_eq!(ids.accept(id), Err(RstStatus::PROTOCOL_ERROR), "{id}");
    }
    assert_eq!(ids.last_good(), 9);
    assert_eq!(ids.accept(12), Ok(()), "parity is not checked");
    assert_eq!(ids.accept(MAX_STREAM_ID), Ok(()));
    assert_eq!(ids.accept(MAX_STREAM_ID), Err(RstStatus::PROTOCOL_ERROR));
    assert_eq!(ids.open(), 5);
}

#[test]
fn one_stream_over_the_cap_is_refused_until_one_closes() {
    let mut ids = StreamIds::new(Role::Server);
    let mut peer = StreamIds::new(Role::Client);
    for _ in 0..MAX_OPEN_STREAMS {
        assert_eq!(ids.accept(peer.open_own().unwrap()), Ok(()));
    }
    let last = ids.last_good();
    assert_eq!(ids.accept(peer.open_own().unwrap()), Err(RstStatus::REFUSED_STREAM));
    assert_eq!(ids.last_good(), last);
    ids.close();
    assert_eq!(ids.accept(peer.open_own().unwrap()), Ok(()));
}

#[test]
fn own_ids_are_odd_for_the_client_and_even_for_the_server() {
    let mut client = StreamIds::new(Role::Client);
    let mut server = StreamIds::new(Role::Server);
    assert_eq!([client.open_own(), client.open_own()], [Some(1), Some(3)]);
    assert_eq!([server.open_own(), server.open_own()], [Some(2), Some(4)]);
    assert_eq!(client.last_good(), 0);
}

#[test]
fn item_057_odd_pings_are_echoed_to_the_client_and_even_ones_matched() {
    let mut server = Pings::new(Role::Server);
    assert_eq!(server.receive(1), Pong::Echo);
    assert_eq!(server.receive(2), Pong::Stray);
    assert_eq!(server.send(), Some(2));
    assert_eq!(server.send(), None, "one at a time");
    assert_eq!(server.receive(4), Pong::Stray);
    assert_eq!(server.receive(2), Pong::Answer);
    assert_eq!(server.send(), Some(4));
    let mut client = Pings::new(Role::Client);
    assert_eq!(client.send(), Some(1));
    assert_eq!(client.receive(2), Pong::Echo);
    assert_eq!(client.receive(1), Pong::Answer);
}

#[test]
fn item_057_an_echo_is_the_ping_byte_for_byte() {
    let ping = hex("80030006 00000004 7fffffff");
    let frames = decode_all(&mut Decoder::new(), &ping).unwrap();
    let [Frame::Ping { id }] = frames[..] else { panic!("{frames:?}") };
    let mut out = BytesMut::new();
    Encoder::ping(&mut out, id);
    assert_eq!(out, ping);
}

#[test]
fn item_058_settings_window_update_and_headers_are_tolerated() {
    let frames = decode(
        "80030004 0000000c 00000001 01000004 00000064
         80030009 00000008 00000001 00010000
         80030008 00000014 00000001 78f9e3c6a7c26260606000000000ffff",
    );
    let headers = Frame::Headers { id: 1, fin: false, headers: Headers::new() };
    let expected = [Frame::Settings, Frame::WindowUpdate { id: 1, delta: 65536 }, headers];
    assert_eq!(frames.unwrap(), expected);
}

#[test]
fn item_058_unknown_control_types_end_the_connection() {
    for kind in [0, 5, 10, 0xffff] {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::from(&control(kind, 0, &[0; 4])[..]);
        input.extend_from_slice(&hex("80030006 00000004 00000001"));
        assert!(matches!(decoder.decode(&mut input), Err(Error::UnknownType { kind: k }) if k == kind));
        assert!(matches!(decoder.decode(&mut input), Err(Error::Failed)));
    }
}

#[test]
fn item_061_fin_marks_the_last_piece_of_its_stream_only() {
    let frames = decode("00000003 01000002 6869 00000005 00000002 6f6b 00000001 00000001 21").unwrap();
    let fins: Vec<_> = frames
        .iter()
        .map(|frame| match frame {
            Frame::Data { stream, fin, .. } => (*stream, *fin),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(fins, [(3, true), (5, false), (1, false)]);
}

#[test]
fn item_062_data_before_a_reset_is_delivered_before_it() {
    let frames = decode("00000001 00000002 6869 80030003 00000008 00000001 00000005").unwrap();
    let data = Frame::Data { stream: 1, bytes: "hi".into(), fin: false };
    assert_eq!(frames, [data, Frame::RstStream { id: 1, status: RstStatus::CANCEL }]);
}

#[test]
fn item_064_the_largest_data_frame_passes_in_pieces_without_memory_of_its_own() {
    let mut decoder = Decoder::new();
    let mut input = BytesMut::from(&Encoder::data_head(5, MAX_DATA_PAYLOAD, true)[..]);
    assert!(decoder.decode(&mut input).unwrap().is_none());
    assert_eq!(input.capacity(), 0, "nothing is reserved for what was only announced");
    let piece = vec![7; 32 * 1024];
    let mut sum = 0;
    while sum < MAX_DATA_PAYLOAD {
        let len = piece.len().min(MAX_DATA_PAYLOAD - sum);
        input.extend_from_slice(&piece[..len]);
        let at = input.as_ptr();
        let Some(Frame::Data { stream: 5, bytes, fin }) = decoder.decode(&mut input).unwrap() else {
            panic!()
        };
        assert_eq!(bytes.as_ptr(), at, "the piece is the read buffer");
        assert_eq!(bytes.len(), len);
        sum += len;
        assert_eq!(fin, sum == MAX_DATA_PAYLOAD);
        assert!(input.is_empty());
    }
    assert!(decoder.is_between_frames());
}

#[test]
fn item_065_settings_count_must_fit_the_frame() {
    for count in ["ffffffff", "20000000", "00000002", "00000000"] {
        let text = format!("80030004 0000000c {count} 01000004 00000064");
        assert_eq!(error(&text), "SPDY SETTINGS frame has a wrong length", "{count}");
    }
}

#[test]
fn item_065_header_count_and_lengths_must_fit_the_block() {
    let cases: [(&str, &str); 7] = [
        ("ffffffff", "SPDY header block has 4294967295 headers"),
        ("00000081", "SPDY header block has 129 headers"),
        ("00000080", "SPDY header block has a wrong size"),
        ("00000001 ffffffff 61", "SPDY header block has a wrong size"),
        ("00000001 00000001 61 ffffffff 62", "SPDY header block has a wrong size"),
        ("00000000 00", "SPDY header block has a wrong size"),
        ("000000", "SPDY header block has a wrong size"),
    ];
    for (plain, text) in cases {
        let frame = reply_with_plain(&hex(plain));
        assert_eq!(decode_all(&mut Decoder::new(), &frame).unwrap_err().to_string(), text, "{plain}");
    }
}

#[test]
fn item_065_header_bomb_is_stopped_at_the_limit() {
    let bomb = reply_with_plain(&vec![0; 40 << 20]);
    assert!(bomb.len() < MAX_CONTROL_PAYLOAD, "{} bytes blow up to 40 MiB", bomb.len());
    let failure = decode_all(&mut Decoder::new(), &bomb).unwrap_err();
    assert!(matches!(failure, Error::HeaderBlockTooLarge), "{failure}");
}

#[test]
fn header_block_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let block = |value: usize| {
        let mut plain = hex("00000001 00000001 61");
        plain.extend_from_slice(&(value as u32).to_be_bytes());
        plain.resize(plain.len() + value, b'x');
        plain
    };
    let largest = MAX_PLAIN - 13;
    let frames = decode_all(&mut Decoder::new(), &reply_with_plain(&block(largest))).unwrap();
    let [Frame::SynReply { headers, .. }] = &frames[..] else { panic!() };
    assert_eq!(headers.get("a").unwrap().len(), largest);
    assert!(decode_all(&mut Decoder::new(), &reply_with_plain(&block(largest + 1))).is_err());
    let mut out = BytesMut::new();
    Encoder::new().encode(&mut out, &frames[0]).unwrap();
    assert_eq!(decode_all(&mut Decoder::new(), &out).unwrap(), frames, "what was read can be written again");
}

#[test]
fn a_value_of_nothing_but_separators_costs_its_bytes_only() {
    let headers = Headers::new().with("a", vec![0; MAX_PLAIN - 13]);
    let frames = decode_all(&mut Decoder::new(), &reply_with_plain(&headers.to_plain().unwrap())).unwrap();
    let [Frame::SynReply { headers, .. }] = &frames[..] else { panic!() };
    assert_eq!(headers.len(), 1);
    assert_eq!(headers.values("a").count(), MAX_PLAIN - 12);
}

#[test]
fn headers_too_large_to_send_leave_the_direction_usable() {
    let mut encoder = Encoder::new();
    let mut out = BytesMut::new();
    let wide = Headers::new().with("a", vec![b'x'; MAX_PLAIN]);
    assert!(matches!(encoder.syn_stream(&mut out, 1, &wide), Err(Error::HeaderBlockTooLarge)));
    let many = (0..=MAX_PAIRS).fold(Headers::new(), |headers, at| headers.with(&at.to_string(), ""));
    assert!(matches!(encoder.syn_stream(&mut out, 1, &many), Err(Error::TooManyHeaders { count: 129 })));
    assert!(out.is_empty());
    encoder.syn_stream(&mut out, 1, &stream_type("error")).unwrap();
    assert_eq!(decode_all(&mut Decoder::new(), &out).unwrap().len(), 1);
}

#[test]
fn item_066_header_names_match_without_regard_to_case() {
    let plain = hex("00000001 0000000a 53747265616d54797065 00000005 6572726f72");
    let frames = decode_all(&mut Decoder::new(), &reply_with_plain(&plain)).unwrap();
    let [Frame::SynReply { headers, .. }] = &frames[..] else { panic!() };
    assert_eq!(headers.get("streamType"), Some(&b"error"[..]));
    assert_eq!(headers.get("STREAMTYPE"), Some(&b"error"[..]));
    assert_eq!(headers.iter().next(), Some((&b"streamtype"[..], &b"error"[..])));
    assert_eq!(headers.get("port"), None);
    assert_eq!(*headers, stream_type("error"));
}

#[test]
fn values_joined_with_nul_are_several_values() {
    let headers = Headers::new().with("Port", "80").with("port", "81");
    assert_eq!(headers.values("port").collect::<Vec<_>>(), [b"80", b"81"]);
    assert_eq!(headers.to_plain().unwrap(), hex("00000001 00000004 706f7274 00000005 3830003831"));
}

#[test]
fn a_name_given_twice_in_a_block_is_refused() {
    let plain = hex("00000002 00000001 61 00000001 62 00000001 41 00000001 63");
    let failure = decode_all(&mut Decoder::new(), &reply_with_plain(&plain)).unwrap_err();
    assert!(matches!(failure, Error::DuplicateHeader), "{failure}");
}

#[test]
fn a_header_block_must_be_used_up_exactly() {
    // Bytes missing from the block, a block that is not there, and bytes after the end of the zlib stream.
    assert!(decode("80030002 0000000e 00000001 78f9e3c6a7c262606060").is_err());
    assert!(decode("80030002 00000004 00000001").is_err());
    let mut zlib = Compress::new(Compression::best(), true);
    zlib.set_dictionary(&dictionary::BYTES).unwrap();
    let mut block = Vec::with_capacity(64);
    zlib.compress_vec(&[0; 4], &mut block, FlushCompress::Finish).unwrap();
    block.push(0);
    let frame = control(SYN_REPLY, 0, &[&1u32.to_be_bytes()[..], &block].concat());
    let failure = decode_all(&mut Decoder::new(), &frame).unwrap_err();
    assert!(matches!(failure, Error::HeaderBlockSize), "{failure}");
}

#[test]
fn a_header_block_with_another_dictionary_or_no_zlib_is_refused() {
    assert!(error("80030002 00000014 00000001 78f9e3c6a7c36260606000000000ffff").starts_with("inflate"));
    assert!(error("80030002 00000014 00000001 ffffffffffffffffffffffffffffffff").starts_with("inflate"));
}

#[test]
fn flags_zero_ids_and_wrong_lengths_end_the_connection() {
    let cases = [
        ("80030006 01000004 00000001", "SPDY PING frame has flags 0x01"),
        ("80030007 01000008 00000000 00000000", "SPDY GOAWAY frame has flags 0x01"),
        ("80030009 02000008 00000001 00000001", "SPDY WINDOW_UPDATE frame has flags 0x02"),
        ("80030003 00000008 00000001 00000000", "SPDY RST_STREAM frame has status 0"),
        ("80030003 00000008 00000000 00000005", "SPDY RST_STREAM frame has id 0"),
        ("80030006 00000004 00000000", "SPDY PING frame has id 0"),
        ("80030002 00000014 00000000 78f9e3c6a7c26260606000000000ffff", "SPDY SYN_REPLY frame has id 0"),
        ("80030001 0000000a 00000000 00000000 0000", "SPDY SYN_STREAM frame has id 0"),
        ("00000000 00000001 61", "SPDY DATA frame has id 0"),
        ("80030007 00000004 00000000", "SPDY GOAWAY frame has a wrong length"),
        ("80030007 0000000c 00000000 00000000 00000000", "SPDY GOAWAY frame has a wrong length"),
        ("80030009 00000004 00000001", "SPDY WINDOW_UPDATE frame has a wrong length"),
        ("80030003 00000004 00000001", "SPDY RST_STREAM frame has a wrong length"),
        ("80030006 00000000", "SPDY PING frame has a wrong length"),
        ("80030004 00000000", "SPDY SETTINGS frame has a wrong length"),
        ("80030001 00000009 00000001 00000000 00", "SPDY SYN_STREAM frame has a wrong length"),
        ("80030002 00000003 000000", "SPDY SYN_REPLY frame has a wrong length"),
        ("80030004 00ffffff 001fffff", "SPDY SETTINGS frame of 16777215 bytes is over the limit"),
        ("80030001 00010001 00000001", "SPDY SYN_STREAM frame of 65537 bytes is over the limit"),
    ];
    for (bytes, text) in cases {
        assert_eq!(error(bytes), text, "{bytes}");
    }
}

#[test]
fn the_version_field_is_not_checked() {
    for version in ["8000", "8002", "ffff"] {
        assert_eq!(decode(&format!("{version}0006 00000004 00000001")).unwrap(), [Frame::Ping { id: 1 }]);
    }
}

#[test]
fn a_hundred_thousand_pings_are_events_and_nothing_is_kept() {
    let mut bytes = BytesMut::new();
    for at in 0..100_000 {
        Encoder::ping(&mut bytes, 2 * at + 1);
    }
    let frames = decode_all(&mut Decoder::new(), &bytes).unwrap();
    assert_eq!(frames.len(), 100_000);
    let mut pings = Pings::new(Role::Server);
    let echo = |frame: &Frame| matches!(frame, Frame::Ping { id } if pings.receive(*id) == Pong::Echo);
    assert!(frames.iter().all(echo));
}

#[test]
fn a_session_cut_at_any_byte_gives_the_same_frames() {
    let (frames, bytes) = transcript();
    for cut in 0..=bytes.len() {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        let mut seen = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            input.extend_from_slice(part);
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                seen.push(frame);
            }
        }
        assert!(input.is_empty() && decoder.is_between_frames());
        assert_eq!(join_data(seen), frames, "cut at {cut}");
    }
}

#[test]
fn a_session_byte_by_byte_gives_the_same_frames() {
    let (frames, bytes) = transcript();
    let mut decoder = Decoder::new();
    let mut input = BytesMut::new();
    let mut seen = Vec::new();
    for byte in bytes {
        input.put_u8(byte);
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            seen.push(frame);
        }
    }
    assert_eq!(join_data(seen), frames);
}

fn any_headers() -> impl Strategy<Value = Headers> {
    proptest::collection::vec(("[a-zA-Z-]{0,12}", proptest::collection::vec(any::<u8>(), 0..40)), 0..6)
        .prop_map(|pairs| {
            pairs.iter().fold(Headers::new(), |headers, (name, value)| headers.with(name, value))
        })
}

pub(in crate::wire) fn any_frame() -> impl Strategy<Value = Frame> {
    let id = 1..=MAX_STREAM_ID;
    prop_oneof![
        (1u32.., any::<u32>(), 0..8u8, any::<bool>(), any::<bool>(), any_headers()).prop_map(
            |(id, associated, priority, fin, unidirectional, headers)| {
                Frame::SynStream { id, associated, priority, fin, unidirectional, headers }
            }
        ),
        (id.clone(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::SynReply {
            id,
            fin,
            headers
        }),
        (id.clone(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::Headers {
            id,
            fin,
            headers
        }),
        (id.clone(), 1u32..).prop_map(|(id, status)| Frame::RstStream { id, status: RstStatus(status) }),
        Just(Frame::Settings),
        (1u32..).prop_map(|id| Frame::Ping { id }),
        any::<(u32, u32)>().prop_map(|(last_good, status)| Frame::GoAway { last_good, status }),
        any::<(u32, u32)>().prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
        (id, proptest::collection::vec(any::<u8>(), 0..300), any::<bool>())
            .prop_map(|(stream, bytes, fin)| Frame::Data { stream, bytes: bytes.into(), fin }),
    ]
}

proptest! {
    #[test]
    fn frames_survive_encoding_and_any_cuts(
        frames in proptest::collection::vec(any_frame(), 0..24),
        cuts in proptest::collection::vec(1..200usize, 1..20),
    ) {
        let mut bytes = BytesMut::new();
        let mut encoder = Encoder::new();
        for frame in &frames {
            encoder.encode(&mut bytes, frame).unwrap();
        }
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        let mut seen = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !bytes.is_empty() {
            let cut = cuts.next().unwrap().min(bytes.len());
            input.extend_from_slice(&bytes.split_to(cut));
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                seen.push(frame);
            }
        }
        prop_assert!(input.is_empty() && decoder.is_between_frames());
        // Neighbouring DATA frames of one stream are joined on both sides: cuts may not be told from
        // frames.
        prop_assert_eq!(join_data(seen), join_data(frames));
    }

    #[test]
    fn garbage_never_panics_and_never_piles_up(
        start in prop_oneof![Just(vec![]), (0..12u16).prop_map(|kind| control(kind, 0, &[0, 0, 0, 1]))],
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..40),
    ) {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::from(&start[..]);
        'parts: for part in parts {
            input.extend_from_slice(&part);
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'parts,
                }
            }
            prop_assert!(input.len() < MAX_BUFFERED);
        }
    }

    #[test]
    fn a_damaged_session_never_panics(at in 0..400usize, byte in any::<u8>(), cut in 0..400usize) {
        let (_, mut bytes) = transcript();
        let at = at % bytes.len();
        bytes[at] = byte;
        let cut = cut % bytes.len();
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        'parts: for part in [&bytes[..cut], &bytes[cut..]] {
            input.extend_from_slice(part);
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'parts,
                }
            }
        }
    }
}
