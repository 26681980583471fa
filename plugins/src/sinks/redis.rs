//! The Redis sink: each event as an entry of a stream, for dispatchers on other hosts and for whoever else reads there.
//!
//! `XADD stream * id … seq … time_us … payload …`, all of a batch under way at once over one connection, each answer
//! read for itself. The payload is the message as the journal has it; `id` is equal over every delivery. An answer that
//! gets lost makes the event come a second time, with the same id: readers tell by it. A longer explanation of what is
//! given up and what waits stands in `redis/fault.rs`.
//!
//! Nothing is trimmed here: what no reader has taken yet is not known at this end. Readers trim (`redis_source`). When
//! Redis has no room left it says so, and events wait in the journal.

mod fault;
mod link;
mod url;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use redis::Cmd;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

pub(crate) use fault::RedisFault;
pub(crate) use link::{Link, text, within};
pub use url::{InvalidRedisUrl, RedisUrl};

use super::settings::{Environment, Problem, parsed, secret};
use super::values::{Span, Text, Variable, Word};
use super::{Kind, Target};
use crate::dispatcher::{Backoff, Event, Limits, Outcome, Policy, Sink};

/// Where entries go, and are read from, where nobody says otherwise.
pub const DEFAULT_STREAM: &str = "llm-proxy:events";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The names of an entry's fields.
pub(crate) mod fields {
    /// The event's id as text.
    pub const ID: &str = "id";
    /// Its number in the journal that it comes from, which is another one on every host.
    pub const SEQ: &str = "seq";
    /// When it was written there, in microseconds since the Unix epoch.
    pub const TIME_US: &str = "time_us";
    /// The message, as protobuf.
    pub const PAYLOAD: &str = "payload";
}

/// What the list of sinks says of this one.
pub(super) const KIND: Kind = Kind { name: "redis", policy, read };

fn policy() -> Policy {
    Policy {
        // Others wait behind it, and a round trip is short.
        limits: Limits { events: 500, bytes: 1 << 20, age: Duration::from_millis(50) },
        backoff: Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) },
        ..Policy::default()
    }
}

/// Where the bus is, for everything that uses it, unless a sink says otherwise.
const REDIS_URL: &str = "REDIS_URL";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedisFile {
    url: Option<Text<RedisUrl>>,
    url_env: Option<Text<Variable>>,
    stream: Option<Text<Word>>,
    timeout: Option<Text<Span>>,
}

#[derive(Clone, Debug)]
struct RedisSettings {
    url: RedisUrl,
    stream: String,
    timeout: Duration,
}

fn read(tree: Value, environment: &Environment<'_>) -> Result<Arc<dyn Target>, Problem> {
    let mut file: RedisFile = parsed(tree)?;
    if file.url.is_none() && file.url_env.is_none() && environment(REDIS_URL).is_some() {
        file.url_env = Some(Text(Variable(REDIS_URL.to_owned())));
    }
    Ok(Arc::new(RedisSettings {
        url: secret(file.url, file.url_env, "url", environment)?,
        stream: file.stream.map_or_else(|| DEFAULT_STREAM.to_owned(), |stream| stream.0.0),
        timeout: file.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0.0),
    }))
}

impl Target for RedisSettings {
    fn sink(&self, tls: &Arc<ClientConfig>) -> Box<dyn Sink> {
        Box::new(Redis { settings: self.clone(), tls: Arc::clone(tls), link: Mutex::default() })
    }
}

struct Redis {
    settings: RedisSettings,
    tls: Arc<ClientConfig>,
    /// Between two calls.
    link: Mutex<Option<Link>>,
}

impl Sink for Redis {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        self.add(batch).boxed()
    }
}

impl Redis {
    async fn add(&self, batch: &[&Event]) -> Vec<Outcome> {
        let limit = self.settings.timeout;
        let now = Instant::now();
        let until = now.checked_add(limit).unwrap_or(now);
        let kept = self.link.lock().take();
        let link = match kept {
            Some(link) => link,
            None => match within(limit, Link::open(&self.settings.url, &self.settings.stream, &self.tls)).await {
                Ok(link) => link,
                Err(fault) => return vec![fault.outcome(false); batch.len()],
            },
        };
        let mut answers = FuturesOrdered::new();
        for event in batch {
            answers.push_back(answer(&link, entry(&self.settings.stream, event)));
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        let broke = loop {
            match timeout_at(until, answers.next()).await {
                Ok(None) => break None,
                Ok(Some(Ok(_))) => outcomes.push(Outcome::Delivered),
                Ok(Some(Err(fault))) if fault.is_answer() => outcomes.push(fault.outcome(false)),
                Ok(Some(Err(fault))) => break Some(fault),
                Err(_) => break Some(RedisFault::Timeout { limit }),
            }
        };
        drop(answers);
        if let Some(fault) = broke {
            // A server that says why before it breaks has named the event already.
            let has_named = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Poison { .. }));
            let first = outcomes.len();
            outcomes.extend((first..batch.len()).map(|place| fault.outcome(place == first && !has_named)));
        } else if outcomes.iter().all(|outcome| matches!(outcome, Outcome::Delivered)) {
            // After anything else it may be another server's turn.
            *self.link.lock() = Some(link);
        }
        outcomes
    }
}

async fn answer(link: &Link, command: Cmd) -> Result<(), RedisFault> {
    link.ask(&command).await.map(|_| ())
}

fn entry(stream: &str, event: &Event) -> Cmd {
    let mut command = redis::cmd("XADD");
    command
        .arg(stream)
        .arg("*")
        .arg(fields::ID)
        .arg(event.id.to_string())
        .arg(fields::SEQ)
        .arg(event.seq)
        .arg(fields::TIME_US)
        .arg(event.time_us)
        .arg(fields::PAYLOAD)
        .arg(&*event.payload);
    command
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::secret::Secret;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::event::Exchange;

    #[test]
    fn an_entry_has_the_id_where_it_comes_from_and_the_message_as_it_is() {
        let (id, payload) = (Uuid::from_u128(7), Box::from(&b"\x0a\x00\r\n"[..]));
        let event = Event { seq: 12, id, time_us: -3, exchange: Exchange::default(), payload };
        let expected = "*11\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$2\r\nid\r\n$36\r\n\
            00000000-0000-0000-0000-000000000007\r\n$3\r\nseq\r\n$2\r\n12\r\n$7\r\ntime_us\r\n$2\r\n-3\r\n\
            $7\r\npayload\r\n$4\r\n\x0a\x00\r\n\r\n";
        assert_eq!(String::from_utf8(entry("s", &event).get_packed_command()).unwrap(), expected);
    }

    #[test]
    fn settings_need_a_url_and_no_message_shows_it() {
        let environment = |name: &str| match name {
            "BUS" => Some(Secret::new("redis://:hunter2@bus.example")),
            "BAD" => Some(Secret::new("hunter2")),
            _ => None,
        };
        let read = |tree: Value| read(tree, &environment).map_err(|problem| problem.to_string());
        for tree in [
            json!({"url": "redis://:hunter2@a"}),
            json!({"url_env": "BUS", "stream": "s", "timeout": "2s"}),
            json!({"url": "rediss+sentinel://a,b/m"}),
        ] {
            let shown = format!("{:?}", read(tree.clone()).unwrap());
            assert!(!shown.contains("hunter2"), "{tree}: {shown}");
        }
        let with_bus = |name: &str| (name == REDIS_URL).then(|| Secret::new("redis://:hunter2@bus.example"));
        assert!(super::read(json!({}), &with_bus).is_ok());
        for (tree, expected) in [
            (json!({}), "url: found nothing, expected a URL such as redis://"),
            (json!({"url": "http://:hunter2@a"}), "url: found a value that is not shown here, expected a URL such as"),
            (json!({"url_env": "BAD"}), "url_env: found a value in BAD that is not shown here, expected a URL such as"),
            (json!({"url": "redis://a", "stream": ""}), "stream: found \"\", expected a text that is not empty"),
            (json!({"url": "redis://a", "timeout": "0s"}), "timeout: found \"0s\", expected a duration"),
            (json!({"url": "redis://a", "max_len": 1}), "max_len: unknown key `max_len`, expected one of `url`"),
        ] {
            let problem = read(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{tree}: {problem}");
        }
    }
}
