//! The heads we send, built from nothing: to the provider and back to the client.
//!
//! A received head is never edited. What is forwarded is chosen field by field, and framing is always ours, so that
//! nothing the other side wrote can change where a message ends.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use http::HeaderValue;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::http1::answer_head::{AnswerHead, BodyFraming};
use llm_proxy_core::http1::call::{Call, Framing, Name, Version};

use super::credentials::Placement;
use super::tokens::ProviderKey;
use crate::http1::{Outgoing, put_field};

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

/// How the provider's answer goes on to this client.
pub fn answer_framing(call: &Call, answer: &AnswerHead) -> Outgoing {
    match answer.framing() {
        BodyFraming::Length(length) => Outgoing::Length(length),
        BodyFraming::Chunked | BodyFraming::UntilClose if call.version == Version::Http10 => Outgoing::UntilClose,
        BodyFraming::Chunked | BodyFraming::UntilClose => Outgoing::Chunked,
        // The length that the answer to a GET would have had (RFC 9110 §8.6); 204 has none.
        BodyFraming::None if answer.status() == 204 => Outgoing::NoBody(None),
        BodyFraming::None => Outgoing::NoBody(answer.content_length()),
    }
}

/// Fields of an answer that are for one connection, or that we write ourselves.
fn is_dropped(name: &[u8]) -> bool {
    let is = |dropped: &[&str]| dropped.iter().any(|dropped| name.eq_ignore_ascii_case(dropped.as_bytes()));
    // By length first: nearly every field is none of these.
    match name.len() {
        2 => is(&["te"]),
        4 => is(&["host"]),
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

/// The answer's fields for the client: what the provider sent and we do not write ourselves.
pub fn answer_fields<'a>(
    answer: &'a AnswerHead,
    request_id: &'a HeaderValue,
    cors: &'a [(&'static str, Cow<'static, str>)],
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let nominated: Vec<&[u8]> = answer.connection_options().collect();
    let passed = answer.fields().filter(move |(name, _)| {
        let replaced = !cors.is_empty() && is_cors(name);
        !is_dropped(name) && !replaced && !nominated.iter().any(|option| option.eq_ignore_ascii_case(name))
    });
    let ours = cors.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    passed.chain([(&b"x-llm-proxy-request-id"[..], request_id.as_bytes())]).chain(ours)
}

fn is_cors(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"access-control-allow-origin")
        || name.eq_ignore_ascii_case(b"access-control-expose-headers")
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
