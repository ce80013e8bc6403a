//! Real kubectls, against the embedded cluster.
//!
//! `PODGATE_KUBECTLS` names the binaries, joined by colons (`tests/kubectls.sh` finds or fetches some); without it the one
//! on the PATH is run. Every test runs with each of them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use aws_lc_rs::digest;
use podgate::testing::{soon, until};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::dev::Running;
use crate::sessions::sleeping;

/// How long one kubectl may take: they are slow to start on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One kubectl with its own home: discovery caches of versions do not mix.
pub(crate) struct Kubectl {
    binary: PathBuf,
    home: tempfile::TempDir,
    kubeconfig: PathBuf,
}

pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn all(kubeconfig: &Path) -> Vec<Kubectl> {
    let named = std::env::var("PODGATE_KUBECTLS").unwrap_or_else(|_| "kubectl".into());
    let one = |binary: &str| Kubectl {
        binary: binary.into(),
        home: tempfile::tempdir().unwrap(),
        kubeconfig: kubeconfig.to_owned(),
    };
    let all: Vec<_> = named.split(':').filter(|name| !name.is_empty()).map(one).collect();
    assert!(!all.is_empty(), "PODGATE_KUBECTLS names no kubectl");
    all
}

impl Kubectl {
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Child {
        command.spawn().unwrap_or_else(|error| {
            panic!(
                "cannot run {}: {error}; install kubectl, or name binaries in PODGATE_KUBECTLS (tests/kubectls.sh fetches some)",
                self.binary.display()
            )
        })
    }

    /// On a terminal of 30 lines and 100 columns.
    pub(crate) fn on_screen(&self, args: &[&str]) -> (Screen, Child) {
        let (terminal, pts) = pty_process::open().unwrap();
        terminal.resize(pty_process::Size::new(30, 100)).unwrap();
        let child = pty_process::Command::new(&self.binary)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .kill_on_drop(true)
            .spawn(pts)
            .unwrap();
        (Screen { terminal, seen: String::new() }, child)
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Said {
        let child = self.spawn(&mut self.command(args));
        said(self.output(child).await)
    }

    /// A line of a shell to which this kubectl is `kubectl`.
    pub(crate) async fn shell(&self, line: &str) -> Said {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .env_clear()
            .env("HOME", self.home.path())
            .env("KUBECONFIG", &self.kubeconfig);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        if self.binary.is_absolute() {
            // Of several calls the first makes it.
            let _ = std::os::unix::fs::symlink(&self.binary, self.home.path().join("kubectl"));
        }
        command.env("PATH", format!("{}:{path}", self.home.path().display()));
        said(self.output(self.spawn(&mut command)).await)
    }

    pub(crate) async fn feed(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.spawn(self.command(args).stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let write = async move {
            stdin.write_all(&input).await.unwrap();
            drop(stdin);
        };
        let (output, ()) = tokio::join!(self.output(child), write);
        output
    }

    async fn output(&self, child: Child) -> Output {
        match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
            Ok(output) => output.unwrap(),
            Err(_) => panic!("{} did not end within {PATIENCE:?}", self.binary.display()),
        }
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// The same, run by this.
    pub(crate) fn run_by(self, binary: PathBuf) -> Self {
        Self { binary, ..self }
    }

    fn name(&self) -> String {
        self.binary.display().to_string()
    }
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn item_116_discovery_and_lists_look_right_to_every_kubectl() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let pods = kubectl.run(&["get", "pods", "-A", "-o", "wide"]).await;
        assert_eq!(pods.code, Some(0), "{}: {}", kubectl.name(), pods.err);
        assert!(pods.out.lines().next().unwrap().starts_with("NAMESPACE"), "{}", pods.out);
        let web = pods.out.lines().find(|line| line.contains(" web ")).unwrap();
        let words: Vec<_> = web.split_whitespace().collect();
        assert_eq!(&words[..4], ["default", "web", "1/1", "Running"], "{}", kubectl.name());
        assert!(words.contains(&"node-a"), "{web}");
        let nodes = kubectl.run(&["get", "nodes"]).await;
        assert!(nodes.out.contains("node-down") && nodes.out.contains("NotReady"), "{}", nodes.out);
        assert!(kubectl.run(&["get", "ns"]).await.out.contains("shop"));
        let version = kubectl.run(&["version"]).await;
        assert!(version.out.contains("Server Version"), "{}{}", version.out, version.err);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_can_i_tells_what_rbac_says() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let ask = async |context: &str, namespace: &str| {
            // To kubectl `pods/exec` would be a pod named exec; the subresource has a flag of its own.
            let args = [
                "--context",
                context,
                "auth",
                "can-i",
                "create",
                "pods",
                "--subresource=exec",
                "-n",
                namespace,
            ];
            kubectl.run(&args).await.out.trim().to_owned()
        };
        assert_eq!(ask("alice", "default").await, "yes", "{}", kubectl.name());
        assert_eq!(ask("alice", "shop").await, "no", "{}", kubectl.name());
        assert_eq!(ask("mallory", "default").await, "no", "{}", kubectl.name());
        assert_eq!(ask("admin", "shop").await, "yes", "{}", kubectl.name());
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_streams_and_the_exit_code_come_back() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let said = kubectl.run(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).await;
        assert_eq!(said.code, Some(7), "{}: {}", kubectl.name(), said.err);
        assert_eq!(said.out, "out\n");
        assert_eq!(said.err, "err\ncommand terminated with exit code 7\n");
        let said = kubectl.run(&["exec", "web", "--", "true"]).await;
        assert_eq!(
            (said.code, said.out.as_str(), said.err.as_str()),
            (Some(0), "", ""),
            "{}",
            kubectl.name()
        );
        let said = kubectl.run(&["exec", "web", "--", "sh", "-c", "kill -9 $$"]).await;
        assert_eq!(said.code, Some(137), "{}", said.err);
        let said = kubectl.run(&["exec", "web", "--", "no-such-command"]).await;
        assert_ne!(said.code, Some(0));
        assert!(said.err.contains("executable file not found in $PATH"), "{}", said.err);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_every_age_are_reached() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        for pod in ["web", "web-spdy", "web-v5"] {
            let args = ["exec", "-i", pod, "--", "sh", "-c", "cat; echo err >&2; exit 7"];
            let output = kubectl.feed(&args, b"data\n").await;
            let said = said(output);
            assert_eq!(said.code, Some(7), "{} {pod}: {}", kubectl.name(), said.err);
            assert_eq!(said.out, "data\n", "{} {pod}", kubectl.name());
            assert_eq!(said.err, "err\ncommand terminated with exit code 7\n", "{} {pod}", kubectl.name());
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_103_stdin_reaches_the_command_and_its_end_too() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let output = kubectl.feed(&["exec", "-i", "web", "--", "cat"], b"data\n").await;
        assert!(output.status.success(), "{}: {:?}", kubectl.name(), output);
        assert_eq!(output.stdout, b"data\n");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_of_random_bytes_come_back_with_the_same_hash() {
    let running = Running::start().await;
    let mut bytes = vec![0; 16 * 1024 * 1024];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    for kubectl in all(&running.kubeconfig()) {
        let output = kubectl.feed(&["exec", "-i", "web", "--", "cat"], &bytes).await;
        assert!(output.status.success(), "{}", kubectl.name());
        assert_eq!(output.stdout.len(), bytes.len(), "{}", kubectl.name());
        assert!(sha256(&output.stdout) == sha256(&bytes), "{}: other bytes came back", kubectl.name());
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_chosen_as_kubectl_and_the_api_server_do() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let named = kubectl.run(&["exec", "multi", "-c", "sidecar", "--", "pwd"]).await;
        assert_eq!(named.code, Some(0), "{}: {}", kubectl.name(), named.err);
        assert!(named.out.trim_end().ends_with("sidecar"), "{}", named.out);
        let wrong = kubectl.run(&["exec", "multi", "-c", "nope", "--", "true"]).await;
        assert_eq!(wrong.code, Some(1));
        assert!(wrong.err.contains("container nope is not valid for pod multi"), "{}", wrong.err);
        let ephemeral = kubectl.run(&["exec", "multi", "-c", "debugger", "--", "true"]).await;
        assert_eq!(ephemeral.code, Some(0), "{}", ephemeral.err);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_104_refusals_reach_the_user_as_the_api_servers_words() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let exec = async |context: &str, pod: &str| {
            kubectl.run(&["--context", context, "exec", pod, "--", "true"]).await
        };
        assert_eq!(exec("alice", "web").await.code, Some(0), "{}", kubectl.name());
        let mallory = exec("mallory", "web").await;
        assert_eq!(mallory.code, Some(1));
        let text = "Error from server (Forbidden): pods \"web\" is forbidden: User \"mallory\" cannot";
        assert!(mallory.err.contains(text), "{}: {}", kubectl.name(), mallory.err);
        let shop = kubectl.run(&["--context", "alice", "-n", "shop", "exec", "cart", "--", "true"]).await;
        assert!(shop.err.contains("is forbidden: User \"alice\" cannot"), "{}", shop.err);
        let missing = exec("admin", "nope").await;
        assert!(
            missing.err.contains("Error from server (NotFound): pods \"nope\" not found"),
            "{}",
            missing.err
        );
        let waiting = exec("admin", "unscheduled").await;
        assert!(waiting.err.contains("pod unscheduled does not have a host assigned"), "{}", waiting.err);
        let down = exec("admin", "on-down-node").await;
        assert_eq!(down.code, Some(1));
        assert!(down.err.contains("error dialing backend: dial tcp 127.0.0.1:"), "{}", down.err);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_what_is_there_and_ends_with_podgate() {
    let running = Running::start().await;
    let mut watches = Vec::new();
    for kubectl in all(&running.kubeconfig()) {
        let mut child = kubectl.spawn(&mut kubectl.command(&["get", "pods", "-w", "-v=6"]));
        let mut out = child.stdout.take().unwrap();
        let mut seen = Vec::new();
        soon("the pods in a watch", async {
            while !String::from_utf8_lossy(&seen).contains("unscheduled") {
                assert_ne!(out.read_buf(&mut seen).await.unwrap(), 0, "the watch ended");
            }
        })
        .await;
        // The pods are those of a list, which kubectl asks for first.
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        soon("the watch", async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains("watch=true") && line.contains("200 OK") {
                    return;
                }
            }
            panic!("{} has not begun to watch", kubectl.name());
        })
        .await;
        watches.push((kubectl, child, out, log));
    }
    // Clean: the watches end by the drain's first step, not by its deadline.
    running.stop().await;
    for (kubectl, mut child, mut out, mut log) in watches {
        let mut rest = Vec::new();
        soon("the end of what kubectl prints", out.read_to_end(&mut rest)).await.unwrap();
        while let Some(line) = log.next_line().await.unwrap() {
            assert!(line.starts_with('I'), "{}: {line}", kubectl.name());
        }
        let status = soon("kubectl ends", child.wait()).await.unwrap();
        assert!(status.success(), "{}: {status}", kubectl.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_show_what_the_main_process_said() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        // The process starts with podgate, and may be a moment behind it.
        let said = soon("the first line", async {
            loop {
                let said = kubectl.run(&["logs", "web"]).await;
                if said.code != Some(0) || !said.out.is_empty() {
                    return said;
                }
            }
        })
        .await;
        assert_eq!((said.code, said.out.as_str()), (Some(0), "web: started\n"), "{}", said.err);
        let stamped = kubectl.run(&["logs", "web", "--timestamps", "--tail=1"]).await.out;
        assert!(stamped.ends_with("Z web: started\n") && stamped.len() == 44, "{stamped}");
        assert_eq!(kubectl.run(&["logs", "web", "--limit-bytes=3"]).await.out, "web");
        assert_eq!(kubectl.run(&["logs", "multi", "-c", "app"]).await.out, "");
        let previous = kubectl.run(&["logs", "-p", "web"]).await;
        let text = "previous terminated container \"web\" in pod \"web\" not found";
        assert!(previous.err.contains(text), "{}: {}", kubectl.name(), previous.err);
        let mallory = kubectl.run(&["--context", "mallory", "logs", "web"]).await;
        assert!(mallory.err.contains("is forbidden"), "{}", mallory.err);
        let pods = kubectl.run(&["get", "pod", "web"]).await.out;
        let words: Vec<_> = pods.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(&words[..4], ["web", "1/1", "Running", "0"]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_logs_come_at_once_and_end_with_podgate() {
    let running = Running::start().await;
    let mut followers = Vec::new();
    for kubectl in all(&running.kubeconfig()) {
        let mut child = kubectl.spawn(&mut kubectl.command(&["logs", "-f", "web"]));
        let mut out = child.stdout.take().unwrap();
        let mut seen = Vec::new();
        soon("the first line", async {
            while !seen.ends_with(b"web: started\n") {
                assert_ne!(out.read_buf(&mut seen).await.unwrap(), 0, "the log ended");
            }
        })
        .await;
        followers.push((kubectl, child));
    }
    // Clean: they end by the drain's first step, not by its deadline.
    running.stop().await;
    for (_kubectl, mut child) in followers {
        soon("kubectl ends", child.wait()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_kubectl_leaves_no_process_behind() {
    let running = Running::start().await;
    for (number, kubectl) in all(&running.kubeconfig()).into_iter().enumerate() {
        // A duration nobody else sleeps for marks the processes of this test.
        let mark = format!("{}.{number}", 86_400 + std::process::id());
        let script = format!("sleep {mark} & exec sleep {mark}");
        let mut child = kubectl
            .spawn(kubectl.command(&["exec", "-i", "web", "--", "sh", "-c", &script]).stdin(Stdio::piped()));
        until("both sleeps run", || sleeping(&mark) == 2).await;
        child.start_kill().unwrap();
        until("no sleep runs", || sleeping(&mark) == 0).await;
        until("the session is over", || running.dev.metrics().sessions.get() == 0).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_follows_the_users_window_and_ends_with_its_shell() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let (mut screen, mut command) = kubectl.on_screen(&["exec", "-it", "web", "--", "sh"]);
        // Sizes come on a stream of their own, while the shell runs: ask until they are there.
        let until = |size, word| {
            format!("while [ \"$(stty size)\" != '{size}' ]; do sleep 0.05; done; echo {word}-$((40+2))\r")
        };
        screen.types(&until("30 100", "ready")).await;
        screen.shows("ready-42").await;
        screen.terminal.resize(pty_process::Size::new(44, 121)).unwrap();
        screen.types(&until("44 121", "resized")).await;
        screen.shows("resized-42").await;
        screen.types("exit 5\r").await;
        let status = soon("kubectl ends", command.wait()).await.unwrap();
        assert_eq!(status.code(), Some(5), "{}: {}", kubectl.name(), screen.seen);
    }
    running.stop().await;
}

/// A terminal with kubectl on it, as its user sees it.
pub(crate) struct Screen {
    pub(crate) terminal: pty_process::Pty,
    pub(crate) seen: String,
}

impl Screen {
    pub(crate) async fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).await.unwrap();
    }

    pub(crate) async fn shows(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.seen.contains(text) {
            let read = self.terminal.read(&mut bytes);
            match tokio::time::timeout(PATIENCE, read).await {
                Ok(Ok(count @ 1..)) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
                other => panic!("{text:?} was not shown ({other:?}): {:?}", self.seen),
            }
        }
    }
}
