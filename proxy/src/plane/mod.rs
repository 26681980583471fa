//! The plane: carries each checked call to its provider and the answer back.

pub mod bodies;
pub mod clean;
pub mod clocks;
pub mod cors;
pub mod credentials;
pub mod drain;
pub mod exchange;
pub mod forward;
pub mod gaps;
pub mod held;
pub mod idle;
pub mod judge;
pub mod metrics;
pub mod race;
pub mod relay;
pub mod reply;
pub mod resolver;
pub mod sampler;
pub mod send;
pub mod settle;
pub mod shared;
pub mod state;
pub mod stop;
pub mod tokens;
pub mod trust;
pub mod tunnel;
pub mod upload;
pub mod upstream;
pub mod websocket;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use llm_proxy_core::answer::Refusal;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::http1::call::Call;
use llm_proxy_core::prices::PriceTable;
use llm_proxy_core::routing::Routes;
use llm_proxy_core::token::Pepper;
use llm_proxy_plugins::journal::{Journal, JournalError, Kind};
use parking_lot::Mutex;
use pingora_core::connectors::TransportConnector;
use uuid::Uuid;

use self::credentials::Remembered;
use self::drain::Drain;
use self::held::HeldBytes;
use self::metrics::Metrics;
use self::sampler::Sampler;
use self::settle::{ExchangeId, now_us};
use self::tokens::Tokens;
use self::upstream::Upstream;
use crate::client::Client;
use crate::downstream::{Caller, Downstream};
use crate::http1::{self, Wire};
use crate::http2;
use crate::seldom::{Seldom, TOLD_EVERY};

/// Everything an exchange decides with. Immutable while the process runs; what changes is inside.
pub struct Gateway {
    /// The configured APIs.
    pub routes: Routes,
    /// Their providers, by the same index.
    pub upstreams: Vec<Upstream>,
    /// Connections to providers.
    pub connector: TransportConnector,
    /// Tokens in memory.
    pub tokens: Tokens,
    /// The key of token digests.
    pub pepper: Pepper,
    /// The record.
    pub journal: Journal,
    /// Where in the journal the running exchanges begin: a crash needs these records to tell what became unknown.
    pub begun: Mutex<BTreeSet<u64>>,
    /// What tokens cost.
    pub prices: &'static PriceTable,
    /// Prometheus handles.
    pub metrics: Metrics,
    /// The budget for held bodies.
    pub held: HeldBytes,
    /// The way to the end of the process.
    pub drain: Drain,
    /// Sampling of refusals before authentication.
    pub sampler: Sampler<settle::Refused>,
}

impl Gateway {
    /// Appends to the journal. A failure is counted in the journal's own books and told in the log, now and then.
    fn append(&self, kind: Kind, id: Uuid, time_us: i64, payload: &[u8]) -> Result<u64, Unrecorded> {
        self.journal.append(kind, id, time_us, payload).map_err(|error| {
            let by_disk = matches!(error, JournalError::Io { .. } | JournalError::MemoryFull);
            if let Some(count) = LOSSES.note(by_disk, Instant::now()) {
                tracing::error!(%error, count, "records could not be written to the journal");
            }
            Unrecorded
        })
    }

    /// Notes a request that was refused because its begin did not reach the disk, and tells of it in the log, now and
    /// then.
    fn refused_by_disk(&self, error: &dyn Display) {
        if let Some(count) = LOSSES.note(true, Instant::now()) {
            tracing::error!(%error, count, "requests are refused: the journal cannot be brought to disk");
        }
    }

    /// Whether the disk has refused the journal a record within the last ten seconds, or did not keep one where a request
    /// waits for that. Who is given no requests because of this has no records to lose either, and is given some again.
    pub fn loses_records(&self) -> bool {
        LOSSES.are_recent(Instant::now())
    }
}

/// The process has one journal.
static LOSSES: Losses = Losses::new();

/// Records that the journal did not take. Every exchange tries again.
struct Losses {
    told: Seldom,
    /// The last one that was the disk's fault.
    by_disk: Mutex<Option<Instant>>,
}

impl Losses {
    const fn new() -> Self {
        Self { told: Seldom::new(), by_disk: Mutex::new(None) }
    }

    /// Counts one; when it is to be told, how many there were.
    fn note(&self, by_disk: bool, now: Instant) -> Option<u64> {
        if by_disk {
            *self.by_disk.lock() = Some(now);
        }
        self.told.due(now)
    }

    fn are_recent(&self, now: Instant) -> bool {
        self.by_disk.lock().is_some_and(|then| now.saturating_duration_since(then) < TOLD_EVERY)
    }
}

/// The journal did not take a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unrecorded;

/// The data plane's application: one exchange after another on each connection.
pub struct Plane {
    /// What exchanges decide with.
    pub gateway: Arc<Gateway>,
}

impl Plane {
    /// Carries one call on an HTTP/1.1 connection. `Some`: the connection is ready for the next head. `caller` is told
    /// where it is to be recorded, here as below.
    pub async fn serve(
        &self,
        wire: Wire<Downstream>,
        call: Call,
        caller: Option<&Caller>,
        remembered: &mut Remembered,
    ) -> Option<Wire<Downstream>> {
        let client = Client::Http1(http1::Client::new(wire, &call));
        self.carry(client, &call, caller, remembered).await
    }

    /// Carries one call on a stream of an HTTP/2 connection.
    pub async fn serve_stream(&self, client: http2::Client, call: &Call, caller: Option<&Caller>) {
        // Streams run side by side: none can tell the next one what it has learnt.
        let mut remembered = Remembered::default();
        self.carry(Client::Http2(Box::new(client)), call, caller, &mut remembered).await;
    }

    async fn carry(
        &self,
        mut client: Client,
        call: &Call,
        caller: Option<&Caller>,
        remembered: &mut Remembered,
    ) -> Option<Wire<Downstream>> {
        // Counted until its last byte is out: the process must not end before.
        let _running = self.gateway.drain.enter();
        if self.gateway.drain.is_stopping() {
            client.close_after();
        }
        match exchange::run(&self.gateway, &mut client, call, caller, remembered).await {
            Ok(()) => client.conclude().await,
            Err(stop::Broken) => {
                client.break_off().await;
                None
            }
        }
    }

    /// Answers a stream whose head never became a call. Counted, and sampled into the record.
    pub async fn refuse_stream(&self, client: http2::Client, refusal: &Refusal, caller: Option<&Caller>) {
        let _running = self.gateway.drain.enter();
        let id = ExchangeId::new(now_us());
        settle::record_unparsed(&self.gateway, &id, refusal, caller);
        let mut client = Client::Http2(Box::new(client));
        match reply::refuse(&mut client, Dialect::OpenAi, id.text(), refusal, Vec::new()).await {
            Ok(()) => {
                client.conclude().await;
            }
            Err(_) => client.break_off().await,
        }
    }

    /// The answer to a head that never became a call. Counted, and sampled into the record.
    pub fn answer_raw(&self, refusal: &Refusal, caller: Option<&Caller>) -> Vec<u8> {
        let id = ExchangeId::new(now_us());
        settle::record_unparsed(&self.gateway, &id, refusal, caller);
        reply::raw(refusal, id.text())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lost_records_are_told_every_ten_seconds_with_how_many() {
        let losses = Losses::new();
        let start = Instant::now();
        let told: Vec<_> =
            (0..25u32).map(|second| losses.note(true, start + Duration::from_secs(1) * second)).collect();
        let expected = |second: usize| match second {
            0 => Some(1),
            10 | 20 => Some(10),
            _ => None,
        };
        assert_eq!(told, (0..25).map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn records_that_the_disk_refused_are_being_lost_for_ten_seconds() {
        let losses = Losses::new();
        let start = Instant::now();
        // One that is too large says nothing of the next.
        losses.note(false, start);
        assert!(!losses.are_recent(start));
        losses.note(true, start);
        for (seconds, expected) in [(0, true), (9, true), (10, false)] {
            assert_eq!(losses.are_recent(start + Duration::from_secs(seconds)), expected, "after {seconds} s");
        }
    }
}
