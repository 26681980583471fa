//! Numbers and texts out of JSON that others wrote: whatever is not what we expect is absent, not an error.

/// Longest model name and finish reason we keep.
const MAX_TEXT_BYTES: usize = 256;

/// A non-negative integer of at most 64 bits, written plainly; anything else (`-1`, `1.5`, `1e3`, `"7"`) is unknown.
pub(super) fn count(value: Option<&[u8]>) -> Option<u64> {
    let digits = value.filter(|digits| !digits.is_empty())?;
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// A short text that is not empty.
pub(super) fn text(value: Option<&[u8]>) -> Option<String> {
    let json = value.filter(|json| json.len() <= MAX_TEXT_BYTES.saturating_mul(6))?;
    let inner = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let is_plain = inner.iter().all(|byte| *byte >= b' ' && *byte != b'\\');
    // Escapes are the parser's, and so is refusing control characters, which must not reach a log.
    let text =
        if is_plain { String::from_utf8(inner.to_vec()).ok()? } else { serde_json::from_slice::<String>(json).ok()? };
    (!text.is_empty() && text.len() <= MAX_TEXT_BYTES).then_some(text)
}

/// A value that is there and not null.
pub(super) fn present(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| *value != b"null")
}

/// The tokens of one usage object in our meaning. `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_creation: Option<u64>,
    pub reasoning: Option<u64>,
    pub audio_input: Option<u64>,
    pub audio_output: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_integers_of_64_bits_are_counts() {
        for (json, expected) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", None),
            ("1.0", None),
            ("1e400", None),
            ("\"7\"", None),
            ("true", None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(count(Some(json.as_bytes())), expected, "{json}");
        }
        assert_eq!(count(None), None);
        assert_eq!(count(Some(b"")), None);
    }

    #[test]
    fn only_short_strings_are_texts() {
        let longest = format!("\"{}\"", "x".repeat(MAX_TEXT_BYTES));
        let too_long = format!("\"{}\"", "x".repeat(MAX_TEXT_BYTES + 1));
        for (json, expected) in [
            ("\"gpt\"", Some("gpt")),
            ("\"\\u0067\\/\\\"\"", Some("g/\"")),
            ("\"größe\"", Some("größe")),
            (longest.as_str(), Some(&longest[1..=MAX_TEXT_BYTES])),
            (too_long.as_str(), None),
            ("\"\"", None),
            ("\"", None),
            ("\"a\nb\"", None),
            ("\"\\x\"", None),
            ("7", None),
            ("null", None),
        ] {
            assert_eq!(text(Some(json.as_bytes())).as_deref(), expected, "{json}");
        }
        assert_eq!(text(Some(b"\"\xff\"")), None);
        assert_eq!(text(None), None);
    }
}
