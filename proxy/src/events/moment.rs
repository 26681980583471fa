//! Times as people give them: a moment, a day, or how long ago.

use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

/// The farthest that anybody looks back. More is a slip of the unit.
const LONGEST_AGO: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// A time on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Microseconds since the Unix epoch.
    At(i64),
    /// So long before now.
    Ago(Duration),
}

impl Moment {
    /// In microseconds since the Unix epoch, where it is `now_us` now.
    pub(super) fn us(self, now_us: i64) -> i64 {
        match self {
            Self::At(us) => us,
            Self::Ago(span) => now_us.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        }
    }
}

/// Reads a time. What it says of a bad one ends the sentence "found …,".
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    let at = |moment: OffsetDateTime| {
        i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000)).map_or(Moment::At(i64::MAX), Moment::At)
    };
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at(moment));
    }
    if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(at(day.midnight().assume_utc()));
    }
    ago(text).map(Moment::Ago).ok_or_else(|| {
        "expected a time such as 2026-11-21T10:00:00Z, a day such as 2026-11-21, or how long ago, such as 90s, 10m, \
         2h or 7d"
            .to_owned()
    })
}

fn ago(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.find(|letter: char| !letter.is_ascii_digit())?)?;
    let unit_s: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let span = Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(unit_s)?);
    (span <= LONGEST_AGO).then_some(span)
}

/// This moment, in microseconds since the Unix epoch.
pub(super) fn now_us() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos().div_euclid(1_000)).unwrap_or(i64::MAX)
}

/// A time to the second, UTC, as tables show it; a dash for one that no calendar has.
pub(super) fn to_the_second(us: i64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    let moment = OffsetDateTime::from_unix_timestamp(us.div_euclid(1_000_000));
    moment.ok().and_then(|moment| moment.format(form).ok()).unwrap_or_else(|| "-".to_owned())
}

/// A time to the microsecond, as records show it; `None` for one that no calendar has.
pub(super) fn rfc3339(us: i64) -> Option<String> {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(us).saturating_mul(1_000)).ok()?;
    moment.format(form).ok()
}

/// A span of time in few characters: `340ms`, `12.34s`, `5m07s`, `3h05m`, `2d04h`.
pub(super) fn span(us: u64) -> String {
    let seconds = us / 1_000_000;
    let pair = |large: u64, unit: char, small: u64, of: char| format!("{large}{unit}{small:02}{of}");
    match seconds {
        0 => format!("{}ms", us / 1_000),
        1..60 => format!("{seconds}.{:02}s", us % 1_000_000 / 10_000),
        60..3_600 => pair(seconds / 60, 'm', seconds % 60, 's'),
        3_600..86_400 => pair(seconds / 3_600, 'h', seconds % 3_600 / 60, 'm'),
        _ => pair(seconds / 86_400, 'd', seconds % 86_400 / 3_600, 'h'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21T00:00:00Z.
    const DAY_US: i64 = 1_795_219_200_000_000;

    #[test]
    fn a_time_is_a_moment_a_day_or_how_long_ago() {
        let now_us = DAY_US + 3_600_000_000;
        for (text, expected) in [
            ("2026-11-21T00:00:00Z", DAY_US),
            ("2026-11-21T00:00:00.000042Z", DAY_US + 42),
            ("2026-11-21T02:00:00+02:00", DAY_US),
            ("2026-11-21", DAY_US),
            ("0s", now_us),
            ("90s", now_us - 90_000_000),
            ("60m", DAY_US),
            ("1h", DAY_US),
            ("7d", now_us - 7 * 86_400_000_000),
        ] {
            assert_eq!(moment(text).map(|moment| moment.us(now_us)), Ok(expected), "{text}");
        }
        for text in ["", "10", "m", "10x", "-1h", "+1h", "1.5h", "1 h", "yesterday", "2026-11-31", "10:00", "99999999d"]
        {
            assert!(moment(text).is_err_and(|error| error.starts_with("expected a time such as ")), "{text}");
        }
    }

    #[test]
    fn times_and_spans_are_told_in_few_characters() {
        assert_eq!(to_the_second(DAY_US + 3_723_999_999), "2026-11-21 01:02:03Z");
        assert_eq!(to_the_second(-1), "1969-12-31 23:59:59Z");
        assert_eq!(to_the_second(i64::MAX), "-");
        assert_eq!(rfc3339(DAY_US + 42).as_deref(), Some("2026-11-21T00:00:00.000042Z"));
        assert_eq!(rfc3339(i64::MAX), None);
        for (us, expected) in [
            (0, "0ms"),
            (999_999, "999ms"),
            (1_000_000, "1.00s"),
            (12_345_678, "12.34s"),
            (307_000_000, "5m07s"),
            (11_100_000_000, "3h05m"),
            (187_200_000_000, "2d04h"),
        ] {
            assert_eq!(span(us), expected);
        }
    }
}
