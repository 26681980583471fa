//! What policy reads of a JSON body: a few top-level fields, found without trusting the rest.
//!
//! Two readers with two promises. [`read`] judges: it sees the whole body, refuses what two parsers could read
//! differently, and what it returns is what the provider will read. [`ModelScan`] only takes notes for the record
//! while the body streams past: it may miss, and never refuses.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::policy::Glob;

/// A body that a policy cannot judge. The text goes to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Bytes that are not UTF-8 (RFC 8259 §8.1).
    #[error("the body is not valid UTF-8")]
    NotUtf8,
    /// Not exactly one JSON value, or a policy field nested deeper than 128 levels.
    #[error("the body is not one JSON value: {0}")]
    NotJson(String),
    /// A field that policy reads stands there twice or in another letter case, so that two parsers could see two values.
    #[error("the field `{0}` stands in the body twice, or not in small letters")]
    Twice(String),
}

/// The fields asked for, as far as the body has them at its top level.
#[derive(Debug, Default, PartialEq)]
pub struct Fields(Vec<(String, Value)>);

impl Fields {
    /// The field's value, if present.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// Fields of another form than JSON, whose values are all texts.
    pub fn from_texts(fields: Vec<(String, String)>) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect())
    }

    /// The `model` field when it is a string.
    pub fn model(&self) -> Option<&str> {
        self.get("model").and_then(Value::as_str)
    }
}

/// Reads the wanted top-level fields of a whole body. Names compare decoded, so `mod\u0065l` is `model`.
///
/// # Errors
/// [`BadBody`] when the body is not UTF-8, not exactly one JSON value, or has a wanted field twice.
pub fn read(body: &[u8], wanted: &[&str]) -> Result<Fields, BadBody> {
    let text = std::str::from_utf8(body).map_err(|_| BadBody::NotUtf8)?;
    let mut fields = Fields::default();
    let mut twice = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let outcome = json
        .deserialize_any(TopLevel { wanted, fields: &mut fields, twice: &mut twice })
        .and_then(|()| json.end())
        .map_err(|error| BadBody::NotJson(error.to_string()));
    match twice {
        Some(name) => Err(BadBody::Twice(name)),
        None => outcome.map(|()| fields),
    }
}

struct TopLevel<'a> {
    wanted: &'a [&'a str],
    fields: &'a mut Fields,
    twice: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Text)? {
            let Some(wanted) = self.wanted.iter().find(|wanted| wanted.eq_ignore_ascii_case(&name)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            // Some readers take names in any letter case: another spelling is a second field.
            if *wanted != name || self.fields.get(&name).is_some() {
                *self.twice = Some(name.into_owned());
                return Err(serde::de::Error::custom("a policy field stands there twice"));
            }
            self.fields.0.push((name.into_owned(), map.next_value()?));
        }
        Ok(())
    }

    // A value that is no object has none of the fields.
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A JSON string, borrowed where it has no escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Whether a present field matches one of its globs: strings as they are, other values as their JSON text, arrays item
/// by item (an empty array passes).
pub fn param_allowed(value: &Value, globs: &[Glob]) -> bool {
    match value {
        Value::Array(items) => items.iter().all(|item| param_allowed(item, globs)),
        Value::String(text) => globs.iter().any(|glob| glob.matches(text)),
        other => {
            let text = other.to_string();
            globs.iter().any(|glob| glob.matches(&text))
        }
    }
}

/// Finds the first top-level `"model": "…"` of a JSON object while its bytes stream past, in any split.
///
/// Holds at most [`LONGEST_MODEL`] bytes and looks at most at the first [`FARTHEST`] of the body. An escaped name or a
/// longer one is not reported: the record then says unknown.
#[derive(Debug, Default)]
pub struct ModelScan {
    state: Scan,
    depth: u32,
    /// The string being read, while it can still matter.
    text: Vec<u8>,
    /// Whether the string being read is a key of the top-level object.
    is_key: bool,
    /// The last key was `model`, and its value comes next.
    at_model: bool,
    seen: usize,
}

/// The longest model name taken down, in bytes.
pub const LONGEST_MODEL: usize = 256;
/// How far into a body the scan looks, in bytes.
pub const FARTHEST: usize = 1 << 20;

#[derive(Debug, Default, PartialEq, Eq)]
enum Scan {
    #[default]
    Between,
    InString,
    Escaped,
    Done,
}

impl ModelScan {
    /// Takes the next piece of the body. Cheap once the model is found.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.state == Scan::Done {
            return;
        }
        let mut rest = piece.get(..FARTHEST.saturating_sub(self.seen)).unwrap_or(piece);
        self.seen = self.seen.saturating_add(piece.len());
        while !rest.is_empty() && self.state != Scan::Done {
            rest = match self.state {
                Scan::InString => self.string(rest),
                Scan::Escaped => {
                    self.state = Scan::InString;
                    rest.get(1..).unwrap_or(&[])
                }
                _ => self.between(rest),
            };
        }
        if self.seen >= FARTHEST && self.state != Scan::Done {
            self.stop(false);
        }
    }

    /// The model's name, if it was found and is UTF-8.
    pub fn model(&self) -> Option<&str> {
        (self.state == Scan::Done && !self.text.is_empty()).then(|| std::str::from_utf8(&self.text).ok()).flatten()
    }

    fn stop(&mut self, found: bool) {
        self.state = Scan::Done;
        if !found {
            self.text = Vec::new();
        }
    }

    fn matters(&self) -> bool {
        self.depth == 1
    }

    fn string<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let end = memchr::memchr2(b'"', b'\\', rest);
        let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or(&[]);
        if self.matters() && self.text.len() <= LONGEST_MODEL {
            let room = LONGEST_MODEL.saturating_add(1).saturating_sub(self.text.len());
            self.text.extend_from_slice(text.get(..text.len().min(room)).unwrap_or(&[]));
        }
        let Some(end) = end else { return &[] };
        if rest.get(end) == Some(&b'\\') {
            // An escape makes the raw bytes differ from the text: spoil it.
            if self.matters() && self.text.len() <= LONGEST_MODEL {
                self.text.push(b'\\');
            }
            self.state = Scan::Escaped;
        } else {
            self.state = Scan::Between;
            if self.matters() {
                if self.is_key {
                    self.at_model = self.text == b"model";
                } else if self.at_model {
                    let plain = self.text.len() <= LONGEST_MODEL && !self.text.contains(&b'\\');
                    self.stop(plain);
                }
            }
        }
        rest.get(end.saturating_add(1)..).unwrap_or(&[])
    }

    fn between<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    if self.matters() {
                        self.text.clear();
                    }
                    self.state = Scan::InString;
                    return rest.get(at.saturating_add(1)..).unwrap_or(&[]);
                }
                b'{' | b'[' => {
                    if self.depth == 0 && *byte == b'[' {
                        self.stop(false);
                        return &[];
                    }
                    self.depth = self.depth.saturating_add(1);
                    self.is_key = self.depth == 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.stop(false);
                        return &[];
                    }
                }
                b':' if self.matters() => self.is_key = false,
                b',' if self.matters() => {
                    self.is_key = true;
                    self.at_model = false;
                }
                _ => {}
            }
        }
        &[]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model_of(pieces: &[&[u8]]) -> Option<String> {
        let mut scan = ModelScan::default();
        for piece in pieces {
            scan.feed(piece);
        }
        scan.model().map(str::to_owned)
    }

    #[test]
    fn wanted_fields_are_read_and_the_rest_is_only_checked() {
        let fields =
            read(br#"{"messages":[{"model":"no"}],"mod\u0065l":"gpt-4o","n":2}"#, &["model", "n", "x"]).unwrap();
        assert_eq!(fields.model(), Some("gpt-4o"));
        assert_eq!(fields.get("n"), Some(&Value::from(2)));
        assert_eq!(fields.get("x"), None);
        for body in [&b"[1,{\"model\":\"a\"}]"[..], b"null", b"\"text\"", b"1e3", b" true "] {
            assert_eq!(read(body, &["model"]), Ok(Fields::default()));
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for body in [
            &b""[..],
            b"{",
            b"{\"model\":\"a\"} x",
            b"{\"model\":\"a\"}{}",
            b"\xEF\xBB\xBF{}",
            b"{\"a\":NaN}",
            b"{\"a\":01}",
            b"{'model':'a'}",
            b"{\"model\":\"a\",}",
            b"{\"model\":\"a\" /* */}",
            b"{\"\\ud800\":1}",
        ] {
            assert!(matches!(read(body, &["model"]), Err(BadBody::NotJson(_))), "{}", body.escape_ascii());
        }
        assert_eq!(read(b"{\"model\":\"\xFF\"}", &["model"]), Err(BadBody::NotUtf8));
        let deep = ["[".repeat(10_000), "]".repeat(10_000)].concat();
        let wanted = format!("{{\"model\":{deep}}}");
        assert!(matches!(read(wanted.as_bytes(), &["model"]), Err(BadBody::NotJson(_))));
        let other = format!("{{\"x\":{deep},\"model\":\"a\"}}");
        assert_eq!(read(other.as_bytes(), &["model"]).unwrap().model(), Some("a"), "depth elsewhere costs no stack");
        for body in [&br#"{"model":"a","model":"b"}"#[..], br#"{"model":"a","mod\u0065l":"a"}"#] {
            assert_eq!(read(body, &["model"]), Err(BadBody::Twice("model".into())));
        }
        assert_eq!(read(br#"{"model":"a","Model":"b"}"#, &["model"]), Err(BadBody::Twice("Model".into())));
        assert!(read(br#"{"x":1,"x":2,"model":"a"}"#, &["model"]).is_ok(), "other fields are the provider's business");
    }

    #[test]
    fn params_compare_as_text() {
        let globs = [Glob::new("gpt-4o*"), Glob::new("2"), Glob::new("true")];
        for (value, expected) in [
            (serde_json::json!("gpt-4o-mini"), true),
            (serde_json::json!("o3"), false),
            (serde_json::json!(2), true),
            (serde_json::json!(true), true),
            (serde_json::json!(["gpt-4o", 2]), true),
            (serde_json::json!(["gpt-4o", "o3"]), false),
            (serde_json::json!([]), true),
            (serde_json::json!(null), false),
        ] {
            assert_eq!(param_allowed(&value, &globs), expected, "{value}");
        }
    }

    #[test]
    fn the_scan_takes_the_top_level_model_only() {
        for (body, expected) in [
            (&br#"{"model":"gpt-4o"}"#[..], Some("gpt-4o")),
            (
                br#"{"messages":[{"role":"user","content":"\"model\":\"x\"","model":"y"}], "model" : "gpt-4o" }"#,
                Some("gpt-4o"),
            ),
            (br#"{"a":{"model":"x"}}"#, None),
            (br#"{"model":5,"b":"x"}"#, None),
            (br#"{"model":{"model":"x"},"b":"x"}"#, None),
            (br#"{"model":"a\u0062"}"#, None),
            (br#"[{"model":"x"}]"#, None),
            (b"", None),
            (b"not json", None),
        ] {
            assert_eq!(model_of(&[body]).as_deref(), expected, "{}", body.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_model(cuts in proptest::collection::vec(0usize..80, 0..8)) {
            let body = br#"{"messages":[{"content":"say \"hi\" \\"}],"stream":true,"model":"gpt-4o-mini","n":1}"#;
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut scan = ModelScan::default();
            let mut at = 0;
            for cut in cuts.into_iter().chain([body.len()]) {
                scan.feed(&body[at..cut.max(at)]);
                at = cut.max(at);
            }
            prop_assert_eq!(scan.model(), Some("gpt-4o-mini"));
        }

        #[test]
        fn no_bytes_upset_the_scan(body: Vec<u8>) {
            let mut scan = ModelScan::default();
            scan.feed(&body);
            let _ = scan.model();
        }
    }
}
