//! The client's byte stream with our rules below Pingora's parser.
//!
//! Two things cannot be had above it. Chunk framing is read by Pingora more laxly than RFC 9112 §7.1 says, so a state
//! machine checks the grammar on the bytes as they are read. And a Content-Length answer is flushed only at its end,
//! so while [`Guard::flush_each_write`] is on, every write goes out at once.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::chunks::ChunkRules;

/// A client connection with our rules applied. Made once for a connection, armed for each request.
#[derive(Debug)]
pub struct Guard {
    inner: Stream,
    chunks: Option<ChunkRules>,
    flush_each_write: AtomicBool,
}

impl Guard {
    /// Wraps a new connection.
    pub fn new(inner: Stream) -> Self {
        Self { inner, chunks: None, flush_each_write: AtomicBool::new(false) }
    }

    /// Gets the guard back out of the stream that Pingora returned.
    pub fn from_stream(stream: Stream) -> Option<Box<Self>> {
        stream.into_any().downcast().ok()
    }

    /// Sets the rules for the next request. `beyond` are the body bytes that came with its head.
    ///
    /// # Errors
    /// When those bytes break the chunk grammar already.
    pub fn arm(&mut self, chunked: bool, beyond: &[u8]) -> Result<(), &'static str> {
        *self.flush_each_write.get_mut() = false;
        self.chunks = chunked.then(ChunkRules::default);
        self.chunks.as_mut().map_or(Ok(()), |rules| rules.feed(beyond))
    }

    /// From now on until the next request, nothing written waits in a buffer.
    pub fn flush_each_write(stream: &Stream) {
        if let Some(guard) = stream.as_any().downcast_ref::<Self>() {
            guard.flush_each_write.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(rules) = &mut self.chunks {
            let read = buf.filled().get(before..).unwrap_or(&[]);
            if let Err(broken) = rules.feed(read) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, broken)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        if self.flush_each_write.load(Ordering::Relaxed) {
            // Pending is fine: the bytes are the inner stream's, and the next write or flush goes on with them.
            let _ = Pin::new(&mut self.inner).poll_flush(cx)?;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        if self.flush_each_write.load(Ordering::Relaxed) {
            let _ = Pin::new(&mut self.inner).poll_flush(cx)?;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Guard {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Guard {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Guard {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Guard {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Guard {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Guard {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[async_trait]
impl Peek for Guard {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

/// Whether a read failed because the client broke the chunk grammar, rather than because it left.
pub fn is_framing_fault(error: &pingora_core::Error) -> bool {
    if error.etype().as_str().starts_with("Invalid") {
        return true;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.cause.as_deref().map(|cause| cause as _);
    while let Some(found) = cause {
        if found.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            return true;
        }
        cause = found.source();
    }
    false
}

// `IO` asks for it; nothing here needs more than the blanket implementation.
const _: fn() = || {
    fn is_io<T: pingora_core::protocols::IO + Any>() {}
    is_io::<Guard>();
};
