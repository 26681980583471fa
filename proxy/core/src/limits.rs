//! How much of a request quota one process may hold at a time, and what a rate allows.

/// The largest lease: what a crash can cost a token at most.
pub const LARGEST_LEASE: u32 = 64;

/// How many requests to lease when `remaining` are left of a token's `max_requests`.
///
/// An eighth of what remains, at least 1, at most [`LARGEST_LEASE`]: early on a lease saves most store writes, and
/// near the end leases shrink to single requests, so that several processes can use the last ones. 0 when nothing is left.
pub fn lease_size(remaining: u64) -> u32 {
    if remaining == 0 {
        return 0;
    }
    u32::try_from((remaining / 8).clamp(1, u64::from(LARGEST_LEASE))).unwrap_or(LARGEST_LEASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_an_eighth_of_what_remains_between_1_and_64() {
        for (remaining, expected) in
            [(0, 0), (1, 1), (8, 1), (15, 1), (16, 2), (80, 10), (512, 64), (10_000, 64), (u64::MAX, 64)]
        {
            assert_eq!(lease_size(remaining), expected, "{remaining} remaining");
        }
    }
}
