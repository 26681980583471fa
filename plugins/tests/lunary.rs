//! The Lunary sink against its server's rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use common::lunary::{KEY, Lunary};
use common::stand_in::{Fault, StandIn};
use common::{Bench, PATIENCE, brisk, finished, job, texts, wait_for};
use llm_proxy_plugins::dispatcher::{Health, Job};
use llm_proxy_plugins::event::{Body, CapturePolicy, Content, EventType, Exchange, Outcome};
use serde_json::{Value, json};

fn sink(lunary: &StandIn<Lunary>) -> Job {
    job("lunary", brisk(json!({"api_key": KEY, "base_url": lunary.url("")})))
}

fn stored(lunary: &StandIn<Lunary>) -> BTreeSet<String> {
    lunary.service(|lunary| lunary.runs.keys().cloned().collect())
}

#[test]
fn every_exchange_is_a_run_with_its_tokens_and_times() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary::default());
    let ids = bench.append(30);
    let failed = bench.append_one(&Exchange {
        outcome: Outcome::Timeout.into(),
        reason: Some("first_byte".to_owned()),
        status: Some(504),
        usage: None,
        ..finished()
    });
    bench.append_one(&Exchange { r#type: EventType::Admin.into(), ..Exchange::default() });
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 31);
    assert_eq!((stats.left_out, stats.dead, stats.retried), (1, 0, 0));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(stored(&lunary), texts(&[ids.clone(), vec![failed]].concat()));
    lunary.service(|lunary| {
        for id in &ids {
            let run = &lunary.runs[&id.to_string()];
            assert_eq!(run.end.as_ref().unwrap()["tokensUsage"], json!({"prompt": 9, "completion": 2}));
            assert_eq!((&run.start["name"], run.error.is_none()), (&json!("gpt-4o-mini-2024-07-18"), true));
        }
        let run = &lunary.runs[&failed.to_string()];
        assert_eq!(run.error.as_ref().unwrap()["error"]["message"], "timeout: first_byte");
        assert!(run.end.is_none());
    });
}

/// An exchange of which both bodies were captured.
fn captured(request: &Value, response: &Value, exchange: Exchange) -> Exchange {
    let body = |json: &Value| Some(Body { json: Some(json.to_string().into_bytes()), ..Body::default() });
    let policy = CapturePolicy::Full.into();
    Exchange { content: Some(Content { policy, request: body(request), response: body(response) }), ..exchange }
}

#[test]
fn what_was_said_in_any_dialect_is_a_chat_that_it_takes() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary::default());
    let openai = captured(
        &json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "weather?"}]}),
        &json!({"choices": [{"message": {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"the_city\":\"Bonn\"}"}},
        ]}}]}),
        finished(),
    );
    let anthropic = captured(
        &json!({"system": "be brief", "messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "tu_1", "content": "rain"},
        ]}]}),
        &json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": "tu_2", "name": "weather", "input": {"the_city": "Bonn"}},
        ]}),
        Exchange { dialect: Some("anthropic".to_owned()), ..finished() },
    );
    let gemini = captured(
        &json!({"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}),
        &json!({"candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}}]}),
        Exchange { dialect: Some("gemini".to_owned()), ..finished() },
    );
    let responses = captured(
        &json!({"instructions": "be brief", "input": "hello"}),
        &json!({"output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}], "error": null}),
        finished(),
    );
    let vectors = captured(
        &json!({"input": ["a", "b"]}),
        &json!({"data": [{"embedding": [0.1]}]}),
        Exchange { endpoint: Some("/v1/embeddings".to_owned()), ..finished() },
    );
    let ids = [openai, anthropic, gemini, responses, vectors].map(|exchange| bench.append_one(&exchange));
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 5);
    assert_eq!((stats.retried, stats.dead), (0, 0));
    lunary.service(|lunary| {
        let said = ids.map(|id| {
            let run = &lunary.runs[&id.to_string()];
            (run.start["input"].clone(), run.end.as_ref().unwrap()["output"].clone())
        });
        let user = |text: &str| json!({"role": "user", "content": text});
        let system = json!({"role": "system", "content": "be brief"});
        // As its server has them, whose keys these are: arguments are a text, so that theirs are left alone.
        let call = |id: &str| {
            let function = json!({"name": "weather", "arguments": "{\"the_city\":\"Bonn\"}"});
            let calls = json!([{"id": id, "type": "function", "function": function}]);
            json!({"role": "assistant", "content": null, "toolCalls": calls})
        };
        let result = json!({"role": "tool", "toolCallId": "tu_1", "content": "rain"});
        let hi = json!({"role": "assistant", "content": "hi"});
        assert_eq!(said[0], (json!([user("weather?")]), call("c1")));
        assert_eq!(said[1], (json!([system, result]), call("tu_2")));
        assert_eq!(said[2], (json!([user("hello")]), hi.clone()));
        assert_eq!(said[3], (json!([system, user("hello")]), hi));
        assert_eq!(said[4], (json!(["a", "b"]), Value::Null));
        let start = &lunary.runs[&ids[0].to_string()].start;
        assert_eq!(start["params"], json!({"maxTokens": 5, "stream": true}));
        assert_eq!(lunary.runs[&ids[4].to_string()].start["type"], "embed");
    });
}

#[test]
fn calls_keep_to_its_limit_by_themselves() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary::default());
    bench.append(60);
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    wait_for(&dispatcher, |stats| stats.delivered == 60);
    let calls = lunary.calls();
    // 150 a minute.
    assert!(calls.windows(2).all(|pair| pair[1].duration_since(pair[0]) >= Duration::from_millis(400)), "{calls:?}");
}

#[test]
fn a_limit_that_is_met_is_waited_out_and_costs_no_run() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary { limit: 1, window: Duration::from_secs(2), ..Lunary::default() });
    let ids = bench.append(50);
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 50);
    assert_eq!((stats.dead, stats.duplicates), (0, 0));
    assert_eq!(stored(&lunary), texts(&ids));
    // It says when its limit begins anew, and is not asked before: one refusal for each of its windows.
    lunary.service(|lunary| assert!((1..=3).contains(&lunary.refused_by_limit), "{}", lunary.refused_by_limit));
}

#[test]
fn two_hundred_is_not_enough_each_result_is_read() {
    let bench = Bench::new();
    let ids = bench.append(20);
    let failing_ends = BTreeMap::from([(ids[3].to_string(), 2), (ids[7].to_string(), 1)]);
    let lunary = StandIn::start(Lunary { failing_ends, ..Lunary::default() });
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered + stats.duplicates == 20);
    assert_eq!((stats.duplicates, stats.retried, stats.dead), (2, 3, 0));
    lunary.service(|lunary| assert!(lunary.runs.values().all(|run| run.end.is_some())));
}

#[test]
fn a_run_that_never_ends_is_given_up_and_the_others_are_stored() {
    let bench = Bench::new();
    let ids = bench.append(20);
    let failing_ends = BTreeMap::from([(ids[3].to_string(), usize::MAX)]);
    let lunary = StandIn::start(Lunary { failing_ends, ..Lunary::default() });
    let mut settings = brisk(json!({"api_key": KEY, "base_url": lunary.url("")}));
    settings["max_attempts"] = json!("3");
    let dispatcher = bench.serve(vec![job("lunary", settings)]);
    let stats = wait_for(&dispatcher, |stats| stats.dead == 1);
    assert_eq!((stats.delivered, stats.waiting), (19, 0));
    let dead = bench.dead("lunary");
    assert_eq!(dead[0]["id"], ids[3].to_string());
    assert_eq!(dead[0]["reason"], "failed 3 times alone while others got through: deadlock detected");
}

#[test]
fn what_is_sent_a_second_time_is_a_duplicate_and_no_second_run() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary::default());
    let ids = bench.append(40);
    assert_eq!(bench.serve(vec![sink(&lunary)]).drain(PATIENCE)[0].remaining, 0);
    // As if nothing had ever been delivered.
    fs::remove_file(bench.file("lunary.cursor")).unwrap();
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.duplicates == 40);
    assert_eq!((stats.delivered, stats.dead), (0, 0));
    assert_eq!(stored(&lunary), texts(&ids));
}

#[test]
fn an_answer_that_is_lost_or_cut_loses_no_run() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary::default());
    lunary.fail([Fault::Reset, Fault::HalfAnswer, Fault::Status(502), Fault::TakenThenReset]);
    let ids = bench.append(30);
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered + stats.duplicates == 30);
    assert_eq!(stats.dead, 0);
    assert_eq!(stored(&lunary), texts(&ids));
}

#[test]
fn an_unknown_key_costs_no_run() {
    let bench = Bench::new();
    let lunary = StandIn::start(Lunary { key: "11111111-1111-4111-8111-111111111111".to_owned(), ..Lunary::default() });
    bench.append(5);
    let dispatcher = bench.serve(vec![sink(&lunary)]);
    let stats = wait_for(&dispatcher, |stats| stats.health == Health::Down);
    assert_eq!((stats.delivered, stats.dead, stats.waiting), (0, 0, 5));
    let error = dispatcher.books()[0].last_error().unwrap();
    assert!(error.starts_with("HTTP 401") && !error.contains(KEY), "{error}");
}
