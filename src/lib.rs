//! Podgate: the gateway through which people and programs get into Kubernetes pods.
//!
//! Rooms in reading order; ARCHITECTURE.md is the map.

pub mod wire;
