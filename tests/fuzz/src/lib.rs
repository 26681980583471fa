//! What the fuzz targets share: second readers to compare ours with, and ways to cut bytes into pieces.
//!
//! The readers here are written for one purpose, to be obviously right (or, where they say so, obviously lenient), and
//! in another shape than the product's, so that one mistake is not made twice. Where a crate of good standing reads the
//! same thing, it does the reading.

#![forbid(unsafe_code)]

pub mod chunked;
pub mod events;
pub mod form;
pub mod http;
pub mod json;
pub mod lenient;
pub mod metered;

/// Cuts bytes into pieces whose sizes the plan gives in turn, 1 to 32 bytes each. Without a plan: one piece.
pub fn pieces<'b>(mut bytes: &'b [u8], plan: &[u8]) -> Vec<&'b [u8]> {
    let mut sizes = plan.iter().cycle();
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let size = sizes.next().map_or(bytes.len(), |size| usize::from(size % 32) + 1);
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// The plan of all in one piece.
pub const WHOLE: &[u8] = &[];
/// The plan of one byte at a time.
pub const BYTE_BY_BYTE: &[u8] = &[0];

/// Where a text first stands in another.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
