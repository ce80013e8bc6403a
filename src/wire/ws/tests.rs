//! Tests of the WebSocket codec. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use proptest::prelude::*;
use std::io::{self, Read, Write};
use tokio_tungstenite::tungstenite::protocol::{Role as PeerRole, WebSocket};
use tokio_tungstenite::tungstenite::{Error as PeerError, Message as PeerMessage};

/// The key of the examples in RFC 6455 section 5.7.
const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);

const STRICT: Limits = Limits { message: MAX_MESSAGE, utf8: true };

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// The events of bytes that come in the given runs, up to the first error.
fn run<'a>(
    role: Role,
    limits: Limits,
    runs: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Option<Error>) {
    let mut decoder = Decoder::new(role, limits);
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for bytes in runs {
        input.extend_from_slice(bytes);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.decode(&mut input), Err(Error::Failed));
                    return (join(events), Some(error));
                }
            }
        }
        assert!(input.len() < MAX_BUFFERED, "what waits is less than a control payload");
    }
    (join(events), None)
}

/// Joins the pieces of messages, so that transcripts can be compared whatever the cuts were. Control frames
/// inside a message are put before it.
fn join(events: Vec<Event>) -> Vec<Event> {
    let mut joined = Vec::new();
    let mut message: Option<Data> = None;
    for event in events {
        let Event::Data(piece) = event else {
            joined.push(event);
            continue;
        };
        assert_eq!(piece.start, message.is_none(), "only the first piece of a message starts it");
        assert!(piece.end || !piece.bytes.is_empty(), "an empty piece says nothing");
        let (end, whole) = match message.take() {
            None => (piece.end, piece),
            Some(have) => {
                assert_eq!(have.kind, piece.kind);
                let bytes = [have.bytes, piece.bytes].concat().into();
                (piece.end, Data { bytes, end: piece.end, ..have })
            }
        };
        if end {
            joined.push(Event::Data(whole));
        } else {
            message = Some(whole);
        }
    }
    joined.extend(message.map(Event::Data));
    joined
}

fn decode(role: Role, bytes: &[u8]) -> (Vec<Event>, Option<Error>) {
    run(role, STRICT, [bytes])
}

fn client(text: &str) -> (Vec<Event>, Option<Error>) {
    decode(Role::Client, &hex(text))
}

fn message(kind: Kind, bytes: impl AsRef<[u8]>) -> Event {
    Event::Data(Data { kind, bytes: Bytes::copy_from_slice(bytes.as_ref()), start: true, end: true })
}

fn text(text: &str) -> Event {
    message(Kind::Text, text)
}

fn close(code: u16, reason: &str) -> Close {
    Close { code: CloseCode(code), reason: reason.to_owned() }
}

fn encoded(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

/// Fragments, control frames between them, all three forms of a length.
fn transcript(mask: Option<MaskKey>) -> (Vec<Event>, Vec<u8>) {
    let long = vec![0xa5; 70_000];
    let bytes = encoded(|out| {
        Encoder::message(out, Kind::Text, "grüß\u{1f980}".as_bytes(), mask);
        Encoder::frame(out, Opcode::Binary, false, b"", mask);
        Encoder::ping(out, b"one", mask);
        Encoder::frame(out, Opcode::Continuation, false, b"ab", mask);
        Encoder::frame(out, Opcode::Continuation, false, b"", mask);
        Encoder::pong(out, b"", mask);
        Encoder::frame(out, Opcode::Continuation, true, b"c", mask);
        Encoder::message(out, Kind::Binary, b"", mask);
        Encoder::message(out, Kind::Binary, &long[..300], mask);
        Encoder::message(out, Kind::Binary, &long, mask);
        Encoder::close(out, Some(&close(1000, "bye")), mask);
    });
    let events = vec![
        text("grüß\u{1f980}"),
        Event::Ping("one".into()),
        Event::Pong(Bytes::new()),
        message(Kind::Binary, b"abc"),
        message(Kind::Binary, b""),
        message(Kind::Binary, &long[..300]),
        message(Kind::Binary, &long),
        Event::Close(Some(close(1000, "bye"))),
    ];
    (events, bytes)
}

#[test]
fn examples_of_rfc_6455_decode_byte_for_byte() {
    assert_eq!(client("810548656c6c6f"), (vec![text("Hello")], None));
    assert_eq!(decode(Role::Server, &hex("818537fa213d7f9f4d5158")), (vec![text("Hello")], None));
    assert_eq!(client("010348656c 80026c6f"), (vec![text("Hello")], None));
    assert_eq!(client("890548656c6c6f"), (vec![Event::Ping("Hello".into())], None));
    assert_eq!(
        decode(Role::Server, &hex("8a8537fa213d7f9f4d5158")),
        (vec![Event::Pong("Hello".into())], None)
    );
    let long = [hex("827e0100"), vec![7; 256]].concat();
    assert_eq!(decode(Role::Client, &long), (vec![message(Kind::Binary, [7; 256])], None));
    let longer = [hex("827f0000000000010000"), vec![7; 65536]].concat();
    assert_eq!(decode(Role::Client, &longer), (vec![message(Kind::Binary, [7; 65536])], None));
}

#[test]
fn examples_of_rfc_6455_encode_byte_for_byte() {
    let hello = b"Hello";
    assert_eq!(encoded(|out| Encoder::message(out, Kind::Text, hello, None)), hex("810548656c6c6f"));
    let masked = encoded(|out| Encoder::message(out, Kind::Text, hello, Some(KEY)));
    assert_eq!(masked, hex("818537fa213d7f9f4d5158"));
    let fragments = encoded(|out| {
        Encoder::frame(out, Opcode::Text, false, b"Hel", None);
        Encoder::frame(out, Opcode::Continuation, true, b"lo", None);
    });
    assert_eq!(fragments, hex("010348656c80026c6f"));
    assert_eq!(encoded(|out| Encoder::ping(out, hello, None)), hex("890548656c6c6f"));
    assert_eq!(encoded(|out| Encoder::pong(out, hello, Some(KEY))), hex("8a8537fa213d7f9f4d5158"));
    assert_eq!(*Encoder::head(Opcode::Binary, true, 256, None), hex("827e0100"));
    assert_eq!(*Encoder::head(Opcode::Binary, true, 65536, None), hex("827f0000000000010000"));
}

#[test]
fn heads_have_the_shortest_length_at_every_edge() {
    let head = |len| Encoder::head(Opcode::Binary, true, len, None).to_vec();
    assert_eq!(head(0), hex("8200"));
    assert_eq!(head(125), hex("827d"));
    assert_eq!(head(126), hex("827e007e"));
    assert_eq!(head(65535), hex("827effff"));
    assert_eq!(head(65536), hex("827f0000000000010000"));
    assert_eq!(Encoder::head(Opcode::Text, false, 65536, Some(KEY)).len(), MAX_HEAD);
}

#[test]
fn item_083_fragments_are_pieces_of_one_message_around_control_frames() {
    let (events, error) = client("0201 61  8901 70  0001 62  0000  8000");
    assert_eq!((events, error), (vec![Event::Ping("p".into()), message(Kind::Binary, b"ab")], None));
}

#[test]
fn a_message_without_bytes_is_one_event_however_many_frames_it_has() {
    assert_eq!(client("8200"), (vec![message(Kind::Binary, b"")], None));
    assert_eq!(client("0200 0000 0000 8000"), (vec![message(Kind::Binary, b"")], None));
}

#[test]
fn input_cut_at_every_byte_gives_the_same_events() {
    for (role, mask) in [(Role::Server, Some(KEY)), (Role::Client, None)] {
        let (events, bytes) = transcript(mask);
        assert_eq!(run(role, STRICT, [&bytes[..]]), (events.clone(), None));
        assert_eq!(run(role, STRICT, bytes.chunks(1)), (events.clone(), None));
        // The long message at the end is the same at every byte.
        for at in (0..1500).chain(bytes.len() - 20..bytes.len()) {
            let (front, back) = bytes.split_at(at);
            assert_eq!(run(role, STRICT, [front, back]), (events.clone(), None), "cut at {at}");
        }
    }
}

#[test]
fn pieces_are_delivered_as_they_arrive_and_without_a_copy() {
    let mut decoder = Decoder::new(Role::Client, Limits::default());
    let mut input = BytesMut::from(&hex("827f0000000002000000")[..]);
    assert_eq!(decoder.decode(&mut input), Ok(None));
    let mut total = 0;
    while total < MAX_MESSAGE {
        input = BytesMut::from(&[9; 8192][..]);
        let at = input.as_ptr();
        let Ok(Some(Event::Data(piece))) = decoder.decode(&mut input) else { panic!() };
        assert_eq!((piece.bytes.as_ptr(), piece.bytes.len()), (at, 8192));
        assert_eq!((piece.start, piece.end), (total == 0, total + 8192 == MAX_MESSAGE));
        total += 8192;
    }
}

#[test]
fn frames_against_the_rules_are_errors_with_their_close_code() {
    use Error::*;
    let cases = [
        ("c100", ReservedBits(0x40), 1002),
        ("a100", ReservedBits(0x20), 1002),
        ("9100", ReservedBits(0x10), 1002),
        ("8300", Opcode(0x3), 1002),
        ("8b00", Opcode(0xb), 1002),
        ("8180", Masked, 1002),
        ("0900", FragmentedControl(super::Opcode::Ping), 1002),
        ("897e", ControlTooLarge(super::Opcode::Ping), 1002),
        ("887f", ControlTooLarge(super::Opcode::Close), 1002),
        ("827e007d", Length, 1002),
        ("827f000000000000ffff", Length, 1002),
        ("827f8000000000000000", Length, 1002),
        ("827fffffffffffffffff", Length, 1002),
        ("8000", NothingToContinue, 1002),
        ("010161 8100", Interleaved, 1002),
        ("010161 8200", Interleaved, 1002),
        ("827f0000000002000001", TooLarge { limit: MAX_MESSAGE }, 1009),
        ("827f7fffffffffffffff", TooLarge { limit: MAX_MESSAGE }, 1009),
        ("8102c328", Text, 1007),
        ("8101c3", Text, 1007),
        ("0101c3 80016a", Text, 1007),
        ("880103", CloseSize, 1002),
        ("880203e7", CloseCode(999), 1002),
        ("880303e8ff", CloseReason, 1007),
    ];
    for (bytes, error, code) in cases {
        let bytes = hex(bytes);
        assert_eq!(decode(Role::Client, &bytes).1, Some(error), "{error}");
        assert_eq!(run(Role::Client, STRICT, bytes.chunks(1)).1, Some(error), "{error} byte for byte");
        assert_eq!(error.close_code().0, code, "{error}");
        assert!(error.close_code().may_be_sent());
    }
    assert_eq!(decode(Role::Server, &hex("8200")).1, Some(NotMasked));
    assert_eq!(NotMasked.close_code(), super::CloseCode::PROTOCOL_ERROR);
}

#[test]
fn the_limit_counts_all_fragments_of_a_message_and_no_other() {
    let limits = Limits { message: 4, utf8: false };
    let bytes = hex("0202 6161  8902 7070  8002 6262  8204 63636363");
    assert_eq!(run(Role::Client, limits, [&bytes[..]]).1, None);
    let (events, error) = run(Role::Client, limits, [&hex("0202 6161  0003 62")[..]]);
    assert_eq!(events.len(), 1, "what came before the head that is too much");
    assert_eq!(error, Some(Error::TooLarge { limit: 4 }));
}

#[test]
fn close_codes_are_those_that_may_be_sent() {
    for code in 0..=u16::MAX {
        let may = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let bytes = [hex("8802"), code.to_be_bytes().to_vec()].concat();
        let expected = if may {
            (vec![Event::Close(Some(close(code, "")))], None)
        } else {
            (vec![], Some(Error::CloseCode(code)))
        };
        assert_eq!(decode(Role::Client, &bytes), expected);
    }
    assert_eq!(client("8800"), (vec![Event::Close(None)], None));
}

#[test]
fn nothing_counts_after_a_close() {
    let mut decoder = Decoder::new(Role::Client, STRICT);
    let mut input = BytesMut::from(&hex("880203e8 8100 ffff")[..]);
    assert!(!decoder.is_closed());
    assert_eq!(decoder.decode(&mut input), Ok(Some(Event::Close(Some(Close::normal())))));
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert!(decoder.is_closed() && input.is_empty());
}

#[test]
fn item_089_the_normal_end_is_close_1000_without_a_reason() {
    assert_eq!(encoded(|out| Encoder::close(out, Some(&Close::normal()), None)), hex("880203e8"));
    assert_eq!(encoded(|out| Encoder::close(out, None, None)), hex("8800"));
}

#[test]
fn our_close_is_always_one_that_may_be_sent() {
    let cut = encoded(|out| Encoder::close(out, Some(&close(1011, &"ü".repeat(100))), None));
    assert_eq!(decode(Role::Client, &cut).0, [Event::Close(Some(close(1011, &"ü".repeat(61))))]);
    assert_eq!(encoded(|out| Encoder::close(out, Some(&close(1006, "gone")), None)), hex("8800"));
}

#[test]
fn text_is_checked_only_where_asked() {
    let bytes = hex("8102c328");
    let lax = run(Role::Client, Limits::default(), [&bytes[..]]);
    assert_eq!(lax, (vec![message(Kind::Text, [0xc3, 0x28])], None));
    assert_eq!(client("8202c328"), (vec![message(Kind::Binary, [0xc3, 0x28])], None));
}

#[test]
fn masking_goes_on_over_any_cut() {
    let plain: Vec<u8> = (0..200).map(|n| n as u8).collect();
    let slow: Vec<u8> = plain.iter().zip(KEY.0.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    for at in 0..plain.len() {
        let mut bytes = plain.clone();
        let (front, back) = bytes.split_at_mut(at);
        let mut key = KEY;
        key.apply(front);
        key.apply(back);
        assert_eq!(bytes, slow, "cut at {at}");
    }
}

#[test]
fn item_084_only_the_last_of_many_pings_is_answered() {
    let ping = encoded(|out| Encoder::ping(out, b"0123", Some(KEY)));
    let mut pongs = Pongs::new();
    let mut out = BytesMut::new();
    assert!(!pongs.answer(&mut out, None) && out.is_empty());
    let mut decoder = Decoder::new(Role::Server, Limits::default());
    let mut input = BytesMut::from(&ping.repeat(100_000)[..]);
    let mut pings = 0;
    while let Some(event) = decoder.decode(&mut input).unwrap() {
        let Event::Ping(payload) = event else { panic!() };
        pongs.receive(&payload);
        pings += 1;
    }
    pongs.receive(b"last");
    assert_eq!(pings, 100_000);
    assert!(pongs.is_owed() && pongs.answer(&mut out, None) && !pongs.is_owed());
    assert_eq!(out, [&hex("8a04")[..], b"last"].concat());
    assert!(size_of::<Pongs>() < 256);
}

#[test]
fn endless_fragments_cost_no_memory() {
    let mut decoder = Decoder::new(Role::Client, STRICT);
    let mut input = BytesMut::from(&hex("0100")[..]);
    let empty = hex("0000").repeat(4096);
    for _ in 0..50 {
        input.extend_from_slice(&empty);
        assert_eq!(decoder.decode(&mut input), Ok(None));
        assert!(input.is_empty());
    }
    assert!(input.capacity() <= 4 * empty.len());
    assert!(size_of::<Decoder>() <= 128, "{}", size_of::<Decoder>());
}

#[test]
fn announced_lengths_allocate_nothing() {
    for head in ["82ff 0000000002000000 00000000", "82fe ffff 00000000", "89fd 00000000"] {
        let mut decoder = Decoder::new(Role::Server, Limits::default());
        let mut input = BytesMut::with_capacity(64);
        input.extend_from_slice(&hex(head));
        assert_eq!(decoder.decode(&mut input), Ok(None));
        assert!(input.capacity() <= 64, "the decoder leaves room to its caller");
    }
}

#[test]
fn base64_reads_and_writes_what_go_does() {
    let decode = |url, text: &str| {
        let mut out = BytesMut::new();
        let mut decoder = if url { base64::Decoder::url() } else { base64::Decoder::standard() };
        decoder.push(text.as_bytes(), &mut out).and_then(|()| decoder.finish(&mut out)).ok()?;
        Some(out.to_vec())
    };
    // RFC 4648 section 10.
    for (plain, coded) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("fooba", "Zm9vYmE="),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(encoded(|out| base64::encode(plain.as_bytes(), out)), coded.as_bytes());
        assert_eq!(base64::encoded_len(plain.len()), coded.len());
        assert_eq!(decode(false, coded).unwrap(), plain.as_bytes());
        assert_eq!(decode(true, coded.trim_end_matches('=')).unwrap(), plain.as_bytes());
    }
    assert_eq!(decode(false, "Zm\r9v\nYg=\r\n=\n").unwrap(), b"foob", "line ends are skipped");
    assert_eq!(decode(false, "Zh==").unwrap(), b"f", "left-over bits are not looked at");
    assert_eq!(decode(false, "+/+/").unwrap(), decode(true, "-_-_").unwrap());
    for bad in
        ["Z", "Zg", "Zg=", "Zg===", "=", "Z===", "Zm9v=", "Zg==Zg==", "Zg=a", "Zm9v Yg==", "-_-_", "Zm8=="]
    {
        assert_eq!(decode(false, bad), None, "{bad}");
    }
    for bad in ["Z", "Zg==", "+/+/", "Zm9vY"] {
        assert_eq!(decode(true, bad), None, "{bad}");
    }
}

/// A pipe that an independent implementation reads and writes.
#[derive(Default)]
struct Pipe {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Short reads, so that the peer meets cuts as well.
        let len = self.input.len().min(into.len()).min(7);
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into[..len].copy_from_slice(&self.input[..len]);
        self.input.drain(..len);
        Ok(len)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_independent_peer_reads_what_we_write() {
    for (role, mask) in [(PeerRole::Server, Some(KEY)), (PeerRole::Client, None)] {
        let input = transcript(mask).1;
        let mut peer = WebSocket::from_raw_socket(Pipe { input, ..Pipe::default() }, role, None);
        let mut read = Vec::new();
        loop {
            match peer.read() {
                Ok(PeerMessage::Text(text)) => read.push(text.as_str().as_bytes().to_vec()),
                Ok(PeerMessage::Binary(bytes)) => read.push(bytes.to_vec()),
                Ok(PeerMessage::Close(close)) => {
                    let close = close.unwrap();
                    assert_eq!((u16::from(close.code), close.reason.as_str()), (1000, "bye"));
                    break;
                }
                Ok(_) => {}
                Err(PeerError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => panic!("starved"),
                Err(error) => panic!("{error}"),
            }
        }
        let long = vec![0xa5; 70_000];
        let expected: [&[u8]; 5] = ["grüß\u{1f980}".as_bytes(), b"abc", b"", &long[..300], &long];
        assert_eq!(read, expected);
    }
}

#[test]
fn we_read_what_an_independent_peer_writes() {
    for (peer_role, role) in [(PeerRole::Client, Role::Server), (PeerRole::Server, Role::Client)] {
        let mut peer = WebSocket::from_raw_socket(Pipe::default(), peer_role, None);
        let long = vec![0x5a; 70_000];
        peer.write(PeerMessage::text("grüß")).unwrap();
        peer.write(PeerMessage::Ping("p".into())).unwrap();
        peer.write(PeerMessage::binary(long.clone())).unwrap();
        peer.close(None).unwrap();
        peer.flush().unwrap();
        let written = std::mem::take(&mut peer.get_mut().output);
        let expected =
            vec![text("grüß"), Event::Ping("p".into()), message(Kind::Binary, &long), Event::Close(None)];
        assert_eq!(run(role, STRICT, written.chunks(1000)), (expected, None));
    }
}

/// One frame of a peer that knows the rules about heads, if not those about sequences.
fn any_frame() -> impl Strategy<Value = (u8, bool, Vec<u8>)> {
    let opcode = prop_oneof![Just(0u8), Just(1), Just(2), Just(8), Just(9), Just(10), 0..16u8];
    (opcode, any::<bool>(), prop::collection::vec(any::<u8>(), 0..140))
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..40usize, 1..20)
}

/// The same bytes in runs of these lengths, over and over.
fn cut<'a>(bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut runs = Vec::new();
    let mut rest = bytes;
    for len in lengths.iter().cycle() {
        if rest.is_empty() {
            return runs;
        }
        let (run, after) = rest.split_at((*len).min(rest.len()));
        runs.push(run);
        rest = after;
    }
    runs
}

proptest! {
    #[test]
    fn decode_of_encode_is_the_same(
        messages in prop::collection::vec((any::<bool>(), "\\PC{0,60}", cuts()), 0..8),
        key in any::<Option<[u8; 4]>>(),
        lengths in cuts(),
    ) {
        let (role, mask) = (if key.is_some() { Role::Server } else { Role::Client }, key.map(MaskKey));
        let mut out = BytesMut::new();
        let mut expected = Vec::new();
        for (binary, content, fragments) in &messages {
            let kind = if *binary { Kind::Binary } else { Kind::Text };
            expected.push(message(kind, content));
            let mut opcode = Opcode::from(kind);
            for fragment in cut(content.as_bytes(), fragments) {
                Encoder::frame(&mut out, opcode, false, fragment, mask);
                opcode = Opcode::Continuation;
            }
            Encoder::frame(&mut out, opcode, true, b"", mask);
        }
        prop_assert_eq!(run(role, STRICT, cut(&out, &lengths)), (expected, None));
    }

    #[test]
    fn any_cuts_of_any_frames_give_the_same_events_and_error(
        frames in prop::collection::vec(any_frame(), 0..12),
        lengths in cuts(),
    ) {
        let mut bytes = Vec::new();
        for (opcode, fin, payload) in frames {
            let mut head = Encoder::head(Opcode::Binary, fin, payload.len(), Some(KEY)).to_vec();
            head[0] = head[0] & FIN | opcode;
            bytes.extend(head);
            let mut payload = payload;
            { KEY }.apply(&mut payload);
            bytes.extend(payload);
        }
        let whole = run(Role::Server, STRICT, [&bytes[..]]);
        let parts = run(Role::Server, STRICT, cut(&bytes, &lengths));
        // Where text goes bad, a cut decides how much of it was delivered before.
        if whole.1 != Some(Error::Text) {
            prop_assert_eq!(&whole.0, &parts.0);
        }
        prop_assert_eq!(whole.1, parts.1);
    }

    #[test]
    fn random_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), lengths in cuts()) {
        for role in [Role::Client, Role::Server] {
            let whole = run(role, Limits::default(), [&bytes[..]]);
            prop_assert_eq!(whole, run(role, Limits::default(), cut(&bytes, &lengths)));
        }
    }

    #[test]
    fn base64_of_any_bytes_in_any_cuts_is_the_same(
        plain in prop::collection::vec(any::<u8>(), 0..300),
        lengths in cuts(),
    ) {
        let coded = encoded(|out| base64::encode(&plain, out));
        let mut out = BytesMut::new();
        let mut decoder = base64::Decoder::standard();
        for run in cut(&coded, &lengths) {
            decoder.push(run, &mut out).unwrap();
        }
        decoder.finish(&mut out).unwrap();
        prop_assert_eq!(&out[..], &plain[..]);
    }
}
