//! Store: opens the object store that recordings are kept in, for those who write them and those who read them.
//!
//! Options come from the environment, by the names that the stores' own tools use, and from a file, which wins. They
//! hold secrets: no error tells a value.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

use crate::telemetry::chain;

/// Environment variables with these prefixes are options of a store.
const ENVIRONMENT: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// A store that cannot be used as its settings say.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file with its options cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is no list of options. What is wrong is not told: it may show a secret.
    #[error("{} is no YAML mapping of option names to texts", path.display())]
    Options {
        /// The file.
        path: PathBuf,
    },
    /// A name that is no option of this store: a misspelled one must not quietly be none.
    #[error("{}: {option:?} is no option of {url}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The name.
        option: String,
        /// The store.
        url: String,
    },
    /// There is no such store.
    #[error("{0}")]
    Url(String),
    /// The folder cannot be made.
    #[error("make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The store at this URL, which is not a folder's, and where in it. Does blocking I/O.
///
/// # Errors
/// When there is none, or its options make no sense.
pub fn open(url: &Url, options_file: Option<&FilePath>) -> Result<(Arc<dyn ObjectStore>, Path), Unusable> {
    // What the library says of an option names it and not its value.
    let wrong = |error: object_store::Error| Unusable::Url(chain(&error));
    let mut options: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| ENVIRONMENT.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    if let Some(path) = options_file {
        let (scheme, _) = ObjectStoreScheme::parse(url).map_err(|error| wrong(error.into()))?;
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|source| Unusable::Read { path: path.to_owned(), source })?;
        let read: Result<BTreeMap<String, String>, _> = serde_saphyr::from_str(&text);
        let read = read.map_err(|_| Unusable::Options { path: path.to_owned() })?;
        if let Some(option) = read.keys().find(|name| !is_option(&scheme, &name.to_ascii_lowercase())) {
            let (path, option) = (path.to_owned(), option.clone());
            return Err(Unusable::Unknown { path, option, url: url.to_string() });
        }
        options.extend(read);
    }
    let (store, prefix) = object_store::parse_url_opts(url, options).map_err(wrong)?;
    Ok((store.into(), prefix))
}

fn is_option(scheme: &ObjectStoreScheme, name: &str) -> bool {
    match scheme {
        ObjectStoreScheme::AmazonS3 => name.parse::<AmazonS3ConfigKey>().is_ok(),
        ObjectStoreScheme::GoogleCloudStorage => name.parse::<GoogleConfigKey>().is_ok(),
        ObjectStoreScheme::MicrosoftAzure => name.parse::<AzureConfigKey>().is_ok(),
        // Stores of other kinds are not recordings' (see `config`).
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_from_the_file_and_a_misspelled_one_is_told_without_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.yaml");
        let url = Url::parse("s3://evidence/podgate/one").unwrap();
        std::fs::write(&file, "aws_access_key_id: id\nAWS_SECRET_ACCESS_KEY: hidden\nregion: eu-1\n")
            .unwrap();
        let (store, prefix) = open(&url, Some(&file)).unwrap();
        assert_eq!(prefix.as_ref(), "podgate/one");
        assert!(store.to_string().contains("evidence"), "{store}");

        std::fs::write(&file, "aws_secret_acces_key: hidden\n").unwrap();
        let text = open(&url, Some(&file)).unwrap_err().to_string();
        assert!(text.contains("\"aws_secret_acces_key\" is no option of s3://evidence"), "{text}");
        assert!(!text.contains("hidden"));
        std::fs::write(&file, "[hidden]").unwrap();
        assert!(!open(&url, Some(&file)).unwrap_err().to_string().contains("hidden"));
    }
}
