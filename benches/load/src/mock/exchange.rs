//! The life of a request at the mock, in the order it happens: head, body, choice, answer, books.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use serde_json::json;

use super::answer::{Answer, Tokens};
use super::books::{Books, Ended, MAX_KEPT_BODY_BYTES, ReceivedBody};
use super::choice::Answers;
use super::connection::{Connection, Next, PeerGone};
use super::credentials::{self, Key, Provider};
use super::errors::{self, Problem};
use super::head::{BadHead, Head};
use super::opening::Upgrade;
use super::routes::{Endpoint, Route, route};
use super::send::{EARLY_HINTS, Sent, send, send_garbage};
use super::socket::{self, Opened};
use super::steering::{AnswerFraming, Fault, Steering};
use crate::body::{Body, Framing, Step};

/// Longest body of an endpoint whose answer depends on it; all others are only counted.
const MAX_HELD_BODY_BYTES: usize = 64 * 1024 * 1024;
/// How much a slow reader reads between two pauses.
const SLOW_READ_BYTES: u64 = 64 * 1024;
/// Between an answer given early and the close that cuts the upload.
const BEFORE_EARLY_CLOSE: Duration = Duration::from_millis(10);
/// Requests told by `GET /__mock/requests` unless it says how many.
const DEFAULT_LAST: usize = 100;

/// What all connections share.
pub(super) struct State {
    pub(super) keys: Vec<Key>,
    pub(super) answers: Answers,
    pub(super) books: Books,
}

/// Answers the requests of one connection until either side ends it. Dropping the future closes the connection.
pub(super) async fn serve(mut connection: Connection, state: &State) {
    loop {
        match connection.next_head().await {
            Next::Head(head) => {
                if !exchange(&mut connection, state, &head).await {
                    return;
                }
            }
            Next::Bad(bad) => return refuse(&mut connection, state, &bad).await,
            Next::Closed => return,
        }
    }
}

/// Carries one request; tells whether the connection lives on.
async fn exchange(connection: &mut Connection, state: &State, head: &Head) -> bool {
    if let Some(answer) = about_itself(state, head) {
        let body = read_body(connection, head, 0, None).await;
        return body.is_ok() && send(connection, &answer, &Steering::default(), head).await.keep_alive;
    }
    let route = route(head, head.header("x-mock-recording").is_some());
    // An echo and a recording at a path of nobody's belong to no provider: any right key will do.
    let provider = match route.endpoint {
        Ok(Endpoint::Echo | Endpoint::Recorded) => None,
        _ => Some(route.provider),
    };
    let checked = credentials::check(&state.keys, provider, head);
    let key = checked.as_ref().ok().copied();
    let id = state.books.begin(&head.raw, &route.template, key);
    let (sent, tokens) = carry(connection, state, head, &route, &checked, id).await;
    state.books.end(id, key, sent.ended, sent.body_bytes, tokens);
    sent.keep_alive
}

async fn carry(
    connection: &mut Connection,
    state: &State,
    head: &Head,
    route: &Route<'_>,
    checked: &Result<&str, Problem<'static>>,
    id: u64,
) -> (Sent, Option<Tokens>) {
    let (endpoint, steering) = match judge(head, route, checked.as_ref().err()) {
        Ok((endpoint, steering)) => (Ok(endpoint), steering),
        Err(problem) => (Err(problem), Steering::default()),
    };
    let slow = match steering.fault {
        Some(Fault::Early(status)) => return (early(connection, state, head, route, id, status, false).await, None),
        Some(Fault::EarlyClose(status)) => {
            return (early(connection, state, head, route, id, status, true).await, None);
        }
        Some(Fault::SlowRead(pause)) => Some(pause),
        _ => None,
    };

    let expects_continue = head.expects_continue && head.framing != Framing::Length(0);
    if expects_continue && connection.write(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
        return (Sent::client_closed(0), None);
    }
    let hold = match &endpoint {
        Ok(Endpoint::Transcriptions) => MAX_HELD_BODY_BYTES,
        Ok(endpoint) if endpoint.takes_json() => MAX_HELD_BODY_BYTES,
        _ => MAX_KEPT_BODY_BYTES,
    };
    let body = match read_body(connection, head, hold, slow).await {
        Ok(body) => body,
        Err((body, failure)) => {
            state.books.received(id, &body, false);
            return (broken_off(connection, state, route.provider, id, failure).await, None);
        }
    };
    state.books.received(id, &body, true);

    let refusal = |problem: &Problem<'_>| errors::answer(&state.answers.recordings, route.provider, problem);
    let reply = match endpoint {
        Err(problem) => Reply::Answer(refusal(&problem)),
        Ok(Endpoint::Echo) if steering.recording.is_none() => {
            Reply::Answer(Arc::new(echo(head, &body, steering.status)))
        }
        Ok(Endpoint::Socket) if !steering.refuses_socket() => match Upgrade::judge(head, route) {
            Ok(upgrade) => Reply::Socket(upgrade),
            Err(problem) => Reply::Answer(refusal(&problem)),
        },
        Ok(endpoint) => {
            let is_sse = head.query("alt") == Some("sse");
            Reply::Answer(state.answers.choose(route, endpoint, &steering, &body.kept, body.bytes, is_sse))
        }
    };
    if let Some(delay) = steering.delay
        && connection.pause(delay).await.is_err()
    {
        return (Sent::client_closed(0), None);
    }
    match steering.fault {
        Some(Fault::HangHead) => {
            connection.peer_gone().await;
            return (Sent::client_closed(0), None);
        }
        Some(Fault::ResetHead) => {
            connection.reset_on_drop();
            return (Sent::fault(0), None);
        }
        Some(Fault::Garbage(garbage)) => return (send_garbage(connection, garbage).await, None),
        Some(Fault::EarlyHints) if connection.write(EARLY_HINTS).await.is_err() => {
            return (Sent::client_closed(0), None);
        }
        _ => {}
    }
    match reply {
        Reply::Answer(answer) => {
            state.books.answering(id, &answer);
            (send(connection, &answer, &steering, head).await, answer.tokens)
        }
        Reply::Socket(upgrade) => {
            let key = checked.as_ref().ok().copied();
            (socket::serve(connection, state, Opened { id, key, route, upgrade, steering: &steering }).await, None)
        }
    }
}

/// What a request gets.
enum Reply {
    Answer(Arc<Answer>),
    Socket(Upgrade),
}

/// What the head alone decides: where the request goes and how it is answered, or why not.
fn judge(
    head: &Head,
    route: &Route<'_>,
    refused: Option<&Problem<'static>>,
) -> Result<(Endpoint, Steering), Problem<'static>> {
    let endpoint = route.endpoint.clone()?;
    if let Some(problem) = refused {
        return Err(problem.clone());
    }
    let steering = Steering::parse(head).map_err(Problem::Unreadable)?;
    let is_socket = endpoint == Endpoint::Socket && !steering.refuses_socket();
    match steering.misplaced(is_socket) {
        Some(name) => Err(Problem::Unreadable(format!("{name} means nothing here"))),
        None => Ok((endpoint, steering)),
    }
}

/// Why a request body did not arrive whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyFailure {
    PeerGone,
    BadFraming,
}

/// Reads the whole request body, keeping the first `hold` bytes of it.
async fn read_body(
    connection: &mut Connection,
    head: &Head,
    hold: usize,
    slow: Option<Duration>,
) -> Result<ReceivedBody, (ReceivedBody, BodyFailure)> {
    let mut body = Body::new(head.framing);
    let mut crc32 = crc32fast::Hasher::new();
    let mut kept = Vec::new();
    let (mut bytes, mut next_pause) = (0_u64, 0_u64);
    let failure = loop {
        match body.step(&mut connection.buffer) {
            Ok(Step::Data(length)) => {
                let data = connection.buffer.get(..length).unwrap_or_default();
                crc32.update(data);
                bytes = bytes.saturating_add(length as u64);
                let room = hold.saturating_sub(kept.len());
                kept.extend_from_slice(data.get(..room).unwrap_or(data));
                connection.buffer.advance(length);
            }
            Ok(Step::More) => {
                if let Some(pause) = slow.filter(|_| bytes >= next_pause) {
                    next_pause = bytes.saturating_add(SLOW_READ_BYTES);
                    // Not watched: watching a socket takes its bytes, and then nobody would be slow.
                    tokio::time::sleep(pause).await;
                }
                if connection.fill().await.is_err() {
                    break Some(BodyFailure::PeerGone);
                }
            }
            Ok(Step::Done) => break None,
            Err(_) => break Some(BodyFailure::BadFraming),
        }
    };
    let received = ReceivedBody { bytes, crc32: crc32.finalize(), kept: Bytes::from(kept) };
    match failure {
        None => Ok(received),
        Some(failure) => Err((received, failure)),
    }
}

async fn broken_off(
    connection: &mut Connection,
    state: &State,
    provider: Provider,
    id: u64,
    failure: BodyFailure,
) -> Sent {
    if failure == BodyFailure::PeerGone {
        return Sent::client_closed(0);
    }
    let problem = Problem::Unreadable("the chunked framing is broken".to_owned());
    let answer = errors::answer(&state.answers.recordings, provider, &problem);
    state.books.answering(id, &answer);
    let _ = connection.write(&closing(&answer)).await;
    connection.finish().await;
    Sent::fault(answer.body_bytes)
}

/// Answers before the request body is read; then reads it, or closes in the middle of it.
async fn early(
    connection: &mut Connection,
    state: &State,
    head: &Head,
    route: &Route<'_>,
    id: u64,
    status: u16,
    closes: bool,
) -> Sent {
    let answer = errors::answer(&state.answers.recordings, route.provider, &Problem::Asked(status));
    state.books.answering(id, &answer);
    // Whoever waits for 100 Continue may now send the body or not: only a new connection is clear again.
    let keep_alive = !closes && head.keep_alive && !head.is_http10 && !head.expects_continue;
    let written =
        if keep_alive { connection.write(&answer.plain).await } else { connection.write(&closing(&answer)).await };
    if written.is_err() {
        return Sent::client_closed(0);
    }
    if closes {
        connection.finish().await;
        tokio::time::sleep(BEFORE_EARLY_CLOSE).await;
        return Sent::fault(answer.body_bytes);
    }
    if !head.expects_continue {
        let body = read_body(connection, head, MAX_KEPT_BODY_BYTES, None).await;
        let (body, failure) = match body {
            Ok(body) => (body, None),
            Err((body, failure)) => (body, Some(failure)),
        };
        state.books.received(id, &body, failure.is_none());
        match failure {
            Some(BodyFailure::PeerGone) => return Sent::client_closed(answer.body_bytes),
            Some(BodyFailure::BadFraming) => return Sent::fault(answer.body_bytes),
            None => {}
        }
    }
    if !keep_alive {
        connection.finish().await;
    }
    Sent { ended: Ended::Finished, body_bytes: answer.body_bytes, keep_alive }
}

/// A request that is not HTTP/1.1 is written down, refused, and the last on its connection.
async fn refuse(connection: &mut Connection, state: &State, bad: &BadHead) {
    let problem = Problem::Unreadable(bad.reason.to_owned());
    let answer = errors::answer(&state.answers.recordings, Provider::OpenAi, &problem);
    let id = state.books.begin(&bad.raw, "(unreadable)", None);
    state.books.answering(id, &answer);
    let ended = match connection.write(&closing(&answer)).await {
        Ok(()) => Ended::Fault,
        Err(PeerGone) => Ended::ClientClosed,
    };
    connection.finish().await;
    state.books.end(id, None, ended, answer.body_bytes, None);
}

/// The whole answer, as the last one of its connection.
fn closing(answer: &Answer) -> Vec<u8> {
    let mut bytes = answer.head(AnswerFraming::Length, answer.body_bytes, None, false);
    if !answer.is_bodiless() {
        bytes.extend_from_slice(&answer.pieces.concat());
    }
    bytes
}

/// What the mock says about itself. Needs no key and leaves no trace in the books.
fn about_itself(state: &State, head: &Head) -> Option<Answer> {
    let body = match (head.method.as_str(), head.path()) {
        ("GET", "/__mock/stats") => serde_json::to_vec(&state.books.stats()),
        ("GET", "/__mock/requests") => {
            let last = head.query("last").and_then(|last| last.parse().ok()).unwrap_or(DEFAULT_LAST);
            serde_json::to_vec(&state.books.requests(last))
        }
        ("POST", "/__mock/reset") => {
            state.books.reset();
            Ok(b"{}".to_vec())
        }
        _ => return None,
    };
    // Plain structs always serialise; should one not, an empty body says so.
    Some(Answer::json(200, &[], body.unwrap_or_default()))
}

/// Says what arrived, so that a test sees a request as the provider did.
fn echo(head: &Head, body: &ReceivedBody, status: Option<u16>) -> Answer {
    let headers: Vec<_> = head.headers.iter().map(|(name, value)| [latin1(name), latin1(value)]).collect();
    let is_whole = body.kept.len() as u64 == body.bytes;
    let echoed = json!({
        "method": head.method,
        "target": head.target,
        "headers": headers,
        "body_len": body.bytes,
        "body_crc32": body.crc32,
        "body_base64": is_whole.then(|| STANDARD.encode(&body.kept)),
    });
    Answer::json(status.unwrap_or(200), &[], echoed.to_string().into_bytes())
}

/// Octets as text, one character each: lossless for any header value.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}
