//! One exchange with a provider: a request written while its answer is read, strictly.
//!
//! Waiting for the answer sends what waits to be sent. So an answer that comes early is seen while the provider takes
//! nothing more, and dropping a wait loses nothing in either direction.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use llm_proxy_core::http1::answer_head::{self, AnswerHead, Asked};
use llm_proxy_core::http1::call::Framing;
use pingora_core::protocols::Stream;
use tokio::io::AsyncWrite;

use super::{Fault, GATHERED, Incoming, Wire, put_size};

/// The largest head of an answer taken, in bytes.
const LARGEST_HEAD: usize = 64 * 1024;

/// What happened while an answer was waited for.
#[derive(Debug)]
pub enum Step<T> {
    /// Everything that waited has been sent: there is room for more.
    Sent,
    /// The connection takes nothing more. What waited is thrown away; an answer may be there all the same.
    Unsendable,
    /// This came.
    Came(T),
}

/// One exchange on one connection to a provider.
pub struct Provider {
    wire: Wire<Stream>,
    /// How much of the wire's output has been sent, in bytes.
    sent: usize,
    /// A piece that was too large to be gathered. It follows the output.
    large: Bytes,
    /// What follows the large piece.
    behind: &'static [u8],
    /// Something was put that the connection has not flushed. Under TLS it may have all of the bytes and hold them still.
    is_unflushed: bool,
    takes_no_more: bool,
    framing: Framing,
    asked: Asked,
    answer: Option<AnswerHead>,
    /// Nothing in the heads so far forbids another exchange.
    persists: bool,
    incoming: Incoming,
}

impl Provider {
    /// Takes a connection on which nothing is under way.
    pub fn new(stream: Stream) -> Self {
        Self {
            wire: Wire::new(stream),
            sent: 0,
            large: Bytes::new(),
            behind: b"",
            is_unflushed: false,
            takes_no_more: false,
            framing: Framing::None,
            asked: Asked::Ordinary,
            answer: None,
            persists: true,
            incoming: Incoming::Done,
        }
    }

    /// Puts the request's head together with what follows; waiting for the answer sends it.
    pub fn put_head(&mut self, head: Vec<u8>, framing: Framing, asked: Asked) {
        self.wire.output = head;
        self.is_unflushed = true;
        self.framing = framing;
        self.asked = asked;
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        self.is_unflushed || self.has_bytes()
    }

    fn has_bytes(&self) -> bool {
        !self.wire.output.is_empty() || !self.large.is_empty() || !self.behind.is_empty()
    }

    /// Whether more of the request's body, or its end, may be put.
    pub fn has_room(&self) -> bool {
        self.large.is_empty() && self.behind.is_empty() && self.wire.output.len() < GATHERED && !self.takes_no_more
    }

    /// Puts a piece of the request's body where there [is room](Self::has_room). Small pieces are gathered.
    pub fn put_body(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return; // as a chunk it would be the end
        }
        self.is_unflushed = true;
        let is_chunked = self.framing == Framing::Chunked;
        if is_chunked {
            put_size(&mut self.wire.output, piece.len());
        }
        let behind: &'static [u8] = if is_chunked { b"\r\n" } else { b"" };
        if self.wire.output.len().saturating_add(piece.len()) <= GATHERED {
            self.wire.output.extend_from_slice(&piece);
            self.wire.output.extend_from_slice(behind);
        } else {
            self.large = piece;
            self.behind = behind;
        }
    }

    /// Puts the end of the request's body where there [is room](Self::has_room).
    pub fn end_body(&mut self) {
        if self.framing == Framing::Chunked {
            self.is_unflushed = true;
            self.wire.put_last_chunk();
        }
    }

    /// Waits for the head of the next answer, interim ones included, and sends what waits. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn next_head(&mut self) -> Result<Step<()>, Fault> {
        let mut looked = 0usize;
        loop {
            if let Some(end) = answer_head::end(&self.wire.input, &mut looked)? {
                if end > LARGEST_HEAD {
                    return Err(Fault::Invalid("its head is larger than 64 KiB"));
                }
                let raw = self.wire.input.split_to(end).freeze();
                let answer = AnswerHead::parse(raw, self.asked)?;
                self.incoming = answer.framing().into();
                self.persists &= answer.persists();
                self.answer = Some(answer);
                return Ok(Step::Came(()));
            }
            if self.wire.input.len() > LARGEST_HEAD {
                return Err(Fault::Invalid("its head is larger than 64 KiB"));
            }
            match poll_fn(|context| self.poll_step(context)).await? {
                Step::Came(0) => {
                    return Err(if self.wire.input.is_empty() { Fault::Closed } else { Fault::Cut });
                }
                Step::Came(_) => {}
                Step::Sent => return Ok(Step::Sent),
                Step::Unsendable => return Ok(Step::Unsendable),
            }
        }
    }

    /// Waits for the next piece of the answer's body, `None` at its end, and sends what waits. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`]: a body that ends before its framing says so is [`Fault::Cut`].
    pub async fn next_piece(&mut self) -> Result<Step<Option<Bytes>>, Fault> {
        loop {
            if let Some(piece) = self.wire.take_piece(&mut self.incoming)? {
                return Ok(Step::Came(Some(piece)));
            }
            if matches!(self.incoming, Incoming::Done) {
                return Ok(Step::Came(None));
            }
            match poll_fn(|context| self.poll_step(context)).await? {
                Step::Came(0) => self.incoming.end()?,
                Step::Came(_) => {}
                Step::Sent => return Ok(Step::Sent),
                Step::Unsendable => return Ok(Step::Unsendable),
            }
        }
    }

    /// Sends what the connection takes, then reads once; [`Step::Came`] has how much.
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Step<usize>>> {
        if self.has_output() {
            match self.poll_send(context) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(Step::Sent)),
                Poll::Ready(Err(_)) => {
                    self.throw_away();
                    self.takes_no_more = true;
                    return Poll::Ready(Ok(Step::Unsendable));
                }
                Poll::Pending => {}
            }
        }
        self.wire.poll_fill(context).map_ok(Step::Came)
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.has_bytes() {
            let gathered = self.wire.output.get(self.sent..).unwrap_or(&[]);
            let stream = Pin::new(&mut self.wire.stream);
            let written = if self.large.is_empty() && self.behind.is_empty() {
                ready!(stream.poll_write(context, gathered))?
            } else {
                // One write of all three, where the connection can do that.
                let slices = [gathered, &self.large, self.behind].map(IoSlice::new);
                let first = slices.iter().position(|slice| !slice.is_empty()).unwrap_or(0);
                ready!(stream.poll_write_vectored(context, slices.get(first..).unwrap_or(&[])))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.note_written(written);
        }
        ready!(Pin::new(&mut self.wire.stream).poll_flush(context))?;
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, written: usize) {
        let of_output = written.min(self.wire.output.len().saturating_sub(self.sent));
        self.sent = self.sent.saturating_add(of_output);
        if self.sent == self.wire.output.len() {
            self.wire.output.clear();
            self.sent = 0;
        }
        let written = written.saturating_sub(of_output);
        let of_large = written.min(self.large.len());
        self.large.advance(of_large);
        self.behind = self.behind.get(written.saturating_sub(of_large)..).unwrap_or(&[]);
    }

    fn throw_away(&mut self) {
        self.wire.output.clear();
        self.sent = 0;
        self.large.clear();
        self.behind = b"";
        self.is_unflushed = false;
    }

    /// Whether anything of an answer has come. What the provider has begun must not be asked again.
    pub fn has_begun(&self) -> bool {
        self.answer.is_some() || !self.wire.input.is_empty()
    }

    /// The head read last.
    pub fn answer(&self) -> Option<&AnswerHead> {
        self.answer.as_ref()
    }

    /// After a 101: what the provider sent behind it, and the connection.
    pub fn tunnel(&mut self) -> (BytesMut, &mut Stream) {
        (self.wire.input.split(), &mut self.wire.stream)
    }

    /// The connection, when everything on it was regular and it may carry another exchange.
    pub fn into_reusable(self) -> Option<Stream> {
        let clean = self.answer.is_some() && matches!(self.incoming, Incoming::Done) && self.wire.is_clean();
        (self.persists && clean && !self.has_output()).then_some(self.wire.stream)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use pingora_core::protocols::raw_connect::ProxyDigest;
    use pingora_core::protocols::{
        GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    };
    use proptest::prelude::*;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};

    use super::*;

    fn connection() -> (Provider, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        (Provider::new(Box::new(ours)), theirs)
    }

    /// What an answer in these pieces, then the end of the connection, reads as.
    async fn read(pieces: &[&[u8]], to_head: bool) -> (Result<(u16, Vec<u8>), Fault>, bool) {
        let (mut http, mut provider) = connection();
        let asked = if to_head { Asked::Head } else { Asked::Ordinary };
        http.put_head(Vec::new(), Framing::None, asked);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let writing = tokio::spawn(async move {
            for piece in pieces {
                provider.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let reading = async {
            while !matches!(http.next_head().await?, Step::Came(())) {}
            let mut body = Vec::new();
            loop {
                match http.next_piece().await? {
                    Step::Came(Some(piece)) => body.extend_from_slice(&piece),
                    Step::Came(None) => break,
                    Step::Sent | Step::Unsendable => {}
                }
            }
            Ok((http.answer().unwrap().status(), body))
        };
        let outcome = reading.await;
        writing.await.unwrap();
        (outcome, http.into_reusable().is_some())
    }

    #[tokio::test]
    async fn every_framing_is_read_to_its_end_and_only_clean_connections_live_on() {
        for (answer, body, lives) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..], &b"hello"[..], true),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", true),
            (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}", b"{}", true),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"", true),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;x\r\nhello\r\n0\r\nx: y\r\n\r\n", b"hello", true),
            (b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 2\r\n\r\n{}", b"{}", false),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}extra", b"{}", false),
            (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", false),
            (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"{}", false),
            (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}", b"{}", true),
        ] {
            let (outcome, alive) = read(&[answer], false).await;
            assert_eq!((outcome.unwrap().1.as_slice(), alive), (body, lives), "{}", answer.escape_ascii());
        }
        let (outcome, alive) = read(&[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"], true).await;
        assert_eq!((outcome.unwrap().1.len(), alive), (0, true), "an answer to HEAD has no body");
    }

    #[tokio::test]
    async fn what_is_cut_or_irregular_is_told_apart_and_never_reused() {
        for (answer, expected) in [
            (&b""[..], "closed"),
            (b"HTTP/1.1 200 OK\r\ncontent", "middle"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", "middle"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "middle"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX", "proper"),
            (b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}", "proper"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}", "proper"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "proper"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "proper"),
            (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "proper"),
            (b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\ncontent-length: 2\r\n\r\n{}", "proper"),
            (b"HTTP/1.1 200 OK\r\nx : a\r\n\r\n", "proper"),
            (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "proper"),
            (b"HTTP/1.1 20 OK\r\n\r\n", "proper"),
            (b"HTTP/2 200 OK\r\n\r\n", "proper"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "proper"),
        ] {
            let (outcome, alive) = read(&[answer], false).await;
            let told = outcome.map(|_| ()).unwrap_err().to_string();
            assert!(told.contains(expected) && !alive, "{}: {told}", answer.escape_ascii());
        }
    }

    #[tokio::test]
    async fn pieces_of_any_size_arrive_in_order_through_any_narrow_connection() {
        for room in [1, 7, 4096, 1 << 20] {
            let (ours, mut provider) = tokio::io::duplex(room);
            let mut http = Provider::new(Box::new(ours));
            let head = Vec::from("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
            http.put_head(head, Framing::Chunked, Asked::Ordinary);
            let receiving = tokio::spawn(async move {
                let mut sent = Vec::new();
                provider.read_to_end(&mut sent).await.unwrap();
                sent
            });
            for size in [5usize, 20_000, 0, 3, 40_000] {
                while !http.has_room() {
                    assert!(matches!(http.next_head().await.unwrap(), Step::Sent));
                }
                http.put_body(vec![b'x'; size].into());
            }
            assert!(!http.has_room() && http.has_output());
            assert!(matches!(http.next_head().await.unwrap(), Step::Sent));
            http.end_body();
            assert!(matches!(http.next_head().await.unwrap(), Step::Sent));
            assert!(!http.has_output());
            drop(http);
            let sent = receiving.await.unwrap();
            let body = sent.splitn(2, |byte| *byte == b'5').nth(1).unwrap();
            assert!(body.starts_with(b"\r\nxxxxx\r\n4e20\r\nxxx") && body.ends_with(b"xxx\r\n0\r\n\r\n"));
            assert_eq!(body.iter().filter(|byte| **byte == b'x').count(), 60_008);
        }
    }

    #[tokio::test]
    async fn an_answer_is_seen_while_the_provider_takes_nothing_more() {
        let (ours, mut provider) = tokio::io::duplex(64);
        let mut http = Provider::new(Box::new(ours));
        http.put_head(Vec::from("POST / HTTP/1.1\r\n\r\n"), Framing::Length(50_000), Asked::Ordinary);
        http.put_body(vec![b'x'; 50_000].into());
        provider.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        assert!(matches!(http.next_head().await.unwrap(), Step::Came(())));
        assert_eq!(http.answer().unwrap().status(), 413);
        assert!(matches!(http.next_piece().await.unwrap(), Step::Came(Some(_))));
        assert!(http.has_output() && http.into_reusable().is_none(), "what was not sent whole carries nothing else");
    }

    /// Takes everything at once and holds it, as TLS may, until it is flushed a second time.
    #[derive(Debug)]
    struct Holding {
        inner: DuplexStream,
        held: Vec<u8>,
        flushes: u32,
    }

    impl AsyncRead for Holding {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Holding {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            if self.flushes % 2 == 1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let held = std::mem::take(&mut self.held);
            assert!(
                matches!(Pin::new(&mut self.inner).poll_write(cx, &held), Poll::Ready(Ok(len)) if len == held.len())
            );
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[async_trait]
    impl Shutdown for Holding {
        async fn shutdown(&mut self) {}
    }

    impl UniqueID for Holding {
        fn id(&self) -> i32 {
            0
        }
    }

    impl Ssl for Holding {}

    impl Peek for Holding {}

    impl GetTimingDigest for Holding {
        fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
            Vec::new()
        }
    }

    impl GetProxyDigest for Holding {
        fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
            None
        }
    }

    impl GetSocketDigest for Holding {
        fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
            None
        }
    }

    #[tokio::test]
    async fn what_the_connection_has_taken_and_holds_is_flushed_until_it_is_out() {
        let (inner, mut provider) = tokio::io::duplex(1 << 20);
        let mut http = Provider::new(Box::new(Holding { inner, held: Vec::new(), flushes: 0 }));
        http.put_head(b"POST / HTTP/1.1\r\n\r\n".to_vec(), Framing::Length(40_000), Asked::Ordinary);
        http.put_body(vec![b'x'; 40_000].into());
        let step = tokio::time::timeout(std::time::Duration::from_secs(5), http.next_head()).await;
        assert!(matches!(step.expect("it is flushed again").unwrap(), Step::Sent));
        assert!(!http.has_output());
        let mut sent = vec![0; b"POST / HTTP/1.1\r\n\r\n".len() + 40_000];
        provider.read_exact(&mut sent).await.unwrap();
        assert!(sent.ends_with(b"xxx"));
    }

    #[tokio::test]
    async fn a_connection_that_takes_no_more_may_have_answered_all_the_same() {
        let (mut http, provider) = connection();
        drop(provider);
        http.put_head(Vec::from("POST / HTTP/1.1\r\n\r\n"), Framing::Length(5), Asked::Ordinary);
        http.put_body(Bytes::from_static(b"hello"));
        assert!(matches!(http.next_head().await.unwrap(), Step::Unsendable));
        assert!(!http.has_output() && !http.has_room());
        assert!(matches!(http.next_head().await, Err(Fault::Closed)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_split_reads_alike(cut in 0usize..120, second in 0usize..120) {
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n5\r\nhello\r\n6;e=1\r\n world\r\n0\r\n\r\n";
            let (cut, second) = (cut.min(answer.len()), second.min(answer.len()));
            let (low, high) = (cut.min(second), cut.max(second));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (outcome, alive) = runtime.block_on(read(&[&answer[..low], &answer[low..high], &answer[high..]], false));
            prop_assert_eq!(outcome.unwrap(), (200, b"hello world".to_vec()));
            prop_assert!(alive);
        }
    }
}
