//! What a client of a bus needs besides its address: whom to trust, who we are, and the secrets that prove it.
//!
//! Secrets come from files or from variables, never from flags: everybody on the host can read a command line. A file
//! is read anew for each client that is made, so a renewed certificate or password is found without a restart. Nothing
//! here prints a secret: it is kept in a [`SecretString`], whose `Debug` hides it, and errors name files alone.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::Read as _;
use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};

/// Longest file with a secret or with certificates, in bytes: the system's own bundle of authorities has 220 KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A file that a setting names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The setting's key.
    pub key: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// A file of a setting that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("`{}` names `{}`, which {}", file.key, file.path.display(), why(source))]
    Unreadable {
        /// Which.
        file: NamedFile,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It can be read, and does not hold what it should.
    #[error("`{}` names `{}`, which {message}", file.key, file.path.display())]
    Content {
        /// Which.
        file: NamedFile,
        /// What is wrong with it.
        message: String,
    },
}

impl FileError {
    /// Whether it is there and this user may not read it.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Unreadable { source, .. } => {
                source.kind() == std::io::ErrorKind::PermissionDenied
            }
            Self::Content { .. } => false,
        }
    }
}

fn why(source: &std::io::Error) -> String {
    let kind = source.kind();
    if kind == std::io::ErrorKind::PermissionDenied {
        let uid = rustix::process::geteuid().as_raw();
        format!("the user of this process (uid {uid}) may not read: let it")
    } else if kind == std::io::ErrorKind::NotFound {
        "is not there".to_owned()
    } else {
        "cannot be read".to_owned()
    }
}

impl NamedFile {
    /// The file's bytes.
    ///
    /// # Errors
    /// Where it cannot be read, or has more than a MiB.
    pub(crate) fn read(&self) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        std::fs::File::open(&self.path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(|source| FileError::Unreadable {
                file: self.clone(),
                source,
            })?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(self.content("is larger than a MiB"));
        }
        Ok(bytes)
    }

    pub(crate) fn content(&self, message: impl Into<String>) -> FileError {
        FileError::Content {
            file: self.clone(),
            message: message.into(),
        }
    }

    /// The path as text, for libraries that read the file themselves.
    pub(crate) fn text(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// Where a secret is.
#[derive(Clone, Debug)]
pub enum Secret {
    /// In a file, without its last line's end.
    File(NamedFile),
    /// In a variable of the environment.
    Variable {
        /// The variable's name.
        name: &'static str,
        /// What it held at the start.
        value: SecretString,
    },
}

impl Secret {
    /// The secret as it is now.
    ///
    /// # Errors
    /// Where its file cannot be read, is empty, or is no text.
    pub(crate) fn read(&self) -> Result<SecretString, FileError> {
        match self {
            Self::Variable { value, .. } => Ok(value.clone()),
            Self::File(file) => {
                let text = String::from_utf8(file.read()?)
                    .map_err(|_| file.content("is no text in UTF-8"))?;
                let text = text.trim_end_matches(['\n', '\r']);
                if text.is_empty() {
                    return Err(file.content("is empty"));
                }
                Ok(SecretString::from(text.to_owned()))
            }
        }
    }

    /// What a person is told to look at: the key of the file, or the variable.
    pub fn origin(&self) -> &'static str {
        match self {
            Self::File(file) => file.key,
            Self::Variable { name, .. } => name,
        }
    }

    pub(crate) fn file(&self) -> Option<&NamedFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Variable { .. } => None,
        }
    }
}

/// TLS to the bus. The bus's certificate is always checked, and must be for the name or address in the bus's URL.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authorities that are trusted, in PEM; the system's where there is none.
    pub ca: Option<NamedFile>,
    /// Our certificate, with those between it and its authority, and its key.
    pub identity: Option<TlsIdentity>,
}

/// Who we are, in TLS.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    /// The certificates, in PEM.
    pub cert: NamedFile,
    /// The key, in PEM.
    pub key: NamedFile,
    /// What the key is encrypted with.
    pub key_password: Option<Secret>,
}

/// How a password is proved to Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password itself.
    Plain,
    /// A proof that the broker can check without the password having been sent, by SHA-256.
    ScramSha256,
    /// The same by SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    /// Its name, as Kafka has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// A user of Kafka.
#[derive(Clone, Debug)]
pub struct Sasl {
    /// How the password is proved.
    pub mechanism: SaslMechanism,
    /// Who.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// A user of NATS.
#[derive(Clone, Debug)]
pub enum NatsLogin {
    /// A name and a password.
    User {
        /// Who.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of a user's nkey.
    Nkey(Secret),
    /// A credentials file: a user's JWT and the seed of its nkey.
    Credentials(Secret),
}

impl NatsLogin {
    /// What a person is told to look at.
    pub fn origin(&self) -> &'static str {
        self.secret().origin()
    }

    pub(crate) fn secret(&self) -> &Secret {
        match self {
            Self::User { password, .. } => password,
            Self::Token(secret) | Self::Nkey(secret) | Self::Credentials(secret) => secret,
        }
    }
}

/// All that a client of Kafka needs.
#[derive(Clone, Debug, Default)]
pub struct KafkaAccess {
    /// `HOST:PORT` of its bootstrap servers.
    pub servers: Vec<String>,
    /// TLS, where it is spoken.
    pub tls: Option<Tls>,
    /// The user, where there is one.
    pub sasl: Option<Sasl>,
    /// Further settings of librdkafka, none of which contradicts ours.
    pub librdkafka: BTreeMap<String, String>,
}

/// All that a client of NATS needs.
#[derive(Clone, Debug, Default)]
pub struct NatsAccess {
    /// `HOST:PORT` of its servers.
    pub servers: Vec<String>,
    /// TLS, where we insist on it. A server that asks for it gets it anyway.
    pub tls: Option<Tls>,
    /// The user, where there is one.
    pub login: Option<NatsLogin>,
}

impl Tls {
    fn files(&self) -> impl Iterator<Item = &NamedFile> {
        let identity = self.identity.iter().flat_map(|identity| {
            let password = identity.key_password.as_ref().and_then(Secret::file);
            [Some(&identity.cert), Some(&identity.key), password]
        });
        self.ca.iter().chain(identity.flatten())
    }
}

impl KafkaAccess {
    /// The files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &NamedFile> {
        let secret = self.sasl.as_ref().and_then(|sasl| sasl.password.file());
        self.tls.iter().flat_map(Tls::files).chain(secret)
    }

    /// A number that is another one when a file has changed.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub(crate) fn fingerprint(&self) -> Result<u64, FileError> {
        let mut hasher = DefaultHasher::new();
        for file in self.files() {
            hasher.write(&file.read()?);
        }
        Ok(hasher.finish())
    }
}

impl NatsAccess {
    /// The files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &NamedFile> {
        let secret = self.login.as_ref().and_then(|login| login.secret().file());
        self.tls.iter().flat_map(Tls::files).chain(secret)
    }
}

/// The plain way, for those who have only addresses.
impl From<&[String]> for KafkaAccess {
    fn from(servers: &[String]) -> Self {
        Self {
            servers: servers.to_vec(),
            ..Self::default()
        }
    }
}

impl From<&Vec<String>> for KafkaAccess {
    fn from(servers: &Vec<String>) -> Self {
        servers.as_slice().into()
    }
}

impl From<&KafkaAccess> for KafkaAccess {
    fn from(access: &KafkaAccess) -> Self {
        access.clone()
    }
}

/// The plain way, for those who have only addresses.
impl From<&[String]> for NatsAccess {
    fn from(servers: &[String]) -> Self {
        Self {
            servers: servers.to_vec(),
            ..Self::default()
        }
    }
}

impl From<&Vec<String>> for NatsAccess {
    fn from(servers: &Vec<String>) -> Self {
        servers.as_slice().into()
    }
}

impl From<&NatsAccess> for NatsAccess {
    fn from(access: &NatsAccess) -> Self {
        access.clone()
    }
}

/// Shows a secret to the library that needs it.
pub(crate) fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    fn file(path: PathBuf) -> NamedFile {
        NamedFile {
            key: "sasl.password_file",
            path,
        }
    }

    #[test]
    fn a_secret_is_its_file_without_the_end_of_the_line() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("password");
        for (content, secret) in [
            ("hunter2\n", Some("hunter2")),
            ("hunter2\r\n", Some("hunter2")),
            (" two words ", Some(" two words ")),
            ("\n", None),
            ("", None),
        ] {
            std::fs::write(&path, content)?;
            let read = Secret::File(file(path.clone())).read().ok();
            assert_eq!(read.as_ref().map(expose), secret, "{content:?}");
        }
        Ok(())
    }

    #[test]
    fn no_debug_and_no_error_tells_a_secret() -> std::io::Result<()> {
        let secret = Secret::Variable {
            name: "QUAYMASTER_SASL_PASSWORD",
            value: SecretString::from("hunter2".to_owned()),
        };
        assert!(!format!("{secret:?}").contains("hunter2"));
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("password");
        std::fs::write(&path, b"hunter2\xff")?;
        let error = Secret::File(file(path)).read().err().map(|e| chain(&e));
        let error = error.unwrap_or_default();
        assert!(
            error.contains("is no text") && !error.contains("hunter2"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn a_file_that_is_not_there_is_named_with_its_setting() {
        let error = file("/nonexistent/password".into()).read().err();
        let error = error.map(|e| chain(&e)).unwrap_or_default();
        assert!(
            error.starts_with(
                "`sasl.password_file` names `/nonexistent/password`, which is not there"
            ),
            "{error}"
        );
    }
}
