//! Who may no longer be in a pod is asked to leave: credentials and rights are looked at again while a session lives.

use std::time::Duration;

use podgate::cluster::{Decision, User};
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, exec_request, read_exactly, read_to_end, send, without_certificate};
use podgate::testing::{FakeCluster, until};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::rig::{Rig, rig_knowing_tokens};

const ENDED: &str = "podgate_sessions_ended_total{end=\"lapsed\",subresource=\"exec\"}";

fn ana(groups: &[&str]) -> Option<User> {
    let groups = groups.iter().map(|&group| group.to_owned()).collect();
    Some(User { name: "ana".into(), groups, ..User::default() })
}

async fn rechecked() -> (Rig, TlsStream<TcpStream>) {
    rechecked_with("", |_| {}).await
}

/// A live session, asked for with these headers too, of a token that is ana's, who is a dev.
async fn rechecked_with(headers: &str, prepare: impl FnOnce(&FakeCluster)) -> (Rig, TlsStream<TcpStream>) {
    let mut config = config();
    config.session.recheck_period = Duration::from_millis(20);
    let rig = rig_knowing_tokens(config).await;
    rig.gateway.cluster.know("t0ken", ana(&["dev"]));
    prepare(&rig.gateway.cluster);
    let mut io = rig.gateway.connect(without_certificate(rig.gateway.pki.roots())).await;
    let headers = format!("Authorization: Bearer t0ken\r\n{headers}");
    send(&mut io, &exec_request("command=id", &headers)).await;
    assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
    (rig, io)
}

/// Waits until the cluster was asked this once more.
async fn asked_again(cluster: &FakeCluster, what: &str) {
    let times = || cluster.reviews().iter().filter(|asked| *asked == what).count();
    let before = times();
    until("the next look", || times() > before).await;
}

#[tokio::test]
async fn a_session_whose_token_is_revoked_ends_for_that_reason() {
    let (rig, mut io) = rechecked().await;
    asked_again(&rig.gateway.cluster, "token ").await;
    assert_eq!(rig.gateway.metric("podgate_sessions"), 1.0);
    rig.gateway.cluster.know("t0ken", None);
    read_to_end(&mut io).await;
    until("the end record", || rig.gateway.metric(ENDED) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_session_whose_caller_lost_the_right_ends_for_that_reason() {
    let (rig, mut io) = rechecked().await;
    rig.gateway.cluster.judge(|_, _| Ok(Decision { allowed: false, reason: String::new() }));
    read_to_end(&mut io).await;
    until("the end record", || rig.gateway.metric(ENDED) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_session_whose_caller_left_the_group_that_had_the_right_ends_for_that_reason() {
    let (rig, mut io) = rechecked_with("", |cluster| {
        cluster.judge(|user, _| {
            Ok(Decision { allowed: user.groups.iter().any(|group| group == "dev"), reason: String::new() })
        });
    })
    .await;
    rig.gateway.cluster.know("t0ken", ana(&["guests"]));
    read_to_end(&mut io).await;
    until("the end record", || rig.gateway.metric(ENDED) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_session_as_somebody_whom_its_caller_may_no_longer_be_ends_for_that_reason() {
    let (rig, mut io) = rechecked_with("Impersonate-User: ben\r\nImpersonate-Group: ops\r\n", |_| {}).await;
    for what in
        ["ana impersonate users /ben", "ana impersonate groups /ops", "ben create pods/exec default/web"]
    {
        asked_again(&rig.gateway.cluster, what).await;
    }
    assert_eq!(rig.gateway.metric("podgate_sessions"), 1.0);
    rig.gateway.cluster.judge(|_, attributes| {
        let is_ops = attributes.resource.as_ref().is_some_and(|resource| resource.name == "ops");
        Ok(Decision { allowed: !is_ops, reason: String::new() })
    });
    read_to_end(&mut io).await;
    until("the end record", || rig.gateway.metric(ENDED) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn while_nobody_can_be_asked_a_session_goes_on() {
    let (rig, io) = rechecked().await;
    rig.gateway.cluster.judge(|_, _| Err(podgate::testing::cluster::undecided("review")));
    let review = "ana create pods/exec default/web";
    asked_again(&rig.gateway.cluster, review).await;
    asked_again(&rig.gateway.cluster, review).await;
    assert_eq!(rig.gateway.metric("podgate_sessions"), 1.0);
    drop(io);
    until("the end of the session", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    assert_eq!(rig.gateway.metric(ENDED), 0.0);
    rig.gateway.stop().await;
}
