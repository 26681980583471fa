//! From when to when.

use anyhow::{Result, bail};

use super::moment::{Moment, now_us, to_the_second};

/// A range of time, both ends in microseconds since the Unix epoch. The first is in it, the second is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) since_us: i64,
    /// `None`: it has no end.
    pub(super) until_us: Option<i64>,
}

impl Range {
    /// The range between two times that are counted from now, where they are.
    ///
    /// # Errors
    /// In one line, that the second is not after the first: nothing could be in it.
    pub(super) fn new(since: Option<Moment>, until: Option<Moment>) -> Result<Self> {
        let now_us = now_us();
        let since_us = since.map_or(i64::MIN, |since| since.us(now_us));
        let until_us = until.map(|until| until.us(now_us));
        match until_us {
            Some(until_us) if until_us <= since_us => {
                let (since, until) = (to_the_second(since_us), to_the_second(until_us));
                bail!("--until: found {until}, expected a time after that of --since, {since}")
            }
            _ => Ok(Self { since_us, until_us }),
        }
    }

    /// Whether an event that was recorded then is in it.
    pub(super) fn has(self, time_us: i64) -> bool {
        time_us >= self.since_us && !self.is_before(time_us)
    }

    /// Whether it has ended by then.
    pub(super) fn is_before(self, time_us: i64) -> bool {
        self.until_us.is_some_and(|until_us| time_us >= until_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_is_in_it_and_the_second_is_not() {
        let range = Range { since_us: 10, until_us: Some(20) };
        let has: Vec<_> = [9, 10, 19, 20, 21].into_iter().filter(|time_us| range.has(*time_us)).collect();
        assert_eq!(has, [10, 19]);
        assert!(range.is_before(20) && !range.is_before(19));
        let all = Range::new(None, None).unwrap();
        assert!(all.has(i64::MIN) && all.has(i64::MAX) && !all.is_before(i64::MAX));
        let last_hour =
            Range::new(Some(Moment::Ago(std::time::Duration::from_secs(3_600))), Some(Moment::At(i64::MAX))).unwrap();
        assert!(last_hour.has(now_us()) && !last_hour.has(now_us() - 3_700_000_000));
    }

    #[test]
    fn a_range_that_nothing_can_be_in_is_refused() {
        for since_us in [2_000_000, 3_000_000] {
            let error = Range::new(Some(Moment::At(since_us)), Some(Moment::At(2_000_000))).unwrap_err().to_string();
            let expected =
                "--until: found 1970-01-01 00:00:02Z, expected a time after that of --since, 1970-01-01 00:00:0";
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
