use proptest::prelude::*;

use super::*;
use crate::wire::tape;

/// What of these pieces is written down of stdin: `=bytes` or `~length` each.
fn written(pieces: &[(u64, Kind, &[u8])]) -> Vec<String> {
    let (mut echo, mut out) = (Echo::default(), Tape::default());
    for &(millis, kind, bytes) in pieces {
        echo.piece(Piece { at: Duration::from_millis(millis), kind, bytes }, &mut out);
    }
    echo.end(&mut out);
    let tape = out.take().content();
    let (mut rest, mut written) = (&tape[..], Vec::new());
    while let Some(piece) = tape::next(&mut rest).unwrap() {
        match piece.kind {
            Kind::Stdin => written.push(format!("={}", piece.bytes.escape_ascii())),
            Kind::Withheld => written.push(format!("~{}", String::from_utf8_lossy(piece.bytes))),
            _ => {}
        }
    }
    written
}

const I: Kind = Kind::Stdin;
const O: Kind = Kind::Stdout;

#[test]
fn what_the_terminal_shows_is_written_and_what_it_does_not_is_counted() {
    type Case<'a> = (&'a str, &'a [(u64, Kind, &'a [u8])], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (
            "a command, key by key",
            &[
                (0, O, b"$ "),
                (1, I, b"l"),
                (2, O, b"l"),
                (3, I, b"s"),
                (4, O, b"s"),
                (5, I, b"\r"),
                (6, O, b"\r\na\r\n"),
            ],
            &["=ls\\r"],
        ),
        ("a command at once", &[(0, I, b"ls -l\r"), (9, O, b"ls -l\r\n")], &["=ls -l\\r"]),
        ("keys that draw nothing", &[(0, I, b"\x1b[A\r")], &["=\\x1b[A\\r"]),
        (
            "editing",
            &[
                (0, I, b"lx"),
                (1, O, b"lx"),
                (2, I, b"\x7f"),
                (3, O, b"\x08\x1b[K"),
                (4, I, b"s\r"),
                (5, O, b"s\r\n"),
            ],
            &["=lx\\x7fs\\r"],
        ),
        (
            "completion",
            &[(0, I, b"cat long\t -n\r"), (1, O, b"cat longname.txt  -n\r\n")],
            &["=cat long\\t -n\\r"],
        ),
        (
            "typed in the middle of a line",
            &[
                (0, I, b"\x1b[D"),
                (1, I, b"x"),
                (2, O, b"xtail\x08\x08\x08\x08"),
                (3, I, b"y\r"),
                (4, O, b"ytail\r\n"),
            ],
            &["=\\x1b[Dxy\\r"],
        ),
        (
            "a shell that colours what is typed",
            &[(0, I, b"l"), (1, O, b"l"), (2, I, b"s\r"), (3, O, b"\x08\x1b[32mls\x1b[0m\r\n")],
            &["=ls\\r"],
        ),
        ("a line that readline wraps", &[(0, I, b"abcdef\r"), (1, O, b"abc \rdef\r\n")], &["=abcdef\\r"]),
        (
            "a password, key by key",
            &[
                (0, O, b"Password: "),
                (1, I, b"s"),
                (2, I, b"3"),
                (3, I, b"c"),
                (4, I, b"\r"),
                (5, O, b"\r\nok\r\n"),
            ],
            &["~3", "=\\r"],
        ),
        ("a password at once", &[(0, I, b"s3cret\n"), (1, O, b"\r\nwelcome s3c\r\n")], &["~6", "=\\n"]),
        ("stars", &[(0, I, b"ab"), (1, O, b"**"), (2, I, b"\r"), (3, O, b"\r\n")], &["~2", "=\\r"]),
        (
            "a password of which one character is drawn for another reason",
            &[(0, I, b"e"), (1, O, b"progress"), (2, I, b"x"), (3, I, b"\r"), (4, O, b"\r\n")],
            &["~2", "=\\r"],
        ),
        (
            "a password that was corrected",
            &[(0, I, b"hun\x7fnter2\r"), (1, O, b"\r\nhun\r\n")],
            &["~9", "=\\r"],
        ),
        (
            "commands behind a password",
            &[(0, I, b"pw\r"), (1, O, b"\r\n$ "), (900, I, b"id\r"), (901, O, b"id\r\nuid=0\r\n$ ")],
            &["~2", "=\\r", "=id\\r"],
        ),
        (
            "a password that was given up",
            &[(0, I, b"hunt\x03"), (1, O, b"^C\r\n$ "), (900, I, b"id\r"), (901, O, b"id\r\n")],
            &["~4", "=\\x03", "=id\\r"],
        ),
        (
            "typed while a command runs",
            &[(0, I, b"sleep 5\rls\r"), (1, O, b"sleep 5\r\n"), (5000, O, b"$ ls\r\na b\r\n")],
            &["=sleep 5\\r", "=ls\\r"],
        ),
        (
            "a password that takes long, in parts",
            &[(0, I, b"hun"), (20_000, O, b"."), (20_001, I, b"ter2\r"), (20_002, O, b"ter2\r\n")],
            &["~3", "~4", "=\\r"],
        ),
        (
            "text in an editor that is left alone",
            &[
                (0, I, b"text"),
                (1, O, b"text"),
                (20_000, O, b"."),
                (20_001, I, b"more\r"),
                (20_002, O, b"more\r\n"),
            ],
            &["=text", "=more\\r"],
        ),
        (
            "an echo that stands in a title",
            &[(0, I, b"pw\r"), (1, O, b"\x1b]0;pw\x07\x1b[pw\r\n")],
            &["~2", "=\\r"],
        ),
        (
            "bracketed paste",
            &[(0, I, b"\x1b[200~id\x1b[201~\r"), (1, O, b"\x1b[7mid\x1b[27m\r\n")],
            &["=\\x1b[200~id\\x1b[201~\\r"],
        ),
        ("the end", &[(0, I, b"pw"), (1, Kind::StdinEnd, b""), (2, O, b"pw")], &["~2"]),
    ];
    for (name, pieces, expected) in cases {
        assert_eq!(written(pieces), *expected, "{name}");
    }
}

#[test]
fn floods_of_keys_are_held_only_up_to_the_bound() {
    let (mut echo, mut out) = (Echo::default(), Tape::default());
    for _ in 0..4 {
        for bytes in [&[b'x'; 40_000][..], &[b'\r'; 40_000][..]] {
            echo.piece(Piece { at: Duration::ZERO, kind: I, bytes }, &mut out);
            assert!(echo.held <= HELD_BYTES && echo.lines.len() <= HELD_LINES);
            let held: usize = echo.lines.iter().map(|line| line.bytes.len()).sum();
            assert_eq!(held, echo.held);
        }
    }
}

proptest! {
    #[test]
    fn as_many_bytes_are_released_and_counted_as_were_typed(
        pieces in proptest::collection::vec((0u64..5_000, any::<bool>(), proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(0x1b), Just(b'['), Just(b'a'), Just(8), any::<u8>()], 1..40)), 1..40),
    ) {
        let (mut echo, mut out, mut at, mut typed) = (Echo::default(), Tape::default(), 0, 0);
        for (after, stdin, bytes) in &pieces {
            at += after;
            let kind = if *stdin { I } else { O };
            typed += if *stdin { bytes.len() } else { 0 };
            echo.piece(Piece { at: Duration::from_millis(at), kind, bytes }, &mut out);
        }
        echo.end(&mut out);
        let tape = out.take().content();
        let (mut rest, mut told) = (&tape[..], 0);
        while let Some(piece) = tape::next(&mut rest).unwrap() {
            match piece.kind {
                Kind::Stdin => told += piece.bytes.len(),
                Kind::Withheld => told += std::str::from_utf8(piece.bytes).unwrap().parse::<usize>().unwrap(),
                _ => {}
            }
        }
        prop_assert_eq!(told, typed);
    }

    #[test]
    fn what_is_typed_unseen_is_never_written_whatever_else_is_drawn(
        secret in "[a-z]{4,12}",
        noise in proptest::collection::vec("[a-z \\r\\n]{0,9}", 14),
        pauses in proptest::collection::vec(0u64..12_000, 14),
        at_once in any::<bool>(),
    ) {
        let drawn = noise.concat();
        let plain: String = drawn.chars().filter(|c| !c.is_control()).collect();
        // A blank may be taken for a line break of the terminal.
        prop_assume!(!plain.contains(&secret) && !plain.replace(' ', "").contains(&secret));
        let keys: Vec<String> =
            if at_once { vec![secret.clone()] } else { secret.chars().map(String::from).collect() };
        let (mut at, mut pieces) = (0, Vec::new());
        for (n, noise) in noise.iter().enumerate() {
            at += pauses[n];
            if let Some(key) = keys.get(n) {
                pieces.push((at, I, key.as_bytes()));
            }
            pieces.push((at, O, noise.as_bytes()));
        }
        pieces.push((at, I, b"\r"));
        let stdin: String = written(&pieces).into_iter().filter(|item| item.starts_with('=')).collect();
        // One character can be drawn for another reason and then left alone for long: that is all that may be told.
        prop_assert!(stdin.len() < "=\\r".len() + 2 * secret.len().min(3), "{secret}: {stdin}");
    }
}
