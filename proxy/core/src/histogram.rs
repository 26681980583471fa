//! How long things took, as counts in fixed buckets: small enough for a row of a table, added up without loss, and good
//! for percentiles within 6.25 %.
//!
//! Every doubling of a value is cut into eight buckets of equal width, so that no bucket is wider than an eighth of its
//! lowest value; told by its middle, a value is at most a sixteenth off. Values below 16 have a bucket each and are
//! exact. The bounds follow from the number alone: they are the same in every process and every version, which is what
//! makes two histograms additive bucket by bucket, in any order, whoever made them. There is no largest value, and no
//! parameter.
//!
//! Fixed bounds of round numbers (as metrics have them) would be off by half of a bucket, which there is 50 % and more;
//! sketches that adapt to their data cannot be added without loss, or not in any order.

use std::fmt;
use std::str::FromStr;

/// A doubling has two to the power of this many buckets.
const STEP_BITS: u32 = 3;
/// The bucket of the largest number of 64 bits.
const LAST_BUCKET: u16 = 495;

/// How often which values were seen. The default is empty.
///
/// Its text is what a database holds: `BUCKET:COUNT`, separated by blanks, buckets ascending, none without a count.
/// Bucket `b` below 16 holds the value `b`; any other holds the `2^s` values from `(b - 8 s) 2^s` on, where `s` is
/// `b / 8 - 1`, rounded down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Bucket and count, by ascending bucket, no count 0. Durations of one kind meet some dozens of buckets.
    buckets: Vec<(u16, u64)>,
}

/// The text is not one that a histogram gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no histogram: buckets up to {last} in ascending order are expected, each as BUCKET:COUNT", last = LAST_BUCKET)]
pub struct NotAHistogram;

impl Histogram {
    /// Counts a value once.
    pub fn record(&mut self, value: u64) {
        self.add(bucket_of(value), 1);
    }

    /// Adds all that another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.add(*bucket, *count);
        }
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The smallest value that so many thousandths of all values do not exceed (the nearest rank), within 6.25 %.
    /// 500 is the median; 0 is the smallest value, 1,000 and more the largest. `None` where nothing was counted.
    pub fn quantile(&self, thousandths: u16) -> Option<u64> {
        let share = u128::from(thousandths.min(1_000));
        let rank = u128::from(self.count()).saturating_mul(share).div_ceil(1_000).max(1);
        let mut passed: u128 = 0;
        for (bucket, count) in &self.buckets {
            passed = passed.saturating_add(u128::from(*count));
            if passed >= rank {
                return Some(middle(*bucket));
            }
        }
        None
    }

    fn add(&mut self, bucket: u16, times: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(place) => {
                if let Some((_, count)) = self.buckets.get_mut(place) {
                    *count = count.saturating_add(times);
                }
            }
            Err(place) => self.buckets.insert(place, (bucket, times)),
        }
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (bucket, count)) in self.buckets.iter().enumerate() {
            let blank = if place == 0 { "" } else { " " };
            write!(formatter, "{blank}{bucket}:{count}")?;
        }
        Ok(())
    }
}

impl FromStr for Histogram {
    type Err = NotAHistogram;

    fn from_str(text: &str) -> Result<Self, NotAHistogram> {
        let mut buckets: Vec<(u16, u64)> = Vec::new();
        for pair in text.split(' ').filter(|_| !text.is_empty()) {
            let (bucket, count) = pair.split_once(':').ok_or(NotAHistogram)?;
            let bucket = number(bucket).and_then(|bucket| u16::try_from(bucket).ok()).ok_or(NotAHistogram)?;
            let count = number(count).filter(|count| *count > 0).ok_or(NotAHistogram)?;
            let is_ascending = buckets.last().is_none_or(|(last, _)| *last < bucket);
            if !is_ascending || bucket > LAST_BUCKET {
                return Err(NotAHistogram);
            }
            buckets.push((bucket, count));
        }
        Ok(Self { buckets })
    }
}

/// Digits only: the standard parser takes a sign as well.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Where a value is counted: by its highest four bits, and by how many follow them.
fn bucket_of(value: u64) -> u16 {
    let shift = value.checked_ilog2().unwrap_or(0).saturating_sub(STEP_BITS);
    let bucket = u64::from(shift << STEP_BITS).saturating_add(value >> shift);
    u16::try_from(bucket).unwrap_or(LAST_BUCKET)
}

/// The value in the middle of a bucket.
fn middle(bucket: u16) -> u64 {
    let shift = u32::from(bucket >> STEP_BITS).saturating_sub(1);
    let lowest = u64::from(bucket).saturating_sub(u64::from(shift << STEP_BITS)) << shift;
    let width = 1_u64 << shift;
    lowest.saturating_add(width.saturating_sub(1) >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn histogram(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.record(*value);
        }
        histogram
    }

    /// Whether `told` is at most a sixteenth off.
    fn is_close(told: u64, value: u64) -> bool {
        u128::from(told.abs_diff(value)) * 16 <= u128::from(value)
    }

    #[test]
    fn the_bounds_are_the_documented_ones() {
        for (bucket, lowest, highest) in [
            (0, 0, 0),
            (1, 1, 1),
            (15, 15, 15),
            (16, 16, 17),
            (23, 30, 31),
            (24, 32, 35),
            (31, 60, 63),
            (32, 64, 71),
            (144, 1 << 20, (1 << 20) + (1 << 17) - 1),
            (LAST_BUCKET, 15 << 60, u64::MAX),
        ] {
            for value in [lowest, highest] {
                assert_eq!(bucket_of(value), bucket, "{value}");
            }
            assert_eq!(middle(bucket), lowest + (highest - lowest) / 2, "bucket {bucket}");
        }
        assert!((0..=LAST_BUCKET).all(|bucket| bucket_of(middle(bucket)) == bucket));
    }

    #[test]
    fn quantiles_are_by_the_nearest_rank() {
        let ten = histogram(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        for (thousandths, expected) in
            [(0, 1), (100, 1), (101, 2), (500, 5), (501, 6), (900, 9), (950, 10), (1_000, 10), (u16::MAX, 10)]
        {
            assert_eq!(ten.quantile(thousandths), Some(expected), "{thousandths}");
        }
        assert_eq!(Histogram::default().quantile(500), None);
        assert_eq!((ten.count(), Histogram::default().count()), (10, 0));
    }

    #[test]
    fn only_a_histogram_s_own_text_is_read() {
        let most = u64::MAX;
        for (text, buckets) in
            [("", vec![]), ("5:1", vec![(5, 1)]), ("0:2 495:18446744073709551615", vec![(0, 2), (LAST_BUCKET, most)])]
        {
            assert_eq!(text.parse(), Ok(Histogram { buckets }), "{text}");
        }
        for text in [
            "5", "5:", ":1", "5:0", "496:1", "65536:1", "6:1 5:1", "5:1 5:1", "5:1  6:1", "5:1,6:1", "+5:1", "5:-1",
            "5:1 ", " ",
        ] {
            assert_eq!(text.parse::<Histogram>(), Err(NotAHistogram), "{text}");
        }
    }

    #[test]
    fn counts_that_do_not_fit_stay_at_the_most() {
        let most: Histogram = "5:18446744073709551615 6:18446744073709551615".parse().unwrap();
        let mut sum = most.clone();
        sum.merge(&most);
        assert_eq!((sum.count(), sum.quantile(500)), (u64::MAX, Some(5)));
    }

    proptest! {
        #[test]
        fn a_value_is_told_within_a_sixteenth(value in any::<u64>(), shift in 0..64_u32) {
            let value = value >> shift;
            let told = histogram(&[value]).quantile(500).unwrap();
            prop_assert!(is_close(told, value), "{} for {}", told, value);
        }

        #[test]
        fn a_quantile_is_within_a_sixteenth_of_the_true_one(
            mut values in vec(0..10_000_000_u64, 1..300),
            thousandths in 0..=1_000_u16,
        ) {
            let told = histogram(&values).quantile(thousandths).unwrap();
            values.sort_unstable();
            let rank = (values.len() * usize::from(thousandths)).div_ceil(1_000).max(1);
            prop_assert!(is_close(told, values[rank - 1]), "{} for {}", told, values[rank - 1]);
        }

        #[test]
        fn merging_is_counting_everything_in_one_in_any_order(
            values in vec(any::<u64>(), 0..100),
            cut in any::<prop::sample::Index>(),
        ) {
            let (first, second) = values.split_at(cut.index(values.len() + 1));
            let (first, second) = (histogram(first), histogram(second));
            let (mut one_way, mut other_way) = (first.clone(), second.clone());
            one_way.merge(&second);
            other_way.merge(&first);
            prop_assert_eq!(&one_way, &histogram(&values));
            prop_assert_eq!(&one_way, &other_way);
            prop_assert_eq!(one_way.count(), values.len() as u64);
        }

        #[test]
        fn what_is_written_is_read(values in vec(any::<u64>(), 0..100)) {
            let histogram = histogram(&values);
            prop_assert_eq!(histogram.to_string().parse(), Ok(histogram));
        }

        #[test]
        fn no_text_at_all_crashes_the_parser(text in "[0-9: ]{0,30}") {
            if let Ok(histogram) = text.parse::<Histogram>() {
                prop_assert_eq!(histogram.to_string().parse(), Ok(histogram));
            }
        }
    }
}
