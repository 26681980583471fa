//! What a record is safe from is the operator's to choose: `JOURNAL_MODE` and `JOURNAL_MAX_BYTES`, from outside.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::disk::{Disk, inside};
use common::upstream::Upstream;
use llm_proxy_tests::{Answer, PATIENCE, Product, Provider, Raw, Refused, World, eventually, metric, run_binary};
use serde_json::{Value, json};

/// What a journal that must be written and cannot be is answered with.
const NOT_RECORDED: Refused = Refused::STORE;
/// Asked until nothing fits any more. A few records go into the last page of a file that has room for them.
const MOST_ROUNDS: usize = 60;
/// What the journal may take where it is bounded.
const BOUND: u64 = 16 << 20;
/// A record of nearly the largest size that there is.
const LARGE: usize = 500_000;

async fn in_mode(mode: &str) -> World {
    World::with(|options| options.set("JOURNAL_MODE", mode)).await
}

/// Asks so often on one connection, and returns the ids in their order.
async fn ask_often(world: &World, times: usize) -> Vec<String> {
    let mut raw = world.connect().await;
    let mut ids = Vec::new();
    for _ in 0..times {
        let answer = raw.exchange(&Provider::OpenAi.ask(&world.token.secret)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        ids.push(answer.id());
    }
    ids
}

/// The exchanges among these records, in their order.
fn exchanges(events: &[Value]) -> Vec<String> {
    let exchanges = events.iter().filter(|event| event["type"] == "exchange");
    exchanges.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits for so many exchanges in the file.
async fn in_file(product: &Product, count: usize) -> Vec<String> {
    let so_many = |events: &[Value]| Some(exchanges(events)).filter(|ids| ids.len() >= count);
    product.wait_events(&format!("{count} exchanges"), so_many).await
}

#[tokio::test]
async fn every_mode_records_exchanges_in_their_order_also_over_an_orderly_end() {
    for mode in ["strict", "durable", "lossy"] {
        let mut world = in_mode(mode).await;
        let mut ids = ask_often(&world, 60).await;
        assert_eq!(in_file(&world.product, ids.len()).await, ids, "{mode}");
        let stream = world.ask(&Provider::Anthropic.ask_stream(&world.token.secret)).await;
        assert!(stream.complete, "{mode}: {}", stream.text());
        let record = world.check_record(mode, &stream, "finished", None).await;
        assert_eq!(record["stream"], true, "{mode}: {record}");
        ids.push(stream.id());

        // Of the last of these nothing may have been written when the order to stop comes.
        ids.extend(ask_often(&world, 60).await);
        assert_eq!(world.product.sigterm(PATIENCE).await.code(), Some(0), "{mode}");
        world.product.restart().await;
        assert_eq!(in_file(&world.product, ids.len()).await, ids, "{mode}: after the end");
        ids.extend(ask_often(&world, 1).await);
        assert_eq!(in_file(&world.product, ids.len()).await, ids, "{mode}: and on");
        let failures = metric(&world.product.metrics().await, "llm_proxy_journal_failures_total", &[]);
        assert_eq!(failures, 0.0, "{mode}");
    }
}

#[tokio::test]
async fn kill_9_takes_nothing_but_in_lossy_where_it_takes_the_newest_at_most() {
    for mode in ["strict", "durable", "lossy"] {
        let mut world = in_mode(mode).await;
        let mut ids = ask_often(&world, 30).await;
        in_file(&world.product, ids.len()).await;
        let safe = ids.len();
        ids.extend(ask_often(&world, 30).await);
        world.product.kill9();
        world.product.restart().await;

        // Whatever was asked after the restart comes behind what the crash has left.
        let last = ask_often(&world, 1).await.remove(0);
        let find = |events: &[Value]| Some(exchanges(events)).filter(|ids| ids.contains(&last));
        let mut found = world.product.wait_events("an exchange after the crash", find).await;
        assert_eq!(found.pop(), Some(last), "{mode}: {found:?}");
        let least = if mode == "lossy" { safe } else { ids.len() };
        assert!((least..=ids.len()).contains(&found.len()), "{mode}: {} of {} are there", found.len(), ids.len());
        assert_eq!(found, ids[..found.len()], "{mode}: each once, in their order, and none between them is missing");
    }
}

/// Asks every provider, each in its own dialect.
async fn ask_all(world: &World) -> Vec<(Provider, Answer)> {
    let mut answers = Vec::new();
    for provider in Provider::ALL {
        answers.push((provider, Raw::ask(world.product.data_addr(), &provider.ask(&world.token.secret)).await));
    }
    answers
}

#[tokio::test]
async fn strict_sends_nothing_to_a_provider_that_it_cannot_record_and_goes_on_when_there_is_room() {
    let disk = Disk::find();
    let world = World::with(|options| disk.under(options, r#"exec "$0" server"#).set("JOURNAL_MODE", "strict")).await;
    assert!(ask_all(&world).await.iter().all(|(_, answer)| answer.status == 200));

    disk.fill(&world.product);
    let mut rounds = 0;
    while ask_all(&world).await.iter().any(|(_, answer)| answer.status == 200) {
        rounds += 1;
        assert!(rounds < MOST_ROUNDS, "requests are carried that cannot be on record");
    }
    let carried = world.upstream_count();
    for _ in 0..3 {
        for (provider, answer) in ask_all(&world).await {
            NOT_RECORDED.check("the journal is full", provider, &answer);
        }
    }
    assert_eq!(world.upstream_count(), carried, "a provider has heard of a request that was refused");
    assert!(metric(&world.product.metrics().await, "llm_proxy_journal_failures_total", &[]) >= 1.0);

    disk.free(&world.product);
    eventually(PATIENCE, "requests are carried again", async || {
        ask_all(&world).await.iter().all(|(_, answer)| answer.status == 200).then_some(())
    })
    .await;
    let answer = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    eventually(PATIENCE, "and are on record", async || {
        fs::read_to_string(inside(&world.product, "events.jsonl"))
            .is_ok_and(|text| text.contains(&answer.id()))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mode_or_a_bound_that_does_not_exist_stops_the_start_with_one_line() {
    for (name, value, words) in [
        ("JOURNAL_MODE", "typo", ["\"typo\"", "strict, durable, lossy"]),
        ("JOURNAL_MODE", "Strict", ["\"Strict\"", "strict, durable, lossy"]),
        ("JOURNAL_MAX_BYTES", "10G", ["\"10G\"", "a number of bytes"]),
        ("JOURNAL_MAX_BYTES", "0", ["\"0\"", "a number of"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let finished = run_binary(folder.path(), &["server"], &[(name, value)]).await;
        assert!(finished.code.is_some_and(|code| code != 0), "{value}: {finished:?}");
        let line = finished.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{value}: {finished:?}"));
        assert!(!line.contains('\n') && line.starts_with(&format!("llm-proxy: {name}: ")), "{value}: {finished:?}");
        for word in words {
            assert!(line.contains(word), "{value}: {word} is missing: {line}");
        }
        assert!(!folder.path().join("data").exists(), "{value}: a start that failed made files");
    }
}

/// Bytes of the journal's segments.
fn journal_bytes(data_dir: &Path) -> u64 {
    let entries = fs::read_dir(data_dir.join("journal")).unwrap();
    // One that goes meanwhile takes no room.
    entries.filter_map(|entry| Some(entry.unwrap().metadata().ok()?.len())).sum()
}

#[tokio::test]
async fn a_bound_holds_while_a_sink_is_stuck_and_what_that_costs_is_counted() {
    let open = Arc::new(AtomicBool::new(false));
    let (report, mut reported) = tokio::sync::mpsc::unbounded_channel();
    let gate = Arc::clone(&open);
    let receiver = Upstream::start(move |mut wire, _| {
        let (gate, report) = (Arc::clone(&gate), report.clone());
        async move {
            while let Some((_, body)) = wire.request().await {
                let is_open = gate.load(Ordering::SeqCst);
                if is_open {
                    let body: Value = serde_json::from_slice(&body).unwrap();
                    body["data"].as_array().unwrap().iter().for_each(|event| report.send(event["id"].clone()).unwrap());
                }
                let status = if is_open { "200 OK" } else { "503 Service Unavailable" };
                if wire.try_send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let sinks = format!(
        "sinks:\n  file: none\n  stuck: {{type: webhook, url: 'http://{}/', \
         secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, only: {{types: [exchange]}}, batch: {{events: 1}}, \
         retry: {{first: 20ms, longest: 100ms}}}}\n",
        receiver.addr
    );
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("with-sinks.yaml");
    let world = World::with(|options| {
        std::fs::write(&config, options.yaml() + &sinks).unwrap();
        options.set("CONFIG", config.display()).set("JOURNAL_MAX_BYTES", BOUND)
    })
    .await;
    let content = json!({"content": {"capture": "full", "max_bytes": 524_288}});
    let _ = world.admin.patch(&format!("/manage/projects/{}", world.project), &content).await.expect(200);

    let data_dir = world.product.data_dir();
    let body = format!(r#"{{"model":"gpt-4o-mini","messages":[],"padding":"{}"}}"#, "x".repeat(LARGE));
    let ask = Provider::OpenAi.ask(&world.token.secret).json(&body);
    let mut sent = 0;
    let mut last = String::new();
    while sent < 3 * BOUND {
        for _ in 0..4 {
            let answer = world.ask(&ask).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            last = answer.id();
            sent += LARGE as u64;
        }
        eventually(PATIENCE, "the journal is within its bound", async || {
            (journal_bytes(&data_dir) <= BOUND).then_some(())
        })
        .await;
    }
    let metrics = world.product.metrics().await;
    let written = metric(&metrics, "llm_proxy_journal_bytes_total", &[]);
    assert!(written > 2.0 * BOUND as f64, "only {written} bytes were ever written");
    let discarded = metric(&metrics, "llm_proxy_journal_discarded_total", &[]);
    assert!(discarded >= 1.0, "nothing was counted as discarded: {metrics}");
    assert_eq!(metric(&metrics, "llm_proxy_journal_failures_total", &[]), 0.0, "a bound is no failure");

    // The sink goes on with the oldest record that is left.
    open.store(true, Ordering::SeqCst);
    let until_last = async {
        while let Some(id) = reported.recv().await {
            if id == last.as_str() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, until_last).await.expect("the newest record reaches the sink");
    eventually(PATIENCE, "the sink has counted what it missed", async || {
        let told = world.admin.get("/manage/sinks").await.expect(200);
        let stuck = told["data"].as_array()?.iter().find(|sink| sink["name"] == "stuck")?.clone();
        (stuck["dropped"].as_u64()? >= 1 && stuck["delivered"].as_u64()? >= 1).then_some(())
    })
    .await;
}
