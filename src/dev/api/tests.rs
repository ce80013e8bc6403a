use std::time::Duration;

use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::*;
use crate::dev::manifests;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                     application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

fn store() -> Arc<Store> {
    Store::new(manifests::builtin().unwrap().objects)
}

fn alice() -> User {
    User { name: "alice".into(), groups: vec!["system:authenticated".into()], ..User::default() }
}

async fn call(
    store: &Arc<Store>,
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Response<Body>, Refusal> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(full(body.to_owned().into())).unwrap();
    let ask = Ask::parse(request.method(), request.uri(), request.headers()).unwrap();
    serve(store, None, &alice(), &ask, request).await
}

async fn get(uri: &str, accept: &str) -> Result<(String, String), Refusal> {
    let response = call(&store(), Method::GET, uri, &[("accept", accept)], "").await?;
    let media = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok((media, String::from_utf8(body.to_vec()).unwrap()))
}

async fn json_of(uri: &str, accept: &str) -> Value {
    let (_, body) = get(uri, accept).await.unwrap();
    serde_json::from_str(&body).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn item_115_healthz_is_ok_without_newline_and_version_is_indented_without_newline() {
    for probe in ["healthz", "livez", "readyz"] {
        let (media, body) = get(&format!("/{probe}"), "").await.unwrap();
        assert_eq!((media.as_str(), body.as_str()), ("text/plain; charset=utf-8", "ok"));
        let (_, body) = get(&format!("/{probe}?verbose&exclude=ping&exclude=etcd&exclude=a&exclude=a"), "")
            .await
            .unwrap();
        assert_eq!(
            body,
            format!(
                "[+]ping excluded: ok\n[+]manifests ok\nwarn: some health checks cannot be excluded: no matches \
                 for \"a\",\"etcd\"\n{probe} check passed\n"
            )
        );
    }
    assert_eq!(get("/healthz/ping", "").await.unwrap().1, "ok");
    assert_eq!(get("/healthz/etcd", "").await.unwrap_err(), Refusal::NoSuchPath);
    let (media, body) = get("/version", "").await.unwrap();
    assert_eq!(media, "application/json");
    assert!(body.starts_with("{\n  \"major\": \"1\",\n  \"minor\": \"36\",\n") && body.ends_with("\n}"));
    let keys: Vec<&str> =
        body.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next()).collect();
    assert_eq!(
        keys,
        [
            "major",
            "minor",
            "emulationMajor",
            "emulationMinor",
            "minCompatibilityMajor",
            "minCompatibilityMinor",
            "gitVersion",
            "gitCommit",
            "gitTreeState",
            "buildDate",
            "goVersion",
            "compiler",
            "platform"
        ]
    );
}

#[tokio::test]
async fn item_116_discovery_comes_in_small_documents_and_in_one() {
    assert_eq!(
        get("/api", "application/json").await.unwrap().1,
        "{\"apiVersion\":\"v1\",\"kind\":\"APIVersions\",\"serverAddressByClientCIDRs\":\
         [{\"clientCIDR\":\"0.0.0.0/0\",\"serverAddress\":\"\"}],\"versions\":[\"v1\"]}\n"
    );
    let groups = json_of("/apis", "").await;
    let groups = groups["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 3);
    for group in groups {
        let path = group["preferredVersion"]["groupVersion"].as_str().unwrap();
        let list = json_of(&format!("/apis/{path}"), "").await;
        assert_eq!(list["groupVersion"], path);
        assert_eq!(list["kind"], "APIResourceList");
        let name = group["name"].as_str().unwrap();
        assert_eq!(json_of(&format!("/apis/{name}"), "").await["kind"], "APIGroup");
    }
    let core = json_of("/api/v1", "").await;
    let of = |name: &str| {
        let all = core["resources"].as_array().unwrap();
        all.iter().find(|resource| resource["name"] == name).unwrap().clone()
    };
    assert_eq!(
        of("pods").to_string(),
        "{\"categories\":[\"all\"],\"kind\":\"Pod\",\"name\":\"pods\",\"namespaced\":true,\
         \"shortNames\":[\"po\"],\"singularName\":\"pod\",\"verbs\":[\"get\",\"list\",\"watch\"]}"
    );
    assert_eq!(of("pods/exec")["kind"], "PodExecOptions");

    let (media, body) = get("/api", AGGREGATED).await.unwrap();
    assert_eq!(media, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let all: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&all["kind"], &all["apiVersion"]),
        (&"APIGroupDiscoveryList".into(), &"apidiscovery.k8s.io/v2".into())
    );
    let pods = &all["items"][0]["versions"][0]["resources"][2];
    assert_eq!((&pods["resource"], &pods["scope"]), (&"pods".into(), &"Namespaced".into()));
    assert_eq!(pods["responseKind"]["kind"], "Pod");
    assert_eq!(pods["subresources"][1]["subresource"], "exec");
    assert_eq!(all["items"][0]["versions"][0]["freshness"], "Current");
    let beta = AGGREGATED.split_once(',').unwrap().1;
    let (media, body) = get("/apis", beta).await.unwrap();
    assert_eq!(media, "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList");
    let all: Value = serde_json::from_str(&body).unwrap();
    let groups: Vec<_> = names(&all);
    assert_eq!(groups, ["authentication.k8s.io", "authorization.k8s.io", "rbac.authorization.k8s.io"]);
}

#[tokio::test]
async fn objects_are_got_and_listed_and_what_is_not_there_is_said_in_the_api_servers_words() {
    let pod = json_of("/api/v1/namespaces/default/pods/web", "").await;
    assert_eq!((&pod["kind"], &pod["spec"]["nodeName"]), (&"Pod".into(), &"node-a".into()));
    let list = json_of("/api/v1/pods", "").await;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&"PodList".into(), &"v1".into()));
    let all =
        ["multi", "on-down-node", "on-missing-node", "unscheduled", "web", "web-spdy", "web-v5", "cart"];
    assert_eq!(names(&list), all);
    for (uri, expected) in [
        ("/api/v1/namespaces/shop/pods", vec!["cart"]),
        ("/api/v1/namespaces/gone/pods", vec![]),
        ("/api/v1/namespaces", vec!["default", "kube-system", "shop"]),
        ("/api/v1/pods?labelSelector=app%20in%20(web,cart)", vec!["web", "cart"]),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-b", vec!["multi", "cart"]),
        ("/api/v1/pods?fieldSelector=spec.nodeName%21%3Dnode-b,status.phase%3DPending", vec!["unscheduled"]),
        ("/api/v1/pods?fieldSelector=metadata.name%3Dweb", vec!["web"]),
        ("/apis/rbac.authorization.k8s.io/v1/roles", vec!["pod-user"]),
    ] {
        assert_eq!(names(&json_of(uri, "").await), expected, "{uri}");
    }
    for (uri, message) in [
        ("/api/v1/namespaces/default/pods/gone", "pods \"gone\" not found"),
        ("/api/v1/namespaces/gone", "namespaces \"gone\" not found"),
        ("/api/v1/nodes/gone", "nodes \"gone\" not found"),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/gone",
            "clusterroles.rbac.authorization.k8s.io \"gone\" not found",
        ),
        ("/api/v1/pods?fieldSelector=spec.x%3Dy", "field label not supported: spec.x"),
        ("/api/v1/namespaces/default/pods/..", "Name parameter invalid: \"..\": may not be '..'"),
        ("/api/v1/namespaces/default/pods/a%25b", "Name parameter invalid: \"a%b\": may not contain '%'"),
    ] {
        assert_eq!(get(uri, "").await.unwrap_err().message(), message, "{uri}");
    }
    for uri in [
        "/api/v1/services",
        "/api/v2/pods",
        "/api/v1/pods/web",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/pods/web/status",
        "/api/v1/namespaces/default/pods/web/x/y",
        "/apis/apps",
        "/apis/apps/v1",
        "/apis/apps/v1/deployments",
        "/openapi/v2",
        "/openapi/v3/api/v1",
        "/metrics",
        "/swagger.json",
    ] {
        assert_eq!(get(uri, "").await.unwrap_err(), Refusal::NoSuchPath, "{uri}");
    }
    for (method, uri) in [
        (Method::POST, "/api/v1/namespaces/default/pods"),
        (Method::DELETE, "/api/v1/namespaces/default/pods/web"),
        (Method::DELETE, "/api/v1/namespaces/default/pods"),
        (Method::PATCH, "/api/v1/nodes/node-a"),
        (Method::OPTIONS, "/api/v1/nodes"),
        (Method::POST, "/version"),
        (Method::GET, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
    ] {
        let refusal = call(&store(), method, uri, &[], "").await.unwrap_err();
        assert_eq!(refusal, Refusal::MethodNotAllowed, "{uri}");
    }
}

#[tokio::test]
async fn tables_have_the_cells_kubectl_shows() {
    let cells = |table: &Value| -> Vec<Vec<String>> {
        let rows = table["rows"].as_array().unwrap();
        rows.iter()
            .map(|row| {
                let cells = row["cells"].as_array().unwrap();
                cells.iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
            })
            .collect()
    };
    let table = json_of("/api/v1/pods", TABLE).await;
    assert_eq!((&table["kind"], &table["apiVersion"]), (&"Table".into(), &"meta.k8s.io/v1".into()));
    let columns: Vec<(String, u64)> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| (column["name"].as_str().unwrap().to_owned(), column["priority"].as_u64().unwrap()))
        .collect();
    let expected = [
        ("Name", 0),
        ("Ready", 0),
        ("Status", 0),
        ("Restarts", 0),
        ("Age", 0),
        ("IP", 1),
        ("Node", 1),
        ("Nominated Node", 1),
        ("Readiness Gates", 1),
    ];
    assert_eq!(columns, expected.map(|(name, priority)| (name.to_owned(), priority)));
    let without_age: Vec<Vec<String>> = cells(&table)
        .into_iter()
        .map(|mut row| {
            row.remove(4);
            row
        })
        .collect();
    assert_eq!(
        without_age,
        [
            ["multi", "2/2", "Running", "0", "127.0.0.1", "node-b", "<none>", "<none>"],
            ["on-down-node", "1/1", "Running", "0", "127.0.0.1", "node-down", "<none>", "<none>"],
            ["on-missing-node", "1/1", "Running", "0", "127.0.0.1", "node-gone", "<none>", "<none>"],
            ["unscheduled", "0/1", "Pending", "0", "<none>", "<none>", "<none>", "<none>"],
            ["web", "1/1", "Running", "0", "127.0.0.1", "node-a", "<none>", "<none>"],
            ["web-spdy", "1/1", "Running", "0", "127.0.0.1", "node-spdy", "<none>", "<none>"],
            ["web-v5", "1/1", "Running", "0", "127.0.0.1", "node-v5", "<none>", "<none>"],
            ["cart", "1/1", "Running", "0", "127.0.0.1", "node-b", "<none>", "<none>"],
        ]
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "multi");

    let nodes = json_of("/api/v1/nodes?includeObject=Object", TABLE).await;
    let states: Vec<_> = cells(&nodes).into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(
        states,
        [
            ("node-a", "Ready"),
            ("node-b", "Ready"),
            ("node-down", "NotReady"),
            ("node-spdy", "Ready"),
            ("node-v5", "Ready")
        ]
        .map(|(name, state)| (name.to_owned(), state.to_owned()))
    );
    assert_eq!(nodes["rows"][0]["object"]["kind"], "Node");
    let one = json_of("/api/v1/namespaces/shop?includeObject=None", TABLE).await;
    assert_eq!(cells(&one)[0][..2], ["shop", "Active"]);
    assert!(one["rows"][0]["object"].is_null());
    let beta = TABLE.split_once(',').unwrap().1;
    let bindings = json_of("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", beta).await;
    assert_eq!(bindings["apiVersion"], "meta.k8s.io/v1beta1");
    let row = &cells(&bindings)[0];
    assert_eq!((&row[1], &row[3], &row[4]), (&"Role/pod-user".into(), &"alice".into(), &"dev".into()));
    let plain =
        json_of("/api/v1/pods", "application/json, application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!(plain["kind"], "PodList", "the client's order decides");
    assert_eq!(
        get("/api/v1/pods?includeObject=All", TABLE).await.unwrap_err().message(),
        "unrecognized includeObject value: \"All\""
    );
}

/// The next line of a watch.
async fn line(body: &mut Body) -> Option<Value> {
    let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("a line in time")?;
    let data = frame.unwrap().into_data().unwrap();
    assert_eq!(data.iter().filter(|&&byte| byte == b'\n').count(), 1);
    Some(serde_json::from_slice(&data).unwrap())
}

async fn watch(store: &Arc<Store>, uri: &str, accept: &str) -> Body {
    let response = call(store, Method::GET, uri, &[("accept", accept)], "").await.unwrap();
    response.into_body()
}

fn touch(store: &Arc<Store>, node: &str) {
    let addr = "127.0.0.1:4711".parse().unwrap();
    store.set_node_endpoint(node, addr).unwrap();
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_then_what_changes() {
    let store = store();
    let mut body = watch(&store, "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Dnode-b", "").await;
    let first = line(&mut body).await.unwrap();
    assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&"ADDED".into(), &"node-b".into()));
    touch(&store, "node-a");
    touch(&store, "node-b");
    let second = line(&mut body).await.unwrap();
    assert_eq!(
        (&second["type"], &second["object"]["metadata"]["name"]),
        (&"MODIFIED".into(), &"node-b".into())
    );
    assert_eq!(second["object"]["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 4711);

    let version = store.snapshot().version();
    let uri = format!("/api/v1/nodes?watch=true&resourceVersion={}", version - 1);
    let mut body = watch(&store, &uri, TABLE).await;
    let replayed = line(&mut body).await.unwrap();
    let table = &replayed["object"];
    assert_eq!((&replayed["type"], &table["kind"]), (&"MODIFIED".into(), &"Table".into()));
    assert!(table["columnDefinitions"].is_array());
    touch(&store, "node-a");
    let next = line(&mut body).await.unwrap();
    assert!(next["object"]["columnDefinitions"].is_null(), "columns are sent once");
    assert_eq!(next["object"]["rows"][0]["cells"][0], "node-a");
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark_and_a_watch_from_nowhere_may_begin_without_them() {
    let store = store();
    let uri = "/api/v1/nodes?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut body = watch(&store, uri, "").await;
    for _ in store.nodes() {
        assert_eq!(line(&mut body).await.unwrap()["type"], "ADDED");
    }
    let end = line(&mut body).await.unwrap();
    assert_eq!(
        end,
        serde_json::json!({"type": "BOOKMARK", "object": {"kind": "Node", "apiVersion": "v1", "metadata": {
            "resourceVersion": store.snapshot().version().to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"}}}})
    );
    let mut body = watch(&store, "/api/v1/nodes?watch=1&sendInitialEvents=false", "").await;
    touch(&store, "node-a");
    assert_eq!(line(&mut body).await.unwrap()["type"], "MODIFIED");
}

#[tokio::test]
async fn a_watch_from_a_version_that_is_gone_gets_410_and_ends() {
    let store = store();
    let mut body = watch(&store, "/api/v1/pods?watch=1&resourceVersion=1", "").await;
    let oldest = store.snapshot().version();
    assert_eq!(
        line(&mut body).await.unwrap(),
        serde_json::json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": format!("too old resource version: 1 ({oldest})"),
            "reason": "Expired", "code": 410}})
    );
    assert_eq!(line(&mut body).await, None);
    let uri = format!("/api/v1/pods?watch=1&resourceVersion={}", oldest + 1);
    let mut body = watch(&store, &uri, "").await;
    let ahead = line(&mut body).await.unwrap();
    assert_eq!((&ahead["type"], &ahead["object"]["code"]), (&"ERROR".into(), &410.into()));
    assert_eq!(ahead["object"]["reason"], "Expired");
    assert_eq!(line(&mut body).await, None);
    let uri = "/api/v1/pods?watch=1&resourceVersion=x";
    let refusal = call(&store, Method::GET, uri, &[], "").await.unwrap_err();
    assert_eq!(
        refusal.message(),
        "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_at_its_time_and_bookmarks_come_in_between() {
    let store = store();
    let uri =
        "/api/v1/pods?watch=1&resourceVersion=0&timeoutSeconds=100&allowWatchBookmarks=1&labelSelector=x";
    let mut body = watch(&store, uri, "").await;
    let begin = tokio::time::Instant::now();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let bookmark: Value = serde_json::from_slice(&frame).unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&"BOOKMARK".into(), &"Pod".into()));
    assert!(body.frame().await.is_none());
    assert_eq!(begin.elapsed().as_secs(), 100);
}

async fn post(uri: &str, media: &str, body: &str) -> Result<Value, Refusal> {
    let response = call(&store(), Method::POST, uri, &[("content-type", media)], body).await?;
    assert_eq!(response.status(), StatusCode::CREATED);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok(serde_json::from_slice(&body).unwrap())
}

const SSAR: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

#[tokio::test]
async fn reviews_of_oneself_say_what_the_authorizer_says() {
    let json = "application/json";
    let ask = |namespace: &str| {
        format!(
            "{{\"kind\":\"SelfSubjectAccessReview\",\"apiVersion\":\"authorization.k8s.io/v1\",\"metadata\":\
             {{\"creationTimestamp\":null}},\"spec\":{{\"resourceAttributes\":{{\"namespace\":\"{namespace}\",\
             \"verb\":\"create\",\"resource\":\"pods\",\"subresource\":\"exec\"}}}},\"status\":{{\"allowed\":false}}}}"
        )
    };
    let yes = post(SSAR, json, &ask("default")).await.unwrap();
    assert_eq!(yes["kind"], "SelfSubjectAccessReview");
    assert_eq!(
        yes["status"],
        serde_json::json!({"allowed": true, "reason":
            "RBAC: allowed by RoleBinding \"pod-users/default\" of Role \"pod-user\" to User \"alice\""})
    );
    let no = post(SSAR, json, &ask("shop")).await.unwrap();
    assert_eq!(no["status"], serde_json::json!({"allowed": false}));
    let path = "{\"spec\":{\"nonResourceAttributes\":{\"path\":\"/version\",\"verb\":\"get\"}}}";
    assert_eq!(post(SSAR, json, path).await.unwrap()["status"]["allowed"], true);

    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = post(rules, json, "{\"spec\":{\"namespace\":\"default\"}}").await.unwrap();
    assert_eq!(rules["status"]["incomplete"], false);
    let resources = rules["status"]["resourceRules"].to_string();
    assert!(resources.contains("pods/exec") && resources.contains("selfsubjectaccessreviews"));
    assert!(rules["status"]["nonResourceRules"].to_string().contains("/healthz"));

    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let whoami = post(whoami, json, "{\"kind\":\"SelfSubjectReview\"}").await.unwrap();
    assert_eq!(
        whoami["status"]["userInfo"],
        serde_json::json!({"username": "alice", "groups": ["system:authenticated"]})
    );
}

#[tokio::test]
async fn review_bodies_are_bounded_json_of_the_right_kind() {
    let json = "application/json; charset=utf-8";
    let large = format!("{{\"spec\":{{}},\"x\":\"{}\"}}", "x".repeat(3 * 1024 * 1024));
    for (media, body, code, text) in [
        (json, large.as_str(), 413, "Request entity too large: limit is 3145728"),
        (
            "application/yaml",
            "spec: {}",
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/vnd.kubernetes.protobuf",
        ),
        (
            json,
            "{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}",
            400,
            "the object provided is unrecognized (must be of type SelfSubjectAccessReview): kind is \"Pod\"",
        ),
        ("application/vnd.kubernetes.protobuf", "k8s\0\x0b", 400, "malformed protobuf message"),
        (
            json,
            "{\"spec\":{}}",
            400,
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
             resourceAttributes must be specified",
        ),
    ] {
        let refusal = post(SSAR, media, body).await.unwrap_err();
        assert_eq!((refusal.code().as_u16(), refusal.message().as_str()), (code, text));
    }
    for body in ["", "[]", "{\"spec\":5}", "\u{0}"] {
        let refusal = post(SSAR, json, body).await.unwrap_err();
        assert!(refusal.message().starts_with("the object provided is unrecognized"), "{body}");
    }
    let body = String::from_utf8(protobuf::tests::access_review()).unwrap();
    let review = post(SSAR, "application/vnd.kubernetes.protobuf", &body).await.unwrap();
    assert_eq!(review["status"]["allowed"], true);
}
