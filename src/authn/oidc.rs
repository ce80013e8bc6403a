//! Oidc: ID tokens of OpenID Connect issuers, checked here.
//!
//! A token belongs to the issuer it names, before anything of it is believed; one of no configured issuer is
//! left to others. Invariant: nothing of a token is used before its signature was verified by a key of that
//! issuer, with an algorithm of that key.
//! Source: apiserver `plugin/pkg/authenticator/token/oidc`, OpenID Connect Core 1.0 section 3.1.3.7, RFC
//! 8725.

pub mod config;
pub mod expression;
pub mod keys;
pub mod mapping;

use std::path::PathBuf;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation, dangerous, decode, decode_header};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use crate::cluster::User;
use crate::tls;
pub use config::Config;
pub use keys::Pace;
use keys::{KeySet, Keys};
use mapping::{Claims, Mapping};

/// How far the clocks of an issuer and of podgate may be apart, in seconds.
const LEEWAY: u64 = 10;

/// The configured issuers.
#[derive(Debug)]
pub struct Oidc(Vec<Issuer>);

struct Issuer {
    url: String,
    audiences: Vec<String>,
    mapping: Mapping,
    keys: Keys,
}

/// Why a token is not good, or the configuration of issuers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read authentication configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A key of the file is unknown or its value is none.
    #[error("authentication configuration {path}, at {key}: {what}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Path of the key, such as `jwt[0].issuer.url`.
        key: String,
        /// What is wrong, with line and column.
        what: String,
    },
    /// A value of the file makes no sense.
    #[error("authentication configuration {path}, {key}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Path of the key, such as `jwt[0].issuer.url`.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// TLS towards an issuer cannot be set up.
    #[error("set up TLS towards issuer {issuer}")]
    Tls {
        /// Its URL.
        issuer: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The issuer's keys are not to be had.
    #[error("have the keys of issuer {issuer}")]
    Keys {
        /// Its URL.
        issuer: String,
        /// The cause.
        #[source]
        source: keys::Error,
    },
    /// The token is not signed by the issuer, not for podgate, or not for now.
    #[error("verify the token of issuer {issuer}")]
    Token {
        /// Its URL.
        issuer: String,
        /// The cause.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
    /// No key of the issuer goes with the token.
    #[error("issuer {issuer} has no key {id:?} of {algorithm}")]
    NoKey {
        /// Its URL.
        issuer: String,
        /// The key that the token names.
        id: Option<String>,
        /// The token's algorithm.
        algorithm: String,
    },
    /// The token wants to be understood in a way that podgate does not know, RFC 7515 section 4.1.11.
    #[error("the token of issuer {issuer} has critical header fields")]
    Critical {
        /// Its URL.
        issuer: String,
    },
    /// The claims make no user.
    #[error("map the token of issuer {issuer}")]
    Mapping {
        /// Its URL.
        issuer: String,
        /// The cause.
        #[source]
        source: mapping::Error,
    },
}

/// What says to which issuer a token belongs; not believed.
#[derive(Deserialize)]
struct Named {
    iss: String,
}

// === impl Oidc ===

impl Oidc {
    /// Issuers that are asked for their keys at the default pace, once a token needs them.
    ///
    /// # Errors
    /// When the system has no roots, and an issuer no CA of its own.
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::paced(config, Pace::default())
    }

    /// Issuers that are asked for their keys at this pace.
    ///
    /// # Errors
    /// As [`Oidc::new`].
    pub fn paced(config: Config, pace: Pace) -> Result<Self, Error> {
        let issuers = config.issuers.into_iter().map(|issuer| {
            let config::Issuer { url, discovery, roots, audiences, mapping } = issuer;
            let tls = client(roots).map_err(|source| Error::Tls { issuer: url.clone(), source })?;
            Ok(Issuer { keys: Keys::new(&url, discovery, tls, pace), url, audiences, mapping })
        });
        issuers.collect::<Result<_, _>>().map(Self)
    }

    /// Whose this token is; `None` when it is of no issuer here. May be dropped.
    ///
    /// # Errors
    /// When it is of one of them and no good, or when that issuer's keys are not to be had.
    pub(super) async fn identify(&self, token: &str) -> Result<Option<User>, Error> {
        let Ok(named) = dangerous::insecure_decode_claims::<Named>(token) else { return Ok(None) };
        let Some(issuer) = self.0.iter().find(|issuer| issuer.url == named.iss) else { return Ok(None) };
        issuer.identify(token).await.map(Some)
    }
}

/// TLS towards an issuer, verified by its own CA, or by those that the system trusts.
fn client(
    roots: Option<Arc<RootCertStore>>,
) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let builder =
        ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    let builder = match roots {
        Some(roots) => builder.with_root_certificates(roots),
        None => hyper_rustls::ConfigBuilderExt::with_native_roots(builder)?,
    };
    Ok(builder.with_no_client_auth())
}

// === impl Issuer ===

impl Issuer {
    async fn identify(&self, token: &str) -> Result<User, Error> {
        let header = decode_header(token).map_err(|source| self.bad(source))?;
        if header.crit.is_some() {
            return Err(Error::Critical { issuer: self.url.clone() });
        }
        if !keys::supports(header.alg) {
            return Err(self.bad(ErrorKind::InvalidAlgorithm.into()));
        }
        let missing = |source| Error::Keys { issuer: self.url.clone(), source };
        let keys = self.keys.present().await.map_err(missing)?;
        let claims = match self.verify(token, &header, &keys) {
            // The issuer may have a new key since.
            Err(error) if error.is_about_the_key() => match self.keys.after(&keys).await.map_err(missing)? {
                Some(keys) => self.verify(token, &header, &keys)?,
                None => return Err(error),
            },
            verified => verified?,
        };
        let mapped = self.mapping.user(&claims);
        mapped.map_err(|source| Error::Mapping { issuer: self.url.clone(), source })
    }

    fn verify(&self, token: &str, header: &Header, keys: &KeySet) -> Result<Claims, Error> {
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.url]);
        validation.set_audience(&self.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let mut failed = Error::NoKey {
            issuer: self.url.clone(),
            id: header.kid.clone(),
            algorithm: format!("{:?}", header.alg),
        };
        for key in keys.candidates(header.kid.as_deref(), header.alg) {
            match decode::<Claims>(token, &key.key, &validation) {
                // A list of issuers with the right one among them is not exactly it.
                Ok(token) if token.claims.get("iss").is_none_or(|issuer| *issuer != self.url.as_str()) => {
                    return Err(self.bad(ErrorKind::InvalidIssuer.into()));
                }
                Ok(token) => return Ok(token.claims),
                Err(error) => {
                    failed = self.bad(error);
                    if !failed.is_about_the_key() {
                        break;
                    }
                }
            }
        }
        Err(failed)
    }

    fn bad(&self, source: jsonwebtoken::errors::Error) -> Error {
        Error::Token { issuer: self.url.clone(), source }
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("url", &self.url)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

// === impl Error ===

impl Error {
    /// Whether this says only that the issuer could not be asked just now.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Keys { .. })
    }

    /// Whether the token may be good by another key.
    fn is_about_the_key(&self) -> bool {
        match self {
            Self::NoKey { .. } => true,
            Self::Token { source, .. } => matches!(source.kind(), ErrorKind::InvalidSignature),
            _ => false,
        }
    }
}
