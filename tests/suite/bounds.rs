//! What bounds a session: that each limit holds, how its end looks to whoever is inside, and where else it is seen.

use std::path::PathBuf;
use std::time::Duration;

use podgate::app::dev::Dev;
use podgate::config::Config;
use podgate::drain::Drained;
use podgate::testing::{soon, until};
use podgate::wire::remotecommand::StreamType;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;
use tokio::time::Instant;

use crate::dev::{Running, config};
use crate::kubectl::{Kubectl, Screen, all};
use crate::policy::replace;
use crate::sessions::{exec, exec_as, lines};

/// How far a limit of bytes may be off, over some seconds.
const WITHIN: f64 = 0.05;

/// How far a share may be off: by sessions, not by users, each would be a third off at least.
const SHARED: f64 = 0.15;

/// How often it is measured at most: other work on a machine can only make it look worse.
const TRIES: usize = 4;

/// Bytes per second of rule `p/slow`: well below what any machine can do.
const SLOW: f64 = 200_000.0;

const RULES: &str = "
  - {name: all, match: {}, effect: allow}
  - {name: slow, match: {command: [{glob: '*# slow'}]}, effect: allow, limits: {bytesPerSecond: 200000}}
  - {name: quick, match: {command: [{glob: '*# quick'}]}, effect: allow, limits: {bytesPerSecond: 4000000}}
  - {name: short, match: {command: [{glob: '*# longest'}]}, effect: allow, limits: {longest: 3s}}
  - {name: still, match: {command: [{glob: '*# idle'}]}, effect: allow, limits: {idle: 3s}}
  - {name: four-eyes, match: {command: [{glob: '*# grant'}]}, effect: allow, demands: {grant: true}}
  - {name: few, match: {command: [{glob: '*# few'}]}, effect: allow, limits: {sessionsPerUser: 1}}
";

/// What replaces them when rules change.
const CHANGED: &str = "
  - {name: gone, match: {command: [{glob: '*# rules'}]}, effect: deny, message: not any more}
";

fn policy(rules: &str) -> String {
    format!(
        "apiVersion: podgate.dev/v1alpha1\nkind: ExecPolicy\nmetadata: {{name: p}}\nspec:\n  rules:{rules}"
    )
}

/// An embedded cluster with these rules, which records, and its audit log.
async fn ruled(rules: &str) -> (Running, PathBuf) {
    ruled_and(rules, |_| {}).await
}

async fn ruled_and(rules: &str, settings: impl FnOnce(&mut Config)) -> (Running, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, log) = (config(&folder), folder.path().join("audit.log"));
    config.audit.file.path = Some(log.clone());
    config.policy.files = vec![folder.path().join("policy.yaml")];
    config.policy.grants.longest = Duration::from_secs(15);
    config.reload.period = Duration::from_millis(50);
    config.recording.enabled = true;
    settings(&mut config);
    std::fs::write(&config.policy.files[0], policy(rules)).unwrap();
    (Running { dev: Dev::start(&config).await.unwrap(), folder }, log)
}

/// The annotations of the last event of a session whose request has this in it.
fn ended(log: &std::path::Path, mark: &str) -> Option<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains(mark) && line.contains("ResponseComplete"));
    let annotations =
        lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("annotations").cloned());
    let mut sessions = annotations.filter(|all| all.get("podgate.dev/end-reason").is_some());
    sessions.next()
}

// === bytes ===

/// Query of an exec of a line of a shell.
fn shell(line: &str) -> String {
    let line: String = line.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("command=sh&command=-c&command={line}&stdin=1&stdout=1")
}

/// Bytes per second in which the program of this line takes so many bytes, until it says that it has them.
async fn up(running: &Running, line: &str, bytes: usize) -> f64 {
    let mut client = exec(running, &shell(line), &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
    let start = Instant::now();
    client.write(&vec![b'x'; bytes]).await;
    let finished = client.finish().await;
    assert_eq!(finished.stdout, b"done\n");
    bytes as f64 / start.elapsed().as_secs_f64()
}

/// Bytes per second in which the program of this line writes so many.
async fn down(user: &str, running: &Running, line: &str, bytes: usize) -> f64 {
    let mut client = exec_as(user, running, &shell(line), &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
    let start = Instant::now();
    let finished = client.finish().await;
    assert_eq!(finished.stdout.len(), bytes);
    bytes as f64 / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_bytes_holds_in_both_directions_beside_other_sessions_and_a_recording() {
    const BYTES: usize = 1_000_000;
    let (running, log) = ruled(RULES).await;
    let measured = async {
        let (sends, takes) = (
            format!("head -c {BYTES} /dev/zero # slow"),
            format!("head -c {BYTES} >/dev/null; echo done # slow"),
        );
        for _ in 0..TRIES {
            let (down, up) =
                tokio::join!(down("alice", &running, &sends, BYTES), up(&running, &takes, BYTES));
            println!("held to {SLOW} bytes/s: {down:.0} down, {up:.0} up");
            if [down, up].iter().all(|rate| (rate - SLOW).abs() <= WITHIN * SLOW) {
                return;
            }
        }
        panic!("never within {WITHIN} of it");
    };
    let mut other =
        exec(&running, &shell("cat /dev/zero # quick"), &lines(&["v4.channel.k8s.io"]), false).await;
    other.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
    let busy = async {
        loop {
            other.read().await;
        }
    };
    tokio::select! {
        () = measured => {}
        () = busy => unreachable!("it goes on"),
    }
    drop(other);
    // As `head` stands in the URL.
    let mark = "%68%65%61%64";
    until("the last event", || ended(&log, mark).is_some()).await;
    let annotations = ended(&log, mark).unwrap();
    assert_eq!(annotations["podgate.dev/slowed-by"], "rule p/slow");
    let seconds: f64 = annotations["podgate.dev/slowed-seconds"].as_str().unwrap().parse().unwrap();
    assert!(seconds > 3.0 && seconds < 6.0, "{seconds}");
    running.stop().await;
}

/// The median time that some typed bytes take to a program and back.
async fn typed(user: &str, running: &Running) -> Duration {
    let mut client =
        exec_as(user, running, &shell("cat # typed"), &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
    let mut times = Vec::new();
    for n in 0..21 {
        let (key, start) = (format!("<{n}>"), Instant::now());
        client.write(key.as_bytes()).await;
        client.until(StreamType::Stdout, &key).await;
        times.push(start.elapsed());
        // No multiple of a sample: at all its times.
        tokio::time::sleep(Duration::from_millis(73)).await;
    }
    client.close_stdin().await;
    client.finish().await;
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn users_share_what_all_sessions_may_move_and_whoever_types_does_not_wait_for_bulk() {
    const BYTES: usize = 1_600_000;
    const ALL: f64 = 400_000.0;
    let (running, log) =
        ruled_and(RULES, |config| config.session.max_bytes_per_second_in_all = ALL as u64).await;
    // One user has one copy, the other two and a terminal.
    let line = |bytes: usize| format!("head -c {bytes} /dev/zero # shared");
    let (all, half) = (line(BYTES), line(BYTES / 2));
    // Other work on a machine may spoil either, so they need not be seen at once.
    let (mut shared, mut quick) = (false, false);
    for _ in 0..TRIES {
        let (alice, one, two, typed) = tokio::join!(
            down("alice", &running, &all, BYTES),
            down("admin", &running, &half, BYTES / 2),
            down("admin", &running, &half, BYTES / 2),
            typed("admin", &running),
        );
        println!("of {ALL} bytes/s: {alice:.0}, and {one:.0} and {two:.0} beside {typed:?} for typed bytes");
        let near = |rate: f64, part: f64| (rate - part * ALL).abs() <= SHARED * part * ALL;
        shared |= near(alice, 0.5) && near(one, 0.25) && near(two, 0.25);
        // A wait for a sample's end takes 50 ms, on average, each way.
        quick |= typed < Duration::from_millis(60);
        if shared && quick {
            break;
        }
    }
    assert!(shared, "never shared within {SHARED}");
    assert!(quick, "whoever types has waited for bulk");
    let mark = "%68%65%61%64";
    until("the last event", || ended(&log, mark).is_some()).await;
    let annotations = ended(&log, mark).unwrap();
    assert_eq!(annotations["podgate.dev/slowed-by"], "setting session.maxBytesPerSecondInAll");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_held_up_is_told_in_the_terminal_and_others_see_it_with_all_limits() {
    let (running, _) = ruled(RULES).await;
    for kubectl in all(&running.kubeconfig()) {
        let line = "stty -onlcr; head -c 500000 /dev/zero | tr '\\0' x; echo; cat # slow";
        let (mut screen, mut child) = kubectl.on_screen(&["exec", "-it", "web", "--", "sh", "-c", line]);
        screen.shows("podgate: held to 195.3 KiB/s by rule p/slow\r\n").await;
        screen.shows("\nx").await;
        let described = kubectl.run(&["describe", "sessions"]).await.out;
        let words = described.split_whitespace().collect::<Vec<_>>().join(" ");
        for shown in [
            "Limited By: Bytes Per Second: rule p/slow Idle Seconds: setting session.idleTimeout",
            "Sessions Per User: setting session.maxSessionsPerCaller",
            "Limits: Bytes Per Second: 200000 Idle Seconds: 14400",
            "Left: Idle Seconds: 14",
            "Sessions Per User: 255",
            "Slowed: By: rule p/slow Held Up Seconds: ",
        ] {
            assert!(words.contains(shown), "{shown}: {described}");
        }
        child.kill().await.unwrap();
        until("its end", || running.dev.metrics().sessions.get() == 0).await;
        assert_eq!(screen.seen.matches("held to").count(), 1);
    }
    running.stop().await;
}

// === how it ends ===

/// A kubectl inside, with a terminal or without.
enum Inside {
    Terminal(Screen, Child),
    Plain(Child, BufReader<tokio::process::ChildStdout>),
}

/// What a kubectl whose session has ended has said, with its exit code.
struct Left {
    code: Option<i32>,
    said: String,
}

impl Inside {
    /// Runs something that goes on, of which a rule is known by the word.
    async fn begin(kubectl: &Kubectl, user: &str, word: &str, terminal: bool) -> Self {
        let line = format!("echo in; cat # {word}");
        let flag = if terminal { "-it" } else { "-i" };
        let args = ["--context", user, "exec", flag, "web", "--", "sh", "-c", &line];
        if terminal {
            let (mut screen, child) = kubectl.on_screen(&args);
            screen.shows("in\r\n").await;
            return Self::Terminal(screen, child);
        }
        let mut child = kubectl.spawn(kubectl.command(&args).stdin(std::process::Stdio::piped()));
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        soon("the first line", out.read_line(&mut said)).await.unwrap();
        assert_eq!(said, "in\n");
        Self::Plain(child, out)
    }

    async fn ends(self) -> Left {
        match self {
            Self::Terminal(mut screen, mut child) => {
                let mut bytes = vec![0; 4096];
                // A terminal whose last program has ended cannot be read any more.
                while let Ok(count @ 1..) = screen.terminal.read(&mut bytes).await {
                    screen.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
                let code = child.wait().await.unwrap().code();
                Left { code, said: screen.seen }
            }
            Self::Plain(mut child, mut out) => {
                let (mut said, mut rest) = (String::new(), String::new());
                let mut err = child.stderr.take().unwrap();
                let (said_all, rest_all) =
                    tokio::join!(err.read_to_string(&mut said), out.read_to_string(&mut rest));
                said_all.unwrap();
                rest_all.unwrap();
                assert_eq!(rest, "", "nothing strange is in the output of a program");
                let code = child.wait().await.unwrap().code();
                Left { code, said }
            }
        }
    }
}

/// A row of the table: what ends a session, the reason that is told, and what kubectls make of it.
struct Row<'a> {
    why: &'a str,
    told: &'a str,
    terminal: &'a str,
    plain: &'a str,
    code: i32,
    reason: &'a str,
}

/// The table of the document.
fn table() -> Vec<Row<'static>> {
    let text = include_str!("../../docs/sessions.md");
    let (_, text) = text.split_once("\n## How an end looks\n").unwrap();
    let (text, _) = text.split_once("\n## ").unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(2);
    let cells = rows
        .map(|row| row.trim_matches(['|', ' ']).split(" | ").map(|cell| cell.trim_matches('`')).collect());
    cells
        .map(|cells: Vec<_>| match cells[..] {
            [why, told, terminal, plain, code, reason] => {
                Row { why, told, terminal, plain, code: code.parse().unwrap(), reason }
            }
            _ => panic!("{cells:?}"),
        })
        .collect()
}

impl Row<'_> {
    /// Holds what kubectls have said against the table. `name` is what stands for NAME.
    fn check(&self, name: &str, terminal: &Left, plain: &Left) {
        let told = self.told.replace("NAME", name);
        println!(
            "{}: {:?} {:?}\n    {:?} {:?}",
            self.why, terminal.code, terminal.said, plain.code, plain.said
        );
        for (left, cell) in [(terminal, self.terminal), (plain, self.plain)] {
            let mut last = left.said.trim_end().lines().map(str::trim_end).filter(|line| !line.is_empty());
            let last = last.next_back().unwrap_or_default();
            let wanted = cell.replace("TOLD", &told);
            assert!(wanted.split(" or ").any(|wanted| wanted == last), "{}: {:?}", self.why, left.said);
            assert_eq!(left.code, Some(self.code), "{}", self.why);
        }
        if self.terminal != self.plain || self.code == 1 && !self.terminal.starts_with("Error from server") {
            assert!(terminal.said.contains(&format!("\r\npodgate: {told}\r\n")), "{:?}", terminal.said);
        }
    }
}

async fn both(kubectl: &Kubectl, user: &str, word: &str) -> (Inside, Inside) {
    tokio::join!(Inside::begin(kubectl, user, word, true), Inside::begin(kubectl, user, word, false))
}

async fn ends((terminal, plain): (Inside, Inside)) -> (Left, Left) {
    soon("both ends", async { tokio::join!(Box::pin(terminal.ends()), Box::pin(plain.ends())) }).await
}

/// A grant that alice has asked for, and admin has let her have; its name.
async fn granted(kubectl: &Kubectl) -> String {
    let args = ["--context", "alice", "exec", "web", "--", "sh", "-c", "id # grant"];
    let refused = kubectl.run(&args).await;
    let (_, command) =
        refused.err.split_once("ask for one with: ").unwrap_or_else(|| panic!("{}", refused.err));
    let asked = kubectl.shell(&format!("{} --context alice", command.trim_end())).await;
    let name = asked.out.strip_suffix(" created\n").unwrap_or_else(|| panic!("{}", asked.err)).to_owned();
    let approved = kubectl.run(&["annotate", &name, "podgate.dev/approve=yes"]).await;
    assert_eq!(approved.code, Some(0), "{}", approved.err);
    name.rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_looks_to_every_kubectl_as_the_document_says() {
    let rows = table();
    let row = |why: &str| rows.iter().find(|row| row.why == why).unwrap_or_else(|| panic!("no row {why}"));
    assert_eq!(rows.len(), 7);
    let file = |running: &Running| running.folder.path().join("policy.yaml");
    let kubectls = all(std::path::Path::new("/dev/null")).len();
    for number in 0..kubectls {
        let (running, log) = ruled(RULES).await;
        let kubectl = all(&running.kubeconfig()).remove(number);
        let audit = async |word: &str| {
            let mark = format!("%23+{word}");
            until("the last event", || ended(&log, &mark).is_some()).await;
            ended(&log, &mark).unwrap()["podgate.dev/end-reason"].as_str().unwrap().to_owned()
        };
        let name = granted(&kubectl).await;
        // Its time runs already.
        let grant = both(&kubectl, "alice", "grant").await;
        let (longest, idle, deleted, rules) = tokio::join!(
            both(&kubectl, "admin", "longest"),
            both(&kubectl, "admin", "idle"),
            both(&kubectl, "admin", "deleted"),
            both(&kubectl, "admin", "rules"),
        );
        let (longest, idle) = tokio::join!(ends(longest), ends(idle));
        row("its longest").check("", &longest.0, &longest.1);
        row("idle for too long").check("", &idle.0, &idle.1);
        let sessions = kubectl.run(&["get", "sessions", "-o", "json"]).await.out;
        let sessions: Value = serde_json::from_str(&sessions).unwrap();
        for session in sessions["items"].as_array().unwrap() {
            if session["spec"]["command"][2].as_str().unwrap().ends_with("# deleted") {
                let name = session["metadata"]["name"].as_str().unwrap();
                assert_eq!(kubectl.run(&["delete", "session", name]).await.code, Some(0));
            }
        }
        let deleted = ends(deleted).await;
        row("kubectl delete session").check("", &deleted.0, &deleted.1);
        let grant = ends(grant).await;
        row("its grant has run out").check(&name, &grant.0, &grant.1);
        replace(&file(&running), &policy(&(RULES.to_owned() + CHANGED.trim_start_matches('\n'))));
        let rules = ends(rules).await;
        row("rules have changed").check("", &rules.0, &rules.1);
        for (word, why) in [
            ("longest", "its longest"),
            ("idle", "idle for too long"),
            ("grant", "its grant has run out"),
            ("deleted", "kubectl delete session"),
            ("rules", "rules have changed"),
        ] {
            assert_eq!(audit(word).await, row(why).reason, "{why}");
        }
        let first = Inside::begin(&kubectl, "alice", "first", false).await;
        let refused = async |flag: &str| {
            let args = ["--context", "alice", "exec", flag, "web", "--", "sh", "-c", "id # few"];
            let said = kubectl.run(&args).await;
            Left { code: said.code, said: said.err }
        };
        let (terminal, plain) = (refused("-it").await, refused("-i").await);
        row("too many of one user").check("", &terminal, &plain);
        drop(first);
        let drained = both(&kubectl, "admin", "drained").await;
        let (stopped, drained) = tokio::join!(running.dev.stop(Duration::from_secs(1)), ends(drained));
        assert_eq!(stopped, Drained::Cut);
        row("podgate stops").check("", &drained.0, &drained.1);
        assert_eq!(audit("drained").await, row("podgate stops").reason);
    }
}
