//! Publish: writes what sessions this process has into its sheets, and that it lives.
//!
//! One write at a time, and each as little as can be: a session stays on the sheet where it was put, so that its changes cost
//! that sheet and no other. What fails is tried again until it is done; nobody waits for it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Me;
use super::peers::{Peers, digest};
use super::sheet::{Line, Name, ROOM, Sheet};
use crate::cluster::kube::collection::{Collection, Error};
use crate::group::sessions::Form;
use crate::session::live::{Entry, Registry, State};
use crate::telemetry::chain;

/// Bytes up to which sessions are put on a sheet. The rest is for what they say later: of one that has to move, others see
/// nothing between two writes, and take it for ended.
const FULL: usize = ROOM / 2;

/// Writes sheets.
pub(super) struct Publisher {
    maps: Arc<Collection>,
    me: Arc<Me>,
    peers: Arc<Peers>,
    registry: Registry,
    form: Form,
    own: watch::Receiver<u64>,
    /// By their numbers. The first has no sessions.
    pages: Vec<Page>,
    /// The one that was written last, and when one was.
    last: usize,
    written: Instant,
    failing: bool,
}

/// A sheet, as it is to be.
#[derive(Default)]
struct Page {
    /// By uid.
    lines: BTreeMap<String, Kept>,
    bytes: usize,
    /// Whether it is to be written.
    due: bool,
    /// Whether there is a ConfigMap, as far as is known.
    there: bool,
    /// What was written last.
    said: Option<u64>,
}

/// A session, as it is written.
struct Kept {
    version: u64,
    moved: u64,
    text: Box<RawValue>,
}

// === impl Publisher ===

impl Publisher {
    pub(super) fn new(
        maps: Arc<Collection>,
        me: Arc<Me>,
        peers: Arc<Peers>,
        registry: Registry,
        form: Form,
    ) -> Self {
        let own = registry.own();
        let beat = Page { due: true, ..Page::default() };
        let (pages, written) = (vec![beat], Instant::now());
        Self { maps, me, peers, registry, form, own, pages, last: 0, written, failing: false }
    }

    /// Until this process leaves; then what it has written is taken away.
    pub(super) async fn run(mut self, leaving: CancellationToken) {
        let times = self.me.times;
        let (mut not_before, mut refresh) = (self.written, self.written + times.refresh);
        let mut changed = true;
        loop {
            let idle = not_before.max(refresh.min(self.written + times.beat));
            let wake = if changed || self.due().is_some() { not_before } else { idle };
            tokio::select! {
                biased;
                () = leaving.cancelled() => return self.leave().await,
                _ = self.own.changed(), if !changed => {
                    changed = true;
                    not_before = not_before.max(Instant::now() + times.gather);
                    continue;
                }
                lost = self.peers.lost() => {
                    for number in lost {
                        if let Some(page) = usize::try_from(number).ok().and_then(|at| self.pages.get_mut(at)) {
                            (page.there, page.due) = (false, true);
                        }
                    }
                    continue;
                }
                () = sleep_until(wake) => {}
            }
            let now = Instant::now();
            let anew = now >= refresh;
            if anew {
                refresh = now + times.refresh;
                self.mend();
            }
            if changed || anew {
                changed = false;
                self.own.mark_unchanged();
                self.take_in(anew);
            }
            let beat = (now >= self.written + times.beat).then_some(0);
            let Some(number) = self.due().or(beat) else { continue };
            let pause = if self.write(number).await { times.pace } else { times.retry };
            not_before = Instant::now() + pause;
        }
    }

    /// The sheet to be written next: each in its turn.
    fn due(&self) -> Option<usize> {
        let count = self.pages.len();
        (1..=count).map(|step| (self.last + step) % count).find(|&number| self.pages[number].due)
    }

    /// Makes the sheets what they are to be. Bytes that were moved are reason enough to write one only `anew`.
    fn take_in(&mut self, anew: bool) {
        let (entries, _) = self.registry.list(None);
        let live: HashSet<&str> = entries.iter().map(|entry| entry.uid.as_str()).collect();
        for page in &mut self.pages {
            page.retain(|uid| live.contains(uid));
        }
        for entry in &entries {
            let state = entry.state();
            let at = self.pages.iter().position(|page| page.lines.contains_key(&entry.uid));
            let kept = at.and_then(|at| self.pages[at].lines.get(&entry.uid));
            let same = |kept: &Kept| kept.version == state.version && !(anew && kept.moved != state.bytes());
            if !kept.is_some_and(same) {
                self.put(at, entry, &state);
            }
        }
    }

    /// Writes a session on the sheet where it was, or on another that is not full.
    fn put(&mut self, at: Option<usize>, entry: &Entry, state: &State) {
        if let Some(at) = at {
            self.pages[at].retain(|uid| uid != entry.uid);
        }
        let line = Line { at: self.me.up(), session: self.form.own(entry, state) };
        let text = match to_raw_value(&line) {
            Ok(text) if text.get().len() < ROOM => text,
            // No head of a request is that large.
            _ => return debug!(session = entry.name, "a session is too large to be shared"),
        };
        let fits = |page: &Page, bytes| page.bytes + text.get().len() < bytes;
        let here = at.filter(|&at| fits(&self.pages[at], ROOM));
        let first = || self.pages.iter().skip(1).position(|page| fits(page, FULL)).map(|at| at + 1);
        let at = here.or_else(first).unwrap_or(self.pages.len());
        if at == self.pages.len() {
            self.pages.push(Page::default());
        }
        let page = &mut self.pages[at];
        page.due = true;
        // A comma stands between two.
        page.bytes += text.get().len() + 1;
        page.lines.insert(entry.uid.clone(), Kept { version: state.version, moved: state.bytes(), text });
    }

    /// What is not as it was written is written again.
    fn mend(&mut self) {
        for (number, page) in (0..).zip(&mut self.pages) {
            page.due |= page.there && self.peers.said(number) != page.said;
        }
    }

    fn name(&self, number: usize) -> Name {
        // There are fewer than sessions.
        Name::Sheet(self.me.instance.to_string(), u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Whether it was done.
    async fn write(&mut self, number: usize) -> bool {
        let (name, lines) = (self.name(number), self.pages[number].lines.values());
        let (map, text) =
            Sheet::map(&name, &self.me.identity, self.me.up(), lines.map(|kept| kept.text.as_ref()));
        let page = &mut self.pages[number];
        page.said = Some(digest(&text));
        let mut written = match page.there {
            true => self.maps.replace(&name.to_string(), &map).await,
            false => self.maps.create(&map).await,
        };
        written = match written {
            // Somebody took it away.
            Err(Error::Missing) => self.maps.create(&map).await,
            // What was tried before was done.
            Err(Error::Exists) => self.maps.replace(&name.to_string(), &map).await,
            written => written,
        };
        self.last = number;
        match written {
            Ok(_) => {
                (page.there, page.due) = (true, false);
                self.written = Instant::now();
                if std::mem::take(&mut self.failing) {
                    info!("sessions are shared with the other replicas again");
                }
                true
            }
            Err(error) => {
                page.due = true;
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(error = chain(&error), "sessions cannot be shared with the other replicas for now");
                }
                false
            }
        }
    }

    async fn leave(self) {
        for (number, page) in self.pages.iter().enumerate() {
            // One that was tried may be there.
            if !page.there && page.said.is_none() {
                continue;
            }
            match self.maps.delete(&self.name(number).to_string(), None).await {
                Ok(()) | Err(Error::Missing) => {}
                Err(error) => {
                    warn!(error = chain(&error), "cannot take the list of sessions away, the others will");
                    return;
                }
            }
        }
    }
}

// === impl Page ===

impl Page {
    fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        let Self { lines, bytes, due, .. } = self;
        lines.retain(|uid, kept| {
            let stays = stays(uid);
            if !stays {
                *due = true;
                *bytes -= kept.text.get().len() + 1;
            }
            stays
        });
    }
}
