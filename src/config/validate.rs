//! Validate: values that can be read but make no sense.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::{Config, MAX_SIMULATED, UpstreamMode};
use crate::grant;

/// The longest duration that makes sense: a year. Without a bound, adding one to now could overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The longest time for what the API server said of a pod or a node: with more of it a watch that is stuck would decide.
const LONGEST_CONFIRMED: Duration = Duration::from_secs(10);

/// The longest time for a program to end that is hung up: its session holds a seat meanwhile.
const LONGEST_HANG_UP: Duration = Duration::from_secs(10);

/// hyper's least buffer.
const LEAST_HEADER_BYTES: usize = 8192;

/// Something that is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
    /// File and line, when it came from a file.
    pub place: Option<(PathBuf, u64)>,
}

fn problem(key: &str, what: impl Into<String>) -> Problem {
    Problem { key: key.to_owned(), what: what.into(), place: None }
}

impl Config {
    /// What is wrong whatever podgate is to do.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let positive = [
            ("api.maxHttp2Streams", self.api.max_http2_streams as usize),
            ("api.maxConnections", self.api.max_connections),
            ("api.maxHeaders", self.api.max_headers),
            ("api.maxInFlight", self.api.max_in_flight),
            ("admin.maxConnections", self.admin.max_connections),
            ("audit.queueEvents", self.audit.queue_events),
            ("audit.queueBytes", self.audit.queue_bytes),
            ("audit.webhook.batchEvents", self.audit.webhook.batch_events),
            ("cluster.maxWaiting", self.cluster.max_waiting),
            ("session.maxSessions", self.session.max_sessions),
            ("session.maxSessionsPerCaller", self.session.max_sessions_per_caller),
        ];
        problems.extend(
            positive.iter().filter(|(_, value)| *value == 0).map(|(key, _)| problem(key, "is at least 1")),
        );
        if self.api.max_header_bytes < LEAST_HEADER_BYTES {
            problems.push(problem("api.maxHeaderBytes", format!("is at least {LEAST_HEADER_BYTES}")));
        }
        let deadlines = [
            ("api.handshakeTimeout", self.api.handshake_timeout),
            ("api.headerTimeout", self.api.header_timeout),
            ("api.writeTimeout", self.api.write_timeout),
            ("api.requestTimeout", self.api.request_timeout),
            ("admin.headerTimeout", self.admin.header_timeout),
            ("audit.blockingTimeout", self.audit.blocking_timeout),
            ("audit.flushTimeout", self.audit.flush_timeout),
            ("audit.webhook.timeout", self.audit.webhook.timeout),
            ("cluster.connectTimeout", self.cluster.connect_timeout),
            ("cluster.reviewTimeout", self.cluster.review_timeout),
            ("cluster.readTimeout", self.cluster.read_timeout),
            ("upstream.connectTimeout", self.upstream.connect_timeout),
            ("upstream.handshakeTimeout", self.upstream.handshake_timeout),
            ("upstream.upgradeTimeout", self.upstream.upgrade_timeout),
            ("session.refusalTimeout", self.session.refusal_timeout),
            ("session.openTimeout", self.session.open_timeout),
            ("policy.grants.longest", self.policy.grants.longest),
            ("reload.period", self.reload.period),
        ];
        for (key, value) in deadlines {
            if value < Duration::from_millis(1) || value > LONGEST {
                problems.push(problem(key, "is from 1ms to 8760h"));
            }
        }
        let bounded = [
            ("authentication.tokenReview.allowedFor", self.authentication.token_review.allowed_for),
            ("authentication.tokenReview.deniedFor", self.authentication.token_review.denied_for),
            ("authorization.allowedFor", self.authorization.allowed_for),
            ("authorization.deniedFor", self.authorization.denied_for),
            ("audit.file.maxAge", self.audit.file.max_age),
            ("audit.webhook.batchWait", self.audit.webhook.batch_wait),
            ("session.linger", self.session.linger),
            ("session.recheckPeriod", self.session.recheck_period),
            ("session.maxDuration", self.session.max_duration),
            ("session.idleTimeout", self.session.idle_timeout),
            ("drain.announce", self.drain.announce),
            ("policy.grants.keep", self.policy.grants.keep),
            ("drain.deadline", self.drain.deadline),
        ];
        problems.extend(
            bounded
                .iter()
                .filter(|(_, value)| *value > LONGEST)
                .map(|(key, _)| problem(key, "is at most 8760h")),
        );
        // What the kernel takes for TCP_KEEPIDLE (tcp(7)), in whole seconds.
        let keepalives =
            [("api.keepalive", self.api.keepalive), ("upstream.keepalive", self.upstream.keepalive)];
        for (key, value) in keepalives {
            if !(Duration::from_secs(1)..=Duration::from_secs(32_767)).contains(&value) {
                problems.push(problem(key, "is from 1s to 32767s"));
            }
        }
        // tcp(7), TCP_USER_TIMEOUT, is in milliseconds; less than keepalive's pace would end peers that are there.
        for (key, value, least) in [
            ("api.userTimeout", self.api.user_timeout, self.api.keepalive),
            ("upstream.userTimeout", self.upstream.user_timeout, self.upstream.keepalive),
        ] {
            if !value.is_zero() && !(least..=Duration::from_secs(24 * 3600)).contains(&value) {
                problems.push(problem(key, "is 0, or from keepalive to 24h"));
            }
        }
        if self.cluster.confirmed_for > LONGEST_CONFIRMED {
            problems.push(problem("cluster.confirmedFor", "is at most 10s"));
        }
        if self.session.hang_up > LONGEST_HANG_UP {
            problems.push(problem("session.hangUp", "is at most 10s"));
        }
        if self.upstream.preferred_address_types.is_empty() {
            let what = "names at least one type, such as InternalIP";
            problems.push(problem("upstream.preferredAddressTypes", what));
        }
        let pod = &self.cluster.pod;
        if let Some(namespace) = pod.namespace.as_ref().filter(|name| !grant::rules::is_namespace(name)) {
            problems
                .push(problem("cluster.pod.namespace", format!("{namespace:?} is no name of a namespace")));
        }
        if pod.uid.is_some() && pod.name.is_none() {
            let what =
                "needs cluster.pod.name: the cluster takes away what belongs to a pod that it does not find";
            problems.push(problem("cluster.pod.uid", what));
        }
        let further = self.recording.problems().into_iter().chain(self.policy.problems());
        problems.extend(further.map(|(key, what)| problem(&key, what)));
        problems
    }

    /// What is wrong for `podgate dev`.
    pub(super) fn dev_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.policy.from_api {
            let what =
                "is for podgate serve: the embedded cluster keeps no policies; name them in policy.files";
            problems.push(problem("policy.fromApi", what));
        }
        if self.session.share {
            problems.push(problem("session.share", "is for podgate serve: podgate dev is one process alone"));
        }
        if self.dev.simulate > MAX_SIMULATED {
            problems.push(problem("dev.simulate", format!("is more than {MAX_SIMULATED} pods")));
        }
        for (key, addr) in [("api.listen", self.api.listen), ("admin.listen", self.admin.listen)] {
            if !self.dev.danger_listen_beyond_loopback && !addr.ip().is_loopback() {
                let what = format!(
                    "{addr} is not a loopback address; commands in dev pods run as you, so this takes \
                     --danger-listen-beyond-loopback"
                );
                problems.push(problem(key, what));
            }
        }
        problems
    }

    /// What is wrong for `podgate serve`.
    pub(super) fn serve_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(self.recording.missing().into_iter().map(|(key, what)| problem(&key, what)));
        if self.api.tls.is_none() {
            problems.push(problem("api.tls", "certFile and keyFile are needed: podgate serves TLS only"));
        }
        if !self.authentication.knows_somebody() {
            let what =
                "nobody could be known; set clientCAFile, tokenFile, oidcFile, requestHeader or tokenReview";
            problems.push(problem("authentication", what));
        }
        if let Some(header) = &self.authentication.request_header {
            if header.allowed_names.is_empty()
                && self.authentication.client_ca_file.as_ref() == Some(&header.client_ca_file)
            {
                let what = "is needed where clientCAFile is that of users as well: else each of them could be anybody";
                problems.push(problem("authentication.requestHeader.allowedNames", what));
            }
            let lists = [
                ("usernameHeaders", &header.username_headers),
                ("groupHeaders", &header.group_headers),
                ("uidHeaders", &header.uid_headers),
                ("extraHeaderPrefixes", &header.extra_header_prefixes),
            ];
            for (key, names) in lists {
                let key = format!("authentication.requestHeader.{key}");
                if names.is_empty() && key.ends_with("usernameHeaders") {
                    problems.push(problem(&key, "names at least one header"));
                }
                for name in names.iter().filter(|name| name.parse::<HeaderName>().is_err()) {
                    problems.push(problem(&key, format!("{name:?} is no header name")));
                }
            }
        }
        if self.session.share && self.cluster.kubeconfig.is_some() && self.cluster.pod.namespace.is_none() {
            let what = "needs cluster.pod.namespace: the namespace whose ConfigMaps replicas share";
            problems.push(problem("session.share", what));
        }
        let kubelet = &self.upstream.kubelet;
        if self.upstream.mode == UpstreamMode::ApiServer && *kubelet != super::Kubelet::default() {
            problems.push(problem("upstream.kubelet", "is for upstream.mode kubelet alone"));
        }
        if kubelet.client.is_some() && kubelet.token_file.is_some() {
            let what =
                "podgate shows kubelets either a certificate or a token; leave client or tokenFile out";
            problems.push(problem("upstream.kubelet", what));
        }
        if kubelet.danger_accept_any_certificate && kubelet.ca_file.is_some() {
            let what = "says that no certificate is verified, and caFile says with what; leave one out";
            problems.push(problem("upstream.kubelet.dangerAcceptAnyCertificate", what));
        }
        if let Some(name) = &kubelet.server_name
            && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            problems
                .push(problem("upstream.kubelet.serverName", format!("{name:?} is no DNS name or address")));
        }
        problems
    }
}
