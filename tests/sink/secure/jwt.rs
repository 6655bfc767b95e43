//! A NATS server in operator mode: who may enter is told by JWTs that an operator signed for accounts, and accounts for
//! users.

use std::path::Path;

use nkeys::KeyPair;
use serde_json::{Value, json};

use super::nats::daemon_heals;
use super::run::{Secrets, command};
use super::secure_lab::{SecureLab, written};

/// Before any clock of ours: what expires then has expired.
const LONG_AGO_S: u64 = 1_600_000_000;
const LATER_S: u64 = 4_000_000_000;

/// Base64 as URLs and JWTs have it, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for letter in 0..=group.len() {
            text.push(LETTERS[(bits >> (18 - 6 * letter) & 63) as usize].into());
        }
    }
    text
}

/// What `issuer` says of `subject`; `nats` is the part that NATS itself reads.
fn jwt(issuer: &KeyPair, subject: &KeyPair, expires_s: u64, nats: Value) -> anyhow::Result<String> {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": subject.public_key(), "iat": LONG_AGO_S, "exp": expires_s, "iss": issuer.public_key(),
        "sub": subject.public_key(), "name": "quay", "nats": nats
    });
    let said = format!(
        "{}.{}",
        base64(header.to_string().as_bytes()),
        base64(claims.to_string().as_bytes())
    );
    let signature = issuer.sign(said.as_bytes())?;
    Ok(format!("{said}.{}", base64(&signature)))
}

/// An account. `streams` says how many it may keep, -1 for any: the system's may keep none. `revoked` may not enter any more.
fn account(
    operator: &KeyPair,
    of: &KeyPair,
    streams: i64,
    revoked: Option<&KeyPair>,
) -> anyhow::Result<String> {
    let revocations: serde_json::Map<_, _> = revoked
        .into_iter()
        .map(|user| (user.public_key(), LATER_S.into()))
        .collect();
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": streams, "disk_storage": streams, "streams": streams, "consumer": streams
    });
    let nats =
        json!({ "type": "account", "version": 2, "limits": limits, "revocations": revocations });
    jwt(operator, of, LATER_S, nats)
}

/// A credentials file, as `nsc` writes it.
fn credentials(account: &KeyPair, user: &KeyPair, expires_s: u64) -> anyhow::Result<String> {
    let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let jwt = jwt(account, user, expires_s, nats)?;
    let seed = user.seed()?;
    Ok(format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    ))
}

/// A server that believes an operator; the first account is the system's.
fn server_conf(operator: &KeyPair, accounts: &[(&KeyPair, String)]) -> anyhow::Result<String> {
    let nats = json!({ "type": "operator", "version": 2 });
    let mut conf = format!(
        "operator: {}\nresolver: MEMORY\n",
        jwt(operator, operator, LATER_S, nats)?
    );
    if let Some((system, _)) = accounts.first() {
        conf += &format!("system_account: {}\n", system.public_key());
    }
    conf += "resolver_preload: {\n";
    for (of, jwt) in accounts {
        conf += &format!("  {}: {jwt}\n", of.public_key());
    }
    Ok(conf + "}\n")
}

fn file(folder: &Path, name: &str, text: &str) -> anyhow::Result<String> {
    let path = written(folder, name, text)?;
    Ok(format!("--nats-credentials-file={path}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_enter_a_server_of_an_operator_and_wrong_ones_do_not() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (operator, system, ours) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
    );
    let (user, revoked, expired) = (
        KeyPair::new_user(),
        KeyPair::new_user(),
        KeyPair::new_user(),
    );
    let stranger = KeyPair::new_account();
    let seeds: Result<Vec<_>, _> = [&user, &revoked, &expired]
        .map(KeyPair::seed)
        .into_iter()
        .collect();
    let secrets = Secrets(seeds?);
    let accounts = [
        (&system, account(&operator, &system, 0, None)?),
        (&ours, account(&operator, &ours, -1, Some(&revoked))?),
    ];
    let conf = written(folder, "conf", &server_conf(&operator, &accounts)?)?;
    let Some(lab) = SecureLab::start("nats", &[("QUAYMASTER_LAB_NATS_CONF", conf)])? else {
        return Ok(());
    };
    let bus = format!("--bus=nats://{}", lab.address("LAB_NATS")?);
    let right = credentials(&ours, &user, LATER_S)?;
    let cases = [
        ("right", right.clone(), 0, "all topics are there"),
        (
            "revoked",
            credentials(&ours, &revoked, LATER_S)?,
            77,
            "`nats.credentials_file`",
        ),
        (
            "expired",
            credentials(&ours, &expired, LONG_AGO_S)?,
            77,
            "`nats.credentials_file`",
        ),
        (
            "strange",
            credentials(&stranger, &user, LATER_S)?,
            77,
            "`nats.credentials_file`",
        ),
        (
            "torn",
            right.replace("SEED", "SOUP"),
            64,
            "holds no nkey seed",
        ),
    ];
    for (name, text, code, expected) in cases {
        let file = file(folder, name, &text)?;
        let ended = command(
            &["topics", "--topics-prefix=jwt", &bus, &file, "create"],
            &[],
            &secrets,
        )?;
        assert_eq!(ended.code, Some(code), "{name}: {}", ended.said);
        assert!(ended.said.contains(expected), "{name}: {}", ended.said);
    }
    let ended = command(
        &["topics", "--topics-prefix=jwt", &bus, "verify"],
        &[],
        &secrets,
    )?;
    assert_eq!(ended.code, Some(77), "nobody: {}", ended.said);

    // The daemon, whose revoked credentials are replaced while it runs.
    let changing = file(folder, "changing", &credentials(&ours, &revoked, LATER_S)?)?;
    let path = changing.trim_start_matches("--nats-credentials-file=");
    let reader = async_nats::ConnectOptions::with_credentials(&right)?;
    daemon_heals(&[&bus, &changing], (path, &right), &secrets, reader).await
}
