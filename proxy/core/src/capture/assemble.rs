//! Puts a stream together to the answer that the provider would have given without streaming.
//!
//! What the answer is made of tells its kind, not the dialect or the endpoint: OpenAI's shapes are spoken under
//! Gemini's paths, Anthropic's by gateways that call themselves OpenAI, and what nobody has seen yet must not be taken
//! for something else.
//!
//! Events are merged in the order they came. Names that we do not know are kept with their last value, so that a member
//! which a provider adds tomorrow is in the record.

mod chat;
mod final_event;
mod generate;
mod messages;
mod responses;

use std::borrow::Cow;

use memchr::memchr2;

use self::chat::Chat;
use self::final_event::FinalEvent;
use self::generate::Generate;
use self::messages::Messages;
use self::responses::Responses;
use super::json::{Node, Object, parse};

/// An answer put together.
#[derive(Debug)]
pub(super) struct Assembled<'e> {
    pub(super) answer: Node<'e>,
    /// Whether the stream came to its end: otherwise this is what there was.
    pub(super) is_whole: bool,
}

/// The data of each event of a server-sent stream (WHATWG HTML), also of a last one without its empty line.
pub(super) fn events(mut stream: &str) -> Vec<Cow<'_, str>> {
    let mut events = Vec::new();
    let mut data: Option<Cow<'_, str>> = None;
    while !stream.is_empty() {
        let length = memchr2(b'\n', b'\r', stream.as_bytes()).unwrap_or(stream.len());
        let line = stream.get(..length).unwrap_or_default();
        let rest = stream.get(length..).unwrap_or_default();
        stream = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix(['\n', '\r'])).unwrap_or_default();
        if line.is_empty() {
            events.extend(data.take());
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field != "data" {
            continue;
        }
        let value = value.strip_prefix(' ').unwrap_or(value);
        match &mut data {
            None => data = Some(Cow::Borrowed(value)),
            Some(joined) => {
                let joined = joined.to_mut();
                joined.push('\n');
                joined.push_str(value);
            }
        }
    }
    events.extend(data);
    events.retain(|data| !data.is_empty());
    events
}

/// Whether a text is such a stream, whatever it is said to be: one of its first lines is the data of an event.
pub(super) fn is_stream(text: &str) -> bool {
    const FIRST_LINES: usize = 8;
    let lines = text.split(['\n', '\r']).filter(|line| !line.is_empty()).take(FIRST_LINES);
    lines.filter_map(|line| line.strip_prefix("data:")).any(|data| data.trim_ascii_start().starts_with(['{', '[']))
}

/// The answer that a stream's events are of; `None` if they are of no kind we know.
pub(super) fn from_events<'e>(events: &'e [Cow<'_, str>]) -> Option<Assembled<'e>> {
    let mut answer: Option<Answer<'e>> = None;
    let mut is_done = false;
    let mut left = events.len();
    for data in events {
        left = left.saturating_sub(1);
        if data.trim_ascii() == "[DONE]" {
            is_done = true;
            continue;
        }
        match parse(data, false).and_then(|parsed| parsed.node.into_object()) {
            Some(event) => take(&mut answer, event)?,
            None if left == 0 => break, // cut off in the middle
            None => return None,
        }
    }
    answer?.finish(is_done)
}

/// The answer that the items of Gemini's other form of a stream are of, one JSON array; or the value as it is.
pub(super) fn from_list(node: Node<'_>) -> Result<Assembled<'_>, Node<'_>> {
    match node {
        Node::List(items) if items.first().and_then(Node::as_object).is_some_and(Generate::is_it) => {
            let mut generate = Generate::default();
            items.into_iter().filter_map(Node::into_object).for_each(|item| generate.take(item));
            Ok(generate.finish())
        }
        node => Err(node),
    }
}

fn take<'e>(answer: &mut Option<Answer<'e>>, event: Object<'e>) -> Option<()> {
    match answer {
        Some(answer) => answer.take(event),
        None => answer.insert(Answer::of(&event)?).take(event),
    }
    Some(())
}

/// An answer of some kind, as far as it came.
enum Answer<'e> {
    Chat(Chat<'e>),
    Responses(Responses<'e>),
    Messages(Messages<'e>),
    Generate(Generate<'e>),
    FinalEvent(FinalEvent<'e>),
}

impl<'e> Answer<'e> {
    /// The kind of answer that begins with this event.
    fn of(event: &Object<'_>) -> Option<Self> {
        if Chat::is_it(event) {
            Some(Self::Chat(Chat::default()))
        } else if Generate::is_it(event) {
            Some(Self::Generate(Generate::default()))
        } else if Messages::is_it(event) {
            Some(Self::Messages(Messages::default()))
        } else if Responses::is_it(event) {
            Some(Self::Responses(Responses::default()))
        } else if FinalEvent::is_it(event) {
            Some(Self::FinalEvent(FinalEvent::default()))
        } else {
            None
        }
    }

    fn take(&mut self, event: Object<'e>) {
        match self {
            Self::Chat(chat) => chat.take(event),
            Self::Responses(responses) => responses.take(event),
            Self::Messages(messages) => messages.take(event),
            Self::Generate(generate) => generate.take(event),
            Self::FinalEvent(last) => last.take(event),
        }
    }

    /// `is_done`: the stream said `[DONE]`.
    fn finish(self, is_done: bool) -> Option<Assembled<'e>> {
        match self {
            Self::Chat(chat) => Some(chat.finish(is_done)),
            Self::Responses(responses) => Some(responses.finish()),
            Self::Messages(messages) => Some(messages.finish()),
            Self::Generate(generate) => Some(generate.finish()),
            Self::FinalEvent(last) => last.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream of these events is put together to, and whether it is whole.
    pub(super) fn assembled(data: &[&str]) -> Option<(String, bool)> {
        let stream: String = data.iter().map(|data| format!("data: {data}\n\n")).collect();
        let events = events(&stream);
        from_events(&events).map(|assembled| (assembled.answer.write(), assembled.is_whole))
    }

    #[test]
    fn events_are_cut_as_sdks_cut_them() {
        for (stream, expected) in [
            ("data: 1\n\ndata:2\n\n", &["1", "2"][..]),
            ("data: 1\r\n\r\ndata: 2\r\rdata: 3", &["1", "2", "3"]),
            ("event: x\nid: 7\ndata: a\ndata:  b\n\n: note\n\nretry: 1\n\n", &["a\n b"]),
            ("data\n\ndata:\n\ndatabase: 1\n\n", &[]),
            ("\n\n\n", &[]),
            ("", &[]),
        ] {
            assert_eq!(events(stream), expected, "{stream:?}");
        }
    }

    #[test]
    fn what_is_of_no_known_kind_is_not_put_together() {
        for data in [
            &[][..],
            &["[DONE]"],
            &["nonsense", "{}"],
            &["{}"],
            &["[1]"],
            &[r#"{"type":"message-start","delta":{}}"#],
            &[r#"{"choices":[]}"#, "{", r#"{"choices":[]}"#],
        ] {
            assert_eq!(assembled(data), None, "{data:?}");
        }
    }

    #[test]
    fn an_event_that_was_cut_off_is_left_out() {
        let whole = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        let expected = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"a"}}]}"#;
        for end in 0..whole.len() {
            assert_eq!(assembled(&[whole, &whole[..end]]), Some((expected.to_owned(), false)), "at {end}");
        }
    }
}
