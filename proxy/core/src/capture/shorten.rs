//! Makes a JSON value fit by cutting its longest strings, so that what remains is JSON of the same structure.
//!
//! All strings above one length are cut to it: the longest length with which the whole fits. So a record of a long
//! document and a short question keeps the question, and one of two long documents keeps half of each.

use super::json::{Node, Object, written_bytes};

/// Strings are not cut to less. Where this is not enough, the value is not made of long strings.
const MIN_STRING_BYTES: usize = 64;
/// Room for `…[N more bytes]`.
const MARK_BYTES: usize = 40;

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fitted {
    /// It fits as it is.
    Whole(String),
    /// Strings were cut; this is JSON still.
    Shortened(String),
    /// Even so it would not fit. The whole text.
    TooLong(String),
}

/// Writes a value in at most `max_bytes`.
pub(super) fn fit(mut node: Node<'_>, max_bytes: usize) -> Fitted {
    let text = node.write();
    if text.len() <= max_bytes {
        return Fitted::Whole(text);
    }
    let Some(length) = longest_string(&node, &text, max_bytes) else { return Fitted::TooLong(text) };
    cut_strings(&mut node, length);
    let shortened = node.write();
    if shortened.len() <= max_bytes { Fitted::Shortened(shortened) } else { Fitted::TooLong(text) }
}

/// How long strings may be, as they are written and without their quotes, for the whole to fit.
fn longest_string(node: &Node<'_>, text: &str, max_bytes: usize) -> Option<usize> {
    let mut lengths = Vec::new();
    measure(node, &mut lengths);
    lengths.sort_unstable();
    let strings_bytes = lengths.iter().fold(0usize, |sum, length| sum.saturating_add(*length));
    let mut room = max_bytes.checked_sub(text.len().saturating_sub(strings_bytes))?;
    let mut left = lengths.len();
    for length in lengths {
        let share = room.checked_div(left)?;
        if length > share {
            return (share >= MIN_STRING_BYTES).then_some(share);
        }
        room = room.saturating_sub(length);
        left = left.saturating_sub(1);
    }
    None
}

fn measure(node: &Node<'_>, lengths: &mut Vec<usize>) {
    match node {
        Node::Bare(_) => {}
        Node::Text(text) => lengths.push(written_length(text)),
        Node::List(items) => items.iter().for_each(|item| measure(item, lengths)),
        Node::Object(Object { members }) => members.iter().for_each(|(_, value)| measure(value, lengths)),
    }
}

fn written_length(text: &str) -> usize {
    text.chars().fold(0usize, |sum, character| sum.saturating_add(written_bytes(character)))
}

fn cut_strings(node: &mut Node<'_>, length: usize) {
    match node {
        Node::Bare(_) => {}
        Node::Text(text) => {
            if written_length(text) > length {
                *text = cut(text, length.saturating_sub(MARK_BYTES)).into();
            }
        }
        Node::List(items) => items.iter_mut().for_each(|item| cut_strings(item, length)),
        Node::Object(Object { members }) => members.iter_mut().for_each(|(_, value)| cut_strings(value, length)),
    }
}

/// The beginning of a string, of at most so many bytes when written, and how much is missing.
fn cut(text: &str, most: usize) -> String {
    let mut written = 0usize;
    let end = text.char_indices().find_map(|(place, character)| {
        written = written.saturating_add(written_bytes(character));
        (written > most).then_some(place)
    });
    let kept = end.and_then(|end| text.get(..end)).unwrap_or(text);
    format!("{kept}…[{} more bytes]", text.len().saturating_sub(kept.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::json::parse;
    use super::*;

    fn fitted(text: &str, max_bytes: usize) -> Fitted {
        fit(parse(text, false).unwrap().node, max_bytes)
    }

    #[test]
    fn the_longest_strings_are_cut_and_the_rest_stays() {
        let body =
            json!({"model": "m", "messages": [{"content": "x".repeat(5000)}, {"content": "why?"}], "n": 1}).to_string();
        let Fitted::Shortened(text) = fitted(&body, 1024) else { panic!("it fits, shortened") };
        assert!(text.len() <= 1024 && text.len() > 960, "{}", text.len());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["model"], &value["n"], &value["messages"][1]["content"]),
            (&json!("m"), &json!(1), &json!("why?"))
        );
        let cut = value["messages"][0]["content"].as_str().unwrap();
        let kept = cut.bytes().take_while(|byte| *byte == b'x').count();
        assert_eq!(cut[kept..], format!("…[{} more bytes]", 5000 - kept));
    }

    #[test]
    fn two_long_strings_lose_alike() {
        let body = json!(["é".repeat(3000), "\n".repeat(3000), "short"]).to_string();
        let Fitted::Shortened(text) = fitted(&body, 2000) else { panic!("it fits, shortened") };
        let value: Value = serde_json::from_str(&text).unwrap();
        let kept = |place: usize, character: char| value[place].as_str().unwrap().matches(character).count();
        assert!((430..=500).contains(&kept(0, 'é')) && (430..=500).contains(&kept(1, '\n')), "{text}");
        assert_eq!(value[2], "short");
    }

    #[test]
    fn what_is_not_long_strings_is_not_made_to_fit() {
        let numbers = serde_json::to_string(&vec![1234; 1000]).unwrap();
        assert_eq!(fitted(&numbers, 1024), Fitted::TooLong(numbers.clone()));
        let words = serde_json::to_string(&vec!["word"; 1000]).unwrap();
        assert_eq!(fitted(&words, 1024), Fitted::TooLong(words.clone()));
        assert_eq!(fitted(&words, words.len()), Fitted::Whole(words));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_json_and_fits(texts in prop::collection::vec((any::<String>(), 1usize..200), 1..8), max_bytes in 64usize..4096) {
            let texts: Vec<String> = texts.iter().map(|(text, times)| text.repeat(*times)).collect();
            let body = json!({"a": texts, "b": {"c": texts.first()}}).to_string();
            match fitted(&body, max_bytes) {
                Fitted::Whole(text) => prop_assert!(text.len() <= max_bytes),
                Fitted::Shortened(text) => {
                    prop_assert!(text.len() <= max_bytes);
                    let value: Value = serde_json::from_str(&text).unwrap();
                    prop_assert_eq!(value["a"].as_array().map(Vec::len), Some(texts.len()));
                }
                Fitted::TooLong(text) => prop_assert!(text.len() > max_bytes),
            }
        }
    }
}
