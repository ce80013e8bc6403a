//! Limits on how much of podgate one caller or one address may have: over them 429, with a time to try again after.

use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, exec_request, read_exactly, request, send};
use podgate::testing::{Answer, until};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::rig::{Rig, rig_with};

impl Rig {
    async fn session_of(&self, user: &str) -> TlsStream<TcpStream> {
        let mut io = self.gateway.connect_as(user).await;
        send(&mut io, &exec_request("command=id", "")).await;
        assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
        io
    }

    async fn refused_session_of(&self, user: &str) -> Answer {
        let mut io = self.gateway.connect_as(user).await;
        send(&mut io, &exec_request("command=id", "")).await;
        Answer::read(&mut io).await.expect("an answer")
    }
}

fn is_429(answer: &Answer, retry_after: &str, words: &str) {
    assert_eq!((answer.code(), answer.header("retry-after")), (429, Some(retry_after)), "{}", answer.body);
    let wanted =
        format!("\"reason\":\"TooManyRequests\",\"details\":{{\"retryAfterSeconds\":{retry_after}}}");
    assert!(answer.body.contains(&wanted) && answer.body.contains(words), "{}", answer.body);
}

#[tokio::test]
async fn a_caller_with_enough_sessions_gets_429_and_no_kubelet_hears_of_it() {
    let mut few = config();
    few.session.max_sessions_per_caller = 2;
    few.session.max_sessions = 3;
    let rig = rig_with(few).await;
    let ana = [rig.session_of("ana").await, rig.session_of("ana").await];
    let dialled = rig.far.accepted();
    is_429(&rig.refused_session_of("ana").await, "10", "you have 2 sessions open");
    let ben = rig.session_of("ben").await;
    is_429(&rig.refused_session_of("eve").await, "10", "podgate has 3 sessions open");
    assert_eq!(rig.far.accepted(), dialled + 1, "ben's alone");
    drop(ana);
    until("ana's sessions to be over", || rig.gateway.metric("podgate_sessions") == 1.0).await;
    drop((rig.session_of("ana").await, ben));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn the_requests_of_an_address_with_too_many_connections_are_429() {
    let mut few = config();
    few.api.max_connections_per_address = 2;
    let rig = rig_with(few).await;
    let held = [rig.gateway.connect_as("ana").await, rig.gateway.connect_as("ben").await];
    let mut third = rig.gateway.connect_as("eve").await;
    send(&mut third, &request("GET /whoami", "")).await;
    let answer = Answer::read(&mut third).await.expect("an answer");
    is_429(&answer, "1", "too many connections from your address");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(rig.gateway.cluster.served().is_empty());
    drop((held, third));
    until("the connections to be over", || rig.gateway.metric("podgate_connections") == 0.0).await;
    assert_eq!(rig.gateway.ask(&request("GET /whoami", "")).await.code(), 200);
    rig.gateway.stop().await;
}
