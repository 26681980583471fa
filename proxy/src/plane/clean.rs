//! Text from outside on its way into records: short, and free of control octets.

/// At most `longest` bytes of the text, control characters replaced.
pub fn text(text: &str, longest: usize) -> String {
    if text.len() <= longest && text.bytes().all(|byte| matches!(byte, 0x20..=0x7E)) {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len().min(longest));
    for character in text.chars() {
        if clean.len().saturating_add(character.len_utf8()) > longest {
            break;
        }
        clean.push(if character.is_control() { '\u{FFFD}' } else { character });
    }
    clean
}
