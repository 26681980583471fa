//! What a message is beside a body and its answer: nothing behind a head, an answer before the answer, trailers, an end by
//! closing. As curl, nghttp, h2load and openssl have it, over each version of HTTP, in the clear and under TLS.

mod common;

use common::setup::{Api, Setup, recorded};
use common::upstream::Upstream;
use common::wire::{Ask, crc32};
use llm_proxy_tests::foreign::{Listener, run};
use llm_proxy_tests::{PATIENCE, Raw};
use serde_json::{Value, json};

const CHAT_PATH: &str = "/v1/chat/completions";
const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

/// A product behind this listener.
async fn behind(listener: &Listener, apis: &[Api]) -> Setup {
    Setup::with(apis, &listener.settings()).await
}

/// Bytes of which no two hundred and fifty-one in a row are alike.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_has_no_body_is_over_with_its_head() {
    for listener in Listener::both() {
        let setup = behind(&listener, &[]).await;
        for way in listener.ways() {
            let curl = |path: &str| listener.curl(way, setup.proxy(), path).bearer(&setup.token.text);
            let get = curl("/v1/models").fetch().await;
            assert_eq!(get.field("content-length"), Some(get.body.len().to_string().as_str()), "{way}: {}", get.heads);
            let head = curl("/v1/models").flag("--head").fetch().await;
            assert_eq!((head.status, head.received), (200, 0), "{way}: {}", head.heads);
            assert_eq!(head.field("content-length"), get.field("content-length"), "{way}: as GET would have it");

            for status in [204, 304] {
                let none = curl(CHAT_PATH).with("x-mock-status", &status.to_string()).json(CHAT).fetch().await;
                assert_eq!((none.status, none.received), (status, 0), "{way}: {}", none.heads);
                assert_eq!(none.field("transfer-encoding"), None, "{way}, {status}");
                assert!(status != 204 || none.field("content-length").is_none(), "{way}: {}", none.heads);
                let record = setup.only_record(&none.id()).await;
                assert_eq!((&record["outcome"], &record["status"]), (&json!("finished"), &json!(status)), "{record}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_waits_until_it_is_asked_for_and_stays_where_it_is_when_the_request_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, larger) = (folder.path().join("body"), folder.path().join("larger"));
    let body = bytes(1_000_000);
    std::fs::write(&file, &body).unwrap();
    std::fs::write(&larger, bytes(2_000_000)).unwrap();
    for listener in Listener::both() {
        let setup = behind(&listener, &[]).await;
        let token = setup.token.text.as_str();
        let waiting = |path: &str, token: &str| {
            let curl = listener.curl("--http1.1", setup.proxy(), path).bearer(token);
            // As long as it takes: by itself curl waits for a second only.
            curl.with("expect", "100-continue").option("--expect100-timeout", "60")
        };
        let asked = waiting("/echo/v1/files", token).upload(&file).fetch().await;
        assert_eq!((asked.statuses(), asked.sent), (vec![100, 200], 1_000_000), "{}", asked.heads);
        let echoed = asked.json();
        assert_eq!((&echoed["body_len"], &echoed["body_crc32"]), (&json!(1_000_000), &json!(crc32(&body))), "{echoed}");
        let headers = echoed["headers"].to_string().to_ascii_lowercase();
        assert!(!headers.contains("expect"), "it is for the proxy: {headers}");

        let before = setup.mock.stats().requests;
        for (case, path, token, file, status) in [
            ("a stranger", "/echo/v1/files", "sk-lp-nobody", &file, 401),
            ("an unknown path", "/nowhere/at/all", token, &file, 404),
            ("too much", "/small/v1/files", token, &larger, 413),
        ] {
            let refused = waiting(path, token).upload(file).fetch().await;
            assert_eq!((refused.statuses(), refused.sent), (vec![status], 0), "{case}: {}", refused.heads);
        }
        assert_eq!(setup.mock.stats().requests, before, "the provider was asked");

        let url = listener.url(setup.proxy(), "/echo/v1/files");
        let bearer = format!("authorization: Bearer {token}");
        let how = ["-nv", "--expect-continue", "-H", &bearer, "-d", file.to_str().unwrap(), &url];
        let told = run("nghttp", &how, b"", 2 * PATIENCE).await;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let [invited, sent, answered] = [":status: 100", "send DATA frame", ":status: 200"].map(|mark| told.find(mark));
        assert!(invited.is_some() && invited < sent && sent < answered, "{told}");
        let seen = setup.mock.requests().pop().unwrap();
        assert_eq!((seen.body_len, u64::from(seen.body_crc32)), (1_000_000, crc32(&body)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_reach_whoever_knows_interim_answers() {
    for listener in Listener::both() {
        let setup = behind(&listener, &[]).await;
        let hinted = async |way: &str| {
            let curl = listener.curl(way, setup.proxy(), CHAT_PATH).bearer(&setup.token.text);
            curl.with("x-mock-fault", "continue-103").json(CHAT).fetch().await
        };
        for way in listener.ways() {
            let fetched = hinted(way).await;
            assert_eq!(fetched.statuses(), [103, 200], "{way}: {}", fetched.heads);
            assert!(fetched.heads.contains("link: </style.css>; rel=preload"), "{way}: {}", fetched.heads);
            assert_eq!(fetched.field("link"), None, "{way}: {}", fetched.heads);
        }
        if !listener.is_sealed() {
            assert_eq!(hinted("--http1.0").await.statuses(), [200]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_end_at_the_proxy_and_bodies_where_they_should() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntrailer: x-sum\r\n\
        transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n";
    const CHUNKS: &[u8] = b"2\r\n{}\r\n0\r\n\r\n";
    let provider = Upstream::start(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.send(ANSWER).await;
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let body = bytes(100_000);
    std::fs::write(&file, &body).unwrap();
    for listener in Listener::both() {
        let setup = behind(&listener, &[Api::at("summed", provider.addr, "")]).await;
        for way in listener.ways() {
            let curl = listener.curl(way, setup.proxy(), "/summed/v1/models").bearer(&setup.token.text);
            let fetched = curl.fetch().await;
            assert_eq!((fetched.status, fetched.text().as_str()), (200, "{}"), "{way}: {}", fetched.heads);
            assert!(!fetched.heads.contains("x-sum"), "{way}: {}", fetched.heads);
        }
        if !listener.is_sealed() {
            let ask = |path: &str| setup.ask("GET", path).head();
            let mut raw = Raw::connect(setup.proxy()).await;
            raw.write(&ask("/summed/v1/models")).await;
            assert_eq!(raw.read_head().await.header("trailer"), None);
            assert_eq!(raw.read_exact(CHUNKS.len()).await, CHUNKS);
            raw.write(&ask("/v1/models")).await;
            assert!(raw.read_answer(false).await.text().contains("\"data\""), "what follows is the next answer");
        }

        let url = listener.url(setup.proxy(), "/echo/v1/files");
        let bearer = format!("authorization: Bearer {}", setup.token.text);
        let how = ["--no-verify-peer", "--trailer=x-sum: 1", "-H", &bearer, "-d", file.to_str().unwrap(), &url];
        let told = run("nghttp", &how, b"", 2 * PATIENCE).await;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let echoed: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert_eq!((&echoed["body_len"], &echoed["body_crc32"]), (&json!(100_000), &json!(crc32(&body))), "{echoed}");
        for name in ["x-sum", "trailer", "te"] {
            let has = |field: &Value| field[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name));
            assert!(!echoed["headers"].as_array().unwrap().iter().any(has), "{name} went to the provider: {echoed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ends_with_its_connection_is_whole_in_every_version() {
    let stream = recorded("openai-chat-stream-usage.sse");
    for listener in Listener::both() {
        let setup = behind(&listener, &[]).await;
        for way in listener.ways() {
            for (name, value) in [("x-mock-framing", "close"), ("connection", "close")] {
                // HTTP/2 has no such field, and curl sends none.
                let curl = listener.curl(way, setup.proxy(), CHAT_PATH).bearer(&setup.token.text);
                let fetched = curl.with(name, value).json(STREAM).fetch().await;
                assert_eq!(fetched.status, 200, "{way}, {name}: {}", fetched.text());
                assert!(fetched.body == stream, "{way}, {name}: {}", fetched.text());
                if fetched.version == "1.1" {
                    assert_eq!(fetched.field("transfer-encoding"), Some("chunked"), "{way}, {name}: {}", fetched.heads);
                    assert_eq!(fetched.field("connection"), (name == "connection").then_some("close"), "{way}, {name}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_gets_lengths_or_the_end_of_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let body = bytes(1_000_000);
    std::fs::write(&file, &body).unwrap();
    let listener = Listener::clear();
    let setup = behind(&listener, &[]).await;
    let curl = |path: &str| listener.curl("--http1.0", setup.proxy(), path).bearer(&setup.token.text);
    for options in [&[("connection", "keep-alive")][..], &[]] {
        let asking = |path: &str| options.iter().fold(curl(path), |curl, (name, value)| curl.with(name, value));
        let whole = asking(CHAT_PATH).with("x-mock-recording", "openai-chat-basic").json(CHAT).fetch().await;
        assert_eq!(whole.body, recorded("openai-chat-basic.json"), "{options:?}: {}", whole.heads);
        assert_eq!(whole.field("content-length"), Some(whole.body.len().to_string().as_str()), "{}", whole.heads);
        let expected = if options.is_empty() { "close" } else { "keep-alive" };
        assert_eq!(whole.field("connection"), Some(expected), "{options:?}: {}", whole.heads);

        let stream = asking(CHAT_PATH).json(STREAM).fetch().await;
        assert_eq!(stream.body, recorded("openai-chat-stream-usage.sse"), "{options:?}: {}", stream.heads);
        for name in ["content-length", "transfer-encoding"] {
            assert_eq!(stream.field(name), None, "{options:?}: {}", stream.heads);
        }
        assert_eq!(stream.field("connection"), Some("close"), "{options:?}: {}", stream.heads);

        let echoed = asking("/echo/v1/files").upload(&file).fetch().await.json();
        assert_eq!(echoed["body_crc32"], json!(crc32(&body)), "{options:?}: {echoed}");
    }
}

/// curl then offers `http/1.0` alone in its handshake (RFC 7301 §6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_offers_http_1_0_when_it_shakes_hands_is_served() {
    let listener = Listener::sealed();
    let setup = behind(&listener, &[]).await;
    let curl = listener.curl("--http1.0", setup.proxy(), CHAT_PATH).bearer(&setup.token.text);
    let stream = curl.json(STREAM).fetch().await;
    assert_eq!(stream.status, 200, "{}", stream.heads);
    assert_eq!(stream.body, recorded("openai-chat-stream-usage.sse"), "{}", stream.heads);
    assert_eq!(stream.field("connection"), Some("close"), "{}", stream.heads);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_openssl_sends_at_once_are_answered_one_after_another() {
    let listener = Listener::sealed();
    let setup = behind(&listener, &[]).await;
    let to = setup.proxy().to_string();
    let ask = |path: &str| Ask::post(path).bearer(&setup.token.text);
    let requests = [
        ask("/echo/v1/first").with("x-mock-delay-ms", 100).body("one"),
        ask("/echo/v1/second").chunks("two", &[1]),
        ask("/echo/v1/third").with("connection", "close").body("three"),
    ];
    // Quiet: it reads to the server's end, and takes no letter for a command.
    let told = run("openssl", &["s_client", "-quiet", "-connect", &to], &requests.concat(), 2 * PATIENCE).await;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(told.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{told}");
    let at = ["first", "second", "third"].map(|name| told.find(&format!("\"target\":\"/__mock/echo/v1/{name}\"")));
    assert!(at[0].is_some() && at.is_sorted(), "{at:?}: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_every_answer_in_either_version() {
    const REQUESTS: u64 = 400;
    let folder = tempfile::tempdir().unwrap();
    let body = folder.path().join("body");
    std::fs::write(&body, CHAT).unwrap();
    for listener in Listener::both() {
        let setup = behind(&listener, &[]).await;
        let url = listener.url(setup.proxy(), CHAT_PATH);
        let bearer = format!("authorization: Bearer {}", setup.token.text);
        for (version, streams) in [(&["--h1"][..], "1"), (&[], "20")] {
            let before = setup.mock.stats().requests;
            let number = REQUESTS.to_string();
            let load = ["-n", &number, "-c", "4", "-m", streams, "-d", body.to_str().unwrap()];
            let fields = ["-H", &bearer, "-H", "content-type: application/json", &url];
            let told = run("h2load", &[version, &load, &fields].concat(), b"", 3 * PATIENCE).await;
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let succeeded = format!("{number} succeeded, 0 failed, 0 errored, 0 timeout");
            assert!(told.contains(&succeeded), "{version:?}: {told}");
            assert!(told.contains(&format!("status codes: {number} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{version:?}: {told}");
            assert_eq!(setup.mock.stats().requests - before, REQUESTS, "{version:?}");
        }
    }
}
