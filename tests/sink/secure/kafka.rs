//! A Kafka whose listeners are each right or wrong in one way.

use super::certificates::Certificates;
use super::run::{Collector, Secrets, command};
use super::secure_lab::{SecureLab, written};
use crate::kafka::kcat;

const PASSWORD: &str = "hunter2-and-a-half";
const WRONG_PASSWORD: &str = "hunter3-is-wrong";

struct Kafka {
    lab: SecureLab,
    certificates: Certificates,
    folder: tempfile::TempDir,
}

fn start() -> anyhow::Result<Option<Kafka>> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::write(folder.path())?;
    let mut properties = String::from("ssl.keystore.type=PEM\nssl.truststore.type=PEM\n");
    for (listener, pair) in [
        ("mutual", "server"),
        ("login", "server"),
        ("expired", "expired"),
        ("elsewhere", "elsewhere"),
    ] {
        let both = certificates.pair(pair).both.display().to_string();
        let ca = certificates.ca().display().to_string();
        properties += &format!(
            "listener.name.{listener}.ssl.keystore.location={both}\n\
             listener.name.{listener}.ssl.truststore.location={ca}\n"
        );
    }
    properties += "listener.name.mutual.ssl.client.auth=required\n";
    for listener in ["login", "clear"] {
        properties += &format!(
            "listener.name.{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.{listener}.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_quay=\"{PASSWORD}\";\n"
        );
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            properties += &format!(
                "listener.name.{listener}.{mechanism}.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n"
            );
        }
    }
    let properties = written(folder.path(), "properties", &properties)?;
    let scram = ["256", "512"]
        .map(|bits| format!("SCRAM-SHA-{bits}=[name=quay,password={PASSWORD}]"))
        .join("\n");
    let listeners =
        "MUTUAL=SSL LOGIN=SASL_SSL EXPIRED=SSL ELSEWHERE=SSL CLEAR=SASL_PLAINTEXT".to_owned();
    let lab = SecureLab::start(
        "kafka",
        &[
            ("QUAYMASTER_LAB_KAFKA_LISTENERS", listeners),
            ("QUAYMASTER_LAB_KAFKA_PROPERTIES", properties),
            ("QUAYMASTER_LAB_KAFKA_SCRAM", scram),
        ],
    )?;
    Ok(lab.map(|lab| Kafka {
        lab,
        certificates,
        folder,
    }))
}

impl Kafka {
    fn bus(&self, listener: &str) -> anyhow::Result<String> {
        let address = self.lab.address(&format!("LAB_KAFKA_{listener}"))?;
        Ok(format!("--bus=kafka://{address}"))
    }

    fn password(&self, name: &str, password: &str) -> anyhow::Result<String> {
        written(self.folder.path(), name, &format!("{password}\n"))
    }

    /// The deltas of a prefix, by the listener that asks for nothing.
    async fn deltas(&self, prefix: &str) -> anyhow::Result<String> {
        let servers = vec![self.lab.address("LAB_KAFKA")?.to_owned()];
        let read = kcat(&servers, &format!("{prefix}.deltas")).await?;
        Ok(read.into_iter().filter_map(|one| one.payload).collect())
    }
}

fn secrets() -> Secrets {
    Secrets(vec![PASSWORD.to_owned(), WRONG_PASSWORD.to_owned()])
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_entered_by_each_right_way_and_by_no_wrong_one() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    let secrets = secrets();
    let certificates = &kafka.certificates;
    let ca = format!("--tls-ca-file={}", certificates.ca().display());
    let other_ca = format!("--tls-ca-file={}", certificates.other_ca().display());
    let client = certificates.pair("client");
    let cert = format!("--tls-cert-file={}", client.cert.display());
    let key = format!("--tls-key-file={}", client.key.display());
    let stranger = certificates.pair("stranger");
    let strange_cert = format!("--tls-cert-file={}", stranger.cert.display());
    let strange_key = format!("--tls-key-file={}", stranger.key.display());
    let right = format!(
        "--sasl-password-file={}",
        kafka.password("right", PASSWORD)?
    );
    let wrong = format!(
        "--sasl-password-file={}",
        kafka.password("wrong", WRONG_PASSWORD)?
    );
    let user = "--sasl-username=quay";
    let (plain, scram_256, scram_512) = (
        "--sasl-mechanism=PLAIN",
        "--sasl-mechanism=SCRAM-SHA-256",
        "--sasl-mechanism=SCRAM-SHA-512",
    );
    let cases: &[(&str, &[&str], i32, &str)] = &[
        ("MUTUAL", &[&ca, &cert, &key], 0, "all topics are there"),
        (
            "LOGIN",
            &[&ca, plain, user, &right],
            0,
            "all topics are there",
        ),
        (
            "LOGIN",
            &[&ca, scram_256, user, &right],
            0,
            "all topics are there",
        ),
        (
            "LOGIN",
            &[&ca, scram_512, user, &right],
            0,
            "all topics are there",
        ),
        (
            "CLEAR",
            &[scram_512, user, &right],
            0,
            "all topics are there",
        ),
        (
            "MUTUAL",
            &[&other_ca, &cert, &key],
            64,
            "not trusted: name that one's certificate with `tls.ca_file`",
        ),
        ("MUTUAL", &[&ca], 64, "asks for a client certificate"),
        (
            "MUTUAL",
            &[&ca, &strange_cert, &strange_key],
            64,
            "`tls.cert_file`",
        ),
        ("MUTUAL", &[&ca, &cert, &strange_key], 64, "does not fit"),
        ("EXPIRED", &[&ca], 64, "has expired"),
        ("ELSEWHERE", &[&ca], 64, "is for another name"),
        (
            "LOGIN",
            &[&ca, plain, user, &wrong],
            77,
            "`sasl.password_file`",
        ),
        (
            "LOGIN",
            &[&ca, scram_512, user, &wrong],
            77,
            "`sasl.password_file`",
        ),
        (
            "CLEAR",
            &[scram_512, user, &wrong],
            77,
            "`sasl.password_file`",
        ),
        (
            "LOGIN",
            &[&ca, plain, user, "--sasl-password-file=/nonexistent"],
            64,
            "is not there",
        ),
    ];
    for (listener, arguments, code, text) in cases {
        let bus = kafka.bus(listener)?;
        let all = [
            &["topics", "--topics-prefix=secure", &bus],
            *arguments,
            &["create"],
        ]
        .concat();
        let ended = command(&all, &[], &secrets)?;
        assert_eq!(
            ended.code,
            Some(*code),
            "{listener} {arguments:?}: {}",
            ended.said
        );
        assert!(
            ended.said.contains(text),
            "{listener} {arguments:?}: {}",
            ended.said
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_publishes_over_tls_with_a_password_and_survives_a_wrong_one()
-> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    let secrets = secrets();
    let ca = format!("--tls-ca-file={}", kafka.certificates.ca().display());
    let bus = kafka.bus("LOGIN")?;
    let password = kafka.password("password", WRONG_PASSWORD)?;
    let file = format!("--sasl-password-file={password}");
    let login = [
        "--sasl-mechanism=SCRAM-SHA-512",
        "--sasl-username=quay",
        "--librdkafka=linger.ms=1",
    ];
    let shared = [&[bus.as_str(), &ca, &file][..], &login].concat();

    let run = [&shared[..], &["--topics-prefix=healing"]].concat();
    let collector = Collector::start(&run, &[], &secrets)?;
    collector.until_log("refuses the login")?;
    assert!(collector.page("/metrics")?.contains("quaymaster_bus_up 0"));
    std::fs::write(&password, PASSWORD)?;
    collector.until_up()?;
    collector.finish()?;
    assert!(kafka.deltas("healing").await?.contains("\"op\":\"epoch\""));

    // The same by variables alone, as in a container.
    let address = kafka.lab.address("LAB_KAFKA_LOGIN")?;
    let (bus, ca) = (
        format!("kafka://{address}"),
        kafka.certificates.ca().display().to_string(),
    );
    let variables = [
        ("QUAYMASTER_BUS", bus.as_str()),
        ("QUAYMASTER_TLS_CA_FILE", ca.as_str()),
        ("QUAYMASTER_SASL_MECHANISM", "PLAIN"),
        ("QUAYMASTER_SASL_USERNAME", "quay"),
        ("QUAYMASTER_SASL_PASSWORD", PASSWORD),
        ("QUAYMASTER_TOPICS_PREFIX", "variables"),
    ];
    let collector = Collector::start(&[], &variables, &secrets)?;
    collector.until_up()?;
    collector.finish()?;
    assert!(
        kafka
            .deltas("variables")
            .await?
            .contains("\"op\":\"epoch\"")
    );
    let shown = command(&["config", "show"], &variables, &secrets)?;
    assert!(
        shown
            .said
            .contains("QUAYMASTER_SASL_PASSWORD holds the secret"),
        "{}",
        shown.said
    );
    let doctor = command(&["doctor"], &variables, &secrets)?;
    assert!(
        doctor.said.contains(&format!("{bus} answers")),
        "{}",
        doctor.said
    );
    Ok(())
}
