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
use llm_proxy_plugins::journal::{Journal, Kind, Options};
use llm_proxy_plugins::sinks::file::{Compression, Drained, FileSettings, FileSink, FileSinkError};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(dir: &Path) -> (Journal, FileSink) {
    let (journal, _) = Journal::open(&dir.join("journal"), Options::default()).unwrap();
    let sink = FileSink::start(&FileSettings::default(), dir, &journal).unwrap();
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
fn a_sink_that_cannot_go_on_says_so_until_it_can_and_one_that_has_ended_says_that() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, sink) = start(dir.path());
    let books = sink.books();
    let becomes = |is_failing: bool| {
        let deadline = Instant::now() + PATIENCE;
        while books.stats().is_failing != is_failing {
            assert!(Instant::now() < deadline, "failing is not {is_failing}: {:?}", books.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // A folder where the next cursor is to be written.
    let next = dir.path().join("events.next");
    fs::create_dir(&next).unwrap();
    append(&journal, 10);
    becomes(true);
    assert!(books.last_error().is_some_and(|error| error.contains("cannot write")), "{:?}", books.last_error());
    fs::remove_dir(&next).unwrap();
    becomes(false);
    assert_eq!(books.last_error(), None);
    assert!(!books.stats().has_ended);
    assert_eq!(sink.drain(PATIENCE), Drained { remaining: 0 });
    assert!(books.stats().has_ended && written(dir.path()).len() == 10);
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

/// Ids of all events in the folder's files, compressed or not.
fn written_anywhere(dir: &Path) -> Vec<String> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = match name.rsplit_once('.') {
            Some((_, "jsonl")) => fs::read_to_string(&path).unwrap(),
            Some((_, "zst")) => {
                String::from_utf8(zstd::stream::decode_all(fs::File::open(&path).unwrap()).unwrap()).unwrap()
            }
            _ => continue,
        };
        let id = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        ids.extend(text.lines().map(id));
    }
    ids
}

#[test]
fn rotated_files_are_compressed_and_hold_every_event_once() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
    let settings = FileSettings { rotate_bytes: Some(200_000), compress: Compression::Zstd, ..FileSettings::default() };
    let mut expected = BTreeSet::new();
    for _ in 0..3 {
        let sink = FileSink::start(&settings, dir.path(), &journal).unwrap();
        for _ in 0..5 {
            expected.extend(append(&journal, 200));
            let deadline = Instant::now() + PATIENCE;
            while sink.books().stats().pending > 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert_eq!(sink.drain(PATIENCE), Drained { remaining: 0 });
    }
    let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let packed = || names().filter(|name| name.ends_with(".jsonl.zst")).count();
    let moved = || names().filter(|name| name.starts_with("events-") && name.ends_with(".jsonl")).count();
    // What the last run left is compressed by the next one.
    let _sink = FileSink::start(&settings, dir.path(), &journal).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while (packed() == 0 || moved() > 0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(packed() >= 5 && moved() == 0, "{:?}", names().collect::<Vec<_>>());
    let ids = written_anywhere(dir.path());
    assert_eq!(ids.len(), expected.len());
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn a_second_sink_in_the_same_directory_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _sink) = start(dir.path());
    let second = FileSink::start(&FileSettings::default(), dir.path(), &journal);
    let Err(FileSinkError::Lock(error)) = second else { panic!("a second one was let in") };
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
}
