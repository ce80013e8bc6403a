//! Requests byte for byte, and their answers as they come.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For one answer; that of a watch that ends by itself comes within seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Header lines of an answer; API servers send about ten.
const MAX_HEADERS: usize = 64;

/// Somebody who speaks HTTP/1.1 in TLS.
pub(crate) struct Server {
    authority: String,
    tls: TlsConnector,
}

/// One answer; its body without the frame it came in. That of a 101 is not read.
pub(crate) struct Answer {
    pub(crate) code: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

// === impl Server ===

impl Server {
    /// Who answers at `HOST:PORT`, with a certificate of this authority.
    pub(crate) fn new(authority: &str, ca: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { authority: authority.to_owned(), tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// Sends a request over a connection of its own.
    pub(crate) async fn ask(&self, request: &[u8]) -> Answer {
        let asked = async {
            let host = self.authority.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']);
            let name = ServerName::try_from(host.to_owned()).unwrap();
            let connection = TcpStream::connect(&self.authority).await.unwrap();
            let connection = self.tls.connect(name, connection).await.unwrap();
            let (mut from, mut to) = tokio::io::split(connection);
            let write = async {
                // Who answers before it has read everything may close.
                let _ = to.write_all(request).await;
                let _ = to.flush().await;
            };
            let ((), answer) = tokio::join!(write, Answer::read(&mut from, request.starts_with(b"HEAD ")));
            answer
        };
        let line = || String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned();
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("no answer: {}", line()))
    }
}

// === impl Answer ===

impl Answer {
    async fn read(from: &mut tokio::io::ReadHalf<TlsStream<TcpStream>>, head_only: bool) -> Self {
        let mut bytes = Vec::new();
        let mut answer = loop {
            let more = from.read_buf(&mut bytes).await.unwrap_or(0);
            assert_ne!(more, 0, "an end instead of an answer: {:?}", String::from_utf8_lossy(&bytes));
            if let Some((answer, length)) = Self::head(&bytes) {
                bytes.drain(..length);
                break answer;
            }
        };
        if head_only || answer.code == 101 || answer.code == 204 {
            return answer;
        }
        let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        loop {
            let whole = match length {
                Some(length) => (bytes.len() >= length).then(|| bytes[..length].to_vec()),
                None if chunked => without_chunks(&bytes),
                None => None,
            };
            if let Some(body) = whole {
                answer.body = body;
                return answer;
            }
            // An unclean close ends a body of no stated length just as well.
            if from.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                assert!(length.is_none() && !chunked, "the body ends early");
                answer.body = bytes;
                return answer;
            }
        }
    }

    /// The head, and its length, once it is whole. Interim answers are passed over.
    fn head(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut lines);
        let httparse::Status::Complete(length) = head.parse(bytes).expect("an HTTP answer") else {
            return None;
        };
        let code = head.code.unwrap();
        if code == 100 {
            return Self::head(&bytes[length..]).map(|(answer, rest)| (answer, length + rest));
        }
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = head.headers.iter().map(|line| (line.name.to_lowercase(), text(line.value))).collect();
        Some((Self { code, headers, body: Vec::new() }, length))
    }

    /// The values of a header, in one line.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// A chunked body, once its last chunk is there.
fn without_chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let httparse::Status::Complete((start, length)) = httparse::parse_chunk_size(bytes).unwrap() else {
            return None;
        };
        let end = start + usize::try_from(length).unwrap();
        if bytes.len() < end + 2 {
            return None;
        }
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(&bytes[start..end]);
        bytes = &bytes[end + 2..];
    }
}
