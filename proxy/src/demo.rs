//! `llm-proxy demo`: the whole product on this machine, with a built-in provider, a project and a fresh token.
//!
//! One token of the demo lives at a time. The text of a token is shown once and kept nowhere, so a restart cannot show
//! the last one again; left alive it would be a working credential that nobody looks at any more, one more with each
//! restart. So a start revokes the token of the start before, by its id, and no other: what somebody else made in the
//! demo's project stays.

mod welcome;

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use futures::FutureExt;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::secret::Secret;
use llm_proxy_core::token::ProxyToken;
use llm_proxy_load::mock::{Mock, MockOptions};
use llm_proxy_store::{ContentPolicy, NewProject, NewToken, Page, Project, ProjectChange, Store};

use self::welcome::Welcome;
use crate::server;
use crate::settings::{BaseUrl, Settings};

/// The demo's project.
const PROJECT: &str = "demo";
/// The file in the data directory with the id of the token that was printed last.
const TOKEN_ID: &str = "demo_token_id";
/// How long the demo's token lives.
const TOKEN_HOURS: i64 = 24;

/// A provider whose real key the environment holds is used; the others are played by the mock.
const REAL: [(Dialect, &str); 3] = [
    (Dialect::OpenAi, "OPENAI_API_KEY"),
    (Dialect::Anthropic, "ANTHROPIC_API_KEY"),
    (Dialect::Gemini, "GEMINI_API_KEY"),
];

/// API and provider key.
type Keys = Vec<(String, Secret)>;

/// Runs the demo until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(mut settings: Settings, warnings: &[String]) -> Result<()> {
    settings.data_dir = settings.data_dir.join("demo");
    // Its addresses are for this machine, and what it prints is to be copied.
    settings.tls = None;
    settings.proxy_protocol = false;
    // The mock plays four providers, so it outlives everything else: its runtime is never dropped.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("mock").enable_all().build()?;
    let mock =
        runtime.block_on(Mock::start(MockOptions::default())).context("the built-in provider cannot be started")?;
    let (keys, welcome) = prepare(&mut settings, mock.addr(), |variable| std::env::var(variable).ok());
    let on_ready: server::OnReady =
        Box::new(move |store, data, admin| async move { introduce(&store, data, admin, keys, &welcome).await }.boxed());
    let outcome = server::run(settings, warnings, Some(server::Demo { mock: mock.addr(), on_ready }));
    drop(mock);
    outcome
}

/// Points every API without a real key at the mock.
fn prepare(settings: &mut Settings, mock: SocketAddr, variable: impl Fn(&str) -> Option<String>) -> (Keys, Welcome) {
    let mut keys = Vec::new();
    let mut welcome = Welcome {
        data_dir: settings.data_dir.clone(),
        has_token_file: settings.management_token.is_none(),
        real: Vec::new(),
        mocked: Vec::new(),
        shown: Vec::new(),
    };
    for api in &mut settings.apis {
        let given = REAL.iter().find(|(dialect, _)| *dialect == api.dialect && api.name == dialect.name());
        let key = given.and_then(|(_, name)| variable(name)).filter(|key| !key.trim().is_empty());
        match key {
            Some(key) => {
                welcome.real.push(api.name.clone());
                welcome.shown.push(api.dialect);
                keys.push((api.name.clone(), Secret::new(key.trim())));
            }
            None => {
                welcome.mocked.push(api.name.clone());
                let (host, port) = (mock.ip().to_string(), mock.port());
                api.base_url = BaseUrl { tls: false, host, port, path: String::new() };
                keys.push((api.name.clone(), Secret::new(mock_key(api.dialect))));
            }
        }
    }
    if welcome.shown.is_empty() {
        let is_served = |dialect: &Dialect| settings.apis.iter().any(|api| api.dialect == *dialect);
        welcome.shown = Dialect::ALL.into_iter().filter(is_served).take(2).collect();
    }
    (keys, welcome)
}

const fn mock_key(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi => "sk-mock-openai",
        Dialect::Anthropic => "sk-mock-anthropic",
        Dialect::Gemini => "mock-gemini",
        Dialect::Azure => "mock-azure",
    }
}

async fn introduce(store: &Store, data: SocketAddr, admin: SocketAddr, keys: Keys, welcome: &Welcome) -> Result<()> {
    let project = project(store, keys).await.context("the demo project could not be made")?;
    let token = token(store, &project, &welcome.data_dir).await.context("the demo token could not be made")?;
    let mut out = io::stdout().lock();
    write!(out, "{}", welcome.text(data, admin, token.expose()))?;
    out.flush()?;
    Ok(())
}

async fn project(store: &Store, keys: Keys) -> Result<Project> {
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
                .create_project(NewProject {
                    name: PROJECT.to_owned(),
                    is_active: true,
                    provider_keys: keys,
                    content: ContentPolicy::default(),
                })
                .await?);
        }
    }
}

/// A fresh token in the place of the one that was printed last.
async fn token(store: &Store, project: &Project, data_dir: &Path) -> Result<ProxyToken> {
    let path = data_dir.join(TOKEN_ID);
    match std::fs::read_to_string(&path) {
        Ok(last) => {
            store.revoke_token(last.trim()).await?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let (made, token) = store
        .create_token(NewToken {
            project_id: project.id.clone(),
            expires_at_us: now.saturating_add(TOKEN_HOURS.saturating_mul(3_600_000_000)),
            max_requests: None,
            requests_per_minute: None,
            allowed_models: None,
        })
        .await?;
    let note = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        writeln!(file, "{}", made.id)
    };
    note().with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::load_with;

    const MOCK: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

    /// The settings of a file, made ready with these keys in the environment.
    fn prepared(yaml: &str, keys: &[(&str, &str)]) -> (Settings, Keys, Welcome) {
        let read = |path: &Path| -> io::Result<String> {
            if path.ends_with("llm-proxy.yaml") { Ok(yaml.to_owned()) } else { Err(ErrorKind::NotFound.into()) }
        };
        let mut settings = load_with(Vec::new(), Vec::new(), Path::new("/work"), read).unwrap().settings;
        let variable = |name: &str| keys.iter().find(|(given, _)| *given == name).map(|(_, key)| (*key).to_owned());
        let (keys, welcome) = prepare(&mut settings, MOCK.into(), variable);
        (settings, keys, welcome)
    }

    #[test]
    fn an_api_whose_key_is_set_keeps_its_provider_and_the_others_get_the_mock() {
        for (set, real) in [
            (&[] as &[&str], &[] as &[Dialect]),
            (&["OPENAI_API_KEY"], &[Dialect::OpenAi]),
            (&["GEMINI_API_KEY", "ANTHROPIC_API_KEY"], &[Dialect::Anthropic, Dialect::Gemini]),
        ] {
            let set: Vec<_> = set.iter().map(|name| (*name, " sk-real\n")).collect();
            let (settings, keys, welcome) = prepared("", &set);
            assert_eq!(settings.apis.len(), keys.len());
            for (api, (name, key)) in settings.apis.iter().zip(&keys) {
                let is_real = real.contains(&api.dialect);
                assert_eq!((name, key.expose() == "sk-real"), (&api.name, is_real), "{set:?}");
                assert_eq!(api.base_url.port == MOCK.1, !is_real, "{set:?}: {name}");
                assert_eq!((welcome.real.contains(name), welcome.mocked.contains(name)), (is_real, !is_real));
            }
            let shown: &[Dialect] = if real.is_empty() { &[Dialect::OpenAi, Dialect::Anthropic] } else { real };
            assert_eq!(welcome.shown, shown, "{set:?}");
        }
    }

    #[test]
    fn what_is_shown_is_served() {
        for (yaml, key, shown) in [
            // Its key is another provider's.
            ("apis:\n  groq:\n    dialect: openai\n    base_url: http://a\n", "k", &[Dialect::OpenAi] as &[Dialect]),
            ("apis:\n  azure:\n    base_url: http://a\n", "k", &[Dialect::Azure]),
            ("apis:\n  gemini:\n  anthropic:\n", "k", &[Dialect::Anthropic, Dialect::Gemini]),
            ("apis:\n  openai:\n  gemini:\n", " ", &[Dialect::OpenAi, Dialect::Gemini]),
        ] {
            let (settings, _, welcome) = prepared(yaml, &[("OPENAI_API_KEY", key)]);
            assert_eq!(welcome.shown, shown, "{yaml}");
            assert!(settings.apis.iter().all(|api| api.base_url.port == MOCK.1), "{yaml}");
        }
    }

    #[test]
    fn a_management_token_of_the_settings_is_in_no_file() {
        assert!(prepared("", &[]).2.has_token_file);
        assert!(!prepared("management_token: Zq7mT2vXc9LrW4nKd8BsYh3GfP6jEa5u\n", &[]).2.has_token_file);
    }
}
