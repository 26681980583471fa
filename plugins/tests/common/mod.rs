//! What the tests of sinks share: a journal with events in it, a dispatcher over it, and receivers to deliver to.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "each test uses its own part, and may be blunt"
)]

pub mod helicone;
pub mod lunary;
pub mod otlp;
pub mod stand_in;
pub mod webhook;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use llm_proxy_core::secret::Secret;
use llm_proxy_plugins::dispatcher::{Dispatcher, FOLDER, Job, Stats};
use llm_proxy_plugins::event::{Exchange, Outcome, Times, Usage};
use llm_proxy_plugins::journal::{Journal, Kind, Options};
use llm_proxy_plugins::sinks;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A data directory with a journal in it.
pub struct Bench {
    pub dir: TempDir,
    pub journal: Journal,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
        Self { dir, journal }
    }

    /// Appends finished exchanges and returns their ids in order.
    pub fn append(&self, events: usize) -> Vec<Uuid> {
        (0..events).map(|_| self.append_one(&finished())).collect()
    }

    /// Appends one exchange under an id of its own.
    pub fn append_one(&self, exchange: &Exchange) -> Uuid {
        let id = Uuid::now_v7();
        let now_us = now_us();
        let exchange = Exchange { id: id.to_string(), ..exchange.clone() };
        self.journal.append(Kind::Begin, id, now_us, b"").unwrap();
        self.journal.append_message(Kind::End, id, now_us, &exchange).unwrap();
        id
    }

    pub fn serve(&self, jobs: Vec<Job>) -> Dispatcher {
        Dispatcher::start(jobs, self.dir.path(), &self.journal).unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(FOLDER).join(name)
    }

    /// The letters in a sink's dead-letter file. What the books count as dead is there.
    pub fn dead(&self, sink: &str) -> Vec<Value> {
        let path = self.file(&format!("{sink}.dead.jsonl"));
        match fs::read_to_string(&path) {
            Ok(text) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

pub fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// An exchange as most are.
pub fn finished() -> Exchange {
    let some = |text: &str| Some(text.to_owned());
    Exchange {
        schema: 1,
        project_id: some("p1"),
        token_id: some("t1"),
        api: some("openai"),
        dialect: some("openai"),
        endpoint: some("/v1/chat/completions"),
        method: some("POST"),
        model_requested: some("gpt-4o-mini"),
        model: some("gpt-4o-mini-2024-07-18"),
        stream: Some(true),
        status: Some(200),
        outcome: Outcome::Finished.into(),
        usage: Some(Usage { input_tokens: Some(9), output_tokens: Some(2), ..Usage::default() }),
        times: Some(Times {
            received_us: Some(now_us() - 2_000_000),
            forwarded_us: Some(1_000),
            first_byte_us: Some(250_000),
            first_chunk_us: Some(310_000),
            last_byte_us: Some(1_420_000),
        }),
        count: 1,
        ..Exchange::default()
    }
}

/// What the only sink of a dispatcher has in its books.
pub fn stats(dispatcher: &Dispatcher) -> Stats {
    dispatcher.books()[0].stats(now_us())
}

/// Waits until the books of the only sink say so.
pub fn wait_for(dispatcher: &Dispatcher, holds: impl Fn(&Stats) -> bool) -> Stats {
    wait_until(|| Some(stats(dispatcher)).filter(&holds))
}

/// Waits until there is something.
pub fn wait_until<T>(look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "this did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits and retries of tests are short; the rest is as given.
pub fn brisk(mut settings: Value) -> Value {
    let entries = settings.as_object_mut().unwrap();
    entries.insert("retry".to_owned(), json!({"first": "10ms", "longest": "50ms"}));
    entries.entry("batch").or_insert_with(|| json!({"events": "20", "age": "10ms"}));
    settings
}

/// A job of this type, read from settings as they stand in a configuration.
pub fn job(kind: &str, settings: Value) -> Job {
    job_with(kind, settings, &no_authorities())
}

pub fn job_with(kind: &str, settings: Value, tls: &Arc<ClientConfig>) -> Job {
    let environment = |_: &str| None::<Secret>;
    let read = sinks::read(&json!({ kind: settings }), &environment).unwrap_or_else(|problem| panic!("{problem}"));
    read.dispatched[0].job(tls)
}

/// TLS that believes nobody, for receivers that are spoken to in the clear.
pub fn no_authorities() -> Arc<ClientConfig> {
    Arc::new(client_tls(RootCertStore::empty()))
}

pub fn client_tls(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_root_certificates(roots).with_no_client_auth()
}

pub fn texts(ids: &[Uuid]) -> BTreeSet<String> {
    ids.iter().map(Uuid::to_string).collect()
}

pub fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
