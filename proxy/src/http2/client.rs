//! One exchange on a stream: its request's body read, our answer written.
//!
//! The plane calls it as it calls an HTTP/1.1 client. Three things differ. Nothing is sent for which the client has no
//! window: a write waits for it, and what `h2` has taken and not sent yet is bounded. A stream that ends early ends
//! alone, so nothing need be read away to keep a connection. And a reset throws away what is still queued (RFC 9113
//! §5.4.2), so an answer that breaks off waits until what was said last is out.

use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use llm_proxy_core::http1::call::{Call, Framing};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::http1::{Fault, Outgoing, put_date};

/// What is gathered before it is handed on, so that head and small body leave together.
const GATHERED: usize = 16 * 1024;
/// How long the last words of an answer that breaks off may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long the rest of an answer may take to leave once all of it is queued, at most 64 KiB.
const LAST_BYTES: Duration = Duration::from_secs(120);
/// The most of a request's rest that is read away after the answer, in bytes, before the stream is reset instead. More than
/// over HTTP/1.1, whose connections end in order: curl before version 8 takes a reset while it sends for a failure, and
/// never looks at the answer that it has.
const MOST_DRAINED: usize = 4 * 1024 * 1024;
/// How long that may take.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes in `h2`'s queue. It drops them when they are out of it, sent or thrown away, and then the token tells.
pub struct Piece {
    bytes: Bytes,
    _queued: TaskTrackerToken,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// What is still to come of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    Length(u64),
    /// Until the client ends its side.
    Open,
    Done,
}

/// One exchange on one stream of a client.
pub struct Client {
    body: RecvStream,
    incoming: Incoming,
    waits_for_continue: bool,
    /// The request is HEAD: whatever the answer, it has no body (RFC 9110 §9.3.2).
    to_head: bool,
    respond: SendResponse<Piece>,
    /// Set with the head of the final answer.
    answer: Option<Outgoing>,
    /// That head, until it is handed on.
    head: Option<Response<()>>,
    /// From then on.
    stream: Option<SendStream<Piece>>,
    /// What is left of an answer of announced length.
    left: u64,
    /// Gathered, and not handed on yet.
    output: BytesMut,
    /// The end of the answer has been put.
    ends: bool,
    /// And handed on.
    ended: bool,
    queued: TaskTracker,
}

impl Client {
    /// Takes the stream on which this head came.
    pub fn new(body: RecvStream, respond: SendResponse<Piece>, call: &Call) -> Self {
        let incoming = match call.framing {
            Framing::None | Framing::Length(0) => Incoming::Done,
            Framing::Length(length) => Incoming::Length(length),
            Framing::Chunked => Incoming::Open,
        };
        Self::with(body, respond, incoming, call.method() == "HEAD", call.expects_continue)
    }

    /// Takes a stream whose head is no call, to say so.
    pub fn refused(body: RecvStream, respond: SendResponse<Piece>, to_head: bool) -> Self {
        let incoming = if body.is_end_stream() { Incoming::Done } else { Incoming::Open };
        Self::with(body, respond, incoming, to_head, false)
    }

    fn with(
        body: RecvStream,
        respond: SendResponse<Piece>,
        incoming: Incoming,
        to_head: bool,
        waits_for_continue: bool,
    ) -> Self {
        Self {
            body,
            incoming,
            waits_for_continue,
            to_head,
            respond,
            answer: None,
            head: None,
            stream: None,
            left: 0,
            output: BytesMut::new(),
            ends: false,
            ended: false,
            queued: TaskTracker::new(),
        }
    }

    /// Whether all of the request's body has been read.
    pub fn body_is_over(&self) -> bool {
        self.incoming == Incoming::Done
    }

    /// The next piece of the request's body; `None` at its end. Its window opens again by as much. Cancel safe.
    ///
    /// # Errors
    /// [`Fault::Cut`]: the client has reset the stream, sent another length than it said, or is gone.
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, Fault> {
        while self.incoming != Incoming::Done {
            match self.body.data().await {
                Some(Ok(piece)) => {
                    // Cannot fail: so much has just been received.
                    let _ = self.body.flow_control().release_capacity(piece.len());
                    self.note_read(piece.len());
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                // Trailers say nothing that goes on.
                None if self.incoming == Incoming::Open => self.incoming = Incoming::Done,
                None | Some(Err(_)) => return Err(Fault::Cut),
            }
        }
        Ok(None)
    }

    fn note_read(&mut self, bytes: usize) {
        if let Incoming::Length(left) = self.incoming {
            self.incoming = match left.saturating_sub(length(bytes)) {
                0 => Incoming::Done,
                left => Incoming::Length(left),
            };
        }
        // Its end often comes with the last piece, and need not be waited for.
        if self.incoming == Incoming::Open && self.body.is_end_stream() {
            self.incoming = Incoming::Done;
        }
    }

    /// Ends when the client has reset the stream, or is gone. Cancel safe.
    pub async fn left(&mut self) {
        poll_fn(|cx| match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(|_| ()),
            None => self.respond.poll_reset(cx).map(|_| ()),
        })
        .await;
    }

    /// Asks for the request's body (RFC 9110 §15.2.1).
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn write_continue(&mut self) -> io::Result<()> {
        self.waits_for_continue = false;
        self.write_interim(100, std::iter::empty())
    }

    /// Sends an interim answer (RFC 9110 §15.2).
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn write_interim<'a>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> io::Result<()> {
        // `h2` would send it on a stream that the client has reset, too.
        if self.left().now_or_never().is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.respond.send_informational(head(status, fields)).map_err(io::Error::other)
    }

    /// Puts the head of the final answer; the body, or [`Self::flush`], sends it. `content-length` and, where the
    /// fields have none, `date` are written here; fields that are for one HTTP/1.1 connection are left out (RFC 9113
    /// §8.2.2).
    pub fn put_head<'a>(&mut self, status: u16, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, framing: Outgoing) {
        let framing = match framing {
            Outgoing::Length(length) if self.to_head => Outgoing::NoBody(Some(length)),
            Outgoing::Chunked | Outgoing::UntilClose if self.to_head => Outgoing::NoBody(None),
            // A stream has an end of its own.
            Outgoing::UntilClose => Outgoing::Chunked,
            framing => framing,
        };
        let mut head = head(status, fields);
        if !head.headers().contains_key(DATE)
            && let Some(date) = date()
        {
            head.headers_mut().insert(DATE, date);
        }
        if let Outgoing::Length(length) | Outgoing::NoBody(Some(length)) = framing {
            head.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        self.left = if let Outgoing::Length(length) = framing { length } else { 0 };
        self.ends = matches!(framing, Outgoing::NoBody(_) | Outgoing::Length(0));
        self.head = Some(head);
        self.answer = Some(framing);
    }

    /// The framing of the final answer, once its head has been put.
    pub fn answer(&self) -> Option<Outgoing> {
        self.answer
    }

    /// Writes a piece of the answer's body, if it may have one. Small pieces wait for [`Self::flush`]. Not cancel safe.
    ///
    /// # Errors
    /// When the stream is gone.
    pub async fn write_body(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.ends {
            return Ok(());
        }
        self.output.extend_from_slice(piece);
        if matches!(self.answer, Some(Outgoing::Length(_))) {
            self.left = self.left.saturating_sub(length(piece.len()));
            self.ends = self.left == 0;
        }
        if self.output.len() > GATHERED { self.flush().await } else { Ok(()) }
    }

    /// Puts the end of the answer, for a flush to send.
    pub fn end_body(&mut self) {
        self.ends |= self.left == 0;
    }

    /// Hands on what waits, as the client's window allows. Not cancel safe.
    ///
    /// # Errors
    /// When the stream is gone.
    pub async fn flush(&mut self) -> io::Result<()> {
        if let Some(head) = self.head.take() {
            self.ended = self.ends && self.output.is_empty();
            self.stream = Some(self.respond.send_response(head, self.ended).map_err(io::Error::other)?);
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while !self.output.is_empty() {
            let room = room(stream, self.output.len()).await?;
            let bytes = self.output.split_to(room.min(self.output.len())).freeze();
            self.ended = self.ends && self.output.is_empty();
            let piece = Piece { bytes, _queued: self.queued.token() };
            stream.send_data(piece, self.ended).map_err(io::Error::other)?;
        }
        if self.ends && !self.ended {
            self.ended = true;
            let nothing = Piece { bytes: Bytes::new(), _queued: self.queued.token() };
            stream.send_data(nothing, true).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// After a whole answer: waits until it is out. What the client still sends is read away for a moment, so that a
    /// stream with a small rest ends in order; a larger rest ends it with a reset that says that nothing was wrong
    /// (§8.1).
    pub async fn conclude(mut self) {
        if !self.ended {
            return self.break_off().await;
        }
        self.queued.close();
        if timeout(LAST_BYTES, self.queued.wait()).await.is_err() {
            return self.respond.send_reset(Reason::CANCEL);
        }
        if !self.body_is_over() && !self.waits_for_continue {
            let _ = timeout(DRAIN_PATIENCE, self.discard(MOST_DRAINED)).await;
        }
    }

    async fn discard(&mut self, most: usize) {
        let mut read = 0usize;
        while read <= most
            && let Ok(Some(piece)) = self.read_body().await
        {
            read = read.saturating_add(piece.len());
        }
    }

    /// Ends the stream in the middle of an answer, so that it does not look like an end.
    pub async fn break_off(mut self) {
        if let Some(stream) = &mut self.stream {
            // Stands behind everything, the head too, and is out when that is.
            let mark = Piece { bytes: Bytes::new(), _queued: self.queued.token() };
            let _ = stream.send_data(mark, false);
        }
        self.queued.close();
        let _ = timeout(LAST_WORDS, self.queued.wait()).await;
        self.respond.send_reset(Reason::INTERNAL_ERROR);
    }
}

/// How many of `wanted` bytes the client's window has room for, as soon as it has any.
async fn room(stream: &mut SendStream<Piece>, wanted: usize) -> io::Result<usize> {
    stream.reserve_capacity(wanted);
    poll_fn(|cx| {
        loop {
            match stream.capacity() {
                0 => {}
                room => return Poll::Ready(Ok(room)),
            }
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    })
    .await
}

/// A head with these fields, less those that HTTP/2 does not have.
fn head<'a>(status: u16, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Response<()> {
    let mut headers = HeaderMap::with_capacity(32);
    for (name, value) in fields {
        // Both have been judged where they came from: there is none that cannot be written down here.
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else { continue };
        if !matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade")
        {
            // More than it can hold do not fit into the head that they came in.
            let _ = headers.try_append(name, value);
        }
    }
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *head.headers_mut() = headers;
    head
}

/// Now, as a field of HTTP/1.1 would say it.
fn date() -> Option<HeaderValue> {
    let mut line = Vec::with_capacity(48);
    put_date(&mut line);
    HeaderValue::from_bytes(line.strip_prefix(b"date: ")?.trim_ascii_end()).ok()
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use h2::client::{ResponseFuture, SendRequest};
    use http::Request;
    use llm_proxy_core::http1::request_head;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// Their side of a connection on which one request was sent, and ours.
    struct Pair {
        client: Client,
        answer: ResponseFuture,
        upload: SendStream<Bytes>,
        _theirs: SendRequest<Bytes>,
    }

    async fn asked(method: &str, body: Option<&'static [u8]>, window: u32) -> Pair {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let serving = async {
            let mut connection =
                h2::server::Builder::new().max_send_buffer_size(64 * 1024).handshake::<_, Piece>(ours).await.unwrap();
            let accepted = connection.accept().await.unwrap().unwrap();
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            accepted
        };
        let asking = async {
            let (sender, connection) =
                h2::client::Builder::new().initial_window_size(window).handshake::<_, Bytes>(theirs).await.unwrap();
            tokio::spawn(connection);
            let mut sender = sender.ready().await.unwrap();
            let request = Request::builder().method(method).uri("https://a.test/v1").body(()).unwrap();
            let (answer, mut upload) = sender.send_request(request, body.is_none()).unwrap();
            if let Some(body) = body {
                upload.send_data(Bytes::from_static(body), false).unwrap();
            }
            (answer, upload, sender)
        };
        let ((request, respond), (answer, upload, theirs)) = tokio::join!(serving, asking);
        let chunked = if body.is_some() { "transfer-encoding: chunked\r\n" } else { "" };
        let head = format!("{method} /v1 HTTP/1.1\r\nhost: a\r\n{chunked}\r\n");
        let call = request_head::parse(Bytes::from(head)).unwrap();
        Pair { client: Client::new(request.into_body(), respond, &call), answer, upload, _theirs: theirs }
    }

    /// The body as far as it comes, and why it ended early.
    async fn whole(body: &mut RecvStream) -> (Vec<u8>, Option<Reason>) {
        let mut all = Vec::new();
        while let Some(piece) = body.data().await {
            match piece {
                Ok(piece) => {
                    body.flow_control().release_capacity(piece.len()).unwrap();
                    all.extend_from_slice(&piece);
                }
                Err(error) => return (all, error.reason()),
            }
        }
        (all, None)
    }

    #[tokio::test]
    async fn an_answer_is_framed_as_asked_and_has_no_field_of_http_1_1() {
        let fields = [
            (&b"Content-Type"[..], &b"text/plain"[..]),
            (b"connection", b"close"),
            (b"transfer-encoding", b"chunked"),
            (b"keep-alive", b"1"),
            (b"x-a", b"1"),
            (b"x-a", b"2"),
        ];
        for (method, framing, expected, length) in [
            ("GET", Outgoing::Length(5), "hello", Some("5")),
            ("GET", Outgoing::Chunked, "hello", None),
            ("GET", Outgoing::UntilClose, "hello", None),
            ("GET", Outgoing::Length(0), "", Some("0")),
            ("GET", Outgoing::NoBody(None), "", None),
            ("HEAD", Outgoing::Length(5), "", Some("5")),
            ("HEAD", Outgoing::Chunked, "", None),
        ] {
            let Pair { mut client, answer, .. } = asked(method, None, 65_535).await;
            client.put_head(200, fields.into_iter(), framing);
            for piece in ["he", "", "llo"] {
                client.write_body(piece.as_bytes()).await.unwrap();
            }
            client.end_body();
            client.flush().await.unwrap();
            let concluding = tokio::spawn(client.conclude());
            let mut answer = answer.await.unwrap();
            let got = whole(answer.body_mut()).await;
            assert_eq!(got, (expected.as_bytes().to_vec(), None), "{method} {framing:?}");
            concluding.await.unwrap();
            let headers = answer.headers();
            let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(text("content-length"), length, "{method} {framing:?}");
            assert!(text("date").is_some_and(|date| date.ends_with("GMT")), "{headers:?}");
            assert_eq!((text("content-type"), headers.get_all("x-a").iter().count()), (Some("text/plain"), 2));
            assert_eq!(headers.len(), 4 + usize::from(length.is_some()), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_end_and_one_that_is_reset_is_cut() {
        let Pair { mut client, mut upload, .. } = asked("POST", Some(b"hello"), 65_535).await;
        assert_eq!(client.read_body().await.unwrap().as_deref(), Some(&b"hello"[..]));
        assert!(!client.body_is_over());
        upload.send_data(Bytes::from_static(b" world"), true).unwrap();
        assert_eq!(client.read_body().await.unwrap().as_deref(), Some(&b" world"[..]));
        assert!(client.body_is_over());
        assert_eq!(client.read_body().await.unwrap(), None);

        let Pair { mut client, mut upload, .. } = asked("POST", Some(b"hello"), 65_535).await;
        let _ = client.read_body().await.unwrap();
        upload.send_reset(Reason::CANCEL);
        assert!(matches!(timeout(PATIENCE, client.read_body()).await.unwrap(), Err(Fault::Cut)));
        timeout(PATIENCE, client.left()).await.unwrap();
        client.put_head(200, std::iter::empty(), Outgoing::Chunked);
        assert!(client.flush().await.is_err() && client.write_continue().is_err());
    }

    #[tokio::test]
    async fn a_write_waits_for_the_clients_window() {
        const WHOLE: usize = 300_000;
        let Pair { mut client, answer, .. } = asked("GET", None, 20_000).await;
        client.put_head(200, std::iter::empty(), Outgoing::Length(length(WHOLE)));
        let written = timeout(Duration::from_millis(50), client.write_body(&vec![b'x'; WHOLE])).await;
        assert!(written.is_err(), "more was taken than the window has");
        assert!(client.output.len() >= WHOLE - 2 * 20_000, "{}", client.output.len());
        let reading = tokio::spawn(async move { whole(answer.await.unwrap().body_mut()).await });
        client.flush().await.unwrap();
        client.conclude().await;
        let (body, early) = reading.await.unwrap();
        assert_eq!((body.len(), early), (WHOLE, None));
    }

    #[tokio::test]
    async fn what_was_said_last_is_read_before_the_reset() {
        let Pair { mut client, answer, .. } = asked("GET", None, 65_535).await;
        client.put_head(200, std::iter::empty(), Outgoing::Chunked);
        client.write_body(b"data: {}\n\n").await.unwrap();
        client.flush().await.unwrap();
        client.break_off().await;
        let mut answer = answer.await.unwrap();
        assert_eq!(whole(answer.body_mut()).await, (b"data: {}\n\n".to_vec(), Some(Reason::INTERNAL_ERROR)));

        // A client that takes nothing does not hold it up.
        let Pair { mut client, answer, .. } = asked("GET", None, 0).await;
        client.put_head(200, std::iter::empty(), Outgoing::Chunked);
        client.flush().await.unwrap();
        let mut answer = answer.await.unwrap();
        let stuck = async { client.write_body(&[b'x'; 2 * GATHERED]).await };
        assert!(timeout(Duration::from_millis(20), stuck).await.is_err());
        timeout(PATIENCE, client.break_off()).await.unwrap();
        assert_eq!(whole(answer.body_mut()).await, (Vec::new(), Some(Reason::INTERNAL_ERROR)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_before_the_end_of_the_request_ends_the_stream_without_blame() {
        let Pair { mut client, answer, mut upload, .. } = asked("POST", Some(b"hello"), 65_535).await;
        client.put_head(413, std::iter::empty(), Outgoing::Length(2));
        client.write_body(b"no").await.unwrap();
        client.flush().await.unwrap();
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(whole(answer.body_mut()).await, (b"no".to_vec(), None));
        client.conclude().await;
        let reset = poll_fn(|cx| upload.poll_reset(cx));
        assert_eq!(timeout(PATIENCE, reset).await.unwrap().unwrap(), Reason::NO_ERROR);
    }

    #[tokio::test]
    async fn interim_answers_come_first() {
        let Pair { mut client, mut answer, .. } = asked("POST", Some(b""), 65_535).await;
        client.write_continue().unwrap();
        client.write_interim(103, [(&b"link"[..], &b"</a>"[..])].into_iter()).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let interim = poll_fn(|cx| answer.poll_informational(cx));
            seen.push(timeout(PATIENCE, interim).await.unwrap().unwrap().unwrap());
        }
        assert_eq!((seen[0].status().as_u16(), seen[1].status().as_u16()), (100, 103));
        assert_eq!(seen[1].headers()["link"], "</a>");
        client.put_head(204, std::iter::empty(), Outgoing::NoBody(None));
        client.flush().await.unwrap();
        assert_eq!(answer.await.unwrap().status(), 204);
    }
}
