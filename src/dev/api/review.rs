//! Reviews of oneself: what may I do, which rules apply to me, who am I.
//!
//! Source: kubernetes `pkg/registry/authorization/{selfsubjectaccessreview,selfsubjectrulesreview}/rest.go`,
//! `pkg/registry/authentication/selfsubjectreview/rest.go`.

use std::sync::Arc;

use http::{Request, Response, StatusCode, header};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, SelfSubjectReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceRule, ResourceRule, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
    SelfSubjectRulesReview, SubjectAccessReviewStatus, SubjectRulesReviewStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protobuf;
use crate::cluster::{Body, User};
use crate::dev::rbac;
use crate::dev::store::Store;
use crate::request::{Ask, Attributes, Resource};
use crate::serving::{body, json};
use crate::status::Refusal;

/// Media types of a body. YAML, which upstream takes too, no client sends here.
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Which review.
#[derive(Debug, Clone, Copy)]
pub(super) enum Review {
    Access,
    Rules,
    Whoami,
}

// === impl Review ===

impl Review {
    pub(super) fn of(resource: &Resource) -> Option<Self> {
        let parts = (resource.group.as_str(), resource.version.as_str(), resource.resource.as_str());
        match parts {
            ("authorization.k8s.io", "v1", "selfsubjectaccessreviews") => Some(Self::Access),
            ("authorization.k8s.io", "v1", "selfsubjectrulesreviews") => Some(Self::Rules),
            ("authentication.k8s.io", "v1", "selfsubjectreviews") => Some(Self::Whoami),
            _ => None,
        }
    }

    pub(super) async fn answer(
        self,
        store: &Arc<Store>,
        user: &User,
        ask: &Ask,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let body = value(request).await?;
        let created = StatusCode::CREATED;
        Ok(match self {
            Self::Access => json(ask, created, &access(store, user, read(body)?)?),
            Self::Rules => json(ask, created, &rules(store, user, read(body)?)?),
            Self::Whoami => json(ask, created, &whoami(user, read(body)?)),
        })
    }
}

/// The body as JSON, whichever of the two formats it came in.
async fn value(request: Request<Body>) -> Result<Value, Refusal> {
    let media = request.headers().get(header::CONTENT_TYPE);
    let media = media.map_or(Ok(""), |value| value.to_str()).unwrap_or("?");
    let media = media.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if !["", JSON, PROTOBUF].contains(&media.as_str()) {
        return Err(Refusal::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: {JSON}, {PROTOBUF}"
        )));
    }
    let body = body::whole(request.into_body()).await?;
    if media == PROTOBUF {
        return protobuf::to_json(&body).map_err(|error| Refusal::BadRequest(error.to_string()));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::BadRequest(format!("the object provided is unrecognized: {error}")))
}

/// Reads the expected object; a body that does not say what it is, is taken for it.
fn read<T: k8s_openapi::Resource + DeserializeOwned>(mut body: Value) -> Result<T, Refusal> {
    let wrong = |what: String| {
        let must = T::KIND;
        Refusal::BadRequest(format!("the object provided is unrecognized (must be of type {must}): {what}"))
    };
    let Value::Object(object) = &mut body else {
        return Err(wrong("it is no object".into()));
    };
    for (name, expected) in [("kind", T::KIND), ("apiVersion", T::API_VERSION)] {
        let given = object.entry(name).or_insert_with(|| expected.into());
        if given != expected {
            return Err(wrong(format!("{name} is {given}")));
        }
    }
    // Fields are not checked to be known, as the API server's default.
    serde_json::from_value(body).map_err(|error| wrong(error.to_string()))
}

fn access(
    store: &Arc<Store>,
    user: &User,
    mut review: SelfSubjectAccessReview,
) -> Result<SelfSubjectAccessReview, Refusal> {
    let attributes = attributes(&review.spec)?;
    let decision = rbac::review(&store.snapshot(), user, &attributes);
    review.status = Some(SubjectAccessReviewStatus {
        allowed: decision.allowed,
        reason: Some(decision.reason).filter(|reason| !reason.is_empty()),
        ..SubjectAccessReviewStatus::default()
    });
    Ok(review)
}

fn attributes(spec: &SelfSubjectAccessReviewSpec) -> Result<Attributes, Refusal> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(asked), None) => Ok(Attributes {
            verb: text(&asked.verb),
            path: String::new(),
            resource: Some(Resource {
                group: text(&asked.group),
                version: text(&asked.version),
                resource: text(&asked.resource),
                subresource: text(&asked.subresource),
                namespace: text(&asked.namespace),
                name: text(&asked.name),
                rest: Vec::new(),
            }),
        }),
        (None, Some(asked)) => {
            Ok(Attributes { verb: text(&asked.verb), path: text(&asked.path), resource: None })
        }
        (None, None) => Err(Refusal::BadRequest(
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
             resourceAttributes must be specified"
                .into(),
        )),
        (Some(_), Some(_)) => Err(Refusal::BadRequest(
            "spec.nonResourceAttributes: Invalid value: cannot be specified in combination with \
             resourceAttributes"
                .into(),
        )),
    }
}

fn rules(
    store: &Arc<Store>,
    user: &User,
    mut review: SelfSubjectRulesReview,
) -> Result<SelfSubjectRulesReview, Refusal> {
    let namespace = review.spec.namespace.clone().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Refusal::BadRequest("no namespace on request".into()));
    }
    let (rules, errors) = rbac::rules(&store.snapshot(), user, &namespace);
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let mut status =
        SubjectRulesReviewStatus { evaluation_error: errors, ..SubjectRulesReviewStatus::default() };
    for rule in rules {
        if given(&rule.resources) {
            status.resource_rules.push(ResourceRule {
                verbs: rule.verbs.clone(),
                api_groups: rule.api_groups,
                resources: rule.resources,
                resource_names: rule.resource_names,
            });
        }
        if given(&rule.non_resource_urls) {
            status
                .non_resource_rules
                .push(NonResourceRule { verbs: rule.verbs, non_resource_urls: rule.non_resource_urls });
        }
    }
    review.status = Some(status);
    Ok(review)
}

fn whoami(user: &User, mut review: SelfSubjectReview) -> SelfSubjectReview {
    review.metadata.creation_timestamp = Some(Time(jiff::Timestamp::now()));
    review.status = Some(SelfSubjectReviewStatus {
        user_info: Some(UserInfo {
            username: Some(user.name.clone()).filter(|name| !name.is_empty()),
            uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups.clone()).filter(|groups| !groups.is_empty()),
            extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
        }),
    });
    review
}
