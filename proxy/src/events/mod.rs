//! `llm-proxy events`: what the journal holds and what became of it, for people.
//!
//! Everything reads `DATA_DIR` and asks nobody, so it works while the server runs and when it does not. The journal is
//! never written here; what is sent again goes to one sink and moves no cursor.

mod dedupe;
mod line;
mod log;
mod moment;
mod paint;
mod pretty;
mod progress;
mod range;
mod redrive;
mod replay;
mod selection;
mod sending;
mod show;
pub(crate) mod sinks;
mod stats;
mod tail;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use llm_proxy_core::secret::Secret;

use crate::cli::GLOBAL;
use crate::settings::{Loaded, Purpose, Settings};

const EXAMPLES: &str = "\
All of it works on the files in DATA_DIR, on the machine where they are, while the server runs or not. Sinks are those \
of the settings that the server reads.

Examples:
  # What happens now, and what is going wrong
  llm-proxy events tail
  llm-proxy events tail --status 4xx,5xx --since 1h

  # All there is to know of one of them
  llm-proxy events show 0000cccc0003

  # How far each sink is behind, and what it would not take
  llm-proxy events stats

  # A sink lost a day: send it that day again
  llm-proxy events replay --sink lunary --since 2026-11-20 --until 2026-11-21

  # What a sink refused, once its settings are mended
  llm-proxy events redrive --sink lunary";

const TAIL_EXAMPLES: &str = "\
Colour needs a terminal; NO_COLOR in the environment switches it off. Times are UTC, of the moment that the event was \
recorded, which is the end of its exchange. Of ids, the last 8 characters are shown, and all commands take these for \
the id.

Examples:
  llm-proxy events tail
  llm-proxy events tail --outcome timeout,upstream_cut --model 'gpt-4o*'
  llm-proxy events tail --since 2026-11-20 --until 2026-11-21T08:30:00Z

  # For a script: records as events.jsonl has them
  llm-proxy events tail -n 1000 --no-follow --output json";

const SHOW_EXAMPLES: &str = "\
Example:
  llm-proxy events show 0199aa00-0000-7000-8000-0000cccc0003";

const STATS_EXAMPLES: &str = "\
Examples:
  llm-proxy events stats
  llm-proxy events stats --output json";

const REPLAY_EXAMPLES: &str = "\
Events keep their ids, so a receiver that knows them takes none twice. The sink's own filter holds. Its cursor stays \
where it is, and the server or dispatcher may go on serving it meanwhile.

Examples:
  # How many would that be?
  llm-proxy events replay --sink lunary --since 7d --model 'gpt-4o*' --dry-run

  llm-proxy events replay --sink lunary --since 2026-11-20 --until 2026-11-21";

const REDRIVE_EXAMPLES: &str = "\
A sink's dead letters are the events that it would not take: each is a line in sinks/NAME.dead.jsonl in DATA_DIR, with \
the reason. What it takes now leaves that file; the rest stays.

Examples:
  llm-proxy events redrive --sink lunary --dry-run
  llm-proxy events redrive --sink lunary --reason 413";

const DEDUPE_EXAMPLES: &str = "\
Sinks other than the file get every event at least once: after a crash one batch may come again, with the same ids. \
This takes the second ones out of what a receiver has written. Lines stay as they are, also those without an id.

Examples:
  llm-proxy events dedupe received-1.jsonl.gz received-2.jsonl
  llm-proxy events dedupe --in-place received.jsonl";

/// `llm-proxy events …`
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct EventsCommand {
    /// Where the server keeps its journal [env: DATA_DIR] [default: ./data]
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL)]
    data_dir: Option<String>,

    /// The YAML file, with the sinks [env: CONFIG] [default: llm-proxy.yaml if present]
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    config: Option<String>,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show events as they come, one a line
    #[command(after_help = TAIL_EXAMPLES)]
    Tail(Box<tail::TailArgs>),
    /// Show everything about one event
    #[command(after_help = SHOW_EXAMPLES)]
    Show(show::ShowArgs),
    /// Show what the journal holds, and how far each sink has come
    #[command(after_help = STATS_EXAMPLES)]
    Stats(stats::StatsArgs),
    /// Send a range of time to one sink again
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(Box<replay::ReplayArgs>),
    /// Send one sink's dead letters again
    #[command(after_help = REDRIVE_EXAMPLES)]
    Redrive(redrive::RedriveArgs),
    /// Remove lines with an id that an earlier line had
    #[command(after_help = DEDUPE_EXAMPLES)]
    Dedupe(dedupe::DedupeArgs),
}

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Reads the settings for a purpose, given flags that outrank the other layers.
pub type Load = fn(Purpose, Vec<(&'static str, Secret)>) -> anyhow::Result<Loaded>;

/// Does what was asked, and writes the answer to `out`.
///
/// # Errors
/// In one line, why it could not be done.
pub fn run(command: EventsCommand, load: Load, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let EventsCommand { data_dir, config, action } = command;
    let given = [("DATA_DIR", data_dir), ("CONFIG", config)];
    let flags: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, Secret::new(value?)))).collect();
    let settings = |purpose| -> anyhow::Result<Settings> { Ok(load(purpose, flags)?.settings) };
    let done = match action {
        Action::Tail(args) => tail::run(&args, &settings(Purpose::Look)?.data_dir, out).map(|()| ExitCode::SUCCESS),
        Action::Show(args) => show::run(&args, &settings(Purpose::Look)?.data_dir, out).map(|()| ExitCode::SUCCESS),
        Action::Stats(args) => stats::run(&args, &settings(Purpose::Look)?, out).map(|()| ExitCode::SUCCESS),
        Action::Replay(args) => replay::run(&args, &settings(Purpose::Serve)?, out).map(|()| ExitCode::SUCCESS),
        Action::Redrive(args) => redrive::run(&args, &settings(Purpose::Serve)?, out),
        // Its files may be anywhere: it needs no settings, and no mistake in them holds it up.
        Action::Dedupe(args) => dedupe::run(&args, out).map(|()| ExitCode::SUCCESS),
    };
    match done {
        // Who reads has enough: `head`, for one.
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
