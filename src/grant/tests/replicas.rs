//! Replicas of podgate whose grants are ConfigMaps of one API server.

use super::*;
use crate::cluster::kube::collection::Collection;
use crate::grant::configmaps::ConfigMaps;
use crate::telemetry::Metrics;
use crate::testing::apiserver::{ApiServer, CONFIG_MAPS};
use crate::testing::{PATIENCE, until};

async fn replica(server: &ApiServer) -> World {
    let (book, background, metrics) = (Arc::new(Book::default()), Drain::new(), Metrics::new());
    let (name, path) = ("grants", ConfigMaps::path("podgate"));
    let connection = server.connection(&background);
    let maps = Collection::new(connection, name, path, &ConfigMaps::selector(), PATIENCE, 10);
    let store = ConfigMaps::start(maps, "podgate".into(), book.clone(), &background, &metrics);
    until("the watch has listed", || book.is_complete()).await;
    World::within(background, Arc::new(store), book, tempfile::tempdir().unwrap(), NOON)
}

/// Connections that nobody uses any more are open until they are cut.
async fn end(world: World) {
    let drained = world.background.finish(Duration::ZERO).await;
    assert!(!matches!(drained, Drained::Stuck(_)), "{drained:?}");
}

fn config_map(name: &str, grant: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"grant": grant.to_string()},
        "metadata": {"namespace": "podgate", "name": name, "labels": {"podgate.dev/kind": "grant"}},
    })
}

#[tokio::test]
async fn what_one_replica_is_told_all_know() {
    let server = ApiServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let ana = person("ana");
    let made = one.create(&ana, wanted()).await.unwrap();
    assert_eq!(one.grants.list(None).items, std::slice::from_ref(&made), "who made it finds it");
    until("the other knows it", || two.grants.list(None).items == [made.clone()]).await;
    assert_eq!(two.create(&ana, wanted()).await.unwrap_err().code(), 409);

    two.say(&person("bob"), "yes").await.unwrap();
    until("it holds at the first", || one.lets(&ana, &CART).is_some()).await;
    assert_eq!(one.grants.list(None), two.grants.list(None));
    let since = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert_eq!(one.since(since).unwrap(), two.since(since).unwrap());

    one.grants.delete("shop", "fix", &Preconditions::default(), false).await.unwrap();
    until("it is gone at the other", || two.lets(&ana, &CART).is_none()).await;
    assert_eq!(server.all(CONFIG_MAPS), Vec::<Value>::new());
    end(one).await;
    end(two).await;
}

#[tokio::test]
async fn replicas_that_write_at_once_lose_nothing() {
    let server = ApiServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    one.create(&person("ana"), wanted()).await.unwrap();
    let (bob, carl) = (person("bob"), person("carl"));
    let (first, second) = tokio::join!(one.say(&bob, "yes"), two.say(&carl, "yes"));
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    let both = |world: &World| {
        let grant = world.grants.get("shop", "fix").unwrap();
        grant["status"]["approvals"].as_array().is_some_and(|approvals| approvals.len() == 2)
    };
    until("both approvals are there", || both(&one) && both(&two)).await;

    let makes = |world: &World| {
        let (grants, mut other) = (world.grants.clone(), wanted());
        other["metadata"]["name"] = "second".into();
        async move { grants.create(person("ana").who(), "shop", other, false).await.is_ok() }
    };
    let made: (bool, bool) = tokio::join!(makes(&one), makes(&two));
    assert!(made.0 != made.1, "one of them was first");

    one.set("2026-06-01T13:00:00Z");
    two.set("2026-06-01T13:00:00Z");
    let noted = || server.all(CONFIG_MAPS).iter().all(|map| map.to_string().contains("Expired"));
    until("the end is written down", noted).await;
    end(one).await;
    end(two).await;
}

#[tokio::test]
async fn what_is_no_grant_lets_nobody_in() {
    let server = ApiServer::start().await;
    let mut grant = wanted();
    grant["metadata"]["namespace"] = "shop".into();
    grant["status"] = json!({
        "phase": "Active", "requestedBy": "ana", "requestedAt": NOON, "approvals": [{"by": "bob", "at": NOON}],
        "until": "2026-06-01T13:00:00Z",
    });
    server.put(CONFIG_MAPS, config_map("grant.shop.other", &grant));
    server.put(CONFIG_MAPS, config_map("grant.shop.garbage", &json!("{")));
    server.put(CONFIG_MAPS, json!({"metadata": {"namespace": "podgate", "name": "no-data"}}));
    let world = replica(&server).await;
    assert_eq!(world.grants.list(None).items, Vec::<Value>::new());
    server.put(CONFIG_MAPS, config_map("grant.shop.fix", &grant));
    until("one that is", || world.lets(&person("ana"), &CART).is_some()).await;
    server.put(CONFIG_MAPS, config_map("grant.shop.fix", &json!(7)));
    until("it is none any more", || world.lets(&person("ana"), &CART).is_none()).await;
    end(world).await;
}

#[tokio::test]
async fn without_the_api_server_grants_hold_that_are_known_and_none_is_made() {
    let server = ApiServer::start().await;
    let world = replica(&server).await;
    world.create(&person("ana"), wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    server.stop().await;
    assert!(world.lets(&person("ana"), &CART).is_some());
    let refused = world.say(&person("eve"), "no").await.unwrap_err();
    assert_eq!(refused.code(), 503);
    world.set("2026-06-01T13:00:00Z");
    assert_eq!(world.lets(&person("ana"), &CART), None);

    server.delete(CONFIG_MAPS, "podgate/grant.shop.fix");
    server.restart().await;
    until("what happened meanwhile is known", || world.grants.list(None).items.is_empty()).await;
    end(world).await;
}

#[tokio::test]
async fn an_api_server_that_was_put_back_is_believed() {
    let server = ApiServer::start().await;
    let world = replica(&server).await;
    world.create(&person("ana"), wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    let since = world.grants.list(None).version;
    let mut changes = world.grants.changes(None, since);
    assert!(changes.next().now_or_never().is_none());
    world.grants.book.fill(Vec::new(), 7);
    assert_eq!(world.lets(&person("ana"), &CART), None);
    assert_eq!(world.grants.list(None).version, 7);
    assert_eq!(changes.next().await.unwrap_err().code(), 410, "what it has seen is no place any more");
    assert_eq!(world.since(7).unwrap(), []);
    end(world).await;
}
