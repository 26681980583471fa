//! `llm-proxy manage sink …`

use clap::Subcommand;
use http::Method;

use super::request::Request;
use super::view::View;

#[derive(Subcommand)]
pub(super) enum SinkCommand {
    /// Show how every sink of the server fares, and how far behind it is
    #[command(after_help = "\
Example:
  llm-proxy manage sink list")]
    List,
}

impl SinkCommand {
    pub(super) fn request(self) -> Request {
        let Self::List = self;
        Request::new(Method::GET, "/manage/sinks", View::Sinks)
    }
}
