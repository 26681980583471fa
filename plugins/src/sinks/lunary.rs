//! The Lunary sink: a run for each exchange, `start` and `end` in one batch.
//!
//! `POST {base}/v1/runs/ingest` with `{"events": […]}`. What its server does, and what follows from it:
//! * It answers 200 with a result for each event, some of which may have failed, so each is read.
//! * A `start` that it has already fails with "already exists": that is a duplicate, and as good as delivered.
//! * It sorts a call's events by their times, and an `end` whose `start` it does not know waits for seconds: both go in
//!   one call, a millisecond apart at least.
//! * An `error` event carries no token counts. A failed exchange that used some gets its `end` before it.
//! * Where a token count is missing or 0 it makes its own estimate.
//! * It takes 150 calls a minute from one address, so calls are half a second apart at least.
//! * It turns all keys to camelCase, within what was said too, so ours are; those of others it gets as they are.
//! * What was said it shows as chat messages in OpenAI's form (`chat.rs`), or as a text.

mod chat;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::StatusCode;
use llm_proxy_core::secret::Secret;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Answer, HttpClient, bearer};
use super::facts::{self, Kept, tags};
use super::settings::{Environment, Problem, parsed, secret};
use super::split::{self, Post, Posted};
use super::values::{FromText, HttpUrl, Span, Text, UuidKey, Variable};
use super::verdict::{Verdict, judge, words};
use super::{Kind, Target};
use crate::dispatcher::{Event, Fault, Filter, Limits, Match, Outcome, Policy, Sink};
use crate::event::{Body, EventType, Usage};

const PUBLIC_URL: &str = "https://api.lunary.ai";
const PATH: &str = "/v1/runs/ingest";
/// Its server may wait five seconds for a run that it does not know, for each of several.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Least time between two calls: 120 a minute of the 150 that it takes.
const PAUSE: Duration = Duration::from_millis(500);
/// Half of what its server takes.
const MAX_BODY_BYTES: usize = 10_000_000;

/// What the list of sinks says of this one.
pub(super) const KIND: Kind = Kind { name: "lunary", policy, read };

fn policy() -> Policy {
    Policy {
        limits: Limits { events: 500, bytes: 1 << 20, age: Duration::from_secs(1) },
        pause: PAUSE,
        // It knows runs of models, and nothing that an administrator does.
        filter: Filter {
            only: Some(Match { types: vec![EventType::Exchange], ..Match::default() }),
            ..Filter::default()
        },
        ..Policy::default()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LunaryFile {
    api_key: Option<Text<UuidKey>>,
    api_key_env: Option<Text<Variable>>,
    base_url: Option<Text<HttpUrl>>,
    timeout: Option<Text<Span>>,
}

#[derive(Debug)]
struct LunarySettings {
    api_key: UuidKey,
    base_url: HttpUrl,
    timeout: Duration,
}

fn read(tree: Value, environment: &Environment<'_>) -> Result<Arc<dyn Target>, Problem> {
    let file: LunaryFile = parsed(tree)?;
    let base_url = file.base_url.map(|base_url| base_url.0).or_else(|| HttpUrl::from_text(PUBLIC_URL));
    Ok(Arc::new(LunarySettings {
        api_key: secret(file.api_key, file.api_key_env, "api_key", environment)?,
        base_url: base_url.ok_or_else(|| Problem::at("base_url", "found nothing, expected a URL"))?,
        timeout: file.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0.0),
    }))
}

impl Target for LunarySettings {
    fn sink(&self, tls: &Arc<ClientConfig>) -> Box<dyn Sink> {
        Box::new(Lunary {
            target: self.base_url.below(PATH),
            client: HttpClient::new(self.base_url.clone(), tls, self.timeout),
            api_key: self.api_key.0.clone(),
        })
    }
}

struct Lunary {
    target: String,
    client: HttpClient,
    api_key: Secret,
}

impl Sink for Lunary {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        split::deliver(self, batch).boxed()
    }
}

impl Post for Lunary {
    fn post<'a>(&'a self, events: &'a [&'a Event]) -> BoxFuture<'a, Posted> {
        async move {
            let body = Bytes::from(body_within(events, MAX_BODY_BYTES));
            if body.len() > MAX_BODY_BYTES {
                let reason = format!("{} bytes of JSON exceed what Lunary takes", body.len());
                return Posted::All(Verdict::Refused { reason });
            }
            let answer = self.client.post(&self.target, bearer(&self.api_key), body).await;
            let (now, hide) = (SystemTime::now(), [self.api_key.expose()]);
            let verdict = judge(&answer, now, &hide);
            match (&answer, verdict) {
                (Ok(answer), Verdict::Taken) => match serde_json::from_slice::<Results>(&answer.body) {
                    Ok(results) => Posted::Each(outcomes(events, &results, &hide)),
                    Err(error) => Posted::All(Verdict::Again {
                        after: None,
                        fault: Fault::Unclear,
                        reason: words(&format!("an answer without results: {error}"), &hide),
                    }),
                },
                (Ok(answer), Verdict::Again { after, fault, reason }) => {
                    Posted::All(Verdict::Again { after: after.or_else(|| reset_after(answer, now)), fault, reason })
                }
                (_, verdict) => Posted::All(verdict),
            }
        }
        .boxed()
    }
}

/// When its limit begins anew, of which it tells the second since the Unix epoch.
fn reset_after(answer: &Answer, now: SystemTime) -> Option<Duration> {
    if answer.status != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let reset = answer.headers.get("rate-limit-reset")?.to_str().ok()?.parse().ok()?;
    let reset = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(reset))?;
    Some(reset.duration_since(now).unwrap_or_default())
}

#[derive(Deserialize)]
struct Results {
    results: Vec<ResultOfOne>,
}

#[derive(Deserialize)]
struct ResultOfOne {
    #[serde(default)]
    id: Option<String>,
    success: bool,
    #[serde(default)]
    error: Option<String>,
}

impl ResultOfOne {
    fn is_duplicate(&self) -> bool {
        self.error.as_deref().is_some_and(|error| error.contains("already exists"))
    }
}

/// The worst result of each run, whose events have one each. `hide` are secrets of ours that it may repeat.
fn outcomes(events: &[&Event], results: &Results, hide: &[&str]) -> Vec<Outcome> {
    let mut of_run: HashMap<&str, Vec<&ResultOfOne>> = HashMap::new();
    for result in &results.results {
        of_run.entry(result.id.as_deref().unwrap_or_default()).or_default().push(result);
    }
    let outcome = |event: &&Event| {
        let id = event.id.to_string();
        let again = |reason| Outcome::Retry { after: None, fault: Fault::Unclear, reason };
        let Some(results) = of_run.get(id.as_str()) else { return again("no result for this run".to_owned()) };
        let failed = results.iter().find(|result| !result.success && !result.is_duplicate());
        match failed {
            Some(failed) => again(words(failed.error.as_deref().unwrap_or("no reason given"), hide)),
            None if results.iter().any(|result| !result.success) => Outcome::Duplicate,
            None => Outcome::Delivered,
        }
    };
    events.iter().map(outcome).collect()
}

/// The body of a call. Of a run that is too large although it is alone, everything but what was said.
fn body_within(events: &[&Event], most_bytes: usize) -> Vec<u8> {
    let whole = body(events, None);
    if whole.len() > most_bytes && events.len() == 1 { body(events, Some(whole.len())) } else { whole }
}

/// With what was said, or with a note on how many bytes that would have been.
fn body(events: &[&Event], left_out_bytes: Option<usize>) -> Vec<u8> {
    let events: Vec<Value> = events.iter().flat_map(|event| run(event, left_out_bytes)).collect();
    let body = Map::from_iter([("events".to_owned(), Value::Array(events))]);
    Value::Object(body).to_string().into_bytes()
}

/// The events of one run.
fn run(event: &Event, left_out_bytes: Option<usize>) -> Vec<Value> {
    let exchange = &event.exchange;
    let (began_ms, ended_ms) = facts::span_ms(event);
    let ended_ms = ended_ms.max(began_ms.saturating_add(1));
    let is_embedding = exchange.endpoint.as_deref().is_some_and(|endpoint| endpoint.contains("mbed"));
    let head = |kind: &str, at_ms: u64| {
        let mut head = Map::new();
        head.insert("type".to_owned(), if is_embedding { "embed" } else { "llm" }.into());
        head.insert("event".to_owned(), kind.into());
        head.insert("runId".to_owned(), event.id.to_string().into());
        head.insert("timestamp".to_owned(), facts::rfc3339(at_ms).into());
        head
    };
    let said = Said::of(event, is_embedding, left_out_bytes.is_some());
    let free_tags = facts::free_tags(exchange).map(|(name, value)| format!("{name}:{value}"));
    let mut start = head("start", began_ms);
    insert(&mut start, "name", facts::model(exchange));
    insert(&mut start, "userId", facts::tag(exchange, tags::USER_ID));
    insert(&mut start, "tags", Some(free_tags.collect::<Vec<_>>()).filter(|tags| !tags.is_empty()));
    let mut params = said.params;
    if let Some(stream) = exchange.stream {
        params.entry("stream").or_insert_with(|| stream.into());
    }
    insert(&mut start, "params", Some(params).filter(|params| !params.is_empty()));
    insert(&mut start, "input", said.input);
    insert(&mut start, "metadata", Some(metadata(event, left_out_bytes)));
    insert(&mut start, "runtime", Some("llm-proxy"));

    let usage = exchange.usage.as_ref().and_then(tokens_usage);
    let failure = facts::failure(exchange).map(|failure| match said.provider_error {
        Some(words) => format!("{failure}: {words}"),
        None => failure,
    });
    let mut events = vec![Value::Object(start)];
    if failure.is_none() || usage.is_some() || said.output.is_some() {
        let mut end = head("end", ended_ms);
        insert(&mut end, "output", said.output);
        insert(&mut end, "tokensUsage", usage);
        events.push(Value::Object(end));
    }
    if let Some(message) = failure {
        let mut error = head("error", ended_ms.saturating_add(1));
        insert(&mut error, "error", Some(json!({ "message": message, "stack": "" })));
        events.push(Value::Object(error));
    }
    events
}

/// What was kept of both bodies, as Lunary shows it.
#[derive(Default)]
struct Said {
    input: Option<Value>,
    params: Map<String, Value>,
    output: Option<Value>,
    provider_error: Option<String>,
}

impl Said {
    fn of(event: &Event, is_embedding: bool, is_left_out: bool) -> Self {
        let mut said = Self::default();
        if is_left_out {
            return said;
        }
        match facts::kept_request(&event.exchange) {
            Some(Kept::Json(body)) => {
                said.params = chat::params(&body);
                said.input = Some(if is_embedding { chat::embedded(&body) } else { chat::input(&body) });
            }
            Some(Kept::Text(text)) => said.input = Some(text.into()),
            None => {}
        }
        // Vectors are large, and nobody reads them.
        match facts::kept_response(&event.exchange) {
            Some(Kept::Json(body)) => {
                said.provider_error = chat::error_message(&body).map(str::to_owned);
                let answer = if is_embedding { None } else { chat::output(&body) };
                let is_other = !is_embedding && said.provider_error.is_none();
                said.output = answer.or_else(|| is_other.then_some(body));
            }
            Some(Kept::Text(text)) if !is_embedding => said.output = Some(text.into()),
            Some(Kept::Text(_)) | None => {}
        }
        said
    }
}

fn insert(into: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        into.insert(key.to_owned(), value.into());
    }
}

/// `None` where neither number is known.
fn tokens_usage(usage: &Usage) -> Option<Value> {
    let mut counts = Map::new();
    insert(&mut counts, "prompt", usage.input_tokens);
    insert(&mut counts, "completion", usage.output_tokens);
    if counts.is_empty() {
        return None;
    }
    insert(&mut counts, "promptCached", usage.cache_read_input_tokens);
    Some(Value::Object(counts))
}

/// Single values only: it keeps nothing else.
fn metadata(event: &Event, left_out_bytes: Option<usize>) -> Value {
    let exchange = &event.exchange;
    let mut metadata = Map::new();
    for (key, value) in [
        ("project", &exchange.project_id),
        ("token", &exchange.token_id),
        ("api", &exchange.api),
        ("endpoint", &exchange.endpoint),
        ("reason", &exchange.reason),
        ("requestId", &exchange.client_request_id),
        ("providerRequestId", &exchange.provider_request_id),
    ] {
        insert(&mut metadata, key, value.as_deref());
    }
    insert(&mut metadata, "status", exchange.status);
    insert(&mut metadata, "outcome", Some(exchange.outcome().name()));
    insert(&mut metadata, "costUsd", exchange.cost.as_ref().and_then(|cost| cost.usd.as_deref()));
    insert(&mut metadata, "sessionId", facts::tag(exchange, tags::SESSION_ID));
    let is_cut = |body: Option<&Body>| body.is_some_and(|body| body.truncated).then_some(true);
    let content = exchange.content.as_ref();
    insert(&mut metadata, "inputTruncated", is_cut(content.and_then(|content| content.request.as_ref())));
    insert(&mut metadata, "outputTruncated", is_cut(content.and_then(|content| content.response.as_ref())));
    let left_out = left_out_bytes.map(|bytes| format!("input and output left out: {bytes} bytes of JSON with them"));
    insert(&mut metadata, "note", left_out);
    Value::Object(metadata)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderMap;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    use uuid::Uuid;

    use super::*;
    use crate::event::{CapturePolicy, Content, Cost, Exchange, Outcome as End, Times};

    fn event(exchange: Exchange) -> Event {
        let id = Uuid::from_u128(0x0d0c_5a0e_6a58_4d0b_9d59_1f6f_0f6f_7b11);
        Event { seq: 1, id, time_us: 0, exchange, payload: Box::default() }
    }

    fn finished() -> Exchange {
        let some = |text: &str| Some(text.to_owned());
        let tags = [("user_id", "ann"), ("session_id", "s1"), ("team", "blue")];
        Exchange {
            api: some("openai"),
            endpoint: some("/v1/chat/completions"),
            model: some("gpt-4o-mini"),
            stream: Some(true),
            status: Some(200),
            outcome: End::Finished.into(),
            usage: Some(Usage {
                input_tokens: Some(9),
                output_tokens: Some(2),
                cache_read_input_tokens: Some(0),
                ..Usage::default()
            }),
            cost: Some(Cost { usd: some("0.00025"), prices: None }),
            times: Some(Times {
                received_us: Some(1_795_204_800_000_000),
                last_byte_us: Some(1_420_000),
                ..Times::default()
            }),
            tags: tags.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>(),
            ..Exchange::default()
        }
    }

    #[test]
    fn an_exchange_is_a_run_with_start_and_end() {
        let run_id = "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11";
        let expected = json!([
            {
                "type": "llm", "event": "start", "runId": run_id, "timestamp": "2026-11-20T20:00:00Z",
                "name": "gpt-4o-mini", "userId": "ann", "tags": ["team:blue"], "params": {"stream": true},
                "metadata": {
                    "api": "openai", "endpoint": "/v1/chat/completions", "status": 200, "outcome": "finished",
                    "costUsd": "0.00025", "sessionId": "s1",
                },
                "runtime": "llm-proxy",
            },
            {
                "type": "llm", "event": "end", "runId": run_id, "timestamp": "2026-11-20T20:00:01.42Z",
                "tokensUsage": {"prompt": 9, "completion": 2, "promptCached": 0},
            },
        ]);
        assert_eq!(Value::Array(run(&event(finished()), None)), expected);
    }

    fn json_body(json: &Value) -> Option<Body> {
        Some(Body { json: Some(json.to_string().into_bytes()), ..Body::default() })
    }

    fn with(request: Option<Body>, response: Option<Body>, exchange: Exchange) -> Event {
        let content = Content { policy: CapturePolicy::Full.into(), request, response };
        event(Exchange { content: Some(content), ..exchange })
    }

    #[test]
    fn what_was_said_is_part_of_the_run() {
        let request = json!({
            "model": "gpt-4o-mini", "temperature": 0.2, "stream": true,
            "messages": [{"role": "user", "content": "hello"}],
        });
        let answer = json!({"role": "assistant", "content": "hi"});
        let response = json!({"choices": [{"message": answer}], "usage": {"prompt_tokens": 9}});
        let events = run(&with(json_body(&request), json_body(&response), finished()), None);
        assert_eq!(events[0]["input"], json!([{"role": "user", "content": "hello"}]));
        assert_eq!(events[0]["params"], json!({"temperature": 0.2, "stream": true}));
        assert_eq!(events[1]["output"], answer);
        // All else is as without it.
        let mut without = events;
        for (event, key) in [(0, "input"), (0, "params"), (1, "output")] {
            without[event].as_object_mut().unwrap().remove(key);
        }
        without[0]["params"] = json!({"stream": true});
        assert_eq!(without, run(&event(finished()), None));
    }

    #[test]
    fn what_was_cut_or_is_no_json_is_a_text() {
        let cut = Body { text: Some("{\"messages\":[".to_owned()), truncated: true, ..Body::default() };
        let text = Body { text: Some("WEBVTT".to_owned()), ..Body::default() };
        let events = run(&with(Some(cut), Some(text), finished()), None);
        assert_eq!((&events[0]["input"], &events[1]["output"]), (&json!("{\"messages\":["), &json!("WEBVTT")));
        let metadata = &events[0]["metadata"];
        assert_eq!((&metadata["inputTruncated"], &metadata["outputTruncated"]), (&json!(true), &Value::Null));
        let hashed = Body { sha256: Some("e3b0".to_owned()), ..Body::default() };
        let events = run(&with(Some(hashed), None, finished()), None);
        assert!(events[0].get("input").is_none() && events[1].get("output").is_none());
    }

    #[test]
    fn vectors_are_asked_for_with_texts_and_are_not_shown() {
        let request = json_body(&json!({"model": "m", "input": ["a", "b"], "dimensions": 2}));
        let response = json_body(&json!({"data": [{"embedding": [0.1, 0.2]}]}));
        let embeddings = Exchange { endpoint: Some("/v1/embeddings".to_owned()), stream: None, ..finished() };
        let events = run(&with(request, response, embeddings), None);
        assert_eq!((&events[0]["type"], &events[0]["input"]), (&json!("embed"), &json!(["a", "b"])));
        assert_eq!(events[0]["params"], json!({"dimensions": 2}));
        assert!(events[1].get("output").is_none());
    }

    #[test]
    fn a_failure_is_told_in_the_providers_words_and_keeps_what_was_said_before_it() {
        let error = json_body(&json!({"error": {"message": "no such model"}}));
        let refused = Exchange { status: Some(404), usage: None, ..finished() };
        let events = run(&with(None, error, refused), None);
        assert_eq!(events.iter().map(|event| event["event"].clone()).collect::<Vec<_>>(), ["start", "error"]);
        assert_eq!(events[1]["error"]["message"], "the provider answered 404: no such model");
        let half = json_body(&json!({"choices": [{"message": {"role": "assistant", "content": "once upon"}}]}));
        let cut = Exchange { outcome: End::UpstreamCut.into(), usage: None, ..finished() };
        let events = run(&with(None, half, cut), None);
        assert_eq!(events[1]["output"]["content"], "once upon");
        assert_eq!(events[2]["error"]["message"], "upstream_cut");
    }

    #[test]
    fn a_run_that_is_too_large_alone_goes_without_what_was_said() {
        let long = "a".repeat(5_000);
        let request = json_body(&json!({"messages": [{"role": "user", "content": long}]}));
        let large = with(request, None, finished());
        let events = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["events"].clone();
        assert_eq!(events(&body_within(&[&large], 10_000))[0]["input"][0]["content"], long);
        let small = events(&body_within(&[&large], 5_000));
        assert!(small[0].get("input").is_none());
        let note = small[0]["metadata"]["note"].as_str().unwrap();
        assert!(
            note.starts_with("input and output left out: ") && note.ends_with(" bytes of JSON with them"),
            "{note}"
        );
        // With others it is sent alone next.
        assert!(body_within(&[&large, &large], 5_000).len() > 10_000);
    }

    #[test]
    fn a_failure_is_an_error_and_keeps_the_tokens_it_used() {
        let failed = Exchange { outcome: End::Timeout.into(), reason: Some("idle".to_owned()), ..finished() };
        let events = run(&event(failed.clone()), None);
        let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["start", "end", "error"]);
        assert_eq!(events[2]["error"], json!({"message": "timeout: idle", "stack": ""}));
        let time = |event: &Value| OffsetDateTime::parse(event["timestamp"].as_str().unwrap(), &Rfc3339).unwrap();
        let times: Vec<_> = events.iter().map(time).collect();
        assert!(times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
        let without_tokens = run(&event(Exchange { usage: None, ..failed }), None);
        assert_eq!(without_tokens.iter().map(|event| event["event"].clone()).collect::<Vec<_>>(), ["start", "error"]);
    }

    #[test]
    fn a_run_ends_after_it_began_also_where_no_time_is_known() {
        let events = run(&event(Exchange { outcome: End::Finished.into(), ..Exchange::default() }), None);
        assert_eq!(events[0]["timestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(events[1]["timestamp"], "1970-01-01T00:00:00.001Z");
    }

    #[test]
    fn each_result_is_read_and_what_exists_already_is_a_duplicate() {
        let one = event(finished());
        let two = Event { id: Uuid::from_u128(2), ..one.clone() };
        let (id, exists) = (one.id.to_string(), "Run with this ID already exists in the database.");
        let again = |reason: &str| Outcome::Retry { after: None, fault: Fault::Unclear, reason: reason.to_owned() };
        for (results, expected) in [
            (json!([{"id": id, "success": true}, {"id": id, "success": true}]), Outcome::Delivered),
            (json!([{"id": id, "success": false, "error": exists}, {"id": id, "success": true}]), Outcome::Duplicate),
            (json!([{"id": id, "success": true}, {"id": id, "success": false, "error": "no"}]), again("no")),
            (json!([{"id": id, "success": false}]), again("no reason given")),
            (json!([{"id": id, "success": false, "error": "bad\u{1b}[2J\nkey hunter2"}]), again("bad[2J key [secret]")),
            (json!([]), again("no result for this run")),
        ] {
            let answer: Results = serde_json::from_value(json!({ "results": results })).unwrap();
            let found = outcomes(&[&one, &two], &answer, &["hunter2"]);
            assert_eq!(found, [expected, again("no result for this run")], "{results}");
        }
    }

    #[test]
    fn its_own_way_to_say_when_the_limit_begins_anew_is_understood() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        for (status, reset, expected) in
            [(429, "1030", Some(30)), (429, "900", Some(0)), (429, "soon", None), (503, "1030", None)]
        {
            let headers = HeaderMap::from_iter([("rate-limit-reset".parse().unwrap(), reset.parse().unwrap())]);
            let answer = Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::new() };
            assert_eq!(reset_after(&answer, now), expected.map(Duration::from_secs), "{status} {reset}");
        }
    }

    #[test]
    fn settings_need_a_key_that_is_a_uuid() {
        let read = |tree: Value| read(tree, &|_| None).map(|_| ()).map_err(|problem| problem.to_string());
        assert_eq!(read(json!({"api_key": "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11"})), Ok(()));
        for (tree, expected) in [
            (json!({}), "api_key: found nothing, expected a project's"),
            (json!({"api_key": "hunter2"}), "api_key: found a value that is not shown here, expected a project's"),
            (json!({"api_key_env": "NONE"}), "api_key_env: found no variable NONE"),
            (json!({"apikey": "x"}), "apikey: unknown key `apikey`, expected one of `api_key`"),
        ] {
            let problem = read(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{tree}: {problem}");
        }
    }
}
