//! The suite in a real cluster, through `podgate serve` in both of its upstream modes.
//!
//!     PODGATE_E2E_KUBECONFIG   an administrator of the cluster; `make e2e KUBECONFIG=FILE` sets it
//!     PODGATE_E2E_IDENTITY     kubeconfig of podgate itself; a service account with the rights of docs/rbac.yaml when absent
//!     PODGATE_E2E_KUBELET      value of podgate's setting `upstream.kubelet`, as YAML in one line; `{}` when absent
//!     PODGATE_E2E_IMAGE        an image with a shell, `nc` and `tar`; a busybox that runs in the cluster when absent
//!     PODGATE_E2E_AUDIT_LOG    the API server's audit log; without it, nobody sees who the API server thinks has asked

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::answers::{self, Tokens};
use crate::audit;
use crate::checks::{Echo, Said, Target, feed, piped};
use crate::clients::Client;
use crate::endings;
use crate::house::{self, House};
use crate::http::Server;
use crate::identity;
use crate::pki::Authority;
use crate::place::{self, Api, Place, Speaks};
use crate::podgate::{Podgate, ready};
use crate::report::{Cell, Outcome};
use crate::requests::{self, Subjects};
use crate::rights;
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

/// The label of what is in no namespace of the run's own; its value is that namespace.
const OF_RUN: &str = "podgate-e2e";

/// How long a bearer token holds, in seconds: longer than a run.
const TOKEN: u32 = 4 * 3600;

/// No podgate at all: what a check asks is what Kubernetes itself does.
const DIRECT: &str = "direct";

/// A namespace of the run's own, and what is in it. Besides, for as long as the run takes: cluster roles and policies that
/// begin with its name, a role for events in `default`, a node, and the definition of policies where there is none.
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
        let (podgate, [api, admin]) = Podgate::serve(&cluster.config(mode, &kubelet_setting())).await;
        ready(admin).await;
        let kubeconfig =
            cluster.callers(mode, &format!("https://{api}"), &cluster.authority.certificate()).await;
        checks(cluster, mode, &kubeconfig, clients, run).await;
        let podgate_too = Server::new(&api.to_string(), &cluster.authority.certificate());
        compare(cluster, mode, &podgate_too, run).await;
        evidence(cluster, mode, &podgate_too, run).await;
        identity(cluster, mode, &kubeconfig, &podgate_too, run).await;
        houses(cluster, mode, &kubeconfig, clients, run).await;
        let log = cluster.audit_log(mode);
        let check = endings::no_plain_shell_is_left(cluster, &kubeconfig, clients, &log);
        run.cell(Cell::line("endings", mode, "no plain shell is left"), None, check).await;
        podgate.stop(run.failed()).await;
    }
    rights(cluster, run).await;
}

/// House rules, grants, live sessions and limits: with every kubectl in the first mode, with the newest in the other.
async fn houses(cluster: &Cluster, mode: &str, callers: &Path, clients: &[&Client], run: &mut Run) {
    let clients = if mode == MODES[0] { clients } else { &clients[clients.len() - 1..] };
    for client in clients {
        let house = House { cluster, callers, client };
        let name = |check| Cell::line(&client.name, mode, check);
        run.cell(name("the group"), None, works(house::the_group_is_found(&house))).await;
        run.cell(name("sessions"), None, works(house::sessions_are_seen_and_ended(&house))).await;
        run.cell(name("policies"), None, works(house::policies_change_what_may_happen(&house))).await;
        run.cell(name("grants"), None, works(house::a_grant_lets_in_across_a_rollout(&house))).await;
        run.cell(name("limits"), None, works(house::limits_are_told(&house))).await;
    }
    let house = House { cluster, callers, client: clients[clients.len() - 1] };
    let check = house::nothing_is_allowed_before_the_policies_are_read(&house, mode);
    run.cell(Cell::line("policies", mode, "unread"), None, works(check)).await;
}

/// Boxed: these hold the buffers of terminals.
fn works<'a>(check: impl Future<Output = ()> + 'a) -> LocalBoxFuture<'a, Outcome> {
    Box::pin(async {
        check.await;
        Outcome::Works
    })
}

/// Whether the rights of docs/rbac.yaml are those that podgate has needed in all cells before.
async fn rights(cluster: &Cluster, run: &mut Run) {
    if std::env::var_os("PODGATE_E2E_IDENTITY").is_some() {
        return;
    }
    let log = std::env::var_os("PODGATE_E2E_AUDIT_LOG").map(PathBuf::from);
    let cannot = log.is_none().then_some(audit::NO_LOG);
    let used = async || rights::Used::read(log.as_deref().expect(audit::NO_LOG), &cluster.own_name());
    let check = async { used().await.none_was_missing() };
    run.cell(Cell::line("rights", "both modes", "none is missing"), cannot, works(check)).await;
    if run.is_whole() {
        let check = async { used().await.none_is_idle(&cluster.rbac()) };
        run.cell(Cell::line("rights", "both modes", "none is idle"), cannot, works(check)).await;
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
    let kubernetes = Server::new(cluster.server(), &cluster.server_ca);
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
    let kubernetes = Server::new(cluster.server(), &cluster.server_ca);
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
        self.everywhere(&["create", "-f", "-"], self.rbac().as_bytes()).await;
        self.define_policies().await;
        let accounts = ["alice", "mallory", "keeper", identity::TWO_VERBS, identity::NO_VERBS];
        let mut all: Vec<_> = accounts.map(account).into();
        all.extend([self.role(), self.binding()]);
        all.extend(self.cluster_roles());
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
        self.write_identity().await;
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
        self.everywhere(&["delete", "--ignore-not-found", "-f", "-"], self.rbac().as_bytes()).await;
        let of_run = format!("{OF_RUN}={}", self.namespace);
        for resource in
            ["clusterrolebindings", "clusterroles", "nodes", "execpolicies", "customresourcedefinitions"]
        {
            // The run may have ended before there were any policies.
            let said = self.said(&self.kubeconfig, &["delete", resource, "-l", &of_run], b"").await;
            assert!(said.code == Some(0) || resource == "execpolicies", "delete {resource}: {}", said.err);
        }
        self.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"], b"").await;
    }

    /// docs/rbac.yaml, for podgate in the run's namespace. That is there already.
    pub(crate) fn rbac(&self) -> String {
        let name = &self.namespace;
        let text = include_str!("../../docs/rbac.yaml");
        let documents = text.split("\n---\n").filter(|document| !document.contains("\nkind: Namespace\n"));
        let documents: Vec<_> = documents.collect();
        documents
            .join("\n---\n")
            .replace("name: podgate", &format!("name: {name}"))
            .replace("namespace: podgate", &format!("namespace: {name}"))
    }

    /// The kind of policies, where it is not known, and a policy that is about nobody: when the last one goes, its rules
    /// stay.
    async fn define_policies(&self) {
        const CRD: &str = "customresourcedefinition/execpolicies.podgate.dev";
        let there = self.kubectl(&["get", CRD, "--ignore-not-found", "-o", "name"], b"").await;
        if there.is_empty() {
            let text = include_bytes!("../../charts/podgate/crds/execpolicies.yaml");
            self.kubectl(&["create", "-f", "-"], text).await;
            self.kubectl(&["label", CRD, &format!("{OF_RUN}={}", self.namespace)], b"").await;
            self.kubectl(&["wait", "--for=condition=Established", CRD], b"").await;
        }
        let nobody = json!({ "name": "nobody", "match": { "users": ["nobody"] }, "effect": "deny" });
        self.create(&self.policy("nobody", &[nobody])).await;
    }

    /// A policy about the run's namespace.
    pub(crate) fn policy(&self, name: &str, rules: &[Value]) -> Value {
        let mut rules = rules.to_vec();
        for rule in &mut rules {
            rule["match"]["namespaces"] = json!([self.namespace]);
        }
        json!({ "apiVersion": "podgate.dev/v1alpha1", "kind": "ExecPolicy", "metadata": self.global(name),
            "spec": { "rules": rules } })
    }

    /// The metadata of something that is in no namespace.
    pub(crate) fn global(&self, name: &str) -> Value {
        json!({ "name": format!("{}-{name}", self.namespace), "labels": { OF_RUN: self.namespace } })
    }

    /// Cluster roles and their bindings: a keeper who sees and ends sessions, looks at all there is and approves grants; an
    /// attribute as which alice may act.
    fn cluster_roles(&self) -> Vec<Value> {
        const GROUP: &str = "rbac.authorization.k8s.io";
        let role = |name: &str, rules: Value| {
            json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": self.global(name), "rules": rules })
        };
        let bind = |name: &str, to: &str, subject: Value| {
            json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": self.global(name), "subjects": [subject],
                "roleRef": { "kind": "ClusterRole", "name": to, "apiGroup": GROUP } })
        };
        let named = |name: &str| format!("{}-{name}", self.namespace);
        let keeper = json!({ "kind": "User", "name": "e2e-keeper", "apiGroup": GROUP });
        let alice = json!({ "kind": "ServiceAccount", "name": "alice", "namespace": self.namespace });
        let keeps = json!([
            { "apiGroups": ["podgate.dev"], "resources": ["sessions"], "verbs": ["get", "list", "watch", "delete"] },
            { "apiGroups": ["podgate.dev"], "resources": ["grants"],
                "verbs": ["get", "list", "watch", "patch", "delete", "approve"] },
        ]);
        let acts = json!([{ "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/reasons"],
            "verbs": ["impersonate"] }]);
        vec![
            role("keeper", keeps),
            bind("keeper", &named("keeper"), keeper.clone()),
            bind("looks", "system:aggregate-to-view", keeper),
            role("acts", acts),
            bind("acts", &named("acts"), alice),
        ]
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
                { "apiGroups": ["podgate.dev"], "resources": ["grants"], "verbs": ["create", "get", "patch"] },
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
             audit: {{policyFile: {:?}, file: {{path: {:?}}}}}\n\
             policy: {{fromApi: true, grants: {{namespace: {}, longest: {}s}}}}\n",
            self.authority.certificate(),
            self.identity(),
            self.audit_policy(),
            self.audit_log(mode),
            self.namespace,
            house::LONGEST.as_secs(),
        )
    }

    /// Podgate's audit policy: all requests, as the API server's has to be.
    fn audit_policy(&self) -> PathBuf {
        let path = self.folder.path().join("audit-policy.yaml");
        let all =
            json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{ "level": "Metadata" }] });
        std::fs::write(&path, all.to_string()).unwrap();
        path
    }

    /// Where podgate writes its audit events.
    fn audit_log(&self, mode: &str) -> PathBuf {
        self.folder.path().join(format!("{mode}-audit.log"))
    }

    /// Podgate's own kubeconfig.
    pub(crate) fn identity(&self) -> PathBuf {
        let own = || self.folder.path().join("podgate.kubeconfig");
        std::env::var_os("PODGATE_E2E_IDENTITY").map_or_else(own, PathBuf::from)
    }

    /// Podgate's name in the cluster, when nobody gives it another kubeconfig.
    fn own_name(&self) -> String {
        format!("system:serviceaccount:{0}:{0}", self.namespace)
    }

    async fn write_identity(&self) {
        let token = self.token_file(&self.namespace).await;
        self.write_kubeconfig("podgate", &self.server, &token);
    }

    /// Writes a kubeconfig of whose token is in a file, to a server with the API server's certificate.
    pub(crate) fn write_kubeconfig(&self, name: &str, server: &str, token: &Path) -> PathBuf {
        let host = self.server().rsplit_once(':').expect("a port").0.trim_matches(['[', ']']);
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": server, "tls-server-name": host,
                "certificate-authority": self.server_ca } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u", "namespace": self.namespace } }],
            "users": [{ "name": "u", "user": { "tokenFile": token } }] });
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// `HOST:PORT` of the API server.
    pub(crate) fn server(&self) -> &str {
        self.server.trim_start_matches("https://").trim_end_matches('/')
    }

    /// The administrator's kubeconfig.
    pub(crate) fn admin(&self) -> &Path {
        &self.kubeconfig
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
            ("keeper", certified("keeper").await),
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
        let ask = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "expirationSeconds": TOKEN } });
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
        let args = [&["--namespace", &self.namespace], args].concat();
        let said = self.said(kubeconfig, &args, input).await;
        assert_eq!(said.code, Some(0), "kubectl {args:?}: {}", said.err);
        String::from_utf8(said.out).unwrap()
    }

    /// Has the administrator do something with objects that say where they are.
    async fn everywhere(&self, args: &[&str], input: &[u8]) {
        let said = self.said(&self.kubeconfig, args, input).await;
        assert_eq!(said.code, Some(0), "kubectl {args:?}: {}", said.err);
    }

    async fn said(&self, kubeconfig: &Path, args: &[&str], input: &[u8]) -> Said {
        let mut command = Command::new(&self.kubectl);
        // Caches of discovery do not outlive the run.
        command.env("HOME", self.folder.path()).arg("--kubeconfig").arg(kubeconfig);
        feed(piped(command.args(args)), input).await
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
