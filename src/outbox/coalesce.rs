//! Leaves out, before anything is rendered, what the same transaction overwrites.

use std::collections::HashSet;

use crate::model::ContainerId;
use crate::model::message::Message;

/// What a state message is the newest of.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Record(&'a ContainerId),
    Namespace(u64, u64),
}

/// Keeps of each state key the last message only, at its place; deltas are all kept, in order.
pub(super) fn coalesce(messages: Vec<(u64, Message)>) -> Vec<(u64, Message)> {
    let mut seen = HashSet::new();
    let kept: Vec<bool> = messages
        .iter()
        .rev()
        .map(|(_, message)| match message {
            Message::Delta(_) => true,
            Message::Record { id, .. } | Message::RecordTombstone { id } => {
                seen.insert(Key::Record(id))
            }
            Message::Mapping { mapping, .. } => {
                seen.insert(Key::Namespace(mapping.pns_inode, mapping.generation))
            }
            Message::MappingTombstone {
                pns_inode,
                generation,
            } => seen.insert(Key::Namespace(*pns_inode, *generation)),
        })
        .collect();
    let mut kept = kept.into_iter().rev();
    let mut messages = messages;
    messages.retain(|_| kept.next().unwrap_or(true));
    messages
}
