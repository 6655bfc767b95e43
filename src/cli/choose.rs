//! Which container a person means by an id, a beginning of one, or a name.

use super::gather::Found;
use crate::runtime::text;

/// Candidates that are named when a name is ambiguous.
const CANDIDATES_MAX: usize = 16;

/// The one container that is meant, among those that `counts` lets through: by its whole id, else by its name, else
/// by the beginning of its id. Where several match, those that run count before those that do not: a pod keeps the
/// earlier attempts of a container.
///
/// # Errors
/// A text that names the candidates, or says that there is none.
pub(super) fn choose<'a>(
    found: &'a [Found],
    wanted: &str,
    counts: &dyn Fn(&Found) -> bool,
) -> Result<&'a Found, String> {
    let matching = |matches: &dyn Fn(&Found) -> bool| -> Vec<&'a Found> {
        found
            .iter()
            .filter(|row| counts(row) && matches(row))
            .collect()
    };
    let by_id = matching(&|row| row.container.id.as_str() == wanted);
    let by_name = matching(&|row| names(row).iter().any(|name| name == wanted));
    let by_prefix =
        matching(&|row| !wanted.is_empty() && row.container.id.as_str().starts_with(wanted));
    let matches = [by_id, by_name, by_prefix]
        .into_iter()
        .find(|matches| !matches.is_empty())
        .unwrap_or_default();
    let live: Vec<&Found> = matches
        .iter()
        .copied()
        .filter(|row| row.container.state.is_live())
        .collect();

    let wanted = text::escaped(&text::bounded(wanted));
    match (live.as_slice(), matches.as_slice()) {
        ([row], _) | ([], [row]) => Ok(row),
        ([], []) => Err(format!("no container has the id or name `{wanted}`")),
        _ => {
            let mut lines = vec![format!("`{wanted}` may mean any of these:")];
            lines.extend(
                matches
                    .iter()
                    .take(CANDIDATES_MAX)
                    .map(|row| candidate(row)),
            );
            if matches.len() > CANDIDATES_MAX {
                lines.push(format!("  and {} more", matches.len() - CANDIDATES_MAX));
            }
            Err(lines.join("\n"))
        }
    }
}

fn names(found: &Found) -> Vec<String> {
    let container = &found.container;
    let mut names = vec![container.name.clone()];
    if let Some(pod) = &container.pod {
        names.push(format!("{}/{}", pod.name, container.name));
        names.push(format!("{}/{}/{}", pod.namespace, pod.name, container.name));
    }
    names
}

fn candidate(found: &Found) -> String {
    let name = names(found).pop().unwrap_or_default();
    format!(
        "  {}  {}  {}  {}",
        found.container.id,
        text::escaped(&name),
        found.container.state.as_str(),
        found.client.info().endpoint.uri(),
    )
}
