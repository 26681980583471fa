//! `llm-proxy-mock`: the mock provider as a program, for the load tests and for trying things out by hand.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use llm_proxy_load::mock::{Key, Mock, MockOptions};

/// Answers as OpenAI, Anthropic, Gemini and Azure do, from recordings.
#[derive(Parser)]
#[command(name = "llm-proxy-mock")]
struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// A key to take, as NAME=VALUE with NAME one of openai, anthropic, gemini, azure; replaces the built-in ones
    #[arg(long = "key", value_name = "NAME=VALUE")]
    keys: Vec<Key>,

    /// Worker threads; one for each CPU unless given
    #[arg(long)]
    threads: Option<std::num::NonZeroUsize>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = arguments.threads {
        runtime.worker_threads(threads.get());
    }
    runtime.enable_all().build().context("starting the runtime")?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut options = MockOptions { listen: arguments.listen, ..MockOptions::default() };
    if !arguments.keys.is_empty() {
        options.keys = arguments.keys;
    }
    let mock = Mock::start(options).await?;
    println!("mock provider listening on http://{}", mock.addr());
    tokio::signal::ctrl_c().await.context("waiting for an interrupt")?;
    mock.stop().await;
    Ok(())
}
