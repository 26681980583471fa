//! System calls per exchange, counted by strace: what instructions in user space do not show.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::candidates::Lane;
use crate::child::command;
use crate::figures::{Figure, Table, set_ratios};
use crate::loads::{Amount, Kind, Load};

const WARM_UP: Amount = Amount { connections: 4, exchanges: 300 };
const AMOUNT: Amount = Amount { connections: 4, exchanges: 1_000 };
const ATTACH_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Measures every lane under the JSON load.
///
/// # Errors
/// When strace is missing or may not look.
pub async fn measure(lanes: &[&Lane], loads: &[Load], folder: &Path) -> Result<Table> {
    let mut figures = Vec::new();
    for load in loads.iter().filter(|load| load.kind == Kind::Json) {
        for lane in lanes {
            eprintln!("syscalls: {}, {}", load.kind.name(), lane.name);
            figures.push(count(lane, load, folder).await?);
        }
    }
    set_ratios(&mut figures);
    let title = "System calls per exchange (strace), work after the answer included".to_owned();
    Ok(Table { name: "syscalls", title, decimals: 2, figures })
}

async fn count(lane: &Lane, load: &Load, folder: &Path) -> Result<Figure> {
    let warmed = load.run(lane, WARM_UP).await?;
    let strace = Strace::attach(lane.pid, folder).await?;
    let outcome = load.run(lane, AMOUNT).await?;
    let calls = strace.detach()?;
    let per_exchange = |calls: u64| calls as f64 / outcome.exchanges as f64;
    let total = calls.values().fold(0_u64, |sum, calls| sum.saturating_add(*calls));
    let by_name: BTreeMap<&str, f64> =
        calls.iter().map(|(name, calls)| (name.as_str(), per_exchange(*calls))).collect();
    Ok(Figure {
        load: load.kind.name(),
        candidate: lane.name,
        value: per_exchange(total),
        spread: None,
        ratio: f64::NAN,
        errors: warmed.errors.saturating_add(outcome.errors),
        details: json!(by_name),
    })
}

/// A running strace.
struct Strace {
    process: std::process::Child,
    out: PathBuf,
}

impl Strace {
    async fn attach(pid: u32, folder: &Path) -> Result<Self> {
        let (out, log) = (folder.join("strace.out"), folder.join("strace.log"));
        let process = command("strace")
            .args(["-f", "-c", "-p", &pid.to_string(), "-o"])
            .arg(&out)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("strace cannot be run")?;
        let mut strace = Self { process, out };
        let began = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log)?;
            if said.contains(" attached") {
                return Ok(strace);
            }
            if strace.process.try_wait()?.is_some() || began.elapsed() > ATTACH_LIMIT {
                bail!("strace did not attach: {}", said.trim());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Lets go of the process and reads what was counted.
    fn detach(mut self) -> Result<BTreeMap<String, u64>> {
        // An interrupt makes it sum up. The shell has a `kill` where there is no program of that name.
        let pid = self.process.id().to_string();
        let status = command("sh").args(["-c", "kill -INT \"$0\"", &pid]).status().context("sh cannot be run")?;
        ensure!(status.success(), "strace could not be interrupted");
        self.process.wait()?;
        let text = std::fs::read_to_string(&self.out).context("strace counted nothing")?;
        let calls = calls(&text);
        ensure!(!calls.is_empty(), "strace counted nothing: {}", text.trim());
        Ok(calls)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the table of `strace -c`: share, seconds, µs per call, calls, errors where there were any, name.
fn calls(text: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = cells.last().filter(|name| (5..=6).contains(&cells.len()) && **name != "total")?;
        Some(((*name).to_owned(), cells.get(3)?.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_with_and_without_errors_and_the_total_is_left_out() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 57.78    0.005456        1818         3           poll
 24.20    0.002285           8       270         6 newfstatat
------ ----------- ----------- --------- --------- ----------------
100.00    0.009443          25       273         6 total
";
        let expected = [("newfstatat".to_owned(), 270), ("poll".to_owned(), 3)];
        assert_eq!(calls(text), BTreeMap::from(expected));
        assert!(calls("").is_empty());
    }
}
