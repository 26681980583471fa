//! The books of one sink that is fed from Redis: the same figures as those of one that is fed from a journal.
//!
//! The loop writes a whole page at a time, between two steps, so that the figures on it belong together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::dispatcher::{Health, Stats};

/// A handle on the books of one sink that is fed from Redis.
#[derive(Clone)]
pub struct RedisBooks {
    name: Arc<str>,
    pages: Arc<Pages>,
}

/// What the loop shows.
#[derive(Default)]
pub(super) struct Pages {
    page: Mutex<Page>,
    pub has_stopped: AtomicBool,
}

/// What the loop knows between two steps.
#[derive(Clone, Default)]
pub(super) struct Page {
    pub taken: u64,
    pub delivered: u64,
    pub duplicates: u64,
    pub dead: u64,
    pub retried: u64,
    pub left_out: u64,
    pub unreadable: u64,
    pub dropped: u64,
    pub waiting: u64,
    pub own_errors: u64,
    /// Entries that the group has yet to do with.
    pub lag: u64,
    /// Entries that Redis gives again after a restart.
    pub unacknowledged: u64,
    /// When the oldest event that waits was written, in microseconds since the Unix epoch; `None`: none waits.
    pub oldest_us: Option<i64>,
    pub is_failing: bool,
    pub is_down: bool,
    /// Why the last call failed, until one gets through.
    pub last_error: Option<String>,
}

impl Pages {
    /// Shows this from now on.
    pub fn show(&self, page: &Page) {
        self.page.lock().clone_from(page);
    }
}

impl RedisBooks {
    pub(super) fn new(name: &str, pages: Arc<Pages>) -> Self {
        Self { name: name.into(), pages }
    }

    /// The sink's name in the settings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Entries that were read and are not acknowledged: Redis gives them again after a restart.
    pub fn unacknowledged(&self) -> u64 {
        self.pages.page.lock().unacknowledged
    }

    /// Why the last call failed, or the last talk with Redis, if it did. For people; no secrets.
    pub fn last_error(&self) -> Option<String> {
        self.pages.page.lock().last_error.clone()
    }

    /// Figures for metrics and health. `now_us` is the time in microseconds since the Unix epoch.
    ///
    /// `lag_records` are the entries that the sink's group has yet to do with, as Redis last said, some seconds ago;
    /// `dropped` those that were deleted before this consumer came to them; `own_errors` the times that Redis, or the
    /// dead-letter file, could not be had.
    pub fn stats(&self, now_us: i64) -> Stats {
        let has_stopped = self.pages.has_stopped.load(Ordering::Acquire);
        let page = self.pages.page.lock();
        let lag_us = page.oldest_us.map_or(0, |oldest_us| now_us.saturating_sub(oldest_us));
        Stats {
            taken: page.taken,
            delivered: page.delivered,
            duplicates: page.duplicates,
            dead: page.dead,
            retried: page.retried,
            left_out: page.left_out,
            unreadable: page.unreadable,
            dropped: page.dropped,
            waiting: page.waiting,
            lag_records: page.lag,
            // A clock that was set back, or runs behind on this host, gives no lag rather than a wrong one.
            lag: Duration::from_micros(u64::try_from(lag_us).unwrap_or(0)),
            health: Health::of(has_stopped, page.is_down, page.is_failing),
            own_errors: page.own_errors,
        }
    }
}
