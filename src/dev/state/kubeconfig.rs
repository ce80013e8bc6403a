//! `kubeconfig`: contexts for each built-in user, certificates and keys embedded so that the file can be copied.

use std::io;
use std::net::SocketAddr;

use k8s_openapi::ByteString;

use super::files::Folder;
use super::{ADMIN, ALICE, Error, authority::Leaf, tokens};

/// The text of the file. All values are base64, tokens of ours or addresses; quotes keep YAML from reading one
/// as a number.
pub(super) fn render(folder: &Folder, api: SocketAddr) -> Result<String, Error> {
    let mut text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: admin\npreferences: {{}}\nclusters:\n\
         - name: podgate-dev\n  cluster:\n    server: \"https://{api}\"\n    \
         certificate-authority-data: \"{}\"\ncontexts:\n",
        embedded(folder, "ca.crt")?
    );
    for user in ["admin", "alice", "mallory", "alice-token"] {
        text.push_str(&format!(
            "- name: {user}\n  context:\n    cluster: podgate-dev\n    user: {user}\n    namespace: default\n"
        ));
    }
    text.push_str("users:\n");
    for (user, leaf) in [("admin", &ADMIN), ("alice", &ALICE)] {
        text.push_str(&by_certificate(folder, user, leaf)?);
    }
    for (name, user) in [("mallory", "mallory"), ("alice-token", "alice")] {
        let token = tokens::of(folder, user).ok_or_else(|| gone(folder, "tokens.csv"))?;
        let token = serde_json::Value::from(token);
        text.push_str(&format!("- name: {name}\n  user:\n    token: {token}\n"));
    }
    Ok(text)
}

fn by_certificate(folder: &Folder, user: &str, leaf: &Leaf) -> Result<String, Error> {
    Ok(format!(
        "- name: {user}\n  user:\n    client-certificate-data: \"{}\"\n    client-key-data: \"{}\"\n",
        embedded(folder, &leaf.certificate_file())?,
        embedded(folder, &leaf.key_file())?
    ))
}

fn embedded(folder: &Folder, name: &str) -> Result<String, Error> {
    let text = folder.read(name).ok_or_else(|| gone(folder, name))?;
    Ok(base64(text.as_bytes()))
}

fn gone(folder: &Folder, name: &str) -> Error {
    let source = io::Error::new(io::ErrorKind::NotFound, format!("{name} has gone from the folder"));
    Error::Write { path: folder.file("kubeconfig"), source }
}

/// Standard base64 with padding, by the one encoder that is linked anyway.
pub(super) fn base64(bytes: &[u8]) -> String {
    match serde_json::to_value(ByteString(bytes.to_vec())) {
        Ok(serde_json::Value::String(text)) => text,
        _ => unreachable!("a byte string is written as a string"),
    }
}
