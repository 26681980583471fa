//! The grammar of a chunked body (RFC 9112 §7.1), checked byte by byte as it is read.
//!
//! Stricter than a decoder needs to be: it refuses what decoders disagree on (an empty size, an extension without a
//! size, bare LF, a trailer line without a colon), so that no two of them can see two bodies.

/// The most digits of a chunk size.
const MOST_SIZE_DIGITS: u32 = 15;
/// The longest extension of one chunk, in bytes.
const LONGEST_EXTENSION: u32 = 1024;
/// All trailer lines together, in bytes.
const LONGEST_TRAILERS: u32 = 4096;

/// Where in the grammar the next byte stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Done,
}

/// Follows one chunked body. Bytes after its end are not looked at.
#[derive(Debug, Default)]
pub struct ChunkRules {
    at: At,
    size: u64,
    digits: u32,
    spent: u32,
}

/// What the first of some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// So many bytes of framing.
    Framing(usize),
    /// So many bytes of data.
    Data(usize),
    /// Nothing of this body: it has ended.
    Beyond,
}

impl ChunkRules {
    /// Takes the next run of the bytes: framing up to the next data, or data up to the next framing.
    ///
    /// # Errors
    /// What broke the grammar; the state is then of no further use.
    pub fn run(&mut self, bytes: &[u8]) -> Result<Run, &'static str> {
        if self.at == At::Data {
            let left = usize::try_from(self.size).unwrap_or(usize::MAX);
            let taken = left.min(bytes.len());
            self.size = self.size.saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX));
            if self.size == 0 {
                self.at = At::DataCr;
            }
            return Ok(Run::Data(taken));
        }
        let mut taken = 0usize;
        for byte in bytes {
            if matches!(self.at, At::Data | At::Done) {
                break;
            }
            self.at = self.step(*byte)?;
            taken = taken.saturating_add(1);
        }
        if taken == 0 && self.at == At::Done { Ok(Run::Beyond) } else { Ok(Run::Framing(taken)) }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Takes all of these bytes, for their grammar alone.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let taken = match self.run(bytes)? {
                Run::Framing(taken) | Run::Data(taken) => taken,
                Run::Beyond => break,
            };
            bytes = bytes.get(taken..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<At, &'static str> {
        match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits = self.digits.saturating_add(1);
                if self.digits > MOST_SIZE_DIGITS {
                    return Err("a chunk size has more than 15 digits");
                }
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                self.size = self.size.saturating_mul(16).saturating_add(u64::from(digit));
                Ok(At::Size)
            }
            (At::Size, _) if self.digits == 0 => Err("a chunk has no size"),
            (At::Size, b'\r') | (At::Extension, b'\r') => Ok(At::SizeLf),
            (At::Size, b';') => {
                self.spent = 0;
                Ok(At::Extension)
            }
            (At::Size, _) => Err("a chunk size is not hexadecimal"),
            (At::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.spent = self.spent.saturating_add(1);
                if self.spent > LONGEST_EXTENSION { Err("a chunk extension is too long") } else { Ok(At::Extension) }
            }
            (At::Extension, _) => Err("a chunk extension has a control octet"),
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                self.spent = 0;
                Ok(if self.size == 0 { At::TrailerStart } else { At::Data })
            }
            (At::DataCr, b'\r') => Ok(At::DataLf),
            (At::DataLf, b'\n') => Ok(At::Size),
            (At::DataCr | At::DataLf, _) => Err("a chunk is longer than its size"),
            (At::TrailerStart, b'\r') => Ok(At::LastLf),
            (At::TrailerName, b':') => self.trailer(At::TrailerValue),
            (At::TrailerStart | At::TrailerName, byte) if super::octets::is_token_octet(byte) => {
                self.trailer(At::TrailerName)
            }
            (At::TrailerStart | At::TrailerName, _) => Err("a trailer line is not a field"),
            (At::TrailerValue, b'\r') => Ok(At::TrailerLf),
            (At::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => self.trailer(At::TrailerValue),
            (At::TrailerValue, _) => Err("a trailer has a control octet"),
            (At::TrailerLf, b'\n') => Ok(At::TrailerStart),
            (At::LastLf, b'\n') => Ok(At::Done),
            (At::SizeLf | At::TrailerLf | At::LastLf, _) => Err("a CR stands without its LF"),
            (At::Data | At::Done, _) => Ok(self.at),
        }
    }

    fn trailer(&mut self, next: At) -> Result<At, &'static str> {
        self.spent = self.spent.saturating_add(1);
        if self.spent > LONGEST_TRAILERS { Err("the trailers are too long") } else { Ok(next) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judged(body: &[u8]) -> Result<At, &'static str> {
        let mut rules = ChunkRules::default();
        rules.feed(body).map(|()| rules.at)
    }

    #[test]
    fn good_bodies_pass_and_end_where_they_end() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"5;a=b;c=\"d e\"\r\nhello\r\n0\r\n\r\n",
            b"00005\r\nhello\r\n000\r\n\r\n",
            b"A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n",
            b"0\r\n\r\nGET / HTTP/1.1\r\n",
        ] {
            assert_eq!(judged(body), Ok(At::Done), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn what_decoders_disagree_on_is_refused() {
        for body in [
            &b"\r\n"[..],
            b";x\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\r\n",
            b"+5\r\nhello",
            b"0x5\r\nhello",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n",
            b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
            b"5\r\nhello\r\n0\r\n: v\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\n",
            b"5;a\x00b\r\nhello",
            b"5;a\nb\r\nhello",
            b"1234567890123456\r\n",
        ] {
            assert!(judged(body).is_err(), "{}", body.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_split_is_judged_alike(body in "[0-9a-f;:\r\n x]{0,40}", cut in 0usize..40) {
            let body = body.as_bytes();
            let (left, right) = body.split_at(cut.min(body.len()));
            let mut rules = ChunkRules::default();
            let split = rules.feed(left).and_then(|()| rules.feed(right)).map(|()| rules.at);
            prop_assert_eq!(split, judged(body));
        }
    }
}
