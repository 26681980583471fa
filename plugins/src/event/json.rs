//! An event as one line of JSON, the form that files and webhooks get.
//!
//! Fields stand in one fixed order and are always all there: a column that is `null` in one line and absent in the
//! next is a trap for whoever loads the file into a table. The provider's usage object is embedded as it came, digit
//! for digit, because re-writing `1e3` as `1000.0` would no longer be what the provider said.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::{Cost, Exchange, Source, Times, Usage};

/// Writes `exchange` as one JSON object with the field names of the record. No line break in it, none after it.
///
/// Unknown is `null`. A provider's usage object that is not valid JSON is `null` too; line breaks between its tokens
/// become spaces, everything else in it stays byte for byte.
pub fn to_json_line(exchange: &Exchange) -> Vec<u8> {
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
        client_request_id: exchange.client_request_id.as_deref(),
        provider_request_id: exchange.provider_request_id.as_deref(),
        attempt: exchange.attempt,
        count: exchange.count.max(1),
        tags: &exchange.tags,
        content: (),
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
    client_request_id: Option<&'a str>,
    provider_request_id: Option<&'a str>,
    attempt: Option<u32>,
    count: u64,
    tags: &'a BTreeMap<String, String>,
    content: (), // no policy captures content, so it is always null
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

#[cfg(test)]
mod tests {
    use super::super::{EventType, Outcome, SCHEMA};
    use super::*;

    fn text(exchange: &Exchange) -> String {
        String::from_utf8(to_json_line(exchange)).unwrap()
    }

    fn with_provider(json: &str) -> Exchange {
        Exchange {
            usage: Some(Usage { provider_json: Some(json.as_bytes().to_vec()), ..Usage::default() }),
            ..Exchange::default()
        }
    }

    #[test]
    fn what_is_unknown_is_null_and_every_field_is_there() {
        let exchange = Exchange { id: "an-id".to_owned(), schema: SCHEMA, ..Exchange::default() };
        let expected = concat!(
            r#"{"id":"an-id","type":"exchange","schema":1,"project_id":null,"token_id":null,"api":null,"#,
            r#""dialect":null,"endpoint":null,"method":null,"model_requested":null,"model":null,"stream":null,"#,
            r#""status":null,"outcome":"unknown","reason":null,"#,
            r#""usage":{"source":"unknown","sources":null,"input_tokens":null,"output_tokens":null,"#,
            r#""cache_read_input_tokens":null,"cache_creation_input_tokens":null,"reasoning_output_tokens":null,"#,
            r#""audio_input_tokens":null,"audio_output_tokens":null,"provider":null},"#,
            r#""cost":{"usd":null,"prices":null},"#,
            r#""times":{"received":null,"forwarded_ms":null,"first_byte_ms":null,"first_chunk_ms":null,"#,
            r#""last_byte_ms":null},"#,
            r#""chunks":null,"request_bytes":null,"response_bytes":null,"finish_reasons":null,"#,
            r#""client_request_id":null,"provider_request_id":null,"attempt":null,"count":1,"tags":{},"content":null}"#,
        );
        assert_eq!(text(&exchange), expected);
    }

    #[test]
    fn everything_known_is_written_and_the_providers_numbers_stay_as_they_were() {
        let some = |text: &str| Some(text.to_owned());
        let exchange = Exchange {
            id: "an-id".to_owned(),
            r#type: EventType::Admin.into(),
            schema: SCHEMA,
            project_id: some("a-project"),
            token_id: some("a-token"),
            api: some("openai"),
            dialect: some("openai"),
            endpoint: some("/v1/chat/completions"),
            method: some("POST"),
            model_requested: some("gpt-4o"),
            model: some("gpt-4o-2024-08-06"),
            stream: Some(true),
            status: Some(200),
            outcome: Outcome::Finished.into(),
            reason: some("a \"reason\"\n"),
            usage: Some(Usage {
                source: Source::Estimated.into(),
                sources: BTreeMap::from([
                    ("output_tokens".to_owned(), Source::Estimated.into()),
                    ("input_tokens".to_owned(), Source::Reported.into()),
                ]),
                input_tokens: Some(1),
                output_tokens: Some(2),
                cache_read_input_tokens: Some(3),
                cache_creation_input_tokens: Some(4),
                reasoning_output_tokens: Some(5),
                audio_input_tokens: Some(6),
                audio_output_tokens: Some(0),
                provider_json: Some(br#"{"a": 1.0,"b":1e3, "c":12345678901234567890123}"#.to_vec()),
            }),
            cost: Some(Cost { usd: some("0.00025"), prices: some("2026-11-01") }),
            times: Some(Times {
                received_us: Some(1_795_219_200_000_042),
                forwarded_us: Some(1),
                first_byte_us: Some(12_345),
                first_chunk_us: Some(12_000),
                last_byte_us: Some(3_600_000_001),
            }),
            chunks: Some(7),
            request_bytes: Some(8),
            response_bytes: Some(9),
            finish_reasons: vec!["stop".to_owned(), "length".to_owned()],
            client_request_id: some("theirs"),
            provider_request_id: some("req_1"),
            attempt: Some(1),
            count: 12,
            tags: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        };
        let expected = concat!(
            r#"{"id":"an-id","type":"admin","schema":1,"project_id":"a-project","token_id":"a-token","#,
            r#""api":"openai","dialect":"openai","endpoint":"/v1/chat/completions","method":"POST","#,
            r#""model_requested":"gpt-4o","model":"gpt-4o-2024-08-06","stream":true,"status":200,"#,
            r#""outcome":"finished","reason":"a \"reason\"\n","#,
            r#""usage":{"source":"estimated","sources":{"input_tokens":"reported","output_tokens":"estimated"},"#,
            r#""input_tokens":1,"output_tokens":2,"cache_read_input_tokens":3,"cache_creation_input_tokens":4,"#,
            r#""reasoning_output_tokens":5,"audio_input_tokens":6,"audio_output_tokens":0,"#,
            r#""provider":{"a": 1.0,"b":1e3, "c":12345678901234567890123}},"#,
            r#""cost":{"usd":"0.00025","prices":"2026-11-01"},"#,
            r#""times":{"received":"2026-11-21T00:00:00.000042Z","forwarded_ms":0.001,"first_byte_ms":12.345,"#,
            r#""first_chunk_ms":12.0,"last_byte_ms":3600000.001},"#,
            r#""chunks":7,"request_bytes":8,"response_bytes":9,"finish_reasons":["stop","length"],"#,
            r#""client_request_id":"theirs","provider_request_id":"req_1","attempt":1,"count":12,"#,
            r#""tags":{"team":"blue"},"content":null}"#,
        );
        assert_eq!(text(&exchange), expected);
    }

    #[test]
    fn a_providers_object_never_breaks_the_line_and_never_breaks_the_json() {
        for (provider, expected) in [
            ("{\r\n  \"a\": 1,\n  \"b\": \"x\\ny\"\n}", "{    \"a\": 1,   \"b\": \"x\\ny\" }"),
            (" [1.50, 2] ", "[1.50, 2]"),
            ("{\"a\":1} trailing", "null"),
            ("{\"a\":\"raw\nbreak\"}", "null"),
            ("{\"a\":NaN}", "null"),
            ("", "null"),
        ] {
            let line = text(&with_provider(provider));
            assert!(!line.contains(['\n', '\r']), "{provider:?}");
            assert!(line.contains(&format!("\"provider\":{expected}}},\"cost\"")), "{provider:?} gave {line}");
            serde_json::from_str::<serde_json::Value>(&line).unwrap();
        }
    }

    #[test]
    fn times_cover_what_the_format_can_express() {
        for (microseconds, expected) in [
            (0, Some("1970-01-01T00:00:00.000000Z")),
            (-1, Some("1969-12-31T23:59:59.999999Z")),
            (253_402_300_799_999_999, Some("9999-12-31T23:59:59.999999Z")),
            (253_402_300_800_000_000, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            assert_eq!(rfc3339(microseconds).as_deref(), expected, "{microseconds}");
        }
    }
}
