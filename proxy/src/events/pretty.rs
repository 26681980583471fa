//! JSON for people: the same text with line breaks and indents.
//!
//! It works on the text, because a parsed number is not the one that was written: what the provider said of its usage
//! is in a record digit for digit, and shall be shown so.

use crate::words::steers;

/// Blanks for each level.
const INDENT: usize = 2;

/// Lays out one JSON value, which is taken to be valid, in the order that it has. Ends with a line break.
pub(super) fn pretty(json: &str) -> String {
    let mut shown = String::with_capacity(json.len().saturating_mul(2));
    let mut depth: usize = 0;
    let mut letters = json.chars().filter_outside_strings().peekable();
    while let Some((letter, is_in_string)) = letters.next() {
        match letter {
            '{' | '[' if !is_in_string => {
                shown.push(letter);
                if let Some((close @ ('}' | ']'), false)) = letters.peek().copied() {
                    shown.push(close);
                    letters.next();
                } else {
                    depth = depth.saturating_add(1);
                    new_line(&mut shown, depth);
                }
            }
            '}' | ']' if !is_in_string => {
                depth = depth.saturating_sub(1);
                new_line(&mut shown, depth);
                shown.push(letter);
            }
            ',' if !is_in_string => {
                shown.push(',');
                new_line(&mut shown, depth);
            }
            ':' if !is_in_string => shown.push_str(": "),
            letter => push_safely(&mut shown, letter),
        }
    }
    shown.push('\n');
    shown
}

/// The same JSON value on its one line, for a terminal.
pub(super) fn for_terminal(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for letter in json.chars() {
        // A tab may stand between tokens, and steers nothing.
        if letter == '\t' { shown.push(letter) } else { push_safely(&mut shown, letter) }
    }
    shown
}

/// A terminal takes control characters for orders, and turns text around at others. Within a JSON text they stand in
/// strings, where they may be escaped.
fn push_safely(shown: &mut String, letter: char) {
    if steers(letter) {
        shown.push_str(&format!("\\u{:04x}", u32::from(letter)));
    } else {
        shown.push(letter);
    }
}

fn new_line(shown: &mut String, depth: usize) {
    shown.push('\n');
    shown.push_str(&" ".repeat(depth.saturating_mul(INDENT)));
}

/// Letters of a JSON text without the white space between its tokens, and whether each is within a string.
trait FilterOutsideStrings: Iterator<Item = char> + Sized {
    fn filter_outside_strings(self) -> impl Iterator<Item = (char, bool)> {
        let (mut is_in_string, mut is_escaped) = (false, false);
        self.filter_map(move |letter| {
            if !is_in_string {
                is_in_string = letter == '"';
                return (!letter.is_ascii_whitespace()).then_some((letter, false));
            }
            match letter {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '"' => is_in_string = false,
                _ => {}
            }
            Some((letter, true))
        })
    }
}

impl<I: Iterator<Item = char>> FilterOutsideStrings for I {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn order_and_digits_stay_and_what_is_empty_stays_on_its_line() {
        let json = r#"{"b":1e3,"a":[1.0, {"x":null}],"t":"a, {b}: \"c\" [","e":{},"f":[ ]}"#;
        let expected = "{\n  \"b\": 1e3,\n  \"a\": [\n    1.0,\n    {\n      \"x\": null\n    }\n  ],\n  \
                        \"t\": \"a, {b}: \\\"c\\\" [\",\n  \"e\": {},\n  \"f\": []\n}\n";
        assert_eq!(pretty(json), expected);
        assert_eq!(pretty("\"\u{9b}31m\""), "\"\\u009b31m\"\n");
        assert_eq!(for_terminal("{\"a\":\t\"\u{9b}31m é\"}"), "{\"a\":\t\"\\u009b31m é\"}");
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::{Value, json};
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(|it| json!(it)),
            any::<i64>().prop_map(|it| json!(it)),
            ".*".prop_map(Value::String)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((".*", inner), 0..4).prop_map(|entries| entries.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_shown_is_the_same_value(value in value()) {
            let shown = pretty(&value.to_string());
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
