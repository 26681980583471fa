//! Which answer a request gets: the recording it names, else what its endpoint answers to such a request. Decided
//! from the request alone; sending it, well or badly, is another matter.

use std::sync::Arc;

use anyhow::Context;

use super::answer::Answer;
use super::asked::Asked;
use super::credentials::Provider;
use super::errors::{self, Problem};
use super::made;
use super::recordings::Recordings;
use super::routes::{Endpoint, Route};
use super::steering::Steering;

/// All answers that do not depend on a request, ready to be sent.
pub(super) struct Answers {
    pub(super) recordings: Recordings,
    chat: Arc<Answer>,
    chat_stream: Arc<Answer>,
    chat_stream_usage: Arc<Answer>,
    azure_chat_stream: Arc<Answer>,
    completions_stream: Arc<Answer>,
    responses: Arc<Answer>,
    responses_stream: Arc<Answer>,
    messages: Arc<Answer>,
    messages_stream: Arc<Answer>,
    count_tokens: Arc<Answer>,
    generate: Arc<Answer>,
    generate_stream: Arc<Answer>,
    generate_array: Arc<Answer>,
    batch_embed: Arc<Answer>,
    embed: Arc<Answer>,
    embeddings: Both,
    embeddings_batch: Both,
}

/// One answer in both number formats.
struct Both {
    floats: Arc<Answer>,
    base64: Arc<Answer>,
}

impl Both {
    fn of(answer: &Arc<Answer>) -> anyhow::Result<Self> {
        let floats = made::embeddings_as(answer, false).context("an embeddings recording is not as expected")?;
        let base64 = made::embeddings_as(answer, true).context("an embeddings recording is not as expected")?;
        Ok(Self { floats, base64 })
    }
}

impl Answers {
    pub(super) fn load() -> anyhow::Result<Self> {
        let recordings = Recordings::load()?;
        let named = |name: &str| recordings.built_in(name);
        let generate_stream = named("gemini-stream-basic")?;
        let batch_embed = named("gemini-batch-embed")?;
        let embed = made::embed_content(&batch_embed).context("gemini-batch-embed is not as expected")?;
        Ok(Self {
            chat: named("openai-chat-basic")?,
            chat_stream: named("openai-chat-stream-no-usage")?,
            chat_stream_usage: named("openai-chat-stream-usage")?,
            azure_chat_stream: named("azure-chat-stream")?,
            completions_stream: named("openai-completions-stream")?,
            responses: named("openai-responses-basic")?,
            responses_stream: named("openai-responses-stream-basic")?,
            messages: named("anthropic-messages-basic")?,
            messages_stream: named("anthropic-messages-stream-basic")?,
            count_tokens: named("anthropic-count-tokens")?,
            generate: named("gemini-generate-thinking")?,
            generate_array: Arc::new(made::gemini_array(&generate_stream)),
            generate_stream,
            embed: Arc::new(embed),
            batch_embed,
            embeddings: Both::of(&named("openai-embeddings")?)?,
            embeddings_batch: Both::of(&named("openai-embeddings-batch")?)?,
            recordings,
        })
    }

    /// Decides the answer to a request whose credential is right. `body` is what was kept of it, `body_bytes` how
    /// much there was; `is_sse`: the query says `alt=sse`.
    pub(super) fn choose(
        &self,
        route: &Route<'_>,
        endpoint: Endpoint,
        steering: &Steering,
        body: &[u8],
        body_bytes: u64,
        is_sse: bool,
    ) -> Arc<Answer> {
        let chosen = match &steering.recording {
            // Who names a recording tests what comes back; the request may then be anything.
            Some(name) => self.named(name, endpoint, is_sse),
            None if endpoint.takes_json() && body.len() as u64 != body_bytes => Err(Problem::BodyTooLarge),
            None => self.by_endpoint(route, endpoint, steering, body, body_bytes, is_sse),
        };
        let chosen = chosen.unwrap_or_else(|problem| errors::answer(&self.recordings, route.provider, &problem));
        match steering.status {
            Some(status) if status == chosen.status => chosen,
            Some(status) if status < 400 || steering.recording.is_some() => Arc::new(chosen.with_status(status)),
            Some(status) => errors::answer(&self.recordings, route.provider, &Problem::Asked(status)),
            None => chosen,
        }
    }

    fn named(&self, name: &str, endpoint: Endpoint, is_sse: bool) -> Result<Arc<Answer>, Problem<'static>> {
        let missing = || Problem::Unreadable(format!("x-mock-recording: there is no recording {name}"));
        let answer = self.recordings.get(name).ok_or_else(missing)?;
        if endpoint == Endpoint::StreamGenerate && !is_sse && answer.is_stream {
            return Ok(Arc::new(made::gemini_array(&answer)));
        }
        Ok(answer)
    }

    fn by_endpoint(
        &self,
        route: &Route<'_>,
        endpoint: Endpoint,
        steering: &Steering,
        body: &[u8],
        body_bytes: u64,
        is_sse: bool,
    ) -> Result<Arc<Answer>, Problem<'static>> {
        let provider = route.provider;
        // A failure status somebody asked for needs no proper request.
        if steering.status.is_some_and(|status| status >= 400) {
            return Ok(self.chat.clone());
        }
        if !endpoint.takes_json() {
            return self.without_json(route, endpoint, body, body_bytes);
        }
        let asked = Asked::parse(body)?;
        let model = route.model.map(str::to_owned).or_else(|| asked.text("model")).unwrap_or_default();
        if let Some(problem) = of_model(provider, &model) {
            return Ok(errors::answer(&self.recordings, provider, &problem));
        }
        asked.require(endpoint, provider)?;
        let is_stream = asked.is_true("stream");
        Ok(match endpoint {
            Endpoint::Chat if !is_stream => self.chat.clone(),
            Endpoint::Chat if asked.includes_usage() => self.chat_stream_usage.clone(),
            Endpoint::Chat if provider == Provider::Azure => self.azure_chat_stream.clone(),
            Endpoint::Chat => self.chat_stream.clone(),
            Endpoint::Completions if is_stream => self.completions_stream.clone(),
            Endpoint::Completions => Arc::new(made::completion(&model)),
            Endpoint::Responses if is_stream => self.responses_stream.clone(),
            Endpoint::Responses => self.responses.clone(),
            Endpoint::Embeddings => {
                let both = if asked.is_array("input") { &self.embeddings_batch } else { &self.embeddings };
                let is_base64 = asked.text("encoding_format").as_deref() == Some("base64");
                if is_base64 { both.base64.clone() } else { both.floats.clone() }
            }
            Endpoint::Images => Arc::new(made::image(&model)),
            Endpoint::Speech => Arc::new(made::speech(&asked)),
            Endpoint::Messages if is_stream => self.messages_stream.clone(),
            Endpoint::Messages => self.messages.clone(),
            Endpoint::CountTokens => self.count_tokens.clone(),
            Endpoint::Generate => self.generate.clone(),
            Endpoint::StreamGenerate if is_sse => self.generate_stream.clone(),
            Endpoint::StreamGenerate => self.generate_array.clone(),
            Endpoint::EmbedContent => self.embed.clone(),
            Endpoint::BatchEmbedContents => self.batch_embed.clone(),
            Endpoint::CountContents => Arc::new(made::count_contents()),
            _ => Arc::new(made::moderation()),
        })
    }

    fn without_json(
        &self,
        route: &Route<'_>,
        endpoint: Endpoint,
        body: &[u8],
        body_bytes: u64,
    ) -> Result<Arc<Answer>, Problem<'static>> {
        let provider = route.provider;
        Ok(Arc::new(match endpoint {
            Endpoint::Models => made::models(provider),
            Endpoint::Model => {
                let model = percent_decoded(route.model.unwrap_or_default());
                match of_model(provider, &model) {
                    Some(problem) => return Ok(errors::answer(&self.recordings, provider, &problem)),
                    None => made::model(provider, &model),
                }
            }
            Endpoint::Transcriptions if memchr::memmem::find(body, b"name=\"").is_none() => {
                return Err(Problem::BadMultipart);
            }
            Endpoint::Transcriptions => made::transcription(body),
            _ => made::file(provider, body_bytes, body),
        }))
    }
}

impl Endpoint {
    /// Whether the request body is one JSON object.
    pub(super) fn takes_json(self) -> bool {
        !matches!(
            self,
            Self::Transcriptions
                | Self::Models
                | Self::Model
                | Self::Files
                | Self::Socket
                | Self::Recorded
                | Self::Echo
        )
    }
}

/// Models that are asked for in order to be refused.
pub(super) fn of_model(provider: Provider, model: &str) -> Option<Problem<'_>> {
    if model.contains("does-not-exist") {
        Some(Problem::UnknownModel(model))
    } else if model.contains("rate-limited") {
        Some(Problem::RateLimited)
    } else if model.contains("overloaded") && provider == Provider::Anthropic {
        Some(Problem::Overloaded)
    } else {
        None
    }
}

/// Decodes `%XX`; what is not valid stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|hex| *first == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        let octet = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(octet.unwrap_or(*first));
        rest = if octet.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn choose(provider: Provider, endpoint: Endpoint, model: Option<&str>, body: &str) -> Arc<Answer> {
        let route = Route { provider, endpoint: Ok(endpoint), template: Cow::Borrowed(""), model };
        let answers = Answers::load().unwrap();
        answers.choose(&route, endpoint, &Steering::default(), body.as_bytes(), body.len() as u64, true)
    }

    #[test]
    fn the_request_decides_the_recording() {
        for (provider, endpoint, body, expected) in [
            (Provider::OpenAi, Endpoint::Chat, r#"{"model":"m","messages":[]}"#, Some("openai-chat-basic")),
            (
                Provider::OpenAi,
                Endpoint::Chat,
                r#"{"model":"m","messages":[],"stream":true}"#,
                Some("openai-chat-stream-no-usage"),
            ),
            (
                Provider::OpenAi,
                Endpoint::Chat,
                r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#,
                Some("openai-chat-stream-usage"),
            ),
            (Provider::OpenAi, Endpoint::Embeddings, r#"{"model":"m","input":"a"}"#, None),
            (
                Provider::OpenAi,
                Endpoint::Embeddings,
                r#"{"model":"m","input":"a","encoding_format":"base64"}"#,
                Some("openai-embeddings"),
            ),
            (
                Provider::Anthropic,
                Endpoint::Messages,
                r#"{"model":"overloaded","messages":[],"max_tokens":1}"#,
                Some("error-anthropic-529"),
            ),
            (Provider::Azure, Endpoint::Chat, r#"{"messages":[],"stream":true}"#, Some("azure-chat-stream")),
        ] {
            let answer = choose(provider, endpoint, None, body);
            assert_eq!(answer.recording.as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn models_in_paths_are_judged_too() {
        let body = r#"{"contents":[]}"#;
        assert_eq!(choose(Provider::Gemini, Endpoint::Generate, Some("does-not-exist"), body).status, 404);
        assert_eq!(choose(Provider::Gemini, Endpoint::Generate, Some("gemini-2.5-flash"), body).status, 200);
        assert_eq!(percent_decoded("ft%3Agpt%2"), "ft:gpt%2");
    }
}
