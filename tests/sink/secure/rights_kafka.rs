//! A Kafka that lets a user do just what docs/security.md lists, and one thing less.

use super::acl::{Operation, Resource, Right, grant};
use super::rights::{Broker, HOST, Missing, PASSWORD, ensure_no_hole};
use super::secure_lab::{SecureLab, written};
use crate::enrich::{self, Enricher};
use crate::kafka::kcat;

const TOPICS: [&str; 4] = ["deltas", "records", "pns", "status"];
const USERS: [&str; 10] = [
    "verifies",
    "creates",
    "joins",
    "describes",
    "makes",
    "writes",
    "reads",
    "groups",
    "returns",
    "reaps",
];

struct Kafka {
    broker: Broker,
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
    let Some(lab) = lab else { return Ok(None) };
    let bus = format!("--bus=kafka://{}", lab.address("LAB_KAFKA")?);
    Ok(Some(Kafka {
        broker: Broker::new(lab, bus, folder),
    }))
}

impl Kafka {
    fn administrators(&self) -> anyhow::Result<&str> {
        self.broker.lab.address("LAB_KAFKA")
    }

    fn grant(&self, user: &str, rights: &[Right]) -> anyhow::Result<()> {
        grant(self.administrators()?, user, rights)
    }

    /// The arguments of a user, whose topics have its name.
    fn arguments(&self, user: &str, manage: &str) -> anyhow::Result<Vec<String>> {
        let address = self.broker.lab.address("LAB_KAFKA_LOGIN")?;
        Ok(vec![
            format!("--bus=kafka://{address}"),
            "--sasl-mechanism=PLAIN".to_owned(),
            format!("--sasl-username={user}"),
            format!("--sasl-password-file={}", self.broker.password_file()?),
            format!("--topics-prefix={user}"),
            format!("--topics-manage={manage}"),
        ])
    }

    async fn read(&self, topic: &str) -> anyhow::Result<Vec<crate::kafka::Read>> {
        kcat(&[self.administrators()?.to_owned()], topic).await
    }

    /// Whether the key of [`put_stale_record`] has its tombstone.
    async fn is_buried(&self, user: &str) -> anyhow::Result<Option<()>> {
        let stale = format!("{HOST}/stale");
        let read = self.read(&format!("{user}.records")).await?;
        let last = read.iter().rfind(|one| one.key == stale);
        Ok(last.filter(|last| last.payload.is_none()).map(drop))
    }

    /// That all deltas of each epoch are there, from the first on.
    async fn has_all(&self, user: &str, epochs: usize) -> anyhow::Result<()> {
        let read = self.read(&format!("{user}.deltas")).await?;
        let seqs: Vec<_> = read.iter().filter_map(crate::kafka::Read::seq).collect();
        let firsts = seqs.iter().filter(|seq| **seq == 1).count();
        anyhow::ensure!(firsts >= epochs, "{user}: {seqs:?}");
        ensure_no_hole(user, &seqs)
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

/// A key of an earlier life that expired long ago, as the administrator may write it.
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
        writeln!(input, "{HOST}/stale|{{\"expires_at_ms\":1}}")?;
    }
    anyhow::ensure!(kcat.wait()?.success(), "kcat does not write");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_needs_no_more_rights_on_kafka_than_are_documented() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    for (user, manage) in [("verifies", "verify"), ("creates", "create")] {
        let arguments = kafka.arguments(user, manage)?;
        kafka.grant(user, &documented(user, manage))?;
        if manage == "verify" {
            kafka.broker.topics_of(user)?;
        }
        let collector = kafka.broker.collector(&arguments, None)?;
        collector.until_up()?;
        put_stale_record(kafka.administrators()?, user)?;
        // The last acknowledged delta is read back.
        let state = collector.finish()?;
        let collector = kafka.broker.collector(&arguments, Some(state))?;
        collector.until_up()?;
        collector.finish()?;
        // And all of the host's keys, after a lost state.
        let collector = kafka.broker.collector(&arguments, None)?;
        collector.until_log("this host's keys were read back from the bus keys=1")?;
        let is_buried = async || kafka.is_buried(user).await;
        enrich::until("the tombstone of the earlier life's record", is_buried).await?;
        let log = collector.log()?;
        assert!(!log.contains("uthorization"), "{log}");
        collector.finish()?;
        kafka.has_all(user, 2).await?;

        let (code, said) = kafka.broker.command(&["topics", "verify"], &arguments)?;
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = kafka.broker.command(&["topics", "list"], &arguments)?;
        assert_eq!(code, Some(0), "{said}");
        let (_, said) = kafka.broker.command(&["doctor"], &arguments)?;
        assert!(said.contains("all are there and as needed"), "{said}");
        assert!(said.contains("no other collector has"), "{said}");
        assert!(!said.contains("does not let"), "{said}");
    }
    Ok(())
}

fn missing(user: &'static str, resource: Resource, operation: Operation) -> Missing<Right> {
    let on = match &resource {
        Resource::Topic(name) => format!("the topic `{name}`"),
        Resource::Group(name) => format!("the group `{name}`"),
    };
    let text = format!("does not let this user do {operation:?} on {on}");
    Missing::new(user, (resource, operation), text)
}

fn cases() -> [Missing<Right>; 5] {
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
            doctor: false,
            ..missing("makes", topic("makes", "pns"), Operation::Create)
        },
        missing("writes", topic("writes", "deltas"), Operation::Write),
        Missing {
            is_later: true,
            ..missing("reads", topic("reads", "deltas"), Operation::Read)
        },
        Missing {
            is_later: true,
            ..missing("groups", group(), Operation::Read)
        },
    ]
}

async fn is_told_and_heals(kafka: &Kafka, case: Missing<Right>) -> anyhow::Result<()> {
    let Missing { user, manage, .. } = case;
    let arguments = kafka.arguments(user, manage)?;
    let mut rights = documented(user, manage);
    rights.retain(|right| *right != case.right);
    kafka.grant(user, &rights)?;
    if case.is_made {
        kafka.broker.topics_of(user)?;
    }
    let state = if case.is_later {
        Some(kafka.broker.state_of(&arguments)?)
    } else {
        None
    };
    case.is_told_by_commands(&kafka.broker, &arguments)?;
    let collector = kafka.broker.collector(&arguments, state)?;
    collector.until_log(&case.text)?;
    enrich::until("it is not ready", async || {
        let ready = collector.page("/readyz")?;
        Ok(ready.contains(" 503 ").then_some(()))
    })
    .await?;
    kafka.grant(user, &[case.right])?;
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
    kafka.broker.topics_of(user)?;
    let mut rights = documented(user, "verify");
    rights.retain(|one| *one != right);
    kafka.grant(user, &rights)?;
    let collector = kafka.broker.collector(&arguments, None)?;
    collector.until_log("does not let this user do Read on the topic `returns.records`")?;
    collector.until_up()?;
    kafka.grant(user, &[right])?;
    collector.until_log("this host's keys were read back from the bus")?;
    collector.finish()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reap_needs_no_more_rights_on_kafka_than_are_documented() -> anyhow::Result<()> {
    let Some(kafka) = start()? else { return Ok(()) };
    let user = "reaps";
    let arguments = kafka.arguments(user, "verify")?;
    let on = |operation| ["records", "pns", "status"].map(|name| (topic(user, name), operation));
    kafka.grant(user, &on(Operation::Read))?;
    // Who sees the topics sees the rights that were granted before.
    kafka.broker.topics_of(user)?;
    put_stale_record(kafka.administrators()?, user)?;
    let reap = || kafka.broker.command(&["topics", "reap"], &arguments);
    let (code, said) = reap()?;
    assert_eq!(code, Some(77), "{said}");
    let text = "does not let this user do Read on the group `quaymaster-read`";
    assert!(said.contains(text), "{said}");
    kafka.grant(user, &[(group(), Operation::Read)])?;
    let text = format!("does not let this user do Write on the topic `{user}.records`");
    let is_named = async || {
        let (code, said) = reap()?;
        Ok((code == Some(77) && said.contains(&text)).then_some(()))
    };
    enrich::until(
        "it may write nothing, and names what it may not do",
        is_named,
    )
    .await?;
    let mut writes = on(Operation::Write).to_vec();
    writes.retain(|(of, _)| *of != topic(user, "records"));
    kafka.grant(user, &writes)?;
    let is_the_topic_alone = async || {
        let (code, said) = reap()?;
        let is_it = said.contains(&text) && !said.contains("IdempotentWrite");
        Ok((code == Some(77) && is_it).then_some(()))
    };
    enrich::until("it may write the other topics", is_the_topic_alone).await?;
    kafka.grant(user, &on(Operation::Write))?;
    let is_let = async || Ok((reap()?.0 == Some(0)).then_some(()));
    enrich::until("it reads all topics", is_let).await?;
    assert_eq!(kafka.is_buried(user).await?, Some(()));
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
    ];
    kafka.grant("joins", &rights)?;
    // The mappings may be described, and not read; nor may the group.
    let describe = (on("pns"), Operation::Describe);
    kafka.grant("joins", &[describe])?;
    for inode in enrich::INODES {
        world.map(inode).await?;
    }
    world.events(0..20).await?;
    let login = kafka.arguments("joins", "create")?;
    let bus = login[0].trim_start_matches("--bus=").to_owned();
    let login: Vec<_> = login[1..4].iter().map(String::as_str).collect();
    let mut enricher = Enricher::start(&bus, &world.topics, &world.arguments(&login))?;
    let unread = format!("`{prefix}.pns` is not read by the group `{prefix}.in`");
    for code in ["GroupAuthorizationFailed", "TopicAuthorizationFailed"] {
        enricher.says(&[&unread, code]).await?;
    }
    let group = Resource::Group(format!("{prefix}.in"));
    let late = [(on("pns"), Operation::Read), (group, Operation::Read)];
    kafka.grant("joins", &late)?;
    let joined = world.joined_all(20).await?;
    assert!(joined.values().all(|times| *times == 1), "{joined:?}");
    enricher.stop().await?;
    assert!(world.committed()? > 0);
    Ok(())
}
