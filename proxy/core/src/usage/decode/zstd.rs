//! Undoes zstd (RFC 8878), as it comes over HTTP: windows have at most 8 MiB (RFC 9659).
//!
//! The library decodes frames; what may stand behind one is decided here: another frame, skippable ones among them, or
//! bytes that are none, which are not ours to read. It also knows formats older than its 1.0, whose windows it does not
//! limit. They are refused by the first byte of their frames.

use ::zstd::stream::raw::{DParameter, Decoder, Operation};

use super::{Lost, Step};

const MAX_WINDOW_BITS: u32 = 23;

/// Decodes one body.
pub(super) struct Zstd {
    /// Some 100 KiB, and a window and two blocks of 128 KiB once a frame is here: made when its first byte comes.
    decoder: Option<Decoder<'static>>,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    BeforeFirst,
    InFrame,
    BetweenFrames,
    Ended,
}

impl Zstd {
    pub(super) fn new() -> Self {
        Self { decoder: None, stage: Stage::BeforeFirst }
    }

    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Lost> {
        match (self.stage, input.first()) {
            (Stage::InFrame, _) => {}
            (Stage::Ended, _) => return Ok(Step { used: input.len(), made: 0 }),
            (Stage::BeforeFirst | Stage::BetweenFrames, None) => return Ok(Step { used: 0, made: 0 }),
            (Stage::BeforeFirst | Stage::BetweenFrames, Some(first)) if begins_frame(*first) => {
                self.stage = Stage::InFrame;
            }
            (Stage::BetweenFrames, Some(_)) => {
                self.stage = Stage::Ended;
                return Ok(Step { used: input.len(), made: 0 });
            }
            (Stage::BeforeFirst, Some(_)) => return Err(Lost),
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(new_decoder()?),
        };
        let status = decoder.run_on_buffers(input, output).map_err(|_| Lost)?;
        if status.remaining == 0 {
            self.stage = Stage::BetweenFrames;
        }
        Ok(Step { used: status.bytes_read, made: status.bytes_written })
    }
}

/// The first byte of the magic number of a frame (RFC 8878 §3.1.1), or of a skippable one (§3.1.2).
fn begins_frame(first: u8) -> bool {
    matches!(first, 0x28 | 0x50..=0x5f)
}

/// Fails without memory only.
fn new_decoder() -> Result<Decoder<'static>, Lost> {
    let mut decoder = Decoder::new().map_err(|_| Lost)?;
    decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_BITS)).map_err(|_| Lost)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use super::super::encode::{Encoding, decoded};
    use super::*;

    const TEXT: &[u8] = b"data: {\"a\": \"hello hello hello hello\"}\n\n";

    fn frame(plain: &[u8]) -> Vec<u8> {
        Encoding::zstd(3).encoded(plain)
    }

    fn skippable(sixteenth: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&[0x50 | sixteenth, 0x2a, 0x4d, 0x18][..], &length, content].concat()
    }

    #[test]
    fn frames_follow_one_another_at_any_split() {
        let (head, tail) = TEXT.split_at(20);
        for (name, wire) in [
            ("two frames", [frame(head), frame(tail)].concat()),
            ("an empty frame in between", [frame(head), frame(b""), frame(tail)].concat()),
            ("a skippable frame first", [skippable(0, b"hello"), frame(TEXT)].concat()),
            ("an empty skippable frame", [frame(head), skippable(7, b""), frame(tail)].concat()),
            ("a skippable frame last", [frame(TEXT), skippable(15, &[0xff; 300])].concat()),
            ("a frame a byte", TEXT.iter().flat_map(|byte| frame(&[*byte])).collect()),
            ("frames and padding", [frame(head), frame(tail), vec![0; 9]].concat()),
            ("the size announced, no checksum", ::zstd::bulk::compress(TEXT, 1).unwrap()),
        ] {
            for piece in 1..=wire.len() {
                assert_eq!(decoded("zstd", wire.chunks(piece)).as_deref(), Ok(TEXT), "{name} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn windows_beyond_8_mib_are_refused() {
        for (window_bits, expected) in [(23, Ok(TEXT.to_vec())), (24, Err(Lost)), (25, Err(Lost))] {
            let wire = Encoding::Zstd { level: 1, window_bits }.encoded(TEXT);
            for piece in [1, wire.len()] {
                assert_eq!(decoded("zstd", wire.chunks(piece)), expected, "{window_bits} bits, in pieces of {piece}");
            }
        }
        // A frame without a window of its own announces its size (here in 4 bytes), and needs as much.
        for (size, expected) in [(8 * 1024 * 1024, Ok(Vec::new())), (8 * 1024 * 1024 + 1, Err(Lost))] {
            let head = [&b"\x28\xb5\x2f\xfd\xa0"[..], &u32::to_le_bytes(size)].concat();
            for piece in [1, head.len()] {
                assert_eq!(decoded("zstd", head.chunks(piece)), expected, "{size} bytes, in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_frame_of_today_is_lost() {
        let old_formats = (0x22..=0x27).map(|version| [version, 0xb5, 0x2f, 0xfd]).chain([[0xfd, 0x2f, 0xb5, 0x1e]]);
        for magic in old_formats {
            let wire = [&magic[..], &[0; 100]].concat();
            assert_eq!(decoded("zstd", [&wire[..]]), Err(Lost), "{magic:x?}");
            let behind = [frame(TEXT), wire].concat();
            assert_eq!(decoded("zstd", [&behind[..]]).as_deref(), Ok(TEXT), "{magic:x?} behind a frame");
        }
        for wire in [&b"\x28\xb5\x2f\xfe\0\0\0\0\0\0"[..], b"\x50\x2a\x4d\x19\0\0\0\0\0\0"] {
            for piece in [1, 64] {
                assert_eq!(decoded("zstd", wire.chunks(piece)), Err(Lost), "{}", wire.escape_ascii());
            }
        }
    }

    #[test]
    fn a_wrong_checksum_is_lost() {
        let mut wire = frame(TEXT);
        *wire.last_mut().unwrap() ^= 1;
        for piece in 1..=wire.len() {
            assert_eq!(decoded("zstd", wire.chunks(piece)), Err(Lost), "in pieces of {piece}");
        }
    }
}
