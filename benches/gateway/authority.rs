//! The certificates of a run. Keys are RSA-2048, as clusters have them, but for those of podgate's own door.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, PKCS_RSA_SHA256, RsaKeySize,
};

/// An authority whose certificates are files of a folder.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of a certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a key is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key {
    Rsa,
    P256,
}

impl Authority {
    pub(crate) fn new(folder: &Path) -> Self {
        let key = rsa();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bench authority");
        let certificate = params.self_signed(&key).expect("sign the authority");
        std::fs::write(folder.join("ca.crt"), certificate.pem()).expect("write a certificate");
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) }
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Somebody, by common name and organizations; on loopback, where it is a server.
    pub(crate) fn issue(&self, name: &str, organizations: &[&str], key: Key) -> Pair {
        let names = ["127.0.0.1", "localhost", "kubernetes"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names of servers");
        params.distinguished_name = DistinguishedName::new();
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = match key {
            Key::Rsa => rsa(),
            Key::P256 => KeyPair::generate().expect("make a key"),
        };
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let file = |kind: &str| self.folder.join(format!("{}.{kind}", name.replace(':', "-")));
        let pair = Pair { cert: file("crt"), key: file("key") };
        std::fs::write(&pair.cert, certificate.pem()).expect("write a certificate");
        std::fs::write(&pair.key, key.serialize_pem()).expect("write a key");
        pair
    }
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("make a key")
}
