//! A journal read by who does not write it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llm_proxy_plugins::journal::{Feed, Follower, Journal, Kind, Options, Reader, Record, Recovered};
use uuid::Uuid;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(dir: &Path) -> (Journal, Recovered) {
    Journal::open(dir, Options { segment_bytes: 4_096, ..Options::default() }).unwrap()
}

fn append(journal: &Journal, records: u8) {
    for index in 0..records {
        journal.append(Kind::End, Uuid::now_v7(), index.into(), &vec![index; index.into()]).unwrap();
    }
}

fn rest(reader: &mut Reader) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        records.push(record);
    }
    records
}

fn seqs(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.seq).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

#[test]
fn every_record_is_seen_as_the_writer_sees_it_from_segment_to_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let follower = Follower::open(dir.path()).unwrap();
    assert_eq!((follower.id(), follower.position()), (journal.id(), 0));
    let mut reader = follower.reader(0);
    assert_eq!(reader.next().unwrap(), None);
    let mut followed = Vec::new();
    for _ in 0..5 {
        append(&journal, 100);
        assert_eq!(follower.position(), journal.position());
        followed.extend(rest(&mut reader));
    }
    assert!(segments(dir.path()).len() > 5);
    assert_eq!(followed, rest(&mut journal.reader(0)));
    assert_eq!(seqs(&followed), (1..=500).collect::<Vec<_>>());
    assert_eq!((reader.skipped(), reader.missed(), reader.last_seq()), (0, 0, 500));
    // From any place, with a follower that comes later too.
    for after in [0, 1, 250, 499, 500] {
        let expected = rest(&mut journal.reader(after));
        assert_eq!(rest(&mut follower.reader(after)), expected, "after {after}");
        assert_eq!(rest(&mut Follower::open(dir.path()).unwrap().reader(after)), expected, "after {after}");
    }
}

#[test]
fn nothing_is_locked_or_written_by_following() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let names = || {
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    // Nobody writes, and afterwards somebody does.
    let follower = Follower::open(dir.path()).unwrap();
    assert!(rest(&mut follower.reader(0)).is_empty());
    follower.sync_through(u64::MAX).unwrap();
    assert_eq!(names(), before);
    let (journal, _) = open(dir.path());
    append(&journal, 3);
    assert_eq!(follower.position(), 3);
    follower.sync_through(3).unwrap();
}

#[test]
fn a_writer_that_crashes_and_starts_again_is_followed_on() {
    for torn in [&b""[..], &[7; 30], &[0; 300]] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        let unended = Uuid::now_v7();
        journal.append(Kind::End, Uuid::now_v7(), 1, b"one").unwrap();
        journal.append(Kind::Begin, unended, 2, b"").unwrap();
        let follower = Follower::open(dir.path()).unwrap();
        let mut reader = follower.reader(0);
        assert_eq!(seqs(&rest(&mut reader)), [1, 2]);
        drop(journal);
        let newest = segments(dir.path()).pop().unwrap();
        OpenOptions::new().append(true).open(newest).unwrap().write_all(torn).unwrap();
        assert_eq!(reader.next().unwrap(), None);

        let (journal, recovered) = open(dir.path());
        assert_eq!((recovered.torn_bytes, recovered.unknown_exchanges), (torn.len() as u64, 1));
        journal.append(Kind::End, Uuid::now_v7(), 3, b"after").unwrap();
        let found = rest(&mut reader);
        assert_eq!(seqs(&found), [3, 4]);
        assert_eq!((found[0].event_id, found[1].payload.as_slice()), (unended, &b"after"[..]));
        assert_eq!((reader.skipped(), follower.id()), (0, journal.id()));
    }
}

#[test]
fn records_that_were_deleted_before_they_were_read_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    append(&journal, 200);
    let follower = Follower::open(dir.path()).unwrap();
    let feeds = [Feed::from(&journal), Feed::from(&follower)];
    let mut readers = feeds.clone().map(|feed| feed.reader(0));
    for reader in &mut readers {
        assert_eq!(reader.next().unwrap().unwrap().seq, 1);
    }
    assert!(journal.release(150).unwrap() > 1);
    for (mut reader, feed) in readers.into_iter().zip(&feeds) {
        let read = seqs(&rest(&mut reader));
        assert_eq!((read.len() as u64 + reader.missed(), read.last()), (199, Some(&200)));
        assert!(reader.missed() > 0 && reader.skipped() == 0, "{} missed", reader.missed());
        let oldest = feed.reader(0).next().unwrap().unwrap().seq;
        let mut late = feed.reader(10);
        assert_eq!((late.next().unwrap().unwrap().seq, late.missed()), (oldest, oldest - 11));
        // Who begins with whatever there is has missed nothing.
        let mut first = feed.reader(0);
        assert_eq!((seqs(&rest(&mut first)), first.missed()), ((oldest..=200).collect::<Vec<_>>(), 0));
    }
}

#[test]
fn a_follower_keeps_up_with_a_writer_that_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), Options { segment_bytes: 64 << 10, ..Options::default() }).unwrap();
    let follower = Follower::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..100).for_each(|_| append(&journal, 200)));
        let (mut reader, mut expected) = (follower.reader(0), 1);
        let deadline = Instant::now() + PATIENCE;
        while expected <= 20_000 {
            match reader.next_ref().unwrap() {
                Some(record) => {
                    assert_eq!(record.seq, expected);
                    let index = (record.seq - 1) % 200;
                    assert!(record.payload.iter().all(|byte| u64::from(*byte) == index));
                    assert_eq!(record.payload.len() as u64, index);
                    expected += 1;
                }
                None => assert!(Instant::now() < deadline, "only {} records came", expected - 1),
            }
        }
        assert_eq!((reader.skipped(), reader.missed()), (0, 0));
    });
}
