//! The request target as policy reads it: segments, percent-decoded once.
//!
//! The path goes out as it came in; only judgements use the decoded segments. A path that two readers could
//! understand differently is refused, so that what was judged is what the provider serves.

use std::borrow::Cow;

/// A request target in origin form (RFC 9112 §3.2.1), cut at the first `?`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path as received. Starts with `/`.
    pub path: &'a str,
    /// The query as received, without its `?`. `Some("")` for a bare `?`.
    pub query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Splits a target; what is no origin form gives a path that [`segments`] refuses.
    pub fn new(target: &'a str) -> Self {
        match target.split_once('?') {
            Some((path, query)) => Self { path, query: Some(query) },
            None => Self { path: target, query: None },
        }
    }

    /// Every value of a query parameter, as received, with its byte range in the query.
    pub fn query_values(&self, name: &str) -> impl Iterator<Item = QueryValue<'a>> {
        let query = self.query.unwrap_or("");
        let mut at = 0usize;
        query.split('&').filter_map(move |pair| {
            let start = at;
            at = at.saturating_add(pair.len()).saturating_add(1);
            let (key, value) = pair.split_once('=')?;
            // A name may come percent-encoded (`%6bey=`): decode, or a credential would pass unseen.
            if decode(key)?.as_ref() != name {
                return None;
            }
            let value_start = start.saturating_add(key.len()).saturating_add(1);
            Some(QueryValue { value, start: value_start, end: value_start.saturating_add(value.len()) })
        })
    }
}

/// One value in a query, as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryValue<'a> {
    /// The value's text, still percent-encoded.
    pub value: &'a str,
    /// Where it starts in the query, in bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// A path whose segments are ambiguous or malformed. The text says which rule it broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPath(&'static str);

/// The decoded segments of a path. A trailing slash adds no segment.
pub type Segments<'a> = Vec<Cow<'a, str>>;

/// Splits a path at `/` and decodes each segment once.
///
/// # Errors
/// [`BadPath`] for an empty segment (a trailing slash apart), `.` or `..` (also when made by decoding, or by splitting
/// the decoded segment at `/`), a malformed escape, bad UTF-8, and `\ ; ? # %` or a control octet in a decoded segment.
pub fn segments(path: &str) -> Result<Segments<'_>, BadPath> {
    let rest = path.strip_prefix('/').ok_or(BadPath("the path must start with /"))?;
    let mut found = Vec::with_capacity(8);
    let mut parts = rest.split('/').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            if parts.peek().is_none() {
                break; // "/" alone, or a trailing slash
            }
            return Err(BadPath("the path has an empty segment"));
        }
        let segment = decode(part).ok_or(BadPath("the path has a malformed percent escape or is not UTF-8"))?;
        judge(&segment)?;
        found.push(segment);
    }
    Ok(found)
}

fn judge(segment: &str) -> Result<(), BadPath> {
    for byte in segment.bytes() {
        match byte {
            b'\\' | b';' | b'?' | b'#' | b'%' => return Err(BadPath("the path has one of \\ ; ? # % in a segment")),
            0..=0x1F | 0x7F => return Err(BadPath("the path has a control octet")),
            _ => {}
        }
    }
    if segment.split('/').any(|piece| matches!(piece, "." | "..")) {
        return Err(BadPath("the path has a . or .. segment"));
    }
    Ok(())
}

/// Percent-decodes once. `None` for a malformed escape or bad UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high.wrapping_mul(16).wrapping_add(low)).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_split_first_and_decoded_once() {
        for (path, expected) in [
            ("/v1/chat/completions", &["v1", "chat", "completions"][..]),
            ("/v1/models/", &["v1", "models"]),
            ("/", &[]),
            ("/v1/models/ft%3Agpt-4o%3Aorg", &["v1", "models", "ft:gpt-4o:org"]),
            ("/v1/models/a%2Fb", &["v1", "models", "a/b"]),
            ("/v1/models/caf%C3%A9", &["v1", "models", "café"]),
        ] {
            assert_eq!(segments(path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for path in [
            "",
            "v1",
            "//v1",
            "/v1//chat",
            "/v1/./chat",
            "/v1/../chat",
            "/v1/%2e%2e/chat",
            "/v1/%2E/chat",
            "/v1/..%2Fx",
            "/v1/x%2F..",
            "/v1/a%5Cb",
            "/v1/a%3Bb",
            "/v1/a;b",
            "/v1/a%3Fb",
            "/v1/a%23b",
            "/v1/%252e%252e",
            "/v1/a%00b",
            "/v1/a%7Fb",
            "/v1/a%C0%AFb",
            "/v1/a%",
            "/v1/a%2",
            "/v1/a%zz",
            "/v1/a\\b",
        ] {
            assert!(segments(path).is_err(), "{path}");
        }
    }

    #[test]
    fn query_values_are_found_under_encoded_names_too() {
        let target = Target::new("/v1beta/models?alt=sse&key=one&%6bey=two&keys=x&key");
        let values: Vec<_> = target.query_values("key").map(|found| found.value).collect();
        assert_eq!(values, ["one", "two"]);
        for found in target.query_values("key") {
            assert_eq!(&target.query.unwrap()[found.start..found.end], found.value);
        }
    }
}
