//! The lab's Kafka: what it keeps on disk, how it is made to compact, and a plain consumer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quaymaster::model::Topic;
use quaymaster::sink::TopicSettings;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::tell;

/// A topic is compacted when it did not shrink for so long. The cleaner looks every second in the lab.
const STILL: Duration = Duration::from_secs(15);
const COMPACT_TIMEOUT: Duration = Duration::from_secs(400);
const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Broker {
    kafka: String,
    data: PathBuf,
    topics: TopicSettings,
}

/// What reading a topic whole took.
pub(super) struct Filled {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
}

impl Broker {
    pub(super) fn new(kafka: &str, lab: &str, topics: &TopicSettings) -> anyhow::Result<Self> {
        let data = PathBuf::from(lab).join("kafka/data");
        anyhow::ensure!(data.is_dir(), "`{}` is no lab with a Kafka", lab);
        Ok(Self {
            kafka: kafka.to_owned(),
            data,
            topics: topics.clone(),
        })
    }

    pub(super) fn name(&self, topic: Topic) -> String {
        self.topics.topic_name(topic)
    }

    /// Bytes on disk, by topic: segments, without the indexes that Kafka allocates ahead.
    pub(super) fn weigh(&self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        let mut weights = BTreeMap::new();
        for topic in super::WEIGHED {
            let mut sum = 0;
            for partition in 0..self.topics.partitions {
                let folder = self.data.join(format!("{}-{partition}", self.name(topic)));
                // Not there before the partition's first message, or the broker's first look at it.
                let Ok(entries) = std::fs::read_dir(&folder) else {
                    continue;
                };
                for entry in entries {
                    let path = entry?.path();
                    if path.extension().is_some_and(|extension| extension == "log") {
                        // A segment may be replaced while it is looked at.
                        sum += std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
                    }
                }
            }
            weights.insert(topic.as_str(), sum);
        }
        Ok(weights)
    }

    /// Lets the broker compact all that is there, tombstones too, and waits until it has.
    pub(super) async fn compact(&self) -> anyhow::Result<()> {
        let config: AdminClient<DefaultClientContext> = self.config().create()?;
        for topic in [Topic::Pns, Topic::Records] {
            let name = self.name(topic);
            let mut eager = AlterConfig::new(ResourceSpecifier::Topic(&name));
            for (key, value) in [
                ("cleanup.policy", "compact"),
                ("segment.ms", "1000"),
                ("min.cleanable.dirty.ratio", "0.001"),
                ("max.compaction.lag.ms", "1000"),
                ("delete.retention.ms", "1000"),
            ] {
                eager = eager.set(key, value);
            }
            for altered in config.alter_configs([&eager], &AdminOptions::new()).await? {
                altered.map_err(|(_, code)| anyhow::anyhow!("failed to alter `{name}`: {code}"))?;
            }
        }
        let producer: ThreadedProducer<DefaultProducerContext> = self.config().create()?;
        let began = Instant::now();
        let (mut least, mut since) = (u64::MAX, Instant::now());
        while since.elapsed() < STILL && began.elapsed() < COMPACT_TIMEOUT {
            // A segment is closed, and can be compacted, when something is appended after its time.
            for topic in [Topic::Pns, Topic::Records] {
                for partition in 0..self.topics.partitions {
                    let name = self.name(topic);
                    let nudge = BaseRecord::<_, [u8]>::to(&name).key("nudge");
                    producer
                        .send(nudge.partition(partition))
                        .map_err(|(error, _)| error)?;
                }
            }
            producer.flush(TIMEOUT)?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let weights = self.weigh()?;
            let now = weights[Topic::Pns.as_str()] + weights[Topic::Records.as_str()];
            // The nudges themselves weigh some hundred bytes a round.
            if now + 100_000 < least {
                (least, since) = (now, Instant::now());
                tell(&format!("compacted to {} MB", now / 1_000_000));
            }
        }
        Ok(())
    }

    /// Reads a topic from its beginning to the ends that it has now.
    pub(super) fn read_all(&self, topic: Topic) -> anyhow::Result<Filled> {
        let name = self.name(topic);
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", "fleet")
            .set("enable.auto.commit", "false")
            .set("queued.max.messages.kbytes", "65536")
            .create()?;
        let mut ends = BTreeMap::new();
        let mut all = TopicPartitionList::new();
        for partition in 0..self.topics.partitions {
            let (low, high) = consumer.fetch_watermarks(&name, partition, TIMEOUT)?;
            if low < high {
                ends.insert(partition, high);
            }
            all.add_partition_offset(&name, partition, Offset::Beginning)?;
        }
        let (began, cpu) = (Instant::now(), cpu_of_self()?);
        consumer.assign(&all)?;
        let mut filled = Filled {
            messages: 0,
            bytes: 0,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
        };
        while !ends.is_empty() {
            let message = super::joiner::next(&consumer)?;
            filled.messages += 1;
            filled.bytes += (message.key_len() + message.payload_len()) as u64;
            // The last message is a nudge, which compaction leaves.
            if ends
                .get(&message.partition())
                .is_some_and(|end| message.offset() + 1 >= *end)
            {
                ends.remove(&message.partition());
            }
        }
        filled.wall = began.elapsed();
        filled.cpu = cpu_of_self()?.saturating_sub(cpu);
        Ok(filled)
    }

    pub(super) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka);
        config
    }
}

fn cpu_of_self() -> anyhow::Result<Duration> {
    super::joiner::cpu_of(std::process::id())
}
