//! What administrators do leaves one event each, in the same breath as the change, and comes to the journal whatever
//! dies in between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use llm_proxy_admin::{Courier, serve};
use llm_proxy_plugins::event::{EventType, Exchange, Message};
use llm_proxy_plugins::journal::{Journal, Kind, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use uuid::Uuid;

use common::{CREDENTIAL, PROVIDER_KEY, Plane};

const OTHER_KEY: &str = "sk-ant-canary-key-0815";

fn read(json: &Option<Vec<u8>>) -> Value {
    json.as_deref().map_or(Value::Null, |json| serde_json::from_slice(json).unwrap())
}

#[tokio::test]
async fn each_change_leaves_one_event_that_says_who_did_what_to_what() {
    let plane = Plane::new().await;
    plane.take_events().await;
    let project_path = plane.fill("/manage/projects/{project}");
    let token_path = plane.fill("/manage/tokens/{token}");
    let key = json!([{"api": "anthropic", "key": OTHER_KEY}]);
    let new_project = json!({"name": "second", "api_key": PROVIDER_KEY, "provider_keys": key});
    let new_token = json!({"project_id": plane.project, "duration_minutes": 5});
    let erase = json!({"project_id": plane.project, "event_ids": [Uuid::from_u128(1)]});
    let none = Value::Null;
    for (method, path, body, endpoint, action, resource) in [
        ("POST", "/manage/projects", &new_project, "/manage/projects", "project.create", "project"),
        ("PATCH", &project_path, &json!({"name": "uno"}), "/manage/projects/{id}", "project.update", "project"),
        ("PATCH", &project_path, &json!({"provider_keys": key}), "/manage/projects/{id}", "project.update", "project"),
        (
            "PATCH",
            &project_path,
            &json!({"content": {"capture": "full"}}),
            "/manage/projects/{id}",
            "project.update",
            "project",
        ),
        ("POST", "/manage/tokens", &new_token, "/manage/tokens", "token.create", "token"),
        ("PATCH", &token_path, &json!({"max_requests": 9}), "/manage/tokens/{id}", "token.update", "token"),
        ("DELETE", &token_path, &none, "/manage/tokens/{id}", "token.revoke", "token"),
        (
            "POST",
            &format!("{project_path}/tokens/revoke"),
            &none,
            "/manage/projects/{id}/tokens/revoke",
            "project.revoke_tokens",
            "project",
        ),
        ("POST", "/manage/content/erase", &erase, "/manage/content/erase", "content.erase", "content"),
    ] {
        let is_one = ["PATCH", "DELETE"].contains(&method);
        let before = if is_one { plane.get(path).await.json() } else { Value::Null };
        let sent = if body.is_null() { String::new() } else { body.to_string() };
        let answer = plane.raw(method, path, &sent).await;
        let case = format!("{method} {path} {sent}: {} {}", answer.status, answer.text);
        assert!(answer.status.is_success(), "{case}");
        // A token is shown in one place only, which is the answer that makes it.
        let mut shown = answer.json();
        let secret = shown.as_object_mut().and_then(|fields| fields.remove("token"));
        assert_eq!(secret.is_some(), action == "token.create", "{case}");
        let after = match action {
            "token.revoke" => plane.get(path).await.json(),
            "content.erase" => json!({
                "project_id": plane.project, "before": null, "event_ids": [Uuid::from_u128(1)], "records": 12, "files": 3,
            }),
            _ => shown.clone(),
        };

        let mut events = plane.take_events().await;
        let (event, told) = events.pop().unwrap_or_else(|| panic!("{case}"));
        assert!(events.is_empty(), "{case}: one");
        assert_eq!(event.r#type, i32::from(EventType::Admin), "{case}");
        assert_eq!(Uuid::parse_str(&event.id).unwrap().get_version_num(), 7, "{case}");
        let request = (event.method.as_deref(), event.endpoint.as_deref(), event.status);
        assert_eq!(request, (Some(method), Some(endpoint), Some(u32::from(answer.status.as_u16()))), "{case}");
        assert_eq!((told.action.as_str(), told.resource.as_str()), (action, resource), "{case}");
        assert_eq!(told.actor, "management_token", "{case}");
        assert_eq!((read(&told.before_json), read(&told.after_json)), (before, after.clone()), "{case}");
        let id = match resource {
            "content" => None,
            _ if action == "project.revoke_tokens" => Some(plane.project.as_str()),
            _ => after["id"].as_str(),
        };
        assert_eq!(told.resource_id.as_deref(), id, "{case}");
        assert_eq!(event.token_id.as_deref(), id.filter(|_| resource == "token"), "{case}");
        let project = if action == "project.create" { id } else { Some(plane.project.as_str()) };
        assert_eq!(event.project_id.as_deref(), project, "{case}");
        let texts = format!("{event:?} {}", String::from_utf8_lossy(&told.after_json.unwrap_or_default()));
        assert!(!texts.contains(OTHER_KEY), "{case}: {texts}");
        assert!(secret.is_none_or(|secret| !texts.contains(secret.as_str().unwrap())), "{case}: {texts}");
        if action == "project.create" {
            assert!(texts.contains("0815") && texts.contains("4711"), "the last four characters: {texts}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_or_changes_nothing_leaves_no_event() {
    let plane = Plane::new().await;
    plane.raw("DELETE", &plane.fill("/manage/tokens/{token}"), "").await;
    assert_eq!(plane.take_events().await.len(), 3, "a project, a token, and its end");
    for (method, path, body, status) in [
        ("POST", "/manage/projects", r#"{"name":"first"}"#, 409),
        ("POST", "/manage/projects", r#"{"name":""}"#, 400),
        ("PATCH", "/manage/projects/{none}", r#"{"name":"x"}"#, 404),
        ("PATCH", "/manage/projects/{project}", r#"{"name":null}"#, 400),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"capture":"all"}}"#, 400),
        ("PATCH", "/manage/projects/{project}", "{}", 200),
        ("PATCH", "/manage/projects/{project}", r#"{"name":"first","content":{"capture":"metadata"}}"#, 200),
        ("PUT", "/manage/projects/{project}", "{}", 405),
        ("POST", "/manage/tokens", r#"{"project_id":"{none}","duration_minutes":1}"#, 404),
        ("PATCH", "/manage/tokens/{none}", r#"{"is_active":false}"#, 404),
        ("PATCH", "/manage/tokens/{token}", r#"{"is_active":false}"#, 200),
        ("DELETE", "/manage/tokens/{none}", "", 404),
        ("DELETE", "/manage/tokens/{token}", "", 204),
        ("POST", "/manage/projects/{none}/tokens/revoke", "", 404),
        ("POST", "/manage/projects/{project}/tokens/revoke", "", 200),
        ("POST", "/manage/content/erase", "{}", 400),
        ("POST", "/manage/content/erase", r#"{"project_id":"{none}"}"#, 404),
        ("GET", "/manage/projects", "", 200),
    ] {
        let answer = plane.raw(method, &plane.fill(path), &plane.fill(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path} {body}: {}", answer.text);
        assert!(plane.take_events().await.is_empty(), "{method} {path} {body}");
    }
    let nobody = Request::delete(plane.fill("/manage/tokens/{token}")).body(Body::empty()).unwrap();
    assert_eq!(plane.answer(nobody).await.status.as_u16(), 401);
    plane.process.keeps_content.store(true, Ordering::Relaxed);
    plane.send("POST", "/manage/content/erase", &json!({"project_id": plane.project})).await;
    assert!(plane.take_events().await.is_empty());
}

#[tokio::test]
async fn an_event_says_where_the_administrator_was_as_far_as_records_may() {
    let plane = Plane::new().await;
    let (event, _) = plane.take_events().await.remove(0);
    assert_eq!(event.client_address, None, "without a connection there is no address");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, plane.router.clone(), async move {
        let _ = stopped.await;
    }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let path = plane.fill("/manage/tokens/{token}");
    let request = format!(
        "DELETE {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {CREDENTIAL}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    let (event, told) = plane.take_events().await.remove(0);
    assert_eq!((told.action.as_str(), event.client_address.as_deref()), ("token.revoke", Some("<127.0.0.1>")));
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

/// The ids of the events that the journal has, in its order.
fn carried(journal: &Journal) -> Vec<String> {
    let mut reader = journal.reader(0);
    let mut found = Vec::new();
    while let Some(record) = reader.next_ref().unwrap() {
        assert_eq!(record.kind, Kind::Admin);
        let event = Exchange::decode(record.payload).unwrap();
        assert_eq!(event.id, record.event_id.to_string());
        found.push(event.id);
    }
    found
}

async fn rename(plane: &Plane, name: &str) {
    let renamed = plane.send("PATCH", &plane.fill("/manage/projects/{project}"), &json!({"name": name})).await;
    assert_eq!(renamed.status.as_u16(), 200, "{}", renamed.text);
}

async fn waiting(plane: &Plane) -> Vec<String> {
    plane.store.outbox(1_000).await.unwrap().iter().map(|entry| entry.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_commit_and_journal_loses_no_event_and_what_follows_comes_after_it() {
    let plane = Plane::new().await;
    // Committed, and the process dies before anybody has carried them.
    rename(&plane, "a").await;
    let mut expected = waiting(&plane).await;
    assert_eq!(expected.len(), 3, "project, token, name");
    let (journal, _) = Journal::open(&plane.folder.path().join("journal"), Options::default()).unwrap();
    let courier = Courier::start(&journal, plane.store.clone(), Handle::current());
    let carry = async {
        while !waiting(&plane).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), carry).await.unwrap();
    assert_eq!(carried(&journal), expected, "the start carries what was left");

    tokio::task::spawn_blocking(move || courier.drain()).await.unwrap();
    for name in ["b", "c"] {
        rename(&plane, name).await;
    }
    expected.extend(waiting(&plane).await);
    assert_eq!(expected.len(), 5, "without a courier they wait");
    let courier = Courier::start(&journal, plane.store.clone(), Handle::current());
    tokio::task::spawn_blocking(move || courier.drain()).await.unwrap();
    assert_eq!(carried(&journal), expected, "what is there at the end is carried before it");
    assert!(waiting(&plane).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_written_refuses_no_administrator() {
    let plane = Plane::new().await;
    let (journal, _) = Journal::open(&plane.folder.path().join("journal"), Options::default()).unwrap();
    journal.close();
    let courier = Courier::start(&journal, plane.store.clone(), Handle::current());
    rename(&plane, "a").await;
    tokio::task::spawn_blocking(move || courier.drain()).await.unwrap();
    assert_eq!(waiting(&plane).await.len(), 3, "and every event waits");
}
