//! What administrators do is on record: one event for each change that was answered with success, in the file and in
//! every other sink, whatever is killed in between, and without a secret in it.

mod common;

#[path = "content/disk.rs"]
mod disk;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::upstream::Upstream;
use disk::{files, holding};
use llm_proxy_tests::{PATIENCE, World, eventually, is_uuid_v7};
use rand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A provider's key, of which the last four characters may be shown.
const KEY: &str = "sk-canary-5f1e0c9a7b3d-4711";
const OTHER_KEY: &str = "sk-ant-canary-0d4c2b8e6f1a-0815";
/// How often the process is killed.
const KILLS: usize = 6;
const MOST_ACTIONS: usize = 4;

/// A world whose management events go to the file, as ever, and to a receiver of webhooks.
struct Watched {
    world: World,
    received: Arc<Mutex<Vec<Value>>>,
    _receiver: Upstream,
    _config: TempDir,
}

impl Watched {
    async fn new() -> Self {
        let received: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&received);
        let receiver = Upstream::start(move |mut wire, _| {
            let kept = Arc::clone(&kept);
            async move {
                while let Some((_, body)) = wire.request().await {
                    let body: Value = serde_json::from_slice(&body).unwrap();
                    kept.lock().unwrap().extend_from_slice(body["data"].as_array().unwrap());
                    if wire.try_send("HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let sinks = format!(
            "sinks:\n  audit: {{type: webhook, url: 'http://{}/', secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, \
             only: {{types: [admin]}}, batch: {{age: 20ms}}, retry: {{first: 20ms, longest: 100ms}}}}\n",
            receiver.addr
        );
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("with-sinks.yaml");
        let world = World::with(|options| {
            std::fs::write(&config, options.yaml() + &sinks).unwrap();
            options.set("CONFIG", config.display()).set("RECORD_CLIENT_ADDRESS", "full")
        })
        .await;
        Self { world, received, _receiver: receiver, _config: folder }
    }

    /// Does something that must succeed, and returns the answer's body.
    async fn act(&self, method: &str, path: &str, body: &Value, status: u16) -> Value {
        let admin = &self.world.admin;
        let told = match (method, body) {
            ("GET", _) => admin.get(path).await,
            ("DELETE", _) => admin.delete(path).await,
            ("PATCH", body) => admin.patch(path, body).await,
            (_, Value::Null) => admin.post_empty(path).await,
            (_, body) => admin.post(path, body).await,
        };
        told.expect(status)
    }

    /// The first so many management events in the file, and that there are no more.
    async fn in_file(&self, count: usize) -> Vec<Value> {
        let so_many = |events: &[Value]| {
            let events: Vec<Value> = events.iter().filter(|event| event["type"] == "admin").cloned().collect();
            (events.len() >= count).then_some(events)
        };
        let found = self.world.product.wait_all_events(&format!("{count} management events"), so_many).await;
        assert_eq!(found.len(), count, "{found:?}");
        found
    }

    /// Waits until the receiver has these events, each at least once and in this order.
    async fn in_webhook(&self, expected: &[Value]) {
        eventually(PATIENCE, "the receiver has the events", async || {
            (once(&self.received.lock().unwrap()).len() >= expected.len()).then_some(())
        })
        .await;
        assert_eq!(once(&self.received.lock().unwrap()), expected);
    }
}

/// The events in the order in which they came first. A crash may have them come again, just as they were.
fn once(events: &[Value]) -> Vec<Value> {
    let mut first: HashMap<&str, &Value> = HashMap::new();
    let mut all = Vec::new();
    for event in events {
        match first.insert(event["id"].as_str().unwrap(), event) {
            Some(earlier) => assert_eq!(earlier, event, "an event has changed"),
            None => all.push(event.clone()),
        }
    }
    all
}

/// A change, as its event should tell of it.
struct Deed {
    action: &'static str,
    method: &'static str,
    endpoint: &'static str,
    status: u16,
    project: Value,
    token: Value,
    before: Value,
    after: Value,
}

impl Deed {
    fn check(&self, event: &Value) {
        let Self { action, method, endpoint, status, project, token, before, after } = self;
        let resource = action.split('.').next().unwrap();
        let id = match resource {
            "token" => token,
            "project" => project,
            _ => &Value::Null,
        };
        let expected = json!({
            "action": action, "actor": "management_token", "resource": resource, "resource_id": id, "before": before,
            "after": after,
        });
        assert_eq!(event["admin"], expected, "{action}: {event}");
        assert!(is_uuid_v7(event["id"].as_str().unwrap()), "{action}: {event}");
        assert!(event["times"]["received"].is_string(), "{action}: {event}");
        for (field, expected) in [
            ("schema", &json!(1)),
            ("method", &json!(method)),
            ("endpoint", &json!(endpoint)),
            ("status", &json!(status)),
            ("outcome", &json!("finished")),
            ("project_id", project),
            ("token_id", token),
            ("client_address", &json!("127.0.0.1")),
        ] {
            assert_eq!(event[field], *expected, "{action}, {field}: {event}");
        }
        for field in ["api", "dialect", "model", "model_requested", "stream", "chunks", "content", "attempt", "reason"]
        {
            assert_eq!(event[field], Value::Null, "{action}, {field}: {event}");
        }
    }
}

#[tokio::test]
async fn each_change_leaves_one_event_in_every_sink_and_nothing_else_does() {
    let watched = Watched::new().await;
    let none = Value::Null;
    let mut deeds: Vec<Deed> = Vec::new();

    let new = json!({"name": "shop", "api_key": KEY});
    let made = watched.act("POST", "/manage/projects", &new, 201).await;
    let project = made["id"].clone();
    let deed = |action, method, endpoint, status, before: &Value, after: &Value| Deed {
        action,
        method,
        endpoint,
        status,
        project: project.clone(),
        token: Value::Null,
        before: before.clone(),
        after: after.clone(),
    };
    deeds.push(deed("project.create", "POST", "/manage/projects", 201, &none, &made));
    let path = format!("/manage/projects/{}", project.as_str().unwrap());
    let mut before = made;
    for change in [
        json!({"name": "store"}),
        json!({"provider_keys": [{"api": "anthropic", "key": OTHER_KEY}]}),
        json!({"content": {"capture": "full"}}),
        json!({"is_active": false}),
        json!({"is_active": true}),
    ] {
        let after = watched.act("PATCH", &path, &change, 200).await;
        deeds.push(deed("project.update", "PATCH", "/manage/projects/{id}", 200, &before, &after));
        before = after;
    }

    let new = json!({"project_id": project, "duration_minutes": 60});
    let mut secrets = Vec::new();
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let mut made = watched.act("POST", "/manage/tokens", &new, 201).await;
        // It is shown in this one answer and nowhere else.
        let secret = made.as_object_mut().unwrap().remove("token").unwrap();
        secrets.push(secret.as_str().unwrap().to_owned());
        let create = deed("token.create", "POST", "/manage/tokens", 201, &none, &made);
        deeds.push(Deed { token: made["id"].clone(), ..create });
        tokens.push(made);
    }
    let token = tokens.remove(0);
    let token_path = format!("/manage/tokens/{}", token["id"].as_str().unwrap());
    let limited = watched.act("PATCH", &token_path, &json!({"max_requests": 7}), 200).await;
    let update = deed("token.update", "PATCH", "/manage/tokens/{id}", 200, &token, &limited);
    deeds.push(Deed { token: token["id"].clone(), ..update });
    watched.act("DELETE", &token_path, &none, 204).await;
    let revoked = watched.act("GET", &token_path, &none, 200).await;
    let revoke = deed("token.revoke", "DELETE", "/manage/tokens/{id}", 204, &limited, &revoked);
    deeds.push(Deed { token: token["id"].clone(), ..revoke });
    let all_path = format!("{path}/tokens/revoke");
    let counts = watched.act("POST", &all_path, &none, 200).await;
    assert_eq!((&counts["revoked_count"], &counts["already_revoked_count"]), (&json!(1), &json!(1)), "{counts}");
    let endpoint = "/manage/projects/{id}/tokens/revoke";
    deeds.push(deed("project.revoke_tokens", "POST", endpoint, 200, &none, &counts));

    let nobody = "/manage/tokens/0193a5b0-7c5e-7abc-9def-0123456789ab";
    for (method, path, body, status) in [
        ("GET", path.as_str(), &none, 200),
        ("GET", "/manage/sinks", &none, 200),
        ("PATCH", &path, &json!({}), 200),
        ("PATCH", &path, &json!({"name": "store", "is_active": true}), 200),
        ("PATCH", &path, &json!({"name": ""}), 400),
        ("POST", "/manage/projects", &json!({"name": "store"}), 409),
        ("DELETE", &token_path, &none, 204),
        ("DELETE", nobody, &none, 404),
        ("POST", &all_path, &none, 200),
        ("POST", "/manage/content/erase", &json!({}), 400),
    ] {
        watched.act(method, path, body, status).await;
    }
    // An event of theirs would stand before this one.
    let before = watched.act("GET", &path, &none, 200).await;
    let last = watched.act("PATCH", &path, &json!({"name": "last"}), 200).await;
    deeds.push(deed("project.update", "PATCH", "/manage/projects/{id}", 200, &before, &last));

    // The world's own project and token come first.
    let events = watched.in_file(2 + deeds.len()).await;
    let first: Vec<_> = events[..2].iter().map(|event| event["admin"]["action"].clone()).collect();
    assert_eq!(first, ["project.create", "token.create"]);
    for (deed, event) in deeds.iter().zip(&events[2..]) {
        deed.check(event);
    }
    watched.in_webhook(&events).await;

    // The file may be another one after it, so this comes last.
    let erase = json!({"project_id": project, "before": "2026-01-01T00:00:00Z"});
    let erased = watched.act("POST", "/manage/content/erase", &erase, 200).await;
    let is_erasure = |event: &&Value| event["admin"]["action"] == "content.erase";
    let find = |events: &[Value]| events.iter().find(is_erasure).cloned();
    let event = watched.world.product.wait_all_events("the event of the erasure", find).await;
    let after = json!({
        "project_id": project, "before": "2026-01-01T00:00:00.000000Z", "event_ids": [], "records": erased["records"],
        "files": erased["files"],
    });
    deed("content.erase", "POST", "/manage/content/erase", 200, &none, &after).check(&event);
    watched.in_webhook(&[events, vec![event]].concat()).await;

    let mut texts = files(&watched.world.product.data_dir());
    texts.insert("webhooks".to_owned(), json!(*watched.received.lock().unwrap()).to_string());
    texts.insert("the log".to_owned(), watched.world.product.log());
    assert!(holding(&texts, "4711").contains(&"webhooks"), "the last four characters are shown");
    let management = watched.world.product.management_token();
    for secret in secrets.iter().map(String::as_str).chain([KEY, OTHER_KEY, management, &watched.world.token.secret]) {
        assert_eq!(holding(&texts, secret), [""; 0], "{}…", &secret[..9]);
    }
}

#[tokio::test]
async fn kill_9_right_after_an_answer_loses_no_event_of_any_change() {
    let mut watched = Watched::new().await;
    let mut expected = vec![
        ("project.create".to_owned(), watched.world.project.clone()),
        ("token.create".to_owned(), watched.world.token.id.clone()),
    ];
    let mut number = 0;
    for _ in 0..KILLS {
        for _ in 0..rand::rng().random_range(1..=MOST_ACTIONS) {
            number += 1;
            let project = watched.world.project.clone();
            let own_path = format!("/manage/projects/{project}");
            let (action, id) = match number % 4 {
                0 => {
                    let new = json!({"name": format!("project {number}")});
                    let made = watched.act("POST", "/manage/projects", &new, 201).await;
                    ("project.create", made["id"].as_str().unwrap().to_owned())
                }
                1 => {
                    let change = json!({"name": format!("renamed {number}")});
                    watched.act("PATCH", &own_path, &change, 200).await;
                    ("project.update", project)
                }
                2 => {
                    let new = json!({"project_id": project, "duration_minutes": 60});
                    let made = watched.act("POST", "/manage/tokens", &new, 201).await;
                    ("token.create", made["id"].as_str().unwrap().to_owned())
                }
                _ => {
                    let (_, id) = expected.iter().rfind(|(action, _)| action == "token.create").cloned().unwrap();
                    let change = json!({"max_requests": number});
                    watched.act("PATCH", &format!("/manage/tokens/{id}"), &change, 200).await;
                    ("token.update", id)
                }
            };
            expected.push((action.to_owned(), id));
        }
        watched.world.product.kill9();
        watched.world.product.restart().await;
    }

    let text = |event: &Value, field: &str| event["admin"][field].as_str().unwrap().to_owned();
    let told = |events: &[Value]| {
        let events: Vec<Value> = events.iter().filter(|event| event["type"] == "admin").cloned().collect();
        let events = once(&events);
        (events.len() >= expected.len()).then_some(events)
    };
    let events = watched.world.product.wait_all_events("an event of each change", told).await;
    let found: Vec<_> = events.iter().map(|event| (text(event, "action"), text(event, "resource_id"))).collect();
    assert_eq!(found, expected, "each of them, in their order");
    watched.in_webhook(&events).await;
}
