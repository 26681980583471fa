//! Anthropic's Messages API.
//!
//! Its `input_tokens` leave out what came from or went into the cache; ours is the whole prompt, so the three are added.
//! A stream reports twice: `message_start` has the input and an early count of the output (often 1), `message_delta`
//! has the final output and may restate the rest (server tools add input on the way). Members of the later object win,
//! nulls do not: what a client's SDK accumulates.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::number::{Counts, count, object};
use super::tally::{Form, Tally, is_usage_object};

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    stop_reason: Option<&'a RawValue>,
}

/// Reads a `message_start` or `message_delta` event; others tell nothing.
pub(super) fn read_event(data: &[u8], tally: &mut Tally) {
    let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return };
    match event.kind.map(RawValue::get) {
        Some("\"message_start\"") => {
            tally.form = Form::Messages;
            if let Some(message) = event.message {
                tally.name_model(message.model);
                tally.finish_choice(0, message.stop_reason);
                tally.report(message.usage);
            }
        }
        Some("\"message_delta\"") => {
            tally.finish_choice(0, event.delta.and_then(|delta| delta.stop_reason));
            let Some(usage) = event.usage.filter(|usage| is_usage_object(usage)) else { return };
            tally.is_final |= counts(usage).output.is_some();
            let merged = tally.provider.as_deref().and_then(|start| merge(start, usage));
            tally.provider = Some(merged.unwrap_or_else(|| usage.to_owned()));
        }
        _ => {}
    }
}

/// Reads a whole message; false if the body is none.
pub(super) fn read_body(body: &[u8], tally: &mut Tally) -> bool {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(body) else { return false };
    tally.name_model(message.model);
    tally.finish_choice(0, message.stop_reason);
    tally.report(message.usage);
    true
}

#[derive(Deserialize, Default)]
struct Reported<'a> {
    #[serde(borrow)]
    input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_read_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_creation_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    output_tokens_details: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct OutputDetails<'a> {
    #[serde(borrow)]
    thinking_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_tokens: Option<&'a RawValue>,
}

/// The numbers of a usage object.
pub(super) fn counts(usage: &RawValue) -> Counts {
    let reported: Reported<'_> = object(Some(usage));
    let details: OutputDetails<'_> = object(reported.output_tokens_details);
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
        reasoning: count(details.thinking_tokens).or_else(|| count(details.reasoning_tokens)),
        audio_input: None,
        audio_output: None,
    }
}

/// `start` with the members of `later` laid over it, each value byte for byte.
fn merge(start: &RawValue, later: &RawValue) -> Option<Box<RawValue>> {
    let mut members: Members<'_> = serde_json::from_str(start.get()).ok()?;
    let later: Members<'_> = serde_json::from_str(later.get()).ok()?;
    for (name, value) in later.0.into_iter().filter(|(_, value)| value.get() != "null") {
        if let Some((_, known)) = members.0.iter_mut().find(|(known, _)| *known == name) {
            *known = value;
        } else {
            members.0.push((name, value));
        }
    }
    let mut json = String::from("{");
    for (name, value) in &members.0 {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&serde_json::to_string(name).ok()?);
        json.push(':');
        json.push_str(value.get());
    }
    json.push('}');
    RawValue::from_string(json).ok()
}

/// An object's members in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(InOrder).map(Self)
    }
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
            let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
            assert_eq!(merge(&raw(start), &raw(later)).unwrap().get(), expected);
        }
    }
}
