//! The withering token: its form, its check digits, and the digest under which it is stored and looked up.
//!
//! `sk-lp-` + 27 base62 digits (160 random bits) + 6 base62 digits (CRC-32 of everything before them). Clients that
//! insist on `sk-` accept it, a typo is caught before any lookup, and secret scanners can find leaks by
//! [`SCANNER_PATTERN`].

use std::fmt;

use ring::{digest, hmac};

use crate::secret::Secret;

/// A regular expression that finds our tokens in text.
pub const SCANNER_PATTERN: &str = r"\bsk-lp-[0-9A-Za-z]{33}\b";

const PREFIX: &str = "sk-lp-";
const RANDOM_DIGITS: usize = 27;
const CHECK_DIGITS: usize = 6;
const LENGTH: usize = PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A well-formed proxy token: right prefix, right length, right check digits. Whether it is known is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyToken(Secret);

/// The text is not a proxy token: wrong prefix, length, alphabet or check digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a proxy token: wrong prefix, length, alphabet or check digits")]
pub struct NotAToken;

impl ProxyToken {
    /// Makes a token of 160 random bits, which the caller draws from the system's generator.
    pub fn from_random(random: [u8; 20]) -> Self {
        let mut text = String::with_capacity(LENGTH);
        text.push_str(PREFIX);
        push_base62::<RANDOM_DIGITS>(&mut text, &random);
        let check = crc32fast::hash(text.as_bytes());
        push_base62::<CHECK_DIGITS>(&mut text, &check.to_be_bytes());
        Self(Secret::new(text))
    }

    /// Checks form and check digits. Costs no lookup and no hash of the secret kind, so junk is cheap to refuse.
    ///
    /// # Errors
    /// [`NotAToken`] when anything about the form is wrong.
    pub fn parse(text: &str) -> Result<Self, NotAToken> {
        let (body, check) = text.split_at_checked(LENGTH - CHECK_DIGITS).ok_or(NotAToken)?;
        if text.len() != LENGTH || !body.starts_with(PREFIX) {
            return Err(NotAToken);
        }
        let digits = body.get(PREFIX.len()..).ok_or(NotAToken)?;
        if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(NotAToken);
        }
        let mut expected = String::with_capacity(CHECK_DIGITS);
        push_base62::<CHECK_DIGITS>(&mut expected, &crc32fast::hash(body.as_bytes()).to_be_bytes());
        if check == expected { Ok(Self(Secret::new(text))) } else { Err(NotAToken) }
    }

    /// The token itself, for the one answer that shows it.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// Writes the big-endian number in exactly `DIGITS` base62 digits, left-padded with zeros.
fn push_base62<const DIGITS: usize>(text: &mut String, number: &[u8]) {
    let mut digits = [0u8; DIGITS];
    for &byte in number {
        // digits = digits * 256 + byte
        let mut carry = u32::from(byte);
        for digit in digits.iter_mut().rev() {
            let value = u32::from(*digit).wrapping_mul(256).wrapping_add(carry);
            *digit = u8::try_from(value % 62).unwrap_or(0);
            carry = value / 62;
        }
    }
    for digit in digits {
        text.push(char::from(BASE62.get(usize::from(digit)).copied().unwrap_or(b'0')));
    }
}

/// The key of every lookup: HMAC-SHA-256(pepper, SHA-256(token)).
///
/// The inner hash lets hashes of the predecessor's tokens be imported without their tokens. A stolen database is
/// useless for confirming a leaked token without the pepper.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest as stored.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 octets to store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenDigest(..)")
    }
}

/// The random key of [`TokenDigest`]. Kept sealed in the store.
#[derive(Clone)]
pub struct Pepper(hmac::Key);

impl Pepper {
    /// Takes 32 random octets.
    pub fn new(octets: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, octets))
    }

    /// The digest under which this token is stored.
    pub fn digest(&self, token: &ProxyToken) -> TokenDigest {
        let inner = digest::digest(&digest::SHA256, token.expose().as_bytes());
        self.digest_of_hash(inner.as_ref())
    }

    /// The digest for a token of which only the SHA-256 is known.
    pub fn digest_of_hash(&self, sha256: &[u8]) -> TokenDigest {
        let tag = hmac::sign(&self.0, sha256);
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        TokenDigest(bytes)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Pepper(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_has_the_published_form() {
        let smallest = ProxyToken::from_random([0; 20]);
        let largest = ProxyToken::from_random([255; 20]);
        for token in [&smallest, &largest] {
            assert_eq!(token.expose().len(), 39);
            assert!(token.expose().starts_with("sk-lp-"));
            assert_eq!(format!("{token:?}"), "ProxyToken([secret])");
        }
        assert!(smallest.expose().starts_with("sk-lp-000000000000000000000000000"));
        assert_ne!(smallest, largest);
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let good = ProxyToken::from_random([7; 20]).expose().to_owned();
        let shouted = good.to_uppercase();
        for text in [
            "",
            "sk-",
            "sk-lp-",
            "sk-proj-abcdef",
            &good[1..],
            &format!("{good}0"),
            &shouted,
            "sk-lp-ééééééééééééééééé",
        ] {
            assert_eq!(ProxyToken::parse(text), Err(NotAToken), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_made_token_parses(random: [u8; 20]) {
            let token = ProxyToken::from_random(random);
            prop_assert_eq!(ProxyToken::parse(token.expose()), Ok(token));
        }

        #[test]
        fn one_wrong_digit_is_found(random: [u8; 20], place in 6usize..39, digit in 0usize..62) {
            let mut text = ProxyToken::from_random(random).expose().as_bytes().to_vec();
            prop_assume!(text[place] != BASE62[digit]);
            text[place] = BASE62[digit];
            prop_assert!(ProxyToken::parse(std::str::from_utf8(&text).unwrap()).is_err());
        }
    }

    #[test]
    fn the_digest_depends_on_pepper_and_token() {
        let token = ProxyToken::from_random([1; 20]);
        let (one, two) = (Pepper::new(&[1; 32]), Pepper::new(&[2; 32]));
        assert_eq!(one.digest(&token), one.digest(&token));
        assert_ne!(one.digest(&token), two.digest(&token));
        assert_ne!(one.digest(&token), one.digest(&ProxyToken::from_random([2; 20])));
    }
}
