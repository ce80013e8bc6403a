use super::*;
use crate::dev::manifests;
use crate::serving::history::Gone;

fn store() -> Arc<Store> {
    Store::new(manifests::builtin().unwrap().objects)
}

#[test]
fn pods_and_nodes_look_as_a_running_cluster_would_have_written_them() {
    let store = store();
    let phase = |name: &str| {
        let pod = store.pod("default", name).unwrap();
        let status = pod.status.clone().unwrap();
        let ready = status
            .conditions
            .unwrap()
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        (status.phase.unwrap(), ready, status.container_statuses.map_or(0, |all| all.len()))
    };
    assert_eq!(phase("web"), ("Running".into(), true, 1));
    assert_eq!(phase("multi"), ("Running".into(), true, 2));
    assert_eq!(phase("unscheduled"), ("Pending".into(), false, 0));
    assert_eq!(phase("on-down-node"), ("Running".into(), false, 1));
    assert_eq!(phase("on-missing-node"), ("Running".into(), false, 1));
    let multi = store.pod("default", "multi").unwrap().status.clone().unwrap();
    let init = multi.init_container_statuses.unwrap().remove(0).state.unwrap();
    assert_eq!(init.terminated.unwrap().reason.unwrap(), "Completed");
    let ephemeral = multi.ephemeral_container_statuses.unwrap().remove(0);
    assert!(ephemeral.state.unwrap().running.is_some());
    let up: Vec<_> =
        store.nodes().iter().map(|node| (node.metadata.name.clone().unwrap(), is_up(node))).collect();
    let expected =
        [("node-a", true), ("node-b", true), ("node-down", false), ("node-spdy", true), ("node-v5", true)];
    assert_eq!(up, expected.map(|(name, up)| (name.to_owned(), up)));
    for object in Kind::ALL.iter().flat_map(|kind| {
        let objects = store.snapshot();
        objects.list(*kind, None).cloned().collect::<Vec<_>>()
    }) {
        let meta = object.meta();
        assert!(meta.uid.is_some() && meta.creation_timestamp.is_some() && meta.resource_version.is_some());
    }
}

#[test]
fn what_a_manifest_says_stays() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, uid: u}\nspec: {nodeName: n, containers: [{name: a}]}\n\
                status: {phase: Succeeded, podIP: 10.0.0.1}\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.yaml"), text).unwrap();
    let store = Store::new(manifests::folder(folder.path()).unwrap().objects);
    let pod = store.pod("default", "p").unwrap();
    let status = pod.status.clone().unwrap();
    assert_eq!(pod.metadata.uid.as_deref(), Some("u"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
    let container = status.container_statuses.unwrap().remove(0);
    assert_eq!(container.state.unwrap().terminated.unwrap().exit_code, 0);
    assert!(!container.ready);
}

#[test]
fn a_node_that_is_not_up_keeps_no_address_beyond_this_machine() {
    let text = |name: &str, ready: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses: \
             [{{type: Hostname, address: prod-1.example}}, {{type: ExternalIP, address: 192.0.2.7}}]\n  \
             daemonEndpoints: {{kubeletEndpoint: {{Port: 10250}}}}\n  \
             conditions: [{{type: Ready, status: {ready}}}]\n---\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let nodes = [text("down", "\"False\""), text("lost", "Unknown")].concat();
    std::fs::write(folder.path().join("nodes.yaml"), nodes).unwrap();
    let store = Store::new(manifests::folder(folder.path()).unwrap().objects);
    for name in ["down", "lost"] {
        let here = vec![("InternalIP".to_owned(), "127.0.0.1".to_owned())];
        let node = slim_node(&store.node(name).unwrap());
        assert_eq!(node, cluster::Node { addresses: here, kubelet_port: 1, ..Default::default() }, "{name}");
    }
}

#[tokio::test]
async fn positions_of_another_process_are_never_in_the_history() {
    let (earlier, store) = (store(), store());
    for _ in 0..3 {
        earlier.set_node_endpoint("node-a", "127.0.0.1:1".parse().unwrap()).unwrap();
    }
    let (seen, oldest) = (earlier.snapshot().version(), store.snapshot().version());
    assert_eq!(store.changes(seen).next().await.unwrap_err(), Gone::Old { seen, oldest });
    // As after the clock was set back.
    let (seen, current) = (oldest, earlier.snapshot().version());
    assert_eq!(earlier.changes(seen).next().await.unwrap_err(), Gone::Ahead { seen, current });
    assert!(oldest < 1 << 53);
}

#[test]
fn slim_views_keep_the_order_of_containers_and_say_0_for_no_port() {
    let store = store();
    let multi = slim_pod(&store.pod("default", "multi").unwrap());
    assert_eq!(multi.init_containers, ["init-db"]);
    assert_eq!(multi.containers, ["app", "sidecar"]);
    assert_eq!(multi.ephemeral_containers, ["debugger"]);
    assert_eq!(multi.node.as_deref(), Some("node-b"));
    assert_eq!(slim_pod(&store.pod("default", "unscheduled").unwrap()).node, None);
    let node = |name: &str| slim_node(&store.node(name).unwrap());
    assert_eq!(node("node-a").kubelet_port, 0);
    assert_eq!(node("node-down").kubelet_port, 1);
}

#[tokio::test]
async fn binding_an_endpoint_changes_the_node_and_wakes_watchers() {
    let store = store();
    let start = store.snapshot().version();
    let mut changes = store.changes(start);
    let bind = async {
        tokio::task::yield_now().await;
        store.set_node_endpoint("node-a", "127.0.0.1:4711".parse().unwrap()).unwrap();
    };
    let (change, ()) = tokio::join!(changes.next(), bind);
    let (version, change) = change.unwrap();
    assert_eq!((version, change.after.name()), (start + 1, "node-a"));
    assert_eq!(change.before.meta().uid, change.after.meta().uid);
    assert_eq!(
        slim_node(&store.node("node-a").unwrap()),
        cluster::Node {
            addresses: vec![("InternalIP".into(), "127.0.0.1".into())],
            kubelet_port: 4711,
            ..Default::default()
        }
    );
    let missing = store.set_node_endpoint("node-z", "127.0.0.1:1".parse().unwrap());
    assert_eq!(missing.unwrap_err().to_string(), "no node is named node-z");
}

#[test]
fn a_feature_of_a_node_is_declared_and_taken_back_and_others_stay() {
    let store = store();
    let declared = || slim_node(&store.node("node-a").unwrap()).declared_features;
    store.set_node_features("node-a", &["Other"], &["Other"]).unwrap();
    store.set_node_features("node-a", &["It"], &["It"]).unwrap();
    assert_eq!(declared(), ["It", "Other"]);
    let version = store.snapshot().version();
    store.set_node_features("node-a", &["It"], &["It"]).unwrap();
    assert_eq!(store.snapshot().version(), version, "nothing has changed");
    store.set_node_features("node-a", &["It"], &[]).unwrap();
    assert_eq!(declared(), ["Other"]);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told_so() {
    let store = store();
    let start = store.snapshot().version();
    let mut changes = store.changes(start);
    let mut from_the_start = store.changes(0);
    assert_eq!(
        from_the_start.next().await.unwrap_err().to_string(),
        format!("too old resource version: 0 ({start})")
    );
    for _ in 0..HISTORY {
        store.set_node_endpoint("node-b", "127.0.0.1:1".parse().unwrap()).unwrap();
    }
    assert_eq!(changes.next().await.unwrap().0, start + 1, "just kept");
    let mut late = store.changes(start);
    store.set_node_endpoint("node-b", "127.0.0.1:1".parse().unwrap()).unwrap();
    assert_eq!(late.next().await.unwrap_err(), Gone::Old { seen: start, oldest: start + 1 });
    assert_eq!(changes.next().await.unwrap().0, start + 2);
}

#[test]
fn a_container_that_ends_makes_its_pod_unready_and_ended() {
    let store = store();
    let version = store.snapshot().version();
    let image = |store: &Store| {
        store
            .pod("default", "web")
            .unwrap()
            .status
            .clone()
            .unwrap()
            .container_statuses
            .unwrap()
            .remove(0)
            .image
    };
    let before = image(&store);
    let ended = |exit_code| ContainerStatus {
        name: "web".into(),
        state: Some(k8s_openapi::api::core::v1::ContainerState {
            terminated: Some(k8s_openapi::api::core::v1::ContainerStateTerminated {
                exit_code,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..ContainerStatus::default()
    };
    for (code, phase, reason) in [(0, "Succeeded", "PodCompleted"), (3, "Failed", "PodCompleted")] {
        store.set_container_status("default", "web", ended(code));
        let status = store.pod("default", "web").unwrap().status.clone().unwrap();
        assert_eq!(status.phase.as_deref(), Some(phase));
        let ready =
            status.conditions.unwrap().into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some(reason)));
    }
    assert_eq!(image(&store), before);
    assert_eq!(store.snapshot().version(), version + 2);
    store.set_container_status("default", "nope", ended(0));
    assert_eq!(store.snapshot().version(), version + 2);
}
