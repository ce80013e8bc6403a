//! What podgate itself asks of the API server, by its audit log, beside what docs/rbac.yaml allows.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// A verb of a resource in a group, such as `list execpolicies.podgate.dev`.
type Right = String;

/// What podgate has asked for by the end of a run.
pub(crate) struct Used {
    rights: BTreeSet<Right>,
    forbidden: BTreeSet<Right>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

// === impl Used ===

impl Used {
    /// What this user has asked for as nobody else.
    pub(crate) fn read(log: &Path, user: &str) -> Self {
        let text = std::fs::read_to_string(log).unwrap();
        let events = text.lines().filter(|line| line.contains(user));
        let events = events.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own =
            events.filter(|event| event["user"]["username"] == user && event["impersonatedUser"].is_null());
        let (mut rights, mut forbidden) = (BTreeSet::new(), BTreeSet::new());
        for event in own {
            let (about, verb) = (&event["objectRef"], event["verb"].as_str().unwrap());
            let text = |key: &str| about[key].as_str().unwrap_or_default();
            let resource = match text("subresource") {
                "" => text("resource").to_owned(),
                below => format!("{}/{below}", text("resource")),
            };
            let right = right(verb, &resource, text("apiGroup"));
            if event["responseStatus"]["code"] == 403 {
                forbidden.insert(format!("{right}: {}", event["requestURI"]));
            }
            rights.insert(right);
        }
        Self { rights, forbidden }
    }

    pub(crate) fn none_was_missing(&self) {
        assert!(!self.rights.is_empty(), "podgate has asked for nothing");
        assert!(self.forbidden.is_empty(), "{:?}", self.forbidden);
    }

    /// The audit log does not tell whom podgate could act as, nor what kubelets ask about it: without these rights no other
    /// cell would have worked.
    pub(crate) fn none_is_idle(&self, rbac: &str) {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            rules: Vec<Rule>,
        }
        let documents = rbac.split("\n---\n").map(|text| serde_saphyr::from_str::<Document>(text).unwrap());
        let mut idle = BTreeSet::new();
        for Rule { api_groups, resources, verbs } in documents.flat_map(|document| document.rules) {
            for verb in verbs.iter().filter(|verb| *verb != "impersonate") {
                for resource in resources.iter().filter(|resource| *resource != "nodes/proxy") {
                    idle.extend(api_groups.iter().map(|group| right(verb, resource, group)));
                }
            }
        }
        idle.retain(|right| !self.rights.contains(right));
        assert!(idle.is_empty(), "never used: {idle:?}");
    }
}

fn right(verb: &str, resource: &str, group: &str) -> Right {
    format!("{verb} {resource}.{group}")
}
