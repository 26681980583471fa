//! Undoes content codings step by step: gzip, deflate, br and zstd.
//!
//! Each coding has a decoder with one function, `step`: some input is taken, some output is made, wherever the input is
//! split. What they share stands here: which coding a head names, and where decoding stops. A decoder is made only for
//! an answer that has its coding.
//!
//! Memory is the decoder's window and tables, and one step of output on the stack. A window has at most 8 MiB: as much
//! as zstd may ask for over HTTP (RFC 9659). Decoding stops, and usage is unknown, at broken data and at more than
//! 64 MiB plus 100 times the bytes received: text shrinks to a tenth or so; only a bomb shrinks to a thousandth.
//!
//! A chain of codings is not read: no provider sends one, and each link would need a window of its own.

mod brotli;
#[cfg(test)]
pub(super) mod encode;
mod inflate;
mod zstd;

use std::fmt;

use self::brotli::Brotli;
use self::inflate::Inflate;
use self::zstd::Zstd;
use super::Lost;

/// Decoded at once, on the stack.
const STEP_BYTES: usize = 8192;
const FREE_OUTPUT_BYTES: u64 = 64 * 1024 * 1024;
const MAX_RATIO: u64 = 100;

/// What `content-encoding` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
    /// A coding, or a chain of codings, that is not read.
    Unread,
}

impl Coding {
    pub(crate) fn of(field: &[u8]) -> Self {
        let mut codings = field
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        let Some(only) = codings.next() else { return Self::Identity };
        let is = |name: &[u8]| only.eq_ignore_ascii_case(name);
        if codings.next().is_some() {
            Self::Unread
        } else if is(b"gzip") || is(b"x-gzip") {
            Self::Gzip
        } else if is(b"deflate") {
            Self::Deflate
        } else if is(b"br") {
            Self::Brotli
        } else if is(b"zstd") {
            Self::Zstd
        } else {
            Self::Unread
        }
    }
}

/// Decodes one body.
pub(crate) struct Decoder {
    method: Method,
    received: u64,
    decoded: u64,
}

enum Method {
    Inflate(Inflate),
    Brotli(Brotli),
    Zstd(Zstd),
}

/// Bytes taken from the input, and bytes written to the output. If both are 0, nothing more comes without more input.
#[derive(Clone, Copy, Debug)]
struct Step {
    used: usize,
    made: usize,
}

impl Decoder {
    /// `None` where there is nothing to undo, or nothing that is undone here.
    pub(crate) fn new(coding: Coding) -> Option<Self> {
        let method = match coding {
            Coding::Identity | Coding::Unread => return None,
            Coding::Gzip => Method::Inflate(Inflate::gzip()),
            Coding::Deflate => Method::Inflate(Inflate::deflate()),
            Coding::Brotli => Method::Brotli(Brotli::new()),
            Coding::Zstd => Method::Zstd(Zstd::new()),
        };
        Some(Self { method, received: 0, decoded: 0 })
    }

    /// Decodes the next bytes into `sink`, in steps of at most [`STEP_BYTES`].
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Lost>,
    ) -> Result<(), Lost> {
        self.received = self.received.saturating_add(count(bytes.len()));
        let mut buffer = [0u8; STEP_BYTES];
        loop {
            let Step { used, made } = self.method.step(bytes, &mut buffer)?;
            bytes = bytes.get(used..).unwrap_or_default();
            self.decoded = self.decoded.saturating_add(count(made));
            if self.decoded > FREE_OUTPUT_BYTES.saturating_add(self.received.saturating_mul(MAX_RATIO)) {
                return Err(Lost);
            }
            let plain = buffer.get(..made).unwrap_or_default();
            if !plain.is_empty() {
                sink(plain)?;
            } else if used == 0 {
                // A short step is no sign of the end: a decoder may hold more behind the turn of its window.
                return if bytes.is_empty() { Ok(()) } else { Err(Lost) };
            }
        }
    }
}

impl Method {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Lost> {
        match self {
            Self::Inflate(inflate) => inflate.step(input, output),
            Self::Brotli(brotli) => brotli.step(input, output),
            Self::Zstd(zstd) => zstd.step(input, output),
        }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (received, decoded) = (&self.received, &self.decoded);
        f.debug_struct("Decoder").field("received", received).field("decoded", decoded).finish_non_exhaustive()
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::encode::{Dice, Encoding, decoded};
    use super::*;

    const TEXT: &[u8] = b"data: {\"a\": \"hello hello hello hello\"}\n\n";

    /// The recorded answers, largest first.
    fn recordings() -> Vec<Vec<u8>> {
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/provider"));
        let mut bodies: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let is_about = name.ends_with(".meta.json") || name == "manifest.json";
                !is_about && (name.ends_with(".json") || name.ends_with(".sse"))
            })
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        bodies.sort_by_key(|body| std::cmp::Reverse(body.len()));
        assert!(bodies.len() >= 50);
        bodies
    }

    #[test]
    fn every_coding_decodes_at_any_split_whatever_follows() {
        for encoding in Encoding::every() {
            let wire = encoding.encoded(TEXT);
            for piece in 1..=wire.len() {
                let plain = decoded(encoding.field(), wire.chunks(piece));
                assert_eq!(plain.as_deref(), Ok(TEXT), "{encoding:?} in pieces of {piece}");
            }
            let padded = [wire, vec![0; 9]].concat();
            for piece in [1, 7, padded.len()] {
                let plain = decoded(encoding.field(), padded.chunks(piece));
                assert_eq!(plain.as_deref(), Ok(TEXT), "{encoding:?} with padding, in pieces of {piece}");
            }
        }
    }

    #[test]
    fn every_recording_decodes_from_every_coding() {
        for (plain, seed) in recordings().iter().zip(1..) {
            for encoding in Encoding::ALL {
                let wire = encoding.encoded(plain);
                let whole = decoded(encoding.field(), [&wire[..]]);
                assert!(whole.as_ref() == Ok(plain), "{encoding:?} of recording {seed}");
                let split = decoded(encoding.field(), Dice::new(seed).pieces(&wire));
                assert!(split.as_ref() == Ok(plain), "{encoding:?} of recording {seed}, split");
            }
        }
    }

    #[test]
    fn one_byte_at_a_time_changes_nothing() {
        let largest = &recordings()[0];
        for encoding in Encoding::ALL {
            let wire = encoding.encoded(largest);
            assert!(decoded(encoding.field(), wire.chunks(1)).as_ref() == Ok(largest), "{encoding:?}");
        }
    }

    #[test]
    fn what_is_flushed_is_decoded_when_it_arrives() {
        let text: Vec<String> = (0..200).map(|n| format!("data: {{\"n\": {n}, \"same\": \"same\"}}\n\n")).collect();
        let events: Vec<&[u8]> = text.iter().map(String::as_bytes).collect();
        for encoding in Encoding::ALL {
            let wire = encoding.flushed(&events);
            let mut decoder = Decoder::new(Coding::of(encoding.field().as_bytes())).unwrap();
            for (event, wire) in events.iter().zip(&wire) {
                let mut plain = Vec::new();
                for byte in wire.chunks(1) {
                    decoder
                        .push(byte, &mut |step| {
                            plain.extend_from_slice(step);
                            Ok(())
                        })
                        .unwrap();
                }
                assert_eq!(&plain, event, "{encoding:?}");
            }
        }
    }

    #[test]
    fn a_cut_body_gives_the_beginning_of_its_text() {
        for encoding in Encoding::every() {
            let wire = encoding.encoded(TEXT);
            for end in 0..wire.len() {
                let plain = decoded(encoding.field(), wire[..end].chunks(3)).unwrap();
                assert!(TEXT.starts_with(&plain), "{encoding:?} cut at {end}");
            }
        }
    }

    #[test]
    fn broken_bodies_end_in_an_error_or_in_other_text_but_never_in_a_panic() {
        let plain = &recordings()[0][..4000];
        for encoding in Encoding::ALL {
            let wire = encoding.encoded(plain);
            let mut broken = 0;
            for seed in 1..=300 {
                let mut dice = Dice::new(seed);
                let mut mutant = wire.clone();
                for _ in 0..=dice.below(4) {
                    let place = dice.below(mutant.len());
                    mutant[place] ^= 1 << dice.below(8);
                }
                broken += u32::from(decoded(encoding.field(), dice.pieces(&mutant)).is_err());
                // The beginning of a body, then noise.
                let kept = dice.below(wire.len());
                let noise = (0..dice.below(600)).map(|_| dice.byte()).collect();
                let _ = decoded(encoding.field(), dice.pieces(&[wire[..kept].to_vec(), noise].concat()));
            }
            assert!(broken > 0, "{encoding:?}: no mutant was noticed");
        }
    }

    #[test]
    fn what_was_never_encoded_is_no_text() {
        for field in ["gzip", "br", "zstd"] {
            assert_eq!(decoded(field, [&b"{\"usage\": {}}"[..]]), Err(Lost), "{field}");
        }
    }

    #[test]
    fn large_bodies_decode_across_steps() {
        let numbers: Vec<u8> = (0..100_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
        let exact = vec![b'x'; STEP_BYTES * 4];
        for encoding in Encoding::ALL {
            for (plain, piece) in [(&numbers, 1000), (&exact, 7)] {
                let wire = encoding.encoded(plain);
                assert!(decoded(encoding.field(), wire.chunks(piece)).as_ref() == Ok(plain), "{encoding:?}");
            }
        }
    }

    #[test]
    fn a_bomb_is_lost_before_it_costs_much() {
        let plain = vec![0; 96 * 1024 * 1024];
        for encoding in [Encoding::Gzip, Encoding::brotli(1), Encoding::zstd(1)] {
            let bomb = encoding.encoded(&plain);
            let mut decoder = Decoder::new(Coding::of(encoding.field().as_bytes())).unwrap();
            let mut seen = 0;
            let outcome = decoder.push(&bomb, &mut |step| {
                seen += step.len() as u64;
                Ok(())
            });
            assert_eq!(outcome, Err(Lost), "{encoding:?}");
            assert!(seen <= FREE_OUTPUT_BYTES + MAX_RATIO * bomb.len() as u64, "{encoding:?}: {seen}");
        }
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
            ("br", Coding::Brotli),
            ("BR,", Coding::Brotli),
            ("Zstd", Coding::Zstd),
            ("gzip, gzip", Coding::Unread),
            ("gzip, br", Coding::Unread),
            ("x-br", Coding::Unread),
            ("dcb", Coding::Unread),
            ("compress", Coding::Unread),
        ] {
            assert_eq!(Coding::of(field.as_bytes()), expected, "{field}");
        }
    }

    #[test]
    fn a_decoder_is_small_until_it_decodes() {
        assert!(size_of::<Decoder>() <= 160, "{}", size_of::<Decoder>());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_in_any_coding_at_any_split_comes_back(
            runs in prop::collection::vec((any::<[u8; 6]>(), 1usize..80), 0..60),
            seed in 1u64..,
        ) {
            let plain: Vec<u8> = runs.iter().flat_map(|(word, times)| word.repeat(*times)).collect();
            for encoding in Encoding::ALL {
                let wire = encoding.encoded(&plain);
                let split = decoded(encoding.field(), Dice::new(seed).pieces(&wire));
                prop_assert_eq!(split.as_ref(), Ok(&plain), "{:?}", encoding);
            }
        }
    }
}
