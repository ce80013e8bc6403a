//! What the embedded cluster's API door says, word for word, compared with reviewed golden files.
//!
//! Each file holds the status line, the headers that are not of the moment, and the body.

use podgate::testing::gateway::read_to_end;
use podgate::testing::golden;
use tokio::io::AsyncWriteExt;

use crate::dev::Running;

/// One request on a connection of its own, with an upgrade to SPDY asked for.
async fn ask(running: &Running, user: Option<&str>, method: &str, path: &str, more: &str) -> String {
    let mut io = running.connect().await;
    let auth =
        user.map(|user| format!("Authorization: Bearer {}\r\n", running.token(user))).unwrap_or_default();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: podgate.test\r\n{auth}{more}\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut io).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let of_the_moment = ["date:", "audit-id:"];
    let head: Vec<&str> = head
        .lines()
        .filter(|line| !of_the_moment.iter().any(|name| line.to_ascii_lowercase().starts_with(name)))
        .collect();
    format!("{}\n\n{body}", head.join("\n"))
}

const SPDY: &str =
    "Connection: Upgrade, close\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

fn exec(pod: &str, query: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{pod}/exec?{query}")
}

#[tokio::test(flavor = "multi_thread")]
async fn item_105_every_refusal_has_the_api_servers_words() {
    let running = Running::start().await;
    let id = "command=id&stdout=true";
    let cases = [
        ("unauthorized", None, "POST", exec("web", id)),
        ("forbidden", Some("mallory"), "POST", exec("web", id)),
        ("forbidden-get", Some("mallory"), "GET", exec("web", id)),
        (
            "forbidden-namespace",
            Some("alice"),
            "POST",
            "/api/v1/namespaces/shop/pods/cart/exec?command=id".into(),
        ),
        ("missing-pod", Some("alice"), "POST", exec("nope", id)),
        ("wrong-container", Some("alice"), "POST", exec("web", "command=id&container=nope")),
        ("several-containers", Some("alice"), "POST", exec("multi", id)),
        ("unscheduled", Some("alice"), "POST", exec("unscheduled", id)),
        ("node-down", Some("alice"), "POST", exec("on-down-node", id)),
        ("node-missing", Some("alice"), "POST", exec("on-missing-node", id)),
        ("no-streams", Some("alice"), "POST", exec("web", "command=id")),
        ("dry-run", Some("alice"), "POST", exec("web", "dryRun=All&command=id")),
        ("wrong-method", Some("admin"), "PUT", exec("web", id)),
        ("dot-dot", Some("alice"), "POST", exec("..", id)),
        ("unknown-path", Some("admin"), "GET", "/apis/apps/v1/deployments".into()),
    ];
    for (name, user, method, path) in cases {
        golden::check(&format!("answers/{name}.txt"), &ask(&running, user, method, &path, SPDY).await);
    }
    let plain = ask(&running, Some("alice"), "GET", &exec("web", id), "Connection: close\r\n").await;
    golden::check("answers/no-upgrade.txt", &plain);
    let curl = "Connection: close\r\nUser-Agent: curl/8.0\r\n";
    let several = ask(&running, Some("alice"), "POST", &exec("multi", id), curl).await;
    golden::check("answers/several-containers-curl.txt", &several);
    running.stop().await;
}
