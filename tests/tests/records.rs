//! What the record says of an exchange is what happened: cost, times, bytes, ids, and of each number whether the provider
//! told it.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use llm_proxy_tests::{Answer, Ask, Fixture, Provider, Refused, World, fixture};
use serde_json::{Value, json};

/// A file of the repository.
fn file(path: &str) -> Vec<u8> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The version of the price table that the proxy ships: its source's, and the checksum of the file.
fn prices() -> String {
    let table = file("proxy/core/data/model_prices.json");
    let parsed: Value = serde_json::from_slice(&table).unwrap();
    let mut checksum = flate2::Crc::new();
    checksum.update(&table);
    format!("{}+{:08x}", parsed["_meta"]["version"].as_str().unwrap(), checksum.sum())
}

/// The id that the provider gave the recorded answer, where it gave one.
fn recorded_id(recording: &Fixture) -> Option<String> {
    let meta = file(&format!("testdata/provider/{}.meta.json", recording.name));
    let meta: Value = serde_json::from_slice(&meta).unwrap();
    let names = match recording.provider() {
        Provider::Azure => ["apim-request-id", "x-request-id"],
        Provider::Anthropic => ["request-id", "x-request-id"],
        Provider::OpenAi | Provider::Gemini => ["x-request-id", "request-id"],
    };
    names.iter().find_map(|name| meta["headers"][name].as_str().map(str::to_owned))
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// RFC 3339 in UTC, to the second.
fn rfc3339(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, day);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (second / 3600, second % 3600 / 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{:02}", month + 1, left + 1, second % 60)
}

#[test]
fn moments_are_written_as_rfc_3339_has_them() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_400, "2000-02-29T00:00:00"),
        (951_868_800, "2000-03-01T00:00:00"),
        (1_735_689_599, "2024-12-31T23:59:59"),
        (1_795_219_200, "2026-11-21T00:00:00"),
    ] {
        assert_eq!(rfc3339(seconds), expected);
    }
}

/// What is known of an exchange from outside.
struct Seen {
    began_ms: u64,
    ended_ms: u64,
    took_ms: f64,
}

/// Asks, and tells when that began and how long it took.
async fn watched(world: &World, ask: &Ask) -> (Answer, Seen) {
    let (began_ms, began) = (now_ms(), Instant::now());
    let answer = world.ask(ask).await;
    (answer, Seen { began_ms, ended_ms: now_ms(), took_ms: began.elapsed().as_secs_f64() * 1000.0 })
}

/// Checks the times of a finished exchange, whose provider waited `delay_ms` before its answer and took `paced_ms` for
/// its body.
fn check_times(case: &str, record: &Value, seen: &Seen, delay_ms: f64, paced_ms: f64) {
    let times = &record["times"];
    let received = times["received"].as_str().unwrap();
    let fraction = received.strip_suffix('Z').and_then(|received| received.rsplit_once('.')).unwrap().1;
    assert_eq!(fraction.len(), 6, "{case}: microseconds: {received}");
    // An id of version 7 begins with its time in milliseconds (RFC 9562 §5.7), which is the same moment.
    let id = record["id"].as_str().unwrap().replace('-', "");
    let id_ms = u64::from_str_radix(&id[..12], 16).unwrap();
    assert!((seen.began_ms..=seen.ended_ms).contains(&id_ms), "{case}: {received}");
    assert_eq!(received[..23], format!("{}.{:03}", rfc3339(id_ms / 1000), id_ms % 1000), "{case}: {record}");

    let after = |name: &str| times[name].as_f64().unwrap_or_else(|| panic!("{case}: {name}: {times}"));
    let [forwarded, first_byte, first_chunk, last_byte] =
        ["forwarded_ms", "first_byte_ms", "first_chunk_ms", "last_byte_ms"].map(after);
    let is_ordered =
        0.0 <= forwarded && forwarded <= first_byte && first_byte <= first_chunk && first_chunk <= last_byte;
    assert!(is_ordered && last_byte <= seen.took_ms, "{case}: {times}, and {} ms outside", seen.took_ms);
    assert!(first_byte - forwarded >= delay_ms, "{case}: the provider took {delay_ms} ms to answer: {times}");
    assert!(last_byte - forwarded >= delay_ms + paced_ms, "{case}: and {paced_ms} ms to say it: {times}");
}

#[tokio::test]
async fn a_record_tells_cost_reasons_times_bytes_and_both_sides_ids() {
    const DELAY_MS: u32 = 60;
    const PACE_MS: u32 = 10;
    let world = World::new().await;
    let prices = prices();
    let stop: &[&str] = &["stop"];
    // By hand from the shipped table: tokens times USD a token, cached and audio tokens at their own price.
    for (name, endpoint, usd, reasons) in [
        // 12 · 0.00000015 + 5 · 0.0000006
        ("openai-chat-basic", "/v1/chat/completions", Some("0.0000048"), stop),
        // 12 · 0.00003 + 5 · 0.00006
        ("openai-chat-stream-usage", "/v1/chat/completions", Some("0.00066"), stop),
        // 26 · 0.00000015 + 104 · 0.0000006
        ("openai-chat-stream-n-choices", "/v1/chat/completions", Some("0.0000663"), &["stop", "stop"]),
        // 364 · 0.0000025 + 40 · 0.00001
        ("openai-chat-stream-tool-calls", "/v1/chat/completions", Some("0.00131"), &["tool_calls"]),
        // 8 · 0.0000001, and no output that could cost anything
        ("openai-embeddings", "/v1/embeddings", Some("0.0000008"), &[]),
        // 3 · 0.000003 + 1111 · 0.0000003 + 418 · 0.00000375 + 33 · 0.000015
        ("anthropic-messages-cache-read", "/v1/messages", Some("0.0024048"), &["end_turn"]),
        // 34 · 0.00000125 + (469 + 787) · 0.00001
        ("gemini-stream-thinking", "/v1beta/models/{model}:streamGenerateContent", Some("0.0126025"), &["STOP"]),
        // Models that the table does not have.
        ("anthropic-messages-stream-basic", "/v1/messages", None, &["end_turn"]),
        ("groq-chat-stream", "/v1/chat/completions", None, stop),
    ] {
        let recording = fixture(name);
        let body = r#"{"model":"nobody-sells-this","messages":[{"role":"user","content":"hi"}]}"#;
        let ask = recording.ask(&world.token.secret).body(body).with("x-mock-delay-ms", &DELAY_MS.to_string());
        let ask = ask.with("x-client-request-id", &format!("my {name}"));
        // A stream comes event by event, each but the first after a pause.
        let pauses = if recording.is_event_stream() { recording.event_ends().len() - 1 } else { 0 };
        let ask = if pauses > 0 { ask.with("x-mock-pace-ms", &PACE_MS.to_string()) } else { ask };
        let (answer, seen) = watched(&world, &ask).await;
        assert_eq!(answer.body, recording.body, "{name}");
        let record = world.check_record(name, &answer, "finished", None).await;

        assert_eq!(record["cost"], json!({"usd": usd, "prices": prices}), "{name}: {record}");
        let reasons = if reasons.is_empty() { Value::Null } else { json!(reasons) };
        assert_eq!(record["finish_reasons"], reasons, "{name}: {record}");
        let paced_ms = f64::from(PACE_MS) * pauses as f64;
        check_times(name, &record, &seen, f64::from(DELAY_MS), paced_ms);
        let pieces = record["chunks"].as_u64().unwrap();
        let is_right = if pauses > 0 { recording.listed["events"] == pieces } else { pieces >= 1 };
        assert!(is_right, "{name}: {pieces} chunks: {record}");
        let bytes = (record["request_bytes"].as_u64(), record["response_bytes"].as_u64());
        assert_eq!(bytes, (Some(body.len() as u64), Some(recording.body.len() as u64)), "{name}: {record}");
        assert_eq!(record["client_request_id"], format!("my {name}"), "{name}: {record}");
        assert_eq!(record["provider_request_id"], json!(recorded_id(&recording)), "{name}: {record}");
        // Gemini's models stand in the path.
        let asked = if recording.provider() == Provider::Gemini { "gemini-2.0-flash" } else { "nobody-sells-this" };
        assert_eq!(record["model_requested"], asked, "{name}: {record}");
        assert_eq!((&record["method"], &record["endpoint"]), (&json!("POST"), &json!(endpoint)), "{name}: {record}");
        assert_eq!((&record["attempt"], &record["count"]), (&json!(1), &json!(1)), "{name}: {record}");
        assert_eq!((&record["tags"], &record["content"]), (&json!({}), &Value::Null), "{name}: {record}");
    }
    let named = world.ask(&Provider::OpenAi.ask(&world.token.secret).with("x-request-id", "the other name")).await;
    assert_eq!(world.record(&named).await["client_request_id"], "the other name");
    let unnamed = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    assert_eq!(world.record(&unnamed).await["client_request_id"], Value::Null);
}

#[tokio::test]
async fn what_never_happened_is_null_and_never_zero() {
    let world = World::new().await;
    let ask = Provider::OpenAi.at("POST", "/openai/nowhere", &world.token.secret).json("{}");
    let answer = world.ask(&ask).await;
    Refused::ROUTE.check("no route", Provider::OpenAi, &answer);
    let record = world.check_record("no route", &answer, "refused", Some("unknown_route")).await;
    for field in ["model_requested", "model", "stream", "chunks", "finish_reasons", "provider_request_id", "attempt"] {
        assert_eq!(record[field], Value::Null, "{field}: {record}");
    }
    for time in ["forwarded_ms", "first_byte_ms", "first_chunk_ms", "last_byte_ms"] {
        assert_eq!(record["times"][time], Value::Null, "{time}: {record}");
    }
    assert!(record["times"]["received"].is_string(), "{record}");
    assert_eq!(record["cost"]["usd"], Value::Null, "{record}");
    let usage = record["usage"].as_object().unwrap();
    assert_eq!(usage["source"], "unknown", "{record}");
    assert!(usage.iter().all(|(name, value)| name == "source" || value.is_null()), "{record}");
    // Bytes are counted, so none is a number.
    assert_eq!((&record["request_bytes"], &record["response_bytes"]), (&json!(0), &json!(0)), "{record}");
}

/// Bytes of text in the events up to here, as the dialect's deltas have them.
fn text_bytes(events: &[u8]) -> u64 {
    let text = std::str::from_utf8(events).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let lengths = data.map(|data| {
        let event: Value = serde_json::from_str(data).unwrap();
        let openai = event["choices"].as_array().into_iter().flatten().map(|choice| &choice["delta"]["content"]);
        openai.chain([&event["delta"]["text"]]).filter_map(Value::as_str).map(str::len).sum::<usize>()
    });
    lengths.sum::<usize>() as u64
}

/// So many bytes at so many tenths of a byte a token, rounded up.
fn tokens(bytes: u64, tenths: u64) -> u64 {
    (bytes * 10).div_ceil(tenths)
}

#[tokio::test]
async fn a_cut_stream_keeps_what_was_reported_and_each_number_says_where_it_is_from() {
    let world = World::new().await;
    let recording = fixture("anthropic-messages-stream-basic");
    for events in [3, 7, 20] {
        let case = format!("after {events} events");
        let end = recording.event_ends()[events - 1];
        let ask = recording.ask(&world.token.secret).with("x-mock-fault", &format!("cut:{end}"));
        let answer = world.ask(&ask).await;
        let record = world.check_record(&case, &answer, "upstream_cut", Some("upstream_invalid")).await;
        let usage = &record["usage"];
        assert_eq!((&usage["source"], &usage["input_tokens"]), (&json!("estimated"), &json!(17)), "{case}: {usage}");
        // What the start of the stream has told is the least.
        let output = tokens(text_bytes(&recording.body[..end]), 42).max(3);
        assert_eq!(usage["output_tokens"], output, "{case}: {usage}");
        let sources = json!({"input_tokens": "reported", "output_tokens": "estimated"});
        assert_eq!(usage["sources"], sources, "{case}: {usage}");
        assert_eq!(usage["provider"], json!({"input_tokens": 17, "output_tokens": 3}), "{case}: {usage}");
        for unknown in ["cache_read_input_tokens", "cache_creation_input_tokens", "reasoning_output_tokens"] {
            assert_eq!(usage[unknown], Value::Null, "{case}: {unknown}: {usage}");
        }
        assert_eq!((&record["chunks"], &record["response_bytes"]), (&json!(events), &json!(end)), "{case}: {record}");
        assert_eq!((&record["finish_reasons"], &record["stream"]), (&Value::Null, &json!(true)), "{case}: {record}");
        assert_eq!(record["model"], "claude-3-haiku-20240307", "{case}: {record}");
    }
}

/// Checks a record whose numbers are all estimated, of an answer as far as it came and a request of so many bytes.
fn check_estimate(case: &str, record: &Value, came: &[u8], request_bytes: usize, usd: Option<String>) {
    let usage = &record["usage"];
    assert_eq!((&usage["source"], &usage["sources"]), (&json!("estimated"), &Value::Null), "{case}: {usage}");
    assert_eq!(usage["input_tokens"], tokens(request_bytes as u64, 60), "{case}: {usage}");
    assert_eq!(usage["output_tokens"], tokens(text_bytes(came), 42), "{case}: {usage}");
    assert_eq!(usage["provider"], Value::Null, "{case}: {usage}");
    assert_eq!(record["cost"]["usd"], json!(usd), "{case}: {record}");
}

#[tokio::test]
async fn a_stream_that_tells_no_usage_is_estimated_whoever_ends_it() {
    let world = World::new().await;
    let body = r#"{"model":"gpt-4","messages":[{"role":"user","content":"Say this is a test"}],"stream":true}"#;
    let ask = |recording: &Fixture| recording.ask(&world.token.secret).body(body);

    let recording = fixture("openai-chat-stream-usage");
    let end = recording.event_ends()[4];
    let came = &recording.body[..end];
    // 0.00003 and 0.00006 USD a token, in hundred-thousandths.
    let usd = 3 * tokens(body.len() as u64, 60) + 6 * tokens(text_bytes(came), 42);
    let usd = Some(format!("0.{usd:05}").trim_end_matches('0').to_owned());
    let answer = world.ask(&ask(&recording).with("x-mock-fault", &format!("cut:{end}"))).await;
    let record = world.check_record("cut", &answer, "upstream_cut", Some("upstream_invalid")).await;
    check_estimate("cut", &record, came, body.len(), usd.clone());

    let mut raw = world.connect().await;
    raw.write(&ask(&recording).with("x-mock-fault", &format!("hang-body:{end}")).bytes()).await;
    let head = raw.read_head().await;
    // Until the end of the last event that comes.
    let (mut chunks, last) = (Vec::new(), &came[end - 80..]);
    while !chunks.windows(last.len()).any(|window| window == last) {
        let more = raw.read_some().await;
        assert!(!more.is_empty(), "ended early: {}", String::from_utf8_lossy(&chunks));
        chunks.extend(more);
    }
    raw.reset();
    let id = head.header("x-llm-proxy-request-id").unwrap();
    let record = world.product.wait_event(id).await;
    assert_eq!((&record["outcome"], &record["status"]), (&json!("client_gone"), &json!(200)), "{record}");
    check_estimate("client gone", &record, came, body.len(), usd);

    let recording = fixture("openai-chat-stream-no-usage");
    let answer = world.ask(&ask(&recording)).await;
    assert_eq!(answer.body, recording.body);
    let record = world.check_record("whole", &answer, "finished", None).await;
    // 0.0000005 and 0.0000015 USD a token, in ten-millionths.
    let usd = 5 * tokens(body.len() as u64, 60) + 15 * tokens(text_bytes(&recording.body), 42);
    let usd = Some(format!("0.{usd:07}").trim_end_matches('0').to_owned());
    check_estimate("whole", &record, &recording.body, body.len(), usd);
    assert_eq!(record["finish_reasons"], json!(["stop"]), "{record}");
}
