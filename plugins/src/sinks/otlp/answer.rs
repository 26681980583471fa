//! What a receiver says of spans that it has taken.
//!
//! A call that succeeds may still have been taken in part: then the answer tells how many spans were rejected, and never
//! which (OTLP, "Partial Success"). It must not be repeated for that, in halves neither. So where all were rejected,
//! each is known to be; where some were, nobody can say of any.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use serde_json::Value;

/// Most letters of a receiver's own words in a reason.
const MOST_WORDS: usize = 200;

/// The answer to a call that succeeded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// How many spans the receiver has thrown away.
    pub rejected: u64,
    /// Why, or advice where nothing was rejected. May be empty.
    pub message: String,
}

impl Taken {
    /// Reads the answer's message. What cannot be read says nothing: that the call succeeded was said already.
    pub fn from_protobuf(message: &[u8]) -> Self {
        let answer = ExportTraceServiceResponse::decode(message).unwrap_or_default();
        let partial = answer.partial_success.unwrap_or_default();
        Self { rejected: u64::try_from(partial.rejected_spans).unwrap_or(0), message: partial.error_message }
    }

    /// Reads an answer over HTTP, which is of the request's type by the specification, and JSON from some receivers all
    /// the same. `None` for a web page: whoever shows one has not taken any spans.
    pub fn from_http(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match content_type.split(';').next().unwrap_or_default().trim() {
            "text/html" => None,
            "application/json" => Some(Self::from_json(body)),
            _ => Some(Self::from_protobuf(body)),
        }
    }

    fn from_json(body: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let partial = answer.get("partialSuccess");
        let field = |name: &str| partial.and_then(|partial| partial.get(name));
        // Protobuf writes numbers of 64 bits as texts in JSON, and reads both.
        let rejected = field("rejectedSpans").and_then(|found| found.as_u64().or_else(|| found.as_str()?.parse().ok()));
        let message = field("errorMessage").and_then(Value::as_str);
        Self { rejected: rejected.unwrap_or(0), message: message.unwrap_or_default().to_owned() }
    }
}

/// A receiver's words in one short line, without secrets of ours that it may repeat.
pub(super) fn words(text: &str, hide: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in hide.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[secret]");
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().filter(|letter| !letter.is_control()).take(MOST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    #[test]
    fn an_answer_tells_how_many_were_rejected_in_either_form() {
        let encoded = |rejected_spans: i64, message: &str| {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: message.to_owned() };
            ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        };
        let protobuf = "application/x-protobuf";
        for (content_type, body, expected) in [
            (protobuf, encoded(3, "too old"), Some((3, "too old"))),
            (protobuf, encoded(0, "use gRPC"), Some((0, "use gRPC"))),
            (protobuf, encoded(-1, ""), Some((0, ""))),
            (protobuf, Vec::new(), Some((0, ""))),
            (protobuf, b"ok".to_vec(), Some((0, ""))),
            ("", Vec::new(), Some((0, ""))),
            (
                "application/json; charset=utf-8",
                br#"{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "no"}}"#.to_vec(),
                Some((3, "no")),
            ),
            ("application/json", br#"{"partialSuccess": {"rejectedSpans": 3}}"#.to_vec(), Some((3, ""))),
            ("application/json", b"{}".to_vec(), Some((0, ""))),
            ("text/html; charset=utf-8", b"<html>".to_vec(), None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            let taken = Taken::from_http(&headers, &body);
            let expected = expected.map(|(rejected, message)| Taken { rejected, message: message.to_owned() });
            assert_eq!(taken, expected, "{content_type} {}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn words_are_one_short_line_without_our_secrets() {
        assert_eq!(words("no\n such \u{1b}[2Jkey hunter2", &["hunter2", ""]), "no such [2Jkey [secret]");
        assert_eq!(words(&"ä".repeat(1_000), &[]).chars().count(), MOST_WORDS);
    }
}
