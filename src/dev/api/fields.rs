//! Fields that objects can be selected by.
//!
//! Source: `pkg/apis/core/v1/conversion.go` and apimachinery `pkg/runtime/conversion.go`.

use crate::dev::store::{Kind, Object};
use crate::status::go_quote;

/// What is wrong with a selector of this field, in upstream's words.
pub(super) fn unknown(kind: Kind, label: &str) -> Option<String> {
    (!known(kind, label)).then(|| match kind.group() {
        "" => format!("field label not supported: {label}"),
        _ => format!(
            "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            go_quote(label.as_bytes())
        ),
    })
}

fn known(kind: Kind, label: &str) -> bool {
    match kind {
        _ if label == "metadata.name" => true,
        Kind::Namespace => label == "status.phase",
        Kind::Node => label == "spec.unschedulable",
        Kind::Pod => matches!(
            label,
            "metadata.namespace"
                | "spec.nodeName"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.serviceAccountName"
                | "spec.hostNetwork"
                | "status.phase"
                | "status.podIP"
                | "status.nominatedNodeName"
        ),
        Kind::ClusterRole | Kind::ClusterRoleBinding | Kind::Role | Kind::RoleBinding => {
            label == "metadata.namespace"
        }
    }
}

/// The value of a field that is known, besides those of the metadata.
pub(super) fn value(object: &Object, label: &str) -> String {
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    match object {
        Object::Namespace(namespace) if label == "status.phase" => {
            text(namespace.status.as_ref().and_then(|status| status.phase.as_ref()))
        }
        Object::Node(node) if label == "spec.unschedulable" => {
            let spec = node.spec.as_ref();
            spec.and_then(|spec| spec.unschedulable).unwrap_or(false).to_string()
        }
        Object::Pod(pod) => {
            let spec = pod.spec.as_ref();
            let status = pod.status.as_ref();
            match label {
                "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
                "spec.restartPolicy" => text(spec.and_then(|spec| spec.restart_policy.as_ref())),
                "spec.schedulerName" => text(spec.and_then(|spec| spec.scheduler_name.as_ref())),
                "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
                "spec.hostNetwork" => spec.and_then(|spec| spec.host_network).unwrap_or(false).to_string(),
                "status.phase" => text(status.and_then(|status| status.phase.as_ref())),
                "status.podIP" => text(status.and_then(|status| status.pod_ip.as_ref())),
                "status.nominatedNodeName" => {
                    text(status.and_then(|status| status.nominated_node_name.as_ref()))
                }
                _ => String::new(),
            }
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use crate::serving::Select;

    #[test]
    fn an_unknown_field_label_is_refused_in_the_api_servers_words() {
        for (kind, text, message) in [
            (Kind::Pod, "spec.foo=x", "field label not supported: spec.foo"),
            (Kind::Node, "status.phase=x", "field label not supported: status.phase"),
            (
                Kind::Role,
                "rules=x",
                "\"rules\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
            (Kind::Pod, "nonsense", "invalid selector: 'nonsense'; can't understand 'nonsense'"),
        ] {
            let query = Query::parse(&format!("fieldSelector={}", text.replace('=', "%3D")));
            let refused = Select::of(&query, |label| unknown(kind, label)).unwrap_err();
            assert_eq!(refused.message(), message);
        }
    }
}
