//! Undoes brotli (RFC 7932).
//!
//! The decoder asks for its window as the text grows, so that a short answer never costs the 4 MiB that most servers
//! allow themselves. Refused are windows beyond 8 MiB, when it comes to that, and "large window" streams at once: these
//! are no RFC 7932 and could ask for 1 GiB.

use std::panic::{AssertUnwindSafe, catch_unwind};

use brotli_decompressor::{Allocator, BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};

use super::{Lost, Step};

/// Largest window, and a little: the decoder writes some hundred bytes beyond its end.
const MAX_CELL_BYTES: usize = 8 * 1024 * 1024 + 4096;

/// Decodes one body.
pub(super) struct Brotli {
    /// Some 3 KiB, and as much again in tables from the start.
    state: Box<BrotliState<Window, StandardAlloc, StandardAlloc>>,
    has_ended: bool,
}

impl Brotli {
    pub(super) fn new() -> Self {
        let state = BrotliState::new_strict(Window::default(), StandardAlloc::default(), StandardAlloc::default());
        Self { state: Box::new(state), has_ended: false }
    }

    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Lost> {
        if self.has_ended {
            return Ok(Step { used: input.len(), made: 0 }); // what follows is not ours to read
        }
        let (mut used, mut made, mut made_in_all) = (0, 0, 0);
        let (mut input_left, mut output_left) = (input.len(), output.len());
        let decoding = || {
            BrotliDecompressStream(
                &mut input_left,
                &mut used,
                input,
                &mut output_left,
                &mut made,
                output,
                &mut made_in_all,
                &mut self.state,
            )
        };
        // The decoder has been known to panic on malformed bytes. Metering must not take the answer down with it.
        match catch_unwind(AssertUnwindSafe(decoding)).map_err(|_| Lost)? {
            BrotliResult::ResultFailure => return Err(Lost),
            BrotliResult::ResultSuccess => self.has_ended = true,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        Ok(Step { used, made })
    }
}

/// Gives out windows (and small tables of bytes) up to [`MAX_CELL_BYTES`].
#[derive(Default)]
struct Window(StandardAlloc);

impl Allocator<u8> for Window {
    type AllocatedMemory = <StandardAlloc as Allocator<u8>>::AllocatedMemory;

    fn alloc_cell(&mut self, bytes: usize) -> Self::AllocatedMemory {
        // The decoder fails when it gets nothing, as it does without memory.
        if bytes > MAX_CELL_BYTES {
            Self::AllocatedMemory::default()
        } else {
            Allocator::<u8>::alloc_cell(&mut self.0, bytes)
        }
    }

    fn free_cell(&mut self, _: Self::AllocatedMemory) {}
}

#[cfg(test)]
mod tests {
    use super::super::encode::{Encoding, decoded};
    use super::*;

    /// Less than 8 MiB, and more.
    const LENGTHS: [usize; 2] = [7 * 1024 * 1024, 9 * 1024 * 1024];

    fn encoded(length: usize, window_bits: u32) -> Vec<u8> {
        let wire = Encoding::Brotli { quality: 1, window_bits }.encoded(&vec![b'x'; length]);
        let announced = match wire[0] & 0x0f {
            0x0b => 22,
            0x0d => 23,
            0x0f => 24,
            _ => 0,
        };
        assert_eq!(announced, window_bits);
        wire
    }

    #[test]
    fn a_window_grows_to_8_mib_and_no_further() {
        for length in LENGTHS {
            for (window_bits, is_read) in [(22, true), (23, true), (24, length <= 8 * 1024 * 1024)] {
                let wire = encoded(length, window_bits);
                let plain = decoded("br", wire.chunks(1000)).map(|plain| plain.len());
                let expected = if is_read { Ok(length) } else { Err(Lost) };
                assert_eq!(plain, expected, "{length} bytes, a window of {window_bits} bits");
            }
        }
    }

    #[test]
    fn large_windows_are_refused_at_once() {
        for window_bits in 10..=30 {
            let head = [0x11, window_bits];
            assert_eq!(decoded("br", head.chunks(1)), Err(Lost), "{window_bits} bits");
        }
    }

    #[test]
    fn the_stream_ends_where_it_says() {
        let text = b"data: {}\n\n";
        let once = Encoding::brotli(5).encoded(text);
        let twice = [&once[..], &once[..]].concat();
        for piece in 1..=twice.len() {
            // RFC 7932 knows no second stream.
            assert_eq!(decoded("br", twice.chunks(piece)).as_deref(), Ok(&text[..]), "in pieces of {piece}");
        }
    }

    #[test]
    fn metadata_is_no_text() {
        let wire = b"\x2c\x02hello\x03";
        for piece in 1..=wire.len() {
            assert_eq!(decoded("br", wire.chunks(piece)).as_deref(), Ok(&b""[..]), "in pieces of {piece}");
        }
    }
}
