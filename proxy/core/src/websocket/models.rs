//! The models that a client names on a WebSocket, for the token's model list.
//!
//! Where a model stands: OpenAI's realtime API takes it in the query, with Azure as the deployment; a `session.update` may
//! name one, for the conversation and for the transcription of the caller's speech, which is a model of its own at its own
//! price. The Responses API's socket takes it in `response.create`, with those of its tools. Gemini Live takes it in its
//! first message, `setup`, and nowhere else. The places are read in every message, whatever `type` it says it has.
//!
//! As with bodies, what two parsers could read differently is refused: a name on the way that stands there twice or in
//! another letter case. All of it costs one pass over a message, and is needed only for tokens that have a model list.

use crate::body::UnclearModels;
use crate::body::members::{Unclear, decoded, members};
use crate::body::models::{in_list, in_tools};
use crate::dialect::Dialect;
use crate::policy::Naming;

/// A message that the model list cannot be held against. Close code 1008 says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnclearModel {
    /// Not one JSON object.
    #[error("the message is not one JSON object")]
    NotAnObject,
    /// Two parsers could see two models.
    #[error("the message has `{0}` twice, or not in its own letter case")]
    Twice(&'static str),
    /// The model is no text.
    #[error("the message has a model that is not a text")]
    NotAText,
    /// The models beside it cannot be judged.
    #[error(transparent)]
    Others(#[from] UnclearModels),
}

/// The query parameters that name the model of a socket.
pub const fn query_fields(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::OpenAi => &["model"],
        Dialect::Azure => &["deployment", "model"],
        Dialect::Anthropic | Dialect::Gemini => &[],
    }
}

/// The models that a whole message of the client names, the conversation's before the transcription's. Each of them must
/// be allowed. Usually none. Of a Gemini session the first message must name one.
///
/// # Errors
/// [`UnclearModel`].
pub fn named(dialect: Dialect, message: &[u8]) -> Result<Vec<String>, UnclearModel> {
    let message = std::str::from_utf8(message).map_err(|_| UnclearModel::NotAnObject)?;
    let mut models = Vec::new();
    match dialect {
        Dialect::OpenAi | Dialect::Azure => openai(message, &mut models)?,
        Dialect::Gemini => {
            let [setup] = object(message, Naming::Proto, ["setup"])?;
            let [model] = within(setup, Naming::Proto, ["model"])?;
            put(model, &mut models)?;
            for model in &mut models {
                // The path of a request names a Gemini model without this; a model list therefore does, too.
                if let Some(id) = model.strip_prefix("models/") {
                    *model = id.to_owned();
                }
            }
        }
        Dialect::Anthropic => {
            object(message, Naming::Exact, [])?;
        }
    }
    Ok(models)
}

fn openai(message: &str, models: &mut Vec<String>) -> Result<(), UnclearModel> {
    let names = ["model", "models", "tools", "response", "session"];
    let [model, list, tools, response, session] = object(message, Naming::Exact, names)?;
    put_all([model, list, tools], models)?;
    put_all(within(response, Naming::Exact, ["model", "models", "tools"])?, models)?;
    let names = ["model", "audio", "input_audio_transcription"];
    let [model, audio, transcription] = within(session, Naming::Exact, names)?;
    put(model, models)?;
    let [input] = within(audio, Naming::Exact, ["input"])?;
    let [audio_transcription] = within(input, Naming::Exact, ["transcription"])?;
    for transcription in [audio_transcription, transcription] {
        let [model] = within(transcription, Naming::Exact, ["model"])?;
        put(model, models)?;
    }
    Ok(())
}

/// The wanted members of what must be an object.
fn object<'j, const N: usize>(
    json: &'j str,
    naming: Naming,
    names: [&'static str; N],
) -> Result<[Option<&'j str>; N], UnclearModel> {
    match members(json, naming, names) {
        Ok(Some(found)) => Ok(found),
        Ok(None) | Err(Unclear::NotJson(_)) => Err(UnclearModel::NotAnObject),
        Err(Unclear::Twice(place)) => Err(UnclearModel::Twice(names.get(place).copied().unwrap_or_default())),
    }
}

/// Those of a member. What is no object (null, say) has no model in it.
fn within<'j, const N: usize>(
    json: Option<&'j str>,
    naming: Naming,
    names: [&'static str; N],
) -> Result<[Option<&'j str>; N], UnclearModel> {
    match json.filter(|json| json.starts_with('{')) {
        Some(json) => object(json, naming, names),
        None => Ok([None; N]),
    }
}

/// Takes down `model`, `models` and `tools` of a response that is asked for.
fn put_all([model, list, tools]: [Option<&str>; 3], models: &mut Vec<String>) -> Result<(), UnclearModel> {
    put(model, models)?;
    if let Some(list) = list {
        in_list(list, |model| models.push(model.to_owned()))?;
    }
    if let Some(tools) = tools {
        in_tools(tools, |model| models.push(model.to_owned()))?;
    }
    Ok(())
}

fn put(model: Option<&str>, models: &mut Vec<String>) -> Result<(), UnclearModel> {
    if let Some(model) = model.filter(|model| *model != "null") {
        models.push(decoded(model).map_err(|_| UnclearModel::NotAText)?.into_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn models_are_found_where_each_api_takes_them() {
        let (openai, gemini) = (Dialect::OpenAi, Dialect::Gemini);
        let voice = r#"{"type":"session.update","session":{"type":"realtime","model":"gpt-realtime","audio":{"input":{"transcription":{"model":"whisper-1"}},"output":{"voice":"alloy"}},"tools":[{"model":"no"}]}}"#;
        for (dialect, message, expected) in [
            (openai, voice, vec!["gpt-realtime", "whisper-1"]),
            (Dialect::Azure, voice, vec!["gpt-realtime", "whisper-1"]),
            (
                openai,
                r#"{"type":"transcription_session.update","session":{"input_audio_transcription":{"model":"gpt-4o-transcribe"}}}"#,
                vec!["gpt-4o-transcribe"],
            ),
            (openai, r#"{"type":"response.create","model":"gpt-5","input":[]}"#, vec!["gpt-5"]),
            (openai, r#"{"type":"response.create","response":{"model":"gpt-realtime"}}"#, vec!["gpt-realtime"]),
            (
                openai,
                r#"{"type":"response.create","tools":[{"type":"function"},{"type":"image_generation","model":"gpt-image-1"}],"model":"gpt-5","models":["o3"]}"#,
                vec!["gpt-5", "o3", "gpt-image-1"],
            ),
            (
                openai,
                r#"{"type":"response.create","response":{"tools":[{"model":"gpt-image-1"}],"models":["o3"]}}"#,
                vec!["o3", "gpt-image-1"],
            ),
            (openai, r#"{"type":"response.create","tools":null}"#, vec![]),
            (openai, r#"{"type":"response.create"}"#, vec![]),
            (openai, r#"{"type":"input_audio_buffer.append","audio":"bW9kZWw="}"#, vec![]),
            (openai, r#"{"session":null,"response":"model","model":null}"#, vec![]),
            (openai, r#"{"session":{"audio":{"input":{"transcription":null}}}}"#, vec![]),
            (openai, r#"{"item":{"model":"no"},"x":[{"model":"no"}]}"#, vec![]),
            (openai, r#"{"session":[{"model":"no"}],"response":1e999}"#, vec![]),
            (openai, r#" {"\u0073ession":{"mod\u0065l":"gpt-\u0034"}} "#, vec!["gpt-4"]),
            (gemini, r#"{"setup":{"model":"models/gemini-2.5-flash-live"}}"#, vec!["gemini-2.5-flash-live"]),
            (gemini, r#"{"setup":{"model":"gemini-x","generationConfig":{}}}"#, vec!["gemini-x"]),
            (gemini, r#"{"setup":{"model":"tunedModels/mine"}}"#, vec!["tunedModels/mine"]),
            (gemini, r#"{"realtimeInput":{"audio":{"data":"","mimeType":"audio/pcm"}}}"#, vec![]),
            (gemini, r#"{"model":"no","session":{"model":"no"}}"#, vec![]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(named(dialect, message.as_bytes()), Ok(expected), "{message}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let deep = ["{\"session\":", &"[".repeat(10_000), &"]".repeat(10_000), "}"].concat();
        assert_eq!(named(Dialect::OpenAi, deep.as_bytes()), Ok(vec![]), "depth costs no stack");
        for (message, expected) in [
            (r#"{"session":{"model":"a","model":"b"}}"#, UnclearModel::Twice("model")),
            (r#"{"session":{"model":"a","mod\u0065l":"b"}}"#, UnclearModel::Twice("model")),
            (r#"{"session":{"Model":"a"}}"#, UnclearModel::Twice("model")),
            (r#"{"session":{},"session":{"model":"a"}}"#, UnclearModel::Twice("session")),
            (r#"{"session":{},"SESSION":{"model":"a"}}"#, UnclearModel::Twice("session")),
            (r#"{"session":{"audio":{},"audio":{}}}"#, UnclearModel::Twice("audio")),
            (r#"{"session":{"model":7}}"#, UnclearModel::NotAText),
            (r#"{"model":["a"]}"#, UnclearModel::NotAText),
            (r#"{"models":"a"}"#, UnclearModel::Others(UnclearModels::Models)),
            (r#"{"response":{"models":null}}"#, UnclearModel::Others(UnclearModels::Models)),
            (r#"{"tools":[{"model":"a","model":"b"}]}"#, UnclearModel::Others(UnclearModels::Tools)),
            (r#"{"tools":{"model":"a"}}"#, UnclearModel::Others(UnclearModels::Tools)),
            (r#"{"session":{"\ud800":1,"model":"a"}}"#, UnclearModel::NotAnObject),
            (r#"{"model":"\ud800"}"#, UnclearModel::NotAText),
            ("", UnclearModel::NotAnObject),
            ("[]", UnclearModel::NotAnObject),
            ("\"model\"", UnclearModel::NotAnObject),
            ("{\"model\":\"a\"}{}", UnclearModel::NotAnObject),
            ("{\"model\":\"a\",}", UnclearModel::NotAnObject),
            ("\u{FEFF}{}", UnclearModel::NotAnObject),
        ] {
            assert_eq!(named(Dialect::OpenAi, message.as_bytes()), Err(expected), "{message}");
        }
        assert_eq!(named(Dialect::OpenAi, b"{\"x\":\"\xFF\"}"), Err(UnclearModel::NotAnObject));
        for dialect in Dialect::ALL {
            assert_eq!(named(dialect, b"[]"), Err(UnclearModel::NotAnObject), "{dialect}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_named_as_it_was_written(model in ".{0,40}", other in ".{0,40}") {
            let message = serde_json::json!({
                "event_id": other,
                "session": {"instructions": other, "model": model},
            });
            prop_assert_eq!(named(Dialect::OpenAi, message.to_string().as_bytes()), Ok(vec![model]));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            for dialect in Dialect::ALL {
                let _ = named(dialect, &bytes);
            }
        }
    }
}
