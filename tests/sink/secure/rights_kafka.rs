//! A Kafka that lets a user do just what docs/security.md lists, and one thing less.

use super::acl::{Operation, Resource, Right, grant};
use super::run::{Collector, Secrets, State, command};
use super::secure_lab::{SecureLab, written};
use crate::enrich::{self, Enricher};
use crate::kafka::kcat;

const PASSWORD: &str = "a-password-of-the-quay";
const TOPICS: [&str; 4] = ["deltas", "records", "pns", "status"];
const USERS: [&str; 8] = [
    "verifies",
    "creates",
    "joins",
    "describes",
    "makes",
    "writes",
    "reads",
    "returns",
];

struct Kafka {
    lab: SecureLab,
    folder: tempfile::TempDir,
    secrets: Secrets,
}

fn start() -> anyhow::Result<Option<Kafka>> {
    let folder = tempfile::tempdir()?;
    let users = USERS.map(|user| format!("user_{user}=\"{PASSWORD}\""));
    let properties = format!(
        "allow.everyone.if.no.acl.found=false\nsuper.users=User:ANONYMOUS\n\
         listener.name.login.sasl.enabled.mechanisms=PLAIN\n\
         listener.name.login.plain.sasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required {};\n",
        users.join(" ")
    );
    let properties = written(folder.path(), "properties", &properties)?;
    let listeners = "LOGIN=SASL_PLAINTEXT".to_owned();
    let lab = SecureLab::start(
        "kafka",
        &[
            ("QUAYMASTER_LAB_KAFKA_LISTENERS", listeners),
            ("QUAYMASTER_LAB_KAFKA_PROPERTIES", properties),
        ],
    )?;
    Ok(lab.map(|lab| Kafka {
        lab,
        folder,
        secrets: Secrets(vec![PASSWORD.to_owned()]),
    }))
}

impl Kafka {
    fn administrators(&self) -> anyhow::Result<&str> {
        self.lab.address("LAB_KAFKA")
    }

    /// The arguments of a user, whose topics have its name.
    fn arguments(&self, user: &str, manage: &str) -> anyhow::Result<Vec<String>> {
        let password = written(self.folder.path(), "password", PASSWORD)?;
        Ok(vec![
            format!("--bus=kafka://{}", self.lab.address("LAB_KAFKA_LOGIN")?),
            "--sasl-mechanism=PLAIN".to_owned(),
            format!("--sasl-username={user}"),
            format!("--sasl-password-file={password}"),
            format!("--topics-prefix={user}"),
            format!("--topics-manage={manage}"),
        ])
    }

    fn command(
        &self,
        words: &[&str],
        arguments: &[String],
    ) -> anyhow::Result<(Option<i32>, String)> {
        let arguments = words
            .iter()
            .copied()
            .chain(arguments.iter().map(String::as_str));
        let ended = command(&arguments.collect::<Vec<_>>(), &[], &self.secrets)?;
        // The trace of the clients is no word of ours.
        let lines = ended
            .said
            .lines()
            .filter(|line| !line.contains("TRACE") && !line.contains("DEBUG"));
        Ok((ended.code, lines.collect::<Vec<_>>().join("\n")))
    }

    fn topics_of(&self, user: &str) -> anyhow::Result<()> {
        let arguments = [
            format!("--bus=kafka://{}", self.administrators()?),
            format!("--topics-prefix={user}"),
        ];
        let (code, said) = self.command(&["topics", "create"], &arguments)?;
        anyhow::ensure!(code == Some(0), "{said}");
        Ok(())
    }

    fn collector(
        &self,
        arguments: &[String],
        state: Option<State>,
    ) -> anyhow::Result<Collector<'_>> {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        Collector::start_with(&arguments, &[], &self.secrets, state)
    }

    async fn read(&self, topic: &str) -> anyhow::Result<Vec<crate::kafka::Read>> {
        kcat(&[self.administrators()?.to_owned()], topic).await
    }

    /// That all deltas of each epoch are there, from the first on.
    async fn has_all(&self, user: &str, epochs: usize) -> anyhow::Result<()> {
        let read = self.read(&format!("{user}.deltas")).await?;
        let seqs: Vec<_> = read.iter().filter_map(crate::kafka::Read::seq).collect();
        let firsts = seqs.iter().filter(|seq| **seq == 1).count();
        anyhow::ensure!(firsts >= epochs, "{user}: {seqs:?}");
        let is_next = |pair: &[u64]| pair[1] <= pair[0] + 1;
        anyhow::ensure!(seqs.windows(2).all(is_next), "{user}: a hole in {seqs:?}");
        Ok(())
    }
}

fn topic(user: &str, topic: &str) -> Resource {
    Resource::Topic(format!("{user}.{topic}"))
}

fn group() -> Resource {
    Resource::Group("quaymaster-read".to_owned())
}

/// What docs/security.md lists for a collector.
fn documented(user: &str, manage: &str) -> Vec<Right> {
    let mut rights = vec![(group(), Operation::Read)];
    for name in TOPICS {
        let of = || topic(user, name);
        rights.extend([
            (of(), Operation::Write),
            (of(), Operation::Read),
            (of(), Operation::DescribeConfigs),
        ]);
        if manage == "create" {
            rights.push((of(), Operation::Create));
        }
    }
    rights
}

/// A key of an earlier life, as the administrator may write it.
fn put_stale_record(server: &str, user: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut kcat = std::process::Command::new("kcat")
        .args([
            "-P",
            "-b",
            server,
            "-K",
            "|",
            "-t",
            &format!("{user}.records"),
        ])
        .args(["-X", "partitioner=murmur2_random"])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    if let Some(mut input) = kcat.stdin.take() {
        input.write_all(b"quay-secure/stale|{}\n")?;
    }
    anyhow::ensure!(kcat.wait()?.success(), "kcat does not write");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_needs_no_more_rights_on_kafka_than_are_documented() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    for (user, manage) in [("verifies", "verify"), ("creates", "create")] {
        let arguments = kafka.arguments(user, manage)?;
        grant(kafka.administrators()?, user, &documented(user, manage))?;
        if manage == "verify" {
            kafka.topics_of(user)?;
        }
        let collector = kafka.collector(&arguments, None)?;
        collector.until_up()?;
        put_stale_record(kafka.administrators()?, user)?;
        // The last acknowledged delta is read back.
        let state = collector.finish()?;
        let collector = kafka.collector(&arguments, Some(state))?;
        collector.until_up()?;
        collector.finish()?;
        // And all of the host's keys, after a lost state.
        let collector = kafka.collector(&arguments, None)?;
        collector.until_log("this host's keys were read back from the bus keys=1")?;
        let records = format!("{user}.records");
        let is_buried = async || {
            let read = kafka.read(&records).await?;
            let last = read.iter().rfind(|one| one.key == "quay-secure/stale");
            Ok(last.filter(|last| last.payload.is_none()).map(drop))
        };
        enrich::until("the tombstone of the earlier life's record", is_buried).await?;
        let log = collector.log()?;
        assert!(!log.contains("uthorization"), "{log}");
        collector.finish()?;
        kafka.has_all(user, 2).await?;

        let (code, said) = kafka.command(&["topics", "verify"], &arguments)?;
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = kafka.command(&["topics", "list"], &arguments)?;
        assert_eq!(code, Some(0), "{said}");
        let (_, said) = kafka.command(&["doctor"], &arguments)?;
        assert!(said.contains("all are there and as needed"), "{said}");
        assert!(said.contains("no other collector has"), "{said}");
        assert!(!said.contains("does not let"), "{said}");
    }
    Ok(())
}

/// A right that is left out, and who tells of it.
struct Missing {
    user: &'static str,
    manage: &'static str,
    right: Right,
    /// What is said of it.
    text: String,
    /// The subcommand of `topics` that ends with 77 and says so; with none all are content.
    command: Option<&'static str>,
    /// Whether the topics are there.
    is_made: bool,
    /// Whether it is found out only when something was acknowledged before.
    is_later: bool,
    doctor: bool,
}

fn missing(user: &'static str, resource: Resource, operation: Operation) -> Missing {
    let (Resource::Topic(name) | Resource::Group(name)) = &resource;
    Missing {
        user,
        manage: "verify",
        text: format!("does not let this user do {operation:?} on the topic `{name}`"),
        right: (resource, operation),
        command: None,
        is_made: true,
        is_later: false,
        doctor: true,
    }
}

fn cases() -> [Missing; 4] {
    [
        Missing {
            command: Some("verify"),
            ..missing(
                "describes",
                topic("describes", "records"),
                Operation::DescribeConfigs,
            )
        },
        Missing {
            manage: "create",
            command: Some("create"),
            is_made: false,
            // Topics that are missing are no trouble before `run`.
            doctor: false,
            ..missing("makes", topic("makes", "pns"), Operation::Create)
        },
        missing("writes", topic("writes", "deltas"), Operation::Write),
        Missing {
            is_later: true,
            ..missing("reads", topic("reads", "deltas"), Operation::Read)
        },
    ]
}

async fn is_told_and_heals(kafka: &Kafka, case: Missing) -> anyhow::Result<()> {
    let Missing {
        user, manage, text, ..
    } = case;
    let arguments = kafka.arguments(user, manage)?;
    let mut rights = documented(user, manage);
    rights.retain(|right| *right != case.right);
    grant(kafka.administrators()?, user, &rights)?;
    if case.is_made {
        kafka.topics_of(user)?;
    }
    if let Some(command) = case.command {
        let (code, said) = kafka.command(&["topics", command], &arguments)?;
        anyhow::ensure!(code == Some(77) && said.contains(&text), "{code:?} {said}");
    }
    let (_, said) = kafka.command(&["doctor"], &arguments)?;
    anyhow::ensure!(said.contains(&text) == case.doctor, "`{text}`: {said}");
    let mut state = None;
    if case.is_later {
        let collector = kafka.collector(&arguments, None)?;
        collector.until_up()?;
        state = Some(collector.finish()?);
    }
    let collector = kafka.collector(&arguments, state)?;
    collector.until_log(&text)?;
    enrich::until("it is not ready", async || {
        let ready = collector.page("/readyz")?;
        Ok(ready.contains(" 503 ").then_some(()))
    })
    .await?;
    grant(kafka.administrators()?, user, &[case.right])?;
    collector.until_up()?;
    collector.finish()?;
    kafka.has_all(user, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_on_kafka_is_named_and_nothing_is_lost() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    for case in cases() {
        is_told_and_heals(&kafka, case).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_back_that_is_refused_on_kafka_is_told_and_made_later() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    let (user, right) = ("returns", (topic("returns", "records"), Operation::Read));
    let arguments = kafka.arguments(user, "verify")?;
    kafka.topics_of(user)?;
    let mut rights = documented(user, "verify");
    rights.retain(|one| *one != right);
    grant(kafka.administrators()?, user, &rights)?;
    let collector = kafka.collector(&arguments, None)?;
    collector.until_log("does not let this user do Read on the topic `returns.records`")?;
    collector.until_up()?;
    grant(kafka.administrators()?, user, &[right])?;
    collector.until_log("this host's keys were read back from the bus")?;
    collector.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn enrich_needs_no_more_rights_on_kafka_than_are_documented() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    let servers = vec![kafka.administrators()?.to_owned()];
    let world = enrich::Kafka::new(&servers).await?;
    let prefix = &world.topics.prefix;
    let on = |name: &str| Resource::Topic(format!("{prefix}.{name}"));
    let rights = [
        (on("in"), Operation::Read),
        (on("pns"), Operation::DescribeConfigs),
        (on("out"), Operation::Write),
        (on("out"), Operation::Create),
        (Resource::Group(format!("{prefix}.in")), Operation::Read),
    ];
    grant(kafka.administrators()?, "joins", &rights)?;
    // The mappings may be described, and not read.
    let describe = (on("pns"), Operation::Describe);
    grant(kafka.administrators()?, "joins", &[describe])?;
    for inode in enrich::INODES {
        world.map(inode).await?;
    }
    world.events(0..20).await?;
    let login = kafka.arguments("joins", "create")?;
    let bus = login[0].trim_start_matches("--bus=").to_owned();
    let login: Vec<_> = login[1..4].iter().map(String::as_str).collect();
    let mut enricher = Enricher::start(&bus, &world.topics, &world.arguments(&login))?;
    enricher
        .says(&[
            &format!("`{prefix}.pns` is not read"),
            "TopicAuthorizationFailed",
        ])
        .await?;
    grant(
        kafka.administrators()?,
        "joins",
        &[(on("pns"), Operation::Read)],
    )?;
    let joined = world.joined_all(20).await?;
    assert!(joined.values().all(|times| *times == 1), "{joined:?}");
    enricher.stop().await?;
    assert!(world.committed()? > 0);
    Ok(())
}
