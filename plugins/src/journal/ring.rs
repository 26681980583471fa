//! The memory in which records wait to be written, in `lossy`.
//!
//! An append encodes its record behind the ones that wait, which gives it its number, and goes on. A thread of its own
//! comes by on a beat, takes all of them at once and writes them in one call, or in as many as the segments have sizes.
//! It is woken only when the ring fills faster than that. What cannot be written keeps its place and is tried again, so
//! numbers stay dense; what finds the ring full is dropped, and gets none.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::record::{self, HEAD_BYTES, Kind};
use super::{JournalError, Shared};

/// Most records in memory.
pub(super) const MOST_RECORDS: usize = 8_192;
/// Most bytes of records in memory.
pub(super) const MOST_BYTES: usize = 16 << 20;
/// A ring that is full to this part of it wakes the writing thread before its beat.
const FILLING: usize = 4;
/// The writing thread's beat: what a `kill -9` of an idle process takes is at most so old.
const WRITE_EVERY: Duration = Duration::from_millis(20);
/// A buffer that was larger once is given back.
const KEPT_BYTES: usize = 1 << 20;

/// Records that wait to be written.
pub(super) struct Ring {
    queue: Mutex<Queue>,
    /// Taken from the queue, and not written yet. Whoever writes holds it.
    outgoing: Mutex<Batch>,
}

struct Queue {
    next_seq: u64,
    batch: Batch,
    /// In the batch here and in the outgoing one.
    held: Held,
    dropped: u64,
    closed: bool,
}

/// What stands in memory.
#[derive(Clone, Copy, Default)]
struct Held {
    records: usize,
    bytes: usize,
}

impl Held {
    fn fits(self, record_bytes: usize) -> bool {
        self.records < MOST_RECORDS && self.bytes.saturating_add(record_bytes) <= MOST_BYTES
    }

    fn is_filling(self) -> bool {
        self.records >= MOST_RECORDS / FILLING || self.bytes >= MOST_BYTES / FILLING
    }
}

/// Encoded records.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where in the bytes each record ends.
    ends: Vec<usize>,
    /// Records from the first that are written.
    written: usize,
}

impl Batch {
    /// The next records that have room in `most_bytes`, one at least, and how many they are.
    fn piece(&self, most_bytes: u64) -> (usize, &[u8]) {
        let start = self.start();
        let most_bytes = usize::try_from(most_bytes).unwrap_or(usize::MAX);
        let rest = self.ends.get(self.written..).unwrap_or_default();
        let fitting = rest.partition_point(|end| end.saturating_sub(start) <= most_bytes);
        let records = fitting.max(1).min(rest.len());
        let end = records.checked_sub(1).and_then(|last| rest.get(last)).copied().unwrap_or(start);
        (records, self.bytes.get(start..end).unwrap_or_default())
    }

    fn start(&self) -> usize {
        self.written.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or(0)
    }

    fn waiting(&self) -> usize {
        self.ends.len().saturating_sub(self.written)
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.ends.clear();
        self.written = 0;
    }
}

/// What the ring has counted, and holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingCounts {
    pub queued: u64,
    pub dropped: u64,
    /// The number of the last record appended.
    pub last_seq: u64,
}

impl Ring {
    /// For the records from `next_seq` on.
    pub fn new(next_seq: u64) -> Self {
        let queue = Queue { next_seq, batch: Batch::default(), held: Held::default(), dropped: 0, closed: false };
        Self { queue: Mutex::new(queue), outgoing: Mutex::default() }
    }

    /// Appends one record. Returns its number, and whether the writing thread should come before its beat.
    pub fn append(
        &self,
        kind: Kind,
        event_id: Uuid,
        time_us: i64,
        payload_bytes: usize,
        write_payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(u64, bool), JournalError> {
        let mut queue = self.queue.lock();
        let record_bytes = HEAD_BYTES.saturating_add(payload_bytes);
        if queue.closed || !queue.held.fits(record_bytes) {
            queue.dropped = queue.dropped.saturating_add(1);
            return Err(if queue.closed { JournalError::Closed } else { JournalError::MemoryFull });
        }
        let seq = queue.next_seq;
        let was_filling = queue.held.is_filling();
        let Queue { batch, held, .. } = &mut *queue;
        record::encode(&mut batch.bytes, kind, seq, time_us, event_id, write_payload);
        batch.ends.push(batch.bytes.len());
        held.records = held.records.saturating_add(1);
        held.bytes = held.bytes.saturating_add(record_bytes);
        let is_filling = held.is_filling() && !was_filling;
        queue.next_seq = seq.saturating_add(1);
        Ok((seq, is_filling))
    }

    /// Refuses every append from now on.
    pub fn close(&self) {
        self.queue.lock().closed = true;
    }

    /// Figures, between two writes of a batch: with `count`, which is asked meanwhile, they make one sum.
    pub fn counts<T>(&self, count: impl FnOnce() -> T) -> (RingCounts, T) {
        let _outgoing = self.outgoing.lock();
        let other = count();
        let queue = self.queue.lock();
        let last_seq = queue.next_seq.saturating_sub(1);
        (RingCounts { queued: queue.held.records as u64, dropped: queue.dropped, last_seq }, other)
    }

    /// Drops what is still here, counted. The ring was closed.
    pub fn drop_rest(&self) {
        let mut outgoing = self.outgoing.lock();
        let mut queue = self.queue.lock();
        queue.dropped = queue.dropped.saturating_add(queue.held.records as u64);
        queue.held = Held::default();
        queue.batch.clear();
        outgoing.clear();
    }
}

/// Writes what waits on a beat, until the journal stops.
pub(super) fn run(shared: &Shared) {
    let mut failing = false;
    while !shared.stop.load(Ordering::Acquire) {
        let result = shared.write_out();
        if let Err(error) = &result
            && !failing
        {
            tracing::error!(%error, "The journal cannot be written; records wait in memory");
        }
        failing = result.is_err();
        thread::park_timeout(WRITE_EVERY);
    }
}

impl Shared {
    /// Writes every record appended so far to its file. Only in `lossy` is there anything to do.
    pub(super) fn write_out(&self) -> Result<(), JournalError> {
        let Some(ring) = &self.ring else { return Ok(()) };
        let mut outgoing = ring.outgoing.lock();
        // What an earlier try has left goes first, and then what came since.
        for _ in 0..2 {
            if outgoing.waiting() == 0 {
                outgoing.clear();
                std::mem::swap(&mut *outgoing, &mut ring.queue.lock().batch);
            }
            while outgoing.waiting() > 0 {
                self.write_piece(ring, &mut outgoing)?;
            }
        }
        Ok(())
    }

    fn write_piece(&self, ring: &Ring, outgoing: &mut Batch) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        let mut most_bytes = writer.room();
        let (records, written_bytes) = loop {
            let (records, bytes) = outgoing.piece(most_bytes);
            match writer.write(bytes, records as u64) {
                Ok(()) => break (records, bytes.len()),
                // The last room of a full disk is for the oldest of them.
                Err(error) if records > 1 && error.is_no_space() => most_bytes = (bytes.len() / 2) as u64,
                Err(error) => return Err(error),
            }
        };
        self.position.store(writer.last_seq(), Ordering::Release);
        drop(writer);
        outgoing.written = outgoing.written.saturating_add(records);
        let mut queue = ring.queue.lock();
        queue.held.records = queue.held.records.saturating_sub(records);
        queue.held.bytes = queue.held.bytes.saturating_sub(written_bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(ring: &Ring, payload_bytes: usize) -> Result<(u64, bool), JournalError> {
        ring.append(Kind::End, Uuid::nil(), 0, payload_bytes, |buffer| buffer.resize(buffer.len() + payload_bytes, 7))
    }

    fn counts(ring: &Ring) -> RingCounts {
        ring.counts(|| ()).0
    }

    #[test]
    fn the_newest_is_dropped_when_the_ring_is_full_and_takes_no_number() {
        for (payload_bytes, room) in [(0, MOST_RECORDS), (1 << 20, MOST_BYTES / (HEAD_BYTES + (1 << 20)))] {
            let ring = Ring::new(5);
            let mut wakes = 0;
            for index in 0..room {
                let (seq, wake) = append(&ring, payload_bytes).unwrap();
                assert_eq!(seq, 5 + index as u64);
                wakes += usize::from(wake);
            }
            assert_eq!(wakes, 1);
            assert!(matches!(append(&ring, payload_bytes), Err(JournalError::MemoryFull)));
            let last_seq = 4 + room as u64;
            assert_eq!(counts(&ring), RingCounts { queued: room as u64, dropped: 1, last_seq });
            ring.close();
            assert!(matches!(append(&ring, 0), Err(JournalError::Closed)));
            ring.drop_rest();
            assert_eq!(counts(&ring), RingCounts { queued: 0, dropped: 2 + room as u64, last_seq });
        }
    }

    #[test]
    fn a_batch_goes_out_in_whole_records_that_fit_and_one_at_least() {
        let ring = Ring::new(1);
        for payload_bytes in [10, 20, 30] {
            append(&ring, payload_bytes).unwrap();
        }
        let mut queue = ring.queue.lock();
        let (one, two, three) = (HEAD_BYTES + 10, HEAD_BYTES + 20, HEAD_BYTES + 30);
        for (written, most_bytes, expected) in [
            (0, 0, (1, one)),
            (0, one + two - 1, (1, one)),
            (0, one + two, (2, one + two)),
            (0, 1_000_000, (3, one + two + three)),
            (1, two, (1, two)),
            (1, two + three, (2, two + three)),
            (2, 0, (1, three)),
            (3, 1_000_000, (0, 0)),
        ] {
            queue.batch.written = written;
            let (records, bytes) = queue.batch.piece(most_bytes as u64);
            assert_eq!((records, bytes.len()), expected, "{written} written, room for {most_bytes}");
        }
    }
}
