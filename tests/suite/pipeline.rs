//! Who may do what, and what is said to those who may not.

use std::sync::Arc;
use std::time::Duration;

use podgate::cluster::Pod;
use podgate::testing::answer::status;
use podgate::testing::cluster::{allow, deny, undecided};
use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{STDIN, data};
use podgate::testing::gateway::{config, exec_request, read_exactly, request, send};
use podgate::testing::{Answer, Pki, soon, until};
use podgate::tls::Identity;

use crate::rig::{Rig, rig, rig_with};

const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

impl Rig {
    async fn get(&self, path: &str) -> Answer {
        self.gateway.ask(&request(&format!("GET {path}"), "")).await
    }

    /// What these headers get from `/whoami`, on a connection with this certificate or none.
    async fn whoami(&self, identity: Option<&Identity>, headers: &str) -> Answer {
        let mut io = match identity {
            Some(identity) => self.gateway.connect_with(identity).await,
            None => self.gateway.connect_anonymously().await,
        };
        send(&mut io, &request("GET /whoami", headers)).await;
        Answer::read(&mut io).await.expect("an answer")
    }
}

fn unauthorized() -> String {
    status(401, "Unauthorized", "Unauthorized", "")
}

fn about(name: &str) -> String {
    format!("{{\"name\":\"{name}\",\"kind\":\"pods\"}}")
}

fn pod(node: Option<&str>, init: &[&str], containers: &[&str], ephemeral: &[&str]) -> Pod {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Pod {
        uid: String::new(),
        node: node.map(str::to_owned),
        init_containers: names(init),
        containers: names(containers),
        ephemeral_containers: names(ephemeral),
        ..Pod::default()
    }
}

// === methods, verbs, order of checks ===

#[tokio::test]
async fn item_001_methods_other_than_get_and_post_are_405_on_all_three_doors() {
    let rig = rig().await;
    let text = "the server does not allow this method on the requested resource";
    for subresource in ["exec", "attach", "portforward"] {
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
            let line = format!("{method} /api/v1/namespaces/default/pods/web/{subresource}");
            let answer = rig.gateway.ask(&request(&line, UPGRADE)).await;
            assert_eq!(answer.code(), 405);
            assert_eq!(answer.body, status(405, "MethodNotAllowed", text, "{}"));
        }
    }
    assert_eq!(rig.gateway.metric("podgate_refusals_total{reason=\"method_not_allowed\"}"), 12.0);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_001_a_method_is_only_refused_as_such_to_who_may_use_it() {
    let rig = rig().await;
    rig.gateway.cluster.judge(|_, _| Ok(deny("")));
    let answer = rig.gateway.ask(&request(&format!("PUT {EXEC}"), UPGRADE)).await;
    assert_eq!(answer.code(), 403);
    assert_eq!(rig.gateway.cluster.reviews(), ["ana update pods/exec default/web"]);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_002_003_get_is_reviewed_as_get_and_create_and_post_as_create_alone() {
    let rig = rig().await;
    for (method, reviews) in [
        ("POST", &["ana create pods/exec default/web"][..]),
        ("GET", &["ana get pods/exec default/web", "ana create pods/exec default/web"]),
    ] {
        let before = rig.gateway.cluster.reviews().len();
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &request(&format!("{method} {EXEC}?command=id"), UPGRADE)).await;
        assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
        assert_eq!(rig.gateway.cluster.reviews()[before..], *reviews);
    }
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_006_log_and_proxy_are_reviewed_once() {
    let rig = rig().await;
    for subresource in ["log", "proxy"] {
        let before = rig.gateway.cluster.reviews().len();
        let answer = rig.get(&format!("/api/v1/namespaces/default/pods/web/{subresource}")).await;
        assert_eq!(answer.code(), 200);
        let reviews = &rig.gateway.cluster.reviews()[before..];
        assert_eq!(reviews, [format!("ana get pods/{subresource} default/web")]);
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_004_005_a_get_without_create_is_403_before_the_pod_is_read() {
    let rig = rig().await;
    let asked = request("GET /api/v1/namespaces/default/pods/none/exec", UPGRADE);
    for reason in ["", "because"] {
        rig.gateway
            .cluster
            .judge(move |_, attributes| Ok(if attributes.verb == "create" { deny(reason) } else { allow() }));
        let answer = rig.gateway.ask(&asked).await;
        let text = format!("pods \"none\" is forbidden: {reason}");
        assert_eq!((answer.code(), answer.body), (403, status(403, "Forbidden", &text, &about("none"))));
    }
    assert_eq!(rig.gateway.cluster.reads(), Vec::<String>::new());
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_003_no_decision_on_the_second_review_is_a_500_status() {
    let rig = rig().await;
    rig.gateway.cluster.judge(|_, attributes| {
        if attributes.verb == "create" { Err(undecided("no quorum")) } else { Ok(allow()) }
    });
    let answer = rig.gateway.ask(&request(&format!("GET {EXEC}"), UPGRADE)).await;
    assert_eq!((answer.code(), answer.body), (500, status(500, "", "no quorum", "")));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_007_any_dry_run_is_400_before_the_pod_is_read() {
    let rig = rig().await;
    for query in ["dryRun", "dryRun=", "command=id&dryRun=All", "dryRun=None"] {
        let answer = rig.gateway.ask(&exec_request(query, "")).await;
        let wanted = status(400, "BadRequest", "dryRun is not supported", "");
        assert_eq!((answer.code(), answer.body), (400, wanted));
    }
    assert_eq!(rig.gateway.cluster.reads(), Vec::<String>::new());
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_008_a_plain_get_of_a_missing_pod_is_404_and_of_a_good_one_400() {
    let rig = rig().await;
    let answer = rig.get("/api/v1/namespaces/default/pods/none/exec").await;
    let wanted = status(404, "NotFound", "pods \"none\" not found", &about("none"));
    assert_eq!((answer.code(), answer.body), (404, wanted));
    let answer = rig.get(EXEC).await;
    let wanted = status(400, "BadRequest", "Upgrade request required", "");
    assert_eq!((answer.code(), answer.body.as_str()), (400, wanted.as_str()));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-cache, private"));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_009_an_exec_by_http2_is_400() {
    use http_body_util::BodyExt;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let rig = rig().await;
    let mut tls = (*rig.gateway.client_tls("ana")).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let io = rig.gateway.connect(Arc::new(tls)).await;
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let ask = async {
        let request = http::Request::post(format!("https://podgate.test{EXEC}?command=id"));
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        (head.status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    };
    let (answer, closed) = tokio::join!(soon("an answer", ask), connection);
    closed.unwrap();
    assert_eq!(answer, (400, status(400, "BadRequest", "Upgrade request required", "")));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_013_bad_ports_are_400_in_gos_words() {
    let rig = rig().await;
    for (ports, text) in [
        ("abc", "parsing \"abc\": invalid syntax"),
        ("70000", "parsing \"70000\": value out of range"),
        ("", "parsing \"\": invalid syntax"),
        ("80,", "parsing \"\": invalid syntax"),
    ] {
        let line = format!("POST /api/v1/namespaces/default/pods/web/portforward?ports={ports}");
        let answer = rig.gateway.ask(&request(&line, UPGRADE)).await;
        let text = format!("cannot convert to []int32: strconv.ParseUint: {text}");
        assert_eq!((answer.code(), answer.body), (400, status(400, "BadRequest", &text, "")));
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_016_curl_and_pretty_get_indented_json_without_a_line_feed() {
    let rig = rig().await;
    let indented = "{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},\n  \
                    \"status\": \"Failure\",\n  \"message\": \"Upgrade request required\",\n  \
                    \"reason\": \"BadRequest\",\n  \"code\": 400\n}";
    let asks = [
        (EXEC.to_owned(), "User-Agent: curl/8.5.0\r\n"),
        (format!("{EXEC}?pretty=true"), ""),
        (EXEC.to_owned(), "Accept: application/json;pretty=1\r\n"),
    ];
    for (path, headers) in asks {
        assert_eq!(rig.gateway.ask(&request(&format!("GET {path}"), headers)).await.body, indented);
    }
    let compact = rig.gateway.ask(&request(&format!("GET {EXEC}?pretty=0"), "User-Agent: curl/8\r\n")).await;
    assert_eq!(compact.body, status(400, "BadRequest", "Upgrade request required", ""));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_017_angle_brackets_and_ampersands_of_a_name_are_escaped_as_go_does() {
    let rig = rig().await;
    let answer = rig.get("/api/v1/namespaces/default/pods/%3Ca%26b%3E/exec").await;
    assert!(
        answer.body.contains(r#""message":"pods \"\u003ca\u0026b\u003e\" not found""#),
        "{}",
        answer.body
    );
    rig.stop_untouched().await;
}

// === pod, container, node ===

#[tokio::test]
async fn item_022_to_028_what_is_wrong_with_pod_container_or_node_is_said_in_upstreams_words() {
    let rig = rig().await;
    let cluster = &rig.gateway.cluster;
    cluster.pod("default/many", pod(Some("n"), &["init-db"], &["app", "sidecar"], &["debug"]));
    cluster.pod("default/none", pod(Some("n"), &["init-db"], &[], &["debug"]));
    cluster.pod("default/free", pod(None, &[], &["app"], &[]));
    cluster.pod("default/lost", pod(Some("gone"), &[], &["app"], &[]));
    cluster.pod("default/dark", pod(Some("dark"), &[], &["app"], &[]));
    cluster.pod("default/bare", pod(Some("bare"), &[], &["app"], &[]));
    cluster.node_at("dark", &[("Satellite", "sat-1"), ("Pigeon", "p")], 1);
    cluster.node_at("bare", &[], 1);
    let bad = |text: &str| (400, status(400, "BadRequest", text, ""));
    let cases = [
        (
            "many",
            "",
            bad(
                "a container name must be specified for pod many, choose one of: [init-db app sidecar debug]",
            ),
        ),
        ("none", "", bad("a container name must be specified for pod none")),
        ("many", "container=nope", bad("container nope is not valid for pod many")),
        ("web", "container=APP", bad("container APP is not valid for pod web")),
        ("free", "", bad("pod free does not have a host assigned")),
        (
            "lost",
            "",
            (
                404,
                status(404, "NotFound", "nodes \"gone\" not found", "{\"name\":\"gone\",\"kind\":\"nodes\"}"),
            ),
        ),
        (
            "dark",
            "",
            (
                500,
                status(
                    500,
                    "",
                    "no preferred addresses found; known addresses: [{Satellite sat-1} {Pigeon p}]",
                    "",
                ),
            ),
        ),
        ("bare", "", (500, status(500, "", "no preferred addresses found; known addresses: []", ""))),
    ];
    for (pod, query, wanted) in cases {
        let line = format!("POST /api/v1/namespaces/default/pods/{pod}/exec?command=id&{query}");
        let answer = rig.gateway.ask(&request(&line, UPGRADE)).await;
        assert_eq!((answer.code(), answer.body), wanted);
    }
    let line = "POST /api/v1/namespaces/default/pods/free/portforward";
    let answer = rig.gateway.ask(&request(line, UPGRADE)).await;
    assert_eq!((answer.code(), answer.body), bad("pod free does not have a host assigned"));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_022_026_the_only_regular_container_is_the_default_and_any_may_be_named() {
    let mut rig = rig().await;
    let mixed = pod(Some("n"), &["init-db"], &["app"], &["debug"]);
    rig.gateway.cluster.pod("default/mixed", mixed);
    for (query, container) in [
        ("", "app"),
        ("container=", "app"),
        ("container=init-db", "init-db"),
        ("container=debug", "debug"),
        ("container=app", "app"),
    ] {
        let line = format!("POST /api/v1/namespaces/default/pods/mixed/exec?{query}");
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &request(&line, UPGRADE)).await;
        let head = rig.far.head().await;
        assert!(head.starts_with(&format!("POST /exec/default/mixed/{container} HTTP/1.1\r\n")), "{head}");
    }
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_029_the_address_is_chosen_by_type_and_a_name_is_resolved() {
    let mut rig = rig().await;
    let addresses = [("ExternalIP", "192.0.2.1"), ("InternalIP", "192.0.2.2"), ("Hostname", "localhost")];
    rig.gateway.cluster.node_at("n", &addresses, rig.far.addr.port());
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    assert!(rig.far.head().await.contains("\r\nHost: podgate.test\r\n"));
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_030_a_kubelet_without_a_port_is_looked_for_at_10250() {
    let rig = rig().await;
    // TEST-NET of loopback: nobody listens there, whatever else runs on the machine.
    rig.gateway.cluster.node_at("n", &[("InternalIP", "127.77.66.55")], 0);
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "error dialing backend: dial tcp 127.77.66.55:10250: connect: connection refused";
    assert_eq!(answer.body, status(500, "", text, ""));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_a_read_is_500_after_the_deadline() {
    let mut short = config();
    short.cluster.read_timeout = Duration::from_millis(100);
    let rig = rig_with(short).await;
    rig.gateway.cluster.hang_reads("");
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "read of pod default/web took longer than 100ms";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn where_a_pod_most_likely_is_is_read_at_the_same_time_and_believed_only_if_it_is_there() {
    let rig = rig().await;
    // Of a node that the pod has left, or that is no more, nothing is believed, not even an error.
    rig.gateway.cluster.node("other", 1);
    for (guess, read) in [("n", vec!["n"]), ("other", vec!["other", "n"]), ("none", vec!["none", "n"])] {
        let before = rig.gateway.cluster.reads().len();
        rig.gateway.cluster.guess(guess);
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &exec_request("command=id", "")).await;
        assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
        let nodes = read.iter().map(|node| format!("node {node}"));
        let expected: Vec<_> = std::iter::once("pod default/web".to_owned()).chain(nodes).collect();
        assert_eq!(rig.gateway.cluster.reads()[before..], expected);
    }
    // Nor does anybody wait for one.
    rig.gateway.cluster.guess("other");
    rig.gateway.cluster.hang_reads("node other");
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    drop(client);
    rig.gateway.cluster.hang_reads("");
    rig.gateway.cluster.guess("n");
    let before = rig.gateway.cluster.reads().len();
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    until("both reads", || rig.gateway.cluster.reads()[before..] == ["pod default/web", "node n"]).await;
    drop(client);
    rig.gateway.stop().await;
}

// === who ===

#[tokio::test]
async fn item_105_without_credentials_the_answer_is_the_401_status_and_no_challenge() {
    let rig = rig().await;
    let answer = rig.whoami(None, "").await;
    assert_eq!((answer.code(), answer.body.as_str()), (401, unauthorized().as_str()));
    assert_eq!(answer.header("www-authenticate"), None);
    assert_eq!(answer.header("x-content-type-options"), None);
    assert!(answer.header("audit-id").is_some_and(|id| id.len() == 36));
    assert_eq!(rig.gateway.cluster.reviews(), Vec::<String>::new());
    assert_eq!(rig.gateway.metric("podgate_requests_total{code=\"401\"}"), 1.0);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_106_a_bad_token_is_401_even_when_anonymous_access_is_allowed() {
    let mut open = config();
    open.authentication.anonymous = true;
    let rig = rig_with(open).await;
    let answer = rig.whoami(None, "").await;
    assert_eq!(answer.body, "system:anonymous [\"system:unauthenticated\"] {}");
    let answer = rig.whoami(None, "Authorization: Basic eDp5\r\n").await;
    assert_eq!(answer.code(), 200, "another scheme is no credential");
    let answer = rig.whoami(None, "Authorization: Bearer ana-tokem\r\n").await;
    assert_eq!((answer.code(), answer.body), (401, unauthorized()));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_105_a_certificate_of_another_authority_or_an_expired_one_is_a_401_status() {
    let mut open = config();
    open.authentication.anonymous = true;
    let rig = rig_with(open).await;
    let pki = &rig.gateway.pki;
    // The server's own certificate is no client certificate.
    for identity in [Pki::new().client("ana", &["dev"]), pki.expired_client("ana"), pki.server()] {
        let answer = rig.whoami(Some(&identity), "").await;
        assert_eq!((answer.code(), answer.body), (401, unauthorized()));
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_105_a_valid_token_beats_a_bad_certificate() {
    let rig = rig().await;
    let expired = rig.gateway.pki.expired_client("mallory");
    let answer = rig.whoami(Some(&expired), "Authorization: bearer ana-token\r\n").await;
    assert_eq!(answer.body, "ana [\"dev\", \"system:authenticated\"] {}");
    let good = rig.gateway.pki.client("ben", &["ops"]);
    let answer = rig.whoami(Some(&good), "Authorization: Bearer ana-token\r\n").await;
    assert_eq!(answer.body, "ben [\"ops\", \"system:authenticated\"] {}", "certificates come first");
    rig.stop_untouched().await;
}

// === impersonation ===

#[tokio::test]
async fn item_107_108_each_item_is_reviewed_and_the_request_is_the_impersonated_users() {
    let rig = rig().await;
    let headers = "Impersonate-Extra-Acme.com%2fproject: p\r\nImpersonate-Uid: 7\r\nImpersonate-Group: ops\r\n\
                   Impersonate-User: jane\r\nImpersonate-Group: dev\r\n";
    let answer = rig.gateway.ask(&request("GET /whoami", headers)).await;
    assert_eq!(
        answer.body,
        "jane [\"ops\", \"dev\", \"system:authenticated\"] {\"acme.com/project\": [\"p\"]}"
    );
    assert_eq!(
        rig.gateway.cluster.reviews(),
        [
            "ana impersonate users /jane",
            "ana impersonate groups /ops",
            "ana impersonate groups /dev",
            "ana impersonate userextras/acme.com/project /p",
            "ana impersonate uids /7",
            "jane get /whoami",
        ]
    );
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_107_the_first_denied_item_is_a_403_of_the_real_user_and_ends_it() {
    let rig = rig().await;
    rig.gateway.cluster.judge(|_, attributes| {
        let resource = attributes.resource.as_ref().map(|resource| resource.resource.as_str());
        Ok(if resource == Some("groups") { deny("") } else { allow() })
    });
    let headers =
        format!("{UPGRADE}Impersonate-User: jane\r\nImpersonate-Group: ops\r\nImpersonate-Uid: 7\r\n");
    let answer = rig.gateway.ask(&request(&format!("POST {EXEC}"), &headers)).await;
    let text = "groups \"ops\" is forbidden: User \"ana\" cannot impersonate resource \"groups\" in API group \
                \"\" at the cluster scope";
    let wanted = status(403, "Forbidden", text, "{\"name\":\"ops\",\"kind\":\"groups\"}");
    assert_eq!((answer.code(), answer.body), (403, wanted));
    assert_eq!(rig.gateway.cluster.reviews(), ["ana impersonate users /jane", "ana impersonate groups /ops"]);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_107_a_group_without_a_user_is_400() {
    let rig = rig().await;
    let answer = rig.gateway.ask(&request("GET /whoami", "Impersonate-Group: ops\r\n")).await;
    let text = "requested [groups] without impersonating a user";
    assert_eq!((answer.code(), answer.body), (400, status(400, "BadRequest", text, "")));
    assert_eq!(rig.gateway.cluster.reviews(), Vec::<String>::new());
    rig.stop_untouched().await;
}

// === may they ===

#[tokio::test]
async fn item_109_denials_of_all_three_shapes_and_nobody_is_dialled() {
    let rig = rig().await;
    rig.gateway.cluster.judge(|_, _| Ok(deny("RBAC: <none>")));
    let in_namespace = "pods \"web\" is forbidden: User \"ana\" cannot create resource \"pods/exec\" in API group \
                        \"\" in the namespace \"default\": RBAC: <none>";
    let cluster_scoped = "nodes is forbidden: User \"ana\" cannot list resource \"nodes\" in API group \"\" at the \
                          cluster scope: RBAC: <none>";
    let path = "forbidden: User \"ana\" cannot get path \"/x&lt;y\": RBAC: <none>";
    for (line, text, details) in [
        (format!("POST {EXEC}"), in_namespace, "{\"name\":\"web\",\"kind\":\"pods\"}"),
        ("GET /api/v1/nodes".to_owned(), cluster_scoped, "{\"kind\":\"nodes\"}"),
        ("GET /x%3Cy".to_owned(), path, "{}"),
    ] {
        let answer = rig.gateway.ask(&request(&line, UPGRADE)).await;
        assert_eq!((answer.code(), answer.body.clone()), (403, status(403, "Forbidden", text, details)));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    assert_eq!(rig.gateway.cluster.reads(), Vec::<String>::new());
    assert_eq!(rig.gateway.cluster.served(), Vec::<String>::new());
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_109_no_decision_is_a_plain_text_500_and_nobody_is_dialled() {
    let rig = rig().await;
    rig.gateway.cluster.judge(|_, _| Err(undecided("no <quorum>")));
    let answer = rig.gateway.ask(&exec_request("command=a&command=b%22", "")).await;
    assert_eq!(answer.code(), 500);
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(
        answer.body,
        format!("Internal Server Error: \"{EXEC}?command=a&amp;command=b%22\": no &lt;quorum&gt;\n")
    );
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_109_a_review_that_never_ends_fails_closed() {
    let mut short = config();
    short.cluster.review_timeout = Duration::from_millis(100);
    let rig = rig_with(short).await;
    rig.gateway.cluster.hang_reviews();
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    assert_eq!(answer.code(), 500);
    let text = format!("Internal Server Error: \"{EXEC}?command=id\": the review took longer than 100ms\n");
    assert_eq!(answer.body, text);
    // An impersonation is reviewed here too, whatever it is for.
    let answer = rig.gateway.ask(&request("GET /whoami", "Impersonate-User: ben\r\n")).await;
    assert_eq!(answer.code(), 403);
    assert_eq!(rig.gateway.cluster.served(), Vec::<String>::new());
    rig.stop_untouched().await;
}

// === long and short requests ===

#[tokio::test]
async fn item_110_a_session_outlives_the_request_timeout_and_ignores_its_own() {
    let mut short = config();
    short.api.request_timeout = Duration::from_millis(100);
    let rig = rig_with(short).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id&timeout=1ms", "")).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    // The deadline is known to have passed when a request begun after the session ran into it.
    assert_eq!(rig.get("/hang").await.code(), 504);
    let words = data(STDIN, b"still here");
    send(&mut client, &words).await;
    assert_eq!(read_exactly(&mut client, words.len()).await, words);
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_110_a_short_request_that_hangs_is_a_504_status() {
    let mut short = config();
    short.api.request_timeout = Duration::from_millis(100);
    let rig = rig_with(short).await;
    let answer = rig.get("/hang").await;
    let text = "Timeout: request did not complete within the allotted timeout";
    assert_eq!((answer.code(), answer.body), (504, status(504, "Timeout", text, "{}")));
    assert_eq!(rig.gateway.metric("podgate_refusals_total{reason=\"timeout\"}"), 1.0);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_110_short_requests_beyond_the_limit_are_429_and_sessions_do_not_count() {
    let mut small = config();
    small.api.max_in_flight = 1;
    let rig = rig_with(small).await;
    let mut hanging = rig.gateway.connect_as("ana").await;
    send(&mut hanging, &request("GET /hang", "")).await;
    until("the first to be served", || rig.gateway.cluster.served() == ["ana get /hang"]).await;
    let answer = rig.get("/whoami").await;
    let text = "Too many requests, please try again later.";
    let wanted = status(429, "TooManyRequests", text, "{\"retryAfterSeconds\":1}");
    assert_eq!((answer.code(), answer.body.as_str()), (429, wanted.as_str()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    drop((hanging, client));
    // Who gives up frees the place.
    soon("a place", async { while rig.get("/whoami").await.code() != 200 {} }).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_panic_is_answered_and_counted_and_the_gateway_lives_on() {
    let rig = rig().await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /panic", "")).await;
    let answer = Answer::read(&mut client).await.expect("an answer");
    assert_eq!(answer.code(), 500);
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.body, "This request caused apiserver to panic. Look in the logs for details.\n");
    send(&mut client, &request("GET /whoami", "")).await;
    assert_eq!(Answer::read(&mut client).await.expect("an answer").code(), 200);
    assert_eq!(rig.gateway.metric("podgate_refusals_total{reason=\"panic\"}"), 1.0);
    assert_eq!(rig.gateway.metric("podgate_requests_total{code=\"500\"}"), 1.0);
    drop(client);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_113_an_audit_id_is_kept_or_made_up_on_answers_of_the_gateway() {
    let rig = rig().await;
    let answer = rig.gateway.ask(&request("GET /whoami", "audit-id: mine\r\n")).await;
    assert_eq!(answer.header("audit-id"), Some("mine"));
    let (one, two) = (rig.get(EXEC).await, rig.get(EXEC).await);
    let (one, two) = (one.header("audit-id").unwrap(), two.header("audit-id").unwrap());
    assert!(one.len() == 36 && one != two, "{one} {two}");
    rig.stop_untouched().await;
}
