//! The recorded answers: what is put together, against what another reading of the same events finds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::*;

#[derive(Deserialize)]
struct Manifest {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    file: String,
    kind: String,
    content_type: String,
}

struct Recording {
    listed: Listed,
    body: Vec<u8>,
}

static RECORDINGS: LazyLock<Vec<Recording>> = LazyLock::new(|| {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/provider"));
    let manifest = std::fs::read(dir.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    let read = |listed: Listed| Recording { body: std::fs::read(dir.join(&listed.file)).unwrap(), listed };
    manifest.files.into_iter().map(read).collect()
});

/// The recordings of these kinds; there are some.
fn of_kinds(kinds: &[&str]) -> Vec<&'static Recording> {
    let found: Vec<_> = RECORDINGS.iter().filter(|recording| kinds.contains(&&*recording.listed.kind)).collect();
    assert!(!found.is_empty(), "{kinds:?}");
    found
}

impl Recording {
    fn kept_as(&self, policy: Policy, body: &[u8]) -> Body {
        let capture = Capture::new(policy, 512 * 1024).unwrap();
        let mut keeper = capture.keeper();
        body.chunks(1000).for_each(|piece| keeper.push(piece));
        response_body(capture, Some(&self.listed.content_type), None, &keeper).unwrap()
    }

    /// The whole answer as it is kept under `full`, and whether it says that it is whole.
    fn answer(&self) -> (Value, bool) {
        let body = self.kept_as(Policy::Full, &self.body);
        (serde_json::from_slice(&body.json.unwrap()).unwrap(), !body.truncated)
    }

    /// The events that have JSON, read by a reader that knows no more of streams than that.
    fn events(&self) -> Vec<Value> {
        let lines = std::str::from_utf8(&self.body).unwrap().lines();
        let data = lines.filter_map(|line| line.strip_prefix("data:")).filter(|data| data.trim() != "[DONE]");
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn items<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value[name].as_array().into_iter().flatten()
}

fn joined<'v>(texts: impl Iterator<Item = &'v Value>) -> String {
    texts.filter_map(Value::as_str).collect()
}

fn last(values: impl Iterator<Item = Value>) -> Value {
    values.filter(|value| !value.is_null()).last().unwrap_or_default()
}

#[test]
fn chat_completions_say_what_their_chunks_said() {
    for recording in of_kinds(&["openai.chat.stream", "azure.chat.stream", "openai.completions.stream"]) {
        let file = &*recording.listed.file;
        let (answer, is_whole) = recording.answer();
        let events = recording.events();
        assert_eq!(is_whole, file != "groq-chat-stream-error-event.sse", "{file}");
        let object = if recording.listed.kind.contains("chat") { "chat.completion" } else { "text_completion" };
        assert_eq!(answer["object"], object, "{file}");
        for name in ["id", "model", "usage", "error"] {
            assert_eq!(answer[name], last(events.iter().map(|event| event[name].clone())), "{file}: {name}");
        }

        let choices = || events.iter().flat_map(|event| items(event, "choices"));
        let count = choices().filter_map(|choice| choice["index"].as_u64()).max().unwrap() + 1;
        assert_eq!(items(&answer, "choices").count() as u64, count, "{file}");
        for choice in items(&answer, "choices") {
            let index = &choice["index"];
            let of_it = || choices().filter(move |chunk| &chunk["index"] == index);
            assert_eq!(choice["finish_reason"], last(of_it().map(|chunk| chunk["finish_reason"].clone())), "{file}");
            assert_eq!(
                choice["text"].as_str().unwrap_or_default(),
                joined(of_it().map(|chunk| &chunk["text"])),
                "{file}"
            );
            for name in ["content", "reasoning", "reasoning_content"] {
                let expected = joined(of_it().map(|chunk| &chunk["delta"][name]));
                assert_eq!(choice["message"][name].as_str().unwrap_or_default(), expected, "{file}: {name}");
            }
            let mut calls: BTreeMap<u64, (String, String)> = BTreeMap::new();
            for call in of_it().flat_map(|chunk| items(&chunk["delta"], "tool_calls")) {
                let (name, arguments) = calls.entry(call["index"].as_u64().unwrap()).or_default();
                name.push_str(call["function"]["name"].as_str().unwrap_or_default());
                arguments.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
            }
            let found = items(&choice["message"], "tool_calls").map(|call| {
                let text = |name: &str| call["function"][name].as_str().unwrap().to_owned();
                (text("name"), text("arguments"))
            });
            assert_eq!(found.collect::<Vec<_>>(), calls.into_values().collect::<Vec<_>>(), "{file}");
        }
    }
}

#[test]
fn responses_are_those_of_their_last_event_or_of_their_deltas() {
    for recording in of_kinds(&["openai.responses.stream"]) {
        let file = &*recording.listed.file;
        let events = recording.events();
        let (answer, is_whole) = recording.answer();
        assert!(is_whole, "{file}");
        let expected = &events.last().unwrap()["response"];
        assert_eq!(&answer, expected, "{file}");

        // Without the last event, and without those that repeat what the deltas said.
        let repeats =
            ["response.completed", "response.failed", "response.output_item.done", "response.content_part.done"];
        let text = std::str::from_utf8(&recording.body).unwrap();
        let is_repeat = |line: &str| repeats.iter().any(|kind| line.contains(&format!("\"type\":\"{kind}\"")));
        let cut: String = text.lines().filter(|line| !is_repeat(line)).flat_map(|line| [line, "\n"]).collect();
        let body = recording.kept_as(Policy::Full, cut.as_bytes());
        let answer: Value = serde_json::from_slice(&body.json.unwrap()).unwrap();
        assert_eq!((&answer["status"], body.truncated), (&Value::from("incomplete"), true), "{file}");
        assert_eq!(answer["id"], expected["id"], "{file}");
        let said = |answer: &Value| -> String {
            items(answer, "output")
                .map(|item| {
                    let parts = || items(item, "content").chain(items(item, "summary"));
                    format!("{}{};", joined(parts().map(|part| &part["text"])), item["arguments"])
                })
                .collect()
        };
        assert_eq!(said(&answer), said(expected), "{file}");
    }
}

#[test]
fn messages_say_what_their_deltas_said() {
    for recording in of_kinds(&["anthropic.messages.stream"]) {
        let file = &*recording.listed.file;
        let events = recording.events();
        let (answer, is_whole) = recording.answer();
        assert!(is_whole, "{file}");
        let of_type = |kind: &'static str| events.iter().filter(move |event| event["type"] == kind);
        let start = &of_type("message_start").next().unwrap()["message"];
        let end = of_type("message_delta").next().unwrap();
        assert_eq!((&answer["id"], &answer["model"]), (&start["id"], &start["model"]), "{file}");
        assert_eq!(answer["stop_reason"], end["delta"]["stop_reason"], "{file}");
        assert_eq!(answer["usage"]["output_tokens"], end["usage"]["output_tokens"], "{file}");
        assert_eq!(items(&answer, "content").count(), of_type("content_block_start").count(), "{file}");
        for (index, block) in items(&answer, "content").enumerate() {
            let said = |name: &'static str| {
                let deltas = of_type("content_block_delta").filter(|event| event["index"] == index);
                joined(deltas.map(|event| &event["delta"][name]))
            };
            let begun = of_type("content_block_start").find(|event| event["index"] == index).unwrap();
            for name in ["text", "thinking", "signature"] {
                let begin = begun["content_block"][name].as_str().unwrap_or_default();
                assert_eq!(
                    block[name].as_str().unwrap_or_default(),
                    format!("{begin}{}", said(name)),
                    "{file}: {name}"
                );
            }
            if !said("partial_json").is_empty() {
                let input: Value = serde_json::from_str(&said("partial_json")).unwrap();
                assert_eq!(block["input"], input, "{file}");
            }
        }
    }
}

#[test]
fn generated_content_says_what_its_chunks_said() {
    for recording in of_kinds(&["gemini.generate.stream"]) {
        let file = &*recording.listed.file;
        let events = recording.events();
        let (answer, is_whole) = recording.answer();
        assert!(is_whole, "{file}");
        assert_eq!(answer["usageMetadata"], events.last().unwrap()["usageMetadata"], "{file}");
        let text = |answers: &[Value], thought: bool| -> String {
            let candidates = answers.iter().flat_map(|answer| items(answer, "candidates"));
            let parts = candidates.flat_map(|candidate| items(&candidate["content"], "parts"));
            joined(
                parts.filter(|part| part["thought"].as_bool().unwrap_or_default() == thought).map(|part| &part["text"]),
            )
        };
        for thought in [false, true] {
            assert_eq!(text(std::slice::from_ref(&answer), thought), text(&events, thought), "{file}");
        }
        let reasons = events.iter().map(|event| event["candidates"][0]["finishReason"].clone());
        assert_eq!(answer["candidates"][0]["finishReason"], last(reasons), "{file}");
    }
}

#[test]
fn answers_in_one_piece_stay_what_they_are() {
    let mut seen = 0;
    for recording in RECORDINGS.iter().filter(|recording| recording.listed.file.ends_with(".json")) {
        let (answer, is_whole) = recording.answer();
        assert_eq!(answer, serde_json::from_slice::<Value>(&recording.body).unwrap(), "{}", recording.listed.file);
        assert!(is_whole, "{}", recording.listed.file);
        seen += 1;
    }
    assert!(seen >= 20, "{seen}");
}

#[test]
fn redacted_answers_are_json_and_redacting_them_again_changes_nothing() {
    for recording in &*RECORDINGS {
        let is_text = recording.listed.file.ends_with(".json") || recording.listed.file.ends_with(".sse");
        if !is_text || recording.listed.kind.starts_with("cohere") {
            continue;
        }
        let file = &*recording.listed.file;
        let once = recording.kept_as(Policy::Redacted, &recording.body).json.unwrap();
        let mut answer: Value = serde_json::from_slice(&once).unwrap();
        let capture = Capture::new(Policy::Redacted, 512 * 1024).unwrap();
        let mut keeper = capture.keeper();
        keeper.push(&once);
        let twice = request_body(capture, Some("application/json"), None, &keeper).unwrap();
        assert!(twice.json.unwrap() == once, "{file}");
        for name in ["id", "model", "object", "usage", "usageMetadata", "modelVersion"] {
            assert_eq!(answer[name].take(), recording.answer().0[name], "{file}: {name}");
        }
    }
}
