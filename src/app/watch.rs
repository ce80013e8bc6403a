//! `podgate watch`: a live session in this terminal, as it happens.
//!
//! What a pod writes reaches the terminal through [`Filter`](crate::recording::safe::Filter) alone, a pipe too. Only what is
//! shown from now on is seen: nothing of before is kept anywhere.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;

use crate::cli;
use crate::cluster::kube::connect;
use crate::group::API_VERSION;
use crate::recording::safe::{Filter, plain};
use crate::request::name_problem;
use crate::status;
use crate::wire::tape::Connection;

/// Bytes of a line, at most: a read of a session, in base64, and a frame around it.
const MAX_LINE: usize = 1024 * 1024;

/// Exit code of one who was interrupted.
const INTERRUPTED: u8 = 130;

/// A session cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no name.
    #[error("{0:?} is not the name of a session")]
    Name(String),
    /// There is no way to podgate.
    #[error(transparent)]
    Kubeconfig(#[from] connect::Error),
    /// It cannot be reached.
    #[error("ask podgate for the session")]
    Ask(#[source] Box<kube::Error>),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// What it says breaks off.
    #[error("read the session")]
    Read(#[source] Box<kube::Error>),
    /// It says what this podgate does not understand.
    #[error("read a line of the session")]
    Line(#[source] serde_json::Error),
    /// It is no line.
    #[error("a line of the session is longer than {MAX_LINE} bytes")]
    LongLine,
    /// The end is missing.
    #[error("the connection ended before the session did")]
    Cut,
    /// Nobody takes what is shown.
    #[error("write to the terminal")]
    Write(#[source] io::Error),
}

/// Something that podgate tells.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Told {
    Session {
        subresource: String,
    },
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    Connection {
        is: Connection,
    },
    Lost {
        pieces: u64,
    },
    End {
        message: String,
    },
    #[serde(other)]
    Other,
}

/// What is on the screen.
struct Screen<W> {
    out: W,
    /// One for each output: what one writes does not end in the middle of what the other does.
    filters: [Filter; 2],
}

/// Shows a session until it is over.
///
/// # Errors
/// When it cannot be seen, or what is shown breaks off.
pub async fn run(flags: &cli::Watch) -> Result<u8, Error> {
    let mut screen = Screen { out: io::stdout(), filters: Default::default() };
    let ended = tokio::select! {
        ended = show(flags, &mut screen) => ended.map(|()| 0),
        _ = tokio::signal::ctrl_c() => Ok(INTERRUPTED),
    };
    let left = screen.leave();
    let code = ended?;
    left?;
    Ok(code)
}

async fn show<W: Write>(flags: &cli::Watch, screen: &mut Screen<W>) -> Result<(), Error> {
    let mut config = connect::kubeconfig(flags.kubeconfig.as_deref(), flags.context.clone())?;
    // A session may be silent for hours.
    config.read_timeout = None;
    let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    // As `kubectl get -o name` prints it.
    let name = flags.session.rsplit('/').next().unwrap_or_default();
    for part in [&*namespace, name] {
        if part.is_empty() || name_problem(part).is_some() || part.contains(['?', '#', ' ']) {
            return Err(Error::Name(part.to_owned()));
        }
    }
    let path = format!("/apis/{API_VERSION}/namespaces/{namespace}/sessions/{name}/stream");
    let request = Request::get(path).body(Body::empty()).map_err(|_| Error::Name(name.to_owned()))?;
    let ask = |error| Error::Ask(Box::new(error));
    let response = Client::try_from(config).map_err(ask)?.send(request).await.map_err(ask)?;
    let (status, mut body) = (response.status(), response.into_body());
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Read(Box::new(error)))?;
        text.extend_from_slice(&frame.into_data().unwrap_or_default());
        while status == StatusCode::OK
            && let Some(end) = memchr::memchr(b'\n', &text)
        {
            let line = text.split_to(end + 1);
            if let Told::End { message } = serde_json::from_slice(&line).map_err(Error::Line)? {
                let why = if message.is_empty() { String::new() } else { format!(": {}", plain(&message)) };
                return screen.tell(&format!("the session is over{why}"));
            }
            screen.take(line.freeze())?;
        }
        if text.len() > MAX_LINE {
            return Err(Error::LongLine);
        }
    }
    match status {
        StatusCode::OK => Err(Error::Cut),
        _ => Err(Error::Refused(refusal(status, &text))),
    }
}

/// What a Status says, or what there is instead.
fn refusal(code: StatusCode, body: &[u8]) -> String {
    status::message(body).map_or_else(|| format!("podgate answered {code}"), |message| plain(&message))
}

// === impl Screen ===

impl<W: Write> Screen<W> {
    fn take(&mut self, line: Bytes) -> Result<(), Error> {
        match serde_json::from_slice(&line).map_err(Error::Line)? {
            Told::Stdout { data } => self.draw(0, &data),
            Told::Stderr { data } => self.draw(1, &data),
            Told::Session { subresource } if subresource == "portforward" => {
                self.tell("its connections are shown as they come and go")
            }
            Told::Connection { is: Connection { connection, port, open: true, .. } } => {
                self.tell(&format!("connection {connection} to port {port}"))
            }
            Told::Connection { is: Connection { connection, up, down, error, .. } } => {
                let error = if error.is_empty() { error } else { format!(": {}", plain(&error)) };
                self.tell(&format!("connection {connection} closed, {up} bytes up, {down} down{error}"))
            }
            Told::Lost { pieces } => {
                self.tell(&format!("{pieces} pieces are missing here: they came faster than they were read"))
            }
            Told::Session { .. } | Told::End { .. } | Told::Other => Ok(()),
        }
    }

    fn draw(&mut self, which: usize, data: &str) -> Result<(), Error> {
        let (mut safe, bytes) = (Vec::new(), STANDARD.decode(data).unwrap_or_default());
        self.filters[which].push(&bytes, &mut safe);
        self.write(&safe)
    }

    /// A line of podgate's own.
    fn tell(&mut self, text: &str) -> Result<(), Error> {
        self.write(format!("\r\n[podgate: {text}]\r\n").as_bytes())
    }

    /// Gives the terminal back as it was.
    fn leave(&mut self) -> Result<(), Error> {
        if !io::IsTerminal::is_terminal(&io::stdout()) {
            return Ok(());
        }
        let mut safe = Vec::new();
        self.filters[0].finish(&mut safe);
        self.write(&safe)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).and_then(|()| self.out.flush()).map_err(Error::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_writes_is_drawn_and_nothing_else_of_it_passes() {
        let mut screen = Screen { out: Vec::new(), filters: Default::default() };
        let data = STANDARD.encode(b"a\x1b]0;title\x07\x1b[31mb");
        for line in [
            r#"{"kind":"session","tty":true,"subresource":"exec"}"#.to_owned(),
            format!(r#"{{"kind":"stdout","data":"{data}"}}"#),
            r#"{"kind":"resize","is":{"Width":80,"Height":24}}"#.to_owned(),
            r#"{"kind":"lost","pieces":3}"#.to_owned(),
            r#"{"kind":"connection","is":{"connection":1,"port":80,"open":false,"up":2,"down":3,"error":"\u001bx"}}"#
                .to_owned(),
        ] {
            screen.take(line.into()).unwrap();
        }
        let shown = String::from_utf8(screen.out).unwrap();
        assert!(shown.starts_with("a\x1b[31mb\r\n[podgate: 3 pieces are missing"), "{shown:?}");
        assert!(shown.ends_with("connection 1 closed, 2 bytes up, 3 down: \\u{1b}x]\r\n"), "{shown:?}");
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        assert_eq!(refusal(StatusCode::FORBIDDEN, br#"{"message":"no"}"#), "no");
        let drawn = refusal(StatusCode::FORBIDDEN, br#"{"message":"\u001b]0;x\u0007no"}"#);
        assert_eq!(drawn, "\\u{1b}]0;x\\u{7}no");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>"), "podgate answered 502 Bad Gateway");
    }
}
