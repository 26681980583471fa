//! The modes of the journal, its bound, and what it does with events that are too large, as the data plane sees them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use llm_proxy_plugins::event::{AdminAction, Begin, Body, Content, EventType, Exchange, Message, Usage};
use llm_proxy_plugins::journal::{Journal, JournalError, Kind, MAX_PAYLOAD_BYTES, Mode, Options, Record, Recovered};
use uuid::Uuid;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(dir: &Path, mode: Mode) -> Journal {
    Journal::open(dir, Options { mode, segment_bytes: 4_096, ..Options::default() }).unwrap().0
}

fn records(journal: &Journal) -> Vec<Record> {
    let mut reader = journal.reader(0);
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fn seqs(journal: &Journal) -> Vec<u64> {
    records(journal).iter().map(|record| record.seq).collect()
}

/// Waits for what a thread of the journal does.
fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

#[test]
fn modes_have_names_of_their_own_and_durable_is_the_default() {
    assert_eq!(Mode::ALL.map(Mode::name), ["strict", "durable", "lossy"]);
    assert_eq!(Options::default().mode, Mode::Durable);
}

#[test]
fn in_lossy_records_are_read_once_they_are_written_and_all_of_them_are() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), Mode::Lossy);
    assert_eq!(journal.mode(), Mode::Lossy);
    let mut reader = journal.reader(0);
    let mut found = Vec::new();
    for seq in 1..=500_u64 {
        let id = Uuid::from_u128(u128::from(seq));
        assert_eq!(journal.append(Kind::End, id, 5, &vec![7; seq as usize]).unwrap(), seq);
        let position = journal.position();
        while let Some(record) = reader.next().unwrap() {
            found.push(record);
        }
        assert!(found.len() as u64 >= position, "what the position covers is there");
        let stats = journal.stats();
        assert_eq!(stats.written + stats.queued + stats.dropped, seq);
    }
    until(|| journal.position() == 500);
    while let Some(record) = reader.next().unwrap() {
        found.push(record);
    }
    assert_eq!(found.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=500).collect::<Vec<_>>());
    for record in &found {
        assert_eq!(record.payload.len() as u64, record.seq);
        assert_eq!(record.event_id, Uuid::from_u128(u128::from(record.seq)));
    }
    assert_eq!(reader.skipped(), 0);
    journal.sync().unwrap();
    let stats = journal.stats();
    assert_eq!((stats.written, stats.queued, stats.dropped, stats.unsynced), (500, 0, 0, 0));
}

#[test]
fn what_waits_in_memory_is_written_when_the_journal_is_closed_or_goes() {
    for closes in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), Mode::Lossy);
        for _ in 0..300 {
            journal.append(Kind::End, Uuid::nil(), 5, &[7; 100]).unwrap();
        }
        if closes {
            journal.close();
            assert_eq!((journal.position(), journal.stats().queued, journal.stats().unsynced), (300, 0, 0));
            assert!(matches!(journal.append(Kind::End, Uuid::nil(), 5, b""), Err(JournalError::Closed)));
        }
        drop(journal);
        let (journal, recovered) = Journal::open(dir.path(), Options::default()).unwrap();
        assert_eq!(recovered, Recovered { last_seq: 300, ..Recovered::default() });
        assert_eq!(seqs(&journal), (1..=300).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_the_disk_is_told_whatever_the_mode() {
    for mode in Mode::ALL {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), mode);
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                let journal = journal.clone();
                tokio::spawn(async move {
                    let seq = journal.append(Kind::End, Uuid::nil(), 5, b"abc").unwrap();
                    journal.on_disk(seq).await.unwrap();
                    seq
                })
            })
            .collect();
        let mut seqs = Vec::new();
        for task in tasks {
            seqs.push(tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap());
        }
        seqs.sort_unstable();
        assert_eq!(seqs, (1..=64).collect::<Vec<_>>(), "{mode:?}");
        assert_eq!((journal.stats().unsynced, journal.stats().is_failing), (0, false));
    }
}

#[test]
fn an_event_too_large_for_a_record_gives_up_its_bodies_and_is_counted() {
    let body = |bytes| Body { bytes: 9, json: Some(vec![b'1'; bytes]), ..Body::default() };
    let exchange = |bytes| Exchange {
        id: "id".to_owned(),
        status: Some(200),
        content: Some(Content { request: Some(body(bytes)), response: Some(body(3)), ..Content::default() }),
        ..Exchange::default()
    };
    for mode in Mode::ALL {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), mode);
        journal.append_message(Kind::End, Uuid::nil(), 5, &exchange(1_000)).unwrap();
        journal.append_message(Kind::End, Uuid::nil(), 5, &exchange(MAX_PAYLOAD_BYTES)).unwrap();
        let usage =
            Usage { input_tokens: Some(3), provider_json: Some(vec![b'1'; MAX_PAYLOAD_BYTES]), ..Usage::default() };
        let larger = Exchange { usage: Some(usage), ..exchange(5) };
        journal.append(Kind::End, Uuid::nil(), 5, &larger.encode_to_vec()).unwrap();
        // A begin has nothing to give up.
        let begin = Begin { endpoint: "x".repeat(MAX_PAYLOAD_BYTES), ..Begin::default() };
        let error = journal.append_message(Kind::Begin, Uuid::nil(), 5, &begin).unwrap_err();
        assert!(matches!(error, JournalError::TooLarge { .. }));
        journal.sync().unwrap();
        let stats = journal.stats();
        assert_eq!((stats.written, stats.stripped, stats.dropped), (3, 2, 1), "{mode:?}");

        let found: Vec<_> =
            records(&journal).iter().map(|record| Exchange::decode(record.payload.as_slice()).unwrap()).collect();
        assert_eq!(found[0], exchange(1_000));
        let omitted = Some(Body { bytes: 9, omitted: Some("too large for a record".to_owned()), ..Body::default() });
        for exchange in &found[1..] {
            let content = exchange.content.clone().unwrap();
            assert_eq!((content.request, content.response), (omitted.clone(), omitted.clone()));
            assert_eq!(exchange.status, Some(200));
        }
        assert_eq!(found[1].reason, None);
        assert!(found[2].reason.as_deref().unwrap().contains("too large for a record"));
        assert_eq!(found[2].usage, Some(Usage { input_tokens: Some(3), ..Usage::default() }));
    }
}

#[test]
fn what_an_administrator_did_begins_nothing_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (begun, done) = (Uuid::now_v7(), Uuid::now_v7());
    let admin = Exchange {
        r#type: EventType::Admin.into(),
        admin: Some(AdminAction { action: "token.create".to_owned(), ..AdminAction::default() }),
        ..Exchange::default()
    };
    let journal = open(dir.path(), Mode::Durable);
    journal.append_message(Kind::Begin, begun, 5, &Begin::default()).unwrap();
    journal.append_message(Kind::Admin, done, 6, &admin).unwrap();
    // Whatever its id.
    journal.append_message(Kind::Admin, begun, 7, &admin).unwrap();
    drop(journal);
    let (journal, recovered) = Journal::open(dir.path(), Options::default()).unwrap();
    assert_eq!(recovered, Recovered { unknown_exchanges: 1, last_seq: 4, ..Recovered::default() });
    let found: Vec<_> = records(&journal).iter().map(|record| (record.kind, record.event_id)).collect();
    assert_eq!(found, [(Kind::Begin, begun), (Kind::Admin, done), (Kind::Admin, begun), (Kind::End, begun)]);
}

#[test]
fn above_its_bound_the_folder_loses_the_oldest_records_and_counts_those_that_were_wanted() {
    const MAX_BYTES: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 4_096,
        sync_every: Duration::from_millis(1),
        max_bytes: Some(MAX_BYTES),
        ..Options::default()
    };
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let append = || (0..100).for_each(|_| assert!(journal.append(Kind::End, Uuid::nil(), 5, &[7; 500]).is_ok()));
    append();
    until(|| journal.stats().bytes <= MAX_BYTES);
    let stats = journal.stats();
    let on_disk: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "seg"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert_eq!(stats.bytes, on_disk);
    assert!(stats.bytes > MAX_BYTES - 2 * 4_096, "no more than needed: {} bytes", stats.bytes);
    let kept = seqs(&journal);
    assert_eq!(stats.discarded_records, kept[0] - 1);
    assert_eq!(kept, (kept[0]..=100).collect::<Vec<_>>());

    // What every consumer has passed is no loss.
    journal.release(100).unwrap();
    append();
    until(|| journal.stats().bytes <= MAX_BYTES);
    let kept = seqs(&journal);
    assert!(kept[0] > 101);
    assert_eq!(journal.stats().discarded_records, stats.discarded_records + (kept[0] - 101));
}
