//! The checks of what is no session: objects read, watched, made and removed, logs, and who may do what.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::checks::{Said, Target, feed, read_until};
use crate::place::goer;

/// The pod, and the settings beside it, that [`apply`] makes and [`delete`] removes; once per client and place.
fn applied(target: &Target<'_>) -> String {
    format!("{}-applied", target.pod)
}

/// How long a container that is added may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn get(target: &Target<'_>) {
    let name = ok(target, &["get", "pod", &target.pod, "-o", "jsonpath={.spec.containers[*].name}"]).await;
    assert_eq!(name, "main");
    let table = ok(target, &["get", "pods"]).await;
    let row = table.lines().find(|line| line.split_whitespace().next() == Some(&target.pod));
    let row: Vec<_> =
        row.unwrap_or_else(|| panic!("no row of {}: {table}", target.pod)).split_whitespace().collect();
    assert!(table.starts_with("NAME "), "{table}");
    assert_eq!(row[2], "Running", "{row:?}");
    let said = target.run(&["get", "pod", "nope"], b"").await;
    refused(&said, "Error from server (NotFound): pods \"nope\" not found");
}

/// One client follows the log of a pod, another one watches it, until a third lets it go.
pub(crate) async fn follow(target: &Target<'_>) {
    let pod = goer(&target.pod);
    let phase = "jsonpath={.status.phase}{\"\\n\"}";
    let (mut log, mut watch) =
        (target.spawn(&["logs", "-f", &pod]), target.spawn(&["get", "pod", &pod, "-w", "-o", phase]));
    let (mut logged, mut watched) = (Vec::new(), Vec::new());
    let mut phases = watch.stdout.take().unwrap();
    read_until(&mut phases, &mut watched, "Running\n").await;
    let mut lines = log.stdout.take().unwrap();
    read_until(&mut lines, &mut logged, "first\n").await;
    assert_eq!(ok(target, &["exec", &pod, "--", "touch", "go"]).await, "");
    read_until(&mut phases, &mut watched, "Succeeded\n").await;
    log.stdout = Some(lines);
    let rest = feed(log, b"").await;
    logged.extend(rest.out);
    assert_eq!((rest.code, rest.err.as_str()), (Some(0), ""));
    assert_eq!(String::from_utf8(logged).unwrap(), "first\nsecond\n");
    assert_eq!(ok(target, &["logs", &pod, "--tail=1"]).await, "second\n");
    assert_eq!(ok(target, &["logs", &pod, "--limit-bytes=8"]).await, "first\nse");
    let said = target.run(&["logs", &pod, "-c", "nope"], b"").await;
    refused(&said, &format!("container nope is not valid for pod {pod}"));
}

pub(crate) async fn can_i(target: &Target<'_>) {
    let ask = async |verb: &str, resource: &str| {
        target.run(&["--context", "alice-token", "auth", "can-i", verb, resource], b"").await
    };
    for (verb, resource) in [("create", "pods/exec"), ("get", "pods"), ("get", "pods/log")] {
        let said = ask(verb, resource).await;
        assert_eq!(
            (said.code, text(&said.out).as_str()),
            (Some(0), "yes\n"),
            "{verb} {resource}: {}",
            said.err
        );
    }
    for (verb, resource) in [("delete", "nodes"), ("create", "rolebindings")] {
        let said = ask(verb, resource).await;
        let answer = text(&said.out);
        // `no`, and the authorizer's reason when it has one.
        assert!(answer == "no\n" || answer.starts_with("no - "), "{verb} {resource}: {answer}{}", said.err);
        assert_eq!(said.code, Some(1), "{verb} {resource}");
    }
}

pub(crate) async fn discovery(target: &Target<'_>) {
    let resources = ok(target, &["api-resources", "--no-headers"]).await;
    for (name, kind) in [("pods", "Pod"), ("nodes", "Node"), ("namespaces", "Namespace")] {
        let row = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.first() == Some(&name) && words.last() == Some(&kind)
        };
        assert!(resources.lines().any(row), "no {name}: {resources}");
    }
    let versions = ok(target, &["api-versions"]).await;
    for version in ["v1", "rbac.authorization.k8s.io/v1"] {
        assert!(versions.lines().any(|line| line == version), "no {version}: {versions}");
    }
}

pub(crate) async fn forbidden(target: &Target<'_>) {
    let pod = &target.pod;
    let about = format!("Error from server (Forbidden): pods \"{pod}\" is forbidden: User \"");
    for args in [
        &["get", "pod", pod][..],
        &["logs", pod],
        &["exec", pod, "--", "true"],
        &["attach", pod],
        &["port-forward", pod, ":1"],
        &["delete", "pod", pod],
    ] {
        let said = target.run(&[&["--context", "mallory"], args].concat(), b"").await;
        refused(&said, &about);
    }
    let said = target.run(&["--context", "mallory", "get", "pods"], b"").await;
    refused(&said, "Error from server (Forbidden): pods is forbidden: User \"");
}

pub(crate) async fn token(target: &Target<'_>) {
    let as_alice = ["--context", "alice-token"];
    let name = ok(target, &[&as_alice[..], &["get", "pod", &target.pod, "-o", "name"]].concat()).await;
    assert_eq!(name, format!("pod/{}\n", target.pod));
    let script = ["exec", "-i", &target.pod, "--", "sh", "-c", "cat; printf err >&2; exit 3"];
    let said = target.run(&[&as_alice[..], &script].concat(), b"through").await;
    assert_eq!((said.code, text(&said.out).as_str()), (Some(3), "through"), "{}", said.err);
    assert!(said.err.starts_with("err"), "{}", said.err);
    let said = target.run(&[&as_alice[..], &["--token=nonsense", "get", "pods"]].concat(), b"").await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("You must be logged in to the server"), "{}", said.err);
}

pub(crate) async fn apply(target: &Target<'_>) {
    let name = applied(target);
    for (word, done) in [("one", "created"), ("two", "configured"), ("two", "unchanged")] {
        let labels = serde_json::json!({ "name": name, "labels": { "word": word } });
        let container = serde_json::json!({
            "name": "main", "image": target.image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"],
        });
        // On no node: nobody else need be there for an object to come and go.
        let pod = serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": labels, "spec": {
            "schedulerName": "nobody", "terminationGracePeriodSeconds": 0, "containers": [container] } });
        let settings = serde_json::json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": labels,
            "data": { "word": word } });
        let both = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [pod, settings] });
        let said = target.run(&["apply", "-f", "-"], both.to_string().as_bytes()).await;
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        assert_eq!(text(&said.out), format!("pod/{name} {done}\nconfigmap/{name} {done}\n"));
        let word_is = ok(target, &["get", "configmap", &name, "-o", "jsonpath={.data.word}"]).await;
        assert_eq!(word_is, word);
    }
}

pub(crate) async fn delete(target: &Target<'_>) {
    let name = applied(target);
    let said = ok(target, &["delete", &format!("pod/{name}"), &format!("configmap/{name}")]).await;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with(&format!("pod \"{name}\" deleted")), "{said}");
    assert!(lines[1].starts_with(&format!("configmap \"{name}\" deleted")), "{said}");
    // kubectl has waited until both were gone.
    for (resource, one) in [("pods", "pod"), ("configmaps", "configmap")] {
        let said = target.run(&["get", one, &name], b"").await;
        refused(&said, &format!("Error from server (NotFound): {resource} \"{name}\" not found"));
    }
}

pub(crate) async fn debug(target: &Target<'_>) {
    let args = ["debug", &target.pod, "-i", "--image", &target.image, "--container", "dbg", "--"];
    says_hello(target, &args).await;
}

pub(crate) async fn debug_copy(target: &Target<'_>) {
    let copy = format!("{}-copy", target.pod);
    let to = format!("--copy-to={copy}");
    says_hello(target, &["debug", &target.pod, "-i", &to, "--same-node", "--container=main", "--"]).await;
    let left = ok(target, &["get", "pod", &copy, "-o", "jsonpath={.spec.containers[0].command[2]}"]).await;
    assert_eq!(left, HELLO);
    ok(target, &["delete", "pod", &copy]).await;
}

/// Waits for its input, so that nobody attaches too late, and then a moment: containerd hands on what an attached
/// client sends before it listens for what the client is to get.
const HELLO: &str = "read -r line; sleep 1; echo \"got $line\"";

/// The input stays open until the answer is there: runtimes let go of who has ended it.
async fn says_hello(target: &Target<'_>, debug: &[&str]) {
    let mut client = target.spawn(&[debug, &["sh", "-c", HELLO]].concat());
    let (mut stdin, mut out) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    stdin.write_all(b"hello\n").await.unwrap();
    let mut seen = Vec::new();
    let answered = tokio::time::timeout(PATIENCE, out.read_to_end(&mut seen)).await;
    let output = client.wait_with_output();
    if answered.is_err() {
        panic!("{:?} and no end", text(&seen));
    }
    let output = output.await.unwrap();
    assert_eq!(
        (output.status.code(), text(&seen).as_str()),
        (Some(0), "got hello\n"),
        "{}",
        text(&output.stderr)
    );
    drop(stdin);
}

/// Runs the client, which is to succeed without a complaint; its output.
async fn ok(target: &Target<'_>, args: &[&str]) -> String {
    let said = target.run(args, b"").await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{args:?}");
    text(&said.out)
}

fn refused(said: &Said, text: &str) {
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains(text), "{text:?} is not in {:?}", said.err);
    assert_eq!(said.out, b"");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
