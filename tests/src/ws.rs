//! WebSockets frame by frame, from either side: what a polite library never sends, and every byte that comes back. The
//! opening (RFC 6455 §4) is checked as strictly as a browser does.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use rand::Rng;
use ring::digest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::raw::patient;
use crate::ws_frames::KEY;
use crate::{Ask, Ended, Head};

pub use crate::ws_frames::{BINARY, CLOSE, FINAL, Frame, PING, PONG, TEXT, close_payload, frame, masked};

/// What a server adds to the key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// How much of what was received is kept to be searched.
const KEPT_BYTES: usize = 256 * 1024;

/// The value of `sec-websocket-accept` that answers this key.
pub fn accept(key: &str) -> String {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(GUID);
    STANDARD.encode(sha1.finish())
}

/// A request for a WebSocket. It offers an extension, as browsers do.
#[derive(Clone, Debug)]
pub struct Handshake {
    ask: Ask,
    key: String,
    protocols: Vec<String>,
}

impl Handshake {
    /// One without a credential.
    pub fn new(target: &str) -> Self {
        let key = STANDARD.encode(rand::rng().random::<[u8; 16]>());
        let ask = Ask::new("GET", target)
            .with("connection", "Upgrade")
            .with("upgrade", "websocket")
            .with("sec-websocket-version", "13")
            .with("sec-websocket-key", &key)
            .with("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
        Self { ask, key, protocols: Vec::new() }
    }

    /// Adds a field behind the others.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if name.eq_ignore_ascii_case("sec-websocket-protocol") {
            self.protocols.extend(value.split(',').map(|item| item.trim().to_owned()));
        }
        self.ask = self.ask.with(name, value);
        self
    }

    /// Takes all fields of this name out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.ask = self.ask.without(name);
        self
    }

    /// The credential as most clients send it.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// The request, for those who want to see it refused.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// The answer, if it opens the WebSocket that was asked for.
    fn check(&self, head: &Head) -> Result<(), String> {
        let text = String::from_utf8_lossy(&head.raw);
        let is = |name: &str, value: &str| head.header(name).is_some_and(|found| found.eq_ignore_ascii_case(value));
        if head.status != 101 || !is("upgrade", "websocket") || !is("connection", "upgrade") {
            return Err(format!("no 101: {text}"));
        }
        if head.header("sec-websocket-accept") != Some(&*accept(&self.key)) {
            return Err(format!("another key was answered: {text}"));
        }
        if head.header("sec-websocket-extensions").is_some() {
            return Err(format!("an extension was agreed on: {text}"));
        }
        match head.header("sec-websocket-protocol") {
            Some(chosen) if !self.protocols.iter().any(|offered| offered == chosen) => {
                Err(format!("a subprotocol that was not offered: {text}"))
            }
            _ => Ok(()),
        }
    }
}

/// How a connection ended that brings no further frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// By a close or by a reset.
    pub how: Ended,
    /// What there was of a frame that never became whole.
    pub half: Vec<u8>,
}

/// Whose frames one sends: clients mask theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Provider,
}

/// A WebSocket, driven frame by frame or byte by byte.
pub struct RawSocket<S = TcpStream> {
    stream: S,
    buffer: BytesMut,
    side: Side,
    /// The head that opened it: of the answer or, on the provider's side, of the request (its status is 0).
    pub head: Head,
    /// What was received, the head included; of much, the first 256 KiB.
    pub seen: Vec<u8>,
}

impl RawSocket {
    /// Opens one.
    ///
    /// # Panics
    /// When it does not open as RFC 6455 wants it.
    pub async fn open(addr: SocketAddr, handshake: &Handshake) -> Self {
        Self::open_with(addr, handshake, b"").await
    }

    /// Opens one, with these bytes in the same write as the request.
    ///
    /// # Panics
    /// As [`Self::open`].
    pub async fn open_with(addr: SocketAddr, handshake: &Handshake, behind: &[u8]) -> Self {
        let stream = patient("connecting", TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::open_on(stream, handshake, behind).await
    }

    /// Opens one whose client takes little before the sender feels it.
    ///
    /// # Panics
    /// As [`Self::open`].
    pub async fn open_narrow(addr: SocketAddr, handshake: &Handshake) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = patient("connecting", socket.connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::open_on(stream, handshake, b"").await
    }

    /// The provider's side of a connection, once the request's head has come; [`Self::switch`] answers it.
    pub(crate) async fn accepted(stream: TcpStream) -> Option<Self> {
        stream.set_nodelay(true).unwrap();
        let mut socket = Self::of(stream, Side::Provider);
        socket.head = socket.read_head().await?;
        Some(socket)
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawSocket<S> {
    /// Opens one on a connection that is there already, with these bytes in the same write as the request.
    ///
    /// # Panics
    /// As [`RawSocket::open`].
    pub async fn open_on(stream: S, handshake: &Handshake, behind: &[u8]) -> Self {
        let mut socket = Self::of(stream, Side::Client);
        socket.send(&[&handshake.ask.bytes()[..], behind].concat()).await;
        socket.head = socket.read_head().await.expect("the connection ended instead of an answer");
        if let Err(fault) = handshake.check(&socket.head) {
            panic!("{fault}{}", String::from_utf8_lossy(&socket.buffer));
        }
        socket
    }

    fn of(stream: S, side: Side) -> Self {
        let head = Head { status: 0, headers: Vec::new(), raw: Vec::new() };
        Self { stream, buffer: BytesMut::new(), side, head, seen: Vec::new() }
    }

    /// Answers the request with 101, with these bytes in the same write.
    ///
    /// # Panics
    /// When the request has no key.
    pub async fn switch(&mut self, behind: &[u8]) {
        let key = self.head.header("sec-websocket-key").expect("a handshake has a key");
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-accept: {}\r\n\r\n",
            accept(key)
        );
        self.send(&[head.as_bytes(), behind].concat()).await;
    }

    /// The proxy's id of the exchange.
    ///
    /// # Panics
    /// When there is none.
    pub fn id(&self) -> String {
        let id = self.head.header("x-llm-proxy-request-id");
        id.unwrap_or_else(|| panic!("no request id: {:?}", self.head)).to_owned()
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When the connection breaks, or nobody reads.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("the peer takes what is sent");
    }

    /// Sends bytes, where the peer may have closed.
    ///
    /// # Errors
    /// When the connection breaks.
    ///
    /// # Panics
    /// When nobody reads.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        patient("sending", async {
            self.stream.write_all(bytes).await?;
            // Under TLS a write may leave something behind.
            self.stream.flush().await
        })
        .await
    }

    /// Sends this again and again until the peer takes nothing for a second, or so many bytes are sent. The last one may
    /// have gone in part only.
    ///
    /// # Panics
    /// When the connection breaks.
    pub async fn send_until_held_back(&mut self, bytes: &[u8], most: usize) -> usize {
        let mut sent = 0;
        while sent < most {
            let rest = &bytes[sent % bytes.len()..];
            match timeout(Duration::from_secs(1), self.stream.write(rest)).await {
                Ok(written) => sent += written.expect("the peer is there"),
                Err(_) => break,
            }
        }
        sent
    }

    /// Sends a frame of this side.
    ///
    /// # Panics
    /// As [`Self::send`].
    pub async fn say(&mut self, first: u8, payload: impl AsRef<[u8]>) {
        let payload = payload.as_ref();
        let bytes = match self.side {
            Side::Client => masked(first, payload, KEY),
            Side::Provider => frame(first, payload),
        };
        self.send(&bytes).await;
    }

    /// Sends `bytes` in pieces of this size while reading until `wanted` bytes have come, and returns those.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn exchange(&mut self, bytes: &[u8], piece: usize, wanted: usize) -> Vec<u8> {
        let (mut from, mut to) = tokio::io::split(&mut self.stream);
        let buffer = &mut self.buffer;
        let sending = async {
            for piece in bytes.chunks(piece) {
                to.write_all(piece).await.unwrap();
                to.flush().await.unwrap();
            }
        };
        let reading = async {
            while buffer.len() < wanted {
                let read = from.read_buf(buffer).await.unwrap();
                assert!(read > 0, "the connection ended after {} of {wanted} bytes", buffer.len());
            }
        };
        patient("sending and reading", async { tokio::join!(sending, reading) }).await;
        self.buffer.split_to(wanted).to_vec()
    }

    /// The next frame, or how the connection ended.
    ///
    /// # Errors
    /// [`End`].
    ///
    /// # Panics
    /// When nothing comes.
    pub async fn next(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(frame) = Frame::take(&mut self.buffer) {
                return Ok(frame);
            }
            if let Err(how) = self.fill().await {
                return Err(End { how, half: self.buffer.split().to_vec() });
            }
        }
    }

    /// The next frame, which must come.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn frame(&mut self) -> Frame {
        self.next().await.unwrap_or_else(|end| panic!("{end:?} instead of a frame"))
    }

    /// Reads until a frame's payload has this text in it, and returns that payload.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            let found = self.frame().await.text();
            if found.contains(text) {
                return found;
            }
        }
    }

    /// All frames until the connection ends, and how it does.
    ///
    /// # Panics
    /// When it does not.
    pub async fn rest(&mut self) -> (Vec<Frame>, End) {
        let mut frames = Vec::new();
        loop {
            match self.next().await {
                Ok(frame) => frames.push(frame),
                Err(end) => return (frames, end),
            }
        }
    }

    /// Reads to the end of the connection, whose last frame must be a close frame, and returns its code and reason.
    ///
    /// # Panics
    /// When there is none, or something behind it.
    pub async fn closed(&mut self) -> (u16, String) {
        let (frames, end) = self.rest().await;
        assert!(end.half.is_empty(), "half a frame at the end: {end:?}");
        let last = frames.last().and_then(Frame::close);
        last.unwrap_or_else(|| panic!("no close frame at the end, but {:?}", frames.last()))
    }

    /// Every byte until the connection ends.
    ///
    /// # Panics
    /// When it does not.
    pub async fn bytes_to_end(&mut self) -> Vec<u8> {
        while self.fill().await.is_ok() {}
        self.buffer.split().to_vec()
    }

    /// Closes the sending direction.
    pub async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The connection, and what was read of it and not used.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>, Head) {
        (self.stream, self.buffer.to_vec(), self.head)
    }

    async fn read_head(&mut self) -> Option<Head> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await.ok()?;
        };
        let raw = self.buffer.split_to(end).to_vec();
        let text = String::from_utf8_lossy(&raw).into_owned();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()).unwrap_or(0);
        let field = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field: {line:?}"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Some(Head { status, headers: lines.map(field).collect(), raw })
    }

    async fn fill(&mut self) -> Result<(), Ended> {
        self.buffer.reserve(64 * 1024);
        let before = self.buffer.len();
        let read = patient("reading", self.stream.read_buf(&mut self.buffer)).await;
        let room = KEPT_BYTES.saturating_sub(self.seen.len());
        self.seen.extend(self.buffer[before..].iter().take(room));
        match read {
            Ok(0) => Err(Ended::Fin),
            Ok(_) => Ok(()),
            Err(_) => Err(Ended::Reset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_key_opens() {
        let handshake = Handshake::new("/").with("sec-websocket-protocol", "realtime, other");
        let right = accept(&handshake.key);
        let right = right.as_str();
        for (accept, more, opens) in [
            (right, None, true),
            (right, Some(("sec-websocket-protocol", "realtime")), true),
            (right, Some(("sec-websocket-protocol", "third")), false),
            (right, Some(("sec-websocket-extensions", "permessage-deflate")), false),
            ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", None, false),
        ] {
            let fields = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept)];
            let headers = fields.into_iter().chain(more);
            let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let head = Head { status: 101, headers, raw: Vec::new() };
            assert_eq!(handshake.check(&head).is_ok(), opens, "{accept} {more:?}");
        }
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
