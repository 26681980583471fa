//! A full disk: requests are served, what cannot be kept is refused or counted, and everybody is told. Once there is
//! room again all is as before, without a restart.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::disk::{Disk, inside};
use llm_proxy_tests::{PATIENCE, Product, Provider, World, eventually, metric};
use serde_json::{Value, json};

/// How often the log may tell of lost records.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Requests on the full disk. A few of their records go into the last page of a file that has room for them.
const REQUESTS: usize = 60;

/// The record with this id, as soon as it is there.
async fn record(product: &Product, id: &str) -> Value {
    eventually(PATIENCE, "the record", async || {
        let text = fs::read_to_string(inside(product, "events.jsonl")).unwrap_or_default();
        // The last line may still be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut records = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.find(|record| record["id"] == id)
    })
    .await
}

#[tokio::test]
async fn a_full_disk_costs_records_and_changes_until_there_is_room_and_nothing_after() {
    let disk = Disk::find();
    let world = World::with(|options| disk.under(options, r#"exec "$0" server"#)).await;
    let limited = world.token_with(json!({"max_requests": 1000})).await;
    let revoked = world.token_with(json!({})).await;
    let ask = Provider::OpenAi.ask(&world.token.secret);
    let ask_limited = Provider::OpenAi.ask(&limited.secret);
    let ask_revoked = Provider::OpenAi.ask(&revoked.secret);
    let before = world.ask(&ask).await;
    assert_eq!(record(&world.product, &before.id()).await["outcome"], "finished");
    assert_eq!(world.ask(&ask_revoked).await.status, 200);

    disk.fill(&world.product);
    let full_since = Instant::now();
    for request in 0..REQUESTS {
        assert_eq!(world.ask(&ask).await.status, 200, "request {request}");
    }
    let path = format!("/manage/tokens/{}", revoked.id);
    for time in ["at first", "once it is known"] {
        let told = world.admin.delete(&path).await;
        assert_eq!((told.status, &told.json()["code"]), (503, &json!("store_unavailable")), "{time}: {}", told.text());
    }
    assert_eq!(world.ask(&ask_revoked).await.status, 200, "who was told that it failed can rely on it");
    let refused = world.ask(&ask_limited).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("store_unavailable")));
    let told = eventually(PATIENCE, "it is not ready", async || {
        let told = world.admin.get("/health/ready").await;
        (told.status != 200).then_some(told)
    });
    let told = told.await.expect(503);
    assert_eq!(told["code"], "not_ready", "{told}");
    assert!(told["detail"].as_str().unwrap().contains("cannot be written"), "{told}");
    let _ = world.admin.get("/health/live").await.expect(200);
    let failures = metric(&world.product.metrics().await, "llm_proxy_journal_failures_total", &[]);
    assert!(failures >= REQUESTS as f64, "{failures} records of {REQUESTS} requests were counted as lost");

    disk.free(&world.product);
    world.revoke(&revoked.id).await;
    assert_eq!(world.ask(&ask_revoked).await.status, 401);
    let after = world.ask(&ask_limited).await;
    assert_eq!(after.status, 200, "{}", after.text());
    assert_eq!(record(&world.product, &after.id()).await["outcome"], "finished");
    eventually(PATIENCE, "requests are counted again", async || {
        (world.token_state(&limited.id).await["request_count"] == 1).then_some(())
    })
    .await;
    let _ = world.token_with(json!({})).await;
    eventually(PATIENCE, "it is ready again", async || {
        (world.admin.get("/health/ready").await.status == 200).then_some(())
    })
    .await;

    let told = world.product.log().lines().filter(|line| line.contains("could not be written to the journal")).count();
    let most = 1 + full_since.elapsed().as_secs() / TOLD_EVERY.as_secs();
    assert!((1..=most).contains(&(told as u64)), "the log tells {told} times of lost records, at most {most} are due");
}

#[tokio::test]
async fn a_first_start_on_a_full_disk_says_which_file_it_was_and_is_in_nobodys_way() {
    // Where there is a little room the start comes further, and leaves more behind.
    const LITTLE_BY_LITTLE: &str = r#"for pages in 0 1 2 3 4 5; do
        cat /dev/zero >"$DATA_DIR/filler" 2>/dev/null
        truncate -s "-$((pages * 4096))" "$DATA_DIR/filler"
        "$0" server
        rm "$DATA_DIR/filler"
    done
    exec "$0" server"#;
    const BLOCK_BY_BLOCK: &str = r#"for blocks in 0 1; do
        ulimit -S -f $blocks
        "$0" server
    done
    ulimit -S -f unlimited
    exec "$0" server"#;
    let disk = Disk::find();
    let (script, starts) = match disk {
        Disk::Small(_) => (LITTLE_BY_LITTLE, 6),
        Disk::Forbidden => (BLOCK_BY_BLOCK, 2),
    };
    let world = World::with(|options| disk.under(options, script)).await;
    assert_eq!(world.ask(&Provider::OpenAi.ask(&world.token.secret)).await.status, 200);
    let log = world.product.log();
    let told: Vec<&str> = log.lines().filter(|line| line.starts_with("llm-proxy: ")).collect();
    assert_eq!(told.len(), starts, "{log}");
    let folder = world.product.data_dir();
    for line in &told {
        assert!(line.contains(&format!("{}/", folder.display())), "{line}");
    }
    assert!(told[0].contains("DATA_DIR") && told[0].contains("server.lock"), "{}", told[0]);
}
