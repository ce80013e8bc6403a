use super::*;
use crate::dev::manifests;
use crate::dev::store::Store;

const HEAD: &str = "apiVersion: rbac.authorization.k8s.io/v1\n";

fn objects(text: &str) -> Arc<Objects> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rbac.yaml"), text).unwrap();
    Store::new(manifests::folder(folder.path()).unwrap().objects).snapshot()
}

/// A ClusterRole `r` with one rule, bound to User `u` everywhere.
fn rule(rule: &str) -> Arc<Objects> {
    objects(&format!(
        "{HEAD}kind: ClusterRole\nmetadata: {{name: r}}\nrules:\n- {rule}\n---\n\
         {HEAD}kind: ClusterRoleBinding\nmetadata: {{name: b}}\nroleRef: {{kind: ClusterRole, name: r}}\n\
         subjects: [{{kind: User, name: u}}]\n"
    ))
}

fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
        ..User::default()
    }
}

/// `verb resource[/sub][.group] [namespace/][name]`, or `verb /path`.
fn ask(text: &str) -> Attributes {
    let mut words = text.split(' ');
    let verb = words.next().unwrap().to_owned();
    let what = words.next().unwrap();
    if what.starts_with('/') {
        return Attributes { verb, path: what.into(), resource: None };
    }
    let (what, group) = what.split_once('.').unwrap_or((what, ""));
    let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
    let place = words.next().unwrap_or("");
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    Attributes {
        verb,
        path: String::new(),
        resource: Some(Resource {
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            rest: Vec::new(),
        }),
    }
}

#[test]
fn rules_match_as_upstreams_evaluation_helpers() {
    let core = |resources: &str| format!("{{apiGroups: [''], resources: [{resources}], verbs: [create]}}");
    let cases: Vec<(String, &str, bool)> = vec![
        (core("pods"), "create pods a/p", true),
        (core("pods"), "create pods/exec a/p", false),
        (core("pods/exec"), "create pods/exec a/p", true),
        (core("pods/exec"), "create pods a/p", false),
        (core("pods/exec"), "create pods/attach a/p", false),
        (core("'*/exec'"), "create pods/exec a/p", true),
        (core("'*/exec'"), "create things/exec a/p", true),
        (core("'*/exec'"), "create pods a/p", false),
        (core("'*/exec'"), "create pods/xexec a/p", false),
        (core("'pods/*'"), "create pods/exec a/p", false),
        (core("'pods/*'"), "create pods a/p", false),
        (core("'pods/*'"), "create pods/* a/p", true),
        (core("'*/*'"), "create pods/exec a/p", false),
        (core("'*'"), "create pods/exec a/p", true),
        (core("'*'"), "create pods a/p", true),
        (core("'*'"), "create roles.rbac.authorization.k8s.io a/p", false),
        (core("pods"), "get pods a/p", false),
        (core("pods"), "create pods.other a/p", false),
        (core("pods"), "create /pods", false),
        ("{apiGroups: ['*'], resources: ['*'], verbs: ['*']}".into(), "patch x/y.z a/p", true),
        ("{apiGroups: ['*'], resources: ['*'], verbs: ['*']}".into(), "get /version", false),
        (
            "{apiGroups: [''], resources: [pods], verbs: [get], resourceNames: [p]}".into(),
            "get pods a/p",
            true,
        ),
        (
            "{apiGroups: [''], resources: [pods], verbs: [get], resourceNames: [p]}".into(),
            "get pods a/q",
            false,
        ),
        (
            "{apiGroups: [''], resources: [pods], verbs: [list], resourceNames: [p]}".into(),
            "list pods a/",
            false,
        ),
        (
            "{apiGroups: [''], resources: [pods], verbs: [get], resourceNames: []}".into(),
            "get pods a/q",
            true,
        ),
        ("{nonResourceURLs: [/healthz], verbs: [get]}".into(), "get /healthz", true),
        ("{nonResourceURLs: [/healthz], verbs: [get]}".into(), "get /healthz/ping", false),
        ("{nonResourceURLs: [/healthz], verbs: [get]}".into(), "post /healthz", false),
        ("{nonResourceURLs: ['/healthz/*'], verbs: [get]}".into(), "get /healthz/ping", true),
        ("{nonResourceURLs: ['/healthz/*'], verbs: [get]}".into(), "get /healthz", false),
        ("{nonResourceURLs: ['/health*'], verbs: [get]}".into(), "get /healthz", true),
        ("{nonResourceURLs: ['*'], verbs: [get]}".into(), "get /anything", true),
        ("{nonResourceURLs: ['*/x'], verbs: [get]}".into(), "get /a/x", false),
        ("{nonResourceURLs: ['*'], verbs: ['*']}".into(), "get pods a/p", false),
    ];
    for (text, asked, allowed) in cases {
        let decision = review(&rule(&text), &user("u", &[]), &ask(asked));
        assert_eq!(decision.allowed, allowed, "{text} for {asked}");
        let reason = "RBAC: allowed by ClusterRoleBinding \"b\" of ClusterRole \"r\" to User \"u\"";
        assert_eq!(decision.reason, if allowed { reason } else { "" });
    }
}

#[test]
fn bindings_reach_their_subjects_in_their_namespace_and_say_so() {
    let bind = |kind: &str, name: &str, role: &str, subject: &str| {
        let place = if kind == "RoleBinding" { ", namespace: a" } else { "" };
        format!(
            "---\n{HEAD}kind: {kind}\nmetadata: {{name: {name}{place}}}\nroleRef: {{kind: {role}, name: r}}\n\
             subjects:\n- {{kind: User, name: nobody}}\n- {subject}\n"
        )
    };
    let rules = "rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]\n";
    let text = [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n".to_owned(),
        format!("{HEAD}kind: ClusterRole\nmetadata: {{name: r}}\n{rules}---\n"),
        format!("{HEAD}kind: Role\nmetadata: {{name: r, namespace: a}}\n{rules}"),
        bind("ClusterRoleBinding", "cg", "ClusterRole", "{kind: Group, name: g}"),
        bind("ClusterRoleBinding", "cs", "ClusterRole", "{kind: ServiceAccount, name: s, namespace: x}"),
        bind("RoleBinding", "ru", "Role", "{kind: User, name: u}"),
        bind("RoleBinding", "rc", "ClusterRole", "{kind: User, name: c}"),
        bind("RoleBinding", "rs", "Role", "{kind: ServiceAccount, name: s}"),
        bind("RoleBinding", "rx", "Role", "{kind: ServiceAccount, name: t, namespace: x}"),
    ]
    .concat();
    let objects = objects(&text);
    for (name, groups, namespace, reason) in [
        ("n", vec!["f", "g"], "b", "ClusterRoleBinding \"cg\" of ClusterRole \"r\" to Group \"g\""),
        (
            "system:serviceaccount:x:s",
            vec![],
            "b",
            "ClusterRoleBinding \"cs\" of ClusterRole \"r\" to ServiceAccount \"s/x\"",
        ),
        ("u", vec![], "a", "RoleBinding \"ru/a\" of Role \"r\" to User \"u\""),
        ("u", vec!["g"], "a", "ClusterRoleBinding \"cg\" of ClusterRole \"r\" to Group \"g\""),
        ("u", vec![], "b", ""),
        ("u", vec![], "", ""),
        ("c", vec![], "a", "RoleBinding \"rc/a\" of ClusterRole \"r\" to User \"c\""),
        ("c", vec![], "b", ""),
        (
            "system:serviceaccount:a:s",
            vec![],
            "a",
            "RoleBinding \"rs/a\" of Role \"r\" to ServiceAccount \"s/a\"",
        ),
        ("system:serviceaccount:b:s", vec![], "a", ""),
        (
            "system:serviceaccount:x:t",
            vec![],
            "a",
            "RoleBinding \"rx/a\" of Role \"r\" to ServiceAccount \"t/x\"",
        ),
        ("system:serviceaccount:a:t", vec![], "a", ""),
        ("g", vec![], "a", ""),
        ("system:anonymous", vec![], "a", ""),
    ] {
        let decision = review(&objects, &user(name, &groups), &ask(&format!("get pods {namespace}/p")));
        let expected = if reason.is_empty() { String::new() } else { format!("RBAC: allowed by {reason}") };
        assert_eq!((decision.allowed, decision.reason), (!reason.is_empty(), expected), "{name}");
    }
}

#[test]
fn roles_that_are_not_there_are_told_once_each_and_only_with_a_denial() {
    let bind = |name: &str, kind: &str, role: &str| {
        format!(
            "---\n{HEAD}kind: RoleBinding\nmetadata: {{name: {name}}}\nroleRef: {{kind: {kind}, name: {role}}}\n\
             subjects: [{{kind: User, name: u}}]\n"
        )
    };
    let one = bind("a", "Role", "x");
    let decision = |text: &str| review(&objects(text), &user("u", &[]), &ask("get pods default/p"));
    assert_eq!(
        decision(&one),
        Decision { allowed: false, reason: "RBAC: role.rbac.authorization.k8s.io \"x\" not found".into() }
    );
    let many = [&one, &bind("b", "ClusterRole", "y"), &bind("c", "Role", "x")].map(String::as_str).concat();
    assert_eq!(
        decision(&many).reason,
        "RBAC: [role.rbac.authorization.k8s.io \"x\" not found, clusterrole.rbac.authorization.k8s.io \"y\" not found]"
    );
    assert!(decision(&(many + &bind("d", "ClusterRole", "view"))).allowed);
}

#[test]
fn aggregated_roles_hold_the_rules_of_those_they_select_at_any_depth() {
    let objects = objects(&format!(
        "{HEAD}kind: ClusterRole\nmetadata: {{name: mine, labels: {{to: top}}}}\n\
         rules: [{{apiGroups: [''], resources: [pods/exec], verbs: [create]}}]\n---\n\
         {HEAD}kind: ClusterRole\nmetadata: {{name: top}}\n\
         aggregationRule: {{clusterRoleSelectors: [{{matchExpressions: [{{key: to, operator: In, values: [top]}}]}}]}}\n\
         rules: [{{apiGroups: ['*'], resources: ['*'], verbs: ['*']}}]\n"
    ));
    let rules = |name: &str| match objects.get(Kind::ClusterRole, "", name) {
        Some(Object::ClusterRole(role)) => role.rules.clone().unwrap(),
        _ => panic!("no {name}"),
    };
    assert_eq!(rules("top"), rules("mine"), "what was written there is overwritten");
    let (admin, edit, view) = (rules("admin"), rules("edit"), rules("view"));
    assert!(view.iter().all(|rule| edit.contains(rule)));
    assert!(edit.iter().all(|rule| admin.contains(rule)));
    assert!(edit.len() > view.len() && admin.len() > edit.len());
}

#[test]
fn the_built_in_people_may_do_what_the_manual_says() {
    let objects = Store::new(manifests::builtin().unwrap().objects).snapshot();
    let may = |name: &str, groups: &[&str], asked: &str| {
        let mut groups = groups.to_vec();
        groups.push("system:authenticated");
        review(&objects, &user(name, &groups), &ask(asked)).allowed
    };
    for (asked, alice) in [
        ("create pods/exec default/web", true),
        ("get pods/exec default/web", true),
        ("create pods/attach default/web", true),
        ("create pods/portforward default/web", true),
        ("get pods/log default/web", true),
        ("list pods default/", true),
        ("watch pods default/", true),
        ("create pods/exec shop/cart", false),
        ("list pods shop/", false),
        ("list pods", false),
        ("delete pods default/web", false),
    ] {
        assert_eq!(may("alice", &[], asked), alice, "{asked}");
        assert_eq!(may("x", &["dev"], asked), alice, "{asked}");
        assert!(!may("mallory", &[], asked), "{asked}");
        assert!(may("root", &["system:masters"], asked), "{asked}");
    }
    for asked in [
        "get /api",
        "get /apis/rbac.authorization.k8s.io/v1",
        "get /version",
        "get /healthz",
        "create selfsubjectaccessreviews.authorization.k8s.io",
        "create selfsubjectreviews.authentication.k8s.io",
    ] {
        assert!(may("mallory", &[], asked), "{asked}");
        let anyone = review(&objects, &user("system:anonymous", &["system:unauthenticated"]), &ask(asked));
        assert_eq!(anyone.allowed, matches!(asked, "get /version" | "get /healthz"), "{asked}");
    }
    let (rules, errors) = rules(&objects, &user("alice", &["system:authenticated"]), "default");
    assert!(errors.is_none() && rules.len() > 5);
}
