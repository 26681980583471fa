//! A provider in one exchange, whichever version of HTTP it has chosen.
//!
//! The plane relays through this and knows no version, as it does with clients. The larger variant is boxed, so that an
//! exchange over HTTP/1.1 pays a match.

use bytes::{Bytes, BytesMut};
use llm_proxy_core::http1::answer_head::AnswerHead;
use pingora_core::protocols::Stream;

use crate::http1::{self, Fault, Step};
use crate::http2;

/// One exchange with a provider.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one, and a box would cost it an allocation")]
pub enum Provider {
    /// On a connection of its own.
    Http1(http1::Provider),
    /// On a stream of a connection with many.
    Http2(Box<http2::Provider>),
}

impl Provider {
    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        match self {
            Self::Http1(provider) => provider.has_output(),
            Self::Http2(provider) => provider.has_output(),
        }
    }

    /// Whether more of the request's body, or its end, may be put.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Http1(provider) => provider.has_room(),
            Self::Http2(provider) => provider.has_room(),
        }
    }

    /// Puts a piece of the request's body where there [is room](Self::has_room). Small pieces are gathered.
    pub fn put_body(&mut self, piece: Bytes) {
        match self {
            Self::Http1(provider) => provider.put_body(piece),
            Self::Http2(provider) => provider.put_body(piece),
        }
    }

    /// Puts the end of the request's body where there [is room](Self::has_room).
    pub fn end_body(&mut self) {
        match self {
            Self::Http1(provider) => provider.end_body(),
            Self::Http2(provider) => provider.end_body(),
        }
    }

    /// Waits for the head of the next answer, interim ones included, and sends what waits. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn next_head(&mut self) -> Result<Step<()>, Fault> {
        match self {
            Self::Http1(provider) => provider.next_head().await,
            Self::Http2(provider) => provider.next_head().await,
        }
    }

    /// Waits for the next piece of the answer's body, `None` at its end, and sends what waits. Cancel safe.
    ///
    /// # Errors
    /// [`Fault`]: a body that ends before its framing says so is cut.
    pub async fn next_piece(&mut self) -> Result<Step<Option<Bytes>>, Fault> {
        match self {
            Self::Http1(provider) => provider.next_piece().await,
            Self::Http2(provider) => provider.next_piece().await,
        }
    }

    /// Whether anything of an answer has come. What the provider has begun must not be asked again.
    pub fn has_begun(&self) -> bool {
        match self {
            Self::Http1(provider) => provider.has_begun(),
            Self::Http2(provider) => provider.has_begun(),
        }
    }

    /// The head read last.
    pub fn answer(&self) -> Option<&AnswerHead> {
        match self {
            Self::Http1(provider) => provider.answer(),
            Self::Http2(provider) => provider.answer(),
        }
    }

    /// After a 101, which only HTTP/1.1 has: what the provider sent behind it, and the connection.
    pub fn tunnel(&mut self) -> Option<(BytesMut, &mut Stream)> {
        match self {
            Self::Http1(provider) => Some(provider.tunnel()),
            Self::Http2(_) => None,
        }
    }

    /// The connection, when everything on it was regular and it may carry another exchange, alone.
    pub fn into_reusable(self) -> Option<Stream> {
        match self {
            Self::Http1(provider) => provider.into_reusable(),
            Self::Http2(_) => None,
        }
    }
}
