//! House rules before and while a session lives, from files that change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podgate::config::Config;
use podgate::config::recording::Record;
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, exec_request, read_exactly, read_to_end, send};
use podgate::testing::{Answer, soon, until};

use crate::recording::recording_into;
use crate::rig::{Rig, rig_with};

/// How long a session may go on that rules no longer allow.
const WITHIN: Duration = Duration::from_secs(5);

fn policy(rules: &str) -> String {
    let rules: String = rules.lines().map(|rule| format!("  - {}\n", rule.trim())).collect();
    format!(
        "apiVersion: podgate.dev/v1alpha1\nkind: ExecPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n{rules}"
    )
}

/// Settings with these rules, in a file.
fn ruled(mut config: Config, folder: &Path, rules: &str) -> (Config, PathBuf) {
    let path = folder.join("policy.yaml");
    std::fs::write(&path, policy(rules)).unwrap();
    config.policy.files = vec![path.clone()];
    config.reload.period = Duration::from_millis(20);
    (config, path)
}

/// At once: a look between truncating and writing would see no rules.
pub(crate) fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

async fn asked(rig: &Rig, user: &str, headers: &str) -> Answer {
    let mut io = rig.gateway.connect_as(user).await;
    send(&mut io, &exec_request("command=id&container=app", headers)).await;
    Answer::read(&mut io).await.expect("an answer")
}

#[tokio::test]
async fn what_a_rule_denies_is_403_in_its_words_and_no_node_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "{name: r, match: {users: [ana], command: [{argv: [id]}]}, effect: deny, message: not here}\n\
                 {name: g, match: {users: [ben]}, effect: allow, demands: {grant: true}}\n\
                 {name: w, match: {users: [eve]}, effect: allow, demands: {reason: true}}";
    let rig = rig_with(ruled(config(), folder.path(), rules).0).await;
    let answer = asked(&rig, "ana", "").await;
    assert_eq!(
        answer.body,
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\
         \"pods \\\"web\\\" is forbidden: policy p/r: not here\",\"reason\":\"Forbidden\",\
         \"details\":{\"name\":\"web\",\"kind\":\"pods\"},\"code\":403}\n"
    );
    let answer = asked(&rig, "ben", "").await;
    assert_eq!(answer.code(), 403);
    assert!(answer.body.contains("it takes a grant that somebody else has approved"), "{}", answer.body);
    let answer = asked(&rig, "eve", "").await;
    assert!(answer.code() == 403 && answer.body.contains("in the header Podgate-Reason"), "{}", answer.body);
    // Nobody gets out of a rule by impersonating.
    let answer = asked(&rig, "ana", "Impersonate-User: kim\r\n").await;
    assert!(answer.code() == 403 && answer.body.contains("policy p/r: not here"), "{}", answer.body);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_session_ends_when_rules_change_and_those_that_are_broken_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = ruled(config(), folder.path(), "{name: a, match: {}, effect: allow}");
    let rig = rig_with(config).await;
    let mut io = rig.gateway.connect_as("ana").await;
    send(&mut io, &exec_request("command=id", "")).await;
    assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);

    let reloads = |outcome: &str| {
        rig.gateway.metric(&format!("podgate_reloads_total{{outcome=\"{outcome}\",what=\"policy.files\"}}"))
    };
    replace(&path, &policy("{name: d, match: {user: [ana]}, effect: deny}"));
    until("the look at a broken policy", || reloads("failed") == 1.0).await;
    std::fs::remove_file(&path).unwrap();
    until("the look at no policy", || reloads("failed") == 2.0).await;
    assert_eq!(rig.gateway.metric("podgate_sessions"), 1.0);

    replace(&path, &policy("{name: d, match: {users: [ana]}, effect: deny, message: leave now}"));
    tokio::time::timeout(WITHIN, read_to_end(&mut io)).await.expect("an end within 5 s");
    let ended = "podgate_sessions_ended_total{end=\"lapsed\",subresource=\"exec\"}";
    until("the end record", || rig.gateway.metric(ended) == 1.0).await;
    assert_eq!(asked(&rig, "ana", "").await.code(), 403);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_user_has_no_more_sessions_than_the_strictest_rule_says() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "{name: a, match: {}, effect: allow, limits: {sessionsPerUser: 2}}\n\
                 {name: b, match: {users: [ben]}, effect: allow, limits: {sessionsPerUser: 1}}";
    let rig = rig_with(ruled(config(), folder.path(), rules).0).await;
    let mut live = Vec::new();
    for user in ["ana", "ana", "ben"] {
        let mut io = rig.gateway.connect_as(user).await;
        send(&mut io, &exec_request("command=id", "")).await;
        assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
        live.push(io);
    }
    for (user, most) in [("ana", 2), ("ben", 1)] {
        let answer = asked(&rig, user, "").await;
        assert_eq!(answer.code(), 429, "{}", answer.body);
        assert!(answer.body.contains(&format!("you have {most} sessions open")), "{}", answer.body);
    }
    drop(live);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn sessions_are_those_of_the_person_whoever_they_act_as() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "{name: a, match: {}, effect: allow, limits: {sessionsPerUser: 1}}";
    let rig = rig_with(ruled(config(), folder.path(), rules).0).await;
    let (ana_as_ben, ana_as_eve) = ("Impersonate-User: ben\r\n", "Impersonate-User: eve\r\n");
    let mut live = Vec::new();
    // Whoever acts as ben takes no session of ben's.
    for (user, headers) in [("ana", ana_as_ben), ("ben", "")] {
        let mut io = rig.gateway.connect_as(user).await;
        send(&mut io, &exec_request("command=id", headers)).await;
        assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
        live.push(io);
    }
    // Nor has she more of her own by it.
    for headers in ["", ana_as_ben, ana_as_eve] {
        let answer = asked(&rig, "ana", headers).await;
        assert_eq!(answer.code(), 429, "{}", answer.body);
        let told = "you have 1 sessions open, and rule p/a lets you have 1 at once";
        assert!(answer.body.contains(told), "{}", answer.body);
    }
    drop(live);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn the_longest_session_of_a_rule_ends_and_audit_knows_rule_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "{name: a, match: {}, effect: allow, demands: {reason: true}, limits: {longest: 1s}}";
    let (mut config, _) = ruled(config(), folder.path(), rules);
    let log = folder.path().join("audit.jsonl");
    config.audit.file.path = Some(log.clone());
    let mut rig = rig_with(config).await;
    let mut io = rig.gateway.connect_as("ana").await;
    send(&mut io, &exec_request("command=id", "Podgate-Reason: INC-7\r\n")).await;
    assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
    let begun = tokio::time::Instant::now();
    soon("its end", read_to_end(&mut io)).await;
    let lasted = begun.elapsed();
    assert!(lasted > Duration::from_millis(900) && lasted < Duration::from_secs(2), "{lasted:?}");
    let last = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .find(|line| line.contains("\"end-reason\"") || line.contains("/end-reason\""))
            .map(str::to_owned)
    };
    until("the last event", || last().is_some()).await;
    let event: serde_json::Value = serde_json::from_str(&last().unwrap()).unwrap();
    let told = |key: &str| {
        event["annotations"][format!("podgate.dev/{key}")].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!([told("policy"), told("reason"), told("end-reason")], ["p/a", "INC-7", "overlong"]);
    // What for is podgate's to know.
    assert!(!rig.far.head().await.contains("INC-7"));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_rule_says_whether_a_session_is_recorded_and_one_that_wants_more_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = recording_into(folder.path());
    config.recording.default.record = Record::Off;
    let rules = "{name: a, match: {users: [ana]}, effect: allow, demands: {recording: strict}}";
    let (config, path) = ruled(config, folder.path(), rules);
    let rig = rig_with(config).await;
    let mut open = Vec::new();
    for user in ["ana", "ben"] {
        let mut io = rig.gateway.connect_as(user).await;
        send(&mut io, &exec_request("command=id", "")).await;
        assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
        open.push(io);
    }
    replace(&path, &policy("{name: a, match: {}, effect: allow, demands: {recording: strict}}"));
    tokio::time::timeout(WITHIN, read_to_end(&mut open[1])).await.expect("an end within 5 s");
    until("one left", || rig.gateway.metric("podgate_sessions") == 1.0).await;
    drop(open);
    rig.gateway.stop().await;
}
