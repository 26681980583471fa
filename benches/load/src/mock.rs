//! The mock provider: OpenAI, Anthropic, Gemini and Azure at one address, each with its own credential check, errors
//! and recorded answers. README.md beside the package lists how requests steer it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod answer;
mod asked;
mod books;
mod choice;
mod connection;
mod credentials;
mod embedded;
mod errors;
mod exchange;
mod frames;
mod head;
mod made;
mod opening;
mod realtime;
mod recordings;
mod routes;
mod send;
mod socket;
mod steering;

pub use answer::Tokens;
pub use books::{Ended, KeyStats, RequestRecord, SocketCounts, SocketRecord, SocketStats, Stats};
pub use credentials::{Key, Provider, UnknownProvider};

use connection::Connection;
use exchange::State;

const BACKLOG: u32 = 4096;
/// After an accept that failed, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// How a mock is started.
#[derive(Clone, Debug)]
pub struct MockOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The keys it takes.
    pub keys: Vec<Key>,
    /// Kernel receive buffer of each connection; `None` leaves it to the system. A small one makes a slow reader
    /// felt by the sender soon.
    pub receive_buffer_bytes: Option<u32>,
}

impl Default for MockOptions {
    /// A free port on loopback; keys `sk-mock-openai`, `sk-mock-anthropic`, `mock-gemini`, `mock-azure`.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            keys: credentials::default_keys(),
            receive_buffer_bytes: None,
        }
    }
}

/// A running mock provider. Dropping it stops it without waiting.
pub struct Mock {
    addr: SocketAddr,
    state: Arc<State>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Mock {
    /// Binds and serves on the current tokio runtime. Fails if the address cannot be bound.
    pub async fn start(options: MockOptions) -> anyhow::Result<Self> {
        let answers = choice::Answers::load().context("the built-in recordings")?;
        let listener = listen(&options).with_context(|| format!("listening on {}", options.listen))?;
        let addr = listener.local_addr().context("the address listened on")?;
        let state = Arc::new(State { keys: options.keys, answers, books: books::Books::default() });
        let mock = Self { addr, state, stopping: CancellationToken::new(), tasks: TaskTracker::new() };
        mock.tasks.spawn(accept(listener, mock.state.clone(), mock.stopping.clone(), mock.tasks.clone()));
        Ok(mock)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Totals since start or reset.
    pub fn stats(&self) -> Stats {
        self.state.books.stats()
    }

    /// The last 1,000 requests, oldest first, those still going on included.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.state.books.requests(usize::MAX)
    }

    /// Forgets all requests and totals.
    pub fn reset(&self) {
        self.state.books.reset();
    }

    /// Stops listening, cuts what is open, and returns when all of it is gone.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

fn listen(options: &MockOptions) -> std::io::Result<TcpListener> {
    let socket = if options.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if let Some(bytes) = options.receive_buffer_bytes {
        // Accepted connections inherit it.
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(options.listen)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, state: Arc<State>, stopping: CancellationToken, tasks: TaskTracker) {
    while let Some(accepted) = stopping.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Every event of a stream is a segment of its own.
        let _ = stream.set_nodelay(true);
        let (state, stopping) = (state.clone(), stopping.clone());
        tasks.spawn(async move {
            state.books.connected();
            stopping.run_until_cancelled(exchange::serve(Connection::new(stream), &state)).await;
            state.books.disconnected();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Reply, fetch};
    use std::io::ErrorKind;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;

    fn chat(fields: &str, body: &str) -> String {
        post("/v1/chat/completions", &format!("authorization: Bearer sk-mock-openai\r\n{fields}"), body)
    }

    fn post(target: &str, fields: &str, body: &str) -> String {
        format!("POST {target} HTTP/1.1\r\nhost: mock\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
    }

    fn recorded(file: &str) -> &'static [u8] {
        embedded::FILES.iter().find(|(name, _)| *name == file).unwrap().1
    }

    async fn mock() -> Mock {
        Mock::start(MockOptions::default()).await.unwrap()
    }

    async fn ask(mock: &Mock, request: &str) -> std::io::Result<Reply> {
        fetch(mock.addr(), request.as_bytes()).await
    }

    #[tokio::test]
    async fn every_recording_comes_byte_equal_however_it_is_sent() {
        let mock = mock().await;
        for (file, bytes) in embedded::FILES {
            let Some((name, extension)) = file.rsplit_once('.') else { continue };
            if name.ends_with(".meta") || name == "manifest" || extension == "jsonl" {
                continue;
            }
            for how in ["", "x-mock-split: 7\r\n", "x-mock-split: random:3\r\n", "x-mock-framing: close\r\n"] {
                // Single bytes of the largest ones would only take time.
                if bytes.len() > 20_000 && how.contains("split") {
                    continue;
                }
                let reply = ask(&mock, &chat(&format!("x-mock-recording: {name}\r\n{how}"), CHAT)).await.unwrap();
                assert_eq!(reply.body, *bytes, "{file} {how}");
            }
        }
        mock.stop().await;
    }

    #[tokio::test]
    async fn a_wrong_key_gets_the_providers_own_401() {
        let mock = mock().await;
        let request = post("/v1/chat/completions", "authorization: Bearer sk-lp-leaked\r\n", CHAT);
        let reply = ask(&mock, &request).await.unwrap();
        assert_eq!(reply.status, 401);
        assert_eq!(reply.body, recorded("error-openai-401.json"));
        assert_eq!(mock.stats().by_key["(refused)"].requests, 1);
        assert!(mock.requests()[0].header("authorization").unwrap().ends_with(b"leaked"));
    }

    #[tokio::test]
    async fn broken_connections_look_broken() {
        let mock = mock().await;
        for (fault, kind) in [
            ("reset-head", ErrorKind::ConnectionReset),
            ("reset:10", ErrorKind::ConnectionReset),
            ("cut:10", ErrorKind::UnexpectedEof),
        ] {
            let body = r#"{"model":"m","messages":[],"stream":true}"#;
            let error = ask(&mock, &chat(&format!("x-mock-fault: {fault}\r\n"), body)).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{fault}");
        }
        assert_eq!(mock.stats().faults, 3);
        assert_eq!(mock.stats().tokens, Tokens::default());
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_at_once() {
        let mock = mock().await;
        for fault in ["x-mock-fault: hang-head\r\n", "x-mock-fault: hang-body:5\r\n", "x-mock-delay-ms: 60000\r\n"] {
            mock.reset();
            let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
            stream.write_all(chat(fault, CHAT).as_bytes()).await.unwrap();
            while mock.requests().first().is_none_or(|record| record.body_done_ms.is_none()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(stream);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let record = mock.requests().remove(0);
            assert_eq!(record.ended, Some(Ended::ClientClosed), "{fault}");
            assert!(record.closed_after_ms.is_some(), "{fault}");
            assert_eq!((mock.stats().aborts, mock.stats().in_flight), (1, 0), "{fault}");
        }
    }

    #[tokio::test]
    async fn a_connection_carries_several_requests() {
        let mock = mock().await;
        let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
        let last = chat("connection: close\r\n", CHAT);
        stream.write_all(format!("{}{last}", chat("", CHAT)).as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2);
        let stats = mock.stats();
        assert_eq!((stats.requests, stats.connections, stats.finished), (2, 1, 2));
        assert_eq!(stats.tokens, Tokens { input: 24, output: 10 });
        assert_eq!(stats.by_path["/v1/chat/completions"], 2);
    }

    #[tokio::test]
    async fn an_upload_is_counted_not_kept() {
        let mock = mock().await;
        let body = "x".repeat(3_000_000);
        let request = post("/__mock/echo/a%2Fb?c=d", "authorization: Bearer sk-mock-openai\r\nX-Odd: 1\r\n", &body);
        let reply = ask(&mock, &request).await.unwrap();
        let echoed: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(echoed["target"], "/__mock/echo/a%2Fb?c=d");
        assert_eq!(echoed["body_len"], 3_000_000);
        assert_eq!(echoed["body_crc32"], crc32fast::hash(body.as_bytes()));
        assert_eq!(echoed["headers"][2], serde_json::json!(["X-Odd", "1"]));
        assert_eq!(mock.requests()[0].body, None);
        assert_eq!(mock.requests()[0].body_len, 3_000_000);
    }

    #[tokio::test]
    async fn early_answers_come_before_the_body() {
        let mock = mock().await;
        let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
        let request = chat("x-mock-fault: early:413\r\n", CHAT);
        let (head, body) = request.split_at(request.len() - CHAT.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 413");
        stream.write_all(body.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(mock.requests()[0].body.as_deref(), Some(CHAT.as_bytes()));
    }

    #[tokio::test]
    async fn a_paced_stream_takes_its_time() {
        let mock = mock().await;
        let body = r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
        let began = std::time::Instant::now();
        let reply = ask(&mock, &chat("x-mock-pace-ms: 5\r\n", body)).await.unwrap();
        let events = reply.body.windows(2).filter(|pair| **pair == *b"\n\n").count() as u32;
        assert_eq!(reply.body, recorded("openai-chat-stream-usage.sse"));
        assert!(began.elapsed() >= Duration::from_millis(5) * (events - 1));
        assert_eq!(mock.stats().tokens, Tokens { input: 12, output: 5 });
    }

    #[tokio::test]
    async fn the_books_are_open_to_everybody() {
        let mock = mock().await;
        ask(&mock, &chat("", CHAT)).await.unwrap();
        let stats = ask(&mock, "GET /__mock/stats HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let stats: serde_json::Value = serde_json::from_slice(&stats.body).unwrap();
        assert_eq!(stats["requests"], 1);
        let requests = ask(&mock, "GET /__mock/requests?last=1 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let requests: serde_json::Value = serde_json::from_slice(&requests.body).unwrap();
        assert_eq!(requests[0]["ended"], "finished");
        ask(&mock, "POST /__mock/reset HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert_eq!(mock.stats().requests, 0);
    }
}
