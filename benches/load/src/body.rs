//! Finds the body in the bytes that follow a head, for requests and answers alike. Strict where RFC 9112 §7.1
//! leaves room: lines end with CRLF, sizes are plain hex. Who compares a proxy's output must not forgive it.

use bytes::BytesMut;
use memchr::{memchr, memmem};

/// Longest chunk-size or trailer line.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// How a message says where its body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `content-length`, or 0 where a request has neither field.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// Answers only: the body ends with the connection.
    UntilClose,
}

/// The chunked framing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadBody;

/// What the buffer holds next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// That many body bytes stand at the front of the buffer; the caller takes them before it asks again.
    Data(usize),
    /// The buffer must be filled first.
    More,
    /// The body has ended; what is left in the buffer belongs to the next message.
    Done,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Left(u64),
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    UntilClose,
    Done,
}

/// Walks through one body.
#[derive(Debug)]
pub(crate) struct Body {
    state: State,
}

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(bytes) => State::Left(bytes),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Goes on in `buffer`. Framing bytes are taken out of it here, body bytes by the caller.
    pub(crate) fn step(&mut self, buffer: &mut BytesMut) -> Result<Step, BadBody> {
        loop {
            self.state = match self.state {
                State::Left(0) => State::Done,
                State::Chunk(0) => State::ChunkEnd,
                State::Left(left) => return Ok(self.data(left, buffer.len(), State::Left)),
                State::Chunk(left) => return Ok(self.data(left, buffer.len(), State::Chunk)),
                State::UntilClose if buffer.is_empty() => return Ok(Step::More),
                State::UntilClose => return Ok(Step::Data(buffer.len())),
                State::Done => return Ok(Step::Done),
                State::Size | State::ChunkEnd | State::Trailer => {
                    let Some(line) = take_line(buffer)? else { return Ok(Step::More) };
                    match self.state {
                        State::Size => match chunk_size(&line)? {
                            0 => State::Trailer,
                            size => State::Chunk(size),
                        },
                        State::ChunkEnd if line.is_empty() => State::Size,
                        State::ChunkEnd => return Err(BadBody),
                        _ if line.is_empty() => State::Done,
                        _ => State::Trailer,
                    }
                }
            };
        }
    }

    fn data(&mut self, left: u64, buffered: usize, state: fn(u64) -> State) -> Step {
        if buffered == 0 {
            return Step::More;
        }
        let bytes = usize::try_from(left).map_or(buffered, |left| left.min(buffered));
        self.state = state(left.saturating_sub(bytes as u64));
        Step::Data(bytes)
    }
}

/// The next line without its CRLF, or `None` until it is whole.
fn take_line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, BadBody> {
    match memmem::find(buffer, b"\r\n") {
        Some(end) if end <= MAX_LINE_BYTES => {
            let mut line = buffer.split_to(end.saturating_add(2));
            line.truncate(end);
            if memchr(b'\n', &line).is_some() { Err(BadBody) } else { Ok(Some(line)) }
        }
        None if buffer.len() <= MAX_LINE_BYTES => Ok(None),
        _ => Err(BadBody),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, BadBody> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(BadBody);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| BadBody)?;
    u64::from_str_radix(digits, 16).map_err(|_| BadBody)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Buf;

    fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), BadBody> {
        let mut body = Body::new(framing);
        let mut buffer = BytesMut::new();
        let mut out = Vec::new();
        let mut done = false;
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while !done {
                match body.step(&mut buffer)? {
                    Step::Data(bytes) => {
                        out.extend_from_slice(&buffer[..bytes]);
                        buffer.advance(bytes);
                    }
                    Step::More => break,
                    Step::Done => done = true,
                }
            }
        }
        Ok((out, done, buffer.to_vec()))
    }

    #[test]
    fn any_split_gives_the_same_body() {
        let wire = b"4;x=y\r\nabcd\r\n0A\r\n0123456789\r\n0\r\nx-trailer: 1\r\n\r\nGET ";
        for at in 0..wire.len() {
            let (first, second) = wire.split_at(at);
            let (body, done, rest) = decode(Framing::Chunked, &[first, second]).unwrap();
            assert_eq!(
                (body.as_slice(), done, rest.as_slice()),
                (b"abcd0123456789".as_slice(), true, b"GET ".as_slice())
            );
        }
    }

    #[test]
    fn a_length_is_taken_exactly() {
        let (body, done, rest) = decode(Framing::Length(3), &[b"a", b"bcd"]).unwrap();
        assert_eq!((body.as_slice(), done, rest.as_slice()), (b"abc".as_slice(), true, b"d".as_slice()));
        assert!(decode(Framing::Length(0), &[b""]).unwrap().1);
    }

    #[test]
    fn broken_chunks_are_refused() {
        for wire in [
            b"zz\r\n".as_slice(),
            b"\r\n",
            b"-1\r\n",
            b"0x2\r\nab\r\n",
            b"2\r\nabc\r\n",
            b"2\nab\r\n",
            b"1111111111111111\r\n",
        ] {
            assert_eq!(decode(Framing::Chunked, &[wire]), Err(BadBody), "{wire:?}");
        }
    }
}
