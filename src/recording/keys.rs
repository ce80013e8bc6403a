//! Keys: what recordings are signed with, and for whom they are encrypted.
//!
//! Beside the flow. Files are PEM as `openssl genpkey -algorithm ed25519` and `-algorithm x25519` make them: PKCS #8 for
//! the private half, SubjectPublicKeyInfo for the public one. Invariant: no private half in `Debug` or in an error.
//! Sources: RFC 8410 (the two algorithms in PEM), RFC 9180 (HPKE).

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair};
use aws_lc_rs::{agreement, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as HPKE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use rustls_pki_types::pem::{PemObject, SectionKind};

/// Bytes of a signature. Source: RFC 8032 section 5.1.6.
pub const SIGNATURE: usize = 64;

/// Bytes of either half of either key.
const RAW: usize = 32;

/// Bytes of a file that are looked at: many times what a key takes.
const MAX_FILE: u64 = 64 * 1024;

/// Bytes of a hash that make the id of a key, which only has to tell the keys of one place apart.
const ID: usize = 16;

/// What DER puts in front of the 32 bytes of a key. Source: RFC 8410 sections 4 and 7.
const ED25519_PUBLIC: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const ED25519_PRIVATE: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
const X25519_PUBLIC: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x6e\x03\x21\x00";
const X25519_PRIVATE: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x6e\x04\x22\x04\x20";

/// Signs recordings.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Ed25519KeyPair>,
    verifying: VerifyingKey,
}

/// Knows recordings that a [`SigningKey`] signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    id: String,
    raw: [u8; RAW],
}

/// Somebody for whom recordings are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    id: String,
    raw: [u8; RAW],
}

/// Reads what was encrypted for a [`Recipient`].
#[derive(Clone)]
pub struct Identity {
    private: Arc<HpkePrivateKey>,
    recipient: Recipient,
}

/// What a recording is written with.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Signs it.
    pub signing: SigningKey,
    /// May read it; whoever has the file, when there are none.
    pub recipients: Vec<Recipient>,
}

/// A secret, encrypted for a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrapped {
    /// HPKE's encapsulated key.
    pub(super) encapsulated: Vec<u8>,
    /// And what it hides.
    pub(super) sealed: Vec<u8>,
}

/// Any key, as a file may hold it.
#[derive(Debug, Clone)]
pub enum Key {
    /// Private half of a signing key.
    Signing(SigningKey),
    /// Its public half.
    Verifying(VerifyingKey),
    /// Private half of a recipient's key.
    Identity(Identity),
    /// Its public half.
    Recipient(Recipient),
}

/// What is no key, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read a key from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no such key.
    #[error("use the key in {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<Error>,
    },
    /// No PEM, or none with a key.
    #[error("there is no key in PEM form")]
    NoPem,
    /// A key for something else, or a broken one.
    #[error("it is not an Ed25519 or X25519 key as `openssl genpkey` makes them")]
    Unknown,
    /// A key of another kind than is needed here.
    #[error("it is {have}, but {want} is needed")]
    Wrong {
        /// What it is.
        have: &'static str,
        /// What is needed.
        want: &'static str,
    },
    /// The library makes no key, or cannot use one.
    #[error("the crypto library refuses the key")]
    Crypto,
}

// === impl Key ===

impl Key {
    /// Reads the first key of a PEM text, whichever it is.
    ///
    /// # Errors
    /// When there is none that podgate knows.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem);
        let wanted = |kind: &SectionKind| matches!(kind, SectionKind::PrivateKey | SectionKind::PublicKey);
        let (kind, der) =
            sections.filter_map(Result::ok).find(|(kind, _)| wanted(kind)).ok_or(Error::NoPem)?;
        let raw = |prefix: &[u8]| <[u8; RAW]>::try_from(der.strip_prefix(prefix)?).ok();
        if kind == SectionKind::PublicKey {
            return if let Some(raw) = raw(ED25519_PUBLIC) {
                Ok(Self::Verifying(VerifyingKey { id: id(&der), raw }))
            } else if let Some(raw) = raw(X25519_PUBLIC) {
                Ok(Self::Recipient(Recipient { id: id(&der), raw }))
            } else {
                Err(Error::Unknown)
            };
        }
        if let Some(raw) = raw(X25519_PRIVATE) {
            return Identity::from_raw(&raw).map(Self::Identity);
        }
        // Some tools add the public half, which the prefix above does not have.
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| Error::Unknown)?;
        Ok(Self::Signing(SigningKey::from_pair(pair)))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or holds no key.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        read(path, Self::from_pem)
    }

    /// The public half: its id and its PEM.
    pub fn public(&self) -> (&str, String) {
        match self {
            Self::Signing(key) => (key.verifying.id(), key.verifying.to_pem()),
            Self::Verifying(key) => (key.id(), key.to_pem()),
            Self::Identity(key) => (key.recipient.id(), key.recipient.to_pem()),
            Self::Recipient(key) => (key.id(), key.to_pem()),
        }
    }

    /// What it is, for people.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Signing(_) => "the private half of a signing key",
            Self::Verifying(_) => "the public half of a signing key",
            Self::Identity(_) => "the private half of a recipient's key",
            Self::Recipient(_) => "the public half of a recipient's key",
        }
    }

    fn wrong(&self, want: &'static str) -> Error {
        Error::Wrong { have: self.what(), want }
    }
}

// === impl SigningKey ===

impl SigningKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> Result<Self, Error> {
        Ed25519KeyPair::generate().map(Self::from_pair).map_err(|_| Error::Crypto)
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// When the text holds another key or none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        match Key::from_pem(pem)? {
            Key::Signing(key) => Ok(key),
            other => Err(other.wrong("the private half of a signing key")),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or holds another key or none.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        read(path, Self::from_pem)
    }

    /// The half that may be published.
    pub fn verifying(&self) -> &VerifyingKey {
        &self.verifying
    }

    /// The private half, for its file.
    ///
    /// # Errors
    /// When the library cannot show it.
    pub fn to_private_pem(&self) -> Result<String, Error> {
        let seed = self.pair.seed().map_err(|_| Error::Crypto)?;
        let seed = seed.as_be_bytes().map_err(|_| Error::Crypto)?;
        Ok(pem("PRIVATE KEY", &[ED25519_PRIVATE, seed.as_ref()].concat()))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE], Error> {
        let signature = self.pair.try_sign(message).map_err(|_| Error::Crypto)?;
        signature.as_ref().try_into().map_err(|_| Error::Crypto)
    }

    fn from_pair(pair: Ed25519KeyPair) -> Self {
        let mut raw = [0; RAW];
        raw.copy_from_slice(pair.public_key().as_ref());
        let id = id(&[ED25519_PUBLIC, &raw].concat());
        Self { pair: Arc::new(pair), verifying: VerifyingKey { id, raw } }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying.id)
    }
}

// === impl VerifyingKey ===

impl VerifyingKey {
    /// Reads a public key.
    ///
    /// # Errors
    /// When the text holds another key or none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        match Key::from_pem(pem)? {
            Key::Verifying(key) => Ok(key),
            other => Err(other.wrong("the public half of a signing key")),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or holds another key or none.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        read(path, Self::from_pem)
    }

    /// Tells it from other keys: the beginning of the SHA-256 of its DER, in hexadecimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As a file.
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[ED25519_PUBLIC, &self.raw].concat())
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, self.raw).verify(message, signature).is_ok()
    }
}

// === impl Recipient ===

impl Recipient {
    /// Reads a public key.
    ///
    /// # Errors
    /// When the text holds another key or none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        match Key::from_pem(pem)? {
            Key::Recipient(key) => Ok(key),
            other => Err(other.wrong("the public half of a recipient's key")),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or holds another key or none.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        read(path, Self::from_pem)
    }

    /// Tells it from other keys: the beginning of the SHA-256 of its DER, in hexadecimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As a file.
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[X25519_PUBLIC, &self.raw].concat())
    }

    pub(super) fn wrap(&self, info: &[u8], secret: &[u8]) -> Result<Wrapped, Error> {
        let public = HpkePublicKey(self.raw.to_vec());
        let (encapsulated, sealed) = HPKE.seal(info, &[], secret, &public).map_err(|_| Error::Crypto)?;
        Ok(Wrapped { encapsulated: encapsulated.0, sealed })
    }
}

// === impl Identity ===

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> Result<Self, Error> {
        let private = agreement::PrivateKey::generate(&agreement::X25519).map_err(|_| Error::Crypto)?;
        let raw: Curve25519SeedBin<'_> = private.as_be_bytes().map_err(|_| Error::Crypto)?;
        Self::from_raw(raw.as_ref().try_into().map_err(|_| Error::Crypto)?)
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// When the text holds another key or none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        match Key::from_pem(pem)? {
            Key::Identity(key) => Ok(key),
            other => Err(other.wrong("the private half of a recipient's key")),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or holds another key or none.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        read(path, Self::from_pem)
    }

    /// The half that may be published.
    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// The private half, for its file.
    pub fn to_private_pem(&self) -> String {
        pem("PRIVATE KEY", &[X25519_PRIVATE, self.private.secret_bytes()].concat())
    }

    pub(super) fn unwrap_secret(&self, info: &[u8], wrapped: &Wrapped) -> Result<Vec<u8>, Error> {
        let encapsulated = EncapsulatedSecret(wrapped.encapsulated.clone());
        HPKE.open(&encapsulated, info, &[], &wrapped.sealed, &self.private).map_err(|_| Error::Crypto)
    }

    fn from_raw(raw: &[u8; RAW]) -> Result<Self, Error> {
        let private =
            agreement::PrivateKey::from_private_key(&agreement::X25519, raw).map_err(|_| Error::Crypto)?;
        let public = private.compute_public_key().map_err(|_| Error::Crypto)?;
        let public = <[u8; RAW]>::try_from(public.as_ref()).map_err(|_| Error::Crypto)?;
        let recipient = Recipient { id: id(&[X25519_PUBLIC, &public].concat()), raw: public };
        Ok(Self { private: Arc::new(HpkePrivateKey::from(raw.to_vec())), recipient })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient.id)
    }
}

fn read<T>(path: &Path, from_pem: impl FnOnce(&[u8]) -> Result<T, Error>) -> Result<T, Error> {
    let mut pem = Vec::new();
    let whole = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut pem));
    whole.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    from_pem(&pem).map_err(|source| Error::File { path: path.to_owned(), source: Box::new(source) })
}

fn id(der: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, der);
    hash.as_ref()[..ID].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keys fit one line of base64, which at 64 characters is what RFC 7468 allows.
fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl genpkey` and `openssl pkey -pubout`.
    const SIGNING: &[u8] = include_bytes!("testdata/signing.pem");
    const VERIFYING: &[u8] = include_bytes!("testdata/signing.pub.pem");
    const IDENTITY: &[u8] = include_bytes!("testdata/recipient.pem");
    const RECIPIENT: &[u8] = include_bytes!("testdata/recipient.pub.pem");

    #[test]
    fn keys_of_openssl_are_read_and_written_as_they_were() {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let signing = SigningKey::from_pem(SIGNING).unwrap();
        let identity = Identity::from_pem(IDENTITY).unwrap();
        assert_eq!(signing.to_private_pem().unwrap(), text(SIGNING));
        assert_eq!(identity.to_private_pem(), text(IDENTITY));
        assert_eq!(VerifyingKey::from_pem(VERIFYING).unwrap(), *signing.verifying());
        assert_eq!(Recipient::from_pem(RECIPIENT).unwrap(), *identity.recipient());
        assert_eq!(signing.verifying().to_pem(), text(VERIFYING));
        assert_eq!(identity.recipient().to_pem(), text(RECIPIENT));
        // openssl pkey -pubin -in FILE -outform der | sha256sum | head -c 32
        assert_eq!(signing.verifying().id(), include_str!("testdata/signing.id").trim());
    }

    #[test]
    fn a_key_for_something_else_is_told_and_nothing_private_is() {
        let error = SigningKey::from_pem(IDENTITY).unwrap_err().to_string();
        let wrong =
            "it is the private half of a recipient's key, but the private half of a signing key is needed";
        assert_eq!(error, wrong);
        let rsa = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert!(matches!(Key::from_pem(rsa.as_bytes()), Err(Error::Unknown)));
        assert!(matches!(Key::from_pem(b"no"), Err(Error::NoPem)));
        let identity = Identity::from_pem(IDENTITY).unwrap();
        let keys = Keys { signing: SigningKey::from_pem(SIGNING).unwrap(), recipients: vec![] };
        let shown = format!("{keys:?} {identity:?}");
        assert!(shown.contains(keys.signing.verifying().id()) && shown.len() < 200, "{shown}");
    }

    #[test]
    fn a_secret_is_for_its_recipient_and_its_recording_only() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let wrapped = one.recipient().wrap(b"recording 1", b"secret").unwrap();
        assert_eq!(one.unwrap_secret(b"recording 1", &wrapped).unwrap(), b"secret");
        assert!(one.unwrap_secret(b"recording 2", &wrapped).is_err());
        assert!(other.unwrap_secret(b"recording 1", &wrapped).is_err());
    }
}
