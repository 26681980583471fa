//! What a request carries, read strictly: nothing that we do not understand passes unseen.
//!
//! Each handler names what it takes. [`Bare`] takes nothing but the path, [`Listing`] a query and no body, [`Sent`] a
//! JSON body and no query; whatever else is there is refused, because a caller who sends `?dry_run=1` with a DELETE
//! believes that it means something.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use axum::body::{Bytes, HttpBody, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::LengthLimitError;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::problem::Problem;

/// Largest body that is read. The largest sensible one, a token with a hundred model names, has 13 KiB.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The whole body must be here by then; a slower sender holds memory for nothing.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A JSON body.
pub(crate) struct Sent<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        refuse_query(request.uri())?;
        if !is_plain_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_body",
                "send the body as `content-type: application/json`, without a content-encoding",
            ));
        }
        parse(&read_whole(request).await?).map(Self)
    }
}

/// Nothing but the path. An empty JSON object passes as a body, since some clients cannot send less with a POST.
pub(crate) struct Bare;

impl<S: Send + Sync> FromRequest<S> for Bare {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        refuse_query(request.uri())?;
        let body = read_whole(request).await?;
        if !matches!(body.trim_ascii(), b"" | b"{}") {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "this request takes no body"));
        }
        Ok(Self)
    }
}

/// The query of a list. Its fields are texts, so that no error can come from their values here.
pub(crate) struct Listing<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Listing<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Query(query) = Query::try_from_uri(&parts.uri).map_err(|rejection| {
            let text = rejection.body_text();
            let reason = ["unknown field", "duplicate field"].iter().find_map(|kind| text.get(text.find(kind)?..));
            let reason = reason.unwrap_or("it is not a query string");
            Problem::query(format!("{} in the query", reason.replacen("field", "parameter", 1)))
        })?;
        Ok(Self(query))
    }
}

/// The `{id}` of the path.
pub(crate) struct Id(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "the id in the path is not UTF-8")),
        }
    }
}

/// A JSON object. Derived structs would also take an array, field by position; nobody who sends one means that.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// For fields where `null` says something else than absence: `None` is absent, anything present is `Some`.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn refuse_query(uri: &Uri) -> Result<(), Problem> {
    match uri.query() {
        None | Some("") => Ok(()),
        Some(_) => Err(Problem::query("this request takes no query parameters")),
    }
}

fn is_plain_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else { return false };
    let essence = only.to_str().ok().and_then(|text| text.split(';').next()).unwrap_or_default();
    let encoded = headers.get_all(header::CONTENT_ENCODING).iter().any(|value| value != "identity");
    essence.trim().eq_ignore_ascii_case("application/json") && !encoded
}

async fn read_whole(request: Request) -> Result<Bytes, Problem> {
    let body = request.into_body();
    let fits = usize::try_from(body.size_hint().lower()).is_ok_and(|announced| announced <= MAX_BODY_BYTES);
    if !fits {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "the body ended before its end")),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs()),
        )),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<LengthLimitError>())
}

fn too_large() -> Problem {
    let detail = format!("the body has more than {MAX_BODY_BYTES} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", detail)
}

/// One JSON object of the expected shape and nothing after it.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        refused(&path, error.inner())
    })?;
    json.end().map_err(|error| refused(".", &error))?;
    Ok(value)
}

fn refused(path: &str, error: &serde_json::Error) -> Problem {
    let place = format!("line {}, column {}", error.line(), error.column());
    let text = error.to_string();
    let message = text.strip_suffix(&format!(" at line {} column {}", error.line(), error.column())).unwrap_or(&text);
    if !error.is_data() {
        let detail = format!("the body is not JSON: {message} ({place})");
        return Problem::new(StatusCode::BAD_REQUEST, "invalid_json", detail);
    }
    let what = match without_value(message) {
        Some(mismatch) if path == "." => format!("the body {mismatch}"),
        Some(mismatch) => format!("`{path}` {mismatch}"),
        None => message.to_owned(),
    };
    Problem::field(format!("{what} ({place})"))
}

/// serde's "invalid type: string "hunter2", expected a boolean", said without the value and in JSON's words.
/// `None` where the message has no value in it: unknown, missing and duplicate fields.
fn without_value(message: &str) -> Option<String> {
    let found = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    // The expectation is our own text and stands last, whatever the value contains.
    let (found, expected) = found.rsplit_once(", expected ")?;
    let found = match found.split(['"', '`']).next().unwrap_or_default().trim() {
        "string" => "a string",
        "integer" if expected == "u64" => "a number out of range",
        "integer" => "a number",
        "floating point" => "a number with a fraction or out of range",
        "boolean" => "true or false",
        "sequence" => "an array",
        "map" => "an object",
        "null" => "null",
        _ => "something else",
    };
    let expected = match expected {
        "u64" => "a whole number of 1 or more",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        other => other,
    };
    Some(format!("must be {expected}, not {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only the errors are looked at")]
    struct Shape {
        #[serde(default, deserialize_with = "present")]
        name: Option<Option<String>>,
        #[serde(default)]
        count: Option<u64>,
        #[serde(default)]
        keys: Vec<Object<Inner>>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only the errors are looked at")]
    struct Inner {
        on: bool,
    }

    #[test]
    fn a_bad_body_is_named_by_field_and_place_and_never_repeated() {
        let from_one = "must be a whole number of 1 or more";
        for (body, expected) in [
            (r#"{"nme":1}"#, "unknown field `nme`, expected one of `name`, `count`, `keys` (line 1, ".to_owned()),
            (r#"{"keys":[{}]}"#, "missing field `on` (line 1, ".to_owned()),
            (r#"{"count":1,"count":2}"#, "duplicate field `count` (line 1, ".to_owned()),
            (r#"{"keys":[{"on":"sk-x, expected y"}]}"#, "`keys[0].on` must be true or false, not a string".to_owned()),
            (r#"{"count":-5}"#, format!("`count` {from_one}, not a number out of range")),
            (r#"{"count":1.5}"#, format!("`count` {from_one}, not a number with a fraction")),
            (r#"{"count":"5"}"#, format!("`count` {from_one}, not a string")),
            (r#"{"keys":{}}"#, "`keys` must be an array, not an object".to_owned()),
            (r#"{"keys":[[true]]}"#, "`keys[0]` must be an object, not an array".to_owned()),
            ("[]", "the body must be an object, not an array".to_owned()),
            ("7", "the body must be an object, not a number".to_owned()),
            ("{", "the body is not JSON: EOF while parsing an object (line 1, ".to_owned()),
            ("", "the body is not JSON: EOF while parsing a value".to_owned()),
            ("{}\n{}", "the body is not JSON: trailing characters (line 2, ".to_owned()),
        ] {
            let problem = format!("{:?}", parse::<Shape>(body.as_bytes()).err());
            assert!(problem.contains(&expected), "{body}: {problem}");
            assert!(!problem.contains("sk-x"), "{body}: {problem}");
        }
    }

    #[test]
    fn null_and_absence_are_told_apart() {
        assert!(matches!(parse::<Shape>(b"{}"), Ok(Shape { name: None, .. })));
        assert!(matches!(parse::<Shape>(br#"{"name":null}"#), Ok(Shape { name: Some(None), .. })));
    }
}
