//! State: the folder in which `podgate dev` keeps what must outlive a start.
//!
//! Owns the folder and every file in it: two authorities, the certificates they sign, `tokens.csv`,
//! `kubeconfig`, the lock, and `pods/` with the containers' folders. In the flow: opened once at start, before
//! any address is bound; `app` hands the loaded identities and roots to the rooms that need them.
//!
//! Two authorities, on purpose: the *cluster* authority signs the API door's server certificate and the users'
//! client certificates, the *node* authority signs the node endpoint's server certificate and podgate's own
//! kubelet client certificate. So no certificate in a kubeconfig opens a node endpoint, which asks nobody for
//! permission (`protocol.md` 3.3).
//!
//! Invariants:
//! - Only the owner may enter the folder; a key or certificate that others could read, that is a link, or that
//!   belongs to somebody else counts as lost and is made again. `tokens.csv`, which people edit, is never
//!   replaced for such a reason: the start fails and says what to do.
//! - Files appear whole or not at all (written beside, then renamed); a stop between a certificate and its key
//!   leaves a pair that does not fit, which the next start makes again.
//! - A file is kept as long as a peer would still take it [`RENEW_BEFORE`] from now; `kubeconfig` alone is
//!   written at each start, because the address may have changed.
//! - One process at a time holds the folder ([`State`] keeps the lock until it is dropped).
//!
//! Source: kube-apiserver `--token-auth-file`, `--client-ca-file`, `--kubelet-certificate-authority`.

mod authority;
mod files;
mod kubeconfig;
mod tokens;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;

use crate::tls;
use authority::{Authority, Leaf};
use files::{Folder, Lock};

/// How long an authority holds. It is trusted only by what this folder holds, so nothing is gained by less.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a certificate holds; kubeadm gives its own as much. A process that runs longer must be restarted.
pub const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What would no longer hold this far from now is made again at start.
pub const RENEW_BEFORE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Names and addresses that every server certificate carries.
const LOCAL: [&str; 3] = ["127.0.0.1", "::1", "localhost"];

const API_SERVER: Leaf = Leaf::server("apiserver", "podgate");
const NODE_SERVER: Leaf = Leaf::server("node", "podgate-node");
const KUBELET_CLIENT: Leaf = Leaf::client("kubelet-client", "podgate", "");
const ADMIN: Leaf = Leaf::client("admin", "admin", "system:masters");
const ALICE: Leaf = Leaf::client("alice", "alice", "dev");

/// What the start wants of the folder.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Names and addresses of the API door besides the local ones.
    pub hosts: Vec<String>,
    /// The time by which certificates are judged and made.
    pub now: SystemTime,
}

/// An open state folder; nobody else has it open until this is dropped.
#[derive(Debug)]
pub struct State {
    folder: Folder,
    api_server: tls::Identity,
    users: Arc<RootCertStore>,
    node_server: tls::Identity,
    kubelet_client: tls::Identity,
    nodes: Arc<RootCertStore>,
    _lock: Lock,
}

/// A state folder that cannot be used. The texts say what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder does not exist and cannot be made.
    #[error("create the state folder {}; choose a folder that you can write to", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder's owner and mode cannot be read.
    #[error("look at the state folder {}; choose a folder that you can enter", path.display())]
    Inspect {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The path is a symbolic link, which somebody else may turn elsewhere.
    #[error("the state folder {} is a symbolic link; name the folder that it leads to", path.display())]
    Symlink {
        /// The folder.
        path: PathBuf,
    },
    /// The path is a file or something else.
    #[error("the state folder {} is not a folder; choose another path", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The folder belongs to another user, who could change what is in it.
    #[error("the state folder {} belongs to user id {owner}; choose a folder of your own", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others can enter the folder and that cannot be changed.
    #[error("close the state folder {} to others; run chmod 0700 on it", path.display())]
    Mend {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The lock file cannot be made or locked.
    #[error("lock {}; choose a folder that you can write to, on a file system with locks", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process holds the folder.
    #[error("the state folder {} is in use by process {pid}; stop it or choose another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the lock file says; a question mark when it says nothing.
        pid: String,
    },
    /// A file cannot be written.
    #[error("write {}; see that the folder can be written to and has room", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that may hold what people wrote cannot be read.
    #[error("read {}; see that it is text and that you can read it, or move it away", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that may hold what people wrote cannot be trusted or used.
    #[error("{} {what}; {remedy}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A line of the token file is wrong.
    #[error("line {line} of {} {what}; correct the line, or move the file away", path.display())]
    TokenLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it; never its text, which holds a secret.
        what: &'static str,
    },
    /// A name that no certificate can carry.
    #[error("{host:?} is neither a host name nor an address; correct the listen address")]
    Host {
        /// The name as given.
        host: String,
    },
    /// A key or certificate could not be made.
    #[error("make the certificate {name}")]
    Make {
        /// Its file name, without the extension.
        name: &'static str,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
    /// A file that was just written cannot be loaded.
    #[error("load certificates from the state folder")]
    Load(#[source] tls::Error),
    /// The system gives no random bytes.
    #[error("get random bytes for a token")]
    Random,
}

// === impl State ===

impl State {
    /// Opens the folder, makes it when it is missing, and makes again whatever in it is missing, damaged, about
    /// to expire or no longer fitting; but for a token file, see [`Error::Unfit`]. Does blocking I/O.
    ///
    /// # Errors
    /// Each text says what to do.
    pub fn open(dir: &Path, ask: &Ask) -> Result<Self, Error> {
        let folder = Folder::open(dir)?;
        let lock = folder.lock()?;
        folder.make_sub("pods")?;

        let local: Vec<String> = LOCAL.map(str::to_owned).into();
        let mut hosts = local.clone();
        for host in &ask.hosts {
            if !hosts.contains(host) {
                hosts.push(host.clone());
            }
        }
        let cluster = Authority::keep(&folder, "ca", "podgate-dev-ca", ask.now)?;
        let api_server = cluster.keep_leaf(&folder, &API_SERVER, &hosts, ask.now)?;
        cluster.keep_leaf(&folder, &ADMIN, &[], ask.now)?;
        cluster.keep_leaf(&folder, &ALICE, &[], ask.now)?;

        let node = Authority::keep(&folder, "node-ca", "podgate-dev-node-ca", ask.now)?;
        let node_server = node.keep_leaf(&folder, &NODE_SERVER, &local, ask.now)?;
        let kubelet_client = node.keep_leaf(&folder, &KUBELET_CLIENT, &[], ask.now)?;

        tokens::keep(&folder)?;
        Ok(Self {
            api_server,
            users: cluster.roots(),
            node_server,
            kubelet_client,
            nodes: node.roots(),
            folder,
            _lock: lock,
        })
    }

    /// Writes `kubeconfig` for the API door at this address. An unspecified address is written as the loopback
    /// one of its family, where clients on this machine find it.
    ///
    /// # Errors
    /// [`Error::Write`], also when a file that the kubeconfig embeds has gone since the folder was opened.
    pub fn write_kubeconfig(&self, api: SocketAddr) -> Result<(), Error> {
        let ip = match api.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let text = kubeconfig::render(&self.folder, SocketAddr::new(ip, api.port()))?;
        self.folder.write("kubeconfig", text.as_bytes())
    }

    /// What the API door presents.
    pub fn api_server(&self) -> &tls::Identity {
        &self.api_server
    }

    /// Whose client certificates name users of the cluster.
    pub fn client_roots(&self) -> Arc<RootCertStore> {
        self.users.clone()
    }

    /// What a node endpoint presents.
    pub fn node_server(&self) -> &tls::Identity {
        &self.node_server
    }

    /// Whose client certificates open a node endpoint: nobody's but podgate's.
    pub fn node_client_roots(&self) -> Arc<RootCertStore> {
        self.nodes.clone()
    }

    /// What podgate presents to a node endpoint.
    pub fn kubelet_client(&self) -> &tls::Identity {
        &self.kubelet_client
    }

    /// By which podgate verifies a node endpoint.
    pub fn node_roots(&self) -> Arc<RootCertStore> {
        self.nodes.clone()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The certificate of the cluster authority, for clients.
    pub fn ca_path(&self) -> PathBuf {
        self.folder.file("ca.crt")
    }

    /// The static token file.
    pub fn tokens_path(&self) -> PathBuf {
        self.folder.file("tokens.csv")
    }

    /// The kubeconfig; there after [`State::write_kubeconfig`].
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.folder.file("kubeconfig")
    }

    /// Where the containers have their folders.
    pub fn pods_dir(&self) -> PathBuf {
        self.folder.file("pods")
    }
}

#[cfg(test)]
mod tests;
