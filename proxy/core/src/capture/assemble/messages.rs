//! Anthropic's Messages API.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::json::{Node, Object, parse};
use super::Assembled;

/// The answer so far.
#[derive(Default)]
pub(super) struct Messages<'e> {
    message: Object<'e>,
    /// The content, by its index.
    blocks: BTreeMap<u64, Block<'e>>,
    is_whole: bool,
}

struct Block<'e> {
    block: Object<'e>,
    /// The JSON text of a tool's input, as it comes in pieces.
    input: String,
}

impl<'e> Messages<'e> {
    /// An error's type is the same in the Responses API, which has nothing inside it.
    pub(super) fn is_it(event: &Object<'_>) -> bool {
        event.text("type").is_some_and(|kind| {
            let is_known = kind == "ping" || kind.starts_with("message_") || kind.starts_with("content_block_");
            is_known || kind == "error" && event.has("error")
        })
    }

    pub(super) fn take(&mut self, mut event: Object<'e>) {
        let kind = event.text("type").unwrap_or_default().to_owned();
        let index = event.number("index");
        match (&*kind, index) {
            ("message_start", _) => {
                if let Some(message) = event.take_object("message") {
                    self.message = message;
                }
            }
            ("content_block_start", Some(index)) => {
                if let Some(block) = event.take_object("content_block") {
                    self.blocks.insert(index, Block { block, input: String::new() });
                }
            }
            ("content_block_delta", Some(index)) => {
                if let (Some(block), Some(delta)) = (self.blocks.get_mut(&index), event.take_object("delta")) {
                    block.take(delta);
                }
            }
            ("message_delta", _) => self.message_delta(event),
            ("message_stop", _) => self.is_whole = true,
            ("error", _) => {
                if let Some(error) = event.take("error") {
                    self.message.settle("error", error);
                }
            }
            _ => {}
        }
    }

    fn message_delta(&mut self, event: Object<'e>) {
        for (name, value) in event.members {
            match (&*name, value) {
                ("type", _) => {}
                ("delta", Node::Object(delta)) => settle_all(&mut self.message, delta),
                ("usage", Node::Object(usage)) => match self.message.get_mut("usage") {
                    Some(Node::Object(all)) => settle_all(all, usage),
                    _ => self.message.put("usage", Node::Object(usage)),
                },
                (_, value) => self.message.settle(name, value),
            }
        }
    }

    pub(super) fn finish(mut self) -> Assembled<'e> {
        if !self.blocks.is_empty() {
            let blocks = self.blocks.into_values().map(Block::finish).collect();
            self.message.put("content", Node::List(blocks));
        }
        Assembled { answer: Node::Object(self.message), is_whole: self.is_whole }
    }
}

fn settle_all<'e>(whole: &mut Object<'e>, part: Object<'e>) {
    part.members.into_iter().for_each(|(name, value)| whole.settle(name, value));
}

impl<'e> Block<'e> {
    fn take(&mut self, mut delta: Object<'e>) {
        let kind = delta.text("type").unwrap_or_default().to_owned();
        match &*kind {
            "input_json_delta" => self.input.push_str(delta.text("partial_json").unwrap_or_default()),
            "citations_delta" => {
                if let (Some(citation), Some(citations)) = (delta.take("citation"), self.block.list("citations")) {
                    citations.push(citation);
                }
            }
            // Text, thinking, and what may come. A signature is said once, and whole.
            _ => {
                for (name, value) in delta.members {
                    match (&*name, value) {
                        ("type", _) => {}
                        ("signature", value) => self.block.settle(name, value),
                        (_, Node::Text(text)) => self.block.append(name, text),
                        (_, value) => self.block.settle(name, value),
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Node<'e> {
        if !self.input.is_empty() {
            let parsed = parse(&self.input, true).map(|parsed| parsed.node.into_owned());
            let input = match parsed {
                Some(input) => input,
                None => Node::Text(Cow::Owned(self.input)), // as it came
            };
            self.block.put("input", input);
        }
        Node::Object(self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assembled;

    const EVENTS: [&str; 17] = [
        r#"{"type":"message_start","message":{"id":"m","role":"assistant","content":[],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"H"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"m"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"Er"}}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hel"}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"lo"}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{"url":"u"}}}"#,
        r#"{"type":"content_block_stop","index":1}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"b\": 1.0, \"a\": \"x"}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"y\"}"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":9},"context_management":{}}"#,
        r#"{"type":"message_stop"}"#,
    ];

    #[test]
    fn a_message_is_put_together_from_its_blocks() {
        let expected = r#"{"id":"m","role":"assistant","content":[{"type":"thinking","thinking":"Hm","signature":"Er"},{"type":"text","text":"Hello","citations":[{"url":"u"}]},{"type":"tool_use","id":"t","name":"f","input":{"b":1.0,"a":"xy"}}],"stop_reason":"tool_use","usage":{"input_tokens":3,"output_tokens":9},"stop_sequence":null,"context_management":{}}"#;
        assert_eq!(assembled(&EVENTS), Some((expected.to_owned(), true)));
    }

    #[test]
    fn a_cut_message_is_what_there_was() {
        let (answer, is_whole) = assembled(&EVENTS[..14]).unwrap();
        assert!(!is_whole && answer.contains(r#""input":{"b":1.0,"a":"x…"}"#), "{answer}");
        let start = r#"{"id":"m","role":"assistant","content":[],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}"#;
        assert_eq!(assembled(&EVENTS[..1]), Some((start.to_owned(), false)));
    }

    #[test]
    fn an_error_is_part_of_the_message() {
        let error = r#"{"type":"error","error":{"type":"overloaded_error"}}"#;
        assert_eq!(assembled(&[error]), Some((r#"{"error":{"type":"overloaded_error"}}"#.to_owned(), false)));
    }

    #[test]
    fn input_that_is_no_json_stays_text() {
        let events = [
            EVENTS[11],
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"[}"}}"#,
        ];
        let (answer, _) = assembled(&events).unwrap();
        assert!(answer.contains(r#""input":"[}""#), "{answer}");
    }
}
