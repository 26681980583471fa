//! The dispatcher: brings events from the journal to sinks, each at its own pace, and loses none.
//!
//! One loop for every sink (`runner.rs`), with a lock, a cursor and a dead-letter file of its own in
//! `DATA_DIR/sinks/`. A sink only knows how to send ([`Sink`]); everything that all of them need stands here once:
//! * batches by count, bytes and age, and which events are in them (`window.rs`),
//! * retry with full jitter that honours `Retry-After` (`backoff.rs`), and a breaker (`breaker.rs`),
//! * events that a sink will never take, which are put aside with the reason while the queue moves on
//!   ([`dead_letters`]),
//! * filters and samples (`filter.rs`),
//! * how far it has come, keyed by the journal's random id (`cursor.rs`), by one process only (`lock.rs`),
//! * and the books (`books.rs`).
//!
//! The journal may be that of this process or of another one ([`Feed`]). What people send by hand, a range of time or the
//! dead letters, goes out by the same rules but past the cursor ([`send_all`]).
//!
//! Delivery is at least once: after a crash at most one batch of a sink is sent again, with the same ids. Memory is
//! bounded by one batch for each sink; what a sink that is down has not taken stays in the journal.

mod backoff;
mod books;
mod breaker;
mod cursor;
pub mod dead_letters;
mod filter;
mod lock;
mod once;
mod renew;
mod runner;
mod sink;
mod window;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use backoff::Backoff;
pub use books::{Books, Health, Stats};
pub use cursor::{lowest_cursor, saved_cursors};
pub use filter::{Filter, Match, Sample};
pub use lock::{ConsumerLock, LockError};
pub use once::{Progress, Sent, send_all};
pub use sink::{Event, Fault, Outcome, Sink};
pub use window::{Dead, Limits};

// What a loop over another source than a journal is made of.
pub(crate) use backoff::LONGEST_ASKED;
pub(crate) use books::add;
pub(crate) use breaker::{Breaker, Permit};
pub(crate) use dead_letters::{Body, DeadLetters, Letter};
pub(crate) use runner::Stop;
pub(crate) use window::{Choice, Settled, Window};

use crate::journal::Feed;
use books::Pages;
use runner::Runner;

/// The folder of locks, cursors and dead letters within `DATA_DIR`.
pub const FOLDER: &str = "sinks";

/// How one sink is served.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What makes a batch.
    pub limits: Limits,
    /// Waits after calls that got nothing through.
    pub backoff: Backoff,
    /// How often an event may fail alone, while others get through, before it is given up; above zero.
    pub max_attempts: u32,
    /// The least time from the start of one call to that of the next.
    pub pause: Duration,
    /// Which events the sink is meant to get.
    pub filter: Filter,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            limits: Limits { events: 500, bytes: 1 << 20, age: Duration::from_secs(1) },
            backoff: Backoff::default(),
            max_attempts: 10,
            pause: Duration::ZERO,
            filter: Filter::default(),
        }
    }
}

/// One sink to be served.
pub struct Job {
    /// Its name in the settings, which its files are named by: letters, digits, `-` and `_`.
    pub name: String,
    /// Where its events go.
    pub sink: Box<dyn Sink>,
    /// How.
    pub policy: Policy,
}

/// Why the dispatcher could not start.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// Another process serves one of the sinks, or its lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DispatcherError {
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// How one sink ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Its name.
    pub sink: String,
    /// Records of the journal that its cursor has not passed. The next start goes on with them.
    pub remaining: u64,
}

/// Sinks being served. Dropping it stops them in the middle of the call they are at; [`Dispatcher::drain`] lets them
/// finish.
pub struct Dispatcher {
    running: Vec<Running>,
}

struct Running {
    books: Books,
    stop: watch::Sender<Option<Instant>>,
    thread: Option<JoinHandle<()>>,
}

impl Dispatcher {
    /// Starts to serve all of these from a journal, with their files in the folder [`FOLDER`] of `data_dir`, which is
    /// made. A sink without a cursor for this journal begins with the oldest record that is kept.
    ///
    /// # Errors
    /// [`DispatcherError`]: none of them is served then.
    pub fn start(jobs: Vec<Job>, data_dir: &Path, feed: impl Into<Feed>) -> Result<Self, DispatcherError> {
        let feed = feed.into();
        let dir = data_dir.join(FOLDER);
        let mut dispatcher = Self { running: Vec::with_capacity(jobs.len()) };
        if jobs.is_empty() {
            return Ok(dispatcher);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(DispatcherError::at("create", &dir))?;
        for job in jobs {
            dispatcher.running.push(Running::start(job, &dir, &feed)?);
        }
        Ok(dispatcher)
    }

    /// The books of all sinks, for metrics, health, and for what may be deleted from the journal.
    pub fn books(&self) -> Vec<Books> {
        self.running.iter().map(|running| running.books.clone()).collect()
    }

    /// Delivers what the journal holds now, saves the cursors, and ends. Blocks; gives up after `patience`, which
    /// loses nothing: the next start goes on.
    pub fn drain(mut self, patience: Duration) -> Vec<Drained> {
        self.stop(patience);
        let drained = |books: &Books| Drained { sink: books.name().to_owned(), remaining: books.remaining() };
        self.running.iter().map(|running| drained(&running.books)).collect()
    }

    fn stop(&mut self, patience: Duration) {
        let now = Instant::now();
        let deadline = now.checked_add(patience).unwrap_or(now);
        for running in &self.running {
            running.stop.send_replace(Some(deadline));
        }
        for running in &mut self.running {
            if let Some(thread) = running.thread.take()
                && thread.join().is_err()
            {
                tracing::error!(sink = running.books.name(), "The loop of a sink has panicked; its events wait");
            }
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Running {
    fn start(job: Job, dir: &Path, feed: &Feed) -> Result<Self, DispatcherError> {
        let name = job.name.clone();
        let pages = Arc::new(Pages::default());
        let books = Books::new(&name, feed, Arc::clone(&pages));
        let runner = Runner::open(job, dir, feed, Arc::clone(&pages))?;
        let (stop, stopped) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(DispatcherError::at("serve", dir))?;
        let named = thread::Builder::new().name(format!("sink-{name}"));
        let spawned = named.spawn(move || {
            let _ending = Ending(pages);
            runtime.block_on(runner.run(Stop(stopped)));
            // A name that is still being looked up must not hold up the end.
            runtime.shutdown_background();
        });
        Ok(Self { books, stop, thread: Some(spawned.map_err(DispatcherError::at("serve", dir))?) })
    }
}

/// Notes the end of a loop, also by a panic.
struct Ending(Arc<Pages>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.has_stopped.store(true, Ordering::Release);
    }
}
