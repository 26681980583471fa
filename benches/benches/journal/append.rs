//! How long does a request wait for the journal? One iteration is what one exchange asks of it, the begin and the end
//! appended as the data plane appends them: encoding, checksum, lock, and in `strict` and `durable` a `pwrite(2)` each.
//! With two callers it is what one of them waits while the other one does the same.
//!
//! In `strict` the data plane then waits for the disk too; that is the disk's time and not measured.
//!
//! Exchanges come in bursts, and after each one everything is brought to disk before the clock goes on. Without that
//! pause no request of a real day would be measured but a flood: in `lossy` a memory that is full, in the other modes a
//! disk that never stops to write.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use llm_proxy_plugins::event::{Begin, Exchange};
use llm_proxy_plugins::journal::{Journal, Kind, Mode};

use crate::typical;

/// Exchanges of one caller in a burst. Those of two fit into the memory of `lossy` several times.
const BURST: u64 = 400;

/// Measures every mode with one caller and with two.
pub fn measure(criterion: &mut Criterion) {
    let records = Records { begin: typical::begin(), end: typical::end() };
    let mut group = criterion.benchmark_group("append_begin_and_end");
    for mode in Mode::ALL {
        for (callers, name) in [(1, "1_thread"), (2, "2_threads")] {
            let folder = crate::folder();
            let journal = crate::journal(folder.path(), mode);
            group.bench_function(BenchmarkId::new(mode.name(), name), |bencher| {
                bencher.iter_custom(|exchanges| records.append(&journal, callers, exchanges));
            });
            assert_eq!(journal.stats().dropped, 0, "what was measured were not appends");
        }
    }
    group.finish();
}

/// What an exchange appends.
struct Records {
    begin: Begin,
    end: Exchange,
}

impl Records {
    /// That many exchanges by each caller. Returns what a caller waited on average.
    fn append(&self, journal: &Journal, callers: u32, exchanges: u64) -> Duration {
        let mut waited = Duration::ZERO;
        let mut left = exchanges;
        while left > 0 {
            let burst = left.min(BURST);
            left -= burst;
            waited += self.append_at_once(journal, callers, burst);
            journal.sync().expect("the disk takes what was appended");
        }
        journal.release(journal.position()).expect("segments can be removed");
        waited
    }

    fn append_at_once(&self, journal: &Journal, callers: u32, exchanges: u64) -> Duration {
        let ready = AtomicU32::new(0);
        let caller = || {
            ready.fetch_add(1, Ordering::AcqRel);
            while ready.load(Ordering::Acquire) < callers {
                thread::yield_now();
            }
            let began = Instant::now();
            for _ in 0..exchanges {
                self.append_one(journal);
            }
            began.elapsed()
        };
        let waited = thread::scope(|scope| {
            let others: Vec<_> = (1..callers).map(|_| scope.spawn(caller)).collect();
            let own = caller();
            own + others.into_iter().map(|other| other.join().expect("every append succeeds")).sum::<Duration>()
        });
        waited / callers
    }

    fn append_one(&self, journal: &Journal) {
        journal
            .append_message(Kind::Begin, typical::ID, typical::RECEIVED_US, &self.begin)
            .and_then(|_| journal.append_message(Kind::End, typical::ID, typical::RECEIVED_US, &self.end))
            .expect("the journal takes both");
    }
}
