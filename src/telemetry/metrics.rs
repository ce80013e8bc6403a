//! Metrics: every series podgate has, registered once, under the prefix `podgate_`.

use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::EndReason;
use crate::status::Refusal;

/// Set-up takes milliseconds beside the kubelet and seconds when something waits.
const SETUP_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Sessions last from one command to a working day.
const DURATION_BUCKETS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 14_400.0, 28_800.0];

/// All series; handles are cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Connections open at the API door.
    pub connections: IntGauge,
    /// Connections accepted by the API door.
    pub connections_accepted: IntCounter,
    /// Connections closed unserved, by reason.
    pub connections_refused: IntCounterVec,
    /// Requests answered by podgate, by status code.
    pub requests: IntCounterVec,
    /// Requests refused by podgate, by reason.
    pub refusals: IntCounterVec,
    /// Requests that the far side refused, by status code.
    pub far_refusals: IntCounterVec,
    /// Files read again, by what they are and how that went.
    pub reloads: IntCounterVec,
    /// Objects known from a watch, by resource.
    pub watch_objects: IntGaugeVec,
    /// Whether a watch is up, by resource.
    pub watch_synced: IntGaugeVec,
    /// Watches begun again, by resource.
    pub watch_restarts: IntCounterVec,
    /// Audit events that a sink has, by sink.
    pub audit_events: IntCounterVec,
    /// Audit events that found no room or were not taken, by sink.
    pub audit_lost: IntCounterVec,
    /// Requests refused because they could not be audited.
    pub audit_refused: IntCounter,
    /// Audit events that wait, by sink.
    pub audit_queue_events: IntGaugeVec,
    /// Their bytes.
    pub audit_queue_bytes: IntGaugeVec,
    /// Whether a sink takes what it is given.
    pub audit_up: IntGaugeVec,
    /// Sessions alive.
    pub sessions: IntGauge,
    sessions_ended: IntCounterVec,
    /// Sessions whose program may still run.
    pub processes_may_remain: IntCounter,
    bytes: IntCounterVec,
    duration: Histogram,
    /// Seconds from request to 101.
    pub setup: Histogram,
    /// Recordings.
    pub recording: Recording,
}

/// Series of recordings.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Bytes written to the spool.
    pub bytes: IntCounter,
    /// Recordings closed, by outcome.
    pub closed: IntCounterVec,
    /// Bytes in the spool.
    pub spool: IntGauge,
    /// Closed recordings that wait for the store.
    pub waiting: IntGauge,
    /// Uploads that failed and will be tried again.
    pub upload_failures: IntCounter,
    /// Times that something could not be recorded.
    pub gaps: IntCounter,
    /// Seconds for which sessions waited for their recorder.
    pub wait: Counter,
}

// === impl Metrics ===

impl Metrics {
    /// A registry of its own, with the process's own series.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let series = IntCounterVec::new(Opts::new(name, help), labels);
            let series = series.expect("a counter's name and labels are valid");
            registry.register(Box::new(series.clone())).expect("a name is registered once");
            series
        };
        let gauge = |name: &str, help: &str| {
            let series = IntGauge::new(name, help).expect("a gauge's name is valid");
            registry.register(Box::new(series.clone())).expect("a name is registered once");
            series
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let series = IntGaugeVec::new(Opts::new(name, help), labels);
            let series = series.expect("a gauge's name and labels are valid");
            registry.register(Box::new(series.clone())).expect("a name is registered once");
            series
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let series = Histogram::with_opts(opts).expect("a histogram's buckets are sorted");
            registry.register(Box::new(series.clone())).expect("a name is registered once");
            series
        };
        let accepted = IntCounter::new(
            "podgate_connections_accepted_total",
            "Connections accepted by the API door. Stable.",
        )
        .expect("a counter's name is valid");
        registry.register(Box::new(accepted.clone())).expect("a name is registered once");
        let unaudited = IntCounter::new(
            "podgate_audit_refused_requests_total",
            "Requests refused because their audit events could not be written. Stable.",
        )
        .expect("a counter's name is valid");
        registry.register(Box::new(unaudited.clone())).expect("a name is registered once");
        let plain = |name: &str, help: &str| {
            let series = IntCounter::new(name, help).expect("a counter's name is valid");
            registry.register(Box::new(series.clone())).expect("a name is registered once");
            series
        };
        let wait = Counter::new(
            "podgate_recording_wait_seconds_total",
            "Seconds for which sessions were not read because the spool is slower than they. Stable.",
        )
        .expect("a counter's name is valid");
        registry.register(Box::new(wait.clone())).expect("a name is registered once");
        let recording = Recording {
            bytes: plain(
                "podgate_recording_bytes_total",
                "Bytes of recordings written to the spool. Stable.",
            ),
            closed: counter(
                "podgate_recording_closed_total",
                "Recordings closed, by outcome: whole, gap (something is missing), cut (podgate was killed), discarded \
                 (no session came of it), unreadable, lost (nothing of it could be written). Stable.",
                &["outcome"],
            ),
            spool: gauge("podgate_recording_spool_bytes", "Bytes in the spool. Stable."),
            waiting: gauge(
                "podgate_recording_waiting_uploads",
                "Closed recordings in the spool that wait for the store. Stable.",
            ),
            upload_failures: plain(
                "podgate_recording_upload_failures_total",
                "Uploads to the store that failed and are tried again. Stable.",
            ),
            gaps: plain(
                "podgate_recording_gaps_total",
                "Times that a part of a session could not be recorded. Stable.",
            ),
            wait,
        };
        let processes_may_remain = plain(
            "podgate_processes_may_remain_total",
            "Sessions that are over while the far side has not said that their program ended. Stable.",
        );
        let metrics = Self {
            recording,
            connections: gauge("podgate_connections", "Connections open at the API door. Stable."),
            connections_accepted: accepted,
            connections_refused: counter(
                "podgate_connections_refused_total",
                "Connections closed unserved: over_limit, handshake_failed, handshake_timeout. Stable.",
                &["reason"],
            ),
            requests: counter(
                "podgate_requests_total",
                "Requests answered by podgate itself, by HTTP status code. Stable.",
                &["code"],
            ),
            refusals: counter(
                "podgate_refusals_total",
                "Requests refused by podgate, by reason. Stable.",
                &["reason"],
            ),
            far_refusals: counter(
                "podgate_far_refusals_total",
                "Session requests that the far side refused, by HTTP status code. Stable.",
                &["code"],
            ),
            reloads: counter(
                "podgate_reloads_total",
                "Files that changed while podgate ran, by what they are and outcome: reloaded, failed. Stable.",
                &["what", "outcome"],
            ),
            watch_objects: gauges(
                "podgate_watch_objects",
                "Objects known from the watches of the API server, by resource. Stable.",
                &["resource"],
            ),
            watch_synced: gauges(
                "podgate_watch_synced",
                "1 while a watch of the API server is up, by resource; sessions work without it. Stable.",
                &["resource"],
            ),
            watch_restarts: counter(
                "podgate_watch_restarts_total",
                "Watches of the API server begun again, by resource; a few each hour are normal. Stable.",
                &["resource"],
            ),
            audit_events: counter(
                "podgate_audit_events_total",
                "Audit events written, by sink: file, stdout, webhook. Stable.",
                &["sink"],
            ),
            audit_lost: counter(
                "podgate_audit_lost_events_total",
                "Audit events that found no room or were not taken, by sink. Stable.",
                &["sink"],
            ),
            audit_refused: unaudited,
            audit_queue_events: gauges(
                "podgate_audit_queue_events",
                "Audit events that wait, by sink. Stable.",
                &["sink"],
            ),
            audit_queue_bytes: gauges(
                "podgate_audit_queue_bytes",
                "Bytes of audit events that wait, by sink. Stable.",
                &["sink"],
            ),
            audit_up: gauges(
                "podgate_audit_up",
                "1 while a sink takes audit events, by sink. Stable.",
                &["sink"],
            ),
            sessions: gauge("podgate_sessions", "Sessions alive. Stable."),
            sessions_ended: counter(
                "podgate_sessions_ended_total",
                "Sessions ended, by subresource and end reason. Stable.",
                &["subresource", "end"],
            ),
            processes_may_remain,
            bytes: counter(
                "podgate_session_bytes_total",
                "Bytes moved by ended sessions: up is client to far side. Stable.",
                &["direction"],
            ),
            duration: histogram(
                "podgate_session_duration_seconds",
                "From 101 to close. Buckets may change.",
                &DURATION_BUCKETS,
            ),
            setup: histogram(
                "podgate_session_setup_seconds",
                "From request head to the far side's 101. Buckets may change.",
                &SETUP_BUCKETS,
            ),
            registry: registry.clone(),
        };
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the process's own series are registered once");
        metrics
    }

    /// Counts an answer that is a refusal of podgate's own.
    pub fn refused(&self, refusal: &Refusal) {
        self.refusals.with_label_values(&[refusal.word()]).inc();
        self.requests.with_label_values(&[refusal.code().as_str()]).inc();
    }

    pub(super) fn session_ended(&self, subresource: &str, end: EndReason, up: u64, down: u64, seconds: f64) {
        self.sessions.dec();
        self.sessions_ended.with_label_values(&[subresource, end.word()]).inc();
        self.bytes.with_label_values(&["up"]).inc_by(up);
        self.bytes.with_label_values(&["down"]).inc_by(down);
        self.duration.observe(seconds);
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("gathered families encode into memory");
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
