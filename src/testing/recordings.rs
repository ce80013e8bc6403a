//! Recordings that nobody made: as many as wanted, each as podgate writes it, with its card beside it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::recording::card::Builder;
use crate::recording::container::{Reader, Writer};
use crate::recording::facts::{Details, Ending, Facts, Stdin, Typed};
use crate::recording::keys::Keys;
use crate::wire::tap::Moved;
use crate::wire::tape::{self, Buffer, Kind, Reel, Tape};

/// When the first of them began; each of the others begins a minute later.
const FIRST: i64 = 1_767_225_600;

/// A session that could have been.
#[derive(Debug, Clone)]
pub struct Session {
    /// Who, what and where.
    pub facts: Facts,
    /// Its command.
    pub details: Details,
    /// What passed.
    pub tape: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
}

/// The facts of some session of ana's.
///
/// # Panics
/// Never: its time is one.
pub fn facts(tty: bool) -> Facts {
    Facts {
        id: "5d1f0b1e-7c1c-4d5a-9f2e-3f6f5b0c8a11".to_owned(),
        audit_id: "7a1f0b1e-7c1c-4d5a-9f2e-3f6f5b0c8a11".to_owned(),
        started: "2026-11-21T10:00:00Z".parse().expect("a time"),
        subresource: "exec".to_owned(),
        namespace: "shop".to_owned(),
        pod: "cart-0".to_owned(),
        container: "cart".to_owned(),
        node: "node-a".to_owned(),
        user: "ana".to_owned(),
        groups: vec!["dev".to_owned()],
        impersonator: String::new(),
        client: "10.0.0.1:4711".to_owned(),
        tty,
        stdin: true,
        records_stdin: Stdin::Echoed,
        rule: "default".to_owned(),
    }
}

/// All pieces that are left in a recording.
///
/// # Panics
/// When it is not whole.
pub fn pieces<R: Read>(reader: &mut Reader<R>) -> Vec<(Kind, Vec<u8>)> {
    let mut pieces = Vec::new();
    while let Some(chunk) = reader.next().expect("a chunk") {
        let tape = chunk.tape.expect("content that can be read");
        let mut rest = &tape[..];
        while let Some(piece) = tape::next(&mut rest).expect("a piece") {
            pieces.push((piece.kind, piece.bytes.to_vec()));
        }
    }
    pieces
}

/// Session number so and so, of a shell in which something was done.
pub fn session(number: u32) -> Session {
    let started = Timestamp::from_second(FIRST + i64::from(number) * 60).expect("a time of this century");
    let n = u64::from(number);
    let facts = Facts {
        id: format!("{number:08x}-0000-4000-8000-{:012x}", n.wrapping_mul(0x9e37_79b9)),
        audit_id: format!("audit-{number}"),
        started,
        subresource: "exec".to_owned(),
        namespace: format!("team-{}", number % 20),
        pod: format!("cart-{}", number % 300),
        container: "app".to_owned(),
        node: format!("node-{}", number % 10),
        user: format!("user-{}@example.com", number % 100),
        groups: vec!["developers".to_owned()],
        impersonator: String::new(),
        client: "192.0.2.7:40000".to_owned(),
        tty: true,
        stdin: true,
        records_stdin: Stdin::Echoed,
        rule: "all".to_owned(),
    };
    let details = Details { command: vec!["sh".to_owned()], ports: Vec::new() };
    let (mut tape, mut typed) = (Tape::default(), Vec::new());
    tape.put(Kind::Resize, b"{\"Width\":80,\"Height\":24}");
    for (step, line) in
        [format!("ls -l /srv/shop-{number}"), "df -h".to_owned(), format!("cat order-{n}.txt")]
            .into_iter()
            .enumerate()
    {
        let at = Duration::from_secs(2 + 5 * step as u64);
        tape.at(at);
        tape.put(Kind::Stdout, b"/app $ ");
        tape.put(Kind::Stdin, line.as_bytes());
        tape.put(Kind::Stdout, line.as_bytes());
        tape.put(Kind::Stdin, b"\r");
        tape.put(Kind::Stdout, b"\r\n");
        for row in 0..30_u64 {
            let size = n.wrapping_mul(7919).wrapping_add(row * 104_729) % 1_000_000;
            let text = format!(
                "-rw-r--r--  1 app app {size:>8} Jan  1 10:00 \x1b[32mitem-{row}-of-{number}\x1b[0m\r\n"
            );
            tape.put(Kind::Stdout, text.as_bytes());
        }
        typed.push(Typed::new(at, line));
    }
    let moved = Moved { stdout: tape.len() as u64, ..Moved::default() };
    let (exit_code, reason) = (Some(if number.is_multiple_of(10) { 1 } else { 0 }), "exited".to_owned());
    let ending = Ending {
        seconds: 14.0,
        reason,
        exit_code,
        process_may_remain: false,
        moved,
        cut: false,
        gaps: Vec::new(),
        typed,
    };
    Session { facts, details, tape: tape.take().content(), ending }
}

impl Session {
    /// Writes it and its card into a folder, as they lie in a store; gives the recording's file.
    ///
    /// # Panics
    /// When that does not work.
    pub fn write(&self, dir: &Path, keys: &Keys) -> PathBuf {
        let Self { facts, details, tape, ending } = self;
        let mut bytes = Buffer::default();
        let mut writer = Writer::begin(facts, details, keys, &mut bytes).expect("begin a recording");
        let mut card = Builder::new(facts, details, &keys.recipients);
        writer.chunk(&mut Reel::of(tape).expect("it is a tape"), &mut bytes).expect("record a chunk");
        tape::pieces(tape).for_each(|piece| card.piece(piece.at, piece.kind, piece.bytes));
        writer.end(ending, &mut bytes).expect("end a recording");
        let day = dir.join(facts.started.strftime("%Y/%m/%d").to_string());
        fs::create_dir_all(&day).expect("make a folder");
        let form = if facts.tty { "cast" } else { "tape" };
        let path = day.join(format!("{}.{form}.zst", facts.id));
        fs::write(&path, &*bytes).expect("write a recording");
        fs::write(day.join(format!("{}.json", facts.id)), card.finish(ending).to_json())
            .expect("write a card");
        path
    }
}
