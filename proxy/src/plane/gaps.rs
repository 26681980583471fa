//! The pauses within one stream, counted into fixed buckets, so that a stream of any length costs the same memory.

use std::time::Duration;

/// Upper bounds of the buckets, in milliseconds; the last bucket has none.
const BOUNDS_MS: [u32; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000];

/// How often a stream paused how long.
#[derive(Debug, Default)]
pub struct Gaps([u32; 12]);

impl Gaps {
    /// Counts one pause between two pieces.
    pub fn count(&mut self, gap: Duration) {
        let ms = u32::try_from(gap.as_millis()).unwrap_or(u32::MAX);
        let bucket = BOUNDS_MS.iter().position(|bound| ms <= *bound).unwrap_or(BOUNDS_MS.len());
        if let Some(count) = self.0.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
    }

    /// Each bucket that has any: a value in it, in seconds, and how many.
    pub fn each(&self) -> impl Iterator<Item = (f64, usize)> {
        let values = BOUNDS_MS.into_iter().map(|bound| f64::from(bound) / 1000.0).chain([120.0]);
        values
            .zip(self.0)
            .filter(|(_, count)| *count > 0)
            .map(|(value, count)| (value, usize::try_from(count).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_fall_into_their_buckets() {
        let mut gaps = Gaps::default();
        for ms in [0, 5, 6, 60_000, 60_001, u64::MAX] {
            gaps.count(Duration::from_millis(ms));
        }
        assert_eq!(gaps.each().collect::<Vec<_>>(), [(0.005, 2), (0.01, 1), (60.0, 1), (120.0, 2)]);
    }
}
