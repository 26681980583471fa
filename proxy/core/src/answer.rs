//! The answers we give ourselves: every refusal, its status and code, and its form in each dialect.
//!
//! An SDK raises its proper exception only when the body has its provider's form, so the form follows the route. The
//! message says what to do and never names what the holder of no token should not learn.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::dialect::Dialect;

/// Why we answer instead of the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Framing, path or body that cannot be understood in one way only.
    InvalidRequest(Cow<'static, str>),
    /// A WebSocket handshake of another version than 13.
    WebSocketVersion,
    /// The head did not arrive within `HEAD_TIMEOUT`.
    HeadTimeout,
    /// The head is larger than we take.
    HeadTooLarge,
    /// Missing, malformed or unknown token: one answer for all three, so that nothing can be probed.
    InvalidApiKey,
    /// A real token whose time is over.
    TokenExpired,
    /// A real token that was revoked.
    TokenRevoked,
    /// The token's project was switched off.
    ProjectInactive,
    /// The token's model list does not have this model.
    ModelNotAllowed(Option<String>),
    /// `param_whitelist` refuses this field's value.
    ParamNotAllowed(String),
    /// `allowed_origins` does not have this origin.
    OriginNotAllowed,
    /// `allowed_endpoints` does not have this path.
    EndpointNotAllowed,
    /// A header of `required_headers` is missing.
    HeaderRequired(String),
    /// The project holds no key for this API.
    ProviderKeyMissing(String),
    /// No API serves this path.
    UnknownRoute,
    /// `allowed_methods` does not have this method. Holds the list for `Allow`.
    MethodNotAllowed(String),
    /// The body is larger than the limit, in bytes.
    TooLarge(u64),
    /// A body that a policy must read but cannot.
    UnsupportedBody(&'static str),
    /// More requests than the token's rate allows; tells the rate and after how many milliseconds to come back.
    RateLimited {
        /// Requests a minute.
        limit: u32,
        /// Until the next request would pass, in milliseconds.
        retry_after_ms: u64,
    },
    /// `max_requests` is used up.
    QuotaUsedUp(u64),
    /// No connection to the provider, or it ended before an answer's head.
    UpstreamUnreachable,
    /// The provider's answer cannot be understood.
    UpstreamInvalid,
    /// One of the five clocks ran out: its name.
    UpstreamTimeout(&'static str),
    /// The provider's answer ended in the middle.
    UpstreamCut,
    /// The store did not answer and the token is not known here.
    StoreUnavailable,
    /// The exchange could not be recorded first, and the journal's mode is `strict`.
    Unrecorded,
    /// Too much is held in memory, or the process is stopping.
    Overloaded,
    /// A fault of ours.
    Internal,
}

impl Refusal {
    /// The HTTP status (RFC 9110 §15).
    pub const fn status(&self) -> u16 {
        match self {
            Self::InvalidRequest(_) => 400,
            Self::InvalidApiKey | Self::TokenExpired | Self::TokenRevoked => 401,
            Self::ProjectInactive
            | Self::ModelNotAllowed(_)
            | Self::ParamNotAllowed(_)
            | Self::OriginNotAllowed
            | Self::EndpointNotAllowed
            | Self::HeaderRequired(_)
            | Self::ProviderKeyMissing(_) => 403,
            Self::UnknownRoute => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::HeadTimeout => 408,
            Self::TooLarge(_) => 413,
            Self::UnsupportedBody(_) => 415,
            Self::WebSocketVersion => 426,
            Self::RateLimited { .. } | Self::QuotaUsedUp(_) => 429,
            Self::HeadTooLarge => 431,
            Self::Internal => 500,
            Self::UpstreamUnreachable | Self::UpstreamInvalid | Self::UpstreamCut => 502,
            Self::StoreUnavailable | Self::Unrecorded | Self::Overloaded => 503,
            Self::UpstreamTimeout(_) => 504,
        }
    }

    /// The stable code that programs and records read.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) | Self::WebSocketVersion | Self::HeadTimeout | Self::HeadTooLarge => {
                "invalid_request"
            }
            Self::InvalidApiKey => "invalid_api_key",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::ProjectInactive => "project_inactive",
            Self::ModelNotAllowed(_) => "model_not_allowed",
            Self::ParamNotAllowed(_) => "param_not_allowed",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::EndpointNotAllowed | Self::HeaderRequired(_) => "endpoint_not_allowed",
            Self::ProviderKeyMissing(_) => "provider_key_missing",
            Self::UnknownRoute => "unknown_route",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::TooLarge(_) => "request_too_large",
            Self::UnsupportedBody(_) => "unsupported_body",
            Self::RateLimited { .. } => "rate_limit_exceeded",
            Self::QuotaUsedUp(_) => "insufficient_quota",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamInvalid | Self::UpstreamCut => "upstream_invalid",
            Self::UpstreamTimeout(_) => "upstream_timeout",
            Self::StoreUnavailable | Self::Unrecorded => "store_unavailable",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal_error",
        }
    }

    /// Anthropic's `error.type`.
    pub const fn anthropic_type(&self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            500 | 502 => "api_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's `error.type`.
    const fn openai_type(&self) -> &'static str {
        match self {
            Self::RateLimited { .. } => "requests",
            Self::QuotaUsedUp(_) => "insufficient_quota",
            _ => match self.status() {
                403 => "permission_error",
                500..=599 => "server_error",
                _ => "invalid_request_error",
            },
        }
    }

    /// The google.rpc status name (AIP-193).
    const fn google_status(&self) -> &'static str {
        match self.status() {
            401 => "UNAUTHENTICATED",
            403 => "PERMISSION_DENIED",
            404 => "NOT_FOUND",
            405 => "UNIMPLEMENTED",
            429 => "RESOURCE_EXHAUSTED",
            500 => "INTERNAL",
            502 | 503 => "UNAVAILABLE",
            504 => "DEADLINE_EXCEEDED",
            _ => "INVALID_ARGUMENT",
        }
    }

    /// What the caller reads: what happened and what to do.
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::InvalidRequest(what) => format!("llm-proxy cannot take this request: {what}.").into(),
            Self::HeadTimeout => "The request head did not arrive in time. Send the whole head at once.".into(),
            Self::HeadTooLarge => "The request head is larger than the 32 KiB that are taken.".into(),
            Self::InvalidApiKey => {
                "No valid llm-proxy token. Send one made by `llm-proxy manage token create` where your SDK puts its API key.".into()
            }
            Self::WebSocketVersion => "Only version 13 of the WebSocket protocol is spoken here.".into(),
            Self::TokenExpired => "This llm-proxy token has expired. Ask your admin for a new one.".into(),
            Self::TokenRevoked => "This llm-proxy token was revoked. Ask your admin for a new one.".into(),
            Self::ProjectInactive => "The project of this llm-proxy token is switched off. Ask your admin.".into(),
            Self::ModelNotAllowed(Some(model)) => {
                format!("This llm-proxy token may not use the model `{model}`. Choose one that it allows, or ask your admin.").into()
            }
            Self::ModelNotAllowed(None) => {
                "This llm-proxy token is limited to certain models, and this request shows none. Name the model, or ask your admin.".into()
            }
            Self::ParamNotAllowed(field) => {
                format!("The value of `{field}` is not among those allowed here. Choose another, or ask your admin.").into()
            }
            Self::OriginNotAllowed => "This web origin may not call this API. Ask your admin to add it to allowed_origins.".into(),
            Self::EndpointNotAllowed => "This endpoint is not allowed here. Ask your admin to add it to allowed_endpoints.".into(),
            Self::HeaderRequired(name) => format!("This API requires the header `{name}` here. Send it.").into(),
            Self::ProviderKeyMissing(api) => {
                format!("The project of this llm-proxy token has no provider key for `{api}`. Ask your admin to add one.").into()
            }
            Self::UnknownRoute => "No API is served under this path. Check the base URL of your SDK.".into(),
            Self::MethodNotAllowed(allowed) => format!("This method is not allowed here. Allowed: {allowed}.").into(),
            Self::TooLarge(limit) => format!("The body is larger than the {limit} bytes allowed here.").into(),
            Self::UnsupportedBody(what) => format!("A policy must read this body, and cannot: {what}.").into(),
            Self::RateLimited { limit, retry_after_ms } => format!(
                "This llm-proxy token allows {limit} requests a minute (requests_per_minute). The next one passes in {:.1} s.",
                std::time::Duration::from_millis(*retry_after_ms).as_secs_f64()
            )
            .into(),
            Self::QuotaUsedUp(max) => {
                format!("This llm-proxy token has used up its {max} requests (max_requests). It does not reset: ask your admin.").into()
            }
            Self::UpstreamUnreachable => "The provider could not be reached. Try again.".into(),
            Self::UpstreamInvalid => "The provider's answer could not be understood. Try again.".into(),
            Self::UpstreamCut => "The provider's answer ended in the middle. Try again.".into(),
            Self::UpstreamTimeout(clock) => format!("The provider took too long (clock: {clock}). Try again.").into(),
            Self::StoreUnavailable => "This token could not be checked just now. Try again.".into(),
            Self::Unrecorded => "This request could not be recorded, and none goes unrecorded here. Try again.".into(),
            Self::Overloaded => "The proxy cannot carry this just now: it is full, or about to stop. Try again.".into(),
            Self::Internal => "The proxy failed on this request. Try again; if it persists, report the request id.".into(),
        }
    }

    /// Whole seconds for `Retry-After` (RFC 9110 §10.2.3), where coming back helps.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after_ms, .. } => Some(retry_after_ms.div_ceil(1000).max(1)),
            Self::StoreUnavailable | Self::Unrecorded | Self::Overloaded => Some(1),
            _ => None,
        }
    }

    /// Whether SDKs must not repeat by themselves: every 4xx but a rate limit stays as it is. A 408 too,
    /// which they repeat where nothing is said.
    pub const fn should_not_retry(&self) -> bool {
        let status = self.status();
        status >= 400 && status < 500 && !matches!(self, Self::RateLimited { .. })
    }

    /// The JSON body in the dialect.
    pub fn body(&self, dialect: Dialect, request_id: &str) -> Vec<u8> {
        self.json(dialect, request_id).to_string().into_bytes()
    }

    fn json(&self, dialect: Dialect, request_id: &str) -> Value {
        let message = self.message();
        match dialect {
            Dialect::OpenAi => {
                json!({"error": {"message": message, "type": self.openai_type(), "param": null, "code": self.code()}})
            }
            Dialect::Anthropic => json!({
                "type": "error",
                "error": {"type": self.anthropic_type(), "message": message},
                "request_id": request_id,
            }),
            Dialect::Gemini => {
                json!({"error": {"code": self.status(), "message": message, "status": self.google_status(),
                    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": self.code(), "domain": "llm-proxy"}]}})
            }
            // Azure's own errors give the status, as a string, for a code; ours keeps the stable one.
            Dialect::Azure => json!({"error": {"code": self.code(), "message": message}}),
        }
    }

    /// The event that tells a streaming client of a failure after the head, in the dialect's own form.
    pub fn event(&self, dialect: Dialect, endpoint: &str, request_id: &str) -> Vec<u8> {
        let body = self.json(dialect, request_id);
        let text = match dialect {
            Dialect::Anthropic => format!("event: error\ndata: {body}\n\n"),
            Dialect::Gemini => format!("data: {body}\r\n\r\n"),
            // The Responses API names its events and repeats the name in the data.
            _ if endpoint.ends_with("/responses") => {
                let mut body = body;
                let (code, message) = (self.code(), self.message());
                if let Some(fields) = body.as_object_mut() {
                    fields.insert("type".to_owned(), "error".into());
                    fields.insert("code".to_owned(), code.into());
                    fields.insert("message".to_owned(), message.as_ref().into());
                    fields.insert("param".to_owned(), Value::Null);
                }
                format!("event: error\ndata: {body}\n\n")
            }
            _ => format!("data: {body}\n\n"),
        };
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind. A new kind does not compile until it has its place in the row.
    fn every() -> Vec<Refusal> {
        let next = |refusal: &Refusal| {
            Some(match refusal {
                Refusal::InvalidRequest(_) => Refusal::WebSocketVersion,
                Refusal::WebSocketVersion => Refusal::HeadTimeout,
                Refusal::HeadTimeout => Refusal::HeadTooLarge,
                Refusal::HeadTooLarge => Refusal::InvalidApiKey,
                Refusal::InvalidApiKey => Refusal::TokenExpired,
                Refusal::TokenExpired => Refusal::TokenRevoked,
                Refusal::TokenRevoked => Refusal::ProjectInactive,
                Refusal::ProjectInactive => Refusal::ModelNotAllowed(Some("m".into())),
                Refusal::ModelNotAllowed(Some(_)) => Refusal::ModelNotAllowed(None),
                Refusal::ModelNotAllowed(None) => Refusal::ParamNotAllowed("n".into()),
                Refusal::ParamNotAllowed(_) => Refusal::OriginNotAllowed,
                Refusal::OriginNotAllowed => Refusal::EndpointNotAllowed,
                Refusal::EndpointNotAllowed => Refusal::HeaderRequired("origin".into()),
                Refusal::HeaderRequired(_) => Refusal::ProviderKeyMissing("openai".into()),
                Refusal::ProviderKeyMissing(_) => Refusal::UnknownRoute,
                Refusal::UnknownRoute => Refusal::MethodNotAllowed("POST".into()),
                Refusal::MethodNotAllowed(_) => Refusal::TooLarge(5),
                Refusal::TooLarge(_) => Refusal::UnsupportedBody("why"),
                Refusal::UnsupportedBody(_) => Refusal::RateLimited { limit: 5, retry_after_ms: 1500 },
                Refusal::RateLimited { .. } => Refusal::QuotaUsedUp(3),
                Refusal::QuotaUsedUp(_) => Refusal::UpstreamUnreachable,
                Refusal::UpstreamUnreachable => Refusal::UpstreamInvalid,
                Refusal::UpstreamInvalid => Refusal::UpstreamTimeout("first_byte"),
                Refusal::UpstreamTimeout(_) => Refusal::UpstreamCut,
                Refusal::UpstreamCut => Refusal::StoreUnavailable,
                Refusal::StoreUnavailable => Refusal::Unrecorded,
                Refusal::Unrecorded => Refusal::Overloaded,
                Refusal::Overloaded => Refusal::Internal,
                Refusal::Internal => return None,
            })
        };
        std::iter::successors(Some(Refusal::InvalidRequest("why".into())), next).collect()
    }

    /// The rows of a table of `docs/errors.md`, cell by cell, by the heading above it.
    fn documented(heading: &str) -> Vec<Vec<String>> {
        let page = include_str!("../../../docs/errors.md");
        let section = page.split_once(&format!("\n## {heading}\n")).unwrap().1.split("\n## ").next().unwrap();
        let cells = |line: &str| -> Vec<String> {
            line.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect()
        };
        section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |").map(cells)).skip(1).collect()
    }

    #[test]
    fn the_page_lists_every_answer_and_nothing_else() {
        let mut unused = documented("Answers");
        assert!(unused.iter().all(|row| row.len() == 5 && row.iter().all(|cell| !cell.is_empty())), "{unused:?}");
        let rows = unused.clone();
        for refusal in every() {
            let (status, code) = (refusal.status().to_string(), refusal.code());
            let found: Vec<_> = rows.iter().filter(|row| row[0] == status && row[1] == code).collect();
            let [row] = found[..] else { panic!("{status} {code} stands there {} times", found.len()) };
            let again = match (refusal.should_not_retry(), refusal.retry_after_seconds()) {
                (true, _) => "no",
                (false, Some(_)) => "after retry-after",
                (false, None) => "yes",
            };
            assert_eq!(row[4], again, "{status} {code}");
            unused.retain(|other| other != row);
        }
        assert!(unused.is_empty(), "no answer is like this: {unused:?}");
    }

    #[test]
    fn the_page_has_the_names_of_each_dialect() {
        let rows = documented("In each dialect");
        for refusal in every() {
            let (status, code) = (refusal.status().to_string(), refusal.code());
            let is_its = |row: &&Vec<String>| row[0] == status && (row[1] == code || row[1] == "any");
            let found: Vec<_> = rows.iter().filter(is_its).collect();
            let [row] = found[..] else { panic!("{status} {code} stands there {} times", found.len()) };
            assert_eq!(
                row[2..],
                [refusal.openai_type(), refusal.anthropic_type(), refusal.google_status()],
                "{status} {code}"
            );
        }
        let statuses: Vec<_> = every().iter().map(|refusal| refusal.status().to_string()).collect();
        assert!(rows.iter().all(|row| statuses.contains(&row[0])), "{rows:?}");
    }

    #[test]
    fn every_refusal_has_the_form_of_each_dialect() {
        for refusal in every() {
            for dialect in Dialect::ALL {
                let body: Value = serde_json::from_slice(&refusal.body(dialect, "req")).unwrap();
                let message = body["error"]["message"].as_str().unwrap();
                assert!(message.ends_with(['.', ')']), "{message}");
                match dialect {
                    Dialect::OpenAi | Dialect::Azure => assert_eq!(body["error"]["code"], refusal.code()),
                    Dialect::Anthropic => assert_eq!(body["error"]["type"], refusal.anthropic_type()),
                    Dialect::Gemini => assert_eq!(body["error"]["code"], refusal.status()),
                }
            }
        }
    }

    #[test]
    fn only_rate_limits_and_server_errors_invite_a_retry() {
        for refusal in every() {
            let invited = refusal.status() >= 500 || refusal.code() == "rate_limit_exceeded";
            assert_eq!(refusal.should_not_retry(), !invited, "{refusal:?}");
        }
        assert_eq!(Refusal::RateLimited { limit: 1, retry_after_ms: 1 }.retry_after_seconds(), Some(1));
        assert_eq!(Refusal::RateLimited { limit: 1, retry_after_ms: 1001 }.retry_after_seconds(), Some(2));
    }

    #[test]
    fn an_event_is_one_event() {
        for dialect in Dialect::ALL {
            let event = String::from_utf8(Refusal::TokenRevoked.event(dialect, "/v1/responses", "req")).unwrap();
            assert_eq!(event.matches("\n\n").count() + event.matches("\r\n\r\n").count(), 1, "{event}");
            assert!(event.contains("revoked"), "{event}");
        }
    }
}
