//! `GET /manage/usage` as its callers see it: over a real store, filled directly or by a counter from a real journal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::sync::Arc;

use futures::FutureExt;
use llm_proxy_admin::UsageCounter;
use llm_proxy_plugins::event::{Begin, Cost, Exchange, Outcome, Source, Times, Usage};
use llm_proxy_plugins::journal::{Journal, Kind, Options};
use llm_proxy_store::{DAY_US, HOUR_US, Store, Stretch, TokenSum, Totals, UsageKey};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use common::{Plane, opened};

/// 2026-11-21, midnight by UTC.
const DAY: i64 = 1_795_219_200_000_000;

/// What is answered to a query.
async fn asked(plane: &Plane, query: &str) -> (u16, Value) {
    let answer = plane.get(&format!("/manage/usage{}", plane.fill(query))).await;
    (answer.status.as_u16(), answer.json())
}

/// What a query in the day of these tests gives.
async fn usage_of(plane: &Plane, query: &str) -> Value {
    let (status, told) = asked(plane, &format!("?from=2026-11-21T00:00:00Z&to=2026-11-22T00:00:00Z{query}")).await;
    assert_eq!(status, 200, "{query}: {told}");
    told
}

fn key(plane: &Plane, hour: i64, model: &str) -> UsageKey {
    UsageKey {
        hour_us: DAY + hour * HOUR_US,
        project_id: plane.project.clone(),
        token_id: plane.token.clone(),
        api: "openai".to_owned(),
        model: model.to_owned(),
    }
}

async fn fill(plane: &Plane, usage: Vec<(UsageKey, Totals)>) {
    let stretch = Stretch { up_to_seq: 1, usage, ..Stretch::default() };
    assert_eq!(plane.store.count("journal", stretch).await.unwrap(), 1);
}

/// A priced stream that took so many milliseconds.
fn finished(ms: u64) -> Totals {
    let mut totals = Totals { priced_requests: 1, cost: "0.000012".parse().unwrap(), ..Totals::default() };
    totals.outcomes[1] = 1;
    totals.sources[1] = 1;
    totals.tokens[0] = TokenSum { reported: 100, estimated: 0 };
    totals.tokens[1] = TokenSum { reported: 0, estimated: 7 };
    totals.latency_us.record(ms * 1_000);
    totals.first_chunk_us.record(ms * 100);
    totals
}

fn refused(count: u64) -> Totals {
    let mut totals = Totals::default();
    totals.outcomes[2] = count;
    totals.sources[0] = count;
    totals
}

#[tokio::test]
async fn an_item_has_every_sum_under_the_names_of_the_record() {
    let plane = Plane::new().await;
    fill(&plane, vec![(key(&plane, 10, "a"), finished(800)), (key(&plane, 10, "a"), refused(3))]).await;
    let told = usage_of(&plane, "&group_by=hour,project,token,api,model").await;
    let zero = json!({"reported": 0, "estimated": 0});
    let expected = json!({
        "hour": "2026-11-21T10:00:00.000000Z",
        "project_id": plane.project,
        "token_id": plane.token,
        "api": "openai",
        "model": "a",
        "requests": 4,
        "outcomes": {
            "unknown": 0, "finished": 1, "refused": 3, "client_gone": 0, "upstream_unreachable": 0, "upstream_cut": 0,
            "timeout": 0, "revoked": 0, "over_budget": 0, "shed": 0,
        },
        "usage": {
            "requests": {"unknown": 3, "reported": 1, "estimated": 0},
            "input_tokens": {"reported": 100, "estimated": 0},
            "output_tokens": {"reported": 0, "estimated": 7},
            "cache_read_input_tokens": zero, "cache_creation_input_tokens": zero,
            "reasoning_output_tokens": zero, "audio_input_tokens": zero, "audio_output_tokens": zero,
        },
        "cost": {"usd": "0.000012", "requests": 1},
        // The middles of the buckets: from 786,432 to 851,967 µs, and from 73,728 to 81,919.
        "latency_ms": {"requests": 1, "p50": 819.199, "p95": 819.199, "p99": 819.199},
        "time_to_first_chunk_ms": {"requests": 1, "p50": 77.823, "p95": 77.823, "p99": 77.823},
    });
    let range = json!({"from": "2026-11-21T00:00:00.000000Z", "to": "2026-11-22T00:00:00.000000Z"});
    assert_eq!(told["data"], json!([expected]));
    assert_eq!((&told["next_cursor"], &told["from"], &told["to"]), (&Value::Null, &range["from"], &range["to"]));
}

#[tokio::test]
async fn what_is_not_told_apart_is_added_up_and_what_is_not_known_is_null() {
    let plane = Plane::new().await;
    let nobody = UsageKey { project_id: String::new(), token_id: String::new(), ..key(&plane, 23, "") };
    fill(
        &plane,
        vec![
            (key(&plane, 0, "a"), finished(10)),
            (key(&plane, 0, "b"), finished(20)),
            (key(&plane, 9, "a"), finished(30)),
            (nobody, refused(90)),
            (key(&plane, 24, "a"), finished(40)),
            (key(&plane, -1, "a"), finished(50)),
        ],
    )
    .await;
    let day = "2026-11-21T00:00:00.000000Z";
    for (query, expected) in [
        ("", json!([[93, "0.000036"]])),
        ("&model=a", json!([[2, "0.000024"]])),
        ("&project_id={project}&token_id={token}&api=openai", json!([[3, "0.000036"]])),
        ("&model=nobody-used-it", json!([[0, null]])),
        ("&model=nobody-used-it&group_by=model", json!([])),
        ("&group_by=day", json!([[day, 93, "0.000036"]])),
        ("&group_by=project", json!([[null, 90, null], [plane.project, 3, "0.000036"]])),
        (
            "&group_by=model,token",
            json!([[null, null, 90, null], [plane.token, "a", 2, "0.000024"], [plane.token, "b", 1, "0.000012"]]),
        ),
        (
            "&group_by=api,hour&model=a",
            json!([[day, "openai", 1, "0.000012"], ["2026-11-21T09:00:00.000000Z", "openai", 1, "0.000012"]]),
        ),
    ] {
        let told = usage_of(&plane, query).await;
        let line = |item: &Value| {
            let names = ["hour", "day", "project_id", "token_id", "api", "model", "requests"];
            let mut line: Vec<_> = names.iter().filter_map(|name| item.get(name)).cloned().collect();
            line.push(item["cost"]["usd"].clone());
            line
        };
        let lines: Vec<_> = told["data"].as_array().unwrap().iter().map(line).collect();
        assert_eq!(json!(lines), expected, "{query}");
    }
    let whole = usage_of(&plane, "").await;
    assert_eq!(whole["data"][0]["latency_ms"]["requests"], 3);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_its_name() {
    let plane = Plane::new().await;
    let range = "from=2026-11-21T00:00:00Z&to=2026-11-22T00:00:00Z";
    for (query, status, code, words) in [
        ("?from=yesterday", 400, "invalid_query", "`from` must be a time as in RFC 3339"),
        ("?to=2026-11-21T10:00:00+01:00", 400, "invalid_query", "+ is %2B"),
        ("?from=2026-11-21T10:30:00Z", 400, "invalid_query", "`from` must be a full hour"),
        ("?to=2026-11-21T10:00:00.5Z", 400, "invalid_query", "`to` must be a full hour"),
        ("?from=2026-11-21T10:00:00Z&to=2026-11-21T10:00:00Z", 400, "invalid_query", "`from` must lie before `to`"),
        ("?from=2099-01-01T00:00:00Z", 400, "invalid_query", "`from` must lie before `to`"),
        ("?group_by=endpoint", 400, "invalid_query", "project, token, api, model, and hour or day"),
        ("?group_by=", 400, "invalid_query", "project, token, api, model, and hour or day"),
        ("?group_by=hour,day", 400, "invalid_query", "hour and day together"),
        ("?group_by=model,model", 400, "invalid_query", "twice"),
        ("?model=", 400, "invalid_query", "`model` is empty"),
        ("?limit=0", 400, "invalid_query", "`limit`"),
        ("?limit=201", 400, "invalid_query", "`limit`"),
        ("?project={project}", 400, "invalid_query", "unknown parameter `project`"),
        ("?api=a&api=b", 400, "invalid_query", "duplicate parameter `api`"),
        ("?cursor=WzEsMl0", 400, "invalid_query", "`cursor` goes with the `from` and `to`"),
        (&format!("?{range}&cursor=junk"), 400, "invalid_request", "the cursor is not one"),
        ("?project_id={none}", 404, "project_not_found", "no project has this id"),
        ("?token_id={none}", 404, "token_not_found", "no token has this id"),
        ("?from=2026-11-21T11:00:00%2B01:00&to=2026-11-21T11:00:00Z&group_by=model", 200, "", ""),
        ("?cursor=", 200, "", ""),
        ("", 200, "", ""),
    ] {
        let (answered, told) = asked(&plane, query).await;
        let (code_told, detail) =
            (told["code"].as_str().unwrap_or_default(), told["detail"].as_str().unwrap_or_default());
        assert_eq!((answered, code_told), (status, code), "{query}: {told}");
        assert!(detail.contains(words), "{query}: {told}");
    }
}

#[tokio::test]
async fn pages_hold_every_item_once() {
    let plane = Plane::new().await;
    let usage = (0..23).map(|number| (key(&plane, number % 4, &format!("m{number}")), finished(1))).collect();
    fill(&plane, usage).await;
    for group_by in ["model", "hour,model", "day,project,token,api,model"] {
        let whole = usage_of(&plane, &format!("&group_by={group_by}")).await;
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = usage_of(&plane, &format!("&group_by={group_by}&limit=5&cursor={cursor}")).await;
            assert!(page["data"].as_array().unwrap().len() <= 5);
            items.extend(page["data"].as_array().unwrap().clone());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        assert_eq!((items.len(), json!(items)), (23, whole["data"].clone()), "{group_by}");
        let other = format!("?from=2026-11-21T00:00:00Z&to=2026-11-22T00:00:00Z&group_by=token&cursor={cursor}");
        assert_eq!(asked(&plane, &other).await.0, 400, "a cursor of another grouping");
    }
}

/// The records of one exchange.
fn append(journal: &Journal, project: &str, token: &str, number: u128) {
    let id = Uuid::from_u128(number);
    let begin = Begin { token_id: token.to_owned(), received_us: DAY, ..Begin::default() };
    journal.append_message(Kind::Begin, id, DAY, &begin).unwrap();
    let end = Exchange {
        project_id: Some(project.to_owned()),
        token_id: Some(token.to_owned()),
        api: Some("openai".to_owned()),
        model: Some("m".to_owned()),
        status: Some(200),
        outcome: Outcome::Finished.into(),
        usage: Some(Usage { source: Source::Reported.into(), input_tokens: Some(5), ..Usage::default() }),
        cost: Some(Cost { usd: Some("0.1".to_owned()), prices: None }),
        times: Some(Times { received_us: Some(DAY + DAY_US - 1), last_byte_us: Some(8), ..Times::default() }),
        count: 1,
        ..Exchange::default()
    };
    journal.append_message(Kind::End, id, DAY, &end).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_journal_says_is_told_at_once_and_once() {
    let (store, folder) = opened().await;
    let (journal, _) = Journal::open(&folder.path().join("journal"), Options::default()).unwrap();
    // It blocks, as its name does not say.
    let start = |journal: Journal, store: Store| async move {
        let control = Handle::current();
        let started = tokio::task::spawn_blocking(move || UsageCounter::start(&journal, store, control));
        started.await.unwrap().unwrap()
    };
    let counter = start(journal.clone(), store.clone()).await;
    let asker = counter.asker();
    let catch_up = Arc::new(move || {
        let asker = asker.clone();
        async move { asker.catch_up().await }.boxed()
    });
    let plane = Plane::counting(store, folder, catch_up).await;
    for number in 1..=3_u64 {
        append(&journal, &plane.project, &plane.token, number.into());
        let told = usage_of(&plane, "&group_by=token,hour").await;
        let item = &told["data"][0];
        assert_eq!(
            (&item["requests"], &item["hour"]),
            (&json!(number), &json!("2026-11-21T23:00:00.000000Z")),
            "{told}"
        );
        assert_eq!(item["usage"]["input_tokens"]["reported"], 5 * number, "{told}");
        assert_eq!(item["cost"], json!({"usd": format!("0.{number}"), "requests": number}), "{told}");
        assert_eq!(item["latency_ms"], json!({"requests": number, "p50": 0.008, "p95": 0.008, "p99": 0.008}), "{told}");
        let token = plane.store.token(&plane.token).await.unwrap().unwrap();
        assert_eq!((token.request_count, token.last_used_at_us), (number, Some(DAY)));
    }
    // Another start reads on, and finds nothing that is not counted.
    let again = start(journal.clone(), plane.store.clone()).await;
    again.asker().catch_up().await;
    assert_eq!(usage_of(&plane, "").await["data"][0]["requests"], 3);
    for counter in [counter, again] {
        tokio::task::spawn_blocking(move || counter.stop()).await.unwrap();
    }
    assert!(plane.folder.path().join("store.sqlite").exists());
}
