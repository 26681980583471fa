//! What a server does now and then, behind the requests: it folds histograms, deletes what every consumer has passed, and
//! erases content whose time is over.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use llm_proxy_admin::{EraseRequest, Erased};
use llm_proxy_plugins::erasure::{self, Which};
use llm_proxy_plugins::journal::Journal;
use llm_proxy_plugins::sinks::SinksSettings;
use llm_proxy_plugins::sinks::file::FileSinkHandle;
use llm_proxy_store::Store;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::dispatcher;
use crate::plane::{Gateway, settle};
use crate::served::Books;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Between two looks for content whose time is over. A time is a number of days, so that an hour more is nothing.
const RETENTION: Duration = Duration::from_secs(3_600);
const DAY_US: i64 = 86_400_000_000;

/// What has to be passed before a segment of the journal may go.
pub struct Consumers {
    /// The usage counter's saved cursor.
    pub counted: Arc<AtomicU64>,
    /// The sinks that this process serves.
    pub books: Vec<Books>,
    /// Sinks that another process is to serve, with the folder where it leaves their cursors.
    pub elsewhere: Option<(PathBuf, SinksSettings)>,
}

impl Consumers {
    /// The last record that none of them needs any more. `None`: nobody knows, and nothing may be deleted.
    fn passed(&self, journal: &Journal) -> Option<u64> {
        let here = self.books.iter().filter_map(Books::cursor).min().unwrap_or(u64::MAX);
        let elsewhere = match &self.elsewhere {
            None => u64::MAX,
            Some((data_dir, sinks)) => match dispatcher::passed(data_dir, sinks, journal.id()) {
                Ok(passed) => passed,
                Err(error) => {
                    tracing::warn!(%error, "the cursors of sinks could not be read: no journal segment is deleted");
                    return None;
                }
            },
        };
        Some(here.min(elsewhere).min(self.counted.load(Ordering::Acquire)))
    }
}

/// Keeps house until the process ends.
pub async fn keep(gateway: Arc<Gateway>, prometheus: PrometheusHandle, consumers: Consumers) {
    let mut round = interval(ROUND);
    loop {
        round.tick().await;
        settle::record_rest(&gateway);
        prometheus.run_upkeep();
        let Some(passed) = consumers.passed(&gateway.journal) else { continue };
        // A running exchange's begin has to stay: a crash needs it to tell what became unknown.
        let running = gateway.begun.lock().first().map_or(u64::MAX, |first| first.saturating_sub(1));
        let journal = gateway.journal.clone();
        // Waits for the disk.
        if let Ok(Err(error)) = spawn_blocking(move || journal.release(passed.min(running))).await {
            tracing::warn!(%error, "delivered journal segments could not be deleted");
        }
    }
}

/// Erases captured content from everything that this process has on disk.
#[derive(Clone)]
pub struct Eraser {
    /// `DATA_DIR`.
    pub data_dir: PathBuf,
    /// The journal.
    pub journal: Journal,
    /// The file sink's files, where this process writes them.
    pub file: Option<FileSinkHandle>,
    /// Another process writes the file sink's files: only that could leave the one it writes.
    pub has_file_elsewhere: bool,
}

impl Eraser {
    /// Erases what this request asks for. Takes as long as reading all of it does.
    ///
    /// # Errors
    /// Why some of it may still be there, for the log.
    pub async fn erase(self, request: EraseRequest) -> Result<Erased, String> {
        let EraseRequest { project_id, before_us, event_ids } = request;
        let which = Which { project: project_id, before_us, events: event_ids };
        let erased = spawn_blocking(move || self.erase_now(&which)).await;
        erased.map_err(|error| error.to_string())?
    }

    fn erase_now(&self, which: &Which) -> Result<Erased, String> {
        let erased = erasure::erase(&self.data_dir, &self.journal, which, self.file.as_ref());
        let erased = erased.map_err(|error| error.to_string())?;
        if self.has_file_elsewhere {
            return Err(
                "events.jsonl is written by another process (DISPATCHER=outside) and was left as it is: erase \
                        with the file sink in the server"
                    .to_owned(),
            );
        }
        Ok(Erased { records: erased.records, files: erased.files })
    }
}

/// Erases content of projects that keep it for so many days only, every hour.
pub async fn retain(store: Store, eraser: Eraser) {
    let mut round = interval(RETENTION);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        let retentions = match store.retentions().await {
            Ok(retentions) => retentions,
            Err(error) => {
                tracing::warn!(%error, "the store did not say how long content is kept; it is asked again in an hour");
                continue;
            }
        };
        for (project_id, days) in retentions {
            let request = expired(project_id, days, settle::now_us());
            let project = request.project_id.clone().unwrap_or_default();
            match eraser.clone().erase(request).await {
                Ok(Erased { records: 0, .. }) => {}
                Ok(Erased { records, files }) => {
                    tracing::info!(project, days, records, files, "content was erased whose time is over");
                }
                Err(error) => tracing::error!(project, error, "content whose time is over could not all be erased"),
            }
        }
    }
}

fn expired(project_id: String, days: u32, now_us: i64) -> EraseRequest {
    let before_us = now_us.saturating_sub(i64::from(days).saturating_mul(DAY_US));
    EraseRequest { project_id: Some(project_id), before_us: Some(before_us), event_ids: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_expires_after_whole_days() {
        let request = expired("p".to_owned(), 2, 3 * DAY_US);
        assert_eq!((request.before_us, request.project_id.as_deref()), (Some(DAY_US), Some("p")));
        assert!(request.event_ids.is_empty());
        assert_eq!(expired("p".to_owned(), u32::MAX, -1).before_us, Some(i64::MIN), "as early as can be said");
    }
}
