//! Where a consumer reads from: the journal that this process writes, or one that another process does.
//!
//! What a consumer needs of a journal is the same in both cases, so that a sink is served by one loop wherever that
//! runs. An enum and no trait: there are these two, and a reader of one is a reader of the other.

use std::path::Path;

use super::{Follower, Journal, JournalError, Reader, rewrite};

/// A journal to read from. Clones share it.
#[derive(Clone)]
pub enum Feed {
    /// Written by this process.
    Own(Journal),
    /// Written by another process, or by none at the moment.
    Foreign(Follower),
}

impl Feed {
    /// As [`Journal::id`].
    pub fn id(&self) -> &str {
        match self {
            Self::Own(journal) => journal.id(),
            Self::Foreign(follower) => follower.id(),
        }
    }

    /// As [`Journal::position`] or [`Follower::position`].
    pub fn position(&self) -> u64 {
        match self {
            Self::Own(journal) => journal.position(),
            Self::Foreign(follower) => follower.position(),
        }
    }

    /// A reader of the records after `after_seq`; 0 reads all that are kept.
    pub fn reader(&self, after_seq: u64) -> Reader {
        match self {
            Self::Own(journal) => journal.reader(after_seq),
            Self::Foreign(follower) => follower.reader(after_seq),
        }
    }

    /// Makes sure that the records up to `seq` are on disk. A consumer calls this before it saves a cursor; see
    /// [`Journal::sync_through`].
    ///
    /// # Errors
    /// [`JournalError::Io`]: they may not all be there.
    pub fn sync_through(&self, seq: u64) -> Result<(), JournalError> {
        match self {
            Self::Own(journal) => journal.sync_through(seq),
            Self::Foreign(follower) => follower.sync_through(seq),
        }
    }

    /// How often captured content has been erased from the journal. Once this has grown, records in memory may hold
    /// what is no longer to be passed on, and are read anew.
    pub fn erasures(&self) -> u64 {
        rewrite::erasures(self.folder())
    }

    fn folder(&self) -> &Path {
        match self {
            Self::Own(journal) => journal.folder(),
            Self::Foreign(follower) => follower.folder(),
        }
    }
}

impl From<Journal> for Feed {
    fn from(journal: Journal) -> Self {
        Self::Own(journal)
    }
}

impl From<&Journal> for Feed {
    fn from(journal: &Journal) -> Self {
        Self::Own(journal.clone())
    }
}

impl From<Follower> for Feed {
    fn from(follower: Follower) -> Self {
        Self::Foreign(follower)
    }
}

impl From<&Follower> for Feed {
    fn from(follower: &Follower) -> Self {
        Self::Foreign(follower.clone())
    }
}

impl From<&Feed> for Feed {
    fn from(feed: &Feed) -> Self {
        feed.clone()
    }
}
