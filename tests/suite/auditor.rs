//! What auditors run: lists, searches, exports and plays of recordings, on files and folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use podgate::recording::facts::Typed;
use podgate::recording::keys::{Identity, Keys, SigningKey};
use podgate::testing::recordings::{Session, session};
use podgate::testing::soon;
use podgate::wire::tape::{Kind, Tape};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A folder with recordings, and a key for them.
struct Archive {
    dir: tempfile::TempDir,
    keys: Keys,
}

impl Archive {
    fn new(many: u32) -> Self {
        let archive = Self::empty(Vec::new());
        (0..many).for_each(|number| drop(archive.add(&session(number))));
        archive
    }

    fn empty(recipients: Vec<podgate::recording::keys::Recipient>) -> Self {
        let (dir, signing) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
        fs::write(dir.path().join("key.pem"), signing.verifying().to_pem()).unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        Self { dir, keys: Keys { signing, recipients } }
    }

    fn add(&self, session: &Session) -> PathBuf {
        session.write(&self.path("store"), &self.keys)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_podgate"));
        command.args(args).env("XDG_CACHE_HOME", self.path("cache")).current_dir(self.dir.path());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Exit code, output, and what was complained about.
    async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = soon("the end", self.command(args).output()).await.unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (status.code().unwrap(), text(&stdout), text(&stderr))
    }

    async fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args).await;
        assert_eq!((code, &*err), (0, ""), "{args:?}: {out}");
        out
    }
}

fn ids(out: &str) -> Vec<u32> {
    let id = |line: &str| u32::from_str_radix(line.split_whitespace().nth(1)?.split_once('-')?.0, 16).ok();
    out.lines().filter(|line| !line.starts_with(' ')).filter_map(id).collect()
}

#[tokio::test]
async fn lists_are_newest_first_and_by_who_where_and_when() {
    let archive = Archive::new(25);
    let list = async |args: &[&str]| {
        ids(&archive.ok(&[&["recordings", "list", "--store", "store"], args].concat()).await)
    };
    assert_eq!(list(&[]).await, (0..25).rev().collect::<Vec<_>>());
    assert_eq!(list(&["--user", "user-7@example.com"]).await, [7]);
    assert_eq!(list(&["--namespace", "team-3"]).await, [23, 3]);
    assert_eq!(list(&["--pod", "cart-1*", "--exit-code", "1"]).await, [10]);
    assert_eq!(list(&["--since", "2026-01-01T00:22:14Z", "--until", "2026-01-01T00:24:00Z"]).await, [23, 22]);
    let json = archive
        .ok(&["recordings", "list", "--store", "store", "-o", "json", "--user", "user-7@example.com"])
        .await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["facts"]["pod"], "cart-7");
}

#[tokio::test]
async fn searches_find_what_was_typed_and_shown_with_its_time() {
    let archive = Archive::new(12);
    let search = async |args: &[&str]| {
        archive.ok(&[&["recordings", "search", "--store", "store", "--key", "key.pem"], args].concat()).await
    };
    let typed = search(&["--typed", "CAT order-7.txt"]).await;
    assert_eq!(ids(&typed), [7]);
    assert!(typed.contains("12.000 s  typed    cat order-7.txt"), "{typed}");
    let text = search(&["--text", "item-29-of-11"]).await;
    assert_eq!(ids(&text), [11]);
    assert!(text.contains("2.000 s  stdout   -rw-r--r--"), "{text}");
    assert_eq!(search(&["--text", "not in any of them"]).await, "");
    assert_eq!(ids(&search(&["--typed", "df", "--text", "item-3-of-4"]).await), [4]);
    assert_eq!(ids(&search(&["--typed", "df", "--user", "user-5@example.com"]).await), [5]);
    let (code, out, err) =
        archive.run(&["recordings", "search", "--store", "store", "--typed", "df", "--limit", "3"]).await;
    assert_eq!((code, ids(&out)), (0, vec![11, 10, 9]));
    assert!(err.contains("--limit shows more"), "{err}");
}

#[tokio::test]
async fn the_cache_is_only_trusted_for_what_is_still_so() {
    let archive = Archive::new(3);
    let list = ["recordings", "list", "--store", "store"];
    let first = archive.ok(&list).await;
    let cache = fs::read_dir(archive.path("cache/podgate")).unwrap().next().unwrap().unwrap().path();
    let size = fs::metadata(&cache).unwrap().len();
    assert_eq!(archive.ok(&list).await, first);
    assert_eq!(fs::metadata(&cache).unwrap().len(), size, "nothing new, nothing written");
    // Broken in the middle, cut at the end, and with a line that lies about a card that is not there any more.
    let mut bytes = fs::read(&cache).unwrap();
    let at = bytes.len() / 2;
    bytes[at..at + 20].fill(0xff);
    bytes.truncate(bytes.len() - 100);
    fs::write(&cache, &bytes).unwrap();
    assert_eq!(archive.ok(&list).await, first);
    archive.add(&session(3));
    assert_eq!(ids(&archive.ok(&list).await), [3, 2, 1, 0]);
    // A recording without its card is listed too; cards that are none are told of.
    let card = |number| archive.path("store/2026/01/01").join(format!("{}.json", session(number).facts.id));
    fs::remove_file(card(1)).unwrap();
    fs::write(card(2), "[".repeat(100_000)).unwrap();
    fs::File::create(card(3)).unwrap().set_len(5 << 20).unwrap();
    let (code, out, err) = archive.run(&list).await;
    assert_eq!((code, ids(&out)), (1, vec![1, 0]));
    assert!(err.contains("the card is not as podgate writes it") && err.contains("5242880 bytes"), "{err}");
}

#[tokio::test]
async fn recordings_of_which_anything_was_altered_are_not_played() {
    let archive = Archive::new(1);
    let path = archive.add(&session(1));
    let name = path.to_str().unwrap();
    let id = &session(1).facts.id[..8];
    let played = archive.run(&["play", name, "--key", "key.pem"]).await;
    assert_eq!(played.0, 0, "{}", played.2);
    assert!(
        played.1.contains("item-29-of-1") && played.2.contains("ended after 14.000 s: exited, exit code 0")
    );
    let by_id = archive.run(&["play", id, "--store", "store", "--key", "key.pem"]).await;
    assert_eq!(by_id, played);
    let (code, out, err) = archive.run(&["play", name]).await;
    assert_eq!((code, &*out), (2, ""), "{err}");
    assert!(err.contains("--key"), "{err}");
    fs::write(archive.path("other.pem"), SigningKey::generate().unwrap().verifying().to_pem()).unwrap();
    let (code, out, _) = archive.run(&["play", name, "--key", "other.pem"]).await;
    assert_eq!((code, &*out), (1, ""));
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 400;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (code, out, err) = archive.run(&["play", name, "--key", "key.pem"]).await;
    assert_eq!((code, &*out), (1, ""), "{err}");
    assert!(err.contains("altered in frame"), "{err}");
    let (_, out, err) = archive.run(&["play", name, "--danger-unverified"]).await;
    assert!(err.contains("NOT as it was written") && out.contains("item-29-of-1"), "{err}");
    let (code, out, _) = archive.run(&["recordings", "show", name, "--key", "key.pem"]).await;
    assert_eq!(code, 1);
    assert!(out.contains("altered in frame"), "{out}");
}

#[tokio::test]
async fn exports_and_pipes_have_the_bytes_of_a_channel_exactly() {
    let archive = Archive::empty(Vec::new());
    let (mut tape, binary) = (Tape::default(), (0..=255).cycle().take(300_000).collect::<Vec<u8>>());
    tape.put(Kind::Stdout, &binary);
    tape.put(Kind::Stderr, b"trouble \x1b]0;title\x07\x1b[6n\nmore\n");
    tape.put(Kind::Stdin, b"input\n");
    let mut session = session(0);
    (session.facts.tty, session.tape) = (false, tape.take().content());
    let path = archive.add(&session);
    let name = path.to_str().unwrap();
    for args in [
        vec!["play", name, "--key", "key.pem", "--channel", "stdout"],
        vec!["recordings", "export", name, "--key", "key.pem"],
    ] {
        let output = soon("the end", archive.command(&args).output()).await.unwrap();
        assert!(output.status.success() && output.stdout == binary, "{args:?}");
    }
    let (_, out, _) = archive.run(&["play", name, "--key", "key.pem"]).await;
    assert!(
        out.contains("err  trouble \n") && out.contains("in   input\n") && !out.contains('\x1b'),
        "{out:?}"
    );
    let text = ["recordings", "export", name, "--key", "key.pem", "--format", "text", "--channel", "stderr"];
    assert_eq!(archive.ok(&text).await, "trouble \nmore\n");
    let (code, _, err) =
        archive.run(&["recordings", "export", name, "--key", "key.pem", "--format", "cast"]).await;
    assert_eq!(code, 2, "{err}");
    let path = archive.add(&self::session(1));
    let cast = archive
        .ok(&["recordings", "export", path.to_str().unwrap(), "--key", "key.pem", "--format", "cast"])
        .await;
    let stock = zstd::decode_all(&fs::read(&path).unwrap()[..]).unwrap();
    assert_eq!(cast, String::from_utf8(stock).unwrap());
}

#[tokio::test]
async fn encrypted_recordings_are_listed_for_all_and_searched_by_recipients() {
    let auditor = Identity::generate().unwrap();
    let archive = Archive::empty(vec![auditor.recipient().clone()]);
    fs::write(archive.path("me.pem"), auditor.to_private_pem()).unwrap();
    let path = archive.add(&session(4));
    assert_eq!(ids(&archive.ok(&["recordings", "list", "--store", "store"]).await), [4]);
    let search = [
        "recordings",
        "search",
        "--store",
        "store",
        "--key",
        "key.pem",
        "--typed",
        "order-4",
        "--text",
        "item-3",
    ];
    let (code, out, err) = archive.run(&search).await;
    assert_eq!((code, &*out), (0, ""));
    assert!(err.contains("1 recordings are encrypted for others"), "{err}");
    let mine = archive.ok(&[&search[..], &["--identity", "me.pem"]].concat()).await;
    assert!(mine.contains("typed    cat order-4.txt"), "{mine}");
    let name = path.to_str().unwrap();
    let (code, out, err) = archive.run(&["play", name, "--key", "key.pem"]).await;
    assert_eq!((code, &*out), (2, ""), "{err}");
    let (code, out, _) = archive.run(&["play", name, "--key", "key.pem", "--identity", "me.pem"]).await;
    assert!(code == 0 && out.contains("item-3-of-4"));
    let show = archive.ok(&["recordings", "show", name, "--key", "key.pem"]).await;
    assert!(show.contains("(encrypted)") && !show.contains("order-4"), "{show}");
}

#[tokio::test]
async fn a_recording_in_the_place_of_another_is_not_taken_for_that() {
    let archive = Archive::new(3);
    let (one, two) = (archive.add(&session(1)), archive.add(&session(2)));
    fs::copy(two, one).unwrap();
    let (reading, id) = (["--store", "store", "--key", "key.pem"], session(1).facts.id);
    for what in [&["play"][..], &["recordings", "show"], &["recordings", "export"]] {
        let (code, out, err) = archive.run(&[what, &[&*id], &reading].concat()).await;
        assert_eq!((code, &*out), (1, ""), "{what:?}: {err}");
        assert!(err.contains("not that of its card"), "{what:?}: {err}");
    }
    // A search tells of it, and looks into the others.
    let (code, out, err) =
        archive.run(&[&["recordings", "search", "--text", "item-7-of-"], &reading[..]].concat()).await;
    assert_eq!((code, ids(&out)), (1, vec![2, 0]), "{err}");
    assert!(err.contains("not that of its card"), "{err}");
}

/// A session of a hostile pod, as what each face shows of it.
fn hostile() -> Session {
    let bad = "\x1b]0;owned\x07\x1b]52;c;ZWNobw==\x07\x1b[6n\x1b[c\x1bP$qm\x1b\\\u{202e}\u{9b}5n\x1b[?1000h";
    let mut tape = Tape::default();
    tape.put(Kind::Stdout, format!("be{bad}fore\r\n\x1b[31mred\x1b[0m").as_bytes());
    let mut session = session(9);
    session.facts.pod = format!("pod{bad}");
    session.facts.user = format!("user{bad}");
    session.details.command = vec![format!("sh{bad}")];
    session.ending.typed = vec![Typed::new(std::time::Duration::ZERO, format!("ls{bad}"))];
    session.tape = tape.take().content();
    session
}

#[tokio::test]
async fn nothing_a_pod_wrote_reaches_the_auditors_terminal_unfiltered() {
    let archive = Archive::empty(Vec::new());
    let path = archive.add(&hostile());
    let name = path.to_str().unwrap();
    for args in [
        vec!["recordings", "list", "--store", "store", "-o", "wide"],
        vec!["recordings", "show", name, "--key", "key.pem"],
        vec!["recordings", "search", "--store", "store", "--typed", "ls"],
        vec!["recordings", "search", "--store", "store", "--text", "fore"],
        vec!["recordings", "export", name, "--key", "key.pem", "--format", "text"],
    ] {
        let (_, out, err) = archive.run(&args).await;
        let shown = format!("{out}{err}");
        assert!(!out.is_empty(), "{args:?}: {err}");
        assert!(
            !shown.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')),
            "{args:?}: {shown:?}"
        );
    }
    // A file says whose key signed it, and an error says that.
    let bytes = fs::read(&path).unwrap();
    let id = archive.keys.signing.verifying().id();
    let at = bytes.windows(id.len()).position(|part| part == id.as_bytes()).unwrap();
    let forged = archive.path("forged.cast.zst");
    let owned = format!("{:x<1$}", r"\u001b]0;owned\u0007", id.len());
    fs::write(&forged, [&bytes[..at], owned.as_bytes(), &bytes[at + id.len()..]].concat()).unwrap();
    let (code, _, err) = archive.run(&["play", "forged.cast.zst", "--key", "key.pem"]).await;
    assert!(code == 1 && err.contains("owned") && !err.contains('\x1b'), "{err:?}");
    // Bytes as they are go to no terminal.
    let (mut pty, pts) = pty_process::open().unwrap();
    let child = pty_process::Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(["recordings", "export", name, "--key", archive.path("key.pem").to_str().unwrap()])
        .kill_on_drop(true)
        .spawn(pts);
    let (mut child, mut shown) = (child.unwrap(), Vec::new());
    let _ = soon("the end", pty.read_to_end(&mut shown)).await;
    assert_eq!(soon("the exit", child.wait()).await.unwrap().code(), Some(2));
    assert!(!shown.contains(&0x1b), "{:?}", String::from_utf8_lossy(&shown));
    // On a terminal.
    let (mut pty, pts) = pty_process::open().unwrap();
    pty.resize(pty_process::Size::new(20, 60)).unwrap();
    let mut child = pty_process::Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(["play", name, "--key", archive.path("key.pem").to_str().unwrap()])
        .kill_on_drop(true)
        .spawn(pts)
        .unwrap();
    let mut shown = Vec::new();
    // The end of a terminal is an error.
    let _ = soon("the end", pty.read_to_end(&mut shown)).await;
    assert!(soon("the exit", child.wait()).await.unwrap().success());
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("fore\r\n") && shown.contains("\x1b[31mred"), "{shown:?}");
    for hostile in ["\x1b]", "\x1bP", "[6n", "[c", "\u{202e}", "\u{9b}", "?1000h"] {
        assert!(!shown.contains(hostile), "{hostile:?} in {shown:?}");
    }
}

#[tokio::test]
async fn on_a_terminal_it_is_played_at_its_pace_and_keys_work() {
    let archive = Archive::empty(Vec::new());
    let mut session = session(2);
    let mut tape = Tape::default();
    tape.put(Kind::Resize, b"{\"Width\":200,\"Height\":50}");
    tape.put(Kind::Stdout, b"first");
    tape.at(std::time::Duration::from_secs(3600));
    tape.put(Kind::Stdout, b"second");
    tape.at(std::time::Duration::from_secs(7200));
    tape.put(Kind::Stdout, b"third");
    session.tape = tape.take().content();
    let path = archive.add(&session);
    let key = archive.path("key.pem");
    let start = |args: &[&str]| {
        let (pty, pts) = pty_process::open().unwrap();
        pty.resize(pty_process::Size::new(20, 60)).unwrap();
        let child = pty_process::Command::new(env!("CARGO_BIN_EXE_podgate"))
            .args(["play", path.to_str().unwrap(), "--key", key.to_str().unwrap()])
            .args(args)
            .kill_on_drop(true)
            .spawn(pts)
            .unwrap();
        (pty, child)
    };
    async fn shows(pty: &mut pty_process::Pty, text: &str) -> String {
        let (mut shown, mut buf) = (String::new(), [0; 4096]);
        while !shown.contains(text) {
            let n = soon(text, pty.read(&mut buf)).await.unwrap();
            shown.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        shown
    }
    // An hour between two words: it waits, until a key ends it.
    let (mut pty, mut child) = start(&[]);
    let shown = shows(&mut pty, "first").await;
    assert!(shown.contains("recorded on 200x50, and this terminal is 60x20"), "{shown:?}");
    pty.write_all(b" q").await.unwrap();
    assert!(soon("the exit", child.wait()).await.unwrap().success());
    // An idle limit, and a beginning behind the first wait.
    let (mut pty, mut child) = start(&["--idle-limit", "0.01"]);
    shows(&mut pty, "third").await;
    assert!(soon("the exit", child.wait()).await.unwrap().success());
    let (mut pty, mut child) = start(&["--from", "1:00:00"]);
    shows(&mut pty, "second").await;
    pty.write_all(b"\x1b[C").await.unwrap();
    shows(&mut pty, "third").await;
    assert!(soon("the exit", child.wait()).await.unwrap().success());
}

/// Nobody but the user may read what is kept of cards.
#[tokio::test]
async fn the_cache_is_for_the_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let archive = Archive::new(1);
    archive.ok(&["recordings", "list", "--store", "store"]).await;
    let dir: &Path = &archive.path("cache/podgate");
    let file = fs::read_dir(dir).unwrap().next().unwrap().unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
