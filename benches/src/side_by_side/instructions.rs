//! User instructions per exchange, counted by callgrind: the figure that repeats to a quarter of a percent on a busy
//! machine, and so the one to compare two versions by. It does not see the kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::candidates::{Lane, Program, Stage};
use crate::child::command;
use crate::figures::{Figure, Table, set_ratios};
use crate::loads::{Amount, Kind, Load};
use crate::recording;

/// Paced streams are left out: callgrind slows the proxy fifty times, and the pace with it.
fn amounts(kind: Kind) -> Option<(Amount, Amount)> {
    let of = |exchanges| Amount { connections: 4, exchanges };
    match kind {
        Kind::Json => Some((of(300), of(1_000))),
        Kind::StreamBurst => Some((of(40), of(200))),
        Kind::PacedStreams => None,
    }
}

/// What was counted.
pub struct Counted {
    /// All instructions, and those among them that the records take.
    pub tables: [Table; 2],
    /// Why the second table is not to be trusted.
    pub complaints: Vec<String>,
}

/// Measures every candidate, one process after the other.
///
/// # Errors
/// When valgrind is missing or its answer is not understood.
pub async fn measure(stage: &Stage, loads: &[Load]) -> Result<Counted> {
    let (mut figures, mut of_records) = (Vec::new(), Vec::new());
    let mut complaints = Vec::new();
    for program in Program::ALL {
        let callgrind = Callgrind::new(stage.folder(), program.name());
        eprintln!("callgrind: {} starts", program.name());
        let proxy = stage.start(program, &callgrind.wrapper()).await?;
        let mut dumps = 0_u32;
        for load in loads {
            let Some((warm_up, amount)) = amounts(load.kind) else { continue };
            for lane in &proxy.lanes {
                eprintln!("callgrind: {}, {}", load.kind.name(), lane.name);
                dumps = dumps.saturating_add(1);
                let (figure, dump) = count(&callgrind, lane, load, warm_up, amount, dumps).await?;
                if lane.records.is_some() {
                    let (of_record, complaint) = recording::figure(&figure, &dump)?;
                    of_records.push(of_record);
                    complaints.extend(complaint);
                }
                figures.push(figure);
            }
        }
    }
    // By load, as the other tables are; within a load the order stays.
    for figures in [&mut figures, &mut of_records] {
        figures.sort_by_key(|figure| Kind::ALL.iter().position(|kind| kind.name() == figure.load));
    }
    set_ratios(&mut figures);
    let title = "User instructions per exchange (callgrind), work after the answer included".to_owned();
    let all = Table { name: "instructions", title, decimals: 0, figures };
    Ok(Counted { tables: [all, recording::table(of_records)], complaints })
}

async fn count(
    callgrind: &Callgrind,
    lane: &Lane,
    load: &Load,
    warm_up: Amount,
    amount: Amount,
    dump: u32,
) -> Result<(Figure, String)> {
    let warmed = load.run(lane, warm_up).await?;
    callgrind.order(lane.pid, "zero")?;
    let outcome = load.run(lane, amount).await?;
    callgrind.order(lane.pid, "dump")?;
    let dump = callgrind.dump(dump)?;
    let instructions = summary(&dump)?;
    let figure = Figure {
        load: load.kind.name(),
        candidate: lane.name,
        value: instructions as f64 / outcome.exchanges as f64,
        spread: None,
        ratio: f64::NAN,
        errors: warmed.errors.saturating_add(outcome.errors),
        details: json!({ "instructions": instructions, "exchanges": outcome.exchanges }),
    };
    Ok((figure, dump))
}

/// One process under callgrind.
struct Callgrind {
    prefix: OsString,
    out: PathBuf,
}

impl Callgrind {
    fn new(folder: &Path, name: &str) -> Self {
        let mut prefix = OsString::from("--vgdb-prefix=");
        prefix.push(folder.join("vgdb"));
        Self { prefix, out: folder.join(format!("{name}.callgrind")) }
    }

    fn wrapper(&self) -> [OsString; 4] {
        let mut out = OsString::from("--callgrind-out-file=");
        out.push(&self.out);
        ["valgrind".into(), "--tool=callgrind".into(), self.prefix.clone(), out]
    }

    /// Has the process set its counters to zero, or write them down. Returns when that is done.
    fn order(&self, pid: u32, order: &str) -> Result<()> {
        let output = command("vgdb").arg(&self.prefix).arg(format!("--pid={pid}")).arg(order).output();
        let output = output.context("vgdb (package valgrind) cannot be run")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "callgrind did not take the order {order}: {}", complaint.trim());
        Ok(())
    }

    fn dump(&self, dump: u32) -> Result<String> {
        let mut path = self.out.clone().into_os_string();
        path.push(format!(".{dump}"));
        let path = PathBuf::from(path);
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    }
}

/// The sum over all threads since the counters were zero. Not `totals`: those also hold what calls running at that
/// moment had cost before it.
fn summary(dump: &str) -> Result<u64> {
    let stated = dump.lines().find_map(|line| line.strip_prefix("summary:")?.trim().parse().ok());
    stated.context("callgrind's dump states no summary")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_not_the_totals() {
        let dump = "# callgrind format\nversion: 1\nevents: Ir\nsummary: 902625\n\nfn=(1)\n1 2\ntotals: 2926758\n";
        assert_eq!(summary(dump).unwrap(), 902_625);
        assert!(summary("totals: 1\n").is_err());
    }
}
