//! What an operator reads when a setting is wrong: always one line, always with the place.

use std::fmt;

/// Where a value stands: a flag, a variable, a line of `.env`, or file, line, column and key of the YAML file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place(String);

impl Place {
    pub(super) fn flag(name: &str) -> Self {
        Self(format!("--{}", name.to_ascii_lowercase().replace('_', "-")))
    }

    pub(super) fn variable(name: &str) -> Self {
        Self(shown(name))
    }

    pub(super) fn dotenv(line: usize) -> Self {
        Self(format!(".env:{line}"))
    }

    pub(super) fn whole_file(path: &str) -> Self {
        Self(shown(path))
    }

    pub(super) fn in_file(path: &str, line: u64, column: u64) -> Self {
        Self(format!("{}:{line}:{column}", shown(path)))
    }

    /// The same place, the name of what stands there added.
    pub(super) fn of(&self, name: &str) -> Self {
        Self(format!("{}: {}", self.0, shown(name)))
    }

    pub(super) fn error(&self, problem: impl AsRef<str>) -> SettingsError {
        SettingsError { place: self.0.clone(), problem: shown(problem.as_ref()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why the process does not start: one line that names the place, what was found and what is expected.
///
/// One type without variants, because every caller does the same with it: print it and stop. It never holds the
/// value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SettingsError {
    place: String,
    problem: String,
}

/// The text without anything that could break the line or steer a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .map(
            |letter| if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') { '\u{fffd}' } else { letter },
        )
        .collect()
}

/// The text in quotes, escaped, and cut where nobody would read on.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or("")),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_was_found() {
        let error = Place::variable("A\nB").of("c\r").error(format!("found {}\n", quoted("x\n\u{1b}[2J")));
        let text = error.to_string();
        assert!(text.chars().all(|letter| !letter.is_control()), "{text:?}");
        assert_eq!(quoted(&"a".repeat(81)), format!("\"{}\"…", "a".repeat(80)));
    }

    #[test]
    fn places_name_themselves() {
        assert_eq!(Place::flag("LISTEN_ADDR").to_string(), "--listen-addr");
        assert_eq!(Place::dotenv(3).of("LISTEN_ADDR").to_string(), ".env:3: LISTEN_ADDR");
        assert_eq!(Place::in_file("a.yaml", 7, 5).to_string(), "a.yaml:7:5");
    }
}
