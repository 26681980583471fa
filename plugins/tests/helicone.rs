//! The Helicone sink against its worker's rules.

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
use std::time::Duration;

use common::helicone::{Helicone, KEY};
use common::stand_in::{Fault, StandIn};
use common::{Bench, PATIENCE, brisk, finished, job, texts, wait_for};
use llm_proxy_plugins::dispatcher::{Health, Job};
use llm_proxy_plugins::event::{Body, CapturePolicy, Content, Exchange};
use serde_json::{Value, json};

fn sink(helicone: &StandIn<Helicone>) -> Job {
    job("helicone", brisk(json!({"api_key": KEY, "base_url": helicone.url(""), "concurrency": "4"})))
}

fn stored(helicone: &StandIn<Helicone>) -> BTreeSet<String> {
    helicone.service(|helicone| helicone.logs.keys().cloned().collect())
}

#[test]
fn every_exchange_is_logged_under_its_id_with_its_real_times_a_few_at_a_time() {
    let bench = Bench::new();
    let helicone = StandIn::start(Helicone::default());
    let mut ids = bench.append(40);
    for dialect in ["anthropic", "gemini", "azure"] {
        ids.push(bench.append_one(&Exchange { dialect: Some(dialect.to_owned()), ..finished() }));
    }
    let dispatcher = bench.serve(vec![sink(&helicone)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 43);
    assert_eq!((stats.dead, stats.retried), (0, 0));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(stored(&helicone), texts(&ids));
    assert!((2..=4).contains(&helicone.most_running()), "{} at a time", helicone.most_running());
    helicone.service(|helicone| {
        assert!(helicone.times.values().all(|times| *times == 1));
        assert_eq!(helicone.paths.len(), 4);
        for log in helicone.logs.values() {
            let ms = |name: &str| {
                let at = &log["timing"][name];
                at["seconds"].as_u64().unwrap() * 1_000 + at["milliseconds"].as_u64().unwrap()
            };
            assert_eq!(ms("endTime") - ms("startTime"), 1_420);
            assert_eq!(log["timing"]["timeToFirstToken"], 310);
            assert_eq!(log["providerResponse"]["status"], 200);
        }
    });
}

/// An exchange of which both bodies were captured.
fn captured(request: &Value, response: Body, exchange: Exchange) -> Exchange {
    let request = Some(Body { json: Some(request.to_string().into_bytes()), ..Body::default() });
    let content = Content { policy: CapturePolicy::Full.into(), request, response: Some(response) };
    Exchange { content: Some(content), ..exchange }
}

#[test]
fn captured_bodies_are_logged_with_who_sent_them() {
    let bench = Bench::new();
    let helicone = StandIn::start(Helicone::default());
    let tags = ["user_id", "session_id", "session_name", "session_path", "prompt_id", "team", "API"];
    let tags: BTreeMap<_, _> = tags.iter().map(|tag| ((*tag).to_owned(), format!("my {tag}"))).collect();
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": true});
    let answer = json!({"choices": [{"message": {"role": "assistant", "content": "hi"}}]});
    let json_body = |json: &Value| Body { json: Some(json.to_string().into_bytes()), ..Body::default() };
    let chatted = bench.append_one(&captured(&chat, json_body(&answer), Exchange { tags, ..finished() }));
    let gemini = Exchange { dialect: Some("gemini".to_owned()), ..finished() };
    let asked = bench.append_one(&captured(&json!({"contents": []}), json_body(&json!({"candidates": []})), gemini));
    let subtitles = Body { text: Some("WEBVTT".to_owned()), ..Body::default() };
    let heard = bench.append_one(&captured(&json!({"model": "m"}), subtitles, Exchange { usage: None, ..finished() }));
    let dispatcher = bench.serve(vec![sink(&helicone)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 3);
    assert_eq!((stats.dead, stats.retried), (0, 0));
    helicone.service(|helicone| {
        let log = &helicone.logs[&chatted.to_string()];
        assert_eq!(log["providerRequest"]["json"], chat);
        let answered = &log["providerResponse"]["json"];
        assert_eq!(answered["choices"], answer["choices"]);
        // Its tokens are the record's, where the answer did not tell them.
        assert_eq!(answered["usage"], json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}));
        let meta = &log["providerRequest"]["meta"];
        for (field, value) in [
            ("Helicone-User-Id", "my user_id"),
            ("Helicone-Session-Id", "my session_id"),
            ("Helicone-Session-Name", "my session_name"),
            ("Helicone-Session-Path", "my session_path"),
            ("Helicone-Prompt-Id", "my prompt_id"),
            ("Helicone-Property-team", "my team"),
            ("Helicone-Property-API", "my API"),
            ("Helicone-Property-Project", "p1"),
        ] {
            assert_eq!(meta[field], value, "{field}");
        }
        assert_eq!(log["timing"]["timeToFirstToken"], 310);
        assert_eq!(helicone.logs[&asked.to_string()]["providerRequest"]["json"]["model"], "gpt-4o-mini");
        assert_eq!(helicone.logs[&heard.to_string()]["providerResponse"]["textBody"], "WEBVTT");
    });
}

#[test]
fn a_server_of_ones_own_is_called_where_it_listens() {
    let bench = Bench::new();
    let helicone = StandIn::start(Helicone::default());
    bench.append(3);
    let settings = json!({"api_key": KEY, "server": "self_hosted", "base_url": helicone.url("/")});
    let dispatcher = bench.serve(vec![job("helicone", brisk(settings))]);
    wait_for(&dispatcher, |stats| stats.delivered == 3);
    helicone.service(|helicone| assert_eq!(helicone.paths, BTreeSet::from(["/v1/trace/custom/log".to_owned()])));
}

#[test]
fn two_hundred_with_an_error_in_it_is_sent_again() {
    let bench = Bench::new();
    let ids = bench.append(10);
    let store_fails = BTreeMap::from([(ids[2].to_string(), 2)]);
    let helicone = StandIn::start(Helicone { store_fails, ..Helicone::default() });
    let dispatcher = bench.serve(vec![sink(&helicone)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 10);
    assert_eq!((stats.retried, stats.dead), (2, 0));
    assert_eq!(stored(&helicone), texts(&ids));
}

#[test]
fn what_is_refused_is_put_aside_and_the_others_are_logged() {
    let bench = Bench::new();
    let ids = bench.append(10);
    let helicone = StandIn::start(Helicone { refuses: texts(&ids[4..5]), ..Helicone::default() });
    let dispatcher = bench.serve(vec![sink(&helicone)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 9 && stats.dead == 1);
    assert_eq!((stats.retried, stats.health), (0, Health::Delivering));
    let dead = bench.dead("helicone");
    assert_eq!(dead[0]["id"], ids[4].to_string());
    assert_eq!(dead[0]["reason"], "HTTP 400: {\"error\":\"Invalid asyncLogModel\"}");
}

#[test]
fn a_limit_stops_the_rest_of_the_batch_too() {
    let bench = Bench::new();
    let helicone = StandIn::start(Helicone::default());
    helicone.fail(vec![Fault::TooMany { retry_after: 1 }; 4]);
    let ids = bench.append(20);
    let dispatcher = bench.serve(vec![sink(&helicone)]);
    let stats = wait_for(&dispatcher, |stats| stats.delivered == 20);
    assert_eq!(stats.dead, 0);
    assert_eq!(stored(&helicone), texts(&ids));
    // Those that were under way met the limit, the others were not sent into it.
    let calls = helicone.calls();
    let first_batch = calls.iter().filter(|call| call.duration_since(calls[0]) < Duration::from_millis(900)).count();
    assert!((1..=4).contains(&first_batch), "{first_batch} calls before the wait");
}

#[test]
fn an_unknown_key_costs_no_log() {
    let bench = Bench::new();
    let helicone = StandIn::start(Helicone::default());
    bench.append(5);
    let settings = json!({"api_key": "sk-helicone-other", "base_url": helicone.url("")});
    let dispatcher = bench.serve(vec![job("helicone", brisk(settings))]);
    let stats = wait_for(&dispatcher, |stats| stats.health == Health::Down);
    assert_eq!((stats.delivered, stats.dead, stats.waiting), (0, 0, 5));
    assert_eq!(dispatcher.books()[0].last_error().as_deref(), Some("HTTP 401: Unauthorized"));
}
