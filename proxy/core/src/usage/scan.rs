//! Looks into JSON without parsing it: is a key there, what kind of value has it, how much text do the deltas carry.
//!
//! Inside a JSON string a quote is always escaped, so the bytes `"usage"` can only be a whole string, and followed by a
//! colon only a key. Whether the key stands where it should is for the parser to say: what is found here is a reason to
//! parse, never a number.

use std::sync::LazyLock;

use memchr::memchr2;
use memchr::memmem::Finder;

/// Prepared searches, made once.
#[derive(Debug)]
pub(super) struct Keys {
    pub usage: Finder<'static>,
    pub finish_reason: Finder<'static>,
    pub response: Finder<'static>,
    pub delta: Finder<'static>,
    pub text: Finder<'static>,
    pub message_start: Finder<'static>,
    pub message_delta: Finder<'static>,
    pub usage_metadata: Finder<'static>,
    pub finish_reason_camel: Finder<'static>,
    pub grounding_metadata: Finder<'static>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    usage: Finder::new(br#""usage""#),
    finish_reason: Finder::new(br#""finish_reason""#),
    response: Finder::new(br#""response""#),
    delta: Finder::new(br#""delta""#),
    text: Finder::new(br#""text""#),
    message_start: Finder::new(br#""message_start""#),
    message_delta: Finder::new(br#""message_delta""#),
    usage_metadata: Finder::new(br#""usageMetadata""#),
    finish_reason_camel: Finder::new(br#""finishReason""#),
    grounding_metadata: Finder::new(br#""groundingMetadata""#),
});

pub(super) fn keys() -> &'static Keys {
    &KEYS
}

/// Whether some member `key` has a value that begins with `first`.
pub(super) fn has_value(key: &Finder<'_>, mut data: &[u8], first: u8) -> bool {
    while let Some(value) = value_of(key, data) {
        if value.first() == Some(&first) {
            return true;
        }
        data = value;
    }
    false
}

/// The bytes from the value of the first member `key` on.
fn value_of<'d>(key: &Finder<'_>, mut data: &'d [u8]) -> Option<&'d [u8]> {
    loop {
        let end = key.find(data)?.saturating_add(key.needle().len());
        data = data.get(end..)?;
        if let Some(value) = after_colon(data) {
            return Some(value);
        }
    }
}

fn after_colon(data: &[u8]) -> Option<&[u8]> {
    data.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start)
}

/// Bytes of text in the `delta` members: a string (Responses API), or an object whose text is [`object_text_bytes`].
pub(super) fn delta_text_bytes(mut data: &[u8]) -> u64 {
    let mut total = 0u64;
    while let Some(value) = value_of(&keys().delta, data) {
        let (bytes, rest) = match value.split_first() {
            Some((b'"', text)) => {
                let text = string(text);
                (text.decoded_bytes, text.rest)
            }
            Some((b'{', _)) => object_text(value),
            _ => (0, value),
        };
        total = total.saturating_add(bytes);
        data = rest;
    }
    total
}

/// Bytes of text in all `text` members that are strings (legacy completions, Gemini).
pub(super) fn text_member_bytes(mut data: &[u8]) -> u64 {
    let mut total = 0u64;
    while let Some(value) = value_of(&keys().text, data) {
        data = value;
        if let Some((b'"', text)) = value.split_first() {
            let text = string(text);
            total = total.saturating_add(text.decoded_bytes);
            data = text.rest;
        }
    }
    total
}

/// Bytes of text in an object or array, at any depth, as far as it goes: the strings that models write.
pub(super) fn object_text_bytes(data: &[u8]) -> u64 {
    object_text(data).0
}

/// Members that hold what a model wrote. Not among them: `signature`, ids, names, audio.
fn is_text_key(name: &[u8]) -> bool {
    const KEYS: [&[u8]; 8] = [
        b"content",
        b"text",
        b"arguments",
        b"reasoning_content",
        b"reasoning",
        b"thinking",
        b"partial_json",
        b"refusal",
    ];
    KEYS.contains(&name)
}

fn object_text(data: &[u8]) -> (u64, &[u8]) {
    let mut total = 0u64;
    let mut depth = 0usize;
    let mut rest = data;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'{' | b'[' => depth = depth.saturating_add(1),
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            b'"' => {
                let name = string(after);
                rest = name.rest;
                let Some(value) = after_colon(name.rest) else { continue };
                rest = value;
                if name.raw == b"reasoning_details" {
                    break; // OpenRouter: `reasoning` once more, with its structure
                }
                if let (true, Some((b'"', text))) = (is_text_key(name.raw), value.split_first()) {
                    let text = string(text);
                    total = total.saturating_add(text.decoded_bytes);
                    rest = text.rest;
                }
            }
            _ => {}
        }
    }
    (total, rest)
}

/// A JSON string after its opening quote.
struct Text<'d> {
    raw: &'d [u8],
    /// Its length in UTF-8 once escapes are undone.
    decoded_bytes: u64,
    /// What follows the closing quote.
    rest: &'d [u8],
}

fn string(data: &[u8]) -> Text<'_> {
    let mut decoded_bytes = 0u64;
    let mut place = 0usize;
    loop {
        let rest = data.get(place..).unwrap_or_default();
        let Some(plain) = memchr2(b'"', b'\\', rest) else {
            let decoded_bytes = decoded_bytes.saturating_add(length(rest.len()));
            return Text { raw: data, decoded_bytes, rest: &[] };
        };
        decoded_bytes = decoded_bytes.saturating_add(length(plain));
        place = place.saturating_add(plain);
        if rest.get(plain) == Some(&b'"') {
            let raw = data.get(..place).unwrap_or_default();
            let rest = data.get(place.saturating_add(1)..).unwrap_or_default();
            return Text { raw, decoded_bytes, rest };
        }
        let (escape_bytes, utf8_bytes) = escape(rest.get(plain.saturating_add(1)..).unwrap_or_default());
        place = place.saturating_add(escape_bytes);
        decoded_bytes = decoded_bytes.saturating_add(utf8_bytes);
    }
}

/// Length of an escape, backslash included, and of what it stands for; `after` begins behind the backslash.
fn escape(after: &[u8]) -> (usize, u64) {
    if after.first() != Some(&b'u') {
        return (2, 1);
    }
    let digits = after.get(1..5).and_then(|digits| std::str::from_utf8(digits).ok());
    let utf8_bytes = match digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()) {
        Some(0..=0x7f) => 1,
        Some(0x80..=0x7ff) => 2,
        Some(0xd800..=0xdfff) => 2, // half of a pair that makes four
        _ => 3,
    };
    (6, utf8_bytes)
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_counts_only_as_a_key_with_the_right_value() {
        for (data, expected) in [
            (r#"{"usage":{"a":1}}"#, true),
            (r#"{"usage" : {"a":1}}"#, true),
            ("{\"usage\":\n\t{}}", true),
            (r#"{"usage":null}"#, false),
            (r#"{"usage":null,"x":{"usage":{}}}"#, true),
            (r#"{"text":"\"usage\":{}"}"#, false),
            (r#"{"text":"usage","b":{}}"#, false),
            (r#"["usage",{}]"#, false),
            (r#"{"usage"#, false),
            (r#"{"usage":"#, false),
        ] {
            assert_eq!(has_value(&keys().usage, data.as_bytes(), b'{'), expected, "{data}");
        }
    }

    #[test]
    fn the_text_of_deltas_is_counted_as_it_reads() {
        for (data, expected) in [
            (r#"{"choices":[{"delta":{"content":" hello"}}]}"#, 6),
            (r#"{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"bc"}}]}"#, 3),
            (r#"{"choices":[{"delta":{"content":null,"reasoning_content":"H"}}]}"#, 1),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#,
                7,
            ),
            (r#"{"delta":{"content":"","reasoning":"abc","reasoning_details":[{"text":"abc"}]}}"#, 3),
            (r#"{"type":"response.output_text.delta","delta":"pong","obfuscation":"xyz"}"#, 4),
            (r#"{"delta":{"type":"text_delta","text":"Grüße"}}"#, 7),
            (r#"{"delta":{"type":"text_delta","text":"\u0645\ud83d\ude00\n\u3053A"}}"#, 2 + 4 + 1 + 3 + 1),
            (r#"{"delta":{"type":"input_json_delta","partial_json":"{\"timez"}}"#, 7),
            (r#"{"delta":{"type":"signature_delta","signature":"ErUB"}}"#, 0),
            (r#"{"delta":{"stop_reason":"end_turn"}}"#, 0),
            (r#"{"delta":{"content":"cut of"#, 6),
            (r#"{"delta":{"content":"cut \"#, 5),
            (r#"{"delta":"#, 0),
            (r#"{"nothing":"here"}"#, 0),
        ] {
            assert_eq!(delta_text_bytes(data.as_bytes()), expected, "{data}");
        }
    }

    #[test]
    fn text_members_are_counted_wherever_they_stand() {
        let data = br#"{"candidates": [{"content": {"parts": [{"text": "The"},{"text": " end","thought": true}]}}]}"#;
        assert_eq!(text_member_bytes(data), 7);
        assert_eq!(text_member_bytes(br#"{"text":{"format":{"type":"text"}}}"#), 0);
        assert_eq!(object_text_bytes(br#"{"choices":[{"message":{"role":"assistant","content":"abc"#), 3);
    }
}
