//! The line as `serde` writes it, which the one written by hand has to equal, and events to compare them with.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::super::{AdminAction, Body, Content, Cost, Exchange, Source, Times, Usage};

pub(super) fn to_json_line(exchange: &Exchange) -> Vec<u8> {
    let no_usage = Usage::default();
    let no_cost = Cost::default();
    let no_times = Times::default();
    let usage = exchange.usage.as_ref().unwrap_or(&no_usage);
    let cost = exchange.cost.as_ref().unwrap_or(&no_cost);
    let times = exchange.times.as_ref().unwrap_or(&no_times);
    let line = Line {
        id: &exchange.id,
        r#type: exchange.r#type().name(),
        schema: exchange.schema,
        project_id: exchange.project_id.as_deref(),
        token_id: exchange.token_id.as_deref(),
        api: exchange.api.as_deref(),
        dialect: exchange.dialect.as_deref(),
        endpoint: exchange.endpoint.as_deref(),
        method: exchange.method.as_deref(),
        model_requested: exchange.model_requested.as_deref(),
        model: exchange.model.as_deref(),
        stream: exchange.stream,
        status: exchange.status,
        outcome: exchange.outcome().name(),
        reason: exchange.reason.as_deref(),
        usage: UsageLine {
            source: usage.source().name(),
            sources: names(&usage.sources),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_input_tokens: usage.cache_read_input_tokens,
            cache_creation_input_tokens: usage.cache_creation_input_tokens,
            reasoning_output_tokens: usage.reasoning_output_tokens,
            audio_input_tokens: usage.audio_input_tokens,
            audio_output_tokens: usage.audio_output_tokens,
            provider: usage.provider_json.as_deref().and_then(verbatim),
        },
        cost: CostLine { usd: cost.usd.as_deref(), prices: cost.prices.as_deref() },
        times: TimesLine {
            received: times.received_us.and_then(rfc3339),
            forwarded_ms: times.forwarded_us.map(milliseconds),
            first_byte_ms: times.first_byte_us.map(milliseconds),
            first_chunk_ms: times.first_chunk_us.map(milliseconds),
            last_byte_ms: times.last_byte_us.map(milliseconds),
        },
        chunks: exchange.chunks,
        request_bytes: exchange.request_bytes,
        response_bytes: exchange.response_bytes,
        finish_reasons: (!exchange.finish_reasons.is_empty()).then_some(&exchange.finish_reasons),
        client_address: exchange.client_address.as_deref(),
        client_request_id: exchange.client_request_id.as_deref(),
        provider_request_id: exchange.provider_request_id.as_deref(),
        attempt: exchange.attempt,
        count: exchange.count.max(1),
        tags: &exchange.tags,
        content: exchange.content.as_ref().map(|content| ContentLine {
            policy: content.policy().name(),
            request: content.request.as_ref().map(body),
            response: content.response.as_ref().map(body),
        }),
        admin: exchange.admin.as_ref().map(|admin| AdminLine {
            action: &admin.action,
            actor: &admin.actor,
            resource: &admin.resource,
            resource_id: admin.resource_id.as_deref(),
            before: admin.before_json.as_deref().map(embedded),
            after: admin.after_json.as_deref().map(embedded),
        }),
    };
    let mut json = Vec::with_capacity(1_280);
    // Writing to memory cannot fail, and no key is anything but a string.
    let _ = serde_json::to_writer(&mut json, &line);
    json
}

/// The record, field by field, in the order in which people read it.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    r#type: &'a str,
    schema: u32,
    project_id: Option<&'a str>,
    token_id: Option<&'a str>,
    api: Option<&'a str>,
    dialect: Option<&'a str>,
    endpoint: Option<&'a str>,
    method: Option<&'a str>,
    model_requested: Option<&'a str>,
    model: Option<&'a str>,
    stream: Option<bool>,
    status: Option<u32>,
    outcome: &'a str,
    reason: Option<&'a str>,
    usage: UsageLine<'a>,
    cost: CostLine<'a>,
    times: TimesLine,
    chunks: Option<u64>,
    request_bytes: Option<u64>,
    response_bytes: Option<u64>,
    finish_reasons: Option<&'a Vec<String>>,
    client_address: Option<&'a str>,
    client_request_id: Option<&'a str>,
    provider_request_id: Option<&'a str>,
    attempt: Option<u32>,
    count: u64,
    tags: &'a BTreeMap<String, String>,
    content: Option<ContentLine<'a>>,
    admin: Option<AdminLine<'a>>,
}

#[derive(Serialize)]
struct UsageLine<'a> {
    source: &'a str,
    sources: Option<BTreeMap<&'a str, &'static str>>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    reasoning_output_tokens: Option<u64>,
    audio_input_tokens: Option<u64>,
    audio_output_tokens: Option<u64>,
    provider: Option<Cow<'a, RawValue>>,
}

#[derive(Serialize)]
struct CostLine<'a> {
    usd: Option<&'a str>,
    prices: Option<&'a str>,
}

#[derive(Serialize)]
struct TimesLine {
    received: Option<String>,
    forwarded_ms: Option<f64>,
    first_byte_ms: Option<f64>,
    first_chunk_ms: Option<f64>,
    last_byte_ms: Option<f64>,
}

#[derive(Serialize)]
struct ContentLine<'a> {
    policy: &'a str,
    request: Option<BodyLine<'a>>,
    response: Option<BodyLine<'a>>,
}

#[derive(Serialize)]
struct BodyLine<'a> {
    content_type: Option<&'a str>,
    bytes: u64,
    truncated: bool,
    body: Option<Embedded<'a>>,
    sha256: Option<&'a str>,
    omitted: Option<&'a str>,
}

#[derive(Serialize)]
struct AdminLine<'a> {
    action: &'a str,
    actor: &'a str,
    resource: &'a str,
    resource_id: Option<&'a str>,
    before: Option<Embedded<'a>>,
    after: Option<Embedded<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedded<'a> {
    Json(Cow<'a, RawValue>),
    Text(Cow<'a, str>),
}

fn body(body: &Body) -> BodyLine<'_> {
    let text = || body.text.as_deref().map(|text| Embedded::Text(Cow::Borrowed(text)));
    BodyLine {
        content_type: body.content_type.as_deref(),
        bytes: body.bytes,
        truncated: body.truncated,
        body: body.json.as_deref().map(embedded).or_else(text),
        sha256: body.sha256.as_deref(),
        omitted: body.omitted.as_deref(),
    }
}

/// JSON, or a text where it is none.
fn embedded(bytes: &[u8]) -> Embedded<'_> {
    verbatim(bytes).map_or_else(|| Embedded::Text(String::from_utf8_lossy(bytes)), Embedded::Json)
}

fn names(sources: &BTreeMap<String, i32>) -> Option<BTreeMap<&str, &'static str>> {
    let name = |code: i32| Source::try_from(code).unwrap_or_default().name();
    (!sources.is_empty()).then(|| sources.iter().map(|(field, code)| (field.as_str(), name(*code))).collect())
}

/// The bytes as a JSON value, untouched but for line breaks, which JSON allows only between tokens.
fn verbatim(bytes: &[u8]) -> Option<Cow<'_, RawValue>> {
    let value: &RawValue = serde_json::from_slice(bytes).ok()?;
    if !value.get().contains(['\n', '\r']) {
        return Some(Cow::Borrowed(value));
    }
    RawValue::from_string(value.get().replace(['\n', '\r'], " ")).ok().map(Cow::Owned)
}

/// Microseconds as milliseconds with three decimals; exact far beyond any exchange's life.
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000.0
}

/// RFC 3339 in UTC with six decimals; `None` outside the years 0 to 9999, which the format cannot express.
fn rfc3339(microseconds: i64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds).saturating_mul(1_000)).ok()?;
    let year = u16::try_from(at.year()).ok()?;
    let (month, day) = (u8::from(at.month()), at.day());
    let (hour, minute, second, micro) = at.to_hms_micro();
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z"))
}

/// Exchanges with anything in any field.
pub(super) fn exchange() -> impl Strategy<Value = Exchange> {
    let facts = (
        vec(option::of(text()), 14),
        vec(option::of(number()), 14),
        vec(any::<u32>(), 3),
        vec(-1..12_i32, 3),
        option::of(any::<bool>()),
        option::of(moment()),
    );
    let many = (
        vec(text(), 0..3),
        btree_map(text(), text(), 0..3),
        btree_map(text(), -1..4_i32, 0..3),
        option::of(some_json()),
        any::<bool>(),
    );
    let kept = (option::of(content()), option::of(admin()));
    (text(), facts, many, kept).prop_map(|(id, facts, many, (content, admin))| {
        let (finish_reasons, tags, sources, provider_json, is_bare) = many;
        let (texts, numbers, small, codes, stream, received_us) = facts;
        let (mut texts, mut numbers) = (texts.into_iter(), numbers.into_iter());
        let (mut text, mut number) = (|| texts.next().flatten(), || numbers.next().flatten());
        let (mut small, mut codes) = (small.into_iter(), codes.into_iter());
        let usage = Usage {
            source: codes.next().unwrap(),
            sources,
            input_tokens: number(),
            output_tokens: number(),
            cache_read_input_tokens: number(),
            cache_creation_input_tokens: number(),
            reasoning_output_tokens: number(),
            audio_input_tokens: number(),
            audio_output_tokens: number(),
            provider_json,
        };
        let times = Times {
            received_us,
            forwarded_us: number(),
            first_byte_us: number(),
            first_chunk_us: number(),
            last_byte_us: number(),
        };
        let cost = Cost { usd: text(), prices: text() };
        Exchange {
            id,
            r#type: codes.next().unwrap(),
            schema: small.next().unwrap(),
            project_id: text(),
            token_id: text(),
            api: text(),
            dialect: text(),
            endpoint: text(),
            method: text(),
            model_requested: text(),
            model: text(),
            stream,
            status: small.next(),
            outcome: codes.next().unwrap(),
            reason: text(),
            usage: (!is_bare).then_some(usage),
            cost: (!is_bare).then_some(cost),
            times: (!is_bare).then_some(times),
            chunks: number(),
            request_bytes: number(),
            response_bytes: number(),
            finish_reasons,
            client_address: text(),
            client_request_id: text(),
            provider_request_id: text(),
            attempt: small.next(),
            count: u64::from(!is_bare),
            tags,
            content,
            admin,
        }
    })
}

fn content() -> impl Strategy<Value = Content> {
    (-1..6_i32, option::of(kept_body()), option::of(kept_body())).prop_map(|(policy, request, response)| Content {
        policy,
        request,
        response,
    })
}

fn kept_body() -> impl Strategy<Value = Body> {
    let texts = (option::of(text()), option::of(text()), option::of(text()), option::of(text()));
    (texts, any::<u64>(), any::<bool>(), option::of(some_json())).prop_map(|(texts, bytes, truncated, json)| {
        let (content_type, text, sha256, omitted) = texts;
        Body { content_type, bytes, truncated, json, text, sha256, omitted }
    })
}

fn admin() -> impl Strategy<Value = AdminAction> {
    let texts = (text(), text(), text(), option::of(text()));
    (texts, option::of(some_json()), option::of(some_json())).prop_map(|(texts, before_json, after_json)| {
        let (action, actor, resource, resource_id) = texts;
        AdminAction { action, actor, resource, resource_id, before_json, after_json }
    })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9-]{0,40}", "[ -~]{0,20}", "(?s:.{0,20})", "[\\x00-\\x1f]{1,3}"]
}

fn number() -> impl Strategy<Value = u64> {
    // The third: where milliseconds are no longer written by hand.
    prop_oneof![any::<u64>(), 0..100_000_000_u64, 999_999_999_999_000..1_000_000_000_001_000_u64]
}

fn moment() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -70_000_000_000_000_000..260_000_000_000_000_000_i64, 0..4_000_000_000_000_000_i64]
}

/// Bytes that are JSON, nearly JSON, or nothing of the kind.
fn some_json() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![super::embedded::soup().prop_map(String::into_bytes), vec(any::<u8>(), 0..20)]
}
