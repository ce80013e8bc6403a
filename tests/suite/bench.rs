//! `podgate bench` against `podgate dev --simulate`, and against its node, as their user runs them.

use std::path::{Path, PathBuf};
use std::process::Output;

use podgate::app::dev::Dev;
use serde_json::Value;

use crate::dev::{Running, config};

/// A gateway with simulated pods, in this process.
async fn simulated() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    config.dev.simulate = 111;
    Running { dev: Dev::start(&config).await.unwrap(), folder }
}

async fn bench(flags: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_podgate"));
    command.arg("bench").args(flags).kill_on_drop(true).output().await.unwrap()
}

fn report(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The medians of a figure, one for each target.
fn medians(report: &Value, figure: &str) -> Vec<f64> {
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["figure"] == figure).unwrap_or_else(|| panic!("{figure}: {report}"));
    row["values"].as_array().unwrap().iter().map(|value| value["median"].as_f64().unwrap()).collect()
}

/// A kubeconfig for the node that has the first simulated pods, with podgate's own certificate.
fn kubelet(running: &Running) -> PathBuf {
    let (state, node) = (running.folder.path().join("state"), "sim-node-0");
    let addr = running.dev.nodes().iter().find(|(name, _)| name == node).unwrap().1;
    let file = |name: &str| Path::new(&state).join(name).display().to_string();
    let (ca, certificate, key) =
        (file("node-ca.crt"), file("kubelet-client.crt"), file("kubelet-client.key"));
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, \
         clusters: [{{name: c, cluster: {{server: 'https://{addr}', certificate-authority: {ca}}}}}], \
         users: [{{name: u, user: {{client-certificate: {certificate}, client-key: {key}}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: u, namespace: default}}}}]}}"
    );
    let path = state.join("kubelet.kubeconfig");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn every_work_is_done_in_both_protocols_at_podgate_and_at_its_node() {
    let running = simulated().await;
    let (at_podgate, at_node) = (running.kubeconfig(), kubelet(&running));
    let pid = std::process::id();
    for protocol in ["spdy", "websocket"] {
        let podgate = format!("name=podgate,kubeconfig={},pid={pid}", at_podgate.display());
        let node = format!("name=node,kubeconfig={},kubelet=true", at_node.display());
        let mut flags = vec!["--target", &podgate, "--commands", "simulated", "--pod", "sim-0", "--json"];
        flags.extend(["--container", "sim", "--protocol", protocol, "--rounds", "3", "--setups", "20"]);
        flags.extend(["--mib", "4", "--strokes", "50", "--beside", "2", "--idle", "40", "--hold", "1s"]);
        // Nodes of the embedded cluster speak no v5.
        if protocol == "spdy" {
            flags.extend(["--target", &node]);
        }
        let report = report(&bench(&flags).await);
        let targets = report["targets"].as_array().unwrap().len();
        assert_eq!(targets, if protocol == "spdy" { 2 } else { 1 });
        for figure in ["set-ups per second", "MiB per second down", "MiB per second up"] {
            let medians = medians(&report, figure);
            assert!(
                medians.len() == targets && medians.iter().all(|median| *median > 0.0),
                "{figure}: {report}"
            );
        }
        for alone in ["keystroke, p50", "keystroke beside bulk, p99"] {
            assert_eq!(medians(&report, alone).len(), targets);
        }
        let cpu = &report["rows"].as_array().unwrap().iter().find(|row| row["figure"] == "CPU per GiB down");
        assert!(cpu.unwrap()["values"][0]["median"].as_f64().unwrap() > 0.0, "{report}");
    }
    assert_eq!(running.dev.metrics().sessions.get(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_with_what_the_server_said() {
    let running = simulated().await;
    let kubeconfig = running.kubeconfig();
    let target = format!("name=podgate,kubeconfig={}", kubeconfig.display());
    let mallory = format!("name=podgate,kubeconfig={},context=mallory", kubeconfig.display());
    for (target, pod, commands, told) in [
        (&target, "sim-111", "simulated", "pods \"sim-111\" not found"),
        (&target, "sim-110", "real", "no such simulated command"),
        (&mallory, "sim-0", "simulated", "is forbidden"),
    ] {
        let flags =
            ["--target", target, "--pod", pod, "--commands", commands, "--work", "setups", "--setups", "1"];
        let output = bench(&flags).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(told), "{said}");
        assert!(output.stdout.is_empty());
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_kubeconfig_variable_is_none_as_for_kubectl() {
    let home = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_podgate"));
    command.args(["bench", "--pod", "p"]).env("KUBECONFIG", "").env("HOME", home.path());
    let output = command.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("~/.kube/config"), "{said}");
}
