//! Logs: what main processes wrote, kept in memory line by line, and the kubelet's way of reading it.
//!
//! In the flow: `container` writes one [`RunLog`] per run of a process; [`answer`] serves
//! `/containerLogs/{namespace}/{pod}/{container}`. There is no task behind a reader: its body asks the log
//! for more when the connection wants more, so a reader that goes away ends it, and one that does not read
//! costs a position. A follower that falls behind what is kept goes on with the oldest line there is, as one
//! does whose file was rotated away. A log that is followed ends with the run it is of.
//!
//! Lines longer than [`MAX_LINE`] are kept in pieces, as containerd does, and a last line without its end is
//! given one; a line that is not finished is not shown yet.
//! Source: `protocol.md` 1.8; kubelet `pkg/kubelet/server/server.go` (`getContainerLogs`),
//! `kuberuntime/logs/logs.go`; containerd `internal/cri/io/logger.go`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

use super::container::{Containers, Kept};
use crate::cluster::Body;
use crate::dev::log_options::LogOptions;
use crate::request::Query;

/// Most bytes of a line that stay together: containerd's `max_container_log_line_size`.
const MAX_LINE: usize = 16 * 1024;

/// What a kept line costs beyond its text, in bytes, so that many short ones are bounded too.
const LINE_COST: usize = 64;

/// A body's pieces are about this long at most, in bytes: as much as is worth one write.
const CHUNK: usize = 32 * 1024;

/// What one run of a process wrote.
#[derive(Debug)]
pub(super) struct RunLog {
    lines: Mutex<Lines>,
    changed: watch::Sender<()>,
    /// Most that is kept, in bytes; beyond it the oldest lines go.
    limit: usize,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Line>,
    /// How many were dropped before the first one kept.
    dropped: u64,
    cost: usize,
    ended: bool,
}

/// A line, or a piece of a long one.
#[derive(Debug)]
struct Line {
    at: Timestamp,
    /// Which output it came from. Readers get both: kubectl cannot ask for one.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "kept for readers of a single stream, which are an alpha")
    )]
    source: Source,
    text: Bytes,
    /// Whether a line ends with it.
    ends: bool,
}

/// An output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

/// Cuts one output into lines.
pub(super) struct Cutter {
    log: Arc<RunLog>,
    source: Source,
    rest: BytesMut,
}

/// A place in a log, and what is still wanted of it.
struct Reader {
    log: Arc<RunLog>,
    signal: watch::Receiver<()>,
    /// Number of the next line, counted from the run's first.
    next: u64,
    /// Where to stop; `None` to follow.
    end: Option<u64>,
    since: Option<Timestamp>,
    timestamps: bool,
    /// Bytes that may still be sent.
    left: usize,
    /// Whether the next piece begins a line.
    fresh: bool,
}

// === impl RunLog ===

impl RunLog {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let (changed, _) = watch::channel(());
        Arc::new(Self { lines: Mutex::default(), changed, limit })
    }

    /// Nothing comes any more: those who follow are done.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.send_replace(());
    }

    /// For one of the outputs.
    pub(super) fn cutter(self: &Arc<Self>, source: Source) -> Cutter {
        Cutter { log: self.clone(), source, rest: BytesMut::new() }
    }

    fn push(&self, line: Line) {
        let mut lines = self.lock();
        lines.cost += line.text.len() + LINE_COST;
        lines.kept.push_back(line);
        while lines.cost > self.limit
            && let Some(oldest) = lines.kept.pop_front()
        {
            lines.cost -= oldest.text.len() + LINE_COST;
            lines.dropped += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Nothing panics with the lines in hand.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the options ask for, piece by piece; ends when it is all told, or with the run when it is
    /// followed.
    fn read(self: Arc<Self>, options: &LogOptions, now: Timestamp) -> Body {
        let signal = self.changed.subscribe();
        let (first, last) = {
            let lines = self.lock();
            (lines.dropped, lines.dropped + lines.kept.len() as u64)
        };
        let tail = options.tail_lines.and_then(|lines| u64::try_from(lines).ok());
        let reader = Reader {
            next: tail.map_or(first, |tail| last.saturating_sub(tail).max(first)),
            end: (!options.follow).then_some(last),
            since: options.since(now),
            timestamps: options.timestamps,
            left: options.limit_bytes.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0)),
            fresh: true,
            log: self,
            signal,
        };
        let pieces = stream::unfold(reader, |mut reader| async move {
            let piece = reader.piece().await?;
            Some((Ok::<_, Infallible>(Frame::data(piece)), reader))
        });
        StreamBody::new(pieces).map_err(|never| match never {}).boxed_unsync()
    }
}

// === impl Cutter ===

impl Cutter {
    /// Takes what the process wrote.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let before = self.rest.len();
        while let Some((length, ends)) = self.whole() {
            let text = self.rest.split_to(length).freeze();
            let text = if ends { text.slice(..length - 1) } else { text };
            self.push(text, ends);
        }
        if self.rest.len() != before {
            self.log.changed.send_replace(());
        }
    }

    /// The length of the next line or piece of one, if it is whole.
    fn whole(&self) -> Option<(usize, bool)> {
        let within = &self.rest[..self.rest.len().min(MAX_LINE + 1)];
        match within.iter().position(|byte| *byte == b'\n') {
            Some(at) => Some((at + 1, true)),
            None if within.len() > MAX_LINE => Some((MAX_LINE, false)),
            None => None,
        }
    }

    fn push(&self, text: Bytes, ends: bool) {
        // A copy, so that a line does not hold the buffer that it came in.
        let text = Bytes::copy_from_slice(&text);
        self.log.push(Line { at: Timestamp::now(), source: self.source, text, ends });
    }
}

impl Drop for Cutter {
    /// What is left is a line too.
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            let rest = self.rest.split().freeze();
            self.push(rest, true);
            self.log.changed.send_replace(());
        }
    }
}

// === impl Reader ===

impl Reader {
    /// The next piece, as soon as there is one.
    async fn piece(&mut self) -> Option<Bytes> {
        loop {
            self.signal.mark_unchanged();
            let (piece, over) = self.take();
            if !piece.is_empty() {
                return Some(piece);
            }
            if over {
                return None;
            }
            // The sender is in the log this holds.
            self.signal.changed().await.ok()?;
        }
    }

    /// What there is now, and whether no more will come.
    fn take(&mut self) -> (Bytes, bool) {
        let mut piece = Vec::new();
        let log = self.log.clone();
        let lines = log.lock();
        let all = lines.dropped + lines.kept.len() as u64;
        let end = self.end.map_or(all, |end| end.min(all));
        self.next = self.next.max(lines.dropped);
        while self.next < end && self.left > 0 && piece.len() < CHUNK {
            let index = usize::try_from(self.next - lines.dropped).unwrap_or(usize::MAX);
            let Some(line) = lines.kept.get(index) else { break };
            self.next += 1;
            if self.since.is_some_and(|since| line.at < since) {
                continue;
            }
            let before = piece.len();
            if self.timestamps && self.fresh {
                piece.extend_from_slice(stamp(line.at).as_bytes());
            }
            piece.extend_from_slice(&line.text);
            if line.ends {
                piece.push(b'\n');
            }
            self.fresh = line.ends;
            piece.truncate(before.saturating_add(self.left));
            self.left -= piece.len() - before;
        }
        let over = self.left == 0 || (self.next >= end && (self.end.is_some() || lines.ended));
        (piece.into(), over)
    }
}

/// The kubelet's `RFC3339NanoFixed`, in UTC, and a blank.
fn stamp(at: Timestamp) -> String {
    let mut text = String::with_capacity(32);
    let _ = write!(text, "{} ", at.strftime("%Y-%m-%dT%H:%M:%S.%9fZ"));
    text
}

/// Answers a request for a container's log; `None` when the path is another.
pub(super) fn answer<B>(containers: &Containers, request: &Request<B>) -> Option<Response<Body>> {
    let path = request.uri().path().strip_prefix("/containerLogs/")?;
    let names: Vec<_> = path.split('/').map(|name| percent_decode_str(name).decode_utf8().ok()).collect();
    let [Some(namespace), Some(pod), Some(container)] = names.as_slice() else {
        return Some(text(StatusCode::NOT_FOUND, "404 page not found\n".into()));
    };
    if request.method() != Method::GET {
        return Some(text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed".into()));
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let Ok(options) = LogOptions::decode(&query) else {
        return Some(text(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#.into()));
    };
    if !options.problems().is_empty() {
        return Some(text(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#.into()));
    }
    let log = match containers.log(namespace, pod, container, options.previous) {
        Kept::Log(log) => log,
        Kept::NoPod => {
            return Some(text(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist\n")));
        }
        Kept::NoContainer => {
            let what = format!("container {container:?} not found in pod {pod:?}\n");
            return Some(text(StatusCode::NOT_FOUND, what));
        }
        Kept::NoPrevious => {
            let what = format!("previous terminated container {container:?} in pod {pod:?} not found");
            return Some(text(StatusCode::BAD_REQUEST, what));
        }
    };
    let mut answer = Response::new(log.read(&options, Timestamp::now()));
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    Some(answer)
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    super::plain(status, text).map(whole)
}

/// A body that is there already.
pub(super) fn whole(body: Full<Bytes>) -> Body {
    body.map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::{Duration, timeout};

    use super::*;

    fn log_of(text: &[u8]) -> Arc<RunLog> {
        let log = RunLog::new(usize::MAX);
        log.cutter(Source::Stdout).write(text);
        log
    }

    fn options(query: &str) -> LogOptions {
        LogOptions::decode(&Query::parse(query)).unwrap()
    }

    async fn read(log: &Arc<RunLog>, query: &str) -> String {
        let body = log.clone().read(&options(query), Timestamp::now());
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn tail_and_limit_cut_the_beginning_and_the_end() {
        let log = log_of(b"one\ntwo\nthree");
        for (query, text) in [
            ("", "one\ntwo\nthree\n"),
            ("tailLines=2", "two\nthree\n"),
            ("tailLines=0", ""),
            ("tailLines=9", "one\ntwo\nthree\n"),
            ("limitBytes=5", "one\nt"),
            ("tailLines=2&limitBytes=1", "t"),
            ("sinceSeconds=3600", "one\ntwo\nthree\n"),
            ("sinceTime=2999-01-01T00:00:00Z", ""),
        ] {
            assert_eq!(read(&log, query).await, text, "{query}");
        }
    }

    #[tokio::test]
    async fn since_takes_lines_of_that_moment_and_later() {
        let log = RunLog::new(usize::MAX);
        for second in [10, 20, 30] {
            let at = Timestamp::from_second(second).unwrap();
            let text = Bytes::from(second.to_string());
            log.push(Line { at, source: Source::Stderr, text, ends: true });
        }
        assert_eq!(read(&log, "sinceTime=1970-01-01T00:00:20Z").await, "20\n30\n");
        assert_eq!(read(&log, "sinceTime=1970-01-01T00:00:20Z&tailLines=1").await, "30\n");
        assert_eq!(
            read(&log, "timestamps=1&tailLines=2&limitBytes=33").await,
            "1970-01-01T00:00:20.000000000Z 20"
        );
        let sources: Vec<_> = log.lock().kept.iter().map(|line| line.source).collect();
        assert_eq!(sources, [Source::Stderr; 3]);
    }

    #[tokio::test]
    async fn a_long_line_is_one_line_with_one_timestamp() {
        let long = "x".repeat(2 * MAX_LINE + 5);
        let log = log_of(format!("{long}\nnext\n").as_bytes());
        assert_eq!(log.lock().kept.len(), 4);
        assert!(read(&log, "").await == format!("{long}\nnext\n"));
        assert_eq!(read(&log, "timestamps=1").await.matches("Z ").count(), 2);
    }

    #[tokio::test]
    async fn beyond_the_bound_the_oldest_whole_lines_go() {
        let log = RunLog::new(3 * (LINE_COST + 4));
        let mut cutter = log.cutter(Source::Stdout);
        for number in 1000..1010 {
            cutter.write(format!("{number}\n").as_bytes());
        }
        assert_eq!(read(&log, "").await, "1007\n1008\n1009\n");
        assert!(log.lock().cost <= log.limit);
    }

    #[tokio::test]
    async fn a_follower_gets_each_line_as_it_comes_and_ends_with_the_run() {
        let log = RunLog::new(usize::MAX);
        let mut cutter = log.cutter(Source::Stdout);
        cutter.write(b"old\n");
        let mut body = log.clone().read(&options("follow=1&tailLines=0"), Timestamp::now());
        let soon = Duration::from_secs(20);
        for line in ["a\n", "b\n"] {
            assert!(timeout(Duration::from_millis(20), body.frame()).await.is_err(), "nothing to tell");
            cutter.write(line.as_bytes());
            let frame = timeout(soon, body.frame()).await.unwrap().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), line);
        }
        cutter.write(b"rest");
        drop(cutter);
        log.end();
        let rest = timeout(soon, body.collect()).await.unwrap().unwrap().to_bytes();
        assert_eq!(rest, "rest\n");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_follow_ends_where_the_log_ended_when_it_came() {
        let log = log_of(b"a\n");
        let body = log.clone().read(&options(""), Timestamp::now());
        log.cutter(Source::Stdout).write(b"b\n");
        assert_eq!(body.collect().await.unwrap().to_bytes(), "a\n");
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(lines in proptest::collection::vec("[a-z]{0,9}", 0..20), size in 1usize..7) {
            let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let log = RunLog::new(usize::MAX);
            let mut cutter = log.cutter(Source::Stdout);
            text.as_bytes().chunks(size).for_each(|bytes| cutter.write(bytes));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert_eq!(runtime.block_on(read(&log, "")), text);
        }
    }
}
