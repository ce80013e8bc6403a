//! `podgate serve` as a whole: settings and files on one side, an API server and kubelets that can fail on the other.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use podgate::cli;
use podgate::config::Config;
use podgate::testing::apiserver::ApiServer;
use podgate::testing::gateway::{request, send, without_certificate};
use podgate::testing::{Answer, Far, Pki, TestGateway, kubelet, soon, spdy};
use podgate::wire::remotecommand::StreamType;
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

type Client = spdy::Client<TlsStream<TcpStream>>;

/// Every deadline towards the API server.
const WITHIN: Duration = Duration::from_secs(1);

/// Most that a refusal may take beyond the deadlines on its way: a machine that runs other tests is slow.
const SLACK: Duration = Duration::from_secs(4);

const SETTINGS: &str = "
api:
  listen: 127.0.0.1:0
  tls: {certFile: server.crt, keyFile: server.key}
admin: {listen: '127.0.0.1:0'}
authentication:
  clientCAFile: callers.crt
  tokenFile: tokens.csv
  tokenReview: {allowedFor: 0s, deniedFor: 0s}
authorization: {allowedFor: 0s, deniedFor: 0s}
cluster: {kubeconfig: kubeconfig, connectTimeout: 1s, reviewTimeout: 1s, readTimeout: 1s}
upstream:
  kubelet: {caFile: kubelets.crt, client: {certFile: client.crt, keyFile: client.key}}
session: {recheckPeriod: 1h}
reload: {period: 10ms}
";

/// A gateway in front of pod `default/web` on node `n`, whose kubelet is `far`.
struct Rig {
    folder: TempDir,
    api: ApiServer,
    far: Far,
    gateway: TestGateway,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (folder, pki) = (tempfile::tempdir().unwrap(), Arc::new(Pki::new()));
        let (api, far) = (ApiServer::start().await, kubelet_of(&pki).await);
        api.node("n", far.addr.port());
        api.pod("default/web", "1", "n", &["app"]);
        write_files(folder.path(), &pki, &api);
        let mut config = settings(folder.path());
        change(&mut config);
        let gateway = TestGateway::serve(&config, pki).await;
        Self { folder, api, far, gateway }
    }

    async fn until_ready(&self) {
        soon("readiness", async {
            while self.gateway.admin("GET /readyz").await.code() != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// What becomes of an exec by this client, with these further header lines.
    async fn ask_exec(&self, tls: Arc<ClientConfig>, headers: &str) -> spdy::Answer<TlsStream<TcpStream>> {
        let request = format!(
            "POST /api/v1/namespaces/default/pods/web/exec?command=id&stdin=1&stdout=1 HTTP/1.1\r\n\
             Host: podgate.test\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{headers}\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0"
        );
        let io = self.gateway.connect(tls).await;
        soon("an answer", spdy::connect(io, &request)).await
    }

    async fn exec_as(&self, user: &str) -> spdy::Answer<TlsStream<TcpStream>> {
        self.ask_exec(self.gateway.client_tls(user), "").await
    }

    async fn exec_by_token(&self, token: &str) -> spdy::Answer<TlsStream<TcpStream>> {
        let tls = without_certificate(self.gateway.pki.roots());
        self.ask_exec(tls, &format!("Authorization: Bearer {token}\r\n")).await
    }

    /// A session by a client certificate, with its streams open.
    async fn session(&self, user: &str) -> Client {
        streams(self.exec_as(user).await.client()).await
    }

    /// Waits for an exec that is not refused.
    async fn until_session(&self, user: &str) -> Client {
        let opened = async {
            loop {
                match self.exec_as(user).await {
                    spdy::Answer::Switched(client) => return *client,
                    spdy::Answer::Refused(..) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        streams(soon("a new session", opened).await).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.gateway.ask(&request(&format!("GET {path}"), "")).await
    }
}

async fn kubelet_of(pki: &Pki) -> Far {
    Far::start(pki, kubelet::echo).await
}

fn write_files(folder: &Path, pki: &Pki, api: &ApiServer) {
    pki.write_server(folder);
    pki.write_client("podgate", folder);
    for name in ["callers.crt", "kubelets.crt"] {
        std::fs::copy(folder.join("ca.crt"), folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("tokens.csv"), "bens-token,ben,u2,dev\n").unwrap();
    std::fs::write(folder.join("api.crt"), api.certificate()).unwrap();
    std::fs::write(folder.join("kubeconfig"), api.kubeconfig("api.crt")).unwrap();
    std::fs::write(folder.join("podgate.yaml"), SETTINGS).unwrap();
}

fn settings(folder: &Path) -> Config {
    let mut flags = cli::Serve::default();
    flags.gateway.config = Some(folder.join("podgate.yaml"));
    Config::serve(&flags).unwrap()
}

async fn streams(mut client: Client) -> Client {
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
    client
}

/// Bytes there and back.
async fn moves(session: &mut Client, what: &str) {
    session.write(what.as_bytes()).await;
    session.until(StreamType::Stdout, what).await;
}

// === when the API server fails ===

enum Fault {
    /// Nothing listens.
    Down,
    /// Connections are accepted, by a kernel whose process says nothing.
    Mute,
    /// Requests are read and never answered.
    Hung,
}

async fn a_fault_ends_no_session_and_is_over_when_it_is_over(fault: Fault) {
    const AT_ONCE: usize = 100;
    let rig = Rig::with(|config| config.api.request_timeout = WITHIN).await;
    rig.until_ready().await;
    let mut session = rig.session("ana").await;
    moves(&mut session, "before").await;
    let accepted = rig.far.accepted();

    let mut held = None;
    match fault {
        Fault::Hung => rig.api.faults(|faults| faults.hangs = true),
        Fault::Down | Fault::Mute => rig.api.stop().await,
    }
    if let Fault::Mute = fault {
        held = Some(TcpListener::bind(rig.api.addr).unwrap());
    }

    // The longest way there is: a review, and nothing after it.
    let started = Instant::now();
    let refused = join_all((0..AT_ONCE).map(|number| {
        let (rig, user) = (&rig, format!("new-{number}"));
        async move { rig.exec_as(&user).await.refusal() }
    }))
    .await;
    assert!(started.elapsed() < WITHIN + SLACK, "{:?}", started.elapsed());
    for (code, text) in refused {
        assert_eq!(code, 503, "{text}");
        assert!(text.contains("\"kind\":\"Status\"") && text.contains("review"), "{text}");
    }
    let (code, text) = rig.exec_by_token("a-token").await.refusal();
    assert!(code == 503 && text.contains("token"), "{code} {text}");
    let answer = rig.get("/api/v1/nodes").await;
    match fault {
        Fault::Hung => assert_eq!(answer.code(), 504, "{}", answer.body),
        Fault::Down | Fault::Mute => assert_eq!(answer.code(), 503, "{}", answer.body),
    }
    assert_eq!(rig.far.accepted(), accepted, "nobody gets to a kubelet without a review");
    moves(&mut session, "meanwhile").await;

    match fault {
        Fault::Hung => rig.api.faults(|faults| faults.hangs = false),
        Fault::Down | Fault::Mute => {
            drop(held);
            rig.api.restart().await;
        }
    }
    moves(&mut rig.until_session("eve").await, "new").await;
    assert_eq!(rig.get("/api/v1/nodes/n").await.code(), 200);
    moves(&mut session, "after").await;
    drop(session);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn sessions_outlive_an_api_server_that_is_down_and_new_ones_are_refused_until_it_is_back() {
    a_fault_ends_no_session_and_is_over_when_it_is_over(Fault::Down).await;
}

#[tokio::test]
async fn sessions_outlive_an_api_server_that_says_nothing_and_new_ones_are_refused_until_it_does() {
    a_fault_ends_no_session_and_is_over_when_it_is_over(Fault::Mute).await;
}

#[tokio::test]
async fn sessions_outlive_an_api_server_that_hangs_and_new_ones_are_refused_until_it_is_back() {
    a_fault_ends_no_session_and_is_over_when_it_is_over(Fault::Hung).await;
}
