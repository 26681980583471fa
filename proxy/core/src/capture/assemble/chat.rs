//! Chat completions and completions, as OpenAI made them and many speak them.

use std::collections::BTreeMap;

use super::super::json::{MAX_LOOKED_THROUGH, Node, Object};
use super::Assembled;

/// The answer so far.
#[derive(Default)]
pub(super) struct Chat<'e> {
    /// Everything but the choices.
    answer: Object<'e>,
    choices: BTreeMap<u64, Choice<'e>>,
}

#[derive(Default)]
struct Choice<'e> {
    choice: Object<'e>,
    /// Absent in completions, which have `text`.
    message: Option<Object<'e>>,
}

impl<'e> Chat<'e> {
    /// An error can be the first that a stream says; Anthropic's has a type.
    pub(super) fn is_it(event: &Object<'_>) -> bool {
        event.get("choices").is_some() || event.has("error") && event.get("type").is_none()
    }

    pub(super) fn take(&mut self, chunk: Object<'e>) {
        for (name, value) in chunk.members {
            match (&*name, value) {
                ("choices", Node::List(choices)) => {
                    self.answer.settle(name, Node::NULL); // its place among the others
                    for choice in choices.into_iter().filter_map(Node::into_object) {
                        let index = choice.number("index").unwrap_or_default();
                        self.choices.entry(index).or_default().take(choice);
                    }
                }
                ("object", Node::Text(object)) => {
                    // What the chunks are chunks of.
                    let object = object.strip_suffix(".chunk").map_or(object.clone(), |whole| whole.to_owned().into());
                    self.answer.settle(name, Node::Text(object));
                }
                ("obfuscation" | "p", Node::Text(_)) => {} // padding against those who watch lengths
                (_, value) => self.answer.settle(name, value),
            }
        }
    }

    pub(super) fn finish(mut self, is_done: bool) -> Assembled<'e> {
        let is_finished = |choice: &Choice<'_>| choice.choice.has("finish_reason");
        let is_whole = is_done || !self.choices.is_empty() && self.choices.values().all(is_finished);
        if self.answer.get("choices").is_some() {
            let choices = self.choices.into_values().map(Choice::finish).collect();
            self.answer.put("choices", Node::List(choices));
        }
        Assembled { answer: Node::Object(self.answer), is_whole }
    }
}

impl<'e> Choice<'e> {
    fn take(&mut self, choice: Object<'e>) {
        for (name, value) in choice.members {
            match (&*name, value) {
                ("delta", Node::Object(delta)) => {
                    self.choice.settle("message", Node::NULL); // its place among the others
                    merge(self.message.get_or_insert_default(), delta);
                }
                // Some repeat the whole at the end.
                ("message", Node::Object(message)) => {
                    self.choice.settle("message", Node::NULL);
                    self.message = Some(message);
                }
                ("text", Node::Text(text)) => self.choice.append(name, text),
                ("logprobs", Node::Object(logprobs)) => match self.choice.get_mut("logprobs") {
                    Some(Node::Object(all)) => merge(all, logprobs),
                    _ => self.choice.put(name, Node::Object(logprobs)),
                },
                (_, value) => self.choice.settle(name, value),
            }
        }
    }

    fn finish(mut self) -> Node<'e> {
        if let Some(mut message) = self.message {
            if message.get("role").is_none() {
                message.members.insert(0, ("role".into(), Node::Text("assistant".into())));
            }
            message.settle("content", Node::NULL);
            if let Some(Node::List(calls)) = message.get_mut("tool_calls") {
                for call in calls {
                    if let Node::Object(call) = call {
                        call.take("index"); // only chunks have it
                    }
                }
            }
            self.choice.put("message", Node::Object(message));
        }
        Node::Object(self.choice)
    }
}

/// Adds a delta: texts are joined, objects merged, items of lists merged with those of the same `index` or added.
fn merge<'e>(whole: &mut Object<'e>, delta: Object<'e>) {
    for (name, value) in delta.members {
        match (whole.get_mut(&name), value) {
            (Some(Node::Object(old)), Node::Object(new)) => merge(old, new),
            (Some(Node::List(old)), Node::List(new)) => new.into_iter().for_each(|item| merge_item(old, item)),
            // Some think in parts and then answer in plain text.
            (Some(Node::List(old)), Node::Text(new)) if name == "content" && !new.is_empty() => {
                let members = vec![("type".into(), Node::Text("text".into())), ("text".into(), Node::Text(new))];
                merge_item(old, Node::Object(Object { members }));
            }
            (Some(Node::Text(old)), Node::Text(new)) if is_joined(&name, old, &new) => old.to_mut().push_str(&new),
            (_, value) => whole.settle(name, value),
        }
    }
}

fn merge_item<'e>(list: &mut Vec<Node<'e>>, item: Node<'e>) {
    let index = index_of(&item);
    let same = match index {
        Some(_) => list.iter_mut().take(MAX_LOOKED_THROUGH).find(|old| index_of(old) == index),
        None => list.last_mut().filter(|last| goes_on(last, &item)),
    };
    match (same, item) {
        (Some(Node::Object(old)), Node::Object(new)) => merge(old, new),
        (_, item) => list.push(item),
    }
}

/// The item's index. It is one of the first members: to look through all of them, of each item for each item, would take
/// minutes for a stream made for it.
fn index_of(item: &Node<'_>) -> Option<u64> {
    const AMONG: usize = 8;
    let (_, index) = item.as_object()?.members.iter().take(AMONG).find(|(name, _)| name == "index")?;
    match index {
        Node::Bare(word) => word.parse().ok(),
        _ => None,
    }
}

/// Whether an item without an index goes on with the last one: a part of what is said, or thought.
fn goes_on(last: &Node<'_>, item: &Node<'_>) -> bool {
    let kind_of = |item: &Node<'_>| match item.as_object().and_then(|item| item.text("type")) {
        Some("text") => 1,
        Some("thinking") => 2,
        _ => 0,
    };
    kind_of(item) > 0 && kind_of(item) == kind_of(last)
}

/// Whether a string of a delta goes on with what is there. What names something comes whole, and with some providers in
/// every chunk; of a name that we do not know, saying the same again is taken for that.
fn is_joined(name: &str, old: &str, new: &str) -> bool {
    match name {
        "id" | "type" | "role" | "object" | "model" | "format" | "status" => false,
        // One object after another would be no JSON, so the same again is a repetition.
        "arguments" => old != new || !(new.starts_with('{') && new.ends_with('}')),
        "content" | "refusal" | "reasoning_content" | "reasoning" | "thinking" | "text" | "summary" | "transcript"
        | "data" => true,
        _ => old != new,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assembled;

    #[test]
    fn choices_are_put_together_by_their_index() {
        let chunks = [
            r#"{"id":"","object":"","model":"","choices":[],"prompt_filter_results":[1]}"#,
            r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":1,"delta":{"role":"assistant","content":"B"},"finish_reason":null}],"usage":null,"obfuscation":"xx"}"#,
            r#"{"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":"A","refusal":null},"logprobs":{"content":[{"token":"A"}]},"finish_reason":null}]}"#,
            r#"{"id":"c1","choices":[{"index":0,"delta":{"content":"a\n"},"logprobs":{"content":[{"token":"a"}]},"finish_reason":"stop"},{"index":1,"delta":{},"finish_reason":"length"}]}"#,
            r#"{"id":"c1","choices":[],"usage":{"total_tokens":3}}"#,
        ];
        let expected = r#"{"id":"c1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Aa\n","refusal":null},"logprobs":{"content":[{"token":"A"},{"token":"a"}]},"finish_reason":"stop"},{"index":1,"message":{"role":"assistant","content":"B"},"finish_reason":"length"}],"prompt_filter_results":[1],"created":1,"usage":{"total_tokens":3}}"#;
        assert_eq!(assembled(&chunks), Some((expected.to_owned(), true)));
        let cut = assembled(&chunks[..3]).unwrap();
        assert!(!cut.1 && cut.0.contains(r#""content":"A""#), "{cut:?}");
        let done: Vec<_> = chunks[..3].iter().copied().chain(["[DONE]"]).collect();
        assert!(assembled(&done).unwrap().1);
    }

    #[test]
    fn calls_reasoning_and_sound_are_joined() {
        let chunks = [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"Hm"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"reasoning_content":", so","audio":{"id":"au","transcript":"he","data":"QQ=="}}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t0","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"","type":"function","function":{"name":"f","arguments":"{\"a\":"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"audio":{"transcript":"llo"},"tool_calls":[{"index":1,"id":"t1","function":{"name":"g","arguments":"{}"}},{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        ];
        let expected = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":null,"reasoning_content":"Hm, so","audio":{"id":"au","transcript":"hello","data":"QQ=="},"tool_calls":[{"id":"t0","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"t1","function":{"name":"g","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#;
        assert_eq!(assembled(&chunks), Some((expected.to_owned(), true)));
    }

    #[test]
    fn parts_without_an_index_go_on_with_the_last_one_of_their_kind() {
        let chunks = [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"an"}]}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"na@b.c"}]}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":[{"type":"text","text":"om"},{"type":"reference","ids":[1]}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"He"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"llo"},"finish_reason":"stop"}]}"#,
        ];
        let expected = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":[{"type":"thinking","thinking":[{"type":"text","text":"anna@b.c"}]},{"type":"text","text":"om"},{"type":"reference","ids":[1]},{"type":"text","text":"Hello"}]},"finish_reason":"stop"}]}"#;
        assert_eq!(assembled(&chunks), Some((expected.to_owned(), true)));
    }

    #[test]
    fn what_chunks_repeat_is_said_once() {
        let chunks = [
            r#"{"choices":[{"delta":{"content":"ha","channel":"final","name":"n","x":"1"}}],"p":"abc"}"#,
            r#"{"choices":[{"delta":{"content":"ha","channel":"final","name":"n","x":"2"}}],"p":"ab"}"#,
        ];
        let expected =
            r#"{"choices":[{"message":{"role":"assistant","content":"haha","channel":"final","name":"n","x":"12"}}]}"#;
        assert_eq!(assembled(&chunks), Some((expected.to_owned(), false)));
    }

    #[test]
    fn completions_have_text_instead_of_a_message() {
        let chunks = [
            r#"{"id":"c","object":"text_completion","choices":[{"text":" or","index":0,"logprobs":null,"finish_reason":null}]}"#,
            r#"{"id":"c","object":"text_completion","choices":[{"text":" not","index":0,"logprobs":null,"finish_reason":"length"}]}"#,
        ];
        let expected = r#"{"id":"c","object":"text_completion","choices":[{"text":" or not","index":0,"logprobs":null,"finish_reason":"length"}]}"#;
        assert_eq!(assembled(&chunks), Some((expected.to_owned(), true)));
    }

    #[test]
    fn an_error_in_the_stream_is_part_of_the_answer() {
        let error = r#"{"error":{"message":"overloaded"}}"#;
        assert_eq!(assembled(&[error]), Some((error.to_owned(), false)));
        let chunk = r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        let expected = r#"{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"a"}}],"error":{"message":"overloaded"}}"#;
        assert_eq!(assembled(&[chunk, error]), Some((expected.to_owned(), false)));
    }
}
