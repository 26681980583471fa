//! Sums of money, exact: the costs of exchanges come as decimal texts, and floating point would make their sum depend
//! on the order in which they are added.

use std::fmt;
use std::str::FromStr;

/// Decimal places: those of the price table.
const PLACES: usize = 24;
/// Units of one dollar.
const DOLLAR: u128 = 10_u128.pow(24);

/// US dollars, 0 or more, in units of 10⁻²⁴. Room for 340,282,366,920,938 dollars; a sum beyond that stays there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(u128);

/// The text is not a plain decimal number of at most 24 places that has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no amount: a plain decimal number of at most {places} places is expected", places = PLACES)]
pub struct NotUsd;

impl Usd {
    /// Adds what another amount holds.
    pub fn add(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

impl FromStr for Usd {
    type Err = NotUsd;

    fn from_str(text: &str) -> Result<Self, NotUsd> {
        units(text).map(Self).ok_or(NotUsd)
    }
}

fn units(text: &str) -> Option<u128> {
    let (whole, places) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some((whole, places)) => (whole, places),
        None => (text, ""),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // The standard parser would take a sign as well.
    if !is_digits(whole) || !is_digits(places) {
        return None;
    }
    let missing = u32::try_from(PLACES.checked_sub(places.len())?).ok()?;
    let dollars = whole.parse::<u128>().ok()?.checked_mul(DOLLAR)?;
    let rest = if places.is_empty() { 0 } else { places.parse::<u128>().ok()? };
    dollars.checked_add(rest.checked_mul(10_u128.checked_pow(missing)?)?)
}

/// A plain decimal number without trailing zeros.
impl fmt::Display for Usd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dollars = self.0.checked_div(DOLLAR).unwrap_or(0);
        let rest = self.0.saturating_sub(dollars.saturating_mul(DOLLAR));
        if rest == 0 {
            return write!(formatter, "{dollars}");
        }
        let places = format!("{rest:0PLACES$}");
        write!(formatter, "{dollars}.{}", places.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_plain_decimal_texts() {
        for (text, units) in [
            ("0", 0),
            ("1", DOLLAR),
            ("0.000000000000000000000001", 1),
            ("0.0000048", 4_800_000_000_000_000_000),
            ("12.5", 12 * DOLLAR + DOLLAR / 2),
            ("340282366920938.463463374607431768211455", u128::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Usd(units)), "{text}");
            assert_eq!(Usd(units).to_string(), text);
        }
        for (text, same) in [("0.10", "0.1"), ("007", "7"), ("1.0", "1")] {
            assert_eq!(text.parse::<Usd>().unwrap().to_string(), same);
        }
        for text in [
            "",
            ".",
            ".5",
            "5.",
            "-1",
            "+1",
            "1e3",
            " 1",
            "1,5",
            "1.5.5",
            "0.0000000000000000000000001",
            "340282366920938.463463374607431768211456",
            "340282366920939",
        ] {
            assert_eq!(text.parse::<Usd>(), Err(NotUsd), "{text}");
        }
    }

    #[test]
    fn a_sum_without_room_stays_at_the_most() {
        let mut sum = Usd(u128::MAX - 1);
        sum.add(Usd(DOLLAR));
        assert_eq!(sum, Usd(u128::MAX));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_sums_are_exact(amounts in prop::collection::vec(any::<u64>(), 0..20)) {
            let mut sum = Usd::default();
            for amount in &amounts {
                let amount = Usd(u128::from(*amount));
                prop_assert_eq!(amount.to_string().parse(), Ok(amount));
                sum.add(amount);
            }
            prop_assert_eq!(sum, Usd(amounts.iter().copied().map(u128::from).sum()));
        }
    }
}
