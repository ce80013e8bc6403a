//! Dev: an embedded cluster behind the same doors as a real one.

pub mod api;
pub mod cluster;
pub mod manifests;
pub mod rbac;
pub mod store;
