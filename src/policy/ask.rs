//! Ask: how somebody is told to ask for what a rule wants. Whoever reads it has a kubectl and a shell, and no manual.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Asked;
use super::document::API_VERSION;
use crate::config::duration::spelled;

/// How long a grant is asked for, where it may last so long.
const LENGTH: Duration = Duration::from_secs(3600);

/// Labels that tell pods of the same kind apart, or one rollout from the next: a grant is to survive both.
const PASSING: [&str; 6] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// How to say what for; with a grant, where one may last so long, since kubectl can add nothing to a request.
pub(super) fn reason(asked: &Asked<'_>, message: &str, longest: Option<Duration>) -> String {
    let how = "a reason is needed: give it as ?reason=..., in the header Podgate-Reason, or with a grant";
    let kubectl = longest.map(|longest| {
        let command = command(asked, longest);
        format!("; with kubectl, ask for a grant that says it, which somebody else approves: {command}")
    });
    join(message, &format!("{how}{}", kubectl.unwrap_or_default()))
}

/// How to ask for a grant that may last so long.
pub(super) fn grant(asked: &Asked<'_>, message: &str, longest: Option<Duration>) -> String {
    const WANTED: &str = "it takes a grant that somebody else has approved";
    let how = match longest {
        Some(longest) => format!("{WANTED}; ask for one with: {}", command(asked, longest)),
        None => format!("{WANTED}, and podgate has been given no place to keep grants in"),
    };
    join(message, &how)
}

/// The command that asks for one, whole, on one line.
fn command(asked: &Asked<'_>, longest: Duration) -> String {
    let person = asked.impersonator.unwrap_or(asked.user);
    let labels: BTreeMap<_, _> =
        asked.pod.labels.iter().filter(|(key, _)| !PASSING.contains(&key.as_str())).collect();
    let mut selector = json!({ "subresources": [asked.exec.subresource.as_str()] });
    if !labels.is_empty() {
        selector["podLabels"] = json!({ "matchLabels": labels });
    }
    if !asked.container.is_empty() {
        selector["containers"] = json!([asked.container]);
    } else if labels.is_empty() {
        // A port-forward to a pod that nothing tells from others.
        selector["everything"] = true.into();
    }
    let grant: Value = json!({
        "apiVersion": API_VERSION,
        "kind": "Grant",
        "metadata": { "generateName": "access-", "namespace": asked.exec.namespace },
        "spec": {
            "subject": { "user": person.name },
            "selector": selector,
            "reason": asked.reason.unwrap_or("say here what for"),
            "duration": spelled(longest.min(LENGTH)),
        },
    });
    // Shells differ in here-strings, and in what they make of a backslash in `echo`.
    format!("printf %s {} | kubectl create -f -", quoted(&grant.to_string()))
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
