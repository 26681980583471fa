//! How long to wait after a failure.
//!
//! Full jitter: any time between nothing and a bound that doubles with every failure. Many proxies that lost one
//! receiver together must not come back together, and of the known ways to spread them this one finishes soonest with
//! the fewest calls. What the receiver asks for in `Retry-After` (RFC 9110 §10.2.3) is the least that is waited.

use std::time::Duration;

/// The longest `Retry-After` that is honoured as it stands. A receiver that wants to be left alone for longer is asked
/// again after this, in case the wish was a mistake.
pub const LONGEST_ASKED: Duration = Duration::from_secs(3_600);

/// The bounds of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The bound after the first failure; above zero.
    pub first: Duration,
    /// Where the bound stops to grow; at least `first`.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row, from 1. `dice` is a number between 0 and 1.
    pub fn wait(&self, failures: u32, asked: Option<Duration>, dice: f64) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let bound = self.first.saturating_mul(doubled).min(self.longest);
        let drawn = Duration::try_from_secs_f64(bound.as_secs_f64() * dice.clamp(0.0, 1.0)).unwrap_or(bound);
        drawn.max(asked.unwrap_or_default().min(LONGEST_ASKED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_bound_doubles_up_to_the_longest_and_the_dice_choose_below_it() {
        let backoff = Backoff { first: ms(100), longest: ms(1_000) };
        for (failures, dice, expected) in [
            (1, 1.0, ms(100)),
            (1, 0.5, ms(50)),
            (1, 0.0, ms(0)),
            (2, 1.0, ms(200)),
            (4, 1.0, ms(800)),
            (5, 1.0, ms(1_000)),
            (40, 1.0, ms(1_000)),
            (u32::MAX, 1.0, ms(1_000)),
            (0, 1.0, ms(100)),
            (1, 7.0, ms(100)),
            (1, f64::NAN, ms(100)),
        ] {
            assert_eq!(backoff.wait(failures, None, dice), expected, "{failures} failures, dice {dice}");
        }
    }

    #[test]
    fn what_the_receiver_asks_for_is_the_least_that_is_waited() {
        let backoff = Backoff { first: ms(100), longest: ms(1_000) };
        for (asked, dice, expected) in [
            (ms(0), 0.5, ms(50)),
            (ms(30), 0.5, ms(50)),
            (ms(30_000), 0.5, ms(30_000)),
            (Duration::from_secs(86_400), 0.5, LONGEST_ASKED),
        ] {
            assert_eq!(backoff.wait(1, Some(asked), dice), expected, "asked for {asked:?}");
        }
    }
}
