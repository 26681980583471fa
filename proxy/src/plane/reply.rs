//! Writing our own answers: the head's fields of a refusal, and the refusal as an exchange sends it.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::dialect::Dialect;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;

use crate::call::{Call, Framing};

/// The most of an unread request body that is read away to keep a connection, in bytes.
const MOST_DRAINED: usize = 64 * 1024;
/// How long that may take.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take to read one of our own answers.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// After an answer to a body we will not read: how long we listen on, so that the answer is not reset away.
const LINGER: Duration = Duration::from_millis(500);

/// The fields of a refusal, without framing.
pub fn fields(refusal: &Refusal, dialect: Dialect, request_id: &str) -> Vec<(&'static str, Cow<'static, str>)> {
    let mut fields: Vec<(&'static str, Cow<'static, str>)> = vec![
        ("content-type", "application/json".into()),
        ("x-llm-proxy-request-id", request_id.to_owned().into()),
        (if dialect == Dialect::Anthropic { "request-id" } else { "x-request-id" }, request_id.to_owned().into()),
    ];
    if refusal.should_not_retry() {
        fields.push(("x-should-retry", "false".into()));
    }
    if let Some(seconds) = refusal.retry_after_seconds() {
        fields.push(("retry-after", seconds.to_string().into()));
    }
    match refusal {
        Refusal::RateLimited { limit, retry_after_ms } => {
            fields.push(("retry-after-ms", retry_after_ms.to_string().into()));
            fields.push(("x-ratelimit-limit-requests", limit.to_string().into()));
            fields.push(("x-ratelimit-remaining-requests", "0".into()));
            fields.push(("x-ratelimit-reset-requests", format!("{retry_after_ms}ms").into()));
        }
        Refusal::MethodNotAllowed(allowed) => fields.push(("allow", allowed.clone().into())),
        _ => {}
    }
    fields
}

/// The registered reason phrase (RFC 9110 §15), for answers written without Pingora.
pub fn reason_phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("")
}

/// Sends a refusal. A small unread body is read away first, so that the connection lives on; otherwise it closes.
///
/// # Errors
/// When the client can no longer be written to.
pub async fn refuse(
    client: &mut ServerSession,
    call: &Call,
    dialect: Dialect,
    request_id: &str,
    refusal: &Refusal,
    more: &[(&'static str, Cow<'static, str>)],
) -> Result<()> {
    let body_is_read = drain_small(client, call).await;
    let body = refusal.body(dialect, request_id);
    let fields = fields(refusal, dialect, request_id);
    let mut head = ResponseHeader::build_no_case(
        refusal.status(),
        Some(fields.len().saturating_add(more.len()).saturating_add(3)),
    )?;
    for (name, value) in fields.iter().chain(more) {
        head.append_header(*name, value.as_ref())?;
    }
    head.append_header("content-length", body.len().to_string())?;
    if !body_is_read {
        client.set_keepalive(None);
    }
    let writing = async {
        client.write_response_header(Box::new(head)).await?;
        client.write_response_body(Bytes::from(body), true).await
    };
    patient(writing).await?;
    if !body_is_read {
        linger(client).await;
    }
    Ok(())
}

/// Writes one of our own answers, as long as the client reads it.
///
/// # Errors
/// When the client can no longer be written to, or takes nothing for ten seconds.
pub async fn patient<T>(writing: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(WRITE_PATIENCE, writing).await {
        Ok(written) => written,
        Err(_) => Error::e_explain(ErrorType::WriteTimedout, "the client does not read"),
    }
}

/// Reads away what is left of a small body. `false`: more is left than we care to read.
async fn drain_small(client: &mut ServerSession, call: &Call) -> bool {
    if client.is_body_done() {
        return true;
    }
    let small = match call.framing {
        Framing::None => true,
        Framing::Length(length) => length <= u64::try_from(MOST_DRAINED).unwrap_or(u64::MAX),
        Framing::Chunked => true,
    };
    // Who waits for 100 Continue sends no body after a refusal, or sends it anyway: the connection cannot tell.
    if !small || call.expects_continue {
        return false;
    }
    let reading = async {
        let mut read = 0usize;
        while !client.is_body_done() && read <= MOST_DRAINED {
            match client.read_request_body().await {
                Ok(Some(piece)) => read = read.saturating_add(piece.len()),
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        read <= MOST_DRAINED
    };
    tokio::time::timeout(DRAIN_PATIENCE, reading).await.unwrap_or(false)
}

/// Reads and discards for a moment: closing while the client still sends would reset the answer away.
async fn linger(client: &mut ServerSession) {
    let discard = async {
        while !client.is_body_done() && client.read_request_body().await.is_ok_and(|piece| piece.is_some()) {}
    };
    let _ = tokio::time::timeout(LINGER, discard).await;
}
