//! What a JSON request asks for, as far as an answer depends on it. Read the way providers read: of a field that
//! stands twice the last one counts, unknown fields are theirs to know.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::credentials::Provider;
use super::errors::Problem;
use super::routes::Endpoint;

/// The top-level fields of a request.
pub(super) struct Asked<'a> {
    fields: HashMap<String, &'a RawValue>,
}

impl<'a> Asked<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, Problem<'static>> {
        serde_json::from_slice(body).map(|fields| Self { fields }).map_err(|_| Problem::BadJson)
    }

    /// Fails with the first field that the endpoint cannot do without.
    pub(super) fn require(&self, endpoint: Endpoint, provider: Provider) -> Result<(), Problem<'static>> {
        let needed: &[&'static str] = match endpoint {
            Endpoint::Chat => &["model", "messages"],
            Endpoint::Completions => &["model", "prompt"],
            Endpoint::Responses => &["model", "input"],
            Endpoint::Embeddings => &["model", "input"],
            Endpoint::Images => &["prompt"],
            Endpoint::Speech => &["model", "input", "voice"],
            Endpoint::Moderations => &["input"],
            Endpoint::Messages => &["model", "max_tokens", "messages"],
            Endpoint::CountTokens => &["model", "messages"],
            Endpoint::Generate | Endpoint::StreamGenerate | Endpoint::CountContents => &["contents"],
            Endpoint::EmbedContent => &["content"],
            Endpoint::BatchEmbedContents => &["requests"],
            _ => &[],
        };
        for &name in needed {
            // Azure takes the model from the path.
            let is_in_path = name == "model" && provider == Provider::Azure;
            if !is_in_path && self.raw(name).is_none() {
                return Err(Problem::MissingField(name));
            }
        }
        Ok(())
    }

    /// A text field.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.raw(name)?.get()).ok()
    }

    /// Whether a field is `true`.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| value.get() == "true")
    }

    /// Whether a field is an array.
    pub(super) fn is_array(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| value.get().starts_with('['))
    }

    /// Whether `stream_options.include_usage` is `true`.
    pub(super) fn includes_usage(&self) -> bool {
        self.raw("stream_options")
            .and_then(|options| serde_json::from_str::<HashMap<String, &RawValue>>(options.get()).ok())
            .is_some_and(|options| options.get("include_usage").is_some_and(|value| value.get() == "true"))
    }

    /// A field that is present and not null.
    fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.fields.get(name).copied().filter(|value| value.get() != "null")
    }
}

/// The text field `name` of a multipart form, found wherever it stands.
pub(super) fn form_field(body: &[u8], name: &str) -> Option<String> {
    let mark = format!("name=\"{name}\"");
    let after = memchr::memmem::find(body, mark.as_bytes())?.checked_add(mark.len())?;
    let rest = body.get(after..)?;
    let start = memchr::memmem::find(rest, b"\r\n\r\n")?.checked_add(4)?;
    let rest = rest.get(start..)?;
    let value = rest.get(..memchr::memmem::find(rest, b"\r\n")?)?;
    String::from_utf8(value.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_fields_are_named_in_order() {
        for (body, endpoint, provider, expected) in [
            (r#"{"model":"m","messages":[]}"#, Endpoint::Chat, Provider::OpenAi, Ok(())),
            (r#"{"messages":[]}"#, Endpoint::Chat, Provider::OpenAi, Err(Problem::MissingField("model"))),
            (r#"{"messages":[]}"#, Endpoint::Chat, Provider::Azure, Ok(())),
            (r#"{"model":null}"#, Endpoint::Chat, Provider::OpenAi, Err(Problem::MissingField("model"))),
            (
                r#"{"model":"m","messages":[]}"#,
                Endpoint::Messages,
                Provider::Anthropic,
                Err(Problem::MissingField("max_tokens")),
            ),
        ] {
            assert_eq!(Asked::parse(body.as_bytes()).unwrap().require(endpoint, provider), expected, "{body}");
        }
        assert_eq!(Asked::parse(b"[]").err(), Some(Problem::BadJson));
    }

    #[test]
    fn a_form_field_is_found_after_the_file() {
        let body = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--b\r\n\
                    content-disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b--\r\n";
        assert_eq!(form_field(body.as_bytes(), "model").as_deref(), Some("whisper-1"));
        assert_eq!(form_field(body.as_bytes(), "stream"), None);
    }
}
