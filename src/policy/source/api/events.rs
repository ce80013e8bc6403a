//! Events: what is wrong with a policy, told where `kubectl describe` of it shows it.
//!
//! Best effort, beside the log, in a task of its own: rules never wait for it. The same is told once.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use crate::cluster::kube::collection::Collection;
use crate::drain::Drain;
use crate::policy::document::{API_VERSION, KIND};
use crate::telemetry::chain;

/// Where the events of objects are that are in no namespace.
/// Source: apiserver `pkg/apis/core/validation/events.go`.
pub const PATH: &str = "/api/v1/namespaces/default/events";

/// In log and metrics.
pub const NAME: &str = "events";

/// Policies that are told of at once; more of them come of the same mistake, mostly.
const MOST: usize = 20;

/// Bytes of a message that an API server takes.
/// Source: apiserver `pkg/apis/core/validation/events.go` (`NoteLengthLimit`).
const MESSAGE: usize = 1024;

/// A policy for whose sake a set is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refused {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) why: String,
}

/// Tells of the policies that are refused now, in a task of `background`; none are, once there is a good set.
pub(super) fn start(events: Collection, background: &Drain) -> watch::Sender<Vec<Refused>> {
    let (refused, mut wrong) = watch::channel(Vec::<Refused>::new());
    let drain = background.clone();
    background.spawn(async move {
        let mut told = BTreeMap::new();
        loop {
            tokio::select! {
                biased;
                () = drain.stopping() => return,
                changed = wrong.changed() => if changed.is_err() { return },
            }
            let now = wrong.borrow_and_update().clone();
            let as_it_is = |uid: &String, why: &mut String| {
                now.iter().any(|refused| refused.uid == *uid && refused.why == *why)
            };
            told.retain(as_it_is);
            for refused in now.into_iter().take(MOST) {
                if told.contains_key(&refused.uid) {
                    continue;
                }
                let event = event(&refused);
                let created = tokio::select! {
                    biased;
                    () = drain.stopping() => return,
                    created = events.create(&event) => created,
                };
                if let Err(error) = created {
                    // The next change of any policy tells it again.
                    warn!(
                        policy = refused.name,
                        error = chain(&error),
                        "no event tells what is wrong with it"
                    );
                    break;
                }
                told.insert(refused.uid, refused.why);
            }
        }
    });
    refused
}

fn event(Refused { name, uid, why }: &Refused) -> Value {
    let mut message = format!("all policies are refused for its sake, the last good ones stay: {why}");
    message.truncate(message.floor_char_boundary(MESSAGE));
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"generateName": format!("{name}."), "namespace": "default"},
        "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, "name": name, "uid": uid},
        "type": "Warning", "reason": "Refused", "message": message,
        "source": {"component": "podgate"}, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}
