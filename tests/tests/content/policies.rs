//! How much is kept is the project's to say, and from the next request on; a client can ask for less.

use llm_proxy_tests::Token;
use serde_json::{Value, json};

use crate::disk::{files, holding};
use crate::{ECHO_KEY, Scene, canary, repeat_json, whole};

/// What may be kept of a prompt, and what may not.
struct Planted {
    words: String,
    mail: String,
    key: String,
}

impl Planted {
    fn new() -> Self {
        Self { words: canary(), mail: format!("{}@example.com", canary()), key: format!("sk-proj-{}", canary()) }
    }

    /// A request with all of it, written as nobody's serializer would.
    fn body(&self) -> String {
        let Self { words, mail, key } = self;
        format!(
            "{{ \"model\": \"gpt-4o-mini\",\r\n  \"temperature\": 1.50e+0, \"seed\": 12345678901234567890.50,\n\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{words}: mail {mail}, key {key}.\"}}] }}\n"
        )
    }
}

#[tokio::test]
async fn each_policy_keeps_what_it_says_and_changes_no_byte_on_the_way() {
    let scene = Scene::new().await;
    let mut all = Vec::new();
    for capture in ["none", "metadata", "redacted", "full"] {
        let (_, token) = scene.keeping(capture, json!({"capture": capture})).await;
        let planted = Planted::new();
        let body = planted.body();
        let ask = repeat_json(&token).with("x-request-id", "mine").with("x-llm-proxy-user-id", "anna");
        let answer = scene.echoed(capture, ask, body.as_bytes()).await;
        let record = scene.world.check_record(capture, &answer, "finished", None).await;
        let told = (&record["client_request_id"], &record["tags"]);
        let expected =
            if capture == "none" { (Value::Null, json!({})) } else { (json!("mine"), json!({"user_id": "anna"})) };
        assert_eq!(told, (&expected.0, &expected.1), "{capture}: {record}");

        let content = &record["content"];
        let line = std::fs::read_to_string(scene.world.product.data_dir().join("events.jsonl")).unwrap();
        let line = line.lines().find(|line| line.contains(&answer.id())).unwrap().to_owned();
        match capture {
            "none" | "metadata" => assert_eq!(*content, Value::Null, "{capture}"),
            "full" => {
                let expected = json!({"policy": "full", "request": whole(&body), "response": whole(&body)});
                assert_eq!(*content, expected);
                for number in ["1.50e+0", "12345678901234567890.50"] {
                    assert_eq!(line.matches(number).count(), 2, "digit for digit: {line}");
                }
            }
            _ => {
                assert_eq!(content["policy"], "redacted");
                for side in ["request", "response"] {
                    let mut kept = content[side].clone();
                    let text = kept["body"]["messages"][0]["content"].take();
                    let text = text.as_str().unwrap_or_else(|| panic!("{side}: {content}"));
                    assert!(text.starts_with(&format!("{}: mail ", planted.words)), "{side}: {text}");
                    assert!(!text.contains(&planted.mail) && !text.contains(&planted.key), "{side}: {text}");
                    let mut expected = whole(&body);
                    expected["body"]["messages"][0]["content"].take();
                    assert_eq!(kept, expected, "{side}: the rest is as it was");
                }
            }
        }
        all.push((capture, token, planted));
    }

    let (files, log) = (files(&scene.world.product.data_dir()), scene.world.product.log());
    for (capture, token, planted) in &all {
        for (what, text, kept_by) in [
            ("the words", &planted.words, &["redacted", "full"][..]),
            ("the address", &planted.mail, &["full"]),
            ("the key", &planted.key, &["full"]),
            ("the token", &token.secret, &[]),
        ] {
            let found = holding(&files, text);
            if kept_by.contains(capture) {
                let is_in = |start: &str| found.iter().any(|name| name.starts_with(start));
                assert!(is_in("events.jsonl") && is_in("journal/"), "{capture}: {what} is only in {found:?}");
            } else {
                assert!(found.is_empty(), "{capture}: {what} is in {found:?}");
            }
            assert!(!log.contains(text), "{capture}: the log has {what}");
        }
    }
    assert_eq!(holding(&files, ECHO_KEY), [""; 0], "the provider's key");
}

#[tokio::test]
async fn a_changed_policy_holds_for_the_next_request() {
    let scene = Scene::new().await;
    let (project, token) = scene.keeping("changing", json!({})).await;
    let path = format!("/manage/projects/{project}");
    let body = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    assert_eq!(scene.kept("at first", repeat_json(&token), body.as_bytes()).await, Value::Null);
    for (change, policy) in [
        (json!({"capture": "full"}), json!("full")),
        (json!({"max_bytes": 2_048}), json!("full")),
        (json!({"capture": "redacted"}), json!("redacted")),
        (json!({"capture": "none"}), Value::Null),
        (json!({"capture": "full"}), json!("full")),
        (json!({"capture": "metadata"}), Value::Null),
    ] {
        let _ = scene.world.admin.patch(&path, &json!({"content": change})).await.expect(200);
        // The one after the next would be too late for somebody's secret.
        let content = scene.kept(&change.to_string(), repeat_json(&token), body.as_bytes()).await;
        assert_eq!(content["policy"], policy, "{change}: {content}");
    }
}

#[tokio::test]
async fn a_client_can_ask_for_less_and_never_for_more() {
    let scene = Scene::new().await;
    let (_, full) = scene.keeping("full", json!({"capture": "full"})).await;
    let (_, metadata) = scene.keeping("metadata", json!({"capture": "metadata"})).await;
    for (fields, keeps_request, keeps_response) in [
        (&[("Helicone-Omit-Request", "true")][..], false, true),
        (&[("x-llm-proxy-omit-response", "true")], true, false),
        (&[("x-llm-proxy-omit-request", "true"), ("helicone-omit-response", "true")], false, false),
        (&[("x-llm-proxy-omit-request", "false"), ("helicone-omit-response", "false")], true, true),
    ] {
        let case = format!("{fields:?}");
        let body = format!(r#"{{"model":"gpt-4o-mini","input":"{}"}}"#, canary());
        let asking = |token: &Token| fields.iter().fold(repeat_json(token), |ask, (name, value)| ask.with(name, value));
        let content = scene.kept(&case, asking(&full), body.as_bytes()).await;
        for (side, keeps) in [("request", keeps_request), ("response", keeps_response)] {
            if keeps {
                assert_eq!(content[side], whole(&body), "{case}, {side}");
            } else {
                assert_eq!((&content[side]["body"], &content[side]["sha256"]), (&Value::Null, &Value::Null), "{case}");
            }
        }
        assert_eq!(scene.kept(&case, asking(&metadata), body.as_bytes()).await, Value::Null, "{case}");
    }
    // Nothing is left of a body that its client has held back from both sides.
    let (word, asking) = (canary(), repeat_json(&full).with("x-llm-proxy-omit-request", "true"));
    let asking = asking.with("x-llm-proxy-omit-response", "true");
    scene.kept("both", asking, format!(r#"{{"input":"{word}"}}"#).as_bytes()).await;
    assert_eq!(holding(&files(&scene.world.product.data_dir()), &word), [""; 0]);
}
