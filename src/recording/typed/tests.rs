//! Real programs on a real terminal: the lines that are found are the ones that ran.

use std::path::Path;

use proptest::prelude::*;
use rustix::termios::{LocalModes, tcgetattr};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;

const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";

/// How long a program may take to show something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program on a terminal, and what reads along.
struct Desk {
    pty: pty_process::Pty,
    child: tokio::process::Child,
    typed: Typed,
    started: Instant,
    shown: String,
    pieces: Vec<(Duration, Kind, Vec<u8>)>,
}

impl Desk {
    fn new(program: &str, args: &[&str], dir: &Path, env: &[(&str, &str)]) -> Self {
        let (pty, pts) = pty_process::open().unwrap();
        pty.resize(pty_process::Size::new(24, 80)).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let child = pty_process::Command::new(program)
            .args(args)
            .current_dir(dir)
            .env_clear()
            .envs([("TERM", "xterm"), ("LANG", "C.UTF-8"), ("INPUTRC", "/dev/null")])
            .env("PATH", path)
            .env("HOME", dir)
            .envs(env.iter().copied())
            .kill_on_drop(true)
            .spawn(pts)
            .unwrap();
        let (typed, started) = (Typed::new(), Instant::now());
        Self { pty, child, typed, started, shown: String::new(), pieces: Vec::new() }
    }

    fn piece(&mut self, kind: Kind, bytes: &[u8]) {
        let at = self.started.elapsed();
        self.typed.piece(at, kind, bytes);
        self.pieces.push((at, kind, bytes.to_vec()));
    }

    /// Presses keys, and waits until something was shown since then; a prompt only counts at the end.
    async fn keys(&mut self, keys: &str, until: &str) {
        self.piece(Kind::Stdin, keys.as_bytes());
        self.shown.clear();
        self.pty.write_all(keys.as_bytes()).await.unwrap();
        self.until(until).await;
    }

    async fn until(&mut self, until: &str) {
        let mut buf = [0; 4096];
        let prompts = until.ends_with(['$', '%', '>', ' ']);
        while !(if prompts { self.shown.ends_with(until) } else { self.shown.contains(until) }) {
            let read = timeout(PATIENCE, self.pty.read(&mut buf)).await;
            let read = read.unwrap_or_else(|_| panic!("{until:?} in {:?}", self.shown));
            // The last program of a terminal makes it fail.
            let Some(n) = read.ok().filter(|n| *n > 0) else {
                return;
            };
            self.piece(Kind::Stdout, &buf[..n]);
            self.shown.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
    }

    /// Waits until the terminal is no longer bash's editor's, where the return key would be no end of a line.
    async fn lines_are_read(&self) {
        let canonical = || tcgetattr(&self.pty).unwrap().local_modes.contains(LocalModes::ICANON);
        let wait = async {
            while !canonical() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("a terminal that reads lines");
    }

    async fn end(mut self) -> Vec<String> {
        self.until("\0never").await;
        self.child.wait().await.unwrap();
        self.lines()
    }

    fn lines(self) -> Vec<String> {
        let found = self.typed.finish();
        assert!(found.is_sorted_by(|a, b| a.at <= b.at));
        // However the pieces were cut, the same is found.
        let mut other = Typed::new();
        for (at, kind, bytes) in &self.pieces {
            let step = if *kind == Kind::Stdout { 1 } else { bytes.len().max(1) };
            bytes.chunks(step).for_each(|bytes| other.piece(*at, *kind, bytes));
        }
        assert_eq!(other.finish(), found);
        found.into_iter().map(|typed| typed.line).collect()
    }
}

/// A prompt that stands behind a line of its own.
const PROMPT: &str = "dir\n\\u@pod$ ";

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["longname.txt", "alpha1", "alpha2"] {
        std::fs::write(dir.path().join(name), "text\n").unwrap();
    }
    dir
}

#[tokio::test]
async fn the_lines_found_in_a_bash_session_are_those_of_its_history() {
    let dir = folder();
    let env = [("PS1", PROMPT), ("HISTFILE", "log"), ("HISTSIZE", "1000"), ("HISTCONTROL", "")];
    let mut desk = Desk::new("bash", &["--norc", "--noprofile", "-i"], dir.path(), &env);
    let p = "@pod$ ";
    desk.until(p).await;
    // Without this a loop over several lines is one line of the history.
    desk.keys("shopt -u cmdhist\r", p).await;
    desk.keys("echo one two\r", p).await;
    desk.keys(&format!("{UP}\r"), p).await;
    desk.keys(&format!("{UP}{UP}{UP}\r"), p).await;
    desk.keys("echo two three\x01X=1 \x05 four\x17five\r", p).await;
    desk.keys("not this\x15echo that\r", p).await;
    desk.keys(&format!("echo abcd{LEFT}{LEFT}X\x7fY\r"), p).await;
    desk.keys("cat longn\t\r", p).await;
    desk.keys("cat al\t\t\t", "alpha2").await;
    desk.keys("2\r", p).await;
    desk.keys("\x12one", "one").await;
    desk.keys("\r", p).await;
    let long = "echo a long line ".to_owned() + &"of many words ".repeat(12);
    desk.keys(&format!("{long}\r"), p).await;
    desk.keys(&format!("{long}\x01X=2 {LEFT}3\r"), p).await;
    desk.keys(&format!("{UP}\x05 end\r"), p).await;
    desk.keys("echo é 日本 👩 naïve\x7f\x7fx\r", p).await;
    desk.keys("for i in 1 2; do\r", "> ").await;
    desk.keys("echo $i\r", "> ").await;
    desk.keys("done\r", p).await;
    desk.keys("echo never\x03", p).await;
    desk.keys("clear\r", p).await;
    desk.keys("echo after clear\r", p).await;
    desk.keys("echo redrawn\x0c", "$ echo redrawn").await;
    desk.keys(" line\r", p).await;
    desk.keys("vi -u NONE file\r", "\x1b[?1049h").await;
    desk.keys("ihello\r:wq not\rreally\x1b", "really").await;
    desk.keys(":wq\r", p).await;
    desk.keys("less longname.txt\r", "(END)").await;
    desk.keys("/text\rq", p).await;
    desk.keys("seq 200\r", p).await;
    desk.keys("echo after much\r", p).await;
    desk.keys("\x1b[200~echo p1\necho p2\x1b[201~", "p2").await;
    desk.keys("\r", p).await;
    desk.keys("\x1b[200~echo p3\necho p4\x1b[201~\r", p).await;
    desk.keys("echo q1\recho q2\rsleep 0.2\recho q3\r", "q3\r\n").await;
    desk.until(p).await;
    desk.keys("sleep 0.5\r", "sleep 0.5\r\n").await;
    desk.keys("echo ahead\r", "l\rahead\r\n").await;
    desk.keys("PS1='> % '\r", "> % ").await;
    desk.keys("echo other prompt\r", "> % ").await;
    desk.keys(&format!("{UP}{UP}{UP}\r"), "> % ").await;
    desk.keys("PS1=\r", "l\r\x1b[?2004h").await;
    desk.keys("echo no prompt\r", "prompt\r\n\x1b[?2004h").await;
    desk.keys(&format!("{UP}\r"), "prompt\r\n\x1b[?2004h").await;
    desk.keys("exit\r", "exit").await;
    let found = desk.end().await;
    let found: Vec<&str> = found.iter().flat_map(|line| line.lines()).map(str::trim_end).collect();
    let history = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let history: Vec<&str> = history.lines().map(str::trim_end).collect();
    assert_eq!(found, history);
    assert!(history.len() > 40, "{history:?}");
}

#[tokio::test]
async fn what_is_typed_without_echo_is_not_found() {
    let dir = folder();
    let mut desk = Desk::new("bash", &["--norc", "--noprofile", "-i"], dir.path(), &[("PS1", "$ ")]);
    desk.until("$ ").await;
    desk.keys("read -s -p 'Password: ' x\r", "Password: ").await;
    desk.keys("hunter2\r", "$ ").await;
    desk.keys("read -s -p 'Password: ' x; echo \"done $x\" | tr a-z A-Z\r", "Password: ").await;
    desk.keys("hunx\x7fter3\r", "$ ").await;
    desk.keys("read -p 'Name: ' x\r", "Name: ").await;
    desk.keys("ana\r", "$ ").await;
    desk.keys("stty -echo\r", "$ ").await;
    desk.keys("read x\r", "l\r").await;
    desk.lines_are_read().await;
    desk.keys("hunter4\r", "$ ").await;
    desk.keys("exit\r", "exit").await;
    let found = desk.end().await;
    assert!(!found.iter().any(|line| line.contains("hun") || line.contains("HUN")), "{found:?}");
    assert!(
        found.contains(&"ana".to_owned()) && found.last().is_some_and(|line| line == "exit"),
        "{found:?}"
    );
}

#[tokio::test]
async fn shells_that_edit_nothing_are_read_too() {
    let (p, more) = ("# ", "> ");
    let dir = folder();
    let mut desk = Desk::new("dash", &["-i"], dir.path(), &[("PS1", "# ")]);
    desk.until(p).await;
    desk.keys("echo one\r", p).await;
    desk.keys("echo twi\x7fo\r", p).await;
    desk.keys("if true; then\r", more).await;
    desk.keys("echo three\r", more).await;
    desk.keys("fi\r", p).await;
    desk.keys("stty -echo; echo off; read x; stty echo\r", "\noff\r\n").await;
    desk.keys("hunter2\r", p).await;
    desk.keys("echo four\recho five\recho six\r", &format!("six\r\n{p}")).await;
    desk.keys("exit\r", "exit").await;
    let found = desk.end().await;
    let typed = [
        "echo one",
        "echo two",
        "if true; then",
        "echo three",
        "fi",
        "stty -echo; echo off; read x; stty echo",
    ];
    let pasted = ["echo four", "echo five", "echo six", "exit"];
    assert_eq!(found, [&typed[..], &pasted].concat());
}

#[tokio::test]
async fn other_prompts_than_a_shells_are_read_too() {
    let dir = folder();
    let mut desk = Desk::new("python3", &["-q", "-i"], dir.path(), &[("PYTHON_BASIC_REPL", "1")]);
    desk.until(">>> ").await;
    desk.keys("x = 1\r", ">>> ").await;
    desk.keys("for i in range(2):\r", "... ").await;
    desk.keys("    print(i)\r", "... ").await;
    desk.keys("\r", ">>> ").await;
    desk.keys("x + 1\r", ">>> ").await;
    desk.keys("exit()\r", "exit()").await;
    assert_eq!(desk.end().await, ["x = 1", "for i in range(2):", "    print(i)", "x + 1", "exit()"]);
}

/// As a program would that shows what is typed.
fn echo(typed: &mut Typed, at: u64, prompt: &str, line: &str) {
    let at = Duration::from_secs(at);
    typed.piece(at, Kind::Stdout, prompt.as_bytes());
    typed.piece(at, Kind::Stdin, line.as_bytes());
    typed.piece(at, Kind::Stdout, line.as_bytes());
    typed.piece(at, Kind::Stdin, b"\r");
    typed.piece(at, Kind::Stdout, b"\r\n");
}

#[test]
fn gigabytes_of_output_cost_little_and_lines_behind_them_are_found() {
    let mut typed = Typed::new();
    echo(&mut typed, 1, "$ ", "cat large");
    let line = b"0123456789 abcdefghijklmnopqrstuvwxyz\r\n".repeat(3000);
    let before = clock_gettime(ClockId::ThreadCPUTime);
    for _ in 0..10_000 {
        typed.piece(Duration::from_secs(2), Kind::Stdout, &line);
    }
    let spent = clock_gettime(ClockId::ThreadCPUTime) - before;
    assert!(spent.tv_sec < 60, "hours of CPU, if all of it went to the screen");
    echo(&mut typed, 30, "\r\n$ ", "echo behind it");
    let bytes = vec![0xff; 1 << 16];
    for _ in 0..1000 {
        typed.piece(Duration::from_secs(31), Kind::Stdout, &bytes);
    }
    typed.piece(Duration::from_secs(31), Kind::Stdout, b"\x1b[?1049h");
    for _ in 0..1000 {
        typed.piece(Duration::from_secs(31), Kind::Stdout, &bytes);
    }
    typed.piece(Duration::from_secs(60), Kind::Stdin, b"not this\r");
    typed.piece(Duration::from_secs(60), Kind::Stdout, b"not this\r\n\x1b[?1049l");
    echo(&mut typed, 90, "\r\n$ ", "exit");
    let lines: Vec<String> = typed.finish().into_iter().map(|typed| typed.line).collect();
    assert_eq!(lines, ["cat large", "echo behind it", "exit"]);
}

#[test]
fn lines_and_their_number_are_bounded() {
    let mut typed = Typed::new();
    typed.piece(Duration::ZERO, Kind::Resize, b"{\"Width\":65535,\"Height\":65535}");
    for n in 0..15_000 {
        echo(&mut typed, n, "$ ", &format!("echo {n}"));
    }
    let found = typed.finish();
    assert_eq!(found.len(), MAX_LINES + 2);
    assert!(found.last().is_some_and(|last| last.line.contains("more was typed")));
    assert!(found[7].line == "echo 7" && (found[7].at - 7.0).abs() < 1e-9);
}

#[test]
fn a_mark_of_a_paste_that_nobody_asked_for_hides_nothing() {
    let mut typed = Typed::new();
    typed.piece(Duration::ZERO, Kind::Stdout, b"# ");
    typed.piece(Duration::ZERO, Kind::Stdin, b"\x1b[200~");
    typed.piece(Duration::ZERO, Kind::Stdout, b"^[[200~");
    typed.piece(Duration::ZERO, Kind::Stdin, b"\r");
    typed.piece(Duration::ZERO, Kind::Stdout, b"\r\n");
    echo(&mut typed, 1, "# ", "rm -rf /data");
    assert_eq!(typed.finish().last().unwrap().line, "rm -rf /data");
}

proptest! {
    /// Whatever comes, in whatever order: no panic, and nothing that was not shown.
    #[test]
    fn nothing_is_made_up(pieces in prop::collection::vec((0u8..3, hostile(), 0u64..4000), 0..40)) {
        let mut typed = Typed::new();
        let (mut at, mut shown) = (Duration::ZERO, Vec::new());
        for (kind, bytes, later) in pieces {
            at += Duration::from_millis(later);
            let kind = [Kind::Stdin, Kind::Stdout, Kind::Resize][usize::from(kind)];
            if kind == Kind::Stdout {
                shown.extend_from_slice(&bytes);
            }
            typed.piece(at, kind, &bytes);
        }
        for line in typed.finish() {
            for c in line.line.chars().filter(|c| c.is_ascii_alphanumeric()) {
                prop_assert!(shown.contains(&(c as u8)), "{:?}", line.line);
            }
        }
    }
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "\r",
        "\n",
        "$ ",
        "ls -l",
        "ls -l",
        "x",
        "\x1b[A",
        "\x1b",
        "\x7f",
        "\t",
        "\x03",
        "\x0f",
        "\x15",
        "\x1b[200~",
        "\x1b[201~",
        "\x1b[?2004h",
        "\x1b[?2004l",
        "\x1b[?1049h",
        "\x1b[?1049l",
        "\x1b[H",
        "\x1b[2J",
        "\x1b[5;3r",
        "\x1b[9S",
        "\x1b[9T",
        "\x1b[L",
        "\x1b[M",
        "\x1b[P",
        "\x1b[@",
        "\x1bM",
        "\x1b[999b",
        "\x1b[A\x1b[99C",
        "日本",
        "e\u{301}",
        "\x1bc",
        "{\"Width\":1,\"Height\":1}",
        "{\"Width\":2,\"Height\":60}",
        "{\"Width\":300,\"Height\":3}",
        "{\"Width\":65535,\"Height\":9}",
    ]);
    let part = prop_oneof![
        8 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}
