use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustls_pki_types::{ServerName, UnixTime};
use serde_json::Value;
use tempfile::TempDir;

use super::*;

const FILES: [&str; 15] = [
    "ca.crt",
    "ca.key",
    "apiserver.crt",
    "apiserver.key",
    "admin.crt",
    "admin.key",
    "alice.crt",
    "alice.key",
    "node-ca.crt",
    "node-ca.key",
    "node.crt",
    "node.key",
    "kubelet-client.crt",
    "kubelet-client.key",
    "tokens.csv",
];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn day() -> SystemTime {
    SystemTime::UNIX_EPOCH + 50 * 365 * DAY
}

fn ask() -> Ask {
    Ask { hosts: Vec::new(), now: day() }
}

fn days(n: u32) -> Ask {
    Ask { now: day() + n * DAY, ..ask() }
}

fn at(ask: &Ask) -> UnixTime {
    UnixTime::since_unix_epoch(ask.now.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn open(dir: &TempDir, ask: &Ask) -> State {
    State::open(&dir.path().join("state"), ask).unwrap()
}

fn bytes(dir: &TempDir) -> BTreeMap<&'static str, Vec<u8>> {
    let read = |name| fs::read(dir.path().join("state").join(name)).unwrap();
    FILES.into_iter().map(|name| (name, read(name))).collect()
}

/// Which files differ after `change` and another start.
fn remade(second: &Ask, change: impl FnOnce(&Path)) -> Vec<&'static str> {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir, &ask()));
    let before = bytes(&dir);
    change(&dir.path().join("state"));
    drop(open(&dir, second));
    let after = bytes(&dir);
    FILES.into_iter().filter(|name| before[name] != after[name]).collect()
}

#[test]
fn everything_is_kept_between_starts() {
    assert_eq!(remade(&days(1), |_| {}), [""; 0]);
}

#[test]
fn certificates_near_their_end_are_remade_and_authorities_kept() {
    let leaves = FILES.iter().filter(|name| !name.contains("ca.") && **name != "tokens.csv");
    assert_eq!(remade(&days(359), |_| {}), leaves.copied().collect::<Vec<_>>());
    assert_eq!(remade(&days(357), |_| {}), [""; 0]);
}

#[test]
fn an_expiring_authority_is_remade_with_all_it_signed() {
    let signed = FILES.iter().filter(|name| **name != "tokens.csv");
    assert_eq!(remade(&days(3644), |_| {}), signed.copied().collect::<Vec<_>>());
}

#[test]
fn a_clock_set_back_remakes_what_is_not_valid_yet() {
    let earlier = Ask { now: day() - 2 * DAY, ..ask() };
    assert_eq!(remade(&earlier, |_| {}).len(), 14);
}

#[test]
fn a_missing_damaged_or_lax_file_is_remade_alone_with_its_pair() {
    let pair = ["alice.crt", "alice.key"];
    let remove = |path: &Path| fs::remove_file(path.join("alice.key")).unwrap();
    assert_eq!(remade(&days(1), remove), pair);
    let damage = |path: &Path| fs::write(path.join("alice.crt"), "no PEM").unwrap();
    assert_eq!(remade(&days(1), damage), pair);
    let swap = |path: &Path| {
        fs::copy(path.join("admin.key"), path.join("alice.key")).unwrap();
    };
    assert_eq!(remade(&days(1), swap), pair);
    let other = |path: &Path| {
        for kind in ["crt", "key"] {
            fs::copy(path.join(format!("admin.{kind}")), path.join(format!("alice.{kind}"))).unwrap();
        }
    };
    assert_eq!(remade(&days(1), other), pair);
    let open_key = |path: &Path| {
        fs::set_permissions(path.join("alice.key"), fs::Permissions::from_mode(0o644)).unwrap();
    };
    assert_eq!(remade(&days(1), open_key), pair);
}

#[test]
fn a_foreign_authority_key_remakes_the_authority() {
    let swap = |path: &Path| {
        fs::copy(path.join("ca.key"), path.join("node-ca.key")).unwrap();
    };
    let node =
        ["node-ca.crt", "node-ca.key", "node.crt", "node.key", "kubelet-client.crt", "kubelet-client.key"];
    assert_eq!(remade(&days(1), swap), node);
}

#[test]
fn a_new_listen_address_remakes_the_door_certificate_alone() {
    let wider = Ask {
        hosts: vec!["192.0.2.7".to_owned(), "dev.example".to_owned(), "localhost".to_owned()],
        ..days(1)
    };
    assert_eq!(remade(&wider, |_| {}), ["apiserver.crt", "apiserver.key"]);
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir, &wider);
    let names = ["192.0.2.7", "dev.example", "127.0.0.1", "::1", "localhost"];
    let names = names.map(|name| ServerName::try_from(name).unwrap());
    tls::verify_server(state.api_server().chain(), state.client_roots(), &names, at(&wider)).unwrap();
    drop(state);
    let before = bytes(&dir);
    drop(open(&dir, &days(2)));
    assert!(before == bytes(&dir), "a certificate with more names than needed is kept");
    let bad = Ask { hosts: vec!["not a host".to_owned()], ..ask() };
    let error = State::open(&dir.path().join("state"), &bad).unwrap_err();
    assert!(matches!(error, Error::Host { .. }));
}

#[test]
fn no_user_certificate_opens_a_node_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir, &ask());
    let admin = tls::Identity::from_files(&state.path().join("admin.crt"), &state.path().join("admin.key"));
    let admin = admin.unwrap();
    let nodes = tls::ClientVerifier::new(state.node_client_roots()).unwrap();
    let users = tls::ClientVerifier::new(state.client_roots()).unwrap();
    assert!(nodes.verify(admin.chain(), at(&ask())).is_err());
    assert!(nodes.verify(state.node_server().chain(), at(&ask())).is_err());
    assert!(users.verify(state.kubelet_client().chain(), at(&ask())).is_err());
    let subject = users.verify(admin.chain(), at(&ask())).unwrap();
    assert_eq!(
        (subject.common_name.as_str(), subject.organizations),
        ("admin", vec!["system:masters".to_owned()])
    );
    let podgate = nodes.verify(state.kubelet_client().chain(), at(&ask())).unwrap();
    assert_eq!((podgate.common_name.as_str(), podgate.organizations.len()), ("podgate", 0));
}

#[test]
fn only_the_owner_can_read_anything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let state = open(&dir, &ask());
    state.write_kubeconfig("127.0.0.1:6443".parse().unwrap()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o700, "mended");
    assert_eq!(mode(&state.pods_dir()), 0o700);
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap().path();
        assert!(entry == state.pods_dir() || mode(&entry) == 0o600, "{}", entry.display());
    }
}

#[test]
fn links_files_and_unwritable_places_are_errors_that_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    symlink(dir.path(), dir.path().join("link")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = |name: &str| State::open(&dir.path().join(name), &ask()).unwrap_err();
    assert!(matches!(error("link/"), Error::Symlink { .. }));
    assert!(matches!(error("file"), Error::NotAFolder { .. }));
    let create = error("file/state");
    assert!(matches!(create, Error::Create { .. }));
    assert!(create.to_string().ends_with("choose a folder that you can write to"));
}

#[test]
fn a_second_process_is_told_who_has_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir, &ask());
    let error = State::open(state.path(), &ask()).unwrap_err();
    let Error::InUse { pid, path } = error else { panic!("{error}") };
    assert_eq!((pid, path.as_path()), (std::process::id().to_string(), state.path()));
    drop(state);
    open(&dir, &ask());
}

#[test]
fn kubeconfig_has_the_contexts_and_follows_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir, &ask());
    for (api, url) in [
        ("127.0.0.1:6443", "https://127.0.0.1:6443"),
        ("0.0.0.0:7000", "https://127.0.0.1:7000"),
        ("[::]:7000", "https://[::1]:7000"),
    ] {
        state.write_kubeconfig(api.parse().unwrap()).unwrap();
        let text = fs::read_to_string(state.kubeconfig_path()).unwrap();
        let config: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], url);
        assert_eq!(config["current-context"], "admin");
        let names = |list: &str| -> Vec<String> {
            let all = config[list].as_array().unwrap().iter();
            all.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names("contexts"), ["admin", "alice", "mallory", "alice-token"]);
        assert_eq!(names("users"), ["admin", "alice", "mallory", "alice-token"]);
        assert_eq!(config["contexts"][2]["context"]["namespace"], "default");
        let user = &config["users"][1]["user"];
        let certificate = fs::read(state.path().join("alice.crt")).unwrap();
        assert_eq!(user["client-certificate-data"], kubeconfig::base64(&certificate));
        assert_eq!(config["users"][3]["user"]["token"], tokens::of(&state.folder, "alice").unwrap());
    }
}

#[test]
fn tokens_are_long_distinct_and_lines_of_people_stay() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir, &ask());
    let token = |user| tokens::of(&state.folder, user).unwrap();
    assert_eq!(token("alice").len(), 43);
    assert_ne!(token("alice"), token("mallory"));
    let text = fs::read_to_string(state.tokens_path()).unwrap();
    assert!(text.starts_with(&format!("{},admin,1,\"system:masters\"\n", token("admin"))));
    let alice = token("alice");
    let edited = format!("secret,bob,9,\"a,b\"\n{alice},alice,2,dev\n");
    fs::write(state.tokens_path(), &edited).unwrap();
    tokens::keep(&state.folder).unwrap();
    let text = fs::read_to_string(state.tokens_path()).unwrap();
    assert!(text.starts_with(&edited), "{text}");
    assert_eq!(text.lines().count(), 4);
}

#[test]
fn a_token_file_that_cannot_be_used_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir, &ask()));
    let path = dir.path().join("state/tokens.csv");
    let refused = |what: &str| {
        let before = fs::read(&path).unwrap();
        let error = State::open(&dir.path().join("state"), &ask()).unwrap_err().to_string();
        assert!(error.contains("tokens.csv") && error.contains(what), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    };
    let own = "secret, alice, 2\n\"secret2\",bob,9,\"a,b\"";
    fs::write(&path, format!("{own}\nsecret3,eve\n")).unwrap();
    refused("line 3 of");
    fs::write(&path, "secret,,9\n").unwrap();
    refused("has an empty token or user name");
    fs::write(&path, b"secret,bob,9\n\xff").unwrap();
    refused("see that it is text");
    fs::write(&path, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
    refused("make it shorter");
    fs::write(&path, own).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    refused("chmod 0600");
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), &path).unwrap();
    refused("is a symbolic link");
    fs::rename(dir.path().join("elsewhere"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    drop(open(&dir, &ask()));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&format!("{own}\n")), "{text}");
    assert_eq!(text.lines().count(), 4, "alice has a token already: {text}");
}
