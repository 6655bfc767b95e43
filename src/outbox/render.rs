//! From what the reconciler decided to what is owed: coalesced, then rendered, by two threads where there is much of it.

use super::{Owed, coalesce};
use crate::halves::in_halves;
use crate::model::message::Message;
use crate::wire::Renderer;

/// From how many messages on a second thread takes half of them: some milliseconds of work, against some ten
/// microseconds for the thread. Only storms and cold starts come to so many in one commit.
const HALVED_MIN: usize = 512;

/// Renders what one transaction owes, in order, without what it would overwrite itself.
pub fn render(messages: Vec<(u64, Message)>, renderer: &Renderer, now_ms: u64) -> Vec<Owed> {
    let messages = coalesce(messages);
    let render = |messages: &[(u64, Message)]| -> Vec<Owed> {
        let owed = messages.iter().map(|(row, message)| {
            let outgoing = renderer.render(message, *row, now_ms);
            Owed::new(message, outgoing)
        });
        owed.collect()
    };
    if messages.len() < HALVED_MIN {
        return render(&messages);
    }
    in_halves("renderer", &messages, render)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContainerId;

    #[test]
    fn many_messages_are_rendered_in_their_order() {
        let count = HALVED_MIN as u64 * 2 + 1;
        let tombstone = |row: u64| {
            let id = ContainerId::parse(&format!("{:064x}", row % (count - 1)))?;
            Some((row, Message::RecordTombstone { id }))
        };
        let messages: Vec<_> = (0..count).filter_map(tombstone).collect();
        let owed = render(messages, &super::super::tests::renderer(), 1);
        let rows: Vec<_> = owed.iter().map(|owed| owed.outgoing.row).collect();
        // The first one's key comes again at the end.
        assert_eq!(rows, (1..count).collect::<Vec<_>>());
    }
}
