//! The file sink as the server runs it: a journal, a thread, a file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use llm_proxy_plugins::event::Exchange;
use llm_proxy_plugins::file_sink::{Drained, FileSink};
use llm_proxy_plugins::journal::{Journal, Kind, Options};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(dir: &Path) -> (Journal, FileSink) {
    let (journal, _) = Journal::open(&dir.join("journal"), Options::default()).unwrap();
    let sink = FileSink::start(&dir.join("events.jsonl"), &dir.join("events.cursor"), &journal).unwrap();
    (journal, sink)
}

fn append(journal: &Journal, events: usize) -> BTreeSet<String> {
    let ids: BTreeSet<_> = (0..events).map(|_| Uuid::now_v7()).collect();
    for id in &ids {
        let exchange = Exchange { id: id.to_string(), ..Exchange::default() };
        journal.append(Kind::Begin, *id, 0, b"").unwrap();
        journal.append_message(Kind::End, *id, 0, &exchange).unwrap();
    }
    ids.iter().map(Uuid::to_string).collect()
}

fn written(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let id = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    text.lines().map(id).collect()
}

#[test]
fn draining_writes_everything_and_the_next_run_writes_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = BTreeSet::new();
    for run in 0..3 {
        let (journal, sink) = start(dir.path());
        assert_eq!(sink.books().cursor(), journal.position(), "run {run}");
        expected.extend(append(&journal, 1_500));
        assert_eq!(sink.drain(PATIENCE), Drained { remaining: 0 });
        let lines = written(dir.path());
        assert_eq!(lines.len(), expected.len(), "run {run}");
        assert_eq!(lines.into_iter().collect::<BTreeSet<_>>(), expected, "run {run}");
    }
}

#[test]
fn events_appear_while_the_sink_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, sink) = start(dir.path());
    let expected = append(&journal, 10);
    let deadline = Instant::now() + PATIENCE;
    while sink.books().stats().delivered < 10 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(written(dir.path()).into_iter().collect::<BTreeSet<_>>(), expected);
    let stats = sink.books().stats();
    assert_eq!((stats.delivered, stats.pending, stats.errors, stats.unreadable), (10, 0, 0, 0));
}

#[test]
fn a_sink_stopped_short_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = BTreeSet::new();
    for run in 0..5 {
        let (journal, sink) = start(dir.path());
        expected.extend(append(&journal, 2_000));
        if run % 2 == 0 {
            drop(sink);
        } else {
            sink.drain(PATIENCE);
        }
    }
    let (_journal, sink) = start(dir.path());
    assert_eq!(sink.drain(PATIENCE), Drained { remaining: 0 });
    let lines = written(dir.path());
    assert_eq!(lines.len(), expected.len());
    assert_eq!(lines.into_iter().collect::<BTreeSet<_>>(), expected);
}
