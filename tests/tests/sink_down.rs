//! A sink that is down, or hangs, costs neither memory nor events: what it does not take waits in the journal, and once
//! it is back it gets all of it, each event once.
//!
//! `TORTURE_SINK_DOWN_EVENTS` is the number of events meanwhile.

#[path = "kill_matrix/receiver.rs"]
mod receiver;

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use llm_proxy_load::generate::{LoadOptions, Until, load};
use llm_proxy_tests::{PATIENCE, Provider, World, eventually};
use receiver::{Receiver, SECRET};
use tokio::time::sleep;

/// In an ordinary run.
const EVENTS: u64 = 10_000;
/// Looks at the memory, at equal distances.
const LOOKS: u64 = 10;
/// What an event may leave behind in memory, in bytes. The least that could be kept of each is its number, and that is
/// as long; a record has several hundred.
const MOST_BYTES_AN_EVENT: f64 = 8.0;
/// What two looks may differ by without anything being kept, in bytes: a batch under way, tables that double, the
/// database's cache. Where no sink is down they differ by about as much.
const NOISE_BYTES: f64 = 512.0 * 1024.0;
/// How long the receiver may take for all events, once it is back.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(300);

fn events() -> u64 {
    let told = std::env::var("TORTURE_SINK_DOWN_EVENTS").ok();
    told.map_or(EVENTS, |events| events.parse().expect("TORTURE_SINK_DOWN_EVENTS is a number"))
}

/// What is wrong with the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nobody listens.
    Refuses,
    /// Calls are accepted and never answered.
    Hangs,
}

/// `events.jsonl`, read on from where it was left.
struct Lines {
    path: PathBuf,
    read_bytes: u64,
    rest: String,
    ids: Vec<String>,
    exchanges: u64,
}

impl Lines {
    fn new(path: PathBuf) -> Self {
        Self { path, read_bytes: 0, rest: String::new(), ids: Vec::new(), exchanges: 0 }
    }

    fn read_on(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let mut more = Vec::new();
        file.seek(SeekFrom::Start(self.read_bytes)).unwrap();
        self.read_bytes += file.read_to_end(&mut more).unwrap() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&more));
        let end = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let whole: String = self.rest.drain(..end).collect();
        for line in whole.lines() {
            // The first field of each, and the second.
            let (id, more) = line.strip_prefix(r#"{"id":""#).and_then(|line| line.split_once('"')).expect(line);
            self.ids.push(id.to_owned());
            self.exchanges += u64::from(more.starts_with(r#","type":"exchange""#));
        }
    }
}

/// The least resident memory of half a second, in bytes: what is needed for a moment is not what is kept.
async fn resident_bytes(world: &World) -> f64 {
    let mut least = u64::MAX;
    for _ in 0..5 {
        least = least.min(world.product.memory_bytes().0);
        sleep(Duration::from_millis(100)).await;
    }
    least as f64
}

/// The slope of the straight line that is nearest to these points (least squares).
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x_mean, y_mean) =
        (points.iter().map(|(x, _)| x).sum::<f64>() / count, points.iter().map(|(_, y)| y).sum::<f64>() / count);
    let rise: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    rise / points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum::<f64>()
}

async fn endure(fault: Fault) {
    let mut receiver = Receiver::start().await;
    match fault {
        Fault::Refuses => receiver.kill().await,
        Fault::Hangs => receiver.hang(true),
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("settings.yaml");
    let world = World::with(|options| {
        let (url, pace) = (format!("http://{}/hook", receiver.addr()), "retry: {first: 20ms, longest: 200ms}");
        let hook = format!("{{type: webhook, url: '{url}', secret: {SECRET}, timeout: 500ms, {pace}}}");
        std::fs::write(&settings, format!("{}sinks:\n  hook: {hook}\n", options.yaml())).unwrap();
        // Pages that are free go back at once, so that the resident ones are those in use. By default the allocator keeps
        // them for ten seconds.
        options.set("CONFIG", settings.display()).set("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
    })
    .await;

    let share = events() / LOOKS;
    let asks = LoadOptions {
        addr: world.product.data_addr(),
        request: Provider::OpenAi.ask(&world.token.secret).bytes().into(),
        connections: 8,
        until: Until::Requests(share),
        keep_alive: true,
    };
    let mut lines = Lines::new(world.product.data_dir().join("events.jsonl"));
    let mut looks = Vec::new();
    for look in 1..=LOOKS {
        let report = load(&asks).await;
        let (answers, errors) = (report.statuses, report.errors);
        assert_eq!(
            answers.get(&200),
            Some(&share),
            "requests feel it that a sink is down: {answers:?}, {errors} broken"
        );
        // The other sink goes on, and what is written there waits for nobody.
        eventually(PATIENCE, "the file has them", async || {
            lines.read_on();
            (lines.exchanges >= share * look).then_some(())
        })
        .await;
        // Asking for metrics folds histograms, which else happens now and then.
        world.product.metrics().await;
        looks.push(((share * look) as f64, resident_bytes(&world).await));
    }
    assert!(receiver.kept().records.is_empty(), "the receiver was not down");
    if fault == Fault::Hangs {
        assert!(receiver.calls() > 0, "nobody has called the receiver");
    }
    let second_half = &looks[looks.len() / 2 - 1..];
    let half_events = (share * LOOKS / 2) as f64;
    let (found, most) = (slope(second_half), MOST_BYTES_AN_EVENT + NOISE_BYTES / half_events);
    println!("{fault:?}, {} events: {found:.1} bytes an event (at most {most:.1}); {looks:?}", share * LOOKS);
    assert!(found <= most, "memory grows by {found:.1} bytes an event while a sink is down, {most:.1} may: {looks:?}");

    match fault {
        Fault::Refuses => receiver.revive().await,
        Fault::Hangs => receiver.hang(false),
    }
    lines.read_on();
    eventually(CAUGHT_UP_WITHIN, "the receiver has them all", async || {
        sleep(Duration::from_millis(50)).await;
        (receiver.kept().records.len() >= lines.ids.len()).then_some(())
    })
    .await;
    lines.read_on();
    let kept = receiver.kept();
    assert_eq!(lines.exchanges, share * LOOKS, "exchanges in the file");
    assert_eq!(kept.faults, Vec::<String>::new());
    let in_file: HashSet<&String> = lines.ids.iter().collect();
    assert_eq!(in_file.len(), lines.ids.len(), "the file has records twice");
    let received: HashSet<&String> = kept.records.keys().collect();
    assert!(in_file == received, "the receiver has other records than the file");
    let twice = kept.records.values().filter(|taken| taken.times > 1).count();
    assert_eq!(twice, 0, "records came twice, and nothing has crashed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_nobody_listens_at_a_sink_and_it_gets_all_events_afterwards() {
    endure(Fault::Refuses).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_a_sink_hangs_and_it_gets_all_events_afterwards() {
    endure(Fault::Hangs).await;
}

#[test]
fn the_slope_is_that_of_the_line_through_the_points() {
    let near = |points: &[(f64, f64)], expected: f64| assert!((slope(points) - expected).abs() < 1e-9, "{points:?}");
    near(&[(0.0, 7.0), (10.0, 7.0), (20.0, 7.0)], 0.0);
    near(&[(1.0, 3.0), (2.0, 5.0), (4.0, 9.0)], 2.0);
    near(&[(0.0, 0.0), (1.0, 3.0), (2.0, 0.0), (3.0, 3.0)], 0.6);
}
