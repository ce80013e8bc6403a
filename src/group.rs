//! Group: the API group `podgate.dev/v1alpha1`, which podgate serves itself in front of any cluster.
//!
//! In the flow: behind `authn`, for requests that are no session. Those for its own resources are reviewed by the cluster
//! and answered here; all others are the cluster's, and its discovery documents are told of what there is besides.
//! A [`Resource`] keeps its objects and knows what may become of them; selectors, tables, watches, patches and the rest of
//! what every server of objects does is done here once for all of them.
//! Invariant: no request gets to a resource that the cluster has not allowed.
//! Source: apiserver `pkg/endpoints/handlers`, `pkg/endpoints/discovery`.

pub mod resource;

/// The group's name.
pub const GROUP: &str = "podgate.dev";

/// Its version.
pub const VERSION: &str = "v1alpha1";

/// Both, as objects have them.
pub const API_VERSION: &str = "podgate.dev/v1alpha1";

pub use resource::{Change, Column, Item, Kind, Listed, Options, Resource, merge};
