//! A journal that another process writes, or that nobody writes at the moment: read without a lock, without writing
//! anything, and without a word from the writer.
//!
//! All there is to go by are the files. A record is there when its checksum says so; what stands behind the last whole
//! one may be half of the next, or torn and about to be cut, so that it is read anew at every look and never kept. New
//! segments show in the folder. The writer may end and start again meanwhile: it cuts a torn tail, and the numbers go on
//! behind the last whole record, which is where we are.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use super::record::{self, Parsed};
use super::segment::{self, HEADER_BYTES, Header, SegmentStream};
use super::{JournalError, Reader};

/// Read at once.
const PIECE_BYTES: usize = 256 << 10;
/// More records than a segment can hold, so that none is refused for its number however many before it are damaged.
const MOST_NUMBERS_AHEAD: u64 = 1 << 32;

/// A journal of another process. Clones share what was found.
#[derive(Clone)]
pub struct Follower {
    folder: Arc<Folder>,
}

impl Follower {
    /// Opens the journal in `dir` to read it while another process writes it, or none does. Reads its newest segment.
    ///
    /// # Errors
    /// [`JournalError::NotThere`] where no journal has been made yet; a caller may wait for it.
    /// [`JournalError::Version`], and [`JournalError::Io`] with the file it concerns.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let segments = list(dir)?;
        let journal = journal_of(dir, &segments)?.ok_or_else(|| not_there(dir))?;
        let newest = segments.last().copied().ok_or_else(|| not_there(dir))?;
        let path = segment::path(dir, newest);
        let tail = Tail::open(dir, newest).map_err(JournalError::at("open", &path))?;
        let folder = Folder {
            dir: dir.to_owned(),
            journal,
            id: journal.to_string(),
            position: AtomicU64::new(newest.saturating_sub(1)),
            synced: AtomicU64::new(0),
            tail: Mutex::new(tail),
        };
        folder.look()?;
        Ok(Self { folder: Arc::new(folder) })
    }

    /// The journal's own random id, as [`super::Journal::id`].
    pub fn id(&self) -> &str {
        &self.folder.id
    }

    /// The number of the last whole record, after a look at the files; 0 if there was none yet. Where they cannot be
    /// read, what was known before: a reader meets the same error and tells it.
    pub fn position(&self) -> u64 {
        self.folder.look().unwrap_or_else(|_| self.folder.known())
    }

    /// A reader of the records after `after_seq`; 0 reads all that are kept.
    ///
    /// Its errors may also be [`JournalError::Replaced`]: another journal lies in the folder now, with numbers that
    /// mean something else. A process that follows it has to begin again.
    pub fn reader(&self, after_seq: u64) -> Reader {
        Reader::following(Arc::clone(&self.folder), after_seq)
    }

    /// Brings the records up to `seq` to disk, unless that was done before. The system's cache of a file is the same
    /// for every process, so that a sync of ours covers what the writer wrote.
    ///
    /// # Errors
    /// [`JournalError::Io`]: they may not all be there.
    pub fn sync_through(&self, seq: u64) -> Result<(), JournalError> {
        self.folder.sync_through(seq)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder.dir
    }
}

/// What the readers of a foreign journal share.
pub(super) struct Folder {
    dir: PathBuf,
    journal: Uuid,
    id: String,
    /// The last whole record seen.
    position: AtomicU64,
    /// The last record that we have brought to disk.
    synced: AtomicU64,
    tail: Mutex<Tail>,
}

impl Folder {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last whole record seen so far.
    pub fn known(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// The last whole record, where that lies after `seq` without a look at the files if possible.
    pub fn position_after(&self, seq: u64) -> Result<u64, JournalError> {
        let known = self.known();
        if known > seq { Ok(known) } else { self.look() }
    }

    /// The segment that holds record `seq`, or the oldest one if that is gone.
    pub fn segment_of(&self, seq: u64) -> Result<u64, JournalError> {
        let segments = list(&self.dir)?;
        let holding = segments.iter().rev().find(|first_seq| **first_seq <= seq);
        holding.or(segments.first()).copied().ok_or_else(|| not_there(&self.dir))
    }

    pub fn segment_after(&self, first_seq: u64) -> Result<Option<u64>, JournalError> {
        Ok(list(&self.dir)?.into_iter().find(|next_first| *next_first > first_seq))
    }

    /// Refuses a segment of another journal, or of a later version. A damaged header says nothing.
    pub fn check(&self, header: Option<Header>, path: &Path) -> Result<(), JournalError> {
        let Some(header) = header else { return Ok(()) };
        check_version(header, path)?;
        if header.journal == self.journal { Ok(()) } else { Err(self.replaced()) }
    }

    fn replaced(&self) -> JournalError {
        JournalError::Replaced { dir: self.dir.clone() }
    }

    /// Looks for new records and new segments, and returns the number of the last whole record.
    fn look(&self) -> Result<u64, JournalError> {
        let mut tail = self.tail.lock();
        loop {
            self.read_on(&mut tail)?;
            let segments = segment::list(&self.dir).map_err(JournalError::at("list", &self.dir))?;
            let Some(next) = segments.iter().copied().find(|first_seq| *first_seq > tail.first_seq) else {
                return self.look_again(&mut tail, &segments);
            };
            let Some(found) = self.open_tail(next)? else { return Ok(self.known()) };
            // What came between the end met above and the completion of that segment.
            self.read_on(&mut tail)?;
            *tail = found;
            // Numbers before a segment are given, whatever became of their records.
            self.position.fetch_max(next.saturating_sub(1), Ordering::AcqRel);
        }
    }

    fn read_on(&self, tail: &mut Tail) -> Result<(), JournalError> {
        let path = segment::path(&self.dir, tail.first_seq);
        if let Some(seq) = tail.read_on().map_err(JournalError::at("read", &path))? {
            self.position.fetch_max(seq, Ordering::AcqRel);
        }
        Ok(())
    }

    /// With no newer segment: whether the one at hand is still the one in the folder, and if not, what is there now.
    fn look_again(&self, tail: &mut Tail, segments: &[u64]) -> Result<u64, JournalError> {
        let known = self.known();
        // An empty folder is one that is being made, or being taken away: nothing new so far.
        let Some(newest) = segments.last().copied() else { return Ok(known) };
        let path = segment::path(&self.dir, newest);
        if newest == tail.first_seq && tail.is_at(&path).map_err(JournalError::at("read", &path))? {
            return Ok(known);
        }
        let Some(mut found) = self.open_tail(newest)? else { return Ok(known) };
        found.read_on().map_err(JournalError::at("read", &path))?;
        let last_seq = found.next_seq.saturating_sub(1);
        if last_seq < known {
            // An older copy of the same journal gives numbers again that we have passed.
            return Err(self.replaced());
        }
        *tail = found;
        self.position.fetch_max(last_seq, Ordering::AcqRel);
        Ok(last_seq)
    }

    /// The segment named by `first_seq`; `None` while it is being made, or if it is gone already.
    fn open_tail(&self, first_seq: u64) -> Result<Option<Tail>, JournalError> {
        let path = segment::path(&self.dir, first_seq);
        let opened = SegmentStream::open(&self.dir, first_seq).and_then(|stream| {
            let tail = Tail::open(&self.dir, first_seq)?;
            let file_bytes = tail.file.metadata()?.len();
            Ok((stream.header(), tail, file_bytes))
        });
        let (header, tail, file_bytes) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(JournalError::at("open", &path)(error)),
        };
        if header.is_none() && file_bytes <= HEADER_BYTES as u64 {
            return Ok(None);
        }
        self.check(header, &path)?;
        Ok(Some(tail))
    }

    fn sync_through(&self, seq: u64) -> Result<(), JournalError> {
        let synced = self.synced.load(Ordering::Acquire);
        if synced >= seq {
            return Ok(());
        }
        let segments = list(&self.dir)?;
        for (place, first_seq) in segments.iter().copied().enumerate() {
            let next_first = segments.get(place.saturating_add(1)).copied().unwrap_or(u64::MAX);
            // Each that holds a record after the last one synced, up to `seq`.
            if first_seq > seq || next_first <= synced.saturating_add(1) {
                continue;
            }
            let path = segment::path(&self.dir, first_seq);
            match File::open(&path).and_then(|file| file.sync_data()) {
                // Deleted since: its records need no place on disk any more.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(JournalError::at("sync", &path))?,
            }
        }
        let synced_folder = File::open(&self.dir).and_then(|folder| folder.sync_all());
        synced_folder.map_err(JournalError::at("sync", &self.dir))?;
        self.synced.fetch_max(seq, Ordering::AcqRel);
        Ok(())
    }
}

/// The newest segment, and how far it has been seen.
struct Tail {
    first_seq: u64,
    file: File,
    /// Where the last whole record ends, or the file begins.
    offset: u64,
    /// The lowest number that the next record can have.
    next_seq: u64,
}

impl Tail {
    fn open(dir: &Path, first_seq: u64) -> io::Result<Self> {
        // From the very start: the header is no record, and is passed over like damage.
        Ok(Self { first_seq, file: File::open(segment::path(dir, first_seq))?, offset: 0, next_seq: first_seq })
    }

    /// Whether this is the file at `path`.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let here = self.file.metadata()?;
        match fs::metadata(path) {
            Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads to the end of the file, and returns the number of the last whole record that was not seen before.
    fn read_on(&mut self) -> io::Result<Option<u64>> {
        if self.file.metadata()?.len() <= self.offset {
            return Ok(None);
        }
        let mut held = Held { bytes: Vec::new(), begins_at: self.offset, at: 0 };
        let mut last_seq = None;
        loop {
            let plausible = self.next_seq..=self.next_seq.saturating_add(MOST_NUMBERS_AHEAD);
            match record::parse(held.rest(), plausible.clone()) {
                Parsed::Record(head) => {
                    held.skip(head.record_bytes());
                    self.offset = held.offset();
                    self.next_seq = head.seq.saturating_add(1);
                    last_seq = Some(head.seq);
                }
                Parsed::Bad => held.skip(1),
                Parsed::Short => {
                    if held.fill(&self.file)? > 0 {
                        continue;
                    }
                    // Half a record, or damage that looks like one: only a whole one behind it tells.
                    let rest = held.rest();
                    let is_record = |ahead: &usize| {
                        let rest = rest.get(*ahead..).unwrap_or_default();
                        matches!(record::parse(rest, plausible.clone()), Parsed::Record(_))
                    };
                    let Some(ahead) = (1..rest.len()).find(is_record) else { return Ok(last_seq) };
                    held.skip(ahead);
                }
            }
        }
    }
}

/// Bytes of a file that are being looked through.
struct Held {
    bytes: Vec<u8>,
    /// Where in the file they begin.
    begins_at: u64,
    /// Which of them comes next.
    at: usize,
}

impl Held {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn offset(&self) -> u64 {
        self.begins_at.saturating_add(self.at as u64)
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes).min(self.bytes.len());
    }

    /// Reads on; 0 where the file ends now.
    fn fill(&mut self, file: &File) -> io::Result<usize> {
        self.begins_at = self.offset();
        self.bytes.drain(..self.at);
        self.at = 0;
        let held = self.bytes.len();
        self.bytes.resize(held.saturating_add(PIECE_BYTES), 0);
        let room = self.bytes.get_mut(held..).unwrap_or_default();
        let from = self.begins_at.saturating_add(held as u64);
        let read = loop {
            match file.read_at(room, from) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.bytes.truncate(held.saturating_add(*read.as_ref().unwrap_or(&0)));
        read
    }
}

/// The segments in a folder, ascending. One that is not there has none.
fn list(dir: &Path) -> Result<Vec<u64>, JournalError> {
    match segment::list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_there(dir)),
        result => result.map_err(JournalError::at("list", dir)),
    }
}

fn not_there(dir: &Path) -> JournalError {
    JournalError::NotThere { dir: dir.to_owned() }
}

/// Whose segments these are, by the newest header that is intact.
fn journal_of(dir: &Path, segments: &[u64]) -> Result<Option<Uuid>, JournalError> {
    for first_seq in segments.iter().rev() {
        let path = segment::path(dir, *first_seq);
        let stream = SegmentStream::open(dir, *first_seq).map_err(JournalError::at("open", &path))?;
        if let Some(header) = stream.header() {
            check_version(header, &path)?;
            return Ok(Some(header.journal));
        }
    }
    Ok(None)
}

fn check_version(header: Header, path: &Path) -> Result<(), JournalError> {
    if header.version == segment::VERSION {
        return Ok(());
    }
    Err(JournalError::Version { path: path.to_owned(), version: header.version })
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::record::Kind;
    use super::*;

    const JOURNAL: Uuid = Uuid::from_u128(0xfeed);

    fn record(seq: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        record::encode(&mut bytes, Kind::End, seq, 0, Uuid::nil(), |bytes| bytes.extend_from_slice(payload));
        bytes
    }

    fn append(path: &Path, bytes: &[u8]) {
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn a_record_counts_once_its_last_byte_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = segment::path(dir.path(), 1);
        append(&path, &segment::header(JOURNAL, 1));
        let follower = Follower::open(dir.path()).unwrap();
        assert_eq!((follower.position(), follower.id()), (0, JOURNAL.to_string().as_str()));
        for seq in 1..4 {
            let bytes = record(seq, &[7; 60]);
            for byte in &bytes[..bytes.len() - 1] {
                append(&path, &[*byte]);
                assert_eq!(follower.position(), seq - 1);
            }
            append(&path, &bytes[bytes.len() - 1..]);
            assert_eq!(follower.position(), seq);
        }
    }

    #[test]
    fn a_torn_tail_that_the_writer_cuts_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = segment::path(dir.path(), 1);
        append(&path, &segment::header(JOURNAL, 1));
        append(&path, &record(1, b"one"));
        let whole = fs::metadata(&path).unwrap().len();
        for torn in 1..60 {
            append(&path, &record(2, &[1; 60])[..torn]);
            let follower = Follower::open(dir.path()).unwrap();
            assert_eq!(follower.position(), 1, "{torn} bytes");
            OpenOptions::new().write(true).open(&path).unwrap().set_len(whole).unwrap();
            // Another record takes its number and its place.
            append(&path, &record(2, &[2; 90]));
            assert_eq!(follower.position(), 2, "{torn} bytes");
            OpenOptions::new().write(true).open(&path).unwrap().set_len(whole).unwrap();
        }
    }

    #[test]
    fn a_segment_that_is_being_made_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        append(&segment::path(dir.path(), 1), &segment::header(JOURNAL, 1));
        append(&segment::path(dir.path(), 1), &record(1, b"one"));
        let follower = Follower::open(dir.path()).unwrap();
        let (next, header) = (segment::path(dir.path(), 2), segment::header(JOURNAL, 2));
        for byte in &header {
            append(&next, &[*byte]);
            assert_eq!(follower.position(), 1);
        }
        append(&next, &record(2, b"two"));
        assert_eq!(follower.position(), 2);
        // And one that a crash left half made, and the next start made anew.
        let (void, header) = (segment::path(dir.path(), 3), segment::header(JOURNAL, 3));
        append(&void, &header[..20]);
        assert_eq!(follower.position(), 2);
        fs::remove_file(&void).unwrap();
        append(&void, &header);
        append(&void, &record(3, b"three"));
        assert_eq!(follower.position(), 3);
    }

    #[test]
    fn another_journal_in_the_same_place_is_told() {
        let other = Uuid::from_u128(0xbeef);
        let write = |dir: &Path, journal: Uuid, records: u64| {
            append(&segment::path(dir, 1), &segment::header(journal, 1));
            (1..=records).for_each(|seq| append(&segment::path(dir, 1), &record(seq, b"x")));
        };
        // Shorter than the old one or longer, with the old one's id or its own.
        for (journal, records) in [(other, 1), (other, 9), (JOURNAL, 1)] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), JOURNAL, 5);
            let follower = Follower::open(dir.path()).unwrap();
            let mut reader = follower.reader(0);
            while reader.next().unwrap().is_some() {}
            fs::remove_file(segment::path(dir.path(), 1)).unwrap();
            assert_eq!(follower.position(), 5);
            write(dir.path(), journal, records);
            assert!(matches!(reader.next(), Err(JournalError::Replaced { .. })), "{journal} with {records} records");
            assert_eq!(follower.position(), 5);
        }
    }

    #[test]
    fn where_no_journal_is_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for missing in [dir.path().join("journal"), dir.path().to_owned()] {
            assert!(matches!(Follower::open(&missing), Err(JournalError::NotThere { .. })), "{missing:?}");
        }
        // A folder in which the first segment is being made.
        append(&segment::path(dir.path(), 1), &segment::header(JOURNAL, 1)[..30]);
        assert!(matches!(Follower::open(dir.path()), Err(JournalError::NotThere { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn damage_never_hides_the_records_behind_it(
            payloads in vec(vec(any::<u8>(), 0..200), 2..12),
            at in any::<prop::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let mut bytes = segment::header(JOURNAL, 1);
            let mut last_begins_at = 0;
            for (payload, seq) in payloads.iter().zip(1..) {
                last_begins_at = bytes.len();
                bytes.extend_from_slice(&record(seq, payload));
            }
            // Somewhere in the records before the last one.
            let at = HEADER_BYTES + at.index(last_begins_at - HEADER_BYTES);
            bytes[at] ^= change;
            let dir = tempfile::tempdir().unwrap();
            fs::write(segment::path(dir.path(), 1), &bytes).unwrap();
            prop_assert_eq!(Follower::open(dir.path()).unwrap().position(), payloads.len() as u64);
        }
    }
}
