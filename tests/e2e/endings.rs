//! What is left in a real container when kubectls are killed: no plain shell, and nothing that podgate does not tell of.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::clients::Client;
use crate::real::Cluster;
use crate::report::Outcome;

/// Shells, and how many of them at once.
const SHELLS: usize = 50;
const AT_ONCE: usize = 10;

/// How long after the last kill something may be left.
const GONE: Duration = Duration::from_secs(10);

/// How long a shell may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stands for a shell in the environment of all that it starts.
const MARK: &str = "PODGATE_E2E_SHELL";

/// What runs in a shell, and what its terminal shows once it does. Nothing: a plain shell.
const TYPED: [(&str, &str); 5] = [
    ("", ""),
    ("echo be''gun; sleep 1000\r", "begun"),
    ("vi\r", "~"),
    ("echo be''gun; cat\r", "begun"),
    ("sh\recho be''gun\r", "begun"),
];

/// Kills each kubectl at a random moment: most while their program runs, every tenth wherever it is on its way there.
pub(crate) async fn no_plain_shell_is_left(
    cluster: &Cluster,
    callers: &Path,
    clients: &[&Client],
    log: &Path,
) -> Outcome {
    let mut moments = [0; SHELLS];
    aws_lc_rs::rand::fill(&mut moments).unwrap();
    let numbers: Vec<_> = (0..SHELLS).collect();
    for some in numbers.chunks(AT_ONCE) {
        let shells = some.iter().map(|number| {
            let kubectl = Path::new(&clients[number % clients.len()].argv()[0]);
            shell(cluster, callers, kubectl, *number, moments[*number])
        });
        futures_util::future::join_all(shells).await;
    }
    let last = Instant::now();
    loop {
        let (left, told) = (left(cluster).await, told(log));
        let plain = left.iter().any(|number| number % TYPED.len() != 2);
        if !plain && left.is_subset(&told) {
            println!("{} of {SHELLS} shells are left, {} may be: {left:?}", left.len(), told.len());
            // Nobody else ends them.
            let end =
                format!("for p in $(grep -l {MARK}= /proc/[0-9]*/environ); do kill -9 ${{p//[!0-9]/}}; done");
            cluster.kubectl(&["exec", "echo", "--", "sh", "-c", &end], b"").await;
            return Outcome::Works;
        }
        assert!(last.elapsed() < GONE, "left: {left:?}; told: {told:?}");
        sleep(Duration::from_millis(500)).await;
    }
}

async fn shell(cluster: &Cluster, callers: &Path, kubectl: &Path, number: usize, moment: u8) {
    let (mut terminal, pts) = pty_process::open().unwrap();
    terminal.resize(pty_process::Size::new(30, 100)).unwrap();
    let mark = format!("{MARK}={number}");
    let mut child = pty_process::Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(callers)
        .args(["exec", "-it", "echo", "--", "env", &mark, "sh"])
        .env("HOME", cluster.home())
        .kill_on_drop(true)
        .spawn(pts)
        .unwrap();
    if number % 10 == 9 {
        sleep(Duration::from_millis(8 * u64::from(moment))).await;
    } else {
        let (typed, shown) = TYPED[number % TYPED.len()];
        shows(&mut terminal, "# ").await;
        terminal.write_all(typed.as_bytes()).await.unwrap();
        shows(&mut terminal, shown).await;
        sleep(Duration::from_millis(2 * u64::from(moment))).await;
    }
    child.kill().await.unwrap();
}

async fn shows(terminal: &mut pty_process::Pty, text: &str) {
    let (mut seen, mut bytes) = (String::new(), [0; 4096]);
    while !seen.contains(text) {
        match timeout(PATIENCE, terminal.read(&mut bytes)).await {
            Ok(Ok(count @ 1..)) => seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
            other => panic!("{text:?} was not shown ({other:?}): {seen:?}"),
        }
    }
}

/// The shells of which there still are processes, as the container sees it.
async fn left(cluster: &Cluster) -> BTreeSet<usize> {
    let look = format!(
        "for p in /proc/[0-9]*/environ; do tr '\\0' '\\n' <$p; done 2>/dev/null | grep ^{MARK}= || true"
    );
    let said = cluster.kubectl(&["exec", "echo", "--", "sh", "-c", &look], b"").await;
    said.lines().filter_map(|line| line.split_once('=')?.1.trim().parse().ok()).collect()
}

/// Those of which podgate has written that they may be left.
fn told(log: &Path) -> BTreeSet<usize> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let annotations = events.map(|event| event["annotations"].clone());
    let told = annotations.filter(|all| all["podgate.dev/process-may-remain"] == "true");
    let command = |all: Value| all["podgate.dev/command"].as_str().unwrap_or_default().to_owned();
    let number = |command: String| command.split_once(&format!("{MARK}="))?.1.split('"').next()?.parse().ok();
    told.map(command).filter_map(number).collect()
}
