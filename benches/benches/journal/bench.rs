//! What does the journal cost the request that it records, and how near does it come to what the disk can do? Run by
//! `cargo bench -p llm-proxy-benches --bench journal`; README.md beside the package says how to read the answer.
//!
//! Written to is the disk of the target folder, or the folder that `JOURNAL_BENCH_DIR` names.

mod append;
mod encode;
mod throughput;
mod typical;

use std::env;
use std::path::Path;
use std::time::Duration;

use criterion::Criterion;
use llm_proxy_plugins::journal::{Journal, Mode, Options};
use tempfile::TempDir;

// What the product runs with.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500))
        .nresamples(10_000)
        .configure_from_args();
    append::measure(&mut criterion);
    encode::measure(&mut criterion);
    let beside_plain = throughput::measure(&mut criterion);
    criterion.final_summary();
    if let Some(line) = beside_plain {
        println!("{line}");
    }
}

/// A folder on the disk that is asked, gone when dropped.
fn folder() -> TempDir {
    let place = env::var_os("JOURNAL_BENCH_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    tempfile::tempdir_in(place).expect("a folder can be made there")
}

/// A new journal, as the product opens it.
fn journal(dir: &Path, mode: Mode) -> Journal {
    let (journal, _) = Journal::open(dir, Options { mode, ..Options::default() }).expect("a new journal opens");
    journal
}
