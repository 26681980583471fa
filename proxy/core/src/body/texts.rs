//! The texts by which a field is compared, cut from JSON that a parser has proven to be JSON.
//!
//! What is compared is what stands in the body. Parsed and written again, a number is another text (`5e-1` becomes
//! `0.5`), and of two equal names in an object the first is gone, which may be the one that the provider reads. So
//! nothing is parsed here: a text that is known to be JSON falls into its tokens by no more grammar than where a string
//! ends.

use std::borrow::Cow;

use memchr::memchr2;

use super::BadBody;
use super::members::decoded;
use crate::policy::Naming;

/// The most arrays and objects within each other in a value that is compared.
const DEEPEST: usize = 128;
/// The most members of one object in it.
const MOST_MEMBERS: usize = 10_000;

const WHITE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Whether every text of a value fits; `json` is the value, `field` its name for errors.
///
/// A string is compared decoded; a number, `true`, `false` and `null` as they stand; an array item by item, those of
/// arrays in it too, so that an empty one fits. An object is one text, whatever is in it: as it stands, without the
/// white space between its tokens.
///
/// # Errors
/// An object with two members that some reader could take for one, anywhere in the value; a name, or a string that is
/// compared, which cannot be decoded; nesting or objects beyond measure. One pass, whatever `fits` says.
pub(super) fn all_fit(field: &str, json: &str, naming: Naming, fits: impl Fn(&str) -> bool) -> Result<bool, BadBody> {
    let text = |token| decoded(token).map_err(|error| BadBody::NotJson(error.to_string()));
    // What is open: the names of an object so far, or an array.
    let mut open: Vec<Option<Vec<Cow<'_, str>>>> = Vec::new();
    // Where among them the object stands that is compared as one text, and that text so far.
    let mut outermost = None;
    let mut object = String::new();
    let mut at_name = false;
    let mut all = true;
    for token in Tokens(json) {
        if token == "{" && outermost.is_none() {
            outermost = Some(open.len());
        }
        if outermost.is_some() {
            object.push_str(token);
        }
        match token {
            "{" | "[" => {
                if open.len() >= DEEPEST {
                    return Err(BadBody::TooLarge(field.to_owned()));
                }
                at_name = token == "{";
                open.push(at_name.then(Vec::new));
            }
            "}" | "]" => {
                if let Some(Some(names)) = open.pop()
                    && has_double(names, naming)
                {
                    return Err(BadBody::TwiceWithin(field.to_owned()));
                }
                if outermost == Some(open.len()) {
                    outermost = None;
                    all = all && fits(&object);
                    object.clear();
                }
            }
            "," => at_name = matches!(open.last(), Some(Some(_))),
            ":" => {}
            name if at_name => {
                let Some(Some(names)) = open.last_mut() else { continue };
                if names.len() >= MOST_MEMBERS {
                    return Err(BadBody::TooLarge(field.to_owned()));
                }
                names.push(text(name)?);
                at_name = false;
            }
            item if outermost.is_none() => {
                let item = if item.starts_with('"') { text(item)? } else { Cow::Borrowed(item) };
                all = all && fits(&item);
            }
            _ => {}
        }
    }
    Ok(all)
}

fn has_double(mut names: Vec<Cow<'_, str>>, naming: Naming) -> bool {
    names.sort_unstable_by(|one, other| naming.folded(one).cmp(naming.folded(other)));
    names.windows(2).any(|pair| matches!(pair, [one, other] if naming.resembles(one, other)))
}

/// The tokens of a text that is JSON.
struct Tokens<'j>(&'j str);

impl<'j> Iterator for Tokens<'j> {
    type Item = &'j str;

    fn next(&mut self) -> Option<&'j str> {
        let rest = self.0.trim_start_matches(WHITE);
        let end = match rest.as_bytes().first()? {
            b'{' | b'}' | b'[' | b']' | b',' | b':' => 1,
            b'"' => behind_string(rest.as_bytes()),
            _ => rest.find([',', '}', ']', ' ', '\t', '\n', '\r']).unwrap_or(rest.len()),
        };
        let (token, rest) = rest.split_at_checked(end)?;
        self.0 = rest;
        Some(token)
    }
}

/// The end of the string at the beginning of a text, its quote included.
fn behind_string(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        let place = at.saturating_add(found);
        match text.get(place) {
            Some(b'\\') => at = place.saturating_add(2),
            _ => return place.saturating_add(1),
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn texts(json: &str, naming: Naming) -> Result<Vec<String>, BadBody> {
        let seen = RefCell::new(Vec::new());
        let fits = |text: &str| {
            seen.borrow_mut().push(text.to_owned());
            true
        };
        assert!(all_fit("f", json, naming, fits)?);
        Ok(seen.into_inner())
    }

    #[test]
    fn what_is_compared_is_what_stands_there() {
        for (json, expected) in [
            ("0.50", &["0.50"][..]),
            ("5e-1", &["5e-1"]),
            ("-0", &["-0"]),
            ("1e999", &["1e999"]),
            ("12345678901234567890123", &["12345678901234567890123"]),
            ("true", &["true"]),
            ("null", &["null"]),
            ("[]", &[]),
            ("[ [ ] , [ [ ] ] ]", &[]),
            (r#"[1.0, "a\u0062\"]", [false, ["c"]]]"#, &["1.0", "ab\"]", "false", "c"]),
            ("{}", &["{}"]),
            ("{ }", &["{}"]),
            (
                "{\n\t\"type\" : \"json_object\" ,\r\n \"b\" : [ 1.0 , { \"c d\" : \"e f\" } ] }",
                &[r#"{"type":"json_object","b":[1.0,{"c d":"e f"}]}"#],
            ),
            (r#"{"b":"\u0061\\","a":"{\"b\":1}"}"#, &[r#"{"b":"\u0061\\","a":"{\"b\":1}"}"#]),
            (r#"[{"a":[]}, 2, {"a":{}}]"#, &[r#"{"a":[]}"#, "2", r#"{"a":{}}"#]),
            (r#"{"a":["a","a"],"b":{"a":"a"},"c":"a"}"#, &[r#"{"a":["a","a"],"b":{"a":"a"},"c":"a"}"#]),
            (r#"[{"a":1},{"a":1}]"#, &[r#"{"a":1}"#, r#"{"a":1}"#]),
            (r#"{"a":"\ud800"}"#, &[r#"{"a":"\ud800"}"#]),
        ] {
            let expected: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(texts(json, Naming::Exact), Ok(expected), "{json}");
        }
    }

    #[test]
    fn a_double_anywhere_in_a_value_is_refused() {
        for json in [
            r#"{"type":"text","type":"json_object"}"#,
            r#"{"type":"text","b":1,"\u0074ype":"json_object"}"#,
            r#"{"type":"text","Type":"json_object"}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"{"a":[[{"b":1,"c":{},"b":1}]]}"#,
            r#"[1,{"b":[],"b":[]}]"#,
            r#"{"":1,"":1}"#,
        ] {
            for naming in [Naming::Exact, Naming::Proto] {
                let doubled = Err(BadBody::TwiceWithin("f".into()));
                assert_eq!(texts(json, naming), doubled, "{json}");
                assert_eq!(all_fit("f", json, naming, |_| false), doubled.map(|_: Vec<String>| true), "{json}");
            }
        }
        for json in [r#"{"topK":1,"top_k":1}"#, r#"[{"a":{"top_k":1,"x":2,"TOPK":1}}]"#] {
            assert_eq!(texts(json, Naming::Proto), Err(BadBody::TwiceWithin("f".into())), "{json}");
            assert!(texts(r#"{"topK":1,"top_k":1}"#, Naming::Exact).is_ok(), "two names to everybody else");
        }
        for json in [r#"{"\ud800":1}"#, r#"["\ud800"]"#, r#"[[1,"a"],"\udc00a"]"#] {
            assert!(matches!(texts(json, Naming::Exact), Err(BadBody::NotJson(_))), "{json}");
        }
    }

    #[test]
    fn depth_and_members_have_a_measure() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert_eq!(texts(&nested(DEEPEST), Naming::Exact), Ok(vec![]));
        for depth in [DEEPEST + 1, 1_000_000] {
            assert_eq!(texts(&nested(depth), Naming::Exact), Err(BadBody::TooLarge("f".into())));
        }
        let object = |members: usize| {
            let members: Vec<String> = (0..members).map(|member| format!("\"{member}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(texts(&object(MOST_MEMBERS), Naming::Exact), Ok(vec![object(MOST_MEMBERS)]));
        assert_eq!(texts(&object(MOST_MEMBERS + 1), Naming::Exact), Err(BadBody::TooLarge("f".into())));
    }

    /// JSON values without doubled names.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z \"\\\\{}\\[\\],:]{0,4}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// What is compared of a value that serde_json wrote.
    fn expected(value: &Value) -> Vec<String> {
        match value {
            Value::Array(items) => items.iter().flat_map(expected).collect(),
            Value::String(text) => vec![text.clone()],
            other => vec![other.to_string()],
        }
    }

    proptest! {
        #[test]
        fn white_space_between_tokens_changes_nothing(value in value()) {
            let expected = expected(&value);
            prop_assert_eq!(texts(&value.to_string(), Naming::Exact), Ok(expected.clone()));
            prop_assert_eq!(texts(&serde_json::to_string_pretty(&value).unwrap(), Naming::Exact), Ok(expected));
        }

        #[test]
        fn the_tokens_of_any_text_come_to_an_end(text in ".{0,60}") {
            let length: usize = Tokens(&text).map(str::len).sum();
            prop_assert!(length <= text.len());
        }
    }
}
