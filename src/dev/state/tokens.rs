//! `tokens.csv`, in the form of kube-apiserver's static token file: `token,user,uid,"group1,group2"`.
//!
//! Lines that people add are kept to the byte: what is missing of ours goes behind them. Only a missing file is
//! made anew. One that cannot be trusted or read stops the start instead, since it may hold lines that nobody
//! has elsewhere.
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
    let mut text = folder.read_kept(FILE)?.unwrap_or_default();
    let records = records(folder, &text)?;
    let known = text.len();
    for (user, uid, groups) in USERS {
        if find(&records, user).is_none() {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&format!("{},{user},{uid},\"{groups}\"\n", token()?));
        }
    }
    if text.len() == known {
        return Ok(());
    }
    folder.write(FILE, text.as_bytes())
}

/// The token of a user, as the file has it now.
pub(super) fn of(folder: &Folder, user: &str) -> Option<String> {
    let text = folder.read_kept(FILE).ok()??;
    find(&records(folder, &text).ok()?, user).map(str::to_owned)
}

/// The lines, read as `authn` reads them.
fn records(folder: &Folder, text: &str) -> Result<Vec<csv::StringRecord>, Error> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::Fields)
        .from_reader(text.as_bytes());
    let mut records = Vec::new();
    for record in reader.records() {
        let wrong = |line, what| Error::TokenLine { path: folder.file(FILE), line, what };
        let line = |position: Option<&csv::Position>| position.map_or(1, csv::Position::line);
        let record = record.map_err(|error| wrong(line(error.position()), "is not CSV"))?;
        let at = line(record.position());
        if record.len() < 3 {
            return Err(wrong(at, "has no token, user name and user uid"));
        }
        if record.iter().take(2).any(str::is_empty) {
            return Err(wrong(at, "has an empty token or user name"));
        }
        records.push(record);
    }
    Ok(records)
}

fn find<'a>(records: &'a [csv::StringRecord], user: &str) -> Option<&'a str> {
    let record = records.iter().find(|record| &record[1] == user)?;
    Some(&record[0])
}

fn token() -> Result<String, Error> {
    let mut bytes = [0; TOKEN_BYTES];
    rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    let standard = super::kubeconfig::base64(&bytes);
    Ok(standard.replace('+', "-").replace('/', "_").replace('=', ""))
}
