//! What happens often and is told seldom: a line of the log for each would say no more, and cost the more.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between two times that the same is told.
pub const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Says when something is to be told again, and how often it has happened since.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Counts one; when it is to be told, how many there were.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let (told, count) = &mut *state;
        *count = count.saturating_add(1);
        if told.is_some_and(|told| now.saturating_duration_since(told) < TOLD_EVERY) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_told_once_in_a_while_with_how_often() {
        let seldom = Seldom::default();
        let start = Instant::now();
        let told: Vec<_> = (0..25u32).map(|second| seldom.due(start + Duration::from_secs(1) * second)).collect();
        let expected = |second: usize| match second {
            0 => Some(1),
            10 | 20 => Some(10),
            _ => None,
        };
        assert_eq!(told, (0..25).map(expected).collect::<Vec<_>>());
    }
}
