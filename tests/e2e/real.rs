//! The suite in a real cluster, through `podgate serve` in both of its upstream modes.
//!
//!     PODGATE_E2E_KUBECONFIG   an administrator of the cluster; `make e2e KUBECONFIG=FILE` sets it
//!     PODGATE_E2E_IDENTITY     kubeconfig of podgate itself; the administrator's when absent
//!     PODGATE_E2E_KUBELET      value of podgate's setting `upstream.kubelet`, as YAML in one line; `{}` when absent
//!     PODGATE_E2E_IMAGE        an image with a shell, `nc` and `tar`; a busybox that runs in the cluster when absent
//!     PODGATE_E2E_AUDIT_LOG    the API server's audit log; without it, nobody sees who the API server thinks has asked

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::answers::{self, Tokens};
use crate::audit;
use crate::checks::{Echo, Target, feed, piped};
use crate::clients::Client;
use crate::endings;
use crate::http::Server;
use crate::identity;
use crate::pki::Authority;
use crate::place::{self, Api, Place, Speaks};
use crate::podgate::Podgate;
use crate::report::{Cell, Outcome};
use crate::requests::{self, Subjects};
use crate::run::Run;

/// How long pods may take to run, their image to come included.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often pods are looked at that are to run.
const PAUSE: Duration = Duration::from_millis(500);

/// Gives the body of each request back; one process for each connection. A process id would not tell them
/// apart: Kubernetes takes two dollar signs in a command for one.
const ECHO: &str = r#"
cr=$(printf '\r'); more=yes; body=$(mktemp)
while read -r line; do
  case ${line%$cr} in
    'Connection: close') more= ;;
    'Content-Length: '*) length=${line%$cr}; length=${length#*: } ;;
    '') head -c $length >$body
        printf 'HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n' $length
        cat $body
        [ $more ] || exit 0 ;;
  esac
done"#;

/// Podgate's setting `upstream.mode`.
const MODES: [&str; 2] = ["kubelet", "apiserver"];

/// No podgate at all: what a check asks is what Kubernetes itself does.
const DIRECT: &str = "direct";

/// A namespace of the run's own, and what is in it. For a moment there are a node and a cluster role of that name.
pub(crate) struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    pub(crate) namespace: String,
    node: String,
    image: String,
    /// The API server's minor version.
    minor: u32,
    /// The API server's address, as a URL.
    server: String,
    /// Its authority's certificate; PEM.
    server_ca: PathBuf,
    /// Where the pod `echo` listens. Pods have the node's network, for clusters that have no other.
    echo: u16,
    pub(crate) authority: Authority,
    folder: tempfile::TempDir,
}

pub(crate) async fn run(kubeconfig: PathBuf, clients: &[Client], run: &mut Run) {
    let clients: Vec<_> = clients.iter().filter(|client| client.is_kubectl()).collect();
    let cluster = Cluster::find(kubeconfig, clients.last().expect("a kubectl")).await;
    println!("namespace {} on node {}, pods from {}", cluster.namespace, cluster.node, cluster.image);
    let mut interrupted = signal(SignalKind::interrupt()).unwrap();
    let suite = async {
        cluster.fill(&clients).await;
        suite(&cluster, &clients, run).await;
    };
    let ended = tokio::select! {
        ended = std::panic::AssertUnwindSafe(suite).catch_unwind() => ended,
        _ = interrupted.recv() => Ok(()),
    };
    if ended.is_err() {
        run.broke();
    }
    cluster.clear().await;
}

async fn suite(cluster: &Cluster, clients: &[&Client], run: &mut Run) {
    let direct = cluster.callers(DIRECT, &cluster.server, &cluster.server_ca).await;
    checks(cluster, DIRECT, &direct, clients, run).await;
    for mode in MODES {
        let (podgate, [api, _]) = Podgate::serve(&cluster.config(mode, &kubelet_setting())).await;
        let kubeconfig =
            cluster.callers(mode, &format!("https://{api}"), &cluster.authority.certificate()).await;
        checks(cluster, mode, &kubeconfig, clients, run).await;
        let podgate_too = Server::new(&api.to_string(), &cluster.authority.certificate());
        compare(cluster, mode, &podgate_too, run).await;
        evidence(cluster, mode, &podgate_too, run).await;
        identity(cluster, mode, &kubeconfig, &podgate_too, run).await;
        let log = cluster.audit_log(mode);
        let check = endings::no_plain_shell_is_left(cluster, &kubeconfig, clients, &log);
        run.cell(Cell::line("endings", mode, "no plain shell is left"), None, check).await;
        podgate.stop(run.failed()).await;
    }
}

/// The value of podgate's setting `upstream.kubelet`.
fn kubelet_setting() -> String {
    std::env::var("PODGATE_E2E_KUBELET").unwrap_or_else(|_| "{}".to_owned())
}

async fn checks(cluster: &Cluster, name: &str, kubeconfig: &Path, clients: &[&Client], run: &mut Run) {
    let place = Place { name: name.to_owned(), speaks: Speaks::V4, api: Api::Real(cluster.minor) };
    for client in clients {
        let pod = client.pod(name);
        let target = Target {
            client,
            place: &place,
            folder: cluster.scratch(&pod),
            kubeconfig: kubeconfig.to_owned(),
            echo: Echo::At { pod: "echo".to_owned(), port: cluster.echo },
            image: cluster.image.clone(),
            pod,
        };
        run.checks(&target).await;
    }
}

/// Asks the API server and podgate the same.
async fn compare(cluster: &Cluster, mode: &str, podgate: &Server, run: &mut Run) {
    let server = cluster.server.trim_start_matches("https://").trim_end_matches('/');
    let kubernetes = Server::new(server, &cluster.server_ca);
    let tokens = cluster.tokens().await;
    let known = requests::known(mode);
    let of = Subjects { namespace: &cluster.namespace, node: &cluster.node, web: "echo" };
    for request in requests::all(&of) {
        let cell = Cell::line("answers", mode, request.name);
        run.cell(cell, None, answers::compare(&request, &tokens, [&kubernetes, podgate], &known)).await;
    }
}

/// Asks both the same once more, and compares what they write about it.
async fn evidence(cluster: &Cluster, mode: &str, podgate: &Server, run: &mut Run) {
    let server = cluster.server.trim_start_matches("https://").trim_end_matches('/');
    let kubernetes = Server::new(server, &cluster.server_ca);
    let log = std::env::var_os("PODGATE_E2E_AUDIT_LOG").map(PathBuf::from);
    let (tokens, known, own) = (cluster.tokens().await, audit::known(mode), cluster.audit_log(mode));
    let of = Subjects { namespace: &cluster.namespace, node: &cluster.node, web: "echo" };
    for request in requests::all(&of) {
        let check = async {
            let logs = audit::Logs { kubernetes: log.as_deref().expect(audit::NO_LOG), podgate: &own };
            audit::compare(&request, &tokens, [&kubernetes, podgate], &logs, &known).await
        };
        let cannot = log.is_none().then_some(audit::NO_LOG);
        run.cell(Cell::line("audit", mode, request.name), cannot, check).await;
    }
}

/// Looks at what the API server and kubelets see of a caller.
async fn identity(cluster: &Cluster, mode: &str, callers: &Path, podgate: &Server, run: &mut Run) {
    if mode == "kubelet" {
        let check = async {
            identity::the_forbidden_reach_no_kubelet(cluster, podgate, &cluster.tokens().await).await;
            Outcome::Works
        };
        run.cell(Cell::line("identity", mode, "the forbidden reach no kubelet"), None, check).await;
        let check = async {
            identity::two_verbs_are_enough_for_podgate(cluster, &cluster.tokens().await).await;
            Outcome::Works
        };
        run.cell(Cell::line("identity", mode, "two verbs are enough for podgate"), None, check).await;
    } else {
        let log = std::env::var_os("PODGATE_E2E_AUDIT_LOG").map(PathBuf::from);
        let check = async {
            let log = log.as_deref().expect(identity::NO_LOG);
            identity::the_audit_log_names_the_caller(cluster, callers, log).await;
            Outcome::Works
        };
        let cannot = log.is_none().then_some(identity::NO_LOG);
        run.cell(Cell::line("identity", mode, "the audit log names the caller"), cannot, check).await;
    }
}

// === impl Cluster ===

impl Cluster {
    /// Looks at the cluster, and changes nothing.
    async fn find(kubeconfig: PathBuf, newest: &Client) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut random = [0; 4];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let number = u32::from_ne_bytes(random);
        let mut cluster = Self {
            kubectl: newest.argv()[0].clone().into(),
            kubeconfig,
            namespace: format!("podgate-e2e-{number:08x}"),
            node: String::new(),
            image: std::env::var("PODGATE_E2E_IMAGE").unwrap_or_default(),
            minor: 0,
            server: String::new(),
            server_ca: folder.path().join("server-ca.crt"),
            // Below the ports that Linux and Kubernetes give to whoever asks for any.
            echo: 20_000 + u16::try_from(number % 9_000).unwrap(),
            authority: Authority::new(folder.path()),
            folder,
        };
        let view = cluster.json(&["config", "view", "--minify", "--flatten", "--raw"]).await;
        let view = &view["clusters"][0]["cluster"];
        cluster.server = view["server"].as_str().expect("an address of the API server").to_owned();
        let ca = serde_json::from_value::<ByteString>(view["certificate-authority-data"].clone());
        std::fs::write(&cluster.server_ca, ca.expect("the API server's authority").0).unwrap();
        let nodes = cluster.json(&["get", "nodes"]).await;
        cluster.node = nodes["items"][0]["metadata"]["name"].as_str().expect("a node").to_owned();
        let version = cluster.json(&["version"]).await;
        let minor = version["serverVersion"]["minor"].as_str().unwrap();
        cluster.minor = minor.trim_end_matches('+').parse().unwrap();
        if cluster.image.is_empty() {
            let pods = cluster.json(&["get", "pods", "--all-namespaces"]).await;
            cluster.image = running_busybox(&pods).unwrap_or("docker.io/library/busybox:1").to_owned();
        }
        cluster
    }

    /// Makes the namespace and what every part of the suite needs in it, and waits until its pods run.
    async fn fill(&self, clients: &[&Client]) {
        let name = &self.namespace;
        // Pods with the node's network, where there is a policy against them.
        let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        self.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }))
            .await;
        let accounts = ["alice", "mallory", identity::TWO_VERBS, identity::NO_VERBS];
        let mut all: Vec<_> = accounts.map(account).into();
        all.extend([self.role(), self.binding()]);
        for client in clients {
            for mode in MODES.into_iter().chain([DIRECT]) {
                all.extend(
                    place::pods(client, mode).map(|(name, script)| self.pod(&name, &["sh", "-c", script])),
                );
            }
        }
        all.extend(requests::pods(|name| self.pod(name, &["sh"])));
        all.push(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "compared" } }));
        let listen = format!("exec nc -ll -p {} -e sh -c \"$0\"", self.echo);
        all.push(self.pod("echo", &["sh", "-c", &listen, ECHO]));
        self.create(&json!({ "apiVersion": "v1", "kind": "List", "items": all })).await;
        let mut waits = Vec::new();
        let running = async {
            loop {
                let pods = self.json(&["get", "pods", "--field-selector=status.phase!=Running"]).await;
                let here = pods["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|pod| pod["spec"]["nodeName"] == *self.node);
                waits = here
                    .map(|pod| pod["metadata"]["name"].to_string() + &pod["status"].to_string())
                    .collect();
                if waits.is_empty() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let running = tokio::time::timeout(PATIENCE, running).await;
        assert!(running.is_ok(), "pods do not run: {}", waits.join("\n"));
    }

    /// Removes what was made. Where nobody finishes namespaces, an empty one stays.
    async fn clear(&self) {
        let all = "pods,configmaps,rolebindings,roles,serviceaccounts";
        self.kubectl(&["delete", all, "--all", "--force", "--grace-period=0", "--wait=false"], b"").await;
        for resource in ["node", "clusterrolebinding", "clusterrole"] {
            self.kubectl(&["delete", resource, &self.namespace, "--ignore-not-found"], b"").await;
        }
        self.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"], b"").await;
    }

    /// A pod that stays where it is put, whatever the node is said to lack.
    pub(crate) fn pod(&self, name: &str, command: &[&str]) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": {
            "nodeName": self.node,
            "hostNetwork": true,
            "tolerations": [{ "operator": "Exists" }],
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "serviceAccountName": "alice",
            "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent",
                "stdin": true, "command": command, "env": [{ "name": "PAUSE", "value": "0.5" }] }],
        } })
    }

    /// What alice may do, within the namespace.
    fn role(&self) -> Value {
        let rule =
            |on: &[&str], verbs: &[&str]| json!({ "apiGroups": [""], "resources": on, "verbs": verbs });
        let all = ["get", "list", "watch", "create", "update", "patch", "delete"];
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "alice" },
            "rules": [
                rule(&["pods", "configmaps"], &all),
                // Without `create`: only sessions need it for GET.
                rule(&["pods/log", "pods/proxy"], &["get"]),
                rule(&["pods/exec", "pods/attach", "pods/portforward"], &all),
                rule(&["pods/ephemeralcontainers"], &["get", "update", "patch"]),
                rule(&["serviceaccounts"], &["impersonate"]),
            ] })
    }

    fn binding(&self) -> Value {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "alice" },
            "subjects": [
                { "kind": "User", "name": "e2e-alice", "apiGroup": "rbac.authorization.k8s.io" },
                { "kind": "ServiceAccount", "name": "alice", "namespace": self.namespace },
            ],
            "roleRef": { "kind": "Role", "name": "alice", "apiGroup": "rbac.authorization.k8s.io" } })
    }

    /// Settings for podgate; `kubelet` is the value of `upstream.kubelet`.
    pub(crate) fn config(&self, mode: &str, kubelet: &str) -> String {
        let (cert, key) = self.authority.server();
        format!(
            "api:\n  tls: {{certFile: {cert:?}, keyFile: {key:?}}}\nauthentication:\n  clientCAFile: {:?}\n  \
             anonymous: true\ncluster:\n  kubeconfig: {:?}\nupstream:\n  mode: {mode}\n  kubelet: {kubelet}\n\
             audit: {{file: {{path: {:?}}}}}\n",
            self.authority.certificate(),
            self.identity(),
            self.audit_log(mode),
        )
    }

    /// Where podgate writes its audit events.
    fn audit_log(&self, mode: &str) -> PathBuf {
        self.folder.path().join(format!("{mode}-audit.log"))
    }

    /// Podgate's own kubeconfig.
    pub(crate) fn identity(&self) -> PathBuf {
        std::env::var_os("PODGATE_E2E_IDENTITY").map_or_else(|| self.kubeconfig.clone(), PathBuf::from)
    }

    /// Writes a kubeconfig with the callers. Podgate knows them by certificates too, the API server by tokens alone.
    async fn callers(&self, place: &str, server: &str, ca: &Path) -> PathBuf {
        let certified = async |user: &str| match place {
            DIRECT => json!({ "token": self.token(user).await }),
            _ => {
                let (cert, key) = self.authority.client(&format!("e2e-{user}"));
                json!({ "client-certificate": cert, "client-key": key })
            }
        };
        let users = [
            ("alice", certified("alice").await),
            ("mallory", certified("mallory").await),
            ("alice-token", json!({ "token": self.token("alice").await })),
        ];
        let named = |name: &str, what: &str, value: Value| json!({ "name": name, what: value });
        let contexts = users.each_ref().map(|(name, _)| {
            named(name, "context", json!({ "cluster": place, "user": name, "namespace": self.namespace }))
        });
        let cluster = json!({ "server": server, "certificate-authority": ca });
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "alice",
            "clusters": [named(place, "cluster", cluster)], "contexts": contexts,
            "users": users.map(|(name, user)| named(name, "user", user)) });
        let path = self.folder.path().join(format!("{place}.kubeconfig"));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A home for kubectls.
    pub(crate) fn home(&self) -> &Path {
        self.folder.path()
    }

    /// A folder for what a client writes.
    fn scratch(&self, name: &str) -> PathBuf {
        let scratch = self.folder.path().join("scratch").join(name);
        std::fs::create_dir_all(&scratch).unwrap();
        scratch
    }

    pub(crate) async fn tokens(&self) -> Tokens {
        Tokens { alice: self.token("alice").await, mallory: self.token("mallory").await }
    }

    /// A file with a bearer token of a service account.
    pub(crate) async fn token_file(&self, account: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{account}.token"));
        std::fs::write(&path, self.token(account).await).unwrap();
        path
    }

    /// A bearer token of a service account.
    pub(crate) async fn token(&self, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", self.namespace);
        let ask = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let answer = self.kubectl(&["create", "--raw", &path, "-f", "-"], ask.to_string().as_bytes()).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    pub(crate) async fn create(&self, object: &Value) {
        self.kubectl(&["create", "-f", "-"], object.to_string().as_bytes()).await;
    }

    async fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat(), b"").await).unwrap()
    }

    /// Has the administrator do something; the output.
    pub(crate) async fn kubectl(&self, args: &[&str], input: &[u8]) -> String {
        self.kubectl_by(&self.kubeconfig, args, input).await
    }

    /// Has somebody do something in the namespace; the output.
    pub(crate) async fn kubectl_by(&self, kubeconfig: &Path, args: &[&str], input: &[u8]) -> String {
        let mut command = Command::new(&self.kubectl);
        // Caches of discovery do not outlive the run.
        command.env("HOME", self.folder.path()).arg("--kubeconfig").arg(kubeconfig);
        let said = feed(piped(command.args(["--namespace", &self.namespace]).args(args)), input).await;
        assert_eq!(said.code, Some(0), "kubectl {args:?}: {}", said.err);
        String::from_utf8(said.out).unwrap()
    }
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } })
}

fn running_busybox(pods: &Value) -> Option<&str> {
    let pods = pods["items"].as_array()?.iter().filter(|pod| pod["status"]["phase"] == "Running");
    let images = pods.flat_map(|pod| pod["spec"]["containers"].as_array().into_iter().flatten());
    images.filter_map(|container| container["image"].as_str()).find(|image| image.contains("busybox"))
}
