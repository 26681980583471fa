//! What the realtime APIs say on a WebSocket, decided from what they are told: OpenAI's (Azure speaks alike) and
//! Gemini's Live API. Every id is counted, not drawn, so that two sessions with the same questions get the same answers.
//!
//! Both bill the whole conversation again with each response; so does the usage here grow with them.

use serde_json::{Map, Value, json};

use super::answer::Tokens;
use super::credentials::Provider;
use super::frames::Opcode;

/// When sessions and calls expire: far away, and always the same.
const EXPIRES_AT: u64 = 4_102_444_800;
/// What every response says.
const WORDS: [&str; 3] = ["This ", "is ", "a test."];

/// One message of the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) opcode: Opcode,
    pub(super) payload: Vec<u8>,
    /// What it reports as spent.
    pub(super) tokens: Option<Tokens>,
}

/// What follows a message: more of them, and perhaps a close frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) said: Vec<Said>,
    pub(super) close: Option<(u16, &'static str)>,
}

/// One side of a conversation.
pub(super) enum Speaker {
    OpenAi(OpenAi),
    Gemini(Gemini),
}

impl Speaker {
    /// `model`: as the query names it.
    pub(super) fn new(provider: Provider, model: Option<&str>) -> Self {
        match provider {
            Provider::Gemini => Self::Gemini(Gemini::default()),
            _ => Self::OpenAi(OpenAi::new(model.unwrap_or("gpt-realtime"))),
        }
    }

    /// What is said before anything is heard.
    pub(super) fn first_words(&mut self) -> Vec<Said> {
        match self {
            Self::OpenAi(speaker) => vec![speaker.session("session.created")],
            Self::Gemini(_) => Vec::new(),
        }
    }

    /// What follows a message, text or binary.
    pub(super) fn answer(&mut self, message: &[u8]) -> Reply {
        let message: Option<Map<String, Value>> = serde_json::from_slice(message).ok();
        match self {
            Self::OpenAi(speaker) => Reply { said: speaker.answer(message.as_ref()), close: None },
            Self::Gemini(speaker) => speaker.answer(message.as_ref()),
        }
    }
}

/// OpenAI's realtime API, its generally available form.
pub(super) struct OpenAi {
    session: Value,
    events: u64,
    items: u64,
    responses: u64,
}

impl OpenAi {
    fn new(model: &str) -> Self {
        let format = json!({"type": "audio/pcm", "rate": 24000});
        let session = json!({
            "type": "realtime", "object": "realtime.session", "id": "sess_mock", "model": model,
            "output_modalities": ["audio"], "instructions": "You are a mock.", "tools": [], "tool_choice": "auto",
            "max_output_tokens": "inf", "tracing": null, "truncation": "auto", "prompt": null,
            "expires_at": EXPIRES_AT,
            "audio": {
                "input": {"format": format, "transcription": null, "noise_reduction": null, "turn_detection": null},
                "output": {"format": format, "voice": "alloy", "speed": 1.0},
            },
            "include": null,
        });
        Self { session, events: 0, items: 0, responses: 0 }
    }

    fn answer(&mut self, message: Option<&Map<String, Value>>) -> Vec<Said> {
        let Some(message) = message else { return vec![self.error("invalid_json", "The message is not JSON.")] };
        match message.get("type").and_then(Value::as_str).unwrap_or_default() {
            "session.update" => {
                let model = self.session.get("model").cloned();
                merge(&mut self.session, message.get("session").unwrap_or(&Value::Null));
                // A session keeps the model that it began with.
                if let (Some(model), Some(kept)) = (model, self.session.get_mut("model")) {
                    *kept = model;
                }
                vec![self.session("session.updated")]
            }
            "conversation.item.create" => {
                let mut item = message.get("item").cloned().unwrap_or_default();
                merge(&mut item, &json!({"id": self.next_item(), "status": "completed"}));
                vec![
                    self.event("conversation.item.added", json!({"previous_item_id": null, "item": item})),
                    self.event("conversation.item.done", json!({"previous_item_id": null, "item": item})),
                ]
            }
            "response.create" => self.response(),
            "input_audio_buffer.append" => Vec::new(),
            "input_audio_buffer.clear" => vec![self.event("input_audio_buffer.cleared", json!({}))],
            "input_audio_buffer.commit" => {
                let item = self.next_item();
                vec![self.event("input_audio_buffer.committed", json!({"previous_item_id": null, "item_id": item}))]
            }
            _ => vec![self.error("unknown_event", "There is no event of this type.")],
        }
    }

    fn response(&mut self) -> Vec<Said> {
        self.responses = self.responses.saturating_add(1);
        let (response_id, item_id) = (format!("resp_mock_{}", self.responses), self.next_item());
        let text = WORDS.concat();
        let item = |status: &str, content: Value| json!({"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content});
        let said_item = item("completed", json!([{"type": "output_text", "text": text}]));
        let (tokens, usage) = openai_usage(self.responses);
        let response = |status: &str, output: Value, usage: Value| {
            json!({"response": {
                "object": "realtime.response", "id": response_id, "status": status, "status_details": null,
                "output": output, "conversation_id": "conv_mock", "output_modalities": ["text"],
                "max_output_tokens": "inf", "usage": usage, "metadata": null,
            }})
        };
        let part = |rest: Value| {
            let mut part = json!({"response_id": response_id, "output_index": 0});
            merge(&mut part, &rest);
            part
        };
        let in_part = |rest: Value| {
            let mut fields = part(json!({"item_id": item_id, "content_index": 0}));
            merge(&mut fields, &rest);
            fields
        };
        let mut events = vec![
            ("response.created", response("in_progress", json!([]), Value::Null)),
            ("response.output_item.added", part(json!({"item": item("in_progress", json!([]))}))),
            ("response.content_part.added", in_part(json!({"part": {"type": "text", "text": ""}}))),
        ];
        events.extend(WORDS.map(|word| ("response.output_text.delta", in_part(json!({"delta": word})))));
        events.extend([
            ("response.output_text.done", in_part(json!({"text": text}))),
            ("response.content_part.done", in_part(json!({"part": {"type": "text", "text": text}}))),
            ("response.output_item.done", part(json!({"item": said_item}))),
        ]);
        let done = response("completed", json!([said_item]), usage);
        let mut said: Vec<Said> = events.into_iter().map(|(kind, fields)| self.event(kind, fields)).collect();
        said.push(Said { tokens: Some(tokens), ..self.event("response.done", done) });
        said
    }

    fn session(&mut self, kind: &str) -> Said {
        let session = self.session.clone();
        self.event(kind, json!({"session": session}))
    }

    fn error(&mut self, code: &str, message: &str) -> Said {
        let error = json!({
            "type": "invalid_request_error", "code": code, "message": message, "param": null, "event_id": null,
        });
        self.event("error", json!({"error": error}))
    }

    fn event(&mut self, kind: &str, fields: Value) -> Said {
        self.events = self.events.saturating_add(1);
        let mut event = json!({"type": kind, "event_id": format!("event_mock_{}", self.events)});
        merge(&mut event, &fields);
        Said { opcode: Opcode::Text, payload: event.to_string().into_bytes(), tokens: None }
    }

    fn next_item(&mut self) -> String {
        self.items = self.items.saturating_add(1);
        format!("item_mock_{}", self.items)
    }
}

/// The usage of a session's response, the first being 1, in the provider's shape and as OpenTelemetry counts.
fn openai_usage(response: u64) -> (Tokens, Value) {
    let (text, audio) = (response.saturating_mul(12), response.saturating_mul(8));
    let cached = response.saturating_sub(1).saturating_mul(8);
    let tokens = Tokens { input: text.saturating_add(audio), output: 9 };
    let usage = json!({
        "total_tokens": tokens.input.saturating_add(tokens.output),
        "input_tokens": tokens.input,
        "output_tokens": tokens.output,
        "input_token_details": {
            "text_tokens": text, "audio_tokens": audio, "image_tokens": 0, "cached_tokens": cached,
            "cached_tokens_details": {"text_tokens": cached, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": 6, "audio_tokens": 3},
    });
    (tokens, usage)
}

/// Gemini's Live API. It sends its JSON as binary messages.
#[derive(Default)]
pub(super) struct Gemini {
    is_set_up: bool,
    turns: u64,
}

impl Gemini {
    fn answer(&mut self, message: Option<&Map<String, Value>>) -> Reply {
        // Its SDKs write names in either case, as Protobuf's JSON may be written.
        let field = |names: [&str; 2]| message.and_then(|message| names.iter().find_map(|name| message.get(*name)));
        let setup = field(["setup", "setup"]);
        if self.is_set_up == setup.is_some() || message.is_none() {
            return Reply {
                said: Vec::new(),
                close: Some((1007, "setup must be the first message and only the first")),
            };
        }
        if let Some(setup) = setup {
            let model = setup.get("model").and_then(Value::as_str).unwrap_or_default();
            if !model.starts_with("models/") || model.contains("does-not-exist") {
                return Reply {
                    said: Vec::new(),
                    close: Some((1008, "the model is not found for API version v1beta")),
                };
            }
            self.is_set_up = true;
            return Reply { said: vec![gemini_said(&json!({"setupComplete": {}}))], close: None };
        }
        let is_turn = match field(["clientContent", "client_content"]) {
            Some(content) => {
                content.get("turnComplete").or_else(|| content.get("turn_complete")) == Some(&Value::Bool(true))
            }
            None => match field(["realtimeInput", "realtime_input"]) {
                Some(input) => input.get("text").is_some(),
                None => field(["toolResponse", "tool_response"]).is_some(),
            },
        };
        Reply { said: if is_turn { self.turn() } else { Vec::new() }, close: None }
    }

    fn turn(&mut self) -> Vec<Said> {
        self.turns = self.turns.saturating_add(1);
        let mut said: Vec<Said> = WORDS
            .iter()
            .map(|word| {
                gemini_said(&json!({"serverContent": {"modelTurn": {"role": "model", "parts": [{"text": word}]}}}))
            })
            .collect();
        said.push(gemini_said(&json!({"serverContent": {"generationComplete": true}})));
        let prompt = self.turns.saturating_mul(10);
        let last = json!({
            "serverContent": {"turnComplete": true},
            "usageMetadata": {
                "promptTokenCount": prompt, "responseTokenCount": 7, "thoughtsTokenCount": 3,
                "totalTokenCount": prompt.saturating_add(10),
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
                "responseTokensDetails": [{"modality": "TEXT", "tokenCount": 7}],
            },
        });
        said.push(Said { tokens: Some(Tokens { input: prompt, output: 10 }), ..gemini_said(&last) });
        said
    }
}

fn gemini_said(message: &Value) -> Said {
    Said { opcode: Opcode::Binary, payload: message.to_string().into_bytes(), tokens: None }
}

/// Puts the members of an object into another one, objects in both into each other. Anything else changes nothing.
fn merge(into: &mut Value, from: &Value) {
    let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) else { return };
    for (name, value) in from {
        match into.get_mut(name) {
            Some(there) if there.is_object() && value.is_object() => merge(there, value),
            _ => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(said: &[Said]) -> Vec<Value> {
        said.iter().map(|said| serde_json::from_slice(&said.payload).unwrap()).collect()
    }

    #[test]
    fn a_response_runs_from_created_to_done_with_its_usage() {
        let mut speaker = Speaker::new(Provider::OpenAi, Some("gpt-realtime-mini"));
        let created = told(&speaker.first_words());
        assert_eq!(created[0]["type"], "session.created");
        assert_eq!(created[0]["session"]["model"], "gpt-realtime-mini");
        for response in 1..=2 {
            let reply = speaker.answer(br#"{"type":"response.create"}"#);
            let events = told(&reply.said);
            let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
            assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("response.created", "response.done"));
            let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
            let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
            let response_said = &events[events.len() - 1]["response"];
            assert_eq!(response_said["output"][0]["content"][0]["text"], text);
            assert_eq!(response_said["usage"]["total_tokens"], 20 * response + 9);
            assert_eq!(reply.said.last().unwrap().tokens, Some(Tokens { input: 20 * response, output: 9 }));
            assert!(reply.said.iter().all(|said| said.opcode == Opcode::Text));
        }
    }

    #[test]
    fn a_session_is_updated_and_keeps_its_model() {
        let mut speaker = Speaker::new(Provider::Azure, Some("a-deployment"));
        let update = br#"{"type":"session.update","session":{"model":"other","audio":{"output":{"voice":"ash"}}}}"#;
        let updated = told(&speaker.answer(update).said).remove(0);
        assert_eq!(updated["type"], "session.updated");
        let session = &updated["session"];
        assert_eq!((&session["model"], &session["audio"]["output"]["voice"]), (&json!("a-deployment"), &json!("ash")));
        assert_eq!(session["audio"]["input"]["format"]["rate"], 24000);
        for (message, code) in [(&b"{"[..], "invalid_json"), (br#"{"type":"x"}"#, "unknown_event")] {
            assert_eq!(told(&speaker.answer(message).said)[0]["error"]["code"], code);
        }
    }

    #[test]
    fn gemini_answers_each_whole_turn_after_its_setup() {
        let setup = br#"{"setup":{"model":"models/gemini-live"}}"#;
        let mut speaker = Speaker::new(Provider::Gemini, None);
        assert!(speaker.first_words().is_empty());
        assert_eq!(told(&speaker.answer(setup).said), [json!({"setupComplete": {}})]);
        assert_eq!(speaker.answer(br#"{"clientContent":{"turns":[],"turnComplete":false}}"#), Reply::default());
        assert_eq!(speaker.answer(br#"{"realtimeInput":{"audio":{"data":""}}}"#), Reply::default());
        for (turn, message) in [
            br#"{"clientContent":{"turns":[],"turnComplete":true}}"#.as_slice(),
            br#"{"client_content":{"turn_complete":true}}"#,
            br#"{"realtimeInput":{"text":"hi"}}"#,
        ]
        .iter()
        .enumerate()
        {
            let prompt = (turn as u64 + 1) * 10;
            let reply = speaker.answer(message);
            let last = told(&reply.said).pop().unwrap();
            assert_eq!(last["serverContent"]["turnComplete"], true);
            assert_eq!(last["usageMetadata"]["promptTokenCount"], prompt);
            assert_eq!(reply.said.last().unwrap().tokens, Some(Tokens { input: prompt, output: 10 }));
        }
        for (first, code) in [
            (&br#"{"clientContent":{}}"#[..], 1007),
            (b"hi", 1007),
            (br#"{"setup":{"model":"models/does-not-exist"}}"#, 1008),
        ] {
            let reply = Speaker::new(Provider::Gemini, None).answer(first);
            assert_eq!(reply.close.unwrap().0, code, "{}", String::from_utf8_lossy(first));
        }
        assert_eq!(speaker.answer(setup).close.unwrap().0, 1007);
    }
}
