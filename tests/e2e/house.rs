//! House rules, grants, live sessions and limits before a real API server: what people do with kubectl, and what comes of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::checks::{Said, feed, piped};
use crate::clients::Client;
use crate::podgate::{Podgate, is_ready};
use crate::real::Cluster;

/// The longest that a grant holds here: a pod has to start meanwhile, and kubectls are slow to start.
pub(crate) const LONGEST: Duration = Duration::from_secs(25);

/// What must happen within a second is given that.
const SECOND: Duration = Duration::from_secs(1);

/// How long what has changed may take to be felt.
const FELT: Duration = Duration::from_secs(5);

/// How long everything else may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// How often it is looked at what nobody tells.
const PAUSE: Duration = Duration::from_millis(200);

/// Those who ask, with a kubectl of one version.
pub(crate) struct House<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The kubeconfig of people who go through podgate.
    pub(crate) callers: &'a Path,
    pub(crate) client: &'a Client,
}

/// An exec that has begun.
struct Inside {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    /// Before its kubectl was started, and once it had said that it runs.
    asked: Instant,
    began: Instant,
}

// === impl House ===

impl House<'_> {
    fn kubectl(&self) -> PathBuf {
        PathBuf::from(&self.client.argv()[0])
    }

    /// Somebody's kubectl: `admin` is at the API server itself, all others go through podgate.
    fn command(&self, who: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.kubectl());
        // Homes are not shared: what versions of kubectl cache there does not mix.
        let home = self.cluster.home().join(&self.client.name);
        std::fs::create_dir_all(&home).unwrap();
        command.env("HOME", home);
        match who {
            "admin" => command.arg("--kubeconfig").arg(self.cluster.admin()),
            who => command.arg("--kubeconfig").arg(self.callers).args(["--context", who]),
        };
        command.args(["--namespace", &self.cluster.namespace]).args(args);
        command
    }

    async fn run(&self, who: &str, args: &[&str]) -> Said {
        feed(piped(&mut self.command(who, args)), b"").await
    }

    /// What somebody gets who is to get it.
    async fn ok(&self, who: &str, args: &[&str]) -> String {
        let said = self.run(who, args).await;
        assert_eq!(said.code, Some(0), "{args:?}: {}", said.err);
        String::from_utf8(said.out).unwrap()
    }

    /// What somebody is told who is refused.
    async fn refused(&self, who: &str, args: &[&str]) -> String {
        let said = self.run(who, args).await;
        assert_eq!(said.code, Some(1), "{args:?}: {}", text(&said.out));
        said.err
    }

    /// An exec of alice's, which says that it runs before it does this.
    async fn inside(&self, flags: &[&str], pod: &str, then: &str) -> Inside {
        let script = format!("echo in; {then}");
        let args = [&["exec"], flags, &[pod, "--", "sh", "-c", &script]].concat();
        let mut command = self.command("alice", &args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let asked = Instant::now();
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, out.next_line()).await.expect("a line").unwrap();
        if line.as_deref() != Some("in") {
            panic!("{line:?}: {}", text(&child.wait_with_output().await.unwrap().stderr));
        }
        Inside { child, out, asked, began: Instant::now() }
    }

    async fn apply(&self, policy: &Value) {
        let said = feed(
            piped(&mut self.command("admin", &["apply", "--validate=false", "-f", "-"])),
            policy.to_string().as_bytes(),
        )
        .await;
        assert_eq!(said.code, Some(0), "{}", said.err);
    }

    async fn unapply(&self, name: &str) {
        let name = self.cluster.global(name)["name"].as_str().unwrap().to_owned();
        self.ok("admin", &["delete", "execpolicy", &name]).await;
    }

    /// Tries `id` in a pod until what comes of it is as it should be: no try fails that begins later than what has changed
    /// is to be felt.
    async fn soon(&self, pod: &str, what: &str, is: impl Fn(&Said) -> bool) {
        let changed = Instant::now();
        loop {
            let began = changed.elapsed();
            let said = self.run("alice", &["exec", pod, "--", "id"]).await;
            if is(&said) {
                return;
            }
            assert!(began < FELT, "{what}: after {began:?} {}{}", text(&said.out), said.err);
        }
    }

    /// The names of live sessions in the run's namespace.
    async fn sessions(&self) -> Vec<String> {
        let names = self.ok("keeper", &["get", "sessions", "-o", "name"]).await;
        names.lines().map(str::to_owned).collect()
    }
}

// === impl Inside ===

impl Inside {
    /// What its kubectl says when it ends, with its code, and when that was.
    async fn end(mut self) -> (Said, Instant) {
        let (mut out, mut err) = (Vec::new(), String::new());
        let mut said = self.child.stderr.take().unwrap();
        let over = async {
            self.out.into_inner().read_to_end(&mut out).await.unwrap();
            said.read_to_string(&mut err).await.unwrap();
        };
        timeout(PATIENCE, over).await.expect("an end");
        let at = Instant::now();
        // It may wait for input that nobody sends.
        drop(self.child.stdin.take());
        let status = timeout(PATIENCE, self.child.wait()).await.expect("an end").unwrap();
        (Said { code: status.code(), out, err }, at)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The group is beside all others, with what the API server itself has of it.
pub(crate) async fn the_group_is_found(house: &House<'_>) {
    let group = house.ok("alice", &["api-resources", "--api-group=podgate.dev", "-o", "name"]).await;
    let names: Vec<_> = group.lines().collect();
    assert_eq!(names, ["execpolicies.podgate.dev", "grants.podgate.dev", "sessions.podgate.dev"]);
    let all = house.ok("alice", &["api-resources", "-o", "name"]).await;
    for name in ["pods", "deployments.apps", "sessions.podgate.dev"] {
        assert_eq!(all.lines().filter(|line| *line == name).count(), 1, "{name}: {all}");
    }
    let versions = house.ok("alice", &["api-versions"]).await;
    assert_eq!(versions.lines().filter(|line| *line == "podgate.dev/v1alpha1").count(), 1, "{versions}");
    let everything = house.ok("keeper", &["get", "all"]).await;
    assert!(everything.contains("pod/echo"), "{everything}");
    for known in ["pods.spec.containers", "deployments.spec.replicas", "execpolicies"] {
        let [here, there] =
            [house.ok("alice", &["explain", known]).await, house.ok("admin", &["explain", known]).await];
        assert_eq!(here, there);
    }
    let explained = house.run("alice", &["explain", "sessions.spec.user"]).await;
    // API servers of old have schemas of their own kinds only, and old kubectls read no others.
    let is = text(&explained.out).contains("The caller.") || explained.err.contains("ouldn't find resource");
    assert!(is, "{}{}", text(&explained.out), explained.err);
}

/// Who may sees sessions come and go, and ends them; who may not is told by the API server's words.
pub(crate) async fn sessions_are_seen_and_ended(house: &House<'_>) {
    let first = house.inside(&["-i"], "echo", "cat").await;
    let mut watch = piped(&mut house.command("keeper", &["get", "sessions", "-A", "-w"]));
    let mut rows = BufReader::new(watch.stdout.take().unwrap()).lines();
    let shown = async |rows: &mut Lines<BufReader<ChildStdout>>, word: &str| {
        while !rows.next_line().await.unwrap().expect("a row").contains(word) {}
    };
    timeout(PATIENCE, shown(&mut rows, "e2e-alice")).await.expect("the session that was there");
    // Once the end of that one is told, so is all that comes after.
    drop(first.child);
    timeout(PATIENCE, shown(&mut rows, "ended")).await.expect("its end");

    let second = house.inside(&["-i"], "echo", "cat; second").await;
    timeout(SECOND, shown(&mut rows, "second")).await.expect("the session is shown within a second");
    let [name] = house.sessions().await.try_into().expect("one session");
    let bare = name.rsplit('/').next().unwrap();
    let described = house.ok("keeper", &["describe", &name]).await;
    assert!(described.contains("Kind:         Session") && described.contains("e2e-alice"), "{described}");
    for (args, verb, scope) in [
        (&["get", "sessions", "-A"][..], "list", "at the cluster scope".to_owned()),
        (&["delete", &name], "delete", format!("in the namespace \"{}\"", house.cluster.namespace)),
    ] {
        let object = if verb == "delete" { format!(" \"{bare}\"") } else { String::new() };
        let told = house.refused("mallory", args).await;
        let wanted = format!(
            "Error from server (Forbidden): sessions.podgate.dev{object} is forbidden: User \"e2e-mallory\" cannot \
             {verb} resource \"sessions\" in API group \"podgate.dev\" {scope}"
        );
        assert!(told.starts_with(&wanted), "{told}");
    }
    let args = ["delete", &name];
    let deleted = async { (house.ok("keeper", &args).await, Instant::now()) };
    let ((said, returned), (told, ended)) = tokio::join!(deleted, second.end());
    assert!(said.contains("deleted"), "{said}");
    assert_eq!(told.code, Some(1));
    assert!(told.err.contains("this session was ended by e2e-keeper"), "{}", told.err);
    assert!(ended < returned + SECOND, "{:?} after kubectl delete returned", ended - returned);
    timeout(SECOND, shown(&mut rows, "ended")).await.expect("its end is shown within a second");
    assert!(house.sessions().await.is_empty());
    watch.kill().await.unwrap();
}

/// A policy that is made, changed, spoilt and deleted changes what may happen within 5 s, or nothing.
pub(crate) async fn policies_change_what_may_happen(house: &House<'_>) {
    let rule = |message: &str| {
        json!({ "name": "ids", "match": { "users": ["e2e-alice"], "pods": ["echo"] }, "effect": "deny",
            "message": message })
    };
    let says = |message: &'static str| {
        move |said: &Said| {
            let name = format!("{}-rules/ids: {message}", house.cluster.namespace);
            said.code == Some(1) && said.err.contains(&name)
        }
    };
    let live = house.inside(&["-i"], "echo", "cat").await;
    house.apply(&house.cluster.policy("rules", &[rule("first")])).await;
    let applied = Instant::now();
    let (told, ended) = live.end().await;
    assert!(ended < applied + FELT, "{:?}", ended - applied);
    assert!(told.code == Some(1) && told.err.contains("-rules/ids: first"), "{}", told.err);
    house.soon("echo", "a policy that was made", says("first")).await;
    house.apply(&house.cluster.policy("rules", &[rule("second")])).await;
    house.soon("echo", "a policy that was changed", says("second")).await;

    let spoilt = |condition: Value| {
        let rule = json!({ "name": "spoilt", "match": condition, "effect": "deny", "message": "spoilt" });
        house.cluster.policy("spoilt", &[rule])
    };
    let name = spoilt(json!({}))["metadata"]["name"].as_str().unwrap().to_owned();
    for (condition, fault) in [
        (json!({ "cel": "user ==" }), "spec.rules[0].match.cel"),
        (json!({ "user": ["e2e-alice"] }), "unknown field `user`"),
    ] {
        house.apply(&spoilt(condition)).await;
        let told = async {
            loop {
                let described = house.ok("admin", &["describe", "execpolicy", &name]).await;
                if described.contains(fault) && described.contains("the last good ones stay") {
                    return;
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("no event tells of {fault}"));
        let refused = house.refused("alice", &["exec", "echo", "--", "id"]).await;
        assert!(refused.contains("-rules/ids: second"), "{refused}");
    }
    // As long as one is spoilt, what becomes of others counts for nothing.
    house.unapply("rules").await;
    sleep(SECOND).await;
    let refused = house.refused("alice", &["exec", "echo", "--", "id"]).await;
    assert!(refused.contains("-rules/ids: second"), "{refused}");
    house.unapply("spoilt").await;
    house.soon("echo", "policies that were deleted", |said| said.code == Some(0)).await;
}

/// A grant is asked for by what a refusal says, approved by somebody else, holds for the pod that comes after a rollout, and
/// ends what stands on it when it runs out.
pub(crate) async fn a_grant_lets_in_across_a_rollout(house: &House<'_>) {
    let cluster = house.cluster;
    let app = format!("{}-{}", house.client.pod("rollout"), std::process::id());
    let rule = json!({ "name": "two", "match": { "podLabels": { "matchLabels": { "app": app } } },
        "effect": "allow", "demands": { "grant": true }, "message": "it's for two" });
    house.apply(&cluster.policy("grants", &[rule])).await;
    let roll = async |number: usize| {
        let name = format!("{app}-{number}");
        let mut pod = cluster.pod(&name, &["sh", "-c", "exec sleep 10000"]);
        pod["metadata"]["labels"] = json!({ "app": app, "pod-template-hash": number.to_string() });
        cluster.create(&pod).await;
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod", &name], b"").await;
        name
    };
    let first = roll(1).await;
    let says = |said: &Said| said.code == Some(1) && said.err.contains("it's for two; it takes a grant");
    house.soon(&first, "a policy that demands a grant", says).await;

    let told = house.refused("alice", &["exec", &first, "--", "id"]).await;
    let (_, command) = told.split_once("ask for one with: ").unwrap();
    let asked = house.shell(command.trim_end()).await;
    let grant =
        text(&asked.out).strip_suffix(" created\n").unwrap_or_else(|| panic!("{}", asked.err)).to_owned();
    let (_, name) = grant.split_once('/').unwrap();
    let approve = ["annotate", &grant, "podgate.dev/approve=yes"];
    house.refused("alice", &approve).await;
    house.refused("alice", &["exec", &first, "--", "id"]).await;
    house.ok("keeper", &approve).await;
    assert!(house.ok("alice", &["exec", &first, "--", "echo", "in"]).await == "in\n");
    let kept = format!("grant.{}.{name}", cluster.namespace);
    let kept = cluster.kubectl(&["get", "configmap", &kept, "-o", "jsonpath={.data.grant}"], b"").await;
    assert!(kept.contains("e2e-keeper"), "{kept}");

    cluster.kubectl(&["delete", "pod", &first, "--force", "--grace-period=0"], b"").await;
    let second = roll(2).await;
    let inside = house.inside(&[], &second, "sleep 40").await;
    let until = house.ok("keeper", &["get", &grant, "-o", "jsonpath={.status.until}"]).await;
    let until: jiff::Timestamp = until.parse().unwrap();
    let (told, _) = inside.end().await;
    let late = until.duration_until(jiff::Timestamp::now());
    assert!(!late.is_negative() && late.unsigned_abs() < FELT, "{late}");
    let ran_out = format!("the grant {}/{name} has run out", cluster.namespace);
    assert!(told.code == Some(1) && told.err.contains(&ran_out), "{}", told.err);
    let told = house.refused("alice", &["exec", &second, "--", "id"]).await;
    assert!(told.contains("it takes a grant"), "{told}");
    house.ok("keeper", &["delete", &grant]).await;
    house.unapply("grants").await;
    cluster.kubectl(&["delete", "pod", &second, "--force", "--grace-period=0"], b"").await;
}

/// What bounds a session ends it, and its user reads why: with a terminal and without one.
pub(crate) async fn limits_are_told(house: &House<'_>) {
    const LONGEST: Duration = Duration::from_secs(4);
    const IDLE: Duration = Duration::from_secs(3);
    let rule = |name: &str, word: &str, limits: Value| {
        json!({ "name": name, "match": { "users": ["e2e-alice"], "cel": format!("command.exists(word, word.contains({word:?}))") },
            "effect": "allow", "limits": limits })
    };
    let rules = [
        rule("longest", "sleep 21", json!({ "longest": "4s" })),
        rule("idle", "sleep 22", json!({ "idle": "3s" })),
        json!({ "name": "known", "match": { "users": ["e2e-alice"], "command": [{ "argv": ["id"] }] }, "effect": "deny",
            "message": "limits are known" }),
    ];
    house.apply(&house.cluster.policy("limits", &rules)).await;
    house.soon("echo", "limits", |said| said.err.contains("limits are known")).await;
    let cells = [
        (
            "while :; do echo on; sleep 0.2; done; sleep 21",
            LONGEST,
            "this session has lasted 4s, as long as rule ",
        ),
        ("sleep 22", IDLE, "this session was idle for 3s, as long as rule "),
    ];
    for (script, limit, why) in cells {
        let inside = house.inside(&[], "echo", script).await;
        let (asked, began) = (inside.asked, inside.began);
        let (told, ended) = inside.end().await;
        assert!(told.code == Some(1) && told.err.contains(why), "{}", told.err);
        in_time(asked, began, ended, limit);
        let (shown, [asked, began, ended], code) = house.terminal(script, why).await;
        assert!(code == Some(1) || code == Some(130), "{code:?}: {shown}");
        in_time(asked, began, ended, limit);
    }
    house.unapply("limits").await;
    house.soon("echo", "no limits", |said| said.code == Some(0)).await;
}

fn in_time(asked: Instant, began: Instant, ended: Instant, limit: Duration) {
    assert!(ended - asked > limit && ended - began < limit + SECOND, "{:?} for {limit:?}", ended - began);
}

impl House<'_> {
    /// Does what a line for a shell says, as alice.
    async fn shell(&self, line: &str) -> Said {
        let bin = self.cluster.home().join(&self.client.name).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        // Of several calls the first makes it.
        let _ = std::os::unix::fs::symlink(self.kubectl(), bin.join("kubectl"));
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("PATH", format!("{}:{path}", bin.display()));
        command.env("HOME", self.cluster.home().join(&self.client.name)).env("KUBECONFIG", self.callers);
        feed(piped(&mut command), b"").await
    }

    /// An exec in a terminal until that shows why it ended: what it showed, when it was asked for, began and ended, and the
    /// client's code.
    async fn terminal(&self, then: &str, why: &str) -> (String, [Instant; 3], Option<i32>) {
        let (mut terminal, pts) = pty_process::open().unwrap();
        terminal.resize(pty_process::Size::new(30, 120)).unwrap();
        let script = format!("echo i''n; {then}");
        let plain = self.command("alice", &["exec", "-it", "echo", "--", "sh", "-c", &script]);
        let plain = plain.as_std();
        let mut command =
            pty_process::Command::new(plain.get_program()).args(plain.get_args()).kill_on_drop(true);
        for (key, value) in plain.get_envs() {
            command = command.env(key, value.unwrap_or_default());
        }
        let asked = Instant::now();
        let mut child = command.spawn(pts).unwrap();
        let (mut seen, mut began, mut bytes) = (String::new(), None, [0; 4096]);
        let ended = async {
            loop {
                // Reading fails when the last holder of the terminal is gone.
                let count = terminal.read(&mut bytes).await.unwrap_or(0);
                seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
                began = began.or_else(|| seen.contains("in\r\n").then(Instant::now));
                if seen.contains(why) || count == 0 {
                    return;
                }
            }
        };
        timeout(PATIENCE, ended).await.expect("an end");
        let at = Instant::now();
        assert!(seen.contains(why), "{seen}");
        // Nobody else reads what a terminal is full of.
        let drain = async { while terminal.read(&mut bytes).await.is_ok_and(|count| count > 0) {} };
        let (status, ()) = tokio::join!(child.wait(), drain);
        (seen, [asked, began.expect("a beginning"), at], status.unwrap().code())
    }
}

/// A podgate that is started while the API server is away allows nothing, and is not ready, until it has read the policies.
pub(crate) async fn nothing_is_allowed_before_the_policies_are_read(house: &House<'_>, mode: &str) {
    let cluster = house.cluster;
    let rule =
        json!({ "name": "away", "match": { "users": ["e2e-alice"] }, "effect": "deny", "message": "house" });
    house.apply(&cluster.policy("away", &[rule])).await;
    // Nobody listens there yet.
    let address = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let token = cluster.token_file(&cluster.namespace).await;
    let through = cluster.write_kubeconfig("through", &format!("https://{address}"), &token);
    let (identity, through) = (format!("{:?}", cluster.identity()), format!("{through:?}"));
    let config = cluster.config(mode, "{}").replace(&identity, &through);
    let (podgate, [api, admin]) = Podgate::serve(&config).await;
    let callers = std::fs::read_to_string(house.callers).unwrap();
    let mut callers: Value = serde_json::from_str(&callers).unwrap();
    callers["clusters"][0]["cluster"]["server"] = format!("https://{api}").into();
    let path = cluster.home().join("away.kubeconfig");
    std::fs::write(&path, callers.to_string()).unwrap();
    let away = House { callers: &path, ..*house };
    let exec = ["exec", "echo", "--", "echo", "in"];
    assert!(!is_ready(admin).await);
    assert!(!away.refused("alice", &exec).await.contains("policy"));
    let look = async {
        while !is_ready(admin).await {
            away.refused("alice", &exec).await;
        }
        let told = away.refused("alice", &exec).await;
        assert!(told.contains("-away/away: house"), "{told}");
    };
    let relay = TcpListener::bind(address).await.unwrap();
    tokio::select! {
        () = pass_on(&relay, cluster.server()) => {}
        looked = timeout(PATIENCE, look) => looked.expect("it is ready when the API server is back"),
    }
    podgate.stop(false).await;
    house.unapply("away").await;
    house.soon("echo", "a policy that was deleted", |said| said.code == Some(0)).await;
}

/// Passes connections on; goes on until it is dropped, and they with it.
async fn pass_on(relay: &TcpListener, to: &str) {
    let mut passing = tokio::task::JoinSet::new();
    loop {
        let (mut here, _) = relay.accept().await.unwrap();
        let mut there = TcpStream::connect(to).await.unwrap();
        passing.spawn(async move { drop(tokio::io::copy_bidirectional(&mut here, &mut there).await) });
    }
}
