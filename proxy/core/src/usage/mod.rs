//! Metering: what an answer cost in tokens, read from a copy of its bytes while they pass.
//!
//! A [`Meter`] is made when the answer's head is known, sees every piece of the body in order ([`Meter::observe`]), and
//! is asked once at the end ([`Meter::finish`]). It is pure: no clock, no IO, and however the body is cut into pieces,
//! the result is the same. It never holds bytes back and never fails: what it cannot read is *unknown*, never 0.
//!
//! How it reads, from the outside in:
//!
//! * `decode`: gzip, deflate, br and zstd are undone in small steps (other codings, and chains of them: usage is
//!   unknown).
//! * `events`: a server-sent stream is cut into events. An event that arrives in one piece is read where it lies; only a
//!   split one is copied. JSON bodies are held (at most [`MAX_HELD_BYTES`]) and read once at the end.
//! * `tally`: looks at each event with a few substring searches (`scan`) and parses only those that can carry usage, a
//!   finish reason or the model's name. A paced stream of text deltas is therefore never parsed. Gemini repeats its usage
//!   in every event, so there every event is parsed; its events are few and large.
//! * `walk`: goes through JSON to the members that matter, without proving any of it correct. Whoever embeds
//!   [`Usage::provider`] in a record checks it there.
//! * `openai`, `anthropic`, `gemini`: where the numbers stand in each dialect, and how they map to ours.
//! * `estimate`: what is said instead when the provider's numbers never came.
//!
//! Numbers follow the OpenTelemetry GenAI conventions: input includes cache reads and writes, output includes reasoning.
//! Each number has its own [`Source`]. [`Usage::provider`] keeps the provider's object as it was sent.
//!
//! No usage is read from error answers (status 400 and above), from token counting, and from endpoints that show a
//! stored object again (`/v1/responses/{id}`, batches): those tokens were counted when they were spent.

mod anthropic;
pub(crate) mod decode;
mod estimate;
mod events;
mod gemini;
mod number;
mod openai;
mod scan;
mod tally;
mod walk;

use crate::dialect::Dialect;
use decode::{Coding, Decoder};
use events::Events;
use tally::Tally;

/// Most decoded bytes held at once: of a JSON body, or of one event. What is larger leaves usage unknown.
pub const MAX_HELD_BYTES: usize = 8 * 1024 * 1024;

/// Where a number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The provider said so.
    Reported,
    /// Derived from bytes by the figures in `estimate`.
    Estimated,
    /// Nobody knows.
    Unknown,
}

impl Source {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Estimated => "estimated",
            Self::Unknown => "unknown",
        }
    }
}

/// A number of tokens and where it comes from (never [`Source::Unknown`]: an unknown number is `None`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// How many.
    pub tokens: u64,
    /// Who says so.
    pub source: Source,
}

/// The tokens of one exchange. `None` is unknown, never 0.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// The whole prompt, cache reads and writes included.
    pub input_tokens: Option<Number>,
    /// The whole answer, reasoning included.
    pub output_tokens: Option<Number>,
    /// Part of the input that was read from the provider's prompt cache.
    pub cache_read_input_tokens: Option<Number>,
    /// Part of the input that was written to the provider's prompt cache.
    pub cache_creation_input_tokens: Option<Number>,
    /// Part of the output that was reasoning.
    pub reasoning_output_tokens: Option<Number>,
    /// Part of the input that was audio.
    pub audio_input_tokens: Option<Number>,
    /// Part of the output that was audio.
    pub audio_output_tokens: Option<Number>,
    /// The provider's usage object, byte for byte. Only Anthropic streams report in parts (`message_start`, then
    /// `message_delta`): there it is the start's object with the members of the later ones laid over it (nulls
    /// excepted), each member byte for byte; the shape a JSON answer of that API has.
    /// Taken over without a look at its grammar: who embeds it in JSON must check it.
    pub provider: Option<Box<str>>,
}

impl Usage {
    /// Reported if every known number is, unknown if no number is known, else estimated.
    pub fn source(&self) -> Source {
        let numbers = [
            self.input_tokens,
            self.output_tokens,
            self.cache_read_input_tokens,
            self.cache_creation_input_tokens,
            self.reasoning_output_tokens,
            self.audio_input_tokens,
            self.audio_output_tokens,
        ];
        let mut known = numbers.iter().flatten().peekable();
        if known.peek().is_none() {
            Source::Unknown
        } else if known.all(|number| number.source == Source::Reported) {
            Source::Reported
        } else {
            Source::Estimated
        }
    }
}

/// How the body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its own framing.
    Whole,
    /// Before that: by the provider, the client, or us.
    Cut,
}

/// What the answer's head says.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The dialect it speaks.
    pub dialect: Dialect,
    /// Its HTTP status.
    pub status: u16,
    /// The `content-type` field's value; empty if absent.
    pub content_type: &'a [u8],
    /// The `content-encoding` field's value; empty if absent.
    pub content_encoding: &'a [u8],
}

/// What the request said, for estimates.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The endpoint's template, e.g. `/v1/chat/completions`.
    pub endpoint: &'a str,
    /// The model the caller named.
    pub model: Option<&'a str>,
    /// Length of the request's body in bytes.
    pub request_bytes: u64,
}

/// What an answer turned out to be.
#[derive(Clone, Debug, Default)]
pub struct Metered {
    /// The tokens it tells of.
    pub usage: Usage,
    /// The model as the answer names it.
    pub model: Option<String>,
    /// One per choice, in the order of their indices. Responses API: the response's final status.
    pub finish_reasons: Vec<String>,
    /// See [`Meter::chunks`].
    pub chunks: u64,
}

/// Reads one answer while it passes. See the module's documentation.
///
/// Small on purpose: a stream that is idle between two events holds no buffer and, unless it is compressed, no decoder.
#[derive(Debug)]
pub struct Meter {
    framing: Framing,
    decoder: Option<Box<Decoder>>,
    tally: Tally,
    pieces: u64,
    is_event_stream: bool,
}

/// How the decoded body is cut into JSON texts.
#[derive(Debug)]
enum Framing {
    Events(Events),
    /// One JSON text, held until the end.
    Json(Vec<u8>),
    /// Bytes we do not read: another type, an unknown coding, or more than we hold.
    Opaque,
}

/// The body cannot be read on: it is broken, or more than we hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl Meter {
    /// Decides from the head how the body will be read.
    pub fn new(answer: &Answer<'_>, asked_endpoint: &str) -> Self {
        let is_event_stream =
            is_media_type(answer.content_type, |name| name.eq_ignore_ascii_case(b"text/event-stream"));
        let is_metered = answer.status < 400 && spends_tokens(asked_endpoint);
        let coding = Coding::of(answer.content_encoding);
        let framing = if coding == Coding::Unread {
            Framing::Opaque
        } else if is_event_stream {
            Framing::Events(Events::default())
        } else if is_metered && is_media_type(answer.content_type, is_json) {
            Framing::Json(Vec::new())
        } else {
            Framing::Opaque
        };
        let decoder = match framing {
            Framing::Opaque => None,
            Framing::Events(_) | Framing::Json(_) => Decoder::new(coding).map(Box::new),
        };
        Self { framing, decoder, tally: Tally::new(answer.dialect, is_metered), pieces: 0, is_event_stream }
    }

    /// Reads the next piece of the body, as it came from the wire.
    pub fn observe(&mut self, piece: &[u8]) {
        if piece.is_empty() {
            return;
        }
        self.pieces = self.pieces.saturating_add(1);
        let Self { framing, decoder, tally, .. } = self;
        let read = match decoder {
            None => framing.take(piece, tally),
            Some(decoder) => decoder.push(piece, &mut |plain| framing.take(plain, tally)),
        };
        if read.is_err() {
            self.tally.lose();
            self.framing = Framing::Opaque;
            self.decoder = None;
        }
    }

    /// Whether an event of our own could be put here: true for an uncompressed stream between two events, or before
    /// the first. Where a line end may still be half sent (`\r` of `\r\n`), false.
    pub fn at_event_boundary(&self) -> bool {
        match &self.framing {
            Framing::Events(events) => self.decoder.is_none() && events.is_at_boundary(),
            Framing::Json(_) | Framing::Opaque => false,
        }
    }

    /// Whether the answer is a server-sent event stream.
    pub fn is_event_stream(&self) -> bool {
        self.is_event_stream
    }

    /// Whether the stream has said that it ends (`[DONE]`, `message_stop`, a terminal `response.*` event): clients stop
    /// reading there, whatever the framing still brings. Only a hint: false proves nothing.
    pub fn is_over(&self) -> bool {
        // With the event ended and nothing of a coding left to come, what follows can only be the framing's end.
        self.tally.is_over && self.at_event_boundary()
    }

    /// Events with data so far (`[DONE]` is one); of answers that are no stream, or one we cannot read, the pieces.
    pub fn chunks(&self) -> u64 {
        match &self.framing {
            Framing::Events(events) => events.with_data(),
            Framing::Json(_) | Framing::Opaque => self.pieces,
        }
    }

    /// Settles: what was reported, and estimates where the report never came.
    pub fn finish(mut self, ended: Ended, asked: &Asked<'_>) -> Metered {
        match &mut self.framing {
            Framing::Events(events) => events.flush(&mut self.tally),
            Framing::Json(body) => self.tally.body(body, ended),
            Framing::Opaque => {}
        }
        let chunks = self.chunks();
        let (usage, model, finish_reasons) = self.tally.settle(ended, asked);
        Metered { usage, model, finish_reasons, chunks }
    }
}

impl Framing {
    fn take(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Lost> {
        match self {
            Self::Events(events) => events.take(bytes, tally),
            Self::Json(body) => {
                if body.len().saturating_add(bytes.len()) > MAX_HELD_BYTES {
                    return Err(Lost);
                }
                body.extend_from_slice(bytes);
            }
            Self::Opaque => {}
        }
        Ok(())
    }
}

/// Whether an answer of this endpoint tells of tokens spent by this request.
fn spends_tokens(endpoint: &str) -> bool {
    let shows_something_stored =
        endpoint.contains("{id}") || endpoint.contains("{..}") || endpoint.ends_with("/batches");
    let only_counts = ["/count_tokens", ":countTokens", "/input_tokens"].iter().any(|tail| endpoint.ends_with(*tail));
    !shows_something_stored && !only_counts
}

fn is_media_type(field: &[u8], is_it: impl Fn(&[u8]) -> bool) -> bool {
    field.split(|byte| *byte == b';').next().is_some_and(|name| is_it(name.trim_ascii()))
}

fn is_json(name: &[u8]) -> bool {
    let suffix = name.len().checked_sub(5).and_then(|start| name.get(start..));
    name.eq_ignore_ascii_case(b"application/json") || suffix.is_some_and(|it| it.eq_ignore_ascii_case(b"+json"))
}

#[cfg(test)]
mod tests {
    use super::decode::encode::Encoding;
    use super::*;

    const JSON: &[u8] = b"application/json; charset=utf-8";
    const SSE: &[u8] = b"text/event-stream";

    struct Case {
        dialect: Dialect,
        endpoint: &'static str,
        status: u16,
        content_type: &'static [u8],
        ended: Ended,
    }

    const CHAT: Case = Case {
        dialect: Dialect::OpenAi,
        endpoint: "/v1/chat/completions",
        status: 200,
        content_type: JSON,
        ended: Ended::Whole,
    };
    const MESSAGES: Case = Case { dialect: Dialect::Anthropic, endpoint: "/v1/messages", ..CHAT };
    const GENERATE: Case =
        Case { dialect: Dialect::Gemini, endpoint: "/v1beta/models/{model}:streamGenerateContent", ..CHAT };

    fn metered(case: &Case, body: &[u8]) -> Metered {
        finished(case, meter(case, "", [body]))
    }

    /// A meter that has seen this body in its coding.
    fn meter<'p>(case: &Case, coding: &str, pieces: impl IntoIterator<Item = &'p [u8]>) -> Meter {
        let answer = Answer {
            dialect: case.dialect,
            status: case.status,
            content_type: case.content_type,
            content_encoding: coding.as_bytes(),
        };
        let mut meter = Meter::new(&answer, case.endpoint);
        for piece in pieces {
            meter.observe(piece);
        }
        meter
    }

    fn finished(case: &Case, meter: Meter) -> Metered {
        meter.finish(case.ended, &Asked { endpoint: case.endpoint, model: None, request_bytes: 600 })
    }

    fn reported(number: Option<Number>) -> Option<u64> {
        number.inspect(|it| assert_eq!(it.source, Source::Reported)).map(|it| it.tokens)
    }

    fn estimated(number: Option<Number>) -> Option<u64> {
        number.inspect(|it| assert_eq!(it.source, Source::Estimated)).map(|it| it.tokens)
    }

    #[test]
    fn bodies_without_a_fixture_report_where_their_reference_says() {
        let images = Case { endpoint: "/v1/images/generations", ..CHAT };
        let speech = Case { endpoint: "/v1/audio/speech", content_type: SSE, ..CHAT };
        let transcription = Case { endpoint: "/v1/audio/transcriptions", ..CHAT };
        let transcript = Case { endpoint: "/v1/audio/transcriptions", content_type: SSE, ..CHAT };
        for (case, body, input, output, audio) in [
            (
                &images,
                r#"{"created":1,"data":[{"b64_json":"aGk="}],"usage":{"total_tokens":100,"input_tokens":50,"output_tokens":60,"input_tokens_details":{"text_tokens":10,"image_tokens":40}}}"#,
                Some(50),
                Some(60),
                None,
            ),
            (
                &transcription,
                r#"{"text":"hi","usage":{"type":"tokens","input_tokens":14,"output_tokens":45,"total_tokens":59,"input_token_details":{"text_tokens":0,"audio_tokens":14}}}"#,
                Some(14),
                Some(45),
                Some(14),
            ),
            (&transcription, r#"{"text":"hi","usage":{"type":"duration","seconds":4}}"#, None, None, None),
            (
                &speech,
                "data: {\"type\":\"speech.audio.delta\",\"audio\":\"aGk=\"}\n\ndata: {\"type\":\"speech.audio.done\",\"usage\":{\"input_tokens\":14,\"output_tokens\":101,\"total_tokens\":115}}\n\n",
                Some(14),
                Some(101),
                None,
            ),
            (
                &transcript,
                "data: {\"type\":\"transcript.text.delta\",\"delta\":\"hi\"}\n\ndata: {\"type\":\"transcript.text.done\",\"text\":\"hi\",\"usage\":{\"type\":\"tokens\",\"input_tokens\":14,\"output_tokens\":31}}\n\n",
                Some(14),
                Some(31),
                None,
            ),
            (&CHAT, r#"{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":1.5}}"#, None, None, None),
            (
                &CHAT,
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":"4","prompt_tokens_details":7}}"#,
                Some(9),
                None,
                None,
            ),
        ] {
            let usage = metered(case, body.as_bytes()).usage;
            assert_eq!(reported(usage.input_tokens), input, "{body}");
            assert_eq!(reported(usage.output_tokens), output, "{body}");
            assert_eq!(reported(usage.audio_input_tokens), audio, "{body}");
            let provider = usage.provider.expect("the provider's object is kept");
            assert!(body.contains(&*provider), "{body}");
        }
    }

    #[test]
    fn what_spends_nothing_or_cannot_be_read_is_unknown() {
        let chat = r#"{"object":"response","model":"gpt","choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"input_tokens":1}}"#;
        for (case, body) in [
            (Case { status: 429, ..CHAT }, chat),
            (
                Case { status: 400, content_type: SSE, ..CHAT },
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
            ),
            (Case { endpoint: "/v1/responses/{id}", ..CHAT }, chat),
            (Case { endpoint: "/v1/batches/{..}", ..CHAT }, chat),
            (
                Case { endpoint: "/v1/messages/count_tokens", ..MESSAGES },
                r#"{"input_tokens":16,"usage":{"input_tokens":16}}"#,
            ),
            (Case { endpoint: "/v1beta/models/{model}:countTokens", ..GENERATE }, r#"{"totalTokens":16}"#),
            (Case { content_type: b"audio/mpeg", ..CHAT }, chat),
            (Case { content_type: b"", ..CHAT }, chat),
            (CHAT, "not json"),
            (CHAT, "[]"),
            (CHAT, ""),
            (Case { ended: Ended::Cut, ..CHAT }, r#"{"error":{"message":"x"#),
            (Case { content_type: SSE, ended: Ended::Cut, ..CHAT }, "data: {\"foo\":{\"delta\":\"text\"}}\n\n"),
            (Case { ended: Ended::Cut, ..GENERATE }, ""),
        ] {
            let metered = metered(&case, body.as_bytes());
            assert_eq!(metered.usage.source(), Source::Unknown, "{} {body}", case.endpoint);
            assert!(metered.usage.provider.is_none(), "{} {body}", case.endpoint);
        }
    }

    #[test]
    fn a_cut_keeps_what_was_reported_and_estimates_the_rest() {
        let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":17,\"cache_read_input_tokens\":3,\"output_tokens\":2}}}\n\n";
        let delta = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"0123456789012345678901234567890123456789ab\"}}\n\n";
        let end = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":11}}\n\n";
        let cut = Case { content_type: SSE, ended: Ended::Cut, ..MESSAGES };

        let usage = metered(&cut, [start, delta].concat().as_bytes()).usage;
        assert_eq!(reported(usage.input_tokens), Some(20));
        assert_eq!(estimated(usage.output_tokens), Some(10));
        assert_eq!(usage.source(), Source::Estimated);

        let usage = metered(&cut, start.as_bytes()).usage;
        assert_eq!(estimated(usage.output_tokens), Some(2), "the early count is the least");

        let whole = metered(&cut, [start, delta, end].concat().as_bytes());
        assert_eq!(reported(whole.usage.output_tokens), Some(11));
        assert_eq!(whole.usage.source(), Source::Reported);
        assert_eq!(whole.finish_reasons, ["end_turn"]);

        let chunk = "data: {\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"0123456789\"},\"finish_reason\":null}]}\n\n";
        for ended in [Ended::Cut, Ended::Whole] {
            let usage = metered(&Case { content_type: SSE, ended, ..CHAT }, chunk.as_bytes()).usage;
            assert_eq!(estimated(usage.output_tokens), Some(3));
            assert_eq!(estimated(usage.input_tokens), Some(100));
        }
        let body = r#"{"model":"gpt-4o","choices":[{"index":0,"message":{"content":"0123456789"#;
        let usage = metered(&Case { ended: Ended::Cut, ..CHAT }, body.as_bytes()).usage;
        assert_eq!(estimated(usage.output_tokens), Some(3));
        assert_eq!(metered(&CHAT, body.as_bytes()).usage.source(), Source::Unknown, "a whole body that is no JSON");
    }

    #[test]
    fn a_gemini_array_is_read_like_its_stream_even_when_cut() {
        let first = r#"[{"candidates":[{"content":{"parts":[{"text":"0123456"}]}}],"usageMetadata":{"promptTokenCount":15},"modelVersion":"gemini-x"}"#;
        let last = r#",
            {"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":13,"candidatesTokenCount":8,"thoughtsTokenCount":2,"promptTokensDetails":[{"modality":"TEXT","tokenCount":9},{"modality":"AUDIO","tokenCount":4}]}}"#;
        let whole = metered(&GENERATE, [first, last, "]"].concat().as_bytes());
        assert_eq!(reported(whole.usage.input_tokens), Some(13));
        assert_eq!(reported(whole.usage.output_tokens), Some(10));
        assert_eq!(reported(whole.usage.reasoning_output_tokens), Some(2));
        assert_eq!(reported(whole.usage.audio_input_tokens), Some(4));
        assert_eq!((whole.model.as_deref(), whole.finish_reasons), (Some("gemini-x"), vec!["STOP".to_owned()]));

        let cut =
            metered(&Case { ended: Ended::Cut, ..GENERATE }, [first, r#",{"candidates":[{"con"#].concat().as_bytes());
        assert_eq!(reported(cut.usage.input_tokens), Some(15));
        assert_eq!(estimated(cut.usage.output_tokens), Some(2));
    }

    #[test]
    fn finish_reasons_stand_in_the_order_of_their_choices() {
        let body = r#"{"choices":[{"index":1,"finish_reason":"length"},{"index":0,"finish_reason":"stop"}]}"#;
        assert_eq!(metered(&CHAT, body.as_bytes()).finish_reasons, ["stop", "length"]);
        let response = r#"{"object":"response","status":"incomplete","model":"gpt-5"}"#;
        assert_eq!(metered(&CHAT, response.as_bytes()).finish_reasons, ["incomplete"]);
        let queued = r#"{"object":"response","status":"queued"}"#;
        assert!(metered(&CHAT, queued.as_bytes()).finish_reasons.is_empty());
    }

    #[test]
    fn what_is_too_large_leaves_usage_unknown_and_holds_nothing() {
        let usage = r#""usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let filler = "x".repeat(MAX_HELD_BYTES);
        let body = format!("{{\"choices\":[],\"filler\":\"{filler}\",{usage}");
        assert_eq!(metered(&CHAT, body.as_bytes()).usage.source(), Source::Unknown);

        let stream = Case { content_type: SSE, ..CHAT };
        let small = format!("data: {{\"model\":\"m\",\"choices\":[],{usage}\n\n");
        let bytes = format!("data: {body}\n\n{small}");
        let answer = Answer { dialect: Dialect::OpenAi, status: 200, content_type: SSE, content_encoding: b"" };
        for piece in [bytes.len(), 65_536] {
            let mut meter = Meter::new(&answer, stream.endpoint);
            for bytes in bytes.as_bytes().chunks(piece) {
                meter.observe(bytes);
            }
            assert!(meter.at_event_boundary());
            let metered =
                meter.finish(Ended::Whole, &Asked { endpoint: stream.endpoint, model: None, request_bytes: 600 });
            assert_eq!((metered.usage.source(), metered.chunks), (Source::Unknown, 2), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_coding_changes_nothing_but_what_is_half_sent() {
        let events = [
            "data: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":17,\"output_tokens\":2}}}\n\n",
            "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"0123456789012345678901234567890123456789ab\"}}\n\n",
            "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":11}}\n\n",
        ]
        .map(str::as_bytes);
        let whole = Case { content_type: SSE, ..MESSAGES };
        let cut = Case { ended: Ended::Cut, ..whole };
        for encoding in Encoding::ALL {
            let wire = encoding.flushed(&events);
            let bytes = wire.concat();
            let metered = finished(&whole, meter(&whole, encoding.field(), bytes.chunks(5)));
            assert_eq!(reported(metered.usage.input_tokens), Some(17), "{encoding:?}");
            assert_eq!(reported(metered.usage.output_tokens), Some(11), "{encoding:?}");
            assert_eq!(metered.chunks, 3, "{encoding:?}");

            // The last event is lost with all but its first byte.
            let seen = meter(&cut, encoding.field(), [&wire[0][..], &wire[1], &wire[2][..1]]);
            assert!(!seen.at_event_boundary(), "{encoding:?}: nothing of ours fits into a coding");
            let usage = finished(&cut, seen).usage;
            assert_eq!(reported(usage.input_tokens), Some(17), "{encoding:?}");
            assert_eq!(estimated(usage.output_tokens), Some(10), "{encoding:?}");

            // Numbers from before the break are as doubtful as those behind it.
            let broken = meter(&cut, encoding.field(), [&wire[0][..], &wire[1], &[0xff; 64]]);
            assert!(broken.decoder.is_none(), "{encoding:?}: there is nothing left to decode");
            assert_eq!(finished(&cut, broken).usage.source(), Source::Unknown, "{encoding:?}");
        }
    }

    #[test]
    fn what_decodes_to_more_than_is_held_leaves_usage_unknown_and_holds_nothing() {
        let filler = "x".repeat(MAX_HELD_BYTES);
        let body = format!("{{\"filler\":\"{filler}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":1}}}}");
        for encoding in [Encoding::Gzip, Encoding::Zlib, Encoding::brotli(1), Encoding::zstd(1)] {
            let wire = encoding.encoded(body.as_bytes());
            let meter = meter(&CHAT, encoding.field(), wire.chunks(65_536));
            assert!(meter.decoder.is_none() && matches!(meter.framing, Framing::Opaque), "{encoding:?}");
            assert_eq!(finished(&CHAT, meter).usage.source(), Source::Unknown, "{encoding:?}");
        }
    }

    #[test]
    fn only_encoded_answers_have_a_decoder() {
        for (coding, is_decoded) in
            [("", false), ("identity", false), ("gzip, br", false), ("GZIP", true), ("br", true)]
        {
            assert_eq!(meter(&CHAT, coding, []).decoder.is_some(), is_decoded, "{coding}");
        }
        let error = Case { status: 429, ..CHAT };
        assert!(meter(&error, "zstd", []).decoder.is_none(), "an error tells no usage");
    }

    #[test]
    fn an_idle_meter_is_small() {
        assert!(size_of::<Meter>() <= 320, "{}", size_of::<Meter>());
    }
}
