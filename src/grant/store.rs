//! Store: where grants are kept. What is in one becomes known through the [`Book`](super::book::Book) that it feeds, in the
//! order in which it came to be; what is to be changed is read from the store itself.

use futures_util::future::BoxFuture;

use super::document::Grant;
use crate::cluster;
use crate::status::Refusal;

/// Which grant: namespace and name.
pub type Key = (String, String);

/// A grant, and the version of it that this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The grant.
    pub grant: Grant,
    /// Larger than that of any change before.
    pub version: u64,
}

/// Why something was not done. What is changed at the same moment by somebody else is never done halfway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of this name is there.
    #[error("there is such a grant")]
    Exists,
    /// It is not there.
    #[error("there is no such grant")]
    Missing,
    /// It is no longer the version that was to be changed.
    #[error("somebody else has changed the grant")]
    Conflict,
    /// The cluster could not be asked.
    #[error("keep grants in the cluster")]
    Cluster(#[source] cluster::Error),
    /// The folder could not be used.
    #[error("keep grants in a folder")]
    Folder(#[source] std::io::Error),
}

/// Keeps grants. All futures may be dropped: then it is not known whether something was done.
pub trait Store: Send + Sync + 'static {
    /// What is kept just now.
    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kept>, Error>>;

    /// Keeps one that is not there; its version.
    fn create<'a>(&'a self, key: &'a Key, grant: &'a Grant) -> BoxFuture<'a, Result<u64, Error>>;

    /// Replaces this version of one; its new version.
    fn replace<'a>(
        &'a self,
        key: &'a Key,
        grant: &'a Grant,
        version: u64,
    ) -> BoxFuture<'a, Result<u64, Error>>;

    /// Deletes this version of one.
    fn delete<'a>(&'a self, key: &'a Key, version: u64) -> BoxFuture<'a, Result<(), Error>>;
}

// === impl Error ===

impl Error {
    /// What a client is told of a failure of the store.
    pub fn refusal(&self, key: &Key) -> Refusal {
        let about = super::rules::about(&key.1);
        match self {
            Self::Exists => Refusal::AlreadyExists(about),
            Self::Missing => Refusal::NotFound(about),
            Self::Conflict => Refusal::Conflict {
                text: "the object has been modified; please apply your changes to the latest version and try again"
                    .to_owned(),
                about,
            },
            Self::Cluster(source) => source.refusal(),
            Self::Folder(_) => Refusal::Internal(self.to_string()),
        }
    }
}
