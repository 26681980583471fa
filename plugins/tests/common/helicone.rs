//! Helicone's asynchronous logging, as its worker does it: paths, keys, shapes, sizes, and 200 that means failure.

use std::collections::{BTreeMap, BTreeSet};

use http::Response;
use http::request::Parts;
use serde_json::{Value, json};

use super::stand_in::Service;

pub const KEY: &str = "sk-helicone-1234567";

const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;
const PATHS: [&str; 5] = [
    "/custom/v1/log",
    "/oai/v1/log",
    "/anthropic/v1/log",
    "/googleapis/v1/log",
    // Of a server of one's own.
    "/v1/trace/custom/log",
];

#[derive(Default)]
pub struct Helicone {
    /// Logs by request id; the last one counts.
    pub logs: BTreeMap<String, Value>,
    /// How often each request id came.
    pub times: BTreeMap<String, usize>,
    /// Paths that were called.
    pub paths: BTreeSet<String>,
    /// Request ids for which its own store fails, so many times more.
    pub store_fails: BTreeMap<String, usize>,
    /// Request ids that it refuses with 400.
    pub refuses: BTreeSet<String>,
}

impl Helicone {
    fn verdict(&mut self, head: &Parts, body: &[u8]) -> (u16, String) {
        let path = head.uri.path();
        if head.method != "POST" || !PATHS.contains(&path) {
            return (400, "invalid path".to_owned());
        }
        if body.len() > MAX_BODY_BYTES {
            return (400, "Payload too large".to_owned());
        }
        let authorization = head.headers.get("authorization").and_then(|value| value.to_str().ok());
        if authorization.and_then(|value| value.strip_prefix("Bearer ")) != Some(KEY) {
            return (401, "Unauthorized".to_owned());
        }
        let Ok(log) = serde_json::from_slice::<Value>(body) else { return (400, "no JSON".to_owned()) };
        if let Err(error) = check(&log) {
            return (400, json!({ "error": error }).to_string());
        }
        let id = log["providerRequest"]["meta"]["Helicone-Request-Id"].as_str().unwrap_or_default().to_owned();
        *self.times.entry(id.clone()).or_default() += 1;
        self.paths.insert(path.to_owned());
        if self.refuses.contains(&id) {
            return (400, json!({"error": "Invalid asyncLogModel"}).to_string());
        }
        let fails = self.store_fails.entry(id.clone()).or_default();
        if *fails > 0 {
            *fails -= 1;
            return (200, json!({"error": "insert failed"}).to_string());
        }
        self.logs.insert(id, log);
        (200, "ok".to_owned())
    }
}

fn check(log: &Value) -> Result<(), String> {
    let (request, response, timing) = (&log["providerRequest"], &log["providerResponse"], &log["timing"]);
    if !request.is_object() || !response.is_object() || !timing.is_object() {
        return Err("One of the required fields is missing, providerRequest, providerResponse, or timing".to_owned());
    }
    if request["url"].as_str().is_none_or(str::is_empty) {
        return Err("Invalid providerRequest: 'url' should be a string".to_owned());
    }
    if !request["json"].is_object() {
        return Err("Invalid providerRequest: 'json' is undefined".to_owned());
    }
    let names = request["meta"].as_object().into_iter().flatten().map(|(name, _)| name.to_ascii_lowercase());
    let distinct: BTreeSet<_> = names.clone().collect();
    if distinct.len() != names.count() {
        return Err("Invalid providerRequest: 'meta' has a field twice".to_owned());
    }
    let is_field = |(name, value): (&String, &Value)| {
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_name && value.as_str().is_some_and(|value| value.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
    };
    if !request["meta"].as_object().is_some_and(|meta| meta.iter().all(is_field)) {
        return Err("Invalid providerRequest: 'meta' should be an object".to_owned());
    }
    // Its prices and tables are by model.
    if !request["json"]["model"].is_string() {
        return Err("Invalid providerRequest: 'json' has no model".to_owned());
    }
    if response["json"].is_object() == response["textBody"].is_string() {
        return Err("Invalid providerResponse: one of 'json' and 'textBody' is expected".to_owned());
    }
    if !response["status"].is_u64() || !response["headers"].is_object() {
        return Err("Invalid providerResponse: 'status' should be a number".to_owned());
    }
    let at = |name: &str| {
        let (seconds, milliseconds) = (timing[name]["seconds"].as_u64(), timing[name]["milliseconds"].as_u64());
        match (seconds, milliseconds) {
            (Some(seconds), Some(milliseconds @ 0..=999)) => Ok(seconds * 1_000 + milliseconds),
            _ => Err(format!("Invalid timing: '{name}' should be numbers")),
        }
    };
    if !(timing["timeToFirstToken"].is_null() || timing["timeToFirstToken"].is_u64()) {
        return Err("Invalid timing: 'timeToFirstToken' should be a number".to_owned());
    }
    if at("startTime")? > at("endTime")? { Err("startTime cannot be greater than endTime".to_owned()) } else { Ok(()) }
}

impl Service for Helicone {
    fn answer(&mut self, head: &Parts, body: &[u8]) -> Response<String> {
        let (status, text) = self.verdict(head, body);
        let id = self.logs.last_key_value().map_or(String::new(), |(id, _)| id.clone());
        Response::builder().status(status).header("helicone-id", id).body(text).unwrap()
    }
}
