//! The client's byte stream with our rules below Pingora's parser.
//!
//! Three things cannot be had above it. Chunk framing is read by Pingora more laxly than RFC 9112 §7.1 says, so a state
//! machine checks the grammar on the bytes as they are read. And a Content-Length answer is flushed only at its end,
//! so while [`Guard::flush_each_write`] is on, every write goes out at once. And an answer's head would cost two maps of
//! its fields, so Pingora writes one with framing alone, and [`Guard::add_fields`] puts the provider's fields into it on
//! its way out: the counterpart of the framing head that its session reads.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BufMut, BytesMut};
use parking_lot::Mutex;
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
    /// Field lines for the head that is written next.
    fields: Mutex<Option<BytesMut>>,
    /// Taken from the writer and not yet by the connection.
    output: BytesMut,
}

impl Guard {
    /// Wraps a new connection.
    pub fn new(inner: Stream) -> Self {
        Self {
            inner,
            chunks: None,
            flush_each_write: AtomicBool::new(false),
            fields: Mutex::new(None),
            output: BytesMut::new(),
        }
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
        *self.fields.get_mut() = None;
        self.chunks = chunked.then(ChunkRules::default);
        self.chunks.as_mut().map_or(Ok(()), |rules| rules.feed(beyond))
    }

    /// From now on until the next request, nothing written waits in a buffer.
    pub fn flush_each_write(stream: &Stream) {
        if let Some(guard) = stream.as_any().downcast_ref::<Self>() {
            guard.flush_each_write.store(true, Ordering::Relaxed);
        }
    }

    /// Puts field lines, each with its CRLF, into the head that is written next, behind its status line.
    pub fn add_fields(stream: &Stream, fields: BytesMut) {
        if let Some(guard) = stream.as_any().downcast_ref::<Self>() {
            *guard.fields.lock() = Some(fields);
        }
    }

    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn flush_now(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if *self.flush_each_write.get_mut() {
            // Pending is fine: the bytes are the inner stream's, and the next write or flush goes on with them.
            let _ = Pin::new(&mut self.inner).poll_flush(cx)?;
        }
        Ok(())
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
        ready!(self.poll_output(cx))?;
        if let Some(fields) = self.fields.get_mut().take() {
            let status_line = memchr::memchr(b'\n', buf).map_or(buf.len(), |end| end.saturating_add(1));
            let (status_line, rest) = buf.split_at_checked(status_line).unwrap_or((buf, &[]));
            self.output.reserve(buf.len().saturating_add(fields.len()));
            self.output.put_slice(status_line);
            self.output.put_slice(&fields);
            self.output.put_slice(rest);
            // What does not go now goes before anything that is written later.
            let _ = self.poll_output(cx)?;
            self.flush_now(cx)?;
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.flush_now(cx)?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_output(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_output(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.fields.get_mut().is_some() {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        ready!(self.poll_output(cx))?;
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        self.flush_now(cx)?;
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What arrives of these writes when field lines were added before, and the pipe takes so many bytes at a time.
    async fn arrived(pipe: usize, writes: &[&[u8]]) -> Vec<u8> {
        let (ours, mut theirs) = tokio::io::duplex(pipe);
        let mut stream: Stream = Box::new(Guard::new(Box::new(ours)));
        Guard::add_fields(&stream, BytesMut::from("a: 1\r\nb: 2\r\n"));
        let writes: Vec<Vec<u8>> = writes.iter().map(|write| write.to_vec()).collect();
        let writing = tokio::spawn(async move {
            for write in writes {
                stream.write_all(&write).await.unwrap();
            }
            stream.flush().await.unwrap();
        });
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        writing.await.unwrap();
        all
    }

    #[tokio::test]
    async fn fields_stand_behind_the_status_line_however_little_the_client_takes() {
        for pipe in [1, 3, 16, 4096] {
            let all = arrived(pipe, &[b"HTTP/1.1 200 OK\r\nc: 3\r\n\r\n", b"body", b" and more"]).await;
            assert_eq!(all, b"HTTP/1.1 200 OK\r\na: 1\r\nb: 2\r\nc: 3\r\n\r\nbody and more", "pipe of {pipe}");
        }
    }

    #[tokio::test]
    async fn fields_that_no_head_took_are_forgotten_with_their_request() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut guard = Guard::new(Box::new(ours));
        *guard.fields.get_mut() = Some(BytesMut::from("x: left over\r\n"));
        guard.arm(false, b"").unwrap();
        guard.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        guard.flush().await.unwrap();
        drop(guard);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"HTTP/1.1 200 OK\r\n\r\n");
    }

    #[tokio::test]
    async fn broken_chunk_grammar_is_a_framing_fault_and_a_close_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut guard = Guard::new(Box::new(ours));
        guard.arm(true, b"5\r\nhel").unwrap();
        theirs.write_all(b"loX").await.unwrap();
        let broken = guard.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::InvalidData);
        let wrapped = pingora_core::Error::because(pingora_core::ErrorType::ReadError, "body", broken);
        assert!(is_framing_fault(&wrapped));
        assert!(!is_framing_fault(&pingora_core::Error::new(pingora_core::ErrorType::ConnectionClosed)));
        assert!(guard.arm(true, b"zz").is_err());
    }
}
