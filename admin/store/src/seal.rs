//! Sealing: AES-256-GCM with a random nonce, bound to the one place in the database where the value belongs.
//!
//! A sealed value is `1 | key id (16) | nonce (12) | ciphertext and tag`. The place (what it is, its row, its project,
//! its version) is authenticated but not stored: a value copied to another row, project or version does not open.
//! There is no fallback for values that are not sealed.
//!
//! Random 96-bit nonces are safe far below 2^32 values per key. A project's key seals its provider keys, a handful.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

const FORMAT: u8 = 1;
const NONCE_OCTETS: usize = 12;
const TAG_OCTETS: usize = 16;
const KEY_ID_OCTETS: usize = 16;

/// Names the key that sealed a value. Not secret.
pub(crate) type KeyId = [u8; KEY_ID_OCTETS];

/// Why a value was not sealed or not opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("the system gave no random octets")]
    Random,
    #[error("a value that must be sealed is not, or is cut short")]
    NotSealed,
    #[error("a value was sealed with the key {}, which is not the key of its place", fingerprint(.sealed_by))]
    OtherKey { sealed_by: KeyId },
    #[error("a sealed value does not open in its place: it was changed, or moved from another row")]
    Broken,
}

/// Where a sealed value belongs.
pub(crate) struct Place<'a> {
    /// A constant per kind of value.
    pub label: &'static str,
    pub row_id: &'a str,
    /// Empty for values of the whole installation.
    pub project_id: &'a str,
    pub version: i64,
}

impl Place<'_> {
    /// Every part with its length before it, so that no two places have the same octets.
    fn octets(&self) -> Vec<u8> {
        let version = self.version.to_be_bytes();
        let parts = [self.label.as_bytes(), self.row_id.as_bytes(), self.project_id.as_bytes(), version.as_slice()];
        let mut octets = Vec::new();
        for part in parts {
            octets.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            octets.extend_from_slice(part);
        }
        octets
    }
}

/// A key that seals and opens values, and its name.
pub(crate) struct SealingKey {
    id: KeyId,
    key: LessSafeKey,
}

impl SealingKey {
    pub(crate) fn new(id: KeyId, octets: &[u8; 32]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, octets).map_err(|_| SealError::Broken)?;
        Ok(Self { id, key: LessSafeKey::new(key) })
    }

    pub(crate) const fn id(&self) -> &KeyId {
        &self.id
    }

    pub(crate) fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = *random::<NONCE_OCTETS>()?;
        // Encrypted in place, with room for the tag: the plain text is nowhere left behind.
        let mut text = Vec::with_capacity(plain.len().saturating_add(TAG_OCTETS));
        text.extend_from_slice(plain);
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.octets()), &mut text)
            .map_err(|_| SealError::Broken)?;
        let mut sealed = vec![FORMAT];
        sealed.extend_from_slice(&self.id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    pub(crate) fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (format, rest) = sealed.split_first().ok_or(SealError::NotSealed)?;
        let (key_id, rest) = rest.split_first_chunk::<KEY_ID_OCTETS>().ok_or(SealError::NotSealed)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_OCTETS>().ok_or(SealError::NotSealed)?;
        if *format != FORMAT || text.len() < TAG_OCTETS {
            return Err(SealError::NotSealed);
        }
        if *key_id != self.id {
            return Err(SealError::OtherKey { sealed_by: *key_id });
        }
        let mut text = Zeroizing::new(text.to_vec());
        let plain_octets = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place.octets()), text.as_mut_slice())
            .map_err(|_| SealError::Broken)?
            .len();
        text.truncate(plain_octets);
        Ok(text)
    }
}

/// Octets from the system's generator.
pub(crate) fn random<const OCTETS: usize>() -> Result<Zeroizing<[u8; OCTETS]>, SealError> {
    let mut octets = Zeroizing::new([0u8; OCTETS]);
    SystemRandom::new().fill(octets.as_mut_slice()).map_err(|_| SealError::Random)?;
    Ok(octets)
}

/// The short form of a key id for people to compare.
pub(crate) fn fingerprint(id: &KeyId) -> String {
    hex(id.first_chunk::<4>().map_or(id.as_slice(), |first| first.as_slice()))
}

pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: Place<'static> = Place { label: "provider key", row_id: "row", project_id: "project", version: 1 };

    #[test]
    fn a_sealed_value_opens_only_in_its_place() {
        let key = SealingKey::new([1; 16], &[7; 32]).unwrap();
        let sealed = key.seal(&HOME, b"sk-live-0123456789").unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"live"));
        assert_eq!(key.open(&HOME, &sealed).unwrap().as_slice(), b"sk-live-0123456789");
        for elsewhere in [
            Place { label: "project key", ..HOME },
            Place { row_id: "row2", ..HOME },
            Place { project_id: "other", ..HOME },
            Place { row_id: "rowp", project_id: "roject", ..HOME },
            Place { version: 2, ..HOME },
        ] {
            assert_eq!(key.open(&elsewhere, &sealed).err(), Some(SealError::Broken));
        }
    }

    #[test]
    fn what_was_touched_does_not_open() {
        let key = SealingKey::new([1; 16], &[7; 32]).unwrap();
        let sealed = key.seal(&HOME, b"secret").unwrap();
        for place in 0..sealed.len() {
            let mut touched = sealed.clone();
            touched[place] ^= 1;
            assert!(key.open(&HOME, &touched).is_err(), "octet {place}");
        }
        for length in 0..sealed.len() {
            assert!(key.open(&HOME, &sealed[..length]).is_err(), "{length} octets");
        }
        assert_eq!(key.open(&HOME, b"sk-a-key-in-plain-text").err(), Some(SealError::NotSealed));
    }

    #[test]
    fn another_key_is_named() {
        let key = SealingKey::new([0xab; 16], &[7; 32]).unwrap();
        let other = SealingKey::new([2; 16], &[7; 32]).unwrap();
        let error = other.open(&HOME, &key.seal(&HOME, b"secret").unwrap()).unwrap_err();
        assert_eq!(error, SealError::OtherKey { sealed_by: [0xab; 16] });
        assert!(error.to_string().contains("abababab"));
    }

    #[test]
    fn equal_values_are_sealed_differently() {
        let key = SealingKey::new([1; 16], &[7; 32]).unwrap();
        assert_ne!(key.seal(&HOME, b"secret").unwrap(), key.seal(&HOME, b"secret").unwrap());
    }
}
