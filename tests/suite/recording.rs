//! Recordings of whole sessions: from a client through the gateway into the spool and the store.

use std::fs::File;
use std::path::{Path, PathBuf};

use podgate::app::dev::Dev;
use podgate::app::recording;
use podgate::config::Config;
use podgate::drain::Drain;
use podgate::recording::container::{Reader, Trust};
use podgate::recording::facts::{Ending, Facts};
use podgate::recording::keys::SigningKey;
use podgate::telemetry::{Metrics, chain};
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, exec_request, read_exactly, send};
use podgate::testing::recordings::pieces;
use podgate::testing::{Answer, Far, Pki, TestGateway, soon, until};
use podgate::wire::remotecommand::StreamType;
use podgate::wire::tape::Kind;
use rustix::process::Signal;

use crate::binary::{banner, podgate, signal};
use crate::dev::{self, Running};
use crate::kubectl;
use crate::rig::rig_with;
use crate::sessions::{exec, lines};

/// A recording, as its reader has it.
pub(crate) struct Recording {
    facts: Facts,
    pub(crate) ending: Ending,
    pieces: Vec<(Kind, Vec<u8>)>,
}

impl Recording {
    fn of(&self, wanted: Kind) -> Vec<u8> {
        let pieces = self.pieces.iter().filter(|(kind, _)| *kind == wanted);
        pieces.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }

    fn text(&self, wanted: Kind) -> String {
        String::from_utf8(self.of(wanted)).unwrap()
    }
}

/// Paths of all plain files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

fn recordings(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "zst")).collect()
}

/// The only recording below a folder, once it is there.
pub(crate) async fn only(folder: &Path, key: &Path) -> Recording {
    until("a recording in the store", || recordings(folder).len() == 1).await;
    let trusted = [SigningKey::from_file(key).unwrap().verifying().clone()];
    let file = File::open(&recordings(folder)[0]).unwrap();
    let mut reader = Reader::open(file, Trust::Keys(&trusted), &[]).unwrap();
    let pieces = pieces(&mut reader);
    Recording { facts: reader.facts().clone(), ending: reader.ending().unwrap().clone(), pieces }
}

/// An embedded cluster that records.
async fn recording_dev() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let mut config = dev::config(&folder);
    config.recording.enabled = true;
    Running { dev: Dev::start(&config).await.unwrap(), folder }
}

impl Running {
    async fn recorded(&self) -> Recording {
        let state = self.folder.path().join("state");
        only(&state.join("recordings"), &state.join("recording-key.pem")).await
    }
}

/// Settings under which everything is recorded, strictly, into this folder.
pub(crate) fn recording_into(folder: &Path) -> Config {
    let key = folder.join("key.pem");
    std::fs::write(&key, SigningKey::generate().unwrap().to_private_pem().unwrap()).unwrap();
    let mut config = config();
    config.recording.enabled = true;
    config.recording.signing_key_file = Some(key);
    config.recording.spool.dir = Some(folder.join("spool"));
    config.recording.spool.max_bytes = 1024 * 1024;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_recorded_as_it_passed_and_goes_to_the_store_with_its_card_and_the_key() {
    let running = recording_dev().await;
    let query = "command=sh&command=-c&command=cat;+echo+err+%3E%262;+exit+7&stdin=1&stdout=1&stderr=1"
        .replace(';', "%3B");
    let mut client = exec(&running, &query, &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout, StreamType::Stderr]).await;
    let sent: Vec<u8> = (0..400_000u32).flat_map(u32::to_le_bytes).collect();
    client.write(&sent).await;
    client.close_stdin().await;
    let finished = soon("the end", client.finish()).await;
    assert!(finished.stdout == sent && finished.stderr == b"err\n");
    let recording = running.recorded().await;
    assert!(recording.of(Kind::Stdin) == sent && recording.of(Kind::Stdout) == sent);
    assert_eq!(recording.text(Kind::Stderr), "err\n");
    assert_eq!(recording.of(Kind::Result), finished.error);
    let Facts { user, pod, subresource, tty, rule, .. } = &recording.facts;
    assert_eq!((user.as_str(), pod.as_str(), subresource.as_str(), *tty), ("alice", "web", "exec", false));
    assert_eq!(rule, "default");
    assert_eq!((recording.ending.exit_code, recording.ending.cut), (Some(7), false));
    let store = running.folder.path().join("state/recordings");
    let day = recording.facts.started.strftime("%Y/%m/%d").to_string();
    let id = &recording.facts.id;
    until("its card", || store.join(&day).join(format!("{id}.json")).exists()).await;
    let key = SigningKey::from_file(&running.folder.path().join("state/recording-key.pem")).unwrap();
    let public = store.join("keys").join(format!("{}.pem", key.verifying().id()));
    assert_eq!(std::fs::read_to_string(public).unwrap(), key.verifying().to_pem());
    until("an empty spool", || recordings(&running.folder.path().join("state/spool")).is_empty()).await;
    running.stop().await;
}

/// What is recorded of stdin when this command asks for a secret and then for a name.
async fn asked_for_a_secret(command: &[&str]) -> Recording {
    let running = recording_dev().await;
    let words: Vec<_> = command.iter().map(|word| format!("command={}", encoded(word))).collect();
    let query = format!("{}&stdin=1&stdout=1&tty=1", words.join("&"));
    let mut client = exec(&running, &query, &lines(&["v4.channel.k8s.io"]), false).await;
    client.open(&[StreamType::Error, StreamType::Stdin, StreamType::Stdout, StreamType::Resize]).await;
    soon("the first prompt", client.until(StreamType::Stdout, "Password: ")).await;
    for key in "hunter2\r".chars() {
        client.write(key.to_string().as_bytes()).await;
    }
    soon("the second prompt", client.until(StreamType::Stdout, "Name: ")).await;
    client.write(b"ana\r").await;
    soon("the end", client.finish()).await;
    let recording = running.recorded().await;
    running.stop().await;
    recording
}

fn encoded(word: &str) -> String {
    word.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_typed_unseen_is_not_in_the_recording_and_what_is_seen_is() {
    let bash = "read -s -p 'Password: ' p; echo; read -p 'Name: ' n; echo \"${#p} $n\"";
    let python = "import getpass; p = getpass.getpass(); n = input('Name: '); print(len(p), n)";
    for command in [["bash", "-c", bash], ["python3", "-c", python]] {
        let recording = asked_for_a_secret(&command).await;
        assert!(recording.text(Kind::Stdout).contains("7 ana"), "{}", recording.text(Kind::Stdout));
        assert_eq!(
            (recording.text(Kind::Stdin).as_str(), recording.text(Kind::Withheld).as_str()),
            ("\rana\r", "7")
        );
        assert!(recording.pieces.iter().all(|(_, bytes)| !bytes.windows(7).any(|part| part == b"hunter2")));
    }
}

#[tokio::test]
async fn without_room_strict_sessions_are_503_before_the_node_hears_of_them_and_tolerant_ones_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = recording_into(folder.path());
    let tolerant = "apiVersion: podgate.dev/v1alpha1\nkind: ExecPolicy\nmetadata: {name: p}\nspec: {rules: [{name: ben, \
                    match: {users: [ben]}, effect: allow, demands: {recording: tolerant}}]}\n";
    config.policy.files = vec![folder.path().join("policy.yaml")];
    std::fs::write(&config.policy.files[0], tolerant).unwrap();
    std::fs::create_dir(folder.path().join("spool")).unwrap();
    std::fs::write(folder.path().join("spool/old.tape.zst"), vec![0; 1024 * 1024]).unwrap();
    let rig = rig_with(config).await;
    let ask = async |user: &str| {
        let mut io = rig.gateway.connect_as(user).await;
        // What clients say of themselves changes nothing.
        send(&mut io, &exec_request("command=id", "Kubectl-Command: kubectl cp\r\n")).await;
        io
    };
    let refused = Answer::read(&mut ask("ana").await).await.expect("an answer");
    assert_eq!(refused.code(), 503, "{}", refused.body);
    assert!(refused.body.contains("this session has to be recorded, and cannot be"), "{}", refused.body);
    assert!(refused.body.contains("recording.spool.maxBytes"), "{}", refused.body);
    assert_eq!(rig.far.accepted(), 0);
    let ready = rig.gateway.admin("GET /readyz").await;
    assert!(ready.body.contains("[-]recording failed"), "{}", ready.body);
    let mut io = ask("ben").await;
    assert_eq!(read_exactly(&mut io, SWITCHING.len()).await, SWITCHING);
    drop(io);
    until("its end", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    rig.gateway.stop().await;
}

/// A node may have begun with it by then.
#[tokio::test]
async fn what_the_node_was_asked_for_is_recorded_although_its_client_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let pki = std::sync::Arc::new(Pki::new());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let far = Far::start(&pki, move |io| {
        asked.send(()).unwrap();
        async move {
            let _never_answers = io;
            std::future::pending().await
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, recording_into(folder.path()), pki).await;
    let mut io = gateway.connect_as("ana").await;
    send(&mut io, &exec_request("command=reboot", "")).await;
    soon("the question", was_asked.recv()).await.unwrap();
    drop(io);
    let recording = only(&folder.path().join("spool"), &folder.path().join("key.pem")).await;
    assert_eq!((recording.facts.user.as_str(), recording.ending.reason.as_str()), ("ana", "client_lost"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_that_the_node_refuses_leaves_no_recording() {
    let folder = tempfile::tempdir().unwrap();
    let pki = std::sync::Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    })
    .await;
    let gateway = TestGateway::facing(&far, recording_into(folder.path()), pki).await;
    assert_eq!(gateway.ask(&exec_request("command=id", "")).await.code(), 403);
    let discarded = "podgate_recording_closed_total{outcome=\"discarded\"}";
    until("it is discarded", || gateway.metric(discarded) == 1.0).await;
    let left: Vec<_> = files(&folder.path().join("spool"));
    assert!(left.iter().all(|path| path.ends_with("lock") || path.ends_with("probe")), "{left:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_podgate_that_is_killed_leaves_recordings_that_its_next_start_closes_as_cut() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    let mut child = podgate(&dir, &["--record"]).spawn().unwrap();
    banner(&mut child).await;
    let kubectl = &kubectl::all(&dir.join("kubeconfig"))[0];
    let script = "while echo line; do sleep 0.05; done";
    let mut session = kubectl.spawn(&mut kubectl.command(&["exec", "web", "--", "sh", "-c", script]));
    let spool = dir.join("spool");
    let part = || files(&spool).into_iter().find(|path| path.to_string_lossy().ends_with(".zst.part"));
    // Its head, and what a second or two have brought.
    let grown = || part().is_some_and(|path| recorded_so_far(&path) > 0);
    until("something is recorded", grown).await;
    signal(&child, Signal::KILL);
    soon("its end", child.wait()).await.unwrap();
    let _ = session.kill().await;
    let mut again = podgate(&dir, &["--record"]).spawn().unwrap();
    banner(&mut again).await;
    let recording = only(&dir.join("recordings"), &dir.join("recording-key.pem")).await;
    assert!(recording.ending.cut && recording.ending.reason == "crashed");
    assert!(recording.text(Kind::Stdout).starts_with("line\nline\n"));
    signal(&again, Signal::TERM);
    assert_eq!(soon("the end", again.wait()).await.unwrap().code(), Some(0));
}

/// Bytes of stdout that are proven in what is there of a recording.
fn recorded_so_far(path: &Path) -> u64 {
    let Ok(file) = File::open(path) else { return 0 };
    let Ok(mut reader) = Reader::open(file, Trust::Anyone, &[]) else { return 0 };
    while let Ok(Some(_)) = reader.next() {}
    reader.so_far().moved.stdout
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_told_with_its_setting_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = recording_into(folder.path());
    let open = |config: &Config| {
        let opened = recording::open(&config.recording, &Drain::new(), &Metrics::new());
        opened.err().map(|error| chain(&error)).unwrap_or_default()
    };
    std::fs::write(folder.path().join("other"), "not a key").unwrap();
    for name in ["missing", "other", "."] {
        config.recording.signing_key_file = Some(folder.path().join(name));
        let text = open(&config);
        assert!(text.starts_with("setting recording.signingKeyFile: "), "{text}");
        assert!(text.contains(&folder.path().join(name).display().to_string()), "{text}");
    }
    config = recording_into(folder.path());
    config.recording.spool.dir = Some(folder.path().join("other/spool"));
    let text = open(&config);
    assert!(text.starts_with("setting recording.spool.dir: make the spool folder"), "{text}");
}
