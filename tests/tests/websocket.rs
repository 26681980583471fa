//! WebSockets of the realtime APIs: admitted as every request is, carried frame by frame as they came, ended with a word
//! that says why, and on record with what they cost.

mod common;

#[path = "websocket/ends.rs"]
mod ends;
#[path = "websocket/handshakes.rs"]
mod handshakes;
#[path = "websocket/models.rs"]
mod models;
#[path = "websocket/passing.rs"]
mod passing;
#[path = "websocket/pressure.rs"]
mod pressure;
#[path = "websocket/records.rs"]
mod records;

use std::time::{Duration, Instant};

use common::setup::{Setup, eventually};
use llm_proxy_load::mock::RequestRecord;
use llm_proxy_tests::ws::Handshake;
use serde_json::Value;

/// OpenAI's realtime API under the bare host.
const OPENAI: &str = "/v1/realtime?model=gpt-realtime";
/// Gemini's Live API.
const GEMINI: &str = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";

/// The close code of whoever breaks a policy (RFC 6455 §7.4.1), and of whoever met something unforeseen.
const POLICY: u16 = 1008;
const INTERNAL: u16 = 1011;

/// The promise for revocations, in one process.
const PROMPTLY: Duration = Duration::from_millis(250);

/// What an app sends to OpenAI.
fn openai(token: &str) -> Handshake {
    Handshake::new(OPENAI).bearer(token)
}

/// The same, to a provider that behaves so (`x-mock-socket`), called so in the books of provider and proxy.
fn steered(token: &str, name: &str, talk: &str) -> Handshake {
    openai(token).with("x-request-id", name).with("x-mock-socket", talk)
}

/// What the provider saw of a socket that is over.
async fn over(setup: &Setup, name: &str) -> RequestRecord {
    eventually("the provider's side is over", || setup.seen(name).is_some_and(|seen| seen.ended.is_some())).await;
    setup.seen(name).unwrap()
}

/// Checks how the record of a socket that was opened says that it ended.
async fn check_record(setup: &Setup, case: &str, id: &str, outcome: &str, reason: Option<&str>) -> Value {
    let record = setup.only_record(id).await;
    assert_eq!((record["outcome"].as_str(), record["reason"].as_str()), (Some(outcome), reason), "{case}: {record}");
    assert_eq!((&record["status"], &record["stream"]), (&101.into(), &true.into()), "{case}: {record}");
    record
}

/// Checks that something happened soon enough after a moment.
fn check_prompt(case: &str, since: Instant) {
    let took = since.elapsed();
    assert!(took <= PROMPTLY, "{case}: only after {took:?}");
}
