//! `llm-proxy dispatcher`: brings events to sinks in a process apart from the server, so that neither can take memory,
//! processor or its end from the other.
//!
//! It reads the journal that a server beside it writes, or the stream in Redis that the servers of many hosts fill. What
//! it serves, and how, stands in the same settings. A sink is served by one process only: its lock in `DATA_DIR` says
//! by which.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use llm_proxy_plugins::dispatcher::Stats;
use llm_proxy_plugins::journal::{Feed, Follower, JournalError};
use llm_proxy_plugins::redis_source::RedisSourceSettings;
use llm_proxy_plugins::sinks::SinksSettings;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::logging;
use crate::served::{Books, REDIS, Served, sink_tls};
use crate::settings::Settings;

/// Between two looks for a journal that is not there yet.
const WAIT: Duration = Duration::from_millis(500);
/// Between two looks whether the journal is still the one that is read.
const LOOK: Duration = Duration::from_secs(5);

/// Where events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The journal in `DATA_DIR`.
    Journal,
    /// A stream in Redis.
    Redis {
        /// Its name; `None`: the sink's default.
        stream: Option<String>,
        /// What we are called among its readers; `None`: the name of the machine.
        consumer: Option<String>,
    },
}

/// Serves the sinks until a signal ends the process.
///
/// # Errors
/// Whatever keeps it from starting, in one line that says what to do.
pub fn run(settings: Settings, warnings: &[String], source: Source) -> Result<()> {
    logging::install(settings.log_level, settings.log_format);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // rustls wants one provider for the process; the tree has only ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control runtime cannot be started")?;
    let served = runtime.block_on(async {
        let mut order = Order::watched()?;
        let served = loop {
            let Some((served, follower)) = start(&settings, &source, &mut order).await? else { return Ok(None) };
            let books = served.books();
            let names: Vec<_> = books.iter().map(Books::name).collect();
            tracing::info!(sinks = names.join(", "), "delivering");
            tokio::select! {
                () = order.given() => break served,
                error = replaced(follower.as_ref()) => tracing::warn!(%error, "beginning again, with that one"),
            }
        };
        tokio::spawn(async move {
            order.given().await;
            tracing::warn!("stopped at once by a second signal");
            std::process::exit(1);
        });
        anyhow::Ok(Some(served))
    })?;
    if let Some(served) = served {
        drain(served, settings.drain_timeout);
    }
    tracing::info!("stopped");
    Ok(())
}

/// The last record of the journal that no sink of the settings needs any more: what a server that starts none of them
/// may delete. `journal` is the journal's id. Reads the saved cursors, a small file for each sink.
///
/// # Errors
/// When one of them cannot be read: nothing may be deleted then.
pub fn passed(data_dir: &Path, sinks: &SinksSettings, journal: &str) -> std::io::Result<u64> {
    crate::events::sinks::passed(data_dir, sinks, journal)
}

/// The order to stop: SIGTERM or SIGINT.
struct Order {
    terminate: Signal,
    interrupt: Signal,
}

impl Order {
    fn watched() -> Result<Self> {
        let watch = |kind| signal(kind).context("signals cannot be watched");
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    async fn given(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What is served, and the journal that it is read from, if it is one. `None` where the order to stop came before there
/// was anything to serve.
async fn start(settings: &Settings, source: &Source, order: &mut Order) -> Result<Option<(Served, Option<Follower>)>> {
    match source {
        Source::Journal => {
            has_work(settings.sinks.file.is_some() || !settings.sinks.dispatched.is_empty())?;
            let tls = sink_tls()?;
            let Some(follower) = journal(&settings.data_dir, order).await? else { return Ok(None) };
            let feed = Feed::from(&follower);
            let served = Served::from_journal(&settings.sinks, &settings.data_dir, feed, &tls)?;
            Ok(Some((served, Some(follower))))
        }
        Source::Redis { stream, consumer } => {
            let Some(url) = settings.redis_url.clone() else {
                bail!("REDIS_URL: found nothing, expected the URL of the Redis that events are read from");
            };
            has_work(settings.sinks.dispatched.iter().any(|sink| sink.kind != REDIS))?;
            let tls = sink_tls()?;
            let consumer = consumer.clone().unwrap_or_else(host_name);
            let mut redis = RedisSourceSettings::new(url, Arc::clone(&tls), consumer);
            redis.stream = stream.clone().unwrap_or(redis.stream);
            let served = Served::from_redis(&settings.sinks, &settings.data_dir, &redis, &tls)?;
            Ok(Some((served, None)))
        }
    }
}

fn has_work(has_work: bool) -> Result<()> {
    if has_work { Ok(()) } else { bail!("sinks: found none that could be served, expected some in the settings file") }
}

/// The journal in `DATA_DIR`, once there is one: both processes may be started at once.
async fn journal(data_dir: &Path, order: &mut Order) -> Result<Option<Follower>> {
    let dir = data_dir.join("journal");
    let mut is_told = false;
    loop {
        match Follower::open(&dir) {
            Ok(follower) => return Ok(Some(follower)),
            Err(JournalError::NotThere { .. }) => {
                if !is_told {
                    tracing::warn!("there is no journal in {} yet: waiting for the server to make it", dir.display());
                    is_told = true;
                }
            }
            Err(error) => return Err(error).context("DATA_DIR"),
        }
        tokio::select! {
            () = tokio::time::sleep(WAIT) => {}
            () = order.given() => return Ok(None),
        }
    }
}

/// Waits until another journal lies where this one was: its numbers mean something else, and cursors have to be found
/// anew.
async fn replaced(follower: Option<&Follower>) -> JournalError {
    let Some(follower) = follower else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error @ JournalError::Replaced { .. }) = follower.reader(follower.position()).next() {
            return error;
        }
    }
}

/// The machine's name, as it has it itself.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "llm-proxy".to_owned() } else { name.trim().to_owned() }
}

/// Delivers what is there for at most `patience`, and ends with the books.
fn drain(served: Served, patience: Duration) {
    tracing::info!(patience_s = patience.as_secs(), "stopping: delivering what is there");
    let books = served.books();
    let left = served.drain(patience);
    for books in books {
        let Stats { delivered, duplicates, dead, left_out, unreadable, dropped, .. } = books.stats();
        let remaining = left.iter().find(|left| left.sink == books.name()).map_or(0, |left| left.records);
        tracing::info!(
            sink = books.name(),
            delivered,
            duplicates,
            dead,
            left_out,
            unreadable,
            dropped,
            remaining,
            "its books since the start"
        );
    }
}

#[cfg(test)]
mod tests {
    use llm_proxy_plugins::journal::{Journal, Options};

    use super::*;

    #[tokio::test]
    async fn a_journal_that_is_not_there_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut order = Order::watched().unwrap();
        let opens = async { Journal::open(&dir.path().join("journal"), Options::default()).unwrap().0 };
        let (found, made) = tokio::join!(journal(dir.path(), &mut order), opens);
        assert_eq!(found.unwrap().unwrap().id(), made.id());
    }

    #[tokio::test(start_paused = true)]
    async fn a_journal_in_the_place_of_another_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let journal_dir = dir.path().join("journal");
        let (journal, _) = Journal::open(&journal_dir, Options::default()).unwrap();
        let follower = Follower::open(&journal_dir).unwrap();
        let notices = async |within| tokio::time::timeout(within, replaced(Some(&follower))).await.ok();
        assert!(notices(LOOK * 3).await.is_none());
        drop(journal);
        std::fs::remove_dir_all(&journal_dir).unwrap();
        let _other = Journal::open(&journal_dir, Options::default()).unwrap();
        assert!(matches!(notices(LOOK * 3).await, Some(JournalError::Replaced { .. })));
    }

    #[test]
    fn without_a_sink_there_is_nothing_to_start() {
        assert!(has_work(false).unwrap_err().to_string().starts_with("sinks: found none"));
        assert!(has_work(true).is_ok());
        assert!(!host_name().is_empty());
    }
}
