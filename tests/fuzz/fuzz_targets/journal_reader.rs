//! Are the records of a segment found as a second reader finds them, whatever else stands in the file?
//!
//! An input is a plan for reading, three bytes, and then a script that writes a segment: records with payloads of the
//! input, junk between them, bits turned, ends cut off. The second reader tries every place in turn, with a checksum of
//! its own, one bit at a time. Ours must find the same records with the same bytes, also when the system gives it a few
//! bytes at a time. A segment without damage is read once more while it grows, piece by piece: every record must come
//! once it is whole, in order, and none before.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_fuzz::pieces;

use journal::{Found, Growing};

// The journal's own files: they are private.
#[path = "../../../plugins/src/journal"]
#[allow(dead_code, reason = "the rest of the journal uses it")]
mod journal {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    mod disk;
    mod record;
    mod segment;

    pub use record::Kind;

    /// A record as it was found.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Found {
        pub seq: u64,
        pub code: u8,
        pub time_us: i64,
        pub event_id: u128,
        pub payload: Vec<u8>,
    }

    /// The header of the segment that begins with record 1.
    pub fn header() -> Vec<u8> {
        segment::header(uuid::Uuid::from_u128(0xfeed), 1)
    }

    /// Appends a record.
    pub fn encode(bytes: &mut Vec<u8>, kind: Kind, seq: u64, time_us: i64, event_id: u128, payload: &[u8]) {
        let event_id = uuid::Uuid::from_u128(event_id);
        record::encode(bytes, kind, seq, time_us, event_id, |bytes| bytes.extend_from_slice(payload));
    }

    /// A file in memory whose beginning is there, and of which a read gives a few bytes.
    struct Memory {
        bytes: Vec<u8>,
        there: AtomicUsize,
        most: usize,
    }

    impl disk::DiskFile for Memory {
        fn read_at(&self, room: &mut [u8], offset: u64) -> io::Result<usize> {
            let there = &self.bytes[..self.there.load(Ordering::Relaxed)];
            let rest = there.get(offset as usize..).unwrap_or_default();
            let length = rest.len().min(room.len()).min(self.most);
            room[..length].copy_from_slice(&rest[..length]);
            Ok(length)
        }

        fn length(&self) -> io::Result<u64> {
            Ok(self.there.load(Ordering::Relaxed) as u64)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            unreachable!("a reader does not write")
        }

        fn set_length(&self, _: u64) -> io::Result<()> {
            unreachable!("a reader does not write")
        }

        fn sync(&self) -> io::Result<()> {
            unreachable!("a reader does not write")
        }
    }

    /// A segment that is read while it grows.
    pub struct Growing {
        file: Arc<Memory>,
        stream: segment::SegmentStream,
    }

    impl Growing {
        /// Of which so many bytes are there.
        pub fn new(bytes: &[u8], there: usize, most: usize) -> Self {
            let file = Arc::new(Memory { bytes: bytes.to_vec(), there: there.into(), most });
            let opened = Arc::clone(&file);
            Self { file, stream: segment::SegmentStream::of_file(opened, 1).expect("memory can be read") }
        }

        /// So many more bytes come.
        pub fn grow(&self, bytes: usize) -> usize {
            self.file.there.fetch_add(bytes, Ordering::Relaxed) + bytes
        }

        /// The records up to `last_seq` that were not read before.
        pub fn read(&mut self, last_seq: u64, growing: bool) -> Vec<Found> {
            let mut found = Vec::new();
            while let Some(head) = self.stream.next(last_seq, growing).expect("memory can be read") {
                found.push(Found {
                    seq: head.seq,
                    code: head.code,
                    time_us: head.time_us,
                    event_id: head.event_id.as_u128(),
                    payload: self.stream.payload(&head).to_vec(),
                });
            }
            found
        }
    }
}

const HEADER_BYTES: usize = 40;
const HEAD_BYTES: usize = 41;
const MOST_PAYLOAD_BYTES: usize = 1 << 20;
/// How far beyond the last number that there can be a record is still taken for one.
const AHEAD: u64 = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((plan, script)) = input.split_at_checked(3) else { return };
    let Written { bytes, ends, is_damaged } = write(script);
    // As recovery has it: no segment holds more records than it has room for.
    let last_seq = 1 + (bytes.len() / HEAD_BYTES) as u64;
    let expected = second_reader(&bytes, last_seq);
    for most in [usize::MAX, 1 + usize::from(plan[0])] {
        assert_eq!(Growing::new(&bytes, bytes.len(), most).read(last_seq, false), expected);
    }
    if is_damaged {
        return;
    }
    assert_eq!(expected.len(), ends.len());
    let mut segment = Growing::new(&bytes, HEADER_BYTES, usize::MAX);
    let mut found = Vec::new();
    for piece in pieces(&bytes[HEADER_BYTES..], plan) {
        let there = segment.grow(piece.len());
        let whole = ends.iter().take_while(|end| **end <= there).count();
        found.extend(segment.read(expected[..whole].last().map_or(0, |last| last.seq), true));
        assert_eq!(found.len(), whole, "{there} bytes are there");
    }
    assert_eq!(found, expected);
});

struct Written {
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<usize>,
    is_damaged: bool,
}

/// Each step is a byte that says what is done, the higher bits, and with how many bytes, the lower ones.
fn write(mut script: &[u8]) -> Written {
    let mut written = Written { bytes: journal::header(), ends: Vec::new(), is_damaged: false };
    let mut seq = 1;
    while let Some((step, rest)) = script.split_first() {
        let length = usize::from(step & 0x1F);
        match step >> 5 {
            // A record; after a gap in the numbers; with a number that was given.
            form @ 0..=5 => {
                let (payload, rest) = rest.split_at(length.min(rest.len()));
                seq += u64::from(form == 3) * 3;
                let number = if form == 4 { seq - 1 } else { seq };
                let kind = [journal::Kind::Begin, journal::Kind::End, journal::Kind::Admin][usize::from(form % 3)];
                journal::encode(&mut written.bytes, kind, number, -(seq as i64), seq.into(), payload);
                written.ends.push(written.bytes.len());
                // Numbers that are given twice, or that a record before it makes impossible, are not found.
                written.is_damaged |= form == 4 || form == 3;
                seq = number + 1;
                script = rest;
            }
            6 => {
                let (junk, rest) = rest.split_at(length.min(rest.len()));
                written.bytes.extend_from_slice(junk);
                written.is_damaged = true;
                script = rest;
            }
            _ => {
                let keeps = step & 0x10 == 0;
                let at = written.bytes.len().saturating_sub(1 + 3 * usize::from(step & 0xF));
                match written.bytes.get_mut(at) {
                    Some(byte) if keeps => *byte ^= 1 << (seq % 8),
                    _ => written.bytes.truncate(at),
                }
                written.is_damaged = true;
                script = rest;
            }
        }
    }
    written
}

/// Tries every place.
fn second_reader(bytes: &[u8], last_seq: u64) -> Vec<Found> {
    let mut found = Vec::new();
    let mut next_seq = 1;
    let mut at = if has_header(bytes) { HEADER_BYTES } else { 0 };
    while let Some(record) = bytes.get(at..).filter(|rest| rest.len() >= HEAD_BYTES) {
        let number = |from: usize| u64::from_le_bytes(record[from..from + 8].try_into().expect("eight bytes"));
        let length = u32::from_le_bytes([record[0], record[1], record[2], record[3]]) as usize;
        let (code, seq) = (record[4], number(9));
        let is_whole = length <= MOST_PAYLOAD_BYTES && record.len() >= HEAD_BYTES + length;
        let is_possible = code != 0 && seq >= next_seq && seq <= last_seq + AHEAD;
        let is_intact = || {
            let covered = [&record[..5], &record[9..HEAD_BYTES + length]].concat();
            record[5..9] == crc32c(&covered).to_le_bytes()
        };
        if !(is_whole && is_possible && is_intact()) {
            at += 1;
            continue;
        }
        if seq > last_seq {
            break;
        }
        found.push(Found {
            seq,
            code,
            time_us: number(17) as i64,
            event_id: u128::from_be_bytes(record[25..41].try_into().expect("sixteen bytes")),
            payload: record[HEAD_BYTES..HEAD_BYTES + length].to_vec(),
        });
        next_seq = seq + 1;
        at += HEAD_BYTES + length;
    }
    found
}

fn has_header(bytes: &[u8]) -> bool {
    bytes.get(..HEADER_BYTES).is_some_and(|header| {
        let (sealed, crc) = header.split_at(HEADER_BYTES - 4);
        crc == crc32c(sealed).to_le_bytes() && sealed.starts_with(b"LLMPJRNL") && sealed[28..36] == 1_u64.to_le_bytes()
    })
}

/// CRC32C (RFC 3309), one bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}
