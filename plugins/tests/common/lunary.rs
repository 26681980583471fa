//! Lunary's ingestion, as its server does it: keys, limits, the order of events, a result for each.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use http::Response;
use http::request::Parts;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::stand_in::Service;

pub const KEY: &str = "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11";

const MAX_BODY_BYTES: usize = 20_000_000;
/// Who speaks in a chat.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
const TYPES: [&str; 10] = ["llm", "chain", "agent", "tool", "embed", "retriever", "log", "thread", "message", "chat"];

/// A run as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub start: Value,
    pub end: Option<Value>,
    pub error: Option<Value>,
}

pub struct Lunary {
    pub key: String,
    /// Runs by id.
    pub runs: BTreeMap<String, Run>,
    /// Starts of runs that were stored already.
    pub duplicates: usize,
    /// Ids whose `end` fails so many times more.
    pub failing_ends: BTreeMap<String, usize>,
    /// Calls in `window` that are taken.
    pub limit: usize,
    pub window: Duration,
    pub calls: VecDeque<Instant>,
    pub refused_by_limit: usize,
}

impl Default for Lunary {
    fn default() -> Self {
        Self {
            key: KEY.to_owned(),
            runs: BTreeMap::new(),
            duplicates: 0,
            failing_ends: BTreeMap::new(),
            limit: 150,
            window: Duration::from_secs(60),
            calls: VecDeque::new(),
            refused_by_limit: 0,
        }
    }
}

impl Lunary {
    fn handle(&mut self, head: &Parts, body: &[u8]) -> Response<String> {
        let reply = |status: u16, body: Value| Response::builder().status(status).body(body.to_string()).unwrap();
        if head.method != "POST" || head.uri.path() != "/v1/runs/ingest" {
            return reply(404, json!({"message": "Not Found"}));
        }
        let now = Instant::now();
        while self.calls.front().is_some_and(|first| first.elapsed() >= self.window) {
            self.calls.pop_front();
        }
        if self.calls.len() >= self.limit {
            self.refused_by_limit += 1;
            let reset_in = self.window.saturating_sub(self.calls[0].elapsed());
            let reset = SystemTime::now() + reset_in + Duration::from_secs(1);
            let reset = reset.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            return Response::builder()
                .status(429)
                .header("rate-limit-remaining", 0)
                .header("rate-limit-reset", reset)
                .header("rate-limit-total", self.limit)
                .body("Sometimes You Just Have to Slow Down.".to_owned())
                .unwrap();
        }
        self.calls.push_back(now);
        let authorization = head.headers.get("authorization").and_then(|value| value.to_str().ok());
        let key = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if uuid::Uuid::try_parse(key).is_err() {
            return reply(402, json!({"message": "Incorrect project id format"}));
        }
        if key != self.key {
            return reply(401, json!({"message": "This project does not exist"}));
        }
        if body.len() > MAX_BODY_BYTES {
            return reply(413, json!({"message": "request entity too large"}));
        }
        let Ok(parsed) = serde_json::from_slice::<Value>(body) else {
            return reply(400, json!({"message": "no JSON"}));
        };
        let mut events = match &parsed["events"] {
            Value::Array(events) => events.clone(),
            event @ Value::Object(_) => vec![event.clone()],
            _ => return reply(500, json!({"message": "Missing events payload."})),
        };
        events.iter_mut().for_each(|event| *event = in_camel_case(event));
        events.sort_by_key(|event| time_of(event).unwrap_or(OffsetDateTime::UNIX_EPOCH));
        let results: Vec<_> = events
            .iter()
            .map(|event| match self.register(event) {
                Ok(()) => json!({"id": event["runId"], "success": true}),
                Err(error) => json!({"id": event["runId"], "success": false, "error": error}),
            })
            .collect();
        reply(200, json!({ "results": results }))
    }

    fn register(&mut self, event: &Value) -> Result<(), String> {
        let text = |key: &str| event[key].as_str().ok_or_else(|| format!("{key} is no text"));
        let id = text("runId")?.to_owned();
        if uuid::Uuid::try_parse(&id).is_err() {
            return Err(format!("invalid input syntax for type uuid: \"{id}\""));
        }
        if !TYPES.contains(&text("type")?) {
            return Err("unknown type".to_owned());
        }
        let at = time_of(event).ok_or("Invalid time value")?;
        match text("event")? {
            "start" if self.runs.contains_key(&id) => {
                self.duplicates += 1;
                Err("Run with this ID already exists in the database.".to_owned())
            }
            "start" => {
                check_start(event)?;
                self.runs.insert(id, Run { start: event.clone(), ..Run::default() });
                Ok(())
            }
            kind @ ("end" | "error") => {
                let failing = self.failing_ends.entry(id.clone()).or_default();
                if kind == "end" && *failing > 0 {
                    *failing -= 1;
                    return Err("deadlock detected".to_owned());
                }
                let run = self.runs.get_mut(&id).ok_or("no such run")?;
                if time_of(&run.start).is_none_or(|began| began >= at) {
                    return Err("ended before it began".to_owned());
                }
                if kind == "end" {
                    check_said(event, "output")?;
                    run.end = Some(event.clone());
                } else {
                    event["error"]["message"].as_str().ok_or("an error without a message")?;
                    run.error = Some(event.clone());
                }
                Ok(())
            }
            other => Err(format!("unknown event {other}")),
        }
    }
}

/// Its server does this to the keys of an event at any depth, so also to what was said.
fn in_camel_case(value: &Value) -> Value {
    let key = |key: &str| {
        let mut camel = String::with_capacity(key.len());
        let mut is_next_upper = false;
        for letter in key.chars() {
            match letter {
                '_' | '-' => is_next_upper = true,
                letter if is_next_upper => {
                    camel.extend(letter.to_uppercase());
                    is_next_upper = false;
                }
                letter => camel.push(letter),
            }
        }
        camel
    };
    match value {
        Value::Array(items) => items.iter().map(in_camel_case).collect(),
        Value::Object(entries) => {
            Value::Object(entries.iter().map(|(name, value)| (key(name), in_camel_case(value))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn check_start(event: &Value) -> Result<(), String> {
    let is_null_or = |key: &str, is: fn(&Value) -> bool| event[key].is_null() || is(&event[key]);
    let is_flat = |value: &Value| match value {
        Value::Array(items) => !items.iter().any(|item| item.is_object() || item.is_array()),
        value => !value.is_object(),
    };
    if event["metadata"].as_object().is_some_and(|metadata| !metadata.values().all(is_flat)) {
        return Err("metadata is not flat".to_owned());
    }
    let are_texts = |value: &Value| value.as_array().is_some_and(|items| items.iter().all(Value::is_string));
    for (key, is_well) in [
        ("name", is_null_or("name", Value::is_string)),
        ("userId", is_null_or("userId", Value::is_string)),
        ("userProps", is_null_or("userProps", Value::is_object)),
        ("params", is_null_or("params", Value::is_object)),
        ("tags", is_null_or("tags", are_texts)),
    ] {
        if !is_well {
            return Err(format!("{key} is of another type"));
        }
    }
    check_said(event, "input")
}

/// A text, or chat messages in OpenAI's form, whose keys have been changed already; of embeddings anything.
fn check_said(event: &Value, key: &str) -> Result<(), String> {
    let messages = match &event[key] {
        Value::Array(messages) if event["type"] == "llm" => messages.as_slice(),
        message @ Value::Object(_) if event["type"] == "llm" => std::slice::from_ref(message),
        _ => return Ok(()),
    };
    for message in messages {
        if !message["role"].as_str().is_some_and(|role| ROLES.contains(&role)) {
            return Err(format!("{key}: no message: {message}"));
        }
        if message["content"].is_object() {
            return Err(format!("{key}: no content: {message}"));
        }
        let calls = message["toolCalls"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_call = |call: &Value| call["function"]["name"].is_string() && call["function"]["arguments"].is_string();
        if !calls.iter().all(is_call) {
            return Err(format!("{key}: no tool calls: {message}"));
        }
        if message["role"] == "tool" && !message["toolCallId"].is_string() {
            return Err(format!("{key}: a result of no call: {message}"));
        }
    }
    Ok(())
}

fn time_of(event: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(event["timestamp"].as_str()?, &Rfc3339).ok()
}

impl Service for Lunary {
    fn answer(&mut self, head: &Parts, body: &[u8]) -> Response<String> {
        self.handle(head, body)
    }
}
