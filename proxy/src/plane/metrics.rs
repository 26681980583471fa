//! Prometheus metrics of the data plane. Handles are made once for each set of labels and kept: making one costs more
//! than the rest of a small exchange's accounting.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use llm_proxy_core::usage::{Metered, Source};
use llm_proxy_plugins::dispatcher::{Health as SinkHealth, Stats as SinkStats};
use llm_proxy_plugins::event::Outcome;
use llm_proxy_plugins::journal::Stats as JournalStats;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::gaps::Gaps;

/// Bounds for waits, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Bounds for what we add ourselves, in seconds.
const OVERHEAD: [f64; 12] = [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0];

/// Installs the recorder of the process.
///
/// # Errors
/// When one is installed already.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("llm_proxy_overhead_seconds".into()), &OVERHEAD)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    metrics::describe_counter!(
        "llm_proxy_requests_total",
        "Exchanges that ended, by API, endpoint, status and outcome"
    );
    metrics::describe_counter!("llm_proxy_panics_total", "Exchanges that a fault of the proxy itself ended");
    metrics::counter!("llm_proxy_panics_total").absolute(0);
    metrics::describe_counter!("llm_proxy_refusals_total", "Requests refused before a token was accepted, by code");
    metrics::describe_histogram!(
        "llm_proxy_overhead_seconds",
        metrics::Unit::Seconds,
        "From the whole request head to the first byte sent to the provider, less waiting for the client's body"
    );
    metrics::describe_histogram!(
        "llm_proxy_time_to_first_chunk_seconds",
        metrics::Unit::Seconds,
        "From the whole request head to the first piece of the answer's body"
    );
    metrics::describe_histogram!(
        "llm_proxy_stream_gap_seconds",
        metrics::Unit::Seconds,
        "Pauses between two pieces of a streamed answer"
    );
    metrics::describe_histogram!(
        "llm_proxy_request_duration_seconds",
        metrics::Unit::Seconds,
        "From the whole request head to the end of the exchange"
    );
    metrics::describe_counter!(
        "llm_proxy_tokens_total",
        "Tokens of finished and cut exchanges, by API, model, kind and source"
    );
    metrics::describe_gauge!("llm_proxy_cost_usd_total", "Cost by API and model, from the shipped price table");
    metrics::describe_gauge!("llm_proxy_in_flight", "Exchanges running now");
    metrics::describe_gauge!(
        "llm_proxy_held_bytes",
        metrics::Unit::Bytes,
        "Request bodies held in memory for policies"
    );
    metrics::describe_counter!("llm_proxy_journal_records_total", "Records written to the journal");
    metrics::describe_counter!("llm_proxy_journal_bytes_total", "Bytes written to the journal");
    metrics::describe_counter!(
        "llm_proxy_journal_failures_total",
        "Records that could not be written, and syncs that failed"
    );
    metrics::describe_counter!(
        "llm_proxy_journal_stripped_total",
        "Records written without what was kept of the bodies, for which there was no room"
    );
    metrics::describe_counter!(
        "llm_proxy_journal_discarded_total",
        "Records deleted before every consumer had read them, to keep the journal within its bound"
    );
    metrics::describe_gauge!("llm_proxy_journal_size_bytes", metrics::Unit::Bytes, "Size of the journal on disk");
    metrics::describe_gauge!("llm_proxy_journal_segments", "Files of the journal");
    metrics::describe_gauge!("llm_proxy_journal_pending", "Records that a consumer has not delivered yet");
    metrics::describe_counter!("llm_proxy_sink_events_total", "Events by sink and what became of them");
    metrics::describe_counter!("llm_proxy_sink_errors_total", "Steps of ours that failed on behalf of a sink");
    metrics::describe_gauge!(
        "llm_proxy_sink_lag_seconds",
        metrics::Unit::Seconds,
        "Age of the oldest event that a sink has not taken"
    );
    metrics::describe_gauge!("llm_proxy_sink_up", "1 while what was sent last got through, else 0");
    Ok(handle)
}

/// Keys are a few short words of ours: a fast hash will do.
type Map<K, V> = DashMap<K, V, foldhash::fast::RandomState>;

/// The handles of the data plane.
#[derive(Default)]
pub struct Metrics {
    ends: Map<EndKey, Counter>,
    times: Map<(u16, &'static str), Arc<Times>>,
    refusals: Map<&'static str, Counter>,
    tokens: Map<(u16, Box<str>), Arc<Tokens>>,
}

/// Token and cost counters of one API and model.
struct Tokens {
    input: Counter,
    output: Counter,
    estimated: Counter,
    /// `Counter` holds whole numbers, money does not come in them: a gauge that only grows.
    cost: Gauge,
}

/// The most models that have metrics of their own; further ones count as `other`, so that made-up names cannot fill
/// the memory.
const MOST_MODELS: usize = 1000;

type EndKey = (u16, &'static str, u16, Outcome);

struct Times {
    overhead: Histogram,
    first_chunk: Histogram,
    gap: Histogram,
    duration: Histogram,
}

/// What one exchange adds to the metrics.
pub struct Ended<'a> {
    /// Index and name of its API.
    pub api: (u16, &'a str),
    /// Its endpoint's template.
    pub endpoint: &'static str,
    /// The status the client saw, 0 when none.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// What we added before the first byte went out.
    pub overhead: Option<Duration>,
    /// Until the first piece of the answer's body.
    pub first_chunk: Option<Duration>,
    /// From beginning to end.
    pub duration: Duration,
    /// The pauses of a stream.
    pub gaps: &'a Gaps,
}

impl Metrics {
    /// Counts an ended exchange.
    pub fn ended(&self, ended: &Ended<'_>) {
        let (index, api) = ended.api;
        self.ends
            .entry((index, ended.endpoint, ended.status, ended.outcome))
            .or_insert_with(|| {
                counter!("llm_proxy_requests_total", "api" => api.to_owned(), "endpoint" => ended.endpoint,
                    "status" => ended.status.to_string(), "outcome" => ended.outcome.name())
            })
            .increment(1);
        let times = Arc::clone(&self.times.entry((index, ended.endpoint)).or_insert_with(|| {
            let of = |name: &'static str| histogram!(name, "api" => api.to_owned(), "endpoint" => ended.endpoint);
            Arc::new(Times {
                overhead: of("llm_proxy_overhead_seconds"),
                first_chunk: of("llm_proxy_time_to_first_chunk_seconds"),
                gap: of("llm_proxy_stream_gap_seconds"),
                duration: of("llm_proxy_request_duration_seconds"),
            })
        }));
        if let Some(overhead) = ended.overhead {
            times.overhead.record(overhead);
        }
        if let Some(first_chunk) = ended.first_chunk {
            times.first_chunk.record(first_chunk);
        }
        times.duration.record(ended.duration);
        for (value, count) in ended.gaps.each() {
            times.gap.record_many(value, count);
        }
    }

    /// Counts what an exchange used.
    pub fn used(&self, api: (u16, &str), metered: &Metered, cost: Option<&str>) {
        let (index, api) = api;
        let usage = &metered.usage;
        if usage.source() == Source::Unknown {
            return;
        }
        let model = metered.model.as_deref().unwrap_or("unknown");
        let key = (index, Box::from(model));
        let model = if self.tokens.contains_key(&key) || self.tokens.len() < MOST_MODELS { model } else { "other" };
        let handles = Arc::clone(&self.tokens.entry((index, model.into())).or_insert_with(|| {
            let tokens = |kind: &'static str, source: &'static str| {
                counter!("llm_proxy_tokens_total", "api" => api.to_owned(), "model" => model.to_owned(), "kind" => kind, "source" => source)
            };
            Arc::new(Tokens {
                input: tokens("input", "reported"),
                output: tokens("output", "reported"),
                estimated: tokens("all", "estimated"),
                cost: gauge!("llm_proxy_cost_usd_total", "api" => api.to_owned(), "model" => model.to_owned()),
            })
        }));
        for (number, reported) in [(usage.input_tokens, &handles.input), (usage.output_tokens, &handles.output)] {
            match number {
                Some(number) if number.source == Source::Reported => reported.increment(number.tokens),
                Some(number) => handles.estimated.increment(number.tokens),
                None => {}
            }
        }
        if let Some(cost) = cost.and_then(|cost| cost.parse::<f64>().ok()) {
            handles.cost.increment(cost);
        }
    }

    /// Counts a refusal before a token was accepted.
    pub fn refused(&self, code: &'static str) {
        self.refusals.entry(code).or_insert_with(|| counter!("llm_proxy_refusals_total", "code" => code)).increment(1);
    }
}

/// Gauges that are read when somebody looks.
pub fn observe(in_flight: usize, held_bytes: u64) {
    let flight: Gauge = gauge!("llm_proxy_in_flight");
    flight.set(as_f64(u64::try_from(in_flight).unwrap_or(u64::MAX)));
    // In KiB steps the gauge stays exact for budgets of terabytes.
    gauge!("llm_proxy_held_bytes").set(as_f64(held_bytes / 1024) * 1024.0);
}

/// The journal's books.
pub fn observe_journal(stats: &JournalStats) {
    counter!("llm_proxy_journal_records_total").absolute(stats.written);
    counter!("llm_proxy_journal_bytes_total").absolute(stats.written_bytes);
    counter!("llm_proxy_journal_failures_total").absolute(stats.dropped.saturating_add(stats.sync_failures));
    counter!("llm_proxy_journal_stripped_total").absolute(stats.stripped);
    counter!("llm_proxy_journal_discarded_total").absolute(stats.discarded_records);
    gauge!("llm_proxy_journal_size_bytes").set(as_f64(stats.bytes / 1024) * 1024.0);
    gauge!("llm_proxy_journal_segments").set(as_f64(stats.segments));
}

/// The sinks' books.
pub fn observe_sinks<'s>(sinks: impl Iterator<Item = (&'s str, SinkStats)>) {
    for (sink, stats) in sinks {
        let sink: Arc<str> = sink.into();
        let figures = [
            ("delivered", stats.delivered),
            ("duplicate", stats.duplicates),
            ("dead", stats.dead),
            ("retried", stats.retried),
            ("left_out", stats.left_out),
            ("dropped", stats.dropped.saturating_add(stats.unreadable)),
        ];
        for (result, count) in figures {
            counter!("llm_proxy_sink_events_total", "sink" => Arc::clone(&sink), "result" => result).absolute(count);
        }
        counter!("llm_proxy_sink_errors_total", "sink" => Arc::clone(&sink)).absolute(stats.own_errors);
        gauge!("llm_proxy_journal_pending", "consumer" => Arc::clone(&sink)).set(as_f64(stats.lag_records));
        gauge!("llm_proxy_sink_lag_seconds", "sink" => Arc::clone(&sink)).set(stats.lag.as_secs_f64());
        let is_up = matches!(stats.health, SinkHealth::Delivering);
        gauge!("llm_proxy_sink_up", "sink" => sink).set(f64::from(u8::from(is_up)));
    }
}

/// As a gauge has it: exact up to what no gauge here will reach.
fn as_f64(value: u64) -> f64 {
    u32::try_from(value).map_or(f64::from(u32::MAX), f64::from)
}
