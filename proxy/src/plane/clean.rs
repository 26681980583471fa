//! Text from outside on its way into records: short, and free of what steers whoever shows it.

use crate::words::steers;

/// At most `longest` bytes of the text, control characters and those that turn the direction of text replaced.
pub fn text(text: &str, longest: usize) -> String {
    if text.len() <= longest && text.bytes().all(|byte| matches!(byte, 0x20..=0x7E)) {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len().min(longest));
    for character in text.chars() {
        // What takes its place may be longer than it was.
        let character = if steers(character) { '\u{FFFD}' } else { character };
        if clean.len().saturating_add(character.len_utf8()) > longest {
            break;
        }
        clean.push(character);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn what_steers_is_replaced_and_the_rest_stays_as_it_is() {
        for (given, longest, expected) in [
            ("plain", 5, "plain"),
            ("plain", 4, "plai"),
            ("käse", 2, "k"),
            ("a\u{1b}[2J", 9, "a\u{fffd}[2J"),
            ("a\n\n", 5, "a\u{fffd}"),
            ("gpt\u{202e}\u{2069}\u{200e}4", 99, "gpt\u{fffd}\u{fffd}\u{fffd}4"),
        ] {
            assert_eq!(text(given, longest), expected, "{given:?}");
        }
    }
}
