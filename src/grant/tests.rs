use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::document::{Length, Phase, Selector};
use super::folder::Folder;
use super::store::{Error, Kept, Key};
use super::verbs::{Changed, MayApprove, Patch, Preconditions};
use super::*;
use crate::drain::Drained;
use crate::request::Subresource;
use crate::selector::Command;
use crate::status::Refusal;

mod replicas;

const NOON: &str = "2026-06-01T12:00:00Z";

/// Grants in a folder, at a time that a test sets.
struct World {
    grants: Grants,
    time: Arc<Mutex<Timestamp>>,
    folder: TempDir,
    background: Drain,
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn settings() -> Settings {
    Settings { longest: Duration::from_secs(12 * 3600), keep: Duration::from_secs(24 * 3600) }
}

impl World {
    fn new() -> Self {
        Self::of(tempfile::tempdir().unwrap(), NOON)
    }

    fn of(folder: TempDir, now: &str) -> Self {
        let book = Arc::new(Book::default());
        let store = Arc::new(Folder::open(folder.path(), book.clone()).unwrap());
        Self::over(store, book, folder, now)
    }

    fn over(store: Arc<dyn Store>, book: Arc<Book>, folder: TempDir, now: &str) -> Self {
        Self::within(Drain::new(), store, book, folder, now)
    }

    fn within(background: Drain, store: Arc<dyn Store>, book: Arc<Book>, folder: TempDir, now: &str) -> Self {
        let time = Arc::new(Mutex::new(at(now)));
        let told = time.clone();
        let clock: Clock = Arc::new(move || *told.lock().unwrap());
        let grants = Grants::start(store, book, settings(), clock, &background);
        Self { grants, time, folder, background }
    }

    fn set(&self, now: &str) {
        *self.time.lock().unwrap() = at(now);
    }

    async fn stop(self) -> TempDir {
        assert_eq!(self.background.finish(Duration::from_secs(5)).await, Drained::Clean);
        self.folder
    }

    async fn create(&self, who: &Person, object: Value) -> Result<Value, Refusal> {
        self.grants.create(who.who(), "shop", object, false).await
    }

    async fn patch(&self, who: &Person, patch: Value) -> Result<Value, Refusal> {
        self.grants.patch(who.who(), "shop", "fix", Patch::Merge(patch), yes(), false).await
    }

    async fn say(&self, who: &Person, word: &str) -> Result<Value, Refusal> {
        self.patch(who, json!({"metadata": {"annotations": {APPROVE: word}}})).await
    }

    /// Whether somebody gets into the pods of the shop with these labels by `exec`.
    fn lets(&self, who: &Person, labels: &[(&str, &str)]) -> Option<Held> {
        let labels = map(labels);
        let command = [b"id".to_vec()];
        let facts = Facts {
            namespace: "shop",
            labels: &labels,
            container: "app",
            subresource: Subresource::Exec,
            command: &command,
        };
        self.grants.matching(who.who(), &facts, self.grants.now())
    }

    /// The changes after this version that are known already.
    fn since(&self, version: u64) -> Result<Vec<Changed>, Refusal> {
        let mut changes = self.grants.changes(None, version);
        std::iter::from_fn(|| changes.next().now_or_never()).collect()
    }

    fn phase(&self) -> String {
        self.grants.get("shop", "fix").unwrap()["status"]["phase"].as_str().unwrap().to_owned()
    }
}

fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

const CART: [(&str, &str); 1] = [("app", "cart")];

struct Person {
    user: User,
    impersonator: Option<User>,
}

impl Person {
    fn who(&self) -> Who<'_> {
        Who::new(&self.user, self.impersonator.as_ref())
    }

    /// This person as somebody else.
    fn acting_as(self, other: Person) -> Self {
        Self { user: other.user, impersonator: Some(self.user) }
    }

    fn of(self, group: &str) -> Self {
        let user = User { groups: vec![group.to_owned()], ..self.user };
        Self { user, ..self }
    }
}

fn person(name: &str) -> Person {
    Person { user: User { name: name.to_owned(), ..User::default() }, impersonator: None }
}

/// What ana asks for: an hour in the pods of the cart.
fn wanted() -> Value {
    json!({
        "apiVersion": "podgate.dev/v1alpha1", "kind": "Grant",
        "metadata": {"name": "fix"},
        "spec": {
            "subject": {"user": "ana"},
            "selector": {"podLabels": {"matchLabels": {"app": "cart"}}},
            "reason": "INC-7",
            "until": "2026-06-01T13:00:00Z",
        },
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut object = wanted();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

fn without(pointer: &str) -> Value {
    with(pointer, Value::Null)
}

fn yes<'a>() -> MayApprove<'a> {
    future::ready(Ok(())).boxed()
}

fn forbidden(why: &str) -> String {
    format!("grants.podgate.dev \"fix\" is forbidden: {why}")
}

#[tokio::test]
async fn a_grant_counts_once_a_second_person_approved() {
    let world = World::new();
    let ana = person("ana");
    let made = world.create(&ana, wanted()).await.unwrap();
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["requestedBy"], "ana");
    assert_eq!(made["metadata"]["namespace"], "shop");
    assert_eq!(world.lets(&ana, &CART), None);

    let mut changed = world.grants.book.changed();
    let approved = world.say(&person("bob"), "yes").await.unwrap();
    assert_eq!(approved["status"]["phase"], "Active");
    assert_eq!(approved["status"]["approvals"], json!([{"by": "bob", "at": NOON}]));
    assert_eq!(approved["metadata"].get("annotations"), None, "the word is not kept");
    assert!(changed.has_changed().unwrap());
    let held = Held { name: "fix".into(), reason: "INC-7".into(), until: at("2026-06-01T13:00:00Z") };
    assert_eq!(world.lets(&ana, &CART), Some(held));
    assert_eq!(world.lets(&ana, &[("app", "other")]), None);
    assert_eq!(world.lets(&person("eve"), &CART), None);
    assert_eq!(world.lets(&person("bob"), &CART), None);

    changed.mark_unchanged();
    world.say(&person("eve"), "no").await.unwrap();
    assert!(changed.has_changed().unwrap());
    assert_eq!((world.phase().as_str(), world.lets(&ana, &CART)), ("Denied", None));
    let again = world.say(&person("bob"), "yes").await.unwrap_err();
    assert_eq!(again.message(), forbidden("\"eve\" has denied it; ask for another one"));
    world.stop().await;
}

#[tokio::test]
async fn nobody_approves_for_themselves_whoever_they_pretend_to_be() {
    let own = forbidden("a second person has to approve it, not the one who asked for it");
    let covered = forbidden("a second person has to approve it, not one whom it lets in");
    let oncall = || with("/spec/subject", json!({"group": "oncall"}));
    let as_bob = || person("ana").acting_as(person("bob"));
    let cases = [
        ("herself", person("ana"), wanted(), person("ana"), &own),
        ("as bob", person("ana"), wanted(), as_bob(), &own),
        ("asked as bob, approves as herself", as_bob(), wanted(), person("ana"), &own),
        ("asked as bob, approves as eve", as_bob(), wanted(), person("ana").acting_as(person("eve")), &own),
        ("asked as bob, bob approves", as_bob(), wanted(), person("bob"), &own),
        ("bob as her", person("carl"), wanted(), person("bob").acting_as(person("ana")), &covered),
        ("carl asked, she approves", person("carl"), wanted(), person("ana"), &covered),
        ("carl asked, she approves as bob", person("carl"), wanted(), as_bob(), &covered),
        ("one of the group", person("carl"), oncall(), person("bob").of("oncall"), &covered),
        (
            "one of the group, as one who is not",
            person("carl"),
            oncall(),
            person("bob").of("oncall").acting_as(person("eve")),
            &covered,
        ),
        (
            "one who acts as one of the group",
            person("carl"),
            oncall(),
            person("bob").acting_as(person("eve").of("oncall")),
            &covered,
        ),
        ("who asked for the group", person("carl"), oncall(), person("carl"), &own),
        (
            "nobody",
            person("carl"),
            wanted(),
            person("system:anonymous"),
            &forbidden("nobody can approve a grant without saying who they are"),
        ),
    ];
    for (case, asks, object, approves, why) in cases {
        let world = World::new();
        world.create(&asks, object).await.unwrap();
        let refused = world.say(&approves, "yes").await.unwrap_err();
        assert_eq!(&refused.message(), why, "{case}");
        assert_eq!(refused.code(), 403, "{case}");
        assert_eq!(world.phase(), "Pending", "{case}");
        world.stop().await;
    }
}

#[tokio::test]
async fn whoever_approved_for_a_group_does_not_get_in_by_joining_it() {
    let world = World::new();
    world.create(&person("ana"), with("/spec/subject", json!({"group": "oncall"}))).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    assert!(world.lets(&person("ana").of("oncall"), &CART).is_some());
    assert_eq!(world.lets(&person("bob").of("oncall"), &CART), None);
    let acting = person("bob").of("oncall").acting_as(person("eve").of("oncall"));
    assert_eq!(world.lets(&acting, &CART), None);
    // A second approval is another's word than his own.
    world.say(&person("carl"), "yes").await.unwrap();
    assert!(world.lets(&person("bob").of("oncall"), &CART).is_some());
    world.stop().await;
}

#[tokio::test]
async fn a_grant_is_the_persons_and_not_whom_they_act_as() {
    let world = World::new();
    world.create(&person("ana"), wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    assert_eq!(world.lets(&person("eve").acting_as(person("ana")), &CART), None);
    assert!(world.lets(&person("ana").acting_as(person("deployer")), &CART).is_some());
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_granted_is_refused_with_all_that_is_wrong() {
    let world = World::new();
    let invalid = |what: &str| format!("Grant.podgate.dev \"fix\" is invalid: {what}");
    let everything = "spec.selector: Required value: name labels that the pods have, containers or a command; to mean \
                      every pod of the namespace say everything: true";
    let selector = |value: Value| with("/spec/selector", value);
    let labels = |value: Value| with("/spec/selector/podLabels", value);
    let cases = [
        (
            with("/spec/until", json!("2026-06-01T11:59:59Z")),
            "spec.until: Invalid value: \"2026-06-01T11:59:59Z\": is in the past; it is 2026-06-01T12:00:00Z now",
        ),
        (
            with("/spec/until", json!(NOON)),
            "spec.until: Invalid value: \"2026-06-01T12:00:00Z\": is in the past; it is 2026-06-01T12:00:00Z now",
        ),
        (
            without("/spec/until"),
            "spec.until: Required value: a grant needs an end: an instant, or a duration",
        ),
        (
            with("/spec/duration", json!("1h")),
            "spec.duration: Forbidden: a grant ends at an instant or after a duration, not both",
        ),
        (
            with("/spec/until", json!("2026-06-02T00:00:01Z")),
            "spec.until: Invalid value: \"2026-06-02T00:00:01Z\": a grant may last 12h at most",
        ),
        (
            with("/spec/until", json!("9999-12-30T00:00:00Z")),
            "spec.until: Invalid value: \"9999-12-30T00:00:00Z\": a grant may last 12h at most",
        ),
        (selector(json!({})), everything),
        (selector(json!({"containers": ["*"]})), everything),
        (selector(json!({"containers": ["app", "**"]})), everything),
        (selector(json!({"podLabels": {}})), everything),
        (selector(json!({"subresources": ["exec", "attach", "portforward"]})), everything),
        (selector(json!({"subresources": ["exec"]})), everything),
        (labels(json!({"matchExpressions": [{"key": "no", "operator": "DoesNotExist"}]})), everything),
        (
            labels(json!({"matchExpressions": [{"key": "no", "operator": "NotIn", "values": ["x"]}]})),
            everything,
        ),
        (
            with("/spec/selector/everything", json!(true)),
            "spec.selector.everything: Forbidden: what is selected is not everything",
        ),
        (
            selector(json!({"command": {"argv": ["id"]}, "subresources": ["attach"]})),
            "spec.selector.command: Forbidden: only exec has a command",
        ),
        (selector(json!({"command": {"glob": "*"}})), everything),
        (without("/spec/subject"), "spec.subject: Required value: a user or a group has to be named"),
        (
            with("/spec/subject", json!({"user": "ana", "group": "oncall"})),
            "spec.subject: Forbidden: a grant is for a user or for a group, not for both",
        ),
        (
            with("/spec/subject", json!({"user": ""})),
            "spec.subject.user: Required value: a name has to be given",
        ),
        (without("/spec/reason"), "spec.reason: Required value: say what it is for"),
        (
            with("/spec/reason", json!("a\u{1b}[2J")),
            "spec.reason: Invalid value: must not hold control characters",
        ),
        (
            with("/metadata/annotations", json!({APPROVE: "yes"})),
            "metadata.annotations[podgate.dev/approve]: Forbidden: a grant is approved by somebody else, once it is there",
        ),
    ];
    for (object, what) in cases {
        let refused = world.create(&person("ana"), object).await.unwrap_err();
        assert_eq!(refused.message(), invalid(what));
        assert_eq!(refused.code(), 422);
    }
    let mut two = without("/spec/reason");
    two["spec"]["until"] = Value::Null;
    let refused = world.create(&person("ana"), two).await.unwrap_err();
    let both = "[spec.reason: Required value: say what it is for, spec.until: Required value: a grant needs an end: an \
                instant, or a duration]";
    assert_eq!(refused.message(), invalid(both));
    for (length, what) in [
        ("0s", "must be greater than zero"),
        ("12h0m1s", "a grant may last 12h at most"),
        ("9000000h", "a grant may last 12h at most"),
    ] {
        let mut object = without("/spec/until");
        object["spec"]["duration"] = length.into();
        let refused = world.create(&person("ana"), object).await.unwrap_err().message();
        assert!(
            refused.starts_with(&invalid("spec.duration: Invalid value")) && refused.ends_with(what),
            "{refused}"
        );
    }
    assert_eq!(world.grants.list(None).items, Vec::<Value>::new());
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_400_with_its_path() {
    let world = World::new();
    let bad = |what: &str| format!("Grant in version \"v1alpha1\" cannot be handled as a Grant: {what}");
    for (object, what) in [
        (with("/spec/selector/podlabels", json!({})), "spec.selector.podlabels: unknown field `podlabels`"),
        (with("/spec/untill", json!("x")), "spec.untill: unknown field `untill`"),
        (with("/spec/until", json!("tomorrow")), "spec.until: failed to parse"),
        (with("/spec/until", json!(7)), "spec.until: invalid type"),
        (with("/kind", json!("Pod")), "the kind is \"Pod\""),
        (json!({"metadata": {"name": "fix"}, "spec": 7}), "spec: invalid"),
        (
            with("/spec/selector/podLabels", json!({"matchExpressions": [{"key": "a", "operator": "In"}]})),
            "spec.selector.podLabels.matchExpressions[0]: In takes some values",
        ),
        (
            with("/spec/selector/subresources", json!(["logs"])),
            "spec.selector.subresources[0]: unknown variant `logs`, expected one of `exec`, `attach`, `portforward`",
        ),
        (with("/spec/selector/command", json!({"prefix": []})), "spec.selector.command.prefix: is empty"),
        (with("/spec/selector/containers", json!([""])), "spec.selector.containers[0]: is empty"),
    ] {
        let refused = world.create(&person("ana"), object).await.unwrap_err();
        assert!(refused.message().starts_with(&bad(what)), "{}", refused.message());
        assert_eq!(refused.code(), 400);
    }
    for length in ["-1h", "1y", "soon", ""] {
        let mut object = without("/spec/until");
        object["spec"]["duration"] = length.into();
        let refused = world.create(&person("ana"), object).await.unwrap_err();
        let what = format!("spec.duration: {length:?} is no length of time, such as 2h or 1h30m");
        assert_eq!(refused.message(), bad(&what));
    }
    for object in [json!(null), json!([]), json!("grant"), json!({"spec": null})] {
        assert!(world.create(&person("ana"), object).await.is_err());
    }
    world.stop().await;
}

#[tokio::test]
async fn everything_is_granted_where_that_is_said() {
    let world = World::new();
    world.create(&person("ana"), with("/spec/selector", json!({"everything": true}))).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    assert!(world.lets(&person("ana"), &[]).is_some());
    assert_eq!(world.grants.list(Some("other")).items, Vec::<Value>::new());
    let (labels, none) = (BTreeMap::new(), Vec::new());
    let elsewhere = Facts {
        namespace: "bank",
        labels: &labels,
        container: "app",
        subresource: Subresource::Exec,
        command: &none,
    };
    assert_eq!(
        world.grants.matching(person("ana").who(), &elsewhere, at(NOON)),
        None,
        "of its namespace only"
    );
    world.stop().await;
}

#[test]
fn selectors_are_about_what_they_say() {
    let select = |value: Value| -> Selector { serde_json::from_value(value).unwrap() };
    let labels = map(&[("app", "cart"), ("tier", "web")]);
    let words = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
    let matches = |selector: Value, container: &str, subresource: Subresource, command: &[&str]| {
        let command = words(command);
        let facts = Facts { namespace: "shop", labels: &labels, container, subresource, command: &command };
        select(selector).matches(&facts)
    };
    let expression = |key: &str, operator: &str, values: &[&str]| {
        let mut one = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            one["values"] = json!(values);
        }
        json!({"podLabels": {"matchExpressions": [one]}})
    };
    for (selector, is) in [
        (json!({"podLabels": {"matchLabels": {"app": "cart", "tier": "web"}}}), true),
        (json!({"podLabels": {"matchLabels": {"app": "cart", "tier": "db"}}}), false),
        (json!({"podLabels": {"matchLabels": {"app": ""}}}), false),
        (expression("app", "In", &["x", "cart"]), true),
        (expression("app", "In", &["x"]), false),
        (expression("gone", "In", &["x"]), false),
        (expression("app", "NotIn", &["cart"]), false),
        (expression("gone", "NotIn", &["cart"]), true),
        (expression("app", "Exists", &[]), true),
        (expression("gone", "Exists", &[]), false),
        (expression("app", "DoesNotExist", &[]), false),
        (expression("gone", "DoesNotExist", &[]), true),
        (json!({"containers": ["ap*"]}), true),
        (json!({"containers": ["side", "web"]}), false),
        (json!({"subresources": ["attach"]}), false),
        (json!({"subresources": ["attach", "exec"]}), true),
        (json!({"command": {"argv": ["ls", "-l"]}}), true),
        (json!({"command": {"argv": ["ls"]}}), false),
        (json!({"command": {"prefix": ["ls"]}}), true),
        (json!({"command": {"prefix": ["ls", "-l", "-a"]}}), false),
        (json!({"command": {"prefix": ["l"]}}), false),
        (json!({"command": {"glob": "ls -*"}}), true),
        (json!({"command": {"glob": "*sh"}}), false),
    ] {
        assert_eq!(matches(selector.clone(), "app", Subresource::Exec, &["ls", "-l"]), is, "{selector}");
    }
    // A port-forward has no container and no command.
    assert!(!matches(json!({"containers": ["*"]}), "", Subresource::PortForward, &[]));
    assert!(!matches(json!({"command": {"prefix": ["ls"]}}), "app", Subresource::Attach, &[]));
    let bytes = Command::Argv(vec!["\u{fffd}".to_owned()]);
    let selector = Selector { command: Some(bytes), ..Selector::default() };
    let raw = [vec![0xff]];
    let facts = Facts {
        namespace: "shop",
        labels: &labels,
        container: "app",
        subresource: Subresource::Exec,
        command: &raw,
    };
    assert!(!selector.matches(&facts), "bytes that are no text are no word");
}

#[tokio::test]
async fn a_grant_outlives_a_rollout_and_ends_at_its_instant() {
    let world = World::new();
    let ana = person("ana");
    world.create(&ana, wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    for hash in ["7d9f", "8c6b", "9a01"] {
        assert!(world.lets(&ana, &[("app", "cart"), ("pod-template-hash", hash)]).is_some());
    }
    world.set("2026-06-01T12:59:59.999999999Z");
    assert!(world.lets(&ana, &CART).is_some());
    world.set("2026-06-01T13:00:00Z");
    assert_eq!(world.lets(&ana, &CART), None);
    assert_eq!(world.phase(), "Expired");
    let late = world.say(&person("bob"), "yes").await.unwrap_err();
    assert_eq!(late.message(), forbidden("it has expired; ask for another one"));
    world.stop().await;
}

#[tokio::test]
async fn a_duration_begins_with_the_approval() {
    let world = World::new();
    let mut object = without("/spec/until");
    object["spec"]["duration"] = "1h30m".into();
    let made = world.create(&person("ana"), object).await.unwrap();
    assert_eq!(made["spec"]["duration"], "1h30m");
    world.set("2026-06-01T18:00:00Z");
    let approved = world.say(&person("bob"), "yes").await.unwrap();
    assert_eq!(approved["status"]["until"], "2026-06-01T19:30:00Z");
    // Another approval adds no time.
    world.set("2026-06-01T19:00:00Z");
    let again = world.say(&person("carl"), "yes").await.unwrap();
    assert_eq!(again["status"]["until"], "2026-06-01T19:30:00Z");
    world.set("2026-06-01T19:29:59Z");
    assert!(world.lets(&person("ana"), &CART).is_some());
    world.set("2026-06-01T19:30:00Z");
    assert_eq!(world.lets(&person("ana"), &CART), None);
    world.stop().await;
}

#[tokio::test]
async fn a_request_that_nobody_answers_runs_out() {
    let world = World::new();
    let mut object = without("/spec/until");
    object["spec"]["duration"] = "1h".into();
    world.create(&person("ana"), object).await.unwrap();
    world.set("2026-06-08T11:59:59Z");
    assert_eq!(world.phase(), "Pending");
    world.set("2026-06-08T12:00:00Z");
    assert_eq!(world.phase(), "Expired");
    assert_eq!(world.say(&person("bob"), "yes").await.unwrap_err().code(), 403);
    world.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_put_back_brings_nothing_back() {
    let world = World::new();
    let ana = person("ana");
    world.create(&ana, wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    world.set("2026-06-01T13:00:00Z");
    assert_eq!(world.lets(&ana, &CART), None);
    world.set(NOON);
    assert_eq!(world.lets(&ana, &CART), None);
    assert_eq!(world.phase(), "Expired");
    assert_eq!(world.say(&person("bob"), "yes").await.unwrap_err().code(), 403);
    // What is asked for after that counts by the clock as it is.
    let mut next = wanted();
    next["metadata"]["name"] = "next".into();
    world.create(&ana, next).await.unwrap();
    let approve = json!({"metadata": {"annotations": {APPROVE: "yes"}}});
    let bob = person("bob");
    world.grants.patch(bob.who(), "shop", "next", Patch::Merge(approve), yes(), false).await.unwrap();
    assert_eq!(world.lets(&ana, &CART).unwrap().name, "next");

    // Nor does a restart, once it is written down.
    let mut changed = world.grants.book.changed();
    while !fixed(world.folder.path()).contains("\"Expired\"") {
        changed.changed().await.unwrap();
    }
    let world = World::of(world.stop().await, NOON);
    assert_eq!(world.phase(), "Expired");
    assert_eq!(world.lets(&ana, &CART).unwrap().name, "next");
    world.stop().await;
}

fn fixed(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("shop.fix.json")).unwrap()
}

#[tokio::test]
async fn times_are_told_in_whole_seconds() {
    let world = World::new();
    world.set("2026-06-01T12:00:00.7Z");
    let mut object = without("/spec/until");
    object["spec"]["duration"] = "1h".into();
    world.create(&person("ana"), object).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    let mut other = with("/spec/until", json!("2026-06-01T13:00:00.7Z"));
    other["metadata"]["name"] = "other".into();
    world.create(&person("ana"), other).await.unwrap();
    let told = world.grants.list(None).items;
    assert_eq!(told[0]["status"]["until"], "2026-06-01T13:00:00Z");
    assert_eq!(told[1]["spec"]["until"], "2026-06-01T13:00:00Z");
    assert!(told.iter().all(|grant| !grant.to_string().contains(".7Z")), "{told:?}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_to_those_who_watch() {
    let world = World::new();
    world.create(&person("ana"), wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    let version = world.grants.list(None).version;
    let mut changes = world.grants.changes(None, version);
    world.set("2026-06-01T13:00:01Z");
    let told = tokio::time::timeout(Duration::from_secs(1), changes.next()).await.unwrap().unwrap();
    assert_eq!(told.after.unwrap()["status"]["phase"], "Expired");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_long_over_goes() {
    let world = World::new();
    world.create(&person("ana"), wanted()).await.unwrap();
    world.set("2026-06-02T13:00:00Z");
    let mut changed = world.grants.book.changed();
    while world.phase() != "Expired" {
        changed.changed().await.unwrap();
    }
    world.set("2026-06-02T13:00:01Z");
    while world.grants.get("shop", "fix").is_ok() {
        changed.changed().await.unwrap();
    }
    world.stop().await;
}

#[tokio::test]
async fn another_specification_is_another_request() {
    let world = World::new();
    let (ana, bob) = (person("ana"), person("bob"));
    world.create(&ana, wanted()).await.unwrap();
    world.say(&bob, "yes").await.unwrap();
    let wider = json!({"spec": {"selector": {"podLabels": {"matchLabels": {"app": null, "tier": "web"}}}}});
    let refused = world.patch(&bob, wider.clone()).await.unwrap_err();
    assert_eq!(refused.message(), forbidden("only \"ana\" can change what they asked for"));
    let as_ana = person("bob").acting_as(person("ana"));
    assert_eq!(world.patch(&as_ana, wider.clone()).await.unwrap_err().code(), 403);
    assert!(world.lets(&ana, &CART).is_some(), "nothing has changed");

    let changed = world.patch(&ana, wider).await.unwrap();
    assert_eq!(changed["status"]["phase"], "Pending");
    assert_eq!(changed["status"].get("approvals"), None);
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(world.lets(&ana, &[("tier", "web")]), None);
    world.say(&bob, "yes").await.unwrap();
    assert!(world.lets(&ana, &[("tier", "web")]).is_some());

    // Each of these is a change; the same again and what people note on it are none.
    for (patch, phase) in [
        (json!({"spec": {"until": "2026-06-01T13:00:00Z"}}), "Active"),
        (json!({"metadata": {"labels": {"team": "shop"}, "annotations": {"note": "x"}}}), "Active"),
        (json!({"status": {"phase": "Pending", "approvals": []}}), "Active"),
        (json!({"spec": {"until": "2026-06-01T14:00:00Z"}}), "Pending"),
        (json!({"spec": {"subject": {"user": "eve"}}}), "Pending"),
        (json!({"spec": {"reason": "another"}}), "Pending"),
    ] {
        world.say(&bob, "yes").await.unwrap();
        let changed = world.patch(&ana, patch.clone()).await.unwrap();
        assert_eq!(changed["status"]["phase"], phase, "{patch}");
    }
    let forged = json!({"status": {"phase": "Active", "approvals": [{"by": "bob", "at": NOON}]}});
    assert_eq!(world.patch(&ana, forged).await.unwrap()["status"]["phase"], "Pending");
    world.stop().await;
}

#[tokio::test]
async fn a_verdict_comes_alone_and_needs_the_right_to_it() {
    let world = World::new();
    let bob = person("bob");
    world.create(&person("ana"), wanted()).await.unwrap();
    let mut beside = json!({"metadata": {"annotations": {APPROVE: "yes", "note": "x"}}});
    let alone = "the annotation podgate.dev/approve approves or denies a grant as it is; nothing else can be changed \
                 with it";
    assert_eq!(world.patch(&bob, beside.clone()).await.unwrap_err(), Refusal::BadRequest(alone.into()));
    beside = json!({"metadata": {"annotations": {APPROVE: "yes"}}, "spec": {"reason": "more"}});
    assert_eq!(world.patch(&bob, beside).await.unwrap_err(), Refusal::BadRequest(alone.into()));
    let odd = world.say(&bob, "maybe").await.unwrap_err();
    assert_eq!(odd.code(), 422);
    let no = || future::ready(Err(Refusal::MethodNotAllowed)).boxed();
    let approve = Patch::Merge(json!({"metadata": {"annotations": {APPROVE: "yes"}}}));
    let refused = world.grants.patch(bob.who(), "shop", "fix", approve, no(), false).await;
    assert_eq!(refused.unwrap_err(), Refusal::MethodNotAllowed);
    assert_eq!(world.phase(), "Pending");
    // Nobody is asked about what is no verdict.
    let note = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    world.grants.patch(bob.who(), "shop", "fix", note, no(), false).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn replacing_needs_the_version_that_is_replaced() {
    let world = World::new();
    let ana = person("ana");
    let made = world.create(&ana, wanted()).await.unwrap();
    let update = |object: Value| world.grants.update(ana.who(), "shop", "fix", object, yes(), false);
    assert_eq!(update(wanted()).await.unwrap_err().code(), 422);
    let mut named = made.clone();
    named["metadata"]["name"] = "other".into();
    assert_eq!(update(named).await.unwrap_err().code(), 400);
    let mut moved = made.clone();
    moved["metadata"]["namespace"] = "bank".into();
    assert_eq!(update(moved).await.unwrap_err().code(), 422);
    let mut next = made.clone();
    next["spec"]["reason"] = "INC-8".into();
    let next = update(next).await.unwrap();
    assert_eq!(next["metadata"]["uid"], made["metadata"]["uid"]);
    let stale = update(made).await.unwrap_err();
    assert_eq!(
        stale.message(),
        "Operation cannot be fulfilled on grants.podgate.dev \"fix\": the object has been modified; please apply your \
         changes to the latest version and try again"
    );
    assert_eq!(stale.code(), 409);
    let version = json!({"metadata": {"resourceVersion": "1"}, "spec": {"reason": "INC-9"}});
    assert_eq!(world.patch(&ana, version).await.unwrap_err().code(), 409);
    assert_eq!(world.create(&ana, wanted()).await.unwrap_err().code(), 409);
    world.stop().await;
}

#[tokio::test]
async fn deleting_takes_away_what_was_granted() {
    let world = World::new();
    let ana = person("ana");
    let made = world.create(&ana, wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    let other = Preconditions { uid: Some("other".into()), ..Preconditions::default() };
    assert_eq!(world.grants.delete("shop", "fix", &other, false).await.unwrap_err().code(), 409);
    let this = Preconditions { uid: made["metadata"]["uid"].as_str().map(str::to_owned), ..other };
    assert!(world.grants.delete("shop", "fix", &this, true).await.is_ok());
    assert!(world.lets(&ana, &CART).is_some());
    world.grants.delete("shop", "fix", &this, false).await.unwrap();
    assert_eq!(world.lets(&ana, &CART), None);
    let gone = world.grants.delete("shop", "fix", &this, false).await.unwrap_err();
    assert_eq!(gone.message(), "grants.podgate.dev \"fix\" not found");
    world.stop().await;
}

#[tokio::test]
async fn applying_makes_a_grant_and_says_its_specification_whole() {
    let world = World::new();
    let ana = person("ana");
    let apply = |object: &Value| {
        let patch = Patch::read("application/apply-patch+yaml", object.to_string().as_bytes()).unwrap();
        world.grants.patch(ana.who(), "shop", "fix", patch, yes(), false)
    };
    let mut two = wanted();
    two["spec"]["selector"]["containers"] = json!(["app"]);
    let made = apply(&two).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    assert_eq!(apply(&two).await.unwrap()["status"]["phase"], "Active", "the same is no change");
    let narrower = apply(&wanted()).await.unwrap();
    assert_eq!(narrower["spec"]["selector"].get("containers"), None);
    assert_eq!(narrower["status"]["phase"], "Pending");
    assert_eq!(narrower["metadata"]["uid"], made["metadata"]["uid"]);
    let yaml = Patch::read("application/apply-patch+yaml; charset=utf-8", b"spec:\n  reason: x\n").unwrap();
    assert_eq!(yaml, Patch::Apply(json!({"spec": {"reason": "x"}})));
    world.stop().await;
}

#[test]
fn patches_of_other_kinds_are_refused() {
    let code = |media: &str, body: &[u8]| Patch::read(media, body).unwrap_err().code().as_u16();
    assert_eq!(code("application/strategic-merge-patch+json", b"{}"), 415);
    assert_eq!(code("application/json-patch+json", b"[]"), 415);
    assert_eq!(code("", b"{}"), 415);
    assert_eq!(code("application/merge-patch+json", b"[]"), 400);
    assert_eq!(code("application/merge-patch+json", b"{"), 400);
    assert_eq!(code("application/apply-patch+yaml", b"a: &a [*a]"), 400);
    let deep = "[".repeat(100_000);
    assert_eq!(code("application/merge-patch+json", &deep.as_bytes()[..60_000]), 400);
    assert_eq!(code("application/merge-patch+json", deep.as_bytes()), 413);
}

#[tokio::test]
async fn hostile_names_and_sizes_are_refused() {
    let world = World::new();
    let ana = person("ana");
    let long = "x".repeat(70_000);
    for name in ["../up", "a/b", "A", "", ".", "a..b", "-a", &"a".repeat(129), &long] {
        let refused = world.create(&ana, with("/metadata/name", json!(name))).await.unwrap_err();
        assert_eq!(refused.code(), 422, "{name:.20}");
        assert!(refused.message().len() < 2048);
    }
    let many =
        |count: usize| (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    let texts = |count: usize, length: usize| vec!["y".repeat(length); count];
    for object in [
        with("/spec/reason", json!(long)),
        with("/spec/subject/user", json!(long)),
        with("/spec/selector/containers", json!(texts(65, 1))),
        with("/spec/selector/containers", json!([long])),
        with("/spec/selector/containers", json!(texts(60, 4000))),
        with("/spec/selector/command", json!({"argv": texts(65, 1)})),
        with("/spec/selector/subresources", json!(texts(65, 1))),
        with("/spec/selector/podLabels/matchLabels", Value::Object(many(65))),
        with("/spec/selector/podLabels/matchLabels", json!({"a b": "c"})),
        with("/metadata/labels", Value::Object(many(65))),
        with("/metadata/labels", json!({"a": "b c"})),
        with("/metadata/annotations", json!({"note": long})),
        with("/metadata/annotations", json!({"bad key": ""})),
        with("/metadata/generateName", json!(long)),
    ] {
        let refused = match object["metadata"].get("generateName") {
            Some(_) => world.create(&ana, {
                let mut object = object.clone();
                object["metadata"]["name"] = Value::Null;
                object
            }),
            None => world.create(&ana, object),
        }
        .await;
        let refused = refused.unwrap_err();
        assert!([400, 422].contains(&refused.code().as_u16()), "{}", refused.message());
        assert!(refused.message().len() < 4096);
    }
    let shout = person(&long);
    assert!(world.create(&shout, wanted()).await.unwrap_err().message().len() < 4096);
    world.stop().await;
}

#[tokio::test]
async fn one_person_cannot_fill_the_store() {
    let world = World::new();
    let mut object = wanted();
    object["metadata"] = json!({"generateName": "g-"});
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..128 {
        let made = world.create(&person("ana"), object.clone()).await.unwrap();
        let name = made["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.len() == 7 && name.starts_with("g-"), "{name}");
        names.insert(name);
    }
    assert!(names.len() > 120);
    let refused = world.create(&person("ana"), object.clone()).await.unwrap_err();
    assert!(refused.message().contains("exceeded quota"), "{}", refused.message());
    assert_eq!(refused.code(), 403);
    world.create(&person("bob"), object).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_watcher_gets_every_change_in_order_or_is_told_to_list() {
    let world = World::new();
    let ana = person("ana");
    let start = world.grants.list(None).version;
    world.create(&ana, wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    world.grants.delete("shop", "fix", &Preconditions::default(), false).await.unwrap();
    let changes = world.since(start).unwrap();
    let phase = |value: &Option<Value>| value.as_ref().map(|value| value["status"]["phase"].clone());
    let seen: Vec<_> = changes.iter().map(|change| (phase(&change.before), phase(&change.after))).collect();
    let (pending, active) = (Some(json!("Pending")), Some(json!("Active")));
    assert_eq!(seen, [(None, pending.clone()), (pending, active.clone()), (active, None)]);
    assert!(changes.is_sorted_by_key(|change| change.version));
    assert_eq!(world.since(changes[1].version).unwrap(), changes[2..]);
    assert_eq!(world.since(start - 1).unwrap_err().code(), 410);
    let mut elsewhere = world.grants.changes(Some("bank"), start);
    let told = elsewhere.next().await.unwrap();
    assert_eq!(told, Changed { version: changes[0].version, before: None, after: None });
    world.stop().await;
}

#[tokio::test]
async fn a_file_that_holds_no_grant_lets_nobody_in() {
    let world = World::new();
    world.create(&person("ana"), wanted()).await.unwrap();
    world.say(&person("bob"), "yes").await.unwrap();
    let folder = world.stop().await;
    let text = fixed(folder.path());
    std::fs::write(folder.path().join("shop.cut.json"), &text[..text.len() / 2]).unwrap();
    std::fs::write(folder.path().join("bank.fix.json"), &text).unwrap();
    let world = World::of(folder, NOON);
    assert_eq!(world.grants.list(None).items.len(), 1);
    assert!(world.lets(&person("ana"), &CART).is_some(), "what is whole is still there");
    world.stop().await;
}

/// A store in which somebody else is first, so many times.
struct Contested(Folder, Mutex<usize>);

impl Store for Contested {
    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kept>, Error>> {
        self.0.read(key)
    }

    fn create<'a>(&'a self, key: &'a Key, grant: &'a Grant) -> BoxFuture<'a, Result<u64, Error>> {
        self.0.create(key, grant)
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        grant: &'a Grant,
        version: u64,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        async move {
            let first = {
                let mut left = self.1.lock().unwrap();
                *left = left.saturating_sub(1);
                *left > 0
            };
            if first && let Some(mut other) = self.0.read(key).await? {
                let notes = other.grant.metadata.labels.len();
                other.grant.metadata.labels.insert(format!("note-{notes}"), String::new());
                self.0.replace(key, &other.grant, other.version).await?;
            }
            self.0.replace(key, grant, version).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, version: u64) -> BoxFuture<'a, Result<(), Error>> {
        self.0.delete(key, version)
    }
}

/// A store that keeps what is new, and does not answer who wants something changed.
struct Deaf(Folder);

impl Store for Deaf {
    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kept>, Error>> {
        self.0.read(key)
    }

    fn create<'a>(&'a self, key: &'a Key, grant: &'a Grant) -> BoxFuture<'a, Result<u64, Error>> {
        self.0.create(key, grant)
    }

    fn replace<'a>(&'a self, _: &'a Key, _: &'a Grant, _: u64) -> BoxFuture<'a, Result<u64, Error>> {
        future::pending().boxed()
    }

    fn delete<'a>(&'a self, _: &'a Key, _: u64) -> BoxFuture<'a, Result<(), Error>> {
        future::pending().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_keeps_nobody_from_hearing_of_an_end() {
    let (folder, book) = (tempfile::tempdir().unwrap(), Arc::new(Book::default()));
    let store = Arc::new(Deaf(Folder::open(folder.path(), book.clone()).unwrap()));
    let world = World::over(store, book, folder, NOON);
    for (name, until) in [("fix", "2026-06-01T13:00:00Z"), ("next", "2026-06-01T14:00:00Z")] {
        let mut object = with("/spec/until", json!(until));
        object["metadata"]["name"] = name.into();
        world.create(&person("ana"), object).await.unwrap();
    }
    let mut concerns = world.grants.book.concerns();
    for end in ["2026-06-01T13:00:00Z", "2026-06-01T14:00:00Z"] {
        world.set(end);
        let told = tokio::time::timeout(Duration::from_secs(1), concerns.next()).await.unwrap().unwrap();
        assert_eq!(told.1.user.as_deref(), Some("ana"), "{end}");
    }
    world.stop().await;
}

#[tokio::test]
async fn every_change_of_a_grant_is_told_once_to_those_it_is_about() {
    let world = World::new();
    let mut concerns = world.grants.book.concerns();
    let mut told = || {
        let next = || concerns.next().now_or_never().map(|next| (*next.unwrap().1).clone());
        std::iter::from_fn(next).collect::<Vec<_>>()
    };
    let ana = Concern { namespace: "shop".into(), user: Some("ana".into()), group: None };
    world.create(&person("ana"), wanted()).await.unwrap();
    assert_eq!(told(), std::slice::from_ref(&ana));
    world.say(&person("bob"), "yes").await.unwrap();
    assert_eq!(told(), std::slice::from_ref(&ana));
    let for_all = json!({"spec": {"subject": {"user": null, "group": "oncall"}}});
    world.patch(&person("ana"), for_all).await.unwrap();
    let oncall = Concern { user: None, group: Some("oncall".into()), ..ana.clone() };
    assert_eq!(told(), [ana, oncall.clone()]);
    world.grants.delete("shop", "fix", &Preconditions::default(), false).await.unwrap();
    assert_eq!(told(), [oncall]);
    world.stop().await;
}

#[tokio::test]
async fn of_two_at_once_one_is_first_and_nothing_is_lost() {
    for (others, code) in [(3, None), (100, Some(409))] {
        let folder = tempfile::tempdir().unwrap();
        let book = Arc::new(Book::default());
        let store = Folder::open(folder.path(), book.clone()).unwrap();
        let store = Arc::new(Contested(store, Mutex::new(others)));
        let world = World::over(store, book, folder, NOON);
        world.create(&person("ana"), wanted()).await.unwrap();
        let done = world.say(&person("bob"), "yes").await;
        assert_eq!(done.as_ref().err().map(|refused| refused.code().as_u16()), code);
        if let Ok(approved) = done {
            assert_eq!(approved["metadata"]["labels"], json!({"note-0": "", "note-1": ""}));
            assert_eq!(world.phase(), "Active");
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn who_approves_what_is_changed_meanwhile_approves_nothing() {
    // Ana changes what she asks for between the moment at which bob's approval is read and the one at which it is kept.
    for named in [true, false] {
        let world = World::new();
        let (ana, bob) = (person("ana"), person("bob"));
        let made = world.create(&ana, wanted()).await.unwrap();
        let more = json!({"spec": {"selector": {"podLabels": null, "everything": true}}});
        let swap = async { world.patch(&ana, more).await.map(drop) };
        let mut approve = json!({"metadata": {"annotations": {APPROVE: "yes"}}});
        if named {
            approve["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
        }
        let said =
            world.grants.patch(bob.who(), "shop", "fix", Patch::Merge(approve), swap.boxed(), false).await;
        assert_eq!(said.unwrap_err().code(), 409);
        assert_eq!(world.phase(), "Pending");
        world.stop().await;
    }
}

#[test]
fn rows_show_what_is_to_be_known() {
    let mut object = wanted();
    object["metadata"]["namespace"] = "shop".into();
    object["status"] = json!({
        "phase": "Active", "requestedBy": "ana", "approvals": [{"by": "bob", "at": NOON}, {"by": "eve", "at": NOON}],
    });
    let cells = table::cells(&object);
    assert_eq!(cells, ["fix", "ana", "app=cart", "Active", "ana", "bob,eve", "2026-06-01T13:00:00Z"]);
    object["spec"]["until"] = Value::Null;
    object["spec"] = json!({
        "subject": {"group": "oncall"}, "duration": "2h", "reason": "x",
        "selector": {"everything": true, "subresources": ["exec", "attach"]},
    });
    object["status"] = json!({"phase": "Pending", "requestedBy": "x".repeat(100)});
    let cells = table::cells(&object);
    let long = format!("{}...", "x".repeat(77));
    let row =
        ["fix", "group oncall", "everything,exec|attach", "Pending", &long, "<none>", "2h once approved"];
    assert_eq!(cells, row);
    assert_eq!(Length(Duration::from_secs(5400)).to_string(), "1h30m");
    assert_eq!(Phase::default(), Phase::Pending);
}
