//! One connection, driven byte by byte: what a polite client never does must be easy to write here.
//!
//! The harness's `Raw` reads whole answers; here they are read piece by piece, HTTP/1.0 is spoken too, and scripted
//! upstreams use the other side of it. A peer that says nothing for [`PATIENCE`] fails the test: a hang is a failure.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use llm_proxy_tests::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// A connection, as its client or, for a scripted upstream, as its server.
pub struct Wire {
    pub stream: TcpStream,
    buffer: BytesMut,
    left: Left,
}

/// How much of the current message's body is still to come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    Nothing,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    Trailer,
    UntilClose,
}

/// What a body brings next.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Data(Vec<u8>),
    /// Its own framing says so.
    End,
    /// The connection ended first.
    Broken,
}

/// A message's head, names in lower case.
#[derive(Clone, Debug)]
pub struct Head {
    /// The first line.
    pub line: String,
    pub status: u16,
    pub fields: Vec<(String, String)>,
}

impl Head {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|(found, _)| found == name).count()
    }

    pub fn says_close(&self) -> bool {
        self.field("connection").is_some_and(|options| options.to_ascii_lowercase().contains("close"))
    }

    /// The proxy's id of the exchange.
    pub fn id(&self) -> String {
        self.field("x-llm-proxy-request-id").unwrap_or_else(|| panic!("no request id in {self:?}")).to_owned()
    }
}

/// An answer, as far as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
    /// The body ended by its own framing.
    pub whole: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// The code of one of our own answers, OpenAI's form.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Wire {
    pub async fn open(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect(to).await.unwrap_or_else(|error| panic!("connecting to {to}: {error}")))
    }

    /// A connection whose client takes little before the sender feels it.
    pub async fn open_narrow(to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::of(socket.connect(to).await.unwrap())
    }

    pub fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: BytesMut::with_capacity(16 * 1024), left: Left::Nothing }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the peer takes what is sent");
    }

    /// Sends, where the peer may have closed.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("the peer read nothing for 20 s")
    }

    /// Sends to a peer that may take its time, or all the time there is.
    pub async fn try_send_unhurried(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends `piece` again and again until the peer takes nothing for a second, or `most` bytes are sent.
    pub async fn send_until_held_back(&mut self, piece: &[u8], most: usize) -> usize {
        let mut sent = 0;
        while sent < most {
            match timeout(Duration::from_secs(1), self.stream.write(piece)).await {
                Ok(written) => sent += written.expect("the peer is there"),
                Err(_) => break,
            }
        }
        sent
    }

    /// Sends until all is sent, an answer's head is here, or the peer takes no more.
    pub async fn send_until_answered(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() && !self.buffer.windows(4).any(|window| window == b"\r\n\r\n") {
            let ready = timeout(PATIENCE, self.stream.ready(Interest::READABLE | Interest::WRITABLE)).await;
            let ready = ready.expect("the peer neither reads nor answers").unwrap();
            if ready.is_readable() && matches!(self.stream.try_read_buf(&mut self.buffer), Ok(0)) {
                return;
            }
            match self.stream.try_write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// Closes the sending side only.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Leaves with a TCP reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Reads once. `false`: the peer closed or reset the connection.
    async fn fill(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        read.unwrap_or_else(|_| panic!("nothing came for 20 s, after {:?}", self.buffer)).is_ok_and(|read| read > 0)
    }

    /// The bytes up to and with `mark`. `None`: the connection ended first.
    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return Some(self.buffer.split_to(at + mark.len()).to_vec());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next head, and the framing of its body. `None`: the connection ended before it.
    pub async fn try_head(&mut self) -> Option<Head> {
        let text = String::from_utf8(self.until(b"\r\n\r\n").await?).expect("a head is text");
        let mut lines = text.trim_end().split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok()).unwrap_or(0);
        let fields: Vec<(String, String)> = lines
            .map(|field| field.split_once(':').unwrap_or_else(|| panic!("no field: {field:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let head = Head { line, status, fields };
        let chunked = head.field("transfer-encoding").is_some();
        assert!(!(chunked && head.field("content-length").is_some()), "two framings: {head:?}");
        self.left = match head.field("content-length") {
            _ if chunked => Left::ChunkSize,
            Some(length) => Left::Length(length.parse().expect("a length is a number")),
            None if status >= 200 && !matches!(status, 204 | 304) => Left::UntilClose,
            None => Left::Nothing,
        };
        Some(head)
    }

    /// The next head.
    pub async fn head(&mut self) -> Head {
        self.try_head().await.expect("the connection ended where a head was due")
    }

    /// What the body brings next.
    pub async fn piece(&mut self) -> Piece {
        loop {
            let held = self.buffer.len() as u64;
            match self.left {
                Left::Nothing => return Piece::End,
                Left::Length(0) => self.left = Left::Nothing,
                Left::Length(left) if held > 0 => {
                    return self.take(left.min(held), Left::Length(left - left.min(held)));
                }
                Left::Chunk(0) if held >= 2 => {
                    assert_eq!(&self.buffer[..2], b"\r\n", "a chunk is as long as it says");
                    self.buffer.advance(2);
                    self.left = Left::ChunkSize;
                }
                Left::Chunk(left) if left > 0 && held > 0 => {
                    return self.take(left.min(held), Left::Chunk(left - left.min(held)));
                }
                Left::ChunkSize | Left::Trailer => {
                    let Some(line) = self.until(b"\r\n").await else { return Piece::Broken };
                    let line = String::from_utf8(line).expect("a chunk line is text");
                    let line = line.trim_end();
                    self.left = match self.left {
                        Left::Trailer if line.is_empty() => Left::Nothing,
                        Left::Trailer => Left::Trailer,
                        _ => match u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16) {
                            Ok(0) => Left::Trailer,
                            Ok(size) => Left::Chunk(size),
                            Err(_) => panic!("no chunk size: {line:?}"),
                        },
                    };
                }
                Left::UntilClose if held > 0 => return self.take(held, Left::UntilClose),
                waiting => {
                    if !self.fill().await {
                        self.left = Left::Nothing;
                        return if waiting == Left::UntilClose { Piece::End } else { Piece::Broken };
                    }
                }
            }
        }
    }

    fn take(&mut self, bytes: u64, then: Left) -> Piece {
        self.left = then;
        Piece::Data(self.buffer.split_to(bytes as usize).to_vec())
    }

    /// The rest of the body, and whether it ended by its framing.
    pub async fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            match self.piece().await {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::End => return (body, true),
                Piece::Broken => return (body, false),
            }
        }
    }

    /// Reads until the body holds `text`.
    pub async fn until_body_has(&mut self, text: &str) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            match self.piece().await {
                Piece::Data(data) => body.extend_from_slice(&data),
                ended => panic!("{ended:?} before {text:?}, after {}", String::from_utf8_lossy(&body)),
            }
            if body.windows(text.len()).any(|window| window == text.as_bytes()) {
                return body;
            }
        }
    }

    /// The next final answer. `None`: the connection ended before its head was whole.
    pub async fn try_answer(&mut self) -> Option<Answer> {
        loop {
            let head = self.try_head().await?;
            if head.status >= 200 {
                let (body, whole) = self.rest().await;
                return Some(Answer { head, body, whole });
            }
        }
    }

    /// The next final answer.
    pub async fn answer(&mut self) -> Answer {
        self.try_answer().await.expect("the connection ended where an answer was due")
    }

    /// The next final answer's head, where no body may follow: HEAD.
    pub async fn answer_without_body(&mut self) -> Head {
        let head = self.head().await;
        self.left = Left::Nothing;
        head
    }

    /// Sends a request and takes its answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// Waits for the peer's close and returns what came before it.
    pub async fn closed(&mut self) -> Vec<u8> {
        while self.fill().await {}
        self.buffer.split().to_vec()
    }

    /// The next request, for a scripted upstream: head and whole body. `None`: the connection ended.
    pub async fn request(&mut self) -> Option<(Head, Vec<u8>)> {
        let head = self.try_head().await?;
        let (body, whole) = self.rest().await;
        whole.then_some((head, body))
    }
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Ask {
    line: String,
    fields: String,
}

impl Ask {
    pub fn new(method: &str, target: &str) -> Self {
        Self { line: format!("{method} {target} HTTP/1.1"), fields: "host: proxy.test\r\n".to_owned() }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    pub fn http10(mut self) -> Self {
        self.line = self.line.replace("HTTP/1.1", "HTTP/1.0");
        self
    }

    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        write!(self.fields, "{name}: {value}\r\n").unwrap();
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.with("authorization", format_args!("Bearer {token}"))
    }

    pub fn fault(self, fault: &str) -> Self {
        self.with("x-mock-fault", fault)
    }

    pub fn json_type(self) -> Self {
        self.with("content-type", "application/json")
    }

    /// The head, whose framing is the caller's.
    pub fn head(&self) -> Vec<u8> {
        format!("{}\r\n{}\r\n", self.line, self.fields).into_bytes()
    }

    /// Head and body with its length.
    pub fn body(self, body: impl AsRef<[u8]>) -> Vec<u8> {
        let body = body.as_ref();
        let mut request = self.with("content-length", body.len()).head();
        request.extend_from_slice(body);
        request
    }

    /// Head and body in chunks of these sizes, the last of them for the rest.
    pub fn chunks(self, body: impl AsRef<[u8]>, sizes: &[usize]) -> Vec<u8> {
        let mut request = self.with("transfer-encoding", "chunked").head();
        request.extend_from_slice(&chunked(body.as_ref(), sizes));
        request
    }
}

/// The chunked form of a body: chunks of these sizes in turn.
pub fn chunked(mut body: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(body.len() + 64);
    for size in sizes.iter().cycle() {
        if body.is_empty() {
            break;
        }
        let (chunk, rest) = body.split_at((*size).min(body.len()));
        framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
        body = rest;
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    framed
}

/// CRC-32 as the mock counts it.
pub fn crc32(body: &[u8]) -> u64 {
    let mut crc = flate2::Crc::new();
    crc.update(body);
    u64::from(crc.sum())
}
