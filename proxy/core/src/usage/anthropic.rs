//! Anthropic's Messages API.
//!
//! Its `input_tokens` leave out what came from or went into the cache; ours is the whole prompt, so the three are added.
//! A stream reports twice: `message_start` has the input and an early count of the output (often 1), `message_delta`
//! has the final output and may restate the rest (server tools add input on the way). Members of the later object win,
//! nulls do not: what a client's SDK accumulates.

use super::number::{Counts, count};
use super::tally::{Form, Tally, is_usage_object};
use super::walk::Walk;

#[derive(Default)]
struct Event<'a> {
    kind: Option<&'a [u8]>,
    message: Option<Message<'a>>,
    stop_reason: Option<&'a [u8]>,
    usage: Option<&'a [u8]>,
}

impl<'a> Event<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut event = Self::default();
        let mut walk = Walk::new(data);
        walk.members(|name, walk| match name {
            b"type" => walk.keep(&mut event.kind),
            b"message" => walk.unless_null(|walk| {
                let message = Message::parse(walk)?;
                event.message.replace(message).is_none().then_some(())
            }),
            b"delta" => walk.unless_null(|walk| {
                walk.members(|name, walk| match name {
                    b"stop_reason" => walk.keep(&mut event.stop_reason),
                    _ => walk.skip(),
                })
            }),
            b"usage" => walk.keep(&mut event.usage),
            _ => walk.skip(),
        })?;
        walk.end()?;
        Some(event)
    }
}

#[derive(Default)]
struct Message<'a> {
    model: Option<&'a [u8]>,
    stop_reason: Option<&'a [u8]>,
    usage: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    fn parse(walk: &mut Walk<'a>) -> Option<Self> {
        let mut message = Self::default();
        walk.members(|name, walk| match name {
            b"model" => walk.keep(&mut message.model),
            b"stop_reason" => walk.keep(&mut message.stop_reason),
            b"usage" => walk.keep(&mut message.usage),
            _ => walk.skip(),
        })?;
        Some(message)
    }

    fn tell(&self, tally: &mut Tally) {
        tally.name_model(self.model);
        tally.finish_choice(0, self.stop_reason);
        tally.report(self.usage);
    }
}

/// Reads a `message_start` or `message_delta` event; others tell nothing.
pub(super) fn read_event(data: &[u8], tally: &mut Tally) {
    let Some(event) = Event::parse(data) else { return };
    match event.kind {
        Some(b"\"message_start\"") => {
            tally.form = Form::Messages;
            if let Some(message) = event.message {
                message.tell(tally);
            }
        }
        Some(b"\"message_delta\"") => {
            tally.finish_choice(0, event.stop_reason);
            let Some(usage) = event.usage.filter(|usage| is_usage_object(usage)) else { return };
            tally.is_final |= counts(usage).output.is_some();
            match merge(&tally.reported, usage) {
                Some(merged) => tally.reported = merged,
                None => tally.report(Some(usage)),
            }
        }
        _ => {}
    }
}

/// Reads a whole message; false if the body is none.
pub(super) fn read_body(body: &[u8], tally: &mut Tally) -> bool {
    let mut walk = Walk::new(body);
    let message = Message::parse(&mut walk).filter(|_| walk.end().is_some());
    message.inspect(|message| message.tell(tally)).is_some()
}

#[derive(Default)]
struct Reported<'a> {
    input_tokens: Option<&'a [u8]>,
    output_tokens: Option<&'a [u8]>,
    cache_read_input_tokens: Option<&'a [u8]>,
    cache_creation_input_tokens: Option<&'a [u8]>,
    output_tokens_details: Option<&'a [u8]>,
}

impl<'a> Reported<'a> {
    fn parse(usage: &'a [u8]) -> Option<Self> {
        let mut reported = Self::default();
        Walk::new(usage).members(|name, walk| match name {
            b"input_tokens" => walk.keep(&mut reported.input_tokens),
            b"output_tokens" => walk.keep(&mut reported.output_tokens),
            b"cache_read_input_tokens" => walk.keep(&mut reported.cache_read_input_tokens),
            b"cache_creation_input_tokens" => walk.keep(&mut reported.cache_creation_input_tokens),
            b"output_tokens_details" => walk.keep(&mut reported.output_tokens_details),
            _ => walk.skip(),
        })?;
        Some(reported)
    }
}

/// Reasoning under its two names.
fn reasoning(details: &[u8]) -> Option<u64> {
    let mut thinking: Option<&[u8]> = None;
    let mut reasoning: Option<&[u8]> = None;
    Walk::new(details).members(|name, walk| match name {
        b"thinking_tokens" => walk.keep(&mut thinking),
        b"reasoning_tokens" => walk.keep(&mut reasoning),
        _ => walk.skip(),
    })?;
    count(thinking).or_else(|| count(reasoning))
}

/// The numbers of a usage object.
pub(super) fn counts(usage: &[u8]) -> Counts {
    let reported = Reported::parse(usage).unwrap_or_default();
    let (cache_read, cache_creation) =
        (count(reported.cache_read_input_tokens), count(reported.cache_creation_input_tokens));
    // Models without a prompt cache leave the cache's members out: there is nothing to add then.
    let input = count(reported.input_tokens)
        .and_then(|tokens| tokens.checked_add(cache_read.unwrap_or(0)))
        .and_then(|tokens| tokens.checked_add(cache_creation.unwrap_or(0)));
    Counts {
        input,
        output: count(reported.output_tokens),
        cache_read,
        cache_creation,
        reasoning: reported.output_tokens_details.and_then(reasoning),
        audio_input: None,
        audio_output: None,
    }
}

/// `start` with the members of `later` laid over it, each value byte for byte.
fn merge(start: &[u8], later: &[u8]) -> Option<Vec<u8>> {
    let mut merged = members(start)?;
    for (name, value) in members(later)?.into_iter().filter(|(_, value)| *value != b"null") {
        if let Some((_, known)) = merged.iter_mut().find(|(known, _)| *known == name) {
            *known = value;
        } else {
            merged.push((name, value));
        }
    }
    let mut json = vec![b'{'];
    for (name, value) in &merged {
        if json.len() > 1 {
            json.push(b',');
        }
        json.extend_from_slice(&serde_json::to_vec(name).ok()?);
        json.push(b':');
        json.extend_from_slice(value);
    }
    json.push(b'}');
    Some(json)
}

/// An object's members in their order.
fn members(object: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let mut members = Vec::new();
    Walk::new(object).members(|name, walk| {
        members.push((String::from_utf8(name.to_vec()).ok()?, walk.value()?));
        Some(())
    })?;
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_members_win_and_nulls_do_not() {
        for (start, later, expected) in [
            (
                r#"{"input_tokens":17,"output_tokens":3}"#,
                r#"{"output_tokens":171}"#,
                r#"{"input_tokens":17,"output_tokens":171}"#,
            ),
            (r#"{"a": 1.50, "b":{"c": [1, 2]}}"#, r#"{"a":null,"d":"x"}"#, r#"{"a":1.50,"b":{"c": [1, 2]},"d":"x"}"#),
            ("{}", r#"{"output_tokens":1}"#, r#"{"output_tokens":1}"#),
        ] {
            let merged = merge(start.as_bytes(), later.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(merged).unwrap(), expected);
        }
    }
}
