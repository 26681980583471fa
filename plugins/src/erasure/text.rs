//! Taking the content out of a line: an event as files have it, or a dead letter.
//!
//! The value is cut out of the text and everything around it stays byte for byte: numbers as the provider wrote them,
//! fields that this version does not know. A line that is none of ours stays as it is.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::lines::Edit;
use super::{Wanted, message};

/// What an event says of its content.
#[derive(Deserialize)]
struct Event<'a> {
    id: String,
    project_id: Option<String>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// What a dead letter says of its event.
#[derive(Deserialize)]
struct Letter<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    record: Option<&'a RawValue>,
}

/// What becomes of a line of the file sink.
pub(super) fn event_line(line: &[u8], wanted: &Wanted<'_>) -> Edit {
    match serde_json::from_slice::<Event<'_>>(line) {
        Ok(event) => match event.unwanted(wanted).and_then(|content| span_of(line, content)) {
            Some(content) => Edit::Replace(splice(line, &[(content, b"null")])),
            None => Edit::Keep,
        },
        // Half a line that a crash left at the end of a file. The event has a whole one elsewhere.
        Err(error) if error.is_eof() && line.starts_with(br#"{"id":"#) => Edit::Remove,
        Err(_) => Edit::Keep,
    }
}

/// What becomes of a dead letter: its event is there twice, to be read and as the journal has it.
pub(super) fn letter_line(line: &[u8], wanted: &Wanted<'_>) -> Edit {
    without_content(line, wanted).map_or(Edit::Keep, Edit::Replace)
}

fn without_content(line: &[u8], wanted: &Wanted<'_>) -> Option<Vec<u8>> {
    let letter: Letter<'_> = serde_json::from_slice(line).ok()?;
    let event: Event<'_> = serde_json::from_str(letter.record?.get()).ok()?;
    let content = event.unwanted(wanted)?;
    let payload = STANDARD.decode(serde_json::from_str::<String>(letter.payload.get()).ok()?).ok()?;
    let payload = message::without_content(&payload).unwrap_or(payload);
    let payload = format!("\"{}\"", STANDARD.encode(payload));
    Some(splice(line, &[(span_of(line, letter.payload)?, payload.as_bytes()), (span_of(line, content)?, b"null")]))
}

impl<'a> Event<'a> {
    /// The content, where there is some that is to go.
    fn unwanted(&self, wanted: &Wanted<'_>) -> Option<&'a RawValue> {
        let content = self.content?;
        let id = Uuid::try_parse(&self.id).ok()?;
        wanted.describes(id, self.project_id.as_deref()).then_some(content)
    }
}

/// Where in a line a value stands that was read out of it.
fn span_of(line: &[u8], value: &RawValue) -> Option<Range<usize>> {
    let text = value.get();
    let start = text.as_ptr().addr().checked_sub(line.as_ptr().addr())?;
    let end = start.checked_add(text.len())?;
    (end <= line.len()).then_some(start..end)
}

/// A line with other values at these places, which are in ascending order.
fn splice(line: &[u8], values: &[(Range<usize>, &[u8])]) -> Vec<u8> {
    let mut spliced = Vec::with_capacity(line.len());
    let mut from = 0;
    for (place, value) in values {
        spliced.extend_from_slice(line.get(from..place.start).unwrap_or_default());
        spliced.extend_from_slice(value);
        from = place.end;
    }
    spliced.extend_from_slice(line.get(from..).unwrap_or_default());
    spliced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erasure::Which;
    use crate::event::{Body, Content, Exchange, Message, to_json_line};

    fn exchange(project: &str, content: bool) -> Exchange {
        let body = Body { text: Some("a \"secret\" in a body".to_owned()), ..Body::default() };
        Exchange {
            id: Uuid::from_u128(7).to_string(),
            project_id: Some(project.to_owned()),
            reason: Some("a \"content\":{} that is none".to_owned()),
            content: content.then(|| Content { request: Some(body), ..Content::default() }),
            ..Exchange::default()
        }
    }

    fn of_blue() -> Which {
        Which { project: Some("blue".to_owned()), ..Which::default() }
    }

    #[test]
    fn a_line_loses_its_content_and_nothing_else() {
        let which = of_blue();
        let wanted = Wanted::of(&which).unwrap();
        let line = |project, content| to_json_line(&exchange(project, content));
        assert_eq!(event_line(&line("blue", true), &wanted), Edit::Replace(line("blue", false)));
        for kept in [line("red", true), line("blue", false), b"not ours".to_vec(), b"{\"id\":7}".to_vec(), Vec::new()] {
            assert_eq!(event_line(&kept, &wanted), Edit::Keep, "{}", String::from_utf8_lossy(&kept));
        }
        // Values as somebody else would write them, and fields of a later version.
        let id = Uuid::from_u128(7);
        let before =
            format!("{{ \"id\": \"{id}\",\"x\":1.50 ,\"content\" : {{\"a\":[1,2]}} ,\"project_id\":\"blue\"}}");
        let after = format!("{{ \"id\": \"{id}\",\"x\":1.50 ,\"content\" : null ,\"project_id\":\"blue\"}}");
        assert_eq!(event_line(before.as_bytes(), &wanted), Edit::Replace(after.into_bytes()));
    }

    #[test]
    fn half_a_line_goes_since_nobody_can_say_whose_it_is() {
        let which = of_blue();
        let wanted = Wanted::of(&which).unwrap();
        let line = to_json_line(&exchange("red", true));
        for cut in [10, line.len() / 2, line.len() - 1] {
            assert_eq!(event_line(&line[..cut], &wanted), Edit::Remove, "cut at {cut}");
        }
        assert_eq!(event_line(b"{\"other\":", &wanted), Edit::Keep);
    }

    #[test]
    fn a_letter_loses_its_content_in_both_of_its_forms() {
        let which = of_blue();
        let wanted = Wanted::of(&which).unwrap();
        let letter = |project, content| {
            let exchange = exchange(project, content);
            let payload = STANDARD.encode(exchange.encode_to_vec());
            let record = String::from_utf8(to_json_line(&exchange)).unwrap();
            format!(r#"{{"id":"{}","seq":7,"reason":"no","payload":"{payload}","record":{record}}}"#, exchange.id)
        };
        let after = Edit::Replace(letter("blue", false).into_bytes());
        assert_eq!(letter_line(letter("blue", true).as_bytes(), &wanted), after);
        let unreadable = r#"{"id":"x","seq":7,"reason":"no event","payload":"/w==","record":null}"#.to_owned();
        for kept in [letter("red", true), letter("blue", false), unreadable] {
            assert_eq!(letter_line(kept.as_bytes(), &wanted), Edit::Keep, "{kept}");
        }
    }
}
