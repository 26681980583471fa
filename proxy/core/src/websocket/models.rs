//! The models that a client names on a WebSocket, for the token's model list.
//!
//! Where a model stands: OpenAI's realtime API takes it in the query, with Azure as the deployment; a `session.update` may
//! name one, for the conversation and for the transcription of the caller's speech, which is a model of its own at its own
//! price. The Responses API's socket takes it in `response.create`. Gemini Live takes it in its first message, `setup`,
//! and nowhere else. The places are read in every message, whatever `type` it says it has.
//!
//! As with bodies, what two parsers could read differently is refused: a name on the way that stands there twice or in
//! another letter case. All of it costs one pass over a message, and is needed only for tokens that have a model list.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::dialect::Dialect;

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
    let members = Members::of(message).ok_or(UnclearModel::NotAnObject)?;
    let mut models = Vec::new();
    for path in places(dialect) {
        if let Some(model) = find(&members, path)? {
            // The path of a request names a Gemini model without this; a model list therefore does, too.
            let id = if dialect == Dialect::Gemini { model.strip_prefix("models/") } else { None };
            models.push(id.unwrap_or(&model).to_owned());
        }
    }
    Ok(models)
}

/// Where a client's message may name a model: names from the outside in.
const fn places(dialect: Dialect) -> &'static [&'static [&'static str]] {
    match dialect {
        Dialect::OpenAi | Dialect::Azure => &[
            &["model"],
            &["response", "model"],
            &["session", "model"],
            &["session", "audio", "input", "transcription", "model"],
            &["session", "input_audio_transcription", "model"],
        ],
        Dialect::Gemini => &[&["setup", "model"]],
        Dialect::Anthropic => &[],
    }
}

fn find(members: &Members<'_>, path: &[&'static str]) -> Result<Option<String>, UnclearModel> {
    let Some((&name, deeper)) = path.split_first() else { return Ok(None) };
    let Some(value) = members.get(name)? else { return Ok(None) };
    if deeper.is_empty() {
        return serde_json::from_str::<Option<String>>(value.get()).map_err(|_| UnclearModel::NotAText);
    }
    // What is no object (null, say) has no model in it.
    match Members::of(value.get().as_bytes()) {
        Some(members) => find(&members, deeper),
        None => Ok(None),
    }
}

/// An object's members in their order, doubles among them.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn of(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The one member of this name.
    fn get(&self, name: &'static str) -> Result<Option<&'a RawValue>, UnclearModel> {
        let mut found = None;
        for (spelled, value) in &self.0 {
            if spelled.eq_ignore_ascii_case(name) && (spelled != name || found.replace(*value).is_some()) {
                return Err(UnclearModel::Twice(name));
            }
        }
        Ok(found)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AllMembers)
    }
}

struct AllMembers;

impl<'de> Visitor<'de> for AllMembers {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
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
            (openai, r#"{"type":"response.create"}"#, vec![]),
            (openai, r#"{"type":"input_audio_buffer.append","audio":"bW9kZWw="}"#, vec![]),
            (openai, r#"{"session":null,"response":"model","model":null}"#, vec![]),
            (openai, r#"{"session":{"audio":{"input":{"transcription":null}}}}"#, vec![]),
            (openai, r#"{"item":{"model":"no"},"x":[{"model":"no"}]}"#, vec![]),
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
