//! What was asked and answered, as chat messages in OpenAI's form: the one that Lunary shows and searches.
//!
//! Bodies are told apart by their shape, not by the endpoint: providers behind a dialect have paths of their own, and
//! the shapes are distinct. Captured answers have the shape that they would have had without streaming. What OpenAI's
//! form has no word for (images of other dialects, thinking, tools that the provider runs) stays as it is, as a part of
//! a message; what is no chat at all stays as it is altogether.

use serde_json::{Map, Value, json};

/// Settings of a model that are shown beside a run, and the fields that each is read from, the first that is there:
/// at the top of a request, or in Gemini's `generationConfig`.
const PARAMS: [(&str, &[&str]); 25] = [
    ("temperature", &["temperature"]),
    ("max_tokens", &["max_tokens", "max_output_tokens", "maxOutputTokens"]),
    ("max_completion_tokens", &["max_completion_tokens"]),
    ("top_p", &["top_p", "topP"]),
    ("top_k", &["top_k", "topK"]),
    ("stop", &["stop", "stop_sequences", "stopSequences"]),
    ("n", &["n", "candidate_count", "candidateCount"]),
    ("seed", &["seed"]),
    ("frequency_penalty", &["frequency_penalty", "frequencyPenalty"]),
    ("presence_penalty", &["presence_penalty", "presencePenalty"]),
    ("logit_bias", &["logit_bias"]),
    ("logprobs", &["logprobs"]),
    ("top_logprobs", &["top_logprobs"]),
    ("response_format", &["response_format"]),
    ("reasoning_effort", &["reasoning_effort"]),
    ("reasoning", &["reasoning"]),
    ("thinking", &["thinking", "thinking_config", "thinkingConfig"]),
    ("tools", &["tools"]),
    ("tool_choice", &["tool_choice", "tool_config", "toolConfig"]),
    ("parallel_tool_calls", &["parallel_tool_calls"]),
    ("functions", &["functions"]),
    ("function_call", &["function_call"]),
    ("dimensions", &["dimensions"]),
    ("service_tier", &["service_tier"]),
    ("stream", &["stream"]),
];

/// The settings that a request names.
pub(super) fn params(body: &Value) -> Map<String, Value> {
    let nested = either(body, "generationConfig", "generation_config");
    let find = |field: &&str| {
        let found = body.get(field).or_else(|| nested?.get(field))?;
        (!found.is_null()).then(|| found.clone())
    };
    let param = |(name, fields): &(&str, &[&str])| Some(((*name).to_owned(), fields.iter().find_map(find)?));
    PARAMS.iter().filter_map(param).collect()
}

/// What a request asks.
pub(super) fn input(body: &Value) -> Value {
    let mut messages = Vec::new();
    if let Some(contents) = body.get("contents") {
        if let Some(system) = either(body, "systemInstruction", "system_instruction") {
            add_gemini(&mut messages, "system", system);
        }
        match contents {
            Value::Array(contents) => contents.iter().for_each(|content| add_gemini(&mut messages, "user", content)),
            content => add_gemini(&mut messages, "user", content),
        }
    } else if let Some(asked) = body.get("messages") {
        let Value::Array(asked) = asked else { return asked.clone() };
        add(&mut messages, "system", body.get("system"));
        asked.iter().for_each(|message| add_message(&mut messages, message));
    } else if let Some(input) = body.get("input") {
        add(&mut messages, "system", body.get("instructions"));
        match input {
            Value::Array(items) => items.iter().for_each(|item| add_item(&mut messages, item)),
            input => add(&mut messages, "user", Some(input)),
        }
    } else if let Some(prompt) = body.get("prompt") {
        // A list is of prompts, or of tokens.
        if !prompt.is_string() {
            return prompt.clone();
        }
        add(&mut messages, "user", Some(prompt));
    } else {
        return body.clone();
    }
    Value::Array(messages)
}

/// What vectors were asked for: texts, or tokens.
pub(super) fn embedded(body: &Value) -> Value {
    let gemini = |request: &Value| {
        let mut messages = Vec::new();
        add_gemini(&mut messages, "user", request.get("content")?);
        messages.pop()?.get("content").cloned()
    };
    match (body.get("input"), body.get("requests")) {
        (Some(input), _) => input.clone(),
        (None, Some(Value::Array(requests))) => requests.iter().filter_map(gemini).collect(),
        _ => gemini(body).unwrap_or_else(|| body.clone()),
    }
}

/// What was answered: one message, or several where several were asked for. `None` where it is no answer of a model.
pub(super) fn output(body: &Value) -> Option<Value> {
    let list = |field: &str| body.get(field).and_then(Value::as_array);
    let mut messages = Vec::new();
    if let Some(choices) = list("choices") {
        for choice in choices {
            match choice.get("message") {
                Some(message) => messages.push(message.clone()),
                None => add(&mut messages, "assistant", choice.get("text")),
            }
        }
    } else if let Some(candidates) = list("candidates") {
        let contents = candidates.iter().filter_map(|candidate| candidate.get("content"));
        contents.for_each(|content| add_gemini(&mut messages, "assistant", content));
    } else if let Some(items) = list("output") {
        let mut answer = Draft::new("assistant");
        items.iter().for_each(|item| answer.item(item));
        answer.finish(&mut messages);
    } else {
        let content = body.get("content").filter(|content| content.is_array())?;
        add(&mut messages, "assistant", Some(content));
    }
    if messages.len() > 1 { Some(Value::Array(messages)) } else { messages.pop() }
}

/// What a provider says of an error.
pub(super) fn error_message(body: &Value) -> Option<&str> {
    text_at(body.get("error")?, "message")
}

/// A message of OpenAI's chat is one already. One of Anthropic's is, too, unless it has blocks that only these have.
fn add_message(messages: &mut Vec<Value>, message: &Value) {
    let is_block = |part: &Value| matches!(text_at(part, "type"), Some("tool_use" | "tool_result"));
    let content = message.get("content");
    if content.and_then(Value::as_array).is_some_and(|parts| parts.iter().any(is_block)) {
        add(messages, text_at(message, "role").unwrap_or("user"), content);
    } else {
        messages.push(message.clone());
    }
}

/// An item of the Responses API.
fn add_item(messages: &mut Vec<Value>, item: &Value) {
    let is_message = matches!(text_at(item, "type"), None | Some("message")) && item.is_object();
    let role = if is_message { text_at(item, "role") } else { None };
    // A call, and whatever else a model made, was in an earlier answer.
    let of_model = item.is_object() && !is_message;
    let mut draft = Draft::new(role.unwrap_or(if of_model { "assistant" } else { "user" }));
    draft.item(item);
    draft.finish(messages);
}

/// A content of Gemini.
fn add_gemini(messages: &mut Vec<Value>, role: &str, content: &Value) {
    let mut draft = Draft::new(match text_at(content, "role") {
        Some("model") => "assistant",
        Some("user") | None => role,
        Some(other) => other,
    });
    match content.get("parts") {
        Some(Value::Array(parts)) => parts.iter().for_each(|part| draft.gemini_part(part)),
        Some(part) => draft.gemini_part(part),
        None => draft.content(content),
    }
    draft.finish(messages);
}

fn add(messages: &mut Vec<Value>, role: &str, content: Option<&Value>) {
    let mut draft = Draft::new(role);
    draft.content(content.unwrap_or(&Value::Null));
    draft.finish(messages);
}

/// A message in the making.
struct Draft<'a> {
    role: &'a str,
    parts: Vec<Value>,
    calls: Vec<Value>,
    /// Results of calls: messages of their own, before this one.
    results: Vec<Value>,
}

impl<'a> Draft<'a> {
    fn new(role: &'a str) -> Self {
        Self { role, parts: Vec::new(), calls: Vec::new(), results: Vec::new() }
    }

    /// A text, or a list of parts.
    fn content(&mut self, content: &Value) {
        match content {
            Value::Null => {}
            Value::Array(parts) => parts.iter().for_each(|part| self.part(part)),
            part => self.part(part),
        }
    }

    /// A part of OpenAI's chat, of its Responses API, or a block of Anthropic's.
    fn part(&mut self, part: &Value) {
        match (text_at(part, "type"), part.as_str().or(text_at(part, "text"))) {
            (None | Some("text" | "input_text" | "output_text"), Some(text)) => self.text(text),
            (Some("tool_use"), _) => self.call(part.get("id"), part.get("name"), part.get("input")),
            (Some("tool_result"), _) => self.result(part.get("tool_use_id"), part.get("content")),
            _ => self.parts.push(part.clone()),
        }
    }

    fn gemini_part(&mut self, part: &Value) {
        let call = either(part, "functionCall", "function_call");
        let result = either(part, "functionResponse", "function_response");
        // Without ids a result belongs to the call of its function.
        let id = |of: &Value| of.get("id").or(of.get("name")).cloned();
        if let Some(call) = call {
            self.call(id(call).as_ref(), call.get("name"), call.get("args"));
        } else if let Some(result) = result {
            self.result(id(result).as_ref(), result.get("response"));
        } else if part.get("thought").and_then(Value::as_bool) == Some(true) {
            self.parts.push(part.clone());
        } else {
            self.part(part);
        }
    }

    /// An item of the Responses API.
    fn item(&mut self, item: &Value) {
        let call_id = item.get("call_id");
        match text_at(item, "type") {
            None | Some("message") if item.is_object() => self.content(item.get("content").unwrap_or(&Value::Null)),
            Some("function_call") => self.call(call_id, item.get("name"), item.get("arguments")),
            Some("custom_tool_call") => self.call(call_id, item.get("name"), item.get("input")),
            Some("function_call_output" | "custom_tool_call_output") => self.result(call_id, item.get("output")),
            _ => self.part(item),
        }
    }

    fn text(&mut self, text: &str) {
        self.parts.push(json!({"type": "text", "text": text}));
    }

    fn call(&mut self, id: Option<&Value>, name: Option<&Value>, arguments: Option<&Value>) {
        // They are a text, which also keeps their names from being changed.
        let arguments = match arguments {
            Some(Value::String(text)) => text.clone(),
            Some(arguments) => arguments.to_string(),
            None => "{}".to_owned(),
        };
        let function = json!({"name": name, "arguments": arguments});
        self.calls.push(json!({"id": id, "type": "function", "function": function}));
    }

    fn result(&mut self, id: Option<&Value>, content: Option<&Value>) {
        let mut result = Draft::new("tool");
        match content {
            Some(object @ Value::Object(_)) => result.text(&object.to_string()),
            content => result.content(content.unwrap_or(&Value::Null)),
        }
        self.results.push(json!({"role": "tool", "tool_call_id": id, "content": said(result.parts)}));
    }

    /// Adds what was said to `messages`.
    fn finish(self, messages: &mut Vec<Value>) {
        messages.extend(self.results);
        if self.parts.is_empty() && self.calls.is_empty() {
            return;
        }
        let content = if self.parts.is_empty() { Value::Null } else { said(self.parts) };
        let mut message = Map::from_iter([("role".to_owned(), self.role.into()), ("content".to_owned(), content)]);
        if !self.calls.is_empty() {
            message.insert("tool_calls".to_owned(), self.calls.into());
        }
        messages.push(Value::Object(message));
    }
}

/// One text alone is that text.
fn said(parts: Vec<Value>) -> Value {
    match parts.as_slice() {
        [] => "".into(),
        [part] if text_at(part, "type") == Some("text") => part.get("text").cloned().unwrap_or_default(),
        _ => parts.into(),
    }
}

fn text_at<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The field under the first of its two names that is there: Gemini takes both.
fn either<'a>(value: &'a Value, name: &str, other: &str) -> Option<&'a Value> {
    value.get(name).or_else(|| value.get(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, name: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    #[test]
    fn a_question_of_every_dialect_is_a_list_of_messages() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}});
        let blob = json!({"inlineData": {"mimeType": "image/png", "data": "iVBO"}});
        let reasoning = json!({"type": "reasoning", "id": "rs_1", "summary": []});
        for (what, body, expected) in [
            (
                "OpenAI's chat is that form already",
                json!({"messages": [
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/"}}]},
                    {"role": "assistant", "content": null, "tool_calls": [call("c1", "f", "{}")]},
                ]}),
                json!([
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/"}}]},
                    {"role": "assistant", "content": null, "tool_calls": [call("c1", "f", "{}")]},
                ]),
            ),
            (
                "Anthropic's messages",
                json!({"system": [{"type": "text", "text": "be brief", "cache_control": {}}], "messages": [
                    {"role": "user", "content": "weather?"},
                    {"role": "assistant", "content": [
                        {"type": "text", "text": "a moment"},
                        {"type": "tool_use", "id": "tu_1", "name": "weather", "input": {"the_city": "Bonn"}},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "tu_1", "content": [{"type": "text", "text": "rain"}]},
                        {"type": "tool_result", "tool_use_id": "tu_2"},
                        {"type": "text", "text": "and this?"},
                        image,
                    ]},
                ]}),
                json!([
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "weather?"},
                    {
                        "role": "assistant",
                        "content": "a moment",
                        "tool_calls": [call("tu_1", "weather", "{\"the_city\":\"Bonn\"}")],
                    },
                    {"role": "tool", "tool_call_id": "tu_1", "content": "rain"},
                    {"role": "tool", "tool_call_id": "tu_2", "content": ""},
                    {"role": "user", "content": [{"type": "text", "text": "and this?"}, image]},
                ]),
            ),
            (
                "Gemini's contents",
                json!({"systemInstruction": {"parts": [{"text": "be brief"}]}, "contents": [
                    {"role": "user", "parts": [{"text": "what is it?"}, blob]},
                    {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {"at": 1}}}]},
                    {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"is": "a cat"}}}]},
                    {"parts": {"text": "sure?"}},
                ]}),
                json!([
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": [{"type": "text", "text": "what is it?"}, blob]},
                    {"role": "assistant", "content": null, "tool_calls": [call("look", "look", "{\"at\":1}")]},
                    {"role": "tool", "tool_call_id": "look", "content": "{\"is\":\"a cat\"}"},
                    {"role": "user", "content": "sure?"},
                ]),
            ),
            (
                "Responses with a text",
                json!({"instructions": "be brief", "input": "hello"}),
                json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]),
            ),
            (
                "Responses with items",
                json!({"input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
                    reasoning,
                    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "rain"}]},
                ]}),
                json!([
                    {"role": "user", "content": "weather?"},
                    {"role": "assistant", "content": [reasoning]},
                    {"role": "assistant", "content": null, "tool_calls": [call("c1", "weather", "{}")]},
                    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
                    {"role": "assistant", "content": "rain"},
                ]),
            ),
            (
                "a list of texts",
                json!({"input": ["a", "b"]}),
                json!([
                    {"role": "user", "content": "a"},
                    {"role": "user", "content": "b"},
                ]),
            ),
            ("a prompt", json!({"prompt": "once"}), json!([{"role": "user", "content": "once"}])),
            ("tokens", json!({"prompt": [1, 2]}), json!([1, 2])),
            ("no question", json!({"name": "a batch"}), json!({"name": "a batch"})),
        ] {
            assert_eq!(input(&body), expected, "{what}");
        }
    }

    #[test]
    fn an_answer_of_every_dialect_is_a_message_and_of_several_a_list() {
        let search = json!({"type": "web_search_call", "id": "ws_1"});
        let thought = json!({"text": "hm", "thought": true});
        for (what, body, expected) in [
            (
                "chat",
                json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi", "refusal": null}}]}),
                Some(json!({"role": "assistant", "content": "hi", "refusal": null})),
            ),
            (
                "two choices",
                json!({"choices": [{"text": "a"}, {"text": "b"}]}),
                Some(json!([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}])),
            ),
            (
                "Anthropic",
                json!({"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "hi"},
                    {"type": "tool_use", "id": "tu_1", "name": "f", "input": {}},
                ]}),
                Some(json!({
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}],
                    "tool_calls": [call("tu_1", "f", "{}")],
                })),
            ),
            (
                "Gemini",
                json!({"candidates": [{"content": {"role": "model", "parts": [thought, {"text": "hi"}]}}]}),
                Some(json!({"role": "assistant", "content": [thought, {"type": "text", "text": "hi"}]})),
            ),
            (
                "Responses",
                json!({"output": [
                    search,
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]},
                    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\":1}"},
                ]}),
                Some(json!({
                    "role": "assistant",
                    "content": [search, {"type": "text", "text": "hi"}],
                    "tool_calls": [call("c1", "f", "{\"a\":1}")],
                })),
            ),
            ("nothing was said", json!({"choices": []}), None),
            ("an error", json!({"error": {"message": "no such model"}}), None),
        ] {
            assert_eq!(output(&body), expected, "{what}");
        }
        assert_eq!(error_message(&json!({"error": {"message": "no such model"}})), Some("no such model"));
        assert_eq!(error_message(&json!({"error": "no"})), None);
    }

    #[test]
    fn what_vectors_are_asked_for_stays_a_list_of_texts() {
        let part = |text: &str| json!({"content": {"parts": [{"text": text}]}});
        for (body, expected) in [
            (json!({"input": ["a", "b"]}), json!(["a", "b"])),
            (json!({"input": [[1, 2]]}), json!([[1, 2]])),
            (part("a"), json!("a")),
            (json!({"requests": [part("a"), part("b")]}), json!(["a", "b"])),
            (json!({"texts": ["a"]}), json!({"texts": ["a"]})),
        ] {
            assert_eq!(embedded(&body), expected, "{body}");
        }
    }

    #[test]
    fn settings_have_one_name_in_every_dialect() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let openai = json!({
            "model": "m", "messages": [], "temperature": 0.2, "max_tokens": 5, "top_p": null, "stream": true,
            "tools": tools, "user": "ann",
        });
        let gemini = json!({"generationConfig": {"temperature": 0.2, "maxOutputTokens": 5, "stopSequences": ["x"]}});
        for (body, expected) in [
            (openai, json!({"temperature": 0.2, "max_tokens": 5, "stream": true, "tools": tools})),
            (gemini, json!({"temperature": 0.2, "max_tokens": 5, "stop": ["x"]})),
            (json!({"max_output_tokens": 7, "input": "a"}), json!({"max_tokens": 7})),
            (json!({"stop_sequences": ["x"], "thinking": {}}), json!({"stop": ["x"], "thinking": {}})),
            (json!([1]), json!({})),
        ] {
            assert_eq!(Value::Object(params(&body)), expected, "{body}");
        }
    }
}
