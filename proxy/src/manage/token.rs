//! `llm-proxy manage token …`

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value};

use super::request::{
    LIMITS, PageArgs, Request, id, minutes, per_minute, per_minute_or_none, requests, requests_or_none,
};
use super::view::View;

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token; it is shown once, now
    #[command(after_help = "\
Example:
  llm-proxy manage token create --project PROJECT_ID --duration 7d \\
    --max-requests 1000 --requests-per-minute 60 --model 'gpt-6-luna*'")]
    Create(CreateArgs),
    /// Show tokens, oldest first
    #[command(after_help = "\
Example:
  llm-proxy manage token list --project PROJECT_ID --limit 200")]
    List(ListArgs),
    /// Show one token's limits and use (never the token itself)
    #[command(after_help = "\
Example:
  llm-proxy manage token get TOKEN_ID --output json")]
    Get(IdArgs),
    /// Change a token's limits, or switch it off and on
    #[command(after_help = "\
Example:
  llm-proxy manage token update TOKEN_ID --max-requests none --any-model")]
    Update(UpdateArgs),
    /// Revoke a token now; its running streams are cut
    #[command(after_help = "\
Example:
  llm-proxy manage token revoke TOKEN_ID")]
    Revoke(IdArgs),
}

#[derive(Args)]
pub(super) struct IdArgs {
    /// The token's id, not the token itself
    #[arg(value_name = "ID", value_parser = id)]
    id: String,
}

#[derive(Args)]
pub(super) struct ListArgs {
    /// Only the tokens of this project
    #[arg(long, value_name = "PROJECT_ID", value_parser = id)]
    project: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// The project whose provider keys the token uses
    #[arg(long, value_name = "PROJECT_ID", value_parser = id)]
    project: String,
    /// How long it lives, from 1m to 365d: 90m, 12h, 7d; a bare number is minutes
    #[arg(long, value_name = "TIME", value_parser = minutes, allow_hyphen_values = true)]
    duration: u64,
    /// Most requests in its whole life; never exceeded [default: no limit]
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = requests, allow_negative_numbers = true)]
    max_requests: Option<u64>,
    /// Most requests in a minute, 1 to 1000000; all may come at once [default: no limit]
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = per_minute, allow_negative_numbers = true)]
    requests_per_minute: Option<u64>,
    /// A model that it may use, `*` for any run of characters; may be repeated [default: every model]
    #[arg(long = "model", value_name = "NAME", help_heading = LIMITS)]
    models: Vec<String>,
}

#[derive(Args)]
pub(super) struct UpdateArgs {
    /// The token's id, not the token itself
    #[arg(value_name = "ID", value_parser = id)]
    id: String,
    /// Most requests in its whole life, those before included; none lifts the limit
    #[arg(
        long,
        value_name = "N|none",
        help_heading = LIMITS,
        value_parser = requests_or_none,
        allow_negative_numbers = true
    )]
    max_requests: Option<Value>,
    /// Most requests in a minute, 1 to 1000000; none lifts the limit
    #[arg(
        long,
        value_name = "N|none",
        help_heading = LIMITS,
        value_parser = per_minute_or_none,
        allow_negative_numbers = true
    )]
    requests_per_minute: Option<Value>,
    /// The models that it may use from now on, instead of those before; may be repeated
    #[arg(long = "model", value_name = "NAME", help_heading = LIMITS, conflicts_with = "any_model")]
    models: Vec<String>,
    /// Let it use every model
    #[arg(long, help_heading = LIMITS)]
    any_model: bool,
    /// Let it be used (again)
    #[arg(long, conflicts_with = "deactivate")]
    activate: bool,
    /// Revoke it; `--activate` undoes that
    #[arg(long)]
    deactivate: bool,
}

impl TokenCommand {
    pub(super) fn request(self) -> anyhow::Result<Request> {
        match self {
            Self::Create(args) => {
                let mut body = Map::new();
                body.insert("project_id".to_owned(), Value::from(args.project));
                body.insert("duration_minutes".to_owned(), Value::from(args.duration));
                put(&mut body, "max_requests", args.max_requests.map(Value::from));
                put(&mut body, "requests_per_minute", args.requests_per_minute.map(Value::from));
                put(&mut body, "allowed_models", (!args.models.is_empty()).then(|| Value::from(args.models)));
                Ok(Request::new(Method::POST, "/manage/tokens", View::NewToken).with_body(body))
            }
            Self::List(args) => {
                let filter = args.project.as_deref().map(|project| ("project_id", project));
                Ok(Request::new(Method::GET, args.page.target("/manage/tokens", filter), View::Tokens))
            }
            Self::Get(args) => Ok(Request::new(Method::GET, target(&args.id), View::Token)),
            Self::Update(args) => {
                let mut body = Map::new();
                put(&mut body, "max_requests", args.max_requests);
                put(&mut body, "requests_per_minute", args.requests_per_minute);
                put(&mut body, "allowed_models", (!args.models.is_empty()).then(|| Value::from(args.models)));
                put(&mut body, "allowed_models", args.any_model.then_some(Value::Null));
                put(&mut body, "is_active", (args.activate || args.deactivate).then(|| Value::from(args.activate)));
                Request::new(Method::PATCH, target(&args.id), View::Token).with_change(body)
            }
            Self::Revoke(args) => {
                let done = format!("token {} is revoked", args.id);
                Ok(Request::new(Method::DELETE, target(&args.id), View::Done(done)))
            }
        }
    }
}

fn target(id: &str) -> String {
    format!("/manage/tokens/{id}")
}

/// Sets a field where there is something to say.
fn put(body: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        body.insert(field.to_owned(), value);
    }
}
