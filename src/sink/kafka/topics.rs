//! Kafka's topics: created, checked, listed. Settings and reasons: design §3.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use tokio::time::Instant;

use super::client::{self, Context};
use super::errors::{Class, classify};
use super::{trouble, unavailable};
use crate::model::Topic;
use crate::sink::access::KafkaAccess;
use crate::sink::{ManageTopics, SinkError, TopicSettings, retention};

/// Time for one request to the cluster, the first connection included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a new topic to have its leaders.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(15);

/// The wait between two looks at that.
const LEADERS_WAIT: Duration = Duration::from_millis(50);

/// The settings that are read back for a list.
const SHOWN: [&str; 6] = [
    "cleanup.policy",
    "retention.ms",
    "segment.ms",
    "max.compaction.lag.ms",
    "min.cleanable.dirty.ratio",
    "delete.retention.ms",
];

/// A topic as the cluster has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// How many partitions; 0 where it does not exist.
    pub partitions: usize,
    /// Replicas of the first partition.
    pub replicas: usize,
    /// `cleanup.policy` and the like.
    pub settings: BTreeMap<String, String>,
    /// Records between the first and the last offset of all partitions; compaction leaves holes in it.
    pub messages: i64,
}

impl fmt::Display for TopicInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.partitions == 0 {
            return write!(f, "{}: not there", self.name);
        }
        write!(
            f,
            "{}: {} partitions, {} replicas, {} offsets",
            self.name, self.partitions, self.replicas, self.messages
        )?;
        for (key, value) in &self.settings {
            write!(f, ", {key} {value}")?;
        }
        Ok(())
    }
}

/// The cluster's administration.
pub struct Admin {
    client: Arc<AdminClient<Context>>,
    access: KafkaAccess,
    config: ClientConfig,
    servers: String,
}

/// What metadata says of a topic.
struct Seen {
    partitions: Vec<i32>,
    replicas: usize,
    has_leaders: bool,
}

impl Admin {
    /// A client for a cluster; it connects in the background.
    ///
    /// # Errors
    /// [`SinkError::File`] where a file with a secret or a certificate is of no use, [`SinkError::Unavailable`] where
    /// librdkafka cannot start.
    pub fn new(access: impl Into<KafkaAccess>, client_id: &str) -> Result<Self, SinkError> {
        let access = access.into();
        let config = client::base_config(&access, client_id)?;
        let client = AdminClient::from_config_and_context(&config, Context::default())
            .map_err(|source| unavailable("failed to start a kafka client".to_owned(), source))?;
        Ok(Self {
            client: Arc::new(client),
            servers: access.servers.join(","),
            access,
            config,
        })
    }

    /// Creates and checks, only checks, or only connects, as the settings say; the names of what was created.
    ///
    /// # Errors
    /// [`SinkError::Misconfigured`] names the topic, what it has, what is needed, and the setting;
    /// [`SinkError::Unavailable`] where the cluster does not answer within some seconds.
    pub async fn prepare(&self, settings: &TopicSettings) -> Result<Vec<String>, SinkError> {
        settings.check()?;
        match settings.manage {
            ManageTopics::Create => {
                let created = self.create(settings).await?;
                self.verify(settings).await?;
                Ok(created)
            }
            ManageTopics::Verify => self.verify(settings).await.map(|()| Vec::new()),
            ManageTopics::Off => {
                let topic = settings.used.first().copied().unwrap_or(Topic::Deltas);
                let name = settings.topic_name(topic);
                self.look_up(&name).await.map(|_| Vec::new())
            }
        }
    }

    /// Creates what is missing, waits until it has leaders, and returns the names of what it created.
    /// What exists is not touched, so that no right to create is needed where all is there.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn create(&self, settings: &TopicSettings) -> Result<Vec<String>, SinkError> {
        let mut missing = Vec::new();
        for topic in settings.used.iter().copied() {
            let name = settings.topic_name(topic);
            if self.look_up(&name).await?.is_none() {
                missing.push((topic, name));
            }
        }
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<_> = missing
            .iter()
            .map(|(topic, name)| (name.as_str(), topic_config(*topic)))
            .collect();
        let new_topics: Vec<_> = wanted
            .iter()
            .map(|(name, config)| {
                let replication = TopicReplication::Fixed(settings.replication);
                let topic = NewTopic::new(name, settings.partitions, replication);
                config
                    .iter()
                    .fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        let results = self
            .client
            .create_topics(&new_topics, &admin_options())
            .await
            .map_err(|source| {
                unavailable(
                    format!("failed to create topics on {}", self.servers),
                    source,
                )
            })?;
        for result in results {
            if let Err((name, code)) = result
                && code != Code::TopicAlreadyExists
            {
                return Err(creation_error(&name, code, settings));
            }
        }
        self.await_leaders(&missing).await?;
        Ok(missing.into_iter().map(|(_, name)| name).collect())
    }

    /// Creates those of these topics that are missing, with as many partitions as `like` has, or as configured where that is not
    /// there either; or only checks that they are there, or leaves them alone, as the settings say.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn ensure_like(
        &self,
        like: &str,
        names: &[&str],
        settings: &TopicSettings,
    ) -> Result<(), SinkError> {
        if settings.manage == ManageTopics::Off {
            return Ok(());
        }
        let model = self.look_up(like).await?;
        let partitions = model.map_or(0, |seen| seen.partitions.len());
        let partitions = i32::try_from(partitions)
            .ok()
            .filter(|count| *count > 0)
            .unwrap_or(settings.partitions);
        for name in names {
            if self.look_up(name).await?.is_some() {
                continue;
            }
            if settings.manage == ManageTopics::Verify {
                return Err(SinkError::Misconfigured {
                    message: format!(
                        "topic `{name}` is not there: create it, or set topics.manage = \"create\""
                    ),
                });
            }
            let replication = TopicReplication::Fixed(settings.replication);
            let topic = NewTopic::new(name, partitions, replication);
            let results = self.client.create_topics(&[topic], &admin_options()).await;
            let results = results.map_err(|source| {
                unavailable(format!("failed to create the topic `{name}`"), source)
            })?;
            for result in results {
                if let Err((name, code)) = result
                    && code != Code::TopicAlreadyExists
                {
                    return Err(creation_error(&name, code, settings));
                }
            }
        }
        Ok(())
    }

    /// Checks that each topic exists and has the cleanup policy that its readers rely on.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn verify(&self, settings: &TopicSettings) -> Result<(), SinkError> {
        for topic in settings.used.iter().copied() {
            let name = settings.topic_name(topic);
            let Some(seen) = self.look_up(&name).await? else {
                return Err(SinkError::Misconfigured {
                    message: format!(
                        "topic `{name}` is not there: create it, set topics.manage = \"create\", or \
                         choose another topics.prefix"
                    ),
                });
            };
            if seen.partitions.is_empty() {
                return Err(SinkError::Misconfigured {
                    message: format!("topic `{name}` has no partitions"),
                });
            }
            let config = self.describe(&name).await?;
            // Every topic has one. Where the right is missing, librdkafka gives no settings, and no error.
            let Some(found) = config.get("cleanup.policy") else {
                let code = Code::TopicAuthorizationFailed;
                return Err(access_error(&name, "DescribeConfigs", code));
            };
            let wanted = cleanup_policy(topic);
            if policy_words(found) != policy_words(wanted) {
                return Err(SinkError::Misconfigured {
                    message: format!(
                        "topic `{name}` has cleanup.policy `{found}`, and `{wanted}` is needed: \
                         alter the topic, choose another topics.prefix, or set \
                         topics.manage = \"off\" to go without this check"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Shows the topics as they are.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn list(&self, settings: &TopicSettings) -> Result<Vec<TopicInfo>, SinkError> {
        let mut infos = Vec::new();
        for topic in settings.used.iter().copied() {
            let name = settings.topic_name(topic);
            let mut info = TopicInfo {
                name: name.clone(),
                partitions: 0,
                replicas: 0,
                settings: BTreeMap::new(),
                messages: 0,
            };
            if let Some(seen) = self.look_up(&name).await? {
                info.partitions = seen.partitions.len();
                info.replicas = seen.replicas;
                info.settings = self.describe(&name).await?;
                info.messages = self.count_messages(&name, seen.partitions).await?;
            }
            infos.push(info);
        }
        Ok(infos)
    }

    /// What the cluster says of a topic; `None` where it does not exist.
    async fn look_up(&self, name: &str) -> Result<Option<Seen>, SinkError> {
        let tried = format!("failed to ask {} for the topic `{name}`", self.servers);
        let (client, topic) = (Arc::clone(&self.client), name.to_owned());
        let asked = self.blocking(&tried, move || {
            client.inner().fetch_metadata(Some(&topic), REQUEST_TIMEOUT)
        });
        let metadata = match asked.await {
            Ok(metadata) => metadata,
            // Every question begins here, and librdkafka's answer says only that there is none.
            Err(error) => return Err(trouble::explain(&self.access, &self.config, error).await),
        };
        let Some(found) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(None);
        };
        match found.error() {
            None | Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {}
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => return Ok(None),
            Some(error) => return Err(access_error(name, "Describe", error.into())),
        }
        let partitions = found.partitions();
        Ok(Some(Seen {
            partitions: partitions.iter().map(|one| one.id()).collect(),
            replicas: partitions.first().map_or(0, |one| one.replicas().len()),
            has_leaders: !partitions.is_empty() && partitions.iter().all(|one| one.leader() >= 0),
        }))
    }

    /// The settings of a topic, those of [`SHOWN`].
    async fn describe(&self, name: &str) -> Result<BTreeMap<String, String>, SinkError> {
        let results = self
            .client
            .describe_configs(&[ResourceSpecifier::Topic(name)], &admin_options())
            .await
            .map_err(|source| {
                let tried = format!("failed to read the settings of the topic `{name}`");
                unavailable(tried, source)
            })?;
        let mut settings = BTreeMap::new();
        for result in results {
            let resource = result.map_err(|code| access_error(name, "DescribeConfigs", code))?;
            for entry in resource.entries {
                if SHOWN.contains(&entry.name.as_str())
                    && let Some(value) = entry.value
                {
                    settings.insert(entry.name, value);
                }
            }
        }
        Ok(settings)
    }

    /// Records between the first and the last offset. A broker that has just become a partition's leader may
    /// not know it yet, and is asked again for a while.
    async fn count_messages(&self, name: &str, partitions: Vec<i32>) -> Result<i64, SinkError> {
        let tried = format!("failed to ask for the offsets of the topic `{name}`");
        let deadline = Instant::now() + LEADERS_TIMEOUT;
        let mut sum = 0;
        for partition in partitions {
            let (low, high) = loop {
                let (client, topic) = (Arc::clone(&self.client), name.to_owned());
                let asked = tokio::task::spawn_blocking(move || {
                    let client = client.inner();
                    client.fetch_watermarks(&topic, partition, REQUEST_TIMEOUT)
                });
                match asked.await {
                    Ok(Ok(offsets)) => break offsets,
                    Ok(Err(error)) => {
                        let passes = error
                            .rdkafka_error_code()
                            .is_some_and(|code| classify(code) == Class::Retry);
                        if !passes || Instant::now() >= deadline {
                            return Err(unavailable(tried, error));
                        }
                    }
                    Err(source) => {
                        return Err(SinkError::Unavailable {
                            message: tried,
                            source: Some(Box::new(source)),
                        });
                    }
                }
                tokio::time::sleep(LEADERS_WAIT).await;
            };
            sum += (high - low).max(0);
        }
        Ok(sum)
    }

    async fn await_leaders(&self, topics: &[(Topic, String)]) -> Result<(), SinkError> {
        let deadline = Instant::now() + LEADERS_TIMEOUT;
        for (_, name) in topics {
            while !self
                .look_up(name)
                .await?
                .is_some_and(|seen| seen.has_leaders)
            {
                if Instant::now() >= deadline {
                    return Err(SinkError::Unavailable {
                        message: format!("the new topic `{name}` has no leaders yet"),
                        source: None,
                    });
                }
                tokio::time::sleep(LEADERS_WAIT).await;
            }
        }
        Ok(())
    }

    /// Runs a call of librdkafka that blocks, for [`REQUEST_TIMEOUT`] at most.
    async fn blocking<T: Send + 'static>(
        &self,
        tried: &str,
        call: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, SinkError> {
        match tokio::task::spawn_blocking(call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(unavailable(tried.to_owned(), source)),
            Err(source) => Err(SinkError::Unavailable {
                message: tried.to_owned(),
                source: Some(Box::new(source)),
            }),
        }
    }
}

/// The cleanup policy of a topic.
fn cleanup_policy(topic: Topic) -> &'static str {
    match topic {
        Topic::Deltas | Topic::Processes | Topic::Ports => "delete",
        Topic::Records | Topic::Pns | Topic::Status => "compact,delete",
    }
}

/// The settings with which a topic is created.
fn topic_config(topic: Topic) -> Vec<(&'static str, String)> {
    let mut config = vec![
        ("cleanup.policy", cleanup_policy(topic).to_owned()),
        ("retention.ms", retention(topic).as_millis().to_string()),
    ];
    match topic {
        Topic::Deltas | Topic::Processes | Topic::Ports => {}
        Topic::Records | Topic::Pns | Topic::Status => config.extend([
            ("segment.ms", "3600000".to_owned()),
            ("max.compaction.lag.ms", "3600000".to_owned()),
            ("min.cleanable.dirty.ratio", "0.2".to_owned()),
            ("delete.retention.ms", "86400000".to_owned()),
        ]),
    }
    config
}

/// The words of a cleanup policy: their order means nothing.
fn policy_words(policy: &str) -> Vec<&str> {
    let mut words: Vec<_> = policy
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    words.sort_unstable();
    words
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

/// Why a topic was not created. A cluster that is still gathering its brokers has too few for a replication
/// factor, so that one is tried again.
fn creation_error(name: &str, code: Code, settings: &TopicSettings) -> SinkError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the codes are librdkafka's and not exhaustive"
    )]
    match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            let or_by_hand = "create it by hand and set topics.manage = \"verify\"";
            refused(name, "Create", or_by_hand, code)
        }
        Code::PolicyViolation
        | Code::InvalidPartitions
        | Code::InvalidConfig
        | Code::InvalidTopic => SinkError::Misconfigured {
            message: format!(
                "the cluster refuses to create the topic `{name}` with topics.partitions = {} and \
                 topics.replication = {} ({code}): alter these, grant the right to create, or \
                 create it by hand and set topics.manage = \"verify\"",
                settings.partitions, settings.replication
            ),
        },
        _ => SinkError::Unavailable {
            message: format!(
                "failed to create the topic `{name}` with topics.replication = {}",
                settings.replication
            ),
            source: Some(Box::new(code)),
        },
    }
}

/// Why a topic could not be looked at, which needs this operation.
fn access_error(name: &str, operation: &'static str, code: Code) -> SinkError {
    if matches!(
        code,
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed
    ) {
        refused(name, operation, "set topics.manage = \"off\"", code)
    } else if code == Code::InvalidTopic {
        SinkError::Misconfigured {
            message: format!(
                "the cluster takes no topic `{name}` ({code}): choose another topics.prefix"
            ),
        }
    } else {
        SinkError::Unavailable {
            message: format!("failed to look at the topic `{name}`"),
            source: Some(Box::new(code)),
        }
    }
}

/// A right is missing.
fn refused(name: &str, operation: &'static str, or: &str, code: Code) -> SinkError {
    SinkError::Denied {
        message: format!(
            "kafka does not let this user do {operation} on the topic `{name}` ({code}): grant it, or {or}"
        ),
    }
}
