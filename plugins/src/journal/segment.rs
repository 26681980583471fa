//! Segment files: their names, their header, and reading records out of one past any damage.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::disk::{Disk, DiskFile, LocalDisk};
use super::record::{self, HEAD_BYTES, Head, Parsed};

/// Version of the segment format. A journal of a later version is refused, not guessed at.
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 40;
const MAGIC: [u8; 8] = *b"LLMPJRNL";
const SUFFIX: &str = ".seg";
const NAME_DIGITS: usize = 20;
const CHUNK_BYTES: usize = 128 << 10;
/// The least room that a read is given.
const MIN_ROOM_BYTES: usize = CHUNK_BYTES / 2;
/// How far past the last known record a growing file may already be.
const ARRIVING_RECORDS: u64 = 4_096;

/// The path of the segment whose first record is `first_seq`. Names sort like numbers.
pub(super) fn path(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}{SUFFIX}"))
}

/// First sequence numbers of the segments in `dir`, ascending. Files with other names are none of ours.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    list_on(&LocalDisk, dir)
}

/// As [`list`], on any disk.
pub(super) fn list_on(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments: Vec<u64> = disk.list(dir)?.iter().filter_map(|name| first_seq_of(name)).collect();
    segments.sort_unstable();
    Ok(segments)
}

fn first_seq_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    if digits.len() == NAME_DIGITS { digits.parse().ok() } else { None }
}

/// The header of a segment: magic, version, journal id, first sequence number, checksum of these.
pub(super) fn header(journal: Uuid, first_seq: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(journal.as_bytes());
    bytes.extend_from_slice(&first_seq.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub journal: Uuid,
    pub first_seq: u64,
}

fn parse_header(bytes: &[u8]) -> Option<Header> {
    let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
    let (sealed, crc) = bytes.split_last_chunk::<4>()?;
    let (magic, rest) = sealed.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (journal, rest) = rest.split_first_chunk::<16>()?;
    let first_seq = rest.first_chunk::<8>()?;
    let intact = *magic == MAGIC && crc32c::crc32c(sealed) == u32::from_le_bytes(*crc);
    intact.then(|| Header {
        version: u32::from_le_bytes(*version),
        journal: Uuid::from_bytes(*journal),
        first_seq: u64::from_le_bytes(*first_seq),
    })
}

/// A segment being read. Keeps its place, so that it can go on where it stopped once the file has grown.
pub(super) struct SegmentStream {
    file: Arc<dyn DiskFile>,
    /// Where in the file the bytes held end.
    read_bytes: u64,
    /// Up to which record the file was known to be complete when they were read. Bytes behind that record may since
    /// have been taken back and others written in their place: the writer does so when the disk is full.
    settled_seq: u64,
    /// Zeroed once, when it is made or grows, and then only read into.
    buffer: Vec<u8>,
    /// Where in the buffer the next record starts.
    start: usize,
    /// Where in the buffer the bytes from the file end.
    end: usize,
    /// The lowest number that the next record can have.
    next_seq: u64,
    header: Option<Header>,
}

impl SegmentStream {
    /// Opens the segment named by `first_seq`.
    pub fn open(dir: &Path, first_seq: u64) -> io::Result<Self> {
        Self::open_on(&LocalDisk, dir, first_seq)
    }

    /// As [`Self::open`], on any disk.
    pub fn open_on(disk: &dyn Disk, dir: &Path, first_seq: u64) -> io::Result<Self> {
        Self::of_file(disk.open_to_read(&path(dir, first_seq))?, first_seq)
    }

    /// Over an open file that is the segment named by `first_seq`.
    pub fn of_file(file: Arc<dyn DiskFile>, first_seq: u64) -> io::Result<Self> {
        let (buffer, next_seq) = (vec![0; CHUNK_BYTES], first_seq);
        let (read_bytes, settled_seq) = (0, 0);
        let mut stream = Self { file, read_bytes, settled_seq, buffer, start: 0, end: 0, next_seq, header: None };
        while stream.held().len() < HEADER_BYTES && stream.fill()? > 0 {}
        stream.header = parse_header(stream.held()).filter(|header| header.first_seq == first_seq);
        // Where the header is damaged, its bytes are searched for records like any other damage.
        if stream.header.is_some() {
            stream.start = HEADER_BYTES;
        }
        Ok(stream)
    }

    /// What the header says, if it is intact.
    pub fn header(&self) -> Option<Header> {
        self.header
    }

    /// Bytes of the file before the next record.
    pub fn offset(&self) -> u64 {
        self.read_bytes.saturating_sub(self.held().len() as u64)
    }

    /// The next intact record whose number is at most `last_seq`; `None` where the file ends now. What is no record is
    /// passed over.
    ///
    /// `growing`: records after `last_seq` may be arriving in the file, whole or in part. They are left for later.
    pub fn next(&mut self, last_seq: u64, growing: bool) -> io::Result<Option<Head>> {
        let plausible = self.next_seq..=last_seq.saturating_add(ARRIVING_RECORDS);
        if self.settled_seq < self.next_seq.min(last_seq) {
            self.read_again();
        }
        loop {
            match record::parse(self.held(), plausible.clone()) {
                Parsed::Record(head) if head.seq > last_seq => return Ok(None),
                Parsed::Record(head) => {
                    self.start = self.start.saturating_add(head.record_bytes());
                    self.next_seq = head.seq.saturating_add(1);
                    return Ok(Some(head));
                }
                // Nothing has to be here yet, so nothing is passed over.
                Parsed::Bad if growing && self.next_seq > last_seq => return Ok(None),
                Parsed::Bad => self.start = self.start.saturating_add(1),
                Parsed::Short => {
                    if self.fill()? > 0 {
                        self.settled_seq = last_seq;
                        continue;
                    }
                    let claimed = record::claimed_seq(self.held());
                    if self.held().len() < HEAD_BYTES || (growing && claimed.is_some_and(|seq| seq > last_seq)) {
                        // In a search through damage, bytes can look like a record that is still arriving.
                        let Some(ahead) = self.whole_record_ahead(last_seq) else { return Ok(None) };
                        self.start = self.start.saturating_add(ahead);
                        continue;
                    }
                    // A length that promises more than there is: damaged, or the torn end of the file.
                    self.start = self.start.saturating_add(1);
                }
            }
        }
    }

    /// How far ahead in the buffer a record up to `last_seq` stands, where one is still to come.
    fn whole_record_ahead(&self, last_seq: u64) -> Option<usize> {
        if self.next_seq > last_seq {
            return None;
        }
        let held = self.held();
        (1..held.len()).find(|ahead| {
            let rest = held.get(*ahead..).unwrap_or_default();
            matches!(record::parse(rest, self.next_seq..=last_seq), Parsed::Record(_))
        })
    }

    /// The payload of the record that [`Self::next`] returned last.
    pub fn payload(&self, head: &Head) -> &[u8] {
        self.buffer.get(self.start.saturating_sub(head.payload_bytes)..self.start).unwrap_or_default()
    }

    fn held(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Forgets what is held, to read it again.
    fn read_again(&mut self) {
        self.read_bytes = self.offset();
        (self.start, self.end) = (0, 0);
    }

    /// Reads on; 0 where the file ends now.
    fn fill(&mut self) -> io::Result<usize> {
        // What is held is the beginning of one record, mostly nothing.
        self.buffer.copy_within(self.start.min(self.end)..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        if self.buffer.len().saturating_sub(self.end) < MIN_ROOM_BYTES {
            self.buffer.resize(self.end.saturating_add(CHUNK_BYTES), 0);
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let read = loop {
            match self.file.read_at(room, self.read_bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.end = self.end.saturating_add(read);
        self.read_bytes = self.read_bytes.saturating_add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::record::Kind;
    use super::*;

    const JOURNAL: Uuid = Uuid::from_u128(0xfeed);

    /// A segment of these payloads, numbered from 1, and where each record ends.
    fn segment(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header(JOURNAL, 1);
        let mut ends = Vec::new();
        for (payload, seq) in payloads.iter().zip(1..) {
            let mut one = Vec::new();
            record::encode(&mut one, Kind::End, seq, 0, Uuid::nil(), |one| one.extend_from_slice(payload));
            bytes.extend_from_slice(&one);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn read_all(bytes: &[u8], last_seq: u64) -> Vec<(u64, Vec<u8>)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut stream = SegmentStream::of_file(Arc::new(file), 1).unwrap();
        let mut found = Vec::new();
        while let Some(head) = stream.next(last_seq, false).unwrap() {
            found.push((head.seq, stream.payload(&head).to_vec()));
        }
        found
    }

    fn numbered(payloads: &[Vec<u8>]) -> Vec<(u64, Vec<u8>)> {
        (1..).zip(payloads.iter().cloned()).collect()
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        vec(vec(any::<u8>(), 0..200), 1..12)
    }

    #[test]
    fn names_sort_like_numbers_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00000000000000000010.seg", "00000000000000000009.seg", "9.seg", "journal.lock", "x.seg"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [9, 10]);
        assert!(path(dir.path(), 10).exists());
    }

    #[test]
    fn a_header_with_any_byte_changed_is_not_believed() {
        let bytes = header(JOURNAL, 42);
        assert_eq!(parse_header(&bytes), Some(Header { version: VERSION, journal: JOURNAL, first_seq: 42 }));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(parse_header(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn records_larger_than_the_buffer_are_read() {
        let payloads = [vec![1; record::MAX_PAYLOAD_BYTES], vec![2; CHUNK_BYTES], vec![3; 10]];
        assert_eq!(read_all(&segment(&payloads).0, 3), numbered(&payloads));
    }

    #[test]
    fn a_file_that_grows_by_a_few_bytes_at_a_time_is_read_through_a_buffer_that_stays_small() {
        let payloads: Vec<_> = (0..600_usize).map(|index| vec![index as u8; index]).collect();
        let (bytes, ends) = segment(&payloads);
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(path(dir.path(), 1)).unwrap();
        file.write_all(&bytes[..HEADER_BYTES]).unwrap();
        let mut stream = SegmentStream::open(dir.path(), 1).unwrap();
        let mut found = Vec::new();
        let mut written = HEADER_BYTES;
        for piece in bytes[HEADER_BYTES..].chunks(777) {
            file.write_all(piece).unwrap();
            written += piece.len();
            let whole = ends.iter().filter(|end| **end <= written).count() as u64;
            while let Some(head) = stream.next(whole, true).unwrap() {
                found.push((head.seq, stream.payload(&head).to_vec()));
            }
        }
        assert_eq!(found, numbered(&payloads));
        assert_eq!(stream.buffer.len(), CHUNK_BYTES);
    }

    #[test]
    fn a_stream_goes_on_where_the_file_has_grown() {
        let (bytes, ends) = segment(&[vec![1; 50], vec![2; 50]]);
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(path(dir.path(), 1)).unwrap();
        file.write_all(&bytes[..ends[0]]).unwrap();
        let mut stream = SegmentStream::open(dir.path(), 1).unwrap();
        assert_eq!(stream.next(1, true).unwrap().unwrap().seq, 1);
        assert_eq!(stream.next(2, true).unwrap(), None);
        file.write_all(&bytes[ends[0]..]).unwrap();
        assert_eq!(stream.next(2, true).unwrap().unwrap().seq, 2);
        assert_eq!(stream.offset(), bytes.len() as u64);
    }

    #[test]
    fn records_that_are_still_arriving_are_left_for_later() {
        let (bytes, ends) = segment(&[vec![1; 50], vec![2; 50], vec![3; 50]]);
        for visible in ends[0]..=bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(path(dir.path(), 1), &bytes[..visible]).unwrap();
            let mut stream = SegmentStream::open(dir.path(), 1).unwrap();
            assert_eq!(stream.next(1, true).unwrap().unwrap().seq, 1);
            assert_eq!(stream.next(1, true).unwrap(), None, "{visible} bytes visible");
            fs::write(path(dir.path(), 1), &bytes).unwrap();
            assert_eq!(stream.next(3, true).unwrap().unwrap().seq, 2, "{visible} bytes visible");
            assert_eq!(stream.next(3, true).unwrap().unwrap().seq, 3, "{visible} bytes visible");
        }
    }

    #[test]
    fn bytes_that_were_taken_back_after_they_were_read_are_not_taken_for_what_stands_there_now() {
        let (bytes, ends) = segment(&[vec![1; 50], vec![2; 50], vec![3; 50], vec![4; 50]]);
        // A record that was to be the third and did not fit on the disk.
        let mut failed = Vec::new();
        record::encode(&mut failed, Kind::End, 3, 0, Uuid::nil(), |failed| failed.extend_from_slice(&[9; 5_000]));
        for asked_meanwhile in [false, true] {
            for arrived in (1..100).chain([4_000]) {
                let dir = tempfile::tempdir().unwrap();
                let path = path(dir.path(), 1);
                fs::write(&path, [&bytes[..ends[1]], &failed[..arrived]].concat()).unwrap();
                let mut stream = SegmentStream::open(dir.path(), 1).unwrap();
                assert_eq!(stream.next(2, true).unwrap().unwrap().seq, 1);
                if asked_meanwhile {
                    assert_eq!(stream.next(2, true).unwrap().unwrap().seq, 2);
                    assert_eq!(stream.next(2, true).unwrap(), None);
                }
                let file = File::options().write(true).open(&path).unwrap();
                file.set_len(ends[1] as u64).unwrap();
                file.write_all_at(&bytes[ends[1]..], ends[1] as u64).unwrap();
                let mut found = Vec::new();
                while let Some(head) = stream.next(4, true).unwrap() {
                    found.push((head.seq, stream.payload(&head).first().copied()));
                }
                let expected = [(2, Some(2)), (3, Some(3)), (4, Some(4))];
                assert_eq!(found, expected[usize::from(asked_meanwhile)..], "{arrived} bytes had arrived");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_segment_cut_anywhere_gives_every_record_before_the_cut(
            payloads in payloads(),
            at in any::<prop::sample::Index>(),
        ) {
            let (bytes, ends) = segment(&payloads);
            let cut = at.index(bytes.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(read_all(&bytes[..cut], 1_000), numbered(&payloads[..whole]));
        }

        #[test]
        fn a_segment_with_any_byte_changed_loses_at_most_that_record(
            payloads in payloads(),
            at in any::<prop::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let (mut bytes, ends) = segment(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            let mut expected = numbered(&payloads);
            if at >= HEADER_BYTES {
                expected.remove(ends.iter().filter(|end| **end <= at).count());
            }
            prop_assert_eq!(read_all(&bytes, 1_000), expected);
        }

        #[test]
        fn junk_between_records_is_passed_over(payloads in payloads(), junk in vec(any::<u8>(), 0..300)) {
            let (bytes, ends) = segment(&payloads);
            let (before, after) = bytes.split_at(ends[0]);
            let damaged = [before, junk.as_slice(), after].concat();
            prop_assert_eq!(read_all(&damaged, 1_000), numbered(&payloads));
        }
    }
}
