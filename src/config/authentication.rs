//! Settings of authentication.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Who is asking: the methods, each on when it is configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authentication {
    /// CA bundle of client certificates, PEM: CN is the user, each O a group.
    #[serde(rename = "clientCAFile", skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// kube-apiserver's static token file: CSV of token, user, uid and groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// kube-apiserver's `AuthenticationConfiguration`: issuers of OIDC tokens, which are checked here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc_file: Option<PathBuf>,
    /// An authenticating proxy in front of podgate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_header: Option<RequestHeader>,
    /// Tokens that the cluster knows, those of service accounts first of all.
    pub token_review: TokenReview,
    /// Whether callers without any credential are `system:anonymous` rather than refused.
    pub anonymous: bool,
}

/// An authenticating proxy: who holds a certificate of this CA is believed who the caller is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestHeader {
    /// CA bundle of the proxy's client certificate; PEM. Not that of users.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: PathBuf,
    /// Common names of the proxy's certificate; any when empty.
    #[serde(default)]
    pub allowed_names: Vec<String>,
    /// Headers with the user name; the first that is there counts.
    #[serde(default = "username_headers")]
    pub username_headers: Vec<String>,
    /// Headers with groups.
    #[serde(default = "group_headers")]
    pub group_headers: Vec<String>,
    /// Headers with the uid.
    #[serde(default = "uid_headers")]
    pub uid_headers: Vec<String>,
    /// Prefixes of headers with further attributes.
    #[serde(default = "extra_header_prefixes")]
    pub extra_header_prefixes: Vec<String>,
}

/// Tokens that the cluster knows, by TokenReview.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenReview {
    /// Whether the cluster is asked.
    pub enabled: bool,
    /// Audiences of which a token must have one; the API server's own when empty.
    pub audiences: Vec<String>,
    /// How long a known token stays known; 0 asks each time.
    #[serde(with = "duration")]
    pub allowed_for: Duration,
    /// How long an unknown token stays unknown; 0 asks each time.
    #[serde(with = "duration")]
    pub denied_for: Duration,
}

fn username_headers() -> Vec<String> {
    vec!["X-Remote-User".into()]
}

fn group_headers() -> Vec<String> {
    vec!["X-Remote-Group".into()]
}

fn uid_headers() -> Vec<String> {
    vec!["X-Remote-Uid".into()]
}

fn extra_header_prefixes() -> Vec<String> {
    vec!["X-Remote-Extra-".into()]
}

// === impl Authentication ===

impl Authentication {
    /// Whether anybody could be known.
    pub(super) fn knows_somebody(&self) -> bool {
        self.client_ca_file.is_some()
            || self.token_file.is_some()
            || self.oidc_file.is_some()
            || self.request_header.is_some()
            || self.token_review.enabled
            || self.anonymous
    }
}

impl Default for TokenReview {
    fn default() -> Self {
        Self {
            enabled: true,
            audiences: Vec::new(),
            // kube-apiserver's for service accounts and webhooks is 10 s and 2 min; a token that was revoked is to be
            // gone soon.
            allowed_for: Duration::from_secs(10),
            denied_for: Duration::from_secs(5),
        }
    }
}
