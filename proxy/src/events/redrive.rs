//! `llm-proxy events redrive`

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use llm_proxy_plugins::dispatcher::dead_letters::{self, DeadLetter};
use llm_proxy_plugins::dispatcher::{Filter, send_all};
use uuid::Uuid;

use super::progress::Progress;
use super::sending;
use crate::manage::table::printable;
use crate::served::sink_tls;
use crate::settings::Settings;

#[derive(Args)]
pub(super) struct RedriveArgs {
    /// Whose dead letters
    #[arg(long, value_name = "NAME")]
    sink: String,

    /// Only those whose reason contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
}

impl RedriveArgs {
    fn takes(&self, letter: &DeadLetter) -> bool {
        letter.event.is_some() && self.reason.as_ref().is_none_or(|reason| letter.reason.contains(reason))
    }
}

/// Sends the letters that are wanted and takes out those that arrived. Fails where one of them is refused again.
pub(super) fn run(args: &RedriveArgs, settings: &Settings, out: &mut dyn Write) -> Result<ExitCode> {
    let sink = sending::find(&settings.sinks, &args.sink)?;
    let path = dead_letters::path(&settings.data_dir, &args.sink);
    let (mut total, mut last, mut unread) = (0_u64, None, None);
    for letter in letters(&path, &mut unread)?.filter(|letter| args.takes(letter)) {
        total = total.saturating_add(1);
        last = Some(letter);
    }
    readable(unread, &path)?;
    let Some(last) = last else {
        let such = if args.reason.is_some() { "no dead letters with such a reason" } else { "no dead letters" };
        eprintln!("`{}` has {such} that could be sent again", args.sink);
        return Ok(ExitCode::SUCCESS);
    };
    if args.dry_run {
        let reason = printable(&last.reason);
        writeln!(out, "{} would be sent to `{}` again; last reason: {reason}", sending::events(total), args.sink)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut job = sink.job(&sink_tls()?);
    // It was meant for the sink when it was given up; a filter that has changed since must not make it vanish.
    job.policy.filter = Filter::default();
    let mut unread = None;
    // Those that the sink refuses now may stand behind the others soon: who sends again wants an end.
    let most = usize::try_from(total).unwrap_or(usize::MAX);
    let chosen = letters(&path, &mut unread)?.filter(|letter| args.takes(letter)).take(most);
    let events = chosen.filter_map(|letter| letter.event);
    let mut progress = Progress::of(total);
    let mut arrived: HashSet<Uuid> = HashSet::new();
    let mut refused_again = None;
    let sent = sending::block_on(send_all(&job, events, |step| {
        arrived.extend(step.arrived);
        refused_again = step.dead.last().map(|dead| dead.reason.clone()).or(refused_again.take());
        sending::show(&mut progress, &step);
    }))?;
    // Before anything is said of what went wrong: what has arrived must not be sent a third time.
    dead_letters::remove(&path, &arrived).with_context(|| format!("{} cannot be written", path.display()))?;
    sending::end(progress, &sent, &job.name)?;
    readable(unread, &path)?;
    match refused_again {
        Some(reason) => {
            eprintln!("{} refused again, and kept; last reason: {}", sending::events(sent.dead), printable(&reason));
            Ok(ExitCode::FAILURE)
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The letters of a file. What is no letter is passed over; what cannot be read ends them, and is left in `unread`.
fn letters<'a>(path: &Path, unread: &'a mut Option<io::Error>) -> Result<impl Iterator<Item = DeadLetter> + use<'a>> {
    let mut lines = dead_letters::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(std::iter::from_fn(move || {
        loop {
            match lines.next()? {
                Ok(letter) => return Some(letter),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => {
                    *unread = Some(error);
                    return None;
                }
            }
        }
    }))
}

fn readable(unread: Option<io::Error>, path: &Path) -> Result<()> {
    unread.map_or(Ok(()), Err).with_context(|| format!("{} cannot be read", path.display()))
}
