//! Group: the API group `podgate.dev/v1alpha1`, which podgate serves itself in front of any cluster.
//!
//! In the flow: behind `authn`, for requests that are no session. Those for its own resources are reviewed by the cluster
//! and answered here; all others are the cluster's, and its discovery documents are told of what there is besides.
//! A [`Resource`] keeps its objects and knows what may become of them; selectors, tables, watches and the rest of what
//! every server of objects does is done here once for all of them.
//! Invariant: no request gets to a resource that the cluster has not allowed: that takes a [`Permit`].
//! Source: apiserver `pkg/endpoints/handlers`, `pkg/endpoints/discovery`.

mod discovery;
pub mod grants;
mod openapi;
pub mod resource;
pub mod sessions;
pub mod share;
mod verbs;

use std::sync::Arc;

use http::{Request, Response};

use crate::authz::Permit;
use crate::cluster::{Body, Cluster, User};
use crate::request::Ask;
use crate::serving::Accept;
use crate::status::Refusal;
use discovery::Document;

pub use crate::serving::table::Column;
pub use resource::{Change, Item, Kind, Listed, Options, Resource};

/// The group's name.
pub const GROUP: &str = "podgate.dev";

/// Its version.
pub const VERSION: &str = "v1alpha1";

/// Both, as objects have them.
pub const API_VERSION: &str = "podgate.dev/v1alpha1";

/// All that is no session: the cluster's own answers, and those of the group.
pub struct Group {
    cluster: Arc<dyn Cluster>,
    resources: Vec<Arc<dyn Resource>>,
}

/// By whom something is asked.
#[derive(Debug)]
pub enum Asker {
    /// Somebody who is known; the cluster decides whether they may, and answers.
    Known(User),
    /// Somebody whom the cluster has allowed what the group is asked for.
    Permitted(Permit),
}

// === impl Group ===

impl Group {
    /// These resources in front of this cluster.
    pub fn new(cluster: Arc<dyn Cluster>, resources: Vec<Arc<dyn Resource>>) -> Self {
        Self { cluster, resources }
    }

    /// Whether a request is for one of the group's own resources, and so is to be reviewed before it is served.
    pub fn owns(&self, ask: &Ask) -> bool {
        self.resource(ask).is_some()
    }

    /// Answers a request.
    ///
    /// # Errors
    /// What the client is told instead.
    pub async fn serve(
        &self,
        asker: &Asker,
        ask: &Ask,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        match (asker, self.resource(ask)) {
            (Asker::Permitted(permit), Some(resource)) => {
                verbs::serve(&**resource, permit, ask, request).await
            }
            (Asker::Permitted(_), None) => Err(Refusal::NoSuchPath),
            (Asker::Known(user), _) => self.pass(user, ask, request).await,
        }
    }

    /// The cluster's answer, with the group in it where it says what there is.
    async fn pass(
        &self,
        user: &User,
        ask: &Ask,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let document = Document::of(ask);
        if let Some(document) = document {
            document.ask_for_json(request.headers_mut());
        }
        let accept = Accept::of(request.headers());
        let answer = self.cluster.serve(user, ask, request).await;
        match document {
            Some(document) => document.with(&self.resources, ask, &accept, answer).await,
            None => answer,
        }
    }

    fn resource(&self, ask: &Ask) -> Option<&Arc<dyn Resource>> {
        let asked = ask.attributes.resource.as_ref()?;
        if asked.group != GROUP || asked.version != VERSION {
            return None;
        }
        self.resources.iter().find(|resource| resource.kind().plural == asked.resource)
    }
}
