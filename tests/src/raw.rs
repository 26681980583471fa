//! A client connection driven byte by byte, which tells a clean end from a broken one.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{Ask, PATIENCE};

const READ_BYTES: usize = 64 * 1024;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its own framing: the last chunk, or all of its length.
    Clean,
    /// The connection was closed. For an answer with framing that is too early.
    Fin,
    /// The connection was reset.
    Reset,
}

/// An answer's head.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The head byte for byte.
    pub raw: Vec<u8>,
}

/// An answer, as far as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The head byte for byte.
    pub raw_head: Vec<u8>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// How it ended.
    pub ended: Ended,
    /// The last chunk, or all of the length, was there. Never true of an answer that ends with its connection.
    pub complete: bool,
    /// Chunks, if it was chunked.
    pub chunks: usize,
}

impl Head {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

impl Answer {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// How many fields have this name.
    pub fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(found, _)| found == name).count()
    }

    /// The proxy's id of the exchange.
    ///
    /// # Panics
    /// When there is none.
    pub fn id(&self) -> String {
        self.header("x-llm-proxy-request-id").unwrap_or_else(|| panic!("no request id: {self:?}")).to_owned()
    }

    /// The body as text, for messages and searches.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Whether the server said that it closes.
    pub fn says_close(&self) -> bool {
        self.header("connection").is_some_and(|options| options.to_ascii_lowercase().contains("close"))
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// One connection.
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = patient("connecting", TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends one request on its own connection and reads the answer.
    pub async fn ask(addr: SocketAddr, ask: &Ask) -> Answer {
        Self::connect(addr).await.exchange(ask).await
    }

    /// Sends a request here and reads the answer.
    pub async fn exchange(&mut self, ask: &Ask) -> Answer {
        // The server may answer and close before it has read everything: that answer is what counts.
        let _ = self.try_write(&ask.bytes()).await;
        self.read_answer(ask.is_head()).await
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When the connection breaks.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).await.unwrap();
    }

    /// Sends bytes, as far as the other side lets us.
    pub async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        patient("writing", self.stream.write_all(bytes)).await
    }

    /// Closes our direction.
    pub async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// The next head, interim ones (1xx) included.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn read_head(&mut self) -> Head {
        match self.try_read_head().await {
            Ok(head) => head,
            Err(ended) => panic!("{ended:?} instead of a head, after {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// The next head, or how the connection ended before one was whole.
    pub async fn try_read_head(&mut self) -> Result<Head, Ended> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let raw: Vec<u8> = self.buffer.drain(..end).collect();
        let text = String::from_utf8_lossy(&raw).into_owned();
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        assert!(first.starts_with("HTTP/1.1 "), "not a status line: {first:?}");
        let status = first[9..12].parse().unwrap();
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("not a field: {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Head { status, headers, raw })
    }

    /// Exactly so many bytes.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn read_exact(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            if let Err(ended) = self.fill().await {
                panic!("{ended:?} after {} of {bytes} bytes", self.buffer.len());
            }
        }
        self.buffer.drain(..bytes).collect()
    }

    /// What comes next, at least one byte; nothing once the connection has ended.
    pub async fn read_some(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            let _ = self.fill().await;
        }
        std::mem::take(&mut self.buffer)
    }

    /// Everything until the connection ends.
    pub async fn read_to_end(&mut self) -> (Vec<u8>, Ended) {
        loop {
            if let Err(ended) = self.fill().await {
                return (std::mem::take(&mut self.buffer), ended);
            }
        }
    }

    /// The next final answer, as far as it comes.
    ///
    /// # Panics
    /// When the connection ends before its head, or its chunks are garbled.
    pub async fn read_answer(&mut self, to_head: bool) -> Answer {
        let head = loop {
            let head = self.read_head().await;
            if head.status >= 200 {
                break head;
            }
        };
        self.read_body(head, to_head).await
    }

    /// The rest of an answer whose head was read.
    pub async fn read_body(&mut self, head: Head, to_head: bool) -> Answer {
        let mut answer = Answer {
            status: head.status,
            headers: head.headers,
            raw_head: head.raw,
            body: Vec::new(),
            ended: Ended::Clean,
            complete: true,
            chunks: 0,
        };
        let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
        let is_chunked = answer.header("transfer-encoding").is_some();
        assert!(!(is_chunked && length.is_some()), "two framings: {answer:?}");
        let outcome = if to_head || matches!(answer.status, 204 | 304) {
            Ok(())
        } else if is_chunked {
            self.read_chunks(&mut answer).await
        } else if let Some(length) = length {
            self.read_length(&mut answer, length).await
        } else {
            let (body, ended) = self.read_to_end().await;
            answer.body = body;
            Err(ended)
        };
        if let Err(ended) = outcome {
            answer.ended = ended;
            answer.complete = false;
        }
        answer
    }

    async fn read_length(&mut self, answer: &mut Answer, length: usize) -> Result<(), Ended> {
        loop {
            let take = self.buffer.len().min(length - answer.body.len());
            answer.body.extend(self.buffer.drain(..take));
            if answer.body.len() == length {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn read_chunks(&mut self, answer: &mut Answer) -> Result<(), Ended> {
        loop {
            let line = self.read_line().await?;
            let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("not a chunk size: {line:?}"));
            let mut left = size;
            while left > 0 {
                if self.buffer.is_empty() {
                    self.fill().await?;
                }
                let take = left.min(self.buffer.len());
                answer.body.extend(self.buffer.drain(..take));
                left -= take;
            }
            let end = self.read_line().await?;
            assert!(end.is_empty(), "{end:?} behind a chunk");
            if size == 0 {
                return Ok(());
            }
            answer.chunks += 1;
        }
    }

    async fn read_line(&mut self) -> Result<String, Ended> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Ended> {
        self.buffer.reserve(READ_BYTES);
        match patient("reading", self.stream.read_buf(&mut self.buffer)).await {
            Ok(0) => Err(Ended::Fin),
            Ok(_) => Ok(()),
            Err(_) => Err(Ended::Reset),
        }
    }
}

pub(crate) async fn patient<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: nothing happens for {PATIENCE:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn read(wire: &'static [u8]) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(wire).await.unwrap();
        });
        Raw::connect(addr).await.read_answer(false).await
    }

    #[tokio::test]
    async fn a_whole_answer_is_told_from_a_broken_one() {
        for (wire, body, ended) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"[..], "ab", Ended::Clean),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", "ab", Ended::Fin),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", "ab", Ended::Clean),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", "ab", Ended::Fin),
            (b"HTTP/1.1 200 OK\r\n\r\nab", "ab", Ended::Fin),
            (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", Ended::Clean),
        ] {
            let answer = read(wire).await;
            assert_eq!((answer.text().as_str(), answer.ended), (body, ended), "{}", String::from_utf8_lossy(wire));
            assert_eq!(answer.complete, ended == Ended::Clean);
        }
    }
}
