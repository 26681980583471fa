//! Numbers and texts out of JSON that others wrote: whatever is not what we expect is absent, not an error.

use serde_json::value::RawValue;

/// Longest model name and finish reason we keep.
const MAX_TEXT_BYTES: usize = 256;

/// A non-negative integer of at most 64 bits, written plainly; anything else (`-1`, `1.5`, `1e3`, `"7"`) is unknown.
pub(super) fn count(value: Option<&RawValue>) -> Option<u64> {
    let text = value?.get();
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A short text that is not empty.
pub(super) fn text(value: Option<&RawValue>) -> Option<String> {
    let json = value?.get();
    if json.len() > MAX_TEXT_BYTES.saturating_mul(6) {
        return None;
    }
    let text: String = serde_json::from_str(json).ok()?;
    (!text.is_empty() && text.len() <= MAX_TEXT_BYTES).then_some(text)
}

/// An object, as its own reader sees it; another kind of value is as good as none.
pub(super) fn object<'a, T: serde::Deserialize<'a> + Default>(value: Option<&'a RawValue>) -> T {
    value.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
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
            let value: Box<RawValue> = serde_json::from_str(json).unwrap();
            assert_eq!(count(Some(&value)), expected, "{json}");
        }
        assert_eq!(count(None), None);
    }
}
