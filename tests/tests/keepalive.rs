//! When a client's connection lives on after an answer, and when it must not.

mod common;

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::{Answer, Ask, Wire};

/// The proof that a connection lives on: it carries another request.
async fn still_serves(wire: &mut Wire, setup: &Setup, case: &str) {
    wire.send(setup.models().head()).await;
    let answer = wire.try_answer().await.unwrap_or_else(|| panic!("{case}: the connection was closed"));
    assert_eq!(answer.head.status, 200, "{case}: {}", answer.text());
    assert!(answer.text().contains("\"data\""), "{case}: another answer's bytes: {}", answer.text());
}

/// Asks, checks the status, and that the connection lives on.
async fn kept(setup: &Setup, case: &str, request: Vec<u8>, status: u16) -> Answer {
    let mut wire = setup.wire().await;
    let answer = wire.ask(request).await;
    assert_eq!(answer.head.status, status, "{case}: {}", answer.text());
    assert!(answer.whole, "{case}");
    assert!(!answer.head.says_close(), "{case}: {:?}", answer.head);
    still_serves(&mut wire, setup, case).await;
    answer
}

/// An upstream that says `close`, and means it.
async fn closing_upstream() -> Upstream {
    Upstream::start(|mut wire, _| async move {
        if wire.request().await.is_some() {
            let _ = wire.try_send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
        }
    })
    .await
}

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_reused_after_every_exchange_that_ended_cleanly() {
    let closing = closing_upstream().await;
    let setup = Setup::with(&[Api::at("closing", closing.addr, "")], &[]).await;

    let answer = kept(&setup, "Content-Length both ways", setup.chat().body(CHAT), 200).await;
    assert!(answer.head.field("content-length").is_some());
    let answer = kept(&setup, "a chunked answer", setup.chat().body(STREAM), 200).await;
    assert_eq!(answer.head.field("transfer-encoding"), Some("chunked"));
    assert!(answer.text().ends_with("data: [DONE]\n\n"));

    let mut wire = setup.wire().await;
    wire.send(setup.ask("HEAD", "/v1/models").head()).await;
    let head = wire.answer_without_body().await;
    assert_eq!((head.status, head.field("transfer-encoding")), (200, None), "HEAD");
    still_serves(&mut wire, &setup, "HEAD").await;

    let answer = kept(&setup, "204", setup.chat().with("x-mock-status", 204).body(CHAT), 204).await;
    assert_eq!((answer.head.field("content-length"), answer.head.field("transfer-encoding")), (None, None), "204");
    let answer = kept(&setup, "304", setup.chat().with("x-mock-status", 304).body(CHAT), 304).await;
    assert_eq!(answer.head.field("transfer-encoding"), None, "304");

    let answer = kept(&setup, "a chunked upload", setup.echo().chunks("streamed", &[3]), 200).await;
    assert_eq!(answer.json()["body_len"], 8);
    let answer = kept(&setup, "a chunked upload without a byte", setup.echo().chunks("", &[3]), 200).await;
    assert_eq!(answer.json()["body_len"], 0);
    let answer = kept(&setup, "a body that a policy read", setup.held().body("{\"a\":1}"), 200).await;
    assert_eq!(answer.json()["body_len"], 7);
    let answer = kept(&setup, "a chunked body that a policy read", setup.held().chunks("{\"a\":1}", &[2]), 200).await;
    assert_eq!(answer.json()["body_len"], 7);

    kept(&setup, "an upstream that closes", setup.ask("POST", "/closing/v1/files").body("x"), 200).await;
    assert_eq!(closing.connections(), 1);
    let request = setup.chat().with("x-mock-framing", "close").body(STREAM);
    let answer = kept(&setup, "an answer that ends with its connection", request, 200).await;
    assert_eq!(answer.head.field("transfer-encoding"), Some("chunked"), "its end is framed anew");
    assert!(answer.text().ends_with("data: [DONE]\n\n"));

    let mut wire = setup.wire().await;
    let answer = wire.ask(setup.chat().http10().with("connection", "keep-alive").body(CHAT)).await;
    assert_eq!(answer.head.status, 200);
    assert!(!answer.head.says_close() && answer.head.field("content-length").is_some(), "{:?}", answer.head);
    still_serves(&mut wire, &setup, "HTTP/1.0 with keep-alive").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_keeps_the_connection_when_the_little_body_was_read_away() {
    let setup = Setup::new().await;
    let stranger = || Ask::post("/v1/chat/completions").bearer("sk-lp-nobody").json_type();
    for (case, request, status) in [
        ("no body", Ask::get("/v1/models").head(), 401),
        ("a small body", stranger().body(CHAT), 401),
        ("a small chunked body", stranger().chunks(CHAT, &[7]), 401),
        ("64 KiB", stranger().body("x".repeat(64 * 1024)), 401),
        ("an unknown route", setup.ask("POST", "/nowhere/at/all").body("x"), 404),
        ("a body no policy can read", setup.held().body("{"), 400),
    ] {
        kept(&setup, case, request, status).await;
    }
    // The head first, the body when the client feels like it.
    let mut wire = setup.wire().await;
    let request = stranger().body(CHAT);
    let (head, body) = request.split_at(request.len() - CHAT.len());
    wire.send(head).await;
    wire.send(body).await;
    assert_eq!(wire.answer().await.head.status, 401);
    still_serves(&mut wire, &setup, "head and body apart").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue_is_answered_and_keeps_the_connection_unless_the_request_is_refused() {
    let setup = Setup::new().await;
    let body = "{\"a\":1}";
    let chunks = common::wire::chunked(body.as_bytes(), &[4]);
    for (case, ask, framed) in [
        ("Content-Length", setup.echo().with("content-length", body.len()), body.as_bytes()),
        ("chunked", setup.echo().with("transfer-encoding", "chunked"), &chunks[..]),
        ("read by a policy", setup.held().with("content-length", body.len()), body.as_bytes()),
    ] {
        let mut wire = setup.wire().await;
        wire.send(ask.with("expect", "100-continue").head()).await;
        let interim = wire.head().await;
        assert_eq!(interim.status, 100, "{case}");
        let answer = wire.ask(framed).await;
        assert_eq!(answer.head.status, 200, "{case}: {}", answer.text());
        let echoed = answer.json();
        assert_eq!(echoed["body_len"], body.len(), "{case}");
        assert!(
            !echoed["headers"].to_string().to_ascii_lowercase().contains("expect"),
            "{case}: it is not for the provider"
        );
        still_serves(&mut wire, &setup, case).await;
    }

    let before = setup.mock.stats().requests;
    let mut wire = setup.wire().await;
    wire.send(
        Ask::post("/v1/files").bearer("sk-lp-nobody").with("content-length", 7).with("expect", "100-continue").head(),
    )
    .await;
    let head = wire.head().await;
    assert_eq!(head.status, 401, "the refusal comes instead of the 100");
    assert!(head.says_close(), "whether the body still comes nobody knows: {head:?}");
    assert!(wire.rest().await.1);
    assert_eq!(wire.closed().await, b"");
    assert_eq!(setup.mock.stats().requests, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_closed_when_the_client_asks_or_its_next_request_could_not_be_told_apart() {
    let setup = Setup::with(&[], &[]).await;

    for (case, request) in [
        ("close", setup.chat().with("connection", "close").body(CHAT)),
        ("close among others", setup.chat().with("connection", "x-one, Close").with("x-one", "1").body(CHAT)),
        ("HTTP/1.0", setup.chat().http10().body(CHAT)),
        ("HTTP/1.0, streamed", setup.chat().http10().body(STREAM)),
        ("HTTP/1.0 with keep-alive, streamed", setup.chat().http10().with("connection", "keep-alive").body(STREAM)),
    ] {
        let mut wire = setup.wire().await;
        let answer = wire.ask(request).await;
        assert_eq!(answer.head.status, 200, "{case}");
        assert!(answer.whole, "{case}");
        if case.starts_with("HTTP/1.0") {
            assert_eq!(answer.head.field("transfer-encoding"), None, "{case}: HTTP/1.0 knows no chunks");
        }
        if case.ends_with("streamed") {
            assert!(answer.text().ends_with("data: [DONE]\n\n"), "{case}");
        }
        assert_eq!(wire.closed().await, b"", "{case}");
    }

    // A refusal, and 5 MB that nobody will read: the client gets the answer while it still sends.
    let large = vec![b'x'; 5_000_000];
    for (case, request, status) in [
        ("too large", setup.ask("POST", "/small/v1/files").body(&large), 413),
        ("a stranger", Ask::post("/v1/files").bearer("sk-lp-nobody").body(&large), 401),
        ("a stranger, chunked", Ask::post("/v1/files").bearer("sk-lp-nobody").chunks(&large, &[65536]), 401),
    ] {
        let before = setup.mock.stats().requests;
        for round in 0..5 {
            let mut wire = setup.wire().await;
            // As a blocking client does it: all of the request, then the answer.
            let _ = wire.try_send(&request).await;
            let answer = wire.try_answer().await.unwrap_or_else(|| panic!("{case}, {round}: no answer to read"));
            assert_eq!(answer.head.status, status, "{case}, {round}");
            assert!(answer.whole && answer.head.says_close(), "{case}, {round}: {:?}", answer.head);
            assert_eq!(wire.closed().await, b"", "{case}, {round}");
        }
        assert_eq!(setup.mock.stats().requests, before, "{case}: the provider heard nothing of it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_one_after_another_and_never_mixed() {
    let setup = Setup::new().await;
    let second = || setup.ask("POST", "/echo/v1/second").body("of the second");
    for (case, first) in [
        ("GET", setup.ask("GET", "/echo/v1/first").head()),
        ("Content-Length", setup.ask("POST", "/echo/v1/first").body("one")),
        ("chunked", setup.ask("POST", "/echo/v1/first").chunks("one", &[2])),
        ("read by a policy", setup.ask("POST", "/held/v1/first").json_type().body("{}")),
        ("slow", setup.ask("POST", "/echo/v1/first").with("x-mock-delay-ms", 200).body("one")),
    ] {
        let before = setup.mock.stats().requests;
        let mut wire = setup.wire().await;
        wire.send([first, second(), setup.models().head()].concat()).await;
        for (target, longest) in [("/__mock/echo/v1/first", 3), ("/__mock/echo/v1/second", 13)] {
            let answer = wire.try_answer().await.unwrap_or_else(|| panic!("{case}: no answer for {target}"));
            let echoed = answer.json();
            assert_eq!((answer.head.status, &echoed["target"]), (200, &target.into()), "{case}");
            assert!(echoed["body_len"].as_u64().unwrap() <= longest, "{case}: {echoed}");
        }
        assert!(wire.try_answer().await.is_some_and(|answer| answer.text().contains("\"data\"")), "{case}: the third");
        assert_eq!(setup.mock.stats().requests - before, 3, "{case}");
        still_serves(&mut wire, &setup, case).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pipelined_behind_a_last_request_goes_nowhere() {
    let setup = Setup::new().await;
    let before = setup.mock.stats().requests;
    let mut wire = setup.wire().await;
    let last = setup.ask("POST", "/echo/v1/first").with("connection", "close").body("one");
    let answer = wire.ask([last, setup.ask("POST", "/echo/v1/second").body("two")].concat()).await;
    assert_eq!(answer.json()["target"], "/__mock/echo/v1/first");
    assert_eq!(wire.closed().await, b"", "nothing comes behind the last answer");
    assert_eq!(setup.mock.stats().requests - before, 1);
}
