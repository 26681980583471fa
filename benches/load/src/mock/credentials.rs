//! Who may call, each provider in its own way. Every credential that a provider reads must be right: one that a
//! proxy forgot to take away shows as a 401 here.

use std::fmt;
use std::str::FromStr;

use super::errors::Problem;
use super::head::Head;

/// Whose API a call speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// OpenAI and everything compatible.
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// Google's Gemini API.
    Gemini,
    /// Azure OpenAI.
    Azure,
}

/// Not one of `openai`, `anthropic`, `gemini`, `azure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProvider;

impl fmt::Display for UnknownProvider {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("expected openai, anthropic, gemini or azure")
    }
}

impl std::error::Error for UnknownProvider {}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        match text {
            "openai" => Ok(Self::OpenAi),
            "anthropic" => Ok(Self::Anthropic),
            "gemini" => Ok(Self::Gemini),
            "azure" => Ok(Self::Azure),
            _ => Err(UnknownProvider),
        }
    }
}

/// An API key that the mock takes. Nothing secret: these keys open nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it is valid.
    pub provider: Provider,
    /// The key as a client sends it.
    pub value: String,
}

impl FromStr for Key {
    type Err = UnknownProvider;

    /// Reads `NAME=VALUE`, for example `openai=sk-mock-openai`.
    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        let (name, value) = text.split_once('=').ok_or(UnknownProvider)?;
        Ok(Self { provider: name.parse()?, value: value.to_owned() })
    }
}

/// The keys of a mock nobody configured.
pub(super) fn default_keys() -> Vec<Key> {
    [
        (Provider::OpenAi, "sk-mock-openai"),
        (Provider::Anthropic, "sk-mock-anthropic"),
        (Provider::Gemini, "mock-gemini"),
        (Provider::Azure, "mock-azure"),
    ]
    .into_iter()
    .map(|(provider, value)| Key { provider, value: value.to_owned() })
    .collect()
}

/// How a browser's WebSocket offers an OpenAI key: as a subprotocol.
pub(super) const KEY_PROTOCOL: &str = "openai-insecure-api-key.";

/// The key a call to `provider` came with. `None` for the provider: a key of any of them will do.
pub(super) fn check<'a>(keys: &'a [Key], provider: Option<Provider>, head: &Head) -> Result<&'a str, Problem<'static>> {
    let bearer = || head.header("authorization").map(|value| value.strip_prefix(b"Bearer ").unwrap_or_default());
    let query = |name: &str| head.query(name).map(str::as_bytes);
    let presented = match provider {
        Some(Provider::OpenAi) => [bearer(), None, None, None, None],
        Some(Provider::Anthropic) => [bearer(), head.header("x-api-key"), None, None, None],
        Some(Provider::Gemini) => [head.header("x-goog-api-key"), query("key"), None, None, None],
        // Browsers put theirs into the query of a WebSocket.
        Some(Provider::Azure) => [bearer(), head.header("api-key"), query("api-key"), query_bearer(head), None],
        None => {
            [bearer(), head.header("x-api-key"), head.header("api-key"), head.header("x-goog-api-key"), query("key")]
        }
    };
    let mut presented: Vec<&[u8]> = presented.into_iter().flatten().collect();
    if matches!(provider, None | Some(Provider::OpenAi)) {
        let in_fields = presented.len();
        let protocols = head.elements("sec-websocket-protocol");
        presented.extend(protocols.filter_map(|item| item.strip_prefix(KEY_PROTOCOL.as_bytes())));
        if provider.is_some() && in_fields > 0 && presented.len() > in_fields {
            let told = "You must only send one of protocol api key and Authorization header.";
            return Err(Problem::Unreadable(told.to_owned()));
        }
    }
    let mut found = None;
    for value in presented {
        let key = keys
            .iter()
            .find(|key| provider.is_none_or(|provider| key.provider == provider) && key.value.as_bytes() == value)
            .ok_or(Problem::WrongKey)?;
        found = Some(key.value.as_str());
    }
    found.ok_or(Problem::NoKey)
}

/// `?Authorization=Bearer …`, its space encoded in one of the two ways there are.
fn query_bearer(head: &Head) -> Option<&[u8]> {
    let value = head.query("Authorization")?;
    let token = value.strip_prefix("Bearer%20").or_else(|| value.strip_prefix("Bearer+"));
    Some(token.unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    #[test]
    fn each_provider_reads_its_own_headers() {
        let keys = default_keys();
        for (provider, target, field, fine) in [
            (Provider::OpenAi, "/", "authorization: Bearer sk-mock-openai", true),
            (Provider::OpenAi, "/", "x-api-key: sk-mock-openai", false),
            (Provider::OpenAi, "/", "authorization: Bearer sk-mock-anthropic", false),
            (Provider::Anthropic, "/", "x-api-key: sk-mock-anthropic", true),
            (Provider::Anthropic, "/", "authorization: Bearer sk-mock-anthropic", true),
            (Provider::Anthropic, "/", "x-api-key: sk-mock-anthropic\r\nauthorization: Bearer other", false),
            (Provider::Gemini, "/?key=mock-gemini", "a: b", true),
            (Provider::Gemini, "/", "x-goog-api-key: mock-gemini", true),
            (Provider::Azure, "/", "api-key: mock-azure", true),
            (Provider::Azure, "/?api-key=mock-azure", "a: b", true),
            (Provider::Azure, "/?Authorization=Bearer%20mock-azure", "a: b", true),
            (Provider::Azure, "/?Authorization=Bearer+other", "api-key: mock-azure", false),
            (Provider::OpenAi, "/", "sec-websocket-protocol: realtime, openai-insecure-api-key.sk-mock-openai", true),
            (Provider::OpenAi, "/", "sec-websocket-protocol: openai-insecure-api-key.other", false),
            (
                Provider::OpenAi,
                "/",
                "sec-websocket-protocol: openai-insecure-api-key.sk-mock-openai\r\nauthorization: Bearer sk-mock-openai",
                false,
            ),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nhost: a\r\n{field}\r\n\r\n");
            let head = Head::take(&mut BytesMut::from(text.as_str())).unwrap().unwrap();
            assert_eq!(check(&keys, Some(provider), &head).is_ok(), fine, "{provider:?} {target} {field}");
        }
    }
}
