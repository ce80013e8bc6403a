//! Cluster: the few questions podgate asks of the Kubernetes it stands in front of.
//!
//! In the flow: `authn` asks whose a token is, `authz` for a review, `locate` for a pod and its node, the door hands
//! over everything that is no session. Dev mode answers from its embedded cluster (room `dev`); stages cannot tell
//! the difference, and none may ask. Values are slim: a pod here is what choosing a container needs.
//! Source: Kubernetes API reference, Pod v1 core, Node v1 core, SubjectAccessReview authorization.k8s.io/v1,
//! TokenReview authentication.k8s.io/v1.

pub mod impersonate;
pub mod kube;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::request::{Ask, Attributes};
use crate::status::Refusal;

/// A body on its way through: streamed, never required to fit in memory.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Who is asking: `authentication.k8s.io` `UserInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// Unique across time; empty where the authenticator knows none.
    pub uid: String,
    /// Groups, in the order the authenticator gave them.
    pub groups: Vec<String>,
    /// Further attributes by lower-case key.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A review's answer. The reason is the authorizer's own and may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Such as `RBAC: allowed by RoleBinding "b/ns" of Role "r" to User "u"`.
    pub reason: String,
}

/// What `locate` and the rules need of a pod; container names in spec order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.nodeName`; `None` when not bound yet.
    pub node: Option<String>,
    /// `spec.initContainers[*].name`.
    pub init_containers: Vec<String>,
    /// `spec.containers[*].name`.
    pub containers: Vec<String>,
    /// `spec.ephemeralContainers[*].name`.
    pub ephemeral_containers: Vec<String>,
    /// The image of each container of any kind, behind its name.
    pub images: Vec<(String, String)>,
}

/// What `locate` needs of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// `status.addresses` as (type, address), in order.
    pub addresses: Vec<(String, String)>,
    /// `status.daemonEndpoints.kubeletEndpoint.Port`; 0 when absent.
    pub kubelet_port: u16,
    /// `status.declaredFeatures`.
    pub declared_features: Vec<String>,
}

/// Failures of the cluster itself, as opposed to its answers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster could not be asked, or gave no usable answer.
    #[error("{act}")]
    Unanswered {
        /// The failed act, such as `read pod shop/cart-0`.
        act: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cluster cannot be reached at all, or is not to be asked again just now.
    #[error("{act}: the API server cannot be reached")]
    Unreachable {
        /// The failed act.
        act: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// === impl Pod ===

impl Pod {
    /// The image of this container; empty when it has none.
    pub fn image(&self, container: &str) -> &str {
        self.images.iter().find(|(name, _)| name == container).map_or("", |(_, image)| image)
    }
}

// === impl Error ===

impl Error {
    /// What the client is told where nothing more fitting is known: 503 when the cluster cannot be reached, else 500.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Unanswered { .. } => Refusal::Internal(self.to_string()),
            Self::Unreachable { .. } => Refusal::Unavailable(self.to_string()),
        }
    }
}

/// A Kubernetes cluster, as podgate sees it. All futures may be dropped at any point: nothing is lost.
pub trait Cluster: Send + Sync + 'static {
    /// Whose is this bearer token, for one of these audiences (for the cluster's own, when there are none)? `None` when
    /// the cluster does not know it.
    fn token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<User>, Error>>;

    /// May this user do this? `Err` is "no decision", which fails closed.
    fn review<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Decision, Error>>;

    /// [`Cluster::review`], without an answer that is remembered.
    fn review_anew<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Decision, Error>> {
        self.review(user, attributes)
    }

    /// The pod of this name, or `None` when there is none.
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str)
    -> BoxFuture<'a, Result<Option<Arc<Pod>>, Error>>;

    /// The node that the pod of this name was on, as far as anybody heard: good for asking ahead, and for nothing else.
    fn likely_node(&self, _namespace: &str, _name: &str) -> Option<String> {
        None
    }

    /// The node of this name, or `None` when there is none.
    fn node<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<Node>>, Error>>;

    /// Answers a request that is not a session, as the API server would: whether `user` may ask that is the cluster's
    /// own to decide. `ask` is what the door read from it, once.
    fn serve<'a>(
        &'a self,
        user: &'a User,
        ask: &'a Ask,
        request: Request<Body>,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>>;
}
