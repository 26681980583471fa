//! The heads we send, built from nothing: to the provider and back to the client.
//!
//! A received head is never edited. What is forwarded is chosen field by field, and framing is always ours, so that
//! nothing the other side wrote can change where a message ends.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode};
use llm_proxy_core::dialect::Dialect;
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;

use super::credentials::Placement;
use super::tokens::ProviderKey;
use crate::call::{Call, Framing, Name, Version};
use crate::http1::{AnswerHead, BodyFraming};

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

/// Builds the request head for the provider, as it goes over the wire.
pub fn request_head(call: &Call, to: &Destination<'_>) -> BytesMut {
    // What the connection names is for this connection only.
    let nominated: Vec<&[u8]> = call.connection_options().collect();
    let mut head = BytesMut::with_capacity(2048);
    head.put_slice(call.method().as_bytes());
    head.put_slice(b" ");
    head.put_slice(to.target.as_bytes());
    head.put_slice(b" HTTP/1.1\r\nhost: ");
    head.put_slice(to.authority.as_bytes());
    head.put_slice(b"\r\n");
    for field in call.fields().iter().filter(|field| is_forwarded(field.kind)) {
        let name = call.name(field);
        let is_ours = name.eq_ignore_ascii_case(b"helicone-auth");
        if !is_ours && !nominated.iter().any(|option| option.eq_ignore_ascii_case(name)) {
            put_field(&mut head, name, call.value(field));
        }
    }
    let (name, value) = to.placement.field(to.key);
    put_field(&mut head, name.as_bytes(), value.as_bytes());
    match to.framing {
        // A method that usually has content says so when there is none (RFC 9110 §8.6).
        Framing::None if matches!(call.method(), "POST" | "PUT" | "PATCH") => head.put_slice(b"content-length: 0\r\n"),
        Framing::None => {}
        Framing::Length(length) => {
            put_field(&mut head, b"content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => head.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    head.put_slice(b"\r\n");
    head
}

fn put_field(head: &mut BytesMut, name: &[u8], value: &[u8]) {
    head.put_slice(name);
    head.put_slice(b": ");
    head.put_slice(value);
    head.put_slice(b"\r\n");
}

/// Whether a field of this kind goes to the provider as it came.
const fn is_forwarded(kind: Name) -> bool {
    !matches!(
        kind,
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
            | Name::XGoogApiKey
    )
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
pub fn answer_framing(call: &Call, answer: &AnswerHead) -> AnswerFraming {
    match answer.framing() {
        BodyFraming::None => AnswerFraming::NoBody,
        BodyFraming::Length(length) => AnswerFraming::Length(length),
        _ if call.version == Version::Http10 => AnswerFraming::UntilClose,
        BodyFraming::Chunked | BodyFraming::UntilClose => AnswerFraming::Chunked,
    }
}

/// Fields of an answer that are for one connection, or that we write ourselves.
fn is_dropped(name: &[u8]) -> bool {
    let is = |dropped: &[&str]| dropped.iter().any(|dropped| name.eq_ignore_ascii_case(dropped.as_bytes()));
    // By length first: nearly every field is none of these.
    match name.len() {
        2 => is(&["te"]),
        4 => is(&["date", "host"]),
        // Alt-Svc would send the client past us to the provider.
        7 => is(&["trailer", "upgrade", "alt-svc"]),
        10 => is(&["connection", "keep-alive"]),
        14 => is(&["content-length"]),
        16 => is(&["proxy-connection"]),
        17 => is(&["transfer-encoding"]),
        18 => is(&["proxy-authenticate"]),
        19 => is(&["proxy-authorization"]),
        22 => is(&["x-llm-proxy-request-id"]),
        _ => false,
    }
}

/// The answer's fields for the client, as they go over the wire: what the provider sent and we do not write ourselves.
pub fn answer_fields(
    answer: &AnswerHead,
    request_id: &HeaderValue,
    cors: &[(&'static str, Cow<'static, str>)],
) -> BytesMut {
    let nominated: Vec<&[u8]> = answer.connection_options().collect();
    let mut fields = BytesMut::with_capacity(answer.wire_bytes().saturating_add(512));
    for (name, value) in answer.fields() {
        let replaced = !cors.is_empty() && is_cors(name);
        let is_nominated = nominated.iter().any(|option| option.eq_ignore_ascii_case(name));
        if !is_dropped(name) && !replaced && !is_nominated {
            put_field(&mut fields, name, value);
        }
    }
    put_field(&mut fields, b"x-llm-proxy-request-id", request_id.as_bytes());
    for (name, value) in cors {
        put_field(&mut fields, name.as_bytes(), value.as_bytes());
    }
    fields
}

fn is_cors(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"access-control-allow-origin")
        || name.eq_ignore_ascii_case(b"access-control-expose-headers")
}

/// The answer's head as Pingora writes it: status and framing. The fields come in by [`answer_fields`].
///
/// # Errors
/// When the status is none.
pub fn answer_head(call: &Call, answer: &AnswerHead, framing: AnswerFraming) -> Result<Box<ResponseHeader>> {
    // Two more than we add: Pingora writes `date` and `connection`.
    let mut fields = HeaderMap::with_capacity(4);
    match framing {
        AnswerFraming::Length(length) => {
            fields.append(CONTENT_LENGTH, HeaderValue::from(length));
        }
        AnswerFraming::Chunked => {
            fields.append(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        AnswerFraming::NoBody if answer.status() != 204 && (call.method() == "HEAD" || answer.status() == 304) => {
            // The length that a GET would have had (RFC 9110 §8.6).
            if let Some(length) = answer.get("content-length") {
                let length = HeaderValue::from_bytes(length).or_err(ErrorType::InvalidHTTPHeader, "a length")?;
                fields.append(CONTENT_LENGTH, length);
            }
        }
        AnswerFraming::NoBody | AnswerFraming::UntilClose => {}
    }
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = StatusCode::from_u16(answer.status()).or_err(ErrorType::InvalidHTTPHeader, "a status")?;
    parts.headers = fields;
    Ok(Box::new(ResponseHeader::from(parts)))
}

/// Which of the provider's answer fields carries its request id.
pub fn provider_request_id(dialect: Dialect, answer: &AnswerHead) -> Option<&str> {
    let names: &[&str] = match dialect {
        Dialect::Anthropic => &["request-id", "x-request-id"],
        Dialect::Azure => &["apim-request-id", "x-request-id", "x-ms-request-id"],
        Dialect::OpenAi | Dialect::Gemini => &["x-request-id", "request-id"],
    };
    names.iter().find_map(|name| answer.get(name)).and_then(|value| std::str::from_utf8(value).ok())
}
