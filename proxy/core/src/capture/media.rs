//! Takes images, sound and files out of text: what stands there as base64 becomes its length and its SHA-256.
//!
//! They are by far the largest part of a body, nobody reads them in a log, and a face or a voice is personal data that
//! no pattern finds. The hash is of the decoded content, so that it can be compared with a file's.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::digest::{SHA256, digest};

use super::json::{Node, Object};

/// So much base64 without a break is no text, whatever it is. Words are shorter, and so are keys and signatures of most
/// kinds.
const MIN_RUN_BYTES: usize = 1024;
/// Shortest line that base64 is broken into: they have 64 letters in PEM, 76 in MIME.
const MIN_LINE_BYTES: usize = 60;
/// Longest `type/subtype;parameters` of a `data:` URL.
const MAX_TYPE_BYTES: usize = 128;
/// How a string ends whose rest is missing (`json::Parsed::is_whole`).
const CUT_MARK: &str = "…";

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_allow_trailing_bits(true)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent);
static STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
static URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Replaces every payload in a value.
pub(super) fn replace(node: &mut Node<'_>) {
    visit(node, "");
}

/// The text with every payload replaced; `None` if it has none.
pub(super) fn without_payloads(text: &str) -> Option<String> {
    if let Some(url) = plain_data_url(text) {
        return Some(url);
    }
    let bytes = text.as_bytes();
    let mut out = String::new();
    let mut copied = 0usize;
    let mut place = 0usize;
    while place < bytes.len() {
        let rest = bytes.get(place..).unwrap_or_default();
        let is_named = bytes.get(..place).is_some_and(|before| before.ends_with(b";base64,"));
        let run = if is_named { lines_of(rest) } else { run_of(rest) };
        let end = place.saturating_add(run);
        if run >= MIN_RUN_BYTES || run > 0 && is_named {
            out.push_str(text.get(copied..place).unwrap_or_default());
            let rest = text.get(end..).unwrap_or_default();
            out.push_str(&described(text.get(place..end).unwrap_or_default(), rest == CUT_MARK));
            copied = if rest == CUT_MARK { text.len() } else { end };
        }
        place = end.saturating_add(1); // what ended the run begins none
    }
    if copied == 0 {
        return None;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    Some(out)
}

/// Length of the base64 that `rest` begins with.
fn run_of(rest: &[u8]) -> usize {
    rest.iter().take_while(|byte| is_base64(**byte)).count()
}

/// As [`run_of`], where it may be broken into lines.
fn lines_of(rest: &[u8]) -> usize {
    let mut end = 0usize;
    loop {
        let line = run_of(rest.get(end..).unwrap_or_default());
        end = end.saturating_add(line);
        let line_break = match rest.get(end..).unwrap_or_default() {
            [b'\n', next, ..] if is_base64(*next) => 1usize,
            [b'\r', b'\n', next, ..] if is_base64(*next) => 2,
            _ => return end,
        };
        if line < MIN_LINE_BYTES {
            return end;
        }
        end = end.saturating_add(line_break);
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(content: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest(&SHA256, content).as_ref() {
        // Writing into a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

fn visit(node: &mut Node<'_>, parent: &str) {
    match node {
        Node::Bare(_) => {}
        Node::Text(text) => {
            if let Some(rest) = without_payloads(text) {
                *text = rest.into();
            }
        }
        Node::List(items) => items.iter_mut().for_each(|item| visit(item, parent)),
        Node::Object(object) => {
            let holds = holds_payload(parent, object);
            for (name, value) in &mut object.members {
                match value {
                    Node::Text(text) if is_payload_name(name, holds) => {
                        let whole: &str = text;
                        let payload = whole.strip_suffix(CUT_MARK).unwrap_or(whole);
                        let is_part = |byte: u8| is_base64(byte) || byte.is_ascii_whitespace();
                        if payload.bytes().any(is_base64) && payload.bytes().all(is_part) {
                            *text = described(payload, payload.len() < whole.len()).into();
                        } else if let Some(rest) = without_payloads(text) {
                            *text = rest.into();
                        }
                    }
                    value => visit(value, name),
                }
            }
        }
    }
}

/// Whether an object's `data` is a payload, by the name that the object has. Short ones would not be seen otherwise.
///
/// OpenAI: input and output audio; Gemini: inline data; Anthropic: base64 sources (others hold text, or an address).
fn holds_payload(parent: &str, object: &Object<'_>) -> bool {
    match parent {
        "input_audio" | "audio" | "inlineData" | "inline_data" => true,
        "source" => object.text("type") == Some("base64"),
        _ => false,
    }
}

/// OpenAI's files and generated images, and `data` where it is one.
fn is_payload_name(name: &str, data_is_one: bool) -> bool {
    matches!(name, "file_data" | "b64_json" | "partial_image_b64") || data_is_one && name == "data"
}

/// Letters of both alphabets, and padding, which stands in the middle where pieces were put together.
fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
}

/// What is said instead of a payload.
fn described(base64: &str, is_cut: bool) -> String {
    let has_lines = base64.bytes().any(|byte| byte.is_ascii_whitespace());
    let base64: Cow<'_, str> = if has_lines { base64.split_ascii_whitespace().collect() } else { base64.into() };
    let engine = if base64.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    // What is not quite base64 counts as it stands.
    let content = engine.decode(&*base64).unwrap_or_else(|_| base64.as_bytes().to_vec());
    if is_cut {
        return format!("[more than {} bytes]", content.len());
    }
    mark(&content)
}

fn mark(content: &[u8]) -> String {
    format!("[{} bytes, sha256 {}]", content.len(), sha256(content))
}

/// A string that is a `data:` URL (RFC 2397) of other than base64.
fn plain_data_url(text: &str) -> Option<String> {
    let (media_type, content) = text.strip_prefix("data:")?.split_once(',')?;
    let is_type = media_type.len() <= MAX_TYPE_BYTES
        && media_type.contains('/')
        && media_type.bytes().all(|byte| byte.is_ascii_graphic())
        && !media_type.ends_with(";base64");
    let is_replaced = content.starts_with('[') && content.contains(" bytes, sha256 ");
    (is_type && !content.is_empty() && !is_replaced).then(|| format!("data:{media_type},{}", mark(content.as_bytes())))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose;

    use super::super::json::parse;
    use super::*;

    /// SHA-256 of `hello`, as `sha256sum` says it.
    const HELLO: &str = "[5 bytes, sha256 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824]";

    fn replaced(json: &str, is_cut: bool) -> String {
        let mut node = parse(json, is_cut).unwrap().node;
        replace(&mut node);
        let once = node.write();
        let mut again = parse(&once, false).unwrap().node;
        replace(&mut again);
        assert_eq!(again.write(), once, "nothing is replaced twice");
        once
    }

    #[test]
    fn payloads_are_known_by_where_they_stand() {
        for (json, expected) in [
            (
                r#"{"image_url":{"url":"data:image/png;base64,aGVsbG8="}}"#,
                r#"{"image_url":{"url":"data:image/png;base64,HELLO"}}"#,
            ),
            (
                r#"{"text":"![](data:image/png;base64,aGVsbG8=) see"}"#,
                r#"{"text":"![](data:image/png;base64,HELLO) see"}"#,
            ),
            (r#"{"url":"data:text/plain,hello"}"#, r#"{"url":"data:text/plain,HELLO"}"#),
            (
                r#"{"input_audio":{"data":"aGVsbG8","format":"wav"}}"#,
                r#"{"input_audio":{"data":"HELLO","format":"wav"}}"#,
            ),
            (
                r#"{"audio":{"id":"a","data":"aGVsbG8=","transcript":"hello"}}"#,
                r#"{"audio":{"id":"a","data":"HELLO","transcript":"hello"}}"#,
            ),
            (r#"{"file":{"file_data":"aGVsbG8=","filename":"a"}}"#, r#"{"file":{"file_data":"HELLO","filename":"a"}}"#),
            (r#"{"source":{"type":"base64","data":"aGVsbG8="}}"#, r#"{"source":{"type":"base64","data":"HELLO"}}"#),
            (
                r#"{"parts":[{"inlineData":{"mimeType":"a/b","data":"aGVsbG8="}}]}"#,
                r#"{"parts":[{"inlineData":{"mimeType":"a/b","data":"HELLO"}}]}"#,
            ),
            (r#"{"inline_data":{"data":"aGVsbG8="}}"#, r#"{"inline_data":{"data":"HELLO"}}"#),
            (r#"{"data":[{"b64_json":"aGVsbG8="}]}"#, r#"{"data":[{"b64_json":"HELLO"}]}"#),
            // The same words elsewhere are text.
            (r#"{"source":{"type":"text","data":"aGVsbG8="}}"#, r#"{"source":{"type":"text","data":"aGVsbG8="}}"#),
            (
                r#"{"input":{"data":"hello"},"url":"https://a.example/data:x"}"#,
                r#"{"input":{"data":"hello"},"url":"https://a.example/data:x"}"#,
            ),
            (r#"{"text":"data: one, two","t":"data:1,2"}"#, r#"{"text":"data: one, two","t":"data:1,2"}"#),
            (r#"{"file_data":"not base64!"}"#, r#"{"file_data":"not base64!"}"#),
        ] {
            assert_eq!(replaced(json, false), expected.replace("HELLO", HELLO), "{json}");
        }
    }

    #[test]
    fn long_base64_is_replaced_wherever_it_stands() {
        let content: Vec<u8> = (0..1500u32).map(|n| (n * 7 % 251) as u8).collect();
        let mark = format!("[1500 bytes, sha256 {}]", sha256(&content));
        let standard = general_purpose::STANDARD.encode(&content);
        let url_safe = general_purpose::URL_SAFE_NO_PAD.encode(&content);
        for payload in [&standard, &url_safe] {
            assert_eq!(without_payloads(payload), Some(mark.clone()));
            assert_eq!(without_payloads(&format!("see é {payload}, ok")), Some(format!("see é {mark}, ok")));
        }
        let short = "a".repeat(MIN_RUN_BYTES - 1);
        assert_eq!(without_payloads(&format!("{short} {short}")), None);
        assert!(without_payloads(&"a".repeat(MIN_RUN_BYTES)).is_some());
        // In lines it is one payload where it is said to be one.
        for line_break in ["\n", "\r\n"] {
            let lines: Vec<_> = standard.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let lines = lines.join(line_break);
            let url = without_payloads(&format!("data:image/png;base64,{lines}\nand so on"));
            assert_eq!(url, Some(format!("data:image/png;base64,{mark}\nand so on")));
            let json = format!(r#"{{"source":{{"type":"base64","data":"{}"}}}}"#, lines.escape_debug());
            assert_eq!(replaced(&json, false), format!(r#"{{"source":{{"type":"base64","data":"{mark}"}}}}"#));
        }
        assert_eq!(without_payloads(""), None);
    }

    #[test]
    fn of_a_payload_that_was_cut_only_the_least_length_is_said() {
        let cut = replaced(r#"{"a":{"url":"data:image/png;base64,aGVsbG8gd29y"#, true);
        assert_eq!(cut, r#"{"a":{"url":"data:image/png;base64,[more than 9 bytes]"}}"#);
        let cut = replaced(r#"{"source":{"type":"base64","data":"aGVsbG8gd29y"#, true);
        assert_eq!(cut, r#"{"source":{"type":"base64","data":"[more than 9 bytes]"}}"#);
    }
}
