//! OpenAI's dialect and everything compatible with it; Azure speaks the same.
//!
//! One reader serves chunks, events and JSON bodies, because the places do not collide: `usage` at the top (chat,
//! completions, embeddings, images, transcription, speech and transcript events; Mistral, DeepSeek and OpenRouter, the
//! latter also beside an `error`), `x_groq.usage` (Groq), `response.usage` (the Responses API's events). Two vocabularies
//! are in use: `prompt_tokens`/`completion_tokens` and `input_tokens`/`output_tokens`, the latter with two spellings of
//! its details (`input_tokens_details`; transcription: `input_token_details`).
//!
//! The prompt includes cached tokens and the completion reasoning, as in our meaning. `cache_write_tokens` is taken where
//! it is above 0: as 0 it is sent for models that write no cache, and tells nothing. Transcription billed by duration has
//! an object without token numbers: kept, numbers unknown.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::number::{Counts, count, object};
use super::tally::{Form, Tally};

/// Prefixes of the `type` of events that are not chat chunks.
const TYPED: [&str; 5] = ["response.", "transcript.", "speech.", "image_generation.", "image_edit."];
/// A `type` stands near the beginning of its event.
const TYPE_WITHIN_BYTES: usize = 64;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    x_groq: Option<Groq<'a>>,
    #[serde(borrow)]
    response: Option<Response<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    index: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Groq<'a> {
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

/// Reads a chunk, an event or a body; false if it is none.
pub(super) fn read(data: &[u8], tally: &mut Tally) -> bool {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(data) else { return false };
    tally.name_model(message.model);
    if let Some(choices) = message.choices {
        tally.form = Form::Choices;
        for (place, choice) in (0u64..).zip(choices) {
            tally.finish_choice(count(choice.index).unwrap_or(place), choice.finish_reason);
        }
    }
    if is_typed(message.kind) && tally.form == Form::Unseen {
        tally.form = Form::Typed;
    }
    if message.object.is_some_and(|object| object.get() == "\"response\"") {
        finish_response(message.status, tally);
    }
    tally.report(message.x_groq.and_then(|groq| groq.usage));
    tally.report(message.usage);
    if let Some(response) = message.response {
        tally.name_model(response.model);
        finish_response(response.status, tally);
        tally.report(response.usage);
    }
    true
}

fn is_typed(kind: Option<&RawValue>) -> bool {
    let kind = kind.and_then(|kind| kind.get().strip_prefix('"')).unwrap_or_default();
    TYPED.iter().any(|prefix| kind.starts_with(*prefix))
}

/// A response's status is its finish reason once it is one.
fn finish_response(status: Option<&RawValue>, tally: &mut Tally) {
    let is_open = status.is_none_or(|status| matches!(status.get(), "\"in_progress\"" | "\"queued\""));
    if !is_open {
        tally.finish_choice(0, status);
    }
}

/// Whether an event's delta is audio in base64 rather than text.
pub(super) fn is_audio_delta(data: &[u8]) -> bool {
    let head = data.get(..TYPE_WITHIN_BYTES).unwrap_or(data);
    memchr::memmem::find(head, b"audio.delta").is_some()
}

#[derive(Deserialize, Default)]
struct Reported<'a> {
    #[serde(borrow)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_tokens_details: Option<&'a RawValue>,
    #[serde(borrow)]
    completion_tokens_details: Option<&'a RawValue>,
    /// DeepSeek.
    #[serde(borrow)]
    prompt_cache_hit_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    input_tokens_details: Option<&'a RawValue>,
    #[serde(borrow)]
    output_tokens_details: Option<&'a RawValue>,
    #[serde(borrow)]
    input_token_details: Option<&'a RawValue>,
    #[serde(borrow)]
    output_token_details: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Details<'a> {
    #[serde(borrow)]
    cached_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_write_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    audio_tokens: Option<&'a RawValue>,
}

/// The numbers of a usage object.
pub(super) fn counts(usage: &RawValue) -> Counts {
    let reported: Reported<'_> = object(Some(usage));
    let input: Details<'_> =
        object(reported.prompt_tokens_details.or(reported.input_tokens_details).or(reported.input_token_details));
    let output: Details<'_> =
        object(reported.completion_tokens_details.or(reported.output_tokens_details).or(reported.output_token_details));
    Counts {
        input: count(reported.prompt_tokens).or_else(|| count(reported.input_tokens)),
        output: count(reported.completion_tokens).or_else(|| count(reported.output_tokens)),
        cache_read: count(input.cached_tokens).or_else(|| count(reported.prompt_cache_hit_tokens)),
        cache_creation: count(input.cache_write_tokens).filter(|tokens| *tokens > 0),
        reasoning: count(output.reasoning_tokens),
        audio_input: count(input.audio_tokens),
        audio_output: count(output.audio_tokens),
    }
}
