//! Sampling of refusals before authentication: anybody can cause them, so they must not fill the disk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The most records a second.
const MOST_A_SECOND: u32 = 10;

/// Lets ten a second through, each with the number that it stands for.
#[derive(Debug)]
pub struct Sampler<T>(Mutex<Window<T>>);

#[derive(Debug)]
struct Window<T> {
    since: Option<Instant>,
    admitted: u32,
    waiting: u64,
    /// What the last of those was that have no record yet.
    last: Option<T>,
}

impl<T> Default for Sampler<T> {
    fn default() -> Self {
        Self(Mutex::new(Window { since: None, admitted: 0, waiting: 0, last: None }))
    }
}

impl<T> Sampler<T> {
    /// Counts one; `Some(count)` when a record is due, for so many.
    pub fn admit(&self, now: Instant, what: T) -> Option<u64> {
        let mut window = self.0.lock();
        window.waiting = window.waiting.saturating_add(1);
        if window.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            window.since = Some(now);
            window.admitted = 0;
        }
        if window.admitted >= MOST_A_SECOND {
            window.last = Some(what);
            return None;
        }
        window.admitted = window.admitted.saturating_add(1);
        window.last = None;
        Some(std::mem::take(&mut window.waiting))
    }

    /// What is left without a record: the last of them, and how many they are.
    pub fn rest(&self) -> Option<(T, u64)> {
        let mut window = self.0.lock();
        let last = window.last.take()?;
        Some((last, std::mem::take(&mut window.waiting)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_stand_for_all() {
        let sampler = Sampler::default();
        let start = Instant::now();
        let first: Vec<_> = (0..100).filter_map(|which| sampler.admit(start, which)).collect();
        assert_eq!(first, [1; 10]);
        assert_eq!(sampler.admit(start + Duration::from_secs(1), 100), Some(91));
        assert_eq!(sampler.rest(), None, "all have their record");
        let second = start + Duration::from_secs(1);
        assert_eq!((101..120).filter_map(|which| sampler.admit(second, which)).count(), 9);
        assert_eq!((sampler.rest(), sampler.rest()), (Some((119, 10)), None));
    }
}
