//! The management API as its callers see it: every route over a real store, without a socket.

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

use axum::body::Body;
use http::{Request, StatusCode, header};
use serde_json::{Value, json};

use common::{CREDENTIAL, PROVIDER_KEY, Plane};

/// Every method of every route.
const ROUTES: [(&str, &str); 17] = [
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/manage/projects"),
    ("POST", "/manage/projects"),
    ("GET", "/manage/projects/{project}"),
    ("PATCH", "/manage/projects/{project}"),
    ("POST", "/manage/projects/{none}/tokens/revoke"),
    ("GET", "/manage/tokens"),
    ("POST", "/manage/tokens"),
    ("GET", "/manage/tokens/{token}"),
    ("PATCH", "/manage/tokens/{token}"),
    ("DELETE", "/manage/tokens/{none}"),
    ("GET", "/manage/usage"),
    ("POST", "/manage/content/erase"),
    ("GET", "/manage/sinks"),
];

#[tokio::test]
async fn every_route_but_health_needs_the_management_token() {
    let plane = Plane::new().await;
    let unknown = [
        ("GET", "/manage"),
        ("GET", "/manage/nothing"),
        ("PUT", "/manage/projects"),
        ("GET", "/"),
        ("GET", "/health/x"),
    ];
    let proxy_token = format!("Bearer {}", plane.shown_once);
    let right = format!("Bearer {CREDENTIAL}");
    for (method, path) in ROUTES.into_iter().chain(unknown) {
        let is_open = path.starts_with("/health") && path != "/health/x";
        for (credential, code) in [
            (None, "invalid_management_token"),
            (Some("Bearer wrong"), "invalid_management_token"),
            (Some("Basic bWFuYWdlbWVudA=="), "invalid_management_token"),
            (Some(proxy_token.as_str()), "proxy_token_not_valid_here"),
            (Some(right.as_str()), ""),
        ] {
            let mut request = Request::builder().method(method).uri(plane.fill(path));
            if let Some(credential) = credential {
                request = request.header(header::AUTHORIZATION, credential);
            }
            let answer = plane.answer(request.body(Body::empty()).unwrap()).await;
            let cell = format!("{method} {path} with {credential:?}: {} {}", answer.status, answer.text);
            if is_open || code.is_empty() {
                assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{cell}");
            } else {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{cell}");
                assert_eq!(answer.header(header::WWW_AUTHENTICATE), "Bearer", "{cell}");
                assert_eq!(answer.code(), code, "{cell}");
            }
            assert_eq!(answer.header(header::CACHE_CONTROL), "no-store", "{cell}");
            assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff", "{cell}");
            assert!(!answer.text.contains(&plane.shown_once), "{cell}");
        }
    }
}

#[tokio::test]
async fn every_answer_has_its_status_and_every_error_its_code() {
    let plane = Plane::new().await;
    let long_name = format!(r#"{{"name":"{}"}}"#, "x".repeat(129));
    let token = |rest: &str| format!(r#"{{"project_id":"{{project}}"{rest}}}"#);
    for (method, path, body, status, code) in [
        ("GET", "/health", "", 200, ""),
        ("GET", "/health/live", "", 200, ""),
        ("GET", "/health/ready", "", 200, ""),
        ("GET", "/metrics", "", 200, ""),
        // Projects.
        ("GET", "/manage/projects", "", 200, ""),
        ("GET", "/manage/projects?limit=200&cursor=", "", 200, ""),
        ("GET", "/manage/projects?limit=0", "", 400, "invalid_query"),
        ("GET", "/manage/projects?limit=201", "", 400, "invalid_query"),
        ("GET", "/manage/projects?limit=ten", "", 400, "invalid_query"),
        ("GET", "/manage/projects?limit=1&limit=2", "", 400, "invalid_query"),
        ("GET", "/manage/projects?page=2", "", 400, "invalid_query"),
        ("GET", "/manage/projects?cursor=junk", "", 400, "invalid_request"),
        ("GET", "/manage/projects/{project}", "", 200, ""),
        ("GET", "/manage/projects/{project}?x=1", "", 400, "invalid_query"),
        ("GET", "/manage/projects/{none}", "", 404, "project_not_found"),
        ("GET", "/manage/projects/%00", "", 404, "project_not_found"),
        ("GET", "/manage/projects/%ff", "", 400, "invalid_request"),
        ("POST", "/manage/projects", r#"{"name":"second"}"#, 201, ""),
        ("POST", "/manage/projects", r#"{"name":" second "}"#, 409, "conflict"),
        ("POST", "/manage/projects", r#"{"name":"third","is_active":false,"api_key":null}"#, 201, ""),
        ("POST", "/manage/projects", r#"{"name":"fourth","provider_keys":[{"api":"anthropic","key":"k"}]}"#, 201, ""),
        ("POST", "/manage/projects", r#"{"name":"fifth","content":{"retention_days":3650}}"#, 201, ""),
        ("POST", "/manage/projects", r#"{"name":"x","content":null}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","content":"full"}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","content":{"capture":"all"}}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","content":{"days":1}}"#, 400, "invalid_field"),
        ("POST", "/manage/projects?dry_run=1", r#"{"name":"x"}"#, 400, "invalid_query"),
        ("POST", "/manage/projects", "", 415, "unsupported_body"),
        ("POST", "/manage/projects", "{", 400, "invalid_json"),
        ("POST", "/manage/projects", r#"{"name":"x"}{}"#, 400, "invalid_json"),
        ("POST", "/manage/projects", "[]", 400, "invalid_field"),
        ("POST", "/manage/projects", "{}", 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":7}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":""}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"a\u0000"}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", &long_name, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","name":"y"}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","colour":"red"}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","is_active":null}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","id":"mine"}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","api_key":"two words"}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","api_key":""}"#, 400, "invalid_field"),
        ("POST", "/manage/projects", r#"{"name":"x","provider_keys":[["openai","k"]]}"#, 400, "invalid_field"),
        (
            "POST",
            "/manage/projects",
            r#"{"name":"x","provider_keys":[{"api":"opnai","key":"k"}]}"#,
            400,
            "invalid_field",
        ),
        ("POST", "/manage/projects", r#"{"name":"x","provider_keys":[{"api":"openai"}]}"#, 400, "invalid_field"),
        (
            "POST",
            "/manage/projects",
            r#"{"name":"x","provider_keys":[{"api":"openai","key":null}]}"#,
            400,
            "invalid_field",
        ),
        (
            "POST",
            "/manage/projects",
            r#"{"name":"x","api_key":"k","provider_keys":[{"api":"openai","key":"k"}]}"#,
            400,
            "invalid_field",
        ),
        ("PATCH", "/manage/projects/{project}", "{}", 200, ""),
        ("PATCH", "/manage/projects/{project}", r#"{"name":"second"}"#, 409, "conflict"),
        ("PATCH", "/manage/projects/{project}", r#"{"name":null}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{}}"#, 200, ""),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"capture":null}}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"max_bytes":1023}}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"max_bytes":524289}}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"max_bytes":null}}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"retention_days":0}}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{project}", r#"{"content":{"retention_days":3651}}"#, 400, "invalid_field"),
        ("PATCH", "/manage/projects/{none}", r#"{"name":"x"}"#, 404, "project_not_found"),
        ("DELETE", "/manage/projects/{project}", "", 405, "method_not_allowed"),
        ("PUT", "/manage/projects", "", 405, "method_not_allowed"),
        ("GET", "/manage/projects/{project}/tokens/revoke", "", 405, "method_not_allowed"),
        ("POST", "/manage/projects/{none}/tokens/revoke", "{}", 404, "project_not_found"),
        ("POST", "/manage/projects/{project}/tokens/revoke", r#"{"dry_run":true}"#, 400, "invalid_request"),
        ("POST", "/manage/projects/{project}/tokens/revoke?dry_run=1", "", 400, "invalid_query"),
        ("GET", "/manage/nothing", "", 404, "unknown_route"),
        ("GET", "/manage/projects/", "", 404, "unknown_route"),
        // Tokens.
        ("GET", "/manage/tokens", "", 200, ""),
        ("GET", "/manage/tokens?project_id={project}", "", 200, ""),
        ("GET", "/manage/tokens?project_id={none}", "", 404, "project_not_found"),
        ("GET", "/manage/tokens/{token}", "", 200, ""),
        ("GET", "/manage/tokens/{none}", "", 404, "token_not_found"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":1"#), 201, ""),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":525600,"max_requests":null"#), 201, ""),
        ("POST", "/manage/tokens", &token(""), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":0"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":525601"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":-1"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":1.5"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":"60""#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":1,"max_requests":0"#), 400, "invalid_field"),
        (
            "POST",
            "/manage/tokens",
            &token(r#","duration_minutes":1,"max_requests":9007199254740992"#),
            400,
            "invalid_field",
        ),
        (
            "POST",
            "/manage/tokens",
            &token(r#","duration_minutes":1,"requests_per_minute":1000001"#),
            400,
            "invalid_field",
        ),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":1,"allowed_models":[]"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":1,"allowed_models":[""]"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", &token(r#","duration_minutes":1,"allowed_models":["a b"]"#), 400, "invalid_field"),
        ("POST", "/manage/tokens", r#"{"project_id":"{none}","duration_minutes":1}"#, 404, "project_not_found"),
        ("PATCH", "/manage/tokens/{token}", r#"{"max_requests":5,"allowed_models":["gpt-4o*"]}"#, 200, ""),
        ("PATCH", "/manage/tokens/{token}", r#"{"max_requests":null}"#, 200, ""),
        ("PATCH", "/manage/tokens/{token}", r#"{"is_active":null}"#, 400, "invalid_field"),
        ("PATCH", "/manage/tokens/{token}", r#"{"duration_minutes":5}"#, 400, "invalid_field"),
        ("PATCH", "/manage/tokens/{token}", r#"{"request_count":0}"#, 400, "invalid_field"),
        ("PATCH", "/manage/tokens/{none}", "{}", 404, "token_not_found"),
        ("DELETE", "/manage/tokens/{none}", "", 404, "token_not_found"),
        ("DELETE", "/manage/tokens/{token}?dry_run=1", "", 400, "invalid_query"),
        ("DELETE", "/manage/tokens/{token}", "", 204, ""),
        ("DELETE", "/manage/tokens/{token}", "", 204, ""),
        // Content and sinks.
        ("POST", "/manage/content/erase", r#"{"project_id":"{project}"}"#, 200, ""),
        ("POST", "/manage/content/erase", r#"{"project_id":"{none}"}"#, 404, "project_not_found"),
        ("POST", "/manage/content/erase?dry_run=1", r#"{"project_id":"{project}"}"#, 400, "invalid_query"),
        ("POST", "/manage/content/erase", "", 415, "unsupported_body"),
        ("POST", "/manage/content/erase", "{}", 400, "invalid_field"),
        ("POST", "/manage/content/erase", r#"{"project":"{project}"}"#, 400, "invalid_field"),
        (
            "POST",
            "/manage/content/erase",
            r#"{"project_id":null,"before":"2026-11-21T10:00:00Z"}"#,
            400,
            "invalid_field",
        ),
        ("POST", "/manage/content/erase", r#"{"project_id":"{project}","before":null}"#, 400, "invalid_field"),
        ("POST", "/manage/content/erase", r#"{"project_id":"{project}","event_ids":null}"#, 400, "invalid_field"),
        ("POST", "/manage/content/erase", r#"{"before":"yesterday"}"#, 400, "invalid_field"),
        ("POST", "/manage/content/erase", r#"{"before":"2026-11-21"}"#, 400, "invalid_field"),
        ("POST", "/manage/content/erase", r#"{"event_ids":[]}"#, 400, "invalid_field"),
        ("POST", "/manage/content/erase", r#"{"event_ids":["{none}","x"]}"#, 400, "invalid_field"),
        ("GET", "/manage/content/erase", "", 405, "method_not_allowed"),
        ("GET", "/manage/sinks", "", 200, ""),
        ("GET", "/manage/sinks?limit=1", "", 400, "invalid_query"),
        ("POST", "/manage/sinks", "{}", 405, "method_not_allowed"),
    ] {
        let answer = plane.raw(method, &plane.fill(path), &plane.fill(body)).await;
        let row = format!("{method} {path} {body}: {} {}", answer.status, answer.text);
        assert_eq!(answer.status.as_u16(), status, "{row}");
        assert_eq!(answer.code(), code, "{row}");
        if !code.is_empty() {
            assert_eq!(answer.header(header::CONTENT_TYPE), "application/problem+json", "{row}");
            assert_eq!(answer.json()["status"], status, "{row}");
            assert_eq!(answer.json()["type"], "about:blank", "{row}");
            assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{row}");
        }
        assert_eq!(status == 405, answer.headers.contains_key(header::ALLOW), "{row}");
    }
}

#[tokio::test]
async fn a_refusal_names_field_and_place_and_not_the_value() {
    let plane = Plane::new().await;
    for (body, expected) in [
        (r#"{"name":"x","is_active":"sk-live-1"}"#, "`is_active` must be true or false, not a string (line 1, column "),
        (r#"{"name":"x","api_key":"sk-live-1 "}"#, "`api_key` must have 1 to 4096 visible ASCII characters"),
        (r#"{"name":"x","colour":"sk-live-1"}"#, "unknown field `colour`, expected one of `name`"),
        (r#"{"name":"x","provider_keys":[{"api":"sk-live-1","key":"k"}]}"#, "must be one of: openai, anthropic"),
        (r#"{"name":"sk-live-1\n\u0007x"}"#, "`name` must have 1 to 128 printable characters"),
        ("{\n\"name\": sk-live-1}", "the body is not JSON: expected value (line 2, column "),
    ] {
        let answer = plane.raw("POST", "/manage/projects", body).await;
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains(expected), "{body}: {detail}");
        assert!(!answer.text.contains("sk-live-1"), "{body}: {detail}");
    }
}

#[tokio::test]
async fn bodies_are_json_and_of_one_mebibyte_at_most() {
    let plane = Plane::new().await;
    let small = || r#"{"name":"same"}"#.to_owned();
    let padded = |bytes: usize| format!("{}{}", small(), " ".repeat(bytes - small().len()));
    for (content_type, encoding, body, status) in [
        (Some("application/json; charset=utf-8"), None, small(), 200),
        (Some("Application/JSON"), Some("identity"), small(), 200),
        (Some("text/plain"), None, small(), 415),
        (Some("application/jsonp"), None, small(), 415),
        (None, None, small(), 415),
        (Some("application/json"), Some("gzip"), small(), 415),
        (Some("application/json"), None, padded(1024 * 1024), 200),
        (Some("application/json"), None, padded(1024 * 1024 + 1), 413),
    ] {
        for has_length in [true, false] {
            let mut request = Request::patch(format!("/manage/projects/{}", plane.project));
            request = request.header(header::AUTHORIZATION, format!("Bearer {CREDENTIAL}"));
            if let Some(content_type) = content_type {
                request = request.header(header::CONTENT_TYPE, content_type);
            }
            if let Some(encoding) = encoding {
                request = request.header(header::CONTENT_ENCODING, encoding);
            }
            let sent = if has_length {
                Body::from(body.clone())
            } else {
                // A stream announces no length, like a chunked body.
                let piece: Result<String, std::io::Error> = Ok(body.clone());
                Body::from_stream(futures::stream::iter([piece]))
            };
            let answer = plane.answer(request.body(sent).unwrap()).await;
            assert_eq!(answer.status.as_u16(), status, "{content_type:?} {encoding:?} {has_length}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn a_project_shows_everything_but_its_keys() {
    let plane = Plane::new().await;
    let path = format!("/manage/projects/{}", plane.project);
    let created = plane
        .send(
            "POST",
            "/manage/projects",
            &json!({
                "name": "  two keys ",
                "api_key": PROVIDER_KEY,
                "provider_keys": [{ "api": "anthropic", "key": "sk-ant-another-key-0815" }],
            }),
        )
        .await;
    let project = created.json();
    let own_path = format!("/manage/projects/{}", project["id"].as_str().unwrap());
    assert_eq!(created.header(header::LOCATION), own_path);
    assert_eq!(project["name"], "two keys");
    assert_eq!(project["is_active"], true);
    let mut fields: Vec<&String> = project.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["content", "created_at", "id", "is_active", "name", "provider_keys", "updated_at"]);
    let mut keys: Vec<_> = project["provider_keys"].as_array().unwrap().clone();
    keys.sort_by_key(|key| key["api"].to_string());
    assert_eq!((&keys[0]["api"], &keys[0]["last4"]), (&json!("anthropic"), &json!("0815")));
    assert_eq!((&keys[1]["api"], &keys[1]["last4"]), (&json!("openai"), &json!("4711")));
    for time in [&project["created_at"], &project["updated_at"], &keys[0]["updated_at"]] {
        let time = time.as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
    }

    let removed = plane
        .send("PATCH", &own_path, &json!({ "api_key": null, "provider_keys": [{ "api": "anthropic", "key": null }] }))
        .await;
    assert_eq!(removed.json()["provider_keys"], json!([]));
    let switched =
        plane.send("PATCH", &path, &json!({ "is_active": false, "api_key": "sk-new-key-of-the-project" })).await;
    assert_eq!(switched.json()["is_active"], false);
    assert_eq!(switched.json()["provider_keys"][0]["last4"], "ject");

    for answer in [created, removed, switched, plane.get(&path).await, plane.get("/manage/projects").await] {
        for key in [PROVIDER_KEY, "sk-ant-another-key-0815", "sk-new-key-of-the-project"] {
            assert!(!answer.text.contains(key), "{}", answer.text);
        }
    }
}

#[tokio::test]
async fn a_token_is_shown_once_and_its_row_outlives_it() {
    let plane = Plane::new().await;
    let body = json!({
        "project_id": plane.project, "duration_minutes": 60, "max_requests": 10, "requests_per_minute": 5,
        "allowed_models": ["gpt-4o*"],
    });
    let created = plane.send("POST", "/manage/tokens", &body).await;
    let token = created.json();
    let path = format!("/manage/tokens/{}", token["id"].as_str().unwrap());
    let shown_once = token["token"].as_str().unwrap();
    assert_eq!(created.header(header::LOCATION), path);
    assert!(shown_once.starts_with("sk-lp-") && shown_once.len() == 39);
    assert_eq!(token["last_used_at"], Value::Null);
    assert_eq!((&token["max_requests"], &token["request_count"]), (&json!(10), &json!(0)));

    let mut without = token.clone();
    without.as_object_mut().unwrap().remove("token");
    assert_eq!(plane.get(&path).await.json(), without);

    let lifted = plane
        .send("PATCH", &path, &json!({ "max_requests": null, "requests_per_minute": null, "allowed_models": null }))
        .await;
    for field in ["max_requests", "requests_per_minute", "allowed_models"] {
        assert_eq!(lifted.json()[field], Value::Null, "{field}");
    }

    let digest = plane.store.pepper().digest(&llm_proxy_core::token::ProxyToken::parse(shown_once).unwrap());
    assert!(plane.store.holder(&digest).await.unwrap().is_some_and(|holder| holder.token_active));
    assert_eq!(plane.raw("DELETE", &path, "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(plane.get(&path).await.json()["is_active"], false);
    assert!(plane.store.holder(&digest).await.unwrap().is_none_or(|holder| !holder.token_active));

    let list = plane.get("/manage/tokens").await;
    assert!(list.text.contains(token["id"].as_str().unwrap()) && !list.text.contains(shown_once), "{}", list.text);
}

#[tokio::test]
async fn revoking_a_project_s_tokens_counts_those_before_apart() {
    let plane = Plane::new().await;
    for _ in 0..2 {
        plane.send("POST", "/manage/tokens", &json!({ "project_id": plane.project, "duration_minutes": 1 })).await;
    }
    plane.raw("DELETE", &format!("/manage/tokens/{}", plane.token), "").await;
    let path = format!("/manage/projects/{}/tokens/revoke", plane.project);
    for (revoked, before) in [(2, 1), (0, 3)] {
        let answer = plane.raw("POST", &path, "").await;
        let expected = json!({ "revoked_count": revoked, "already_revoked_count": before, "total_tokens": 3 });
        assert_eq!(answer.json(), expected);
    }
}

#[tokio::test]
async fn pages_hold_every_row_once() {
    let plane = Plane::new().await;
    for number in 0..6 {
        plane.send("POST", "/manage/projects", &json!({ "name": format!("p{number}") })).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = plane.get(&format!("/manage/projects?limit=3&cursor={cursor}")).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|project| project["id"].to_string()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen.len(), 7);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 7);
}

#[tokio::test]
async fn readiness_follows_the_process_and_the_store() {
    let plane = Plane::new().await;
    plane.process.is_draining.store(true, Ordering::Relaxed);
    for path in ["/health", "/health/ready"] {
        let answer = plane.get(path).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::SERVICE_UNAVAILABLE, "not_ready".to_owned()));
        assert_eq!(answer.json()["detail"], "draining");
        assert!(!answer.header(header::RETRY_AFTER).is_empty());
    }
    assert_eq!(plane.get("/health/live").await.status, StatusCode::OK);

    plane.process.is_draining.store(false, Ordering::Relaxed);
    plane.store.close().await;
    assert_eq!(plane.get("/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let answer = plane.get("/manage/projects").await;
    assert_eq!((answer.status, answer.code()), (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable".to_owned()));
    assert_eq!(answer.header(header::RETRY_AFTER), "1");
}

#[tokio::test]
async fn counts_are_brought_up_to_date_before_tokens_or_usage_are_read() {
    let plane = Plane::new().await;
    for (read, path) in (1..).zip(["/manage/tokens", &format!("/manage/tokens/{}", plane.token), "/manage/usage"]) {
        plane.get(path).await;
        assert_eq!(plane.process.catch_ups.load(Ordering::Relaxed), read, "{path}");
    }
}
