//! What is written is read again, and what was changed is found.

use std::io::Cursor;

use super::*;
use crate::recording::facts::{Details, Ending, Facts, Stdin, Typed};
use crate::recording::keys::{Identity, Keys, SigningKey};
use crate::wire::tap::Moved;
use crate::wire::tape::{Kind as Channel, Tape};

fn facts(tty: bool) -> Facts {
    let word = |text: &str| text.to_owned();
    Facts {
        id: word("5d1f0b1e-7c1c-4d5a-9f2e-3f6f5b0c8a11"),
        audit_id: word("7a1f0b1e-7c1c-4d5a-9f2e-3f6f5b0c8a11"),
        started: "2026-11-21T10:00:00Z".parse().unwrap(),
        subresource: word("exec"),
        namespace: word("shop"),
        pod: word("cart-0"),
        container: word("cart"),
        node: word("node-a"),
        user: word("ana"),
        groups: vec![word("dev")],
        impersonator: word(""),
        client: word("10.0.0.1:4711"),
        tty,
        stdin: true,
        records_stdin: Stdin::All,
        rule: word("default"),
    }
}

fn details() -> Details {
    Details { command: vec!["sh".into(), "-c".into(), "echo secret".into()], ports: vec![] }
}

fn ending() -> Ending {
    Ending {
        seconds: 3.5,
        reason: "exit".to_owned(),
        exit_code: Some(0),
        moved: Moved { stdout: 9, ..Moved::default() },
        cut: false,
        gaps: vec![],
        typed: vec![Typed::new(Duration::from_secs(1), "ls -l".to_owned())],
    }
}

fn keys(identities: &[&Identity]) -> Keys {
    let recipients = identities.iter().map(|identity| identity.recipient().clone()).collect();
    Keys { signing: SigningKey::generate().unwrap(), recipients }
}

fn tape(parts: &[(u64, Channel, &[u8])]) -> Vec<u8> {
    let mut tape = Tape::default();
    for (at, kind, bytes) in parts {
        tape.at(Duration::from_micros(*at));
        tape.put(*kind, bytes);
    }
    tape.take()
}

fn record(tty: bool, tapes: &[Vec<u8>], keys: &Keys) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::begin(&facts(tty), &details(), keys, &mut out).unwrap();
    tapes.iter().for_each(|tape| writer.chunk(tape, &mut out).unwrap());
    writer.end(&ending(), &mut out).unwrap();
    out
}

fn read(file: &[u8], keys: &Keys, identities: &[Identity]) -> Result<(Vec<Vec<u8>>, Ending), Error> {
    let trusted = [keys.signing.verifying().clone()];
    let mut reader = Reader::open(file, Trust::Keys(&trusted), identities)?;
    let mut tapes = Vec::new();
    while let Some(chunk) = reader.next()? {
        tapes.extend(chunk.tape);
    }
    Ok((tapes, reader.ending().unwrap().clone()))
}

fn session() -> Vec<Vec<u8>> {
    vec![
        tape(&[
            (1, Channel::Resize, br#"{"Width":132,"Height":43}"#),
            (2, Channel::Stdout, b"$ "),
            (1_000_001, Channel::Stdin, b"ls\r"),
            (1_200_000, Channel::Stdout, b"a \xff\xfe\r\n\xc3"),
        ]),
        tape(&[(2_000_000, Channel::Stdout, b"\xa9 done"), (2_000_001, Channel::StdinEnd, b"")]),
    ]
}

#[test]
fn a_recording_is_read_as_it_was_written() {
    let identity = Identity::generate().unwrap();
    for (tty, identities) in [(false, &[][..]), (true, &[]), (false, &[&identity]), (true, &[&identity])] {
        let keys = keys(identities);
        let file = record(tty, &session(), &keys);
        let (tapes, end) = read(&file, &keys, &[identity.clone()]).unwrap();
        let bytes = |tapes: &[Vec<u8>]| {
            let mut all = Vec::new();
            for tape in tapes {
                let mut rest = &tape[..];
                while let Some(piece) = tape::next(&mut rest).unwrap() {
                    all.extend(piece.bytes.iter().map(|byte| (piece.at, piece.kind, *byte)));
                }
            }
            all
        };
        assert_eq!(bytes(&tapes), bytes(&session()));
        assert_eq!(end, ending());
    }
}

#[test]
fn without_an_identity_there_are_facts_and_proof_only() {
    let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let keys = keys(&[&identity]);
    let file = record(true, &session(), &keys);
    assert!(!file.windows(6).any(|part| part == b"secret"));
    let trusted = [keys.signing.verifying().clone()];
    let mut reader = Reader::open(&file[..], Trust::Keys(&trusted), &[]).unwrap();
    assert_eq!((reader.facts(), reader.details()), (&facts(true), None));
    assert!(reader.next().unwrap().unwrap().tape.is_none());
    assert!(reader.next().unwrap().is_some() && reader.next().unwrap().is_none());
    assert_eq!(reader.ending(), Some(&Ending { typed: vec![], ..ending() }));
    assert_eq!(reader.so_far().until, Some(Duration::from_micros(2_000_001)));
    assert!(matches!(read(&file, &keys, &[other]), Err(Error::NotForYou)));
}

#[test]
fn a_file_that_was_cut_is_recovered_up_to_its_last_whole_chunk() {
    let keys = keys(&[]);
    let file = record(false, &session(), &keys);
    let trusted = [keys.signing.verifying().clone()];
    let mut reader = Reader::open(&file[..], Trust::Keys(&trusted), &[]).unwrap();
    reader.next().unwrap();
    let first = reader.so_far().offset as usize;
    reader.next().unwrap();
    let second = reader.so_far().offset as usize;
    for cut in first..second {
        let recovered = recover(Cursor::new(&file[..cut]), &keys).unwrap();
        assert_eq!(recovered.keep, first as u64);
        let whole = [&file[..first], &recovered.tail].concat();
        let (tapes, ending) = read(&whole, &keys, &[]).unwrap();
        assert_eq!(tapes, session()[..1]);
        assert!(ending.cut && ending.moved.stdin == 3);
    }
}
