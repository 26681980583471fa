//! The consumer that writes finished exchanges to a file, one JSON object a line.
//!
//! Each event is written exactly once, also over `kill -9` of this process (`delivery.rs` says how). Reading the
//! journal and writing the file are blocking file IO, so the sink has a thread of its own. A full disk makes it wait
//! and try again; the journal keeps what is not written yet.

mod cursor;
mod delivery;
mod resume;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::journal::{Journal, JournalError};
use delivery::Delivery;

/// Between two looks at the journal: short for a person who tails the file, long for a processor.
const PAUSE: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Why the file sink could not start, or a step of it failed.
#[derive(Debug, thiserror::Error)]
pub enum FileSinkError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process, or another part of this one, writes the file.
    #[error("{path} is in use by another writer")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The journal could not be read or synced.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl FileSinkError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The state of the sink, for metrics and health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Events written since the sink was started.
    pub delivered: u64,
    /// Records of the journal that the sink has not come to yet.
    pub pending: u64,
    /// Steps that failed and were tried again.
    pub errors: u64,
    /// Records of the journal that were damaged or held no event.
    pub unreadable: u64,
}

/// How the sink ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Records that it had not come to. They are in the journal, and the next start goes on with them.
    pub remaining: u64,
}

/// A running file sink. Dropping it stops it after the step it is at; [`FileSink::drain`] lets it finish.
pub struct FileSink {
    books: Books,
    thread: Option<JoinHandle<()>>,
}

/// The sink's books, for whoever shows or needs them while the sink runs.
#[derive(Clone)]
pub struct Books {
    journal: Journal,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    delivered: AtomicU64,
    errors: AtomicU64,
    unreadable: AtomicU64,
    written_seq: AtomicU64,
    saved_seq: AtomicU64,
    /// Set once the sink is to end: when it gives up on what is left.
    deadline: Mutex<Option<Instant>>,
}

impl FileSink {
    /// Opens the file at `path` (mode 0600) and writes to it every event of `journal` after the cursor in
    /// `cursor_path`, from now until [`Self::drain`]. Looks through what an earlier run wrote after its cursor.
    ///
    /// # Errors
    /// [`FileSinkError::InUse`] and [`FileSinkError::Io`].
    pub fn start(path: &Path, cursor_path: &Path, journal: &Journal) -> Result<Self, FileSinkError> {
        let delivery = Delivery::open(path, cursor_path, journal)?;
        let progress = Arc::new(Progress::default());
        progress.note(&delivery);
        let thread = {
            let progress = Arc::clone(&progress);
            let named = thread::Builder::new().name("file-sink".to_owned());
            named.spawn(move || run(delivery, &progress)).map_err(FileSinkError::at("write", path))?
        };
        Ok(Self { books: Books { journal: journal.clone(), progress }, thread: Some(thread) })
    }

    /// A handle on the sink's books that outlives borrows of the sink.
    pub fn books(&self) -> Books {
        self.books.clone()
    }

    /// Writes what the journal holds now, saves the cursor, and ends. Blocks; gives up after `patience`, which loses
    /// nothing: the next start goes on.
    pub fn drain(mut self, patience: Duration) -> Drained {
        self.stop(patience);
        Drained { remaining: self.books.stats().pending }
    }

    fn stop(&mut self, patience: Duration) {
        if let Some(thread) = self.thread.take() {
            let now = Instant::now();
            *self.books.progress.deadline.lock() = Some(now.checked_add(patience).unwrap_or(now));
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("The file sink has panicked; its events are still in the journal");
            }
        }
    }
}

impl Books {
    /// The last record of the journal that a restart will not read again: what this consumer can release.
    pub fn cursor(&self) -> u64 {
        self.progress.saved_seq.load(Ordering::Acquire)
    }

    /// Figures for metrics and health.
    pub fn stats(&self) -> Stats {
        let written_seq = self.progress.written_seq.load(Ordering::Acquire);
        Stats {
            delivered: self.progress.delivered.load(Ordering::Acquire),
            pending: self.journal.position().saturating_sub(written_seq),
            errors: self.progress.errors.load(Ordering::Acquire),
            unreadable: self.progress.unreadable.load(Ordering::Acquire),
        }
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Progress {
    fn note(&self, delivery: &Delivery) {
        self.delivered.store(delivery.delivered(), Ordering::Release);
        self.written_seq.store(delivery.written_seq(), Ordering::Release);
        self.saved_seq.store(delivery.saved_seq(), Ordering::Release);
        self.unreadable.store(delivery.unreadable(), Ordering::Release);
    }
}

fn run(mut delivery: Delivery, progress: &Progress) {
    let mut retry_after = FIRST_RETRY;
    loop {
        // Read before the step, so that what was appended before the end was asked for is written.
        let deadline = *progress.deadline.lock();
        let is_late =
            |wait| deadline.is_some_and(|deadline| deadline.saturating_duration_since(Instant::now()) <= wait);
        let stepped = delivery.step().and_then(|step| {
            if step.caught_up && deadline.is_some() { delivery.checkpoint().map(|()| step) } else { Ok(step) }
        });
        progress.note(&delivery);
        match stepped {
            Ok(step) => {
                retry_after = FIRST_RETRY;
                if deadline.is_some() && (step.caught_up || is_late(Duration::ZERO)) {
                    return;
                }
                if !step.caught_up {
                    continue;
                }
                thread::park_timeout(PAUSE);
            }
            Err(error) => {
                progress.errors.fetch_add(1, Ordering::AcqRel);
                tracing::warn!(%error, retry_after_ms = retry_after.as_millis() as u64, "The file sink will try again");
                if is_late(retry_after) {
                    return;
                }
                thread::park_timeout(retry_after);
                retry_after = retry_after.saturating_mul(2).min(LAST_RETRY);
            }
        }
    }
}
