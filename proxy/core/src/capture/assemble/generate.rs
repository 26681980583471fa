//! Gemini's generateContent. Every event is an answer by itself, of which the next goes on.

use std::collections::BTreeMap;

use super::super::json::{Node, Object};
use super::Assembled;

/// The answer so far.
#[derive(Default)]
pub(super) struct Generate<'e> {
    /// Everything but the candidates.
    answer: Object<'e>,
    candidates: BTreeMap<u64, Candidate<'e>>,
}

#[derive(Default)]
struct Candidate<'e> {
    candidate: Object<'e>,
    content: Option<Object<'e>>,
    parts: Vec<Node<'e>>,
}

impl<'e> Generate<'e> {
    pub(super) fn is_it(event: &Object<'_>) -> bool {
        ["candidates", "usageMetadata", "promptFeedback"].iter().any(|name| event.get(name).is_some())
    }

    pub(super) fn take(&mut self, event: Object<'e>) {
        for (name, value) in event.members {
            match (&*name, value) {
                ("candidates", Node::List(candidates)) => {
                    self.answer.settle(name, Node::NULL); // its place among the others
                    for candidate in candidates.into_iter().filter_map(Node::into_object) {
                        let index = candidate.number("index").unwrap_or_default();
                        self.candidates.entry(index).or_default().take(candidate);
                    }
                }
                (_, value) => self.answer.settle(name, value),
            }
        }
    }

    pub(super) fn finish(mut self) -> Assembled<'e> {
        let is_finished = |candidate: &Candidate<'_>| candidate.candidate.has("finishReason");
        let is_blocked =
            self.answer.get("promptFeedback").and_then(Node::as_object).is_some_and(|it| it.has("blockReason"));
        let is_whole = is_blocked || !self.candidates.is_empty() && self.candidates.values().all(is_finished);
        if self.answer.get("candidates").is_some() {
            let candidates = self.candidates.into_values().map(Candidate::finish).collect();
            self.answer.put("candidates", Node::List(candidates));
        }
        Assembled { answer: Node::Object(self.answer), is_whole }
    }
}

impl<'e> Candidate<'e> {
    fn take(&mut self, candidate: Object<'e>) {
        for (name, value) in candidate.members {
            match (&*name, value) {
                ("content", Node::Object(content)) => {
                    self.candidate.settle(name, Node::NULL); // its place among the others
                    self.take_content(content);
                }
                (_, value) => self.candidate.settle(name, value),
            }
        }
    }

    fn take_content(&mut self, content: Object<'e>) {
        let whole = self.content.get_or_insert_default();
        for (name, value) in content.members {
            match (&*name, value) {
                ("parts", Node::List(parts)) => {
                    whole.settle(name, Node::NULL); // its place among the others
                    parts.into_iter().for_each(|part| add_part(&mut self.parts, part));
                }
                (_, value) => whole.settle(name, value),
            }
        }
    }

    fn finish(mut self) -> Node<'e> {
        if let Some(mut content) = self.content {
            if content.get("parts").is_some() {
                content.put("parts", Node::List(self.parts));
            }
            self.candidate.put("content", Node::Object(content));
        }
        Node::Object(self.candidate)
    }
}

/// Text goes on with the text before it, thoughts with thoughts; everything else is a part of its own.
fn add_part<'e>(parts: &mut Vec<Node<'e>>, part: Node<'e>) {
    match (parts.last_mut(), part) {
        (Some(Node::Object(last)), Node::Object(part)) if goes_on(last, &part) => {
            for (name, value) in part.members {
                match (&*name, value) {
                    ("text", Node::Text(text)) => last.append(name, text),
                    (_, value) => last.settle(name, value),
                }
            }
        }
        (_, part) => parts.push(part),
    }
}

fn goes_on(last: &Object<'_>, part: &Object<'_>) -> bool {
    last.text("text").is_some() && part.text("text").is_some() && last.get("thought") == part.get("thought")
}

#[cfg(test)]
mod tests {
    use super::super::super::json::parse;
    use super::super::from_list;
    use super::super::tests::assembled;

    const CHUNKS: [&str; 4] = [
        r#"{"candidates":[{"content":{"parts":[{"text":"Hm","thought":true}],"role":"model"}}],"usageMetadata":{"promptTokenCount":1},"modelVersion":"g"}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"He"}],"role":"model"}}],"usageMetadata":{"promptTokenCount":1}}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"llo"},{"functionCall":{"name":"f","args":{}}}],"role":"model"}},{"index":1,"content":{"parts":[{"text":"B"}]}}]}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":""}]},"finishReason":"STOP"},{"index":1,"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1,"totalTokenCount":5}}"#,
    ];
    const ANSWER: &str = r#"{"candidates":[{"content":{"parts":[{"text":"Hm","thought":true},{"text":"Hello"},{"functionCall":{"name":"f","args":{}}},{"text":""}],"role":"model"},"finishReason":"STOP"},{"index":1,"content":{"parts":[{"text":"B"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1,"totalTokenCount":5},"modelVersion":"g"}"#;

    #[test]
    fn parts_are_joined_by_candidate() {
        assert_eq!(assembled(&CHUNKS), Some((ANSWER.to_owned(), true)));
        assert!(!assembled(&CHUNKS[..3]).unwrap().1);
    }

    #[test]
    fn a_list_is_the_same_stream() {
        let list = format!("[{}]", CHUNKS.join(",\n"));
        let listed = from_list(parse(&list, false).unwrap().node).unwrap();
        assert_eq!((listed.answer.write(), listed.is_whole), (ANSWER.to_owned(), true));
        for other in ["[]", "[1]", r#"[{"id":1}]"#, CHUNKS[0]] {
            assert!(from_list(parse(other, false).unwrap().node).is_err(), "{other}");
        }
    }

    #[test]
    fn a_blocked_prompt_has_no_candidates() {
        let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":1}}"#;
        assert_eq!(assembled(&[blocked]), Some((blocked.to_owned(), true)));
    }
}
