//! TLS: rustls set-up for both sides of podgate, and what a certificate says about its holder.
//!
//! In the flow: `listen` terminates the client's TLS with [`server`], `upstream` dials kubelets with
//! [`client`], which verifies their certificates unless a setting with `danger` in its name forbids it. A client certificate is asked for but not judged during the handshake: as kube-apiserver does,
//! an unknown or expired one becomes a 401 Status with a log line, not a broken handshake. The handshake does
//! prove that the peer holds the key; [`ClientVerifier`] judges the chain, in `authn`.
//! Source: apiserver `pkg/server/secure_serving.go` (`tls.RequestClientCert`),
//! apiserver `pkg/authentication/request/x509`.

pub mod ahead;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use ::aws_lc_rs::digest::{self, SHA256, SHA256_OUTPUT_LEN};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::name::DirectoryString;

/// ALPN of HTTP/1.1, RFC 7301 section 6.
pub const HTTP1: &[u8] = b"http/1.1";

/// ALPN of HTTP/2, RFC 9113 section 3.2.
pub const HTTP2: &[u8] = b"h2";

/// id-at-commonName, X.520.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// id-at-organizationName, X.520.
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

/// Chains at most of which a verifier remembers that they hold, at some 300 bytes each. Beyond it all are forgotten, and looked at
/// again. Every kubectl is a new connection with the same certificate, and signatures are what a look at it costs.
const MAX_HELD: usize = 4096;

/// A certificate chain, leaf first, and the leaf's key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// What a server does about client certificates.
#[derive(Debug, Clone)]
pub enum Clients {
    /// Ask for one, take any or none; `authn` judges it.
    Ask,
    /// Only holders of a certificate from these roots finish the handshake. They are given tickets for the next one.
    Require(Arc<RootCertStore>),
}

/// The names a client certificate carries for Kubernetes: CN is the user, each O a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The last common name, as in Go's `pkix.Name`.
    pub common_name: String,
    /// All organizations, in order.
    pub organizations: Vec<String>,
}

/// Judges client certificate chains after the handshake; cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientVerifier {
    roots: Arc<dyn ClientCertVerifier>,
    held: Arc<Mutex<HashMap<Fingerprint, Held>>>,
}

/// SHA-256 of a whole chain.
type Fingerprint = [u8; SHA256_OUTPUT_LEN];

/// Until when a chain holds that was found to hold. Roots are the verifier's own, and nobody revokes, so that time alone can
/// change that.
#[derive(Debug)]
struct Held {
    subject: Subject,
    since: UnixTime,
    until: UnixTime,
}

/// TLS material that cannot be used, or a certificate that is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file could not be read or holds no such item.
    #[error("read {what} from {path}")]
    ReadPem {
        /// What was expected in the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A PEM file without a single certificate.
    #[error("no certificate in {path}")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// rustls does not take this key, chain or root.
    #[error("set up TLS")]
    SetUp(#[source] rustls::Error),
    /// No verifier can be made of these roots.
    #[error("set up the client certificate verifier")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// The chain does not lead to a root, is expired, or is not meant for clients.
    #[error("verify the client certificate")]
    Untrusted(#[source] rustls::Error),
    /// A server's chain does not lead to a root, is expired, or does not cover a name.
    #[error("verify the server certificate")]
    UntrustedServer(#[source] rustls::Error),
    /// The certificate cannot be read as X.509.
    #[error("read the subject of the client certificate")]
    Subject(#[source] x509_cert::der::Error),
}

/// Takes any certificate, of a client or a server, as long as the peer proves that it holds the key.
#[derive(Debug)]
struct TakeAny(WebPkiSupportedAlgorithms);

/// What all TLS of podgate is done with. AES-128 comes first, as in Go's TLS, which kubectl, kube-apiserver and kubelets
/// have: its 10 rounds, where AES-256 has 14, are a fifth off the dearest thing that podgate does to a byte. As a server
/// podgate leaves the choice to the client all the same: one without AES instructions says so by its order alone.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
        Arc::new(provider)
    });
    PROVIDER.clone()
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// Reads all certificates of a PEM file into a root store.
///
/// # Errors
/// When the file cannot be read, holds none, or one of them is no certificate.
pub fn roots(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(Error::SetUp)?;
    }
    Ok(Arc::new(roots))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |source| Error::ReadPem { what: "certificates", path: path.to_owned(), source };
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() {
        return Err(Error::NoCertificate { path: path.to_owned() });
    }
    Ok(all)
}

/// A server's configuration; `alpn` in order of preference.
///
/// # Errors
/// When the key does not fit the certificate or the roots cannot be used.
pub fn server(identity: &Identity, alpn: &[&[u8]], clients: Clients) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    // Clients of exec are fresh processes that hold no ticket; issuing some costs each session a write. Those of a node come
    // again and again, and have one of each handshake, as of a kubelet.
    let (verifier, tickets): (Arc<dyn ClientCertVerifier>, _) = match clients {
        Clients::Ask => (Arc::new(TakeAny(provider.signature_verification_algorithms)), 0),
        Clients::Require(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
            (verifier.build().map_err(Error::Verifier)?, 1)
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::SetUp)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(Error::SetUp)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.send_tls13_tickets = tickets;
    if tickets > 0 {
        config.ticketer = Ticketer::new().map_err(Error::SetUp)?;
    }
    Ok(Arc::new(config))
}

/// A client's configuration, with a certificate if it has one. A server's certificate must lead to one of `roots` and
/// cover the server's name, unless `danger_accept_any_certificate`. ALPN is HTTP/1.1 alone because nothing else can be
/// upgraded (`protocol.md` 3.1).
///
/// # Errors
/// When the key does not fit the certificate.
pub fn client(
    identity: Option<&Identity>,
    roots: Arc<RootCertStore>,
    danger_accept_any_certificate: bool,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let any = TakeAny(provider.signature_verification_algorithms);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::SetUp)?;
    let builder = match danger_accept_any_certificate {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(any)),
        false => builder.with_root_certificates(roots),
    };
    let mut config = match identity {
        Some(Identity { chain, key }) => {
            builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(Error::SetUp)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(Arc::new(config))
}

/// Judges a server's chain as one of its clients would: it leads to a root, holds at `now`, is meant for servers
/// and covers every one of `names`.
///
/// # Errors
/// [`Error::UntrustedServer`], or [`Error::Verifier`] when there are no roots.
pub fn verify_server(
    chain: &[CertificateDer<'_>],
    roots: Arc<RootCertStore>,
    names: &[ServerName<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let none = Error::UntrustedServer(rustls::Error::NoCertificatesPresented);
    let (leaf, intermediates) = chain.split_first().ok_or(none)?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(Error::Verifier)?;
    for name in names {
        verifier.verify_server_cert(leaf, intermediates, name, &[], now).map_err(Error::UntrustedServer)?;
    }
    Ok(())
}

// === impl Identity ===

impl Identity {
    /// A chain, leaf first, and the leaf's key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key }
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Reads a chain and its key from PEM files.
    ///
    /// # Errors
    /// When either file cannot be read or holds no such item.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, Error> {
        let failed = |source| Error::ReadPem { what: "a private key", path: key.to_owned(), source };
        Ok(Self { chain: certificates(chain)?, key: PrivateKeyDer::from_pem_file(key).map_err(failed)? })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    /// Accepts chains that lead to one of these roots.
    ///
    /// # Errors
    /// When there are no roots.
    pub fn new(roots: Arc<RootCertStore>) -> Result<Self, Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        Ok(Self { roots: verifier.build().map_err(Error::Verifier)?, held: Arc::default() })
    }

    /// The subject of the leaf, if its chain holds at `now`.
    ///
    /// # Errors
    /// [`Error::Untrusted`] or [`Error::Subject`].
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Subject, Error> {
        let none = Error::Untrusted(rustls::Error::NoCertificatesPresented);
        let (leaf, intermediates) = chain.split_first().ok_or(none)?;
        let fingerprint = fingerprint(chain);
        if let Some(held) = self.held().get(&fingerprint)
            && (held.since..=held.until).contains(&now)
        {
            return Ok(held.subject.clone());
        }
        self.roots.verify_client_cert(leaf, intermediates, now).map_err(Error::Untrusted)?;
        let subject = Subject::of(leaf)?;
        if let Some(until) = until(chain) {
            let mut held = self.held();
            if held.len() == MAX_HELD {
                held.clear();
            }
            held.insert(fingerprint, Held { subject: subject.clone(), since: now, until });
        }
        Ok(subject)
    }

    /// Whoever panicked with the lock held left whole entries.
    fn held(&self) -> MutexGuard<'_, HashMap<Fingerprint, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each certificate with its length, so that no two chains are the same bytes.
fn fingerprint(chain: &[CertificateDer<'_>]) -> Fingerprint {
    let mut digest = digest::Context::new(&SHA256);
    for certificate in chain {
        digest.update(&certificate.len().to_be_bytes());
        digest.update(certificate);
    }
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest.finish().as_ref());
    fingerprint
}

/// When the first certificate of a chain ends, used or not; `None` when one of them cannot be read.
fn until(chain: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let end = |certificate: &CertificateDer<'_>| {
        let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
        let end = certificate.tbs_certificate().validity().not_after;
        Some(UnixTime::since_unix_epoch(end.to_unix_duration()))
    };
    chain.iter().map(end).min_by_key(|end| *end).flatten()
}

// === impl Subject ===

impl Subject {
    fn of(leaf: &CertificateDer<'_>) -> Result<Self, Error> {
        let certificate = x509_cert::Certificate::from_der(leaf).map_err(Error::Subject)?;
        let mut subject = Self::default();
        for attribute in certificate.tbs_certificate().subject().iter() {
            if attribute.oid != COMMON_NAME && attribute.oid != ORGANIZATION {
                continue;
            }
            let value: DirectoryString = attribute.value.decode_as().map_err(Error::Subject)?;
            let value = value.value().into_owned();
            if attribute.oid == COMMON_NAME {
                subject.common_name = value;
            } else {
                subject.organizations.push(value);
            }
        }
        Ok(subject)
    }
}

// === impl TakeAny ===

impl ClientCertVerifier for TakeAny {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::testing::Pki;

    /// Presents a certificate, whoever's it is.
    #[derive(Debug)]
    struct Presents(Arc<CertifiedKey>);

    impl ResolvesServerCert for Presents {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    #[tokio::test]
    async fn aes_128_is_what_podgate_asks_for_and_what_a_client_asks_for_is_what_it_gets() {
        let pki = Pki::new();
        let server = TlsAcceptor::from(server(&pki.server(), &[], Clients::Ask).unwrap());
        let own = client(None, Arc::new(RootCertStore::empty()), true).unwrap();
        let any = Arc::new(TakeAny(provider().signature_verification_algorithms));
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for ours in [true, false] {
                let provider = if ours {
                    own.crypto_provider().clone()
                } else {
                    Arc::new(aws_lc_rs::default_provider())
                };
                let client =
                    ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
                let client =
                    client.dangerous().with_custom_certificate_verifier(any.clone()).with_no_client_auth();
                let (near, far) = tokio::io::duplex(1 << 16);
                let name = ServerName::try_from("elsewhere").unwrap();
                let client = TlsConnector::from(Arc::new(client));
                let (connected, _) = tokio::join!(client.connect(name, near), server.accept(far));
                let suite = connected.unwrap().get_ref().1.negotiated_cipher_suite().unwrap().suite();
                assert_eq!(is_aes_128(suite), ours, "{suite:?}");
            }
        }
    }

    #[test]
    fn a_chain_that_held_holds_until_it_ends_and_no_other_in_its_place() {
        let (pki, other) = (Pki::new(), Pki::new());
        let verifier = ClientVerifier::new(pki.roots()).unwrap();
        let verify = |chain: &[CertificateDer<'_>], now| verifier.verify(chain, now);
        let (ana, mallory) = (pki.client("ana", &["dev"]), other.client("ana", &["dev"]));
        let subject = Subject { common_name: "ana".into(), organizations: vec!["dev".into()] };
        let now = UnixTime::now();
        for _ in 0..2 {
            assert_eq!(verify(&ana.chain, now).unwrap(), subject);
            assert!(matches!(verify(&mallory.chain, now), Err(Error::Untrusted(_))));
            assert!(matches!(verify(&[], now), Err(Error::Untrusted(_))));
        }
        assert_eq!(verifier.held().len(), 1);
        // rcgen's certificates begin in 1975 and end with the year 4095.
        for (at, holds) in [(now.as_secs() - 1, true), (1, false), (67_000_000_000, true), (1 << 40, false)] {
            let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
            assert_eq!(verify(&ana.chain, at).is_ok(), holds, "{at:?}");
        }

        // What ends first is what counts, of all that was shown.
        let short = pki.expired_client("short").chain;
        let ended = until(&short).unwrap();
        assert_eq!(until(&[ana.chain.clone(), short].concat()), Some(ended));
        assert!(ended < now && until(&[CertificateDer::from(vec![0])]).is_none());
    }

    #[test]
    fn no_more_chains_are_remembered_than_there_is_room_for() {
        let pki = Pki::new();
        let (verifier, ana) = (ClientVerifier::new(pki.roots()).unwrap(), pki.client("ana", &[]));
        let held = || Held {
            subject: Subject::default(),
            since: UnixTime::now(),
            until: UnixTime::since_unix_epoch(Duration::ZERO),
        };
        for number in 0..MAX_HELD {
            let mut fingerprint = Fingerprint::default();
            fingerprint[..8].copy_from_slice(&number.to_be_bytes());
            verifier.held().insert(fingerprint, held());
        }
        verifier.verify(&ana.chain, UnixTime::now()).unwrap();
        assert_eq!(verifier.held().len(), 1);
    }

    #[tokio::test]
    async fn a_client_that_takes_any_certificate_still_wants_its_key_to_be_held() {
        let pki = Pki::new();
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        let anothers = PrivatePkcs8KeyDer::from(key).into();
        let own = pki.server();
        for (key, holds) in [(own.key.clone_key(), true), (anothers, false)] {
            for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
                let key = provider().key_provider.load_private_key(key.clone_key()).unwrap();
                let shown = Presents(Arc::new(CertifiedKey::new(own.chain.clone(), key)));
                let server = ServerConfig::builder_with_provider(provider());
                let server = server.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
                let server = TlsAcceptor::from(Arc::new(server.with_cert_resolver(Arc::new(shown))));
                let client = client(None, Arc::new(RootCertStore::empty()), true).unwrap();
                let (near, far) = tokio::io::duplex(1 << 16);
                let name = ServerName::try_from("elsewhere").unwrap();
                let (connected, _) =
                    tokio::join!(TlsConnector::from(client).connect(name, near), server.accept(far));
                assert_eq!(connected.is_ok(), holds, "{version:?}");
            }
        }
    }
}
