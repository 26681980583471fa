//! What follows along: the change feed into the token cache, and the journal into request counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use llm_proxy_plugins::event::BeginKey;
use llm_proxy_plugins::journal::{Journal, Kind, Reader};
use llm_proxy_store::{Change, Count, Store};
use tokio::runtime::Handle;
use tokio::sync::broadcast::Receiver as Changes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{oneshot, watch};

use crate::plane::Gateway;

/// Applies every change of the store to the tokens in memory, until the store is gone. `applied` tells up to which.
pub async fn follow_changes(gateway: Arc<Gateway>, mut changes: Changes<Change>, applied: watch::Sender<u64>) {
    loop {
        match changes.recv().await {
            Ok(change) => {
                gateway.tokens.apply(&change).await;
                applied.send_replace(change.seq);
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "changes came faster than they could be followed: everything is read again");
                gateway.tokens.apply_all().await;
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Waits until the changes that the store has now are applied.
pub async fn until_applied(store: &Store, mut applied: watch::Receiver<u64>) {
    if let Ok(position) = store.change_position().await {
        let _ = applied.wait_for(|applied| *applied >= position).await;
    }
}

/// How often counts go to the store without being asked for.
const EVERY: Duration = Duration::from_millis(250);
/// The most records counted before their counts are stored.
const MOST_AT_ONCE: usize = 10_000;

/// Counts requests from the journal's `begin` records, each of which is one first byte sent to a provider. Counts and
/// cursor move in one transaction of the store, so that a crash counts nothing twice and misses nothing.
pub struct RequestCounter {
    asks: SyncSender<oneshot::Sender<()>>,
    cursor: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl RequestCounter {
    /// Starts counting where the store's cursor for this journal stands.
    ///
    /// # Errors
    /// When the store does not tell the cursor, or no thread can be had.
    pub fn start(journal: &Journal, store: Store, control: Handle) -> anyhow::Result<Self> {
        let journal_id = journal.id().to_owned();
        let from = control.block_on(store.counted_up_to(&journal_id))?;
        let (asks, asked) = sync_channel(64);
        let cursor = Arc::new(AtomicU64::new(from));
        let counting = Counting {
            reader: journal.reader(from),
            counts: HashMap::new(),
            cursor: Arc::clone(&cursor),
            journal_id,
            store,
            control,
        };
        let thread = std::thread::Builder::new().name("request-counter".into()).spawn(move || counting.run(&asked))?;
        Ok(Self { asks, cursor, thread })
    }

    /// The last record that is counted in the store.
    pub fn cursor(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.cursor)
    }

    /// A way to ask for counts that are current.
    pub fn asker(&self) -> Asker {
        Asker(self.asks.clone())
    }

    /// Stores what is left and stops. Blocks.
    pub fn stop(self) {
        let Self { asks, thread, .. } = self;
        drop(asks);
        let _ = thread.join();
    }
}

/// Asks the counter to catch up.
#[derive(Clone)]
pub struct Asker(SyncSender<oneshot::Sender<()>>);

impl Asker {
    /// Returns when everything in the journal at the time of the call is counted in the store, or cannot be.
    pub async fn catch_up(&self) {
        let (done, counted) = oneshot::channel();
        if self.0.try_send(done).is_ok() {
            let _ = counted.await;
        }
    }
}

/// Counts one request. The token is nearly always one that has been seen.
fn count(counts: &mut HashMap<String, (u64, i64)>, begin: &BeginKey<'_>) {
    match counts.get_mut(begin.token_id) {
        Some((count, last)) => {
            *count = count.saturating_add(1);
            *last = (*last).max(begin.received_us);
        }
        None => {
            counts.insert(begin.token_id.to_owned(), (1, begin.received_us));
        }
    }
}

struct Counting {
    reader: Reader,
    /// Requests and the last of them, by token.
    counts: HashMap<String, (u64, i64)>,
    cursor: Arc<AtomicU64>,
    journal_id: String,
    store: Store,
    control: Handle,
}

impl Counting {
    fn run(mut self, asked: &Receiver<oneshot::Sender<()>>) {
        loop {
            let ask = asked.recv_timeout(EVERY);
            self.catch_up();
            match ask {
                Ok(done) => drop(done.send(())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn catch_up(&mut self) {
        loop {
            let mut read = 0usize;
            while read < MOST_AT_ONCE {
                match self.reader.next_ref() {
                    Ok(Some(record)) => {
                        read = read.saturating_add(1);
                        if record.kind == Kind::Begin
                            && let Some(begin) = BeginKey::read(record.payload)
                        {
                            count(&mut self.counts, &begin);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the journal cannot be read to count requests");
                        break;
                    }
                }
            }
            if !self.store_counts() || read < MOST_AT_ONCE {
                return;
            }
        }
    }

    /// Stores what was counted; what could not be stored is kept for the next time.
    fn store_counts(&mut self) -> bool {
        let up_to = self.reader.last_seq();
        if self.counts.is_empty() {
            // Nothing to store: the place alone is worth no transaction, but these records need not be kept for us.
            self.cursor.fetch_max(up_to, Ordering::AcqRel);
            return true;
        }
        let counts: Vec<Count> = self
            .counts
            .iter()
            .map(|(token_id, (requests, last_used_at_us))| Count {
                token_id: token_id.clone(),
                requests: *requests,
                last_used_at_us: *last_used_at_us,
            })
            .collect();
        match self.control.block_on(self.store.add_counts(&self.journal_id, up_to, &counts)) {
            Ok(()) => {
                self.counts.clear();
                self.cursor.fetch_max(up_to, Ordering::AcqRel);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "request counts could not be stored; they will be");
                false
            }
        }
    }
}
