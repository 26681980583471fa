//! What a socket leaves behind: one record with the sums of what its provider reported, and one request of the quota.

use llm_proxy_tests::ws::{Handshake, RawSocket, TEXT};
use llm_proxy_tests::ws_plain::{Message, Plain};
use llm_proxy_tests::{Provider, Raw, Refused};
use serde_json::{Value, json};

use crate::common::setup::Setup;
use crate::{GEMINI, check_record, openai, over, steered};

/// One response of a session; its usage is in the event.
async fn ask(socket: &mut Plain) -> Value {
    socket.say(&json!({"type": "response.create"})).await;
    socket.event("response.done").await["response"]["usage"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_an_openai_session_sums_up_its_responses() {
    let setup = Setup::new().await;
    for (provider, target, key, endpoint) in [
        (Provider::OpenAi, "/v1/realtime?model=gpt-realtime", "authorization", "/v1/realtime"),
        (
            Provider::Azure,
            "/openai/realtime?api-version=2024-10-01-preview&deployment=gpt-realtime",
            "api-key",
            "/openai/realtime",
        ),
    ] {
        setup.mock.reset();
        let name = provider.name();
        let (_, value) = provider.credential(&setup.token.text);
        let handshake = Handshake::new(target).with(key, &value).with("x-request-id", name);
        let mut socket = Plain::open(setup.proxy(), &handshake).await;
        let created = socket.event("session.created").await;
        assert_eq!(created["session"]["model"], "gpt-realtime");
        let usages = [ask(&mut socket).await, ask(&mut socket).await];
        let id = socket.id();
        assert_eq!(socket.close(1000, "done").await, Some((1000, "done".to_owned())));

        let seen = over(&setup, name).await;
        let record = check_record(&setup, name, &id, "finished", None).await;
        for (field, expected) in [
            ("endpoint", json!(endpoint)),
            ("method", json!("GET")),
            ("api", json!(name)),
            ("dialect", json!(name)),
            ("project_id", json!(setup.project)),
            ("token_id", json!(setup.token.id)),
            ("model_requested", json!("gpt-realtime")),
            ("model", json!("gpt-realtime")),
            ("finish_reasons", json!(["completed", "completed"])),
            ("client_request_id", json!(name)),
            ("request_bytes", json!(seen.body_len)),
            ("response_bytes", json!(setup.mock.stats().answer_bytes)),
            ("chunks", json!(seen.socket.unwrap().counts.sent_messages)),
        ] {
            assert_eq!(record[field], expected, "{name} {field}: {record}");
        }
        let usage = &record["usage"];
        for (field, expected) in [
            ("source", json!("reported")),
            ("input_tokens", json!(60)),
            ("output_tokens", json!(18)),
            ("cache_read_input_tokens", json!(8)),
            ("cache_creation_input_tokens", Value::Null),
            ("reasoning_output_tokens", Value::Null),
            ("audio_input_tokens", json!(24)),
            ("audio_output_tokens", json!(6)),
            ("provider", json!(usages)),
        ] {
            assert_eq!(usage[field], expected, "{name} {field}: {usage}");
        }
        let told = setup.mock.stats().tokens;
        assert_eq!((told.input, told.output), (60, 18), "{name}: the provider's own count");
        let times = &record["times"];
        let in_order = ["forwarded_ms", "first_byte_ms", "last_byte_ms"].map(|time| times[time].as_f64().unwrap());
        assert!(in_order.is_sorted(), "{name}: {times}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_a_gemini_session_sums_up_its_turns() {
    let setup = Setup::new().await;
    let handshake = Handshake::new(&format!("{GEMINI}?key={}", setup.token.text));
    let mut socket = Plain::open(setup.proxy(), &handshake).await;
    socket.say(&json!({"setup": {"model": "models/gemini-2.5-flash-live"}})).await;
    socket.until("/setupComplete").await;
    let mut reported = Vec::new();
    for words in ["one", "two"] {
        let turn = json!({"role": "user", "parts": [{"text": words}]});
        // Its clients send JSON as text or as binary.
        let message = json!({"clientContent": {"turns": [turn], "turnComplete": true}}).to_string();
        socket.send(if words == "one" { Message::text(message) } else { Message::binary(message) }).await;
        reported.push(socket.until("/usageMetadata").await["usageMetadata"].clone());
    }
    let id = socket.id();
    assert_eq!(socket.close(1000, "").await, Some((1000, String::new())));
    let record = check_record(&setup, "gemini", &id, "finished", None).await;
    assert_eq!((&record["endpoint"], &record["dialect"]), (&GEMINI.into(), &"gemini".into()), "{record}");
    assert_eq!(record["model_requested"], "gemini-2.5-flash-live", "{record}");
    assert_eq!(record["finish_reasons"], json!(["turnComplete", "turnComplete"]), "{record}");
    let usage = &record["usage"];
    for (field, expected) in [
        ("source", json!("reported")),
        ("input_tokens", json!(30)),
        ("output_tokens", json!(20)),
        ("reasoning_output_tokens", json!(6)),
        ("provider", json!(reported)),
    ] {
        assert_eq!(usage[field], expected, "{field}: {usage}");
    }
    let told = setup.mock.stats().tokens;
    assert_eq!((told.input, told.output), (30, 20), "the provider's own count");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_was_cut_off_makes_the_sum_the_least_that_was_spent() {
    let setup = Setup::new().await;
    let token = setup.token_with(json!({})).await;
    let handshake = openai(&token.text).with("x-mock-pace-ms", "30").with("x-request-id", "cut");
    let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
    let create = r#"{"type":"response.create"}"#;
    socket.say(TEXT, create).await;
    socket.until("response.done").await;
    socket.say(TEXT, create).await;
    socket.until("response.output_text.delta").await;
    assert_eq!(setup.manage("DELETE", &format!("/manage/tokens/{}", token.id), Value::Null).await.0, 204);
    socket.closed().await;
    let record = check_record(&setup, "cut", &socket.id(), "revoked", Some("token_revoked")).await;
    let usage = &record["usage"];
    assert_eq!((&usage["source"], &usage["input_tokens"]), (&"estimated".into(), &20.into()), "{usage}");
    let seen = over(&setup, "cut").await;
    assert!(seen.socket.unwrap().counts.sent_messages < 21, "the second response was cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_one_request_of_the_quota_however_much_is_said() {
    let setup = Setup::new().await;
    let token = setup.token_with(json!({"max_requests": 2})).await;
    for session in 1..=2 {
        let mut socket = Plain::open(setup.proxy(), &openai(&token.text)).await;
        for _ in 0..3 {
            ask(&mut socket).await;
        }
        assert!(socket.close(1000, "").await.is_some(), "session {session}");
    }
    let answer = Raw::ask(setup.proxy(), openai(&token.text).ask()).await;
    Refused::QUOTA.check("the third session", Provider::OpenAi, &answer);
    let (_, state) = setup.manage("GET", &format!("/manage/tokens/{}", token.id), Value::Null).await;
    assert_eq!(state["request_count"], 2, "{state}");
    assert_eq!(setup.mock.stats().sockets.opened, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_a_crash_ended_is_on_record_as_begun() {
    let mut setup = Setup::new().await;
    let mut socket = RawSocket::open(setup.proxy(), &steered(&setup.token.text, "crash", "echo")).await;
    socket.say(TEXT, "said").await;
    assert_eq!(socket.frame().await.text(), "said");
    setup.kill9();
    let (frames, _) = socket.rest().await;
    assert!(frames.is_empty(), "{frames:?}");
    setup.restart().await;
    let record = setup.only_record(&socket.id()).await;
    assert_eq!(record["outcome"], "unknown", "{record}");
    assert_eq!((&record["endpoint"], &record["method"]), (&"/v1/realtime".into(), &"GET".into()), "{record}");
}
