//! Who we are, for a NATS server: asked at each connection, so that a secret that was renewed is used at the next one.

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

use crate::sink::SinkError;
use crate::sink::access::{FileError, NatsAccess, NatsLogin, Secret, expose};
use crate::telemetry::chain;

/// Looks at the secret, without a server.
///
/// # Errors
/// [`SinkError::File`] where its file is of no use, [`SinkError::Misconfigured`] where a variable is, or where a key is
/// encrypted, which the NATS client cannot read.
pub(in crate::sink) fn check(access: &NatsAccess) -> Result<(), SinkError> {
    let identity = access.tls.as_ref().and_then(|tls| tls.identity.as_ref());
    if identity.is_some_and(|identity| identity.key_password.is_some()) {
        return Err(SinkError::Misconfigured {
            message: "`tls.key_password_file` is of no use with nats, whose client takes no encrypted key: decrypt it"
                .to_owned(),
        });
    }
    match &access.login {
        None => Ok(()),
        Some(login) => auth(login, b"").map(drop).map_err(SinkError::from),
    }
}

/// Answers a server's nonce.
pub(super) fn answer(login: Option<&NatsLogin>, nonce: &[u8]) -> Result<Auth, AuthError> {
    login.map_or_else(
        || Ok(Auth::new()),
        |login| auth(login, nonce).map_err(|error| AuthError::new(chain(&error))),
    )
}

/// What is wrong with a secret.
#[derive(Debug, thiserror::Error)]
enum WrongSecret {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0}")]
    Variable(String),
}

impl From<WrongSecret> for SinkError {
    fn from(wrong: WrongSecret) -> Self {
        match wrong {
            WrongSecret::File(error) => Self::File(error),
            WrongSecret::Variable(message) => Self::Misconfigured { message },
        }
    }
}

fn auth(login: &NatsLogin, nonce: &[u8]) -> Result<Auth, WrongSecret> {
    let mut auth = Auth::new();
    match login {
        NatsLogin::User { username, password } => {
            auth.username = Some(username.clone());
            auth.password = Some(expose(&password.read()?).to_owned());
        }
        NatsLogin::Token(token) => auth.token = Some(expose(&token.read()?).to_owned()),
        NatsLogin::Nkey(seed) => {
            let pair = key_pair(expose(&seed.read()?), seed)?;
            auth.signature = Some(sign(&pair, nonce, seed)?);
            auth.nkey = Some(pair.public_key());
        }
        NatsLogin::Credentials(credentials) => {
            let text = credentials.read()?;
            let missing = |what: &str| wrong(credentials, &format!("holds no {what}"));
            let jwt = section(expose(&text), "NATS USER JWT").ok_or_else(|| missing("user JWT"))?;
            let seed =
                section(expose(&text), "USER NKEY SEED").ok_or_else(|| missing("nkey seed"))?;
            let pair = key_pair(seed, credentials)?;
            auth.signature = Some(sign(&pair, nonce, credentials)?);
            auth.jwt = Some(jwt.to_owned());
        }
    }
    Ok(auth)
}

fn key_pair(seed: &str, secret: &Secret) -> Result<KeyPair, WrongSecret> {
    // The library's error could tell of the seed.
    KeyPair::from_seed(seed.trim())
        .map_err(|_| wrong(secret, "holds no seed of an nkey, such as `SU…`"))
}

fn sign(pair: &KeyPair, nonce: &[u8], secret: &Secret) -> Result<Vec<u8>, WrongSecret> {
    pair.sign(nonce)
        .map_err(|_| wrong(secret, "holds a key that cannot sign"))
}

fn wrong(secret: &Secret, message: &str) -> WrongSecret {
    match secret.file() {
        Some(file) => file.content(message).into(),
        None => WrongSecret::Variable(format!("the variable `{}` {message}", secret.origin())),
    }
}

/// The line of a credentials file between the marks of a section (nsc writes them; dashes at the end vary).
fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {name}");
    let mut lines = text.lines().skip_while(|line| !line.contains(&begin));
    lines.next()?;
    lines
        .map(str::trim)
        .find(|line| !line.is_empty())
        .filter(|line| !line.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;

    const CREDENTIALS: &str = "-----BEGIN NATS USER JWT-----\neyJ0.e30.x\n------END NATS USER JWT------\n\n\
        ****** IMPORTANT ******\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n";

    fn variable(value: &str) -> Secret {
        Secret::Variable {
            name: "QUAYMASTER_NATS_CREDENTIALS",
            value: SecretString::from(value.to_owned()),
        }
    }

    #[test]
    fn credentials_answer_a_nonce_with_their_jwt_and_a_signature() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().unwrap_or_default();
        let text = CREDENTIALS.replace("{seed}", &seed);
        let login = NatsLogin::Credentials(variable(&text));
        let auth = answer(Some(&login), b"nonce").unwrap_or_default();
        assert_eq!(auth.jwt.as_deref(), Some("eyJ0.e30.x"));
        let signature = auth.signature.unwrap_or_default();
        assert!(pair.verify(b"nonce", &signature).is_ok());
    }

    #[test]
    fn a_secret_of_no_use_is_named_and_not_told() {
        for (login, text) in [
            (NatsLogin::Nkey(variable("SUhunter2")), "no seed of an nkey"),
            (NatsLogin::Credentials(variable("hunter2")), "no user JWT"),
            (
                NatsLogin::Credentials(variable(&CREDENTIALS.replace("{seed}", "hunter2"))),
                "no seed of an nkey",
            ),
        ] {
            let access = NatsAccess {
                login: Some(login),
                ..NatsAccess::default()
            };
            let error = check(&access).map_err(|error| error.to_string());
            let error = error.err().unwrap_or_default();
            assert!(
                error.contains(text) && error.contains("QUAYMASTER_NATS_CREDENTIALS"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
