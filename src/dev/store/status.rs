//! Status: what changes in a pod when one of its containers starts, waits or ends.
//!
//! Source: kubelet `pkg/kubelet/kubelet_pods.go` (`getPhase`), `pkg/kubelet/status/generate.go`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Puts a container's state into its pod, and what follows from it: conditions, and the phase once all have
/// ended.
pub(super) fn merge(pod: &mut Pod, new: ContainerStatus) {
    let status = pod.status.get_or_insert_default();
    let all = status.container_statuses.get_or_insert_default();
    match all.iter_mut().find(|status| status.name == new.name) {
        Some(old) => {
            let (image, image_id) = (std::mem::take(&mut old.image), std::mem::take(&mut old.image_id));
            *old = ContainerStatus { image, image_id, ..new };
        }
        None => all.push(new),
    }
    let ready = all.iter().all(|container| container.ready);
    let ended = |container: &ContainerStatus| {
        let state = container.state.as_ref()?;
        state.terminated.as_ref().map(|terminated| terminated.exit_code)
    };
    let codes: Option<Vec<i32>> = all.iter().map(ended).collect();
    let mut reason = "ContainersNotReady";
    if let Some(codes) = codes {
        let failed = codes.iter().any(|code| *code != 0);
        status.phase = Some(if failed { "Failed" } else { "Succeeded" }.into());
        reason = if failed { "PodFailed" } else { "PodCompleted" };
    }
    for name in ["Ready", "ContainersReady"] {
        condition(status, name, ready, reason);
    }
}

fn condition(status: &mut PodStatus, name: &str, value: bool, reason: &str) {
    let value = if value { "True" } else { "False" };
    let found = status.conditions.iter_mut().flatten().find(|condition| condition.type_ == name);
    let Some(condition) = found.filter(|condition| condition.status != value) else {
        return;
    };
    value.clone_into(&mut condition.status);
    condition.reason = (value == "False").then(|| reason.to_owned());
    condition.message = None;
    condition.last_transition_time = Some(Time(Timestamp::now()));
}
