//! Group commit: what is written reaches the disk within [`super::Options::sync_every`], and nobody waits for it.
//!
//! A thread of its own syncs on a beat instead of being woken by every append, which would cost each one a system
//! call; only an appender that finds a lot of unsynced bytes wakes it early.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Shared;
use super::writer::Owed;

/// Syncs until the journal stops, and once more then.
pub(super) fn run(shared: &Shared, every: Duration) {
    let mut failing = false;
    loop {
        let is_last = shared.stop.load(Ordering::Acquire);
        if shared.synced.load(Ordering::Acquire) < shared.position() {
            let result = shared.sync_now();
            if let Err(error) = &result
                && !failing
            {
                tracing::error!(%error, journal.dir = %shared.dir.display(), "The journal cannot be synced to disk");
            }
            failing = result.is_err();
        }
        if is_last {
            return;
        }
        thread::park_timeout(every);
    }
}

impl Shared {
    /// Brings every record appended so far to disk. Appending goes on meanwhile.
    pub(super) fn sync_now(&self) -> io::Result<()> {
        // One at a time: what one has taken to sync, the next must not report as synced.
        let _turn = self.sync_turn.lock();
        let owed = self.writer.lock().take_owed();
        let result = settle(&owed, || File::open(&self.dir)?.sync_all());
        match &result {
            Ok(()) => {
                self.synced.fetch_max(owed.through_seq, Ordering::AcqRel);
            }
            Err(_) => {
                self.sync_failures.fetch_add(1, Ordering::Relaxed);
                self.writer.lock().owe_again(owed);
            }
        }
        result
    }
}

fn settle(owed: &Owed, sync_folder: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    for file in owed.complete.iter().chain(&owed.current) {
        file.sync_data()?;
    }
    if owed.folder { sync_folder() } else { Ok(()) }
}
