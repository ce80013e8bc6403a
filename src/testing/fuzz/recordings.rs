//! Properties of what reads recordings: bounded and without a panic whatever a file holds, and the way back.

use std::io::Read;
use std::time::Duration;

use super::{Choices, Cuts};
use crate::recording::cast as lines;
use crate::recording::container::{Chunk, Error, Reader, Trust, forge};
use crate::recording::facts::{Details, Ending, Facts, Stdin};
use crate::recording::keys::SigningKey;
use crate::wire::tape::{self as pieces, HEAD, Kind, MAX_PIECE, Piece, Tape};

/// Signs what is tried; never a key of anybody.
const KEY: &[u8] = include_bytes!("../../recording/testdata/signing.pem");

/// Every byte with its channel and its time.
type Bytes = Vec<(Duration, Kind, Vec<u8>)>;

/// A file that comes in pieces.
struct Slow<'a> {
    bytes: &'a [u8],
    cuts: Cuts<'a>,
}

/// Recordings: whole or in pieces they say the same, each chunk is a tape of whole pieces, and what is cut off shows.
/// Bytes are anything, or parts behind which podgate's own key put its seals.
pub fn recording(data: &[u8]) {
    let mut choices = Choices(data);
    let cuts = choices.cuts();
    let key = SigningKey::from_pem(KEY).expect("it is a key");
    let trusted = [key.verifying().clone()];
    if choices.flag() {
        let bytes = choices.rest();
        agrees(bytes, Trust::Anyone, cuts.clone());
        agrees(bytes, Trust::Keys(&trusted), cuts);
        return;
    }
    let mut file = forge::begin(&facts(choices.flag()), &key);
    while !choices.is_empty() {
        let (kind, content) = (choices.pick(&[2, 4, 16]), choices.word().into());
        let (times, packed) = (usize::from(choices.byte()), choices.flag());
        let bytes = choices.bytes().repeat(1 + times);
        if packed && kind != 4 {
            let frame = zstd::bulk::compress(&bytes, 1).expect("memory takes it");
            file.part(kind, bytes.len() as u64, &frame);
        } else {
            file.part(kind, content, &bytes);
        }
    }
    agrees(&file.bytes, Trust::Keys(&trusted), cuts);
    if let (_, Ok(_)) = read(&file.bytes[..], Trust::Keys(&trusted)) {
        let short = &file.bytes[..file.bytes.len() - 1];
        assert!(matches!(read(short, Trust::Keys(&trusted)), (_, Err(Error::Truncated { .. }))));
    }
}

/// Casts: what is read can be written and read again, and any pieces are read as they were written.
pub fn cast(data: &[u8]) {
    let mut choices = Choices(data);
    let read = if choices.flag() {
        let first = choices.flag();
        match lines::read(choices.rest(), first) {
            Ok(tape) => tape,
            Err(_) => return,
        }
    } else {
        any_tape(choices)
    };
    let mut text = Vec::new();
    let mut writer = lines::Writer::new(&facts(true), &Details::default());
    writer.write(pieces::pieces(&read), &mut text);
    let again = lines::read(&text, true).expect("it is just written");
    assert_eq!(bytes(&again), bytes(&read), "written and read");
}

/// Tapes: a piece is what was put, an end inside a piece is an error, and nothing is beyond its bound.
pub fn tape(data: &[u8]) {
    let mut rest = data;
    loop {
        let before = rest;
        match pieces::next(&mut rest) {
            Ok(Some(Piece { bytes, .. })) => {
                let taken = before.len() - rest.len();
                assert!(bytes.len() <= MAX_PIECE && taken == HEAD + bytes.len());
                let mut cut = &before[..taken - 1];
                assert_eq!(pieces::next(&mut cut), Err(pieces::Error::Cut), "a piece without its end");
            }
            Ok(None) => return assert!(before.is_empty()),
            Err(_) => return assert_eq!(rest, before, "an error takes nothing"),
        }
    }
}

fn agrees(bytes: &[u8], trust: Trust<'_>, cuts: Cuts<'_>) {
    let (chunks, end) = read(bytes, trust);
    let (slow, slow_end) = read(Slow { bytes, cuts }, trust);
    assert_eq!(chunks, slow, "at once and in pieces");
    assert_eq!(format!("{end:?}"), format!("{slow_end:?}"), "at once and in pieces");
    for tape in chunks.iter().filter_map(|chunk| chunk.tape.as_deref()) {
        let mut rest = tape;
        while pieces::next(&mut rest).expect("whole pieces").is_some() {}
    }
}

fn read(from: impl Read, trust: Trust<'_>) -> (Vec<Chunk>, Result<Option<Ending>, Error>) {
    let mut chunks = Vec::new();
    let ended = Reader::open(from, trust, &[]).and_then(|mut reader| {
        while let Some(chunk) = reader.next()? {
            chunks.push(chunk);
        }
        assert!(reader.next().is_ok_and(|chunk| chunk.is_none()), "the end stays");
        Ok(reader.ending().cloned())
    });
    (chunks, ended)
}

fn any_tape(mut choices: Choices<'_>) -> Vec<u8> {
    let mut tape = Tape::default();
    let mut now = Duration::ZERO;
    while !choices.is_empty() {
        now += Duration::from_micros(choices.word().into());
        tape.at(now);
        let kind =
            choices.pick(&[Kind::Stdout, Kind::Stdin, Kind::Resize, Kind::Stderr, Kind::Gap, Kind::StdinEnd]);
        let bytes = choices.bytes();
        tape.put(kind, if kind == Kind::StdinEnd { &[] } else { bytes });
    }
    tape.take().content()
}

/// Pieces of one channel and time are one: where a piece ends means nothing.
fn bytes(mut tape: &[u8]) -> Bytes {
    let mut all = Bytes::new();
    while let Some(Piece { at, kind, bytes }) = pieces::next(&mut tape).expect("whole pieces") {
        match all.last_mut() {
            Some((last, channel, all)) if (*last, *channel) == (at, kind) && kind != Kind::StdinEnd => {
                all.extend_from_slice(bytes);
            }
            _ => all.push((at, kind, bytes.to_vec())),
        }
    }
    all
}

pub(super) fn facts(tty: bool) -> Facts {
    Facts {
        id: "5d1f0b1e-7c1c-4d5a-9f2e-3f6f5b0c8a11".to_owned(),
        audit_id: String::new(),
        started: jiff::Timestamp::UNIX_EPOCH,
        subresource: "exec".to_owned(),
        namespace: "shop".to_owned(),
        pod: "cart-0".to_owned(),
        container: String::new(),
        node: String::new(),
        user: "ana".to_owned(),
        groups: Vec::new(),
        impersonator: String::new(),
        client: String::new(),
        tty,
        stdin: true,
        records_stdin: Stdin::All,
        rule: String::new(),
    }
}

// === impl Slow ===

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = self.cuts.next_len().min(self.bytes.len()).min(into.len());
        let (piece, rest) = self.bytes.split_at(len);
        into[..len].copy_from_slice(piece);
        self.bytes = rest;
        Ok(len)
    }
}
