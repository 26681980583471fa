//! The places that records go to. Each is a module here, and a page in the documents.
//!
//! `file` writes `events.jsonl` exactly once and has its own loop. All others are served by the
//! [dispatcher](crate::dispatcher), at least once: a module with a struct of settings, how a batch becomes calls, and
//! what the answers mean. A new one is that file and one line in the list below.

mod client;
mod facts;
pub mod file;
mod helicone;
mod lunary;
mod otlp;
pub(crate) mod redis;
mod settings;
mod split;
mod values;
mod verdict;
mod webhook;

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;

pub use facts::tags;
pub use settings::{Environment, Problem, SinkSettings, SinksSettings, read, read_names};

use crate::dispatcher::{Policy, Sink};

/// Every type of sink that the dispatcher serves.
static KINDS: [Kind; 5] = [helicone::KIND, lunary::KIND, otlp::KIND, redis::KIND, webhook::KIND];

/// A type of sink.
struct Kind {
    /// As it is written in settings.
    name: &'static str,
    /// How such a sink is served where the settings say nothing else.
    policy: fn() -> Policy,
    /// Reads the settings that only this type has.
    read: Reads,
}

/// Makes checked settings of what was written.
type Reads = fn(Value, &Environment<'_>) -> Result<Arc<dyn Target>, Problem>;

/// The checked settings of one sink, of which it can be made.
trait Target: fmt::Debug + Send + Sync {
    /// The sink. `tls` says which certificate authorities are believed.
    fn sink(&self, tls: &Arc<ClientConfig>) -> Box<dyn Sink>;
}
