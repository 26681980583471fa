//! Why a journal did not do what it was asked to.

use std::io;
use std::path::{Path, PathBuf};

use super::record::MAX_PAYLOAD_BYTES;
use super::segment;

/// Why the journal did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused; for an append the record is not in the journal.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The payload exceeds [`MAX_PAYLOAD_BYTES`].
    #[error("a record of {payload_bytes} bytes exceeds the limit of {limit}", limit = MAX_PAYLOAD_BYTES)]
    TooLarge {
        /// Its size.
        payload_bytes: usize,
    },
    /// In `lossy`: more records wait to be written than may be held in memory.
    #[error("the journal's memory is full: the disk does not take the records as fast as they come")]
    MemoryFull,
    /// Another process, or another part of this one, has the folder open.
    #[error("the journal {dir} is in use by process {holder}")]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// Its process id as it left it in the lock file, or `unknown`.
        holder: String,
    },
    /// A later version of this program wrote the journal.
    #[error("{path} has format version {version}, this program reads {known}", known = segment::VERSION)]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// No journal has been made in the folder yet, or none of it is left.
    #[error("there is no journal in {dir}")]
    NotThere {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder holds another journal than the one that was followed, or an older copy of it.
    #[error("another journal lies in {dir} than before")]
    Replaced {
        /// The folder.
        dir: PathBuf,
    },
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether there was no room, on the disk or within a quota.
    pub(super) fn is_no_space(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}
