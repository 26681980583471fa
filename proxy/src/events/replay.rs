//! `llm-proxy events replay`

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use clap::Args;
use llm_proxy_plugins::dispatcher::{Event, dead_letters, send_all};
use llm_proxy_plugins::journal::{JournalError, RecordRef};
use llm_proxy_plugins::sinks::SinkSettings;

use super::log::{self, Log};
use super::moment::{Moment, moment, to_the_second};
use super::progress::Progress;
use super::range::Range;
use super::selection::{FILTERS, Selection};
use super::sending;
use crate::served::sink_tls;
use crate::settings::Settings;

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Where they are sent
    #[arg(long, value_name = "NAME")]
    sink: String,

    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,

    /// From this time on: 2026-11-21T10:00:00Z, 2026-11-21, or how long ago: 90s, 10m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = FILTERS)]
    since: Moment,

    /// Up to this time, without it [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = FILTERS)]
    until: Option<Moment>,

    #[command(flatten)]
    selection: Selection,
}

/// Which events are sent.
struct Chosen<'a> {
    range: Range,
    selection: &'a Selection,
    sink: &'a SinkSettings,
}

impl Chosen<'_> {
    fn event(&self, record: &RecordRef<'_>) -> Option<Event> {
        // Most records are told by their time alone, without a look into them.
        let event = if self.range.has(record.time_us) { log::event(record)? } else { return None };
        let is_wanted = self.selection.keeps(&event.exchange);
        // What the sink's own filter leaves out, the sink may not even understand.
        (is_wanted && self.sink.policy.filter.keeps(event.id, &event.exchange)).then_some(event)
    }
}

/// How many there are, and when the first and the last of them were recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    events: u64,
    first_us: i64,
    last_us: i64,
}

pub(super) fn run(args: &ReplayArgs, settings: &Settings, out: &mut dyn Write) -> Result<()> {
    let sink = sending::find(&settings.sinks, &args.sink)?;
    let range = Range::new(Some(args.since), args.until)?;
    let log = Log::open(&settings.data_dir)?;
    let chosen = Chosen { range, selection: &args.selection, sink };
    // What is recorded from now on, the sink gets anyway.
    let last = log.position();
    let count = count(&log, last, &chosen)?;
    let Count { events: total, first_us, last_us } = count;
    if total == 0 {
        eprintln!("there is no such event in {}", log.dir().display());
        return Ok(());
    }
    if args.dry_run {
        let (first, last) = (to_the_second(first_us), to_the_second(last_us));
        writeln!(out, "{} from {first} to {last} would be sent to `{}`", sending::events(total), sink.name)?;
        out.flush()?;
        return Ok(());
    }
    send(&log, last, &chosen, total, settings)
}

fn count(log: &Log, last: u64, chosen: &Chosen<'_>) -> Result<Count> {
    let mut count = Count::default();
    log.read(0, last, |record| {
        if chosen.event(record).is_some() {
            if count.events == 0 {
                count.first_us = record.time_us;
            }
            count.events = count.events.saturating_add(1);
            count.last_us = record.time_us;
        }
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

fn send(log: &Log, last: u64, chosen: &Chosen<'_>, total: u64, settings: &Settings) -> Result<()> {
    let job = chosen.sink.job(&sink_tls()?);
    let mut reader = log.reader(0);
    let mut unread: Option<JournalError> = None;
    let events = std::iter::from_fn(|| {
        loop {
            match reader.next_ref() {
                Ok(Some(record)) if record.seq <= last => {
                    if let Some(event) = chosen.event(&record) {
                        return Some(event);
                    }
                }
                Ok(_) => return None,
                Err(error) => {
                    unread = Some(error);
                    return None;
                }
            }
        }
    });
    let mut progress = Progress::of(total);
    let mut put_aside = Ok(());
    let sent = sending::block_on(send_all(&job, events, |step| {
        sending::show(&mut progress, &step);
        if !step.dead.is_empty() && put_aside.is_ok() {
            // As the dispatcher does with what a sink refuses.
            put_aside = dead_letters::put_aside(&settings.data_dir, &job.name, &log.feed(), step.dead.to_vec());
        }
    }))?;
    put_aside.context("DATA_DIR")?;
    sending::end(progress, &sent, &job.name)?;
    match unread {
        Some(error) => Err(error).context("DATA_DIR: the rest was not sent"),
        None => Ok(()),
    }
}
