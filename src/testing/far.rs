//! A far side that does what a test tells it to: a TLS server that reads one request head per connection and
//! hands the connection to a script.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{self, BoxFuture, FutureExt};
use http::HeaderValue;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Pki, soon};
use crate::cluster;
use crate::drain::Drain;
use crate::tls::{self, Clients, Identity};
use crate::upstream::{ApiServer, Server};

/// The 101 of a kubelet, byte for byte as one writes it.
pub const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
    Connection: Upgrade\r\n\
    Upgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\
    Date: Sun, 13 Nov 2022 09:15:18 GMT\r\n\r\n";

/// What a gateway knows of a [`Far`] that is its API server.
pub struct FarApiServer {
    server: Server,
    token: Option<&'static str>,
}

/// A running far side.
pub struct Far {
    /// Where it listens.
    pub addr: SocketAddr,
    heads: mpsc::UnboundedReceiver<String>,
    accepted: Arc<AtomicUsize>,
    drain: Drain,
}

impl Far {
    /// Starts a far side that requires a client certificate of `pki` and runs `script` on every connection,
    /// once the request head was read.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn start<S, F>(pki: &Pki, script: S) -> Self
    where
        S: Fn(TlsStream<TcpStream>) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::by_head(pki, move |io, _| script(io)).await
    }

    /// As [`Far::start`], for a script that acts by the request head.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn by_head<S, F>(pki: &Pki, script: S) -> Self
    where
        S: Fn(TlsStream<TcpStream>, String) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serving(&pki.server(), Clients::Require(pki.roots()), script).await
    }

    /// As [`Far::by_head`], with a certificate of one's own and other demands on clients.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn serving<S, F>(identity: &Identity, clients: Clients, script: S) -> Self
    where
        S: Fn(TlsStream<TcpStream>, String) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind loopback");
        let addr = listener.local_addr().expect("a bound address");
        let config = tls::server(identity, &[tls::HTTP2, tls::HTTP1], clients);
        let acceptor = TlsAcceptor::from(config.expect("TLS for the far side"));
        let (seen, heads) = mpsc::unbounded_channel();
        let (drain, script) = (Drain::new(), Arc::new(script));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (tasks, count) = (drain.clone(), accepted.clone());
        drain.spawn(async move {
            loop {
                let tcp = tokio::select! {
                    accepted = listener.accept() => accepted.expect("accept on loopback").0,
                    () = tasks.stopping() => return,
                };
                count.fetch_add(1, Ordering::Relaxed);
                // As every Go server; without it the kernel would hold small writes back.
                tcp.set_nodelay(true).expect("a live socket");
                let (acceptor, seen, script) = (acceptor.clone(), seen.clone(), script.clone());
                let stop = tasks.clone();
                tasks.spawn(async move {
                    let talk = async {
                        let Ok(mut io) = acceptor.accept(tcp).await else { return };
                        let Some(head) = read_head(&mut io).await else { return };
                        // A test that does not look at heads has dropped its end.
                        let _ = seen.send(head.clone());
                        script(io, head).await;
                    };
                    tokio::select! {
                        () = talk => {}
                        () = stop.stopping() => {}
                    }
                });
            }
        });
        Self { addr, heads, accepted, drain }
    }

    /// The next request head, blank line included.
    ///
    /// # Panics
    /// When none comes.
    pub async fn head(&mut self) -> String {
        soon("a request at the far side", self.heads.recv()).await.expect("the far side runs")
    }

    /// Whether no request came so far.
    pub fn untouched(&mut self) -> bool {
        self.heads.try_recv().is_err()
    }

    /// TCP connections so far, whatever became of them.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections alive.
    pub fn connections(&self) -> usize {
        self.drain.tasks().saturating_sub(1)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

impl FarApiServer {
    /// The far side at this address, to which podgate proves itself by a certificate of `pki`.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn at(addr: SocketAddr, pki: &Pki) -> Self {
        let tls = tls::client(Some(&pki.client("podgate", &[])), pki.roots(), false).expect("TLS");
        let name = addr.ip().into();
        Self {
            server: Server {
                host: addr.ip().to_string(),
                port: addr.port(),
                prefix: String::new(),
                tls,
                name,
            },
            token: Some("podgates-own"),
        }
    }

    /// The same, with nothing to prove itself by: the cluster cannot be reached.
    #[must_use]
    pub fn without_credentials(self) -> Self {
        Self { token: None, ..self }
    }
}

impl ApiServer for FarApiServer {
    fn server(&self) -> Server {
        self.server.clone()
    }

    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, cluster::Error>> {
        let answer = match self.token {
            Some(token) => Ok(HeaderValue::try_from(format!("Bearer {token}")).ok()),
            None => Err(cluster::Error::Unreachable { act: "get a token".into(), source: "told to".into() }),
        };
        future::ready(answer).boxed()
    }
}

/// Reads up to and with the blank line, one byte at a time so that nothing after it is taken.
async fn read_head(io: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}
