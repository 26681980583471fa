//! Names that look like a setting but are none.
//!
//! An environment is shared with every other program, so an unknown variable cannot be an error. But `LISTEN_ADR` was
//! meant for us, and silence about it would start a proxy other than the one its operator described.

use super::NAMES;

/// Real names of other programs that come close to ours.
const FOREIGN: [&str; 3] = ["DATABASE_URI", "REDIS_URI", "SSL_CERT_FILE"];

/// The setting that this variable's name was probably meant to be. `None` for our own names and for far ones.
pub(super) fn meant(variable: &str) -> Option<&'static str> {
    if NAMES.contains(&variable) || FOREIGN.contains(&variable) {
        return None;
    }
    let upper = variable.to_ascii_uppercase();
    // Short names have many innocent neighbours: two changes turn HOST_KEY into ROOT_KEY.
    let tolerance = |name: &str| if name.len() >= 9 { 2 } else { 1 };
    NAMES
        .into_iter()
        .map(|name| (distance(&upper, name), name))
        .filter(|(changes, name)| *changes <= tolerance(name))
        .min()
        .map(|(_, name)| name)
}

/// The known key that is at most two changes away, if any: for the hint in an error that comes anyway.
pub(super) fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = found.to_ascii_lowercase();
    known
        .iter()
        .map(|name| (distance(&lower, name), *name))
        .filter(|(changes, _)| *changes <= 2)
        .min()
        .map(|(_, name)| name)
}

/// How many letters must be inserted, dropped, replaced or swapped with their neighbour (Damerau-Levenshtein, each
/// stretch changed at most once).
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    // A longer name is far anyway; this keeps the work small for variables of any length.
    if from.len().abs_diff(to.len()) > 2 {
        return usize::MAX;
    }
    let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX);
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous_from = None;
    for (row, &letter) in from.iter().enumerate() {
        let mut current = vec![row.saturating_add(1)];
        let mut previous_to = None;
        for (column, &wanted) in to.iter().enumerate() {
            let replaced = at(&last, column).saturating_add(usize::from(letter != wanted));
            let dropped = at(&last, column.saturating_add(1)).saturating_add(1);
            let inserted = at(&current, column).saturating_add(1);
            let mut best = replaced.min(dropped).min(inserted);
            if previous_from == Some(wanted)
                && previous_to == Some(letter)
                && let Some(two_back) = column.checked_sub(1)
            {
                best = best.min(at(&before_last, two_back).saturating_add(1));
            }
            current.push(best);
            previous_to = Some(wanted);
        }
        before_last = std::mem::replace(&mut last, current);
        previous_from = Some(letter);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_changes() {
        for (from, to, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("abc", "ab", 1),
            ("ab", "abc", 1),
            ("abc", "acb", 1),
            ("abcd", "badc", 2),
            ("LISTEN_ADR", "LISTEN_ADDR", 1),
            ("MANAGMENT_TOKEN", "MANAGEMENT_TOKEN", 1),
            ("abc", "xyz", 3),
        ] {
            assert_eq!(distance(from, to), expected, "{from} → {to}");
        }
    }

    #[test]
    fn typos_are_recognized_and_strangers_left_alone() {
        for (variable, expected) in [
            ("LISTEN_ADR", Some("LISTEN_ADDR")),
            ("LISTEN_ADDRES", Some("LISTEN_ADDR")),
            ("MANAGMENT_TOKEN", Some("MANAGEMENT_TOKEN")),
            ("MANAGEMENT_TOKNE", Some("MANAGEMENT_TOKEN")),
            ("LOG_LEVL", Some("LOG_LEVEL")),
            ("DATADIR", Some("DATA_DIR")),
            ("listen_addr", Some("LISTEN_ADDR")),
            ("LISTEN_ADDR", None),
            ("LOG_FILE", None),
            ("HOST_KEY", None),
            ("DATABASE_URI", None),
            ("PATH", None),
            ("CONFIRM", None),
            ("OPENAI_API_KEY", None),
        ] {
            assert_eq!(meant(variable), expected, "{variable}");
        }
    }
}
