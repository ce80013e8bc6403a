//! The requests whose answers are compared (`answers.rs`), good and bad, and the differences that are meant.

use serde_json::{Value, json};

use crate::answers::Caller::{Mallory, Nobody, Unknown};
use crate::answers::{Known, Request};

/// What is asked about: pods of the namespace, by what is special about them.
pub(crate) struct Subjects<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) node: &'a str,
    /// One container, which runs.
    pub(crate) web: &'a str,
}

/// Pods besides, with names of their own: `multi` has the containers `a` and `b` and the finished init container
/// `setup`, `unscheduled` has no node, `lost` is on a node that is not there, `with.dots` is like `unscheduled`.
pub(crate) fn pods(template: impl Fn(&str) -> Value) -> Vec<Value> {
    let named = |name: &str| {
        let mut pod = template(name);
        pod["metadata"]["labels"] = json!({ "compared": "yes" });
        pod
    };
    let container = |name: &str, command: &[&str], of: &Value| {
        let mut container = of["spec"]["containers"][0].clone();
        container["name"] = name.into();
        container["command"] = json!(command);
        container
    };
    let mut multi = named("multi");
    multi["spec"]["initContainers"] = json!([container("setup", &["true"], &multi)]);
    multi["spec"]["containers"] =
        json!([container("a", &["sleep", "10000"], &multi), container("b", &["sleep", "10000"], &multi)]);
    let nowhere = |name: &str| {
        let mut pod = named(name);
        pod["spec"]["nodeName"] = Value::Null;
        pod["spec"]["schedulerName"] = "nobody".into();
        pod
    };
    let mut lost = named("lost");
    lost["spec"]["nodeName"] = "podgate-e2e-no-such-node".into();
    vec![multi, nowhere("unscheduled"), nowhere("with.dots"), lost]
}

pub(crate) fn all(of: &Subjects<'_>) -> Vec<Request> {
    [sessions(of), logs(of), objects(of), paths(of), impersonation(of)].into_iter().flatten().collect()
}

fn sessions(of: &Subjects<'_>) -> Vec<Request> {
    let pod = |name: &str, rest: &str| format!("/api/v1/namespaces/{}/pods/{name}/{rest}", of.namespace);
    let exec = |name: &str, query: &str| pod(name, &format!("exec?command=true&stdout=1{query}"));
    let web = |query: &str| exec(of.web, query);
    let elsewhere = "/api/v1/namespaces/podgate-e2e-nope/pods/web/exec?command=true&stdout=1".to_owned();
    vec![
        Request::get("exec in SPDY", web("")).spdy(),
        Request::get("exec in WebSocket v4", web("")).websocket("v4.channel.k8s.io"),
        Request::get("exec in WebSocket v1", web("")).websocket("channel.k8s.io"),
        Request::get("exec in WebSocket base64", web("")).websocket("base64.channel.k8s.io"),
        Request::get("exec in an unknown WebSocket protocol", web("")).websocket("v9.channel.k8s.io"),
        Request::get("exec in an unknown SPDY protocol", web("")).spdy_of("v9.channel.k8s.io"),
        Request::get("exec in SPDY without a protocol", web("")).upgrade("POST", "SPDY/3.1"),
        Request::get("exec that upgrades to h2c", web("")).upgrade("POST", "h2c"),
        Request::get("exec by GET without upgrade", web("")),
        Request::get("exec by POST without upgrade", web("")).method("POST"),
        Request::get("exec by PUT", web("")).method("PUT"),
        Request::get("exec by DELETE", web("")).method("DELETE"),
        Request::get("exec by PATCH", web("")).method("PATCH"),
        Request::get("exec by HEAD", web("")).method("HEAD"),
        Request::get("exec by OPTIONS", web("")).method("OPTIONS"),
        Request::get("exec of a missing pod", exec("nope", "")).spdy(),
        Request::get("exec of a missing pod without upgrade", exec("nope", "")),
        Request::get("exec in a missing namespace", elsewhere).spdy(),
        Request::get("exec in a wrong container", exec("multi", "&container=c")).spdy(),
        Request::get("exec in no container of several", exec("multi", "")).spdy(),
        Request::get("exec in an init container that is over", exec("multi", "&container=setup")).spdy(),
        Request::get("exec in a container that is named", exec("multi", "&container=b")).spdy(),
        Request::get("exec in a pod without a node", exec("unscheduled", "")).spdy(),
        Request::get("exec in a pod with dots in its name", exec("with.dots", "")).spdy(),
        Request::get("exec in a pod on a missing node", exec("lost", "")).spdy(),
        Request::get("exec without streams", pod(of.web, "exec?command=true")).spdy(),
        Request::get("exec without a command", pod(of.web, "exec?stdout=1")).spdy(),
        Request::get("exec with all that is false", web("&stdin=0&tty=false&stderr=")).spdy(),
        Request::get("exec with a value that is no boolean", web("&stdin=maybe")).spdy(),
        Request::get("exec with an unknown parameter", web("&nope=1")).spdy(),
        Request::get("exec as a dry run", web("&dryRun=All")).spdy(),
        Request::get("exec by POST that is forbidden", web("")).spdy().by(Mallory),
        Request::get("exec by GET that is forbidden", web("")).websocket("v4.channel.k8s.io").by(Mallory),
        Request::get("exec of a missing pod that is forbidden", exec("nope", "")).spdy().by(Mallory),
        Request::get("exec with an unknown token", web("")).spdy().by(Unknown),
        Request::get("exec without a credential", web("")).spdy().by(Nobody),
        Request::get("attach", pod(of.web, "attach?stdout=1")).spdy(),
        Request::get("attach to a wrong container", pod("multi", "attach?stdout=1&container=c")).spdy(),
        Request::get("attach to a missing pod", pod("nope", "attach?stdout=1")).spdy(),
        Request::get("attach that is forbidden", pod(of.web, "attach?stdout=1")).spdy().by(Mallory),
        Request::get("attach by GET without upgrade", pod(of.web, "attach?stdout=1")),
        Request::get("attach by PUT", pod(of.web, "attach?stdout=1")).method("PUT"),
        Request::get("port-forward", pod(of.web, "portforward")).spdy_of("portforward.k8s.io"),
        Request::get("port-forward over WebSocket", pod(of.web, "portforward?ports=1"))
            .websocket("v4.channel.k8s.io"),
        Request::get("port-forward over WebSocket without ports", pod(of.web, "portforward"))
            .websocket("v4.channel.k8s.io"),
        Request::get("port-forward to a port that is no number", pod(of.web, "portforward?ports=abc"))
            .spdy_of("portforward.k8s.io"),
        Request::get("port-forward to a port that is too high", pod(of.web, "portforward?ports=70000"))
            .spdy_of("portforward.k8s.io"),
        Request::get("port-forward to port 0", pod(of.web, "portforward?ports=0"))
            .spdy_of("portforward.k8s.io"),
        Request::get("port-forward in an unknown protocol", pod(of.web, "portforward")).spdy_of("nope"),
        Request::get("port-forward to a pod without a node", pod("unscheduled", "portforward"))
            .spdy_of("portforward.k8s.io"),
        Request::get("port-forward that is forbidden", pod(of.web, "portforward"))
            .spdy_of("portforward.k8s.io")
            .by(Mallory),
        Request::get("port-forward by GET without upgrade", pod(of.web, "portforward")),
        Request::get("exec of a missing pod in YAML", exec("nope", ""))
            .spdy()
            .header("Accept", "application/yaml"),
        Request::get("exec with two protocols to upgrade to", web("")).spdy().header("Upgrade", "websocket"),
        Request::get("exec with a body", web("")).spdy().body("POST", "{}"),
        Request::get("exec behind two slashes", format!("/{}", web(""))).spdy(),
        Request::get("exec behind dots", format!("/x/..{}", web(""))).spdy(),
        Request::get("exec escaped twice", pod(of.web, "%2565xec?command=true&stdout=1")).spdy(),
        Request::get("exec with an empty name", pod("", "exec?command=true&stdout=1")).spdy(),
        Request::get("exec with a slash at the end", pod(of.web, "exec/?command=true&stdout=1")).spdy(),
        Request::get("exec with an escaped name", pod("%6eope", "exec?command=true&stdout=1")).spdy(),
        Request::get("exec with an escaped slash", pod("nope%2Fexec", "exec?command=true&stdout=1")).spdy(),
        Request::get("exec with an escaped word", pod(of.web, "%65xec?command=true&stdout=1")),
        Request::get("exec with a capital", pod(of.web, "Exec?command=true&stdout=1")).spdy(),
        Request::get("exec and one part more", pod(of.web, "exec/more?command=true")).spdy(),
    ]
}

fn logs(of: &Subjects<'_>) -> Vec<Request> {
    let log = |name: &str, query: &str| format!("/api/v1/namespaces/{}/pods/{name}/log{query}", of.namespace);
    vec![
        Request::get("log", log(of.web, "")),
        Request::get("log of a wrong container", log("multi", "?container=c")),
        Request::get("log of no container of several", log("multi", "")),
        Request::get("log of an init container", log("multi", "?container=setup")),
        Request::get("log of a run before", log(of.web, "?previous=true")),
        Request::get("log of a missing pod", log("nope", "")),
        Request::get("log of a pod without a node", log("unscheduled", "")),
        Request::get("log that is forbidden", log(of.web, "")).by(Mallory),
        Request::get("log by POST", log(of.web, "")).method("POST"),
        Request::get("log with tailLines=x", log(of.web, "?tailLines=x")),
        Request::get("log with tailLines=-1", log(of.web, "?tailLines=-1")),
        Request::get("log with limitBytes=0", log(of.web, "?limitBytes=0")),
        Request::get("log with sinceTime=x", log(of.web, "?sinceTime=x")),
        Request::get("log since twice", log(of.web, "?sinceTime=2020-01-01T00:00:00Z&sinceSeconds=1")),
        Request::get("log with timestamps=maybe", log(of.web, "?timestamps=maybe")),
    ]
}

fn objects(of: &Subjects<'_>) -> Vec<Request> {
    let core = |rest: &str| format!("/api/v1/namespaces/{}/{rest}", of.namespace);
    let compared = |rest: &str| core(&format!("pods?labelSelector=compared%3Dyes{rest}"));
    let quiet = "&fieldSelector=metadata.name%3Dunscheduled";
    let meta = |name: &str| json!({ "name": name });
    let settings = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(name) });
    let mut stale = settings("compared");
    stale["metadata"]["resourceVersion"] = "1".into();
    let invalid = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": meta("Not-A-Name"), "spec": {} });
    let access = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes":
            { "namespace": of.namespace, "verb": "create", "resource": "pods", "subresource": "exec" } } });
    let large = format!("{{\"pad\":\"{}\"}}", "x".repeat(3_200_000));
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let partial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let partials = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    vec![
        Request::get("get", core("pods/unscheduled")),
        Request::get("get of a missing pod", core("pods/nope")),
        Request::get("get that is forbidden", core("pods/unscheduled")).by(Mallory),
        Request::get("get with an unknown token", core("pods/unscheduled")).by(Unknown),
        Request::get("get without a credential", core("pods/unscheduled")).by(Nobody),
        Request::get("get with a password", core("pods/unscheduled"))
            .by(Nobody)
            .header("Authorization", "Basic YWxpY2U6c2VjcmV0"),
        Request::get("get as a table", core("pods/unscheduled")).header("Accept", table),
        Request::get("get of the metadata", core("pods/unscheduled")).header("Accept", partial),
        Request::get("get in YAML", core("pods/unscheduled")).header("Accept", "application/yaml"),
        Request::get("get in protobuf", core("pods/unscheduled"))
            .header("Accept", "application/vnd.kubernetes.protobuf"),
        Request::get("get in HTML", core("pods/unscheduled")).header("Accept", "text/html"),
        Request::get("get of a missing pod in YAML", core("pods/nope")).header("Accept", "application/yaml"),
        Request::get("get with curl", core("pods/unscheduled")).header("User-Agent", "curl/8.0"),
        Request::get("get of a missing pod with curl", core("pods/nope")).header("User-Agent", "curl/8.0"),
        Request::get("get that is pretty", core("pods/unscheduled?pretty=true")),
        Request::get("get of a missing pod that is pretty", core("pods/nope?pretty=1")),
        Request::get("get that is forbidden and pretty", core("pods/nope?pretty=1")).by(Mallory),
        Request::get("get by HEAD", core("pods/unscheduled")).method("HEAD"),
        Request::get("get by OPTIONS", core("pods/unscheduled")).method("OPTIONS"),
        Request::get("get by TRACE", core("pods/unscheduled")).method("TRACE"),
        Request::get("get over a connection that closes", core("pods/unscheduled"))
            .header("Connection", "close"),
        Request::get("get as another front proxy's user", core("pods/unscheduled"))
            .by(Mallory)
            .header("X-Remote-User", "admin")
            .header("X-Remote-Group", "system:masters"),
        Request::get("list", compared("")),
        Request::get("list as a table", compared("")).header("Accept", table),
        Request::get("list of the metadata", compared("")).header("Accept", partials),
        Request::get("list of one", compared("&limit=1")),
        Request::get("list that continues nowhere", compared("&continue=nonsense")),
        Request::get("list with a broken selector", core("pods?labelSelector=%3D%3D%3D")),
        Request::get("list by a field that is none", core("pods?fieldSelector=nope%3D1")),
        Request::get("list of a version that is none", core("pods?resourceVersion=nope")),
        Request::get("list with a limit that is none", core("pods?limit=nope")),
        Request::get("list that is forbidden", core("secrets")),
        Request::get("list of the whole cluster that is forbidden", "/api/v1/pods".to_owned()),
        Request::get("watch", compared(&format!("{quiet}&watch=1&timeoutSeconds=1"))),
        Request::get("watch as a table", compared(&format!("{quiet}&watch=1&timeoutSeconds=1")))
            .header("Accept", table),
        Request::get(
            "watch from a version that is gone",
            compared("&watch=1&timeoutSeconds=1&resourceVersion=1"),
        ),
        Request::get("watch that is forbidden", core("pods?watch=1&timeoutSeconds=1")).by(Mallory),
        Request::get("create that is there already", core("configmaps")).body("POST", settings("compared")),
        Request::get("create as a dry run", core("configmaps?dryRun=All")).body("POST", settings("other")),
        Request::get("create that is invalid", core("pods")).body("POST", invalid),
        Request::get("create of another kind", core("pods")).body("POST", settings("other")),
        Request::get("create of what is no JSON", core("configmaps")).body("POST", "{nope"),
        Request::get("create of a type that nobody reads", core("configmaps"))
            .header("Content-Type", "text/plain")
            .body("POST", "hello"),
        Request::get("create that is too large", core("configmaps")).body("POST", large),
        Request::get("create that is forbidden", core("secrets")).body("POST", settings("other")),
        Request::get("create without a body", core("configmaps")).method("POST"),
        Request::get("update of an older version", core("configmaps/compared")).body("PUT", stale),
        Request::get("update of what is missing", core("configmaps/nope")).body("PUT", settings("nope")),
        Request::get("patch of an unknown kind", core("configmaps/compared")).body("PATCH", "{}"),
        Request::get("patch that changes nothing", core("configmaps/compared"))
            .header("Content-Type", "application/merge-patch+json")
            .body("PATCH", "{}"),
        Request::get("delete of nothing", core("configmaps/nope")).method("DELETE"),
        Request::get("delete that is forbidden", core("configmaps/compared")).method("DELETE").by(Mallory),
        Request::get("delete of all that is forbidden", core("configmaps")).method("DELETE"),
        Request::get(
            "review of oneself",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(),
        )
        .body("POST", access),
        Request::get("pod proxy to a port where nobody listens", core(&format!("pods/{}:1/proxy/", of.web))),
        Request::get("pod proxy of a missing pod", core("pods/nope/proxy/")),
        Request::get("pod proxy that is forbidden", core(&format!("pods/{}/proxy/", of.web))).by(Mallory),
        Request::get("service proxy that is forbidden", core("services/nope/proxy/")),
        Request::get("node proxy that is forbidden", format!("/api/v1/nodes/{}/proxy/healthz", of.node)),
    ]
}

fn paths(of: &Subjects<'_>) -> Vec<Request> {
    let at = |name: &'static str, path: &str| Request::get(name, path.to_owned());
    vec![
        at("/version", "/version"),
        at("/version by HEAD", "/version").method("HEAD"),
        at("/version by POST", "/version").method("POST"),
        at("/version without a credential", "/version").by(Nobody),
        at("/version with an unknown token", "/version").by(Unknown),
        at("/healthz", "/healthz"),
        at("/readyz", "/readyz"),
        at("/livez/ping", "/livez/ping"),
        at("/openapi/v2", "/openapi/v2"),
        at("/api", "/api"),
        at("/apis", "/apis"),
        at("/api/v1", "/api/v1"),
        at("/apis/apps", "/apis/apps"),
        at("/apis/apps/v1", "/apis/apps/v1"),
        at("/api with a slash at the end", "/api/"),
        at("/ that is forbidden", "/"),
        at("/metrics that is forbidden", "/metrics"),
        at("an unknown path", "/nope").by(Mallory),
        at("an unknown group", "/apis/nope.example.com/v1"),
        at("an unknown version", "/api/v9"),
        at("an unknown resource", "/api/v1/nope"),
        at("two slashes", "//api/v1"),
        at("dots", "/api/v1/../v1"),
        at("an escaped path", "/%61pi/v1"),
        at("a broken escape", "/api/v1/%zz"),
        Request::get("a namespace", format!("/api/v1/namespaces/{}", of.namespace)),
        Request::get("nodes that are forbidden", "/api/v1/nodes".to_owned()),
    ]
}

fn impersonation(of: &Subjects<'_>) -> Vec<Request> {
    let pods = format!("/api/v1/namespaces/{}/pods/unscheduled", of.namespace);
    let account = |name: &str| format!("system:serviceaccount:{}:{name}", of.namespace);
    let with = |name, headers: &[(&'static str, &str)]| {
        headers
            .iter()
            .fold(Request::get(name, pods.clone()), |request, (key, value)| request.header(key, value))
    };
    vec![
        with("impersonation of who may nothing", &[("Impersonate-User", &account("mallory"))]),
        with("impersonation of who may", &[("Impersonate-User", &account("alice"))]),
        with("impersonation that is forbidden", &[("Impersonate-User", "admin")]),
        with("impersonation by who may nothing", &[("Impersonate-User", &account("alice"))]).by(Mallory),
        with(
            "impersonation of a group that is forbidden",
            &[("Impersonate-User", &account("alice")), ("Impersonate-Group", "system:masters")],
        ),
        with("impersonation of a group without a user", &[("Impersonate-Group", "system:masters")]),
        with(
            "impersonation of an attribute that is forbidden",
            &[("Impersonate-User", &account("alice")), ("Impersonate-Extra-Scopes", "all")],
        ),
        with(
            "impersonation of an attribute",
            &[("Impersonate-User", &account("alice")), ("Impersonate-Extra-Reasons", "all")],
        ),
        with(
            "impersonation of an account without a name",
            &[("Impersonate-User", "system:serviceaccount:a")],
        ),
        with("impersonation with an unknown token", &[("Impersonate-User", &account("alice"))]).by(Unknown),
    ]
}

/// A 400 of podgate's own in the place of another one in plain text.
const STATUS_FOR_TEXT: &[&str] =
    &["header cache-control", "header content-type", "header x-content-type-options", "text"];

/// A refusal in the place of a session.
const REFUSAL_FOR_SESSION: &[&str] = &[
    "code",
    "header cache-control",
    "header connection",
    "header content-type",
    "header upgrade",
    "header x-stream-protocol-version",
    "body ",
];

/// A 404 in the place of a 403, which is about no object when it is about a path.
const NOT_FOUND_FOR_FORBIDDEN: &[&str] = &[
    "code",
    "header x-content-type-options",
    "body /0/code",
    "body /0/details/kind",
    "body /0/details/name",
    "body /0/message",
    "body /0/reason",
];
const NOT_FOUND_FOR_FORBIDDEN_PATH: &[&str] =
    &["code", "header x-content-type-options", "body /0/code", "body /0/message", "body /0/reason"];

/// A Status in the place of a list of paths.
const STATUS_FOR_PATHS: &[&str] = &[
    "body /0/apiVersion",
    "body /0/code",
    "body /0/details",
    "body /0/kind",
    "body /0/message",
    "body /0/metadata",
    "body /0/paths",
    "body /0/reason",
    "body /0/status",
];

const ONE_WAY: &str = "A path that only some readers take for `pods/NAME/exec`, `attach` or `portforward`";

/// Differences that are meant, and the words of `docs/differences.md` that tell them.
pub(crate) fn known(mode: &str) -> Vec<Known> {
    let differs = |request, fields, words| Known { request, fields, words };
    let mut known = vec![
        differs(
            "exec that upgrades to h2c",
            STATUS_FOR_TEXT,
            "`Upgrade` of a session to something else than `SPDY/3.1` and `websocket`",
        ),
        differs(
            "exec of a missing pod in YAML",
            &["header content-type", "text"],
            "`Accept: application/yaml` or protobuf for a Status",
        ),
        differs(
            "exec with two protocols to upgrade to",
            REFUSAL_FOR_SESSION,
            "An upgrade request without exactly one `Host` and one `Upgrade` line",
        ),
        differs("exec with a body", REFUSAL_FOR_SESSION, "Upgrade request with a body"),
        differs("exec with a capital", NOT_FOUND_FOR_FORBIDDEN, ONE_WAY),
        differs("exec escaped twice", NOT_FOUND_FOR_FORBIDDEN, ONE_WAY),
        differs("exec behind dots", NOT_FOUND_FOR_FORBIDDEN_PATH, ONE_WAY),
        differs("exec behind two slashes", STATUS_FOR_PATHS, ONE_WAY),
        differs("/apis", &["text"], "`/apis`, `/apis/podgate.dev` and below, `/openapi/v3`"),
        differs(
            "a broken escape",
            &["header cache-control", "header connection", "header content-type", "text"],
            "A path with a broken `%` escape",
        ),
        differs(
            "impersonation of a group without a user",
            &["code", "header content-type", "header x-content-type-options", "text"],
            "Impersonated groups, uid or extra without a user",
        ),
    ];
    if mode == "kubelet" {
        known.push(differs(
            "exec in a pod on a missing node",
            &["body /0/details/kind", "body /0/message"],
            "A pod on a node that is not there",
        ));
    }
    let told = include_str!("../../docs/differences.md");
    for Known { words, .. } in &known {
        assert!(told.contains(words), "docs/differences.md does not say: {words}");
    }
    known
}
