//! Revocation: whoever lost the right gets nothing more, whatever is running and however it waits.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::setup::{Api, Setup, Token, eventually, first_event_end, recorded};
use common::upstream::Upstream;
use common::wire::{Ask, Piece, Wire};
use llm_proxy_load::mock::Ended;
use llm_proxy_tests::{FullListener, PATIENCE, metric};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The promise, in one process.
const PROMPTLY: Duration = Duration::from_millis(250);

const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

/// The ways to take a token's right away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Switch,
    Delete,
    Project,
    AllOfProject,
}

impl Way {
    const ALL: [Self; 4] = [Self::Switch, Self::Delete, Self::Project, Self::AllOfProject];

    async fn revoke(self, setup: &Setup, project: &str, token: &Token) {
        let (status, answer) = match self {
            Self::Switch => {
                setup.manage("PATCH", &format!("/manage/tokens/{}", token.id), json!({"is_active": false})).await
            }
            Self::Delete => setup.manage("DELETE", &format!("/manage/tokens/{}", token.id), Value::Null).await,
            Self::Project => {
                setup.manage("PATCH", &format!("/manage/projects/{project}"), json!({"is_active": false})).await
            }
            Self::AllOfProject => {
                setup.manage("POST", &format!("/manage/projects/{project}/tokens/revoke"), Value::Null).await
            }
        };
        assert!(matches!(status, 200 | 204), "{self:?}: {status} {answer}");
    }

    async fn restore(self, setup: &Setup, project: &str, token: &Token) {
        let (path, body) = match self {
            Self::Project => (format!("/manage/projects/{project}"), json!({"is_active": true})),
            _ => (format!("/manage/tokens/{}", token.id), json!({"is_active": true})),
        };
        let (status, answer) = setup.manage("PATCH", &path, body).await;
        assert_eq!(status, 200, "{self:?}: {answer}");
    }

    /// Status and code that the holder of the token is told.
    fn told(self) -> (u16, &'static str) {
        if self == Self::Project { (403, "project_inactive") } else { (401, "token_revoked") }
    }
}

/// A stream that has sent its first event and is silent since.
async fn silent_stream(setup: &Setup, ask: Ask, recording: &str, body: &str) -> (Wire, String) {
    let event = first_event_end(&recorded(&format!("{recording}.sse")));
    let mut wire = setup.wire().await;
    let ask = ask.json_type().with("x-mock-recording", recording).fault(&format!("hang-body:{event}"));
    wire.send(ask.body(body)).await;
    let head = wire.head().await;
    assert_eq!(head.status, 200, "{recording}");
    let mut got = 0;
    while got < event {
        match wire.piece().await {
            Piece::Data(data) => got += data.len(),
            ended => panic!("{ended:?} after {got} bytes of {recording}"),
        }
    }
    (wire, head.id())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_revoke_refuses_the_next_request_and_cuts_what_runs_and_nobody_elses() {
    let flooded = Arc::new(AtomicU64::new(0));
    let flooding = Arc::clone(&flooded);
    let flood = Upstream::start(move |mut wire, _| {
        let flooded = Arc::clone(&flooding);
        async move {
            if wire.request().await.is_some() {
                let fields = "content-type: text/event-stream\r\ncontent-length: 900000000000";
                wire.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n")).await;
                while wire.try_send_unhurried(&[b'y'; 65_536]).await.is_ok() {
                    flooded.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    })
    .await;
    let setup = Setup::with(&[Api::at("flood", flood.addr, "")], &[]).await;
    let others = setup.ask("POST", "/v1/chat/completions").with("x-request-id", "others");
    let (mut other, _) = silent_stream(&setup, others, "openai-chat-stream-usage", STREAM).await;

    for way in Way::ALL {
        let project = setup.project(&format!("revoked-{way:?}")).await;
        let token = setup.token_of(&project, json!({})).await;
        let chat = || Ask::post("/v1/chat/completions").bearer(&token.text);

        let (mut silent, silent_id) = silent_stream(&setup, chat(), "openai-chat-stream-usage", STREAM).await;
        let mut waiting = setup.wire().await;
        let name = format!("waiting-{way:?}");
        waiting.send(chat().json_type().with("x-request-id", &name).fault("hang-head").body(STREAM)).await;
        eventually("the provider has the request", || {
            setup.seen(&name).is_some_and(|request| request.body_done_ms.is_some())
        })
        .await;
        let mut deaf = Wire::open_narrow(setup.proxy()).await;
        deaf.send(Ask::post("/flood/v1/files").bearer(&token.text).body("x")).await;
        let deaf_id = deaf.head().await.id();
        stand_still(&flooded).await;

        let revoking = Instant::now();
        way.revoke(&setup, &project, &token).await;
        let revoked = Instant::now();
        let (status, code) = way.told();

        let (added, whole) = silent.rest().await;
        let silent_cut = Instant::now();
        let refused = waiting.answer().await;
        let waiting_cut = Instant::now();
        for (case, cut) in [("silent", silent_cut), ("before the head", waiting_cut)] {
            let took = cut - revoked.min(cut);
            assert!(took <= PROMPTLY, "{way:?}, {case}: {took:?}, and {:?} to say so", revoked - revoking);
        }
        let added = String::from_utf8(added).unwrap();
        assert!(!whole, "{way:?}: a cut stream must look cut: {added:?}");
        assert!(added.starts_with("data: {\"error\"") && added.ends_with("}\n\n"), "{way:?}: {added:?}");
        assert!(added.contains(code) && !added.contains("[DONE]"), "{way:?}: {added}");
        assert_eq!((refused.head.status, refused.code().as_str()), (status, code), "{way:?}");

        // The client that reads nothing: its provider is let go all the same.
        let record = setup.only_record(&deaf_id).await;
        assert_eq!(record["outcome"], "revoked", "{way:?}, not reading: {record}");
        assert!(!deaf.rest().await.1, "{way:?}: what was buffered comes, a clean end does not");
        let record = setup.only_record(&silent_id).await;
        assert_eq!((&record["outcome"], &record["reason"]), (&"revoked".into(), &code.into()), "{way:?}: {record}");
        assert_eq!(setup.only_record(&refused.head.id()).await["outcome"], "revoked", "{way:?}, before the head");

        let next = setup.wire().await.ask(chat().json_type().body(STREAM)).await;
        assert_eq!((next.head.status, next.code().as_str()), (status, code), "{way:?}: the next request");
        assert_eq!(next.head.field("x-should-retry"), Some("false"));

        way.restore(&setup, &project, &token).await;
        let deadline = Instant::now() + PROMPTLY;
        loop {
            let again = setup.wire().await.ask(chat().json_type().body(STREAM)).await;
            if again.head.status == 200 && again.whole {
                break;
            }
            assert!(Instant::now() < deadline, "{way:?}: restored, and still {}", again.head.status);
        }
    }

    // Everybody else went on all the while.
    assert!(setup.seen("others").is_some_and(|request| request.ended.is_none()), "another token's stream was cut");
    let silence = tokio::time::timeout(Duration::from_millis(1), other.piece()).await;
    assert!(silence.is_err(), "the other stream said {silence:?}");
    assert_eq!(setup.wire().await.ask(setup.models().head()).await.head.status, 200);
}

/// Waits until a flood goes no further, because nobody reads it.
async fn stand_still(flooded: &AtomicU64) {
    loop {
        let before = flooded.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if before > 0 && flooded.load(Ordering::SeqCst) == before {
            return;
        }
    }
}

/// Where a request is while its client still sends.
#[derive(Clone, Copy, Debug)]
enum Upload {
    /// At a provider that reads slowly, from a client that never pauses.
    Flowing,
    /// At a provider that has read it so far, from a client that has paused between two chunks.
    Paused,
    /// At a provider that reads nothing.
    HeldBack,
    /// In the proxy, for a policy.
    Held,
    /// In the proxy, for want of a connection.
    Connecting,
}

impl Upload {
    const ALL: [Self; 5] = [Self::Flowing, Self::Paused, Self::HeldBack, Self::Held, Self::Connecting];

    fn target(self) -> &'static str {
        match self {
            Self::Flowing | Self::Paused => "/echo/v1/files",
            Self::HeldBack => "/deaf/v1/files",
            Self::Held => "/held/v1/files",
            Self::Connecting => "/full/v1/files",
        }
    }

    /// Sends the beginning, and waits until it is where it should be. The client goes on with what is returned.
    async fn begin(self, setup: &Setup, ask: Ask, name: &str) -> (Wire, Vec<u8>) {
        let large = vec![b' '; 64 << 20];
        let ask = ask.with("x-request-id", name);
        let mut wire = setup.wire().await;
        let seen = async || eventually("the provider has the head", || setup.seen(name).is_some()).await;
        match self {
            Self::Flowing => {
                wire.send(ask.fault("slow-read:20").with("content-length", large.len()).head()).await;
                seen().await;
                return (wire, large);
            }
            Self::Paused => {
                wire.send([ask.with("transfer-encoding", "chunked").head(), b"3\r\nabc\r\n".to_vec()].concat()).await;
                seen().await;
            }
            Self::HeldBack => {
                wire.send(ask.with("content-length", 1_000_000_000).head()).await;
                assert!(wire.send_until_held_back(&large, 512 << 20).await < 512 << 20, "nobody held it back");
            }
            Self::Held => {
                let head = ask.json_type().with("content-length", 1_000_000).head();
                wire.send([&head[..], &large[..10_000]].concat()).await;
                let held = async || metric(&setup.product.metrics().await, "llm_proxy_held_bytes", &[]);
                let is_held = async || (held().await > 9000.0).then_some(());
                llm_proxy_tests::eventually(PATIENCE, "the body is held", is_held).await;
            }
            Self::Connecting => {
                wire.send([&ask.with("content-length", 1000).head()[..], b"abc"].concat()).await;
                setup.wait_in_flight(1).await;
            }
        }
        (wire, Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_ends_a_request_whose_client_is_still_sending_and_the_client_is_told_at_once() {
    let (is_cut, ended) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
    let (cut, counted) = (Arc::clone(&is_cut), Arc::clone(&ended));
    let deaf = Upstream::start(move |mut wire, _| {
        let (cut, ended) = (Arc::clone(&cut), Arc::clone(&counted));
        async move {
            // Looks at nothing but the head until the exchange must be over.
            if wire.try_head().await.is_some() {
                cut.notified().await;
                wire.closed().await;
                ended.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let full = FullListener::start().await;
    let apis = [Api::at("deaf", deaf.addr, ""), Api::at("full", full.addr(), "timeouts: {connect: 300s}")];
    let setup = Setup::with(&apis, &[]).await;
    for way in [Way::Switch, Way::Project] {
        for upload in Upload::ALL {
            let name = format!("{way:?}-{upload:?}");
            let project = setup.project(&name).await;
            let token = setup.token_of(&project, json!({})).await;
            let ask = Ask::post(upload.target()).bearer(&token.text);
            let (mut wire, rest) = upload.begin(&setup, ask, &name).await;
            let waiting = tokio::spawn(async move {
                wire.send_until_answered(&rest).await;
                let head = wire.head().await;
                let told = Instant::now();
                (wire, head, told)
            });
            way.revoke(&setup, &project, &token).await;
            let revoked = Instant::now();
            let (mut wire, head, told) = waiting.await.unwrap();
            let took = told - revoked.min(told);
            assert!(took <= PROMPTLY, "{name}: {took:?}");
            let (status, code) = way.told();
            let (body, whole) = wire.rest().await;
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((head.status, body["error"]["code"].as_str(), whole), (status, Some(code), true), "{name}");
            assert!(head.says_close(), "{name}: nobody will read the rest: {head:?}");
            assert_eq!(wire.closed().await, b"", "{name}");

            let record = setup.only_record(&head.id()).await;
            let expected = (&json!("revoked"), &json!(code), &json!(status));
            assert_eq!((&record["outcome"], &record["reason"], &record["status"]), expected, "{name}: {record}");
            let was_sent = !matches!(upload, Upload::Held | Upload::Connecting);
            assert_eq!(record["times"]["forwarded_ms"].is_number(), was_sent, "{name}: {record}");
            match upload {
                Upload::Flowing | Upload::Paused => {
                    let is_over = || setup.seen(&name).is_some_and(|request| request.ended.is_some());
                    eventually("the provider is told", is_over).await;
                    let request = setup.seen(&name).unwrap();
                    assert_eq!((request.ended, request.body_done_ms), (Some(Ended::ClientClosed), None), "{name}");
                }
                Upload::HeldBack => {
                    let before = ended.load(Ordering::SeqCst);
                    is_cut.notify_one();
                    eventually("the provider's connection ends", || ended.load(Ordering::SeqCst) > before).await;
                }
                Upload::Held | Upload::Connecting => assert!(setup.seen(&name).is_none(), "{name}: it was sent on"),
            }
            drop(wire);
            setup.wait_in_flight(0).await;
        }
    }
    assert_eq!(metric(&setup.product.metrics().await, "llm_proxy_held_bytes", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_stream_ends_with_the_error_event_of_its_dialect() {
    let setup = Setup::new().await;
    let anthropic = r#"{"model":"claude-sonnet-4-5","max_tokens":9,"messages":[],"stream":true}"#;
    let responses = r#"{"model":"gpt-4o-mini","input":"a","stream":true}"#;
    for (target, credential, recording, body, start, end, told) in [
        (
            "/v1/chat/completions",
            "authorization",
            "openai-chat-stream-usage",
            STREAM,
            "data: {",
            "}\n\n",
            "\"code\":\"token_revoked\"",
        ),
        (
            "/v1/responses",
            "authorization",
            "openai-responses-stream-basic",
            responses,
            "event: error\ndata: {",
            "}\n\n",
            "\"type\":\"error\"",
        ),
        (
            "/v1/messages",
            "x-api-key",
            "anthropic-messages-stream-basic",
            anthropic,
            "event: error\ndata: {",
            "}\n\n",
            "\"type\":\"authentication_error\"",
        ),
        (
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            "x-goog-api-key",
            "gemini-stream-basic",
            "{\"contents\":[]}",
            "data: {",
            "}\r\n\r\n",
            "\"status\":\"UNAUTHENTICATED\"",
        ),
        (
            "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            "api-key",
            "azure-chat-stream",
            STREAM,
            "data: {",
            "}\n\n",
            "\"code\":\"token_revoked\"",
        ),
    ] {
        let token = setup.token_with(json!({})).await;
        let value = if credential == "authorization" { format!("Bearer {}", token.text) } else { token.text.clone() };
        let (mut wire, id) = silent_stream(&setup, Ask::post(target).with(credential, value), recording, body).await;
        Way::Switch.revoke(&setup, "", &token).await;
        let (event, whole) = wire.rest().await;
        let event = String::from_utf8(event).unwrap();
        assert!(!whole, "{target}");
        assert!(event.starts_with(start) && event.ends_with(end) && event.contains(told), "{target}: {event:?}");
        let data = event.split_once("data: ").unwrap().1;
        serde_json::from_str::<Value>(data.trim_end()).unwrap_or_else(|error| panic!("{target}: {error}: {event:?}"));
        let record = setup.only_record(&id).await;
        assert_eq!(
            (&record["outcome"], &record["token_id"]),
            (&"revoked".into(), &token.id.clone().into()),
            "{record}"
        );
    }

    // In the middle of an event, and in a compressed stream, an event would be garbage: only the abnormal end.
    let token = setup.token_with(json!({})).await;
    let chat = || Ask::post("/v1/chat/completions").bearer(&token.text).json_type();
    let mut torn = setup.wire().await;
    torn.send(chat().fault("hang-body:5").body(STREAM)).await;
    assert_eq!(torn.head().await.status, 200);
    let mut packed = setup.wire().await;
    packed
        .send(chat().with("x-mock-encoding", "gzip").with("x-mock-pace-ms", 1).fault("hang-body:40").body(STREAM))
        .await;
    assert_eq!(packed.head().await.status, 200);
    let mut sent = [torn.until_body_has("d").await, Vec::new()];
    while sent[0].len() < 5 {
        let Piece::Data(more) = torn.piece().await else { panic!("ended early") };
        sent[0].extend(more);
    }
    while sent[1].len() < 40 {
        let Piece::Data(more) = packed.piece().await else { panic!("ended early") };
        sent[1].extend(more);
    }
    Way::Delete.revoke(&setup, "", &token).await;
    assert_eq!(torn.rest().await, (Vec::new(), false));
    assert_eq!(packed.rest().await, (Vec::new(), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_begun_before_a_revocation_never_revives_the_token() {
    const CLIENTS: usize = 6;
    const ROUNDS: usize = 12;
    let setup = Arc::new(Setup::new().await);
    for round in 0..ROUNDS {
        // A token nobody knows yet: its first requests read the store while it is being revoked.
        let token = setup.token_with(json!({})).await;
        let path = format!("/manage/tokens/{}", token.id);
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (setup, stop, text) = (Arc::clone(&setup), Arc::clone(&stop), token.text.clone());
            clients.spawn(async move {
                let request = Ask::get("/v1/models").bearer(&text).head();
                let mut wire = setup.wire().await;
                let mut seen = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    // A cut may take the connection with it.
                    let sent = wire.try_send(&request).await.is_ok();
                    let answer = if sent { wire.try_answer().await } else { None };
                    if let Some(answer) = answer {
                        seen.push((began, answer.head.status));
                        if answer.whole && !answer.head.says_close() {
                            continue;
                        }
                    }
                    wire = setup.wire().await;
                }
                seen
            });
        }
        for is_active in [false, true, false, true, false] {
            assert_eq!(setup.manage("PATCH", &path, json!({"is_active": is_active})).await.0, 200);
        }
        let revoked = Instant::now();
        // Until long after every read that was under way has come back.
        while revoked.elapsed() < PROMPTLY + Duration::from_millis(150) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.store(true, Ordering::SeqCst);
        let seen: Vec<(Instant, u16)> = clients.join_all().await.concat();
        let after: Vec<u16> =
            seen.iter().filter(|(began, _)| *began > revoked + PROMPTLY).map(|(_, status)| *status).collect();
        assert!(!after.is_empty(), "round {round}: nobody asked after the revocation");
        assert!(after.iter().all(|status| *status == 401), "round {round}: passed after the revocation: {after:?}");
        assert!(seen.iter().all(|(_, status)| matches!(status, 200 | 401)), "round {round}: {seen:?}");
    }
}
