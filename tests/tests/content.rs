//! What a record keeps of bodies: as much as the project lets it, put together so that a person can read it, and never
//! a byte of them changed on the way. What was kept can be erased, from every file that has it.
//!
//! Where something must not be, it is looked for in every file of `DATA_DIR`, archives unpacked; that the search finds
//! what is there is shown each time by what may be there.

mod common;

#[path = "content/disk.rs"]
mod disk;
#[path = "content/erasure.rs"]
mod erasure;
#[path = "content/policies.rs"]
mod policies;
#[path = "content/sizes.rs"]
mod sizes;
#[path = "content/streams.rs"]
mod streams;

use std::sync::{Arc, Mutex};

use common::upstream::Upstream;
use llm_proxy_tests::{Answer, Ask, ProductOptions, Provider, Token, World};
use rand::Rng;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// An API whose provider answers with what it is sent.
const ECHO: &str = "parrot";
/// The project's key for it.
const ECHO_KEY: &str = "provider-key-canary-8f2c41d09be7";

/// A world with a provider that says what it is told, and remembers it.
struct Scene {
    world: World,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _provider: Upstream,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|options| options).await
    }

    async fn with(change: impl FnOnce(ProductOptions) -> ProductOptions) -> Self {
        let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let remembered = Arc::clone(&heard);
        let provider = Upstream::start(move |mut wire, _| {
            let heard = Arc::clone(&remembered);
            async move {
                while let Some((head, body)) = wire.request().await {
                    let kind = head.field("content-type").unwrap_or("text/plain");
                    let length = body.len();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
                    let answer = [head.as_bytes(), &body[..]].concat();
                    heard.lock().unwrap().push(body);
                    if wire.try_send(answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let echo = format!("dialect: openai\nbase_url: http://{}", provider.addr);
        let world = World::with(|options| {
            change(options.api(ECHO, &echo).api("asking", "dialect: openai\ninject_usage: true"))
        })
        .await;
        Self { world, heard, _provider: provider }
    }

    /// A project that keeps this, with every key, and a token of it.
    async fn keeping(&self, name: &str, content: Value) -> (String, Token) {
        let keys = Provider::ALL.map(|provider| (provider.name(), provider.key()));
        let keys = keys.into_iter().chain([(ECHO, ECHO_KEY), ("asking", Provider::OpenAi.key())]);
        let keys: Vec<Value> = keys.map(|(api, key)| json!({"api": api, "key": key})).collect();
        let fields = json!({"name": name, "provider_keys": keys, "content": content});
        let project = self.world.project_with(&fields).await;
        let token = self.world.token_of(&project, json!({})).await;
        (project, token)
    }

    /// What the provider was last told.
    fn last_heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().last().unwrap().clone()
    }

    /// Sends a body there and back, and checks that no byte of it has changed.
    async fn echoed(&self, case: &str, ask: Ask, body: &[u8]) -> Answer {
        let answer = self.world.ask(&ask.body(body)).await;
        assert_eq!(answer.status, 200, "{case}: {}", answer.text());
        assert!(self.last_heard() == body, "{case}: the provider got other bytes");
        assert!(answer.body == body, "{case}: the client got other bytes");
        answer
    }

    /// The content in the record of such an exchange.
    async fn kept(&self, case: &str, ask: Ask, body: &[u8]) -> Value {
        let answer = self.echoed(case, ask, body).await;
        let record = self.world.check_record(case, &answer, "finished", None).await;
        let bytes = (record["request_bytes"].as_u64(), record["response_bytes"].as_u64());
        assert_eq!(bytes, (Some(body.len() as u64), Some(body.len() as u64)), "{case}: {record}");
        record["content"].clone()
    }
}

/// A request of this type to the provider that repeats it.
fn repeat(token: &Token, content_type: &str) -> Ask {
    let ask = Provider::OpenAi.at("POST", &format!("/{ECHO}/v1/chat/completions"), &token.secret);
    ask.with("content-type", content_type)
}

fn repeat_json(token: &Token) -> Ask {
    repeat(token, "application/json")
}

/// What is kept of a body of which nothing is missing.
fn whole(sent: &str) -> Value {
    let body: Value = serde_json::from_str(sent).unwrap();
    json!({
        "content_type": "application/json", "bytes": sent.len(), "truncated": false, "body": body, "sha256": null,
        "omitted": null,
    })
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

/// A word that stands nowhere else.
fn canary() -> String {
    format!("canary{:032x}", rand::rng().random::<u128>())
}
