//! Which endpoint of which provider a request is for. All four live under one address here, as under the proxy's
//! bare host, so the path decides and, where two share one, what the caller's SDK sends beside it.

use std::borrow::Cow;

use super::credentials::Provider;
use super::errors::Problem;
use super::head::Head;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    Images,
    Transcriptions,
    Speech,
    Moderations,
    Models,
    Model,
    Files,
    Messages,
    CountTokens,
    Generate,
    StreamGenerate,
    EmbedContent,
    BatchEmbedContents,
    CountContents,
    /// A WebSocket.
    Socket,
    /// Any other path, with a recording asked for by name.
    Recorded,
    Echo,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(super) struct Route<'a> {
    pub(super) provider: Provider,
    pub(super) endpoint: Result<Endpoint, Problem<'static>>,
    /// The path with ids replaced, for the books.
    pub(super) template: Cow<'static, str>,
    /// The model, where the path names it, or the query of a WebSocket.
    pub(super) model: Option<&'a str>,
}

/// Finds the endpoint of a request. `has_recording`: the request names a recording.
pub(super) fn route(head: &Head, has_recording: bool) -> Route<'_> {
    let path = head.path();
    let found = fixed(head, path)
        .or_else(|| socket(head, path))
        .or_else(|| azure(path))
        .or_else(|| gemini(path))
        .or_else(|| model(head, path));
    let Some((endpoint, method, mut route)) = found else {
        let endpoint = if has_recording { Ok(Endpoint::Recorded) } else { Err(Problem::UnknownPath) };
        return Route { provider: provider_of(head), endpoint, template: Cow::Borrowed("(other)"), model: None };
    };
    let is_right = method == head.method || method == "*" || (method == "GET" && head.method == "HEAD");
    route.endpoint = if is_right { Ok(endpoint) } else { Err(Problem::WrongMethod) };
    route
}

/// An endpoint, its method and where it is.
type Found<'a> = (Endpoint, &'static str, Route<'a>);

fn found<'a>(
    endpoint: Endpoint,
    method: &'static str,
    provider: Provider,
    template: impl Into<Cow<'static, str>>,
    model: Option<&'a str>,
) -> Option<Found<'a>> {
    Some((endpoint, method, Route { provider, endpoint: Ok(endpoint), template: template.into(), model }))
}

fn fixed<'a>(head: &Head, path: &str) -> Option<Found<'a>> {
    use Provider::{Anthropic, Gemini, OpenAi};
    let (endpoint, method, provider, template) = match path {
        "/v1/chat/completions" => (Endpoint::Chat, "POST", OpenAi, "/v1/chat/completions"),
        "/v1/completions" => (Endpoint::Completions, "POST", OpenAi, "/v1/completions"),
        "/v1/responses" => (Endpoint::Responses, "POST", OpenAi, "/v1/responses"),
        "/v1/embeddings" => (Endpoint::Embeddings, "POST", OpenAi, "/v1/embeddings"),
        "/v1/images/generations" => (Endpoint::Images, "POST", OpenAi, "/v1/images/generations"),
        "/v1/audio/transcriptions" => (Endpoint::Transcriptions, "POST", OpenAi, "/v1/audio/transcriptions"),
        "/v1/audio/translations" => (Endpoint::Transcriptions, "POST", OpenAi, "/v1/audio/translations"),
        "/v1/audio/speech" => (Endpoint::Speech, "POST", OpenAi, "/v1/audio/speech"),
        "/v1/moderations" => (Endpoint::Moderations, "POST", OpenAi, "/v1/moderations"),
        "/v1/files" => (Endpoint::Files, "POST", provider_of(head), "/v1/files"),
        "/upload/v1beta/files" => (Endpoint::Files, "POST", Gemini, "/upload/v1beta/files"),
        "/v1/models" => (Endpoint::Models, "GET", provider_of(head), "/v1/models"),
        "/v1beta/models" => (Endpoint::Models, "GET", Gemini, "/v1beta/models"),
        "/v1/messages" => (Endpoint::Messages, "POST", Anthropic, "/v1/messages"),
        "/v1/messages/count_tokens" => (Endpoint::CountTokens, "POST", Anthropic, "/v1/messages/count_tokens"),
        "/__mock/echo" => (Endpoint::Echo, "*", provider_of(head), "/__mock/echo"),
        _ if path.starts_with("/__mock/echo/") => (Endpoint::Echo, "*", provider_of(head), "/__mock/echo"),
        _ => return None,
    };
    found(endpoint, method, provider, template, None)
}

/// The realtime APIs. Azure calls a model a deployment in the older path; Gemini names it in the first message.
fn socket<'a>(head: &'a Head, path: &str) -> Option<Found<'a>> {
    let (provider, model) = match path {
        "/v1/realtime" => (Provider::OpenAi, head.query("model")),
        "/openai/realtime" => (Provider::Azure, head.query("deployment")),
        "/openai/v1/realtime" => (Provider::Azure, head.query("model")),
        _ => {
            let version = path.strip_prefix("/ws/google.ai.generativelanguage.")?;
            let version = version.strip_suffix(".GenerativeService.BidiGenerateContent")?;
            if !matches!(version, "v1" | "v1alpha" | "v1beta") {
                return None;
            }
            (Provider::Gemini, None)
        }
    };
    found(Endpoint::Socket, "GET", provider, path.to_owned(), model)
}

/// `/openai/deployments/{deployment}/…` and the newer `/openai/v1/…`.
fn azure(path: &str) -> Option<Found<'_>> {
    let rest = path.strip_prefix("/openai/")?;
    let (model, operation, root) = match rest.strip_prefix("deployments/") {
        Some(rest) => {
            let (deployment, operation) = rest.split_once('/')?;
            (Some(deployment), operation, "/openai/deployments/{deployment}")
        }
        None => (None, rest.strip_prefix("v1/")?, "/openai/v1"),
    };
    let endpoint = match operation {
        "chat/completions" => Endpoint::Chat,
        "completions" => Endpoint::Completions,
        "responses" => Endpoint::Responses,
        "embeddings" => Endpoint::Embeddings,
        "images/generations" => Endpoint::Images,
        "audio/transcriptions" | "audio/translations" => Endpoint::Transcriptions,
        "audio/speech" => Endpoint::Speech,
        _ => return None,
    };
    found(endpoint, "POST", Provider::Azure, format!("{root}/{operation}"), model)
}

/// `/v1[beta]/models/{model}:verb`.
fn gemini(path: &str) -> Option<Found<'_>> {
    let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
    let (kind, rest) = rest.split_once('/')?;
    let (model, verb) = rest.rsplit_once(':')?;
    if !matches!(version, "v1" | "v1beta") || !matches!(kind, "models" | "tunedModels") {
        return None;
    }
    let endpoint = match verb {
        "generateContent" => Endpoint::Generate,
        "streamGenerateContent" => Endpoint::StreamGenerate,
        "embedContent" => Endpoint::EmbedContent,
        "batchEmbedContents" => Endpoint::BatchEmbedContents,
        "countTokens" => Endpoint::CountContents,
        _ => return None,
    };
    found(endpoint, "POST", Provider::Gemini, format!("/{version}/{kind}/{{model}}:{verb}"), Some(model))
}

/// `/v1/models/{model}`: any id, its `/` and `:` included.
fn model<'a>(head: &Head, path: &'a str) -> Option<Found<'a>> {
    if let Some(model) = path.strip_prefix("/v1beta/models/") {
        return found(Endpoint::Model, "GET", Provider::Gemini, "/v1beta/models/{model}", Some(model));
    }
    let model = path.strip_prefix("/v1/models/").filter(|model| !model.is_empty())?;
    found(Endpoint::Model, "GET", provider_of(head), "/v1/models/{model}", Some(model))
}

/// Whose SDK sent this, where the path does not say.
fn provider_of(head: &Head) -> Provider {
    if head.header("anthropic-version").is_some() {
        Provider::Anthropic
    } else if head.header("x-goog-api-key").is_some()
        || head.query("key").is_some()
        || head.path().starts_with("/v1beta/")
    {
        Provider::Gemini
    } else if head.header("api-key").is_some() || head.path().starts_with("/openai/") {
        Provider::Azure
    } else {
        Provider::OpenAi
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    #[test]
    fn paths_lead_to_endpoints() {
        for (line, provider, endpoint, template, model) in [
            ("POST /v1/chat/completions", Provider::OpenAi, Ok(Endpoint::Chat), "/v1/chat/completions", None),
            ("GET /v1/chat/completions", Provider::OpenAi, Err(Problem::WrongMethod), "/v1/chat/completions", None),
            ("GET /v1/models/ft%3Agpt", Provider::OpenAi, Ok(Endpoint::Model), "/v1/models/{model}", Some("ft%3Agpt")),
            (
                "POST /v1/models/g:streamGenerateContent?alt=sse",
                Provider::Gemini,
                Ok(Endpoint::StreamGenerate),
                "/v1/models/{model}:streamGenerateContent",
                Some("g"),
            ),
            (
                "POST /openai/deployments/d/chat/completions?api-version=1",
                Provider::Azure,
                Ok(Endpoint::Chat),
                "/openai/deployments/{deployment}/chat/completions",
                Some("d"),
            ),
            (
                "GET /v1/realtime?model=gpt-realtime",
                Provider::OpenAi,
                Ok(Endpoint::Socket),
                "/v1/realtime",
                Some("gpt-realtime"),
            ),
            (
                "GET /openai/realtime?api-version=1&deployment=d",
                Provider::Azure,
                Ok(Endpoint::Socket),
                "/openai/realtime",
                Some("d"),
            ),
            (
                "GET /ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent?key=k",
                Provider::Gemini,
                Ok(Endpoint::Socket),
                "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
                None,
            ),
            ("POST /v1/nothing", Provider::OpenAi, Err(Problem::UnknownPath), "(other)", None),
        ] {
            let text = format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n");
            let head = Head::take(&mut BytesMut::from(text.as_str())).unwrap().unwrap();
            let route = route(&head, false);
            assert_eq!(
                (route.provider, route.endpoint, route.template.as_ref(), route.model),
                (provider, endpoint, template, model)
            );
        }
    }
}
