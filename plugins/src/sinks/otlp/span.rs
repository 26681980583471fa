//! An exchange as a span of the GenAI conventions.
//!
//! Trace and span id are made of the record's id, so that a record that is sent again is the same span. What the record
//! does not know is no attribute.

use opentelemetry_proto::tonic::trace::v1::{Span, Status, span, status};
use serde_json::Value;

use super::super::facts::{self, Kept, tags};
use super::attributes::Attributes;
use super::names::{self, legacy, own};
use super::{messages, parameters};
use crate::dispatcher::Event;
use crate::event::{Exchange, Outcome, Usage};

/// What a span tells beyond what every span tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tells {
    /// Captured prompts and answers.
    pub content: bool,
    /// The provider and the tokens once more, under the names of earlier conventions.
    pub legacy_names: bool,
}

/// Operations by the end of an endpoint's template; the first that fits counts. What is in no row is none of the
/// conventions' operations. Names from `image_generation` on are ours: the conventions have none for these, and let
/// others be used.
const OPERATIONS: [(&str, &str); 19] = [
    ("/chat/completions", "chat"),
    ("/v1/messages", "chat"),
    ("/responses", "chat"),
    ("/responses/compact", "chat"),
    ("/completions", "text_completion"),
    ("/v1/complete", "text_completion"),
    ("/embeddings", "embeddings"),
    (":embedContent", "embeddings"),
    (":batchEmbedContents", "embeddings"),
    (":generateContent", "generate_content"),
    (":streamGenerateContent", "generate_content"),
    ("/images/generations", "image_generation"),
    ("/images/edits", "image_edit"),
    ("/images/variations", "image_variation"),
    ("/audio/speech", "speech"),
    ("/audio/transcriptions", "transcription"),
    ("/audio/translations", "translation"),
    ("/moderations", "moderation"),
    (":predict", "predict"),
];

/// Providers by the name that operators give an API of OpenAI's dialect.
const COMPATIBLE: [(&str, &str); 9] = [
    ("groq", "groq"),
    ("deepseek", "deepseek"),
    ("mistral", "mistral_ai"),
    ("xai", "x_ai"),
    ("x-ai", "x_ai"),
    ("cohere", "cohere"),
    ("perplexity", "perplexity"),
    ("moonshot", "moonshot_ai"),
    ("bedrock", "aws.bedrock"),
];

/// The span of an event.
pub(super) fn of(event: &Event, tells: Tells) -> Span {
    let exchange = &event.exchange;
    let (start_time_unix_nano, end_time_unix_nano) = times_ns(event);
    let failure = facts::failure(exchange);
    let (trace_id, span_id) = ids(event);
    Span {
        trace_id,
        span_id,
        name: name(exchange),
        kind: span::SpanKind::Client.into(),
        start_time_unix_nano,
        end_time_unix_nano,
        attributes: attributes(event, tells).into_list(),
        status: failure.map(|message| Status { message, code: status::StatusCode::Error.into() }),
        ..Span::default()
    }
}

/// All of the record's id is the trace, the last half of it the span. Neither may be all zeros (W3C Trace Context
/// §3.2.2), which only an id that is none would be.
fn ids(event: &Event) -> (Vec<u8>, Vec<u8>) {
    let id = event.id.as_bytes();
    let half = id.get(8..).unwrap_or_default();
    let never_zero = |octets: &[u8]| match octets.split_last() {
        Some((0, first)) if first.iter().all(|octet| *octet == 0) => [first, &[1]].concat(),
        _ => octets.to_vec(),
    };
    (never_zero(id), never_zero(half))
}

/// When the exchange began and ended, in nanoseconds since the Unix epoch.
fn times_ns(event: &Event) -> (u64, u64) {
    let times = event.exchange.times.unwrap_or_default();
    let began_us = u64::try_from(times.received_us.unwrap_or(event.time_us)).unwrap_or(0);
    let steps = [times.forwarded_us, times.first_byte_us, times.first_chunk_us, times.last_byte_us];
    let lasted_us = steps.into_iter().flatten().max().unwrap_or(0);
    (began_us.saturating_mul(1_000), began_us.saturating_add(lasted_us).saturating_mul(1_000))
}

/// `{operation} {model}`, or else what was called, as a span of HTTP is named.
fn name(exchange: &Exchange) -> String {
    let words = match operation(exchange) {
        Some(operation) => [Some(operation), requested_model(exchange)],
        None => [exchange.method.as_deref(), exchange.endpoint.as_deref()],
    };
    let name = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    if name.is_empty() { "request".to_owned() } else { name }
}

/// `None` for what asks nothing of a model: lists, files, stored answers.
fn operation(exchange: &Exchange) -> Option<&'static str> {
    let asks = exchange.method.as_deref().is_none_or(|method| method == "POST");
    let endpoint = exchange.endpoint.as_deref().filter(|_| asks)?;
    OPERATIONS.iter().find(|(end, _)| endpoint.ends_with(end)).map(|(_, operation)| *operation)
}

fn provider(exchange: &Exchange) -> Option<&str> {
    let dialect = exchange.dialect.as_deref()?;
    Some(match dialect {
        "gemini" => "gcp.gemini",
        "azure" => "azure.ai.openai",
        "openai" => {
            let api = exchange.api.as_deref().unwrap_or_default();
            COMPATIBLE.iter().find(|(name, _)| *name == api).map_or(dialect, |(_, provider)| *provider)
        }
        dialect => dialect,
    })
}

fn requested_model(exchange: &Exchange) -> Option<&str> {
    exchange.model_requested.as_deref().or(exchange.model.as_deref())
}

/// A name for the kind of failure, of which there are few: the status of an answer that is an error, or the outcome.
fn error_type(exchange: &Exchange) -> Option<String> {
    match (exchange.outcome(), exchange.status) {
        (Outcome::Finished, Some(status @ 400..)) => Some(status.to_string()),
        (Outcome::Finished, _) => None,
        (outcome, _) => Some(outcome.name().to_owned()),
    }
}

fn attributes(event: &Event, tells: Tells) -> Attributes {
    let exchange = &event.exchange;
    let mut attributes = Attributes::default();
    attributes.text(names::OPERATION_NAME, operation(exchange));
    attributes.text(names::PROVIDER_NAME, provider(exchange));
    attributes.text(names::REQUEST_MODEL, requested_model(exchange));
    attributes.text(names::RESPONSE_MODEL, exchange.model.as_deref());
    // Absent means no.
    attributes.truth(names::REQUEST_STREAM, exchange.stream.filter(|is_stream| *is_stream));
    attributes.texts(names::RESPONSE_FINISH_REASONS, exchange.finish_reasons.iter().cloned());
    let first_chunk_us = exchange.times.and_then(|times| times.first_chunk_us);
    let first_chunk_us = first_chunk_us.filter(|_| exchange.stream == Some(true));
    attributes.fraction(names::RESPONSE_TIME_TO_FIRST_CHUNK, first_chunk_us.map(seconds));
    attributes.count(names::HTTP_RESPONSE_STATUS_CODE, exchange.status.map(u64::from));
    attributes.text(names::ERROR_TYPE, error_type(exchange));
    if let Some(usage) = &exchange.usage {
        add_usage(&mut attributes, usage, tells);
    }
    if tells.legacy_names {
        attributes.text(legacy::SYSTEM, provider(exchange));
    }
    attributes.text(names::USER_ID, facts::tag(exchange, tags::USER_ID));
    attributes.text(names::SESSION_ID, facts::tag(exchange, tags::SESSION_ID));
    attributes.text(names::CONVERSATION_ID, facts::tag(exchange, tags::SESSION_ID));
    attributes.text(names::PROMPT_NAME, facts::tag(exchange, tags::PROMPT_ID));
    add_own(&mut attributes, event);
    add_captured(&mut attributes, exchange, tells);
    attributes
}

/// Microseconds as seconds. Whole up to 2^53, which are three hundred years.
fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn add_usage(attributes: &mut Attributes, usage: &Usage, tells: Tells) {
    for (name, tokens) in [
        (names::USAGE_INPUT_TOKENS, usage.input_tokens),
        (names::USAGE_OUTPUT_TOKENS, usage.output_tokens),
        (names::USAGE_CACHE_READ_INPUT_TOKENS, usage.cache_read_input_tokens),
        (names::USAGE_CACHE_CREATION_INPUT_TOKENS, usage.cache_creation_input_tokens),
        (names::USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_output_tokens),
        (names::USAGE_AUDIO_INPUT_TOKENS, usage.audio_input_tokens),
        (names::USAGE_AUDIO_OUTPUT_TOKENS, usage.audio_output_tokens),
    ] {
        attributes.count(name, tokens);
    }
    if tells.legacy_names {
        attributes.count(legacy::USAGE_PROMPT_TOKENS, usage.input_tokens);
        attributes.count(legacy::USAGE_COMPLETION_TOKENS, usage.output_tokens);
    }
    attributes.text(own::USAGE_SOURCE, Some(usage.source().name()));
}

fn add_own(attributes: &mut Attributes, event: &Event) {
    let exchange = &event.exchange;
    attributes.text(own::REQUEST_ID, Some(event.id.to_string()));
    for (name, value) in [
        (own::CLIENT_REQUEST_ID, &exchange.client_request_id),
        (own::PROVIDER_REQUEST_ID, &exchange.provider_request_id),
        (own::PROJECT_ID, &exchange.project_id),
        (own::TOKEN_ID, &exchange.token_id),
        (own::API, &exchange.api),
        (own::DIALECT, &exchange.dialect),
        (own::ENDPOINT, &exchange.endpoint),
        (own::REASON, &exchange.reason),
        (own::CLIENT_ADDRESS, &exchange.client_address),
    ] {
        attributes.text(name, value.as_deref());
    }
    attributes.text(own::OUTCOME, Some(exchange.outcome().name()));
    if let Some(cost) = &exchange.cost {
        attributes.fraction(own::COST_USD, cost.usd.as_deref().and_then(|usd| usd.parse().ok()));
        attributes.text(own::COST_PRICES, cost.prices.as_deref());
    }
    attributes.count(own::ATTEMPT, exchange.attempt.map(u64::from));
    attributes.count(own::COUNT, Some(exchange.count).filter(|count| *count > 1));
    attributes.count(own::CHUNKS, exchange.chunks);
    attributes.count(own::REQUEST_BYTES, exchange.request_bytes);
    attributes.count(own::RESPONSE_BYTES, exchange.response_bytes);
    attributes.text(own::SESSION_NAME, facts::tag(exchange, tags::SESSION_NAME));
    attributes.text(own::SESSION_PATH, facts::tag(exchange, tags::SESSION_PATH));
    for (name, value) in facts::free_tags(exchange) {
        attributes.text(&format!("{}{name}", own::TAG_PREFIX), Some(value));
    }
}

/// What is read from bodies, where the project's policy has let them be kept: what the request asked for, and, if it is
/// wanted, the conversation itself.
fn add_captured(attributes: &mut Attributes, exchange: &Exchange, tells: Tells) {
    let (request, response) = (facts::kept_request(exchange), facts::kept_response(exchange));
    let (asked, answered) = (json(request.as_ref()), json(response.as_ref()));
    let output_type = match exchange.endpoint.as_deref() {
        Some(endpoint) if endpoint.contains("/images/") => Some("image"),
        Some(endpoint) if endpoint.ends_with("/audio/speech") => Some("speech"),
        _ => asked.and_then(parameters::output_type),
    };
    attributes.text(names::OUTPUT_TYPE, output_type);
    if let Some(asked) = asked {
        parameters::add(attributes, asked);
    }
    let answer_id = answered.and_then(|answered| answered.get("id").or_else(|| answered.get("responseId")));
    attributes.text(names::RESPONSE_ID, answer_id.and_then(Value::as_str));
    if !tells.content {
        return;
    }
    // What was cut short, and what is no conversation, goes as it was kept.
    match asked.and_then(messages::input) {
        Some(input) => {
            let list = |parts: Vec<Value>| (!parts.is_empty()).then(|| Value::Array(parts).to_string());
            attributes.text(names::SYSTEM_INSTRUCTIONS, list(input.instructions));
            attributes.text(names::INPUT_MESSAGES, list(input.messages));
        }
        None => attributes.text(own::REQUEST_CONTENT, request.map(as_text)),
    }
    match answered.and_then(|answered| messages::output(answered, &exchange.finish_reasons)) {
        Some(messages) => attributes.text(names::OUTPUT_MESSAGES, Some(Value::Array(messages).to_string())),
        // Nobody reads vectors.
        None if operation(exchange) == Some("embeddings") => {}
        None => attributes.text(own::RESPONSE_CONTENT, response.map(as_text)),
    }
}

fn json(kept: Option<&Kept>) -> Option<&Value> {
    match kept? {
        Kept::Json(value) => Some(value),
        Kept::Text(_) => None,
    }
}

fn as_text(kept: Kept) -> String {
    match kept {
        Kept::Json(value) => value.to_string(),
        Kept::Text(text) => text,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use uuid::Uuid;

    use super::super::attributes::as_json;
    use super::*;
    use crate::event::{Cost, Source, Times};

    const ID: Uuid = Uuid::from_u128(0x0199_aa00_0000_7000_8123_4567_89ab_cdef);

    fn event(exchange: Exchange) -> Event {
        Event { seq: 1, id: ID, time_us: 7, exchange, payload: Box::default() }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn told(exchange: Exchange, tells: Tells) -> Value {
        Value::Object(as_json(&of(&event(exchange), tells).attributes))
    }

    fn full() -> Exchange {
        let tags =
            [("user_id", "ann"), ("session_id", "s1"), ("session_name", "tour"), ("prompt_id", "p9"), ("a", "b")];
        Exchange {
            project_id: some("p1"),
            token_id: some("t1"),
            api: some("openai"),
            dialect: some("openai"),
            endpoint: some("/v1/chat/completions"),
            method: some("POST"),
            model_requested: some("gpt-4o-mini"),
            model: some("gpt-4o-mini-2024-07-18"),
            stream: Some(true),
            status: Some(200),
            outcome: Outcome::Finished.into(),
            usage: Some(Usage {
                source: Source::Reported.into(),
                input_tokens: Some(100),
                output_tokens: Some(20),
                cache_read_input_tokens: Some(64),
                cache_creation_input_tokens: Some(0),
                reasoning_output_tokens: Some(8),
                audio_input_tokens: Some(3),
                audio_output_tokens: Some(4),
                ..Usage::default()
            }),
            cost: Some(Cost { usd: some("0.00025"), prices: some("2026-11-01") }),
            times: Some(Times {
                received_us: Some(1_795_204_800_000_001),
                forwarded_us: Some(1_000),
                first_byte_us: Some(250_000),
                first_chunk_us: Some(310_000),
                last_byte_us: Some(1_420_000),
            }),
            chunks: Some(12),
            request_bytes: Some(99),
            response_bytes: Some(1_000),
            finish_reasons: vec!["stop".to_owned()],
            client_request_id: some("c1"),
            provider_request_id: some("req_1"),
            attempt: Some(1),
            count: 1,
            tags: tags.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            client_address: some("192.0.2.0/24"),
            ..Exchange::default()
        }
    }

    fn captured(mut exchange: Exchange, request: &Value, response: &Value) -> Exchange {
        let content = exchange.content.get_or_insert_default();
        content.request.get_or_insert_default().json = Some(request.to_string().into_bytes());
        content.response.get_or_insert_default().json = Some(response.to_string().into_bytes());
        exchange
    }

    #[test]
    fn everything_that_a_record_knows_is_told() {
        let expected = json!({
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
            "gen_ai.request.stream": true,
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.response.time_to_first_chunk": 0.31,
            "http.response.status_code": 200,
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.output_tokens": 20,
            "gen_ai.usage.cache_read.input_tokens": 64,
            "gen_ai.usage.cache_creation.input_tokens": 0,
            "gen_ai.usage.reasoning.output_tokens": 8,
            "gen_ai.usage.audio.input_tokens": 3,
            "gen_ai.usage.audio.output_tokens": 4,
            "user.id": "ann",
            "session.id": "s1",
            "gen_ai.conversation.id": "s1",
            "gen_ai.prompt.name": "p9",
            "llm_proxy.usage.source": "reported",
            "llm_proxy.request_id": "0199aa00-0000-7000-8123-456789abcdef",
            "llm_proxy.client_request_id": "c1",
            "llm_proxy.provider_request_id": "req_1",
            "llm_proxy.project_id": "p1",
            "llm_proxy.token_id": "t1",
            "llm_proxy.api": "openai",
            "llm_proxy.dialect": "openai",
            "llm_proxy.endpoint": "/v1/chat/completions",
            "llm_proxy.client_address": "192.0.2.0/24",
            "llm_proxy.outcome": "finished",
            "llm_proxy.cost.usd": 0.00025,
            "llm_proxy.cost.prices": "2026-11-01",
            "llm_proxy.attempt": 1,
            "llm_proxy.chunks": 12,
            "llm_proxy.request_bytes": 99,
            "llm_proxy.response_bytes": 1_000,
            "llm_proxy.session.name": "tour",
            "llm_proxy.tag.a": "b",
        });
        assert_eq!(told(full(), Tells::default()), expected);

        let legacy = told(full(), Tells { legacy_names: true, ..Tells::default() });
        let mut with_legacy = expected;
        for (name, value) in [
            ("gen_ai.system", json!("openai")),
            ("gen_ai.usage.prompt_tokens", json!(100)),
            ("gen_ai.usage.completion_tokens", json!(20)),
        ] {
            with_legacy[name] = value;
        }
        assert_eq!(legacy, with_legacy);
    }

    #[test]
    fn what_a_record_does_not_know_is_not_told() {
        let exchange = Exchange { outcome: Outcome::Finished.into(), count: 1, ..Exchange::default() };
        let expected =
            json!({"llm_proxy.request_id": "0199aa00-0000-7000-8123-456789abcdef", "llm_proxy.outcome": "finished"});
        assert_eq!(told(exchange, Tells { content: true, legacy_names: true }), expected);
    }

    #[test]
    fn ids_and_times_come_from_the_record_and_are_never_zero() {
        let span = of(&event(full()), Tells::default());
        assert_eq!(span.trace_id, ID.as_bytes());
        assert_eq!(span.span_id, [0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        assert!(span.parent_span_id.is_empty());
        assert_eq!(span.kind, 3);
        assert_eq!(span.start_time_unix_nano, 1_795_204_800_000_001_000);
        assert_eq!(span.end_time_unix_nano, 1_795_204_801_420_001_000);
        assert_eq!(span, of(&event(full()), Tells::default()));

        let nil = Event { id: Uuid::nil(), ..event(Exchange::default()) };
        let span = of(&nil, Tells::default());
        assert_eq!((span.trace_id[15], span.span_id[7], span.trace_id.len(), span.span_id.len()), (1, 1, 16, 8));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (7_000, 7_000));
    }

    #[test]
    fn an_endpoint_is_an_operation_of_a_provider() {
        for (dialect, api, endpoint, name, provider) in [
            ("openai", "openai", "/v1/chat/completions", "chat m", "openai"),
            ("openai", "openai", "/v1/responses", "chat m", "openai"),
            ("openai", "groq", "/v1/completions", "text_completion m", "groq"),
            ("openai", "mistral", "/v1/embeddings", "embeddings m", "mistral_ai"),
            ("openai", "our-vllm", "/v1/chat/completions", "chat m", "openai"),
            ("openai", "openai", "/v1/images/generations", "image_generation m", "openai"),
            ("openai", "openai", "/v1/audio/speech", "speech m", "openai"),
            ("openai", "openai", "/v1/files", "POST /v1/files", "openai"),
            (
                "openai",
                "openai",
                "/v1/chat/completions/{id}/messages",
                "POST /v1/chat/completions/{id}/messages",
                "openai",
            ),
            ("anthropic", "anthropic", "/v1/messages", "chat m", "anthropic"),
            ("anthropic", "groq", "/v1/messages/count_tokens", "POST /v1/messages/count_tokens", "anthropic"),
            ("gemini", "gemini", "/v1beta/models/{model}:streamGenerateContent", "generate_content m", "gcp.gemini"),
            ("gemini", "gemini", "/v1/models/{model}:embedContent", "embeddings m", "gcp.gemini"),
            ("azure", "azure", "/openai/deployments/{deployment}/chat/completions", "chat m", "azure.ai.openai"),
        ] {
            let exchange = Exchange {
                dialect: some(dialect),
                api: some(api),
                endpoint: some(endpoint),
                method: some("POST"),
                model: some("m"),
                ..Exchange::default()
            };
            assert_eq!(of(&event(exchange.clone()), Tells::default()).name, name);
            assert_eq!(told(exchange, Tells::default())["gen_ai.provider.name"], provider, "{endpoint}");
        }
        let listed = Exchange { method: some("GET"), ..full() };
        assert_eq!(of(&event(listed), Tells::default()).name, "GET /v1/chat/completions");
        assert_eq!(of(&event(Exchange::default()), Tells::default()).name, "request");
    }

    #[test]
    fn a_failure_is_an_error_with_a_type_of_few() {
        for (outcome, status, reason, expected) in [
            (Outcome::Finished, Some(200), None, None),
            (Outcome::Finished, Some(429), None, Some(("429", "the provider answered 429"))),
            (Outcome::Timeout, Some(504), Some("first_byte"), Some(("timeout", "timeout: first_byte"))),
            (Outcome::ClientGone, None, None, Some(("client_gone", "client_gone"))),
            (Outcome::Refused, Some(403), Some("model_not_allowed"), Some(("refused", "refused: model_not_allowed"))),
        ] {
            let reason = reason.map(str::to_owned);
            let span = of(&event(Exchange { outcome: outcome.into(), status, reason, ..full() }), Tells::default());
            let told = as_json(&span.attributes);
            let error = told.get("error.type").map(|error| error.as_str().unwrap());
            assert_eq!(error, expected.map(|(error, _)| error), "{outcome}");
            let status = expected.map(|(_, message)| Status { message: message.to_owned(), code: 2 });
            assert_eq!(span.status, status, "{outcome}");
        }
    }

    #[test]
    fn parameters_are_told_where_bodies_were_kept_and_the_conversation_only_where_it_is_wanted() {
        let request = json!({
            "model": "gpt-4o-mini", "temperature": 0.2, "response_format": {"type": "json_object"},
            "messages": [{"role": "user", "content": "hi"}],
        });
        let response = json!({
            "id": "chatcmpl-1",
            "choices": [{"message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
        });
        let exchange = captured(full(), &request, &response);
        let plain = told(exchange.clone(), Tells::default());
        assert_eq!(plain["gen_ai.request.temperature"], 0.2);
        assert_eq!(plain["gen_ai.output.type"], "json");
        assert_eq!(plain["gen_ai.response.id"], "chatcmpl-1");
        assert!(!plain.to_string().contains("\"hi\"") && !plain.to_string().contains("messages"), "{plain}");

        let with_content = told(exchange, Tells { content: true, ..Tells::default() });
        let parsed = |name: &str| serde_json::from_str::<Value>(with_content[name].as_str().unwrap()).unwrap();
        let parts = |text: &str| json!([{"type": "text", "content": text}]);
        assert_eq!(parsed("gen_ai.input.messages"), json!([{"role": "user", "parts": parts("hi")}]));
        let answer = json!([{"role": "assistant", "parts": parts("ho"), "finish_reason": "stop"}]);
        assert_eq!(parsed("gen_ai.output.messages"), answer);
        assert!(with_content.get("gen_ai.system_instructions").is_none());
    }

    #[test]
    fn what_is_no_conversation_or_was_cut_goes_as_it_was_kept_and_vectors_do_not_go() {
        let tells = Tells { content: true, ..Tells::default() };
        let to = |endpoint: &str| Exchange { endpoint: some(endpoint), ..full() };
        let (listed, data) = (json!({"input": ["a"]}), json!({"data": [1]}));
        for (endpoint, answer) in [("/v1/moderations", Some(r#"{"data":[1]}"#)), ("/v1/embeddings", None)] {
            let told = told(captured(to(endpoint), &listed, &data), tells);
            assert_eq!(told["llm_proxy.request.content"], r#"{"input":["a"]}"#);
            assert_eq!(told.get("llm_proxy.response.content").and_then(Value::as_str), answer, "{endpoint}");
        }

        let mut cut = full();
        let request = cut.content.get_or_insert_default().request.get_or_insert_default();
        request.text = some(r#"{"messages":[{"ro"#);
        request.truncated = true;
        let cut = told(cut, tells);
        assert_eq!(cut["llm_proxy.request.content"], r#"{"messages":[{"ro"#);
        assert!(cut.get("llm_proxy.response.content").is_none() && cut.get("gen_ai.input.messages").is_none());
    }

    #[test]
    fn a_record_that_stands_for_several_says_so() {
        let sampled = Exchange { count: 12, outcome: Outcome::Refused.into(), tags: BTreeMap::new(), ..full() };
        assert_eq!(told(sampled, Tells::default())["llm_proxy.count"], 12);
    }
}
