//! The `.env` file: `KEY=VALUE` lines as shells and other tools write them.
//!
//! Values are taken as they stand: nothing is expanded, because a `$` in a generated password is common and a
//! silently changed one is hard to find.

use super::error::{Place, SettingsError};

/// One `KEY=VALUE`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// 1-based.
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// Reads the whole text. Blank lines and comments are skipped, a line that is neither is an error.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, SettingsError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut entries = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let line = index.saturating_add(1);
        let trimmed = raw.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let assignment = match trimmed.strip_prefix("export") {
            Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
            _ => trimmed,
        };
        // What stands on a broken line may be half a secret, so no error here shows it.
        let (key, value) = assignment
            .split_once('=')
            .map(|(key, value)| (key.trim_end(), value.trim_start()))
            .filter(|(key, _)| is_name(key))
            .ok_or_else(|| {
                Place::dotenv(line)
                    .error("found a line that is no assignment, expected KEY=VALUE, a comment or nothing")
            })?;
        let value = value_of(value).map_err(|problem| Place::dotenv(line).of(key).error(problem))?;
        entries.push(Entry { line, key: key.to_owned(), value });
    }
    Ok(entries)
}

fn is_name(key: &str) -> bool {
    key.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The value, unquoted. Unquoted text ends at ` #`, the start of a comment.
fn value_of(text: &str) -> Result<String, &'static str> {
    let mut letters = text.chars();
    let mut value = String::new();
    match letters.next() {
        Some('\'') => loop {
            match letters.next() {
                Some('\'') => break,
                Some(letter) => value.push(letter),
                None => return Err("found a value without its closing quote, expected ' at its end"),
            }
        },
        Some('"') => loop {
            match letters.next() {
                Some('"') => break,
                Some('\\') => match letters.next() {
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('r') => value.push('\r'),
                    Some(letter @ ('\\' | '"' | '$' | '`')) => value.push(letter),
                    _ => {
                        return Err(
                            "found an unknown escape, expected one of \\n \\t \\r \\\\ \\\" \\$ (or single quotes)",
                        );
                    }
                },
                Some(letter) => value.push(letter),
                None => return Err("found a value without its closing quote, expected \" at its end"),
            }
        },
        _ => {
            let before_comment = text
                .match_indices('#')
                .filter_map(|(at, _)| text.get(..at))
                .find(|before| before.is_empty() || before.ends_with([' ', '\t']));
            return Ok(before_comment.unwrap_or(text).trim_end().to_owned());
        }
    }
    let rest = letters.as_str();
    let is_comment = rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#');
    if rest.trim().is_empty() || is_comment {
        Ok(value)
    } else {
        Err("found text after the closing quote, expected the end of the line or a comment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_shells_write_them() {
        for (line, expected) in [
            ("KEY=value", "value"),
            ("  KEY = value  ", "value"),
            ("export KEY=value", "value"),
            ("export\tKEY=value", "value"),
            ("KEY=", ""),
            ("KEY=# nothing", ""),
            ("KEY=value # comment", "value"),
            ("KEY=value\t# comment", "value"),
            ("KEY=va#lue", "va#lue"),
            ("KEY=a\t# b # c", "a"),
            ("KEY=a=b==", "a=b=="),
            ("KEY='a # b'", "a # b"),
            ("KEY='a\\n$b' # comment", "a\\n$b"),
            ("KEY=\"a \\\"b\\\" \\n\\t\\\\ \\$c\"", "a \"b\" \n\t\\ $c"),
            ("KEY=$OTHER", "$OTHER"),
            ("KEY=ü", "ü"),
        ] {
            let entries = parse(line).unwrap();
            assert_eq!(entries, [Entry { line: 1, key: "KEY".into(), value: expected.into() }], "{line}");
        }
    }

    #[test]
    fn lines_are_counted_and_comments_skipped() {
        let entries = parse("\u{feff}# head\r\n\r\nA=1\r\n   # more\nB=2").unwrap();
        let found: Vec<_> =
            entries.iter().map(|entry| (entry.line, entry.key.as_str(), entry.value.as_str())).collect();
        assert_eq!(found, [(3, "A", "1"), (5, "B", "2")]);
    }

    #[test]
    fn a_bad_line_is_named_and_its_text_never_shown() {
        for line in [
            "hunter2",
            "=hunter2",
            "1KEY=hunter2",
            "KE Y=hunter2",
            "KEY='hunter2",
            "KEY=\"hunter2",
            "KEY=\"hunter2\\",
            "KEY='a'hunter2",
            "KEY=\"\\hunter2\"",
            "KEY='a'#hunter2",
        ] {
            let error = parse(&format!("A=1\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with(".env:2: "), "{error}");
            assert!(error.contains("found") && error.contains("expected"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
