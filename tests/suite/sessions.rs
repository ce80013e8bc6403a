//! Whole sessions, from a SPDY client through the gateway to a process on a dev node.

use std::sync::Arc;

use podgate::testing::gateway::without_certificate;
use podgate::testing::{soon, spdy, until};
use podgate::wire::remotecommand::{Outcome, StreamType};
use podgate::wire::spdy::RstStatus;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::dev::Running;

pub(crate) type Client = spdy::Client<TlsStream<TcpStream>>;

/// Opens exec in `default/web` as alice; `abrupt` connections end with a reset.
pub(crate) async fn exec(running: &Running, query: &str, protocols: &str, abrupt: bool) -> Client {
    exec_as("alice", running, query, protocols, abrupt).await
}

pub(crate) async fn exec_as(
    user: &str,
    running: &Running,
    query: &str,
    protocols: &str,
    abrupt: bool,
) -> Client {
    let tcp = TcpStream::connect(running.dev.api()).await.unwrap();
    if abrupt {
        SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    let tls = TlsConnector::from(without_certificate(running.dev.state().client_roots()));
    let io = tls.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let request = format!(
        "POST /api/v1/namespaces/default/pods/web/exec?{query} HTTP/1.1\r\nHost: podgate.test\r\n\
         Authorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{protocols}Content-Length: 0",
        running.token(user)
    );
    soon("an answer", spdy::connect(io, &request)).await.client()
}

pub(crate) fn lines(protocols: &[&str]) -> String {
    protocols.iter().map(|name| format!("X-Stream-Protocol-Version: {name}\r\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn item_071_lines_lists_and_both_choose_the_same_protocol() {
    let running = Running::start().await;
    let old = lines(&["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]);
    let list =
        "X-Stream-Protocol-Version: v5.channel.k8s.io, v4.channel.k8s.io,v3.channel.k8s.io\r\n".to_owned();
    let both = lines(&["v5.channel.k8s.io", "v4.channel.k8s.io, v3.channel.k8s.io"]);
    for offered in [old, list, both] {
        let client = exec(&running, "command=true&stdout=1", &offered, false).await;
        let chosen: Vec<_> = client.head.values("X-Stream-Protocol-Version").collect();
        assert_eq!(chosen, [b"v4.channel.k8s.io"], "{offered}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_086_exit_codes_come_back_in_every_protocol_that_has_them() {
    let running = Running::start().await;
    for code in [0u8, 1, 7, 126, 127, 255] {
        let query = format!("command=sh&command=-c&command=exit+{code}&stdout=1");
        let mut client = exec(&running, &query, &lines(&["v4.channel.k8s.io"]), false).await;
        client.open(&[StreamType::Error, StreamType::Stdout]).await;
        match soon("the end", client.finish()).await.result.unwrap() {
            Outcome::Success => assert_eq!(code, 0),
            Outcome::Exit { code: got, .. } => assert_eq!(got, code),
            other => panic!("{other:?}"),
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_087_old_protocols_write_text_on_failure_and_nothing_on_success() {
    let running = Running::start().await;
    for protocol in ["v2.channel.k8s.io", "v3.channel.k8s.io"] {
        for (command, expected) in [("true", ""), ("false", "command terminated with non-zero exit code")] {
            let query = format!("command={command}&stdout=1");
            let mut client = exec(&running, &query, &lines(&[protocol]), false).await;
            client.open(&[StreamType::Error, StreamType::Stdout]).await;
            let finished = soon("the end", client.finish()).await;
            let text = String::from_utf8(finished.error).unwrap();
            assert!(
                text.starts_with(expected) && text.is_empty() == expected.is_empty(),
                "{protocol}: {text}"
            );
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_061_the_end_of_stdin_leaves_the_other_streams_usable() {
    let running = Running::start().await;
    let query = "command=sh&command=-c&command=cat;+echo+after;+echo+err+%3E%262&stdin=1&stdout=1&stderr=1"
        .replace(';', "%3B");
    let mut client = exec(&running, &query, &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout, StreamType::Stderr]).await;
    client.write(b"before\n").await;
    client.close_stdin().await;
    let finished = soon("the end", client.finish()).await;
    assert_eq!(finished.stdout, b"before\nafter\n");
    assert_eq!(finished.stderr, b"err\n");
    assert_eq!(finished.result.unwrap(), Outcome::Success);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_059_060_mebibytes_flow_without_a_window_update_and_none_before_a_reply() {
    // The client itself fails on a WINDOW_UPDATE and on data of a stream without a reply.
    let running = Running::start().await;
    let query = "command=cat&stdin=1&stdout=1";
    let mut client = exec(&running, query, &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
    let sent = vec![b'x'; 2 * 1024 * 1024];
    client.write(&sent).await;
    client.close_stdin().await;
    let finished = soon("the end", client.finish()).await;
    assert!(finished.stdout == sent, "{} bytes came back", finished.stdout.len());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn item_063_088_the_end_comes_after_all_streams_with_cancel_for_the_open_ones_and_goaway() {
    let running = Running::start().await;
    let query = "command=sh&command=-c&command=echo+out%3B+echo+err+%3E%262&stdin=1&stdout=1&stderr=1";
    let mut client = exec(&running, query, &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout, StreamType::Stderr]).await;
    let finished = soon("the end", client.finish()).await;
    assert_eq!((finished.stdout.as_slice(), finished.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(finished.result.unwrap(), Outcome::Success);
    assert!(finished.seen.fin(StreamType::Stdout) && finished.seen.fin(StreamType::Stderr));
    assert_eq!(finished.seen.reset("stdin"), Some(RstStatus::CANCEL));
    assert!(finished.seen.goaway && finished.seen.closed);
    running.stop().await;
}

/// Open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Processes whose command line is `sleep MARK`.
pub(crate) fn sleeping(mark: &str) -> usize {
    let wanted = format!("sleep\0{mark}\0");
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted.as_bytes())
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_killed_sessions_leave_nothing_behind() {
    const AT_ONCE: usize = 50;
    const ROUNDS: usize = 20;
    let running = Arc::new(Running::start().await);
    let tasks = running.dev.drain().tasks();
    let mark = format!("{}.5", 200_000 + std::process::id());
    for round in 0..ROUNDS {
        let mut opened = tokio::task::JoinSet::new();
        for number in 0..AT_ONCE {
            let (running, mark) = (running.clone(), mark.clone());
            opened.spawn(async move {
                let query = format!("command=sleep&command={mark}&stdin=1&stdout=1");
                let mut client =
                    exec(&running, &query, &lines(&["v4.channel.k8s.io"]), number % 2 == 0).await;
                client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout]).await;
                client
            });
        }
        let clients = opened.join_all().await;
        let all = i64::try_from(AT_ONCE).unwrap();
        assert_eq!(running.dev.metrics().sessions.get(), all, "round {round}");
        until("every command runs", || sleeping(&mark) == AT_ONCE).await;
        drop(clients);
        until("every session of the round is over", || running.dev.metrics().sessions.get() == 0).await;
        until("every process of the round is gone", || sleeping(&mark) == 0).await;
    }
    until("every task is gone", || running.dev.drain().tasks() == tasks).await;
    // What other tests of this binary hold open comes and goes; a leak of these sessions would be thousands.
    until("the descriptors are back", || descriptors() < AT_ONCE * ROUNDS / 2).await;
    Arc::into_inner(running).unwrap().stop().await;
}
