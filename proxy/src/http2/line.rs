//! One connection of HTTP/2 to a provider: what it may cost us, and how its end is noticed.
//!
//! The protocol is the `h2` crate's. What a provider can make us hold for one connection is bounded here:
//!
//! | what | bound |
//! |---|---|
//! | streams at once | [`STREAMS_OF_A_LINE`], or what the provider takes, if that is less |
//! | an answer's head | `HEADER_LIST` of names, values and 32 octets for each field; no pushed answers |
//! | answers that wait for their clients | `STREAM_WINDOW` each, `CONNECTION_WINDOW` together |
//! | what frames of a few octets cost beside their octets | `SMALL_FRAMES` |
//! | a request on its way out | `SEND_BUFFER`, and what the exchange gathers |
//! | streams that we have reset, remembered for what still comes of them | `MOST_RESETS`, for `RESET_MEMORY` |
//! | answers that break the protocol, over the life of the connection | `MOST_FAULTS`; then it ends |
//!
//! The window of the connection is that of all its streams: a client that reads nothing holds up nobody else's answer. A
//! quarter of a mebibyte in a round trip of 100 ms lets 2.5 MB a second through each stream, which is much for an
//! answer of a model and enough for a download.
//!
//! A connection that is silent may be dead: a network that has lost it tells nobody. It carries everybody's requests, so
//! it is asked with a PING (RFC 9113 §6.7) once it has said nothing for [`QUIET`], and given up when nothing at all
//! comes within [`PATIENCE`].

use std::future::{pending, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

/// Streams of one connection at once: what RFC 9113 §6.5.2 recommends as the least that a provider should take.
pub const STREAMS_OF_A_LINE: usize = 100;
/// Octets of a header list (RFC 9113 §6.5.2).
const HEADER_LIST: u32 = 64 * 1024;
/// Octets of an answer's body that a provider may send ahead.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same over all streams.
const CONNECTION_WINDOW: u32 = 25 * 1024 * 1024;
/// A frame of less than 256 octets counts the octets that it has less, as long as it waits for its client: `h2` needs
/// about so much to remember it. Room for eighty answers that nobody reads, in events of 100 octets.
const SMALL_FRAMES: usize = 32 * 1024 * 1024;
/// Octets of a request's body that wait for the connection.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that we have reset, and of which more may come. Beyond it what comes counts as a fault.
const MOST_RESETS: usize = 1000;
/// How long they are remembered.
const RESET_MEMORY: Duration = Duration::from_secs(5);
/// Streams that were ended because the provider broke the protocol.
const MOST_FAULTS: usize = 1024;

/// How long a connection may be silent until it is asked whether it lives.
const QUIET: Duration = Duration::from_secs(15);
/// And how long it may then still be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// The provider says how many streams it takes at once.
    Takes(usize),
    /// The connection has ended; why, if not in order.
    Over(Option<h2::Error>),
    /// It is silent, and does not answer.
    Silent,
}

/// A connection, to be driven by whoever keeps it. Dropping it ends it, and all its streams.
pub struct Line {
    connection: Connection<Heard, Bytes>,
    heard: Arc<AtomicBool>,
    /// Ends when the provider has been silent for too long.
    silence: Pin<Box<dyn Future<Output = ()> + Send>>,
    takes: Option<usize>,
}

impl Line {
    /// Begins HTTP/2 on a connection (RFC 9113 §3.4). A first stream may be opened at once; the others wait until the
    /// provider has said how many it takes.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn open(stream: Stream) -> Result<(SendRequest<Bytes>, Self), h2::Error> {
        let heard = Arc::new(AtomicBool::new(false));
        let (sender, mut connection) =
            limits().handshake::<_, Bytes>(Heard { stream, heard: Arc::clone(&heard) }).await?;
        let silence = Box::pin(silence(connection.ping_pong(), Arc::clone(&heard)));
        Ok((sender, Self { connection, heard, silence, takes: None }))
    }

    /// Drives the connection until something happens that others should know. Cancel safe. Not to be called again once
    /// the connection is over.
    pub async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(ended) = Pin::new(&mut self.connection).poll(cx) {
            return Poll::Ready(Event::Over(ended.err()));
        }
        // The first that comes is how many it takes (RFC 9113 §3.4); who says nothing of it takes any number.
        let takes = self.connection.max_concurrent_send_streams();
        let is_told = self.takes.is_some() || self.heard.load(Ordering::Relaxed);
        if is_told && self.takes != Some(takes) {
            self.takes = Some(takes);
            return Poll::Ready(Event::Takes(takes));
        }
        self.silence.as_mut().poll(cx).map(|()| Event::Silent)
    }
}

fn limits() -> Builder {
    let mut limits = Builder::new();
    limits
        .enable_push(false)
        .initial_max_send_streams(1)
        .max_header_list_size(HEADER_LIST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(SMALL_FRAMES)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MOST_RESETS)
        .reset_stream_duration(RESET_MEMORY)
        .max_local_error_reset_streams(Some(MOST_FAULTS));
    limits
}

/// Waits until nothing has come for [`QUIET`], a PING included for [`PATIENCE`] more.
async fn silence(pings: Option<PingPong>, heard: Arc<AtomicBool>) {
    // There is only one such handle for each connection, and it has just been made.
    let Some(mut pings) = pings else { return pending().await };
    loop {
        sleep(QUIET).await;
        if heard.swap(false, Ordering::Relaxed) {
            continue;
        }
        let answered = pings.ping(Ping::opaque());
        tokio::pin!(answered);
        loop {
            tokio::select! {
                biased;
                pong = &mut answered => match pong {
                    Ok(_) => break,
                    Err(_) => return,
                },
                () = sleep(PATIENCE) => {
                    // Whoever is busy may be late with its answer.
                    if !heard.swap(false, Ordering::Relaxed) {
                        return;
                    }
                }
            }
        }
    }
}

/// A connection on which is noted that something came.
struct Heard {
    stream: Stream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Heard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.heard.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;

    /// A connection, and its other end.
    async fn opened() -> (SendRequest<Bytes>, Line, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (sender, line) = Line::open(Box::new(ours)).await.unwrap();
        (sender, line, theirs)
    }

    /// A SETTINGS frame (RFC 9113 §6.5).
    fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(6 * pairs.len()).unwrap(), 0x4, 0, 0, 0, 0, 0];
        for (name, value) in pairs {
            frame.extend_from_slice(&name.to_be_bytes());
            frame.extend_from_slice(&value.to_be_bytes());
        }
        frame
    }

    #[tokio::test]
    async fn a_provider_says_how_many_streams_it_takes_and_may_change_its_mind() {
        const MAX_CONCURRENT_STREAMS: u16 = 3;
        let (sender, mut line, mut theirs) = opened().await;
        assert_eq!(sender.current_max_send_streams(), 1, "before it is told");
        for (said, takes) in [(None, usize::MAX), (Some(4), 4), (Some(0), 0), (Some(100), 100)] {
            let said: Vec<_> = said.map(|said| (MAX_CONCURRENT_STREAMS, said)).into_iter().collect();
            theirs.write_all(&settings(&said)).await.unwrap();
            assert!(matches!(line.next().await, Event::Takes(told) if told == takes), "{takes}");
        }
        drop(theirs);
        assert!(matches!(line.next().await, Event::Over(_)));
    }

    #[tokio::test]
    async fn our_limits_are_told() {
        const ENABLE_PUSH: (u16, u32) = (2, 0);
        const INITIAL_WINDOW_SIZE: (u16, u32) = (4, STREAM_WINDOW);
        const MAX_HEADER_LIST_SIZE: (u16, u32) = (6, HEADER_LIST);
        let (_sender, mut line, mut theirs) = opened().await;
        let driving = tokio::spawn(async move { line.next().await });
        let mut told = vec![0; 24 + 9 + 18 + 13];
        theirs.read_exact(&mut told).await.unwrap();
        assert_eq!(&told[24..24 + 9 + 18], settings(&[ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE]));
        // The connection's window opens by a frame of its own (RFC 9113 §6.9.2).
        let window = u32::from_be_bytes(told[24 + 9 + 18 + 9..].try_into().unwrap());
        assert_eq!(window, CONNECTION_WINDOW - 65_535);
        assert_eq!(usize::try_from(CONNECTION_WINDOW / STREAM_WINDOW).unwrap(), STREAMS_OF_A_LINE);
        driving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_given_up_that_answers_nothing_and_kept_that_answers_a_ping() {
        let (_sender, mut line, mut theirs) = opened().await;
        theirs.write_all(&settings(&[])).await.unwrap();
        assert!(matches!(line.next().await, Event::Takes(_)));
        let began = Instant::now();
        // Nobody reads there, and nobody answers.
        assert!(matches!(line.next().await, Event::Silent));
        let took = began.elapsed();
        assert!(took >= QUIET + PATIENCE && took <= 2 * QUIET + 2 * PATIENCE, "{took:?}");

        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (_sender, mut line) = Line::open(Box::new(ours)).await.unwrap();
        let serving = tokio::spawn(async move {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            while connection.accept().await.is_some() {}
        });
        let driving = async {
            loop {
                if let event @ (Event::Silent | Event::Over(_)) = line.next().await {
                    return event;
                }
            }
        };
        let ended = tokio::time::timeout(20 * (QUIET + PATIENCE), driving).await;
        assert!(ended.is_err(), "{ended:?}");
        serving.abort();
    }
}
