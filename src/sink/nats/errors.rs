//! What a refusal of JetStream means for a message: the one place that decides it.

/// What to do after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It heals by itself: send again.
    Retry,
    /// A person may have to act: say so, and send again.
    RetryAndWarn,
    /// No stream takes the subject: create it again where that is ours to do, say so, and send again.
    NoStream,
    /// The subject's last message is another than was expected: look which, and send again.
    WrongLastSequence,
    /// The message is refused for what it is.
    Rejected,
}

/// Classifies the `err_code` of an answer (nats-server, `server/errors.json`).
///
/// Whatever is not known here counts as a person's matter and is tried again.
pub(crate) fn classify(err_code: u64) -> Class {
    match err_code {
        // Wrong last sequence, in its two forms.
        10071 | 10164 => Class::WrongLastSequence,
        // The message is larger than the stream takes; its headers are.
        10054 | 10097 => Class::Rejected,
        // Stream not found.
        10059 => Class::NoStream,
        // The cluster is gathering itself: incomplete, not assigned, unavailable, not the leader.
        10004 | 10007 | 10008 | 10009 => Class::Retry,
        // A message of the same id, or of the same subject, is just being stored; too many requests at once.
        10158 | 10163 | 10167 => Class::Retry,
        // 10002, 10023, 10047: resources of account, server, storage. 10039, 10076: JetStream is not
        // enabled. 10077: not stored, which is also how a full stream says it. And what is not known.
        _ => Class::RetryAndWarn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_class() {
        for (class, codes) in [
            (Class::WrongLastSequence, vec![10071, 10164]),
            (Class::Rejected, vec![10054, 10097]),
            (Class::NoStream, vec![10059]),
            (Class::Retry, vec![10008, 10009, 10167]),
            (
                Class::RetryAndWarn,
                vec![10002, 10023, 10039, 10047, 10076, 10077, 1],
            ),
        ] {
            for code in codes {
                assert_eq!(classify(code), class, "{code}");
            }
        }
    }
}
