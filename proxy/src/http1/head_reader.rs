//! Reading one request head off a connection: whole, bounded, and by a deadline for all of it.
//!
//! A timeout for each read would let a head that is dripped byte by byte hold a connection for ever.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use super::Wire;
use crate::plane::clocks::after;

/// The largest head taken, in bytes.
pub const LARGEST_HEAD: usize = 32 * 1024;
/// Room for an ordinary head and a small body, so that both come with one read.
const FIRST_READ: usize = 4 * 1024;

/// What came of waiting for a head.
#[derive(Debug)]
pub enum Received {
    /// From the request line to the empty line's CRLF. What came with it of the body stays with the connection.
    Head(Bytes),
    /// The client closed, or said nothing for the whole idle time: nothing to answer.
    Nothing,
    /// The deadline passed in the middle of a head: 408.
    TooSlow,
    /// More than [`LARGEST_HEAD`]: 431.
    TooLarge,
    /// A CR or LF that stands alone: 400 at once, or it would wait for the deadline.
    LoneLineEnd,
}

/// Reads the next head. `idle` bounds the wait for its first byte, `deadline` the rest from then on.
///
/// Cancel safe.
pub async fn read_head<S>(wire: &mut Wire<S>, idle: Duration, deadline: Duration) -> Received
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if wire.input.is_empty() {
        wire.input.reserve(FIRST_READ);
        match timeout(idle, wire.stream.read_buf(&mut wire.input)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return Received::Nothing,
        }
    }
    let mut ends = LineEnds::default();
    let mut by = None;
    loop {
        match ends.look(&wire.input) {
            Found::End(end) if end > LARGEST_HEAD => return Received::TooLarge,
            Found::End(end) => return Received::Head(wire.input.split_to(end).freeze()),
            Found::Lone => return Received::LoneLineEnd,
            Found::More if wire.input.len() > LARGEST_HEAD => return Received::TooLarge,
            Found::More => {}
        }
        let by = *by.get_or_insert_with(|| after(Instant::now(), deadline));
        match timeout_at(by, wire.fill()).await {
            Err(_) => return Received::TooSlow,
            Ok(Ok(read)) if read > 0 => {}
            Ok(_) => return Received::Nothing,
        }
    }
}

enum Found {
    End(usize),
    Lone,
    More,
}

/// Looks for the empty line, at each byte once however the head arrives.
#[derive(Default)]
struct LineEnds {
    looked: usize,
    line_start: usize,
}

impl LineEnds {
    fn look(&mut self, buffer: &[u8]) -> Found {
        while let Some(found) = buffer.get(self.looked..).and_then(|rest| memchr::memchr2(b'\r', b'\n', rest)) {
            let at = self.looked.saturating_add(found);
            match (buffer.get(at), buffer.get(at.saturating_add(1))) {
                (Some(b'\r'), Some(b'\n')) => {}
                (Some(b'\r'), None) => {
                    self.looked = at;
                    return Found::More;
                }
                _ => return Found::Lone,
            }
            let next = at.saturating_add(2);
            // An empty line before the request line is no head of ours (RFC 9112 §2.2 lets a server skip it; a strict one refuses).
            if at == self.line_start {
                return if at == 0 { Found::Lone } else { Found::End(next) };
            }
            self.line_start = next;
            self.looked = next;
        }
        self.looked = buffer.len();
        Found::More
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn received(pieces: &[&[u8]], gap: Duration) -> Received {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        tokio::spawn(async move {
            for piece in pieces {
                if client.write_all(&piece).await.is_err() {
                    return;
                }
                tokio::time::sleep(gap).await;
            }
            tokio::time::sleep(Duration::from_secs(3600)).await;
        });
        read_head(&mut Wire::new(server), Duration::from_secs(60), Duration::from_secs(10)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_found_however_it_arrives() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 1..head.len() {
            let (left, right) = head.split_at(cut);
            match received(&[left, right, b"body"], Duration::ZERO).await {
                Received::Head(found) => assert_eq!(&found[..], head, "cut at {cut}"),
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_for_the_whole_head() {
        let drips: Vec<&[u8]> = vec![b"a"; 30];
        assert!(matches!(received(&drips, Duration::from_secs(1)).await, Received::TooSlow));
        assert!(matches!(received(&[b"GET / HTTP"], Duration::from_secs(1)).await, Received::TooSlow));
        assert!(matches!(received(&[], Duration::from_secs(1)).await, Received::Nothing));
    }

    #[tokio::test(start_paused = true)]
    async fn lone_line_ends_and_large_heads_are_refused_at_once() {
        for head in [&b"GET / HTTP/1.1\nHost: a\n\n"[..], b"GET / HTTP/1.1\rHost", b"\r\nGET / HTTP/1.1\r\n", b"\n"] {
            assert!(
                matches!(received(&[head], Duration::ZERO).await, Received::LoneLineEnd),
                "{}",
                head.escape_ascii()
            );
        }
        let large = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; LARGEST_HEAD]].concat();
        assert!(matches!(received(&[&large], Duration::ZERO).await, Received::TooLarge));
    }
}
