//! Requests that nobody thought of: cases of the corpus, changed at random. The same seed makes the same ones.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Octets that parsers act upon.
const OCTETS: &[u8] = b"\r\n\0 \t\x0b\x7f\xff:;,=0+-_/?#\"";

/// Runs of octets that parsers act upon.
const RUNS: &[&[u8]] = &[b"\r\n", b"\r\n\r\n", b"\n\n", b"0x", b"..", b"%2e", b"%2F", b"%00"];

/// Lines that say where a message ends, or what a connection is.
const LINES: &[&[u8]] = &[
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 99999\r\n",
    b"Content_Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b" Transfer-Encoding: chunked\r\n",
    b"Host: other.test\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, transfer-encoding, content-length\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"TE: trailers\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"\r\n",
    b"GET /openai/v1/smuggled HTTP/1.1\r\n",
];

/// Makes a mutant of some requests, none of which is empty.
pub fn mutant(seed: u64, number: u64, requests: &[Vec<u8>]) -> Vec<u8> {
    // A generator for each: a mutant can be made again without those before it.
    let mut dice = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes = any(&mut dice, requests).clone();
    for _ in 0..dice.random_range(1..=3) {
        bytes = changed(&mut dice, &bytes, requests);
    }
    bytes
}

fn any<'a, T>(dice: &mut StdRng, of: &'a [T]) -> &'a T {
    &of[dice.random_range(0..of.len())]
}

fn changed(dice: &mut StdRng, bytes: &[u8], requests: &[Vec<u8>]) -> Vec<u8> {
    let at = dice.random_range(0..=bytes.len());
    let (left, right) = bytes.split_at(at);
    match dice.random_range(0..14) {
        0 => with_octet(bytes, at, |octet| octet ^ (1u8 << dice.random_range(0..8u32))),
        1 => with_octet(bytes, at, |_| dice.random()),
        2 => with_octet(bytes, at, |octet| octet ^ 0x20), // letter case, and other things
        3 => [left, &[*any(dice, OCTETS)], right].concat(),
        4 => [left, *any(dice, RUNS), right].concat(),
        5 => [left, &right[dice.random_range(0..=right.len().min(4))..]].concat(),
        6 => left.to_vec(),
        7 => {
            let other = any(dice, requests);
            [left, &other[dice.random_range(0..=other.len())..]].concat()
        }
        8 => [bytes, any(dice, requests).as_slice()].concat(),
        9 => with_digit(dice, bytes, at),
        choice => {
            let mut lines: Vec<&[u8]> = bytes.split_inclusive(|octet| *octet == b'\n').collect();
            let (one, other) = (dice.random_range(0..=lines.len()), dice.random_range(0..=lines.len()));
            match (choice, lines.get(one).copied()) {
                (10, Some(line)) => lines.insert(other, line),
                (11, Some(_)) if other < lines.len() => lines.swap(one, other),
                (12, Some(_)) => {
                    lines.remove(one);
                }
                _ => lines.insert(one, *any(dice, LINES)),
            }
            lines.concat()
        }
    }
}

fn with_octet(bytes: &[u8], at: usize, change: impl FnOnce(u8) -> u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(octet) = bytes.get_mut(at) {
        *octet = change(*octet);
    }
    bytes
}

/// Another digit for the next one from here on: mostly that of a length or a size.
fn with_digit(dice: &mut StdRng, bytes: &[u8], from: usize) -> Vec<u8> {
    let next = bytes[from..].iter().position(u8::is_ascii_digit).map_or(bytes.len(), |found| from + found);
    with_octet(bytes, next, |_| b'0' + dice.random_range(0..10u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_made_by_seed_and_number_alone_and_each_is_another() {
        let requests = [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), b"POST /1 HTTP/1.1\r\n\r\n".to_vec()];
        let made = |seed: u64| (0..500).map(|number| mutant(seed, number, &requests)).collect::<Vec<_>>();
        let one = made(1);
        assert_eq!(one, made(1));
        assert_ne!(one, made(2));
        assert!(one.iter().filter(|mutant| !requests.contains(mutant)).count() > 400, "most are changed");
        // Whatever became of it before, a change is no panic.
        let mut dice = StdRng::seed_from_u64(3);
        for request in [&b""[..], b"\n", b"7"] {
            for _ in 0..500 {
                assert!(changed(&mut dice, request, &requests).len() < 200);
            }
        }
    }
}
