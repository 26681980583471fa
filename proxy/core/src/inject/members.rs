//! Members of a JSON object that can be read in one way only, as the bytes they are.
//!
//! One parser, serde_json, both proves the text and says where a value lies in it. A walk of our own beside it could
//! come to see another place than the one that was proven.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The wanted members of one JSON object, each a part of `json` without white space around it. Names compare decoded.
///
/// `None` where `json` is not exactly one object, or has a wanted name twice or in another letter case, which some
/// readers take for the same.
pub(super) fn members<'j, const N: usize>(json: &'j str, wanted: [&str; N]) -> Option<[Option<&'j str>; N]> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let found = reader.deserialize_map(Wanted(wanted)).ok()?;
    reader.end().ok()?;
    Some(found.map(|value| value.map(RawValue::get)))
}

/// Whether an object or array, beginning with its bracket, has nothing in it.
pub(super) fn is_empty(container: &str) -> bool {
    let inner = container.bytes().skip(1).find(|byte| !byte.is_ascii_whitespace());
    matches!(inner, Some(b'}' | b']'))
}

struct Wanted<'w, const N: usize>([&'w str; N]);

/// A member's name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, const N: usize> Visitor<'de> for Wanted<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Self::Value = [None; N];
        while let Some(Name(name)) = map.next_key()? {
            let place = self.0.iter().zip(found.iter_mut()).find(|(wanted, _)| wanted.eq_ignore_ascii_case(&name));
            let Some((wanted, value)) = place else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let is_second = value.replace(map.next_value()?).is_some();
            if is_second || *wanted != name {
                return Err(A::Error::custom("a member that can be read in two ways"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_where_they_can_be_read_in_one_way() {
        for (json, expected) in [
            ("{}", Some([None, None])),
            (r#" {"a" : [1, {"b":2}] ,"c":"}"} "#, Some([Some(r#"[1, {"b":2}]"#), None])),
            (r#"{"b":null,"\u0061":-1.50e+3 }"#, Some([Some("-1.50e+3"), Some("null")])),
            (r#"{"c":1,"c":2,"C":3,"a":"\""}"#, Some([Some(r#""\"""#), None])),
            (r#"{"a":1,"a":1}"#, None),
            (r#"{"a":1,"\u0061":1}"#, None),
            (r#"{"a":1,"A":1}"#, None),
            (r#"{"B":1}"#, None),
            (r#"{"a":1,}"#, None),
            (r#"{"a":1"#, None),
            (r#"{"a":1}}"#, None),
            (r#"{"a":01}"#, None),
            (r#"{"c":NaN}"#, None),
            ("[]", None),
            ("null", None),
            (r#""a""#, None),
            ("", None),
        ] {
            assert_eq!(members(json, ["a", "b"]), expected, "{json}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
        let json = format!(r#"{{"a":{deep},"c":{deep}}}"#);
        assert_eq!(members(&json, ["a"]), Some([Some(&*deep)]));
    }

    #[test]
    fn a_container_is_empty_if_it_closes_at_once() {
        for (container, expected) in
            [("{}", true), ("[ \n]", true), ("{ }", true), ("[[]]", false), ("[0]", false), (r#"{"a":[]}"#, false)]
        {
            assert_eq!(is_empty(container), expected, "{container}");
        }
    }
}
