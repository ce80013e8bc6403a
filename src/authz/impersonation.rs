//! Impersonation: the headers that ask to act as somebody else, as the reviews they need.
//!
//! Every item is one review of the real caller with the verb `impersonate`, in upstream's order: user, groups,
//! extras, uid; the first denial ends it. Source: `protocol.md` 8.3.

use http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::Error;
use crate::authn::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::cluster::User;
use crate::request::{Attributes, Resource};

const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// The identity asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted(User);

// === impl Wanted ===

impl Wanted {
    /// Reads the headers; `None` when there are none.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let mut user = User {
            name: text("impersonate-user").unwrap_or_default(),
            uid: text("impersonate-uid").unwrap_or_default(),
            ..User::default()
        };
        for value in headers.get_all("impersonate-group") {
            user.groups.push(String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
        for (name, value) in headers {
            // Names are lower-case here, whatever the client wrote; only an escape can still make a capital.
            let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) else { continue };
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            user.extra.entry(key).or_default().push(value);
        }
        if !user.name.is_empty() {
            return Ok(Some(Self(user)));
        }
        let mut asked = Vec::new();
        for (given, what) in [
            (!user.groups.is_empty(), "groups"),
            (!user.extra.is_empty(), "userextras"),
            (!user.uid.is_empty(), "uids"),
        ] {
            if given {
                asked.push(what);
            }
        }
        if asked.is_empty() {
            return Ok(None);
        }
        Err(Error::Impersonation(format!("requested [{}] without impersonating a user", asked.join(" "))))
    }

    /// The reviews it takes, in order.
    pub(super) fn items(&self) -> Vec<Attributes> {
        let User { name, uid, groups, extra } = &self.0;
        let mut items = vec![match service_account(name) {
            Some((namespace, account)) => item("", "serviceaccounts", "", namespace, account),
            None => item("", "users", "", "", name),
        }];
        items.extend(groups.iter().map(|group| item("", "groups", "", "", group)));
        for (key, values) in extra {
            items.extend(values.iter().map(|value| item(AUTHENTICATION, "userextras", key, "", value)));
        }
        if !uid.is_empty() {
            items.push(item(AUTHENTICATION, "uids", "", "", uid));
        }
        items
    }

    /// The identity, with the groups that go without saying.
    pub(super) fn into_user(self) -> User {
        let mut user = self.0;
        if user.groups.is_empty()
            && let Some((namespace, _)) = service_account(&user.name)
        {
            user.groups.push("system:serviceaccounts".to_owned());
            user.groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        let has = |wanted: &str| user.groups.iter().any(|group| group == wanted);
        if user.name == ANONYMOUS {
            if !has(UNAUTHENTICATED) {
                user.groups.push(UNAUTHENTICATED.to_owned());
            }
        } else if !has(AUTHENTICATED) && !has(UNAUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        user
    }
}

fn item(group: &str, resource: &str, subresource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: "impersonate".to_owned(),
        path: String::new(),
        resource: Some(Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            rest: Vec::new(),
        }),
    }
}

/// Namespace and name of `system:serviceaccount:NAMESPACE:NAME`.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (is_label(namespace) && name.split('.').all(is_label)).then_some((namespace, name))
}

/// A DNS label, RFC 1123; upstream takes no other namespace or service account for one.
fn is_label(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    !text.is_empty() && text.bytes().all(|b| inner(&b)) && !text.starts_with('-') && !text.ends_with('-')
}
