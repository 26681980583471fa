//! One step of the file sink after the other, without the thread that takes them.
//!
//! Lines are written at once; file, journal and cursor are synced together at a checkpoint, about once a second. What
//! lies between the checkpoint and a crash is made good at the next start: events that are in the file are recognised
//! by their id, events that are not are still in the journal.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cursor::{self, Cursor};
use super::{FileSinkError, resume};
use crate::event::{self, Exchange, Message};
use crate::journal::{Journal, Kind, Reader};

const MAX_BATCH_EVENTS: u64 = 1_000;
const MAX_BATCH_BYTES: usize = 1 << 20;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
const CHECKPOINT_BYTES: u64 = 8 << 20;

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Events written.
    pub events: u64,
    /// The journal had no more.
    pub caught_up: bool,
}

/// The sink's state: the file, the place in the journal, and the batch on its way from one to the other.
pub(super) struct Delivery {
    journal: Journal,
    reader: Reader,
    path: PathBuf,
    file: File,
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
    delivered: u64,
    undecodable: u64,
}

impl Delivery {
    pub fn open(path: &Path, cursor_path: &Path, journal: &Journal) -> Result<Self, FileSinkError> {
        let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        let file = opened.map_err(FileSinkError::at("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FileSinkError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(FileSinkError::at("lock", path)(source)),
        }
        let saved = Cursor::load(cursor_path).map_err(FileSinkError::at("read", cursor_path))?;
        let saved = saved.filter(|cursor| cursor.journal == journal.id());
        let file_bytes = file.metadata().map_err(FileSinkError::at("read", path))?.len();
        // A file shorter than the cursor says was rotated or replaced: all of it is newer than the cursor.
        let from = saved.as_ref().map(|cursor| cursor.length).filter(|length| *length <= file_bytes).unwrap_or(0);
        let found = resume::look(&file, from).map_err(FileSinkError::at("read", path))?;
        if found.length < file_bytes {
            file.set_len(found.length).map_err(FileSinkError::at("cut", path))?;
        }
        if let Some(cursor) = &saved
            && cursor.length != found.length
            && found.ids.is_empty()
        {
            // A new file: without this it would be taken for the old one as soon as it has grown as long.
            let cursor = Cursor { length: found.length, ..cursor.clone() };
            cursor.save(cursor_path).map_err(FileSinkError::at("write", cursor_path))?;
        }
        // A journal folder restored from an older copy may end before the cursor.
        let seq = saved.map_or(0, |cursor| cursor.seq).min(journal.position());
        Ok(Self {
            journal: journal.clone(),
            reader: journal.reader(seq),
            path: path.to_owned(),
            file,
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
            delivered: 0,
            undecodable: 0,
        })
    }

    /// Writes one batch. After an error the same step may be taken again; nothing is lost or written twice by it.
    pub fn step(&mut self) -> Result<Step, FileSinkError> {
        let caught_up = self.gather()?;
        let events = self.line_events;
        self.write()?;
        if self.is_checkpoint_due() {
            self.checkpoint()?;
        }
        Ok(Step { events, caught_up })
    }

    /// Fills the batch from the journal. True if that has no more now.
    fn gather(&mut self) -> Result<bool, FileSinkError> {
        while self.line_events < MAX_BATCH_EVENTS && self.lines.len() < MAX_BATCH_BYTES {
            let Some(record) = self.reader.next_ref()? else { return Ok(true) };
            if record.kind != Kind::End {
                continue;
            }
            let Ok(exchange) = Exchange::decode(record.payload) else {
                self.undecodable = self.undecodable.saturating_add(1);
                continue;
            };
            if self.already_written.is_empty() || !self.already_written.remove(&exchange.id) {
                event::append_json_line(&exchange, &mut self.lines);
                self.lines.push(b'\n');
                self.line_events = self.line_events.saturating_add(1);
            }
        }
        Ok(false)
    }

    fn write(&mut self) -> Result<(), FileSinkError> {
        if !self.lines.is_empty() {
            // Asked anew each time: someone else may have truncated the file.
            let file_bytes = self.file.metadata().map_err(FileSinkError::at("read", &self.path))?.len();
            if self.torn && file_bytes > self.length {
                self.file.set_len(self.length).map_err(FileSinkError::at("cut", &self.path))?;
            } else {
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
        self.written_seq = self.reader.last_seq();
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
        self.journal.sync_through(self.written_seq)?;
        self.file.sync_data().map_err(FileSinkError::at("sync", &self.path))?;
        cursor::sync_folder_of(&self.path).map_err(FileSinkError::at("sync", &self.path))?;
        let cursor = Cursor { journal: self.journal.id().to_owned(), seq: self.written_seq, length: self.length };
        cursor.save(&self.cursor_path).map_err(FileSinkError::at("write", &self.cursor_path))?;
        self.saved_seq = self.written_seq;
        self.saved_at = Instant::now();
        self.unsaved_bytes = 0;
        Ok(())
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
        self.reader.skipped().saturating_add(self.undecodable)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;
    use crate::journal::Options;

    struct Bench {
        journal: Journal,
        dir: TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
            Self { journal, dir }
        }

        fn events(&self) -> PathBuf {
            self.dir.path().join("events.jsonl")
        }

        fn open(&self) -> Delivery {
            let cursor_path = self.dir.path().join("events.cursor");
            let mut delivery = Delivery::open(&self.events(), &cursor_path, &self.journal).unwrap();
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
            let text = fs::read_to_string(self.events()).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'));
            let value = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
            text.lines().map(|line| value(line)["id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128()).collect()
        }
    }

    fn finish(delivery: &mut Delivery) {
        while !delivery.step().unwrap().caught_up {}
    }

    #[test]
    fn every_end_becomes_one_line_and_the_file_is_private() {
        let bench = Bench::new();
        bench.append(0..2_500);
        let mut delivery = bench.open();
        assert_eq!(delivery.step().unwrap(), Step { events: 1_000, caught_up: false });
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
    fn a_failed_write_is_repeated_and_leaves_no_trace() {
        let bench = Bench::new();
        bench.append(0..2);
        let mut delivery = bench.open();
        finish(&mut delivery);
        let writable = std::mem::replace(&mut delivery.file, File::open(bench.events()).unwrap());
        bench.append(2..4);
        assert!(matches!(delivery.step(), Err(FileSinkError::Io { action: "write", .. })));
        assert!(delivery.step().is_err());
        // What a short write would have left.
        (&writable).write_all(b"{\"id\":\"ha").unwrap();
        delivery.file = writable;
        finish(&mut delivery);
        assert_eq!(bench.written(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_second_writer_is_refused() {
        let bench = Bench::new();
        let _first = bench.open();
        let second = Delivery::open(&bench.events(), &bench.dir.path().join("other.cursor"), &bench.journal);
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
}
