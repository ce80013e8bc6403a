//! A gateway under test, and a client that can say anything to it.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Answer, FakeCluster, Far, Pki, soon};
use crate::app::{Gateway, Ground, policy, recording};
use crate::audit::Audit;
use crate::authn::{Methods, Tokens};
use crate::config::Config;
use crate::config::recording::Demand;
use crate::drain::{Drain, Drained};
use crate::policy::{NoGrants, Policy};
use crate::reload::{Live, Reloader};
use crate::telemetry::Metrics;
use crate::tls::{self, ClientVerifier, Clients, Identity};
use crate::upstream::Route;

/// A gateway in front of a [`FakeCluster`].
pub struct TestGateway {
    /// The gateway.
    pub gateway: Gateway,
    /// Who signs its callers, its own certificate and the far side's.
    pub pki: Arc<Pki>,
    /// What it stands in front of.
    pub cluster: Arc<FakeCluster>,
}

/// Settings for tests: any port, short deadlines only where a test asks for them.
pub fn config() -> Config {
    let mut config = Config::default();
    config.api.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.admin.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config
}

impl TestGateway {
    /// A gateway with the settings of [`config`].
    pub async fn start(pki: Arc<Pki>, cluster: Arc<FakeCluster>) -> Self {
        Self::with(config(), pki, cluster).await
    }

    /// A gateway with these settings. Static tokens: `ana-token` is ana of group dev.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn with(config: Config, pki: Arc<Pki>, cluster: Arc<FakeCluster>) -> Self {
        let methods = Methods { anonymous: config.authentication.anonymous, ..Self::methods(&pki) };
        Self::knowing(methods, config, pki, cluster).await
    }

    /// A gateway that knows callers by these methods.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn knowing(methods: Methods, config: Config, pki: Arc<Pki>, cluster: Arc<FakeCluster>) -> Self {
        let ground = Ground { authn: methods, ..Self::ground(&pki, cluster.clone()) };
        Self { gateway: Self::launch(&config, ground).await, pki, cluster }
    }

    /// Certificates of `pki`, and the static token `ana-token` of ana of group dev.
    ///
    /// # Panics
    /// When there is no place for a temporary file.
    pub fn methods(pki: &Pki) -> Methods {
        let tokens = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(tokens.path(), "ana-token,ana,u1,dev\n").expect("write the token file");
        let verifier = ClientVerifier::new(pki.roots()).expect("a verifier");
        Methods {
            certificates: Some(Live::fixed(verifier)),
            tokens: Live::fixed(Tokens::from_file(tokens.path()).expect("the token file")),
            ..Methods::default()
        }
    }

    /// What such a gateway stands on.
    ///
    /// # Panics
    /// When there is no place for a temporary file.
    pub fn ground(pki: &Pki, cluster: Arc<FakeCluster>) -> Ground {
        Ground {
            cluster,
            server_tls: Live::fixed(
                tls::server(&pki.server(), &[tls::HTTP2, tls::HTTP1], Clients::Ask).expect("TLS"),
            ),
            authn: Self::methods(pki),
            policy: Arc::new(Policy::open(Demand::default())),
            grants: None,
            route: Self::route(pki),
            recordings: None,
            sharing: None,
            ready: Vec::new(),
            metrics: Metrics::new(),
            audit: Audit::off(),
            background: Drain::new(),
        }
    }

    /// Directly to kubelets, with a certificate.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn route(pki: &Pki) -> Route {
        let client = tls::client(Some(&pki.client("podgate", &[])), pki.roots(), false);
        Route::kubelet(client.expect("TLS to kubelets"))
    }

    /// A gateway that goes this way, in front of pod `default/web` on node `n`, whose kubelet is `far`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn routed(far: &Far, config: Config, pki: Arc<Pki>, route: Route) -> Self {
        let cluster = FakeCluster::new();
        cluster.node("n", far.addr.port());
        cluster.simple_pod("default/web", "n");
        Self::before(cluster, config, pki, route).await
    }

    /// A gateway that goes this way, in front of this cluster.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn before(cluster: Arc<FakeCluster>, config: Config, pki: Arc<Pki>, route: Route) -> Self {
        let authn = Methods { anonymous: config.authentication.anonymous, ..Self::methods(&pki) };
        let ground = Ground { route, authn, ..Self::ground(&pki, cluster.clone()) };
        Self { gateway: Self::launch(&config, ground).await, pki, cluster }
    }

    async fn launch(config: &Config, ground: Ground) -> Gateway {
        let mut ground = audited(config, ground).await;
        let reloader = Reloader::new(config.reload.period, ground.background.clone(), ground.metrics.clone());
        let rules = policy::open(config, &reloader, Arc::new(NoGrants::default()), None).await;
        ground.policy = Arc::new(rules.expect("read the house rules"));
        let opened = recording::open(&config.recording, &ground.background, &ground.metrics);
        ground.recordings = ground.recordings.or(opened.expect("open the spool"));
        Gateway::start(config, ground, Drain::new()).await.expect("start the gateway")
    }

    /// A gateway with these settings, in front of pod `default/web` on node `n`, whose kubelet is `far`.
    pub async fn facing(far: &Far, config: Config, pki: Arc<Pki>) -> Self {
        let route = Self::route(&pki);
        Self::routed(far, config, pki, route).await
    }

    /// What `podgate serve` does with these settings. They name all it stands in front of, so nobody asks `cluster`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn serve(config: &Config, pki: Arc<Pki>) -> Self {
        let gateway = crate::app::serve::start(config).await.expect("start the gateway");
        Self { gateway, pki, cluster: FakeCluster::new() }
    }

    /// A TLS connection as this user of group dev.
    pub async fn connect_as(&self, user: &str) -> TlsStream<TcpStream> {
        self.connect(self.client_tls(user)).await
    }

    /// A TLS connection with this certificate.
    pub async fn connect_with(&self, identity: &Identity) -> TlsStream<TcpStream> {
        self.connect(tls::client(Some(identity), self.pki.roots(), false).expect("TLS")).await
    }

    /// A TLS connection without a certificate.
    pub async fn connect_anonymously(&self) -> TlsStream<TcpStream> {
        self.connect(without_certificate(self.pki.roots())).await
    }

    /// A TLS connection with this configuration.
    ///
    /// # Panics
    /// When there is none to be had.
    pub async fn connect(&self, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
        self.try_connect(config).await.expect("TLS with the gateway")
    }

    /// A TLS connection with this configuration, if the gateway takes it.
    ///
    /// # Errors
    /// When it does not.
    ///
    /// # Panics
    /// When it neither takes nor refuses it.
    pub async fn try_connect(&self, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let connected = async {
            let tcp = TcpStream::connect(self.gateway.api).await?;
            // As every Go client; without it the kernel would hold small writes back.
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").expect("a name");
            TlsConnector::from(config).connect(name, tcp).await
        };
        soon("a connection to the gateway", connected).await
    }

    /// The configuration of this user of group dev, for connections of any kind.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn client_tls(&self, user: &str) -> Arc<ClientConfig> {
        tls::client(Some(&self.pki.client(user, &["dev"])), self.pki.roots(), false).expect("TLS")
    }

    /// Sends bytes as ana on a connection of their own and returns the first answer.
    ///
    /// # Panics
    /// When there is none.
    pub async fn ask(&self, bytes: &[u8]) -> Answer {
        let mut io = self.connect_as("ana").await;
        send(&mut io, bytes).await;
        Answer::read(&mut io).await.expect("an answer")
    }

    /// What the admin address answers to this request line, such as `GET /readyz`.
    ///
    /// # Panics
    /// When it answers nothing.
    pub async fn admin(&self, line: &str) -> Answer {
        let mut io = TcpStream::connect(self.gateway.admin).await.expect("connect to the admin address");
        send(&mut io, &request(line, "Connection: close\r\n")).await;
        Answer::read(&mut io).await.expect("an answer")
    }

    /// Sends bytes as ana on a connection of their own and returns everything that comes back until the
    /// gateway closes.
    pub async fn say(&self, bytes: &[u8]) -> String {
        let mut io = self.connect_as("ana").await;
        send(&mut io, bytes).await;
        read_to_end(&mut io).await
    }

    /// The value of a series, as `/metrics` prints it; 0 when it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let text = String::from_utf8(self.gateway.metrics.render()).expect("metrics are text");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Stops, and fails the test if anything was left.
    ///
    /// # Panics
    /// When a task did not end by itself.
    pub async fn stop(self) {
        assert_eq!(self.gateway.stop(Duration::from_secs(10)).await, Drained::Clean);
    }
}

/// The same, with the sinks that these settings name.
async fn audited(config: &Config, ground: Ground) -> Ground {
    let reloader = Reloader::new(config.reload.period, ground.background.clone(), ground.metrics.clone());
    let audit = Audit::start(&config.audit, &reloader, &ground.background, &ground.metrics).await;
    Ground { audit: audit.expect("open the audit sinks"), ..ground }
}

/// TLS of a client that has no certificate.
///
/// # Panics
/// When TLS cannot be set up.
pub fn without_certificate(roots: Arc<RootCertStore>) -> Arc<ClientConfig> {
    tls::client(None, roots, false).expect("TLS")
}

/// Writes all bytes and flushes them: TLS may keep what it took.
///
/// # Panics
/// When the peer has closed.
pub async fn send<I: AsyncWrite + Unpin>(io: &mut I, bytes: &[u8]) {
    io.write_all(bytes).await.expect("the peer still listens");
    io.flush().await.expect("the peer still listens");
}

/// A request with this line, such as `GET /version`, and these further header lines.
pub fn request(line: &str, headers: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: podgate.test\r\n{headers}\r\n").into_bytes()
}

/// An upgrade request for `/api/v1/namespaces/default/pods/web/exec` with these further header lines.
pub fn exec_request(query: &str, headers: &str) -> Vec<u8> {
    format!(
        "POST /api/v1/namespaces/default/pods/web/exec?{query} HTTP/1.1\r\n\
         Host: podgate.test\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{headers}\r\n"
    )
    .into_bytes()
}

/// Everything until the peer closes, one way or another.
pub async fn read_to_end(io: &mut TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    // A reset ends the answer just as well: what counts is what arrived before.
    let _ = soon("the end of the connection", io.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads up to and with these bytes, one at a time.
///
/// # Panics
/// When the peer closes before.
pub async fn read_until<I: AsyncRead + Unpin>(io: &mut I, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        all.push(soon(end, io.read_u8()).await.expect("the peer still talks"));
    }
    String::from_utf8(all).expect("text")
}

/// Exactly so many bytes.
///
/// # Panics
/// When the peer closes before.
pub async fn read_exactly(io: &mut TlsStream<TcpStream>, count: usize) -> Vec<u8> {
    let mut all = vec![0; count];
    soon("bytes", io.read_exact(&mut all)).await.expect("the peer still talks");
    all
}
