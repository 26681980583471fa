//! HTTP/2 towards clients: a connection with many streams, each an exchange of its own ([`Client`]).
//!
//! The protocol is the `h2` crate's, directly on the client's connection. What one connection can cost us is bounded
//! here, and is at most about 40 MiB, whatever its client does:
//!
//! | what | bound |
//! |---|---|
//! | streams at once | `MOST_STREAMS`; more are refused. Exchanges that still end after their stream: `MOST_RUNNING` |
//! | a request's head | `HEADER_LIST` of names, values and 32 octets for each field; a list of four times that ends the connection |
//! | bodies on their way in | `STREAM_WINDOW` each, `CONNECTION_WINDOW` together, opened again as they are consumed |
//! | answers on their way out | `SEND_BUFFER` each, and what the exchange gathers; none without a window |
//! | frames that ask for nothing, streams reset as soon as they run | the budget of `guard` |
//! | streams reset before they run, streams that break the protocol | `MOST_RESETS`, `MOST_FAULTS`; then the connection ends |
//! | a header block that does not end | the deadline of a request's head |
//! | a connection without a stream | `IDLE` |
//!
//! A stream is not bounded in time by this module: the clocks of its exchange are.
//!
//! Towards providers a connection is a [`Line`], and one exchange on it a [`Provider`].

mod client;
mod guard;
mod head;
mod line;
mod provider;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request};
use llm_proxy_core::answer::Refusal;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

pub use self::client::{Client, Piece};
use self::guard::{Guarded, Seen};
pub use self::line::{Event, Line, STREAMS_OF_A_LINE};
pub use self::provider::Provider;
use crate::downstream::{Caller, Downstream};
use crate::plane::Plane;
use crate::plane::clocks::after;

/// What a connection without TLS begins with where the client knows that we speak HTTP/2 (RFC 9113 §3.3): it reads as a
/// head of HTTP/1.1, which the first octets of a request can never be.
pub const PRIOR_KNOWLEDGE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// A request's head with its body to come, and the way to answer it.
type Asked = (Request<RecvStream>, SendResponse<Piece>);

/// Streams of a client at once.
const MOST_STREAMS: u32 = 100;
/// Exchanges at once, those counted whose stream the client has reset and which are not yet over.
const MOST_RUNNING: usize = 200;
/// Octets of a header list (RFC 9113 §6.5.2).
const HEADER_LIST: u32 = 32 * 1024;
/// Octets of a request's body that a client may send ahead.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same over all its streams.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Octets of an answer that wait for the connection.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that the client has reset before they were looked at.
const MOST_RESETS: usize = 20;
/// Streams that were ended because the client broke the protocol, over the life of a connection.
const MOST_FAULTS: usize = 256;
/// How long a connection may have no stream.
const IDLE: Duration = Duration::from_secs(120);
/// And how long it may stay once it was told to go.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long its last frame may take to leave.
const LINGER: Duration = Duration::from_millis(500);

/// Carries the streams of a connection until it ends. `early` is what was read of it already, from the client's preface
/// on; `head_timeout` bounds the preface, and each header block.
pub async fn serve(
    plane: &Arc<Plane>,
    stream: Downstream,
    caller: Option<Caller>,
    early: Bytes,
    head_timeout: Duration,
) {
    let (guarded, seen) = Guarded::new(stream, early);
    let Ok(Ok(connection)) = timeout(head_timeout, limits().handshake::<_, Piece>(guarded)).await else { return };
    let now = Instant::now();
    let mut talk = Talk {
        connection,
        seen,
        head_timeout,
        clock: Box::pin(sleep_until(after(now, IDLE))),
        idle_since: Some(now),
        is_leaving: false,
    };
    let mut streams = JoinSet::new();
    loop {
        let over = tokio::select! {
            biased;
            Some(_) = streams.join_next() => {
                if streams.is_empty() {
                    talk.idle_since = Some(Instant::now());
                }
                continue;
            }
            () = plane.gateway.drain.stopping(), if !talk.is_leaving => {
                talk.leave();
                continue;
            }
            next = talk.next() => match next {
                Ok((request, mut respond)) => {
                    if streams.len() < MOST_RUNNING {
                        talk.idle_since = None;
                        streams.spawn(exchange(Arc::clone(plane), request, respond, caller.clone()));
                    } else {
                        // Nothing was done for it: it may be sent again.
                        respond.send_reset(Reason::REFUSED_STREAM);
                    }
                    continue;
                }
                Err(over) => over,
            },
        };
        match over {
            Over::Closed => break,
            Over::Idle if !talk.is_leaving => talk.leave(),
            Over::Idle => break,
            Over::Flood | Over::SlowHead => {
                tracing::info!(reason = over.name(), "an HTTP/2 connection was ended");
                talk.end(Reason::ENHANCE_YOUR_CALM).await;
                break;
            }
        }
    }
    drop(talk);
    // Their streams are gone, and they see it: each settles its exchange.
    while streams.join_next().await.is_some() {}
}

fn limits() -> Builder {
    let mut limits = Builder::new();
    limits
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(HEADER_LIST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MOST_RESETS)
        .max_local_error_reset_streams(Some(MOST_FAULTS));
    limits
}

/// One stream, from its head to its end.
async fn exchange(
    plane: Arc<Plane>,
    request: Request<RecvStream>,
    respond: SendResponse<Piece>,
    caller: Option<Caller>,
) {
    let (head, body) = request.into_parts();
    let judged = head::call(&head, !body.is_end_stream());
    let to_head = head.method == Method::HEAD;
    drop(head);
    match judged {
        Ok(call) => plane.serve_stream(Client::new(body, respond, &call), &call, caller.as_ref()).await,
        Err(wrong) => {
            let refusal = Refusal::InvalidRequest(wrong);
            plane.refuse_stream(Client::refused(body, respond, to_head), &refusal, caller.as_ref()).await;
        }
    }
}

/// A connection, and the clock of whoever waits for its next stream.
struct Talk {
    connection: Connection<Guarded<Downstream>, Piece>,
    seen: Arc<Mutex<Seen>>,
    head_timeout: Duration,
    clock: Pin<Box<Sleep>>,
    /// Since when no stream runs.
    idle_since: Option<Instant>,
    /// The client has been told to open no more streams.
    is_leaving: bool,
}

/// Why no stream comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The connection is over.
    Closed,
    /// It has had no stream for too long.
    Idle,
    /// Too many frames that ask for nothing.
    Flood,
    /// A header block does not end.
    SlowHead,
}

impl Over {
    const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Flood => "flood",
            Self::SlowHead => "head_timeout",
        }
    }
}

impl Talk {
    /// The next stream. Also drives those that run. Cancel safe.
    async fn next(&mut self) -> Result<(Request<RecvStream>, SendResponse<Piece>), Over> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Asked, Over>> {
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok(stream))) => return Poll::Ready(Ok(stream)),
            Poll::Ready(_) => return Poll::Ready(Err(Over::Closed)),
            Poll::Pending => {}
        }
        let (is_flood, head_since) = {
            let seen = self.seen.lock();
            (seen.is_flood, seen.head_since)
        };
        if is_flood {
            return Poll::Ready(Err(Over::Flood));
        }
        let patience = if self.is_leaving { GOODBYE } else { IDLE };
        let (until, over) = match (head_since, self.idle_since) {
            (Some(since), _) => (after(since, self.head_timeout), Over::SlowHead),
            (None, Some(since)) => (after(since, patience), Over::Idle),
            (None, None) => return Poll::Pending,
        };
        if self.clock.deadline() != until {
            self.clock.as_mut().reset(until);
        }
        ready!(self.clock.as_mut().poll(cx));
        Poll::Ready(Err(over))
    }

    /// Tells the client to open no more streams here (RFC 9113 §6.8). Those that run, and those on their way, go on;
    /// then the connection closes.
    fn leave(&mut self) {
        self.is_leaving = true;
        self.connection.graceful_shutdown();
        if self.idle_since.is_some() {
            self.idle_since = Some(Instant::now());
        }
    }

    /// Ends the connection, and says why.
    async fn end(&mut self, reason: Reason) {
        self.connection.abrupt_shutdown(reason);
        let _ = timeout(LINGER, poll_fn(|cx| self.connection.poll_closed(cx))).await;
    }
}
