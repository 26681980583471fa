//! Writing our own answers: the head's fields of a refusal, and the refusal as an exchange sends it.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use llm_proxy_core::answer::Refusal;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::websocket::handshake;
use tokio::time::timeout;

use crate::client::Client;
use crate::http1::{Outgoing, put_date, put_field, put_status};

/// How long a client may take to read one of our own answers.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

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
        // RFC 6455 §4.4, RFC 9110 §15.5.22
        Refusal::WebSocketVersion => fields.extend([
            ("sec-websocket-version", handshake::VERSION.into()),
            ("upgrade", "websocket".into()),
            ("connection", "upgrade".into()),
        ]),
        Refusal::MethodNotAllowed(allowed) => fields.push(("allow", allowed.clone().into())),
        _ => {}
    }
    fields
}

/// Sends a refusal. A small unread body is read away first, so that the connection lives on; otherwise it closes.
///
/// # Errors
/// When the client can no longer be written to.
pub async fn refuse(
    client: &mut Client,
    dialect: Dialect,
    request_id: &str,
    refusal: &Refusal,
    more: Vec<(&'static str, Cow<'static, str>)>,
) -> io::Result<()> {
    client.drain().await;
    let mut fields = fields(refusal, dialect, request_id);
    fields.extend(more);
    send(client, refusal.status(), &fields, &refusal.body(dialect, request_id)).await
}

/// Sends a whole answer of our own.
///
/// # Errors
/// As [`patient`].
pub async fn send(
    client: &mut Client,
    status: u16,
    fields: &[(&'static str, Cow<'_, str>)],
    body: &[u8],
) -> io::Result<()> {
    let framing = match status {
        204 => Outgoing::NoBody(None),
        _ => Outgoing::Length(u64::try_from(body.len()).unwrap_or(u64::MAX)),
    };
    client.put_head(status, fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())), framing);
    patient(async {
        client.write_body(body).await?;
        client.flush().await
    })
    .await
}

/// Writes one of our own answers, as long as the client reads it.
///
/// # Errors
/// When the client can no longer be written to, or takes nothing for ten seconds.
pub async fn patient<T>(writing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(WRITE_PATIENCE, writing).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A whole answer with its head, for a connection on which no request could be read.
pub fn raw(refusal: &Refusal, request_id: &str) -> Vec<u8> {
    let body = refusal.body(Dialect::OpenAi, request_id);
    let mut answer = Vec::with_capacity(1024);
    put_status(&mut answer, refusal.status());
    for (name, value) in fields(refusal, Dialect::OpenAi, request_id) {
        put_field(&mut answer, name.as_bytes(), value.as_bytes());
    }
    put_date(&mut answer);
    put_field(&mut answer, b"content-length", itoa::Buffer::new().format(body.len()).as_bytes());
    answer.extend_from_slice(b"connection: close\r\n\r\n");
    answer.extend_from_slice(&body);
    answer
}
