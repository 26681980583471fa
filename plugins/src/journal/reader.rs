//! Reading: what every consumer of the journal does, at its own pace, from its own place.

use std::sync::Arc;

use super::record::{Head, Kind, Record, RecordRef};
use super::segment::SegmentStream;
use super::{JournalError, Shared, segment};

/// Reads the records after a given one, in order, while more are appended. Does blocking file IO.
pub struct Reader {
    shared: Arc<Shared>,
    open: Option<Open>,
    last_seq: u64,
    skipped: u64,
}

/// The segment being read.
struct Open {
    first_seq: u64,
    /// First sequence number of the segment after it, once it is known to grow no more.
    followed_by: Option<u64>,
    stream: SegmentStream,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, after_seq: u64) -> Self {
        Self { shared, open: None, last_seq: after_seq, skipped: 0 }
    }

    /// The next record, or `None` if there is none yet; it may be asked again any time. Damaged records are passed
    /// over and counted.
    ///
    /// # Errors
    /// [`JournalError::Io`] when a segment cannot be read. Asking again tries again.
    #[allow(clippy::should_implement_trait, reason = "unlike an iterator's, this `None` is not the end")]
    pub fn next(&mut self) -> Result<Option<Record>, JournalError> {
        Ok(self.next_ref()?.map(Record::from))
    }

    /// As [`Self::next`], but lends the payload instead of copying it. While no record has been appended since the
    /// last one read, this costs one atomic load.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_ref(&mut self) -> Result<Option<RecordRef<'_>>, JournalError> {
        let Some((kind, head)) = self.advance()? else { return Ok(None) };
        let payload = self.open.as_ref().map(|open| open.stream.payload(&head)).unwrap_or_default();
        Ok(Some(RecordRef { kind, seq: head.seq, time_us: head.time_us, event_id: head.event_id, payload }))
    }

    fn advance(&mut self) -> Result<Option<(Kind, Head)>, JournalError> {
        loop {
            let position = self.shared.position();
            if self.last_seq >= position {
                return Ok(None);
            }
            let Some(open) = self.open.as_mut() else {
                self.open_first()?;
                continue;
            };
            let (limit, growing) = match open.followed_by {
                Some(following) => (following.saturating_sub(1), false),
                None => (position, true),
            };
            let first_seq = open.first_seq;
            let found = open.stream.next(limit, growing);
            let unreadable = |source| JournalError::at("read", &segment::path(&self.shared.dir, first_seq))(source);
            let Some(head) = found.map_err(unreadable)? else {
                if let Some(following) = open.followed_by {
                    self.open = Some(self.open_segment(following)?);
                } else if let Some(following) = self.shared.segment_after(first_seq) {
                    // More records may have come between the end of file met above and the segment's completion.
                    open.followed_by = Some(following);
                } else {
                    return Ok(None);
                }
                continue;
            };
            if head.seq <= self.last_seq {
                continue;
            }
            let missing = head.seq.saturating_sub(self.last_seq).saturating_sub(1);
            self.skipped = self.skipped.saturating_add(missing);
            self.last_seq = head.seq;
            if let Some(kind) = Kind::from_code(head.code) {
                return Ok(Some((kind, head)));
            }
        }
    }

    /// The number of the last record read or passed over.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Records passed over because they were damaged.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn open_first(&mut self) -> Result<(), JournalError> {
        let first_seq = self.shared.segment_of(self.last_seq.saturating_add(1));
        self.open = Some(self.open_segment(first_seq)?);
        // What stood before the oldest segment was released by every consumer, so nothing is missing.
        self.last_seq = self.last_seq.max(first_seq.saturating_sub(1));
        Ok(())
    }

    fn open_segment(&self, first_seq: u64) -> Result<Open, JournalError> {
        let path = segment::path(&self.shared.dir, first_seq);
        let stream = SegmentStream::open(&self.shared.dir, first_seq).map_err(JournalError::at("open", &path))?;
        Ok(Open { first_seq, followed_by: None, stream })
    }
}
