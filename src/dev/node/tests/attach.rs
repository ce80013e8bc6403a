//! Attach through the endpoint: what clients of either transport see of a container's main process.

use super::websocket::{self, RESIZE, STATUS, STDIN, V5};
use super::*;

const TARGET: &str = "/attach/shop/cart-0/app";

/// One pod whose container runs a script, once.
struct Main {
    pod: Arc<Pod>,
    runs: Mutex<bool>,
}

impl Pods for Main {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "shop" && name == "cart-0").then(|| self.pod.clone())
    }

    fn bound(&self, _node: &str) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }

    fn report(&self, _namespace: &str, _pod: &str, status: ContainerStatus) {
        *self.runs.lock().unwrap() = status.state.is_some_and(|state| state.running.is_some());
    }
}

/// A v5 node on which the script runs.
async fn start(script: &str, tty: bool) -> Harness {
    let mut pod = Pod::default();
    pod.metadata.namespace = Some("shop".to_owned());
    pod.metadata.name = Some("cart-0".to_owned());
    pod.spec = Some(PodSpec {
        node_name: Some("one".to_owned()),
        restart_policy: Some("Never".to_owned()),
        containers: vec![Container {
            name: "app".to_owned(),
            command: Some(["sh", "-c", script].map(str::to_owned).into()),
            stdin: Some(true),
            tty: Some(tty),
            ..Container::default()
        }],
        ..PodSpec::default()
    });
    let pods = Arc::new(Main { pod: Arc::new(pod), runs: Mutex::default() });
    let settings = Settings { streaming: Streaming::V5, ..Settings::default() };
    let node = Harness::of(pods.clone(), settings).await;
    until("the container runs", || *pods.runs.lock().unwrap()).await;
    node
}

async fn attach(node: &Harness) -> Client<Io> {
    let mut client = node.upgrade(&format!("{TARGET}?{PLAIN}"), V4).await.client();
    client.open(&[Result_, Stdin, Stdout, Stderr]).await;
    client
}

/// Says which process it is, and ends with a code that no client of an attach is to see.
const ECHO: &str = "while read x; do [ $x = end ] && exit 3; echo $$ $x; echo err $x >&2; done";

#[tokio::test]
async fn the_end_of_the_main_process_is_a_success_whatever_its_code() {
    let node = start(ECHO, false).await;
    let mut client = attach(&node).await;
    client.write(b"one\n").await;
    client.until(Stdout, " one\n").await;
    client.until(Stderr, "err one\n").await;
    let mut v5 = websocket::open(&node, V5, &format!("{TARGET}?{PLAIN}")).await;
    let mut old = websocket::open(&node, "", &format!("{TARGET}?output=1")).await;
    v5.send(STDIN, b"two\n").await;
    v5.until(" two\n").await;
    old.until(" two\n").await;
    client.until(Stdout, " two\n").await;
    // Output from now on, and the same process for all.
    assert!(!v5.stdout().contains("one"), "{}", v5.stdout());
    assert!(text(client.seen().data(Stdout)).ends_with(v5.stdout()));
    let pid = v5.stdout().split_once(' ').unwrap().0.to_owned();
    client.write(b"end\n").await;
    let done = client.finish().await;
    assert_eq!(text(&done.error), STATUS);
    assert!(done.seen.fin(Stdout) && done.seen.fin(Stderr) && done.seen.goaway);
    assert_eq!((v5.finish().await, v5.error()), (1000, STATUS));
    assert_eq!((old.finish().await, old.error()), (1000, ""));
    until("the process is reaped", || is_gone(&pid)).await;
    let (status, body) = node.upgrade(&format!("{TARGET}?{PLAIN}"), V4).await.refusal();
    assert_eq!((status, body.as_str()), (500, "container app not found in pod cart-0_shop"));
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_main_process() {
    let node = start(ECHO, false).await;
    let mut client = attach(&node).await;
    client.write(b"one\n").await;
    client.until(Stdout, " one\n").await;
    let pid = text(client.seen().data(Stdout)).split_once(' ').unwrap().0.to_owned();
    drop(client);
    let mut v5 = websocket::open(&node, V5, &format!("{TARGET}?{PLAIN}")).await;
    v5.send(STDIN, b"two\n").await;
    v5.until(" two\n").await;
    assert_eq!(v5.stdout(), format!("{pid} two\n"));
    // The end of one client's input is not that of the container's.
    v5.send(255, &[STDIN]).await;
    drop(v5);
    let mut client = attach(&node).await;
    client.write(b"three\n").await;
    client.until(Stdout, "three\n").await;
    assert_eq!(text(client.seen().data(Stdout)), format!("{pid} three\n"));
    drop(client);
    node.stop().await;
    assert!(is_gone(&pid), "the stop of the node is that of its containers");
}

#[tokio::test]
async fn whether_there_is_a_terminal_says_the_container_and_not_the_query() {
    let node = start("while read x; do stty size; done", true).await;
    let mut v5 = websocket::open(&node, V5, &format!("{TARGET}?input=1&output=1")).await;
    v5.send(RESIZE, br#"{"Width":132,"Height":43}"#).await;
    v5.send(STDIN, b"\n").await;
    v5.until("43 132").await;
    drop(v5);
    let mut client = node.upgrade(&format!("{TARGET}?input=1&output=1"), V4).await.client();
    client.open(&[Result_, Stdin, Stdout, Resize]).await;
    client.resize(80, 24).await;
    client.write(b"\n").await;
    client.until(Stdout, "24 80").await;
    drop(client);
    node.stop().await;

    let node = start(ECHO, false).await;
    let mut client = node.upgrade(&format!("{TARGET}?input=1&output=1&tty=1"), V4).await.client();
    client.open(&[Result_, Stdin, Stdout]).await;
    client.write(b"one\n").await;
    client.until(Stdout, " one\n").await;
    drop(client);
    node.stop().await;
}
