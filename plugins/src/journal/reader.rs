//! Reading: what every consumer of the journal does, at its own pace, from its own place.
//!
//! A reader takes what it is told to be whole, and nothing more. Whether that is known because this process appended it
//! or because the files of another one were looked at (`follow.rs`), is its source's business.

use std::path::Path;
use std::sync::Arc;

use super::follow::Folder;
use super::record::{Head, Kind, Record, RecordRef};
use super::segment::{Header, SegmentStream};
use super::{JournalError, Shared, segment};

/// Reads the records after a given one, in order, while more are appended. Does blocking file IO.
pub struct Reader {
    source: Source,
    open: Option<Open>,
    last_seq: u64,
    skipped: u64,
    missed: u64,
    /// It was told where to begin, or has begun.
    has_place: bool,
}

/// Whose journal it is.
enum Source {
    Own(Arc<Shared>),
    Foreign(Arc<Folder>),
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
        Self::of(Source::Own(shared), after_seq)
    }

    pub(super) fn following(folder: Arc<Folder>, after_seq: u64) -> Self {
        Self::of(Source::Foreign(folder), after_seq)
    }

    fn of(source: Source, after_seq: u64) -> Self {
        Self { source, open: None, last_seq: after_seq, skipped: 0, missed: 0, has_place: after_seq > 0 }
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
    /// last one read, this costs one atomic load; in a journal of another process, a look at its folder.
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
            let position = self.source.position_after(self.last_seq)?;
            if self.last_seq >= position {
                return Ok(None);
            }
            let Some(open) = self.open.as_mut() else {
                self.open_at(self.last_seq.saturating_add(1))?;
                continue;
            };
            let (limit, growing) = match open.followed_by {
                Some(following) => (following.saturating_sub(1), false),
                None => (position, true),
            };
            let first_seq = open.first_seq;
            let found = open.stream.next(limit, growing);
            let unreadable = |source| JournalError::at("read", &segment::path(self.source.dir(), first_seq))(source);
            let Some(head) = found.map_err(unreadable)? else {
                if let Some(following) = open.followed_by {
                    if self.source.segment_of(first_seq)? != first_seq {
                        self.miss_up_to(following);
                    }
                    self.open_at(following)?;
                } else if let Some(following) = self.source.segment_after(first_seq)? {
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
            self.has_place = true;
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

    /// Records passed over because they were deleted before this reader came to them. One that began with whatever is
    /// kept has missed nothing before that.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// The segment that was read has been deleted meanwhile, and all up to this record with it.
    fn miss_up_to(&mut self, following: u64) {
        let before = following.saturating_sub(1);
        self.missed = self.missed.saturating_add(before.saturating_sub(self.last_seq));
        self.last_seq = self.last_seq.max(before);
    }

    /// Opens the segment that holds record `seq`, or the oldest one behind it that is left.
    fn open_at(&mut self, seq: u64) -> Result<(), JournalError> {
        let first_seq = self.source.segment_of(seq)?;
        let dir = self.source.dir();
        let path = segment::path(dir, first_seq);
        let stream = SegmentStream::open(dir, first_seq).map_err(JournalError::at("open", &path))?;
        self.source.check(stream.header(), &path)?;
        let before = first_seq.saturating_sub(1);
        if before >= seq {
            if self.has_place {
                self.missed = self.missed.saturating_add(before.saturating_sub(self.last_seq));
            }
            self.last_seq = self.last_seq.max(before);
        }
        self.open = Some(Open { first_seq, followed_by: None, stream });
        Ok(())
    }
}

impl Source {
    fn dir(&self) -> &Path {
        match self {
            Self::Own(shared) => &shared.dir,
            Self::Foreign(folder) => folder.dir(),
        }
    }

    /// The last whole record; where there is one after `seq`, that may be an older answer.
    fn position_after(&self, seq: u64) -> Result<u64, JournalError> {
        match self {
            Self::Own(shared) => Ok(shared.position()),
            Self::Foreign(folder) => folder.position_after(seq),
        }
    }

    fn segment_of(&self, seq: u64) -> Result<u64, JournalError> {
        match self {
            Self::Own(shared) => Ok(shared.segment_of(seq)),
            Self::Foreign(folder) => folder.segment_of(seq),
        }
    }

    fn segment_after(&self, first_seq: u64) -> Result<Option<u64>, JournalError> {
        match self {
            Self::Own(shared) => Ok(shared.segment_after(first_seq)),
            Self::Foreign(folder) => folder.segment_after(first_seq),
        }
    }

    /// In our own folder nobody else makes segments.
    fn check(&self, header: Option<Header>, path: &Path) -> Result<(), JournalError> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Foreign(folder) => folder.check(header, path),
        }
    }
}
