//! When a sink may be called.
//!
//! Counts failures in a row: a failure rate needs a minimum sample, and a sink that gets one call a second has none
//! before people notice. While the breaker is open nothing is sent; then a single event goes out as a probe, and its
//! outcome decides. A receiver that has just come back is not met with a whole batch.

use std::time::{Duration, Instant};

use super::backoff::{Backoff, LONGEST_ASKED};
use super::window::Settled;

/// Failures in a row that open the breaker.
pub const OPENS_AFTER: u32 = 5;

/// The state of one sink's breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Breaker {
    failures: u32,
    not_before: Option<Instant>,
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// A batch.
    Batch,
    /// One event, to see whether the receiver is back.
    Probe,
    /// Nothing before this.
    NotBefore(Instant),
}

impl Breaker {
    /// What may be sent at `now`.
    pub fn permit(&self, now: Instant) -> Permit {
        match self.not_before {
            Some(not_before) if not_before > now => Permit::NotBefore(not_before),
            _ if self.is_open() => Permit::Probe,
            _ => Permit::Batch,
        }
    }

    /// Draws the consequences of a call. `dice` is a number between 0 and 1.
    pub fn heed(&mut self, settled: &Settled, backoff: &Backoff, now: Instant, dice: f64) {
        if settled.got_through {
            self.succeeded();
        }
        if settled.blames_sink {
            let wait = backoff.wait(self.failures.saturating_add(1), settled.asked, dice);
            self.failed(now, wait);
        } else if let Some(asked) = settled.asked {
            self.pause(now, asked.min(LONGEST_ASKED));
        }
    }

    /// Something got through.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A call got nothing through: nothing is sent for `wait`.
    pub fn failed(&mut self, now: Instant, wait: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.pause(now, wait);
    }

    /// The receiver asked to be left alone; that is no failure.
    pub fn pause(&mut self, now: Instant, wait: Duration) {
        self.not_before = self.not_before.max(now.checked_add(wait));
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the sink counts as down.
    pub fn is_open(&self) -> bool {
        self.failures >= OPENS_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_in_a_row_open_it_a_probe_goes_out_and_one_success_closes_it() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for failures in 1..=OPENS_AFTER {
            assert_eq!(breaker.permit(now), Permit::Batch, "after {} failures", failures - 1);
            breaker.failed(now, SECOND);
            assert_eq!(breaker.failures(), failures);
            assert_eq!(breaker.permit(now), Permit::NotBefore(now + SECOND));
            now += SECOND;
        }
        assert_eq!((breaker.is_open(), breaker.permit(now)), (true, Permit::Probe));
        breaker.failed(now, SECOND);
        assert_eq!(breaker.permit(now), Permit::NotBefore(now + SECOND));
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
        breaker.succeeded();
        assert_eq!((breaker.is_open(), breaker.permit(now)), (false, Permit::Batch));
    }

    #[test]
    fn a_pause_that_was_asked_for_is_no_failure_and_is_never_cut_short() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.pause(now, SECOND * 30);
        breaker.failed(now, SECOND);
        assert_eq!((breaker.permit(now), breaker.failures()), (Permit::NotBefore(now + SECOND * 30), 1));
        assert_eq!(breaker.permit(now + SECOND * 30), Permit::Batch);
    }
}
