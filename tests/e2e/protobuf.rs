//! Values as protobuf, read by protoc, which has only `proto/quaymaster.proto`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::collector::HOST_ID;
use crate::consume::Bus;
use crate::host::{BusKind, Host};
use crate::wait::eventually;

#[test]
fn protoc_reads_what_is_published_as_protobuf() -> Result<()> {
    for bus in [BusKind::Kafka, BusKind::Nats] {
        let Some(mut host) = Host::usual(bus)? else {
            return Ok(());
        };
        host.setup = host.setup.with(&["--topics-encoding", "protobuf"]);
        let collector = host.setup.start()?;
        let web = host.docker().run_staying("web", &[])?;
        let text = eventually("the record of `web` is on the bus", || {
            let (content_type, value) = newest_record(&host.bus, &web)?;
            ensure!(content_type == "application/protobuf", "{content_type}");
            let text = decode("quaymaster.v1.Record", &value)?;
            ensure!(text.contains("state: \"running\""), "{text}");
            Ok(text)
        })?;
        for line in ["data_type: 5056", "name: \"web\"", "pns: \"pid:["] {
            ensure!(text.contains(line), "no `{line}` in {text}");
        }
        ensure!(text.contains(&format!("host_id: \"{HOST_ID}\"")), "{text}");
        // A field that protoc does not know would stand here as its number.
        let is_named = |line: &str| !line.trim_start().starts_with(|c: char| c.is_ascii_digit());
        ensure!(text.lines().all(is_named), "{text}");
        collector.stop()?;
    }
    Ok(())
}

/// The content type and the value of a container's newest record.
fn newest_record(bus: &Bus, id: &str) -> Result<(String, Vec<u8>)> {
    match bus {
        Bus::Stdout(_) => anyhow::bail!("stdout has JSON"),
        Bus::Kafka(address) => newest_on_kafka(address, &format!("{HOST_ID}/{id}")),
        Bus::Nats(address) => newest_on_nats(address, &format!("{HOST_ID}.{id}")),
    }
}

fn newest_on_kafka(address: &str, key: &str) -> Result<(String, Vec<u8>)> {
    let mut command = Command::new("kcat");
    command.args(["-C", "-e", "-q", "-o", "beginning", "-b", address]);
    command.args([
        "-t",
        "quaymaster.records",
        "-X",
        "allow.auto.create.topics=false",
    ]);
    // Key, headers, length, and as many bytes.
    let output = command
        .args(["-f", "%k\n%h\n%S\n%s"])
        .stdin(Stdio::null())
        .output();
    let mut rest = &output.context("failed to run kcat")?.stdout[..];
    let mut newest = None;
    while let Some((head, value)) = head_of(rest) {
        let length: usize = head[2].parse().context("a length")?;
        if head[0] == key {
            let is_type = |header: &&str| header.starts_with("content-type=");
            let content_type = head[1].split(',').find(is_type).unwrap_or_default();
            let content_type = content_type.trim_start_matches("content-type=").to_owned();
            newest = Some((content_type, value[..length].to_vec()));
        }
        rest = &value[length..];
    }
    newest.with_context(|| format!("no record of {key}"))
}

/// The three lines before a value, and what follows them.
fn head_of(bytes: &[u8]) -> Option<([String; 3], &[u8])> {
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut line = || Some(String::from_utf8_lossy(parts.next()?).into_owned());
    let head = [line()?, line()?, line()?];
    Some((head, parts.next()?))
}

fn newest_on_nats(address: &str, key: &str) -> Result<(String, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = async_nats::connect(address)
            .await
            .context("no NATS server answers")?;
        let jetstream = async_nats::jetstream::new(client);
        let stream = jetstream.get_stream("KV_quaymaster-records").await?;
        let subject = format!("$KV.quaymaster-records.{key}");
        let message = stream.get_last_raw_message_by_subject(&subject).await?;
        let content_type = message.headers.get("content-type");
        let content_type = content_type.map(|value| value.as_str().to_owned());
        Ok((content_type.unwrap_or_default(), message.payload.to_vec()))
    })
}

/// The text form of a message, by protoc.
fn decode(message: &str, value: &[u8]) -> Result<String> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut command = Command::new("protoc");
    command
        .arg(format!("--decode={message}"))
        .arg("-I")
        .arg(&proto);
    command.arg(proto.join("quaymaster.proto"));
    let mut protoc = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    protoc.stdin.take().context("a pipe")?.write_all(value)?;
    let output = protoc.wait_with_output()?;
    ensure!(output.status.success(), "protoc does not take it");
    Ok(String::from_utf8(output.stdout)?)
}
