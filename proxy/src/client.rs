//! A client in one exchange, whichever version of HTTP it speaks.
//!
//! The plane relays through this and knows no version. Which one it is was decided with the connection: a match on two
//! variants, no virtual calls. The rare and large one is boxed, so that an exchange over HTTP/1.1 pays nothing for it.

use std::io;

use bytes::Bytes;

use crate::downstream::Downstream;
use crate::http1::{self, Fault, Outgoing, Wire};
use crate::http2;

/// One exchange with a client.
pub enum Client {
    /// On a connection of its own.
    Http1(http1::Client),
    /// On a stream of a connection with many.
    Http2(Box<http2::Client>),
}

impl Client {
    /// The exchange as HTTP/1.1 has it, for what only HTTP/1.1 can do: switch to WebSocket.
    pub fn http1(&mut self) -> Option<&mut http1::Client> {
        match self {
            Self::Http1(client) => Some(client),
            Self::Http2(_) => None,
        }
    }

    /// The connection ends with this exchange, and its answer says so if none has begun yet. A stream ends anyway, and
    /// its connection is told to go by whoever has it.
    pub fn close_after(&mut self) {
        if let Self::Http1(client) = self {
            client.close_after();
        }
    }

    /// Whether all of the request's body has been read.
    pub fn body_is_over(&self) -> bool {
        match self {
            Self::Http1(client) => client.body_is_over(),
            Self::Http2(client) => client.body_is_over(),
        }
    }

    /// Whether what the client still has to send is known to be so little that the connection can outlive an answer given
    /// now. A stream is no connection.
    pub fn rest_is_small(&self) -> bool {
        match self {
            Self::Http1(client) => client.rest_is_small(),
            Self::Http2(_) => true,
        }
    }

    /// The next piece of the request's body; `None` at its end. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`]: a body that ends before its framing says so is [`Fault::Cut`].
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, Fault> {
        match self {
            Self::Http1(client) => client.read_body().await,
            Self::Http2(client) => client.read_body().await,
        }
    }

    /// Ends when the client has closed its side, or reset its stream. Cancel safe.
    pub async fn left(&mut self) {
        match self {
            Self::Http1(client) => client.left().await,
            Self::Http2(client) => client.left().await,
        }
    }

    /// Asks for the request's body (RFC 9110 §15.2.1). Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_continue(&mut self) -> io::Result<()> {
        match self {
            Self::Http1(client) => client.write_continue().await,
            Self::Http2(client) => client.write_continue(),
        }
    }

    /// Sends an interim answer (RFC 9110 §15.2); HTTP/1.0 has none. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_interim<'a>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> io::Result<()> {
        match self {
            Self::Http1(client) => client.write_interim(status, fields).await,
            Self::Http2(client) => client.write_interim(status, fields),
        }
    }

    /// Puts the head of the final answer; the body, or [`Self::flush`], sends it. Framing and, where the fields have
    /// none, `date` are written here.
    pub fn put_head<'a>(&mut self, status: u16, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, framing: Outgoing) {
        match self {
            Self::Http1(client) => client.put_head(status, fields, framing),
            Self::Http2(client) => client.put_head(status, fields, framing),
        }
    }

    /// The framing of the final answer, once its head has been put.
    pub fn answer(&self) -> Option<Outgoing> {
        match self {
            Self::Http1(client) => client.answer(),
            Self::Http2(client) => client.answer(),
        }
    }

    /// Writes a piece of the answer's body, if it may have one. Small pieces wait for [`Self::flush`]. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write_body(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Http1(client) => client.write_body(piece).await,
            Self::Http2(client) => client.write_body(piece).await,
        }
    }

    /// Sends what waits. Not cancel safe.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Http1(client) => client.flush().await,
            Self::Http2(client) => client.flush().await,
        }
    }

    /// Puts the end of the answer, for a flush to send.
    pub fn end_body(&mut self) {
        match self {
            Self::Http1(client) => client.end_body(),
            Self::Http2(client) => client.end_body(),
        }
    }

    /// Reads away what is left of a small body, so that the connection can live on. A stream is no connection: it reads
    /// away what is left behind its answer.
    pub async fn drain(&mut self) {
        if let Self::Http1(client) = self {
            client.drain().await;
        }
    }

    /// After a whole answer: the HTTP/1.1 connection for the next request, where it lives on.
    pub async fn conclude(self) -> Option<Wire<Downstream>> {
        match self {
            Self::Http1(client) => client.conclude().await,
            Self::Http2(client) => {
                client.conclude().await;
                None
            }
        }
    }

    /// Ends the connection, or the stream, in the middle of an answer: nothing looks like an end.
    pub async fn break_off(self) {
        match self {
            Self::Http1(client) => client.break_off().await,
            Self::Http2(client) => client.break_off().await,
        }
    }
}
