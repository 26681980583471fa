//! Members of a JSON object that can be read in one way only, as the bytes they are.
//!
//! One parser, serde_json, both proves the text and says where a value lies in it. A walk of our own beside it could
//! come to see another place than the one that was proven.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::policy::Naming;

/// Why members cannot be read in one way.
#[derive(Debug)]
pub(crate) enum Unclear {
    /// The text is not exactly one JSON value.
    NotJson(serde_json::Error),
    /// The name at this place among the wanted stands there twice, or in another spelling than its own.
    Twice(usize),
}

/// The wanted members of one JSON object, each a part of `json` without white space around it. Names compare decoded.
/// `None`: it is another JSON value.
///
/// # Errors
/// [`Unclear`].
pub(crate) fn members<'j, const N: usize>(
    json: &'j str,
    naming: Naming,
    names: [&str; N],
) -> Result<Option<[Option<&'j str>; N]>, Unclear> {
    let mut found = [None; N];
    let is_object = read(json, naming, &names, &mut found)?;
    Ok(is_object.then_some(found))
}

/// The same for any number of names: puts each member that is there to its name's place in `found`. Tells whether it is
/// an object.
///
/// # Errors
/// [`Unclear`].
pub(crate) fn read<'j>(
    json: &'j str,
    naming: Naming,
    names: &[&str],
    found: &mut [Option<&'j str>],
) -> Result<bool, Unclear> {
    let mut twice = None;
    let mut reader = serde_json::Deserializer::from_str(json);
    let outcome = Wanted { naming, names, found, twice: &mut twice }.deserialize(&mut reader);
    let outcome = outcome.and_then(|is_object| reader.end().map(|()| is_object));
    match twice {
        Some(place) => Err(Unclear::Twice(place)),
        None => outcome.map_err(Unclear::NotJson),
    }
}

/// Reads one JSON value of any kind, and tells whether it is an object.
pub(crate) struct Wanted<'w, 'j> {
    pub(crate) naming: Naming,
    pub(crate) names: &'w [&'w str],
    /// The members found, by the place of their name.
    pub(crate) found: &'w mut [Option<&'j str>],
    /// Why reading failed, where it was not the JSON.
    pub(crate) twice: &'w mut Option<usize>,
}

impl<'de> DeserializeSeed<'de> for Wanted<'_, 'de> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_, 'de> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        while let Some(name) = map.next_key_seed(Text)? {
            let mut places = self.names.iter().zip(self.found.iter_mut()).enumerate();
            let Some((place, (wanted, value))) = places.find(|(_, (wanted, _))| self.naming.resembles(wanted, &name))
            else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if value.is_some() || !self.naming.is_spelling(wanted, &name) {
                *self.twice = Some(place);
                return Err(A::Error::custom("a member that can be read in two ways"));
            }
            *value = Some(map.next_value::<&RawValue>()?.get());
        }
        Ok(true)
    }

    // A value that is no object has none of the members.
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(false)
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, _: &str) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }
}

/// The text of a JSON string, borrowed where it has no escapes.
///
/// # Errors
/// What is no string, or one that has half a surrogate pair.
pub(crate) fn decoded(json: &str) -> serde_json::Result<Cow<'_, str>> {
    Text.deserialize(&mut serde_json::Deserializer::from_str(json))
}

/// A JSON string, borrowed where it has no escapes.
pub(crate) struct Text;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// `Err(None)`: not JSON. `Err(Some(_))`: twice, the name's place.
    fn found(json: &str, naming: Naming) -> Result<Option<[Option<&str>; 2]>, Option<usize>> {
        members(json, naming, ["a", "topK"]).map_err(|unclear| match unclear {
            Unclear::NotJson(_) => None,
            Unclear::Twice(place) => Some(place),
        })
    }

    #[test]
    fn members_are_read_where_they_can_be_read_in_one_way() {
        for (json, expected) in [
            ("{}", Ok(Some([None, None]))),
            (r#" {"a" : [1, {"topK":2}] ,"c":"}"} "#, Ok(Some([Some(r#"[1, {"topK":2}]"#), None]))),
            (r#"{"topK":null,"\u0061":-1.50e+3 }"#, Ok(Some([Some("-1.50e+3"), Some("null")]))),
            (r#"{"c":1,"c":2,"C":3,"a":"\""}"#, Ok(Some([Some(r#""\"""#), None]))),
            (r#"{"a":1e999,"top_k":1}"#, Ok(Some([Some("1e999"), None]))),
            (r#"{"a":1,"a":1}"#, Err(Some(0))),
            (r#"{"a":1,"\u0061":1}"#, Err(Some(0))),
            (r#"{"a":1,"A":1}"#, Err(Some(0))),
            (r#"{"topk":1}"#, Err(Some(1))),
            (r#"{"a":1,}"#, Err(None)),
            (r#"{"a":1"#, Err(None)),
            (r#"{"a":1}}"#, Err(None)),
            (r#"{"a":01}"#, Err(None)),
            (r#"{"c":NaN}"#, Err(None)),
            (r#"{"\ud800":1}"#, Err(None)),
            ("", Err(None)),
            ("[{}, {\"a\":1}]", Ok(None)),
            ("null", Ok(None)),
            ("-1", Ok(None)),
            ("1.5", Ok(None)),
            (r#""a""#, Ok(None)),
        ] {
            assert_eq!(found(json, Naming::Exact), expected, "{json}");
        }
    }

    #[test]
    fn to_proto_two_spellings_are_one_name() {
        for (json, expected) in [
            (r#"{"top_k":1}"#, Ok(Some([None, Some("1")]))),
            (r#"{"topK":1}"#, Ok(Some([None, Some("1")]))),
            (r#"{"topK":1,"top_k":1}"#, Err(Some(1))),
            (r#"{"top_k":1,"top_k":1}"#, Err(Some(1))),
            (r#"{"TopK":1}"#, Err(Some(1))),
            (r#"{"topk":1}"#, Err(Some(1))),
            (r#"{"A":1}"#, Err(Some(0))),
        ] {
            assert_eq!(found(json, Naming::Proto), expected, "{json}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
        let json = format!(r#"{{"a":{deep},"c":{deep}}}"#);
        assert_eq!(found(&json, Naming::Exact), Ok(Some([Some(&*deep), None])));
    }

    #[test]
    fn a_string_is_decoded() {
        for (json, expected) in
            [(r#""a""#, Some("a")), (r#""\u0061\n""#, Some("a\n")), (r#""\ud83d""#, None), ("1", None), ("null", None)]
        {
            assert_eq!(decoded(json).ok().as_deref(), expected, "{json}");
        }
    }
}
