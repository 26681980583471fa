//! Taking the content out of an event as the journal has it.
//!
//! The message is not decoded and encoded again: fields that this version does not know would be lost by that. The
//! field is cut out of the bytes, and everything else stays as it was written.

use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::event::{Exchange, Message};

/// The number of `Exchange.content` in `event.proto`.
const CONTENT: u32 = 29;

/// The event without its content; `None` if it has none, or if this is no message.
pub(crate) fn without_content(payload: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::with_capacity(payload.len());
    let mut rest = payload;
    while !rest.is_empty() {
        let before = rest;
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
        if number != CONTENT {
            kept.extend_from_slice(before.get(..before.len().saturating_sub(rest.len()))?);
        }
    }
    (kept.len() < payload.len()).then_some(kept)
}

/// The project of an event, where it has one.
pub(super) fn project_of(payload: &[u8]) -> Option<String> {
    Exchange::decode(payload).ok()?.project_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Body, Content, Usage};

    fn exchange(content: Option<Content>) -> Exchange {
        Exchange {
            id: "an-id".to_owned(),
            project_id: Some("blue".to_owned()),
            usage: Some(Usage { input_tokens: Some(0), ..Usage::default() }),
            content,
            ..Exchange::default()
        }
    }

    fn content() -> Content {
        Content { request: Some(Body { text: Some("hello".to_owned()), ..Body::default() }), ..Content::default() }
    }

    #[test]
    fn only_the_content_goes_and_fields_of_later_versions_stay() {
        // Field 500, a text, as a later version may write it.
        let unknown = b"\xa2\x1f\x05later";
        let with = [unknown.as_slice(), &exchange(Some(content())).encode_to_vec(), unknown].concat();
        let without = [unknown.as_slice(), &exchange(None).encode_to_vec(), unknown].concat();
        assert_eq!(without_content(&with), Some(without.clone()));
        assert_eq!(without_content(&without), None);
        assert_eq!(project_of(&with).as_deref(), Some("blue"));
    }

    #[test]
    fn what_is_no_message_is_left_alone() {
        let whole = exchange(Some(content())).encode_to_vec();
        for cut in 1..8 {
            assert_eq!(without_content(&whole[..whole.len() - cut]), None, "{cut} bytes cut");
        }
        for bytes in [&b""[..], b"\x12", b"\xff\xff\xff"] {
            assert_eq!(without_content(bytes), None);
        }
    }
}
