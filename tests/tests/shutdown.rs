//! SIGTERM: nothing new is begun, nothing running is dropped before its time, and whoever waits is told.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::setup::{Setup, eventually, first_event_end, recorded};
use common::wire::{Answer, Ask, Wire};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How soon an idle process is gone.
const IDLE_EXIT: Duration = Duration::from_secs(1);
/// `DRAIN_TIMEOUT` where a test waits for it.
const DRAIN: Duration = Duration::from_secs(3);
/// After the drain: last words, records, and a busy machine.
const LAST_STEPS: Duration = Duration::from_secs(5);

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_process_exits_with_code_0_within_a_second_also_with_idle_connections() {
    let mut setup = Setup::new().await;
    let mut idle = setup.wire().await;
    assert_eq!(idle.ask(setup.chat().body(CHAT)).await.head.status, 200);
    let mut silent = setup.wire().await;
    let began = Instant::now();
    setup.sigterm();
    assert_eq!(setup.exited().await, Some(0));
    assert!(began.elapsed() <= IDLE_EXIT, "{:?}", began.elapsed());
    assert_eq!(idle.closed().await, b"");
    assert_eq!(silent.closed().await, b"");
    // The same directory serves the next process, with everything on record.
    setup.restart().await;
    assert_eq!(setup.wire().await.ask(setup.models().head()).await.head.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_streams_finish_long_ones_are_cut_with_event_and_record_and_newcomers_are_refused_at_once() {
    let mut setup = Setup::with(&[], &[("DRAIN_TIMEOUT", "3s")]).await;
    let event = first_event_end(&recorded("openai-chat-stream-usage.sse"));

    let mut short = setup.wire().await;
    short.send(setup.chat().with("x-mock-pace-ms", 100).body(STREAM)).await;
    let short_id = short.head().await.id();
    short.until_body_has("data:").await;

    let mut long = setup.wire().await;
    long.send(setup.chat().fault(&format!("hang-body:{event}")).body(STREAM)).await;
    let long_id = long.head().await.id();
    long.until_body_has("\n\n").await;

    let mut waiting = setup.wire().await;
    waiting.send(setup.chat().with("x-request-id", "waiting").fault("hang-head").body(STREAM)).await;
    eventually("the provider has the request", || setup.seen("waiting").is_some()).await;

    let mut half = setup.wire().await;
    let request = setup.chat().body(CHAT);
    let (start, end) = request.split_at(30);
    half.send(start).await;
    let mut never_whole = setup.wire().await;
    never_whole.send(start).await;
    // Served, so the halves before it have arrived as well.
    assert_eq!(setup.wire().await.ask(setup.models().head()).await.head.status, 200);

    let began = Instant::now();
    setup.sigterm();
    let mut ready = 200;
    while ready == 200 && began.elapsed() < IDLE_EXIT {
        ready = setup.readiness().await;
    }
    assert_eq!(ready, 503, "readiness is false at once, not when the process ends");

    half.send(end).await;
    let answer = half.answer().await;
    assert_eq!(answer.head.status, 200, "half a head at SIGTERM, and the rest at once: {}", answer.text());
    assert!(answer.whole && answer.head.says_close(), "{:?}", answer.head);
    assert_eq!(half.closed().await, b"");

    let mut refused = false;
    while !refused && began.elapsed() < IDLE_EXIT {
        refused = TcpStream::connect(setup.proxy()).await.is_err();
    }
    assert!(refused, "a new connection was still taken after {:?}", began.elapsed());
    assert_eq!(never_whole.closed().await, b"", "who never finishes a head is let go");

    let (rest, whole) = short.rest().await;
    assert!(
        whole && String::from_utf8_lossy(&rest).ends_with("data: [DONE]\n\n"),
        "a stream shorter than the drain ends whole"
    );
    assert!(began.elapsed() < DRAIN, "the short stream was meant to be shorter");

    let (last, whole) = long.rest().await;
    let cut_after = began.elapsed();
    assert!(cut_after >= DRAIN - Duration::from_millis(50), "cut after {cut_after:?}, before its time");
    let last = String::from_utf8(last).unwrap();
    assert!(!whole && last.starts_with("data: {\"error\"") && last.ends_with("}\n\n"), "{last:?}");
    let refusal = waiting.answer().await;
    assert_eq!(refusal.head.status, 503, "{}", refusal.text());
    assert!(refusal.head.field("retry-after").is_some() && refusal.head.says_close(), "{:?}", refusal.head);

    assert_eq!(setup.exited().await, Some(0));
    assert!(began.elapsed() <= DRAIN + LAST_STEPS, "{:?}", began.elapsed());
    let records = setup.records();
    for (id, outcome, reason) in [
        (&short_id, "finished", serde_json::Value::Null),
        (&long_id, "shed", "shutdown".into()),
        (&refusal.head.id(), "shed", "shutdown".into()),
    ] {
        let found: Vec<_> = records.iter().filter(|record| record["id"] == id.as_str()).collect();
        assert_eq!(found.len(), 1, "{id}");
        assert_eq!((&found[0]["outcome"], &found[0]["reason"]), (&outcome.into(), &reason), "{}", found[0]);
    }
}

/// Asks on one connection until the answer is another than 200; the last one.
async fn until_not_well(mut wire: Wire, target: &str) -> Answer {
    loop {
        let answer = wire.ask(Ask::get(target).head()).await;
        if answer.head.status != 200 {
            assert_eq!(wire.closed().await, b"", "{target}: nothing follows");
            return answer;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_who_asks_that_the_process_is_stopping_and_that_it_lives() {
    const PATHS: [&str; 3] = ["/health", "/health/live", "/health/ready"];
    let mut setup = Setup::new().await;
    let event = first_event_end(&recorded("openai-chat-stream-usage.sse"));
    let mut running = setup.wire().await;
    running.send(setup.chat().fault(&format!("hang-body:{event}")).body(STREAM)).await;
    let running_id = running.head().await.id();

    let mut wire = setup.wire().await;
    let mut waiting = JoinSet::new();
    for path in PATHS {
        let answer = wire.ask(Ask::get(path).head()).await;
        assert_eq!((answer.head.status, answer.json()), (200, json!({"status": "ok"})), "{path}");
        assert_eq!(answer.head.field("x-llm-proxy-request-id"), None, "{path}: it is no exchange");
        wire.send(Ask::new("HEAD", path).head()).await;
        assert_eq!(wire.answer_without_body().await.status, 200, "HEAD {path}");
        let (status, told) = setup.manage("GET", path, Value::Null).await;
        let expected = if path == "/health/live" { "live" } else { "ready" };
        assert_eq!((status, told), (200, json!({"status": expected})), "admin {path}");
        // Nobody waits between two questions, so that one of them is the first after the signal.
        if path != "/health/live" {
            waiting.spawn(until_not_well(setup.wire().await, path));
        }
    }
    setup.sigterm();
    while let Some(answer) = waiting.join_next().await {
        let answer = answer.unwrap();
        assert_eq!((answer.head.status, answer.json()), (503, json!({"status": "stopping"})));
        assert!(answer.whole, "{:?}", answer.head);
        if waiting.len() == PATHS.len() - 2 {
            let live = wire.ask(Ask::get("/health/live").head()).await;
            assert_eq!((live.head.status, live.json()), (200, json!({"status": "ok"})), "what drains is alive");
        }
    }

    // The admin plane goes on answering as long as anything runs.
    let (status, told) = setup.manage("GET", "/health/live", Value::Null).await;
    assert_eq!((status, told), (200, json!({"status": "live"})));
    for path in ["/health", "/health/ready"] {
        let (status, told) = setup.manage("GET", path, Value::Null).await;
        assert_eq!((status, &told["code"]), (503, &json!("not_ready")), "{path}: {told}");
        assert!(told["detail"].as_str().is_some_and(|detail| detail.contains("stopping")), "{path}: {told}");
    }

    running.reset();
    assert_eq!(setup.exited().await, Some(0));
    let records = setup.records();
    let ids: Vec<&Value> = records.iter().map(|record| &record["id"]).collect();
    assert_eq!(ids, [&json!(running_id)], "health checks leave no record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_on_a_kept_connection_fails_while_sigterm_arrives() {
    const CLIENTS: usize = 16;
    const ROUNDS: usize = 4;
    let mut setup = Setup::new().await;
    for round in 0..ROUNDS {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let request = if client % 2 == 0 { setup.chat().body(STREAM) } else { setup.models().head() };
            let mut wire: Wire = setup.wire().await;
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            clients.spawn(async move {
                // On one connection, until the proxy says that it was the last request.
                loop {
                    let sent = wire.try_send(&request).await;
                    let answer = if sent.is_ok() { wire.try_answer().await } else { None };
                    let Some(answer) = answer else { panic!("round {round}: a request got no answer ({sent:?})") };
                    assert!(answer.whole, "round {round}: half an answer");
                    assert_eq!(answer.head.status, 200, "round {round}: {}", answer.text());
                    served.fetch_add(1, Ordering::SeqCst);
                    if answer.head.says_close() {
                        assert!(stop.load(Ordering::SeqCst), "round {round}: closed before SIGTERM");
                        return;
                    }
                }
            });
        }
        eventually("the load runs", || served.load(Ordering::SeqCst) > CLIENTS * 20).await;
        stop.store(true, Ordering::SeqCst);
        setup.sigterm();
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        assert_eq!(setup.exited().await, Some(0));
        setup.restart().await;
    }
}
