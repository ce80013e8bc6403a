use http::Request;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec};
use tempfile::TempDir;

use super::*;
use crate::dev::node::logs;
use crate::drain::Drained;
use crate::testing::{soon, until};
use crate::wire::remotecommand::TerminalSize;

const ALL: Asked = Asked { stdin: true, stdout: true, stderr: true, tty: false };

/// One pod, and everything that was reported of it.
struct One {
    pod: Arc<Pod>,
    told: Mutex<Vec<ContainerStatus>>,
}

impl Pods for One {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "shop" && name == "cart-0").then(|| self.pod.clone())
    }

    fn bound(&self, node: &str) -> Vec<Arc<Pod>> {
        if node == "one" { vec![self.pod.clone()] } else { Vec::new() }
    }

    fn report(&self, namespace: &str, pod: &str, status: ContainerStatus) {
        assert_eq!((namespace, pod), ("shop", "cart-0"));
        lock(&self.told).push(status);
    }
}

struct Harness {
    containers: Containers,
    pods: Arc<One>,
    drain: Drain,
    _dir: TempDir,
}

fn settings() -> Settings {
    Settings {
        first_delay: Duration::from_millis(20),
        longest_delay: Duration::from_millis(80),
        ..Settings::default()
    }
}

/// A container that runs a shell script; `more` may change it.
fn shell(script: &str, more: impl FnOnce(&mut Container)) -> Container {
    let mut container = Container {
        name: "app".to_owned(),
        command: Some(vec!["sh".to_owned(), "-c".to_owned()]),
        args: Some(vec![script.to_owned()]),
        stdin: Some(true),
        ..Container::default()
    };
    more(&mut container);
    container
}

impl Harness {
    fn start(container: Container, policy: &str) -> Self {
        Self::with(container, policy, settings())
    }

    fn with(container: Container, policy: &str, settings: Settings) -> Self {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("shop".to_owned());
        pod.metadata.name = Some("cart-0".to_owned());
        pod.spec = Some(PodSpec {
            node_name: Some("one".to_owned()),
            containers: vec![container],
            restart_policy: Some(policy.to_owned()),
            ..PodSpec::default()
        });
        let pods = Arc::new(One { pod: Arc::new(pod), told: Mutex::default() });
        let (dir, drain) = (tempfile::tempdir().unwrap(), Drain::new());
        let containers = Containers::with("one", pods.clone(), dir.path(), settings);
        containers.start(&drain);
        Self { containers, pods, drain, _dir: dir }
    }

    async fn attach(&self, asked: Asked) -> Attached {
        soon("an attachment", async {
            loop {
                if let Some(attached) = self.containers.attach("shop", "cart-0", "app", asked) {
                    return attached;
                }
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn get(&self, query: &str) -> (u16, String) {
        let uri = format!("/containerLogs/shop/cart-0/app?{query}");
        let answer = logs::answer(&self.containers, &Request::get(uri).body(()).unwrap()).unwrap();
        let status = answer.status().as_u16();
        let body = soon("the end of a log", answer.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until the log has this text.
    async fn logged(&self, text: &str) {
        soon("a line in the log", async {
            while !self.get("").await.1.contains(text) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Waits for so many reports.
    async fn told(&self, count: usize) -> Vec<ContainerStatus> {
        until("reports", || lock(&self.pods.told).len() >= count).await;
        lock(&self.pods.told)[..count].to_vec()
    }

    /// Fails when a task, and with it a process that was not reaped, is left.
    async fn stop(self) {
        assert_eq!(self.drain.finish(Duration::from_secs(20)).await, Drained::Clean);
    }
}

/// Reads until the output has this text.
async fn shows(output: &mut Output, text: &str) -> String {
    let mut seen = Vec::new();
    soon("output of a main process", async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert_ne!(output.read_buf(&mut seen).await.unwrap(), 0, "ended after {seen:?}");
        }
    })
    .await;
    String::from_utf8(seen).unwrap()
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).exists()
}

/// `running`, `waiting REASON` or `ended CODE REASON`, then restarts.
fn state(status: &ContainerStatus) -> String {
    let state = status.state.clone().unwrap();
    let ended =
        |ended: ContainerStateTerminated| format!("ended {} {}", ended.exit_code, ended.reason.unwrap());
    let now = match (state.running, state.waiting, state.terminated) {
        (Some(_), None, None) => "running".to_owned(),
        (None, Some(waiting), None) => format!("waiting {}", waiting.reason.unwrap()),
        (None, None, Some(now)) => ended(now),
        other => panic!("{other:?}"),
    };
    let last = status.last_state.clone().and_then(|last| last.terminated);
    let last = last.map_or("new".to_owned(), ended);
    assert_eq!(status.ready, now == "running");
    format!("{now}, {last}, {}", status.restart_count)
}

#[tokio::test]
async fn a_crash_is_followed_by_a_wait_and_a_restart_that_counts() {
    let node = Harness::start(shell("echo run; exit 3", |_| ()), "Always");
    let told: Vec<_> = node.told(4).await.iter().map(state).collect();
    assert_eq!(
        told,
        [
            "running, new, 0",
            "waiting CrashLoopBackOff, ended 3 Error, 0",
            "running, ended 3 Error, 1",
            "waiting CrashLoopBackOff, ended 3 Error, 1",
        ]
    );
    assert_eq!(node.get("previous=true").await, (200, "run\n".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn the_restart_policy_decides_who_runs_again() {
    for (policy, code, last) in [
        ("Never", 3, "ended 3 Error, new, 0"),
        ("Never", 0, "ended 0 Completed, new, 0"),
        ("OnFailure", 0, "ended 0 Completed, new, 0"),
        ("OnFailure", 5, "waiting CrashLoopBackOff, ended 5 Error, 0"),
        ("Always", 0, "waiting CrashLoopBackOff, ended 0 Completed, 0"),
    ] {
        let node = Harness::start(shell(&format!("exit {code}"), |_| ()), policy);
        assert_eq!(state(&node.told(2).await[1]), last, "{policy} {code}");
        node.stop().await;
    }
}

#[tokio::test]
async fn what_cannot_start_is_a_crash_with_its_cause() {
    let container = shell("", |container| container.command = Some(vec!["no-such-command".to_owned()]));
    let node = Harness::start(container, "Never");
    let told = node.told(1).await.remove(0);
    assert_eq!(state(&told), "ended 128 StartError, new, 0");
    let message = told.state.unwrap().terminated.unwrap().message.unwrap();
    assert!(message.contains("executable file not found in $PATH"), "{message}");
    assert!(node.containers.attach("shop", "cart-0", "app", ALL).is_none());
    node.stop().await;
}

#[test]
fn waits_double_up_to_the_longest_and_begin_anew_after_a_long_run() {
    let mut backoff = Backoff::new(&Settings::default());
    let mut seconds = |run: u64| backoff.after(Duration::from_secs(run)).as_secs();
    let crashes: Vec<_> = (0..8).map(|_| seconds(0)).collect();
    assert_eq!(crashes, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!([seconds(119), seconds(120), seconds(0)], [60, 1, 2]);
}

#[tokio::test]
async fn the_stop_ends_and_reaps_the_whole_group() {
    let node = Harness::start(shell("sleep 86400 & echo $! $$; exec sleep 86400", |_| ()), "Always");
    node.logged("\n").await;
    let pids = node.get("").await.1;
    node.stop().await;
    for pid in pids.split_whitespace() {
        until("a process is gone", || is_gone(pid)).await;
    }
}

#[tokio::test]
async fn an_attached_client_sees_what_comes_and_nothing_before() {
    let script = "echo before; while read -r line; do echo got $line; echo err $line >&2; done";
    let node = Harness::start(shell(script, |_| ()), "Always");
    node.logged("before").await;
    let mut one = node.attach(ALL).await;
    let mut other = node.attach(Asked { stdin: false, stderr: false, ..ALL }).await;
    assert!(other.streams.stdin.is_none() && other.streams.stderr.is_none());
    let mut stdin = one.streams.stdin.take().unwrap();
    stdin.write(b"a\n").await.unwrap();
    assert_eq!(shows(one.streams.stdout.as_mut().unwrap(), "\n").await, "got a\n");
    assert_eq!(shows(one.streams.stderr.as_mut().unwrap(), "\n").await, "err a\n");
    assert_eq!(shows(other.streams.stdout.as_mut().unwrap(), "\n").await, "got a\n");
    // Not with the first end of input but with the container's.
    stdin.close().await;
    let mut stdin = node.attach(ALL).await.streams.stdin.unwrap();
    stdin.write(b"b\n").await.unwrap();
    assert_eq!(shows(other.streams.stdout.as_mut().unwrap(), "\n").await, "got b\n");
    assert_eq!(node.get("").await.1.replace("err a\n", "").replace("err b\n", ""), "before\ngot a\ngot b\n");
    node.stop().await;
    soon("the end of the attachment", other.ended).await;
    let mut rest = Vec::new();
    soon("the end of the output", other.streams.stdout.unwrap().read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn stdin_once_ends_with_the_first_client() {
    let container = shell("cat; echo end; exit 0", |container| container.stdin_once = Some(true));
    let node = Harness::start(container, "Never");
    let mut client = node.attach(ALL).await;
    let mut stdin = client.streams.stdin.take().unwrap();
    stdin.write(b"data\n").await.unwrap();
    drop(stdin);
    let mut seen = Vec::new();
    soon("the output", client.streams.stdout.unwrap().read_to_end(&mut seen)).await.unwrap();
    assert_eq!(seen, b"data\nend\n");
    assert_eq!(soon("the end", client.ended).await, Ended::Over);
    assert_eq!(state(&node.told(2).await[1]), "ended 0 Completed, new, 0");
    node.stop().await;
}

#[tokio::test]
async fn a_terminal_has_one_output_and_a_size() {
    let script = "while read -r line; do stty size; echo err >&2; done";
    let node = Harness::start(shell(script, |container| container.tty = Some(true)), "Always");
    let mut client = node.attach(ALL).await;
    assert!(client.streams.stderr.is_none());
    client.streams.terminal.as_ref().unwrap().resize(TerminalSize { width: 121, height: 44 });
    client.streams.stdin.as_mut().unwrap().write(b"\n").await.unwrap();
    let seen = shows(client.streams.stdout.as_mut().unwrap(), "err").await;
    assert!(seen.contains("44 121"), "{seen}");
    node.stop().await;
}

#[tokio::test]
async fn a_slow_client_holds_the_process_for_its_patience_and_is_let_go() {
    let settings = Settings { client_patience: Duration::from_secs(2), client_buffer: 1024, ..settings() };
    let script = "read -r line; i=0; while [ $i -lt 400 ]; do echo 0123456789abcdef; i=$((i+1)); done; \
                  echo done; read -r line";
    let node = Harness::with(shell(script, |_| ()), "Never", settings);
    let mut slow = node.attach(ALL).await;
    let mut quick = node.attach(Asked { stdin: false, ..ALL }).await;
    slow.streams.stdin.as_mut().unwrap().write(b"go\n").await.unwrap();
    // Reads nothing until it is told that it is over; what it then has is the beginning, whole.
    let whole = "0123456789abcdef\n".repeat(400) + "done\n";
    assert!(shows(quick.streams.stdout.as_mut().unwrap(), "done\n").await == whole);
    assert_eq!(soon("the slow client's end", slow.ended).await, Ended::LetGo);
    let mut seen = Vec::new();
    soon("its rest", slow.streams.stdout.unwrap().read_to_end(&mut seen)).await.unwrap();
    assert!(seen.len() >= 1024 && whole.as_bytes().starts_with(&seen), "{}", seen.len());
    assert!(quick.ended.now_or_never().is_none());
    assert!(node.get("").await.1 == whole);
    node.stop().await;
}

#[tokio::test]
async fn without_a_command_a_container_is_silent_until_it_is_ended() {
    let container = Container { name: "app".to_owned(), ..Container::default() };
    let node = Harness::start(container, "Always");
    let mut client = node.attach(ALL).await;
    assert_eq!(node.get("").await, (200, String::new()));
    assert!((&mut client.ended).now_or_never().is_none());
    node.stop().await;
    soon("the end", client.ended).await;
    assert_eq!(client.streams.stdout.unwrap().read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn logs_are_refused_in_the_kubelets_words() {
    let node = Harness::start(shell("exec sleep 86400", |_| ()), "Always");
    assert_eq!(
        node.get("previous=true").await,
        (400, "previous terminated container \"app\" in pod \"cart-0\" not found".to_owned())
    );
    assert_eq!(node.get("tailLines=x").await, (400, r#"{"message": "Unable to decode query."}"#.to_owned()));
    assert_eq!(node.get("tailLines=-1").await, (422, r#"{"message": "Invalid request."}"#.to_owned()));
    let code = |request: http::request::Builder| {
        let answer = logs::answer(&node.containers, &request.body(()).unwrap());
        answer.map(|answer| answer.status().as_u16())
    };
    assert_eq!(code(Request::get("/containerLogs/shop/none/app")), Some(404));
    assert_eq!(code(Request::get("/containerLogs/shop/cart-0/none")), Some(404));
    assert_eq!(code(Request::get("/containerLogs/shop/cart-0")), Some(404));
    assert_eq!(code(Request::post("/containerLogs/shop/cart-0/app")), Some(405));
    assert_eq!(code(Request::get("/healthz")), None);
    node.stop().await;
}

#[tokio::test]
async fn who_follows_a_log_is_done_when_the_node_stops() {
    let node = Harness::start(shell("echo here; exec sleep 86400", |_| ()), "Always");
    node.logged("here").await;
    let drain = node.drain.clone();
    let (followed, drained) = tokio::join!(node.get("follow=true"), drain.finish(Duration::from_secs(20)));
    assert_eq!((followed, drained), ((200, "here\n".to_owned()), Drained::Clean));
}

#[tokio::test]
async fn a_client_that_reads_slowly_costs_nobody_the_end_of_the_output() {
    let settings = Settings { client_buffer: 1024, ..settings() };
    let node = Harness::with(shell("read -r line; exec head -c 96000 /dev/zero", |_| ()), "Never", settings);
    let mut slow = node.attach(ALL).await;
    slow.streams.stdin.as_mut().unwrap().write(b"go\n").await.unwrap();
    let mut out = slow.streams.stdout.take().unwrap();
    let (mut seen, mut piece) = (0, [0; 1024]);
    loop {
        match out.read(&mut piece).await.unwrap() {
            0 => break,
            count => seen += count,
        }
        // In all twice as long as anything without progress is waited for.
        sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(seen, 96_000);
    assert!(node.get("").await.1.len() >= 96_000);
    node.stop().await;
}
