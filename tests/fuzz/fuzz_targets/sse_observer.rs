//! Does the meter tell the same of a stream in every split, and what the stream itself says?
//!
//! Half of the inputs are streams as they come: every split must tell the same, the events must be those that a second
//! reader finds, the places for an event of ours those of a byte-wise one, and a usage object must stand in an event. The
//! other half are texts, out of which a proper stream of a dialect is built: whatever a model writes, and however the
//! stream is written (line ends, comments, JSON over several lines), the numbers are the provider's.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::usage::{Ended, Number, Source};
use llm_proxy_fuzz::events::{self, Boundary};
use llm_proxy_fuzz::metered::{Head, Told};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, find, pieces};
use serde_json::Value;

/// Streams up to this length are cut in two at every place.
const EVERY_SPLIT: usize = 192;

fuzz_target!(|input: &[u8]| {
    let Some(([how, style, plan @ ..], bytes)) = input.split_first_chunk::<4>() else { return };
    let dialect = Dialect::ALL[usize::from(how % 4)];
    let head = Head { dialect, is_stream: true, coding: "" };
    if how & 4 == 0 {
        let ended = if how & 8 == 0 { Ended::Whole } else { Ended::Cut };
        as_it_comes(head, ended, bytes, plan);
    } else {
        built(head, *style, bytes, plan);
    }
});

fn as_it_comes(head: Head, ended: Ended, stream: &[u8], plan: &[u8]) {
    let told = in_any_split(head, ended, stream, plan);
    let events = events::read(stream);
    assert_eq!(told.chunks, Some(events.len() as u64), "{events:?}");
    // Anthropic's is put together from two events.
    if let (Some(provider), false) = (&told.provider, head.dialect == Dialect::Anthropic) {
        let is_in = |event: &Vec<u8>| find(event, provider.as_bytes()).is_some();
        assert!(events.iter().any(is_in), "{provider} stands in no event");
    }
    let mut meter = head.meter();
    let mut boundary = Boundary::default();
    for at in 0..=stream.len() {
        assert_eq!(meter.at_event_boundary(), boundary.is_here(), "after {at} bytes");
        assert!(!meter.is_over() || meter.at_event_boundary(), "after {at} bytes");
        if let Some(byte) = stream.get(at) {
            meter.observe(&[*byte]);
            boundary.pass(*byte);
        }
    }
}

fn built(head: Head, style: u8, bytes: &[u8], plan: &[u8]) {
    let Some(([a, b, c, d], texts)) = bytes.split_first_chunk::<4>() else { return };
    let (input, output) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
    let texts: Vec<_> = texts.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let texts: Vec<String> = texts.iter().map(|text| Value::from(&**text).to_string()).collect();
    let (events, finish_reason) = events_of(head.dialect, input, output, &texts);

    let stream = written(&events, style);
    let told = in_any_split(head, Ended::Whole, stream.as_bytes(), plan);
    let number = |tokens: u16| Some(Number { tokens: tokens.into(), source: Source::Reported });
    assert_eq!((told.numbers[0], told.numbers[1]), (number(input), number(output)), "{stream}");
    assert_eq!(told.chunks, Some(events.len() as u64), "{stream}");
    assert_eq!(told.named.model.as_deref(), Some("a-model"), "{stream}");
    assert_eq!(told.named.finish_reasons, [finish_reason], "{stream}");
}

/// What the meter tells of a stream in one piece, after a look at other splits.
fn in_any_split(head: Head, ended: Ended, stream: &[u8], plan: &[u8]) -> Told {
    let told = head.told(&pieces(stream, WHOLE), ended);
    for plan in [BYTE_BY_BYTE, plan] {
        assert_eq!(head.told(&pieces(stream, plan), ended), told, "in pieces of {plan:?}");
    }
    if stream.len() <= EVERY_SPLIT {
        for at in 0..=stream.len() {
            let (left, right) = stream.split_at(at);
            assert_eq!(head.told(&[left, right], ended), told, "split at {at}");
        }
    }
    told
}

/// The events of a whole answer in these texts, which are JSON strings, and why it ended.
fn events_of(dialect: Dialect, input: u16, output: u16, texts: &[String]) -> (Vec<String>, &'static str) {
    let texts = texts.iter().map(String::as_str);
    match dialect {
        Dialect::OpenAi | Dialect::Azure => {
            let chunk = |delta: &str, reason: &str| {
                format!(
                    r#"{{"model":"a-model","choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}],"usage":null}}"#
                )
            };
            let mut events: Vec<String> =
                texts.map(|text| chunk(&format!(r#"{{"content":{text}}}"#), "null")).collect();
            events.push(chunk("{}", r#""stop""#));
            events.push(format!(
                r#"{{"model":"a-model","choices":[],"usage":{{"prompt_tokens":{input},"completion_tokens":{output}}}}}"#
            ));
            events.push("[DONE]".to_owned());
            (events, "stop")
        }
        Dialect::Anthropic => {
            let mut events = vec![format!(
                r#"{{"type":"message_start","message":{{"model":"a-model","usage":{{"input_tokens":{input},"output_tokens":1}}}}}}"#
            )];
            events.extend(texts.map(|text| {
                format!(r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":{text}}}}}"#)
            }));
            events.push(format!(
                r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{{"output_tokens":{output}}}}}"#
            ));
            events.push(r#"{"type":"message_stop"}"#.to_owned());
            (events, "end_turn")
        }
        Dialect::Gemini => {
            let event = |text: &str, reason: &str| {
                format!(
                    r#"{{"candidates":[{{"content":{{"parts":[{{"text":{text}}}]}}{reason}}}],"usageMetadata":{{"promptTokenCount":{input},"candidatesTokenCount":{output}}},"modelVersion":"a-model"}}"#
                )
            };
            let mut events: Vec<String> = texts.map(|text| event(text, "")).collect();
            events.push(event(r#""""#, r#","finishReason":"STOP""#));
            (events, "STOP")
        }
    }
}

/// The events as a stream: bits of `style` choose line ends, JSON over several lines, comments and a byte order mark.
fn written(events: &[String], style: u8) -> String {
    let line_end = ["\n", "\r\n", "\r"][usize::from(style % 3)];
    let mut stream = String::new();
    if style & 4 != 0 {
        stream.push('\u{feff}');
    }
    for event in events {
        if style & 8 != 0 {
            stream.push_str(&[": ping", line_end, line_end].concat());
        }
        let pretty = match serde_json::from_str::<Value>(event) {
            Ok(value) if style & 16 != 0 => serde_json::to_string_pretty(&value).expect("a value is JSON"),
            _ => event.clone(),
        };
        for line in pretty.lines() {
            stream.push_str(&[if style & 32 == 0 { "data: " } else { "data:" }, line, line_end].concat());
        }
        stream.push_str(&["id: 7", line_end, line_end].concat());
    }
    stream
}
