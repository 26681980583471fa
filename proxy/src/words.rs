//! Words for people: an error in one line, and what must not stand in any text for a terminal.

/// The error and its causes. Many errors tell their cause already, which is not said a second time then.
pub fn one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| {
        if line.is_empty() {
            cause
        } else if line.ends_with(&cause) {
            line
        } else {
            format!("{line}: {cause}")
        }
    })
}

/// Whether the character could steer a terminal, or show the text around it in another order than it has: control
/// characters, and those with Unicode's property `Bidi_Control` (UAX #9).
pub fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the journal cannot be opened: {source}")]
    struct Told {
        source: io::Error,
    }

    #[test]
    fn a_cause_is_told_once() {
        let told = || anyhow::Error::new(Told { source: io::Error::other("no such file") });
        for (error, expected) in [
            (anyhow::anyhow!("alone"), "alone"),
            (told(), "the journal cannot be opened: no such file"),
            (told().context("DATA_DIR"), "DATA_DIR: the journal cannot be opened: no such file"),
            (Err::<(), _>(io::Error::other("full")).context("DATA_DIR").unwrap_err(), "DATA_DIR: full"),
        ] {
            assert_eq!(one_line(&error), expected);
        }
    }

    #[test]
    fn what_steers_is_known_from_what_is_written() {
        for letter in
            ['\0', '\n', '\u{1b}', '\u{85}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}']
        {
            assert!(steers(letter), "{letter:?}");
        }
        for letter in ['a', ' ', 'ä', 'א', '語', '\u{200d}', '\u{2029}', '\u{202f}', '\u{2065}', '\u{206a}'] {
            assert!(!steers(letter), "{letter:?}");
        }
    }
}
