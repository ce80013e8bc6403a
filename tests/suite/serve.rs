//! `podgate serve` as a whole: settings and files on one side, an API server and kubelets on the other.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use podgate::cli;
use podgate::config::Config;
use podgate::testing::apiserver::ApiServer;
use podgate::testing::gateway::{request, send, without_certificate};
use podgate::testing::{Answer, Far, Pki, TestGateway, kubelet, soon, spdy, until};
use podgate::wire::remotecommand::StreamType;
use rustls::ClientConfig;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

pub(crate) type Client = spdy::Client<TlsStream<TcpStream>>;

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
cluster: {kubeconfig: kubeconfig, connectTimeout: 1s, reviewTimeout: 1s, readTimeout: 1s, confirmedFor: 0s}
upstream:
  kubelet: {caFile: kubelets.crt, client: {certFile: client.crt, keyFile: client.key}}
session: {recheckPeriod: 1h}
reload: {period: 10ms}
";

/// What stands before the token file's key, to know callers by OpenID Connect besides.
const OIDC: &str = "oidcFile: oidc.yaml\n  tokenFile:";

const ISSUERS: &str = "
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: 'https://idp.test', audiences: [podgate]}
  claimMappings: {username: {claim: sub, prefix: ''}}
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

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
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

    /// What a token gets: the code of the answer to a plain request.
    async fn code_of(&self, token: &str) -> u16 {
        let mut io = self.gateway.connect(without_certificate(self.gateway.pki.roots())).await;
        send(&mut io, &request("GET /api/v1/nodes/n", &format!("Authorization: Bearer {token}\r\n"))).await;
        Answer::read(&mut io).await.expect("an answer").code()
    }

    async fn get(&self, path: &str) -> Answer {
        self.gateway.ask(&request(&format!("GET {path}"), "")).await
    }

    fn reloads(&self, what: &str, outcome: &str) -> f64 {
        self.gateway.metric(&format!("podgate_reloads_total{{outcome=\"{outcome}\",what=\"{what}\"}}"))
    }

    async fn until_reload(&self, what: &str, outcome: &str, change: impl FnOnce()) {
        let before = self.reloads(what, outcome);
        change();
        until("the reload", || self.reloads(what, outcome) > before).await;
    }

    /// What the API server was asked besides reviews and watches.
    fn asked_beyond_reviews(&self) -> Vec<String> {
        let asked = self.api.asked().into_iter().map(|asked| format!("{} {}", asked.method, asked.path));
        asked
            .filter(|line| !line.ends_with("reviews"))
            .filter(|line| !line.contains("/api/v1/pods?") && !line.contains("/api/v1/nodes?"))
            .collect()
    }
}

pub(crate) async fn kubelet_of(pki: &Pki) -> Far {
    Far::start(pki, kubelet::echo).await
}

pub(crate) fn write_files(folder: &Path, pki: &Pki, api: &ApiServer) {
    pki.write_server(folder);
    pki.write_client("podgate", folder);
    for name in ["callers.crt", "kubelets.crt"] {
        std::fs::write(folder.join(name), pki.certificate()).unwrap();
    }
    std::fs::write(folder.join("tokens.csv"), "bens-token,ben,u2,dev\n").unwrap();
    std::fs::write(folder.join("api.crt"), api.certificate()).unwrap();
    std::fs::write(folder.join("kubeconfig"), api.kubeconfig("api.crt")).unwrap();
    std::fs::write(folder.join("podgate.yaml"), SETTINGS).unwrap();
}

pub(crate) fn settings(folder: &Path) -> Config {
    let mut flags = cli::Serve::default();
    flags.gateway.config = Some(folder.join("podgate.yaml"));
    Config::serve(&flags).unwrap()
}

pub(crate) async fn streams(mut client: Client) -> Client {
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
    let rig = Rig::with(|config| config.api.request_timeout = 2 * WITHIN).await;
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
    let alone = rig.exec_as("new").await.refusal();
    assert!(started.elapsed() < WITHIN + SLACK, "{:?}", started.elapsed());
    // Nor does one wait for another. So many handshakes take what the machine takes for them, but their deadlines one after
    // the other take longer than anybody here waits for an answer.
    let mut refused = join_all((0..AT_ONCE).map(|number| {
        let (rig, user) = (&rig, format!("new-{number}"));
        async move { rig.exec_as(&user).await.refusal() }
    }))
    .await;
    refused.push(alone);
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

// === when files change ===

/// The certificate that the gateway shows on a new connection.
async fn shown(rig: &Rig) -> Vec<u8> {
    let io = rig.gateway.connect_anonymously().await;
    io.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_new_server_certificate_is_for_new_connections_and_cuts_nothing() {
    let rig = Rig::start().await;
    let mut session = rig.session("ana").await;
    let mut idle = rig.gateway.connect_as("ana").await;
    let old = shown(&rig).await;
    rig.until_reload("api.tls", "reloaded", || rig.gateway.pki.write_server(rig.folder.path())).await;
    let shows_new = async { while shown(&rig).await == old {} };
    soon("the new certificate", shows_new).await;
    send(&mut idle, &request("GET /api/v1/nodes/n", "")).await;
    assert_eq!(Answer::read(&mut idle).await.expect("an answer").code(), 200);
    moves(&mut session, "after").await;
    drop((session, idle));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_new_client_ca_is_for_new_requests_and_cuts_nothing_that_is_not_looked_at_again() {
    let rig = Rig::start().await;
    let mut session = rig.session("ana").await;
    let other = Pki::new();
    let switch = || rig.write("callers.crt", other.certificate());
    rig.until_reload("authentication.clientCAFile", "reloaded", switch).await;
    assert_eq!(rig.exec_as("ana").await.refusal().0, 401);
    let accepted = rig.far.accepted();
    let tls = podgate::tls::client(Some(&other.client("ana", &[])), rig.gateway.pki.roots(), false).unwrap();
    let mut new = streams(rig.ask_exec(tls, "").await.client()).await;
    assert_eq!(rig.far.accepted(), accepted + 1);
    moves(&mut new, "new").await;
    moves(&mut session, "old").await;
    drop((session, new));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_session_ends_at_the_next_look_when_its_callers_ca_is_replaced() {
    let rig = Rig::with(|config| config.session.recheck_period = Duration::from_millis(50)).await;
    let mut session = rig.session("ana").await;
    moves(&mut session, "before").await;
    rig.write("callers.crt", Pki::new().certificate());
    let told = String::from_utf8(session.finish().await.error).unwrap();
    assert!(told.contains("the credential of this session is no longer valid"), "{told}");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn tokens_come_and_go_with_their_file_and_a_broken_file_changes_nothing() {
    let rig = Rig::start().await;
    assert_eq!((rig.code_of("bens-token").await, rig.code_of("evas-token").await), (200, 401));
    const WHAT: &str = "authentication.tokenFile";
    rig.until_reload(WHAT, "reloaded", || rig.write("tokens.csv", "evas-token,eva,u3\n")).await;
    assert_eq!((rig.code_of("bens-token").await, rig.code_of("evas-token").await), (401, 200));
    rig.until_reload(WHAT, "failed", || rig.write("tokens.csv", "bens-token\n")).await;
    assert_eq!((rig.code_of("bens-token").await, rig.code_of("evas-token").await), (401, 200));
    let gone = || std::fs::remove_file(rig.folder.path().join("tokens.csv")).unwrap();
    rig.until_reload(WHAT, "failed", gone).await;
    assert_eq!((rig.code_of("bens-token").await, rig.code_of("evas-token").await), (401, 200));
    rig.until_reload(WHAT, "reloaded", || rig.write("tokens.csv", "bens-token,ben,u2\n")).await;
    assert_eq!((rig.code_of("bens-token").await, rig.code_of("evas-token").await), (200, 401));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn files_that_are_swapped_as_those_of_a_mounted_secret_are_read_again() {
    use std::os::unix::fs::symlink;
    let rig = Rig::start().await;
    let path = |name: &str| rig.folder.path().join(name);
    let version = |number: u32, token: &str| {
        let folder = path(&format!("..{number}"));
        std::fs::create_dir(&folder).unwrap();
        rig.gateway.pki.write_server(&folder);
        std::fs::write(folder.join("tokens.csv"), format!("{token},ben,u2\n")).unwrap();
        symlink(format!("..{number}"), path("..new")).unwrap();
        std::fs::rename(path("..new"), path("..data")).unwrap();
    };
    version(1, "first");
    for name in ["server.crt", "server.key", "tokens.csv"] {
        symlink(format!("..data/{name}"), path("link")).unwrap();
        std::fs::rename(path("link"), path(name)).unwrap();
    }
    let tokens = |times| rig.reloads("authentication.tokenFile", "reloaded") == times;
    until("the first version", || tokens(1.0) && rig.reloads("api.tls", "reloaded") >= 1.0).await;
    assert_eq!(rig.code_of("first").await, 200);
    let mut session = rig.session("ana").await;
    let old = shown(&rig).await;
    // Both files of the pair are new at the same moment, so one that does not fit is never seen.
    let failed = rig.reloads("api.tls", "failed");
    version(2, "second");
    until("the second version", || tokens(2.0)).await;
    soon("the second certificate", async { while shown(&rig).await == old {} }).await;
    assert_eq!(rig.reloads("api.tls", "failed"), failed);
    assert_eq!((rig.code_of("first").await, rig.code_of("second").await), (401, 200));
    moves(&mut session, "after").await;
    drop(session);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_new_kubeconfig_leads_to_another_api_server_from_then_on() {
    let mut rig = Rig::start().await;
    rig.until_ready().await;
    let mut session = rig.session("ana").await;
    let (other, far) = (ApiServer::start().await, kubelet_of(&rig.gateway.pki).await);
    other.node("m", far.addr.port());
    other.pod("default/web", "2", "m", &["app"]);
    rig.write("other.crt", other.certificate());
    let switch = || rig.write("kubeconfig", other.kubeconfig("other.crt"));
    rig.until_reload("cluster.kubeconfig", "reloaded", switch).await;
    until("watches of the new one", || other.count("/api/v1/pods?") > 0 && other.count("watch=true") >= 2)
        .await;
    let old = std::mem::replace(&mut rig.api, other);
    let asked = old.asked().len();
    moves(&mut rig.session("ana").await, "new").await;
    assert_eq!((far.accepted(), rig.get("/api/v1/nodes/m").await.code()), (1, 200));
    assert_eq!(old.asked().len(), asked, "nobody asks the old one any more");
    moves(&mut session, "old").await;
    // What it names is looked after too.
    let renewed = || rig.write("other.crt", [rig.api.certificate(), rig.api.certificate()].concat());
    rig.until_reload("cluster.kubeconfig", "reloaded", renewed).await;
    // It is of no use any more, and a broken file does not make it so again.
    drop(old);
    rig.until_reload("cluster.kubeconfig", "failed", || rig.write("kubeconfig", "clusters: [")).await;
    moves(&mut rig.session("ana").await, "still").await;
    drop(session);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn podgates_certificate_and_the_ca_of_kubelets_are_replaced_without_a_restart() {
    let rig = Rig::start().await;
    let mut session = rig.session("ana").await;
    let other = Pki::new();
    let far = kubelet_of(&other).await;
    rig.api.node("n", far.addr.port());
    let (code, text) = rig.exec_as("ana").await.refusal();
    assert_eq!(code, 500, "{text}");
    other.write_client("podgate", rig.folder.path());
    rig.write("kubelets.crt", other.certificate());
    moves(&mut rig.until_session("ana").await, "new").await;
    moves(&mut session, "old").await;
    drop(session);
    rig.gateway.stop().await;
}

// === who may ===

fn known_as(name: &str) -> serde_json::Value {
    json!({"authenticated": true, "user": {"username": name, "uid": "u", "groups": ["dev"]}})
}

#[tokio::test]
async fn callers_are_known_by_certificate_by_the_token_file_and_by_the_cluster_and_nobody_else_is() {
    let rig = Rig::start().await;
    rig.api.token("carls-token", known_as("carl"));
    let judge = |spec: &serde_json::Value| {
        let known = ["ana", "ben", "carl"].iter().any(|name| spec["user"] == *name);
        let groups = spec["groups"] == json!(["dev", "system:authenticated"]);
        json!({"allowed": known && groups})
    };
    rig.api.judge(judge);
    for answer in [
        rig.exec_as("ana").await,
        rig.exec_by_token("bens-token").await,
        rig.exec_by_token("carls-token").await,
    ] {
        moves(&mut streams(answer.client()).await, "hello").await;
    }
    assert_eq!(rig.api.count("tokenreviews"), 1, "the cluster is asked about tokens that nobody knows");
    let accepted = rig.far.accepted();
    assert_eq!(accepted, 3);
    assert_eq!(rig.exec_by_token("no-token").await.refusal().0, 401);
    let nobody = without_certificate(rig.gateway.pki.roots());
    assert_eq!(rig.ask_exec(nobody, "").await.refusal().0, 401);
    let stranger = Pki::new().client("ana", &["dev"]);
    let stranger = podgate::tls::client(Some(&stranger), rig.gateway.pki.roots(), false).unwrap();
    assert_eq!(rig.ask_exec(stranger, "").await.refusal().0, 401);
    assert_eq!(rig.far.accepted(), accepted);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_caller_without_rights_never_causes_a_connection_to_a_kubelet() {
    let rig = Rig::start().await;
    rig.api.judge(|_| json!({"allowed": false, "reason": "no rule"}));
    let (code, text) = rig.exec_as("ana").await.refusal();
    assert!(code == 403 && text.contains("no rule"), "{code} {text}");
    assert_eq!((rig.far.accepted(), rig.asked_beyond_reviews()), (0, vec![]));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_caller_without_rights_causes_nothing_but_reviews_where_sessions_go_through_the_api_server() {
    let rig = Rig::with(|config| {
        config.upstream.mode = podgate::config::UpstreamMode::ApiServer;
        config.upstream.kubelet = podgate::config::Kubelet::default();
    })
    .await;
    rig.api.judge(|_| json!({"allowed": false}));
    assert_eq!(rig.exec_as("ana").await.refusal().0, 403);
    assert_eq!((rig.far.accepted(), rig.asked_beyond_reviews()), (0, vec![]));
    // As against a caller who may.
    rig.api.judge(|_| json!({"allowed": true}));
    rig.exec_as("ana").await.client().ping().await;
    let asked = rig.api.asked().into_iter().find(|asked| asked.path.contains("/exec?")).expect("a session");
    assert_eq!(asked.headers["impersonate-user"], "ana");
    assert_eq!(asked.headers["authorization"], "Bearer podgates-own");
    assert_eq!(rig.far.accepted(), 0);
    rig.gateway.stop().await;
}

// === pods that come and go ===

#[tokio::test]
async fn a_pod_is_found_where_it_is_now_whatever_the_watch_has_told() {
    let rig = Rig::start().await;
    rig.until_ready().await;
    rig.api.faults(|faults| faults.silent = true);
    rig.api.delete("pods", "default/web");
    let (code, text) = rig.exec_as("ana").await.refusal();
    assert!(code == 404 && text.contains("pods \\\"web\\\" not found"), "{code} {text}");
    assert_eq!(rig.far.accepted(), 0);

    let far = kubelet_of(&rig.gateway.pki).await;
    rig.api.node("m", far.addr.port());
    rig.api.pod("default/web", "2", "m", &["app"]);
    moves(&mut rig.session("ana").await, "made again elsewhere").await;
    assert_eq!((rig.far.accepted(), far.accepted()), (0, 1));
    rig.gateway.stop().await;
}

// === rights that end ===

#[tokio::test]
async fn who_holds_a_revoked_token_is_told_why_their_session_ends() {
    let rig = Rig::with(|config| config.session.recheck_period = Duration::from_millis(200)).await;
    rig.api.token("carls-token", known_as("carl"));
    let mut session = streams(rig.exec_by_token("carls-token").await.client()).await;
    let asked = rig.api.count("tokenreviews");
    until("a look at the token", || rig.api.count("tokenreviews") > asked).await;
    moves(&mut session, "still known").await;
    let revoked = Instant::now();
    rig.api.token("carls-token", json!({"error": "revoked"}));
    let finished = session.finish().await;
    assert!(revoked.elapsed() < SLACK, "{:?}", revoked.elapsed());
    let told: serde_json::Value = serde_json::from_slice(&finished.error).unwrap();
    assert_eq!(told["status"], "Failure", "{told}");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("the credential of this session is no longer valid"), "{message}");
    let ended = "podgate_sessions_ended_total{end=\"lapsed\",subresource=\"exec\"}";
    until("the end record", || rig.gateway.metric(ended) == 1.0).await;
    rig.gateway.stop().await;
}

// === start and stop ===

#[tokio::test]
async fn readiness_waits_for_the_watches() {
    let rig = Rig::start().await;
    rig.until_ready().await;
    let folder = rig.folder;
    rig.api.faults(|faults| faults.hangs = true);
    let lists = rig.api.count("/api/v1/pods?limit");
    let second = TestGateway::serve(&settings(folder.path()), rig.gateway.pki.clone()).await;
    until("the list to be asked for", || rig.api.count("/api/v1/pods?limit") > lists).await;
    let ready = second.admin("GET /readyz").await;
    assert_eq!(ready.code(), 500, "{}", ready.body);
    assert!(ready.body.contains("[-]informer-sync failed"), "{}", ready.body);
    assert_eq!(second.admin("GET /healthz").await.code(), 200);
    rig.api.faults(|faults| faults.hangs = false);
    soon("readiness", async { while second.admin("GET /readyz").await.code() != 200 {} }).await;
    second.stop().await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_watches_or_unused_connections() {
    let rig = Rig::start().await;
    rig.until_ready().await;
    let mut idle = rig.gateway.connect_as("ana").await;
    send(&mut idle, &request("GET /api/v1/nodes/n", "")).await;
    assert_eq!(Answer::read(&mut idle).await.expect("an answer").code(), 200);
    drop(rig.session("ana").await);
    until("the session to be over", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    let started = Instant::now();
    rig.gateway.stop().await;
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
}

// === settings that are wrong ===

/// Runs the binary with the settings in this folder and nothing from the environment; its exit code and what
/// it writes to stderr, where the folder is `DIR`.
async fn podgate(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
    command.args(args).arg("--config").arg(folder.join("podgate.yaml"));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    let output = soon("the end", command.output()).await.unwrap();
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said.replace(folder.to_str().unwrap(), "DIR"))
}

/// A folder in which everything is as it should be.
async fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), &Pki::new(), &ApiServer::start().await);
    folder
}

#[tokio::test]
async fn nothing_is_said_about_settings_that_are_right() {
    let folder = folder().await;
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(0), String::new()));
}

#[tokio::test]
async fn settings_that_are_wrong_are_told_by_file_line_and_key() {
    let folder = folder().await;
    for (from, to, told) in [
        (
            "reload: {period: 10ms}",
            "reload: {perod: 10ms}",
            "config file DIR/podgate.yaml, at reload.perod: unknown field `perod`, expected one of period at \
             line 15, column 10",
        ),
        (
            "recheckPeriod: 1h",
            "recheckPeriod: soon",
            "config file DIR/podgate.yaml, at session.recheckPeriod: \"soon\" is no duration, such as 30s or \
             1m30s at line 14, column 26",
        ),
        (
            "recheckPeriod: 1h",
            "maxSessions: many",
            "config file DIR/podgate.yaml, at session.maxSessions: not a whole number at line 14, column 24",
        ),
        (
            "recheckPeriod: 1h",
            "maxSessions: 0",
            "config file DIR/podgate.yaml, line 14, at session.maxSessions: is at least 1",
        ),
        (
            "  tls: {certFile: server.crt, keyFile: server.key}\n",
            "",
            "config file DIR/podgate.yaml, line 3, at api.tls: certFile and keyFile are needed: podgate \
             serves TLS only",
        ),
        (
            "reload:",
            " reload:",
            "config file DIR/podgate.yaml: while parsing a block mapping, did not find expected key at \
             line 15, column 2",
        ),
    ] {
        assert!(SETTINGS.contains(from));
        std::fs::write(folder.path().join("podgate.yaml"), SETTINGS.replace(from, to)).unwrap();
        for face in ["check", "serve"] {
            let said = podgate(folder.path(), &[face]).await;
            assert_eq!(said, (Some(2), format!("podgate: {told}\n")));
        }
    }
}

#[tokio::test]
async fn files_that_are_wrong_are_told_by_key_and_path() {
    const MISSING: &str = "No such file or directory (os error 2)";
    let folder = folder().await;
    std::fs::write(folder.path().join("podgate.yaml"), SETTINGS.replace("tokenFile:", OIDC)).unwrap();
    std::fs::write(folder.path().join("oidc.yaml"), ISSUERS).unwrap();
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(0), String::new()));
    let elsewhere = tempfile::tempdir().unwrap();
    Pki::new().write_server(elsewhere.path());
    let key = std::fs::read_to_string(elsewhere.path().join("server.key")).unwrap();
    for (file, content, told) in [
        ("server.crt", None, format!("api.tls: read certificates from DIR/server.crt: I/O error: {MISSING}")),
        ("server.crt", Some("nothing"), "api.tls: no certificate in DIR/server.crt".into()),
        (
            "server.key",
            Some(&*key),
            "api.tls: the key in DIR/server.key is not that of the certificate in DIR/server.crt".into(),
        ),
        (
            "client.key",
            Some(&*key),
            "upstream.kubelet: the key in DIR/client.key is not that of the certificate in DIR/client.crt"
                .into(),
        ),
        ("kubelets.crt", Some(""), "upstream.kubelet: no certificate in DIR/kubelets.crt".into()),
        (
            "callers.crt",
            None,
            format!(
                "authentication.clientCAFile: read certificates from DIR/callers.crt: I/O error: {MISSING}"
            ),
        ),
        (
            "tokens.csv",
            Some("a,b\n"),
            "authentication.tokenFile: token file DIR/tokens.csv, line 1: wants token, user name and user uid"
                .into(),
        ),
        (
            "oidc.yaml",
            Some("jwt: [{issuer: {url: 'https://idp.test', audience: [a]}}]"),
            "authentication.oidcFile: authentication configuration DIR/oidc.yaml, at jwt[0].issuer.audience: \
             unknown field `audience`, expected one of url, discoveryURL, certificateAuthority, audiences, \
             audienceMatchPolicy, egressSelectorType at line 1, column 42"
                .into(),
        ),
        (
            "kubeconfig",
            None,
            format!(
                "cluster.kubeconfig: read kubeconfig DIR/kubeconfig: failed to read kubeconfig from \
                 '\"DIR/kubeconfig\"': {MISSING}"
            ),
        ),
        ("kubeconfig", Some("clusters: ["), "cluster.kubeconfig: DIR/kubeconfig:1: not a kubeconfig".into()),
        (
            "api.crt",
            None,
            format!(
                "cluster.kubeconfig: read kubeconfig DIR/kubeconfig: failed to load certificate authority: \
                 failed to read file '\"DIR/api.crt\"': {MISSING}"
            ),
        ),
    ] {
        let path = folder.path().join(file);
        let good = std::fs::read(&path).unwrap();
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let told = format!("podgate: setting {told}");
        assert_eq!(podgate(folder.path(), &["check"]).await, (Some(2), format!("{told}\n")));
        let (code, said) = podgate(folder.path(), &["serve"]).await;
        assert_eq!((code, said.lines().last()), (Some(1), Some(&*told)));
        std::fs::write(&path, good).unwrap();
    }
}

#[tokio::test]
async fn everything_that_is_wrong_with_files_is_told_at_once() {
    let folder = folder().await;
    for file in ["server.key", "kubeconfig", "kubelets.crt", "tokens.csv"] {
        std::fs::write(folder.path().join(file), "{").unwrap();
    }
    let (code, said) = podgate(folder.path(), &["check"]).await;
    let keys: Vec<_> = said.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    let wrong = ["api.tls", "cluster.kubeconfig", "upstream.kubelet", "authentication.tokenFile"];
    assert_eq!(
        (code, keys),
        (Some(2), wrong.map(|key| format!("setting {key}")).iter().map(|key| &**key).collect())
    );
}

#[tokio::test]
async fn without_a_kubeconfig_podgate_wants_to_be_in_a_pod() {
    let folder = folder().await;
    let text = SETTINGS.replace("kubeconfig: kubeconfig, ", "");
    std::fs::write(folder.path().join("podgate.yaml"), text).unwrap();
    let told = "podgate: setting cluster.kubeconfig: not set, and podgate does not run in a pod whose \
                service account would do instead: failed to read an incluster environment variable: \
                environment variable not found\n";
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(2), told.to_owned()));
}

#[tokio::test]
async fn a_kubeconfig_whose_token_cannot_be_shown_to_kubelets_wants_another_credential() {
    let folder = folder().await;
    let text = SETTINGS.replace(", client: {certFile: client.crt, keyFile: client.key}", "");
    std::fs::write(folder.path().join("podgate.yaml"), text).unwrap();
    let told = "podgate: setting upstream.kubelet: kubelets want a certificate or a token of podgate, and \
                its kubeconfig names no file with one; set client or tokenFile\n";
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(2), told.to_owned()));
}

#[tokio::test]
async fn house_rules_that_cannot_be_used_are_told_with_file_document_line_and_path() {
    let folder = folder().await;
    let set = |policy: &str| {
        let text = format!("{SETTINGS}policy: {policy}\n");
        std::fs::write(folder.path().join("podgate.yaml"), text).unwrap();
    };
    set("{files: [rules]}");
    let rules = folder.path().join("rules");
    let told =
        "podgate: setting policy.files: read policies in DIR/rules: No such file or directory (os error 2)\n";
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(2), told.to_owned()));
    std::fs::create_dir(&rules).unwrap();
    let told = "podgate: setting policy.files: DIR/rules holds no policy\n";
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(2), told.to_owned()));
    let policy = |rule: &str| {
        format!(
            "apiVersion: podgate.dev/v1alpha1\nkind: ExecPolicy\nmetadata: {{name: p}}\nspec: {{rules: [{rule}]}}\n"
        )
    };
    let good = policy("{name: r, match: {}, effect: deny}");
    let bad = policy("{name: r, match: {hours: {from: noon, to: '13:00'}}, effect: deny}");
    std::fs::write(rules.join("a.yaml"), format!("{good}---\n{bad}")).unwrap();
    let told = "podgate: setting policy.files: DIR/rules/a.yaml, document 2, line 9, at \
                spec.rules[0].match.hours.from: \"noon\" is no time of day, such as 09:30\n";
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(2), told.to_owned()));
    std::fs::write(rules.join("a.yaml"), good).unwrap();
    assert_eq!(podgate(folder.path(), &["check"]).await, (Some(0), String::new()));
    set("{default: deny}");
    let (code, said) = podgate(folder.path(), &["check"]).await;
    assert!(
        code == Some(2) && said.contains("at policy.default: is deny, and there are no policies"),
        "{said}"
    );
}
