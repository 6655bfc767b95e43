//! What an error of Kafka means for a message: the one place that decides it.

use rdkafka::error::RDKafkaErrorCode as Code;

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// librdkafka's queue is full: the same producer takes it a little later.
    Wait,
    /// It heals by itself: send again.
    Retry,
    /// A person may have to act: say so, and send again.
    RetryAndWarn,
    /// The message's time is not taken: send again with another one.
    Timestamp,
    /// The message, if it was alone in its batch, is refused for what it is.
    Rejected,
    /// The producer is of no use any more: build another one, and send again.
    Fatal,
}

/// Classifies an error of a send or of a delivery.
///
/// Whatever is not known here counts as a person's matter and is tried again: nothing is dropped for a code
/// that a newer broker invents.
pub(crate) fn classify(code: Code) -> Class {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the codes are librdkafka's and not exhaustive"
    )]
    match code {
        Code::QueueFull => Class::Wait,

        Code::BrokerTransportFailure
        | Code::BrokerDestroy
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::Retry
        | Code::WaitCache
        | Code::Interrupted
        | Code::Outdated
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::ISRInsufficient
        | Code::InvalidMessage
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NetworkException
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::KafkaStorageError
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::UnknownTopicId
        | Code::ThrottlingQuotaExceeded => Class::Retry,

        Code::InvalidTimestamp => Class::Timestamp,

        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord => Class::Rejected,

        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::Fenced
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::UnknownProducerId
        | Code::ProducerFenced => Class::Fatal,

        // TopicAuthorizationFailed, ClusterAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition,
        // UnknownPartition, PolicyViolation, Authentication, SaslAuthenticationFailed, SSL, InvalidTopic,
        // InvalidConfig, UnsupportedForMessageFormat and whatever else there is.
        _ => Class::RetryAndWarn,
    }
}

/// Whether a message was merely swept out along with a culprit, or with its producer: the code tells nothing of why.
pub(super) fn is_swept_out(code: Code) -> bool {
    matches!(
        code,
        Code::PurgeQueue | Code::PurgeInflight | Code::Fatal | Code::GaplessGuarantee
    )
}

/// What to say where the right to write is missing; `None` where it is something else.
pub(super) fn denied_write(code: Code, topic: &str) -> Option<String> {
    if code == Code::TopicAuthorizationFailed {
        Some(format!(
            "kafka does not let this user do Write on the topic `{topic}` ({code}): grant it"
        ))
    } else if code == Code::ClusterAuthorizationFailed {
        Some(format!(
            "kafka does not let this user do Write on the topic `{topic}`, nor IdempotentWrite on the cluster ({code}): \
             grant the first, and before Kafka 2.8 the second"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_class() {
        for (class, codes) in [
            (Class::Wait, vec![Code::QueueFull]),
            (
                Class::Retry,
                vec![
                    Code::BrokerTransportFailure,
                    Code::MessageTimedOut,
                    Code::RequestTimedOut,
                    Code::NotEnoughReplicas,
                    Code::NotEnoughReplicasAfterAppend,
                    Code::NotLeaderForPartition,
                    Code::PurgeQueue,
                    Code::PurgeInflight,
                    Code::InvalidMessage,
                ],
            ),
            (
                Class::RetryAndWarn,
                vec![
                    Code::TopicAuthorizationFailed,
                    Code::ClusterAuthorizationFailed,
                    Code::UnknownTopic,
                    Code::UnknownTopicOrPartition,
                    Code::UnknownPartition,
                    Code::PolicyViolation,
                    Code::SaslAuthenticationFailed,
                    Code::Unknown,
                    Code::InvalidRequiredAcks,
                ],
            ),
            (Class::Timestamp, vec![Code::InvalidTimestamp]),
            (
                Class::Rejected,
                vec![
                    Code::MessageSizeTooLarge,
                    Code::MessageBatchTooLarge,
                    Code::InvalidRecord,
                ],
            ),
            (
                Class::Fatal,
                vec![
                    Code::Fatal,
                    Code::GaplessGuarantee,
                    Code::OutOfOrderSequenceNumber,
                    Code::UnknownProducerId,
                    Code::InvalidProducerEpoch,
                ],
            ),
        ] {
            for code in codes {
                assert_eq!(classify(code), class, "{code:?}");
            }
        }
    }
}
