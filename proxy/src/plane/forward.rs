//! The heads we send, built from nothing: to the provider and back to the client.
//!
//! A received head is never edited. What is forwarded is chosen field by field, and framing is always ours, so that
//! nothing the other side wrote can change where a message ends.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use llm_proxy_core::dialect::Dialect;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use super::credentials::Placement;
use super::tokens::ProviderKey;
use crate::call::{Call, Framing, Name, Version};

/// What the provider is told of where this request goes.
pub struct Destination<'a> {
    /// The provider's `host`.
    pub authority: &'a HeaderValue,
    /// Path and query for the provider.
    pub target: &'a str,
    /// Where the provider's key goes.
    pub placement: &'a Placement,
    /// The provider's key.
    pub key: &'a ProviderKey,
    /// The body's framing towards the provider.
    pub framing: Framing,
}

/// Builds the request head for the provider.
///
/// # Errors
/// When a field cannot be represented; the edge has checked them, so none should.
pub fn request_head(call: &Call, to: &Destination<'_>) -> Result<Box<RequestHeader>> {
    let mut head =
        RequestHeader::build_no_case(call.method(), to.target.as_bytes(), Some(call.fields().len().saturating_add(2)))?;
    head.append_header(http::header::HOST, to.authority.clone())?;
    for field in call.fields() {
        let pass = match field.kind {
            Name::Dropped
            | Name::Connection
            | Name::Host
            | Name::ContentLength
            | Name::TransferEncoding
            | Name::Expect
            | Name::Upgrade
            | Name::Authorization
            | Name::XApiKey
            | Name::ApiKey
            | Name::XGoogApiKey => false,
            // What the connection names is for this connection only; what frames and addresses the message cannot be named away.
            _ => !call.connection_options().any(|option| option.eq_ignore_ascii_case(call.name(field))),
        };
        if pass && !call.name(field).eq_ignore_ascii_case(b"helicone-auth") {
            let name = HeaderName::from_bytes(call.name(field)).or_err(ErrorType::InvalidHTTPHeader, "a field name")?;
            let value = HeaderValue::from_maybe_shared(call.shared_value(field))
                .or_err(ErrorType::InvalidHTTPHeader, "a field value")?;
            head.append_header(name, value)?;
        }
    }
    if let Some((name, value)) = to.placement.field(to.key) {
        head.append_header(HeaderName::from_static(name), value.clone())?;
    }
    match to.framing {
        // A method that usually has content says so when there is none (RFC 9110 §8.6).
        Framing::None if matches!(call.method(), "POST" | "PUT" | "PATCH") => {
            head.append_header(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
        }
        Framing::None => {}
        Framing::Length(length) => {
            head.append_header(http::header::CONTENT_LENGTH, HeaderValue::from(length))?;
        }
        Framing::Chunked => {
            head.append_header(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
    }
    Ok(Box::new(head))
}

/// How the answer's body is framed to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFraming {
    /// There is none: HEAD, 204, 304.
    NoBody,
    /// So many bytes.
    Length(u64),
    /// Chunked.
    Chunked,
    /// Until the connection closes: an HTTP/1.0 client and an answer of unknown length.
    UntilClose,
}

/// How the provider's answer goes on to this client.
///
/// # Errors
/// An answer whose framing can be read in two ways, or a 101 nobody asked for: 502.
pub fn answer_framing(call: &Call, answer: &ResponseHeader, raw: &[u8]) -> Result<AnswerFraming> {
    let invalid = |what: &'static str| Error::e_explain(ErrorType::InvalidHTTPHeader, what);
    let status = answer.status.as_u16();
    if status < 200 {
        return invalid("an interim answer where a final one was due");
    }
    let mut codings = answer.headers.get_all(http::header::TRANSFER_ENCODING).iter();
    let chunked = match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            // Pingora takes Content-Length out of sight when Transfer-Encoding is there: look at the bytes.
            if has_field(raw, b"content-length") {
                return invalid("the answer has Content-Length and Transfer-Encoding");
            }
            true
        }
        _ => return invalid("the answer's Transfer-Encoding is not exactly chunked"),
    };
    if call.method() == "HEAD" || matches!(status, 204 | 304) {
        return Ok(AnswerFraming::NoBody);
    }
    match answer.headers.get(http::header::CONTENT_LENGTH) {
        Some(length) if !chunked => match length.to_str().ok().and_then(|digits| digits.parse().ok()) {
            Some(length) => Ok(AnswerFraming::Length(length)),
            None => invalid("the answer's Content-Length is not a number"),
        },
        _ if call.version == Version::Http10 => Ok(AnswerFraming::UntilClose),
        _ => Ok(AnswerFraming::Chunked),
    }
}

fn has_field(raw: &[u8], name: &[u8]) -> bool {
    raw.split(|byte| *byte == b'\n').skip(1).any(|line| {
        line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            && line.get(name.len()) == Some(&b':')
    })
}

/// Fields of an answer that are for one connection, or that we write ourselves.
fn is_dropped(name: &HeaderName) -> bool {
    use http::header as h;
    const OURS: [HeaderName; 11] = [
        h::CONNECTION,
        h::CONTENT_LENGTH,
        h::TRANSFER_ENCODING,
        h::TE,
        h::TRAILER,
        h::UPGRADE,
        h::DATE,
        h::PROXY_AUTHENTICATE,
        h::PROXY_AUTHORIZATION,
        h::HOST,
        // It would send the client past us to the provider.
        h::ALT_SVC,
    ];
    OURS.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "x-llm-proxy-request-id")
}

/// Builds the answer's head for the client.
///
/// # Errors
/// When a field cannot be represented.
pub fn answer_head(
    call: &Call,
    answer: &ResponseHeader,
    framing: AnswerFraming,
    request_id: &HeaderValue,
    cors: &[(&'static str, Cow<'static, str>)],
) -> Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::build_no_case(answer.status, Some(answer.headers.len().saturating_add(4)))?;
    let nominated = answer.headers.get(http::header::CONNECTION);
    let is_nominated = |name: &HeaderName| {
        nominated.is_some_and(|options| {
            options
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
        })
    };
    for (name, value) in &answer.headers {
        let replaced = !cors.is_empty()
            && (*name == http::header::ACCESS_CONTROL_ALLOW_ORIGIN
                || *name == http::header::ACCESS_CONTROL_EXPOSE_HEADERS);
        if !is_dropped(name) && !replaced && !is_nominated(name) {
            head.append_header(name.clone(), value.clone())?;
        }
    }
    head.append_header(HeaderName::from_static("x-llm-proxy-request-id"), request_id.clone())?;
    for (name, value) in cors {
        head.append_header(*name, value.as_ref())?;
    }
    match framing {
        AnswerFraming::Length(length) => {
            head.append_header(http::header::CONTENT_LENGTH, HeaderValue::from(length))?;
        }
        AnswerFraming::Chunked => {
            head.append_header(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
        AnswerFraming::NoBody if answer.status != 204 && (call.method() == "HEAD" || answer.status == 304) => {
            // The length that a GET would have had (RFC 9110 §8.6).
            if let Some(length) = answer.headers.get(http::header::CONTENT_LENGTH) {
                head.append_header(http::header::CONTENT_LENGTH, length.clone())?;
            }
        }
        AnswerFraming::NoBody | AnswerFraming::UntilClose => {}
    }
    Ok(Box::new(head))
}

/// Which of the provider's answer fields carries its request id.
pub fn provider_request_id(dialect: Dialect, answer: &ResponseHeader) -> Option<&str> {
    let names: &[&str] = match dialect {
        Dialect::Anthropic => &["request-id", "x-request-id"],
        Dialect::Azure => &["apim-request-id", "x-request-id", "x-ms-request-id"],
        Dialect::OpenAi | Dialect::Gemini => &["x-request-id", "request-id"],
    };
    names.iter().find_map(|name| answer.headers.get(*name)).and_then(|value| value.to_str().ok())
}
