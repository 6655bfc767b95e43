//! The rows of a connection's first list, kept for sketches: only at the beginning is much unknown.

use std::sync::{Mutex, PoisonError};

/// Rows of a list, until they are taken or the next list is made.
#[derive(Debug)]
pub(super) struct FirstList<Row>(Mutex<Kept<Row>>);

#[derive(Debug)]
enum Kept<Row> {
    Awaited,
    Rows(Vec<Row>),
    Over,
}

impl<Row> Default for FirstList<Row> {
    fn default() -> Self {
        Self(Mutex::new(Kept::Awaited))
    }
}

impl<Row> FirstList<Row> {
    /// Keeps what the first list gave; a later one ends it.
    pub(super) fn keep(&self, rows: impl FnOnce() -> Vec<Row>) {
        if let Kept::Awaited = self.replace(Kept::Over) {
            self.replace(Kept::Rows(rows()));
        }
    }

    /// Takes the rows; there are none but once.
    pub(super) fn take(&self) -> Vec<Row> {
        match self.replace(Kept::Over) {
            Kept::Rows(rows) => rows,
            Kept::Awaited | Kept::Over => Vec::new(),
        }
    }

    fn replace(&self, with: Kept<Row>) -> Kept<Row> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut kept, with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_list_is_kept_until_it_is_taken_or_the_next_one_is_made() {
        let list = FirstList::default();
        list.keep(|| vec![1, 2]);
        assert_eq!(list.take(), [1, 2]);
        list.keep(|| vec![3]);
        assert_eq!(list.take(), [0; 0]);

        let list = FirstList::default();
        list.keep(|| vec![1]);
        list.keep(|| vec![2]);
        assert_eq!(list.take(), [0; 0]);
    }
}
