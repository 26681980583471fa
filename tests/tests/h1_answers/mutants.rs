//! Answers that nobody thought of: the corpus, damaged at random from a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::corpus::{Case, Ending, Expected, Script};
use super::reader::{Reading, read};

/// Longer answers are about limits, and damage in them is mostly damage to their filling.
const LONGEST_BASE: usize = 600;
/// What damage in one place may put there.
const OCTETS: &[u8] = b"\r\n\0 \t:;,0123456789afx-+\"\x0b\x7f\x80\xff{}HT";
/// What damage may put in between.
const PARTS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"2\r\n{}\r\n",
    b"content-length: 2\r\n",
    b"content-length: 6\r\n",
    b"content-length: 0\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n",
    b"connection: keep-alive\r\n",
    b" ",
    b"\t",
    b"\0",
    b";",
    b":",
    b",",
    b"chunked",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 ",
    b"x: y\r\n",
    b"\x85",
    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
];

/// One damaged answer.
pub struct Mutant {
    /// The method of the request that is answered so.
    pub method: &'static str,
    /// Only `send` and `then` say anything.
    pub script: Script,
}

/// What mutants are made of.
pub struct Bases {
    all: Vec<Base>,
    /// Of these the answers that pass: damage to the others is mostly refused for what was wrong before.
    passing: Vec<usize>,
}

struct Base {
    bytes: Vec<u8>,
    to_head: bool,
}

impl Bases {
    pub fn new(cases: &[Case]) -> Self {
        let (mut all, mut passing) = (Vec::new(), Vec::new());
        for case in cases.iter().filter(|case| case.script.before.is_empty() && !case.waits()) {
            let bytes = case.script.bytes();
            if !(1..LONGEST_BASE).contains(&bytes.len()) {
                continue;
            }
            if matches!(case.expected, Expected::Passed { .. }) {
                passing.push(all.len());
            }
            all.push(Base { bytes, to_head: case.to_head() });
        }
        Self { all, passing }
    }

    /// The mutant of this seed.
    pub fn mutant(&self, seed: u64) -> Mutant {
        let mut random = StdRng::seed_from_u64(seed);
        let base = if random.random_bool(0.25) { self.any(&mut random) } else { self.passing(&mut random) };
        let mut bytes = base.bytes.clone();
        for _ in 0..random.random_range(1..=2) {
            self.damage(&mut bytes, &mut random);
        }
        let method = match random.random_range(0..4) {
            _ if base.to_head => "HEAD",
            0 => "GET",
            _ => "POST",
        };
        let then = *pick(&[Ending::Keep, Ending::Fin, Ending::Reset], &mut random);
        // What is not whole would have to wait for a clock.
        let is_whole = matches!(read(&bytes, then, base.to_head), Reading::Whole { .. });
        let then = if then == Ending::Keep && !is_whole { Ending::Fin } else { then };
        let send = in_pieces(&bytes, &mut random);
        Mutant { method, script: Script { before: Vec::new(), send, late: Vec::new(), then } }
    }

    fn any(&self, random: &mut StdRng) -> &Base {
        pick(&self.all, random)
    }

    fn passing(&self, random: &mut StdRng) -> &Base {
        &self.all[*pick(&self.passing, random)]
    }

    fn damage(&self, bytes: &mut Vec<u8>, random: &mut StdRng) {
        let at = random.random_range(0..=bytes.len());
        let to = (at + random.random_range(1..=8)).min(bytes.len());
        match random.random_range(0..8) {
            0 | 1 if at < bytes.len() => bytes[at] = *pick(OCTETS, random),
            2 => *bytes = [&bytes[..at], &bytes[to..]].concat(),
            3 => *bytes = [&bytes[..to], &bytes[at..]].concat(),
            4 | 5 => *bytes = [&bytes[..at], *pick(PARTS, random), &bytes[at..]].concat(),
            6 => {
                let other = &self.any(random).bytes;
                *bytes = [&bytes[..at], &other[random.random_range(0..=other.len())..]].concat();
            }
            _ => {
                let mut lines: Vec<&[u8]> = bytes.split_inclusive(|octet| *octet == b'\n').collect();
                if !lines.is_empty() {
                    let (one, other) = (random.random_range(0..lines.len()), random.random_range(0..lines.len()));
                    lines.swap(one, other);
                }
                *bytes = lines.concat();
            }
        }
    }
}

fn pick<'list, T>(list: &'list [T], random: &mut StdRng) -> &'list T {
    &list[random.random_range(0..list.len())]
}

/// In one piece, or in up to three.
fn in_pieces(bytes: &[u8], random: &mut StdRng) -> Vec<Vec<u8>> {
    let mut cuts: Vec<usize> = (0..random.random_range(0..=2)).map(|_| random.random_range(0..=bytes.len())).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut from = 0;
    let pieces = cuts.into_iter().map(|to| bytes[std::mem::replace(&mut from, to)..to].to_vec());
    pieces.filter(|piece| !piece.is_empty()).collect()
}
