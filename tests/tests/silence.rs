//! Providers that think before they say anything: nobody between them and their clients loses patience.
//!
//! `TORTURE_SILENCE_SECONDS` is how long they think. `make torture` makes it ten minutes but for ten seconds: as long as the
//! SDKs wait, and as the default clock of the first byte allows.

mod common;

use std::time::Duration;

use common::setup::{Setup, eventually, recorded};
use futures::future::join_all;
use llm_proxy_tests::PATIENCE;
use llm_proxy_tests::foreign::Listener;

/// In an ordinary run, in seconds.
const SHORT: u64 = 3;
const CHAT_PATH: &str = "/v1/chat/completions";
const EXCHANGES: [(&str, &str); 2] = [
    ("openai-chat-basic.json", r#"{"model":"gpt-4o-mini","messages":[]}"#),
    ("openai-chat-stream-usage.sse", r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#),
];

fn silence() -> Duration {
    let told = std::env::var("TORTURE_SILENCE_SECONDS");
    Duration::from_secs(told.map_or(SHORT, |seconds| seconds.parse().expect("TORTURE_SILENCE_SECONDS is a number")))
}

/// Asks a product behind this listener for everything at once, in both versions of HTTP.
async fn wait_out(listener: Listener, silence: Duration) {
    let setup = Setup::with(&[], &listener.settings()).await;
    let delay = silence.as_millis().to_string();
    let waiting = listener.ways().into_iter().flat_map(|way| EXCHANGES.map(|(file, body)| (way, file, body)));
    let waiting = waiting.map(|(way, file, body)| {
        let (recording, _) = file.rsplit_once('.').unwrap();
        let curl = listener.curl(way, setup.proxy(), CHAT_PATH).bearer(&setup.token.text);
        let curl = curl.with("x-mock-recording", recording).with("x-mock-delay-ms", &delay).json(body);
        async move { (way, file, curl.fetch_within(silence + 2 * PATIENCE).await) }
    });
    for (way, file, fetched) in join_all(waiting).await {
        assert_eq!(fetched.status, 200, "{way}, {file}: {}", fetched.text());
        assert!(fetched.body == recorded(file), "{way}, {file}: {}", fetched.text());
        assert!(fetched.took >= silence, "{way}, {file}: already after {:?}", fetched.took);
        let record = setup.only_record(&fetched.id()).await;
        assert_eq!(record["outcome"], "finished", "{way}, {file}: {record}");
        let first_byte_ms = record["times"]["first_byte_ms"].as_f64().unwrap();
        assert!(first_byte_ms >= silence.as_secs_f64() * 1000.0, "{way}, {file}: {record}");
    }
    eventually("the provider has ended all", || setup.mock.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_long_in_coming_arrives_whole() {
    let silence = silence();
    join_all(Listener::both().map(|listener| wait_out(listener, silence))).await;
}
