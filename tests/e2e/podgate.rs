//! The binary under test, with the nodes and pods of the matrix.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::clients::Client;
use crate::place::{self, Api, Place, Speaks};

/// How long podgate may take to start, and to stop when every client has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at what podgate has written.
const PAUSE: Duration = Duration::from_millis(20);

/// A kind of node, by what its kubelet speaks.
pub(crate) struct Node {
    /// Also the value of the annotation that makes a dev node speak so.
    pub(crate) name: &'static str,
    pub(crate) speaks: Speaks,
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

/// A running podgate, with a folder of its own.
pub(crate) struct Podgate {
    child: Child,
    folder: tempfile::TempDir,
}

// === impl Node ===

impl Node {
    /// Where clients go that are checked at this node.
    pub(crate) fn place(&self, translate: Translate) -> Place {
        let name = match translate {
            Translate::Always => self.name.to_owned(),
            Translate::WhenNeeded => format!("{}, whenNeeded", self.name),
        };
        Place { name, speaks: self.speaks, api: Api::Embedded }
    }
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
    /// The embedded cluster.
    pub(crate) async fn dev(translate: Translate, clients: &[Client]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("manifests")).unwrap();
        std::fs::write(at("manifests/matrix.yaml"), manifests(clients)).unwrap();
        let setting = match translate {
            Translate::Always => "always",
            Translate::WhenNeeded => "whenNeeded",
        };
        std::fs::write(at("config.yaml"), format!("upstream:\n  translate: {setting}\n")).unwrap();
        let (state, manifests) = (at("state"), at("manifests"));
        let own = [Path::new("--dir"), &state, Path::new("--manifests"), &manifests];
        let mut podgate = Self::spawn("dev", folder, &own);
        podgate.line("out", "Ctrl-C drains and ends").await;
        podgate
    }

    /// A gateway with these settings; its API door and its admin address.
    pub(crate) async fn serve(config: &str) -> (Self, [SocketAddr; 2]) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        let mut podgate = Self::spawn("serve", folder, &["--log-format".as_ref(), "json".as_ref()]);
        let line = podgate.line("log", "podgate serves").await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let bound = ["api.addr", "admin.addr"].map(|key| {
            let field = line["fields"][key].as_str().or(line[key].as_str());
            field.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line}"))
        });
        (podgate, bound)
    }

    fn spawn(face: &str, folder: tempfile::TempDir, own: &[&Path]) -> Self {
        let at = |name: &str| folder.path().join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_podgate"))
            .args([
                face,
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--log",
                "podgate=debug",
            ])
            .args([Path::new("--config"), &at("config.yaml")])
            .args(own)
            .stdin(Stdio::null())
            .stdout(File::create(at("out")).unwrap())
            .stderr(File::create(at("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// The first line with a text that it writes into one of its files.
    async fn line(&mut self, file: &str, text: &str) -> String {
        let read = |file: &str| std::fs::read_to_string(self.folder.path().join(file)).unwrap();
        let written = async {
            loop {
                let over = self.child.try_wait().unwrap();
                let written = read(file);
                // A line is whole once it has its end.
                let whole = |line: &&str| line.contains(text) && line.ends_with('\n');
                match (written.split_inclusive('\n').find(whole), over) {
                    (Some(line), _) => return Some(line.to_owned()),
                    (None, Some(_)) => return None,
                    (None, None) => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        let written = tokio::time::timeout(PATIENCE, written).await;
        written.ok().flatten().unwrap_or_else(|| panic!("podgate does not say {text:?}: {}", read("log")))
    }

    /// That of the embedded cluster.
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

/// Whether a podgate with this admin address would have people sent to it.
pub(crate) async fn is_ready(admin: SocketAddr) -> bool {
    let mut connection = TcpStream::connect(admin).await.unwrap();
    let ask = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    connection.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.starts_with("HTTP/1.1 200 ")
}

/// Waits until it is.
pub(crate) async fn ready(admin: SocketAddr) {
    let ready = async {
        while !is_ready(admin).await {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("podgate is ready");
}

/// A node of each kind, and pods on it for each client: what one leaves behind is not there for the next. Alice may do
/// with pods what the checks do, mallory may nothing.
fn manifests(clients: &[Client]) -> String {
    let mut text = String::from(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: alice}\nsubjects:\n\
         - {kind: User, name: alice, apiGroup: rbac.authorization.k8s.io}\n\
         roleRef: {kind: ClusterRole, name: edit, apiGroup: rbac.authorization.k8s.io}\n---\n",
    );
    for node in &NODES {
        text += &format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {0}\n  annotations: {{podgate.dev/streaming: {0}}}\n---\n",
            node.name
        );
        for client in clients {
            for (pod, script) in place::pods(client, node.name) {
                text += &format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}}}\nspec:\n  nodeName: {}\n  \
                     restartPolicy: Never\n  containers:\n  - name: main\n    image: podgate.dev/main:1\n    \
                     stdin: true\n    command: [sh, -c, {}]\n---\n",
                    node.name,
                    serde_json::Value::from(script),
                );
            }
        }
    }
    text
}
