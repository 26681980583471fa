//! A sink's books: what it has done, how far behind it is, and how it fares. Written by its loop, read by whoever
//! shows them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::journal::Journal;

/// The figures of one sink since it was started, and its state now.
///
/// Of the events that it was meant to get, `taken = delivered + duplicates + dead + waiting` at every moment between
/// two steps; `taken + left_out + unreadable` are all that it has come by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events read for this sink.
    pub taken: u64,
    /// Events that the receiver acknowledged.
    pub delivered: u64,
    /// Events that the receiver had already: delivered before a crash, or by another host.
    pub duplicates: u64,
    /// Events given up, in the dead-letter file.
    pub dead: u64,
    /// Attempts at an event that failed and are made again.
    pub retried: u64,
    /// Events that the filter or the sample leaves out.
    pub left_out: u64,
    /// Records that held no event. They are in the dead-letter file.
    pub unreadable: u64,
    /// Records that were gone from the journal, or damaged there, before they were read.
    pub dropped: u64,
    /// Events read and not settled.
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
    journal: Journal,
    pages: Arc<Pages>,
}

/// What the loop writes.
#[derive(Default)]
pub(super) struct Pages {
    pub taken: AtomicU64,
    pub delivered: AtomicU64,
    pub duplicates: AtomicU64,
    pub dead: AtomicU64,
    pub retried: AtomicU64,
    pub left_out: AtomicU64,
    pub unreadable: AtomicU64,
    pub dropped: AtomicU64,
    pub waiting: AtomicU64,
    pub own_errors: AtomicU64,
    pub passed_seq: AtomicU64,
    pub saved_seq: AtomicU64,
    /// When the oldest event that waits was written; 0: none waits.
    pub oldest_us: AtomicI64,
    pub is_failing: AtomicBool,
    pub is_down: AtomicBool,
    pub has_stopped: AtomicBool,
    /// Why the last call failed, until one gets through.
    pub last_error: Mutex<Option<String>>,
}

/// Adds to a figure.
pub(super) fn add(figure: &AtomicU64, more: u64) {
    figure.fetch_add(more, Ordering::AcqRel);
}

impl Books {
    pub(super) fn new(name: &str, journal: &Journal, pages: Arc<Pages>) -> Self {
        Self { name: name.into(), journal: journal.clone(), pages }
    }

    /// The sink's name in the settings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last record of the journal that a restart will not read again: what this consumer can release.
    pub fn cursor(&self) -> u64 {
        self.pages.saved_seq.load(Ordering::Acquire)
    }

    /// Records of the journal that the saved cursor has not passed.
    pub(super) fn remaining(&self) -> u64 {
        self.journal.position().saturating_sub(self.cursor())
    }

    /// Why the last call failed, or the last step of our own, if it did. For people; no secrets.
    pub fn last_error(&self) -> Option<String> {
        self.pages.last_error.lock().clone()
    }

    /// Figures for metrics and health. `now_us` is the time in microseconds since the Unix epoch.
    pub fn stats(&self, now_us: i64) -> Stats {
        let pages = &*self.pages;
        let read = |figure: &AtomicU64| figure.load(Ordering::Acquire);
        let oldest_us = pages.oldest_us.load(Ordering::Acquire);
        let lag_us = if oldest_us == 0 { 0 } else { now_us.saturating_sub(oldest_us) };
        let is = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        Stats {
            taken: read(&pages.taken),
            delivered: read(&pages.delivered),
            duplicates: read(&pages.duplicates),
            dead: read(&pages.dead),
            retried: read(&pages.retried),
            left_out: read(&pages.left_out),
            unreadable: read(&pages.unreadable),
            dropped: read(&pages.dropped),
            waiting: read(&pages.waiting),
            lag_records: self.journal.position().saturating_sub(read(&pages.passed_seq)),
            // A clock that was set back gives no lag rather than a wrong one.
            lag: Duration::from_micros(u64::try_from(lag_us).unwrap_or(0)),
            health: if is(&pages.has_stopped) {
                Health::Stopped
            } else if is(&pages.is_down) {
                Health::Down
            } else if is(&pages.is_failing) {
                Health::Retrying
            } else {
                Health::Delivering
            },
            own_errors: read(&pages.own_errors),
        }
    }
}
