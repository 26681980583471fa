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
use llm_proxy_plugins::event::Exchange;
use serde_json::json;

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
