//! One exchange with a provider: a request written, an answer read strictly.

use std::io;

use bytes::{Bytes, BytesMut};
use llm_proxy_core::http1::answer_head::{self, AnswerHead, Asked};
use llm_proxy_core::http1::call::Framing;
use pingora_core::protocols::Stream;

use super::{Fault, Incoming, Wire};

/// The largest head of an answer taken, in bytes.
const LARGEST_HEAD: usize = 64 * 1024;

/// One exchange on one connection to a provider.
pub struct Provider {
    wire: Wire<Stream>,
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
            framing: Framing::None,
            asked: Asked::Ordinary,
            answer: None,
            persists: true,
            incoming: Incoming::Done,
        }
    }

    /// Puts the request's head together with what follows; [`Self::flush`] sends it.
    pub fn put_head(&mut self, head: Vec<u8>, framing: Framing, asked: Asked) {
        self.wire.output = head;
        self.framing = framing;
        self.asked = asked;
    }

    /// Whether something waits for [`Self::flush`].
    pub fn has_output(&self) -> bool {
        !self.wire.output.is_empty()
    }

    /// Writes a piece of the request's body. Small pieces are gathered. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_body(&mut self, piece: &[u8]) -> io::Result<()> {
        self.wire.write_piece(self.framing == Framing::Chunked, piece).await
    }

    /// Puts the end of the request's body; [`Self::flush`] sends it.
    pub fn end_body(&mut self) {
        if self.framing == Framing::Chunked {
            self.wire.put_last_chunk();
        }
    }

    /// Sends what waits. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.wire.flush().await
    }

    /// Reads the head of the next answer, interim ones included. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn read_head(&mut self) -> Result<(), Fault> {
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
                return Ok(());
            }
            if self.wire.input.len() > LARGEST_HEAD {
                return Err(Fault::Invalid("its head is larger than 64 KiB"));
            }
            if self.wire.fill().await? == 0 {
                return Err(if self.wire.input.is_empty() { Fault::Closed } else { Fault::Cut });
            }
        }
    }

    /// Whether anything of an answer has come. What the provider has begun must not be asked again.
    pub fn has_begun(&self) -> bool {
        self.answer.is_some() || !self.wire.input.is_empty()
    }

    /// The head read last.
    pub fn answer(&self) -> Option<&AnswerHead> {
        self.answer.as_ref()
    }

    /// The next piece of the answer's body; `None` at its end. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`]: a body that ends before its framing says so is [`Fault::Cut`].
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, Fault> {
        self.wire.read_piece(&mut self.incoming).await
    }

    /// After a 101: what the provider sent behind it, and the connection.
    pub fn tunnel(&mut self) -> (BytesMut, &mut Stream) {
        (self.wire.input.split(), &mut self.wire.stream)
    }

    /// The connection, when everything on it was regular and it may carry another exchange.
    pub fn into_reusable(self) -> Option<Stream> {
        let clean = self.answer.is_some() && matches!(self.incoming, Incoming::Done) && self.wire.is_clean();
        (self.persists && clean).then_some(self.wire.stream)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

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
            http.read_head().await?;
            let mut body = Vec::new();
            while let Some(piece) = http.read_body().await? {
                body.extend_from_slice(&piece);
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
    async fn small_requests_leave_in_one_piece_and_large_ones_whole() {
        let (mut http, mut provider) = connection();
        http.put_head(
            Vec::from("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"),
            Framing::Chunked,
            Asked::Ordinary,
        );
        http.write_body(b"hello").await.unwrap();
        http.write_body(&[b'x'; 20_000]).await.unwrap();
        http.end_body();
        http.flush().await.unwrap();
        assert!(!http.has_output());
        drop(http);
        let mut sent = Vec::new();
        provider.read_to_end(&mut sent).await.unwrap();
        let body = sent.splitn(2, |byte| *byte == b'5').nth(1).unwrap();
        assert!(body.starts_with(b"\r\nhello\r\n4e20\r\nxxx") && body.ends_with(b"xxx\r\n0\r\n\r\n"));
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
