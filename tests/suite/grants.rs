//! Grants as people get them: with a kubectl, a shell, and a second person.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use podgate::app::dev::Dev;
use podgate::testing::soon;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::dev::{Running, config};
use crate::kubectl::{Kubectl, all};

/// The longest that a grant holds here: kubectls are slow to start on a loaded machine.
const HOLDS: Duration = Duration::from_secs(12);

/// How long a session may go on whose grant has run out.
const WITHIN: Duration = Duration::from_secs(5);

const POLICY: &str = "
apiVersion: podgate.dev/v1alpha1
kind: ExecPolicy
metadata: {name: p}
spec:
  rules:
  - {name: four-eyes, match: {}, effect: allow, message: it's for two, demands: {grant: true}}
";

/// What `web` is after a rollout.
const ROLLED_OUT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-next, labels: {app: web, pod-template-hash: 7d9f}}
spec:
  nodeName: node-a
  containers:
  - {name: web, image: 'podgate.dev/web:2'}
";

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_pastes_what_it_says_and_is_in_as_long_as_somebody_else_lets_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for file in ["bootstrap.yaml", "demo.yaml"] {
        let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dev/builtin").join(file);
        std::fs::copy(builtin, manifests.join(file)).unwrap();
    }
    std::fs::write(manifests.join("next.yaml"), ROLLED_OUT).unwrap();
    config.dev.manifests = Some(manifests);
    config.policy.files = vec![folder.path().join("policy.yaml")];
    std::fs::write(&config.policy.files[0], POLICY).unwrap();
    config.policy.grants.longest = HOLDS;
    let running = Running { dev: Dev::start(&config).await.unwrap(), folder };
    let hers = running.folder.path().join("alice");
    let kubeconfig = std::fs::read_to_string(running.kubeconfig()).unwrap();
    let current = "current-context: admin";
    assert!(kubeconfig.contains(current), "{kubeconfig}");
    std::fs::write(&hers, kubeconfig.replace(current, "current-context: alice")).unwrap();
    for (alice, admin) in all(&hers).into_iter().zip(all(&running.kubeconfig())) {
        let grant = asked_and_approved(&alice, &admin).await;
        let child = inside(&alice).await;
        let until = admin.run(&["get", &grant, "-o", "jsonpath={.status.until}"]).await.out;
        let until: Timestamp = until.parse().unwrap();
        let told = end(child, HOLDS + WITHIN).await;
        let late = until.duration_until(Timestamp::now());
        assert!(!late.is_negative() && late.unsigned_abs() < WITHIN, "{late}");
        let (_, name) = grant.split_once('/').unwrap();
        assert!(told.contains(&format!("the grant default/{name} has run out")), "{told}");

        let grant = asked_and_approved(&alice, &admin).await;
        let child = inside(&alice).await;
        assert_eq!(admin.run(&["delete", &grant]).await.code, Some(0));
        let told = end(child, WITHIN).await;
        let (_, name) = grant.split_once('/').unwrap();
        assert!(told.contains(&format!("the grant default/{name} no longer lets you in")), "{told}");
        assert_eq!(alice.run(&["exec", "web", "--", "id"]).await.code, Some(1));
    }
    running.stop().await;
}

/// The grant that alice has from admin, whom she asked by what a refusal told her.
async fn asked_and_approved(alice: &Kubectl, admin: &Kubectl) -> String {
    let refused = alice.run(&["exec", "web", "--", "id"]).await;
    assert!(refused.err.contains("policy p/four-eyes: it's for two; it takes a grant"), "{}", refused.err);
    let (_, command) = refused.err.split_once("ask for one with: ").unwrap();
    let asked = alice.shell(command.trim_end()).await;
    let grant = asked.out.strip_suffix(" created\n").unwrap_or_else(|| panic!("{}", asked.err));
    let approve = ["annotate", grant, "podgate.dev/approve=yes"];
    assert_eq!(alice.run(&approve).await.code, Some(1));
    assert_eq!(alice.run(&["exec", "web", "--", "id"]).await.code, Some(1));
    let approved = admin.run(&approve).await;
    assert_eq!(approved.code, Some(0), "{}", approved.err);
    grant.to_owned()
}

/// An exec in the pod after the rollout, that has begun.
async fn inside(alice: &Kubectl) -> Child {
    let mut command = alice.command(&["exec", "web-next", "--", "sh", "-c", "echo in; sleep 100"]);
    let mut child = alice.spawn(&mut command);
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    soon("the first line", out.read_line(&mut line)).await.unwrap();
    assert_eq!(line, "in\n");
    child
}

/// What a kubectl says when it ends.
async fn end(child: Child, within: Duration) -> String {
    let ended = tokio::time::timeout(within, child.wait_with_output()).await;
    String::from_utf8_lossy(&ended.expect("an end").unwrap().stderr).into_owned()
}
