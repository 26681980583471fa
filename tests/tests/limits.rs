//! Limits are exact where they promise to be, survive a crash, and are not refilled by an edit.

use std::time::Duration;

use bytes::Bytes;
use llm_proxy_load::generate::{LoadOptions, LoadReport, Until, load};
use llm_proxy_tests::{Answer, Ask, Provider, Refused, Token, World, eventually};
use serde_json::{Value, json};

/// The most requests that a crash may cost a token: one lease.
const LARGEST_LEASE: u64 = 64;

/// Sends so many equal requests over so many connections.
async fn storm(world: &World, token: &Token, connections: usize, requests: u64) -> LoadReport {
    let options = LoadOptions {
        addr: world.product.data_addr(),
        request: Bytes::from(Provider::OpenAi.ask(&token.secret).bytes()),
        connections,
        until: Until::Requests(requests),
        keep_alive: true,
    };
    load(&options).await
}

fn counted(report: &LoadReport, status: u16) -> u64 {
    report.statuses.get(&status).copied().unwrap_or_default()
}

async fn request_count(world: &World, token: &Token) -> u64 {
    world.token_state(&token.id).await["request_count"].as_u64().unwrap()
}

async fn ask(world: &World, token: &Token) -> Answer {
    world.ask(&Provider::OpenAi.ask(&token.secret)).await
}

/// Exactly so many more requests pass, and then one is refused.
async fn passes_exactly(world: &World, token: &Token, case: &str, times: usize, then: Refused) {
    for time in 1..=times {
        let answer = ask(world, token).await;
        assert_eq!(answer.status, 200, "{case}: request {time} of {times}: {}", answer.text());
    }
    then.check(case, Provider::OpenAi, &ask(world, token).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_at_once_get_exactly_as_many_requests_as_the_token_has() {
    let world = World::new().await;
    let token = world.token_with(json!({"max_requests": 150})).await;
    let report = storm(&world, &token, 200, 400).await;
    assert_eq!(report.errors, 0);
    assert_eq!((counted(&report, 200), counted(&report, 429)), (150, 250), "{:?}", report.statuses);
    assert_eq!(world.upstream_count(), 150, "by the provider's own count");
    assert_eq!(request_count(&world, &token).await, 150);
    Refused::QUOTA.check("used up", Provider::OpenAi, &ask(&world, &token).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_requests_loses_no_count_and_at_most_one_lease() {
    const MAX: u64 = 300;
    let mut world = World::new().await;
    let token = world.token_with(json!({"max_requests": MAX})).await;
    let first = storm(&world, &token, 10, 100).await;
    assert_eq!(counted(&first, 200), 100, "{:?}", first.statuses);
    world.product.kill9();
    world.product.restart().await;
    assert_eq!(request_count(&world, &token).await, 100, "counted behind the journal, which the crash did not take");
    let rest = storm(&world, &token, 50, 400).await;
    let total = 100 + counted(&rest, 200);
    // What remained when the lost lease was taken was MAX at most.
    let lease = (MAX / 8).min(LARGEST_LEASE);
    assert!((MAX - lease..=MAX).contains(&total), "{total} of {MAX}");
    assert_eq!(world.upstream_count(), total);
    assert_eq!(request_count(&world, &token).await, total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_under_load_never_let_a_request_too_many_through() {
    const MAX: u64 = 1500;
    const CLIENTS: u64 = 20;
    let mut world = World::new().await;
    let token = world.token_with(json!({"max_requests": MAX})).await;
    let crashes = 3;
    for crash in 1..=crashes {
        let options = LoadOptions {
            addr: world.product.data_addr(),
            request: Bytes::from(Provider::OpenAi.ask(&token.secret).bytes()),
            connections: CLIENTS as usize,
            until: Until::Elapsed(Duration::from_millis(600)),
            keep_alive: true,
        };
        let running = tokio::spawn(async move { load(&options).await });
        let before = world.upstream_count();
        eventually(Duration::from_secs(10), "the load runs", async || {
            (world.upstream_count() > before + 50).then_some(())
        })
        .await;
        world.product.kill9();
        running.await.unwrap();
        world.product.restart().await;
        assert!(world.upstream_count() <= MAX, "crash {crash}");
    }
    storm(&world, &token, 50, MAX + 100).await;
    let seen = world.upstream_count();
    // Each crash may cost one lease, and the permits of what was on its way.
    let lost = crashes * (LARGEST_LEASE + CLIENTS);
    assert!((MAX - lost..=MAX).contains(&seen), "{seen} of {MAX}");
    Refused::QUOTA.check("used up", Provider::OpenAi, &ask(&world, &token).await);
    let told = request_count(&world, &token).await;
    // A request that the crash caught just before it left is counted and was not seen.
    assert!((seen..=MAX.min(seen + crashes * CLIENTS)).contains(&told), "{told} told, {seen} seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_costs_a_quota_nothing() {
    let mut world = World::new().await;
    let token = world.token_with(json!({"max_requests": 200})).await;
    let first = storm(&world, &token, 4, 3).await;
    assert_eq!(counted(&first, 200), 3);
    assert!(world.product.sigterm(Duration::from_secs(10)).await.success());
    world.product.restart().await;
    let rest = storm(&world, &token, 20, 300).await;
    assert_eq!(counted(&rest, 200), 197, "{:?}", rest.statuses);
    assert_eq!(world.upstream_count(), 200);
    assert_eq!(request_count(&world, &token).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_allows_the_whole_minutes_number_as_a_burst_and_no_more() {
    let world = World::new().await;
    let token = world.token_with(json!({"requests_per_minute": 60})).await;
    let report = storm(&world, &token, 50, 200).await;
    let passed = counted(&report, 200);
    assert_eq!(passed + counted(&report, 429), 200, "{:?}, {} errors", report.statuses, report.errors);
    // One a second comes back while the storm lasts.
    let regained = report.elapsed.as_secs() + 1;
    assert!((60..=60 + regained).contains(&passed), "{passed} passed in {:?}", report.elapsed);
    assert_eq!(world.upstream_count(), passed);
    let state = world.token_state(&token.id).await;
    assert_eq!(state["request_count"], passed, "refused requests do not count");
    assert!(state["last_used_at"].is_string(), "{state}");
}

#[tokio::test]
async fn editing_a_token_refills_neither_its_rate_nor_its_quota() {
    let world = World::new().await;
    let edit = async |token: &Token, change: Value| {
        let changed = world.patch_token(&token.id, &change).await;
        for (name, value) in change.as_object().unwrap() {
            assert_eq!(&changed[name], value);
        }
    };
    // So slow that no request comes back while this runs.
    let token = world.token_with(json!({"requests_per_minute": 3})).await;
    passes_exactly(&world, &token, "rate", 3, Refused::RATE).await;
    edit(&token, json!({"allowed_models": ["*"]})).await;
    passes_exactly(&world, &token, "another field edited", 0, Refused::RATE).await;
    edit(&token, json!({"requests_per_minute": 5})).await;
    passes_exactly(&world, &token, "rate raised by two", 2, Refused::RATE).await;
    edit(&token, json!({"requests_per_minute": 4})).await;
    passes_exactly(&world, &token, "rate lowered", 0, Refused::RATE).await;

    let token = world.token_with(json!({"max_requests": 20})).await;
    for _ in 0..3 {
        assert_eq!(ask(&world, &token).await.status, 200);
    }
    // A lease of more than what is left now may be out.
    edit(&token, json!({"max_requests": 5})).await;
    passes_exactly(&world, &token, "quota lowered", 2, Refused::QUOTA).await;
    edit(&token, json!({"allowed_models": null})).await;
    passes_exactly(&world, &token, "another field edited", 0, Refused::QUOTA).await;
    edit(&token, json!({"max_requests": 7})).await;
    passes_exactly(&world, &token, "quota raised by two", 2, Refused::QUOTA).await;
    edit(&token, json!({"max_requests": 4})).await;
    passes_exactly(&world, &token, "quota below what was used", 0, Refused::QUOTA).await;
    edit(&token, json!({"is_active": false})).await;
    passes_exactly(&world, &token, "switched off", 0, Refused::REVOKED).await;
    edit(&token, json!({"is_active": true})).await;
    passes_exactly(&world, &token, "switched on again", 0, Refused::QUOTA).await;
    assert_eq!(request_count(&world, &token).await, 7);
}

#[tokio::test]
async fn editing_the_project_refills_neither_rate_nor_quota_of_its_tokens() {
    let world = World::new().await;
    let slow = world.token_with(json!({"requests_per_minute": 3})).await;
    let limited = world.token_with(json!({"max_requests": 20})).await;
    passes_exactly(&world, &slow, "rate", 3, Refused::RATE).await;
    for _ in 0..3 {
        assert_eq!(ask(&world, &limited).await.status, 200);
    }
    // Each makes the proxy forget all it knows of tokens, and read them again.
    let key = json!([{"api": "gemini", "key": Provider::Gemini.key()}]);
    for change in [
        json!({"name": "renamed"}),
        json!({"provider_keys": key}),
        json!({"is_active": false}),
        json!({"is_active": true}),
    ] {
        let _ = world.admin.patch(&format!("/manage/projects/{}", world.project), &change).await.expect(200);
    }
    passes_exactly(&world, &slow, "the project edited", 0, Refused::RATE).await;
    passes_exactly(&world, &limited, "the project edited", 17, Refused::QUOTA).await;
    assert_eq!(request_count(&world, &limited).await, 20);
}

#[tokio::test]
async fn what_was_used_without_a_limit_counts_once_there_is_one() {
    let world = World::new().await;
    let token = world.token_with(json!({})).await;
    for _ in 0..4 {
        assert_eq!(ask(&world, &token).await.status, 200);
    }
    world.patch_token(&token.id, &json!({"max_requests": 6})).await;
    passes_exactly(&world, &token, "unlimited, then limited", 2, Refused::QUOTA).await;
    assert_eq!(request_count(&world, &token).await, 6);
    world.patch_token(&token.id, &json!({"max_requests": null})).await;
    assert_eq!(ask(&world, &token).await.status, 200, "limited, then unlimited");
}

#[tokio::test]
async fn a_model_list_holds_wherever_the_model_stands() {
    let world = World::with(|options| {
        options
            .api("named", "dialect: openai\nallowed_endpoints: [/v1/batches]")
            .api("models", "dialect: openai\nparam_whitelist: {model: ['gpt-4o-mini']}")
    })
    .await;
    world.set_keys(["named", "models"].map(|api| (api.to_owned(), Provider::OpenAi.key()))).await;
    let list = json!({"allowed_models": ["gpt-4o-mini", "claude-3-5-*", "gemini-2.0-*", "text-embedding-004"]});
    let token = world.token_with(list).await;
    use Provider::{Anthropic, Azure, Gemini, OpenAi};
    let chat = |model: &str| format!(r#"{{"model":{model},"messages":[]}}"#);
    let message = |model: &str| format!(r#"{{"model":{model},"max_tokens":1,"messages":[]}}"#);
    let contents = r#"{"contents":[{"parts":[{"text":"hi"}]}]}"#.to_owned();
    let version = "?api-version=2024-10-21";
    let azure = |deployment: &str| format!("/azure/openai/deployments/{deployment}/chat/completions{version}");
    let gemini = |model: &str| format!("/gemini/v1beta/models/{model}:generateContent");
    let path = |path: &str| path.to_owned();
    for (provider, path, body, passes) in [
        (OpenAi, path("/openai/v1/chat/completions"), chat(r#""gpt-4o-mini""#), true),
        (OpenAi, path("/openai/v1/chat/completions"), chat(r#""gpt-4o-min\u0069""#), true),
        (OpenAi, path("/openai/v1/chat/completions"), chat(r#""gpt-4o""#), false),
        (OpenAi, path("/openai/v1/chat/completions"), chat(r#""gpt-4o-mini-x""#), false),
        (OpenAi, path("/openai/v1/chat/completions"), chat("null"), false),
        (OpenAi, path("/openai/v1/chat/completions"), chat(r#"["gpt-4o-mini"]"#), false),
        (OpenAi, path("/openai/v1/chat/completions"), r#"{"messages":[]}"#.to_owned(), false),
        (OpenAi, path("/openai/v1/chat/completions"), r#"[{"model":"gpt-4o-mini"}]"#.to_owned(), false),
        (OpenAi, path("/openai/v1/responses"), r#"{"model":"gpt-4o","input":"hi"}"#.to_owned(), false),
        (OpenAi, path("/openai/v1/embeddings"), r#"{"model":"text-embedding-004","input":"a"}"#.to_owned(), true),
        (OpenAi, path("/openai/v1/embeddings"), r#"{"model":"other","input":"a"}"#.to_owned(), false),
        (OpenAi, path("/v1/chat/completions"), chat(r#""gpt-4o""#), false),
        (Anthropic, path("/anthropic/v1/messages"), message(r#""claude-3-5-haiku-latest""#), true),
        (Anthropic, path("/anthropic/v1/messages"), message(r#""claude-3-opus""#), false),
        (Anthropic, path("/anthropic/v1/messages/count_tokens"), message(r#""claude-3-opus""#), false),
        (Gemini, gemini("gemini-2.0-flash"), contents.clone(), true),
        (Gemini, gemini("gemini-2.0%2Dflash"), contents.clone(), true),
        (Gemini, gemini("gemini-1.5-pro"), contents.clone(), false),
        (Gemini, path("/gemini/v1beta/models/gemini-1.5-pro:streamGenerateContent?alt=sse"), contents.clone(), false),
        (Gemini, path("/gemini/v1beta/tunedModels/mine:generateContent"), contents.clone(), false),
        (Gemini, path("/v1beta/models/gemini-1.5-pro:generateContent"), contents, false),
        (Azure, azure("gpt-4o-mini"), r#"{"messages":[]}"#.to_owned(), true),
        (Azure, azure("gpt-4o"), chat(r#""gpt-4o-mini""#), false),
        (Azure, format!("/openai/deployments/gpt-4o/chat/completions{version}"), chat(r#""gpt-4o-mini""#), false),
        // Endpoints that take a model and show none.
        (OpenAi, path("/openai/v1/batches"), "{}".to_owned(), false),
        (OpenAi, path("/openai/v1/fine_tuning/jobs"), chat(r#""gpt-4o-mini""#), false),
        (Anthropic, path("/anthropic/v1/messages/batches"), "{}".to_owned(), false),
        (OpenAi, path("/named/v1/batches"), "{}".to_owned(), true),
    ] {
        let case = format!("{path} {body}");
        let before = world.upstream_count();
        let ask = provider.at("POST", &path, &token.secret).json(&body).with("x-mock-recording", "openai-chat-basic");
        let answer = world.ask(&ask).await;
        if passes {
            assert_eq!(answer.status, 200, "{case}: {}", answer.text());
        } else {
            Refused::MODEL.check(&case, provider, &answer);
            assert_eq!(world.upstream_count(), before, "{case}: the provider was asked");
        }
    }
    let listed = world.ask(&Ask::get("/openai/v1/models", &token.secret)).await;
    assert_eq!(listed.status, 200, "an endpoint that takes no model: {}", listed.text());
    let twice = r#"{"model":"gpt-4o-mini","model":"gpt-4o","messages":[]}"#;
    let ask = Ask::post("/openai/v1/chat/completions", &token.secret, twice);
    Refused::INVALID.check("a model twice", OpenAi, &world.ask(&ask).await);
    let ask = Ask::post("/models/v1/chat/completions", &world.token.secret, &chat(r#""gpt-4o""#));
    Refused::PARAM.check("a model that the API does not allow", OpenAi, &world.ask(&ask).await);
}

#[tokio::test]
async fn a_model_list_holds_for_multipart_bodies() {
    let world = World::new().await;
    let token = world.token_with(json!({"allowed_models": ["whisper-*"]})).await;
    for (model, passes) in [("whisper-1", true), ("gpt-4o-transcribe", false)] {
        let body = format!(
            "--b0undary\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
             content-type: audio/wav\r\n\r\nRIFF....WAVE\r\n--b0undary\r\n\
             content-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b0undary--\r\n"
        );
        let ask = Ask::new("POST", "/openai/v1/audio/transcriptions")
            .with("authorization", &format!("Bearer {}", token.secret))
            .with("content-type", "multipart/form-data; boundary=b0undary")
            .body(body);
        let answer = world.ask(&ask).await;
        if passes {
            assert_eq!(answer.status, 200, "{model}: {}", answer.text());
        } else {
            Refused::MODEL.check(model, Provider::OpenAi, &answer);
        }
    }
}
