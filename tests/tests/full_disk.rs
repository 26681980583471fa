//! A full disk: requests are served, what cannot be kept is refused or counted, and everybody is told. Once there is
//! room again all is as before, without a restart.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use llm_proxy_tests::{PATIENCE, Product, ProductOptions, Provider, World, binary, eventually, metric};
use serde_json::{Value, json};

/// How often the log may tell of lost records.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Requests on the full disk. A few of their records go into the last page of a file that has room for them.
const REQUESTS: usize = 60;

/// Run before the product: `DATA_DIR` is a disk of three megabytes.
const MOUNT: &str = r#"mkdir -p "$DATA_DIR" && mount -t tmpfs -o size=3m,mode=700 disk "$DATA_DIR" || exit"#;
/// Run before the product: a file that may not grow is an error instead of the end, and the log is no file.
const NO_SIGNAL: &str =
    r#"trap "" XFSZ; mkfifo "$DATA_DIR.log" || exit; cat "$DATA_DIR.log" & exec >"$DATA_DIR.log" 2>&1"#;

/// The disk under `DATA_DIR`, which can be filled and freed while the product runs.
#[derive(Clone, Copy)]
enum Disk {
    /// A small one, mounted where the product alone sees it, so that it goes with the process. The flags of `unshare` that
    /// get us there.
    Small(&'static [&'static str]),
    /// Where nobody may mount: the product is forbidden to write into files (`RLIMIT_FSIZE`). To it that is a failing
    /// disk; the error is another one.
    Forbidden,
}

impl Disk {
    fn find() -> Self {
        let own: [&[&str]; 2] = [&["--mount"], &["--map-root-user", "--mount"]];
        let mounts = |flags: &&[&str]| {
            let mut mount = Command::new("unshare");
            mount.args(*flags).args(["--", "mount", "-t", "tmpfs", "disk", "/tmp"]).stderr(Stdio::null());
            mount.status().is_ok_and(|status| status.success())
        };
        match own.into_iter().find(mounts) {
            Some(flags) => Self::Small(flags),
            None => {
                eprintln!("nothing can be mounted here: the disk is not full, but files may not be written");
                Self::Forbidden
            }
        }
    }

    /// Has the product run by this shell script, in which `"$0" server` is its command line.
    fn under(self, options: ProductOptions, script: &str) -> ProductOptions {
        let binary = binary();
        let binary = binary.to_str().unwrap();
        let run = |before| format!("{before}\n{script}");
        match self {
            Self::Small(flags) => {
                let script = run(MOUNT);
                let arguments = [flags, &["--", "/bin/sh", "-c", script.as_str(), binary]].concat();
                options.run_by(PathBuf::from("unshare"), &arguments)
            }
            Self::Forbidden => options.run_by(PathBuf::from("/bin/sh"), &["-c", &run(NO_SIGNAL), binary]),
        }
    }

    /// Leaves no room for a single octet.
    fn fill(self, product: &Product) {
        match self {
            Self::Small(_) => {
                let mut filler = File::create(inside(product, "filler")).unwrap();
                let error = loop {
                    if let Err(error) = filler.write_all(&[b'x'; 4096]) {
                        break error;
                    }
                };
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            }
            Self::Forbidden => limit_files(product, "0:"),
        }
    }

    fn free(self, product: &Product) {
        match self {
            Self::Small(_) => fs::remove_file(inside(product, "filler")).unwrap(),
            Self::Forbidden => limit_files(product, "unlimited:"),
        }
    }
}

/// A file in `DATA_DIR`, as the product sees it.
fn inside(product: &Product, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", product.pid(), product.data_dir().join(name).display()))
}

fn limit_files(product: &Product, limit: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args([format!("--pid={}", product.pid()), format!("--fsize={limit}")]);
    assert!(prlimit.status().unwrap().success(), "{prlimit:?}");
}

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
