//! The recorded answers of providers, with what their usage truly was.

use std::path::PathBuf;

use serde_json::Value;

use crate::{Ask, Provider};

/// One recording.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Its file without the extension: what `x-mock-recording` names.
    pub name: String,
    /// The answer's body.
    pub body: Vec<u8>,
    /// Its line in the manifest.
    pub listed: Value,
}

/// The recording of this name.
///
/// # Panics
/// When there is none.
pub fn fixture(name: &str) -> Fixture {
    fixtures().into_iter().find(|fixture| fixture.name == name).unwrap_or_else(|| panic!("no recording {name}"))
}

/// Every recording of an HTTP answer.
pub fn fixtures() -> Vec<Fixture> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/provider"));
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let listed = manifest["files"].as_array().unwrap();
    // A WebSocket transcript is no HTTP answer.
    let http = listed.iter().filter(|listed| listed["status"].as_u64() >= Some(200));
    http.map(|listed| {
        let file = listed["file"].as_str().unwrap();
        let name = file.rsplit_once('.').unwrap().0.to_owned();
        Fixture { name, body: std::fs::read(folder.join(file)).unwrap(), listed: listed.clone() }
    })
    .collect()
}

impl Fixture {
    /// Whose dialect it speaks, as far as the proxy is concerned.
    pub fn provider(&self) -> Provider {
        match self.listed["provider"].as_str().unwrap() {
            "anthropic" => Provider::Anthropic,
            "gemini" => Provider::Gemini,
            "azure" => Provider::Azure,
            _ => Provider::OpenAi,
        }
    }

    fn kind(&self) -> &str {
        self.listed["kind"].as_str().unwrap()
    }

    /// Whether it is of a provider whose dialect the proxy does not read.
    pub fn is_foreign(&self) -> bool {
        ["cohere.", "bedrock."].iter().any(|kind| self.kind().starts_with(kind))
    }

    /// Whether it is a stream of events.
    pub fn is_event_stream(&self) -> bool {
        self.listed["content_type"].as_str().unwrap().starts_with("text/event-stream")
    }

    /// Where a client of the proxy would have asked for it. Foreign ones stand under the APIs `cohere` and `bedrock`.
    pub fn path(&self) -> &'static str {
        let kind = self.kind();
        let starts = |start: &str| kind.starts_with(start);
        match kind {
            "openai.embeddings" => "/openai/v1/embeddings",
            "anthropic.count_tokens" => "/anthropic/v1/messages/count_tokens",
            "gemini.generate.stream" => Provider::Gemini.stream_path(),
            "gemini.embed" => "/gemini/v1beta/models/text-embedding-004:batchEmbedContents",
            _ if starts("openai.responses") => "/openai/v1/responses",
            _ if starts("openai.completions") => "/openai/v1/completions",
            _ if starts("cohere.") => "/cohere/v2/chat",
            _ if starts("bedrock.") => "/bedrock/model/some/converse-stream",
            _ => self.provider().path(),
        }
    }

    /// A request that is answered with it.
    pub fn ask(&self, token: &str) -> Ask {
        let body = if self.is_event_stream() { r#"{"stream":true}"# } else { "{}" };
        self.provider().at("POST", self.path(), token).with("x-mock-recording", &self.name).json(body)
    }

    /// A number of the manifest as records count: input with cache, output with reasoning. `None`: unknown.
    pub fn expected(&self, name: &str) -> Option<u64> {
        let told = |name: &str| self.listed["expected"][name].as_u64();
        match (self.provider(), name) {
            (Provider::Anthropic, "prompt_tokens") => Some(
                told(name)?
                    + told("cached_tokens").unwrap_or_default()
                    + told("cache_creation_tokens").unwrap_or_default(),
            ),
            (Provider::Gemini, "completion_tokens") => Some(told(name)? + told("reasoning_tokens").unwrap_or_default()),
            _ => told(name),
        }
    }

    /// Whether the provider stated any usage in a place that the proxy reads.
    pub fn states_usage(&self) -> bool {
        let numbers = self.listed["expected"].as_object().unwrap();
        !self.is_foreign() && self.kind() != "anthropic.count_tokens" && numbers.values().any(Value::is_number)
    }

    /// Where its events end, in bytes from the start.
    pub fn event_ends(&self) -> Vec<usize> {
        let ends = |mark: &[u8]| -> Vec<usize> {
            let len = mark.len();
            (len..=self.body.len()).filter(|end| self.body[end - len..*end] == *mark).collect()
        };
        let found = ends(b"\r\n\r\n");
        if found.is_empty() { ends(b"\n\n") } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_listed_with_their_numbers() {
        assert!(fixtures().len() >= 50);
        let cached = fixture("anthropic-messages-cache-read");
        assert_eq!(cached.expected("prompt_tokens"), Some(3 + 1111 + 418));
        assert_eq!(cached.path(), "/anthropic/v1/messages");
        let stream = fixture("gemini-stream-basic");
        assert_eq!(stream.event_ends().last(), Some(&stream.body.len()));
    }
}
