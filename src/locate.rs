//! Locate: turns a permitted session into the container that will run it, and who is to be asked for it.
//!
//! In the flow: after `authz`, before `policy`. Keeps nothing between requests. Where the API server is asked, it
//! finds the kubelet itself; the container is chosen here all the same, because rules and records need it. Invariant:
//! pod and node are as the cluster has them once the permit was given, or a moment before (`cluster.confirmedFor`); a pod
//! without a node is an error, never a guess.
//! Source: kubernetes `pkg/registry/core/pod/strategy.go`, `pkg/util/node/node.go`; `protocol.md` 2 and 3.1.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::maybe_done;

use crate::authn::Caller;
use crate::authz::SessionPermit;
use crate::cluster::{self, Cluster, Node, Pod};
use crate::request::{Exec, Subresource, name_problem};
use crate::status::{Refusal, go_quote};

/// The port of a kubelet that names none (`protocol.md` 3.1).
const KUBELET_PORT: u16 = 10250;

/// What a node declares whose kubelet speaks WebSocket v5 (`protocol.md` 7.2).
const WEBSOCKETS_TO_KUBELET: &str = "ExtendWebSocketsToKubelet";

/// Where a permitted session will run.
#[derive(Debug)]
pub struct Place {
    permit: SessionPermit,
    pod: Arc<Pod>,
    container: String,
    node: String,
    far_side: FarSide,
}

/// Who is asked for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FarSide {
    /// The kubelet of the pod's node.
    Kubelet {
        /// Where it is.
        addr: HostPort,
        /// Whether it declares that it speaks WebSocket v5 itself.
        speaks_v5: bool,
    },
    /// The API server, which finds the kubelet itself.
    ApiServer,
}

/// Whom all sessions are asked of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Towards {
    /// Kubelets.
    Kubelets {
        /// The types of node addresses, best first.
        address_types: Vec<String>,
    },
    /// The API server.
    ApiServer,
}

/// Host (name or address) and port of a far side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A DNS name or an IP address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Finds places.
pub struct Locate {
    cluster: Arc<dyn Cluster>,
    towards: Towards,
    read_timeout: Duration,
}

/// Why there is no place; the texts are upstream's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is no path segment, so no pod can have it.
    #[error("Name parameter invalid: {}: {problem}", go_quote(name.as_bytes()))]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The cluster could not be asked.
    #[error("locate the pod")]
    Read(#[source] cluster::Error),
    /// The cluster did not answer in time.
    #[error("read of {what} took longer than {after:?}")]
    Late {
        /// The object being read.
        what: String,
        /// The deadline.
        after: Duration,
    },
    /// There is no such pod.
    #[error("pod {0} not found")]
    NoPod(String),
    /// No container was named and the pod does not have exactly one.
    #[error("a container name must be specified for pod {pod}{choices}")]
    AmbiguousContainer {
        /// The pod.
        pod: String,
        /// `, choose one of: [...]`, or nothing when there is none to choose.
        choices: String,
    },
    /// The named container is not in the pod.
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// The pod is not bound to a node.
    #[error("pod {0} does not have a host assigned")]
    Unscheduled(String),
    /// The pod's node does not exist.
    #[error("node {0} not found")]
    NoNode(String),
    /// The node has no address of a preferred type.
    #[error("no preferred addresses found; known addresses: [{0}]")]
    NoAddress(String),
}

// === impl Locate ===

impl Locate {
    /// Looks in this cluster; each read must come within `read_timeout`.
    pub fn new(cluster: Arc<dyn Cluster>, towards: Towards, read_timeout: Duration) -> Self {
        Self { cluster, towards, read_timeout }
    }

    /// Pod, container and far side of a permitted session.
    ///
    /// # Errors
    /// Upstream's refusals in upstream's order: pod, container, host, node, address. The last two are the API server's
    /// to find, where it is asked.
    pub async fn find(&self, permit: SessionPermit) -> Result<Place, Error> {
        let (pod, container, node, far_side) = self.look(permit.exec()).await?;
        Ok(Place { pod, container, node, far_side, permit })
    }

    async fn look(&self, exec: &Exec) -> Result<(Arc<Pod>, String, String, FarSide), Error> {
        for name in [&exec.namespace, &exec.pod] {
            if let Some(problem) = name_problem(name) {
                return Err(Error::BadName { name: name.clone(), problem });
            }
        }
        let likely = match &self.towards {
            Towards::Kubelets { .. } => self.cluster.likely_node(&exec.namespace, &exec.pod),
            Towards::ApiServer => None,
        };
        // Where it most likely is, the node is asked for at the same time: one wait for the cluster instead of two. Nobody
        // waits for a node that the pod is not on.
        let what = || format!("pod {}/{}", exec.namespace, exec.pod);
        let mut pod = pin!(self.within(self.cluster.pod(&exec.namespace, &exec.pod), what));
        let mut ahead = pin!(maybe_done(self.node_if(likely.as_deref())));
        let pod = poll_fn(|cx| {
            let read = pod.as_mut().poll(cx);
            let _ = ahead.as_mut().poll(cx);
            read
        });
        let pod = pod.await?.ok_or_else(|| Error::NoPod(exec.pod.clone()))?;
        let container = choose_container(exec, &pod)?;
        let node = pod.node.clone().ok_or_else(|| Error::Unscheduled(exec.pod.clone()))?;
        let far_side = match &self.towards {
            Towards::Kubelets { address_types } => {
                let mut read = None;
                if likely.as_ref() == Some(&node) {
                    ahead.as_mut().await;
                    read = ahead.take_output().flatten();
                }
                let read = match read {
                    Some(read) => read,
                    None => self.node(&node).await,
                };
                kubelet(&*read?, address_types)?
            }
            Towards::ApiServer => FarSide::ApiServer,
        };
        Ok((pod, container, node, far_side))
    }

    async fn node_if(&self, name: Option<&str>) -> Option<Result<Arc<Node>, Error>> {
        Some(self.node(name?).await)
    }

    async fn node(&self, name: &str) -> Result<Arc<Node>, Error> {
        let node = self.within(self.cluster.node(name), || format!("node {name}")).await?;
        node.ok_or_else(|| Error::NoNode(name.to_owned()))
    }

    async fn within<T>(
        &self,
        read: impl Future<Output = Result<T, cluster::Error>>,
        what: impl FnOnce() -> String,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.read_timeout, read).await {
            Ok(answer) => answer.map_err(Error::Read),
            Err(_) => Err(Error::Late { what: what(), after: self.read_timeout }),
        }
    }
}

fn kubelet(node: &Node, address_types: &[String]) -> Result<FarSide, Error> {
    let speaks_v5 = node.declared_features.iter().any(|feature| feature == WEBSOCKETS_TO_KUBELET);
    Ok(FarSide::Kubelet { addr: address(node, address_types)?, speaks_v5 })
}

/// The first address of the best type that there is one of.
fn address(node: &Node, types: &[String]) -> Result<HostPort, Error> {
    let known = &node.addresses;
    let preferred = types.iter().find_map(|kind| known.iter().find(|(have, _)| have == kind));
    let (_, host) = preferred.ok_or_else(|| {
        let all: Vec<_> = known.iter().map(|(kind, address)| format!("{{{kind} {address}}}")).collect();
        Error::NoAddress(all.join(" "))
    })?;
    let port = if node.kubelet_port == 0 { KUBELET_PORT } else { node.kubelet_port };
    Ok(HostPort { host: host.clone(), port })
}

/// The API server's rule: the named one if it is in the pod, else the only regular one.
fn choose_container(exec: &Exec, pod: &Pod) -> Result<String, Error> {
    if exec.subresource == Subresource::PortForward {
        return Ok(String::new());
    }
    container_of(pod, &exec.pod, &exec.container)
}

/// The container of this name, or the only regular one when the name is empty. `name` is the pod's.
pub(crate) fn container_of(pod: &Pod, name: &str, container: &str) -> Result<String, Error> {
    let all = || pod.init_containers.iter().chain(&pod.containers).chain(&pod.ephemeral_containers);
    if !container.is_empty() {
        return match all().find(|name| *name == container) {
            Some(name) => Ok(name.clone()),
            None => Err(Error::NoContainer { container: container.to_owned(), pod: name.to_owned() }),
        };
    }
    match pod.containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Error::AmbiguousContainer { pod: name.to_owned(), choices: String::new() }),
        _ => {
            let names: Vec<_> = all().map(String::as_str).collect();
            let choices = format!(", choose one of: [{}]", names.join(" "));
            Err(Error::AmbiguousContainer { pod: name.to_owned(), choices })
        }
    }
}

// === impl Place ===

impl Place {
    /// Who is going there.
    pub fn caller(&self) -> &Caller {
        self.permit.caller()
    }

    /// What was asked for.
    pub fn exec(&self) -> &Exec {
        self.permit.exec()
    }

    /// The pod, as it was when it was found.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The container chosen; empty for a port-forward.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Who is asked for the session.
    pub fn far_side(&self) -> &FarSide {
        &self.far_side
    }
}

// === impl FarSide ===

impl FarSide {
    /// Whether WebSocket v5 is worth asking for. The API server's version is not known here; it says no if it must.
    pub fn may_speak_v5(&self) -> bool {
        match self {
            Self::Kubelet { speaks_v5, .. } => *speaks_v5,
            Self::ApiServer => true,
        }
    }
}

impl std::fmt::Display for FarSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kubelet { addr, .. } => addr.fmt(f),
            Self::ApiServer => f.write_str("API server"),
        }
    }
}

// === impl HostPort ===

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl Error ===

impl Error {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::BadName { .. }
            | Self::AmbiguousContainer { .. }
            | Self::NoContainer { .. }
            | Self::Unscheduled(_) => Refusal::BadRequest(self.to_string()),
            Self::NoPod(name) => Refusal::not_found("pods", name),
            Self::NoNode(name) => Refusal::not_found("nodes", name),
            Self::NoAddress(_) | Self::Late { .. } => Refusal::Internal(self.to_string()),
            Self::Read(source) => source.refusal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Ask;

    fn exec(query: &str) -> Exec {
        let uri = format!("/api/v1/namespaces/d/pods/web/exec?{query}");
        let ask = Ask::parse(&http::Method::POST, &uri.parse().unwrap(), &http::HeaderMap::new()).unwrap();
        ask.exec.unwrap().unwrap()
    }

    fn pod(init: &[&str], regular: &[&str], ephemeral: &[&str]) -> Pod {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Pod {
            init_containers: names(init),
            containers: names(regular),
            ephemeral_containers: names(ephemeral),
            ..Pod::default()
        }
    }

    fn text(query: &str, pod: &Pod) -> String {
        choose_container(&exec(query), pod).unwrap_err().to_string()
    }

    #[test]
    fn item_022_the_only_regular_container_is_used_whatever_else_there_is() {
        assert_eq!(choose_container(&exec(""), &pod(&["i"], &["a"], &["e"])).unwrap(), "a");
    }

    #[test]
    fn item_023_several_are_listed_init_regular_ephemeral() {
        assert_eq!(
            text("", &pod(&["i1", "i2"], &["a", "b"], &["e"])),
            "a container name must be specified for pod web, choose one of: [i1 i2 a b e]"
        );
    }

    #[test]
    fn item_024_none_to_choose_from() {
        assert_eq!(text("", &pod(&["i"], &[], &[])), "a container name must be specified for pod web");
    }

    #[test]
    fn item_025_an_unknown_container_is_not_valid() {
        assert_eq!(text("container=x", &pod(&[], &["a"], &[])), "container x is not valid for pod web");
    }

    #[test]
    fn item_026_named_init_and_ephemeral_containers_are_accepted() {
        let pod = pod(&["i"], &["a", "b"], &["e"]);
        assert_eq!(choose_container(&exec("container=i"), &pod).unwrap(), "i");
        assert_eq!(choose_container(&exec("container=e"), &pod).unwrap(), "e");
    }

    fn at(node: &Node) -> Result<HostPort, Error> {
        let types = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
        address(node, &types.map(str::to_owned))
    }

    fn node(addresses: &[(&str, &str)], kubelet_port: u16) -> Node {
        let addresses = addresses.iter().map(|&(kind, at)| (kind.to_owned(), at.to_owned())).collect();
        Node { addresses, kubelet_port, ..Node::default() }
    }

    #[test]
    fn a_cluster_that_cannot_be_reached_is_503_and_one_without_an_answer_500() {
        let (act, source) = ("read pod d/web".to_owned(), || "told to".into());
        let unreachable = Error::Read(cluster::Error::Unreachable { act: act.clone(), source: source() });
        let text = "read pod d/web: the API server cannot be reached";
        assert_eq!(unreachable.refusal(), Refusal::Unavailable(text.into()));
        let unanswered = Error::Read(cluster::Error::Unanswered { act: act.clone(), source: source() });
        assert_eq!(unanswered.refusal(), Refusal::Internal(act));
    }

    #[test]
    fn item_028_no_usable_address_names_the_known_ones() {
        let error = at(&node(&[("Other", "x"), ("Odd", "y")], 0)).unwrap_err();
        assert_eq!(
            error.refusal(),
            Refusal::Internal("no preferred addresses found; known addresses: [{Other x} {Odd y}]".into())
        );
        let error = at(&node(&[], 0)).unwrap_err();
        assert_eq!(error.to_string(), "no preferred addresses found; known addresses: []");
    }

    #[test]
    fn item_029_addresses_are_preferred_by_type_and_ipv6_is_bracketed() {
        let both =
            node(&[("ExternalIP", "1.2.3.4"), ("InternalIP", "fd00::1"), ("InternalIP", "10.0.0.5")], 1);
        assert_eq!(at(&both).unwrap().to_string(), "[fd00::1]:1");
        let named = node(&[("InternalIP", "10.0.0.5"), ("Hostname", "node1")], 1);
        assert_eq!(at(&named).unwrap().to_string(), "node1:1");
    }

    #[test]
    fn item_030_a_kubelet_without_a_port_listens_on_10250() {
        assert_eq!(at(&node(&[("Hostname", "n")], 0)).unwrap().port, 10250);
    }
}
