//! What servers do to bodies, for the tests of what undoes it.

use std::io::Write;
use std::mem::take;

use ::brotli::CompressorWriter;
use ::zstd::stream::write::Encoder as ZstdEncoder;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

use super::{Coding, Decoder, Lost};

/// A coding in one of its forms.
#[derive(Clone, Copy, Debug)]
pub(in crate::usage) enum Encoding {
    Gzip,
    Zlib,
    /// Deflate data without a wrapper, which some servers send as `deflate`.
    BareDeflate,
    Brotli {
        quality: u32,
        window_bits: u32,
    },
    /// With a checksum.
    Zstd {
        level: i32,
        /// 0 leaves the choice to the level.
        window_bits: u32,
    },
}

impl Encoding {
    /// What servers send.
    pub(in crate::usage) const ALL: [Self; 9] = [
        Self::Gzip,
        Self::Zlib,
        Self::BareDeflate,
        Self::brotli(1),
        Self::brotli(5),
        Self::brotli(9),
        Self::zstd(-5),
        Self::zstd(3),
        Self::zstd(6),
    ];

    /// And what is slow, or rare: for short texts.
    pub(super) fn every() -> impl Iterator<Item = Self> {
        let qualities = [0, 2, 3, 4, 6, 7, 8, 10, 11].map(Self::brotli);
        let windows = [10, 16, 18, 24].map(|window_bits| Self::Brotli { quality: 11, window_bits });
        let frames = [(19, 0), (1, 10), (1, 23)].map(|(level, window_bits)| Self::Zstd { level, window_bits });
        Self::ALL.into_iter().chain(qualities).chain(windows).chain(frames)
    }

    pub(in crate::usage) const fn brotli(quality: u32) -> Self {
        Self::Brotli { quality, window_bits: 22 }
    }

    pub(in crate::usage) const fn zstd(level: i32) -> Self {
        Self::Zstd { level, window_bits: 0 }
    }

    /// The `content-encoding` field's value.
    pub(in crate::usage) fn field(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib | Self::BareDeflate => "deflate",
            Self::Brotli { .. } => "br",
            Self::Zstd { .. } => "zstd",
        }
    }

    pub(in crate::usage) fn encoded(self, plain: &[u8]) -> Vec<u8> {
        self.parts(&[plain], false).concat()
    }

    /// One part for each of these, which can be decoded when it arrives, and one that ends the body.
    pub(in crate::usage) fn flushed(self, plain: &[&[u8]]) -> Vec<Vec<u8>> {
        self.parts(plain, true)
    }

    fn parts(self, plain: &[&[u8]], is_flushed: bool) -> Vec<Vec<u8>> {
        let out = Vec::<u8>::new();
        match self {
            Self::Gzip => {
                let encoder = GzEncoder::new(out, Compression::default());
                parts(plain, is_flushed, encoder, |it| take(it.get_mut()), |it| it.finish().unwrap())
            }
            Self::Zlib => {
                let encoder = ZlibEncoder::new(out, Compression::default());
                parts(plain, is_flushed, encoder, |it| take(it.get_mut()), |it| it.finish().unwrap())
            }
            Self::BareDeflate => {
                let encoder = DeflateEncoder::new(out, Compression::default());
                parts(plain, is_flushed, encoder, |it| take(it.get_mut()), |it| it.finish().unwrap())
            }
            Self::Brotli { quality, window_bits } => {
                let encoder = CompressorWriter::new(out, 4096, quality, window_bits);
                parts(plain, is_flushed, encoder, |it| take(it.get_mut()), CompressorWriter::into_inner)
            }
            Self::Zstd { level, window_bits } => {
                let mut encoder = ZstdEncoder::new(out, level).unwrap();
                encoder.include_checksum(true).unwrap();
                encoder.window_log(window_bits).unwrap();
                parts(plain, is_flushed, encoder, |it| take(it.get_mut()), |it| it.finish().unwrap())
            }
        }
    }
}

fn parts<W: Write>(
    plain: &[&[u8]],
    is_flushed: bool,
    mut encoder: W,
    take_written: impl Fn(&mut W) -> Vec<u8>,
    end: impl FnOnce(W) -> Vec<u8>,
) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    for plain in plain {
        encoder.write_all(plain).unwrap();
        if is_flushed {
            encoder.flush().unwrap();
            parts.push(take_written(&mut encoder));
        }
    }
    parts.push(end(encoder));
    parts
}

/// The text of a body that arrives in these pieces.
pub(super) fn decoded<'w>(field: &str, pieces: impl IntoIterator<Item = &'w [u8]>) -> Result<Vec<u8>, Lost> {
    let mut decoder = Decoder::new(Coding::of(field.as_bytes())).unwrap();
    let mut plain = Vec::new();
    for piece in pieces {
        decoder.push(piece, &mut |step| {
            plain.extend_from_slice(step);
            Ok(())
        })?;
    }
    Ok(plain)
}

/// Numbers that look random, the same for the same seed.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[3]
    }

    /// From 0 to one less than `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % end as u64).unwrap()
    }

    /// Cuts a body into pieces, small ones more often than large ones.
    pub(super) fn pieces<'b>(&mut self, mut body: &'b [u8]) -> Vec<&'b [u8]> {
        let mut pieces = Vec::new();
        while !body.is_empty() {
            let length = (1 + self.below(7).pow(self.below(5) as u32)).min(body.len());
            let (piece, rest) = body.split_at(length);
            pieces.push(piece);
            body = rest;
        }
        pieces
    }
}
