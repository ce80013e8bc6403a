//! Podgate: the gateway through which people and programs get into Kubernetes pods.
//!
//! Rooms in reading order; ARCHITECTURE.md is the map.

pub mod drain;
pub mod status;

pub mod cluster;
pub mod request;
pub mod tls;
pub mod wire;
