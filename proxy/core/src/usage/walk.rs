//! Walks through JSON without parsing it: from member to member, skipping what nobody asked for.
//!
//! The answers metered here come from providers and are passed on whatever we read in them, so nothing is gained by
//! proving every byte of them correct. The walk follows only what it needs to keep its place: quotes, brackets of the kind
//! it is in, commas and colons. Correct JSON it reads as a parser would, at a fraction of the instructions; of other bytes
//! it makes something or nothing, but never panics, never recurses and passes each byte once. What stops before its
//! closing bracket is nothing in any case: a cut answer must not pass for a whole one.

use std::borrow::Cow;

use memchr::{memchr2, memchr3};

/// Words of eight bytes looked at before memchr is called: a call costs more than these, and most keys and gaps end
/// within them.
const NEAR_WORDS: usize = 3;

/// A place in a JSON text. Every method is `None` where the text does not go on as it should.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    rest: &'a [u8],
}

/// What stands between two quotes.
struct Text<'a> {
    inner: &'a [u8],
    has_escapes: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(json: &'a [u8]) -> Self {
        Self { rest: json }
    }

    /// Gives each member of an object to `each`, which has to pass the value: with [`Self::skip`], [`Self::keep`],
    /// [`Self::value`], or by walking through it.
    pub(super) fn members(&mut self, mut each: impl FnMut(&[u8], &mut Self) -> Option<()>) -> Option<()> {
        self.eat(b'{')?;
        if self.peek()? == b'}' {
            return self.eat(b'}');
        }
        loop {
            self.eat(b'"')?;
            let name = self.string()?.decoded()?;
            self.eat(b':')?;
            each(&name, self)?;
            match self.take()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Gives the place of each element of an array to `each`, which has to pass it.
    pub(super) fn elements(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.eat(b'[')?;
        if self.peek()? == b']' {
            return self.eat(b']');
        }
        loop {
            each(self)?;
            match self.take()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Reads a value with `read`, unless it is null.
    pub(super) fn unless_null(&mut self, read: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        if self.peek()? == b'n' { self.skip() } else { read(self) }
    }

    /// Keeps a value in its place. A second member of the same name is an error, as it leaves open which one is meant.
    pub(super) fn keep(&mut self, place: &mut Option<&'a [u8]>) -> Option<()> {
        let value = self.value()?;
        place.replace(value).is_none().then_some(())
    }

    /// The bytes of the next value, without whitespace around them.
    pub(super) fn value(&mut self) -> Option<&'a [u8]> {
        self.peek()?;
        let begin = self.rest;
        self.skip()?;
        begin.get(..begin.len().wrapping_sub(self.rest.len()))
    }

    /// Passes the next value.
    pub(super) fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => {
                self.eat(b'"')?;
                self.string().map(|_| ())
            }
            b'{' => self.skip_nested(b'{', b'}'),
            b'[' => self.skip_nested(b'[', b']'),
            _ => self.skip_scalar(),
        }
    }

    /// That nothing follows.
    pub(super) fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    /// Counts brackets of one kind: those of the other kind are balanced between them.
    fn skip_nested(&mut self, open: u8, close: u8) -> Option<()> {
        let mut depth = 0usize;
        loop {
            let found = self.pass_to(
                |word| has(word, b'"') | has(word, open) | has(word, close),
                |bytes| memchr3(b'"', open, close, bytes),
            )?;
            if found == b'"' {
                self.string()?;
            } else if found == open {
                depth = depth.saturating_add(1);
            } else {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(());
                }
            }
        }
    }

    /// Passes a number or a word: whatever it is, up to the next byte that can follow one.
    fn skip_scalar(&mut self) -> Option<()> {
        let is_behind = |byte: &u8| matches!(*byte, 0..=b' ' | b',' | b'}' | b']' | b':' | b'"');
        let length = self.rest.iter().position(is_behind).unwrap_or(self.rest.len());
        self.rest = self.rest.get(length..)?;
        (length > 0).then_some(())
    }

    /// Passes a string whose opening quote has been passed.
    fn string(&mut self) -> Option<Text<'a>> {
        let begin = self.rest;
        let mut has_escapes = false;
        while self.pass_to(|word| has(word, b'"') | has(word, b'\\'), |bytes| memchr2(b'"', b'\\', bytes))? != b'"' {
            has_escapes = true;
            self.rest = self.rest.get(1..)?;
        }
        let passed = begin.len().wrapping_sub(self.rest.len()); // the closing quote among them
        Some(Text { inner: begin.get(..passed.saturating_sub(1))?, has_escapes })
    }

    /// Passes everything up to and including a wanted byte, and gives that. `near` marks the wanted bytes of a word as
    /// [`has`] does, `far` finds the first one in many.
    #[inline]
    fn pass_to(&mut self, near: impl Fn(u64) -> u64, far: impl FnOnce(&[u8]) -> Option<usize>) -> Option<u8> {
        for _ in 0..NEAR_WORDS {
            let Some((word, after)) = self.rest.split_first_chunk::<8>() else { break };
            let marks = near(u64::from_le_bytes(*word));
            if marks != 0 {
                return self.pass((marks.trailing_zeros() / 8) as usize);
            }
            self.rest = after;
        }
        let length = far(self.rest)?;
        self.pass(length)
    }

    /// Passes so many bytes and the one behind them, and gives that one.
    #[inline]
    fn pass(&mut self, length: usize) -> Option<u8> {
        let (last, after) = self.rest.get(length..)?.split_first()?;
        self.rest = after;
        Some(*last)
    }

    /// The next byte that is not whitespace.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        while let Some((byte, after)) = self.rest.split_first() {
            if *byte > b' ' {
                return Some(*byte);
            }
            self.rest = after;
        }
        None
    }

    /// Passes the next byte that is not whitespace.
    #[inline]
    fn take(&mut self) -> Option<u8> {
        self.peek()?;
        self.pass(0)
    }

    #[inline]
    fn eat(&mut self, expected: u8) -> Option<()> {
        (self.take()? == expected).then_some(())
    }
}

impl<'a> Text<'a> {
    #[inline]
    fn decoded(&self) -> Option<Cow<'a, [u8]>> {
        if !self.has_escapes {
            return Some(Cow::Borrowed(self.inner));
        }
        let quoted = [b"\"".as_slice(), self.inner, b"\""].concat();
        serde_json::from_slice::<String>(&quoted).ok().map(|text| Cow::Owned(text.into_bytes()))
    }
}

/// Marks the bytes of a word that are `wanted` by their highest bit. A mark above a true one may be false; the lowest is
/// not (the carry of a subtraction only goes upwards).
#[inline]
fn has(word: u64, wanted: u8) -> u64 {
    let zeros = word ^ u64::from_le_bytes([wanted; 8]);
    zeros.wrapping_sub(u64::from_le_bytes([0x01; 8])) & !zeros & u64::from_le_bytes([0x80; 8])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    /// The whole text, every value reached by walking.
    fn walked(json: &[u8]) -> Option<Value> {
        let mut walk = Walk::new(json);
        let value = match walk.peek()? {
            b'{' => {
                let mut object = Map::new();
                walk.members(|name, walk| {
                    object.insert(String::from_utf8(name.to_vec()).ok()?, walked(walk.value()?)?);
                    Some(())
                })?;
                Value::Object(object)
            }
            b'[' => {
                let mut array = Vec::new();
                walk.elements(|walk| {
                    array.push(walked(walk.value()?)?);
                    Some(())
                })?;
                Value::Array(array)
            }
            _ => serde_json::from_slice(walk.value()?).ok()?,
        };
        walk.end()?;
        Some(value)
    }

    fn is_object(json: &[u8]) -> bool {
        let mut walk = Walk::new(json);
        walk.members(|_, walk| walk.skip()).and_then(|()| walk.end()).is_some()
    }

    #[test]
    fn members_come_with_their_bytes_in_their_order() {
        for (json, expected) in [
            ("{}", Some("")),
            (" { } ", Some("")),
            (r#"{"a":1}"#, Some("a=1;")),
            (
                "{ \"a\" : [1, {\"]\": \"}\"}] ,\n\t\"b\" : {\"c\": [ ]}, \"c\":-1.5e3 }\r\n",
                Some(r#"a=[1, {"]": "}"}];b={"c": [ ]};c=-1.5e3;"#),
            ),
            (r#"{"a":"\"","b":"\\","c":"\\\"}"}"#, Some(r#"a="\"";b="\\";c="\\\"}";"#)),
            (r#"{"\u0061\n":null}"#, Some("a\n=null;")),
            (
                r#"{"a key of more than twenty-four bytes":"a value of more than twenty-four bytes"}"#,
                Some(r#"a key of more than twenty-four bytes="a value of more than twenty-four bytes";"#),
            ),
            ("", None),
            ("null", None),
            ("[]", None),
            ("{", None),
            (r#"{"a""#, None),
            (r#"{"a":}"#, None),
            (r#"{"a":1"#, None),
            (r#"{"a":1,}"#, None),
            (r#"{"a":1 "b":2}"#, None),
            (r#"{"a":1}}"#, None),
            (r#"{"a":"\"#, None),
            (r#"{"a":"\"}"#, None),
            (r#"{"a":{"b":1}"#, None),
            (r#"{1:2}"#, None),
        ] {
            let mut seen = Vec::new();
            let mut walk = Walk::new(json.as_bytes());
            let whole = walk
                .members(|name, walk| {
                    seen.extend([name, b"=", walk.value()?, b";"].concat());
                    Some(())
                })
                .and_then(|()| walk.end());
            assert_eq!(whole.map(|()| String::from_utf8(seen).unwrap()).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn a_second_member_of_a_name_is_not_kept() {
        for (json, expected) in [
            (r#"{"a":1,"b":2}"#, Some(Some(&b"1"[..]))),
            (r#"{"b":2}"#, Some(None)),
            (r#"{"a":null}"#, Some(Some(&b"null"[..]))),
            (r#"{"a":1,"a":1}"#, None),
            (r#"{"a":null,"\u0061":1}"#, None),
        ] {
            let mut kept = None;
            let whole = Walk::new(json.as_bytes()).members(|name, walk| match name {
                b"a" => walk.keep(&mut kept),
                _ => walk.skip(),
            });
            assert_eq!(whole.map(|()| kept), expected, "{json}");
        }
    }

    #[test]
    fn every_fixture_reads_as_a_parser_reads_it_and_no_beginning_of_one_is_whole() {
        let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/provider"));
        let mut texts = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let file = std::fs::read(&path).unwrap();
            let lines = file.split(|byte| *byte == b'\n').map(|line| line.strip_prefix(b"data: ").unwrap_or(line));
            for json in std::iter::once(&file[..]).chain(lines) {
                let Ok(expected) = serde_json::from_slice::<Value>(json) else { continue };
                assert_eq!(walked(json), Some(expected.clone()), "{}", path.display());
                texts.push(json.len());
                let text = json.trim_ascii();
                for length in (0..text.len()).step_by(text.len().div_ceil(100)).filter(|_| expected.is_object()) {
                    assert!(!is_object(&text[..length]), "{} cut at {length}", path.display());
                }
            }
        }
        assert!(texts.len() > 500, "{}", texts.len());
    }

    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(prop_oneof![Just('"'), Just('\\'), Just('}'), Just(']'), any::<char>()], 0..30)
            .prop_map(|chars| chars.into_iter().collect())
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((text(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_json_reads_as_a_parser_reads_it(value in any_json()) {
            for json in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
                let read = walked(json.as_bytes());
                prop_assert_eq!(read.as_ref(), Some(&value));
            }
        }

        #[test]
        fn any_bytes_are_passed_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            signs in prop::collection::vec(prop::sample::select(b"{}[]\"\":,,\\ 1nu\n\xff".to_vec()), 0..64),
        ) {
            for bytes in [&bytes, &signs, &[b"{\"a\":".as_slice(), &signs, b"}"].concat()] {
                let read = walked(bytes);
                is_object(bytes);
                let mut walk = Walk::new(bytes);
                while walk.value().is_some() || walk.take().is_some() {}
                if let Ok(expected) = serde_json::from_slice::<Value>(bytes) {
                    prop_assert_eq!(read, Some(expected));
                }
            }
        }

        #[test]
        fn a_word_has_its_lowest_mark_where_the_byte_is(bytes: [u8; 8], wanted: u8) {
            let marks = has(u64::from_le_bytes(bytes), wanted);
            let place = bytes.iter().position(|byte| *byte == wanted).unwrap_or(8);
            prop_assert_eq!((marks.trailing_zeros() / 8) as usize, place);
        }
    }
}
