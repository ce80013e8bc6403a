//! The corpora, run again and, for a while, changed at random.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod mutate;
mod seeds;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use mutate::Mutator;

/// Changed inputs for each target where no time is given: next to nothing in time, and enough to keep the
/// mutator itself in order.
const FEW: u32 = 100;

/// Seconds for each target, from whoever has them to spare.
const SECONDS: &str = "PODGATE_FUZZ_SECONDS";

/// Repeats a run: what it printed.
const SEED: &str = "PODGATE_FUZZ_SEED";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The files of a corpus, in the order of their names.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder("corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}

fn holds(target: &Target, data: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(data))).is_ok()
}

#[test]
fn every_target_holds_for_its_corpus() {
    for target in TARGETS {
        for (file, data) in corpus(target.name) {
            assert!(holds(target, &data), "{} does not hold for {}", target.name, file.display());
        }
    }
}

/// `PODGATE_GOLDEN=write` makes them anew.
#[test]
fn seeds_are_what_our_encoders_write() {
    for (target, name, bytes) in seeds::all() {
        let file = folder("corpus").join(target).join(format!("seed-{name}"));
        if std::env::var("PODGATE_GOLDEN").is_ok_and(|value| value == "write") {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &bytes).unwrap();
        }
        let have = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(have, bytes, "{}", file.display());
    }
}

#[test]
fn every_target_has_a_fuzz_target_of_its_name() {
    let there = fs::read_dir(folder("fuzz_targets")).unwrap().map(|entry| entry.unwrap().path());
    let mut there: Vec<String> =
        there.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    there.sort();
    assert_eq!(there, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
}

/// A stand-in for the fuzzer where its build takes too long: it does not see what an input reaches. A failure
/// leaves the input behind as libFuzzer does.
#[test]
fn every_target_holds_for_its_corpus_changed_at_random() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let time = number(SECONDS).map(Duration::from_secs);
    // Without time it is a test like others, and always the same.
    let seed = number(SEED).unwrap_or_else(|| time.map_or(1, |_| std::process::id().into()));
    println!("{SEED}={seed}");
    for target in TARGETS {
        let corpus: Vec<Vec<u8>> = corpus(target.name).into_iter().map(|(_, data)| data).collect();
        let mut mutator = Mutator::new(seed);
        let start = Instant::now();
        let mut runs = 0;
        while time.map_or(runs < FEW, |time| start.elapsed() < time) {
            runs += 1;
            let data = mutator.next(&corpus);
            if !holds(target, &data) {
                let file = folder("artifacts").join(target.name).join(format!("crash-{seed}-{runs}"));
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, &data).unwrap();
                panic!("{} does not hold for {}: {}", target.name, file.display(), data.escape_ascii());
            }
        }
        println!("{}: held for {runs} inputs", target.name);
    }
}
