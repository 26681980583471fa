//! The journal from outside: what is appended is read, whatever happened to the files in between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use llm_proxy_plugins::event::{Begin, Exchange, Message, Outcome, REASON_CRASHED};
use llm_proxy_plugins::journal::{Journal, JournalError, Kind, MAX_PAYLOAD_BYTES, Options, Reader, Record, Recovered};
use proptest::prelude::*;
use uuid::Uuid;

const HEADER_BYTES: usize = 40;
const RECORD_HEAD_BYTES: usize = 41;

fn open(dir: &Path) -> (Journal, Recovered) {
    Journal::open(dir, Options::default()).unwrap()
}

fn small_segments() -> Options {
    Options { segment_bytes: 4_096, ..Options::default() }
}

/// Appends ends with these payloads and lets the journal go.
fn write(dir: &Path, payloads: &[&[u8]]) {
    let (journal, _) = open(dir);
    for payload in payloads {
        journal.append(Kind::End, Uuid::now_v7(), 5, payload).unwrap();
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
fn what_is_appended_is_read_also_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered::default());
    assert_eq!(journal.position(), 0);
    assert!(rest(&mut journal.reader(0)).is_empty());

    let id = Uuid::now_v7();
    assert_eq!(journal.append(Kind::Begin, id, 41, b"one").unwrap(), 1);
    assert_eq!(journal.append(Kind::End, id, 42, b"").unwrap(), 2);
    assert_eq!(journal.position(), 2);
    let expected = [
        Record { kind: Kind::Begin, seq: 1, time_us: 41, event_id: id, payload: b"one".to_vec() },
        Record { kind: Kind::End, seq: 2, time_us: 42, event_id: id, payload: Vec::new() },
    ];
    let mut reader = journal.reader(0);
    assert_eq!(rest(&mut reader), expected);
    assert_eq!(journal.stats().written, 2);

    let journal_id = journal.id().to_owned();
    drop(journal);
    drop(reader);
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { last_seq: 2, ..Recovered::default() });
    assert_eq!(journal.id(), journal_id);
    assert_eq!(journal.append(Kind::End, id, 43, b"three").unwrap(), 3);
    assert_eq!(rest(&mut journal.reader(0))[..2], expected);
    assert_eq!(seqs(&rest(&mut journal.reader(1))), [2, 3]);
}

#[test]
fn a_record_lent_is_the_record_copied_also_from_segment_to_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small_segments()).unwrap();
    let mut reader = journal.reader(0);
    assert_eq!(reader.next_ref().unwrap(), None);
    for index in 0..200_u8 {
        let kind = if index % 3 == 0 { Kind::End } else { Kind::Begin };
        journal.append(kind, Uuid::now_v7(), index.into(), &vec![index; index.into()]).unwrap();
    }
    assert!(segments(dir.path()).len() > 3);
    let mut lent = Vec::new();
    while let Some(record) = reader.next_ref().unwrap() {
        lent.push(Record::from(record));
    }
    assert_eq!(lent, rest(&mut journal.reader(0)));
    assert_eq!(seqs(&lent), (1..=200).collect::<Vec<_>>());
    assert_eq!(lent[150].payload, [150_u8; 150]);
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let whole = RECORD_HEAD_BYTES + 3;
    for torn in 1..whole {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[b"one", b"two"]);
        let segment = segments(dir.path()).remove(0);
        let length = HEADER_BYTES + whole + torn;
        OpenOptions::new().write(true).open(&segment).unwrap().set_len(length as u64).unwrap();

        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered, Recovered { torn_bytes: torn as u64, last_seq: 1, ..Recovered::default() });
        assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, b"new").unwrap(), 2);
        let payloads: Vec<_> = rest(&mut journal.reader(0)).into_iter().map(|record| record.payload).collect();
        assert_eq!(payloads, [b"one", b"new"]);
    }
}

#[test]
fn a_bad_record_in_the_middle_is_counted_and_passed_over() {
    let whole = RECORD_HEAD_BYTES + 3;
    for at in 0..whole {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[b"one", b"two", b"six"]);
        let segment = segments(dir.path()).remove(0);
        let mut bytes = fs::read(&segment).unwrap();
        bytes[HEADER_BYTES + whole + at] ^= 0x41;
        fs::write(&segment, bytes).unwrap();

        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered, Recovered { bad_records: 1, last_seq: 3, ..Recovered::default() }, "byte {at}");
        let mut reader = journal.reader(0);
        assert_eq!(seqs(&rest(&mut reader)), [1, 3], "byte {at}");
        assert_eq!(reader.skipped(), 1);
        assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, b"new").unwrap(), 4);
        assert_eq!(seqs(&rest(&mut reader)), [4]);
    }
}

#[test]
fn a_damaged_segment_header_costs_no_record() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[b"one", b"two"]);
    let segment = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[9] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { last_seq: 2, ..Recovered::default() });
    journal.append(Kind::End, Uuid::nil(), 0, b"new").unwrap();
    assert_eq!(seqs(&rest(&mut journal.reader(0))), [1, 2, 3]);
}

#[test]
fn a_segment_that_a_crash_left_half_made_is_made_again() {
    for left in [0, 1, HEADER_BYTES - 1] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[b"one"]);
        let header = fs::read(&segments(dir.path())[0]).unwrap();
        fs::write(dir.path().join(format!("{:020}.seg", 2)), &header[..left]).unwrap();
        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered.last_seq, 1);
        assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, b"two").unwrap(), 2);
        assert_eq!(seqs(&rest(&mut journal.reader(0))), [1, 2]);
    }
}

#[test]
fn a_begin_without_end_ends_as_unknown_once() {
    let dir = tempfile::tempdir().unwrap();
    let (ended, unended) = (Uuid::now_v7(), Uuid::now_v7());
    let begin = Begin { id: unended.to_string(), project_id: "a-project".to_owned(), ..Begin::default() };
    let (journal, _) = open(dir.path());
    journal.append(Kind::Begin, ended, 1, b"").unwrap();
    journal.append_message(Kind::Begin, unended, 77, &begin).unwrap();
    journal.append(Kind::End, ended, 3, b"").unwrap();
    drop(journal);

    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { unknown_exchanges: 1, last_seq: 4, ..Recovered::default() });
    let record = journal.reader(3).next().unwrap().unwrap();
    assert_eq!((record.kind, record.event_id, record.time_us), (Kind::End, unended, 77));
    let exchange = Exchange::decode(record.payload.as_slice()).unwrap();
    assert_eq!(exchange.outcome(), Outcome::Unknown);
    assert_eq!(exchange.reason.as_deref(), Some(REASON_CRASHED));
    assert_eq!(exchange.project_id.as_deref(), Some("a-project"));
    assert_eq!(exchange.id, unended.to_string());
    drop(journal);

    let (_journal, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { last_seq: 4, ..Recovered::default() });
}

#[test]
fn a_second_opener_is_told_who_has_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let Err(JournalError::InUse { holder, .. }) = Journal::open(dir.path(), Options::default()) else {
        panic!("a second opener was let in");
    };
    assert_eq!(holder, std::process::id().to_string());
    journal.close();
    let error = journal.append(Kind::End, Uuid::nil(), 0, b"").unwrap_err();
    assert!(matches!(error, JournalError::Closed));
    open(dir.path());
}

#[test]
fn a_later_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[b"one"]);
    let segment = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..36]).to_le_bytes();
    bytes[36..40].copy_from_slice(&crc);
    fs::write(&segment, &bytes).unwrap();
    let refused = Journal::open(dir.path(), Options::default());
    assert!(matches!(refused, Err(JournalError::Version { version: 2, .. })));
    assert_eq!(fs::read(&segment).unwrap(), bytes);
}

#[test]
fn a_payload_too_large_is_refused_and_counted_and_the_largest_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let error = journal.append(Kind::End, Uuid::nil(), 0, &vec![1; MAX_PAYLOAD_BYTES + 1]).unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { .. }));
    assert_eq!((journal.position(), journal.stats().dropped), (0, 1));
    assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, &vec![1; MAX_PAYLOAD_BYTES]).unwrap(), 1);
    assert_eq!(rest(&mut journal.reader(0))[0].payload.len(), MAX_PAYLOAD_BYTES);
}

#[test]
fn segments_follow_each_other_and_go_once_everybody_has_passed_them() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small_segments()).unwrap();
    for _ in 0..100 {
        journal.append(Kind::End, Uuid::nil(), 0, &[7; 500]).unwrap();
    }
    let before = segments(dir.path());
    assert!(before.len() > 10);
    assert_eq!(journal.stats().segments, before.len() as u64);
    assert_eq!(seqs(&rest(&mut journal.reader(0))), (1..=100).collect::<Vec<_>>());
    assert_eq!(seqs(&rest(&mut journal.reader(60))), (61..=100).collect::<Vec<_>>());

    let mut slow = journal.reader(0);
    assert_eq!(slow.next().unwrap().unwrap().seq, 1);
    assert_eq!(journal.release(0).unwrap(), 0);
    assert!(journal.release(50).unwrap() > 0);
    let kept = rest(&mut journal.reader(50));
    assert_eq!(seqs(&kept), (51..=100).collect::<Vec<_>>());
    // A reader from the very start begins at the oldest record kept, and misses nothing on the way.
    let mut reader = journal.reader(0);
    let all_kept = seqs(&rest(&mut reader));
    assert!(all_kept[0] > 1 && all_kept[0] <= 51);
    assert_eq!(reader.skipped(), 0);

    journal.release(u64::MAX).unwrap();
    let left: Vec<_> = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    let (oldest, newer) = left.split_first().unwrap();
    let newer_bytes = newer.iter().sum::<u64>();
    assert!(oldest + newer_bytes >= 4_096, "as much as one segment stays: {left:?}");
    assert!(left.len() == 2 || (left.len() > 2 && newer_bytes < 4_096), "and no more than that: {left:?}");
    drop(journal);
    drop((slow, reader));
    let (journal, recovered) = Journal::open(dir.path(), small_segments()).unwrap();
    assert_eq!(recovered, Recovered { last_seq: 100, ..Recovered::default() });
    assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, b"").unwrap(), 101);
}

#[test]
fn a_missing_segment_is_counted_by_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small_segments()).unwrap();
    for _ in 0..30 {
        journal.append(Kind::End, Uuid::nil(), 0, &[7; 500]).unwrap();
    }
    drop(journal);
    let paths = segments(dir.path());
    let first_of = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let lost = first_of(&paths[2]) - first_of(&paths[1]);
    fs::remove_file(&paths[1]).unwrap();
    let (journal, recovered) = Journal::open(dir.path(), small_segments()).unwrap();
    assert_eq!(recovered, Recovered { bad_records: lost, last_seq: 30, ..Recovered::default() });
    assert_eq!(rest(&mut journal.reader(0)).len() as u64, 30 - lost);
}

#[test]
fn four_threads_append_and_a_reader_sees_every_record_once_in_order() {
    const EACH: u64 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, sync_every: Duration::from_millis(1), ..Options::default() };
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let total = 4 * EACH;
    let records = std::thread::scope(|scope| {
        for thread in 0..4_u128 {
            let journal = &journal;
            scope.spawn(move || {
                for index in 0..EACH {
                    let payload = vec![thread as u8; (index % 300) as usize];
                    journal.append(Kind::End, Uuid::from_u128(thread), index as i64, &payload).unwrap();
                }
            });
        }
        let mut reader = journal.reader(0);
        let mut records = Vec::new();
        while (records.len() as u64) < total {
            match reader.next().unwrap() {
                Some(record) => records.push(record),
                None => std::thread::yield_now(),
            }
        }
        assert_eq!(reader.next().unwrap(), None);
        assert_eq!(reader.skipped(), 0);
        records
    });
    assert_eq!(seqs(&records), (1..=total).collect::<Vec<_>>());
    for thread in 0..4_u128 {
        let of_thread = records.iter().filter(|record| record.event_id == Uuid::from_u128(thread));
        let mut expected: i64 = 0;
        for record in of_thread {
            assert_eq!(record.time_us, expected);
            assert_eq!(record.payload, vec![thread as u8; (expected % 300) as usize]);
            expected += 1;
        }
        assert_eq!(expected, EACH as i64);
    }
    drop(journal);
    let (_journal, recovered) = Journal::open(dir.path(), options).unwrap();
    assert_eq!(recovered, Recovered { last_seq: total, ..Recovered::default() });
}

#[test]
fn a_sync_covers_everything_appended_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) =
        Journal::open(dir.path(), Options { sync_every: Duration::from_secs(3_600), ..small_segments() }).unwrap();
    for _ in 0..20 {
        journal.append(Kind::End, Uuid::nil(), 0, &[7; 500]).unwrap();
    }
    journal.sync_through(20).unwrap();
    assert_eq!(journal.stats().unsynced, 0);
    journal.append(Kind::End, Uuid::nil(), 0, b"").unwrap();
    assert_eq!(journal.stats().unsynced, 1);
    journal.sync().unwrap();
    assert_eq!((journal.stats().unsynced, journal.stats().sync_failures), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_journal_cut_anywhere_keeps_what_was_before_the_cut_and_goes_on(
        sizes in prop::collection::vec(0..400_usize, 1..20),
        at in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let payloads: Vec<_> = sizes.iter().map(|size| vec![9_u8; *size]).collect();
        let borrowed: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
        write(dir.path(), &borrowed);
        let segment = segments(dir.path()).remove(0);
        let cut = at.index(usize::try_from(fs::metadata(&segment).unwrap().len()).unwrap() + 1);
        OpenOptions::new().write(true).open(&segment).unwrap().set_len(cut as u64).unwrap();

        let mut end = HEADER_BYTES;
        let whole = sizes.iter().take_while(|size| { end += RECORD_HEAD_BYTES + **size; end <= cut }).count() as u64;
        let (journal, recovered) = open(dir.path());
        prop_assert_eq!(recovered.last_seq, whole);
        prop_assert_eq!(recovered.bad_records, 0);
        prop_assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, b"new").unwrap(), whole + 1);
        prop_assert_eq!(seqs(&rest(&mut journal.reader(0))), (1..=whole + 1).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_a_folder_holds_it_opens_and_goes_on(junk in prop::collection::vec(any::<u8>(), 0..5_000)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{:020}.seg", 1)), junk).unwrap();
        let (journal, _) = open(dir.path());
        let seq = journal.append(Kind::End, Uuid::nil(), 0, b"new").unwrap();
        let last = rest(&mut journal.reader(0)).pop().unwrap();
        prop_assert_eq!((last.seq, last.payload.as_slice()), (seq, b"new".as_slice()));
    }
}
