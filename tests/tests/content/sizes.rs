//! What is long is kept in part, and what nobody can read in a log by its checksum.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use serde_json::json;

use crate::disk::{files, holding};
use crate::{Scene, canary, repeat, repeat_json, sha256, whole};

#[tokio::test]
async fn of_a_body_that_is_too_long_a_part_is_kept_on_one_line_of_json() {
    const LEAST: usize = 1_024;
    let scene = Scene::new().await;
    for capture in ["redacted", "full"] {
        let (_, token) = scene.keeping(capture, json!({"capture": capture, "max_bytes": LEAST})).await;
        let chat = |length: usize| {
            let text = "line\\n".repeat(length / 6);
            format!(r#"{{"model":"gpt-4o-mini","messages":[{{"content":"{text}"}},{{"content":"why?"}}]}}"#)
        };
        let rows = format!(r#"{{"model":"gpt-4o-mini","input":{}}}"#, json!(vec!["some words"; 3_000]));
        for (case, content_type, body, is_whole) in [
            ("short", "application/json", chat(600), true),
            ("a little too long", "application/json", chat(1_100), false),
            ("far too long", "application/json", chat(2_000_000), false),
            ("many short strings", "application/json", rows, false),
            ("no JSON", "text/plain", "some words\n".repeat(1_000), false),
        ] {
            let case = format!("{capture}, {case}");
            let content = scene.kept(&case, repeat(&token, content_type), body.as_bytes()).await;
            for side in ["request", "response"] {
                let kept = &content[side];
                let told = (&kept["bytes"], &kept["truncated"]);
                assert_eq!(told, (&json!(body.len()), &json!(!is_whole)), "{case}, {side}: {content}");
                let text = kept["body"].to_string();
                // In a text, what JSON writes as two characters counts as one.
                assert!(text.len() <= 2 * LEAST, "{case}, {side}: {} bytes are kept: {text}", text.len());
                let begins = if content_type == "text/plain" { "some words" } else { "gpt-4o-mini" };
                assert!(text.contains(begins), "{case}, {side}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn two_bodies_of_the_largest_size_cost_no_record() {
    let scene = Scene::new().await;
    let (_, token) = scene.keeping("full", json!({"capture": "full", "max_bytes": 524_288})).await;
    for (case, piece) in [("just fits", "x".repeat(524_000)), ("too long", "é\\\"".repeat(500_000))] {
        let body = format!(r#"{{"model":"gpt-4o-mini","input":"{piece}"}}"#);
        let content = scene.kept(case, repeat_json(&token), body.as_bytes()).await;
        for side in ["request", "response"] {
            let kept = &content[side];
            let is_there = kept["bytes"] == body.len() && kept["omitted"].is_null() && !kept["body"].is_null();
            assert!(is_there, "{case}, {side}: {}", kept.to_string().chars().take(400).collect::<String>());
        }
    }
}

#[tokio::test]
async fn images_and_sound_in_json_are_kept_by_checksum_unless_all_is_kept() {
    let scene = Scene::new().await;
    let (_, redacting) = scene.keeping("redacted", json!({"capture": "redacted"})).await;
    let (_, full) = scene.keeping("full", json!({"capture": "full"})).await;
    for (case, before, after) in [
        (
            "an image by URL",
            r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,"#,
            r#""}}]}]}"#,
        ),
        (
            "sound",
            r#"{"messages":[{"content":[{"type":"input_audio","input_audio":{"format":"wav","data":""#,
            r#""}}]}]}"#,
        ),
        ("Gemini's", r#"{"contents":[{"parts":[{"inlineData":{"mimeType":"image/png","data":""#, r#""}}]}]}"#),
        (
            "Anthropic's",
            r#"{"messages":[{"content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":""#,
            r#""}}]}]}"#,
        ),
    ] {
        for token in [&redacting, &full] {
            let mut octets = vec![0_u8; 750];
            rand::rng().fill(&mut octets[..]);
            let encoded = STANDARD.encode(&octets);
            let body = format!("{before}{encoded}{after}");
            let content = scene.kept(case, repeat_json(token), body.as_bytes()).await;
            for side in ["request", "response"] {
                if token.id == full.id {
                    assert_eq!(content[side], whole(&body), "{case}, {side}");
                    continue;
                }
                let text = content[side]["body"].to_string();
                assert!(text.contains(&sha256(&octets)) && text.contains("750"), "{case}, {side}: {text}");
                assert_eq!(content[side]["truncated"], false, "{case}, {side}");
            }
            let part = &encoded[100..200];
            let found = holding(&files(&scene.world.product.data_dir()), part).len();
            assert_eq!(found > 0, token.id == full.id, "{case}: the image itself is in {found} files");
        }
    }
}

#[tokio::test]
async fn sound_by_itself_is_kept_by_size_and_checksum() {
    let scene = Scene::new().await;
    for capture in ["redacted", "full"] {
        let (_, token) = scene.keeping(capture, json!({"capture": capture})).await;
        let spoken = canary();
        let mut sound = vec![0_u8; 16_384];
        rand::rng().fill(&mut sound[..]);
        sound.extend_from_slice(spoken.as_bytes());
        let part = "Content-Disposition: form-data; name";
        let mut form = format!("--b\r\n{part}=\"model\"\r\n\r\nwhisper-1\r\n").into_bytes();
        let file = format!("--b\r\n{part}=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n");
        form.extend([file.as_bytes(), &sound[..], &b"\r\n--b--\r\n"[..]].concat());
        for (case, content_type, body) in
            [("an upload", "multipart/form-data; boundary=b", &form), ("an answer", "audio/mpeg", &sound)]
        {
            let case = format!("{capture}, {case}");
            let content = scene.kept(&case, repeat(&token, content_type), body).await;
            for side in ["request", "response"] {
                let expected = json!({
                    "content_type": content_type, "bytes": body.len(), "truncated": false, "body": null,
                    "sha256": sha256(body),
                });
                let mut kept = content[side].clone();
                kept.as_object_mut().unwrap_or_else(|| panic!("{case}, {side}: {content}")).remove("omitted");
                assert_eq!(kept, expected, "{case}, {side}");
            }
        }
        let files = files(&scene.world.product.data_dir());
        assert_eq!(holding(&files, &spoken), [""; 0], "{capture}: what was spoken");
    }
}
