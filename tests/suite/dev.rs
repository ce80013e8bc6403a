//! `podgate dev` in this process, on ports of its own, for the modules that talk to it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use podgate::app::dev::Dev;
use podgate::config::Config;
use podgate::drain::Drained;
use podgate::testing::gateway::without_certificate;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A running embedded cluster and its state folder.
pub(crate) struct Running {
    pub(crate) dev: Dev,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn config(folder: &tempfile::TempDir) -> Config {
    let mut config = Config::default();
    config.api.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.admin.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.dev.dir = folder.path().join("state");
    config
}

impl Running {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dev = Dev::start(&config(&folder)).await.unwrap();
        Self { dev, folder }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("state/kubeconfig")
    }

    /// The token of a user, from the state folder.
    pub(crate) fn token(&self, user: &str) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("state/tokens.csv")).unwrap();
        let line = text.lines().find(|line| line.split(',').nth(1) == Some(user)).unwrap();
        line.split(',').next().unwrap().to_owned()
    }

    /// A TLS connection without a client certificate.
    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let tls = TlsConnector::from(without_certificate(self.dev.state().client_roots()));
        let tcp = TcpStream::connect(self.dev.api()).await.unwrap();
        tls.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
    }

    /// Stops, and fails the test if a session was still there.
    pub(crate) async fn stop(self) {
        assert_eq!(self.dev.stop(Duration::from_secs(10)).await, Drained::Clean);
    }
}
