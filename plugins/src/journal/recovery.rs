//! What a journal folder holds when it is opened: where to go on, what was damaged, which exchanges never ended.
//!
//! All segments are read from the first to the last. That is a sequential read with a hardware checksum, about a
//! second for a gibibyte, and it needs no checkpoint that could itself be wrong.

use std::collections::HashMap;
use std::path::Path;

use uuid::Uuid;

use super::disk::Disk;
use super::record::{HEAD_BYTES, Kind};
use super::segment::{self, SegmentStream};
use super::writer::Segment;
use super::{JournalError, Recovered};

/// The state of a folder.
#[derive(Default)]
pub(super) struct Survey {
    /// From the newest intact segment header.
    pub journal: Option<Uuid>,
    /// The segments, oldest first.
    pub segments: Vec<Segment>,
    /// Where the last segment's good records end, if it can be written on.
    pub resume_at: Option<u64>,
    /// Exchanges begun and not ended, in the order in which they began.
    pub unended: Vec<Unended>,
    pub recovered: Recovered,
}

/// The begin of an exchange that has no end.
pub(super) struct Unended {
    pub seq: u64,
    pub event_id: Uuid,
    pub time_us: i64,
    pub payload: Vec<u8>,
}

/// Reads the whole folder. Changes nothing but this: a last segment without a header and without any record, which a
/// crash left behind while it was being made, is removed.
pub(super) fn survey(disk: &dyn Disk, dir: &Path) -> Result<Survey, JournalError> {
    let segments = segment::list_on(disk, dir).map_err(JournalError::at("list", dir))?;
    let mut found = Survey::default();
    let mut unended = HashMap::new();
    let newest = segments.last().copied();
    let oldest = segments.first().copied();
    for first_seq in segments.iter().copied() {
        let path = segment::path(dir, first_seq);
        let is_newest = Some(first_seq) == newest;
        let before_it = first_seq.saturating_sub(1);
        if Some(first_seq) != oldest {
            found.miss(before_it.saturating_sub(found.recovered.last_seq));
        }
        found.recovered.last_seq = found.recovered.last_seq.max(before_it);
        let file = disk.open_to_read(&path).map_err(JournalError::at("open", &path))?;
        let file_bytes = file.length().map_err(JournalError::at("read", &path))?;
        let last_possible_seq = first_seq.saturating_add(file_bytes.checked_div(HEAD_BYTES as u64).unwrap_or(0));

        let mut stream = SegmentStream::of_file(file, first_seq).map_err(JournalError::at("read", &path))?;
        let header = stream.header();
        if let Some(header) = header {
            if header.version != segment::VERSION {
                return Err(JournalError::Version { path, version: header.version });
            }
            found.journal = Some(header.journal);
        }
        let mut good_bytes = stream.offset();
        while let Some(head) = stream.next(last_possible_seq, false).map_err(JournalError::at("read", &path))? {
            good_bytes = stream.offset();
            if head.seq <= found.recovered.last_seq {
                continue;
            }
            found.miss(head.seq.saturating_sub(found.recovered.last_seq).saturating_sub(1));
            found.recovered.last_seq = head.seq;
            match Kind::from_code(head.code) {
                Some(Kind::Begin) => {
                    let payload = stream.payload(&head).to_vec();
                    let begun = Unended { seq: head.seq, event_id: head.event_id, time_us: head.time_us, payload };
                    unended.insert(head.event_id, begun);
                }
                Some(Kind::End) => {
                    unended.remove(&head.event_id);
                }
                Some(Kind::Admin) | None => {}
            }
        }
        let mut bytes = file_bytes;
        if is_newest && header.is_some() {
            found.resume_at = Some(good_bytes);
            found.recovered.torn_bytes = file_bytes.saturating_sub(good_bytes);
            bytes = good_bytes;
        } else if is_newest && good_bytes == 0 {
            disk.remove(&path).map_err(JournalError::at("remove", &path))?;
            found.recovered.torn_bytes = file_bytes;
            continue;
        }
        found.segments.push(Segment { first_seq, bytes });
    }
    found.unended = unended.into_values().collect();
    found.unended.sort_unstable_by_key(|begun| begun.seq);
    Ok(found)
}

impl Survey {
    fn miss(&mut self, records: u64) {
        self.recovered.bad_records = self.recovered.bad_records.saturating_add(records);
    }
}
