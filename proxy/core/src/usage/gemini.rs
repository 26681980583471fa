//! Google's Gemini API (`generateContent` and its streams).
//!
//! Every event repeats `usageMetadata` with the numbers so far; the last one counts. `candidatesTokenCount` leaves the
//! thoughts out; our output includes them. Zeros are left out of the JSON, so an answer of thoughts only has no candidates
//! number: then the thoughts are the output. `promptTokenCount` includes cached tokens. What a built-in tool fed the model
//! (`toolUsePromptTokenCount`, part of `totalTokenCount`) is not added to the input: it is no part of the prompt, and
//! search results are not billed as such; it can be read in the provider's object. Audio is told by modality.

use super::number::{Counts, count, present};
use super::tally::{Form, Tally, ended_choices};
use super::walk::Walk;

#[derive(Default)]
struct Message<'a> {
    candidates: Option<Vec<(u64, &'a [u8])>>,
    usage_metadata: Option<&'a [u8]>,
    model_version: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut message = Self::default();
        let mut walk = Walk::new(data);
        walk.members(|name, walk| match name {
            b"candidates" => walk.unless_null(|walk| {
                let candidates = ended_choices(walk, b"finishReason")?;
                message.candidates.replace(candidates).is_none().then_some(())
            }),
            b"usageMetadata" => walk.keep(&mut message.usage_metadata),
            b"modelVersion" => walk.keep(&mut message.model_version),
            _ => walk.skip(),
        })?;
        walk.end()?;
        Some(message)
    }
}

/// Reads an event, an array's element or a body; false if it is none.
pub(super) fn read(data: &[u8], tally: &mut Tally) -> bool {
    let Some(message) = Message::parse(data) else { return false };
    if message.candidates.is_some() || present(message.usage_metadata).is_some() {
        tally.form = Form::Candidates;
    }
    tally.name_model(message.model_version);
    for (index, reason) in message.candidates.unwrap_or_default() {
        tally.finish_choice(index, Some(reason));
    }
    tally.report(message.usage_metadata);
    true
}

/// Gives the elements of an array to `each`, as far as the array goes.
pub(super) fn for_each_element(body: &[u8], mut each: impl FnMut(&[u8])) {
    // A cut array ends behind its last whole element: what came before the cut has been seen.
    let _ = Walk::new(body).elements(|walk| {
        each(walk.value()?);
        Some(())
    });
}

#[derive(Default)]
struct Reported<'a> {
    prompt_token_count: Option<&'a [u8]>,
    candidates_token_count: Option<&'a [u8]>,
    thoughts_token_count: Option<&'a [u8]>,
    cached_content_token_count: Option<&'a [u8]>,
    prompt_tokens_details: Option<&'a [u8]>,
    candidates_tokens_details: Option<&'a [u8]>,
}

impl<'a> Reported<'a> {
    fn parse(usage: &'a [u8]) -> Option<Self> {
        let mut reported = Self::default();
        Walk::new(usage).members(|name, walk| match name {
            b"promptTokenCount" => walk.keep(&mut reported.prompt_token_count),
            b"candidatesTokenCount" => walk.keep(&mut reported.candidates_token_count),
            b"thoughtsTokenCount" => walk.keep(&mut reported.thoughts_token_count),
            b"cachedContentTokenCount" => walk.keep(&mut reported.cached_content_token_count),
            b"promptTokensDetails" => walk.keep(&mut reported.prompt_tokens_details),
            b"candidatesTokensDetails" => walk.keep(&mut reported.candidates_tokens_details),
            _ => walk.skip(),
        })?;
        Some(reported)
    }
}

/// The numbers of a `usageMetadata` object.
pub(super) fn counts(usage: &[u8]) -> Counts {
    let reported = Reported::parse(usage).unwrap_or_default();
    let (candidates, thoughts) = (count(reported.candidates_token_count), count(reported.thoughts_token_count));
    let output = match (candidates, thoughts) {
        (Some(candidates), Some(thoughts)) => candidates.checked_add(thoughts),
        (candidates, thoughts) => candidates.or(thoughts),
    };
    Counts {
        input: count(reported.prompt_token_count),
        output,
        cache_read: count(reported.cached_content_token_count),
        cache_creation: None,
        reasoning: thoughts,
        audio_input: audio(reported.prompt_tokens_details),
        audio_output: audio(reported.candidates_tokens_details),
    }
}

/// The count of the part whose modality is audio.
fn audio(details: Option<&[u8]>) -> Option<u64> {
    let mut audio: Option<&[u8]> = None;
    Walk::new(details?).elements(|walk| {
        let mut modality: Option<&[u8]> = None;
        let mut token_count: Option<&[u8]> = None;
        walk.members(|name, walk| match name {
            b"modality" => walk.keep(&mut modality),
            b"tokenCount" => walk.keep(&mut token_count),
            _ => walk.skip(),
        })?;
        if audio.is_none() && matches!(modality, Some(b"\"AUDIO\"")) {
            audio = token_count;
        }
        Some(())
    })?;
    count(audio)
}
