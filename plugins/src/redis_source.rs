//! Sinks fed from Redis: the dispatcher of a host that has no journal of its own to read.
//!
//! Proxies on any number of hosts put their events into a stream (the sink `redis`); dispatchers on any number of hosts
//! read it and feed the same sinks, with the same policies, as one that reads a journal. Each sink has a consumer group
//! of its own, so that one that is slow holds back no other, and dispatchers that serve the same sink share its events.
//! An entry is acknowledged after its delivery and after nothing else, so delivery is at least once, with equal ids.
//! What is special about Redis stands in `redis_source/inbox.rs`, what all dispatchers have in common in
//! [`dispatcher`](crate::dispatcher).
//!
//! Needs Redis 6.2, or what speaks as it does: `XAUTOCLAIM` and `XTRIM MINID` are from there.

mod books;
mod feed;
mod inbox;
mod stream;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::watch;

pub use crate::sinks::redis::{DEFAULT_STREAM, InvalidRedisUrl, RedisUrl};
pub use books::RedisBooks;

use crate::dispatcher::{ConsumerLock, DispatcherError, Drained, FOLDER, Job, Stop};
use books::Pages;
use feed::Feed;
use inbox::Inbox;
use stream::Consumer;

/// What the names of groups begin with where nobody says otherwise; the sink's name follows.
pub const DEFAULT_GROUP_PREFIX: &str = "llm-proxy:";
/// How long an entry may lie with a consumer where nobody says otherwise.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(60);

/// Where events are read from, and as whom.
#[derive(Clone, Debug)]
pub struct RedisSourceSettings {
    /// Where Redis is.
    pub url: RedisUrl,
    /// Which certificate authorities are believed, for `rediss` URLs.
    pub tls: Arc<ClientConfig>,
    /// The stream.
    pub stream: String,
    /// What the names of groups begin with; the sink's name follows.
    pub group_prefix: String,
    /// Our name in each group. One for each running dispatcher; best the same again after a restart, so that what it
    /// was given goes on at once: a host name, not a process id.
    pub consumer: String,
    /// After how long an entry that some consumer does nothing about is taken over by another; above zero. A consumer
    /// that lives says so three times in this time, however long its sink takes.
    pub idle: Duration,
}

impl RedisSourceSettings {
    /// The defaults for everything else.
    pub fn new(url: RedisUrl, tls: Arc<ClientConfig>, consumer: impl Into<String>) -> Self {
        Self {
            url,
            tls,
            stream: DEFAULT_STREAM.to_owned(),
            group_prefix: DEFAULT_GROUP_PREFIX.to_owned(),
            consumer: consumer.into(),
            idle: DEFAULT_IDLE,
        }
    }
}

/// Sinks being fed from Redis. Dropping it stops them in the middle of the call they are at; [`RedisDispatcher::drain`]
/// lets them finish.
pub struct RedisDispatcher {
    running: Vec<Running>,
}

struct Running {
    books: RedisBooks,
    stop: watch::Sender<Option<Instant>>,
    thread: Option<JoinHandle<()>>,
}

impl RedisDispatcher {
    /// Starts to feed all of these, with their locks and dead letters in the folder [`FOLDER`] of `data_dir`, which is
    /// made. Redis need not be there yet. None of the jobs may be a sink of the type `redis` to the same stream: it
    /// would be given its own entries.
    ///
    /// # Errors
    /// [`DispatcherError`]: none of them is served then. A sink that another process serves with this `data_dir`, from
    /// a journal or from Redis, is one reason.
    pub fn start(jobs: Vec<Job>, settings: &RedisSourceSettings, data_dir: &Path) -> Result<Self, DispatcherError> {
        let dir = data_dir.join(FOLDER);
        let mut dispatcher = Self { running: Vec::with_capacity(jobs.len()) };
        if jobs.is_empty() {
            return Ok(dispatcher);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(DispatcherError::at("create", &dir))?;
        for job in jobs {
            dispatcher.running.push(Running::start(job, settings, &dir)?);
        }
        Ok(dispatcher)
    }

    /// The books of all sinks, for metrics and health.
    pub fn books(&self) -> Vec<RedisBooks> {
        self.running.iter().map(|running| running.books.clone()).collect()
    }

    /// Delivers what was read already, acknowledges it, and ends. Blocks; gives up after `patience`, which loses
    /// nothing: Redis gives it again, to this consumer after its next start or to another one before.
    pub fn drain(mut self, patience: Duration) -> Vec<Drained> {
        self.stop(patience);
        let drained = |books: &RedisBooks| Drained { sink: books.name().to_owned(), remaining: books.unacknowledged() };
        self.running.iter().map(|running| drained(&running.books)).collect()
    }

    fn stop(&mut self, patience: Duration) {
        let now = Instant::now();
        let deadline = now.checked_add(patience).unwrap_or(now);
        for running in &self.running {
            running.stop.send_replace(Some(deadline));
        }
        for running in &mut self.running {
            if let Some(thread) = running.thread.take()
                && thread.join().is_err()
            {
                tracing::error!(sink = running.books.name(), "The loop of a sink has panicked; its events wait");
            }
        }
    }
}

impl Drop for RedisDispatcher {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Running {
    fn start(job: Job, settings: &RedisSourceSettings, dir: &Path) -> Result<Self, DispatcherError> {
        let name = job.name.clone();
        let pages = Arc::new(Pages::default());
        let books = RedisBooks::new(&name, Arc::clone(&pages));
        let lock = ConsumerLock::take(dir, &name)?;
        let consumer = Consumer {
            stream: settings.stream.clone(),
            group: format!("{}{name}", settings.group_prefix),
            name: settings.consumer.clone(),
        };
        let (url, tls) = (settings.url.clone(), Arc::clone(&settings.tls));
        let inbox = Inbox::new(url, tls, consumer, job.policy.limits, settings.idle);
        let feed = Feed::new(job, inbox, dir.join(format!("{name}.dead.jsonl")), lock, Arc::clone(&pages));
        let (stop, stopped) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DispatcherError::at("serve", dir))?;
        let spawned = thread::Builder::new().name(format!("sink-{name}")).spawn(move || {
            let _ending = Ending(pages);
            runtime.block_on(feed.run(Stop(stopped)));
            // A name that is still being looked up must not hold up the end.
            runtime.shutdown_background();
        });
        Ok(Self { books, stop, thread: Some(spawned.map_err(DispatcherError::at("serve", dir))?) })
    }
}

/// Notes the end of a loop, also by a panic.
struct Ending(Arc<Pages>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.has_stopped.store(true, Ordering::Release);
    }
}
