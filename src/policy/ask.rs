//! Ask: how somebody is told to ask for what a rule wants. Whoever reads it has a kubectl and a shell, and no manual.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Asked;
use super::document::API_VERSION;

/// Labels that tell pods of the same kind apart, or one rollout from the next: a grant is to survive both.
const PASSING: [&str; 6] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// How to say what for.
pub(super) fn reason(message: &str) -> String {
    let how = "a reason is needed: give it as ?reason=..., in the header Podgate-Reason, or with a grant";
    join(message, how)
}

/// How to ask for a grant: the command, whole, on one line.
pub(super) fn grant(asked: &Asked<'_>, message: &str) -> String {
    let person = asked.impersonator.unwrap_or(asked.user);
    let labels: BTreeMap<_, _> =
        asked.pod.labels.iter().filter(|(key, _)| !PASSING.contains(&key.as_str())).collect();
    let mut selector = json!({ "subresources": [asked.exec.subresource.as_str()] });
    if !labels.is_empty() {
        selector["podLabels"] = json!({ "matchLabels": labels });
    }
    if !asked.container.is_empty() {
        selector["containers"] = json!([asked.container]);
    }
    let grant: Value = json!({
        "apiVersion": API_VERSION,
        "kind": "Grant",
        "metadata": { "generateName": "access-", "namespace": asked.exec.namespace },
        "spec": {
            "subject": { "user": person.name },
            "selector": selector,
            "reason": asked.reason.unwrap_or("say here what for"),
            "duration": "1h",
        },
    });
    let how = format!(
        "it takes a grant that somebody else has approved; ask for one with: kubectl create -f - <<< {}",
        quoted(&grant.to_string())
    );
    join(message, &how)
}

fn join(message: &str, how: &str) -> String {
    if message.is_empty() { how.to_owned() } else { format!("{message}; {how}") }
}

/// One word for a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_what_is_quoted_for_one_word() {
        for text in ["{}", "it's", "'; rm -rf / #", "$(id) `id` \\ \" !x"] {
            let out = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), text);
        }
    }
}
