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

use super::number::{Counts, count, present};
use super::tally::{Form, Tally, ended_choices};
use super::walk::Walk;

/// Prefixes of the `type` of events that are not chat chunks.
const TYPED: [&str; 5] = ["response.", "transcript.", "speech.", "image_generation.", "image_edit."];
/// A `type` stands near the beginning of its event.
const TYPE_WITHIN_BYTES: usize = 64;

#[derive(Default)]
struct Message<'a> {
    object: Option<&'a [u8]>,
    kind: Option<&'a [u8]>,
    model: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    choices: Option<Vec<(u64, &'a [u8])>>,
    usage: Option<&'a [u8]>,
    groq_usage: Option<&'a [u8]>,
    response: Option<Response<'a>>,
}

#[derive(Default)]
struct Response<'a> {
    model: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    usage: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut message = Self::default();
        let mut walk = Walk::new(data);
        walk.members(|name, walk| match name {
            b"object" => walk.keep(&mut message.object),
            b"type" => walk.keep(&mut message.kind),
            b"model" => walk.keep(&mut message.model),
            b"status" => walk.keep(&mut message.status),
            b"usage" => walk.keep(&mut message.usage),
            b"choices" => walk.unless_null(|walk| {
                let choices = ended_choices(walk, b"finish_reason")?;
                message.choices.replace(choices).is_none().then_some(())
            }),
            b"x_groq" => walk.unless_null(|walk| {
                walk.members(|name, walk| match name {
                    b"usage" => walk.keep(&mut message.groq_usage),
                    _ => walk.skip(),
                })
            }),
            b"response" => walk.unless_null(|walk| {
                let response = Response::parse(walk)?;
                message.response.replace(response).is_none().then_some(())
            }),
            _ => walk.skip(),
        })?;
        walk.end()?;
        Some(message)
    }
}

impl<'a> Response<'a> {
    fn parse(walk: &mut Walk<'a>) -> Option<Self> {
        let mut response = Self::default();
        walk.members(|name, walk| match name {
            b"model" => walk.keep(&mut response.model),
            b"status" => walk.keep(&mut response.status),
            b"usage" => walk.keep(&mut response.usage),
            _ => walk.skip(),
        })?;
        Some(response)
    }
}

/// Reads a chunk, an event or a body; false if it is none.
pub(super) fn read(data: &[u8], tally: &mut Tally) -> bool {
    let Some(message) = Message::parse(data) else { return false };
    tally.name_model(message.model);
    if let Some(choices) = message.choices {
        tally.form = Form::Choices;
        for (index, reason) in choices {
            tally.finish_choice(index, Some(reason));
        }
    }
    if is_typed(message.kind) && tally.form == Form::Unseen {
        tally.form = Form::Typed;
    }
    if matches!(message.object, Some(b"\"response\"")) {
        finish_response(message.status, tally);
    }
    tally.report(message.groq_usage);
    tally.report(message.usage);
    if let Some(response) = message.response {
        tally.name_model(response.model);
        finish_response(response.status, tally);
        tally.report(response.usage);
    }
    true
}

fn is_typed(kind: Option<&[u8]>) -> bool {
    let kind = kind.and_then(|kind| kind.strip_prefix(b"\"")).unwrap_or_default();
    TYPED.iter().any(|prefix| kind.starts_with(prefix.as_bytes()))
}

/// A response's status is its finish reason once it is one.
fn finish_response(status: Option<&[u8]>, tally: &mut Tally) {
    let is_open = status.is_none_or(|status| matches!(status, b"\"in_progress\"" | b"\"queued\""));
    if !is_open {
        tally.finish_choice(0, status);
    }
}

/// Whether an event's delta is audio in base64 rather than text.
pub(super) fn is_audio_delta(data: &[u8]) -> bool {
    let head = data.get(..TYPE_WITHIN_BYTES).unwrap_or(data);
    memchr::memmem::find(head, b"audio.delta").is_some()
}

#[derive(Default)]
struct Reported<'a> {
    prompt_tokens: Option<&'a [u8]>,
    completion_tokens: Option<&'a [u8]>,
    prompt_tokens_details: Option<&'a [u8]>,
    completion_tokens_details: Option<&'a [u8]>,
    /// DeepSeek.
    prompt_cache_hit_tokens: Option<&'a [u8]>,
    input_tokens: Option<&'a [u8]>,
    output_tokens: Option<&'a [u8]>,
    input_tokens_details: Option<&'a [u8]>,
    output_tokens_details: Option<&'a [u8]>,
    input_token_details: Option<&'a [u8]>,
    output_token_details: Option<&'a [u8]>,
}

impl<'a> Reported<'a> {
    fn parse(usage: &'a [u8]) -> Option<Self> {
        let mut reported = Self::default();
        Walk::new(usage).members(|name, walk| match name {
            b"prompt_tokens" => walk.keep(&mut reported.prompt_tokens),
            b"completion_tokens" => walk.keep(&mut reported.completion_tokens),
            b"prompt_tokens_details" => walk.keep(&mut reported.prompt_tokens_details),
            b"completion_tokens_details" => walk.keep(&mut reported.completion_tokens_details),
            b"prompt_cache_hit_tokens" => walk.keep(&mut reported.prompt_cache_hit_tokens),
            b"input_tokens" => walk.keep(&mut reported.input_tokens),
            b"output_tokens" => walk.keep(&mut reported.output_tokens),
            b"input_tokens_details" => walk.keep(&mut reported.input_tokens_details),
            b"output_tokens_details" => walk.keep(&mut reported.output_tokens_details),
            b"input_token_details" => walk.keep(&mut reported.input_token_details),
            b"output_token_details" => walk.keep(&mut reported.output_token_details),
            _ => walk.skip(),
        })?;
        Some(reported)
    }
}

#[derive(Default)]
struct Details<'a> {
    cached_tokens: Option<&'a [u8]>,
    cache_write_tokens: Option<&'a [u8]>,
    reasoning_tokens: Option<&'a [u8]>,
    audio_tokens: Option<&'a [u8]>,
}

impl<'a> Details<'a> {
    /// Reads the first that is there.
    fn parse(spellings: [Option<&'a [u8]>; 3]) -> Option<Self> {
        let object = spellings.into_iter().find_map(present)?;
        let mut details = Self::default();
        Walk::new(object).members(|name, walk| match name {
            b"cached_tokens" => walk.keep(&mut details.cached_tokens),
            b"cache_write_tokens" => walk.keep(&mut details.cache_write_tokens),
            b"reasoning_tokens" => walk.keep(&mut details.reasoning_tokens),
            b"audio_tokens" => walk.keep(&mut details.audio_tokens),
            _ => walk.skip(),
        })?;
        Some(details)
    }
}

/// The numbers of a usage object.
pub(super) fn counts(usage: &[u8]) -> Counts {
    let reported = Reported::parse(usage).unwrap_or_default();
    let input =
        Details::parse([reported.prompt_tokens_details, reported.input_tokens_details, reported.input_token_details])
            .unwrap_or_default();
    let output = Details::parse([
        reported.completion_tokens_details,
        reported.output_tokens_details,
        reported.output_token_details,
    ])
    .unwrap_or_default();
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
