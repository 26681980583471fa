//! HTTP/1.0 clients read an answer without a length to the end of the connection: the manner of its end is all they have.

mod common;

use common::setup::{Setup, first_event_end, recorded};
use llm_proxy_tests::{Ended, Raw};

const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_length_ends_in_order_when_it_is_whole_and_with_a_reset_when_it_is_not() {
    let setup = Setup::new().await;
    let stream = recorded("openai-chat-stream-usage.sse");
    let chat = || setup.chat().http10().with("x-mock-recording", "openai-chat-stream-usage");
    let event = first_event_end(&stream);
    // Some container runtimes forbid the call that a reset needs, and the product then says so (docs/records.md).
    let broken = |log: String| if log.contains("cannot be shown") { Ended::Fin } else { Ended::Reset };
    for (case, request, is_whole) in [
        ("whole", chat(), true),
        ("cut between events", chat().fault(&format!("cut:{event}")), false),
        ("cut in an event", chat().fault(&format!("cut:{}", event + 3)), false),
        ("reset", chat().fault(&format!("reset:{event}")), false),
    ] {
        let mut raw = Raw::connect(setup.proxy()).await;
        raw.write(&request.body(STREAM)).await;
        let (seen, how) = raw.read_to_end().await;
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert!(seen.starts_with("HTTP/1.1 200 OK\r\n"), "{case}: {seen}");
        let expected = if is_whole { Ended::Fin } else { broken(setup.product.log()) };
        assert_eq!(how, expected, "{case}: {seen}");
        assert_eq!(seen.contains("[DONE]"), is_whole, "{case}: {seen}");
        // The error event is read before the reset comes.
        assert_eq!(seen.contains("data: {\"error\""), matches!(case, "cut between events" | "reset"), "{case}: {seen}");
    }
}
