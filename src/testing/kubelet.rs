//! A kubelet's side of exec over SPDY/3.1, as a script of a [`Far`](super::Far): every stream is taken, and what comes
//! on stdin is said back on stdout, for as long as the peer stays.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::far::SWITCHING;
use crate::wire::remotecommand::StreamType;
use crate::wire::spdy::{Decoder, Encoder, Frame};

/// Runs one session. Never ends it first.
pub async fn echo<I: AsyncRead + AsyncWrite + Unpin>(mut io: I) {
    let (mut decoder, mut encoder) = (Decoder::new(), Encoder::new());
    let (mut input, mut out) = (BytesMut::new(), BytesMut::from(SWITCHING));
    let (mut stdin, mut stdout) = (0, 0);
    loop {
        while let Ok(Some(frame)) = decoder.decode(&mut input) {
            match frame {
                Frame::SynStream { id, headers, .. } => {
                    let kind = headers.get(StreamType::HEADER);
                    if kind == Some(StreamType::Stdin.name().as_bytes()) {
                        stdin = id;
                    } else if kind == Some(StreamType::Stdout.name().as_bytes()) {
                        stdout = id;
                    }
                    encoder.syn_reply(&mut out, id);
                }
                Frame::Data { stream, bytes, .. } if stream == stdin => {
                    out.extend_from_slice(&Encoder::data_head(stdout, bytes.len(), false));
                    out.extend_from_slice(&bytes);
                }
                Frame::Ping { id } => Encoder::ping(&mut out, id),
                _ => {}
            }
        }
        // A peer that leaves is no failure, and nobody is told of one that talks nonsense.
        if io.write_all_buf(&mut out).await.is_err() || io.flush().await.is_err() {
            return;
        }
        if !matches!(io.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}
