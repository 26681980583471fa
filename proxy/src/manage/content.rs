//! `llm-proxy manage content …`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value};

use super::request::{Request, id};
use super::table::printable;
use super::view::View;

/// Files of many gibibytes may have to be written anew before it is answered.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Subcommand)]
pub(super) enum ContentCommand {
    /// Erase kept bodies for ever, wherever the server keeps them; records stay, with their numbers
    #[command(after_help = "\
Examples:
  llm-proxy manage content erase --project PROJECT_ID \\
    --before 2026-11-01T00:00:00Z
  llm-proxy manage content erase --event EVENT_ID --event EVENT_ID --yes")]
    Erase(EraseArgs),
}

#[derive(Args)]
pub(super) struct EraseArgs {
    /// Only of this project
    #[arg(long, value_name = "PROJECT_ID", value_parser = id)]
    project: Option<String>,
    /// Only of requests received before this moment, such as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// Only of this record; may be repeated, up to 1000 times
    #[arg(long = "event", value_name = "EVENT_ID", value_parser = id)]
    events: Vec<String>,
    /// Do not ask: for scripts
    #[arg(long)]
    yes: bool,
}

impl ContentCommand {
    /// Asks on the terminal before anything is erased.
    pub(super) fn request(self) -> anyhow::Result<Request> {
        let Self::Erase(args) = self;
        let what = args.what();
        let mut body = Map::new();
        if let Some(project) = args.project {
            body.insert("project_id".to_owned(), Value::from(project));
        }
        if let Some(before) = args.before {
            body.insert("before".to_owned(), Value::from(before));
        }
        if !args.events.is_empty() {
            body.insert("event_ids".to_owned(), Value::from(args.events));
        }
        if body.is_empty() {
            bail!("nothing to erase: name --project, --before, --event or several; all that is named must hold");
        }
        if !args.yes {
            confirm(&what)?;
        }
        let request = Request::new(Method::POST, "/manage/content/erase", View::Erased).with_body(body);
        Ok(Request { timeout: PATIENCE, ..request })
    }
}

impl EraseArgs {
    /// What is going to be erased, for the question.
    fn what(&self) -> String {
        let events = match self.events.len() {
            0 => "all records".to_owned(),
            1 => "one record".to_owned(),
            count => format!("{count} records"),
        };
        let project = self.project.as_ref().map_or_else(String::new, |project| format!(" of project {project}"));
        let before = self.before.as_ref().map_or_else(String::new, |before| format!(" from before {before}"));
        printable(&format!("{events}{project}{before}"))
    }
}

/// Returns if somebody at the terminal says yes.
fn confirm(what: &str) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("this erases for ever, and nobody can be asked here: add --yes if it is meant");
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "This erases the kept bodies of {what} for ever. Type yes to go on: ")?;
    stderr.flush()?;
    let mut line = String::new();
    stdin.read_line(&mut line).context("reading the answer")?;
    if line.trim() != "yes" {
        bail!("nothing was erased");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_says_what_is_going_to_be_erased() {
        for (project, before, events, expected) in [
            (Some("p"), None, 0, "all records of project p"),
            (None, Some("T"), 0, "all records from before T"),
            (None, None, 1, "one record"),
            (Some("p"), Some("T\u{1b}[2J"), 3, "3 records of project p from before T [2J"),
        ] {
            let (project, before) = (project.map(str::to_owned), before.map(str::to_owned));
            let args = EraseArgs { project, before, events: vec!["e".to_owned(); events], yes: false };
            assert_eq!(args.what(), expected);
        }
    }
}
