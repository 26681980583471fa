//! Captured bodies as the conventions write conversations: messages with a role and parts, each part with its type.
//!
//! Every family of bodies is told by its own fields, whatever provider it was for: `messages` and `choices` (chat),
//! `messages` and `content` (Anthropic), `input` and `output` (responses), `contents` and `candidates` (Gemini),
//! `prompt` (completions). Parts that the conventions have no form for stay as the provider writes them, which they
//! allow; so nothing that was captured is lost, and a new kind of part needs no new version of this.

use serde_json::{Map, Value, json};

/// What a model was told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Input {
    /// Instructions that stand apart from the conversation: a list of parts.
    pub instructions: Vec<Value>,
    /// The conversation, oldest message first.
    pub messages: Vec<Value>,
}

/// Reads a request. `None` if it is no conversation.
pub(super) fn input(request: &Value) -> Option<Input> {
    let instructions = ["system", "instructions", "systemInstruction", "system_instruction"];
    let instructions = instructions.into_iter().filter_map(|name| request.get(name));
    let instructions = instructions.flat_map(|told| parts(told.get("parts").unwrap_or(told)));
    let messages = if let Some(Value::Array(messages)) = request.get("messages") {
        messages.iter().map(chat_message).collect()
    } else if let Some(contents) = request.get("contents") {
        let contents = contents.as_array().map_or(std::slice::from_ref(contents), Vec::as_slice);
        contents.iter().map(gemini_message).collect()
    } else if let Some(prompt) = request.get("prompt") {
        vec![message("user", parts(prompt))]
    } else if let Some(asked) = request.get("input") {
        match asked {
            Value::Array(items) if items.iter().all(Value::is_object) => items.iter().map(item_message).collect(),
            Value::String(_) => vec![message("user", parts(asked))],
            // Numbers, or a list of texts: these are embedded, not answered.
            _ => return None,
        }
    } else {
        return None;
    };
    Some(Input { instructions: instructions.collect(), messages })
}

/// Reads an answer: a message for each that the model gave. `finish_reasons` are those of the record, for answers
/// that do not say it themselves. `None` if it is no answer of a model.
pub(super) fn output(answer: &Value, finish_reasons: &[String]) -> Option<Vec<Value>> {
    let list = |name: &str| answer.get(name).and_then(Value::as_array);
    let finished = |place: usize, own: Option<&Value>| {
        let own = own.and_then(Value::as_str).or_else(|| finish_reasons.get(place).map(String::as_str));
        // What the conventions say of an answer that should have told, and did not.
        own.unwrap_or("error").to_owned()
    };
    let messages = if let Some(choices) = list("choices") {
        let choice = |(place, choice): (usize, &Value)| {
            let said = match (choice.get("message"), choice.get("text")) {
                (Some(said), _) => chat_message(said),
                (None, text) => message("assistant", parts(text.unwrap_or(&Value::Null))),
            };
            ended(said, finished(place, choice.get("finish_reason")))
        };
        choices.iter().enumerate().map(choice).collect()
    } else if let Some(candidates) = list("candidates") {
        let candidate = |(place, candidate): (usize, &Value)| {
            let said = gemini_message(candidate.get("content").unwrap_or(&Value::Null));
            let said = with_role(said, "assistant");
            ended(said, finished(place, candidate.get("finishReason")))
        };
        candidates.iter().enumerate().map(candidate).collect()
    } else if let Some(items) = list("output") {
        // All items together are one answer.
        let parts = items.iter().flat_map(item_parts).collect();
        vec![ended(message("assistant", parts), finished(0, None))]
    } else if list("content").is_some() {
        vec![ended(chat_message(answer), finished(0, answer.get("stop_reason")))]
    } else {
        return None;
    };
    Some(messages)
}

fn message(role: &str, parts: Vec<Value>) -> Value {
    json!({"role": role, "parts": parts})
}

fn with_role(mut message: Value, role: &str) -> Value {
    if let Value::Object(fields) = &mut message {
        fields.insert("role".to_owned(), role.into());
    }
    message
}

fn ended(mut message: Value, finish_reason: String) -> Value {
    if let Value::Object(fields) = &mut message {
        fields.insert("finish_reason".to_owned(), finish_reason.into());
    }
    message
}

/// A message of a chat, OpenAI's or Anthropic's.
fn chat_message(told: &Value) -> Value {
    let role = told.get("role").and_then(Value::as_str).unwrap_or("assistant");
    let content = told.get("content").unwrap_or(&Value::Null);
    if role == "tool" {
        return message(role, vec![tool_response(told.get("tool_call_id"), Some(content))]);
    }
    let mut found = Vec::new();
    if let Some(Value::String(thought)) = told.get("reasoning_content") {
        found.push(json!({"type": "reasoning", "content": thought}));
    }
    found.extend(parts(content));
    if let Some(Value::Array(calls)) = told.get("tool_calls") {
        let call = |call: &Value| {
            let (name, arguments) = (call.pointer("/function/name"), call.pointer("/function/arguments"));
            tool_call(call.get("id"), name, arguments).unwrap_or_else(|| as_it_is(call))
        };
        found.extend(calls.iter().map(call));
    }
    message(role, found)
}

fn gemini_message(told: &Value) -> Value {
    let role = match told.get("role").and_then(Value::as_str) {
        Some("model") => "assistant",
        role => role.unwrap_or("user"),
    };
    message(role, parts(told.get("parts").unwrap_or(told)))
}

/// An item of a conversation in the Responses API.
fn item_message(item: &Value) -> Value {
    let kind = item.get("type").and_then(Value::as_str);
    let role = match (item.get("role").and_then(Value::as_str), kind) {
        (Some(role), _) => role,
        (None, Some("function_call_output")) => "tool",
        (None, _) => "assistant",
    };
    message(role, item_parts(item))
}

fn item_parts(item: &Value) -> Vec<Value> {
    match item.get("type").and_then(Value::as_str) {
        None | Some("message") => parts(item.get("content").unwrap_or(&Value::Null)),
        Some("function_call") => {
            let call = tool_call(item.get("call_id"), item.get("name"), item.get("arguments"));
            vec![call.unwrap_or_else(|| as_it_is(item))]
        }
        Some("function_call_output") => vec![tool_response(item.get("call_id"), item.get("output"))],
        Some("reasoning") => {
            let thoughts = item.get("summary").and_then(Value::as_array).into_iter().flatten();
            let thoughts = thoughts.filter_map(|thought| thought.get("text").and_then(Value::as_str));
            thoughts.map(|thought| json!({"type": "reasoning", "content": thought})).collect()
        }
        Some(_) => vec![as_it_is(item)],
    }
}

/// The parts of a message: a text, one part, or a list of both.
fn parts(content: &Value) -> Vec<Value> {
    match content {
        Value::Null => Vec::new(),
        Value::Array(blocks) => blocks.iter().map(part).collect(),
        block => vec![part(block)],
    }
}

fn part(block: &Value) -> Value {
    let text = |name: &str| block.get(name).and_then(Value::as_str);
    let known = match text("type") {
        Some("text" | "input_text" | "output_text") => text("text").map(text_part),
        Some("thinking") => text("thinking").map(|thought| json!({"type": "reasoning", "content": thought})),
        Some("tool_use") => tool_call(block.get("id"), block.get("name"), block.get("input")),
        Some("tool_result") => Some(tool_response(block.get("tool_use_id"), block.get("content"))),
        Some(_) => None,
        None => gemini_part(block),
    };
    known.unwrap_or_else(|| as_it_is(block))
}

/// A part without a type.
fn gemini_part(block: &Value) -> Option<Value> {
    if let Some(text) = block.as_str().or_else(|| block.get("text")?.as_str()) {
        let is_thought = block.get("thought").and_then(Value::as_bool).unwrap_or(false);
        return Some(if is_thought { json!({"type": "reasoning", "content": text}) } else { text_part(text) });
    }
    if let Some(call) = block.get("functionCall") {
        return tool_call(call.get("id"), call.get("name"), call.get("args"));
    }
    let response = block.get("functionResponse")?;
    Some(tool_response(response.get("id").or_else(|| response.get("name")), response.get("response")))
}

fn text_part(text: &str) -> Value {
    json!({"type": "text", "content": text})
}

/// `None` for a call without a name, which the conventions do not know.
fn tool_call(id: Option<&Value>, name: Option<&Value>, arguments: Option<&Value>) -> Option<Value> {
    let mut part = Map::<String, Value>::from_iter([("type".to_owned(), "tool_call".into())]);
    if let Some(id) = id {
        part.insert("id".to_owned(), id.clone());
    }
    part.insert("name".to_owned(), name?.as_str()?.into());
    // Some write arguments as JSON in a text.
    let parsed = arguments.and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
    if let Some(arguments) = parsed.or_else(|| arguments.cloned()) {
        part.insert("arguments".to_owned(), arguments);
    }
    Some(Value::Object(part))
}

fn tool_response(id: Option<&Value>, response: Option<&Value>) -> Value {
    let mut part = Map::<String, Value>::from_iter([("type".to_owned(), "tool_call_response".into())]);
    if let Some(id) = id {
        part.insert("id".to_owned(), id.clone());
    }
    part.insert("response".to_owned(), response.cloned().unwrap_or_default());
    Value::Object(part)
}

/// A part as its provider writes it, under a type in any case.
fn as_it_is(block: &Value) -> Value {
    match block {
        Value::Object(fields) if fields.get("type").is_some_and(Value::is_string) => block.clone(),
        Value::Object(fields) => {
            let kind = fields.keys().find(|key| *key != "type").map_or("unknown", String::as_str);
            let mut fields = fields.clone();
            fields.insert("type".to_owned(), kind.into());
            Value::Object(fields)
        }
        block => json!({"type": "unknown", "content": block}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Value {
        json!([{"type": "text", "content": text}])
    }

    #[test]
    fn a_conversation_has_one_form_whoever_it_is_held_with() {
        let call = json!({"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"in": "Rome"}});
        let response = json!({"type": "tool_call_response", "id": "c1", "response": "rain"});
        let talk = json!([
            {"role": "user", "parts": said("hi")},
            {"role": "assistant", "parts": [{"type": "text", "content": "let me see"}, call]},
            {"role": "tool", "parts": [response]},
        ]);
        for (name, request, instructions, messages) in [
            (
                "OpenAI, chat: system messages are part of the talk",
                json!({"messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "let me see", "tool_calls": [{
                        "id": "c1", "type": "function",
                        "function": {"name": "weather", "arguments": "{\"in\":\"Rome\"}"},
                    }]},
                    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
                ]}),
                json!([]),
                json!([{"role": "system", "parts": said("be brief")}, talk[0], talk[1], talk[2]]),
            ),
            (
                "OpenAI, responses",
                json!({"instructions": "be brief", "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"in\":\"Rome\"}"},
                    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                ]}),
                said("be brief"),
                json!([talk[0], {"role": "assistant", "parts": [call]}, talk[2]]),
            ),
            ("a text alone", json!({"input": "hi"}), json!([]), json!([talk[0]])),
            ("completions", json!({"prompt": "hi"}), json!([]), json!([talk[0]])),
            (
                "Anthropic",
                json!({"system": [{"type": "text", "text": "be brief"}], "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": [
                        {"type": "text", "text": "let me see"},
                        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"in": "Rome"}},
                    ]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]},
                ]}),
                said("be brief"),
                json!([talk[0], talk[1], {"role": "user", "parts": [response]}]),
            ),
            (
                "Gemini",
                json!({"systemInstruction": {"parts": [{"text": "be brief"}]}, "contents": [
                    {"role": "user", "parts": [{"text": "hi"}]},
                    {"role": "model", "parts": [
                        {"text": "let me see"},
                        {"functionCall": {"id": "c1", "name": "weather", "args": {"in": "Rome"}}},
                    ]},
                    {"role": "user", "parts": [{"functionResponse": {"id": "c1", "response": "rain"}}]},
                ]}),
                said("be brief"),
                json!([talk[0], talk[1], {"role": "user", "parts": [response]}]),
            ),
        ] {
            let input = input(&request).unwrap();
            assert_eq!(Value::Array(input.instructions), instructions, "{name}");
            assert_eq!(Value::Array(input.messages), messages, "{name}");
        }
    }

    #[test]
    fn an_answer_is_a_message_for_each_choice_with_the_reason_that_it_ended_for() {
        let answer = |reason: &str| json!([{"role": "assistant", "parts": said("hi"), "finish_reason": reason}]);
        for (name, body, expected) in [
            (
                "chat",
                json!({"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}),
                answer("stop"),
            ),
            ("completions", json!({"choices": [{"text": "hi", "finish_reason": "length"}]}), answer("length")),
            (
                "Anthropic",
                json!({"role": "assistant", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}),
                answer("end_turn"),
            ),
            (
                "Gemini",
                json!({"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}]}),
                answer("STOP"),
            ),
            (
                "responses, which tell it in the record",
                json!({"output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]},
                ]}),
                answer("of the record"),
            ),
        ] {
            let messages = output(&body, &["of the record".to_owned()]).unwrap();
            assert_eq!(Value::Array(messages), expected, "{name}");
        }
        let cut = json!({"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": null}]});
        assert_eq!(Value::Array(output(&cut, &[]).unwrap()), answer("error"));
    }

    #[test]
    fn thoughts_are_reasoning() {
        let reasoning = json!([{"type": "reasoning", "content": "hm"}]);
        for body in [
            json!({"choices": [{"message": {"reasoning_content": "hm", "content": null}}]}),
            json!({"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]}),
            json!({"candidates": [{"content": {"parts": [{"text": "hm", "thought": true}]}}]}),
            json!({"output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}]}),
        ] {
            assert_eq!(output(&body, &[]).unwrap()[0]["parts"], reasoning, "{body}");
        }
    }

    #[test]
    fn what_the_conventions_do_not_know_stays_as_it_is_under_a_type() {
        let image = json!({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}});
        for (block, expected) in [
            (image.clone(), image),
            (json!({"inlineData": {"data": "AA=="}}), json!({"inlineData": {"data": "AA=="}, "type": "inlineData"})),
            (json!({"type": "text", "text": 1}), json!({"type": "text", "text": 1})),
            (json!({"type": 7, "a": 8}), json!({"type": "a", "a": 8})),
            (json!({}), json!({"type": "unknown"})),
            (json!(7), json!({"type": "unknown", "content": 7})),
            (json!({"functionCall": {}}), json!({"functionCall": {}, "type": "functionCall"})),
        ] {
            assert_eq!(part(&block), expected, "{block}");
        }
    }

    #[test]
    fn what_is_no_conversation_is_none() {
        for request in [
            json!({"input": ["a", "b"]}),
            json!({"input": [1, 2]}),
            json!({"messages": "hi"}),
            json!({}),
            json!([]),
            json!(null),
        ] {
            assert_eq!(input(&request), None, "{request}");
        }
        for answer in [json!({"data": []}), json!({"error": {"message": "no"}}), json!({"content": "x"}), json!([])] {
            assert_eq!(output(&answer, &[]), None, "{answer}");
        }
    }
}
