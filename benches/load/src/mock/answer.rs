//! An answer ready to be written. Whatever can be prepared is: a plain answer is one buffer, serialised once, so that
//! the mock is never what a benchmark measures.

use std::io::Write;

use bytes::Bytes;
use serde::Serialize;

use super::steering::AnswerFraming;

/// Tokens an answer stands for, counted as OpenTelemetry does: input includes cache reads and writes, output
/// includes reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the completion.
    pub output: u64,
}

/// One answer of a provider.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Without framing, encoding and hop-by-hop fields: those depend on how the answer is sent.
    pub(super) headers: Vec<(String, String)>,
    /// The body, cut where a provider flushes: after each event of a stream.
    pub(super) pieces: Vec<Bytes>,
    /// Sent chunked unless asked otherwise, one chunk a piece.
    pub(super) is_stream: bool,
    /// `None`: the provider does not say.
    pub(super) tokens: Option<Tokens>,
    /// The recording that these bytes are.
    pub(super) recording: Option<String>,
    /// The whole answer on a connection that is kept.
    pub(super) plain: Vec<u8>,
    pub(super) body_bytes: u64,
}

impl Answer {
    pub(super) fn new(status: u16, headers: Vec<(String, String)>, pieces: Vec<Bytes>, is_stream: bool) -> Self {
        let body_bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut answer =
            Self { status, headers, pieces, is_stream, tokens: None, recording: None, plain: Vec::new(), body_bytes };
        let framing = if is_stream { AnswerFraming::Chunked } else { AnswerFraming::Length };
        let mut plain = answer.head(framing, body_bytes, None, true);
        for piece in answer.pieces.iter().filter(|_| !answer.is_bodiless()) {
            push_piece(&mut plain, piece, framing);
        }
        if is_stream && !answer.is_bodiless() {
            plain.extend_from_slice(LAST_CHUNK);
        }
        answer.plain = plain;
        answer
    }

    /// A JSON answer with one body.
    pub(super) fn json(status: u16, headers: &[(&str, &str)], body: Vec<u8>) -> Self {
        let headers = std::iter::once(&("content-type", "application/json"))
            .chain(headers)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self::new(status, headers, vec![Bytes::from(body)], false)
    }

    /// An event stream with one piece an event.
    pub(super) fn events(events: &[String]) -> Self {
        let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
        Self::new(200, headers, events.iter().map(|event| Bytes::from(event.clone())).collect(), true)
    }

    pub(super) fn with_tokens(mut self, input: u64, output: u64) -> Self {
        self.tokens = Some(Tokens { input, output });
        self
    }

    /// The same answer under another status.
    pub(super) fn with_status(&self, status: u16) -> Self {
        let answer = Self::new(status, self.headers.clone(), self.pieces.clone(), self.is_stream);
        Self { tokens: self.tokens, recording: self.recording.clone(), ..answer }
    }

    /// Whether the status allows no body (RFC 9110 §6.4.1).
    pub(super) fn is_bodiless(&self) -> bool {
        matches!(self.status, 204 | 304)
    }

    /// The head of this answer, its empty line included.
    pub(super) fn head(
        &self,
        framing: AnswerFraming,
        body_bytes: u64,
        content_encoding: Option<&str>,
        keep_alive: bool,
    ) -> Vec<u8> {
        let mut head = Vec::with_capacity(1024);
        // Writing to a vector cannot fail.
        let _ = write!(head, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(encoding) = content_encoding {
            let _ = write!(head, "content-encoding: {encoding}\r\n");
        }
        match framing {
            _ if self.is_bodiless() => {}
            AnswerFraming::Chunked => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            AnswerFraming::Length => {
                let _ = write!(head, "content-length: {body_bytes}\r\n");
            }
            AnswerFraming::Close => {}
        }
        if !keep_alive {
            head.extend_from_slice(b"connection: close\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// What ends a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends one piece of a body, framed. An empty piece is nothing: as a chunk it would end the body.
pub(super) fn push_piece(out: &mut Vec<u8>, piece: &[u8], framing: AnswerFraming) {
    if piece.is_empty() {
        return;
    }
    if framing == AnswerFraming::Chunked {
        let _ = write!(out, "{:x}\r\n", piece.len());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(piece);
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}
