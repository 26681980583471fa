//! Providers that refuse, hang, break, lie, or answer early: the client sees a failure, never an invented clean end,
//! and no connection on which anything was odd carries another request.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::setup::{Api, Setup, first_event_end, recorded};
use common::upstream::Upstream;
use common::wire::{Piece, Wire};
use tokio::net::TcpListener;

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

/// An address where nobody listens.
async fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_gives_no_usable_head_is_a_502_or_504_with_one_record_and_the_next_answer_is_clean() {
    let closed = nobody().await;
    let setup = Setup::with(&[Api::at("closed", closed, "")], &[]).await;
    let clean = setup.wire().await.ask(setup.chat().body(CHAT)).await;
    let chat = |fault: &str| setup.chat().fault(fault).body(CHAT);
    let hasty = setup.ask("POST", "/hasty/v1/chat/completions").json_type().fault("hang-head").body(CHAT);

    for (case, request, status, code, outcome, reason) in [
        (
            "refused",
            setup.ask("POST", "/closed/v1/chat/completions").body(CHAT),
            502,
            "upstream_unreachable",
            "upstream_unreachable",
            "upstream_unreachable",
        ),
        ("hung", hasty, 504, "upstream_timeout", "timeout", "first_byte"),
        ("reset", chat("reset-head"), 502, "upstream_unreachable", "upstream_unreachable", "upstream_unreachable"),
        ("not HTTP", chat("garbage"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
        ("two lengths", chat("garbage:two-cl"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
        ("CL with TE", chat("garbage:cl-te"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
        ("TE gzip", chat("garbage:te-gzip"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
        ("bad status", chat("garbage:bad-status"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
        ("bare LF", chat("garbage:bare-lf"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
        ("unasked 101", chat("garbage:101"), 502, "upstream_invalid", "upstream_unreachable", "upstream_invalid"),
    ] {
        let began = Instant::now();
        let mut wire = setup.wire().await;
        let answer = wire.ask(request).await;
        let took = began.elapsed();
        assert_eq!(answer.head.status, status, "{case}: {}", answer.text());
        assert_eq!(answer.code(), code, "{case}");
        assert!(answer.whole, "{case}");
        if case == "hung" {
            assert!(answer.text().contains("first_byte"), "the clock is named: {}", answer.text());
            assert!(took >= Duration::from_secs(1), "{took:?}");
        }
        let record = setup.only_record(&answer.head.id()).await;
        assert_eq!(record["outcome"], outcome, "{case}: {record}");
        assert_eq!(record["reason"], reason, "{case}: {record}");
        assert_eq!(record["status"], status, "{case}: {record}");

        let next = setup.wire().await.ask(setup.chat().body(CHAT)).await;
        assert_eq!((next.head.status, &next.body), (200, &clean.body), "after {case}");
    }
}

/// An upstream that sends what `x-kind` asks for and keeps the connection open. A clean answer tells which connection
/// and which request of it this is, so that a reuse shows.
async fn odd_upstream() -> Upstream {
    Upstream::start(|mut wire, connection| async move {
        let mut count = 0;
        while let Some((head, _)) = wire.request().await {
            count += 1;
            let length = "content-length: 2\r\n";
            let chunked = "transfer-encoding: chunked\r\n";
            let chunks = "2\r\n{}\r\n0\r\n\r\n";
            let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}");
            let answer = match head.field("x-kind").unwrap_or("fine") {
                "two lengths" => ok(&format!("{length}content-length: 3\r\n"), "{} "),
                "length and chunked" => ok(&format!("{length}{chunked}"), chunks),
                "gzip coding" => ok("transfer-encoding: gzip, chunked\r\n", chunks),
                "switched" => {
                    ok("connection: upgrade\r\nupgrade: x\r\n", "").replace("200 OK", "101 Switching Protocols")
                }
                "bad status" => ok(length, "{}").replace("200", "2x0"),
                "bare LF" => ok(length, "{}").replace("\r\n", "\n"),
                "bad chunk" => ok(chunked, "2\r\n{}\r\nzz\r\n"),
                "bytes behind a length" => ok(length, "{}") + &ok("content-length: 8\r\n", "poisoned"),
                "bytes behind chunks" => ok(chunked, chunks) + &ok("content-length: 8\r\n", "poisoned"),
                _ => {
                    let body = format!("connection {connection} request {count}");
                    ok(&format!("content-length: {}\r\n", body.len()), &body)
                }
            };
            wire.send(answer).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_on_which_an_answer_was_irregular_carries_another_request() {
    let odd = odd_upstream().await;
    let setup = Setup::with(&[Api::at("odd", odd.addr, "")], &[]).await;
    let ask = |kind: &str| setup.ask("POST", "/odd/v1/files").with("x-kind", kind).body("{}");

    // The pool works: without this the rest would prove nothing. Whose thread has the connection is chance.
    let mut reused = false;
    for _ in 0..50 {
        let answer = setup.wire().await.ask(ask("fine")).await;
        assert_eq!(answer.head.status, 200);
        reused |= !answer.text().ends_with("request 1");
    }
    assert!(reused, "no connection was ever reused");

    for (kind, is_clean) in [
        ("two lengths", false),
        ("length and chunked", false),
        ("gzip coding", false),
        ("switched", false),
        ("bad status", false),
        ("bare LF", false),
        ("bad chunk", false),
        ("bytes behind a length", true),
        ("bytes behind chunks", true),
    ] {
        for _ in 0..3 {
            let mut wire = setup.wire().await;
            wire.send(ask(kind)).await;
            let answer = wire.try_answer().await;
            match &answer {
                Some(answer) if is_clean => {
                    assert_eq!((answer.head.status, answer.text().as_str()), (200, "{}"), "{kind}: its own answer");
                    assert!(answer.whole, "{kind}");
                }
                Some(answer) => assert!(answer.head.status == 502 || !answer.whole, "{kind}: {answer:?}"),
                None => {}
            }
            // More than there are idle connections of the kinds before: a poisoned one would be among them.
            for _ in 0..6 {
                let next = setup.wire().await.ask(ask("fine")).await;
                assert_eq!(next.head.status, 200, "after {kind}");
                assert!(next.text().starts_with("connection "), "after {kind}: {}", next.text());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_answer_never_ends_cleanly_and_a_stream_cut_between_events_gets_the_error_event() {
    let setup = Setup::new().await;
    let stream = recorded("openai-chat-stream-usage.sse");
    let json = recorded("openai-chat-basic.json");
    let event = first_event_end(&stream);
    let hasty = |fault: String| setup.ask("POST", "/hasty/v1/chat/completions").json_type().fault(&fault).body(STREAM);
    let streamed = |fault: String| setup.chat().fault(&fault).body(STREAM);

    for (case, request, whole, sent, outcome, reason) in [
        ("a length, FIN", setup.chat().fault("cut:10").body(CHAT), &json, 10, "upstream_cut", None),
        ("a length, RST", setup.chat().fault("reset:10").body(CHAT), &json, 10, "upstream_cut", None),
        ("chunks, FIN", streamed(format!("cut:{}", event - 5)), &stream, event - 5, "upstream_cut", None),
        (
            "chunks, FIN between events",
            streamed(format!("cut:{event}")),
            &stream,
            event,
            "upstream_cut",
            Some("upstream_invalid"),
        ),
        ("chunks, RST", streamed(format!("reset:{}", event + 7)), &stream, event + 7, "upstream_cut", None),
        (
            "chunks, RST between events",
            streamed(format!("reset:{event}")),
            &stream,
            event,
            "upstream_cut",
            Some("upstream_invalid"),
        ),
        ("silence", hasty(format!("hang-body:{}", event - 5)), &stream, event - 5, "timeout", None),
        (
            "silence between events",
            hasty(format!("hang-body:{event}")),
            &stream,
            event,
            "timeout",
            Some("upstream_timeout"),
        ),
    ] {
        let mut wire = setup.wire().await;
        let answer = wire.ask(request).await;
        assert_eq!(answer.head.status, 200, "{case}");
        assert!(!answer.whole, "{case}: a cut answer must look cut");
        assert_eq!(&answer.body[..sent.min(answer.body.len())], &whole[..sent], "{case}: what came was passed on");
        let added = String::from_utf8_lossy(&answer.body[sent..]).into_owned();
        match reason {
            Some(code) => {
                assert!(added.starts_with("data: {") && added.ends_with("}\n\n"), "{case}: {added:?}");
                assert!(added.contains(code), "{case}: {added}");
            }
            None => assert_eq!(added, "", "{case}: nothing is invented in the middle of an event"),
        }
        assert!(!added.contains("[DONE]"), "{case}");
        assert_eq!(wire.closed().await, b"", "{case}");
        let record = setup.only_record(&answer.head.id()).await;
        assert_eq!(record["outcome"], outcome, "{case}: {record}");
        assert_eq!(record["response_bytes"], sent, "{case}: {record}");
    }

    // The head and the first chunk are right, the next chunk is not.
    let mut wire = setup.wire().await;
    wire.send(setup.chat().fault("garbage:bad-chunk").body(CHAT)).await;
    if let Some(answer) = wire.try_answer().await {
        assert!(answer.head.status == 502 || !answer.whole, "{answer:?}");
    }

    // This end cannot be told from a cut: it passes, and the record says so.
    let answer = setup
        .wire()
        .await
        .ask(setup.chat().with("x-mock-framing", "close").fault(&format!("cut:{event}")).body(STREAM))
        .await;
    assert!(answer.whole);
    let record = setup.only_record(&answer.head.id()).await;
    assert_eq!((&record["outcome"], &record["reason"]), (&"finished".into(), &"until_close".into()), "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_pass_and_continue_does_not_and_pieces_go_on_as_they_come() {
    let eager = Upstream::start(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("eager", eager.addr, "")], &[]).await;

    let mut wire = setup.wire().await;
    wire.send(setup.chat().fault("continue-103").body(CHAT)).await;
    let hints = wire.head().await;
    assert_eq!((hints.status, hints.field("link")), (103, Some("</style.css>; rel=preload")));
    assert_eq!(wire.head().await.status, 200);
    assert!(wire.rest().await.1);

    let mut old = setup.wire().await;
    old.send(setup.chat().http10().fault("continue-103").body(CHAT)).await;
    assert_eq!(old.head().await.status, 200, "HTTP/1.0 knows no interim answers");

    wire.send(setup.ask("POST", "/eager/v1/files").body("{}")).await;
    assert_eq!(wire.head().await.status, 200, "the 100 was for the proxy");
    assert!(wire.rest().await.1);

    // A paced answer with a length comes piece by piece: the first before the provider has sent the last.
    wire.send(setup.chat().with("x-mock-framing", "length").with("x-mock-pace-ms", 100).body(STREAM)).await;
    let head = wire.head().await;
    assert!(head.field("content-length").is_some());
    let Piece::Data(first) = wire.piece().await else { panic!("no first piece") };
    let seen = setup.mock.requests().pop().unwrap();
    assert_eq!(seen.ended, None, "the first piece came only with the last");
    let (rest, whole) = wire.rest().await;
    assert!(whole);
    assert_eq!([first, rest].concat(), recorded("openai-chat-stream-usage.sse"));
}

/// What an upstream does after it has refused an upload in the middle.
async fn refuse_early(mut wire: Wire, after: &str) {
    let body = "too much";
    let refusal = format!("HTTP/1.1 413 Content Too Large\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    wire.send(refusal).await;
    match after {
        "reset" => {
            // After the answer was read, or the kernel throws it away with the connection.
            tokio::time::sleep(Duration::from_millis(50)).await;
            wire.reset();
        }
        "close" => wire.half_close().await,
        _ => std::future::pending().await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_413_reaches_the_client_whatever_the_upstream_does_next_and_the_pool_stays_clean() {
    let rude = Upstream::start(|mut wire, _| async move {
        while let Some(head) = wire.try_head().await {
            if let Some(after) = head.field("x-after") {
                return refuse_early(wire, after).await;
            }
            if !wire.rest().await.1 {
                return;
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nclean").await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("rude", rude.addr, "")], &[]).await;
    let large = vec![b'x'; 8_000_000];
    let to_rude = |after: &str| setup.ask("POST", "/rude/v1/files").with("x-after", after);
    for (case, request) in [
        ("closes", to_rude("close").body(&large)),
        ("resets", to_rude("reset").body(&large)),
        ("stalls", to_rude("stall").body(&large)),
        ("closes, chunked", to_rude("close").chunks(&large, &[100_000])),
        ("stalls, chunked", to_rude("stall").chunks(&large, &[100_000])),
        ("reads on", setup.ask("POST", "/echo/v1/files").fault("early:413").body(&large)),
        ("closes at once", setup.ask("POST", "/echo/v1/files").fault("early-close:413").body(&large)),
    ] {
        let mut wire = setup.wire().await;
        wire.send_until_answered(&request).await;
        let answer = wire.try_answer().await.unwrap_or_else(|| panic!("{case}: no answer"));
        assert_eq!(answer.head.status, 413, "{case}: {}", answer.text());
        assert!(answer.whole, "{case}");
        assert_eq!(
            setup.only_record(&answer.head.id()).await["outcome"],
            "finished",
            "{case}: it is the provider's answer"
        );
        for _ in 0..6 {
            let next = setup.wire().await.ask(setup.ask("POST", "/rude/v1/files").body("x")).await;
            assert_eq!((next.head.status, next.text().as_str()), (200, "clean"), "after {case}");
            let next = setup.wire().await.ask(setup.chat().body(CHAT)).await;
            assert_eq!(next.head.status, 200, "after {case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_that_died_costs_no_request_unless_the_provider_may_have_begun_it() {
    // Closes each connection behind its first answer, without having said so.
    let shy = Upstream::start(|mut wire, _| async move {
        if wire.request().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            wire.half_close().await;
            wire.closed().await;
        }
    })
    .await;
    // Closes each connection on which a second request arrives: what no look at the socket can foresee.
    let fickle = Upstream::start(|mut wire, _| async move {
        if wire.request().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            wire.request().await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("shy", shy.addr, ""), Api::at("fickle", fickle.addr, "")], &[]).await;

    for round in 0..20 {
        let answer = setup.wire().await.ask(setup.ask("POST", "/shy/v1/files").body("{}")).await;
        assert_eq!(answer.head.status, 200, "round {round}: {}", answer.text());
        let answer = setup.wire().await.ask(setup.ask("GET", "/fickle/v1/files").head()).await;
        assert_eq!(answer.head.status, 200, "round {round}: nothing was sent that the provider could act upon twice");
        assert!(answer.whole);
    }

    // A body that has gone out may have been acted upon: it is not sent again.
    let mut failed = 0;
    for _ in 0..20 {
        let before = fickle.connections();
        let answer = setup.wire().await.ask(setup.ask("POST", "/fickle/v1/files").body("{}")).await;
        match answer.head.status {
            200 => {}
            502 => {
                failed += 1;
                assert_eq!(fickle.connections(), before, "a POST with a body was repeated");
                assert_eq!(setup.only_record(&answer.head.id()).await["outcome"], "upstream_unreachable");
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(failed > 0, "no POST ever met a dying connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_body_is_repeated_on_a_dying_connection_only_where_its_method_may_be() {
    // Answers once on each connection, and closes it when another request has arrived: that one it may have begun.
    let arrived: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let counting = Arc::clone(&arrived);
    let fickle = Upstream::start(move |mut wire, _| {
        let arrived = Arc::clone(&counting);
        async move {
            for is_second in [false, true] {
                let Some((head, _)) = wire.request().await else { return };
                *arrived.lock().unwrap().entry(head.field("x-request-id").unwrap().to_owned()).or_default() += 1;
                if !is_second {
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                }
            }
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("fickle", fickle.addr, "")], &[]).await;
    for (method, length, may_repeat) in [
        ("GET", None, true),
        ("DELETE", None, true),
        ("PUT", Some(0), true),
        ("POST", None, false),
        ("POST", Some(0), false),
        ("PATCH", None, false),
    ] {
        let mut met = 0;
        for round in 0..20 {
            let name = format!("{method}-{length:?}-{round}");
            let ask = setup.ask(method, "/fickle/v1/files").with("x-request-id", &name);
            let ask = if let Some(length) = length { ask.with("content-length", length) } else { ask };
            let answer = setup.wire().await.ask(ask.head()).await;
            let record = setup.only_record(&answer.head.id()).await;
            let times = arrived.lock().unwrap()[&name];
            let attempt = record["attempt"].as_u64();
            match (answer.head.status, may_repeat) {
                (200, _) if times == 1 => assert_eq!(attempt, Some(1), "{name}: {record}"),
                (200, true) => {
                    met += 1;
                    assert_eq!((times, attempt), (2, Some(2)), "{name}: {record}");
                }
                (502, false) => {
                    met += 1;
                    assert_eq!((times, attempt), (1, Some(1)), "{name}: a {method} was repeated: {record}");
                    assert_eq!(answer.code(), "upstream_unreachable", "{name}");
                    assert_eq!(record["outcome"], "upstream_unreachable", "{name}: {record}");
                }
                (status, _) => panic!("{name}: {status}, {times} times at the provider: {record}"),
            }
        }
        assert!(met > 0, "no {method} ever met a dying connection");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_the_provider_pass_byte_identical_and_are_not_repeated() {
    let failing = Upstream::start(|mut wire, _| async move {
        while let Some((head, _)) = wire.request().await {
            let status = head.field("x-status").unwrap_or("500").to_owned();
            let body = format!("{{\"error\" : \"as the provider writes it\", \"status\":{status}}}\n");
            let fields = "retry-after: 7\r\nretry-after-ms: 6900\r\nx-request-id: req_7\r\n";
            wire.send(format!("HTTP/1.1 {status} Odd\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())).await;
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("failing", failing.addr, "")], &[]).await;
    for status in [400, 401, 408, 409, 429, 500, 502, 503, 504, 529] {
        let answer =
            setup.wire().await.ask(setup.ask("POST", "/failing/v1/files").with("x-status", status).body("{}")).await;
        assert_eq!(answer.head.status, status);
        assert_eq!(answer.text(), format!("{{\"error\" : \"as the provider writes it\", \"status\":{status}}}\n"));
        for (field, value) in [("retry-after", "7"), ("retry-after-ms", "6900"), ("x-request-id", "req_7")] {
            assert_eq!((answer.head.count(field), answer.head.field(field)), (1, Some(value)), "{status}");
        }
        assert_eq!(answer.head.field("x-should-retry"), None, "{status}: the SDK decides as without us");
        let record = setup.only_record(&answer.head.id()).await;
        assert_eq!((&record["outcome"], &record["attempt"]), (&"finished".into(), &1.into()), "{record}");
        assert_eq!(record["provider_request_id"], "req_7", "{record}");
    }
    let before = setup.mock.stats().requests;
    let limited = setup.wire().await.ask(setup.chat().body(r#"{"model":"rate-limited","messages":[]}"#)).await;
    assert_eq!((limited.head.status, limited.head.field("retry-after")), (429, Some("2")));
    assert_eq!(limited.body, recorded("error-openai-429-rate.json"));
    assert_eq!(setup.mock.stats().requests - before, 1, "asked once");
}
