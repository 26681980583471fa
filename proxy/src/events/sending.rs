//! What `replay` and `redrive` have in common: the sink, the words, and a runtime to send in.

use std::future::Future;

use anyhow::{Context, Result, bail};
use llm_proxy_plugins::dispatcher::{Health, Progress as Step, Sent};
use llm_proxy_plugins::sinks::{SinkSettings, SinksSettings};

use super::progress::Progress;
use super::sinks::FILE;
use crate::manage::table::printable;

/// The sink of that name.
pub(super) fn find<'a>(sinks: &'a SinksSettings, name: &str) -> Result<&'a SinkSettings> {
    if let Some(sink) = sinks.dispatched.iter().find(|sink| sink.name == name) {
        return Ok(sink);
    }
    let names: Vec<_> = sinks.dispatched.iter().map(|sink| sink.name.as_str()).collect();
    match (name == FILE && sinks.file.is_some(), names.is_empty()) {
        (true, _) => bail!("--sink: found \"{FILE}\", expected another sink: a file has each event once by itself"),
        (false, true) => {
            bail!("--sink: found {name:?}, expected one of the sinks in the settings file, which has none")
        }
        (false, false) => bail!("--sink: found {name:?}, expected one of the sinks {}", names.join(", ")),
    }
}

/// `1 event`, `2 events`.
pub(super) fn events(count: u64) -> String {
    format!("{count} event{}", if count == 1 { "" } else { "s" })
}

/// Runs what sends.
pub(super) fn block_on<T>(sending: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the runtime cannot be started")?;
    let done = runtime.block_on(sending);
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    Ok(done)
}

/// Shows one step.
pub(super) fn show(progress: &mut Progress, step: &Step<'_>) {
    progress.show(settled(step.sent), &note(step));
}

fn note(step: &Step<'_>) -> String {
    let trouble = match (step.health, step.reason) {
        (Health::Delivering, _) | (_, None) => String::new(),
        (health, Some(reason)) => format!("{}: {}", health.name(), printable(reason)),
    };
    let parts = [words(step.sent), trouble];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// The last word: in the log, and as an error where the rest was not sent.
pub(super) fn end(progress: Progress, sent: &Sent, sink: &str) -> Result<()> {
    progress.end(settled(sent), &words(sent));
    match &sent.gave_up {
        Some(reason) => {
            bail!("`{sink}` does not take events, and the rest was not sent: {}", printable(reason))
        }
        None => Ok(()),
    }
}

fn settled(sent: &Sent) -> u64 {
    sent.delivered.saturating_add(sent.duplicates).saturating_add(sent.dead)
}

fn words(sent: &Sent) -> String {
    let parts = [(sent.delivered, "delivered"), (sent.duplicates, "were there already"), (sent.dead, "refused")];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_is_found_by_its_name_and_others_are_named() {
        let tree = serde_json::json!({
            "lunary": {"api_key": "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11"},
            "second": {"type": "lunary", "api_key": "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11"},
        });
        let sinks = llm_proxy_plugins::sinks::read(&tree, &|_| None).unwrap();
        assert_eq!(find(&sinks, "second").unwrap().name, "second");
        let problem = |sinks: &SinksSettings, name: &str| find(sinks, name).unwrap_err().to_string();
        assert_eq!(problem(&sinks, "thrd"), "--sink: found \"thrd\", expected one of the sinks lunary, second");
        assert!(problem(&sinks, "file").contains("has each event once"));
        assert!(problem(&SinksSettings::default(), "x").contains("sinks in the settings file, which has none"));
    }

    #[test]
    fn what_happened_is_told_in_few_words() {
        let sent = Sent { delivered: 3, duplicates: 2, ..Sent::default() };
        assert_eq!(words(&sent), "3 delivered, 2 were there already");
        assert_eq!((settled(&sent), words(&Sent::default())), (5, String::new()));
        assert_eq!((events(1), events(2)), ("1 event".to_owned(), "2 events".to_owned()));
    }

    #[test]
    fn a_step_is_told_without_empty_words() {
        let some = Sent { delivered: 3, ..Sent::default() };
        for (sent, health, reason, expected) in [
            (&Sent::default(), Health::Down, Some("HTTP 503"), "down: HTTP 503"),
            (&some, Health::Retrying, Some("HTTP 503"), "3 delivered, retrying: HTTP 503"),
            (&some, Health::Delivering, None, "3 delivered"),
            (&Sent::default(), Health::Delivering, None, ""),
        ] {
            let step = Step { sent, waiting: 0, arrived: &[], dead: &[], health, reason };
            assert_eq!(note(&step), expected);
        }
    }
}
