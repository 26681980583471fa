//! HTTP/1.1 on a connection: towards clients ([`Client`]) and towards providers ([`Provider`]).
//!
//! Our own, on Pingora's streams and connection pool, because Pingora's sessions repair what should be refused (bare LF,
//! folded lines, Content-Length beside Transfer-Encoding), keep every head in a map that the relay does not need, and
//! write head and body apart. Here heads are judged as bytes and read by position (`llm_proxy_core::http1`), a body
//! piece shares the memory it was read into, and an ordinary message leaves in one write.

mod client;
mod head_reader;
mod provider;

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use llm_proxy_core::http1::answer_head::{BadAnswer, BodyFraming};
use llm_proxy_core::http1::call::Framing;
use llm_proxy_core::http1::chunks::{ChunkRules, Run};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

pub use self::client::{Client, Outgoing, put_date, put_field, put_status};
pub use self::head_reader::{Received, read_head};
pub use self::provider::{Provider, Step};

/// Room for one read.
const READ: usize = 8 * 1024;
/// How long a close waits for the other side.
const LINGER: Duration = Duration::from_millis(500);
/// What is gathered before it is written, so that head and small body leave together.
const GATHERED: usize = 16 * 1024;

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The connection closed before the first byte.
    #[error("the connection closed before an answer")]
    Closed,
    /// The connection ended in the middle.
    #[error("the connection ended in the middle of a message")]
    Cut,
    /// The bytes are no message that can be read in one way only.
    #[error("the message is not proper HTTP: {0}")]
    Invalid(&'static str),
    /// The other side ended the stream of HTTP/2 early.
    #[error("the stream was ended: {0}")]
    Reset(h2::Error),
    /// The provider says that it has not begun to look at the request (RFC 9113 §6.8, §8.7).
    #[error("the stream was refused: {0}")]
    Unprocessed(h2::Error),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl From<BadAnswer> for Fault {
    fn from(BadAnswer(why): BadAnswer) -> Self {
        Self::Invalid(why)
    }
}

/// A connection with what was read and not yet taken, and what was written and not yet sent.
pub struct Wire<S> {
    stream: S,
    input: BytesMut,
    output: Vec<u8>,
}

/// What is still to come of the message that is being read.
enum Incoming {
    Length(u64),
    Chunked(ChunkRules),
    UntilClose,
    Done,
}

impl Incoming {
    /// The connection has ended.
    fn end(&mut self) -> Result<(), Fault> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(Fault::Cut),
        }
    }
}

impl From<Framing> for Incoming {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(ChunkRules::default()),
        }
    }
}

impl From<BodyFraming> for Incoming {
    fn from(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::None | BodyFraming::Length(0) => Self::Done,
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked => Self::Chunked(ChunkRules::default()),
            BodyFraming::UntilClose => Self::UntilClose,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Takes a connection on which nothing is under way.
    pub fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), output: Vec::new() }
    }

    /// The connection, and what was read of it and not taken: for another protocol.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.input)
    }

    /// Whether nothing was read ahead and nothing waits to be sent.
    fn is_clean(&self) -> bool {
        self.input.is_empty() && self.output.is_empty()
    }

    /// Reads once; 0 at the end of the connection. Cancel safe.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.input.capacity().saturating_sub(self.input.len()) < READ / 8 {
            self.input.reserve(READ);
        }
        self.stream.read_buf(&mut self.input).await
    }

    /// The same, as far as it can be done at once.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        pin!(self.fill()).poll(context)
    }

    /// The next piece of a body; `None` at its end. Cancel safe.
    async fn read_piece(&mut self, incoming: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        loop {
            let piece = self.take_piece(incoming)?;
            if piece.is_some() || matches!(incoming, Incoming::Done) {
                return Ok(piece);
            }
            if self.fill().await? == 0 {
                incoming.end()?;
            }
        }
    }

    /// The next piece of a body of what has been read; `None` when more must be, or at its end.
    fn take_piece(&mut self, incoming: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        while !self.input.is_empty() {
            match incoming {
                Incoming::Done => break,
                Incoming::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                    *left = left.saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX));
                    if *left == 0 {
                        *incoming = Incoming::Done;
                    }
                    return Ok(Some(self.input.split_to(taken).freeze()));
                }
                Incoming::Chunked(rules) => match rules.run(&self.input).map_err(Fault::Invalid)? {
                    Run::Framing(taken) => {
                        self.input.advance(taken);
                        if rules.is_done() {
                            *incoming = Incoming::Done;
                        }
                    }
                    Run::Data(taken) => return Ok(Some(self.input.split_to(taken).freeze())),
                    Run::Beyond => *incoming = Incoming::Done,
                },
                Incoming::UntilClose => return Ok(Some(self.input.split().freeze())),
            }
        }
        Ok(None)
    }

    /// Writes a piece of a body, as a chunk or as it is. Small pieces wait for [`Self::flush`]. Not cancel safe.
    async fn write_piece(&mut self, chunked: bool, piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(()); // as a chunk it would be the end
        }
        if chunked {
            put_size(&mut self.output, piece.len());
        }
        let end: &[u8] = if chunked { b"\r\n" } else { b"" };
        if self.output.len().saturating_add(piece.len()) <= GATHERED {
            self.output.extend_from_slice(piece);
            self.output.extend_from_slice(end);
            return Ok(());
        }
        // One write of all three, where the connection can do that.
        let mut whole = Buf::chain(Buf::chain(self.output.as_ref(), piece), end);
        self.stream.write_all_buf(&mut whole).await?;
        self.output.clear();
        Ok(())
    }

    /// Puts the last chunk.
    fn put_last_chunk(&mut self) {
        self.output.extend_from_slice(b"0\r\n\r\n");
    }

    /// Answers a head that never became a call, and closes. Nobody waits for it longer than a moment.
    pub async fn close_with(mut self, answer: &[u8]) {
        self.output.extend_from_slice(answer);
        if matches!(timeout(LINGER, self.flush()).await, Ok(Ok(()))) {
            self.close(true).await;
        }
    }

    /// Closes in order: our end first; then, where `more` may come, what the client still sends is read away for a
    /// moment. Closing with unread bytes makes the kernel reset the connection, and the client could lose an answer that
    /// it has not read yet.
    async fn close(&mut self, more: bool) {
        let closing = async {
            if self.stream.shutdown().await.is_err() || !more {
                return;
            }
            self.input.clear();
            while matches!(self.fill().await, Ok(read) if read > 0) {
                self.input.clear();
            }
        };
        let _ = timeout(LINGER, closing).await;
    }

    /// Sends what waits. Not cancel safe.
    async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
        }
        self.stream.flush().await
    }
}

/// `1f4\r\n`
fn put_size(output: &mut Vec<u8>, size: usize) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut line = [0u8; 18];
    let mut at = line.len();
    let mut left = size;
    for end in b"\n\r" {
        at = at.saturating_sub(1);
        if let Some(octet) = line.get_mut(at) {
            *octet = *end;
        }
    }
    loop {
        at = at.saturating_sub(1);
        if let (Some(octet), Some(digit)) = (line.get_mut(at), DIGITS.get(left & 0xF)) {
            *octet = *digit;
        }
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    output.extend_from_slice(line.get(at..).unwrap_or(&[]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_hexadecimal() {
        for size in [1usize, 9, 10, 15, 16, 255, 256, 4096, 20_000, usize::MAX] {
            let mut output = Vec::new();
            put_size(&mut output, size);
            assert_eq!(output, format!("{size:x}\r\n").as_bytes());
        }
    }

    #[tokio::test]
    async fn pieces_arrive_in_order_however_large_and_an_empty_one_is_none() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(ours);
        for size in [3usize, 0, 20_000, 5, 40_000] {
            wire.write_piece(true, &vec![b'x'; size]).await.unwrap();
        }
        wire.put_last_chunk();
        wire.flush().await.unwrap();
        drop(wire);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.unwrap();
        let mut rules = ChunkRules::default();
        let (mut data, mut at) = (0, 0);
        while at < sent.len() {
            match rules.run(&sent[at..]).unwrap() {
                Run::Framing(taken) => at += taken,
                Run::Data(taken) => (at, data) = (at + taken, data + taken),
                Run::Beyond => panic!("bytes behind the end"),
            }
        }
        assert!(rules.is_done());
        assert_eq!(data, 60_008);
    }
}
