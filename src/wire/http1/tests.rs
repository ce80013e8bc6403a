//! Tests of the far side's HTTP answers.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use proptest::prelude::*;

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\nDate: Sun, 13 Nov 2022 09:15:18 GMT\r\n\r\n";

const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\n\
    X-Content-Type-Options: nosniff\r\nDate: Sun, 13 Nov 2022 09:15:18 GMT\r\nContent-Length: 18\r\n\r\n";

fn head(text: &str) -> ResponseHead {
    ResponseHead::parse(text.as_bytes()).unwrap().unwrap()
}

fn parse_error(raw: &[u8]) -> String {
    ResponseHead::parse(raw).unwrap_err().to_string()
}

fn length(headers: &str) -> Result<BodyLength, Error> {
    head(&format!("HTTP/1.1 400 Bad Request\r\n{headers}\r\n")).body_length()
}

fn written(text: &str) -> String {
    let head = head(text);
    String::from_utf8(reserialize(&head, head.body_length().unwrap()).to_vec()).unwrap()
}

/// Runs a body through a scanner in two parts and says how many bytes belonged to it, if it ended.
fn scan(length: BodyLength, bytes: &[u8], cut: usize) -> Result<Option<usize>, Error> {
    let mut scanner = BodyScanner::new(length);
    let first = scanner.scan(&bytes[..cut])?;
    if first.complete {
        return Ok(Some(first.used));
    }
    assert_eq!(first.used, cut, "an unfinished body uses all");
    let second = scanner.scan(&bytes[cut..])?;
    Ok(second.complete.then_some(cut + second.used))
}

#[test]
fn a_head_cut_at_any_byte_is_asked_for_more_and_then_read_whole() {
    let raw = [SWITCHING.as_bytes(), b"\x80\x03\x00\x02"].concat();
    for cut in 0..SWITCHING.len() {
        assert_eq!(ResponseHead::parse(&raw[..cut]).unwrap(), None, "cut at {cut}");
    }
    let head = ResponseHead::parse(&raw).unwrap().unwrap();
    assert_eq!((head.minor_version, head.status, head.len), (1, 101, SWITCHING.len()));
    assert_eq!(head.reason, "Switching Protocols");
    assert_eq!(head.headers.len(), 4);
    assert_eq!(head.headers[2], ("X-Stream-Protocol-Version".into(), "v4.channel.k8s.io".into()));
    assert_eq!(head.values("upgrade").collect::<Vec<_>>(), [b"SPDY/3.1"]);
    assert_eq!(head.body_length().unwrap(), BodyLength::None);
}

#[test]
fn names_values_and_reason_are_kept_as_sent() {
    let raw = b"HTTP/1.0 500 d\xe9j\xe0 vu\r\nx-lOWer:  a b\t\r\nX-Lower: \xff\r\n\r\n";
    let head = ResponseHead::parse(raw).unwrap().unwrap();
    assert_eq!((head.minor_version, head.status), (0, 500));
    assert_eq!(head.reason, &b"d\xe9j\xe0 vu"[..]);
    assert_eq!(head.headers[0].0, "x-lOWer");
    assert_eq!(head.values("x-lower").collect::<Vec<_>>(), [&b"a b"[..], b"\xff"]);
}

#[test]
fn a_reason_phrase_may_be_missing() {
    assert_eq!(head("HTTP/1.1 500\r\n\r\n").reason, "");
    assert_eq!(head("HTTP/1.1 500 \r\n\r\n").reason, "");
    assert_eq!(
        written("HTTP/1.1 500\r\nContent-Length: 1\r\n\r\n"),
        "HTTP/1.1 500 \r\nContent-Length: 1\r\n\r\n"
    );
}

#[test]
fn what_is_no_http_is_quoted_as_go_does() {
    assert_eq!(
        parse_error(b"\x15\x03\x01\x00\x02\x02"),
        r#"malformed HTTP response "\x15\x03\x01\x00\x02\x02""#
    );
    assert_eq!(parse_error(b"SSH-2.0-x\"\\\r\nmore"), r#"malformed HTTP response "SSH-2.0-x\"\\""#);
    assert_eq!(parse_error(b"HTTP/2.0 200 OK\r\n\r\n"), r#"malformed HTTP response "HTTP/2.0 200 OK""#);
    assert_eq!(parse_error(b"\r\nHTTP/1.1 200 OK\r\n\r\n"), r#"malformed HTTP response """#);
    let long = parse_error(&[b'x'; 9000]);
    assert_eq!(long.len(), "malformed HTTP response \"\"".len() + MAX_QUOTED);
}

#[test]
fn a_head_over_its_bounds_is_refused() {
    let line = format!("X-Filler: {}\r\n", "x".repeat(1000));
    let endless = format!("HTTP/1.1 200 OK\r\n{}", line.repeat(70));
    assert!(ResponseHead::parse(&endless.as_bytes()[..MAX_HEAD - 1]).unwrap().is_none());
    assert!(matches!(ResponseHead::parse(&endless.as_bytes()[..MAX_HEAD]), Err(Error::TooLarge)));
    assert!(matches!(ResponseHead::parse(endless.as_bytes()), Err(Error::TooLarge)));
    let crowded = |lines| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(lines));
    assert_eq!(head(&crowded(MAX_HEADERS)).headers.len(), MAX_HEADERS);
    assert!(matches!(ResponseHead::parse(crowded(MAX_HEADERS + 1).as_bytes()), Err(Error::TooLarge)));
}

#[test]
fn body_length_follows_go() {
    assert_eq!(length("Content-Length: 18\r\n").unwrap(), BodyLength::Known(18));
    assert_eq!(length("Content-Length: 0\r\n").unwrap(), BodyLength::Known(0));
    assert_eq!(length("Content-Length: 18\r\ncontent-length: 18\r\n").unwrap(), BodyLength::Known(18));
    assert_eq!(length("Transfer-Encoding: Chunked\r\n").unwrap(), BodyLength::Chunked);
    assert_eq!(length("Content-Length: 18\r\nTransfer-Encoding: chunked\r\n").unwrap(), BodyLength::Chunked);
    assert_eq!(length("").unwrap(), BodyLength::UntilClose);
    for status in ["100 Continue", "101 Switching Protocols", "204 No Content", "304 Not Modified"] {
        let head = head(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n"));
        assert_eq!(head.body_length().unwrap(), BodyLength::None);
    }
    let old = head("HTTP/1.0 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(old.body_length().unwrap(), BodyLength::UntilClose);
}

#[test]
fn a_body_length_in_doubt_is_an_error() {
    for headers in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: \r\n",
        "Content-Length: +1\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 1, 1\r\n",
        "Content-Length: 0x1\r\n",
        "Content-Length: 9223372036854775808\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert!(matches!(length(headers), Err(Error::ContentLength(_))), "{headers}");
    }
    for headers in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert!(matches!(length(headers), Err(Error::TransferEncoding(_))), "{headers}");
    }
}

#[test]
fn a_head_is_written_anew_as_go_writes_it() {
    assert_eq!(
        written(NOT_FOUND),
        "HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Date: Sun, 13 Nov 2022 09:15:18 GMT\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    );
    assert_eq!(
        written(
            "HTTP/1.1 403 Forbidden\r\nx-accepted-stream-protocol-versions: v4.channel.k8s.io\r\n\
             TRANSFER-ENCODING: chunked\r\nTrailer: X\r\nContent-Length: 5\r\n\
             X-Accepted-Stream-Protocol-Versions: v3.channel.k8s.io\r\nAge: 0\r\n\r\n"
        ),
        "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\nAge: 0\r\n\
         X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io\r\n\
         X-Accepted-Stream-Protocol-Versions: v3.channel.k8s.io\r\n\r\n"
    );
}

#[test]
fn a_body_of_unknown_length_brings_connection_close() {
    assert_eq!(
        written("HTTP/1.1 403 Forbidden\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nA: b\r\n\r\n"),
        "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nA: b\r\n\r\n"
    );
    let raw_refusal = "HTTP/1.1 403 Forbidden\r\n\r\n";
    assert_eq!(written(raw_refusal), "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n");
    let own_close = "HTTP/1.1 500 Oops\r\nConnection: close\r\nAge: 1\r\n\r\n";
    assert_eq!(written(own_close), "HTTP/1.1 500 Oops\r\nAge: 1\r\nConnection: close\r\n\r\n");
    let old = "HTTP/1.0 500 Oops\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(written(old), "HTTP/1.0 500 Oops\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
}

#[test]
fn a_declared_empty_body_says_so_after_the_headers() {
    assert_eq!(
        written("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nDate: x\r\n\r\n"),
        "HTTP/1.1 400 Bad Request\r\nDate: x\r\nContent-Length: 0\r\n\r\n"
    );
}

#[test]
fn names_take_the_canonical_case_of_go() {
    for (name, wanted) in [
        ("sec-websocket-key", "Sec-Websocket-Key"),
        ("Sec-WebSocket-Key", "Sec-Websocket-Key"),
        ("HOST", "Host"),
        ("etag", "Etag"),
        ("x--y-", "X--Y-"),
        ("a b-c", "a b-c"),
        ("", ""),
    ] {
        assert_eq!(canonical(name), wanted);
    }
}

#[test]
fn bodies_end_at_the_same_byte_wherever_they_are_cut() {
    let chunked =
        b"5\r\nhello\r\n00A;ext=\"v\"\r\n0123456789\r\n1 \r\nx\r\n0;last\r\nX-Trailer: y\r\nZ: z\r\n\r\nNEXT";
    let cases = [
        (BodyLength::None, &b"abc"[..], Some(0)),
        (BodyLength::Known(0), b"abc", Some(0)),
        (BodyLength::Known(3), b"abcde", Some(3)),
        (BodyLength::Known(u64::MAX), b"abcde", None),
        (BodyLength::UntilClose, b"abcde", None),
        (BodyLength::Chunked, b"0\r\n\r\n", Some(5)),
        (BodyLength::Chunked, b"0\r\n\r", None),
        (BodyLength::Chunked, chunked, Some(chunked.len() - 4)),
    ];
    for (length, bytes, wanted) in cases {
        for cut in 0..=bytes.len() {
            assert_eq!(scan(length, bytes, cut).unwrap(), wanted, "{length:?} cut at {cut}");
        }
    }
}

#[test]
fn the_end_of_the_connection_cuts_a_body_short_unless_it_ends_it() {
    let end = |length, bytes: &[u8]| {
        let mut scanner = BodyScanner::new(length);
        scanner.scan(bytes).unwrap();
        scanner.end()
    };
    assert!(end(BodyLength::UntilClose, b"x").is_ok());
    assert!(end(BodyLength::Known(1), b"x").is_ok());
    assert!(end(BodyLength::None, b"").is_ok());
    assert!(end(BodyLength::Chunked, b"0\r\n\r\n").is_ok());
    assert!(matches!(end(BodyLength::Known(2), b"x"), Err(Error::Truncated)));
    assert!(matches!(end(BodyLength::Chunked, b"0\r\n"), Err(Error::Truncated)));
}

#[test]
fn chunks_in_doubt_are_errors() {
    let long_line = format!("1;{}", "x".repeat(MAX_CHUNK_LINE));
    let long_trailer = format!("0\r\n{}", "A: b\r\n".repeat(MAX_TRAILERS / 6 + 2));
    for text in [
        "\r\n",
        ";\r\n",
        "g\r\n",
        "-1\r\n",
        "0x1\r\n",
        "1\nx\r\n",
        "1;a\nx\r\n",
        "1\rx",
        "1\r\nxy",
        "1\r\nx\n",
        "0\r\nA: b\n\r\n",
        "0\r\n\n",
        "11111111111111111\r\n",
        &long_line,
        &long_trailer,
    ] {
        for cut in [0, text.len() / 2, text.len() - 1] {
            assert!(matches!(scan(BodyLength::Chunked, text.as_bytes(), cut), Err(Error::Chunk)), "{text:?}");
        }
    }
}

proptest! {
    #[test]
    fn chunked_bodies_end_where_they_end(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
        cuts in proptest::collection::vec(1..40usize, 1..8),
        after in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        let end = body.len();
        body.extend_from_slice(&after);
        let mut scanner = BodyScanner::new(BodyLength::Chunked);
        let mut at = 0;
        let mut cuts = cuts.into_iter().cycle();
        loop {
            let part = &body[at..body.len().min(at + cuts.next().unwrap())];
            let scanned = scanner.scan(part).unwrap();
            at += scanned.used;
            if scanned.complete {
                break;
            }
            prop_assert_eq!(scanned.used, part.len());
        }
        prop_assert_eq!(at, end);
    }

    #[test]
    fn garbage_never_panics(
        raw in proptest::collection::vec(any::<u8>(), 0..600),
        start in prop_oneof![Just(""), Just("HTTP/1.1 "), Just("HTTP/1.1 200 OK\r\n"), Just("5;")],
    ) {
        let raw = [start.as_bytes(), &raw].concat();
        if let Ok(Some(head)) = ResponseHead::parse(&raw)
            && let Ok(length) = head.body_length()
        {
            prop_assert!(head.len <= raw.len());
            let again = reserialize(&head, length);
            prop_assert!(again.ends_with(b"\r\n\r\n"));
        }
        if let Ok(scanned) = BodyScanner::new(BodyLength::Chunked).scan(&raw) {
            prop_assert!(scanned.used <= raw.len());
        }
    }
}
