//! `llm-proxy manage usage`

use clap::Args;
use clap::builder::PossibleValuesParser;
use http::Method;

use super::request::{PageArgs, Request, id};
use super::view::View;

#[derive(Args)]
pub(super) struct UsageArgs {
    /// From this full hour on, such as 2026-11-21T10:00:00Z [default: a day before --to]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Up to this full hour, without it [default: the end of the present one]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// What to tell apart; may be repeated, or separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(["hour", "day", "project", "token", "api", "model"]))]
    group_by: Vec<String>,
    /// Only this project's
    #[arg(long, value_name = "PROJECT_ID", value_parser = id)]
    project: Option<String>,
    /// Only this token's
    #[arg(long, value_name = "TOKEN_ID", value_parser = id)]
    token: Option<String>,
    /// Only at this API
    #[arg(long, value_name = "NAME")]
    api: Option<String>,
    /// Only of this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

impl UsageArgs {
    pub(super) fn request(self) -> anyhow::Result<Request> {
        let group_by = Some(self.group_by.join(",")).filter(|names| !names.is_empty());
        let parameters = [
            ("from", &self.from),
            ("to", &self.to),
            ("group_by", &group_by),
            ("project_id", &self.project),
            ("token_id", &self.token),
            ("api", &self.api),
            ("model", &self.model),
        ];
        let said = parameters.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        Ok(Request::new(Method::GET, self.page.target("/manage/usage", said), View::Usage))
    }
}
