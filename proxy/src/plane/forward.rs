//! The heads we send, built from nothing: to the provider and back to the client.
//!
//! A received head is never edited. What is forwarded is chosen field by field, and framing is always ours, so that
//! nothing the other side wrote can change where a message ends. The choice is one for both versions of HTTP.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{Method, Request, Version as HttpVersion};
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::http1::answer_head::{AnswerHead, AnswerName, BodyFraming};
use llm_proxy_core::http1::call::{Call, Framing, Name, Version};
use llm_proxy_core::websocket::handshake::{self, Offer};

use memchr::memmem;

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
    /// The token, where it stands in the head beside the places that are its own: no field with it goes on.
    pub stray: Option<&'a str>,
    /// The provider's key.
    pub key: &'a ProviderKey,
    /// The body's framing towards the provider.
    pub framing: Framing,
    /// The answer is to come without a coding, whatever the client takes.
    pub wants_identity: bool,
    /// The WebSocket that is asked for: its key, and what subprotocols are offered.
    pub switch: Option<(&'a str, &'a Offer)>,
}

impl Destination<'_> {
    /// Whether anything follows the head.
    pub fn has_body(&self) -> bool {
        !matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// What `content-length` is to say. A method that usually has content says so when there is none (RFC 9110 §8.6).
    fn length(&self, call: &Call) -> Option<u64> {
        match self.framing {
            Framing::None => matches!(call.method(), "POST" | "PUT" | "PATCH").then_some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        }
    }
}

/// Builds the request head for the provider, as it goes over the wire.
pub fn request_head(call: &Call, to: &Destination<'_>) -> Vec<u8> {
    let mut head = Vec::with_capacity(2048);
    head.extend_from_slice(call.method().as_bytes());
    head.extend_from_slice(b" ");
    head.extend_from_slice(to.target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    head.extend_from_slice(to.authority.as_bytes());
    head.extend_from_slice(b"\r\n");
    choose_fields(call, to, |name, value| put_field(&mut head, name, value));
    if let Some((key, offer)) = to.switch {
        head.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\n");
        put_field(&mut head, b"sec-websocket-version", handshake::VERSION.as_bytes());
        put_field(&mut head, b"sec-websocket-key", key.as_bytes());
        if let Some(protocols) = &offer.protocols {
            put_field(&mut head, b"sec-websocket-protocol", protocols.expose().as_bytes());
        }
    }
    match to.length(call) {
        Some(length) => put_field(&mut head, b"content-length", itoa::Buffer::new().format(length).as_bytes()),
        None if to.framing == Framing::Chunked => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        None => {}
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Builds the same head for a stream of HTTP/2: the provider's host is its authority, no field is for the connection,
/// and the body's end is the stream's (RFC 9113 §8.2.2, §8.3.1). The provider's key stays out of the table that both
/// sides keep (RFC 7541 §7.1.3).
///
/// # Errors
/// When something cannot stand in a head of HTTP/2. What the edge has let through can.
pub fn request(call: &Call, to: &Destination<'_>) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().scheme(Scheme::HTTPS).authority(to.authority.as_bytes()).path_and_query(to.target);
    let mut headers = HeaderMap::with_capacity(call.fields().len());
    let mut chosen = Ok(());
    choose_fields(call, to, |name, value| {
        if chosen.is_ok() {
            chosen = append(&mut headers, name, value);
        }
    });
    chosen?;
    if let Some(key) = headers.get_mut(to.placement.field(to.key).0) {
        key.set_sensitive(true);
    }
    if let Some(length) = to.length(call) {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(call.method().as_bytes())?;
    *request.uri_mut() = uri.build()?;
    *request.version_mut() = HttpVersion::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

fn append(headers: &mut HeaderMap, name: &[u8], value: &[u8]) -> Result<(), http::Error> {
    headers.try_append(HeaderName::from_bytes(name)?, HeaderValue::from_bytes(value)?)?;
    Ok(())
}

/// Puts every field for the provider but its host, the framing, and what switches to another protocol.
fn choose_fields(call: &Call, to: &Destination<'_>, mut put: impl FnMut(&[u8], &[u8])) {
    // What the connection names is for this connection only.
    let nominated: Vec<&[u8]> = call.connection_options().collect();
    for field in call.fields().iter().filter(|field| is_forwarded(field.kind)) {
        let name = call.name(field);
        let is_replaced = (to.wants_identity && field.kind == Name::AcceptEncoding)
            || to.stray.is_some_and(|token| holds(call.value(field), token) || holds(name, token));
        if !is_replaced && !nominated.iter().any(|option| option.eq_ignore_ascii_case(name)) {
            put(name, call.value(field));
        }
    }
    if to.wants_identity {
        put(b"accept-encoding", b"identity");
    }
    if !to.switch.is_some_and(|(_, offer)| offer.carries_key) {
        let (name, value) = to.placement.field(to.key);
        put(name.as_bytes(), value.as_bytes());
    }
}

fn holds(text: &[u8], token: &str) -> bool {
    memmem::find(text, token.as_bytes()).is_some()
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
            | Name::Ours
    )
}

/// How the provider's answer goes on to this client. `is_edited`: it may lose bytes on the way, so that a length means
/// nothing.
pub fn answer_framing(call: &Call, answer: &AnswerHead, is_edited: bool) -> Outgoing {
    match answer.framing() {
        BodyFraming::Length(length) if !is_edited => Outgoing::Length(length),
        BodyFraming::Length(_) | BodyFraming::Chunked | BodyFraming::UntilClose if call.version == Version::Http10 => {
            Outgoing::UntilClose
        }
        BodyFraming::Length(_) | BodyFraming::Chunked | BodyFraming::UntilClose => Outgoing::Chunked,
        // The length that the answer to a GET would have had (RFC 9110 §8.6); 204 has none.
        BodyFraming::None if answer.status() == 204 => Outgoing::NoBody(None),
        BodyFraming::None => Outgoing::NoBody(answer.content_length()),
    }
}

/// The answer's fields for the client: what the provider sent and we do not write ourselves.
pub fn answer_fields<'a>(
    answer: &'a AnswerHead,
    request_id: &'a HeaderValue,
    cors: &'a [(&'static str, Cow<'static, str>)],
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let nominated: Vec<&[u8]> = answer.connection_options().collect();
    let is_passed = move |kind: AnswerName, name: &[u8]| match kind {
        AnswerName::Dropped | AnswerName::Connection | AnswerName::ContentLength | AnswerName::TransferEncoding => {
            false
        }
        AnswerName::Cors if !cors.is_empty() => false,
        _ => !nominated.iter().any(|option| option.eq_ignore_ascii_case(name)),
    };
    let passed = answer.fields().filter_map(move |(kind, name, value)| is_passed(kind, name).then_some((name, value)));
    let ours = cors.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    passed.chain([(&b"x-llm-proxy-request-id"[..], request_id.as_bytes())]).chain(ours)
}

/// Which of the provider's answer fields carries its request id.
pub fn provider_request_id(dialect: Dialect, answer: &AnswerHead) -> Option<&str> {
    let names: &[&str] = match dialect {
        Dialect::Anthropic => &["request-id", "x-request-id"],
        Dialect::Azure => &["apim-request-id", "x-request-id", "x-ms-request-id"],
        Dialect::OpenAi | Dialect::Gemini => &["x-request-id", "request-id"],
    };
    let ids = || answer.fields().filter(|(kind, ..)| *kind == AnswerName::RequestId);
    let under = |wanted: &&str| ids().find(|(_, name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
    names.iter().find_map(under).and_then(|(.., value)| std::str::from_utf8(value).ok())
}
