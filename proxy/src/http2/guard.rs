//! What a client of HTTP/2 does to its connection beside asking: watched on the bytes, below the `h2` crate.
//!
//! `h2` bounds what it stores: streams, header lists, windows, resets of streams that nobody has accepted. What costs it
//! nothing to store it lets pass without end (pings, settings, priorities, streams that are reset as soon as they run),
//! and a header block that never ends holds its connection for ever. Both show in the nine octets that begin each frame
//! (RFC 9113 §4.1), so these are read here. Nothing is changed: what was read goes on as it came.
//!
//! WINDOW_UPDATE is not counted: a client that reads a large answer has reason to send any number.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Frames that ask for nothing, at once: a client may cancel every stream it has, and those that follow.
const BURST: u32 = 256;
/// And so many more each second.
const EACH_SECOND: u32 = 32;

/// Octets before the first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;
/// Octets that begin a frame.
const HEADER: usize = 9;

/// Frame types (RFC 9113 §6).
mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const WINDOW_UPDATE: u8 = 0x8;
    pub const CONTINUATION: u8 = 0x9;
}

/// Flags.
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What has been seen, for whoever drives the connection.
#[derive(Debug, Default)]
pub struct Seen {
    /// More frames that ask for nothing than a client can have reason for. Nothing more is read from it.
    pub is_flood: bool,
    /// Since when a header block has been open.
    pub head_since: Option<Instant>,
}

/// A client's connection under watch.
pub struct Guarded<S> {
    stream: S,
    /// What was read already.
    early: Bytes,
    frames: Frames,
    seen: Arc<Mutex<Seen>>,
}

impl<S> Guarded<S> {
    /// Takes a connection on which `early` was read, from the client's preface on; and where to look.
    pub fn new(stream: S, early: Bytes) -> (Self, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        (Self { stream, early, frames: Frames::new(Instant::now()), seen: Arc::clone(&seen) }, seen)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.frames.is_flood {
            // Whoever drives the connection has been told, and needs no waker to look.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.early.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let taken = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early.split_to(taken));
        }
        this.frames.run(buf.filled().get(before..).unwrap_or(&[]), Instant::now());
        *this.seen.lock() = Seen { is_flood: this.frames.is_flood, head_since: this.frames.head_since };
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
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
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Follows the frames of one direction.
struct Frames {
    /// Octets to the next frame.
    skip: usize,
    /// What is here of the octets that begin one.
    header: Vec<u8>,
    head_since: Option<Instant>,
    /// The header block ends with the frame that is being read.
    ends_head: bool,
    budget: Budget,
    is_flood: bool,
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE,
            header: Vec::with_capacity(HEADER),
            head_since: None,
            ends_head: false,
            budget: Budget { left: BURST, counted: now },
            is_flood: false,
        }
    }

    fn run(&mut self, mut bytes: &[u8], now: Instant) {
        loop {
            let skipped = bytes.len().min(self.skip);
            self.skip = self.skip.saturating_sub(skipped);
            bytes = bytes.get(skipped..).unwrap_or(&[]);
            if self.skip == 0 && self.ends_head {
                self.ends_head = false;
                self.head_since = None;
            }
            if bytes.is_empty() {
                return;
            }
            let taken = bytes.len().min(HEADER.saturating_sub(self.header.len()));
            self.header.extend_from_slice(bytes.get(..taken).unwrap_or(&[]));
            bytes = bytes.get(taken..).unwrap_or(&[]);
            if let Ok([high, middle, low, kind, flags, ..]) = <[u8; HEADER]>::try_from(self.header.as_slice()) {
                self.header.clear();
                self.skip = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
                self.begin(kind, flags, now);
            }
        }
    }

    fn begin(&mut self, kind: u8, flags: u8, now: Instant) {
        let asks = match kind {
            kind::HEADERS | kind::WINDOW_UPDATE => true,
            kind::DATA => self.skip > 0 || flags & END_STREAM != 0,
            _ => false,
        };
        if kind == kind::HEADERS {
            self.head_since = Some(now);
        }
        if matches!(kind, kind::HEADERS | kind::CONTINUATION) {
            self.ends_head = flags & END_HEADERS != 0;
        }
        if !asks && !self.budget.spend(now) {
            self.is_flood = true;
        }
    }
}

/// Frames that may still come.
struct Budget {
    left: u32,
    counted: Instant,
}

impl Budget {
    /// Whether there was one left.
    fn spend(&mut self, now: Instant) -> bool {
        let passed_ms = now.saturating_duration_since(self.counted).as_millis();
        let earned = passed_ms.saturating_mul(u128::from(EACH_SECOND)).checked_div(1000).unwrap_or(0);
        // A time too short to earn one is counted with the next.
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(BURST);
            self.counted = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const PING: u8 = 0x6;
    const RST_STREAM: u8 = 0x3;
    const SETTINGS: u8 = 0x4;
    const PRIORITY: u8 = 0x2;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], &vec![0xAA; payload]].concat()
    }

    fn watched(frames: &[Vec<u8>]) -> Frames {
        let now = Instant::now();
        let mut watched = Frames::new(now);
        watched.run(&[0; PREFACE], now);
        for frame in frames {
            watched.run(frame, now);
        }
        watched
    }

    #[test]
    fn what_asks_for_nothing_may_come_so_often_and_no_more() {
        for (case, kind, flags, payload) in [
            ("ping", PING, 0, 8),
            ("ping answered", PING, 1, 8),
            ("settings", SETTINGS, 0, 0),
            ("reset", RST_STREAM, 0, 4),
            ("priority", PRIORITY, 0, 5),
            ("unknown", 0xEE, 0, 3),
            ("empty data", kind::DATA, 0, 0),
            ("continuation", kind::CONTINUATION, END_HEADERS, 1),
        ] {
            let some = vec![frame(kind, flags, payload); usize::try_from(BURST).unwrap()];
            assert!(!watched(&some).is_flood, "{case}");
            let more = [some, vec![frame(kind, flags, payload)]].concat();
            assert!(watched(&more).is_flood, "{case}");
        }
    }

    #[test]
    fn requests_bodies_and_windows_may_come_without_end() {
        for (kind, flags, payload) in [
            (kind::HEADERS, END_HEADERS, 20),
            (kind::DATA, 0, 1),
            (kind::DATA, END_STREAM, 0),
            (kind::WINDOW_UPDATE, 0, 4),
        ] {
            assert!(!watched(&vec![frame(kind, flags, payload); 10_000]).is_flood, "{kind}");
        }
    }

    #[test]
    fn who_waits_may_send_more() {
        let start = Instant::now();
        let mut budget = Budget { left: 0, counted: start };
        assert!(!budget.spend(start));
        let mut now = start;
        for _ in 0..10 * EACH_SECOND {
            now += Duration::from_millis(1000 / u64::from(EACH_SECOND) + 1);
            assert!(budget.spend(now));
        }
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..2 * BURST).filter(|_| budget.spend(later)).count(), usize::try_from(BURST).unwrap());
    }

    #[test]
    fn a_header_block_is_open_from_its_first_frame_to_the_end_of_its_last() {
        let whole = frame(kind::HEADERS, END_HEADERS, 30);
        for cut in 1..whole.len() {
            let is_open = watched(&[whole[..cut].to_vec()]).head_since.is_some();
            assert_eq!(is_open, cut >= HEADER, "cut at {cut}");
        }
        assert!(watched(std::slice::from_ref(&whole)).head_since.is_none());
        assert!(watched(&[frame(kind::HEADERS, END_HEADERS, 0)]).head_since.is_none());
        let begun = frame(kind::HEADERS, 0, 30);
        let more = frame(kind::CONTINUATION, 0, 30);
        let last = frame(kind::CONTINUATION, END_HEADERS, 30);
        assert!(watched(&[begun.clone(), more.clone()]).head_since.is_some());
        assert!(watched(&[begun, more, last]).head_since.is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_split_sees_alike(sizes in proptest::collection::vec(1usize..40, 1..40)) {
            let mut bytes = vec![0; PREFACE];
            for (at, size) in sizes.iter().enumerate() {
                let kind = u8::try_from(at % 10).unwrap();
                bytes.extend(frame(kind, u8::try_from(size % 8).unwrap(), *size));
            }
            let now = Instant::now();
            let mut at_once = Frames::new(now);
            at_once.run(&bytes, now);
            let mut in_pieces = Frames::new(now);
            let mut left = &bytes[..];
            for size in sizes.iter().cycle() {
                let (piece, rest) = left.split_at((*size).min(left.len()));
                in_pieces.run(piece, now);
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(at_once.budget.left, in_pieces.budget.left);
            prop_assert_eq!(at_once.head_since, in_pieces.head_since);
            prop_assert_eq!((at_once.skip, at_once.is_flood), (in_pieces.skip, in_pieces.is_flood));
        }
    }

    #[tokio::test]
    async fn what_was_read_early_comes_first_and_a_flood_is_told_and_read_no_further() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let (mut guarded, seen) = Guarded::new(ours, Bytes::from_static(b"PRI * HTTP/2.0\r\n\r\nSM\r\n"));
        theirs.write_all(b"\r\n").await.unwrap();
        let mut preface = [0; PREFACE];
        guarded.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        theirs.write_all(&frame(PING, 0, 8).repeat(400)).await.unwrap();
        let mut taken = vec![0; 17 * 400];
        guarded.read_exact(&mut taken).await.unwrap();
        assert!(seen.lock().is_flood);
        theirs.write_all(&frame(PING, 0, 8)).await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(20), guarded.read_u8()).await;
        assert!(more.is_err(), "read on after a flood");
    }
}
