//! Authn: who is asking, from the connection's certificate, a front proxy's headers or the request's token.
//!
//! In the flow: the first stage. Methods are tried in the API server's order; the first that knows the caller
//! wins, and one that failed is only fatal when no other succeeds. A credential that is wrong is never
//! downgraded to anonymous. The client learns nothing but `Unauthorized`, unless nobody could be asked; the
//! log has the cause. What a caller was known by stays with the [`Caller`], so that a session can ask again.
//! Source: `protocol.md` 8.2 (apiserver
//! `pkg/authentication/request/{union,headerrequest,x509,bearertoken,anonymous}`,
//! `pkg/authentication/group`).

pub mod front_proxy;
pub mod oidc;
pub mod review;
pub mod tokens;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::cluster::User;
use crate::listen::Conn;
use crate::reload::Live;
use crate::request::{Attributes, Upgrade};
use crate::status::Refusal;
use crate::tls::{self, ClientVerifier};
use crate::wire::ws::handshake::{self, BearerError};

pub use front_proxy::FrontProxy;
pub use oidc::Oidc;
pub use review::TokenReview;
use review::{Ask, Reviews};
pub use tokens::Tokens;

/// The group of everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";

/// The group and name of everybody else, where anonymous access is on.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The anonymous user.
pub const ANONYMOUS: &str = "system:anonymous";

/// A user whose identity was proven. Only this room, and `authz` for an impersonation it has checked, make
/// one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    user: User,
    /// The user who really asks, when `user` is impersonated.
    impersonator: Option<Impersonator>,
    proof: Proof,
}

/// Who asks as somebody else, and what they have to be allowed for that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Impersonator {
    user: Box<User>,
    items: Arc<[Attributes]>,
}

/// What a caller was known by.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Proof {
    FrontProxy(Arc<[CertificateDer<'static>]>),
    Certificate(Arc<[CertificateDer<'static>]>),
    Token(Arc<[u8]>),
    Nothing,
}

/// The configured methods, in the order in which they are tried.
#[derive(Debug)]
pub struct Methods {
    /// Headers of a front proxy.
    pub front_proxy: Option<FrontProxy>,
    /// Client certificates.
    pub certificates: Option<Live<ClientVerifier>>,
    /// Tokens of the static token file.
    pub tokens: Live<Tokens>,
    /// Tokens of OpenID Connect issuers, checked here.
    pub oidc: Option<Live<Oidc>>,
    /// Tokens that the cluster knows.
    pub review: Option<TokenReview>,
    /// Whether those without any credential get in, as [`ANONYMOUS`].
    pub anonymous: bool,
}

/// The union of the configured methods.
#[derive(Debug)]
pub struct Authn {
    front_proxy: Option<FrontProxy>,
    certificates: Option<Live<ClientVerifier>>,
    tokens: Live<Tokens>,
    oidc: Option<Live<Oidc>>,
    review: Option<Reviews>,
    anonymous: bool,
}

/// Why a caller is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No credential came.
    #[error("no credentials were given")]
    NoCredentials,
    /// Whoever is there is no front proxy.
    #[error("authenticate by front proxy")]
    FrontProxy(#[source] front_proxy::Error),
    /// The certificate of the connection is not accepted.
    #[error("authenticate by client certificate")]
    Certificate(#[source] tls::Error),
    /// The certificate names nobody.
    #[error("the client certificate has no common name")]
    NoCommonName,
    /// The subprotocols of a WebSocket request have something like a token among them.
    #[error("authenticate by WebSocket subprotocol")]
    Subprotocol(#[source] BearerError),
    /// The token is in no token source.
    #[error("the bearer token is not known")]
    UnknownToken,
    /// The token is of a configured issuer, and no good.
    #[error("authenticate by OpenID Connect")]
    Oidc(#[source] oidc::Error),
    /// It cannot be said now whose the token is.
    #[error("authenticate by bearer token")]
    Unavailable(#[source] review::Error),
    /// What a caller was known by is no longer theirs.
    #[error("the credential is no longer that of {0:?}")]
    SomebodyElse(String),
    /// The method by which a caller was known is no longer there.
    #[error("callers are no longer known by {0}")]
    MethodGone(&'static str),
}

// === impl Caller ===

impl Caller {
    /// Source: apiserver `pkg/authentication/group/authenticated_group_adder.go`.
    fn new(mut user: User, proof: Proof) -> Self {
        let told = |group: &String| group == AUTHENTICATED || group == UNAUTHENTICATED;
        if user.name != ANONYMOUS && !user.groups.iter().any(told) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Self { user, impersonator: None, proof }
    }

    /// The identity that authorization is about.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Who is behind an impersonated identity.
    pub fn impersonator(&self) -> Option<&User> {
        self.impersonator.as_ref().map(|impersonator| &*impersonator.user)
    }

    /// What the impersonator has to be allowed, item by item; nothing when there is none.
    pub fn impersonation(&self) -> &[Attributes] {
        self.impersonator.as_ref().map_or(&[], |impersonator| &impersonator.items)
    }

    /// Whether a browser would say so for any page: by a client certificate, by the cookie of a front proxy,
    /// or by saying nothing.
    pub fn is_ambient(&self) -> bool {
        match self.proof {
            Proof::FrontProxy(_) | Proof::Certificate(_) | Proof::Nothing => true,
            Proof::Token(_) => false,
        }
    }

    /// The same request as somebody else; for `authz`, once each of these items was allowed.
    pub(crate) fn impersonate(self, user: User, items: Arc<[Attributes]>) -> Self {
        let impersonator = Impersonator { user: Box::new(self.user), items };
        Self { user, impersonator: Some(impersonator), proof: self.proof }
    }

    /// Who was authenticated: the person, whoever they act as.
    pub fn authenticated(&self) -> &User {
        self.impersonator().unwrap_or(&self.user)
    }
}

// === impl Proof ===

/// Neither tokens nor certificates are shown.
impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FrontProxy(_) => "FrontProxy",
            Self::Certificate(_) => "Certificate",
            Self::Token(_) => "Token",
            Self::Nothing => "Nothing",
        })
    }
}

// === impl Methods ===

impl Default for Methods {
    /// None: nobody gets in.
    fn default() -> Self {
        Self {
            front_proxy: None,
            certificates: None,
            tokens: Live::fixed(Tokens::default()),
            oidc: None,
            review: None,
            anonymous: false,
        }
    }
}

// === impl Authn ===

impl Authn {
    /// The union of these methods.
    pub fn new(methods: Methods) -> Self {
        let Methods { front_proxy, certificates, tokens, oidc, review, anonymous } = methods;
        Self { front_proxy, certificates, tokens, oidc, review: review.map(Reviews::new), anonymous }
    }

    /// Who is asking. May be dropped: nothing is lost.
    ///
    /// # Errors
    /// When a credential is wrong and none is right, or when there is none and anonymous access is off.
    pub async fn identify(&self, conn: &Conn, headers: &HeaderMap) -> Result<Caller, Error> {
        let mut failed = None;
        if !conn.certificates.is_empty() {
            match self.front_proxy(conn, headers) {
                Ok(Some(user)) => {
                    return Ok(Caller::new(user, Proof::FrontProxy(conn.certificates.clone())));
                }
                Ok(None) => {}
                Err(error) => note(&mut failed, error),
            }
            match self.certificate(&conn.certificates) {
                Ok(Some(user)) => {
                    return Ok(Caller::new(user, Proof::Certificate(conn.certificates.clone())));
                }
                Ok(None) => {}
                Err(error) => note(&mut failed, error),
            }
        }
        if let Some(token) = bearer(headers) {
            match self.token(token, Ask::Remembered).await {
                Ok(user) => return Ok(Caller::new(user, Proof::Token(token.into()))),
                Err(error) => note(&mut failed, error),
            }
        }
        // Browsers can send no other header (`protocol.md` 6.2).
        if Upgrade::of(headers) == Upgrade::WebSocket {
            let lines = headers.get_all(handshake::PROTOCOL_HEADER).iter().map(HeaderValue::as_bytes);
            match handshake::bearer(lines) {
                Ok(None) => {}
                Ok(Some(bearer)) => match self.token(bearer.token.as_bytes(), Ask::Remembered).await {
                    Ok(user) => return Ok(Caller::new(user, Proof::Token(bearer.token.as_bytes().into()))),
                    Err(error) => note(&mut failed, error),
                },
                Err(error) => note(&mut failed, Error::Subprotocol(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None if self.anonymous => Ok(Caller::new(anonymous(), Proof::Nothing)),
            None => Err(Error::NoCredentials),
        }
    }

    /// The caller of a live session, if what they, or their impersonator, were known by still proves the same: with the
    /// groups and the other attributes that go with it now. Nothing remembered is trusted. May be dropped: nothing is
    /// lost.
    ///
    /// # Errors
    /// When it does not, or ([`Error::is_transient`]) when nobody can say so now.
    pub async fn still(&self, caller: &Caller) -> Result<Caller, Error> {
        let user = match &caller.proof {
            // Whom it spoke for was said with the request, and will not be said again.
            Proof::FrontProxy(chain) => {
                let proxy = self.front_proxy.as_ref().ok_or(Error::MethodGone("front proxy"))?;
                return proxy.verify(chain).map(|()| caller.clone()).map_err(Error::FrontProxy);
            }
            Proof::Certificate(chain) => {
                self.certificate(chain)?.ok_or(Error::MethodGone("client certificate"))?
            }
            Proof::Token(token) => self.token(token, Ask::Anew).await?,
            Proof::Nothing if self.anonymous => return Ok(caller.clone()),
            Proof::Nothing => return Err(Error::NoCredentials),
        };
        let known = caller.authenticated();
        if (&user.name, &user.uid) != (&known.name, &known.uid) {
            return Err(Error::SomebodyElse(known.name.clone()));
        }
        let now = Caller::new(user, caller.proof.clone());
        Ok(match &caller.impersonator {
            Some(Impersonator { items, .. }) => now.impersonate(caller.user.clone(), items.clone()),
            None => now,
        })
    }

    /// Takes out of a request what a front proxy says, or somebody in its place.
    pub fn forget(&self, headers: &mut HeaderMap) {
        if let Some(proxy) = &self.front_proxy {
            proxy.forget(headers);
        }
    }

    fn front_proxy(&self, conn: &Conn, headers: &HeaderMap) -> Result<Option<User>, Error> {
        let Some(proxy) = &self.front_proxy else { return Ok(None) };
        proxy.identify(&conn.certificates, headers).map_err(Error::FrontProxy)
    }

    /// `None` when certificates are no method here.
    fn certificate(&self, chain: &[CertificateDer<'_>]) -> Result<Option<User>, Error> {
        let Some(verifier) = &self.certificates else { return Ok(None) };
        let subject = verifier.get().verify(chain, UnixTime::now()).map_err(Error::Certificate)?;
        if subject.common_name.is_empty() {
            return Err(Error::NoCommonName);
        }
        Ok(Some(User { name: subject.common_name, groups: subject.organizations, ..User::default() }))
    }

    /// Whose a bearer token is, by the first source that knows it.
    async fn token(&self, token: &[u8], ask: Ask) -> Result<User, Error> {
        if let Some(user) = self.tokens.get().look_up(token) {
            return Ok(user.clone());
        }
        // No other source has tokens of other bytes.
        let Some(token) =
            str::from_utf8(token).ok().filter(|token| token.bytes().all(|b| b.is_ascii_graphic()))
        else {
            return Err(Error::UnknownToken);
        };
        let mut failed = Error::UnknownToken;
        if let Some(oidc) = &self.oidc {
            match oidc.get().identify(token).await {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                Err(error) => failed = Error::Oidc(error),
            }
        }
        if let Some(review) = &self.review
            && let Some(user) = review.ask(token, ask).await.map_err(Error::Unavailable)?
        {
            return Ok(User::clone(&user));
        }
        Err(failed)
    }
}

/// Of several failures the last is told, unless one could not be asked about: the caller may be known after
/// all.
fn note(failed: &mut Option<Error>, error: Error) {
    if !failed.as_ref().is_some_and(Error::is_transient) {
        *failed = Some(error);
    }
}

fn anonymous() -> User {
    User { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..User::default() }
}

/// The token of `Authorization: Bearer TOKEN`: scheme in any case, the second blank-separated word; other
/// schemes are ignored.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes().trim_ascii();
    let mut words = value.splitn(3, |&byte| byte == b' ');
    let scheme = words.next()?;
    let token = words.next()?;
    (scheme.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

// === impl Error ===

impl Error {
    /// What the client is told: always the same of a credential that is wrong.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoCredentials
            | Self::FrontProxy(_)
            | Self::Certificate(_)
            | Self::NoCommonName
            | Self::Subprotocol(_)
            | Self::UnknownToken
            | Self::Oidc(_)
            | Self::SomebodyElse(_)
            | Self::MethodGone(_) => Refusal::Unauthorized,
            Self::Unavailable(review::Error::Unanswered(error)) => error.refusal(),
            Self::Unavailable(error @ review::Error::Late(_)) => Refusal::Unavailable(error.to_string()),
        }
    }

    /// Whether this says only that nobody could be asked just now, and nothing about the caller.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Oidc(error) => error.is_transient(),
            Self::NoCredentials
            | Self::FrontProxy(_)
            | Self::Certificate(_)
            | Self::NoCommonName
            | Self::Subprotocol(_)
            | Self::UnknownToken
            | Self::SomebodyElse(_)
            | Self::MethodGone(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
