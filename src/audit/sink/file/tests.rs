use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn settings() -> AuditFile {
    AuditFile { max_bytes: 0, max_files: 0, ..AuditFile::default() }
}

async fn write(file: &mut File, lines: &[&'static str]) -> Result<(), Failure> {
    let batch: Vec<Bytes> = lines.iter().map(|line| Bytes::from_static(line.as_bytes())).collect();
    file.write(&batch).await
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn lines_are_appended_to_what_is_there_and_nobody_else_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let mut file = File::open(&path, &settings()).unwrap();
    write(&mut file, &["{1}", "{2}"]).await.unwrap();
    drop(file);
    let mut file = File::open(&path, &settings()).unwrap();
    write(&mut file, &["{3}"]).await.unwrap();
    assert_eq!(read(&path), "{1}\n{2}\n{3}\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
    let mut file = File::open(&path, &settings()).unwrap();
    write(&mut file, &["{1}"]).await.unwrap();
    fs::rename(&path, &moved).unwrap();
    write(&mut file, &["{2}"]).await.unwrap();
    assert_eq!((read(&moved), read(&path)), ("{1}\n".to_owned(), "{2}\n".to_owned()));
    fs::remove_file(&path).unwrap();
    write(&mut file, &["{3}"]).await.unwrap();
    assert_eq!(read(&path), "{3}\n");
}

#[tokio::test]
async fn a_file_that_somebody_else_has_emptied_is_as_long_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let mut file = File::open(&path, &AuditFile { max_bytes: 8, ..settings() }).unwrap();
    write(&mut file, &["{one}"]).await.unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    write(&mut file, &["{two}"]).await.unwrap();
    assert_eq!((read(&path).as_str(), names(folder.path()).len()), ("{two}\n", 1));
}

#[tokio::test]
async fn a_large_file_is_put_aside_and_the_oldest_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    fs::write(folder.path().join("audit-other.log"), "not ours").unwrap();
    let mut file = File::open(&path, &AuditFile { max_bytes: 8, max_files: 2, ..settings() }).unwrap();
    for line in ["{one}", "{two}", "{three}", "{4}", "{5}"] {
        write(&mut file, &[line]).await.unwrap();
    }
    let aside: Vec<_> = names(folder.path()).into_iter().filter(|name| name.starts_with("audit-2")).collect();
    let aside: Vec<_> = aside.iter().map(|name| read(&folder.path().join(name))).collect();
    // A line longer than the limit is written all the same.
    assert_eq!(aside, ["{two}\n", "{three}\n"]);
    assert_eq!(read(&path), "{4}\n{5}\n");
    assert!(folder.path().join("audit-other.log").exists());
}

#[tokio::test]
async fn old_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) =
        (folder.path().join("audit.log"), folder.path().join("audit-2020-01-01T00-00-00.000.log"));
    fs::write(&old, "{0}\n").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().append(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let limits = AuditFile { max_bytes: 4, max_age: Duration::from_secs(60), ..settings() };
    let mut file = File::open(&path, &limits).unwrap();
    write(&mut file, &["{1}"]).await.unwrap();
    write(&mut file, &["{2}"]).await.unwrap();
    assert!(!old.exists());
    assert_eq!(names(folder.path()).len(), 2);
}

#[tokio::test]
async fn what_a_crash_left_of_a_line_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    for (left, kept) in [("{1}\n{2", "{1}\n"), ("{1}\n", "{1}\n"), ("{2", "")] {
        fs::write(&path, left).unwrap();
        let mut file = File::open(&path, &settings()).unwrap();
        write(&mut file, &["{3}"]).await.unwrap();
        assert_eq!(read(&path), format!("{kept}{{3}}\n"), "{left:?}");
    }
    let long = format!("{{1}}\n{}", "x".repeat(3 * LOOK));
    fs::write(&path, &long).unwrap();
    File::open(&path, &settings()).unwrap();
    assert_eq!(read(&path), "{1}\n");
}

/// What a full disk does: some bytes are taken, and then no more.
#[test]
fn what_a_full_disk_took_of_a_batch_is_cut_off_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let settings = Settings { path: path.clone(), max_bytes: 0, max_files: 0, max_age: Duration::ZERO };
    let mut open = Some(settings.open().unwrap());
    settings.append(&mut open, b"{1}\n").unwrap();
    let file = open.as_mut().unwrap();
    (&file.file).write_all(b"{2}\n{3").unwrap();
    file.torn = true;
    settings.append(&mut open, b"{2}\n{3}\n").unwrap();
    assert_eq!(read(&path), "{1}\n{2}\n{3}\n");
}

#[tokio::test]
async fn a_device_without_room_is_a_sink_that_is_down() {
    let mut file = File::open(Path::new("/dev/full"), &AuditFile::default()).unwrap();
    let failed = write(&mut file, &["{1}"]).await.unwrap_err();
    assert!(matches!(failed, Failure::Down(_)), "{failed:?}");
    let mut file = File::open(Path::new("/dev/null"), &AuditFile::default()).unwrap();
    write(&mut file, &["{1}"]).await.unwrap();
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_at_start() {
    let error = File::open(Path::new("/nowhere/audit.log"), &AuditFile::default()).unwrap_err();
    assert_eq!(error.to_string(), "open audit log /nowhere/audit.log");
}
