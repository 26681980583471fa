//! The webhook sink: batches of records as signed JSON, to any receiver.
//!
//! Names and signature are those of Standard Webhooks, so that receivers in every language verify it with a library
//! they may have already: `webhook-id`, `webhook-timestamp`, and `webhook-signature` = `v1,` and base64 of HMAC-SHA-256
//! over `id.timestamp.body`. The body is `{"type", "timestamp", "data": [record, …]}`, each record as in
//! `events.jsonl`. The id is made from the records' ids: a batch that is sent again has the same one.
//!
//! The receiver answers 2xx when it has kept the batch, and 409 when it had it before. For 400, 413, 415 or 422 the
//! batch is sent again in halves, until the record that is refused alone is found. Everything else is tried again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use ring::{digest, hmac};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;

use super::client::HttpClient;
use super::facts;
use super::settings::{Environment, Problem, parsed, required, secret};
use super::split::{self, Post, Posted};
use super::values::{HttpUrl, SigningSecret, Span, Text, Variable};
use super::verdict::judge;
use super::{Kind, Target};
use crate::dispatcher::{Event, Outcome, Policy, Sink};

/// The `type` of every body.
const BODY_TYPE: &str = "llm_proxy.records";
/// How long a call may take: the wait that Standard Webhooks recommends at least.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// What the list of sinks says of this one.
pub(super) const KIND: Kind = Kind { name: "webhook", policy: Policy::default, read };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookFile {
    url: Option<Text<HttpUrl>>,
    secret: Option<Text<SigningSecret>>,
    secret_env: Option<Text<Variable>>,
    timeout: Option<Text<Span>>,
}

#[derive(Debug)]
struct WebhookSettings {
    url: HttpUrl,
    secret: SigningSecret,
    timeout: Duration,
}

fn read(tree: Value, environment: &Environment<'_>) -> Result<Arc<dyn Target>, Problem> {
    let file: WebhookFile = parsed(tree)?;
    Ok(Arc::new(WebhookSettings {
        url: required(file.url, "url")?,
        secret: secret(file.secret, file.secret_env, "secret", environment)?,
        timeout: file.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0.0),
    }))
}

impl Target for WebhookSettings {
    fn sink(&self, tls: &Arc<ClientConfig>) -> Box<dyn Sink> {
        let octets = SigningSecret::octets(self.secret.0.expose()).unwrap_or_default();
        Box::new(Webhook {
            client: HttpClient::new(self.url.clone(), tls, self.timeout),
            key: hmac::Key::new(hmac::HMAC_SHA256, &octets),
        })
    }
}

struct Webhook {
    client: HttpClient,
    key: hmac::Key,
}

impl Sink for Webhook {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        split::deliver(self, batch).boxed()
    }
}

impl Post for Webhook {
    fn post<'a>(&'a self, events: &'a [&'a Event]) -> BoxFuture<'a, Posted> {
        async move {
            let (id, body) = (message_id(events), body(events));
            let sent_at = SystemTime::now();
            let seconds = sent_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let headers = headers(&self.key, &id, seconds, &body);
            let answer = self.client.post(self.client.url().target(), headers, body.into()).await;
            if answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::CONFLICT) {
                return Posted::Each(vec![Outcome::Duplicate; events.len()]);
            }
            Posted::All(judge(&answer, SystemTime::now(), &[]))
        }
        .boxed()
    }
}

/// Equal for equal records in the same order.
fn message_id(events: &[&Event]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for event in events {
        context.update(event.id.as_bytes());
    }
    let digest = context.finish();
    let octets = digest.as_ref().iter().take(16);
    octets.fold("msg_".to_owned(), |id, octet| format!("{id}{octet:02x}"))
}

fn body(events: &[&Event]) -> Vec<u8> {
    let mut body = Vec::with_capacity(events.len().saturating_mul(1_280).saturating_add(128));
    // When the newest record was written: equal, too, when the batch is sent again.
    let newest_us = events.iter().map(|event| event.time_us).max().unwrap_or(0);
    let timestamp = u64::try_from(newest_us / 1_000).ok().and_then(facts::rfc3339).unwrap_or_default();
    body.extend_from_slice(format!(r#"{{"type":"{BODY_TYPE}","timestamp":"{timestamp}","data":["#).as_bytes());
    for (place, event) in events.iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        event.append_json(&mut body);
    }
    body.extend_from_slice(b"]}");
    body
}

fn headers(key: &hmac::Key, id: &str, seconds: u64, body: &[u8]) -> HeaderMap {
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    HeaderMap::from_iter([
        (HeaderName::from_static("webhook-id"), value(id)),
        (HeaderName::from_static("webhook-timestamp"), HeaderValue::from(seconds)),
        (HeaderName::from_static("webhook-signature"), value(&signature(key, id, seconds, body))),
    ])
}

/// Standard Webhooks, "Signature scheme": symmetric, version 1.
fn signature(key: &hmac::Key, id: &str, seconds: u64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{seconds}.").as_bytes());
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::event::Exchange;

    fn event(id: u128, time_us: i64) -> Event {
        let id = Uuid::from_u128(id);
        let exchange = Exchange { id: id.to_string(), ..Exchange::default() };
        Event { seq: 1, id, time_us, exchange, payload: Box::default() }
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        let octets = SigningSecret::octets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &octets);
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let headers = headers(&key, id, 1_614_265_330, body);
        assert_eq!(headers["webhook-id"], id);
        assert_eq!(headers["webhook-timestamp"], "1614265330");
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_batch_sent_again_is_the_same_message() {
        let (first, second) = (event(1, 1_795_204_800_000_000), event(2, 1_795_204_801_420_000));
        let batch = [&first, &second];
        assert_eq!(message_id(&batch), message_id(&batch));
        assert_ne!(message_id(&batch), message_id(&[&first]));
        assert_ne!(message_id(&batch), message_id(&[&second, &first]));
        assert!(message_id(&batch).starts_with("msg_") && message_id(&batch).len() == 36);
        let parsed: Value = serde_json::from_slice(&body(&batch)).unwrap();
        assert_eq!(parsed["type"], "llm_proxy.records");
        assert_eq!(parsed["timestamp"], "2026-11-20T20:00:01.42Z");
        assert_eq!(parsed["data"].as_array().unwrap().len(), 2);
        assert_eq!(parsed["data"][1]["id"], second.id.to_string());
        assert_eq!(body(&batch), body(&batch));
    }

    #[test]
    fn settings_need_a_url_and_a_secret() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let read = |tree: Value| read(tree, &|_| None).map(|_| ()).map_err(|problem| problem.to_string());
        assert_eq!(read(json!({"url": "https://a.example/hook", "secret": secret})), Ok(()));
        for (tree, expected) in [
            (json!({"secret": secret}), "url: found nothing, expected a URL"),
            (json!({"url": "https://a.example"}), "secret: found nothing, expected whsec_"),
            (json!({"url": "a.example", "secret": secret}), "url: found a value that is not shown here"),
            (json!({"url": "https://a.example", "secret": "short"}), "secret: found a value that is not shown here"),
            (json!({"urll": "x"}), "urll: unknown key `urll`, expected one of `url`, `secret`"),
        ] {
            let problem = read(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{tree}: {problem}");
        }
    }
}
