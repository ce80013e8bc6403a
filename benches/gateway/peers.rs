//! The processes of a run: etcd, kube-apiserver, HAProxy, and podgate as it is built.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::authority::{Authority, Pair};

/// How long a process may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether it does.
const PAUSE: Duration = Duration::from_millis(50);

/// A process that ends with the run.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

/// Where kube-apiserver and what it needs are.
pub(crate) struct Installed {
    pub(crate) etcd: PathBuf,
    pub(crate) kube_apiserver: PathBuf,
}

impl Installed {
    /// Those of `PODGATE_ETCD` and `PODGATE_KUBE_APISERVER`, or of the path.
    pub(crate) fn find() -> Option<Self> {
        Some(Self { etcd: find("etcd")?, kube_apiserver: find("kube-apiserver")? })
    }
}

/// A program, where its variable says it is, or on the path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let variable = format!("PODGATE_{}", program.replace('-', "_").to_uppercase());
    if let Some(named) = std::env::var_os(variable) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// An address that nobody has, at this moment.
pub(crate) fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind to loopback");
    listener.local_addr().expect("a bound address")
}

impl Process {
    /// Starts a program whose output goes into a file of the folder.
    pub(crate) fn start(name: &'static str, folder: &Path, command: &mut Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).expect("make a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { child, name, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something holds.
    pub(crate) async fn until<T>(&mut self, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(held) = holds().await {
                    return Some(held);
                }
                if self.child.try_wait().expect("a child").is_some() {
                    return None;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        let waited = waited.await.ok().flatten();
        waited.unwrap_or_else(|| {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<_> = said.lines().rev().take(10).collect();
            panic!("{} does not serve: {}", self.name, last.into_iter().rev().collect::<Vec<_>>().join("\n"))
        })
    }

    /// Waits until somebody listens there.
    pub(crate) async fn listens(&mut self, addr: SocketAddr) {
        self.until(async || tokio::net::TcpStream::connect(addr).await.ok()).await;
    }

    /// Waits until it has written a line with this text; the line.
    pub(crate) async fn says(&mut self, text: &str) -> String {
        let log = self.log.clone();
        self.until(async || {
            let said = std::fs::read_to_string(&log).ok()?;
            // A line is whole once it has its end.
            said.split_inclusive('\n')
                .find(|line| line.contains(text) && line.ends_with('\n'))
                .map(str::to_owned)
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The data of an API server.
pub(crate) async fn etcd(installed: &Installed, folder: &Path) -> (Process, SocketAddr) {
    let (clients, peers) = (free(), free());
    let [clients_url, peers_url] = [clients, peers].map(|addr| format!("http://{addr}"));
    let mut command = Command::new(&installed.etcd);
    command.arg("--data-dir").arg(folder.join("etcd"));
    command.args(["--listen-client-urls", &clients_url, "--advertise-client-urls", &clients_url]);
    command.args(["--listen-peer-urls", &peers_url, "--initial-advertise-peer-urls", &peers_url]);
    command.args(["--initial-cluster", &format!("default={peers_url}"), "--unsafe-no-fsync"]);
    let mut etcd = Process::start("etcd", folder, &mut command);
    etcd.listens(clients).await;
    (etcd, clients)
}

/// An API server that knows clients of the authority, asks RBAC, and writes no audit log.
pub(crate) async fn kube_apiserver(
    installed: &Installed,
    authority: &Authority,
    keys: &ApiServerKeys,
    etcd: SocketAddr,
    folder: &Path,
) -> (Process, SocketAddr) {
    let addr = free();
    let mut command = Command::new(&installed.kube_apiserver);
    let mut flag = |name: &str, value: &str| {
        command.arg(format!("--{name}={value}"));
    };
    let [ca, server, server_key] = [&authority.certificate(), &keys.server.cert, &keys.server.key]
        .map(|path| path.display().to_string());
    flag("etcd-servers", &format!("http://{etcd}"));
    flag("bind-address", "127.0.0.1");
    flag("advertise-address", "127.0.0.1");
    flag("secure-port", &addr.port().to_string());
    flag("cert-dir", &folder.display().to_string());
    flag("tls-cert-file", &server);
    flag("tls-private-key-file", &server_key);
    flag("client-ca-file", &ca);
    flag("kubelet-certificate-authority", &ca);
    flag("kubelet-client-certificate", &keys.kubelet_client.cert.display().to_string());
    flag("kubelet-client-key", &keys.kubelet_client.key.display().to_string());
    flag("kubelet-preferred-address-types", "InternalIP");
    flag("service-account-issuer", "https://kubernetes.default");
    flag("service-account-signing-key-file", &server_key);
    flag("service-account-key-file", &server_key);
    flag("service-cluster-ip-range", "10.0.0.0/24");
    flag("authorization-mode", "Node,RBAC");
    flag("disable-admission-plugins", "ServiceAccount");
    flag("endpoint-reconciler-type", "none");
    (Process::start("kube-apiserver", folder, &mut command), addr)
}

/// What kube-apiserver shows clients and kubelets.
pub(crate) struct ApiServerKeys {
    pub(crate) server: Pair,
    pub(crate) kubelet_client: Pair,
}

/// A tunnel that ends TLS on both sides and knows nothing of what passes.
pub(crate) async fn haproxy(
    program: &Path,
    authority: &Authority,
    [server, client]: [&Pair; 2],
    node: SocketAddr,
    folder: &Path,
) -> (Process, SocketAddr) {
    let addr = free();
    let joined = |pair: &Pair, name: &str| {
        let read = |path: &Path| std::fs::read_to_string(path).expect("read a certificate");
        let path = folder.join(name);
        std::fs::write(&path, read(&pair.cert) + &read(&pair.key)).expect("write a certificate");
        path.display().to_string()
    };
    let (server, client) = (joined(server, "haproxy-server.pem"), joined(client, "haproxy-client.pem"));
    let ca = authority.certificate();
    let config = format!(
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         frontend door\n  bind {addr} ssl crt {server}\n  default_backend node\n\
         backend node\n  server node {node} ssl verify required ca-file {} crt {client}\n",
        ca.display()
    );
    let path = folder.join("haproxy.cfg");
    std::fs::write(&path, config).expect("write settings");
    let mut haproxy =
        Process::start("haproxy", folder, Command::new(program).arg("-db").arg("-f").arg(&path));
    haproxy.listens(addr).await;
    (haproxy, addr)
}

/// `podgate serve`, as it was built or of `PODGATE_BINARY`, in front of the API server whose kubeconfig that is; `more` are further settings.
pub(crate) async fn podgate(
    name: &'static str,
    authority: &Authority,
    server: &Pair,
    kubeconfig: &Path,
    more: &str,
    folder: &Path,
) -> (Process, SocketAddr) {
    let config = format!(
        "api:\n  tls: {{certFile: {:?}, keyFile: {:?}}}\n  maxConnections: 20000\n  maxConnectionsPerAddress: 0\n\
         authentication:\n  clientCAFile: {:?}\ncluster:\n  kubeconfig: {kubeconfig:?}\n\
         upstream:\n  kubelet: {{caFile: {:?}}}\n{more}",
        server.cert,
        server.key,
        authority.certificate(),
        authority.certificate(),
    );
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, config).expect("write settings");
    let binary = std::env::var_os("PODGATE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_podgate").into());
    let mut command = Command::new(binary);
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    command.arg("--config").arg(&path);
    let mut process = Process::start(name, folder, &mut command);
    let line = process.says("podgate serves").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    let addr = line["fields"]["api.addr"].as_str().or(line["api.addr"].as_str());
    (process, addr.and_then(|addr| addr.parse().ok()).expect("the address that podgate says it has"))
}

/// Writes how to reach a server as somebody.
pub(crate) fn kubeconfig(name: &str, addr: SocketAddr, ca: &Path, user: &Pair, folder: &Path) -> PathBuf {
    let mut text = String::from("apiVersion: v1\nkind: Config\ncurrent-context: bench\n");
    let _ = write!(
        text,
        "contexts: [{{name: bench, context: {{cluster: bench, user: bench, namespace: default}}}}]\n\
         clusters: [{{name: bench, cluster: {{server: \"https://{addr}\", certificate-authority: {ca:?}}}}}]\n\
         users: [{{name: bench, user: {{client-certificate: {:?}, client-key: {:?}}}}}]\n",
        user.cert, user.key
    );
    let path = folder.join(format!("{name}.kubeconfig"));
    std::fs::write(&path, text).expect("write a kubeconfig");
    path
}
