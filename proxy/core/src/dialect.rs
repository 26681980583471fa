//! The API families whose requests and answers we understand.

use std::fmt;
use std::str::FromStr;

/// How a provider speaks: where its credential goes, what its errors look like, where its usage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI and everything compatible with it.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
    /// Google's Gemini API (generateContent).
    Gemini,
    /// Azure OpenAI: OpenAI's bodies, deployments in the path, `api-key` as credential.
    Azure,
}

impl Dialect {
    /// All dialects, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Gemini, Self::Azure];

    /// The name used in configuration and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Azure => "azure",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The text names none of the four dialects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of openai, anthropic, gemini, azure")]
pub struct UnknownDialect;

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(text: &str) -> Result<Self, UnknownDialect> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == text).ok_or(UnknownDialect)
    }
}
