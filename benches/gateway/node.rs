//! The far side of every session: a kubelet whose commands are no processes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use podgate::dev::cluster::DevCluster;
use podgate::dev::manifests::{self, Loaded};
use podgate::dev::node::{Endpoint, Settings};
use podgate::drain::Drain;
use podgate::tls::{self, Clients, Identity};

use crate::authority::{Authority, Pair};
use crate::cluster::NODE;
use crate::peers::Process;

/// Set in the process that is the node: its folder, and where its keys are.
const ROLE: &str = "PODGATE_BENCH_NODE";
const CERT: &str = "PODGATE_BENCH_NODE_CERT";
const KEY: &str = "PODGATE_BENCH_NODE_KEY";
const CA: &str = "PODGATE_BENCH_CA";

/// What it says in front of its address.
const SAYS: &str = "node at ";

/// Runs it, if this process is meant to; whether it was.
pub(crate) async fn run() -> bool {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let Some((folder, ((cert, key), ca))) = path(ROLE).zip(path(CERT).zip(path(KEY)).zip(path(CA))) else {
        return false;
    };
    let mut loaded = manifests::builtin().expect("the built-in manifests");
    loaded.objects.extend(manifests::simulated(1));
    let cluster = DevCluster::new(Loaded { objects: loaded.objects, ..loaded });
    let identity = Identity::from_files(&cert, &key).expect("a certificate");
    let clients = Clients::Require(tls::roots(&ca).expect("an authority"));
    let tls = tls::server(&identity, &[tls::HTTP1], clients).expect("TLS");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let settings =
        Settings { max_connections: 20_000, idle: Duration::from_secs(3600), ..Settings::default() };
    let endpoint = Endpoint::bind(any, tls, NODE, cluster.store().clone(), folder, settings);
    let endpoint = endpoint.await.expect("bind the node endpoint");
    println!("{SAYS}{}", endpoint.local_addr());
    let drain = Drain::new();
    endpoint.run(drain).await;
    true
}

/// Starts it as a process of its own.
pub(crate) async fn start(authority: &Authority, server: &Pair, folder: &Path) -> (Process, SocketAddr) {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.env(ROLE, folder).env(CERT, &server.cert).env(KEY, &server.key).env(CA, authority.certificate());
    let mut node = Process::start("node", folder, &mut command);
    let said = node.says(SAYS).await;
    let addr = said.trim().strip_prefix(SAYS).and_then(|addr| addr.parse().ok());
    (node, addr.expect("an address"))
}
