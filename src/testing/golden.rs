//! Golden files: what podgate says, compared with what was reviewed.
//!
//! `PODGATE_GOLDEN=write` makes the files anew; the difference is then for a person to read.

use std::path::PathBuf;

/// Compares with `tests/golden/NAME`.
///
/// # Panics
/// When the file is missing or says something else.
pub fn check(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("PODGATE_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::create_dir_all(path.parent().expect("a file in a folder")).expect("make the folder");
        std::fs::write(&path, actual).expect("write the golden file");
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; PODGATE_GOLDEN=write makes it", path.display()));
    assert_eq!(actual, expected, "differs from {}", path.display());
}
