//! What `/metrics` says of exchanges is what happened: counted once, under its own labels, tokens as the provider told them.

mod common;

use std::time::Duration;

use common::setup::Setup;
use llm_proxy_tests::{eventually, metric};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanges_tokens_and_the_journal_are_counted_as_they_were() {
    let setup = Setup::new().await;
    let before = setup.product.metrics().await;
    assert_eq!(metric(&before, "llm_proxy_requests_total", &[]), 0.0);
    assert!(before.contains("llm_proxy_panics_total 0"), "a counter is there before it counts");

    let json = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    let stream = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
    for _ in 0..3 {
        let answer =
            setup.wire().await.ask(setup.chat().with("x-mock-recording", "openai-chat-basic").body(json)).await;
        assert_eq!(answer.head.status, 200);
    }
    let paced = setup.chat().with("x-mock-recording", "openai-chat-stream-usage").with("x-mock-pace-ms", 5);
    assert_eq!(setup.wire().await.ask(paced.body(stream)).await.head.status, 200);
    let refused =
        setup.wire().await.ask(setup.chat().with("content-encoding", "x").bearer("nonsense").body(json)).await;
    assert_eq!(refused.head.status, 401);
    assert_eq!(setup.wire().await.ask(setup.chat().with("x-mock-status", 429).body(json)).await.head.status, 429);

    let told = eventually(Duration::from_secs(10), "the file has everything", async || {
        let told = setup.product.metrics().await;
        (metric(&told, "llm_proxy_journal_pending", &[("consumer", "file")]) == 0.0).then_some(told)
    })
    .await;
    let of = |name: &str, labels: &[(&str, &str)]| metric(&told, name, labels);
    let chat = [("api", "openai"), ("endpoint", CHAT)];
    for (status, count) in [("200", 4.0), ("429", 1.0)] {
        let labels = [chat[0], chat[1], ("status", status), ("outcome", "finished")];
        assert_eq!(of("llm_proxy_requests_total", &labels), count, "{status}");
    }
    assert_eq!(of("llm_proxy_requests_total", &[("status", "401"), ("outcome", "refused")]), 1.0);
    assert_eq!(of("llm_proxy_requests_total", &[]), 6.0);
    assert_eq!(of("llm_proxy_refusals_total", &[("code", "invalid_api_key")]), 1.0);
    // A refusal takes its time too, and reaches no provider.
    for (histogram, count) in [("overhead", 5.0), ("time_to_first_chunk", 5.0), ("request_duration", 6.0)] {
        assert_eq!(of(&format!("llm_proxy_{histogram}_seconds_count"), &chat), count, "{histogram}");
    }
    assert!(of("llm_proxy_stream_gap_seconds_count", &chat) >= 4.0, "a paced stream has pauses");
    let records = setup.records();
    for (kind, field) in [("input", "input_tokens"), ("output", "output_tokens")] {
        let sum: f64 = records.iter().filter_map(|record| record["usage"][field].as_f64()).sum();
        assert!(sum > 0.0);
        assert_eq!(of("llm_proxy_tokens_total", &[("api", "openai"), ("kind", kind), ("source", "reported")]), sum);
    }
    assert!(of("llm_proxy_cost_usd_total", &[("api", "openai")]) > 0.0);
    // A begin and an end each, the end of what was refused, and what made project and token.
    assert_eq!(of("llm_proxy_journal_records_total", &[]), 13.0);
    assert!(of("llm_proxy_journal_bytes_total", &[]) > 0.0);
    assert_eq!((of("llm_proxy_journal_failures_total", &[]), of("llm_proxy_in_flight", &[])), (0.0, 0.0));
    assert_eq!((of("llm_proxy_held_bytes", &[]), of("llm_proxy_panics_total", &[])), (0.0, 0.0));
}
