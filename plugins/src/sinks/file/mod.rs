//! The consumer that writes records to a file, one JSON object a line: `events.jsonl`.
//!
//! Each event is written exactly once, also over `kill -9` of this process (`delivery.rs` says how), which is why this
//! sink has its own loop: a file can be asked what it holds, so nothing needs to be written twice; the dispatcher, whose
//! receivers cannot, would write a batch again after a crash. Reading the journal and writing the file are blocking
//! file IO, so the sink has a thread of its own. A full disk makes it wait and try again; the journal keeps what is not
//! written yet.
//!
//! The file is rotated by us, by size or age (`rotation.rs`), or by others: one that is moved away is left at the next
//! batch without a signal, one that is truncated is written on. What was moved away by us is compressed (`archive.rs`).
//! Whoever changes files that are written no more has the current one left first (`handle.rs`).

mod archive;
mod cursor;
mod delivery;
mod handle;
mod resume;
mod rotation;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::settings::{Problem, parsed};
use super::values::{Bytes, Count, FromText, Span, Text, Word, one_of};
use crate::dispatcher::{ConsumerLock, FOLDER, LockError};
use crate::journal::{Feed, JournalError};
use archive::Archivist;
use delivery::Delivery;
use handle::{Leaving, Wish};
use rotation::Rotation;

pub use handle::FileSinkHandle;

/// The file, where the settings name no other.
const FILE: &str = "events.jsonl";
const CURSOR: &str = "events.cursor";
/// What its lock is named by: no name that another sink can have.
const CONSUMER: &str = "events.jsonl";
/// Between two looks at the journal: short for a person who tails the file, long for a processor.
const PAUSE: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How the file is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSettings {
    /// Where it is, below `DATA_DIR` unless absolute. `None`: `events.jsonl`. Its folder must be there.
    pub path: Option<PathBuf>,
    /// A new file is begun before this one would be larger, in bytes. `None`: never for its size.
    pub rotate_bytes: Option<u64>,
    /// A new file is begun when this one is so old. `None`: never for its age.
    pub rotate_every: Option<Duration>,
    /// What becomes of files that were moved away.
    pub compress: Compression,
    /// How many files that were moved away are kept. `None`: all.
    pub keep: Option<u32>,
    /// When lines are brought to disk.
    pub fsync: Fsync,
}

/// What becomes of files that were moved away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// They stay as they are.
    #[default]
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

/// When lines are brought to disk. A crash of the process loses none in any case; what a power cut takes from the file
/// is written again from the journal, unless it is [`Fsync::Never`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// With every batch, before anything else is done.
    Always,
    /// Once a second.
    #[default]
    EverySecond,
    /// When the system likes. A power cut can take lines for good.
    Never,
}

impl FromText for Compression {
    const EXPECTED: &'static str = "one of none, gzip, zstd";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &[("none", Self::None), ("gzip", Self::Gzip), ("zstd", Self::Zstd)])
    }
}

impl FromText for Fsync {
    const EXPECTED: &'static str = "one of always, every_second, never";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &[("always", Self::Always), ("every_second", Self::EverySecond), ("never", Self::Never)])
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFile {
    path: Option<Text<Word>>,
    rotate_bytes: Option<Text<Bytes>>,
    rotate_every: Option<Text<Span>>,
    compress: Option<Text<Compression>>,
    keep: Option<Text<Count>>,
    fsync: Option<Text<Fsync>>,
}

impl FileSettings {
    /// The file, in `DATA_DIR` where the settings have no other path.
    pub fn path_in(&self, data_dir: &Path) -> PathBuf {
        data_dir.join(self.path.as_deref().unwrap_or(Path::new(FILE)))
    }

    /// Reads a sink of the type `file`.
    pub(super) fn read(tree: Value) -> Result<Self, Problem> {
        let file: FileFile = parsed(tree)?;
        let settings = Self {
            path: file.path.map(|path| PathBuf::from(path.0.0)),
            rotate_bytes: file.rotate_bytes.map(|bytes| bytes.0.0),
            rotate_every: file.rotate_every.map(|every| every.0.0),
            compress: file.compress.map_or(Compression::None, |compress| compress.0),
            keep: file.keep.map(|keep| keep.0.0),
            fsync: file.fsync.map_or(Fsync::EverySecond, |fsync| fsync.0),
        };
        let rotates = settings.rotate_bytes.is_some() || settings.rotate_every.is_some();
        let needs_rotation = [("compress", settings.compress != Compression::None), ("keep", settings.keep.is_some())];
        match needs_rotation.into_iter().find(|(_, is_set)| *is_set && !rotates) {
            Some((key, _)) => Err(Problem::at(key, "found it without `rotate_bytes` or `rotate_every`, expected one")),
            None => Ok(settings),
        }
    }
}

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
    /// Another process serves the file sink of this `DATA_DIR`.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal could not be read or synced.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The file is still written to.
    #[error("the file sink does not leave {path}: {reason}")]
    NotLeft {
        /// The file.
        path: PathBuf,
        /// Why, for people.
        reason: String,
    },
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
    /// Age of the oldest event that is not written; zero where none waits.
    pub lag: Duration,
    /// Steps that failed and were tried again, and rotations that failed.
    pub errors: u64,
    /// Records of the journal that were damaged or held no event.
    pub unreadable: u64,
    /// The last step failed, and is tried again.
    pub is_failing: bool,
    /// Its loop has ended.
    pub has_ended: bool,
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
    handle: FileSinkHandle,
    thread: Option<JoinHandle<()>>,
}

/// The sink's books, for whoever shows or needs them while the sink runs.
#[derive(Clone)]
pub struct Books {
    feed: Feed,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    delivered: AtomicU64,
    errors: AtomicU64,
    failed_rotations: AtomicU64,
    unreadable: AtomicU64,
    written_seq: AtomicU64,
    saved_seq: AtomicU64,
    oldest_us: AtomicI64,
    /// Why the last step failed, if it did.
    last_error: Mutex<Option<String>>,
    /// Set once the sink is to end: when it gives up on what is left.
    deadline: Mutex<Option<Instant>>,
    leaving: Leaving,
}

impl FileSink {
    /// Opens the file (mode 0600) and writes to it every event of the journal after the cursor in `data_dir`, from now
    /// until [`Self::drain`]. Looks through what an earlier run wrote after its cursor.
    ///
    /// # Errors
    /// [`FileSinkError::InUse`], [`FileSinkError::Lock`] and [`FileSinkError::Io`].
    pub fn start(settings: &FileSettings, data_dir: &Path, feed: impl Into<Feed>) -> Result<Self, FileSinkError> {
        let feed = feed.into();
        let locks = data_dir.join(FOLDER);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&locks);
        made.map_err(FileSinkError::at("create", &locks))?;
        let lock = ConsumerLock::take(&locks, CONSUMER)?;
        let path = settings.path_in(data_dir);
        let rotation = Rotation { bytes: settings.rotate_bytes, age: settings.rotate_every };
        let delivery = Delivery::open(&path, &data_dir.join(CURSOR), rotation, settings.fsync, &feed)?;
        let archives = Arc::new(Mutex::new(()));
        // After the file was opened: what was moved away has been looked at then.
        let has_work = settings.compress != Compression::None || settings.keep.is_some();
        let archivist = if has_work { Some(Archivist::start(&path, settings, Arc::clone(&archives))) } else { None };
        let archivist = archivist.transpose().map_err(FileSinkError::at("archive", &path))?;
        let progress = Arc::new(Progress::default());
        progress.note(&delivery);
        let thread = {
            let progress = Arc::clone(&progress);
            let named = thread::Builder::new().name("file-sink".to_owned());
            let serve = move || {
                run(delivery, &progress, archivist.as_ref());
                drop(lock);
            };
            named.spawn(serve).map_err(FileSinkError::at("write", &path))?
        };
        let handle = FileSinkHandle::new(path, archives, Arc::clone(&progress), thread.thread().clone());
        Ok(Self { books: Books { feed, progress }, handle, thread: Some(thread) })
    }

    /// A handle on the sink's files, for who changes those that are written no more.
    pub fn handle(&self) -> FileSinkHandle {
        self.handle.clone()
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
        let read = |figure: &AtomicU64| figure.load(Ordering::Acquire);
        let pending = self.feed.position().saturating_sub(read(&self.progress.written_seq));
        let oldest_us = u64::try_from(self.progress.oldest_us.load(Ordering::Acquire)).unwrap_or(0);
        let since = |us| SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(us))?.elapsed().ok();
        Stats {
            delivered: read(&self.progress.delivered),
            pending,
            // A clock that was set back gives no lag rather than a wrong one.
            lag: if pending == 0 || oldest_us == 0 { Duration::ZERO } else { since(oldest_us).unwrap_or_default() },
            errors: read(&self.progress.errors).saturating_add(read(&self.progress.failed_rotations)),
            unreadable: read(&self.progress.unreadable),
            is_failing: self.progress.last_error.lock().is_some(),
            has_ended: self.progress.leaving.has_ended(),
        }
    }

    /// Why the last step failed, until one works.
    pub fn last_error(&self) -> Option<String> {
        self.progress.last_error.lock().clone()
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
        self.oldest_us.store(delivery.oldest_us(), Ordering::Release);
        self.unreadable.store(delivery.unreadable(), Ordering::Release);
        self.failed_rotations.store(delivery.failed_rotations(), Ordering::Release);
    }
}

/// The last record of a journal that the file sink of a data directory needs no more, by its saved cursor; `None` where
/// it has none for this journal. For whoever keeps the journal while another process runs the sink.
///
/// # Errors
/// That of reading the cursor.
pub fn saved_cursor(data_dir: &Path, journal_id: &str) -> io::Result<Option<u64>> {
    let saved = cursor::Cursor::load(&data_dir.join(CURSOR))?;
    Ok(saved.filter(|cursor| cursor.journal == journal_id).map(|cursor| cursor.seq))
}

fn run(mut delivery: Delivery, progress: &Progress, archivist: Option<&Archivist>) {
    let _ended = progress.leaving.until_the_end();
    let mut retry_after = FIRST_RETRY;
    loop {
        progress.leaving.serve(|wish| match wish {
            Wish::Renew => delivery.renew(SystemTime::now()),
            Wish::Leave => {
                let is_left = delivery.leave(SystemTime::now())?;
                if let (true, Some(archivist)) = (is_left, archivist) {
                    archivist.wake();
                }
                Ok(is_left)
            }
        });
        // Read before the step, so that what was appended before the end was asked for is written.
        let deadline = *progress.deadline.lock();
        let is_late =
            |wait| deadline.is_some_and(|deadline| deadline.saturating_duration_since(Instant::now()) <= wait);
        let stepped = delivery.step(SystemTime::now()).and_then(|step| {
            if step.caught_up && deadline.is_some() { delivery.checkpoint().map(|()| step) } else { Ok(step) }
        });
        progress.note(&delivery);
        *progress.last_error.lock() = stepped.as_ref().err().map(ToString::to_string);
        match stepped {
            Ok(step) => {
                retry_after = FIRST_RETRY;
                if let (true, Some(archivist)) = (step.rotated, archivist) {
                    archivist.wake();
                }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_read_and_what_cannot_be_meant_is_refused() {
        let read = |tree: Value| FileSettings::read(tree).map_err(|problem| problem.to_string());
        assert_eq!(read(json!({})), Ok(FileSettings::default()));
        let full = json!({
            "path": "/var/log/llm-proxy/events.jsonl", "rotate_bytes": "1GiB", "rotate_every": "24h",
            "compress": "zstd", "keep": "30", "fsync": "always",
        });
        let expected = FileSettings {
            path: Some(PathBuf::from("/var/log/llm-proxy/events.jsonl")),
            rotate_bytes: Some(1 << 30),
            rotate_every: Some(Duration::from_secs(86_400)),
            compress: Compression::Zstd,
            keep: Some(30),
            fsync: Fsync::Always,
        };
        assert_eq!(read(full), Ok(expected));
        for (tree, expected) in [
            (json!({"compress": "lz4"}), "compress: found \"lz4\", expected one of none, gzip, zstd"),
            (json!({"compress": "gzip"}), "compress: found it without `rotate_bytes` or `rotate_every`, expected one"),
            (json!({"keep": "3"}), "keep: found it without `rotate_bytes` or `rotate_every`, expected one"),
            (json!({"rotate_bytes": "1G"}), "rotate_bytes: found \"1G\", expected a number of bytes"),
            (json!({"fsync": "no"}), "fsync: found \"no\", expected one of always, every_second, never"),
            (json!({"size": "1"}), "size: unknown key `size`, expected one of `path`"),
        ] {
            let problem = read(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{tree}: {problem}");
        }
    }
}
