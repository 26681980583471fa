//! `llm-proxy events tail`

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use llm_proxy_plugins::event::{Exchange, append_json_line};

use super::Output;
use super::line::{head, line};
use super::log::{self, Log};
use super::moment::{Moment, moment, now_us};
use super::paint::Paint;
use super::pretty::for_terminal;
use super::range::Range;
use super::selection::{FILTERS, Selection};

/// Between two looks at the journal: short for a person who watches.
const POLL: Duration = Duration::from_millis(100);
/// Events shown where nobody says how many, nor since when.
const LAST: usize = 10;
/// Records looked at first, for the last few that fit. Where they do not suffice, ever more of those before them.
const FIRST_LOOK: u64 = 4_096;
const NEXT_LOOK_TIMES: u64 = 8;

#[derive(Args)]
pub(super) struct TailArgs {
    /// Begin with the last N that fit [default: 10, or all with --since]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,

    /// End when everything is shown that there is now
    #[arg(long)]
    no_follow: bool,

    /// One line for people, or each record as a JSON object for scripts
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table)]
    output: Output,

    /// From this time on: 2026-11-21T10:00:00Z, 2026-11-21, or how long ago: 90s, 10m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = FILTERS)]
    since: Option<Moment>,

    /// Up to this time, without it
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = FILTERS)]
    until: Option<Moment>,

    #[command(flatten)]
    selection: Selection,
}

/// What is shown, and how.
struct View<'a> {
    selection: &'a Selection,
    range: Range,
    output: Output,
    paint: Paint,
    is_terminal: bool,
}

impl View<'_> {
    fn has(&self, time_us: i64, exchange: &Exchange) -> bool {
        self.range.has(time_us) && self.selection.keeps(exchange)
    }

    fn write(&self, time_us: i64, exchange: &Exchange, out: &mut dyn Write) -> Result<()> {
        match self.output {
            Output::Table => writeln!(out, "{}", line(exchange, time_us, self.paint))?,
            Output::Json => {
                let mut json = Vec::new();
                append_json_line(exchange, &mut json);
                if self.is_terminal {
                    json = for_terminal(&String::from_utf8_lossy(&json)).into_bytes();
                }
                json.push(b'\n');
                out.write_all(&json)?;
            }
        }
        Ok(())
    }
}

pub(super) fn run(args: &TailArgs, data_dir: &Path, out: &mut dyn Write) -> Result<()> {
    let range = Range::new(args.since, args.until)?;
    let log = Log::open(data_dir)?;
    let view = View {
        selection: &args.selection,
        range,
        output: args.output,
        paint: Paint::of_stdout(),
        is_terminal: std::io::stdout().is_terminal(),
    };
    if view.output == Output::Table {
        writeln!(out, "{}", head(view.paint))?;
    }
    let last = log.position();
    match args.lines.or(if args.since.is_some() { None } else { Some(LAST) }) {
        Some(count) => {
            for (time_us, exchange) in newest(&log, last, count, &view)? {
                view.write(time_us, &exchange, out)?;
            }
        }
        None => {
            let mut written = Ok(());
            log.read(0, last, |record| {
                if range.has(record.time_us)
                    && let Some(exchange) = log::exchange(record)
                    && view.selection.keeps(&exchange)
                {
                    written = view.write(record.time_us, &exchange, out);
                }
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            written?;
        }
    }
    out.flush()?;
    if args.no_follow { Ok(()) } else { follow(&log, last, &view, out) }
}

/// The last `count` events that fit, up to the record `last`, oldest first.
fn newest(log: &Log, last: u64, count: usize, view: &View<'_>) -> Result<VecDeque<(i64, Exchange)>> {
    let mut found = VecDeque::new();
    if count == 0 {
        return Ok(found);
    }
    let mut records = FIRST_LOOK;
    loop {
        let after = last.saturating_sub(records);
        found.clear();
        let mut first = None;
        log.read(after, last, |record| {
            first.get_or_insert(record.seq);
            if let Some(exchange) = log::exchange(record).filter(|exchange| view.has(record.time_us, exchange)) {
                if found.len() == count {
                    found.pop_front();
                }
                found.push_back((record.time_us, exchange));
            }
            ControlFlow::Continue(())
        })?;
        // Nothing lies before the oldest record that is kept.
        let is_all = after == 0 || first.is_none_or(|first| first > after.saturating_add(1));
        if found.len() == count || is_all {
            break;
        }
        records = records.saturating_mul(NEXT_LOOK_TIMES);
    }
    Ok(found)
}

/// Shows what comes after the record `last`, until the range has ended.
fn follow(log: &Log, last: u64, view: &View<'_>, out: &mut dyn Write) -> Result<()> {
    let mut reader = log.reader(last);
    loop {
        // Looked at first, so that what was recorded before the end is shown.
        let is_over = view.range.is_before(now_us());
        while let Some(record) = reader.next_ref().context("DATA_DIR")? {
            if let Some(exchange) = log::exchange(&record).filter(|exchange| view.has(record.time_us, exchange)) {
                view.write(record.time_us, &exchange, out)?;
            }
        }
        out.flush()?;
        if is_over {
            return Ok(());
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use llm_proxy_plugins::event::Outcome;
    use llm_proxy_plugins::journal::{Journal, Kind, Options};
    use uuid::Uuid;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        tail: TailArgs,
    }

    /// A journal with this many exchanges, one in a hundred of them refused, a microsecond between them.
    fn journal(exchanges: i64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&dir.path().join("journal"), Options::default()).unwrap();
        for time_us in 0..exchanges {
            let id = Uuid::from_u128(u128::try_from(time_us).unwrap());
            let outcome = if time_us % 100 == 0 { Outcome::Refused } else { Outcome::Finished };
            let exchange = Exchange { id: id.to_string(), outcome: outcome.into(), ..Exchange::default() };
            journal.append(Kind::Begin, id, time_us, b"").unwrap();
            journal.append_message(Kind::End, id, time_us, &exchange).unwrap();
        }
        dir
    }

    fn tail(dir: &tempfile::TempDir, line: &str) -> Vec<u128> {
        let words = ["tail", "--no-follow", "--output", "json"].into_iter().chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).unwrap().tail;
        let mut out = Vec::new();
        run(&args, dir.path(), &mut out).unwrap();
        let id = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128()
        };
        String::from_utf8(out).unwrap().lines().map(id).collect()
    }

    #[test]
    fn the_last_ones_that_fit_are_found_however_far_back_they_are() {
        let dir = journal(10_000);
        assert_eq!(tail(&dir, ""), (9_990..10_000).collect::<Vec<_>>());
        assert_eq!(tail(&dir, "-n 0"), [] as [u128; 0]);
        assert_eq!(tail(&dir, "-n 3 --outcome refused"), [9_700, 9_800, 9_900]);
        assert_eq!(tail(&dir, "-n 99 --outcome refused"), (1..100).map(|it| it * 100).collect::<Vec<_>>());
        assert_eq!(tail(&dir, "-n 1000 --outcome refused").len(), 100);
        assert_eq!(tail(&dir, "-n 5 --outcome timeout"), [] as [u128; 0]);
        assert_eq!(tail(&dir, "-n 99999").len(), 10_000);
    }

    #[test]
    fn a_range_is_shown_whole_unless_somebody_says_how_many() {
        let dir = journal(100);
        let range = "--since 1970-01-01T00:00:00.000010Z --until 1970-01-01T00:00:00.000040Z";
        assert_eq!(tail(&dir, range), (10..40).collect::<Vec<_>>());
        assert_eq!(tail(&dir, &format!("{range} -n 2")), [38, 39]);
        assert_eq!(tail(&dir, "--since 1h"), [] as [u128; 0]);
        assert_eq!(tail(&dir, "--until 1970-01-01T00:00:00.000040Z"), (30..40).collect::<Vec<_>>());
    }

    #[test]
    fn what_has_a_past_end_is_not_followed() {
        let dir = journal(3);
        let args = Cli::try_parse_from(["tail", "--until", "1h"]).unwrap().tail;
        let mut out = Vec::new();
        run(&args, dir.path(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 4);
    }
}
