//! What a realtime session cost in tokens, summed up from the provider's own messages.
//!
//! * **OpenAI and Azure** report with each response: `response.done`, in the Responses API's sockets the terminal
//!   `response.*` event. A response's input is the whole conversation so far, and billed again each time, so the sum over
//!   all responses is what was spent. `session.created` and `session.updated` name the model. Transcription of the caller's
//!   speech (`conversation.item.input_audio_transcription.completed`) is the work of another model at another price: a
//!   record names one model, so its tokens count only in a session that does nothing else. By duration it is billed
//!   without tokens.
//! * **Gemini Live** reports with each turn, in any message that has `usageMetadata`: numbers of that turn alone, with the
//!   whole conversation as its prompt again. The model is in the client's `setup`, never in an answer.
//!
//! The sums are *reported*, unless something is missing: a response that had begun and never reported, or a message too
//! large to be read. Then they are what was spent at least, and labelled *estimated*. No session that reported nothing is
//! estimated from bytes: most of them are audio.
//!
//! [`Usage::provider`] holds the provider's object byte for byte if there was one, and a JSON array of them, in their order
//! and transcriptions among them, if there were several; nothing if they are more than [`MAX_PROVIDER_BYTES`], since a part
//! of them would look like all.

use std::borrow::Cow;

use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::dialect::Dialect;
use crate::usage::{Metered, Number, Source, Usage};

/// The most of the provider's usage objects that a record keeps, in bytes: some 200 responses.
pub const MAX_PROVIDER_BYTES: usize = 64 * 1024;
/// The longest model name and finish reason kept, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// The most finish reasons kept.
const MAX_FINISH_REASONS: usize = 128;

/// Reads the provider's side of one session. Sees every message ([`Session::message`], [`Session::long_message`]) and is
/// asked once at the end ([`Session::finish`]). Never fails: what it cannot read is unknown.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    conversation: Tokens,
    transcription: Tokens,
    model: Option<String>,
    transcription_model: Option<String>,
    /// One for each response or turn, in their order.
    finish_reasons: Vec<String>,
    reports: Reports,
    messages: u64,
    /// Responses that have begun and not ended. Gemini: 1 in a turn that has brought something and not reported.
    unreported: u64,
    /// Something that may have been a report could not be read.
    is_incomplete: bool,
    /// Gemini: the turn was interrupted, and has not ended yet.
    is_interrupted: bool,
}

impl Session {
    /// A session that has not brought anything yet.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            conversation: Tokens::default(),
            transcription: Tokens::default(),
            model: None,
            transcription_model: None,
            finish_reasons: Vec::new(),
            reports: Reports::default(),
            messages: 0,
            unreported: 0,
            is_incomplete: false,
            is_interrupted: false,
        }
    }

    /// Reads a whole message of the provider, text or binary.
    pub fn message(&mut self, message: &[u8]) {
        self.messages = self.messages.saturating_add(1);
        let read = match self.dialect {
            Dialect::OpenAi | Dialect::Azure => self.openai_message(message),
            Dialect::Gemini => self.gemini_message(message),
            Dialect::Anthropic => Ok(()), // has no sockets
        };
        self.is_incomplete |= read.is_err();
    }

    /// Takes note of a message that was too large to be held, of which this is the beginning.
    pub fn long_message(&mut self, start: &[u8]) {
        self.messages = self.messages.saturating_add(1);
        // An item that is shown again may be large, with images in it, and tells of no usage.
        self.is_incomplete |= !has(start, b"\"conversation.item.");
    }

    /// Settles. [`Metered::chunks`] is the number of messages.
    pub fn finish(self) -> Metered {
        let only_transcribes = self.model.is_none() && self.conversation == Tokens::default();
        let (tokens, model) = if only_transcribes {
            (self.transcription, self.transcription_model)
        } else {
            (self.conversation, self.model.or(self.transcription_model))
        };
        let is_least = self.is_incomplete || self.unreported > 0;
        let source = if is_least { Source::Estimated } else { Source::Reported };
        let number = |tokens: Option<u64>| tokens.map(|tokens| Number { tokens, source });
        let usage = Usage {
            input_tokens: number(tokens.input),
            output_tokens: number(tokens.output),
            cache_read_input_tokens: number(tokens.cache_read),
            cache_creation_input_tokens: number(tokens.cache_creation),
            reasoning_output_tokens: number(tokens.reasoning),
            audio_input_tokens: number(tokens.audio_input),
            audio_output_tokens: number(tokens.audio_output),
            provider: self.reports.into_json(),
        };
        Metered { usage, model, finish_reasons: self.finish_reasons, chunks: self.messages }
    }

    fn openai_message(&mut self, message: &[u8]) -> Result<(), Unreadable> {
        // Most messages are pieces of audio, and have none of these. Inside a text the quotes would be escaped.
        let wanted: [&[u8]; 4] = [b"\"usage\"", b"\"session\"", b"\"response.created\"", b"\"response.done\""];
        if !wanted.iter().any(|wanted| has(message, wanted)) {
            return Ok(());
        }
        let event: OpenAiEvent<'_> = parsed(message)?;
        match &*event.kind {
            "session.created"
            | "session.updated"
            | "transcription_session.created"
            | "transcription_session.updated" => self.name_models(event.session),
            "response.created" => {
                self.unreported = self.unreported.saturating_add(1);
                Ok(())
            }
            "response.done" | "response.completed" | "response.incomplete" | "response.failed" => {
                self.unreported = self.unreported.saturating_sub(1);
                let Some(response) = event.response else { return Ok(()) };
                let response: OpenAiResponse<'_> = parsed(response.get().as_bytes())?;
                self.model = response.model.filter(|model| is_name(model)).or(self.model.take());
                if let Some(status) = &response.status {
                    self.finished(status);
                }
                let tokens = self.report(response.usage, Tokens::of_openai)?;
                self.conversation.add(&tokens);
                Ok(())
            }
            "conversation.item.input_audio_transcription.completed" => {
                let tokens = self.report(event.usage, Tokens::of_openai)?;
                self.transcription.add(&tokens);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn name_models(&mut self, session: Option<&RawValue>) -> Result<(), Unreadable> {
        let Some(session) = session else { return Ok(()) };
        let session: Value = parsed(session.get().as_bytes())?;
        let name = |place: &str| {
            let name = session.pointer(place).and_then(Value::as_str);
            name.filter(|name| is_name(name)).map(str::to_owned)
        };
        let transcription =
            name("/audio/input/transcription/model").or_else(|| name("/input_audio_transcription/model"));
        self.model = name("/model").or(self.model.take());
        self.transcription_model = transcription.or(self.transcription_model.take());
        Ok(())
    }

    fn gemini_message(&mut self, message: &[u8]) -> Result<(), Unreadable> {
        if has(message, b"\"modelTurn\"") || has(message, b"\"toolCall\"") {
            self.unreported = 1;
        }
        let wanted: [&[u8]; 3] = [b"\"usageMetadata\"", b"\"turnComplete\"", b"\"interrupted\""];
        if !wanted.iter().any(|wanted| has(message, wanted)) {
            return Ok(());
        }
        let event: GeminiEvent<'_> = parsed(message)?;
        if let Some(content) = event.server_content {
            self.is_interrupted |= content.interrupted == Some(true);
            if content.turn_complete == Some(true) {
                let was_interrupted = std::mem::take(&mut self.is_interrupted);
                let plain = if was_interrupted { "interrupted" } else { "turnComplete" };
                self.finished(content.turn_complete_reason.as_deref().unwrap_or(plain));
            }
        }
        if event.usage_metadata.is_some() {
            let tokens = self.report(event.usage_metadata, Tokens::of_gemini)?;
            self.conversation.add(&tokens);
            self.unreported = 0;
        }
        Ok(())
    }

    fn finished(&mut self, reason: &str) {
        if is_name(reason) && self.finish_reasons.len() < MAX_FINISH_REASONS {
            self.finish_reasons.push(reason.to_owned());
        }
    }

    /// Keeps a usage object and reads its numbers.
    fn report(&mut self, usage: Option<&RawValue>, of: fn(&Value) -> Tokens) -> Result<Tokens, Unreadable> {
        let Some(usage) = usage else { return Ok(Tokens::default()) };
        let numbers: Value = parsed(usage.get().as_bytes())?;
        if !numbers.is_object() {
            return Err(Unreadable);
        }
        self.reports.add(usage.get());
        Ok(of(&numbers))
    }
}

/// A message that should have been read and is not what it seemed to be.
struct Unreadable;

#[derive(Deserialize)]
struct OpenAiEvent<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    session: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OpenAiResponse<'a> {
    model: Option<String>,
    status: Option<String>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GeminiEvent<'a> {
    server_content: Option<GeminiContent>,
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GeminiContent {
    turn_complete: Option<bool>,
    turn_complete_reason: Option<String>,
    interrupted: Option<bool>,
}

/// Tokens in our meaning: input includes cached tokens, output includes reasoning. `None` where nobody has told any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tokens {
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_creation: Option<u64>,
    reasoning: Option<u64>,
    audio_input: Option<u64>,
    audio_output: Option<u64>,
}

impl Tokens {
    /// Of `response.usage` or of a transcription's. The realtime API writes `input_token_details`, the Responses API
    /// `input_tokens_details`, with cache writes that are 0 for models that write no cache.
    fn of_openai(usage: &Value) -> Self {
        let count = |place: &str| usage.pointer(place).and_then(Value::as_u64);
        Self {
            input: count("/input_tokens"),
            output: count("/output_tokens"),
            cache_read: count("/input_token_details/cached_tokens")
                .or_else(|| count("/input_tokens_details/cached_tokens")),
            cache_creation: count("/input_tokens_details/cache_write_tokens").filter(|tokens| *tokens > 0),
            reasoning: count("/output_token_details/reasoning_tokens")
                .or_else(|| count("/output_tokens_details/reasoning_tokens")),
            audio_input: count("/input_token_details/audio_tokens"),
            audio_output: count("/output_token_details/audio_tokens"),
        }
    }

    /// Of `usageMetadata`. Live writes `responseTokenCount` where `generateContent` writes `candidatesTokenCount`; some
    /// versions write the latter. Thoughts are no part of either. Zeros are left out.
    fn of_gemini(usage: &Value) -> Self {
        let count = |name: &str| usage.get(name).and_then(Value::as_u64);
        let audio = |name: &str| {
            let parts = usage.get(name)?.as_array()?;
            let is_audio = |part: &&Value| part.get("modality").and_then(Value::as_str) == Some("AUDIO");
            parts.iter().find(is_audio)?.get("tokenCount")?.as_u64()
        };
        let thoughts = count("thoughtsTokenCount");
        let answer = count("responseTokenCount").or_else(|| count("candidatesTokenCount"));
        Self {
            input: count("promptTokenCount"),
            output: sum(answer, thoughts),
            cache_read: count("cachedContentTokenCount"),
            cache_creation: None,
            reasoning: thoughts,
            audio_input: audio("promptTokensDetails"),
            audio_output: audio("responseTokensDetails").or_else(|| audio("candidatesTokensDetails")),
        }
    }

    fn add(&mut self, more: &Self) {
        *self = Self {
            input: sum(self.input, more.input),
            output: sum(self.output, more.output),
            cache_read: sum(self.cache_read, more.cache_read),
            cache_creation: sum(self.cache_creation, more.cache_creation),
            reasoning: sum(self.reasoning, more.reasoning),
            audio_input: sum(self.audio_input, more.audio_input),
            audio_output: sum(self.audio_output, more.audio_output),
        };
    }
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    }
}

/// The provider's usage objects, byte for byte, with commas between them.
#[derive(Debug, Default)]
struct Reports {
    joined: String,
    count: u64,
    is_too_large: bool,
}

impl Reports {
    fn add(&mut self, object: &str) {
        self.is_too_large |= self.joined.len().saturating_add(object.len()) > MAX_PROVIDER_BYTES;
        if self.is_too_large {
            self.joined = String::new();
            return;
        }
        if self.count > 0 {
            self.joined.push(',');
        }
        self.joined.push_str(object);
        self.count = self.count.saturating_add(1);
    }

    fn into_json(self) -> Option<Box<str>> {
        match self.count {
            0 => None,
            _ if self.is_too_large => None,
            1 => Some(self.joined.into_boxed_str()),
            _ => Some(format!("[{}]", self.joined).into_boxed_str()),
        }
    }
}

fn parsed<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(json).map_err(|_| Unreadable)
}

fn has(message: &[u8], wanted: &[u8]) -> bool {
    memmem::find(message, wanted).is_some()
}

/// Whether this is a text that a record may show as a name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metered(dialect: Dialect, messages: &[&str]) -> Metered {
        let mut session = Session::new(dialect);
        for message in messages {
            session.message(message.as_bytes());
        }
        session.finish()
    }

    /// Input, output, cached, reasoning, audio in, audio out.
    fn tokens(usage: &Usage) -> [Option<u64>; 6] {
        [
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_input_tokens,
            usage.reasoning_output_tokens,
            usage.audio_input_tokens,
            usage.audio_output_tokens,
        ]
        .map(|number| number.map(|number| number.tokens))
    }

    const CREATED: &str = r#"{"type":"session.created","session":{"type":"realtime","model":"gpt-realtime","audio":{"input":{"transcription":{"model":"whisper-1"}}}}}"#;
    const BEGUN: &str = r#"{"type":"response.created","response":{"status":"in_progress","usage":null}}"#;
    const FIRST: &str = r#"{"total_tokens":40, "input_tokens":16,"output_tokens":24,"input_token_details":{"audio_tokens":10,"cached_tokens":0},"output_token_details":{"text_tokens":9,"audio_tokens":15}}"#;
    const SECOND: &str = r#"{"input_tokens":60,"output_tokens":5,"input_token_details":{"audio_tokens":12,"cached_tokens":32},"output_token_details":{"text_tokens":5,"audio_tokens":0}}"#;
    const HEARD: &str = r#"{"type":"tokens","input_tokens":14,"output_tokens":3,"input_token_details":{"audio_tokens":14,"text_tokens":0}}"#;

    fn done(status: &str, usage: &str) -> String {
        format!(
            r#"{{"event_id":"e","response":{{"status":"{status}","usage":{usage},"output":[]}},"type":"response.done"}}"#
        )
    }

    fn transcribed(usage: &str) -> String {
        format!(
            r#"{{"type":"conversation.item.input_audio_transcription.completed","transcript":"hi","usage":{usage}}}"#
        )
    }

    #[test]
    fn the_recorded_session_is_read_as_its_provider_reported_it() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/provider/openai-realtime-text-in-audio-out.ws.jsonl");
        let file = std::fs::read_to_string(path).unwrap();
        #[derive(Deserialize)]
        struct Line<'a> {
            direction: &'a str,
            #[serde(borrow)]
            message: &'a RawValue,
        }
        let mut session = Session::new(Dialect::OpenAi);
        let mut received = 0;
        for line in file.lines() {
            let line: Line<'_> = serde_json::from_str(line).unwrap();
            if line.direction == "received" {
                session.message(line.message.get().as_bytes());
                received += 1;
            }
        }
        let metered = session.finish();
        assert_eq!(tokens(&metered.usage), [Some(16), Some(24), Some(0), None, Some(0), Some(15)]);
        assert_eq!(metered.usage.source(), Source::Reported);
        assert_eq!(metered.model.as_deref(), Some("gpt-realtime"));
        assert_eq!((metered.finish_reasons, metered.chunks), (vec!["completed".to_owned()], received));
        let provider = metered.usage.provider.unwrap();
        assert!(provider.starts_with('{') && file.contains(&*provider), "{provider}");
    }

    #[test]
    fn responses_add_up_and_their_objects_stay_as_they_came() {
        let (first, second) = (done("completed", FIRST), done("cancelled", SECOND));
        let delta = r#"{"type":"response.output_audio.delta","delta":"AAAA"}"#;
        let text = r#"{"type":"response.output_text.delta","delta":"say \"usage\" {"}"#;
        let metered = metered(Dialect::Azure, &[CREATED, BEGUN, delta, &first, BEGUN, text, &second]);
        assert_eq!(tokens(&metered.usage), [Some(76), Some(29), Some(32), None, Some(22), Some(15)]);
        assert_eq!(metered.usage.source(), Source::Reported);
        assert_eq!(metered.model.as_deref(), Some("gpt-realtime"));
        assert_eq!(metered.finish_reasons, ["completed", "cancelled"]);
        assert_eq!(metered.usage.provider.as_deref(), Some(&*format!("[{FIRST},{SECOND}]")));
        assert_eq!(metered.chunks, 7);
    }

    #[test]
    fn transcription_counts_where_it_is_the_session_and_is_kept_where_it_is_not() {
        let (first, heard) = (done("completed", FIRST), transcribed(HEARD));
        let beside = metered(Dialect::OpenAi, &[CREATED, &heard, BEGUN, &first]);
        assert_eq!(tokens(&beside.usage), [Some(16), Some(24), Some(0), None, Some(10), Some(15)]);
        assert_eq!(beside.model.as_deref(), Some("gpt-realtime"));
        assert_eq!(beside.usage.provider.as_deref(), Some(&*format!("[{HEARD},{FIRST}]")));

        let only = r#"{"type":"transcription_session.updated","session":{"input_audio_transcription":{"model":"gpt-4o-transcribe"}}}"#;
        let only = metered(Dialect::OpenAi, &[only, &heard, &heard]);
        assert_eq!(tokens(&only.usage), [Some(28), Some(6), None, None, Some(28), None]);
        assert_eq!(only.model.as_deref(), Some("gpt-4o-transcribe"));

        let by_duration = transcribed(r#"{"type":"duration","seconds":4.5}"#);
        let silent = metered(Dialect::OpenAi, &[CREATED, &by_duration]);
        assert_eq!((tokens(&silent.usage), silent.usage.source()), ([None; 6], Source::Unknown));
        assert_eq!(silent.usage.provider.as_deref(), Some(r#"{"type":"duration","seconds":4.5}"#));
    }

    #[test]
    fn sockets_of_the_responses_api_are_read_too() {
        let done = r#"{"type":"response.completed","response":{"object":"response","model":"gpt-5-2025","status":"completed","usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":2,"cache_write_tokens":0},"output_tokens":9,"output_tokens_details":{"reasoning_tokens":4}}}}"#;
        let metered = metered(Dialect::OpenAi, &[BEGUN, done]);
        assert_eq!(tokens(&metered.usage), [Some(7), Some(9), Some(2), Some(4), None, None]);
        assert_eq!(metered.model.as_deref(), Some("gpt-5-2025"));
        assert_eq!((metered.usage.source(), metered.finish_reasons), (Source::Reported, vec!["completed".to_owned()]));
    }

    #[test]
    fn what_is_missing_makes_the_sums_the_least_that_was_spent() {
        let (first, no_object) = (done("completed", FIRST), done("completed", "[7]"));
        let (first, no_object) = (first.as_str(), no_object.as_str());
        let unreadable = r#"{"type":"response.done","response":{"usage":{"input_tokens":1"#;
        for (messages, expected) in [
            (vec![CREATED, first], Source::Reported),
            (vec![first, BEGUN], Source::Estimated),
            (vec![BEGUN, BEGUN, first], Source::Estimated),
            (vec![first, unreadable], Source::Estimated),
            (vec![first, no_object], Source::Estimated),
            (vec![first, "no JSON, and no report"], Source::Reported),
            (vec![BEGUN], Source::Unknown),
            (vec![CREATED], Source::Unknown),
            (vec![], Source::Unknown),
        ] {
            let metered = metered(Dialect::OpenAi, &messages);
            assert_eq!(metered.usage.source(), expected, "{messages:?}");
            let input = (expected != Source::Unknown).then_some(16);
            assert_eq!(tokens(&metered.usage)[0], input, "{messages:?}");
        }
        for (start, expected) in [
            (&br#"{"type":"conversation.item.added","item":{"content":[{"image_url":"data:"#[..], Source::Reported),
            (br#"{"type":"response.done","response":{"#, Source::Estimated),
            (br#"{"event_id":"e","response":{"#, Source::Estimated),
        ] {
            let mut session = Session::new(Dialect::OpenAi);
            session.message(first.as_bytes());
            session.long_message(start);
            let metered = session.finish();
            assert_eq!((metered.usage.source(), metered.chunks), (expected, 2), "{}", start.escape_ascii());
        }
    }

    #[test]
    fn a_failed_response_without_usage_takes_nothing_away() {
        let (first, failed) = (done("completed", FIRST), done("failed", "null"));
        let metered = metered(Dialect::OpenAi, &[BEGUN, &first, BEGUN, &failed]);
        assert_eq!((tokens(&metered.usage)[0], metered.usage.source()), (Some(16), Source::Reported));
        assert_eq!(metered.finish_reasons, ["completed", "failed"]);
    }

    #[test]
    fn gemini_turns_add_up() {
        let ready = r#"{"setupComplete":{}}"#;
        let speech = r#"{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"data":"AAAA"}}]}}}"#;
        let first = r#"{"serverContent":{"turnComplete":true},"usageMetadata":{"promptTokenCount":522,"responseTokenCount":42,"totalTokenCount":564,"promptTokensDetails":[{"modality":"TEXT","tokenCount":332},{"modality":"AUDIO","tokenCount":165}],"responseTokensDetails":[{"modality":"AUDIO","tokenCount":42}],"thoughtsTokenCount":136}}"#;
        let tool = r#"{"toolCall":{"functionCalls":[{"name":"f"}]},"usageMetadata":{"promptTokenCount":600,"candidatesTokenCount":8,"cachedContentTokenCount":100}}"#;
        let stopped = r#"{"serverContent":{"interrupted":true}}"#;
        let ended = r#"{"serverContent":{"turnComplete":true}}"#;
        let refused = r#"{"serverContent":{"turnComplete":true,"turnCompleteReason":"RESPONSE_REJECTED"}}"#;

        let whole = metered(Dialect::Gemini, &[ready, speech, speech, first, tool]);
        assert_eq!(tokens(&whole.usage), [Some(1122), Some(186), Some(100), Some(136), Some(165), Some(42)]);
        assert_eq!((whole.usage.source(), whole.model, whole.chunks), (Source::Reported, None, 5));
        assert_eq!(whole.finish_reasons, ["turnComplete"]);
        let provider: Value = serde_json::from_str(&whole.usage.provider.unwrap()).unwrap();
        assert_eq!(provider.pointer("/1/promptTokenCount"), Some(&Value::from(600)));

        for (messages, expected) in [
            (vec![first, speech], Source::Estimated),
            (vec![first, r#"{"toolCall":{}}"#], Source::Estimated),
            (vec![first, r#"{"usageMetadata":7}"#], Source::Estimated),
            (vec![first, r#"{"usageMetadata":{"promptTokenCount":1"#], Source::Estimated),
            (vec![first, stopped, ended], Source::Reported),
            (vec![speech], Source::Unknown),
        ] {
            assert_eq!(metered(Dialect::Gemini, &messages).usage.source(), expected, "{messages:?}");
        }
        let ends = metered(Dialect::Gemini, &[first, stopped, ended, refused, ended]).finish_reasons;
        assert_eq!(ends, ["turnComplete", "interrupted", "RESPONSE_REJECTED", "turnComplete"]);
    }

    #[test]
    fn a_session_without_end_is_held_in_little_memory() {
        let first = done("completed", FIRST);
        let mut session = Session::new(Dialect::OpenAi);
        for _ in 0..2_000 {
            session.message(first.as_bytes());
        }
        assert_eq!((session.finish_reasons.len(), session.reports.joined.capacity()), (MAX_FINISH_REASONS, 0));
        let metered = session.finish();
        assert_eq!(tokens(&metered.usage)[0], Some(32_000));
        assert!(metered.usage.provider.is_none());
    }

    #[test]
    fn names_that_are_none_are_not_taken() {
        for (model, expected) in [
            (r#""gpt-realtime""#, Some("gpt-realtime")),
            (r#""a\nb""#, None),
            (r#""""#, None),
            ("7", None),
            ("null", None),
            (&*format!("\"{}\"", "x".repeat(257)), None),
        ] {
            let created = format!(r#"{{"type":"session.created","session":{{"model":{model}}}}}"#);
            assert_eq!(metered(Dialect::OpenAi, &[&created]).model.as_deref(), expected, "{model}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_responses_sum_up(parts in prop::collection::vec((0..u64::MAX, any::<u32>(), any::<u32>()), 0..6)) {
            let messages: Vec<String> = parts
                .iter()
                .map(|(input, output, audio)| {
                    let usage = serde_json::json!({
                        "input_tokens": input,
                        "output_tokens": output,
                        "output_token_details": {"audio_tokens": audio},
                    });
                    done("completed", &usage.to_string())
                })
                .collect();
            let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
            let metered = metered(Dialect::OpenAi, &messages);
            let total = |of: fn(&(u64, u32, u32)) -> u64| {
                (!parts.is_empty()).then(|| parts.iter().map(of).fold(0, u64::saturating_add))
            };
            let expected = [
                total(|it| it.0),
                total(|it| u64::from(it.1)),
                None,
                None,
                None,
                total(|it| u64::from(it.2)),
            ];
            prop_assert_eq!(tokens(&metered.usage), expected);
            let provider = metered.usage.provider.map(|json| serde_json::from_str::<Value>(&json).unwrap());
            let kept = provider.map_or(0, |json| json.as_array().map_or(1, Vec::len));
            prop_assert_eq!(kept, parts.len());
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            kind in prop::sample::select(vec!["response.done", "session.created", "response.created", "usageMetadata"]),
            json in "[\\[\\]{}:,\"a0]{0,20}",
        ) {
            let event = format!(r#"{{"type":"{kind}","usage":{json},"session":{json},"usageMetadata":{json}}}"#);
            for dialect in Dialect::ALL {
                let mut session = Session::new(dialect);
                session.message(&bytes);
                session.message(event.as_bytes());
                session.long_message(&bytes);
                prop_assert_eq!(session.finish().chunks, 3);
            }
        }
    }
}
