//! A sink's books: what it has done, how far behind it is, and how it fares. Written by its loop, read by whoever
//! shows them.
//!
//! The loop writes a whole page at a time, between two steps. So the figures on it belong together whenever they are
//! read: an event that is counted as given up is in the dead-letter file, and none is counted twice or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::journal::Feed;

/// The figures of one sink since it was started, and its state now.
///
/// Of the events that it was meant to get, `taken = delivered + duplicates + dead + waiting`, always;
/// `taken + left_out + unreadable` are all that it has come by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events read for this sink.
    pub taken: u64,
    /// Events that the receiver acknowledged.
    pub delivered: u64,
    /// Events that the receiver had already: delivered before a crash, or by another host.
    pub duplicates: u64,
    /// Events given up. They are in the dead-letter file.
    pub dead: u64,
    /// Attempts at an event that failed and are made again.
    pub retried: u64,
    /// Events that the filter or the sample leaves out.
    pub left_out: u64,
    /// Records that held no event. They are in the dead-letter file.
    pub unreadable: u64,
    /// Records that were gone from the journal, or damaged there, before they were read.
    pub dropped: u64,
    /// Events read and not settled, or given up and not yet in the dead-letter file.
    pub waiting: u64,
    /// Records of the journal that the cursor has not passed; an exchange has two.
    pub lag_records: u64,
    /// Age of the oldest event that waits. Zero where none does.
    pub lag: Duration,
    /// How it fares.
    pub health: Health,
    /// Steps of our own that failed: reading the journal, writing cursor or dead letters.
    pub own_errors: u64,
}

/// How a sink fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// What was sent last got through, or nothing was sent yet.
    #[default]
    Delivering,
    /// What was sent last did not get through, and is tried again.
    Retrying,
    /// Several calls in a row got nothing through. One event at a time is tried now and then.
    Down,
    /// Its loop has ended.
    Stopped,
}

impl Health {
    /// By the worst that is true of a sink.
    pub(crate) const fn of(has_stopped: bool, is_down: bool, is_failing: bool) -> Self {
        match (has_stopped, is_down, is_failing) {
            (true, ..) => Self::Stopped,
            (_, true, _) => Self::Down,
            (.., true) => Self::Retrying,
            _ => Self::Delivering,
        }
    }

    /// The name used in metrics and health.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delivering => "delivering",
            Self::Retrying => "retrying",
            Self::Down => "down",
            Self::Stopped => "stopped",
        }
    }
}

/// A handle on one sink's books, which outlives borrows of the dispatcher.
#[derive(Clone)]
pub struct Books {
    name: Arc<str>,
    feed: Feed,
    pages: Arc<Pages>,
}

/// What the loop shows.
#[derive(Default)]
pub(super) struct Pages {
    page: Mutex<Page>,
    pub has_stopped: AtomicBool,
}

/// What the loop knows between two steps.
#[derive(Clone, Debug, Default)]
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
    pub passed_seq: u64,
    pub saved_seq: u64,
    /// When the oldest event that waits was written; 0: none waits.
    pub oldest_us: i64,
    pub is_failing: bool,
    pub is_down: bool,
    /// Why the last call failed, until one gets through.
    pub last_error: Option<String>,
}

/// Adds to a figure.
pub(crate) fn add(figure: &mut u64, more: u64) {
    *figure = figure.saturating_add(more);
}

impl Pages {
    /// Shows this from now on.
    pub fn show(&self, page: &Page) {
        self.page.lock().clone_from(page);
    }
}

impl Books {
    pub(super) fn new(name: &str, feed: &Feed, pages: Arc<Pages>) -> Self {
        Self { name: name.into(), feed: feed.clone(), pages }
    }

    /// The sink's name in the settings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last record of the journal that a restart will not read again: what this consumer can release.
    pub fn cursor(&self) -> u64 {
        self.pages.page.lock().saved_seq
    }

    /// Records of the journal that the saved cursor has not passed.
    pub(super) fn remaining(&self) -> u64 {
        self.feed.position().saturating_sub(self.cursor())
    }

    /// Why the last call failed, or the last step of our own, if it did. For people; no secrets.
    pub fn last_error(&self) -> Option<String> {
        self.pages.page.lock().last_error.clone()
    }

    /// Figures for metrics and health. `now_us` is the time in microseconds since the Unix epoch.
    pub fn stats(&self, now_us: i64) -> Stats {
        // Before the page is looked at: it never shows more than there is.
        let position = self.feed.position();
        let has_stopped = self.pages.has_stopped.load(Ordering::Acquire);
        let page = self.pages.page.lock();
        let lag_us = if page.oldest_us == 0 { 0 } else { now_us.saturating_sub(page.oldest_us) };
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
            lag_records: position.saturating_sub(page.passed_seq),
            // A clock that was set back gives no lag rather than a wrong one.
            lag: Duration::from_micros(u64::try_from(lag_us).unwrap_or(0)),
            health: Health::of(has_stopped, page.is_down, page.is_failing),
            own_errors: page.own_errors,
        }
    }
}
