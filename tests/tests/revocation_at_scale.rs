//! Revocation among many: what is done to a thousand tokens makes nobody's revocation wait, and least of all their own.

mod common;

use std::time::{Duration, Instant};

use common::setup::{Setup, Token, first_event_end, recorded};
use common::wire::{Ask, Wire};
use llm_proxy_tests::{PATIENCE, eventually};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

/// The promise, in one process.
const PROMPTLY: Duration = Duration::from_millis(250);
/// So many that a look at each of them in the store, with a write to it, takes seconds.
const MANY: usize = 1_500;
/// So many of them have a stream running.
const STREAMS: usize = 20;
/// Clients that make them and use them.
const CLIENTS: usize = 4;

const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

/// Makes many tokens of a project, and uses each once: the process has limits and a lease of each in memory.
async fn crowd(setup: &Setup, project: &str) -> Vec<Token> {
    let limited = json!({"project_id": project, "duration_minutes": 60, "max_requests": 1000}).to_string();
    let make = Ask::post("/manage/tokens").bearer(setup.product.management_token()).json_type().body(limited);
    let (admin, proxy) = (setup.product.admin_addr(), setup.proxy());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let make = make.clone();
        clients.spawn(async move {
            let (mut admin, mut app) = (Wire::open(admin).await, Wire::open(proxy).await);
            let mut tokens = Vec::new();
            for _ in 0..MANY / CLIENTS {
                let made = admin.ask(&make).await;
                assert_eq!(made.head.status, 201, "{}", made.text());
                let made = made.json();
                let text = |name: &str| made[name].as_str().unwrap().to_owned();
                let token = Token { id: text("id"), text: text("token") };
                let used = app.ask(models(&token)).await;
                assert_eq!(used.head.status, 200, "{}", used.text());
                tokens.push(token);
            }
            tokens
        });
    }
    clients.join_all().await.concat()
}

fn models(token: &Token) -> Vec<u8> {
    Ask::get("/v1/models").bearer(&token.text).head()
}

/// Begins a stream that is silent after its first event. The task ends when the client is told that it is cut.
async fn silent_stream(setup: &Setup, token: &Token) -> JoinHandle<Instant> {
    let event = first_event_end(&recorded("openai-chat-stream-usage.sse"));
    let ask = Ask::post("/v1/chat/completions").bearer(&token.text).json_type();
    let ask = ask.with("x-mock-recording", "openai-chat-stream-usage").fault(&format!("hang-body:{event}"));
    let mut wire = setup.wire().await;
    wire.send(ask.body(STREAM)).await;
    assert_eq!(wire.head().await.status, 200);
    wire.until_body_has("\n\n").await;
    tokio::spawn(async move {
        wire.until_body_has("token_revoked").await;
        Instant::now()
    })
}

async fn was_cut_promptly(stream: JoinHandle<Instant>, revoked: Instant, case: &str) {
    let took = stream.await.unwrap().saturating_duration_since(revoked);
    assert!(took <= PROMPTLY, "{case}: cut {took:?} after the answer that it is revoked");
}

async fn is_refused(setup: &Setup, token: &Token, case: &str) {
    let next = setup.wire().await.ask(models(token)).await;
    assert_eq!((next.head.status, next.code().as_str()), (401, "token_revoked"), "{case}: the next request");
}

/// Revokes a token that runs a stream: its answer means what it says.
async fn revoke_one(setup: &Setup, token: &Token, stream: JoinHandle<Instant>, case: &str) {
    let (status, told) = setup.manage("DELETE", &format!("/manage/tokens/{}", token.id), Value::Null).await;
    let revoked = Instant::now();
    assert_eq!(status, 204, "{case}: {told}");
    is_refused(setup, token, case).await;
    was_cut_promptly(stream, revoked, case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_to_a_thousand_tokens_makes_no_revocation_wait() {
    let setup = Setup::new().await;
    let project = setup.project("many").await;
    let path = format!("/manage/projects/{project}");
    let crowd = crowd(&setup, &project).await;

    let foreign = setup.token_with(json!({"max_requests": 100})).await;
    let stream = silent_stream(&setup, &foreign).await;
    let renaming = setup.manage("PATCH", &path, json!({"name": "renamed"}));
    let revoking = async {
        eventually(PATIENCE, "the project is renamed", async || {
            let (_, now) = setup.manage("GET", &path, Value::Null).await;
            (now["name"] == "renamed").then_some(())
        })
        .await;
        // Whatever the new name made the process forget, it knows this token again.
        assert_eq!(setup.wire().await.ask(models(&foreign)).await.head.status, 200);
        revoke_one(&setup, &foreign, stream, "behind a new name of many tokens' project").await;
    };
    let ((status, told), ()) = tokio::join!(renaming, revoking);
    assert_eq!(status, 200, "{told}");

    let foreign = setup.token_with(json!({"max_requests": 100})).await;
    let stream = silent_stream(&setup, &foreign).await;
    let running: Vec<&Token> = crowd.iter().step_by(MANY / STREAMS).collect();
    let mut streams = Vec::new();
    for token in &running {
        streams.push(silent_stream(&setup, token).await);
    }
    let all = format!("{path}/tokens/revoke");
    let revoking_all = async {
        let told = setup.manage("POST", &all, Value::Null).await;
        (told, Instant::now())
    };
    let revoking_one = revoke_one(&setup, &foreign, stream, "beside the revocation of many");
    let (((status, told), revoked), ()) = tokio::join!(revoking_all, revoking_one);
    assert_eq!((status, &told["revoked_count"]), (200, &json!(MANY)), "{told}");
    assert_eq!(streams.len(), STREAMS);
    for (number, (stream, token)) in streams.into_iter().zip(running).enumerate() {
        let case = format!("stream {number} of {STREAMS}");
        was_cut_promptly(stream, revoked, &case).await;
        is_refused(&setup, token, &case).await;
    }
}
