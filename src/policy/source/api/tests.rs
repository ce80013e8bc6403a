use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::cluster::{Pod, User};
use crate::policy::Asked;
use crate::policy::set::Verdict;
use crate::request::Ask;
use crate::testing::apiserver::{ApiServer, EXEC_POLICIES};
use crate::testing::{PATIENCE, until};

struct Rig {
    server: ApiServer,
    rules: Live<Set>,
    read: Read,
    metrics: Metrics,
    background: Drain,
}

impl Rig {
    async fn of(server: ApiServer) -> Self {
        let (background, metrics) = (Drain::new(), Metrics::new());
        let collection = |name, path: &str| {
            Collection::new(server.connection(&background), name, path.to_owned(), "", PATIENCE, 10)
        };
        let (objects, events) = (collection(NAME, PATH), collection(events::NAME, events::PATH));
        let (rules, read) = follow(&objects, events, false, &background, &metrics).unwrap();
        Self { server, rules, read, metrics, background }
    }

    /// Why an exec is denied, if it is.
    fn denied(&self) -> Option<String> {
        let uri = "/api/v1/namespaces/shop/pods/web/exec?command=id".parse().unwrap();
        let ask = Ask::parse(&http::Method::POST, &uri, &http::HeaderMap::new()).unwrap();
        let (user, exec, pod) = (User::default(), ask.exec.unwrap().unwrap(), Pod::default());
        let asked = Asked {
            user: &user,
            impersonator: None,
            exec: &exec,
            pod: &pod,
            container: "app",
            client: std::net::Ipv4Addr::LOCALHOST.into(),
            reason: None,
            now: Timestamp::UNIX_EPOCH,
        };
        let mut verdict = Verdict::default();
        self.rules.get().judge(&asked, &user, &mut verdict);
        verdict.denied.map(|(rule, message)| format!("{rule}: {message}"))
    }

    async fn until(&self, what: &str, denied: Option<&str>) {
        until(what, || self.read.is_done() && self.denied().as_deref() == denied).await;
    }

    async fn until_refused(&self, times: u64) {
        let failed = self.metrics.reloads.with_label_values(&[WHAT, "failed"]);
        until("what is no good is refused", || failed.get() >= times).await;
    }

    async fn stop(self) {
        let drained = self.background.finish(Duration::ZERO).await;
        assert!(!matches!(drained, crate::drain::Drained::Stuck(_)), "{drained:?}");
    }
}

fn policy(name: &str, effect: &str) -> Value {
    let rule = json!({"name": "all", "match": {}, "effect": effect, "message": "no"});
    json!({
        "apiVersion": API_VERSION, "kind": KIND, "spec": {"rules": [rule]},
        "metadata": {"name": name, "uid": format!("uid-of-{name}"), "managedFields": [{"manager": "kubectl"}]},
    })
}

const UNREAD_SAYS: &str = "podgate/unread: the policies of the cluster have not been read yet";

#[tokio::test]
async fn nothing_is_allowed_before_the_policies_are_read() {
    let server = ApiServer::start().await;
    // Their kind is not defined.
    let rig = Rig::of(server).await;
    until("it was asked", || rig.server.count(PATH) > 0).await;
    assert!(!rig.read.is_done());
    assert_eq!(rig.denied().as_deref(), Some(UNREAD_SAYS));
    rig.server.put(EXEC_POLICIES, policy("house", "deny"));
    rig.until("they are read once they can be", Some("house/all: no")).await;
    rig.server.put(EXEC_POLICIES, policy("house", "allow"));
    rig.until("a change is heard of", None).await;
    rig.stop().await;
}

#[tokio::test]
async fn an_invalid_policy_refuses_the_set_and_the_last_good_one_stays() {
    let server = ApiServer::start().await;
    server.put(EXEC_POLICIES, policy("house", "deny"));
    let rig = Rig::of(server).await;
    rig.until("they are read", Some("house/all: no")).await;
    rig.server.put(EXEC_POLICIES, policy("broken", "maybe"));
    rig.until_refused(1).await;
    // What is good beside it is not used either.
    rig.server.put(EXEC_POLICIES, policy("house", "allow"));
    rig.until_refused(2).await;
    assert_eq!(rig.denied().as_deref(), Some("house/all: no"));
    rig.server.put(EXEC_POLICIES, policy("broken", "allow"));
    rig.until("it is mended", None).await;
    rig.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_told_once_in_an_event_of_it() {
    let server = ApiServer::start().await;
    server.put(EXEC_POLICIES, policy("house", "deny"));
    let rig = Rig::of(server).await;
    rig.until("they are read", Some("house/all: no")).await;
    let mut broken = policy("broken", "allow");
    broken["spec"]["rules"][0]["match"] = json!({"user": ["ana"]});
    rig.server.put(EXEC_POLICIES, broken.clone());
    let posted = || {
        let asked = rig.server.asked().into_iter().filter(|asked| asked.path == events::PATH);
        asked.map(|asked| asked.body).collect::<Vec<_>>()
    };
    until("an event", || posted().len() == 1).await;
    let event = posted().remove(0);
    let object = json!({"apiVersion": API_VERSION, "kind": KIND, "name": "broken", "uid": "uid-of-broken"});
    assert_eq!((&event["involvedObject"], &event["type"]), (&object, &json!("Warning")));
    let message = event["message"].as_str().unwrap();
    let told = "all policies are refused for its sake, the last good ones stay: spec.rules[0].match: unknown field `user`";
    assert!(message.starts_with(told), "{message}");
    // Another policy changes nothing about that one; a new fault of it does.
    rig.server.put(EXEC_POLICIES, policy("house", "allow"));
    rig.until_refused(2).await;
    broken["spec"]["rules"][0]["match"] = json!({"group": ["dev"]});
    rig.server.put(EXEC_POLICIES, broken);
    until("another event", || posted().len() == 2).await;
    rig.server.put(EXEC_POLICIES, policy("broken", "allow"));
    rig.until("it is mended", None).await;
    assert_eq!(posted().len(), 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_source_that_goes_away_leaves_the_last_good_set() {
    let server = ApiServer::start().await;
    server.put(EXEC_POLICIES, policy("house", "deny"));
    let rig = Rig::of(server).await;
    rig.until("they are read", Some("house/all: no")).await;
    // The kind is deleted, and every object before it.
    rig.server.delete(EXEC_POLICIES, "house");
    rig.until_refused(1).await;
    rig.server.undefine(EXEC_POLICIES);
    rig.server.faults(|faults| faults.torn = true);
    let synced = rig.metrics.watch_synced.with_label_values(&[NAME]);
    until("the watch is broken", || synced.get() == 0).await;
    assert_eq!(rig.denied().as_deref(), Some("house/all: no"));
    assert!(rig.read.is_done());
    rig.server.faults(|faults| faults.torn = false);
    rig.server.put(EXEC_POLICIES, policy("house", "allow"));
    rig.until("it is back", None).await;
    rig.stop().await;
}

#[test]
fn too_many_bytes_are_refused_whole() {
    let (told, _texts) = watch::channel(None);
    let mut feed = Feed { texts: Texts::new(), list: None, told };
    feed.begin();
    for number in 0..MAX_DOCUMENTS * 2 {
        let object = policy(&format!("p{number}"), &"x".repeat(20_000)).to_string();
        feed.saw(serde_json::from_str(&object).unwrap());
    }
    feed.end("7");
    assert!(feed.texts.len() < MAX_DOCUMENTS);
    let error = compile(&feed.texts, false).unwrap_err()[0].to_string();
    assert!(error.contains("bytes together, of at most 16777216"), "{error:.200}");
}
