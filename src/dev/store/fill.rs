//! Fill: what a manifest leaves out and a running cluster would have written.
//!
//! What the manifest does say is never changed, so that a dump of real objects shows as it was. Three things
//! are the store's own: the resource version, the rules of aggregated ClusterRoles, and where nodes are. A node
//! that is up is told its endpoint; one that is not must be found down by a gateway that dials it, and on this
//! machine: the address in a dump is of somebody's cluster.
//! Source: kubelet `pkg/kubelet/{kubelet_pods,kubelet_node_status}.go`; defaults of
//! `pkg/apis/core/v1/defaults.go`; `pkg/apis/core/v1/helper/qos`; `pkg/controller/clusterroleaggregation`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, DaemonEndpoint, HostIP, Namespace, NamespaceStatus, Node, NodeAddress, NodeCondition,
    NodeDaemonEndpoints, NodeSystemInfo, Pod, PodCondition, PodIP, PodSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use uuid::Uuid;

use super::super::rbac;
use super::{Kind, Object, Objects, is_up};

/// Where everything in the embedded cluster is.
const LOOPBACK: &str = "127.0.0.1";

/// The kubelet port of a node that is not up: tcpmux, where nothing listens, so that it refuses connections.
const DOWN_PORT: i32 = 1;

pub(super) fn complete(given: Vec<Object>) -> Objects {
    let now = Time(Timestamp::now());
    let up: BTreeSet<String> = given
        .iter()
        .filter_map(|object| match object {
            Object::Node(node) if is_up(node) => node.metadata.name.clone(),
            _ => None,
        })
        .collect();
    let mut objects = Objects::from_now();
    for mut object in given {
        let meta = object.meta_mut();
        meta.uid.get_or_insert_with(|| Uuid::new_v4().to_string());
        let since = meta.creation_timestamp.get_or_insert_with(|| now.clone()).clone();
        match &mut object {
            Object::Namespace(namespace) => fill_namespace(Arc::make_mut(namespace)),
            Object::Node(node) => fill_node(Arc::make_mut(node), &since),
            Object::Pod(pod) => fill_pod(Arc::make_mut(pod), &since, &up),
            Object::ClusterRole(_)
            | Object::ClusterRoleBinding(_)
            | Object::Role(_)
            | Object::RoleBinding(_) => fill_rbac(&mut object),
        }
        objects.insert(object);
    }
    let roles: Vec<_> = objects
        .list(Kind::ClusterRole, None)
        .filter_map(|object| match object {
            Object::ClusterRole(role) => Some(role.clone()),
            _ => None,
        })
        .collect();
    for role in rbac::aggregate(roles) {
        objects.insert(Object::ClusterRole(role));
    }
    objects
}

fn fill_namespace(namespace: &mut Namespace) {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    namespace
        .metadata
        .labels
        .get_or_insert_default()
        .entry("kubernetes.io/metadata.name".into())
        .or_insert(name);
    let status = namespace.status.get_or_insert_with(NamespaceStatus::default);
    status.phase.get_or_insert_with(|| "Active".into());
}

/// The apiGroup of references, as upstream's defaulting.
fn fill_rbac(object: &mut Object) {
    let (role_ref, subjects) = match object {
        Object::ClusterRoleBinding(binding) => {
            let binding = Arc::make_mut(binding);
            (&mut binding.role_ref, &mut binding.subjects)
        }
        Object::RoleBinding(binding) => {
            let binding = Arc::make_mut(binding);
            (&mut binding.role_ref, &mut binding.subjects)
        }
        _ => return,
    };
    role_ref.api_group.get_or_insert_with(|| super::RBAC_GROUP.into());
    for subject in subjects.iter_mut().flatten() {
        if subject.kind != "ServiceAccount" {
            subject.api_group.get_or_insert_with(|| super::RBAC_GROUP.into());
        }
    }
}

fn fill_node(node: &mut Node, since: &Time) {
    let up = is_up(node);
    let name = node.metadata.name.clone().unwrap_or_default();
    node.metadata.labels.get_or_insert_default().entry("kubernetes.io/hostname".into()).or_insert(name);
    node.spec.get_or_insert_default();
    let status = node.status.get_or_insert_default();
    let here = || vec![NodeAddress { address: LOOPBACK.into(), type_: "InternalIP".into() }];
    if up {
        status.addresses.get_or_insert_with(here);
    } else {
        status.addresses = Some(here());
        status.daemon_endpoints =
            Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: DOWN_PORT }) });
    }
    let conditions = status.conditions.get_or_insert_default();
    if !conditions.iter().any(|condition| condition.type_ == "Ready") {
        conditions.push(NodeCondition {
            type_: "Ready".into(),
            status: "True".into(),
            reason: Some("KubeletReady".into()),
            message: Some("the node endpoint of podgate dev is up".into()),
            ..NodeCondition::default()
        });
    }
    for condition in conditions {
        condition.last_transition_time.get_or_insert_with(|| since.clone());
        condition.last_heartbeat_time.get_or_insert_with(|| since.clone());
    }
    let capacity = status.capacity.get_or_insert_with(capacity).clone();
    status.allocatable.get_or_insert(capacity);
    status.node_info.get_or_insert_with(|| NodeSystemInfo {
        architecture: go_arch().into(),
        operating_system: std::env::consts::OS.into(),
        os_image: "podgate dev".into(),
        kernel_version: kernel(),
        kubelet_version: concat!("v", env!("CARGO_PKG_VERSION"), "+podgate-dev").into(),
        container_runtime_version: concat!("podgate://", env!("CARGO_PKG_VERSION")).into(),
        ..NodeSystemInfo::default()
    });
}

/// The machine's name for Go programs, which is what Kubernetes shows.
pub(in crate::dev) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// This machine's, as every node is on it; kubectl divides by these.
fn capacity() -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .unwrap_or("1048576");
    [("cpu", cpus.to_string()), ("memory", format!("{memory}Ki")), ("pods", "110".to_owned())]
        .map(|(name, quantity)| (name.to_owned(), Quantity(quantity)))
        .into()
}

/// The kernel's version; empty, which shows as unknown, where there is no such file.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

fn fill_pod(pod: &mut Pod, since: &Time, up: &BTreeSet<String>) {
    let Some(spec) = &mut pod.spec else { return };
    fill_spec(spec);
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty());
    let reachable = node.is_some_and(|node| up.contains(node));
    let status = pod.status.get_or_insert_default();
    let running = if node.is_some() { "Running" } else { "Pending" };
    let phase = status.phase.get_or_insert_with(|| running.into()).clone();
    status.qos_class.get_or_insert_with(|| qos(spec).into());
    let conditions = status.conditions.get_or_insert_default();
    let mut condition = |name: &str, value: bool, reason: Option<&str>, message: Option<&str>| {
        if !conditions.iter().any(|condition| condition.type_ == name) {
            conditions.push(PodCondition {
                type_: name.into(),
                status: if value { "True" } else { "False" }.into(),
                reason: reason.map(Into::into),
                message: message.map(Into::into),
                last_transition_time: Some(since.clone()),
                ..PodCondition::default()
            });
        }
    };
    if node.is_none() {
        let message = "the manifest names no node, and podgate dev has no scheduler";
        condition("PodScheduled", false, Some("Unschedulable"), Some(message));
        return;
    }
    let runs = phase == "Running";
    let ended = matches!(phase.as_str(), "Succeeded" | "Failed");
    let unready = match phase.as_str() {
        "Running" if reachable => None,
        "Running" => Some("NodeNotReady"),
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => Some("ContainersNotReady"),
    };
    condition("Initialized", runs || ended, None, None);
    condition("Ready", unready.is_none(), unready, None);
    condition("ContainersReady", runs, unready.filter(|_| !runs), None);
    condition("PodScheduled", true, None, None);
    status.start_time.get_or_insert_with(|| since.clone());
    status.host_ip.get_or_insert_with(|| LOOPBACK.into());
    status.host_ips.get_or_insert_with(|| vec![HostIP { ip: LOOPBACK.into() }]);
    if runs {
        let ip = status.pod_ip.get_or_insert_with(|| LOOPBACK.into()).clone();
        status.pod_ips.get_or_insert_with(|| vec![PodIP { ip }]);
    }
    let state = match phase.as_str() {
        "Running" => State::Running,
        "Succeeded" => State::Ended(0),
        "Failed" => State::Ended(1),
        _ => State::Waiting,
    };
    let regular = &spec.containers;
    status.container_statuses.get_or_insert_with(|| {
        let status = |container: &Container| state.of(&container.name, container.image.as_deref(), since);
        regular.iter().map(status).collect()
    });
    if let Some(init) = &spec.init_containers {
        status.init_container_statuses.get_or_insert_with(|| {
            let status = |container: &Container| {
                let sidecar = container.restart_policy.as_deref() == Some("Always");
                let state = if sidecar || !(runs || ended) { state } else { State::Ended(0) };
                let mut status = state.of(&container.name, container.image.as_deref(), since);
                // A finished init container counts as ready; it is not started any more.
                status.ready |= runs;
                status
            };
            init.iter().map(status).collect()
        });
    }
    if let Some(ephemeral) = &spec.ephemeral_containers {
        status.ephemeral_container_statuses.get_or_insert_with(|| {
            ephemeral
                .iter()
                .map(|container| {
                    let mut status = state.of(&container.name, container.image.as_deref(), since);
                    // The kubelet reports neither for ephemeral containers.
                    status.ready = false;
                    status.started = None;
                    status
                })
                .collect()
        });
    }
}

fn fill_spec(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    let account = spec.service_account_name.get_or_insert_with(|| "default".into()).clone();
    spec.service_account.get_or_insert(account);
    spec.termination_grace_period_seconds.get_or_insert(30);
}

#[derive(Clone, Copy)]
enum State {
    Waiting,
    Running,
    Ended(i32),
}

impl State {
    fn of(self, name: &str, image: Option<&str>, since: &Time) -> ContainerStatus {
        let id = format!("podgate://{}", Uuid::new_v4().simple());
        let mut state = ContainerState::default();
        match self {
            Self::Waiting => {
                state.waiting =
                    Some(ContainerStateWaiting { reason: Some("ContainerCreating".into()), message: None });
            }
            Self::Running => {
                state.running = Some(ContainerStateRunning { started_at: Some(since.clone()) });
            }
            Self::Ended(exit_code) => {
                state.terminated = Some(ContainerStateTerminated {
                    container_id: Some(id.clone()),
                    exit_code,
                    reason: Some(if exit_code == 0 { "Completed" } else { "Error" }.into()),
                    started_at: Some(since.clone()),
                    finished_at: Some(since.clone()),
                    ..ContainerStateTerminated::default()
                });
            }
        }
        let running = matches!(self, Self::Running);
        ContainerStatus {
            name: name.to_owned(),
            image: image.unwrap_or_default().to_owned(),
            container_id: Some(id).filter(|_| !matches!(self, Self::Waiting)),
            ready: running,
            started: Some(running),
            state: Some(state),
            ..ContainerStatus::default()
        }
    }
}

fn qos(spec: &PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let none = all().all(|container| {
        container.resources.as_ref().is_none_or(|resources| {
            let empty = |list: &Option<_>| match list {
                Some(list) => BTreeMap::is_empty(list),
                None => true,
            };
            empty(&resources.limits) && empty(&resources.requests)
        })
    });
    let whole = all().all(|container| {
        let Some(resources) = &container.resources else {
            return false;
        };
        ["cpu", "memory"].iter().all(|&resource| {
            let limit = resources.limits.as_ref().and_then(|limits| limits.get(resource));
            let request = resources.requests.as_ref().and_then(|requests| requests.get(resource));
            limit.is_some() && request.is_none_or(|request| Some(request) == limit)
        })
    });
    match (none, whole) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}
