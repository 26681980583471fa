//! One call for a whole answer through the meter, and its result in a form that can be compared.

use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::usage::{Answer, Asked, Ended, Meter, Metered, Number};

/// An answer's head, as far as the meter looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub dialect: Dialect,
    pub is_stream: bool,
    pub coding: &'static str,
}

/// What the meter tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Input, output, cache read, cache creation, reasoning, audio in, audio out.
    pub numbers: [Option<Number>; 7],
    pub provider: Option<Box<str>>,
    pub named: Named,
    /// Of a stream. Of other answers the pieces are counted, and how they are cut is not theirs.
    pub chunks: Option<u64>,
}

/// What an answer calls itself and its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub model: Option<String>,
    pub finish_reasons: Vec<String>,
}

impl Head {
    /// A meter that has seen nothing yet.
    pub fn meter(self) -> Meter {
        let content_type: &[u8] = if self.is_stream { b"text/event-stream" } else { b"application/json" };
        let content_encoding = self.coding.as_bytes();
        let answer = Answer { dialect: self.dialect, status: 200, content_type, content_encoding };
        Meter::new(&answer, self.endpoint())
    }

    /// What a meter tells of an answer in these pieces.
    pub fn told(self, pieces: &[&[u8]], ended: Ended) -> Told {
        let mut meter = self.meter();
        for piece in pieces {
            meter.observe(piece);
        }
        self.settled(meter, ended)
    }

    /// What a meter tells at the end.
    pub fn settled(self, meter: Meter, ended: Ended) -> Told {
        let asked = Asked { endpoint: self.endpoint(), model: None, request_bytes: 600 };
        let Metered { usage, model, finish_reasons, chunks } = meter.finish(ended, &asked);
        Told {
            numbers: [
                usage.input_tokens,
                usage.output_tokens,
                usage.cache_read_input_tokens,
                usage.cache_creation_input_tokens,
                usage.reasoning_output_tokens,
                usage.audio_input_tokens,
                usage.audio_output_tokens,
            ],
            provider: usage.provider,
            named: Named { model, finish_reasons },
            chunks: self.is_stream.then_some(chunks),
        }
    }

    fn endpoint(self) -> &'static str {
        match self.dialect {
            Dialect::OpenAi => "/v1/chat/completions",
            Dialect::Anthropic => "/v1/messages",
            Dialect::Gemini => "/v1beta/models/{model}:streamGenerateContent",
            Dialect::Azure => "/openai/deployments/{deployment}/chat/completions",
        }
    }
}
