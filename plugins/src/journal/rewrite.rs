//! Changing what complete segments hold: how captured content is erased.
//!
//! A journal is only ever appended to, with this one exception. A segment that is complete is copied, record by record,
//! with the same numbers, times and ids and a valid checksum for each; the copy reaches the disk and takes the place of
//! the original by a rename. A crash leaves the old file or the new one. Whoever has the old file open goes on reading
//! its bytes, which are the same records; whoever opens the new one finds its place by the numbers. That content is gone
//! is told by a count in the folder ([`erasures`]), so that consumers let go of what they hold.
//!
//! Bytes that are no record are not copied: nobody can say what was in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::record::{self, Head, Kind, RecordRef};
use super::segment::{self, HEADER_BYTES, SegmentStream};
use super::{Journal, JournalError, Shared};

/// How often content was erased: a number in a file of this name.
const COUNT_FILE: &str = "erased";
/// What a copy is called until it takes its place.
const COPY_SUFFIX: &str = ".seg.erase";

/// What rewriting came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Records, or lines, that were changed.
    pub records: u64,
    /// Files that were replaced.
    pub files: u64,
    /// Bytes by which the records became shorter.
    pub bytes: u64,
}

impl Rewritten {
    /// Adds what another file came to.
    pub fn add(&mut self, more: Self) {
        self.records = self.records.saturating_add(more.records);
        self.files = self.files.saturating_add(more.files);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    /// Notes a record that was changed.
    pub fn note(&mut self, bytes_before: usize, bytes_after: usize) {
        self.records = self.records.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes_before.saturating_sub(bytes_after) as u64);
    }
}

/// Says what the payload of a record is to be, if it is to be another one.
pub(crate) type Edit<'a> = dyn Fn(&RecordRef<'_>) -> Option<Vec<u8>> + 'a;

impl Journal {
    /// Ends the segment that is being written, unless it holds no record, and returns the first number of the one that
    /// is written from now on. All records appended before are in complete segments then.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the old segment is still written. [`JournalError::Closed`].
    pub fn rotate(&self) -> Result<u64, JournalError> {
        let shared = &*self.inner.shared;
        shared.write_out()?;
        shared.writer.lock().begin_next()
    }

    /// As [`Self::rotate`], but only if the segment that is being written holds something that `edit` changes, or that is
    /// no record. Else it stays, so that erasing often makes no small segments.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub(crate) fn rotate_if_concerned(&self, edit: &Edit<'_>) -> Result<(), JournalError> {
        let (dir, shared) = (self.folder(), &*self.inner.shared);
        shared.write_out()?;
        let current = shared.writer.lock().current();
        let is_concerned = current.is_none_or(|(current, following)| {
            let segment = Segment { dir, journal: Uuid::nil(), first_seq: current.first_seq, following };
            // What cannot be read may be concerned: that is told once it is to be rewritten.
            following > current.first_seq && segment.needs_change(edit, current.bytes, true).unwrap_or(true)
        });
        if is_concerned {
            self.rotate()?;
        }
        Ok(())
    }

    /// Replaces payloads in all segments but the one that is being written. One call at a time; appending and reading
    /// go on meanwhile. After an error it has been tried with every other segment all the same.
    pub(crate) fn rewrite_complete(&self, edit: &Edit<'_>) -> Result<Rewritten, JournalError> {
        let dir = self.folder();
        let journal = Uuid::try_parse(self.id()).map_err(io::Error::other).map_err(JournalError::at("rewrite", dir))?;
        let shared = &*self.inner.shared;
        let segments: Vec<_> = shared.writer.lock().segments().iter().map(|segment| segment.first_seq).collect();
        let mut total = Rewritten::default();
        let mut failed = None;
        for (first_seq, following) in segments.iter().zip(segments.iter().skip(1)) {
            let segment = Segment { dir, journal, first_seq: *first_seq, following: *following };
            match shared.rewrite(&segment, edit) {
                Ok(rewritten) => total.add(rewritten),
                // One that cannot be read is no reason to leave the others as they are.
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(total), Err)
    }

    /// The folder of its segments.
    pub(crate) fn folder(&self) -> &Path {
        &self.inner.shared.dir
    }
}

impl Shared {
    fn rewrite(&self, segment: &Segment<'_>, edit: &Edit<'_>) -> Result<Rewritten, JournalError> {
        let path = segment::path(segment.dir, segment.first_seq);
        let copied = match segment.copy(edit) {
            // Released since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => result.map_err(JournalError::at("rewrite", &path))?,
        };
        let Some(rewritten) = copied else { return Ok(Rewritten::default()) };
        let is_in_place = self.put_in_place(segment.first_seq).map_err(JournalError::at("replace", &path))?;
        Ok(if is_in_place { rewritten } else { Rewritten::default() })
    }

    /// Puts the copy of a segment, which is on disk, where the segment is. False if that has been deleted meanwhile.
    fn put_in_place(&self, first_seq: u64) -> io::Result<bool> {
        let (path, copy) = (segment::path(&self.dir, first_seq), copy_path(&self.dir, first_seq));
        let bytes = fs::metadata(&copy)?.len();
        // Meanwhile nothing of the old file is brought to disk, and none is deleted, which would make this a stray one.
        let _sync_turn = self.sync_turn.lock();
        let _removal_turn = self.removal_turn.lock();
        if !self.writer.lock().segments().iter().any(|segment| segment.first_seq == first_seq) {
            fs::remove_file(&copy)?;
            return Ok(false);
        }
        fs::rename(&copy, &path)?;
        // Before the writer forgets what it owes to the disk of the old file, which a power cut could bring back.
        let synced = File::open(&self.dir).and_then(|folder| folder.sync_all());
        self.writer.lock().replaced(first_seq, bytes);
        synced.map(|()| true)
    }
}

/// One segment, or what of it was written up to a moment.
struct Segment<'a> {
    dir: &'a Path,
    journal: Uuid,
    first_seq: u64,
    following: u64,
}

impl Segment<'_> {
    /// Makes a copy beside the segment, and brings it to disk; `None` if it would be the same.
    fn copy(&self, edit: &Edit<'_>) -> io::Result<Option<Rewritten>> {
        let file_bytes = fs::metadata(segment::path(self.dir, self.first_seq))?.len();
        if !self.needs_change(edit, file_bytes, false)? {
            return Ok(None);
        }
        let path = copy_path(self.dir, self.first_seq);
        // What a crash left would keep its mode.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let copied = self.copy_to(BufWriter::with_capacity(256 << 10, file), edit);
        if copied.is_err() {
            let _ = fs::remove_file(&path);
        }
        copied.map(Some)
    }

    fn copy_to(&self, mut to: BufWriter<File>, edit: &Edit<'_>) -> io::Result<Rewritten> {
        let mut rewritten = Rewritten { files: 1, ..Rewritten::default() };
        let original = File::open(segment::path(self.dir, self.first_seq))?;
        to.write_all(&segment::header(self.journal, self.first_seq))?;
        let mut stream = SegmentStream::open(self.dir, self.first_seq)?;
        let mut bytes = Vec::new();
        while let Some(head) = stream.next(self.following.saturating_sub(1), false)? {
            match edited(&stream, &head, edit) {
                Some((kind, payload)) => {
                    rewritten.note(head.payload_bytes, payload.len());
                    bytes.clear();
                    record::encode(&mut bytes, kind, head.seq, head.time_us, head.event_id, |bytes| {
                        bytes.extend_from_slice(&payload);
                    });
                }
                None => {
                    bytes.resize(head.record_bytes(), 0);
                    original.read_exact_at(&mut bytes, begin_of(&stream, &head))?;
                }
            }
            to.write_all(&bytes)?;
        }
        to.flush()?;
        to.get_ref().sync_all()?;
        Ok(rewritten)
    }

    /// Whether there is a record to change, or something that is none, in the first so many bytes. `growing`: others may
    /// follow these.
    fn needs_change(&self, edit: &Edit<'_>, bytes: u64, growing: bool) -> io::Result<bool> {
        let mut stream = SegmentStream::open(self.dir, self.first_seq)?;
        if stream.header().is_none() {
            return Ok(true);
        }
        let mut good_bytes = HEADER_BYTES as u64;
        while let Some(head) = stream.next(self.following.saturating_sub(1), growing)? {
            if begin_of(&stream, &head) != good_bytes || edited(&stream, &head, edit).is_some() {
                return Ok(true);
            }
            good_bytes = stream.offset();
        }
        Ok(good_bytes != bytes)
    }
}

/// Where in its file the record that was read last begins.
fn begin_of(stream: &SegmentStream, head: &Head) -> u64 {
    stream.offset().saturating_sub(head.record_bytes() as u64)
}

fn edited(stream: &SegmentStream, head: &Head, edit: &Edit<'_>) -> Option<(Kind, Vec<u8>)> {
    let kind = Kind::from_code(head.code)?;
    let payload = stream.payload(head);
    let record = RecordRef { kind, seq: head.seq, time_us: head.time_us, event_id: head.event_id, payload };
    Some((kind, edit(&record)?))
}

fn copy_path(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}{COPY_SUFFIX}"))
}

/// Removes the copies that a crash left before they took their place.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(COPY_SUFFIX)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// How often content was erased from the journal in `dir`; 0 where that was never or cannot be read.
pub(crate) fn erasures(dir: &Path) -> u64 {
    fs::read_to_string(dir.join(COUNT_FILE)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Tells all consumers, those in other processes too, that content has been erased.
pub(crate) fn note_erasure(dir: &Path) -> Result<(), JournalError> {
    let (path, next) = (dir.join(COUNT_FILE), dir.join("erased.next"));
    let count = erasures(dir).saturating_add(1);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        writeln!(file, "{count}")?;
        file.sync_data()?;
        fs::rename(&next, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(JournalError::at("write", &path))
}
