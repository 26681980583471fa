//! The journal: an append-only log on local disk of what exchanges did, and the only way from the data plane to sinks
//! and counters.
//!
//! An append is one `write(2)` under a short lock, by the task that carries the exchange. On return the record is in
//! the page cache, where it survives `kill -9` of this process; a power cut can take what was written within the last
//! [`Options::sync_every`]. No append waits for a sync. Consumers poll [`Journal::position`] on a beat of their own,
//! since waking them for every event would cost each exchange a system call.
//!
//! One process at a time holds a folder. Opening it repairs what a crash left: a torn tail is cut, damaged records are
//! passed over and counted, and every exchange begun but not ended gets an end with the outcome `unknown`.

mod reader;
mod record;
mod recovery;
mod segment;
mod sync;
mod writer;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

pub use reader::Reader;
pub use record::{Kind, MAX_PAYLOAD_BYTES, Record, RecordRef};

use crate::event::{Begin, Exchange, Message};
use recovery::Unended;
use writer::Writer;

const LOCK_FILE: &str = "journal.lock";

/// How a journal is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A segment that has reached this size is followed by a new one. 64 MiB.
    pub segment_bytes: u64,
    /// Longest time that a record stays unsynced. 50 ms.
    pub sync_every: Duration,
    /// Unsynced bytes that call for a sync before that. 1 MiB.
    pub sync_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, sync_every: Duration::from_millis(50), sync_bytes: 1 << 20 }
    }
}

/// What opening a journal found and repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Bytes cut from the end of the last segment: a record that a crash interrupted.
    pub torn_bytes: u64,
    /// Records lost to damage before the end, by the gap in their numbers.
    pub bad_records: u64,
    /// Exchanges found begun and not ended, and ended now as `unknown`.
    pub unknown_exchanges: u64,
    /// The number of the last record, those ends included; 0 in a new journal.
    pub last_seq: u64,
}

/// The state of a journal, for metrics and health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Records appended since the journal was opened.
    pub written: u64,
    /// Bytes of these.
    pub written_bytes: u64,
    /// Records that could not be appended since the journal was opened: full disk, too large, closed.
    pub dropped: u64,
    /// Segment files now.
    pub segments: u64,
    /// As [`Recovered::bad_records`].
    pub bad_records: u64,
    /// Syncs that failed since the journal was opened.
    pub sync_failures: u64,
    /// Records appended and not yet known to be on disk.
    pub unsynced: u64,
}

/// Why the journal did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused; for an append the record is not in the journal.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The payload exceeds [`MAX_PAYLOAD_BYTES`].
    #[error("a record of {payload_bytes} bytes exceeds the limit of {limit}", limit = MAX_PAYLOAD_BYTES)]
    TooLarge {
        /// Its size.
        payload_bytes: usize,
    },
    /// Another process, or another part of this one, has the folder open.
    #[error("the journal {dir} is in use by process {holder}")]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// Its process id as it left it in the lock file, or `unknown`.
        holder: String,
    },
    /// A later version of this program wrote the journal.
    #[error("{path} has format version {version}, this program reads {known}", known = segment::VERSION)]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// An open journal. Clones share it; the last one to go syncs and closes it.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    syncer: Mutex<Option<JoinHandle<()>>>,
}

/// What appenders, readers and the syncing thread share.
struct Shared {
    dir: PathBuf,
    id: String,
    sync_bytes: u64,
    bad_records: u64,
    writer: Mutex<Writer>,
    /// The last record appended. Stored after its bytes are in the file.
    position: AtomicU64,
    /// The last record known to be on disk.
    synced: AtomicU64,
    sync_failures: AtomicU64,
    sync_turn: Mutex<()>,
    syncing_thread: OnceLock<Thread>,
    stop: AtomicBool,
    lock: File,
}

impl Journal {
    /// Opens the journal in `dir`, which is made if need be, locks it and repairs it. Reads all of it: about a second
    /// for a gibibyte.
    ///
    /// # Errors
    /// [`JournalError::InUse`], [`JournalError::Version`], and [`JournalError::Io`] with the file it concerns.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovered), JournalError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(JournalError::at("create", dir))?;
        let lock = lock(dir)?;
        let found = recovery::survey(dir)?;
        let journal_id = found.journal.unwrap_or_else(Uuid::new_v4);
        let last_seq = found.recovered.last_seq;
        let next_seq = last_seq.saturating_add(1);
        let writer = match found.resume_at {
            Some(offset) => Writer::resume(dir, journal_id, options.segment_bytes, found.segments, offset, next_seq)?,
            None => Writer::begin(dir, journal_id, options.segment_bytes, found.segments, next_seq)?,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            id: journal_id.to_string(),
            sync_bytes: options.sync_bytes,
            bad_records: found.recovered.bad_records,
            writer: Mutex::new(writer),
            position: AtomicU64::new(last_seq),
            // Nobody knows how much of what was found had reached the disk: the first sync covers it all.
            synced: AtomicU64::new(0),
            sync_failures: AtomicU64::new(0),
            sync_turn: Mutex::new(()),
            syncing_thread: OnceLock::new(),
            stop: AtomicBool::new(false),
            lock,
        });
        let syncer = {
            let shared = Arc::clone(&shared);
            let named = thread::Builder::new().name("journal-sync".to_owned());
            named.spawn(move || sync::run(&shared, options.sync_every)).map_err(JournalError::at("sync", dir))?
        };
        // Set once, here.
        let _ = shared.syncing_thread.set(syncer.thread().clone());
        let journal = Self { inner: Arc::new(Inner { shared, syncer: Mutex::new(Some(syncer)) }) };
        let mut recovered = found.recovered;
        recovered.unknown_exchanges = journal.end_unended(found.unended);
        recovered.last_seq = journal.position();
        Ok((journal, recovered))
    }

    /// Gives every exchange that a crash left without its end one. Where the disk is full, the rest is left to the
    /// next start: their begins are still there.
    fn end_unended(&self, unended: Vec<Unended>) -> u64 {
        let mut ended: u64 = 0;
        for begun in unended {
            let begin = Begin::decode(begun.payload.as_slice()).unwrap_or_default();
            let mut exchange = Exchange::found_unended(begin);
            exchange.id = begun.event_id.to_string();
            // The time of the begin: when the exchange ended, nobody knows.
            if self.append_message(Kind::End, begun.event_id, begun.time_us, &exchange).is_err() {
                break;
            }
            ended = ended.saturating_add(1);
        }
        ended
    }

    /// The journal's own random id. A cursor belongs to one journal, and this says to which.
    pub fn id(&self) -> &str {
        &self.inner.shared.id
    }

    /// Appends one record and returns its number. On return it is in the page cache.
    ///
    /// # Errors
    /// [`JournalError::Io`], [`JournalError::TooLarge`], [`JournalError::Closed`]: the record is not in the journal,
    /// and is counted in [`Stats::dropped`].
    pub fn append(&self, kind: Kind, event_id: Uuid, time_us: i64, payload: &[u8]) -> Result<u64, JournalError> {
        self.append_with(kind, event_id, time_us, payload.len(), |buffer| buffer.extend_from_slice(payload))
    }

    /// As [`Self::append`], but encodes `message` straight into the journal's own buffer.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_message<M: Message>(
        &self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        message: &M,
    ) -> Result<u64, JournalError> {
        self.append_with(kind, event_id, time_us, message.encoded_len(), |buffer| {
            // Fails only where the buffer cannot grow, and this one can.
            let _ = message.encode(buffer);
        })
    }

    fn append_with(
        &self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        payload_bytes: usize,
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u64, JournalError> {
        let shared = &*self.inner.shared;
        let mut writer = shared.writer.lock();
        let owed_before = writer.owed_bytes();
        let seq = writer.append(kind, event_id, time_us, payload_bytes, write_payload)?;
        shared.position.store(seq, Ordering::Release);
        let owed_bytes = writer.owed_bytes();
        drop(writer);
        let crossed = owed_before < shared.sync_bytes && owed_bytes >= shared.sync_bytes;
        if crossed && let Some(thread) = shared.syncing_thread.get() {
            thread.unpark();
        }
        Ok(seq)
    }

    /// The number of the last record appended; 0 if there was none yet.
    pub fn position(&self) -> u64 {
        self.inner.shared.position()
    }

    /// A reader of the records after `after_seq`; 0 reads all that are kept.
    pub fn reader(&self, after_seq: u64) -> Reader {
        Reader::new(Arc::clone(&self.inner.shared), after_seq)
    }

    /// Brings every record appended so far to disk, and waits for it.
    ///
    /// # Errors
    /// [`JournalError::Io`]: they may not all be there.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.inner.shared.sync_now().map_err(JournalError::at("sync", &self.inner.shared.dir))
    }

    /// As [`Self::sync`], unless record `seq` is known to be on disk already.
    ///
    /// A consumer calls this before it saves a cursor. Without it a power cut could take records that the cursor has
    /// passed; their numbers would be given again, and the consumer would take the new records for read.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn sync_through(&self, seq: u64) -> Result<(), JournalError> {
        if self.inner.shared.synced.load(Ordering::Acquire) >= seq { Ok(()) } else { self.sync() }
    }

    /// Deletes the segments whose records all have numbers up to `seq`, the newest two excepted, and returns how many.
    ///
    /// `seq` is the lowest number that any consumer's saved cursor stands at, and lies before the begin of every
    /// exchange that still runs: a deleted begin could not tell of its exchange after a crash.
    ///
    /// # Errors
    /// [`JournalError::Io`]: a file is still there. The next start finds it again.
    pub fn release(&self, seq: u64) -> Result<usize, JournalError> {
        let shared = &*self.inner.shared;
        let released = shared.writer.lock().release(seq);
        for first_seq in &released {
            let path = segment::path(&shared.dir, *first_seq);
            fs::remove_file(&path).map_err(JournalError::at("remove", &path))?;
        }
        Ok(released.len())
    }

    /// Figures for metrics and health.
    pub fn stats(&self) -> Stats {
        let shared = &*self.inner.shared;
        let writer = shared.writer.lock();
        Stats {
            written: writer.counts.written,
            written_bytes: writer.counts.written_bytes,
            dropped: writer.counts.dropped,
            segments: writer.segments().len() as u64,
            bad_records: shared.bad_records,
            sync_failures: shared.sync_failures.load(Ordering::Relaxed),
            unsynced: writer.last_seq().saturating_sub(shared.synced.load(Ordering::Acquire)),
        }
    }

    /// Syncs what was appended, lets the folder go, and refuses every append from now on. What is there can still be
    /// read.
    pub fn close(&self) {
        self.inner.shared.writer.lock().close();
        self.inner.stop();
        // The lock also goes with the file handle.
        let _ = self.inner.shared.lock.unlock();
    }
}

impl Inner {
    /// Ends the syncing thread after its last sync.
    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(syncer) = self.syncer.lock().take() {
            syncer.thread().unpark();
            let _ = syncer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
        // A reader may outlive the journal, and must not keep its folder locked.
        let _ = self.shared.lock.unlock();
    }
}

impl Shared {
    fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// The segment that holds record `seq`, or the oldest one if it is gone.
    fn segment_of(&self, seq: u64) -> u64 {
        let writer = self.writer.lock();
        let segments = writer.segments();
        let holding = segments.iter().rev().find(|first_seq| **first_seq <= seq);
        holding.or(segments.first()).copied().unwrap_or(seq)
    }

    fn segment_after(&self, first_seq: u64) -> Option<u64> {
        self.writer.lock().segments().iter().copied().find(|next_first| *next_first > first_seq)
    }
}

/// Takes the folder's lock and leaves our process id in it.
fn lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join(LOCK_FILE);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.map_err(JournalError::at("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() }.to_owned();
            return Err(JournalError::InUse { dir: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(JournalError::at("lock", &path)(source)),
    }
    file.set_len(0).map_err(JournalError::at("write", &path))?;
    writeln!(file, "{}", std::process::id()).map_err(JournalError::at("write", &path))?;
    Ok(file)
}
