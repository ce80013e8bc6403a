//! Dev: an embedded cluster behind the same doors as a real one.
//!
//! Three parts that only `app::dev` brings together: what the cluster holds and says (`manifests`, `store`,
//! `rbac`, `api`, joined in `cluster`), the folder with its keys (`state`), and the nodes (`node`).

pub mod cluster;

mod log_options;

pub mod api;
pub mod manifests;
pub mod rbac;
pub mod store;

pub mod node;
pub mod state;
