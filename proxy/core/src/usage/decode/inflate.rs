//! Undoes gzip and deflate.
//!
//! The wrappers are read here and only the deflate data inside goes to the decoder, so that all three forms (gzip, also
//! of several members, zlib, and the bare deflate data some servers call `deflate`) are one path. Checksums are not
//! verified: the bytes have already passed, and a wrong one would not make the numbers wrong.

use flate2::{Decompress, FlushDecompress, Status};
use memchr::memchr;

use super::{Lost, Step};

/// Longest gzip header that is put together from pieces, file name and comment included.
const MAX_HEAD_BYTES: usize = 4096;
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Decodes one body, whose window is 32 KiB.
pub(super) struct Inflate {
    is_gzip: bool,
    stage: Stage,
    /// The beginning of a header that is not whole yet.
    head: Vec<u8>,
    data: Decompress,
    is_past_first: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Data,
    /// So many bytes of checksum and length are still to come.
    Trailer(usize),
    /// What follows is not ours to read.
    Ended,
}

impl Inflate {
    pub(super) fn gzip() -> Self {
        Self::new(true)
    }

    /// In the zlib format, or without a wrapper.
    pub(super) fn deflate() -> Self {
        Self::new(false)
    }

    fn new(is_gzip: bool) -> Self {
        let data = Decompress::new(false);
        Self { is_gzip, stage: Stage::Head, head: Vec::new(), data, is_past_first: false }
    }

    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Lost> {
        let mut used = 0usize;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            let stage = self.stage;
            let (took, made) = match stage {
                Stage::Head => (self.read_head(rest)?, 0),
                Stage::Data => self.decode(rest, output)?,
                Stage::Trailer(missing) => (self.pass_trailer(missing, rest), 0),
                Stage::Ended => (rest.len(), 0),
            };
            used = used.saturating_add(took);
            // Bare data has a header of no bytes: nothing taken, and yet a step.
            let is_stuck = took == 0 && self.stage == stage;
            if made > 0 || is_stuck {
                return Ok(Step { used, made });
            }
        }
    }

    /// Reads the wrapper's header; returns how much of it was here.
    fn read_head(&mut self, input: &[u8]) -> Result<usize, Lost> {
        let Some(first) = input.first() else { return Ok(0) };
        if self.head.is_empty() {
            if self.is_past_first && *first != GZIP_MAGIC[0] {
                self.stage = Stage::Ended; // padding after the last member
                return Ok(input.len());
            }
            if let Some(length) = self.head_length(input)? {
                self.stage = Stage::Data;
                return Ok(length);
            }
        }
        // A header in pieces: byte by byte, so that it ends exactly where it ends.
        let mut took = 0usize;
        for byte in input {
            took = took.saturating_add(1);
            self.head.push(*byte);
            if self.head_length(&self.head)?.is_some() {
                self.head = Vec::new();
                self.stage = Stage::Data;
                return Ok(took);
            }
            if self.head.len() >= MAX_HEAD_BYTES {
                return Err(Lost);
            }
        }
        Ok(took)
    }

    /// Length of the header `bytes` begin with; `None` if it is not whole yet.
    fn head_length(&self, bytes: &[u8]) -> Result<Option<usize>, Lost> {
        if self.is_gzip { gzip_head_length(bytes) } else { zlib_head_length(bytes) }
    }

    /// Returns how much was taken, and how much was made of it.
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), Lost> {
        let (in_before, out_before) = (self.data.total_in(), self.data.total_out());
        let status = self.data.decompress(input, output, FlushDecompress::None).map_err(|_| Lost)?;
        if status == Status::StreamEnd {
            self.is_past_first = true;
            self.stage = Stage::Trailer(if self.is_gzip { 8 } else { 4 });
        }
        let took = self.data.total_in().saturating_sub(in_before);
        let made = self.data.total_out().saturating_sub(out_before);
        Ok((usize::try_from(took).unwrap_or(usize::MAX), usize::try_from(made).unwrap_or(usize::MAX)))
    }

    fn pass_trailer(&mut self, missing: usize, input: &[u8]) -> usize {
        let here = missing.min(input.len());
        self.stage = match missing.saturating_sub(here) {
            0 if self.is_gzip => {
                self.data.reset(false);
                Stage::Head // of the next member, if any
            }
            0 => Stage::Ended,
            still => Stage::Trailer(still),
        };
        here
    }
}

/// RFC 1952 §2.3.
fn gzip_head_length(bytes: &[u8]) -> Result<Option<usize>, Lost> {
    if bytes.iter().zip(GZIP_MAGIC).any(|(byte, expected)| *byte != expected) {
        return Err(Lost);
    }
    let Some(flags) = bytes.get(3) else { return Ok(None) };
    let (has_crc, has_extra, has_name, has_comment) = (flags & 2, flags & 4, flags & 8, flags & 16);
    if flags & 0xe0 != 0 {
        return Err(Lost); // reserved
    }
    let mut length = 10usize;
    if has_extra != 0 {
        let (Some(low), Some(high)) = (bytes.get(10), bytes.get(11)) else { return Ok(None) };
        length = length.saturating_add(2).saturating_add(usize::from(u16::from_le_bytes([*low, *high])));
    }
    for has_text in [has_name, has_comment] {
        if has_text != 0 {
            let Some(end) = bytes.get(length..).and_then(|rest| memchr(0, rest)) else { return Ok(None) };
            length = length.saturating_add(end).saturating_add(1);
        }
    }
    if has_crc != 0 {
        length = length.saturating_add(2);
    }
    Ok((bytes.len() >= length).then_some(length))
}

/// RFC 1950 §2.2, or 0 for data without a wrapper.
fn zlib_head_length(bytes: &[u8]) -> Result<Option<usize>, Lost> {
    let Some(method) = bytes.first() else { return Ok(None) };
    // Bare data could begin like a wrapper only with a stored block that has padding bits set: no encoder writes it.
    if method & 0x0f != 8 {
        return Ok(Some(0));
    }
    let Some(flags) = bytes.get(1) else { return Ok(None) };
    let is_broken = u16::from_be_bytes([*method, *flags]) % 31 != 0;
    let needs_dictionary = flags & 0x20 != 0; // which nobody gave us
    if is_broken || needs_dictionary { Err(Lost) } else { Ok(Some(2)) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, GzBuilder};

    use super::super::encode::{Encoding, decoded};
    use super::*;

    const TEXT: &[u8] = b"data: {\"a\": \"hello hello hello hello\"}\n\n";

    #[test]
    fn gzip_has_any_header_and_any_number_of_members() {
        let gzip = |plain: &[u8]| Encoding::Gzip.encoded(plain);
        let named = {
            let builder = GzBuilder::new().filename("a.sse").comment("b").extra(vec![1, 2, 3]);
            let mut encoder = builder.write(Vec::new(), Compression::fast());
            encoder.write_all(TEXT).unwrap();
            encoder.finish().unwrap()
        };
        let (head, tail) = TEXT.split_at(20);
        let by_byte: Vec<u8> = TEXT.iter().flat_map(|byte| gzip(&[*byte])).collect();
        for (name, wire) in [
            ("name, comment, extra", named.clone()),
            ("two members", [gzip(head), gzip(tail)].concat()),
            ("an empty member in between", [gzip(head), gzip(b""), gzip(tail)].concat()),
            ("a named member behind an empty one", [gzip(b""), named].concat()),
            ("two members and padding", [gzip(head), gzip(tail), vec![0; 9]].concat()),
            ("a member a byte", by_byte),
        ] {
            for piece in 1..=wire.len() {
                assert_eq!(decoded("gzip", wire.chunks(piece)).as_deref(), Ok(TEXT), "{name} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn broken_data_is_lost() {
        let mut no_zlib = Encoding::Zlib.encoded(TEXT);
        no_zlib[1] ^= 1;
        for (field, wire) in [
            ("gzip", &b"not gzip at all"[..]),
            ("gzip", b"\x1f\x8b\x08\xff0000000000"),
            ("gzip", b"\x1f\x8b\x08\x00000000\xff\xff\xff\xff\xff"),
            ("deflate", b"\x78\xbb\x00\x00\x00\x00"),
            ("deflate", &no_zlib[..]),
            ("deflate", b"\xff\xff\xff\xff"),
        ] {
            for piece in [1, 64] {
                assert_eq!(decoded(field, wire.chunks(piece)), Err(Lost), "{field}: {}", wire.escape_ascii());
            }
        }
    }

    #[test]
    fn a_header_that_does_not_end_is_given_up() {
        let head = [&b"\x1f\x8b\x08\x08000000"[..], &[b'n'; 2 * MAX_HEAD_BYTES]].concat();
        assert_eq!(decoded("gzip", head[..MAX_HEAD_BYTES - 1].chunks(100)).as_deref(), Ok(&b""[..]));
        assert_eq!(decoded("gzip", head.chunks(100)), Err(Lost));
    }
}
