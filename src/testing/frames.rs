//! SPDY frames of an exec, for tests that say them byte by byte: its streams are error 1, stdin 3 and stdout 5.

use bytes::BytesMut;

use crate::wire::remotecommand::{Outcome, Protocol, StreamType};
use crate::wire::spdy::{Decoder, Encoder, Frame, Headers, RstStatus};

/// The stream of the result.
pub const ERROR: u32 = 1;
/// The stream of the input.
pub const STDIN: u32 = 3;
/// The stream of the output.
pub const STDOUT: u32 = 5;

/// What a client begins with: it opens its three streams.
///
/// # Panics
/// Never: three names are within every limit.
pub fn opening() -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for (id, stream) in [(ERROR, StreamType::Error), (STDIN, StreamType::Stdin), (STDOUT, StreamType::Stdout)]
    {
        let headers = Headers::new().with(StreamType::HEADER, stream.name());
        encoder.syn_stream(&mut out, id, &headers).expect("a name");
    }
    out.to_vec()
}

/// What a kubelet answers to [`opening`].
pub fn replies() -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for id in [ERROR, STDIN, STDOUT] {
        encoder.syn_reply(&mut out, id);
    }
    out.to_vec()
}

/// Bytes in frames of at most a MiB.
pub fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 64);
    for piece in bytes.chunks(1 << 20) {
        out.extend_from_slice(&Encoder::data_head(stream, piece.len(), false));
        out.extend_from_slice(piece);
    }
    out
}

/// What a kubelet ends with: the result, resets, GOAWAY.
pub fn result(outcome: &Outcome) -> Vec<u8> {
    let mut out = BytesMut::from(&data(ERROR, &outcome.to_bytes(Protocol::V4))[..]);
    for stream in [ERROR, STDIN, STDOUT] {
        Encoder::rst_stream(&mut out, stream, RstStatus::CANCEL);
    }
    Encoder::goaway(&mut out, STDOUT);
    out.to_vec()
}

/// What a stream carries in these frames, and whether all bytes were frames.
pub fn payload(bytes: &[u8], stream: u32) -> (Vec<u8>, bool) {
    let (mut decoder, mut input, mut got) = (Decoder::new(), BytesMut::from(bytes), Vec::new());
    while let Ok(Some(frame)) = decoder.decode(&mut input) {
        if let Frame::Data { stream: id, bytes, .. } = frame
            && id == stream
        {
            got.extend_from_slice(&bytes);
        }
    }
    (got, input.is_empty() && decoder.is_between_frames())
}
