//! One TCP connection, watched on its read side at all times. A provider that only looks at a socket when it has
//! something to write learns of an abort late; the tests want to know when it arrived.

use std::future::pending;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::head::{BadHead, Head};

const READ_BYTES: usize = 64 * 1024;
/// Bytes taken in ahead of their turn while an answer is on its way; more wait in the kernel.
const MAX_EARLY_BYTES: usize = 256 * 1024;

/// The peer closed or reset the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerGone;

/// What stands next on a connection.
pub(super) enum Next {
    Head(Head),
    Bad(BadHead),
    Closed,
}

/// A connection and the bytes read from it but not yet used.
pub(super) struct Connection {
    stream: TcpStream,
    pub(super) buffer: BytesMut,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(16 * 1024) }
    }

    /// The next request head; cancel safe.
    pub(super) async fn next_head(&mut self) -> Next {
        loop {
            match Head::take(&mut self.buffer) {
                Ok(Some(head)) => return Next::Head(head),
                Err(bad) => return Next::Bad(bad),
                Ok(None) => {}
            }
            if self.fill().await.is_err() {
                return Next::Closed;
            }
        }
    }

    /// Waits for more bytes and appends them to the buffer; cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), PeerGone> {
        loop {
            self.stream.readable().await.map_err(|_| PeerGone)?;
            if self.read_ready()? > 0 {
                return Ok(());
            }
        }
    }

    /// Writes all of `bytes`, and stops as soon as the peer is gone.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), PeerGone> {
        let mut left = bytes;
        while !left.is_empty() {
            match self.stream.try_write(left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.until_writable().await?,
                Err(_) => return Err(PeerGone),
            }
        }
        Ok(())
    }

    /// Stays silent for `time`, and stops as soon as the peer is gone.
    pub(super) async fn pause(&mut self, time: Duration) -> Result<(), PeerGone> {
        tokio::select! {
            biased;
            () = self.peer_gone() => Err(PeerGone),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Waits until the peer closes or resets; cancel safe.
    pub(super) async fn peer_gone(&mut self) {
        loop {
            if self.buffer.len() >= MAX_EARLY_BYTES {
                pending::<()>().await;
            }
            if self.fill().await.is_err() {
                return;
            }
        }
    }

    /// Closes the write side: what was written arrives, then the end.
    pub(super) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Makes dropping the connection a TCP reset.
    pub(super) fn reset_on_drop(&mut self) {
        let _ = self.stream.set_zero_linger();
    }

    async fn until_writable(&mut self) -> Result<(), PeerGone> {
        loop {
            let watched = self.buffer.len() < MAX_EARLY_BYTES;
            let interest = if watched { Interest::READABLE.add(Interest::WRITABLE) } else { Interest::WRITABLE };
            let ready = self.stream.ready(interest).await.map_err(|_| PeerGone)?;
            if watched && ready.is_readable() {
                self.read_ready()?;
            }
            if ready.is_writable() {
                return Ok(());
            }
        }
    }

    /// Takes what the socket has now; 0 if it has nothing.
    fn read_ready(&mut self) -> Result<usize, PeerGone> {
        if self.buffer.capacity().saturating_sub(self.buffer.len()) < READ_BYTES / 16 {
            self.buffer.reserve(READ_BYTES);
        }
        match self.stream.try_read_buf(&mut self.buffer) {
            Ok(0) => Err(PeerGone),
            Ok(bytes) => Ok(bytes),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(_) => Err(PeerGone),
        }
    }
}
