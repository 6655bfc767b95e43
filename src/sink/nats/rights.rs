//! What the server lets this user do with a host's subjects. It tells only when something is tried.

use async_nats::HeaderMap;
use async_nats::Request;
use futures::future::join_all;

use super::connection::{ANSWER_TIMEOUT, Connection};
use super::naming::Naming;
use crate::model::Topic;
use crate::sink::TopicSettings;

/// The last word of the subjects that are tried.
const ITEM: &str = "doctor";
/// A sequence that no stream comes to: JSON's largest whole number.
const NO_SEQUENCE: &str = "9007199254740991";

/// What is not allowed, as the server says it.
pub(super) async fn missing(
    connection: &Connection,
    naming: &Naming,
    settings: &TopicSettings,
    host_id: &str,
) -> Vec<String> {
    let mark = connection.refusals();
    let tries = settings.used.iter().map(|topic| async {
        let place = naming.host_subject(*topic, host_id);
        let subject = match topic {
            Topic::Status => place,
            Topic::Deltas | Topic::Records | Topic::Pns | Topic::Processes | Topic::Ports => {
                format!("{place}.{ITEM}")
            }
        };
        publish(connection, &subject).await;
        connection.refused_since(mark, &subject)
    });
    let mut missing: Vec<_> = join_all(tries).await.into_iter().flatten().collect();
    if settings.used.contains(&Topic::Deltas) {
        let stream = naming.stream(Topic::Deltas);
        if let Ok(stream) = connection.jetstream.get_stream_no_info(&stream).await {
            let subjects = naming.host_subjects(Topic::Deltas, host_id);
            let asking = stream.get_last_raw_message_by_subject(&subjects);
            // Whether there is one says nothing.
            let _ = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
        }
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        missing.extend(connection.refused_since(mark, &subject));
    }
    missing
}

/// Publishes what JetStream refuses: it is said to replace a message that is not there.
async fn publish(connection: &Connection, subject: &str) {
    let mut headers = HeaderMap::new();
    let name = async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
    headers.insert(name, NO_SEQUENCE);
    let request = Request::new().headers(headers);
    let sending = connection.client.send_request(subject.to_owned(), request);
    // Without the right there is no answer at all.
    let _ = tokio::time::timeout(ANSWER_TIMEOUT, sending).await;
}
