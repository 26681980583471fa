//! The record format: `len u32 | type u8 | crc32c u32 | seq u64 | time u64 | event id 16 | payload`, little endian.
//!
//! `len` counts the payload. The checksum covers everything else in the record, `len` and `type` included, so that a
//! damaged length is found as surely as a damaged payload. Sequence numbers are dense, and that makes reading past
//! damage safe: bytes are a record only if the checksum holds and the number is one that can stand there.

use std::ops::RangeInclusive;

use uuid::Uuid;

/// Largest payload, in bytes: two bodies of 512 KiB, the most that is kept of one, and 256 KiB for everything else. An
/// exchange without captured content needs less than one thousandth of it.
pub const MAX_PAYLOAD_BYTES: usize = (1 << 20) + (1 << 18);

const PREFIX_BYTES: usize = 9;
const BODY_HEAD_BYTES: usize = 32;
/// Everything before the payload.
pub(super) const HEAD_BYTES: usize = PREFIX_BYTES + BODY_HEAD_BYTES;

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An exchange is about to reach a provider. Payload: [`crate::event::Begin`].
    Begin,
    /// An exchange is over. Payload: [`crate::event::Exchange`].
    End,
    /// An administrator did something. Payload: a [`crate::event::Exchange`] of that type. It has no begin and needs
    /// none.
    Admin,
}

impl Kind {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Begin => 1,
            Self::End => 2,
            Self::Admin => 3,
        }
    }

    /// `None` for a type that a newer version writes; such records are passed over.
    pub(super) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Begin),
            2 => Some(Self::End),
            3 => Some(Self::Admin),
            _ => None,
        }
    }
}

/// One record as a consumer receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the payload is.
    pub kind: Kind,
    /// Its place in the journal: from 1, dense.
    pub seq: u64,
    /// Microseconds since the Unix epoch, as the writer gave them.
    pub time_us: i64,
    /// Equal in the begin and the end of one exchange.
    pub event_id: Uuid,
    /// A protobuf message.
    pub payload: Vec<u8>,
}

/// A record as its reader holds it, for a consumer that needs no copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// As [`Record::kind`].
    pub kind: Kind,
    /// As [`Record::seq`].
    pub seq: u64,
    /// As [`Record::time_us`].
    pub time_us: i64,
    /// As [`Record::event_id`].
    pub event_id: Uuid,
    /// As [`Record::payload`].
    pub payload: &'a [u8],
}

impl From<RecordRef<'_>> for Record {
    fn from(record: RecordRef<'_>) -> Self {
        let RecordRef { kind, seq, time_us, event_id, payload } = record;
        Self { kind, seq, time_us, event_id, payload: payload.to_vec() }
    }
}

/// Everything of a record but its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub code: u8,
    pub seq: u64,
    pub time_us: i64,
    pub event_id: Uuid,
    pub payload_bytes: usize,
}

impl Head {
    /// Bytes of the whole record.
    pub fn record_bytes(&self) -> usize {
        HEAD_BYTES.saturating_add(self.payload_bytes)
    }
}

/// Appends one record to `buffer`. `write_payload` appends the payload, of at most [`MAX_PAYLOAD_BYTES`].
pub(super) fn encode(
    buffer: &mut Vec<u8>,
    kind: Kind,
    seq: u64,
    time_us: i64,
    event_id: Uuid,
    write_payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; PREFIX_BYTES]);
    buffer.extend_from_slice(&seq.to_le_bytes());
    buffer.extend_from_slice(&time_us.to_le_bytes());
    buffer.extend_from_slice(event_id.as_bytes());
    write_payload(buffer);
    let Some(record) = buffer.get_mut(start..) else { return };
    // A payload too long for the length field gets a length that no reader accepts.
    let payload_bytes = u32::try_from(record.len().saturating_sub(HEAD_BYTES)).unwrap_or(u32::MAX);
    let [l0, l1, l2, l3] = payload_bytes.to_le_bytes();
    let code = kind.code();
    let [c0, c1, c2, c3] =
        checksum([l0, l1, l2, l3, code], record.get(PREFIX_BYTES..).unwrap_or_default()).to_le_bytes();
    if let Some(prefix) = record.first_chunk_mut::<PREFIX_BYTES>() {
        *prefix = [l0, l1, l2, l3, code, c0, c1, c2, c3];
    }
}

fn checksum(before: [u8; 5], after: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&before), after)
}

/// What stands at the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A whole record.
    Record(Head),
    /// Perhaps a record; more bytes will tell.
    Short,
    /// No record.
    Bad,
}

/// Reads the record at the start of `bytes`, if its number is one of `seqs`.
pub(super) fn parse(bytes: &[u8], seqs: RangeInclusive<u64>) -> Parsed {
    let Some((&[l0, l1, l2, l3, code, c0, c1, c2, c3], rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Parsed::Short;
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let Some(payload_bytes) = usize::try_from(length).ok().filter(|length| *length <= MAX_PAYLOAD_BYTES) else {
        return Parsed::Bad;
    };
    if code == 0 {
        return Parsed::Bad;
    }
    let Some((seq, after_seq)) = rest.split_first_chunk::<8>() else { return Parsed::Short };
    let seq = u64::from_le_bytes(*seq);
    // Before anything dear: in a search through damage this turns away nearly every place that is no record.
    if !seqs.contains(&seq) {
        return Parsed::Bad;
    }
    let Some(body) = rest.get(..BODY_HEAD_BYTES.saturating_add(payload_bytes)) else { return Parsed::Short };
    if checksum([l0, l1, l2, l3, code], body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Parsed::Bad;
    }
    let Some((time_us, after_time)) = after_seq.split_first_chunk::<8>() else { return Parsed::Short };
    let Some(event_id) = after_time.first_chunk::<16>() else { return Parsed::Short };
    let (time_us, event_id) = (i64::from_le_bytes(*time_us), Uuid::from_bytes(*event_id));
    Parsed::Record(Head { code, seq, time_us, event_id, payload_bytes })
}

/// The number that a record at the start of `bytes` would have, intact or not.
pub(super) fn claimed_seq(bytes: &[u8]) -> Option<u64> {
    let seq = bytes.get(PREFIX_BYTES..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*seq))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn record(seq: u64, payload: &[u8]) -> Vec<u8> {
        let mut buffer = b"the record before".to_vec();
        encode(&mut buffer, Kind::End, seq, -5, Uuid::from_u128(77), |buffer| buffer.extend_from_slice(payload));
        buffer.split_off(b"the record before".len())
    }

    #[test]
    fn every_kind_has_a_code_of_its_own_and_other_codes_are_of_no_kind() {
        for (kind, code) in [(Kind::Begin, 1), (Kind::End, 2), (Kind::Admin, 3)] {
            assert_eq!((kind.code(), Kind::from_code(code)), (code, Some(kind)));
        }
        assert!((4..=u8::MAX).chain([0]).all(|code| Kind::from_code(code).is_none()));
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = record(0x0102, b"xyz");
        assert_eq!(bytes.len(), HEAD_BYTES + 3);
        assert_eq!(bytes[..5], [3, 0, 0, 0, 2]);
        assert_eq!(bytes[9..17], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[17..25], (-5_i64).to_le_bytes());
        assert_eq!(bytes[25..41], *Uuid::from_u128(77).as_bytes());
        assert_eq!(&bytes[41..], b"xyz");
        let mut covered = bytes[..5].to_vec();
        covered.extend_from_slice(&bytes[9..]);
        assert_eq!(bytes[5..9], crc32c::crc32c(&covered).to_le_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            payload in vec(any::<u8>(), 0..2_000),
            seq in 1..u64::MAX,
            after in vec(any::<u8>(), 0..50),
        ) {
            let mut bytes = record(seq, &payload);
            let record_bytes = bytes.len();
            bytes.extend_from_slice(&after);
            let Parsed::Record(head) = parse(&bytes, seq..=seq) else { panic!("not read") };
            prop_assert_eq!(head.record_bytes(), record_bytes);
            prop_assert_eq!((head.seq, head.time_us, head.event_id), (seq, -5, Uuid::from_u128(77)));
            prop_assert_eq!(&bytes[HEAD_BYTES..record_bytes], payload.as_slice());
        }

        #[test]
        fn a_record_cut_anywhere_is_short(payload in vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let bytes = record(9, &payload);
            prop_assert_eq!(parse(&bytes[..at.index(bytes.len())], 9..=9), Parsed::Short);
        }

        #[test]
        fn a_record_with_any_byte_changed_is_never_read(
            payload in vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let mut bytes = record(9, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            prop_assert!(!matches!(parse(&bytes, 0..=u64::MAX), Parsed::Record(_)));
        }

        #[test]
        fn no_bytes_at_all_crash_the_reader(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert!(!matches!(parse(&bytes, 0..=u64::MAX), Parsed::Record(_)));
        }
    }
}
