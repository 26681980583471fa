//! What each provider says when it refuses: its own JSON, so that its own SDK raises its own exception. Recorded
//! bodies where there are some, their documented shape elsewhere.

use std::sync::Arc;

use serde_json::json;

use super::answer::Answer;
use super::credentials::Provider;
use super::recordings::Recordings;

/// Why a request gets no answer of its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem<'a> {
    NoKey,
    WrongKey,
    UnknownPath,
    WrongMethod,
    UnknownModel(&'a str),
    RateLimited,
    Overloaded,
    MissingField(&'static str),
    BadJson,
    BadMultipart,
    BodyTooLarge,
    /// The request's framing, or steering that is not understood.
    Unreadable(String),
    /// A status somebody asked for.
    Asked(u16),
}

/// The answer of `provider` to a request with this problem.
pub(super) fn answer(recordings: &Recordings, provider: Provider, problem: &Problem<'_>) -> Arc<Answer> {
    let recorded = match (provider, problem) {
        (Provider::OpenAi, Problem::WrongKey) => Some("error-openai-401"),
        (Provider::Anthropic, Problem::WrongKey) => Some("error-anthropic-401"),
        (Provider::Azure, Problem::WrongKey | Problem::NoKey) => Some("error-azure-401"),
        (Provider::OpenAi, Problem::RateLimited) => Some("error-openai-429-rate"),
        (Provider::Gemini, Problem::RateLimited) => Some("error-gemini-429"),
        (Provider::Anthropic, Problem::Overloaded) => Some("error-anthropic-529"),
        _ => None,
    };
    recorded.and_then(|name| recordings.get(name)).unwrap_or_else(|| Arc::new(written(provider, problem)))
}

fn written(provider: Provider, problem: &Problem<'_>) -> Answer {
    let (status, code, param, message) = match problem {
        Problem::NoKey => (401, Some("invalid_api_key"), None, "You did not provide an API key.".to_owned()),
        Problem::WrongKey => (401, Some("invalid_api_key"), None, "The API key provided is not valid.".to_owned()),
        Problem::UnknownPath => (404, Some("unknown_url"), None, "There is nothing at this URL.".to_owned()),
        Problem::WrongMethod => (405, Some("method_not_supported"), None, "Not allowed at this URL.".to_owned()),
        Problem::UnknownModel(model) => (404, Some("model_not_found"), None, unknown_model(provider, model)),
        Problem::RateLimited => (429, Some("rate_limit_exceeded"), None, "Rate limit reached.".to_owned()),
        Problem::Overloaded => (503, Some("overloaded"), None, "The engine is overloaded.".to_owned()),
        Problem::MissingField(field) => (
            400,
            Some("missing_required_parameter"),
            Some(*field),
            match provider {
                Provider::Anthropic => format!("{field}: Field required"),
                Provider::Gemini => format!("* GenerateContentRequest.{field}: {field} is not specified\n"),
                Provider::OpenAi | Provider::Azure => format!("Missing required parameter: '{field}'."),
            },
        ),
        Problem::BadJson => (400, None, None, "The body of the request is not JSON.".to_owned()),
        Problem::BadMultipart => (400, None, None, "The body of the request is not multipart/form-data.".to_owned()),
        Problem::BodyTooLarge => (413, Some("request_too_large"), None, "The body is too large.".to_owned()),
        Problem::Unreadable(reason) => (400, Some("unreadable"), None, reason.clone()),
        Problem::Asked(status) => (*status, None, None, "As asked.".to_owned()),
    };
    let body = match provider {
        Provider::OpenAi => json!({"error": {
            "message": message, "type": openai_type(status), "param": param, "code": code,
        }}),
        Provider::Anthropic => json!({
            "type": "error",
            "error": {"type": anthropic_type(status), "message": message},
            "request_id": "req_mock",
        }),
        Provider::Gemini => json!({"error": {"code": status, "message": message, "status": google_status(status)}}),
        // Azure's gateway writes the status as a string; only its models add codes.
        Provider::Azure => json!({"error": {
            "code": code.map_or_else(|| status.to_string(), |code| match problem {
                Problem::UnknownModel(_) => "DeploymentNotFound".to_owned(),
                Problem::MissingField(_) => code.to_owned(),
                _ => status.to_string(),
            }),
            "message": message,
        }}),
    };
    let mut headers = match provider {
        Provider::OpenAi => vec![("x-request-id", "req_mock")],
        Provider::Anthropic => vec![("request-id", "req_mock")],
        Provider::Gemini => Vec::new(),
        Provider::Azure => vec![("apim-request-id", "00000000-0000-4000-8000-000000000000")],
    };
    if *problem == Problem::RateLimited {
        headers.extend([("retry-after", "2"), ("retry-after-ms", "1400")]);
        if provider == Provider::Anthropic {
            headers.extend([
                ("anthropic-ratelimit-requests-limit", "50"),
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:02Z"),
            ]);
        } else {
            headers.extend([("x-ratelimit-limit-requests", "60"), ("x-ratelimit-remaining-requests", "0")]);
        }
    }
    Answer::json(status, &headers, body.to_string().into_bytes())
}

fn unknown_model(provider: Provider, model: &str) -> String {
    match provider {
        Provider::OpenAi => format!("The model `{model}` does not exist or you do not have access to it."),
        Provider::Anthropic => format!("model: {model}"),
        Provider::Gemini => format!(
            "models/{model} is not found for API version v1beta, or is not supported for generateContent. \
             Call ModelService.ListModels to see the list of available models and their supported methods."
        ),
        Provider::Azure => "The API deployment for this resource does not exist.".to_owned(),
    }
}

fn openai_type(status: u16) -> &'static str {
    match status {
        429 => "requests",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn google_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        429 => "RESOURCE_EXHAUSTED",
        500 => "INTERNAL",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ if status < 500 => "INVALID_ARGUMENT",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_refuses_in_its_own_shape() {
        let recordings = Recordings::load().unwrap();
        for (provider, problem, status, pointer, expected) in [
            (Provider::OpenAi, Problem::WrongKey, 401, "/error/code", json!("invalid_api_key")),
            (Provider::OpenAi, Problem::NoKey, 401, "/error/code", json!("invalid_api_key")),
            (Provider::Anthropic, Problem::WrongKey, 401, "/error/type", json!("authentication_error")),
            (Provider::Anthropic, Problem::Overloaded, 529, "/error/type", json!("overloaded_error")),
            (Provider::Gemini, Problem::WrongKey, 401, "/error/status", json!("UNAUTHENTICATED")),
            (Provider::Azure, Problem::NoKey, 401, "/error/code", json!("401")),
            (Provider::OpenAi, Problem::MissingField("model"), 400, "/error/param", json!("model")),
            (Provider::Gemini, Problem::UnknownModel("x"), 404, "/error/code", json!(404)),
        ] {
            let answer = answer(&recordings, provider, &problem);
            let body: serde_json::Value = serde_json::from_slice(&answer.pieces.concat()).unwrap();
            assert_eq!(answer.status, status, "{provider:?} {problem:?}");
            assert_eq!(body.pointer(pointer), Some(&expected), "{provider:?} {problem:?}");
        }
    }
}
