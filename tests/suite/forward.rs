//! `kubectl port-forward`, with every kubectl and every kind of node.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use podgate::drain::Drain;
use podgate::testing::soon;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, ChildStdout};

use crate::copy::PODS;
use crate::dev::Running;
use crate::kubectl::{self, Kubectl};

/// Bytes of one download.
const BODY: usize = 1 << 20;

/// How long all of them may take, on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(120);

/// Downloads at once.
const DOWNLOADS: usize = 50;

/// An HTTP server on loopback, as it could run in a pod: `/N` is a MiB that differs for each N.
struct Web {
    port: u16,
    drain: Drain,
}

fn body(n: usize) -> Vec<u8> {
    (0..BODY).map(|at| u8::try_from((at * 31 + n * 7 + at / 251) % 256).unwrap()).collect()
}

impl Web {
    async fn start(bodies: Arc<Vec<Vec<u8>>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let drain = Drain::new();
        let tasks = drain.clone();
        drain.spawn(async move {
            loop {
                let tcp = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = tasks.stopping() => return,
                };
                let bodies = bodies.clone();
                tasks.spawn(async move {
                    let mut tcp = BufReader::new(tcp);
                    let mut head = String::new();
                    // All of it: to close over unread bytes would be a reset.
                    while !head.ends_with("\r\n\r\n") {
                        if !tcp.read_line(&mut head).await.is_ok_and(|count| count > 0) {
                            return;
                        }
                    }
                    let n: Option<usize> =
                        head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse().ok());
                    let body = &bodies[n.expect("a number")];
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    // A client that left is its own business.
                    let _ = tcp.write_all(&[head.as_bytes(), body].concat()).await;
                    let _ = tcp.shutdown().await;
                });
            }
        });
        Self { port, drain }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

fn bodies() -> Arc<Vec<Vec<u8>>> {
    Arc::new((0..DOWNLOADS).map(body).collect())
}

/// A port on which nobody listens, and nobody will while this is held.
fn closed_port() -> (tokio::net::TcpSocket, u16) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A running `kubectl port-forward`.
struct Forward {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Forward {
    async fn start(kubectl: &Kubectl, pod: &str, ports: &[u16]) -> (Self, Vec<SocketAddr>) {
        let ports: Vec<String> = ports.iter().map(|port| format!(":{port}")).collect();
        let args: Vec<&str> =
            ["port-forward", pod].into_iter().chain(ports.iter().map(String::as_str)).collect();
        let mut child = kubectl.spawn(&mut kubectl.command(&args));
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut forward = Self { child, out, err };
        let mut local = Vec::new();
        while local.len() < ports.len() {
            let line = soon("kubectl to listen", forward.out.next_line()).await.unwrap();
            let Some(line) = line else { panic!("{pod}: {:?}", forward.err.next_line().await) };
            // One line for each family.
            if let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") {
                let port = rest.split(' ').next().unwrap().parse().unwrap();
                local.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            }
        }
        (forward, local)
    }

    /// Waits for a line of this text on stderr.
    async fn reports(&mut self, text: &str) {
        loop {
            let line = soon(text, self.err.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("kubectl ended without {text:?}"));
            if line.contains(text) {
                return;
            }
        }
    }
}

async fn get(addr: SocketAddr, n: usize) -> Vec<u8> {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LONG, tcp.read_to_end(&mut answer)).await.expect("a download").unwrap();
    let head = answer.windows(4).position(|part| part == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    answer.split_off(head)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_downloads_at_once_are_all_whole() {
    let running = Running::start().await;
    let wanted = bodies();
    let web = Web::start(wanted.clone()).await;
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in PODS {
            let (mut forward, local) = Forward::start(&kubectl, pod, &[web.port]).await;
            let addr = local[0];
            let all = futures_util::future::join_all((0..DOWNLOADS).map(|n| get(addr, n))).await;
            for (n, got) in all.iter().enumerate() {
                assert!(*got == wanted[n], "{pod}: download {n} has {} bytes", got.len());
            }
            forward.child.kill().await.unwrap();
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_port_is_reported_to_the_user() {
    let running = Running::start().await;
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in PODS {
            let (_held, closed) = closed_port();
            let (mut forward, local) = Forward::start(&kubectl, pod, &[closed]).await;
            let mut tcp = TcpStream::connect(local[0]).await.unwrap();
            let mut nothing = Vec::new();
            // Closed or reset: kubectl's own way.
            let _ = soon("the end", tcp.read_to_end(&mut nothing)).await;
            assert_eq!(nothing, b"");
            forward.reports(&format!("error forwarding port {closed} to pod")).await;
            forward.child.kill().await.unwrap();
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_in_the_pod_ends_for_the_user_and_the_others_go_on() {
    let running = Running::start().await;
    let bodies = bodies();
    let web = Web::start(bodies.clone()).await;
    let breaking = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = breaking.local_addr().unwrap().port();
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in PODS {
            let (mut forward, local) = Forward::start(&kubectl, pod, &[web.port, port]).await;
            let user = async {
                let mut tcp = TcpStream::connect(local[1]).await.unwrap();
                tcp.write_all(b"hello").await.unwrap();
                let mut got = Vec::new();
                // Closed or reset: kubectl's own way.
                let _ = soon(&format!("the end of a broken connection to {pod}"), tcp.read_to_end(&mut got))
                    .await;
                got
            };
            let breaks = async {
                let (mut tcp, _) = breaking.accept().await.unwrap();
                tcp.write_all(&[b'x'; 50_000]).await.unwrap();
                tcp.read_exact(&mut [0; 5]).await.unwrap();
                socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
            };
            let (got, ()) = tokio::join!(user, breaks);
            assert!(got.len() <= 50_000 && got.iter().all(|&byte| byte == b'x'), "{pod}: {}", got.len());
            assert!(get(local[0], 7).await == bodies[7], "{pod}: the forward goes on");
            forward.child.kill().await.unwrap();
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_in_the_pod_ends_for_a_user_who_only_reads() {
    let running = Running::start().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in PODS {
            let (mut forward, local) = Forward::start(&kubectl, pod, &[port]).await;
            let user = async {
                let mut got = String::new();
                let mut tcp = TcpStream::connect(local[0]).await.unwrap();
                soon("the end", tcp.read_to_string(&mut got)).await.unwrap();
                got
            };
            let ends = async {
                let (mut tcp, _) = listener.accept().await.unwrap();
                tcp.write_all(b"the time of day").await.unwrap();
                tcp.shutdown().await.unwrap();
                // It goes on to read, as a server does that only half-closes.
                let _ = tcp.read_to_end(&mut Vec::new()).await;
            };
            let (got, ()) = tokio::join!(user, ends);
            assert_eq!(got, "the time of day", "{pod}");
            forward.child.kill().await.unwrap();
        }
    }
    running.stop().await;
}
