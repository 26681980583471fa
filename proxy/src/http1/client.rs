//! One exchange with a client: its request's body read, our answer written.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use llm_proxy_core::http1::call::{Call, Version};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Fault, Incoming, READ, Wire};
use crate::downstream::Downstream;
use crate::reset;

/// The most that is read of what a client sends behind its request, in bytes: it may wait for its turn.
const MOST_AHEAD: usize = 64 * 1024;
/// The most of a request's rest that is read away to keep a connection, in bytes.
const MOST_DRAINED: usize = 64 * 1024;
/// How long that may take.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// How an answer's body is framed to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// There is none; a length is told where the answer to GET would have one (RFC 9110 §8.6).
    NoBody(Option<u64>),
    /// So many bytes.
    Length(u64),
    /// Chunked.
    Chunked,
    /// Until the connection closes: an HTTP/1.0 client and an answer of unknown length.
    UntilClose,
}

/// One exchange on one connection of a client.
pub struct Client {
    wire: Wire<Downstream>,
    incoming: Incoming,
    /// The client has been told `connection: close`, or will be, or has asked for it.
    closes: bool,
    is_1_0: bool,
    waits_for_continue: bool,
    /// The request is HEAD: whatever the answer, it has no body (RFC 9110 §9.3.2).
    to_head: bool,
    /// Set with the head of the final answer.
    answer: Option<Outgoing>,
}

impl Client {
    /// Takes the connection on which this head was read.
    pub fn new(wire: Wire<Downstream>, call: &Call) -> Self {
        let is_1_0 = call.version == Version::Http10;
        Self {
            wire,
            incoming: call.framing.into(),
            closes: call.wants_close || (is_1_0 && !call.wants_keep_alive),
            is_1_0,
            waits_for_continue: call.expects_continue,
            to_head: call.method() == "HEAD",
            answer: None,
        }
    }

    /// The connection ends with this exchange, and its answer says so if none has begun yet.
    pub fn close_after(&mut self) {
        self.closes = true;
    }

    /// Whether all of the request's body has been read.
    pub fn body_is_over(&self) -> bool {
        matches!(self.incoming, Incoming::Done)
    }

    /// Whether what is left of the body is known to be little enough to be read away.
    pub fn rest_is_small(&self) -> bool {
        match self.incoming {
            Incoming::Done => true,
            Incoming::Length(left) => usize::try_from(left).is_ok_and(|left| left <= MOST_DRAINED),
            Incoming::Chunked(_) | Incoming::UntilClose => false,
        }
    }

    /// The next piece of the request's body; `None` at its end. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`]: a body that ends before its framing says so is [`Fault::Cut`].
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, Fault> {
        self.wire.read_piece(&mut self.incoming).await
    }

    /// Ends when the client has closed its side. A request that it sends meanwhile waits for its turn. Of more than one has
    /// to wait with, nothing is kept: its end could not be seen behind it. Then the connection ends with this exchange.
    /// Cancel safe.
    pub async fn left(&mut self) {
        while matches!(self.wire.fill().await, Ok(read) if read > 0) {
            if self.closes || self.wire.input.len() > MOST_AHEAD {
                self.closes = true;
                self.wire.input.clear();
            }
        }
    }

    /// Asks for the request's body (RFC 9110 §15.2.1). Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_continue(&mut self) -> io::Result<()> {
        self.waits_for_continue = false;
        self.wire.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        self.wire.flush().await
    }

    /// Sends an interim answer (RFC 9110 §15.2); HTTP/1.0 has none. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_interim<'a>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> io::Result<()> {
        if self.is_1_0 {
            return Ok(());
        }
        put_status(&mut self.wire.output, status);
        for (name, value) in fields {
            put_field(&mut self.wire.output, name, value);
        }
        self.wire.output.extend_from_slice(b"\r\n");
        self.wire.flush().await
    }

    /// Puts the head of the final answer; the body, or [`Self::flush`], sends it. Framing, `connection` and, where the
    /// fields have none, `date` are written here.
    pub fn put_head<'a>(&mut self, status: u16, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, framing: Outgoing) {
        let framing = match framing {
            Outgoing::Length(length) if self.to_head => Outgoing::NoBody(Some(length)),
            Outgoing::Chunked | Outgoing::UntilClose if self.to_head => Outgoing::NoBody(None),
            framing => framing,
        };
        if framing == Outgoing::UntilClose {
            self.closes = true;
        }
        let output = &mut self.wire.output;
        output.reserve(READ / 4);
        put_status(output, status);
        let mut has_date = false;
        for (name, value) in fields {
            has_date |= name.eq_ignore_ascii_case(b"date");
            put_field(output, name, value);
        }
        if !has_date {
            put_date(output);
        }
        match framing {
            Outgoing::Length(length) | Outgoing::NoBody(Some(length)) => {
                put_field(output, b"content-length", itoa::Buffer::new().format(length).as_bytes());
            }
            Outgoing::Chunked => output.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Outgoing::NoBody(None) | Outgoing::UntilClose => {}
        }
        if self.closes {
            output.extend_from_slice(b"connection: close\r\n");
        } else if self.is_1_0 {
            output.extend_from_slice(b"connection: keep-alive\r\n");
        }
        output.extend_from_slice(b"\r\n");
        self.answer = Some(framing);
    }

    /// Switches to WebSocket: the head of a 101 (RFC 6455 §4.2.2). [`Self::flush`] sends it, and HTTP is over.
    pub fn put_switch<'a>(&mut self, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let output = &mut self.wire.output;
        put_status(output, 101);
        put_field(output, b"connection", b"Upgrade");
        put_field(output, b"upgrade", b"websocket");
        for (name, value) in fields {
            put_field(output, name, value);
        }
        output.extend_from_slice(b"\r\n");
        self.answer = Some(Outgoing::NoBody(None));
        self.closes = true;
    }

    /// After the switch: what the client has sent behind its request, and the connection.
    pub fn tunnel(&mut self) -> (BytesMut, &mut Downstream) {
        (self.wire.input.split(), &mut self.wire.stream)
    }

    /// The framing of the final answer, once its head has been put.
    pub fn answer(&self) -> Option<Outgoing> {
        self.answer
    }

    /// Writes a piece of the answer's body, if it may have one. Small pieces wait for [`Self::flush`]. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_body(&mut self, piece: &[u8]) -> io::Result<()> {
        match self.answer {
            Some(Outgoing::NoBody(_)) => Ok(()),
            framing => self.wire.write_piece(framing == Some(Outgoing::Chunked), piece).await,
        }
    }

    /// Sends what waits. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.wire.flush().await
    }

    /// Puts the end of the answer, for a flush to send.
    pub fn end_body(&mut self) {
        if self.answer == Some(Outgoing::Chunked) {
            self.wire.put_last_chunk();
        }
    }

    /// Reads away what is left of a small body, so that the connection can live on. What is larger, comes too slowly, or
    /// may never come because its sender waits for `100 Continue`, makes it close.
    pub async fn drain(&mut self) {
        if self.body_is_over() || self.closes {
            return;
        }
        let large = matches!(self.incoming, Incoming::Length(_)) && !self.rest_is_small();
        if large
            || self.waits_for_continue
            || !timeout(DRAIN_PATIENCE, self.discard(MOST_DRAINED)).await.unwrap_or(false)
        {
            self.closes = true;
        }
    }

    /// Whether the body's end came within `most` bytes.
    async fn discard(&mut self, most: usize) -> bool {
        let mut read = 0usize;
        while read <= most {
            match self.read_body().await {
                Ok(Some(piece)) => read = read.saturating_add(piece.len()),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// After a whole answer: the connection for the next request, or a close that does not reset the answer away.
    pub async fn conclude(mut self) -> Option<Wire<Downstream>> {
        self.drain().await;
        if self.closes {
            let _ = self.wire.fill().now_or_never();
            let more = !self.body_is_over() || !self.wire.input.is_empty();
            self.wire.close(more).await;
            return None;
        }
        Some(self.wire)
    }

    /// Ends the connection in the middle of an answer: no last chunk, and nothing that looks like an end.
    pub async fn break_off(mut self) {
        self.wire.stream.tear();
        let is_silent = self.answer == Some(Outgoing::UntilClose);
        if is_silent && reset::on_close(&self.wire.stream) {
            return;
        }
        self.wire.close(false).await;
    }
}

/// The date of RFC 9110 §5.6.7.
const IMF_FIXDATE: &[time::format_description::FormatItem<'static>] = time::macros::format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// The line of the `date` field (RFC 9110 §6.6.1), now. Written once a second for each thread.
pub fn put_date(output: &mut Vec<u8>) {
    thread_local! {
        static LINE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
    }
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LINE.with_borrow_mut(|(written, line)| {
        if *written != second
            && let Ok(date) = OffsetDateTime::now_utc().format(IMF_FIXDATE)
        {
            line.clear();
            put_field(line, b"date", date.as_bytes());
            *written = second;
        }
        output.extend_from_slice(line);
    });
}

/// A status line (RFC 9112 §4) with the registered reason phrase; a status without one has none.
pub fn put_status(output: &mut Vec<u8>, status: u16) {
    output.extend_from_slice(b"HTTP/1.1 ");
    output.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    output.extend_from_slice(b" ");
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    output.extend_from_slice(reason.unwrap_or("").as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// A field line.
pub fn put_field(output: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    output.extend_from_slice(name);
    output.extend_from_slice(b": ");
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::http1::request_head;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use pingora_core::protocols::Stream;

    use crate::http1::{Received, read_head};

    /// A client that has sent this, and our side of its connection with the first head read.
    async fn connected(sent: &[u8]) -> (Client, DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(sent).await.unwrap();
        let mut wire = Wire::new(Downstream::from(Box::new(ours) as Stream));
        let Received::Head(head) = read_head(&mut wire, Duration::from_secs(1), Duration::from_secs(1)).await else {
            panic!("no head")
        };
        let call = request_head::parse(head).unwrap();
        (Client::new(wire, &call), theirs)
    }

    async fn answered(client: &mut Client, framing: Outgoing, pieces: &[&[u8]]) {
        client.put_head(200, [(&b"date"[..], &b"now"[..])].into_iter(), framing);
        for piece in pieces {
            client.write_body(piece).await.unwrap();
        }
        client.end_body();
        client.flush().await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_is_framed_as_asked_and_says_whether_the_connection_lives() {
        let head_1_0 = "GET / HTTP/1.0\r\n\r\n";
        let kept_1_0 = "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
        let head_1_1 = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let to_head = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n";
        let closed = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        for (request, framing, expected, lives) in [
            (head_1_1, Outgoing::Length(2), "content-length: 2\r\n\r\nhi", true),
            (head_1_1, Outgoing::Chunked, "transfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", true),
            (to_head, Outgoing::Length(2), "content-length: 2\r\n\r\n", true),
            (to_head, Outgoing::Chunked, "\r\n", true),
            (closed, Outgoing::Length(2), "content-length: 2\r\nconnection: close\r\n\r\nhi", false),
            (head_1_0, Outgoing::UntilClose, "connection: close\r\n\r\nhi", false),
            (head_1_0, Outgoing::Length(2), "content-length: 2\r\nconnection: close\r\n\r\nhi", false),
            (kept_1_0, Outgoing::Length(2), "content-length: 2\r\nconnection: keep-alive\r\n\r\nhi", true),
            (kept_1_0, Outgoing::UntilClose, "connection: close\r\n\r\nhi", false),
        ] {
            let (mut client, mut theirs) = connected(request.as_bytes()).await;
            answered(&mut client, framing, &[b"h", b"", b"i"]).await;
            assert_eq!(client.conclude().await.is_some(), lives, "{request:?} {framing:?}");
            let mut all = String::new();
            theirs.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, format!("HTTP/1.1 200 OK\r\ndate: now\r\n{expected}"), "{request:?} {framing:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_rest_of_a_body_is_read_away_and_a_large_one_ends_the_connection() {
        let post = |length: usize, body: usize| {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            [head.as_bytes(), &vec![b'x'; body]].concat()
        };
        let expects = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n".to_vec();
        let broken = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX".to_vec();
        for (case, sent, lives) in [
            ("none", post(0, 0), true),
            ("small", post(9000, 9000), true),
            ("large", post(MOST_DRAINED + 1, 100), false),
            ("never comes", post(10, 5), false),
            ("waits to be asked", expects, false),
            ("broken", broken, false),
        ] {
            let (mut client, _theirs) = connected(&sent).await;
            client.drain().await;
            answered(&mut client, Outgoing::Length(0), &[]).await;
            assert_eq!(client.conclude().await.is_some(), lives, "{case}");
        }
    }

    #[tokio::test]
    async fn who_leaves_is_seen_behind_what_it_had_sent_ahead() {
        let (mut client, mut theirs) = connected(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /next").await;
        theirs.write_all(b" HTTP/1.1\r\n").await.unwrap();
        assert!(timeout(Duration::from_millis(20), client.left()).await.is_err(), "it is still there");
        drop(theirs);
        client.left().await;
        assert_eq!(&client.wire.input[..], b"GET /next HTTP/1.1\r\n", "what waits for its turn is kept");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_has_no_last_chunk() {
        let (mut client, mut theirs) = connected(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.put_head(200, std::iter::empty(), Outgoing::Chunked);
        client.write_body(b"hi").await.unwrap();
        client.flush().await.unwrap();
        client.break_off().await;
        let mut all = String::new();
        theirs.read_to_string(&mut all).await.unwrap();
        assert!(all.ends_with("\r\n\r\n2\r\nhi\r\n") && all.contains("\r\ndate: "), "{all}");
    }
}
