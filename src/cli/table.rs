//! Tables for people: aligned columns of foreign text, escaped for a terminal and cut.

use std::io::{self, Write};

use crate::runtime::text;

/// Longest cell of a table, in characters.
const CELL_CHARS_MAX: usize = 64;

/// Characters of an id in a table, as Docker shows them.
const SHORT_ID_CHARS: usize = 12;

/// Writes lines of equally many cells, of which the first is the head.
pub(super) fn write<const COLUMNS: usize>(
    lines: &[[String; COLUMNS]],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut widths = [0; COLUMNS];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in lines {
        let padded: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}

/// The id's beginning; the whole of one that is a name (containerd's own containers).
pub(super) fn short_id(id: &str) -> String {
    if text::is_bare_sha256(id) {
        id.chars().take(SHORT_ID_CHARS).collect()
    } else {
        cell(id)
    }
}

/// Foreign text, escaped for a terminal and cut.
pub(super) fn cell(text: &str) -> String {
    let escaped = text::escaped(text);
    if escaped.chars().count() <= CELL_CHARS_MAX {
        return escaped;
    }
    let mut cut: String = escaped.chars().take(CELL_CHARS_MAX - 1).collect();
    cut.push('…');
    cut
}

/// The pod as `namespace/name`; `""` for none.
pub(super) fn pod(container: &crate::model::Container) -> String {
    let pod = container.pod.as_ref();
    pod.map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .unwrap_or_default()
}
