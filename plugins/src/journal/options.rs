//! How a journal is written, and its figures.

use std::time::Duration;

/// When a record counts as recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// As `Durable`, and the data plane waits until the begin of an exchange is on disk before the first byte goes to
    /// the provider ([`super::Journal::on_disk`]). A disk that is full or fails refuses traffic.
    Strict,
    /// In the file before the append returns: a crash of the process takes nothing. A power cut takes what was written
    /// since the last sync.
    #[default]
    Durable,
    /// In memory when the append returns, and in the file a beat later: a crash of the process takes what waits. No
    /// system call on the way of a request.
    Lossy,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Durable, Self::Lossy];

    /// The name used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Durable => "durable",
            Self::Lossy => "lossy",
        }
    }
}

/// How a journal is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When a record counts as recorded. [`Mode::Durable`].
    pub mode: Mode,
    /// A segment that has reached this size is followed by a new one. 64 MiB.
    pub segment_bytes: u64,
    /// Longest time that a record stays unsynced. 50 ms.
    pub sync_every: Duration,
    /// Unsynced bytes that call for a sync before that. 1 MiB.
    pub sync_bytes: u64,
    /// Most bytes of the whole folder: above it the oldest segments are deleted, whoever has not read them yet, though
    /// never the newest two. `None`, no bound.
    pub max_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            segment_bytes: 64 << 20,
            sync_every: Duration::from_millis(50),
            sync_bytes: 1 << 20,
            max_bytes: None,
        }
    }
}

/// What opening a journal found and repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Bytes cut from the end of the last segment: a record that a crash interrupted.
    pub torn_bytes: u64,
    /// Records lost to damage before the end, by the gap in their numbers.
    pub bad_records: u64,
    /// Exchanges found begun and not ended, and ended now as `unknown`.
    pub unknown_exchanges: u64,
    /// The number of the last record, those ends included; 0 in a new journal.
    pub last_seq: u64,
}

/// The state of a journal, for metrics and health. At every moment `written + queued + dropped` is what was appended
/// since the journal was opened, the ends of exchanges that opening it found unended included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Records written since the journal was opened.
    pub written: u64,
    /// Bytes of these.
    pub written_bytes: u64,
    /// Of these, those without their captured bodies, which found no room on the disk or made the record too large.
    pub stripped: u64,
    /// Records that wait in memory to be written; only in [`Mode::Lossy`].
    pub queued: u64,
    /// Records that could not be appended since the journal was opened: full disk, full memory, too large, closed.
    pub dropped: u64,
    /// Segment files now.
    pub segments: u64,
    /// Bytes in these.
    pub bytes: u64,
    /// As [`Recovered::bad_records`].
    pub bad_records: u64,
    /// Records that [`Options::max_bytes`] has cost since the journal was opened: deleted while, as far as the last
    /// [`super::Journal::release`] told, not every consumer had passed them.
    pub discarded_records: u64,
    /// Syncs that failed since the journal was opened.
    pub sync_failures: u64,
    /// Records appended and not yet known to be on disk.
    pub unsynced: u64,
    /// The last write or the last sync failed; [`super::Journal::last_error`] says why. Who writes nothing because of it
    /// will not see it end.
    pub is_failing: bool,
}
