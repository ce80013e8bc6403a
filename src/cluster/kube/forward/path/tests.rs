use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::*;

/// What becomes of a path: `None` when it is no request, or one for the stages of a session.
fn forwarded(path: &str) -> Option<Result<(), Error>> {
    let uri: http::Uri = path.parse().ok()?;
    let ask = Ask::parse(&Method::POST, &uri, &HeaderMap::new()).ok()?;
    if ask.exec.is_some() {
        assert!(check(&ask).is_err(), "a session is never forwarded: {path}");
        return None;
    }
    Some(check(&ask))
}

fn passes(path: &str) -> bool {
    matches!(forwarded(path), Some(Ok(())))
}

#[test]
fn what_is_no_session_passes() {
    for path in [
        "/",
        "/version",
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/pods/web",
        "/api/v1/namespaces/default/pods/web/",
        "/api/v1/namespaces/default/pods/web/log?follow=true",
        "/api/v1/namespaces/default/pods/web/proxy/exec",
        "/api/v1/namespaces/default/pods/http%3Aweb%3A80/proxy/Attach/%25/exec",
        "/api/v1/namespaces/default/pods/exec",
        "/api/v1/namespaces/default/pods/exec/log",
        "/api/v1/namespaces/exec/pods/attach/status",
        "/api/v1/namespaces/pods/configmaps/exec",
        "/api/v1/namespaces/nodes/services/proxy",
        "/apis/apps/v1/namespaces/default/deployments/exec/scale",
        "/apis/subresources.kubevirt.io/v1/namespaces/d/virtualmachineinstances/vm/portforward/22",
        "/apis/subresources.kubevirt.io/v1/namespaces/d/virtualmachineinstances/vm/console",
        "/api/v1/namespaces/default/services/web/proxy/exec//run",
        "/api/v1/namespaces/default/services/web/proxy/edit?path=/pods/a/exec",
        "/api/v1/nodes/n/proxy/metrics/cadvisor",
        "/api/v1/nodes/n/proxy/logs/run/exec",
        "/api/v1/nodes/n/proxy/pods",
        "/api/v1/nodes/n/proxy/containerLogs/default/web/app",
        "/api/v1/nodes/exec",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Acontroller%3Aattach",
    ] {
        assert!(passes(path), "{path}: {:?}", forwarded(path));
    }
}

#[test]
fn a_session_in_disguise_is_not_forwarded() {
    for path in [
        // Other prefixes and versions.
        "/api/v2/namespaces/default/pods/web/exec",
        "/apis/core/v1/namespaces/default/pods/web/exec",
        "/apis/x.io/v1/clusters/c/proxy/api/v1/namespaces/default/pods/web/exec",
        "/x/api/v1/namespaces/default/pods/web/attach",
        "/pods/web/portforward",
        "/api/v1/namespaces/d/services/https:kubernetes:443/proxy/api/v1/namespaces/d/pods/web/exec",
        // More than there should be.
        "//api/v1/namespaces/default/pods/web/exec",
        "/api//v1/namespaces/default/pods/web/exec",
        "/api/v1//namespaces/default/pods/web/exec",
        "/api/v1/namespaces/default//pods/web/exec",
        "/api/v1/namespaces/default/pods//web/exec",
        "/api/v1/namespaces/default/pods/web//exec",
        "/api/v1/./namespaces/default/pods/web/exec",
        "/api/v1/x/../namespaces/default/pods/web/exec",
        "/x/../api/v1/namespaces/default/pods/web/exec",
        "/x/%2e%2e/api/v1/namespaces/default/pods/web/exec",
        "/api/v1/namespaces/default/pods/web/./exec",
        "/api/v1/namespaces/default/pods/web/log/../exec",
        "/api/v1/namespaces/default/pods/web/proxy/../exec",
        "/api/v1/namespaces/default/pods/web/proxy/..//../web/exec",
        "/api/v1/namespaces/default/pods/web/proxy/%2E%2e/exec",
        "/api/v1/namespaces/default/pods/web/proxy%2f..%2fexec",
        "/api/v1/namespaces/default/pods/web/proxy/%252e%252e/exec",
        // Written otherwise.
        "/api/v1/namespaces/default/pods/web/EXEC",
        "/API/v1/namespaces/default/Pods/web/PortForward",
        "/api/v1/namespaces/default/pods/web/%2565xec",
        "/api/v1/namespaces/default/pods/web%252Fexec",
        "/api/v1/namespaces/default/pods/web/exec;a=b",
        "/api/v1/namespaces/default/pods/web/exec%00",
        "/api/v1/namespaces/default/pods/web/exec%20",
        "/api/v1/namespaces/default/pods/web/%0aexec",
        "/api/v1/namespaces/default/pods/web/exec%3Fcommand=id",
        "/api/v1/namespaces/default/pods/web/exec%23",
        "/api/v1/namespaces/default/pods/web%5Cexec",
        "/api/v1/namespaces/default/pods%5cweb%5cattach",
        "/api/v1/namespaces/default/pods;v=1/web/exec",
    ] {
        if let Some(checked) = forwarded(path) {
            assert!(matches!(checked, Err(Error::HiddenSession)), "{path}: {checked:?}");
        }
    }
}

#[test]
fn a_session_of_a_kubelet_is_not_forwarded() {
    for path in [
        "/api/v1/nodes/n/proxy/exec/default/web/app?command=id",
        "/api/v1/nodes/n:10250/proxy/attach/default/web/app",
        "/api/v1/nodes/https:n:10250/proxy/portForward/default/web",
        "/api/v1/nodes/n/proxy/run/default/web/app",
        "/api/v1/nodes/n/proxy/cri/exec/token",
        "/api/v1/nodes/n/proxy/exec/",
        "/api/v1/nodes/n/proxy/PORTFORWARD/default/web",
        "/api/v1/nodes/n/proxy//exec/default/web/app",
        "/api/v1/nodes/n/proxy/./exec/default/web/app",
        "/api/v1/nodes/n/proxy/logs/../exec/default/web/app",
        "/api/v1/nodes/n/proxy/logs/%2e%2e/exec/default/web/app",
        "/api/v1/nodes/n/proxy/logs%2f..%2frun/default/web/app",
        "/api/v1/nodes/n/proxy/%65xec/default/web/app",
        "/api/v1/nodes/n/proxy/%2565xec/default/web/app",
        "/api/v1/nodes/n/proxy/%252565xec/default/web/app",
        "/api/v1/nodes/n/proxy%2Fexec/default/web/app",
        "/api/v1/nodes/n/proxy/exec;x/default/web/app",
        "/api/v1//nodes/n/proxy/exec/default/web/app",
        "/api/v1/nodes/n/x/../proxy/exec/default/web/app",
        "/api/v1/proxy/nodes/n/exec/default/web/app",
        "/api/v1/proxy/nodes/n//exec/default/web/app",
        "/api/v1/nodes/n/proxy?path=exec/default/web/app",
        "/api/v1/nodes/n/proxy?path=%2Fexec/default/web/app",
        "/api/v1/nodes/n/proxy/logs?path=x&path=../run/default/web/app",
        "/apis/x.io/v1/clusters/c/proxy/api/v1/nodes/n/proxy/run/default/web/app",
    ] {
        let checked = forwarded(path).expect("it is no session of a pod");
        assert!(matches!(checked, Err(Error::KubeletSession { .. })), "{path}: {checked:?}");
    }
}

#[test]
fn a_long_path_of_nested_escapes_is_read_in_one_pass() {
    assert_eq!(unescaped("%2525252565xec"), b"exec");
    assert_eq!(unescaped("%%36%35xec"), b"exec");
    assert_eq!(unescaped("100%/%zz%4"), b"100%/%zz%4");
    let path = format!("/{}", "%25".repeat(20_000));
    assert_eq!(unescaped(&path).len(), 20_001);
}

/// An independent reader: undoes escapes as often as there are any, takes dots and empty segments out, and
/// looks for what the API server or a kubelet would take for a session.
fn is_session(path: &str) -> bool {
    let mut text = path.split('?').next().unwrap_or(path).to_owned();
    loop {
        let once = percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if once == text {
            break;
        }
        text = once;
    }
    let mut kept: Vec<String> = Vec::new();
    for segment in text.to_lowercase().split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment.to_owned()),
        }
    }
    let named = |names: &[&str], word: &String| names.contains(&word.as_str());
    kept.windows(5).any(|w| w[0] == "namespaces" && w[2] == "pods" && named(&SESSIONS, &w[4]))
        || kept.windows(4).any(|w| w[0] == "nodes" && w[2] == "proxy" && named(&KUBELET_SESSIONS, &w[3]))
}

fn segment() -> impl Strategy<Value = String> {
    let words = [
        "api",
        "v1",
        "apis",
        "namespaces",
        "default",
        "pods",
        "web",
        "exec",
        "attach",
        "portforward",
        "proxy",
        "nodes",
        "run",
        "cri",
        "portForward",
        "",
        ".",
        "..",
        "watch",
        "log",
        "pods/web/exec",
        "namespaces/d/pods/web",
        "nodes/n/proxy",
    ];
    let written = (0..words.len(), 0u8..12, any::<prop::sample::Index>());
    written.prop_map(move |(word, how, at)| {
        let word = words[word];
        let escape = |byte: u8| format!("%{byte:02x}");
        if word.is_empty() {
            return String::new();
        }
        let at = at.index(word.len());
        let one = |with: &str| format!("{}{with}{}", &word[..at], &word[at + 1..]);
        match how {
            0 => word.to_uppercase(),
            1 => one(&escape(word.as_bytes()[at])),
            2 => one(&format!("%25{}", &escape(word.as_bytes()[at])[1..])),
            3 => word.bytes().map(escape).collect(),
            4 => word.replace('/', "%2f"),
            _ => word.to_owned(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_forwarded_names_a_session(
        prefix in prop::sample::select(vec!["", "/api/v1", "/api/v1/namespaces/d", "/apis/a/v1"]),
        segments in prop::collection::vec(segment(), 1..9),
    ) {
        let path = format!("{prefix}/{}", segments.join("/"));
        if passes(&path) {
            prop_assert!(!is_session(&path), "{path}");
        }
    }
}
