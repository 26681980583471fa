//! The two records of an exchange, written from their parts where these lie.
//!
//! Every exchange is written twice, on the way of its request. Gathering a message first costs a text of its own for each
//! field, and walking through all of it once more for the lengths: together more than the writing. What is written here is
//! byte for byte what the generated messages would be; the tests compare.

use std::collections::BTreeMap;

use prost::Message;

use super::{Content, Outcome, SCHEMA, Times, Usage};

/// The parts of a [`Begin`](super::Begin).
#[derive(Clone, Copy, Debug, Default)]
pub struct BeginParts<'a> {
    /// UUIDv7 in text form.
    pub id: &'a str,
    /// Whose.
    pub project_id: &'a str,
    /// Whose.
    pub token_id: &'a str,
    /// Name of the API in the configuration.
    pub api: &'a str,
    /// Of the API.
    pub dialect: &'a str,
    /// Template, ids replaced.
    pub endpoint: &'a str,
    /// As received.
    pub method: &'a str,
    /// Where it is known.
    pub model_requested: Option<&'a str>,
    /// Microseconds since the Unix epoch.
    pub received_us: i64,
    /// 1 for the first upstream tried.
    pub attempt: u32,
    /// Where the operator has asked for it.
    pub client_address: Option<&'a str>,
}

impl BeginParts<'_> {
    /// Appends the message to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let mut to = Fields(bytes);
        to.text(1, self.id);
        to.text(2, self.project_id);
        to.text(3, self.token_id);
        to.text(4, self.api);
        to.text(5, self.dialect);
        to.text(6, self.endpoint);
        to.text(7, self.method);
        to.some_text(8, self.model_requested);
        to.number(9, self.received_us.cast_unsigned());
        to.number(10, self.attempt.into());
        to.some_text(11, self.client_address);
    }
}

/// The parts of an [`Exchange`](super::Exchange) that is one, and no management action.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeParts<'a> {
    /// UUIDv7 in text form.
    pub id: &'a str,
    /// Whose.
    pub project_id: Option<&'a str>,
    /// Whose.
    pub token_id: Option<&'a str>,
    /// Name of the API in the configuration.
    pub api: Option<&'a str>,
    /// Of the API, or likely.
    pub dialect: Option<&'a str>,
    /// Template, ids replaced.
    pub endpoint: Option<&'a str>,
    /// As received.
    pub method: Option<&'a str>,
    /// Where it is known.
    pub model_requested: Option<&'a str>,
    /// The model that the answer names.
    pub model: Option<&'a str>,
    /// Whether the answer was a stream.
    pub stream: Option<bool>,
    /// HTTP status that the client saw.
    pub status: Option<u32>,
    /// How it ended.
    pub outcome: Outcome,
    /// What led to that.
    pub reason: Option<&'a str>,
    /// Tokens.
    pub usage: Option<&'a Usage>,
    /// US dollars, decimal.
    pub usd: Option<&'a str>,
    /// Version of the price table.
    pub prices: &'a str,
    /// When things happened.
    pub times: Times,
    /// Events of a stream, else pieces.
    pub chunks: Option<u64>,
    /// Of the body sent to the provider.
    pub request_bytes: u64,
    /// Of the body that came from it.
    pub response_bytes: u64,
    /// As the answer gives them.
    pub finish_reasons: &'a [String],
    /// The client's id of the request.
    pub client_request_id: Option<&'a str>,
    /// The provider's.
    pub provider_request_id: Option<&'a str>,
    /// 1 for the first upstream tried.
    pub attempt: Option<u32>,
    /// How many exchanges the record stands for.
    pub count: u64,
    /// What the client says of itself.
    pub tags: &'a BTreeMap<String, String>,
    /// Where the operator has asked for it.
    pub client_address: Option<&'a str>,
    /// What is kept of the bodies.
    pub content: Option<&'a Content>,
}

impl ExchangeParts<'_> {
    /// Appends the message to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let mut to = Fields(bytes);
        to.text(1, self.id);
        to.number(3, SCHEMA.into());
        to.some_text(4, self.project_id);
        to.some_text(5, self.token_id);
        to.some_text(6, self.api);
        to.some_text(7, self.dialect);
        to.some_text(8, self.endpoint);
        to.some_text(9, self.method);
        to.some_text(10, self.model_requested);
        to.some_text(11, self.model);
        to.some_number(12, self.stream.map(u64::from));
        to.some_number(13, self.status.map(u64::from));
        to.code(14, self.outcome.into());
        to.some_text(15, self.reason);
        if let Some(usage) = self.usage {
            to.message(16, |to| put_usage(to, usage));
        }
        to.message(17, |to| {
            to.some_text(1, self.usd);
            to.some_text(2, Some(self.prices));
        });
        to.message(18, |to| {
            to.some_number(1, self.times.received_us.map(i64::cast_unsigned));
            to.some_number(2, self.times.forwarded_us);
            to.some_number(3, self.times.first_byte_us);
            to.some_number(4, self.times.first_chunk_us);
            to.some_number(5, self.times.last_byte_us);
        });
        to.some_number(19, self.chunks);
        to.some_number(20, Some(self.request_bytes));
        to.some_number(21, Some(self.response_bytes));
        for reason in self.finish_reasons {
            to.some_text(22, Some(reason));
        }
        to.some_text(23, self.client_request_id);
        to.some_text(24, self.provider_request_id);
        to.some_number(25, self.attempt.map(u64::from));
        to.number(26, self.count);
        for (tag, value) in self.tags {
            to.message(27, |to| {
                to.text(1, tag);
                to.text(2, value);
            });
        }
        to.some_text(28, self.client_address);
        if let Some(content) = self.content {
            to.key(29, LENGTH_DELIMITED);
            // Fails only where the buffer cannot grow, and this one can.
            let _ = content.encode_length_delimited(to.0);
        }
    }
}

fn put_usage(to: &mut Fields<'_>, usage: &Usage) {
    to.code(1, usage.source);
    for (field, source) in &usage.sources {
        to.message(2, |to| {
            to.text(1, field);
            to.code(2, *source);
        });
    }
    to.some_number(3, usage.input_tokens);
    to.some_number(4, usage.output_tokens);
    to.some_number(5, usage.cache_read_input_tokens);
    to.some_number(6, usage.cache_creation_input_tokens);
    to.some_number(7, usage.reasoning_output_tokens);
    to.some_number(8, usage.audio_input_tokens);
    to.some_number(9, usage.audio_output_tokens);
    if let Some(provider) = &usage.provider_json {
        to.bytes(10, provider);
    }
}

const VARINT: u32 = 0;
const LENGTH_DELIMITED: u32 = 2;

/// The fields of a message on their way (Protocol Buffers, "Encoding"), in the order of their numbers.
struct Fields<'b>(&'b mut Vec<u8>);

impl Fields<'_> {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.varint(u64::from((field << 3) | kind));
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// One that cannot be absent, only empty.
    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn some_text(&mut self, field: u32, text: Option<&str>) {
        if let Some(text) = text {
            self.bytes(field, text.as_bytes());
        }
    }

    /// One that cannot be absent, only 0.
    fn number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.some_number(field, Some(number));
        }
    }

    fn some_number(&mut self, field: u32, number: Option<u64>) {
        if let Some(number) = number {
            self.key(field, VARINT);
            self.varint(number);
        }
    }

    /// An enum. Negative ones are written as 64 bits.
    fn code(&mut self, field: u32, code: i32) {
        self.number(field, i64::from(code).cast_unsigned());
    }

    /// A message within. Its length is known once it is written: nearly always one byte, for which room is left.
    fn message(&mut self, field: u32, put: impl FnOnce(&mut Fields<'_>)) {
        self.key(field, LENGTH_DELIMITED);
        let at = self.0.len();
        self.0.push(0);
        put(&mut Fields(self.0));
        let length = self.0.len().saturating_sub(at).saturating_sub(1);
        if length < 0x80 {
            if let Some(byte) = self.0.get_mut(at) {
                *byte = length as u8;
            }
            return;
        }
        let mut written = Vec::with_capacity(4);
        Fields(&mut written).varint(length as u64);
        self.0.splice(at..at.saturating_add(1), written);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::super::{Begin, Body, Cost, Exchange};
    use super::*;

    fn text() -> BoxedStrategy<String> {
        prop_oneof![Just(String::new()), "[a-z]{1,20}", "\\PC{0,200}"].boxed()
    }

    fn number() -> BoxedStrategy<u64> {
        prop_oneof![Just(0), 1..1_000_u64, any::<u64>()].boxed()
    }

    prop_compose! {
        fn usage()(
            source in 0..3_i32, sources in btree_map(text(), 0..3_i32, 0..3), numbers in vec(option::of(number()), 7),
            provider_json in option::of(vec(any::<u8>(), 0..300)),
        ) -> Usage {
            Usage {
                source,
                sources,
                input_tokens: numbers[0],
                output_tokens: numbers[1],
                cache_read_input_tokens: numbers[2],
                cache_creation_input_tokens: numbers[3],
                reasoning_output_tokens: numbers[4],
                audio_input_tokens: numbers[5],
                audio_output_tokens: numbers[6],
                provider_json,
            }
        }
    }

    prop_compose! {
        fn exchange()(
            texts in vec(option::of(text()), 13), plain in (text(), text()), usage in option::of(usage()),
            numbers in vec(option::of(number()), 5), bytes in (number(), number(), number()),
            small in (option::of(any::<u32>()), option::of(any::<u32>()), option::of(any::<bool>()), 0..10_i32),
            finish_reasons in vec(text(), 0..3), tags in btree_map(text(), text(), 0..3),
            received_us in option::of(any::<i64>()), body in option::of(vec(any::<u8>(), 0..300)),
        ) -> Exchange {
            let (status, attempt, stream, outcome) = small;
            let mut texts = texts.into_iter();
            let mut next = || texts.next().flatten();
            Exchange {
                id: plain.0,
                schema: SCHEMA,
                project_id: next(),
                token_id: next(),
                api: next(),
                dialect: next(),
                endpoint: next(),
                method: next(),
                model_requested: next(),
                model: next(),
                stream,
                status,
                outcome,
                reason: next(),
                usage,
                cost: Some(Cost { usd: next(), prices: Some(plain.1) }),
                times: Some(Times {
                    received_us,
                    forwarded_us: numbers[0],
                    first_byte_us: numbers[1],
                    first_chunk_us: numbers[2],
                    last_byte_us: numbers[3],
                }),
                chunks: numbers[4],
                request_bytes: Some(bytes.0),
                response_bytes: Some(bytes.1),
                finish_reasons,
                client_request_id: next(),
                provider_request_id: next(),
                attempt,
                count: bytes.2,
                tags,
                client_address: next(),
                content: body.map(|json| Content {
                    request: Some(Body { json: Some(json), ..Body::default() }),
                    ..Content::default()
                }),
                ..Exchange::default()
            }
        }
    }

    proptest! {
        #[test]
        fn an_exchange_is_written_as_its_message_is(exchange in exchange()) {
            let cost = exchange.cost.clone().unwrap();
            let parts = ExchangeParts {
                id: &exchange.id,
                project_id: exchange.project_id.as_deref(),
                token_id: exchange.token_id.as_deref(),
                api: exchange.api.as_deref(),
                dialect: exchange.dialect.as_deref(),
                endpoint: exchange.endpoint.as_deref(),
                method: exchange.method.as_deref(),
                model_requested: exchange.model_requested.as_deref(),
                model: exchange.model.as_deref(),
                stream: exchange.stream,
                status: exchange.status,
                outcome: exchange.outcome(),
                reason: exchange.reason.as_deref(),
                usage: exchange.usage.as_ref(),
                usd: cost.usd.as_deref(),
                prices: cost.prices.as_deref().unwrap(),
                times: exchange.times.unwrap(),
                chunks: exchange.chunks,
                request_bytes: exchange.request_bytes.unwrap(),
                response_bytes: exchange.response_bytes.unwrap(),
                finish_reasons: &exchange.finish_reasons,
                client_request_id: exchange.client_request_id.as_deref(),
                provider_request_id: exchange.provider_request_id.as_deref(),
                attempt: exchange.attempt,
                count: exchange.count,
                tags: &exchange.tags,
                client_address: exchange.client_address.as_deref(),
                content: exchange.content.as_ref(),
            };
            let mut bytes = b"before".to_vec();
            parts.encode(&mut bytes);
            prop_assert_eq!(&bytes[6..], exchange.encode_to_vec());
        }

        #[test]
        fn a_begin_is_written_as_its_message_is(
            texts in vec(text(), 7),
            model_requested in option::of(text()),
            client_address in option::of(text()),
            received_us in any::<i64>(),
            attempt in any::<u32>(),
        ) {
            let parts = BeginParts {
                id: &texts[0],
                project_id: &texts[1],
                token_id: &texts[2],
                api: &texts[3],
                dialect: &texts[4],
                endpoint: &texts[5],
                method: &texts[6],
                model_requested: model_requested.as_deref(),
                received_us,
                attempt,
                client_address: client_address.as_deref(),
            };
            let mut bytes = Vec::new();
            parts.encode(&mut bytes);
            let [id, project_id, token_id, api, dialect, endpoint, method] = texts.clone().try_into().unwrap();
            let begin = Begin {
                id, project_id, token_id, api, dialect, endpoint, method, model_requested: model_requested.clone(),
                received_us, attempt, client_address: client_address.clone(),
            };
            prop_assert_eq!(bytes, begin.encode_to_vec());
        }
    }
}
