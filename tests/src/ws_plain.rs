//! A WebSocket client that somebody else wrote (tokio-tungstenite): it refuses whatever is not well-formed.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::ws::{Handshake, RawSocket};
use crate::{Head, PATIENCE};

pub use tokio_tungstenite::tungstenite::Message;

/// A client as apps have them.
pub struct Plain<S = TcpStream> {
    socket: WebSocketStream<S>,
    /// The head of the 101.
    pub head: Head,
}

impl Plain {
    /// Opens one.
    ///
    /// # Panics
    /// When it does not open.
    pub async fn open(addr: SocketAddr, handshake: &Handshake) -> Self {
        Self::of(RawSocket::open(addr, handshake).await).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Plain<S> {
    /// Opens one on a connection that is there already.
    ///
    /// # Panics
    /// When it does not open.
    pub async fn open_on(stream: S, handshake: &Handshake) -> Self {
        Self::of(RawSocket::open_on(stream, handshake, b"").await).await
    }

    async fn of(socket: RawSocket<S>) -> Self {
        let (stream, read, head) = socket.into_parts();
        let socket = WebSocketStream::from_partially_read(stream, read, Role::Client, None).await;
        Self { socket, head }
    }

    /// The proxy's id of the exchange.
    ///
    /// # Panics
    /// When there is none.
    pub fn id(&self) -> String {
        let id = self.head.header("x-llm-proxy-request-id");
        id.unwrap_or_else(|| panic!("no request id: {:?}", self.head)).to_owned()
    }

    /// Sends a message.
    ///
    /// # Panics
    /// When the connection breaks, or nobody reads.
    pub async fn send(&mut self, message: Message) {
        timeout(PATIENCE, self.socket.send(message)).await.expect("nobody reads what is sent").unwrap();
    }

    /// Sends a JSON object as text.
    ///
    /// # Panics
    /// As [`Self::send`].
    pub async fn say(&mut self, message: &Value) {
        self.send(Message::text(message.to_string())).await;
    }

    /// The next message, or `None` after the closing handshake.
    ///
    /// # Errors
    /// What was wrong, an end without a close frame included.
    ///
    /// # Panics
    /// When nothing comes.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        timeout(PATIENCE, self.socket.next()).await.expect("nothing comes").transpose()
    }

    /// The next message, which must come.
    ///
    /// # Panics
    /// When the socket is closed or broken instead.
    pub async fn message(&mut self) -> Message {
        self.next().await.unwrap().expect("the socket is closed where a message was due")
    }

    /// Reads JSON messages, text or binary, until one has this member, and returns it.
    ///
    /// # Panics
    /// When the socket is closed or broken first.
    pub async fn until(&mut self, pointer: &str) -> Value {
        self.until_is(pointer, |_| true).await
    }

    /// Reads events until one is of this type, and returns it.
    ///
    /// # Panics
    /// As [`Self::until`].
    pub async fn event(&mut self, kind: &str) -> Value {
        self.until_is("/type", |found| found == kind).await
    }

    /// Begins the closing handshake, takes the rest in, and returns what the other side said.
    ///
    /// # Panics
    /// When the other side does not answer it.
    pub async fn close(mut self, code: u16, reason: &str) -> Option<(u16, String)> {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.send(Message::Close(Some(frame))).await;
        self.closed().await
    }

    /// Takes the rest in up to the end of the connection, and returns code and reason of the close frame.
    ///
    /// # Panics
    /// When it ends without one.
    pub async fn closed(&mut self) -> Option<(u16, String)> {
        let mut close = None;
        while let Some(message) = self.next().await.expect("an end by the closing handshake") {
            if let Message::Close(frame) = message {
                close = frame.map(|frame| (u16::from(frame.code), frame.reason.as_str().to_owned()));
            }
        }
        close
    }

    async fn until_is(&mut self, pointer: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.message().await;
            if !message.is_text() && !message.is_binary() {
                continue;
            }
            let message: Value = serde_json::from_slice(&message.into_data()).expect("a message is JSON");
            if message.pointer(pointer).is_some_and(&is_it) {
                return message;
            }
        }
    }
}
