//! Pipeline: the order of the stages, and nothing else.
//!
//! Each stage takes the proof the one before it made, so a wrong order does not compile: a `Caller` becomes a
//! `Permit`, that a `SessionPermit`, that a `Place`, that an `Admitted`, that a `Tapped`, whose recording has begun if one is
//! demanded, and only that can be dialled.

use std::sync::Arc;

use http::HeaderMap;
use tracing::{error, info, warn};

use crate::audit::Trail;
use crate::authn::{Authn, Caller};
use crate::authz::{self, Authz, Permit};
use crate::listen::Conn;
use crate::locate::{Locate, Place};
use crate::policy::{Admitted, Circumstances, Policy};
use crate::request::{Ask, Attributes, Exec};
use crate::status::Refusal;
use crate::tap::{self, Opening, Tapped};
use crate::telemetry::chain;
use crate::upstream::{Answer, ClientHead, Upstream};

/// The stages.
pub struct Pipeline {
    /// Who.
    pub authn: Authn,
    /// May they.
    pub authz: Authz,
    /// Where.
    pub locate: Locate,
    /// May they, say the house rules.
    pub policy: Arc<Policy>,
    /// What is written about it.
    pub tap: tap::Stage,
    /// The far side.
    pub upstream: Upstream,
}

// === impl Pipeline ===

impl Pipeline {
    /// Who is asking: for every request, session or not.
    ///
    /// # Errors
    /// 401, or that nobody could say.
    pub async fn identify(&self, conn: &Conn, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let caller = self.authn.identify(conn, headers).await;
        caller.map_err(|e| refused("authn", &e, e.refusal()))
    }

    /// As whom they are asking.
    ///
    /// # Errors
    /// 403 for an impersonation that is not allowed, or that nobody could decide.
    pub async fn assume(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        ask: &Ask,
        trail: &mut Trail,
    ) -> Result<Caller, Refusal> {
        let assumed = self.authz.assume(caller, headers, &ask.uri).await;
        let caller = assumed.map_err(|e| refused("authz", &e, e.refusal()))?;
        if caller.impersonator().is_some() {
            trail.impersonated(caller.user());
        }
        Ok(caller)
    }

    /// May they open a session: the request itself, before anything of it is looked at.
    ///
    /// # Errors
    /// 403, or that nobody could decide.
    pub async fn permit(&self, caller: Caller, ask: &Ask, trail: &mut Trail) -> Result<Permit, Refusal> {
        let permit = self.authz.review(caller, &ask.attributes, &ask.uri).await;
        match &permit {
            Ok(permit) => trail.decided(true, permit.reason()),
            Err(authz::Error::Denied { reason, .. }) => trail.decided(false, reason),
            Err(_) => trail.undecided(),
        }
        permit.map_err(|e| refused("authz", &e, e.refusal()))
    }

    /// From a permitted request to the place its session will run at.
    ///
    /// # Errors
    /// Everything `protocol.md` 1.3 checks before the kubelet is dialled.
    pub async fn place(&self, permit: Permit, exec: Exec, ask: &Ask) -> Result<Place, Refusal> {
        let permit = self.authz.session(permit, exec, &ask.attributes, &ask.uri).await;
        let permit = permit.map_err(|e| refused("authz", &e, e.refusal()))?;
        self.locate.find(permit).await.map_err(|e| refused("locate", &e, e.refusal()))
    }

    /// May they, say the house rules, and on which terms.
    ///
    /// # Errors
    /// 403, in the words of the rule that says no.
    pub fn admit(&self, place: Place, said: Circumstances, trail: &mut Trail) -> Result<Admitted, Refusal> {
        if let Some(reason) = &said.reason {
            trail.annotate("reason", reason);
        }
        match self.policy.admit(place, said) {
            Ok(admitted) => {
                let terms = admitted.terms();
                trail.annotate("policy", terms.rules.join(","));
                if let Some(reason) = &terms.reason {
                    trail.annotate("reason", reason);
                }
                if let Some(grant) = &terms.grant {
                    trail.annotate("grant", grant);
                }
                Ok(admitted)
            }
            Err(error) => {
                trail.annotate("policy", &error.rule);
                Err(refused("policy", &error, error.refusal()))
            }
        }
    }

    /// The caller of a live session as they are known now, by what they were known, if they still may `create` it. While
    /// nobody can say, they may; but what can be said is asked.
    ///
    /// # Errors
    /// Why the session may not go on.
    pub async fn still(&self, caller: &Caller, attributes: &Attributes) -> Result<Caller, String> {
        let caller = match self.authn.still(caller).await {
            Ok(caller) => caller,
            Err(error) if error.is_transient() => {
                unsure("authn", &error);
                caller.clone()
            }
            Err(error) => return lapsed("the credential of this session is no longer valid", &error),
        };
        match self.authz.still(&caller, attributes).await {
            Ok(()) => {}
            Err(error @ authz::Error::Denied { .. }) => {
                return lapsed("this session is no longer allowed", &error);
            }
            Err(error) => unsure("authz", &error),
        }
        Ok(caller)
    }

    /// No record, no session: begins what is to be written about it.
    ///
    /// # Errors
    /// When it has to be recorded and cannot be.
    pub async fn tap(&self, admitted: Admitted, opening: &Opening) -> Result<Tapped, Refusal> {
        self.tap.open(admitted, opening).await.map_err(|e| refused("tap", &e, e.refusal()))
    }

    /// The far side's answer.
    ///
    /// # Errors
    /// When it gave none that the client may see.
    pub async fn open(&self, tapped: &Tapped, client: &ClientHead<'_>) -> Result<Answer, Refusal> {
        self.upstream.upgrade(tapped, client).await.map_err(|e| refused("upstream", &e, e.refusal()))
    }
}

/// Logs why a session ends, of which the client is told `public`.
fn lapsed(public: &str, error: &dyn std::error::Error) -> Result<Caller, String> {
    info!(error = chain(error), "a session has lapsed: {public}");
    Err(public.to_owned())
}

fn unsure(stage: &'static str, error: &dyn std::error::Error) {
    warn!(stage, error = chain(error), "cannot ask again about a session, it goes on");
}

/// Logs a stage's error with its causes, which the client never sees, and hands on what it does see.
fn refused(stage: &'static str, error: &dyn std::error::Error, refusal: Refusal) -> Refusal {
    let (code, reason) = (refusal.code().as_u16(), refusal.word());
    let cause = chain(error);
    if code >= 500 {
        error!(stage, refusal.code = code, refusal.reason = reason, error = cause, "request failed");
    } else {
        info!(stage, refusal.code = code, refusal.reason = reason, error = cause, "request refused");
    }
    refusal
}
