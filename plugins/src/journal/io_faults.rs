//! Every call to the disk fails once: a journal is opened, appended to, synced, rotated, released, bounded, closed and
//! opened again, with its n-th call failing, for n from 0 until a run makes fewer calls. And a disk that is full.

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;

use super::simulated::{Fault, Machine, records_in};
use super::*;
use crate::event::{Body, Content, Outcome};

const DIR: &str = "/journal";

/// An end with captured bodies of this many bytes each.
fn exchange(body_bytes: usize) -> Exchange {
    let body = Body { bytes: 7, json: Some(vec![b'1'; body_bytes]), ..Body::default() };
    Exchange {
        id: "id".to_owned(),
        outcome: Outcome::Finished.into(),
        content: Some(Content { request: Some(body.clone()), response: Some(body), ..Content::default() }),
        ..Exchange::default()
    }
}

/// How a run ends before the journal is opened for the last time.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Close,
    PowerCut,
}

struct Run {
    machine: Machine,
    options: Options,
    /// Records whose append succeeded.
    taken: BTreeMap<u64, Record>,
    refused: u64,
    /// Those before this one may have been deleted.
    kept_from: u64,
}

impl Run {
    fn open(&self) -> Journal {
        let open = || {
            let (disk, lock) = (self.machine.start_process(), tempfile::tempfile().unwrap());
            Journal::assemble(disk, lock, Path::new(DIR), self.options)
        };
        // Only one call fails.
        open().or_else(|_| open()).unwrap().0
    }

    fn append(&mut self, journal: &Journal, kind: Kind, event_id: Uuid, payload: Vec<u8>) -> bool {
        let appended = journal.append(kind, event_id, 5, &payload);
        match &appended {
            Ok(seq) => {
                let record = Record { kind, seq: *seq, time_us: 5, event_id, payload };
                assert_eq!(self.taken.insert(*seq, record), None, "number {seq} was given twice");
            }
            Err(_) => self.refused += 1,
        }
        appended.is_ok()
    }

    fn work(&mut self, journal: &Journal) {
        for step in 0..36_u64 {
            let id = Uuid::from_u128(u128::from(step / 4));
            match step % 4 {
                0 => self.append(journal, Kind::Begin, id, Vec::new()),
                1 => self.append(journal, Kind::Admin, id, vec![9; 60]),
                2 => self.append(journal, Kind::Admin, id, Vec::new()),
                _ => self.append(journal, Kind::End, id, exchange(if step % 8 == 7 { 150 } else { 0 }).encode_to_vec()),
            };
            let shared = &journal.inner.shared;
            if step % 5 == 4 {
                let _ = shared.write_out();
            }
            if step % 9 == 8 {
                let _ = journal.sync();
            }
            if step == 20 {
                self.kept_from = self.kept_from.max(9);
                let _ = journal.release(8);
            }
            if step % 12 == 11 {
                let excess = shared.writer.lock().excess(self.options.max_bytes.unwrap());
                self.kept_from = excess.last().map_or(self.kept_from, |(_, following)| self.kept_from.max(*following));
                let _ = shared.keep_bound();
            }
        }
    }

    /// Every record taken is there, perhaps without its bodies, and nothing else but ends that opening has written.
    fn look(&self) -> u64 {
        let found = records_in(&self.machine.observe(), Path::new(DIR));
        assert!(found.is_sorted_by(|one, next| one.seq < next.seq));
        let found: BTreeMap<u64, Record> = found.into_iter().map(|record| (record.seq, record)).collect();
        let mut stripped = 0;
        for (seq, taken) in self.taken.range(self.kept_from..) {
            let found = found.get(seq).unwrap_or_else(|| panic!("{seq} is lost"));
            if found != taken {
                assert_eq!(strip::without_bodies(&taken.payload).as_ref(), Some(&found.payload), "{seq} is another");
                stripped += 1;
            }
        }
        for record in found.values().filter(|record| !self.taken.contains_key(&record.seq)) {
            let exchange = Exchange::decode(record.payload.as_slice()).unwrap();
            assert_eq!((record.kind, exchange.outcome()), (Kind::End, Outcome::Unknown), "{} is invented", record.seq);
        }
        stripped
    }
}

/// True if the run came as far as the call that fails.
fn run(mode: Mode, ending: Ending, fault: Fault, at: u64) -> bool {
    let options = Options { mode, segment_bytes: 900, max_bytes: Some(3_500), ..Options::default() };
    let machine = Machine::new(at);
    machine.fail_call(at, fault);
    let mut run = Run { machine, options, taken: BTreeMap::new(), refused: 0, kept_from: 1 };
    let journal = run.open();
    run.work(&journal);

    let works_again = run.append(&journal, Kind::Admin, Uuid::nil(), Vec::new())
        || run.append(&journal, Kind::Admin, Uuid::nil(), Vec::new());
    assert!(works_again);
    let stats = journal.stats();
    assert_eq!(stats.dropped, run.refused);
    assert_eq!(stats.written + stats.queued, run.taken.len() as u64);
    assert!(run.refused <= 1 && (mode != Mode::Lossy || run.refused == 0));
    match ending {
        Ending::Close => journal.close(),
        Ending::PowerCut => {
            // A sync that failed is made good by the next one.
            journal.sync().or_else(|_| journal.sync()).unwrap();
            run.machine.cut_power();
        }
    }
    let stats = journal.stats();
    assert_eq!((stats.written, stats.queued, stats.dropped), (run.taken.len() as u64, 0, run.refused));
    let stripped = run.look();
    assert!(stripped <= stats.stripped && stats.stripped <= 1);
    drop(journal);

    let journal = run.open();
    run.look();
    let last_seq = journal.position();
    let appended = || journal.append(Kind::Admin, Uuid::nil(), 5, b"new");
    let seq = appended().or_else(|_| appended()).unwrap();
    assert_eq!(seq, last_seq + 1);
    journal.sync().or_else(|_| journal.sync()).unwrap();
    let last = records_in(&run.machine.observe(), Path::new(DIR)).pop().unwrap();
    assert_eq!((last.seq, last.payload.as_slice()), (seq, b"new".as_slice()));
    run.machine.calls() > at
}

#[test]
fn whichever_call_fails_the_books_are_exact_and_the_journal_goes_on() {
    for mode in [Mode::Durable, Mode::Lossy] {
        for ending in [Ending::Close, Ending::PowerCut] {
            for fault in Fault::ALL {
                let mut at = 0;
                while run(mode, ending, fault, at) {
                    at += 1;
                }
                assert!(at > 50, "{mode:?} {ending:?} {fault:?}: {at} calls");
            }
        }
    }
}

#[test]
fn a_full_disk_costs_bodies_first_and_then_the_newest_records() {
    let machine = Machine::new(1);
    let (disk, lock) = (machine.start_process(), tempfile::tempfile().unwrap());
    let (journal, _) = Journal::assemble(disk, lock, Path::new(DIR), Options::default()).unwrap();
    let append = |body_bytes| journal.append_message(Kind::End, Uuid::nil(), 5, &exchange(body_bytes));
    assert_eq!(append(100).unwrap(), 1);

    machine.set_room(Some(1_000));
    assert_eq!(append(2_000).unwrap(), 2, "without its bodies there is room");
    let stats = journal.stats();
    assert_eq!((stats.written, stats.stripped, stats.dropped, stats.is_failing), (2, 1, 0, false));
    machine.set_room(Some(20));
    for dropped in 1..=3 {
        assert!(matches!(append(100), Err(JournalError::Io { action: "write", .. })));
        let stats = journal.stats();
        assert_eq!((stats.written, stats.stripped, stats.dropped, stats.is_failing), (2, 1, dropped, true));
    }
    assert!(journal.last_error().unwrap().contains("cannot write /journal/"));
    machine.set_room(None);
    assert_eq!(append(100).unwrap(), 3);
    assert_eq!((journal.stats().dropped, journal.last_error()), (3, None));

    let found = records_in(&machine.observe(), Path::new(DIR));
    let bodies = found.iter().map(|record| {
        let content = Exchange::decode(record.payload.as_slice()).unwrap().content.unwrap();
        [content.request, content.response]
            .map(|body| body.map(|body| (body.json.map(|json| json.len()), body.omitted)))
    });
    let (whole, omitted) = ((Some(100), None), (None, Some(strip::DISK_IS_FULL.to_owned())));
    assert!(bodies.eq([whole.clone(), omitted, whole].map(|body| [Some(body.clone()), Some(body)])));
}

#[test]
fn records_wait_in_memory_while_the_disk_is_full_and_are_written_when_it_is_not() {
    let machine = Machine::new(1);
    let (disk, lock) = (machine.start_process(), tempfile::tempfile().unwrap());
    let options = Options { mode: Mode::Lossy, segment_bytes: 5_000, ..Options::default() };
    let (journal, _) = Journal::assemble(disk, lock, Path::new(DIR), options).unwrap();
    let shared = &journal.inner.shared;
    machine.set_room(Some(2_000));
    for number in 1..=ring::MOST_RECORDS as u64 {
        assert_eq!(journal.append(Kind::Admin, Uuid::nil(), 5, b"abc").unwrap(), number);
    }
    assert!(shared.write_out().is_err());
    // As many as there is room for are written, and make room in memory.
    let written = 2_000 / (record::HEAD_BYTES + 3) as u64;
    for _ in 0..written {
        journal.append(Kind::Admin, Uuid::nil(), 5, b"abc").unwrap();
    }
    assert!(matches!(journal.append(Kind::Admin, Uuid::nil(), 5, b"abc"), Err(JournalError::MemoryFull)));
    let stats = journal.stats();
    assert_eq!((stats.written, stats.queued, stats.dropped), (written, ring::MOST_RECORDS as u64, 1));
    assert_eq!((journal.position(), stats.is_failing), (written, true), "no more can be read yet");

    machine.set_room(None);
    shared.write_out().unwrap();
    let stats = journal.stats();
    assert_eq!((stats.written, stats.queued, stats.dropped), (ring::MOST_RECORDS as u64 + written, 0, 1));
    assert_eq!(journal.position(), stats.written);
    assert!(stats.segments > 10, "{} segments", stats.segments);
    let found = records_in(&machine.observe(), Path::new(DIR));
    assert!(found.iter().map(|record| record.seq).eq(1..=stats.written));
}
