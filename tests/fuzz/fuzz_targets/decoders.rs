//! Is an encoded answer metered like the plain one, in every split, and does nothing encoded upset the meter?
//!
//! Half of the inputs are plain answers, which are encoded here in every form that is read (gzip in one member and in
//! two, zlib, bare deflate, br, zstd in one frame and in two) and must be metered like themselves. The other half are
//! encoded bytes as they come, in any coding, read or not: every split must tell the same usage; and where a reader that
//! checks everything, checksums and the end too, reads them, they must be metered like what it made of them.

#![no_main]

use std::io::{Read, Write};
use std::panic;

use brotli::{CompressorWriter, Decompressor};
use flate2::Compression;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::usage::Ended;
use llm_proxy_fuzz::metered::Head;
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};

const CODINGS: [&str; 8] = ["gzip", "deflate", "br", "zstd", "x-gzip", "identity", "gzip, br", "identity, gzip"];
/// More than this decoded is not compared.
const MOST_DECODED: u64 = 4 << 20;
/// The largest window that is read, as RFC 9659 has it.
const WINDOW_BITS: u32 = 23;

fuzz_target!(
    init: lives_through_what_is_caught(),
    |input: &[u8]| {
        let Some(([how, plan @ ..], bytes)) = input.split_first_chunk::<4>() else { return };
        let dialect = Dialect::ALL[usize::from(how % 4)];
        let head = |coding: &'static str| Head { dialect, is_stream: how & 4 == 0, coding };
        let plainly = |plain: &[u8]| head("").told(&pieces(plain, WHOLE), Ended::Whole);
        if how & 8 == 0 {
            for (name, coding, wire) in encoded(bytes, plan[0]) {
                for plan in [WHOLE, BYTE_BY_BYTE, plan] {
                    let told = head(coding).told(&pieces(&wire, plan), Ended::Whole);
                    assert_eq!(told, plainly(bytes), "{name} in pieces of {plan:?}");
                }
            }
        } else {
            let coding = CODINGS[usize::from(how >> 4) % CODINGS.len()];
            let told = head(coding).told(&pieces(bytes, WHOLE), Ended::Whole);
            let plain = decoded(coding, bytes);
            for plan in [BYTE_BY_BYTE, plan] {
                let split = head(coding).told(&pieces(bytes, plan), Ended::Whole);
                assert_eq!((split.numbers, &split.provider), (told.numbers, &told.provider), "in pieces of {plan:?}");
                // Where a coding breaks, how far it was decoded depends on the pieces. Nothing else may.
                assert!(plain.is_none() || split == told, "in pieces of {plan:?}");
            }
            if let Some(plain) = plain {
                assert_eq!(told, plainly(&plain));
            }
        }
    }
);

/// A fuzz target aborts at every panic. That of a brotli decoder on malformed bytes is caught by the meter, on purpose.
fn lives_through_what_is_caught() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        let is_caught = panicked.location().is_some_and(|place| place.file().contains("brotli-decompressor"));
        if !is_caught {
            abort(panicked);
        }
    }));
}

/// Every form that is read, by name, with its `content-encoding`.
fn encoded(plain: &[u8], cut: u8) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    const ENDLESS: &str = "memory takes everything";
    let (left, right) = plain.split_at(plain.len() * usize::from(cut) / 256);
    let member = |plain: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).and_then(|()| encoder.finish()).expect(ENDLESS)
    };
    let frame = |plain: &[u8]| zstd::encode_all(plain, i32::from(cut % 4)).expect(ENDLESS);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::best());
    let mut brotli = CompressorWriter::new(Vec::new(), 4096, u32::from(cut % 6), 22);
    zlib.write_all(plain).and_then(|()| bare.write_all(plain)).and_then(|()| brotli.write_all(plain)).expect(ENDLESS);
    vec![
        ("gzip", "gzip", member(plain)),
        ("gzip of two members", "x-gzip", [member(left), member(right)].concat()),
        ("zlib", "deflate", zlib.finish().expect(ENDLESS)),
        ("bare deflate", "deflate", bare.finish().expect(ENDLESS)),
        ("br", "br", brotli.into_inner()),
        ("zstd", "zstd", frame(plain)),
        ("zstd of two frames", "zstd", [frame(left), frame(right)].concat()),
    ]
}

/// What the bytes stand for, if they are whole and regular.
fn decoded(coding: &str, wire: &[u8]) -> Option<Vec<u8>> {
    match coding {
        "gzip" | "x-gzip" | "identity, gzip" => all_of(MultiGzDecoder::new(wire)),
        "deflate" if is_zlib(wire) => all_of(ZlibDecoder::new(wire)),
        "deflate" => all_of(DeflateDecoder::new(wire)),
        "br" if has_ordinary_window(wire) => panic::catch_unwind(|| all_of(Decompressor::new(wire, 4096))).ok()?,
        "zstd" => {
            let mut decoder = zstd::Decoder::with_buffer(wire).ok()?;
            decoder.window_log_max(WINDOW_BITS).ok()?;
            all_of(decoder)
        }
        "identity" => Some(wire.to_vec()),
        _ => None,
    }
}

fn all_of(decoder: impl Read) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let length = decoder.take(MOST_DECODED).read_to_end(&mut plain).ok()?;
    ((length as u64) < MOST_DECODED).then_some(plain)
}

/// Whether the first byte is one of a zlib header (RFC 1950 §2.2). Bare deflate data has others.
fn is_zlib(wire: &[u8]) -> bool {
    wire.first().is_some_and(|method| method & 0x0F == 8)
}

/// Neither 16 MiB, of which the meter allows the half, nor the "large window" that is no RFC 7932.
fn has_ordinary_window(wire: &[u8]) -> bool {
    wire.first().is_some_and(|bits| bits & 0x0F != 0x0F && bits & 0x7F != 0x11)
}
