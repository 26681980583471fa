//! `llm-proxy events stats`

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use llm_proxy_plugins::journal::{Kind, RecordRef};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Output;
use super::log::Log;
use super::moment::{now_us, rfc3339, span, to_the_second};
use super::sinks::{self, SinkState};
use crate::manage::table::{columns, fields};
use crate::settings::Settings;

/// The ending of segments' names.
const SEGMENT: &str = "seg";

#[derive(Args)]
pub(super) struct StatsArgs {
    /// Tables for people, or one JSON object for scripts
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table)]
    output: Output,
}

/// What was counted from one end of the journal to the other.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    records: u64,
    /// Records that tell of something that is over.
    events: u64,
    first: Option<Mark>,
    last: Option<Mark>,
    /// Begun and not ended.
    open: HashSet<Uuid>,
    /// In the order of the sinks.
    behind: Vec<Behind>,
}

/// One record's place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    seq: u64,
    time_us: i64,
}

/// How far a sink is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Behind {
    events: u64,
    /// When the oldest of them was recorded.
    oldest_us: Option<i64>,
}

pub(super) fn run(args: &StatsArgs, settings: &Settings, out: &mut dyn Write) -> Result<()> {
    let log = Log::open(&settings.data_dir)?;
    // The cursors first: what is delivered in between is then counted as waiting, and never the other way round.
    let sinks = sinks::states(&settings.data_dir, &settings.sinks, log.id())?;
    let mut counts = Counts { behind: vec![Behind::default(); sinks.len()], ..Counts::default() };
    log.read(0, log.position(), |record| {
        counts.note(record, &sinks);
        ControlFlow::Continue(())
    })?;
    let (segments, bytes) = size(log.dir())?;
    let journal = Journal { path: log.dir().display().to_string(), id: log.id().to_owned(), segments, bytes };
    let shown = match args.output {
        Output::Table => table(&journal, &counts, &sinks, now_us()),
        Output::Json => format!("{}\n", object(&journal, &counts, &sinks, now_us())),
    };
    out.write_all(shown.as_bytes())?;
    out.flush()?;
    Ok(())
}

impl Counts {
    fn note(&mut self, record: &RecordRef<'_>, sinks: &[SinkState]) {
        let mark = Mark { seq: record.seq, time_us: record.time_us };
        self.records = self.records.saturating_add(1);
        self.first.get_or_insert(mark);
        self.last = Some(mark);
        if record.kind == Kind::Begin {
            self.open.insert(record.event_id);
            return;
        }
        self.open.remove(&record.event_id);
        self.events = self.events.saturating_add(1);
        for (behind, sink) in self.behind.iter_mut().zip(sinks) {
            if sink.cursor.is_none_or(|cursor| cursor < record.seq) {
                behind.events = behind.events.saturating_add(1);
                behind.oldest_us.get_or_insert(record.time_us);
            }
        }
    }
}

/// The journal's files.
struct Journal {
    path: String,
    id: String,
    segments: u64,
    bytes: u64,
}

fn size(dir: &Path) -> Result<(u64, u64)> {
    let at = || format!("{} cannot be read", dir.display());
    let (mut segments, mut bytes) = (0_u64, 0_u64);
    for entry in fs::read_dir(dir).with_context(at)? {
        let path = entry.with_context(at)?.path();
        if path.extension().is_some_and(|extension| extension == SEGMENT) {
            // One that was deleted in between is none.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            segments = segments.saturating_add(1);
            bytes = bytes.saturating_add(metadata.len());
        }
    }
    Ok((segments, bytes))
}

fn table(journal: &Journal, counts: &Counts, sinks: &[SinkState], now_us: i64) -> String {
    let mark = |mark: Option<Mark>| match mark {
        Some(Mark { seq, time_us }) => format!("{seq} at {}", to_the_second(time_us)),
        None => "-".to_owned(),
    };
    let mut shown = fields(&[
        ("journal", journal.path.clone()),
        ("id", journal.id.clone()),
        ("segments", journal.segments.to_string()),
        ("bytes", journal.bytes.to_string()),
        ("first record", mark(counts.first)),
        ("last record", mark(counts.last)),
        ("records", counts.records.to_string()),
        ("events", counts.events.to_string()),
        ("not ended", counts.open.len().to_string()),
    ]);
    let row = |(sink, behind): (&SinkState, &Behind)| {
        let name = if sink.is_configured { sink.name.clone() } else { format!("{} (not in the settings)", sink.name) };
        vec![
            name,
            sink.cursor.map_or_else(|| "-".to_owned(), |cursor| cursor.to_string()),
            behind.events.to_string(),
            behind.lag_us(now_us).map_or_else(|| "-".to_owned(), span),
            sink.dead_letters.to_string(),
            sink.served_by.as_ref().map_or_else(|| "nobody".to_owned(), |pid| format!("pid {pid}")),
        ]
    };
    let rows: Vec<_> = sinks.iter().zip(&counts.behind).map(row).collect();
    shown.push('\n');
    shown.push_str(&columns(&["SINK", "CURSOR", "EVENTS BEHIND", "LAG", "DEAD LETTERS", "SERVED BY"], &rows));
    shown
}

fn object(journal: &Journal, counts: &Counts, sinks: &[SinkState], now_us: i64) -> Value {
    let mark = |mark: Option<Mark>| mark.map(|mark| json!({"seq": mark.seq, "time": rfc3339(mark.time_us)}));
    let sink = |(sink, behind): (&SinkState, &Behind)| {
        json!({
            "name": sink.name,
            "is_configured": sink.is_configured,
            "cursor": sink.cursor,
            "lag_events": behind.events,
            // A float is exact far beyond the age of any event.
            "lag_seconds": behind.lag_us(now_us).map_or(0.0, |us| us as f64 / 1e6),
            "dead_letters": sink.dead_letters,
            "served_by_pid": sink.served_by.as_ref().and_then(|pid| pid.parse::<u64>().ok()),
        })
    };
    json!({
        "journal": {
            "path": journal.path,
            "id": journal.id,
            "segments": journal.segments,
            "bytes": journal.bytes,
            "first": mark(counts.first),
            "last": mark(counts.last),
            "records": counts.records,
            "events": counts.events,
            "not_ended": counts.open.len(),
        },
        "sinks": sinks.iter().zip(&counts.behind).map(sink).collect::<Vec<_>>(),
    })
}

impl Behind {
    /// Age of the oldest event that it has not passed; `None` where it has passed all.
    fn lag_us(&self, now_us: i64) -> Option<u64> {
        self.oldest_us.map(|oldest_us| u64::try_from(now_us.saturating_sub(oldest_us)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21T00:00:00Z.
    const DAY_US: i64 = 1_795_219_200_000_000;

    fn state(name: &str, cursor: Option<u64>) -> SinkState {
        SinkState { name: name.to_owned(), is_configured: true, cursor, dead_letters: 0, served_by: None }
    }

    fn counted(sinks: &[SinkState]) -> Counts {
        let mut counts = Counts { behind: vec![Behind::default(); sinks.len()], ..Counts::default() };
        for (seq, kind, id) in [(3, Kind::Begin, 1), (4, Kind::Begin, 2), (5, Kind::End, 1), (6, Kind::End, 3)] {
            let time_us = DAY_US + i64::try_from(seq).unwrap() * 1_000_000;
            let record = RecordRef { kind, seq, time_us, event_id: Uuid::from_u128(id), payload: &[] };
            counts.note(&record, sinks);
        }
        counts
    }

    #[test]
    fn a_sink_is_behind_by_the_events_after_its_cursor() {
        let sinks = [state("a", None), state("b", Some(5)), state("c", Some(6))];
        let counts = counted(&sinks);
        assert_eq!((counts.records, counts.events, counts.open.len()), (4, 2, 1));
        let behind: Vec<_> = counts.behind.iter().map(|it| (it.events, it.lag_us(DAY_US + 10_000_000))).collect();
        assert_eq!(behind, [(2, Some(5_000_000)), (1, Some(4_000_000)), (0, None)]);
    }

    #[test]
    fn what_is_shown_is_the_same_in_both_forms() {
        let mut sinks = [state("lunary", Some(5)), state("old", None)];
        sinks[0].served_by = Some("4711".to_owned());
        sinks[1].is_configured = false;
        sinks[1].dead_letters = 2;
        let counts = counted(&sinks);
        let journal = Journal { path: "data/journal".to_owned(), id: "an-id".to_owned(), segments: 2, bytes: 345 };
        let now_us = DAY_US + 10_000_000;
        let expected = "\
journal       data/journal
id            an-id
segments      2
bytes         345
first record  3 at 2026-11-21 00:00:03Z
last record   6 at 2026-11-21 00:00:06Z
records       4
events        2
not ended     1

SINK                       CURSOR  EVENTS BEHIND  LAG    DEAD LETTERS  SERVED BY
lunary                     5       1              4.00s  0             pid 4711
old (not in the settings)  -       2              5.00s  2             nobody
";
        assert_eq!(table(&journal, &counts, &sinks, now_us), expected);
        let shown = object(&journal, &counts, &sinks, now_us);
        assert_eq!(shown["journal"]["last"], json!({"seq": 6, "time": "2026-11-21T00:00:06.000000Z"}));
        assert_eq!(shown["journal"]["not_ended"], 1);
        let lunary = json!({
            "name": "lunary", "is_configured": true, "cursor": 5, "lag_events": 1, "lag_seconds": 4.0,
            "dead_letters": 0, "served_by_pid": 4711,
        });
        assert_eq!(shown["sinks"][0], lunary);
        assert_eq!(shown["sinks"][1]["cursor"], Value::Null);
    }
}
