//! Which segments may go: those that every consumer has passed, and, above the folder's bound, the oldest ones whoever
//! still wants them.
//!
//! Segments go oldest first and one after the other. File systems keep the order in which names were removed, so what a
//! power cut brings back is an unbroken run of the newest of them: a begin never comes back without its end.

use std::io;
use std::sync::atomic::Ordering;

use super::{JournalError, Shared, segment};

impl Shared {
    /// Deletes the segments whose records all have numbers up to `seq`, but for the newest: two at least, and as many as
    /// have the size of one.
    pub(super) fn release(&self, seq: u64) -> Result<usize, JournalError> {
        self.released.fetch_max(seq.min(self.position()), Ordering::AcqRel);
        if self.writer.lock().passed(seq).is_empty() {
            return Ok(0);
        }
        // An exchange whose begin goes now has ended, perhaps a moment ago: a power cut must not take both.
        if self.is_unsynced() {
            self.sync_now()?;
        }
        let _turn = self.removal_turn.lock();
        let passed = self.writer.lock().passed(seq);
        for first_seq in &passed {
            self.remove(*first_seq, 0)?;
        }
        Ok(passed.len())
    }

    /// Deletes the oldest segments, the newest two excepted, until the folder has no more than its bound.
    pub(super) fn keep_bound(&self) -> Result<(), JournalError> {
        let Some(max_bytes) = self.max_bytes else { return Ok(()) };
        let _turn = self.removal_turn.lock();
        let excess = self.writer.lock().excess(max_bytes);
        let (mut segments, mut lost): (u64, u64) = (0, 0);
        let mut removed = Ok(());
        for (first_seq, following) in excess {
            let next_wanted = self.released.load(Ordering::Acquire).saturating_add(1).max(first_seq);
            let wanted = following.saturating_sub(next_wanted);
            removed = self.remove(first_seq, wanted);
            if removed.is_err() {
                break;
            }
            segments = segments.saturating_add(1);
            lost = lost.saturating_add(wanted);
        }
        if lost > 0 {
            tracing::error!(
                records = lost,
                segments,
                max_bytes,
                journal.dir = %self.dir.display(),
                "The journal has reached its bound: its oldest records were deleted before every consumer had them"
            );
        }
        removed
    }

    /// Deletes a segment with so many records that somebody still wanted. Whoever calls it has the turn.
    fn remove(&self, first_seq: u64, wanted: u64) -> Result<(), JournalError> {
        let path = segment::path(&self.dir, first_seq);
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(JournalError::at("remove", &path)(error)),
            _ => {
                self.writer.lock().forget(first_seq, wanted);
                Ok(())
            }
        }
    }
}
