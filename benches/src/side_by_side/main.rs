//! What does llm-proxy with everything on cost, beside an empty Pingora proxy? Starts both on one CPU, the mock
//! provider and the load on another, and compares them in one run: on shared machines only ratios of one run hold.
//! README.md beside the package says how to read the answer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};

mod candidates;
mod child;
mod cpu;
mod figures;
mod instructions;
mod loads;
mod recording;
mod records;
mod syscalls;

use candidates::{Lane, Program, Proxy, Stage};
use figures::Table;
use loads::{Kind, Load};

const QUICK_ROUNDS: u32 = 3;

/// Compares what an exchange costs in llm-proxy, with everything on, and in an empty Pingora proxy
///
/// Without --cpu, --callgrind or --syscalls, it is --cpu. Fails when an exchange went wrong or left no record, never
/// because of a figure.
#[derive(Parser)]
#[command(name = "side-by-side")]
struct Arguments {
    /// Measure CPU time, all candidates live at once, in interleaved rounds
    #[arg(long)]
    cpu: bool,

    /// Count user instructions; needs valgrind
    #[arg(long)]
    callgrind: bool,

    /// Count system calls; needs strace and the right to trace
    #[arg(long)]
    syscalls: bool,

    /// Rounds of --cpu
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,

    /// Three rounds: for a first look
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,

    /// Write everything measured to a file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The CPU of the proxies
    #[arg(long, value_name = "N", default_value_t = 0)]
    proxy_cpu: usize,

    /// The CPU of the mock provider and the load
    #[arg(long, value_name = "N", default_value_t = 1)]
    load_cpu: usize,
}

fn main() -> ExitCode {
    match measured(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("side-by-side: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints. Whether every exchange was right.
fn measured(arguments: &Arguments) -> Result<bool> {
    if cfg!(debug_assertions) {
        eprintln!("side-by-side: this is a debug build; its figures say nothing about the product");
    }
    child::pin_self(arguments.load_cpu)?;
    // One thread is what one CPU can use.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(measure(arguments))?;

    println!("{}", found.heading());
    for table in &found.tables {
        println!("{}", table.text());
    }
    for complaint in &found.complaints {
        println!("WRONG: {complaint}");
    }
    if let Some(path) = &arguments.json {
        let mut text = serde_json::to_string_pretty(&found.json())?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(found.complaints.is_empty())
}

/// Everything that came out.
struct Found {
    loads: Vec<Load>,
    tables: Vec<Table>,
    complaints: Vec<String>,
    machine: String,
}

async fn measure(arguments: &Arguments) -> Result<Found> {
    let machine = machine();
    let stage = Stage::set(arguments.proxy_cpu, arguments.load_cpu).await?;
    let mut loads = Vec::new();
    for kind in Kind::ALL {
        loads.push(Load::new(kind, &stage).await?);
    }
    let mut tables = Vec::new();
    let mut complaints = Vec::new();
    let wants_cpu = arguments.cpu || !(arguments.callgrind || arguments.syscalls);
    if wants_cpu || arguments.syscalls {
        let mut proxies = Vec::new();
        for program in Program::ALL {
            proxies.push(stage.start(program, &[]).await?);
        }
        let lanes: Vec<&Lane> = proxies.iter().flat_map(|proxy| &proxy.lanes).collect();
        if wants_cpu {
            let rounds = if arguments.quick { QUICK_ROUNDS } else { arguments.rounds };
            tables.push(cpu::measure(&lanes, &loads, rounds).await?);
        }
        if arguments.syscalls {
            tables.push(syscalls::measure(&lanes, &loads, stage.folder()).await?);
        }
        for proxy in &proxies {
            complaints.extend(missing_records(proxy)?);
        }
    }
    if arguments.callgrind {
        let counted = instructions::measure(&stage, &loads).await?;
        tables.extend(counted.tables);
        complaints.extend(counted.complaints);
    }
    for table in tables.iter().filter(|table| table.errors() > 0) {
        complaints.push(format!("{}: {} exchanges failed or had other bytes", table.name, table.errors()));
    }
    Ok(Found { loads, tables, complaints, machine })
}

/// Says so if the books of a proxy do not show exactly the exchanges it was asked for.
fn missing_records(proxy: &Proxy) -> Result<Option<String>> {
    let Some(records) = proxy.lanes.iter().find_map(|lane| lane.records.as_ref()) else { return Ok(None) };
    let (found, expected) = (records.found()?, records.expected());
    Ok((found != expected).then(|| format!("events.jsonl has {found} lines after {expected} exchanges")))
}

/// Processor, kernel and load: what a figure was measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let load = read("/proc/loadavg");
    let load = load.split_ascii_whitespace().next().unwrap_or("?");
    format!("{model}, Linux {}, load {load} at the start", read("/proc/sys/kernel/osrelease").trim())
}

impl Found {
    fn heading(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        for load in &self.loads {
            text.push_str(&format!("  {}: {}\n", load.kind.name(), load.title()));
        }
        text
    }

    fn json(&self) -> Value {
        let loads: BTreeMap<&str, String> = self.loads.iter().map(|load| (load.kind.name(), load.title())).collect();
        let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
        json!({ "machine": self.machine, "loads": loads, "tables": tables, "complaints": self.complaints })
    }
}
