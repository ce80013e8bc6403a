//! Config: kube-apiserver's `AuthenticationConfiguration` file, read whole and checked whole.
//!
//! The file is upstream's, so that the one of the API server can be used as it is: its versions, its keys,
//! its rules. What it can say and podgate cannot do is an error, not passed over; only `egressSelectorType`,
//! which is about the API server's own network, means nothing here.
//! Source: apiserver `pkg/apis/apiserver/v1`, `pkg/apis/apiserver/validation`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use http::Uri;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::Error;
use super::expression::{Expression, Uses};
use super::mapping::{ClaimRule, Mapping, Rule, Source};

/// Issuers of one file, as upstream: each may hold up tokens of its own by being slow.
const MAX_ISSUERS: usize = 64;

/// Where an issuer's discovery document is, OpenID Connect Discovery 1.0 section 4.
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Versions of the file; they differ in nothing that podgate reads.
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// A checked file.
#[derive(Debug)]
pub struct Config {
    pub(super) issuers: Vec<Issuer>,
    /// Whether the anonymous get in, where the file says so.
    pub anonymous: Option<bool>,
}

/// An issuer, and what its tokens mean.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) url: String,
    pub(super) discovery: Uri,
    pub(super) roots: Option<Arc<RootCertStore>>,
    pub(super) audiences: Vec<String>,
    pub(super) mapping: Mapping,
}

/// A key of the file and what is wrong with its value.
type Wrong = (String, String);

mod file {
    //! The file to the letter. What is left out is empty, as in Go; only a prefix is different when it is.

    use serde::Deserialize;

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct File {
        pub(super) api_version: String,
        pub(super) kind: String,
        pub(super) jwt: Vec<Jwt>,
        pub(super) anonymous: Option<Anonymous>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Anonymous {
        pub(super) enabled: bool,
        pub(super) conditions: Vec<Condition>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Condition {
        #[allow(dead_code, reason = "part of the format")]
        pub(super) path: String,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Jwt {
        pub(super) issuer: Issuer,
        pub(super) claim_validation_rules: Vec<ClaimRule>,
        pub(super) claim_mappings: Mappings,
        pub(super) user_validation_rules: Vec<UserRule>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Issuer {
        pub(super) url: String,
        #[serde(rename = "discoveryURL")]
        pub(super) discovery_url: String,
        pub(super) certificate_authority: String,
        pub(super) audiences: Vec<String>,
        pub(super) audience_match_policy: String,
        pub(super) egress_selector_type: String,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct ClaimRule {
        pub(super) claim: String,
        pub(super) required_value: String,
        pub(super) expression: String,
        pub(super) message: String,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Mappings {
        pub(super) username: Prefixed,
        pub(super) groups: Prefixed,
        pub(super) uid: Plain,
        pub(super) extra: Vec<Extra>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Prefixed {
        pub(super) claim: String,
        pub(super) prefix: Option<String>,
        pub(super) expression: String,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Plain {
        pub(super) claim: String,
        pub(super) expression: String,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Extra {
        pub(super) key: String,
        pub(super) value_expression: String,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct UserRule {
        pub(super) expression: String,
        pub(super) message: String,
    }
}

// === impl Config ===

impl Config {
    /// Reads and checks a file; expressions are compiled.
    ///
    /// # Errors
    /// When the file cannot be read, or the first key that is unknown or has a value that makes no sense.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let parsed = parse(&text);
        let file = parsed.map_err(|(key, what)| Error::Parse { path: path.to_owned(), key, what })?;
        Self::of(file).map_err(|(key, what)| Error::Invalid { path: path.to_owned(), key, what })
    }

    fn of(file: file::File) -> Result<Self, Wrong> {
        if !VERSIONS.contains(&file.api_version.as_str()) {
            return wrong("apiVersion", format!("{:?} is none of {}", file.api_version, VERSIONS.join(", ")));
        }
        if file.kind != "AuthenticationConfiguration" {
            return wrong("kind", format!("{:?} is not AuthenticationConfiguration", file.kind));
        }
        if file.jwt.len() > MAX_ISSUERS {
            return wrong("jwt", format!("must have at most {MAX_ISSUERS} items"));
        }
        if let Some(anonymous) = &file.anonymous
            && !anonymous.conditions.is_empty()
        {
            return wrong(
                "anonymous.conditions",
                "are not supported: podgate lets the anonymous in everywhere or nowhere",
            );
        }
        let mut issuers = Vec::<Issuer>::new();
        for (index, jwt) in file.jwt.into_iter().enumerate() {
            let at = format!("jwt[{index}]");
            let issuer = Issuer::of(&at, jwt)?;
            for (key, of) in [("url", Issuer::url as fn(&_) -> _), ("discoveryURL", Issuer::discovery)] {
                if issuers.iter().any(|other| of(other) == of(&issuer)) {
                    return wrong(format!("{at}.issuer.{key}"), format!("duplicate value {:?}", of(&issuer)));
                }
            }
            issuers.push(issuer);
        }
        Ok(Self { issuers, anonymous: file.anonymous.map(|anonymous| anonymous.enabled) })
    }
}

/// The path of the offending key and what is wrong with it, on failure.
fn parse(text: &str) -> Result<file::File, Wrong> {
    let mut track = serde_path_to_error::Track::new();
    let read = serde_saphyr::with_deserializer_from_str(text, |inner| {
        file::File::deserialize(serde_path_to_error::Deserializer::new(inner, &mut track))
    });
    read.map_err(|error| (track.path().to_string(), error.without_snippet().to_string()))
}

fn wrong<T>(key: impl Into<String>, what: impl Into<String>) -> Result<T, Wrong> {
    Err((key.into(), what.into()))
}

// === impl Issuer ===

impl Issuer {
    fn of(at: &str, jwt: file::Jwt) -> Result<Self, Wrong> {
        let issuer = jwt.issuer;
        let key = |name: &str| format!("{at}.issuer.{name}");
        if issuer.url.is_empty() {
            return wrong(key("url"), "required value");
        }
        https(&key("url"), &issuer.url)?;
        let discovery = if issuer.discovery_url.is_empty() {
            format!("{}{WELL_KNOWN}", issuer.url.strip_suffix('/').unwrap_or(&issuer.url))
        } else {
            issuer.discovery_url
        };
        if discovery.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
            return wrong(key("discoveryURL"), "must be different from url");
        }
        let discovery = https(&key("discoveryURL"), &discovery)?;
        audiences(&key("audiences"), &issuer.audiences)?;
        match issuer.audience_match_policy.as_str() {
            "MatchAny" => {}
            "" if issuer.audiences.len() == 1 => {}
            _ if issuer.audiences.len() == 1 => {
                return wrong(key("audienceMatchPolicy"), "must be empty or MatchAny for a single audience");
            }
            _ => return wrong(key("audienceMatchPolicy"), "must be MatchAny for multiple audiences"),
        }
        if !matches!(issuer.egress_selector_type.as_str(), "" | "controlplane" | "cluster") {
            return wrong(key("egressSelectorType"), "must be either controlplane or cluster");
        }
        let roots = match issuer.certificate_authority.as_str() {
            "" => None,
            pem => match roots(pem) {
                Ok(roots) => Some(roots),
                Err(what) => return wrong(key("certificateAuthority"), what),
            },
        };
        let mapping = mapping(at, jwt.claim_validation_rules, jwt.claim_mappings, jwt.user_validation_rules)?;
        Ok(Self { url: issuer.url, discovery, roots, audiences: issuer.audiences, mapping })
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    fn discovery(&self) -> String {
        self.discovery.to_string()
    }
}

fn https(key: &str, text: &str) -> Result<Uri, Wrong> {
    // The parser drops a fragment without a word.
    if text.contains('#') {
        return wrong(key, "URL must not contain a fragment");
    }
    let uri: Uri = match text.parse() {
        Ok(uri) => uri,
        Err(error) => return wrong(key, format!("is no URL: {error}")),
    };
    if uri.scheme_str() != Some("https") {
        return wrong(key, "URL scheme must be https");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return wrong(key, "URL must not contain a username or password");
    }
    if uri.query().is_some() {
        return wrong(key, "URL must not contain a query");
    }
    Ok(uri)
}

fn audiences(key: &str, audiences: &[String]) -> Result<(), Wrong> {
    if audiences.is_empty() {
        return wrong(key, "at least one is required");
    }
    let mut seen = HashSet::new();
    for (index, audience) in audiences.iter().enumerate() {
        if audience.is_empty() {
            return wrong(format!("{key}[{index}]"), "required value");
        }
        if !seen.insert(audience) {
            return wrong(format!("{key}[{index}]"), format!("duplicate value {audience:?}"));
        }
    }
    Ok(())
}

fn roots(pem: &str) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("has no certificate".to_owned()) } else { Ok(Arc::new(roots)) }
}

fn mapping(
    at: &str,
    claim_rules: Vec<file::ClaimRule>,
    mappings: file::Mappings,
    user_rules: Vec<file::UserRule>,
) -> Result<Mapping, Wrong> {
    let mut mapping = Mapping::default();
    // What the expressions whose result is believed look at, but for the username's.
    let mut verified = false;

    let mut seen = HashSet::new();
    for (index, rule) in claim_rules.into_iter().enumerate() {
        let at = format!("{at}.claimValidationRules[{index}]");
        let file::ClaimRule { claim, required_value, expression, message } = rule;
        mapping.claim_rules.push(match (claim.as_str(), expression.as_str()) {
            ("", "") => return wrong(at, "claim or expression is required"),
            (_, "") if !message.is_empty() => {
                return wrong(format!("{at}.message"), "may not be specified when claim is set");
            }
            (_, "") => {
                if !seen.insert((true, claim.clone())) {
                    return wrong(format!("{at}.claim"), format!("duplicate value {claim:?}"));
                }
                ClaimRule::Required { claim, value: required_value }
            }
            ("", _) if !required_value.is_empty() => {
                return wrong(format!("{at}.requiredValue"), "may not be specified when expression is set");
            }
            ("", source) => {
                let at = format!("{at}.expression");
                if !seen.insert((false, source.to_owned())) {
                    return wrong(at, format!("duplicate value {source:?}"));
                }
                let expression = compile(&at, source, "claims")?;
                verified |= expression.uses().email_verified;
                ClaimRule::Rule(Rule { expression, message })
            }
            _ => return wrong(at, "claim and expression can't both be set"),
        });
    }

    let at_mappings = format!("{at}.claimMappings");
    mapping.username = prefixed(&format!("{at_mappings}.username"), mappings.username)?;
    let Some(username) = &mapping.username else {
        return wrong(format!("{at_mappings}.username"), "claim or expression is required");
    };
    let Uses { email, email_verified } = match username {
        Source::Expression(expression) => expression.uses(),
        Source::Claim { .. } => Uses::default(),
    };
    verified |= email_verified;
    mapping.groups = prefixed(&format!("{at_mappings}.groups"), mappings.groups)?;
    let file::Plain { claim, expression } = mappings.uid;
    let prefix = (!claim.is_empty()).then(String::new);
    mapping.uid = prefixed(&format!("{at_mappings}.uid"), file::Prefixed { claim, prefix, expression })?;
    for (index, extra) in mappings.extra.into_iter().enumerate() {
        let at = format!("{at_mappings}.extra[{index}]");
        if let Err(what) = extra_key(&extra.key) {
            return wrong(format!("{at}.key"), what);
        }
        if mapping.extra.iter().any(|(key, _)| *key == extra.key) {
            return wrong(format!("{at}.key"), format!("duplicate value {:?}", extra.key));
        }
        let expression = compile(&format!("{at}.valueExpression"), &extra.value_expression, "claims")?;
        verified |= expression.uses().email_verified;
        mapping.extra.push((extra.key, expression));
    }
    if email && !verified {
        return wrong(
            format!("{at_mappings}.username.expression"),
            "claims.email_verified must be used in claimMappings.username.expression or \
             claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when \
             claims.email is used in claimMappings.username.expression",
        );
    }

    let mut seen = HashSet::new();
    for (index, rule) in user_rules.into_iter().enumerate() {
        let at = format!("{at}.userValidationRules[{index}].expression");
        let expression = compile(&at, &rule.expression, "user")?;
        if !seen.insert(rule.expression.clone()) {
            return wrong(at, format!("duplicate value {:?}", rule.expression));
        }
        mapping.user_rules.push(Rule { expression, message: rule.message });
    }
    Ok(mapping)
}

/// `None` when it says nothing.
fn prefixed(at: &str, from: file::Prefixed) -> Result<Option<Source>, Wrong> {
    let file::Prefixed { claim, prefix, expression } = from;
    match (claim.as_str(), prefix, expression.as_str()) {
        ("", None, "") => Ok(None),
        ("", Some(_), "") => wrong(format!("{at}.claim"), "required when prefix is set"),
        ("", Some(_), _) => wrong(format!("{at}.prefix"), "can't be set when expression is set"),
        ("", None, source) => {
            Ok(Some(Source::Expression(compile(&format!("{at}.expression"), source, "claims")?)))
        }
        (_, None, "") => wrong(
            format!("{at}.prefix"),
            "required when claim is set: set it to an empty string for no prefix",
        ),
        (_, Some(prefix), "") => Ok(Some(Source::Claim { name: claim, prefix })),
        _ => wrong(at, "claim and expression can't both be set"),
    }
}

fn compile(at: &str, source: &str, variable: &'static str) -> Result<Expression, Wrong> {
    if source.trim().is_empty() {
        return wrong(at, "required value");
    }
    Expression::compile(source, variable).map_err(|what| (at.to_owned(), what))
}

/// A key is a domain and a path, such as `example.com/team`, and not one of Kubernetes' own.
fn extra_key(key: &str) -> Result<(), &'static str> {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%!$&'()*+,;=:".contains(&byte);
    if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("must be lowercase");
    }
    match key.split_once('/') {
        Some((domain, path))
            if domain.split('.').all(label) && !path.is_empty() && path.bytes().all(inner) =>
        {
            let reserved =
                |of: &str| domain.strip_suffix(of).is_some_and(|sub| sub.is_empty() || sub.ends_with('.'));
            if reserved("k8s.io") || reserved("kubernetes.io") {
                return Err("k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use");
            }
            Ok(())
        }
        _ => Err("must be a domain-prefixed path, such as example.com/team"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "\
apiVersion: apiserver.config.k8s.io/v1beta1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://issuer.test/realm
    audiences: [podgate]
  claimMappings:
    username:
      claim: sub
      prefix: ''
";

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let shown = format!("authentication configuration {}, ", file.path().display());
        Config::from_file(file.path()).map_err(|error| error.to_string().replace(&shown, ""))
    }

    /// What is wrong with the minimal file after this replacement.
    fn error(old: &str, new: &str) -> String {
        assert!(MINIMAL.contains(old));
        read(&MINIMAL.replacen(old, new, 1)).unwrap_err()
    }

    #[test]
    fn a_minimal_file_is_read() {
        let config = read(MINIMAL).unwrap();
        assert_eq!(config.anonymous, None);
        let [issuer] = config.issuers.as_slice() else { panic!("one issuer") };
        assert_eq!(issuer.discovery, "https://issuer.test/realm/.well-known/openid-configuration");
        assert!(issuer.roots.is_none());
    }

    #[test]
    fn everything_the_format_has_is_read() {
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()])
            .unwrap()
            .cert
            .pem()
            .replace('\n', "\n      ");
        let text = format!(
            "\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
jwt:
- issuer:
    url: https://issuer.test/
    discoveryURL: https://discovery.test:8443/issuer/.well-known/openid-configuration
    certificateAuthority: |
      {ca}
    audiences: [podgate, kubernetes]
    audienceMatchPolicy: MatchAny
    egressSelectorType: cluster
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  - expression: claims.hd == 'example.com'
    message: the domain is wrong
  - expression: claims.email_verified
  claimMappings:
    username:
      expression: claims.email
    groups:
      claim: groups
      prefix: 'oidc:'
    uid:
      claim: sub
    extra:
    - key: example.com/team
      valueExpression: claims.team
  userValidationRules:
  - expression: \"!user.username.startsWith('system:')\"
    message: reserved
"
        );
        let config = read(&text).unwrap();
        assert_eq!(config.anonymous, Some(true));
        let [issuer] = config.issuers.as_slice() else { panic!("one issuer") };
        assert_eq!(issuer.roots.as_ref().unwrap().len(), 1);
        assert_eq!(issuer.discovery.port_u16(), Some(8443));
        assert!(read("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n").is_ok());
    }

    #[test]
    fn what_is_not_of_the_format_is_refused_with_its_path_and_line() {
        let unknown = error("audiences", "audience");
        assert!(unknown.contains("at jwt[0].issuer.audience: ") && unknown.contains("line 6"), "{unknown}");
        assert!(error("[podgate]", "7").contains("at jwt[0].issuer.audiences: "));
        assert!(error("v1beta1", "v2").starts_with("apiVersion: \"apiserver.config.k8s.io/v2\" is none of "));
        assert!(error("kind: Auth", "kind: ").starts_with("kind: "));
        assert!(!read("").unwrap_err().is_empty());
        let missing = Config::from_file(Path::new("/nonexistent/oidc.yaml")).unwrap_err();
        assert_eq!(missing.to_string(), "read authentication configuration /nonexistent/oidc.yaml");
    }

    #[test]
    fn an_issuer_that_makes_no_sense_is_refused_with_its_path() {
        let url = |url: &str| error("https://issuer.test/realm", url);
        assert_eq!(url("''"), "jwt[0].issuer.url: required value");
        assert_eq!(url("http://issuer.test"), "jwt[0].issuer.url: URL scheme must be https");
        assert_eq!(
            url("https://a:b@issuer.test"),
            "jwt[0].issuer.url: URL must not contain a username or password"
        );
        assert_eq!(url("https://issuer.test/?a"), "jwt[0].issuer.url: URL must not contain a query");
        assert_eq!(url("'https://issuer.test/#a'"), "jwt[0].issuer.url: URL must not contain a fragment");
        assert!(url("'https:// '").starts_with("jwt[0].issuer.url: is no URL"));
        let same = "https://issuer.test\n    discoveryURL: https://issuer.test/";
        assert_eq!(url(same), "jwt[0].issuer.discoveryURL: must be different from url");
        let ca = "https://issuer.test\n    certificateAuthority: nothing";
        assert_eq!(url(ca), "jwt[0].issuer.certificateAuthority: has no certificate");
        let audiences = |list: &str| error("[podgate]", list);
        assert_eq!(audiences("[]"), "jwt[0].issuer.audiences: at least one is required");
        assert_eq!(
            audiences("[a, '']\n    audienceMatchPolicy: MatchAny"),
            "jwt[0].issuer.audiences[1]: required value"
        );
        assert_eq!(audiences("[a, a]"), "jwt[0].issuer.audiences[1]: duplicate value \"a\"");
        assert_eq!(
            audiences("[a, b]"),
            "jwt[0].issuer.audienceMatchPolicy: must be MatchAny for multiple audiences"
        );
        assert_eq!(
            audiences("[a]\n    audienceMatchPolicy: MatchAll"),
            "jwt[0].issuer.audienceMatchPolicy: must be empty or MatchAny for a single audience"
        );
        let twice = format!("{MINIMAL}{}", &MINIMAL[MINIMAL.find("- issuer").unwrap()..]);
        assert_eq!(
            read(&twice).unwrap_err(),
            "jwt[1].issuer.url: duplicate value \"https://issuer.test/realm\""
        );
        let conditions = format!("{MINIMAL}anonymous:\n  enabled: true\n  conditions:\n  - path: /healthz\n");
        assert!(read(&conditions).unwrap_err().starts_with("anonymous.conditions: are not supported"));
    }

    #[test]
    fn mappings_and_rules_that_make_no_sense_are_refused_with_their_path() {
        let username = |lines: &str| {
            let error = error("claim: sub\n      prefix: ''", lines);
            error.strip_prefix("jwt[0].claimMappings.username").unwrap_or(&error).to_owned()
        };
        assert_eq!(
            username("claim: sub"),
            ".prefix: required when claim is set: set it to an empty string for no prefix"
        );
        assert_eq!(username("claim: ''"), ": claim or expression is required");
        assert_eq!(username("prefix: a"), ".claim: required when prefix is set");
        assert_eq!(
            username("expression: claims.sub\n      prefix: a"),
            ".prefix: can't be set when expression is set"
        );
        assert_eq!(
            username("expression: claims.sub\n      claim: a"),
            ": claim and expression can't both be set"
        );
        assert_eq!(username("expression: user.name"), ".expression: undeclared reference to \"user\"");
        assert!(
            username("expression: claims.email")
                .starts_with(".expression: claims.email_verified must be used")
        );
        assert!(username("expression: claims.").starts_with(".expression: "));

        let more = |lines: &str| read(&format!("{MINIMAL}{lines}")).unwrap_err();
        let extra = |key: &str| more(&format!("    extra: [{{key: {key}, valueExpression: claims.a}}]\n"));
        assert_eq!(extra("Example.com/a"), "jwt[0].claimMappings.extra[0].key: must be lowercase");
        assert!(extra("team").contains("must be a domain-prefixed path"));
        assert!(extra("a.kubernetes.io/team").contains("reserved for Kubernetes"));
        assert!(
            read(&format!("{MINIMAL}    extra: [{{key: notk8s.io/a, valueExpression: claims.a}}]\n")).is_ok()
        );
        assert_eq!(
            more("    extra: [{key: a.b/c}]\n"),
            "jwt[0].claimMappings.extra[0].valueExpression: required value"
        );
        let rules = |rules: &str| more(&format!("  claimValidationRules: [{rules}]\n"));
        assert_eq!(rules("{}"), "jwt[0].claimValidationRules[0]: claim or expression is required");
        assert_eq!(
            rules("{claim: a, message: b}"),
            "jwt[0].claimValidationRules[0].message: may not be specified when claim is set"
        );
        assert_eq!(
            rules("{expression: claims.a, requiredValue: b}"),
            "jwt[0].claimValidationRules[0].requiredValue: may not be specified when expression is set"
        );
        assert_eq!(
            rules("{claim: a}, {claim: a}"),
            "jwt[0].claimValidationRules[1].claim: duplicate value \"a\""
        );
        assert_eq!(
            more("  userValidationRules: [{expression: claims.sub}]\n"),
            "jwt[0].userValidationRules[0].expression: undeclared reference to \"claims\""
        );
    }
}
