//! What the management API says was used is what the records add up to: after requests of every kind, after kill -9,
//! and after the journal is counted again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use llm_proxy_tests::{Ask, Provider, World, eventually, fixture};
use serde_json::{Value, json};

const TOKEN_CLASSES: [&str; 7] = [
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "reasoning_output_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
];
const OUTCOMES: [&str; 10] = [
    "unknown",
    "finished",
    "refused",
    "client_gone",
    "upstream_unreachable",
    "upstream_cut",
    "timeout",
    "revoked",
    "over_budget",
    "shed",
];

/// Hour, project, token, API and model, as JSON texts.
type Key = [String; 5];

/// What records add up to, counted here once more.
#[derive(Default)]
struct Sum {
    requests: u64,
    outcomes: BTreeMap<String, u64>,
    sources: BTreeMap<String, u64>,
    tokens: BTreeMap<(String, String), u64>,
    /// In units of 10^-24 USD.
    cost: u128,
    priced: u64,
    latency_us: Vec<u64>,
    first_chunk_us: Vec<u64>,
}

fn units(usd: &str) -> u128 {
    let (whole, places) = usd.split_once('.').unwrap_or((usd, ""));
    format!("{whole}{places:0<24}").parse().unwrap()
}

fn usd(units: u128) -> String {
    let digits = format!("{units:025}");
    let (whole, places) = digits.split_at(digits.len() - 24);
    format!("{whole}.{places}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[test]
fn amounts_are_added_by_their_digits() {
    for text in ["0", "1", "12.5", "0.0000048", "0.000000000000000000000001"] {
        assert_eq!(usd(units(text)), text);
    }
    assert_eq!(usd(units("0.9") + units("0.15")), "1.05");
}

impl Sum {
    fn add(&mut self, record: &Value) {
        let count = record["count"].as_u64().unwrap();
        self.requests += count;
        *self.outcomes.entry(record["outcome"].as_str().unwrap().to_owned()).or_default() += count;
        let usage = &record["usage"];
        let source = usage["source"].as_str().unwrap();
        *self.sources.entry(source.to_owned()).or_default() += count;
        for class in TOKEN_CLASSES {
            if let Some(tokens) = usage[class].as_u64() {
                let source = usage["sources"][class].as_str().unwrap_or(source);
                *self.tokens.entry((class.to_owned(), source.to_owned())).or_default() += tokens;
            }
        }
        if let Some(usd) = record["cost"]["usd"].as_str() {
            self.cost += units(usd);
            self.priced += 1;
        }
        let status = record["status"].as_u64().unwrap_or_default();
        let time = |name: &str| record["times"][name].as_f64().map(|ms| (ms * 1_000.0).round() as u64);
        if (200..400).contains(&status) {
            if record["outcome"] == "finished" {
                self.latency_us.extend(time("last_byte_ms").or(time("first_byte_ms")));
            }
            if record["stream"] == true {
                self.first_chunk_us.extend(time("first_chunk_ms"));
            }
        }
    }

    /// The same as the management API tells it, but for the percentiles.
    fn told(&self) -> Value {
        let outcomes: BTreeMap<_, _> =
            OUTCOMES.map(|outcome| (outcome, self.outcomes.get(outcome).copied().unwrap_or_default())).into();
        let sources = ["unknown", "reported", "estimated"];
        let sources: BTreeMap<_, _> =
            sources.map(|source| (source, self.sources.get(source).copied().unwrap_or_default())).into();
        let mut usage = json!({"requests": sources});
        for class in TOKEN_CLASSES {
            let of =
                |source: &str| self.tokens.get(&(class.to_owned(), source.to_owned())).copied().unwrap_or_default();
            usage[class] = json!({"reported": of("reported"), "estimated": of("estimated")});
        }
        let cost = json!({"usd": (self.priced > 0).then(|| usd(self.cost)), "requests": self.priced});
        json!({"requests": self.requests, "outcomes": outcomes, "usage": usage, "cost": cost})
    }
}

fn key_of(record: &Value) -> Key {
    let hour = format!("{}:00:00.000000Z", &record["times"]["received"].as_str().unwrap()[..13]);
    let model = match (&record["project_id"], &record["model"]) {
        (Value::Null, _) => &Value::Null,
        (_, Value::Null) => &record["model_requested"],
        (_, answered) => answered,
    };
    [&json!(hour), &record["project_id"], &record["token_id"], &record["api"], model].map(Value::to_string)
}

fn sums<K: Ord>(records: &[Value], key: impl Fn(&Value) -> K) -> BTreeMap<K, Sum> {
    let mut sums: BTreeMap<K, Sum> = BTreeMap::new();
    for record in records {
        sums.entry(key(record)).or_default().add(record);
    }
    sums
}

/// Checks the percentiles of a group against the times themselves.
fn check_times(case: &str, told: &Value, times: &[u64]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    assert_eq!(told["requests"].as_u64(), Some(times.len() as u64), "{case}: {told}");
    for (name, percent) in [("p50", 50), ("p95", 95), ("p99", 99)] {
        let Some(rank) = (times.len() * percent).div_ceil(100).checked_sub(1) else {
            assert_eq!(told[name], Value::Null, "{case}: {told}");
            continue;
        };
        let (truth, found) = (times[rank] as f64 / 1_000.0, told[name].as_f64().unwrap());
        assert!((found - truth).abs() <= truth * 0.0625 + 0.000_5, "{case}: {name} is {truth}: {told}");
    }
}

fn check(case: &str, item: &Value, sum: &Sum) {
    check_times(case, &item["latency_ms"], &sum.latency_us);
    check_times(case, &item["time_to_first_chunk_ms"], &sum.first_chunk_us);
    let mut item = item.clone();
    let fields = item.as_object_mut().unwrap();
    for name in ["hour", "project_id", "token_id", "api", "model", "latency_ms", "time_to_first_chunk_ms"] {
        fields.remove(name);
    }
    assert_eq!(item, sum.told(), "{case}");
}

/// Everything that is told, told apart in every way, page by page.
async fn told(world: &World) -> BTreeMap<Key, Value> {
    let mut items = BTreeMap::new();
    let mut query = "group_by=hour,project,token,api,model&limit=3".to_owned();
    loop {
        let page = world.admin.get(&format!("/manage/usage?{query}")).await.expect(200);
        for item in page["data"].as_array().unwrap() {
            let key = ["hour", "project_id", "token_id", "api", "model"].map(|name| item[name].to_string());
            assert!(items.insert(key, item.clone()).is_none(), "told twice: {item}");
        }
        let text = |name: &str| page[name].as_str().unwrap().to_owned();
        let Some(cursor) = page["next_cursor"].as_str() else { return items };
        query = format!(
            "group_by=hour,project,token,api,model&limit=3&cursor={cursor}&from={}&to={}",
            text("from"),
            text("to")
        );
    }
}

/// So many records are written, and usage is what they add up to.
async fn adds_up(world: &World, case: &str, records: usize) -> Vec<Value> {
    let records = world
        .product
        .wait_events(&format!("{case}: {records} records"), |events| (events.len() >= records).then(|| events.to_vec()))
        .await;
    let (told, sums) = (told(world).await, sums(&records, key_of));
    assert!(told.keys().eq(sums.keys()), "{case}: {:?}\nand\n{:?}", told.keys(), sums.keys());
    for (key, sum) in &sums {
        check(&format!("{case}: {key:?}"), &told[key], sum);
    }
    let begun = |token: &str| {
        let of_it = records.iter().filter(|record| record["token_id"] == token && !record["attempt"].is_null());
        of_it.count() as u64
    };
    let state = world.token_state(&world.token.id).await;
    assert_eq!(state["request_count"].as_u64(), Some(begun(&world.token.id)), "{case}: {state}");
    records
}

fn recorded(name: &str, token: &str) -> Ask {
    fixture(name).ask(token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_what_the_records_add_up_to() {
    let world = World::new().await;
    let free = world.token.secret.as_str();
    let narrow = world.token_with(json!({"allowed_models": ["gpt-4o-mini"]})).await;
    let keys: Vec<Value> = Provider::ALL.iter().map(|of| json!({"api": of.name(), "key": of.key()})).collect();
    let elsewhere = world.project_with(&json!({"name": "elsewhere", "provider_keys": keys})).await;
    let foreign = world.token_of(&elsewhere, json!({})).await;
    let stream = fixture("anthropic-messages-stream-basic");
    let cut = format!("cut:{}", stream.event_ends()[6]);
    let asks = [
        recorded("openai-chat-basic", free),
        recorded("openai-chat-basic", free),
        recorded("openai-chat-basic", &foreign.secret),
        recorded("openai-chat-stream-usage", free).with("x-mock-pace-ms", "3"),
        recorded("openai-chat-cached-prompt", free),
        recorded("openai-chat-audio-input", &foreign.secret),
        recorded("openai-chat-o3-reasoning", free),
        recorded("openai-embeddings", free),
        recorded("openai-responses-stream-long-reasoning", free),
        recorded("anthropic-messages-cache-read", free),
        recorded("gemini-stream-thinking", &foreign.secret),
        recorded("azure-chat-stream", free),
        stream.ask(free),
        stream.ask(free).with("x-mock-fault", &cut),
        Provider::OpenAi.ask(free).with("x-mock-status", "429"),
        Provider::OpenAi.ask(free).with("x-mock-fault", "reset-head"),
        Provider::OpenAi.ask(&narrow.secret),
        Provider::OpenAi.ask(&narrow.secret).body(r#"{"model":"made-up","messages":[]}"#),
        Provider::OpenAi.at("POST", "/openai/nowhere", free).json("{}"),
        Provider::Gemini.ask("nonsense"),
    ];
    for ask in &asks {
        world.ask(ask).await;
    }
    let records = adds_up(&world, "one of each", asks.len()).await;
    let outcomes: BTreeSet<_> = records.iter().map(|record| record["outcome"].as_str().unwrap()).collect();
    assert!(outcomes.is_superset(&["finished", "refused", "upstream_cut"].into()), "{outcomes:?}");
    assert!(records.iter().any(|record| record["usage"]["source"] == "estimated"), "the cut stream's is");

    let all = |_: &Value| ();
    for (query, field, value) in [
        ("", "type", json!("exchange")),
        ("?api=openai", "api", json!("openai")),
        (&format!("?project_id={elsewhere}"), "project_id", json!(elsewhere)),
        (&format!("?token_id={}", narrow.id), "token_id", json!(narrow.id)),
        ("?model=made-up", "model_requested", json!("made-up")),
    ] {
        let told = world.admin.get(&format!("/manage/usage{query}")).await.expect(200);
        let of_it: Vec<Value> = records.iter().filter(|record| record[field] == value).cloned().collect();
        assert!(!of_it.is_empty() && told["data"].as_array().unwrap().len() == 1, "{query}: {told}");
        check(query, &told["data"][0], &sums(&of_it, all)[&()]);
    }

    // A flood of what nobody is known to have sent is sampled, and each record counts as many as it stands for.
    for _ in 0..40 {
        world.ask(&Provider::OpenAi.ask("nonsense")).await;
    }
    let nobodys = |records: &[Value]| -> u64 {
        let of_it = records.iter().filter(|record| record["project_id"].is_null());
        of_it.map(|record| record["count"].as_u64().unwrap()).sum()
    };
    let records = eventually(Duration::from_secs(20), "each refusal is in some record", async || {
        Some(world.product.events()).filter(|records| nobodys(records) >= 41)
    })
    .await;
    assert!(records.iter().any(|record| record["count"].as_u64() > Some(1)), "one that stands for several");
    adds_up(&world, "a flood", records.len()).await;
}

/// The database and its logs, of a product that does not run.
fn copy_database(from: &Path, to: &Path) {
    for name in ["llm-proxy.db", "llm-proxy.db-wal", "llm-proxy.db-shm"] {
        let (from, to) = (from.join(name), to.join(name));
        if from.exists() {
            std::fs::copy(from, to).unwrap();
        } else if to.exists() {
            std::fs::remove_file(to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_counted_once_through_kill_9_and_when_the_journal_is_counted_again() {
    const ROUNDS: usize = 4;
    const ASKS: usize = 25;
    let mut world = World::new().await;
    let backup = tempfile::tempdir().unwrap();
    let mut asked = 0;
    for round in 0..ROUNDS {
        let asks: Vec<Ask> = (0..ASKS)
            .map(|number| match number % 3 {
                0 => recorded("openai-chat-basic", &world.token.secret),
                1 => recorded("anthropic-messages-cache-read", &world.token.secret),
                _ => Provider::OpenAi.at("POST", "/openai/nowhere", &world.token.secret).json("{}"),
            })
            .collect();
        futures::future::join_all(asks.iter().map(|ask| world.ask(ask))).await;
        if round % 2 == 1 {
            // Some of it is in the store when the process dies.
            adds_up(&world, "before the kill", asked + ASKS).await;
        }
        // And one is certainly begun and not ended.
        let before = world.upstream_count();
        let mut hanging = world.connect().await;
        hanging.write(&Provider::OpenAi.ask(&world.token.secret).with("x-mock-fault", "hang-head").bytes()).await;
        eventually(Duration::from_secs(10), "the provider has it", async || {
            (world.upstream_count() > before).then_some(())
        })
        .await;
        world.product.kill9();
        drop(hanging);
        asked += ASKS + 1;
        if round == 1 {
            copy_database(&world.product.data_dir(), backup.path());
        }
        world.product.restart().await;
        let records = adds_up(&world, &format!("after kill {round}"), asked).await;
        let unknown = records.iter().filter(|record| record["outcome"] == "unknown").count();
        assert_eq!((records.len(), unknown), (asked, round + 1));
    }

    // The database of two kills ago does not know of what came since; the journal does.
    world.product.kill9();
    copy_database(backup.path(), &world.product.data_dir());
    world.product.restart().await;
    adds_up(&world, "with the database of a backup", asked).await;
    world.ask(&recorded("openai-chat-basic", &world.token.secret)).await;
    adds_up(&world, "and on from there", asked + 1).await;
    let told = world.admin.get("/manage/usage").await.expect(200);
    let usage = &told["data"][0]["usage"];
    let counted = ["input_tokens", "output_tokens"].map(|class| usage[class]["reported"].as_u64());
    let tokens = world.mock.stats().tokens;
    assert_eq!(counted, [Some(tokens.input), Some(tokens.output)], "by the provider's own count: {told}");
}
