//! Bodies of requests.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time;

use crate::cluster::Body;
use crate::status::Refusal;

/// Largest request body, in bytes; a larger one is refused with 413.
/// Source: apiserver `MaxRequestBodyBytes`.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// How long a client may take to send its body, which fits in a few packets; then 504.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The body of a request, whole.
///
/// # Errors
/// When it is too large, takes too long, or breaks off.
pub(crate) async fn whole(body: Body) -> Result<Bytes, Refusal> {
    time::timeout(BODY_TIME, collect(body)).await.unwrap_or(Err(Refusal::Timeout))
}

async fn collect(mut body: Body) -> Result<Bytes, Refusal> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::BadRequest(format!("the body of the request could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(Refusal::TooLarge(format!("Request entity too large: limit is {MAX_BODY}")));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}
