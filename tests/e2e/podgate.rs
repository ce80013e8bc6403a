//! The binary under test, with the nodes and pods of the matrix.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::clients::Client;

/// How long podgate may take to start, and to stop when every client has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kind of node, by what its kubelet speaks.
pub(crate) struct Node {
    /// Also the value of the annotation that makes a dev node speak so.
    pub(crate) name: &'static str,
    pub(crate) speaks: Speaks,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// As the oldest ones: no WebSocket.
    SpdyOnly,
    /// SPDY, and WebSocket up to v4: every kubelet before 1.36.
    V4,
    /// WebSocket v5 and the tunnel too, and says so.
    V5,
}

pub(crate) const NODES: [Node; 3] = [
    Node { name: "spdy", speaks: Speaks::SpdyOnly },
    Node { name: "v4", speaks: Speaks::V4 },
    Node { name: "v5", speaks: Speaks::V5 },
];

/// Podgate's setting `upstream.translate`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Translate {
    Always,
    WhenNeeded,
}

/// A running podgate, with a state folder of its own.
pub(crate) struct Podgate {
    child: Child,
    folder: tempfile::TempDir,
}

// === impl Translate ===

impl Translate {
    /// Whether a client's sessions differ from those with the default.
    pub(crate) fn matters(self, client: &Client, node: &Node) -> bool {
        self == Self::Always || node.speaks == Speaks::V5 && client.offers_v5()
    }
}

// === impl Podgate ===

impl Podgate {
    pub(crate) async fn start(translate: Translate, clients: &[Client]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("manifests")).unwrap();
        std::fs::write(at("manifests/matrix.yaml"), manifests(clients)).unwrap();
        let setting = match translate {
            Translate::Always => "always",
            Translate::WhenNeeded => "whenNeeded",
        };
        std::fs::write(at("config.yaml"), format!("upstream:\n  translate: {setting}\n")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_podgate"))
            .args([
                "dev",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--log",
                "podgate=debug",
            ])
            .args([Path::new("--config"), &at("config.yaml"), Path::new("--dir"), &at("state")])
            .args([Path::new("--manifests"), &at("manifests")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(at("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut banner = BufReader::new(child.stdout.take().unwrap()).lines();
        let started = async {
            while let Some(line) = banner.next_line().await.unwrap() {
                if line.contains("Ctrl-C drains and ends") {
                    return true;
                }
            }
            false
        };
        let started = tokio::time::timeout(PATIENCE, started).await;
        assert_eq!(started, Ok(true), "{}", std::fs::read_to_string(at("log")).unwrap());
        Self { child, folder }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("state/kubeconfig")
    }

    /// A folder for what a client writes.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let scratch = self.folder.path().join("scratch").join(name);
        std::fs::create_dir_all(&scratch).unwrap();
        scratch
    }

    /// Stops it as a user does. The folder stays when somebody will want to read the log.
    pub(crate) async fn stop(mut self, keep: bool) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.expect("podgate stops when every client has gone").unwrap();
        assert_eq!(status.code(), Some(0), "podgate's exit code");
        if keep {
            println!("podgate's log: {}", self.folder.keep().join("log").display());
        }
    }
}

/// A node of each kind, and a pod on it for each client: what one leaves behind is not there for the next. The pod's own
/// process answers each line on both of its streams, and ends when told so.
fn manifests(clients: &[Client]) -> String {
    let mut text = String::new();
    for node in &NODES {
        text += &format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {0}\n  annotations: {{podgate.dev/streaming: {0}}}\n---\n",
            node.name
        );
        for client in clients {
            text += &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}}}\nspec:\n  nodeName: {}\n  restartPolicy: Never\n  \
                 containers:\n  - name: main\n    image: podgate.dev/main:1\n    stdin: true\n    command:\n    - sh\n    \
                 - -c\n    - 'while read -r line && [ \"$line\" != end ]; do echo \"out $line\"; echo \"err $line\" >&2; \
                 done'\n---\n",
                client.pod(node),
                node.name,
            );
        }
    }
    text
}
