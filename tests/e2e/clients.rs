//! The clients: which program each is, and what it cannot do.

use std::ffi::OsString;
use std::path::PathBuf;

use tokio::process::Command;

use crate::checks::Check;
use crate::place::{Api, Place, Speaks};

/// The first argument that makes this binary the kube-rs client; no word of a cell, which may be first too.
pub(crate) const KUBE_RS: &str = "--as-kube-rs";

const LEGACY_FORWARD: &str = "the library forwards ports over plain WebSocket, which is passed on as it is, and this node speaks SPDY only";
const NO_CLOSE: &str = "v4 cannot end the input without ending the session";
const READ_ONLY: &str = "the embedded cluster holds its manifests, and nobody can change them";
const NO_EPHEMERAL: &str = "ephemeral containers are off in API servers before 1.23";
const OLD_EPHEMERAL: &str = "API servers since 1.22 take ephemeral containers in another form";

/// A client, as a program with kubectl's command line.
pub(crate) struct Client {
    /// As in the table, with its version.
    pub(crate) name: String,
    kind: Kind,
    argv: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A kubectl, by its minor version.
    Kubectl(u32),
    /// A library that offers v5 and v4.
    Library,
    /// A library that knows v4 only.
    V4Library,
}

/// All of them, from what `tests/e2e/setup.sh` has installed.
pub(crate) async fn all() -> Vec<Client> {
    let from_setup = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set; `make e2e` does it (tests/e2e/setup.sh)"))
    };
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    let mut all = Vec::new();
    for binary in from_setup("PODGATE_KUBECTLS").split(':') {
        all.push(kubectl(binary).await);
    }
    let (python, script) = (from_setup("PODGATE_PYTHON"), here.join("client.py"));
    let version = said(&python, &["-c", "import kubernetes; print(kubernetes.__version__)"]).await;
    let argv = vec![python.into(), script.into()];
    let v4 = [argv.clone(), vec!["--v4".into()]].concat();
    all.push(Client { name: format!("Python {version}"), kind: Kind::Library, argv });
    all.push(Client { name: format!("Python {version}, v4 only"), kind: Kind::V4Library, argv: v4 });
    let package = from_setup("PODGATE_NODE_CLIENT") + "/node_modules/@kubernetes/client-node/package.json";
    let package = std::fs::read_to_string(package).unwrap();
    let package: serde_json::Value = serde_json::from_str(&package).unwrap();
    let name = format!("client-node {}", package["version"].as_str().unwrap());
    let argv = vec!["node".into(), here.join("client.mjs").into()];
    all.push(Client { name, kind: Kind::Library, argv });
    let argv = vec![std::env::current_exe().unwrap().into(), KUBE_RS.into()];
    all.push(Client { name: format!("kube-rs {}", locked("kube")), kind: Kind::Library, argv });
    all
}

async fn kubectl(binary: &str) -> Client {
    let version = said(binary, &["version", "--client", "-o", "json"]).await;
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let version = version["clientVersion"]["gitVersion"].as_str().unwrap().trim_start_matches('v');
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    Client { name: format!("kubectl {version}"), kind: Kind::Kubectl(minor), argv: vec![binary.into()] }
}

async fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().await;
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The version of a crate that this was built with.
fn locked(name: &str) -> &'static str {
    let lock = include_str!("../../Cargo.lock");
    let after = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).unwrap().1;
    after.split_once('"').unwrap().0
}

// === impl Client ===

impl Client {
    /// Whether a check is about a client of its kind.
    pub(crate) fn takes(&self, check: Check) -> bool {
        self.is_kubectl() || check.is_session()
    }

    /// Why a check cannot pass at a place, by design and not by podgate's fault.
    pub(crate) fn cannot(&self, place: &Place, check: Check) -> Option<&'static str> {
        let spdy_only = place.speaks == Speaks::SpdyOnly;
        match (self.kind, check, place.api) {
            (Kind::V4Library, Check::Stdin, _) => Some(NO_CLOSE),
            (Kind::Library | Kind::V4Library, Check::Forward | Check::RefusedPort, _) if spdy_only => {
                Some(LEGACY_FORWARD)
            }
            (_, Check::Apply | Check::Delete | Check::Debug | Check::DebugCopy, Api::Embedded) => {
                Some(READ_ONLY)
            }
            (_, Check::Debug, Api::Real(..23)) => Some(NO_EPHEMERAL),
            (Kind::Kubectl(..22), Check::Debug, _) => Some(OLD_EPHEMERAL),
            _ => None,
        }
    }

    /// The program and its first arguments.
    pub(crate) fn argv(&self) -> &[OsString] {
        &self.argv
    }

    /// Its pod at a place.
    pub(crate) fn pod(&self, place: &str) -> String {
        let name = self.name.to_lowercase().replace(|other: char| !other.is_ascii_alphanumeric(), "-");
        format!("{}-at-{place}", name.replace("--", "-"))
    }

    pub(crate) fn is_kubectl(&self) -> bool {
        matches!(self.kind, Kind::Kubectl(_))
    }

    /// Whether the end of its input can be told to the other side.
    pub(crate) fn ends_input(&self) -> bool {
        self.kind != Kind::V4Library
    }

    /// Whether it offers v5 for exec and attach; kubectl does since 1.30, SPDY being its way out.
    pub(crate) fn offers_v5(&self) -> bool {
        matches!(self.kind, Kind::Kubectl(30..) | Kind::Library)
    }

    /// What it writes itself, after the command's own error output, when a command ends with this code.
    pub(crate) fn epilogue(&self, code: i32) -> String {
        match self.is_kubectl() && code != 0 {
            true => format!("command terminated with exit code {code}\n"),
            false => String::new(),
        }
    }
}
