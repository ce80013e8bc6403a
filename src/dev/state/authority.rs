//! Authorities and what they sign: kept while a peer would take them, made again otherwise.
//!
//! A kept certificate is judged as its peer will judge it, by the verifiers of rustls: chain, names, purpose
//! and time, now and [`RENEW_BEFORE`] from now. So there is no second opinion on X.509 in here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_cert::der::{Decode, Encode};

use super::files::Folder;
use super::{AUTHORITY_LIFE, Error, LEAF_LIFE, RENEW_BEFORE};
use crate::tls;

/// How far back certificates begin, for clients whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// A self-signed certificate and its key.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
    ends: Duration,
}

/// A certificate of an authority, by its file name.
pub(super) struct Leaf {
    name: &'static str,
    common_name: &'static str,
    /// Empty for none.
    organization: &'static str,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Server,
    Client,
}

// === impl Authority ===

impl Authority {
    /// The authority of this name, made anew when the folder has none that is of use.
    pub(super) fn keep(
        folder: &Folder,
        name: &'static str,
        common_name: &str,
        now: SystemTime,
    ) -> Result<Self, Error> {
        if let Some(kept) = Self::load(folder, name, now) {
            return Ok(kept);
        }
        let failed = |source| Error::Make { name, source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, "");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, now, unix(now) + AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(failed)?;
        folder.write(&format!("{name}.key"), key.serialize_pem().as_bytes())?;
        folder.write(&format!("{name}.crt"), certificate.pem().as_bytes())?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).map_err(|source| Error::Load(tls::Error::SetUp(source)))?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            roots: Arc::new(roots),
            ends: unix(now) + AUTHORITY_LIFE,
        })
    }

    fn load(folder: &Folder, name: &str, now: SystemTime) -> Option<Self> {
        let pem = folder.read(&format!("{name}.crt"))?;
        let key = KeyPair::from_pem(&folder.read(&format!("{name}.key"))?).ok()?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let parsed = x509_cert::Certificate::from_der(&der).ok()?;
        let parsed = parsed.tbs_certificate();
        let begins = parsed.validity().not_before.to_unix_duration();
        let ends = parsed.validity().not_after.to_unix_duration();
        let own = parsed.subject_public_key_info().to_der().ok()? == key.subject_public_key_info();
        if !own || unix(now) < begins || unix(now) + RENEW_BEFORE >= ends {
            return None;
        }
        let mut roots = RootCertStore::empty();
        roots.add(der.clone()).ok()?;
        Some(Self { issuer: Issuer::from_ca_cert_der(&der, key).ok()?, roots: Arc::new(roots), ends })
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    /// The identity of this leaf, made anew when the folder has none that a peer would take.
    pub(super) fn keep_leaf(
        &self,
        folder: &Folder,
        leaf: &Leaf,
        hosts: &[String],
        now: SystemTime,
    ) -> Result<tls::Identity, Error> {
        let mut names = Vec::with_capacity(hosts.len());
        for host in hosts {
            let name = ServerName::try_from(host.clone());
            names.push(name.map_err(|_| Error::Host { host: host.clone() })?);
        }
        if let Some(kept) = self.load_leaf(folder, leaf, &names, now) {
            return Ok(kept);
        }
        let failed = |source| Error::Make { name: leaf.name, source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(hosts).map_err(failed)?;
        params.distinguished_name = subject(leaf.common_name, leaf.organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match leaf.purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, now, (unix(now) + LEAF_LIFE).min(self.ends));
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        folder.write(&leaf.key_file(), key.serialize_pem().as_bytes())?;
        folder.write(&leaf.certificate_file(), certificate.pem().as_bytes())?;
        leaf.identity(folder).map_err(Error::Load)
    }

    fn load_leaf(
        &self,
        folder: &Folder,
        leaf: &Leaf,
        names: &[ServerName<'_>],
        now: SystemTime,
    ) -> Option<tls::Identity> {
        // Reading through the folder is what finds links, foreign files and lax modes.
        folder.read(&leaf.certificate_file())?;
        folder.read(&leaf.key_file())?;
        let identity = leaf.identity(folder).ok()?;
        // rustls sets up a server only when the key fits the certificate.
        tls::server(&identity, &[], tls::Clients::Ask).ok()?;
        for at in [unix(now), unix(now) + RENEW_BEFORE] {
            let at = UnixTime::since_unix_epoch(at);
            match leaf.purpose {
                Purpose::Server => {
                    tls::verify_server(identity.chain(), self.roots(), names, at).ok()?;
                }
                Purpose::Client => {
                    let verifier = tls::ClientVerifier::new(self.roots()).ok()?;
                    let found = verifier.verify(identity.chain(), at).ok()?;
                    if found != leaf.subject() {
                        return None;
                    }
                }
            }
        }
        Some(identity)
    }
}

// === impl Leaf ===

impl Leaf {
    pub(super) const fn server(name: &'static str, common_name: &'static str) -> Self {
        Self { name, common_name, organization: "", purpose: Purpose::Server }
    }

    pub(super) const fn client(
        name: &'static str,
        common_name: &'static str,
        organization: &'static str,
    ) -> Self {
        Self { name, common_name, organization, purpose: Purpose::Client }
    }

    pub(super) fn certificate_file(&self) -> String {
        format!("{}.crt", self.name)
    }

    pub(super) fn key_file(&self) -> String {
        format!("{}.key", self.name)
    }

    fn identity(&self, folder: &Folder) -> Result<tls::Identity, tls::Error> {
        let certificate = folder.file(&self.certificate_file());
        tls::Identity::from_files(&certificate, &folder.file(&self.key_file()))
    }

    fn subject(&self) -> tls::Subject {
        let organization = (!self.organization.is_empty()).then(|| self.organization.to_owned());
        tls::Subject {
            common_name: self.common_name.to_owned(),
            organizations: organization.into_iter().collect(),
        }
    }
}

fn subject(common_name: &str, organization: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if !organization.is_empty() {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, common_name);
    subject
}

fn set_life(params: &mut CertificateParams, now: SystemTime, ends: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + unix(now).saturating_sub(BACKDATE);
    params.not_after = epoch + ends;
}

/// Time since 1970; a clock before that counts as 1970.
fn unix(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
