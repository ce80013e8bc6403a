//! Real programs on a real terminal: the lines that are found are the ones that ran.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;

const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";

/// How long a program may take to show something.
const PATIENCE: Duration = Duration::from_secs(5);

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
