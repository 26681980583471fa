//! A client's connection as bytes, in the clear or under TLS.

mod caller;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

pub use self::caller::{AddressRules, Caller};

/// A client's connection.
pub enum Downstream {
    /// In the clear.
    Plain(Stream),
    /// Under TLS. Boxed, because a connection in the clear should not be as large.
    Tls(Box<Tls>),
}

/// A connection under TLS.
pub struct Tls {
    stream: TlsStream<Stream>,
    /// It ends without a word.
    is_torn: bool,
}

impl Downstream {
    /// The protocol that client and server have agreed upon in their handshake (RFC 7301); none in the clear.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Whether it is under TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What was sent so far is not all: closing says no `close_notify` any more, by which a client tells the end of an
    /// answer from a cut where nothing else does (RFC 8446 §6.1).
    pub fn tear(&mut self) {
        if let Self::Tls(tls) = self {
            tls.is_torn = true;
        }
    }
}

impl From<Stream> for Downstream {
    fn from(stream: Stream) -> Self {
        Self::Plain(stream)
    }
}

impl From<TlsStream<Stream>> for Downstream {
    fn from(stream: TlsStream<Stream>) -> Self {
        Self::Tls(Box::new(Tls { stream, is_torn: false }))
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tls) if tls.is_torn => Pin::new(tls.stream.get_mut().0).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(tls) => tls.stream.is_write_vectored(),
        }
    }
}
