//! Api: policies out of the cluster, objects of the kind `ExecPolicy`, followed by a watch.
//!
//! Invariants: as of files, all of it is good or none of it is used, and the last good set stays. Until there is a first
//! one, nothing is allowed. That all policies are gone is not taken for no rules: with the definition of their kind every
//! object of it goes. What is wrong with a policy is in the log, and in an event of that policy.

pub mod events;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Error;
use crate::cluster;
use crate::cluster::kube::collection::Collection;
use crate::cluster::kube::watch::Sink;
use crate::drain::Drain;
use crate::policy::document::{API_VERSION, Document, Fault, KIND};
use crate::policy::set::{MAX_DOCUMENTS, Set};
use crate::reload::Live;
use crate::telemetry::{Metrics, chain};
use events::Refused;

/// Where the objects are.
pub const PATH: &str = "/apis/podgate.dev/v1alpha1/execpolicies";

/// In log and metrics.
pub const NAME: &str = "execpolicies";

/// What is told about them in the log and counted as reloads.
const WHAT: &str = "policy.fromApi";

/// Bytes of all policies together, as JSON: some for each team of a large cluster.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How long changes are gathered before the rules are made of them: who applies a folder makes many at once, and what has
/// changed is to end sessions within 5 s.
const SETTLE: Duration = Duration::from_millis(200);

/// What holds until there are rules.
const UNREAD: &str = "
apiVersion: podgate.dev/v1alpha1
kind: ExecPolicy
metadata: {name: podgate}
spec:
  rules:
    - {name: unread, match: {}, effect: deny, message: the policies of the cluster have not been read yet}
";

/// The policies, by name.
type Texts = BTreeMap<String, Text>;

/// Whether there ever was a good set; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Read(Arc<AtomicBool>);

/// A policy as it is written.
#[derive(Debug, Clone)]
struct Text {
    uid: String,
    text: Arc<str>,
}

/// What a watch feeds.
struct Feed {
    texts: Texts,
    /// What a list has shown so far.
    list: Option<Texts>,
    told: watch::Sender<Option<Texts>>,
}

/// What is read of an object.
#[derive(Deserialize)]
struct Object<'a> {
    metadata: Metadata,
    #[serde(default, borrow)]
    spec: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    uid: String,
}

// === impl Read ===

impl Read {
    /// Whether there was one.
    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The rules of these objects, in tasks of `background`; `records` says whether there can be recordings. `events` is where
/// those of the objects are.
///
/// # Errors
/// Never, as the rules that hold until the first ones are known are whole.
pub fn follow(
    objects: &Collection,
    events: Collection,
    records: bool,
    background: &Drain,
    metrics: &Metrics,
) -> Result<(Live<Set>, Read), Error> {
    let unread = Document::read_all("podgate", UNREAD).map_err(Error::Faults)?;
    let unread = unread.into_iter().map(|document| ("podgate".to_owned(), document)).collect();
    let unread = Set::compile(unread, records).map_err(Error::Faults)?;
    let (sets, live) = watch::channel(Arc::new(unread));
    let (told, mut texts) = watch::channel(None);
    objects.follow(Feed { texts: Texts::new(), list: None, told }, background, metrics);
    let refused = events::start(events, background);
    let (read, drain, metrics) = (Read::default(), background.clone(), metrics.clone());
    let done = read.clone();
    background.spawn(async move {
        let mut held = false;
        loop {
            tokio::select! {
                biased;
                () = drain.stopping() => return,
                changed = texts.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(SETTLE).await;
            let Some(texts) = texts.borrow_and_update().clone() else { continue };
            if texts.is_empty() && held {
                warn!(
                    what = WHAT,
                    "all policies are gone, the last good ones stay until podgate starts anew"
                );
                metrics.reloads.with_label_values(&[WHAT, "failed"]).inc();
                continue;
            }
            let outcome = match compile(&texts, records) {
                Ok(set) => {
                    info!(what = WHAT, policies = texts.len(), rules = set.len(), "reloaded");
                    held = !texts.is_empty();
                    sets.send_replace(Arc::new(set));
                    done.0.store(true, Ordering::Relaxed);
                    refused.send_replace(Vec::new());
                    "reloaded"
                }
                Err(faults) => {
                    refused.send_replace(blamed(&texts, &faults));
                    let error = Error::Faults(faults);
                    warn!(what = WHAT, error = chain(&error), "cannot reload, the last good one stays");
                    "failed"
                }
            };
            metrics.reloads.with_label_values(&[WHAT, outcome]).inc();
        }
    });
    Ok((Live::of(live), read))
}

fn compile(texts: &Texts, records: bool) -> Result<Set, Vec<Fault>> {
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    let bytes = size(texts);
    if bytes > MAX_BYTES {
        let what = format!("they have {bytes} bytes together, of at most {MAX_BYTES}");
        return Err(vec![Fault { origin: NAME.to_owned(), document: 0, line: 0, path: String::new(), what }]);
    }
    for (name, Text { text, .. }) in texts {
        let origin = origin(name);
        match Document::read_all(&origin, text) {
            Ok(read) => documents.extend(read.into_iter().map(|document| (origin.clone(), document))),
            Err(wrong) => faults.extend(wrong),
        }
    }
    if faults.is_empty() { Set::compile(documents, records) } else { Err(faults) }
}

fn size(texts: &Texts) -> usize {
    texts.values().map(|written| written.text.len()).sum()
}

fn origin(name: &str) -> String {
    format!("{NAME}/{name}")
}

/// The policies that have these faults.
fn blamed(texts: &Texts, faults: &[Fault]) -> Vec<Refused> {
    let about = |(name, Text { uid, .. }): (&String, &Text)| {
        let origin = origin(name);
        let own = faults.iter().filter(|fault| fault.origin == origin);
        let told: Vec<_> = own
            .map(|Fault { path, what, .. }| match path.as_str() {
                "" => what.clone(),
                path => format!("{path}: {what}"),
            })
            .collect();
        let refused = || Refused { name: name.clone(), uid: uid.clone(), why: told.join("; ") };
        (!told.is_empty()).then(refused)
    };
    texts.iter().filter_map(about).collect()
}

// === impl Feed ===

impl Feed {
    fn tell(&self) {
        self.told.send_replace(Some(self.texts.clone()));
    }
}

impl Sink for Feed {
    fn begin(&mut self) {
        self.list = Some(Texts::new());
    }

    fn saw(&mut self, object: &RawValue) {
        // What cannot be read at all has no name, which no API server does.
        let Ok(Object { metadata, spec }) = serde_json::from_str(object.get()) else { return };
        let text = json!({
            "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": metadata.name}, "spec": spec,
        });
        let texts = self.list.as_mut().unwrap_or(&mut self.texts);
        // One and some bytes too many are enough for all of them to be refused.
        if texts.len() <= MAX_DOCUMENTS && size(texts) <= MAX_BYTES || texts.contains_key(&metadata.name) {
            texts.insert(metadata.name, Text { uid: metadata.uid, text: text.to_string().into() });
        }
        if self.list.is_none() {
            self.tell();
        }
    }

    fn gone(&mut self, object: &RawValue) {
        if let Ok(Object { metadata, .. }) = serde_json::from_str(object.get()) {
            self.texts.remove(&metadata.name);
            self.tell();
        }
    }

    fn end(&mut self, _: &str) {
        self.texts = self.list.take().unwrap_or_default();
        self.tell();
    }

    fn broken(&mut self, _: &cluster::Error) {
        self.list = None;
    }

    fn len(&self) -> usize {
        self.texts.len()
    }
}

#[cfg(test)]
mod tests;
