//! Undoes gzip and deflate step by step.
//!
//! The wrappers are read here and only the deflate data inside goes to the decoder, so that all three forms (gzip, also
//! of several members, zlib, and the bare deflate data some servers call `deflate`) are one path. Checksums are not
//! verified: the bytes have already passed, and a wrong one would not make the numbers wrong.
//!
//! Decoding stops, and usage is unknown, at broken data and at more than 64 MiB plus 100 times the bytes received: text
//! shrinks to a tenth or so; only a bomb shrinks to a thousandth.

use flate2::{Decompress, FlushDecompress, Status};
use memchr::memchr;

use super::Lost;

/// Decoded at once, on the stack.
const STEP_BYTES: usize = 8192;
/// Longest gzip header, file name and comment included.
const MAX_HEAD_BYTES: usize = 4096;
const FREE_OUTPUT_BYTES: u64 = 64 * 1024 * 1024;
const MAX_RATIO: u64 = 100;

/// What `content-encoding` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Deflate,
    /// A coding, or a chain of codings, that is not read.
    Unread,
}

impl Coding {
    pub(super) fn of(field: &[u8]) -> Self {
        let mut codings = field
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        let Some(only) = codings.next() else { return Self::Identity };
        if codings.next().is_some() {
            Self::Unread
        } else if only.eq_ignore_ascii_case(b"gzip") || only.eq_ignore_ascii_case(b"x-gzip") {
            Self::Gzip
        } else if only.eq_ignore_ascii_case(b"deflate") {
            Self::Deflate
        } else {
            Self::Unread
        }
    }
}

/// Decodes one body.
#[derive(Debug)]
pub(super) struct Decoder {
    is_gzip: bool,
    stage: Stage,
    /// The beginning of a header that is not whole yet.
    head: Vec<u8>,
    inflate: Decompress,
    has_decoded: bool,
    received: u64,
    decoded: u64,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Head,
    Data,
    /// So many bytes of checksum and length are still to come.
    Trailer(usize),
    /// What follows is not ours to read.
    Ended,
}

impl Decoder {
    /// `None` where there is nothing to undo, or nothing that is undone here.
    pub(super) fn new(coding: Coding) -> Option<Self> {
        let is_gzip = match coding {
            Coding::Gzip => true,
            Coding::Deflate => false,
            Coding::Identity | Coding::Unread => return None,
        };
        Some(Self {
            is_gzip,
            stage: Stage::Head,
            head: Vec::new(),
            inflate: Decompress::new(false),
            has_decoded: false,
            received: 0,
            decoded: 0,
        })
    }

    /// Decodes the next bytes into `sink`, in steps of at most [`STEP_BYTES`].
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Lost>,
    ) -> Result<(), Lost> {
        self.received = self.received.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        while !bytes.is_empty() {
            match self.stage {
                Stage::Head => bytes = self.read_head(bytes, sink)?,
                Stage::Data => {
                    let (used, is_end) = self.decode(bytes, sink)?;
                    bytes = bytes.get(used..).unwrap_or_default();
                    if is_end {
                        self.stage = Stage::Trailer(if self.is_gzip { 8 } else { 4 });
                    }
                }
                Stage::Trailer(missing) => {
                    let here = missing.min(bytes.len());
                    bytes = bytes.get(here..).unwrap_or_default();
                    self.stage = match missing.saturating_sub(here) {
                        0 if self.is_gzip => {
                            self.inflate.reset(false);
                            Stage::Head // of the next member, if any
                        }
                        0 => Stage::Ended,
                        still => Stage::Trailer(still),
                    };
                }
                Stage::Ended => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads the wrapper's header; returns what follows it.
    fn read_head<'b>(
        &mut self,
        bytes: &'b [u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Lost>,
    ) -> Result<&'b [u8], Lost> {
        if self.head.is_empty() {
            if self.has_decoded && bytes.first() != Some(&0x1f) {
                self.stage = Stage::Ended; // padding after the last member
                return Ok(&[]);
            }
            if let Some(length) = self.head_length(bytes)? {
                self.stage = Stage::Data;
                return Ok(bytes.get(length..).unwrap_or_default());
            }
        }
        // A header in pieces: byte by byte, so that it ends exactly where it ends.
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            self.head.push(*byte);
            if let Some(length) = self.head_length(&self.head)? {
                let head = std::mem::take(&mut self.head);
                self.stage = Stage::Data;
                // Data that has no header was mistaken for one until its second byte.
                let data = head.get(length..).unwrap_or_default();
                if !data.is_empty() {
                    let (_, is_end) = self.decode(data, sink)?;
                    if is_end {
                        self.stage = Stage::Ended;
                    }
                }
                return Ok(rest);
            }
            if self.head.len() >= MAX_HEAD_BYTES {
                return Err(Lost);
            }
        }
        Ok(rest)
    }

    /// Length of the header `bytes` begin with; `None` if it is not whole yet.
    fn head_length(&self, bytes: &[u8]) -> Result<Option<usize>, Lost> {
        if self.is_gzip { gzip_head_length(bytes) } else { zlib_head_length(bytes) }
    }

    /// Decodes until the input is used up or the data ends; returns how much was used, and whether it ended.
    fn decode(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8]) -> Result<(), Lost>) -> Result<(usize, bool), Lost> {
        let mut buffer = [0u8; STEP_BYTES];
        let mut used = 0usize;
        loop {
            let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
            let rest = input.get(used..).unwrap_or_default();
            let status = self.inflate.decompress(rest, &mut buffer, FlushDecompress::None).map_err(|_| Lost)?;
            let took = usize::try_from(self.inflate.total_in().saturating_sub(in_before)).unwrap_or(usize::MAX);
            let made = self.inflate.total_out().saturating_sub(out_before);
            used = used.saturating_add(took);
            self.has_decoded = true;
            self.decoded = self.decoded.saturating_add(made);
            if self.decoded > FREE_OUTPUT_BYTES.saturating_add(self.received.saturating_mul(MAX_RATIO)) {
                return Err(Lost);
            }
            let made = usize::try_from(made).unwrap_or(usize::MAX);
            let plain = buffer.get(..made).unwrap_or_default();
            if !plain.is_empty() {
                sink(plain)?;
            }
            if status == Status::StreamEnd {
                return Ok((used, true));
            }
            // A short step is no sign of the end: the decoder may hold more behind the turn of its window.
            if took == 0 && made == 0 {
                return if used >= input.len() { Ok((used, false)) } else { Err(Lost) };
            }
        }
    }
}

/// RFC 1952 §2.3.
fn gzip_head_length(bytes: &[u8]) -> Result<Option<usize>, Lost> {
    const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
    if bytes.iter().zip(MAGIC).any(|(byte, expected)| *byte != expected) {
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
    let (Some(method), Some(flags)) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
    if method & 0x0f != 8 || u16::from_be_bytes([*method, *flags]) % 31 != 0 {
        return Ok(Some(0));
    }
    if flags & 0x20 != 0 { Err(Lost) } else { Ok(Some(2)) } // a preset dictionary nobody gave us
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use flate2::{GzBuilder, write};

    use super::*;

    const TEXT: &[u8] = b"data: {\"a\": \"hello hello hello hello\"}\n\n";

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(coding: Coding, wire: &[u8], piece: usize) -> Result<Vec<u8>, Lost> {
        let mut decoder = Decoder::new(coding).unwrap();
        let mut plain = Vec::new();
        for bytes in wire.chunks(piece) {
            decoder.push(bytes, &mut |step| {
                plain.extend_from_slice(step);
                Ok(())
            })?;
        }
        Ok(plain)
    }

    #[test]
    fn every_form_decodes_at_any_split() {
        let named: Vec<u8> = {
            let builder = GzBuilder::new().filename("a.sse").comment("b").extra(vec![1, 2, 3]);
            let mut encoder: write::GzEncoder<Vec<u8>> = builder.write(Vec::new(), Compression::fast());
            encoder.write_all(TEXT).unwrap();
            encoder.finish().unwrap()
        };
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(TEXT).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(TEXT).unwrap();
        let two_members = [gzip(b"data: {\"a\": \"hello hel"), gzip(b"lo hello hello\"}\n\n")].concat();
        for (name, coding, wire) in [
            ("gzip", Coding::Gzip, gzip(TEXT)),
            ("gzip with name, comment, extra", Coding::Gzip, named),
            ("gzip with padding", Coding::Gzip, [gzip(TEXT), vec![0; 9]].concat()),
            ("two members", Coding::Gzip, two_members),
            ("zlib", Coding::Deflate, zlib.finish().unwrap()),
            ("raw", Coding::Deflate, raw.finish().unwrap()),
        ] {
            for piece in 1..=wire.len() {
                assert_eq!(decoded(coding, &wire, piece).as_deref(), Ok(TEXT), "{name} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn large_bodies_decode_across_steps() {
        let plain: Vec<u8> = (0..100_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
        assert_eq!(decoded(Coding::Gzip, &gzip(&plain), 1000).unwrap(), plain);
        let exact = vec![b'x'; STEP_BYTES * 4];
        assert_eq!(decoded(Coding::Gzip, &gzip(&exact), 7).unwrap(), exact);
    }

    #[test]
    fn broken_data_is_lost() {
        for wire in
            [&b"not gzip at all"[..], b"\x1f\x8b\x08\xff0000000000", b"\x1f\x8b\x08\x00000000\xff\xff\xff\xff\xff"]
        {
            assert_eq!(decoded(Coding::Gzip, wire, 64), Err(Lost), "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn a_bomb_is_lost_before_it_costs_much() {
        let bomb = gzip(&vec![0; 96 * 1024 * 1024]);
        let mut decoder = Decoder::new(Coding::Gzip).unwrap();
        let mut seen = 0;
        let outcome = decoder.push(&bomb, &mut |step| {
            seen += step.len() as u64;
            Ok(())
        });
        assert_eq!(outcome, Err(Lost));
        assert!(seen <= FREE_OUTPUT_BYTES + MAX_RATIO * bomb.len() as u64);
    }

    #[test]
    fn codings_are_told_apart() {
        for (field, expected) in [
            ("", Coding::Identity),
            ("identity", Coding::Identity),
            ("GZip", Coding::Gzip),
            ("x-gzip", Coding::Gzip),
            (" deflate ", Coding::Deflate),
            ("identity, gzip", Coding::Gzip),
            ("gzip, gzip", Coding::Unread),
            ("br", Coding::Unread),
            ("zstd", Coding::Unread),
        ] {
            assert_eq!(Coding::of(field.as_bytes()), expected, "{field}");
        }
    }
}
