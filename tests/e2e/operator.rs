//! As a new operator would have it: the binary of the Debian package, as its unit starts it, with a file of settings, on
//! real runtimes, over TLS and with a password to a real Kafka and a real NATS; the doctor is content, and Prometheus
//! sees it.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::host::{BusKind, Host};
use crate::lab::Lab;
use crate::package::{UID, succeed, unpacked_as_the_unit};
use crate::sight;
use crate::world::{Cri, Docker};

pub(crate) const USER: &str = "quay";
pub(crate) const PASSWORD: &str = "a-password-of-the-quay";
/// Who comes without a password and without TLS, as the consumer does.
const READER: &str = "reader";

#[test]
fn an_operators_collector_publishes_to_kafka_and_prometheus_sees_it() -> Result<()> {
    let folder = TempDir::new()?;
    let certificates = Certificates::write(&folder.path().join("certificates"))?;
    let variables = kafka_variables(folder.path(), &certificates)?;
    let components = ["containerd2", "docker", "kafka", "prometheus"];
    let Some(lab) = Lab::up_with(&components, &variables)? else {
        return Ok(());
    };
    sight::check_rules()?;
    let host = host(lab, BusKind::Kafka)?;
    let bus = format!("kafka://{}", host.lab.value("LAB_KAFKA_LOGIN")?);
    let login = "[sasl]\nmechanism = \"SCRAM-SHA-512\"";
    let host = installed(host, folder.path(), &bus, login, &certificates.ca())?;
    doctor_is_content(&host)?;
    let collector = host.setup.start()?;
    publishes(&host)?;
    let address = sight::address_in(|| collector.log())?;
    sight::prometheus_sees_all_and_tells_of_a_dead_bus(&host, &address)?;
    host.converged("an outage of Kafka")?;
    ensure!(
        !collector.log()?.contains(PASSWORD),
        "the password is in the log"
    );
    collector.stop()
}

#[test]
fn an_operators_collector_publishes_to_nats() -> Result<()> {
    let folder = TempDir::new()?;
    let certificates = Certificates::write(&folder.path().join("certificates"))?;
    let conf = nats_conf(&certificates);
    let conf = written(folder.path(), "conf", &conf)?;
    let components = ["containerd2", "docker", "nats"];
    let Some(lab) = Lab::up_with(&components, &[("QUAYMASTER_LAB_NATS_CONF", conf)])? else {
        return Ok(());
    };
    let host = host(lab, BusKind::Nats)?;
    let bus = format!("nats://{}", host.lab.value("LAB_NATS")?);
    let host = installed(host, folder.path(), &bus, "[nats]", &certificates.ca())?;
    doctor_is_content(&host)?;
    let collector = host.setup.start()?;
    publishes(&host)?;
    ensure!(
        !collector.log()?.contains(PASSWORD),
        "the password is in the log"
    );
    collector.stop()
}

/// What makes the lab's Kafka ask for TLS and a password at a listener of its own, `LAB_KAFKA_LOGIN`.
pub(crate) fn kafka_variables(
    folder: &Path,
    certificates: &Certificates,
) -> Result<[(&'static str, String); 3]> {
    let both = certificates.pair("server").both.display().to_string();
    let properties = format!(
        "ssl.keystore.type=PEM\nlistener.name.login.ssl.keystore.location={both}\n\
         listener.name.login.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
         listener.name.login.scram-sha-512.sasl.jaas.config=\
         org.apache.kafka.common.security.scram.ScramLoginModule required;\n"
    );
    let scram = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
    Ok([
        (
            "QUAYMASTER_LAB_KAFKA_LISTENERS",
            "LOGIN=SASL_SSL".to_owned(),
        ),
        (
            "QUAYMASTER_LAB_KAFKA_PROPERTIES",
            written(folder, "properties", &properties)?,
        ),
        ("QUAYMASTER_LAB_KAFKA_SCRAM", scram),
    ])
}

/// What makes a NATS server speak TLS and ask for a password; the consumer comes without.
pub(crate) fn nats_conf(certificates: &Certificates) -> String {
    let pair = certificates.pair("server");
    format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\nallow_non_tls: true\n\
         authorization {{ users: [ {{ user: {USER}, password: {PASSWORD:?} }}, \
         {{ user: {READER}, password: {READER:?} }} ] }}\nno_auth_user: {READER}\n",
        pair.cert, pair.key
    )
}

/// Writes what a container is given of secrets: `secrets/ca.pem` and `secrets/password`, for root alone.
pub(crate) fn secrets(folder: &Path, certificates: &Certificates) -> Result<()> {
    let secrets = folder.join("secrets");
    std::fs::create_dir_all(&secrets)?;
    std::fs::copy(certificates.ca(), secrets.join("ca.pem"))?;
    let password = PathBuf::from(written(&secrets, "password", PASSWORD)?);
    std::fs::set_permissions(password, std::fs::Permissions::from_mode(0o400))?;
    Ok(())
}

fn host(lab: Lab, bus: BusKind) -> Result<Host> {
    let docker = Docker::new(&lab, "DOCKER")?;
    let cri = Cri::new(&lab, "LAB_CRI_SOCKET")?;
    Host::of(lab, vec![docker], vec![cri], bus)
}

/// The package's binary with a file of settings: TLS, a user, and what the dashboard's panels need.
fn installed(mut host: Host, folder: &Path, bus: &str, login: &str, ca: &Path) -> Result<Host> {
    let endpoints = [host.docker().endpoint(), host.cri().endpoint()];
    let program = unpacked_as_the_unit(folder, &endpoints)?;
    let password = PathBuf::from(written(folder, "password", &format!("{PASSWORD}\n"))?);
    chown(&password, Some(UID), Some(UID))?;
    let settings = format!(
        "[tls]\nca_file = {ca:?}\n\n{login}\nusername = {USER:?}\npassword_file = {password:?}\n\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\n[processes]\ninterval = \"2s\"\n"
    );
    let settings = written(folder, "quaymaster.toml", &settings)?;
    host.setup = host
        .setup
        .at(bus)
        .through(program)
        .with(&["--config", &settings]);
    std::fs::create_dir_all(host.setup.dir())?;
    chown(host.setup.dir(), Some(UID), Some(UID))?;
    Ok(host)
}

fn doctor_is_content(host: &Host) -> Result<()> {
    let output = succeed(&mut host.setup.command("doctor")).context("the doctor is not content")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !said.contains(PASSWORD),
        "the password is in what the doctor says"
    );
    // The unit's capabilities are enough for the bundles of root's containerd.
    let early = said.lines().find(|line| line.contains("early pids"));
    let early = early.with_context(|| format!("nothing of early pids: {said}"))?;
    ensure!(early.starts_with("well"), "{early}");
    Ok(())
}

/// That every live namespace is mapped is part of it: the unit's capabilities are there, and are enough.
fn publishes(host: &Host) -> Result<()> {
    host.docker().run_staying("web", &[])?;
    let pod = host.cri().pod("pod", &[])?;
    host.cri().run_staying(&pod, "one")?;
    host.converged("docker run and a pod")?;
    Ok(())
}

pub(crate) fn written(folder: &Path, name: &str, text: &str) -> Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    let path = path.into_os_string().into_string();
    path.ok().context("a path that is no text")
}
