//! Texts that many mappings share (hosts, images, boots), each kept once and counted.

use std::collections::HashMap;
use std::sync::Arc;

/// A kept text. It is a number of the [`Interner`] that gave it, and valid until it was released as often as taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TextId(u32);

#[derive(Debug, Default)]
struct Slot {
    text: Option<Arc<str>>,
    uses: u32,
}

/// The texts.
#[derive(Debug, Default)]
pub(super) struct Interner {
    ids: HashMap<Arc<str>, TextId>,
    slots: Vec<Slot>,
    free: Vec<TextId>,
}

impl Interner {
    /// Keeps a text once more.
    pub(super) fn take(&mut self, text: &str) -> TextId {
        if let Some(id) = self.ids.get(text) {
            if let Some(slot) = self.slots.get_mut(id.0 as usize) {
                slot.uses = slot.uses.saturating_add(1);
            }
            return *id;
        }
        let text: Arc<str> = text.into();
        let slot = Slot {
            text: Some(Arc::clone(&text)),
            uses: 1,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = slot;
                id
            }
            None => {
                let number = u32::try_from(self.slots.len())
                    .expect("a table of four thousand million texts does not fit into memory");
                self.slots.push(slot);
                TextId(number)
            }
        };
        self.ids.insert(text, id);
        id
    }

    /// Gives a text back; the last one to do so frees it.
    pub(super) fn release(&mut self, id: TextId) {
        let Some(slot) = self.slots.get_mut(id.0 as usize) else {
            return;
        };
        slot.uses = slot.uses.saturating_sub(1);
        if slot.uses == 0
            && let Some(text) = slot.text.take()
        {
            self.ids.remove(&text);
            self.free.push(id);
        }
    }

    /// The text that is kept.
    pub(super) fn text(&self, id: TextId) -> &str {
        let slot = self.slots.get(id.0 as usize);
        slot.and_then(|slot| slot.text.as_deref())
            .unwrap_or_default()
    }

    /// The number of a text that is kept, without keeping it once more.
    pub(super) fn find(&self, text: &str) -> Option<TextId> {
        self.ids.get(text).copied()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_freed_with_its_last_use() {
        let mut interner = Interner::default();
        let (one, again) = (interner.take("nginx"), interner.take("nginx"));
        let other = interner.take("redis");
        assert_eq!(one, again);
        assert_ne!(one, other);
        interner.release(one);
        assert_eq!(interner.text(again), "nginx");
        interner.release(again);
        assert_eq!(interner.find("nginx"), None);
        assert_eq!(interner.len(), 1);
        // The freed number is used again.
        let third = interner.take("busybox");
        assert_eq!(interner.text(third), "busybox");
        assert_eq!(interner.text(other), "redis");
    }
}
