//! Settings of audit.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// What is written about requests, and where to. Without a sink nothing is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Audit {
    /// kube-apiserver's audit policy: which requests, at which level. Without one, metadata of all but health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_file: Option<PathBuf>,
    /// Whether requests wait for their events.
    pub mode: Mode,
    /// What happens to new requests while a sink cannot be written.
    pub when_down: WhenDown,
    /// How long a request waits for its event, in mode `blocking`.
    #[serde(with = "duration")]
    pub blocking_timeout: Duration,
    /// How long events may be written on after everything else has stopped.
    #[serde(with = "duration")]
    pub flush_timeout: Duration,
    /// Events that may wait for each sink; those that requests under way have yet to write are among them.
    pub queue_events: usize,
    /// Bytes of them.
    pub queue_bytes: usize,
    /// Bytes of a request's or an answer's object in an event; more are left out.
    pub max_object_bytes: usize,
    /// A file.
    pub file: AuditFile,
    /// Whether events go to standard output.
    pub stdout: bool,
    /// Somebody else's server.
    pub webhook: Webhook,
}

/// Whether requests wait for their events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// They do not.
    #[default]
    Batch,
    /// A request goes on when the sinks have its event.
    Blocking,
}

/// What happens to new requests while a sink cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhenDown {
    /// They are 503.
    #[default]
    Refuse,
    /// They are served; events that find no room are counted, and the sink is told so later.
    Continue,
}

/// A file of events, one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct AuditFile {
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Bytes after which it is put aside; 0 is never.
    pub max_bytes: u64,
    /// Files put aside that are kept; 0 is all.
    pub max_files: usize,
    /// How long they are kept; 0 is for ever.
    #[serde(with = "duration")]
    pub max_age: Duration,
}

/// A server that is sent events in batches, as kube-apiserver does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Webhook {
    /// A kubeconfig whose server is the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// Events of a batch at most.
    pub batch_events: usize,
    /// How long a batch waits for more of them.
    #[serde(with = "duration")]
    pub batch_wait: Duration,
    /// For one batch, from connecting to the end of the answer.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Batches per second at most; 0 is no limit.
    pub max_batches_per_second: u64,
}

// === impl Audit ===

impl Audit {
    /// Whether events go anywhere.
    pub fn has_sinks(&self) -> bool {
        self.file.path.is_some() || self.stdout || self.webhook.kubeconfig.is_some()
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            policy_file: None,
            mode: Mode::Batch,
            when_down: WhenDown::Refuse,
            blocking_timeout: Duration::from_secs(5),
            flush_timeout: Duration::from_secs(5),
            // Several for every session and every request that podgate serves at once by default.
            queue_events: 16_384,
            queue_bytes: 64 * 1024 * 1024,
            max_object_bytes: 256 * 1024,
            file: AuditFile::default(),
            stdout: false,
            webhook: Webhook::default(),
        }
    }
}

impl Default for AuditFile {
    fn default() -> Self {
        Self { path: None, max_bytes: 100 * 1024 * 1024, max_files: 10, max_age: Duration::ZERO }
    }
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            // kube-apiserver's batch and rate (`--audit-webhook-batch-max-size`, `-throttle-qps`). Its wait of 30 s is long
            // for those who look at what happens now.
            batch_events: 400,
            batch_wait: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            max_batches_per_second: 10,
        }
    }
}
