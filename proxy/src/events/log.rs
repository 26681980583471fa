//! The journal as these commands read it: from beside whoever writes it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use llm_proxy_plugins::dispatcher::Event;
use llm_proxy_plugins::event::{Exchange, Message};
use llm_proxy_plugins::journal::{Feed, Follower, JournalError, Kind, Reader, RecordRef};

/// The folder of the journal within `DATA_DIR`.
const FOLDER: &str = "journal";

/// A journal, to be read.
pub(super) struct Log {
    follower: Follower,
    dir: PathBuf,
}

impl Log {
    /// The journal in this `DATA_DIR`.
    pub(super) fn open(data_dir: &Path) -> Result<Self> {
        let dir = data_dir.join(FOLDER);
        let follower = Follower::open(&dir).map_err(|error| match error {
            JournalError::NotThere { .. } => anyhow!(
                "DATA_DIR: there is no journal in {}; --data-dir names the directory of the server",
                data_dir.display()
            ),
            error => anyhow!(error).context("DATA_DIR"),
        })?;
        Ok(Self { follower, dir })
    }

    /// The journal's own random id.
    pub(super) fn id(&self) -> &str {
        self.follower.id()
    }

    /// Where its files are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number of the last record that there is now.
    pub(super) fn position(&self) -> u64 {
        self.follower.position()
    }

    /// A reader of what comes after the record `after`.
    pub(super) fn reader(&self, after: u64) -> Reader {
        self.follower.reader(after)
    }

    /// The journal as consumers take it.
    pub(super) fn feed(&self) -> Feed {
        Feed::Foreign(self.follower.clone())
    }

    /// Hands over the records after `after` up to `last`, until `each` has enough.
    pub(super) fn read(
        &self,
        after: u64,
        last: u64,
        mut each: impl FnMut(&RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut reader = self.reader(after);
        while let Some(record) = reader.next_ref().context("DATA_DIR")? {
            if record.seq > last || each(&record).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The event that a record tells of; `None` for a begin, and for what is no event.
pub(super) fn event(record: &RecordRef<'_>) -> Option<Event> {
    let exchange = exchange(record)?;
    let RecordRef { seq, event_id: id, time_us, payload, .. } = *record;
    Some(Event { seq, id, time_us, exchange, payload: payload.into() })
}

/// As [`event`], without the message as it was written.
pub(super) fn exchange(record: &RecordRef<'_>) -> Option<Exchange> {
    if record.kind == Kind::Begin { None } else { Exchange::decode(record.payload).ok() }
}
