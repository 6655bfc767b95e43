//! An authority, and certificates of it that are right or wrong each in one way.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, date_time_ymd,
};

/// PEM files in a folder.
pub(crate) struct Certificates {
    pub(crate) folder: PathBuf,
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Both, as Kafka wants them.
    pub(crate) both: PathBuf,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Certificates {
    /// Writes `ca.pem` and `other-ca.pem`, and pairs named `server`, `expired`, `elsewhere`, `client`, `stranger`.
    pub(crate) fn write(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let ours = authority("quay test authority")?;
        let other = authority("another authority")?;
        std::fs::write(folder.join("ca.pem"), ours.certificate.pem())?;
        std::fs::write(folder.join("other-ca.pem"), other.certificate.pem())?;
        let here = ["127.0.0.1", "localhost"];
        pair(folder, "server", &ours, &here, false)?;
        pair(folder, "expired", &ours, &here, true)?;
        pair(folder, "elsewhere", &ours, &["elsewhere.example"], false)?;
        pair(folder, "client", &ours, &["client.example"], false)?;
        pair(folder, "stranger", &other, &["client.example"], false)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub(crate) fn other_ca(&self) -> PathBuf {
        self.folder.join("other-ca.pem")
    }

    pub(crate) fn pair(&self, name: &str) -> Pair {
        Pair {
            cert: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
            both: self.folder.join(format!("{name}-both.pem")),
        }
    }
}

fn authority(name: &str) -> anyhow::Result<Authority> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Authority {
        issuer: Issuer::new(params, key),
        certificate,
    })
}

fn pair(
    folder: &Path,
    name: &str,
    authority: &Authority,
    names: &[&str],
    expired: bool,
) -> anyhow::Result<()> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named(name);
    if expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    }
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority.issuer)?;
    let (cert, key) = (certificate.pem(), key.serialize_pem());
    std::fs::write(folder.join(format!("{name}.pem")), &cert)?;
    std::fs::write(folder.join(format!("{name}.key")), &key)?;
    std::fs::write(
        folder.join(format!("{name}-both.pem")),
        format!("{key}{cert}"),
    )?;
    Ok(())
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
