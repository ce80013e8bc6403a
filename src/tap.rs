//! Tap: what is written about a session; open before any byte moves.
//!
//! In the flow: after `policy`, which says whether a session is recorded, before `upstream`; a [`Tapped`] is the proof
//! that its recording has begun, or that none is demanded, and only that can be dialled: no record, no session.
//! Recordings are written to a spool and go from there to a store. What was left by a process that was killed is
//! recovered and goes there as well.
//! Invariants: no header, protocol or mode of a client has any say in it; a recording leaves the spool only when the
//! store has it; what cannot be read is kept.

pub mod echo;
pub mod record;
mod spares;
pub mod spool;
#[cfg(test)]
mod tests;
pub mod upload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use crate::config::recording::Record;
use crate::drain::Drain;
use crate::locate::Place;
use crate::policy::{Admitted, Terms};
use crate::recording::facts::{Details, Facts};
use crate::recording::keys::Keys;
use crate::telemetry::{Metrics, chain, metrics};
use record::{Begin, Recorder};
use spares::Spares;
use spool::{Disk, Spool};
use upload::Store;

/// How often the spool is tried while nobody writes to it, and looked through for what was left there.
const LOOK: Duration = Duration::from_secs(10);

/// The stage.
pub struct Stage {
    recordings: Option<Recordings>,
}

/// A session that was admitted and is recorded, if it has to be. Only this room makes one.
pub struct Tapped {
    admitted: Admitted,
    recorder: Option<Recorder>,
    /// Whether the far side may have begun what it was asked for.
    begun: AtomicBool,
}

/// What a recording tells about a request besides its place.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The client's address.
    pub client: SocketAddr,
    /// The audit id of the request.
    pub audit_id: String,
}

/// Recordings of this process; cheap to clone.
#[derive(Clone)]
pub struct Recordings(Arc<Inner>);

struct Inner {
    spool: Arc<Spool>,
    keys: Keys,
    drain: Drain,
    metrics: metrics::Recording,
    writable: AtomicBool,
    closed: Notify,
    /// Closed recordings that wait; none where there is no store to wait for.
    waiting: watch::Sender<u64>,
    has_store: bool,
    spares: Spares,
}

/// Where recordings are written, and what for.
pub struct Settings {
    /// The spool's folder.
    pub dir: PathBuf,
    /// Bytes that may be in it.
    pub max_bytes: u64,
    /// Who signs, and who may read.
    pub keys: Keys,
    /// Where they go.
    pub store: Option<Store>,
}

// === impl Stage ===

impl Stage {
    /// Nothing is recorded.
    pub fn off() -> Self {
        Self { recordings: None }
    }

    /// What is admitted on these terms is recorded.
    pub fn new(recordings: Recordings) -> Self {
        Self { recordings: Some(recordings) }
    }

    /// Begins what has to be begun before the far side is asked.
    ///
    /// # Errors
    /// When there can be no recording where one is demanded.
    pub async fn open(&self, admitted: Admitted, opening: &Opening) -> Result<Tapped, record::Error> {
        let Some(recordings) = &self.recordings else { return Ok(Tapped::new(admitted, None)) };
        let (place, terms) = (admitted.place(), admitted.terms());
        let (user, exec) = (place.caller().user(), place.exec());
        let (rule, demand) = &terms.record;
        let strict = match demand.record {
            Record::Off => return Ok(Tapped::new(admitted, None)),
            Record::Strict => true,
            Record::Tolerant => false,
        };
        let facts = Facts {
            id: uuid::Uuid::new_v4().to_string(),
            audit_id: opening.audit_id.clone(),
            started: Timestamp::now(),
            subresource: exec.subresource.as_str().to_owned(),
            namespace: exec.namespace.clone(),
            pod: exec.pod.clone(),
            container: place.container().to_owned(),
            node: place.node().to_owned(),
            user: user.name.clone(),
            groups: user.groups.clone(),
            impersonator: place.caller().impersonator().map(|user| user.name.clone()).unwrap_or_default(),
            client: opening.client.to_string(),
            tty: exec.tty,
            stdin: exec.stdin,
            records_stdin: demand.stdin,
            rule: rule.clone(),
        };
        let command = exec.command.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let details = Details { command, ports: exec.ports.clone() };
        let recorder = Recorder::begin(recordings, Begin { facts, details, strict }).await?;
        Ok(Tapped::new(admitted, Some(recorder)))
    }
}

// === impl Tapped ===

impl Tapped {
    fn new(admitted: Admitted, recorder: Option<Recorder>) -> Self {
        Self { admitted, recorder, begun: AtomicBool::new(false) }
    }

    /// The place.
    pub fn place(&self) -> &Place {
        self.admitted.place()
    }

    /// What its session is held to.
    pub fn terms(&self) -> &Terms {
        self.admitted.terms()
    }

    /// Whether its session is recorded.
    pub fn is_recorded(&self) -> bool {
        self.recorder.is_some()
    }

    /// The far side is asked now: from here on there will be a recording. `begins` says whether it may do at once what it
    /// is asked for, whoever has left meanwhile.
    pub fn keep(&self, begins: bool) {
        self.begun.fetch_or(begins && self.place().exec().runs().own(), Ordering::Relaxed);
        self.recorder.iter().for_each(Recorder::keep);
    }

    /// The far side has refused.
    pub fn forgo(&self) {
        self.begun.store(false, Ordering::Relaxed);
        self.recorder.iter().for_each(Recorder::forgo);
    }

    /// Whether the far side may run a program of this session, for all that it has said.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// What will record its session.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// What was admitted, and what records its session. Without the latter it leaves nothing.
    pub fn into_parts(self) -> (Admitted, Option<Recorder>) {
        (self.admitted, self.recorder)
    }
}

// === impl Recordings ===

impl Recordings {
    /// Opens the spool, and takes care of what is in it until the drain stops. Does blocking I/O.
    ///
    /// # Errors
    /// When the spool cannot be used.
    pub fn start(settings: Settings, drain: &Drain, metrics: &Metrics) -> Result<Self, spool::Error> {
        Self::start_on(spool::Plain, settings, drain, metrics)
    }

    /// The same on a disk of one's own.
    ///
    /// # Errors
    /// When the spool cannot be used.
    pub fn start_on(
        disk: impl Disk + 'static,
        settings: Settings,
        drain: &Drain,
        metrics: &Metrics,
    ) -> Result<Self, spool::Error> {
        let metrics = metrics.recording.clone();
        let spool = Spool::open(&settings.dir, settings.max_bytes, metrics.spool.clone(), disk)?;
        let inner = Inner {
            spool,
            keys: settings.keys,
            drain: drain.clone(),
            metrics,
            writable: AtomicBool::new(true),
            closed: Notify::new(),
            waiting: watch::Sender::new(0),
            has_store: settings.store.is_some(),
            spares: Spares::new(record::TAPE),
        };
        let recordings = Self(Arc::new(inner));
        drain.spawn(recordings.clone().look());
        if let Some(store) = settings.store {
            drain.spawn(upload::run(recordings.clone(), store));
        }
        Ok(recordings)
    }

    /// Whether the spool takes what is written, as far as is known.
    pub fn is_writable(&self) -> bool {
        self.0.writable.load(Ordering::Relaxed)
    }

    /// Resolves when no closed recording waits for the store any more. Cancel safe.
    pub async fn settled(&self) {
        let mut waiting = self.0.waiting.subscribe();
        // The sender lives as long as this does.
        let _ = waiting.wait_for(|&waiting| waiting == 0).await;
    }

    fn spool(&self) -> &Arc<Spool> {
        &self.0.spool
    }

    fn keys(&self) -> &Keys {
        &self.0.keys
    }

    fn drain(&self) -> &Drain {
        &self.0.drain
    }

    fn spares(&self) -> &Spares {
        &self.0.spares
    }

    fn metrics(&self) -> &metrics::Recording {
        &self.0.metrics
    }

    /// Somebody has written to the spool, or could not.
    fn tell(&self, writable: bool) {
        self.0.writable.store(writable, Ordering::Relaxed);
    }

    /// A recording waits for the store.
    fn closed(&self) {
        if self.0.has_store {
            self.0.waiting.send_modify(|waiting| *waiting += 1);
            self.0.closed.notify_one();
        }
    }

    /// Tries the spool, and recovers what nobody writes any more.
    async fn look(self) {
        let mut failed = false;
        loop {
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                this.recover();
                this.spool().probe()
            });
            match looked.await {
                Ok(Ok(())) => {
                    self.tell(true);
                    if std::mem::take(&mut failed) {
                        info!("the spool can be written again");
                    }
                }
                Ok(Err(error)) => {
                    self.tell(false);
                    if !std::mem::replace(&mut failed, true) {
                        error!(
                            error = chain(&error),
                            "the spool cannot be written: strict sessions are refused"
                        );
                    }
                }
                Err(panic) => error!(error = chain(&panic), "the look at the spool went wrong"),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.drain().stopping() => return,
            }
        }
    }

    /// Closes what a process that was killed has left. Does blocking I/O.
    fn recover(&self) {
        let orphans = match self.spool().orphans() {
            Ok(orphans) => orphans,
            Err(error) => return warn!(error = chain(&error), "the spool cannot be looked through"),
        };
        for name in orphans {
            match record::recover(self, &name) {
                Ok(()) => {
                    info!(recording.file = name, "a recording that was cut off is recovered");
                    self.closed();
                }
                Err(record::Unrecovered::Later(error)) => {
                    warn!(
                        recording.file = name,
                        error = chain(&error),
                        "a recording cannot be recovered yet"
                    );
                }
                Err(record::Unrecovered::Unreadable(error)) => {
                    let file = format!("{name}{}", spool::PART);
                    self.metrics().closed.with_label_values(&["unreadable"]).inc();
                    match self.spool().set_aside(&file) {
                        Ok(path) => error!(
                            path = %path.display(),
                            error = chain(&error),
                            "what is left of a recording cannot be read; it is kept there"
                        ),
                        Err(error) => {
                            error!(recording.file = file, error = chain(&error), "it cannot be moved")
                        }
                    }
                }
            }
        }
    }
}
