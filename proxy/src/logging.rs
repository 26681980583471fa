//! The process's own log: standard error, text for people and JSON for collectors.
//!
//! Libraries are held at warnings whatever the level: at finer levels they print heads, and heads carry keys.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogLevel};

/// Installs the log of the process. A second call does nothing.
pub fn install(level: LogLevel, format: Option<LogFormat>) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let libraries = LevelFilter::WARN.min(level);
    // Pingora logs clients that leave as errors; the record tells of them properly.
    let targets = Targets::new()
        .with_default(libraries)
        .with_target("llm_proxy", level)
        .with_target("pingora", LevelFilter::ERROR.min(level))
        .with_target("pingora_core", LevelFilter::ERROR.min(level));
    let text = format.map_or_else(|| std::io::stderr().is_terminal(), |format| format == LogFormat::Text);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let installed = if text {
        tracing_subscriber::registry().with(targets).with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
    } else {
        tracing_subscriber::registry().with(targets).with(lines.json()).try_init()
    };
    if installed.is_err() {
        tracing::debug!("the log was installed before");
    }
    std::panic::set_hook(Box::new(|panic| {
        // The place only: a panic's message may hold what a client sent.
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        tracing::error!(place, "a panic was caught");
    }));
}
