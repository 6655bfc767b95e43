//! Whether JetStream still has what it acknowledged.
//!
//! The last acknowledged delta is looked for by its sequence. The stream of the deltas loses messages by age from its
//! beginning only: a sequence below that says nothing. Beyond its last sequence, under another message, or where
//! nothing is, it is lost; so is everything where the stream was made at another time.

use std::sync::Arc;

use async_nats::jetstream::stream::LastRawMessageErrorKind;

use super::connection::{ANSWER_TIMEOUT, Connection};
use super::naming::Naming;
use super::streams;
use crate::model::Topic;
use crate::sink::{Checked, Landmark, Loss, SinkError, Verdict, lost};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Looks for the last acknowledged delta. `created` are streams that were missing a moment ago.
///
/// # Errors
/// [`SinkError::Unavailable`] where the server cannot tell now.
pub(super) async fn check(
    connection: &Connection,
    naming: &Naming,
    last: Option<&Landmark>,
    created: &[String],
) -> Result<Checked, SinkError> {
    let name = naming.stream(Topic::Deltas);
    let Some(info) = streams::look_up(connection, &name).await? else {
        return Ok(Checked {
            bus: Arc::from(""),
            verdict: match last {
                Some(_) => lost(format!("the stream `{name}` is not there")),
                None => Verdict::Kept,
            },
        });
    };
    let bus: Arc<str> = info.created.unix_timestamp_nanos().to_string().into();
    let verdict = match last {
        None => Verdict::Kept,
        Some(last) if !last.bus.is_empty() && last.bus != bus => {
            lost(format!("the stream `{name}` was made anew"))
        }
        Some(last) => {
            let state = (info.state.first_sequence, info.state.last_sequence);
            let mark = connection.refusals();
            look(connection, naming, &name, state, last)
                .await
                .map_err(|source| {
                    let error = SinkError::Unavailable {
                        message: format!(
                            "failed to look for the last acknowledged delta in the stream `{name}`"
                        ),
                        source: Some(source),
                    };
                    let subject = format!("$JS.API.STREAM.MSG.GET.{name}");
                    connection.explain(mark, &subject, error)
                })?
        }
    };
    let verdict = match (last, verdict) {
        (Some(last), Verdict::Kept) if !created.is_empty() => Verdict::Lost(Loss {
            reason: format!("these streams were gone: {}", created.join(", ")),
            newest: Some(Arc::clone(&last.ce_id)),
        }),
        (_, verdict) => verdict,
    };
    Ok(Checked { bus, verdict })
}

async fn look(
    connection: &Connection,
    naming: &Naming,
    name: &str,
    (first_sequence, last_sequence): (u64, u64),
    last: &Landmark,
) -> Result<Verdict, BoxError> {
    let sequence = u64::try_from(last.position.offset).unwrap_or(0);
    if sequence < first_sequence {
        tracing::debug!(name, sequence, "the last delta went with the retention");
        return Ok(Verdict::Kept);
    }
    let stream = connection.jetstream.get_stream_no_info(name).await?;
    let there = if sequence <= last_sequence {
        let asking = stream.get_raw_message(sequence);
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await? {
            Ok(message) => Some(ce_id(&message.headers)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(error.into()),
        }
    } else {
        None
    };
    if there.as_deref() == Some(&*last.ce_id) {
        return Ok(Verdict::Kept);
    }
    let found = match there {
        Some(other) => format!("sequence {sequence} of `{name}` has `{other}`"),
        None => format!(
            "sequence {sequence} of `{name}` is not there, which goes from {first_sequence} to {last_sequence}"
        ),
    };
    let host_id = last.ce_id.split(':').next().unwrap_or_default();
    let subjects = naming.host_subjects(Topic::Deltas, host_id);
    let asking = stream.get_last_raw_message_by_subject(&subjects);
    let newest = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await? {
        Ok(message) if message.sequence < sequence => Some(Arc::from(ce_id(&message.headers))),
        Ok(_) => None,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Verdict::Lost(Loss {
        reason: format!("{found}, and `{}` was acknowledged there", last.ce_id),
        newest,
    }))
}

/// The CloudEvents `id` of a message; empty where it has none.
pub(super) fn ce_id(headers: &async_nats::HeaderMap) -> String {
    headers
        .get("ce-id")
        .map(|id| id.as_str().to_owned())
        .unwrap_or_default()
}
