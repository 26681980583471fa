//! Deadlines, for the clocks that rule an exchange.

use std::time::Duration;

use tokio::time::Instant;

/// A wait longer than anybody's patience: what a deadline becomes that the clock cannot represent.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The moment so long after another. Never overflows.
pub fn after(from: Instant, wait: Duration) -> Instant {
    from.checked_add(wait).or_else(|| from.checked_add(FOR_EVER)).unwrap_or(from)
}

/// The earlier of a deadline and one that need not exist.
pub fn earlier(deadline: Instant, other: Option<Instant>) -> Instant {
    other.map_or(deadline, |other| other.min(deadline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_is_too_long() {
        let now = Instant::now();
        assert_eq!(after(now, Duration::from_secs(1)), now + Duration::from_secs(1));
        assert!(after(now, Duration::MAX) > now);
        assert_eq!(earlier(now, None), now);
    }
}
