//! Reads JSON, or the beginning of it.

use std::borrow::Cow;

use memchr::memchr2;
use serde::de::IgnoredAny;

use super::{Node, Object};

/// Deepest nesting that is read. Readers of records stop at 128, and a record has levels of its own.
const MAX_DEPTH: usize = 96;

/// What was read.
#[derive(Debug)]
pub(in crate::capture) struct Parsed<'t> {
    pub(in crate::capture) node: Node<'t>,
    /// False where the text ended within the value. A string it ended in has `…` for its rest.
    pub(in crate::capture) is_whole: bool,
}

/// Reads a text that is one JSON value, or with `is_cut` at least the beginning of one.
///
/// `None` where it is neither, or nested deeper than 96 levels. Halves of surrogate pairs are read as U+FFFD.
pub(in crate::capture) fn parse(text: &str, is_cut: bool) -> Option<Parsed<'_>> {
    let mut reader = Reader { text, place: 0, depth: 0, is_cut, has_run_out: false };
    let node = reader.value().ok()??;
    reader.skip_space();
    let is_whole = !reader.has_run_out;
    (reader.rest().is_empty() && (is_whole || is_cut)).then_some(Parsed { node, is_whole })
}

/// Whether a text is several JSON objects, a line each.
pub(in crate::capture) fn is_lines(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_ascii).filter(|line| !line.is_empty());
    let first = lines.next().filter(|line| line.starts_with('{'));
    first.is_some_and(|line| parse(line, false).is_some()) && lines.next().is_some()
}

/// The text is no JSON, or too deep.
struct NotJson;

struct Reader<'t> {
    text: &'t str,
    /// Always at the beginning of a character.
    place: usize,
    depth: usize,
    is_cut: bool,
    has_run_out: bool,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.place..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.place).copied()
    }

    fn advance(&mut self, bytes: usize) {
        self.place = self.place.saturating_add(bytes);
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.advance(1);
        }
    }

    /// The next byte that is no white space.
    fn next_token(&mut self) -> Option<u8> {
        self.skip_space();
        let byte = self.peek();
        if byte.is_none() {
            self.run_out();
        }
        byte
    }

    fn run_out(&mut self) {
        self.has_run_out = true;
        self.place = self.text.len();
    }

    /// `Ok(None)`: the text ran out before there was a value.
    fn value(&mut self) -> Result<Option<Node<'t>>, NotJson> {
        match self.next_token() {
            None => Ok(None),
            Some(b'{') => self.object().map(Some),
            Some(b'[') => self.list().map(Some),
            Some(b'"') => {
                let mut text = self.string()?;
                if self.has_run_out {
                    text.to_mut().push('…');
                }
                Ok(Some(Node::Text(text)))
            }
            Some(_) => self.bare(),
        }
    }

    fn enter(&mut self) -> Result<(), NotJson> {
        self.advance(1);
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH { Err(NotJson) } else { Ok(()) }
    }

    fn leave(&mut self) {
        self.advance(1);
        self.depth = self.depth.saturating_sub(1);
    }

    fn list(&mut self) -> Result<Node<'t>, NotJson> {
        self.enter()?;
        let mut items = Vec::new();
        if self.next_token() == Some(b']') {
            self.leave();
            return Ok(Node::List(items));
        }
        while let Some(item) = self.value()? {
            items.push(item);
            if !self.has_more(b']')? {
                break;
            }
        }
        Ok(Node::List(items))
    }

    fn object(&mut self) -> Result<Node<'t>, NotJson> {
        self.enter()?;
        let mut members = Vec::new();
        if self.next_token() == Some(b'}') {
            self.leave();
            return Ok(Node::Object(Object { members }));
        }
        while let Some(member) = self.member()? {
            members.push(member);
            if !self.has_more(b'}')? {
                break;
            }
        }
        Ok(Node::Object(Object { members }))
    }

    fn member(&mut self) -> Result<Option<(Cow<'t, str>, Node<'t>)>, NotJson> {
        match self.next_token() {
            None => return Ok(None),
            Some(b'"') => {}
            Some(_) => return Err(NotJson),
        }
        let name = self.string()?;
        if self.has_run_out {
            return Ok(None);
        }
        match self.next_token() {
            None => return Ok(None),
            Some(b':') => self.advance(1),
            Some(_) => return Err(NotJson),
        }
        Ok(self.value()?.map(|value| (name, value)))
    }

    /// After a value: whether another follows in the container, which is left if not.
    fn has_more(&mut self, close: u8) -> Result<bool, NotJson> {
        if self.has_run_out {
            return Ok(false);
        }
        match self.next_token() {
            None => Ok(false),
            Some(b',') => {
                self.advance(1);
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.leave();
                Ok(false)
            }
            Some(_) => Err(NotJson),
        }
    }

    fn bare(&mut self) -> Result<Option<Node<'t>>, NotJson> {
        let rest = self.rest();
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let length = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        if length == rest.len() && (self.depth > 0 || self.is_cut) {
            self.run_out(); // who knows what is missing of it
            return Ok(None);
        }
        let word = rest.get(..length).unwrap_or_default();
        serde_json::from_str::<IgnoredAny>(word).map_err(|_| NotJson)?;
        self.advance(length);
        Ok(Some(Node::Bare(Cow::Borrowed(word))))
    }

    /// Begins at the opening quote.
    fn string(&mut self) -> Result<Cow<'t, str>, NotJson> {
        self.advance(1);
        let mut text = Cow::Borrowed("");
        loop {
            let rest = self.rest();
            let length = memchr2(b'"', b'\\', rest.as_bytes()).unwrap_or(rest.len());
            let plain = rest.get(..length).unwrap_or_default();
            if plain.bytes().any(|byte| byte < b' ') {
                return Err(NotJson);
            }
            if text.is_empty() {
                text = Cow::Borrowed(plain);
            } else {
                text.to_mut().push_str(plain);
            }
            self.advance(length);
            match self.peek() {
                None => {
                    self.run_out();
                    return Ok(text);
                }
                Some(b'"') => {
                    self.advance(1);
                    return Ok(text);
                }
                Some(_) => match self.escape()? {
                    Some(character) => text.to_mut().push(character),
                    None => return Ok(text),
                },
            }
        }
    }

    /// Begins at the backslash. `Ok(None)`: the text ran out.
    fn escape(&mut self) -> Result<Option<char>, NotJson> {
        let Some(kind) = self.rest().as_bytes().get(1) else {
            self.run_out();
            return Ok(None);
        };
        let character = match kind {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return Err(NotJson),
        };
        self.advance(2);
        Ok(Some(character))
    }

    /// `\uXXXX`, or two of them that are one character.
    fn unicode(&mut self) -> Result<Option<char>, NotJson> {
        let Some(first) = self.unit()? else { return Ok(None) };
        if let Some(Ok(character)) = char::decode_utf16([first]).next() {
            return Ok(Some(character));
        }
        let after_first = self.place;
        if self.rest().starts_with("\\u") {
            let Some(second) = self.unit()? else { return Ok(None) };
            if let Some(Ok(character)) = char::decode_utf16([first, second]).next() {
                return Ok(Some(character));
            }
            self.place = after_first;
        }
        Ok(Some(char::REPLACEMENT_CHARACTER))
    }

    fn unit(&mut self) -> Result<Option<u16>, NotJson> {
        let rest = self.rest();
        if rest.len() < 6 {
            self.run_out();
            return Ok(None);
        }
        let digits = rest.get(2..6).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()).ok_or(NotJson)?;
        self.advance(6);
        Ok(Some(unit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn rewritten(text: &str, is_cut: bool) -> Option<(String, bool)> {
        parse(text, is_cut).map(|parsed| (parsed.node.write(), parsed.is_whole))
    }

    #[test]
    fn order_numbers_and_doubles_stay_as_they_are() {
        for (text, expected) in [
            (r#" { "b" : 1.50e+3 , "a" : [ ] , "b" : -0.0 } "#, r#"{"b":1.50e+3,"a":[],"b":-0.0}"#),
            (
                r#"[12345678901234567890.123456789012345678901234567890,{}]"#,
                r#"[12345678901234567890.123456789012345678901234567890,{}]"#,
            ),
            (r#""a\u00e9\ud83d\ude00\/\n\u0001""#, "\"aé😀/\\n\\u0001\""),
            (r#"["\ud800","\ud800\u0041","\udc00\ud800x"]"#, "[\"\u{fffd}\",\"\u{fffd}A\",\"\u{fffd}\u{fffd}x\"]"),
            ("null", "null"),
            ("7", "7"),
        ] {
            assert_eq!(rewritten(text, false), Some((expected.to_owned(), true)), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_not_read() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "[,1]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{a:1}",
            "[1 2]",
            "01",
            "+1",
            "1.",
            "NaN",
            "tru",
            "nullx",
            "{} {}",
            "[1]]",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\u{1}\"",
            "'a'",
            "{\"a\":1]",
            "[1}",
        ] {
            assert_eq!(rewritten(text, false), None, "{text}");
        }
        for text in ["", "12", "[1}", "{\"a\":tru}", "nonsense", "[\"\\x", "{} x", "{\"a\" 1"] {
            assert_eq!(rewritten(text, true), None, "the beginning of nothing: {text}");
        }
    }

    #[test]
    fn a_cut_text_is_read_as_far_as_it_goes() {
        for (text, expected) in [
            ("{", "{}"),
            (r#"{"a"#, "{}"),
            (r#"{"a":"#, "{}"),
            (r#"{"a":12"#, "{}"),
            (r#"{"a":12,"#, r#"{"a":12}"#),
            (r#"{"a":"b"#, r#"{"a":"b…"}"#),
            (r#"{"a":"b\"#, r#"{"a":"b…"}"#),
            (r#"{"a":"b\u00"#, r#"{"a":"b…"}"#),
            (r#"{"a":"b","c":[{"d":"e"},tr"#, r#"{"a":"b","c":[{"d":"e"}]}"#),
            ("\"x", "\"x…\""),
        ] {
            assert_eq!(rewritten(text, true), Some((expected.to_owned(), false)), "{text}");
        }
        assert_eq!(rewritten("{\"a\":1} ", true), Some(("{\"a\":1}".to_owned(), true)), "what was cut off was no part");
    }

    #[test]
    fn depth_has_an_end() {
        let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
        assert!(parse(&nested(MAX_DEPTH), false).is_some());
        assert!(parse(&nested(MAX_DEPTH + 1), false).is_none());
        assert!(parse(&nested(1_000_000), false).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_is_what_another_parser_reads(text in r#"[\[\]{}:,"\\a-c0-2 .eutrlnfs-]{0,24}"#) {
            let (ours, theirs) = (parse(&text, false), serde_json::from_str::<Value>(&text));
            // A number that is too large for serde_json is JSON all the same, and so is half a surrogate pair.
            if let Ok(theirs) = &theirs {
                prop_assert!(ours.is_some(), "{} reads as {}", text, theirs);
            }
            if let Some(ours) = ours {
                prop_assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok());
                if let Ok(theirs) = theirs {
                    prop_assert_eq!(serde_json::from_str::<Value>(&ours.node.write()).unwrap(), theirs);
                }
            }
        }

        #[test]
        fn what_is_written_is_json_wherever_the_text_was_cut(text in any::<String>(), number in any::<f64>(), end in 0usize..400) {
            let whole = serde_json::json!({"a": [text, {"b": number, "c\n": text}], "d": null}).to_string();
            let end = whole.floor_char_boundary(end.min(whole.len()));
            if let Some(parsed) = parse(&whole[..end], true) {
                let written = parsed.node.write();
                prop_assert!(serde_json::from_str::<Value>(&written).is_ok(), "{}", written);
                prop_assert_eq!(parsed.is_whole, end == whole.len());
            } else {
                prop_assert_eq!(end, 0);
            }
        }
    }
}
