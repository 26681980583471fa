//! The edge: owns a client connection, reads and judges each HTTP/1.1 head, and hands checked calls to the plane.
//!
//! Pingora's session gets a head of our own making that carries framing and nothing else; everything the client wrote
//! stands in the [`Call`](crate::call::Call). So Pingora parses little, and cannot repair what should be refused.

mod guard;
mod head;
mod reader;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, BytesMut};
use llm_proxy_core::answer::Refusal;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use self::guard::{Guard, is_framing_fault};
pub use self::head::{has_control, is_token, is_token_octet};
use self::reader::{Received, read_head};
use crate::call::{Call, Framing, Version};
use crate::plane::credentials::Remembered;
use crate::plane::{Plane, reply};

/// How long a kept-alive connection may stay silent between requests, and a new one before its first.
const IDLE: Duration = Duration::from_secs(120);
/// After the order to stop, how long idle connections still take a request, so that a client that is just sending one
/// is answered instead of cut.
const LINGER: Duration = Duration::from_millis(400);

/// The `ServerApp` of the data plane's listener.
pub struct Edge {
    plane: Arc<Plane>,
    head_timeout: Duration,
}

impl Edge {
    /// `head_timeout` bounds a whole request head from its first byte.
    pub fn new(plane: Arc<Plane>, head_timeout: Duration) -> Self {
        Self { plane, head_timeout }
    }

    async fn stopped_and_lingered(&self) {
        self.plane.gateway.drain.stopping().await;
        tokio::time::sleep(LINGER).await;
    }

    /// Answers a head that never became a call, and closes.
    async fn refuse(&self, guard: &mut Guard, refusal: Refusal) {
        let answer = self.plane.answer_raw(&refusal);
        let writing = async { guard.write_all(&answer).await.is_ok() && guard.flush().await.is_ok() };
        if tokio::time::timeout(LINGER, writing).await.unwrap_or(false) {
            // A short lingering read: closing with unread bytes would reset the connection under the answer.
            let _ = guard.shutdown().await;
            let mut sink = [0u8; 4096];
            let discard = async {
                let mut left = 64usize;
                while left > 0 && guard.read(&mut sink).await.is_ok_and(|read| read > 0) {
                    left = left.saturating_sub(1);
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(250), discard).await;
        }
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        let mut guard = Box::new(Guard::new(stream));
        let mut remembered = Remembered::default();
        loop {
            let received = tokio::select! {
                biased;
                received = read_head(&mut *guard, IDLE, self.head_timeout) => received,
                () = self.stopped_and_lingered() => return None,
            };
            let refusal = match received {
                Received::Head { head, beyond } => match head::parse(head) {
                    Ok(call) => match guard.arm(call.framing == Framing::Chunked, &beyond) {
                        Ok(()) => {
                            let mut session = ServerSession::new_http1(guard);
                            session.set_pipelined_prefix(framing_head(&call, &beyond));
                            let stream = self.plane.serve(session, call, &mut remembered).await?;
                            guard = Guard::from_stream(stream)?;
                            continue;
                        }
                        Err(broken) => Refusal::InvalidRequest(broken.into()),
                    },
                    Err(wrong) => Refusal::InvalidRequest(wrong),
                },
                Received::Nothing => return None,
                Received::TooSlow => Refusal::HeadTimeout,
                Received::TooLarge => Refusal::HeadTooLarge,
                Received::LoneLineEnd => Refusal::InvalidRequest("a CR or LF stands alone in the head".into()),
            };
            self.refuse(&mut guard, refusal).await;
            return None;
        }
    }
}

/// The head that Pingora's session reads: method, version and framing. HEAD matters to it, other methods do not.
fn framing_head(call: &Call, beyond: &[u8]) -> BytesMut {
    let mut head = BytesMut::with_capacity(beyond.len().saturating_add(128));
    head.put_slice(call.method().as_bytes());
    head.put_slice(if call.version == Version::Http10 {
        b" / HTTP/1.0\r\nhost: x\r\n"
    } else {
        b" / HTTP/1.1\r\nhost: x\r\n"
    });
    match call.framing {
        Framing::None => {}
        Framing::Length(length) => {
            head.put_slice(b"content-length: ");
            head.put_slice(itoa::Buffer::new().format(length).as_bytes());
            head.put_slice(b"\r\n");
        }
        Framing::Chunked => head.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    if call.wants_close {
        head.put_slice(b"connection: close\r\n");
    } else if call.wants_keep_alive {
        head.put_slice(b"connection: keep-alive\r\n");
    }
    head.put_slice(b"\r\n");
    head.put_slice(beyond);
    head
}

/// A whole answer with its head, for a connection that has no session yet.
pub(crate) fn raw_answer(refusal: &Refusal, request_id: &str) -> Vec<u8> {
    use llm_proxy_core::dialect::Dialect;

    let body = refusal.body(Dialect::OpenAi, request_id);
    let mut answer =
        format!("HTTP/1.1 {} {}\r\n", refusal.status(), reply::reason_phrase(refusal.status())).into_bytes();
    for (name, value) in reply::fields(refusal, Dialect::OpenAi, request_id) {
        answer.extend_from_slice(name.as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    answer.extend_from_slice(&body);
    answer
}
