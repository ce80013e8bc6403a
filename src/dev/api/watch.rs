//! Watches: a stream of lines, one event each, that never ends by itself before its time.
//!
//! There is no task behind a watch: the body asks the store for the next change when the connection wants the
//! next line, so a client that goes away ends it, and one that does not read costs a position in the history.
//! Source: apiserver `pkg/endpoints/handlers/{watch,get}.go`, `pkg/storage/cacher`; KEP-3157 for
//! `sendInitialEvents`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{self, Instant};

use super::select::Select;
use super::table::{self, Form};
use super::{Accept, JSON, uncached};
use crate::cluster::Body;
use crate::dev::store::{Change, Changes, Kind, Object, Store};
use crate::request::{Ask, Query};
use crate::status::{Encoding, Refusal, go_quote};

/// How long a watch lasts that does not say: as the API server's minimum, which it draws more from at random.
const DEFAULT_TIME: Duration = Duration::from_secs(30 * 60);

/// How long a watch may last. Nobody waits longer for anything; a longer wish is cut to this.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a client that asked for bookmarks gets one, as upstream does at about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// The bookmark after the initial events carries this.
const INITIAL_END: (&str, &str) = ("k8s.io/initial-events-end", "true");

struct Watch {
    kind: Kind,
    namespace: Option<String>,
    select: Select,
    form: Option<Form>,
    /// What was there when it began, still to be told.
    initial: VecDeque<Object>,
    /// Whether the end of that is to be told.
    initial_end: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    changes: Changes,
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

pub(super) fn watch(
    store: &Arc<Store>,
    kind: Kind,
    namespace: Option<&str>,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    let watch = Watch::new(store, kind, namespace, ask, accept)?;
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    let body = StreamBody::new(lines).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    uncached(response.headers_mut());
    Ok(response)
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

impl Watch {
    fn new(
        store: &Arc<Store>,
        kind: Kind,
        namespace: Option<&str>,
        ask: &Ask,
        accept: &Accept,
    ) -> Result<Self, Refusal> {
        let query = &ask.query;
        let mut select = Select::of(kind, query)?;
        if let Some(resource) = &ask.attributes.resource {
            // The old path `/watch/pods/NAME`; a name read from the field selector is the same again.
            select.only(&resource.name);
        }
        let form = Form::of(ask, accept)?;
        let since = number(query, "resourceVersion")?.unwrap_or(0);
        let bookmarks = query.flag("allowWatchBookmarks");
        let asked = query.first("sendInitialEvents").filter(|value| !value.is_empty());
        let initial_wanted = match asked {
            Some(_) => query.flag("sendInitialEvents"),
            None => since == 0,
        };
        let objects = store.snapshot();
        let mut initial = VecDeque::new();
        if initial_wanted {
            let now = objects.list(kind, namespace);
            initial.extend(now.filter(|object| select.matches(object)).cloned());
        }
        let from = if initial_wanted || since == 0 { objects.version() } else { since };
        let time = number(query, "timeoutSeconds")?.filter(|&seconds| seconds != 0);
        let time = time.map_or(DEFAULT_TIME, Duration::from_secs).min(MAX_TIME);
        let now = Instant::now();
        Ok(Self {
            kind,
            namespace: namespace.map(str::to_owned),
            select,
            form,
            initial,
            initial_end: initial_wanted && asked.is_some() && bookmarks,
            bookmarks,
            next_bookmark: now + BOOKMARK_EVERY,
            deadline: now + time,
            changes: store.changes(from),
            headed: false,
            over: false,
        })
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
                change = self.changes.next() => change,
            };
            match change {
                Ok(change) => {
                    if let Some(line) = self.change(&change) {
                        return Some(line);
                    }
                }
                Err(gone) => {
                    self.over = true;
                    let status = Refusal::Expired(gone.to_string()).response(Encoding::default());
                    let text = String::from_utf8_lossy(status.body()).trim_end().to_owned();
                    let status = RawValue::from_string(text).expect("a Status is JSON");
                    return Some(line("ERROR", status));
                }
            }
        }
    }

    /// The event a change is to this watcher: an object that begins to match is new to it.
    fn change(&mut self, change: &Change) -> Option<Bytes> {
        let matches = |object: &Object| {
            object.kind() == self.kind
                && self.namespace.as_ref().is_none_or(|namespace| namespace == object.namespace())
                && self.select.matches(object)
        };
        match (matches(&change.before), matches(&change.after)) {
            (true, true) => Some(self.event("MODIFIED", &change.after)),
            (false, true) => Some(self.event("ADDED", &change.after)),
            (true, false) => Some(self.event("DELETED", &change.after)),
            (false, false) => None,
        }
    }

    fn event(&mut self, kind: &'static str, object: &Object) -> Bytes {
        match self.form {
            None => line(kind, object),
            Some(form) => {
                let version = object.meta().resource_version.clone().unwrap_or_default();
                let columns = !std::mem::replace(&mut self.headed, true);
                line(kind, table::of(form, self.kind, version, [object], columns))
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
                kind: self.kind.as_str(),
                api_version: self.kind.api_version(),
                metadata: BookmarkMeta { resource_version: self.changes.seen().to_string(), annotations },
            },
        )
    }
}
