//! What happens every second and is told seldom: a line of the log for each would say no more, and fill a disk that may
//! be full already.

use std::time::{Duration, Instant};

/// Between two times that the same is told.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Says when something is to be told again, and how often it has happened since.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    told: Option<Instant>,
    count: u64,
}

impl Seldom {
    /// Counts one; when it is to be told, how many there were.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        self.count = self.count.saturating_add(1);
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_then_every_ten_seconds_how_many() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let told: Vec<_> = (0..21).map(|second| seldom.due(start + Duration::from_secs(second))).collect();
        let expected = |second: u64| match second {
            0 => Some(1),
            10 | 20 => Some(10),
            _ => None,
        };
        assert_eq!(told, (0..21).map(expected).collect::<Vec<_>>());
    }
}
