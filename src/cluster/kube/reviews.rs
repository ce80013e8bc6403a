//! Reviews: may they, and whose token is this, asked of the cluster itself.
//!
//! Answers about rights are remembered for a short time, by exactly what was asked: the bytes of the review
//! are the key. However many ask the same at once, the API server is asked once. Errors are not remembered;
//! they are no decision, and fail closed. Whose a token is, is remembered by `authn`, not here. Invariant: no
//! token is in an error or a log line, nor an API server's message that may repeat one.
//! Source: apiserver `plugin/pkg/authorizer/webhook/webhook.go`,
//! `plugin/pkg/authenticator/token/webhook/webhook.go`, `pkg/endpoints/filters/authorization.go`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus,
};
use moka::future::Cache;
use serde::Serialize;
use tracing::debug;

use super::ask::{Asker, Refused, Shared, read, unanswered};
use crate::cluster::{Decision, Error, User};
use crate::flight::Flights;
use crate::request::Attributes;

/// What reviews of rights are told about in errors.
const REVIEW: &str = "review the caller's rights";

/// What reviews of tokens are told about in errors.
const TOKEN: &str = "review a token";

const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Bytes of remembered reviews at most, questions with their answers: some 20,000 usual ones. Callers choose
/// how long a name or a group is, so that counting reviews would bound nothing; the least recently used make
/// room.
const MAX_REMEMBERED: u64 = 16 * 1024 * 1024;

/// What one remembered review takes beside its bytes.
const OVERHEAD: usize = 256;

/// How long answers hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) allowed: Duration,
    pub(super) denied: Duration,
}

/// Asks for reviews of rights.
pub(super) struct Rights {
    asker: Arc<Asker>,
    /// Absent when no answer holds for any time.
    answers: Option<Cache<Bytes, Decision>>,
    flights: Flights<Bytes, Result<Decision, Shared>>,
}

/// Asks for reviews of tokens.
#[derive(Debug)]
pub(super) struct Tokens(pub(super) Asker);

// === impl Rights ===

impl Rights {
    pub(super) fn new(asker: Asker, times: Times) -> Self {
        let answers = (times.allowed + times.denied > Duration::ZERO).then(|| {
            Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .weigher(|asked: &Bytes, answer: &Decision| {
                    u32::try_from(asked.len() + answer.reason.len() + OVERHEAD).unwrap_or(u32::MAX)
                })
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .expire_after(times)
                .build()
        });
        Self { asker: Arc::new(asker), answers, flights: Flights::default() }
    }

    /// The cluster's answer, or what it was a short time ago. Dropping the future does not disturb others who ask the same.
    pub(super) async fn review(&self, user: &User, attributes: &Attributes) -> Result<Decision, Error> {
        let body = json(REVIEW, &access_review(user, attributes))?;
        match &self.answers {
            Some(answers) => match answers.get(&body).await {
                Some(answer) => Ok(answer),
                None => self.ask(body).await,
            },
            None => self.ask(body).await,
        }
    }

    /// The cluster's answer as it is now.
    pub(super) async fn review_anew(&self, user: &User, attributes: &Attributes) -> Result<Decision, Error> {
        self.ask(json(REVIEW, &access_review(user, attributes))?).await
    }

    async fn ask(&self, body: Bytes) -> Result<Decision, Error> {
        let Some(answers) = &self.answers else { return ask(&self.asker, body).await };
        let (asker, answers, asked) = (self.asker.clone(), answers.clone(), body.clone());
        let fly = || {
            let answered = async move {
                let decision = ask(&asker, asked.clone()).await?;
                answers.insert(asked, decision.clone()).await;
                Ok(decision)
            };
            answered.boxed()
        };
        self.flights.join(&body, fly).await.map_err(Error::from)
    }
}

async fn ask(asker: &Asker, body: Bytes) -> Result<Decision, Error> {
    let answer = asker.post(REVIEW, ACCESS_REVIEWS, body).await?;
    let review: SubjectAccessReview = read(REVIEW, &created(answer).map_err(|no| unanswered(REVIEW, no))?)?;
    let Some(status) = review.status else { return Err(unanswered(REVIEW, "the answer has no status")) };
    decision(status)
}

/// As the API server acts on its own authorizers: an error beside anything but a yes is no decision.
fn decision(status: SubjectAccessReviewStatus) -> Result<Decision, Error> {
    let denied = status.denied.unwrap_or(false);
    if status.allowed && denied {
        return Err(unanswered(REVIEW, "the answer is both yes and no"));
    }
    match status.evaluation_error {
        Some(error) if !status.allowed && !error.is_empty() => Err(unanswered(REVIEW, error)),
        _ => Ok(Decision { allowed: status.allowed, reason: status.reason.unwrap_or_default() }),
    }
}

fn access_review(user: &User, attributes: &Attributes) -> SubjectAccessReview {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let verb = some(&attributes.verb);
    let mut spec = SubjectAccessReviewSpec {
        user: some(&user.name),
        uid: some(&user.uid),
        groups: (!user.groups.is_empty()).then(|| user.groups.clone()),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    match &attributes.resource {
        Some(resource) => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb,
                group: some(&resource.group),
                version: some(&resource.version),
                resource: some(&resource.resource),
                subresource: some(&resource.subresource),
                namespace: some(&resource.namespace),
                name: some(&resource.name),
                ..ResourceAttributes::default()
            });
        }
        None => {
            let path = some(&attributes.path);
            spec.non_resource_attributes = Some(NonResourceAttributes { path, verb });
        }
    }
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}

// === impl Times ===

impl moka::Expiry<Bytes, Decision> for Times {
    fn expire_after_create(&self, _: &Bytes, answer: &Decision, _: std::time::Instant) -> Option<Duration> {
        Some(if answer.allowed { self.allowed } else { self.denied })
    }
}

// === impl Tokens ===

impl Tokens {
    /// Whose a token is; nobody's, when the cluster does not accept it, for whatever reason.
    pub(super) async fn review(&self, token: &str, audiences: &[String]) -> Result<Option<User>, Error> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: (!audiences.is_empty()).then(|| audiences.to_vec()),
            },
            ..TokenReview::default()
        };
        let answer = self.0.post(TOKEN, TOKEN_REVIEWS, json(TOKEN, &review)?).await?;
        let body = created(answer).map_err(|no| unanswered(TOKEN, no.without_message()))?;
        let review: TokenReview = read(TOKEN, &body)?;
        let Some(status) = review.status else { return Err(unanswered(TOKEN, "the answer has no status")) };
        if !status.authenticated.unwrap_or(false) {
            // Its error is about the token: a bad one, mostly. It may quote it.
            debug!(explained = status.error.is_some(), "the cluster does not accept a token");
            return Ok(None);
        }
        // One that knows nothing of audiences vouches for its own API server alone.
        let meant = status.audiences.unwrap_or_default();
        if !audiences.is_empty() && !audiences.iter().any(|audience| meant.contains(audience)) {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        let UserInfo { username: Some(name), uid, groups, extra } = user else {
            return Err(unanswered(TOKEN, "the answer names nobody"));
        };
        Ok(Some(User {
            name,
            uid: uid.unwrap_or_default(),
            groups: groups.unwrap_or_default(),
            extra: extra.unwrap_or_default(),
        }))
    }
}

fn json(act: &str, review: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(review).map(Bytes::from).map_err(|error| unanswered(act, error))
}

/// What was made of a review that was posted.
fn created((code, body): (StatusCode, Bytes)) -> Result<Bytes, Refused> {
    if code.is_success() { Ok(body) } else { Err(Refused::of(code, &body)) }
}
