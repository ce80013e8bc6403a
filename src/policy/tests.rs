use std::time::Duration;

use super::document::{Document, Fault};
use super::*;
use crate::recording::facts::Stdin;
use crate::request::Subresource;

/// A session as tests write it: `user=ben groups=ops,sre command=ls,-l`; what is not said is that of [`Case::usual`].
#[derive(Clone)]
struct Case {
    user: User,
    impersonator: Option<User>,
    exec: Exec,
    pod: Pod,
    container: String,
    client: IpAddr,
    reason: Option<String>,
    grant: Option<String>,
    now: Timestamp,
}

/// Grants as a session has them by the word `grant=NAME`.
struct Granted {
    name: Option<String>,
    longest: Option<Duration>,
    unread: bool,
    concerns: History<Concern>,
}

impl Granted {
    fn of(name: Option<String>, longest: Option<Duration>) -> Self {
        Self { name, longest, unread: false, concerns: History::new(0, 8) }
    }
}

impl Grants for Granted {
    fn matching(&self, asked: &Asked<'_>) -> Option<Grant> {
        let until = asked.now + Duration::from_secs(3600);
        self.name.clone().map(|name| Grant { name, reason: "ticket 7".into(), until })
    }

    fn longest(&self) -> Option<Duration> {
        self.longest
    }

    fn are_known(&self) -> bool {
        !self.unread
    }

    fn changes(&self) -> Changes<Concern> {
        self.concerns.changes(self.concerns.version())
    }
}

impl Case {
    /// ana of dev and oncall, in a terminal of `app` of `shop/cart-0`, on a Friday morning.
    fn usual() -> Self {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(|&group| group.into()).collect(),
            ..User::default()
        };
        let map = |all: &[(&str, &str)]| all.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Self {
            user: user("ana", &["dev", "oncall"]),
            impersonator: None,
            exec: Exec {
                subresource: Subresource::Exec,
                namespace: "shop".into(),
                pod: "cart-0".into(),
                container: String::new(),
                command: vec![b"bash".to_vec()],
                ports: Vec::new(),
                stdin: true,
                stdout: true,
                stderr: false,
                tty: true,
            },
            pod: Pod {
                labels: map(&[("app", "cart"), ("tier", "front"), ("pod-template-hash", "7d9f")]),
                annotations: map(&[("team", "payments")]),
                images: vec![
                    ("app".into(), "registry.example.com/shop/cart:v1".into()),
                    ("proxy".into(), "envoy:1.30".into()),
                ],
                ..Pod::default()
            },
            container: "app".into(),
            client: "10.1.2.3".parse().unwrap(),
            reason: None,
            grant: None,
            now: "2026-11-20T10:30:00Z".parse().unwrap(),
        }
    }

    fn of(words: &str) -> Self {
        let mut case = Self::usual();
        for word in words.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or_else(|| panic!("{word} has no ="));
            let list = || value.split(',').filter(|item| !item.is_empty()).map(str::to_owned);
            let map = || {
                let pairs = value.split(',').filter(|item| !item.is_empty());
                let pairs = pairs.map(|item| item.split_once(':').unwrap_or((item, "")));
                pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
            };
            match key {
                "user" => case.user.name = value.into(),
                "groups" => case.user.groups = list().collect(),
                "as" => {
                    case.impersonator = Some(std::mem::take(&mut case.user));
                    case.user.name = value.into();
                }
                "as-groups" => case.user.groups = list().collect(),
                "namespace" => case.exec.namespace = value.into(),
                "pod" => case.exec.pod = value.into(),
                "labels" => case.pod.labels = map(),
                "annotations" => case.pod.annotations = map(),
                "container" => case.container = value.into(),
                "image" => case.pod.images[0].1 = value.into(),
                "command" => case.exec.command = list().map(String::into_bytes).collect(),
                "tty" => case.exec.tty = value == "true",
                "stdin" => case.exec.stdin = value == "true",
                "source" => case.client = value.parse().unwrap(),
                "now" => case.now = value.parse().unwrap(),
                "reason" => case.reason = Some(value.replace('_', " ")),
                "grant" => case.grant = Some(value.into()),
                "subresource" => {
                    case.exec.subresource = match value {
                        "exec" => Subresource::Exec,
                        "attach" => Subresource::Attach,
                        "portforward" => Subresource::PortForward,
                        _ => panic!("{value}"),
                    };
                    if value != "exec" {
                        case.exec.command.clear();
                    }
                    if value == "portforward" {
                        case.container.clear();
                        (case.exec.tty, case.exec.stdin) = (false, false);
                    }
                }
                _ => panic!("{key} is no word for a session"),
            }
        }
        case
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            user: &self.user,
            impersonator: self.impersonator.as_ref(),
            exec: &self.exec,
            pod: &self.pod,
            container: &self.container,
            client: self.client,
            reason: self.reason.as_deref(),
            now: self.now,
        }
    }
}

const NOTHING: Demand = Demand { record: Record::Off, stdin: Stdin::None };

fn documents(text: &str) -> Result<Vec<(String, Document)>, Vec<Fault>> {
    let documents = Document::read_all("p.yaml", text)?;
    Ok(documents.into_iter().map(|document| ("p.yaml".to_owned(), document)).collect())
}

fn policy_of(text: &str, allow: bool, grant: Option<String>) -> Policy {
    policy_with(text, allow, Granted::of(grant, Some(Duration::from_secs(12 * 3600))))
}

fn policy_with(text: &str, allow: bool, grants: Granted) -> Policy {
    let set = documents(text).and_then(|documents| Set::compile(documents, true));
    let set = set.unwrap_or_else(|faults| panic!("{}\n{text}", faults[0]));
    Policy::new(Settings { allow, record: NOTHING }, vec![Live::fixed(set)], Arc::new(grants))
}

/// What becomes of a session, in a line.
fn outcome(text: &str, allow: bool, words: &str) -> String {
    let case = Case::of(words);
    let terms = match policy_of(text, allow, case.grant.clone()).terms(&case.asked()) {
        Ok(terms) => terms,
        Err(error) => return format!("denied: {error}"),
    };
    let mut line = format!("allowed by {}", terms.rules.join(", "));
    let mut also = |what: String| line = format!("{line}; {what}");
    let (rule, Demand { record, stdin }) = &terms.record;
    if *record > Record::Off {
        let (record, stdin) = (format!("{record:?}"), format!("{stdin:?}"));
        also(format!("recorded {}, stdin {} ({rule})", record.to_lowercase(), stdin.to_lowercase()));
    }
    let Limits { bytes_per_second, longest, idle, sessions_per_user, .. } = terms.limits;
    bytes_per_second.into_iter().for_each(|limit| also(format!("{} bytes/s", limit.most)));
    longest.into_iter().for_each(|limit| also(format!("longest {:?}", limit.most)));
    idle.into_iter().for_each(|limit| also(format!("idle {:?}", limit.most)));
    sessions_per_user.into_iter().for_each(|limit| also(format!("{} sessions", limit.most)));
    terms.grant.into_iter().for_each(|grant| also(format!("grant {grant}")));
    terms.reason.into_iter().for_each(|reason| also(format!("for {reason:?}")));
    line
}

/// A policy of one rule.
fn one(about: &str, rest: &str) -> String {
    format!(
        "apiVersion: podgate.dev/v1alpha1\nkind: ExecPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n  - \
         {{name: r, match: {about}, {rest}}}\n"
    )
}

/// Whether a rule that is about this is about that session.
#[test]
fn a_rule_is_about_what_fits_everything_it_says() {
    const FRIDAY: &str = "now=2026-11-20T";
    let cases = [
        // Everything.
        ("{}", "", true),
        ("{}", "user=mallory subresource=portforward", true),
        // Users.
        ("{users: [ana]}", "", true),
        ("{users: [ana]}", "user=ben", false),
        ("{users: [an]}", "", false),
        ("{users: ['a*']}", "", true),
        ("{users: ['*']}", "user=", true),
        ("{users: [ben, ana]}", "", true),
        ("{users: ['system:serviceaccount:ci:*']}", "user=system:serviceaccount:ci:runner", true),
        ("{users: ['system:serviceaccount:ci:*']}", "user=system:serviceaccount:cd:runner", false),
        ("{users: [Ana]}", "", false),
        // Groups.
        ("{groups: [oncall]}", "", true),
        ("{groups: [ops]}", "", false),
        ("{groups: ['*']}", "groups=", false),
        ("{groups: [ops, 'on*']}", "", true),
        ("{users: [ana], groups: [ops]}", "", false),
        ("{users: [ana], groups: [dev]}", "", true),
        // Namespaces and pods.
        ("{namespaces: [shop]}", "", true),
        ("{namespaces: ['prod-*']}", "namespace=prod-eu", true),
        ("{namespaces: ['prod-*']}", "namespace=prod", false),
        ("{pods: ['cart-*']}", "", true),
        ("{pods: ['cart-*']}", "pod=web", false),
        // Labels.
        ("{podLabels: {matchLabels: {app: cart}}}", "", true),
        ("{podLabels: {matchLabels: {app: web}}}", "", false),
        ("{podLabels: {matchLabels: {app: cart, tier: back}}}", "", false),
        ("{podLabels: {matchLabels: {app: cart}}}", "labels=", false),
        ("{podLabels: {matchExpressions: [{key: app, operator: In, values: [web, cart]}]}}", "", true),
        ("{podLabels: {matchExpressions: [{key: app, operator: In, values: [web]}]}}", "", false),
        ("{podLabels: {matchExpressions: [{key: app, operator: In, values: [web]}]}}", "labels=", false),
        ("{podLabels: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}", "", true),
        ("{podLabels: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}", "labels=", true),
        ("{podLabels: {matchExpressions: [{key: app, operator: NotIn, values: [cart]}]}}", "", false),
        ("{podLabels: {matchExpressions: [{key: pci, operator: Exists}]}}", "", false),
        ("{podLabels: {matchExpressions: [{key: pci, operator: Exists}]}}", "labels=pci:", true),
        ("{podLabels: {matchExpressions: [{key: pci, operator: DoesNotExist}]}}", "", true),
        ("{podLabels: {matchExpressions: [{key: app, operator: DoesNotExist}]}}", "", false),
        // Annotations.
        ("{podAnnotations: {team: payments}}", "", true),
        ("{podAnnotations: {team: 'pay*'}}", "", true),
        ("{podAnnotations: {team: web}}", "", false),
        ("{podAnnotations: {team: '*'}}", "annotations=", false),
        ("{podAnnotations: {team: payments, pci: '*'}}", "", false),
        // Containers and images.
        ("{containers: [app]}", "", true),
        ("{containers: [app]}", "container=proxy", false),
        ("{containers: [proxy]}", "container=proxy", true),
        ("{images: ['registry.example.com/*']}", "", true),
        ("{images: ['*:latest']}", "", false),
        ("{images: ['*:latest']}", "image=app:latest", true),
        ("{images: ['envoy:*']}", "container=proxy", true),
        ("{containers: [app], images: ['envoy:*']}", "", false),
        // A port-forward is to all of them: what denies one denies it.
        ("{containers: [proxy]}", "subresource=portforward", true),
        ("{containers: [other]}", "subresource=portforward", false),
        ("{containers: [proxy], images: ['registry*']}", "subresource=portforward", false),
        // Subresources.
        ("{subresources: [exec]}", "", true),
        ("{subresources: [attach, portforward]}", "", false),
        ("{subresources: [attach, portforward]}", "subresource=attach", true),
        ("{subresources: [portforward]}", "subresource=portforward", true),
        // Commands.
        ("{command: [{argv: [bash]}]}", "", true),
        ("{command: [{argv: [bash]}]}", "command=bash,-c", false),
        ("{command: [{argv: [ls, -l]}]}", "command=ls,-l", true),
        ("{command: [{argv: [ls, -l]}]}", "command=ls", false),
        ("{command: [{argv: ['ls -l']}]}", "command=ls,-l", false),
        ("{command: [{prefix: [ls]}]}", "command=ls,-l,/", true),
        ("{command: [{prefix: [ls]}]}", "command=lsof", false),
        ("{command: [{prefix: [ls, -l]}]}", "command=ls", false),
        ("{command: [{glob: 'cat /var/log/*'}]}", "command=cat,/var/log/app", true),
        ("{command: [{glob: 'cat /var/log/*'}]}", "command=cat,/etc/passwd", false),
        ("{command: [{glob: '*sh'}]}", "", true),
        ("{command: [{argv: [sh]}, {glob: 'ba*'}]}", "", true),
        ("{command: [{glob: '*'}]}", "subresource=attach", false),
        ("{command: [{glob: '*'}]}", "subresource=portforward", false),
        // Terminal and standard input.
        ("{tty: true}", "", true),
        ("{tty: true}", "tty=false", false),
        ("{tty: false}", "tty=false", true),
        ("{stdin: true}", "", true),
        ("{stdin: false}", "", false),
        // Addresses.
        ("{sources: ['10.0.0.0/8']}", "", true),
        ("{sources: ['10.0.0.0/8']}", "source=192.168.1.1", false),
        ("{sources: ['192.168.0.0/16', 10.1.2.3]}", "", true),
        ("{sources: ['fd00::/8']}", "source=fd00::1", true),
        ("{sources: ['fd00::/8']}", "", false),
        ("{sources: ['0.0.0.0/0']}", "source=fd00::1", false),
        // Time of day.
        ("{hours: {from: '09:00', to: '17:00'}}", "", true),
        ("{hours: {from: '09:00', to: '17:00'}}", "09:00:00Z", true),
        ("{hours: {from: '09:00', to: '17:00'}}", "08:59:59Z", false),
        ("{hours: {from: '09:00', to: '17:00'}}", "16:59:59Z", true),
        ("{hours: {from: '09:00', to: '17:00'}}", "17:00:00Z", false),
        ("{hours: {from: '09:00', to: '17:00', timeZone: Europe/Berlin}}", "08:00:00Z", true),
        ("{hours: {from: '09:00', to: '17:00', timeZone: Europe/Berlin}}", "16:30:00Z", false),
        ("{hours: {from: '09:00', to: '17:00', timeZone: America/New_York}}", "", false),
        ("{hours: {from: '22:00', to: '06:00'}}", "23:00:00Z", true),
        ("{hours: {from: '22:00', to: '06:00'}}", "05:59:00Z", true),
        ("{hours: {from: '22:00', to: '06:00'}}", "06:00:00Z", false),
        ("{hours: {from: '22:00', to: '06:00'}}", "", false),
        // Days; a night belongs to the day on which it begins.
        ("{weekdays: [Fri]}", "", true),
        ("{weekdays: [Mon, Tue, Wed, Thu]}", "", false),
        ("{weekdays: [Sat, Sun]}", "now=2026-11-22T00:00:00Z", true),
        ("{weekdays: [Thu], hours: {from: '22:00', to: '06:00'}}", "05:00:00Z", true),
        ("{weekdays: [Fri], hours: {from: '22:00', to: '06:00'}}", "05:00:00Z", false),
        ("{weekdays: [Sat], hours: {from: '00:00', to: '12:00', timeZone: Asia/Tokyo}}", "16:00:00Z", true),
        // In summer Berlin is two hours ahead, in winter one.
        ("{hours: {from: '09:00', to: '10:00', timeZone: Europe/Berlin}}", "now=2026-07-01T07:30:00Z", true),
        ("{hours: {from: '09:00', to: '10:00', timeZone: Europe/Berlin}}", "now=2026-12-01T07:30:00Z", false),
        // CEL.
        ("{cel: 'true'}", "", true),
        ("{cel: 'false'}", "", false),
        ("{cel: 'user == \"ana\" && \"dev\" in groups'}", "", true),
        ("{cel: 'ns == \"shop\" && pod.startsWith(\"cart-\")'}", "", true),
        ("{cel: 'labels.app == \"cart\"'}", "", true),
        ("{cel: 'labels.?owner.orValue(\"\") == \"web\"'}", "", false),
        ("{cel: '\"team\" in annotations && annotations[\"team\"] != \"web\"'}", "", true),
        ("{cel: 'container == \"app\" && image.endsWith(\":v1\")'}", "", true),
        ("{cel: 'subresource == \"exec\" && tty && stdin'}", "", true),
        ("{cel: 'command.exists(word, word.contains(\"secret\"))'}", "command=cat,/run/secrets/x", true),
        ("{cel: 'command.exists(word, word.contains(\"secret\"))'}", "", false),
        ("{cel: 'command.size() > 1'}", "command=ls,-l", true),
        ("{cel: 'source.startsWith(\"10.\")'}", "", true),
        ("{cel: 'now.getHours(\"Europe/Berlin\") >= 12'}", "", false),
        ("{cel: 'now.getDayOfWeek() == 5'}", "", true),
        ("{cel: 'reason.matches(\"^(INC|CHG)-[0-9]+\")'}", "reason=INC-7", true),
        ("{cel: 'reason.matches(\"^(INC|CHG)-[0-9]+\")'}", "", false),
        ("{users: [ben], cel: 'true'}", "", false),
        // What cannot be evaluated does not let anybody pass.
        ("{cel: 'labels.owner == \"web\"'}", "", true),
        ("{cel: 'user'}", "", true),
        ("{cel: '1 / (command.size() - 1) == 0'}", "", true),
        ("{users: [ben], cel: 'labels.owner == \"web\"'}", "", false),
    ];
    assert!(cases.len() >= 100, "{}", cases.len());
    for (about, words, is) in cases {
        let words = if words.starts_with(|c: char| c.is_ascii_digit()) {
            format!("{FRIDAY}{words}")
        } else {
            words.to_owned()
        };
        let denies = outcome(&one(about, "effect: deny, message: no"), true, &words);
        let wanted = if is { "denied: policy p/r: no" } else { "allowed by default" };
        assert!(denies.starts_with(wanted), "{about} {words}: {denies}");
    }
}

fn rules(rules: &str) -> String {
    let head = "apiVersion: podgate.dev/v1alpha1\nkind: ExecPolicy\nmetadata: {name: p}\nspec:\n  rules:\n";
    rules.lines().fold(head.to_owned(), |text, rule| text + "  - " + rule.trim() + "\n")
}

#[test]
fn deny_wins_and_of_what_allows_the_strictest_counts() {
    let all = "{name: all, match: {}, effect: allow}";
    let broken = "{name: b, match: {cel: 'labels.no == user'}, effect: allow, demands: {recording: strict}}";
    let cases = [
        // Without a rule, what the settings say.
        ("{name: x, match: {users: [ben]}, effect: allow}", true, "", "allowed by default"),
        (
            "{name: x, match: {users: [ben]}, effect: allow}",
            false,
            "",
            "denied: policy default: no rule allows this",
        ),
        (all, false, "", "allowed by p/all"),
        // The order says nothing.
        (
            "{name: d, match: {}, effect: deny}\n{name: a, match: {}, effect: allow}",
            true,
            "",
            "denied: policy p/d: it denies this",
        ),
        (
            "{name: a, match: {}, effect: allow}\n{name: d, match: {}, effect: deny}",
            true,
            "",
            "denied: policy p/d: it denies this",
        ),
        // Demands.
        (
            "{name: a, match: {}, effect: allow, demands: {recording: tolerant, stdin: all}}\n\
             {name: b, match: {}, effect: allow, demands: {recording: strict, stdin: none}}",
            false,
            "",
            "allowed by p/a, p/b; recorded strict, stdin all (p/b)",
        ),
        (
            "{name: a, match: {}, effect: allow, demands: {recording: tolerant}}\n\
             {name: b, match: {users: [ben]}, effect: allow, demands: {recording: strict}}",
            true,
            "",
            "allowed by p/a; recorded tolerant, stdin none (p/a)",
        ),
        // Limits.
        (
            "{name: a, match: {}, effect: allow, limits: {bytesPerSecond: 1000, longest: 8h, idle: 10m, sessionsPerUser: 5}}\n\
             {name: b, match: {}, effect: allow, limits: {bytesPerSecond: 2000, longest: 1h, idle: 30m, sessionsPerUser: 2}}",
            false,
            "",
            "allowed by p/a, p/b; 1000 bytes/s; longest 3600s; idle 600s; 2 sessions",
        ),
        (
            "{name: a, match: {}, effect: allow, limits: {longest: 8h}}\n{name: b, match: {}, effect: allow}",
            false,
            "",
            "allowed by p/a, p/b; longest 28800s",
        ),
        // Reasons.
        (
            "{name: a, match: {}, effect: allow, message: say why, demands: {reason: true}}",
            true,
            "",
            "denied: policy p/a: say why; a reason is needed: give it as ?reason=..., in the header Podgate-Reason, or \
             with a grant; with kubectl, ask for a grant that says it, which somebody else approves: printf %s \
             '{\"apiVersion\":\"podgate.dev/v1alpha1\",\"kind\":\"Grant\",\"metadata\":{\"generateName\":\
             \"access-\",\"namespace\":\"shop\"},\"spec\":{\"duration\":\"1h\",\"reason\":\"say here what \
             for\",\"selector\":{\"containers\":[\"app\"],\"podLabels\":{\"matchLabels\":{\"app\":\"cart\",\
             \"tier\":\"front\"}},\"subresources\":[\"exec\"]},\"subject\":{\"user\":\"ana\"}}}' | kubectl \
             create -f -",
        ),
        (
            "{name: a, match: {}, effect: allow, demands: {reason: true}}",
            true,
            "reason=INC-7",
            "allowed by p/a; for \"INC-7\"",
        ),
        (
            "{name: a, match: {}, effect: allow, demands: {reason: true}}",
            true,
            "grant=shop/g",
            "allowed by p/a; for \"ticket 7\"",
        ),
        // What a grant says is judged as what a request says.
        (
            "{name: a, match: {}, effect: allow, demands: {reason: true}}\n\
             {name: d, match: {cel: 'reason != \"\" && !reason.startsWith(\"INC\")'}, effect: deny}",
            true,
            "grant=shop/g",
            "denied: policy p/d: it denies this",
        ),
        // Grants.
        (
            "{name: a, match: {}, effect: allow, demands: {grant: true}}",
            true,
            "grant=shop/g",
            "allowed by p/a; grant shop/g; for \"ticket 7\"",
        ),
        (
            "{name: a, match: {}, effect: allow, demands: {grant: true}}",
            true,
            "grant=shop/g reason=mine",
            "allowed by p/a; grant shop/g; for \"mine\"",
        ),
        (
            "{name: a, match: {}, effect: allow, demands: {grant: true}}\n{name: b, match: {}, effect: allow}",
            true,
            "reason=mine",
            "denied: policy p/a: it takes a grant that somebody else has approved; ask for one with: printf %s \
             '{\"apiVersion\":\"podgate.dev/v1alpha1\",\"kind\":\"Grant\",\"metadata\":{\"generateName\":\
             \"access-\",\"namespace\":\"shop\"},\"spec\":{\"duration\":\"1h\",\"reason\":\"mine\",\"selector\":\
             {\"containers\":[\"app\"],\"podLabels\":{\"matchLabels\":{\"app\":\"cart\",\"tier\":\"front\"}},\
             \"subresources\":[\"exec\"]},\"subject\":{\"user\":\"ana\"}}}' | kubectl create -f -",
        ),
        // Whoever acts as somebody else is judged too.
        (
            "{name: d, match: {users: [ana]}, effect: deny}",
            true,
            "as=ben",
            "denied: policy p/d: it denies this",
        ),
        (
            "{name: d, match: {users: [ben]}, effect: deny}",
            true,
            "as=ben",
            "denied: policy p/d: it denies this",
        ),
        (
            "{name: a, match: {users: [ben]}, effect: allow}",
            false,
            "as=ben",
            "denied: policy default: no rule allows this",
        ),
        (
            "{name: a, match: {users: [ana]}, effect: allow, demands: {recording: strict}, limits: {longest: 1h}}\n\
             {name: b, match: {users: [ben]}, effect: allow, demands: {recording: tolerant}, limits: {idle: 1h}}",
            false,
            "as=ben",
            "allowed by p/b, p/a; recorded strict, stdin none (p/a); longest 3600s; idle 3600s",
        ),
        // Sessions are counted of the person, by what is said of them.
        (
            "{name: a, match: {users: [ana]}, effect: allow, limits: {sessionsPerUser: 9}}\n\
             {name: b, match: {users: [ben]}, effect: allow, limits: {sessionsPerUser: 1, longest: 1h}}",
            false,
            "as=ben",
            "allowed by p/b, p/a; longest 3600s; 9 sessions",
        ),
        // What cannot be evaluated allows nothing, and is no way out of what it wants.
        (broken, false, "", "denied: policy default: no rule allows this"),
        (broken, true, "", "allowed by p/b; recorded strict, stdin none (p/b)"),
        (broken, true, "labels=no:ben", "allowed by default"),
        (
            "{name: d, match: {cel: 'labels.no == user'}, effect: deny, message: not here}",
            true,
            "",
            "denied: policy p/d: not here; its expression cannot be evaluated: No such key: no",
        ),
        // A port-forward is to all containers: to be allowed for one is too little, and what one wants is wanted.
        (
            "{name: a, match: {containers: [app]}, effect: allow}",
            false,
            "subresource=portforward",
            "denied: policy default: no rule allows this",
        ),
        (
            "{name: a, match: {containers: [app, proxy]}, effect: allow}",
            false,
            "subresource=portforward",
            "allowed by p/a",
        ),
        (
            "{name: a, match: {containers: [app]}, effect: allow, limits: {longest: 1h}}",
            true,
            "subresource=portforward",
            "allowed by p/a; longest 3600s",
        ),
    ];
    for (text, allow, words, wanted) in cases {
        assert_eq!(outcome(&rules(text), allow, words), wanted, "{text} {words}");
    }
}

#[test]
fn where_no_rule_says_so_the_settings_say_whether_it_is_recorded() {
    let default = Demand { record: Record::Strict, stdin: Stdin::Echoed };
    let record = |demands: &str, words: &str| {
        let mut policy = policy_of(&one("{users: [ana]}", &format!("effect: allow, {demands}")), true, None);
        policy.settings.record = default;
        policy.terms(&Case::of(words).asked()).unwrap().record
    };
    let tolerant = Demand { record: Record::Tolerant, ..default };
    assert_eq!(record("limits: {longest: 1h}", ""), ("default".to_owned(), default));
    assert_eq!(record("demands: {recording: tolerant}", ""), ("p/r".to_owned(), tolerant));
    assert_eq!(record("demands: {recording: tolerant, stdin: all}", "").1.stdin, Stdin::All);
    assert_eq!(record("demands: {recording: off}", "").1.record, Record::Off);
    assert_eq!(record("demands: {recording: off}", "user=ben"), ("default".to_owned(), default));
    assert_eq!(record("demands: {recording: off}", "as=ben"), ("default".to_owned(), default), "no way out");
}

#[test]
fn a_policy_that_makes_no_sense_is_told_with_its_place() {
    let long = "a".repeat(600);
    let many = format!("[{}]", vec!["a"; 257].join(", "));
    let deep = format!("{{cel: '{}true{}'}}", "(".repeat(60), ")".repeat(60));
    let cases = [
        ("{user: [ana]}", ", line 6, at spec.rules[0].match: unknown field `user`"),
        ("{users: []}", ", at spec.rules[0].match.users: is empty: leave it out"),
        ("{users: ['']}", "match.users[0]: is empty"),
        (&format!("{{users: [{long}]}}"), "match.users[0]: has at most 512 bytes"),
        ("{users: ['*****************']}", "match.users[0]: has at most 16 stars"),
        (&format!("{{users: {many}}}"), "match.users: has at most 256 items"),
        ("{users: ana}", "match.users: invalid type: string \"ana\", expected a list"),
        ("{subresources: [log]}", "match.subresources[0]: unknown variant `log`"),
        ("{tty: 'yes'}", "match.tty: invalid type: string \"yes\""),
        ("{hours: {from: '9', to: '17:00'}}", "match.hours.from: \"9\" is no time of day"),
        ("{hours: {from: '09:00', to: '25:00'}}", "match.hours.to: \"25:00\" is no time of day"),
        ("{hours: {from: '09:00', to: '09:00'}}", "match.hours: begin and end at the same time"),
        ("{hours: {from: '09:00'}}", "match.hours: missing field `to`"),
        ("{hours: {from: '09:00', to: '10:00', timeZone: Mars}}", "hours.timeZone: \"Mars\" is no time zone"),
        ("{weekdays: [Friday]}", "match.weekdays[0]: unknown variant `Friday`"),
        ("{sources: [10.0.0.0/33]}", "match.sources[0]: \"10.0.0.0/33\" is no network"),
        ("{sources: [10.1.2.3/8]}", "10.1.2.3/8\" has bits beyond its prefix; 10.0.0.0/8 is the network"),
        ("{podLabels: {app: cart}}", "match.podLabels: unknown field `app`"),
        ("{podLabels: {matchExpressions: [{key: a, operator: Has}]}}", "[0].operator: unknown variant `Has`"),
        ("{podLabels: {matchExpressions: [{key: a, operator: In}]}}", "[0]: In takes some values"),
        (
            "{podLabels: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "Exists takes no values",
        ),
        ("{command: [{argv: [ls], prefix: [ls]}]}", "match.command[0]"),
        ("{command: [{words: [ls]}]}", "match.command[0]: unknown variant `words`"),
        ("{cel: 'user =='}", "match.cel: "),
        ("{cel: 'nobody == \"a\"'}", "match.cel: undeclared reference to \"nobody\""),
        ("{cel: 'groups.exists(a, groups.exists(b, a == b))'}", "match.cel: would run long: "),
        ("{cel: 'command.map(a, groups.map(b, a + b)).size() > 0'}", "would run long: "),
        ("{cel: 'user.replace(\"a\", \"b\") == \"\"'}", "there is no function \"replace\" for rules"),
        ("{cel: 'lists.range(1000000000).size() > 0'}", "undeclared reference to \"lists\""),
        ("{cel: 'user.matches(reason)'}", "matches takes its regular expression as a literal"),
        ("{cel: 'user.matches(\"(\")'}", "the regular expression is of no use: unclosed group"),
        ("{cel: 'user.matches(\"(a{1000}){1000}\")'}", "the regular expression is of no use: "),
        (&deep, "match.cel: "),
    ];
    for (about, wanted) in cases {
        let text = one(about, "effect: allow");
        let faults = documents(&text).err().unwrap_or_else(|| panic!("{about} is taken"));
        let told = faults[0].to_string();
        assert!(told.starts_with("p.yaml, document 1, line ") && told.contains(wanted), "{about}: {told}");
    }
    let rest = [
        ("effect: permit", "at spec.rules[0].effect: unknown variant `permit`, expected `allow` or `deny`"),
        (
            "effect: deny, limits: {idle: 1h}",
            "at spec.rules[0]: rule \"r\" denies, and has demands or limits",
        ),
        ("effect: deny, demands: {grant: true}", "rule \"r\" denies, and has demands or limits"),
        ("effect: allow, demands: {recording: off, stdin: all}", "wants stdin recorded and no recording"),
        ("effect: allow, demands: {recording: always}", "demands.recording: unknown variant `always`"),
        ("effect: allow, limits: {longest: 0s}", "limits.longest: is from 1s to 8760h"),
        ("effect: allow, limits: {longest: -1h}", "limits.longest: \"-1h\" is below zero"),
        ("effect: allow, limits: {idle: soon}", "limits.idle: \"soon\" is no duration"),
        ("effect: allow, limits: {bytesPerSecond: 0}", "limits.bytesPerSecond: "),
        ("effect: allow, limits: {sessionsPerUser: -1}", "limits.sessionsPerUser: "),
        ("effect: allow, message: \"a\\u001bb\"", "message: is one line, without control characters"),
        ("message: none", "at spec.rules[0]: missing field `effect`"),
    ];
    for (rest, wanted) in rest {
        let faults = documents(&one("{}", rest)).err().unwrap_or_else(|| panic!("{rest} is taken"));
        assert!(faults[0].to_string().contains(wanted), "{rest}: {}", faults[0]);
    }
    let good = one("{}", "effect: allow");
    let whole = [
        (good.replace("kind: ExecPolicy", "kind: Policy"), "at kind: is ExecPolicy, not \"Policy\""),
        (good.replace("v1alpha1", "v1"), "at apiVersion: is podgate.dev/v1alpha1, not \"podgate.dev/v1\""),
        (good.replace("{name: p}", "{name: P_}"), "at metadata.name: \"P_\" is no name"),
        (good.replace("{name: p}", "{}"), "at metadata: has a name"),
        (good.replace("{name: p}", "{name: p, namespace: x}"), "policies are of the whole cluster"),
        (good.replace("name: r", "name: 'r r'"), "at spec.rules[0].name: \"r r\" is no name"),
        (good.replace("spec:", "specs:"), "at specs: unknown field"),
        (
            good.clone() + "  - {name: r, match: {}, effect: deny}\n",
            "at spec.rules[1].name: \"r\" is the name of another",
        ),
        (good.clone() + "  rules: []\n", "p.yaml, line 7"),
        (format!("{good}---\n{{}}\n"), "p.yaml, document 2, line 8, at apiVersion: is podgate.dev/v1alpha1"),
        ("a: [".to_owned(), "p.yaml, line 1"),
    ];
    for (text, wanted) in whole {
        let faults = documents(&text).err().unwrap_or_else(|| panic!("{text} is taken"));
        assert!(faults[0].to_string().contains(wanted), "{text}: {}", faults[0]);
    }
}

#[test]
fn policies_that_do_not_go_together_are_refused_together() {
    let faults = |text: &str, records| {
        let set = Set::compile(documents(text).unwrap(), records);
        set.err().map(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    let one = |rest: &str| one("{}", rest);
    let twice = format!("{0}---\n{0}", one("effect: allow"));
    assert_eq!(faults(&twice, true).unwrap(), "p.yaml, at metadata.name: policy \"p\" is already in p.yaml");
    let recorded = one("effect: allow, demands: {recording: tolerant}");
    assert_eq!(faults(&recorded, true), None);
    assert!(faults(&recorded, false).unwrap().contains("and recording.enabled is false"));
    assert_eq!(faults(&one("effect: allow, demands: {recording: off}"), false), None);
    let rule = |n: usize| {
        format!("{{name: r{n}, match: {{cel: 'groups.exists(g, g.endsWith(user))'}}, effect: deny}}")
    };
    let many: Vec<_> = (0..200).map(rule).collect();
    assert!(faults(&rules(&many.join("\n")), true).unwrap().contains("all CEL together would run long"));
    let many: Vec<_> = (0..300).map(|n| format!("{{name: r{n}, match: {{}}, effect: deny}}")).collect();
    let told = documents(&rules(&many.join("\n"))).err().unwrap()[0].to_string();
    assert!(told.contains("at spec.rules: has at most 256 items"), "{told}");
}

#[test]
fn a_request_that_is_refused_is_told_in_the_api_servers_form() {
    let policy = policy_of(&one("{}", "effect: deny, message: 'no shells in <prod> & co'"), true, None);
    let error = policy.terms(&Case::usual().asked()).unwrap_err();
    let refusal = error.refusal();
    assert_eq!(refusal.code(), 403);
    assert_eq!(refusal.message(), "pods \"cart-0\" is forbidden: policy p/r: no shells in <prod> & co");
}

#[test]
fn until_grants_are_read_nobody_is_told_that_there_is_none() {
    for demand in ["grant", "reason"] {
        let text = one("{}", &format!("effect: allow, demands: {{{demand}: true}}"));
        let policy = policy_with(&text, true, Granted { unread: true, ..Granted::of(None, None) });
        let refusal = policy.terms(&Case::usual().asked()).unwrap_err().refusal();
        assert_eq!(refusal.message(), "policy p/r: grants have not been read yet");
        assert_eq!(refusal.code(), 503);
        assert_eq!(refusal.response(crate::status::Encoding::default()).headers()["retry-after"], "1");
    }
}

#[test]
fn of_a_hundred_sessions_a_grant_has_those_asked_again_that_it_is_about() {
    let granted = Granted::of(None, None);
    let concerns = granted.concerns.clone();
    let policy = policy_with(&one("{}", "effect: allow"), true, granted);
    let person = |n: usize| User {
        name: format!("user-{n}"),
        groups: vec![format!("team-{}", n % 10)],
        ..User::default()
    };
    let mut sessions: Vec<_> = (0..100).map(|n| (person(n), policy.watch())).collect();
    let put = |namespace: &str, user: Option<&str>, group: Option<&str>| {
        let [user, group] = [user, group].map(|name| name.map(str::to_owned));
        concerns.put(concerns.version() + 1, Concern { namespace: namespace.to_owned(), user, group });
    };
    let mut asked = || {
        let asked = sessions.iter_mut().filter_map(|(person, watch)| {
            let changed = watch.changed(person, "shop").now_or_never();
            changed.map(|()| person.name.clone())
        });
        asked.collect::<Vec<_>>()
    };
    assert_eq!(asked().len(), 0);
    put("shop", Some("user-7"), None);
    assert_eq!(asked(), ["user-7"]);
    put("bank", Some("user-7"), None);
    put("shop", Some("user-100"), None);
    assert_eq!(asked().len(), 0);
    put("shop", None, Some("team-3"));
    assert_eq!(asked().len(), 10);
    // More than are kept: each may have missed one that is about it.
    (0..9).for_each(|_| put("bank", Some("user-100"), None));
    assert_eq!((asked().len(), asked().len()), (100, 0));
}

/// What a shell hands to kubectl when it is given the command that is told whoever lacks a grant.
fn asked_for(case: &Case, longest: Duration) -> serde_json::Value {
    let text = one("{}", "effect: allow, demands: {grant: true}");
    let policy = policy_with(&text, true, Granted::of(None, Some(longest)));
    let error = policy.terms(&case.asked()).unwrap_err().to_string();
    let (_, command) = error.split_once("ask for one with: ").unwrap();
    let stand_in = format!("kubectl() {{ test \"$*\" = 'create -f -' && cat; }}; {command}");
    let out = std::process::Command::new("sh").args(["-c", &stand_in]).output().unwrap();
    serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{command}"))
}

#[test]
fn any_shell_takes_the_command_by_which_the_person_asks_for_a_grant() {
    let mut case = Case::of("as=ben");
    case.reason = Some("it's $(id) \\n \"now\"".to_owned());
    let grant = asked_for(&case, Duration::from_secs(12 * 3600));
    assert_eq!(grant["spec"]["subject"]["user"], "ana");
    assert_eq!(grant["spec"]["reason"], "it's $(id) \\n \"now\"");
    assert_eq!(grant["spec"]["duration"], "1h");
    assert_eq!(
        grant["spec"]["selector"]["podLabels"]["matchLabels"],
        serde_json::json!({"app": "cart", "tier": "front"})
    );
}

#[test]
fn the_grant_that_somebody_is_told_to_ask_for_is_one_that_there_may_be() {
    let who = User { name: "ana".into(), ..User::default() };
    for longest in [Duration::from_secs(90), Duration::from_secs(12 * 3600)] {
        for words in [
            "",
            "labels=",
            "subresource=portforward",
            "subresource=portforward labels=pod-template-hash:7d9f",
        ] {
            let mut grant = asked_for(&Case::of(words), longest);
            grant["metadata"]["name"] = "access-x7".into();
            let grant =
                crate::grant::document::Grant::read(grant).unwrap_or_else(|error| panic!("{error:?}"));
            let made = crate::grant::rules::create(
                crate::grant::Who::new(&who, None),
                grant,
                Case::usual().now,
                longest,
            );
            assert!(made.is_ok(), "{words}: {made:?}");
        }
    }
}

#[test]
fn nobody_is_told_to_ask_for_a_grant_where_there_are_none() {
    for (demand, told) in [
        (
            "grant",
            "it takes a grant that somebody else has approved, and podgate has been given no place to keep grants in",
        ),
        (
            "reason",
            "a reason is needed: give it as ?reason=..., in the header Podgate-Reason, or with a grant",
        ),
    ] {
        let text = one("{}", &format!("effect: allow, demands: {{{demand}: true}}"));
        let policy = policy_with(&text, true, Granted::of(None, None));
        let error = policy.terms(&Case::usual().asked()).unwrap_err().to_string();
        assert_eq!(error, format!("policy p/r: {told}"));
    }
}

/// The examples of the document, each a policy and what becomes of sessions under it.
#[test]
fn the_examples_of_the_document_do_what_it_says() {
    let text = include_str!("../../docs/policy.md");
    let (_, examples) = text.split_once("\n## Ten examples\n").unwrap();
    let mut count = 0;
    for example in examples.split("\n### ").skip(1) {
        let (title, rest) = example.split_once('\n').unwrap();
        let (_, rest) = rest.split_once("```yaml\n").unwrap();
        let (policy, rest) = rest.split_once("```\n").unwrap();
        let rows = rest.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
        let rows: Vec<_> = rows.map(|row| row.split_once("` | ").unwrap()).collect();
        assert!(rows.len() >= 2, "{title}");
        for (words, wanted) in rows {
            let got = outcome(policy, true, words);
            let same = match wanted.strip_suffix("...") {
                Some(begin) => got.starts_with(begin),
                None => got == wanted,
            };
            assert!(same, "{title}: {words}: {got}");
        }
        count += 1;
    }
    assert_eq!(count, 10);
}

/// What serde says that it would have taken instead of `zzz`, in order of name.
fn expected(error: &str) -> Vec<String> {
    let (_, names) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
    let mut names: Vec<_> = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    names.sort();
    names
}

/// Holds a schema against what reads a policy in which something stands at this place.
fn compare(schema: &serde_json::Value, at: &str, put: &dyn Fn(serde_json::Value) -> serde_json::Value) {
    use serde_json::json;
    let told = |value: serde_json::Value| {
        let fault = Document::read_all("p", &put(value).to_string()).err();
        fault.unwrap_or_else(|| panic!("{at} takes anything"))[0].what.clone()
    };
    if let Some(words) = schema.get("enum") {
        let mut words: Vec<_> = words.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        words.sort_unstable();
        assert_eq!(expected(&told(json!("zzz"))), words, "{at}");
    }
    match schema["type"].as_str().unwrap() {
        "object" if schema.get("properties").is_some() => {
            let properties = schema["properties"].as_object().unwrap();
            let names: Vec<_> = properties.keys().cloned().collect();
            assert_eq!(expected(&told(json!({"zzz": null}))), names, "{at}");
            // What is unknown is refused here, as long as it gets here.
            assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{at}");
            for (name, schema) in properties {
                compare(schema, &format!("{at}.{name}"), &|value| put(json!({ name: value })));
            }
            for name in schema.get("required").into_iter().flat_map(|all| all.as_array().unwrap()) {
                let mut without = example(schema);
                without.as_object_mut().unwrap().remove(name.as_str().unwrap());
                let told = told(without);
                assert!(
                    told.contains(&format!("missing field `{}`", name.as_str().unwrap())),
                    "{at}: {told}"
                );
            }
        }
        "object" => compare(&schema["additionalProperties"], &format!("{at}.key"), &|value| {
            put(json!({"key": value}))
        }),
        "array" => {
            assert_eq!(told(json!([])), "is empty: leave it out", "{at}");
            compare(&schema["items"], &format!("{at}[0]"), &|value| put(json!([value])));
        }
        "string" | "integer" | "boolean" => {
            let told = told(json!({"a": 1, "b": 2}));
            assert!(told.contains("invalid type: map") || told.contains("exactly one key"), "{at}: {told}");
        }
        other => panic!("{at} is {other}"),
    }
}

/// The least that this schema takes.
fn example(schema: &serde_json::Value) -> serde_json::Value {
    use serde_json::{Value, json};
    match schema["type"].as_str().unwrap() {
        "object" => {
            let names = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
            let names = names.iter().map(|name| name.as_str().unwrap());
            names.map(|name| (name.to_owned(), example(&schema["properties"][name]))).collect()
        }
        "array" => json!([example(&schema["items"])]),
        "string" => match schema.get("enum") {
            Some(words) => words[0].clone(),
            None if schema.get("pattern").is_some_and(|pattern| pattern.as_str().unwrap().contains(':')) => {
                json!("09:30")
            }
            None => json!("a"),
        },
        _ => json!(1),
    }
}

#[test]
fn the_schema_of_the_cluster_takes_what_is_read_here_and_nothing_else() {
    use serde_json::{Value, json};
    let crd: Value =
        serde_saphyr::from_str(include_str!("../../charts/podgate/crds/execpolicies.yaml")).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let whole = |spec: Value| json!({"apiVersion": "podgate.dev/v1alpha1", "kind": "ExecPolicy", "metadata": {"name": "p"}, "spec": spec});
    compare(schema, "spec", &whole);
    let least = whole(example(schema)).to_string();
    Document::read_all("p", &least).unwrap_or_else(|faults| panic!("{}", faults[0]));
}
