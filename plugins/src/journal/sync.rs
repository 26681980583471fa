//! Group commit: what is written reaches the disk within [`super::Options::sync_every`], and nobody has to wait for it.
//!
//! A thread of its own syncs on a beat instead of being woken by every append, which would cost each one a system
//! call; only an appender that finds a lot of unsynced bytes wakes it early.
//!
//! Who does wait, in `strict`, wakes it at once, and the sync begins at once: whatever is appended while it runs goes
//! with the next one, together. Under load a group is as large as what came in during one sync, and nobody is held up
//! only to make it larger, as a rule of so many milliseconds or records would.
//!
//! While syncs fail, nobody waits for the next one: who asks is told so. The thread tries again on a slower beat.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::writer::Owed;
use super::{JournalError, Shared, segment};

/// The beat while syncs fail. Each try may write a segment again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// How far syncing has come, for those who wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The last record known to be on disk.
    pub synced: u64,
    /// The last sync failed.
    pub failing: bool,
    /// There will be no further sync.
    pub ended: bool,
}

/// Syncs and keeps the folder's bound until the journal stops.
pub(super) fn run(shared: &Shared, every: Duration) {
    let (mut failing, mut overgrown) = (false, false);
    while !shared.stop.load(Ordering::Acquire) {
        if shared.is_unsynced() {
            let result = shared.sync_now();
            if let Err(error) = &result
                && !failing
            {
                tracing::error!(%error, journal.dir = %shared.dir.display(), "The journal cannot be synced to disk");
            }
            failing = result.is_err();
        } else {
            failing = false;
        }
        let kept = shared.keep_bound();
        if let Err(error) = &kept
            && !overgrown
        {
            tracing::error!(%error, journal.dir = %shared.dir.display(), "The journal has outgrown its bound");
        }
        overgrown = kept.is_err();
        thread::park_timeout(if failing { every.max(RETRY_EVERY) } else { every });
    }
}

impl Shared {
    /// Whether records were written that are not known to be on disk.
    pub(super) fn is_unsynced(&self) -> bool {
        self.synced() < self.position()
    }

    /// The last record known to be on disk.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Brings every record written so far to disk. Appending goes on meanwhile.
    pub(super) fn sync_now(&self) -> Result<(), JournalError> {
        // One at a time: what one has taken to sync, the next must not report as synced.
        let _turn = self.sync_turn.lock();
        let mut owed = self.writer.lock().take_owed();
        let result = self.settle(&mut owed);
        match &result {
            Ok(()) => {
                let synced = self.synced.fetch_max(owed.through_seq, Ordering::AcqRel).max(owed.through_seq);
                self.progress.send_modify(|progress| {
                    progress.synced = synced;
                    progress.failing = false;
                });
            }
            Err(error) => {
                self.sync_failures.fetch_add(1, Ordering::Relaxed);
                self.writer.lock().owe_again(owed);
                *self.sync_error.lock() = Some(error.to_string());
                self.progress.send_modify(|progress| progress.failing = true);
            }
        }
        result
    }

    fn settle(&self, owed: &mut Owed) -> Result<(), JournalError> {
        while let Some(part) = owed.parts.front_mut() {
            let path = segment::path(&self.dir, part.first_seq);
            part.settle(&*self.disk, &path).map_err(JournalError::at("sync", &path))?;
            owed.parts.pop_front();
        }
        if owed.folder {
            self.disk.sync_folder(&self.dir).map_err(JournalError::at("sync", &self.dir))?;
            owed.folder = false;
        }
        Ok(())
    }

    /// Waits until record `seq` is on disk.
    pub(super) async fn on_disk(&self, seq: u64) -> Result<(), JournalError> {
        if self.synced() >= seq {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let mut asked = false;
        loop {
            let Progress { synced, failing, ended } = *progress.borrow_and_update();
            if synced >= seq {
                return Ok(());
            }
            if failing {
                let why = self.sync_error.lock().clone().unwrap_or_default();
                return Err(JournalError::at("sync", &self.dir)(std::io::Error::other(why)));
            }
            if ended {
                return Err(JournalError::Closed);
            }
            if !asked && let Some(thread) = self.syncing_thread.get() {
                thread.unpark();
                asked = true;
            }
            // The sender lives as long as this journal.
            let _ = progress.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures::FutureExt;
    use futures::future::join_all;
    use uuid::Uuid;

    use super::super::simulated::{Fault, Machine, records_in};
    use super::super::{Journal, Kind, Mode, Options};
    use super::*;

    const DIR: &str = "/journal";

    /// A journal whose threads do nothing by themselves.
    fn journal(machine: &Machine) -> Journal {
        let options = Options { mode: Mode::Strict, sync_every: Duration::from_secs(3_600), ..Options::default() };
        let (disk, lock) = (machine.start_process(), tempfile::tempfile().unwrap());
        let (journal, _) = Journal::assemble(disk, lock, Path::new(DIR), options).unwrap();
        journal.start(options).unwrap();
        journal
    }

    fn append(journal: &Journal) -> u64 {
        journal.append(Kind::Begin, Uuid::nil(), 5, b"begin").unwrap()
    }

    fn on_disk_after_power_cut(machine: &Machine) -> usize {
        machine.cut_power();
        records_in(&machine.observe(), Path::new(DIR)).len()
    }

    #[tokio::test]
    async fn who_waits_waits_for_no_beat_and_what_was_promised_survives() {
        let machine = Machine::new(1);
        let journal = journal(&machine);
        for seq in 1..=5 {
            assert_eq!(append(&journal), seq);
            journal.on_disk(seq).await.unwrap();
        }
        assert_eq!(journal.stats().unsynced, 0);
        // At once, and without another sync.
        let syncs = machine.file_syncs();
        assert!(journal.on_disk(3).now_or_never().unwrap().is_ok());
        assert_eq!(machine.file_syncs(), syncs);
        assert_eq!(on_disk_after_power_cut(&machine), 5);
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_nothing_from_those_who_wait() {
        let machine = Machine::new(1);
        let journal = journal(&machine);
        let seq = append(&journal);
        let _ = journal.on_disk(seq).now_or_never();
        journal.on_disk(seq).await.unwrap();
    }

    #[tokio::test]
    async fn what_comes_during_one_sync_goes_with_the_next_all_together() {
        let machine = Machine::new(1);
        let journal = journal(&machine);
        let turn = journal.inner.shared.sync_turn.lock();
        let waits = join_all((0..64).map(|_| async { journal.on_disk(append(&journal)).await }));
        let mut waits = std::pin::pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!((journal.position(), machine.file_syncs()), (64, 0));
        drop(turn);
        assert!(waits.await.iter().all(Result::is_ok));
        assert_eq!(machine.file_syncs(), 1);
    }

    #[tokio::test]
    async fn a_sync_that_fails_is_told_and_is_made_good_by_writing_again() {
        let machine = Machine::new(1);
        let journal = journal(&machine);
        append(&journal);
        journal.on_disk(1).await.unwrap();
        // The append is the next call, the sync the one after it.
        machine.fail_call(machine.calls() + 1, Fault::Broken);
        assert_eq!(append(&journal), 2);
        let error = journal.on_disk(2).await.unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
        let stats = journal.stats();
        assert_eq!((stats.is_failing, stats.sync_failures, stats.unsynced), (true, 1, 1));
        // Nobody waits for a disk that fails.
        assert!(journal.on_disk(2).now_or_never().unwrap().is_err());

        journal.sync().unwrap();
        journal.on_disk(2).await.unwrap();
        assert_eq!((journal.stats().is_failing, journal.last_error()), (false, None));
        assert_eq!(on_disk_after_power_cut(&machine), 2);
    }

    #[tokio::test]
    async fn a_journal_that_is_closed_keeps_nobody_waiting() {
        let machine = Machine::new(1);
        let journal = journal(&machine);
        let seq = append(&journal);
        let waiting = journal.on_disk(seq + 1);
        journal.close();
        journal.on_disk(seq).await.unwrap();
        assert!(matches!(waiting.await, Err(JournalError::Closed)));
        assert_eq!(on_disk_after_power_cut(&machine), 1);
    }

    #[test]
    fn a_failed_sync_makes_suspect_what_was_written_while_it_ran() {
        for segment_bytes in [1 << 20, 150] {
            let machine = Machine::new(1);
            let options = Options { segment_bytes, ..Options::default() };
            let (disk, lock) = (machine.start_process(), tempfile::tempfile().unwrap());
            let (journal, _) = Journal::assemble(disk, lock, Path::new(DIR), options).unwrap();
            let shared = &journal.inner.shared;
            append(&journal);
            journal.sync().unwrap();
            append(&journal);
            let mut owed = shared.writer.lock().take_owed();
            for _ in 0..5 {
                append(&journal);
            }
            machine.fail_call(machine.calls(), Fault::Broken);
            assert!(shared.settle(&mut owed).is_err());
            shared.writer.lock().owe_again(owed);
            journal.sync().unwrap();
            assert_eq!(on_disk_after_power_cut(&machine), 7, "segments of {segment_bytes}");
        }
    }
}
