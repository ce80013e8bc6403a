//! A certificate authority for tests.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::tls::Identity;

/// An authority and what it signs.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
    pem: String,
}

impl Pki {
    /// A new authority.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let certificate = params.self_signed(&key).expect("sign the authority");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).expect("an authority is a root");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key), roots: Arc::new(roots) }
    }

    /// Its certificate as a root.
    pub fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    /// Its certificate; PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// A server on loopback.
    pub fn server(&self) -> Identity {
        self.server_of(&["127.0.0.1", "localhost"])
    }

    /// A server of these names and addresses.
    pub fn server_of(&self, names: &[&str]) -> Identity {
        self.sign(server(names))
    }

    /// A server on loopback whose certificate ended an hour ago.
    pub fn expired_server(&self) -> Identity {
        self.sign(expired(server(&["127.0.0.1", "localhost"])))
    }

    /// A client, by user name and groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Identity {
        self.sign(client(user, groups))
    }

    /// A client whose certificate ended an hour ago.
    pub fn expired_client(&self, user: &str) -> Identity {
        self.sign(expired(client(user, &[])))
    }

    /// Writes a client's `client.crt` and `client.key`, and `ca.crt`, as an operator would.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    pub fn write_client(&self, user: &str, folder: &Path) {
        self.write(client(user, &[]), "client", folder);
        std::fs::write(folder.join("ca.crt"), &self.pem).expect("write a PEM file");
    }

    /// Writes `server.crt` and `server.key` of a server on loopback.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    pub fn write_server(&self, folder: &Path) {
        self.write(server(&["127.0.0.1", "localhost"]), "server", folder);
    }

    fn write(&self, params: CertificateParams, name: &str, folder: &Path) {
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        for (kind, content) in [("crt", certificate.pem()), ("key", key.serialize_pem())] {
            std::fs::write(folder.join(format!("{name}.{kind}")), content).expect("write a PEM file");
        }
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Identity::new(vec![certificate.der().clone()], key)
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

fn server(names: &[&str]) -> CertificateParams {
    let names = names.iter().map(|&name| name.to_owned());
    let mut params = CertificateParams::new(names.collect::<Vec<_>>()).expect("names of servers");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn expired(mut params: CertificateParams) -> CertificateParams {
    let hours = |hours| SystemTime::now() - Duration::from_hours(hours);
    params.not_before = hours(2).into();
    params.not_after = hours(1).into();
    params
}

fn client(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}
