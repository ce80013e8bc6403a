//! Authn: who is asking, from the certificate of the connection or the token of the request.
//!
//! In the flow: the first stage. Methods are tried in the API server's order; the first that knows the caller
//! wins, and one that failed is only fatal when no other succeeds. A credential that is wrong is never
//! downgraded to anonymous. The client learns nothing but `Unauthorized`; the log has the cause.
//! Source: `protocol.md` 8.2 (apiserver `pkg/authentication/request/{union,x509,bearertoken,anonymous}`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use http::{HeaderMap, HeaderValue, header};
use rustls_pki_types::UnixTime;

use crate::cluster::User;
use crate::listen::Conn;
use crate::request::Upgrade;
use crate::status::Refusal;
use crate::tls::{self, ClientVerifier};
use crate::wire::ws::handshake::{self, BearerError};

/// The group of everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";

/// The group and name of everybody else, where anonymous access is on.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The anonymous user.
pub const ANONYMOUS: &str = "system:anonymous";

/// A user whose identity was proven. Only this room, and `authz` for an impersonation it has checked, make one.
#[derive(Debug, Clone)]
pub struct Caller {
    user: User,
    /// The user who really asks, when `user` is impersonated.
    impersonator: Option<Box<User>>,
    ambient: bool,
}

/// The union of the configured methods.
#[derive(Debug)]
pub struct Authn {
    certificates: Option<ClientVerifier>,
    tokens: Tokens,
    anonymous: bool,
}

/// kube-apiserver's static token file, read once. Tokens are kept and looked up by their SHA-256: no copy of a
/// token stays in memory, and a look-up's duration says nothing about how much of a guess was right.
#[derive(Default)]
pub struct Tokens(HashMap<[u8; 32], User>);

/// Why a caller is not known, or a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a certificate nor a bearer token came.
    #[error("no credentials were given")]
    NoCredentials,
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
    /// The token file cannot be read.
    #[error("read token file {path}")]
    ReadTokens {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: csv::Error,
    },
    /// A line of the token file is not `token,user,uid[,"group,group"]`.
    #[error("token file {path}, line {line}: {what}")]
    BadTokenLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

// === impl Caller ===

impl Caller {
    fn new(mut user: User, ambient: bool) -> Self {
        if !user.groups.iter().any(|group| group == AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Self { user, impersonator: None, ambient }
    }

    /// The identity that authorization is about.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Who is behind an impersonated identity.
    pub fn impersonator(&self) -> Option<&User> {
        self.impersonator.as_deref()
    }

    /// Whether a browser would say so for any page: by a client certificate, or by saying nothing.
    pub fn is_ambient(&self) -> bool {
        self.ambient
    }

    /// The same request as somebody else; for `authz`, once every item was allowed.
    pub(crate) fn impersonate(self, user: User) -> Self {
        Self { user, impersonator: Some(Box::new(self.user)), ambient: self.ambient }
    }
}

// === impl Authn ===

impl Authn {
    /// A union of certificates (when there is a CA), static tokens and, if switched on, anonymous access.
    pub fn new(certificates: Option<ClientVerifier>, tokens: Tokens, anonymous: bool) -> Self {
        Self { certificates, tokens, anonymous }
    }

    /// Who is asking.
    ///
    /// # Errors
    /// When a credential is wrong and none is right, or when there is none and anonymous access is off.
    pub async fn identify(&self, conn: &Conn, headers: &HeaderMap) -> Result<Caller, Error> {
        let mut failed = None;
        if let (Some(verifier), false) = (&self.certificates, conn.certificates.is_empty()) {
            match verifier.verify(&conn.certificates, UnixTime::now()) {
                Ok(subject) if subject.common_name.is_empty() => failed = Some(Error::NoCommonName),
                Ok(subject) => {
                    let user =
                        User { name: subject.common_name, groups: subject.organizations, ..User::default() };
                    return Ok(Caller::new(user, true));
                }
                Err(error) => failed = Some(Error::Certificate(error)),
            }
        }
        if let Some(token) = bearer(headers) {
            match self.tokens.look_up(token) {
                Some(user) => return Ok(Caller::new(user.clone(), false)),
                None => failed = Some(Error::UnknownToken),
            }
        }
        // Browsers can send no other header (`protocol.md` 6.2).
        if Upgrade::of(headers) == Upgrade::WebSocket {
            let lines = headers.get_all(handshake::PROTOCOL_HEADER).iter().map(HeaderValue::as_bytes);
            match handshake::bearer(lines) {
                Ok(None) => {}
                Ok(Some(bearer)) => match self.tokens.look_up(bearer.token.as_bytes()) {
                    Some(user) => return Ok(Caller::new(user.clone(), false)),
                    None => failed = Some(Error::UnknownToken),
                },
                Err(error) => failed = Some(Error::Subprotocol(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None if self.anonymous => Ok(Caller {
                user: User {
                    name: ANONYMOUS.into(),
                    groups: vec![UNAUTHENTICATED.into()],
                    ..User::default()
                },
                impersonator: None,
                ambient: true,
            }),
            None => Err(Error::NoCredentials),
        }
    }
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

// === impl Tokens ===

impl Tokens {
    /// Reads a token file: CSV of token, user name, user uid and, optionally, a quoted list of groups.
    ///
    /// # Errors
    /// When the file cannot be read, or with the line that is wrong; nothing is half loaded.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::ReadTokens { path: path.to_owned(), source };
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::Fields)
            .from_path(path)
            .map_err(read)?;
        let mut tokens = HashMap::new();
        for (number, record) in reader.records().enumerate() {
            let record = record.map_err(read)?;
            let line = record.position().map_or(number as u64 + 1, csv::Position::line);
            let wrong = |what| Error::BadTokenLine { path: path.to_owned(), line, what };
            if record.len() < 3 {
                return Err(wrong("wants token, user name and user uid"));
            }
            let (token, name, uid) = (&record[0], &record[1], &record[2]);
            if token.is_empty() || name.is_empty() {
                return Err(wrong("the token or the user name is empty"));
            }
            let groups = record.get(3).unwrap_or("").split(',').map(str::trim);
            let user = User {
                name: name.to_owned(),
                uid: uid.to_owned(),
                groups: groups.filter(|group| !group.is_empty()).map(str::to_owned).collect(),
                extra: BTreeMap::new(),
            };
            if tokens.insert(sha256(token.as_bytes()), user).is_some() {
                return Err(wrong("the token stands in an earlier line too"));
            }
        }
        Ok(Self(tokens))
    }

    fn look_up(&self, token: &[u8]) -> Option<&User> {
        self.0.get(&sha256(token))
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tokens").field(&self.0.len()).finish()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

// === impl Error ===

impl Error {
    /// What the client is told: always the same.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoCredentials
            | Self::Certificate(_)
            | Self::NoCommonName
            | Self::Subprotocol(_)
            | Self::UnknownToken
            | Self::ReadTokens { .. }
            | Self::BadTokenLine { .. } => Refusal::Unauthorized,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn tokens(text: &str) -> Result<Tokens, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Tokens::from_file(file.path())
    }

    fn ask(authn: &Authn, authorization: Option<&[u8]>) -> Result<Caller, Error> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let identified = authn.identify(&Conn::default(), &headers).now_or_never();
        identified.expect("nobody is asked who takes time")
    }

    #[test]
    fn a_token_is_its_user_with_its_groups() {
        let tokens = tokens("t0ken,ana,u1,\"dev,ops\"\nother, ben ,u2\n").unwrap();
        let authn = Authn::new(None, tokens, false);
        let caller = ask(&authn, Some(b"bearer t0ken trailing words")).unwrap();
        assert_eq!(caller.user().name, "ana");
        assert_eq!(caller.user().uid, "u1");
        assert_eq!(caller.user().groups, ["dev", "ops", AUTHENTICATED]);
        assert_eq!(ask(&authn, Some(b"Bearer other")).unwrap().user().name, "ben");
    }

    #[test]
    fn item_106_a_bad_token_is_unauthorized_even_when_anonymous_is_allowed() {
        let authn = Authn::new(None, tokens("t0ken,ana,u1\n").unwrap(), true);
        assert_eq!(ask(&authn, None).unwrap().user().name, ANONYMOUS);
        assert_eq!(ask(&authn, None).unwrap().user().groups, [UNAUTHENTICATED]);
        assert_eq!(ask(&authn, Some(b"Basic YTpi")).unwrap().user().name, ANONYMOUS);
        assert!(matches!(ask(&authn, Some(b"Bearer t0kem")), Err(Error::UnknownToken)));
        assert!(matches!(ask(&authn, Some(b"Bearer \xff\xfe")), Err(Error::UnknownToken)));
    }

    #[test]
    fn without_credentials_nobody_gets_in() {
        let authn = Authn::new(None, tokens("t0ken,ana,u1\n").unwrap(), false);
        assert!(matches!(ask(&authn, None), Err(Error::NoCredentials)));
        assert!(matches!(ask(&authn, Some(b"Bearer ")), Err(Error::NoCredentials)));
        assert_eq!(Error::NoCredentials.refusal(), Refusal::Unauthorized);
    }

    #[test]
    fn a_wrong_token_file_is_refused_with_its_line() {
        let text = |error: Result<Tokens, Error>| error.unwrap_err().to_string();
        assert!(text(tokens("a,b,c\nonly,two\n")).ends_with("line 2: wants token, user name and user uid"));
        assert!(text(tokens("a,b,c\na,d,e\n")).ends_with("line 2: the token stands in an earlier line too"));
    }

    #[test]
    fn tokens_are_not_shown() {
        assert!(!format!("{:?}", tokens("s3cret,ana,u1\n").unwrap()).contains("s3cret"));
    }
}
