//! The Responses API. Its last event holds the whole response; only where that is missing the parts are put together.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::json::{Node, Object};
use super::Assembled;

/// The answer so far.
#[derive(Default)]
pub(super) struct Responses<'e> {
    /// As the last event showed it that had it.
    response: Object<'e>,
    /// The output, by its index.
    items: BTreeMap<u64, Object<'e>>,
    is_whole: bool,
}

/// Where a delta goes: a string of an output item, or of a part of it.
enum Target {
    Item(&'static str),
    Part { list: &'static str, index: &'static str, text: &'static str },
}

impl Target {
    fn of(kind: &str) -> Option<Self> {
        let content = |text| Self::Part { list: "content", index: "content_index", text };
        Some(match kind {
            "output_text.delta" | "reasoning_text.delta" => content("text"),
            "refusal.delta" => content("refusal"),
            "reasoning_summary_text.delta" => Self::Part { list: "summary", index: "summary_index", text: "text" },
            "function_call_arguments.delta" | "mcp_call_arguments.delta" => Self::Item("arguments"),
            "custom_tool_call_input.delta" => Self::Item("input"),
            "code_interpreter_call_code.delta" => Self::Item("code"),
            _ => return None,
        })
    }
}

impl<'e> Responses<'e> {
    pub(super) fn is_it(event: &Object<'_>) -> bool {
        event.text("type").is_some_and(|kind| kind == "error" || kind.starts_with("response."))
    }

    pub(super) fn take(&mut self, mut event: Object<'e>) {
        let kind = event.text("type").unwrap_or_default().to_owned();
        if kind == "error" {
            self.response.settle("error", Node::Object(event));
            return;
        }
        let Some(kind) = kind.strip_prefix("response.").filter(|_| !self.is_whole) else { return };
        match kind {
            "created" | "queued" | "in_progress" | "completed" | "failed" | "incomplete" => {
                if let Some(response) = event.take_object("response") {
                    self.response = response;
                    self.is_whole = matches!(kind, "completed" | "failed" | "incomplete");
                }
            }
            "output_item.added" | "output_item.done" => {
                let index = event.number("output_index");
                if let (Some(index), Some(item)) = (index, event.take_object("item")) {
                    self.items.insert(index, item);
                }
            }
            "content_part.added" | "content_part.done" => self.part(event, "content", "content_index"),
            "reasoning_summary_part.added" | "reasoning_summary_part.done" => {
                self.part(event, "summary", "summary_index");
            }
            kind => {
                if let Some(target) = Target::of(kind) {
                    self.delta(event, &target);
                }
            }
        }
    }

    fn item(&mut self, event: &Object<'_>) -> Option<&mut Object<'e>> {
        self.items.get_mut(&event.number("output_index")?)
    }

    fn part(&mut self, mut event: Object<'e>, list: &'static str, index: &str) {
        let Some(part) = event.take("part") else { return };
        let place = event.number(index).and_then(|index| usize::try_from(index).ok()).unwrap_or_default();
        let Some(parts) = self.item(&event).and_then(|item| item.list(list)) else { return };
        match parts.get_mut(place) {
            Some(old) => *old = part,
            None => parts.push(part),
        }
    }

    fn delta(&mut self, mut event: Object<'e>, target: &Target) {
        let Some(Node::Text(delta)) = event.take("delta") else { return };
        match *target {
            Target::Item(text) => {
                if let Some(item) = self.item(&event) {
                    item.append(text, delta);
                }
            }
            Target::Part { list, index, text } => {
                let place = event.number(index).and_then(|index| usize::try_from(index).ok()).unwrap_or_default();
                let parts = self.item(&event).and_then(|item| item.list(list));
                if let Some(Node::Object(part)) = parts.and_then(|parts| parts.get_mut(place)) {
                    part.append(text, delta);
                }
            }
        }
    }

    pub(super) fn finish(mut self) -> Assembled<'e> {
        if !self.is_whole {
            if !self.items.is_empty() {
                let items = self.items.into_values().map(Node::Object).collect();
                self.response.put("output", Node::List(items));
            }
            self.response.put("status", Node::Text(Cow::Borrowed("incomplete")));
        }
        Assembled { answer: Node::Object(self.response), is_whole: self.is_whole }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assembled;

    const EVENTS: [&str; 14] = [
        r#"{"type":"response.created","response":{"id":"r","object":"response","status":"in_progress","output":[]}}"#,
        r#"{"type":"response.in_progress","response":{"id":"r","object":"response","status":"in_progress","output":[]}}"#,
        r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"reasoning","summary":[]}}"#,
        r#"{"type":"response.reasoning_summary_part.added","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""}}"#,
        r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"Hm"}"#,
        r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"message","content":[]}}"#,
        r#"{"type":"response.content_part.added","output_index":1,"content_index":0,"part":{"type":"output_text","text":""}}"#,
        r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"Hel"}"#,
        r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"lo"}"#,
        r#"{"type":"response.output_item.added","output_index":2,"item":{"type":"function_call","arguments":""}}"#,
        r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":"{\"a\":"}"#,
        r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":"1}"}"#,
        r#"{"type":"response.unheard_of","x":1}"#,
        r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":["all"]}}"#,
    ];

    #[test]
    fn the_last_event_holds_the_response() {
        let expected = r#"{"id":"r","status":"completed","output":["all"]}"#;
        assert_eq!(assembled(&EVENTS), Some((expected.to_owned(), true)));
    }

    #[test]
    fn without_it_the_parts_are_put_together() {
        let expected = r#"{"id":"r","object":"response","status":"incomplete","output":[{"type":"reasoning","summary":[{"type":"summary_text","text":"Hm"}]},{"type":"message","content":[{"type":"output_text","text":"Hello"}]},{"type":"function_call","arguments":"{\"a\":1}"}]}"#;
        assert_eq!(assembled(&EVENTS[..13]), Some((expected.to_owned(), false)));
        let done =
            r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"message","content":["done"]}}"#;
        let with_done: Vec<_> = EVENTS[..13].iter().copied().chain([done]).collect();
        let (answer, _) = assembled(&with_done).unwrap();
        assert!(answer.contains(r#"{"type":"message","content":["done"]}"#), "{answer}");
    }

    #[test]
    fn an_error_is_part_of_the_response() {
        let error = r#"{"type":"error","code":"server_error"}"#;
        let expected = r#"{"error":{"type":"error","code":"server_error"},"status":"incomplete"}"#;
        assert_eq!(assembled(&[error]), Some((expected.to_owned(), false)));
    }

    #[test]
    fn deltas_to_nothing_are_left_out() {
        let events = [
            r#"{"type":"response.output_text.delta","output_index":7,"content_index":0,"delta":"x"}"#,
            r#"{"type":"response.output_text.delta","delta":"x"}"#,
            r#"{"type":"response.content_part.added","output_index":7}"#,
            r#"{"type":"response.completed"}"#,
        ];
        assert_eq!(assembled(&events), Some((r#"{"status":"incomplete"}"#.to_owned(), false)));
    }
}
