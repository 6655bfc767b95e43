//! Whether the cluster still has what it acknowledged.
//!
//! The last acknowledged delta is looked for by its partition and offset. Kafka deletes by retention from a log's
//! beginning only: an offset below that says nothing. Beyond the log's end, under another message, or in a hole, it is
//! lost: the log was cut, restored from a copy, or made anew, and others may have written there since.

use std::ops::ControlFlow;
use std::sync::Arc;

use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::Offset;
use tokio_util::sync::CancellationToken;

use super::client;
use super::read::{Reader, ce_id, unreadable};
use super::topics::Admin;
use crate::model::Topic;
use crate::sink::access::KafkaAccess;
use crate::sink::{
    Checked, Landmark, Loss, ManageTopics, Position, SinkError, TopicSettings, Verdict, lost,
};

/// Messages before the loss that are looked at for the newest one of our own: what is not found there counts as
/// lost too, and is only sent twice.
const LOOKED_AT_MAX: i64 = 10_000;

/// What is asked, and where.
#[derive(Clone)]
pub(super) struct Checker {
    pub(super) access: KafkaAccess,
    pub(super) client_id: String,
    pub(super) topics: TopicSettings,
}

impl Checker {
    /// Creates topics that are gone, where that is ours to do, and looks for the last acknowledged delta.
    pub(super) async fn create_and_check(
        &self,
        last: Option<&Landmark>,
    ) -> Result<Checked, SinkError> {
        let created = match self.topics.manage {
            ManageTopics::Create => {
                Admin::new(&self.access, &self.client_id)?
                    .create(&self.topics)
                    .await?
            }
            ManageTopics::Verify | ManageTopics::Off => Vec::new(),
        };
        if !created.is_empty() {
            tracing::warn!(?created, "topics were gone and are created again");
        }
        self.check(last, &created).await
    }

    /// Looks for the last acknowledged delta. `created` are topics that were missing a moment ago.
    ///
    /// Dropped midway, the reading ends within a second.
    pub(super) async fn check(
        &self,
        last: Option<&Landmark>,
        created: &[String],
    ) -> Result<Checked, SinkError> {
        let stop = CancellationToken::new();
        let _dropped = stop.clone().drop_guard();
        let base = client::base_config(&self.access, &self.client_id)?;
        let servers = self.access.servers.join(",");
        let last = last.cloned();
        let topic = self.topics.topic_name(Topic::Deltas);
        let (looked_for, deltas) = (last.clone(), topic.clone());
        let looking = tokio::task::spawn_blocking(move || {
            let reader = Reader::open(&base, stop)?;
            let Some(cluster) = reader.cluster_id() else {
                return Ok(None);
            };
            let found = match &looked_for {
                Some(last) => look(&reader, &cluster, &topic, last)?,
                None => Verdict::Kept,
            };
            Ok::<_, KafkaError>(Some((cluster, found)))
        });
        let tried = || format!("failed to look for the last acknowledged delta at {servers}");
        let (cluster, mut verdict) = match looking.await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) => {
                return Err(SinkError::Unavailable {
                    message: format!("kafka at {servers} does not answer"),
                    source: None,
                });
            }
            Ok(Err(source)) => return Err(unreadable(&deltas, tried(), source)),
            Err(source) => {
                return Err(SinkError::Unavailable {
                    message: tried(),
                    source: Some(Box::new(source)),
                });
            }
        };
        if let (Some(last), Verdict::Kept, false) = (last, &verdict, created.is_empty()) {
            verdict = Verdict::Lost(Loss {
                reason: format!("these topics were gone: {}", created.join(", ")),
                newest: Some(last.ce_id),
            });
        }
        Ok(Checked {
            bus: cluster.into(),
            verdict,
        })
    }
}

fn look(
    reader: &Reader,
    cluster: &str,
    topic: &str,
    last: &Landmark,
) -> Result<Verdict, KafkaError> {
    if !last.bus.is_empty() && *last.bus != *cluster {
        let reason = format!("the cluster is `{cluster}`, and it was `{}`", last.bus);
        return Ok(lost(reason));
    }
    let Position { partition, offset } = last.position;
    let partitions = reader.partitions(topic)?;
    if !partitions.contains(&partition) {
        return Ok(lost(format!("`{topic}` has no partition {partition}")));
    }
    let (low, high) = reader.ends(topic, partition)?;
    if offset < low {
        tracing::debug!(
            topic,
            partition,
            offset,
            low,
            "the last delta went with the retention"
        );
        return Ok(Verdict::Kept);
    }
    let there = if offset < high {
        message_at(reader, topic, partition, offset)?
    } else {
        None
    };
    if there.as_deref() == Some(&*last.ce_id) {
        return Ok(Verdict::Kept);
    }
    let reason = match there {
        Some(other) => format!("offset {offset} of `{topic}` [{partition}] has `{other}`"),
        None => format!(
            "offset {offset} of `{topic}` [{partition}] is not there, which goes from {low} to {high}"
        ),
    };
    let until = offset.min(high);
    let newest = newest_own(
        reader,
        topic,
        partition,
        low.max(until - LOOKED_AT_MAX),
        last,
    )?;
    Ok(Verdict::Lost(Loss {
        reason: format!("{reason}, and `{}` was acknowledged there", last.ce_id),
        newest,
    }))
}

/// The CloudEvents id of the message at an offset: empty where it has none; `None` where there is no message.
fn message_at(
    reader: &Reader,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<Option<String>, KafkaError> {
    let mut found = None;
    reader.read(
        topic,
        &[(partition, Offset::Offset(offset))],
        &mut |message| {
            if message.offset() == offset {
                found = Some(ce_id(message).unwrap_or_default().to_owned());
            }
            ControlFlow::Break(())
        },
    )?;
    Ok(found)
}

/// The newest delta of our own that stands before the place of the loss. One that is newer than the last one that was
/// acknowledged was written after the loss, into the log as it is now, and says nothing of what survived.
fn newest_own(
    reader: &Reader,
    topic: &str,
    partition: i32,
    from: i64,
    last: &Landmark,
) -> Result<Option<Arc<str>>, KafkaError> {
    let until = place_of(&last.ce_id);
    let mut newest = None;
    reader.read(
        topic,
        &[(partition, Offset::Offset(from))],
        &mut |message| {
            if message.offset() >= last.position.offset {
                return ControlFlow::Break(());
            }
            if let Some(id) = ce_id(message)
                && let (Some((line, seq)), Some((last_line, last_seq))) = (place_of(id), until)
                && line == last_line
                && seq <= last_seq
            {
                newest = Some(Arc::from(id));
            }
            ControlFlow::Continue(())
        },
    )?;
    Ok(newest)
}

/// The host and epoch in a delta's CloudEvents id, and its seq.
fn place_of(id: &str) -> Option<(&str, u64)> {
    let (line, seq) = id.rsplit_once(':')?;
    Some((line, seq.parse().ok()?))
}
