//! Sampling of refusals before authentication: anybody can cause them, so they must not fill the disk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The most records a second.
const MOST_A_SECOND: u32 = 10;

/// Lets ten a second through, each with the number that it stands for.
#[derive(Debug, Default)]
pub struct Sampler(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    admitted: u32,
    waiting: u64,
}

impl Sampler {
    /// Counts one; `Some(count)` when a record is due, for so many.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock();
        window.waiting = window.waiting.saturating_add(1);
        if window.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            window.since = Some(now);
            window.admitted = 0;
        }
        if window.admitted >= MOST_A_SECOND {
            return None;
        }
        window.admitted = window.admitted.saturating_add(1);
        Some(std::mem::take(&mut window.waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_stand_for_all() {
        let sampler = Sampler::default();
        let start = Instant::now();
        let first: Vec<_> = (0..100).filter_map(|_| sampler.admit(start)).collect();
        assert_eq!(first, [1; 10]);
        assert_eq!(sampler.admit(start + Duration::from_secs(1)), Some(91));
    }
}
