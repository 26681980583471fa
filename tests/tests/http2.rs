//! HTTP/2 towards clients: each stream is an exchange as any other, whatever its neighbours do.

#[path = "http2/attacks.rs"]
mod attacks;
mod common;
#[path = "http2/peer.rs"]
mod peer;

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::setup::{Setup, eventually, first_event_end, now_ms, recorded};
use common::wire::crc32;
use h2::Reason;
use h2::client::Builder;
use http::Request;
use llm_proxy_load::mock::Ended;
use llm_proxy_tests::PATIENCE;
use peer::{Frames, Peer, Running, ask, frame, kind, piece, post, request, rest, until_body_has};
use serde_json::{Value, json};

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
const CHAT_PATH: &str = "/v1/chat/completions";
/// The promise between a client's reset and the provider's end, and of which share.
const AT_ONCE_MS: u64 = 100;
/// The promise of a revocation, in one process.
const PROMPTLY: Duration = Duration::from_millis(250);

/// Runs a program that must be there, to its end.
async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(3 * PATIENCE, command.output()).await;
    output.unwrap_or_else(|_| panic!("{program} does not end")).unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_and_streams_are_the_providers_bytes_and_nothing_of_http_1_1_shows() {
    let setup = Setup::new().await;
    let mut peer = Peer::connect(setup.proxy()).await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("body");
    let url = format!("http://{}{CHAT_PATH}", setup.proxy());
    let bearer = format!("authorization: Bearer {}", setup.token.text);
    for (recording, file, body) in [
        ("openai-chat-basic", "openai-chat-basic.json", CHAT),
        ("openai-chat-stream-usage", "openai-chat-stream-usage.sse", STREAM),
    ] {
        let expected = recorded(file);
        let asking = post(CHAT_PATH, &setup.token.text).header("x-mock-recording", recording);
        let answer = peer.ask(asking, body).await;
        assert_eq!((answer.status, answer.reset), (200, None), "{recording}: {}", answer.text());
        assert_eq!(answer.body, expected, "{recording}");
        for name in ["connection", "transfer-encoding", "keep-alive", "upgrade", "proxy-connection"] {
            assert_eq!(answer.header(name), None, "{recording}");
        }
        assert!(answer.header("date").is_some(), "{recording}: {:?}", answer.headers);
        let record = setup.only_record(&answer.id()).await;
        assert_eq!((&record["outcome"], &record["status"]), (&json!("finished"), &json!(200)), "{record}");
        let head = String::from_utf8(setup.mock.requests().pop().unwrap().head.to_vec()).unwrap();
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\nhost: "), "{head}");
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n") && !head.contains("content-length"), "{head}");

        let named = format!("x-mock-recording: {recording}");
        let fields = ["-H", &bearer, "-H", &named, "-H", "content-type: application/json", "-d", body];
        let written = ["-o", out.to_str().unwrap(), "-w", "%{http_version} %{http_code}", &url];
        let how = ["-sS", "--noproxy", "*", "--http2-prior-knowledge"];
        let told = run("curl", &[&how[..], &fields, &written].concat()).await;
        assert_eq!(String::from_utf8_lossy(&told.stdout), "2 200", "{}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(std::fs::read(&out).unwrap(), expected, "curl, {recording}");
        let head = String::from_utf8(setup.mock.requests().pop().unwrap().head.to_vec()).unwrap();
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
    }
    let head = peer.ask(ask("HEAD", "/health"), "").await;
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, Some("15")), "{head:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_streams_at_once_on_one_connection_are_never_mixed() {
    const STREAMS: usize = 50;
    const PIECES: usize = 12;
    let setup = Setup::new().await;
    // The answers are taken one by one: those that wait must not use up the window of the connection.
    let mut peer = Peer::with(setup.proxy(), Builder::new().initial_connection_window_size(8 << 20)).await;
    let pieces = |stream: usize, number: usize| vec![b'a' + u8::try_from(stream % 26).unwrap(); 997 + stream + number];
    let mut running = Vec::new();
    for stream in 0..STREAMS {
        let asking = post("/echo/v1/files", &setup.token.text).header("x-stream", stream);
        running.push(peer.begin(asking, true).await);
    }
    for number in 0..PIECES {
        for (stream, running) in running.iter_mut().enumerate() {
            running.upload.send_data(pieces(stream, number).into(), number + 1 == PIECES).unwrap();
        }
        tokio::task::yield_now().await;
    }
    let mut ids = std::collections::BTreeSet::new();
    for (stream, running) in running.into_iter().enumerate().rev() {
        let answer = running.answer().await;
        assert_eq!((answer.status, answer.reset), (200, None), "{stream}: {}", answer.text());
        let sent: Vec<u8> = (0..PIECES).flat_map(|number| pieces(stream, number)).collect();
        let seen = answer.json();
        assert_eq!((&seen["body_len"], &seen["body_crc32"]), (&json!(sent.len()), &json!(crc32(&sent))), "{stream}");
        let names = seen["headers"].as_array().unwrap();
        assert!(names.contains(&json!(["x-stream", stream.to_string()])), "{stream}: {seen}");
        assert!(ids.insert(answer.id()), "two streams have one id");
    }
    // A body of many windows, in one stream.
    let large: Vec<u8> = (0..8u32 << 20).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let crc = crc32(&large);
    let seen = peer.ask(post("/echo/v1/files", &setup.token.text), large).await.json();
    assert_eq!((&seen["body_len"], &seen["body_crc32"]), (&json!(8 << 20), &json!(crc)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_pass_and_a_body_that_waits_is_asked_for() {
    let setup = Setup::new().await;
    let mut peer = Peer::connect(setup.proxy()).await;
    let asking =
        post(CHAT_PATH, &setup.token.text).header("expect", "100-continue").header("content-length", CHAT.len());
    let mut running = peer.begin(asking, true).await;
    assert_eq!(running.interim().await.0, 100);
    running.upload.send_data(CHAT.into(), true).unwrap();
    assert_eq!(running.answer().await.status, 200);

    let mut running = peer.send(post(CHAT_PATH, &setup.token.text).header("x-mock-fault", "continue-103"), CHAT).await;
    let (status, headers) = running.interim().await;
    assert!(status == 103 && headers.contains_key("link"), "{status} {headers:?}");
    assert_eq!(running.answer().await.status, 200);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    BeforeTheHead,
    SilentBody,
    MidBody,
}

impl Phase {
    const ALL: [Self; 3] = [Self::BeforeTheHead, Self::SilentBody, Self::MidBody];

    async fn reach(self, setup: &Setup, peer: &mut Peer, name: &str) -> Running {
        let (field, value) = match self {
            Self::BeforeTheHead => ("x-mock-fault", "hang-head"),
            Self::SilentBody => ("x-mock-fault", "hang-body:100"),
            Self::MidBody => ("x-mock-pace-ms", "20"),
        };
        let asking = post(CHAT_PATH, &setup.token.text).header("x-request-id", name).header(field, value);
        peer.send(asking, STREAM).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_its_client_resets_closes_its_upstream_within_100_ms_and_no_other() {
    const ROUNDS: usize = 12;
    let setup = Setup::new().await;
    let mut peer = Peer::connect(setup.proxy()).await;
    let _neighbour = Phase::SilentBody.reach(&setup, &mut peer, "neighbour").await;
    let mut delays = Vec::new();
    let mut names = Vec::new();
    for round in 0..ROUNDS {
        for (phase, dies) in Phase::ALL.into_iter().flat_map(|phase| [(phase, false), (phase, true)]) {
            let name = format!("{phase:?}-{round}-{dies}");
            let mut other = Peer::connect(setup.proxy()).await;
            let mut running = phase.reach(&setup, if dies { &mut other } else { &mut peer }, &name).await;
            let left_at = if phase == Phase::BeforeTheHead {
                let has_it = || setup.seen(&name).is_some_and(|request| request.body_done_ms.is_some());
                eventually("the provider has the request", has_it).await;
                let left_at = now_ms();
                if dies {
                    other.cut()
                } else {
                    running.upload.send_reset(Reason::CANCEL)
                }
                left_at
            } else {
                let (answer, mut body, mut upload) = running.head().await.unwrap();
                assert_eq!(answer.status, 200, "{name}");
                until_body_has(&mut body, "data:").await;
                let left_at = now_ms();
                if dies {
                    other.cut()
                } else {
                    upload.send_reset(Reason::CANCEL)
                }
                left_at
            };
            let is_told = || setup.seen(&name).is_some_and(|request| request.ended.is_some());
            eventually("the provider is told", is_told).await;
            let request = setup.seen(&name).unwrap();
            assert_eq!(request.ended, Some(Ended::ClientClosed), "{name}");
            delays.push((request.client_closed_at_ms.unwrap().saturating_sub(left_at), name.clone()));
            names.push(name);
        }
    }
    // The promise is a p99: of so many, one may be later.
    let late: Vec<_> = delays.iter().filter(|(delay, _)| *delay > AT_ONCE_MS).collect();
    assert!(late.len() <= 1, "later than {AT_ONCE_MS} ms: {late:?}");
    for name in &names {
        let record = setup.only_record_of_client(name).await;
        assert_eq!(record["outcome"], "client_gone", "{name}: {record}");
    }
    assert!(setup.seen("neighbour").unwrap().ended.is_none(), "a neighbour was cut");
    assert_eq!(peer.ask(post(CHAT_PATH, &setup.token.text), CHAT).await.status, 200, "the connection lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_cuts_streams_within_250_ms_with_their_error_event_and_nobody_elses() {
    let setup = Setup::new().await;
    let event = first_event_end(&recorded("openai-chat-stream-usage.sse"));
    let hang = format!("hang-body:{event}");
    let stream = |token: &str| {
        post(CHAT_PATH, token).header("x-mock-recording", "openai-chat-stream-usage").header("x-mock-fault", &hang)
    };
    let revoked = setup.token_with(json!({})).await;
    // Both tokens on one connection, as behind a load balancer.
    let mut peer = Peer::connect(setup.proxy()).await;
    let mut streams = Vec::new();
    for token in [&revoked.text, &setup.token.text] {
        let (answer, mut body, upload) = peer.send(stream(token), STREAM).await.head().await.unwrap();
        assert_eq!(answer.status, 200);
        let mut got = 0;
        while got < event {
            got += piece(&mut body).await.expect("more of the event").unwrap().len();
        }
        streams.push((answer.id(), body, upload));
    }
    let waiting = post(CHAT_PATH, &revoked.text).header("x-request-id", "waiting").header("x-mock-fault", "hang-head");
    let waiting = peer.send(waiting, STREAM).await;
    eventually("the provider has the request", || setup.seen("waiting").is_some()).await;

    let path = format!("/manage/tokens/{}", revoked.id);
    let (status, answer) = setup.manage("PATCH", &path, json!({"is_active": false})).await;
    let said = Instant::now();
    assert_eq!(status, 200, "{answer}");
    let (id, body, _upload) = &mut streams[0];
    let (added, reset) = rest(body).await;
    let took = said.elapsed();
    let refused = waiting.answer().await;
    assert!(took <= PROMPTLY && said.elapsed() <= PROMPTLY, "{took:?}, {:?}", said.elapsed());
    let added = String::from_utf8(added).unwrap();
    assert_eq!(reset, Some(Reason::INTERNAL_ERROR), "a cut stream must look cut: {added:?}");
    assert!(added.starts_with("data: {\"error\"") && added.ends_with("}\n\n"), "{added:?}");
    assert!(added.contains("token_revoked") && !added.contains("[DONE]"), "{added}");
    let record = setup.only_record(id).await;
    assert_eq!((&record["outcome"], &record["reason"]), (&json!("revoked"), &json!("token_revoked")), "{record}");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("token_revoked")));

    let (_, body, _upload) = &mut streams[1];
    let silence = tokio::time::timeout(Duration::from_millis(1), body.data()).await;
    assert!(silence.is_err(), "the other token's stream said {silence:?}");
    assert_eq!(peer.ask(post(CHAT_PATH, &setup.token.text), CHAT).await.status, 200, "the connection lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_providers_broken_answer_never_looks_whole() {
    let setup = Setup::new().await;
    let stream = recorded("openai-chat-stream-usage.sse");
    let event = first_event_end(&stream);
    let mut peer = Peer::connect(setup.proxy()).await;
    for (recording, body, fault, expected, has_event) in [
        ("openai-chat-stream-usage", STREAM, format!("cut:{event}"), &stream[..event], true),
        ("openai-chat-stream-usage", STREAM, "cut:5".to_owned(), &stream[..5], false),
    ] {
        let asking =
            post(CHAT_PATH, &setup.token.text).header("x-mock-recording", recording).header("x-mock-fault", &fault);
        let answer = peer.ask(asking, body).await;
        assert_eq!((answer.status, answer.reset), (200, Some(Reason::INTERNAL_ERROR)), "{fault}: {}", answer.text());
        let added = answer.body.strip_prefix(expected).unwrap_or_else(|| panic!("{fault}: {}", answer.text()));
        assert_eq!(added.starts_with(b"data: {\"error\""), has_event, "{fault}: {}", answer.text());
        assert!(has_event || added.is_empty(), "{fault}: {}", answer.text());
    }
    let fields = [("x-mock-recording", "openai-chat-basic"), ("x-mock-fault", "cut:20")];
    let asking =
        fields.iter().fold(post(CHAT_PATH, &setup.token.text), |asking, (name, value)| asking.header(*name, *value));
    let answer = peer.ask(asking, CHAT).await;
    assert_eq!(answer.reset, Some(Reason::INTERNAL_ERROR), "a length that is not kept: {}", answer.text());
    assert_eq!(peer.ask(post(CHAT_PATH, &setup.token.text), CHAT).await.status, 200, "the connection lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_the_request_is_read_and_the_connection_lives() {
    let setup = Setup::new().await;
    let mut peer = Peer::connect(setup.proxy()).await;
    for size in [(1 << 20) + 1, 4 << 20] {
        let answer = peer.ask(post("/small/v1/files", &setup.token.text), vec![b'x'; size]).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (413, &json!("request_too_large")), "{size}");
    }
    let told = post("/small/v1/files", &setup.token.text).header("content-length", 2 << 20);
    let running = peer.begin(told, true).await;
    assert_eq!(running.answer().await.status, 413, "a length that is too much already");
    assert_eq!(peer.ask(post("/v1/chat/completions", "sk-lp-nonsense"), CHAT).await.status, 401);
    assert_eq!(peer.ask(post(CHAT_PATH, &setup.token.text), CHAT).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_judged_as_strictly_as_those_of_http_1_1() {
    let setup = Setup::new().await;
    let before = setup.mock.stats().requests;
    let token = setup.token.text.as_str();
    let mut peer = Peer::connect(setup.proxy()).await;
    let chat = || post(CHAT_PATH, token);
    let many = (0..100).fold(chat(), |asking, number| asking.header(format!("x-{number}"), "1"));
    let connect = Request::builder().method("CONNECT").uri("proxy.test:443");
    for (case, asking) in [
        ("another host", chat().header("host", "other.test")),
        ("two hosts", chat().header("host", "proxy.test").header("host", "proxy.test")),
        ("user in the authority", Request::builder().method("POST").uri(format!("http://user@proxy.test{CHAT_PATH}"))),
        (
            "octets that must be encoded",
            ask("GET", "/v1/models/{x}").header("authorization", format!("Bearer {token}")),
        ),
        ("more than 100 fields", many),
        ("an expectation", chat().header("expect", "200-ok")),
        ("connect", connect),
    ] {
        let answer = peer.ask(asking, "").await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_request")), "{case}");
    }
    let large = |size: usize| ask("GET", "/health").header("x-large", "a".repeat(size));
    assert_eq!(peer.ask(large(30_000), "").await.status, 200);
    assert_eq!(peer.ask(large(33_000), "").await.status, 431);

    let bearer = format!("Bearer {token}");
    let head = |fields: &[(&str, &str)]| {
        let fields = [&[("authorization", bearer.as_str())][..], fields].concat();
        request("POST", CHAT_PATH, &fields)
    };
    let end_headers = peer::END_HEADERS;
    for (case, head, data) in [
        ("connection", head(&[("connection", "close")]), &b"{}"[..]),
        ("transfer-encoding", head(&[("transfer-encoding", "chunked")]), b"{}"),
        ("te", head(&[("te", "gzip")]), b"{}"),
        ("capitals", head(&[("X-A", "1")]), b"{}"),
        ("less than its length", head(&[("content-length", "5")]), b"{}"),
        ("more than its length", head(&[("content-length", "1")]), b"{}"),
        ("two lengths", head(&[("content-length", "2"), ("content-length", "3")]), b"{}"),
    ] {
        let mut frames = Frames::open(setup.proxy(), &[]).await;
        frames.write(&frame(kind::HEADERS, end_headers, 1, &head)).await;
        frames.write(&frame(kind::DATA, peer::END_STREAM, 1, data)).await;
        eventually(case, || frames.resets().contains(&(1, 1)) || frames.is_over()).await;
    }
    // What was reset in the middle of its body may have begun there; nothing of it was whole.
    let whole = setup.mock.requests().into_iter().skip(usize::try_from(before).unwrap());
    let whole: Vec<_> = whole.filter(|request| request.body_done_ms.is_some()).collect();
    assert!(whole.is_empty(), "{whole:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_ways_to_ask_for_http_2_in_the_clear_are_none() {
    let setup = Setup::new().await;
    let mut wire = setup.wire().await;
    let upgrade = setup.models().with("connection", "Upgrade, HTTP2-Settings").with("upgrade", "h2c");
    let answer = wire.ask(upgrade.with("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA").head()).await;
    assert_eq!((answer.head.status, answer.head.field("upgrade")), (200, None), "{:?}", answer.head);
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(wire.answer().await.head.status, 400, "behind a request it is none");
    for almost in ["PRI * HTTP/2.0\r\nhost: a\r\n\r\n", "PRI / HTTP/2.0\r\n\r\n", "GET * HTTP/2.0\r\n\r\n"] {
        let mut wire = setup.wire().await;
        wire.send(almost).await;
        assert_eq!(wire.answer().await.head.status, 400, "{almost:?}");
    }
    let mut wire = setup.wire().await;
    wire.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await;
    assert!(!wire.closed().await.starts_with(b"HTTP/1.1"), "a preface that goes wrong is answered in HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_sigterm_running_streams_end_whole_and_new_ones_are_told_to_go_elsewhere() {
    let mut setup = Setup::with(&[], &[("DRAIN_TIMEOUT", "3s")]).await;
    let event = first_event_end(&recorded("openai-chat-stream-usage.sse"));
    let mut peer = Peer::connect(setup.proxy()).await;
    let paced = post(CHAT_PATH, &setup.token.text).header("x-mock-pace-ms", "100");
    let (_, mut short, _upload) = peer.send(paced, STREAM).await.head().await.unwrap();
    until_body_has(&mut short, "data:").await;
    let hang = post(CHAT_PATH, &setup.token.text).header("x-mock-fault", format!("hang-body:{event}"));
    let (long, mut long_body, _upload) = peer.send(hang, STREAM).await.head().await.unwrap();
    until_body_has(&mut long_body, "\n\n").await;

    let began = Instant::now();
    setup.sigterm();
    // Who is just sending is served; soon the connection takes no more.
    loop {
        let another = post(CHAT_PATH, &setup.token.text).body(()).unwrap();
        let Some(mut running) = peer.try_begin(another, true).await else { break };
        if running.upload.send_data(CHAT.into(), true).is_err() {
            break;
        }
        match running.head().await {
            Ok((answer, mut body, _upload)) => {
                assert_eq!((answer.status, rest(&mut body).await.1), (200, None), "after SIGTERM");
            }
            Err(error) => {
                assert!(error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM), "{error}");
                break;
            }
        }
        assert!(began.elapsed() < PATIENCE, "still taken");
    }
    let (end, reset) = rest(&mut short).await;
    assert!(reset.is_none() && end.ends_with(b"data: [DONE]\n\n"), "{reset:?} {}", String::from_utf8_lossy(&end));
    let (last, reset) = rest(&mut long_body).await;
    let last = String::from_utf8(last).unwrap();
    assert!(last.starts_with("data: {\"error\"") && last.ends_with("}\n\n"), "{reset:?}: {last:?}");
    assert!(reset.is_some(), "a stream that is cut must look cut");
    assert_eq!(setup.exited().await, Some(0));
    let records = setup.records();
    let record = records.iter().find(|record| record["id"] == long.id().as_str()).unwrap();
    assert_eq!((&record["outcome"], &record["reason"]), (&json!("shed"), &json!("shutdown")), "{record}");
    let gone = |record: &&Value| record["outcome"] == "client_gone";
    assert_eq!(records.iter().filter(gone).count(), 0, "an exchange lost its client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_told_goodbye_at_sigterm() {
    let mut setup = Setup::new().await;
    let frames = Frames::open(setup.proxy(), &[]).await;
    // Served, so the connection before it has arrived as well.
    assert_eq!(Peer::connect(setup.proxy()).await.ask(ask("GET", "/health"), "").await.status, 200);
    setup.sigterm();
    assert_eq!(frames.ended().await.goaway, Some(0));
    assert_eq!(setup.exited().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_every_answer() {
    let setup = Setup::new().await;
    let folder = tempfile::tempdir().unwrap();
    let body = folder.path().join("body");
    std::fs::write(&body, CHAT).unwrap();
    let url = format!("http://{}{CHAT_PATH}", setup.proxy());
    let bearer = format!("authorization: Bearer {}", setup.token.text);
    let load = ["-n", "2000", "-c", "4", "-m", "50", "-d", body.to_str().unwrap()];
    let fields = ["-H", &bearer, "-H", "content-type: application/json", &url];
    let told = run("h2load", &[&load[..], &fields[..]].concat()).await;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{told}");
    assert!(told.contains("status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{told}");
    assert_eq!(setup.mock.stats().requests, 2000);
    eventually("the provider has ended all", || setup.mock.stats().in_flight == 0).await;
}
