//! Keys: those with which an issuer signs, found through its discovery document and kept until they change.
//!
//! Nothing runs in the background: keys are fetched when a token needs them, once however many tokens wait.
//! Invariant: only HTTPS, verified by the issuer's CA; no redirect; nothing of any size; and a token with a
//! made-up key cannot make podgate ask more often than its pace.
//! Source: OpenID Connect Discovery 1.0 section 4, RFC 7517.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::flight::Flights;
use crate::telemetry::chain;

/// For both documents, from the first name looked up to the last byte. A caller waits for it, so it is short.
const DEADLINE: Duration = Duration::from_secs(5);

/// Bytes of one document. The largest issuers need some tens of KiB.
const MAX_DOCUMENT: usize = 1024 * 1024;

/// Keys of one issuer; further ones are not looked at. A token without a key's name is tried with each.
const MAX_KEYS: usize = 100;

/// Algorithms of RSA keys.
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// How often an issuer is asked for its keys.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Keys are fetched again after this time, so that one which was withdrawn is not good for longer.
    pub refresh: Duration,
    /// But for a key that is not known, or after a failure, not sooner than this.
    pub retry: Duration,
}

/// Keys of an issuer at one time.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

/// A public key.
pub(super) struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// Keys of an issuer, as they change.
pub(super) struct Keys {
    source: Arc<Source>,
    flights: Flights<(), Result<Arc<KeySet>, Error>>,
}

/// Where keys come from, and the last that came.
struct Source {
    issuer: String,
    discovery: Uri,
    connector: HttpsConnector<HttpConnector>,
    pace: Pace,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<Arc<KeySet>>,
    tried: Option<Instant>,
    failed: Option<Error>,
}

/// Why there are no keys; cheap to clone, since all who wait get it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no connection to be had.
    #[error("connect to {uri}")]
    Connect {
        /// What is behind it.
        uri: String,
        /// The cause.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The request cannot be sent or the answer cannot be read.
    #[error("fetch {uri}")]
    Fetch {
        /// What was asked for.
        uri: String,
        /// The cause.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is none.
    #[error("fetch {uri}: the answer is {code}")]
    Code {
        /// What was asked for.
        uri: String,
        /// Its code.
        code: StatusCode,
    },
    /// The answer cannot be understood.
    #[error("read {uri}")]
    Json {
        /// What was asked for.
        uri: String,
        /// The cause.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The discovery document is somebody else's.
    #[error("read {uri}: it is of issuer {other:?}")]
    OtherIssuer {
        /// What was asked for.
        uri: String,
        /// Of whom it is.
        other: String,
    },
    /// The discovery document has no usable place of the keys.
    #[error("read {uri}: jwks_uri {keys:?} is no https URL")]
    KeysUri {
        /// What was asked for.
        uri: String,
        /// What it says.
        keys: String,
    },
    /// It took too long.
    #[error("the keys did not come within {0:?}")]
    Late(Duration),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

// === impl Pace ===

impl Default for Pace {
    /// Issuers announce a new key days before they use it and withdraw an old one as late, so ten minutes are
    /// soon; and ten seconds are the longest that a token of an unannounced one is refused.
    fn default() -> Self {
        Self { refresh: Duration::from_secs(600), retry: Duration::from_secs(10) }
    }
}

// === impl Keys ===

impl Keys {
    /// Keys of an issuer whose servers are verified by `tls`.
    pub(super) fn new(issuer: &str, discovery: Uri, tls: ClientConfig, pace: Pace) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let issuer = issuer.to_owned();
        let source = Source { issuer, discovery, connector, pace, state: Mutex::default() };
        Self { source: Arc::new(source), flights: Flights::default() }
    }

    /// The present keys. While an issuer cannot be asked, those it had stay good. May be dropped.
    pub(super) async fn present(&self) -> Result<Arc<KeySet>, Error> {
        let known = {
            let state = self.source.lock();
            let age = state.age();
            match (&state.known, &state.failed) {
                (Some(known), _) if age < self.source.pace.refresh => return Ok(known.clone()),
                (None, Some(failed)) if age < self.source.pace.retry => return Err(failed.clone()),
                (known, _) => known.clone(),
            }
        };
        let fetched = self.fetch().await;
        fetched.or_else(|error| known.ok_or(error))
    }

    /// Keys that came after these; `None` when it is too soon to ask again. May be dropped.
    pub(super) async fn after(&self, old: &Arc<KeySet>) -> Result<Option<Arc<KeySet>>, Error> {
        {
            let state = self.source.lock();
            if let Some(known) = &state.known
                && !Arc::ptr_eq(known, old)
            {
                return Ok(Some(known.clone()));
            }
            if state.age() < self.source.pace.retry {
                return Ok(None);
            }
        }
        self.fetch().await.map(Some)
    }

    async fn fetch(&self) -> Result<Arc<KeySet>, Error> {
        let source = self.source.clone();
        self.flights.join(&(), || async move { source.fetch().await }.boxed()).await
    }
}

// === impl Source ===

impl Source {
    async fn fetch(&self) -> Result<Arc<KeySet>, Error> {
        let fetched = tokio::time::timeout(DEADLINE, self.documents()).await;
        let fetched = fetched.unwrap_or(Err(Error::Late(DEADLINE))).map(Arc::new);
        let mut state = self.lock();
        state.tried = Some(Instant::now());
        match &fetched {
            Ok(keys) => {
                debug!(issuer.url = self.issuer, keys = keys.0.len(), "keys of the issuer fetched");
                state.known = Some(keys.clone());
                state.failed = None;
            }
            Err(error) => {
                warn!(issuer.url = self.issuer, error = chain(error), "cannot fetch the keys of the issuer");
                state.failed = Some(error.clone());
            }
        }
        fetched
    }

    async fn documents(&self) -> Result<KeySet, Error> {
        let uri = &self.discovery;
        let discovery: Discovery = self.json(uri).await?;
        if discovery.issuer != self.issuer {
            return Err(Error::OtherIssuer { uri: uri.to_string(), other: discovery.issuer });
        }
        let keys = discovery.jwks_uri.parse::<Uri>().ok();
        let keys = keys.filter(|keys| keys.scheme_str() == Some("https"));
        let Some(keys) = keys else {
            return Err(Error::KeysUri { uri: uri.to_string(), keys: discovery.jwks_uri });
        };
        let document: Document = self.json(&keys).await?;
        Ok(KeySet(document.keys.into_iter().filter_map(Key::of).take(MAX_KEYS).collect()))
    }

    async fn json<T: for<'de> Deserialize<'de>>(&self, uri: &Uri) -> Result<T, Error> {
        let body = self.get(uri).await?;
        let read = serde_json::from_slice(&body);
        read.map_err(|error| Error::Json { uri: uri.to_string(), source: Arc::new(error) })
    }

    /// On a connection of its own, which this future drives and ends.
    async fn get(&self, uri: &Uri) -> Result<Bytes, Error> {
        let io = self.connector.clone().oneshot(uri.clone()).await;
        let io = io.map_err(|error| Error::Connect { uri: uri.to_string(), source: error.into() })?;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::Fetch {
            uri: uri.to_string(),
            source: error.into(),
        };
        let (mut sender, connection) = http1::handshake(io).await.map_err(|error| failed(error.into()))?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(error.into()))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| failed(error.into()))?;
            if answer.status() != StatusCode::OK {
                return Err(Error::Code { uri: uri.to_string(), code: answer.status() });
            }
            let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await;
            Ok(body.map_err(failed)?.to_bytes())
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // What arrived before it ended is still to be read.
            _ = connection => answer.await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Time since the issuer was asked last.
    fn age(&self) -> Duration {
        self.tried.map_or(Duration::MAX, |tried| tried.elapsed())
    }
}

// === impl KeySet ===

impl KeySet {
    /// Keys that may have signed such a token.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        let fits = move |key: &&Key| id.is_none_or(|id| key.id.as_deref() == Some(id));
        self.0.iter().filter(fits).filter(move |key| key.algorithms.contains(&algorithm))
    }
}

// === impl Key ===

impl Key {
    /// `None` for what is no public key to verify signatures with, such as a secret of HMAC: such would be
    /// known to all.
    fn of(json: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|of| *of != PublicKeyUse::Signature) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA.to_vec(),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            _ => return None,
        };
        if let Some(only) = jwk.common.key_algorithm {
            algorithms.retain(|&algorithm| KeyAlgorithm::from(algorithm) == only);
        }
        Some(Self { key: DecodingKey::from_jwk(&jwk).ok()?, algorithms, id: jwk.common.key_id })
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// Whether tokens may be signed so: not with a shared secret, and not with nothing at all.
pub(super) fn supports(algorithm: Algorithm) -> bool {
    RSA.contains(&algorithm) || matches!(algorithm, Algorithm::ES256 | Algorithm::ES384)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing but the clock moves here: an issuer that accepts and then says nothing is the whole point.
    #[tokio::test(start_paused = true)]
    async fn an_issuer_that_hangs_is_given_up_and_left_alone_for_a_while() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", silent.local_addr().unwrap());
        let tls = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let pace = Pace::default();
        let keys = Keys::new(&url, url.parse().unwrap(), tls, pace);
        let ask = async || {
            let began = Instant::now();
            assert!(matches!(keys.present().await, Err(Error::Late(_))));
            began.elapsed() >= DEADLINE
        };
        assert!(ask().await, "it was waited for");
        assert!(!ask().await, "it was not asked");
        tokio::time::advance(pace.retry).await;
        assert!(ask().await, "it was asked again");
    }

    #[test]
    fn what_is_no_public_key_for_signatures_is_passed_over() {
        let (x, y) =
            ("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0");
        let of = |key: serde_json::Value| Key::of(key).map(|key| key.algorithms);
        let ec = |more: serde_json::Value| {
            let mut key = serde_json::json!({"kty": "EC", "crv": "P-256", "x": x, "y": y});
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(key)
        };
        assert_eq!(ec(serde_json::json!({})), Some(vec![Algorithm::ES256]));
        assert_eq!(
            ec(serde_json::json!({"alg": "ES256", "use": "sig", "kid": "a"})),
            Some(vec![Algorithm::ES256])
        );
        assert_eq!(ec(serde_json::json!({"alg": "RS256"})), Some(vec![]));
        for more in [
            serde_json::json!({"use": "enc"}),
            serde_json::json!({"crv": "P-521"}),
            serde_json::json!({"crv": "secp256k1"}),
            serde_json::json!({"kty": "oct", "k": "c2VjcmV0"}),
            serde_json::json!({"x": 7}),
        ] {
            assert_eq!(ec(more.clone()), None, "{more}");
        }
        let rsa = serde_json::json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"});
        assert_eq!(of(rsa), Some(RSA.to_vec()));
        for none in [serde_json::json!(null), serde_json::json!("key"), serde_json::json!({"kty": "new"})] {
            assert_eq!(of(none), None);
        }
    }
}
