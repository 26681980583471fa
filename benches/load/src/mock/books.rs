//! What the mock saw, by its own count. A test compares a proxy's records with these, so they are kept where the
//! bytes arrive, and nothing a proxy says goes into them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};

use super::answer::{Answer, Tokens};

/// Requests remembered one by one.
const MAX_REMEMBERED: usize = 1000;
/// Longest request body that is remembered whole.
pub(super) const MAX_KEPT_BODY_BYTES: usize = 64 * 1024;

/// How an exchange ended, seen from the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The answer was written whole.
    Finished,
    /// The client closed or reset the connection before that.
    ClientClosed,
    /// The answer went wrong as asked, or the request was not HTTP.
    Fault,
}

/// One request as received, and how it went. Times are Unix milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct RequestRecord {
    /// Counts from 1 since start.
    pub id: u64,
    /// Path with ids replaced.
    pub endpoint: String,
    /// The key it came with, if it was a right one.
    pub key: Option<String>,
    /// The head, byte for byte, its empty line included.
    #[serde(rename = "head_base64", serialize_with = "base64")]
    pub head: Bytes,
    /// Body bytes received, without chunk framing.
    pub body_len: u64,
    /// CRC-32 (IEEE) of the body received.
    pub body_crc32: u32,
    /// The body, if it is whole and at most 64 KiB.
    #[serde(rename = "body_base64", serialize_with = "optional_base64")]
    pub body: Option<Bytes>,
    /// Status of the answer, once decided.
    pub status: Option<u16>,
    /// The recording it was answered with.
    pub recording: Option<String>,
    /// When the head was whole.
    pub received_ms: u64,
    /// When the body was whole.
    pub body_done_ms: Option<u64>,
    /// When the answer began.
    pub answered_ms: Option<u64>,
    /// When the exchange was over.
    pub finished_ms: Option<u64>,
    /// `None` while it lasts.
    pub ended: Option<Ended>,
    /// When the client's close was noticed, if it ended the exchange.
    pub client_closed_at_ms: Option<u64>,
    /// The same, from the head on.
    pub closed_after_ms: Option<u64>,
    /// What went over it if it became a WebSocket; the frames themselves, as received, are then the body.
    pub socket: Option<SocketRecord>,
}

/// What went over one WebSocket, or over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SocketCounts {
    /// Whole messages received, text or binary.
    pub messages: u64,
    /// Bytes of their payloads.
    pub message_bytes: u64,
    /// Pings received.
    pub pings: u64,
    /// Pongs received.
    pub pongs: u64,
    /// Messages sent.
    pub sent_messages: u64,
    /// Bytes of their payloads.
    pub sent_bytes: u64,
}

/// One WebSocket as far as it went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SocketRecord {
    /// The subprotocol chosen.
    pub protocol: Option<String>,
    /// How much went over it.
    #[serde(flatten)]
    pub counts: SocketCounts,
    /// The code of the close frame received; 1005 if it had none (RFC 6455 §7.1.5).
    pub close_code: Option<u16>,
    /// Its reason.
    pub close_reason: Option<String>,
    /// What was wrong with a frame received.
    pub bad_frame: Option<&'static str>,
}

/// WebSockets since start or reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SocketStats {
    /// Handshakes answered with 101.
    pub opened: u64,
    /// Open now.
    pub open: u64,
    /// How much went over them.
    #[serde(flatten)]
    pub counts: SocketCounts,
    /// Close frames received, by code.
    pub closes: BTreeMap<u16, u64>,
    /// Sockets on which a frame was wrong.
    pub bad_frames: u64,
}

impl RequestRecord {
    /// The value of the first header of this name, as received.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            let (own, value) = line.split_at_checked(colon)?;
            own.eq_ignore_ascii_case(name.as_bytes()).then(|| value.get(1..).unwrap_or_default().trim_ascii())
        })
    }
}

/// What one key was used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyStats {
    /// Requests that came with it.
    pub requests: u64,
    /// Tokens of the answers sent whole.
    pub tokens: Tokens,
}

/// Totals since start or reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests whose head arrived.
    pub requests: u64,
    /// Requests by path template.
    pub by_path: BTreeMap<String, u64>,
    /// Requests by key; those with none or a wrong one count under `(refused)`.
    pub by_key: BTreeMap<String, KeyStats>,
    /// Answers begun, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Body bytes received.
    pub request_bytes: u64,
    /// Body bytes of answers written, without chunk framing.
    pub answer_bytes: u64,
    /// Answers written whole.
    pub finished: u64,
    /// Exchanges that the client ended.
    pub aborts: u64,
    /// Exchanges that went wrong as asked.
    pub faults: u64,
    /// Tokens of the answers sent whole, as far as they state any.
    pub tokens: Tokens,
    /// Connections open now.
    pub open_connections: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Exchanges going on now.
    pub in_flight: u64,
    /// Most of them at once.
    pub max_in_flight: u64,
    /// WebSockets. Their tokens count as soon as they are told.
    pub sockets: SocketStats,
}

/// A request body as far as it was received.
#[derive(Debug, Default)]
pub(super) struct ReceivedBody {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
    /// The first bytes of it, up to what the endpoint holds.
    pub(super) kept: Bytes,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Books {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stats: Stats,
    remembered: VecDeque<RequestRecord>,
    last_id: u64,
}

impl Books {
    pub(super) fn connected(&self) {
        let mut inner = self.inner.lock();
        let stats = &mut inner.stats;
        stats.connections = stats.connections.saturating_add(1);
        stats.open_connections = stats.open_connections.saturating_add(1);
    }

    pub(super) fn disconnected(&self) {
        let mut inner = self.inner.lock();
        let stats = &mut inner.stats;
        stats.open_connections = stats.open_connections.saturating_sub(1);
    }

    /// Writes down a request whose head has arrived; every `begin` is followed by one `end`.
    pub(super) fn begin(&self, head: &Bytes, endpoint: &str, key: Option<&str>) -> u64 {
        let record = RequestRecord {
            id: 0,
            endpoint: endpoint.to_owned(),
            key: key.map(str::to_owned),
            head: head.clone(),
            body_len: 0,
            body_crc32: 0,
            body: None,
            status: None,
            recording: None,
            received_ms: now_ms(),
            body_done_ms: None,
            answered_ms: None,
            finished_ms: None,
            ended: None,
            client_closed_at_ms: None,
            closed_after_ms: None,
            socket: None,
        };
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.last_id = inner.last_id.saturating_add(1);
        let stats = &mut inner.stats;
        stats.requests = stats.requests.saturating_add(1);
        stats.in_flight = stats.in_flight.saturating_add(1);
        stats.max_in_flight = stats.max_in_flight.max(stats.in_flight);
        add(&mut stats.by_path, endpoint, |count: &mut u64| *count = count.saturating_add(1));
        add(&mut stats.by_key, key.unwrap_or("(refused)"), |key: &mut KeyStats| {
            key.requests = key.requests.saturating_add(1);
        });
        if inner.remembered.len() >= MAX_REMEMBERED {
            inner.remembered.pop_front();
        }
        inner.remembered.push_back(RequestRecord { id: inner.last_id, ..record });
        inner.last_id
    }

    /// The body has arrived, or as much of it as will.
    pub(super) fn received(&self, id: u64, body: &ReceivedBody, is_whole: bool) {
        let is_kept = is_whole && body.kept.len() as u64 == body.bytes && body.kept.len() <= MAX_KEPT_BODY_BYTES;
        let mut inner = self.inner.lock();
        inner.stats.request_bytes = inner.stats.request_bytes.saturating_add(body.bytes);
        let Some(record) = inner.record(id) else { return };
        record.body_len = body.bytes;
        record.body_crc32 = body.crc32;
        record.body = is_kept.then(|| body.kept.clone());
        record.body_done_ms = is_whole.then(now_ms);
    }

    /// The first byte of the answer is about to be written.
    pub(super) fn answering(&self, id: u64, answer: &Answer) {
        let mut inner = self.inner.lock();
        let by_status = inner.stats.by_status.entry(answer.status).or_default();
        *by_status = by_status.saturating_add(1);
        let Some(record) = inner.record(id) else { return };
        record.status = Some(answer.status);
        record.recording.clone_from(&answer.recording);
        record.answered_ms = Some(now_ms());
    }

    /// The 101 is about to be written; every `opened` is followed by one `closed`.
    pub(super) fn opened(&self, id: u64, protocol: Option<&str>) {
        let mut inner = self.inner.lock();
        let stats = &mut inner.stats;
        let by_status = stats.by_status.entry(101).or_default();
        *by_status = by_status.saturating_add(1);
        stats.sockets.opened = stats.sockets.opened.saturating_add(1);
        stats.sockets.open = stats.sockets.open.saturating_add(1);
        let Some(record) = inner.record(id) else { return };
        record.status = Some(101);
        record.answered_ms = Some(now_ms());
        record.socket = Some(SocketRecord { protocol: protocol.map(str::to_owned), ..SocketRecord::default() });
    }

    /// More has gone over a WebSocket.
    pub(super) fn passed(&self, id: u64, more: SocketCounts) {
        let mut inner = self.inner.lock();
        inner.stats.sockets.counts.add(more);
        if let Some(socket) = inner.socket(id) {
            socket.counts.add(more);
        }
    }

    /// A message sent over a WebSocket has told of tokens.
    pub(super) fn spent(&self, key: Option<&str>, tokens: Tokens) {
        self.inner.lock().stats.spend(key, tokens);
    }

    /// A close frame has come.
    pub(super) fn said_close(&self, id: u64, code: u16, reason: String) {
        let mut inner = self.inner.lock();
        let by_code = inner.stats.sockets.closes.entry(code).or_default();
        *by_code = by_code.saturating_add(1);
        if let Some(socket) = inner.socket(id) {
            socket.close_code = Some(code);
            socket.close_reason = Some(reason);
        }
    }

    /// A frame has come that no client may send.
    pub(super) fn bad_frame(&self, id: u64, reason: &'static str) {
        let mut inner = self.inner.lock();
        inner.stats.sockets.bad_frames = inner.stats.sockets.bad_frames.saturating_add(1);
        if let Some(socket) = inner.socket(id) {
            socket.bad_frame = Some(reason);
        }
    }

    /// A WebSocket is over.
    pub(super) fn closed(&self) {
        let mut inner = self.inner.lock();
        inner.stats.sockets.open = inner.stats.sockets.open.saturating_sub(1);
    }

    /// The exchange is over. `answer_bytes`: body bytes written; `tokens`: those of an answer sent whole.
    pub(super) fn end(&self, id: u64, key: Option<&str>, ended: Ended, answer_bytes: u64, tokens: Option<Tokens>) {
        let now = now_ms();
        let mut inner = self.inner.lock();
        let stats = &mut inner.stats;
        stats.in_flight = stats.in_flight.saturating_sub(1);
        stats.answer_bytes = stats.answer_bytes.saturating_add(answer_bytes);
        let count = match ended {
            Ended::Finished => &mut stats.finished,
            Ended::ClientClosed => &mut stats.aborts,
            Ended::Fault => &mut stats.faults,
        };
        *count = count.saturating_add(1);
        if let (Ended::Finished, Some(tokens)) = (ended, tokens) {
            stats.spend(key, tokens);
        }
        let Some(record) = inner.record(id) else { return };
        record.finished_ms = Some(now);
        record.ended = Some(ended);
        if ended == Ended::ClientClosed {
            record.client_closed_at_ms = Some(now);
            record.closed_after_ms = Some(now.saturating_sub(record.received_ms));
        }
    }

    pub(super) fn stats(&self) -> Stats {
        self.inner.lock().stats.clone()
    }

    /// The last `last` requests, oldest first.
    pub(super) fn requests(&self, last: usize) -> Vec<RequestRecord> {
        let inner = self.inner.lock();
        inner.remembered.iter().skip(inner.remembered.len().saturating_sub(last)).cloned().collect()
    }

    /// Forgets everything but what is going on now.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.remembered.clear();
        inner.stats = Stats {
            open_connections: inner.stats.open_connections,
            in_flight: inner.stats.in_flight,
            max_in_flight: inner.stats.in_flight,
            sockets: SocketStats { open: inner.stats.sockets.open, ..SocketStats::default() },
            ..Stats::default()
        };
    }
}

impl Inner {
    fn record(&mut self, id: u64) -> Option<&mut RequestRecord> {
        // Ids are consecutive, so the newest one tells where this one stands.
        let back = usize::try_from(self.last_id.checked_sub(id)?).ok()?;
        let at = self.remembered.len().checked_sub(1)?.checked_sub(back)?;
        self.remembered.get_mut(at)
    }

    fn socket(&mut self, id: u64) -> Option<&mut SocketRecord> {
        self.record(id)?.socket.as_mut()
    }
}

impl Stats {
    fn spend(&mut self, key: Option<&str>, tokens: Tokens) {
        self.tokens.add(tokens);
        add(&mut self.by_key, key.unwrap_or("(refused)"), |key: &mut KeyStats| key.tokens.add(tokens));
    }
}

impl SocketCounts {
    fn add(&mut self, more: Self) {
        self.messages = self.messages.saturating_add(more.messages);
        self.message_bytes = self.message_bytes.saturating_add(more.message_bytes);
        self.pings = self.pings.saturating_add(more.pings);
        self.pongs = self.pongs.saturating_add(more.pongs);
        self.sent_messages = self.sent_messages.saturating_add(more.sent_messages);
        self.sent_bytes = self.sent_bytes.saturating_add(more.sent_bytes);
    }
}

impl Tokens {
    fn add(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
    }
}

/// Changes the entry of `key`, which is copied only when it is new.
fn add<Value: Default>(map: &mut BTreeMap<String, Value>, key: &str, change: impl FnOnce(&mut Value)) {
    match map.get_mut(key) {
        Some(value) => change(value),
        None => change(map.entry(key.to_owned()).or_default()),
    }
}

fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn optional_base64<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_thousand_requests_are_remembered() {
        let books = Books::default();
        let head = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        for id in 1..=1500 {
            assert_eq!(books.begin(&head, "/", Some("k")), id);
        }
        books.end(1, Some("k"), Ended::Finished, 10, Some(Tokens { input: 3, output: 4 }));
        books.end(1499, Some("k"), Ended::ClientClosed, 0, None);
        let requests = books.requests(2);
        assert_eq!(requests.iter().map(|record| record.id).collect::<Vec<_>>(), [1499, 1500]);
        assert_eq!(requests[0].ended, Some(Ended::ClientClosed));
        assert_eq!(requests[0].header("host"), Some(b"a".as_slice()));
        assert_eq!(books.requests(usize::MAX).len(), MAX_REMEMBERED);
        let stats = books.stats();
        assert_eq!((stats.requests, stats.in_flight, stats.aborts), (1500, 1498, 1));
        assert_eq!(stats.by_key["k"].tokens, Tokens { input: 3, output: 4 });
    }

    #[test]
    fn a_socket_counts_while_it_lives() {
        let books = Books::default();
        let id = books.begin(&Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"), "/", Some("k"));
        books.passed(id, SocketCounts { messages: 9, ..SocketCounts::default() });
        books.opened(id, Some("realtime"));
        books.passed(id, SocketCounts { messages: 1, message_bytes: 5, ..SocketCounts::default() });
        books.spent(Some("k"), Tokens { input: 3, output: 4 });
        books.said_close(id, 4001, "bye".to_owned());
        let socket = books.requests(1).remove(0).socket.unwrap();
        assert_eq!((socket.counts.messages, socket.counts.message_bytes), (1, 5));
        assert_eq!((socket.protocol.as_deref(), socket.close_code), (Some("realtime"), Some(4001)));
        books.reset();
        assert_eq!(books.stats().sockets, SocketStats { open: 1, ..SocketStats::default() });
        books.closed();
        books.end(id, Some("k"), Ended::Finished, 10, None);
        assert_eq!((books.stats().sockets.open, books.stats().tokens), (0, Tokens::default()));
    }
}
