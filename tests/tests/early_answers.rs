//! Providers that answer, break off or fall silent while the client is still sending its body: the client learns it
//! promptly, and no clock runs in vain.

mod common;

use std::time::{Duration, Instant};

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::{Answer, Piece, Wire};
use serde_json::Value;

/// What a client still sends when it is answered.
const LARGE: usize = 32 << 20;
/// Far below the clocks, which are ten minutes long, and more than a busy machine needs.
const PROMPTLY: Duration = Duration::from_secs(10);

/// A provider that reads as much of the body as `x-reads` says, answers with the status that `x-answers` names, reads no
/// more, and keeps the connection.
async fn deaf_upstream() -> Upstream {
    Upstream::start(|mut wire, _| async move {
        let Some(head) = wire.try_head().await else { return };
        let number = |name: &str| head.field(name).and_then(|value| value.parse::<usize>().ok()).unwrap_or(0);
        let mut left = number("x-reads");
        while left > 0 {
            match wire.piece().await {
                Piece::Data(data) => left = left.saturating_sub(data.len()),
                ended => panic!("{ended:?}, with {left} bytes to read"),
            }
        }
        match number("x-answers") {
            0 => {}
            status => {
                let body = format!("{{\"error\":{{\"message\":\"as the provider says it\",\"code\":{status}}}}}");
                let fields = format!("content-type: application/json\r\ncontent-length: {}", body.len());
                wire.send(format!("HTTP/1.1 {status} Early\r\n{fields}\r\nx-request-id: req_early\r\n\r\n{body}"))
                    .await;
            }
        }
        std::future::pending().await
    })
    .await
}

/// Sends until something is answered, and takes it; how long that was.
async fn answered(wire: &mut Wire, case: &str, request: &[u8]) -> (Answer, Duration) {
    let began = Instant::now();
    wire.send_until_answered(request).await;
    let answer = wire.try_answer().await.unwrap_or_else(|| panic!("{case}: no answer"));
    let took = began.elapsed();
    assert!(took < PROMPTLY, "{case}: after {took:?}");
    (answer, took)
}

/// The record's outcome, reason and status.
fn ended(record: &Value) -> (&str, Option<&str>, Option<u64>) {
    (record["outcome"].as_str().unwrap(), record["reason"].as_str(), record["status"].as_u64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_reaches_a_client_that_is_still_sending_though_the_provider_reads_no_more() {
    let deaf = deaf_upstream().await;
    let setup = Setup::with(&[Api::at("deaf", deaf.addr, "")], &[]).await;
    let large = vec![b'x'; LARGE];
    for status in [401, 413, 500] {
        for reads in [0, 1 << 20] {
            let ask = setup.ask("POST", "/deaf/v1/files").with("x-answers", status).with("x-reads", reads);
            for (framing, request) in
                [("a length", ask.clone().body(&large)), ("chunks", ask.clone().chunks(&large, &[100_000]))]
            {
                let case = format!("{status}, {framing}, after {reads} bytes");
                let mut wire = setup.wire().await;
                let (answer, _) = answered(&mut wire, &case, &request).await;
                assert_eq!((answer.head.status, answer.whole), (status, true), "{case}: {}", answer.text());
                assert_eq!(answer.json()["error"]["message"], "as the provider says it", "{case}");
                assert_eq!(wire.closed().await, b"", "{case}: nobody reads the rest");
                let record = setup.only_record(&answer.head.id()).await;
                assert_eq!(ended(&record), ("finished", None, Some(status.into())), "{case}: {record}");
                assert_eq!(record["provider_request_id"], "req_early", "{case}: {record}");
                assert_eq!(record["response_bytes"], answer.body.len(), "{case}: {record}");
                assert!(record["request_bytes"].as_u64().is_some_and(|sent| sent < LARGE as u64), "{case}: {record}");
            }
        }
    }
    setup.wait_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_neither_reads_nor_answers_is_ended_by_the_clock_between_bytes() {
    let deaf = deaf_upstream().await;
    let setup = Setup::with(&[Api::at("deaf", deaf.addr, "timeouts: {idle: 1s}")], &[]).await;
    let large = vec![b'x'; LARGE];
    for reads in [0, 1 << 20] {
        let ask = setup.ask("POST", "/deaf/v1/files").with("x-reads", reads);
        for (framing, request) in
            [("a length", ask.clone().body(&large)), ("chunks", ask.clone().chunks(&large, &[100_000]))]
        {
            let case = format!("{framing}, after {reads} bytes");
            let mut wire = setup.wire().await;
            let (answer, took) = answered(&mut wire, &case, &request).await;
            assert!(took >= Duration::from_millis(980), "{case}: before the clock, after {took:?}");
            assert_eq!((answer.head.status, answer.code().as_str()), (504, "upstream_timeout"), "{case}");
            assert!(answer.text().contains("idle"), "{case}: the clock is named: {}", answer.text());
            assert!(answer.whole && answer.head.says_close(), "{case}: {:?}", answer.head);
            let record = setup.only_record(&answer.head.id()).await;
            assert_eq!(ended(&record), ("timeout", Some("idle"), Some(504)), "{case}: {record}");
        }
    }
    setup.wait_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_breaks_off_in_the_middle_of_an_upload_is_a_502_at_once() {
    let brittle = Upstream::start(|mut wire, _| async move {
        let Some(head) = wire.try_head().await else { return };
        let _ = wire.piece().await;
        if head.field("x-way") == Some("reset") {
            wire.reset();
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("brittle", brittle.addr, "")], &[]).await;
    let large = vec![b'x'; LARGE];
    for way in ["close", "reset"] {
        let ask = setup.ask("POST", "/brittle/v1/files").with("x-way", way);
        for (framing, request) in
            [("a length", ask.clone().body(&large)), ("chunks", ask.clone().chunks(&large, &[100_000]))]
        {
            let case = format!("{way}, {framing}");
            let before = brittle.connections();
            let mut wire = setup.wire().await;
            let (answer, _) = answered(&mut wire, &case, &request).await;
            assert_eq!((answer.head.status, answer.code().as_str()), (502, "upstream_unreachable"), "{case}");
            assert!(answer.whole && answer.head.says_close(), "{case}: {:?}", answer.head);
            assert_eq!(brittle.connections() - before, 1, "{case}: it was asked again");
            let record = setup.only_record(&answer.head.id()).await;
            let expected = ("upstream_unreachable", Some("upstream_unreachable"), Some(502));
            assert_eq!(ended(&record), expected, "{case}: {record}");
            assert_eq!(record["attempt"], 1, "{case}: {record}");
        }
    }
    setup.wait_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_before_the_end_of_the_body_goes_on_beside_it() {
    // The provider answers 200 at once and reads on: neither direction waits for the other.
    let eager = Upstream::start(|mut wire, _| async move {
        while wire.try_head().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
            let (body, whole) = wire.rest().await;
            let last = format!("{whole} {}", body.len());
            wire.send(format!("{:x}\r\n{last}\r\n0\r\n\r\n", last.len())).await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("eager", eager.addr, "")], &[]).await;
    let large = vec![b'x'; LARGE];
    for is_chunked in [false, true] {
        let case = format!("chunked {is_chunked}");
        let ask = setup.ask("POST", "/eager/v1/files");
        let request = if is_chunked { ask.chunks(&large, &[100_000]) } else { ask.body(&large) };
        let (start, end) = request.split_at(request.len() / 2);
        let mut wire = setup.wire().await;
        wire.send(start).await;
        let head = wire.head().await;
        assert_eq!(head.status, 200, "{case}");
        assert_eq!(wire.until_body_has("first").await, b"first", "{case}: seen while half the body is missing");
        wire.send(end).await;
        let (rest, whole) = wire.rest().await;
        assert_eq!((rest, whole), (format!("true {LARGE}").into_bytes(), true), "{case}");
        let record = setup.only_record(&head.id()).await;
        assert_eq!(ended(&record), ("finished", None, Some(200)), "{case}: {record}");
        assert_eq!(record["request_bytes"], LARGE, "{case}: {record}");
    }
    setup.wait_in_flight(0).await;
}
