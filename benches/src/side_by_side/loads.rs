//! What the candidates are asked to do: the exchanges that most of an LLM proxy's day consists of. Requests are as the
//! OpenAI SDK for Python writes them, answers are recorded ones.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llm_proxy_load::generate::{self, LoadOptions, StreamOptions, Until};

use crate::candidates::{Lane, Stage};

/// Size of every request body.
const REQUEST_BYTES: usize = 2048;
const SYSTEM_PROMPT: &str = "You are a helpful assistant that answers in one short paragraph.";
const PARAGRAPH: &str = r"The quick brown fox jumps over the lazy dog, as it does in every test.\n";
const END: &str = r#""}],"model":"gpt-4o-mini","temperature":0.7"#;
/// About a hundred events of about 280 bytes, the last with usage.
const STREAM_RECORDING: &str = "openai-chat-stream-n-choices";
const PACE: Duration = Duration::from_millis(5);
/// After a load, for work that has no record to wait for.
const AFTERMATH: Duration = Duration::from_millis(200);

/// A kind of exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A small JSON request with a small JSON answer, one after the other on kept connections.
    Json,
    /// Streams whose events come one by one, many at once: the cost of waking up for an event.
    PacedStreams,
    /// Streams that come as fast as they are read: the cost of the bytes.
    StreamBurst,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Json, Self::PacedStreams, Self::StreamBurst];

    /// Its short name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::PacedStreams => "sse-paced",
            Self::StreamBurst => "sse-burst",
        }
    }

    fn request(self, credential: &str) -> String {
        let body = self.body();
        let steering = match self {
            Self::Json => String::new(),
            Self::PacedStreams => {
                format!("x-mock-recording: {STREAM_RECORDING}\r\nx-mock-pace-ms: {}\r\n", PACE.as_millis())
            }
            Self::StreamBurst => format!("x-mock-recording: {STREAM_RECORDING}\r\n"),
        };
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example.com\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nUser-Agent: OpenAI/Python 1.109.1\r\n\
             Authorization: Bearer {credential}\r\n{steering}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Exactly [`REQUEST_BYTES`] of JSON. `model` stands behind the messages, where the SDK puts it.
    fn body(self) -> String {
        let end = match self {
            Self::Json => format!("{END}}}"),
            Self::PacedStreams | Self::StreamBurst => {
                format!(r#"{END},"stream":true,"stream_options":{{"include_usage":true}}}}"#)
            }
        };
        let mut body =
            format!(r#"{{"messages":[{{"role":"system","content":"{SYSTEM_PROMPT}"}},{{"role":"user","content":""#);
        let room = REQUEST_BYTES.saturating_sub(body.len()).saturating_sub(end.len());
        body.push_str(&PARAGRAPH.repeat(room / PARAGRAPH.len()));
        // Not a piece of a paragraph: it could end within an escape.
        body.push_str(&".".repeat(room % PARAGRAPH.len()));
        body.push_str(&end);
        body
    }
}

/// How much of a load.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Connections at once.
    pub connections: usize,
    /// Exchanges over all of them, a multiple of the connections.
    pub exchanges: u32,
}

/// A load whose right answer is known.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Its kind.
    pub kind: Kind,
    /// Size of the answer's body.
    answer_bytes: u64,
    /// Server-sent events in it.
    events: usize,
}

/// How a load went.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Answers that came whole.
    pub exchanges: u64,
    /// All others; also set when an answer had other bytes than the mock's.
    pub errors: u64,
}

impl Load {
    /// Asks the mock itself what the right answer is.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn new(kind: Kind, stage: &Stage) -> Result<Self> {
        let (addr, key) = stage.direct();
        let reply = generate::fetch(addr, kind.request(key).as_bytes()).await.context("asking the mock itself")?;
        ensure!(reply.status == 200, "the mock itself answered {} to {}", reply.status, kind.name());
        let events = reply.body.windows(2).filter(|pair| *pair == b"\n\n").count();
        Ok(Self { kind, answer_bytes: reply.body.len() as u64, events })
    }

    /// What it is, in words.
    pub fn title(&self) -> String {
        let (bytes, events) = (self.answer_bytes, self.events);
        match self.kind {
            Kind::Json => format!("POST {REQUEST_BYTES} B -> {bytes} B of JSON"),
            Kind::PacedStreams => format!("{events} events {} ms apart, {bytes} B", PACE.as_millis()),
            Kind::StreamBurst => format!("{events} events at once, {bytes} B"),
        }
    }

    /// Runs it against one lane and waits until the lane's records are written.
    ///
    /// # Errors
    /// When records are missing for long.
    pub async fn run(&self, lane: &Lane, amount: Amount) -> Result<Outcome> {
        let outcome = self.exchange(lane, amount).await;
        if let Some(records) = &lane.records {
            records.expect(outcome.exchanges);
            records.complete().await?;
        }
        tokio::time::sleep(AFTERMATH).await;
        Ok(outcome)
    }

    async fn exchange(&self, lane: &Lane, amount: Amount) -> Outcome {
        let request = self.kind.request(&lane.credential).into();
        let Amount { connections, exchanges } = amount;
        let (exchanges, errors, body_bytes) = match self.kind {
            Kind::PacedStreams => {
                let rounds = exchanges / u32::try_from(connections).unwrap_or(u32::MAX).max(1);
                let options = StreamOptions { addr: lane.addr, request, streams: connections, rounds };
                let report = generate::stream(&options).await;
                (report.finished, report.errors, report.body_bytes)
            }
            Kind::Json | Kind::StreamBurst => {
                let until = Until::Requests(u64::from(exchanges));
                let options = LoadOptions { addr: lane.addr, request, connections, until, keep_alive: true };
                let report = generate::load(&options).await;
                let good = report.statuses.get(&200).copied().unwrap_or_default();
                let errors = report.errors.saturating_add(report.answered().saturating_sub(good));
                (good, errors, report.body_bytes)
            }
        };
        let is_right = body_bytes == self.answer_bytes.saturating_mul(exchanges);
        Outcome { exchanges, errors: if is_right { errors } else { errors.max(1) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_body_is_json_of_one_size() {
        for kind in Kind::ALL {
            let body = kind.body();
            assert_eq!(body.len(), REQUEST_BYTES, "{kind:?}");
            let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(parsed["model"], "gpt-4o-mini");
            assert_eq!(parsed["stream"] == true, kind != Kind::Json);
            assert!(kind.request("key").ends_with(&body));
        }
    }
}
