//! The opening: who gets a WebSocket, where the keys go, and what everybody else is told.

use llm_proxy_tests::ws::{CLOSE, Handshake, RawSocket, TEXT, close_payload};
use llm_proxy_tests::{Ask, Provider, Raw, Refused};
use serde_json::{Value, json};

use crate::common::setup::{Setup, recorded};
use crate::{GEMINI, OPENAI, openai, over};

const AZURE: &str = "/openai/realtime?api-version=2024-10-01-preview&deployment=gpt-realtime";

/// A target that opens a socket in each dialect that has them, and the field of its own clients.
const EACH: [(Provider, &str); 3] = [(Provider::OpenAi, OPENAI), (Provider::Azure, AZURE), (Provider::Gemini, GEMINI)];

fn handshake(provider: Provider, target: &str, token: &str) -> Handshake {
    let (name, value) = provider.credential(token);
    Handshake::new(target).with(name, &value)
}

/// Every place in which a client may put its token, and the field in which the provider's key then goes out.
fn ways(token: &str) -> Vec<(Provider, Handshake, &'static str, &'static str)> {
    use Provider::{Azure, Gemini, OpenAi};
    let to = |target: &str| Handshake::new(target);
    let offer = format!("realtime, openai-insecure-api-key.{token}");
    let offered = || to(OPENAI).with("sec-websocket-protocol", &offer);
    let (bearer, protocol) = ("Bearer sk-mock-openai", "realtime, openai-insecure-api-key.sk-mock-openai");
    vec![
        (OpenAi, openai(token), "authorization", bearer),
        (OpenAi, to("/openai/v1/realtime?model=gpt-realtime").bearer(token), "authorization", bearer),
        (OpenAi, to(OPENAI).with("x-api-key", token), "authorization", bearer),
        (OpenAi, to(OPENAI).with("api-key", token), "authorization", bearer),
        (OpenAi, openai(token).with("sec-websocket-protocol", "realtime"), "authorization", bearer),
        (OpenAi, offered(), "sec-websocket-protocol", protocol),
        // OpenAI refuses a handshake with both.
        (OpenAi, offered().bearer(token), "sec-websocket-protocol", protocol),
        (Azure, to(AZURE).with("api-key", token), "api-key", "mock-azure"),
        (Azure, to(&format!("{AZURE}&api-key={token}")), "api-key", "mock-azure"),
        // As browsers write a space in a query, and as others do.
        (Azure, to(&format!("{AZURE}&Authorization=Bearer+{token}")), "api-key", "mock-azure"),
        (Azure, to(&format!("{AZURE}&Authorization=Bearer%20{token}")), "api-key", "mock-azure"),
        (
            Azure,
            to(&format!("{AZURE}&api-key={token}")).with("sec-websocket-protocol", "realtime"),
            "api-key",
            "mock-azure",
        ),
        (Azure, to("/azure/openai/v1/realtime?model=gpt-realtime").bearer(token), "api-key", "mock-azure"),
        (Gemini, to(&format!("{GEMINI}?key={token}")), "x-goog-api-key", "mock-gemini"),
        (Gemini, to(GEMINI).with("x-goog-api-key", token), "x-goog-api-key", "mock-gemini"),
        (Gemini, to(&format!("/gemini{GEMINI}?key={token}")), "x-goog-api-key", "mock-gemini"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_any_place_opens_the_socket_and_the_providers_key_goes_on_in_its_stead() {
    let setup = Setup::with(&[], &[("LOG_LEVEL", "debug")]).await;
    let token = &setup.token.text;
    for (at, (provider, handshake, field, value)) in ways(token).into_iter().enumerate() {
        let case =
            format!("{provider:?} {}", String::from_utf8_lossy(&handshake.ask().bytes()).replace(token, "TOKEN"));
        let name = format!("way-{at}");
        let offers_realtime = case.contains("sec-websocket-protocol: realtime");
        let mut socket = RawSocket::open(setup.proxy(), &handshake.with("x-request-id", &name)).await;
        assert!(llm_proxy_tests::is_uuid_v7(&socket.id()), "{case}");
        let chosen = socket.head.header("sec-websocket-protocol");
        assert_eq!(chosen, offers_realtime.then_some("realtime"), "{case}");

        let first = if provider == Provider::Gemini {
            socket.say(TEXT, r#"{"setup":{"model":"models/gemini-2.5-flash-live"}}"#).await;
            "setupComplete"
        } else {
            "session.created"
        };
        socket.until(first).await;
        socket.say(CLOSE, close_payload(1000, "")).await;
        assert_eq!(socket.closed().await, (1000, String::new()), "{case}");

        let upstream = over(&setup, &name).await;
        let head = String::from_utf8(upstream.head.to_vec()).unwrap();
        assert_eq!(upstream.header(field), Some(value.as_bytes()), "{case}: {head}");
        let key = provider.key();
        assert_eq!(head.matches(key).count(), 1, "{case}: the key in one place only: {head}");
        assert!(!head.contains(token.as_str()), "{case}: the token went upstream: {head}");
        assert!(!head.to_ascii_lowercase().contains("sec-websocket-extensions"), "{case}: {head}");
        let seen = String::from_utf8_lossy(&socket.seen);
        assert!(!seen.contains(key), "{case}: the key came down: {seen}");
        assert_eq!(setup.only_record(&socket.id()).await["dialect"], provider.name(), "{case}");
    }
    for (place, text) in [("the log", setup.product.log()), ("the records", format!("{:?}", setup.records()))] {
        assert!(!text.is_empty(), "{place} hides nothing if it is empty");
        for secret in [token.as_str(), "sk-mock-openai", "mock-azure", "mock-gemini"] {
            assert!(!text.contains(secret), "{place} holds {secret}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_the_provider_chooses_as_subprotocol_never_reaches_the_client() {
    let setup = Setup::new().await;
    let offer = format!("openai-insecure-api-key.{}", setup.token.text);
    for (protocols, expected) in [(format!("{offer}, realtime"), Some("realtime")), (offer, None)] {
        let handshake =
            Handshake::new(OPENAI).with("sec-websocket-protocol", &protocols).with("x-mock-opening", "echo-credential");
        let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
        assert_eq!(socket.head.header("sec-websocket-protocol"), expected);
        socket.until("session.created").await;
        let seen = String::from_utf8_lossy(&socket.seen);
        assert!(!seen.contains("sk-mock-openai") && !seen.contains("insecure"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_not_have_a_socket_is_told_so_before_it_opens_in_the_dialects_json() {
    let setup = Setup::new().await;
    let expired = setup.token_with(json!({})).await;
    setup.product.sql(&format!("UPDATE tokens SET expires_at_us = 1 WHERE id = '{}'", expired.id)).await;
    // A change tells the proxy to read the row again.
    let path = format!("/manage/tokens/{}", expired.id);
    assert_eq!(setup.manage("PATCH", &path, json!({"requests_per_minute": 1000})).await.0, 200);
    let revoked = setup.token_with(json!({})).await;
    assert_eq!(setup.manage("DELETE", &format!("/manage/tokens/{}", revoked.id), Value::Null).await.0, 204);
    let paused_project = setup.project("paused").await;
    let paused = setup.token_of(&paused_project, json!({})).await;
    let path = format!("/manage/projects/{paused_project}");
    assert_eq!(setup.manage("PATCH", &path, json!({"is_active": false})).await.0, 200);
    let (status, keyless) = setup.manage("POST", "/manage/projects", json!({"name": "keyless"})).await;
    assert_eq!(status, 201, "{keyless}");
    let keyless = setup.token_of(keyless["id"].as_str().unwrap(), json!({})).await;
    let elsewhere = setup.token_with(json!({"allowed_models": ["gpt-realtime-mini"]})).await;

    for (provider, target) in EACH {
        let before = setup.mock.stats().requests;
        for (case, token, expected) in [
            ("unknown", "sk-lp-nobody-has-this", Refused::NO_TOKEN),
            ("expired", expired.text.as_str(), Refused::EXPIRED),
            ("revoked", &revoked.text, Refused::REVOKED),
            ("inactive project", &paused.text, Refused::PROJECT),
            ("no provider key", &keyless.text, Refused::KEY),
        ] {
            let answer = Raw::ask(setup.proxy(), handshake(provider, target, token).ask()).await;
            expected.check(case, provider, &answer);
        }
        // Gemini names its model in the first message.
        if provider != Provider::Gemini {
            let unnamed = target.replace("model=gpt-realtime", "x=y").replace("deployment=gpt-realtime", "x=y");
            for target in [target, &unnamed] {
                let answer = Raw::ask(setup.proxy(), handshake(provider, target, &elsewhere.text).ask()).await;
                Refused::MODEL.check(target, provider, &answer);
            }
        }
        assert_eq!(setup.mock.stats().requests, before, "{provider:?}: the provider was asked");

        for (limits, expected) in
            [(json!({"requests_per_minute": 1}), Refused::RATE), (json!({"max_requests": 1}), Refused::QUOTA)]
        {
            let token = setup.token_with(limits.clone()).await;
            let handshake = handshake(provider, target, &token.text);
            let mut socket = RawSocket::open(setup.proxy(), &handshake).await;
            expected.check(&limits.to_string(), provider, &Raw::ask(setup.proxy(), handshake.ask()).await);
            socket.say(CLOSE, close_payload(1000, "")).await;
            socket.closed().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_with_a_fault_is_refused_and_one_for_something_else_is_an_ordinary_request() {
    let setup = Setup::new().await;
    let token = &setup.token.text;
    let before = setup.mock.stats().requests;
    for (provider, target) in EACH {
        let fine = || handshake(provider, target, token);
        let keyed = |key: &str| fine().without("sec-websocket-key").with("sec-websocket-key", key);
        for (case, handshake) in [
            ("no key", fine().without("sec-websocket-key")),
            ("a key of 15 bytes", keyed("dGhlIHNhbXBsZSBub25j")),
            ("two keys", fine().with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")),
            ("a body", fine().with("content-length", "1")),
            ("no list of subprotocols", fine().with("sec-websocket-protocol", "a b")),
        ] {
            let answer = Raw::ask(setup.proxy(), handshake.ask()).await;
            Refused::INVALID.check(case, provider, &answer);
        }
        for version in ["12", "8", "13, 8"] {
            let handshake = fine().without("sec-websocket-version").with("sec-websocket-version", version);
            let answer = Raw::ask(setup.proxy(), handshake.ask()).await;
            Refused { status: 426, ..Refused::INVALID }.check(version, provider, &answer);
            assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{provider:?} {version}");
        }
    }
    assert_eq!(setup.mock.stats().requests, before, "the provider was asked");

    for (case, ask, status) in [
        ("h2c", openai(token).without("upgrade").with("upgrade", "h2c").ask().clone(), 400),
        ("not named in Connection", openai(token).without("connection").ask().clone(), 400),
        ("POST", openai(token).ask().clone().method("POST").body(""), 405),
        (
            "a request for models",
            Ask::get("/v1/models", token).with("connection", "upgrade").with("upgrade", "foo"),
            200,
        ),
    ] {
        let answer = Raw::ask(setup.proxy(), &ask).await;
        assert_eq!(answer.status, status, "{case}: the provider's own answer: {}", answer.text());
        assert_eq!(setup.only_record(&answer.id()).await["outcome"], "finished", "{case}");
        let upstream = setup.mock.requests().pop().unwrap();
        assert_eq!(upstream.header("upgrade"), None, "{case}");
        assert_eq!(upstream.header("sec-websocket-key"), None, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_the_provider_refuses_comes_back_as_it_answered() {
    let setup = Setup::new().await;
    for (field, value, status, body) in [
        ("x-mock-recording", "error-openai-429-rate", 429, Some("error-openai-429-rate.json")),
        ("x-mock-recording", "error-openai-401", 401, Some("error-openai-401.json")),
        ("x-mock-status", "403", 403, None),
        ("x-mock-status", "500", 500, None),
    ] {
        let mut raw = Raw::connect(setup.proxy()).await;
        let answer = raw.exchange(openai(&setup.token.text).with(field, value).ask()).await;
        let direct = openai("sk-mock-openai").with(field, value);
        let direct = Raw::ask(setup.mock.addr(), direct.ask()).await;
        assert_eq!((answer.status, &answer.body), (status, &direct.body), "{value}");
        assert_eq!(answer.header("x-request-id"), direct.header("x-request-id"), "{value}");
        assert!(answer.complete, "{value}");
        if let Some(file) = body {
            assert_eq!(answer.body, recorded(file), "{value}");
        }
        let record = setup.only_record(&answer.id()).await;
        assert_eq!((&record["outcome"], &record["status"]), (&"finished".into(), &status.into()), "{record}");
        // Nothing was switched: the connection serves on.
        assert_eq!(raw.exchange(&Ask::get("/v1/models", &setup.token.text)).await.status, 200, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_101_that_does_not_answer_the_handshake_is_a_502_and_none_of_it_reaches_the_client() {
    let setup = Setup::new().await;
    for (field, value) in [
        ("x-mock-opening", "wrong-accept"),
        ("x-mock-opening", "extension"),
        ("x-mock-opening", "foreign-protocol"),
        ("x-mock-fault", "garbage:101"),
    ] {
        let name = format!("wrong-{value}");
        let handshake = openai(&setup.token.text)
            .with("sec-websocket-protocol", "realtime")
            .with("x-request-id", &name)
            .with(field, value);
        let answer = Raw::ask(setup.proxy(), handshake.ask()).await;
        Refused::UPSTREAM_INVALID.check(value, Provider::OpenAi, &answer);
        assert!(!answer.text().contains("session.created"), "{value}: {}", answer.text());
        let record = setup.only_record(&answer.id()).await;
        let told = (&record["outcome"], &record["reason"]);
        assert_eq!(told, (&"upstream_unreachable".into(), &"upstream_invalid".into()), "{value}: {record}");
        over(&setup, &name).await;
    }
    assert_eq!(setup.mock.stats().sockets.open, 0);
}
