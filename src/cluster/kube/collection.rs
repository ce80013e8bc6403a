//! Collection: objects of one kind that podgate itself keeps in a cluster, or only follows there.
//!
//! What is written names the version that it replaces, so that of two replicas that write at once one is told to look
//! again.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::ask::{Asker, JSON, Refused, Status, read, unanswered};
use super::connect::Connection;
use super::watch::{self, Sink, Watched};
use super::{encoded, is_segment};
use crate::cluster;
use crate::drain::Drain;
use crate::reload::Live;
use crate::telemetry::Metrics;

/// Objects of one kind.
#[derive(Debug)]
pub struct Collection {
    connection: Live<Connection>,
    asker: Asker,
    watched: Watched,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of this name is there.
    #[error("it is there already")]
    Exists,
    /// There is none of this name.
    #[error("it is not there")]
    Missing,
    /// It is not the version that was named.
    #[error("it has changed meanwhile")]
    Conflict,
    /// There is no answer, or one that is of no use.
    #[error(transparent)]
    Cluster(cluster::Error),
}

// === impl Collection ===

impl Collection {
    /// Objects behind this path, such as `/api/v1/namespaces/a/configmaps`, whose labels are as `selector` says; `name` is
    /// what they are called in log and metrics. Each question has to be answered `within` that, and so many wait at once.
    pub fn new(
        connection: Live<Connection>,
        name: &'static str,
        path: String,
        selector: &str,
        within: Duration,
        max_waiting: usize,
    ) -> Self {
        let query = match selector {
            "" => String::new(),
            selector => format!("&labelSelector={}", encoded(selector)),
        };
        let asker = Asker::new(connection.clone(), within, max_waiting);
        Self { connection, asker, watched: Watched { name, path, query } }
    }

    /// Tells this sink what there is, in a task of `background`.
    pub(crate) fn follow<S: Sink>(&self, sink: S, background: &Drain, metrics: &Metrics) {
        watch::start(self.connection.clone(), self.watched.clone(), sink, background, metrics);
    }

    /// One object, as it is now.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn get(&self, name: &str) -> Result<Option<Value>, Error> {
        if !is_segment(name) {
            return Ok(None);
        }
        let act = format!("read one of {}", self.watched.name);
        let (code, body) = self.asker.get(&act, &self.path(name), JSON).await.map_err(Error::Cluster)?;
        match answer(&act, code, &body) {
            Ok(object) => Ok(Some(object)),
            Err(Error::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object; what has become of it.
    ///
    /// # Errors
    /// [`Error::Exists`], or when the API server does not do so.
    pub async fn create(&self, object: &Value) -> Result<Value, Error> {
        let act = format!("create one of {}", self.watched.name);
        match self.send(&act, Method::POST, &self.watched.path, object).await {
            // That is about its namespace.
            Err(Error::Missing) => {
                Err(Error::Cluster(unanswered(&act, "the API server knows no such place")))
            }
            made => made,
        }
    }

    /// Puts an object in the place of the one of its name and version; what has become of it.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Missing`], or when the API server does not do so.
    pub async fn replace(&self, name: &str, object: &Value) -> Result<Value, Error> {
        let act = format!("change one of {}", self.watched.name);
        self.send(&act, Method::PUT, &self.path(name), object).await
    }

    /// Deletes an object, or only this version of it.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Missing`], or when the API server does not do so.
    pub async fn delete(&self, name: &str, version: Option<&str>) -> Result<(), Error> {
        let act = format!("delete one of {}", self.watched.name);
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(version) = version {
            options["preconditions"] = json!({"resourceVersion": version});
        }
        self.send(&act, Method::DELETE, &self.path(name), &options).await.map(drop)
    }

    async fn send(&self, act: &str, method: Method, path: &str, object: &Value) -> Result<Value, Error> {
        let body = Bytes::from(object.to_string());
        let (code, body) = self.asker.send(act, method, path, body).await.map_err(Error::Cluster)?;
        answer(act, code, &body)
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{}", self.watched.path, encoded(name))
    }
}

fn answer(act: &str, code: StatusCode, body: &[u8]) -> Result<Value, Error> {
    if code.is_success() {
        return read(act, body).map_err(Error::Cluster);
    }
    match (code, Status::of(body).reason.as_str()) {
        (StatusCode::NOT_FOUND, "NotFound") => Err(Error::Missing),
        (StatusCode::CONFLICT, "AlreadyExists") => Err(Error::Exists),
        (StatusCode::CONFLICT, _) => Err(Error::Conflict),
        _ => Err(Error::Cluster(unanswered(act, Refused::of(code, body)))),
    }
}
