//! `kubectl cp`, both ways, with every kubectl and every kind of node.

use std::path::Path;

use crate::dev::Running;
use crate::kubectl;

/// Pods of a node that speaks WebSocket up to v4, none, and v5.
pub(crate) const PODS: [&str; 3] = ["web", "web-spdy", "web-v5"];

/// What random bytes do not find, files with edges do: nothing, one byte, a read's worth, one more, many.
const SIZES: [usize; 6] = [0, 1, 32 * 1024, 64 * 1024 + 1, 1 << 20, 5_000_003];

fn write_tree(folder: &Path) {
    for size in SIZES {
        let mut bytes = vec![0; size];
        aws_lc_rs::rand::fill(&mut bytes).unwrap();
        std::fs::create_dir_all(folder.join("deep/er")).unwrap();
        std::fs::write(folder.join(format!("deep/er/{size} bytes")), bytes).unwrap();
    }
}

fn assert_same(there: &Path, here: &Path) {
    for size in SIZES {
        let name = format!("deep/er/{size} bytes");
        let (there, here) =
            (std::fs::read(there.join(&name)).unwrap(), std::fs::read(here.join(&name)).unwrap());
        assert!(there == here, "{name}: {} and {} bytes", there.len(), here.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_copied_there_and_back_is_the_same() {
    let running = Running::start().await;
    for kubectl in kubectl::all(&running.kubeconfig()) {
        for pod in PODS {
            let here = tempfile::tempdir().unwrap();
            let (sent, got) = (here.path().join("sent"), here.path().join("got"));
            write_tree(&sent);
            // A name of its own: the pods' folders outlive a kubectl.
            let there = format!("{pod}:copy-{}", uuid());
            let said = kubectl.run(&["cp", sent.to_str().unwrap(), &there]).await;
            assert_eq!(said.code, Some(0), "{pod}: {}{}", said.out, said.err);
            let said = kubectl.run(&["cp", &there, got.to_str().unwrap()]).await;
            assert_eq!(said.code, Some(0), "{pod}: {}{}", said.out, said.err);
            assert_same(&sent, &got);
        }
    }
    running.stop().await;
}

fn uuid() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
