//! The binary itself: what it prints, what it exits with, what signals do.

use std::path::Path;
use std::process::{Output, Stdio};

use podgate::testing::{soon, until};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::kubectl;
use crate::sessions::sleeping;

pub(crate) fn podgate(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
    command
        .args(["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--dir"])
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs one that cannot start, to its end.
async fn fails(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = soon("the end", podgate(dir, args).output()).await.unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// Waits for the last line of the banner, and returns all of it.
pub(crate) async fn banner(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut all = String::new();
    while !all.contains("Ctrl-C drains and ends") {
        let line = soon("a line of the banner", lines.next_line()).await.unwrap();
        all.push_str(&line.expect("the banner is not over"));
        all.push('\n');
    }
    all
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn the_banner_says_where_and_how_and_warns() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = podgate(&folder.path().join("state"), &[]).spawn().unwrap();
    let banner = banner(&mut child).await;
    for part in
        ["https://127.0.0.1:", "node-a https://", "KUBECONFIG=/", "kubectl exec -it web", "without isolation"]
    {
        assert!(banner.contains(part), "{part} is not in {banner}");
    }
    signal(&child, Signal::TERM);
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signal_drains_and_a_second_ends_at_once_with_nothing_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "drain:\n  deadline: 1h\n").unwrap();
    let mut child = podgate(&dir, &["--config", config.to_str().unwrap()]).spawn().unwrap();
    banner(&mut child).await;
    let kubectl = &kubectl::all(&dir.join("kubeconfig"))[0];
    let mark = format!("{}.75", 300_000 + std::process::id());
    let mut session = kubectl.spawn(&mut kubectl.command(&["exec", "web", "--", "sleep", &mark]));
    until("the command runs", || sleeping(&mark) == 1).await;
    signal(&child, Signal::INT);
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut stopping = async || {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("stopping; once more") {
                return;
            }
        }
        panic!("the log ended");
    };
    soon("the first step", stopping()).await;
    assert_eq!(sleeping(&mark), 1, "a live session goes on");
    signal(&child, Signal::INT);
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(130));
    until("the command is gone", || sleeping(&mark) == 0).await;
    soon("kubectl ends", session.wait()).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let (code, said) = fails(&file.join("state"), &[]).await;
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("podgate: ") && said.contains(&file.join("state").display().to_string()),
        "{said}"
    );
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
    command.args(["dev", "--listen", &addr, "--dir"]).arg(folder.path().join("state")).stdin(Stdio::null());
    let output = soon("the end", command.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("podgate: listen on {addr}: Address already in use")), "{said}");
}

#[tokio::test]
async fn a_manifest_with_an_error_is_told_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - nam: b\n";
    std::fs::write(manifests.join("pods.yaml"), text).unwrap();
    let (code, said) =
        fails(&folder.path().join("state"), &["--manifests", manifests.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("pods.yaml:7") && said.contains("nam"), "{said}");
}

#[tokio::test]
async fn settings_that_cannot_be_used_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "api:\n  maxConections: 1\n").unwrap();
    let (code, said) = fails(&folder.path().join("state"), &["--config", config.to_str().unwrap()]).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("api.maxConections") && said.contains("config.yaml"), "{said}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
    let output = soon("the end", command.args(["dev", "--listen", "0.0.0.0:0"]).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--danger-listen-beyond-loopback"));
}

#[tokio::test]
async fn every_setting_is_printed_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = podgate(folder.path(), &["--print-config"]).spawn().unwrap();
    let mut text = String::new();
    soon("the settings", child.stdout.as_mut().unwrap().read_to_string(&mut text)).await.unwrap();
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(0));
    assert!(text.contains("maxConnections:") && text.contains("upgradeTimeout: 30s"), "{text}");
}
