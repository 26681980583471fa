//! What clients say of their requests in header fields is in the record; what is said to us alone goes to no provider.

mod common;

use std::collections::BTreeMap;

use common::setup::Setup;
use common::wire::Ask;
use llm_proxy_load::mock::RequestRecord;
use serde_json::{Value, json};

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
/// Bounds of what a record takes.
const MAX_TAGS: usize = 32;
const MAX_NAME_BYTES: usize = 64;
const MAX_VALUE_BYTES: usize = 256;

/// Sends a request with these fields and returns its record, and what the provider saw of it.
async fn tagged(setup: &Setup, ask: Ask, name: &str, fields: &[(&str, &str)]) -> (Value, RequestRecord) {
    let ask = fields.iter().fold(ask.with("x-request-id", name), |ask, (name, value)| ask.with(name, value));
    let answer = setup.wire().await.ask(ask.body(CHAT)).await;
    assert_eq!(answer.head.status, 200, "{name}: {}", answer.text());
    let record = setup.only_record(&answer.head.id()).await;
    assert_eq!(record["outcome"], "finished", "{name}: {record}");
    (record, setup.seen(name).unwrap())
}

/// The lines of a head that say something of its sender's purposes, names in lower case.
fn purposes(seen: &RequestRecord) -> Vec<String> {
    let head = String::from_utf8_lossy(&seen.head).into_owned();
    let lines = head.split("\r\n").map(|line| match line.split_once(':') {
        Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
        None => line.to_owned(),
    });
    lines.filter(|line| line.starts_with("x-llm-proxy") || line.starts_with("helicone")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_both_kinds_are_tags_of_the_record_and_ours_count() {
    let setup = Setup::new().await;
    for (name, fields, expected) in [
        ("nothing", &[][..], json!({})),
        (
            "theirs",
            &[
                ("Helicone-User-Id", "anna"),
                ("Helicone-Session-Id", "s-1"),
                ("Helicone-Session-Name", "Support chat"),
                ("Helicone-Session-Path", "/support/refund"),
                ("Helicone-Prompt-Id", "greeting"),
                ("Helicone-Property-Team", "blue"),
                ("HELICONE-PROPERTY-Cost-Center", "42"),
            ],
            json!({
                "user_id": "anna", "session_id": "s-1", "session_name": "Support chat",
                "session_path": "/support/refund", "prompt_id": "greeting", "team": "blue", "cost-center": "42",
            }),
        ),
        (
            "ours",
            &[
                ("x-llm-proxy-user-id", "bert"),
                ("X-LLM-Proxy-Session-Id", "s-2"),
                ("x-llm-proxy-session-name", "Naïve 会話"),
                ("x-llm-proxy-session-path", "/a/b"),
                ("x-llm-proxy-prompt-id", "p"),
                ("x-llm-proxy-tag-Team", "red"),
            ],
            json!({
                "user_id": "bert", "session_id": "s-2", "session_name": "Naïve 会話", "session_path": "/a/b",
                "prompt_id": "p", "team": "red",
            }),
        ),
        (
            "both",
            &[
                ("helicone-user-id", "theirs"),
                ("x-llm-proxy-user-id", "ours"),
                ("x-llm-proxy-tag-team", "ours"),
                ("helicone-property-team", "theirs"),
                ("helicone-property-stage", "theirs"),
            ],
            json!({"user_id": "ours", "team": "ours", "stage": "theirs"}),
        ),
        (
            "neither",
            &[
                ("helicone-cache-enabled", "true"),
                ("x-llm-proxy-tag-", "x"),
                ("x-user-id", "x"),
                ("helicone-user-id", ""),
            ],
            json!({}),
        ),
    ] {
        let (record, _) = tagged(&setup, setup.chat(), name, fields).await;
        assert_eq!(record["tags"], expected, "{name}");
        assert_eq!(record["client_request_id"], name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_us_reaches_no_provider_and_what_a_gateway_may_want_does() {
    let setup = Setup::new().await;
    let fields = [
        ("x-llm-proxy-user-id", "anna"),
        ("X-LLM-Proxy-Tag-Team", "blue"),
        ("x-llm-proxy-omit-request", "true"),
        ("x-llm-proxy-of-a-later-version", "x"),
        ("Helicone-User-Id", "anna"),
        ("helicone-property-team", "blue"),
        ("Helicone-Auth", "Bearer sk-helicone-canary-1b7d"),
        ("helicone-cache-enabled", "true"),
    ];
    let (_, seen) = tagged(&setup, setup.chat(), "to a provider", &fields).await;
    let expected = ["helicone-user-id: anna", "helicone-property-team: blue", "helicone-cache-enabled: true"];
    assert_eq!(purposes(&seen), expected);
    assert!(!String::from_utf8_lossy(&seen.head).contains("canary"), "the key of another service went to the provider");
    let events = std::fs::read_to_string(setup.data_dir().join("events.jsonl")).unwrap();
    assert!(!events.contains("canary"), "the key of another service is on record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_or_no_text_costs_the_tag_and_never_the_request() {
    let setup = Setup::new().await;
    let names: Vec<String> = (0..2 * MAX_TAGS).map(|number| format!("x-llm-proxy-tag-t{number:02}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    let (record, _) = tagged(&setup, setup.chat(), "many", &many).await;
    let expected: BTreeMap<String, &str> = (0..MAX_TAGS).map(|number| (format!("t{number:02}"), "v")).collect();
    assert_eq!(record["tags"], json!(expected), "the first count");

    let value = "é".repeat(5_000);
    let fits = format!("x-llm-proxy-tag-{}", "n".repeat(MAX_NAME_BYTES));
    let too_long = format!("helicone-property-{}", "m".repeat(MAX_NAME_BYTES + 1));
    let fields = [("helicone-user-id", value.as_str()), (fits.as_str(), "v"), (too_long.as_str(), "v")];
    let (record, seen) = tagged(&setup, setup.chat(), "long", &fields).await;
    let expected = json!({"user_id": "é".repeat(MAX_VALUE_BYTES / 2), "n".repeat(MAX_NAME_BYTES): "v"});
    assert_eq!(record["tags"], expected);
    assert!(String::from_utf8_lossy(&seen.head).contains(&value), "the provider gets its field as it came");

    let mut request = setup.chat().with("x-request-id", "octets").with("x-llm-proxy-tag-good", "v").head();
    request.truncate(request.len() - 2);
    request.extend_from_slice(b"x-llm-proxy-tag-bad: \xff\xfe\r\nhelicone-user-id: a\xe9b\r\n");
    request.extend_from_slice(format!("content-length: {}\r\n\r\n{CHAT}", CHAT.len()).as_bytes());
    let answer = setup.wire().await.ask(request).await;
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    assert_eq!(setup.only_record(&answer.head.id()).await["tags"], json!({"good": "v"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_that_keeps_nothing_keeps_no_tags() {
    let setup = Setup::new().await;
    let project = setup.project("discreet").await;
    let token = setup.token_of(&project, json!({})).await;
    let fields = [("helicone-user-id", "anna"), ("x-llm-proxy-tag-team", "blue")];
    let path = format!("/manage/projects/{project}");
    for (capture, tags) in [
        ("none", json!({})),
        ("metadata", json!({"user_id": "anna", "team": "blue"})),
        ("redacted", json!({"user_id": "anna", "team": "blue"})),
        ("none", json!({})),
    ] {
        let (status, told) = setup.manage("PATCH", &path, json!({"content": {"capture": capture}})).await;
        assert_eq!(status, 200, "{told}");
        let ask = Ask::post("/v1/chat/completions").bearer(&token.text).json_type();
        let name = format!("{capture} at {}", setup.mock.requests().len());
        let (record, seen) = tagged(&setup, ask, &name, &fields).await;
        assert_eq!(record["tags"], tags, "{capture}");
        let name = if capture == "none" { Value::Null } else { json!(name) };
        assert_eq!(record["client_request_id"], name, "{capture}");
        assert_eq!(purposes(&seen), ["helicone-user-id: anna"], "{capture}: whatever is kept");
    }
}
