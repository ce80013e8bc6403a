use super::*;

fn of(texts: &[(&str, &str)]) -> Result<Loaded, Error> {
    load(texts.iter().map(|&text| source(text)).collect())
}

/// The faults of one file, without its name.
fn faults(text: &str) -> Vec<String> {
    match of(&[("f", text)]) {
        Err(Error::Faults(notes)) => {
            notes.iter().map(|note| note.to_string().trim_start_matches("f:").to_owned()).collect()
        }
        other => panic!("{text}: {other:?}"),
    }
}

fn names(loaded: &Loaded, kind: Kind) -> Vec<String> {
    let of_kind = loaded.objects.iter().filter(|object| object.kind() == kind);
    of_kind.map(|object| format!("{}/{}", object.namespace(), object.name())).collect()
}

#[test]
fn the_built_in_cluster_loads_without_a_warning() {
    let loaded = builtin().unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(names(&loaded, Kind::Node), ["/node-a", "/node-b", "/node-spdy", "/node-v5", "/node-down"]);
    assert_eq!(
        names(&loaded, Kind::Pod),
        [
            "default/web",
            "default/web-spdy",
            "default/web-v5",
            "default/multi",
            "default/unscheduled",
            "default/on-down-node",
            "default/on-missing-node",
            "shop/cart"
        ]
    );
}

#[test]
fn every_fault_is_told_with_its_line() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\n";
    let binding = "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: b}\n";
    let cases: Vec<(String, Vec<&str>)> = vec![
        ("# nothing\n---\nkind: Pod\n".into(), vec!["3: apiVersion and kind are required"]),
        (
            "apiVersion: v1\nkind: Service\n".into(),
            vec!["2: kind: v1 Service is none that podgate keeps"],
        ),
        (
            "apiVersion: v2\nkind: Pod\n".into(),
            vec!["2: kind: v2 Pod is none that podgate keeps"],
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata:\n  labels: {a: b}\n".into(),
            vec!["3: metadata.name: a name is required"],
        ),
        (
            format!("{pod}spec:\n  containers:\n  - name: a\n    imag: x\n"),
            vec!["7: spec.containers[0].imag: unknown field"],
        ),
        (
            format!("{role}rules:\n- apiGroups: ['']\n  resources: [pods]\n  verb: [get]\n"),
            vec!["7: rules[0].verb: unknown field"],
        ),
        (
            format!("{role}rule: []\n"),
            vec!["4: rule: unknown field"],
        ),
        (
            format!("{pod}spec:\n  containers:\n  - name: 5\n"),
            vec!["6: spec.containers[0].name: invalid type: integer `5`, expected a string"],
        ),
        (
            format!("{pod}spec:\n  containers: {{}}\n"),
            vec!["5: spec.containers: invalid type: map, expected a sequence"],
        ),
        (
            format!("{pod}spec:\n  containers:\n  - name: a\n  initContainers:\n  - name: b\n  - name: a\n"),
            vec!["6: spec.containers[0].name: there is already a container \"a\" in this pod"],
        ),
        (
            format!("{pod}spec: {{containers: []}}\n"),
            vec!["4: spec.containers: a pod needs at least one container"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  namespace: nowhere\nspec:\n  containers:\n  - name: a\n"
                .into(),
            vec!["5: metadata.namespace: there is no Namespace \"nowhere\""],
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n\n  namespace: default\n".into(),
            vec!["5: metadata.namespace: a Node has no namespace"],
        ),
        (
            format!("{pod}spec: {{containers: [{{name: a}}]}}\n---\n{pod}spec: {{containers: [{{name: a}}]}}\n"),
            vec!["8: Pod default/p is already in f:3"],
        ),
        (
            format!("{binding}roleRef: {{kind: Rule, name: r}}\nsubjects:\n- {{kind: Robot, name: x}}\n"),
            vec![
                "4: roleRef.kind: must be Role or ClusterRole",
                "6: subjects[0].kind: must be User, Group or ServiceAccount",
            ],
        ),
        (
            format!("{role}rules:\n- nonResourceURLs: [/healthz]\n  verbs: [get]\n- resources: [pods]\n"),
            vec![
                "5: rules[0].nonResourceURLs: a Role is about a namespace and cannot name paths; use a ClusterRole",
                "7: rules[1].verbs: at least one verb is required",
                "7: rules[1].apiGroups: at least one group is required; \"\" is the core group",
            ],
        ),
        (
            format!("{pod}spec:\n  nodeName: a\n  nodeName: b\n"),
            vec!["6: duplicate mapping key: nodeName not allowed here at line 6, column 3"],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(faults(&text), expected, "{text}");
    }
}

#[test]
fn broken_yaml_is_told_by_line_and_loads_nothing_of_any_file() {
    let good = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n";
    let Err(Error::Faults(notes)) = of(&[("a.yaml", good), ("b.yaml", "apiVersion: v1\nkind: [Pod\n")])
    else {
        panic!("loaded");
    };
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!((notes[0].file.as_str(), notes[0].line > 1), ("b.yaml", true));
}

#[test]
fn a_resource_with_a_trailing_star_is_warned_of_because_it_matches_nothing() {
    let text = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\nrules:\n\
                - apiGroups: ['']\n  resources:\n  - pods\n  - pods/*\n  verbs: [create]\n";
    let loaded = of(&[("f", text)]).unwrap();
    assert_eq!(
        loaded.warnings.iter().map(Note::to_string).collect::<Vec<_>>(),
        [
            "f:8: rules[0].resources[1]: \"pods/*\" matches nothing: name the subresources, such as \"pods/exec\", \
             or write \"*/exec\" for one subresource of everything, or \"*\" for everything"
        ]
    );
}

#[test]
fn a_binding_to_a_role_that_is_not_there_is_warned_of() {
    let text = "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: b}\n\
                roleRef:\n  kind: Role\n  name: gone\n";
    let loaded = of(&[("f", text)]).unwrap();
    assert_eq!(
        loaded.warnings.iter().map(Note::to_string).collect::<Vec<_>>(),
        ["f:6: roleRef.name: there is no Role \"gone\", so this binding grants nothing"]
    );
}

#[test]
fn lists_json_anchors_and_numbers_for_quantities_are_read() {
    let list = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n\
                \t{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n\"}}]\n}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels: {on: 'yes', off: no}\nspec:\n  containers:\n\
               \x20 - name: a\n    resources: {limits: &r {cpu: 1, memory: 1Gi}, requests: *r}\n    ports:\n    - containerPort: 80\n\
               \x20   readinessProbe: {httpGet: {port: http}}\n";
    let loaded = of(&[("a.json", list), ("b.yaml", pod)]).unwrap();
    assert_eq!(names(&loaded, Kind::Node), ["/n"]);
    let Some(Object::Pod(pod)) = loaded.objects.iter().find(|object| object.name() == "p") else {
        panic!("no pod");
    };
    let resources = pod.spec.as_ref().unwrap().containers[0].resources.clone().unwrap();
    assert_eq!(resources.limits.unwrap()["cpu"].0, "1");
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["off"], "no");
}

#[test]
fn a_folder_is_read_in_order_of_name_and_may_replace_bootstrap_objects() {
    let folder_path = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder_path.path().join(name), text).unwrap();
    assert!(matches!(folder(folder_path.path()), Err(Error::Empty(_))));
    put("b.yml", "apiVersion: v1\nkind: Node\nmetadata: {name: b}\n");
    put("a.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n");
    put("ignored.txt", "no manifest");
    put(
        "role.json",
        "{\"apiVersion\": \"rbac.authorization.k8s.io/v1\", \"kind\": \"ClusterRole\", \
         \"metadata\": {\"name\": \"view\"}, \"rules\": []}",
    );
    let loaded = folder(folder_path.path()).unwrap();
    assert_eq!(names(&loaded, Kind::Node), ["/a", "/b"]);
    assert_eq!(names(&loaded, Kind::Namespace), ["/default", "/kube-system"]);
    let views = names(&loaded, Kind::ClusterRole);
    assert_eq!(views.iter().filter(|name| *name == "/view").count(), 1);

    let large = "#".repeat(usize::try_from(MAX_FILE).unwrap() + 1);
    put("c.yaml", &large);
    assert!(matches!(folder(folder_path.path()), Err(Error::TooLarge(_))));
    assert!(matches!(folder(&folder_path.path().join("gone")), Err(Error::List { .. })));
}
