//! A receiver of signed batches, as strict as Standard Webhooks asks receivers to be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use http::request::Parts;
use ring::hmac;
use serde_json::Value;

use super::stand_in::Service;

/// The bytes `0, 1, 2, …, 31`.
pub const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// How far the sender's clock may be off.
const TOLERANCE_S: u64 = 300;

#[derive(Default)]
pub struct Receiver {
    /// The secret that it verifies with.
    pub secret: Option<String>,
    /// Largest body that it takes; beyond it 413.
    pub max_body_bytes: Option<usize>,
    /// Records that it refuses with 400, whoever sends them along.
    pub refuses: BTreeSet<String>,
    /// Records at which it breaks, with 500.
    pub breaks_at: BTreeSet<String>,
    /// Whether a message that was taken before is told with 409.
    pub tells_duplicates: bool,
    /// Ids of messages taken.
    pub messages: BTreeSet<String>,
    /// How often each record was taken.
    pub records: BTreeMap<String, usize>,
    /// Records in the order in which they were taken.
    pub order: Vec<String>,
    /// Records by id, as they came last.
    pub lines: BTreeMap<String, Value>,
}

impl Receiver {
    pub fn ids(&self) -> BTreeSet<String> {
        self.records.keys().cloned().collect()
    }

    fn verdict(&mut self, head: &Parts, body: &[u8]) -> (u16, &'static str) {
        let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        if head.method != "POST" || field("content-type") != Some("application/json") {
            return (405, "POST of application/json only");
        }
        let (Some(id), Some(timestamp), Some(signatures)) =
            (field("webhook-id"), field("webhook-timestamp"), field("webhook-signature"))
        else {
            return (401, "not signed");
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        if !timestamp.parse::<u64>().is_ok_and(|timestamp| timestamp.abs_diff(now) <= TOLERANCE_S) {
            return (401, "too old");
        }
        let secret = self.secret.as_deref().unwrap_or(SECRET).strip_prefix("whsec_").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(secret).unwrap());
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let is_signed = signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
            STANDARD.decode(signature).is_ok_and(|signature| hmac::verify(&key, &signed, &signature).is_ok())
        });
        if !is_signed {
            return (401, "wrong signature");
        }
        if self.max_body_bytes.is_some_and(|most| body.len() > most) {
            return (413, "too large");
        }
        let Ok(parsed) = serde_json::from_slice::<Value>(body) else { return (400, "no JSON") };
        let (Some("llm_proxy.records"), Some(_), Some(data)) =
            (parsed["type"].as_str(), parsed["timestamp"].as_str(), parsed["data"].as_array())
        else {
            return (400, "another shape");
        };
        let ids: Vec<String> = data.iter().filter_map(|record| record["id"].as_str().map(str::to_owned)).collect();
        if ids.is_empty() || ids.len() != data.len() || data.iter().any(|record| record["schema"] != 1) {
            return (400, "no records");
        }
        // Whoever loads them into a table has a column for each.
        let columns = ["type", "outcome", "usage", "cost", "times", "tags", "content", "admin"];
        if data.iter().any(|record| columns.iter().any(|column| record.get(column).is_none())) {
            return (400, "a field is missing");
        }
        if ids.iter().any(|id| self.refuses.contains(id)) {
            return (400, "a record that is not taken");
        }
        if ids.iter().any(|id| self.breaks_at.contains(id)) {
            return (500, "out of order");
        }
        if !self.messages.insert(id.to_owned()) && self.tells_duplicates {
            return (409, "known");
        }
        for (id, record) in ids.into_iter().zip(data) {
            self.lines.insert(id.clone(), record.clone());
            *self.records.entry(id.clone()).or_default() += 1;
            self.order.push(id);
        }
        (200, "ok")
    }
}

impl Service for Receiver {
    fn answer(&mut self, head: &Parts, body: &[u8]) -> Response<String> {
        let (status, text) = self.verdict(head, body);
        Response::builder().status(status).body(text.to_owned()).unwrap()
    }
}
