//! Tables: the columns and cells kubectl prints.
//!
//! Source: kubernetes `pkg/printers/internalversion/printers.go`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Node, Pod};
use k8s_openapi::api::rbac::v1::{RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::Value;

use super::fields;
use crate::dev::store::{Kind, Object};
use crate::serving;
use crate::serving::table::{Column, Condition, age, since};

const NAME: Column = Column::NAME;
const AGE: Column = column("Age", 0, "Time since the object was created.");
const CREATED_AT: Column = Column { kind: "date", ..column("Created At", 0, "When the object was created.") };
const ROLE: Column = column("Role", 0, "The role this binding refers to.");
const USERS: Column = column("Users", 1, "Users in the binding.");
const GROUPS: Column = column("Groups", 1, "Groups in the binding.");
const ACCOUNTS: Column = column("ServiceAccounts", 1, "Service accounts in the binding.");

static PODS: [Column; 9] = [
    NAME,
    column("Ready", 0, "How many of the pod's containers are ready."),
    column("Status", 0, "The containers' states in one word."),
    column("Restarts", 0, "How often containers were restarted, and when last."),
    AGE,
    column("IP", 1, "Address of the pod."),
    column("Node", 1, "The node the pod is bound to."),
    column("Nominated Node", 1, "The node the pod may get once others have left it."),
    column("Readiness Gates", 1, "How many of the pod's readiness gates are true."),
];
static NODES: [Column; 10] = [
    NAME,
    column("Status", 0, "Whether the node is ready."),
    column("Roles", 0, "The roles of the node."),
    AGE,
    column("Version", 0, "Version of the kubelet."),
    column("Internal-IP", 1, "Address inside the cluster."),
    column("External-IP", 1, "Address outside the cluster."),
    column("OS-Image", 1, "Operating system."),
    column("Kernel-Version", 1, "Version of the kernel."),
    column("Container-Runtime", 1, "What runs the containers."),
];
static NAMESPACES: [Column; 3] = [NAME, column("Status", 0, "The phase of the namespace."), AGE];
static ROLES: [Column; 2] = [NAME, CREATED_AT];
static BINDINGS: [Column; 6] = [NAME, ROLE, AGE, USERS, GROUPS, ACCOUNTS];

const fn column(name: &'static str, priority: i32, description: &'static str) -> Column {
    Column::text(name, priority, description)
}

/// The columns of a kind.
pub(super) fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Namespace => &NAMESPACES,
        Kind::Node => &NODES,
        Kind::Pod => &PODS,
        Kind::ClusterRole | Kind::Role => &ROLES,
        Kind::ClusterRoleBinding | Kind::RoleBinding => &BINDINGS,
    }
}

impl serving::Object for Object {
    fn meta(&self) -> &ObjectMeta {
        Self::meta(self)
    }

    fn field(&self, label: &str) -> String {
        fields::value(self, label)
    }

    fn row(&self, now: Timestamp) -> (Vec<Value>, Vec<Condition>) {
        let (cells, conditions) = cells(self, now);
        (cells.into_iter().map(Value::from).collect(), conditions)
    }
}

fn cells(object: &Object, now: Timestamp) -> (Vec<String>, Vec<Condition>) {
    let created = object.meta().creation_timestamp.as_ref();
    let mut cells = vec![object.name().to_owned()];
    let mut conditions = Vec::new();
    match object {
        Object::Namespace(namespace) => {
            cells.push(phase(namespace));
            cells.push(age(created, now));
        }
        Object::Node(node) => cells.extend(node_cells(node, age(created, now))),
        Object::Pod(pod) => {
            cells.extend(pod_cells(pod, age(created, now), now));
            let (reason, message) = match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
                Some("Succeeded") => ("Succeeded", "The pod has completed successfully."),
                Some("Failed") => ("Failed", "The pod failed."),
                _ => ("", ""),
            };
            if !reason.is_empty() {
                conditions.push(Condition { kind: "Completed", status: "True", reason, message });
            }
        }
        Object::ClusterRole(_) | Object::Role(_) => {
            let text = |time: &Time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            cells.push(created.map_or_else(String::new, text));
        }
        Object::ClusterRoleBinding(binding) => {
            let subjects = binding.subjects.as_deref().unwrap_or_default();
            cells.extend(binding_cells(&binding.role_ref, subjects, age(created, now)));
        }
        Object::RoleBinding(binding) => {
            let subjects = binding.subjects.as_deref().unwrap_or_default();
            cells.extend(binding_cells(&binding.role_ref, subjects, age(created, now)));
        }
    }
    (cells, conditions)
}

fn phase(namespace: &Namespace) -> String {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.clone());
    phase.unwrap_or_default()
}

fn binding_cells(role_ref: &RoleRef, subjects: &[Subject], age: String) -> [String; 5] {
    let of = |kind: &str| {
        let names: Vec<String> = subjects
            .iter()
            .filter(|subject| subject.kind == kind)
            .map(|subject| match kind {
                "ServiceAccount" => {
                    format!("{}/{}", subject.namespace.as_deref().unwrap_or(""), subject.name)
                }
                _ => subject.name.clone(),
            })
            .collect();
        names.join(", ")
    };
    [format!("{}/{}", role_ref.kind, role_ref.name), age, of("User"), of("Group"), of("ServiceAccount")]
}

fn node_cells(node: &Node, age: String) -> [String; 9] {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let mut state = match ready {
        Some(ready) if ready.status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        state += ",SchedulingDisabled";
    }
    let roles: BTreeSet<&str> = node
        .metadata
        .labels
        .iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => Some(value),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    let roles = roles.into_iter().collect::<Vec<_>>().join(",");
    let address = |kind: &str| {
        let found = status.addresses.iter().flatten().find(|address| address.type_ == kind);
        found.map_or("<none>".to_owned(), |address| address.address.clone())
    };
    let info = status.node_info.clone().unwrap_or_default();
    [
        state,
        or(roles, "<none>"),
        age,
        info.kubelet_version,
        address("InternalIP"),
        address("ExternalIP"),
        or(info.os_image, "<unknown>"),
        or(info.kernel_version, "<unknown>"),
        or(info.container_runtime_version, "<unknown>"),
    ]
}

fn or(text: String, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text }
}

/// Upstream's `printPod`.
fn pod_cells(pod: &Pod, age: String, now: Timestamp) -> [String; 8] {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_default();
    let conditions = status.conditions.clone().unwrap_or_default();
    let is_true =
        |name: &str| conditions.iter().any(|condition| condition.type_ == name && condition.status == "True");
    let mut reason = status.reason.clone().filter(|reason| !reason.is_empty()).unwrap_or(phase.clone());
    let gated = |gate: &str| {
        conditions
            .iter()
            .any(|condition| condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some(gate))
    };
    if gated("SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let sidecar = |name: &str| {
        inits.iter().any(|init| init.name == name && init.restart_policy.as_deref() == Some("Always"))
    };
    let total = spec.containers.len() + inits.iter().filter(|init| sidecar(&init.name)).count();
    let mut ready = 0;
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (index, init) in status.init_container_statuses.iter().flatten().enumerate() {
        restarts.add(init);
        if sidecar(&init.name) {
            sidecar_restarts.add(init);
        }
        let state = init.state.clone().unwrap_or_default();
        let waiting = state
            .waiting
            .and_then(|waiting| waiting.reason)
            .filter(|reason| !reason.is_empty() && reason != "PodInitializing");
        match (state.terminated, waiting) {
            (Some(ended), _) if ended.exit_code == 0 => continue,
            _ if sidecar(&init.name) && init.started == Some(true) => {
                ready += usize::from(init.ready);
                continue;
            }
            (Some(ended), _) => {
                let why = ended_reason(ended.reason, ended.signal, ended.exit_code);
                reason = format!("Init:{why}");
            }
            (None, Some(waiting)) => reason = format!("Init:{waiting}"),
            (None, None) => reason = format!("Init:{index}/{}", inits.len()),
        }
        initializing = true;
        break;
    }
    if !initializing || is_true("Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            restarts.add(container);
            let state = container.state.clone().unwrap_or_default();
            let waiting = state.waiting.and_then(|waiting| waiting.reason);
            if let Some(waiting) = waiting.filter(|reason| !reason.is_empty()) {
                reason = waiting;
            } else if let Some(ended) = state.terminated {
                reason = ended_reason(ended.reason, ended.signal, ended.exit_code);
            } else if container.ready && state.running.is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if is_true("Ready") { "Running" } else { "NotReady" }.into();
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if status.reason.as_deref() == Some("NodeLost") {
            reason = "Unknown".into();
        } else if !matches!(phase.as_str(), "Succeeded" | "Failed") {
            reason = "Terminating".into();
        }
    }
    let restarts = match &restarts.last {
        Some(last) if restarts.count != 0 => format!("{} ({} ago)", restarts.count, since(last.0, now)),
        _ => restarts.count.to_string(),
    };
    let gates = spec.readiness_gates.unwrap_or_default();
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let open = gates.iter().filter(|gate| is_true(&gate.condition_type)).count();
        format!("{open}/{}", gates.len())
    };
    let ip = status.pod_ips.unwrap_or_default().into_iter().next();
    [
        format!("{ready}/{total}"),
        reason,
        restarts,
        age,
        or(ip.map(|ip| ip.ip).unwrap_or_default(), "<none>"),
        or(spec.node_name.unwrap_or_default(), "<none>"),
        or(status.nominated_node_name.unwrap_or_default(), "<none>"),
        gates,
    ]
}

#[derive(Default)]
struct Restarts {
    count: i32,
    last: Option<Time>,
}

impl Restarts {
    fn add(&mut self, container: &ContainerStatus) {
        self.count = self.count.saturating_add(container.restart_count);
        let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if let Some(at) = ended.and_then(|ended| ended.finished_at.clone()) {
            self.last = self.last.take().max(Some(at));
        }
    }
}

fn ended_reason(reason: Option<String>, signal: Option<i32>, exit_code: i32) -> String {
    match (reason.filter(|reason| !reason.is_empty()), signal.unwrap_or(0)) {
        (Some(reason), _) => reason,
        (None, 0) => format!("ExitCode:{exit_code}"),
        (None, signal) => format!("Signal:{signal}"),
    }
}
