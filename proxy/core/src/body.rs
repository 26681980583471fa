//! What policy reads of a JSON body: a few top-level fields, found without trusting the rest.
//!
//! Two readers with two promises. [`read`] judges: it sees the whole body, refuses what two parsers could read
//! differently, and what it returns is what the provider will read. [`ModelScan`] only takes notes for the record
//! while the body streams past: it may miss, and never refuses.
//!
//! A judged field is compared as it stands in the body, not as a parser understands it ([`Fields::allows`]).

use std::borrow::Cow;

use memchr::memmem;

use self::members::{Unclear, decoded};
use crate::multipart::kind_and_parameters;
use crate::policy::{Glob, Naming};

pub(crate) mod members;
pub(crate) mod models;
mod scan;
mod texts;

pub use models::UnclearModels;
pub use scan::{FARTHEST, LONGEST_MODEL, ModelScan};

/// A body that a policy cannot judge. The text goes to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Bytes that are not UTF-8 (RFC 8259 §8.1).
    #[error("the body is not valid UTF-8")]
    NotUtf8,
    /// Not exactly one JSON value, or a name or text that policy reads is no Unicode text.
    #[error("the body is not one JSON value: {0}")]
    NotJson(String),
    /// A field that policy reads stands there twice or in another spelling, so that two parsers could see two values.
    #[error("the field `{0}` stands in the body twice, or in another spelling than its own")]
    Twice(String),
    /// So does a member of an object in this field.
    #[error("the field `{0}` has an object with two members of one name, or of names that can be taken for one")]
    TwiceWithin(String),
    /// This field is larger than what any policy is written for.
    #[error("the field `{0}` is nested deeper than 128 levels, or has an object of more than 10,000 members")]
    TooLarge(String),
    /// The models that stand elsewhere than in `model` cannot be judged.
    #[error(transparent)]
    Models(#[from] UnclearModels),
}

/// A field's value, as far as policy compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'b> {
    /// A string, decoded, or the content of a form's field.
    Text(Cow<'b, str>),
    /// Anything else: the JSON text as it stands in the body.
    Json(&'b str),
}

/// The fields asked for, as far as the body has them at its top level, each under the name it was asked for by.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fields<'b> {
    naming: Naming,
    fields: Vec<(Cow<'b, str>, Value<'b>)>,
}

impl<'b> Fields<'b> {
    /// The field's value, if present.
    pub fn get(&self, name: &str) -> Option<&Value<'b>> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// Fields of another form than JSON, whose values are all texts.
    pub fn from_texts(fields: Vec<(String, String)>) -> Self {
        let fields = fields.into_iter().map(|(name, value)| (name.into(), Value::Text(value.into()))).collect();
        Self { naming: Naming::Exact, fields }
    }

    /// The `model` field when it is a string.
    pub fn model(&self) -> Option<&str> {
        match self.get("model") {
            Some(Value::Text(model)) => Some(model),
            _ => None,
        }
    }

    /// Whether a field is absent, or every text of it matches one of the globs. Strings are compared decoded; numbers,
    /// `true`, `false` and `null` as they stand in the body; arrays item by item, so that an empty one passes; an object
    /// as it stands, without the white space between its tokens.
    ///
    /// # Errors
    /// [`BadBody`] when it has an object in which a name stands twice, at any depth, or is no text or too large.
    pub fn allows(&self, name: &str, globs: &[Glob]) -> Result<bool, BadBody> {
        let fits = |text: &str| globs.iter().any(|glob| glob.matches(text));
        match self.get(name) {
            None => Ok(true),
            Some(Value::Text(text)) => Ok(fits(text)),
            Some(Value::Json(json)) => texts::all_fit(name, json, self.naming, fits),
        }
    }

    /// Gives the models that a request names beside `model`: those in `models` and `fallbacks`, and the `model` of each of
    /// its `tools`. The fields must have been asked for.
    ///
    /// # Errors
    /// [`BadBody::Models`]; some may have been given by then.
    pub fn other_models(&self, mut take: impl FnMut(&str)) -> Result<(), BadBody> {
        match self.get("models") {
            None => {}
            Some(Value::Json(json)) => models::in_list(json, &mut take)?,
            Some(Value::Text(_)) => return Err(UnclearModels::Models.into()),
        }
        match self.get("fallbacks") {
            None => {}
            Some(Value::Json(json)) => models::in_fallbacks(json, &mut take)?,
            Some(Value::Text(_)) => return Err(UnclearModels::Fallbacks.into()),
        }
        match self.get("tools") {
            None => {}
            Some(Value::Json(json)) => models::in_tools(json, &mut take)?,
            Some(Value::Text(_)) => return Err(UnclearModels::Tools.into()),
        }
        Ok(())
    }
}

/// Reads the wanted top-level fields of a whole body. Names compare decoded, so `mod\u0065l` is `model`.
///
/// # Errors
/// [`BadBody`] when the body is not UTF-8, not exactly one JSON value, or has a wanted field twice.
pub fn read<'b>(body: &'b [u8], wanted: &[&'b str], naming: Naming) -> Result<Fields<'b>, BadBody> {
    let text = std::str::from_utf8(body).map_err(|_| BadBody::NotUtf8)?;
    let mut found = vec![None; wanted.len()];
    members::read(text, naming, wanted, &mut found).map_err(|unclear| match unclear {
        Unclear::NotJson(error) => BadBody::NotJson(error.to_string()),
        Unclear::Twice(place) => BadBody::Twice(wanted.get(place).copied().unwrap_or_default().to_owned()),
    })?;
    let mut fields = Vec::with_capacity(wanted.len());
    for (name, json) in wanted.iter().zip(found) {
        let Some(json) = json else { continue };
        let value = if json.starts_with('"') {
            Value::Text(decoded(json).map_err(|error| BadBody::NotJson(error.to_string()))?)
        } else {
            Value::Json(json)
        };
        fields.push((Cow::Borrowed(*name), value));
    }
    Ok(Fields { naming, fields })
}

/// Whether a Content-Type says JSON in the encoding that [`read`] reads: `application/json` with any parameters but a
/// charset other than UTF-8. RFC 8259 §11 has no charset; readers that heed one all the same would read another body.
pub fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or(&[]);
    let is_plain = essence.len() == content_type.len();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json") && (is_plain || has_no_other_charset(content_type))
}

fn has_no_other_charset(content_type: &[u8]) -> bool {
    let is_utf8 = |value: &str| value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("utf8");
    let parameters = std::str::from_utf8(content_type)
        .ok()
        .and_then(|text| kind_and_parameters(text.trim_end_matches([';', ' ', '\t'])))
        .map(|(_, parameters)| parameters);
    match parameters {
        // A name that only begins so may be an encoded charset (`charset*`, RFC 8187).
        Some(parameters) => parameters.iter().all(|(name, value)| {
            let is_charset = name.eq_ignore_ascii_case("charset");
            if is_charset { is_utf8(value) } else { !name.to_ascii_lowercase().starts_with("charset") }
        }),
        // Each reader makes something else of it: let none find a charset there.
        None => memmem::find(&content_type.to_ascii_lowercase(), b"charset").is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact<'b>(body: &'b [u8], wanted: &[&'b str]) -> Result<Fields<'b>, BadBody> {
        read(body, wanted, Naming::Exact)
    }

    fn globs(globs: &[&str]) -> Vec<Glob> {
        globs.iter().map(|glob| Glob::new(glob)).collect()
    }

    #[test]
    fn wanted_fields_are_read_and_the_rest_is_only_checked() {
        let body = br#"{"messages":[{"model":"no"}],"mod\u0065l":"gpt-4o","n": 2.0 ,"b":[1, {}]}"#;
        let fields = exact(body, &["model", "n", "x", "b"]).unwrap();
        assert_eq!(fields.model(), Some("gpt-4o"));
        assert_eq!(fields.get("n"), Some(&Value::Json("2.0")));
        assert_eq!(fields.get("b"), Some(&Value::Json("[1, {}]")));
        assert_eq!(fields.get("x"), None);
        for body in [&b"[1,{\"model\":\"a\"}]"[..], b"null", b"\"text\"", b"1e3", b" true "] {
            assert_eq!(exact(body, &["model"]), Ok(Fields::default()));
        }
        let number = exact(br#"{"model":1}"#, &["model"]).unwrap();
        assert_eq!(number.model(), None);
        let form = Fields::from_texts(vec![("model".to_owned(), "whisper-1".to_owned())]);
        assert_eq!(form.model(), Some("whisper-1"));
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
            b"{\"model\":\"\\ud800\"}",
        ] {
            assert!(matches!(exact(body, &["model"]), Err(BadBody::NotJson(_))), "{}", body.escape_ascii());
        }
        assert_eq!(exact(b"{\"model\":\"\xFF\"}", &["model"]), Err(BadBody::NotUtf8));
        let deep = ["[".repeat(10_000), "]".repeat(10_000)].concat();
        let judged = format!("{{\"n\":{deep}}}");
        let judged = exact(judged.as_bytes(), &["n"]).unwrap();
        assert_eq!(judged.allows("n", &globs(&["*"])), Err(BadBody::TooLarge("n".into())));
        let other = format!("{{\"x\":{deep},\"model\":\"a\"}}");
        assert_eq!(exact(other.as_bytes(), &["model"]).unwrap().model(), Some("a"), "depth elsewhere costs no stack");
        for body in [
            &br#"{"model":"a","model":"b"}"#[..],
            br#"{"model":"a","mod\u0065l":"a"}"#,
            br#"{"model":"a","Model":"b"}"#,
            br#"{"Model":"b"}"#,
        ] {
            assert_eq!(exact(body, &["model"]), Err(BadBody::Twice("model".into())));
        }
        assert!(exact(br#"{"x":1,"x":2,"model":"a"}"#, &["model"]).is_ok(), "other fields are the provider's business");
    }

    #[test]
    fn a_gemini_field_is_one_field_in_both_spellings() {
        for wanted in ["generationConfig", "generation_config"] {
            for body in [r#"{"generationConfig":1}"#, r#"{"generation_config":1}"#] {
                let fields = read(body.as_bytes(), &[wanted], Naming::Proto).unwrap();
                assert_eq!(fields.get(wanted), Some(&Value::Json("1")), "{body}");
                assert_eq!(fields.allows(wanted, &globs(&["2"])), Ok(false), "{body}");
            }
            for body in [
                r#"{"generationConfig":1,"generation_config":1}"#,
                r#"{"generation_config":1,"generation_config":1}"#,
                r#"{"generationconfig":1}"#,
                r#"{"GENERATION_CONFIG":1}"#,
            ] {
                let twice = Err(BadBody::Twice(wanted.to_owned()));
                assert_eq!(read(body.as_bytes(), &[wanted], Naming::Proto), twice, "{body}");
            }
            let body = br#"{"generationConfig":{"topK":1,"top_k":40}}"#;
            let fields = read(body, &[wanted], Naming::Proto).unwrap();
            assert_eq!(fields.allows(wanted, &globs(&["*"])), Err(BadBody::TwiceWithin(wanted.to_owned())));
        }
        let fields = exact(br#"{"max_tokens":1,"maxTokens":2}"#, &["max_tokens"]).unwrap();
        assert_eq!(fields.get("max_tokens"), Some(&Value::Json("1")), "elsewhere they are two");
    }

    #[test]
    fn fields_compare_as_they_stand() {
        let allowed = globs(&["gpt-4o*", "2", "0.5", "true", r#"{"type":"json_object"}"#]);
        for (value, expected) in [
            (r#""gpt-4o-mini""#, Ok(true)),
            (r#""gpt\u002d4o""#, Ok(true)),
            (r#""o3""#, Ok(false)),
            ("2", Ok(true)),
            (r#""2""#, Ok(true)),
            ("2.0", Ok(false)),
            ("0.5", Ok(true)),
            ("0.50", Ok(false)),
            ("5e-1", Ok(false)),
            ("true", Ok(true)),
            ("false", Ok(false)),
            ("null", Ok(false)),
            (r#"["gpt-4o", 2, [true]]"#, Ok(true)),
            (r#"["gpt-4o","o3"]"#, Ok(false)),
            ("[]", Ok(true)),
            (r#"{ "type" : "json_object" }"#, Ok(true)),
            (r#"[{"type":"json_object"}]"#, Ok(true)),
            (r#"{"type":"json_object","x":1}"#, Ok(false)),
            (r#"{"type":"text","type":"json_object"}"#, Err(BadBody::TwiceWithin("f".into()))),
            (r#"["o3",{"type":"text","type":"json_object"}]"#, Err(BadBody::TwiceWithin("f".into()))),
        ] {
            let body = format!(r#"{{"f": {value} }}"#);
            let fields = exact(body.as_bytes(), &["f"]).unwrap();
            assert_eq!(fields.allows("f", &allowed), expected, "{value}");
            assert_eq!(fields.allows("g", &[]), Ok(true), "what is absent passes");
        }
    }

    #[test]
    fn other_models_are_given_or_refused() {
        let tools = r#""tools":[{"type":"function"},{"type":"image_generation","model":"gpt-image-1"}]"#;
        for (body, expected) in [
            (r#"{"model":"a"}"#.to_owned(), Ok(vec![])),
            (format!(r#"{{{tools},"models":["b","c"]}}"#), Ok(vec!["b", "c", "gpt-image-1"])),
            (r#"{"models":"b"}"#.to_owned(), Err(UnclearModels::Models)),
            (r#"{"models":null}"#.to_owned(), Err(UnclearModels::Models)),
            (r#"{"tools":"b"}"#.to_owned(), Err(UnclearModels::Tools)),
            (r#"{"tools":[{"model":{}}]}"#.to_owned(), Err(UnclearModels::Tools)),
        ] {
            let fields = exact(body.as_bytes(), &["model", "models", "tools"]).unwrap();
            let mut given = Vec::new();
            let outcome = fields.other_models(|model| given.push(model.to_owned())).map(|()| given);
            let expected = expected.map(|models| models.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(outcome, expected.map_err(BadBody::Models), "{body}");
        }
        let form = Fields::from_texts(vec![("models".to_owned(), "[]".to_owned())]);
        assert_eq!(form.other_models(|_| {}), Err(BadBody::Models(UnclearModels::Models)));
    }

    #[test]
    fn json_is_read_in_utf_8_only() {
        for (content_type, expected) in [
            ("application/json", true),
            (" Application/JSON ", true),
            ("application/json; charset=utf-8", true),
            ("application/json;charset=UTF-8", true),
            ("application/json; CHARSET=\"Utf-8\"; profile=\"x\"", true),
            ("application/json; charset=utf8", true),
            ("application/json; charset=utf-8;", true),
            ("application/json;", true),
            ("application/json; profile=a; odata.metadata=none", true),
            ("application/json; odd", true),
            ("application/json; charset=utf-16", false),
            ("application/json; charset=\"UTF-16\"", false),
            ("application/json; charset=utf-7", false),
            ("application/json; charset=iso-8859-1", false),
            ("application/json; charset=", false),
            ("application/json; charset", false),
            ("application/json; charset = utf-8", false),
            ("application/json; charset*=utf-8''utf-16", false),
            ("application/json; charset=utf-8; charset=utf-16", false),
            ("application/json; a=b; charset=utf-16", false),
            ("application/json; x=\"a; charset=utf-16\"", false),
            ("application/json; odd; charset=utf-16", false),
            ("application/jsonl", false),
            ("application/problem+json", false),
            ("text/json", false),
            ("", false),
        ] {
            assert_eq!(is_json(content_type.as_bytes()), expected, "{content_type}");
        }
        assert!(is_json(b"application/json; x=\xFF"));
        assert!(!is_json(b"application/json; charset=utf-8\xFF"));
    }
}
