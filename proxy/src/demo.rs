//! `llm-proxy demo`: the whole product on this machine, with a built-in provider, a project and a fresh token.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use futures::FutureExt;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::secret::Secret;
use llm_proxy_load::mock::{Mock, MockOptions};
use llm_proxy_store::{NewProject, NewToken, Page, Project, ProjectChange, Store};

use crate::server;
use crate::settings::{BaseUrl, Settings};

/// The demo's project.
const PROJECT: &str = "demo";
/// How long the demo's token lives.
const TOKEN_HOURS: i64 = 24;

/// A provider whose real key the environment holds is used; the others are played by the mock.
const REAL: [(Dialect, &str); 3] = [
    (Dialect::OpenAi, "OPENAI_API_KEY"),
    (Dialect::Anthropic, "ANTHROPIC_API_KEY"),
    (Dialect::Gemini, "GEMINI_API_KEY"),
];

/// Runs the demo until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(mut settings: Settings, warnings: &[String]) -> Result<()> {
    settings.data_dir = settings.data_dir.join("demo");
    // Its addresses are for this machine, and what it prints is to be copied.
    settings.tls = None;
    // The mock plays four providers, so it outlives everything else: its runtime is never dropped.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("mock").enable_all().build()?;
    let mock =
        runtime.block_on(Mock::start(MockOptions::default())).context("the built-in provider cannot be started")?;
    let mut keys = Vec::new();
    let mut real = Vec::new();
    for api in &mut settings.apis {
        let given = REAL.iter().find(|(dialect, _)| *dialect == api.dialect && api.name == dialect.name());
        let key = given.and_then(|(_, variable)| std::env::var(variable).ok()).filter(|key| !key.trim().is_empty());
        match key {
            Some(key) => {
                real.push(api.name.clone());
                keys.push((api.name.clone(), Secret::new(key.trim())));
            }
            None => {
                let address = mock.addr();
                api.base_url =
                    BaseUrl { tls: false, host: address.ip().to_string(), port: address.port(), path: String::new() };
                keys.push((api.name.clone(), Secret::new(mock_key(api.dialect))));
            }
        }
    }
    let on_ready: server::OnReady =
        Box::new(move |store, data, admin| async move { introduce(&store, data, admin, keys, &real).await }.boxed());
    let outcome = server::run(settings, warnings, Some(server::Demo { mock: mock.addr(), on_ready }));
    drop(mock);
    outcome
}

const fn mock_key(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi => "sk-mock-openai",
        Dialect::Anthropic => "sk-mock-anthropic",
        Dialect::Gemini => "mock-gemini",
        Dialect::Azure => "mock-azure",
    }
}

async fn introduce(
    store: &Store,
    data: SocketAddr,
    admin: SocketAddr,
    keys: Vec<(String, Secret)>,
    real: &[String],
) -> Result<()> {
    let project = project(store, keys).await.context("the demo project could not be made")?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let (_, token) = store
        .create_token(NewToken {
            project_id: project.id,
            expires_at_us: now.saturating_add(TOKEN_HOURS.saturating_mul(3_600_000_000)),
            max_requests: None,
            requests_per_minute: None,
            allowed_models: None,
        })
        .await
        .context("the demo token could not be made")?;
    let provider = if real.is_empty() {
        "a built-in mock provider answers; set OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY to use the real one"
            .to_owned()
    } else {
        format!("real provider for {}; the mock answers for the others", real.join(", "))
    };
    let mut out = std::io::stdout().lock();
    write!(out, "{}", welcome(data, admin, token.expose(), &provider))?;
    out.flush()?;
    Ok(())
}

async fn project(store: &Store, keys: Vec<(String, Secret)>) -> Result<Project> {
    let mut cursor = None;
    loop {
        let page = store.projects(Page { cursor, limit: 200 }).await?;
        if let Some(found) = page.data.into_iter().find(|project| project.name == PROJECT) {
            let change = ProjectChange { is_active: Some(true), set_keys: keys, ..ProjectChange::default() };
            return store.update_project(&found.id, change).await?.context("the demo project vanished");
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(store
                .create_project(NewProject { name: PROJECT.to_owned(), is_active: true, provider_keys: keys })
                .await?);
        }
    }
}

fn welcome(data: SocketAddr, admin: SocketAddr, token: &str, provider: &str) -> String {
    format!(
        r#"
llm-proxy is running. Apps connect to http://{data}, the management API is on http://{admin}.
Provider: {provider}.

A token for you, good for {TOKEN_HOURS} hours:

  {token}

Try it:

  curl http://{data}/v1/chat/completions \
    -H "Authorization: Bearer {token}" \
    -H "Content-Type: application/json" \
    -d '{{"model": "gpt-4o-mini", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Python, `pip install openai`:

from openai import OpenAI
client = OpenAI(base_url="http://{data}/v1", api_key="{token}")
for chunk in client.chat.completions.create(model="gpt-4o-mini", stream=True,
                                            messages=[{{"role": "user", "content": "Hello"}}]):
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)

Node, `npm install @anthropic-ai/sdk`, saved as demo.mjs:

import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({{ baseURL: "http://{data}", apiKey: "{token}" }});
console.log(await client.messages.create({{ model: "claude-sonnet-4-5", max_tokens: 100,
                                           messages: [{{ role: "user", content: "Hello" }}] }}));

Every request leaves a line in events.jsonl of the data directory. Stop with Ctrl-C.
"#
    )
}
