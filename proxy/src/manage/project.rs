//! `llm-proxy manage project …`

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value};

use super::request::{ContentArgs, KEYS, KeyArgs, PageArgs, Request, id};
use super::view::View;

#[derive(Subcommand)]
pub(super) enum ProjectCommand {
    /// Make a project
    #[command(after_help = "\
Example:
  llm-proxy manage project create shop --api-key-env OPENAI_API_KEY \\
    --provider-key anthropic=ANTHROPIC_API_KEY")]
    Create(CreateArgs),
    /// Show projects, oldest first
    #[command(after_help = "\
Example:
  llm-proxy manage project list --limit 200")]
    List(PageArgs),
    /// Show one project; keys by their last four characters
    #[command(after_help = "\
Example:
  llm-proxy manage project get PROJECT_ID")]
    Get(IdArgs),
    /// Rename a project, switch it on or off, set or remove provider keys, choose what is kept of bodies
    #[command(after_help = "\
Example:
  llm-proxy manage project update PROJECT_ID \\
    --provider-key gemini=GEMINI_API_KEY")]
    Update(UpdateArgs),
    /// Revoke every token of a project, now
    #[command(after_help = "\
Example:
  llm-proxy manage project revoke-tokens PROJECT_ID")]
    RevokeTokens(IdArgs),
}

#[derive(Args)]
pub(super) struct IdArgs {
    /// The project's id
    #[arg(value_name = "ID", value_parser = id)]
    id: String,
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// Its name: 1 to 128 characters, unique
    #[arg(value_name = "NAME")]
    name: String,
    /// Refuse the project's tokens until it is activated
    #[arg(long)]
    inactive: bool,
    #[command(flatten)]
    content: ContentArgs,
    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Args)]
pub(super) struct UpdateArgs {
    /// The project's id
    #[arg(value_name = "ID", value_parser = id)]
    id: String,
    /// A new name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Let the project's tokens be used (again)
    #[arg(long, conflicts_with = "deactivate")]
    activate: bool,
    /// Refuse the project's tokens and cut their running streams, until it is activated
    #[arg(long)]
    deactivate: bool,
    #[command(flatten)]
    content: ContentArgs,
    #[command(flatten)]
    keys: KeyArgs,
    /// Remove the key of this API; may be repeated
    #[arg(long = "remove-provider-key", value_name = "API", help_heading = KEYS)]
    removed_keys: Vec<String>,
}

impl ProjectCommand {
    pub(super) fn request(self) -> anyhow::Result<Request> {
        match self {
            Self::Create(args) => {
                let mut body = Map::new();
                body.insert("name".to_owned(), Value::from(args.name));
                if args.inactive {
                    body.insert("is_active".to_owned(), Value::from(false));
                }
                args.content.put_into(&mut body);
                args.keys.put_into(&mut body, Vec::new())?;
                Ok(Request::new(Method::POST, "/manage/projects", View::Project).with_body(body))
            }
            Self::List(page) => Ok(Request::new(Method::GET, page.target("/manage/projects", None), View::Projects)),
            Self::Get(args) => Ok(Request::new(Method::GET, format!("/manage/projects/{}", args.id), View::Project)),
            Self::Update(args) => {
                let mut body = Map::new();
                if let Some(name) = args.name {
                    body.insert("name".to_owned(), Value::from(name));
                }
                if args.activate || args.deactivate {
                    body.insert("is_active".to_owned(), Value::from(args.activate));
                }
                args.content.put_into(&mut body);
                args.keys.put_into(&mut body, args.removed_keys)?;
                Request::new(Method::PATCH, format!("/manage/projects/{}", args.id), View::Project).with_change(body)
            }
            Self::RevokeTokens(args) => {
                let target = format!("/manage/projects/{}/tokens/revoke", args.id);
                Ok(Request::new(Method::POST, target, View::Revoked))
            }
        }
    }
}
