//! How fast is the journal beside a program that does nothing but write the same events to the same disk?
//!
//! One round is the same events brought to disk by every lane, one after the other, and every round has the order of the
//! one before reversed: what the disk does meanwhile meets all alike. Criterion measures the lanes one by one, and each
//! of its iterations is a whole round, so that the line at the end is of interleaved samples alone.
//!
//! The plain lanes sync where the journal's group commit does, after each [`Options::sync_bytes`]. They write the events
//! alone, the journal their heads and checksums too.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use llm_proxy_plugins::journal::{Journal, Kind, Mode, Options};
use tempfile::TempDir;

use crate::typical;

const EVENT_BYTES: usize = 1_024;
/// 32 MiB: every other sample has a change of segments in it.
const EVENTS: usize = 32_768;

/// A way to disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// The journal in `durable`.
    Journal,
    /// A write for each event. On return from it a crash of the process takes nothing, as `durable` promises.
    WriteEach,
    /// One write for all that is synced together: the disk's own pace, and no promise for any event before.
    WriteTogether,
}

impl Lane {
    const ALL: [Self; 3] = [Self::Journal, Self::WriteEach, Self::WriteTogether];

    const fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal_durable",
            Self::WriteEach => "plain_write_each",
            Self::WriteTogether => "plain_write_together",
        }
    }
}

/// Measures every lane. Returns the line that compares them, if there was a round.
pub fn measure(criterion: &mut Criterion) -> Option<String> {
    let mut rounds = Rounds::new();
    let mut group = criterion.benchmark_group("events_of_1_KiB");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(6));
    for lane in Lane::ALL {
        group.bench_function(lane.name(), |bencher| {
            bencher.iter_custom(|iterations| (0..iterations).map(|_| rounds.run().of(lane)).sum());
        });
    }
    group.finish();
    rounds.line()
}

/// What each lane took in one round.
#[derive(Clone, Copy, Default)]
struct Round([Duration; 3]);

impl Round {
    fn of(self, lane: Lane) -> Duration {
        self.0[lane as usize]
    }

    /// Events per second.
    fn rate(self, lane: Lane) -> f64 {
        EVENTS as f64 / self.of(lane).as_secs_f64()
    }
}

/// The rounds so far, and what it takes to run one.
struct Rounds {
    // Closed before its folder goes.
    journal: Journal,
    folder: TempDir,
    /// As many events as are synced together.
    batch: Vec<u8>,
    order: [Lane; 3],
    done: Vec<Round>,
}

impl Rounds {
    fn new() -> Self {
        let folder = crate::folder();
        let journal = crate::journal(&folder.path().join("journal"), Mode::Durable);
        let sync_bytes = usize::try_from(Options::default().sync_bytes).expect("a batch fits into memory");
        // Nothing that a disk could make smaller.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let batch: Vec<u8> = (0..sync_bytes / 8).flat_map(|_| random()).collect();
        Self { journal, folder, batch, order: Lane::ALL, done: Vec::new() }
    }

    fn run(&mut self) -> Round {
        let mut round = Round::default();
        for lane in self.order {
            round.0[lane as usize] = match lane {
                Lane::Journal => self.journal(),
                Lane::WriteEach => self.plain(EVENT_BYTES),
                Lane::WriteTogether => self.plain(self.batch.len()),
            };
        }
        self.order.reverse();
        self.done.push(round);
        round
    }

    fn journal(&self) -> Duration {
        let began = Instant::now();
        for event in self.batch.chunks(EVENT_BYTES).cycle().take(EVENTS) {
            let appended = self.journal.append(Kind::End, typical::ID, typical::RECEIVED_US, event);
            appended.expect("the disk takes an event");
        }
        self.journal.sync().expect("the disk takes the rest");
        let took = began.elapsed();
        self.journal.release(self.journal.position()).expect("segments can be removed");
        took
    }

    fn plain(&self, write_bytes: usize) -> Duration {
        let path = self.folder.path().join("plain");
        let mut file = File::create_new(&path).expect("a file can be made");
        let began = Instant::now();
        for _ in 0..EVENTS * EVENT_BYTES / self.batch.len() {
            for piece in self.batch.chunks(write_bytes) {
                file.write_all(piece).expect("the disk takes an event");
            }
            file.sync_data().expect("the disk takes a batch");
        }
        let took = began.elapsed();
        drop(file);
        std::fs::remove_file(&path).expect("the file can be removed");
        took
    }

    fn line(&self) -> Option<String> {
        let [_, rate, _] = self.quartiles(|round| round.rate(Lane::Journal))?;
        let mut line =
            format!("journal, {} interleaved rounds: {rate:.0} events/s of 1 KiB until synced", self.done.len());
        for (lane, what) in [
            (Lane::WriteEach, "a plain write for each event and fdatasync for each MiB"),
            (Lane::WriteTogether, "one plain write and fdatasync for each MiB"),
        ] {
            let [low, middle, high] = self.quartiles(|round| round.rate(Lane::Journal) / round.rate(lane))?;
            let [_, rate, _] = self.quartiles(|round| round.rate(lane))?;
            line.push_str(&format!("; {middle:.2} x ({low:.2} to {high:.2}) {what} ({rate:.0}/s)"));
        }
        Some(line)
    }

    /// The quartiles of what is asked of every round. `None` if there was none.
    fn quartiles(&self, of: impl Fn(Round) -> f64) -> Option<[f64; 3]> {
        let mut sorted: Vec<f64> = self.done.iter().map(|round| of(*round)).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        Some([1, 2, 3].map(|quarter| sorted[last * quarter / 4]))
    }
}
