//! What log tools for language models want to know of an exchange, read from the record in one place.

use serde_json::Value;
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;

use crate::dispatcher::Event;
use crate::event::{Body, Exchange, Outcome};

/// Tags with a meaning of their own. All others are free.
pub mod tags {
    /// Who used the app.
    pub const USER_ID: &str = "user_id";
    /// What belongs together: a conversation, a run of an agent.
    pub const SESSION_ID: &str = "session_id";
    /// What the session is called.
    pub const SESSION_NAME: &str = "session_name";
    /// Where in the session this exchange stands.
    pub const SESSION_PATH: &str = "session_path";
    /// Which prompt was used.
    pub const PROMPT_ID: &str = "prompt_id";

    /// All of them.
    pub const KNOWN: [&str; 5] = [USER_ID, SESSION_ID, SESSION_NAME, SESSION_PATH, PROMPT_ID];
}

/// The value of a tag.
pub fn tag<'a>(exchange: &'a Exchange, name: &str) -> Option<&'a str> {
    exchange.tags.get(name).map(String::as_str)
}

/// The tags without a meaning of their own.
pub fn free_tags(exchange: &Exchange) -> impl Iterator<Item = (&str, &str)> {
    let free = exchange.tags.iter().filter(|(name, _)| !tags::KNOWN.contains(&name.as_str()));
    free.map(|(name, value)| (name.as_str(), value.as_str()))
}

/// What was kept of a body.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// All of it, or what a policy left of it.
    Json(Value),
    /// It is no JSON, or its JSON was cut short, or cannot be read here: 128 levels deep, half a surrogate pair.
    Text(String),
}

impl Kept {
    /// A text as JSON has it.
    pub fn into_value(self) -> Value {
        match self {
            Self::Json(value) => value,
            Self::Text(text) => text.into(),
        }
    }
}

/// What was kept of the request's body; `None` where that is nothing, or no more than a checksum.
pub fn kept_request(exchange: &Exchange) -> Option<Kept> {
    kept(exchange.content.as_ref()?.request.as_ref()?)
}

/// As [`kept_request`], of the answer's.
pub fn kept_response(exchange: &Exchange) -> Option<Kept> {
    kept(exchange.content.as_ref()?.response.as_ref()?)
}

fn kept(body: &Body) -> Option<Kept> {
    let Some(json) = &body.json else { return body.text.clone().map(Kept::Text) };
    let text = |_| Kept::Text(String::from_utf8_lossy(json).into_owned());
    Some(serde_json::from_slice(json).map_or_else(text, Kept::Json))
}

/// The model that answered, or else the one that was asked for.
pub fn model(exchange: &Exchange) -> Option<&str> {
    exchange.model.as_deref().or(exchange.model_requested.as_deref())
}

/// When the exchange began and ended, in milliseconds since the Unix epoch, never before it; the end is not before the
/// beginning.
pub fn span_ms(event: &Event) -> (u64, u64) {
    let times = event.exchange.times.unwrap_or_default();
    let began_us = u64::try_from(times.received_us.unwrap_or(event.time_us)).unwrap_or(0);
    let steps = [times.forwarded_us, times.first_byte_us, times.first_chunk_us, times.last_byte_us];
    let lasted_us = steps.into_iter().flatten().max().unwrap_or(0);
    (began_us / 1_000, began_us.saturating_add(lasted_us) / 1_000)
}

/// Milliseconds since the Unix epoch in RFC 3339. `None` past the year 9999, which the format cannot express.
pub fn rfc3339(milliseconds: u64) -> Option<String> {
    let nanoseconds = i128::from(milliseconds).saturating_mul(1_000_000);
    UtcDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?.format(&Rfc3339).ok()
}

/// What went wrong, in a few words; `None` if the provider's answer was relayed whole and was none of an error.
pub fn failure(exchange: &Exchange) -> Option<String> {
    let outcome = exchange.outcome();
    match (outcome, exchange.status) {
        (Outcome::Finished, Some(status @ 400..)) => Some(format!("the provider answered {status}")),
        (Outcome::Finished, _) => None,
        _ => Some(match &exchange.reason {
            Some(reason) => format!("{outcome}: {reason}"),
            None => outcome.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::event::{Content, Times};

    fn event(times: Option<Times>, time_us: i64) -> Event {
        let exchange = Exchange { times, ..Exchange::default() };
        Event { seq: 1, id: Uuid::nil(), time_us, exchange, payload: Box::default() }
    }

    #[test]
    fn an_exchange_ends_with_the_last_thing_that_is_known_of_it() {
        let times = Times { received_us: Some(5_000_000), ..Times::default() };
        for (times, time_us, expected) in [
            (None, 7_000_999, (7_000, 7_000)),
            (None, -1, (0, 0)),
            (Some(times), 7_000_000, (5_000, 5_000)),
            (Some(Times { first_byte_us: Some(250_000), ..times }), 0, (5_000, 5_250)),
            (Some(Times { first_byte_us: Some(250_000), last_byte_us: Some(1_420_000), ..times }), 0, (5_000, 6_420)),
            (Some(Times { last_byte_us: Some(u64::MAX), ..times }), 0, (5_000, u64::MAX / 1_000)),
        ] {
            assert_eq!(span_ms(&event(times, time_us)), expected, "{times:?}");
        }
    }

    #[test]
    fn times_are_written_as_everybody_reads_them() {
        for (milliseconds, expected) in [
            (0, Some("1970-01-01T00:00:00Z")),
            (1_795_204_801_420, Some("2026-11-20T20:00:01.42Z")),
            (253_402_300_799_999, Some("9999-12-31T23:59:59.999Z")),
            (253_402_300_800_000, None),
            (u64::MAX, None),
        ] {
            assert_eq!(rfc3339(milliseconds).as_deref(), expected, "{milliseconds}");
        }
    }

    #[test]
    fn a_failure_has_a_name_and_a_success_has_none() {
        let some = |text: &str| Some(text.to_owned());
        for (outcome, status, reason, expected) in [
            (Outcome::Finished, Some(200), None, None),
            (Outcome::Finished, None, some("until_close"), None),
            (Outcome::Finished, Some(429), None, Some("the provider answered 429")),
            (Outcome::Timeout, Some(504), some("first_byte"), Some("timeout: first_byte")),
            (Outcome::ClientGone, None, None, Some("client_gone")),
        ] {
            let exchange = Exchange { outcome: outcome.into(), status, reason, ..Exchange::default() };
            assert_eq!(failure(&exchange).as_deref(), expected, "{outcome}");
        }
    }

    #[test]
    fn tags_with_a_meaning_are_apart_from_free_ones() {
        let pairs = [("team", "blue"), (tags::USER_ID, "ann"), (tags::SESSION_ID, "s1")];
        let tags = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let exchange = Exchange { tags: BTreeMap::from_iter(tags), ..Exchange::default() };
        assert_eq!((tag(&exchange, tags::USER_ID), tag(&exchange, tags::SESSION_NAME)), (Some("ann"), None));
        assert_eq!(free_tags(&exchange).collect::<Vec<_>>(), [("team", "blue")]);
    }

    #[test]
    fn what_was_kept_of_a_body_is_json_where_that_can_be_read_and_else_text() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let (none, some) = (Body::default, |text: &str| Some(text.to_owned()));
        for (body, expected) in [
            (none(), None),
            (Body { sha256: some("e3b0"), omitted: some("binary"), ..none() }, None),
            (Body { json: Some(b"{\"a\":[1]}".to_vec()), ..none() }, Some(Kept::Json(json!({"a": [1]})))),
            (Body { json: Some(b"{\"a\":".to_vec()), ..none() }, Some(Kept::Text("{\"a\":".to_owned()))),
            (Body { json: Some(deep.clone().into_bytes()), ..none() }, Some(Kept::Text(deep.clone()))),
            (Body { text: some("WEBVTT"), ..none() }, Some(Kept::Text("WEBVTT".to_owned()))),
        ] {
            let content = Content { request: Some(body.clone()), ..Content::default() };
            let exchange = Exchange { content: Some(content), ..Exchange::default() };
            assert_eq!((kept_request(&exchange), kept_response(&exchange)), (expected, None), "{body:?}");
        }
        assert_eq!(kept_request(&Exchange::default()), None);
    }
}
