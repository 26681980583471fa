//! Power cuts, simulated: a journal is appended to, synced, rotated, released and read, until the power goes at some
//! call, or the process is killed; then it is opened again, some rounds long. Whatever was reported as on disk must be
//! there, in order, and nothing that nobody wrote; every begin has its one end; and the journal goes on.
//!
//! `TORTURE_POWER_CUTS` says how many seeds are tried. A failure names its seed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::simulated::{Machine, records_in};
use super::*;
use crate::event::{Outcome, REASON_CRASHED};

const DIR: &str = "/journal";
const DEFAULT_SEEDS: u64 = 200;

struct Trial {
    dice: StdRng,
    machine: Machine,
    options: Options,
    /// Every record that may be there.
    known: BTreeMap<u64, Record>,
    /// The last one reported as on disk.
    promised: u64,
    /// The last one that must be there now.
    expected: u64,
    /// Those before this one may have been deleted.
    kept_from: u64,
    /// Exchanges that are begun and not ended, with the number of their begin.
    running: Vec<(u64, Uuid)>,
    next_id: u128,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let options = Options {
            mode: Mode::ALL[dice.random_range(0..3)],
            segment_bytes: dice.random_range(300..4_000),
            max_bytes: dice.random_bool(0.3).then(|| dice.random_range(3_000..20_000)),
            ..Options::default()
        };
        let (known, running) = (BTreeMap::new(), Vec::new());
        let (promised, expected, kept_from, next_id) = (0, 0, 1, 1);
        Self { dice, machine: Machine::new(seed), options, known, promised, expected, kept_from, running, next_id }
    }

    fn run(mut self) {
        for _ in 0..self.dice.random_range(3..=6) {
            if self.dice.random_bool(0.8) {
                let calls = self.dice.random_range(0..400);
                self.machine.cut_power_after(calls);
            }
            let journal = self.open();
            for _ in 0..self.dice.random_range(10..100) {
                self.step(&journal);
                if self.machine.is_off() {
                    break;
                }
            }
            if !self.machine.is_off() && self.dice.random_bool(0.3) {
                self.machine.kill_process();
                // What is in its files stays there.
                self.expected = journal.position();
            } else {
                self.cut_power();
            }
        }
        self.machine.cut_power_after(u64::from(u32::MAX));
        let journal = self.open();
        self.append(&journal, Kind::Admin, Uuid::from_u128(u128::MAX), Vec::new());
        self.sync(&journal);
        self.cut_power();
        self.open();
    }

    fn cut_power(&mut self) {
        self.machine.cut_power();
        self.expected = self.promised;
    }

    /// Opens the journal in a new process, however often the power goes meanwhile, and looks at what is there.
    fn open(&mut self) -> Journal {
        loop {
            let (disk, lock) = (self.machine.start_process(), tempfile::tempfile().unwrap());
            let opened = Journal::assemble(disk, lock, Path::new(DIR), self.options);
            if self.machine.is_off() {
                drop(opened);
                self.cut_power();
                continue;
            }
            let (journal, recovered) = opened.unwrap();
            assert_eq!(journal.position(), recovered.last_seq);
            self.look(recovered.last_seq);
            self.running.clear();
            return journal;
        }
    }

    /// What is there must be what was written, and all that was promised.
    fn look(&mut self, last_seq: u64) {
        let found = records_in(&self.machine.observe(), Path::new(DIR));
        assert!(found.is_sorted_by(|one, next| one.seq < next.seq), "numbers ascend from record to record");
        assert!(found.last().is_none_or(|last| last.seq <= last_seq));
        let mut ends: BTreeMap<Uuid, u32> = BTreeMap::new();
        for record in found.iter().filter(|record| record.kind == Kind::End) {
            *ends.entry(record.event_id).or_default() += 1;
        }
        assert!(ends.values().all(|ends| *ends == 1), "no exchange ends twice: {ends:?}");
        for record in &found {
            if record.kind == Kind::Begin {
                assert!(ends.contains_key(&record.event_id), "{} is begun and not ended", record.seq);
            }
            if self.known.get(&record.seq) != Some(record) {
                // Nobody but recovery writes a record that was not appended.
                assert!(record.seq > self.expected, "{} was written over", record.seq);
                assert_eq!(record.kind, Kind::End);
                let exchange = Exchange::decode(record.payload.as_slice()).unwrap();
                assert_eq!((exchange.outcome(), exchange.reason.as_deref()), (Outcome::Unknown, Some(REASON_CRASHED)));
            }
        }
        let found: BTreeMap<u64, Record> = found.into_iter().map(|record| (record.seq, record)).collect();
        for (seq, record) in &self.known {
            if (self.kept_from..=self.expected).contains(seq) {
                assert_eq!(found.get(seq), Some(record), "expected up to {}", self.expected);
            }
        }
        // A deleted segment comes back where the power went before its deletion was on disk.
        let deleted = std::mem::replace(&mut self.known, found).into_iter().filter(|(seq, _)| *seq < self.kept_from);
        for (seq, record) in deleted {
            self.known.entry(seq).or_insert(record);
        }
    }

    fn step(&mut self, journal: &Journal) {
        match self.dice.random_range(0..100) {
            0..45 => {
                let id = self.new_id();
                let endpoint = "x".repeat(self.dice.random_range(0..200));
                let begin = Begin { id: id.to_string(), endpoint, ..Begin::default() };
                let seq = self.append(journal, Kind::Begin, id, begin.encode_to_vec());
                self.running.push((seq, id));
            }
            45..82 if !self.running.is_empty() => {
                let (_, id) = self.running.swap_remove(self.dice.random_range(0..self.running.len()));
                let exchange = Exchange {
                    id: id.to_string(),
                    outcome: Outcome::Finished.into(),
                    model: Some("x".repeat(self.dice.random_range(0..200))),
                    ..Exchange::default()
                };
                self.append(journal, Kind::End, id, exchange.encode_to_vec());
            }
            82..86 => {
                let id = self.new_id();
                self.append(journal, Kind::Admin, id, vec![9; 30]);
            }
            86..92 => self.sync(journal),
            92..95 => self.release(journal),
            95..97 => self.keep_bound(journal),
            97 => assert!(journal.rotate().is_ok() || self.machine.is_off()),
            // In `lossy` the writing thread's part.
            _ => assert!(journal.inner.shared.write_out().is_ok() || self.machine.is_off()),
        }
    }

    fn new_id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    fn append(&mut self, journal: &Journal, kind: Kind, event_id: Uuid, payload: Vec<u8>) -> u64 {
        let seq = 1 + last_seq(journal);
        let appended = journal.append(kind, event_id, 5, &payload);
        // Where the power went meanwhile, it may be there all the same.
        self.known.insert(seq, Record { kind, seq, time_us: 5, event_id, payload });
        match appended {
            Ok(given) => assert_eq!(given, seq),
            Err(error) => assert!(self.machine.is_off(), "{error}"),
        }
        seq
    }

    fn sync(&mut self, journal: &Journal) {
        let (appended, position) = (last_seq(journal), journal.position());
        let (result, reached) = if self.dice.random_bool(0.5) {
            (journal.sync(), appended)
        } else {
            (journal.sync_through(position), position)
        };
        match result {
            Ok(()) => self.promised = self.promised.max(reached),
            Err(error) => assert!(self.machine.is_off(), "{error}"),
        }
    }

    fn release(&mut self, journal: &Journal) {
        let first_running = self.running.iter().map(|(seq, _)| *seq).min();
        // No consumer has a cursor beyond what is on disk.
        let most = first_running.map_or(u64::MAX, |first| first - 1).min(self.promised);
        let seq = self.dice.random_range(0..=most);
        self.kept_from = self.kept_from.max(seq + 1);
        assert!(journal.release(seq).is_ok() || self.machine.is_off());
    }

    fn keep_bound(&mut self, journal: &Journal) {
        let shared = &journal.inner.shared;
        let excess = shared.writer.lock().excess(self.options.max_bytes.unwrap_or(u64::MAX));
        self.kept_from = excess.last().map_or(self.kept_from, |(_, following)| self.kept_from.max(*following));
        assert!(shared.keep_bound().is_ok() || self.machine.is_off());
        let kept = shared.writer.lock();
        let is_kept =
            self.options.max_bytes.is_none_or(|most| kept.folder_bytes() <= most || kept.segments().len() <= 2);
        assert!(is_kept || self.machine.is_off());
    }
}

/// The number of the last record appended, written or not.
fn last_seq(journal: &Journal) -> u64 {
    let shared = &journal.inner.shared;
    match &shared.ring {
        Some(ring) => ring.counts(|| ()).0.last_seq,
        None => shared.writer.lock().last_seq(),
    }
}

#[test]
fn an_exchange_whose_begin_was_deleted_has_its_end_on_disk() {
    for seed in 0..DEFAULT_SEEDS {
        let machine = Machine::new(seed);
        let options = Options { mode: Mode::Strict, segment_bytes: 150, ..Options::default() };
        let open = || {
            let (disk, lock) = (machine.start_process(), tempfile::tempfile().unwrap());
            Journal::assemble(disk, lock, Path::new(DIR), options).unwrap().0
        };
        let (journal, id) = (open(), Uuid::from_u128(7));
        journal.append(Kind::Begin, id, 5, b"").unwrap();
        for other in 100..110 {
            journal.append(Kind::Admin, Uuid::from_u128(other), 5, &[9; 60]).unwrap();
        }
        journal.sync().unwrap();
        let exchange = Exchange { id: id.to_string(), outcome: Outcome::Finished.into(), ..Exchange::default() };
        journal.append_message(Kind::End, id, 5, &exchange).unwrap();
        // Nothing runs any more, and every consumer has passed what was on disk.
        assert!(journal.release(11).unwrap() > 0);
        machine.cut_power();
        let _opened = open();
        let found = records_in(&machine.observe(), Path::new(DIR));
        let ends = found.iter().filter(|record| (record.kind, record.event_id) == (Kind::End, id)).count();
        assert_eq!(ends, 1, "seed {seed}");
    }
}

#[test]
fn whatever_a_power_cut_takes_it_takes_nothing_that_was_promised() {
    let seeds = std::env::var("TORTURE_POWER_CUTS").ok();
    let seeds = seeds.map_or(DEFAULT_SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| Trial::new(seed).run())) {
            eprintln!("power cuts: seed {seed} of {seeds} failed");
            resume_unwind(panic);
        }
    }
    println!("power cuts: {seeds} seeds, none failed");
}
