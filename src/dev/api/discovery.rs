//! Discovery: which resources there are, one document per group and version or all at once; and the version.
//!
//! kubectl through 1.25 walks the small documents; later ones ask `/api` and `/apis` for the aggregated form
//! and take it if the response's content type confirms it.
//! Source: apiserver `pkg/endpoints/discovery`; KEP-3352; `protocol.md` 8.7, 8.8.

use http::{HeaderValue, Response, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    APIGroup, APIGroupList, APIResource, APIResourceList, APIVersions, GroupVersionForDiscovery, ObjectMeta,
    ServerAddressByClientCIDR,
};
use kube::core::discovery::v2::{
    APIGroupDiscovery, APIResourceDiscovery, APISubresourceDiscovery, APIVersionDiscovery, GroupVersionKind,
};
use serde::Serialize;

use crate::cluster::Body;
use crate::dev::store::RBAC_GROUP;
use crate::request::Ask;
use crate::serving::{Accept, JSON, full, json, uncached};

/// The only version of every group here.
const V1: &str = "v1";

/// What can be done with objects that only manifests change.
const READ: &[&str] = &["get", "list", "watch"];

/// Group and kind of a resource, and what the API says of it.
struct Entry {
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short: &'static [&'static str],
    categories: &'static [&'static str],
    subresources: &'static [Sub],
}

struct Sub {
    name: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

/// The groups in the order kubectl prefers them; the core group is `/api`, the rest `/apis`.
const GROUPS: [&str; 4] = ["", "authentication.k8s.io", "authorization.k8s.io", RBAC_GROUP];

const NOTHING: Entry = Entry {
    group: "",
    plural: "",
    singular: "",
    kind: "",
    namespaced: false,
    verbs: READ,
    short: &[],
    categories: &[],
    subresources: &[],
};

/// The three doors into a pod, which podgate's own front answers, and its log.
const DOORS: &[Sub] = &[
    Sub { name: "attach", kind: "PodAttachOptions", verbs: &["create", "get"] },
    Sub { name: "exec", kind: "PodExecOptions", verbs: &["create", "get"] },
    Sub { name: "log", kind: "Pod", verbs: &["get"] },
    Sub { name: "portforward", kind: "PodPortForwardOptions", verbs: &["create", "get"] },
];

const ENTRIES: [Entry; 10] = [
    Entry { plural: "namespaces", singular: "namespace", kind: "Namespace", short: &["ns"], ..NOTHING },
    Entry { plural: "nodes", singular: "node", kind: "Node", short: &["no"], ..NOTHING },
    Entry {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        namespaced: true,
        short: &["po"],
        categories: &["all"],
        subresources: DOORS,
        ..NOTHING
    },
    Entry {
        group: "authentication.k8s.io",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        verbs: &["create"],
        ..NOTHING
    },
    Entry {
        group: "authorization.k8s.io",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        verbs: &["create"],
        ..NOTHING
    },
    Entry {
        group: "authorization.k8s.io",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
        verbs: &["create"],
        ..NOTHING
    },
    Entry {
        group: RBAC_GROUP,
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        kind: "ClusterRoleBinding",
        ..NOTHING
    },
    Entry {
        group: RBAC_GROUP,
        plural: "clusterroles",
        singular: "clusterrole",
        kind: "ClusterRole",
        ..NOTHING
    },
    Entry {
        group: RBAC_GROUP,
        plural: "rolebindings",
        singular: "rolebinding",
        kind: "RoleBinding",
        namespaced: true,
        ..NOTHING
    },
    Entry { group: RBAC_GROUP, plural: "roles", singular: "role", kind: "Role", namespaced: true, ..NOTHING },
];

/// The aggregated document; the library's list leaves out its own kind.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Aggregated {
    kind: &'static str,
    api_version: String,
    metadata: Empty,
    items: Vec<APIGroupDiscovery>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Paths {
    paths: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    major: &'static str,
    minor: &'static str,
    emulation_major: &'static str,
    emulation_minor: &'static str,
    min_compatibility_major: &'static str,
    min_compatibility_minor: &'static str,
    git_version: &'static str,
    git_commit: &'static str,
    git_tree_state: &'static str,
    build_date: &'static str,
    go_version: &'static str,
    compiler: &'static str,
    platform: String,
}

/// Answers `/`, `/api`, `/apis` and what is below them.
pub(super) fn answer(parts: &[&str], ask: &Ask, accept: &Accept) -> Option<Response<Body>> {
    let ok = StatusCode::OK;
    Some(match parts {
        [] => json(ask, ok, &paths()),
        ["api"] => aggregated(&GROUPS[..1], ask, accept).unwrap_or_else(|| {
            let versions = APIVersions {
                server_address_by_client_cidrs: vec![ServerAddressByClientCIDR {
                    client_cidr: "0.0.0.0/0".into(),
                    server_address: String::new(),
                }],
                versions: vec![V1.into()],
            };
            varied(json(ask, ok, &versions))
        }),
        ["apis"] => aggregated(&GROUPS[1..], ask, accept).unwrap_or_else(|| {
            let groups = GROUPS[1..].iter().map(|name| group(name)).collect();
            varied(json(ask, ok, &APIGroupList { groups }))
        }),
        ["apis", name] if GROUPS[1..].contains(name) => json(ask, ok, &group(name)),
        ["api", V1] => json(ask, ok, &resources("", V1.into())),
        ["apis", name, V1] if GROUPS[1..].contains(name) => {
            json(ask, ok, &resources(name, format!("{name}/{V1}")))
        }
        _ => return None,
    })
}

/// `/openapi/v3`, of no kind here.
pub(super) fn no_schemas(ask: &Ask) -> Response<Body> {
    json(ask, StatusCode::OK, &serde_json::json!({"paths": {}}))
}

/// `/version`, always indented.
pub(super) fn version() -> Response<Body> {
    let version = Version {
        major: "1",
        minor: "36",
        emulation_major: "1",
        emulation_minor: "36",
        min_compatibility_major: "1",
        min_compatibility_minor: "35",
        git_version: "v1.36.0+podgate-dev",
        git_commit: "",
        git_tree_state: "",
        build_date: "1970-01-01T00:00:00Z",
        go_version: "",
        compiler: "rustc",
        platform: format!("{}/{}", std::env::consts::OS, crate::dev::store::go_arch()),
    };
    let text = serde_json::to_string_pretty(&version).expect("a struct of strings is JSON");
    let mut response = Response::new(full(text.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    uncached(response.headers_mut());
    response
}

fn of_group(group: &str) -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().filter(move |entry| entry.group == group)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&item| item.to_owned()).collect()
}

fn paths() -> Paths {
    let mut paths = strings(&["/api", "/api/v1", "/apis"]);
    for group in &GROUPS[1..] {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{V1}"));
    }
    paths.extend(strings(&["/healthz", "/livez", "/readyz", "/version"]));
    Paths { paths }
}

fn group(name: &str) -> APIGroup {
    let version = GroupVersionForDiscovery { group_version: format!("{name}/{V1}"), version: V1.into() };
    APIGroup {
        name: name.into(),
        preferred_version: Some(version.clone()),
        server_address_by_client_cidrs: None,
        versions: vec![version],
    }
}

fn resources(group: &str, group_version: String) -> APIResourceList {
    let mut resources = Vec::new();
    for entry in of_group(group) {
        let some = |list: &[&str]| Some(strings(list)).filter(|list| !list.is_empty());
        resources.push(APIResource {
            name: entry.plural.into(),
            singular_name: entry.singular.into(),
            namespaced: entry.namespaced,
            kind: entry.kind.into(),
            verbs: strings(entry.verbs),
            short_names: some(entry.short),
            categories: some(entry.categories),
            ..APIResource::default()
        });
        resources.extend(entry.subresources.iter().map(|sub| APIResource {
            name: format!("{}/{}", entry.plural, sub.name),
            namespaced: entry.namespaced,
            kind: sub.kind.into(),
            verbs: strings(sub.verbs),
            ..APIResource::default()
        }));
    }
    APIResourceList { group_version, resources }
}

fn aggregated(groups: &[&str], ask: &Ask, accept: &Accept) -> Option<Response<Body>> {
    let wanted = accept.version("APIGroupDiscoveryList", "apidiscovery.k8s.io", &["v2", "v2beta1"])?;
    let body = Aggregated {
        kind: "APIGroupDiscoveryList",
        api_version: format!("apidiscovery.k8s.io/{wanted}"),
        metadata: Empty {},
        items: groups.iter().map(|group| discovery(group)).collect(),
    };
    let mut response = json(ask, StatusCode::OK, &body);
    let media = match wanted {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    Some(varied(response))
}

fn discovery(group: &str) -> APIGroupDiscovery {
    let gvk = |group: &str, kind: &str| {
        Some(GroupVersionKind {
            group: Some(group.into()),
            version: Some(V1.into()),
            kind: Some(kind.into()),
        })
    };
    let resources = of_group(group).map(|entry| APIResourceDiscovery {
        resource: Some(entry.plural.into()),
        response_kind: gvk(entry.group, entry.kind),
        scope: Some(if entry.namespaced { "Namespaced" } else { "Cluster" }.into()),
        singular_resource: Some(entry.singular.into()),
        verbs: strings(entry.verbs),
        short_names: strings(entry.short),
        categories: strings(entry.categories),
        subresources: entry
            .subresources
            .iter()
            .map(|sub| APISubresourceDiscovery {
                subresource: Some(sub.name.into()),
                response_kind: gvk(entry.group, sub.kind),
                accepted_types: Vec::new(),
                verbs: strings(sub.verbs),
            })
            .collect(),
    });
    APIGroupDiscovery {
        metadata: Some(ObjectMeta {
            name: Some(group.to_owned()).filter(|name| !name.is_empty()),
            ..ObjectMeta::default()
        }),
        versions: vec![APIVersionDiscovery {
            version: Some(V1.into()),
            resources: resources.collect(),
            freshness: Some("Current".into()),
        }],
    }
}

/// Marks an answer that another `Accept` would have changed.
fn varied(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
