//! How long a search over many recordings takes, cold and warm: a folder of generated ones, and the binary as a user runs
//! it. `PODGATE_RECORDINGS` is how many, 10,000 if not given.

#![allow(missing_docs, reason = "nobody reads documentation of a bench")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podgate::recording::keys::{Keys, SigningKey};
use podgate::testing::recordings::session;
use tokio::time::Instant;

/// Runs a search, and gives its time and how many lines it wrote.
fn run(store: &Path, cache: &Path, key: &Path, args: &[&str]) -> (Duration, usize) {
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(["recordings", args[0], "--store"])
        .arg(store)
        .args(if args[0] == "search" { vec![Path::new("--key"), key] } else { vec![] })
        .args(&args[1..])
        .env("XDG_CACHE_HOME", cache)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}");
    (started.elapsed(), output.stdout.iter().filter(|byte| **byte == b'\n').count())
}

fn main() {
    let many = std::env::var("PODGATE_RECORDINGS").ok().and_then(|many| many.parse().ok()).unwrap_or(10_000);
    let dir = tempfile::tempdir().unwrap();
    let (store, cache, key) =
        (dir.path().join("store"), dir.path().join("cache"), dir.path().join("key.pem"));
    let keys = Keys { signing: SigningKey::generate().unwrap(), recipients: Vec::new() };
    std::fs::write(&key, keys.signing.verifying().to_pem()).unwrap();
    (0..many).for_each(|number| drop(session(number).write(&store, &keys)));
    println!("{many} recordings; ms, lines of the answer");
    let search = |name: &str, args: &[&str]| {
        let mut times: Vec<_> = (0..5).map(|_| run(&store, &cache, &key, args)).collect();
        times.sort();
        println!("{name:<44} {:>8.0} {:>8}", times[2].0.as_secs_f64() * 1e3, times[2].1);
    };
    let needle = format!("item-7-of-{}\u{20}", many / 2);
    let needle = needle.trim_end();
    let (cold, lines) = run(&store, &cache, &key, &["search", "-o", "json", "--text", needle]);
    println!("{:<44} {:>8.0} {lines:>8}", "cold: text in one", cold.as_secs_f64() * 1e3);
    search("list", &["list"]);
    search(
        "who: one of 100 users",
        &["search", "-o", "json", "--limit", "0", "--user", "user-7@example.com"],
    );
    search("where: one of 20 namespaces", &["search", "-o", "json", "--limit", "0", "-n", "team-3"]);
    search(
        "when: an hour",
        &["search", "-o", "json", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-02T01:00:00Z"],
    );
    search("typed, in one", &["search", "-o", "json", "--typed", &format!("cat order-{}.txt", many / 3)]);
    search("typed, in all", &["search", "-o", "json", "--limit", "0", "--typed", "df -h"]);
    search("text, in none", &["search", "-o", "json", "--text", "no such thing anywhere"]);
    search("text, in one", &["search", "-o", "json", "--text", needle]);
    search("text, in all, the newest 50", &["search", "-o", "json", "--text", "app app"]);
    search("text, in all, all", &["search", "-o", "json", "--limit", "0", "--text", "app app"]);
}
