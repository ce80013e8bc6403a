//! Who is seen by whom: the API server sees the caller, and nobody without rights gets as far as a kubelet.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::answers::{Caller, Request, Tokens};
use crate::http::Server;
use crate::podgate::{Podgate, ready};
use crate::real::Cluster;

/// How long an event may take to be in the audit log.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(100);

/// Why nothing is said about the audit log.
pub(crate) const NO_LOG: &str = "PODGATE_E2E_AUDIT_LOG does not say where the API server's audit log is";

/// In mode `apiserver`, the audit log has the caller as whom it is done for, and podgate as who did it: the same two as
/// when podgate's own identity does it with kubectl.
pub(crate) async fn the_audit_log_names_the_caller(cluster: &Cluster, callers: &Path, log: &Path) {
    let words = ["through", "by-hand"].map(|how| format!("{how}-{}", cluster.namespace));
    cluster.kubectl_by(callers, &["exec", "echo", "--", "true", &words[0]], b"").await;
    let caller = "--as=e2e-alice";
    cluster.kubectl_by(&cluster.identity(), &["exec", caller, "echo", "--", "true", &words[1]], b"").await;
    let [through, by_hand] = [event(log, &words[0]).await, event(log, &words[1]).await];
    assert_eq!(through["impersonatedUser"]["username"], "e2e-alice", "{through}");
    assert_eq!(through["impersonatedUser"]["groups"], json!(["system:authenticated"]), "{through}");
    assert_ne!(through["user"]["username"], "e2e-alice", "{through}");
    assert_eq!(through["user"], by_hand["user"]);
}

/// The event of the command that has a word, once it is known who may ask for what.
async fn event(log: &Path, word: &str) -> Value {
    let found = async {
        loop {
            let text = std::fs::read_to_string(log).unwrap();
            let events = text.lines().filter(|line| line.contains(word));
            let mut events = events.map_while(|line| serde_json::from_str::<Value>(line).ok());
            let known = |event: &Value| {
                event["objectRef"]["subresource"] == "exec" && event["stage"] != "RequestReceived"
            };
            if let Some(event) = events.find(known) {
                return event;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no event of {word}"))
}

/// In mode `kubelet`, whoever may not is refused before there is a connection to a kubelet. The kubelet is this check,
/// which counts; so that it has one to count, somebody who may comes last.
pub(crate) async fn the_forbidden_reach_no_kubelet(cluster: &Cluster, podgate: &Server, tokens: &Tokens) {
    let kubelet = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = kubelet.local_addr().unwrap().port();
    let addresses: Vec<_> =
        ["Hostname", "InternalIP"].map(|kind| json!({ "type": kind, "address": "127.0.0.1" })).into();
    cluster
        .create(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": cluster.global("counts"),
            "spec": { "unschedulable": true },
            "status": { "addresses": addresses, "daemonEndpoints": { "kubeletEndpoint": { "Port": port } } } }))
        .await;
    let mut pod = cluster.pod("guarded", &["sh"]);
    pod["spec"]["nodeName"] = cluster.global("counts")["name"].clone();
    cluster.create(&pod).await;

    let pod = format!("/api/v1/namespaces/{}/pods/guarded", cluster.namespace);
    let exec = Request::get("", format!("{pod}/exec?command=true&stdout=1"));
    let refused = [
        exec.clone().spdy().by(Caller::Mallory),
        exec.clone().websocket("v4.channel.k8s.io").by(Caller::Mallory),
        exec.clone().websocket("v5.channel.k8s.io").by(Caller::Mallory),
        exec.clone().spdy().by(Caller::Nobody),
        Request::get("", format!("{pod}/attach?stdout=1")).spdy().by(Caller::Mallory),
        Request::get("", format!("{pod}/portforward")).spdy_of("portforward.k8s.io").by(Caller::Mallory),
    ];
    for request in refused {
        assert_eq!(podgate.ask(&request.bytes(tokens)).await.code, 403);
    }
    let (request, mut connections) = (exec.spdy().bytes(tokens), 0);
    let serve = async {
        loop {
            let (mut connection, _) = kubelet.accept().await.unwrap();
            connections += 1;
            // Not TLS, and over.
            let _ = connection.shutdown().await;
        }
    };
    let answer = tokio::select! {
        answer = podgate.ask(&request) => answer,
        () = serve => unreachable!("it goes on"),
    };
    assert_eq!((answer.code, connections), (500, 1), "the code of who may, and all connections");
}

/// Service accounts that podgate is at kubelets: one with the rights that it needs there, one with none.
pub(crate) const TWO_VERBS: &str = "two-verbs";
pub(crate) const NO_VERBS: &str = "no-verbs";

/// At a kubelet that asks the API server who may, podgate gets along with `create` of `nodes/proxy`, and `get` for
/// WebSocket; with nothing it gets nowhere.
pub(crate) async fn two_verbs_are_enough_for_podgate(cluster: &Cluster, tokens: &Tokens) {
    let group = "rbac.authorization.k8s.io";
    let meta = cluster.global(TWO_VERBS);
    let rule = json!({ "apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["create", "get"] });
    let account = json!({ "kind": "ServiceAccount", "name": TWO_VERBS, "namespace": cluster.namespace });
    let role = json!({ "kind": "ClusterRole", "name": meta["name"], "apiGroup": group });
    let version = format!("{group}/v1");
    cluster
        .create(&json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": version, "kind": "ClusterRole", "metadata": meta, "rules": [rule] },
            { "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": meta, "subjects": [account],
                "roleRef": role },
        ] }))
        .await;
    let pod = format!("/api/v1/namespaces/{}/pods/echo", cluster.namespace);
    let exec = Request::get("", format!("{pod}/exec?command=true&stdout=1"));
    let asked = [exec.clone().spdy(), exec.websocket("v4.channel.k8s.io")];
    for (account, code) in [(NO_VERBS, 403), (TWO_VERBS, 101)] {
        let kubelet = json!({ "tokenFile": cluster.token_file(account).await });
        let (podgate, [api, admin]) = Podgate::serve(&cluster.config("kubelet", &kubelet.to_string())).await;
        ready(admin).await;
        let server = Server::new(&api.to_string(), &cluster.authority.certificate());
        for request in &asked {
            let answer = server.ask(&request.bytes(tokens)).await;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.code, code, "{account}: {body}");
            assert!(code == 101 || body.contains("resource=nodes, subresource"), "{body}");
        }
        podgate.stop(false).await;
    }
}
