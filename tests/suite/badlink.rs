//! Sessions over links that delay, split, join and break: always the whole output, or an end that says otherwise.

use std::net::SocketAddr;
use std::time::Duration;

use podgate::testing::relay::{Relay, Weather};

use crate::dev::Running;
use crate::kubectl::{self, Kubectl, Said};

/// What `seq 1 N` prints.
fn lines(last: u32) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

/// Rough, but whole.
fn rough(seed: u64) -> Weather {
    Weather { seed, delay: Duration::from_millis(3), bytes_per_second: 30_000_000, breaks_after: 0 }
}

/// A running cluster whose kubectls and whose node `node-a` are reached over relays.
struct Rig {
    running: Running,
    to_podgate: Relay,
    to_node: Relay,
    kubeconfig: tempfile::TempDir,
}

impl Rig {
    async fn start(seed: u64) -> Self {
        let running = Running::start().await;
        let to_podgate = Relay::start(running.dev.api(), rough(seed)).await;
        let node = node_addr(&running, "node-a");
        let to_node = Relay::start(node, rough(!seed)).await;
        running.dev.cluster().store().set_node_endpoint("node-a", to_node.addr).unwrap();
        let kubeconfig = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(running.kubeconfig()).unwrap();
        let text = text.replace(&running.dev.api().to_string(), &to_podgate.addr.to_string());
        std::fs::write(kubeconfig.path().join("config"), text).unwrap();
        Self { running, to_podgate, to_node, kubeconfig }
    }

    fn kubectls(&self) -> Vec<Kubectl> {
        kubectl::all(&self.kubeconfig.path().join("config"))
    }
}

fn node_addr(running: &Running, name: &str) -> SocketAddr {
    running.dev.nodes().iter().find(|(have, _)| have == name).expect("the node is up").1
}

fn judge(said: &Said, wanted: &str, what: &str) -> bool {
    let whole = said.out == wanted;
    assert!(
        whole || said.code != Some(0),
        "{what}: {} of {} bytes, and exit 0",
        said.out.len(),
        wanted.len()
    );
    assert!(wanted.starts_with(&said.out), "{what}: what came is a part of the output");
    whole
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_rough_link_every_output_is_whole() {
    let rig = Rig::start(1).await;
    let wanted = lines(300_000);
    for kubectl in rig.kubectls() {
        let said = kubectl.run(&["exec", "web", "--", "seq", "1", "300000"]).await;
        assert!(
            said.code == Some(0) && said.out == wanted,
            "{:?}: {} bytes, {}",
            said.code,
            said.out.len(),
            said.err
        );
        let output = kubectl.feed(&["exec", "-i", "web", "--", "cat"], wanted.as_bytes()).await;
        // Before v5 nothing ends stdin over WebSocket, and all three kubectls have SPDY or v5.
        assert!(output.status.success() && output.stdout == wanted.as_bytes(), "{}", output.stdout.len());
    }
    assert!(rig.to_node.passed() > 0 && rig.to_podgate.passed() > 0);
    rig.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_kubelet_is_lost_never_looks_whole() {
    let rig = Rig::start(2).await;
    let wanted = lines(300_000);
    for kubectl in rig.kubectls() {
        for breaks_after in [3_000, 100_000, 1_000_003, 1_900_000] {
            rig.to_node.break_after(breaks_after);
            let said = kubectl.run(&["exec", "web", "--", "seq", "1", "300000"]).await;
            assert!(!judge(&said, &wanted, "kubelet lost"), "it broke before the end");
            let told = "the connection to the pod ended before the session did";
            assert!(said.err.contains(told), "the user is told why: {}", said.err);
        }
    }
    rig.to_node.break_after(0);
    rig.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; `make soak`"]
async fn three_hundred_outputs_over_a_rough_link_are_whole_or_end_with_an_error() {
    let wanted = lines(2_000_000);
    let (mut whole, mut cut) = (0, 0);
    let rig = Rig::start(3).await;
    let kubectls = rig.kubectls();
    for round in 0..300u64 {
        // Every third link to the kubelet breaks somewhere in the output.
        let breaks_after = if round % 3 == 2 { 1 + (round * 7_919_993) % (wanted.len() as u64) } else { 0 };
        rig.to_node.break_after(breaks_after);
        let kubectl = &kubectls[usize::try_from(round).unwrap() % kubectls.len()];
        let said = kubectl.run(&["exec", "web", "--", "seq", "1", "2000000"]).await;
        match judge(&said, &wanted, &format!("round {round}")) {
            true => whole += 1,
            false => cut += 1,
        }
        assert!(
            breaks_after > 0 || said.out == wanted && said.code == Some(0),
            "round {round}: {}",
            said.err
        );
    }
    println!("{whole} whole, {cut} with an error and a part of the output, none short with exit 0");
    rig.to_node.break_after(0);
    rig.running.stop().await;
}
