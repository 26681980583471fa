//! The recorded answers, by name. Read once at start; their bodies are served as they are, byte for byte.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde::Deserialize;

use super::answer::{Answer, Tokens};
use super::embedded::FILES;

/// Fields of a recorded head that describe the recorded connection, not the answer.
const NOT_REPLAYED: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "date",
    "keep-alive",
    "proxy-connection",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Every recording that can be an HTTP answer.
pub(super) struct Recordings {
    by_name: HashMap<&'static str, Arc<Answer>>,
}

#[derive(Deserialize)]
struct Manifest<'a> {
    #[serde(borrow)]
    files: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    file: &'a str,
    meta: &'a str,
    kind: &'a str,
    status: u16,
    content_type: &'a str,
    expected: Option<Expected>,
}

/// What the provider itself stated, in its own field meaning; absent is unknown.
#[derive(Deserialize)]
struct Expected {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    cache_creation_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Meta {
    headers: serde_json::Map<String, serde_json::Value>,
}

impl Recordings {
    /// Reads what is built in. Fails if the manifest and the files do not fit together.
    pub(super) fn load() -> anyhow::Result<Self> {
        let files: HashMap<&'static str, &'static [u8]> = FILES.iter().copied().collect();
        let manifest: &'static [u8] = files.get("manifest.json").copied().context("there is no manifest.json")?;
        let manifest: Manifest<'static> = serde_json::from_slice(manifest).context("manifest.json")?;
        let mut by_name = HashMap::new();
        // A WebSocket transcript is not an HTTP answer.
        for entry in manifest.files.iter().filter(|entry| entry.status >= 200) {
            let body: &'static [u8] =
                files.get(entry.file).copied().with_context(|| format!("{} is missing", entry.file))?;
            let meta: &[u8] = files.get(entry.meta).copied().with_context(|| format!("{} is missing", entry.meta))?;
            let meta: Meta = serde_json::from_slice(meta).with_context(|| entry.meta.to_owned())?;
            let name = entry.file.rsplit_once('.').map_or(entry.file, |(stem, _)| stem);
            let mut answer = entry.answer(body, &meta);
            answer.recording = Some(name.to_owned());
            let taken = by_name.insert(name, Arc::new(answer));
            ensure!(taken.is_none(), "two recordings are called {name}");
        }
        Ok(Self { by_name })
    }

    /// The recording of this name (its file without the extension).
    pub(super) fn get(&self, name: &str) -> Option<Arc<Answer>> {
        self.by_name.get(name).cloned()
    }

    /// The recording of a name written in this module's neighbours; fails if it is not there.
    pub(super) fn built_in(&self, name: &str) -> anyhow::Result<Arc<Answer>> {
        self.get(name).with_context(|| format!("there is no recording {name}"))
    }
}

impl Entry<'_> {
    fn answer(&self, body: &'static [u8], meta: &Meta) -> Answer {
        let mut headers: Vec<_> = meta
            .headers
            .iter()
            .filter(|(name, _)| !NOT_REPLAYED.iter().any(|dropped| name.eq_ignore_ascii_case(dropped)))
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("content-type".to_owned(), self.content_type.to_owned()));
        }
        let is_event_stream = self.file.ends_with(".sse");
        let is_stream = is_event_stream || self.file.ends_with(".bin");
        let pieces = if is_event_stream { events(body) } else { vec![Bytes::from_static(body)] };
        let mut answer = Answer::new(self.status, headers, pieces, is_stream);
        answer.tokens = self.tokens();
        answer
    }

    /// The stated usage as OpenTelemetry counts. Token counting answers state no usage: nothing was generated.
    fn tokens(&self) -> Option<Tokens> {
        let expected = self.expected.as_ref().filter(|_| self.kind != "anthropic.count_tokens")?;
        if expected.prompt_tokens.is_none() && expected.completion_tokens.is_none() {
            return None;
        }
        let mut tokens =
            Tokens { input: expected.prompt_tokens.unwrap_or(0), output: expected.completion_tokens.unwrap_or(0) };
        if self.kind.starts_with("anthropic.") {
            let cached = expected.cached_tokens.unwrap_or(0);
            let written = expected.cache_creation_tokens.unwrap_or(0);
            tokens.input = tokens.input.saturating_add(cached).saturating_add(written);
        } else if self.kind.starts_with("gemini.") {
            tokens.output = tokens.output.saturating_add(expected.reasoning_tokens.unwrap_or(0));
        }
        Some(tokens)
    }
}

/// Cuts an event stream after each empty line, whatever its line ends; the cuts lose no byte.
pub(super) fn events(stream: &'static [u8]) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (event, after) = rest.split_at_checked(event_end(rest)).unwrap_or((rest, &[]));
        events.push(Bytes::from_static(event));
        rest = after;
    }
    events
}

fn event_end(stream: &[u8]) -> usize {
    [b"\r\n\r\n".as_slice(), b"\n\n", b"\r\r"]
        .into_iter()
        .filter_map(|mark| Some(memchr::memmem::find(stream, mark)?.saturating_add(mark.len())))
        .min()
        .unwrap_or(stream.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recording_is_served_as_it_is() {
        let recordings = Recordings::load().unwrap();
        for (file, body) in FILES {
            let Some((name, extension)) = file.rsplit_once('.') else { continue };
            if name.ends_with(".meta") || name == "manifest" || extension == "jsonl" {
                continue;
            }
            let answer = recordings.get(name).unwrap();
            assert_eq!(answer.pieces.concat(), *body, "{file}");
            assert!(answer.plain.starts_with(b"HTTP/1.1 "), "{file}");
        }
    }

    #[test]
    fn streams_are_cut_at_events() {
        let pieces = events(b"data: 1\n\ndata: 2\r\n\r\n: tail");
        assert_eq!(pieces, [b"data: 1\n\n".as_slice(), b"data: 2\r\n\r\n", b": tail"]);
    }

    #[test]
    fn tokens_are_counted_as_opentelemetry_does() {
        let recordings = Recordings::load().unwrap();
        for (name, expected) in [
            ("openai-chat-basic", Some(Tokens { input: 12, output: 5 })),
            ("openai-chat-stream-no-usage", None),
            ("anthropic-messages-stream-cache-read", Some(Tokens { input: 1169, output: 221 })),
            ("anthropic-count-tokens", None),
        ] {
            assert_eq!(recordings.get(name).unwrap().tokens, expected, "{name}");
        }
    }
}
