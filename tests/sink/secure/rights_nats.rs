//! A NATS that lets a user do just what docs/security.md lists, and one thing less.

use std::path::PathBuf;

use anyhow::Context as _;

use super::rights::{Broker, HOST, Missing, PASSWORD, ensure_no_hole};
use super::secure_lab::{SecureLab, written};
use crate::enrich::{self, Enricher};

const ADMINISTRATOR: &str = "administrator";

struct Nats {
    broker: Broker,
    conf: PathBuf,
    /// What the server's configuration has besides users.
    rest: String,
}

/// Users, each with the subjects that it may publish to. Who comes without a name may do everything.
fn authorization(users: &[(&str, &[String])]) -> String {
    let mut text = format!(
        "no_auth_user: {ADMINISTRATOR}\nauthorization {{ users: [\n\
         {{ user: {ADMINISTRATOR}, password: {ADMINISTRATOR} }}\n"
    );
    for (user, subjects) in users {
        text += &format!(
            "{{ user: {user}, password: {PASSWORD:?}, permissions: {{ publish: {subjects:?}, subscribe: [\"_INBOX.>\"] }} }}\n"
        );
    }
    text + "] }\n"
}

fn start() -> anyhow::Result<Option<Nats>> {
    let folder = tempfile::tempdir()?;
    let nobody = authorization(&[]);
    let conf = written(folder.path(), "conf", &nobody)?;
    let Some(lab) = SecureLab::start("nats", &[("QUAYMASTER_LAB_NATS_CONF", conf)])? else {
        return Ok(None);
    };
    let conf = lab.folder().join("nats/nats.conf");
    let rest = std::fs::read_to_string(&conf)?.replace(&nobody, "");
    let bus = format!("--bus=nats://{}", lab.address("LAB_NATS")?);
    Ok(Some(Nats {
        broker: Broker::new(lab, bus, folder),
        conf,
        rest,
    }))
}

impl Nats {
    fn address(&self) -> anyhow::Result<&str> {
        self.broker.lab.address("LAB_NATS")
    }

    /// Users come, go, and get other rights, as an administrator does it.
    fn allow(&self, users: &[(&str, &[String])]) -> anyhow::Result<()> {
        std::fs::write(&self.conf, self.rest.clone() + &authorization(users))?;
        let pid = std::fs::read_to_string(self.broker.lab.folder().join("run/nats.pid"))?;
        let pid = pid
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        let pid = pid.and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("the lab tells no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
        Ok(())
    }

    /// Waits until the server lets a user in as it now is.
    async fn allows(&self, user: &str, subjects: &[String]) -> anyhow::Result<()> {
        self.allow(&[(user, subjects)])?;
        let address = self.address()?.to_owned();
        enrich::until("the server knows the user", async || {
            let options = async_nats::ConnectOptions::with_user_and_password(
                user.to_owned(),
                PASSWORD.to_owned(),
            );
            Ok(options.connect(&address).await.ok().map(drop))
        })
        .await
    }

    fn arguments(&self, user: &str, manage: &str) -> anyhow::Result<Vec<String>> {
        Ok(vec![
            format!("--bus=nats://{}", self.address()?),
            format!("--nats-username={user}"),
            format!("--nats-password-file={}", self.broker.password_file()?),
            format!("--topics-prefix={user}"),
            format!("--topics-manage={manage}"),
        ])
    }

    async fn jetstream(&self) -> anyhow::Result<async_nats::jetstream::Context> {
        let client = async_nats::connect(self.address()?).await?;
        Ok(async_nats::jetstream::new(client))
    }

    /// That the stream begins with the first delta.
    async fn has_all(&self, user: &str) -> anyhow::Result<()> {
        let name = format!("{}_DELTAS", user.to_uppercase());
        let stream = self.jetstream().await?.get_stream(name).await?;
        let last = stream.cached_info().state.last_sequence;
        let mut seqs = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await?;
            let value: serde_json::Value = serde_json::from_slice(&message.payload)?;
            seqs.push(value["seq"].as_u64().context("a delta has a number")?);
        }
        anyhow::ensure!(seqs.first() == Some(&1), "{user}: {seqs:?}");
        ensure_no_hole(user, &seqs)
    }
}

/// What docs/security.md lists for a collector, with `<host>` this one.
fn documented(user: &str, manage: &str) -> Vec<String> {
    let deltas = format!("{}_DELTAS", user.to_uppercase());
    let buckets = ["records", "pns", "status"].map(|topic| format!("KV_{user}-{topic}"));
    let mut subjects = vec![
        format!("{user}.deltas.{HOST}.>"),
        format!("$KV.{user}-records.{HOST}.>"),
        format!("$KV.{user}-pns.{HOST}.>"),
        format!("$KV.{user}-status.{HOST}"),
    ];
    for stream in std::iter::once(&deltas).chain(&buckets) {
        subjects.push(format!("$JS.API.STREAM.INFO.{stream}"));
        subjects.push(format!("$JS.API.STREAM.MSG.GET.{stream}"));
        if manage == "create" {
            subjects.push(format!("$JS.API.STREAM.CREATE.{stream}"));
        }
    }
    for stream in &buckets[..2] {
        subjects.push(format!("$JS.API.CONSUMER.CREATE.{stream}"));
        subjects.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.>"));
    }
    subjects
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_needs_no_more_rights_on_nats_than_are_documented() -> anyhow::Result<()> {
    let Some(nats) = start()? else { return Ok(()) };
    for (user, manage) in [("verifies", "verify"), ("creates", "create")] {
        let arguments = nats.arguments(user, manage)?;
        nats.allows(user, &documented(user, manage)).await?;
        if manage == "verify" {
            nats.broker.topics_of(user)?;
        }
        let collector = nats.broker.collector(&arguments, None)?;
        collector.until_up()?;
        let stale = format!("$KV.{user}-records.{HOST}.stale");
        nats.jetstream()
            .await?
            .publish(stale.clone(), "{}".into())
            .await?
            .await?;
        let state = collector.finish()?;
        let collector = nats.broker.collector(&arguments, Some(state))?;
        collector.until_up()?;
        collector.finish()?;
        let collector = nats.broker.collector(&arguments, None)?;
        collector.until_log("this host's keys were read back from the bus keys=1")?;
        let bucket = format!("KV_{user}-records");
        let stream = nats.jetstream().await?.get_stream(bucket).await?;
        enrich::until("the tombstone of the earlier life's record", async || {
            let last = stream.get_last_raw_message_by_subject(&stale).await?;
            Ok(last.headers.get("KV-Operation").map(drop))
        })
        .await?;
        let log = collector.log()?;
        assert!(
            !log.to_lowercase().contains("permissions violation"),
            "{log}"
        );
        collector.finish()?;

        let (code, said) = nats.broker.command(&["topics", "verify"], &arguments)?;
        assert_eq!(code, Some(0), "{said}");
        let (_, said) = nats.broker.command(&["doctor"], &arguments)?;
        assert!(said.contains("all are there and as needed"), "{said}");
        assert!(said.contains("no other collector has"), "{said}");
        assert!(
            !said.to_lowercase().contains("permissions violation"),
            "{said}"
        );
        let deltas = format!("{}_DELTAS", user.to_uppercase());
        let stream = nats.jetstream().await?.get_stream(deltas).await?;
        let tried = format!("{user}.deltas.{HOST}.doctor");
        let stored = stream.get_last_raw_message_by_subject(&tried).await;
        assert!(stored.is_err(), "the doctor stores nothing");
    }
    Ok(())
}

fn missing(user: &'static str, subject: &str) -> Missing<String> {
    let text = format!(
        "Permissions Violation for Publish to \"{}",
        subject.trim_end_matches('>')
    );
    Missing::new(user, subject.to_owned(), text)
}

fn cases() -> [Missing<String>; 5] {
    [
        Missing {
            command: Some("verify"),
            ..missing("looks", "$JS.API.STREAM.INFO.KV_looks-records")
        },
        Missing {
            manage: "create",
            command: Some("create"),
            is_made: false,
            doctor: false,
            ..missing("makes", "$JS.API.STREAM.CREATE.KV_makes-pns")
        },
        missing("writes", "writes.deltas.quay-secure.>"),
        Missing {
            is_later: true,
            ..missing("reads", "$JS.API.STREAM.MSG.GET.READS_DELTAS")
        },
        missing("returns", "$JS.API.CONSUMER.CREATE.KV_returns-records"),
    ]
}

async fn is_told_and_heals(nats: &Nats, case: Missing<String>) -> anyhow::Result<()> {
    let Missing { user, manage, .. } = case;
    let arguments = nats.arguments(user, manage)?;
    let all = documented(user, manage);
    if case.is_made {
        nats.broker.topics_of(user)?;
    }
    let state = if case.is_later {
        nats.allows(user, &all).await?;
        Some(nats.broker.state_of(&arguments)?)
    } else {
        None
    };
    let mut less = all.clone();
    less.retain(|subject| *subject != case.right);
    anyhow::ensure!(
        less.len() + 1 == all.len(),
        "{} is not documented",
        case.right
    );
    nats.allows(user, &less).await?;
    case.is_told_by_commands(&nats.broker, &arguments)?;
    let collector = nats.broker.collector(&arguments, state)?;
    collector.until_log(&case.text)?;
    nats.allows(user, &all).await?;
    if user == "returns" {
        collector.until_log("this host's keys were read back from the bus")?;
    }
    collector.until_up()?;
    collector.finish()?;
    nats.has_all(user).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_on_nats_is_named_and_nothing_is_lost() -> anyhow::Result<()> {
    let Some(nats) = start()? else { return Ok(()) };
    for case in cases() {
        is_told_and_heals(&nats, case).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn enrich_needs_no_more_rights_on_nats_than_are_documented() -> anyhow::Result<()> {
    let Some(nats) = start()? else { return Ok(()) };
    let servers = vec![nats.address()?.to_owned()];
    let world = enrich::Nats::new(&servers).await?;
    let flat = world.topics.prefix.replace('.', "_");
    let (mappings, events) = (format!("KV_{flat}-pns"), format!("{flat}_events"));
    let output = format!("{flat}_out");
    let group = "quaymaster-enrich";
    let subjects = [
        "$JS.API.STREAM.NAMES".to_owned(),
        format!("$JS.API.STREAM.INFO.{mappings}"),
        format!("$JS.API.STREAM.INFO.{events}"),
        format!("$JS.API.STREAM.CREATE.{}", output.to_uppercase()),
        format!("$JS.API.CONSUMER.CREATE.{mappings}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{mappings}.>"),
        format!("$JS.API.CONSUMER.INFO.{events}.{group}"),
        format!("$JS.API.CONSUMER.CREATE.{events}.{group}.>"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{events}.{group}"),
        format!("$JS.ACK.{events}.{group}.>"),
        output,
    ];
    nats.allows("joins", &subjects).await?;
    for inode in enrich::INODES {
        world.map(inode).await?;
    }
    world.events(0..20).await?;
    let login = nats.arguments("joins", "create")?;
    let mut arguments = world.arguments().to_vec();
    arguments.extend(login[1..3].iter().map(String::as_str));
    let enricher = Enricher::start(&world.bus, &world.topics, &arguments)?;
    let mut read = enrich::Read::default();
    enrich::until("all events are in the output", async || {
        world.read(&mut read).await?;
        Ok((read.joined.len() == 20).then_some(()))
    })
    .await?;
    enrich::until("all are acknowledged", async || {
        Ok((world.acknowledged().await? == 20).then_some(()))
    })
    .await?;
    let log = enricher.stop().await?;
    assert!(
        !log.to_lowercase().contains("permissions violation"),
        "{log}"
    );
    Ok(())
}
