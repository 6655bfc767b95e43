//! How deltas are stored: those of one commit one after another, in chunks.
//!
//! ```text
//! Head | StoredDelta | StoredDelta | …        (postcard, each right behind the one before)
//! ```
//!
//! A row of a table for each delta would cost more than the delta: a chunk is put, read and removed as one. Its
//! key is the row of its first delta; those of the others ascend, with rows of state messages in between.

use serde::{Deserialize, Serialize};

use super::Owed;

/// Most bytes of a chunk, but for one with a single delta. The database rounds a value up to a power of two of
/// pages; with its own overhead this fills 64 KiB.
const CHUNK_BYTES_MAX: usize = 64 * 1024 - 256;
/// What a delta costs besides its value.
const DELTA_OVERHEAD_BYTES: usize = 48;

/// What a chunk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// How many deltas there are.
    pub(super) count: u32,
    /// Their bytes, as they count against the limit.
    pub(super) bytes: u64,
    /// The row of the last one.
    pub(super) last_row: u64,
    /// The first seq that is told of.
    pub(super) seq_from: u64,
    /// The last one.
    pub(super) seq: u64,
}

/// A delta as it is stored. What follows from the host, the epoch and `seq` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredDelta<'a> {
    pub(super) row: u64,
    /// The first seq of a `gap`; `seq` elsewhere.
    pub(super) seq_from: u64,
    pub(super) seq: u64,
    pub(super) time_ms: i64,
    pub(super) op: &'a str,
    #[serde(borrow, with = "serde_bytes")]
    pub(super) value: &'a [u8],
}

impl<'a> StoredDelta<'a> {
    /// A delta on its way in.
    pub(super) fn of(owed: &'a Owed) -> Self {
        Self {
            row: owed.outgoing.row,
            seq_from: owed.seq,
            seq: owed.seq,
            time_ms: owed.outgoing.time_ms,
            op: &owed.outgoing.op,
            value: owed.outgoing.value.as_deref().unwrap_or_default(),
        }
    }

    /// Its bytes, as they count against the limit.
    pub(super) fn bytes(&self) -> u64 {
        (self.value.len() + DELTA_OVERHEAD_BYTES) as u64
    }
}

/// Encodes deltas, in the order of their rows, into chunks, and gives each with its key to `put`.
///
/// # Errors
/// When a delta cannot be encoded, or what `put` says.
pub(super) fn encode<E: From<postcard::Error>>(
    deltas: &[StoredDelta<'_>],
    buffer: &mut Vec<u8>,
    mut put: impl FnMut(u64, &[u8], &Head) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = deltas;
    while let Some(first) = rest.first() {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|delta| {
            bytes += delta.value.len() + DELTA_OVERHEAD_BYTES;
            bytes <= CHUNK_BYTES_MAX
        });
        let count = fitting.count().max(1);
        let (chunk, behind) = rest.split_at(count);
        rest = behind;
        let last = chunk.last().unwrap_or(first);
        let head = Head {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            bytes: chunk.iter().map(StoredDelta::bytes).sum(),
            last_row: last.row,
            seq_from: first.seq_from,
            seq: last.seq,
        };
        buffer.clear();
        *buffer = postcard::to_extend(&head, std::mem::take(buffer))?;
        for delta in chunk {
            *buffer = postcard::to_extend(delta, std::mem::take(buffer))?;
        }
        put(first.row, buffer, &head)?;
    }
    Ok(())
}

/// What a chunk says of itself, and its deltas, in order. A delta that cannot be decoded is the last.
///
/// # Errors
/// When not even the head can be decoded.
pub(super) fn decode(chunk: &[u8]) -> Result<(Head, Deltas<'_>), postcard::Error> {
    let (head, rest) = postcard::take_from_bytes::<Head>(chunk)?;
    let left = head.count;
    Ok((head, Deltas { left, rest }))
}

/// The deltas of a chunk.
pub(super) struct Deltas<'a> {
    left: u32,
    rest: &'a [u8],
}

impl<'a> Iterator for Deltas<'a> {
    type Item = Result<StoredDelta<'a>, postcard::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let taken = postcard::take_from_bytes::<StoredDelta<'a>>(self.rest);
        match taken {
            Ok((delta, rest)) => {
                self.rest = rest;
                Some(Ok(delta))
            }
            Err(error) => {
                self.left = 0;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(row: u64, value: &[u8]) -> StoredDelta<'_> {
        StoredDelta {
            row,
            seq_from: row + 100,
            seq: row + 100,
            time_ms: -7,
            op: "start",
            value,
        }
    }

    #[test]
    fn deltas_come_back_whole_from_as_few_chunks_as_hold_them() {
        let (small, large) = (vec![b'a'; 1_000], vec![b'b'; 70_000]);
        let deltas: Vec<_> = (1..=100)
            .map(|row| delta(row, if row == 40 { &large } else { &small }))
            .collect();
        let mut chunks = Vec::new();
        let encoded = encode::<postcard::Error>(&deltas, &mut Vec::new(), |key, bytes, head| {
            chunks.push((key, bytes.to_vec(), *head));
            Ok(())
        });
        encoded.expect("they can be encoded");
        let keys: Vec<_> = chunks.iter().map(|(key, ..)| *key).collect();
        assert_eq!(keys, [1, 40, 41]);
        let mut found = Vec::new();
        for (key, bytes, head) in &chunks {
            let (decoded, of_chunk) = decode(bytes).expect("a chunk is decoded");
            assert_eq!(decoded, *head);
            let of_chunk: Vec<_> = of_chunk.map(|delta| delta.expect("is decoded")).collect();
            assert_eq!(of_chunk.len(), head.count as usize);
            assert_eq!(of_chunk.first().map(|delta| delta.row), Some(*key));
            assert_eq!(of_chunk.last().map(|delta| delta.row), Some(head.last_row));
            found.extend(of_chunk);
        }
        assert_eq!(found, deltas);
    }

    #[test]
    fn a_chunk_that_was_cut_ends_with_an_error_and_never_with_a_panic() {
        let deltas = [delta(1, b"one"), delta(2, b"two")];
        let mut chunk = Vec::new();
        let encoded = encode::<postcard::Error>(&deltas, &mut Vec::new(), |_, bytes, _| {
            chunk = bytes.to_vec();
            Ok(())
        });
        encoded.expect("they can be encoded");
        for end in 0..chunk.len() {
            let Ok((_, of_chunk)) = decode(&chunk[..end]) else {
                continue;
            };
            let read: Vec<_> = of_chunk.collect();
            assert!(read.last().is_some_and(Result::is_err), "cut at {end}");
        }
    }
}
