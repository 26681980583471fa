//! Streams whose last event says all of it: transcriptions, generated images, speech.

use super::super::json::{Node, Object};
use super::Assembled;

/// What the types of their events begin with (OpenAI API reference, streaming events of audio and images).
const FAMILIES: [&str; 4] = ["transcript.text.", "image_generation.", "image_edit.", "speech.audio."];

/// The answer, if it has come.
#[derive(Default)]
pub(super) struct FinalEvent<'e> {
    event: Option<Object<'e>>,
}

impl<'e> FinalEvent<'e> {
    pub(super) fn is_it(event: &Object<'_>) -> bool {
        event.text("type").is_some_and(|kind| FAMILIES.iter().any(|family| kind.starts_with(*family)))
    }

    pub(super) fn take(&mut self, event: Object<'e>) {
        if event.text("type").is_some_and(|kind| kind.ends_with(".done") || kind.ends_with(".completed")) {
            self.event = Some(event);
        }
    }

    pub(super) fn finish(self) -> Option<Assembled<'e>> {
        self.event.map(|event| Assembled { answer: Node::Object(event), is_whole: true })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assembled;

    #[test]
    fn the_last_event_is_the_answer() {
        let delta = r#"{"type":"transcript.text.delta","delta":"He"}"#;
        let done = r#"{"type":"transcript.text.done","text":"Hello","usage":{"total_tokens":3}}"#;
        assert_eq!(assembled(&[delta, done]), Some((done.to_owned(), true)));
        assert_eq!(assembled(&[delta]), None);
        let image = r#"{"type":"image_generation.completed","b64_json":"QQ=="}"#;
        assert_eq!(assembled(&[r#"{"type":"image_generation.partial_image"}"#, image]), Some((image.to_owned(), true)));
    }
}
