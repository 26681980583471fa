//! Usage by the hour: what every token did with which model, as sums that can be added up again.
//!
//! Exchanges leave their records in the journal; what is asked about them later ("what did this project cost in
//! October") is asked of thousands or millions at once. So their sums are kept, an hour of one token, API and model in a
//! row. Everything in [`Totals`] adds up without loss, times included ([`Histogram`]), which is why one `merge` serves
//! all three: the counter that gathers, the row that grows (`write.rs`), and the answer that groups (`read.rs`).

/// The columns of a row's [`Totals`], in the order in which they are bound and read. SQL is put together from constants
/// only, when it is compiled.
macro_rules! columns {
    () => {
        "outcome_unknown, outcome_finished, outcome_refused, outcome_client_gone, outcome_upstream_unreachable, \
         outcome_upstream_cut, outcome_timeout, outcome_revoked, outcome_over_budget, outcome_shed, \
         usage_unknown, usage_reported, usage_estimated, input_reported, input_estimated, output_reported, \
         output_estimated, cache_read_input_reported, cache_read_input_estimated, cache_creation_input_reported, \
         cache_creation_input_estimated, reasoning_output_reported, reasoning_output_estimated, \
         audio_input_reported, audio_input_estimated, audio_output_reported, audio_output_estimated, \
         priced_requests, cost_usd, latency_histogram, first_chunk_histogram"
    };
}

mod read;
mod write;

use llm_proxy_core::histogram::Histogram;
use llm_proxy_core::usd::Usd;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::error::StoreError;

pub use read::{GroupBy, GroupKey, Period, UsageGroup, UsageQuery};
pub use write::Stretch;

/// An hour in microseconds.
pub const HOUR_US: i64 = 3_600_000_000;
/// A day in microseconds.
pub const DAY_US: i64 = 24 * HOUR_US;
/// The model of requests whose own has no row of its own: see [`MOST_MODELS`].
pub const OTHER_MODEL: &str = "other";
/// The most models with rows of their own in an hour of a project. Names of models are what clients write, and a
/// mistaken one could write a new name into each request.
pub const MOST_MODELS: i64 = 200;

/// Counts of a row that are whole numbers.
const NUMBERS: usize = 28;

/// Whose use of what, and when. A text that is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsageKey {
    /// The hour in which the requests were received: its beginning, in microseconds since the epoch.
    pub hour_us: i64,
    /// The token's project; empty where no token was accepted.
    pub project_id: String,
    /// The token.
    pub token_id: String,
    /// The API.
    pub api: String,
    /// The model.
    pub model: String,
}

/// Tokens of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenSum {
    /// By the providers' word.
    pub reported: u64,
    /// Computed from bytes.
    pub estimated: u64,
}

/// What requests add up to. The default is none. A sum that does not fit stays at the most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests by how they ended, in the order of the schema's outcomes.
    pub outcomes: [u64; 10],
    /// Requests by the source of their usage, in the order of the schema's sources: unknown, reported, estimated.
    pub sources: [u64; 3],
    /// Tokens by class: input, output; of the input read from a cache and written to one; of the output reasoning; of
    /// both audio. What is not known adds nothing.
    pub tokens: [TokenSum; 7],
    /// Requests that have a cost.
    pub priced_requests: u64,
    /// What these cost.
    pub cost: Usd,
    /// From the whole head of a request to the last byte of its answer, in microseconds.
    pub latency_us: Histogram,
    /// From the whole head of a request to the first piece of its stream, in microseconds.
    pub first_chunk_us: Histogram,
}

impl Totals {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.outcomes.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.numbers_mut().zip(other.numbers()) {
            *mine = mine.saturating_add(theirs);
        }
        self.cost.add(other.cost);
        self.latency_us.merge(&other.latency_us);
        self.first_chunk_us.merge(&other.first_chunk_us);
    }

    /// The whole numbers, in the order of the columns.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        let tokens = self.tokens.iter().flat_map(|sum| [sum.reported, sum.estimated]);
        self.outcomes.into_iter().chain(self.sources).chain(tokens).chain([self.priced_requests])
    }

    /// The same, to be written to.
    fn numbers_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        let tokens = self.tokens.iter_mut().flat_map(|sum| [&mut sum.reported, &mut sum.estimated]);
        self.outcomes.iter_mut().chain(&mut self.sources).chain(tokens).chain([&mut self.priced_requests])
    }

    /// The totals that begin at this column of a row.
    fn of_row(row: &SqliteRow, first: usize) -> Result<Self, StoreError> {
        let mut totals = Self::default();
        for (column, number) in (first..).zip(totals.numbers_mut()) {
            let kept: i64 = row.try_get(column)?;
            *number = u64::try_from(kept).map_err(|_| damaged("a count below 0"))?;
        }
        let text = |place: usize| row.try_get::<&str, _>(first.saturating_add(NUMBERS).saturating_add(place));
        totals.cost = text(0)?.parse().map_err(|_| damaged("a cost that is no amount"))?;
        totals.latency_us = text(1)?.parse().map_err(|_| damaged("a latency that is no histogram"))?;
        totals.first_chunk_us = text(2)?.parse().map_err(|_| damaged("a time to first chunk that is no histogram"))?;
        Ok(totals)
    }
}

fn damaged(what: &str) -> StoreError {
    StoreError::Corrupt(format!("usage_hours has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Totals with another number in every place.
    pub(super) fn distinct() -> Totals {
        let mut totals = Totals::default();
        for (number, place) in totals.numbers_mut().zip(1..) {
            *number = place;
        }
        totals.cost = "0.000000000000000000000003".parse().unwrap();
        totals.latency_us = "3:1 90:2".parse().unwrap();
        totals.first_chunk_us = "4:1".parse().unwrap();
        totals
    }

    #[test]
    fn numbers_stand_in_the_order_of_the_columns() {
        assert!(distinct().numbers().eq(1..=28));
        assert_eq!(distinct().numbers().count(), NUMBERS);
        assert_eq!(columns!().split(',').count(), NUMBERS + 3);
        assert_eq!(distinct().requests(), (1..=10u64).sum::<u64>());
        assert_eq!(distinct().tokens[6], TokenSum { reported: 26, estimated: 27 });
    }

    #[test]
    fn merging_adds_everything() {
        let mut sum = distinct();
        sum.merge(&distinct());
        assert!(sum.numbers().eq((2..=56).step_by(2)));
        assert_eq!(sum.cost.to_string(), "0.000000000000000000000006");
        assert_eq!((sum.latency_us.to_string().as_str(), sum.first_chunk_us.count()), ("3:2 90:4", 2));
        let mut same = distinct();
        same.merge(&Totals::default());
        assert_eq!(same, distinct());
    }
}
