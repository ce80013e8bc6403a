//! `kubectl attach`, with every kubectl and every kind of node: to the main process of a container.

use std::process::Stdio;

use podgate::testing::soon;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::copy::PODS;
use crate::dev::Running;
use crate::kubectl;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_client_talks_to_the_main_process_and_gets_nothing_replayed() {
    let running = Running::start().await;
    for (n, kubectl) in kubectl::all(&running.kubeconfig()).iter().enumerate() {
        for pod in PODS {
            // The store may say Running a moment before it is.
            soon("the main process", async {
                while !kubectl.run(&["logs", pod]).await.out.contains("web: started") {}
            })
            .await;
            let mut child = kubectl.spawn(kubectl.command(&["attach", "-i", pod]).stdin(Stdio::piped()));
            let mut stdin = child.stdin.take().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let word = format!("hello-{n}");
            // Attached once it answers; what comes before may be for nobody.
            let answer = format!("got: {word}");
            let seen = soon("an answer of the main process", async {
                loop {
                    stdin.write_all(format!("{word}\n").as_bytes()).await.unwrap();
                    let line = lines.next_line().await.unwrap().expect("the session stands");
                    if !line.is_empty() && line != "If you don't see a command prompt, try pressing enter." {
                        break line;
                    }
                }
            })
            .await;
            assert_eq!(seen, answer, "{pod}: the first line is of now");
            child.kill().await.unwrap();
            // The process goes on without its client.
            let said = kubectl.run(&["logs", pod]).await;
            assert!(said.out.contains(&answer), "{pod}: {}{}", said.out, said.err);
        }
    }
    running.stop().await;
}
