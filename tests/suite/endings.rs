//! What is left in containers when clients vanish: nothing, or what podgate says may be left. The nodes here do as real
//! ones, and leave running whatever their clients have left behind.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podgate::app::dev::Dev;
use podgate::config::Config;
use podgate::drain::Drained;
use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{STDIN, opening, payload, replies, result};
use podgate::testing::gateway::{self, exec_request, send};
use podgate::testing::{Far, Pki, TestGateway, until};
use podgate::wire::remotecommand::Outcome;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::dev::{Running, config};
use crate::kubectl::{self, Kubectl};
use crate::recording::{only, recording_into};

/// What nodes speak; there is a pod of that name on each.
const NODES: [&str; 3] = ["spdy", "v4", "v5"];

/// How long it may take until nothing is left.
const GONE: Duration = Duration::from_secs(10);

/// Stands for a program in the environment of all that it starts, so that they can be found.
pub(crate) const MARK: &str = "PODGATE_TEST_MARK";

/// A program in a container, and whether it heeds a hang-up.
struct Program {
    name: &'static str,
    /// With a terminal, or with stdin alone, or with neither.
    flags: &'static str,
    command: &'static [&'static str],
    /// What is typed, and shown once it runs.
    types: &'static [(&'static str, &'static str)],
    /// What it says when it runs.
    says: &'static str,
    heeds: bool,
}

const SHELL: &[&str] = &["bash", "--norc", "-i"];

const PROGRAMS: &[Program] = &[
    Program { name: "shell", flags: "-it", command: SHELL, types: &[], says: "bash-", heeds: true },
    Program {
        name: "half-typed",
        flags: "-it",
        command: SHELL,
        types: &[("rm -rf 'half of a li", "half of a li")],
        says: "bash-",
        heeds: true,
    },
    Program {
        name: "sleep",
        flags: "-it",
        command: SHELL,
        types: &[("echo be''gun; sleep 1000\r", "begun")],
        says: "bash-",
        heeds: true,
    },
    Program {
        name: "nested",
        flags: "-it",
        command: SHELL,
        types: &[
            ("bash --norc -i\r", "bash-"),
            ("bash --norc -i\r", "bash-"),
            ("echo be''gun; cat\r", "begun"),
        ],
        says: "bash-",
        heeds: true,
    },
    Program {
        name: "careful",
        flags: "-it",
        command: SHELL,
        types: &[("IGNOREEOF=10; echo be''gun\r", "begun")],
        says: "bash-",
        heeds: true,
    },
    Program { name: "cat", flags: "-it", command: &["cat"], types: &[("ab\r", "ab")], says: "", heeds: true },
    Program {
        name: "deaf",
        flags: "-it",
        command: SHELL,
        types: &[("sh -c \"trap '' INT; echo be''gun; sleep 1000\"\r", "begun")],
        says: "bash-",
        heeds: false,
    },
    Program {
        name: "deaf-reader",
        flags: "-it",
        command: &["sh", "-c", "trap '' INT; echo begun; while read -r line; do :; done"],
        types: &[],
        says: "begun",
        heeds: true,
    },
    Program {
        name: "stubborn",
        flags: "-it",
        command: SHELL,
        types: &[("trap '' INT HUP QUIT TERM; echo be''gun\r", "begun")],
        says: "bash-",
        heeds: true,
    },
    // A container that has no shell.
    Program { name: "bare", flags: "-it", command: &["sleep", "1000"], types: &[], says: "", heeds: true },
    Program {
        name: "raw",
        flags: "-it",
        command: SHELL,
        types: &[("stty raw -echo; echo be''gun; cat\r", "begun")],
        says: "bash-",
        heeds: false,
    },
    Program {
        name: "vi",
        flags: "-it",
        command: SHELL,
        types: &[("vi\r", "~")],
        says: "bash-",
        heeds: false,
    },
    Program {
        name: "python3",
        flags: "-it",
        command: &["python3"],
        types: &[("import time; print('be' 'gun'); time.sleep(1000)\r", "begun")],
        says: ">>>",
        heeds: true,
    },
    Program { name: "pipe", flags: "-i", command: &["cat"], types: &[], says: "", heeds: true },
    Program {
        name: "pipe-deaf",
        flags: "-i",
        command: &["sh", "-c", "cat; sleep 1000"],
        types: &[],
        says: "",
        heeds: false,
    },
    Program { name: "alone", flags: "", command: &["sleep", "1000"], types: &[], says: "", heeds: false },
];

/// A cluster whose main processes are marked so.
async fn running(main: &str) -> (Running, PathBuf) {
    running_with(main, |_| {}).await
}

/// The same, with other settings.
pub(crate) async fn running_with(main: &str, adjust: impl FnOnce(&mut Config)) -> (Running, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let mut text = String::from(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: alice}\nsubjects:\n\
         - {kind: User, name: alice, apiGroup: rbac.authorization.k8s.io}\n\
         roleRef: {kind: ClusterRole, name: edit, apiGroup: rbac.authorization.k8s.io}\n",
    );
    for node in NODES {
        text += &format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n  annotations: {{podgate.dev/streaming: {node}, \
             podgate.dev/orphans: leave}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {node}}}\nspec:\n  \
             nodeName: {node}\n  containers:\n  - {{name: main, image: 'podgate.dev/main:1', stdin: true, tty: true, \
             command: [sh, -c, 'while read -r line; do echo got $line; done'], \
             env: [{{name: {MARK}, value: {main}-{node}}}]}}\n"
        );
    }
    std::fs::write(manifests.join("all.yaml"), text).unwrap();
    let log = folder.path().join("audit.log");
    let mut config = config(&folder);
    config.dev.manifests = Some(manifests);
    config.audit.file.path = Some(log.clone());
    adjust(&mut config);
    (Running { dev: Dev::start(&config).await.unwrap(), folder }, log)
}

/// Processes with this mark.
pub(crate) fn marked(mark: &str) -> usize {
    let wanted = format!("{MARK}={mark}\0").into_bytes();
    let is_marked = |entry: std::fs::DirEntry| {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environ.windows(wanted.len()).any(|part| part == wanted)
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().join("stat").exists())
        .map(is_marked)
        .filter(|is| *is)
        .count()
}

/// The annotations of the last event of the session with this mark.
pub(crate) fn ended(log: &std::path::Path, mark: &str) -> Option<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let events = text.lines().filter(|line| line.contains(&format!("{MARK}={mark}\\\"")));
    let mut events = events.map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.find(|event| event["stage"] == "ResponseComplete").map(|event| event["annotations"].clone())
}

fn is_installed(program: &Program) -> bool {
    let name = if program.name == "vi" { "vi" } else { program.command[0] };
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|folder| folder.join(name).exists())
}

/// Runs a program, kills its kubectl a moment after it was seen to run, and says what became of it.
async fn vanish(kubectl: &Kubectl, pod: &str, program: &Program, mark: &str, moment: Duration) {
    let env = format!("{MARK}={mark}");
    let flags = (!program.flags.is_empty()).then_some(program.flags);
    let before = ["exec"].into_iter().chain(flags).chain([pod, "--", "env", &env]);
    let args: Vec<_> = before.chain(program.command.iter().copied()).collect();
    let (mut screen, mut child) = kubectl.on_screen(&args);
    if !program.says.is_empty() {
        screen.shows(program.says).await;
    }
    until("it to run", || marked(mark) > 0).await;
    for (keys, shown) in program.types {
        screen.seen.clear();
        screen.types(keys).await;
        screen.shows(shown).await;
    }
    tokio::time::sleep(moment).await;
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_programs_whose_kubectl_was_killed_none_is_left_but_those_that_podgate_tells_of() {
    let (running, log) = running("other").await;
    for (k, kubectl) in kubectl::all(&running.kubeconfig()).iter().enumerate() {
        let mut all = Vec::new();
        for (p, pod) in NODES.iter().enumerate() {
            for (n, program) in PROGRAMS.iter().enumerate().filter(|(_, program)| is_installed(program)) {
                let mark = format!("{}-{pod}-{k}", program.name);
                let moment = Duration::from_millis(((n * 3 + p) * 53 % 211) as u64);
                vanish(kubectl, pod, program, &mark, moment).await;
                all.push((mark, program));
            }
        }
        let start = Instant::now();
        for (mark, program) in all {
            while ended(&log, &mark).is_none() || (program.heeds && marked(&mark) > 0) {
                assert!(start.elapsed() < GONE, "{mark}: {} left, {:?}", marked(&mark), ended(&log, &mark));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let annotations = ended(&log, &mark).unwrap();
            let may_remain = annotations.get("podgate.dev/process-may-remain").is_some();
            assert_eq!(may_remain, marked(&mark) > 0, "{mark}: {annotations}");
            assert_eq!(may_remain, !program.heeds, "{mark}: {annotations}");
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_process_of_a_container_outlives_whoever_is_attached_to_it() {
    let (running, _) = running("main").await;
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in NODES {
            let main = format!("main-{pod}");
            until("the main process", || marked(&main) == 1).await;
            let (mut screen, mut child) = kubectl.on_screen(&["attach", "-it", pod]);
            screen.shows("command prompt").await;
            let answered = async {
                while !screen.seen.contains("got hello") {
                    screen.types("hello\r").await;
                    let _ = tokio::time::timeout(Duration::from_millis(300), screen.shows("got hello")).await;
                }
            };
            podgate::testing::soon("an answer", answered).await;
            child.kill().await.unwrap();
            until("the session to be over", || running.dev.metrics().sessions.get() == 0).await;
            assert_eq!(marked(&main), 1, "{pod}: it is as it was");
            let said = kubectl.run(&["logs", pod]).await.out;
            assert!(!said.contains("^C") && !said.contains("^D"), "{pod}: {said}");
        }
    }
    running.stop().await;
}

/// Clients that ask for a command, over WebSocket, where it begins at once, and over SPDY, where it does not.
pub(crate) const ASKED: [(&str, bool); 2] = [
    (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n",
        true,
    ),
    ("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n", false),
];

#[tokio::test]
async fn of_a_client_that_leaves_while_its_far_side_is_asked_it_is_told_that_its_program_may_remain() {
    for recorded in [false, true] {
        for (headers, begins) in ASKED {
            let folder = tempfile::tempdir().unwrap();
            let mut config = if recorded { recording_into(folder.path()) } else { gateway::config() };
            let log = folder.path().join("audit.log");
            config.audit.file.path = Some(log.clone());
            let pki = Arc::new(Pki::new());
            // It never answers.
            let mut far = Far::start(&pki, |io| async move {
                std::future::pending::<()>().await;
                drop(io);
            })
            .await;
            let gateway = TestGateway::facing(&far, config, pki).await;
            let mut client = gateway.connect_as("ana").await;
            let line = format!("GET /api/v1/namespaces/default/pods/web/exec?command={MARK}%3Dx%22&stdout=1");
            send(&mut client, &gateway::request(&line, headers)).await;
            far.head().await;
            drop(client);
            let last = || {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let line = text.lines().find(|line| line.contains("\"ResponseComplete\""))?.to_owned();
                serde_json::from_str::<Value>(&line).ok().map(|event| event["annotations"].clone())
            };
            until("the last event", || last().is_some()).await;
            let annotations = last().unwrap();
            let told = annotations.get("podgate.dev/process-may-remain").is_some();
            assert_eq!(told, begins, "{annotations}");
            let remain = gateway.metric("podgate_processes_may_remain_total");
            assert_eq!(remain, f64::from(u8::from(begins)));
            let reason = annotations.get("podgate.dev/end-reason").and_then(Value::as_str);
            assert_eq!(reason, (begins || recorded).then_some("client_lost"), "{annotations}");
            if recorded {
                assert!(annotations.get("podgate.dev/recording-id").is_some(), "{annotations}");
                let recording = only(&folder.path().join("spool"), &folder.path().join("key.pem")).await;
                let ending = recording.ending;
                assert_eq!((ending.reason.as_str(), ending.process_may_remain), ("client_lost", begins));
            }
            gateway.stop().await;
        }
    }
}

#[tokio::test]
async fn a_client_killed_before_the_replies_of_its_node_are_read_is_hung_up_when_they_come() {
    let pki = Arc::new(Pki::new());
    let (typed, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let far = Far::start(&pki, move |mut io| {
        let typed = typed.clone();
        async move {
            send(&mut io, SWITCHING).await;
            io.read_exact(&mut vec![0; opening().len()]).await.expect("a client that opens its streams");
            // The program runs, and its client is gone by the time that podgate hears of it.
            typed.send(Vec::new()).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            send(&mut io, &replies()).await;
            let mut keys = vec![0; 2 * 9];
            io.read_exact(&mut keys).await.expect("keys");
            typed.send(keys).unwrap();
            send(&mut io, &result(&Outcome::exit(130))).await;
            let _ = io.shutdown().await;
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, gateway::config(), pki).await;
    let mut client = gateway.connect_as("ana").await;
    let query = "command=sh&stdin=1&stdout=1&tty=1";
    send(&mut client, &exec_request(query, "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n")).await;
    send(&mut client, &opening()).await;
    heard.recv().await.unwrap();
    drop(client);
    let keys = podgate::testing::soon("keys", heard.recv()).await.unwrap();
    assert_eq!(payload(&keys, STDIN), (b"\x03\x04".to_vec(), true));
    until("the end", || gateway.metric("podgate_sessions") == 0.0).await;
    assert_eq!(gateway.metric("podgate_processes_may_remain_total"), 0.0);
    gateway.stop().await;
}

/// Says what a shell does: the short ones end by themselves after some seconds, the long ones when they are hung up.
async fn shells(pki: &Pki) -> Far {
    Far::by_head(pki, |mut io, head| async move {
        send(&mut io, SWITCHING).await;
        io.read_exact(&mut vec![0; opening().len()]).await.expect("a client that opens its streams");
        send(&mut io, &replies()).await;
        let lasts = head.split("command=lasts").nth(1).and_then(|rest| rest.split('&').next()?.parse().ok());
        let ends = async {
            match lasts {
                Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                None => std::future::pending().await,
            }
        };
        let mut ends = std::pin::pin!(ends);
        let mut bytes = [0; 4096];
        loop {
            tokio::select! {
                () = &mut ends => break,
                read = io.read(&mut bytes) => match read {
                    Ok(count @ 1..) if bytes[..count].contains(&0x04) => break,
                    Ok(1..) => {}
                    _ => return,
                }
            }
        }
        let _ = io.write_all(&result(&Outcome::Success)).await;
        // As a kubelet, which closes when the program has ended.
        let _ = io.shutdown().await;
    })
    .await
}

/// A session in a terminal: what its client got, and when the last of it came.
async fn session(gateway: SocketAddr, tls: Arc<ClientConfig>, command: &str) -> Option<(String, Instant)> {
    let tcp = TcpStream::connect(gateway).await.ok()?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut io = TlsConnector::from(tls).connect(name, tcp).await.ok()?;
    let query = format!("command={command}&stdin=1&stdout=1&tty=1");
    send(&mut io, &exec_request(&query, "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n")).await;
    send(&mut io, &opening()).await;
    let mut got = Vec::new();
    // A session that is cut has no proper end.
    let _ = io.read_to_end(&mut got).await;
    Some((String::from_utf8_lossy(&got).into_owned(), Instant::now()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_two_hundred_sessions_in_figures() {
    const ANNOUNCE: Duration = Duration::from_secs(1);
    const DEADLINE: Duration = Duration::from_secs(4);
    let pki = Arc::new(Pki::new());
    let far = shells(&pki).await;
    let old = TestGateway::facing(&far, gateway::config(), pki.clone()).await;
    let new = TestGateway::facing(&far, gateway::config(), pki).await;
    let (addr, tls) = (old.gateway.api, old.client_tls("ana"));
    let live = futures_util::future::join_all((0..200).map(|number| {
        // Three of four end by themselves, most of them before the deadline.
        let command =
            if number % 4 == 0 { "stays".to_owned() } else { format!("lasts{}", 3000 + 15 * number) };
        let tls = tls.clone();
        async move { session(addr, tls, &command).await.expect("a session") }
    }));
    let restart = async {
        until("two hundred sessions", || far.accepted() == 200).await;
        let signal = Instant::now();
        old.gateway.drain.announce();
        assert_eq!(old.admin("GET /readyz").await.code(), 500);
        let unready = signal.elapsed();
        // Whoever was sent here before that was known is still served.
        let late = session(addr, tls.clone(), "lasts1").await.expect("the door is open");
        assert!(late.0.contains("Success"), "{}", late.0);
        tokio::time::sleep(ANNOUNCE.saturating_sub(signal.elapsed())).await;
        let (metrics, stopping) = (old.gateway.metrics.clone(), Instant::now());
        let elsewhere = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(session(addr, tls.clone(), "lasts1").await.is_none(), "the door is closed");
            let other =
                session(new.gateway.api, new.client_tls("ana"), "lasts1").await.expect("another replica");
            assert!(other.0.contains("Success"), "{}", other.0);
        };
        let (drained, ()) = tokio::join!(old.gateway.stop(DEADLINE), elsewhere);
        assert_eq!(drained, Drained::Cut);
        assert_eq!(metrics.processes_may_remain.get(), 0, "what was left has ended");
        (unready, stopping, stopping.elapsed())
    };
    let (live, (unready, stopping, took)) = tokio::join!(live, restart);
    new.stop().await;
    let told = "podgate: podgate was stopped before the session ended";
    let (cut, whole): (Vec<_>, Vec<_>) = live.into_iter().partition(|(got, _)| got.contains(told));
    assert!(whole.iter().all(|(got, _)| got.contains("Success")), "none ends without a word");
    let deadline = stopping + DEADLINE;
    assert!(cut.len() >= 50 && cut.iter().all(|(got, _)| got.contains("\"status\":\"Failure\"")));
    assert!(
        cut.iter().all(|(_, at)| *at >= deadline) && took < DEADLINE + Duration::from_secs(2),
        "{took:?}"
    );
    let last = cut.iter().map(|(_, at)| at.duration_since(deadline)).max().unwrap_or_default();
    println!(
        "readiness was gone {unready:?} after the signal; of 200 sessions {} ended by themselves, {} were told and hung \
         up, the last {last:?} after the deadline of {DEADLINE:?}; all was over {took:?} after the door had closed, and no \
         process remains",
        whole.len(),
        cut.len(),
    );
}
