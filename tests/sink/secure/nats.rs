//! NATS servers that are each right or wrong in one way.

use nkeys::KeyPair;

use super::certificates::Certificates;
use super::run::{Collector, Secrets, command};
use super::secure_lab::{SecureLab, written};

const PASSWORD: &str = "hunter2-and-a-half";
const WRONG_PASSWORD: &str = "hunter3-is-wrong";
const TOKEN: &str = "token-of-the-quay";

fn server(
    folder: &std::path::Path,
    name: &str,
    conf: &str,
) -> anyhow::Result<Option<(SecureLab, String)>> {
    let conf = written(folder, &format!("{name}.conf"), conf)?;
    let Some(lab) = SecureLab::start("nats", &[("QUAYMASTER_LAB_NATS_CONF", conf)])? else {
        return Ok(None);
    };
    let bus = format!("--bus=nats://{}", lab.address("LAB_NATS")?);
    Ok(Some((lab, bus)))
}

fn tls(certificates: &Certificates, pair: &str, verify: bool) -> String {
    let pair = certificates.pair(pair);
    format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: {verify} }}\n",
        pair.cert.display(),
        pair.key.display(),
        certificates.ca().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_is_entered_by_each_right_way_and_by_no_wrong_one() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::write(folder.path())?;
    let user = KeyPair::new_user();
    let seed = user.seed()?;
    let stranger = KeyPair::new_user().seed()?;
    let secrets = Secrets(
        [PASSWORD, WRONG_PASSWORD, TOKEN, &seed, &stranger]
            .map(str::to_owned)
            .to_vec(),
    );
    let users = format!(
        "authorization {{ users: [ {{ user: quay, password: \"{PASSWORD}\" }}, {{ nkey: {} }} ] }}\n",
        user.public_key()
    );
    let servers = [
        ("login", tls(&certificates, "server", false) + &users),
        ("mutual", tls(&certificates, "server", true)),
        ("expired", tls(&certificates, "expired", false)),
        ("elsewhere", tls(&certificates, "elsewhere", false)),
        ("token", format!("authorization {{ token: \"{TOKEN}\" }}\n")),
    ];
    let mut started = Vec::new();
    for (name, conf) in servers {
        let Some(server) = server(folder.path(), name, &conf)? else {
            return Ok(());
        };
        started.push((name, server));
    }
    let ca = format!("--tls-ca-file={}", certificates.ca().display());
    let other_ca = format!("--tls-ca-file={}", certificates.other_ca().display());
    let client = certificates.pair("client");
    let cert = format!("--tls-cert-file={}", client.cert.display());
    let key = format!("--tls-key-file={}", client.key.display());
    let file = |flag: &str, text: &str| -> anyhow::Result<String> {
        let name = format!("{}-{}", flag.trim_start_matches('-'), text.len());
        Ok(format!(
            "{flag}={}",
            written(folder.path(), &name, &format!("{text}\n"))?
        ))
    };
    let right = file("--nats-password-file", PASSWORD)?;
    let wrong = file("--nats-password-file", WRONG_PASSWORD)?;
    let token = file("--nats-token-file", TOKEN)?;
    let nkey = file("--nats-nkey-file", &seed)?;
    let strange_nkey = format!(
        "--nats-nkey-file={}",
        written(folder.path(), "strange.nk", &stranger)?
    );
    let quay = "--nats-username=quay";
    let cases: &[(&str, &[&str], i32, &str)] = &[
        ("login", &[&ca, quay, &right], 0, "all topics are there"),
        ("login", &[&ca, &nkey], 0, "all topics are there"),
        ("mutual", &[&ca, &cert, &key], 0, "all topics are there"),
        ("token", &[&token], 0, "all topics are there"),
        ("login", &[&ca, quay, &wrong], 77, "`nats.password_file`"),
        ("login", &[&ca, &strange_nkey], 77, "`nats.nkey_file`"),
        ("login", &[&ca], 77, "name a user with"),
        ("token", &[], 77, "name a user with"),
        (
            "login",
            &[&other_ca, quay, &right],
            64,
            "with `tls.ca_file`",
        ),
        ("login", &[quay, &right], 64, "with `tls.ca_file`"),
        ("mutual", &[&ca], 64, "asks for a client certificate"),
        ("expired", &[&ca], 64, "has expired"),
        ("elsewhere", &[&ca], 64, "is for another name"),
        ("token", &[&ca, &token], 64, "does not answer in TLS"),
        (
            "token",
            &["--nats-nkey-file=/nonexistent"],
            64,
            "is not there",
        ),
    ];
    for (name, arguments, code, text) in cases {
        let bus = started
            .iter()
            .find(|(of, _)| of == name)
            .map(|(_, (_, bus))| bus.as_str());
        let bus = bus.unwrap_or_default();
        let all = [
            &["topics", "--topics-prefix=secure", bus],
            *arguments,
            &["create"],
        ]
        .concat();
        let ended = command(&all, &[], &secrets)?;
        assert_eq!(
            ended.code,
            Some(*code),
            "{name} {arguments:?}: {}",
            ended.said
        );
        assert!(
            ended.said.contains(text),
            "{name} {arguments:?}: {}",
            ended.said
        );
    }

    let bus = started.first().map(|(_, (_, bus))| bus.as_str());
    let bus = bus.unwrap_or_default();
    let password = written(folder.path(), "changing", WRONG_PASSWORD)?;
    let changing = format!("--nats-password-file={password}");
    let reader = async_nats::ConnectOptions::new()
        .user_and_password("quay".to_owned(), PASSWORD.to_owned())
        .add_root_certificates(certificates.ca());
    let changed = (password.as_str(), PASSWORD);
    daemon_heals(&[bus, &ca, quay, &changing], changed, &secrets, reader).await
}

/// A daemon that is refused goes on once its file has what is right, until the bus has its first delta. The first
/// argument is the bus.
pub(crate) async fn daemon_heals(
    arguments: &[&str],
    (file, right): (&str, &str),
    secrets: &Secrets,
    reader: async_nats::ConnectOptions,
) -> anyhow::Result<()> {
    let arguments = [arguments, &["--topics-prefix=healing"]].concat();
    let collector = Collector::start(&arguments, &[], secrets)?;
    collector.until_log("refuses the login")?;
    std::fs::write(file, right)?;
    collector.until_up()?;
    collector.finish()?;
    let bus = arguments[0].trim_start_matches("--bus=");
    let client = reader.connect(bus).await?;
    let stream = async_nats::jetstream::new(client)
        .get_stream("HEALING_DELTAS")
        .await?;
    let first = stream.get_raw_message(1).await?;
    assert!(String::from_utf8_lossy(&first.payload).contains("\"op\":\"epoch\""));
    Ok(())
}
