//! Networks that drop everything without a word: what podgate finds of it, and when.
//!
//! One end of each connection stands in a network namespace of its own, whose link loses its address in the middle:
//! nothing arrives from then on, not even a reset. That takes root and `ip` of iproute2. Without them these tests say so and
//! are left out.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{opening, replies};
use podgate::testing::gateway::{self, exec_request, read_exactly, send};
use podgate::testing::{FakeCluster, Far, Pki, TestGateway, soon, until};
use podgate::upstream::Route;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::endings::{MARK, ended, marked, running_with};
use crate::kubectl::{Kubectl, all};

/// Silence after which a peer is probed; probes are a second apart.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// How long a peer may acknowledge nothing.
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// What the kernel's clocks may add: it looks when a probe or a repetition is due, and repeats ever more seldom.
const LATE: Duration = Duration::from_secs(3);

/// Three probes and the silence before them.
const PROBED: Duration = Duration::from_secs(4);

/// A namespace whose only link is to here.
struct Net {
    name: String,
    /// This end's address.
    here: Ipv4Addr,
    there: Ipv4Addr,
}

fn ip(args: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(args.split_whitespace()).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Net {
    /// A new one; nothing, and a word about it, where there can be none.
    fn new() -> Option<Self> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let subnet = u8::try_from(process % 250).unwrap();
        let (name, last) = (format!("pg{process}-{count}"), count * 4);
        let (here, there) = ([1, 2]).map(|host| Ipv4Addr::new(10, 213, subnet, last + host)).into();
        let net = Self { name, here, there };
        match net.lay() {
            Ok(()) => Some(net),
            Err(why) => {
                println!("LEFT OUT: a network that drops everything takes root and iproute2: {why}");
                None
            }
        }
    }

    fn lay(&self) -> Result<(), String> {
        let Self { name, here, there } = self;
        let link = self.link();
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {link} type veth peer name c netns {name}"))?;
        ip(&format!("addr add {here}/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-n {name} addr add {there}/30 dev c"))?;
        ip(&format!("-n {name} link set c address 02:00:00:00:00:02 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        // Who is there has not to be asked: an answer that does not come would be a word about it.
        ip(&format!("neigh replace {there} lladdr 02:00:00:00:00:02 dev {link} nud permanent"))
    }

    fn link(&self) -> String {
        format!("{}h", self.name)
    }

    /// From now on nothing arrives on either side.
    fn drop_everything(&self) {
        ip(&format!("-n {} addr flush dev c", self.name)).unwrap();
    }

    /// Does something there.
    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        use std::os::fd::AsFd;

        let file = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let act = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            act.join().unwrap()
        })
    }

    /// A kubectl that runs there.
    fn kubectl(&self, kubectl: Kubectl, folder: &std::path::Path) -> Kubectl {
        let script = folder.join(format!("kubectl-{}", self.name));
        let text = format!(
            "#!/bin/sh\nexec ip netns exec {} {} --tls-server-name=localhost \"$@\"\n",
            self.name,
            kubectl.binary().display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        kubectl.run_by(script)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // The link goes with it. Where it was never there, there is nothing to be said.
        let _ = ip(&format!("netns del {}", self.name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_network_drops_everything_is_found_in_time_and_leaves_no_shell() {
    let Some(first) = Net::new() else { return };
    let (running, log) = running_with("other", |config| {
        config.api.listen = (Ipv4Addr::UNSPECIFIED, 0).into();
        (config.api.keepalive, config.api.user_timeout) = (KEEPALIVE, USER_TIMEOUT);
    })
    .await;
    let mut net = Some(first);
    // What runs, whether in a terminal, and how long it may take to find out.
    let cases = [
        ("-it", "echo in; exec sleep 1000", USER_TIMEOUT),
        ("-it", "echo in; while :; do echo x; sleep 0.1; done", USER_TIMEOUT),
        ("-i", "echo in; exec cat", PROBED),
    ];
    for (number, (flag, line, within)) in cases.into_iter().enumerate() {
        let net = net.take().or_else(Net::new).unwrap();
        let kubeconfig = std::fs::read_to_string(running.kubeconfig()).unwrap();
        let path = running.folder.path().join("there");
        let port = running.dev.api().port();
        let server = format!("https://{}:{port}", net.here);
        let (before, rest) = kubeconfig.split_once("https://").unwrap();
        let after = rest.find('"').map(|end| &rest[end..]).unwrap();
        std::fs::write(&path, format!("{before}{server}{after}")).unwrap();
        let kubectl = net.kubectl(all(&path).pop().unwrap(), running.folder.path());
        let mark = format!("net-{number}");
        let env = format!("{MARK}={mark}");
        let args = ["exec", flag, "v4", "--", "env", &env, "sh", "-c", line];
        let (mut screen, mut child) = kubectl.on_screen(&args);
        screen.shows("in").await;
        until("it to run", || marked(&mark) > 0).await;
        let start = Instant::now();
        net.drop_everything();
        // What is not a terminal's end is a while of silence before, which may have begun already.
        until_within(within + LATE, || ended(&log, &mark).is_some()).await;
        let took = start.elapsed();
        println!("{flag} {line}: found after {took:?}");
        assert!(took + KEEPALIVE >= within, "{took:?} is too soon");
        let annotations = ended(&log, &mark).unwrap();
        assert_eq!(annotations["podgate.dev/end-reason"], "client_lost", "{annotations}");
        assert!(annotations.get("podgate.dev/process-may-remain").is_none(), "{annotations}");
        until("no process", || marked(&mark) == 0).await;
        child.kill().await.unwrap();
    }
    running.stop().await;
}

async fn until_within(within: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < within, "not within {within:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A kubelet that stands there: what it is sent it gets by a relay.
async fn kubelet(net: &Net, far: SocketAddr) -> u16 {
    let there = net.there;
    let listener = net.inside(|| std::net::TcpListener::bind((there, 0))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let port = listener.local_addr().unwrap().port();
    #[allow(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let mut to = TcpStream::connect(far).await.unwrap();
            #[allow(clippy::disallowed_methods, reason = "it ends with the test")]
            tokio::spawn(async move { drop(copy_bidirectional(&mut io, &mut to).await) });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_in_time_that_its_nodes_network_drops_everything() {
    let Some(first) = Net::new() else { return };
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, SWITCHING).await;
        soon("streams", io.read_exact(&mut vec![0; opening().len()])).await.unwrap();
        send(&mut io, &replies()).await;
        while let Ok(1..) = io.read(&mut [0; 4096]).await {}
    })
    .await;
    let mut net = Some(first);
    for (tty, types, within) in
        [(true, false, USER_TIMEOUT), (true, true, USER_TIMEOUT), (false, false, PROBED)]
    {
        let net = net.take().or_else(Net::new).unwrap();
        let cluster = FakeCluster::new();
        let port = kubelet(&net, far.addr).await;
        cluster.node_at("n", &[("InternalIP", &net.there.to_string())], port);
        cluster.simple_pod("default/web", "n");
        let mut config = gateway::config();
        (config.upstream.keepalive, config.upstream.user_timeout) = (KEEPALIVE, USER_TIMEOUT);
        let Route::Kubelet { tls, token, .. } = TestGateway::route(&pki) else { unreachable!("it is one") };
        let route = Route::Kubelet { tls, token, server_name: Some("localhost".try_into().unwrap()) };
        let gateway = TestGateway::before(cluster, config, pki.clone(), route).await;
        let mut client = gateway.connect_as("ana").await;
        let query = format!("command=sh&stdin=1&stdout=1&tty={}", u8::from(tty));
        send(&mut client, &exec_request(&query, "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n")).await;
        send(&mut client, &opening()).await;
        read_exactly(&mut client, SWITCHING.len() + replies().len()).await;
        let start = Instant::now();
        net.drop_everything();
        if types {
            send(&mut client, &podgate::testing::frames::data(podgate::testing::frames::STDIN, b"id\r"))
                .await;
        }
        let mut got = Vec::new();
        let _ =
            tokio::time::timeout(within + LATE, client.read_to_end(&mut got)).await.expect("an end in time");
        let (took, got) = (start.elapsed(), String::from_utf8_lossy(&got).into_owned());
        println!("terminal {tty}, typed {types}: told after {took:?}");
        assert!(took + KEEPALIVE >= within, "{took:?} is too soon");
        assert!(got.contains("the connection to the pod ended before the session did"), "{got:?}");
        drop(client);
        let lost = "podgate_sessions_ended_total{end=\"far_lost\",subresource=\"exec\"}";
        until("the end record", || gateway.metric(lost) == 1.0).await;
        assert_eq!(gateway.metric("podgate_processes_may_remain_total"), 1.0);
        gateway.stop().await;
    }
}
