//! The Helicone sink: one call for each exchange, several at a time.
//!
//! `POST {base}/{custom|oai|anthropic|googleapis}/v1/log` in its cloud, `POST {base}/v1/trace/custom/log` on a server of
//! one's own, with `providerRequest`, `providerResponse` and `timing`. What its server does, and what follows from it:
//! * The `Helicone-Request-Id` in `meta` becomes the request's id. It is the record's, so that a second call speaks of
//!   the same request; that no second row comes of it is not promised.
//! * An answer of 200 can hold `{"error"}`, when its own store failed: the body is read.
//! * More than 10 MB are refused with 400. An exchange with bodies of that size goes without them, and with a property
//!   that says so.
//! * `meta` is made into header fields there, so what goes into it is fit for them.
//! * Tokens are read from the response's `usage`, in `json`. It gets what the provider said, or else our own numbers;
//!   where these are known, a text goes there too and not into `textBody`, which has no place for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use llm_proxy_core::secret::Secret;
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{HttpClient, bearer};
use super::facts::{self, Kept, tags};
use super::settings::{Environment, Problem, parsed, required, secret};
use super::values::{Count, FromText, HttpUrl, Key, Span, Text, Variable, one_of};
use super::verdict::{Verdict, judge, words};
use super::{Kind, Target};
use crate::dispatcher::{Event, Fault, Filter, Limits, Match, Outcome, Policy, Sink};
use crate::event::{EventType, Exchange, Outcome as End, Usage};

const PUBLIC_URL: &str = "https://api.worker.helicone.ai";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_CONCURRENCY: usize = 8;
/// The most that its server takes in a call.
const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;
/// What its SDKs send where there is no path.
const NO_PATH: &str = "custom-model-nopath";
/// Where a body stands that is no object, in the object that stands for it.
const BODY: &str = "body";

/// What the list of sinks says of this one.
pub(super) const KIND: Kind = Kind { name: "helicone", policy, read };

fn policy() -> Policy {
    Policy {
        // A call each, so nothing is won by waiting for more.
        limits: Limits { events: 100, bytes: 1 << 20, age: Duration::from_millis(100) },
        // It knows requests to models, and nothing that an administrator does.
        filter: Filter {
            only: Some(Match { types: vec![EventType::Exchange], ..Match::default() }),
            ..Filter::default()
        },
        ..Policy::default()
    }
}

/// Which of its servers is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Cloud,
    SelfHosted,
}

impl FromText for Server {
    const EXPECTED: &'static str = "one of cloud, self_hosted";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &[("cloud", Self::Cloud), ("self_hosted", Self::SelfHosted)])
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeliconeFile {
    api_key: Option<Text<Key>>,
    api_key_env: Option<Text<Variable>>,
    server: Option<Text<Server>>,
    base_url: Option<Text<HttpUrl>>,
    concurrency: Option<Text<Count>>,
    timeout: Option<Text<Span>>,
}

#[derive(Debug)]
struct HeliconeSettings {
    api_key: Key,
    server: Server,
    base_url: HttpUrl,
    concurrency: usize,
    timeout: Duration,
}

fn read(tree: Value, environment: &Environment<'_>) -> Result<Arc<dyn Target>, Problem> {
    const MOST_CALLS: u32 = 256;
    let file: HeliconeFile = parsed(tree)?;
    let server = file.server.map_or(Server::Cloud, |server| server.0);
    let public = (server == Server::Cloud).then(|| HttpUrl::from_text(PUBLIC_URL)).flatten();
    let concurrency = match file.concurrency {
        Some(Text(Count(calls))) if calls > MOST_CALLS => {
            return Err(Problem::at("concurrency", format!("found {calls}, expected at most {MOST_CALLS} calls")));
        }
        Some(Text(Count(calls))) => usize::try_from(calls).unwrap_or(DEFAULT_CONCURRENCY),
        None => DEFAULT_CONCURRENCY,
    };
    Ok(Arc::new(HeliconeSettings {
        api_key: secret(file.api_key, file.api_key_env, "api_key", environment)?,
        server,
        base_url: required(file.base_url.or(public.map(Text)), "base_url")?,
        concurrency,
        timeout: file.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0.0),
    }))
}

impl Target for HeliconeSettings {
    fn sink(&self, tls: &Arc<ClientConfig>) -> Box<dyn Sink> {
        Box::new(Helicone {
            client: HttpClient::new(self.base_url.clone(), tls, self.timeout),
            api_key: self.api_key.0.clone(),
            server: self.server,
            concurrency: self.concurrency,
        })
    }
}

struct Helicone {
    client: HttpClient,
    api_key: Secret,
    server: Server,
    concurrency: usize,
}

impl Sink for Helicone {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let down = Mutex::new(None);
            let mut calls: Vec<BoxFuture<'_, Outcome>> = Vec::with_capacity(batch.len());
            for event in batch {
                calls.push(self.log(event, &down).boxed());
            }
            stream::iter(calls).buffered(self.concurrency).collect().await
        }
        .boxed()
    }
}

impl Helicone {
    /// Sends one exchange, unless another one of the batch has found that it makes no sense now: then `down` says why.
    async fn log(&self, event: &Event, down: &Mutex<Option<Outcome>>) -> Outcome {
        let found_down = down.lock().clone();
        if let Some(outcome) = found_down {
            return outcome;
        }
        let body = Bytes::from(body_within(event, MAX_BODY_BYTES));
        if body.len() > MAX_BODY_BYTES {
            return Outcome::Poison { reason: format!("{} bytes of JSON exceed what Helicone takes", body.len()) };
        }
        let answer = self.client.post(&self.target(&event.exchange), bearer(&self.api_key), body).await;
        let hide = [self.api_key.expose()];
        let outcome = match (&answer, judge(&answer, SystemTime::now(), &hide)) {
            (Ok(answer), Verdict::Taken) => taken(&answer.body, &hide),
            (_, verdict) => verdict.outcome(),
        };
        if matches!(outcome, Outcome::Retry { fault: Fault::Sink, .. }) {
            down.lock().get_or_insert_with(|| outcome.clone());
        }
        outcome
    }

    fn target(&self, exchange: &Exchange) -> String {
        match self.server {
            Server::SelfHosted => self.client.url().below("/v1/trace/custom/log"),
            Server::Cloud => self.client.url().below(match exchange.dialect.as_deref() {
                Some("openai") => "/oai/v1/log",
                Some("anthropic") => "/anthropic/v1/log",
                Some("gemini") => "/googleapis/v1/log",
                _ => "/custom/v1/log",
            }),
        }
    }
}

/// What an answer of 2xx really says. `hide` are secrets of ours that it may repeat.
fn taken(body: &[u8], hide: &[&str]) -> Outcome {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    match answer.get("error") {
        None | Some(Value::Null) => Outcome::Delivered,
        Some(error) => {
            let reason = format!("its store failed: {}", words(&error.to_string(), hide));
            Outcome::Retry { after: None, fault: Fault::Unclear, reason }
        }
    }
}

/// The body of a call. Of one that is too large, everything but what was captured.
fn body_within(event: &Event, most_bytes: usize) -> Vec<u8> {
    let whole = body(event, None).to_string();
    let fitting = if whole.len() > most_bytes { body(event, Some(whole.len())).to_string() } else { whole };
    fitting.into_bytes()
}

/// With what was captured, or with a note on how many bytes that would have been.
fn body(event: &Event, left_out_bytes: Option<usize>) -> Value {
    let exchange = &event.exchange;
    let is_whole = left_out_bytes.is_none();
    let (began_ms, ended_ms) = facts::span_ms(event);
    let at = |ms: u64| json!({"seconds": ms / 1_000, "milliseconds": ms % 1_000});
    let mut timing = Map::new();
    timing.insert("startTime".to_owned(), at(began_ms));
    timing.insert("endTime".to_owned(), at(ended_ms));
    let first_chunk_us = exchange.times.and_then(|times| times.first_chunk_us);
    if let (Some(true), Some(first_chunk_us)) = (exchange.stream, first_chunk_us) {
        timing.insert("timeToFirstToken".to_owned(), (first_chunk_us / 1_000).into());
    }
    let mut body = Map::new();
    body.insert(
        "providerRequest".to_owned(),
        json!({
            "url": exchange.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()).unwrap_or(NO_PATH),
            "json": request(exchange, is_whole),
            "meta": meta(event, left_out_bytes),
        }),
    );
    let headers: BTreeMap<&str, &String> = exchange.provider_request_id.iter().map(|id| ("x-request-id", id)).collect();
    let (form, answered) = response(exchange, is_whole);
    body.insert(
        "providerResponse".to_owned(),
        json!({
            "status": status(exchange),
            "headers": headers,
            form: answered,
        }),
    );
    body.insert("timing".to_owned(), Value::Object(timing));
    let provider = exchange.dialect.as_deref().map(|dialect| match dialect {
        "gemini" => "GOOGLE".to_owned(),
        dialect => dialect.to_ascii_uppercase(),
    });
    if let Some(provider) = provider {
        body.insert("provider".to_owned(), provider.into());
    }
    Value::Object(body)
}

/// The request's body, if it was captured, and what stands for it otherwise.
fn request(exchange: &Exchange, is_whole: bool) -> Value {
    let mut request = Map::new();
    match facts::kept_request(exchange).filter(|_| is_whole) {
        Some(Kept::Json(Value::Object(sent))) => request = sent,
        other => {
            let body = other.map(|other| (BODY.to_owned(), other.into_value()));
            let stream = exchange.stream.map(|stream| ("stream".to_owned(), stream.into()));
            request.extend(body.into_iter().chain(stream));
        }
    }
    // Gemini and Azure have it in the path, it is read here.
    let model = exchange.model_requested.as_deref().or(exchange.model.as_deref());
    request.entry("model").or_insert_with(|| model.unwrap_or("unknown").into());
    Value::Object(request)
}

/// The answer's body, if it was captured, and what stands for it otherwise, and under which name it goes.
fn response(exchange: &Exchange, is_whole: bool) -> (&'static str, Value) {
    let is_gemini = exchange.dialect.as_deref() == Some("gemini");
    let usage = exchange.usage.as_ref().and_then(|usage| usage_of(usage, is_gemini));
    let failure = facts::failure(exchange);
    let mut response = Map::new();
    match facts::kept_response(exchange).filter(|_| is_whole) {
        Some(Kept::Text(text)) if usage.is_none() && failure.is_none() => return ("textBody", text.into()),
        Some(Kept::Json(Value::Object(answered))) => response = answered,
        other => response.extend(other.map(|other| (BODY.to_owned(), other.into_value()))),
    }
    let mut fill = |name: &str, value: Option<Value>| {
        if let Some(value) = value.filter(|_| response.get(name).is_none_or(Value::is_null)) {
            response.insert(name.to_owned(), value);
        }
    };
    fill("model", facts::model(exchange).map(Value::from));
    fill(if is_gemini { "usageMetadata" } else { "usage" }, usage);
    fill("error", failure.map(|message| json!({ "message": message })));
    ("json", Value::Object(response))
}

/// The provider's own object, or else our numbers in its form; `None` where neither is known.
fn usage_of(usage: &Usage, is_gemini: bool) -> Option<Value> {
    let provider = usage.provider_json.as_deref().and_then(|json| serde_json::from_slice::<Value>(json).ok());
    if let Some(provider) = provider.filter(Value::is_object) {
        return Some(provider);
    }
    let (input, output, total) = if is_gemini {
        ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")
    } else {
        ("prompt_tokens", "completion_tokens", "total_tokens")
    };
    let total_tokens = usage.input_tokens.zip(usage.output_tokens).map(|(input, output)| input.saturating_add(output));
    let mut numbers = Map::new();
    for (name, number) in [(input, usage.input_tokens), (output, usage.output_tokens), (total, total_tokens)] {
        if let Some(number) = number {
            numbers.insert(name.to_owned(), number.into());
        }
    }
    (!numbers.is_empty()).then_some(Value::Object(numbers))
}

/// What the client saw. Where it saw nothing, what comes closest.
fn status(exchange: &Exchange) -> u32 {
    exchange.status.unwrap_or(match exchange.outcome() {
        End::ClientGone => 499,
        End::UpstreamUnreachable | End::UpstreamCut => 502,
        End::Timeout => 504,
        End::Shed => 503,
        End::Revoked => 401,
        _ => 500,
    })
}

/// A flat map of `Helicone-…` fields.
fn meta(event: &Event, left_out_bytes: Option<usize>) -> BTreeMap<String, String> {
    let exchange = &event.exchange;
    let mut meta = BTreeMap::from([("Helicone-Request-Id".to_owned(), event.id.to_string())]);
    for (field, tag) in [
        ("Helicone-User-Id", tags::USER_ID),
        ("Helicone-Session-Id", tags::SESSION_ID),
        ("Helicone-Session-Name", tags::SESSION_NAME),
        ("Helicone-Session-Path", tags::SESSION_PATH),
        ("Helicone-Prompt-Id", tags::PROMPT_ID),
    ] {
        meta.extend(facts::tag(exchange, tag).map(|value| (field.to_owned(), field_value(value))));
    }
    let note = left_out_bytes.map(|bytes| format!("left out, {bytes} bytes of JSON with them"));
    let own = [
        ("Api", exchange.api.as_deref()),
        ("Project", exchange.project_id.as_deref()),
        ("Token", exchange.token_id.as_deref()),
        ("Outcome", Some(exchange.outcome().name())),
        ("Bodies", note.as_deref()),
    ];
    // Fields know no case, and what the client has named so is the client's.
    let is_taken = |name: &str| facts::free_tags(exchange).any(|(taken, _)| taken.eq_ignore_ascii_case(name));
    let own = own.into_iter().filter_map(|(name, value)| Some((name, value.filter(|_| !is_taken(name))?)));
    for (name, value) in facts::free_tags(exchange).chain(own) {
        let name: String =
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
        meta.insert(format!("Helicone-Property-{name}"), field_value(value));
    }
    meta
}

/// A text as a header field may hold it: what is not visible ASCII or a space is percent-encoded.
fn field_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter == ' ' || letter.is_ascii_graphic() {
            value.push(letter);
        } else {
            let mut octets = [0; 4];
            for octet in letter.encode_utf8(&mut octets).bytes() {
                value.push_str(&format!("%{octet:02X}"));
            }
        }
    }
    value.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::{Body, CapturePolicy, Content, Times};

    fn event(exchange: Exchange) -> Event {
        let id = Uuid::from_u128(0x0d0c_5a0e_6a58_4d0b_9d59_1f6f_0f6f_7b11);
        Event { seq: 1, id, time_us: 0, exchange, payload: Box::default() }
    }

    fn finished() -> Exchange {
        let some = |text: &str| Some(text.to_owned());
        let tags = [("user_id", "ann"), ("session_id", "s1"), ("session_path", "/a/b"), ("Team Blue", "ü\n")];
        Exchange {
            project_id: some("p1"),
            api: some("openai"),
            dialect: some("openai"),
            endpoint: some("/v1/chat/completions"),
            model_requested: some("gpt-4o-mini"),
            model: some("gpt-4o-mini-2024-07-18"),
            stream: Some(true),
            status: Some(200),
            outcome: End::Finished.into(),
            usage: Some(Usage { provider_json: Some(br#"{"prompt_tokens": 9}"#.to_vec()), ..Usage::default() }),
            times: Some(Times {
                received_us: Some(1_795_204_800_000_000),
                first_chunk_us: Some(310_000),
                last_byte_us: Some(1_420_000),
                ..Times::default()
            }),
            provider_request_id: some("req_1"),
            tags: tags.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            ..Exchange::default()
        }
    }

    #[test]
    fn an_exchange_is_a_log_with_its_real_times() {
        let expected = json!({
            "provider": "OPENAI",
            "providerRequest": {
                "url": "/v1/chat/completions",
                "json": {"model": "gpt-4o-mini", "stream": true},
                "meta": {
                    "Helicone-Request-Id": "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11",
                    "Helicone-User-Id": "ann",
                    "Helicone-Session-Id": "s1",
                    "Helicone-Session-Path": "/a/b",
                    "Helicone-Property-Team-Blue": "%C3%BC%0A",
                    "Helicone-Property-Api": "openai",
                    "Helicone-Property-Project": "p1",
                    "Helicone-Property-Outcome": "finished",
                },
            },
            "providerResponse": {
                "status": 200,
                "headers": {"x-request-id": "req_1"},
                "json": {"model": "gpt-4o-mini-2024-07-18", "usage": {"prompt_tokens": 9}},
            },
            "timing": {
                "startTime": {"seconds": 1_795_204_800, "milliseconds": 0},
                "endTime": {"seconds": 1_795_204_801, "milliseconds": 420},
                "timeToFirstToken": 310,
            },
        });
        assert_eq!(body(&event(finished()), None), expected);
    }

    #[test]
    fn what_is_unknown_still_makes_a_log_that_is_taken() {
        let body = body(&event(Exchange::default()), None);
        assert_eq!(body["providerRequest"]["url"], NO_PATH);
        assert_eq!(body["providerRequest"]["json"], json!({"model": "unknown"}));
        assert_eq!(body["providerResponse"]["headers"], json!({}));
        assert_eq!(body["providerResponse"]["status"], 500);
        assert_eq!(
            body["timing"],
            json!({
                "startTime": {"seconds": 0, "milliseconds": 0},
                "endTime": {"seconds": 0, "milliseconds": 0},
            })
        );
    }

    fn json_body(json: &Value) -> Option<Body> {
        Some(Body { json: Some(json.to_string().into_bytes()), ..Body::default() })
    }

    fn text_body(text: &str) -> Option<Body> {
        Some(Body { text: Some(text.to_owned()), ..Body::default() })
    }

    fn with(request: Option<Body>, response: Option<Body>, exchange: Exchange) -> Event {
        let content = Content { policy: CapturePolicy::Full.into(), request, response };
        event(Exchange { content: Some(content), ..exchange })
    }

    #[test]
    fn bodies_that_were_captured_are_sent_as_they_were() {
        let request = json!({"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
        let response = json!({
            "model": "gpt-4o-mini-2024-07-18", "choices": [], "usage": {"prompt_tokens": 8, "total_tokens": 8},
        });
        let mut log = body(&with(json_body(&request), json_body(&response), finished()), None);
        assert_eq!(log["providerRequest"]["json"], request);
        assert_eq!(log["providerResponse"]["json"], response);
        // All else is as without them.
        let without = body(&event(finished()), None);
        for part in ["providerRequest", "providerResponse"] {
            log[part]["json"] = without[part]["json"].clone();
        }
        assert_eq!(log, without);
    }

    #[test]
    fn what_a_body_does_not_say_is_filled_in() {
        let gemini = Exchange { dialect: Some("gemini".to_owned()), stream: None, ..finished() };
        let log = body(&with(json_body(&json!({"contents": []})), json_body(&json!({"candidates": []})), gemini), None);
        assert_eq!(log["providerRequest"]["json"], json!({"contents": [], "model": "gpt-4o-mini"}));
        let expected = json!({
            "candidates": [], "model": "gpt-4o-mini-2024-07-18", "usageMetadata": {"prompt_tokens": 9},
        });
        assert_eq!(log["providerResponse"]["json"], expected);
        let cut = Exchange { outcome: End::UpstreamCut.into(), ..finished() };
        let half = json!({"choices": [], "usage": null, "error": null});
        let log = body(&with(None, json_body(&half), cut), None);
        let answered = &log["providerResponse"]["json"];
        assert_eq!(answered["error"], json!({"message": "upstream_cut"}));
        assert_eq!((&answered["usage"], &answered["choices"]), (&json!({"prompt_tokens": 9}), &json!([])));
    }

    #[test]
    fn a_text_is_the_body_and_stands_beside_the_tokens_where_they_are_known() {
        let log = body(&with(text_body("{\"mess"), text_body("WEBVTT"), Exchange { usage: None, ..finished() }), None);
        let expected = json!({"model": "gpt-4o-mini", "stream": true, "body": "{\"mess"});
        assert_eq!(log["providerRequest"]["json"], expected);
        let expected = json!({"status": 200, "headers": {"x-request-id": "req_1"}, "textBody": "WEBVTT"});
        assert_eq!(log["providerResponse"], expected);
        let log = body(&with(None, text_body("{\"cho"), finished()), None);
        let expected = json!({"model": "gpt-4o-mini-2024-07-18", "usage": {"prompt_tokens": 9}, "body": "{\"cho"});
        assert_eq!(log["providerResponse"]["json"], expected);
        // Helicone's request is an object.
        let log = body(&with(json_body(&json!([1])), None, finished()), None);
        let expected = json!({"model": "gpt-4o-mini", "stream": true, "body": [1]});
        assert_eq!(log["providerRequest"]["json"], expected);
    }

    #[test]
    fn bodies_that_are_too_large_are_left_out_and_a_property_says_so() {
        let long = json!({"choices": [{"text": "a".repeat(5_000)}]});
        let large = with(json_body(&json!({"prompt": "more"})), json_body(&long), finished());
        let log = |most: usize| serde_json::from_slice::<Value>(&body_within(&large, most)).unwrap();
        assert_eq!(log(10_000), body(&large, None));
        let mut small = log(5_000);
        let meta = small["providerRequest"]["meta"].as_object_mut().unwrap();
        let note = meta.remove("Helicone-Property-Bodies").unwrap();
        assert!(note.as_str().unwrap().ends_with(" bytes of JSON with them"), "{note}");
        assert_eq!(small, body(&event(finished()), None));
    }

    #[test]
    fn a_property_of_the_clients_own_is_not_overwritten() {
        let tags = BTreeMap::from([("project".to_owned(), "apollo".to_owned())]);
        let meta = meta(&event(Exchange { tags, ..finished() }), None);
        assert_eq!(meta["Helicone-Property-project"], "apollo");
        assert!(!meta.contains_key("Helicone-Property-Project"));
        assert_eq!(meta["Helicone-Property-Api"], "openai");
    }

    #[test]
    fn usage_is_what_the_provider_said_or_our_numbers_in_its_form() {
        let numbers = Usage { input_tokens: Some(9), output_tokens: Some(2), ..Usage::default() };
        let with = |json: &str| Usage { provider_json: Some(json.as_bytes().to_vec()), ..numbers.clone() };
        let ours = json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11});
        let gemini = json!({"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11});
        for (usage, is_gemini, expected) in [
            (with(r#"{"input_tokens": 7}"#), false, Some(json!({"input_tokens": 7}))),
            (with("[{}]"), false, Some(ours.clone())),
            (with("nonsense"), false, Some(ours)),
            (numbers.clone(), true, Some(gemini)),
            (Usage { input_tokens: Some(9), ..Usage::default() }, false, Some(json!({"prompt_tokens": 9}))),
            (Usage::default(), false, None),
        ] {
            assert_eq!(usage_of(&usage, is_gemini), expected);
        }
    }

    #[test]
    fn two_hundred_does_not_mean_that_it_was_kept() {
        for body in ["ok", "", "{}", r#"{"error": null}"#] {
            assert_eq!(taken(body.as_bytes(), &[]), Outcome::Delivered, "{body}");
        }
        let expected = Outcome::Retry {
            after: None,
            fault: Fault::Unclear,
            reason: "its store failed: \"insert by [secret] failed\"".to_owned(),
        };
        assert_eq!(taken(br#"{"error": "insert by hunter2 failed"}"#, &["hunter2"]), expected);
    }

    #[test]
    fn settings_need_a_key_and_for_a_server_of_ones_own_its_address() {
        let read = |tree: Value| read(tree, &|_| None).map(|_| ()).map_err(|problem| problem.to_string());
        let key = "sk-helicone-1234";
        assert_eq!(read(json!({"api_key": key})), Ok(()));
        let own =
            json!({"api_key": key, "server": "self_hosted", "base_url": "http://helicone:8585", "concurrency": "256"});
        assert_eq!(read(own), Ok(()));
        for (tree, expected) in [
            (json!({}), "api_key: found nothing, expected a key"),
            (json!({"api_key": key, "server": "self_hosted"}), "base_url: found nothing, expected a URL"),
            (json!({"api_key": key, "server": "eu"}), "server: found \"eu\", expected one of cloud, self_hosted"),
            (json!({"api_key": key, "concurrency": "257"}), "concurrency: found 257, expected at most 256 calls"),
        ] {
            let problem = read(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{tree}: {problem}");
        }
    }
}
