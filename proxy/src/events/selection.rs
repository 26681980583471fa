//! Which events are meant: the filters that several commands share.

use clap::Args;
use llm_proxy_core::policy::Glob;
use llm_proxy_plugins::event::{EventType, Exchange, Outcome};

/// Heads the filters.
pub(super) const FILTERS: &str = "Filters (repeat them, or put commas between values)";

/// Fewer characters would fit too many ids.
const LEAST_OF_AN_ID: usize = 8;

/// Filters. One that is not given lets everything pass; of one with several values, any may fit.
#[derive(Args, Debug, Default)]
pub(super) struct Selection {
    /// Of this project: its id, or the end of it as tail shows it
    #[arg(long, value_name = "PROJECT_ID", value_delimiter = ',', value_parser = id, help_heading = FILTERS)]
    project: Vec<String>,
    /// Of this token: its id, or the end of it as tail shows it
    #[arg(long, value_name = "TOKEN_ID", value_delimiter = ',', value_parser = id, help_heading = FILTERS)]
    token: Vec<String>,
    /// At this API
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = FILTERS)]
    api: Vec<String>,
    /// Of models that fit; * is any run of characters
    #[arg(long, value_name = "GLOB", value_delimiter = ',', value_parser = glob, help_heading = FILTERS)]
    model: Vec<Glob>,
    /// That ended so: finished, refused, client_gone, upstream_unreachable, upstream_cut, timeout, revoked, over_budget,
    /// shed or unknown
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = outcome, help_heading = FILTERS)]
    outcome: Vec<Outcome>,
    /// With this status, or one of this class: 429, 4xx
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = status, help_heading = FILTERS)]
    status: Vec<Status>,
    /// Only exchange, or only admin: what administrators did
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = kind, help_heading = FILTERS)]
    kind: Vec<EventType>,
}

/// What `--status` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// This one.
    One(u32),
    /// Hundreds.
    Class(u32),
}

impl Selection {
    /// Whether the event is meant.
    pub(super) fn keeps(&self, exchange: &Exchange) -> bool {
        let model = exchange.model.as_ref().or(exchange.model_requested.as_ref());
        let status = |wanted: &Status| match (wanted, exchange.status) {
            (Status::One(one), Some(status)) => *one == status,
            (Status::Class(class), Some(status)) => *class == status / 100,
            (_, None) => false,
        };
        any(&self.project, |wanted| is_id(wanted, exchange.project_id.as_deref()))
            && any(&self.token, |wanted| is_id(wanted, exchange.token_id.as_deref()))
            && any(&self.api, |wanted| exchange.api.as_ref() == Some(wanted))
            && any(&self.model, |glob| model.is_some_and(|model| glob.matches(model)))
            && any(&self.outcome, |wanted| is_exchange(exchange) && *wanted == exchange.outcome())
            && any(&self.status, status)
            && any(&self.kind, |wanted| *wanted == exchange.r#type())
    }
}

/// An action of an administrator has no outcome.
fn is_exchange(exchange: &Exchange) -> bool {
    exchange.r#type() == EventType::Exchange
}

fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(fits)
}

/// Whether `found` is the id, or ends with it.
pub(super) fn is_id(wanted: &str, found: Option<&str>) -> bool {
    found.is_some_and(|found| found.ends_with(wanted))
}

// What parsers say of a bad value ends the sentence "found …,".

/// An id, or the end of one.
pub(super) fn id(text: &str) -> Result<String, String> {
    let is_id = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if text.starts_with("sk-lp-") {
        return Err("expected the token's id, and this is the token itself; tail shows ids".to_owned());
    }
    if !is_id || text.len() < LEAST_OF_AN_ID {
        return Err(format!("expected an id, or at least its last {LEAST_OF_AN_ID} characters"));
    }
    Ok(text.to_ascii_lowercase())
}

fn glob(text: &str) -> Result<Glob, String> {
    if text.is_empty() { Err("expected a model, or a pattern such as gpt-4o*".to_owned()) } else { Ok(Glob::new(text)) }
}

fn outcome(text: &str) -> Result<Outcome, String> {
    let names = || Outcome::ALL.map(Outcome::name).join(", ");
    Outcome::ALL
        .into_iter()
        .find(|outcome| outcome.name() == text)
        .ok_or_else(|| format!("expected one of {}", names()))
}

fn kind(text: &str) -> Result<EventType, String> {
    let both = [EventType::Exchange, EventType::Admin];
    both.into_iter().find(|kind| kind.name() == text).ok_or_else(|| "expected exchange or admin".to_owned())
}

fn status(text: &str) -> Result<Status, String> {
    let class = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX"));
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let found = match class {
        Some(class) => number(class).filter(|class| (1..=5).contains(class)).map(Status::Class),
        None => number(text).filter(|status| (100..=599).contains(status)).map(Status::One),
    };
    found.ok_or_else(|| "expected a status such as 429, or a class such as 4xx".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        selection: Selection,
    }

    fn keeps(line: &str, exchange: &Exchange) -> bool {
        Cli::try_parse_from(std::iter::once("tail").chain(line.split_whitespace())).unwrap().selection.keeps(exchange)
    }

    #[test]
    fn an_event_is_kept_that_fits_every_filter_that_is_given() {
        let some = |text: &str| Some(text.to_owned());
        let exchange = Exchange {
            project_id: some("0199aa00-0000-7000-8000-0000aaaa0001"),
            token_id: some("0199aa00-0000-7000-8000-0000bbbb0002"),
            api: some("openai"),
            model_requested: some("gpt-4o"),
            model: some("gpt-4o-2024-08-06"),
            status: Some(429),
            outcome: Outcome::Finished.into(),
            ..Exchange::default()
        };
        let admin = Exchange { r#type: EventType::Admin.into(), ..Exchange::default() };
        for (line, of_exchange, of_admin) in [
            ("", true, true),
            ("--project aaaa0001", true, false),
            ("--project 0199aa00-0000-7000-8000-0000AAAA0001", true, false),
            ("--project 0199aa00", false, false),
            ("--token aaaa0001", false, false),
            ("--token aaaa0001,bbbb0002", true, false),
            ("--api openai --model gpt-4o-*", true, false),
            ("--api openai --model claude*", false, false),
            ("--model claude* --model gpt*", true, false),
            ("--model gpt-4o", false, false),
            ("--outcome finished", true, false),
            ("--outcome unknown", false, false),
            ("--status 429", true, false),
            ("--status 5xx,4xx", true, false),
            ("--status 428", false, false),
            ("--type admin", false, true),
            ("--type exchange", true, false),
        ] {
            assert_eq!((keeps(line, &exchange), keeps(line, &admin)), (of_exchange, of_admin), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_is_expected() {
        for (line, expected) in [
            ("--project 123", "at least its last 8 characters"),
            ("--token sk-lp-0123456789", "this is the token itself"),
            ("--outcome done", "expected one of unknown, finished"),
            ("--status 99", "a class such as 4xx"),
            ("--status 6xx", "a class such as 4xx"),
            ("--status +4xx", "a class such as 4xx"),
            ("--type all", "expected exchange or admin"),
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("tail").chain(line.split_whitespace()));
            let error = parsed.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
