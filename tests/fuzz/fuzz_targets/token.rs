//! Are exactly the well-formed tokens taken, and does every made token read back and every slip of the pen show?
//!
//! Check digits and the base62 of the random bits are computed a second time here, bit by bit and by long division.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::token::ProxyToken;

const PREFIX: &[u8] = b"sk-lp-";
const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Before the check digits.
const BODY: usize = 33;
const LENGTH: usize = 39;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let parsed = ProxyToken::parse(text);
        assert_eq!(parsed.is_ok(), is_token(input), "{text:?}");
        assert!(parsed.is_err() || parsed.is_ok_and(|token| token.expose() == text));
    }
    if let Some((random, slip)) = input.split_first_chunk::<20>() {
        let token = ProxyToken::from_random(*random);
        let text = token.expose().as_bytes();
        assert!(is_token(text), "a made token has the published form");
        assert_eq!(number::<20>(&text[PREFIX.len()..BODY]), Some(*random), "it carries the random bits");
        assert!(!format!("{token:?}").contains(token.expose()), "it is not printed");
        assert_eq!(ProxyToken::parse(token.expose()).as_ref(), Ok(&token));
        if let Some(wrong) = slipped(text, slip) {
            assert!(ProxyToken::parse(&wrong).is_err(), "{wrong} for {}", token.expose());
        }
    }
});

fn is_token(text: &[u8]) -> bool {
    text.len() == LENGTH
        && text.starts_with(PREFIX)
        && text[PREFIX.len()..].iter().all(u8::is_ascii_alphanumeric)
        && number::<4>(&text[BODY..]) == Some(crc32(&text[..BODY]).to_be_bytes())
}

/// One letter changed, dropped or doubled, or two neighbours of one kind swapped; `None` where that changes nothing.
fn slipped(text: &[u8], slip: &[u8]) -> Option<String> {
    let [kind, place, letter, ..] = *slip else { return None };
    let at = usize::from(place) % LENGTH;
    let mut wrong = text.to_vec();
    match kind % 4 {
        0 => wrong[at] = letter,
        1 => {
            wrong.remove(at);
        }
        2 => wrong.insert(at, wrong[at]),
        // Across the border two swapped digits may check by chance.
        _ if at + 1 < LENGTH && at + 1 != BODY => wrong.swap(at, at + 1),
        _ => return None,
    }
    String::from_utf8(wrong).ok().filter(|wrong| wrong.as_bytes() != text)
}

/// A base62 number as big-endian octets; `None` if it has more of them or another digit.
fn number<const OCTETS: usize>(digits: &[u8]) -> Option<[u8; OCTETS]> {
    let mut octets = [0; OCTETS];
    for digit in digits {
        let mut carry = DIGITS.iter().position(|known| known == digit)?;
        for octet in octets.iter_mut().rev() {
            let sum = usize::from(*octet) * DIGITS.len() + carry;
            *octet = (sum % 256) as u8;
            carry = sum / 256;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(octets)
}

/// CRC-32 of IEEE 802.3, one bit at a time.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
