//! The API server as a far side: where it is, and how podgate proves itself to it.

use futures_util::future::BoxFuture;
use http::HeaderValue;

use crate::cluster;

pub use crate::cluster::kube::connect::Server;
use crate::locate::HostPort;

/// What is known of the API server; asked anew for each session, because all of it may change.
pub trait ApiServer: Send + Sync + 'static {
    /// Where it is.
    fn server(&self) -> Server;

    /// The `Authorization` that podgate itself has, where its certificate is not all. Comes within a deadline of the
    /// implementor's own; may be dropped at any point.
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, cluster::Error>>;
}

// === impl Server ===

impl Server {
    /// Its address.
    pub(super) fn addr(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }
}
