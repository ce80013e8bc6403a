//! Client: a session as kubectl has one, that keeps nothing of what it says.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderValue;
use kube::Config;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster;
use crate::cluster::kube::connect::{self, Connection};
use crate::drain::Drain;
use crate::status;
use crate::wire::channel::{self, Subprotocol};
use crate::wire::http1::{self, BodyLength, ResponseHead};
use crate::wire::remotecommand::{self, Asked, Outcome, Protocol, StreamType};
use crate::wire::spdy::{self, Frame, Headers};
use crate::wire::ws::{self, Event, MAX_MESSAGE, MaskKey, handshake};

/// For TCP, TLS, the request and its answer: a server that takes longer is not one that can be measured.
const OPEN: Duration = Duration::from_secs(60);

/// How long a session may say nothing where it should.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes that are read at once.
const READ: usize = 64 * 1024;

/// Most bytes of a refusal that are shown.
const MAX_REFUSAL: usize = 16 * 1024;

/// Where load goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// What it is called in the report.
    pub name: String,
    /// The process to measure.
    pub pid: Option<u32>,
    connection: Connection,
    pod: Pod,
    speech: Kind,
}

/// The pod in which commands run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// One of its containers; a kubelet has to be told.
    pub container: Option<String>,
    /// Whether the target is the kubelet that has it, and no API server.
    pub at_kubelet: bool,
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// SPDY/3.1 with v4.channel.k8s.io, as kubectl before 1.31.
    Spdy,
    /// WebSocket with v5.channel.k8s.io, as kubectl since.
    Websocket,
}

/// A session failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig is of no use for this.
    #[error("use the kubeconfig")]
    Connection(#[source] connect::Error),
    /// There are no credentials.
    #[error("get credentials")]
    Credentials(#[source] cluster::Error),
    /// The server cannot be reached, or breaks off.
    #[error("talk to {host}:{port}")]
    Io {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It says nothing.
    #[error("the server said nothing for {0:?}")]
    Silence(Duration),
    /// It answers with something else than HTTP.
    #[error("read the answer")]
    Answer(#[source] http1::Error),
    /// It does not open the session.
    #[error("the server answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// It opens something else.
    #[error("read the answer")]
    Handshake(#[source] handshake::BadAnswer),
    /// What it says in the session is no SPDY.
    #[error("read SPDY")]
    Spdy(#[source] spdy::Error),
    /// Or no WebSocket.
    #[error("read WebSocket")]
    WebSocket(#[source] ws::Error),
    /// Or no channel.
    #[error("read a channel")]
    Channel(#[source] channel::Error),
    /// Its result cannot be read.
    #[error("read the result")]
    Result(#[source] remotecommand::Error),
    /// The command failed.
    #[error("the command failed: {0}")]
    Failed(String),
    /// There is no randomness.
    #[error("get randomness")]
    Random,
    /// It ended before it was told to.
    #[error("the session ended too early")]
    Ended,
    /// Something is missing.
    #[error("{got} bytes arrived of {of}")]
    Bytes {
        /// That arrived.
        got: u64,
        /// That were sent.
        of: u64,
    },
}

/// An open session. Closed when dropped.
pub struct Session {
    io: TlsStream<TcpStream>,
    server: (String, u16),
    buffer: BytesMut,
    out: BytesMut,
    speech: Speech,
    result: Vec<u8>,
}

enum Speech {
    Spdy {
        decoder: spdy::Decoder,
        stdin: u32,
        /// Streams that the server has not ended yet.
        open: HashSet<u32>,
    },
    WebSocket {
        frames: ws::Decoder,
        channels: channel::Decoder,
        encoder: channel::Encoder,
        over: bool,
    },
}

/// The stream of the result: the first that is opened.
const ERROR: u32 = 1;

// === impl Target ===

impl Target {
    /// By a kubeconfig that was read.
    ///
    /// # Errors
    /// When podgate cannot use it: through a proxy, or without checking the server's certificate.
    pub fn new(
        name: String,
        config: &Config,
        pod: Pod,
        speech: Kind,
        pid: Option<u32>,
        background: &Drain,
    ) -> Result<Self, Error> {
        let connection = Connection::new(config, background).map_err(Error::Connection)?;
        Ok(Self { name, pid, connection, pod, speech })
    }

    /// Opens a session with stdout and stderr, and with stdin if that is wanted.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(&self, command: &[String], stdin: bool) -> Result<Session, Error> {
        timeout(OPEN, self.open_late(command, stdin)).await.unwrap_or(Err(Error::Silence(OPEN)))
    }

    async fn open_late(&self, command: &[String], stdin: bool) -> Result<Session, Error> {
        let server = self.connection.server();
        let failed = |source| Error::Io { host: server.host.clone(), port: server.port, source };
        let credentials = self.connection.credentials().await.map_err(Error::Credentials)?;
        let tcp = TcpStream::connect((&*server.host, server.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let tls = TlsConnector::from(server.tls.clone());
        let mut io = tls.connect(server.name.clone(), tcp).await.map_err(failed)?;
        let target = format!("{}{}", server.prefix, self.pod.target(command, stdin));
        let host = format!("{}:{}", server.host, server.port);
        let token = credentials.as_ref().map(|value| HeaderValue::to_str(value).unwrap_or_default());
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| Error::Random)?;
        let protocols = [Subprotocol::V5.name()];
        let headers: Vec<_> = token.map(|token| ("Authorization", token)).into_iter().collect();
        let handshake = handshake::Request {
            target: &target,
            host: &host,
            nonce,
            protocols: &protocols,
            headers: &headers,
        };
        match self.speech {
            Kind::Websocket => io.write_all(&handshake.to_bytes()).await,
            Kind::Spdy => {
                let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
                let (name, version) = (remotecommand::PROTOCOL_HEADER, Protocol::V4.name());
                let head = format!(
                    "POST {target} HTTP/1.1\r\nHost: {host}\r\n{token}Content-Length: 0\r\nConnection: Upgrade\r\n\
                     Upgrade: SPDY/3.1\r\n{name}: {version}\r\n\r\n"
                );
                io.write_all(head.as_bytes()).await
            }
        }
        .map_err(failed)?;
        io.flush().await.map_err(failed)?;
        let mut buffer = BytesMut::with_capacity(READ);
        let head = loop {
            if let Some(head) = ResponseHead::parse(&buffer).map_err(Error::Answer)? {
                break head;
            }
            if io.read_buf(&mut buffer).await.map_err(failed)? == 0 {
                return Err(Error::Ended);
            }
        };
        buffer.advance(head.len);
        if head.status != 101 {
            let len = match head.body_length().map_err(Error::Answer)? {
                BodyLength::None => 0,
                BodyLength::Known(len) => usize::try_from(len).unwrap_or(MAX_REFUSAL).min(MAX_REFUSAL),
                BodyLength::Chunked | BodyLength::UntilClose => MAX_REFUSAL,
            };
            while buffer.len() < len && matches!(io.read_buf(&mut buffer).await, Ok(1..)) {}
            let said = status::message(&buffer);
            let message = said.unwrap_or_else(|| String::from_utf8_lossy(&buffer).into_owned());
            return Err(Error::Refused { status: head.status, message });
        }
        let asked = Asked { stdin, stdout: true, stderr: true, tty: false };
        let speech = match self.speech {
            Kind::Websocket => {
                handshake::check_answer(&head, &handshake.key(), &protocols).map_err(Error::Handshake)?;
                let limits = ws::Limits { message: MAX_MESSAGE, utf8: false };
                Speech::WebSocket {
                    frames: ws::Decoder::new(ws::Role::Client, limits),
                    channels: channel::Decoder::client(Subprotocol::V5, asked),
                    encoder: channel::Encoder::new(Subprotocol::V5),
                    over: false,
                }
            }
            Kind::Spdy => Speech::Spdy { decoder: spdy::Decoder::new(), stdin: 0, open: HashSet::new() },
        };
        let server = (server.host.clone(), server.port);
        let mut session = Session { io, server, buffer, out: BytesMut::new(), speech, result: Vec::new() };
        session.open_streams(asked).await?;
        Ok(session)
    }
}

// === impl Pod ===

impl Pod {
    /// Path and query of an exec.
    fn target(&self, command: &[String], stdin: bool) -> String {
        let Self { namespace, name, container, at_kubelet } = self;
        let encode = |word: &str| utf8_percent_encode(word, NON_ALPHANUMERIC).to_string();
        let mut query: String = command.iter().map(|word| format!("command={}&", encode(word))).collect();
        let container = container.as_deref().map(encode);
        if *at_kubelet {
            let container = container.unwrap_or_default();
            query.push_str(if stdin { "input=1&output=1&error=1" } else { "output=1&error=1" });
            return format!("/exec/{namespace}/{name}/{container}?{query}");
        }
        if let Some(container) = container {
            query.push_str(&format!("container={container}&"));
        }
        query.push_str(if stdin { "stderr=true&stdin=true&stdout=true" } else { "stderr=true&stdout=true" });
        format!("/api/v1/namespaces/{namespace}/pods/{name}/exec?{query}")
    }
}

// === impl Session ===

impl Session {
    /// Sends bytes of stdin.
    ///
    /// # Errors
    /// When they cannot be sent.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match &self.speech {
            Speech::Spdy { stdin, .. } => {
                self.out.extend_from_slice(&spdy::Encoder::data_head(*stdin, bytes.len(), false));
                self.out.extend_from_slice(bytes);
            }
            Speech::WebSocket { encoder, .. } => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let sent = encoder.message(&mut self.out, StreamType::Stdin, rest, Some(mask()?));
                    rest = &rest[sent..];
                }
            }
        }
        self.flush().await
    }

    /// Ends stdin.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn end_stdin(&mut self) -> Result<(), Error> {
        match &self.speech {
            Speech::Spdy { stdin, .. } => {
                self.out.extend_from_slice(&spdy::Encoder::data_head(*stdin, 0, true));
            }
            Speech::WebSocket { .. } => {
                let close = [channel::CLOSE, channel::number(StreamType::Stdin)];
                ws::Encoder::message(&mut self.out, ws::Kind::Binary, &close, Some(mask()?));
            }
        }
        self.flush().await
    }

    /// The next bytes of stdout or stderr; `None` when the session is over.
    ///
    /// # Errors
    /// When it breaks off, or says what no server may.
    pub async fn output(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            while let Some(bytes) = self.decode()? {
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
            }
            if !self.out.is_empty() {
                self.flush().await?;
            }
            if self.is_over() {
                return Ok(None);
            }
            self.read().await?;
        }
    }

    /// Waits for the end, and reads the result. Output is thrown away.
    ///
    /// # Errors
    /// When the command did not succeed.
    pub async fn end(mut self) -> Result<(), Error> {
        while self.output().await?.is_some() {}
        match Outcome::parse(Protocol::V4, &self.result).map_err(Error::Result)? {
            Outcome::Success if !self.result.is_empty() => Ok(()),
            Outcome::Success => Err(Error::Ended),
            failed => Err(Error::Failed(failed.message())),
        }
    }

    /// Opens SPDY's streams one after the other, as kubectl does.
    async fn open_streams(&mut self, asked: Asked) -> Result<(), Error> {
        if matches!(self.speech, Speech::WebSocket { .. }) {
            return Ok(());
        }
        let mut encoder = spdy::Encoder::new();
        let streams = [("error", true), ("stdin", asked.stdin), ("stdout", true), ("stderr", true)];
        let mut id = ERROR;
        for (name, _) in streams.into_iter().filter(|(_, wanted)| *wanted) {
            let headers = Headers::new().with("streamType", name);
            encoder.syn_stream(&mut self.out, id, &headers).map_err(Error::Spdy)?;
            self.flush().await?;
            if let Speech::Spdy { stdin, open, .. } = &mut self.speech {
                match name {
                    "stdin" => *stdin = id,
                    _ => drop(open.insert(id)),
                }
            }
            while !self.has_reply(id)? {
                self.read().await?;
            }
            id += 2;
        }
        Ok(())
    }

    fn has_reply(&mut self, wanted: u32) -> Result<bool, Error> {
        let Speech::Spdy { decoder, .. } = &mut self.speech else { return Ok(true) };
        while let Some(frame) = decoder.decode(&mut self.buffer).map_err(Error::Spdy)? {
            match frame {
                Frame::SynReply { id, .. } if id == wanted => return Ok(true),
                Frame::RstStream { .. } | Frame::GoAway { .. } => return Err(Error::Ended),
                _ => {}
            }
        }
        Ok(false)
    }

    /// The next thing that has arrived, empty when it is no output.
    fn decode(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.speech {
            Speech::Spdy { decoder, open, .. } => {
                let Some(frame) = decoder.decode(&mut self.buffer).map_err(Error::Spdy)? else {
                    return Ok(None);
                };
                match frame {
                    Frame::Data { stream, bytes, fin } => {
                        if fin {
                            open.remove(&stream);
                        }
                        if stream != ERROR {
                            return Ok(Some(bytes));
                        }
                        keep(&mut self.result, &bytes);
                    }
                    Frame::RstStream { id, .. } => drop(open.remove(&id)),
                    Frame::GoAway { .. } => open.clear(),
                    // Only the server's own are even.
                    Frame::Ping { id } if id % 2 == 0 => spdy::Encoder::ping(&mut self.out, id),
                    _ => {}
                }
                Ok(Some(Bytes::new()))
            }
            Speech::WebSocket { frames, channels, over, .. } => {
                let Some(event) = frames.decode(&mut self.buffer).map_err(Error::WebSocket)? else {
                    return Ok(None);
                };
                match event {
                    Event::Data(data) => match channels.decode(data).map_err(Error::Channel)? {
                        Some(channel::Event::Data { stream: StreamType::Error, bytes }) => {
                            keep(&mut self.result, &bytes);
                        }
                        Some(channel::Event::Data { bytes, .. }) => return Ok(Some(bytes)),
                        _ => {}
                    },
                    Event::Ping(payload) => ws::Encoder::pong(&mut self.out, &payload, Some(mask()?)),
                    Event::Close(close) => {
                        *over = true;
                        ws::Encoder::close(&mut self.out, close.as_ref(), Some(mask()?));
                    }
                    Event::Pong(_) => {}
                }
                Ok(Some(Bytes::new()))
            }
        }
    }

    fn is_over(&self) -> bool {
        match &self.speech {
            Speech::Spdy { open, .. } => open.is_empty(),
            Speech::WebSocket { over, .. } => *over,
        }
    }

    async fn read(&mut self) -> Result<(), Error> {
        self.buffer.reserve(READ);
        let read = timeout(SILENCE, self.io.read_buf(&mut self.buffer)).await;
        match read.map_err(|_| Error::Silence(SILENCE))?.map_err(|source| self.failed(source))? {
            0 => Err(Error::Ended),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let written = async {
            self.io.write_all(&self.out).await?;
            self.io.flush().await
        };
        let written = timeout(SILENCE, written).await.map_err(|_| Error::Silence(SILENCE))?;
        self.out.clear();
        written.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        let (host, port) = self.server.clone();
        Error::Io { host, port, source }
    }
}

/// Keeps a result as far as one is read.
fn keep(result: &mut Vec<u8>, bytes: &[u8]) {
    let room = (remotecommand::MAX_RESULT + 1).saturating_sub(result.len());
    result.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn mask() -> Result<MaskKey, Error> {
    let mut key = [0; 4];
    rand::fill(&mut key).map_err(|_| Error::Random)?;
    Ok(MaskKey(key))
}
