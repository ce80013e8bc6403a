//! A client of remotecommand over SPDY/3.1, as small as tests and benches need it.
//!
//! Reads while it writes, as kubectl does, and keeps all output in memory. Breaks off with a panic when the peer
//! does what no server may.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::soon;
use crate::wire::http1::{BodyLength, ResponseHead};
use crate::wire::remotecommand::{Error, Outcome, Protocol, StreamType};
use crate::wire::spdy::{Decoder, Encoder, Frame, Headers, RstStatus};

/// Most bytes of a DATA frame that the client writes, as kubectl's copy buffers.
const CHUNK: usize = 32 * 1024;

/// What the peer made of an upgrade request.
#[derive(Debug)]
pub enum Answer<I> {
    /// A 101, and the client after it.
    Switched(Box<Client<I>>),
    /// Anything else, and its body.
    Refused(ResponseHead, String),
}

/// The client's end of a session.
#[derive(Debug)]
pub struct Client<I> {
    /// The head of the 101.
    pub head: ResponseHead,
    protocol: Protocol,
    read: ReadHalf<I>,
    write: WriteHalf<I>,
    encoder: Encoder,
    next_id: u32,
    next_ping: u32,
    seen: Seen,
}

/// What came from the peer so far.
#[derive(Debug, Default)]
pub struct Seen {
    buffer: BytesMut,
    decoder: Decoder,
    streams: Vec<Stream>,
    pong: Option<u32>,
    /// The peer said GOAWAY.
    pub goaway: bool,
    /// The peer closed the connection.
    pub closed: bool,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    name: String,
    open: bool,
    data: Vec<u8>,
    fin: bool,
    reset: Option<RstStatus>,
}

/// All that a session gave.
#[derive(Debug)]
pub struct Finished {
    /// Bytes of the stdout stream.
    pub stdout: Vec<u8>,
    /// Bytes of the stderr stream.
    pub stderr: Vec<u8>,
    /// Bytes of the error stream.
    pub error: Vec<u8>,
    /// What they mean in the session's protocol.
    pub result: Result<Outcome, Error>,
    /// What ended the connection, and how the streams were left.
    pub seen: Seen,
}

/// Sends a request and reads the answer. `request` is the head without the blank line.
///
/// # Panics
/// When the peer closes early, or answers with what is not HTTP.
pub async fn connect<I>(mut io: I, request: &str) -> Answer<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    io.write_all(format!("{request}\r\n\r\n").as_bytes()).await.expect("write the request");
    io.flush().await.expect("flush the request");
    let mut buffer = BytesMut::new();
    let head = loop {
        if let Some(head) = ResponseHead::parse(&buffer).expect("a response head") {
            break head;
        }
        assert_ne!(io.read_buf(&mut buffer).await.expect("read the response"), 0, "no response");
    };
    buffer.advance(head.len);
    if head.status != 101 {
        let length = match head.body_length().expect("the length of the body") {
            BodyLength::None => 0,
            BodyLength::Known(length) => usize::try_from(length).expect("a short body"),
            BodyLength::Chunked | BodyLength::UntilClose => panic!("a refusal has a known length"),
        };
        while buffer.len() < length {
            assert_ne!(io.read_buf(&mut buffer).await.expect("read the body"), 0, "short body");
        }
        return Answer::Refused(head, String::from_utf8_lossy(&buffer).into_owned());
    }
    let name = head.values("X-Stream-Protocol-Version").next().unwrap_or(b"channel.k8s.io");
    let protocol = Protocol::from_name(&String::from_utf8_lossy(name)).expect("a known protocol");
    let (read, write) = tokio::io::split(io);
    Answer::Switched(Box::new(Client {
        head,
        protocol,
        read,
        write,
        encoder: Encoder::new(),
        next_id: 1,
        next_ping: 1,
        seen: Seen { buffer, ..Seen::default() },
    }))
}

// === impl Answer ===

impl<I> Answer<I> {
    /// The client.
    ///
    /// # Panics
    /// When the upgrade was refused.
    pub fn client(self) -> Client<I> {
        match self {
            Self::Switched(client) => *client,
            Self::Refused(head, body) => panic!("refused: {head:?} {body}"),
        }
    }

    /// Status and body of the refusal.
    ///
    /// # Panics
    /// When the upgrade was not refused.
    pub fn refusal(self) -> (u16, String) {
        match self {
            Self::Switched(_) => panic!("not refused"),
            Self::Refused(head, body) => (head.status, body),
        }
    }
}

// === impl Client ===

impl<I: AsyncRead + AsyncWrite + Unpin> Client<I> {
    /// Opens streams in this order and waits for all replies.
    ///
    /// # Panics
    /// When the peer refuses one or closes.
    pub async fn open(&mut self, kinds: &[StreamType]) {
        for kind in kinds {
            self.open_named(kind.name()).await;
        }
        let opened = async {
            while self.seen.streams.iter().any(|stream| !stream.open) {
                self.read().await;
                assert!(!self.seen.closed, "closed before all streams were open");
            }
        };
        soon("all streams open", opened).await;
    }

    /// Opens a stream of any type and does not wait for the reply; gives its id.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn open_named(&mut self, kind: &str) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        self.open_with(id, kind).await;
        id
    }

    /// Opens a stream with any id.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn open_with(&mut self, id: u32, kind: &str) {
        let headers = Headers::new().with(StreamType::HEADER, kind);
        let mut out = BytesMut::new();
        self.encoder.syn_stream(&mut out, id, &headers).expect("short headers");
        let stream =
            Stream { id, name: kind.to_owned(), open: false, data: Vec::new(), fin: false, reset: None };
        self.seen.streams.push(stream);
        self.send(out.freeze()).await;
    }

    /// Writes to stdin, reading at the same time.
    ///
    /// # Panics
    /// When there is no such stream or the connection is broken.
    pub async fn write(&mut self, bytes: &[u8]) {
        let id = self.id(StreamType::Stdin);
        for chunk in bytes.chunks(CHUNK) {
            let mut out = BytesMut::with_capacity(chunk.len() + 8);
            out.extend_from_slice(&Encoder::data_head(id, chunk.len(), false));
            out.extend_from_slice(chunk);
            self.send(out.freeze()).await;
        }
    }

    /// Writes to stdin without reading, for as much as fits; gives the number of whole frames written before the
    /// peer took no more for `patience`. A frame that was begun stays unfinished, so nothing may follow.
    ///
    /// # Panics
    /// When there is no such stream or the connection is broken.
    pub async fn write_until_stuck(&mut self, patience: std::time::Duration) -> usize {
        let id = self.id(StreamType::Stdin);
        let mut frame = Encoder::data_head(id, CHUNK, false).to_vec();
        frame.resize(8 + CHUNK, b'x');
        for count in 0.. {
            match tokio::time::timeout(patience, self.write.write_all(&frame)).await {
                Ok(written) => written.expect("write stdin"),
                Err(_) => return count,
            }
        }
        unreachable!("a peer takes no endless bytes")
    }

    /// Half-closes stdin.
    ///
    /// # Panics
    /// When there is no such stream or the connection is broken.
    pub async fn close_stdin(&mut self) {
        let id = self.id(StreamType::Stdin);
        self.send(Bytes::copy_from_slice(&Encoder::data_head(id, 0, true))).await;
    }

    /// Tells the size of the terminal.
    ///
    /// # Panics
    /// When there is no such stream or the connection is broken.
    pub async fn resize(&mut self, width: u16, height: u16) {
        let id = self.id(StreamType::Resize);
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        let mut out = Encoder::data_head(id, size.len(), false).to_vec();
        out.extend_from_slice(size.as_bytes());
        self.send(out.into()).await;
    }

    /// Pings and waits for the answer.
    ///
    /// # Panics
    /// When none comes.
    pub async fn ping(&mut self) {
        let id = self.next_ping;
        self.next_ping += 2;
        let mut out = BytesMut::new();
        Encoder::ping(&mut out, id);
        self.send(out.freeze()).await;
        let answered = async {
            while self.seen.pong != Some(id) {
                self.read().await;
                assert!(!self.seen.closed, "closed before the pong");
            }
        };
        soon("pong", answered).await;
    }

    /// Reads until a stream holds these bytes.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn until(&mut self, kind: StreamType, needle: &str) {
        let found = async {
            while !String::from_utf8_lossy(self.seen.data(kind)).contains(needle) {
                assert!(!self.seen.closed, "closed before {needle:?} came: {:?}", self.seen);
                self.read().await;
            }
        };
        soon(needle, found).await;
    }

    /// Reads until the peer has closed the connection, then closes.
    ///
    /// # Panics
    /// When the peer does not.
    pub async fn finish(mut self) -> Finished {
        let closed = async {
            while !self.seen.closed {
                self.read().await;
            }
        };
        soon("the end of the session", closed).await;
        // The peer may be gone already.
        let _ = self.write.shutdown().await;
        let error = self.seen.data(StreamType::Error).to_vec();
        Finished {
            stdout: self.seen.data(StreamType::Stdout).to_vec(),
            stderr: self.seen.data(StreamType::Stderr).to_vec(),
            result: Outcome::parse(self.protocol, &error),
            error,
            seen: self.seen,
        }
    }

    /// Sends raw bytes, reading at the same time.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn send(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            tokio::select! {
                written = self.write.write(&bytes) => bytes.advance(written.expect("write to the peer")),
                more = self.seen.fill(&mut self.read), if !self.seen.closed => self.seen.closed = !more,
            }
            self.seen.take();
        }
        self.write.flush().await.expect("flush to the peer");
    }

    /// Reads once; the end of the connection is [`Seen::closed`].
    pub async fn read(&mut self) {
        self.seen.closed = !self.seen.fill(&mut self.read).await;
        self.seen.take();
    }

    /// What came so far.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    fn id(&self, kind: StreamType) -> u32 {
        let stream = self.seen.streams.iter().find(|stream| stream.name == kind.name());
        stream.expect("an open stream").id
    }
}

// === impl Seen ===

impl Seen {
    /// Bytes of a stream so far.
    pub fn data(&self, kind: StreamType) -> &[u8] {
        self.stream(kind).map_or(&[], |stream| &stream.data)
    }

    /// Whether the peer has half-closed a stream.
    pub fn fin(&self, kind: StreamType) -> bool {
        self.stream(kind).is_some_and(|stream| stream.fin)
    }

    /// How the peer reset a stream of this type, if it did.
    pub fn reset(&self, kind: &str) -> Option<RstStatus> {
        self.streams.iter().rfind(|stream| stream.name == kind).and_then(|stream| stream.reset)
    }

    /// Whether the peer accepted a stream of this type.
    pub fn is_open(&self, kind: &str) -> bool {
        self.streams.iter().any(|stream| stream.name == kind && stream.open)
    }

    fn stream(&self, kind: StreamType) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.name == kind.name())
    }

    /// False at the end of the connection, however it came.
    async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> bool {
        self.buffer.reserve(CHUNK);
        matches!(from.read_buf(&mut self.buffer).await, Ok(1..))
    }

    fn take(&mut self) {
        while let Some(frame) = self.decoder.decode(&mut self.buffer).expect("frames of the peer") {
            match frame {
                Frame::SynReply { id, .. } => self.at(id).open = true,
                Frame::RstStream { id, status } => self.at(id).reset = Some(status),
                Frame::Ping { id } => self.pong = Some(id),
                Frame::GoAway { .. } => self.goaway = true,
                Frame::Data { stream, bytes, fin } => {
                    let stream = self.at(stream);
                    assert!(stream.open, "data on a stream without a reply");
                    assert!(!stream.fin && stream.reset.is_none(), "data on a finished stream");
                    stream.data.extend_from_slice(&bytes);
                    stream.fin = fin;
                }
                Frame::SynStream { .. } | Frame::Headers { .. } | Frame::WindowUpdate { .. } => {
                    panic!("servers never send {frame:?}")
                }
                Frame::Settings => {}
            }
        }
    }

    fn at(&mut self, id: u32) -> &mut Stream {
        let stream = self.streams.iter_mut().rfind(|stream| stream.id == id);
        stream.expect("a frame for a stream of ours")
    }
}
