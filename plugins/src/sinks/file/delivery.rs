//! One step of the file sink after the other, without the thread that takes them.
//!
//! Lines are written at once; file, journal and cursor are synced together at a checkpoint, about once a second. What
//! lies between the checkpoint and a crash is made good at the next start: events that are in the file are recognised
//! by their id, events that are not are still in the journal.
//!
//! The file may be moved away at any time, by us or by others. Before the first line goes to a new file there is a
//! checkpoint, with the new file in the cursor. So a start needs to look at two files at most: the one at the path, and
//! the one that the cursor knows, by its inode, if that lies beside it under another name.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::cursor::{self, Cursor};
use super::rotation::{self, Rotation};
use super::{FileSinkError, Fsync, resume};
use crate::event::{self, Exchange, Message};
use crate::journal::{Feed, Kind, Reader};

const MAX_BATCH_EVENTS: u64 = 1_000;
const MAX_BATCH_BYTES: usize = 1 << 20;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
const CHECKPOINT_BYTES: u64 = 8 << 20;
/// How long after a rotation that failed it is tried again. Meanwhile the file grows.
const ROTATE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Events written.
    pub events: u64,
    /// The journal had no more.
    pub caught_up: bool,
    /// A file was moved away.
    pub rotated: bool,
}

/// The sink's state: the file, the place in the journal, and the batch on its way from one to the other.
pub(super) struct Delivery {
    feed: Feed,
    reader: Reader,
    path: PathBuf,
    file: File,
    inode: u64,
    begun: SystemTime,
    rotation: Rotation,
    fsync: Fsync,
    no_rotation_before: Option<Instant>,
    /// Length of the file's good part while `torn`.
    length: u64,
    /// A write failed half way and has to be cut off.
    torn: bool,
    cursor_path: PathBuf,
    /// The last record whose event is in the file.
    written_seq: u64,
    saved_seq: u64,
    saved_at: Instant,
    unsaved_bytes: u64,
    /// Events in the file that the cursor does not know of.
    already_written: HashSet<String>,
    lines: Vec<u8>,
    line_events: u64,
    /// When the first of them was recorded, in microseconds since the Unix epoch.
    lines_us: i64,
    /// Read, and for the next file.
    held: Option<Held>,
    /// When the record that was read last was recorded; 0 once the journal had no more.
    read_us: i64,
    delivered: u64,
    undecodable: u64,
    /// Records that earlier readers found damaged.
    skipped_before: u64,
    failed_rotations: u64,
}

/// A line for which the file has no room.
struct Held {
    line: Vec<u8>,
    /// The record before its own.
    after_seq: u64,
    time_us: i64,
}

impl Delivery {
    pub fn open(
        path: &Path,
        cursor_path: &Path,
        rotation: Rotation,
        fsync: Fsync,
        feed: impl Into<Feed>,
    ) -> Result<Self, FileSinkError> {
        let feed = feed.into();
        let (file, metadata) = open_locked(path)?;
        let saved = Cursor::load(cursor_path).map_err(FileSinkError::at("read", cursor_path))?;
        let saved = saved.filter(|cursor| cursor.journal == feed.id());
        let (inode, file_bytes) = (metadata.ino(), metadata.len());
        // A file shorter than the cursor says, or another one, was begun after it: all of it is newer.
        let knows = |cursor: &&Cursor| [0, inode].contains(&cursor.inode) && cursor.length <= file_bytes;
        let known = saved.as_ref().filter(knows);
        // A journal folder restored from an older copy may end before the cursor.
        let seq = saved.as_ref().map_or(0, |cursor| cursor.seq).min(feed.position());
        let known_bytes = known.map_or(0, |cursor| cursor.length);
        let found = if known_bytes > 0 {
            resume::look(&file, known_bytes, |_| true)
        } else {
            // All of it has to be looked at, and it may be large: what the journal will not bring is not kept in mind.
            let coming = ids_after(&feed, seq)?;
            resume::look(&file, 0, |id| coming.contains(id))
        };
        let mut found = found.map_err(FileSinkError::at("read", path))?;
        if found.length < file_bytes {
            file.set_len(found.length).map_err(FileSinkError::at("cut", path))?;
        }
        if let Some(cursor) = saved.as_ref().filter(|cursor| cursor.inode != inode && cursor.inode != 0)
            && let Some(moved) = moved_away(path, cursor).map_err(FileSinkError::at("find", path))?
        {
            found.ids.extend(look_at_moved(&moved, cursor).map_err(FileSinkError::at("read", &moved))?);
        }
        let begun = known.filter(|cursor| cursor.begun > 0 && found.length > 0).map(|cursor| cursor.begun);
        let begun = begun.and_then(|begun| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(begun)));
        let delivery = Self {
            reader: feed.reader(seq),
            feed,
            path: path.to_owned(),
            file,
            inode,
            begun: begun.or_else(|| metadata.created().ok()).unwrap_or_else(SystemTime::now),
            rotation,
            fsync,
            no_rotation_before: None,
            length: found.length,
            torn: false,
            cursor_path: cursor_path.to_owned(),
            written_seq: seq,
            saved_seq: seq,
            saved_at: Instant::now(),
            unsaved_bytes: 0,
            already_written: found.ids,
            lines: Vec::new(),
            line_events: 0,
            lines_us: 0,
            held: None,
            read_us: 0,
            delivered: 0,
            undecodable: 0,
            skipped_before: 0,
            failed_rotations: 0,
        };
        match &saved {
            // From here on a file that is moved away can be found again.
            None => delivery.save_cursor(0, 0)?,
            // Else the next start would take for written what gets the numbers up to there now.
            Some(cursor) if cursor.seq > seq => delivery.save_cursor(seq, known_bytes)?,
            // A new file: without this it would be taken for the old one as soon as it has grown as long.
            Some(cursor) if cursor.length != delivery.length && delivery.already_written.is_empty() => {
                delivery.save_cursor(seq, delivery.length)?;
            }
            Some(_) => {}
        }
        Ok(delivery)
    }

    /// Writes one batch. After an error the same step may be taken again; nothing is lost or written twice by it.
    pub fn step(&mut self, now: SystemTime) -> Result<Step, FileSinkError> {
        // A file is not left while it holds events that only this process knows to be in it: after a crash they would be
        // looked for in the new one.
        let may_leave = self.already_written.is_empty();
        let caught_up = self.gather()?;
        let events = self.line_events;
        let rotated = if may_leave {
            self.follow_path(now)?;
            self.rotate_if_due(now)?
        } else {
            false
        };
        self.write()?;
        let is_due = match self.fsync {
            Fsync::Always => self.written_seq > self.saved_seq && events > 0 || self.is_checkpoint_due(),
            Fsync::EverySecond | Fsync::Never => self.is_checkpoint_due(),
        };
        if is_due {
            self.checkpoint()?;
        }
        Ok(Step { events, caught_up, rotated })
    }

    /// Fills the batch from the journal, with no more than the file has room for, and one event at least. True if the
    /// journal has no more now.
    fn gather(&mut self) -> Result<bool, FileSinkError> {
        let most_bytes = self.room();
        if let Some(held) = self.held.take_if(|_| self.lines.is_empty()) {
            self.lines = held.line;
            self.line_events = 1;
            self.lines_us = held.time_us;
        }
        if self.held.is_some() {
            return Ok(false);
        }
        let enough_bytes = most_bytes.min(MAX_BATCH_BYTES);
        while self.line_events < MAX_BATCH_EVENTS && (self.lines.is_empty() || self.lines.len() < enough_bytes) {
            let Some(record) = self.reader.next_ref()? else {
                // Whatever else the file holds is no longer in the journal.
                self.already_written.clear();
                self.read_us = 0;
                return Ok(true);
            };
            self.read_us = record.time_us;
            if record.kind == Kind::Begin {
                continue;
            }
            let Ok(exchange) = Exchange::decode(record.payload) else {
                self.undecodable = self.undecodable.saturating_add(1);
                continue;
            };
            if self.already_written.is_empty() || !self.already_written.remove(&exchange.id) {
                let before = self.lines.len();
                event::append_json_line(&exchange, &mut self.lines);
                self.lines.push(b'\n');
                if before > 0 && self.lines.len() > most_bytes {
                    let (after_seq, time_us) = (record.seq.saturating_sub(1), record.time_us);
                    self.held = Some(Held { line: self.lines.split_off(before), after_seq, time_us });
                    return Ok(false);
                }
                if before == 0 {
                    self.lines_us = record.time_us;
                }
                self.line_events = self.line_events.saturating_add(1);
            }
        }
        Ok(false)
    }

    /// Bytes until the file is to be left, as far as it can be.
    fn room(&self) -> usize {
        let can_be_left = self.already_written.is_empty() && !self.is_barred();
        let most_bytes = self.rotation.bytes.filter(|_| can_be_left);
        // What is held goes to the next file, and with it what follows.
        let used = if self.held.is_some() { 0 } else { self.length };
        let room = most_bytes.map(|most_bytes| most_bytes.saturating_sub(used));
        room.and_then(|room| usize::try_from(room).ok()).unwrap_or(usize::MAX)
    }

    /// Whether a rotation has failed a moment ago.
    fn is_barred(&self) -> bool {
        self.no_rotation_before.is_some_and(|not_before| Instant::now() < not_before)
    }

    /// Begins a new file if the one that is open is no longer the one at the path: somebody has moved it away.
    fn follow_path(&mut self, now: SystemTime) -> Result<(), FileSinkError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.ino() == self.inode => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileSinkError::at("look at", &self.path)(error)),
        }
        if self.torn {
            // Half a line at the end of a file that is left would stay there.
            self.file.set_len(self.length).map_err(FileSinkError::at("cut", &self.path))?;
            self.torn = false;
        }
        self.checkpoint()?;
        let (file, metadata) = open_locked(&self.path)?;
        let found = resume::look(&file, 0, |_| false).map_err(FileSinkError::at("read", &self.path))?;
        if found.length < metadata.len() {
            file.set_len(found.length).map_err(FileSinkError::at("cut", &self.path))?;
        }
        self.file = file;
        self.inode = metadata.ino();
        self.begun = now;
        self.length = found.length;
        self.save_cursor(self.saved_seq, self.length)
    }

    /// Moves the file away once it is due. That it cannot be is no reason to hold back events.
    fn rotate_if_due(&mut self, now: SystemTime) -> Result<bool, FileSinkError> {
        let more = self.lines.len() as u64;
        if self.is_barred() || self.torn || !self.rotation.is_due(self.length, more, self.begun, now) {
            return Ok(false);
        }
        match self.rotate(now) {
            Ok(()) => {
                self.no_rotation_before = None;
                Ok(true)
            }
            Err(error) => {
                self.failed_rotations = self.failed_rotations.saturating_add(1);
                self.no_rotation_before = Instant::now().checked_add(ROTATE_AGAIN_AFTER);
                tracing::warn!(%error, "The file of events cannot be rotated, and goes on to grow");
                // Unless it has its new name already: what came into it now could be compressed away.
                self.follow_path(now)?;
                Ok(false)
            }
        }
    }

    fn rotate(&mut self, now: SystemTime) -> Result<(), FileSinkError> {
        // The journal keeps what the cursor has not passed, so nothing of this file may be unknown to it.
        self.checkpoint()?;
        // The one after the last that is taken: one before it could be free again, and would tell a wrong order.
        let names: Vec<_> = rotation::names(&self.path, now).collect();
        let next = names.iter().rposition(|name| !is_free(name)).map_or(0, |last_taken| last_taken.saturating_add(1));
        let name = names.get(next);
        let taken = || FileSinkError::at("rename", &self.path)(io::ErrorKind::AlreadyExists.into());
        let name = name.ok_or_else(taken)?;
        fs::rename(&self.path, name).map_err(FileSinkError::at("rename", &self.path))?;
        cursor::sync_folder_of(&self.path).map_err(FileSinkError::at("sync", &self.path))?;
        self.follow_path(now)
    }

    /// Writes what is in hand, and goes on with the journal as it is on disk now. False as long as the file may not be
    /// left.
    pub fn renew(&mut self, now: SystemTime) -> Result<bool, FileSinkError> {
        if !self.already_written.is_empty() {
            return Ok(false);
        }
        self.follow_path(now)?;
        self.write()?;
        self.skipped_before = self.skipped_before.saturating_add(self.reader.skipped());
        // Read again, as it is on disk now.
        self.held = None;
        self.reader = self.feed.reader(self.written_seq);
        Ok(true)
    }

    /// As [`Self::renew`], and moves the file away.
    pub fn leave(&mut self, now: SystemTime) -> Result<bool, FileSinkError> {
        if !self.renew(now)? {
            return Ok(false);
        }
        if self.length > 0 {
            self.rotate(now)?;
        }
        Ok(true)
    }

    fn write(&mut self) -> Result<(), FileSinkError> {
        if !self.lines.is_empty() {
            // Asked anew each time: someone else may have truncated the file.
            let file_bytes = self.file.metadata().map_err(FileSinkError::at("read", &self.path))?.len();
            if self.torn && file_bytes > self.length {
                self.file.set_len(self.length).map_err(FileSinkError::at("cut", &self.path))?;
            } else {
                if file_bytes < self.length {
                    // What the cursor says of the length is wrong from here on: a checkpoint is due.
                    self.unsaved_bytes = CHECKPOINT_BYTES;
                }
                self.length = file_bytes;
            }
            self.torn = true;
            self.file.write_all(&self.lines).map_err(FileSinkError::at("write", &self.path))?;
            self.torn = false;
            let written = self.lines.len() as u64;
            self.length = self.length.saturating_add(written);
            self.unsaved_bytes = self.unsaved_bytes.saturating_add(written);
            self.delivered = self.delivered.saturating_add(self.line_events);
            self.lines.clear();
            self.line_events = 0;
        }
        self.written_seq = self.held.as_ref().map_or_else(|| self.reader.last_seq(), |held| held.after_seq);
        Ok(())
    }

    fn is_checkpoint_due(&self) -> bool {
        self.written_seq > self.saved_seq
            && (self.unsaved_bytes >= CHECKPOINT_BYTES || self.saved_at.elapsed() >= CHECKPOINT_EVERY)
    }

    /// Brings everything written so far to disk, and the cursor after it.
    pub fn checkpoint(&mut self) -> Result<(), FileSinkError> {
        if self.written_seq == self.saved_seq {
            return Ok(());
        }
        self.feed.sync_through(self.written_seq)?;
        if self.fsync != Fsync::Never {
            self.file.sync_data().map_err(FileSinkError::at("sync", &self.path))?;
            cursor::sync_folder_of(&self.path).map_err(FileSinkError::at("sync", &self.path))?;
        }
        self.save_cursor(self.written_seq, self.length)?;
        self.saved_seq = self.written_seq;
        self.saved_at = Instant::now();
        self.unsaved_bytes = 0;
        Ok(())
    }

    /// Notes that the events up to `seq` stand in the first `length` bytes, or in files before this one.
    fn save_cursor(&self, seq: u64, length: u64) -> Result<(), FileSinkError> {
        let begun = self.begun.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |begun| begun.as_secs());
        let journal = self.feed.id().to_owned();
        let cursor = Cursor { journal, seq, length, inode: self.inode, begun };
        cursor.save(&self.cursor_path).map_err(FileSinkError::at("write", &self.cursor_path))
    }

    /// When the oldest event that was read and is not in the file was recorded, in microseconds since the Unix epoch.
    /// Where none is, but the journal has more, about when the next one was; else 0.
    pub fn oldest_us(&self) -> i64 {
        if self.lines.is_empty() { self.read_us } else { self.lines_us }
    }

    /// Events written.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The last record whose event is in the file.
    pub fn written_seq(&self) -> u64 {
        self.written_seq
    }

    /// The last record that a restart will not read again.
    pub fn saved_seq(&self) -> u64 {
        self.saved_seq
    }

    /// Records of the journal that were damaged or held no event.
    pub fn unreadable(&self) -> u64 {
        self.skipped_before.saturating_add(self.reader.skipped()).saturating_add(self.undecodable)
    }

    /// Rotations that failed.
    pub fn failed_rotations(&self) -> u64 {
        self.failed_rotations
    }
}

/// Opens the file for appending and makes sure that nobody else writes to it.
fn open_locked(path: &Path) -> Result<(File, Metadata), FileSinkError> {
    let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    let file = opened.map_err(FileSinkError::at("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FileSinkError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(FileSinkError::at("lock", path)(source)),
    }
    let metadata = file.metadata().map_err(FileSinkError::at("read", path))?;
    Ok((file, metadata))
}

/// The ids of the events that the journal has after record `seq` now.
fn ids_after(feed: &Feed, seq: u64) -> Result<HashSet<String>, FileSinkError> {
    let (mut reader, mut ids) = (feed.reader(seq), HashSet::new());
    let last_seq = feed.position();
    while let Some(record) = reader.next_ref()? {
        if record.seq > last_seq {
            break;
        }
        if record.kind != Kind::Begin {
            ids.extend(Exchange::decode(record.payload).ok().map(|exchange| exchange.id));
        }
    }
    Ok(ids)
}

/// Whether neither the name is taken nor one that a compressed file would get.
fn is_free(name: &Path) -> bool {
    let is_free = |suffix: &str| {
        let mut name = name.as_os_str().to_owned();
        name.push(suffix);
        matches!(Path::new(&name).try_exists(), Ok(false))
    };
    ["", ".gz", ".zst"].into_iter().all(is_free)
}

/// The file that the cursor knows, under another name in the same folder: one that begins with its own, or one of ours.
fn moved_away(path: &Path, cursor: &Cursor) -> io::Result<Option<PathBuf>> {
    let own_name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    for entry in fs::read_dir(cursor::folder_of(path))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let is_candidate = name.starts_with(own_name) || rotation::is_moved_away(path, name);
        if is_candidate && entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.ino() == cursor.inode) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The ids of the events that a file got after the cursor was saved and before it was moved away. Half a line that a
/// crash left at its end is cut.
fn look_at_moved(moved: &Path, cursor: &Cursor) -> io::Result<HashSet<String>> {
    const BEGINS: &[u8] = br#"{"id":"#;
    let file = OpenOptions::new().read(true).write(true).open(moved)?;
    let file_bytes = file.metadata()?.len();
    let (mut begins, mut before) = ([0; BEGINS.len()], [b'\n']);
    let is_known = file.read_exact_at(&mut begins, 0).is_ok()
        && (cursor.length == 0 || file.read_exact_at(&mut before, cursor.length.saturating_sub(1)).is_ok());
    // Else it is not that file any more: its number was given to another one, which must not be touched.
    if !is_known || begins != BEGINS || before != [b'\n'] {
        return Ok(HashSet::new());
    }
    let found = resume::look(&file, cursor.length, |_| true)?;
    if found.length < file_bytes {
        file.set_len(found.length)?;
    }
    Ok(found.ids)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;
    use crate::journal::{Journal, Options};

    struct Bench {
        journal: Journal,
        dir: TempDir,
        rotation: Rotation,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
            Self { journal, dir, rotation: Rotation::default() }
        }

        fn events(&self) -> PathBuf {
            self.dir.path().join("events.jsonl")
        }

        fn open(&self) -> Delivery {
            let cursor_path = self.dir.path().join("events.cursor");
            let mut delivery =
                Delivery::open(&self.events(), &cursor_path, self.rotation, Fsync::EverySecond, &self.journal).unwrap();
            // No checkpoints but those that a test makes.
            delivery.saved_at += Duration::from_secs(3_600);
            delivery
        }

        fn append(&self, ids: std::ops::Range<u128>) {
            for id in ids {
                let id = Uuid::from_u128(id);
                self.journal.append(Kind::Begin, id, 1, b"").unwrap();
                let exchange = Exchange { id: id.to_string(), ..Exchange::default() };
                self.journal.append_message(Kind::End, id, 2, &exchange).unwrap();
            }
        }

        /// Ids in the order of the lines. Fails on a line that is no JSON.
        fn written(&self) -> Vec<u128> {
            ids(&self.events())
        }

        /// Ids in all files together, sorted.
        fn written_anywhere(&self) -> Vec<u128> {
            let mut all: Vec<_> = self.files().iter().flat_map(|path| ids(path)).collect();
            all.sort_unstable();
            all
        }

        /// The files with events, oldest first.
        fn files(&self) -> Vec<PathBuf> {
            let paths = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
            let mut files: Vec<_> = paths.filter(|path| path.to_string_lossy().contains(".jsonl")).collect();
            files.sort_unstable();
            files
        }
    }

    fn ids(path: &Path) -> Vec<u128> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        let value = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(|line| value(line)["id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128()).collect()
    }

    fn finish(delivery: &mut Delivery) {
        while !delivery.step(SystemTime::now()).unwrap().caught_up {}
    }

    #[test]
    fn every_end_becomes_one_line_and_the_file_is_private() {
        let bench = Bench::new();
        bench.append(0..2_500);
        let mut delivery = bench.open();
        let first = delivery.step(SystemTime::now()).unwrap();
        assert_eq!(first, Step { events: 1_000, caught_up: false, rotated: false });
        finish(&mut delivery);
        assert_eq!(bench.written(), (0..2_500).collect::<Vec<_>>());
        assert_eq!(delivery.written_seq(), bench.journal.position());
        assert_eq!(fs::metadata(bench.events()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_crash_at_any_byte_after_the_checkpoint_loses_nothing_and_doubles_nothing() {
        let bench = Bench::new();
        bench.append(0..3);
        let mut delivery = bench.open();
        finish(&mut delivery);
        delivery.checkpoint().unwrap();
        let safe_bytes = usize::try_from(fs::metadata(bench.events()).unwrap().len()).unwrap();
        bench.append(3..6);
        finish(&mut delivery);
        drop(delivery);
        let whole = fs::read(bench.events()).unwrap();
        for cut in (safe_bytes..whole.len()).step_by(37).chain([whole.len() - 1, whole.len()]) {
            fs::write(bench.events(), &whole[..cut]).unwrap();
            let mut delivery = bench.open();
            finish(&mut delivery);
            assert_eq!(bench.written(), (0..6).collect::<Vec<_>>(), "cut at {cut}");
        }
    }

    #[test]
    fn without_a_cursor_the_lines_themselves_tell_what_is_written() {
        let bench = Bench::new();
        bench.append(0..4);
        finish(&mut bench.open());
        bench.append(4..6);
        for damage in ["", "v1 nonsense 00000000\n"] {
            fs::write(bench.dir.path().join("events.cursor"), damage).unwrap();
            finish(&mut bench.open());
            assert_eq!(bench.written(), (0..6).collect::<Vec<_>>());
        }
    }

    #[test]
    fn where_an_older_copy_of_the_journal_came_back_what_is_new_is_written() {
        let bench = Bench::new();
        let segment = bench.dir.path().join("journal").join("00000000000000000001.seg");
        bench.append(0..3);
        let older = fs::read(&segment).unwrap();
        bench.append(3..50);
        let mut delivery = bench.open();
        finish(&mut delivery);
        delivery.checkpoint().unwrap();
        drop(delivery);
        let Bench { journal, dir, rotation } = bench;
        drop(journal);
        fs::write(&segment, older).unwrap();
        let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
        let bench = Bench { journal, dir, rotation };

        // A start that comes to nothing, and one by which the numbers are not as high as they were once.
        drop(bench.open());
        bench.append(100..120);
        finish(&mut bench.open());
        assert_eq!(bench.written(), (0..50).chain(100..120).collect::<Vec<_>>());
    }

    #[test]
    fn of_a_file_that_no_cursor_knows_only_what_the_journal_brings_again_is_kept_in_mind() {
        let bench = Bench::new();
        let theirs = |id: u128| format!("{{\"id\":\"{}\"}}\n", Uuid::from_u128(id));
        fs::write(bench.events(), (1_000..3_000).map(theirs).collect::<String>()).unwrap();
        bench.append(0..3);
        finish(&mut bench.open());
        bench.append(3..5);
        fs::remove_file(bench.dir.path().join("events.cursor")).unwrap();
        let mut delivery = bench.open();
        assert_eq!(delivery.already_written.len(), 3);
        finish(&mut delivery);
        assert_eq!(bench.written(), (1_000..3_000).chain(0..5).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_taken_away_is_begun_anew_after_the_cursor() {
        let bench = Bench::new();
        bench.append(0..4);
        let mut delivery = bench.open();
        finish(&mut delivery);
        delivery.checkpoint().unwrap();
        drop(delivery);
        fs::rename(bench.events(), bench.dir.path().join("events.1.jsonl")).unwrap();
        bench.append(4..6);
        finish(&mut bench.open());
        assert_eq!(bench.written(), [4, 5]);
        // And again, now with events in the new file that the cursor does not know of.
        bench.append(6..7);
        finish(&mut bench.open());
        assert_eq!(bench.written(), [4, 5, 6]);
    }

    #[test]
    fn a_file_moved_away_by_others_is_left_and_no_event_is_lost_or_doubled() {
        // With and without a checkpoint before the move, and with the process going on or killed after it.
        for (has_checkpoint, is_killed) in [(true, false), (false, false), (true, true), (false, true)] {
            let bench = Bench::new();
            bench.append(0..4);
            let mut delivery = bench.open();
            finish(&mut delivery);
            if has_checkpoint {
                delivery.checkpoint().unwrap();
            }
            bench.append(4..6);
            finish(&mut delivery);
            fs::rename(bench.events(), bench.dir.path().join("events.jsonl.1")).unwrap();
            bench.append(6..8);
            if is_killed {
                drop(delivery);
                // Half a line, as a crash leaves it.
                let mut moved = OpenOptions::new().append(true).open(bench.dir.path().join("events.jsonl.1")).unwrap();
                moved.write_all(b"{\"id\":\"ha").unwrap();
                delivery = bench.open();
            }
            finish(&mut delivery);
            assert_eq!(bench.written_anywhere(), (0..8).collect::<Vec<_>>(), "{has_checkpoint} {is_killed}");
            assert_eq!(bench.written(), [6, 7]);
            drop(delivery);
            // And a crash right after that.
            bench.append(8..9);
            finish(&mut bench.open());
            assert_eq!(bench.written_anywhere(), (0..9).collect::<Vec<_>>(), "{has_checkpoint} {is_killed}");
        }
    }

    #[test]
    fn a_file_that_got_the_number_of_a_deleted_one_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let moved = dir.path().join("events.jsonl.gz");
        let cursor = |length| Cursor { journal: String::new(), seq: 1, length, inode: 1, begun: 0 };
        for content in [&b"\x1f\x8b\x08 packed\nand more"[..], b"", b"{\"id\":\"a\"}", b"{\"id\":\"a\"}\n{\"id\":\"b"] {
            fs::write(&moved, content).unwrap();
            assert!(look_at_moved(&moved, &cursor(5)).unwrap().is_empty());
            assert_eq!(fs::read(&moved).unwrap(), content);
        }
        fs::write(&moved, b"{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id").unwrap();
        assert_eq!(look_at_moved(&moved, &cursor(11)).unwrap(), HashSet::from(["b".to_owned()]));
        assert_eq!(fs::metadata(&moved).unwrap().len(), 22);
    }

    #[test]
    fn a_file_copied_and_truncated_by_others_gets_every_later_event_once() {
        let bench = Bench::new();
        bench.append(0..4);
        let mut delivery = bench.open();
        finish(&mut delivery);
        delivery.checkpoint().unwrap();
        fs::copy(bench.events(), bench.dir.path().join("events.jsonl.1")).unwrap();
        OpenOptions::new().write(true).truncate(true).open(bench.events()).unwrap();
        bench.append(4..6);
        finish(&mut delivery);
        drop(delivery);
        finish(&mut bench.open());
        assert_eq!(bench.written_anywhere(), (0..6).collect::<Vec<_>>());
    }

    #[test]
    fn files_are_left_before_they_are_too_large_and_kills_at_any_step_change_nothing() {
        let mut bench = Bench::new();
        bench.append(0..1);
        finish(&mut bench.open());
        let line_bytes = fs::metadata(bench.events()).unwrap().len();
        bench.rotation = Rotation { bytes: Some(line_bytes * 3), age: None };
        let mut delivery = bench.open();
        for next in 1..10 {
            bench.append(next..next + 1);
            finish(&mut delivery);
        }
        let sizes: Vec<_> = bench.files().iter().map(|path| ids(path).len()).collect();
        // The first process knew only from the file's content what was in it, and did not leave it at once.
        assert_eq!(sizes.iter().sum::<usize>(), 10);
        assert!(sizes.iter().all(|lines| (1..=3).contains(lines)), "{sizes:?}");
        for next in 10..40 {
            bench.append(next..next + 1);
            // Each time a process of its own, which is killed after some steps.
            drop(delivery);
            delivery = bench.open();
            for step in 0..next % 4 {
                delivery.step(SystemTime::now()).unwrap();
                if step == 2 {
                    delivery.checkpoint().unwrap();
                }
            }
        }
        finish(&mut delivery);
        assert_eq!(bench.written_anywhere(), (0..40).collect::<Vec<_>>());
        assert!(bench.files().len() > 5);
    }

    #[test]
    fn no_file_outgrows_its_bound_however_much_waits_in_the_journal() {
        let mut bench = Bench::new();
        bench.append(0..1);
        finish(&mut bench.open());
        let line_bytes = fs::metadata(bench.events()).unwrap().len();
        fs::remove_file(bench.events()).unwrap();
        fs::remove_file(bench.dir.path().join("events.cursor")).unwrap();
        for (most_bytes, most_lines) in [(line_bytes * 7 + line_bytes / 2, 7), (line_bytes / 2, 1)] {
            bench.rotation = Rotation { bytes: Some(most_bytes), age: None };
            let (mut delivery, mut now) = (bench.open(), SystemTime::now());
            bench.append(1..40);
            while !delivery.step(now).unwrap().caught_up {
                // Names are by the second.
                now += Duration::from_secs(1);
            }
            drop(delivery);
            let files = bench.files();
            assert!(files.iter().all(|path| ids(path).len() <= most_lines), "{most_bytes} bytes");
            assert_eq!(bench.written_anywhere(), (0..40).collect::<Vec<_>>());
            assert!(files.len() <= 2 * 40_usize.div_ceil(most_lines));
            bench = Bench::new();
            bench.append(0..1);
        }
    }

    #[test]
    fn what_is_held_for_the_next_file_outlives_a_wish_and_a_crash() {
        for is_killed in [false, true] {
            let mut bench = Bench::new();
            bench.append(0..1);
            let mut first = bench.open();
            finish(&mut first);
            first.checkpoint().unwrap();
            drop(first);
            let line_bytes = fs::metadata(bench.events()).unwrap().len();
            // A byte too little for the third line.
            bench.rotation = Rotation { bytes: Some(line_bytes * 4 - 1), age: None };
            let mut delivery = bench.open();
            bench.append(1..30);
            while delivery.held.is_none() {
                delivery.step(SystemTime::now()).unwrap();
            }
            assert!(delivery.written_seq() < bench.journal.position() && delivery.oldest_us() == 2);
            if is_killed {
                delivery.checkpoint().unwrap();
                drop(delivery);
                delivery = bench.open();
            } else {
                assert!(delivery.renew(SystemTime::now()).unwrap());
            }
            finish(&mut delivery);
            assert_eq!((delivery.written_seq(), delivery.oldest_us()), (bench.journal.position(), 0));
            assert_eq!(bench.written_anywhere(), (0..30).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_name_that_has_become_free_again_is_not_given_to_a_newer_file() {
        let mut bench = Bench::new();
        bench.rotation = Rotation { bytes: Some(1), age: None };
        let (mut delivery, now) = (bench.open(), SystemTime::now());
        bench.append(0..3);
        while !delivery.step(now).unwrap().caught_up {}
        let in_order = || bench.files().iter().flat_map(|path| ids(path)).collect::<Vec<_>>();
        assert_eq!(in_order(), [0, 1, 2]);
        fs::remove_file(&bench.files()[0]).unwrap();
        bench.append(3..4);
        while !delivery.step(now).unwrap().caught_up {}
        assert_eq!(in_order(), [1, 2, 3]);
    }

    #[test]
    fn a_crash_between_the_move_and_the_new_file_loses_and_doubles_nothing() {
        for has_new_file in [false, true] {
            let bench = Bench::new();
            bench.append(0..4);
            let mut delivery = bench.open();
            finish(&mut delivery);
            delivery.checkpoint().unwrap();
            drop(delivery);
            let name = rotation::names(&bench.events(), SystemTime::now()).next().unwrap();
            fs::rename(bench.events(), name).unwrap();
            if has_new_file {
                File::create(bench.events()).unwrap();
            }
            bench.append(4..6);
            finish(&mut bench.open());
            assert_eq!((bench.written(), bench.files().len()), (vec![4, 5], 2));
        }
    }

    #[test]
    fn an_old_file_is_left_and_its_age_outlives_the_process() {
        let mut bench = Bench::new();
        bench.rotation = Rotation { bytes: None, age: Some(Duration::from_secs(3_600)) };
        bench.append(0..2);
        let begun = SystemTime::now();
        let mut delivery = bench.open();
        delivery.step(begun).unwrap();
        delivery.checkpoint().unwrap();
        drop(delivery);
        let mut delivery = bench.open();
        assert!(!delivery.step(begun + Duration::from_secs(3_500)).unwrap().rotated);
        assert!(delivery.step(begun + Duration::from_secs(3_700)).unwrap().rotated);
        // An empty file stays, however old.
        assert!(!delivery.step(begun + Duration::from_secs(9_000)).unwrap().rotated);
        assert_eq!((bench.written().len(), bench.files().len()), (0, 2));
    }

    #[test]
    fn a_rotation_that_fails_holds_back_no_event() {
        let mut bench = Bench::new();
        bench.rotation = Rotation { bytes: Some(1), age: None };
        bench.append(0..1);
        let mut delivery = bench.open();
        let now = SystemTime::UNIX_EPOCH;
        for name in rotation::names(&bench.events(), now) {
            fs::write(name, "").unwrap();
        }
        for next in 1..4 {
            assert!(!delivery.step(now).unwrap().rotated);
            assert_eq!(bench.written(), (0..next).collect::<Vec<_>>());
            bench.append(next..next + 1);
        }
        assert_eq!(delivery.failed_rotations(), 1);
    }

    #[test]
    fn a_failed_write_is_repeated_and_leaves_no_trace() {
        let bench = Bench::new();
        bench.append(0..2);
        let mut delivery = bench.open();
        finish(&mut delivery);
        let writable = std::mem::replace(&mut delivery.file, File::open(bench.events()).unwrap());
        bench.append(2..4);
        let now = SystemTime::now();
        assert!(matches!(delivery.step(now), Err(FileSinkError::Io { action: "write", .. })));
        assert!(delivery.step(now).is_err());
        // What a short write would have left.
        (&writable).write_all(b"{\"id\":\"ha").unwrap();
        delivery.file = writable;
        finish(&mut delivery);
        assert_eq!(bench.written(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_file_that_is_to_be_left_is_left_with_all_that_was_read_and_no_event_is_lost_or_doubled() {
        let bench = Bench::new();
        bench.append(0..3);
        finish(&mut bench.open());
        bench.append(3..6);
        // What the file holds behind the cursor is known to this process only, until it has caught up.
        let mut delivery = bench.open();
        assert!(!delivery.leave(SystemTime::now()).unwrap());
        finish(&mut delivery);
        assert!(delivery.leave(SystemTime::now()).unwrap());
        assert_eq!((bench.written(), bench.files().len()), (vec![], 2));
        bench.append(6..8);
        finish(&mut delivery);
        assert_eq!(bench.written(), [6, 7]);
        assert!(delivery.leave(SystemTime::now()).unwrap());
        // An empty file stays.
        assert!(delivery.leave(SystemTime::now()).unwrap());
        assert_eq!(bench.files().len(), 3);
        drop(delivery);
        bench.append(8..9);
        finish(&mut bench.open());
        assert_eq!(bench.written_anywhere(), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn a_second_writer_is_refused() {
        let bench = Bench::new();
        let _first = bench.open();
        let other_cursor = bench.dir.path().join("other.cursor");
        let second = Delivery::open(&bench.events(), &other_cursor, bench.rotation, Fsync::EverySecond, &bench.journal);
        assert!(matches!(second, Err(FileSinkError::InUse { .. })));
    }

    #[test]
    fn a_payload_that_is_no_event_is_counted_and_holds_nobody_back() {
        let bench = Bench::new();
        bench.append(0..1);
        bench.journal.append(Kind::End, Uuid::nil(), 0, &[0xff; 20]).unwrap();
        bench.append(1..2);
        let mut delivery = bench.open();
        finish(&mut delivery);
        assert_eq!((bench.written(), delivery.unreadable()), (vec![0, 1], 1));
    }

    #[test]
    fn with_a_sync_for_each_batch_the_cursor_is_never_behind() {
        let bench = Bench::new();
        let cursor_path = bench.dir.path().join("events.cursor");
        let mut delivery =
            Delivery::open(&bench.events(), &cursor_path, bench.rotation, Fsync::Always, &bench.journal).unwrap();
        for next in 0..5 {
            bench.append(next..next + 1);
            finish(&mut delivery);
            assert_eq!(delivery.saved_seq(), bench.journal.position());
        }
    }
}
