//! Objects: what of a body goes into an event.
//!
//! Bodies are not held up for it: what passes is kept, up to a limit, and looked at when it is over. Only an answer that
//! is a Status is read before it goes on, because the event that says that it began says what it is.
//! Source: apiserver `pkg/audit/request.go` (`LogRequestObject`, `LogResponseObject`).

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::Trail;
use super::event::{ObjectRef, compact};
use crate::cluster::Body;

/// Bytes of a Status that are looked at: its message may quote a request.
const STATUS: usize = 64 * 1024;

/// Bytes of a name, a uid or a version that is believed; no object has longer ones.
/// Source: apimachinery `pkg/util/validation/validation.go` (`DNS1123SubdomainMaxLength`).
const NAME: usize = 253;

/// How long an answer is held up for them. They come with its head.
const STATUS_READ: Duration = Duration::from_secs(5);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// What has passed of a body; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Capture(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    limit: usize,
    size: usize,
    /// A copy: the parts themselves may be any number, empty ones too, and hold buffers of any size.
    bytes: Vec<u8>,
    /// Why it is not kept.
    skipped: Option<&'static str>,
}

/// A body that is kept as it passes.
pub(super) struct Listened {
    inner: Body,
    capture: Capture,
}

/// An answer's body: the trail ends with it.
pub(super) struct Watched {
    inner: Body,
    trail: Trail,
    capture: Option<Capture>,
}

/// A body whose beginning was read before.
struct Replayed {
    first: VecDeque<Frame<Bytes>>,
    failed: Option<BoxError>,
    rest: Body,
}

// === impl Capture ===

impl Capture {
    /// Keeps a body with these headers, if it is one that can be read.
    pub(super) fn of(headers: &HeaderMap, limit: usize) -> Self {
        let skipped = (!is_plain_json(headers)).then_some("not plain JSON");
        Self(Arc::new(Mutex::new(Kept { limit, size: 0, bytes: Vec::new(), skipped })))
    }

    fn pass(&self, part: &Bytes) {
        let mut kept = self.lock();
        kept.size += part.len();
        if kept.skipped.is_some() {
            return;
        }
        if kept.size > kept.limit {
            kept.skipped = Some("larger than audit.maxObjectBytes");
            kept.bytes = Vec::new();
            return;
        }
        kept.bytes.extend_from_slice(part);
    }

    /// The object; none when the body was empty or did not come to its end.
    pub(super) fn object(&self, omit_managed_fields: bool) -> Result<Option<Box<RawValue>>, &'static str> {
        let kept = self.lock();
        match kept.skipped {
            Some(why) if kept.size > 0 => return Err(why),
            Some(_) => return Ok(None),
            None => {}
        }
        let object = compact(&kept.bytes);
        Ok(match omit_managed_fields {
            true => object.map(|object| without_managed_fields(&object).unwrap_or(object)),
            false => object,
        })
    }

    /// What an object that was sent says about which it is, where the path does not.
    pub(super) fn name(&self, about: &mut ObjectRef) {
        #[derive(serde::Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(Default, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Metadata {
            name: Option<String>,
            namespace: Option<String>,
            uid: Option<String>,
            resource_version: Option<String>,
        }
        let kept = self.lock();
        let Ok(Object { metadata }) = serde_json::from_slice(&kept.bytes) else { return };
        let said = [
            (&mut about.namespace, metadata.namespace),
            (&mut about.name, metadata.name),
            (&mut about.uid, metadata.uid),
            (&mut about.resource_version, metadata.resource_version),
        ];
        for (known, said) in said {
            if let (true, Some(said)) = (known.is_empty(), said.filter(|said| said.len() <= NAME)) {
                *known = said;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a body with these headers is JSON, as it is.
pub(super) fn is_plain_json(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = media.split(';').next().unwrap_or("").trim();
    let json = media == "application/json" || media.starts_with("application/") && media.ends_with("+json");
    json && !headers.contains_key(header::CONTENT_ENCODING)
}

/// Reads as much of a body as a Status has; the same body from its beginning, and what was read.
pub(super) async fn look(mut body: Body) -> (Body, Vec<u8>) {
    let (mut first, mut read, mut failed) = (VecDeque::new(), Vec::new(), None);
    let reading = async {
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    read.extend_from_slice(frame.data_ref().map_or(&b""[..], |data| data));
                    first.push_back(frame);
                }
                Err(error) => {
                    failed = Some(error);
                    return;
                }
            }
            if read.len() > STATUS {
                return;
            }
        }
    };
    // What is not there by then is no Status.
    let _ = timeout(STATUS_READ, reading).await;
    (Replayed { first, failed, rest: body }.boxed_unsync(), read)
}

// === impl Listened ===

impl Listened {
    pub(super) fn around(inner: Body, capture: Capture) -> Body {
        Self { inner, capture }.boxed_unsync()
    }
}

impl http_body::Body for Listened {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.capture.pass(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Watched ===

impl Watched {
    pub(super) fn around(inner: Body, trail: Trail, capture: Option<Capture>) -> Body {
        Self { inner, trail, capture }.boxed_unsync()
    }

    fn over(&mut self) {
        if let Some(capture) = self.capture.take() {
            self.trail.answered_with(&capture);
        }
        drop(self.trail.take());
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(capture), Some(data)) = (&self.capture, frame.data_ref()) {
                    capture.pass(data);
                }
            }
            Some(Err(_)) | None => self.over(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.over();
    }
}

// === impl Replayed ===

impl http_body::Body for Replayed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        if let Some(frame) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.failed.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first: u64 = self.first.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(first.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper() {
            hint.set_upper(first.saturating_add(upper));
        }
        hint
    }
}

/// A JSON object, its members as they are and in their order.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// An object, or a list of some, without what says who manages which of its fields.
fn without_managed_fields(object: &RawValue) -> Option<Box<RawValue>> {
    let mut object: Members = serde_json::from_str(object.get()).ok()?;
    for (name, value) in &mut object.0 {
        if name == "metadata" {
            let Ok(mut metadata) = serde_json::from_str::<Members>(value.get()) else { continue };
            metadata.0.retain(|(name, _)| name != "managedFields");
            *value = serde_json::value::to_raw_value(&metadata).ok()?;
        } else if name == "items" {
            let Ok(items) = serde_json::from_str::<Vec<Box<RawValue>>>(value.get()) else { continue };
            let items: Vec<_> =
                items.into_iter().map(|item| without_managed_fields(&item).unwrap_or(item)).collect();
            *value = serde_json::value::to_raw_value(&items).ok()?;
        }
    }
    serde_json::value::to_raw_value(&object).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_fields_are_left_out_and_all_else_stays_as_it_is() {
        let object = r#"{"z":1.0,"metadata":{"name":"x","managedFields":[{"manager":"m"}],"a":1},"data":{"managedFields":2}}"#;
        let raw = compact(object.as_bytes()).unwrap();
        let expected = r#"{"z":1.0,"metadata":{"name":"x","a":1},"data":{"managedFields":2}}"#;
        assert_eq!(without_managed_fields(&raw).unwrap().get(), expected);
        let list = compact(format!(r#"{{"items":[{object},3]}}"#).as_bytes()).unwrap();
        assert_eq!(without_managed_fields(&list).unwrap().get(), format!(r#"{{"items":[{expected},3]}}"#));
    }

    #[test]
    fn only_json_as_it_is_can_be_read() {
        let of = |media: &'static str, coding: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
            if let Some(coding) = coding {
                headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static(coding));
            }
            is_plain_json(&headers)
        };
        assert!(of("application/json", None) && of("application/json;stream=watch", None));
        assert!(of("application/merge-patch+json", None));
        assert!(!of("application/json", Some("gzip")) && !of("application/vnd.kubernetes.protobuf", None));
        assert!(!of("application/apply-patch+yaml", None) && !of("text/plain", None));
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let capture = Capture::of(&headers, 4);
        capture.pass(&Bytes::from_static(b"{\"a"));
        capture.pass(&Bytes::from_static(b"\":1}"));
        assert!(capture.object(false).is_err() && capture.lock().bytes.is_empty());
    }

    #[test]
    fn an_object_that_was_sent_says_which_it_is_but_no_more_than_that() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let capture = Capture::of(&headers, 4096);
        let metadata = format!(r#"{{"metadata":{{"name":"cart","uid":"{}"}}}}"#, "u".repeat(254));
        capture.pass(&metadata.into());
        let mut about = ObjectRef::default();
        capture.name(&mut about);
        assert_eq!((&*about.name, &*about.uid), ("cart", ""));
    }

    #[test]
    fn what_is_kept_holds_no_buffer_of_who_sent_it() {
        struct Buffer(Arc<[u8; 4096]>);
        impl AsRef<[u8]> for Buffer {
            fn as_ref(&self) -> &[u8] {
                &*self.0
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let (capture, buffer) = (Capture::of(&headers, 100), Arc::new([b' '; 4096]));
        let part = Bytes::from_owner(Buffer(buffer.clone()));
        capture.pass(&part.slice(..1));
        capture.pass(&part.slice(..0));
        drop(part);
        assert_eq!(Arc::strong_count(&buffer), 1);
    }
}
