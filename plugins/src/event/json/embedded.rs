//! Whether JSON that others wrote can stand in a line as it came: usage objects, captured bodies, resources.
//!
//! The meter takes a provider's usage object over without a look at its grammar, so it is judged here, behind the
//! answer: one bad value would make the whole line, and the file for many who read it, no JSON. What usage objects look
//! like in practice, ASCII without escapes or exponents, is recognised here in a few instructions a byte; everything
//! else, so nearly every body, is left to `serde_json`, which needs no recursion for it.

use serde_json::value::RawValue;

/// Depth of nesting up to which a value is recognised here. Usage objects have two or three levels.
const MAX_DEPTH: u32 = 8;

/// The value that `json` is, without the blanks around it; `None` if it is not exactly one.
pub(super) fn checked(json: &[u8]) -> Option<&[u8]> {
    plain(json).or_else(|| {
        let value: &RawValue = serde_json::from_slice(json).ok()?;
        Some(value.get().as_bytes())
    })
}

/// As [`checked`], but also `None` for what takes a closer look.
fn plain(json: &[u8]) -> Option<&[u8]> {
    let start = after_blanks(json);
    let rest = if json.is_ascii() { after_value(start, MAX_DEPTH)? } else { return None };
    if after_blanks(rest).is_empty() { start.get(..start.len().saturating_sub(rest.len())) } else { None }
}

fn after_value(json: &[u8], depth: u32) -> Option<&[u8]> {
    match json {
        [b'{', rest @ ..] => after_members(rest, depth.checked_sub(1)?),
        [b'[', rest @ ..] => after_elements(rest, depth.checked_sub(1)?),
        [b'"', rest @ ..] => after_text(rest),
        [b't', b'r', b'u', b'e', rest @ ..] => Some(rest),
        [b'f', b'a', b'l', b's', b'e', rest @ ..] => Some(rest),
        [b'n', b'u', b'l', b'l', rest @ ..] => Some(rest),
        _ => after_number(json),
    }
}

/// What follows an object whose opening brace has been read.
fn after_members(json: &[u8], depth: u32) -> Option<&[u8]> {
    let mut rest = after_blanks(json);
    if let [b'}', rest @ ..] = rest {
        return Some(rest);
    }
    loop {
        let [b'"', name @ ..] = rest else { return None };
        let [b':', value @ ..] = after_blanks(after_text(name)?) else { return None };
        match after_blanks(after_value(after_blanks(value), depth)?) {
            [b',', next @ ..] => rest = after_blanks(next),
            [b'}', next @ ..] => return Some(next),
            _ => return None,
        }
    }
}

/// What follows an array whose opening bracket has been read.
fn after_elements(json: &[u8], depth: u32) -> Option<&[u8]> {
    let mut rest = after_blanks(json);
    if let [b']', rest @ ..] = rest {
        return Some(rest);
    }
    loop {
        match after_blanks(after_value(rest, depth)?) {
            [b',', next @ ..] => rest = after_blanks(next),
            [b']', next @ ..] => return Some(next),
            _ => return None,
        }
    }
}

/// What follows a string, without escapes, whose opening quote has been read.
fn after_text(json: &[u8]) -> Option<&[u8]> {
    let end = json.iter().position(|byte| matches!(byte, ..0x20 | b'"' | b'\\'))?;
    match json.get(end..)? {
        [b'"', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// What follows a number without an exponent.
fn after_number(json: &[u8]) -> Option<&[u8]> {
    let rest = match json.strip_prefix(b"-").unwrap_or(json) {
        [b'0', rest @ ..] => rest,
        digits => after_digits(digits)?,
    };
    match rest {
        [b'.', fraction @ ..] => after_digits(fraction),
        _ => Some(rest),
    }
}

/// What follows one digit or more.
fn after_digits(json: &[u8]) -> Option<&[u8]> {
    let digits = json.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 { json.get(digits..) } else { None }
}

fn after_blanks(mut json: &[u8]) -> &[u8] {
    while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = json {
        json = rest;
    }
    json
}

/// Texts of which some are JSON and some nearly are.
#[cfg(test)]
pub(super) fn soup() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;

    let tokens = [
        "{", "}", "[", "]", ",", ":", "\"a\"", "\"a\":1", "\"\"", "\"", "\\", "\\n", "0", "12", "-", ".", ".5", "e3",
        "true", "false", "null", "nul", "é", "\"é\"", "\u{7f}", "\u{c}", "\0", " ", "\n", "\r\n", "\t",
    ];
    let junk = prop::collection::vec(prop::sample::select(tokens.to_vec()), 0..8).prop_map(|tokens| tokens.concat());
    let number = prop_oneof![Just("0"), Just("17"), Just("-1.50"), Just("1e3"), Just("01"), Just("1."), Just("-")];
    let word = prop_oneof![Just("true"), Just("null"), Just("\"a b\""), Just("\"\\u00e9\""), Just("\"é\"")];
    let blank = || prop_oneof![Just(""), Just(" "), Just("\n\t"), Just("\r\n")];
    let leaf = prop_oneof![number, word].prop_map(str::to_owned);
    let value = leaf.prop_recursive(12, 40, 4, move |inner| {
        let element = (blank(), inner, blank()).prop_map(|(before, value, after)| format!("{before}{value}{after}"));
        let elements = prop::collection::vec(element, 0..4);
        elements.prop_flat_map(|elements| {
            let array = format!("[{}]", elements.join(","));
            let members: Vec<_> = elements.iter().map(|element| format!("\"a\" :{element}")).collect();
            prop_oneof![Just(array), Just(format!("{{{}}}", members.join(",")))]
        })
    });
    prop_oneof![junk, value]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_providers_send_takes_no_closer_look() {
        for json in [
            r#"{"prompt_tokens":19,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":0}}"#,
            r#"{"input_tokens":8,"service_tier":"standard","server_tool_use":null}"#,
            r#"{"promptTokensDetails":[{"modality":"TEXT","tokenCount":4},{"modality":"AUDIO","tokenCount":0}]}"#,
            r#"{"prompt_time":0.017,"total_time":-1.5,"is_byok":false,"details":[],"more":{}}"#,
            "{\n  \"prompt_tokens\": 19,\r\n\t\"total_tokens\": 29\n}",
        ] {
            assert_eq!(plain(json.as_bytes()), Some(json.as_bytes()), "{json}");
        }
    }

    #[test]
    fn what_is_unusual_is_still_accepted_and_blanks_around_it_are_not_part_of_it() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        for (json, value) in [
            (r#" {"a":"\u00e9\n","b":1e3} "#, r#"{"a":"\u00e9\n","b":1e3}"#),
            ("\"é\"\n", "\"é\""),
            (&*deep, &*deep),
            (" 17\n", "17"),
        ] {
            assert_eq!(checked(json.as_bytes()), Some(value.as_bytes()), "{json}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_recognised_here_is_what_a_full_parser_accepts(json in soup()) {
            let accepted = serde_json::from_str::<&RawValue>(&json).ok();
            prop_assert_eq!(checked(json.as_bytes()), accepted.map(|value| value.get().as_bytes()));
        }
    }
}
