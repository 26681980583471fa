//! What an answer of the proxy's own looks like, in each dialect.

use serde_json::{Value, json};

use crate::{Answer, Provider};

/// One row of the public table of refusals.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// Anthropic's `error.type`.
    pub anthropic: &'static str,
}

/// The names of google.rpc.Code.
const GOOGLE: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
];

impl Refused {
    const fn new(status: u16, code: &'static str, anthropic: &'static str) -> Self {
        Self { status, code, anthropic }
    }

    /// Framing, path or body that cannot be understood in one way only.
    pub const INVALID: Self = Self::new(400, "invalid_request", "invalid_request_error");
    /// No token.
    pub const NO_TOKEN: Self = Self::new(401, "invalid_api_key", "authentication_error");
    /// Its time is over.
    pub const EXPIRED: Self = Self::new(401, "token_expired", "authentication_error");
    /// Revoked.
    pub const REVOKED: Self = Self::new(401, "token_revoked", "authentication_error");
    /// The project is off.
    pub const PROJECT: Self = Self::new(403, "project_inactive", "permission_error");
    /// Not this model.
    pub const MODEL: Self = Self::new(403, "model_not_allowed", "permission_error");
    /// Not this value.
    pub const PARAM: Self = Self::new(403, "param_not_allowed", "permission_error");
    /// Not this origin.
    pub const ORIGIN: Self = Self::new(403, "origin_not_allowed", "permission_error");
    /// Not this endpoint.
    pub const ENDPOINT: Self = Self::new(403, "endpoint_not_allowed", "permission_error");
    /// The project has no key for the API.
    pub const KEY: Self = Self::new(403, "provider_key_missing", "permission_error");
    /// No such path.
    pub const ROUTE: Self = Self::new(404, "unknown_route", "not_found_error");
    /// Not this method.
    pub const METHOD: Self = Self::new(405, "method_not_allowed", "invalid_request_error");
    /// Too many bytes.
    pub const TOO_LARGE: Self = Self::new(413, "request_too_large", "request_too_large");
    /// No policy can read it.
    pub const UNSUPPORTED: Self = Self::new(415, "unsupported_body", "invalid_request_error");
    /// Too fast.
    pub const RATE: Self = Self::new(429, "rate_limit_exceeded", "rate_limit_error");
    /// Used up.
    pub const QUOTA: Self = Self::new(429, "insufficient_quota", "rate_limit_error");
    /// A fault of the proxy's own.
    pub const INTERNAL: Self = Self::new(500, "internal_error", "api_error");
    /// No answer from the provider.
    pub const UNREACHABLE: Self = Self::new(502, "upstream_unreachable", "api_error");
    /// An answer that is none.
    pub const UPSTREAM_INVALID: Self = Self::new(502, "upstream_invalid", "api_error");
    /// The store did not answer.
    pub const STORE: Self = Self::new(503, "store_unavailable", "overloaded_error");
    /// Too much is held.
    pub const OVERLOADED: Self = Self::new(503, "overloaded", "overloaded_error");
    /// A clock ran out.
    pub const TIMEOUT: Self = Self::new(504, "upstream_timeout", "timeout_error");

    /// Checks status, fields and body of an answer.
    ///
    /// # Panics
    /// When something is not as the table says.
    pub fn check(&self, case: &str, provider: Provider, answer: &Answer) {
        let case = format!("{case}, {provider:?}");
        assert_eq!(answer.status, self.status, "{case}: {}", answer.text());
        assert!(answer.complete, "{case}: the answer is cut");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
        let id = answer.id();
        assert!(is_uuid_v7(&id), "{case}: {id}");
        let own_id = if provider == Provider::Anthropic { "request-id" } else { "x-request-id" };
        assert_eq!(answer.header(own_id), Some(id.as_str()), "{case}: {own_id}");
        let is_rate = self.code == "rate_limit_exceeded";
        let is_final = self.status < 500 && !is_rate;
        assert_eq!(answer.header("x-should-retry"), is_final.then_some("false"), "{case}: x-should-retry");
        let comes_back = is_rate || self.status == 503;
        let seconds = answer.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
        assert_eq!(seconds.is_some_and(|seconds| seconds >= 1), comes_back, "{case}: retry-after {seconds:?}");
        self.check_body(&case, provider, &answer.json(), &id);
    }

    /// Checks a body, or the data of an error event.
    ///
    /// # Panics
    /// When it is not what the provider's own clients read.
    pub fn check_body(&self, case: &str, provider: Provider, body: &Value, id: &str) {
        let error = &body["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("{case}: no message in {body}"));
        assert!(message.len() > 20, "{case}: {message:?} does not say what to do");
        match provider {
            Provider::OpenAi => {
                assert_eq!(error["code"], self.code, "{case}: {body}");
                assert!(error["type"].is_string(), "{case}: {body}");
                assert_eq!(error.get("param"), Some(&Value::Null), "{case}: {body}");
            }
            Provider::Azure => assert_eq!(error["code"], self.code, "{case}: {body}"),
            Provider::Anthropic => {
                assert_eq!(body["type"], "error", "{case}: {body}");
                assert_eq!(error["type"], self.anthropic, "{case}: {body}");
                assert_eq!(body["request_id"], id, "{case}: {body}");
            }
            Provider::Gemini => {
                assert_eq!(error["code"], json!(self.status), "{case}: {body}");
                let status = error["status"].as_str().unwrap_or_default();
                let named = match self.status {
                    400 => "INVALID_ARGUMENT",
                    401 => "UNAUTHENTICATED",
                    403 => "PERMISSION_DENIED",
                    404 => "NOT_FOUND",
                    429 => "RESOURCE_EXHAUSTED",
                    503 => "UNAVAILABLE",
                    504 => "DEADLINE_EXCEEDED",
                    // google.rpc has no name of its own for the others.
                    _ => status,
                };
                assert!(status == named && GOOGLE.contains(&status), "{case}: {body}");
            }
        }
    }
}

/// Whether this is a UUID of version 7 (RFC 9562 §5.7) in lower-case text.
pub fn is_uuid_v7(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'7',
            19 => matches!(byte, b'8' | b'9' | b'a' | b'b'),
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_7_is_taken() {
        assert!(is_uuid_v7("0193a5b0-7c5e-7abc-9def-0123456789ab"));
        for other in ["0193a5b0-7c5e-4abc-9def-0123456789ab", "0193a5b0-7c5e-7abc-cdef-0123456789ab", "0193", ""] {
            assert!(!is_uuid_v7(other), "{other}");
        }
    }
}
