//! Authz: may they, asked of the cluster. The only maker of a [`Permit`].
//!
//! In the flow: after `authn`. First impersonation (each item is a review of its own); then, for a session, the
//! request itself; what is no session is decided by the cluster, which answers it. A session by GET is reviewed once
//! more as `create`, because a WebSocket handshake can only be a GET (`protocol.md` 1.2).
//! Invariant: no answer is a denial; nothing is cached here.
//! Source: apiserver `pkg/endpoints/filters/{authorization,impersonation}.go`, `protocol.md` 8.3 and 8.4.

pub mod impersonation;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::authn::Caller;
use crate::cluster::{self, Cluster, Decision, User};
use crate::request::{Attributes, Exec};
use crate::status::{About, Refusal, go_quote, html_escape};

/// The cluster lets this caller make this request.
#[derive(Debug)]
pub struct Permit {
    caller: Caller,
    reason: String,
}

/// The cluster lets this caller open this session: the request is permitted and so is `create`.
#[derive(Debug)]
pub struct SessionPermit {
    caller: Caller,
    exec: Exec,
}

/// Asks the cluster.
pub struct Authz {
    cluster: Arc<dyn Cluster>,
    review_timeout: Duration,
}

/// Why a request may not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster says no.
    #[error("{message}")]
    Denied {
        /// The public message.
        message: String,
        /// The parent resource.
        about: About,
        /// The authorizer's own reason; may be empty.
        reason: Box<str>,
        /// Why there was no decision, where that is told as a denial.
        #[source]
        source: Option<Box<Error>>,
    },
    /// The cluster has no answer, which is a no.
    #[error("review the request")]
    NoDecision {
        /// The request URI, for the plain-text answer.
        uri: String,
        /// The cause.
        #[source]
        source: cluster::Error,
    },
    /// The cluster did not answer in time.
    #[error("the review took longer than {0:?}")]
    Late(Duration, String),
    /// No decision on the second review of a session; unlike the first it is no filter's, and told as a Status.
    #[error("review the session as create")]
    NoSession(#[source] Box<Error>),
    /// Impersonation headers that do not make an identity.
    #[error("{0}")]
    Impersonation(String),
}

// === impl Authz ===

impl Authz {
    /// Reviews by this cluster; each must come within `review_timeout`.
    pub fn new(cluster: Arc<dyn Cluster>, review_timeout: Duration) -> Self {
        Self { cluster, review_timeout }
    }

    /// The caller after impersonation, if any was asked for and every item of it is allowed.
    ///
    /// # Errors
    /// The first item that is denied, or on which there is no decision, or headers that name no user.
    pub async fn assume(&self, caller: Caller, headers: &HeaderMap, uri: &str) -> Result<Caller, Error> {
        let Some(wanted) = impersonation::Wanted::of(headers)? else { return Ok(caller) };
        let items = wanted.items();
        for attributes in &items {
            match self.ask(caller.user(), attributes, uri).await {
                Ok(decision) if decision.allowed => {}
                Ok(decision) => return Err(denied(caller.user(), attributes, &decision.reason, None)),
                Err(error) => return Err(denied(caller.user(), attributes, "", Some(error))),
            }
        }
        Ok(caller.impersonate(wanted.into_user(), items.into()))
    }

    /// May this caller make this request?
    ///
    /// # Errors
    /// [`Error::Denied`], or that there was no decision.
    pub async fn review(&self, caller: Caller, attributes: &Attributes, uri: &str) -> Result<Permit, Error> {
        let decision = self.ask(caller.user(), attributes, uri).await?;
        if !decision.allowed {
            return Err(denied(caller.user(), attributes, &decision.reason, None));
        }
        Ok(Permit { caller, reason: decision.reason })
    }

    /// Raises a permit to one for a session: what was not reviewed as `create` is, with upstream's own shape
    /// of refusal, which is the authorizer's reason alone (`protocol.md` 1.2).
    ///
    /// # Errors
    /// As [`Authz::review`].
    pub async fn session(
        &self,
        permit: Permit,
        exec: Exec,
        attributes: &Attributes,
        uri: &str,
    ) -> Result<SessionPermit, Error> {
        if attributes.verb != "create" {
            let attributes = attributes.with_verb("create");
            let decision = self.ask(permit.caller.user(), &attributes, uri).await;
            let decision = decision.map_err(|error| Error::NoSession(Box::new(error)))?;
            if !decision.allowed {
                let message =
                    format!("pods {} is forbidden: {}", go_quote(exec.pod.as_bytes()), decision.reason);
                let about = About { name: exec.pod, group: String::new(), kind: "pods".into() };
                return Err(Error::Denied { message, about, reason: decision.reason.into(), source: None });
            }
        }
        Ok(SessionPermit { caller: permit.caller, exec })
    }

    /// Whether this caller still may open a session with these attributes, and be whom they impersonate.
    ///
    /// # Errors
    /// [`Error::Denied`], or that there was no decision on what is not denied.
    pub async fn still(&self, caller: &Caller, attributes: &Attributes) -> Result<(), Error> {
        let create = attributes.with_verb("create");
        let items = caller.impersonation().iter().filter_map(|item| Some((caller.impersonator()?, item)));
        let mut undecided = None;
        for (user, attributes) in items.chain([(caller.user(), &create)]) {
            // Nothing remembered is trusted: a right that was taken away is to be gone now.
            match self.within("", self.cluster.review_anew(user, attributes)).await {
                Ok(decision) if decision.allowed => {}
                Ok(decision) => return Err(denied(user, attributes, &decision.reason, None)),
                // One that nobody can decide is no reason to pass over another that is denied.
                Err(error) => undecided = undecided.or(Some(error)),
            }
        }
        undecided.map_or(Ok(()), Err)
    }

    async fn ask(&self, user: &User, attributes: &Attributes, uri: &str) -> Result<Decision, Error> {
        self.within(uri, self.cluster.review(user, attributes)).await
    }

    async fn within(
        &self,
        uri: &str,
        review: impl Future<Output = Result<Decision, cluster::Error>>,
    ) -> Result<Decision, Error> {
        match tokio::time::timeout(self.review_timeout, review).await {
            Ok(Ok(decision)) => Ok(decision),
            Ok(Err(source)) => Err(Error::NoDecision { uri: uri.to_owned(), source }),
            Err(_) => Err(Error::Late(self.review_timeout, uri.to_owned())),
        }
    }
}

/// What a client is told that may not make a request: the denial of `protocol.md` 8.4.
pub fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Refusal {
    denied(user, attributes, reason, None).refusal()
}

/// The denial of `protocol.md` 8.4. The part after "forbidden: " is HTML-escaped, the reason is not.
fn denied(user: &User, attributes: &Attributes, reason: &str, undecided: Option<Error>) -> Error {
    let source = undecided.map(Box::new);
    let quote = |text: &str| go_quote(text.as_bytes());
    let verb = &attributes.verb;
    let Some(resource) = &attributes.resource else {
        let what = format!("User {} cannot {verb} path {}", quote(&user.name), quote(&attributes.path));
        let message = format!("forbidden: {}", with_reason(&what, reason));
        let reason = reason.into();
        return Error::Denied { message, about: About::default(), reason, source };
    };
    let mut full = resource.resource.clone();
    if !resource.subresource.is_empty() {
        full = format!("{full}/{}", resource.subresource);
    }
    let scope = if resource.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {}", quote(&resource.namespace))
    };
    let what = format!(
        "User {} cannot {verb} resource {} in API group {} {scope}",
        quote(&user.name),
        quote(&full),
        quote(&resource.group),
    );
    let mut subject = resource.resource.clone();
    if !resource.group.is_empty() {
        subject = format!("{subject}.{}", resource.group);
    }
    if !resource.name.is_empty() {
        subject = format!("{subject} {}", quote(&resource.name));
    }
    Error::Denied {
        message: format!("{subject} is forbidden: {}", with_reason(&what, reason)),
        about: About {
            name: resource.name.clone(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
        },
        reason: reason.into(),
        source,
    }
}

fn with_reason(what: &str, reason: &str) -> String {
    let what = html_escape(what);
    if reason.is_empty() { what } else { format!("{what}: {reason}") }
}

// === impl Permit ===

impl Permit {
    /// The authorizer's reason; may be empty.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Who may.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

// === impl SessionPermit ===

impl SessionPermit {
    /// Who may.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What they may open.
    pub fn exec(&self) -> &Exec {
        &self.exec
    }
}

// === impl Error ===

impl Error {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Denied { message, about, .. } => {
                Refusal::Forbidden { message: message.clone(), about: about.clone() }
            }
            Self::NoDecision { source, .. } if matches!(source, cluster::Error::Unreachable { .. }) => {
                source.refusal()
            }
            Self::NoDecision { uri, source } => {
                Refusal::Filter { uri: uri.clone(), text: source.to_string() }
            }
            Self::Late(_, uri) => Refusal::Filter { uri: uri.clone(), text: self.to_string() },
            Self::NoSession(error) => match error.refusal() {
                Refusal::Filter { text, .. } => Refusal::Internal(text),
                refusal => refusal,
            },
            Self::Impersonation(text) => Refusal::BadRequest(text.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
