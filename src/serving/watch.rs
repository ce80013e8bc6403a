//! Watches: a stream of lines, one event each, that never ends by itself before its time.
//!
//! There is no task behind a watch: the body asks the [`Feed`] for the next change when the connection wants the
//! next line, so a client that goes away ends it, and one that does not read costs a position in the history.
//! Source: apiserver `pkg/endpoints/handlers/{watch,get}.go`, `pkg/storage/cacher`; KEP-3157 for
//! `sendInitialEvents`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{self, Instant};

use super::table::{self, Column, Form};
use super::{JSON, Object, Select, uncached};
use crate::cluster::Body;
use crate::request::Query;
use crate::status::{Encoding, Refusal, go_quote};

/// How long a watch lasts that does not say: as the API server's minimum, which it draws more from at random.
const DEFAULT_TIME: Duration = Duration::from_secs(30 * 60);

/// How long a watch may last. Nobody waits longer for anything; a longer wish is cut to this.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a client that asked for bookmarks gets one, as upstream does at about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// The bookmark after the initial events carries this.
const INITIAL_END: (&str, &str) = ("k8s.io/initial-events-end", "true");

/// What becomes of objects, in order. Dropping a future of [`Feed::next`] loses nothing.
pub(crate) trait Feed: Send + 'static {
    /// Of this type.
    type Object: Object;

    /// The next change: as the object was, and as it is.
    ///
    /// # Errors
    /// When there is no way on; the watcher is told so, and the watch ends.
    fn next(&mut self) -> impl Future<Output = Result<Changed<Self::Object>, Refusal>> + Send;

    /// The version up to which all has been told.
    fn seen(&self) -> u64;
}

/// An object that has come, changed or gone.
pub(crate) struct Changed<O> {
    /// As it was; of another kind than the watch's it is none.
    pub(crate) before: Option<O>,
    /// As it is.
    pub(crate) after: Option<O>,
    /// What a watcher is told to whom it is gone.
    pub(crate) last: O,
}

/// What a watch is about.
pub(crate) struct About {
    pub(crate) kind: &'static str,
    pub(crate) api_version: &'static str,
    pub(crate) columns: &'static [Column],
    pub(crate) select: Select,
    pub(crate) form: Option<Form>,
}

/// From where a watch goes, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    since: u64,
    /// Whether what is there is told first.
    initial: bool,
    /// And the end of that.
    initial_end: bool,
    bookmarks: bool,
    time: Duration,
}

struct Watch<F: Feed> {
    about: About,
    /// What was there when it began, still to be told.
    initial: VecDeque<F::Object>,
    /// Whether the end of that is to be told.
    initial_end: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    feed: F,
    /// Whether a table's columns were sent.
    headed: bool,
    over: bool,
}

#[derive(Serialize)]
struct Event<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bookmark {
    kind: &'static str,
    api_version: &'static str,
    metadata: BookmarkMeta,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A watch of what there is now, of which `select` is not asked yet, and what `feed` tells after it.
pub(crate) fn watch<F: Feed>(
    about: About,
    start: Start,
    now: impl IntoIterator<Item = F::Object>,
    feed: F,
) -> Response<Body> {
    let watch = Watch::new(about, start, now, feed);
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    let body = StreamBody::new(lines).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    uncached(response.headers_mut());
    response
}

// === impl Start ===

impl Start {
    /// What the query says.
    ///
    /// # Errors
    /// 400 where a number is none.
    pub(crate) fn of(query: &Query) -> Result<Self, Refusal> {
        let since = number(query, "resourceVersion")?.unwrap_or(0);
        let bookmarks = query.flag("allowWatchBookmarks");
        let asked = query.first("sendInitialEvents").filter(|value| !value.is_empty());
        let initial = match asked {
            Some(_) => query.flag("sendInitialEvents"),
            None => since == 0,
        };
        let time = number(query, "timeoutSeconds")?.filter(|&seconds| seconds != 0);
        let time = time.map_or(DEFAULT_TIME, Duration::from_secs).min(MAX_TIME);
        let initial_end = initial && asked.is_some() && bookmarks;
        Ok(Self { since, initial, initial_end, bookmarks, time })
    }

    /// The version from which the feed goes, where that of what there is now is this.
    pub(crate) fn from(&self, now: u64) -> u64 {
        if self.initial || self.since == 0 { now } else { self.since }
    }
}

/// A decimal number, in the words of Go's parser where it is none.
fn number(query: &Query, name: &str) -> Result<Option<u64>, Refusal> {
    let text = query.first(name).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let quoted = go_quote(text.as_bytes());
        Refusal::BadRequest(format!(
            "{name}: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: invalid syntax"
        ))
    })
}

fn line<T: Serialize>(kind: &'static str, object: T) -> Bytes {
    Encoding::default().encode(&Event { kind, object })
}

// === impl Watch ===

impl<F: Feed> Watch<F> {
    fn new(about: About, start: Start, now: impl IntoIterator<Item = F::Object>, feed: F) -> Self {
        let mut initial = VecDeque::new();
        if start.initial {
            initial.extend(now.into_iter().filter(|object| about.select.matches(object)));
        }
        let now = Instant::now();
        Self {
            about,
            initial,
            initial_end: start.initial_end,
            bookmarks: start.bookmarks,
            next_bookmark: now + BOOKMARK_EVERY,
            deadline: now + start.time,
            feed,
            headed: false,
            over: false,
        }
    }

    /// The next line, `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if let Some(object) = self.initial.pop_front() {
            return Some(self.event("ADDED", &object));
        }
        if std::mem::take(&mut self.initial_end) {
            return Some(self.bookmark(true));
        }
        loop {
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            let change = tokio::select! {
                biased;
                () = time::sleep_until(wake) => {
                    if Instant::now() >= self.deadline {
                        return None;
                    }
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    return Some(self.bookmark(false));
                }
                change = self.feed.next() => change,
            };
            match change {
                Ok(change) => {
                    if let Some(line) = self.change(change) {
                        return Some(line);
                    }
                }
                Err(refusal) => {
                    self.over = true;
                    let status = refusal.response(Encoding::default());
                    let text = String::from_utf8_lossy(status.body()).trim_end().to_owned();
                    let status = RawValue::from_string(text).expect("a Status is JSON");
                    return Some(line("ERROR", status));
                }
            }
        }
    }

    /// The event a change is to this watcher: an object that begins to match is new to it.
    fn change(&mut self, change: Changed<F::Object>) -> Option<Bytes> {
        let Changed { before, after, last } = change;
        let select = &self.about.select;
        let matches = |object: &F::Object| select.matches(object);
        match (before.is_some_and(|before| matches(&before)), after.filter(matches)) {
            (true, Some(after)) => Some(self.event("MODIFIED", &after)),
            (false, Some(after)) => Some(self.event("ADDED", &after)),
            (true, None) => Some(self.event("DELETED", &last)),
            (false, None) => None,
        }
    }

    fn event(&mut self, kind: &'static str, object: &F::Object) -> Bytes {
        match self.about.form {
            None => line(kind, object),
            Some(form) => {
                let version = object.meta().resource_version.clone().unwrap_or_default();
                let headed = std::mem::replace(&mut self.headed, true);
                let columns = (!headed).then_some(self.about.columns);
                line(kind, table::of(form, columns, version, [object]))
            }
        }
    }

    /// A bookmark is always of the plain kind: it has no row to show.
    fn bookmark(&self, initial_end: bool) -> Bytes {
        let annotations = initial_end.then(|| {
            let (name, value) = INITIAL_END;
            [(name.to_owned(), value.into())].into_iter().collect()
        });
        line(
            "BOOKMARK",
            Bookmark {
                kind: self.about.kind,
                api_version: self.about.api_version,
                metadata: BookmarkMeta { resource_version: self.feed.seen().to_string(), annotations },
            },
        )
    }
}
