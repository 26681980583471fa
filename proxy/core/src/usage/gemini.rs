//! Google's Gemini API (`generateContent` and its streams).
//!
//! Every event repeats `usageMetadata` with the numbers so far; the last one counts. `candidatesTokenCount` leaves the
//! thoughts out; our output includes them. Zeros are left out of the JSON, so an answer of thoughts only has no candidates
//! number: then the thoughts are the output. `promptTokenCount` includes cached tokens. What a built-in tool fed the model
//! (`toolUsePromptTokenCount`, part of `totalTokenCount`) is not added to the input: it is no part of the prompt, and
//! search results are not billed as such; it can be read in the provider's object. Audio is told by modality.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

use super::number::{Counts, count, object};
use super::tally::{Form, Tally};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    #[serde(borrow)]
    candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    model_version: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(borrow)]
    index: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

/// Reads an event, an array's element or a body; false if it is none.
pub(super) fn read(data: &[u8], tally: &mut Tally) -> bool {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(data) else { return false };
    if message.candidates.is_some() || message.usage_metadata.is_some() {
        tally.form = Form::Candidates;
    }
    tally.name_model(message.model_version);
    for (place, candidate) in (0u64..).zip(message.candidates.unwrap_or_default()) {
        tally.finish_choice(count(candidate.index).unwrap_or(place), candidate.finish_reason);
    }
    tally.report(message.usage_metadata);
    true
}

/// Gives the elements of an array to `each`, as far as the array goes.
pub(super) fn for_each_element(body: &[u8], each: impl FnMut(&[u8])) {
    struct Elements<F>(F);
    impl<'de, F: FnMut(&[u8])> Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(element) = seq.next_element::<&'de RawValue>()? {
                (self.0)(element.get().as_bytes());
            }
            Ok(())
        }
    }
    // A cut array is an error behind its last whole element: what came before it has been seen.
    let _ = serde_json::Deserializer::from_slice(body).deserialize_seq(Elements(each));
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Reported<'a> {
    #[serde(borrow)]
    prompt_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    candidates_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    thoughts_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    cached_content_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_tokens_details: Option<&'a RawValue>,
    #[serde(borrow)]
    candidates_tokens_details: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfModality<'a> {
    #[serde(borrow)]
    modality: Option<&'a RawValue>,
    #[serde(borrow)]
    token_count: Option<&'a RawValue>,
}

/// The numbers of a `usageMetadata` object.
pub(super) fn counts(usage: &RawValue) -> Counts {
    let reported: Reported<'_> = object(Some(usage));
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

fn audio(details: Option<&RawValue>) -> Option<u64> {
    let details: Vec<OfModality<'_>> = object(details);
    let audio = details.iter().find(|part| part.modality.is_some_and(|name| name.get() == "\"AUDIO\""))?;
    count(audio.token_count)
}
