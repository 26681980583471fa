//! Of a stream the answer is kept that it was the pieces of, as far as it came; of a request what its client sent.

use llm_proxy_tests::{Provider, fixture};
use serde_json::{Value, json};

use crate::{Scene, whole};

/// The data of a stream's events, as JSON.
fn events(stream: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(stream).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The texts of these events at a place in each, one behind the other.
fn joined(events: &[Value], place: &str) -> String {
    events.iter().filter_map(|event| event.pointer(place)?.as_str()).collect()
}

/// What each recording would have been without streaming, in whole or in a part of it.
fn unstreamed(recording: &str, events: &[Value]) -> Vec<(&'static str, Value)> {
    match recording {
        "openai-chat-stream-usage" => vec![(
            "",
            json!({
                "id": "chatcmpl-ASYMZ4oSykiIFK4lXLReDiKyAjsQl", "object": "chat.completion", "created": 1_731_368_639,
                "model": "gpt-4-0613", "system_fingerprint": null, "usage": events.last().unwrap()["usage"],
                "choices": [{
                    "index": 0, "logprobs": null, "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "\"This is a test.\"", "refusal": null},
                }],
            }),
        )],
        "openai-chat-stream-n-choices" => {
            let of = |index: u64| {
                let own: Vec<Value> =
                    events.iter().filter(|event| event["choices"][0]["index"] == index).cloned().collect();
                json!(joined(&own, "/choices/0/delta/content"))
            };
            vec![("/choices/0/message/content", of(0)), ("/choices/1/message/content", of(1))]
        }
        "openai-chat-stream-tool-calls" => {
            let call = |id: &str, name: &str| {
                let function = json!({"name": name, "arguments": "{}"});
                json!({"id": id, "type": "function", "function": function})
            };
            let first = call("call_3rqTYrA6H21AYUaRGP4F66oq", "get_country");
            let second = call("call_Xw9XMKBJU48kAAd78WgIswDx", "get_product_name");
            vec![
                ("/choices/0/message/tool_calls", json!([first, second])),
                ("/choices/0/message/content", Value::Null),
                ("/choices/0/finish_reason", json!("tool_calls")),
            ]
        }
        "openai-responses-stream-basic" => vec![("", events.last().unwrap()["response"].clone())],
        "anthropic-messages-stream-basic" => vec![(
            "",
            json!({
                "id": "msg_01MXWxhWoPSgrYhjTuMDM6F1", "type": "message", "role": "assistant",
                "model": "claude-3-haiku-20240307", "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 17, "output_tokens": 171},
                "content": [{"type": "text", "text": joined(events, "/delta/text")}],
            }),
        )],
        "anthropic-messages-stream-tool-use" => vec![
            ("/content/1/name", json!("get_weather")),
            ("/content/1/input", json!({"location": "San Francisco, CA", "unit": "celsius"})),
            ("/content/2/input", json!({"timezone": "America/Los_Angeles"})),
            ("/usage/output_tokens", json!(153)),
        ],
        "gemini-stream-basic" => vec![
            (
                "/candidates",
                json!([{
                    "content": {"parts": [{"text": "The capital of France is Paris.\n"}], "role": "model"},
                    "finishReason": "STOP",
                }]),
            ),
            ("/usageMetadata/totalTokenCount", json!(21)),
            ("/modelVersion", json!("gemini-2.0-flash-exp")),
        ],
        other => panic!("nothing is known of {other}"),
    }
}

#[tokio::test]
async fn the_events_of_a_stream_are_kept_as_the_answer_they_are_together() {
    let scene = Scene::new().await;
    let (_, token) = scene.keeping("full", json!({"capture": "full"})).await;
    for name in [
        "openai-chat-stream-usage",
        "openai-chat-stream-n-choices",
        "openai-chat-stream-tool-calls",
        "openai-responses-stream-basic",
        "anthropic-messages-stream-basic",
        "anthropic-messages-stream-tool-use",
        "gemini-stream-basic",
    ] {
        let recording = fixture(name);
        let ask = recording.ask(&token.secret);
        let list = recording.path().replace("?alt=sse", "");
        let mut ways = vec![
            ("as it is", ask.clone()),
            ("in pieces", ask.clone().with("x-mock-split", "random:7")),
            ("gzip", ask.clone().with("accept-encoding", "gzip").with("x-mock-encoding", "gzip")),
        ];
        if recording.provider() == Provider::Gemini {
            // Gemini's other form of a stream, one array in pieces.
            ways.push(("a list", ask.to(&list)));
        }
        for (way, ask) in ways {
            let case = format!("{name}, {way}");
            let answer = scene.world.ask(&ask).await;
            let is_untouched = ["gzip", "a list"].contains(&way) || answer.body == recording.body;
            assert!(is_untouched, "{case}: {}", answer.text());
            let record = scene.world.check_record(&case, &answer, "finished", None).await;
            let kept = &record["content"]["response"];
            let told = (&kept["bytes"], &kept["truncated"], &kept["omitted"]);
            assert_eq!(told, (&json!(answer.body.len()), &json!(false), &Value::Null), "{case}: {record}");
            assert_eq!(kept["content_type"].as_str(), answer.header("content-type"), "{case}");
            for (place, expected) in unstreamed(name, &events(&recording.body)) {
                assert_eq!(kept["body"].pointer(place), Some(&expected), "{case}, {place}: {kept}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_keeps_what_there_was() {
    let scene = Scene::new().await;
    let (_, token) = scene.keeping("full", json!({"capture": "full"})).await;
    let recording = fixture("openai-chat-stream-usage");
    let end = recording.event_ends()[4];
    let check = |case: &str, record: &Value, bytes: usize| {
        let kept = &record["content"]["response"];
        assert_eq!((&kept["truncated"], &kept["bytes"]), (&json!(true), &json!(bytes)), "{case}: {record}");
        let message = &kept["body"]["choices"][0]["message"];
        assert_eq!(message["content"], "\"This is a test", "{case}: {kept}");
        assert_eq!(record["content"]["request"], whole(r#"{"stream":true}"#), "{case}");
    };
    for (case, bytes) in [("behind an event", end), ("within an event", end + 30)] {
        let answer = scene.world.ask(&recording.ask(&token.secret).with("x-mock-fault", &format!("cut:{bytes}"))).await;
        assert!(!answer.complete && answer.body.starts_with(&recording.body[..end]), "{case}: {}", answer.text());
        let record = scene.world.check_record(case, &answer, "upstream_cut", Some("upstream_invalid")).await;
        check(case, &record, bytes);
    }

    let mut raw = scene.world.connect().await;
    raw.write(&recording.ask(&token.secret).with("x-mock-fault", &format!("hang-body:{end}")).bytes()).await;
    let head = raw.read_head().await;
    let mut came = Vec::new();
    while !String::from_utf8_lossy(&came).contains(" test") {
        let more = raw.read_some().await;
        assert!(!more.is_empty(), "ended early: {}", String::from_utf8_lossy(&came));
        came.extend(more);
    }
    raw.reset();
    let record = scene.world.product.wait_event(head.header("x-llm-proxy-request-id").unwrap()).await;
    assert_eq!(record["outcome"], "client_gone", "{record}");
    check("the client has left", &record, end);
}

#[tokio::test]
async fn a_request_is_kept_as_its_client_sent_it_also_where_the_provider_is_asked_for_more() {
    let scene = Scene::new().await;
    let (_, token) = scene.keeping("full", json!({"capture": "full"})).await;
    let body = r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#;
    let ask = Provider::OpenAi.at("POST", "/asking/v1/chat/completions", &token.secret).json(body);
    let answer = scene.world.ask(&ask.with("x-mock-recording", "openai-chat-stream-usage")).await;
    let record = scene.world.check_record("asking", &answer, "finished", None).await;
    let seen = scene.world.last_upstream().body.unwrap();
    assert!(String::from_utf8_lossy(&seen).contains("include_usage"), "the provider was asked for usage");
    assert_eq!(record["content"]["request"], whole(body), "{record}");
    let message = &record["content"]["response"]["body"]["choices"][0]["message"];
    assert_eq!(message["content"], "\"This is a test.\"", "{record}");
}
