//! What is written is read again, and what was changed is found.

use std::io::Cursor;

use proptest::prelude::*;

use super::seal::{Chain, Seal};
use super::*;
use crate::recording::facts::{Details, Ending, Facts, Stdin, Typed};
use crate::recording::keys::{Identity, Keys, SigningKey};
use crate::testing::recordings::facts;
use crate::wire::tap::Moved;
use crate::wire::tape::{Buffer, Kind as Channel, Reel, Tape};

fn facts_of(tty: bool) -> Facts {
    Facts { records_stdin: Stdin::All, ..facts(tty) }
}

fn details() -> Details {
    Details { command: vec!["sh".into(), "-c".into(), "echo secret".into()], ports: vec![] }
}

fn ending() -> Ending {
    Ending {
        seconds: 3.5,
        reason: "exit".to_owned(),
        exit_code: Some(0),
        process_may_remain: false,
        moved: Moved { stdout: 9, ..Moved::default() },
        cut: false,
        gaps: vec![],
        typed: vec![Typed::new(Duration::from_secs(1), "ls -l".to_owned())],
    }
}

fn keys_of(identities: &[&Identity]) -> Keys {
    let recipients = identities.iter().map(|identity| identity.recipient().clone()).collect();
    Keys { signing: SigningKey::generate().unwrap(), recipients }
}

fn tape(parts: &[(u64, Channel, &[u8])]) -> Vec<u8> {
    let mut tape = Tape::default();
    for (at, kind, bytes) in parts {
        tape.at(Duration::from_micros(*at));
        tape.put(*kind, if *kind == Channel::StdinEnd { b"" } else { bytes });
    }
    tape.take().content()
}

fn reel(tape: &[u8]) -> Reel {
    Reel::of(tape).unwrap()
}

fn record(tty: bool, tapes: &[Vec<u8>], keys: &Keys) -> Vec<u8> {
    let mut out = Buffer::default();
    let mut writer = Writer::begin(&facts_of(tty), &details(), keys, &mut out).unwrap();
    tapes.iter().for_each(|tape| writer.chunk(&mut reel(tape), &mut out).unwrap());
    writer.end(&ending(), &mut out).unwrap();
    out.to_vec()
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

/// Every byte with its channel and its time: what a recording has to keep.
fn bytes(tapes: &[Vec<u8>]) -> Vec<(Duration, Channel, Option<u8>)> {
    let mut all = Vec::new();
    for tape in tapes {
        let mut rest = &tape[..];
        while let Some(piece) = tape::next(&mut rest).unwrap() {
            all.extend(piece.bytes.iter().map(|byte| (piece.at, piece.kind, Some(*byte))));
            if piece.bytes.is_empty() {
                all.push((piece.at, piece.kind, None));
            }
        }
    }
    all
}

/// Where the parts begin that have a seal each, the last time before, and which frame is first; then the file's end.
fn parts(file: &[u8], keys: &Keys) -> Vec<Place> {
    let trusted = [keys.signing.verifying().clone()];
    let mut reader = Reader::open(file, Trust::Keys(&trusted), &[]).unwrap();
    let mut parts = vec![Place { frame: 0, offset: 0, good_until: None }];
    loop {
        let SoFar { until, offset, .. } = reader.so_far();
        parts.push(Place { frame: 1 + 2 * parts.len() as u64, offset, good_until: until });
        if reader.ending().is_some() {
            return parts;
        }
        reader.next().unwrap();
    }
}

/// What was done to a file is found in the part where it was done.
fn assert_found(file: &[u8], keys: &Keys, part: Place, what: &str) {
    match read(file, keys, &[]) {
        Err(Error::Altered { at, .. } | Error::Truncated { at }) => assert_eq!(at, part, "{what}"),
        // In the head it may be anything.
        Err(_) if part.frame == 0 => {}
        other => panic!("{what}: {other:?}"),
    }
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
        let keys = keys_of(identities);
        let file = record(tty, &session(), &keys);
        let (tapes, end) = read(&file, &keys, std::slice::from_ref(&identity)).unwrap();
        assert_eq!(bytes(&tapes), bytes(&session()));
        assert_eq!(end, ending());
    }
}

#[test]
fn without_an_identity_there_are_facts_and_proof_only() {
    let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let keys = keys_of(&[&identity]);
    let file = record(true, &session(), &keys);
    assert!(!file.windows(6).any(|part| part == b"secret"));
    let trusted = [keys.signing.verifying().clone()];
    let mut reader = Reader::open(&file[..], Trust::Keys(&trusted), &[]).unwrap();
    assert_eq!((reader.facts(), reader.details()), (&facts_of(true), None));
    assert!(reader.next().unwrap().unwrap().tape.is_none());
    assert!(reader.next().unwrap().is_some() && reader.next().unwrap().is_none());
    assert_eq!(reader.ending(), Some(&Ending { typed: vec![], ..ending() }));
    assert_eq!(reader.so_far().until, Some(Duration::from_micros(2_000_001)));
    assert!(matches!(read(&file, &keys, &[other]), Err(Error::NotForYou)));
}

#[test]
fn a_file_that_was_cut_is_recovered_up_to_its_last_whole_chunk() {
    let keys = keys_of(&[]);
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

/// Five chunks, in one of the four forms.
fn long(tty: bool, hidden: bool) -> (Keys, Vec<u8>, Vec<Place>) {
    let identity = Identity::generate().unwrap();
    let keys = if hidden { keys_of(&[&identity]) } else { keys_of(&[]) };
    let tapes: Vec<_> = (0..5).map(|n| tape(&[(n * 1_500_000, Channel::Stdout, &[n as u8; 90])])).collect();
    let file = record(tty, &tapes, &keys);
    let parts = parts(&file, &keys);
    (keys, file, parts)
}

#[test]
fn one_changed_bit_in_any_byte_is_found_where_it_is() {
    for (tty, hidden) in [(false, false), (true, true)] {
        let (keys, file, parts) = long(tty, hidden);
        for at in 0..file.len() {
            let part = *parts.iter().rfind(|part| part.offset <= at as u64).unwrap();
            let mut changed = file.clone();
            changed[at] ^= 1 << (at % 8);
            assert_found(&changed, &keys, part, &format!("bit {} of byte {at}", at % 8));
        }
    }
}

#[test]
fn a_file_that_ends_early_is_found_wherever_it_ends() {
    let (keys, file, parts) = long(true, false);
    for at in 0..file.len() {
        let part = *parts.iter().rfind(|part| part.offset <= at as u64).unwrap();
        let read = read(&file[..at], &keys, &[]).unwrap_err();
        match read {
            Error::Truncated { at } => assert_eq!(at, part),
            Error::NotARecording if at < 8 => {}
            other => panic!("cut at {at}: {other:?}"),
        }
    }
}

#[test]
fn parts_that_are_dropped_doubled_or_swapped_are_found() {
    for hidden in [false, true] {
        let (keys, file, parts) = long(false, hidden);
        let part = |n: usize| &file[parts[n].offset as usize..parts[n + 1].offset as usize];
        let all = parts.len() - 1;
        for one in 0..all {
            let without: Vec<u8> = (0..all).filter(|n| *n != one).flat_map(part).copied().collect();
            assert_found(&without, &keys, parts[one], &format!("without {one}"));
            let twice: Vec<u8> =
                (0..all).flat_map(|n| [part(n), if n == one { part(n) } else { &[] }].concat()).collect();
            assert_found(&twice, &keys, parts[one + 1], &format!("{one} twice"));
            for other in one + 1..all {
                let swap = |n| {
                    if n == one {
                        other
                    } else if n == other {
                        one
                    } else {
                        n
                    }
                };
                let swapped: Vec<u8> = (0..all).flat_map(|n| part(swap(n))).copied().collect();
                assert_found(&swapped, &keys, parts[one], &format!("{one} and {other} swapped"));
            }
        }
        assert_found(&[&file[..], b"\n"].concat(), &keys, parts[all], "something behind the end");
        assert_found(&[&file[..], &file[..]].concat(), &keys, parts[all], "twice");
    }
}

/// Bytes that no compressor makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    noise
}

#[test]
fn large_parts_end_where_disks_like_it_and_what_is_done_to_their_padding_is_found() {
    let identity = Identity::generate().unwrap();
    for (tty, identities) in [(false, &[][..]), (false, &[&identity]), (true, &[])] {
        let keys = keys_of(identities);
        let large = tape(&[(1, Channel::Stdout, &noise(LARGE + 77))]);
        let tapes = [tape(&[(1, Channel::Stdout, b"small")]), large.clone(), large];
        let file = record(tty, &tapes, &keys);
        let parts = parts(&file, &keys);
        assert_ne!(parts[2].offset % ALIGN as u64, 0, "behind a small one");
        for large in &parts[3..5] {
            assert_eq!(large.offset % ALIGN as u64, 0);
        }
        let (read_tapes, _) = read(&file, &keys, std::slice::from_ref(&identity)).unwrap();
        assert_eq!(bytes(&read_tapes), bytes(&tapes));
        let seal = parts[3].offset as usize - FRAME_HEAD - seal::LEN;
        let pad = file[..seal].iter().rposition(|byte| *byte != b' ').unwrap() + 1 - FRAME_HEAD;
        for at in pad..seal {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert_found(&changed, &keys, parts[2], &format!("byte {at} of a pad"));
        }
        assert_found(&[&file[..pad], &file[seal..]].concat(), &keys, parts[2], "no pad");
        let twice = [&file[..seal], &file[pad..]].concat();
        assert_found(&twice, &keys, parts[2], "two pads");
        let recovered = recover(Cursor::new(&file[..seal - 1]), &keys).unwrap();
        assert_eq!(recovered.keep, parts[2].offset);
    }
}

#[test]
fn a_part_of_another_recording_is_found_though_the_same_key_signed_it() {
    let (keys, file, parts) = long(false, false);
    let mut other = Buffer::default();
    let facts = Facts { id: "another".into(), ..facts_of(false) };
    let mut writer = Writer::begin(&facts, &details(), &keys, &mut other).unwrap();
    let mut others = vec![0, other.len()];
    for n in 0..5 {
        let tape = tape(&[(n * 1_500_000, Channel::Stdout, &[n as u8; 90])]);
        writer.chunk(&mut reel(&tape), &mut other).unwrap();
        others.push(other.len());
    }
    writer.end(&ending(), &mut other).unwrap();
    others.push(other.len());
    for n in 1..parts.len() - 1 {
        let (from, to) = (parts[n].offset as usize, parts[n + 1].offset as usize);
        let spliced = [&file[..from], &other[others[n]..others[n + 1]], &file[to..]].concat();
        assert_found(&spliced, &keys, parts[n], &format!("part {n} of another"));
        let grafted = [&file[..from], &other[others[n]..]].concat();
        assert_found(&grafted, &keys, parts[n], &format!("from part {n} on another"));
    }
}

#[test]
fn an_end_that_somebody_else_signed_is_found() {
    let (keys, file, parts) = long(false, false);
    let end = parts[parts.len() - 2];
    let mut forged = file[..end.offset as usize].to_vec();
    let trusted = [keys.signing.verifying().clone()];
    let mut reader = Reader::open(&file[..], Trust::Keys(&trusted), &[]).unwrap();
    for _ in 0..5 {
        reader.next().unwrap();
    }
    let (chain, sequence): (Chain, u64) = reader.link();
    let from = forged.len();
    let mut frame = Vec::new();
    Kind::End
        .put(&mut frame, |out| serde_json::to_writer(out, &serde_json::json!({ "ending": ending() })))
        .unwrap();
    forged.extend_from_slice(&frame);
    let SoFar { until, moved, .. } = reader.so_far();
    let seal = Seal { sequence, until: until.unwrap(), content: 0, moved, chain: chain.after(&frame).link() };
    let other = SigningKey::generate().unwrap();
    Kind::Seal.put(&mut forged, |out| seal.put(&other, out)).unwrap();
    assert_found(&forged, &keys, end, "a forged end");
    // The same end is good when the key is: it is the signature that failed.
    forged.truncate(from + frame.len());
    Kind::Seal.put(&mut forged, |out| seal.put(&keys.signing, out)).unwrap();
    read(&forged, &keys, &[]).unwrap();
}

#[test]
fn a_whole_forgery_is_one_of_a_stranger() {
    let (_, file, _) = long(false, false);
    let (trusted, other) = (keys_of(&[]), keys_of(&[]));
    assert!(matches!(read(&file, &trusted, &[]), Err(Error::Stranger { .. })));
    // Whoever writes the trusted key's id into his own head has not its signature.
    let own = record(false, &session(), &other);
    let (from, to) = (other.signing.verifying().id(), trusted.signing.verifying().id());
    let at = own.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    let forged = [&own[..at], to.as_bytes(), &own[at + from.len()..]].concat();
    let fault = read(&forged, &trusted, &[]).unwrap_err();
    assert!(matches!(fault, Error::Altered { fault: Fault::Signature, .. }), "{fault:?}");
}

#[test]
fn a_recovered_file_is_not_recovered_again_and_an_altered_one_not_at_all() {
    let identity = Identity::generate().unwrap();
    for keys in [keys_of(&[]), keys_of(&[&identity])] {
        let file = record(true, &session(), &keys);
        let whole = recover(Cursor::new(&file), &keys).unwrap();
        assert_eq!((whole.keep, whole.tail.len()), (file.len() as u64, 0));
        let parts = parts(&file, &keys);
        let cut = parts[3].offset as usize + 5;
        // Power that fails may leave zeros where the file had been made longer.
        let torn = [&file[..cut], &[0; 4096]].concat();
        for left in [&file[..cut], &torn] {
            let recovered = recover(Cursor::new(left), &keys).unwrap();
            assert_eq!(recovered.ending.moved, Moved { stdin: 3, stdout: 15, ..Moved::default() });
            let again = [&left[..recovered.keep as usize], &recovered.tail].concat();
            let twice = recover(Cursor::new(&again), &keys).unwrap();
            assert_eq!((twice.keep, twice.ending.cut), (again.len() as u64, true));
            let (_, ending) = read(&again, &keys, std::slice::from_ref(&identity)).unwrap();
            assert_eq!((ending.reason.as_str(), ending.seconds), ("crashed", 2.000_001));
        }
        let mut altered = file[..cut].to_vec();
        altered[parts[2].offset as usize + 20] ^= 1;
        assert!(recover(Cursor::new(&altered), &keys).is_err());
        let other = keys_of(&[]);
        assert!(matches!(recover(Cursor::new(&file[..cut]), &other), Err(Error::Stranger { .. })));
        for cut in 0..parts[1].offset as usize {
            assert!(recover(Cursor::new(&file[..cut]), &keys).is_err(), "nothing is sealed at {cut}");
        }
    }
}

/// A file that the key signed, with a part of this kind behind its details.
fn signed(keys: &Keys, kind: Kind, content: u64, frame: &[u8]) -> Vec<u8> {
    let mut file = forge::begin(&facts_of(false), &keys.signing);
    file.part(kind as u32, content, frame);
    file.bytes
}

#[test]
fn what_a_holder_of_the_key_signs_is_bounded_all_the_same() {
    let keys = keys_of(&[]);
    let fault = |file: &[u8]| match read(file, &keys, &[]).unwrap_err() {
        Error::Altered { fault, .. } => fault,
        other => panic!("{other:?}"),
    };
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    for content in [90, MAX_CONTENT as u64, u64::MAX] {
        let file = signed(&keys, Kind::Content, content, &bomb);
        assert!(matches!(fault(&file), Fault::Decompress), "{content}");
    }
    let deep = "[".repeat(1 << 20);
    assert!(matches!(fault(&signed(&keys, Kind::End, 0, deep.as_bytes())), Fault::Json(_)));
    let zstd = zstd::bulk::compress(b"no tape", 1).unwrap();
    assert!(matches!(fault(&signed(&keys, Kind::Content, 7, &zstd)), Fault::Tape(_)));
}

#[test]
fn lengths_that_are_only_announced_take_no_memory_and_are_refused() {
    let keys = keys_of(&[]);
    let mut out = Buffer::default();
    Writer::begin(&facts_of(false), &details(), &keys, &mut out).unwrap();
    let huge = [&out[..], &(SKIPPABLE | Kind::End as u32).to_le_bytes(), &[0xff; 4]].concat();
    let error = read(&huge, &keys, &[]).unwrap_err();
    assert!(matches!(error, Error::Altered { fault: Fault::Length(_), .. }), "{error:?}");
    // Endless blocks without a byte in them.
    let endless = [&out[..], &tape::MAGIC.to_le_bytes(), &[0], &[0; MAX_FRAME + 9]].concat();
    let error = read(&endless, &keys, &[]).unwrap_err();
    assert!(matches!(error, Error::Altered { fault: Fault::Length(_), .. }), "{error:?}");
}

#[test]
fn what_is_too_large_is_refused_on_writing_or_left_out() {
    let keys = keys_of(&[]);
    let mut out = Buffer::default();
    let facts = Facts { user: "u".repeat(MAX_HEAD), ..facts_of(false) };
    let error = Writer::begin(&facts, &details(), &keys, &mut out).unwrap_err();
    assert!(matches!(error, Error::Size { what: "facts", .. }));
    let line = || Typed::new(Duration::ZERO, "x".repeat(1000));
    let ending = Ending { typed: (0..20_000).map(|_| line()).collect(), ..ending() };
    let mut file = Buffer::default();
    let writer = Writer::begin(&facts_of(false), &details(), &keys, &mut file).unwrap();
    writer.end(&ending, &mut file).unwrap();
    let (_, read) = read(&file, &keys, &[]).unwrap();
    assert!(read.typed.len() > 1000 && read.typed.len() < 20_000, "{}", read.typed.len());
}

#[test]
fn large_tapes_become_chunks_within_their_limit_whatever_they_hold() {
    let keys = keys_of(&[]);
    // What grows most as a cast: control characters, one byte among them that is no text, in pieces of all sizes.
    let mut worst = vec![1; tape::MAX_PIECE];
    worst[9] = 0xff;
    let parts: Vec<(u64, Channel, &[u8])> = vec![(1 << 50, Channel::Stdout, &worst[..]); 20];
    let long = tape(&parts);
    let many = |kind, bytes| tape(&vec![(1 << 50, kind, bytes); 100_000]);
    let small = many(Channel::Stdout, b"\xff");
    // The end of a character, something that is none, and the beginning of another.
    let torn = many(Channel::Stdout, b"\xa9\xff\xc3");
    // The shortest sizes that there are.
    let sizes = tape(&[(1 << 50, Channel::Resize, &b"{}".repeat(500_000))]);
    let tapes = [long, small, torn, sizes];
    for tty in [false, true] {
        let file = record(tty, &tapes, &keys);
        let (read, _) = read(&file, &keys, &[]).unwrap();
        // A piece is at most three events, and each of these is read as a piece.
        let most = if tty { 3 * MAX_CAST } else { MAX_CONTENT };
        assert!(read.len() > 2 && read.iter().all(|tape| tape.len() <= most));
        assert!(bytes(&read) == bytes(&tapes));
    }
}

#[test]
fn a_terminal_nobody_wrote_to_is_still_a_cast() {
    let keys = keys_of(&[]);
    let file = record(true, &[], &keys);
    assert_eq!(read(&file, &keys, &[]).unwrap().0, [Vec::<u8>::new()]);
    let header = zstd::stream::decode_all(&file[..]).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    assert_eq!((header["width"].as_u64(), header["height"].as_u64()), (Some(80), Some(24)));
}

#[test]
fn stock_decompressors_show_the_content() {
    let keys = keys_of(&[]);
    // Beyond its credit, so that some frames are compressed and others are not.
    let noise: Vec<u8> = (0..40u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let tapes: Vec<_> = noise.chunks(1 << 18).map(|part| tape(&[(7, Channel::Stdout, part)])).collect();
    let file = record(false, &tapes, &keys);
    assert!(zstd::stream::decode_all(&file[..]).unwrap() == tapes.concat());
    assert!(read(&file, &keys, &[]).unwrap().0 == tapes);
}

/// Run it as `cargo test --profile quick --lib what_a_gibibyte_costs -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_a_gibibyte_costs() {
    const CHUNK: usize = 256 << 10;
    const ALL: usize = 1 << 30;
    let cpu = || {
        let nanoseconds = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let nanoseconds = nanoseconds.split(' ').next().unwrap().parse().unwrap();
        Duration::from_nanos(nanoseconds).as_secs_f64()
    };
    let numbers = || (0u64..).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
    let line = |n: u64| {
        let (a, b, c) = (n % 60, n >> 8 & 255, n >> 16 & 65535);
        format!(
            "2026-11-21T10:{a:02} INFO request served client.addr=10.1.{b}.7:{c} path=/api/v1/pods status=200\r\n"
        )
    };
    let mut sources = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => sources.extend(std::fs::read(path).unwrap()),
            }
        }
    }
    let mut noise = vec![0; 16 << 20];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    let kinds: [(&str, Vec<u8>); 4] = [
        ("zeros", vec![0; CHUNK]),
        ("log lines", numbers().take(100_000).flat_map(|n| line(n).into_bytes()).collect()),
        ("sources", sources),
        ("random", noise),
    ];
    let identity = Identity::generate().unwrap();
    for (what, bytes) in kinds {
        for (tty, hidden) in [(false, false), (false, true), (true, false)] {
            let keys = if hidden { keys_of(&[&identity]) } else { keys_of(&[]) };
            let (mut file, mut spent) = (Buffer::default(), 0.0);
            let mut writer = Writer::begin(&facts_of(tty), &details(), &keys, &mut file).unwrap();
            let (mut done, mut len, mut pieces) = (0, 0, bytes.chunks_exact(CHUNK / 4).cycle());
            while done < ALL {
                // As fast as a relay is.
                let at = (done / 400) as u64;
                let tape = tape(&[0; 4].map(|_| (at, Channel::Stdout, pieces.next().unwrap())));
                let mut reel = reel(&tape);
                let before = cpu();
                file.clear();
                writer.chunk(&mut reel, &mut file).unwrap();
                spent += cpu() - before;
                (done, len) = (done + CHUNK, len + file.len());
            }
            let form = if tty { "cast" } else { "tape" };
            let hidden = if hidden { ", encrypted" } else { "" };
            println!("{what} as {form}{hidden}: {spent:.2} CPU s, {} MiB", len >> 20);
        }
    }
}

fn any_tape() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![
        Channel::Stdin,
        Channel::Stdout,
        Channel::Stdout,
        Channel::Stdout,
        Channel::Stderr,
        Channel::Result,
        Channel::Resize,
        Channel::StdinEnd,
        Channel::Connection,
        Channel::Gap,
        Channel::Withheld,
    ]);
    // Characters of all lengths, so that cuts are often inside one.
    let text = "[a\u{1b}\"\\\\é€😀\u{2028}\r\n]{0,6}".prop_map(String::into_bytes);
    let cut = (text.clone(), 0usize..8, 0usize..8).prop_map(|(text, from, to)| {
        text[from.min(text.len())..].iter().rev().skip(to).rev().copied().collect()
    });
    let bytes = prop_oneof![text, cut, prop::collection::vec(any::<u8>(), 0..6)];
    prop::collection::vec((0u64..1 << 40, kind, bytes), 0..12).prop_map(|pieces| {
        let pieces: Vec<_> = pieces.iter().map(|(at, kind, bytes)| (*at, *kind, &bytes[..])).collect();
        tape(&pieces)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_tapes_are_read_as_they_were_written(
        tapes in prop::collection::vec(any_tape(), 0..5), tty in any::<bool>(), hidden in any::<bool>(),
    ) {
        let identity = Identity::generate().unwrap();
        let keys = if hidden { keys_of(&[&identity]) } else { keys_of(&[]) };
        let file = record(tty, &tapes, &keys);
        let (read, _) = read(&file, &keys, &[identity]).unwrap();
        prop_assert_eq!(bytes(&read), bytes(&tapes));
    }

    #[test]
    fn any_change_of_any_recording_is_found(
        tapes in prop::collection::vec(any_tape(), 1..5), tty in any::<bool>(), hidden in any::<bool>(),
        from in any::<prop::sample::Index>(), len in 0usize..300,
        instead in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let identity = Identity::generate().unwrap();
        let keys = if hidden { keys_of(&[&identity]) } else { keys_of(&[]) };
        let file = record(tty, &tapes, &keys);
        let parts = parts(&file, &keys);
        let from = from.index(file.len());
        let mut changed = file.clone();
        changed.splice(from..(from + len).min(file.len()), instead);
        // What came out the same, as far as it goes, is no change there.
        let differs = changed.iter().zip(&file).position(|(one, other)| one != other);
        prop_assume!(changed != file);
        let at = differs.unwrap_or(changed.len().min(file.len())) as u64;
        let part = *parts.iter().rfind(|part| part.offset <= at).unwrap();
        assert_found(&changed, &keys, part, "changed");
    }
}
