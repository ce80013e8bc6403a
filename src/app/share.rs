//! What the settings name by which replicas share their sessions.

use std::time::Duration;

use crate::cluster::kube::collection::Collection;
use crate::cluster::kube::connect::Connection;
use crate::config::Config;
use crate::grant::configmaps::ConfigMaps;
use crate::group::share::{Identity, SELECTOR, Times};
use crate::reload::Live;

/// For one write: a beat is overdue then.
const WITHIN: Duration = Duration::from_secs(5);

/// By what sessions are shared.
#[derive(Debug)]
pub struct Sharing {
    /// The ConfigMaps.
    pub maps: Collection,
    /// Who this process is.
    pub identity: Identity,
    /// What happens when.
    pub times: Times,
}

/// As the settings say, where podgate's own namespace is this.
pub(super) fn in_cluster(config: &Config, connection: Live<Connection>, namespace: String) -> Sharing {
    let (path, most) = (ConfigMaps::path(&namespace), config.cluster.max_waiting);
    let pod = &config.cluster.pod;
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let replica = pod.name.clone().unwrap_or_else(host);
    Sharing {
        maps: Collection::new(connection, "sessions", path, SELECTOR, WITHIN, most),
        identity: Identity { namespace, replica, pod_uid: pod.uid.clone() },
        times: Times::default(),
    }
}
