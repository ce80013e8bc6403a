//! Front proxy: a proxy that has authenticated the caller itself and says by headers who it is.
//!
//! Invariant: the headers are believed on a connection whose client certificate leads to the front proxies'
//! own CA and names an allowed one of them, and nowhere else.
//! Source: apiserver `pkg/authentication/request/headerrequest`.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::cluster::User;
use crate::reload::Live;
use crate::tls::{self, ClientVerifier};

/// Who is believed as a front proxy, and by which headers it says whom it speaks for.
#[derive(Debug, Clone)]
pub struct FrontProxy {
    /// Judges the certificates of front proxies. Not the CA of ordinary clients: each of its holders could be
    /// anybody.
    pub authorities: Live<ClientVerifier>,
    /// Common names of front proxies; when empty, any certificate of the CA is one's.
    pub allowed_names: Vec<String>,
    /// Headers with the user name; the first that is not empty counts.
    pub username_headers: Vec<HeaderName>,
    /// Headers with groups, one a line; all count.
    pub group_headers: Vec<HeaderName>,
    /// Headers with the uid; the first that is not empty counts.
    pub uid_headers: Vec<HeaderName>,
    /// What headers of further attributes begin with, in any case; the rest of the name is the key.
    pub extra_prefixes: Vec<String>,
}

/// Why a front proxy is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its certificate is no front proxy's.
    #[error("verify the front proxy")]
    Certificate(#[source] tls::Error),
    /// Its certificate is of the right CA, for another purpose.
    #[error("{0:?} is not an allowed name of a front proxy")]
    Name(String),
    /// Two users could look like one, were this let pass.
    #[error("header {0} of the front proxy is not UTF-8")]
    NotUtf8(HeaderName),
}

// === impl FrontProxy ===

impl FrontProxy {
    /// Whether this is a front proxy's connection.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let subject = self.authorities.get().verify(chain, UnixTime::now()).map_err(Error::Certificate)?;
        if self.allowed_names.is_empty() || self.allowed_names.contains(&subject.common_name) {
            return Ok(());
        }
        Err(Error::Name(subject.common_name))
    }

    /// Whom the front proxy speaks for; `None` when it names nobody.
    ///
    /// # Errors
    /// When this is no front proxy's connection, or a header cannot be read.
    pub(super) fn identify(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
    ) -> Result<Option<User>, Error> {
        self.verify(chain)?;
        let name = first(headers, &self.username_headers)?;
        if name.is_empty() {
            return Ok(None);
        }
        let uid = first(headers, &self.uid_headers)?;
        let mut groups = Vec::new();
        for header in &self.group_headers {
            for value in headers.get_all(header) {
                let group = text(header, value)?;
                if !group.is_empty() {
                    groups.push(group.to_owned());
                }
            }
        }
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for prefix in &self.extra_prefixes {
            for (header, value) in headers {
                let Some(key) = strip(header.as_str(), prefix) else { continue };
                extra.entry(unescape(key)).or_default().push(text(header, value)?.to_owned());
            }
        }
        Ok(Some(User { name: name.to_owned(), uid: uid.to_owned(), groups, extra }))
    }

    /// Takes out every header that could name somebody, whoever sent it: nobody behind podgate is to believe it.
    pub(super) fn forget(&self, headers: &mut HeaderMap) {
        let named = [&self.username_headers, &self.group_headers, &self.uid_headers];
        for header in named.into_iter().flatten() {
            headers.remove(header);
        }
        let is_extra = |header: &&HeaderName| {
            self.extra_prefixes.iter().any(|prefix| strip(header.as_str(), prefix).is_some())
        };
        let extras: Vec<_> = headers.keys().filter(is_extra).cloned().collect();
        for header in extras {
            headers.remove(header);
        }
    }
}

/// The first of these headers that says something; of one that came twice, only the first line is looked at.
fn first<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Result<&'a str, Error> {
    for name in names {
        if let Some(value) = headers.get(name)
            && !value.is_empty()
        {
            return text(name, value);
        }
    }
    Ok("")
}

fn text<'a>(name: &HeaderName, value: &'a http::HeaderValue) -> Result<&'a str, Error> {
    str::from_utf8(value.as_bytes()).map_err(|_| Error::NotUtf8(name.clone()))
}

fn strip<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, key) = name.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(key)
}

/// The key of an attribute, lower-case until it is decoded. One that cannot be decoded is taken as it is, as
/// upstream does: no attribute is lost for its spelling.
fn unescape(key: &str) -> String {
    let whole = |part: &str| {
        let mut digits = part.bytes().take(2);
        digits.len() == 2 && digits.all(|byte| byte.is_ascii_hexdigit())
    };
    let key = key.to_ascii_lowercase();
    if !key.split('%').skip(1).all(whole) {
        return key;
    }
    match percent_decode_str(&key).decode_utf8() {
        Ok(decoded) => decoded.into_owned(),
        Err(_) => key,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Pki;

    fn proxy(pki: &Pki, allowed_names: &[&str]) -> FrontProxy {
        let verifier = ClientVerifier::new(pki.roots()).unwrap();
        FrontProxy {
            authorities: Live::fixed(verifier),
            allowed_names: allowed_names.iter().map(|&name| name.to_owned()).collect(),
            username_headers: vec![
                HeaderName::from_static("x-remote-user"),
                HeaderName::from_static("x-other-user"),
            ],
            group_headers: vec![HeaderName::from_static("x-remote-group")],
            uid_headers: vec![HeaderName::from_static("x-remote-uid")],
            extra_prefixes: vec!["X-Remote-Extra-".into()],
        }
    }

    fn headers(lines: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn identify(lines: &[(&str, &[u8])]) -> Result<Option<User>, Error> {
        let pki = Pki::new();
        proxy(&pki, &["proxy"]).identify(pki.client("proxy", &[]).chain(), &headers(lines))
    }

    #[test]
    fn all_headers_make_the_user() {
        let user = identify(&[
            ("X-Remote-User", b""),
            ("X-Other-User", "jos\u{e9}".as_bytes()),
            ("X-Remote-Group", b"dev"),
            ("X-Remote-Group", b""),
            ("X-Remote-Group", b"ops,all"),
            ("X-Remote-Uid", b"u1"),
            ("X-Remote-Extra-Scopes", b"a"),
            ("X-Remote-Extra-scopes", b"b"),
            ("X-Remote-Extra-Example.com%2Fteam", b"c"),
            ("X-Remote-Extra-100%", b"d"),
        ]);
        let user = user.unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jos\u{e9}", "u1"));
        assert_eq!(user.groups, ["dev", "ops,all"]);
        let extra = user.extra.iter().map(|(key, values)| format!("{key}={}", values.join(",")));
        assert_eq!(extra.collect::<Vec<_>>(), ["100%=d", "example.com/team=c", "scopes=a,b"]);
    }

    #[test]
    fn a_proxy_that_names_nobody_speaks_for_nobody() {
        assert_eq!(identify(&[("x-remote-group", b"dev")]).unwrap(), None);
    }

    #[test]
    fn what_is_not_text_is_nobody() {
        let error = identify(&[("x-remote-user", b"ana\xff")]).unwrap_err();
        assert!(matches!(error, Error::NotUtf8(name) if name == "x-remote-user"));
    }

    #[test]
    fn only_the_right_name_of_the_right_authority_is_believed() {
        let (pki, other) = (Pki::new(), Pki::new());
        let headers = headers(&[("x-remote-user", b"root")]);
        let proxy = proxy(&pki, &["proxy", "second"]);
        assert!(proxy.identify(pki.client("second", &[]).chain(), &headers).unwrap().is_some());
        let wrong_name = proxy.identify(pki.client("ana", &[]).chain(), &headers);
        assert!(matches!(wrong_name, Err(Error::Name(name)) if name == "ana"));
        let wrong_authority = proxy.identify(other.client("proxy", &[]).chain(), &headers);
        assert!(matches!(wrong_authority, Err(Error::Certificate(_))));
        assert!(matches!(proxy.identify(&[], &headers), Err(Error::Certificate(_))));
        let expired = proxy.identify(pki.expired_client("proxy").chain(), &headers);
        assert!(matches!(expired, Err(Error::Certificate(_))));
    }

    #[test]
    fn without_names_every_certificate_of_the_authority_is_a_proxys() {
        let pki = Pki::new();
        proxy(&pki, &[]).verify(pki.client("anything", &[]).chain()).unwrap();
    }

    proptest! {
        #[test]
        fn an_escaped_key_is_itself_again(key in "[ -~\u{e0}-\u{ff}]{0,20}") {
            let escaped = percent_encoding::utf8_percent_encode(&key, percent_encoding::NON_ALPHANUMERIC);
            prop_assert_eq!(unescape(&escaped.to_string()), key.to_ascii_lowercase());
        }

        #[test]
        fn any_key_is_some_key(key in "[!-~]{0,20}") {
            prop_assert!(key.is_empty() || !unescape(&key).is_empty());
        }
    }
}
