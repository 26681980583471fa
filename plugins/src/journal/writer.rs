//! Appending: the one place that writes segment files.
//!
//! A record is one write of one prepared buffer; in `lossy`, many of them are. When it fails half way, the file is cut
//! back to where the record began; when even that fails, the damaged segment is left behind and a new one begun, so that
//! a torn record never stands between two good ones. A failed record uses no sequence number.
//!
//! The writer also keeps the list of what is not yet known to be on disk. A sync that failed is no sync to be repeated:
//! the kernel may have dropped what it could not write and call the next one a success. So the bytes that it was to
//! bring to disk are written once more before the next try, from the page cache, where they still are.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::disk::{self, Disk, DiskFile};
use super::record::{self, HEAD_BYTES, Kind, MAX_PAYLOAD_BYTES};
use super::{JournalError, segment, strip};

/// Bytes that are written again at once.
const CHUNK_BYTES: usize = 256 << 10;

/// The folder that a journal lives in.
pub(super) struct Folder {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub journal: Uuid,
    pub segment_bytes: u64,
}

/// A segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub first_seq: u64,
    /// Its size; of the one that is being written, when it was begun or found.
    pub bytes: u64,
}

/// The appending end of a journal. Its owner holds it under a lock.
pub(super) struct Writer {
    folder: Folder,
    file: Arc<dyn DiskFile>,
    /// Where the next record goes: everything before is good.
    offset: u64,
    next_seq: u64,
    /// Oldest first; the last one is being written.
    segments: Vec<Segment>,
    /// The file may hold a torn record after `offset`.
    torn: bool,
    closed: bool,
    buffer: Vec<u8>,
    owed: Owed,
    /// Where in the file begins what nobody has taken to sync yet.
    unsynced_from: u64,
    /// A sync of that has failed.
    is_suspect: bool,
    /// Why the last record could not be written, until one can again.
    pub last_error: Option<String>,
    pub counts: Counts,
}

/// What the writer has counted since the journal was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub written: u64,
    pub written_bytes: u64,
    pub stripped: u64,
    pub dropped: u64,
    pub discarded: u64,
}

/// What is written and not yet known to be on disk.
#[derive(Default)]
pub(super) struct Owed {
    /// Oldest first. [`Writer::take_owed`] adds the segment being written.
    pub parts: VecDeque<Part>,
    /// Segments were made, so the folder has to be synced too.
    pub folder: bool,
    /// Bytes in records.
    pub bytes: u64,
    /// Once all of this is on disk, so are the records up to this one.
    pub through_seq: u64,
}

/// A piece of a segment that is not known to be on disk.
pub(super) struct Part {
    pub first_seq: u64,
    /// `None`: it is opened when its turn comes.
    file: Option<Arc<dyn DiskFile>>,
    from: u64,
    to: u64,
    /// A sync has failed, so nobody knows what the next one would do for these bytes.
    is_suspect: bool,
}

impl Writer {
    /// Continues the last of `segments` at `offset`, its records before which are good.
    pub fn resume(folder: Folder, segments: Vec<Segment>, offset: u64, next_seq: u64) -> Result<Self, JournalError> {
        let first_seq = segments.last().map_or(next_seq, |segment| segment.first_seq);
        let last = segment::path(&folder.dir, first_seq);
        let file = folder.disk.open(&last).map_err(JournalError::at("open", &last))?;
        file.set_length(offset).map_err(JournalError::at("cut", &last))?;
        Ok(Self::over(folder, segments, file, offset, next_seq))
    }

    /// Begins a segment after `segments`.
    pub fn begin(folder: Folder, mut segments: Vec<Segment>, next_seq: u64) -> Result<Self, JournalError> {
        let (file, offset) = create(&folder, next_seq)?;
        segments.push(Segment { first_seq: next_seq, bytes: offset });
        Ok(Self::over(folder, segments, file, offset, next_seq))
    }

    fn over(folder: Folder, segments: Vec<Segment>, file: Arc<dyn DiskFile>, offset: u64, next_seq: u64) -> Self {
        // Nobody knows what of all this a crash left unsynced.
        let earlier = segments.split_last().map(|(_, earlier)| earlier).unwrap_or_default();
        let found = |segment: &Segment| Part {
            first_seq: segment.first_seq,
            file: None,
            from: 0,
            to: segment.bytes,
            is_suspect: false,
        };
        let owed = Owed { parts: earlier.iter().map(found).collect(), folder: true, ..Owed::default() };
        Self {
            folder,
            file,
            offset,
            next_seq,
            segments,
            torn: false,
            closed: false,
            buffer: Vec::with_capacity(4_096),
            owed,
            unsynced_from: 0,
            is_suspect: false,
            last_error: None,
            counts: Counts::default(),
        }
    }

    /// Appends one record and returns its number. The end of an exchange for which there is no room on the disk is
    /// tried once more without its captured bodies. A record that cannot be written is counted as dropped.
    pub fn append(
        &mut self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        payload_bytes: usize,
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u64, JournalError> {
        let mut appended = self.try_append(kind, event_id, time_us, payload_bytes, write_payload);
        if kind == Kind::End
            && appended.as_ref().is_err_and(JournalError::is_no_space)
            && let Some(again) = self.append_without_bodies(event_id, time_us)
        {
            appended = again;
        }
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
        let mut buffer = mem::take(&mut self.buffer);
        buffer.clear();
        record::encode(&mut buffer, kind, seq, time_us, event_id, write_payload);
        let written = self.write(&buffer, 1);
        self.buffer = buffer;
        written.map(|()| seq)
    }

    /// Tries the record in the buffer again without its captured bodies. `None` if it has none.
    #[cold]
    fn append_without_bodies(&mut self, event_id: Uuid, time_us: i64) -> Option<Result<u64, JournalError>> {
        let payload = strip::without_bodies(self.buffer.get(HEAD_BYTES..)?)?;
        let appended = self.try_append(Kind::End, event_id, time_us, payload.len(), |buffer| {
            buffer.extend_from_slice(&payload);
        });
        if appended.is_ok() {
            self.counts.stripped = self.counts.stripped.saturating_add(1);
        }
        Some(appended)
    }

    /// Writes records that are encoded already, whose numbers are the next ones. After an error none of them is there.
    pub fn write(&mut self, bytes: &[u8], records: u64) -> Result<(), JournalError> {
        let written = self.try_write(bytes);
        match &written {
            Ok(()) => {
                let length = bytes.len() as u64;
                self.offset = self.offset.saturating_add(length);
                self.next_seq = self.next_seq.saturating_add(records);
                self.owed.bytes = self.owed.bytes.saturating_add(length);
                self.counts.written = self.counts.written.saturating_add(records);
                self.counts.written_bytes = self.counts.written_bytes.saturating_add(length);
                if self.last_error.is_some() {
                    self.last_error = None;
                }
            }
            Err(error) => self.last_error = Some(error.to_string()),
        }
        written
    }

    fn try_write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        if self.torn {
            self.mend()?;
        }
        if self.room() < bytes.len() as u64 && !self.holds_no_record() {
            // Without a new segment (no descriptors left, say) the old one grows past its size: no record is lost.
            let _ = self.rotate();
        }
        if let Err(source) = disk::write_all(&*self.file, bytes, self.offset) {
            self.torn = self.file.set_length(self.offset).is_err();
            return Err(JournalError::at("write", &self.current_path())(source));
        }
        Ok(())
    }

    /// Gets a torn record out of the way.
    fn mend(&mut self) -> Result<(), JournalError> {
        let cut = self.file.set_length(self.offset);
        if cut.is_err() && !self.holds_no_record() {
            self.rotate()?;
        } else {
            cut.map_err(JournalError::at("cut", &self.current_path()))?;
        }
        self.torn = false;
        Ok(())
    }

    /// Ends the segment that is being written, unless it holds no record, and returns the number that the next record
    /// gets, which is the first of the segment written now.
    pub fn begin_next(&mut self) -> Result<u64, JournalError> {
        if self.closed {
            return Err(JournalError::Closed);
        }
        if !self.holds_no_record() {
            self.rotate()?;
            // What is torn stays behind.
            self.torn = false;
        }
        Ok(self.next_seq)
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        let (file, offset) = create(&self.folder, self.next_seq)?;
        let file = mem::replace(&mut self.file, file);
        let part = self.current_part(file);
        self.owed.parts.push_back(part);
        self.owed.folder = true;
        if let Some(complete) = self.segments.last_mut() {
            complete.bytes = self.offset;
        }
        self.segments.push(Segment { first_seq: self.next_seq, bytes: offset });
        self.offset = offset;
        self.unsynced_from = 0;
        Ok(())
    }

    /// The segment that is being written, as large as it is now, and the number that its next record gets. `None`: it
    /// may end in a torn record.
    pub fn current(&self) -> Option<(Segment, u64)> {
        let segment = Segment { first_seq: self.current_first_seq(), bytes: self.offset };
        (!self.torn).then_some((segment, self.next_seq))
    }

    /// Bytes until the segment has reached its size.
    pub fn room(&self) -> u64 {
        self.folder.segment_bytes.saturating_sub(self.offset)
    }

    fn holds_no_record(&self) -> bool {
        self.current_first_seq() == self.next_seq
    }

    fn current_first_seq(&self) -> u64 {
        self.segments.last().map_or(self.next_seq, |segment| segment.first_seq)
    }

    fn current_path(&self) -> PathBuf {
        segment::path(&self.folder.dir, self.current_first_seq())
    }

    /// Refuses every append from now on.
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
        owed.parts.push_back(self.current_part(Arc::clone(&self.file)));
        owed.through_seq = self.last_seq();
        self.unsynced_from = self.offset;
        owed
    }

    fn current_part(&mut self, file: Arc<dyn DiskFile>) -> Part {
        Part {
            first_seq: self.current_first_seq(),
            file: Some(file),
            from: self.unsynced_from,
            to: self.offset,
            is_suspect: mem::take(&mut self.is_suspect),
        }
    }

    /// Takes back what could not be synced. What was written to a segment meanwhile shares its fate: the sync that
    /// failed may have been the one that lost it.
    pub fn owe_again(&mut self, owed: Owed) {
        self.owed.folder |= owed.folder;
        for mut part in owed.parts.into_iter().rev() {
            if part.first_seq == self.current_first_seq() {
                self.unsynced_from = self.unsynced_from.min(part.from);
                self.is_suspect |= part.is_suspect;
            } else if let Some(later) = self.owed.parts.iter_mut().find(|later| later.first_seq == part.first_seq) {
                later.from = later.from.min(part.from);
                later.is_suspect |= part.is_suspect;
            } else {
                // An outage may be long, and descriptors are few.
                part.file = None;
                self.owed.parts.push_front(part);
            }
        }
    }

    /// The segments, oldest first; the last one is being written.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes in all segments.
    pub fn folder_bytes(&self) -> u64 {
        let complete = self.segments.split_last().map(|(_, complete)| complete).unwrap_or_default();
        complete.iter().fold(self.offset, |sum, segment| sum.saturating_add(segment.bytes))
    }

    /// The oldest segments whose records all have numbers up to `seq`. What is kept for people are the newest ones
    /// that together have the size of one, and two at least: segments that were ended early may be small.
    pub fn passed(&self, seq: u64) -> Vec<u64> {
        let next_seq = seq.saturating_add(1);
        let mut bytes = self.folder_bytes();
        let passed = self.removable().take_while(|(segment, following)| {
            bytes = bytes.saturating_sub(segment.bytes);
            *following <= next_seq && bytes >= self.folder.segment_bytes
        });
        passed.map(|(segment, _)| segment.first_seq).collect()
    }

    /// The oldest segments without which the folder has at most `most_bytes`, the newest two excepted, each with the
    /// first number after its records.
    pub fn excess(&self, most_bytes: u64) -> Vec<(u64, u64)> {
        let mut bytes = self.folder_bytes();
        let too_many = self.removable().take_while(|(segment, _)| {
            let is_above = bytes > most_bytes;
            bytes = bytes.saturating_sub(segment.bytes);
            is_above
        });
        too_many.map(|(segment, following)| (segment.first_seq, following)).collect()
    }

    /// All but the newest two, each with the first number after its records.
    fn removable(&self) -> impl Iterator<Item = (&Segment, u64)> {
        let followed_by = self.segments.iter().skip(1).map(|segment| segment.first_seq);
        self.segments.iter().zip(followed_by).take(self.segments.len().saturating_sub(2))
    }

    /// Another file has taken the place of a complete segment's: one of this size, which is on disk. The caller has
    /// seen to it that nothing of the old one was being synced.
    pub fn replaced(&mut self, first_seq: u64, bytes: u64) {
        self.owed.parts.retain(|part| part.first_seq != first_seq);
        self.owed.folder = true;
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.first_seq == first_seq) {
            segment.bytes = bytes;
        }
    }

    /// A segment's file is gone, with so many records that somebody still wanted.
    pub fn forget(&mut self, first_seq: u64, wanted: u64) {
        self.counts.discarded = self.counts.discarded.saturating_add(wanted);
        self.segments.retain(|segment| segment.first_seq != first_seq);
    }
}

impl Part {
    /// Brings it to disk.
    pub fn settle(&mut self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => match disk.open(path) {
                Ok(file) => file,
                // Its records are of no more interest to anybody.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        if self.is_suspect {
            write_again(&*file, self.from, self.to)?;
        }
        file.sync().inspect_err(|_| self.is_suspect = true)
    }
}

/// Writes what stands in a file from `from` to `to` there once more.
fn write_again(file: &dyn DiskFile, mut from: u64, to: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while from < to {
        let most = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let room = chunk.get_mut(..most).unwrap_or_default();
        let read = match file.read_at(room, from) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        disk::write_all(file, room.get(..read).unwrap_or_default(), from)?;
        from = from.saturating_add(read as u64);
    }
    Ok(())
}

/// Makes a segment with its header and returns it with its size.
fn create(folder: &Folder, first_seq: u64) -> Result<(Arc<dyn DiskFile>, u64), JournalError> {
    let Folder { disk, dir, journal, .. } = folder;
    let path = segment::path(dir, first_seq);
    let header = segment::header(*journal, first_seq);
    let created = match disk.create(&path) {
        // Half a segment, left by an earlier try that could not even tidy up: no record is numbered as high as its name.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&path).and_then(|()| disk.create(&path))
        }
        created => created,
    };
    let file = created.map_err(JournalError::at("create", &path))?;
    if let Err(source) = disk::write_all(&*file, &header, 0) {
        // Half a header would stand in the way of the next try.
        let _ = disk.remove(&path);
        return Err(JournalError::at("write", &path)(source));
    }
    Ok((file, header.len() as u64))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::disk::LocalDisk;
    use super::super::recovery::survey;
    use super::*;

    fn folder(dir: &Path) -> Folder {
        Folder { disk: Arc::new(LocalDisk), dir: dir.to_owned(), journal: Uuid::from_u128(1), segment_bytes: 1 << 20 }
    }

    fn writer(dir: &Path) -> Writer {
        Writer::begin(folder(dir), Vec::new(), 1).unwrap()
    }

    fn append(writer: &mut Writer) -> Result<u64, JournalError> {
        writer.append(Kind::End, Uuid::nil(), 0, 3, |buffer| buffer.extend_from_slice(b"abc"))
    }

    fn first_seqs(writer: &Writer) -> Vec<u64> {
        writer.segments().iter().map(|segment| segment.first_seq).collect()
    }

    fn read_only(writer: &Writer) -> Arc<dyn DiskFile> {
        Arc::new(File::open(writer.current_path()).unwrap())
    }

    /// Whoever opens the folder now finds this many records and nothing else.
    fn assert_holds(dir: &Path, records: u64) {
        let found = survey(&LocalDisk, dir).unwrap().recovered;
        assert_eq!((found.last_seq, found.bad_records, found.torn_bytes), (records, 0, 0));
    }

    #[test]
    fn a_torn_record_is_cut_off_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert_eq!(append(&mut writer).unwrap(), 1);
        disk::write_all(&*writer.file, &[7; 100], writer.offset).unwrap();
        writer.torn = true;
        assert_eq!(append(&mut writer).unwrap(), 2);
        assert_eq!(first_seqs(&writer), [1]);
        assert_holds(dir.path(), 2);
    }

    #[test]
    fn a_segment_that_can_no_longer_be_written_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert_eq!(append(&mut writer).unwrap(), 1);
        writer.file = read_only(&writer);
        assert!(matches!(append(&mut writer), Err(JournalError::Io { action: "write", .. })));
        assert!(writer.last_error.is_some());
        assert_eq!((writer.counts.written, writer.counts.dropped), (1, 1));
        assert_eq!(append(&mut writer).unwrap(), 2);
        assert_eq!(writer.last_error, None);
        assert_eq!(first_seqs(&writer), [1, 2]);
        assert_holds(dir.path(), 2);
    }

    #[test]
    fn a_failing_disk_costs_the_records_of_that_time_and_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let good = Arc::clone(&writer.file);
        writer.file = read_only(&writer);
        for _ in 0..3 {
            assert!(append(&mut writer).is_err());
        }
        writer.file = good;
        assert_eq!(append(&mut writer).unwrap(), 1);
        assert_eq!((writer.counts.written, writer.counts.dropped), (1, 3));
        assert_holds(dir.path(), 1);
    }

    #[test]
    fn a_segment_is_ended_once_it_holds_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert_eq!(writer.begin_next().unwrap(), 1);
        assert_eq!(append(&mut writer).unwrap(), 1);
        disk::write_all(&*writer.file, &[7; 100], writer.offset).unwrap();
        writer.torn = true;
        for _ in 0..2 {
            assert_eq!(writer.begin_next().unwrap(), 2);
        }
        assert_eq!(first_seqs(&writer), [1, 2]);
        assert_eq!(append(&mut writer).unwrap(), 2);
        assert_holds(dir.path(), 2);
        writer.close();
        assert!(matches!(writer.begin_next(), Err(JournalError::Closed)));
    }

    #[test]
    fn half_a_segment_that_nobody_could_remove_stands_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert_eq!(append(&mut writer).unwrap(), 1);
        std::fs::write(segment::path(dir.path(), 2), b"LLMP").unwrap();
        writer.folder.segment_bytes = 1;
        assert_eq!(append(&mut writer).unwrap(), 2);
        assert_eq!(first_seqs(&writer), [1, 2]);
        assert_holds(dir.path(), 2);
    }

    #[test]
    fn of_what_everybody_has_passed_as_much_as_one_segment_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        // Ended long before they have their size.
        for seq in 1..=6 {
            assert_eq!(append(&mut writer).unwrap(), seq);
            assert_eq!(writer.begin_next().unwrap(), seq + 1);
        }
        assert_eq!(append(&mut writer).unwrap(), 7);
        let each = writer.folder_bytes() / 7;
        for (segment_bytes, expected) in [
            (8 * each, &[][..]),
            (7 * each, &[]),
            (6 * each, &[1]),
            (5 * each + 1, &[1]),
            (4 * each, &[1, 2, 3]),
            (each, &[1, 2, 3, 4, 5]),
        ] {
            writer.folder.segment_bytes = segment_bytes;
            assert_eq!(writer.passed(u64::MAX), expected, "segments of {segment_bytes} bytes, each has {each}");
        }
        assert_eq!(writer.passed(2), [1, 2]);
    }

    #[test]
    fn the_oldest_segments_go_first_and_the_newest_two_never() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        writer.folder.segment_bytes = 1;
        for seq in 1..=5 {
            assert_eq!(append(&mut writer).unwrap(), seq);
        }
        assert_eq!(first_seqs(&writer), [1, 2, 3, 4, 5]);
        let each = writer.folder_bytes() / 5;
        for segment in writer.segments() {
            let length = std::fs::metadata(segment::path(dir.path(), segment.first_seq)).unwrap().len();
            assert_eq!(length, each);
        }
        for (seq, expected) in [(0, &[][..]), (1, &[1]), (2, &[1, 2]), (3, &[1, 2, 3]), (u64::MAX, &[1, 2, 3])] {
            assert_eq!(writer.passed(seq), expected, "up to {seq}");
        }
        for (most_bytes, expected) in [
            (5 * each, &[][..]),
            (5 * each - 1, &[(1, 2)]),
            (4 * each, &[(1, 2)]),
            (3 * each, &[(1, 2), (2, 3)]),
            (0, &[(1, 2), (2, 3), (3, 4)]),
        ] {
            assert_eq!(writer.excess(most_bytes), expected, "{most_bytes} bytes");
        }
        writer.forget(1, 1);
        assert_eq!((first_seqs(&writer), writer.folder_bytes()), (vec![2, 3, 4, 5], 4 * each));
        assert_eq!(writer.counts.discarded, 1);
        writer.replaced(3, 10);
        assert_eq!(writer.folder_bytes(), 3 * each + 10);
    }
}
