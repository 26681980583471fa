//! The journal: an append-only log on local disk of what exchanges did, and the only way from the data plane to sinks
//! and counters.
//!
//! An append is one write under a short lock, by the task that carries the exchange. On return the record is in the
//! page cache, where it survives `kill -9` of this process; a power cut can take what was written within the last
//! [`Options::sync_every`]. No append waits for a sync. Consumers poll [`Journal::position`] on a beat of their own,
//! since waking them for every event would cost each exchange a system call.
//!
//! That is [`Mode::Durable`]. In [`Mode::Strict`] the data plane also waits, by [`Journal::on_disk`], until the begin of
//! an exchange would survive a power cut. In [`Mode::Lossy`] an append only encodes the record into memory, and a thread
//! writes what has gathered there: a crash takes what waits, and no request makes a system call for its record.
//!
//! Where there is no room for a record, it is written without the bodies that were captured, and dropped only if even
//! that does not fit. One that is larger than a record may be gives up its bodies too, so that no event is an error for
//! being large. Both are counted.
//!
//! One process at a time holds a folder. Opening it repairs what a crash left: a torn tail is cut, damaged records are
//! passed over and counted, and every exchange begun but not ended gets an end with the outcome `unknown`.
//!
//! All of it stands on a small table of calls, `disk.rs`, so that tests put a disk below it that loses its power at any
//! call, or fails at any.

mod bound;
mod disk;
mod error;
mod feed;
mod follow;
mod options;
mod reader;
mod record;
mod recovery;
mod rewrite;
mod ring;
mod segment;
mod strip;
mod sync;
mod writer;

#[cfg(test)]
mod io_faults;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod simulated;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

pub use error::JournalError;
pub use feed::Feed;
pub use follow::Follower;
pub use options::{Mode, Options, Recovered, Stats};
pub use reader::Reader;
pub use record::{Kind, MAX_PAYLOAD_BYTES, Record, RecordRef};
pub(crate) use rewrite::{Rewritten, note_erasure, sweep};

use crate::event::{Begin, Exchange, Message};
use disk::{Disk, LocalDisk};
use recovery::Unended;
use ring::Ring;
use sync::Progress;
use writer::{Folder, Writer};

const LOCK_FILE: &str = "journal.lock";

/// An open journal. Clones share it; the last one to go syncs and closes it.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What appenders, readers and the journal's threads share.
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: String,
    mode: Mode,
    sync_bytes: u64,
    max_bytes: Option<u64>,
    bad_records: u64,
    writer: Mutex<Writer>,
    /// In `lossy`, what waits to be written.
    ring: Option<Ring>,
    /// The last record in the files. Stored after its bytes are there.
    position: AtomicU64,
    /// The last record known to be on disk.
    synced: AtomicU64,
    /// The same, for those who wait.
    progress: watch::Sender<Progress>,
    sync_failures: AtomicU64,
    sync_error: Mutex<Option<String>>,
    sync_turn: Mutex<()>,
    /// Held by whoever deletes segments or puts others in their places.
    removal_turn: Mutex<()>,
    /// The last record that every consumer had passed when segments were released.
    released: AtomicU64,
    syncing_thread: OnceLock<Thread>,
    writing_thread: OnceLock<Thread>,
    stop: AtomicBool,
    finished: AtomicBool,
    lock: File,
}

impl Journal {
    /// Opens the journal in `dir`, which is made if need be, locks it and repairs it. Reads all of it: about a second
    /// for a gibibyte.
    ///
    /// # Errors
    /// [`JournalError::InUse`], [`JournalError::Version`], and [`JournalError::Io`] with the file it concerns.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovered), JournalError> {
        let is_new = !dir.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(JournalError::at("create", dir))?;
        if is_new && let Some(parent) = dir.parent() {
            // Else a power cut could take the folder, with all that was synced in it.
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            LocalDisk.sync_folder(parent).map_err(JournalError::at("sync", parent))?;
        }
        let lock = lock(dir)?;
        let (journal, recovered) = Self::assemble(Arc::new(LocalDisk), lock, dir, options)?;
        journal.start(options)?;
        Ok((journal, recovered))
    }

    /// A journal without its threads.
    fn assemble(
        disk: Arc<dyn Disk>,
        lock: File,
        dir: &Path,
        options: Options,
    ) -> Result<(Self, Recovered), JournalError> {
        let found = recovery::survey(&*disk, dir)?;
        let journal_id = found.journal.unwrap_or_else(Uuid::new_v4);
        let mut recovered = found.recovered;
        let next_seq = recovered.last_seq.saturating_add(1);
        let folder = Folder {
            disk: Arc::clone(&disk),
            dir: dir.to_owned(),
            journal: journal_id,
            segment_bytes: options.segment_bytes,
        };
        let mut writer = match found.resume_at {
            Some(offset) => Writer::resume(folder, found.segments, offset, next_seq)?,
            None => Writer::begin(folder, found.segments, next_seq)?,
        };
        recovered.unknown_exchanges = end_unended(&mut writer, found.unended);
        recovered.last_seq = writer.last_seq();
        let shared = Arc::new(Shared {
            disk,
            dir: dir.to_owned(),
            id: journal_id.to_string(),
            mode: options.mode,
            sync_bytes: options.sync_bytes,
            max_bytes: options.max_bytes,
            bad_records: recovered.bad_records,
            ring: (options.mode == Mode::Lossy).then(|| Ring::new(recovered.last_seq.saturating_add(1))),
            writer: Mutex::new(writer),
            position: AtomicU64::new(recovered.last_seq),
            // Nobody knows how much of what was found had reached the disk: the first sync covers it all.
            synced: AtomicU64::new(0),
            progress: watch::Sender::default(),
            sync_failures: AtomicU64::new(0),
            sync_error: Mutex::new(None),
            sync_turn: Mutex::new(()),
            removal_turn: Mutex::new(()),
            released: AtomicU64::new(0),
            syncing_thread: OnceLock::new(),
            writing_thread: OnceLock::new(),
            stop: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            lock,
        });
        Ok((Self { inner: Arc::new(Inner { shared, threads: Mutex::default() }) }, recovered))
    }

    /// Starts the journal's threads.
    fn start(&self, options: Options) -> Result<(), JournalError> {
        let shared = &self.inner.shared;
        let every = options.sync_every;
        let syncing = Arc::clone(shared);
        self.spawn("journal-sync", &shared.syncing_thread, move || sync::run(&syncing, every))?;
        if shared.ring.is_some() {
            let writing = Arc::clone(shared);
            self.spawn("journal-write", &shared.writing_thread, move || ring::run(&writing))?;
        }
        Ok(())
    }

    fn spawn(
        &self,
        name: &str,
        known_as: &OnceLock<Thread>,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), JournalError> {
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
        let spawned = spawned.map_err(JournalError::at("start a thread for", &self.inner.shared.dir))?;
        // Set once, here.
        let _ = known_as.set(spawned.thread().clone());
        self.inner.threads.lock().push(spawned);
        Ok(())
    }

    /// The journal's own random id. A cursor belongs to one journal, and this says to which.
    pub fn id(&self) -> &str {
        &self.inner.shared.id
    }

    /// How it is written.
    pub fn mode(&self) -> Mode {
        self.inner.shared.mode
    }

    /// Appends one record and returns its number. On return it is in the page cache; in [`Mode::Lossy`], in memory.
    ///
    /// The event of an exchange or of an administrator that is larger than a record may be is cut down to it. One for
    /// which there is no room on the disk is written without its captured bodies. [`Stats::stripped`] counts both.
    ///
    /// # Errors
    /// [`JournalError::Io`], [`JournalError::MemoryFull`], [`JournalError::TooLarge`] (for what is no event),
    /// [`JournalError::Closed`]: the record is not in the journal, and is counted in [`Stats::dropped`].
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
        if payload_bytes > MAX_PAYLOAD_BYTES {
            let mut payload = Vec::with_capacity(payload_bytes);
            write_payload(&mut payload);
            return shared.append_cut_down(kind, event_id, time_us, &payload);
        }
        shared.append(kind, event_id, time_us, payload_bytes, write_payload)
    }

    /// The number of the last record that can be read; 0 if there was none yet.
    pub fn position(&self) -> u64 {
        self.inner.shared.position()
    }

    /// A reader of the records after `after_seq`; 0 reads all that are kept.
    pub fn reader(&self, after_seq: u64) -> Reader {
        Reader::new(Arc::clone(&self.inner.shared), after_seq)
    }

    /// Waits until record `seq`, which was appended before, is on disk, and has it brought there at once. Cancel safe.
    /// Needs no runtime, and blocks no thread.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the last sync failed, this one or, while the disk fails, an earlier one. The record may
    /// not be there, and comes there yet if the disk recovers. [`JournalError::Closed`]: the journal was closed first.
    pub async fn on_disk(&self, seq: u64) -> Result<(), JournalError> {
        self.inner.shared.on_disk(seq).await
    }

    /// Brings every record appended so far to disk, and waits for it, blocking the thread.
    ///
    /// # Errors
    /// [`JournalError::Io`]: they may not all be there.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.inner.shared.write_out()?;
        self.inner.shared.sync_now()
    }

    /// As [`Self::sync`], unless record `seq` is known to be on disk already.
    ///
    /// A consumer calls this before it saves a cursor. Without it a power cut could take records that the cursor has
    /// passed; their numbers would be given again, and the consumer would take the new records for read.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn sync_through(&self, seq: u64) -> Result<(), JournalError> {
        if self.inner.shared.synced() >= seq { Ok(()) } else { self.sync() }
    }

    /// Deletes the segments whose records all have numbers up to `seq`, and returns how many. The newest stay, for people
    /// who look back: two at least, and as many as have the size of one.
    ///
    /// `seq` is the lowest number that any consumer's saved cursor stands at, and lies before the begin of every
    /// exchange that still runs: a deleted begin could not tell of its exchange after a crash. What was written before
    /// is brought to disk first, the ends of those exchanges among it.
    ///
    /// # Errors
    /// [`JournalError::Io`]: a file is still there. The next call tries again.
    pub fn release(&self, seq: u64) -> Result<usize, JournalError> {
        self.inner.shared.release(seq)
    }

    /// Figures for metrics and health.
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }

    /// Why the last write or the last sync failed, while one does.
    pub fn last_error(&self) -> Option<String> {
        self.inner.shared.last_error()
    }

    /// Writes and syncs what was appended, lets the folder go, and refuses every append from now on. What is there can
    /// still be read.
    pub fn close(&self) {
        self.inner.stop();
    }
}

impl Inner {
    /// Ends the threads, writes and syncs what is left, and lets the folder go.
    fn stop(&self) {
        self.shared.writer.lock().close();
        if let Some(ring) = &self.shared.ring {
            ring.close();
        }
        self.shared.stop.store(true, Ordering::Release);
        for thread in std::mem::take(&mut *self.threads.lock()) {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.shared.finish();
        // A reader may outlive the journal, and must not keep its folder locked.
        let _ = self.shared.lock.unlock();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn append(
        &self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        payload_bytes: usize,
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u64, JournalError> {
        if let Some(ring) = &self.ring {
            let (seq, is_filling) = ring.append(kind, event_id, time_us, payload_bytes, write_payload)?;
            if is_filling && let Some(thread) = self.writing_thread.get() {
                thread.unpark();
            }
            return Ok(seq);
        }
        let mut writer = self.writer.lock();
        let owed_before = writer.owed_bytes();
        let seq = writer.append(kind, event_id, time_us, payload_bytes, write_payload)?;
        self.position.store(seq, Ordering::Release);
        let owed_bytes = writer.owed_bytes();
        drop(writer);
        let crossed = owed_before < self.sync_bytes && owed_bytes >= self.sync_bytes;
        if crossed && let Some(thread) = self.syncing_thread.get() {
            thread.unpark();
        }
        Ok(seq)
    }

    /// Appends an event that is too large, without what makes it so.
    #[cold]
    fn append_cut_down(&self, kind: Kind, event_id: Uuid, time_us: i64, payload: &[u8]) -> Result<u64, JournalError> {
        let is_event = matches!(kind, Kind::End | Kind::Admin);
        let fitted = if is_event { strip::to_fit(payload, MAX_PAYLOAD_BYTES) } else { None };
        let Some(fitted) = fitted else {
            let mut writer = self.writer.lock();
            writer.counts.dropped = writer.counts.dropped.saturating_add(1);
            return Err(JournalError::TooLarge { payload_bytes: payload.len() });
        };
        let seq = self.append(kind, event_id, time_us, fitted.len(), |buffer| buffer.extend_from_slice(&fitted))?;
        let mut writer = self.writer.lock();
        writer.counts.stripped = writer.counts.stripped.saturating_add(1);
        Ok(seq)
    }

    fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// The segment that holds record `seq`, or the oldest one if it is gone.
    fn segment_of(&self, seq: u64) -> u64 {
        let writer = self.writer.lock();
        let segments = writer.segments();
        let holding = segments.iter().rev().find(|segment| segment.first_seq <= seq);
        holding.or(segments.first()).map_or(seq, |segment| segment.first_seq)
    }

    fn segment_after(&self, first_seq: u64) -> Option<u64> {
        let writer = self.writer.lock();
        writer.segments().iter().map(|segment| segment.first_seq).find(|next_first| *next_first > first_seq)
    }

    fn stats(&self) -> Stats {
        let of_writer = || {
            let writer = self.writer.lock();
            (writer.counts, writer.segments().len() as u64, writer.folder_bytes(), writer.last_seq())
        };
        let (in_memory, (counts, segments, bytes, last_seq)) = match &self.ring {
            Some(ring) => {
                let (in_memory, of_writer) = ring.counts(of_writer);
                (Some(in_memory), of_writer)
            }
            None => (None, of_writer()),
        };
        let dropped_in_memory = in_memory.map_or(0, |in_memory| in_memory.dropped);
        let last_seq = in_memory.map_or(last_seq, |in_memory| in_memory.last_seq);
        Stats {
            written: counts.written,
            written_bytes: counts.written_bytes,
            stripped: counts.stripped,
            queued: in_memory.map_or(0, |in_memory| in_memory.queued),
            dropped: counts.dropped.saturating_add(dropped_in_memory),
            segments,
            bytes,
            bad_records: self.bad_records,
            discarded_records: counts.discarded,
            sync_failures: self.sync_failures.load(Ordering::Relaxed),
            unsynced: last_seq.saturating_sub(self.synced()),
            is_failing: self.last_error().is_some(),
        }
    }

    fn last_error(&self) -> Option<String> {
        let of_writing = self.writer.lock().last_error.clone();
        let is_sync_failing = self.progress.borrow().failing;
        of_writing.or_else(|| if is_sync_failing { self.sync_error.lock().clone() } else { None })
    }

    /// What is left to do when the threads are gone.
    fn finish(&self) {
        if self.finished.swap(true, Ordering::AcqRel) {
            return;
        }
        // Once more before it is given up: what failed may have been a moment's trouble.
        let written = self.write_out().or_else(|_| self.write_out());
        if let (Err(error), Some(ring)) = (&written, &self.ring) {
            let (in_memory, ()) = ring.counts(|| ());
            tracing::error!(%error, records = in_memory.queued, "Records in memory could not be written to the journal");
            ring.drop_rest();
        }
        if self.is_unsynced()
            && let Err(error) = self.sync_now()
        {
            tracing::error!(%error, journal.dir = %self.dir.display(), "The journal cannot be synced to disk");
        }
        self.progress.send_modify(|progress| progress.ended = true);
    }
}

/// Gives every exchange that a crash left without its end one, and returns how many. Where the disk is full, the rest is
/// left to the next start: their begins are still there.
fn end_unended(writer: &mut Writer, unended: Vec<Unended>) -> u64 {
    let mut ended: u64 = 0;
    for begun in unended {
        let begin = Begin::decode(begun.payload.as_slice()).unwrap_or_default();
        let mut exchange = Exchange::found_unended(begin);
        exchange.id = begun.event_id.to_string();
        let write = |buffer: &mut Vec<u8>| {
            // Fails only where the buffer cannot grow, and this one can.
            let _ = exchange.encode(buffer);
        };
        // The time of the begin: when the exchange ended, nobody knows.
        if writer.append(Kind::End, begun.event_id, begun.time_us, exchange.encoded_len(), write).is_err() {
            break;
        }
        ended = ended.saturating_add(1);
    }
    ended
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
