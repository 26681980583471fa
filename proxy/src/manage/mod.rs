//! `llm-proxy manage`: projects, tokens, their usage, content and sinks from the command line, over the admin listener's
//! HTTP.
//!
//! A command becomes one [`request::Request`], [`client`] carries it, and [`view`] lays the answer out for people;
//! `--output json` prints the server's own JSON for scripts. Nothing here reads the store: what the command line can
//! do is what the management API lets its credential do.

mod client;
mod content;
mod credential;
mod project;
mod request;
mod sink;
pub(crate) mod table;
mod token;
mod usage;
mod view;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use self::client::Server;
use self::request::Request;
use crate::cli::GLOBAL;
use crate::words::one_line;

pub use self::credential::Defaults;

const EXAMPLES: &str = "\
The credential is the management token: MANAGEMENT_TOKEN, else the file management_token in the data directory, where \
the first start of the server wrote it. It is never taken from the command line, where process lists would show it.

Examples:
  # A project whose OpenAI key is taken from the environment
  llm-proxy manage project create shop --api-key-env OPENAI_API_KEY

  # A token for a week, with limits; it is shown once
  llm-proxy manage token create --project PROJECT_ID --duration 7d \\
    --max-requests 1000 --model 'gpt-6-luna*'

  # Who has used what
  llm-proxy manage token list --project PROJECT_ID

  # Keep answers and questions for a month, without what looks like a secret
  llm-proxy manage project update PROJECT_ID \\
    --capture redacted --retention-days 30

  # Stop a leaked token now: running streams are cut too
  llm-proxy manage token revoke TOKEN_ID

  # The demo's
  llm-proxy manage project list --data-dir data/demo";

const PROJECT_EXAMPLES: &str = "\
Examples:
  llm-proxy manage project create shop --api-key-env OPENAI_API_KEY
  llm-proxy manage project list";

const USAGE_EXAMPLES: &str = "\
Examples:
  llm-proxy manage usage --group-by project,model
  llm-proxy manage usage --group-by hour --token TOKEN_ID";

const CONTENT_EXAMPLES: &str = "\
Example:
  llm-proxy manage content erase --project PROJECT_ID \\
    --before 2026-11-01T00:00:00Z";

const SINK_EXAMPLES: &str = "\
Example:
  llm-proxy manage sink list --output json";

const TOKEN_EXAMPLES: &str = "\
Examples:
  llm-proxy manage token create --project PROJECT_ID --duration 7d
  llm-proxy manage token revoke TOKEN_ID";

/// `llm-proxy manage …`
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ManageCommand {
    /// The server's management API [default: http://127.0.0.1:8081, or where ADMIN_LISTEN_ADDR says]
    #[arg(long, global = true, value_name = "URL", help_heading = GLOBAL)]
    admin_url: Option<String>,

    /// Where the server keeps its file management_token [env: DATA_DIR] [default: ./data]
    #[arg(long, global = true, value_name = "DIR", help_heading = GLOBAL)]
    data_dir: Option<PathBuf>,

    /// Tables for people or the server's JSON for scripts
    #[arg(long, global = true, value_enum, value_name = "FORM", default_value_t = Output::Table, help_heading = GLOBAL)]
    output: Output,

    #[command(subcommand)]
    resource: Resource,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
enum Resource {
    /// Projects: each holds the provider keys behind its tokens
    #[command(subcommand, after_help = PROJECT_EXAMPLES)]
    Project(project::ProjectCommand),
    /// Tokens: what apps use instead of a provider key
    #[command(subcommand, after_help = TOKEN_EXAMPLES)]
    Token(token::TokenCommand),
    /// What was used: requests, tokens, cost and times, by whatever is to be told apart
    #[command(after_help = USAGE_EXAMPLES)]
    Usage(usage::UsageArgs),
    /// What was kept of bodies
    #[command(subcommand, after_help = CONTENT_EXAMPLES)]
    Content(content::ContentCommand),
    /// Where records go
    #[command(subcommand, after_help = SINK_EXAMPLES)]
    Sink(sink::SinkCommand),
}

impl Resource {
    fn request(self) -> anyhow::Result<Request> {
        match self {
            Self::Project(command) => command.request(),
            Self::Token(command) => command.request(),
            Self::Usage(args) => args.request(),
            Self::Content(command) => command.request(),
            Self::Sink(command) => Ok(command.request()),
        }
    }
}

/// Does what was asked and writes the answer to `out`. A refusal is one line on stderr and exit code 1.
///
/// # Errors
/// Only where `out` cannot be written to.
pub async fn run(command: ManageCommand, defaults: Defaults, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    match answer(command, defaults).await {
        Ok(text) => {
            out.write_all(text.as_bytes())?;
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("llm-proxy manage: {}", one_line(&error));
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn answer(command: ManageCommand, defaults: Defaults) -> anyhow::Result<String> {
    let server = Server::new(command.admin_url.as_deref(), &defaults.admin_listen_addr)?;
    let credential = credential::find(&defaults, command.data_dir.as_deref())?;
    let request = command.resource.request()?;
    let answer = server.send(&request, &credential).await?;
    match command.output {
        Output::Json if answer.is_empty() => Ok(String::new()),
        Output::Json => Ok(format!("{}\n", answer.trim_end())),
        Output::Table => request.view.lay_out(&answer, &view::now()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        manage: ManageCommand,
    }

    fn request(line: &str) -> Result<Request, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        cli.manage.resource.request().map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_is_one_request() {
        for (line, method, target, body) in [
            ("manage project list", "GET", "/manage/projects?limit=50", "null"),
            ("manage project list --limit 5 --cursor a/b", "GET", "/manage/projects?limit=5&cursor=a%2Fb", "null"),
            ("manage project get 0193-a", "GET", "/manage/projects/0193-a", "null"),
            ("manage project create shop", "POST", "/manage/projects", r#"{"name":"shop"}"#),
            (
                "manage project create shop --api-key k --inactive",
                "POST",
                "/manage/projects",
                r#"{"api_key":"k","is_active":false,"name":"shop"}"#,
            ),
            (
                "manage project update p --name new --activate --remove-provider-key gemini",
                "PATCH",
                "/manage/projects/p",
                r#"{"is_active":true,"name":"new","provider_keys":[{"api":"gemini","key":null}]}"#,
            ),
            (
                "manage project create shop --capture full --capture-max-bytes 1024 --retention-days 30",
                "POST",
                "/manage/projects",
                r#"{"content":{"capture":"full","max_bytes":1024,"retention_days":30},"name":"shop"}"#,
            ),
            (
                "manage project update p --retention-days none",
                "PATCH",
                "/manage/projects/p",
                r#"{"content":{"retention_days":null}}"#,
            ),
            ("manage project revoke-tokens p", "POST", "/manage/projects/p/tokens/revoke", "null"),
            (
                "manage token create --project p --duration 7d --max-requests 10 --model a --model b*",
                "POST",
                "/manage/tokens",
                r#"{"allowed_models":["a","b*"],"duration_minutes":10080,"max_requests":10,"project_id":"p"}"#,
            ),
            ("manage token list --project p", "GET", "/manage/tokens?limit=50&project_id=p", "null"),
            (
                "manage token update t --max-requests none --requests-per-minute 60 --any-model --deactivate",
                "PATCH",
                "/manage/tokens/t",
                r#"{"allowed_models":null,"is_active":false,"max_requests":null,"requests_per_minute":60}"#,
            ),
            (
                "manage usage --group-by project,model --from 2026-11-21T10:00:00Z --project p",
                "GET",
                "/manage/usage?limit=50&from=2026-11-21T10%3A00%3A00Z&group_by=project%2Cmodel&project_id=p",
                "null",
            ),
            ("manage token revoke t --output json", "DELETE", "/manage/tokens/t", "null"),
            (
                "manage content erase --project p --before 2026-11-21T10:00:00Z --event e --event f --yes",
                "POST",
                "/manage/content/erase",
                r#"{"before":"2026-11-21T10:00:00Z","event_ids":["e","f"],"project_id":"p"}"#,
            ),
            ("manage sink list", "GET", "/manage/sinks", "null"),
        ] {
            let request = request(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!((request.method.as_str(), request.target.as_str()), (method, target), "{line}");
            let sent = request.body.unwrap_or_default();
            assert_eq!(sent, serde_json::from_str::<serde_json::Value>(body).unwrap(), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (line, reason) in [
            ("manage token get sk-lp-000000000000000000000000000000000", "expected the token's id"),
            ("manage token get a/b", "letters, digits"),
            ("manage token create --project p --duration 7w", "90m, 12h or 7d"),
            ("manage token create --project p --duration 0", "90m, 12h or 7d"),
            ("manage token update t", "nothing to change"),
            ("manage project update p", "nothing to change"),
            ("manage token update t --max-requests many", "9007199254740991, or none"),
            ("manage project update p --capture everything", "possible values: none, metadata, redacted, full"),
            ("manage project update p --capture-max-bytes 1023", "bytes from 1024 to 524288"),
            ("manage project update p --capture-max-bytes none", "bytes from 1024 to 524288"),
            ("manage project update p --retention-days 3651", "days from 1 to 3650, or none"),
            ("manage content erase --yes", "nothing to erase"),
            ("manage content erase --event a/b", "letters, digits"),
            ("manage project create x --provider-key openai", "API=VARIABLE"),
            (
                "manage project create x --api-key-env LLM_PROXY_NO_SUCH_VARIABLE",
                "LLM_PROXY_NO_SUCH_VARIABLE is not set",
            ),
            ("manage project create x --api-key-env sk-proj-key", "and not the key itself"),
            ("manage project create x --provider-key openai=sk-proj-key", "and not the key itself"),
            ("manage project create x --api-key k --api-key-stdin", "cannot be used with"),
        ] {
            let error = request(line).err().unwrap_or_default();
            assert!(error.contains(reason), "{line}: {error}");
            assert!(!error.contains("sk-proj"), "{error}");
        }
    }
}
