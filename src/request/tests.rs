use super::*;

fn ask(method: Method, uri: &str) -> Ask {
    Ask::parse(&method, &uri.parse().unwrap(), &HeaderMap::new()).unwrap()
}

fn exec(query: &str) -> Result<Exec, Refusal> {
    ask(Method::POST, &format!("/api/v1/namespaces/default/pods/web/exec?{query}")).exec.unwrap()
}

fn resource(method: Method, uri: &str) -> (String, Resource) {
    let attributes = ask(method, uri).attributes;
    (attributes.verb, attributes.resource.unwrap())
}

#[test]
fn item_002_get_is_verb_get_and_post_is_create() {
    let uri = "/api/v1/namespaces/default/pods/web/exec";
    let (verb, resource_) = resource(Method::GET, uri);
    assert_eq!(verb, "get");
    assert_eq!((resource_.resource.as_str(), resource_.subresource.as_str()), ("pods", "exec"));
    assert_eq!((resource_.namespace.as_str(), resource_.name.as_str()), ("default", "web"));
    assert_eq!(resource(Method::POST, uri).0, "create");
    assert_eq!(resource(Method::PUT, uri).0, "update");
    assert_eq!(resource(Method::TRACE, uri).0, "");
}

#[test]
fn collections_are_listed_watched_and_deleted_as_collections() {
    assert_eq!(resource(Method::GET, "/api/v1/pods").0, "list");
    assert_eq!(resource(Method::GET, "/api/v1/pods?watch=1").0, "watch");
    assert_eq!(resource(Method::GET, "/api/v1/pods?watch=0").0, "list");
    assert_eq!(resource(Method::DELETE, "/api/v1/namespaces/a/pods").0, "deletecollection");
    let (verb, one) =
        resource(Method::GET, "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dweb&watch");
    assert_eq!((verb.as_str(), one.name.as_str()), ("watch", "web"));
}

/// Such a request was authorized as a list of that name, and then opened the pod.
#[test]
fn a_name_in_a_field_selector_is_no_pod_for_a_session() {
    for selector in ["fieldSelector=metadata.name%3Dweb", "fieldSelector=metadata.name%3D%3Dweb", ""] {
        let ask = ask(Method::GET, &format!("/api/v1/namespaces/default/pods//exec?command=id&{selector}"));
        assert_eq!(ask.attributes.verb, "list");
        let refusal = ask.exec.unwrap().unwrap_err();
        assert_eq!(refusal.message(), "name must be provided", "{selector}");
    }
}

#[test]
fn a_namespace_is_an_object_with_its_own_name_as_namespace() {
    let (_, namespace) = resource(Method::GET, "/api/v1/namespaces/shop");
    assert_eq!((namespace.resource.as_str(), namespace.name.as_str()), ("namespaces", "shop"));
    assert_eq!(namespace.namespace, "shop");
    let (_, status) = resource(Method::GET, "/api/v1/namespaces/shop/status");
    assert_eq!((status.resource.as_str(), status.subresource.as_str()), ("namespaces", "status"));
}

#[test]
fn groups_and_paths_without_a_resource() {
    let (verb, review) = resource(Method::POST, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
    assert_eq!((verb.as_str(), review.group.as_str()), ("create", "authorization.k8s.io"));
    for path in ["/", "/api", "/api/v1", "/apis/apps/v1", "/healthz", "/version"] {
        let attributes = ask(Method::GET, path).attributes;
        assert_eq!(attributes.resource, None, "{path}");
        assert_eq!((attributes.verb.as_str(), attributes.path.as_str()), ("get", path));
    }
}

#[test]
fn an_escaped_slash_makes_more_segments_and_no_session() {
    let asked = ask(Method::POST, "/api/v1/namespaces/default/pods/a%2fb/exec?command=id");
    let resource = asked.attributes.resource.unwrap();
    assert_eq!((resource.name.as_str(), resource.subresource.as_str()), ("a", "b"));
    assert!(asked.exec.is_none());
    let asked = ask(Method::POST, "/api/v1/namespaces/default/pods/a/exec/b?command=id");
    assert_eq!(asked.exec.unwrap(), Err(Refusal::NoSuchPath));
    let asked = ask(Method::POST, "/api/v1/pods/web/exec");
    assert_eq!(asked.exec.unwrap(), Err(Refusal::NoSuchPath), "no namespace, no session");
}

#[test]
fn behind_two_slashes_is_a_resource_and_no_session() {
    for path in ["//api/v1/namespaces/default/pods/a/exec", "/%2fapi/v1/namespaces/default/pods/a/exec"] {
        let asked = ask(Method::POST, path);
        assert_eq!(asked.attributes.resource.unwrap().subresource, "exec", "{path}");
        assert_eq!(asked.exec.unwrap(), Err(Refusal::NoSuchPath), "{path}");
    }
    let asked = ask(Method::POST, "/api/v1/namespaces/default/pods/a/exec/?command=id");
    assert!(asked.exec.unwrap().is_ok(), "upstream takes a slash at the end");
}

#[test]
fn a_path_with_a_bad_escape_is_refused() {
    let refused = Ask::parse(&Method::GET, &"/api/v1/pods/%zz".parse().unwrap(), &HeaderMap::new());
    assert!(matches!(refused, Err(Refusal::BadRequest(_))));
}

#[test]
fn item_001_other_methods_are_not_allowed() {
    let asked = ask(Method::PUT, "/api/v1/namespaces/default/pods/web/exec");
    assert_eq!(asked.exec.unwrap(), Err(Refusal::MethodNotAllowed));
}

#[test]
fn item_007_any_dry_run_is_refused_before_anything_else() {
    let refused = Err(Refusal::BadRequest("dryRun is not supported".into()));
    assert_eq!(exec("dryRun"), refused);
    assert_eq!(exec("dryRun=All&command=id"), refused);
}

#[test]
fn item_010_booleans_by_the_apis_rule() {
    for yes in ["stdin", "stdin=", "stdin=1", "stdin=yes", "stdin=no", "stdin=true"] {
        assert!(exec(yes).unwrap().stdin, "{yes}");
    }
    for no in ["", "stdin=0", "stdin=False", "stdin=FALSE", "Stdin=1"] {
        assert!(!exec(no).unwrap().stdin, "{no}");
    }
}

#[test]
fn item_011_commands_keep_order_duplicates_and_bytes() {
    let asked =
        exec("command=sh&command=-c&command=a+b%26%3D%25&command=-c&command=%ff%c3%a9&command=").unwrap();
    let want: [&[u8]; 6] = [b"sh", b"-c", b"a b&=%", b"-c", b"\xff\xc3\xa9", b""];
    assert_eq!(asked.command, want);
    assert_eq!(exec("").unwrap().command, Vec::<Vec<u8>>::new());
}

#[test]
fn item_012_the_first_scalar_wins_and_unknown_names_are_ignored() {
    let asked = exec("container=a&container=b&timeout=1s&nonsense").unwrap();
    assert_eq!(asked.container, "a");
}

#[test]
fn malformed_pairs_are_dropped_as_go_drops_them() {
    let asked = exec("command=%zz&command=a;b&&=&command=ok&%").unwrap();
    assert_eq!(asked.command, [b"ok".to_vec()]);
}

#[test]
fn item_013_ports_are_repeated_or_comma_separated() {
    let forward = |query: &str| {
        ask(Method::GET, &format!("/api/v1/namespaces/d/pods/web/portforward?{query}")).exec.unwrap()
    };
    assert_eq!(forward("ports=80,81").unwrap().ports, [80, 81]);
    assert_eq!(forward("ports=80&ports=81").unwrap().ports, [80, 81]);
    let text = |query: &str| forward(query).unwrap_err().message();
    let start = "cannot convert to []int32: strconv.ParseUint: parsing ";
    assert_eq!(text("ports=abc"), format!("{start}\"abc\": invalid syntax"));
    assert_eq!(text("ports=70000"), format!("{start}\"70000\": value out of range"));
    assert_eq!(text("ports="), format!("{start}\"\": invalid syntax"));
}

#[test]
fn item_037_an_upgrade_is_any_connection_line_that_says_so() {
    let of = |lines: &[(&str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        Upgrade::of(&headers)
    };
    assert_eq!(of(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")]), Upgrade::Spdy);
    let two = [("connection", "keep-alive"), ("connection", "UPGRADE"), ("upgrade", "WebSocket")];
    assert_eq!(of(&two), Upgrade::WebSocket);
    assert_eq!(of(&[("connection", "upgrade"), ("upgrade", "h2c")]), Upgrade::Other);
    assert_eq!(of(&[("connection", "upgrade")]), Upgrade::Other);
    assert_eq!(of(&[("upgrade", "SPDY/3.1")]), Upgrade::None);
}

#[test]
fn the_old_watch_and_proxy_prefixes_lead_to_no_session() {
    for prefix in ["watch", "proxy"] {
        let asked =
            ask(Method::POST, &format!("/api/v1/{prefix}/namespaces/default/pods/web/exec?command=id"));
        assert!(!matches!(asked.exec, Some(Ok(_))), "{prefix}");
    }
}
