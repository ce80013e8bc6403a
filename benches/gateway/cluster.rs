//! What stands in the API server: one simulated node and pod, who may enter it, and what podgate may do.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use podgate::cluster::kube::connect::kubeconfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The node, its pod and the container of that: the first of those that are simulated.
pub(crate) const NODE: &str = "sim-node-0";
pub(crate) const POD: &str = "sim-0";
pub(crate) const CONTAINER: &str = "sim";

/// Who opens sessions.
pub(crate) const USER: &str = "bench-user";

/// Podgate's own name.
pub(crate) const GATEWAY: &str = "bench-podgate";

/// How often something is tried until the API server has made its own objects.
const TRIES: usize = 300;

const PAUSE: Duration = Duration::from_millis(200);

/// Makes all of it; `kubelet` is where the node listens.
pub(crate) async fn fill(admin: &Path, kubelet: SocketAddr) {
    let client = Client::try_from(kubeconfig(Some(admin), None).expect("a kubeconfig")).expect("a client");
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::namespaced(client.clone(), "default"));
    let (roles, bindings) = (Api::<ClusterRole>::all(client.clone()), Api::<ClusterRoleBinding>::all(client));

    create(&nodes, json!({ "metadata": { "name": NODE } })).await;
    status(
        &nodes,
        NODE,
        json!({
            "addresses": [{ "type": "InternalIP", "address": kubelet.ip().to_string() }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet.port() } },
            "conditions": [{ "type": "Ready", "status": "True" }],
        }),
    )
    .await;
    let container = json!({ "name": CONTAINER, "image": "podgate.dev/simulated:1" });
    create(
        &pods,
        json!({
            "metadata": { "name": POD, "namespace": "default" },
            "spec": { "nodeName": NODE, "containers": [container], "automountServiceAccountToken": false },
        }),
    )
    .await;
    let running = json!({
        "name": CONTAINER, "image": "podgate.dev/simulated:1", "imageID": "", "ready": true, "restartCount": 0,
        "containerID": "simulated://0", "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
    });
    status(&pods, POD, json!({ "phase": "Running", "containerStatuses": [running] })).await;

    let rules = [
        (USER, json!([{ "apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"] }])),
        (
            GATEWAY,
            json!([
                { "apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"] },
                { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
                { "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"] },
            ]),
        ),
    ];
    for (name, rules) in rules {
        create(&roles, json!({ "metadata": { "name": name }, "rules": rules })).await;
        let group = "rbac.authorization.k8s.io";
        create(
            &bindings,
            json!({
                "metadata": { "name": name },
                "subjects": [{ "apiGroup": group, "kind": "User", "name": name }],
                "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": name },
            }),
        )
        .await;
    }
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).expect("an object");
    let mut last = None;
    for _ in 0..TRIES {
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("create an object: {last:?}");
}

async fn status<K>(api: &Api<K>, name: &str, status: Value)
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(name, &PatchParams::default(), &patch).await.expect("tell a status");
}
