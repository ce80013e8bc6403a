//! Who is asking: every way to be known, and everything that is none.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, Request, Response, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use podgate::authn::oidc::{Config, Oidc, Pace};
use podgate::authn::{Authn, Error, FrontProxy, Methods, TokenReview};
use podgate::cluster::User;
use podgate::drain::Drain;
use podgate::listen::Conn;
use podgate::reload::Live;
use podgate::testing::answer::status;
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, exec_request, request, send};
use podgate::testing::{Answer, FakeCluster, Far, Pki, TestGateway, until};
use podgate::tls::{self, ClientVerifier, Clients, Identity};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Asks an issuer again at once, for whatever reason.
const AT_ONCE: Pace = Pace { refresh: Duration::ZERO, retry: Duration::ZERO };

// === an issuer ===

/// An OpenID Connect issuer on loopback.
struct Issuer {
    url: String,
    ca: String,
    facts: Arc<Facts>,
    drain: Drain,
}

/// What it answers.
#[derive(Default)]
struct Facts {
    discovery: Mutex<Value>,
    keys: Mutex<Value>,
    /// Answers this code and nothing else, unless it is 0.
    broken: AtomicUsize,
    discoveries: AtomicUsize,
}

/// A key that signs tokens.
struct SigningKey {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Issuer {
    async fn start(keys: &[&SigningKey]) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let identity = Identity::new(vec![certified.cert.der().clone()], key);
        let tls = tls::server(&identity, &[tls::HTTP1], Clients::Ask).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (facts, drain) = (Arc::new(Facts::default()), Drain::new());
        let issuer = Self { ca: certified.cert.pem(), facts: facts.clone(), drain: drain.clone(), url };
        issuer.has(keys);
        issuer.describe(&issuer.url, &format!("{}/keys", issuer.url));
        let stop = drain.clone();
        drain.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = tokio::select! {
                    () = stop.stopping() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let (tls, facts) = (TlsAcceptor::from(tls.clone()), facts.clone());
                connections.spawn(async move {
                    let Ok(io) = tls.accept(tcp).await else { return };
                    let answer =
                        service_fn(|request| std::future::ready(Ok::<_, Infallible>(facts.answer(&request))));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(io), answer)
                        .await;
                });
            }
        });
        issuer
    }

    /// From now on these are its keys.
    fn has(&self, keys: &[&SigningKey]) {
        let keys = keys.iter().map(|key| key.public());
        *self.facts.keys.lock().unwrap() = json!({"keys": keys.collect::<Vec<_>>()});
    }

    /// From now on its discovery document says this.
    fn describe(&self, issuer: &str, keys: &str) {
        *self.facts.discovery.lock().unwrap() = json!({"issuer": issuer, "jwks_uri": keys});
    }

    fn breaks(&self, code: usize) {
        self.facts.broken.store(code, Ordering::Relaxed);
    }

    /// How often it was asked for its keys.
    fn asked(&self) -> usize {
        self.facts.discoveries.load(Ordering::Relaxed)
    }

    /// Claims of a good token of ana.
    fn claims(&self) -> Value {
        json!({"iss": self.url, "aud": "podgate", "sub": "ana", "exp": now() + 600, "groups": ["dev"]})
    }

    /// A file with this one issuer and these further lines.
    fn file(&self, more: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n{}",
            self.entry(more)
        )
    }

    fn entry(&self, more: &str) -> String {
        let ca = self.ca.trim().replace('\n', "\n      ");
        format!(
            "- issuer:\n    url: {}\n    audiences: [podgate]\n    certificateAuthority: |\n      \
             {ca}\n{more}",
            self.url
        )
    }

    async fn stop(self) {
        self.drain.finish(Duration::ZERO).await;
    }
}

impl Facts {
    fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let discovery = request.uri().path() == "/.well-known/openid-configuration";
        self.discoveries.fetch_add(usize::from(discovery), Ordering::Relaxed);
        let code = match self.broken.load(Ordering::Relaxed) {
            0 => 200,
            code => u16::try_from(code).unwrap(),
        };
        let body = match request.uri().path() {
            _ if discovery => self.discovery.lock().unwrap().to_string(),
            "/keys" => self.keys.lock().unwrap().to_string(),
            "/huge" => format!("{{\"keys\":[], \"pad\":\"{}\"}}", "x".repeat(2 << 20)),
            _ => String::new(),
        };
        let body = Full::from(body);
        Response::builder().status(code).header(header::LOCATION, "/keys").body(body).unwrap()
    }
}

impl SigningKey {
    fn new(id: &'static str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::ES256 => {
                EncodingKey::from_ec_der(&rcgen::KeyPair::generate().unwrap().serialize_der())
            }
            Algorithm::ES384 => {
                let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
                EncodingKey::from_ec_der(&key.serialize_der())
            }
            _ => {
                let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
                // PKCS#1 without what PKCS#8 puts before it: 26 bytes for a key of 2048 bits.
                EncodingKey::from_rsa_der(&key.serialize_der()[26..])
            }
        };
        Self { id, algorithm, key }
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with(self.algorithm, Some(self.id), claims)
    }

    fn sign_with(&self, algorithm: Algorithm, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

const PLAIN: &str = "  \
  claimMappings:
    username: {claim: sub, prefix: 'oidc:'}
    groups: {claim: groups, prefix: 'g:'}
";

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn oidc(file: &str, pace: Pace) -> Option<Live<Oidc>> {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), file).unwrap();
    let config = Config::from_file(path.path()).unwrap_or_else(|error| panic!("{error}"));
    Some(Live::fixed(Oidc::paced(config, pace).unwrap()))
}

// === asking a gateway ===

struct Door(TestGateway);

impl Door {
    async fn open(methods: Methods, pki: &Arc<Pki>, cluster: &Arc<FakeCluster>) -> Self {
        Self(TestGateway::knowing(methods, config(), pki.clone(), cluster.clone()).await)
    }

    /// A gateway that knows nothing but this issuer's tokens, and lets the anonymous in.
    async fn trusting(issuer: &Issuer, more: &str, pace: Pace) -> Self {
        let oidc = oidc(&issuer.file(more), pace);
        let methods = Methods { oidc, anonymous: true, ..Methods::default() };
        Self::open(methods, &Arc::new(Pki::new()), &FakeCluster::new()).await
    }

    /// What these headers get from `/whoami`, on a connection with this certificate or none: the user, or the
    /// code.
    async fn whoami(&self, identity: Option<&Identity>, headers: &str) -> String {
        let mut io = match identity {
            Some(identity) => self.0.connect_with(identity).await,
            None => self.0.connect_anonymously().await,
        };
        send(&mut io, &request("GET /whoami", headers)).await;
        let answer = Answer::read(&mut io).await.expect("an answer");
        match answer.code() {
            200 => answer.body,
            401 => {
                assert_eq!(answer.body, status(401, "Unauthorized", "Unauthorized", ""));
                "401".to_owned()
            }
            code => code.to_string(),
        }
    }

    async fn bearer(&self, token: &str) -> String {
        self.whoami(None, &bearer(token)).await
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

const ANA: &str = "oidc:ana [\"g:dev\", \"system:authenticated\"] {}";

// === OpenID Connect ===

#[tokio::test]
async fn a_token_of_a_configured_issuer_is_its_user_whatever_key_signed_it() {
    let keys = [
        SigningKey::new("r", Algorithm::RS256),
        SigningKey::new("p", Algorithm::PS256),
        SigningKey::new("e", Algorithm::ES256),
        SigningKey::new("f", Algorithm::ES384),
    ];
    let issuer = Issuer::start(&keys.iter().collect::<Vec<_>>()).await;
    let door = Door::trusting(&issuer, PLAIN, Pace::default()).await;
    let claims = issuer.claims();
    for key in &keys {
        assert_eq!(door.bearer(&key.sign(&claims)).await, ANA, "{}", key.id);
        assert_eq!(door.bearer(&key.sign_with(key.algorithm, None, &claims)).await, ANA, "{}", key.id);
    }
    assert_eq!(issuer.asked(), 1);
    let mut several = claims.clone();
    several["aud"] = json!(["other", "podgate"]);
    assert_eq!(door.bearer(&keys[0].sign(&several)).await, ANA);
    issuer.stop().await;
    door.0.stop().await;
}

#[tokio::test]
async fn a_token_that_is_wrong_in_any_way_is_401_and_never_anonymous() {
    let (key, other) = (SigningKey::new("k", Algorithm::RS256), SigningKey::new("k", Algorithm::RS256));
    let issuer = Issuer::start(&[&key]).await;
    let door = Door::trusting(&issuer, PLAIN, Pace::default()).await;
    assert_eq!(door.bearer(&key.sign(&issuer.claims())).await, ANA);
    assert!(door.whoami(None, "").await.starts_with("system:anonymous "));

    for (name, value) in [
        ("aud", json!("other")),
        ("aud", json!(["other"])),
        ("aud", json!([])),
        ("aud", json!(7)),
        ("aud", Value::Null),
        ("iss", json!(format!("{}/", issuer.url))),
        ("iss", json!([issuer.url])),
        ("exp", json!(now() - 60)),
        ("exp", json!("tomorrow")),
        ("exp", Value::Null),
        ("nbf", json!(now() + 60)),
        ("sub", json!("")),
        ("sub", json!(["ana"])),
        ("sub", Value::Null),
        ("groups", json!({"a": "b"})),
    ] {
        let mut claims = issuer.claims();
        claims[name] = value;
        assert_eq!(door.bearer(&key.sign(&claims)).await, "401", "{claims}");
        claims.as_object_mut().unwrap().remove(name);
        let wanted = if matches!(name, "nbf" | "groups") { 200 } else { 401 };
        assert_eq!(door.bearer(&key.sign(&claims)).await == "401", wanted == 401, "{claims}");
    }

    let good = key.sign(&issuer.claims());
    let [head, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let forged = other.sign(&issuer.claims());
    let none = SigningKey { id: "k", algorithm: Algorithm::HS256, key: EncodingKey::from_secret(b"") };
    let none = none.sign(&issuer.claims());
    let public = key.public();
    let n = public["n"].as_str().unwrap();
    let by_secret = |secret: &[u8]| {
        let key = SigningKey { id: "k", algorithm: Algorithm::HS256, key: EncodingKey::from_secret(secret) };
        key.sign(&issuer.claims())
    };
    // {"alg":"none"} and {"alg":"RS256","kid":"k","crit":["exp"]}
    let unsigned = "eyJhbGciOiJub25lIn0";
    let mut critical = Header { kid: Some("k".into()), ..Header::new(Algorithm::RS256) };
    critical.crit = Some(vec!["exp".into()]);
    for token in [
        format!("{unsigned}.{payload}."),
        format!("{unsigned}.{payload}.{signature}"),
        format!("{head}.{payload}."),
        format!("{head}.{payload}"),
        format!("{head}.{payload}.{}", &signature[..signature.len() - 4]),
        format!("{head}.{payload}.{signature}.{signature}"),
        forged,
        none,
        by_secret(n.as_bytes()),
        by_secret(public.to_string().as_bytes()),
        key.sign_with(Algorithm::PS256, Some("k"), &issuer.claims()),
        encode(&critical, &issuer.claims(), &key.key).unwrap(),
        "a.b.c".to_owned(),
        "..".to_owned(),
    ] {
        assert_eq!(door.bearer(&token).await, "401", "{token}");
    }
    issuer.stop().await;
    door.0.stop().await;
}

#[tokio::test]
async fn rules_and_expressions_of_the_file_hold() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let more = "  \
  claimValidationRules:
  - {claim: hd, requiredValue: example.com}
  - {expression: 'claims.exp - claims.iat <= 3600', message: lives too long}
  - expression: claims.email_verified
  claimMappings:
    username: {expression: 'claims.email.split(\"@\")[0]'}
    groups: {expression: 'claims.roles.map(r, \"role:\" + r)'}
    uid: {claim: sub}
    extra: [{key: example.com/team, valueExpression: claims.team}]
  userValidationRules:
  - {expression: '!user.username.startsWith(\"system:\")'}
";
    let door = Door::trusting(&issuer, more, Pace::default()).await;
    let ask = async |name: &str, value: Value| {
        let mut claims = json!({
            "iss": issuer.url, "aud": "podgate", "sub": "7", "iat": now(), "exp": now() + 600,
            "hd": "example.com", "email": "ana@example.com", "email_verified": true,
            "roles": ["a", "b"], "team": "blue",
        });
        claims[name] = value;
        door.bearer(&key.sign(&claims)).await
    };
    let ana = "ana [\"role:a\", \"role:b\", \"system:authenticated\"] {\"example.com/team\": [\"blue\"]}";
    assert_eq!(ask("more", json!(1)).await, ana);
    assert_eq!(
        ask("roles", json!([])).await,
        "ana [\"system:authenticated\"] {\"example.com/team\": [\"blue\"]}"
    );
    for (name, value) in [
        ("hd", json!("example.org")),
        ("exp", json!(now() + 7200)),
        ("email_verified", json!(false)),
        ("email", json!("system:admin@example.com")),
        ("roles", json!("a")),
        ("roles", json!([1])),
        ("team", json!({"a": 1})),
        ("email", json!(7)),
    ] {
        assert_eq!(ask(name, value.clone()).await, "401", "{name}: {value}");
    }
    issuer.stop().await;
    door.0.stop().await;
}

#[tokio::test]
async fn a_new_key_is_good_at_once_and_one_that_was_withdrawn_no_longer() {
    let (old, new) = (SigningKey::new("old", Algorithm::ES256), SigningKey::new("new", Algorithm::ES256));
    let issuer = Issuer::start(&[&old]).await;
    let pace = Pace { refresh: Duration::from_secs(600), retry: Duration::ZERO };
    let door = Door::trusting(&issuer, PLAIN, pace).await;
    let claims = issuer.claims();
    assert_eq!(door.bearer(&old.sign(&claims)).await, ANA);
    issuer.has(&[&old, &new]);
    assert_eq!(door.bearer(&new.sign(&claims)).await, ANA);
    issuer.has(&[&new]);
    assert_eq!(door.bearer(&old.sign(&claims)).await, ANA, "until keys are fetched again");
    assert_eq!(issuer.asked(), 2);
    // The same name for another key.
    let again = SigningKey::new("new", Algorithm::ES256);
    issuer.has(&[&again]);
    assert_eq!(door.bearer(&again.sign(&claims)).await, ANA);
    assert_eq!(door.bearer(&old.sign(&claims)).await, "401");
    issuer.stop().await;
    door.0.stop().await;
}

#[tokio::test]
async fn keys_are_fetched_once_for_many_and_made_up_ones_do_not_fetch_them_again() {
    let (key, stranger) = (SigningKey::new("k", Algorithm::ES256), SigningKey::new("x", Algorithm::ES256));
    let issuer = Issuer::start(&[&key]).await;
    let door = Door::trusting(&issuer, PLAIN, Pace::default()).await;
    let good = key.sign(&issuer.claims());
    assert!(join_all((0..20).map(|_| door.bearer(&good))).await.iter().all(|answer| answer == ANA));
    assert_eq!(issuer.asked(), 1);
    let claims = issuer.claims();
    let made_up =
        (0..20).map(|id| stranger.sign_with(Algorithm::ES256, Some(&format!("made up {id}")), &claims));
    let made_up = made_up.collect::<Vec<_>>();
    assert!(
        join_all(made_up.iter().map(|token| door.bearer(token))).await.iter().all(|answer| answer == "401")
    );
    assert_eq!(issuer.asked(), 1);
    issuer.stop().await;
    door.0.stop().await;
}

#[tokio::test]
async fn an_issuer_that_is_down_fails_its_own_tokens_only_and_keys_it_gave_stay_good() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (up, down, gone) =
        (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let file = format!("{}{}{}", up.file(PLAIN), down.entry(PLAIN), gone.entry(PLAIN));
    let pki = Arc::new(Pki::new());
    let methods = Methods { oidc: oidc(&file, AT_ONCE), ..TestGateway::methods(&pki) };
    let door = Door::open(methods, &pki, &FakeCluster::new()).await;
    let nowhere = key.sign(&gone.claims());
    gone.stop().await;
    down.breaks(503);
    assert_eq!(door.bearer(&key.sign(&down.claims())).await, "401");
    assert_eq!(door.bearer(&nowhere).await, "401");
    assert_eq!(door.bearer(&key.sign(&up.claims())).await, ANA);
    assert!(door.bearer("ana-token").await.starts_with("ana "));
    down.breaks(0);
    assert_eq!(door.bearer(&key.sign(&down.claims())).await, ANA);
    down.breaks(500);
    assert_eq!(door.bearer(&key.sign(&down.claims())).await, ANA, "by the key it gave");
    up.stop().await;
    down.stop().await;
    door.0.stop().await;
}

#[tokio::test]
async fn keys_are_taken_from_the_issuer_itself_or_from_nobody() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let (issuer, other) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let door = Door::trusting(&issuer, PLAIN, AT_ONCE).await;
    let token = key.sign(&issuer.claims());
    let at = |path: &str| format!("{}{path}", issuer.url);
    for (name, keys) in [
        (&other.url, at("/keys")),
        (&at("/"), at("/keys")),
        (&issuer.url, at("/huge")),
        (&issuer.url, at("/nothing")),
        (&issuer.url, at("/keys").replacen("https", "http", 1)),
        (&issuer.url, "/keys".to_owned()),
        (&issuer.url, format!("{}/keys", other.url)),
    ] {
        issuer.describe(name, &keys);
        assert_eq!(door.bearer(&token).await, "401", "{name} {keys}");
    }
    issuer.describe(&issuer.url, &at("/keys"));
    issuer.breaks(302);
    assert_eq!(door.bearer(&token).await, "401", "no redirect is followed");
    issuer.breaks(0);
    let mut secret = key.public();
    secret["use"] = json!("enc");
    *issuer.facts.keys.lock().unwrap() =
        json!({"keys": [secret, {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "new"}, 7]});
    assert_eq!(door.bearer(&token).await, "401", "a key for something else");
    issuer.has(&[&key]);
    assert_eq!(door.bearer(&token).await, ANA);
    issuer.stop().await;
    other.stop().await;
    door.0.stop().await;
}

// === the union ===

fn review(cluster: &Arc<FakeCluster>, remembered: Duration) -> Option<TokenReview> {
    Some(TokenReview {
        cluster: cluster.clone(),
        audiences: Vec::new(),
        allowed_for: remembered,
        denied_for: remembered,
        timeout: Duration::from_secs(10),
    })
}

fn robot() -> User {
    let name = "system:serviceaccount:ci:robot".to_owned();
    let extra = BTreeMap::from([("authentication.kubernetes.io/pod-name".to_owned(), vec!["p".to_owned()])]);
    User { name, uid: "u".into(), groups: vec!["system:serviceaccounts".into()], extra }
}

const ROBOT: &str = "system:serviceaccount:ci:robot [\"system:serviceaccounts\", \"system:authenticated\"] \
                     {\"authentication.kubernetes.io/pod-name\": [\"p\"]}";

#[tokio::test]
async fn methods_are_tried_in_the_order_of_the_api_server_and_the_first_that_knows_wins() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let (pki, cluster) = (Arc::new(Pki::new()), FakeCluster::new());
    let methods = Methods {
        oidc: oidc(&issuer.file(PLAIN), Pace::default()),
        review: review(&cluster, Duration::from_secs(60)),
        anonymous: true,
        ..TestGateway::methods(&pki)
    };
    let door = Door::open(methods, &pki, &cluster).await;
    let token = key.sign(&issuer.claims());
    let mut expired = issuer.claims();
    expired["exp"] = json!(now() - 60);
    let expired = key.sign(&expired);
    for known in ["robot", "ana-token", &token, &expired] {
        cluster.know(known, Some(robot()));
    }
    let ben = pki.client("ben", &["ops"]);
    let stranger = Pki::new().client("ben", &["ops"]);
    let socket = |token: &str| {
        let protocols =
            format!("base64url.bearer.authorization.k8s.io.{}, v4.channel.k8s.io", base64url(token));
        format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: {protocols}\r\n")
    };
    let anonymous = "system:anonymous [\"system:unauthenticated\"] {}";
    let static_ana = "ana [\"dev\", \"system:authenticated\"] {}";
    for (identity, headers, expected) in [
        (Some(&ben), bearer("robot"), "ben [\"ops\", \"system:authenticated\"] {}"),
        (Some(&ben), bearer("wrong"), "ben [\"ops\", \"system:authenticated\"] {}"),
        (Some(&stranger), bearer("robot"), ROBOT),
        (Some(&stranger), String::new(), "401"),
        (None, bearer("ana-token"), static_ana),
        (None, bearer(&token), ANA),
        (None, bearer("robot"), ROBOT),
        (None, bearer("wrong"), "401"),
        (None, bearer("wrong") + &socket("robot"), ROBOT),
        (None, bearer("ana-token") + &socket("wrong"), static_ana),
        (None, socket("wrong"), "401"),
        (None, socket(&token), ANA),
        // Not good for the issuer, but the cluster may know better.
        (None, bearer(&expired), ROBOT),
        (None, String::new(), anonymous),
    ] {
        assert_eq!(door.whoami(identity, &headers).await, expected, "{headers}");
    }
    assert_eq!(cluster.reviews().iter().filter(|asked| asked.starts_with("token ")).count(), 3);
    issuer.stop().await;
    door.0.stop().await;
}

fn base64url(text: &str) -> String {
    let secret = EncodingKey::from_secret(text.as_bytes());
    let jwk = Jwk::from_encoding_key(&secret, Algorithm::HS256).unwrap();
    serde_json::to_value(jwk).unwrap()["k"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_of_the_cluster_is_asked_about_once_by_many_and_then_remembered() {
    let (pki, cluster) = (Arc::new(Pki::new()), FakeCluster::new());
    cluster.know("robot", Some(robot()));
    let methods = Methods { review: review(&cluster, Duration::from_secs(60)), ..Methods::default() };
    let door = Door::open(methods, &pki, &cluster).await;
    let asked = || cluster.reviews().iter().filter(|asked| asked.starts_with("token ")).count();
    assert!(join_all((0..20).map(|_| door.bearer("robot"))).await.iter().all(|answer| answer == ROBOT));
    assert!(join_all((0..20).map(|_| door.bearer("wrong"))).await.iter().all(|answer| answer == "401"));
    cluster.know("robot", None);
    cluster.know("wrong", Some(robot()));
    assert_eq!(door.bearer("robot").await, ROBOT);
    assert_eq!(door.bearer("wrong").await, "401");
    assert_eq!(asked(), 2);
    door.0.stop().await;
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_503_and_asked_again_afterwards() {
    let (pki, cluster) = (Arc::new(Pki::new()), FakeCluster::new());
    let review = review(&cluster, Duration::from_secs(60));
    let review = review.map(|review| TokenReview { timeout: Duration::from_millis(50), ..review });
    let methods = Methods { review, ..TestGateway::methods(&pki) };
    let door = Door::open(methods, &pki, &cluster).await;
    cluster.hang_reviews();
    assert_eq!(door.bearer("robot").await, "503");
    assert_eq!(door.bearer("robot").await, "503");
    assert_eq!(cluster.reviews(), ["token ", "token "]);
    door.0.stop().await;
}

// === front proxies ===

fn front_proxy(pki: &Pki, names: &[&str]) -> Option<FrontProxy> {
    let header = |name: &'static str| vec![HeaderName::from_static(name)];
    Some(FrontProxy {
        authorities: Live::fixed(ClientVerifier::new(pki.roots()).unwrap()),
        allowed_names: names.iter().map(|&name| name.to_owned()).collect(),
        username_headers: header("x-remote-user"),
        group_headers: header("x-remote-group"),
        uid_headers: header("x-remote-uid"),
        extra_prefixes: vec!["X-Remote-Extra-".to_owned()],
    })
}

#[tokio::test]
async fn headers_of_a_front_proxy_are_believed_of_front_proxies_and_of_nobody_else() {
    let (pki, proxies) = (Arc::new(Pki::new()), Pki::new());
    let front_proxy = front_proxy(&proxies, &["front"]);
    let methods = Methods { front_proxy, anonymous: true, ..TestGateway::methods(&pki) };
    let door = Door::open(methods, &pki, &FakeCluster::new()).await;
    let carol = "X-Remote-User: carol\r\nX-Remote-Group: dev\r\nX-REMOTE-GROUP: ops\r\n\
                 X-Remote-Extra-Example.com%2fTeam: blue\r\n";
    let user = "carol [\"dev\", \"ops\", \"system:authenticated\"] {\"example.com/team\": [\"blue\"]}";
    let front = proxies.client("front", &[]);
    assert_eq!(door.whoami(Some(&front), carol).await, user);
    assert_eq!(door.whoami(Some(&front), &format!("{carol}{}", bearer("ana-token"))).await, user);
    // It speaks for somebody or for nobody, never for itself.
    assert_eq!(door.whoami(Some(&front), "").await, "401");
    assert_eq!(
        door.whoami(Some(&front), "X-Remote-User: \r\nX-Remote-Group: system:masters\r\n").await,
        "401"
    );

    let forged = "X-Remote-User: root\r\nX-Remote-Group: system:masters\r\n";
    let ben = pki.client("ben", &[]);
    let anonymous = "system:anonymous [\"system:unauthenticated\"] {}";
    for (identity, headers, expected) in [
        (Some(&ben), forged.to_owned(), "ben [\"system:authenticated\"] {}"),
        (Some(&pki.client("front", &[])), forged.to_owned(), "front [\"system:authenticated\"] {}"),
        (Some(&proxies.client("back", &[])), forged.to_owned(), "401"),
        (Some(&proxies.expired_client("front")), forged.to_owned(), "401"),
        (Some(&Pki::new().client("front", &[])), forged.to_owned(), "401"),
        (None, forged.to_owned(), anonymous),
        (None, format!("{forged}{}", bearer("ana-token")), "ana [\"dev\", \"system:authenticated\"] {}"),
        (None, format!("{forged}{}", bearer("wrong")), "401"),
    ] {
        assert_eq!(door.whoami(identity, &headers).await, expected, "{headers}");
    }
    door.0.stop().await;
}

#[tokio::test]
async fn headers_of_a_front_proxy_go_no_further_whoever_sends_them() {
    let pki = Arc::new(Pki::new());
    let mut far = Far::start(&pki, |mut io| async move { send(&mut io, SWITCHING).await }).await;
    let cluster = FakeCluster::new();
    cluster.node("n", far.addr.port());
    cluster.simple_pod("default/web", "n");
    let mut proxy = front_proxy(&Pki::new(), &[]).unwrap();
    proxy.username_headers = vec![HeaderName::from_static("x-sso-user")];
    proxy.extra_prefixes = vec!["X-Sso-Extra-".to_owned()];
    let methods = Methods { front_proxy: Some(proxy), ..TestGateway::methods(&pki) };
    let gateway = TestGateway::knowing(methods, config(), pki, cluster).await;
    let mut client = gateway.connect_as("ana").await;
    let headers = "X-Sso-User: root\r\nX-SSO-Extra-Team: red\r\nX-Kept: yes\r\n";
    send(&mut client, &exec_request("command=id", headers)).await;
    let head = far.head().await;
    assert!(!head.to_lowercase().contains("x-sso") && head.contains("X-Kept: yes"), "{head}");
    drop(client);
    gateway.stop().await;
}

// === asking again ===

fn with_token(token: &str) -> HeaderMap {
    let value = format!("Bearer {token}").parse().unwrap();
    HeaderMap::from_iter([(header::AUTHORIZATION, value)])
}

#[tokio::test]
async fn a_token_whose_key_was_withdrawn_is_no_longer_its_callers() {
    let (key, new) = (SigningKey::new("k", Algorithm::ES256), SigningKey::new("n", Algorithm::ES256));
    let issuer = Issuer::start(&[&key]).await;
    let oidc = oidc(&issuer.file(PLAIN), AT_ONCE);
    let authn = Authn::new(Methods { oidc, ..Methods::default() });
    let token = key.sign(&issuer.claims());
    let caller = authn.identify(&Conn::default(), &with_token(&token)).await.unwrap();
    assert_eq!(caller.user().name, "oidc:ana");
    assert!(!format!("{caller:?}").contains(&token[..20]));
    authn.still(&caller).await.unwrap();
    issuer.breaks(500);
    authn.still(&caller).await.unwrap();
    issuer.breaks(0);
    issuer.has(&[&new]);
    let error = authn.still(&caller).await.unwrap_err();
    assert!(matches!(error, Error::Oidc(_)) && !error.is_transient(), "{error:?}");
    issuer.stop().await;
}

#[tokio::test]
async fn an_issuer_that_cannot_be_asked_says_nothing_about_its_callers() {
    let key = SigningKey::new("k", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let methods =
        |issuer: &Issuer| Methods { oidc: oidc(&issuer.file(PLAIN), AT_ONCE), ..Methods::default() };
    let token = with_token(&key.sign(&issuer.claims()));
    let caller = Authn::new(methods(&issuer)).identify(&Conn::default(), &token).await.unwrap();
    issuer.breaks(500);
    // As after the file was read again: nothing is known of the issuer yet.
    let error = Authn::new(methods(&issuer)).still(&caller).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    issuer.stop().await;
}

#[tokio::test]
async fn a_front_proxy_is_verified_again() {
    let (proxies, others) = (Pki::new(), Pki::new());
    let by = |pki: &Pki, names: &[&str]| {
        Authn::new(Methods { front_proxy: front_proxy(pki, names), ..Methods::default() })
    };
    let conn = Conn { certificates: proxies.client("front", &[]).chain().into(), ..Conn::default() };
    let headers =
        HeaderMap::from_iter([(HeaderName::from_static("x-remote-user"), "carol".parse().unwrap())]);
    let caller = by(&proxies, &["front"]).identify(&conn, &headers).await.unwrap();
    assert!(caller.is_ambient());
    by(&proxies, &["front"]).still(&caller).await.unwrap();
    for authn in [by(&others, &["front"]), by(&proxies, &["back"]), Authn::new(Methods::default())] {
        assert!(!authn.still(&caller).await.unwrap_err().is_transient());
    }
}

#[tokio::test]
async fn a_list_of_tokens_that_was_replaced_counts_at_once() {
    use podgate::authn::Tokens;
    use podgate::reload::Reloader;
    use podgate::telemetry::Metrics;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.csv");
    std::fs::write(&path, "t,ana,u1\n").unwrap();
    let (drain, file) = (Drain::new(), path.clone());
    let reloader = Reloader::new(Duration::from_millis(5), drain.clone(), Metrics::new());
    let tokens = reloader.load("tokens", vec![path.clone()], move || Tokens::from_file(&file)).await.unwrap();
    let authn = Authn::new(Methods { tokens: tokens.clone(), ..Methods::default() });
    let caller = authn.identify(&Conn::default(), &with_token("t")).await.unwrap();
    authn.still(&caller).await.unwrap();
    let first = tokens.get();
    std::fs::write(&path, "other,ana,u1\n").unwrap();
    until("the new list", || !Arc::ptr_eq(&first, &tokens.get())).await;
    assert!(matches!(authn.still(&caller).await, Err(Error::UnknownToken)));
    assert!(matches!(authn.identify(&Conn::default(), &with_token("t")).await, Err(Error::UnknownToken)));
    drain.finish(Duration::ZERO).await;
}
