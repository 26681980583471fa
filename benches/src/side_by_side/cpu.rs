//! CPU time per exchange, in the kernel's books: user and system time of all threads, in nanoseconds. Rates and
//! latencies say less: a closed loop whose generator shares the machine understates whoever is fast.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::candidates::{BASELINE, Lane};
use crate::figures::{Figure, Table, median, relative_mad};
use crate::loads::{Amount, Kind, Load};

/// A measurement is repeated when a thread ended in it; after that many times something is wrong.
const TRIES: u32 = 5;

/// Nanoseconds on a CPU by thread.
#[derive(Debug, PartialEq, Eq)]
struct Reading(BTreeMap<u32, u64>);

impl Reading {
    /// Reads `/proc/PID/task/*/schedstat`; a thread that ends meanwhile is left out.
    fn of(pid: u32) -> io::Result<Self> {
        let mut by_thread = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(text) = std::fs::read_to_string(entry.path().join("schedstat")) else { continue };
            let on_cpu = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
            let missing = || io::Error::other("schedstat has no number: the kernel does not keep it");
            by_thread.insert(thread, on_cpu.ok_or_else(missing)?);
        }
        if by_thread.is_empty() {
            return Err(io::Error::other("no thread has a schedstat: the kernel does not keep it"));
        }
        Ok(Self(by_thread))
    }

    /// Nanoseconds since an earlier reading. `None` if a thread ended: what it used is known to nobody.
    fn since(&self, earlier: &Self) -> Option<u64> {
        let all_live = earlier.0.keys().all(|thread| self.0.contains_key(thread));
        let total = |reading: &Self| reading.0.values().fold(0_u64, |sum, ns| sum.saturating_add(*ns));
        all_live.then(|| total(self).saturating_sub(total(earlier)))
    }
}

/// How much of each kind makes one sample: about half a second of the proxy's CPU.
const fn amount(kind: Kind) -> Amount {
    match kind {
        Kind::Json => Amount { connections: 16, exchanges: 10_000 },
        Kind::PacedStreams => Amount { connections: 100, exchanges: 300 },
        Kind::StreamBurst => Amount { connections: 16, exchanges: 1_600 },
    }
}

const fn warm_up(kind: Kind) -> Amount {
    match kind {
        Kind::Json => Amount { connections: 16, exchanges: 3_000 },
        Kind::PacedStreams => Amount { connections: 100, exchanges: 100 },
        Kind::StreamBurst => Amount { connections: 16, exchanges: 320 },
    }
}

struct Series<'a> {
    lane: &'a Lane,
    us: Vec<f64>,
    errors: u64,
}

/// Measures every lane under every load. Rounds are interleaved and each has the order of the one before reversed, so
/// that what changes on the machine meanwhile meets all alike.
///
/// # Errors
/// When a process cannot be measured.
pub async fn measure(lanes: &[&Lane], loads: &[Load], rounds: u32) -> Result<Table> {
    let mut figures = Vec::new();
    for load in loads {
        let mut series: Vec<Series<'_>> = lanes.iter().map(|lane| Series { lane, us: Vec::new(), errors: 0 }).collect();
        for one in &mut series {
            one.errors = load.run(one.lane, warm_up(load.kind)).await?.errors;
        }
        for round in 1..=rounds {
            eprintln!("cpu: {}, round {round} of {rounds}", load.kind.name());
            for one in &mut series {
                sample(one, load).await?;
            }
            series.reverse();
        }
        if !rounds.is_multiple_of(2) {
            series.reverse();
        }
        figures.extend(summed_up(load, &series)?);
    }
    let title = format!(
        "CPU time per exchange in µs, user and system; median of {rounds} rounds; ratio to {BASELINE}, median of the \
         rounds' own"
    );
    Ok(Table { name: "cpu_us", title, decimals: 1, figures })
}

async fn sample(series: &mut Series<'_>, load: &Load) -> Result<()> {
    let lane = series.lane;
    let reading = || Reading::of(lane.pid).with_context(|| format!("the CPU time of {} cannot be read", lane.name));
    for _ in 0..TRIES {
        let before = reading()?;
        let outcome = load.run(lane, amount(load.kind)).await?;
        let after = reading()?;
        series.errors = series.errors.saturating_add(outcome.errors);
        if let Some(ns) = after.since(&before) {
            series.us.push(ns as f64 / 1000.0 / outcome.exchanges as f64);
            return Ok(());
        }
    }
    bail!("a thread of {} ended in each of {TRIES} measurements", lane.name)
}

fn summed_up(load: &Load, series: &[Series<'_>]) -> Result<Vec<Figure>> {
    let baseline = series.iter().find(|one| one.lane.name == BASELINE).context("the baseline was not measured")?;
    let figure = |one: &Series<'_>| {
        let ratios: Vec<f64> = one.us.iter().zip(&baseline.us).map(|(own, base)| own / base).collect();
        Figure {
            load: load.kind.name(),
            candidate: one.lane.name,
            value: median(&one.us),
            spread: Some(relative_mad(&one.us)),
            ratio: median(&ratios),
            errors: one.errors,
            details: json!({ "rounds": one.us, "ratios": ratios }),
        }
    };
    Ok(series.iter().map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ended_makes_a_sample_void() {
        let reading = |threads: &[(u32, u64)]| Reading(threads.iter().copied().collect());
        let before = reading(&[(1, 100), (2, 50)]);
        for (after, expected) in [
            (&[(1, 150), (2, 50)][..], Some(50)),
            (&[(1, 150), (2, 50), (3, 7)], Some(57)),
            (&[(1, 150)], None),
            (&[(1, 150), (3, 90)], None),
        ] {
            assert_eq!(reading(after).since(&before), expected, "{after:?}");
        }
    }

    #[test]
    fn this_process_has_a_reading() {
        assert!(!Reading::of(std::process::id()).unwrap().0.is_empty());
    }
}
