//! Recordings from outside: `podgate verify`, `podgate keys`, and the tools that people have anyway.
//!
//! `PODGATE_ASCIINEMA` names the player (`tests/asciinema.sh` fetches one); without it the one on the PATH is run.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use podgate::recording::container::{Writer, recover};
use podgate::recording::facts::{Details, Ending};
use podgate::recording::keys::{Keys, Recipient, SigningKey, VerifyingKey};
use podgate::testing::recordings::facts;
use podgate::testing::soon;
use podgate::wire::tap::Moved;
use podgate::wire::tape::{Buffer, Kind, Tape};
use tokio::io::AsyncReadExt;

/// What a shell may write: colours, quotes, a character in two pieces, a byte that is no text, line ends of all kinds.
const SHOWN: &[&[u8]] = &[
    b"\x1b[1;32m$\x1b[0m ls \"a\\b\"\r\n",
    b"\0\x07\x7f\xe2\x80\xa8",
    b"gr\xc3",
    b"\xbc\xc3\x9f \xf0\x9f\x98",
    b"\x80 \xff|\r\nend",
];

/// A shell of some seconds, and where its second chunk begins.
fn record(keys: &Keys) -> (Vec<u8>, usize) {
    let mut file = Buffer::default();
    let details = Details { command: vec!["bash".into()], ports: vec![] };
    let mut writer = Writer::begin(&facts(true), &details, keys, &mut file).unwrap();
    let mut tape = Tape::default();
    tape.put(Kind::Resize, br#"{"Width":132,"Height":43}"#);
    for (at, bytes) in SHOWN.iter().enumerate() {
        tape.at(Duration::from_millis(at as u64 * 700));
        tape.put(Kind::Stdout, bytes);
        tape.put(Kind::Stdin, b"ignored by players \xff");
        tape.put(Kind::Gap, b"and this shown as a mark");
    }
    writer.chunk(&mut tape.take(), &mut file).unwrap();
    let second = file.len();
    tape.put(Kind::StdinEnd, b"");
    tape.put(Kind::Result, br#"{"status":"Success"}"#);
    writer.chunk(&mut tape.take(), &mut file).unwrap();
    let ending = Ending {
        seconds: 2.9,
        reason: "exit".to_owned(),
        exit_code: Some(0),
        process_may_remain: false,
        moved: Moved::default(),
        cut: false,
        gaps: vec![],
        typed: vec![],
    };
    writer.end(&ending, &mut file).unwrap();
    (file.to_vec(), second)
}

fn podgate(args: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
    command.args(args).args(paths);
    command
}

fn said(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let said = [stdout, stderr].concat();
    (status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[test]
fn keys_are_made_for_their_owner_only_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("keys");
    for kind in ["signing", "recipient"] {
        let (code, text) = said(&mut podgate(&["keys", kind, "--out"], &[&dir]));
        assert_eq!(code, 0, "{text}");
        let private = dir.join(format!("{kind}.pem"));
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        let before = std::fs::read(&private).unwrap();
        let (code, text) = said(&mut podgate(&["keys", kind, "--out"], &[&dir]));
        assert!(code == 1 && text.contains("File exists"), "{text}");
        std::fs::rename(&private, dir.join("moved.pem")).unwrap();
        assert_eq!(said(&mut podgate(&["keys", kind, "--out"], &[&dir])).0, 1);
        assert!(!private.exists(), "no half of a pair is left");
        assert_eq!(std::fs::read(dir.join("moved.pem")).unwrap(), before);
        let public = std::fs::read_to_string(dir.join(format!("{kind}.pub.pem"))).unwrap();
        let (code, shown) = said(&mut podgate(&["keys", "show"], &[&dir.join("moved.pem")]));
        assert!(code == 0 && shown.ends_with(&public) && shown.contains("the private half"), "{shown}");
        let secret = std::str::from_utf8(&before).unwrap().lines().nth(1).unwrap();
        assert!(!shown.contains(secret));
    }
    let public = dir.join("signing.pub.pem");
    let key = VerifyingKey::from_file(&public).unwrap();
    let (_, shown) = said(&mut podgate(&["keys", "show"], &[&public]));
    assert!(shown.contains(key.id()) && VerifyingKey::from_pem(shown.as_bytes()).is_ok(), "{shown}");
    let (code, text) = said(&mut podgate(&["keys", "show"], &[&dir.join("nothing.pem")]));
    assert!(code == 1 && text.contains("nothing.pem"), "{text}");
}

#[test]
fn verify_tells_what_is_whole_cut_altered_and_strange() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    said(&mut podgate(&["keys", "signing", "--out"], &[dir]));
    said(&mut podgate(&["keys", "recipient", "--out"], &[dir]));
    let recipients = vec![Recipient::from_file(&dir.join("recipient.pub.pem")).unwrap()];
    let keys = Keys { signing: SigningKey::from_file(&dir.join("signing.pem")).unwrap(), recipients };
    let (whole, second) = record(&keys);
    let recovered = recover(std::io::Cursor::new(&whole[..whole.len() - 300]), &keys).unwrap();
    let cut = [&whole[..recovered.keep as usize], &recovered.tail].concat();
    let mut altered = whole.clone();
    altered[second + 30] ^= 4;
    let stranger = Keys { signing: SigningKey::generate().unwrap(), ..keys.clone() };
    let public = dir.join("signing.pub.pem");
    let verify = |name: &str, bytes: &[u8], more: &[&str]| {
        let file = dir.join(name);
        std::fs::write(&file, bytes).unwrap();
        let key = public.to_str().unwrap();
        said(&mut podgate(&[&["verify", "--key", key], more].concat(), &[&file]))
    };

    let identity = dir.join("recipient.pem");
    let identity = ["--identity", identity.to_str().unwrap()];
    for more in [&[][..], &identity] {
        let (code, text) = verify("whole", &whole, more);
        assert_eq!(code, 0, "{text}");
        assert!(
            text.ends_with("whole: whole: 2 chunks, 2.800000 s, ana, exec in shop/cart-0, exit\n"),
            "{text}"
        );
    }
    let (code, text) = verify("cut", &cut, &[]);
    assert!(code == 3 && text.contains("cut by a crash") && text.contains("crashed"), "{text}");
    let (code, text) = verify("altered", &altered, &[]);
    let place = format!("altered in frame 5 at byte {second}, as recorded until 2.800000 s: ");
    assert!(code == 1 && text.contains(&place), "{text}");
    let (code, text) = verify("truncated", &whole[..whole.len() - 1], &["--json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, found["outcome"].as_str()), (1, Some("truncated")), "{text}");
    assert_eq!((found["goodUntil"].as_f64(), found["facts"]["user"].as_str()), (Some(2.8), Some("ana")));
    assert_eq!(verify("stranger", &record(&stranger).0, &[]).0, 1);
    assert_eq!(verify("no-recording", b"something else", &[]).0, 1);

    // Of several the worst decides, and each has its line.
    let names = ["whole", "cut", "altered"].map(|name| dir.join(name));
    let names = names.each_ref().map(|name| &**name);
    let key = public.to_str().unwrap();
    let (code, text) = said(&mut podgate(&["verify", "--key", key], &names));
    assert_eq!((code, text.lines().count()), (1, 3), "{text}");
    assert_eq!(said(&mut podgate(&["verify", "--key", key], &names[..2])).0, 3);
    // What cannot be read, and what is asked the wrong way.
    assert_eq!(said(&mut podgate(&["verify", "--key", key], &[&dir.join("missing")])).0, 2);
    assert_eq!(said(&mut podgate(&["verify"], &names[..1])).0, 2);
    let (code, text) = said(&mut podgate(&["verify", "--key", identity[1]], &names[..1]));
    assert!(code == 2 && text.contains("is needed"), "{text}");
    let stdin = std::fs::File::open(names[0]).unwrap();
    let mut piped = podgate(&["verify", "--key", key, "-"], &[]);
    assert_eq!(piped.stdin(stdin).stdout(Stdio::null()).status().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_stock_player_shows_a_recording_as_the_terminal_did() {
    let keys = Keys { signing: SigningKey::generate().unwrap(), recipients: vec![] };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shell.cast");
    // As `zstd -dc` does.
    std::fs::write(&file, zstd::stream::decode_all(&record(&keys).0[..]).unwrap()).unwrap();
    let expected = String::from_utf8_lossy(&SHOWN.concat()).into_owned();
    let player = std::env::var("PODGATE_ASCIINEMA").unwrap_or_else(|_| "asciinema".into());
    for args in [&["play", "-s", "1000"][..], &["cat"]] {
        let (mut terminal, pts) = pty_process::open().unwrap();
        let command = pty_process::Command::new(&player)
            .args(args)
            .arg(&file)
            .env("HOME", folder.path())
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm")
            .kill_on_drop(true);
        let mut child = command.spawn(pts).unwrap_or_else(|error| {
            panic!("cannot run {player}: {error}; tests/asciinema.sh fetches one for PODGATE_ASCIINEMA")
        });
        let mut shown = Vec::new();
        // A terminal whose last program is gone reads as an error.
        let _ = soon("the end of the player", terminal.read_to_end(&mut shown)).await;
        assert!(soon("the player", child.wait()).await.unwrap().success());
        assert_eq!(String::from_utf8_lossy(&shown), expected, "{args:?}");
    }
}
