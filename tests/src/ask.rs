//! Requests as bytes, and what each provider's own client would send.

/// The provider whose dialect is spoken. Each is also the name of an API and of a key of the mock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// OpenAI and what is compatible with it.
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// Gemini.
    Gemini,
    /// Azure.
    Azure,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Gemini, Self::Azure];

    /// Its API's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Azure => "azure",
        }
    }

    /// The key that the mock takes.
    pub fn key(self) -> &'static str {
        match self {
            Self::OpenAi => "sk-mock-openai",
            Self::Anthropic => "sk-mock-anthropic",
            Self::Gemini => "mock-gemini",
            Self::Azure => "mock-azure",
        }
    }

    /// A path of it that makes text, under the API's prefix.
    pub fn path(self) -> &'static str {
        match self {
            Self::OpenAi => "/openai/v1/chat/completions",
            Self::Anthropic => "/anthropic/v1/messages",
            Self::Gemini => "/gemini/v1beta/models/gemini-2.0-flash:generateContent",
            Self::Azure => "/azure/openai/deployments/gpt-4o-mini/chat/completions?api-version=2024-10-21",
        }
    }

    /// The same, streamed.
    pub fn stream_path(self) -> &'static str {
        match self {
            Self::Gemini => "/gemini/v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=sse",
            _ => self.path(),
        }
    }

    /// The model that [`Self::ask`] asks for.
    pub fn model(self) -> &'static str {
        match self {
            Self::OpenAi | Self::Azure => "gpt-4o-mini",
            Self::Anthropic => "claude-3-5-sonnet-latest",
            Self::Gemini => "gemini-2.0-flash",
        }
    }

    /// A body for [`Self::path`].
    pub fn body(self) -> &'static str {
        match self {
            Self::OpenAi => r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#,
            Self::Anthropic => {
                r#"{"model":"claude-3-5-sonnet-latest","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#
            }
            Self::Gemini => r#"{"contents":[{"parts":[{"text":"hi"}]}]}"#,
            Self::Azure => r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        }
    }

    /// A body for [`Self::stream_path`].
    pub fn stream_body(self) -> String {
        match self {
            Self::Gemini => self.body().to_owned(),
            _ => self.body().replacen('{', "{\"stream\":true,", 1),
        }
    }

    /// The field in which its own clients send their key, and its value.
    pub fn credential(self, token: &str) -> (&'static str, String) {
        match self {
            Self::OpenAi => ("authorization", format!("Bearer {token}")),
            Self::Anthropic => ("x-api-key", token.to_owned()),
            Self::Gemini => ("x-goog-api-key", token.to_owned()),
            Self::Azure => ("api-key", token.to_owned()),
        }
    }

    /// A request of its own client to any path.
    pub fn at(self, method: &str, path: &str, token: &str) -> Ask {
        let (name, value) = self.credential(token);
        let ask = Ask::new(method, path).with(name, &value);
        if self == Self::Anthropic { ask.with("anthropic-version", "2023-06-01") } else { ask }
    }

    /// A request for text.
    pub fn ask(self, token: &str) -> Ask {
        self.at("POST", self.path(), token).json(self.body())
    }

    /// A request for a stream of text.
    pub fn ask_stream(self, token: &str) -> Ask {
        self.at("POST", self.stream_path(), token).json(&self.stream_body())
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

impl Ask {
    /// A request without body, credential or any field but `host`.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            fields: vec![("host".to_owned(), "llm-proxy.test".to_owned())],
            body: Body::None,
        }
    }

    /// A JSON POST with the token as a bearer.
    pub fn post(path: &str, token: &str, body: &str) -> Self {
        Self::new("POST", path).with("authorization", &format!("Bearer {token}")).json(body)
    }

    /// A GET with the token as a bearer.
    pub fn get(path: &str, token: &str) -> Self {
        Self::new("GET", path).with("authorization", &format!("Bearer {token}"))
    }

    /// Adds a field behind the others.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes all fields of this name out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
        self
    }

    /// Another target.
    #[must_use]
    pub fn to(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    /// Another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// This body with its length, and `content-type: application/json` unless there is a type already.
    #[must_use]
    pub fn json(self, body: &str) -> Self {
        let typed = self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let ask = if typed { self } else { self.with("content-type", "application/json") };
        ask.body(body)
    }

    /// This body with its length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Length(body.into());
        self
    }

    /// These chunks.
    #[must_use]
    pub fn chunked<Chunk: Into<Vec<u8>>>(mut self, chunks: impl IntoIterator<Item = Chunk>) -> Self {
        self.body = Body::Chunked(chunks.into_iter().map(Into::into).collect());
        self
    }

    /// Whether the answer has no body whatever its head says.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The head, its framing field last.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.body {
            Body::None => {}
            Body::Length(body) => head.push_str(&format!("content-length: {}\r\n", body.len())),
            Body::Chunked(_) => head.push_str("transfer-encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// The body as it goes on the wire.
    pub fn wire_body(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Length(body) => body.clone(),
            Body::Chunked(chunks) => {
                let mut wire = Vec::new();
                for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                    wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    wire.extend_from_slice(chunk);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\n\r\n");
                wire
            }
        }
    }

    /// Head and body.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.extend_from_slice(&self.wire_body());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_was_put_together() {
        let ask = Ask::post("/v1/x", "t", "{}").with("a", "b").without("Authorization");
        assert_eq!(
            String::from_utf8(ask.bytes()).unwrap(),
            "POST /v1/x HTTP/1.1\r\nhost: llm-proxy.test\r\ncontent-type: application/json\r\na: b\r\n\
             content-length: 2\r\n\r\n{}"
        );
        let chunked = Ask::new("PUT", "/").chunked(["ab", "", "c"]);
        assert_eq!(chunked.wire_body(), b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
    }
}
