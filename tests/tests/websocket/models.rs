//! A token's model list holds inside a socket too: wherever the client's messages name a model.

use llm_proxy_tests::ws::{CLOSE, FINAL, Handshake, RawSocket, TEXT, close_payload, masked};
use serde_json::json;

use crate::common::setup::Setup;
use crate::{GEMINI, OPENAI, POLICY, check_record, openai, over};

/// The models of the tokens here.
const LIST: [&str; 3] = ["gpt-realtime", "gpt-4o-transcribe", "gemini-2.5-*"];

/// How a socket goes on after a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// The provider answers it with this.
    Answered(&'static str),
    /// The provider never sees it, and the socket is closed with this code and reason.
    Closed(u16, &'static str),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_names_a_model_outside_the_list_never_reaches_the_provider() {
    use Then::{Answered, Closed};
    let setup = Setup::new().await;
    let token = setup.token_with(json!({"allowed_models": LIST})).await.text;
    let not_allowed = Closed(POLICY, "model_not_allowed");
    let unclear = Closed(POLICY, "invalid_request");
    let long = format!(r#"{{"type":"session.update","session":{{"instructions":"{}"}}}}"#, "x".repeat(2_000_000));
    for (case, target, message, then) in [
        ("no model", OPENAI, r#"{"type":"session.update","session":{}}"#, Answered("session.updated")),
        (
            "its model",
            OPENAI,
            r#"{"type":"session.update","session":{"model":"gpt-realtime"}}"#,
            Answered("session.updated"),
        ),
        ("another", OPENAI, r#"{"type":"session.update","session":{"model":"gpt-realtime-2"}}"#, not_allowed),
        ("escaped", OPENAI, r#"{"type":"session.update","session":{"m\u006fdel":"gpt-5"}}"#, not_allowed),
        ("in a response", OPENAI, r#"{"type":"response.create","response":{"model":"gpt-5"}}"#, not_allowed),
        (
            "for transcription",
            OPENAI,
            r#"{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"whisper-1"}}}}}"#,
            not_allowed,
        ),
        (
            "for transcription, listed",
            OPENAI,
            r#"{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"gpt-4o-transcribe"}}}}}"#,
            Answered("session.updated"),
        ),
        ("twice", OPENAI, r#"{"session":{"model":"gpt-realtime","model":"gpt-5"}}"#, unclear),
        ("in another case", OPENAI, r#"{"session":{"Model":"gpt-5"}}"#, unclear),
        ("no JSON", OPENAI, "model", unclear),
        ("too long to be read", OPENAI, long.as_str(), Closed(1009, "request_too_large")),
        ("its setup", GEMINI, r#"{"setup":{"model":"models/gemini-2.5-flash-live"}}"#, Answered("setupComplete")),
        ("another setup", GEMINI, r#"{"setup":{"model":"models/gemini-3-live"}}"#, not_allowed),
        ("no setup", GEMINI, r#"{"realtimeInput":{"text":"hi"}}"#, not_allowed),
    ] {
        for is_fragmented in [false, true] {
            let name = format!("{}-{is_fragmented}", case.replace([' ', ','], "-"));
            let case = format!("{case}, fragmented {is_fragmented}");
            let handshake = match target {
                GEMINI => Handshake::new(GEMINI).with("x-goog-api-key", &token),
                _ => openai(&token),
            };
            let mut socket = RawSocket::open(setup.proxy(), &handshake.with("x-request-id", &name)).await;
            if target == OPENAI {
                socket.until("session.created").await;
            }
            let sent = match message.as_bytes().split_at(message.len() / 2) {
                (start, end) if is_fragmented => {
                    [masked(TEXT - FINAL, start, [5; 4]), masked(FINAL, end, [6; 4])].concat()
                }
                _ => masked(TEXT, message.as_bytes(), [7; 4]),
            };
            // The rest of it may come when the beginning was too much already.
            let _ = socket.try_send(&sent).await;
            match then {
                Answered(answer) => {
                    socket.until(answer).await;
                    socket.say(CLOSE, close_payload(1000, "")).await;
                    socket.closed().await;
                    let seen = over(&setup, &name).await;
                    assert_eq!(seen.socket.unwrap().counts.messages, 1, "{case}");
                    check_record(&setup, &case, &socket.id(), "finished", None).await;
                }
                Closed(code, reason) => {
                    assert_eq!(socket.closed().await, (code, reason.to_owned()), "{case}");
                    let seen = over(&setup, &name).await;
                    assert_eq!(seen.socket.unwrap().counts.messages, 0, "{case}: it reached the provider");
                    check_record(&setup, &case, &socket.id(), "refused", Some(reason)).await;
                }
            }
        }
    }

    // Who has no list is not restricted, and what is no JSON is the provider's to judge.
    let mut socket = RawSocket::open(setup.proxy(), &openai(&setup.token.text)).await;
    socket.say(TEXT, "model").await;
    socket.until("invalid_json").await;
    socket.say(TEXT, long).await;
    socket.until("session.updated").await;
}
