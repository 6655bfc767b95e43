//! The settings of how the bus is entered: TLS, users, librdkafka's own. From their raw form to a checked
//! [`Bus`]; files with secrets are named here and read where a client is made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;
use toml::{Table, Value};

use super::{ConfigError, value};
use crate::sink::access::{
    KafkaAccess, NamedFile, NatsAccess, NatsLogin, Sasl, SaslMechanism, Secret, Tls, TlsIdentity,
};
use crate::sink::kafka::settings::refusal;
use crate::sink::{Bus, BusUrl};

/// Variables that hold a secret itself, each with the key of the file that would hold it otherwise.
pub const SECRET_VARIABLES: &[(&str, &str)] = &[
    ("tls.key_password_file", "QUAYMASTER_TLS_KEY_PASSWORD"),
    ("sasl.password_file", "QUAYMASTER_SASL_PASSWORD"),
    ("nats.password_file", "QUAYMASTER_NATS_PASSWORD"),
    ("nats.token_file", "QUAYMASTER_NATS_TOKEN"),
    ("nats.nkey_file", "QUAYMASTER_NATS_NKEY"),
    ("nats.credentials_file", "QUAYMASTER_NATS_CREDENTIALS"),
];

/// How the bus is entered, by flag or by environment.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "The bus: trust and users")]
pub struct AccessOverrides {
    /// Speak TLS to the bus; on by itself where another --tls flag is given
    #[arg(long, env = "QUAYMASTER_TLS")]
    pub tls: bool,
    /// PEM file with the authorities that may vouch for the bus, instead of the system's
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_TLS_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,
    /// PEM file with our certificate, for a bus that asks for one
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_TLS_CERT_FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file with its key
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_TLS_KEY_FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// File with what that key is encrypted with (Kafka only); or the variable QUAYMASTER_TLS_KEY_PASSWORD
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_TLS_KEY_PASSWORD_FILE")]
    pub tls_key_password_file: Option<PathBuf>,
    /// How Kafka is shown the password: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    #[arg(long, value_name = "NAME", env = "QUAYMASTER_SASL_MECHANISM")]
    pub sasl_mechanism: Option<String>,
    /// The user at Kafka
    #[arg(long, value_name = "USER", env = "QUAYMASTER_SASL_USERNAME")]
    pub sasl_username: Option<String>,
    /// File with its password; or the variable QUAYMASTER_SASL_PASSWORD
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_SASL_PASSWORD_FILE")]
    pub sasl_password_file: Option<PathBuf>,
    /// The user at NATS, where it has a password
    #[arg(long, value_name = "USER", env = "QUAYMASTER_NATS_USERNAME")]
    pub nats_username: Option<String>,
    /// File with its password; or the variable QUAYMASTER_NATS_PASSWORD
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_NATS_PASSWORD_FILE")]
    pub nats_password_file: Option<PathBuf>,
    /// File with a token for NATS; or the variable QUAYMASTER_NATS_TOKEN
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_NATS_TOKEN_FILE")]
    pub nats_token_file: Option<PathBuf>,
    /// File with the seed of an nkey for NATS; or the variable QUAYMASTER_NATS_NKEY
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_NATS_NKEY_FILE")]
    pub nats_nkey_file: Option<PathBuf>,
    /// Credentials file for NATS; or the variable QUAYMASTER_NATS_CREDENTIALS with its text
    #[arg(long, value_name = "FILE", env = "QUAYMASTER_NATS_CREDENTIALS_FILE")]
    pub nats_credentials_file: Option<PathBuf>,
    /// A setting of librdkafka, such as linger.ms=5; repeatable; those of Quaymaster's promises are refused
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "QUAYMASTER_LIBRDKAFKA",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub librdkafka: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTls {
    enabled: Option<bool>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    key_password_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSasl {
    mechanism: Option<String>,
    username: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNats {
    username: Option<String>,
    password_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    nkey_file: Option<PathBuf>,
    credentials_file: Option<PathBuf>,
}

/// The part of the file that is about this.
#[derive(Debug, Default)]
pub(super) struct RawAccess {
    pub(super) tls: RawTls,
    pub(super) sasl: RawSasl,
    pub(super) nats: RawNats,
    pub(super) librdkafka: Table,
}

/// Secrets that the environment holds, by variable.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(BTreeMap<&'static str, SecretString>);

/// How the bus is entered, whichever bus it is.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// TLS, where it is spoken.
    pub tls: Option<Tls>,
    /// The user at Kafka.
    pub sasl: Option<Sasl>,
    /// The user at NATS.
    pub nats: Option<NatsLogin>,
    /// Settings of librdkafka.
    pub librdkafka: BTreeMap<String, String>,
}

impl Secrets {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// For a variable that is no text.
    pub(super) fn of_environment() -> Result<Self, ConfigError> {
        let mut secrets = BTreeMap::new();
        for (key, variable) in SECRET_VARIABLES {
            match std::env::var(variable) {
                // Set and empty is how some service managers say that it is not set.
                Ok(text) if text.is_empty() => {}
                Ok(text) => {
                    secrets.insert(*variable, SecretString::from(text));
                }
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(value(
                        key,
                        format!("the variable {variable} is no text in UTF-8"),
                    ));
                }
            }
        }
        Ok(Self(secrets))
    }

    /// The secret of a key: in the file that is named, or in the variable, not in both.
    fn find(
        &self,
        key: &'static str,
        file: Option<PathBuf>,
    ) -> Result<Option<Secret>, ConfigError> {
        let variable = SECRET_VARIABLES.iter().find(|(of, _)| *of == key);
        let held = variable.and_then(|(_, name)| Some((*name, self.0.get(name)?)));
        match (file, held) {
            (Some(_), Some((name, _))) => Err(value(
                key,
                format!("it is set, and so is the variable {name}: give one of them"),
            )),
            (Some(path), None) => Ok(Some(Secret::File(NamedFile { key, path }))),
            (None, Some((name, text))) => Ok(Some(Secret::Variable {
                name,
                value: text.clone(),
            })),
            (None, None) => Ok(None),
        }
    }
}

impl Access {
    /// Puts the settings together; reads no file.
    ///
    /// # Errors
    /// For the first that is wrong, or lacks another one.
    pub(super) fn check(
        flags: &AccessOverrides,
        raw: RawAccess,
        secrets: &Secrets,
    ) -> Result<Self, ConfigError> {
        let RawAccess {
            tls: raw_tls,
            sasl: raw_sasl,
            nats: raw_nats,
            librdkafka: raw_librdkafka,
        } = raw;
        Ok(Self {
            tls: tls(flags, raw_tls, secrets)?,
            sasl: sasl(flags, raw_sasl, secrets)?,
            nats: nats(flags, raw_nats, secrets)?,
            librdkafka: librdkafka(&flags.librdkafka, raw_librdkafka)?,
        })
    }

    /// The bus with what is needed to enter it.
    ///
    /// # Errors
    /// For a setting of the other bus: it would look as if it held, and would not.
    pub(super) fn to(&self, bus: &BusUrl) -> Result<Bus, ConfigError> {
        let other = |key, name: &str| {
            value(
                key,
                format!("it is a setting for {name}, and `bus` is `{bus}`: take one of them away"),
            )
        };
        match bus {
            BusUrl::Stdout => Ok(Bus::Stdout),
            BusUrl::Kafka(servers) => match &self.nats {
                Some(login) => Err(other(key_of(login), "nats")),
                None => Ok(Bus::Kafka(KafkaAccess {
                    servers: servers.clone(),
                    tls: self.tls.clone(),
                    sasl: self.sasl.clone(),
                    librdkafka: self.librdkafka.clone(),
                })),
            },
            BusUrl::Nats(servers) => {
                if self.sasl.is_some() {
                    return Err(other("sasl.mechanism", "kafka"));
                }
                if !self.librdkafka.is_empty() {
                    return Err(other("librdkafka", "kafka"));
                }
                Ok(Bus::Nats(NatsAccess {
                    servers: servers.clone(),
                    tls: self.tls.clone(),
                    login: self.nats.clone(),
                }))
            }
        }
    }
}

fn key_of(login: &NatsLogin) -> &'static str {
    match login {
        NatsLogin::User { .. } => "nats.username",
        NatsLogin::Token(_) => "nats.token_file",
        NatsLogin::Nkey(_) => "nats.nkey_file",
        NatsLogin::Credentials(_) => "nats.credentials_file",
    }
}

fn tls(
    flags: &AccessOverrides,
    raw: RawTls,
    secrets: &Secrets,
) -> Result<Option<Tls>, ConfigError> {
    let named = |key, path: PathBuf| NamedFile { key, path };
    let ca = flags.tls_ca_file.clone().or(raw.ca_file);
    let ca = ca.map(|path| named("tls.ca_file", path));
    let cert = flags.tls_cert_file.clone().or(raw.cert_file);
    let key = flags.tls_key_file.clone().or(raw.key_file);
    let key_password = flags
        .tls_key_password_file
        .clone()
        .or(raw.key_password_file);
    let key_password = secrets.find("tls.key_password_file", key_password)?;
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some(TlsIdentity {
            cert: named("tls.cert_file", cert),
            key: named("tls.key_file", key),
            key_password,
        }),
        (Some(_), None) => {
            return Err(value(
                "tls.key_file",
                "it is missing beside `tls.cert_file`",
            ));
        }
        (None, Some(_)) => {
            return Err(value(
                "tls.cert_file",
                "it is missing beside `tls.key_file`",
            ));
        }
        (None, None) if key_password.is_some() => {
            return Err(value("tls.key_password_file", "there is no `tls.key_file`"));
        }
        (None, None) => None,
    };
    let has_files = ca.is_some() || identity.is_some();
    match (flags.tls, raw.enabled) {
        (false, Some(false)) if has_files => Err(value(
            "tls.enabled",
            "it is `false`, and there are files for TLS: take one of them away",
        )),
        (false, Some(false)) => Ok(None),
        (false, None) if !has_files => Ok(None),
        (true, _) | (false, Some(true) | None) => Ok(Some(Tls { ca, identity })),
    }
}

fn sasl(
    flags: &AccessOverrides,
    raw: RawSasl,
    secrets: &Secrets,
) -> Result<Option<Sasl>, ConfigError> {
    let mechanism = flags.sasl_mechanism.clone().or(raw.mechanism);
    let username = flags.sasl_username.clone().or(raw.username);
    let password = flags.sasl_password_file.clone().or(raw.password_file);
    let password = secrets.find("sasl.password_file", password)?;
    if mechanism.is_none() && username.is_none() && password.is_none() {
        return Ok(None);
    }
    let names = SaslMechanism::ALL.map(SaslMechanism::as_str).join(", ");
    let mechanism = mechanism
        .ok_or_else(|| value("sasl.mechanism", format!("it is missing: one of {names}")))?;
    let known = SaslMechanism::ALL
        .into_iter()
        .find(|known| known.as_str() == mechanism)
        .ok_or_else(|| {
            value(
                "sasl.mechanism",
                format!("`{mechanism}` is none of {names}"),
            )
        })?;
    Ok(Some(Sasl {
        mechanism: known,
        username: username.ok_or_else(|| value("sasl.username", "it is missing"))?,
        password: password.ok_or_else(|| {
            value(
                "sasl.password_file",
                "it is missing, and so is the variable QUAYMASTER_SASL_PASSWORD",
            )
        })?,
    }))
}

fn nats(
    flags: &AccessOverrides,
    raw: RawNats,
    secrets: &Secrets,
) -> Result<Option<NatsLogin>, ConfigError> {
    let find = |key, flag: &Option<PathBuf>, raw| secrets.find(key, flag.clone().or(raw));
    let username = flags.nats_username.clone().or(raw.username);
    let password = find(
        "nats.password_file",
        &flags.nats_password_file,
        raw.password_file,
    )?;
    let user = match (username, password) {
        (Some(username), Some(password)) => Some(NatsLogin::User { username, password }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(value(
                "nats.password_file",
                "it is missing beside `nats.username`, and so is the variable QUAYMASTER_NATS_PASSWORD",
            ));
        }
        (None, Some(_)) => {
            return Err(value(
                "nats.username",
                "it is missing beside `nats.password_file`",
            ));
        }
    };
    let logins = [
        user,
        find("nats.token_file", &flags.nats_token_file, raw.token_file)?.map(NatsLogin::Token),
        find("nats.nkey_file", &flags.nats_nkey_file, raw.nkey_file)?.map(NatsLogin::Nkey),
        find(
            "nats.credentials_file",
            &flags.nats_credentials_file,
            raw.credentials_file,
        )?
        .map(NatsLogin::Credentials),
    ];
    let mut given = logins.into_iter().flatten();
    let login = given.next();
    match (&login, given.next()) {
        (Some(one), Some(other)) => Err(value(
            key_of(&other),
            format!("it is set, and so is `{}`: give one of them", key_of(one)),
        )),
        (Some(_) | None, _) => Ok(login),
    }
}

fn librdkafka(flags: &[String], raw: Table) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut settings = BTreeMap::new();
    flatten("", raw, &mut settings)?;
    for flag in flags {
        let (name, text) = flag.split_once('=').ok_or_else(|| {
            let message = format!("`{flag}` is no NAME=VALUE such as `linger.ms=5`");
            value("librdkafka", message)
        })?;
        settings.insert(name.trim().to_owned(), text.trim().to_owned());
    }
    for name in settings.keys() {
        if let Some(why) = refusal(name) {
            return Err(value(
                "librdkafka",
                format!("`{name}` is not to be set: {why}"),
            ));
        }
    }
    Ok(settings)
}

/// A name with dots is a table in TOML, unless it stands in quotes: both are the same setting.
fn flatten(
    prefix: &str,
    table: Table,
    settings: &mut BTreeMap<String, String>,
) -> Result<(), ConfigError> {
    for (name, found) in table {
        let name = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        let text = match found {
            Value::Table(inner) => {
                flatten(&name, inner, settings)?;
                continue;
            }
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            Value::Float(_) | Value::Datetime(_) | Value::Array(_) => {
                let message = format!("`{name}` must be a text, a number or true or false");
                return Err(value("librdkafka", message));
            }
        };
        settings.insert(name, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, EnrichOverrides, Overrides, parse};

    fn load(text: &str, secrets: &Secrets) -> Result<Config, String> {
        let (raw, _) = parse(text).map_err(|wrong| format!("{wrong:?}"))?;
        let (flags, enrich) = (Overrides::default(), EnrichOverrides::default());
        Config::check_with(&flags, &enrich, raw, secrets).map_err(|error| error.to_string())
    }

    fn password() -> Secrets {
        let secret = SecretString::from("hunter2".to_owned());
        Secrets([("QUAYMASTER_SASL_PASSWORD", secret)].into())
    }

    #[test]
    fn a_file_for_tls_turns_tls_on() {
        let none = Secrets::default();
        for (text, on) in [
            ("", false),
            ("tls.enabled = true", true),
            ("tls.ca_file = \"/ca.pem\"", true),
            ("tls.cert_file = \"/c\"\ntls.key_file = \"/k\"", true),
            ("tls.enabled = false", false),
        ] {
            let config = load(text, &none).expect(text);
            assert_eq!(config.access.tls.is_some(), on, "{text}");
        }
    }

    #[test]
    fn what_contradicts_or_lacks_another_setting_is_named() {
        let kafka = "bus = \"kafka://a:1\"\n";
        let nats = "bus = \"nats://a:1\"\n";
        for (text, expected) in [
            ("tls.enabled = false\ntls.ca_file = \"/x\"", "`tls.enabled`"),
            ("tls.cert_file = \"/x\"", "`tls.key_file`"),
            ("tls.key_file = \"/x\"", "`tls.cert_file`"),
            ("tls.key_password_file = \"/x\"", "`tls.key_password_file`"),
            ("sasl.username = \"u\"", "`sasl.mechanism`"),
            (
                "sasl.mechanism = \"GSSAPI\"",
                "none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
            ),
            ("sasl.mechanism = \"PLAIN\"", "`sasl.username`"),
            (
                "sasl.mechanism = \"PLAIN\"\nsasl.username = \"u\"",
                "`sasl.password_file`",
            ),
            ("nats.username = \"u\"", "`nats.password_file`"),
            (
                "nats.token_file = \"/x\"\nnats.nkey_file = \"/y\"",
                "and so is `nats.token_file`",
            ),
            ("librdkafka.acks = 1", "`acks` is not to be set"),
            (
                "[librdkafka]\n\"message.timeout.ms\" = 1",
                "`message.timeout.ms` is not",
            ),
            ("librdkafka.linger.ms = [1]", "`linger.ms` must be"),
            ("nats.token = \"x\"", "nats.token"),
        ] {
            let error = load(text, &Secrets::default()).err().unwrap_or_default();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for (text, expected) in [
            (
                format!("{kafka}nats.token_file = \"/x\""),
                "`nats.token_file`",
            ),
            (format!("{nats}librdkafka.linger.ms = 1"), "`librdkafka`"),
        ] {
            let error = load(&text, &Secrets::default()).err().unwrap_or_default();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_is_given_once() {
        let text = "bus = \"kafka://a:1\"\nsasl = { mechanism = \"PLAIN\", username = \"u\" }";
        let config = load(text, &password()).expect("a variable will do");
        assert!(matches!(
            config.bus,
            Bus::Kafka(KafkaAccess { sasl: Some(_), .. })
        ));
        assert!(!format!("{config:?}").contains("hunter2"));
        let text = "sasl = { mechanism = \"PLAIN\", username = \"u\", password_file = \"/x\" }";
        let error = load(text, &password()).err().unwrap_or_default();
        assert!(error.contains("QUAYMASTER_SASL_PASSWORD"), "{error}");
    }

    #[test]
    fn a_dotted_name_is_the_same_in_quotes_and_without() {
        for text in [
            "[librdkafka]\nlinger.ms = 5\nsocket.nagle.disable = true",
            "[librdkafka]\n\"linger.ms\" = 5\n\"socket.nagle.disable\" = \"true\"",
        ] {
            let config = load(text, &Secrets::default()).expect(text);
            let settings: Vec<_> = config.access.librdkafka.into_iter().collect();
            let expected = [("linger.ms", "5"), ("socket.nagle.disable", "true")];
            let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
            assert_eq!(settings, expected, "{text}");
        }
    }
}
