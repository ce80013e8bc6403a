use http::HeaderMap;

use super::*;
use crate::dev::manifests;
use crate::status::Encoding;
use crate::testing::answer::status;
use crate::testing::gateway::send;
use crate::testing::{Far, Pki, soon, until};
use crate::upstream::Route;
use crate::{tls, upstream};

const ABOUT: &str = r#"{"name":"web","kind":"pods/log"}"#;

/// Asks for the log of a pod in `default`; nodes are dialled with `kubelets`.
async fn ask(kubelets: Option<&Upstream>, far: Option<&Far>, rest: &str) -> Result<Response<Body>, Refusal> {
    let store = Store::new(manifests::builtin().unwrap().objects);
    if let Some(far) = far {
        store.set_node_endpoint("node-a", far.addr).unwrap();
    }
    let uri = format!("/api/v1/namespaces/default/pods/{rest}").parse().unwrap();
    let ask = Ask::parse(&Method::GET, &uri, &HeaderMap::new()).unwrap();
    let resource = ask.attributes.resource.clone().unwrap();
    assert!(is_log(&resource));
    serve(&store, kubelets, &resource, &ask, &Method::GET).await
}

fn body(refusal: &Refusal) -> String {
    String::from_utf8(refusal.response(Encoding::default()).into_body().to_vec()).unwrap()
}

fn kubelets(pki: &Pki) -> Upstream {
    let second = Duration::from_secs(20);
    let settings = upstream::Settings {
        connect_timeout: second,
        handshake_timeout: second,
        upgrade_timeout: second,
        keepalive: second,
        translate: crate::config::Translate::Always,
    };
    let tls = tls::client(Some(&pki.client("podgate", &[])), pki.roots(), false).unwrap();
    Upstream::new(Route::kubelet(tls), settings)
}

#[tokio::test]
async fn item_019_options_that_make_no_sense_are_422_with_each_cause() {
    let refused = async |query: &str| {
        let refusal = ask(None, None, &format!("none/log?{query}")).await.unwrap_err();
        assert_eq!(refusal.code(), 422);
        body(&refusal)
    };
    assert_eq!(
        refused("tailLines=-1").await,
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"PodLogOptions \
         \\\"none\\\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0\",\"reason\":\
         \"Invalid\",\"details\":{\"name\":\"none\",\"kind\":\"PodLogOptions\",\"causes\":[{\"reason\":\
         \"FieldValueInvalid\",\"message\":\"Invalid value: -1: must be greater than or equal to 0\",\"field\":\
         \"tailLines\"}]},\"code\":422}\n"
    );
    let cause = "{\"reason\":\"FieldValueForbidden\",\"message\":\"Forbidden: at most one of `sinceTime` or \
                 `sinceSeconds` may be specified\",\"field\":\"[]\"}";
    assert!(refused("sinceSeconds=0&sinceTime=").await.contains(&format!("\"causes\":[{cause}]")));
    assert!(refused("sinceSeconds=0&limitBytes=0").await.contains(
        "\"message\":\"PodLogOptions \\\"none\\\" is invalid: [limitBytes: Invalid value: 0: must be greater than 0, \
         sinceSeconds: Invalid value: 0: must be greater than 0]\""
    ));
}

#[tokio::test]
async fn item_020_the_log_of_an_unscheduled_pod_is_204() {
    let answer = ask(None, None, "unscheduled/log").await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "");
}

#[tokio::test]
async fn options_pod_container_and_node_are_refused_in_this_order() {
    for (rest, refusal) in [
        (
            "none/log?tailLines=x&limitBytes=0",
            Refusal::BadRequest("strconv.ParseInt: parsing \"x\": invalid syntax".into()),
        ),
        ("none/log", Refusal::not_found("pods", "none")),
        ("web/log?container=x", Refusal::BadRequest("container x is not valid for pod web".into())),
        (
            "multi/log",
            Refusal::BadRequest(
                "a container name must be specified for pod multi, choose one of: [init-db app sidecar debugger]"
                    .into(),
            ),
        ),
        ("on-missing-node/log", Refusal::not_found("nodes", "node-gone")),
    ] {
        assert_eq!(ask(None, None, rest).await.unwrap_err(), refusal, "{rest}");
    }
    let down = ask(Some(&kubelets(&Pki::new())), None, "on-down-node/log?follow=1").await.unwrap_err();
    assert_eq!(
        body(&down),
        status(
            500,
            "",
            "Get \"https://127.0.0.1:1/containerLogs/default/on-down-node/main?follow=true\": dial tcp 127.0.0.1:1: \
             connect: connection refused",
            ""
        )
    );
}

#[tokio::test]
async fn item_021_what_a_kubelet_refuses_is_told_as_upstream_does() {
    let pki = Pki::new();
    let refused = async |code: u16| {
        let far = Far::start(&pki, move |mut io| async move {
            let head = format!("HTTP/1.1 {code} X\r\nContent-Length: 4\r\nLocation: /\r\n\r\nw\"hy");
            send(&mut io, head.as_bytes()).await;
            std::future::pending().await
        })
        .await;
        let refusal = soon("an answer", ask(Some(&kubelets(&pki)), Some(&far), "web/log")).await.unwrap_err();
        body(&refusal)
    };
    assert_eq!(refused(400).await, status(400, "BadRequest", "w\"hy", ""));
    let message = "Internal error occurred: w\"hy";
    let details = r#"{"causes":[{"message":"w\"hy"}]}"#;
    assert_eq!(refused(500).await, status(500, "InternalError", message, details));
    let message = "the server could not find the requested resource ( pods/log web)";
    assert_eq!(refused(404).await, status(404, "NotFound", message, ABOUT));
    assert_eq!(refused(403).await, status(403, "Forbidden", "w\"hy ( pods/log web)", ABOUT));
    let message =
        "an error on the server (\"w\\\"hy\") has prevented the request from succeeding ( pods/log web)";
    assert_eq!(refused(502).await, status(502, "InternalError", message, ABOUT));
    let message =
        "the server responded with the status code 302 but did not return more information ( pods/log web)";
    assert_eq!(refused(302).await, status(302, "", message, ABOUT));
}

#[tokio::test]
async fn a_log_streams_as_it_comes_and_its_reader_closes_it() {
    let pki = Pki::new();
    let mut far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n").await;
        let _ = tokio::io::AsyncReadExt::read(&mut io, &mut [0]).await;
    })
    .await;
    let kubelets = kubelets(&pki);
    let asked = ask(Some(&kubelets), Some(&far), "web/log?follow=true&tailLines=1&pretty=1");
    let answer = soon("an answer", asked).await.unwrap();
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/plain");
    let head = far.head().await;
    assert!(
        head.starts_with("GET /containerLogs/default/web/web?follow=true&tailLines=1 HTTP/1.1\r\n"),
        "{head}"
    );
    let mut body = answer.into_body();
    let frame = soon("the first line", body.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "a\n");
    drop(body);
    until("the node's connection is closed", || far.connections() == 0).await;
}

#[tokio::test]
async fn a_log_that_breaks_off_does_not_look_whole() {
    let pki = Pki::new();
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na\n").await;
    })
    .await;
    let kubelets = kubelets(&pki);
    let answer = soon("an answer", ask(Some(&kubelets), Some(&far), "web/log")).await.unwrap();
    assert!(soon("the end", answer.into_body().collect()).await.is_err());
}
