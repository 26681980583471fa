//! Puts an answer on the wire: at once where nothing else was asked, else in the pieces, at the pace and with the
//! fault that the request asked for.

use std::io::{self, Write};
use std::time::Duration;

use brotli::CompressorWriter as BrotliEncoder;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zstd::stream::write::Encoder as ZstdEncoder;

use super::answer::{Answer, LAST_CHUNK, push_piece};
use super::books::Ended;
use super::connection::{Connection, PeerGone};
use super::head::Head;
use super::steering::{AnswerFraming, Encoding, Fault, Garbage, Split, Steering};

/// Unwritten bytes held before they go out, where nobody asked for single pieces.
const WRITE_BYTES: usize = 256 * 1024;
/// Between the last bytes and a reset, so that the bytes are read before it.
pub(super) const BEFORE_RESET: Duration = Duration::from_millis(20);
/// An answer nobody asked for, as a desynchronised provider sends it.
const EXTRA_BYTES: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nsmuggled!";
pub(super) const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";

/// How sending ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) ended: Ended,
    /// Body bytes written, content-encoded if asked, without chunk framing.
    pub(super) body_bytes: u64,
    pub(super) keep_alive: bool,
}

impl Sent {
    pub(super) fn fault(body_bytes: u64) -> Self {
        Self { ended: Ended::Fault, body_bytes, keep_alive: false }
    }

    pub(super) fn client_closed(body_bytes: u64) -> Self {
        Self { ended: Ended::ClientClosed, body_bytes, keep_alive: false }
    }
}

/// Sends `answer` to the request with this head.
pub(super) async fn send(connection: &mut Connection, answer: &Answer, steering: &Steering, head: &Head) -> Sent {
    if steering.is_plain() && head.keep_alive && !head.is_http10 && head.method != "HEAD" {
        return match connection.write(&answer.plain).await {
            Ok(()) => Sent { ended: Ended::Finished, body_bytes: answer.body_bytes, keep_alive: true },
            Err(PeerGone) => Sent::client_closed(0),
        };
    }
    let Ok(pieces) = shaped(answer, steering) else { return Sent::fault(0) };
    let mut body_bytes = 0;
    match write_pieces(connection, answer, steering, head, pieces, &mut body_bytes).await {
        Ok((ended, keep_alive)) => Sent { ended, body_bytes, keep_alive },
        Err(PeerGone) => Sent::client_closed(body_bytes),
    }
}

/// Sends what is no proper answer, then closes.
pub(super) async fn send_garbage(connection: &mut Connection, garbage: Garbage) -> Sent {
    let bytes: &[u8] = match garbage {
        Garbage::NotHttp => b"\x16\x03\x01 this is not HTTP\r\n\r\n",
        Garbage::TwoLengths => {
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} "
        }
        Garbage::LengthAndChunked => {
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\
              transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        }
        Garbage::GzipTransfer => {
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: gzip\r\n\r\n{}"
        }
        Garbage::BadChunk => {
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n\
              2\r\n{}\r\nzz\r\n!\r\n0\r\n\r\n"
        }
        Garbage::BareLf => b"HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length: 2\n\n{}",
        Garbage::BadStatus => b"HTTP/1.1 2x0 Fine\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        Garbage::SwitchingProtocols => {
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x02hi"
        }
    };
    if connection.write(bytes).await.is_err() {
        return Sent::client_closed(0);
    }
    connection.finish().await;
    Sent::fault(0)
}

/// The body in the pieces it is written in: outside by event, inside by write.
type Pieces = Vec<Vec<Bytes>>;

fn shaped(answer: &Answer, steering: &Steering) -> io::Result<Pieces> {
    let is_paced = steering.pace.is_some();
    let mut pieces = match steering.encoding {
        Some(encoding) => encoded(&answer.pieces, encoding, is_paced)?,
        None => answer.pieces.clone(),
    };
    let split = match steering.fault {
        Some(Fault::Drip(_)) => Some(Split::Fixed(1)),
        _ => steering.split,
    };
    let Some(split) = split else { return Ok(pieces.into_iter().map(|piece| vec![piece]).collect()) };
    // Without a pace, events are nothing to a split: its pieces go across them.
    if !is_paced {
        pieces = vec![Bytes::from(pieces.concat())];
    }
    let mut sizes = Sizes::of(split);
    Ok(pieces.into_iter().map(|piece| sizes.cut(piece)).collect())
}

/// The sizes of pieces, one after another.
pub(super) enum Sizes {
    Fixed(usize),
    Random(Box<StdRng>),
}

impl Sizes {
    pub(super) fn of(split: Split) -> Self {
        match split {
            Split::Fixed(size) => Self::Fixed(size),
            Split::Random(seed) => Self::Random(Box::new(StdRng::seed_from_u64(seed))),
        }
    }

    /// All of `piece` in parts, none for an empty one.
    pub(super) fn cut(&mut self, mut piece: Bytes) -> Vec<Bytes> {
        let mut parts = Vec::new();
        while !piece.is_empty() {
            let size = match self {
                Self::Fixed(size) => *size,
                Self::Random(dice) => dice.random_range(1..=64),
            };
            parts.push(piece.split_to(size.min(piece.len())));
        }
        parts
    }
}

/// The body content-encoded; `by_piece`: each piece can be decoded when it arrives.
fn encoded(pieces: &[Bytes], encoding: Encoding, by_piece: bool) -> io::Result<Vec<Bytes>> {
    if matches!(encoding, Encoding::GzipMembers | Encoding::ZstdFrames) {
        return pieces.iter().map(|piece| in_two(piece, encoding)).collect();
    }
    let mut encoder = Encoder::new(encoding)?;
    let mut out = Vec::new();
    for piece in pieces {
        encoder.write(piece)?;
        if by_piece {
            out.push(Bytes::from(encoder.flush()?));
        }
    }
    out.push(Bytes::from(encoder.finish()?));
    Ok(out)
}

/// Each half of a piece encoded for itself.
fn in_two(piece: &[u8], encoding: Encoding) -> io::Result<Bytes> {
    let (first, second) = piece.split_at(piece.len() / 2);
    let mut out = Vec::new();
    for half in [first, second] {
        let mut encoder = Encoder::new(encoding)?;
        encoder.write(half)?;
        out.append(&mut encoder.finish()?);
    }
    Ok(Bytes::from(out))
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
    Brotli(Box<BrotliEncoder<Vec<u8>>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(encoding: Encoding) -> io::Result<Self> {
        let out = Vec::new();
        Ok(match encoding {
            Encoding::Gzip | Encoding::GzipMembers => Self::Gzip(GzEncoder::new(out, Compression::default())),
            Encoding::Deflate => Self::Deflate(ZlibEncoder::new(out, Compression::default())),
            // As servers encode what they make while it is read.
            Encoding::Brotli => Self::Brotli(Box::new(BrotliEncoder::new(out, 4096, 4, 22))),
            Encoding::Zstd | Encoding::ZstdFrames => Self::Zstd(ZstdEncoder::new(out, 3)?),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Deflate(encoder) => encoder.write_all(bytes),
            Self::Brotli(encoder) => encoder.write_all(bytes),
            Self::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<Vec<u8>> {
        Ok(match self {
            Self::Gzip(encoder) => {
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Self::Deflate(encoder) => {
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Self::Brotli(encoder) => {
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Self::Zstd(encoder) => {
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Deflate(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// Writes head and body; `body_bytes` counts what was written, also when the peer leaves in between.
async fn write_pieces(
    connection: &mut Connection,
    answer: &Answer,
    steering: &Steering,
    head: &Head,
    pieces: Pieces,
    body_bytes: &mut u64,
) -> Result<(Ended, bool), PeerGone> {
    let default_framing = if answer.is_stream { AnswerFraming::Chunked } else { AnswerFraming::Length };
    let framing = match steering.framing.unwrap_or(default_framing) {
        AnswerFraming::Chunked if head.is_http10 => AnswerFraming::Close,
        framing => framing,
    };
    let keep_alive = head.keep_alive && !head.is_http10 && framing != AnswerFraming::Close;
    let length: u64 = pieces.iter().flatten().map(|part| part.len() as u64).sum();
    let mut out = answer.head(framing, length, steering.encoding.map(Encoding::field), keep_alive);
    let has_body = head.method != "HEAD" && !answer.is_bodiless();

    let limit = match steering.fault {
        Some(Fault::HangBody(bytes) | Fault::Reset(bytes) | Fault::Cut(bytes)) => bytes,
        _ => u64::MAX,
    };
    let drip = match steering.fault {
        Some(Fault::Drip(pause)) => Some(pause),
        _ => None,
    };
    let is_stepwise = steering.pace.is_some() || steering.split.is_some() || drip.is_some();
    let mut is_first = true;
    let pieces = if has_body { pieces } else { Pieces::new() };
    'body: for event in pieces {
        if let Some(pace) = steering.pace.filter(|_| !is_first) {
            connection.pause(pace).await?;
        }
        for part in event {
            if let Some(pause) = drip.filter(|_| !is_first) {
                connection.pause(pause).await?;
            }
            is_first = false;
            let allowed = usize::try_from(limit.saturating_sub(*body_bytes)).unwrap_or(usize::MAX);
            let allowed = part.get(..allowed).unwrap_or(&part);
            push_piece(&mut out, allowed, framing);
            if is_stepwise || out.len() >= WRITE_BYTES {
                connection.write(&out).await?;
                out.clear();
                // Gives the reader its turn, so that single writes arrive as single reads.
                tokio::task::yield_now().await;
            }
            *body_bytes = body_bytes.saturating_add(allowed.len() as u64);
            if *body_bytes >= limit {
                break 'body;
            }
        }
    }

    match steering.fault {
        Some(Fault::HangBody(_)) => {
            connection.write(&out).await?;
            connection.peer_gone().await;
            Err(PeerGone)
        }
        Some(Fault::Reset(_)) => {
            connection.write(&out).await?;
            connection.pause(BEFORE_RESET).await?;
            connection.reset_on_drop();
            Ok((Ended::Fault, false))
        }
        Some(Fault::Cut(_)) => {
            connection.write(&out).await?;
            connection.finish().await;
            Ok((Ended::Fault, false))
        }
        fault => {
            if framing == AnswerFraming::Chunked && has_body {
                out.extend_from_slice(LAST_CHUNK);
            }
            if fault == Some(Fault::ExtraBytes) {
                out.extend_from_slice(EXTRA_BYTES);
            }
            connection.write(&out).await?;
            if !keep_alive {
                connection.finish().await;
            }
            Ok((Ended::Finished, keep_alive))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn answer() -> Answer {
        Answer::events(&["data: one\n\n".to_owned(), "data: two\n\n".to_owned()])
    }

    #[test]
    fn splits_lose_no_byte_and_repeat_by_seed() {
        let answer = answer();
        for (split, paced) in [(Split::Fixed(3), true), (Split::Fixed(5), false), (Split::Random(9), false)] {
            let pace = paced.then_some(Duration::ZERO);
            let steering = Steering { split: Some(split), pace, ..Steering::default() };
            let pieces = shaped(&answer, &steering).unwrap();
            assert_eq!(pieces.concat().concat(), answer.pieces.concat());
            assert_eq!(pieces, shaped(&answer, &steering).unwrap());
        }
    }

    #[test]
    fn encoded_bodies_decode_to_what_they_were() {
        let answer = answer();
        for encoding in [
            Encoding::Gzip,
            Encoding::GzipMembers,
            Encoding::Deflate,
            Encoding::Brotli,
            Encoding::Zstd,
            Encoding::ZstdFrames,
        ] {
            for by_piece in [false, true] {
                let wire = encoded(&answer.pieces, encoding, by_piece).unwrap().concat();
                let mut decoded = Vec::new();
                let read = match encoding.field() {
                    "gzip" => flate2::read::MultiGzDecoder::new(&wire[..]).read_to_end(&mut decoded),
                    "deflate" => flate2::read::ZlibDecoder::new(&wire[..]).read_to_end(&mut decoded),
                    "br" => brotli::Decompressor::new(&wire[..], 4096).read_to_end(&mut decoded),
                    _ => zstd::Decoder::new(&wire[..]).unwrap().read_to_end(&mut decoded),
                };
                read.unwrap();
                assert_eq!(decoded, answer.pieces.concat(), "{encoding:?}");
            }
        }
    }
}
