//! Clients of HTTP/2: a polite one, by the `h2` crate, and one that writes whatever frames it likes.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::request::Builder as Asking;
use http::{HeaderMap, Request};
use llm_proxy_tests::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A connection without TLS, begun by prior knowledge.
pub struct Peer {
    sender: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A stream whose request is on its way.
pub struct Running {
    answer: ResponseFuture,
    pub upload: SendStream<Bytes>,
}

/// An answer as far as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Why the stream ended early.
    pub reset: Option<Reason>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The proxy's id of the exchange.
    pub fn id(&self) -> String {
        self.header("x-llm-proxy-request-id").unwrap_or_else(|| panic!("no request id in {self:?}")).to_owned()
    }
}

/// A request in the making.
pub fn ask(method: &str, path: &str) -> Asking {
    Request::builder().method(method).uri(format!("http://proxy.test{path}"))
}

/// A JSON POST of this token's holder.
pub fn post(path: &str, token: &str) -> Asking {
    ask("POST", path).header("authorization", format!("Bearer {token}")).header("content-type", "application/json")
}

impl Peer {
    pub async fn connect(to: SocketAddr) -> Self {
        Self::with(to, &Builder::new()).await
    }

    pub async fn with(to: SocketAddr, how: &Builder) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = how.handshake(stream).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    /// Sends a head; the body is to follow if `has_body`. `None`: the server takes no more here.
    pub async fn try_begin(&mut self, request: Request<()>, has_body: bool) -> Option<Running> {
        let mut sender = timeout(PATIENCE, self.sender.clone().ready()).await.expect("room for a stream").ok()?;
        let (answer, upload) = sender.send_request(request, !has_body).ok()?;
        Some(Running { answer, upload })
    }

    pub async fn begin(&mut self, asking: Asking, has_body: bool) -> Running {
        let request = asking.body(()).unwrap();
        self.try_begin(request, has_body).await.expect("the server takes another stream")
    }

    /// Sends a request with its body, whose length nobody tells.
    pub async fn send(&mut self, asking: Asking, body: impl Into<Bytes>) -> Running {
        let body = body.into();
        let mut running = self.begin(asking, !body.is_empty()).await;
        if !body.is_empty() {
            running.upload.send_data(body, true).unwrap();
        }
        running
    }

    /// Sends a request and takes its answer.
    pub async fn ask(&mut self, asking: Asking, body: impl Into<Bytes>) -> Answer {
        self.send(asking, body).await.answer().await
    }

    /// Closes the connection as a process does that dies.
    pub fn cut(self) {
        self.connection.abort();
    }
}

impl Running {
    /// The status of the next interim answer.
    pub async fn interim(&mut self) -> (u16, HeaderMap) {
        let interim = poll_fn(|cx| self.answer.poll_informational(cx));
        let interim = timeout(PATIENCE, interim).await.expect("an interim answer comes").unwrap().unwrap();
        (interim.status().as_u16(), interim.headers().clone())
    }

    /// The answer's head, and the body to come.
    pub async fn head(self) -> Result<(Answer, RecvStream, SendStream<Bytes>), h2::Error> {
        let answer = timeout(PATIENCE, self.answer).await.expect("an answer comes")?;
        let (head, body) = answer.into_parts();
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, body: Vec::new(), reset: None };
        Ok((answer, body, self.upload))
    }

    /// The whole answer.
    pub async fn answer(self) -> Answer {
        let (mut answer, mut body, _upload) = self.head().await.unwrap();
        (answer.body, answer.reset) = rest(&mut body).await;
        answer
    }
}

/// The next piece of a body, and so much window again. `None`: its end; an error: it was cut.
pub async fn piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = timeout(PATIENCE, body.data()).await.expect("more of the body");
    if let Some(Ok(piece)) = &piece {
        let _ = body.flow_control().release_capacity(piece.len());
    }
    piece
}

/// The rest of a body, and why it ended early.
pub async fn rest(body: &mut RecvStream) -> (Vec<u8>, Option<Reason>) {
    let mut all = Vec::new();
    while let Some(piece) = piece(body).await {
        match piece {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(error) => return (all, Some(error.reason().unwrap_or(Reason::CONNECT_ERROR))),
        }
    }
    (all, None)
}

/// Reads until the body holds `text`.
pub async fn until_body_has(body: &mut RecvStream, text: &str) -> Vec<u8> {
    let mut all = Vec::new();
    while !all.windows(text.len()).any(|window| window == text.as_bytes()) {
        match piece(body).await {
            Some(Ok(piece)) => all.extend_from_slice(&piece),
            ended => panic!("{ended:?} before {text:?}, after {}", String::from_utf8_lossy(&all)),
        }
    }
    all
}

/// Frame types (RFC 9113 §6).
pub mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const RST_STREAM: u8 = 0x3;
    pub const SETTINGS: u8 = 0x4;
    pub const PING: u8 = 0x6;
    pub const GOAWAY: u8 = 0x7;
    pub const WINDOW_UPDATE: u8 = 0x8;
    pub const CONTINUATION: u8 = 0x9;
}

pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A setting (RFC 9113 §6.5.1).
pub fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A header block of literals that stand in no table (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// A string literal without Huffman coding (RFC 7541 §5.2).
fn text(block: &mut Vec<u8>, text: &str) {
    let mut left = text.len();
    if left < 0x7F {
        block.push(u8::try_from(left).unwrap());
    } else {
        block.push(0x7F);
        left -= 0x7F;
        while left >= 0x80 {
            block.push(u8::try_from(left % 0x80 + 0x80).unwrap());
            left /= 0x80;
        }
        block.push(u8::try_from(left).unwrap());
    }
    block.extend_from_slice(text.as_bytes());
}

/// A header block with the literal at `index` of the dynamic table to come (RFC 7541 §6.2.1).
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    text(&mut block, name);
    text(&mut block, value);
    block
}

/// The pseudo fields of a request, and these.
pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "proxy.test"), (":path", path)];
    [block(&pseudo), block(fields)].concat()
}

/// A connection on which frames are written as they come to mind.
pub struct Frames {
    writing: OwnedWriteHalf,
    reading: JoinHandle<End>,
    resets: Arc<Mutex<Vec<(u32, u32)>>>,
}

/// How the server ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The error code of its last GOAWAY. A reset can take it away.
    pub goaway: Option<u32>,
}

impl Frames {
    /// Connects, with these settings.
    pub async fn open(to: SocketAddr, settings: &[u8]) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (reading, writing) = stream.into_split();
        let resets = Arc::default();
        let reading = tokio::spawn(read_to_end(reading, Arc::clone(&resets)));
        let mut frames = Self { writing, reading, resets };
        frames.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        frames.write(&frame(kind::SETTINGS, 0, 0, settings)).await;
        frames.write(&frame(kind::SETTINGS, 1, 0, &[])).await;
        frames
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        assert!(self.try_write(bytes).await, "the server takes what is written");
    }

    /// `false`: the connection is over.
    pub async fn try_write(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.writing.write_all(bytes)).await.expect("the server reads").is_ok()
    }

    /// Writes as far as the server reads.
    pub async fn write_while_read(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE / 10, self.writing.write_all(bytes)).await;
    }

    /// The streams that the server has reset so far, and their error codes.
    pub fn resets(&self) -> Vec<(u32, u32)> {
        self.resets.lock().unwrap().clone()
    }

    pub fn is_over(&self) -> bool {
        self.reading.is_finished()
    }

    /// Waits for the server to end it.
    pub async fn ended(self) -> End {
        timeout(PATIENCE, self.reading).await.expect("the server ends the connection").unwrap()
    }
}

async fn read_to_end(mut stream: OwnedReadHalf, resets: Arc<Mutex<Vec<(u32, u32)>>>) -> End {
    let number = |octets: &[u8]| u32::from_be_bytes(octets.try_into().unwrap());
    let mut end = End { goaway: None };
    let mut buffer = Vec::new();
    loop {
        while buffer.len() >= 9 {
            let length = usize::try_from(u32::from_be_bytes([0, buffer[0], buffer[1], buffer[2]])).unwrap();
            if buffer.len() < 9 + length {
                break;
            }
            match buffer[3] {
                kind::GOAWAY => end.goaway = Some(number(&buffer[13..17])),
                kind::RST_STREAM => resets.lock().unwrap().push((number(&buffer[5..9]), number(&buffer[9..13]))),
                _ => {}
            }
            buffer.drain(..9 + length);
        }
        if !matches!(stream.read_buf(&mut buffer).await, Ok(read) if read > 0) {
            return end;
        }
    }
}
