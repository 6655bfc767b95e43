//! What the cluster lets this user do with topics, as it says itself (KIP-430; brokers from 2.3 on). Asking changes nothing.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::bindings::{
    rd_kafka_AclOperation_t, rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new,
    rd_kafka_AdminOptions_set_include_authorized_operations, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy,
    rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicDescription_authorized_operations,
    rd_kafka_TopicDescription_name, rd_kafka_TopicDescription_t, rd_kafka_admin_op_t,
    rd_kafka_error_destroy, rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy,
    rd_kafka_event_error, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll,
};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::types::RDKafkaRespErr;

use super::client::{self, Context};
use super::unavailable;
use crate::sink::SinkError;
use crate::sink::access::KafkaAccess;

/// Time for the answer, the first connection included.
const PATIENCE: Duration = Duration::from_secs(10);

/// What may be done with a topic, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To read it.
    Read,
    /// To write to it.
    Write,
}

impl Operation {
    /// Its name in Kafka's access lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
        }
    }

    fn code(self) -> u32 {
        let operation = match self {
            Self::Read => rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ,
            Self::Write => rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE,
        };
        operation as u32
    }
}

/// Those of the operations on topics that this user has no right to. A topic that is not there, or of which the cluster
/// tells nothing, misses none.
///
/// # Errors
/// Where the cluster does not answer. Dropped midway, the question ends by itself within some seconds.
pub async fn missing(
    access: &KafkaAccess,
    client_id: &str,
    wanted: Vec<(String, Operation)>,
) -> Result<Vec<(String, Operation)>, SinkError> {
    let config = client::base_config(access, client_id)?;
    let tried = || "failed to ask kafka what this user may do".to_owned();
    let client = AdminClient::from_config_and_context(&config, Context::default())
        .map_err(|source| unavailable(tried(), source))?;
    let asking = tokio::task::spawn_blocking(move || {
        let mut names: Vec<_> = wanted.iter().map(|(topic, _)| topic.clone()).collect();
        names.dedup();
        let allowed = ask(&client, &names)?;
        let is_missing = |(topic, operation): &(String, Operation)| {
            let of_topic = allowed.get(topic);
            of_topic.is_some_and(|codes| !codes.contains(&operation.code()))
        };
        let missing: Vec<_> = wanted.into_iter().filter(is_missing).collect();
        Ok::<_, Option<RDKafkaRespErr>>(missing)
    });
    let unanswered = |source: Option<Box<dyn std::error::Error + Send + Sync>>| {
        let message = tried();
        SinkError::Unavailable { message, source }
    };
    match asking.await {
        Ok(Ok(missing)) => Ok(missing),
        Ok(Err(None)) => Err(unanswered(None)),
        Ok(Err(Some(error))) => {
            let code = rdkafka::error::RDKafkaErrorCode::from(error);
            Err(unanswered(Some(Box::new(code))))
        }
        Err(error) => Err(unanswered(Some(Box::new(error)))),
    }
}

/// The operations that the cluster allows, by topic; those without any are left out. `None` is no answer in time.
#[expect(
    unsafe_code,
    reason = "rdkafka has no wrapper for the description of topics; each object is made, used and destroyed here"
)]
fn ask(
    client: &AdminClient<Context>,
    topics: &[String],
) -> Result<BTreeMap<String, Vec<u32>>, Option<RDKafkaRespErr>> {
    // A topic's name has no zero byte: it was checked as part of the settings.
    let names: Vec<_> = topics
        .iter()
        .filter_map(|topic| CString::new(topic.as_str()).ok())
        .collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let patience_ms = c_int::try_from(PATIENCE.as_millis()).unwrap_or(c_int::MAX);
    let kafka = client.inner().native_ptr();
    // SAFETY: `kafka` lives as long as `client`. The names outlive the collection, which copies them anyway. Queue, options,
    // collection and event are destroyed once, after their last use; what is read of the event is copied before.
    unsafe {
        let queue = rd_kafka_queue_new(kafka);
        let api = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = rd_kafka_AdminOptions_new(kafka, api);
        let refused = rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !refused.is_null() {
            rd_kafka_error_destroy(refused);
        }
        let collection =
            rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        rd_kafka_DescribeTopics(kafka, collection, options, queue);
        let event = rd_kafka_queue_poll(queue, patience_ms);
        let answer = if event.is_null() {
            Err(None)
        } else {
            let error = rd_kafka_event_error(event);
            let result = rd_kafka_event_DescribeTopics_result(event);
            let answer = if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                Err(Some(error))
            } else if result.is_null() {
                Err(None)
            } else {
                let mut count = 0;
                let described = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
                let described = (0..count).map(|index| *described.add(index));
                Ok(described.filter_map(|topic| operations(topic)).collect())
            };
            rd_kafka_event_destroy(event);
            answer
        };
        rd_kafka_TopicCollection_destroy(collection);
        rd_kafka_AdminOptions_destroy(options);
        rd_kafka_queue_destroy(queue);
        answer
    }
}

/// A topic's name, and the operations that are allowed; `None` where none are told.
///
/// # Safety
/// `topic` is one of a result that lives.
#[expect(unsafe_code, reason = "see `ask`")]
unsafe fn operations(topic: *const rd_kafka_TopicDescription_t) -> Option<(String, Vec<u32>)> {
    let mut count = 0;
    // SAFETY: the result lives, and owns the name and `count` operations; they are read as the numbers that they are in C.
    unsafe {
        let first = rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        let name = rd_kafka_TopicDescription_name(topic);
        if ptr::eq(first, ptr::null()) || count == 0 || name.is_null() {
            return None;
        }
        let first = first.cast::<u32>();
        let codes = (0..count).map(|index| first.add(index).read()).collect();
        Some((CStr::from_ptr(name).to_string_lossy().into_owned(), codes))
    }
}
