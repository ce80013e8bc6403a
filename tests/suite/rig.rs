//! A gateway in front of a far side that switches and says back what it hears, and never closes first.

use std::sync::Arc;
use std::time::Duration;

use podgate::authn::{Methods, TokenReview};
use podgate::config::Config;
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, send};
use podgate::testing::{FakeCluster, Far, Pki, TestGateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A far side's end of a connection.
pub(crate) type FarIo = TlsStream<TcpStream>;

pub(crate) struct Rig {
    pub(crate) far: Far,
    pub(crate) gateway: TestGateway,
}

pub(crate) async fn rig() -> Rig {
    rig_with(config()).await
}

pub(crate) async fn rig_with(config: Config) -> Rig {
    let pki = Arc::new(Pki::new());
    let far = echo(&pki).await;
    let gateway = TestGateway::facing(&far, config, pki).await;
    Rig { far, gateway }
}

/// The same, where the cluster is asked about tokens, each time.
pub(crate) async fn rig_knowing_tokens(config: Config) -> Rig {
    let pki = Arc::new(Pki::new());
    let far = echo(&pki).await;
    let cluster = FakeCluster::new();
    cluster.node("n", far.addr.port());
    cluster.simple_pod("default/web", "n");
    let review = TokenReview {
        cluster: cluster.clone(),
        audiences: Vec::new(),
        allowed_for: Duration::ZERO,
        denied_for: Duration::ZERO,
        timeout: Duration::from_secs(10),
    };
    let methods = Methods { review: Some(review), ..TestGateway::methods(&pki) };
    let gateway = TestGateway::knowing(methods, config, pki, cluster).await;
    Rig { far, gateway }
}

async fn echo(pki: &Pki) -> Far {
    Far::start(pki, echoes).await
}

/// Switches, then sends back what comes until the other side closes.
pub(crate) async fn echoes(mut io: FarIo) {
    send(&mut io, SWITCHING).await;
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = io.read(&mut bytes).await {
        if io.write_all(&bytes[..count]).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
}

impl Rig {
    /// Stops, after making sure that no kubelet ever heard of anything.
    pub(crate) async fn stop_untouched(self) {
        assert_eq!(self.far.accepted(), 0, "no connection to the far side");
        self.gateway.stop().await;
    }
}
