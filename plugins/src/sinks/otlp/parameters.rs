//! What a request asked for beside its content, read from its captured body.
//!
//! Three families write the same things under different names. Bodies of one family do not have another's names, so
//! that one table serves them all.

use serde_json::Value;

use super::attributes::Attributes;
use super::names;

/// How a value is written as an attribute.
enum As {
    Whole,
    Fraction,
    /// One text, or a list of them.
    Texts,
}

/// Where a parameter stands (RFC 6901); the first that is there counts.
const PARAMETERS: [(&str, As, &[&str]); 10] = [
    (
        names::REQUEST_MAX_TOKENS,
        As::Whole,
        &["/max_completion_tokens", "/max_output_tokens", "/max_tokens", "/generationConfig/maxOutputTokens"],
    ),
    (names::REQUEST_TEMPERATURE, As::Fraction, &["/temperature", "/generationConfig/temperature"]),
    (names::REQUEST_TOP_P, As::Fraction, &["/top_p", "/generationConfig/topP"]),
    (names::REQUEST_TOP_K, As::Fraction, &["/top_k", "/generationConfig/topK"]),
    (names::REQUEST_FREQUENCY_PENALTY, As::Fraction, &["/frequency_penalty", "/generationConfig/frequencyPenalty"]),
    (names::REQUEST_PRESENCE_PENALTY, As::Fraction, &["/presence_penalty", "/generationConfig/presencePenalty"]),
    (names::REQUEST_SEED, As::Whole, &["/seed", "/generationConfig/seed"]),
    (names::REQUEST_STOP_SEQUENCES, As::Texts, &["/stop", "/stop_sequences", "/generationConfig/stopSequences"]),
    (names::REQUEST_ENCODING_FORMATS, As::Texts, &["/encoding_format"]),
    (names::EMBEDDINGS_DIMENSION_COUNT, As::Whole, &["/dimensions", "/outputDimensionality"]),
];

/// Adds the parameters that `request` names.
pub(super) fn add(attributes: &mut Attributes, request: &Value) {
    for (name, form, places) in &PARAMETERS {
        let Some(found) = first(request, places) else { continue };
        match form {
            As::Whole => attributes.whole(name, found.as_i64()),
            As::Fraction => attributes.fraction(name, found.as_f64()),
            As::Texts => attributes.texts(name, texts(found)),
        }
    }
    // One is what everybody asks for; the conventions want it said only where it is another number.
    let choices = first(request, &["/n", "/generationConfig/candidateCount"]).and_then(Value::as_i64);
    attributes.whole(names::REQUEST_CHOICE_COUNT, choices.filter(|choices| *choices != 1));
}

/// What kind of output `request` asks for by name, as the conventions call it.
pub(super) fn output_type(request: &Value) -> Option<&'static str> {
    let format = first(request, &["/response_format/type", "/text/format/type", "/generationConfig/responseMimeType"]);
    match format?.as_str()? {
        "json_object" | "json_schema" | "application/json" => Some("json"),
        "text" | "text/plain" => Some("text"),
        _ => None,
    }
}

fn first<'a>(request: &'a Value, places: &[&str]) -> Option<&'a Value> {
    places.iter().filter_map(|place| request.pointer(place)).find(|found| !found.is_null())
}

fn texts(found: &Value) -> Vec<String> {
    match found {
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        found => found.as_str().map(str::to_owned).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::attributes::as_json;
    use super::*;

    fn read(request: &Value) -> Value {
        let mut attributes = Attributes::default();
        add(&mut attributes, request);
        Value::Object(as_json(&attributes.into_list()))
    }

    #[test]
    fn parameters_are_found_in_every_family_of_bodies() {
        for (request, expected) in [
            (
                json!({
                    "model": "gpt-4o", "messages": [], "max_completion_tokens": 100, "temperature": 0.2, "top_p": 1,
                    "frequency_penalty": 0.1, "presence_penalty": -0.1, "seed": 7, "n": 2, "stop": "END",
                }),
                json!({
                    "gen_ai.request.max_tokens": 100, "gen_ai.request.temperature": 0.2, "gen_ai.request.top_p": 1.0,
                    "gen_ai.request.frequency_penalty": 0.1, "gen_ai.request.presence_penalty": -0.1,
                    "gen_ai.request.seed": 7, "gen_ai.request.choice.count": 2,
                    "gen_ai.request.stop_sequences": ["END"],
                }),
            ),
            (
                json!({"max_tokens": 64, "top_k": 40, "stop_sequences": ["a", "b"], "temperature": null, "n": 1}),
                json!({
                    "gen_ai.request.max_tokens": 64, "gen_ai.request.top_k": 40.0,
                    "gen_ai.request.stop_sequences": ["a", "b"],
                }),
            ),
            (
                json!({"contents": [], "generationConfig": {"maxOutputTokens": 9, "topK": 3, "candidateCount": 2}}),
                json!({
                    "gen_ai.request.max_tokens": 9, "gen_ai.request.top_k": 3.0, "gen_ai.request.choice.count": 2,
                }),
            ),
            (
                json!({"input": "x", "encoding_format": "base64", "dimensions": 256}),
                json!({
                    "gen_ai.request.encoding_formats": ["base64"], "gen_ai.embeddings.dimension.count": 256,
                }),
            ),
            (json!({"temperature": "hot", "max_tokens": 1.5, "stop": [1], "seed": {}}), json!({})),
            (json!([1, 2]), json!({})),
        ] {
            assert_eq!(read(&request), expected, "{request}");
        }
    }

    #[test]
    fn the_kind_of_output_is_that_which_was_asked_for() {
        for (request, expected) in [
            (json!({"response_format": {"type": "json_schema"}}), Some("json")),
            (json!({"text": {"format": {"type": "text"}}}), Some("text")),
            (json!({"generationConfig": {"responseMimeType": "application/json"}}), Some("json")),
            (json!({"response_format": {"type": "grammar"}}), None),
            (json!({"response_format": "mp3"}), None),
            (json!({}), None),
        ] {
            assert_eq!(output_type(&request), expected, "{request}");
        }
    }
}
