//! Kube: a real cluster, asked through its API server.

pub mod connect;
pub mod forward;
