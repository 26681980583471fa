//! What has been learned about one answer so far, and what follows from it at the end.

use super::number::{self, Counts};
use super::walk::Walk;
use super::{Asked, Ended, Number, Source, Usage};
use super::{anthropic, estimate, gemini, openai, scan};
use crate::dialect::Dialect;

/// Events parsed in search of the model's name and the form, before we stop looking.
const FIRST_LOOKS: u8 = 8;
/// Most choices whose finish reasons are kept; OpenAI allows 128.
const MAX_CHOICES: usize = 128;
/// A usage object larger than this is not one.
const MAX_USAGE_BYTES: usize = 64 * 1024;

/// How the data of the Responses API's last event begins.
const TERMINAL: [&[u8]; 3] =
    [br#"{"type":"response.completed""#, br#"{"type":"response.incomplete""#, br#"{"type":"response.failed""#];

/// Which of the dialect's streams this is. Only a recognised one is ever estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    #[default]
    Unseen,
    /// OpenAI chat and completions: `choices`.
    Choices,
    /// OpenAI events with a `type`: responses, transcription, images, speech.
    Typed,
    /// Anthropic: `message_start` came.
    Messages,
    /// Gemini: candidates or usage metadata came.
    Candidates,
}

/// Everything kept of an answer.
#[derive(Debug)]
pub(super) struct Tally {
    dialect: Dialect,
    /// False where no usage is to be read at all.
    is_metered: bool,
    pub(super) form: Form,
    looks_left: u8,
    model: Option<String>,
    /// With the choice's index, one for each.
    finish_reasons: Vec<(u64, String)>,
    /// The provider's usage object; empty until there is one. Some streams repeat it in every event.
    pub(super) reported: Vec<u8>,
    /// The output number will not grow any more.
    pub(super) is_final: bool,
    text_bytes: u64,
    is_lost: bool,
    /// The stream has said that it ends: `[DONE]`, `message_stop`, a terminal `response.*` event.
    pub(super) is_over: bool,
}

impl Tally {
    pub(super) fn new(dialect: Dialect, is_metered: bool) -> Self {
        Self {
            dialect,
            is_metered,
            form: Form::Unseen,
            looks_left: FIRST_LOOKS,
            model: None,
            finish_reasons: Vec::new(),
            reported: Vec::new(),
            is_final: false,
            text_bytes: 0,
            is_lost: false,
            is_over: false,
        }
    }

    /// Part of the answer could not be read: its numbers can no longer be trusted.
    pub(super) fn lose(&mut self) {
        self.is_lost = true;
    }

    /// Reads the data of one event, or one element of a Gemini array.
    pub(super) fn message(&mut self, data: &[u8]) {
        if !self.is_metered {
            return;
        }
        match self.dialect {
            Dialect::OpenAi | Dialect::Azure => self.openai_message(data),
            Dialect::Anthropic => self.anthropic_message(data),
            Dialect::Gemini => self.gemini_message(data),
        }
    }

    fn openai_message(&mut self, data: &[u8]) {
        if data.starts_with(b"[DONE]") {
            self.is_over = true;
            return;
        }
        let keys = scan::keys();
        let is_interesting = match self.form {
            Form::Typed => scan::has_value(&keys.response, data, b'{') || scan::has_value(&keys.usage, data, b'{'),
            _ => scan::has_value(&keys.usage, data, b'{') || scan::has_value(&keys.finish_reason, data, b'"'),
        };
        if self.is_first_look() || is_interesting {
            openai::read(data, self);
            self.is_over |= self.form == Form::Typed && TERMINAL.iter().any(|start| data.starts_with(start));
        }
        let text_bytes = match self.form {
            Form::Choices => match scan::delta_text_bytes(data) {
                0 => scan::text_member_bytes(data), // legacy completions
                bytes => bytes,
            },
            Form::Typed if !openai::is_audio_delta(data) => scan::delta_text_bytes(data),
            _ => 0,
        };
        self.text_bytes = self.text_bytes.saturating_add(text_bytes);
    }

    fn anthropic_message(&mut self, data: &[u8]) {
        let keys = scan::keys();
        self.is_over |= data.starts_with(br#"{"type":"message_stop""#);
        let is_content = data.starts_with(br#"{"type":"content_block_"#);
        if !is_content && (keys.message_start.find(data).is_some() || keys.message_delta.find(data).is_some()) {
            anthropic::read_event(data, self);
        } else if self.form == Form::Messages {
            self.text_bytes = self.text_bytes.saturating_add(scan::delta_text_bytes(data));
        }
    }

    fn gemini_message(&mut self, data: &[u8]) {
        let keys = scan::keys();
        if self.is_first_look()
            || scan::has_value(&keys.usage_metadata, data, b'{')
            || scan::has_value(&keys.finish_reason_camel, data, b'"')
        {
            gemini::read(data, self);
        }
        if self.form == Form::Candidates {
            // Grounding quotes the text again.
            let end = keys.grounding_metadata.find(data).unwrap_or(data.len());
            let own = data.get(..end).unwrap_or_default();
            self.text_bytes = self.text_bytes.saturating_add(scan::text_member_bytes(own));
        }
    }

    fn is_first_look(&mut self) -> bool {
        let is_first = self.looks_left > 0 && (self.model.is_none() || self.form == Form::Unseen);
        if is_first {
            self.looks_left = self.looks_left.saturating_sub(1);
        }
        is_first
    }

    /// Reads a JSON body, held until its end.
    pub(super) fn body(&mut self, body: &[u8], ended: Ended) {
        if !self.is_metered {
            return;
        }
        let is_whole = match self.dialect {
            Dialect::OpenAi | Dialect::Azure => openai::read(body, self),
            Dialect::Anthropic => anthropic::read_body(body, self),
            // A stream without `alt=sse` is one array, whose elements are what its events would be.
            Dialect::Gemini if body.trim_ascii_start().starts_with(b"[") => {
                gemini::for_each_element(body, |element| self.message(element));
                return;
            }
            Dialect::Gemini => gemini::read(body, self),
        };
        if is_whole {
            self.is_final = true;
        } else if ended == Ended::Cut {
            self.text_bytes = scan::object_text_bytes(body);
            if self.text_bytes > 0 {
                self.form = match self.dialect {
                    Dialect::OpenAi | Dialect::Azure => Form::Choices,
                    Dialect::Anthropic => Form::Messages,
                    Dialect::Gemini => Form::Candidates,
                };
            }
        }
    }

    /// Keeps the first name the answer gives its model.
    pub(super) fn name_model(&mut self, name: Option<&[u8]>) {
        if self.model.is_none() {
            self.model = number::text(name);
        }
    }

    /// Keeps why a choice ended; a choice that says so again replaces what it said.
    pub(super) fn finish_choice(&mut self, index: u64, reason: Option<&[u8]>) {
        let Some(reason) = number::text(reason) else { return };
        if let Some((_, known)) = self.finish_reasons.iter_mut().find(|(known, _)| *known == index) {
            *known = reason;
        } else if self.finish_reasons.len() < MAX_CHOICES {
            self.finish_reasons.push((index, reason));
        }
    }

    /// Keeps a usage object; the last one counts.
    pub(super) fn report(&mut self, usage: Option<&[u8]>) {
        if let Some(usage) = usage.filter(|usage| is_usage_object(usage)) {
            self.reported.clear();
            self.reported.extend_from_slice(usage);
        }
    }

    /// The numbers, the model and the finish reasons.
    pub(super) fn settle(mut self, ended: Ended, asked: &Asked<'_>) -> (Usage, Option<String>, Vec<String>) {
        self.finish_reasons.sort_by_key(|(index, _)| *index);
        let is_final = self.is_final
            || match (self.form, ended) {
                (Form::Messages, _) => false, // only `message_delta` has the final number
                (_, Ended::Whole) => true,
                (_, Ended::Cut) => !self.finish_reasons.is_empty(),
            };
        let usage = if self.is_metered && !self.is_lost { self.usage(is_final, asked) } else { Usage::default() };
        // Not `collect`, which would do it in the larger allocation and then shrink that.
        let mut finish_reasons = Vec::with_capacity(self.finish_reasons.len());
        finish_reasons.extend(self.finish_reasons.into_iter().map(|(_, reason)| reason));
        (usage, self.model, finish_reasons)
    }

    fn usage(&mut self, is_final: bool, asked: &Asked<'_>) -> Usage {
        let provider = text(std::mem::take(&mut self.reported));
        let counts = match provider.as_deref().map(str::as_bytes) {
            None => Counts::default(),
            Some(provider) => match self.dialect {
                Dialect::OpenAi | Dialect::Azure => openai::counts(provider),
                Dialect::Anthropic => anthropic::counts(provider),
                Dialect::Gemini => gemini::counts(provider),
            },
        };
        let mut usage = Usage {
            input_tokens: reported(counts.input),
            output_tokens: reported(counts.output),
            cache_read_input_tokens: reported(counts.cache_read),
            cache_creation_input_tokens: reported(counts.cache_creation),
            reasoning_output_tokens: reported(counts.reasoning),
            audio_input_tokens: reported(counts.audio_input),
            audio_output_tokens: reported(counts.audio_output),
            provider,
        };
        // What a final usage object leaves out is unknown, not ours to guess.
        let is_told = is_final && usage.provider.is_some();
        let is_begun = self.form != Form::Unseen && (self.text_bytes > 0 || !is_final);
        if !is_told && is_begun {
            let family = estimate::Family::of(self.dialect, self.model.as_deref().or(asked.model));
            let seen = family.answer_tokens(self.text_bytes).max(counts.output.unwrap_or(0));
            usage.output_tokens = estimated(seen);
            if usage.input_tokens.is_none() {
                usage.input_tokens = estimated(family.request_tokens(asked.request_bytes));
            }
        }
        usage
    }
}

/// Reads choices (or candidates): those that say why they ended, each with its own index, or else its place.
pub(super) fn ended_choices<'a>(walk: &mut Walk<'a>, reason_name: &[u8]) -> Option<Vec<(u64, &'a [u8])>> {
    let mut ended = Vec::new();
    let mut place = 0u64;
    walk.elements(|walk| {
        let mut index: Option<&'a [u8]> = None;
        let mut reason: Option<&'a [u8]> = None;
        walk.members(|name, walk| match name {
            b"index" => walk.keep(&mut index),
            _ if name == reason_name => walk.keep(&mut reason),
            _ => walk.skip(),
        })?;
        if let Some(reason) = number::present(reason) {
            ended.push((number::count(index).unwrap_or(place), reason));
        }
        place = place.saturating_add(1);
        Some(())
    })?;
    Some(ended)
}

/// Whether this is an object of a size that usage has.
pub(super) fn is_usage_object(value: &[u8]) -> bool {
    value.starts_with(b"{") && value.len() <= MAX_USAGE_BYTES
}

/// The object as text; `None` if there is none, or it is not UTF-8.
fn text(object: Vec<u8>) -> Option<Box<str>> {
    String::from_utf8(object).ok().filter(|text| !text.is_empty()).map(String::into_boxed_str)
}

fn reported(tokens: Option<u64>) -> Option<Number> {
    tokens.map(|tokens| Number { tokens, source: Source::Reported })
}

/// An estimate of 0 says that nothing was seen, which is not knowledge.
fn estimated(tokens: u64) -> Option<Number> {
    (tokens > 0).then_some(Number { tokens, source: Source::Estimated })
}
