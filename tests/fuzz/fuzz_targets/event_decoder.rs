//! Do the readers of events agree on what an event says?
//!
//! An input is the payload of a record. The counter's two readers, which take a few fields and pass over the rest, are
//! compared with the decoder of whole messages, on the input and on what the encoder makes of it again. What is decoded
//! is encoded to the same again, in as many bytes as were announced; and its line of JSON is one line, JSON, and names
//! the same event.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_plugins::event::{Begin, BeginKey, EndKey, Exchange, Message, Source, TOKEN_CLASSES, to_json_line};
use serde::Deserialize;

fuzz_target!(|input: &[u8]| {
    if let Ok(begin) = Begin::decode(input) {
        // A group is passed over by the one and refused by the other: nobody writes any.
        if let Some(key) = BeginKey::read(input) {
            assert_eq!(key, key_of_begin(&begin));
        }
        assert_eq!(BeginKey::read(&encoded(&begin)), Some(key_of_begin(&begin)));
    }
    if let Ok(exchange) = Exchange::decode(input) {
        if let Some(key) = EndKey::read(input) {
            assert_eq!(key, key_of(&exchange));
        }
        assert_eq!(EndKey::read(&encoded(&exchange)), Some(key_of(&exchange)));
        is_told_in_one_line(&exchange);
    }
});

/// The bytes of a message, which say the same as it.
fn encoded<M: Message + Default + PartialEq>(message: &M) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    assert_eq!(bytes.len(), message.encoded_len());
    assert!(M::decode(bytes.as_slice()).as_ref() == Ok(message), "an event reads otherwise when it is written again");
    bytes
}

fn key_of_begin(begin: &Begin) -> BeginKey<'_> {
    BeginKey { token_id: &begin.token_id, received_us: begin.received_us }
}

fn key_of(exchange: &Exchange) -> EndKey<'_> {
    let usage = exchange.usage.clone().unwrap_or_default();
    let numbers = [
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
        usage.reasoning_output_tokens,
        usage.audio_input_tokens,
        usage.audio_output_tokens,
    ];
    let mut tokens = [None; 7];
    for ((told, number), class) in tokens.iter_mut().zip(numbers).zip(TOKEN_CLASSES) {
        let code = usage.sources.get(class).copied().unwrap_or(usage.source);
        *told = number.map(|number| (number, Source::try_from(code).unwrap_or_default()));
    }
    let times = exchange.times.unwrap_or_default();
    fn text(text: &Option<String>) -> &str {
        text.as_deref().unwrap_or_default()
    }
    EndKey {
        r#type: exchange.r#type(),
        project_id: text(&exchange.project_id),
        token_id: text(&exchange.token_id),
        api: text(&exchange.api),
        model_requested: text(&exchange.model_requested),
        model: text(&exchange.model),
        stream: exchange.stream.unwrap_or_default(),
        status: exchange.status.unwrap_or_default(),
        outcome: exchange.outcome(),
        source: usage.source(),
        tokens,
        cost_usd: exchange.cost.as_ref().map(|cost| text(&cost.usd)).unwrap_or_default(),
        received_us: times.received_us,
        first_byte_us: times.first_byte_us,
        first_chunk_us: times.first_chunk_us,
        last_byte_us: times.last_byte_us,
        count: exchange.count.max(1),
    }
}

/// Fields with other names are passed over, however deep.
#[derive(Deserialize)]
struct Line {
    id: String,
    project_id: Option<String>,
    count: u64,
}

fn is_told_in_one_line(exchange: &Exchange) {
    let json = to_json_line(exchange);
    assert!(!json.contains(&b'\n') && !json.contains(&b'\r'));
    let line: Line = serde_json::from_slice(&json).expect("the line is JSON");
    assert_eq!((&line.id, &line.project_id, line.count), (&exchange.id, &exchange.project_id, exchange.count.max(1)));
}
