//! Config maps: grants in podgate's own namespace, where nobody but podgate writes: what stands there is believed.
//!
//! A grant is a ConfigMap, and its version that of the ConfigMap, so that all replicas tell the same versions. What is
//! known here comes from a watch alone, own changes too: everybody sees the same order.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tracing::warn;

use super::book::Book;
use super::document::Grant;
use super::store::{Error, Kept, Key, Store};
use crate::cluster::kube::collection::{self, Collection};
use crate::cluster::kube::watch::Sink;
use crate::drain::Drain;
use crate::telemetry::Metrics;

/// The label of every ConfigMap that is a grant.
pub const LABEL: (&str, &str) = ("podgate.dev/kind", "grant");

/// The key behind which it stands.
const DATA: &str = "grant";

/// Grants that are read at most; more than podgate itself makes.
const MAX_READ: usize = 16 * 1024;

/// Grants in ConfigMaps.
#[derive(Debug)]
pub struct ConfigMaps {
    maps: Collection,
    namespace: String,
}

/// What a watch of them feeds.
struct Feed {
    book: Arc<Book>,
    /// What a list has shown so far.
    list: Option<Vec<(Key, Grant, u64)>>,
}

/// What is read of a ConfigMap.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Map {
    metadata: Metadata,
    data: Option<Data>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    grant: String,
}

/// Why a ConfigMap is no grant.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("read the grant in it")]
    Unreadable(#[source] serde_json::Error),
    #[error("its name is not that of the grant in it")]
    Misnamed,
    #[error("its version is no number")]
    Version,
}

// === impl ConfigMaps ===

impl ConfigMaps {
    /// Grants in this collection of the ConfigMaps of a namespace. A watch feeds `book`, as a task of `background`.
    pub fn start(
        maps: Collection,
        namespace: String,
        book: Arc<Book>,
        background: &Drain,
        metrics: &Metrics,
    ) -> Self {
        maps.follow(Feed { book, list: None }, background, metrics);
        Self { maps, namespace }
    }

    /// Where the ConfigMaps of a namespace are.
    pub fn path(namespace: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/configmaps")
    }

    /// What selects those that are grants.
    pub fn selector() -> String {
        format!("{}={}", LABEL.0, LABEL.1)
    }

    fn map(&self, key: &Key, grant: &Grant, version: Option<u64>) -> Value {
        let mut grant = grant.clone();
        // That is the ConfigMap's to say.
        grant.metadata.resource_version.clear();
        let (name, value) = LABEL;
        let mut map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name_of(key), "namespace": self.namespace, "labels": {name: value}},
            "data": {DATA: grant.to_value().to_string()},
        });
        if let Some(version) = version {
            map["metadata"]["resourceVersion"] = version.to_string().into();
        }
        map
    }
}

/// A namespace has no dot, so that two grants never share a name.
fn name_of((namespace, name): &Key) -> String {
    format!("grant.{namespace}.{name}")
}

fn read(map: Map) -> Result<(Key, Kept), Unusable> {
    let Map { metadata, data } = map;
    let grant: Grant = serde_json::from_str(&data.unwrap_or_default().grant).map_err(Unusable::Unreadable)?;
    let key = (grant.metadata.namespace.clone(), grant.metadata.name.clone());
    if metadata.name != name_of(&key) {
        return Err(Unusable::Misnamed);
    }
    let version = metadata.resource_version.parse().map_err(|_| Unusable::Version)?;
    Ok((key, Kept { grant, version }))
}

/// The grant that an answer of the API server is.
fn answered(object: Value) -> Result<Kept, Error> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| {
        let act = "read the ConfigMap of a grant".to_owned();
        Error::Cluster(crate::cluster::Error::Unanswered { act, source })
    };
    let map = Map::deserialize(object).map_err(|error| unusable(error.into()))?;
    read(map).map(|(_, kept)| kept).map_err(|error| unusable(error.into()))
}

impl Store for ConfigMaps {
    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kept>, Error>> {
        async move { self.maps.get(&name_of(key)).await?.map(answered).transpose() }.boxed()
    }

    fn create<'a>(&'a self, key: &'a Key, grant: &'a Grant) -> BoxFuture<'a, Result<u64, Error>> {
        async move { Ok(answered(self.maps.create(&self.map(key, grant, None)).await?)?.version) }.boxed()
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        grant: &'a Grant,
        version: u64,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        let map = self.map(key, grant, Some(version));
        async move { Ok(answered(self.maps.replace(&name_of(key), &map).await?)?.version) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, version: u64) -> BoxFuture<'a, Result<(), Error>> {
        async move { Ok(self.maps.delete(&name_of(key), Some(&version.to_string())).await?) }.boxed()
    }
}

impl From<collection::Error> for Error {
    fn from(error: collection::Error) -> Self {
        match error {
            collection::Error::Exists => Self::Exists,
            collection::Error::Missing => Self::Missing,
            collection::Error::Conflict => Self::Conflict,
            collection::Error::Cluster(error) => Self::Cluster(error),
        }
    }
}

// === impl Feed ===

impl Sink for Feed {
    fn begin(&mut self) {
        self.list = Some(Vec::new());
    }

    fn saw(&mut self, object: &RawValue) {
        let map: Map = serde_json::from_str(object.get()).unwrap_or_default();
        let (name, version) = (map.metadata.name.clone(), map.metadata.resource_version.parse());
        match (read(map), &mut self.list) {
            (Ok((key, Kept { grant, version })), Some(list)) if list.len() < MAX_READ => {
                list.push((key, grant, version));
            }
            (Ok((key, Kept { grant, version })), None) => self.book.saw(key, grant, version),
            (Ok(_), Some(_)) => warn!(object = name, "there are too many grants, this one is left out"),
            (Err(error), list) => {
                let error = crate::telemetry::chain(&error);
                warn!(object = name, error, "a ConfigMap is no grant, it lets nobody in");
                // It may have been one.
                if let (None, Some(key), Ok(version)) = (list, key_of(&name), version) {
                    self.book.forget(&key, version);
                }
            }
        }
    }

    fn gone(&mut self, object: &RawValue) {
        let Map { metadata, .. } = serde_json::from_str(object.get()).unwrap_or_default();
        if let (Some(key), Ok(version)) = (key_of(&metadata.name), metadata.resource_version.parse()) {
            self.book.forget(&key, version);
        }
    }

    fn end(&mut self, version: &str) {
        let list = self.list.take().unwrap_or_default();
        match version.parse() {
            Ok(version) => self.book.fill(list, version),
            Err(_) => warn!("the API server tells versions that are no numbers, no grant counts"),
        }
    }

    fn reached(&mut self, version: &str) {
        if let Ok(version) = version.parse() {
            self.book.reached(version);
        }
    }

    fn len(&self) -> usize {
        self.book.list(None).0.len()
    }
}

fn key_of(name: &str) -> Option<Key> {
    let (namespace, name) = name.strip_prefix("grant.")?.split_once('.')?;
    Some((namespace.to_owned(), name.to_owned()))
}
