//! What a project lets be kept of bodies, how it is erased, and where it goes, as callers of the management API see it.

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

use http::header;
use llm_proxy_admin::EraseRequest;
use llm_proxy_store::ChangeKind;
use serde_json::{Value, json};
use uuid::Uuid;

use common::{ERASED, NO_SUCH_ID, Plane};

/// 2026-11-21, 10:20 UTC.
const MOMENT_US: i64 = 1_795_256_400_000_000;

#[tokio::test]
async fn a_project_keeps_no_bodies_until_it_is_told_to_and_a_part_that_is_not_named_stays() {
    let plane = Plane::new().await;
    let path = format!("/manage/projects/{}", plane.project);
    let shown = plane.get(&path).await.json()["content"].clone();
    assert_eq!(shown, json!({"capture": "metadata", "max_bytes": 65_536, "retention_days": null}));
    for (change, expected) in [
        (json!({}), ("metadata", 65_536, Value::Null)),
        (json!({"capture": "full"}), ("full", 65_536, Value::Null)),
        (json!({"max_bytes": 524_288, "retention_days": 30}), ("full", 524_288, json!(30))),
        (json!({"capture": "redacted", "max_bytes": 1_024}), ("redacted", 1_024, json!(30))),
        (json!({"retention_days": null}), ("redacted", 1_024, Value::Null)),
        (json!({"capture": "none", "retention_days": 1}), ("none", 1_024, json!(1))),
    ] {
        let position = plane.store.change_position().await.unwrap();
        let patched = plane.send("PATCH", &path, &json!({"content": change})).await;
        let (capture, max_bytes, retention_days) = expected;
        let expected = json!({"capture": capture, "max_bytes": max_bytes, "retention_days": retention_days});
        assert_eq!(patched.json()["content"], expected, "{change}: {}", patched.text);
        assert_eq!(plane.get(&path).await.json()["content"], expected, "{change}");
        let heard = plane.store.changes_after(position).await.unwrap();
        let kinds: Vec<_> = heard.into_iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [ChangeKind::Project { id: plane.project.clone(), is_active: true }], "{change}");
    }

    let body = json!({"name": "second", "content": {"capture": "redacted"}});
    let made = plane.send("POST", "/manage/projects", &body).await.json();
    assert_eq!(made["content"], json!({"capture": "redacted", "max_bytes": 65_536, "retention_days": null}));
    assert_eq!(plane.store.retentions().await.unwrap(), [(plane.project.clone(), 1)]);
}

#[tokio::test]
async fn an_erasure_is_asked_for_as_it_is_meant() {
    let plane = Plane::new().await;
    let ids: Vec<_> = (0..1_000).map(|number| Uuid::from_u128(number).to_string()).collect();
    for (body, expected) in [
        (
            json!({"project_id": plane.project}),
            EraseRequest { project_id: Some(plane.project.clone()), ..EraseRequest::default() },
        ),
        (
            json!({"before": "2026-11-21T11:20:00+01:00"}),
            EraseRequest { before_us: Some(MOMENT_US), ..EraseRequest::default() },
        ),
        (
            json!({"event_ids": ids}),
            EraseRequest { event_ids: (0..1_000).map(Uuid::from_u128).collect(), ..EraseRequest::default() },
        ),
        (
            json!({"project_id": plane.project, "before": "2026-11-21T10:20:00.000001Z", "event_ids": [NO_SUCH_ID]}),
            EraseRequest {
                project_id: Some(plane.project.clone()),
                before_us: Some(MOMENT_US + 1),
                event_ids: vec![NO_SUCH_ID.parse().unwrap()],
            },
        ),
    ] {
        let answer = plane.send("POST", "/manage/content/erase", &body).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!(ERASED)), "{body}");
        let asked = std::mem::take(&mut *plane.process.erasures.lock().unwrap());
        assert_eq!(asked, [expected], "{body}");
    }
    assert_eq!(json!(ERASED), json!({"records": 12, "files": 3}));

    let mut ids = ids;
    ids.push(NO_SUCH_ID.to_owned());
    for body in [json!({"event_ids": ids}), json!({}), json!({"project_id": NO_SUCH_ID})] {
        let answer = plane.send("POST", "/manage/content/erase", &body).await;
        assert!(answer.status.is_client_error(), "{}", answer.text);
    }
    assert!(plane.process.erasures.lock().unwrap().is_empty(), "what is refused erases nothing");
}

#[tokio::test]
async fn an_erasure_that_fails_is_no_success_and_says_so() {
    let plane = Plane::new().await;
    plane.take_events().await;
    plane.process.keeps_content.store(true, Ordering::Relaxed);
    let answer = plane.send("POST", "/manage/content/erase", &json!({"project_id": plane.project})).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, "not_erased".to_owned()), "{}", answer.text);
    assert!(!answer.header(header::RETRY_AFTER).is_empty());
    assert!(plane.take_events().await.is_empty());
}

#[tokio::test]
async fn sinks_are_shown_with_every_figure() {
    let plane = Plane::new().await;
    let expected = json!({
        "data": [{
            "name": "team", "kind": "webhook", "health": "retrying", "delivered": 1, "duplicates": 2, "dead": 3,
            "dropped": 4, "retried": 5, "pending_records": 6, "lag_seconds": 7.5, "last_error": "503",
        }],
        "next_cursor": null,
    });
    assert_eq!(plane.get("/manage/sinks").await.json(), expected);
}
