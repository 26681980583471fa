//! The harness of the whole-product scenarios: the real binary as a child process, a mock provider in this one, and a
//! client that sends and reads raw bytes. Nothing here knows the product's code; what it knows is what stands in the
//! public contract: settings, admin API, records, headers.
//!
//! A harness that cannot go on panics: that is a failed test. Nothing waits for ever, see [`PATIENCE`].

use std::time::Duration;

mod admin;
mod ask;
mod fixtures;
pub mod foreign;
mod full;
pub mod h1_cases;
pub mod h1_client;
pub mod h1_mutants;
pub mod h1_readers;
pub mod h1_upstream;
mod product;
mod raw;
mod refused;
pub mod tls;
mod world;
pub mod ws;
mod ws_frames;
pub mod ws_plain;
pub mod ws_provider;

pub use admin::{Admin, Told};
pub use ask::{Ask, Provider};
pub use fixtures::{Fixture, fixture, fixtures};
pub use full::FullListener;
pub use product::{Finished, Product, ProductOptions, binary, run_binary};
pub use raw::{Answer, Ended, Head, Raw};
pub use refused::{Refused, is_uuid_v7};
pub use world::{Token, World};

/// The longest silence that is no hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks again and again until there is something, and returns it.
///
/// # Panics
/// When `within` passes first; `what` says what did not happen.
pub async fn eventually<T>(within: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(within, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("not within {within:?}: {what}"))
}

/// The sum of a metric's samples that carry all these labels, from a Prometheus text; 0 without any.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (found, rest) = sample.split_once('{').unwrap_or((sample, ""));
            let carries = |(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
            (found == name && labels.iter().all(carries)).then(|| value.parse::<f64>().ok()).flatten()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_samples() {
        let text = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na_total 9\n";
        assert_eq!(metric(text, "a", &[("x", "1")]), 7.0);
        assert_eq!(metric(text, "a", &[("y", "3")]), 4.0);
        assert_eq!(metric(text, "a_total", &[]), 9.0);
        assert_eq!(metric(text, "b", &[]), 0.0);
    }
}
