//! An event as one line of JSON, the form that files and webhooks get.
//!
//! Fields stand in one fixed order and are always all there: a column that is `null` in one line and absent in the
//! next is a trap for whoever loads the file into a table. The provider's usage object is embedded as it came, digit
//! for digit, because re-writing `1e3` as `1000.0` would no longer be what the provider said; bodies likewise.
//!
//! Every exchange passes here, so the line is written by hand, names and commas as constants. A derived serializer
//! costs several times as many instructions; it writes the same lines in the tests, to compare.

mod embedded;
mod line;
#[cfg(test)]
mod oracle;

use super::{AdminAction, Body, Content, Cost, Exchange, Source, Times, Usage};
use line::Line;

/// Writes `exchange` as one JSON object with the field names of the record. No line break in it, none after it.
///
/// Unknown is `null`. A provider's usage object that is not valid JSON is `null` too; a body, or a resource, that
/// should be JSON and is not becomes a text. In what is valid, line breaks between tokens become spaces, everything
/// else stays byte for byte.
pub fn to_json_line(exchange: &Exchange) -> Vec<u8> {
    let mut json = Vec::with_capacity(1_280);
    append_json_line(exchange, &mut json);
    json
}

/// As [`to_json_line`], but appends to `json`.
pub fn append_json_line(exchange: &Exchange, json: &mut Vec<u8>) {
    let mut line = Line::at_end_of(json);
    line.text(r#"{"id":"#, Some(&exchange.id));
    line.name(r#","type":"#, exchange.r#type().name());
    line.number(r#","schema":"#, Some(exchange.schema.into()));
    line.text(r#","project_id":"#, exchange.project_id.as_deref());
    line.text(r#","token_id":"#, exchange.token_id.as_deref());
    line.text(r#","api":"#, exchange.api.as_deref());
    line.text(r#","dialect":"#, exchange.dialect.as_deref());
    line.text(r#","endpoint":"#, exchange.endpoint.as_deref());
    line.text(r#","method":"#, exchange.method.as_deref());
    line.text(r#","model_requested":"#, exchange.model_requested.as_deref());
    line.text(r#","model":"#, exchange.model.as_deref());
    line.truth(r#","stream":"#, exchange.stream);
    line.number(r#","status":"#, exchange.status.map(u64::from));
    line.name(r#","outcome":"#, exchange.outcome().name());
    line.text(r#","reason":"#, exchange.reason.as_deref());
    append_usage(&mut line, exchange.usage.as_ref().unwrap_or(&Usage::default()));
    append_cost(&mut line, exchange.cost.as_ref().unwrap_or(&Cost::default()));
    append_times(&mut line, &exchange.times.unwrap_or_default());
    line.number(r#","chunks":"#, exchange.chunks);
    line.number(r#","request_bytes":"#, exchange.request_bytes);
    line.number(r#","response_bytes":"#, exchange.response_bytes);
    line.list(r#","finish_reasons":"#, &exchange.finish_reasons);
    line.text(r#","client_address":"#, exchange.client_address.as_deref());
    line.text(r#","client_request_id":"#, exchange.client_request_id.as_deref());
    line.text(r#","provider_request_id":"#, exchange.provider_request_id.as_deref());
    line.number(r#","attempt":"#, exchange.attempt.map(u64::from));
    line.number(r#","count":"#, Some(exchange.count.max(1)));
    line.map(r#","tags":"#, Some(exchange.tags.iter().map(|(tag, value)| (tag.as_str(), value.as_str()))));
    match (&exchange.content, &exchange.admin) {
        // All exchanges, but for those of projects that have asked for more.
        (None, None) => line.raw(r#","content":null,"admin":null}"#),
        (content, admin) => {
            append_content(&mut line, content.as_ref());
            append_admin(&mut line, admin.as_ref());
            line.raw("}");
        }
    }
}

fn append_usage(line: &mut Line<'_>, usage: &Usage) {
    let name = |code: &i32| Source::try_from(*code).unwrap_or_default().name();
    let sources = usage.sources.iter().map(|(field, code)| (field.as_str(), name(code)));
    line.name(r#","usage":{"source":"#, usage.source().name());
    line.map(r#","sources":"#, (!usage.sources.is_empty()).then_some(sources));
    line.number(r#","input_tokens":"#, usage.input_tokens);
    line.number(r#","output_tokens":"#, usage.output_tokens);
    line.number(r#","cache_read_input_tokens":"#, usage.cache_read_input_tokens);
    line.number(r#","cache_creation_input_tokens":"#, usage.cache_creation_input_tokens);
    line.number(r#","reasoning_output_tokens":"#, usage.reasoning_output_tokens);
    line.number(r#","audio_input_tokens":"#, usage.audio_input_tokens);
    line.number(r#","audio_output_tokens":"#, usage.audio_output_tokens);
    line.json(r#","provider":"#, usage.provider_json.as_deref().and_then(embedded::checked));
    line.raw("}");
}

fn append_cost(line: &mut Line<'_>, cost: &Cost) {
    line.text(r#","cost":{"usd":"#, cost.usd.as_deref());
    line.text(r#","prices":"#, cost.prices.as_deref());
    line.raw("}");
}

fn append_times(line: &mut Line<'_>, times: &Times) {
    line.moment(r#","times":{"received":"#, times.received_us);
    line.milliseconds(r#","forwarded_ms":"#, times.forwarded_us);
    line.milliseconds(r#","first_byte_ms":"#, times.first_byte_us);
    line.milliseconds(r#","first_chunk_ms":"#, times.first_chunk_us);
    line.milliseconds(r#","last_byte_ms":"#, times.last_byte_us);
    line.raw("}");
}

fn append_content(line: &mut Line<'_>, content: Option<&Content>) {
    let Some(content) = content else { return line.raw(r#","content":null"#) };
    line.name(r#","content":{"policy":"#, content.policy().name());
    append_body(line, r#","request":"#, content.request.as_ref());
    append_body(line, r#","response":"#, content.response.as_ref());
    line.raw("}");
}

fn append_body(line: &mut Line<'_>, before: &str, body: Option<&Body>) {
    line.raw(before);
    let Some(body) = body else { return line.raw("null") };
    line.text(r#"{"content_type":"#, body.content_type.as_deref());
    line.number(r#","bytes":"#, Some(body.bytes));
    line.truth(r#","truncated":"#, Some(body.truncated));
    match &body.json {
        Some(json) => append_embedded(line, r#","body":"#, Some(json)),
        None => line.text(r#","body":"#, body.text.as_deref()),
    }
    line.text(r#","sha256":"#, body.sha256.as_deref());
    line.text(r#","omitted":"#, body.omitted.as_deref());
    line.raw("}");
}

fn append_admin(line: &mut Line<'_>, admin: Option<&AdminAction>) {
    let Some(admin) = admin else { return line.raw(r#","admin":null"#) };
    line.text(r#","admin":{"action":"#, Some(&admin.action));
    line.text(r#","actor":"#, Some(&admin.actor));
    line.text(r#","resource":"#, Some(&admin.resource));
    line.text(r#","resource_id":"#, admin.resource_id.as_deref());
    append_embedded(line, r#","before":"#, admin.before_json.as_deref());
    append_embedded(line, r#","after":"#, admin.after_json.as_deref());
    line.raw("}");
}

/// JSON as it came, or as a text where it turns out to be none.
fn append_embedded(line: &mut Line<'_>, before: &str, json: Option<&[u8]>) {
    match (json, json.and_then(embedded::checked)) {
        (Some(json), None) => line.text(before, Some(&String::from_utf8_lossy(json))),
        (_, value) => line.json(before, value),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::{CapturePolicy, EventType, Outcome, SCHEMA};
    use super::*;

    fn rfc3339(microseconds: i64) -> Option<String> {
        let mut json = Vec::new();
        Line::at_end_of(&mut json).moment("", Some(microseconds));
        let text = String::from_utf8(json).unwrap();
        (text != "null").then(|| text.trim_matches('"').to_owned())
    }

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
            r#""client_address":null,"client_request_id":null,"provider_request_id":null,"attempt":null,"count":1,"#,
            r#""tags":{},"content":null,"admin":null}"#,
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
            client_address: some("192.0.2.7"),
            client_request_id: some("theirs"),
            provider_request_id: some("req_1"),
            attempt: Some(1),
            count: 12,
            tags: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
            content: Some(Content {
                policy: CapturePolicy::Redacted.into(),
                request: Some(Body {
                    content_type: some("application/json"),
                    bytes: 23,
                    json: Some(b"{\"b\": 1.0,\n\"a\":\"\\u00e9\"}".to_vec()),
                    ..Body::default()
                }),
                response: Some(Body {
                    bytes: 70_000,
                    truncated: true,
                    text: some("{\"choices\":["),
                    sha256: some("e3b0"),
                    omitted: some("too long"),
                    ..Body::default()
                }),
            }),
            admin: Some(AdminAction {
                action: "token.update".to_owned(),
                actor: "management_token".to_owned(),
                resource: "token".to_owned(),
                resource_id: some("t1"),
                before_json: Some(br#"{"is_active": true}"#.to_vec()),
                after_json: None,
            }),
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
            r#""client_address":"192.0.2.7","client_request_id":"theirs","provider_request_id":"req_1","#,
            r#""attempt":1,"count":12,"tags":{"team":"blue"},"#,
            r#""content":{"policy":"redacted","#,
            r#""request":{"content_type":"application/json","bytes":23,"truncated":false,"#,
            r#""body":{"b": 1.0, "a":"\u00e9"},"sha256":null,"omitted":null},"#,
            r#""response":{"content_type":null,"bytes":70000,"truncated":true,"#,
            r#""body":"{\"choices\":[","sha256":"e3b0","omitted":"too long"}},"#,
            r#""admin":{"action":"token.update","actor":"management_token","resource":"token","resource_id":"t1","#,
            r#""before":{"is_active": true},"after":null}}"#,
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
    fn a_body_stands_in_the_line_as_it_came_and_one_that_is_no_json_as_a_text() {
        let deep = "[".repeat(1_000) + &"]".repeat(1_000);
        for (json, expected) in [
            ("{\n  \"a\": 1e3\r\n}", "{   \"a\": 1e3  }"),
            (" 12345678901234567890123 ", "12345678901234567890123"),
            ("\"half a pair: \\ud83d\"", "\"half a pair: \\ud83d\""),
            (&*deep, &*deep),
            ("{\"a\":", r#""{\"a\":""#),
            ("{} {}\n", r#""{} {}\n""#),
            ("", r#""""#),
        ] {
            let body = Body { json: Some(json.as_bytes().to_vec()), ..Body::default() };
            let content = Content { response: Some(body), ..Content::default() };
            let exchange = Exchange { content: Some(content), ..Exchange::default() };
            let line = text(&exchange);
            assert!(!line.contains(['\n', '\r']), "{json:?}");
            let expected = format!("\"truncated\":false,\"body\":{expected},\"sha256\":null");
            assert!(line.contains(&expected), "{json:?} gave {line}");
            serde_json::from_str::<&serde_json::value::RawValue>(&line).unwrap();
        }
        let no_utf8 = Body { json: Some(b"\"\xff\"".to_vec()), ..Body::default() };
        let content = Content { request: Some(no_utf8), ..Content::default() };
        let line = text(&Exchange { content: Some(content), ..Exchange::default() });
        assert!(line.contains("\"body\":\"\\\"\u{fffd}\\\"\","), "{line}");
        assert!(line.contains(r#""content":{"policy":"metadata""#) && line.contains(r#","response":null}"#), "{line}");
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

    #[test]
    fn a_line_is_appended_to_what_is_there() {
        let exchange = with_provider("{\n}");
        let mut json = b"a line\n".to_vec();
        append_json_line(&exchange, &mut json);
        assert_eq!(json, [b"a line\n".as_slice(), &to_json_line(&exchange)].concat());
    }

    proptest! {
        #[test]
        fn a_line_is_what_a_derived_serializer_writes(exchange in oracle::exchange()) {
            prop_assert_eq!(text(&exchange), String::from_utf8(oracle::to_json_line(&exchange)).unwrap());
        }
    }
}
