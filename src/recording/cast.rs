//! Cast: the recording of a terminal, as an asciicast v2 that loses nothing.
//!
//! Every piece of a tape becomes an event. The codes that players know are theirs (`o`, `i`, `r`, `m`); for the rest
//! there are codes that they skip. An event is text; where a piece is not, the event shows it as well as text can, and
//! a `b` event directly behind it has the exact bytes in base64. Of a character that is cut between pieces, players get
//! all with its last byte.
//! Invariant: what [`read`] makes of what [`Writer`] wrote has the same bytes on each channel, in the same order and at
//! the same microseconds.
//! Source: <https://docs.asciinema.org/manual/asciicast/v2/>.

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::facts::{Details, Facts};
use crate::wire::remotecommand::{Resize, ResizeDecoder, TerminalSize};
use crate::wire::tape::{Kind, Piece, Tape};

/// What a terminal is when nobody says: the size every terminal once had.
const USUAL: TerminalSize = TerminalSize { width: 80, height: 24 };

/// What container runtimes set for a terminal, so what the program took it for.
const TERM: &str = "xterm";

/// Most bytes of a command in the header, which is for people; all of it is in the recording's details.
const MAX_COMMAND: usize = 4096;

/// The code of exact bytes.
const EXACT: &str = "b";

/// The code of a size, for players; the client's own words for it are an event of their own.
const SIZE: &str = "r";

/// From pieces to lines.
#[derive(Debug)]
pub struct Writer {
    header: Option<Header>,
    /// Bytes of a character of stdout whose rest has yet to come: three at most.
    begun: Vec<u8>,
    sizes: ResizeDecoder,
}

/// What is no cast of ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON of the right form.
    #[error("an event is not as podgate writes it")]
    Event(#[source] serde_json::Error),
    /// A time that is no number of seconds with six decimals.
    #[error("the time of an event is not as podgate writes it")]
    Time,
    /// A code that podgate does not write.
    #[error("the code of an event is not one that podgate writes")]
    Code,
    /// Exact bytes that are no base64, or of nothing.
    #[error("exact bytes of an event are not as podgate writes them")]
    Exact,
    /// An end of input with something in it.
    #[error("an end of input that carries something")]
    End,
    /// A header that is missing or where none can be.
    #[error("the header is missing or out of place")]
    Header,
}

/// Source: asciicast v2, "Header".
#[derive(Debug, Serialize)]
struct Header {
    version: u8,
    width: u16,
    height: u16,
    timestamp: i64,
    command: String,
    env: Env,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
struct Env {
    term: &'static str,
}

// === impl Writer ===

impl Writer {
    /// A cast of this session, of which nothing is written yet.
    pub fn new(facts: &Facts, details: &Details) -> Self {
        let mut command = details.command.join(" ");
        command.truncate(command.floor_char_boundary(MAX_COMMAND));
        let TerminalSize { width, height } = USUAL;
        let (timestamp, env) = (facts.started.as_second(), Env { term: TERM });
        let header = Header { version: 2, width, height, timestamp, command, env };
        Self { header: Some(header), begun: Vec::new(), sizes: ResizeDecoder::new() }
    }

    /// True until the header is written, which every cast has.
    pub fn is_new(&self) -> bool {
        self.header.is_some()
    }

    /// Appends pieces as lines. The header goes first of all, with the first size among the first pieces.
    pub fn write<'a>(&mut self, pieces: impl Iterator<Item = Piece<'a>> + Clone, out: &mut Vec<u8>) {
        if let Some(mut header) = self.header.take() {
            if let Some(size) = first_size(pieces.clone()) {
                (header.width, header.height) = (size.width, size.height);
            }
            serde_json::to_writer(&mut *out, &header).expect("text and numbers are JSON");
            out.push(b'\n');
        }
        for piece in pieces {
            match piece.kind {
                Kind::Stdout => self.output(piece.at, piece.bytes, out),
                // It carries nothing, whatever a piece may say.
                Kind::StdinEnd => event(out, piece.at, code(Kind::StdinEnd), "", None),
                kind => self.other(kind, piece, out),
            }
        }
    }

    fn output(&mut self, at: Duration, mut bytes: &[u8], out: &mut Vec<u8>) {
        let code = code(Kind::Stdout);
        if !self.begun.is_empty() && !bytes.is_empty() {
            let mut taken = 0;
            while let Some(&byte) = bytes.get(taken) {
                self.begun.push(byte);
                let whole = std::str::from_utf8(&self.begun);
                if whole.is_err_and(|error| error.error_len().is_some()) {
                    // This byte belongs to no such character.
                    self.begun.pop();
                    break;
                }
                taken += 1;
                if whole.is_ok() {
                    break;
                }
            }
            let (ended, rest) = bytes.split_at(taken);
            let whole = !is_begun(&self.begun) || !rest.is_empty();
            let shown = if whole { String::from_utf8_lossy(&self.begun) } else { "".into() };
            event(out, at, code, &shown, Some(ended));
            if !whole {
                return;
            }
            self.begun.clear();
            bytes = rest;
        }
        let begun = (1..=3.min(bytes.len())).find(|len| is_begun(&bytes[bytes.len() - len..])).unwrap_or(0);
        let (whole, begun) = bytes.split_at(bytes.len() - begun);
        if !whole.is_empty() {
            text_or_exact(out, at, code, whole);
        }
        if !begun.is_empty() {
            event(out, at, code, "", Some(begun));
            self.begun.extend_from_slice(begun);
        }
    }

    fn other(&mut self, kind: Kind, Piece { at, mut bytes, .. }: Piece<'_>, out: &mut Vec<u8>) {
        text_or_exact(out, at, code(kind), bytes);
        if kind == Kind::Resize {
            let mut last = None;
            while let Resize::Size(size) = self.sizes.decode(&mut bytes) {
                // A client without a terminal says that it has none; a player cannot draw on it.
                if size.width > 0 && size.height > 0 {
                    last = Some(size);
                }
            }
            // Of several at one time players show none but the last, and a size takes its sender two bytes.
            if let Some(TerminalSize { width, height }) = last {
                event(out, at, SIZE, &format!("{width}x{height}"), None);
            }
        }
    }
}

/// The pieces of a chunk of a cast, as a tape. `first` says whether it begins with the header.
///
/// # Errors
/// When the text is not as [`Writer`] writes it.
pub fn read(cast: &[u8], first: bool) -> Result<Vec<u8>, Error> {
    let mut lines = cast.strip_suffix(b"\n").unwrap_or(cast).split(|byte| *byte == b'\n');
    if cast.is_empty() {
        lines.next();
    }
    if first && !lines.next().is_some_and(|line| line.starts_with(b"{")) {
        return Err(Error::Header);
    }
    let mut tape = Tape::default();
    let mut last: Option<(Kind, String)> = None;
    for line in lines {
        let (time, code, text): (&RawValue, Cow<'_, str>, String) =
            serde_json::from_slice(line).map_err(Error::Event)?;
        if code == EXACT {
            let (kind, _) = last.take().ok_or(Error::Exact)?;
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| Error::Exact)?;
            put(&mut tape, kind, &bytes)?;
            continue;
        }
        if let Some((kind, text)) = last.take() {
            put(&mut tape, kind, text.as_bytes())?;
        }
        tape.at(parse_time(time.get()).ok_or(Error::Time)?);
        if code != SIZE {
            last = Some((kind(&code).ok_or(Error::Code)?, text));
        }
    }
    if let Some((kind, text)) = last {
        put(&mut tape, kind, text.as_bytes())?;
    }
    Ok(tape.take().content())
}

fn put(tape: &mut Tape, kind: Kind, bytes: &[u8]) -> Result<(), Error> {
    if kind == Kind::StdinEnd && !bytes.is_empty() {
        return Err(Error::End);
    }
    tape.put(kind, bytes);
    Ok(())
}

fn code(kind: Kind) -> &'static str {
    match kind {
        Kind::Stdin => "i",
        Kind::Stdout => "o",
        Kind::Stderr => "e",
        Kind::Result => "s",
        Kind::Resize => "z",
        Kind::StdinEnd => "d",
        Kind::Connection => "p",
        Kind::Gap => "m",
        Kind::Withheld => "w",
        Kind::Typed => "t",
        Kind::Told => "n",
    }
}

fn kind(code: &str) -> Option<Kind> {
    Some(match code {
        "i" => Kind::Stdin,
        "o" => Kind::Stdout,
        "e" => Kind::Stderr,
        "s" => Kind::Result,
        "z" => Kind::Resize,
        "d" => Kind::StdinEnd,
        "p" => Kind::Connection,
        "m" => Kind::Gap,
        "w" => Kind::Withheld,
        "t" => Kind::Typed,
        "n" => Kind::Told,
        _ => return None,
    })
}

fn first_size<'a>(pieces: impl Iterator<Item = Piece<'a>>) -> Option<TerminalSize> {
    let mut sizes = ResizeDecoder::new();
    for piece in pieces {
        let mut bytes = if piece.kind == Kind::Resize { piece.bytes } else { &[] };
        while let Resize::Size(size) = sizes.decode(&mut bytes) {
            if size.width > 0 && size.height > 0 {
                return Some(size);
            }
        }
    }
    None
}

/// True for the beginning of a character whose end is missing.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

fn text_or_exact(out: &mut Vec<u8>, at: Duration, code: &str, bytes: &[u8]) {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => event(out, at, code, text, None),
        Cow::Owned(text) => event(out, at, code, &text, Some(bytes)),
    }
}

/// Appends an event, and the exact bytes of what it shows if those are others.
fn event(out: &mut Vec<u8>, at: Duration, code: &str, text: &str, exact: Option<&[u8]>) {
    let mut line = |code: &str, text: &str| {
        write!(out, "[{}.{:06}, \"{code}\", ", at.as_secs(), at.subsec_micros()).expect("memory takes all");
        quote(text, out);
        out.extend_from_slice(b"]\n");
    };
    line(code, text);
    if let Some(exact) = exact {
        line(EXACT, &BASE64_STANDARD.encode(exact));
    }
}

/// Appends text as a JSON string. By hand, because all output of a terminal goes through it: eight bytes at a time.
fn quote(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + 2);
    out.push(b'"');
    while let Some(at) = first_escaped(rest) {
        let (plain, escaped) = rest.split_at(at);
        out.extend_from_slice(plain);
        match escaped[0] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            byte => {
                let [high, low] = [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = &escaped[1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Where the first byte is that cannot stand in a JSON string: a control character, a quote or a backslash.
fn first_escaped(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // Its lowest bit is in the first byte below `bound`, which is at most 128.
    let below = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word & HIGH;
    let equal = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let (words, _) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let hits = below(word, b' ') | equal(word, b'"') | equal(word, b'\\');
        if hits != 0 {
            return Some(8 * index + hits.trailing_zeros() as usize / 8);
        }
    }
    let from = 8 * words.len();
    let last = bytes[from..].iter().position(|byte| *byte < b' ' || matches!(byte, b'"' | b'\\'));
    last.map(|at| from + at)
}

fn parse_time(text: &str) -> Option<Duration> {
    let (seconds, micros) = text.split_once('.')?;
    let micros: u32 = micros.parse().ok().filter(|_| micros.len() == 6)?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(pieces: &[(u64, Kind, &[u8])]) -> String {
        let facts = serde_json::json!({
            "id": "", "auditId": "", "started": "2026-11-21T10:00:00Z", "subresource": "exec", "namespace": "",
            "pod": "", "node": "", "user": "", "client": "", "tty": true, "stdin": true, "recordsStdin": "all",
            "rule": "",
        });
        let details = Details { command: vec!["bash".into(), "-l".into()], ports: vec![] };
        let mut writer = Writer::new(&serde_json::from_value(facts).unwrap(), &details);
        let mut tape = Tape::default();
        for (at, kind, bytes) in pieces {
            tape.at(Duration::from_micros(*at));
            tape.put(*kind, bytes);
        }
        let (tape, mut out) = (tape.take(), Vec::new());
        writer.write(tape.pieces(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_those_of_the_format() {
        let text = cast(&[
            (5, Kind::Stdout, b"$ "),
            (1_000_000, Kind::Resize, b"{\"Width\":132,"),
            (1_000_001, Kind::Resize, b"\"Height\":43}\n{\"Width\":90,\"Height\":30}"),
            (1_000_002, Kind::Resize, b"{\"Width\":0,\"Height\":0}"),
            (61_000_000, Kind::Stdin, b"\x03\"\\"),
            (61_000_001, Kind::Withheld, b"8"),
            (61_000_002, Kind::Gap, b"4096 bytes are missing"),
            (61_000_003, Kind::StdinEnd, b""),
            (61_000_004, Kind::Result, b"{}"),
        ]);
        let lines = [
            r#"{"version":2,"width":132,"height":43,"timestamp":1795255200,"command":"bash -l","env":{"TERM":"xterm"}}"#,
            r#"[0.000005, "o", "$ "]"#,
            r#"[1.000000, "z", "{\"Width\":132,"]"#,
            r#"[1.000001, "z", "\"Height\":43}\n{\"Width\":90,\"Height\":30}"]"#,
            r#"[1.000001, "r", "90x30"]"#,
            r#"[1.000002, "z", "{\"Width\":0,\"Height\":0}"]"#,
            r#"[61.000000, "i", "\u0003\"\\"]"#,
            r#"[61.000001, "w", "8"]"#,
            r#"[61.000002, "m", "4096 bytes are missing"]"#,
            r#"[61.000003, "d", ""]"#,
            r#"[61.000004, "s", "{}"]"#,
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn players_see_a_cut_character_once_and_whole() {
        let shown = |pieces: &[&[u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|bytes| (0, Kind::Stdout, *bytes)).collect();
            let text = cast(&pieces);
            let events = text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap());
            let output = events.filter(|(_, code, _): &(f64, String, String)| code == "o");
            output.map(|(_, _, text)| text).collect::<String>()
        };
        let text = "aé€😀z";
        for cut in 0..text.len() {
            for next in cut..text.len() {
                let bytes = text.as_bytes();
                assert_eq!(shown(&[&bytes[..cut], &bytes[cut..next], &bytes[next..]]), text);
            }
        }
        assert_eq!(shown(&[b"a\xe2\x82", b"b"]), "a\u{fffd}b");
        assert_eq!(shown(&[b"a\xe2", b"\xe2\x82\xac"]), "a\u{fffd}€");
        assert_eq!(shown(&[b"\xff\xe2", b"\x82", b"\xac"]), "\u{fffd}€");
    }

    proptest::proptest! {
        #[test]
        fn text_is_quoted_as_json(text in "([\u{0}-\u{80}]|é|€|😀|[a-z]{1,9}){0,40}") {
            let mut quoted = Vec::new();
            quote(&text, &mut quoted);
            let back: String = serde_json::from_slice(&quoted).unwrap();
            proptest::prop_assert_eq!(&back, &text);
        }
    }

    #[test]
    fn what_podgate_does_not_write_is_refused() {
        let fault = |text: &str| read(text.as_bytes(), false).unwrap_err();
        assert!(matches!(fault("{}"), Error::Event(_)));
        assert!(matches!(fault(r#"[0.000001, "b", "AA=="]"#), Error::Exact));
        assert!(matches!(fault("[0.000001, \"o\", \"\"]\n[0.000001, \"b\", \"?\"]"), Error::Exact));
        assert!(matches!(fault(r#"[0.000001, "d", "x"]"#), Error::End));
        assert!(matches!(fault(r#"[0.1, "o", ""]"#), Error::Time));
        assert!(matches!(fault(r#"[99999999999999999999999.000001, "o", ""]"#), Error::Time));
        assert!(matches!(fault(r#"[0.000001, "?", ""]"#), Error::Code));
        assert!(matches!(fault(&"[".repeat(100_000)), Error::Event(_)));
        assert!(matches!(read(br#"[0.000001, "o", ""]"#, true), Err(Error::Header)));
        assert!(matches!(read(b"", true), Err(Error::Header)));
        assert_eq!(read(b"", false).unwrap(), b"");
    }
}
