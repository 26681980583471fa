//! Brings what administrators did from the store's outbox to the journal, where sinks and readers find it.
//!
//! A row is appended, synced, and only then deleted. So a process that dies anywhere in between loses nothing: the next
//! start carries what is left, and what had been appended already comes again under the same id. A journal that cannot be
//! written holds up no administrator: the rows wait in the store.

use std::sync::Arc;
use std::time::Duration;

use llm_proxy_plugins::journal::{Journal, JournalError, Kind};
use llm_proxy_store::{AuditEntry, Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use uuid::Uuid;

/// How often the outbox is looked at without being told of a new row: what failed is tried again, and what another
/// process has left there is found.
const EVERY: Duration = Duration::from_secs(5);
/// The most rows carried at once: what comes again after a crash.
const MOST_ROWS: u32 = 100;
/// How long the last carrying may take while the process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Carries the outbox to the journal, as a task of its own.
pub struct Courier {
    stop: Arc<Notify>,
    task: JoinHandle<()>,
    control: Handle,
}

impl Courier {
    /// Starts with what a crash has left. `control` runs the task.
    pub fn start(journal: &Journal, store: Store, control: Handle) -> Self {
        let stop = Arc::new(Notify::new());
        let carrying = Carrying::new(journal, store);
        let task = control.spawn(carrying.run(Arc::clone(&stop)));
        Self { stop, task, control }
    }

    /// Carries what is left and ends; for two seconds at most, which loses nothing: the next start goes on. Blocks: not
    /// to be called by a task. The journal is closed after it.
    pub fn drain(self) {
        let Self { stop, task, control } = self;
        stop.notify_one();
        match control.block_on(async { tokio::time::timeout(LAST_WORDS, task).await }) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "Management actions are in the store and not yet in the journal"),
            Err(_) => tracing::warn!("Management actions are in the store and not yet in the journal: it is too slow"),
        }
    }
}

/// Why rows are where they were.
#[derive(Debug, thiserror::Error)]
enum CarryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the runtime ends: {0}")]
    Stopped(#[from] JoinError),
}

struct Carrying {
    journal: Journal,
    store: Store,
    /// In the journal, and still in the outbox.
    appended: Vec<Uuid>,
    /// The number that the last of these has in the journal.
    up_to_seq: u64,
}

impl Carrying {
    fn new(journal: &Journal, store: Store) -> Self {
        Self { journal: journal.clone(), store, appended: Vec::new(), up_to_seq: 0 }
    }

    async fn run(mut self, stop: Arc<Notify>) {
        let (mut is_over, mut is_failing) = (false, false);
        loop {
            match self.carry().await {
                Ok(()) => is_failing = false,
                // Told once: it is tried again every few seconds.
                Err(error) if is_failing => tracing::debug!(%error, "Management actions still wait in the store"),
                Err(error) => {
                    is_failing = true;
                    tracing::warn!(%error, "Management actions wait in the store: the journal will have them later");
                }
            }
            if is_over {
                return;
            }
            is_over = tokio::select! {
                () = stop.notified() => true,
                () = self.store.outbox_grew(), if !is_failing => false,
                () = tokio::time::sleep(EVERY) => false,
            };
        }
    }

    /// Carries all that there is.
    async fn carry(&mut self) -> Result<(), CarryError> {
        // What an earlier try has appended is not appended again.
        self.settle().await?;
        loop {
            let entries = self.store.outbox(MOST_ROWS).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let appended = self.append(entries).await;
            self.settle().await?;
            appended?;
        }
    }

    /// Appends rows in their order, up to the first that the journal does not take.
    async fn append(&mut self, entries: Vec<AuditEntry>) -> Result<(), CarryError> {
        let journal = self.journal.clone();
        let (appended, up_to_seq, end) = spawn_blocking(move || {
            let (mut appended, mut up_to_seq) = (Vec::with_capacity(entries.len()), 0);
            for AuditEntry { id, time_us, payload } in entries {
                match journal.append(Kind::Admin, id, time_us, &payload) {
                    Ok(seq) => up_to_seq = seq,
                    Err(error) => return (appended, up_to_seq, Err(error)),
                }
                appended.push(id);
            }
            (appended, up_to_seq, Ok(()))
        })
        .await?;
        self.up_to_seq = self.up_to_seq.max(up_to_seq);
        self.appended.extend(appended);
        Ok(end?)
    }

    /// Deletes the rows of what was appended, once it is on disk.
    async fn settle(&mut self) -> Result<(), CarryError> {
        if self.appended.is_empty() {
            return Ok(());
        }
        let (journal, up_to_seq) = (self.journal.clone(), self.up_to_seq);
        spawn_blocking(move || journal.sync_through(up_to_seq)).await??;
        self.store.clear_outbox(&self.appended).await?;
        self.appended.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use llm_proxy_plugins::journal::Options;
    use llm_proxy_store::RootKey;
    use tempfile::TempDir;

    use super::*;

    struct Bench {
        folder: TempDir,
        root_key: RootKey,
        store: Store,
    }

    impl Bench {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root_key = RootKey::generate().unwrap();
            let store = Self::open(&folder, &root_key).await;
            Self { folder, root_key, store }
        }

        async fn open(folder: &TempDir, root_key: &RootKey) -> Store {
            let url = format!("sqlite:{}", folder.path().join("store.db").display());
            Store::open(&url, root_key).await.unwrap()
        }

        async fn reopen(&mut self) {
            self.store.close().await;
            self.store = Self::open(&self.folder, &self.root_key).await;
        }

        fn journal(&self) -> Journal {
            Journal::open(&self.folder.path().join("journal"), Options::default()).unwrap().0
        }

        async fn add(&self, numbers: impl IntoIterator<Item = u128>) {
            for number in numbers {
                let entry = AuditEntry { id: Uuid::from_u128(number), time_us: 7, payload: vec![number as u8] };
                self.store.add_to_outbox(entry).await.unwrap();
            }
        }

        async fn waiting(&self) -> usize {
            self.store.outbox(1_000).await.unwrap().len()
        }
    }

    /// What the journal has, by the numbers of the ids.
    fn carried(journal: &Journal) -> Vec<u128> {
        let mut reader = journal.reader(0);
        let mut found = Vec::new();
        while let Some(record) = reader.next_ref().unwrap() {
            assert_eq!((record.kind, record.time_us), (Kind::Admin, 7));
            assert_eq!(record.payload, [record.event_id.as_u128() as u8]);
            found.push(record.event_id.as_u128());
        }
        found
    }

    #[tokio::test]
    async fn rows_come_to_the_journal_in_their_order_and_leave_the_outbox() {
        let bench = Bench::new().await;
        let journal = bench.journal();
        // More than one batch, under ids that do not sort.
        let numbers: Vec<_> = (1..=250).rev().collect();
        bench.add(numbers.iter().copied()).await;
        Carrying::new(&journal, bench.store.clone()).carry().await.unwrap();
        assert_eq!((carried(&journal), bench.waiting().await), (numbers, 0));
        assert_eq!(journal.stats().unsynced, 0, "a row goes when its record is on disk");
    }

    #[tokio::test]
    async fn a_journal_that_takes_nothing_costs_no_row_and_is_tried_again() {
        let bench = Bench::new().await;
        let closed = bench.journal();
        closed.close();
        bench.add([1, 2]).await;
        let mut carrying = Carrying::new(&closed, bench.store.clone());
        for _ in 0..2 {
            assert!(matches!(carrying.carry().await, Err(CarryError::Journal(_))));
            assert_eq!(bench.waiting().await, 2);
        }
        let (journal, _) = Journal::open(&bench.folder.path().join("another"), Options::default()).unwrap();
        carrying.journal = journal.clone();
        bench.add([3]).await;
        carrying.carry().await.unwrap();
        assert_eq!((carried(&journal), bench.waiting().await), (vec![1, 2, 3], 0));
    }

    #[tokio::test]
    async fn what_was_appended_is_not_appended_again_while_its_rows_cannot_be_deleted() {
        let mut bench = Bench::new().await;
        let journal = bench.journal();
        bench.add([1, 2]).await;
        let mut carrying = Carrying::new(&journal, bench.store.clone());
        let entries = bench.store.outbox(9).await.unwrap();
        carrying.append(entries).await.unwrap();
        bench.store.close().await;
        for _ in 0..2 {
            assert!(matches!(carrying.carry().await, Err(CarryError::Store(_))));
        }
        bench.reopen().await;
        carrying.store = bench.store.clone();
        bench.add([3]).await;
        carrying.carry().await.unwrap();
        assert_eq!((carried(&journal), bench.waiting().await), (vec![1, 2, 3], 0));
    }

    #[tokio::test]
    async fn a_crash_anywhere_loses_nothing_and_repeats_under_the_same_id() {
        for (case, appended) in [("before the append", 0), ("in a batch", 2), ("before the rows are deleted", 3)] {
            let mut bench = Bench::new().await;
            bench.add([1, 2, 3]).await;
            let journal = bench.journal();
            let mut entries = bench.store.outbox(9).await.unwrap();
            entries.truncate(appended);
            Carrying::new(&journal, bench.store.clone()).append(entries).await.unwrap();
            journal.close();
            drop(journal);
            bench.reopen().await;

            let journal = bench.journal();
            Carrying::new(&journal, bench.store.clone()).carry().await.unwrap();
            let expected: Vec<_> = [1, 2, 3].into_iter().take(appended).chain([1, 2, 3]).collect();
            assert_eq!((carried(&journal), bench.waiting().await), (expected, 0), "{case}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_courier_carries_what_was_left_what_comes_and_what_is_there_at_its_end() {
        let bench = Bench::new().await;
        let journal = bench.journal();
        bench.add([1]).await;
        let courier = Courier::start(&journal, bench.store.clone(), Handle::current());
        // It is told of rows, and does not wait for its next round with each: that would take twice as long.
        let patience = 5 * EVERY;
        let all_but_the_last = async {
            for number in 2..=11 {
                bench.add([number]).await;
                while bench.waiting().await > 0 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(patience, all_but_the_last).await.unwrap();
        bench.add([12]).await;
        spawn_blocking(move || courier.drain()).await.unwrap();
        let expected: Vec<u128> = (1..=12).collect();
        assert_eq!((carried(&journal), bench.waiting().await), (expected, 0));
    }
}
