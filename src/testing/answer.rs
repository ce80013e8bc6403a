//! One HTTP/1.1 answer, read as a strict client reads it.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::soon;

/// An answer, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status line and headers, blank line included.
    pub head: String,
    /// The body: as long as `Content-Length` says, to the last chunk (chunks as they came), or until the peer
    /// closed.
    pub body: String,
}

// === impl Answer ===

impl Answer {
    /// Reads one answer; `None` when the peer closes before its head is whole.
    ///
    /// # Panics
    /// When nothing comes, or the body is shorter than announced.
    pub async fn read<I: AsyncRead + Unpin>(io: &mut I) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the head of an answer", io.read_u8()).await.ok()?);
        }
        let mut answer = Self { head: String::from_utf8_lossy(&head).into_owned(), body: String::new() };
        let mut body = Vec::new();
        match answer.header("content-length").map(|length| length.parse().expect("a length")) {
            Some(length) => {
                body.resize(length, 0);
                soon("the body of an answer", io.read_exact(&mut body)).await.expect("the whole body");
            }
            None if answer.header("transfer-encoding") == Some("chunked") => {
                while !body.ends_with(b"0\r\n\r\n") {
                    body.push(soon("a chunk", io.read_u8()).await.expect("the last chunk"));
                }
            }
            // An unclean close ends the body just as well: what counts is what arrived.
            None => drop(soon("the end of an answer", io.read_to_end(&mut body)).await),
        }
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Some(answer)
    }

    /// The status code.
    ///
    /// # Panics
    /// When the first line has none.
    pub fn code(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line")
    }

    /// The first value of a header, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A `metav1.Status` failure as kube-apiserver writes it, line feed included. `reason` is left out when empty,
/// `details` is JSON and left out when empty.
pub fn status(code: u16, reason: &str, message: &str, details: &str) -> String {
    let message = serde_json::Value::from(message).to_string();
    let message = message.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    let reason = if reason.is_empty() { String::new() } else { format!(",\"reason\":\"{reason}\"") };
    let details = if details.is_empty() { String::new() } else { format!(",\"details\":{details}") };
    format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\
         \"message\":{message}{reason}{details},\"code\":{code}}}\n"
    )
}
