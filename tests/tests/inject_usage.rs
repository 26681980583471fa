//! `inject_usage`: streams are asked for their usage in the place of clients that did not, and nobody sees a difference
//! but the record.

mod common;

use common::setup::{Setup, recorded};
use common::wire::Ask;
use llm_proxy_load::mock::RequestRecord;
use serde_json::{Value, json};

const STREAM: &str = "openai-chat-stream-usage";

fn asking(setup: &Setup, name: &str, recording: &str) -> Ask {
    setup
        .ask("POST", "/asking/v1/chat/completions")
        .json_type()
        .with("x-request-id", name)
        .with("x-mock-recording", recording)
        .with("accept-encoding", "gzip, br")
}

/// The lines in which the provider was told what codings are taken.
fn accepted(seen: &RequestRecord) -> Vec<String> {
    let head = String::from_utf8(seen.head.to_vec()).unwrap();
    head.split("\r\n").filter(|line| line.starts_with("accept-encoding:")).map(str::to_owned).collect()
}

/// The stream without the event that tells usage and has no choices.
fn without_usage_event(stream: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(stream).unwrap();
    let is_kept = |event: &&str| !event.contains("\"choices\":[],\"usage\":{");
    let kept: String = text.split_inclusive("\n\n").filter(is_kept).collect();
    assert!(kept.len() < stream.len() && kept.ends_with("data: [DONE]\n\n"), "the recording has such an event");
    kept.into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_asked_for_its_usage_and_the_client_sees_what_it_would_have_seen() {
    let setup = Setup::new().await;
    let whole = recorded("openai-chat-stream-usage.sse");
    let expected = without_usage_event(&whole);
    for (case, split) in [("whole", 0), ("in-bytes", 1), ("in-pieces", 37)] {
        let mut ask = asking(&setup, case, STREAM);
        if split > 0 {
            ask = ask.with("x-mock-split", split);
        }
        let body = r#"{ "model":"gpt-4o-mini","messages":[],  "stream" : true}"#;
        let answer = setup.wire().await.ask(ask.body(body)).await;
        assert!(answer.whole && answer.body == expected, "{case}: {}", answer.text());

        let seen = setup.seen(case).unwrap();
        let sent = String::from_utf8(seen.body.clone().unwrap().to_vec()).unwrap();
        let parsed: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(parsed["stream_options"], json!({"include_usage": true}), "{sent}");
        assert_eq!(sent.replace(r#""stream_options":{"include_usage":true},"#, ""), body, "nothing else is changed");
        assert_eq!(accepted(&seen), ["accept-encoding: identity"], "{case}");

        let record = setup.only_record_of_client(case).await;
        assert_eq!((&record["usage"]["source"], &record["usage"]["output_tokens"]), (&json!("reported"), &json!(5)));
        assert_eq!(record["model_requested"], "gpt-4o-mini");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_itself_or_streams_nothing_is_left_alone() {
    let setup = Setup::new().await;
    let asks_itself = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
    let no_stream = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    for (case, recording, body, expected) in [
        ("asks-itself", STREAM, asks_itself, recorded("openai-chat-stream-usage.sse")),
        ("no-stream", "openai-chat-basic", no_stream, recorded("openai-chat-basic.json")),
        ("no-json", "openai-chat-basic", "no json", Vec::new()),
    ] {
        let answer = setup.wire().await.ask(asking(&setup, case, recording).body(body)).await;
        if !expected.is_empty() {
            assert_eq!(answer.body, expected, "{case}");
        }
        let seen = setup.seen(case).unwrap();
        assert_eq!(seen.body.as_deref(), Some(body.as_bytes()), "{case}");
        assert_eq!(accepted(&seen), ["accept-encoding: gzip, br"], "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_before_its_usage_ends_like_any_other() {
    let setup = Setup::new().await;
    let ask = asking(&setup, "cut", STREAM).fault("cut:700");
    let body = r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#;
    let answer = setup.wire().await.ask(ask.body(body)).await;
    assert!(!answer.whole);
    let sent = recorded("openai-chat-stream-usage.sse");
    assert!(answer.body.starts_with(&sent[..700]), "{}", answer.text());
    assert_eq!(setup.only_record_of_client("cut").await["outcome"], "upstream_cut");
}
