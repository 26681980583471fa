//! One exchange on a stream of a connection to a provider: a request written while its answer is read.
//!
//! The plane calls it as it calls one of HTTP/1.1, and its answers are judged by the same measures. What differs:
//!
//! * Nothing of a body is handed on for which the provider has opened no window, but for the little that goes along with
//!   its head. The window of the answer opens again by each piece that is taken, so a client that reads nothing makes
//!   the provider wait, and nobody else.
//! * Only END_STREAM ends an answer. A reset and the end of the connection are breaks, whatever reason they give.
//! * A provider may say of a stream that it was never looked at ([`Fault::Unprocessed`]): by a reset that refuses it, or
//!   by a GOAWAY that names an earlier stream as its last (RFC 9113 §6.8, §8.7). `h2` gives the error of a GOAWAY that
//!   was received to the streams behind its last, and to requests that were never sent, and to no others.
//! * Dropping an exchange that is not over resets its stream at once, and its connection lives on.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use llm_proxy_core::http1::answer_head::{AnswerHead, Asked};

use crate::http1::{Fault, Step};

/// What is gathered of a body before it is handed on, so that small pieces share a frame.
const GATHERED: usize = 16 * 1024;

/// One exchange on one stream.
pub struct Provider {
    sender: SendRequest<Bytes>,
    /// The head, until it is handed on.
    request: Option<Request<()>>,
    asked: Asked,
    /// Gathered of the body, and not handed on yet.
    output: BytesMut,
    /// A piece that was too large to be gathered. It follows the output.
    large: Bytes,
    /// The end of the request has been put.
    ends: bool,
    /// And handed on.
    ended: bool,
    takes_no_more: bool,
    /// Whoever puts the body has been told so.
    is_told: bool,
    /// From when the head was handed on.
    stream: Option<SendStream<Bytes>>,
    /// Until the final answer's head is here.
    coming: Option<ResponseFuture>,
    /// From then on, until its end.
    body: Option<RecvStream>,
    answer: Option<AnswerHead>,
    /// The end of the answer has been read.
    is_over: bool,
}

impl Provider {
    /// Takes the way to a new stream.
    pub fn new(sender: SendRequest<Bytes>) -> Self {
        Self {
            sender,
            request: None,
            asked: Asked::Ordinary,
            output: BytesMut::new(),
            large: Bytes::new(),
            ends: false,
            ended: false,
            takes_no_more: false,
            is_told: false,
            stream: None,
            coming: None,
            body: None,
            answer: None,
            is_over: false,
        }
    }

    /// Puts the request's head, and its end where no body follows; waiting for the answer sends it.
    pub fn put_head(&mut self, request: Request<()>, has_body: bool, asked: Asked) {
        self.request = Some(request);
        self.ends = !has_body;
        self.asked = asked;
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        let has_body = !self.output.is_empty() || !self.large.is_empty() || self.ends != self.ended;
        !self.takes_no_more && (self.request.is_some() || has_body)
    }

    /// Whether more of the request's body, or its end, may be put.
    pub fn has_room(&self) -> bool {
        self.large.is_empty() && self.output.len() < GATHERED && !self.takes_no_more
    }

    /// Puts a piece of the request's body where there [is room](Self::has_room). Small pieces are gathered.
    pub fn put_body(&mut self, piece: Bytes) {
        if self.output.len().saturating_add(piece.len()) <= GATHERED {
            self.output.extend_from_slice(&piece);
        } else {
            self.large = piece;
        }
    }

    /// Puts the end of the request's body where there [is room](Self::has_room).
    pub fn end_body(&mut self) {
        self.ends = true;
    }

    /// Waits for the head of the next answer, interim ones included, and sends what waits. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn next_head(&mut self) -> Result<Step<()>, Fault> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step<()>, Fault>> {
        if let Some(request) = self.request.take() {
            self.open(request)?;
            if !self.has_output() {
                return Poll::Ready(Ok(Step::Sent));
            }
        }
        if self.poll_output(cx).is_ready() {
            return Poll::Ready(Ok(Step::Sent));
        }
        let Some(coming) = &mut self.coming else { return Poll::Ready(Err(Fault::Closed)) };
        match coming.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => {
                return Poll::Ready(self.note_answer(interim.status(), interim.headers()).map(Step::Came));
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(fault(error))),
            // The final one, or no other.
            Poll::Ready(None) => {}
            Poll::Pending => return self.poll_told().map(Ok),
        }
        let (head, body) = ready!(Pin::new(coming).poll(cx)).map_err(fault)?.into_parts();
        self.coming = None;
        self.body = Some(body);
        Poll::Ready(self.note_answer(head.status, &head.headers).map(Step::Came))
    }

    /// Opens the stream. What has been gathered goes along, so that head and small body leave in one write.
    fn open(&mut self, request: Request<()>) -> Result<(), Fault> {
        self.ended = self.ends && self.output.is_empty() && self.large.is_empty();
        let (coming, mut stream) = self.sender.send_request(request, self.ended).map_err(fault)?;
        if !self.output.is_empty() {
            self.ended = self.ends && self.large.is_empty();
            // Fails where the connection has just ended, and then the answer says so.
            let _ = stream.send_data(self.output.split().freeze(), self.ended);
        }
        self.coming = Some(coming);
        self.stream = Some(stream);
        Ok(())
    }

    fn note_answer(&mut self, status: StatusCode, headers: &HeaderMap) -> Result<(), Fault> {
        let fields = headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        self.answer = Some(AnswerHead::from_fields(status.as_u16(), fields, self.asked)?);
        Ok(())
    }

    /// Waits for the next piece of the answer's body, `None` at its end, and sends what waits. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`]: a body that ends before its stream does is cut.
    pub async fn next_piece(&mut self) -> Result<Step<Option<Bytes>>, Fault> {
        poll_fn(|cx| self.poll_piece(cx)).await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step<Option<Bytes>>, Fault>> {
        if self.poll_output(cx).is_ready() {
            return Poll::Ready(Ok(Step::Sent));
        }
        if let Poll::Ready(told) = self.poll_told() {
            return Poll::Ready(Ok(told));
        }
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(Step::Came(None))) };
            match ready!(body.poll_data(cx)) {
                Some(Ok(piece)) => {
                    // Cannot fail: so much has just been received.
                    let _ = body.flow_control().release_capacity(piece.len());
                    if !piece.is_empty() {
                        return Poll::Ready(Ok(Step::Came(Some(piece))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(fault(error))),
                // Trailers say nothing that goes on.
                None => {
                    self.is_over = true;
                    self.body = None;
                }
            }
        }
    }

    /// Hands on what waits; ready once all of it is. Where the stream takes no more it is thrown away.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_output() {
            return Poll::Pending;
        }
        if ready!(self.poll_send(cx)) {
            return Poll::Ready(());
        }
        self.takes_no_more = true;
        self.output.clear();
        self.large.clear();
        Poll::Pending
    }

    /// Tells once that the stream takes no more.
    fn poll_told<T>(&mut self) -> Poll<Step<T>> {
        if self.takes_no_more && !self.is_told {
            self.is_told = true;
            return Poll::Ready(Step::Unsendable);
        }
        Poll::Pending
    }

    /// Whether everything was handed on, as soon as the provider's window lets it; `false` when the stream takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(false) };
        loop {
            let is_large = self.output.is_empty();
            let waiting = if is_large { self.large.len() } else { self.output.len() };
            if waiting == 0 {
                break;
            }
            let Some(room) = ready!(poll_room(stream, waiting, cx)) else { return Poll::Ready(false) };
            let taken = room.min(waiting);
            let piece = if is_large { self.large.split_to(taken) } else { self.output.split_to(taken).freeze() };
            self.ended = self.ends && self.output.is_empty() && self.large.is_empty();
            if stream.send_data(piece, self.ended).is_err() {
                return Poll::Ready(false);
            }
        }
        if self.ends && !self.ended {
            self.ended = true;
            return Poll::Ready(stream.send_data(Bytes::new(), true).is_ok());
        }
        Poll::Ready(true)
    }

    /// Whether anything of an answer has come. What the provider has begun must not be asked again.
    pub fn has_begun(&self) -> bool {
        self.answer.is_some()
    }

    /// The head read last.
    pub fn answer(&self) -> Option<&AnswerHead> {
        self.answer.as_ref()
    }
}

impl Drop for Provider {
    /// The provider is told at once, and what waits is thrown away: left to itself, `h2` would send it first.
    fn drop(&mut self) {
        let is_over = self.is_over || self.body.as_ref().is_some_and(RecvStream::is_end_stream);
        if let Some(stream) = &mut self.stream
            && !(is_over && self.ended)
        {
            stream.send_reset(Reason::CANCEL);
        }
    }
}

/// How many of `wanted` bytes the provider's window has room for, as soon as it has any; `None` when it takes no more.
fn poll_room(stream: &mut SendStream<Bytes>, wanted: usize, cx: &mut Context<'_>) -> Poll<Option<usize>> {
    stream.reserve_capacity(wanted);
    loop {
        match stream.capacity() {
            0 => {}
            room => return Poll::Ready(Some(room)),
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
}

/// What an error of `h2` means for an exchange.
fn fault(error: h2::Error) -> Fault {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if error.is_remote() && (error.is_go_away() || is_refused) {
        return Fault::Unprocessed(error);
    }
    if error.is_library() {
        tracing::debug!(%error, "a provider breaks the rules of HTTP/2");
        return Fault::Invalid("it breaks the rules of HTTP/2");
    }
    if error.is_io() {
        return error.into_io().map_or(Fault::Cut, Fault::Io);
    }
    Fault::Reset(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use h2::server::{Builder, Connection, SendResponse};
    use http::{Method, Response};
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A connection to a provider that speaks `h2`, and that end of it.
    struct Pair {
        sender: SendRequest<Bytes>,
        ours: JoinHandle<Result<(), h2::Error>>,
        theirs: Connection<DuplexStream, Bytes>,
    }

    async fn pair(window: u32) -> Pair {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let opening = async {
            let (sender, connection) = h2::client::handshake(ours).await.unwrap();
            (sender, tokio::spawn(connection))
        };
        let mut builder = Builder::new();
        builder.initial_window_size(window);
        let ((sender, ours), theirs) = tokio::join!(opening, builder.handshake(theirs));
        Pair { sender, ours, theirs: theirs.unwrap() }
    }

    fn asking(method: Method) -> Request<()> {
        Request::builder().method(method).uri("https://provider.test/v1").body(()).unwrap()
    }

    fn answer(status: u16, fields: &[(&'static str, &'static str)]) -> Response<()> {
        let response = Response::builder().status(status);
        fields.iter().fold(response, |response, (name, value)| response.header(*name, *value)).body(()).unwrap()
    }

    impl Pair {
        /// Sends a request without a body, and what its provider does with it.
        async fn asked(mut self, method: Method) -> (Provider, SendResponse<Bytes>, JoinHandle<()>) {
            let asked = if method == Method::HEAD { Asked::Head } else { Asked::Ordinary };
            let mut http = Provider::new(self.sender.clone());
            http.put_head(asking(method), false, asked);
            assert!(matches!(http.next_head().await, Ok(Step::Sent)));
            assert!(!http.has_output());
            let (_, respond) = timeout(PATIENCE, self.theirs.accept()).await.unwrap().unwrap().unwrap();
            (http, respond, self.drive())
        }

        /// Goes on serving.
        fn drive(mut self) -> JoinHandle<()> {
            tokio::spawn(async move {
                let _ours = self.ours;
                let _sender = self.sender;
                while self.theirs.accept().await.is_some() {}
            })
        }
    }

    /// The answer's body as far as it comes.
    async fn whole(http: &mut Provider) -> (Vec<u8>, Result<(), Fault>) {
        let mut body = Vec::new();
        loop {
            match timeout(PATIENCE, http.next_piece()).await.unwrap() {
                Ok(Step::Came(Some(piece))) => body.extend_from_slice(&piece),
                Ok(Step::Came(None)) => return (body, Ok(())),
                Ok(Step::Sent | Step::Unsendable) => {}
                Err(fault) => return (body, Err(fault)),
            }
        }
    }

    async fn head(http: &mut Provider) -> Result<u16, Fault> {
        loop {
            match timeout(PATIENCE, http.next_head()).await.unwrap()? {
                Step::Came(()) => return Ok(http.answer().unwrap().status()),
                Step::Sent | Step::Unsendable => {}
            }
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end_interim_ones_first_and_trailers_dropped() {
        let (mut http, mut respond, serving) = pair(65_535).await.asked(Method::GET).await;
        assert!(!http.has_begun());
        respond.send_informational(answer(103, &[("link", "</a>")])).unwrap();
        assert_eq!(head(&mut http).await.unwrap(), 103);
        assert!(http.has_begun() && http.answer().unwrap().is_interim());
        let mut stream = respond.send_response(answer(200, &[("x-a", "1"), ("x-a", "2")]), false).unwrap();
        assert_eq!(head(&mut http).await.unwrap(), 200);
        assert_eq!(http.answer().unwrap().fields().len(), 2);
        stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let first = timeout(PATIENCE, http.next_piece()).await.unwrap().unwrap();
        assert!(matches!(first, Step::Came(Some(piece)) if piece == "hello"));
        assert!(http.next_piece().now_or_never().is_none(), "it is not over");
        stream.send_data(Bytes::from_static(b" world"), false).unwrap();
        stream.send_trailers(HeaderMap::new()).unwrap();
        let (rest, ended) = whole(&mut http).await;
        assert!(rest == b" world" && ended.is_ok(), "{ended:?}");
        assert!(matches!(http.next_piece().await, Ok(Step::Came(None))));
        serving.abort();
    }

    #[tokio::test]
    async fn only_the_end_of_the_stream_ends_an_answer() {
        for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::REFUSED_STREAM] {
            let (mut http, mut respond, serving) = pair(65_535).await.asked(Method::GET).await;
            let mut stream = respond.send_response(answer(200, &[]), false).unwrap();
            stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
            assert_eq!(head(&mut http).await.unwrap(), 200);
            assert!(matches!(http.next_piece().await, Ok(Step::Came(Some(_)))));
            stream.send_reset(reason);
            assert!(whole(&mut http).await.1.is_err(), "{reason:?}");
            serving.abort();
        }
        let (mut http, mut respond, serving) = pair(65_535).await.asked(Method::GET).await;
        let _stream = respond.send_response(answer(200, &[]), false).unwrap();
        assert_eq!(head(&mut http).await.unwrap(), 200);
        serving.abort();
        assert!(whole(&mut http).await.1.is_err(), "the connection is gone");
    }

    #[tokio::test]
    async fn a_length_that_is_not_kept_is_no_whole_answer_and_one_to_head_has_no_body() {
        for (length, sent) in [("10", &b"hello"[..]), ("4", b"hello")] {
            let (mut http, mut respond, serving) = pair(65_535).await.asked(Method::GET).await;
            let mut stream = respond.send_response(answer(200, &[("content-length", length)]), false).unwrap();
            stream.send_data(Bytes::from_static(sent), true).unwrap();
            let broken = match head(&mut http).await {
                Ok(_) => whole(&mut http).await.1,
                Err(fault) => Err(fault),
            };
            assert!(matches!(broken, Err(Fault::Invalid(_))), "{length}: {broken:?}");
            serving.abort();
        }
        for (method, status) in [(Method::HEAD, 200), (Method::GET, 304)] {
            let (mut http, mut respond, serving) = pair(65_535).await.asked(method).await;
            respond.send_response(answer(status, &[("content-length", "5")]), true).unwrap();
            assert_eq!(head(&mut http).await.unwrap(), status);
            let (body, ended) = whole(&mut http).await;
            assert!(body.is_empty() && ended.is_ok(), "{status}: {ended:?}");
            serving.abort();
        }
    }

    #[tokio::test]
    async fn what_was_never_looked_at_is_told_apart_from_what_broke() {
        for (reason, is_unprocessed) in
            [(Reason::REFUSED_STREAM, true), (Reason::CANCEL, false), (Reason::NO_ERROR, false)]
        {
            let (mut http, mut respond, serving) = pair(65_535).await.asked(Method::POST).await;
            respond.send_reset(reason);
            let fault = head(&mut http).await.unwrap_err();
            assert_eq!(matches!(fault, Fault::Unprocessed(_)), is_unprocessed, "{reason:?}: {fault}");
            assert!(!http.has_begun());
            serving.abort();
        }

        // The second stream is behind the last that the GOAWAY names, the first is not.
        let mut pair = pair(65_535).await;
        let mut begun = [Provider::new(pair.sender.clone()), Provider::new(pair.sender.clone())];
        for http in &mut begun {
            http.put_head(asking(Method::POST), false, Asked::Ordinary);
        }
        let [first, second] = &mut begun;
        assert!(matches!(first.next_head().await, Ok(Step::Sent)));
        let _begun = timeout(PATIENCE, pair.theirs.accept()).await.unwrap().unwrap().unwrap();
        pair.theirs.abrupt_shutdown(Reason::NO_ERROR);
        // Sent before that is read.
        assert!(matches!(second.next_head().await, Ok(Step::Sent)));
        let sender = pair.sender.clone();
        let serving = pair.drive();
        let fault = head(second).await.unwrap_err();
        assert!(matches!(fault, Fault::Unprocessed(_)), "{fault}");
        let fault = head(first).await.unwrap_err();
        assert!(!matches!(fault, Fault::Unprocessed(_)), "{fault}");
        // And what is never sent is never looked at.
        let mut third = Provider::new(sender);
        third.put_head(asking(Method::POST), false, Asked::Ordinary);
        assert!(matches!(third.next_head().await, Err(Fault::Unprocessed(_))));
        serving.abort();
    }

    #[tokio::test]
    async fn a_body_waits_for_the_providers_window_and_goes_out_whole() {
        const WHOLE: usize = 300_000;
        let mut pair = pair(20_000).await;
        let mut http = Provider::new(pair.sender.clone());
        http.put_head(asking(Method::POST), true, Asked::Ordinary);
        let mut left = Bytes::from(vec![b'x'; WHOLE]);
        let mut handed = 0;
        // Until nothing is taken any more: the window is full, and nobody reads.
        loop {
            while http.has_room() && !left.is_empty() {
                let piece = left.split_to(left.len().min(7_000));
                handed += piece.len();
                http.put_body(piece);
            }
            if timeout(Duration::from_millis(50), http.next_head()).await.is_err() {
                break;
            }
        }
        assert!(handed <= 65_535 + 2 * GATHERED, "{handed} bytes were taken with a window of 20,000");
        let (request, mut respond) = timeout(PATIENCE, pair.theirs.accept()).await.unwrap().unwrap().unwrap();
        let serving = pair.drive();
        let mut body = request.into_body();
        let reading = tokio::spawn(async move {
            let mut read = 0;
            while let Some(piece) = body.data().await {
                let piece = piece.unwrap();
                read += piece.len();
                body.flow_control().release_capacity(piece.len()).unwrap();
            }
            respond.send_response(answer(200, &[]), true).unwrap();
            read
        });
        let status = loop {
            while http.has_room() && !left.is_empty() {
                http.put_body(left.split_to(left.len().min(7_000)));
            }
            if left.is_empty() && http.has_room() {
                http.end_body();
            }
            match timeout(PATIENCE, http.next_head()).await.unwrap().unwrap() {
                Step::Came(()) => break http.answer().unwrap().status(),
                Step::Sent => {}
                Step::Unsendable => panic!("the stream takes no more"),
            }
        };
        assert_eq!((status, reading.await.unwrap()), (200, WHOLE));
        serving.abort();
    }

    #[tokio::test]
    async fn an_answer_that_comes_early_is_read_though_the_provider_takes_nothing_more() {
        for resets in [false, true] {
            let mut pair = pair(20_000).await;
            let mut http = Provider::new(pair.sender.clone());
            http.put_head(asking(Method::POST), true, Asked::Ordinary);
            http.put_body(Bytes::from(vec![b'x'; 40_000]));
            let waiting =
                timeout(Duration::from_millis(50), async { while let Ok(Step::Sent) = http.next_head().await {} });
            let accepting = timeout(PATIENCE, pair.theirs.accept());
            let (waited, accepted) = tokio::join!(waiting, accepting);
            assert!(waited.is_err(), "more was taken than the window has");
            let (request, mut respond) = accepted.unwrap().unwrap().unwrap();
            let serving = pair.drive();
            let mut stream = respond.send_response(answer(413, &[]), false).unwrap();
            stream.send_data(Bytes::from_static(b"no"), true).unwrap();
            if resets {
                // Dropping both resets the stream, with NO_ERROR (RFC 9113 §8.1).
                drop((request, respond, stream));
            }
            assert_eq!(head(&mut http).await.unwrap(), 413);
            let (body, ended) = whole(&mut http).await;
            assert!(body == b"no" && ended.is_ok(), "{resets}: {ended:?}");
            serving.abort();
        }
    }

    #[tokio::test]
    async fn an_exchange_that_is_dropped_resets_its_stream_at_once_and_one_that_is_over_does_not() {
        let mut pair = pair(20_000).await;
        // With more waiting than the provider has room for.
        let mut http = Provider::new(pair.sender.clone());
        http.put_head(asking(Method::POST), true, Asked::Ordinary);
        http.put_body(Bytes::from(vec![b'x'; 40_000]));
        assert!(http.next_head().now_or_never().is_none());
        let (_request, mut respond) = timeout(PATIENCE, pair.theirs.accept()).await.unwrap().unwrap().unwrap();
        drop(http);
        let serving = async { while pair.theirs.accept().await.is_some() {} };
        let told = poll_fn(|cx| respond.poll_reset(cx));
        let reason = tokio::select! {
            () = serving => panic!("the connection is over"),
            told = timeout(PATIENCE, told) => told.unwrap().unwrap(),
        };
        assert_eq!(reason, Reason::CANCEL);

        let mut http = Provider::new(pair.sender.clone());
        http.put_head(asking(Method::GET), false, Asked::Ordinary);
        assert!(matches!(http.next_head().await, Ok(Step::Sent)));
        let (_, mut respond) = timeout(PATIENCE, pair.theirs.accept()).await.unwrap().unwrap().unwrap();
        let mut stream = respond.send_response(answer(200, &[]), false).unwrap();
        stream.send_data(Bytes::new(), true).unwrap();
        let serving = pair.drive();
        assert_eq!(head(&mut http).await.unwrap(), 200);
        assert!(whole(&mut http).await.1.is_ok());
        drop(http);
        let told = poll_fn(|cx| stream.poll_reset(cx));
        assert!(timeout(Duration::from_millis(50), told).await.is_err(), "a stream that was over was reset");
        serving.abort();
    }
}
