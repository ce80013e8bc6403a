//! What podgate costs, beside kube-apiserver, a TLS tunnel, and nothing in between.
//!
//! Each is a process of its own in front of the same simulated kubelet, and does its full work: podgate authenticates,
//! authorizes, finds the pod and writes an end record, against the API server that it is measured beside. CPU and memory
//! are from the operating system's accounts of each process. Machines differ and are shared: what is compared are
//! columns of one run, taken in turn. `benches/README.md` says how each figure is taken. Words in the arguments choose rows.

#![allow(missing_docs, reason = "nobody reads documentation of a bench")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench fails by panicking")]

mod authority;
mod cluster;
mod node;
mod peers;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podgate::bench::client::{Kind, Pod, Target};
use podgate::bench::report::Report;
use podgate::bench::{self, Commands, Content, Plan, Watch, Work, process};
use podgate::cluster::kube::connect::kubeconfig;
use podgate::drain::Drain;
use podgate::recording::keys::SigningKey;
use podgate::tls;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use authority::{Authority, Key, Pair};
use peers::{ApiServerKeys, Installed, Process};
use table::{Reach, find};

/// How often each work is done for each, in turn; `PODGATE_BENCH_ROUNDS` is another number.
const ROUNDS: usize = 5;

/// Idle sessions of the table, and of the long rest.
const IDLE: usize = 2000;
const MANY: usize = 8000;
/// Seconds; `PODGATE_BENCH_REST` is another number.
const LONG_REST: usize = 600;

/// How long an allocator may keep what was used, in case it is wanted again.
const GIVING_BACK: Duration = Duration::from_secs(60);

/// Set-ups in a row that are to leave nothing behind.
const IN_A_ROW: usize = 100_000;

/// Bytes per second of a session that is limited, and what is moved with that.
const LIMIT: u64 = 10 << 20;

const GIB: u64 = 1 << 30;

/// All rows, as words in the arguments choose them.
const ROWS: [&str; 8] = ["set-ups", "bulk", "websocket", "keystroke", "limit", "idle", "row", "long"];

fn main() {
    // The load's TLS is to be kubectl's, which asks for AES-128 first.
    tls::provider().as_ref().clone().install_default().expect("nobody has chosen before");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    raise_descriptors();
    runtime.block_on(async {
        if !node::run().await {
            run().await;
        }
    });
}

/// As many descriptors as there may be: children inherit that.
fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // With fewer, opening sessions says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// What a variable says, where it is set.
fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|number| number.parse().expect("a number"))
}

/// The words in the arguments.
fn words() -> impl Iterator<Item = String> {
    std::env::args().skip(1).filter(|word| !word.starts_with('-'))
}

/// Panics when a word chooses nothing: half an hour later an empty table would say so.
fn check_words() {
    let chooses = |word: &String| ROWS.iter().any(|row| row.contains(word.as_str()));
    if let Some(word) = words().find(|word| !chooses(word)) {
        panic!("{word:?} is no row; there are {}", ROWS.join(", "));
    }
}

/// Whether a row is asked for: without words in the arguments all are.
fn wanted(row: &str) -> bool {
    assert!(ROWS.contains(&row), "{row} is none of the rows that there are");
    let mut words = words().peekable();
    words.peek().is_none() || words.any(|word| row.contains(&word))
}

/// The folder of a run, and what stays while it lasts.
struct Run {
    folder: PathBuf,
    authority: Authority,
    api_keys: ApiServerKeys,
    /// Podgate's door.
    door: Pair,
    /// Who opens sessions.
    user: Pair,
    admin: Pair,
    gateway: Pair,
    node: Process,
    node_addr: SocketAddr,
    background: Drain,
    rounds: usize,
    reached: Vec<Reach>,
}

/// An API server with what it needs.
struct ApiServer {
    process: Process,
    addr: SocketAddr,
    /// Podgate's own.
    kubeconfig: PathBuf,
    _etcd: Process,
}

/// Podgate in front of it.
struct Podgate {
    process: Process,
    addr: SocketAddr,
    target: Target,
}

struct Told;

impl Watch for Told {
    fn begins(&mut self, what: &str, done: usize, all: usize) {
        eprintln!("{:>3}/{all} {what}", done + 1);
    }
}

async fn run() {
    check_words();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut run = Run::new(folder.path()).await;
    let Some(installed) = Installed::find() else {
        println!(
            "Left out: all of it. etcd or kube-apiserver is neither on the path nor named by PODGATE_ETCD and \
             PODGATE_KUBE_APISERVER, and podgate works in front of an API server."
        );
        return;
    };
    let api = run.api_server(&installed, "first").await;
    let podgate = run.podgate("podgate", &api, "").await;
    let apiserver = run.target("kube-apiserver", api.addr, Kind::Spdy, api.process.pid()).await;
    let haproxy = match peers::find("haproxy") {
        Some(program) => {
            let keys = [&run.door, &run.admin];
            let (process, addr) =
                peers::haproxy(&program, &run.authority, keys, run.node_addr, &run.folder).await;
            let target = run.behind("HAProxy", addr, process.pid()).await;
            Some((process, target))
        }
        None => {
            println!("Left out: HAProxy, which is neither on the path nor named by PODGATE_HAPROXY.");
            None
        }
    };
    let tunnel = haproxy.as_ref().map(|(_, target)| target.clone());
    let direct = run.behind("node directly", run.node_addr, run.node.pid()).await;

    if wanted("set-ups") {
        let mut targets = vec![podgate.target.clone(), apiserver.clone()];
        targets.extend(tunnel.clone());
        let report = run.measure("Set-ups", &[Work::Setups], &targets).await;
        run.reach("CPU per session set-up", 0.25, find(&report, "CPU per set-up"));
        run.reach("set-up p99, 16 at once", 0.5, find(&report, "set-up, p99"));
    }
    if wanted("bulk") {
        let more = run.recording();
        let recorded = run.podgate("recorded", &api, &more).await;
        let mut targets = vec![podgate.target.clone(), apiserver.clone(), recorded.target.clone()];
        targets.extend(tunnel.clone());
        let report = run.measure("Bulk", &[Work::Down, Work::Up], &targets).await;
        for way in ["down", "up"] {
            let figure = format!("CPU per GiB {way}");
            run.reach(&format!("{figure}, not recorded"), 0.6, find(&report, &figure));
            run.reach(&format!("{figure}, recorded"), 0.9, table::of(&report, &figure, [2, 1]));
        }
        for (what, content) in [("a log", Content::Log), ("noise", Content::Random)] {
            let targets = [recorded.target.clone(), apiserver.clone()];
            let plan = Plan { content, ..run.plan(&[Work::Down]) };
            let report = run.report(&format!("Bulk, recorded: {what}"), &plan, &targets).await;
            run.reach(&format!("CPU per GiB down, recorded: {what}"), 0.9, find(&report, "CPU per GiB down"));
        }
    }
    if wanted("websocket") {
        let websocket =
            run.target("WebSocket to SPDY", podgate.addr, Kind::Websocket, podgate.process.pid()).await;
        let targets = [websocket, podgate.target.clone()];
        let report = run
            .measure("WebSocket v5 translated to SPDY, beside SPDY", &[Work::Down, Work::Up], &targets)
            .await;
        for way in ["down", "up"] {
            let figure = format!("CPU per GiB {way}");
            run.reach(&format!("{figure}, translated"), 1.3, find(&report, &figure));
        }
    }
    if wanted("keystroke") {
        let mut targets = vec![podgate.target.clone(), apiserver.clone(), direct.clone()];
        targets.extend(tunnel.clone());
        let alone = Plan { beside: 0, ..run.plan(&[Work::Keystroke]) };
        let report = run.report("Keystrokes", &alone, &targets).await;
        run.reach("added to a round trip, p50", 0.6, table::added(&report, "keystroke, p50"));
        // Each takes long, of some.
        let beside = Plan { strokes: 100, ..run.plan(&[Work::Keystroke]) };
        let report = run.report("Keystrokes beside 8 copies", &beside, &targets).await;
        run.reach("keystroke p99 beside 8 copies", 0.5, find(&report, "keystroke beside bulk, p99"));
    }
    if wanted("limit") {
        let more = format!("session: {{maxBytesPerSecond: {LIMIT}}}\n");
        let limited = run.podgate("limited", &api, &more).await;
        let plan = Plan { bytes: 10 * LIMIT, ..run.plan(&[Work::Down, Work::Up]) };
        let report = run.report("A limit of 10 MiB per second", &plan, &[limited.target]).await;
        for way in ["down", "up"] {
            let rate = table::median(&report, &format!("MiB per second {way}"), 0);
            run.reached.push(Reach::within(&format!("MiB per second {way} of 10"), rate, 9.5..=10.5));
        }
    }
    drop((podgate, haproxy));
    if wanted("idle") {
        run.idle(&installed).await;
    }
    if wanted("row") {
        run.in_a_row(&api).await;
    }
    if wanted("long") {
        run.long_rest(&api).await;
    }
    println!("\n{}", table::Reached(&run.reached));
}

impl Run {
    async fn new(folder: &Path) -> Self {
        let authority = Authority::new(folder);
        let api_keys = ApiServerKeys {
            server: authority.issue("kube-apiserver", &[], Key::Rsa),
            kubelet_client: authority.issue("kubelet-client", &["system:masters"], Key::Rsa),
        };
        let kubelet = authority.issue("system:node:sim-node-0", &["system:nodes"], Key::Rsa);
        let (node, node_addr) = node::start(&authority, &kubelet, folder).await;
        Self {
            folder: folder.to_owned(),
            api_keys,
            door: authority.issue("podgate-door", &[], Key::P256),
            user: authority.issue(cluster::USER, &["bench"], Key::Rsa),
            admin: authority.issue("admin", &["system:masters"], Key::Rsa),
            gateway: authority.issue(cluster::GATEWAY, &[], Key::Rsa),
            authority,
            node,
            node_addr,
            background: Drain::new(),
            rounds: number("PODGATE_BENCH_ROUNDS").unwrap_or(ROUNDS),
            reached: Vec::new(),
        }
    }

    async fn api_server(&self, installed: &Installed, name: &str) -> ApiServer {
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).expect("make a folder");
        let (etcd, data) = peers::etcd(installed, &folder).await;
        let (mut process, addr) =
            peers::kube_apiserver(installed, &self.authority, &self.api_keys, data, &folder).await;
        process.listens(addr).await;
        let ca = self.authority.certificate();
        let admin = peers::kubeconfig("admin", addr, &ca, &self.admin, &folder);
        cluster::fill(&admin, self.node_addr).await;
        let kubeconfig = peers::kubeconfig("podgate", addr, &ca, &self.gateway, &folder);
        ApiServer { process, addr, kubeconfig, _etcd: etcd }
    }

    /// Podgate, once it lets somebody in: the API server takes new roles up in its own time.
    async fn podgate(&self, name: &'static str, api: &ApiServer, more: &str) -> Podgate {
        let more = match more.contains("session:") {
            true => more.to_owned(),
            false => format!("{more}session: {{maxSessions: 20000, maxSessionsPerCaller: 20000}}\n"),
        };
        let (mut process, addr) =
            peers::podgate(name, &self.authority, &self.door, &api.kubeconfig, &more, &self.folder).await;
        let pid = process.pid();
        let target = self.target(name, addr, Kind::Spdy, pid).await;
        let hello = ["hello".to_owned()];
        process
            .until(async || match target.open(&hello, false).await {
                Ok(session) => session.end().await.ok(),
                Err(_) => None,
            })
            .await;
        Podgate { process, addr, target }
    }

    /// Settings that record all of every session.
    fn recording(&self) -> String {
        let key = self.folder.join("signing.pem");
        let pem = SigningKey::generate().and_then(|key| key.to_private_pem()).expect("make a key");
        std::fs::write(&key, pem).expect("write a key");
        format!(
            "recording:\n  enabled: true\n  signingKeyFile: {key:?}\n  spool: {{dir: {:?}}}\n  default: {{stdin: all}}\n",
            self.folder.join("spool")
        )
    }

    /// Whoever speaks as API servers do.
    async fn target(&self, name: &str, addr: SocketAddr, kind: Kind, pid: u32) -> Target {
        self.reachable(name, addr, kind, pid, false).await
    }

    /// The kubelet, or a tunnel to it.
    async fn behind(&self, name: &str, addr: SocketAddr, pid: u32) -> Target {
        self.reachable(name, addr, Kind::Spdy, pid, true).await
    }

    async fn reachable(
        &self,
        name: &str,
        addr: SocketAddr,
        kind: Kind,
        pid: u32,
        at_kubelet: bool,
    ) -> Target {
        // A kubelet takes its clients' certificates alone.
        let user = if at_kubelet { &self.admin } else { &self.user };
        let ca = self.authority.certificate();
        let path = peers::kubeconfig(&format!("to {name}"), addr, &ca, user, &self.folder);
        let config = kubeconfig(Some(&path), None).expect("a kubeconfig");
        let pod = Pod {
            namespace: "default".to_owned(),
            name: cluster::POD.to_owned(),
            container: at_kubelet.then(|| cluster::CONTAINER.to_owned()),
            at_kubelet,
        };
        let target = Target::new(name.to_owned(), &config, pod, kind, Some(pid), &self.background);
        target.expect("a usable kubeconfig")
    }

    fn plan(&self, works: &[Work]) -> Plan {
        Plan {
            works: works.to_vec(),
            rounds: self.rounds,
            setups: 1000,
            at_once: 16,
            bytes: GIB,
            content: Content::Same,
            strokes: 2000,
            beside: 8,
            idle: IDLE,
            hold: Duration::from_secs(10),
            commands: Commands::Simulated,
        }
    }

    async fn measure(&self, title: &str, works: &[Work], targets: &[Target]) -> Report {
        self.report(title, &self.plan(works), targets).await
    }

    async fn report(&self, title: &str, plan: &Plan, targets: &[Target]) -> Report {
        let report = bench::run(plan, targets, &mut Told).await;
        let report = report.unwrap_or_else(|error| panic!("{}", podgate::telemetry::chain(&error)));
        println!("\n{title}\n\n{report}");
        report
    }

    /// Notes a ratio that is to be at most so much.
    fn reach(&mut self, what: &str, most: f64, ratio: Option<f64>) {
        self.reached.push(Reach::within(what, ratio, 0.0..=most));
    }

    /// Idle sessions of processes that have just begun: what has been used once is used again.
    async fn idle(&mut self, installed: &Installed) {
        let (mut ratios, mut own) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let api = self.api_server(installed, &format!("idle-{round}")).await;
            let podgate = self.podgate("podgate-idle", &api, "").await;
            let apiserver = self.target("kube-apiserver", api.addr, Kind::Spdy, api.process.pid()).await;
            let plan = Plan { rounds: 1, ..self.plan(&[Work::Idle]) };
            let report = self.report("Idle sessions", &plan, &[podgate.target.clone(), apiserver]).await;
            ratios.extend(find(&report, "memory per idle session"));
            own.extend(table::median(&report, "memory per idle session", 0));
        }
        self.reach("memory per idle session", 0.2, table::middle(&mut ratios));
        self.reached.push(Reach::within("KiB per idle session", table::middle(&mut own), 0.0..=20.0));
    }

    async fn in_a_row(&mut self, api: &ApiServer) {
        let podgate = self.podgate("podgate-row", api, "").await;
        let plan = Plan { rounds: 1, setups: IN_A_ROW / 10, ..self.plan(&[Work::Setups]) };
        let mut memory = Vec::new();
        for tenth in 1..=10 {
            self.report(
                &format!("Set-ups in a row, {tenth} of 10"),
                &plan,
                std::slice::from_ref(&podgate.target),
            )
            .await;
            memory.push(memory_of(&podgate.process));
        }
        println!("MiB after each tenth: {memory:.1?}");
        // What the first tenth needs is what any number at once needs.
        let growth = memory[9] / memory[0];
        self.reached.push(Reach::within(
            "memory after the last tenth, to the first",
            Some(growth),
            0.0..=1.1,
        ));
    }

    async fn long_rest(&mut self, api: &ApiServer) {
        let podgate = self.podgate("podgate-long", api, "").await;
        let before = memory_of(&podgate.process);
        let rest = number("PODGATE_BENCH_REST").unwrap_or(LONG_REST);
        let hold = Duration::from_secs(rest as u64);
        let plan = Plan { rounds: 1, idle: MANY, hold, ..self.plan(&[Work::Idle]) };
        let report =
            self.report("A long rest of many sessions", &plan, std::slice::from_ref(&podgate.target)).await;
        let cpu = table::median(&report, "CPU while all are idle", 0);
        self.reached.push(Reach::within("percent of a core while 8,000 rest", cpu, 0.0..=1.0));
        let mut after = Vec::new();
        for _ in 0..4 {
            after.push(memory_of(&podgate.process));
            tokio::time::sleep(GIVING_BACK / 4).await;
        }
        after.push(memory_of(&podgate.process));
        println!("MiB before {before:.1}, after, in {GIVING_BACK:?}: {after:.1?}");
        self.reached.push(Reach::within("memory after them, to before", Some(after[4] / before), 0.0..=1.1));
    }
}

/// MiB of a process.
fn memory_of(process: &Process) -> f64 {
    let usage = process::usage(process.pid()).expect("the process lives");
    usage.memory as f64 / f64::from(1 << 20)
}
