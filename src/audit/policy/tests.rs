use super::*;
use crate::request::Resource;

fn policy(text: &str) -> Result<Policy, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let named = file.path().display().to_string();
    Policy::from_file(file.path()).map_err(|error| error.to_string().replace(&named, "FILE"))
}

fn rules(text: &str) -> Policy {
    policy(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{text}")).unwrap()
}

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups.iter().map(|&group| group.to_owned()).collect();
    User { name: name.to_owned(), groups, ..User::default() }
}

/// `VERB GROUP/RESOURCE/SUB NAMESPACE NAME`, or `VERB PATH`.
fn asked(text: &str) -> Attributes {
    let words: Vec<&str> = text.split(' ').collect();
    let verb = words[0].to_owned();
    if words.len() == 2 {
        return Attributes { verb, path: words[1].to_owned(), resource: None };
    }
    let mut parts = words[1].split('/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let resource = Resource {
        group: part(),
        resource: part(),
        subresource: part(),
        namespace: words[2].trim_matches('-').to_owned(),
        name: words[3].trim_matches('-').to_owned(),
        version: "v1".to_owned(),
        rest: Vec::new(),
    };
    Attributes { verb, path: String::new(), resource: Some(resource) }
}

fn level(policy: &Policy, text: &str) -> Level {
    policy.judge(Some(&user("ana", &["dev", "ops"])), &asked(text)).level
}

#[test]
fn the_first_rule_that_matches_decides_and_none_is_nothing() {
    let policy = rules(
        "rules:\n- {level: None, verbs: [get]}\n- {level: Request, users: [ana]}\n- {level: Metadata, users: [ana]}\n",
    );
    assert_eq!(level(&policy, "get /pods/ ns a"), Level::None);
    assert_eq!(level(&policy, "create /pods/ ns a"), Level::Request);
    let other = policy.judge(Some(&user("bob", &[])), &asked("create /pods/ ns a"));
    assert_eq!(other.level, Level::None);
    assert_eq!(policy.judge(None, &asked("create /pods/ ns a")).level, Level::None);
}

#[test]
fn resources_match_as_upstream_matches_them() {
    let of = |group: &str| rules(&format!("rules:\n- {{level: Metadata, resources: [{{{group}}}]}}\n"));
    for (group, yes, no) in [
        (
            "group: '', resources: [pods]",
            vec!["get /pods/ n a"],
            vec!["get /pods/log n a", "get apps/pods/ n a"],
        ),
        (
            "group: '', resources: [pods/log]",
            vec!["get /pods/log n a"],
            vec!["get /pods/ n a", "get /x/log n a"],
        ),
        (
            "group: '', resources: ['pods/*']",
            vec!["get /pods/log n a", "get /pods/ n a"],
            vec!["get /x/ n a"],
        ),
        (
            "group: '', resources: ['*/log']",
            vec!["get /pods/log n a"],
            vec!["get /pods/ n a", "get /pods/exec n a"],
        ),
        ("group: '', resources: ['*']", vec!["get /pods/log n a", "get /x/ n a"], vec!["get apps/x/ n a"]),
        ("group: apps", vec!["get apps/x/ n a", "get apps/x/scale - -"], vec!["get /x/ n a"]),
        (
            "group: '', resources: [pods], resourceNames: [a]",
            vec!["get /pods/ n a"],
            vec!["get /pods/ n b", "list /pods/ n -"],
        ),
    ] {
        let policy = of(group);
        for text in yes {
            assert_eq!(level(&policy, text), Level::Metadata, "{group}: {text}");
        }
        for text in no.iter().chain(&["get /healthz"]) {
            assert_eq!(level(&policy, text), Level::None, "{group}: {text}");
        }
    }
}

#[test]
fn namespaces_groups_and_paths_match() {
    let policy = rules(
        "rules:\n- {level: Metadata, namespaces: [shop, '']}\n- {level: Request, nonResourceURLs: ['/api*', /version]}\n\
         - {level: RequestResponse, userGroups: [ops], verbs: [put]}\n",
    );
    assert_eq!(level(&policy, "get /pods/ shop a"), Level::Metadata);
    assert_eq!(level(&policy, "get /nodes/ - a"), Level::Metadata, "the empty one is the cluster scope");
    assert_eq!(level(&policy, "get /pods/ other a"), Level::None);
    for (path, expected) in [
        ("get /api", Level::Request),
        ("get /apis/apps", Level::Request),
        ("get /version", Level::Request),
        ("get /version/x", Level::None),
        ("put /x", Level::RequestResponse),
    ] {
        assert_eq!(level(&policy, path), expected, "{path}");
    }
    let all = rules("rules:\n- {level: Metadata, nonResourceURLs: ['*']}\n");
    assert_eq!(level(&all, "get /x"), Level::Metadata);
    assert_eq!(level(&all, "get /pods/ n a"), Level::None);
}

#[test]
fn stages_and_managed_fields_are_left_out_by_the_file_and_by_its_rules() {
    let policy = rules(
        "omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
         - {level: Request, verbs: [get], omitStages: [ResponseStarted], omitManagedFields: false}\n- level: Request\n",
    );
    let of = |text: &str| policy.judge(None, &asked(text));
    let verdict = of("get /x");
    assert_eq!(verdict.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
    assert!(!verdict.omit_managed_fields);
    let verdict = of("put /x");
    assert_eq!(verdict.omit_stages, [Stage::RequestReceived]);
    assert!(verdict.omit_managed_fields);
}

#[test]
fn without_a_file_everything_but_health_and_metrics_is_recorded() {
    let policy = Policy::default();
    for path in ["get /healthz", "get /readyz/ping", "get /livez", "get /metrics"] {
        assert_eq!(level(&policy, path), Level::None, "{path}");
    }
    for path in ["get /version", "get /pods/ n a", "create /pods/exec n a"] {
        assert_eq!(level(&policy, path), Level::Metadata, "{path}");
    }
}

#[test]
fn all_that_is_wrong_with_a_file_is_told_with_its_line() {
    let text = policy(
        "apiVersion: audit.k8s.io/v1beta1\nkind: Policies\nomitStages: [Later]\nrules:\n- level: metadata\n\
         - level: Request\n  nonResourceURLs: [version, '/a*b']\n  namespaces: [shop]\n\
         - level: None\n  omitStages: [Never]\n  resources: [{group: apps/v1, resourceNames: [a]}]\n",
    );
    let stages = "is RequestReceived, ResponseStarted, ResponseComplete or Panic, not";
    assert_eq!(
        text.unwrap_err(),
        format!(
            "audit policy FILE:\n\
             apiVersion: is audit.k8s.io/v1, not \"audit.k8s.io/v1beta1\"\n\
             kind: is Policy, not \"Policies\"\n\
             omitStages[0]: {stages} \"Later\"\n\
             rules[0].level, line 5: is None, Metadata, Request or RequestResponse, not \"metadata\"\n\
             rules[1].nonResourceURLs[0], line 6: begins with / or is *, not \"version\"\n\
             rules[1].nonResourceURLs[1], line 6: has no * but at its end: \"/a*b\"\n\
             rules[1].nonResourceURLs, line 6: a rule is about resources and namespaces, or about other paths, not \
             about both\n\
             rules[2].resources[0].group, line 9: is a group without its version, not \"apps/v1\"\n\
             rules[2].resources[0].resourceNames, line 9: takes at least one resource that they are the names of\n\
             rules[2].omitStages[0], line 9: {stages} \"Never\""
        )
    );
    let none = policy("apiVersion: audit.k8s.io/v1\nkind: Policy\n").unwrap_err();
    assert_eq!(none, "audit policy FILE:\nrules: names at least one rule");
}

#[test]
fn what_no_policy_has_is_refused_with_its_line() {
    let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
    for (text, line) in [("rules:\n- {level: None, user: [ana]}\n", "line 4"), ("rule: []\n", "line 3")] {
        let error = policy(&format!("{head}{text}")).unwrap_err();
        assert!(error.starts_with("audit policy FILE: ") && error.contains(line), "{error}");
    }
    assert!(policy("rules: [").is_err());
    let missing = Policy::from_file(Path::new("/nowhere/policy.yaml")).unwrap_err();
    assert_eq!(missing.to_string(), "read audit policy /nowhere/policy.yaml");
}
