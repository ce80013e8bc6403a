//! `tokens.csv`, in the form of kube-apiserver's static token file: `token,user,uid,"group1,group2"`.
//!
//! Lines that people add are kept. A file that cannot be read as such is made anew.
//! Source: apiserver `plugin/pkg/auth/authenticator/token/tokenfile`.

use aws_lc_rs::rand;

use super::Error;
use super::files::Folder;

const FILE: &str = "tokens.csv";

/// Random bytes of a token: as many as nobody guesses, and 43 characters of base64url.
const TOKEN_BYTES: usize = 32;

/// User, uid, groups.
const USERS: [(&str, &str, &str); 3] =
    [("admin", "1", "system:masters"), ("alice", "2", "dev"), ("mallory", "3", "guests")];

/// Sees to it that each of our users has a token.
pub(super) fn keep(folder: &Folder) -> Result<(), Error> {
    let mut records = load(folder).unwrap_or_default();
    let known = records.len();
    for (user, uid, groups) in USERS {
        if find(&records, user).is_none() {
            records.push([&token()?, user, uid, groups].map(str::to_owned).into());
        }
    }
    if records.len() == known {
        return Ok(());
    }
    let mut text = String::new();
    for record in &records {
        let fields: Vec<String> = record.iter().map(|field| quoted(field)).collect();
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    folder.write(FILE, text.as_bytes())
}

/// The token of a user, as the file has it now.
pub(super) fn of(folder: &Folder, user: &str) -> Option<String> {
    find(&load(folder)?, user).map(str::to_owned)
}

fn load(folder: &Folder) -> Option<Vec<Vec<String>>> {
    let text = folder.read(FILE)?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut records = Vec::new();
    for record in reader.records() {
        let record = record.ok()?;
        // kube-apiserver refuses the whole file for such a line.
        if record.len() < 3 || record.iter().take(2).any(str::is_empty) {
            return None;
        }
        records.push(record.iter().map(str::to_owned).collect());
    }
    Some(records)
}

fn find<'a>(records: &'a [Vec<String>], user: &str) -> Option<&'a str> {
    let record = records.iter().find(|record| record[1] == user)?;
    Some(&record[0])
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r', ':']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

fn token() -> Result<String, Error> {
    let mut bytes = [0; TOKEN_BYTES];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    let standard = super::kubeconfig::base64(&bytes);
    Ok(standard.replace('+', "-").replace('/', "_").replace('=', ""))
}
