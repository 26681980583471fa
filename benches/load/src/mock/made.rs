//! Answers nobody recorded: small, and with the usage the provider documents for them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::Answer;
use super::asked::{Asked, form_field};
use super::credentials::Provider;

const CREATED: u64 = 1_760_000_000;
const MODELS: [(Provider, &str); 8] = [
    (Provider::OpenAi, "gpt-4o-mini"),
    (Provider::OpenAi, "gpt-4o"),
    (Provider::OpenAi, "text-embedding-3-small"),
    (Provider::Anthropic, "claude-sonnet-4-5"),
    (Provider::Anthropic, "claude-3-haiku-20240307"),
    (Provider::Gemini, "gemini-2.5-flash"),
    (Provider::Gemini, "gemini-2.5-pro"),
    (Provider::Azure, "gpt-4o-mini"),
];
/// One transparent pixel.
const PIXEL_PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
const SPEECH_PIECE_BYTES: usize = 4096;
const SPEECH_PIECES: usize = 12;

fn json_answer(body: &Value) -> Answer {
    Answer::json(200, &[("x-request-id", "req_mock")], body.to_string().into_bytes())
}

pub(super) fn completion(model: &str) -> Answer {
    json_answer(&json!({
        "id": "cmpl-mock", "object": "text_completion", "created": CREATED, "model": model,
        "choices": [{"text": "This is a test.", "index": 0, "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
    }))
    .with_tokens(5, 6)
}

pub(super) fn image(model: &str) -> Answer {
    if !model.starts_with("gpt-image") {
        return json_answer(&json!({
            "created": CREATED, "data": [{"url": "https://example.com/image.png", "revised_prompt": "A pixel."}],
        }));
    }
    json_answer(&json!({
        "created": CREATED, "background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024",
        "data": [{"b64_json": PIXEL_PNG}],
        "usage": {
            "input_tokens": 9, "input_tokens_details": {"image_tokens": 0, "text_tokens": 9},
            "output_tokens": 272, "total_tokens": 281,
        },
    }))
    .with_tokens(9, 272)
}

pub(super) fn transcription(body: &[u8]) -> Answer {
    const TEXT: &str = "This is a test.";
    let model = form_field(body, "model").unwrap_or_default();
    let is_whisper = model.starts_with("whisper");
    let usage = json!({
        "type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
        "output_tokens": 6, "total_tokens": 20,
    });
    if form_field(body, "stream").as_deref() == Some("true") && !is_whisper {
        let delta = json!({"type": "transcript.text.delta", "delta": TEXT});
        let done = json!({"type": "transcript.text.done", "text": TEXT, "usage": usage});
        return Answer::events(&[event(&delta), event(&done)]).with_tokens(14, 6);
    }
    match form_field(body, "response_format").as_deref() {
        Some("text" | "srt" | "vtt") => {
            let headers = vec![("content-type".to_owned(), "text/plain; charset=utf-8".to_owned())];
            Answer::new(200, headers, vec![Bytes::from(format!("{TEXT}\n"))], false)
        }
        _ if is_whisper => json_answer(&json!({"text": TEXT, "usage": {"type": "duration", "seconds": 3}})),
        _ => json_answer(&json!({"text": TEXT, "usage": usage})).with_tokens(14, 6),
    }
}

pub(super) fn speech(asked: &Asked<'_>) -> Answer {
    let piece = |number: usize| -> Vec<u8> {
        // Not a sound, but bytes of every value: nothing on the way may take them for text.
        (0..SPEECH_PIECE_BYTES).map(|at| (at.wrapping_mul(31).wrapping_add(number) & 0xff) as u8).collect()
    };
    if asked.text("stream_format").as_deref() == Some("sse") {
        let audio = STANDARD.encode(piece(0));
        let delta = json!({"type": "speech.audio.delta", "audio": audio});
        let done = json!({
            "type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
        });
        return Answer::events(&[event(&delta), event(&done)]).with_tokens(14, 101);
    }
    let headers = vec![("content-type".to_owned(), "audio/mpeg".to_owned())];
    Answer::new(200, headers, (0..SPEECH_PIECES).map(|number| Bytes::from(piece(number))).collect(), true)
}

pub(super) fn moderation() -> Answer {
    json_answer(&json!({
        "id": "modr-mock", "model": "omni-moderation-latest",
        "results": [{
            "flagged": false, "categories": {"violence": false, "harassment": false},
            "category_scores": {"violence": 0.0001, "harassment": 0.0002},
        }],
    }))
}

pub(super) fn models(provider: Provider) -> Answer {
    let data: Vec<Value> =
        MODELS.iter().filter(|(own, _)| *own == provider).map(|(_, model)| model_object(provider, model)).collect();
    json_answer(&match provider {
        Provider::OpenAi | Provider::Azure => json!({"object": "list", "data": data}),
        Provider::Anthropic => json!({"data": data, "has_more": false, "first_id": null, "last_id": null}),
        Provider::Gemini => json!({"models": data}),
    })
}

pub(super) fn model(provider: Provider, model: &str) -> Answer {
    json_answer(&model_object(provider, model))
}

fn model_object(provider: Provider, model: &str) -> Value {
    match provider {
        Provider::OpenAi | Provider::Azure => {
            json!({"id": model, "object": "model", "created": CREATED, "owned_by": "system"})
        }
        Provider::Anthropic => {
            json!({"type": "model", "id": model, "display_name": model, "created_at": "2025-10-01T00:00:00Z"})
        }
        Provider::Gemini => json!({
            "name": format!("models/{model}"), "version": "001", "displayName": model,
            "inputTokenLimit": 1_048_576, "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }),
    }
}

/// `bytes`: of the whole body received; `start`: as much of it as was kept.
pub(super) fn file(provider: Provider, bytes: u64, start: &[u8]) -> Answer {
    let purpose = form_field(start, "purpose").unwrap_or_else(|| "user_data".to_owned());
    json_answer(&match provider {
        Provider::Gemini => json!({"file": {
            "name": "files/mock", "sizeBytes": bytes.to_string(), "state": "ACTIVE",
        }}),
        Provider::Anthropic => json!({
            "type": "file", "id": "file_mock", "filename": "upload", "size_bytes": bytes,
            "created_at": "2025-10-01T00:00:00Z",
        }),
        Provider::OpenAi | Provider::Azure => json!({
            "id": "file-mock", "object": "file", "bytes": bytes, "created_at": CREATED, "filename": "upload",
            "purpose": purpose, "status": "processed",
        }),
    })
}

pub(super) fn count_contents() -> Answer {
    json_answer(&json!({"totalTokens": 8, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}]}))
}

/// The first vector of a batch, as `embedContent` answers it.
pub(super) fn embed_content(batch: &Answer) -> Option<Answer> {
    let batch: Value = serde_json::from_slice(batch.pieces.first()?).ok()?;
    Some(json_answer(&json!({"embedding": batch.pointer("/embeddings/0")?})))
}

/// An embeddings answer in the other number format: floats as base64 (little-endian f32, as the OpenAI SDKs ask
/// for), or base64 as floats.
pub(super) fn embeddings_as(answer: &Arc<Answer>, base64: bool) -> Option<Arc<Answer>> {
    let mut body: Value = serde_json::from_slice(answer.pieces.first()?).ok()?;
    let mut changed = false;
    for item in body.get_mut("data")?.as_array_mut()? {
        let vector = item.get_mut("embedding")?;
        let other = match vector {
            Value::Array(floats) if base64 => {
                let floats = floats.iter().filter_map(Value::as_f64);
                let bytes: Vec<u8> = floats.flat_map(|float| (float as f32).to_le_bytes()).collect();
                Value::String(STANDARD.encode(bytes))
            }
            Value::String(text) if !base64 => {
                let bytes = STANDARD.decode(text.as_bytes()).ok()?;
                let words = bytes.chunks_exact(4).filter_map(|word| <[u8; 4]>::try_from(word).ok());
                words.map(|word| Value::from(f64::from(f32::from_le_bytes(word)))).collect()
            }
            _ => continue,
        };
        *vector = other;
        changed = true;
    }
    if !changed {
        return Some(answer.clone());
    }
    let mut other = Answer::new(200, answer.headers.clone(), vec![Bytes::from(body.to_string())], false);
    other.tokens = answer.tokens;
    Some(Arc::new(other))
}

/// A Gemini stream as it is without `alt=sse`: one JSON array, an element at a time.
pub(super) fn gemini_array(stream: &Answer) -> Answer {
    let mut pieces = Vec::new();
    for event in &stream.pieces {
        let Some(element) = event.strip_prefix(b"data: ") else { continue };
        let mut piece = if pieces.is_empty() { b"[".to_vec() } else { b",\r\n".to_vec() };
        piece.extend_from_slice(element.trim_ascii_end());
        pieces.push(Bytes::from(piece));
    }
    pieces.push(Bytes::from_static(if pieces.is_empty() { b"[]" } else { b"\n]" }));
    let mut headers = stream.headers.clone();
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
    headers.push(("content-type".to_owned(), "application/json; charset=UTF-8".to_owned()));
    let mut array = Answer::new(stream.status, headers, pieces, true);
    array.tokens = stream.tokens;
    array
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::super::recordings::Recordings;
    use super::*;

    fn body(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.pieces.concat()).unwrap()
    }

    #[test]
    fn embeddings_survive_the_way_to_floats_and_back() {
        let recorded = Recordings::load().unwrap().get("openai-embeddings").unwrap();
        let floats = embeddings_as(&recorded, false).unwrap();
        assert_eq!(body(&floats)["data"][0]["embedding"].as_array().unwrap().len(), 1536);
        let again = embeddings_as(&floats, true).unwrap();
        assert_eq!(body(&again), body(&recorded));
    }

    #[test]
    fn a_gemini_stream_without_sse_is_one_array() {
        let recorded = Recordings::load().unwrap().get("gemini-stream-basic").unwrap();
        let array = gemini_array(&recorded);
        assert_eq!(body(&array).as_array().unwrap().len(), recorded.pieces.len());
    }
}
