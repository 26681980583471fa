//! Appending: the one place that writes segment files.
//!
//! A record is one `write` of one prepared buffer. When it fails half way, the file is cut back to where the record
//! began; when even that fails, the damaged segment is left behind and a new one begun, so that a torn record never
//! stands between two good ones. A failed record uses no sequence number.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::record::{self, Kind, MAX_PAYLOAD_BYTES};
use super::{JournalError, segment};

/// The appending end of a journal. Its owner holds it under a lock.
pub(super) struct Writer {
    dir: PathBuf,
    journal: Uuid,
    segment_bytes: u64,
    file: Arc<File>,
    /// Where the next record goes: everything before is good.
    offset: u64,
    next_seq: u64,
    /// First sequence numbers of all segments, ascending; the last one is being written.
    segments: Vec<u64>,
    /// The file may hold a torn record after `offset`.
    torn: bool,
    closed: bool,
    buffer: Vec<u8>,
    owed: Owed,
    pub counts: Counts,
}

/// What the writer has counted since the journal was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub written: u64,
    pub written_bytes: u64,
    pub dropped: u64,
}

/// What is written and not yet known to be on disk.
#[derive(Default)]
pub(super) struct Owed {
    /// Segments that are complete.
    pub complete: Vec<Arc<File>>,
    /// The one being written; filled in by [`Writer::take_owed`].
    pub current: Option<Arc<File>>,
    /// Segments were made, so the folder has to be synced too.
    pub folder: bool,
    /// Bytes in records.
    pub bytes: u64,
    /// Once all of this is on disk, so are the records up to this one.
    pub through_seq: u64,
}

impl Writer {
    /// Continues the last of `segments` at `offset`, its records before which are good.
    pub fn resume(
        dir: &Path,
        journal: Uuid,
        segment_bytes: u64,
        segments: Vec<u64>,
        offset: u64,
        next_seq: u64,
    ) -> Result<Self, JournalError> {
        let last = segment::path(dir, segments.last().copied().unwrap_or(next_seq));
        let file = OpenOptions::new().append(true).open(&last).map_err(JournalError::at("open", &last))?;
        file.set_len(offset).map_err(JournalError::at("cut", &last))?;
        Ok(Self::over(dir, journal, segment_bytes, segments, Arc::new(file), offset, next_seq))
    }

    /// Begins a segment after `segments`.
    pub fn begin(
        dir: &Path,
        journal: Uuid,
        segment_bytes: u64,
        mut segments: Vec<u64>,
        next_seq: u64,
    ) -> Result<Self, JournalError> {
        let (file, offset) = create(dir, journal, next_seq)?;
        segments.push(next_seq);
        Ok(Self::over(dir, journal, segment_bytes, segments, Arc::new(file), offset, next_seq))
    }

    fn over(
        dir: &Path,
        journal: Uuid,
        segment_bytes: u64,
        segments: Vec<u64>,
        file: Arc<File>,
        offset: u64,
        next_seq: u64,
    ) -> Self {
        // A crash may have left the segments before this one unsynced. What stood there earlier is long on disk.
        let earlier = segments.iter().rev().skip(1).take(2).map(|first_seq| File::open(segment::path(dir, *first_seq)));
        let complete = earlier.flatten().map(Arc::new).collect();
        Self {
            dir: dir.to_owned(),
            journal,
            segment_bytes,
            file,
            offset,
            next_seq,
            segments,
            torn: false,
            closed: false,
            buffer: Vec::with_capacity(4_096),
            owed: Owed { complete, folder: true, ..Owed::default() },
            counts: Counts::default(),
        }
    }

    /// Appends one record and returns its number. A record that cannot be written is counted as dropped.
    pub fn append(
        &mut self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        payload_bytes: usize,
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u64, JournalError> {
        let appended = self.try_append(kind, event_id, time_us, payload_bytes, write_payload);
        if appended.is_err() {
            self.counts.dropped = self.counts.dropped.saturating_add(1);
        }
        appended
    }

    fn try_append(
        &mut self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        payload_bytes: usize,
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u64, JournalError> {
        if self.closed {
            return Err(JournalError::Closed);
        }
        if payload_bytes > MAX_PAYLOAD_BYTES {
            return Err(JournalError::TooLarge { payload_bytes });
        }
        let seq = self.next_seq;
        record::encode(&mut self.buffer, kind, seq, time_us, event_id, write_payload);
        let record_bytes = self.buffer.len() as u64;
        if self.torn {
            self.mend()?;
        }
        let is_full = self.offset.saturating_add(record_bytes) > self.segment_bytes;
        if is_full && !self.holds_no_record() {
            // Without a new segment (no descriptors left, say) the old one grows past its size: no record is lost.
            let _ = self.rotate();
        }
        if let Err(source) = (&*self.file).write_all(&self.buffer) {
            self.torn = self.file.set_len(self.offset).is_err();
            return Err(JournalError::at("write", &self.current_path())(source));
        }
        self.offset = self.offset.saturating_add(record_bytes);
        self.next_seq = seq.saturating_add(1);
        self.owed.bytes = self.owed.bytes.saturating_add(record_bytes);
        self.counts.written = self.counts.written.saturating_add(1);
        self.counts.written_bytes = self.counts.written_bytes.saturating_add(record_bytes);
        Ok(seq)
    }

    /// Gets a torn record out of the way.
    fn mend(&mut self) -> Result<(), JournalError> {
        let cut = self.file.set_len(self.offset);
        if cut.is_err() && !self.holds_no_record() {
            self.rotate()?;
        } else {
            cut.map_err(JournalError::at("cut", &self.current_path()))?;
        }
        self.torn = false;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        let (file, offset) = create(&self.dir, self.journal, self.next_seq)?;
        self.owed.complete.push(mem::replace(&mut self.file, Arc::new(file)));
        self.owed.folder = true;
        self.offset = offset;
        self.segments.push(self.next_seq);
        Ok(())
    }

    fn holds_no_record(&self) -> bool {
        self.segments.last() == Some(&self.next_seq)
    }

    fn current_path(&self) -> PathBuf {
        segment::path(&self.dir, self.segments.last().copied().unwrap_or(self.next_seq))
    }

    /// Refuses everything from now on.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The number of the last record appended.
    pub fn last_seq(&self) -> u64 {
        self.next_seq.saturating_sub(1)
    }

    /// Bytes in records that nobody has taken to sync yet.
    pub fn owed_bytes(&self) -> u64 {
        self.owed.bytes
    }

    /// What has to reach the disk so that all records so far are there. The caller syncs without holding the lock.
    pub fn take_owed(&mut self) -> Owed {
        let mut owed = mem::take(&mut self.owed);
        owed.current = Some(Arc::clone(&self.file));
        owed.through_seq = self.last_seq();
        owed
    }

    /// Takes back what could not be synced.
    pub fn owe_again(&mut self, owed: Owed) {
        self.owed.complete.extend(owed.complete);
        self.owed.folder |= owed.folder;
    }

    /// First sequence numbers of all segments, ascending.
    pub fn segments(&self) -> &[u64] {
        &self.segments
    }

    /// Forgets the oldest segments whose records all have numbers up to `seq`, the newest two excepted, and returns
    /// them. The caller deletes their files.
    pub fn release(&mut self, seq: u64) -> Vec<u64> {
        let followed_by = self.segments.iter().skip(1);
        let passed = followed_by.take_while(|next_first| **next_first <= seq.saturating_add(1)).count();
        let released = passed.min(self.segments.len().saturating_sub(2));
        self.segments.drain(..released).collect()
    }
}

/// Makes a segment with its header and returns it with its size.
fn create(dir: &Path, journal: Uuid, first_seq: u64) -> Result<(File, u64), JournalError> {
    let path = segment::path(dir, first_seq);
    let header = segment::header(journal, first_seq);
    let created = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
    let file = created.map_err(JournalError::at("create", &path))?;
    let written: io::Result<()> = (&file).write_all(&header);
    if let Err(source) = written {
        // Half a header would stand in the way of the next try.
        let _ = std::fs::remove_file(&path);
        return Err(JournalError::at("write", &path)(source));
    }
    Ok((file, header.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::super::recovery::survey;
    use super::*;

    fn writer(dir: &Path) -> Writer {
        Writer::begin(dir, Uuid::from_u128(1), 1 << 20, Vec::new(), 1).unwrap()
    }

    fn append(writer: &mut Writer) -> Result<u64, JournalError> {
        writer.append(Kind::End, Uuid::nil(), 0, 3, |buffer| buffer.extend_from_slice(b"abc"))
    }

    /// Whoever opens the folder now finds this many records and nothing else.
    fn assert_holds(dir: &Path, records: u64) {
        let found = survey(dir).unwrap().recovered;
        assert_eq!((found.last_seq, found.bad_records, found.torn_bytes), (records, 0, 0));
    }

    #[test]
    fn a_torn_record_is_cut_off_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert_eq!(append(&mut writer).unwrap(), 1);
        (&*writer.file).write_all(b"half a record").unwrap();
        writer.torn = true;
        assert_eq!(append(&mut writer).unwrap(), 2);
        assert_eq!(writer.segments(), [1]);
        assert_holds(dir.path(), 2);
    }

    #[test]
    fn a_segment_that_can_no_longer_be_written_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert_eq!(append(&mut writer).unwrap(), 1);
        writer.file = Arc::new(File::open(writer.current_path()).unwrap());
        assert!(matches!(append(&mut writer), Err(JournalError::Io { action: "write", .. })));
        assert_eq!((writer.counts.written, writer.counts.dropped), (1, 1));
        assert_eq!(append(&mut writer).unwrap(), 2);
        assert_eq!(writer.segments(), [1, 2]);
        assert_holds(dir.path(), 2);
    }

    #[test]
    fn a_failing_disk_costs_the_records_of_that_time_and_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let good = Arc::clone(&writer.file);
        writer.file = Arc::new(File::open(writer.current_path()).unwrap());
        for _ in 0..3 {
            assert!(append(&mut writer).is_err());
        }
        writer.file = good;
        assert_eq!(append(&mut writer).unwrap(), 1);
        assert_eq!((writer.counts.written, writer.counts.dropped), (1, 3));
        assert_holds(dir.path(), 1);
    }
}
