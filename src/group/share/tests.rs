//! Replicas of podgate that share their sessions through one API server.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::sheet::Sheet;
use super::*;
use crate::cluster::kube::collection::Collection;
use crate::config::Config;
use crate::drain::Drained;
use crate::grant::configmaps::ConfigMaps;
use crate::group::resource::{Item, Resource};
use crate::group::sessions::LiveSessions;
use crate::session::Settings;
use crate::session::live::{Carried, Change, Known, Live, Terms};
use crate::telemetry::Facts;
use crate::telemetry::facts::Command;
use crate::testing::apiserver::{ApiServer, CONFIG_MAPS};
use crate::testing::{PATIENCE, soon, until};

/// Everything much quicker than it is, but that nobody is taken for dead because the machine is slow.
const TIMES: Times = Times {
    pace: Duration::from_millis(50),
    gather: Duration::from_millis(10),
    beat: Duration::from_millis(100),
    refresh: Duration::from_millis(500),
    stale: Duration::from_secs(60),
    dead: Duration::from_secs(120),
    order: Duration::from_secs(60),
    look: Duration::from_millis(50),
    retry: Duration::from_millis(100),
};

/// Of those who are to see that somebody is.
const IMPATIENT: Times = Times { stale: Duration::from_secs(2), dead: Duration::from_secs(3), ..TIMES };

struct Replica {
    sessions: Sessions,
    share: Share,
    objects: LiveSessions,
    background: Drain,
}

impl Replica {
    async fn start(server: &ApiServer, name: &str) -> Self {
        Self::with(server, name, None, TIMES).await
    }

    async fn with(server: &ApiServer, name: &str, pod_uid: Option<&str>, times: Times) -> Self {
        let (background, metrics, config) = (Drain::new(), Metrics::new(), Config::default().session);
        let settings = Settings {
            max_sessions: config.max_sessions,
            max_sessions_per_caller: config.max_sessions_per_caller,
            recheck_period: config.recheck_period,
            max_bytes_per_second: config.max_bytes_per_second,
            max_bytes_per_second_per_caller: config.max_bytes_per_second_per_caller,
            max_bytes_per_second_in_all: config.max_bytes_per_second_in_all,
            linger: config.linger,
            hang_up: config.hang_up,
            refusal_timeout: config.refusal_timeout,
            open_timeout: config.open_timeout,
            max_duration: config.max_duration,
            idle_timeout: config.idle_timeout,
        };
        let sessions = Sessions::new(settings, Drain::new());
        let path = ConfigMaps::path("podgate");
        let maps = Collection::new(server.connection(&background), "sessions", path, SELECTOR, PATIENCE, 10);
        let identity = Identity {
            namespace: "podgate".into(),
            replica: name.into(),
            pod_uid: pod_uid.map(str::to_owned),
        };
        let share = Share::start(maps, identity, times, sessions.clone(), &background, &metrics);
        let objects = LiveSessions::new(sessions.clone(), Some(share.clone()));
        until("the watch has listed", || share.is_complete()).await;
        Self { sessions, share, objects, background }
    }

    fn enter(&self, pod: &str) -> Live {
        self.run(pod, vec!["sh".into()])
    }

    fn run(&self, pod: &str, command: Vec<String>) -> Live {
        let command = Command { arguments: command.len().saturating_sub(1), words: command };
        let facts = Arc::new(Facts { audit_id: "an-id".into(), command, ..Facts::example("shop", pod) });
        self.sessions.live().enter(facts, Terms::default())
    }

    fn items(&self) -> Vec<Item> {
        let listed = self.objects.list(None).now_or_never();
        listed.unwrap().unwrap().items
    }

    fn names(&self) -> Vec<String> {
        self.items().iter().map(|item| item.name().to_owned()).collect()
    }

    fn far(&self, name: &str) -> Arc<Far> {
        match self.sessions.live().find("shop", name) {
            Some(Known::Far(far)) => far,
            other => panic!("not of another: {other:?}"),
        }
    }

    /// Killed: nothing is taken away.
    async fn end(self) {
        // Connections that nobody uses any more are open until they are cut.
        let drained = self.background.finish(Duration::ZERO).await;
        assert!(!matches!(drained, Drained::Stuck(_)), "{drained:?}");
    }

    async fn leave(self) {
        soon("the farewell", self.share.leave()).await;
        self.end().await;
    }
}

fn named(server: &ApiServer, prefix: &str) -> Vec<String> {
    let name = |map: Value| map["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    server.all(CONFIG_MAPS).into_iter().map(name).filter(|name| name.starts_with(prefix)).collect()
}

fn put(server: &ApiServer, name: &str, text: &str) {
    server.put(
        CONFIG_MAPS,
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"sessions": text},
            "metadata": {"namespace": "podgate", "name": name, "labels": {"podgate.dev/sessions": "sheet"}},
        }),
    );
}

fn session(name: &str) -> Value {
    json!({"at": 10, "session": {
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-of-{name}"), "resourceVersion": "7",
            // By a clock that is far off.
            "creationTimestamp": "2101-01-01T00:00:00Z", "labels": {"podgate.dev/pod": "web", "other": "x"},
        },
        "spec": {"user": "bob\u{1b}[2J", "subresource": "exec", "pod": "web"},
        "status": {"phase": "Running", "idleSeconds": 5, "bytesUp": 3},
    }})
}

fn sheet(pod: Option<&str>, sessions: &[Value]) -> String {
    json!({"replica": "old", "pod": pod, "up": 100, "sessions": sessions}).to_string()
}

#[tokio::test]
async fn sessions_of_one_are_in_the_list_of_all_until_they_or_their_replica_go() {
    let server = ApiServer::start().await;
    let (one, two) = (Replica::start(&server, "one").await, Replica::start(&server, "two").await);
    let mut changes = one.sessions.live().changes(one.sessions.live().all(None).1);
    let live = two.enter("web");
    let name = live.entry().name.clone();
    until("the other shows it", || one.names() == [name.clone()]).await;
    let item = &one.items()[0];
    assert_eq!(item.metadata.uid.as_deref(), Some(live.entry().uid.as_str()));
    assert_eq!((&item.status["replica"], &item.spec["user"]), (&json!("two"), &json!("ana")));
    assert_eq!(item.metadata.labels.as_ref().unwrap()["podgate.dev/pod"], "web");
    assert_eq!(item.cells.last().unwrap(), "two");
    live.runs(Carried { client_protocol: "v5.channel.k8s.io".into(), ..Carried::default() }, Arc::default());
    until("it runs there, too", || one.items()[0].status["phase"] == "Running").await;
    assert_eq!(one.items()[0].status["clientProtocol"], "v5.channel.k8s.io");
    for _ in ["it came", "it runs"] {
        let (_, change) = soon("a change", changes.next()).await.unwrap();
        assert!(matches!(&*change, Change::Far { after: Some(far), .. } if far.name == name));
    }

    let other = two.enter("db");
    until("both are there", || one.names().len() == 2).await;
    drop(live);
    until("one is gone", || one.names() == [other.entry().name.clone()]).await;
    two.leave().await;
    until("all of them are gone", || one.names().is_empty()).await;
    drop(other);
    one.leave().await;
    assert_eq!(server.all(CONFIG_MAPS), Vec::<Value>::new());
}

#[tokio::test]
async fn of_two_who_order_at_once_the_first_is_told_and_the_session_ends_once() {
    let server = ApiServer::start().await;
    let (one, two) = (Replica::start(&server, "one").await, Replica::start(&server, "two").await);
    let three = Replica::start(&server, "three").await;
    let live = three.enter("web");
    let name = live.entry().name.clone();
    until("both show it", || one.names() == [name.clone()] && two.names() == [name.clone()]).await;
    let (at_one, at_two) = (one.far(&name), two.far(&name));
    let (first, second) = tokio::join!(one.share.end(&at_one, "ana"), two.share.end(&at_two, "carl"));
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    let order = soon("the order", live.ordered()).await;
    let asked =
        server.asked().into_iter().find(|asked| asked.body.to_string().contains("sessions.end.")).unwrap();
    let by = ["ana", "carl"].into_iter().find(|by| asked.body.to_string().contains(by)).unwrap();
    assert_eq!(order.why, format!("this session was ended by {by}"));
    until("the order is taken away", || named(&server, "sessions.end.").is_empty()).await;
    until("all know that it ends", || one.items()[0].status["phase"] == "Ending").await;
    assert_eq!(one.items()[0].status["message"], order.why);
    drop(live);
    until("it is gone", || one.names().is_empty() && two.names().is_empty()).await;
    // It is too late for that.
    one.share.end(&at_one, "eve").await.unwrap();
    until("that is taken away, too", || named(&server, "sessions.end.").is_empty()).await;
    for replica in [one, two, three] {
        replica.leave().await;
    }
}

#[tokio::test]
async fn an_order_that_comes_too_late_or_is_about_another_session_ends_nothing() {
    let server = ApiServer::start().await;
    let one = Replica::start(&server, "one").await;
    let live = one.enter("web");
    let entry = live.entry().clone();
    let instance =
        || named(&server, "sessions.").first().and_then(|name| name.split('.').nth(1).map(str::to_owned));
    until("its sheet is there", || instance().is_some()).await;
    // Asked once: the name of an order may come before that of the sheet.
    let instance = instance().unwrap();
    let order = |uid: &str, at: u64| {
        json!({
            "instance": instance, "namespace": "shop", "name": entry.name, "uid": uid, "by": "eve",
            "at": at,
        })
        .to_string()
    };
    put(&server, "sessions.end.other", &order("other", 0));
    put(&server, &format!("sessions.end.{}", entry.uid), &order(&entry.uid, 4000));
    until("both are taken away", || named(&server, "sessions.end.").is_empty()).await;
    put(&server, "sessions.end.misnamed", &order(&entry.uid, 0));
    put(&server, "sessions.end.nothing", "{");
    // What is seen after these is seen.
    put(&server, "sessions.other.1", &sheet(None, &[session("web-far")]));
    until("the other is seen", || one.names().contains(&"web-far".to_owned())).await;
    assert_eq!(entry.state().ending, None);
    put(&server, &format!("sessions.end.{}", entry.uid), &order(&entry.uid, 0));
    assert_eq!(soon("an order in time", live.ordered()).await.why, "this session was ended by eve");
    drop(live);
    one.end().await;
}

#[tokio::test]
async fn a_replica_that_was_killed_is_no_longer_shown_and_then_cleaned_up_after() {
    let server = ApiServer::start().await;
    let one = Replica::with(&server, "one", None, IMPATIENT).await;
    let two = Replica::start(&server, "two").await;
    let mut changes = one.objects.changes(None, one.sessions.live().all(None).1);
    let mut next = async || soon("a change", changes.next()).await.unwrap().unwrap();
    let live = two.enter("web");
    let name = live.entry().name.clone();
    assert_eq!(next().await.after.unwrap().name(), name);
    two.end().await;
    let since = Instant::now();
    put(&server, "sessions.dead.1", &sheet(None, &[session("web-dead")]));
    let own = one.enter("mine");
    let (mut shown, mut gone) = (None, BTreeSet::new());
    while gone.len() < 2 {
        let change = next().await;
        match (change.before, change.after) {
            (_, Some(item)) if item.name() == "web-dead" => shown = Some(item),
            (Some(item), None) => drop(gone.insert(item.name().to_owned())),
            _ => {}
        }
    }
    assert_eq!(gone, BTreeSet::from([name, "web-dead".to_owned()]));
    assert!(since.elapsed() > IMPATIENT.stale, "{:?}", since.elapsed());
    assert_eq!(one.names(), [own.entry().name.clone()]);
    let item = shown.unwrap();
    assert_eq!(item.metadata.labels.unwrap().len(), 1, "labels of the group alone");
    assert!(!item.cells.iter().any(|cell| cell.as_str().unwrap_or_default().contains('\u{1b}')));
    let mine = || named(&server, "sessions.").iter().all(|name| name.starts_with(&own_prefix(&one)));
    until("nothing of theirs is left", mine).await;
    assert!(since.elapsed() > IMPATIENT.dead, "{:?}", since.elapsed());
    one.leave().await;
}

fn own_prefix(replica: &Replica) -> String {
    format!("sessions.{}.", replica.share.me.instance)
}

#[tokio::test]
async fn what_a_former_process_of_the_pod_left_goes_at_once() {
    let server = ApiServer::start().await;
    put(&server, "sessions.former.1", &sheet(Some("pod-1"), &[session("web-old")]));
    put(&server, "sessions.living.1", &sheet(Some("pod-2"), &[session("web-new")]));
    let slow = Times { dead: Duration::from_secs(3600), stale: Duration::from_secs(1800), ..TIMES };
    let one = Replica::with(&server, "one", Some("pod-1"), slow).await;
    assert_eq!(one.names(), ["web-new"]);
    until("it is deleted", || named(&server, "sessions.former").is_empty()).await;
    assert_eq!(named(&server, "sessions.living").len(), 1);
    until("its own is there", || !named(&server, &own_prefix(&one)).is_empty()).await;
    let maps = server.all(CONFIG_MAPS);
    let mine = maps.iter().find(|map| map.to_string().contains(&own_prefix(&one))).unwrap();
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "one", "uid": "pod-1"}]);
    assert_eq!(mine["metadata"]["ownerReferences"], owner);
    one.leave().await;
}

#[tokio::test]
async fn garbage_is_ignored_disturbs_nothing_and_is_written_over() {
    let server = ApiServer::start().await;
    let (one, two) = (Replica::start(&server, "one").await, Replica::start(&server, "two").await);
    let live = two.enter("web");
    let name = live.entry().name.clone();
    until("it is shown", || one.names() == [name.clone()]).await;
    let bad = session("..");
    let mut worse = session("web-x");
    worse["session"]["status"] = json!(7);
    for (name, text) in [
        ("sessions.x.1", "{"),
        ("sessions.x.2", "null"),
        ("sessions.x.many", ""),
        ("sessions.x.+7", &sheet(None, &[session("web-z")])),
        ("sessions.", ""),
        ("other", "{}"),
        ("sessions.x.3", &sheet(None, &[session("web-y"), bad])),
        ("sessions.x.4", &sheet(None, &[worse])),
    ] {
        put(&server, name, text);
    }
    server.put(CONFIG_MAPS, json!({"metadata": {"namespace": "podgate", "name": "none-of-ours"}}));
    // The one sheet that has it, and the one that says that its process lives.
    let sheets = named(&server, &own_prefix(&two));
    assert_eq!(sheets.len(), 2);
    for sheet in &sheets {
        put(&server, sheet, "edited by hand");
    }
    put(&server, "sessions.good.1", &sheet(None, &[session("web-good")]));
    until("what comes after it is seen", || one.names().contains(&"web-good".to_owned())).await;
    assert_eq!(one.names().len(), 2, "{:?}", one.names());
    let readable = || {
        let maps = server.all(CONFIG_MAPS);
        let of_two = maps.iter().filter(|map| map.to_string().contains(&own_prefix(&two)));
        of_two.filter(|map| Sheet::read(map["data"]["sessions"].as_str().unwrap()).is_ok()).count() == 2
    };
    until("it is written anew", readable).await;
    for sheet in &sheets {
        server.delete(CONFIG_MAPS, &format!("podgate/{sheet}"));
    }
    until("it is written again", readable).await;
    until("it is shown still", || one.names().contains(&name)).await;
    drop(live);
    two.leave().await;
    one.end().await;
}

#[tokio::test]
async fn without_the_api_server_own_sessions_are_listed_and_others_are_for_a_while() {
    let server = ApiServer::start().await;
    let one = Replica::with(&server, "one", None, IMPATIENT).await;
    let two = Replica::start(&server, "two").await;
    let (own, far) = (one.enter("mine"), two.enter("web"));
    until("all know both", || one.names().len() == 2 && two.names().len() == 2).await;
    let known = two.far(&own.entry().name);
    server.stop().await;
    assert_eq!(two.share.end(&known, "eve").await.unwrap_err().code(), 503);
    until("the other's are not shown any more", || one.names() == [own.entry().name.clone()]).await;
    assert_eq!(two.names().len(), 2, "this one has more patience");
    let later = one.enter("more");
    assert_eq!(one.names().len(), 2);
    server.restart().await;
    until("all of them are there again", || one.names().len() == 3 && two.names().len() == 3).await;
    assert_eq!(own.entry().state().ending, None);
    drop((own, far, later));
    until("they are gone", || one.names().is_empty() && two.names().is_empty()).await;
    two.leave().await;
    one.leave().await;
}

#[tokio::test]
async fn many_sessions_are_spread_over_sheets_that_the_api_server_takes() {
    // Some sheets of them, and no more: without optimization each costs a slow machine seconds.
    const MANY: usize = 80;
    let server = ApiServer::start().await;
    let (one, two) = (Replica::start(&server, "one").await, Replica::start(&server, "two").await);
    let live = one.sessions.live();
    let mut changes = live.changes(live.all(None).1);
    let mut all: Vec<_> =
        (0..MANY).map(|n| two.run(&format!("p-{n}"), vec!["\u{1}\"".repeat(2000)])).collect();
    // One by one: how long they take in all is the machine's affair.
    let shown = || live.all(None).0.len();
    while shown() < MANY {
        soon("another that is shown", changes.next()).await.unwrap();
    }
    // They have more to say now, and none is away meanwhile.
    let (mut changes, long) = (live.changes(live.all(None).1), "x".repeat(500));
    for session in &all {
        session.runs(Carried { client_protocol: long.clone(), ..Carried::default() }, Arc::default());
    }
    let mut running = 0;
    while running < MANY {
        let (_, change) = soon("a change", changes.next()).await.unwrap();
        let Change::Far { before: Some(_), after: Some(far) } = &*change else { panic!("{change:?}") };
        running += usize::from(far.status["phase"] == "Running");
    }
    let texts = || -> Vec<usize> {
        let maps = server.all(CONFIG_MAPS);
        maps.iter().map(|map| map["data"]["sessions"].as_str().unwrap().len()).collect()
    };
    let sizes = texts();
    assert!(sizes.len() > 3 && sizes.iter().all(|size| *size <= 1 << 20), "{sizes:?}");
    all.truncate(1);
    while shown() > 1 {
        soon("another that is gone", changes.next()).await.unwrap();
    }
    drop(all);
    two.leave().await;
    one.leave().await;
    assert_eq!(server.all(CONFIG_MAPS), Vec::<Value>::new());
}

#[tokio::test]
async fn sessions_that_come_and_go_cost_a_write_now_and_then() {
    let server = ApiServer::start().await;
    let times = Times { pace: Duration::from_millis(300), beat: Duration::from_secs(3600), ..TIMES };
    let one = Replica::with(&server, "one", None, times).await;
    let started = Instant::now();
    for _ in 0..100 {
        drop(one.enter("web"));
        sleep(Duration::from_millis(10)).await;
    }
    let stays = one.enter("stays");
    let shown = || server.all(CONFIG_MAPS).iter().any(|map| map.to_string().contains(&stays.entry().name));
    until("the last one is told", shown).await;
    let most = started.elapsed().as_millis() / times.pace.as_millis() + 2;
    let writes = server.count("PUT ") + server.count("POST ");
    assert!(writes as u128 <= most, "{writes} in {:?}", started.elapsed());
    one.end().await;
}

#[tokio::test(start_paused = true)]
async fn clocks_go_on_since_they_were_told() {
    let told = Sheet::read(&sheet(None, &[session("web")])).unwrap().sessions.remove(0);
    let ago = |up| told.far("i".into(), Duration::from_secs(up)).told.elapsed();
    assert_eq!(ago(100), Duration::from_secs(90));
    assert_eq!(ago(0), Duration::ZERO, "of a process that says that it has been up for less");
}

#[tokio::test]
async fn what_is_left_of_limits_becomes_less_since_it_was_told() {
    let server = ApiServer::start().await;
    let one = Replica::start(&server, "one").await;
    let mut session = session("web");
    session["session"]["status"]["left"] =
        json!({"longestSeconds": 1000, "untilSeconds": 60, "sessionsPerUser": 3});
    put(&server, "sessions.other.1", &sheet(None, &[session]));
    until("it is shown", || !one.names().is_empty()).await;
    let status = one.items().remove(0).status;
    let seconds = |value: &Value| value.as_u64().unwrap();
    // It is 90 s ago, and a little more.
    assert!((95..200).contains(&seconds(&status["idleSeconds"])), "{status}");
    assert!((800..=910).contains(&seconds(&status["left"]["longestSeconds"])), "{status}");
    assert_eq!((&status["left"]["untilSeconds"], &status["left"]["sessionsPerUser"]), (&json!(0), &json!(3)));
    one.leave().await;
}
