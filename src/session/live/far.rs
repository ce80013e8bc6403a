//! Far: sessions of other replicas, as those tell them. They are in the list to be shown; what becomes of one is for its own
//! replica to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Change, Known, List, Registry};

/// Namespace and name, and who has it: no process gives a name twice.
pub(super) type Key = (String, String, Arc<str>);

/// A session of another replica.
#[derive(Debug, Clone)]
pub struct Far {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Unique for ever.
    pub uid: String,
    /// The process that has it.
    pub instance: Arc<str>,
    /// That process's version of it. Where this is the same, nothing has changed that watchers are told.
    pub revision: String,
    /// This list's version of its last change.
    pub version: u64,
    /// The rest of what an object has, as the other tells it.
    pub metadata: Arc<ObjectMeta>,
    /// What was asked for.
    pub spec: Arc<Map<String, Value>>,
    /// How it is.
    pub status: Arc<Map<String, Value>>,
    /// When it was so.
    pub told: Instant,
}

// === impl Registry ===

impl Registry {
    /// Puts what another process has now in the place of what it had before.
    pub fn tell(&self, instance: &str, has: Vec<Far>) {
        let mut list = self.write();
        let of_it = list.far.iter().filter(|(_, far)| *far.instance == *instance);
        let mut had: BTreeMap<_, _> = of_it.map(|(key, far)| (key.clone(), far.clone())).collect();
        for mut far in has {
            let key = (far.namespace.clone(), far.name.clone(), far.instance.clone());
            let before = had.remove(&key);
            if let Some(before) = before.as_ref().filter(|before| before.revision == far.revision) {
                far.version = before.version;
                list.far.insert(key, Arc::new(far));
                continue;
            }
            far.version = self.0.next();
            let after = Arc::new(far);
            list.far.insert(key, after.clone());
            self.0.history.put(after.version, Change::Far { before, after: Some(after) });
        }
        for (key, before) in had {
            list.far.remove(&key);
            self.0.history.put(self.0.next(), Change::Far { before: Some(before), after: None });
        }
    }

    /// All sessions of a namespace or of all, in order of namespace and name, and the version of the list.
    pub fn all(&self, namespace: Option<&str>) -> (Vec<Known>, u64) {
        let list = self.read();
        let within = |of: &str| namespace.is_none_or(|namespace| namespace == of);
        let own = list.entries.values().cloned().map(Known::Own);
        let far = list.far.values().cloned().map(Known::Far);
        let mut all: Vec<_> = own.chain(far).filter(|known| within(known.place().0)).collect();
        all.sort_by(|one, other| one.place().cmp(&other.place()));
        (all, self.0.history.version())
    }
}

// === impl List ===

impl List {
    /// The session of this name; of several, this process's own.
    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<Known> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        if let Some(entry) = self.entries.get(&(namespace.clone(), name.clone())) {
            return Some(Known::Own(entry.clone()));
        }
        let (_, far) = self.far.range((namespace.clone(), name.clone(), Arc::from(""))..).next()?;
        (far.namespace == namespace && far.name == name).then(|| Known::Far(far.clone()))
    }
}

// === impl Known ===

impl Known {
    fn place(&self) -> (&str, &str) {
        match self {
            Self::Own(entry) => (&entry.facts.namespace, &entry.name),
            Self::Far(far) => (&far.namespace, &far.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Terms;
    use super::super::tests::facts;
    use super::*;

    fn far(name: &str, revision: &str) -> Far {
        Far {
            namespace: "b".into(),
            name: name.into(),
            uid: format!("uid-of-{name}"),
            instance: "other".into(),
            revision: revision.into(),
            version: 0,
            metadata: Arc::default(),
            spec: Arc::default(),
            status: Arc::default(),
            told: Instant::now(),
        }
    }

    fn names(registry: &Registry, namespace: Option<&str>) -> Vec<String> {
        registry.all(namespace).0.iter().map(|known| known.place().1.to_owned()).collect()
    }

    #[tokio::test]
    async fn sessions_of_others_come_change_and_go_in_the_order_of_the_list() {
        let registry = Registry::default();
        let mut changes = registry.changes(registry.all(None).1);
        let live = registry.enter(facts("b", "web"), Terms::default());
        registry.tell("other", vec![far("a", "1"), far("z", "1")]);
        registry.tell("third", Vec::new());
        let own = live.entry().name.clone();
        assert_eq!(names(&registry, None), ["a".to_owned(), own.clone(), "z".to_owned()]);
        assert_eq!(names(&registry, Some("c")), Vec::<String>::new());
        // What is the same is no change; what is not told any more is gone.
        registry.tell("other", vec![far("a", "1")]);
        registry.tell("other", vec![far("a", "2")]);
        drop(live);
        let mut told = Vec::new();
        let mut seen = changes.seen();
        for _ in 0..6 {
            let (version, change) = changes.next().await.unwrap();
            assert!(version > seen);
            seen = version;
            told.push(match &*change {
                Change::Own(own) => (String::new(), own.before.is_some(), own.after.is_some()),
                Change::Far { before, after } => {
                    let name = before.as_ref().or(after.as_ref()).unwrap().name.clone();
                    (name, before.is_some(), after.is_some())
                }
            });
        }
        let expected = [
            ("", false, true),
            ("a", false, true),
            ("z", false, true),
            ("z", true, false),
            ("a", true, true),
            ("", true, false),
        ];
        assert_eq!(told, expected.map(|(name, before, after)| (name.to_owned(), before, after)));
        assert_eq!(seen, registry.all(None).1);
    }

    #[test]
    fn one_is_found_by_its_name_and_only_own_sessions_are_this_processs_own() {
        let registry = Registry::default();
        let live = registry.enter(facts("b", "web"), Terms::default());
        let own = live.entry().name.clone();
        let mut before = registry.own();
        before.mark_unchanged();
        registry.tell("other", vec![far("a", "1"), far(&own, "1")]);
        assert!(!before.has_changed().unwrap());
        assert!(matches!(registry.find("b", &own), Some(Known::Own(_))));
        assert!(matches!(registry.find("b", "a"), Some(Known::Far(far)) if far.uid == "uid-of-a"));
        assert!(registry.find("b", "").is_none() && registry.find("a", "a").is_none());
        assert!(registry.get("b", "a").is_none());
        drop(live);
        assert!(before.has_changed().unwrap());
    }
}
