//! The API server as a far side: where it is, and how podgate proves itself to it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::HeaderValue;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::cluster;
use crate::locate::HostPort;

/// What is known of the API server; asked anew for each session, because all of it may change.
pub trait ApiServer: Send + Sync + 'static {
    /// Where it is.
    fn server(&self) -> Server;

    /// The `Authorization` that podgate itself has, where its certificate is not all. Comes within a deadline of the
    /// implementor's own; may be dropped at any point.
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, cluster::Error>>;
}

/// Where the API server is.
#[derive(Debug, Clone)]
pub struct Server {
    /// A DNS name or an IP address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Stands before every path; empty unless the server shares its host with others. No slash at its end.
    pub prefix: String,
    /// With podgate's own certificate, if it has one; ALPN has to be HTTP/1.1 alone, as [`crate::tls::client`] makes it.
    pub tls: Arc<ClientConfig>,
    /// What its certificate has to cover.
    pub name: ServerName<'static>,
}

// === impl Server ===

impl Server {
    /// Its address.
    pub(super) fn addr(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }
}
