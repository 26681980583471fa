//! The sinks that a process serves, wherever their events come from: started together, told of together, ended
//! together. The server has them beside everything else, `llm-proxy dispatcher` has nothing but them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use llm_proxy_plugins::dispatcher::{self, Dispatcher, Health, Stats};
use llm_proxy_plugins::journal::Feed;
use llm_proxy_plugins::redis_source::{RedisBooks, RedisDispatcher, RedisSourceSettings};
use llm_proxy_plugins::sinks::SinksSettings;
use llm_proxy_plugins::sinks::file::{self, FileSink, FileSinkHandle};
use pingora_core::tls::{RootCertStore, load_platform_certs_incl_env_into_store};
use rustls::ClientConfig;

use crate::plane::settle::now_us;

/// The file sink's name, where others have that of their settings.
const FILE: &str = "file";
/// The type of the sink that fills a stream: from the stream, it would be given its own entries.
pub const REDIS: &str = "redis";

/// Sinks being served.
pub struct Served {
    fed: Fed,
    file: Option<FileSink>,
}

/// What feeds those that the dispatcher serves.
enum Fed {
    Journal(Dispatcher),
    Redis(RedisDispatcher),
}

/// What a sink left behind when it ended.
pub struct Left {
    /// Its name.
    pub sink: String,
    /// Records that it has not come to. The next start goes on with them.
    pub records: u64,
}

/// Which certificate authorities sinks are checked against: the system's, or those that `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name.
///
/// # Errors
/// When they cannot be read.
pub fn sink_tls() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    load_platform_certs_incl_env_into_store(&mut roots).map_err(|error| {
        anyhow::anyhow!(
            "the certificate authorities that sinks are checked against cannot be read: {error}; SSL_CERT_FILE and \
             SSL_CERT_DIR name them, without these it is the system's store"
        )
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(Arc::new(builder.context("TLS towards sinks")?.with_root_certificates(roots).with_no_client_auth()))
}

impl Served {
    /// Serves every sink of the settings from a journal.
    ///
    /// # Errors
    /// When another process serves one of them, or a file of theirs cannot be used.
    pub fn from_journal(sinks: &SinksSettings, data_dir: &Path, feed: Feed, tls: &Arc<ClientConfig>) -> Result<Self> {
        let jobs = sinks.dispatched.iter().map(|sink| sink.job(tls)).collect();
        let dispatcher = Dispatcher::start(jobs, data_dir, feed.clone()).context("DATA_DIR")?;
        let start = |settings| FileSink::start(settings, data_dir, feed).context("DATA_DIR");
        let file = sinks.file.as_ref().map(start).transpose()?;
        Ok(Self { fed: Fed::Journal(dispatcher), file })
    }

    /// Serves the sinks of the settings from a stream in Redis: all but those that are for the journal's own host.
    ///
    /// # Errors
    /// When another process serves one of them from this `data_dir`, or a file of theirs cannot be used.
    pub fn from_redis(
        sinks: &SinksSettings,
        data_dir: &Path,
        redis: &RedisSourceSettings,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self> {
        let (others, not_served): (Vec<_>, Vec<_>) = sinks.dispatched.iter().partition(|sink| sink.kind != REDIS);
        let file = sinks.file.as_ref().map(|_| FILE);
        let not_served: Vec<_> = not_served.into_iter().map(|sink| sink.name.as_str()).chain(file).collect();
        if !not_served.is_empty() {
            tracing::info!(sinks = not_served.join(", "), "these are served from the journal only, beside the server");
        }
        let jobs = others.into_iter().map(|sink| sink.job(tls)).collect();
        let dispatcher = RedisDispatcher::start(jobs, redis, data_dir).context("DATA_DIR")?;
        Ok(Self { fed: Fed::Redis(dispatcher), file: None })
    }

    /// The books of all sinks, which outlive borrows of this.
    pub fn books(&self) -> Vec<Books> {
        let dispatched: Vec<_> = match &self.fed {
            Fed::Journal(dispatcher) => dispatcher.books().into_iter().map(Books::Journal).collect(),
            Fed::Redis(dispatcher) => dispatcher.books().into_iter().map(Books::Redis).collect(),
        };
        dispatched.into_iter().chain(self.file.as_ref().map(|file| Books::File(file.books()))).collect()
    }

    /// The files of the file sink, if there is one.
    pub fn file(&self) -> Option<FileSinkHandle> {
        self.file.as_ref().map(FileSink::handle)
    }

    /// Delivers what is there, and ends. Blocks, for about `patience` at most, which loses nothing: the next start goes
    /// on.
    pub fn drain(self, patience: Duration) -> Vec<Left> {
        // Side by side: one that is slow must not take the others' time.
        std::thread::scope(|scope| {
            let file = self.file.map(|file| scope.spawn(move || file.drain(patience).remaining));
            let drained = match self.fed {
                Fed::Journal(dispatcher) => dispatcher.drain(patience),
                Fed::Redis(dispatcher) => dispatcher.drain(patience),
            };
            let file = file.and_then(|file| file.join().ok());
            let dispatched = drained.into_iter().map(|drained| Left { sink: drained.sink, records: drained.remaining });
            dispatched.chain(file.map(|records| Left { sink: FILE.to_owned(), records })).collect()
        })
    }
}

/// The books of one sink.
#[derive(Clone)]
pub enum Books {
    /// Of one that the dispatcher serves from a journal.
    Journal(dispatcher::Books),
    /// Of one that is served from Redis.
    Redis(RedisBooks),
    /// Of the file.
    File(file::Books),
}

impl Books {
    /// The sink's name in the settings.
    pub fn name(&self) -> &str {
        match self {
            Self::Journal(books) => books.name(),
            Self::Redis(books) => books.name(),
            Self::File(_) => FILE,
        }
    }

    /// The last record of the journal that the sink needs no more. `None`: it reads from no journal.
    pub fn cursor(&self) -> Option<u64> {
        match self {
            Self::Journal(books) => Some(books.cursor()),
            Self::Redis(_) => None,
            Self::File(books) => Some(books.cursor()),
        }
    }

    /// Its figures. The file's are fewer: nobody refuses anything, and it waits for nothing but the disk.
    pub fn stats(&self) -> Stats {
        match self {
            Self::Journal(books) => books.stats(now_us()),
            Self::Redis(books) => books.stats(now_us()),
            Self::File(books) => {
                let file = books.stats();
                Stats {
                    delivered: file.delivered,
                    unreadable: file.unreadable,
                    lag_records: file.pending,
                    lag: file.lag,
                    own_errors: file.errors,
                    health: match (file.has_ended, file.is_failing) {
                        (true, _) => Health::Stopped,
                        (false, true) => Health::Retrying,
                        (false, false) => Health::Delivering,
                    },
                    ..Stats::default()
                }
            }
        }
    }

    /// Why it does not fare well.
    pub fn last_error(&self) -> Option<String> {
        match self {
            Self::Journal(books) => books.last_error(),
            Self::Redis(books) => books.last_error(),
            Self::File(books) => books.last_error(),
        }
    }
}
